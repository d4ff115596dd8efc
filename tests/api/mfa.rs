//! The second factor: setting it up, signing in with it, losing it.

use crate::password_reset::{NEW, login};
use crate::support::{
    Account, Answer, Authenticator, Backend, Client, Engine, Guarded, Request, Side, asked, eventually, first_step,
    for_each_backend, for_each_world, guard, recovery_codes_of, second_step,
};
use crate::{ORDINARY, Refused, refuse_all, rows};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const VERIFY: &str = "/api/{v}/auth/mfa/verify/";

fn guarded(side: &mut Side<'_>, name: &str) -> Guarded {
    let account = side.account(name);
    guard(side, account)
}

fn state(side: &mut Side<'_>, access: &str) -> Value {
    let answer = side.get("auth/mfa/", access);
    assert_eq!(answer.status, 200, "{}", answer.shown());
    answer.at("data")
}

fn shown_once_more(account: &Account, code: &str) -> Value {
    json!({ "current_password": account.password, "code": code })
}

#[track_caller]
fn assert_signed_in(side: &mut Side<'_>, answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.shown());
    assert_eq!(answer.at("data.token_type"), json!("Bearer"), "{}", answer.shown());
    assert!(answer.all("set-cookie").count() == 2, "the refresh token's and the device's");
    let access = answer.text("data.access");
    let me = Request::get("/api/{v}/auth/me/").bearer(&access);
    assert_eq!((side.send(&me).status, side.send_to_other(&me).status), (200, 200));
    assert_eq!(side.refresh(&answer.text("data.refresh")).status, 200);
}

#[test]
fn a_second_factor_is_set_up_asked_for_and_switched_off() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let off = json!({ "enabled": false, "methods": [], "recovery_codes_left": 0 });
        assert_eq!(state(side, &account.access), off);

        let begun = side.post_as(&account.access, "auth/mfa/totp/", &json!({ "current_password": account.password }));
        assert_eq!((begun.status, begun.at("data.expires_in")), (200, json!(600)), "{}", begun.shown());
        assert_eq!(begun.header("cache-control"), Some("no-store"));
        assert_eq!(rows::audited(side.gateway, &begun), "totp_begin|success|");
        let secret = begun.text("data.secret");
        let uri = format!(
            "otpauth://totp/bifrons:{}?secret={secret}&issuer=bifrons&algorithm=SHA1&digits=6&period=30",
            account.email
        );
        assert_eq!(begun.text("data.otpauth_uri"), uri);
        assert_eq!(state(side, &account.access), off, "nothing is on before its first code");
        assert_eq!(login(side, &account.email, &account.password).at("data.token_type"), json!("Bearer"));

        let mut authenticator = Authenticator::new(&secret);
        let wrong = json!({ "code": authenticator.wrong_code() });
        let answer = side.post_as(&account.access, "auth/mfa/totp/confirm/", &wrong);
        side.refused(&answer, 401, "invalid_mfa_code");
        assert!(crate::has_sentences(&answer, "code"), "{}", answer.shown());
        let code = json!({ "code": authenticator.code() });
        let answer = side.post_as(&account.access, "auth/mfa/totp/confirm/", &code);
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let codes = recovery_codes_of(&answer);
        assert_eq!(codes.iter().collect::<BTreeSet<_>>().len(), 10);
        let on = json!({ "enabled": true, "methods": ["totp", "recovery_code"], "recovery_codes_left": 10 });
        assert_eq!(state(side, &account.access), on);
        assert_eq!(rows::audited(side.gateway, &answer), "mfa_enable|success|");

        let answer = side.send(&first_step(&account.email));
        assert_eq!(
            (answer.at("message"), answer.at("data.expires_in")),
            (json!("Enter the code of your second factor."), json!(300))
        );
        assert_eq!(rows::audited(side.gateway, &answer), "login|failure|second_factor_required");
        let token = asked(&answer);
        let answer = side.send(&second_step(&token, "totp", &authenticator.code()));
        assert_signed_in(side, &answer);
        assert_eq!(rows::audited(side.gateway, &answer), "login|success|\ntotp|success|");

        let off_again = shown_once_more(&account, codes.first().expect("a code"));
        let answer = side.post_as(&account.access, "auth/mfa/disable/", &off_again);
        assert_eq!((answer.status, answer.at("data")), (200, Value::Null), "{}", answer.shown());
        assert_eq!(state(side, &account.access), off);
        assert_eq!(login(side, &account.email, &account.password).at("data.token_type"), json!("Bearer"));
    });
}

