//! How many codes are sent, how many guesses there are, and what of it outlives a restart.

use crate::password_reset::{NEW, code, link, link_in_mail, phone_account};
use crate::support::{Answer, Engine, PASSWORD, Request, Side, for_each_backend, for_each_world, pause};
use crate::verify::at_once;
use crate::{ORDINARY, PROMPT, Story, assert_alike, rows};
use serde_json::json;
use std::time::Duration;

const SIX_GUESSES: Story =
    Story { env: &[("BIFRONS_OTP__ACCOUNT_GUESSES", "6"), ("BIFRONS_OTP__RESEND_INTERVAL", "0s")] };

const THREE_A_DAY: Story = Story { env: &[("BIFRONS_OTP__DAILY_SENDS", "3"), ("BIFRONS_OTP__RESEND_INTERVAL", "0s")] };

/// Another code of six digits.
fn other_than(code: &str, step: u32) -> String {
    let number: u32 = code.parse().expect("a code is a number");
    format!("{:06}", (number + step) % 1_000_000)
}

fn confirm(side: &mut Side<'_>, phone: &str, otp: &str) -> Answer {
    let body = json!({ "email_or_phone": phone, "otp": otp, "new_password": NEW });
    side.post("password/reset-confirm/", &body)
}

#[test]
fn after_five_wrong_guesses_a_reset_code_is_dead_until_a_new_one() {
    for_each_world(PROMPT, |side| {
        let (phone, _) = phone_account(side, "ada");
        let otp = code(side, &phone, 2);
        let mut answers = Vec::new();
        for step in 1..=5 {
            let answer = confirm(side, &phone, &other_than(&otp, step));
            side.refused(&answer, 400, "invalid_otp");
            answers.push(answer);
        }
        assert_eq!(rows::audited_by(side.gateway, &answers), ["password_reset|failure|invalid_otp"; 5]);
        let answer = confirm(side, &phone, &otp);
        side.refused(&answer, 400, "invalid_otp");
        let otp = code(side, &phone, 3);
        assert_eq!(confirm(side, &phone, &otp).status, 200);
        let answer = confirm(side, &phone, &otp);
        side.refused(&answer, 400, "invalid_otp");
    });
}

#[test]
fn of_many_guesses_at_a_reset_code_at_once_no_more_than_five_count() {
    for_each_world(PROMPT, |side| {
        let (phone, _) = phone_account(side, "ada");
        let otp = code(side, &phone, 2);
        let answers = at_once(20, |step| {
            let body = json!({ "email_or_phone": phone, "otp": other_than(&otp, step + 1), "new_password": NEW });
            side.send_apart(&Request::post("/api/{v}/password/reset-confirm/", &body))
        });
        for answer in &answers {
            side.refused(answer, 400, "invalid_otp");
        }
        let answer = confirm(side, &phone, &otp);
        side.refused(&answer, 400, "invalid_otp");
    });
}

