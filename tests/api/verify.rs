//! Confirming an address or a number with the code, and asking for another.

use crate::support::{Engine, PASSWORD, Request, for_each_backend, for_each_world, pause};
use crate::{ORDINARY, PROMPT, Refused, assert_alike, refuse_all};
use serde_json::{Value, json};
use std::time::Duration;

const VALIDATION: &[&str] = &["validation_error"];

/// Another code of six digits.
fn other_than(code: &str, step: u32) -> String {
    let number: u32 = code.parse().expect("a code is a number");
    format!("{:06}", (number + step) % 1_000_000)
}

#[test]
fn the_right_code_verifies_and_signs_in() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, challenge) = side.register(&email, PASSWORD);
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_eq!(answer.at("data.is_verified"), json!(true));
        assert_eq!(answer.at("data.user.is_verified"), json!(true));
        assert_eq!(side.me(&answer.text("data.access")).status, 200);
        assert!(answer.all("set-cookie").any(|cookie| cookie.contains(&answer.text("data.refresh"))));
    });
}

#[test]
fn the_account_can_be_named_in_any_of_the_four_ways() {
    for_each_world(ORDINARY, |side| {
        for way in ["challenge", "email", "email_or_phone"] {
            let email = side.email("ada");
            let (code, challenge) = side.register(&email, PASSWORD);
            let name = if way == "challenge" { challenge } else { email };
            let answer = side.post("auth/verify-otp/", &json!({ way: name, "otp": code }));
            assert_eq!(answer.status, 200, "{way}: {}", answer.shown());
        }
        for way in ["phone", "email_or_phone"] {
            let phone = side.phone("ada");
            let answer = side.post("auth/register/", &json!({ "phone": phone, "password": PASSWORD }));
            assert_eq!(answer.status, 201, "{}", answer.shown());
            let code = side.gateway.wait_for_text(&phone, 1).code().expect("a code");
            let answer = side.post("auth/verify-otp/", &json!({ way: phone, "otp": code }));
            assert_eq!(answer.status, 200, "{way}: {}", answer.shown());
        }
    });
}

#[test]
fn a_code_may_come_as_a_number_and_with_white_space_around_it() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, challenge) = side.register(&email, PASSWORD);
        // A number has no leading zero to keep.
        let otp = if code.starts_with('0') { json!(format!(" {code} ")) } else { json!(code.parse::<u32>().ok()) };
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": otp }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
    });
}

#[test]
fn a_request_that_names_no_account_or_no_code_is_refused() {
    refuse_all(|side| {
        let post = |body: &Value| Request::post("/api/{v}/auth/verify-otp/", body);
        let email = side.email("ada");
        vec![
            Refused::new("no code", post(&json!({ "email": email })), 400, VALIDATION).field("otp"),
            Refused::new("null", post(&json!({ "email": email, "otp": null })), 400, VALIDATION).field("otp"),
            Refused::new("a list", post(&json!({ "email": email, "otp": [1] })), 400, VALIDATION).field("otp"),
            Refused::new("no account", post(&json!({ "otp": "123456" })), 400, VALIDATION),
            Refused::new("unknown account", post(&json!({ "email": email, "otp": "123456" })), 400, &["invalid_otp"]),
            Refused::new(
                "unknown challenge",
                post(&json!({ "challenge": "nonsense", "otp": "123456" })),
                400,
                &["invalid_otp"],
            ),
        ]
    });
}

#[test]
fn after_five_wrong_codes_the_right_one_is_refused() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, challenge) = side.register(&email, PASSWORD);
        for step in 1..=5 {
            let body = json!({ "challenge": challenge, "otp": other_than(&code, step) });
            let answer = side.post("auth/verify-otp/", &body);
            side.refused(&answer, 400, "invalid_otp");
        }
        for name in ["challenge", "email"] {
            let value = if name == "challenge" { &challenge } else { &email };
            let answer = side.post("auth/verify-otp/", &json!({ name: value, "otp": code }));
            side.refused(&answer, 400, "invalid_otp");
        }
        let answer = side.post("auth/login/", &json!({ "email_or_phone": email, "password": PASSWORD }));
        side.refused(&answer, 403, "account_not_verified");
    });
}

#[test]
fn after_four_wrong_codes_the_right_one_is_taken() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, challenge) = side.register(&email, PASSWORD);
        for step in 1..=4 {
            let body = json!({ "challenge": challenge, "otp": other_than(&code, step) });
            assert_eq!(side.post("auth/verify-otp/", &body).status, 400);
        }
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
    });
}

#[test]
fn a_code_is_good_for_one_use() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, challenge) = side.register(&email, PASSWORD);
        let body = json!({ "challenge": challenge, "otp": code });
        assert_eq!(side.post("auth/verify-otp/", &body).status, 200);
        let answer = side.post("auth/verify-otp/", &body);
        side.refused(&answer, 400, "invalid_otp");
    });
}

