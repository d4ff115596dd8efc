//! Signing in with Google: cases 4, 19, 21, 22, 23, 25 and 28. The ID tokens are signed with keys of the tests' own, which
//! an operator's installation rightly does not know, so that none of them runs there.

use crate::WRONG;
use crate::actors::{
    address, assert_over, count_of_user, enter as enter_with_password, letter_about, lock, login, me, person, race,
    race_of, refresh, request_reset, verify,
};
use crate::support::{
    Account, Answer, Backend, Engine, GoogleKey, IdToken, PASSWORD, Request, Side, Story, asked, google, guard, now,
    pause, second_step, signed, unique,
};
use crate::target::{STAGING, named, own_gateways, own_worlds};
use rsa::pkcs1::EncodeRsaPublicKey as _;
use rsa::pkcs8::{EncodePublicKey as _, LineEnding};
use serde_json::{Value, json};
use std::time::Duration;

const REASON: &str = "it signs ID tokens with a key of its own";

/// Whoever has proven an address to Google has proven it here; a second code may be asked for at once.
const VERIFIED: Story =
    Story { env: &[("BIFRONS_GOOGLE__LINKING", "verified"), ("BIFRONS_OTP__RESEND_INTERVAL", "0s")] };

const BOUND: Story = Story { env: &[("BIFRONS_GOOGLE__REQUIRE_NONCE", "true")] };

/// An address for which Google speaks.
fn gmail(side: &mut Side<'_>, name: &str) -> String {
    let email = format!("{}.{}{:05}@gmail.com", named(name), side.engine.name(), unique());
    side.stand_in(&email, &format!("<{name}@>"));
    email
}

#[track_caller]
fn enter(side: &mut Side<'_>, request: &Request, status: u16) -> Answer {
    let answer = side.send(request);
    assert_eq!(answer.status, status, "{}", answer.shown());
    answer
}

/// On both engines, and nothing is set in a browser.
#[track_caller]
fn assert_refused(side: &mut Side<'_>, what: &str, request: &Request) {
    for answer in [side.send(request), side.send_to_other(request)] {
        assert_eq!(
            (answer.status, answer.at("code")),
            (401, json!("invalid_google_token")),
            "{what}: {}",
            answer.shown()
        );
        assert_eq!(answer.at("data"), Value::Null, "{what}");
        assert_eq!(answer.all("set-cookie").count(), 0, "{what}: {:?}", answer.headers);
    }
}

#[test]
fn case_04_of_fifty_uses_of_one_google_token_exactly_one_succeeds() {
    own_worlds(REASON, STAGING, |side| {
        for nonce in [None, Some("n-0S6_WzA2Mj")] {
            let email = address(side, "single");
            let token = nonce.map_or_else(|| IdToken::of(&email), |nonce| IdToken::of(&email).with("nonce", nonce));
            let request = nonce.map_or_else(|| token.request(), |nonce| token.request_with("nonce", nonce));
            let (good, bad): (Vec<_>, Vec<_>) =
                race_of(side, 50, &request).into_iter().partition(|answer| answer.status < 300);
            assert_eq!((good.len(), bad.len()), (1, 49));
            bad.iter().for_each(|answer| side.refused(answer, 401, "invalid_google_token"));
            assert_eq!(side.send(&refresh(&good[0].text("data.refresh"))).status, 200);
            // A known person's token too.
            let again = token.again();
            let request = nonce.map_or_else(|| again.request(), |nonce| again.request_with("nonce", nonce));
            let statuses: Vec<_> = race_of(side, 50, &request).iter().map(|answer| answer.status).collect();
            assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
            assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 49, "{statuses:?}");
        }
    });
}

