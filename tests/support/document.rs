//! Whatever a gateway answers is what its OpenAPI document says: each answer is looked up by path, method and status
//! and validated, headers included.

use super::gateway::run_alone;
use super::http::{Answer, Request};
use super::worlds::Engine;
use jsonschema::Validator;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

/// What a binary prints as the document of this version.
pub fn document(engine: Engine) -> &'static Value {
    static V1: LazyLock<Value> = LazyLock::new(|| printed("v1"));
    static V2: LazyLock<Value> = LazyLock::new(|| printed("v2"));
    match engine {
        Engine::V1 => &V1,
        Engine::V2 => &V2,
    }
}

fn printed(version: &str) -> Value {
    let outcome = run_alone(&[], &["openapi", version], "");
    assert!(outcome.status.success(), "bifrons openapi {version}: {}", outcome.errors);
    serde_json::from_str(&outcome.output).expect("a JSON document")
}

/// Panics when the document does not say that this request may be answered so.
pub fn check(engine: Engine, request: &Request, answer: &Answer) {
    if let Err(reason) = judge(engine, request, answer) {
        let Request { method, path, .. } = request;
        panic!("{method} {path}, not as the {} document says: {reason}\n{}", engine.name(), answer.shown());
    }
}

/// Says what in an answer is not as the document says.
pub fn judge(engine: Engine, request: &Request, answer: &Answer) -> Result<(), String> {
    let document = document(engine);
    if is_bare(answer) {
        return Ok(());
    }
    let path = path_of(&request.path);
    let method = if request.method == "HEAD" { "GET" } else { &request.method };
    let Some((template, methods)) = find(document, path) else {
        return general(document, answer, 404, "not_found");
    };
    if method == "OPTIONS" {
        let has_allow = answer.header("allow").is_some();
        return match (answer.status, answer.body.is_empty()) {
            (204, true) if has_allow => Ok(()),
            _ => Err("OPTIONS of a known path is 204 with Allow and no body".to_owned()),
        };
    }
    let Some(operation) = methods.get(method.to_ascii_lowercase()) else {
        if answer.header("allow").is_none() {
            return Err("405 without Allow".to_owned());
        }
        return general(document, answer, 405, "method_not_allowed");
    };
    let Some(response) = operation["responses"].get(answer.status.to_string()) else {
        return Err(format!("status {} is not documented", answer.status));
    };
    check_headers(document, response, answer)?;
    let content = response["content"].as_object().ok_or("no content is documented")?;
    let kind = media_type(answer)?;
    let Some(described) = content.get(kind) else { return Err(format!("{kind} is not documented")) };
    if request.method == "HEAD" || !(kind == "application/json" || kind.ends_with("+json")) {
        return Ok(());
    }
    let key = format!("{} {method} {template} {}", engine.name(), answer.status);
    validate(key, document, &described["schema"], answer)
}

// The server's own refusal of a head that it does not understand: before any path is looked at.
fn is_bare(answer: &Answer) -> bool {
    matches!(answer.status, 400 | 408 | 431)
        && answer.body.is_empty()
        && answer.header("content-type").is_none()
        && answer.header("x-request-id").is_none()
}

fn path_of(target: &str) -> &str {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    // A target in absolute form (RFC 9112, 3.2.2) names a host first.
    let rest = path.strip_prefix("http://").or_else(|| path.strip_prefix("https://"));
    let path = rest.map_or(path, |rest| rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"));
    path.strip_suffix('/').unwrap_or(path)
}

/// The path of the document that fits, one without parameters first.
fn find<'a>(document: &'a Value, path: &str) -> Option<(&'a str, &'a Value)> {
    let paths = document["paths"].as_object()?;
    let mut fitting: Vec<_> = paths.iter().filter(|(template, _)| fits(path_of(template), path)).collect();
    fitting.sort_by_key(|(template, _)| template.matches('{').count());
    fitting.first().map(|(template, methods)| (template.as_str(), *methods))
}

