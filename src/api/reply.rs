//! The envelope of every response, and the headers around it (contract §1).

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Call, Edge,
    routes::{self, Version},
    views::{ListView, LoginData, LoginEventView, MfaStep, ProfileView, SessionView},
};
use crate::services::{
    change_mfa::MfaState,
    enrol_totp::Enrolment,
    fields::FieldErrors,
    google::ByGoogle,
    idempotency::Kept,
    limits::Standing,
    model::{LoginEvent, Session, SessionId, User},
    pages::Shown,
    problem::Problem,
    ready::Readiness,
    register::Registered,
    second_factor::Entered,
    session::SignedIn,
    tokens::Pair,
};

/// What an operation answers when it was done.
pub struct Success {
    status: u16,
    message: Cow<'static, str>,
    data: Value,
    cookies: Vec<String>,
    is_replay: bool,
    // Sent as it is, without the envelope.
    document: Option<Document>,
}

/// Something to send as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Document {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Whether others may keep it for a while.
    pub is_cacheable: bool,
    /// More header fields.
    pub headers: Vec<(&'static str, String)>,
    /// The bytes.
    pub body: Cow<'static, [u8]>,
}

/// What an operation came to, and how the client stands with its limits.
pub struct Handled {
    /// Success or problem.
    pub outcome: Result<Success, Problem>,
    /// After this request.
    pub standing: Option<Standing>,
}

impl Handled {
    /// Of an operation whose limits are told by its problem, if by anything.
    pub fn new(standing: Option<Standing>, outcome: Result<Success, Problem>) -> Self {
        Self { outcome, standing }
    }
}

/// A response, ready for an engine to send.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Fields beside `Content-Length` and `Date`.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// JSON, a document, or nothing for 204.
    pub body: Cow<'static, [u8]>,
    /// The connection cannot be used again: its body was not read, or its framing is in doubt.
    pub closes: bool,
}

impl Success {
    fn new(status: u16, message: &'static str, data: impl Serialize) -> Self {
        let data = serde_json::to_value(data).unwrap_or_default();
        let message = Cow::Borrowed(message);
        Self { status, message, data, cookies: Vec::new(), is_replay: false, document: None }
    }

    /// Something that is sent as it is.
    pub fn document(document: Document) -> Self {
        Self { document: Some(document), ..Self::new(200, "", ()) }
    }

    /// What is kept for an idempotency key. Only answers without cookies are, and none of them holds
    /// a token.
    pub fn kept(&self) -> Option<Kept> {
        let Self { status, message, data, cookies, .. } = self;
        let is_plain = cookies.is_empty() && self.document.is_none();
        is_plain.then(|| Kept { status: *status, message: message.to_string(), data: data.clone() })
    }

    /// The answer of the first time, again.
    pub fn replayed(kept: Kept) -> Self {
        let Kept { status, message, data } = kept;
        Self { status, message: message.into(), data, is_replay: true, ..Self::new(status, "", ()) }
    }

    /// Somebody signed in.
    pub fn signed_in(edge: &Edge, message: &'static str, signed_in: &SignedIn) -> Self {
        let cookies = vec![cookie(edge, &signed_in.tokens), edge.device_cookie(&signed_in.device)];
        Self { cookies, ..Self::new(200, message, LoginData::new(signed_in)) }
    }

    /// Somebody signed in with Google.
    pub fn entered_by_google(edge: &Edge, by_google: &ByGoogle) -> Self {
        match by_google.is_new {
            true => Self { status: 201, ..Self::entered(edge, "Account created successfully.", &by_google.entered) },
            false => Self::entered(edge, "Login successful.", &by_google.entered),
        }
    }

    /// Somebody signed in, or has to show their second factor first: then no cookie is set.
    pub fn entered(edge: &Edge, message: &'static str, entered: &Entered) -> Self {
        match entered {
            Entered::SignedIn(signed_in) => Self::signed_in(edge, message, signed_in),
            Entered::SecondFactor(challenge) => {
                Self::new(200, "Enter the code of your second factor.", MfaStep::new(challenge))
            }
        }
    }

    /// The signed-in user's second factor.
    pub fn mfa_state(state: &MfaState) -> Self {
        Self::new(200, "Your second factor.", state)
    }