#[test]
fn a_recovery_code_signs_in_once_in_any_spelling_and_its_owner_is_told() {
    for_each_world(ORDINARY, |side| {
        let ada = guarded(side, "ada");
        let codes: Vec<_> = ada.recovery_codes.iter().take(3).collect();
        for (spelling, code) in
            [codes[0].to_uppercase(), codes[1].replace('-', ""), codes[2].replace('-', " ")].iter().enumerate()
        {
            let token = ada.begin(side);
            let answer = side.send(&second_step(&token, "recovery_code", code));
            assert_signed_in(side, &answer);
            assert_eq!(rows::audited(side.gateway, &answer), "login|success|\nrecovery_code|success|");
            // Registration, set-up, and one for each code.
            let mail = side.gateway.wait_for_mail(&ada.account.email, 3 + spelling);
            assert_eq!(mail.header("subject"), Some("A recovery code was used"));
            assert!(mail.text.contains(&format!("{} are left.", 9 - spelling)), "{}", mail.text);
        }
        for used in &codes {
            let token = ada.begin(side);
            let answer = side.send(&second_step(&token, "recovery_code", used));
            side.refused(&answer, 401, "invalid_mfa_code");
        }
        assert_eq!(state(side, &ada.account.access)["recovery_codes_left"], json!(7));
    });
}

#[test]
fn every_change_ends_the_other_sessions_and_is_told_and_audited() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let other = side.sign_in(&account);
        let mut ada = guard(side, account);
        assert_eq!(side.me(&other.access).status, 401, "setting it up ends the others");
        let session = rows::session_of(&other.access);
        assert_eq!(rows::of_session(side.gateway, &session, "end_reason"), "second_factor_changed");
        let subject = "Your two-step sign-in was changed";
        let mail = side.gateway.wait_for_mail(&ada.account.email, 2);
        assert_eq!(mail.header("subject"), Some(subject));
        assert!(mail.text.contains("switched on"), "{}", mail.text);

        let access = ada.account.access.clone();
        let entered = ada.enter(side);
        let shown = shown_once_more(&ada.account, &ada.authenticator.code());
        let answer = side.post_as(&access, "auth/mfa/recovery-codes/", &shown);
        let fresh = recovery_codes_of(&answer);
        assert!(fresh.len() == 10 && fresh.iter().all(|code| !ada.recovery_codes.contains(code)));
        assert_eq!(rows::audited(side.gateway, &answer), "recovery_codes_replace|success|");
        assert_eq!(side.me(&entered.text("data.access")).status, 401);
        let token = ada.begin(side);
        let old = ada.recovery_codes.first().expect("an old code");
        let answer = side.send(&second_step(&token, "recovery_code", old));
        side.refused(&answer, 401, "invalid_mfa_code");
        ada.recovery_codes = fresh;

        let entered = ada.enter(side);
        let code = ada.recovery_codes.pop().expect("a code");
        let answer = side.post_as(&access, "auth/mfa/disable/", &shown_once_more(&ada.account, &code));
        assert_eq!(rows::audited(side.gateway, &answer), "mfa_disable|success|");
        assert_eq!(side.me(&entered.text("data.access")).status, 401);
        assert_eq!(side.me(&access).status, 200, "this session goes on");
        let told = side.gateway.wait_for_mail(&ada.account.email, 6).text;
        assert!(told.contains("switched off"), "{told}");
        let mails = side.gateway.mails_to(&ada.account.email);
        let used = mails.iter().filter(|mail| mail.header("subject") == Some("A recovery code was used"));
        assert_eq!((mails.len(), used.count()), (6, 2), "of two sign-ins, and not of the change");
    });
}

