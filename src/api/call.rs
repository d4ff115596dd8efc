//! One request, as an engine hands it over.

use std::net::IpAddr;

use garde::Validate;
use serde::de::DeserializeOwned;

use super::{
    Edge, Matched, Version,
    body::{self, Fields},
    routes,
};
use crate::{
    services::{fields::read_fields, model::Caller, problem::Problem},
    system,
};

/// Why a body is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// Longer than the contract's 64 KiB.
    TooLarge,
    /// Not complete in time.
    TimedOut,
    /// Its framing is broken.
    Malformed,
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => Self::new(413, "payload_too_large", "The body is longer than 64 KiB."),
            BodyError::TimedOut => Self::new(408, "request_timeout", "The body did not arrive in time."),
            BodyError::Malformed => Self::parse("The body's framing is broken."),
        }
    }
}

/// Longest body, in bytes (contract §1).
pub const BODY_BYTES: usize = 64 << 10;

/// The head and body of a request, before anything is made of them.
pub struct Parts<'a, H> {
    /// As sent.
    pub method: &'a str,
    /// Path and query, as sent.
    pub target: &'a str,
    /// Name and value of each field, in order.
    pub headers: H,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// The body, or why there is none.
    pub body: Result<Vec<u8>, BodyError>,
}

/// A request with everything that routes need of it.
pub struct Call {
    /// Which engine took it.
    pub version: Version,
    /// As sent.
    pub method: String,
    /// Without the query.
    pub path: String,
    query: String,
    idempotency_key: Option<String>,
    /// Who asks.
    pub caller: Caller,
    /// The page that asks, when a browser does.
    pub origin: Option<String>,
    bearer: Option<String>,
    cookie: Option<String>,
    content_type: Option<String>,
    is_preflight: bool,
    body: Result<Vec<u8>, BodyError>,
}

impl Call {
    /// Reads what matters from a request's parts.
    pub fn new<'a>(
        version: Version,
        edge: &Edge,
        parts: Parts<'_, impl IntoIterator<Item = (&'a str, &'a [u8])>>,
    ) -> Self {
        let mut found = Found::default();
        for (name, value) in parts.headers {
            found.take(name, value);
        }
        let target = parts.target.split('#').next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request_id = found.request_id.filter(|id| is_request_id(id));
        let caller = Caller {
            ip: edge.client_address(parts.peer, found.forwarded.iter().map(String::as_str)),
            request_id: request_id.unwrap_or_else(system::request_id),
            engine: version.engine(),
            user_agent: clean(&found.user_agent.unwrap_or_default(), 400),
            device_token: found.cookies.iter().find_map(|line| cookie_value(line, edge.device_cookie_name())),
        };
        let cookie = found.cookies.iter().find_map(|line| cookie_value(line, edge.cookie_name()));
        Self {
            version,
            path: origin_form(path).to_owned(),
            query: query.to_owned(),
            idempotency_key: found.idempotency_key,
            method: parts.method.to_owned(),
            caller,
            origin: found.origin,
            bearer: found.authorization.as_deref().and_then(bearer),
            cookie,
            content_type: found.content_type,
            is_preflight: found.is_preflight,
            body: parts.body,
        }
    }

    /// What it asks for.
    ///
    /// # Errors
    /// 404, 405, and whatever is wrong with the body's transfer.
    pub fn route(&self) -> Result<Matched, Problem> {
        let matched = routes::find(self.version, &self.method, &self.path)?;
        if let Err(error) = &self.body {
            return Err((*error).into());
        }
        Ok(matched)
    }

    /// The body as a request of one operation.
    ///
    /// # Errors
    /// 400 and 415.
    pub fn read<T>(&self) -> Result<T, Problem>
    where
        T: DeserializeOwned + Validate<Context = ()>,
    {
        Ok(read_fields(self.fields()?)?)
    }

    /// The query as a request of one operation.
    ///
    /// # Errors
    /// 400.
    pub fn read_query<T>(&self) -> Result<T, Problem>
    where
        T: DeserializeOwned + Validate<Context = ()>,
    {
        Ok(read_fields(body::pairs(self.query.as_bytes())?)?)
    }

    /// The `X-Idempotency-Key` and the body it stands for.
    pub fn idempotency_key(&self) -> Option<(&str, &[u8])> {
        Some((self.idempotency_key.as_deref()?, self.body.as_deref().unwrap_or_default()))
    }

    fn fields(&self) -> Result<Fields, Problem> {
        let bytes = self.body.as_ref().map_err(|error| *error)?;
        body::fields(self.content_type.as_deref(), bytes)
    }

    /// The access token.
    pub fn bearer(&self) -> Option<&str> {
        self.bearer.as_deref()
    }

    /// The refresh token from the cookie.
    ///
    /// # Errors
    /// 403 when a browser's page of another origin sends it.
    pub fn refresh_cookie(&self, edge: &Edge) -> Result<Option<&str>, Problem> {
        if self.cookie.is_some() && !edge.allows_cookie_from(self.origin.as_deref()) {
            return Err(Problem::new(403, "permission_denied", "This origin may not use the refresh cookie."));
        }
        Ok(self.cookie.as_deref())
    }

    /// Whether bytes of its body may still be under way.
    pub fn has_unread_body(&self) -> bool {
        self.body.is_err()
    }

    /// Whether it is a CORS pre-flight.
    pub fn is_preflight(&self) -> bool {
        self.is_preflight && self.method == "OPTIONS"
    }
}

