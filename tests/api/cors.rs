//! Cross-origin requests: the configured origins, and nobody else.

use crate::support::{Answer, PASSWORD, Request, for_each_world};
use crate::{ORDINARY, ORIGIN};
use serde_json::json;

const ROUTES: [(&str, &str); 20] = [
    ("/api/{v}/auth/login/", "POST"),
    ("/api/{v}/auth/register/", "POST"),
    ("/api/{v}/auth/me/", "GET"),
    ("/api/{v}/auth/me/", "PATCH"),
    ("/api/{v}/auth/token/refresh/", "POST"),
    ("/api/{v}/auth/logout", "POST"),
    ("/auth/login/", "POST"),
    ("/api/{v}/password/reset-request/", "POST"),
    ("/api/{v}/password/reset-confirm/", "POST"),
    ("/api/{v}/password/reset-confirm/dQ/dA/", "POST"),
    ("/api/{v}/password/reset-phone-confirm/", "POST"),
    ("/api/{v}/password/change/", "POST"),
    ("/api/{v}/auth/sessions/", "GET"),
    ("/api/{v}/auth/sessions/01890a5d-ac96-774b-bcce-b302099a8057/", "DELETE"),
    ("/api/{v}/auth/sessions/revoke-others/", "POST"),
    ("/api/{v}/auth/login-events/", "GET"),
    ("/auth/password-reset-confirm-email/dQ/dA/", "POST"),
    ("/auth/password-change/", "POST"),
    ("/health/ready", "GET"),
    ("/health/live", "GET"),
];

fn preflight(path: &str, origin: &str, method: &str) -> Request {
    Request::new("OPTIONS", path)
        .header("Origin", origin)
        .header("Access-Control-Request-Method", method)
        .header("Access-Control-Request-Headers", "authorization, content-type, x-request-id, x-idempotency-key")
}

fn lists(answer: &Answer, name: &str, wanted: &str) -> bool {
    answer.all(name).flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(wanted))
}

fn assert_no_permission(answer: &Answer, what: &str) {
    for (name, value) in &answer.headers {
        assert!(!name.starts_with("access-control-"), "{what}: {name}: {value}");
    }
}

#[test]
fn a_preflight_of_an_allowed_origin_is_answered_on_every_route() {
    for_each_world(ORDINARY, |side| {
        for (path, method) in ROUTES {
            let answer = side.send(&preflight(path, ORIGIN, method));
            assert!([200, 204].contains(&answer.status), "{path}: {}", answer.shown());
            assert_eq!(answer.header("access-control-allow-origin"), Some(ORIGIN), "{path}");
            assert_eq!(answer.header("access-control-allow-credentials"), Some("true"), "{path}");
            for header in ["authorization", "content-type", "x-request-id", "x-idempotency-key"] {
                assert!(
                    lists(&answer, "access-control-allow-headers", header),
                    "{path}: {header}: {:?}",
                    answer.headers
                );
            }
            assert!(lists(&answer, "access-control-allow-methods", method), "{path}: {method}");
            assert!(lists(&answer, "vary", "origin"), "{path}: a cache has to tell origins apart");
        }
    });
}

#[test]
fn a_request_of_an_allowed_origin_may_be_read_by_it() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let body = json!({ "email_or_phone": account.email, "password": PASSWORD });
        for request in [
            Request::post("/api/{v}/auth/login/", &body),
            Request::post("/api/{v}/auth/login/", &json!({})),
            Request::get("/api/{v}/auth/me/"),
            Request::get("/api/{v}/nothing/"),
            Request::get("/api/{v}/auth/login/"),
        ] {
            let answer = side.send(&request.header("Origin", ORIGIN));
            assert_eq!(answer.header("access-control-allow-origin"), Some(ORIGIN), "{}", answer.shown());
            assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
            for header in [
                "x-request-id",
                "retry-after",
                "ratelimit-policy",
                "ratelimit-limit",
                "ratelimit-remaining",
                "ratelimit-reset",
                "idempotent-replay",
            ] {
                assert!(lists(&answer, "access-control-expose-headers", header), "{header}: {:?}", answer.headers);
            }
            assert!(lists(&answer, "vary", "origin"));
        }
    });
}

#[test]
fn another_origin_gets_no_permission() {
    for_each_world(ORDINARY, |side| {
        for origin in [
            "https://evil.example",
            "null",
            "http://app.example.com",
            "https://app.example.com.evil.example",
            "https://xapp.example.com",
            "https://app.example.com:444",
            "*",
            "",
        ] {
            let answer = side.send(&preflight("/api/{v}/auth/login/", origin, "POST"));
            assert_no_permission(&answer, origin);
            let answer = side.send(&Request::post("/api/{v}/auth/login/", &json!({})).header("Origin", origin));
            assert_no_permission(&answer, origin);
            assert_eq!(answer.status, 400, "the request itself is answered as ever: {}", answer.shown());
            assert!(lists(&answer, "vary", "origin"), "{origin}");
        }
    });
}

#[test]
fn without_configured_origins_nobody_gets_permission() {
    for_each_world(crate::Story { env: &[] }, |side| {
        let answer = side.send(&preflight("/api/{v}/auth/login/", ORIGIN, "POST"));
        assert_no_permission(&answer, ORIGIN);
        let answer = side.send(&Request::get("/api/{v}/auth/me/").header("Origin", ORIGIN));
        assert_no_permission(&answer, ORIGIN);
    });
}
