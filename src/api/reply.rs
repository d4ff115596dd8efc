//! The envelope of every response, and the headers around it (contract §1).

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Call, Edge,
    routes::{self, Version},
    views::{LoginData, ProfileView},
};
use crate::services::{
    fields::FieldErrors, model::User, problem::Problem, ready::Readiness, register::Registered, session::SignedIn,
    tokens::Pair,
};

/// What an operation answers when it was done.
pub struct Success {
    status: u16,
    message: &'static str,
    data: Value,
    cookie: Option<String>,
}

/// A response, ready for an engine to send.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Fields beside `Content-Length` and `Date`.
    pub headers: Vec<(&'static str, String)>,
    /// JSON, or nothing for 204.
    pub body: Vec<u8>,
    /// The connection cannot be used again: its body was not read, or its framing is in doubt.
    pub closes: bool,
}

impl Success {
    fn new(status: u16, message: &'static str, data: impl Serialize) -> Self {
        Self { status, message, data: serde_json::to_value(data).unwrap_or_default(), cookie: None }
    }

    /// Somebody signed in.
    pub fn signed_in(edge: &Edge, message: &'static str, signed_in: &SignedIn) -> Self {
        let cookie = Some(cookie(edge, &signed_in.tokens));
        Self { cookie, ..Self::new(200, message, LoginData::new(signed_in)) }
    }

    /// A code was sent, or it looks so.
    pub fn registered(registered: &Registered) -> Self {
        Self::new(201, "Registration received. Please enter the code that was sent to you.", registered)
    }

    /// A code was sent again, or it looks so.
    pub fn code_sent() -> Self {
        Self::new(200, "If an account waits for verification, a new code has been sent.", ())
    }

    /// The next pair of tokens.
    pub fn refreshed(edge: &Edge, pair: &Pair) -> Self {
        let Pair { access, refresh, expires_in, .. } = pair;
        let data = json!({ "access": access, "refresh": refresh, "expires_in": expires_in });
        Self { cookie: Some(cookie(edge, pair)), ..Self::new(200, "Token refreshed.", data) }
    }

    /// The token is good.
    pub fn token_valid() -> Self {
        Self::new(200, "The token is valid.", ())
    }

    /// The session is ended.
    pub fn logged_out(edge: &Edge) -> Self {
        Self { cookie: Some(edge.refresh_cookie(None)), ..Self::new(200, "Logged out.", ()) }
    }

    /// The signed-in user.
    pub fn profile(message: &'static str, user: &User) -> Self {
        Self::new(200, message, ProfileView::new(user))
    }

    /// The process runs.
    pub fn live() -> Self {
        Self::new(200, "The service is running.", json!({ "status": "ok" }))
    }

    /// The process can serve.
    ///
    /// # Errors
    /// 503 when it cannot.
    pub fn ready(readiness: &Readiness) -> Result<Self, Problem> {
        let data = serde_json::to_value(readiness).unwrap_or_default();
        if readiness.is_ready() {
            return Ok(Self::new(200, "The service is ready.", data));
        }
        let problem = Problem::new(503, "service_unavailable", "The service is not ready.");
        Err(Problem { data: Some(data), ..problem.after(std::time::Duration::from_secs(1)) })
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    success: bool,
    message: &'a str,
    data: &'a Value,
    errors: Option<&'a FieldErrors>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    meta: Meta<'a>,
    #[serde(flatten)]
    repeated: Map<String, Value>,
}

#[derive(Serialize)]
struct Meta<'a> {
    request_id: &'a str,
}

impl Reply {
    /// Puts an operation's outcome into the envelope.
    pub fn new(edge: &Edge, call: &Call, is_legacy: bool, outcome: Result<Success, Problem>) -> Self {
        match outcome {
            Ok(success) => Self::success(edge, call, is_legacy, success),
            Err(problem) => Self::problem(edge, call, &problem),
        }
    }

