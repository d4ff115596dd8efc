//! The OpenAPI 3.1 document of each version, made from the one table of routes (contract §1, §2).

pub mod examples;
pub mod operations;
pub mod schemas;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use self::{
    operations::{
        Answer, Body, Description, Failure, OF_BEARERS, OF_BODIES, OF_EVERY, OF_KEYS, OF_LIMITS, OF_STORES, Tag,
    },
    schemas::named,
};
use super::{
    docs,
    routes::{Operation, ROUTES, Route, Scope, Version},
};
use crate::services::{limits::Class, pages};

const ABOUT: &str = "\
Every JSON answer has the same envelope: `success`, `message`, `data`, `errors`, `meta`, and on failures `code`. \
Branch on `code`, never on `message`.

A path answers the same with and without its trailing slash, and a GET route answers HEAD too. Bodies are JSON in \
UTF-8 or forms, at most 64 KiB; unknown keys are ignored, and a known key given twice is a `parse_error`. An empty \
body is an empty object. An unknown path is 404 `not_found`; another method of a known path is 405 \
`method_not_allowed` with `Allow`.

A request whose head is malformed, too long or too slow gets 400, 431 or 408 with no body, and the connection is \
closed.";

const LEGACY: (&str, &str) =
    ("legacy", "The paths of older clients. An answer repeats the keys of `data` beside the envelope.");

/// The document of one version. `public_url` is the address under which clients reach the gateway.
pub fn document(version: Version, public_url: &str) -> Value {
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES {
        let (method, operation) = (route.method.to_ascii_lowercase(), operation(version, route));
        paths.entry(path(version, route)).or_default().insert(method, operation);
    }
    let tags = Tag::ALL.map(Tag::text).into_iter().chain([LEGACY]);
    let tags: Vec<Value> = tags.map(|(name, text)| json!({ "name": name, "description": text })).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "bifrons",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Sign-up, sign-in, tokens and sessions.",
            "description": ABOUT,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" }
        },
        "servers": servers(public_url),
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas::components(),
            "parameters": parameters(),
            "headers": headers(),
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "The access token." },
                "refreshCookie": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": cookie_name(public_url),
                    "description": "The refresh token as sign-ins set it. From a browser it is accepted with an allowed `Origin` only."
                }
            }
        }
    })
}

// Where the document itself was read from comes first: it is an engine that serves this version.
fn servers(public_url: &str) -> Value {
    let url = url::Url::parse(public_url).ok();
    let path = url.as_ref().map_or("", |url| url.path().trim_end_matches('/'));
    let here = json!({ "url": if path.is_empty() { "/" } else { path }, "description": "This host." });
    let public =
        json!({ "url": public_url.trim_end_matches('/'), "description": "The installation's public address." });
    match url {
        Some(url) if url.scheme() == "https" => json!([here, public]),
        _ => json!([here]),
    }
}

fn cookie_name(public_url: &str) -> &'static str {
    crate::api::edge::cookie_name(public_url.starts_with("https:"))
}

/// A route's path as the document spells it: with a trailing slash, but for files and health.
pub fn path(version: Version, route: &Route) -> String {
    let is_file = route.path.rsplit('/').next().is_some_and(|name| name.contains('.') || name == "{file}");
    let slash = if is_file || route.scope == Scope::Bare { "" } else { "/" };
    match route.scope {
        Scope::Versioned => format!("/api/{}{}{slash}", version.word(), route.path),
        Scope::Legacy | Scope::Bare => format!("{}{slash}", route.path),
    }
}