#[test]
fn of_many_uses_of_one_code_at_once_one_succeeds() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, challenge) = side.register(&email, PASSWORD);
        let request = Request::post("/api/{v}/auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        let statuses = at_once(20, |_| side.send_apart(&request).status);
        let good = statuses.iter().filter(|status| **status == 200).count();
        assert_eq!(good, 1, "{statuses:?}");
    });
}

#[test]
fn of_many_guesses_at_once_no_more_than_five_count() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, challenge) = side.register(&email, PASSWORD);
        let statuses = at_once(40, |step| {
            let body = json!({ "challenge": challenge, "otp": other_than(&code, step + 1) });
            side.send_apart(&Request::post("/api/{v}/auth/verify-otp/", &body)).status
        });
        assert!(statuses.iter().all(|status| *status == 400), "{statuses:?}");
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        side.refused(&answer, 400, "invalid_otp");
    });
}

/// Does it in so many threads at once.
pub(crate) fn at_once<T: Send>(count: u32, work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    let start = std::sync::Barrier::new(usize::try_from(count).expect("a small number"));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let (start, work) = (&start, &work);
                scope.spawn(move || {
                    start.wait();
                    work(number)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic in the thread")).collect()
    })
}

#[test]
fn a_code_of_one_account_is_no_use_for_another() {
    for_each_world(ORDINARY, |side| {
        let (ada, bayo) = (side.email("ada"), side.email("bayo"));
        let (code_of_ada, _) = side.register(&ada, PASSWORD);
        let (code_of_bayo, challenge_of_bayo) = side.register(&bayo, PASSWORD);
        if code_of_ada != code_of_bayo {
            let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge_of_bayo, "otp": code_of_ada }));
            side.refused(&answer, 400, "invalid_otp");
        }
    });
}

#[test]
fn a_new_code_replaces_the_old_one() {
    for_each_world(PROMPT, |side| {
        let email = side.email("ada");
        let (old, challenge) = side.register(&email, PASSWORD);
        let answer = side.post("auth/resend-otp/", &json!({ "email_or_phone": email }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let new = side.gateway.wait_for_mail(&email, 2).code().expect("a code");
        if old != new {
            let answer = side.post("auth/verify-otp/", &json!({ "email": email, "otp": old }));
            side.refused(&answer, 400, "invalid_otp");
        }
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": new }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
    });
}

#[test]
fn a_code_can_be_asked_for_again_with_the_challenge() {
    for_each_world(PROMPT, |side| {
        let email = side.email("ada");
        let (_, challenge) = side.register(&email, PASSWORD);
        let answer = side.post("auth/resend-otp/", &json!({ "challenge": challenge }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let code = side.gateway.wait_for_mail(&email, 2).code().expect("a code");
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
    });
}

#[test]
fn a_code_is_not_sent_again_before_its_time() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, challenge) = side.register(&email, PASSWORD);
        let answer = side.post("auth/resend-otp/", &json!({ "email_or_phone": email }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        assert_eq!(answer.status, 200, "the first code is still good: {}", answer.shown());
        assert_eq!(side.gateway.mails_to(&email).len(), 1);
    });
}

#[test]
fn asking_for_a_code_tells_nobody_whether_the_account_exists() {
    for_each_world(ORDINARY, |side| {
        let (waiting, nobody) = (side.email("waiting"), side.email("nobody"));
        let (_, challenge) = side.register(&waiting, PASSWORD);
        let verified = side.account("verified").email;
        let mut answers = Vec::new();
        for body in [
            json!({ "email_or_phone": waiting }),
            json!({ "email_or_phone": nobody }),
            json!({ "email_or_phone": verified }),
            json!({ "challenge": challenge }),
            json!({ "challenge": "nonsense" }),
        ] {
            assert_eq!(side.post("auth/resend-otp/", &body).status, 200);
            answers.push(side.last());
        }
        for answer in &answers {
            assert_alike(&answers[0], answer);
        }
        let answer = side.post("auth/resend-otp/", &json!({}));
        side.refused(&answer, 400, "validation_error");
    });
}

#[test]
fn a_code_of_one_engine_is_taken_by_the_other_and_spent_on_both() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, challenge) = side.register(&email, PASSWORD);
        let request = Request::post("/api/{v}/auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        assert_eq!(side.send_to_other(&request).status, 200);
        let answer = side.send(&request);
        side.refused(&answer, 400, "invalid_otp");
    });
}

#[test]
fn a_code_is_dead_after_its_time() {
    for_each_backend(&[("BIFRONS_OTP__TTL", "1s"), ("BIFRONS_OTP__RESEND_INTERVAL", "1s")], |gateway| {
        for engine in Engine::BOTH {
            let mut side = crate::Side::new(gateway, engine);
            let email = side.email("ada");
            let (code, challenge) = side.register(&email, PASSWORD);
            pause(Duration::from_millis(1200));
            let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
            side.refused(&answer, 400, "invalid_otp");
        }
    });
}