#[test]
fn case_04_a_google_token_stays_spent_over_kill_and_restart() {
    own_gateways("it restarts the gateway", &[], |gateway| {
        let mut spent = Vec::new();
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let token = IdToken::of(&address(&mut side, "single"));
            enter(&mut side, &token.request(), 201);
            spent.push((engine, token));
        }
        gateway.kill();
        gateway.restart();
        for (engine, token) in spent {
            let mut side = Side::new(gateway, engine);
            assert_refused(&mut side, "spent before the restart", &token.request());
            enter(&mut side, &token.again().request(), 200);
        }
    });
}

/// Changes the account's row as an operator would.
fn set_state(side: &Side<'_>, user_id: &str, assignment: &str) {
    let id = match side.gateway.backend {
        Backend::PostgresRedis => format!("'{user_id}'"),
        Backend::Embedded => format!("x'{}'", user_id.replace('-', "")),
    };
    side.gateway.query(&format!("update users set {assignment} where id = {id}"));
}

/// A verified account with a password whose address Google speaks for, and its person, linked.
fn linked(side: &mut Side<'_>, name: &str) -> (Account, IdToken) {
    let email = gmail(side, name);
    let (code, challenge) = side.register(&email, PASSWORD);
    assert_eq!(side.send(&verify(&challenge, &code)).status, 200);
    let token = IdToken::of(&email);
    let answer = enter(side, &token.request(), 200);
    // The code and the notice of the link.
    side.gateway.wait_for_mail(&email, 2);
    let account = Account {
        email,
        password: PASSWORD.to_owned(),
        user_id: answer.text("data.user_id"),
        access: answer.text("data.access"),
        refresh: answer.text("data.refresh"),
    };
    (account, token)
}

#[test]
fn case_19_google_obeys_the_lock() {
    own_worlds(REASON, VERIFIED, |side| {
        let (account, token) = linked(side, "locked");
        let other = person(side, "locked");
        lock(side, &account.email);
        lock(side, &other.email);
        let renamed = address(side, "renamed");
        for token in [token.again(), token.again().with("email", renamed), IdToken::of(&other.email)] {
            for answer in [side.send(&token.request()), side.send_to_other(&token.request())] {
                side.refused(&answer, 429, "account_locked");
                let seconds: u32 = answer.header("retry-after").and_then(|it| it.parse().ok()).expect("whole seconds");
                assert!((1..=901).contains(&seconds), "{seconds}");
                assert_eq!(answer.all("set-cookie").count(), 0);
            }
        }
        let answer = enter_with_password(side, &other);
        side.refused(&answer, 429, "account_locked");
        assert_eq!(side.send(&me(&account.access)).status, 200, "docs/ABUSE.md: who is in stays in");
    });
}

#[test]
fn case_19_google_lets_no_disabled_user_in() {
    own_worlds("it changes the database", STAGING, |side| {
        let (account, token) = linked(side, "disabled");
        set_state(side, &account.user_id, "is_active = false");
        for answer in [side.send(&token.again().request()), side.send_to_other(&token.again().request())] {
            side.refused(&answer, 403, "account_disabled");
            assert_eq!(answer.all("set-cookie").count(), 0);
        }
        assert_over(side, &account.access, &account.refresh);
        // Nor one that has no Google account yet.
        let classic = gmail(side, "disabled");
        let (code, challenge) = side.register(&classic, PASSWORD);
        let user_id = side.send(&verify(&challenge, &code)).text("data.user_id");
        set_state(side, &user_id, "is_active = false");
        let answer = side.send(&IdToken::of(&classic).request());
        side.refused(&answer, 403, "account_disabled");
        // Nor one that nobody has verified.
        let waiting = gmail(side, "disabled");
        let answer = side.post("auth/register/", &json!({ "email": waiting, "password": PASSWORD }));
        let registered = format!("request_id = '{}' and action = 'register'", answer.text("meta.request_id"));
        side.gateway.query(&format!(
            "update users set is_active = false where id = (select user_id from audit_events where {registered})"
        ));
        let answer = side.send(&IdToken::of(&waiting).request());
        side.refused(&answer, 403, "account_disabled");
    });
}