    fn success(edge: &Edge, call: &Call, is_legacy: bool, success: Success) -> Self {
        let mut repeated = Map::new();
        if let (true, Value::Object(data)) = (is_legacy, &success.data) {
            const OWN: [&str; 6] = ["success", "message", "data", "errors", "code", "meta"];
            repeated = data.clone();
            repeated.retain(|key, _| !OWN.contains(&key.as_str()));
        }
        let body = Envelope {
            success: true,
            message: success.message,
            data: &success.data,
            errors: None,
            code: None,
            meta: Meta { request_id: &call.caller.request_id },
            repeated,
        };
        let mut reply = Self::json(edge, call, success.status, &body);
        reply.headers.extend(success.cookie.map(|cookie| ("Set-Cookie", cookie)));
        reply
    }

    /// A refusal without an envelope, as the servers themselves refuse a malformed head.
    pub const fn bare(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), closes: true }
    }

    /// A refusal.
    pub fn problem(edge: &Edge, call: &Call, problem: &Problem) -> Self {
        let mut data = problem.data.clone().unwrap_or_default();
        if let Some(seconds) = problem.retry_after {
            let mut object = data.as_object().cloned().unwrap_or_default();
            object.insert("retry_after".to_owned(), seconds.into());
            data = Value::Object(object);
        }
        let body = Envelope {
            success: false,
            message: &message(edge, call, problem),
            data: &data,
            errors: problem.errors.as_ref(),
            code: Some(problem.code),
            meta: Meta { request_id: &call.caller.request_id },
            repeated: Map::new(),
        };
        let mut reply = Self::json(edge, call, problem.status, &body);
        reply.closes = call.has_unread_body();
        if problem.status == 401 {
            reply.headers.push(("WWW-Authenticate", "Bearer".to_owned()));
        }
        reply.headers.extend(problem.retry_after.map(|seconds| ("Retry-After", seconds.to_string())));
        reply.headers.extend(problem.allow.clone().map(|allow| ("Allow", allow)));
        reply
    }

    /// What a path can do, for OPTIONS and CORS pre-flights.
    pub fn options(edge: &Edge, call: &Call) -> Self {
        let methods = routes::methods(call.version, &call.path);
        let mut headers = common(edge, call);
        if call.is_preflight() && call.origin.as_deref().is_some_and(|origin| edge.allows_origin(origin)) {
            headers.push(("Access-Control-Allow-Methods", methods.clone()));
            let allowed = "Authorization, Content-Type, X-Request-ID";
            headers.push(("Access-Control-Allow-Headers", allowed.to_owned()));
            headers.push(("Access-Control-Max-Age", "600".to_owned()));
        }
        headers.push(("Allow", methods));
        Self { status: 204, headers, body: Vec::new(), closes: call.has_unread_body() }
    }

    fn json(edge: &Edge, call: &Call, status: u16, body: &Envelope<'_>) -> Self {
        let mut headers = common(edge, call);
        headers.push(("Content-Type", "application/json".to_owned()));
        Self { status, headers, body: serde_json::to_vec(body).unwrap_or_default(), closes: false }
    }
}

fn common(edge: &Edge, call: &Call) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("X-Request-ID", call.caller.request_id.clone()),
        // Answers hold tokens and personal data (RFC 6749 §5.1).
        ("Cache-Control", "no-store".to_owned()),
        ("X-Content-Type-Options", "nosniff".to_owned()),
        ("Vary", "Origin".to_owned()),
    ];
    if let Some(origin) = call.origin.as_deref().filter(|origin| edge.allows_origin(origin)) {
        headers.push(("Access-Control-Allow-Origin", origin.to_owned()));
        headers.push(("Access-Control-Allow-Credentials", "true".to_owned()));
        headers.push(("Access-Control-Expose-Headers", "X-Request-ID, Retry-After".to_owned()));
    }
    headers
}

fn cookie(edge: &Edge, pair: &Pair) -> String {
    let seconds = (pair.refresh_expires_at - crate::system::now()).whole_seconds().max(0);
    edge.refresh_cookie(Some((&pair.refresh, seconds)))
}

// Only here is it known where the other engine listens.
fn message(edge: &Edge, call: &Call, problem: &Problem) -> String {
    let other = match call.version {
        Version::V1 => Version::V2,
        Version::V2 => Version::V1,
    };
    let asks_other = problem.status == 404 && call.path.starts_with(&format!("/api/{}/", other.word()));
    match edge.port(other) {
        Some(port) if asks_other => format!("/api/{}/ is served on port {port}.", other.word()),
        _ => problem.message.to_string(),
    }
}