#[test]
fn a_change_asks_for_the_password_and_the_code_and_counts_both() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let begin = |side: &mut Side<'_>, body: Value| side.post_as(&account.access, "auth/mfa/totp/", &body);
        let answer = begin(side, json!({}));
        side.refused(&answer, 400, "validation_error");
        let answer = begin(side, json!({ "current_password": "wrong-password-1" }));
        side.refused(&answer, 400, "invalid_current_password");
        let ada = guard(side, account.clone());
        let answer = begin(side, json!({ "current_password": account.password }));
        side.refused(&answer, 409, "conflict");
        let answer = side.post_as(&account.access, "auth/mfa/totp/confirm/", &json!({ "code": "123456" }));
        side.refused(&answer, 409, "conflict");
        let good = ada.recovery_codes.first().expect("a code");
        for path in ["auth/mfa/recovery-codes/", "auth/mfa/disable/"] {
            let wrong = json!({ "current_password": "wrong-password-1", "code": good });
            let answer = side.post_as(&account.access, path, &wrong);
            side.refused(&answer, 400, "invalid_current_password");
            let answer = side.post_as(&account.access, path, &json!({ "code": good }));
            side.refused(&answer, 400, "validation_error");
            let wrong = shown_once_more(&account, &ada.authenticator.wrong_code());
            let answer = side.post_as(&account.access, path, &wrong);
            side.refused(&answer, 401, "invalid_mfa_code");
        }
        assert_eq!(state(side, &account.access)["recovery_codes_left"], json!(10), "nothing was spent");
        // Three more guesses, elsewhere: five in all.
        let token = ada.begin(side);
        for _ in 0..3 {
            let answer = side.send_to_other(&second_step(&token, "totp", &ada.authenticator.wrong_code()));
            side.refused(&answer, 401, "invalid_mfa_code");
        }
        let answer = side.post_as(&account.access, "auth/mfa/disable/", &shown_once_more(&account, good));
        side.refused(&answer, 429, "account_locked");
    });
}

#[test]
fn who_has_no_password_needs_a_recent_sign_in() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        rows::change_user(side.gateway, &account.user_id, "password_hash = null");
        let begun = side.post_as(&account.access, "auth/mfa/totp/", &json!({}));
        assert_eq!(begun.status, 200, "{}", begun.shown());
        let ago = rows::ago(side.gateway, 601);
        let session = rows::session_of(&account.access);
        rows::change_session(side.gateway, &session, &format!("created_at = {ago}"));
        let answer = side.post_as(&account.access, "auth/mfa/totp/", &json!({ "current_password": "anything-at-all" }));
        side.refused(&answer, 403, "step_up_required");
    });
}

#[test]
fn an_enrolment_is_of_its_session_and_the_last_one_counts() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let other = side.sign_in(&account);
        let password = json!({ "current_password": account.password });
        let first = side.post_as(&account.access, "auth/mfa/totp/", &password);
        let mut authenticator = Authenticator::new(&first.text("data.secret"));
        let code = json!({ "code": authenticator.code() });
        let answer = side.post_as(&other.access, "auth/mfa/totp/confirm/", &code);
        side.refused(&answer, 409, "conflict");
        let second = side.post_as(&account.access, "auth/mfa/totp/", &password);
        assert_ne!(first.text("data.secret"), second.text("data.secret"));
        let answer = side.post_as(&account.access, "auth/mfa/totp/confirm/", &code);
        side.refused(&answer, 401, "invalid_mfa_code");
        let code = json!({ "code": Authenticator::new(&second.text("data.secret")).code() });
        let request = Request::post("/api/{v}/auth/mfa/totp/confirm/", &code).bearer(&account.access);
        assert_eq!(side.send_to_other(&request).status, 200, "either engine confirms it");
    });
}

#[test]
fn what_is_malformed_is_refused_and_its_field_named() {
    refuse_all(|side| {
        let ada = guarded(side, "ada");
        let token = ada.begin(side);
        let post = |body: Value| Request::post(VERIFY, &body);
        let full = json!({ "mfa_token": token, "method": "totp", "code": "000000" });
        let without = |field: &str| {
            let mut body = full.clone();
            body.as_object_mut().expect("an object").remove(field);
            post(body)
        };
        let with = |field: &str, value: Value| {
            let mut body = full.clone();
            body[field] = value;
            post(body)
        };
        vec![
            Refused::new("no token", without("mfa_token"), 400, &["validation_error"]).field("mfa_token"),
            Refused::new("no method", without("method"), 400, &["validation_error"]).field("method"),
            Refused::new("no code", without("code"), 400, &["validation_error"]).field("code"),
            Refused::new("null", with("mfa_token", Value::Null), 400, &["validation_error"]).field("mfa_token"),
            Refused::new("another method", with("method", json!("passkey")), 400, &["validation_error"])
                .field("method"),
            Refused::new("long", with("code", json!("1".repeat(65))), 400, &["validation_error"]).field("code"),
            Refused::new("no such token", with("mfa_token", json!("abc")), 401, &["token_not_valid"]),
            Refused::new("white space", with("mfa_token", json!(format!(" {token}"))), 401, &["token_not_valid"]),
            Refused::new("no code at all", with("code", json!("abc")), 401, &["invalid_mfa_code"]).field("code"),
            Refused::new("a number", with("code", json!(1)), 401, &["invalid_mfa_code"]).field("code"),
        ]
    });
}

