//! Envelope, paths, methods and bodies (contract, section 1).

use crate::support::{PASSWORD, Request, for_each_world};
use crate::{ORDINARY, Refused, refuse_all};
use serde_json::{Value, json};

const LOGIN: &str = "/api/{v}/auth/login/";
const VALIDATION: &[&str] = &["validation_error"];
const PARSE: &[&str] = &["parse_error"];

fn post(body: &Value) -> Request {
    Request::post(LOGIN, body)
}

fn raw(body: impl Into<Vec<u8>>) -> Request {
    Request::new("POST", LOGIN).body("application/json", body)
}

#[test]
fn success_and_failure_have_the_keys_of_the_contract_and_no_others() {
    for_each_world(ORDINARY, |side| {
        let keys =
            |value: &Value| value.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        let account = side.account("ada");
        let good = side.me(&account.access);
        assert_eq!(keys(&good.json()), ["data", "errors", "message", "meta", "success"]);
        assert_eq!((good.at("success"), good.at("errors")), (json!(true), Value::Null));
        let bad = side.post("auth/login/", &json!({}));
        assert_eq!(keys(&bad.json()), ["code", "data", "errors", "message", "meta", "success"]);
        assert_eq!((bad.at("success"), bad.at("data")), (json!(false), Value::Null));
        let denied = side.send(&Request::get("/api/{v}/auth/me/"));
        assert_eq!(denied.at("errors"), Value::Null, "no field is at fault");
        for answer in [good, bad, denied] {
            assert!(!answer.text("message").is_empty());
            assert_eq!(answer.header("content-type"), Some("application/json"), "{}", answer.shown());
        }
    });
}

#[test]
fn a_request_id_of_the_allowed_form_is_echoed_and_any_other_is_replaced() {
    for_each_world(ORDINARY, |side| {
        let longest = "x".repeat(64);
        for given in ["a", "Trace-1.2_3", longest.as_str()] {
            let answer = side.send(&Request::get("/api/{v}/auth/me/").header("X-Request-ID", given));
            assert_eq!(answer.header("x-request-id"), Some(given));
            assert_eq!(answer.text("meta.request_id"), given);
        }
        let too_long = "x".repeat(65);
        for given in ["", "two words", "semi;colon", "\u{e4}", too_long.as_str(), "<script>"] {
            let answer = side.send(&Request::get("/api/{v}/auth/me/").header("X-Request-ID", given));
            let made = answer.header("x-request-id").expect("a request id");
            assert!(made != given && !made.is_empty(), "{given}");
        }
    });
}

#[test]
fn a_path_answers_the_same_without_its_trailing_slash() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let body = json!({ "email_or_phone": account.email, "password": PASSWORD });
        let with = side.send(&Request::post("/api/{v}/auth/login/", &body));
        let without = side.send(&Request::post("/api/{v}/auth/login", &body));
        assert_eq!((with.status, without.status), (200, 200));
        let me = side.send(&Request::get("/api/{v}/auth/me").bearer(&account.access));
        assert_eq!(me.status, 200, "{}", me.shown());
        assert_eq!(side.send(&Request::get("/health/live/")).status, 200);
        assert_eq!(side.send(&Request::post("/auth/login", &body)).status, 200);
    });
}

#[test]
fn health_says_that_it_lives_and_that_it_is_ready() {
    for_each_world(ORDINARY, |side| {
        for path in ["/health/live", "/health/ready"] {
            let answer = side.send(&Request::get(path));
            assert_eq!((answer.status, answer.at("success")), (200, json!(true)), "{}", answer.shown());
        }
    });
}

#[test]
fn an_unknown_path_is_not_found() {
    refuse_all(|_| {
        [
            "/",
            "/nothing/",
            "/api/",
            "/api/{v}/",
            "/api/{v}/auth/nothing/",
            "/api/{v}/auth/login/more/",
            "/api/v3/auth/login/",
            "/api/{v}//auth/login/",
            "/API/{v}/auth/login/",
            "/api/{v}/auth/../auth/login/",
            "/api/{v}/auth/%6cogin%2f",
        ]
        .map(|path| Refused::new(path, Request::post(path, &json!({})), 404, &["not_found"]))
        .into()
    });
}