    /// A secret waits for its first code.
    pub fn totp_begun(enrolment: &Enrolment) -> Self {
        Self::new(200, "Add the secret to your authenticator and enter the code that it shows.", enrolment)
    }

    /// The second factor is on.
    pub fn mfa_enabled(codes: &[String]) -> Self {
        let message = "Your second factor is on. Keep the recovery codes: they are shown only once.";
        Self::new(200, message, json!({ "recovery_codes": codes }))
    }

    /// There are new recovery codes.
    pub fn recovery_codes(codes: &[String]) -> Self {
        let message = "Your new recovery codes. Keep them: they are shown only once.";
        Self::new(200, message, json!({ "recovery_codes": codes }))
    }

    /// The second factor is off.
    pub fn mfa_disabled() -> Self {
        Self::new(200, "Your second factor is off. All other sessions were ended.", ())
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
        Self { cookies: vec![cookie(edge, pair)], ..Self::new(200, "Token refreshed.", data) }
    }

    /// The token is good.
    pub fn token_valid() -> Self {
        Self::new(200, "The token is valid.", ())
    }

    /// The session is ended.
    pub fn logged_out(edge: &Edge) -> Self {
        Self { cookies: vec![edge.refresh_cookie(None)], ..Self::new(200, "Logged out.", ()) }
    }

    /// The signed-in user.
    pub fn profile(message: &'static str, user: &User) -> Self {
        Self::new(200, message, ProfileView::new(user))
    }

    /// A link or code was sent, or it looks so.
    pub fn reset_requested() -> Self {
        Self::new(200, "If there is such an account, instructions to set a new password have been sent.", ())
    }

    /// The password is another one; nobody is signed in by that.
    pub fn password_reset() -> Self {
        Self::new(200, "Your password was changed. Please sign in with the new one.", ())
    }

    /// The password is another one, and the session goes on.
    pub fn password_changed(edge: &Edge, device: &str) -> Self {
        let cookies = vec![edge.device_cookie(device)];
        Self { cookies, ..Self::new(200, "Your password was changed. All other sessions were ended.", ()) }
    }

    /// The signed-in user's sessions.
    pub fn sessions(shown: &Shown<Session>, current: SessionId) -> Self {
        let view = |session| SessionView::new(session, current);
        Self::new(200, "Your sessions.", ListView::new(shown, view))
    }

    /// The signed-in user's sign-ins.
    pub fn login_events(shown: &Shown<LoginEvent>) -> Self {
        Self::new(200, "Your sign-ins.", ListView::new(shown, LoginEventView::new))
    }

    /// A session is ended.
    pub fn session_revoked() -> Self {
        Self::new(200, "The session was ended.", ())
    }

