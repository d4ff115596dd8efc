//! Second factors: cases 26 to 29, and what cases 4, 5, 13, 16, 17, 19 and 24 say of them.

use crate::actors::{
    address, assert_over, change, enter, forget, letter_about, lock, login, me, person, race, race_of, refresh, verify,
};
use crate::codes::assert_hidden;
use crate::support::{
    Answer, Authenticator, Engine, Guarded, PASSWORD, Request, Side, asked, first_step, guard, pause,
    recovery_codes_of, second_step,
};
use crate::target::{STAGING, everywhere, inside, own_gateways, own_worlds};
use serde_json::json;
use std::time::Duration;

/// What the owner sets instead.
const NEW: &str = "fresh-Sandalwood-63-lagoon";

fn guarded(side: &mut Side<'_>, name: &str) -> Guarded {
    let account = person(side, name);
    guard(side, account)
}

fn good_code(guarded: &Guarded) -> &str {
    guarded.recovery_codes.first().expect("an unused recovery code")
}

/// So many wrong codes, each in a sign-in of its own, by one method and the other, on one engine and the other.
fn guess(side: &mut Side<'_>, guarded: &Guarded, count: usize) {
    for turn in 0..count {
        let token = guarded.begin(side);
        let request = match turn % 2 {
            0 => second_step(&token, "totp", &guarded.authenticator.wrong_code()),
            _ => second_step(&token, "recovery_code", "aaaa-bbbb-cccc-dddd"),
        };
        let answer = if turn % 3 == 0 { side.send_to_other(&request) } else { side.send(&request) };
        side.refused(&answer, 401, "invalid_mfa_code");
    }
}

#[test]
fn case_04_of_many_uses_of_one_challenge_or_recovery_code_at_once_exactly_one_succeeds() {
    everywhere(|side| {
        let mut ada = guarded(side, "single");
        // One challenge, and many good codes.
        let token = ada.begin(side);
        let codes: Vec<_> = ada.recovery_codes.iter().take(4).cloned().chain([ada.authenticator.code()]).collect();
        let lane = |code: &String| {
            let method = if code.len() == 6 { "totp" } else { "recovery_code" };
            vec![second_step(&token, method, code)]
        };
        let answers = race(side, &codes.iter().map(lane).collect::<Vec<_>>());
        assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1, "one use of the challenge");
        // One recovery code, and many challenges.
        let mut ada = guarded(side, "shared");
        let tokens: Vec<_> = (0..5).map(|_| ada.begin(side)).collect();
        let code = ada.recovery_codes.pop().expect("a code");
        let lanes: Vec<_> = tokens.iter().map(|token| vec![second_step(token, "recovery_code", &code)]).collect();
        let (good, bad): (Vec<_>, Vec<_>) = race(side, &lanes).into_iter().partition(|answer| answer.status == 200);
        assert_eq!((good.len(), bad.len()), (1, 4), "one use of the code");
        assert!(bad.iter().all(|answer| ["invalid_mfa_code", "account_locked"].contains(&answer.code().as_str())));
    });
}

#[test]
fn case_04_an_authenticator_that_is_confirmed_twice_at_once_is_set_up_once() {
    everywhere(|side| {
        let account = person(side, "twice");
        let begun = side.post_as(&account.access, "auth/mfa/totp/", &json!({ "current_password": PASSWORD }));
        let code = json!({ "code": Authenticator::new(&begun.text("data.secret")).code() });
        let confirm = Request::post("/api/{v}/auth/mfa/totp/confirm/", &code).bearer(&account.access);
        let (good, bad): (Vec<_>, Vec<_>) =
            race_of(side, 2, &confirm).into_iter().partition(|answer| answer.status == 200);
        assert_eq!((good.len(), bad.len()), (1, 1), "one on either engine");
        bad.iter().for_each(|answer| side.refused(answer, 409, "conflict"));
        // The recovery codes that were shown are the ones that hold.
        let token = asked(&side.send(&first_step(&account.email)));
        let codes = good.iter().flat_map(recovery_codes_of);
        for code in codes.take(1) {
            let answer = side.send(&second_step(&token, "recovery_code", &code));
            assert_eq!(answer.status, 200, "{}", answer.shown());
        }
    });
}