#[test]
fn the_path_of_the_other_version_names_the_port_that_serves_it() {
    for_each_world(ORDINARY, |side| {
        let answer = side.send(&Request::post("/api/{other}/auth/login/", &json!({})));
        side.refused(&answer, 404, "not_found");
        let port = side.engine.other().address(side.gateway).port().to_string();
        assert!(answer.text("message").contains(&port), "{}", answer.shown());
    });
}

#[test]
fn another_method_is_refused_and_told_which_are_allowed() {
    for_each_world(ORDINARY, |side| {
        for (method, path, allowed) in [
            ("GET", "/api/{v}/auth/login/", &["POST"][..]),
            ("DELETE", "/api/{v}/auth/register/", &["POST"]),
            ("PUT", "/api/{v}/auth/me/", &["GET", "PATCH"]),
            ("POST", "/api/{v}/profile/me/", &["GET", "PATCH"]),
            ("POST", "/health/live", &["GET"]),
            ("GET", "/auth/logout/", &["POST"]),
        ] {
            let answer = side.send(&Request::new(method, path));
            side.refused(&answer, 405, "method_not_allowed");
            let allow = answer.header("allow").unwrap_or_default().to_owned();
            for method in allowed {
                assert!(allow.split(", ").any(|one| one == *method), "{path}: Allow: {allow}");
            }
            assert!(!allow.contains(method), "{path}: Allow: {allow}");
        }
    });
}

#[test]
fn a_body_of_another_type_is_refused() {
    refuse_all(|_| {
        let body = r#"{"email_or_phone":"a@example.com","password":"x"}"#;
        [
            "text/plain",
            "application/xml",
            "multipart/form-data; boundary=x",
            "application/json-patch+json",
            "nonsense",
            "application/json; charset=utf-16",
        ]
        .map(|kind| Refused::new(kind, Request::new("POST", LOGIN).body(kind, body), 415, &["unsupported_media_type"]))
        .into()
    });
}

#[test]
fn json_is_taken_with_a_charset_and_in_any_case_of_its_type() {
    for_each_world(ORDINARY, |side| {
        for kind in ["application/json; charset=utf-8", "application/json;charset=UTF-8", "Application/JSON"] {
            let answer = side.send(&Request::new("POST", LOGIN).body(kind, "{}"));
            side.refused(&answer, 400, "validation_error");
        }
    });
}

