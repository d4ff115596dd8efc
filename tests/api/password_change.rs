//! Another password for somebody who is signed in.

use crate::password_reset::{NEW, assert_over, code, link, login, phone_account};
use crate::support::{Account, Answer, Engine, PASSWORD, Request, Side, eventually, for_each_backend, for_each_world};
use crate::verify::at_once;
use crate::{ORDINARY, PROMPT, Refused, refuse_all, rows};
use serde_json::{Value, json};
use std::time::Duration;

const CHANGE: &str = "/api/{v}/password/change/";
const ALIAS: &str = "/auth/password-change/";

fn change(side: &mut Side<'_>, account: &Account, current: &str, new: &str) -> Answer {
    side.post_as(&account.access, "password/change/", &json!({ "current_password": current, "new_password": new }))
}

/// Done, and no token in the answer; the one cookie is the device's.
#[track_caller]
fn assert_changed(answer: &Answer) {
    assert_eq!((answer.status, answer.at("success")), (200, json!(true)), "{}", answer.shown());
    assert_eq!(answer.at("data"), Value::Null, "{}", answer.shown());
    let cookies: Vec<_> = answer.all("set-cookie").collect();
    assert!(matches!(cookies.as_slice(), [one] if one.starts_with("bifrons_device=")), "{cookies:?}");
    assert!(!answer.shown().contains("eyJ"), "{}", answer.shown());
}

#[test]
fn the_password_is_changed_in_every_form_and_by_every_path() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let mut old = PASSWORD.to_owned();
        for form in 0..6 {
            let new = format!("copper-lantern-{form}8-harbour");
            let request = match form {
                0 => Request::post(CHANGE, &json!({ "current_password": old, "new_password": new })),
                1 => {
                    let body = json!({ "old_password": old, "new_password": new, "confirm_password": new });
                    Request::post("/api/{v}/password/change", &body)
                }
                2 => Request::new("POST", CHANGE).form(&[
                    ("current_password", &old),
                    ("new_password", &new),
                    ("confirm_password", &new),
                ]),
                3 => Request::post(ALIAS, &json!({ "old_password": old, "new_password": new })),
                4 => Request::new("POST", "/auth/password-change")
                    .form(&[("old_password", &old), ("new_password", &new)]),
                _ => Request::post(
                    ALIAS,
                    &json!({ "current_password": format!(" {old} "), "new_password": new, "confirm_password": null }),
                ),
            };
            let answer = side.send(&request.bearer(&account.access));
            assert_changed(&answer);
            assert_eq!(login(side, &account.email, &new).status, 200);
            let answer = login(side, &account.email, &old);
            side.refused(&answer, 401, "invalid_credentials");
            old = new;
        }
        assert_eq!(side.me(&account.access).status, 200);
    });
}

#[test]
fn every_other_session_ends_on_both_engines_and_this_one_goes_on() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let others = [side.sign_in(&account), side.sign_in(&account)];
        for other in &others {
            let me = Request::get("/api/{v}/auth/me/").bearer(&other.access);
            assert_eq!(side.send_to_other(&me).status, 200, "in every cache");
        }
        let answer = change(side, &account, PASSWORD, NEW);
        assert_changed(&answer);
        for other in &others {
            assert_over(side, other);
            let session = rows::session_of(&other.access);
            assert_eq!(rows::of_session(side.gateway, &session, "end_reason"), "password_changed");
        }
        assert_eq!(side.me(&account.access).status, 200);
        let pair = side.refresh(&account.refresh);
        assert_eq!(pair.status, 200, "{}", pair.shown());
        assert_eq!(side.me(&pair.text("data.access")).status, 200);
        assert_eq!(rows::audited(side.gateway, &answer), "password_change|success|");
        assert_eq!(rows::audited_of(side.gateway, &answer, &account.user_id), "1");
        let mail = side.gateway.wait_for_mail(&account.email, 2);
        assert_eq!(mail.header("subject"), Some("Your password was changed"));
        assert!(mail.text.contains("http://127.0.0.1:8002/password-reset\n"), "{}", mail.text);
        assert!(!mail.raw.contains(NEW) && !mail.raw.contains(PASSWORD));
    });
}

