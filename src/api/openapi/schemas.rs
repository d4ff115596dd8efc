//! JSON schemas of the document: how a request's fields are written down, and the shapes that answers have.

use serde_json::{Map, Value, json};

use crate::services::login_events::WAYS_IN as LOGIN_ACTIONS;

/// A field of a request body.
pub struct Field {
    /// As it stands in the body.
    pub name: &'static str,
    /// Its schema in JSON.
    pub schema: Value,
    /// Whether the request is refused without it.
    pub is_required: bool,
}

impl Field {
    const fn new(name: &'static str, schema: Value) -> Self {
        Self { name, schema, is_required: false }
    }

    /// The same, and the request is refused without it, or when it is blank.
    pub fn required(self) -> Self {
        let mut field = Self { is_required: true, ..self };
        if takes_text(&field.schema) && field.schema.get("enum").is_none() {
            field.set("pattern", json!(r"\S"));
        }
        field
    }

    /// The same, and null means that it is not given.
    pub fn nullable(mut self) -> Self {
        if let Some(Value::Array(types)) = self.schema.get_mut("type") {
            types.push(json!("null"));
        }
        if let Some(Value::Array(values)) = self.schema.get_mut("enum") {
            values.push(Value::Null);
        }
        self
    }

    /// The same with at most so many characters.
    pub fn at_most(mut self, characters: usize) -> Self {
        self.set("maxLength", json!(characters));
        self
    }

    /// The same in a form that Swagger UI hides.
    pub fn password(mut self) -> Self {
        self.set("format", json!("password"));
        self
    }

    /// The same in the form that a regular expression describes.
    pub fn pattern(mut self, pattern: &str) -> Self {
        self.set("pattern", json!(pattern));
        self
    }

    fn set(&mut self, key: &str, value: Value) {
        if let Some(schema) = self.schema.as_object_mut() {
            schema.insert(key.to_owned(), value);
        }
    }
}

fn takes_text(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_array).is_some_and(|types| types.contains(&json!("string")))
}

/// A field of text. A number is taken as it is written, and outer white space does not count, as in Django REST
/// framework.
pub fn text(name: &'static str, description: &str) -> Field {
    Field::new(name, json!({ "type": ["string", "number"], "description": description }))
}

/// A field that is taken as it stands.
pub fn exact(name: &'static str, description: &str) -> Field {
    Field::new(name, json!({ "type": ["string"], "description": description }))
}

/// A field that takes one of these words.
pub fn word(name: &'static str, description: &str, words: &[&str]) -> Field {
    Field::new(name, json!({ "enum": words, "description": description }))
}

/// A switch.
pub fn flag(name: &'static str, description: &str) -> Field {
    let words = [true, false].map(Value::Bool).into_iter();
    let words = words.chain(["true", "false", "t", "f", "yes", "no", "y", "n", "on", "off", "1", "0"].map(Value::from));
    let words: Vec<Value> = words.chain([1, 0].map(Value::from)).collect();
    let description = format!("{description} Words are taken in any case.");
    Field::new(name, json!({ "enum": words, "description": description }))
}

/// What the body of a request has to be beyond its fields.
#[derive(Clone, Copy)]
pub enum Rule {
    /// Nothing.
    None,
    /// Exactly one of these fields is given and not blank.
    OneOf(&'static [&'static str]),
    /// The fields of exactly one of these forms are given, and none of the other's.
    Forms([[&'static str; 2]; 2]),
    /// The first field is given, or without it the second.
    Either(&'static str, &'static str),
}

/// The schema of a JSON body.
pub fn json_body(fields: &[Field], rule: Rule) -> Value {
    body(fields.iter().map(|field| (field.name, field.schema.clone(), field.is_required)), rule)
}

/// The schema of a form body, in which every value is text.
pub fn form_body(fields: &[Field], rule: Rule) -> Value {
    body(fields.iter().map(|field| (field.name, as_form(&field.schema), field.is_required)), rule)
}

fn body<'a>(fields: impl Iterator<Item = (&'a str, Value, bool)>, rule: Rule) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (name, schema, is_required) in fields {
        properties.insert(name.to_owned(), schema);
        if is_required {
            required.push(name.to_owned());
        }
    }
    let mut schema = json!({ "type": "object", "properties": properties });
    let set = |schema: &mut Value, key: &str, value: Value| {
        schema.as_object_mut().map(|schema| schema.insert(key.to_owned(), value));
    };
    if !required.is_empty() {
        set(&mut schema, "required", json!(required));
    }
    match rule {
        Rule::None => (),
        Rule::OneOf(names) => {
            let ways: Vec<Value> = names.iter().map(|name| ways_with(&[name], &[])).collect();
            set(&mut schema, "oneOf", json!(ways));
        }
        Rule::Forms([one, other]) => {
            set(&mut schema, "oneOf", json!([ways_with(&one, &other), ways_with(&other, &one)]));
        }
        Rule::Either(first, second) => {
            let second = json!({ "required": [second], "properties": { first: { "type": "null" }, second: given() } });
            set(&mut schema, "anyOf", json!([ways_with(&[first], &[]), second]));
        }
    }
    schema
}