#[derive(Default)]
struct Found {
    request_id: Option<String>,
    user_agent: Option<String>,
    origin: Option<String>,
    authorization: Option<String>,
    content_type: Option<String>,
    idempotency_key: Option<String>,
    cookies: Vec<String>,
    forwarded: Vec<String>,
    is_preflight: bool,
}

impl Found {
    fn take(&mut self, name: &str, value: &[u8]) {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        let text = || String::from_utf8_lossy(value).trim_matches([' ', '\t']).to_owned();
        if is("x-request-id") {
            self.request_id = Some(text());
        } else if is("user-agent") {
            self.user_agent = Some(text());
        } else if is("origin") {
            self.origin = Some(text());
        } else if is("authorization") {
            self.authorization = Some(text());
        } else if is("content-type") {
            self.content_type = Some(text());
        } else if is("x-idempotency-key") {
            self.idempotency_key = Some(text());
        } else if is("cookie") {
            self.cookies.push(text());
        } else if is("x-forwarded-for") {
            self.forwarded.push(text());
        } else if is("access-control-request-method") {
            self.is_preflight = true;
        }
    }
}

fn is_request_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

// RFC 6750 §2.1; the scheme's case does not matter.
fn bearer(authorization: &str) -> Option<String> {
    let (scheme, token) = authorization.split_once(' ')?;
    // Other white space is part of the token, and makes it none.
    let token = token.trim_matches([' ', '\t']);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

fn cookie_value(line: &str, wanted: &str) -> Option<String> {
    let mut pairs = line.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs
        .find(|(name, value)| *name == wanted && !value.is_empty())
        .map(|(_, value)| value.trim_matches('"').to_owned())
}

// A proxy may be asked in absolute form (RFC 9112 §3.2.2); its host plays no part here.
fn origin_form(target: &str) -> &str {
    let rest = ["http://", "https://"].into_iter().find_map(|scheme| {
        let head = target.get(..scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then(|| target.get(scheme.len()..)).flatten()
    });
    match rest {
        Some(rest) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => target,
    }
}

/// A client's text for logs and the audit trail: no control or format characters that could forge
/// a line or hide text, at most `most` bytes.
pub fn clean(text: &str, most: usize) -> String {
    let is_harmless = |c: &char| {
        !c.is_control()
            && !matches!(*c, '\u{2028}' | '\u{2029}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let mut cleaned = String::with_capacity(text.len().min(most));
    for c in text.chars().filter(is_harmless) {
        if cleaned.len() + c.len_utf8() > most {
            break;
        }
        cleaned.push(c);
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_taken_or_left() {
        assert!(is_request_id("a-B_9.z") && is_request_id(&"a".repeat(64)));
        for id in ["", "a b", "a\n", "é", &"a".repeat(65)] {
            assert!(!is_request_id(id), "{id:?}");
        }
    }

    #[test]
    fn targets_in_absolute_form_lose_their_host() {
        assert_eq!(origin_form("http://evil.example/auth/login/"), "/auth/login/");
        assert_eq!(origin_form("HTTP://evil.example"), "/");
        assert_eq!(origin_form("/http://x/"), "/http://x/");
    }

    #[test]
    fn bearers_and_cookies_are_found() {
        assert_eq!(bearer("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(bearer("bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("Bearer"), None);
        assert_eq!(cookie_value("a=1; r=xyz; b=2", "r").as_deref(), Some("xyz"));
        assert_eq!(cookie_value("xr=1; r=", "r"), None);
    }

    #[test]
    fn text_for_logs_has_no_lines_and_no_escapes() {
        assert_eq!(clean("a\r\nb\u{1b}[31mc\u{2028}d\u{202e}e", 100), "ab[31mcde");
        assert_eq!(clean("ééé", 5), "éé");
    }
}
