//! Reset and change of a password: cases 5, 6, 14, 15, 16, 24 and what cases 4, 11, 13, 17, 19, 35 say of them.

use crate::actors::{
    ResetLink, assert_over, change, confirm_by_phone, enter, forget, letter_about, login, me, person, phone_person,
    race, refresh, request_reset, reset_links, texted_code,
};
use crate::support::{Account, Answer, Backend, Engine, PASSWORD, Request, Side, pause};
use crate::target::{STAGING, everywhere, inside, own_gateways, own_worlds};
use crate::{WRONG, other_code};
use serde_json::{Value, json};
use std::time::Duration;

/// What the owner sets instead.
const NEW: &str = "fresh-Sandalwood-63-lagoon";

/// What an attacker would set.
const THEIRS: &str = "stolen-Cormorant-27-chapel";

fn sign_in_with(side: &mut Side<'_>, account: &Account, password: &str) -> Answer {
    side.send(&login(&account.email, password))
}

#[test]
fn case_04_of_fifty_uses_of_one_reset_token_exactly_one_succeeds() {
    everywhere(|side| {
        let account = person(side, "single");
        let link = forget(side, &account.email);
        let password = |number: usize| format!("contender-{number}-Sandalwood-lagoon");
        let lanes: Vec<_> = (0..50).map(|number| vec![link.confirm(&password(number))]).collect();
        let answers = race(side, &lanes);
        let winners: Vec<_> = (0..50).zip(&answers).filter(|(_, answer)| answer.status == 200).collect();
        assert_eq!(winners.len(), 1, "one use of the token");
        for answer in answers.iter().filter(|answer| answer.status != 200) {
            // Whoever finds all hashing slots taken is sent away before the token is looked at.
            assert!(answer.status == 503 || answer.code() == "invalid_token", "{}", answer.shown());
        }
        let winner = winners.first().map(|(number, _)| password(*number)).expect("a winner");
        assert_eq!(sign_in_with(side, &account, &winner).status, 200, "the password is the winner's");
        assert_eq!(side.send(&refresh(&account.refresh)).status, 401);
    });
}

/// A second session, and what both are after the password became another one.
fn assert_others_end(side: &mut Side<'_>, keeps_own: bool, change_it: impl Fn(&mut Side<'_>, &Account) -> Answer) {
    let account = person(side, "mover");
    let second = enter(side, &account);
    let (access, token) = (second.text("data.access"), second.text("data.refresh"));
    assert_eq!(side.send_to_other(&me(&access)).status, 200);
    let answer = change_it(side, &account);
    assert_eq!(answer.status, 200, "{}", answer.shown());
    assert_over(side, &access, &token);
    if keeps_own {
        assert_eq!(side.send_to_other(&me(&account.access)).status, 200, "the session that changed it goes on");
        assert_eq!(side.send(&refresh(&account.refresh)).status, 200);
    } else {
        assert_over(side, &account.access, &account.refresh);
    }
    let answer = sign_in_with(side, &account, PASSWORD);
    side.refused(&answer, 401, "invalid_credentials");
    assert_eq!(sign_in_with(side, &account, NEW).status, 200);
}

#[test]
fn case_05_a_changed_password_ends_every_other_session_on_both_engines_at_once() {
    everywhere(|side| {
        assert_others_end(side, true, |side, account| side.send(&change(&account.access, PASSWORD, NEW)));
    });
}

#[test]
fn case_05_a_reset_ends_every_session_on_both_engines_at_once() {
    everywhere(|side| {
        assert_others_end(side, false, |side, account| {
            let link = forget(side, &account.email);
            side.send(&link.confirm(NEW))
        });
    });
}