fn fits(template: &str, path: &str) -> bool {
    let (wanted, given) = (template.split('/'), path.split('/'));
    wanted.clone().count() == given.clone().count()
        && wanted.zip(given).all(|(wanted, given)| wanted == given || (wanted.starts_with('{') && !given.is_empty()))
}

fn media_type(answer: &Answer) -> Result<&str, String> {
    let value = answer.header("content-type").ok_or("no Content-Type")?;
    Ok(value.split(';').next().unwrap_or_default().trim())
}

/// A failure that no operation answers.
fn general(document: &Value, answer: &Answer, status: u16, code: &str) -> Result<(), String> {
    if answer.status != status {
        return Err(format!("a path or method that is not documented is {status}"));
    }
    if answer.body.is_empty() {
        return Ok(());
    }
    let schema = json!({ "allOf": [
        { "$ref": "#/components/schemas/Failure" },
        { "properties": { "code": { "const": code }, "data": { "type": "null" } } }
    ] });
    validate(code.to_owned(), document, &schema, answer)
}

fn check_headers(document: &Value, response: &Value, answer: &Answer) -> Result<(), String> {
    for (name, header) in response["headers"].as_object().into_iter().flatten() {
        let header = resolved(document, header);
        let Some(value) = answer.header(name) else {
            if header["required"] == true {
                return Err(format!("no {name}"));
            }
            continue;
        };
        let number = value.parse::<i64>().map(Value::from);
        let is_integer = header.pointer("/schema/type").is_some_and(|kind| kind == "integer");
        let value = if is_integer { number.unwrap_or_default() } else { value.into() };
        let schema = header.get("schema").unwrap_or(&Value::Null);
        let validator = jsonschema::validator_for(schema).map_err(|error| error.to_string())?;
        validator.validate(&value).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(reference) => {
            document.pointer(reference.trim_start_matches('#')).expect("a reference that leads somewhere")
        }
        None => value,
    }
}

fn validate(key: String, document: &Value, schema: &Value, answer: &Answer) -> Result<(), String> {
    static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);
    let validator = {
        let mut validators = VALIDATORS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let made = || Arc::new(compiled(document, schema));
        Arc::clone(validators.entry(key).or_insert_with(made))
    };
    let body: Value = serde_json::from_slice(&answer.body).map_err(|error| format!("no JSON: {error}"))?;
    let errors: Vec<String> =
        validator.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// A client must expect more fields than are documented, but here each has to be.
fn compiled(document: &Value, schema: &Value) -> Validator {
    let closed = closed(&inlined(document, schema), true);
    jsonschema::options().should_validate_formats(true).build(&closed).expect("a schema that compiles")
}

fn inlined(document: &Value, value: &Value) -> Value {
    match value {
        Value::Object(_) if value.get("$ref").is_some() => inlined(document, resolved(document, value)),
        Value::Object(object) => {
            let inner = object.iter().map(|(key, value)| (key.clone(), inlined(document, value)));
            Value::Object(inner.collect::<Map<_, _>>())
        }
        Value::Array(values) => Value::Array(values.iter().map(|value| inlined(document, value)).collect()),
        other => other.clone(),
    }
}

/// Forbids what is not described; a part of an `allOf` does not describe all.
fn closed(schema: &Value, is_whole: bool) -> Value {
    let Value::Object(object) = schema else { return schema.clone() };
    let mut result = Map::new();
    for (key, value) in object {
        let value = match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                let inner = properties.iter().map(|(name, schema)| (name.clone(), closed(schema, true)));
                Value::Object(inner.collect())
            }
            ("allOf", Value::Array(parts)) => parts.iter().map(|part| closed(part, false)).collect(),
            ("oneOf" | "anyOf", Value::Array(ways)) => ways.iter().map(|way| closed(way, is_whole)).collect(),
            ("items", item) => closed(item, true),
            _ => value.clone(),
        };
        result.insert(key.clone(), value);
    }
    let describes = object.contains_key("properties") || object.contains_key("allOf");
    if is_whole && describes && !object.contains_key("additionalProperties") {
        result.insert("unevaluatedProperties".to_owned(), Value::Bool(false));
    }
    Value::Object(result)
}
