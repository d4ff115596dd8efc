//! The old paths without a prefix: the same services, with the keys of `data` repeated at the top level.

use crate::support::{Answer, PASSWORD, Request, for_each_world};
use crate::{ORDINARY, PROMPT};
use serde_json::{Value, json};

/// A client that reads a flat body finds everything, beside the envelope.
fn assert_flat(answer: &Answer) {
    let body = answer.json();
    let data = answer.at("data");
    let fields = data.as_object().unwrap_or_else(|| panic!("no data: {}", answer.shown()));
    assert_eq!(answer.at("success"), json!(true), "{}", answer.shown());
    for (key, value) in fields {
        assert_eq!(body.get(key), Some(value), "{key} at the top level");
    }
}

#[test]
fn a_whole_life_of_an_account_goes_by_the_old_paths() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let answer = side.send(&Request::post("/auth/register/", &json!({ "email": email, "password": PASSWORD })));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        assert_flat(&answer);
        let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
        let answer = side.send(&Request::post("/auth/verify-otp/", &json!({ "email": email, "otp": code })));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_flat(&answer);
        let answer =
            side.send(&Request::post("/auth/login/", &json!({ "email_or_phone": email, "password": PASSWORD })));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_flat(&answer);
        assert_eq!(answer.json().get("access"), Some(&answer.at("data.access")));
        let answer = side.send(&Request::post("/auth/token/refresh/", &json!({ "refresh": answer.text("refresh") })));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_flat(&answer);
        let (access, refresh) = (answer.text("access"), answer.text("refresh"));
        assert_eq!(side.me(&access).status, 200, "a token of the old path opens the new one");
        let out = Request::post("/auth/logout/", &json!({ "refresh_token": refresh })).bearer(&access);
        let answer = side.send(&out);
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let answer = side.me(&access);
        side.refused(&answer, 401, "token_not_valid");
        assert_eq!(side.refresh(&refresh).status, 401);
    });
}

#[test]
fn a_refresh_token_by_its_old_name_ends_its_session() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let other = side.sign_in(&account);
        let out = Request::post("/auth/logout/", &json!({ "refresh_token": other.refresh })).bearer(&account.access);
        assert_eq!(side.send(&out).status, 200);
        let answer = side.me(&other.access);
        side.refused(&answer, 401, "token_not_valid");
    });
}

#[test]
fn a_new_code_is_sent_by_the_old_path() {
    for_each_world(PROMPT, |side| {
        let email = side.email("ada");
        side.register(&email, PASSWORD);
        let answer = side.send(&Request::post("/auth/resend-otp/", &json!({ "email_or_phone": email })));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert!(side.gateway.wait_for_mail(&email, 2).code().is_some());
    });
}

#[test]
fn a_failure_by_the_old_path_is_the_envelope_and_nothing_beside_it() {
    for_each_world(ORDINARY, |side| {
        let nobody = side.email("nobody");
        let body = json!({ "email_or_phone": nobody, "password": "wrong-password-1" });
        let old = side.send(&Request::post("/auth/login/", &body));
        side.refused(&old, 401, "invalid_credentials");
        let new = side.post("auth/login/", &body);
        let without_meta = |answer: &Answer| {
            let mut body = answer.json();
            body.as_object_mut().and_then(|body| body.remove("meta"));
            body
        };
        assert_eq!(without_meta(&old), without_meta(&new));
        let answer = side.send(&Request::post("/auth/login/", &json!({})));
        side.refused(&answer, 400, "validation_error");
        assert_eq!(answer.at("data"), Value::Null);
    });
}