#[test]
fn case_19_google_gives_nobody_the_account_of_a_deleted_user() {
    own_worlds("it changes the database", STAGING, |side| {
        let deletion = match side.gateway.backend {
            Backend::PostgresRedis => "deleted_at = now()",
            Backend::Embedded => "deleted_at = created_at",
        };
        let (account, token) = linked(side, "deleted");
        set_state(side, &account.user_id, deletion);
        let letters = side.gateway.mails_to(&account.email).len();
        for token in [token.again(), IdToken::of(&account.email)] {
            let answer = side.send(&token.request());
            assert!([401, 403, 409].contains(&answer.status), "{}", answer.shown());
            assert_eq!(answer.all("set-cookie").count(), 0);
        }
        assert_over(side, &account.access, &account.refresh);
        let answer = side.send(&login(&account.email, PASSWORD));
        side.refused(&answer, 401, "invalid_credentials");
        set_state(side, &account.user_id, "deleted_at = null");
        let answer = enter(side, &token.again().request(), 200);
        assert_eq!(answer.text("data.user_id"), account.user_id, "they are who they were");
        assert_eq!(side.gateway.mails_to(&account.email).len(), letters, "no letter goes to a deleted user");
    });
}

#[test]
fn case_21_who_registered_anothers_address_has_nothing_once_its_owner_comes_by_google() {
    own_worlds(REASON, STAGING, |side| {
        for linking_would_be_allowed in [true, false] {
            let email = if linking_would_be_allowed { gmail(side, "victim") } else { address(side, "victim") };
            let (code, challenge) = side.register(&email, WRONG);
            let again = side.post("auth/register/", &json!({ "email": email, "password": PASSWORD }));
            let newer = side.gateway.wait_for_mail(&email, 2).code().expect("a code");
            let second = again.text("data.challenge");
            let victim = IdToken::of(&email);
            let first = enter(side, &victim.request(), 201);
            // What whoever registers a verified account's address is told, and nothing more.
            for (password, status, code) in
                [(WRONG, 403, "account_not_verified"), (PASSWORD, 401, "invalid_credentials")]
            {
                let answer = side.send(&login(&email, password));
                side.refused(&answer, status, code);
            }
            // Were the attacker to get the codes later, they would be of no use.
            let by_address =
                |code: &str| Request::post("/api/{v}/auth/verify-otp/", &json!({ "email": email, "otp": code }));
            for request in [
                verify(&challenge, &code),
                verify(&challenge, &newer),
                verify(&second, &newer),
                verify(&second, &code),
                by_address(&newer),
            ] {
                let answer = side.send(&request);
                side.refused(&answer, 400, "invalid_otp");
            }
            for name in [json!({ "email_or_phone": email }), json!({ "challenge": second })] {
                assert_eq!(side.send(&Request::post("/api/{v}/auth/resend-otp/", &name)).status, 200);
            }
            let third = side.post("auth/register/", &json!({ "email": email, "password": WRONG }));
            assert_eq!(third.status, 201);
            let answer = side.send(&login(&email, WRONG));
            side.refused(&answer, 403, "account_not_verified");
            let codes = side.gateway.mails_to(&email).iter().filter_map(crate::support::Mail::code).count();
            assert_eq!(codes, 2, "no further code is made for an account that is verified");
            let later = enter(side, &victim.again().request(), 200);
            assert_eq!(later.text("data.user_id"), first.text("data.user_id"));
            assert_eq!(side.send(&me(&first.text("data.access"))).status, 200);
        }
    });
}