#[test]
fn case_05_a_change_of_the_second_factor_ends_every_other_session_on_both_engines_at_once() {
    everywhere(|side| {
        let account = person(side, "changer");
        let before = enter(side, &account);
        let mut ada = guard(side, account);
        assert_over(side, &before.text("data.access"), &before.text("data.refresh"));
        for path in ["recovery-codes", "disable"] {
            let other = ada.enter(side);
            let (access, token) = (other.text("data.access"), other.text("data.refresh"));
            assert_eq!(side.send_to_other(&me(&access)).status, 200);
            let code = ada.recovery_codes.pop().expect("a code");
            let body = json!({ "current_password": PASSWORD, "code": code });
            let request = Request::post(&format!("/api/{{v}}/auth/mfa/{path}/"), &body).bearer(&ada.account.access);
            let answer = side.send(&request);
            assert_eq!(answer.status, 200, "{}", answer.shown());
            assert_over(side, &access, &token);
            assert_eq!(side.send_to_other(&me(&ada.account.access)).status, 200, "this session goes on");
            if path == "recovery-codes" {
                ada.recovery_codes = recovery_codes_of(&answer);
            }
        }
    });
}

#[test]
fn case_13_a_dump_shows_no_secret_of_an_authenticator_and_no_recovery_code() {
    own_gateways("it dumps the database and the store", &[], |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let ada = guarded(&mut side, "keeper");
            let token = ada.begin(&mut side);
            let waiting = person(&mut side, "waiting");
            let body = json!({ "current_password": PASSWORD });
            let begun = side.send(&Request::post("/api/{v}/auth/mfa/totp/", &body).bearer(&waiting.access));
            let mut secrets = vec![token, begun.text("data.secret"), ada.authenticator.base32()];
            secrets.extend(ada.recovery_codes.iter().flat_map(|code| [code.clone(), code.replace('-', "")]));
            assert_hidden(&gateway.stored_bytes(), &[], &secrets);
            let log = gateway.log();
            assert!(secrets.iter().all(|secret| !log.contains(secret)), "a secret is in the log");
        }
    });
}

#[test]
fn case_16_a_reset_lifts_no_second_factor() {
    everywhere(|side| {
        let ada = guarded(side, "returner");
        let link = forget(side, &ada.account.email);
        let answer = side.send(&link.confirm(NEW));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert!(!answer.shown().contains("eyJ"), "{}", answer.shown());
        let answer = side.send(&login(&ada.account.email, NEW));
        let token = asked(&answer);
        let answer = side.send(&second_step(&token, "recovery_code", good_code(&ada)));
        assert_eq!(answer.status, 200, "{}", answer.shown());
    });
}

#[test]
fn case_17_and_29_wrong_codes_lock_over_methods_sign_ins_and_engines() {
    everywhere(|side| {
        let ada = guarded(side, "guessed");
        guess(side, &ada, 5);
        // Not even a right code, and a sign-in begun anew buys no guesses.
        for _ in 0..2 {
            let token = ada.begin(side);
            let request = second_step(&token, "recovery_code", good_code(&ada));
            for answer in [side.send(&request), side.send_to_other(&request)] {
                side.refused(&answer, 429, "account_locked");
                let seconds: u32 = answer.header("retry-after").and_then(|it| it.parse().ok()).expect("seconds");
                assert!((1..=901).contains(&seconds), "{seconds}");
            }
        }
        // A reset is no way round it, and the session that there was goes on.
        let link = forget(side, &ada.account.email);
        assert_eq!(side.send(&me(&ada.account.access)).status, 200);
        assert_eq!(side.send(&link.confirm(NEW)).status, 200);
        let token = asked(&side.send(&login(&ada.account.email, NEW)));
        let answer = side.send(&second_step(&token, "recovery_code", good_code(&ada)));
        side.refused(&answer, 429, "account_locked");
        // Another person's count is another.
        let mut grace = guarded(side, "bystander");
        grace.enter(side);
    });
}

