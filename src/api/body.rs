//! Reads a body into fields: JSON objects and form bodies, as Django REST framework accepts them.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::services::{
    fields::{NON_FIELD, field_error},
    problem::Problem,
};

/// A body's fields in the order they came, keys perhaps repeated.
pub type Fields = Vec<(String, Value)>;

// More fields than any request has; each costs memory.
const MOST_FIELDS: usize = 256;

/// Reads the fields of a body.
///
/// # Errors
/// 415 for another media type or character set, 400 `parse_error` for what is malformed, 400
/// `validation_error` for a JSON value that is no object.
pub fn fields(content_type: Option<&str>, body: &[u8]) -> Result<Fields, Problem> {
    if body.is_empty() {
        return Ok(Fields::new());
    }
    match media_type(content_type)? {
        MediaType::Json => json(body),
        MediaType::Form => pairs(body),
    }
}

enum MediaType {
    Json,
    Form,
}

fn media_type(content_type: Option<&str>) -> Result<MediaType, Problem> {
    let unsupported = Problem::new(415, "unsupported_media_type", "Send JSON (application/json) in UTF-8.");
    let mut parts = content_type.unwrap_or_default().split(';').map(str::trim);
    let kind = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "application/json" => MediaType::Json,
        "application/x-www-form-urlencoded" => MediaType::Form,
        _ => return Err(unsupported),
    };
    for parameter in parts.filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim().trim_matches('"');
        if name.trim().eq_ignore_ascii_case("charset") && !value.eq_ignore_ascii_case("utf-8") {
            return Err(unsupported);
        }
    }
    Ok(kind)
}

fn json(body: &[u8]) -> Result<Fields, Problem> {
    let malformed = |error: serde_json::Error| {
        let (line, column) = (error.line(), error.column());
        Problem::parse(format!("The body is not valid JSON (line {line}, column {column})."))
    };
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'{') {
        serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(malformed)?;
        return Err(Problem::invalid(field_error(NON_FIELD, "Invalid data. Expected an object.")));
    }
    let Pairs(fields) = serde_json::from_slice(body).map_err(malformed)?;
    bounded(fields)
}

/// Reads the pairs of a form body or of a query.
///
/// # Errors
/// 400 `parse_error` when there are too many.
pub fn pairs(body: &[u8]) -> Result<Fields, Problem> {
    let pairs = form_urlencoded::parse(body).take(MOST_FIELDS + 1);
    bounded(pairs.map(|(name, value)| (name.into_owned(), Value::String(value.into_owned()))).collect())
}

fn bounded(fields: Fields) -> Result<Fields, Problem> {
    if fields.len() > MOST_FIELDS { Err(Problem::parse("The body has too many fields.")) } else { Ok(fields) }
}

// An object with every pair kept: a map would silently take the last of two equal keys.
struct Pairs(Fields);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EveryPair;

        impl<'de> Visitor<'de> for EveryPair {
            type Value = Pairs;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut fields = Fields::new();
                while let Some(pair) = map.next_entry()? {
                    if fields.len() <= MOST_FIELDS {
                        fields.push(pair);
                    }
                }
                Ok(Pairs(fields))
            }
        }

        deserializer.deserialize_map(EveryPair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(content_type: &str, body: &[u8]) -> &'static str {
        fields(Some(content_type), body).map_or_else(|problem| problem.code, |_| "ok")
    }

    #[test]
    fn json_and_forms_are_read_and_nothing_else() {
        assert_eq!(code("application/json", b"{}"), "ok");
        assert_eq!(code("Application/JSON; charset=UTF-8", b" {\"a\": 1} "), "ok");
        assert_eq!(code("application/x-www-form-urlencoded", b"a=1&b=%20"), "ok");
        assert_eq!(code("application/json; charset=latin-1", b"{}"), "unsupported_media_type");
        assert_eq!(code("multipart/form-data; boundary=x", b"--x"), "unsupported_media_type");
        assert_eq!(code("", b"{}"), "unsupported_media_type");
        assert_eq!(code("text/xml", b""), "ok");
    }

    #[test]
    fn what_is_malformed_is_a_parse_error() {
        for body in ["{", "{\"a\"}", "nonsense", "{} {}", "{\"a\": \"\\ud800\"}", "\u{feff}{}"] {
            assert_eq!(code("application/json", body.as_bytes()), "parse_error", "{body}");
        }
        assert_eq!(code("application/json", b"{\"a\": \"\xff\"}"), "parse_error");
        assert_eq!(code("application/json", &b"[".repeat(60_000)), "parse_error");
        assert_eq!(code("application/json", format!("{{\"a\":{}}}", "[".repeat(60_000)).as_bytes()), "parse_error");
        assert_eq!(code("application/x-www-form-urlencoded", &b"a&".repeat(300)), "parse_error");
    }

    #[test]
    fn only_an_object_has_fields() {
        for body in ["[]", "[{\"a\": 1}]", "\"a\"", "1", "null", "true"] {
            assert_eq!(code("application/json", body.as_bytes()), "validation_error", "{body}");
        }
    }

    #[test]
    fn repeated_keys_are_kept() {
        assert_eq!(fields(Some("application/json"), br#"{"a":1,"a":2}"#).unwrap().len(), 2);
    }
}