#[test]
fn a_body_over_64_kib_is_too_large_and_one_of_64_kib_is_read() {
    for_each_world(ORDINARY, |side| {
        let body = |length: usize| {
            let frame = r#"{"filler":""}"#.len();
            raw(format!(r#"{{"filler":"{}"}}"#, "x".repeat(length - frame)))
        };
        let answer = side.send(&body(64 * 1024));
        side.refused(&answer, 400, "validation_error");
        let answer = side.send(&body(64 * 1024 + 1));
        side.refused(&answer, 413, "payload_too_large");
        let answer = side.send(&body(1024 * 1024));
        side.refused(&answer, 413, "payload_too_large");
    });
}

#[test]
fn a_malformed_body_is_a_parse_error() {
    refuse_all(|_| {
        let deep = "[".repeat(50_000);
        vec![
            Refused::new("nothing", raw(""), 400, &["parse_error", "validation_error"]),
            Refused::new("an open brace", raw("{"), 400, PARSE),
            Refused::new("a trailing comma", raw(r#"{"password":"x",}"#), 400, PARSE),
            Refused::new("two values", raw("{} {}"), 400, PARSE),
            Refused::new("single quotes", raw("{'password':'x'}"), 400, PARSE),
            Refused::new("not a number", raw(r#"{"password":NaN}"#), 400, PARSE),
            Refused::new("no UTF-8", raw(b"{\"password\":\"\xff\xfe\"}".to_vec()), 400, PARSE),
            Refused::new("half a surrogate", raw(r#"{"password":"\ud800"}"#), 400, PARSE),
            Refused::new("deep nesting", raw(deep), 400, PARSE),
            Refused::new("a control character", raw("{\"password\":\"a\nb\"}"), 400, PARSE),
        ]
    });
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    refuse_all(|_| {
        ["[]", r#"["a@example.com","x"]"#, r#""text""#, "1", "true", "null"]
            .map(|body| Refused::new(body, raw(body), 400, &["parse_error", "validation_error"]))
            .into()
    });
}

#[test]
fn a_known_key_that_comes_twice_is_refused() {
    refuse_all(|side| {
        let email = side.email("ada");
        let twice = format!(r#"{{"email_or_phone":"{email}","password":"one","password":"two"}}"#);
        let form = format!("email_or_phone={email}&password=one&password=two");
        let form = Request::new("POST", LOGIN).body("application/x-www-form-urlencoded", form);
        vec![
            Refused::new("JSON", raw(twice), 400, &["parse_error", "validation_error"]),
            Refused::new("form", form, 400, &["parse_error", "validation_error"]),
        ]
    });
}

#[test]
fn unknown_keys_are_ignored() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let body = json!({ "email_or_phone": account.email, "password": PASSWORD, "extra": { "a": [1, null] }, "": 1 });
        assert_eq!(side.post("auth/login/", &body).status, 200);
    });
}

#[test]
fn a_form_is_taken_as_well_as_json() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let form = Request::new("POST", LOGIN).form(&[("email_or_phone", &account.email), ("password", PASSWORD)]);
        assert_eq!(side.send(&form).status, 200);
        let wrong = Request::new("POST", LOGIN).form(&[("email_or_phone", &account.email), ("password", "wrong")]);
        let answer = side.send(&wrong);
        side.refused(&answer, 401, "invalid_credentials");
        let answer = side.send(&Request::new("POST", LOGIN).form(&[]));
        side.refused(&answer, 400, "validation_error");
    });
}

#[test]
fn a_field_that_is_missing_null_empty_or_of_another_type_is_named() {
    refuse_all(|side| {
        let email = side.email("ada");
        vec![
            Refused::new("missing", post(&json!({ "email_or_phone": email })), 400, VALIDATION).field("password"),
            Refused::new("missing too", post(&json!({ "password": "x" })), 400, VALIDATION).field("email_or_phone"),
            Refused::new("null", post(&json!({ "email_or_phone": email, "password": null })), 400, VALIDATION)
                .field("password"),
            Refused::new("empty", post(&json!({ "email_or_phone": email, "password": "" })), 400, VALIDATION)
                .field("password"),
            Refused::new("a list", post(&json!({ "email_or_phone": email, "password": ["x"] })), 400, VALIDATION)
                .field("password"),
            Refused::new("an object", post(&json!({ "email_or_phone": { "a": 1 }, "password": "x" })), 400, VALIDATION)
                .field("email_or_phone"),
            Refused::new("a bool", post(&json!({ "email_or_phone": email, "password": true })), 400, VALIDATION)
                .field("password"),
            Refused::new("a NUL", post(&json!({ "email_or_phone": email, "password": "a\0b" })), 400, VALIDATION)
                .field("password"),
            Refused::new(
                "a NUL in front",
                post(&json!({ "email_or_phone": format!("\0{email}"), "password": "x" })),
                400,
                VALIDATION,
            )
            .field("email_or_phone"),
        ]
    });
}

#[test]
fn every_field_at_fault_is_named_at_once() {
    for_each_world(ORDINARY, |side| {
        let answer = side.post("auth/login/", &json!({}));
        assert!(crate::has_sentences(&answer, "email_or_phone") && crate::has_sentences(&answer, "password"));
    });
}

#[test]
fn a_head_request_gets_the_headers_without_a_body() {
    for_each_world(ORDINARY, |side| {
        let answer = side.send(&Request::new("HEAD", "/health/live"));
        assert!(answer.body.is_empty());
        assert!([200, 405].contains(&answer.status), "{}", answer.status);
    });
}

#[test]
fn odd_requests_are_answered_alike_and_never_by_a_failure_of_the_server() {
    for_each_world(ORDINARY, |side| {
        let form = |body: &[u8]| Request::new("POST", LOGIN).body("application/x-www-form-urlencoded", body);
        let me = || Request::get("/api/{v}/auth/me/");
        let mut requests = vec![
            Request::new("POST", LOGIN),
            Request::new("POST", LOGIN).bytes("{}"),
            Request::new("POST", LOGIN).bytes("x=y"),
            Request::new("POST", LOGIN).header("Content-Type", "text/plain"),
            Request::new("POST", LOGIN).header("Content-Type", "application/json").body("text/plain", "{}"),
            Request::new("POST", LOGIN).body("application/json", b"\xef\xbb\xbf{}".to_vec()),
            Request::new("POST", LOGIN).body("application/json; charset=latin-1", "{}"),
            Request::new("POST", LOGIN).body("application/json; charset=\"utf-8\"; x=y", "{}"),
            Request::new("POST", LOGIN).body("", "{}"),
            Request::new("POST", LOGIN).body("application/json", "{}").header("Content-Encoding", "gzip"),
            Request::new("POST", &format!("{LOGIN}?password=x&format=xml")).json(&json!({})),
            Request::new("POST", &format!("{LOGIN}?")).json(&json!({})),
            Request::new("GET", LOGIN).json(&json!({})),
            post(&json!({})).header("Accept", "text/html"),
            post(&json!({})).header("Accept", "application/xml;q=1"),
            post(&json!({})).header("X-HTTP-Method-Override", "DELETE"),
            post(&json!({})).header("X-Request-ID", "one").header("X-Request-ID", "two"),
            post(&json!({ "email_or_phone": 1e300, "password": -1 })),
            post(&json!({ "email_or_phone": 12345678901234567890_u64, "password": 1.5 })),
            raw(r#"{"email_or_phone":"a@example.com","password":1e999}"#),
            raw(r#"{"email_or_phone":"a@example.com","password":123456789012345678901234567890}"#),
            raw(r#"{"x":1,"x":2}"#),
            raw(r#"{"x":"\ud800"}"#),
            raw(r#" {"a":{"b":{"c":[[[[[[]]]]]]}}} "#),
            raw("{}\n"),
            raw("{}\0"),
            raw(r#"{"\u0000":1}"#),
            raw(r#"{"pass\u0077ord":"x","email_or_phone":"a@example.com","password":"y"}"#),
            raw(r#"{"Password":"x","EMAIL_OR_PHONE":"a@example.com"}"#),
            form(b"email_or_phone=%ff%fe&password=x"),
            form(b"email_or_phone=%zz&password=%"),
            form(b"email_or_phone=a%00@example.com&password=x"),
            form(b"&&=&email_or_phone&password"),
            form(b"email_or_phone=a+b@example.com&password=x;y"),
            form(b"email_or_phone[]=a@example.com&password[x]=1"),
            form(b"\xff\xfe"),
            me().header("Authorization", "Bearer a").header("Authorization", "Bearer b"),
            me().header("Authorization", ""),
            me().header("Authorization", b"Bearer \xff\xfe"),
            me().header("Authorization", "Bearer eyJhbGciOiJub25lIn0.e30."),
            me().header("Cookie", "a=b").header("Cookie", "c=d"),
            me().header("Cookie", b"=;=;;\xff"),
            me().json(&json!({ "a": 1 })),
            Request::new("OPTIONS", LOGIN),
            Request::new("OPTIONS", "/nothing/"),
            Request::new("HEAD", LOGIN),
            Request::new("TRACE", LOGIN),
            Request::new("QUERY", LOGIN),
        ];
        requests.extend(
            [
                "/api/{v}/auth/login;x=1/",
                "/api/{v}/auth/login//",
                "/api/{v}/auth/login/?",
                "/api/{v}/auth/%00/",
                "/api/{v}/auth/%ff/",
                "/api/{v}/auth/login%20/",
                "/api/{v}/auth/./login/",
                "/%61pi/{v}/auth/login/",
                "/api/{v}/auth%2flogin/",
                "/?/",
                "//",
                "/api/{other}/",
                "/api/{other}",
                "/api/{other}/nothing/",
                "/api/v10/auth/login/",
                "/auth/",
                "/auth/me/",
                "/health/",
                "/health/ready?x=y",
                "/%e2%80%a8/",
                "/api/{v}/profile/me/x",
            ]
            .map(Request::get),
        );
        for request in requests {
            let answer = side.send(&request);
            assert!(answer.status < 500, "{} {}: {}", request.method, request.path, answer.shown());
            // A head that is refused before it is understood gets a bare answer.
            if answer.status >= 400 && !answer.body.is_empty() {
                assert_eq!(answer.at("success"), json!(false), "{} {}", request.method, request.path);
            }
        }
    });
}