#[test]
fn an_account_has_one_number_of_guesses_over_all_codes_and_purposes() {
    for_each_world(SIX_GUESSES, |side| {
        let phone = side.phone("ada");
        let answer = side.post("auth/register/", &json!({ "phone": phone, "password": PASSWORD }));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        let otp = side.gateway.wait_for_text(&phone, 1).code().expect("a code");
        for step in 1..=3 {
            let answer = side.post("auth/verify-otp/", &json!({ "phone": phone, "otp": other_than(&otp, step) }));
            side.refused(&answer, 400, "invalid_otp");
        }
        let answer = side.post("auth/verify-otp/", &json!({ "phone": phone, "otp": otp }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let otp = code(side, &phone, 2);
        for step in 1..=2 {
            let answer = confirm(side, &phone, &other_than(&otp, step));
            side.refused(&answer, 400, "invalid_otp");
        }
        for nth in 3..=4 {
            let answer = confirm(side, &phone, &otp);
            side.refused(&answer, 400, "invalid_otp");
            let new = code(side, &phone, nth);
            let answer = confirm(side, &phone, &new);
            side.refused(&answer, 400, "invalid_otp");
        }
        let (bayo, _) = phone_account(side, "bayo");
        let otp = code(side, &bayo, 2);
        assert_eq!(confirm(side, &bayo, &otp).status, 200, "nobody else is concerned");
    });
}

#[test]
fn a_code_of_one_purpose_or_account_is_no_use_for_another() {
    for_each_world(PROMPT, |side| {
        let (ada, _) = phone_account(side, "ada");
        let (bayo, _) = phone_account(side, "bayo");
        let (of_ada, of_bayo) = (code(side, &ada, 2), code(side, &bayo, 2));
        let answer = side.post("auth/verify-otp/", &json!({ "phone": ada, "otp": of_ada }));
        side.refused(&answer, 400, "invalid_otp");
        if of_ada != of_bayo {
            let answer = confirm(side, &bayo, &of_ada);
            side.refused(&answer, 400, "invalid_otp");
        }
        let waiting = side.phone("waiting");
        let answer = side.post("auth/register/", &json!({ "phone": waiting, "password": PASSWORD }));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        let of_registration = side.gateway.wait_for_text(&waiting, 1).code().expect("a code");
        let answer = confirm(side, &waiting, &of_registration);
        side.refused(&answer, 400, "invalid_otp");
        let answer = side.post("auth/verify-otp/", &json!({ "phone": waiting, "otp": of_registration }));
        assert_eq!(answer.status, 200, "it was not spent elsewhere: {}", answer.shown());
        assert_eq!(confirm(side, &ada, &of_ada).status, 200, "nor was this one");
        assert_eq!(confirm(side, &bayo, &of_bayo).status, 200);
    });
}

#[test]
fn a_new_code_or_link_is_sent_once_a_minute_for_each_purpose_and_the_answer_is_the_same() {
    for_each_world(ORDINARY, |side| {
        // The code of the registration was sent a moment ago, and holds up no reset.
        let account = side.account("ada");
        let (phone, _) = phone_account(side, "bayo");
        let link = link(side, &account.email, 2);
        let first = side.last();
        let otp = code(side, &phone, 2);
        let mut answers = Vec::new();
        for name in [&account.email, &phone, &account.email, &phone] {
            answers.push(side.post("password/reset-request/", &json!({ "email_or_phone": name })));
            assert_alike(&first, &side.last());
        }
        let audited = rows::audited_by(side.gateway, &answers);
        assert_eq!(audited, ["password_reset_request|failure|too_soon"; 4]);
        pause(Duration::from_millis(150));
        assert_eq!(side.gateway.mails_to(&account.email).len(), 2);
        assert_eq!(side.gateway.texts_to(&phone).len(), 2);
        let answer = side.post("password/reset-confirm/", &link.sets(NEW));
        assert_eq!(answer.status, 200, "the first link is still good: {}", answer.shown());
        assert_eq!(confirm(side, &phone, &otp).status, 200, "and so is the first code");
    });
}

#[test]
fn so_many_are_sent_in_a_day_over_all_purposes_and_no_more() {
    for_each_world(THREE_A_DAY, |side| {
        let account = side.account("ada");
        link(side, &account.email, 2);
        let last = link(side, &account.email, 3);
        let first = side.last();
        let mut answers = Vec::new();
        for _ in 0..2 {
            answers.push(side.post("password/reset-request/", &json!({ "email_or_phone": account.email })));
            assert_alike(&first, &side.last());
        }
        let audited = rows::audited_by(side.gateway, &answers);
        assert_eq!(audited, ["password_reset_request|failure|too_soon"; 2]);
        let bayo = side.account("bayo");
        link(side, &bayo.email, 2);
        pause(Duration::from_millis(150));
        assert_eq!(side.gateway.mails_to(&account.email).len(), 3, "another recipient has their own number");
        let answer = side.post("password/reset-confirm/", &last.sets(NEW));
        assert_eq!(answer.status, 200, "the last link is still good: {}", answer.shown());
    });
}

#[test]
fn a_restart_forgets_neither_code_nor_guesses_nor_when_the_last_was_sent() {
    for_each_backend(&[], |gateway| {
        let (phone, otp, guessed, email) = {
            let mut side = Side::new(gateway, Engine::V1);
            let (phone, _) = phone_account(&mut side, "ada");
            let otp = code(&mut side, &phone, 2);
            for step in 1..=4 {
                assert_eq!(confirm(&mut side, &phone, &other_than(&otp, step)).status, 400);
            }
            let (guessed, _) = phone_account(&mut side, "bayo");
            let of_guessed = code(&mut side, &guessed, 2);
            for step in 1..=5 {
                assert_eq!(confirm(&mut side, &guessed, &other_than(&of_guessed, step)).status, 400);
            }
            let account = side.account("chidi");
            link(&mut side, &account.email, 2);
            (phone, otp, (guessed, of_guessed), account.email)
        };
        gateway.kill();
        gateway.restart();
        let mut side = Side::new(gateway, Engine::V2);
        let answer = confirm(&mut side, &guessed.0, &guessed.1);
        side.refused(&answer, 400, "invalid_otp");
        for name in [&phone, &email] {
            let answer = side.post("password/reset-request/", &json!({ "email_or_phone": name }));
            assert_eq!(rows::audited(gateway, &answer), "password_reset_request|failure|too_soon");
        }
        assert_eq!(confirm(&mut side, &phone, &otp).status, 200, "the fifth guess is the right one");
        let link = link_in_mail(&mut side, &email, 2);
        assert_eq!(side.post("password/reset-confirm/", &link.sets(NEW)).status, 200);
    });
}

#[test]
fn codes_and_links_are_kept_under_the_names_of_the_contract() {
    for_each_backend(&[], |gateway| {
        let mut side = Side::new(gateway, Engine::V1);
        let account = side.account("ada");
        link(&mut side, &account.email, 2);
        let (phone, answer) = phone_account(&mut side, "bayo");
        code(&mut side, &phone, 2);
        let stored = gateway.stored_bytes();
        let stored = String::from_utf8_lossy(&stored);
        let bayo = answer.text("data.user_id");
        for key in [format!("reset_flow:{}", account.user_id), format!("otp:{bayo}:password_reset")] {
            assert!(stored.contains(&key), "{key}");
        }
    });
}
