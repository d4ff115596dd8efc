//! Answers made comparable: values that differ by nature are checked for their form and replaced by what they are.

use super::http::{Answer, Request};
use super::tokens::claims_of;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// One request and its comparable answer.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub request: String,
    pub answer: Value,
}

/// Replaces what belongs to one world only: texts (addresses, numbers, ports) and their stand-ins.
pub(super) struct Replacements(Vec<(String, String)>);

impl Replacements {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn add(&mut self, text: &str, stand_in: &str) {
        self.0.push((text.to_owned(), stand_in.to_owned()));
        // What contains another text has to be replaced before it.
        self.0.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    }

    fn apply(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    pub(super) fn exchange(&self, request: &Request, answer: &Answer) -> Exchange {
        // What is asked in a query may be a token.
        let path = request.path.split('?').next().unwrap_or_default();
        let name = self.apply(&format!("{} {path}", request.method));
        let mut headers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (header, value) in &answer.headers {
            let value = match header.as_str() {
                "date" => continue,
                // Its value follows from a body whose tokens and addresses have other lengths elsewhere.
                "content-length" => "<length>".to_owned(),
                "x-request-id" if !is_given(request, value) => request_id(value),
                "retry-after" | "ratelimit-reset" => seconds(value),
                "set-cookie" => self.cookie(value),
                _ => self.apply(value),
            };
            headers.entry(header.clone()).or_default().push(Value::String(value));
        }
        for values in headers.values_mut() {
            values.sort_by_key(Value::to_string);
        }
        let body = match serde_json::from_slice(&answer.body) {
            Ok(body) => {
                check_request_id(answer, &body, &name);
                self.value("", &body)
            }
            // A port's digits may stand anywhere in a long file, and mean nothing there.
            Err(_) if answer.body.len() > 1 << 16 => Value::String(format!("<{:x?}>", Sha256::digest(&answer.body))),
            Err(_) => Value::String(self.apply(&String::from_utf8_lossy(&answer.body))),
        };
        Exchange { request: name, answer: json!({ "status": answer.status, "headers": headers, "body": body }) }
    }

    fn cookie(&self, cookie: &str) -> String {
        let mut parts = cookie.split("; ");
        let pair = parts.next().unwrap_or_default();
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = if name.ends_with("_device") && !value.is_empty() { "<device>" } else { value };
        let mut attributes: Vec<String> = parts
            .map(|part| match part.split_once('=') {
                Some((name, _)) if name.eq_ignore_ascii_case("expires") => "Expires=<date>".to_owned(),
                // It counts down from the moment of issue.
                Some((name, value)) if name.eq_ignore_ascii_case("max-age") && value != "0" => {
                    format!("Max-Age={}", seconds(value))
                }
                _ => part.to_owned(),
            })
            .collect();
        attributes.sort();
        format!("{name}={}; {}", self.text(name, value), attributes.join("; "))
    }

    fn value(&self, key: &str, value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let fields = fields.iter().map(|(key, value)| (key.clone(), self.value(key, value)));
                Value::Object(fields.collect::<Map<_, _>>())
            }
            Value::Array(values) => Value::Array(values.iter().map(|value| self.value(key, value)).collect()),
            Value::String(text) => Value::String(self.text(key, text)),
            Value::Number(number) if key == "retry_after" => Value::String(seconds(&number.to_string())),
            other => other.clone(),
        }
    }

    fn text(&self, key: &str, text: &str) -> String {
        match key {
            "challenge" => {
                assert!(!text.is_empty(), "an empty challenge");
                return "<challenge>".to_owned();
            }
            "mfa_token" | "secret" | "otpauth_uri" | "recovery_codes" => {
                assert!(!text.is_empty(), "an empty {key}");
                return format!("<{key}>");
            }
            "destination" => {
                assert!(text.contains('*') || text.contains('•'), "a destination that is not masked: {text}");
                return "<destination>".to_owned();
            }
            "pid" => {
                let letters = text.len() == 10 && text.bytes().all(|letter| letter.is_ascii_lowercase());
                assert!(letters, "a pid is ten lower-case letters: {text}");
                return "<pid>".to_owned();
            }
            "next" => {
                let letters = text.bytes().all(|letter| letter.is_ascii_alphanumeric() || b"_-".contains(&letter));
                assert!(letters && !text.is_empty(), "a cursor that a query cannot hold: {text}");
                return "<cursor>".to_owned();
            }
            "request_id" => return "<request id>".to_owned(),
            _ => {}
        }
        if let Ok(id) = uuid::Uuid::parse_str(text) {
            assert_eq!(id.get_version_num(), 7, "{key} is a UUID of another version: {text}");
            assert_eq!(text, id.to_string(), "{key} is a UUID in another spelling");
            return "<uuid>".to_owned();
        }
        if looks_like_time(text) {
            assert!(text.ends_with('Z'), "{key} is a time without Z: {text}");
            assert!(OffsetDateTime::parse(text, &Rfc3339).is_ok(), "{key} is no RFC 3339 time: {text}");
            return "<time>".to_owned();
        }
        if text.starts_with("eyJ") {
            let claims = claims_of(text).unwrap_or_else(|| panic!("{key} is no token of three parts: {text}"));
            let jti = claims.claims.get("jti").and_then(Value::as_str).unwrap_or_default();
            let hexadecimal = jti.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit));
            assert!(jti.len() == 32 && hexadecimal, "a jti is 32 hexadecimal digits: {jti}");
            let names: Vec<_> = claims.claims.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
            let kind = claims.claims.get("token_type").and_then(Value::as_str).unwrap_or_default();
            let algorithm = claims.header.get("alg").and_then(Value::as_str).unwrap_or_default();
            return format!("<{algorithm} {kind} token: {}>", names.join(" "));
        }
        self.apply(text)
    }
}

