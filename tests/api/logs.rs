//! One JSON record per request, and nothing a client sends can forge another.

use crate::ORDINARY;
use crate::support::{Request, eventually, for_each_world, unique};
use serde_json::{Value, json};
use std::time::Duration;

/// Every record of the log; a line that is no JSON object fails the test.
fn records(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}")))
        .inspect(|record: &Value| assert!(record.is_object(), "{record}"))
        .collect()
}

/// The value of the first key with one of these names, at any depth.
fn find<'a>(record: &'a Value, names: &[&str]) -> Option<&'a Value> {
    match record {
        Value::Object(fields) => fields
            .iter()
            .find(|(key, _)| names.contains(&key.as_str()))
            .map(|(_, value)| value)
            .or_else(|| fields.values().find_map(|value| find(value, names))),
        Value::Array(values) => values.iter().find_map(|value| find(value, names)),
        _ => None,
    }
}

fn record_of(log: impl Fn() -> String, id: &str) -> Value {
    eventually(&format!("a record of the request {id}"), Duration::from_secs(5), || {
        let log = log();
        let whole = log.get(..log.rfind('\n')?)?;
        let mut of_request: Vec<_> = records(whole)
            .into_iter()
            .filter(|record| find(record, &["request_id"]) == Some(&json!(id)) && find(record, &["status"]).is_some())
            .collect();
        assert!(of_request.len() < 2, "more than one record: {of_request:?}");
        of_request.pop()
    })
}

#[test]
fn every_request_has_one_record_that_says_who_what_and_how_long() {
    for_each_world(ORDINARY, |side| {
        for (request, status) in [
            (Request::get("/health/live"), 200),
            (Request::post("/api/{v}/auth/login/", &json!({})), 400),
            (Request::get("/api/{v}/auth/me/"), 401),
            (Request::get("/api/{v}/nothing/"), 404),
            (Request::get("/api/{v}/auth/login/"), 405),
        ] {
            let id = format!("log-{}", unique());
            side.send_apart(&request.header("X-Request-ID", &id));
            let record = record_of(|| side.gateway.log(), &id);
            assert_eq!(find(&record, &["status"]), Some(&json!(status)), "{record}");
            assert_eq!(find(&record, &["engine"]), Some(&json!(side.engine.kind())), "{record}");
            assert!(find(&record, &["operation", "op"]).is_some_and(Value::is_string), "{record}");
            let duration = find(&record, &["duration_ms", "duration_us", "duration", "elapsed_ms", "latency_ms"]);
            assert!(duration.is_some(), "{record}");
            let client = find(&record, &["client", "client_address", "client_ip", "ip", "address", "peer"]);
            assert_eq!(client, Some(&json!("127.0.0.1")), "{record}");
        }
    });
}

#[test]
fn what_a_client_sends_stays_inside_its_record() {
    for_each_world(ORDINARY, |side| {
        let forged = r#"{"level":"INFO","message":"forged-record"}"#;
        let agent = format!("a\u{2028}b\u{85}c\t{forged}");
        let email = format!("x\r\n{forged}\u{1b}[31m\u{2028}@example.com");
        let id = format!("log-{}", unique());
        let body = json!({ "email_or_phone": email, "password": format!("x\n{forged}") });
        let path = "/api/{v}/auth/login/?a=%0d%0a%1b%5b31m%e2%80%a8";
        side.send_apart(&Request::post(path, &body).header("User-Agent", agent).header("X-Request-ID", &id));
        record_of(|| side.gateway.log(), &id);
        for request in [
            Request::get("/no%0d%0a%1b%5b31m%e2%80%a8/").header("X-Request-ID", format!("bad\u{2028}{forged}")),
            Request::get("/no/").header("User-Agent", b"\x1b[31mred\x07"),
            Request::get("/no/").header("Cookie", forged).header("X-Forwarded-For", format!("1.2.3.4{forged}")),
        ] {
            let _ = crate::support::Client::new(side.engine.address(side.gateway)).try_send(&request);
        }
        crate::support::pause(Duration::from_millis(100));
        let log = side.gateway.log();
        for record in records(&log) {
            assert_ne!(find(&record, &["message"]), Some(&json!("forged-record")), "{record}");
        }
        for control in ['\u{1b}', '\r', '\u{7}', '\u{2028}', '\u{85}'] {
            assert!(!log.contains(control), "the log has a bare {}", control.escape_unicode());
        }
    });
}