#[test]
fn case_21_nobody_slips_in_while_the_owner_comes_by_google() {
    own_worlds(REASON, STAGING, |side| {
        let email = address(side, "victim");
        let (code, challenge) = side.register(&email, PASSWORD);
        let victim = IdToken::of(&email);
        // As if the attacker had the code and used it at the same moment: one of both gets the account, whole.
        let mut lanes = vec![vec![verify(&challenge, &code)]; 10];
        lanes.extend((0..10).map(|_| vec![victim.again().request()]));
        let answers = race(side, &lanes);
        let (by_code, by_google) = answers.split_at(10);
        let verified = by_code.iter().filter(|answer| answer.status == 200).count();
        let owned = by_google.iter().filter(|answer| answer.status < 300).count();
        let password = side.send_apart(&login(&email, PASSWORD)).status;
        if verified == 0 {
            assert_eq!((owned, password), (10, 403), "Google's");
        } else {
            assert_eq!((verified, owned, password), (1, 0, 200), "a verified account that Google may not link");
            by_google.iter().for_each(|answer| side.refused(answer, 409, "conflict"));
        }
    });
}

#[test]
fn case_21_a_registration_after_google_and_a_lost_link_change_nothing() {
    own_worlds(REASON, STAGING, |side| {
        let email = gmail(side, "victim");
        let victim = IdToken::of(&email);
        let access = enter(side, &victim.request(), 201).text("data.access");
        let answer =
            side.post("auth/register/", &json!({ "email": email, "password": WRONG, "first_name": "Mallory" }));
        let challenge = answer.text("data.challenge");
        let answer = side.send(&verify(&challenge, "123456"));
        side.refused(&answer, 400, "invalid_otp");
        let answer = side.send(&login(&email, WRONG));
        side.refused(&answer, 403, "account_not_verified");
        assert_eq!(side.send(&request_reset(&email)).status, 200);
        let answer = side.send(&me(&access));
        assert_eq!(answer.at("data.first_name"), json!("Ada"), "{}", answer.shown());
        enter(side, &victim.again().request(), 200);
    });
}

#[test]
fn case_21_a_link_to_an_account_with_a_password_is_told_to_its_owner() {
    own_worlds(REASON, VERIFIED, |side| {
        let victim = person(side, "victim");
        enter(side, &IdToken::of(&victim.email).request(), 200);
        letter_about(side, &victim.email, "google");
        assert_eq!(enter_with_password(side, &victim).status, 200);
    });
}

/// What is wrong with a token, each with a request that shows it.
fn bad_tokens(side: &mut Side<'_>, email: &str) -> Vec<(String, Request)> {
    let good = IdToken::of(email);
    let now = now();
    let mut bad: Vec<(String, IdToken)> = Vec::new();
    for (claim, value) in [
        ("iss", json!("https://accounts.google.com.example.org")),
        ("iss", json!("https://accounts.google.com/")),
        ("iss", json!("http://accounts.google.com")),
        ("iss", json!("https://ACCOUNTS.google.com")),
        ("iss", json!("https://securetoken.google.com/project")),
        ("iss", json!(["https://accounts.google.com"])),
        ("iss", json!("")),
        ("iss", Value::Null),
        ("aud", json!("client-2.apps.googleusercontent.com")),
        ("aud", json!("CLIENT-1.apps.googleusercontent.com")),
        ("aud", json!("client-1.apps.googleusercontent.com ")),
        ("aud", json!(["client-1.apps.googleusercontent.com"])),
        ("aud", json!(["client-1.apps.googleusercontent.com", "client-2.apps.googleusercontent.com"])),
        ("aud", json!("")),
        ("aud", Value::Null),
        ("exp", json!(now - 5)),
        ("exp", json!(now - 3600)),
        ("exp", json!(0)),
        ("exp", json!(-1)),
        ("exp", json!((now + 3600).to_string())),
        ("exp", json!("never")),
        ("exp", Value::Null),
        ("iat", json!(now + 120)),
        ("iat", json!(now + 86_400)),
        ("iat", json!("now")),
        ("email_verified", json!(false)),
        ("email_verified", json!("true")),
        ("email_verified", json!(1)),
        ("email_verified", Value::Null),
        ("sub", json!("")),
        ("sub", json!("1".repeat(256))),
        ("sub", json!(1_234_567_890)),
        ("sub", Value::Null),
        ("email", json!("")),
        ("email", json!("no address")),
        ("email", json!([email])),
        ("email", Value::Null),
    ] {
        bad.push((format!("{claim} is {value}"), good.with(claim, value)));
    }
    for claim in ["iss", "aud", "exp", "email_verified", "sub", "email"] {
        bad.push((format!("no {claim}"), good.without(claim)));
    }
    for (field, value) in [
        ("kid", json!("nobody's")),
        ("kid", json!("")),
        ("kid", json!("PRESENT")),
        ("kid", json!(["present"])),
        ("kid", Value::Null),
        ("alg", json!("RS512")),
        ("alg", json!("rs256")),
        ("alg", json!("PS256")),
        ("alg", json!("ES256")),
        ("alg", Value::Null),
    ] {
        bad.push((format!("{field} of the header is {value}"), good.with_header(field, value)));
    }
    bad.push(("another key under a known name".to_owned(), good.forged_by(GoogleKey::next())));
    bad.push(("a key that Google does not have".to_owned(), good.signed_by(GoogleKey::next())));
    let brought = good.forged_by(GoogleKey::next()).with_header("jwk", GoogleKey::next().jwk());
    bad.push(("a key in the header".to_owned(), brought));
    let url = "http://127.0.0.1:9/certs";
    bad.push(("keys elsewhere".to_owned(), good.signed_by(GoogleKey::next()).with_header("jku", url)));
    let mut requests: Vec<_> = bad.into_iter().map(|(what, token)| (what, token.again().request())).collect();
    requests.extend(unsigned_and_foreign(side, &good));
    requests
}