#[test]
fn case_17_of_many_guesses_at_once_no_more_than_five_are_judged() {
    everywhere(|side| {
        let ada = guarded(side, "stormed");
        let token = ada.begin(side);
        let wrong = ada.authenticator.wrong_code();
        let lanes: Vec<_> = (0..40)
            .map(|lane| match lane % 2 {
                0 => vec![second_step(&token, "totp", &wrong)],
                _ => vec![second_step(&token, "recovery_code", "aaaa-bbbb-cccc-dddd")],
            })
            .collect();
        let answers = race(side, &lanes);
        let judged = answers.iter().filter(|answer| answer.code() == "invalid_mfa_code").count();
        assert_eq!(judged, 5, "of 40 guesses");
        answers
            .iter()
            .filter(|answer| answer.code() != "invalid_mfa_code")
            .for_each(|answer| side.refused(answer, 429, "account_locked"));
        // One of them has locked, and one letter tells of it.
        letter_about(side, &ada.account.email, "locked");
        pause(Duration::from_millis(500));
        let mails = side.gateway.mails_to(&ada.account.email);
        let told = mails.iter().filter(|mail| mail.header("subject").is_some_and(|it| it.contains("locked")));
        assert_eq!(told.count(), 1);
    });
}

#[test]
fn case_29_the_wrong_codes_of_a_day_are_counted_whatever_was_right_in_between() {
    own_gateways("it needs few guesses a day", &[("BIFRONS_MFA__DAILY_GUESSES", "6")], |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let mut ada = guarded(&mut side, "patient");
            guess(&mut side, &ada, 4);
            ada.enter(&mut side);
            guess(&mut side, &ada, 2);
            let token = ada.begin(&mut side);
            let request = second_step(&token, "recovery_code", good_code(&ada));
            let body = json!({ "current_password": PASSWORD, "code": good_code(&ada) });
            let change = Request::post("/api/{v}/auth/mfa/disable/", &body).bearer(&ada.account.access);
            for answer in [side.send(&request), side.send_to_other(&request), side.send(&change)] {
                side.refused(&answer, 429, "account_locked");
                let seconds: u32 = answer.header("retry-after").and_then(|it| it.parse().ok()).expect("seconds");
                assert!((80_000..=86_401).contains(&seconds), "{seconds}");
            }
            assert_eq!(side.send(&me(&ada.account.access)).status, 200, "who is in stays in");
            assert_eq!(gateway.run(&["user", "unlock", &ada.account.email], "").output, "unlocked\n");
            let answer = side.send(&request);
            assert_eq!(answer.status, 200, "{}", answer.shown());
        }
    });
}

#[test]
fn case_17_the_count_of_wrong_codes_outlives_kill_and_restart() {
    own_gateways("it restarts the gateway", &[], |gateway| {
        let mut told = Vec::new();
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let (locked, counted) = (guarded(&mut side, "locked"), guarded(&mut side, "counted"));
            guess(&mut side, &locked, 5);
            guess(&mut side, &counted, 4);
            told.push((engine, locked, counted));
        }
        gateway.kill();
        gateway.restart();
        for (engine, locked, counted) in told {
            let mut side = Side::new(gateway, engine);
            guess(&mut side, &counted, 1);
            for person in [&locked, &counted] {
                let token = person.begin(&mut side);
                let answer = side.send(&second_step(&token, "recovery_code", good_code(person)));
                side.refused(&answer, 429, "account_locked");
            }
        }
    });
}

