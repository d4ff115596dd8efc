//! One-time codes: cases 4, 9, 10, 11, 12 and 13.

use crate::actors::{address, login, number, person, race, race_of, refresh, texted_code, verify};
use crate::other_code;
use crate::support::{Engine, Gateway, PASSWORD, Request, Side, Story, pause, run_alone};
use crate::target::{everywhere, own_gateways, own_worlds};
use data_encoding::{BASE64, BASE64URL, HEXLOWER};
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};
use std::time::Duration;

fn by_address(email: &str, code: &str) -> Request {
    Request::post("/api/{v}/auth/verify-otp/", &json!({ "email": email, "otp": code }))
}

fn resend(name: &str) -> Request {
    Request::post("/api/{v}/auth/resend-otp/", &json!({ "email_or_phone": name }))
}

#[test]
fn case_04_of_fifty_uses_of_one_code_exactly_one_succeeds() {
    everywhere(|side| {
        for by_challenge in [true, false] {
            let email = address(side, "single");
            let (code, challenge) = side.register(&email, PASSWORD);
            let request = if by_challenge { verify(&challenge, &code) } else { by_address(&email, &code) };
            let (good, bad): (Vec<_>, Vec<_>) =
                race_of(side, 50, &request).into_iter().partition(|answer| answer.status == 200);
            assert_eq!((good.len(), bad.len()), (1, 49));
            bad.iter().for_each(|answer| side.refused(answer, 400, "invalid_otp"));
            assert_eq!(side.send(&refresh(&good[0].text("data.refresh"))).status, 200);
        }
    });
}

#[test]
fn case_09_after_five_wrong_guesses_the_right_code_is_dead_until_a_new_one() {
    everywhere(|side| {
        let email = address(side, "guessed");
        let (code, challenge) = side.register(&email, PASSWORD);
        for step in 1..=5 {
            // Both ways of naming the account count together.
            let wrong = other_code(&code, step);
            let request = if step % 2 == 0 { verify(&challenge, &wrong) } else { by_address(&email, &wrong) };
            let answer = if step < 4 { side.send(&request) } else { side.send_to_other(&request) };
            side.refused(&answer, 400, "invalid_otp");
        }
        for request in [verify(&challenge, &code), by_address(&email, &code)] {
            for answer in [side.send(&request), side.send_to_other(&request)] {
                side.refused(&answer, 400, "invalid_otp");
            }
        }
        let answer = side.send(&login(&email, PASSWORD));
        side.refused(&answer, 403, "account_not_verified");
        assert_eq!(side.send(&resend(&email)).status, 200);
        let fresh = side.gateway.wait_for_mail(&email, 2).code().expect("a code");
        assert_eq!(side.send(&verify(&challenge, &fresh)).status, 200, "the owner is not shut out by it");
    });
}

#[test]
fn case_09_new_codes_buy_no_guesses_without_end() {
    everywhere(|side| {
        let email = address(side, "persistent");
        let (mut code, challenge) = side.register(&email, PASSWORD);
        for round in 2..=5 {
            for step in 1..=5 {
                let answer = side.send(&verify(&challenge, &other_code(&code, step)));
                side.refused(&answer, 400, "invalid_otp");
            }
            assert_eq!(side.send(&resend(&email)).status, 200);
            code = side.gateway.wait_for_mail(&email, round).code().expect("a code");
        }
        let answer = side.send(&verify(&challenge, &code));
        side.refused(&answer, 400, "invalid_otp");
    });
}

#[test]
fn case_10_of_a_thousand_guesses_at_once_no_more_than_five_count() {
    everywhere(|side| {
        let email = address(side, "stormed");
        let (code, challenge) = side.register(&email, PASSWORD);
        let guess = |lane: u32, turn: u32| verify(&challenge, &other_code(&code, 1 + lane * 20 + turn));
        // The right code ends every lane: each would be right, had its lane's guesses been the only ones.
        let lane = |lane: u32| (0..20).map(|turn| guess(lane, turn)).chain([verify(&challenge, &code)]).collect();
        let lanes: Vec<Vec<_>> = (0..50).map(lane).collect();
        let answers = race(side, &lanes);
        assert_eq!(answers.len(), 1050);
        answers.iter().for_each(|answer| side.refused(answer, 400, "invalid_otp"));
    });
}

