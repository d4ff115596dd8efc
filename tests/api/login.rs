//! Signing in with a password.

use crate::support::{PASSWORD, claims_of, for_each_world};
use crate::{BRISK, ORDINARY, assert_alike};
use serde_json::{Map, Value, json};

pub(crate) fn keys(value: &Value) -> Vec<String> {
    value.as_object().into_iter().flat_map(Map::keys).cloned().collect()
}

#[test]
fn a_sign_in_shows_the_login_data_and_nothing_else() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let answer = side.post("auth/login/", &json!({ "email_or_phone": account.email, "password": PASSWORD }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_eq!(
            keys(&answer.at("data")),
            [
                "access",
                "expires_in",
                "identifying_info",
                "is_verified",
                "refresh",
                "role",
                "token_type",
                "user",
                "user_id"
            ]
        );
        assert_eq!(
            keys(&answer.at("data.user")),
            [
                "auth_provider",
                "avatar",
                "date_joined",
                "email",
                "first_name",
                "id",
                "is_staff",
                "is_verified",
                "last_login",
                "last_name",
                "phone",
                "pid",
                "role",
                "user_id"
            ]
        );
        assert_eq!(answer.at("data.token_type"), json!("Bearer"));
        assert_eq!(answer.at("data.expires_in"), json!(900));
        assert_eq!(answer.at("data.identifying_info"), json!(account.email));
        assert_eq!(answer.at("data.user.email"), json!(account.email));
        assert_eq!(answer.at("data.user_id"), answer.at("data.user.id"));
        assert_eq!(answer.at("data.user.first_name"), json!(""), "a name is empty, not null");
        assert_eq!(answer.at("data.role"), json!("client"));
    });
}

#[test]
fn the_tokens_say_what_simplejwt_says() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        for (token, kind) in [(&account.access, "access"), (&account.refresh, "refresh")] {
            let token = claims_of(token).expect("a token of three parts");
            assert_eq!(token.header.get("alg"), Some(&json!("HS256")));
            assert!(token.header.get("kid").is_some_and(Value::is_string));
            let claim = |name: &str| token.claims.get(name).cloned().unwrap_or_default();
            assert_eq!(claim("token_type"), json!(kind));
            assert_eq!(claim("user_id"), json!(account.user_id));
            for text in ["jti", "sid", "iss", "aud"] {
                assert!(claim(text).is_string(), "{text}: {}", token.claims);
            }
            let lifetime = claim("exp").as_i64().zip(claim("iat").as_i64()).map(|(exp, iat)| exp - iat);
            let expected = if kind == "access" { 15 * 60 } else { 30 * 24 * 3600 };
            assert_eq!(lifetime, Some(expected), "{kind}");
        }
    });
}

#[test]
fn an_unknown_user_and_a_wrong_password_cannot_be_told_apart() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let (nobody, waiting) = (side.email("nobody"), side.email("waiting"));
        side.register(&waiting, PASSWORD);
        let unused = side.phone("nobody");
        let mut answers = Vec::new();
        for name in [&account.email, &nobody, &waiting, &unused] {
            let answer = side.post("auth/login/", &json!({ "email_or_phone": name, "password": "wrong-password-1" }));
            side.refused(&answer, 401, "invalid_credentials");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            answers.push(side.last());
        }
        for answer in &answers {
            assert_alike(&answers[0], answer);
        }
    });
}

#[test]
fn an_unverified_account_is_told_so_only_to_who_knows_its_password() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        side.register(&email, PASSWORD);
        let answer = side.post("auth/login/", &json!({ "email_or_phone": email, "password": PASSWORD }));
        side.refused(&answer, 403, "account_not_verified");
        assert!(answer.header("set-cookie").is_none());
        let answer = side.post("auth/login/", &json!({ "email_or_phone": email, "password": "wrong-password-1" }));
        side.refused(&answer, 401, "invalid_credentials");
    });
}

#[test]
fn a_name_that_is_neither_address_nor_number_is_an_unknown_user() {
    for_each_world(ORDINARY, |side| {
        for name in ["ada", "12", "@", "' OR 1=1 --", "a@b@c", "\u{202e}moc.elpmaxe@ada"] {
            let answer = side.post("auth/login/", &json!({ "email_or_phone": name, "password": PASSWORD }));
            assert!([400, 401].contains(&answer.status), "{name}: {}", answer.shown());
        }
    });
}

#[test]
fn a_password_over_the_limit_is_refused_before_it_is_hashed() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let answer =
            side.post("auth/login/", &json!({ "email_or_phone": account.email, "password": "x".repeat(60_000) }));
        assert!([400, 401].contains(&answer.status), "{}", answer.shown());
        let answer =
            side.post("auth/login/", &json!({ "email_or_phone": account.email, "password": "x".repeat(1_000_000) }));
        side.refused(&answer, 413, "payload_too_large");
    });
}

#[test]
fn every_sign_in_opens_a_session_of_its_own() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let again = side.sign_in(&account);
        let session = |token: &str| claims_of(token).and_then(|token| token.claims.get("sid").cloned());
        assert_eq!(session(&again.access), session(&again.refresh));
        assert_ne!(session(&again.access), session(&account.access));
        assert_eq!(side.me(&account.access).status, 200);
        assert_eq!(side.me(&again.access).status, 200);
    });
}

#[test]
fn the_refresh_token_is_also_a_cookie_that_scripts_cannot_read() {
    for story in [ORDINARY, BRISK] {
        for_each_world(story, |side| {
            let account = side.account("ada");
            let answer = side.post("auth/login/", &json!({ "email_or_phone": account.email, "password": PASSWORD }));
            let refresh = answer.text("data.refresh");
            let cookie =
                answer.all("set-cookie").find(|cookie| cookie.contains(&refresh)).expect("a cookie").to_owned();
            let attributes: Vec<_> = cookie.split("; ").skip(1).map(str::to_ascii_lowercase).collect();
            let has = |attribute: &str| attributes.iter().any(|one| one == attribute);
            assert!(has("httponly") && has("samesite=lax") && has("path=/"), "{cookie}");
            assert_eq!(has("secure"), story == BRISK, "Secure where the public URL is HTTPS: {cookie}");
            assert!(!attributes.iter().any(|one| one.starts_with("domain")), "{cookie}");
            assert!(!cookie.contains(&answer.text("data.access")));
        });
    }
}

#[test]
fn a_session_named_by_the_client_is_not_taken_over() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let request = crate::Request::post(
            "/api/{v}/auth/login/",
            &json!({ "email_or_phone": account.email, "password": PASSWORD, "sid": "fixed", "refresh": account.refresh }),
        );
        let answer = side.send(&request.header("Cookie", format!("refresh={}; sessionid=fixed", account.refresh)));
        assert_eq!(answer.status, 200);
        assert_ne!(answer.text("data.refresh"), account.refresh);
    });
}

#[test]
fn a_form_on_a_strangers_page_signs_nobody_in_by_cookie() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let form = [("email_or_phone", account.email.as_str()), ("password", account.password.as_str())];
        for origin in ["https://evil.example", "null"] {
            let request = crate::Request::new("POST", "/api/{v}/auth/login/").form(&form).header("Origin", origin);
            let answer = side.send(&request);
            assert_eq!(answer.status, 200, "{}", answer.shown());
            assert_eq!(answer.all("set-cookie").count(), 0, "{origin}");
        }
        let request = crate::Request::new("POST", "/api/{v}/auth/login/").form(&form);
        assert_eq!(side.send(&request).all("set-cookie").count(), 2, "no browser, no page");
    });
}