#[test]
fn case_19_the_second_step_obeys_the_lock_of_the_first() {
    everywhere(|side| {
        let ada = guarded(side, "locked");
        let token = ada.begin(side);
        lock(side, &ada.account.email);
        for method in ["totp", "recovery_code"] {
            let request = second_step(&token, method, good_code(&ada));
            for answer in [side.send(&request), side.send_to_other(&request)] {
                side.refused(&answer, 429, "account_locked");
            }
        }
        let answer = side.send(&first_step(&ada.account.email));
        side.refused(&answer, 429, "account_locked");
    });
}

#[test]
fn case_19_no_second_step_lets_a_disabled_or_deleted_user_in() {
    own_worlds("it changes the database", STAGING, |side| {
        for (assignment, status, code) in
            [("is_active = false", 403, "account_disabled"), ("deleted_at = created_at", 401, "token_not_valid")]
        {
            let ada = guarded(side, "gone");
            let token = ada.begin(side);
            crate::lockout::set_state(side, &ada.account, assignment);
            for method in ["recovery_code", "totp"] {
                let answer = side.send(&second_step(&token, method, good_code(&ada)));
                side.refused(&answer, status, code);
            }
        }
    });
}

#[test]
fn case_24_a_second_factor_of_a_thiefs_is_told_with_the_way_out() {
    own_gateways("it runs a command of the operator's", &[], |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let side = &mut side;
            // Set up by somebody who knows the password.
            let thief = guarded(side, "victim");
            let email = &thief.account.email;
            let letter = gateway.wait_for_mail(email, 2).text;
            let words = letter.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains("set a new password") && words.contains("ask support to remove it"), "{letter}");
            let link = forget(side, email);
            assert_eq!(side.send(&link.confirm(NEW)).status, 200);
            assert_over(side, &thief.account.access, &thief.account.refresh);
            asked(&side.send(&login(email, NEW)));
            assert_eq!(gateway.run(&["user", "reset-mfa", email], "").output, "the second factor was removed\n");
            assert_eq!(side.send(&login(email, NEW)).at("data.token_type"), json!("Bearer"));
            let answer = side.send(&login(email, PASSWORD));
            side.refused(&answer, 401, "invalid_credentials");
        }
    });
}

#[test]
fn case_26_a_code_is_good_once_on_either_engine() {
    everywhere(|side| {
        let mut ada = guarded(side, "replayed");
        // The one that set the factor up is spent too.
        let token = ada.begin(side);
        let answer = side.send(&second_step(&token, "totp", &ada.authenticator.same_code()));
        side.refused(&answer, 401, "invalid_mfa_code");
        let tokens = [ada.begin(side), ada.begin(side), ada.begin(side)];
        let code = ada.authenticator.code();
        let lanes = tokens.map(|token| vec![second_step(&token, "totp", &code)]);
        let (good, bad): (Vec<_>, Vec<_>) = race(side, &lanes).into_iter().partition(|answer| answer.status == 200);
        assert_eq!((good.len(), bad.len()), (1, 2), "the same code three times at once, on two engines");
        bad.iter().for_each(|answer| side.refused(answer, 401, "invalid_mfa_code"));
        for _ in 0..2 {
            let token = ada.begin(side);
            let answer = side.send_to_other(&second_step(&token, "totp", &code));
            side.refused(&answer, 401, "invalid_mfa_code");
        }
    });
}