#[test]
fn case_06_what_was_taken_from_a_user_is_gone_within_a_second_and_from_the_next_token_at_once() {
    own_worlds("it changes the database", STAGING, |side| {
        let account = person(side, "demoted");
        let set_role = |side: &Side<'_>, role: &str| {
            let id = match side.gateway.backend {
                Backend::PostgresRedis => format!("'{}'", account.user_id),
                Backend::Embedded => format!("x'{}'", account.user_id.replace('-', "")),
            };
            side.gateway.query(&format!("update users set role = '{role}' where id = {id}"));
        };
        set_role(side, "staff");
        pause(Duration::from_secs(1));
        assert_eq!(side.send(&me(&account.access)).at("data.is_staff"), json!(true));
        set_role(side, "client");
        // Changed behind the gateway's back, as by another instance: the contract's second (§3).
        pause(Duration::from_secs(1));
        for answer in [side.send(&me(&account.access)), side.send_to_other(&me(&account.access))] {
            assert_eq!((answer.at("data.role"), answer.at("data.is_staff")), (json!("client"), json!(false)));
        }
        set_role(side, "staff");
        assert_eq!(side.send(&me(&account.access)).status, 200);
        set_role(side, "client");
        let child = side.send(&refresh(&account.refresh));
        assert_eq!(side.send(&me(&child.text("data.access"))).at("data.role"), json!("client"));
    });
}

/// The token is of no use, by any of its doors, and the password stays what it is.
fn assert_dead_link(side: &mut Side<'_>, link: &ResetLink) {
    let by_path = format!("{}/{}/", link.uidb64, link.token);
    let twice = json!({ "password": THEIRS, "password2": THEIRS });
    let body = json!({ "uidb64": link.uidb64, "token": link.token, "new_password": THEIRS });
    for request in [
        link.confirm(THEIRS),
        Request::post(&format!("/api/{{v}}/password/reset-confirm/{by_path}"), &twice),
        Request::post("/auth/password-reset-confirm/", &body),
        Request::post(&format!("/auth/password-reset-confirm-email/{by_path}"), &twice),
    ] {
        // The token stands in the path, which the comparison of the worlds cannot know.
        let answer = side.send_apart(&request);
        side.refused(&answer, 400, "invalid_token");
    }
    let answer = side.send(&link.confirm(THEIRS));
    side.refused(&answer, 400, "invalid_token");
}

#[test]
fn case_14_a_reset_link_is_dead_after_the_password_was_changed_in_another_way() {
    everywhere(|side| {
        let account = person(side, "changer");
        let link = forget(side, &account.email);
        assert_eq!(side.send(&change(&account.access, PASSWORD, NEW)).status, 200);
        assert_dead_link(side, &link);
        assert_eq!(sign_in_with(side, &account, NEW).status, 200);
    });
}

#[test]
fn case_14_of_two_reset_links_the_newer_one_works_once_and_the_older_one_never() {
    everywhere(|side| {
        for older_first in [true, false] {
            let account = person(side, "impatient");
            let older = forget(side, &account.email);
            assert_eq!(side.send_to_other(&request_reset(&account.email)).status, 200);
            let newer = reset_links(side, &account.email, 2).remove(1);
            assert!(older.token != newer.token && older.uidb64 == newer.uidb64);
            if older_first {
                assert_dead_link(side, &older);
            }
            assert_eq!(side.send_to_other(&newer.confirm(NEW)).status, 200);
            assert_dead_link(side, &older);
            assert_dead_link(side, &newer);
            assert_eq!(sign_in_with(side, &account, NEW).status, 200);
        }
    });
}

#[test]
fn case_14_a_reset_code_is_dead_after_the_password_was_changed_and_after_its_use() {
    everywhere(|side| {
        let (phone, signed_in) = phone_person(side, "texter");
        assert_eq!(side.send(&request_reset(&phone)).status, 200);
        let code = texted_code(side, &phone, 2);
        assert_eq!(side.send(&change(&signed_in.text("data.access"), PASSWORD, NEW)).status, 200);
        let answer = side.send(&confirm_by_phone(&phone, &code, THEIRS));
        side.refused(&answer, 400, "invalid_otp");
        assert_eq!(side.send(&request_reset(&phone)).status, 200);
        let code = texted_code(side, &phone, 3);
        assert_eq!(side.send(&confirm_by_phone(&phone, &code, THEIRS)).status, 200);
        for answer in [
            side.send(&confirm_by_phone(&phone, &code, NEW)),
            side.send_to_other(&confirm_by_phone(&phone, &code, NEW)),
        ] {
            side.refused(&answer, 400, "invalid_otp");
        }
        assert_eq!(side.send(&login(&phone, THEIRS)).status, 200);
    });
}