    /// Every other session is ended.
    pub fn others_revoked(count: usize) -> Self {
        Self::new(200, "All other sessions were ended.", json!({ "revoked": count }))
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
    pub fn new(edge: &Edge, call: &Call, is_legacy: bool, handled: Handled) -> Self {
        let Handled { outcome, standing } = handled;
        let mut reply = match outcome {
            Ok(success) => Self::success(edge, call, is_legacy, success),
            // A limit that refused says more than one that was passed before it.
            Err(problem) if problem.standing.is_some() => return Self::problem(edge, call, &problem),
            Err(problem) => Self::problem(edge, call, &problem),
        };
        reply.headers.extend(standing.iter().flat_map(limit_headers));
        reply
    }

    fn success(edge: &Edge, call: &Call, is_legacy: bool, success: Success) -> Self {
        if let Some(document) = success.document {
            return Self::document(edge, call, document);
        }
        let mut repeated = Map::new();
        if let (true, Value::Object(data)) = (is_legacy, &success.data) {
            const OWN: [&str; 6] = ["success", "message", "data", "errors", "code", "meta"];
            repeated = data.clone();
            repeated.retain(|key, _| !OWN.contains(&key.as_str()));
        }
        let body = Envelope {
            success: true,
            message: &success.message,
            data: &success.data,
            errors: None,
            code: None,
            meta: Meta { request_id: &call.caller.request_id },
            repeated,
        };
        let mut reply = Self::json(edge, call, success.status, &body);
        // A form on a stranger's page must not sign its visitor in as somebody else (login CSRF).
        if edge.allows_cookie_from(call.origin.as_deref()) {
            reply.headers.extend(success.cookies.into_iter().map(|cookie| ("Set-Cookie", cookie.into())));
        }
        if success.is_replay {
            reply.headers.push(("Idempotent-Replay", "true".into()));
        }
        reply
    }

    fn document(edge: &Edge, call: &Call, document: Document) -> Self {
        let Document { content_type, is_cacheable, headers: more, body } = document;
        let mut headers = common(edge, call);
        if is_cacheable {
            headers.retain(|(name, _)| *name != "Cache-Control");
            headers.push(("Cache-Control", "public, max-age=300".into()));
        }
        headers.push(("Content-Type", content_type.into()));
        headers.extend(more.into_iter().map(|(name, value)| (name, value.into())));
        Self { status: 200, headers, body, closes: false }
    }

    /// A refusal without an envelope, as the servers themselves refuse a malformed head.
    pub const fn bare(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Cow::Borrowed(&[]), closes: true }
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
            reply.headers.push(("WWW-Authenticate", "Bearer".into()));
        }
        reply.headers.extend(problem.retry_after.map(|seconds| ("Retry-After", seconds.to_string().into())));
        reply.headers.extend(problem.allow.clone().map(|allow| ("Allow", allow.into())));
        reply.headers.extend(problem.standing.iter().flat_map(limit_headers));
        reply
    }

    /// What a path can do, for OPTIONS and CORS pre-flights.
    pub fn options(edge: &Edge, call: &Call) -> Self {
        let methods = routes::methods(call.version, &call.path);
        let mut headers = common(edge, call);
        if call.is_preflight() && call.origin.as_deref().is_some_and(|origin| edge.allows_origin(origin)) {
            headers.push(("Access-Control-Allow-Methods", methods.clone().into()));
            let allowed = "Authorization, Content-Type, X-Idempotency-Key, X-Request-ID";
            headers.push(("Access-Control-Allow-Headers", allowed.into()));
            headers.push(("Access-Control-Max-Age", "600".into()));
        }
        headers.push(("Allow", methods.into()));
        Self { status: 204, headers, body: Cow::Borrowed(&[]), closes: call.has_unread_body() }
    }

    fn json(edge: &Edge, call: &Call, status: u16, body: &Envelope<'_>) -> Self {
        let mut headers = common(edge, call);
        headers.push(("Content-Type", "application/json".into()));
        Self { status, headers, body: serde_json::to_vec(body).unwrap_or_default().into(), closes: false }
    }
}

// draft-ietf-httpapi-ratelimit-headers-06: whole seconds, of the rule that has the least left.
fn limit_headers(standing: &Standing) -> [(&'static str, Cow<'static, str>); 4] {
    let Standing { policy, limit, left } = standing;
    let policy: Vec<String> = policy.iter().map(|rate| format!("{};w={}", rate.count, rate.per.as_secs())).collect();
    let reset = left.reset.as_secs() + u64::from(left.reset.subsec_nanos() > 0);
    [
        ("RateLimit-Policy", policy.join(", ").into()),
        ("RateLimit-Limit", limit.to_string().into()),
        ("RateLimit-Remaining", left.remaining.to_string().into()),
        ("RateLimit-Reset", reset.to_string().into()),
    ]
}

fn common(edge: &Edge, call: &Call) -> Vec<(&'static str, Cow<'static, str>)> {
    let mut headers = vec![
        ("X-Request-ID", call.caller.request_id.clone().into()),
        // Answers hold tokens and personal data (RFC 6749 §5.1).
        ("Cache-Control", "no-store".into()),
        ("X-Content-Type-Options", "nosniff".into()),
        ("Vary", "Origin".into()),
    ];
    if let Some(origin) = call.origin.as_deref().filter(|origin| edge.allows_origin(origin)) {
        headers.push(("Access-Control-Allow-Origin", origin.to_owned().into()));
        headers.push(("Access-Control-Allow-Credentials", "true".into()));
        headers.push(("Access-Control-Expose-Headers", EXPOSED.into()));
    }
    headers
}

const EXPOSED: &str = "X-Request-ID, Retry-After, RateLimit-Policy, RateLimit-Limit, RateLimit-Remaining, \
                       RateLimit-Reset, Idempotent-Replay";

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