#[test]
fn case_27_the_token_of_a_first_step_is_good_for_its_second_step_once_and_for_nothing_else() {
    everywhere(|side| {
        let ada = guarded(side, "pending");
        let grace = guarded(side, "other");
        let token = ada.begin(side);
        // No access token, no refresh token, no challenge of a registration.
        let answer = side.send(&me(&token));
        side.refused(&answer, 401, "token_not_valid");
        let answer = side.send(&refresh(&token));
        side.refused(&answer, 401, "token_not_valid");
        let answer = side.send(&verify(&token, "123456"));
        side.refused(&answer, 400, "invalid_otp");
        let verify_token = Request::post("/api/{v}/auth/token/verify/", &json!({ "token": token }));
        let answer = side.send(&verify_token);
        side.refused(&answer, 401, "token_not_valid");
        // Nor are those a token of a first step.
        let email = address(side, "waiting");
        let (_, challenge) = side.register(&email, PASSWORD);
        for other in [&ada.account.access, &ada.account.refresh, &challenge] {
            let answer = side.send(&second_step(other, "recovery_code", good_code(&ada)));
            side.refused(&answer, 401, "token_not_valid");
        }
        // It sets nothing up, and changes nothing.
        for path in ["totp", "totp/confirm", "recovery-codes", "disable"] {
            let body = json!({ "current_password": PASSWORD, "code": good_code(&ada) });
            let answer = side.send(&Request::post(&format!("/api/{{v}}/auth/mfa/{path}/"), &body).bearer(&token));
            side.refused(&answer, 401, "token_not_valid");
        }
        // Another person's code is none of hers.
        let answer = side.send(&second_step(&token, "recovery_code", good_code(&grace)));
        side.refused(&answer, 401, "invalid_mfa_code");
        for mangled in [format!("{token}A"), token.to_uppercase(), token.chars().skip(1).collect()] {
            let answer = side.send(&second_step(&mangled, "recovery_code", good_code(&ada)));
            side.refused(&answer, 401, "token_not_valid");
        }
        let answer = side.send(&second_step(&token, "recovery_code", good_code(&ada)));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let next = ada.recovery_codes.get(1).expect("a second code");
        for answer in [
            side.send(&second_step(&token, "recovery_code", next)),
            side.send_to_other(&second_step(&token, "recovery_code", next)),
        ] {
            side.refused(&answer, 401, "token_not_valid");
        }
    });
}

#[test]
fn case_27_the_token_is_dead_once_the_password_or_the_factor_is_another() {
    everywhere(|side| {
        let mut ada = guarded(side, "mover");
        let waiting = ada.begin(side);
        assert_eq!(side.send(&change(&ada.account.access, PASSWORD, NEW)).status, 200);
        let answer = side.send(&second_step(&waiting, "recovery_code", good_code(&ada)));
        side.refused(&answer, 401, "token_not_valid");
        let waiting = asked(&side.send(&login(&ada.account.email, NEW)));
        let code = ada.recovery_codes.pop().expect("a code");
        let body = json!({ "current_password": NEW, "code": code });
        let renew = Request::post("/api/{v}/auth/mfa/recovery-codes/", &body).bearer(&ada.account.access);
        let renewed = side.send(&renew);
        assert_eq!(renewed.status, 200, "{}", renewed.shown());
        for code in recovery_codes_of(&renewed).iter().chain(&ada.recovery_codes).take(11) {
            let answer = side.send_to_other(&second_step(&waiting, "recovery_code", code));
            side.refused(&answer, 401, "token_not_valid");
        }
    });
}

/// Nothing in it signs anybody in.
#[track_caller]
fn assert_half(answer: &Answer) {
    let _ = asked(answer);
    assert!(!answer.shown().contains("\"access\"") && !answer.shown().contains("\"refresh\""), "{}", answer.shown());
}