#[test]
fn case_15_a_reset_link_leads_where_the_configuration_says_whatever_the_request_says() {
    everywhere(|side| {
        let account = person(side, "poisoned");
        let beginning = |link: &ResetLink| {
            let end = link.url.find(&link.uidb64).expect("the link names its account");
            link.url.get(..end).unwrap_or_default().to_owned()
        };
        let honest = beginning(&forget(side, &account.email));
        inside("the configuration is the operator's", || {
            assert!(honest.starts_with("http://127.0.0.1:8002/"), "{honest}");
        });
        let mut sent = 1;
        for (name, value) in [
            ("Host", "evil.example"),
            ("Host", "evil.example:8002"),
            ("X-Forwarded-Host", "evil.example"),
            ("X-Host", "evil.example"),
            ("X-Forwarded-Server", "evil.example"),
            ("X-Forwarded-Proto", "evil"),
            ("X-Forwarded-Prefix", "//evil.example"),
            ("Forwarded", "host=evil.example;proto=evil"),
            ("X-Original-URL", "http://evil.example/"),
            ("X-Rewrite-URL", "http://evil.example/"),
            ("Origin", "https://evil.example"),
            ("Referer", "https://evil.example/"),
        ] {
            let answer = side.send(&request_reset(&account.email).header(name, value));
            assert_eq!(answer.status, 200, "{name}: {}", answer.shown());
            assert!(!answer.shown().contains("evil"), "{name}: {}", answer.shown());
            sent += 1;
        }
        for link in reset_links(side, &account.email, sent) {
            assert_eq!(beginning(&link), honest);
        }
        // In absolute form the request line names a host of its own; whether it is served or not, it leads nowhere else.
        let absolute = Request {
            path: "http://evil.example/api/{v}/password/reset-request/".to_owned(),
            ..request_reset(&account.email)
        };
        let answer = side.send(&absolute.header("Host", "evil.example"));
        assert!([200, 400, 404].contains(&answer.status), "{}", answer.shown());
        let two = request_reset(&account.email).header("Host", "a.example").header("Host", "evil.example");
        // Refused with the connection, which the engines say in their own ways.
        assert_eq!(side.send_apart(&two).status, 400);
        let _ = side.gateway.wait_for_mail(&account.email, sent + 1);
        for mail in side.gateway.mails_to(&account.email) {
            assert!(!mail.raw.contains("evil"), "{}", mail.raw);
        }
    });
}

#[test]
fn case_16_a_reset_signs_nobody_in() {
    everywhere(|side| {
        let account = person(side, "returner");
        let answer = {
            let link = forget(side, &account.email);
            side.send(&link.confirm(NEW))
        };
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let text = answer.shown();
        assert!(!text.contains("eyJ") && !text.contains("access") && !text.contains("refresh"), "{text}");
        assert!(answer.all("set-cookie").all(|cookie| !cookie.contains("refresh") || cookie.contains("Max-Age=0")));
        let (phone, _) = phone_person(side, "returner");
        assert_eq!(side.send(&request_reset(&phone)).status, 200);
        let code = texted_code(side, &phone, 2);
        let answer = side.send(&confirm_by_phone(&phone, &code, NEW));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert!(!answer.shown().contains("eyJ"), "{}", answer.shown());
    });
}