#[test]
fn case_11_a_code_is_good_for_its_own_account_alone_and_a_try_elsewhere_is_counted() {
    everywhere(|side| {
        let (mallory, ada) = (address(side, "mallory"), address(side, "ada"));
        let (theirs, challenge_of_mallory) = side.register(&mallory, PASSWORD);
        let (own, challenge_of_ada) = side.register(&ada, PASSWORD);
        let theirs_for_ada = if theirs == own { other_code(&own, 1) } else { theirs.clone() };
        for turn in 0..5 {
            let request = if turn % 2 == 0 { &challenge_of_ada } else { &ada };
            let request = if turn % 2 == 0 { verify(request, &theirs_for_ada) } else { by_address(request, &theirs) };
            if theirs != own {
                let answer = side.send(&request);
                side.refused(&answer, 400, "invalid_otp");
            }
        }
        if theirs != own {
            let answer = side.send(&verify(&challenge_of_ada, &own));
            side.refused(&answer, 400, "invalid_otp");
        }
        assert_eq!(side.send(&verify(&challenge_of_mallory, &theirs)).status, 200, "its own guesses are not used up");
    });
}

#[test]
fn case_11_a_code_of_one_channel_or_of_an_earlier_request_is_refused() {
    everywhere(|side| {
        let (email, phone) = (address(side, "ada"), number(side, "ada"));
        let (mailed, challenge) = side.register(&email, PASSWORD);
        let answer = side.post("auth/register/", &json!({ "phone": phone, "password": PASSWORD }));
        let texted = texted_code(side, &phone, 1);
        if mailed != texted {
            let wrong = Request::post("/api/{v}/auth/verify-otp/", &json!({ "phone": phone, "otp": mailed }));
            let refused = side.send(&wrong);
            side.refused(&refused, 400, "invalid_otp");
            let refused = side.send(&verify(&challenge, &texted));
            side.refused(&refused, 400, "invalid_otp");
        }
        assert_eq!(side.send(&verify(&answer.text("data.challenge"), &texted)).status, 200);
        // Both identifiers at once name nobody.
        let both = json!({ "email": email, "phone": phone, "otp": mailed });
        let refused = side.send(&Request::post("/api/{v}/auth/verify-otp/", &both));
        side.refused(&refused, 400, "validation_error");
        assert_eq!(side.send(&verify(&challenge, &mailed)).status, 200);
        // What a person registers once they have an account leads nowhere, whatever code is shown with it.
        let again = side.post("auth/register/", &json!({ "email": email, "password": PASSWORD }));
        let refused = side.send(&verify(&again.text("data.challenge"), &mailed));
        side.refused(&refused, 400, "invalid_otp");
    });
}

#[test]
fn case_12_a_resent_code_replaces_the_old_one() {
    everywhere(|side| {
        let email = address(side, "forgetful");
        let (old, challenge) = side.register(&email, PASSWORD);
        assert_eq!(side.send_to_other(&resend(&email)).status, 200);
        let new = side.gateway.wait_for_mail(&email, 2).code().expect("a code");
        if old != new {
            for request in [verify(&challenge, &old), by_address(&email, &old)] {
                let answer = side.send(&request);
                side.refused(&answer, 400, "invalid_otp");
            }
        }
        assert_eq!(side.send(&verify(&challenge, &new)).status, 200);
    });
}

#[test]
fn case_12_a_code_is_dead_a_second_after_its_time_whatever_the_client_says_it_is() {
    let brief = Story { env: &[("BIFRONS_OTP__TTL", "2s")] };
    own_worlds("it needs a short otp.ttl", brief, |side| {
        let email = address(side, "slow");
        let (code, challenge) = side.register(&email, PASSWORD);
        pause(Duration::from_secs(3));
        let past = "Sat, 01 Jan 2000 00:00:00 GMT";
        let answer = side.send(&verify(&challenge, &code).header("Date", past).header("X-Request-Start", "0"));
        side.refused(&answer, 400, "invalid_otp");
        let answer = side.send_to_other(&by_address(&email, &code));
        side.refused(&answer, 400, "invalid_otp");
    });
}

#[test]
fn case_12_no_code_can_be_made_to_live_longer_than_ten_minutes() {
    for (ttl, good) in [("10m", true), ("601s", false), ("1d", false)] {
        let outcome = run_alone(&[("BIFRONS_OTP__TTL", ttl)], &["config", "check"], "");
        assert_eq!(outcome.status.success(), good, "{ttl}: {}{}", outcome.output, outcome.errors);
    }
}