#[test]
fn case_28_no_way_in_goes_round_the_second_factor() {
    everywhere(|side| {
        let ada = guarded(side, "guarded");
        let email = &ada.account.email;
        let ordinary = login(email, PASSWORD);
        let alias = Request { path: "/auth/login/".to_owned(), ..ordinary.clone() };
        let with = |more: serde_json::Value| {
            let mut body = json!({ "email_or_phone": email, "password": PASSWORD });
            let more = more.as_object().cloned().unwrap_or_default();
            body.as_object_mut().expect("an object").extend(more);
            Request::post("/api/{v}/auth/login/", &body)
        };
        let requests = [
            ordinary,
            alias,
            with(json!({ "mfa": false, "mfa_required": false, "mfa_token": null, "second_factor_at": null })),
            with(json!({ "method": "recovery_code", "code": good_code(&ada) })),
            Request::new("POST", "/api/{v}/auth/login").form(&[("email_or_phone", email), ("password", PASSWORD)]),
        ];
        for request in &requests {
            assert_half(&side.send(request));
            assert_half(&side.send_to_other(request));
        }
        // Registering again and asking for codes opens nothing either.
        let answer = side.post("auth/register/", &json!({ "email": email, "password": PASSWORD }));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        for code in ["000000", good_code(&ada)] {
            let answer = side.send(&verify(&answer.text("data.challenge"), code));
            side.refused(&answer, 400, "invalid_otp");
        }
        // The second step without its parts, and the profile, change nothing.
        let token = ada.begin(side);
        for body in [
            json!({ "mfa_token": token }),
            json!({ "mfa_token": token, "method": "totp" }),
            json!({ "mfa_token": token, "method": "passkey", "code": "x" }),
            json!({ "mfa_token": token, "method": "", "code": "" }),
        ] {
            let answer = side.post("auth/mfa/verify/", &body);
            side.refused(&answer, 400, "validation_error");
        }
        let patch = json!({ "second_factor_at": null, "mfa_required": false, "first_name": "Ada" });
        let patch = Request::patch("/api/{v}/auth/me/", &patch).bearer(&ada.account.access);
        assert_eq!(side.send(&patch).status, 200);
        assert_half(&side.send(&login(email, PASSWORD)));
    });
}

#[test]
fn case_28_an_access_token_alone_sets_up_and_removes_nothing() {
    everywhere(|side| {
        let account = person(side, "stolen");
        let begin = |body: &serde_json::Value| Request::post("/api/{v}/auth/mfa/totp/", body).bearer(&account.access);
        let answer = side.send(&begin(&json!({})));
        side.refused(&answer, 400, "validation_error");
        let answer = side.send(&begin(&json!({ "current_password": crate::WRONG })));
        side.refused(&answer, 400, "invalid_current_password");
        let confirm = Request::post("/api/{v}/auth/mfa/totp/confirm/", &json!({ "code": "000000" }));
        let answer = side.send(&confirm.bearer(&account.access));
        side.refused(&answer, 409, "conflict");
        let ada = guard(side, account.clone());
        for body in [
            json!({ "code": good_code(&ada) }),
            json!({ "current_password": PASSWORD }),
            json!({ "current_password": "", "code": good_code(&ada) }),
        ] {
            let disable = Request::post("/api/{v}/auth/mfa/disable/", &body).bearer(&account.access);
            let answer = side.send(&disable);
            side.refused(&answer, 400, "validation_error");
        }
        let answer = side.send(&begin(&json!({ "current_password": PASSWORD })));
        side.refused(&answer, 409, "conflict");
        inside("it counts rows", || {
            let count = crate::actors::count_of_user(side, "totp_factors", &account.user_id, "last_step > 0");
            assert_eq!(count, 1);
        });
        assert_half(&side.send(&login(&account.email, PASSWORD)));
    });
}

#[test]
fn case_35_a_long_password_or_code_is_refused_wherever_a_change_of_the_factor_takes_one() {
    everywhere(|side| {
        let ada = guarded(side, "verbose");
        let grace = person(side, "verbose");
        for length in [129 * 4, 60_000] {
            let long = "x".repeat(length);
            let body = json!({ "current_password": long, "code": good_code(&ada) });
            for (path, access) in
                [("totp", &grace.access), ("recovery-codes", &ada.account.access), ("disable", &ada.account.access)]
            {
                let answer = side.send(&Request::post(&format!("/api/{{v}}/auth/mfa/{path}/"), &body).bearer(access));
                side.refused(&answer, 400, "validation_error");
            }
            let token = ada.begin(side);
            for method in ["totp", "recovery_code"] {
                let answer = side.send(&second_step(&token, method, &long));
                side.refused(&answer, 400, "validation_error");
            }
        }
        let token = ada.begin(side);
        let answer = side.send(&second_step(&token, "recovery_code", good_code(&ada)));
        assert_eq!(answer.status, 200, "nothing was counted: {}", answer.shown());
    });
}