fn operation(version: Version, route: &Route) -> Value {
    let it = operations::describe(route.operation);
    let is_legacy = route.scope == Scope::Legacy;
    let tag = if is_legacy { LEGACY.0 } else { it.tag.text().0 };
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": it.summary,
        "tags": [tag],
        "parameters": path_parameters(route).chain(own_parameters(route.operation)).collect::<Vec<_>>(),
        "security": security(route.operation),
        "responses": responses(route, &it)
    });
    let Some(object) = operation.as_object_mut() else { return operation };
    if !it.text.is_empty() {
        object.insert("description".to_owned(), it.text.into());
    }
    if is_legacy {
        let is_successor = |other: &&Route| other.scope == Scope::Versioned && other.operation == route.operation;
        let successor = ROUTES.iter().find(is_successor).map(|other| path(version, other));
        object.insert("deprecated".to_owned(), true.into());
        object.insert("x-successor".to_owned(), successor.into());
    }
    if let Some(body) = &it.body {
        object.insert("requestBody".to_owned(), request_body(body));
    }
    operation
}

fn operation_id(route: &Route) -> String {
    let prefix = if route.scope == Scope::Legacy { "legacy_" } else { "" };
    let words: Vec<&str> =
        route.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    format!("{prefix}{}_{}", route.method.to_ascii_lowercase(), words.join("_"))
}

fn security(operation: Operation) -> Value {
    match operation {
        Operation::RefreshToken => json!([{}, { "refreshCookie": [] }]),
        _ if operation.needs_bearer() => json!([{ "bearer": [] }]),
        _ => json!([]),
    }
}

fn path_parameters(route: &Route) -> impl Iterator<Item = Value> {
    let names = route.path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| {
        let schema = match name {
            "file" => json!({ "enum": docs::FILES }),
            "id" => json!({ "type": "string", "format": "uuid" }),
            _ => json!({ "type": "string", "minLength": 1 }),
        };
        json!({ "name": name, "in": "path", "required": true, "schema": schema })
    })
}

fn own_parameters(operation: Operation) -> Vec<Value> {
    let named = |name: &str| json!({ "$ref": format!("#/components/parameters/{name}") });
    let mut parameters = vec![named("RequestId")];
    if operation.takes_idempotency_key() {
        parameters.push(named("IdempotencyKey"));
    }
    if is_list(operation) {
        parameters.extend([named("Limit"), named("Cursor")]);
    }
    parameters
}

const fn is_list(operation: Operation) -> bool {
    matches!(operation, Operation::Sessions | Operation::LoginEvents)
}

fn request_body(body: &Body) -> Value {
    let examples: Map<String, Value> =
        body.examples.iter().map(|(name, value)| ((*name).to_owned(), json!({ "value": value }))).collect();
    // A form has words only.
    let is_form = |example: &Value| example.as_object().is_some_and(|fields| fields.values().all(Value::is_string));
    let form_examples: Map<String, Value> = examples
        .iter()
        .filter(|(_, example)| example.get("value").is_some_and(is_form))
        .map(|(name, example)| (name.clone(), example.clone()))
        .collect();
    json!({
        "required": body.is_required,
        "content": {
            "application/json": { "schema": schemas::json_body(&body.fields, body.rule), "examples": examples },
            "application/x-www-form-urlencoded": {
                "schema": schemas::form_body(&body.fields, body.rule),
                "examples": form_examples
            }
        }
    })
}

/// Everything that an operation may fail with.
pub fn failures(operation: Operation, it: &Description) -> Vec<Failure> {
    let mut all = OF_EVERY.to_vec();
    if it.body.is_some() {
        all.extend(OF_BODIES);
    }
    if operation.needs_bearer() {
        all.extend(OF_BEARERS);
    }
    if operation.class() != Class::Free {
        all.extend([OF_LIMITS, OF_STORES]);
    }
    if operation.takes_idempotency_key() {
        all.extend(OF_KEYS);
    }
    all.extend(&it.failures);
    let mut known = Vec::new();
    all.retain(|failure| {
        let is_new = !known.contains(&(failure.code, failure.data));
        known.push((failure.code, failure.data));
        is_new
    });
    all
}