#[test]
fn a_change_on_one_instance_ends_the_others_sessions_within_a_second() {
    for_each_backend(&[], |gateway| {
        let twin = gateway.twin(&[]);
        let mut here = Side::new(gateway, Engine::V1);
        let account = here.account("ada");
        let other = here.sign_in(&account);
        for engine in Engine::BOTH {
            assert_eq!(Side::new(&twin, engine).me(&other.access).status, 200, "in every cache");
        }
        assert_changed(&change(&mut here, &account, PASSWORD, NEW));
        for engine in Engine::BOTH {
            let mut there = Side::new(&twin, engine);
            eventually("the other instance refuses it", Duration::from_secs(1), || {
                (there.me(&other.access).status == 401).then_some(())
            });
            assert_eq!(there.refresh(&other.refresh).status, 401);
            assert_eq!(there.me(&account.access).status, 200, "the session that changed it goes on");
        }
    });
}

#[test]
fn a_wrong_current_password_is_a_400_and_five_lock_this_door_and_no_other() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let wrong = json!({ "current_password": "wrong-password-1", "new_password": NEW });
        let old_name = json!({ "old_password": "wrong-password-1", "new_password": NEW });
        let mut answers = Vec::new();
        for turn in 0..5 {
            let request = match turn {
                0 | 1 => Request::post(CHANGE, &wrong),
                2 => Request::post(CHANGE, &old_name),
                _ => Request::post(ALIAS, &old_name),
            };
            let request = request.bearer(&account.access);
            let answer = if turn % 2 == 0 { side.send(&request) } else { side.send_to_other(&request) };
            side.refused(&answer, 400, "invalid_current_password");
            assert!(crate::has_sentences(&answer, "current_password"), "{}", answer.shown());
            answers.push(answer);
        }
        let audited = rows::audited_by(side.gateway, &answers);
        assert_eq!(audited, ["password_change|failure|invalid_current_password"; 5]);
        let answer = change(side, &account, PASSWORD, NEW);
        side.refused(&answer, 429, "account_locked");
        let seconds: u64 = answer.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After");
        assert!((1..=900).contains(&seconds), "{seconds}");
        assert_eq!(answer.at("data.retry_after"), json!(seconds));
        assert_eq!(rows::audited(side.gateway, &answer), "password_change|failure|locked");
        let request = Request::post(ALIAS, &json!({ "old_password": PASSWORD, "new_password": NEW }));
        let answer = side.send_to_other(&request.bearer(&account.access));
        side.refused(&answer, 429, "account_locked");
        // A thief with an access token locks nobody out.
        let again = side.sign_in(&account);
        assert_eq!(side.me(&account.access).status, 200);
        assert_changed(&change(side, &again, PASSWORD, NEW));
        let other = side.account("bayo");
        assert_changed(&change(side, &other, PASSWORD, NEW));
    });
}

#[test]
fn four_wrong_passwords_lock_nothing_and_a_change_clears_them() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        for (old, new) in [(PASSWORD, NEW), (NEW, "granite-orchid-93-kettle")] {
            for _ in 0..4 {
                let answer = change(side, &account, "wrong-password-1", new);
                side.refused(&answer, 400, "invalid_current_password");
            }
            assert_changed(&change(side, &account, old, new));
        }
    });
}

#[test]
fn a_new_password_that_is_weak_or_the_old_one_is_refused_and_nothing_happens() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let other = side.sign_in(&account);
        let patch = json!({ "first_name": "Ngozika" });
        assert_eq!(side.send(&Request::patch("/api/{v}/auth/me/", &patch).bearer(&account.access)).status, 200);
        for (new, words) in [
            ("ngozika", &["too short", "too similar", "easy to guess"][..]),
            ("password123", &["too common"]),
            (PASSWORD, &["must differ"]),
            (&format!(" {PASSWORD}\n"), &["must differ"]),
            (&"wT9~ k".repeat(22), &["at most 128"]),
        ] {
            let answer = change(side, &account, PASSWORD, new);
            side.refused(&answer, 400, "validation_error");
            let sentences = answer.at("errors.new_password").to_string();
            assert!(words.iter().all(|word| sentences.contains(word)), "{new}: {}", answer.shown());
        }
        let body = json!({ "current_password": PASSWORD, "new_password": NEW, "confirm_password": "something-else-1" });
        for path in [CHANGE, ALIAS] {
            let answer = side.send(&Request::post(path, &body).bearer(&account.access));
            side.refused(&answer, 400, "validation_error");
            assert!(crate::has_sentences(&answer, "confirm_password"), "{}", answer.shown());
        }
        assert_eq!(side.me(&other.access).status, 200, "no session has ended");
        assert_eq!(login(side, &account.email, PASSWORD).status, 200);
        assert_eq!(side.gateway.mails_to(&account.email).len(), 1, "nothing to tell");
    });
}