/// Tokens that were not signed with RS256 at all, or that are no ID tokens.
fn unsigned_and_foreign(side: &mut Side<'_>, good: &IdToken) -> Vec<(String, Request)> {
    let mut tokens = Vec::new();
    for algorithm in ["none", "None", "NONE", ""] {
        let unsigned = good.with_header("alg", algorithm).unsigned();
        tokens.push((format!("alg {algorithm:?} without a signature"), format!("{unsigned}.")));
        tokens.push((format!("alg {algorithm:?} in two parts"), unsigned));
    }
    let public = GoogleKey::present().public();
    let pem = public.to_public_key_pem(LineEnding::LF).expect("a PEM");
    let pkcs1 = public.to_pkcs1_pem(LineEnding::LF).expect("a PEM");
    let spki_der = public.to_public_key_der().expect("a DER").into_vec();
    let pkcs1_der = public.to_pkcs1_der().expect("a DER").into_vec();
    let jwk = GoogleKey::present().jwk();
    let modulus = jwk.get("n").and_then(Value::as_str).expect("a modulus");
    let header = good.with_header("alg", "HS256").header;
    for (what, key) in [
        ("public key as PEM", pem.as_bytes()),
        ("public key as PEM without the last line end", pem.trim_end().as_bytes()),
        ("public key as PEM of PKCS 1", pkcs1.as_bytes()),
        ("public key as DER", spki_der.as_slice()),
        ("public key as DER of PKCS 1", pkcs1_der.as_slice()),
        ("modulus", modulus.as_bytes()),
        ("JWK", jwk.to_string().as_bytes()),
        ("empty key", &[]),
    ] {
        tokens.push((format!("HS256 with the {what}"), signed(&header, &good.claims, key)));
    }
    let good = good.sign();
    let (unsigned, signature) = good.rsplit_once('.').expect("a signature");
    let (head, claims) = unsigned.split_once('.').expect("a header");
    let other = IdToken::of("eve@example.com").sign();
    let others = other.split('.').nth(1).expect("claims");
    tokens.extend([
        ("another's claims".to_owned(), format!("{head}.{others}.{signature}")),
        ("no header".to_owned(), format!(".{claims}.{signature}")),
        ("a fourth part".to_owned(), format!("{good}.{signature}")),
        ("padding".to_owned(), format!("{good}==")),
        ("a shorter signature".to_owned(), good.get(..good.len() - 4).expect("a part").to_owned()),
        ("more than 8 KiB".to_owned(), IdToken::of("eve@example.com").with("pad", "x".repeat(7000)).sign()),
    ]);
    let own = person(side, "mallory");
    tokens.push(("an access token of ours".to_owned(), own.access));
    tokens.push(("a refresh token of ours".to_owned(), own.refresh));
    tokens.push(("an access token of Google's".to_owned(), format!("ya29.{}", "a0AfH6SM".repeat(20))));
    tokens.into_iter().map(|(what, token)| (what, google(&json!({ "id_token": token })))).collect()
}