#[test]
fn case_24_what_an_attacker_holds_ends_when_the_owner_recovers_the_account() {
    everywhere(|side| {
        // The attacker knew the password and keeps two sessions, a reset link of their own asking among them.
        let account = person(side, "victim");
        let kept = [enter(side, &account), enter(side, &account)];
        let renewed = side.send(&refresh(&kept[0].text("data.refresh")));
        let link = forget(side, &account.email);
        assert_eq!(side.send(&link.confirm(NEW)).status, 200);
        for held in [&kept[0], &kept[1], &renewed] {
            assert_over(side, &held.text("data.access"), &held.text("data.refresh"));
            let answer = side.send(&change(&held.text("data.access"), NEW, THEIRS));
            assert_eq!(answer.status, 401, "{}", answer.shown());
        }
        let owner = sign_in_with(side, &account, NEW);
        let list = side.send(&Request::get("/api/{v}/auth/sessions/").bearer(&owner.text("data.access")));
        assert_eq!(list.at("data.count"), json!(1), "{}", list.shown());
        assert_eq!(list.at("data.results").get(0).and_then(|one| one.get("is_current")), Some(&json!(true)));
        letter_about(side, &account.email, "password");
    });
}

#[test]
fn case_11_a_code_or_token_of_one_purpose_or_person_is_no_use_for_another() {
    everywhere(|side| {
        // The registration's code, where a reset is asked for.
        let phone = crate::actors::number(side, "waiting");
        let answer = side.post("auth/register/", &json!({ "phone": phone, "password": PASSWORD }));
        let code = texted_code(side, &phone, 1);
        let refused = side.send(&confirm_by_phone(&phone, &code, NEW));
        side.refused(&refused, 400, "invalid_otp");
        assert_eq!(side.send(&crate::actors::verify(&answer.text("data.challenge"), &code)).status, 200);
        // The reset's code, where a registration is confirmed, and for another number.
        let (other, _) = phone_person(side, "other");
        assert_eq!(side.send(&request_reset(&phone)).status, 200);
        let code = texted_code(side, &phone, 2);
        let by_phone = json!({ "phone": phone, "otp": code });
        let refused = side.send(&Request::post("/api/{v}/auth/verify-otp/", &by_phone));
        side.refused(&refused, 400, "invalid_otp");
        let refused = side.send(&confirm_by_phone(&other, &code, NEW));
        side.refused(&refused, 400, "invalid_otp");
        // One person's token with another's name.
        let (ada, mallory) = (person(side, "ada"), person(side, "mallory"));
        let (of_ada, of_mallory) = (forget(side, &ada.email), forget(side, &mallory.email));
        let crossed = ResetLink { token: of_mallory.token.clone(), ..of_ada.clone() };
        let refused = side.send(&crossed.confirm(THEIRS));
        side.refused(&refused, 400, "invalid_token");
        for token in [of_ada.token.to_uppercase(), format!("{} ", of_ada.token), format!("{}=", of_ada.token)] {
            let refused = side.send(&ResetLink { token, ..of_ada.clone() }.confirm(THEIRS));
            side.refused(&refused, 400, "invalid_token");
        }
        assert_eq!(side.send(&of_ada.confirm(NEW)).status, 200, "and hers is still good");
        assert_eq!(side.send(&confirm_by_phone(&phone, &code, NEW)).status, 200, "so is the code");
    });
}

#[test]
fn case_13_a_dump_shows_no_reset_token_and_no_reset_code() {
    own_gateways("it dumps the database and the store", STAGING.env, |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = person(&mut side, "keeper");
            let link = forget(&mut side, &account.email);
            let (phone, _) = phone_person(&mut side, "keeper");
            assert_eq!(side.send(&request_reset(&phone)).status, 200);
            let code = texted_code(&side, &phone, 2);
            let dump = gateway.stored_bytes();
            crate::codes::assert_hidden(&dump, &[(code, vec![phone])], &[link.token, link.url]);
        }
    });
}