#[test]
fn an_outstanding_link_and_code_are_void_after_a_change() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let link = link(side, &account.email, 2);
        assert_changed(&change(side, &account, PASSWORD, NEW));
        let answer = side.post("password/reset-confirm/", &link.sets("granite-orchid-93-kettle"));
        side.refused(&answer, 400, "invalid_token");

        let (phone, answer) = phone_account(side, "bayo");
        let otp = code(side, &phone, 2);
        let body = json!({ "current_password": PASSWORD, "new_password": NEW });
        let answer = side.post_as(&answer.text("data.access"), "password/change/", &body);
        assert_changed(&answer);
        let body = json!({ "email_or_phone": phone, "otp": otp, "new_password": "granite-orchid-93-kettle" });
        let answer = side.post("password/reset-confirm/", &body);
        side.refused(&answer, 400, "invalid_otp");
        assert!(side.gateway.wait_for_text(&phone, 3).text.contains("password was changed"));
    });
}

#[test]
fn of_changes_at_once_exactly_one_succeeds() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let answers = at_once(8, |n| {
            let new = format!("copper-lantern-{n}8-harbour");
            let body = json!({ "current_password": PASSWORD, "new_password": new });
            (new, side.send_apart(&Request::post(CHANGE, &body).bearer(&account.access)))
        });
        for (_, answer) in &answers {
            match answer.status {
                200 => {}
                429 => side.refused(answer, 429, "account_locked"),
                _ => side.refused(answer, 400, "invalid_current_password"),
            }
        }
        let changed: Vec<_> = answers.iter().filter(|(_, answer)| answer.status == 200).collect();
        assert_eq!(changed.len(), 1);
        assert_eq!(login(side, &account.email, &changed[0].0).status, 200);
    });
}

#[test]
fn whoever_is_not_signed_in_or_asks_for_nothing_is_refused() {
    refuse_all(|side| {
        let account = side.account("ada");
        let body = json!({ "current_password": PASSWORD, "new_password": NEW });
        let post = |body: &Value| Request::post(CHANGE, body).bearer(&account.access);
        let validation = &["validation_error"];
        let long = "x".repeat(513);
        vec![
            Refused::new("no token", Request::post(CHANGE, &body), 401, &["not_authenticated"]),
            Refused::new("no token", Request::post(ALIAS, &body), 401, &["not_authenticated"]),
            Refused::new(
                "a refresh token",
                Request::post(CHANGE, &body).bearer(&account.refresh),
                401,
                &["token_not_valid"],
            ),
            Refused::new("a GET", Request::get(CHANGE).bearer(&account.access), 405, &["method_not_allowed"]),
            Refused::new("nothing", post(&json!({})), 400, validation).field("new_password"),
            Refused::new("no current", post(&json!({ "new_password": NEW })), 400, validation)
                .field("current_password"),
            Refused::new("blank", post(&json!({ "current_password": "", "new_password": NEW })), 400, validation)
                .field("current_password"),
            Refused::new("a list", post(&json!({ "current_password": [], "new_password": NEW })), 400, validation)
                .field("current_password"),
            Refused::new("long", post(&json!({ "current_password": long, "new_password": NEW })), 400, validation)
                .field("current_password"),
            Refused::new("no new", post(&json!({ "current_password": PASSWORD })), 400, validation)
                .field("new_password"),
            Refused::new("null", post(&json!({ "current_password": PASSWORD, "new_password": null })), 400, validation)
                .field("new_password"),
        ]
    });
}