#[test]
fn case_22_tokens_that_are_not_googles_for_us_now_are_refused_alike() {
    own_worlds(REASON, STAGING, |side| {
        let email = address(side, "victim");
        let mut sentence = None;
        for (what, request) in bad_tokens(side, &email) {
            assert_refused(side, &what, &request);
            let said = side.last().answer.pointer("/body/message").cloned();
            assert_eq!(sentence.get_or_insert_with(|| said.clone()), &said, "{what}: one sentence for all");
        }
        let token = IdToken::of(&email).with("nonce", "n-1");
        for (what, request) in [
            ("no nonce in the request", token.request()),
            ("a stale nonce", token.request_with("nonce", "n-0")),
            ("no nonce in the token", token.without("nonce").request_with("nonce", "n-1")),
        ] {
            assert_refused(side, what, &request);
        }
        let answer = side.send(&login(&email, PASSWORD));
        side.refused(&answer, 401, "invalid_credentials");
        let answer = side.send(&token.request_with("nonce", "n-1"));
        assert_eq!(answer.status, 201, "and the right one is taken: {}", answer.shown());
    });
}

#[test]
fn case_22_a_token_runs_out_while_it_is_kept() {
    own_worlds(REASON, STAGING, |side| {
        let email = address(side, "slow");
        let token = IdToken::of(&email).with("exp", now() + 2);
        pause(Duration::from_secs(3));
        assert_refused(side, "kept too long", &token.request());
    });
}

#[test]
fn case_23_an_account_belongs_to_a_sub_and_never_to_an_address_alone() {
    own_worlds(REASON, VERIFIED, |side| {
        let (email, renamed) = (gmail(side, "victim"), gmail(side, "renamed"));
        let victim = IdToken::of(&email);
        let user_id = enter(side, &victim.request(), 201).text("data.user_id");
        // Whoever gets the address after its owner has another sub.
        for heir in
            [IdToken::of(&email), IdToken::of(&email.to_uppercase()), IdToken::of(&email).with("hd", "gmail.com")]
        {
            for answer in [side.send(&heir.request()), side.send_to_other(&heir.again().request())] {
                side.refused(&answer, 409, "conflict");
                assert_eq!(answer.all("set-cookie").count(), 0);
            }
        }
        let answer = enter(side, &victim.again().with("email", renamed.clone()).request(), 200);
        assert_eq!(answer.text("data.user_id"), user_id);
        assert_eq!(answer.text("data.user.email"), email, "what Google calls them now changes nothing here");
        // The new address is nobody's here yet, so that somebody else may bring it.
        let other = enter(side, &IdToken::of(&renamed).request(), 201);
        assert_ne!(other.text("data.user_id"), user_id);
        let answer = enter(side, &victim.again().with("email", renamed).request(), 200);
        assert_eq!(answer.text("data.user_id"), user_id, "a sub wins over an address");
    });
}

#[test]
fn case_23_a_workspace_speaks_for_its_own_domain_alone() {
    own_worlds(REASON, STAGING, |side| {
        for domain in ["example.org", "gmail.com", "com", "", "example.com.", "xample.com", "*.com"] {
            let victim = person(side, "victim");
            let mallory = IdToken::of(&victim.email).with("hd", domain);
            for answer in [side.send(&mallory.request()), side.send_to_other(&mallory.again().request())] {
                side.refused(&answer, 409, "conflict");
            }
            assert_eq!(side.send(&me(&victim.access)).status, 200);
            assert_eq!(side.send(&refresh(&victim.refresh)).status, 200);
        }
        let victim = person(side, "victim");
        let answer = enter(side, &IdToken::of(&victim.email).with("hd", "example.com").request(), 200);
        assert_eq!(answer.text("data.user_id"), victim.user_id);
    });
}