/// A code as it could lie about: by itself, or as any plain digest of it, alone or with what stands beside it.
fn forms(code: &str, beside: &[&str]) -> Vec<Vec<u8>> {
    let mut texts = Vec::new();
    for other in beside.iter().chain([&""]) {
        texts.extend([format!("{code}{other}"), format!("{other}{code}"), format!("{other}:{code}")]);
    }
    let mut forms = Vec::new();
    for text in texts {
        let digests: [Vec<u8>; 3] = [
            Sha1::digest(text.as_bytes()).to_vec(),
            Sha256::digest(text.as_bytes()).to_vec(),
            Sha512::digest(text.as_bytes()).to_vec(),
        ];
        for digest in digests {
            for encoded in [HEXLOWER.encode(&digest), BASE64.encode(&digest), BASE64URL.encode(&digest)] {
                forms.push(encoded.trim_end_matches('=').as_bytes().to_vec());
            }
            forms.push(digest);
        }
    }
    forms
}

/// A letter for each byte: searching in text is fast.
fn latin(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Whether the digits stand in it as a word, and not as the fraction of a second.
fn has_word(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len() + 2).any(|window| {
        let (first, rest) = window.split_first().expect("a window is not empty");
        let (last, middle) = rest.split_last().expect("a window is not empty");
        let apart = |byte: &u8| !byte.is_ascii_alphanumeric();
        middle == word.as_bytes() && apart(first) && *first != b'.' && apart(last)
    })
}

/// A dump shows none of the codes, alone or hashed with what stands beside them, and none of the other secrets.
pub fn assert_hidden(dump: &[u8], codes: &[(String, Vec<String>)], secrets: &[String]) {
    assert!(dump.len() > 1000, "a dump of {} bytes", dump.len());
    let text = latin(dump);
    let has = |bytes: &[u8]| text.contains(&latin(bytes));
    for (code, beside) in codes {
        assert!(!has_word(dump, code), "the code {code} is in the dump");
        let beside: Vec<_> = beside.iter().map(String::as_str).collect();
        for form in forms(code, &beside) {
            assert!(!has(&form), "a plain digest of the code is in the dump");
        }
    }
    for secret in secrets {
        assert!(!has(secret.as_bytes()), "{secret} is in the dump");
        let digest = Sha256::digest(secret.as_bytes());
        for form in [digest.to_vec(), HEXLOWER.encode(&digest).into_bytes(), BASE64.encode(&digest).into_bytes()] {
            assert!(!has(&form), "the digest of {secret} is in the dump");
        }
    }
}

/// Leaves codes, challenges and tokens behind, and gives them: first the codes, then the rest.
fn leave_secrets(gateway: &Gateway, engine: Engine) -> (Vec<(String, Vec<String>)>, Vec<String>) {
    let mut side = Side::new(gateway, engine);
    let account = person(&mut side, "keeper");
    let child = side.send(&refresh(&account.refresh));
    let (email, phone) = (address(&mut side, "waiting"), number(&mut side, "waiting"));
    let (first, challenge) = side.register(&email, PASSWORD);
    assert_eq!(side.send(&resend(&email)).status, 200);
    let second = gateway.wait_for_mail(&email, 2).code().expect("a code");
    let answer = side.post("auth/register/", &json!({ "phone": phone, "password": PASSWORD }));
    let texted = texted_code(&side, &phone, 1);
    let beside = |name: &str, challenge: &str| vec![name.to_owned(), challenge.to_owned()];
    let challenge_of_phone = answer.text("data.challenge");
    let codes = vec![
        (first, beside(&email, &challenge)),
        (second, beside(&email, &challenge)),
        (texted, beside(&phone, &challenge_of_phone)),
    ];
    let tokens = [account.access, account.refresh, child.text("data.access"), child.text("data.refresh")];
    let signatures = tokens.iter().filter_map(|token| token.rsplit('.').next()).map(str::to_owned);
    let rest = signatures.chain([challenge, challenge_of_phone, PASSWORD.to_owned()]).collect();
    (codes, rest)
}

#[test]
fn case_13_a_dump_shows_no_code_no_token_and_no_plain_digest_of_one() {
    let prompt = [("BIFRONS_OTP__RESEND_INTERVAL", "0s")];
    own_gateways("it dumps the database and the store", &prompt, |gateway| {
        for engine in Engine::BOTH {
            let (codes, rest) = leave_secrets(gateway, engine);
            assert_hidden(&gateway.stored_bytes(), &codes, &rest);
        }
    });
}