fn is_given(request: &Request, value: &str) -> bool {
    request
        .headers
        .iter()
        .any(|(name, given)| name.eq_ignore_ascii_case("x-request-id") && given.as_slice() == value.as_bytes())
}

fn request_id(value: &str) -> String {
    let allowed = value.bytes().all(|letter| letter.is_ascii_alphanumeric() || b"._-".contains(&letter));
    assert!(allowed && (1..=64).contains(&value.len()), "a request id of another form: {value}");
    "<request id>".to_owned()
}

fn seconds(value: &str) -> String {
    assert!(value.parse::<u32>().is_ok_and(|seconds| seconds >= 1), "no whole number of seconds: {value}");
    "<seconds>".to_owned()
}

fn looks_like_time(text: &str) -> bool {
    let pattern = b"0000-00-00T00:00";
    text.len() > pattern.len()
        && text.bytes().zip(pattern).all(
            |(found, wanted)| {
                if *wanted == b'0' { found.is_ascii_digit() } else { found == *wanted }
            },
        )
}

/// Every envelope carries the request id of the header (contract, section 1).
fn check_request_id(answer: &Answer, body: &Value, name: &str) {
    if let Some(id) = body.get("meta").and_then(|meta| meta.get("request_id")) {
        assert_eq!(id.as_str(), answer.header("x-request-id"), "{name}: the request id of the body and of the header");
    }
}

/// The first exchange in which two stories differ, shown for a reader.
pub fn first_difference(one: &[Exchange], other: &[Exchange]) -> Option<String> {
    for (number, (left, right)) in one.iter().zip(other).enumerate() {
        if left.request != right.request {
            return Some(format!("request {number}: {} / {}", left.request, right.request));
        }
        let mut lines = Vec::new();
        differences("", &left.answer, &right.answer, &mut lines);
        if !lines.is_empty() {
            return Some(format!("request {number}, {}:\n  {}", left.request, lines.join("\n  ")));
        }
    }
    (one.len() != other.len()).then(|| format!("{} requests / {} requests", one.len(), other.len()))
}

fn differences(path: &str, left: &Value, right: &Value, lines: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            let mut keys: Vec<_> = left.keys().chain(right.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let null = Value::String("<absent>".to_owned());
                differences(
                    &format!("{path}/{key}"),
                    left.get(key).unwrap_or(&null),
                    right.get(key).unwrap_or(&null),
                    lines,
                );
            }
        }
        _ if left == right => {}
        _ => lines.push(format!("{path}: {left} / {right}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &Value) -> Answer {
        Answer { status: 200, headers: Vec::new(), body: body.to_string().into_bytes() }
    }

    #[test]
    fn values_that_differ_by_nature_compare_equal_and_others_do_not() {
        let mut left = Replacements::new();
        left.add("a@one.example", "<email>");
        let mut right = Replacements::new();
        right.add("a@two.example", "<email>");
        let request = Request::get("/x");
        let one = left.exchange(&request, &answer(&json!({
            "email": "a@one.example", "id": "01890a5d-ac96-774b-bcce-b302099a8057", "at": "2026-01-02T03:04:05Z", "n": 1
        })));
        let other = right.exchange(&request, &answer(&json!({
            "email": "a@two.example", "id": "01890a5d-ac96-774b-bcce-b302099a8058", "at": "2026-01-02T03:04:06.5Z", "n": 2
        })));
        let difference = first_difference(&[one], &[other]).expect("n differs");
        assert!(difference.ends_with("/body/n: 1 / 2"), "{difference}");
        assert_eq!(difference.lines().count(), 2, "{difference}");
    }

    #[test]
    #[should_panic(expected = "another version")]
    fn an_id_of_another_version_is_found() {
        let body = json!({ "id": "550e8400-e29b-41d4-a716-446655440000" });
        Replacements::new().exchange(&Request::get("/x"), &answer(&body));
    }

    #[test]
    #[should_panic(expected = "without Z")]
    fn a_time_with_an_offset_is_found() {
        let body = json!({ "at": "2026-01-02T03:04:05+00:00" });
        Replacements::new().exchange(&Request::get("/x"), &answer(&body));
    }
}