fn given() -> Value {
    json!({ "type": ["string", "number"], "pattern": r"\S" })
}

// These are given, and those are not, or blank.
fn ways_with(these: &[&str], those: &[&str]) -> Value {
    let blank = json!({ "type": ["string", "null"], "pattern": r"^\s*$" });
    let given = these.iter().map(|name| ((*name).to_owned(), given()));
    let properties: Map<String, Value> =
        given.chain(those.iter().map(|name| ((*name).to_owned(), blank.clone()))).collect();
    json!({ "required": these, "properties": properties })
}

fn as_form(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(object) = schema.as_object_mut() {
        object.insert("type".to_owned(), json!("string"));
        if let Some(Value::Array(values)) = object.get_mut("enum") {
            values.retain(Value::is_string);
        }
    }
    schema
}

/// A reference to a named schema.
pub fn named(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Every named schema.
pub fn components() -> Value {
    json!({
        "Meta": object(&[("request_id", json!({
            "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$",
            "description": "The request's `X-Request-ID`, or the one that was made for it; the log has it too."
        }))]),
        "Success": {
            "type": "object",
            "description": "Every success.",
            "required": ["success", "message", "data", "errors", "meta"],
            "properties": {
                "success": { "const": true },
                "message": { "type": "string", "description": "For people; it may change." },
                "data": { "type": ["object", "null"] },
                "errors": { "type": "null" },
                "meta": named("Meta")
            }
        },
        "LegacySuccess": {
            "description": "A success of a path without `/api/`: the keys of `data` stand at the top level too.",
            "allOf": [named("Success")]
        },
        "Failure": {
            "type": "object",
            "description": "Every failure. Branch on `code`, never on `message`.",
            "required": ["success", "message", "data", "errors", "code", "meta"],
            "properties": {
                "success": { "const": false },
                "message": { "type": "string", "description": "For people; it may change." },
                "data": { "type": ["object", "null"] },
                "errors": {
                    "description": "Sentences by the name of the field at fault, or `non_field_errors`.",
                    "oneOf": [named("FieldErrors"), { "type": "null" }]
                },
                "code": { "type": "string", "description": "Stable." },
                "meta": named("Meta")
            }
        },
        "FieldErrors": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": { "type": "array", "minItems": 1, "items": { "type": "string" } }
        },
        "Wait": object(&[("retry_after", json!({ "type": "integer", "minimum": 1, "description": "Seconds." }))]),
        "Role": { "enum": ["client", "vendor", "staff", "admin"] },
        "User": object(&user()),
        "Profile": object(&profile()),
        "LoginData": object(&[
            ("access", token("The access token, for `Authorization: Bearer`.")),
            ("refresh", token("The refresh token; it is set as a cookie too.")),
            ("expires_in", json!({ "type": "integer", "minimum": 1, "description": "Seconds that the access token lives." })),
            ("token_type", json!({ "const": "Bearer" })),
            ("user_id", id()),
            ("role", named("Role")),
            ("identifying_info", json!({ "type": "string", "description": "The e-mail address, else the phone number." })),
            ("is_verified", json!({ "type": "boolean" })),
            ("user", named("User")),
        ]),
        "MfaStep": object(&[
            ("mfa_required", json!({ "const": true })),
            ("mfa_token", json!({ "type": "string", "description": "Stands for this sign-in at mfa/verify, and for nothing else." })),
            ("methods", methods("With what the second factor may be shown. Always both, though no recovery code may be left: the right password alone does not tell.")),
            ("expires_in", json!({ "type": "integer", "minimum": 1, "description": "Seconds that the token is good." })),
        ]),
        "Entered": {
            "description": "A session, or the question for the second factor.",
            "oneOf": [named("LoginData"), named("MfaStep")]
        },
        "MfaState": object(&[
            ("enabled", json!({ "type": "boolean" })),
            ("methods", methods("None when it is off.")),
            ("recovery_codes_left", json!({ "type": "integer", "minimum": 0 })),
        ]),
        "TotpEnrolment": object(&[
            ("secret", json!({ "type": "string", "pattern": "^[A-Z2-7]{32}$", "description": "Base32, for typing." })),
            ("otpauth_uri", json!({ "type": "string", "pattern": "^otpauth://totp/", "description": "For a QR code." })),
            ("expires_in", json!({ "type": "integer", "minimum": 1, "description": "Seconds in which the first code has to be shown." })),
        ]),
        "RecoveryCodes": object(&[("recovery_codes", json!({
            "type": "array",
            "minItems": 1,
            "items": { "type": "string", "pattern": "^[a-z2-7]{4}(-[a-z2-7]{4}){5}$" },
            "description": "Each is good once, in any case and with or without dashes."
        }))]),
        "TokenPair": object(&[
            ("access", token("The next access token.")),
            ("refresh", token("The next refresh token; the one that was sent is spent. It is set as a cookie too.")),
            ("expires_in", json!({ "type": "integer", "minimum": 1, "description": "Seconds that the access token lives." })),
        ]),
        "Registered": object(&[
            ("verification", named("Verification")),
            ("challenge", json!({ "type": "string", "description": "Stands for this registration at verify-otp and resend-otp." })),
        ]),
        "Verification": object(&[
            ("channel", json!({ "enum": ["email", "sms"] })),
            ("destination", json!({ "type": "string", "description": "The masked address or number." })),
            ("expires_in", json!({ "type": "integer", "minimum": 1, "description": "Seconds that the code is valid." })),
        ]),
        "Session": object(&session()),
        "Sessions": list("Session"),
        "LoginEvent": object(&login_event()),
        "LoginEvents": list("LoginEvent"),
        "Revoked": object(&[("revoked", json!({ "type": "integer", "minimum": 0, "description": "Sessions that were ended." }))]),
        "JsonWebKeys": object(&[("keys", json!({
            "type": "array",
            "items": object(&[
                ("kty", json!({ "const": "OKP" })),
                ("crv", json!({ "const": "Ed25519" })),
                ("x", json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{43}$" })),
                ("kid", json!({ "type": "string" })),
                ("use", json!({ "const": "sig" })),
                ("alg", json!({ "const": "EdDSA" })),
            ])
        }))]),
        "Live": object(&[("status", json!({ "const": "ok" }))]),
        "Ready": object(&[("database", json!({ "const": "ok" })), ("store", json!({ "const": "ok" }))]),
        "NotReady": object(&[
            ("database", json!({ "enum": ["ok", "unavailable"] })),
            ("store", json!({ "enum": ["ok", "unavailable"] })),
            ("retry_after", json!({ "type": "integer", "minimum": 1, "description": "Seconds." })),
        ]),
    })
}

// An object with these keys; a later version may have more of them.
fn object(properties: &[(&str, Value)]) -> Value {
    let required: Vec<&str> = properties.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> =
        properties.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

// A list as the contract's §1 has it, of named items.
fn list(item: &str) -> Value {
    object(&[
        ("count", json!({ "type": "integer", "minimum": 0, "description": "Items in all." })),
        ("results", json!({ "type": "array", "items": named(item) })),
        (
            "next",
            json!({ "type": ["string", "null"], "description": "The `cursor` of the next page; null on the last." }),
        ),
    ])
}

fn user() -> Vec<(&'static str, Value)> {
    let text = || json!({ "type": "string" });
    vec![
        ("id", id()),
        ("user_id", id()),
        ("email", json!({ "type": ["string", "null"] })),
        ("phone", json!({ "type": ["string", "null"], "description": "E.164." })),
        ("first_name", text()),
        ("last_name", text()),
        ("role", named("Role")),
        ("auth_provider", json!({ "enum": ["email", "phone", "google"] })),
        ("is_verified", json!({ "type": "boolean" })),
        ("is_staff", json!({ "type": "boolean" })),
        ("avatar", json!({ "type": "string", "description": "An http or https URL, or nothing." })),
        ("pid", json!({ "type": "string", "pattern": "^[a-z]{10}$", "description": "A short public id." })),
        ("date_joined", time()),
        ("last_login", json!({ "type": ["string", "null"], "format": "date-time", "pattern": "Z$" })),
    ]
}

fn profile() -> Vec<(&'static str, Value)> {
    let more = ["bio", "country", "state", "city", "address"].map(|name| (name, json!({ "type": "string" })));
    user().into_iter().chain(more).collect()
}

fn client() -> Vec<(&'static str, Value)> {
    let told = |description: &str| json!({ "type": "string", "description": description });
    vec![
        ("device", told("`desktop`, `mobile` and so on, or nothing.")),
        ("browser", told("Its name, or nothing.")),
        ("os", told("Its name, or nothing.")),
        ("ip", told("An IPv4 or IPv6 address.")),
        ("country", told("By the address, when the installation has a database of places.")),
        ("city", told("By the address, when the installation has a database of places.")),
    ]
}

fn session() -> Vec<(&'static str, Value)> {
    let times = ["created_at", "last_used_at", "expires_at"].map(|name| (name, time()));
    let own =
        [("id", id()), ("is_current", json!({ "type": "boolean", "description": "Whether it is the one that asks." }))];
    own.into_iter().chain(times).chain(client()).collect()
}

fn login_event() -> Vec<(&'static str, Value)> {
    let own = [
        ("id", id()),
        ("at", time()),
        ("action", json!({ "enum": LOGIN_ACTIONS })),
        ("outcome", json!({ "enum": ["success", "failure"] })),
        ("reason", json!({ "type": "string", "description": "Why it failed, one word, or nothing." })),
        (
            "session_id",
            json!({ "type": ["string", "null"], "format": "uuid", "description": "The session that it opened." }),
        ),
    ];
    own.into_iter().chain(client()).collect()
}

fn methods(description: &str) -> Value {
    json!({ "type": "array", "items": { "enum": ["totp", "recovery_code"] }, "description": description })
}

/// An id.
fn id() -> Value {
    json!({ "type": "string", "format": "uuid", "description": "UUIDv7." })
}

/// A moment.
fn time() -> Value {
    json!({ "type": "string", "format": "date-time", "pattern": "Z$" })
}

fn token(description: &str) -> Value {
    json!({ "type": "string", "pattern": r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$", "description": description })
}