#[test]
fn an_operator_removes_a_lost_factor_and_lifts_its_lock() {
    for_each_backend(&[], |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let ada = guarded(&mut side, "ada");
            let token = ada.begin(&mut side);
            for _ in 0..5 {
                let answer = side.send(&second_step(&token, "totp", &ada.authenticator.wrong_code()));
                side.refused(&answer, 401, "invalid_mfa_code");
            }
            let good = ada.recovery_codes.first().expect("a code");
            let answer = side.send(&second_step(&token, "recovery_code", good));
            side.refused(&answer, 429, "account_locked");
            assert_eq!(gateway.run(&["user", "unlock", &ada.account.email], "").output, "unlocked\n");
            let answer = side.send(&second_step(&token, "recovery_code", good));
            assert_signed_in(&mut side, &answer);

            for told in ["the second factor was removed\n", "there was no second factor\n"] {
                let outcome = gateway.run(&["user", "reset-mfa", &ada.account.email], "");
                assert!(outcome.status.success(), "{}", outcome.errors);
                assert_eq!(outcome.output, told);
            }
            assert_eq!(side.me(&ada.account.access).status, 401, "every session ends");
            let answer = login(&mut side, &ada.account.email, &ada.account.password);
            assert_signed_in(&mut side, &answer);
            let is_user = rows::is(gateway, "user_id", &ada.account.user_id);
            let audited = gateway
                .query(&format!("select engine, outcome from audit_events where action = 'mfa_reset' and {is_user}"));
            assert_eq!(audited, "cli|success");
        }
        let outcome = gateway.run(&["user", "reset-mfa", "nobody@example.org"], "");
        assert_eq!(outcome.status.code(), Some(1), "{}", outcome.output);
        assert!(outcome.errors.contains("no such user"), "{}", outcome.errors);
    });
}

#[test]
fn a_sign_in_with_a_second_factor_is_in_the_history() {
    for_each_world(ORDINARY, |side| {
        let ada = guarded(side, "ada");
        let token = ada.begin(side);
        let answer = side.send(&second_step(&token, "totp", &ada.authenticator.wrong_code()));
        side.refused(&answer, 401, "invalid_mfa_code");
        let mut authenticator = ada.authenticator.clone();
        let answer = side.send(&second_step(&token, "totp", &authenticator.code()));
        assert_signed_in(side, &answer);
        let session = rows::session_of(&answer.text("data.access"));
        let shown = side.get("auth/login-events/", &answer.text("data.access"));
        let events = shown.at("data.results");
        let told: BTreeSet<_> = events
            .as_array()
            .expect("a list")
            .iter()
            .take(4)
            .map(|event| {
                let in_session = event["session_id"] == json!(session);
                format!("{} {} {} {in_session}", event["action"], event["outcome"], event["reason"]).replace('"', "")
            })
            .collect();
        let expected = [
            "login failure second_factor_required false",
            "totp failure invalid_mfa_code false",
            "login success  true",
            "totp success  true",
        ];
        assert_eq!(told, expected.map(str::to_owned).into());
    });
}

/// Holds a user's row until somebody waits for it; an error if they have taken a row of the second factor before.
fn held_until_waited_for(user_id: &str) -> String {
    format!(
        "DO $$ DECLARE waits boolean := false; BEGIN
             PERFORM 1 FROM users WHERE id = '{user_id}' FOR UPDATE;
             FOR turn IN 1..400 LOOP
                 PERFORM pg_sleep(0.01);
                 PERFORM pg_stat_clear_snapshot();
                 SELECT count(*) > 0 INTO waits FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock';
                 EXIT WHEN waits;
             END LOOP;
             IF NOT waits THEN RAISE EXCEPTION 'nobody waits'; END IF;
             PERFORM 1 FROM totp_factors WHERE user_id = '{user_id}' FOR UPDATE NOWAIT;
             PERFORM 1 FROM recovery_codes WHERE user_id = '{user_id}' FOR UPDATE NOWAIT;
         END $$"
    )
}

