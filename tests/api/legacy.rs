//! The old paths without a prefix: the same services, with the keys of `data` repeated at the top level.

use crate::support::{Answer, PASSWORD, Request, asked, for_each_world, guard, second_step};
use crate::{ORDINARY, PROMPT, password_reset};
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
fn the_question_for_a_second_factor_is_flat_by_the_old_path() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let ada = guard(side, account);
        let body = json!({ "email_or_phone": ada.account.email, "password": PASSWORD });
        let answer = side.send(&Request::post("/auth/login/", &body));
        let token = asked(&answer);
        assert_flat(&answer);
        assert_eq!((answer.at("mfa_required"), answer.text("mfa_token")), (json!(true), token.clone()));
        assert_eq!(answer.at("methods"), json!(["totp", "recovery_code"]));
        let code = ada.recovery_codes.first().expect("a code");
        assert_eq!(side.send(&second_step(&token, "recovery_code", code)).status, 200);
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

#[test]
fn a_password_is_reset_and_changed_by_the_old_paths() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let (first, second) = ("copper-lantern-58-harbour", "granite-orchid-93-kettle");
        let answer = side.send(&Request::post("/auth/password-reset/", &json!({ "email": account.email })));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let link = password_reset::link_in_mail(side, &account.email, 2);
        let path = format!("/auth/password-reset-confirm-email/{}/{}/", link.uidb64, link.token);
        let answer = side.send(&Request::post(&path, &json!({ "password": first, "password2": first })));
        assert_eq!((answer.status, answer.at("data")), (200, Value::Null), "{}", answer.shown());
        let body = json!({ "email_or_phone": account.email, "password": first });
        let access = side.send(&Request::post("/auth/login/", &body)).text("access");
        let body = json!({ "old_password": first, "new_password": second, "confirm_password": second });
        let answer = side.send(&Request::post("/auth/password-change/", &body).bearer(&access));
        assert_eq!((answer.status, answer.at("data")), (200, Value::Null), "{}", answer.shown());
        let body = json!({ "email_or_phone": account.email, "password": second });
        assert_eq!(side.send(&Request::post("/auth/login/", &body)).status, 200);
    });
}

#[test]
fn the_old_paths_of_passwords_refuse_as_the_new_ones_do() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let link = json!({ "uidb64": "dQ", "token": "dA", "new_password": PASSWORD });
        let twice = json!({ "password": PASSWORD, "password2": PASSWORD });
        let phone = json!({
            "phone": "+2348031234567", "otp": "123456", "new_password": PASSWORD, "new_password_confirm": PASSWORD
        });
        let wrong = json!({ "old_password": "wrong-password-1", "new_password": "copper-lantern-58-harbour" });
        let nothing = json!({});
        for (old, new, body) in [
            ("/auth/password-reset/", "/api/{v}/password/reset-request/", &nothing),
            ("/auth/password-reset-request/", "/api/{v}/password/reset-request/", &nothing),
            ("/auth/password-reset-confirm/", "/api/{v}/password/reset-confirm/", &link),
            ("/auth/password-reset-confirm/", "/api/{v}/password/reset-confirm/", &nothing),
            ("/auth/password-reset-confirm-email/dQ/dA/", "/api/{v}/password/reset-confirm/dQ/dA/", &twice),
            ("/auth/password-reset-confirm-phone/", "/api/{v}/password/reset-phone-confirm/", &phone),
            ("/auth/password-change/", "/api/{v}/password/change/", &wrong),
            ("/auth/password-change/", "/api/{v}/password/change/", &nothing),
        ] {
            let [old, new] = [old, new].map(|path| {
                let answer = side.send(&Request::post(path, body).bearer(&account.access));
                assert_eq!((answer.status, answer.at("success")), (400, json!(false)), "{path}: {}", answer.shown());
                let mut body = answer.json();
                body.as_object_mut().and_then(|body| body.remove("meta"));
                body
            });
            assert_eq!(old, new);
        }
    });
}
