//! Five failures lock an identifier, whether it has an account or not.

use crate::support::{PASSWORD, Request, Side, for_each_world};
use crate::{ORDINARY, assert_alike};
use serde_json::{Value, json};

fn fail(side: &mut Side<'_>, name: &str, times: u32) {
    for turn in 1..=times {
        let answer = login(side, name, "wrong-password-1");
        // The failure that reaches the limit may say so itself.
        assert!(answer.status == 401 || (answer.status == 429 && turn >= 5), "{turn}: {}", answer.shown());
    }
}

fn login(side: &mut Side<'_>, name: &str, password: &str) -> crate::Answer {
    let body = json!({ "email_or_phone": name, "password": password });
    side.send(&Request::post("/api/{v}/auth/login/", &body).header("User-Agent", "another device"))
}

#[test]
fn after_five_failures_the_right_password_of_an_unknown_device_is_refused() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        fail(side, &account.email, 5);
        let answer = login(side, &account.email, PASSWORD);
        side.refused(&answer, 429, "account_locked");
        let seconds: u64 = answer.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After");
        assert!((1..=900).contains(&seconds), "{seconds}");
        assert_eq!(answer.at("data.retry_after"), json!(seconds));
        assert_eq!(side.me(&account.access).status, 200, "a session that is there goes on");
    });
}

#[test]
fn four_failures_lock_nothing_and_a_success_clears_them() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        for _ in 0..2 {
            fail(side, &account.email, 4);
            assert_eq!(login(side, &account.email, PASSWORD).status, 200);
        }
    });
}

#[test]
fn an_unknown_identifier_is_locked_alike() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let nobody = side.email("nobody");
        let mut answers = Vec::new();
        for name in [&account.email, &nobody] {
            fail(side, name, 5);
            let answer = login(side, name, PASSWORD);
            side.refused(&answer, 429, "account_locked");
            answers.push(side.last());
        }
        assert_alike(&answers[0], &answers[1]);
    });
}

#[test]
fn the_lock_holds_for_every_spelling_on_both_engines_and_at_the_alias() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        fail(side, &account.email, 3);
        for name in [account.email.to_uppercase(), format!(" {} ", account.email)] {
            fail(side, &name, 1);
        }
        let body = json!({ "email_or_phone": account.email, "password": PASSWORD });
        let request = Request::post("/api/{v}/auth/login/", &body).header("User-Agent", "another device");
        let answer = side.send_to_other(&request);
        side.refused(&answer, 429, "account_locked");
        let answer = side.send(&Request { path: "/auth/login/".to_owned(), ..request });
        side.refused(&answer, 429, "account_locked");
        let other = side.account("bayo");
        assert_eq!(login(side, &other.email, PASSWORD).status, 200, "nobody else is locked");
    });
}

#[test]
fn a_lock_is_remembered_over_a_restart() {
    crate::support::for_each_backend(&[], |gateway| {
        let email = {
            let mut side = Side::new(gateway, crate::support::Engine::V1);
            let account = side.account("ada");
            fail(&mut side, &account.email, 5);
            account.email
        };
        gateway.kill();
        gateway.restart();
        for engine in crate::support::Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let answer = login(&mut side, &email, PASSWORD);
            side.refused(&answer, 429, "account_locked");
            assert_ne!(answer.at("data"), Value::Null);
        }
    });
}