fn responses(route: &Route, it: &Description) -> Value {
    let mut responses = BTreeMap::new();
    let (status, response) = success(&it.answer, route);
    responses.insert(status, response);
    if let Some(also) = operations::also(route.operation) {
        let (status, response) = success(&also, route);
        responses.insert(status, response);
    }
    let mut by_status: BTreeMap<u16, Vec<Failure>> = BTreeMap::new();
    for failure in failures(route.operation, it) {
        by_status.entry(failure.status).or_default().push(failure);
    }
    for (status, failures) in by_status {
        responses.insert(status.to_string(), refusal(status, &failures, route.operation));
    }
    json!(responses)
}

fn header(name: &str) -> Value {
    json!({ "$ref": format!("#/components/headers/{name}") })
}

// What stands in every answer of an operation.
fn own_headers(operation: Operation) -> Map<String, Value> {
    let limits = ["RateLimit-Policy", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"];
    let limits = limits.into_iter().filter(|_| operation.class() != Class::Free);
    ["X-Request-ID"].into_iter().chain(limits).map(|name| (name.to_owned(), header(name))).collect()
}

fn success(answer: &Answer, route: &Route) -> (String, Value) {
    let is_legacy = route.scope == Scope::Legacy;
    let mut headers = own_headers(route.operation);
    if route.operation.takes_idempotency_key() {
        headers.insert("Idempotent-Replay".to_owned(), header("Idempotent-Replay"));
    }
    match answer {
        Answer::Envelope { status, message, data, sets_cookie } => {
            if *sets_cookie {
                headers.insert("Set-Cookie".to_owned(), header("Set-Cookie"));
            }
            let (name, example) = data.clone().unzip();
            let schema = success_schema(name, is_legacy);
            let example = success_example(message, example.unwrap_or_default(), is_legacy);
            let content = json!({ "application/json": { "schema": schema, "example": example } });
            (status.to_string(), json!({ "description": message, "headers": headers, "content": content }))
        }
        Answer::Plain { content_types, text, schema, example } => {
            let described = json!({ "schema": schema, "example": example });
            let content: Map<String, Value> =
                content_types.iter().map(|kind| ((*kind).to_owned(), described.clone())).collect();
            ("200".to_owned(), json!({ "description": text, "headers": headers, "content": content }))
        }
    }
}

fn success_schema(data: Option<&str>, is_legacy: bool) -> Value {
    let envelope = named(if is_legacy { "LegacySuccess" } else { "Success" });
    let with = |data: Value| json!({ "properties": { "data": data } });
    match data {
        None => json!({ "allOf": [envelope, with(json!({ "type": "null" }))] }),
        Some(name) if is_legacy => json!({ "allOf": [envelope, with(named(name)), named(name)] }),
        Some(name) => json!({ "allOf": [envelope, with(named(name))] }),
    }
}

fn success_example(message: &str, data: Value, is_legacy: bool) -> Value {
    let mut example = if is_legacy { data.as_object().cloned().unwrap_or_default() } else { Map::new() };
    let meta = json!({ "request_id": examples::REQUEST_ID });
    let envelope = [("success", true.into()), ("message", message.into()), ("data", data), ("errors", Value::Null)];
    for (key, value) in envelope.into_iter().chain([("meta", meta)]) {
        example.insert(key.to_owned(), value);
    }
    Value::Object(example)
}

fn refusal(status: u16, failures: &[Failure], operation: Operation) -> Value {
    let mut codes: Vec<&str> = failures.iter().map(|failure| failure.code).collect();
    codes.dedup();
    let described: Vec<String> = failures.iter().map(|it| format!("`{}`: {}", it.code, it.message)).collect();
    let data: Vec<Value> = failures.iter().map(data_schema).fold(Vec::new(), |mut unique, schema| {
        if !unique.contains(&schema) {
            unique.push(schema);
        }
        unique
    });
    let data = match data.as_slice() {
        [one] => one.clone(),
        several => json!({ "anyOf": several }),
    };
    let mut headers = own_headers(operation);
    if status == 401 {
        headers.insert("WWW-Authenticate".to_owned(), header("WWW-Authenticate"));
    }
    if failures.iter().any(Failure::has_wait) {
        let name = if failures.iter().all(Failure::has_wait) { "Retry-After" } else { "Retry-After-If-Waiting" };
        headers.insert("Retry-After".to_owned(), header(name));
    }
    let mut examples = Map::new();
    for failure in failures {
        let is_second = examples.contains_key(failure.code);
        let name = if is_second { format!("{}_wait", failure.code) } else { failure.code.to_owned() };
        examples.insert(name, json!({ "value": failure_example(failure) }));
    }
    let properties = json!({ "code": { "enum": codes }, "data": data });
    json!({
        "description": described.join("  \n"),
        "headers": headers,
        "content": { "application/json": {
            "schema": { "allOf": [named("Failure"), { "properties": properties }] },
            "examples": examples
        } }
    })
}

fn data_schema(failure: &Failure) -> Value {
    failure.data.map_or_else(|| json!({ "type": "null" }), named)
}

fn failure_example(failure: &Failure) -> Value {
    let data = match failure.data {
        Some("NotReady") => json!({ "database": "unavailable", "store": "ok", "retry_after": 1 }),
        Some(_) => json!({ "retry_after": 42 }),
        None => Value::Null,
    };
    let errors = failure.field.map(|(field, sentence)| json!({ field: [sentence] }));
    json!({
        "success": false,
        "message": failure.message,
        "data": data,
        "errors": errors,
        "code": failure.code,
        "meta": { "request_id": examples::REQUEST_ID }
    })
}

fn parameters() -> Value {
    json!({
        "RequestId": {
            "name": "X-Request-ID",
            "in": "header",
            "description": "1 to 64 characters of `A-Z a-z 0-9 . _ -` are echoed and logged; anything else is replaced.",
            "schema": { "type": "string" },
            "example": examples::REQUEST_ID
        },
        "IdempotencyKey": {
            "name": "X-Idempotency-Key",
            "in": "header",
            "description": "Makes it safe to send the request again: for 24 hours the same key with the same body gets \
                the first answer, and with another body 409. A refused request does not use its key up.",
            "schema": { "type": "string", "pattern": "^[!-~]{1,128}$" }
        },
        "Limit": {
            "name": "limit",
            "in": "query",
            "description": "Results at most.",
            "schema": { "type": "integer", "minimum": 1, "maximum": pages::MOST, "default": pages::USUAL },
            "example": 20
        },
        "Cursor": {
            "name": "cursor",
            "in": "query",
            "description": "The `next` of the page before.",
            "schema": { "type": "string", "pattern": "^[A-Za-z0-9_-]{32}$" }
        }
    })
}

fn headers() -> Value {
    let optional = |schema: Value, description: &str| json!({ "schema": schema, "description": description });
    let required =
        |schema: Value, description: &str| json!({ "required": true, "schema": schema, "description": description });
    let count = || json!({ "type": "integer", "minimum": 0 });
    let seconds = || json!({ "type": "integer", "minimum": 1 });
    json!({
        "X-Request-ID": required(json!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$" }), "As in `meta.request_id`."),
        "Set-Cookie": optional(json!({ "type": "string" }), "Sets or removes the refresh cookie, or sets the cookie by which the device is known. Absent where the `Origin` is none of the allowed ones."),
        "WWW-Authenticate": required(json!({ "const": "Bearer" }), "Always `Bearer`."),
        "Retry-After": required(seconds(), "Seconds, as in `data.retry_after`."),
        "Retry-After-If-Waiting": optional(seconds(), "Seconds, as in `data.retry_after`, when there is one."),
        "RateLimit-Policy": optional(json!({ "type": "string", "pattern": "^[0-9]+;w=[0-9]+(, [0-9]+;w=[0-9]+)*$" }), "The limits that the request was counted against: requests; seconds."),
        "RateLimit-Limit": optional(count(), "Requests that the limit with the least left allows."),
        "RateLimit-Remaining": optional(count(), "Requests that it would admit now."),
        "RateLimit-Reset": optional(count(), "Seconds until its window ends."),
        "Idempotent-Replay": optional(json!({ "const": "true" }), "The answer is that of an earlier request with the same key.")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::{
        Deserialize, Deserializer,
        de::{Visitor, value::Error},
        forward_to_deserialize_any,
    };

    use super::*;
    use crate::services::{
        change_mfa::ChangeMfa,
        change_password::ChangePassword,
        confirm_reset::{ConfirmReset, ConfirmResetByLink, ConfirmResetByPhone},
        enrol_totp::{BeginTotp, ConfirmTotp},
        google::Google,
        login::Login,
        logout::Logout,
        pages::PageQuery,
        profile::UpdateProfile,
        refresh::Refresh,
        register::Register,
        request_reset::RequestReset,
        resend_otp::ResendOtp,
        verify_mfa::VerifyMfa,
        verify_otp::VerifyOtp,
        verify_token::VerifyToken,
    };

    /// Learns which fields a request reads, and gives none of them.
    struct FieldNames<'a>(&'a mut Vec<&'static str>);

    impl<'de> Deserializer<'de> for FieldNames<'_> {
        type Error = Error;

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Error> {
            self.0.extend(fields);
            Err(serde::de::Error::custom("no fields"))
        }

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(serde::de::Error::custom("no struct"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    fn fields_of<'de, T: Deserialize<'de>>() -> BTreeSet<&'static str> {
        let mut names = Vec::new();
        assert!(T::deserialize(FieldNames(&mut names)).is_err());
        assert!(!names.is_empty());
        names.into_iter().collect()
    }

    // What the code reads of an operation's body.
    fn read_by(operation: Operation) -> Option<BTreeSet<&'static str>> {
        match operation {
            Operation::Register => Some(fields_of::<Register>()),
            Operation::VerifyOtp => Some(fields_of::<VerifyOtp>()),
            Operation::ResendOtp => Some(fields_of::<ResendOtp>()),
            Operation::Login => Some(fields_of::<Login>()),
            Operation::Google => Some(fields_of::<Google>()),
            Operation::VerifyMfa => Some(fields_of::<VerifyMfa>()),
            Operation::BeginTotp => Some(fields_of::<BeginTotp>()),
            Operation::ConfirmTotp => Some(fields_of::<ConfirmTotp>()),
            Operation::ReplaceRecoveryCodes | Operation::DisableMfa => Some(fields_of::<ChangeMfa>()),
            Operation::RefreshToken => Some(fields_of::<Refresh>()),
            Operation::VerifyToken => Some(fields_of::<VerifyToken>()),
            Operation::Logout => Some(fields_of::<Logout>()),
            Operation::UpdateMe => Some(fields_of::<UpdateProfile>()),
            Operation::RequestReset => Some(fields_of::<RequestReset>()),
            Operation::ConfirmReset => Some(fields_of::<ConfirmReset>()),
            Operation::ConfirmResetByLink => Some(fields_of::<ConfirmResetByLink>()),
            Operation::ConfirmResetByPhone => Some(fields_of::<ConfirmResetByPhone>()),
            Operation::ChangePassword => Some(fields_of::<ChangePassword>()),
            Operation::Me
            | Operation::Mfa
            | Operation::Sessions
            | Operation::RevokeSession
            | Operation::RevokeOtherSessions
            | Operation::LoginEvents
            | Operation::JsonWebKeys
            | Operation::Live
            | Operation::Ready
            | Operation::OpenApi
            | Operation::Docs
            | Operation::DocsFile => None,
        }
    }

    fn documents() -> [Value; 2] {
        [Version::V1, Version::V2].map(|version| document(version, "https://id.example.org"))
    }

    fn operations(document: &Value) -> Vec<(String, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        paths
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().iter().map(move |(method, it)| (format!("{method} {path}"), it))
            })
            .collect()
    }

    // The schema as one that can be compiled by itself.
    fn with_components(document: &Value, schema: &Value) -> jsonschema::Validator {
        let mut schema = schema.clone();
        schema["components"] = document["components"].clone();
        jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
    }

    #[test]
    fn every_body_is_documented_as_the_code_reads_it() {
        for route in ROUTES {
            let described = operations::describe(route.operation).body;
            let described = described.map(|body| body.fields.iter().map(|field| field.name).collect::<BTreeSet<_>>());
            assert_eq!(described, read_by(route.operation), "{:?}", route.operation);
        }
    }

    #[test]
    fn lists_are_documented_with_the_query_that_they_read() {
        let parameters = parameters();
        let in_query = parameters.as_object().unwrap().values().filter(|parameter| parameter["in"] == "query");
        let names: BTreeSet<&str> = in_query.map(|parameter| parameter["name"].as_str().unwrap()).collect();
        assert_eq!(names, fields_of::<PageQuery>());
    }

    #[test]
    fn every_example_is_what_its_schema_says() {
        for document in documents() {
            for (name, operation) in operations(&document) {
                let responses = operation["responses"].as_object().unwrap().values();
                let mut contents: Vec<&Value> = responses.map(|response| &response["content"]).collect();
                contents.extend(operation.get("requestBody").map(|body| &body["content"]));
                for (kind, content) in contents.into_iter().flat_map(|content| content.as_object().unwrap()) {
                    let validator = with_components(&document, &content["schema"]);
                    let several = content["examples"].as_object().into_iter().flat_map(Map::values);
                    let examples: Vec<&Value> =
                        several.map(|example| &example["value"]).chain(content.get("example")).collect();
                    assert!(!examples.is_empty(), "{name}: no example of {kind}");
                    for example in examples {
                        let errors: Vec<String> =
                            validator.iter_errors(example).map(|error| error.to_string()).collect();
                        assert!(errors.is_empty(), "{name}: {example}: {errors:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_operation_is_told_apart_and_described() {
        for document in documents() {
            let mut ids = BTreeSet::new();
            for (name, operation) in operations(&document) {
                assert!(ids.insert(operation["operationId"].to_string()), "{name}: its id stands twice");
                assert!(!operation["summary"].as_str().unwrap().is_empty(), "{name}");
                let tag = &operation["tags"][0];
                let tags = document["tags"].as_array().unwrap();
                assert!(tags.iter().any(|known| &known["name"] == tag), "{name}: {tag}");
                assert_eq!(operation["deprecated"] == true, tag == "legacy", "{name}");
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let header = response["headers"]["Retry-After"]["$ref"].as_str();
                    let always = header.is_some_and(|reference| reference.ends_with("/Retry-After"));
                    assert_eq!(always, matches!(status.as_str(), "429" | "503"), "{name}: {status}");
                }
            }
            assert_eq!(ids.len(), ROUTES.len());
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
            match value {
                Value::Object(object) => {
                    found.extend(object.get("$ref").and_then(Value::as_str));
                    object.values().for_each(|value| references(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                _ => (),
            }
        }
        let [document, _] = documents();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for reference in &found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        for kind in ["schemas", "parameters", "headers"] {
            for name in document["components"][kind].as_object().unwrap().keys() {
                assert!(found.contains(format!("#/components/{kind}/{name}").as_str()), "{kind}/{name} is not used");
            }
        }
    }

    #[test]
    fn the_two_versions_differ_in_their_paths_only() {
        let [one, two] = documents().map(|document| document.to_string());
        assert_eq!(one.replace("/api/v1/", "/api/v2/"), two);
        assert_ne!(one, two);
    }

    #[test]
    fn the_first_server_is_the_host_that_was_asked() {
        let urls = |public_url| document(Version::V1, public_url)["servers"].clone();
        assert_eq!(urls("http://127.0.0.1:8002/")[0]["url"], "/");
        assert_eq!(urls("http://127.0.0.1:8002/").as_array().unwrap().len(), 1);
        assert_eq!(urls("https://example.org/id/")[0]["url"], "/id");
        assert_eq!(urls("https://example.org/id/")[1]["url"], "https://example.org/id");
    }
}