#[test]
fn case_09_and_17_five_wrong_reset_codes_end_the_code_and_five_wrong_present_passwords_lock() {
    everywhere(|side| {
        let (phone, signed_in) = phone_person(side, "guessed");
        assert_eq!(side.send(&request_reset(&phone)).status, 200);
        let code = texted_code(side, &phone, 2);
        for step in 1..=5 {
            let request = confirm_by_phone(&phone, &other_code(&code, step), THEIRS);
            let answer = if step % 2 == 0 { side.send(&request) } else { side.send_to_other(&request) };
            side.refused(&answer, 400, "invalid_otp");
        }
        let answer = side.send(&confirm_by_phone(&phone, &code, THEIRS));
        side.refused(&answer, 400, "invalid_otp");
        let access = signed_in.text("data.access");
        for step in 1..=5 {
            let request = change(&access, WRONG, THEIRS);
            let answer = if step % 2 == 0 { side.send(&request) } else { side.send_to_other(&request) };
            side.refused(&answer, 400, "invalid_current_password");
        }
        for answer in
            [side.send(&change(&access, PASSWORD, THEIRS)), side.send_to_other(&change(&access, PASSWORD, THEIRS))]
        {
            side.refused(&answer, 429, "account_locked");
        }
        assert_eq!(side.send(&login(&phone, PASSWORD)).status, 200, "the password is what it was");
    });
}

fn set_state(side: &Side<'_>, user_id: &str, assignment: &str) {
    let id = match side.gateway.backend {
        Backend::PostgresRedis => format!("'{user_id}'"),
        Backend::Embedded => format!("x'{}'", user_id.replace('-', "")),
    };
    side.gateway.query(&format!("update users set {assignment} where id = {id}"));
}

#[test]
fn case_19_no_reset_lets_a_disabled_or_deleted_user_in() {
    own_worlds("it changes the database", STAGING, |side| {
        for state in ["is_active = false", "deleted_at = created_at"] {
            let account = person(side, "shut");
            let link = forget(side, &account.email);
            set_state(side, &account.user_id, state);
            assert_dead_link(side, &link);
            let answer = side.send(&change(&account.access, PASSWORD, THEIRS));
            assert_eq!(answer.status, 401, "{}", answer.shown());
            let before = side.gateway.mails_to(&account.email).len();
            assert_eq!(side.send(&request_reset(&account.email)).status, 200, "nobody is told");
            let witness = person(side, "witness");
            let _ = forget(side, &witness.email);
            assert_eq!(side.gateway.mails_to(&account.email).len(), before, "no letter");
            assert!([401, 403].contains(&sign_in_with(side, &account, THEIRS).status));
        }
    });
}

#[test]
fn case_35_a_long_password_is_refused_wherever_a_reset_or_change_takes_one() {
    everywhere(|side| {
        let account = person(side, "verbose");
        let link = forget(side, &account.email);
        let doors = |long: &str| -> Vec<(&str, Value)> {
            vec![
                ("password/change/", json!({ "current_password": long, "new_password": NEW })),
                ("password/change/", json!({ "old_password": PASSWORD, "new_password": long })),
                (
                    "password/reset-confirm/",
                    json!({ "uidb64": link.uidb64, "token": link.token, "new_password": long }),
                ),
                (
                    "password/reset-phone-confirm/",
                    json!({ "phone": "+2348031234567", "otp": "123456", "new_password": long, "new_password_confirm": long }),
                ),
            ]
        };
        for (length, status) in [(1_000_000, 413), (30_000, 400), (129, 400)] {
            for (path, body) in doors(&"k".repeat(length)) {
                let request = Request::post(&format!("/api/{{v}}/{path}"), &body).bearer(&account.access);
                let answer = side.send(&request);
                assert_eq!(answer.status, status, "{path} with {length}: {}", answer.shown());
            }
        }
        assert_eq!(side.send(&link.confirm(NEW)).status, 200, "the link is not spent by it");
    });
}