#[test]
fn case_25_a_strangers_page_puts_nobody_into_the_attackers_account() {
    own_worlds(REASON, STAGING, |side| {
        let email = address(side, "mallory");
        let mallory = IdToken::of(&email);
        for (n, origin) in ["https://evil.example", "null", "https://accounts.google.com"].into_iter().enumerate() {
            let (form, request) = (mallory.again().sign(), mallory.again().request());
            let form = Request::new("POST", "/api/{v}/auth/google/").form(&[("id_token", &form)]);
            for (turn, request) in [form, request].into_iter().enumerate() {
                let answer = side.send(&request.header("Origin", origin));
                assert_eq!(answer.status, if n + turn == 0 { 201 } else { 200 }, "{}", answer.shown());
                assert_eq!(answer.all("set-cookie").count(), 0, "{origin}");
                assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}");
            }
        }
        // As forms go that cannot set a type of their own.
        let body = json!({ "id_token": mallory.again().sign() }).to_string();
        let plain = Request::new("POST", "/api/{v}/auth/google/").body("text/plain", body);
        let answer = side.send(&plain);
        side.refused(&answer, 415, "unsupported_media_type");
    });
}

#[test]
fn case_25_a_token_of_another_flow_is_refused_where_a_nonce_is_required() {
    own_worlds(REASON, BOUND, |side| {
        let email = address(side, "mallory");
        let mallory = IdToken::of(&email);
        for (what, request) in [
            ("no nonce at all", mallory.request()),
            ("the victim's nonce, which the token has not", mallory.request_with("nonce", "of-the-victim")),
            (
                "the victim's nonce, and the attacker's token",
                mallory.with("nonce", "of-mallory").request_with("nonce", "of-the-victim"),
            ),
            ("an empty one on both sides", mallory.with("nonce", "").request_with("nonce", "")),
            ("none in the request", mallory.with("nonce", "of-mallory").request()),
        ] {
            assert_refused(side, what, &request);
        }
        enter(side, &mallory.with("nonce", "of-mallory").request_with("nonce", "of-mallory"), 201);
    });
}

#[test]
fn case_28_google_asks_for_the_second_factor_and_links_nobody_without_it() {
    own_worlds(REASON, VERIFIED, |side| {
        for was_linked in [true, false] {
            let (account, token) = if was_linked {
                linked(side, "guarded")
            } else {
                let account = person(side, "guarded");
                let token = IdToken::of(&account.email);
                (account, token)
            };
            let ada = guard(side, account);
            let links =
                |side: &Side<'_>| count_of_user(side, "identities", &ada.account.user_id, "provider = 'google'");
            let other = side.send_to_other(&token.again().request());
            let (here, there) = (asked(&enter(side, &token.again().request(), 200)), asked(&other));
            let answer = side.send(&second_step(&here, "totp", &ada.authenticator.wrong_code()));
            side.refused(&answer, 401, "invalid_mfa_code");
            assert_eq!(links(side), u32::from(was_linked), "before the second step");
            for (token, code) in [here, there].iter().zip(&ada.recovery_codes) {
                let answer = enter(side, &second_step(token, "recovery_code", code), 200);
                assert_eq!(answer.text("data.user_id"), ada.account.user_id);
                assert_eq!(side.send_to_other(&me(&answer.text("data.access"))).status, 200);
                assert_eq!(side.send(&refresh(&answer.text("data.refresh"))).status, 200);
                assert_eq!(links(side), 1);
            }
            letter_about(side, &ada.account.email, "google");
            asked(&enter(side, &token.again().request(), 200));
        }
    });
}