#[test]
fn whoever_changes_or_spends_a_second_factor_takes_the_users_row_first() {
    for_each_backend(&[], |gateway| {
        if gateway.backend == Backend::Embedded {
            // One writer at a time: nobody can wait for another there.
            return;
        }
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let ada = guarded(&mut side, "ada");
            let (mut authenticator, codes) = (ada.authenticator.clone(), &ada.recovery_codes);
            let change = |path: &str, code: &str| {
                let body = shown_once_more(&ada.account, code);
                Request::post(&format!("/api/{}/auth/mfa/{path}/", engine.name()), &body).bearer(&ada.account.access)
            };
            let step = |token: &str, method: &str, code: &str| {
                let request = second_step(token, method, code);
                Request { path: request.path.replace("{v}", engine.name()), ..request }
            };
            let meanwhile = |work: &(dyn Fn() -> bool + Sync)| {
                std::thread::scope(|scope| {
                    let holder = scope.spawn(|| gateway.query(&held_until_waited_for(&ada.account.user_id)));
                    let sleeps = "select count(*) from pg_stat_activity
                                  where datname = current_database() and wait_event = 'PgSleep'";
                    eventually("the row is held", Duration::from_secs(5), || {
                        (gateway.query(sleeps) == "1").then_some(())
                    });
                    assert!(work(), "it was refused");
                    holder.join().expect("rows of the second factor were free");
                });
            };
            let is_done = |request: &Request| {
                let answer = Client::new(engine.address(gateway)).send(request);
                assert_eq!(answer.status, 200, "{}", answer.shown());
                true
            };
            let by_recovery_code = step(&ada.begin(&mut side), "recovery_code", &codes[0]);
            meanwhile(&|| is_done(&by_recovery_code));
            let by_authenticator = step(&ada.begin(&mut side), "totp", &authenticator.code());
            meanwhile(&|| is_done(&by_authenticator));
            let off = change("disable", &codes[1]);
            meanwhile(&|| is_done(&off));
            let again = guard(&mut side, ada.account.clone());
            let renewed = change("recovery-codes", &again.recovery_codes[0]);
            meanwhile(&|| is_done(&renewed));
            meanwhile(&|| gateway.run(&["user", "reset-mfa", &ada.account.email], "").status.success());
        }
    });
}

#[test]
fn a_second_step_is_dead_after_its_time() {
    let brief: &[(&str, &str)] = &[("BIFRONS_MFA__TTL", "2s"), ("BIFRONS_MFA__ISSUER", "Ada & Co")];
    for_each_backend(brief, |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = side.account("ada");
            let password = json!({ "current_password": account.password });
            let begun = side.post_as(&account.access, "auth/mfa/totp/", &password);
            assert!(begun.text("data.otpauth_uri").starts_with("otpauth://totp/Ada%20%26%20Co:"), "{}", begun.shown());
            let ada = guard(&mut side, account);
            let token = ada.begin(&mut side);
            crate::support::pause(Duration::from_secs(3));
            let good = ada.recovery_codes.first().expect("a code");
            let answer = side.send(&second_step(&token, "recovery_code", good));
            side.refused(&answer, 401, "token_not_valid");
        }
    });
}

#[test]
fn a_new_password_ends_what_waits_for_the_second_factor() {
    for_each_world(ORDINARY, |side| {
        let ada = guarded(side, "ada");
        let token = ada.begin(side);
        let change = json!({ "current_password": ada.account.password, "new_password": NEW });
        assert_eq!(side.post_as(&ada.account.access, "password/change/", &change).status, 200);
        let good = ada.recovery_codes.first().expect("a code");
        let answer = side.send(&second_step(&token, "recovery_code", good));
        side.refused(&answer, 401, "token_not_valid");
        let answer = login(side, &ada.account.email, NEW);
        let token = asked(&answer);
        let answer = side.send(&second_step(&token, "recovery_code", good));
        assert_signed_in(side, &answer);
    });
}
