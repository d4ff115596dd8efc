//! Which requests are refused because two readers could understand them differently.
//! It is asked before routing on every port, whatever the parser there has let through.

/// Most header fields of a request.
pub const HEADERS: usize = 64;
/// Longest request line and headers together, in bytes.
pub const HEAD_BYTES: usize = 16 << 10;

/// Fields that mean one thing, so that a second one is a second meaning.
const SINGLE: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "content-type",
    "content-encoding",
    "authorization",
    "origin",
    "upgrade",
    "expect",
];

/// The status to refuse a request with, or `None` when there is no doubt about it.
///
/// `target` is the request target as received or as the parser gives it; `headers` are all fields in order.
/// After a refusal the connection must be closed.
pub fn refuse_ambiguous<'a>(
    method: &str,
    target: &str,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Option<u16> {
    let mut bytes = method.len() + target.len() + " HTTP/1.1\r\n\r\n".len();
    let mut fields = 0_usize;
    let mut seen: [Option<&[u8]>; SINGLE.len()] = [None; SINGLE.len()];
    let mut doubled = false;
    for (name, value) in headers {
        fields += 1;
        bytes += name.len() + value.len() + ": \r\n".len();
        let known = SINGLE.iter().zip(&mut seen).find(|(single, _)| name.eq_ignore_ascii_case(single));
        if let Some((_, place)) = known {
            doubled |= place.replace(value).is_some();
        }
    }
    if fields > HEADERS || bytes > HEAD_BYTES {
        return Some(431);
    }
    let [host, length, coding, _, _, _, _, upgrade, _] = seen;
    let framed = length.is_some() || coding.is_some();
    let doubtful = doubled
        || !is_target(method, target)
        // With CONNECT, or an upgrade, some parsers take all that follows for the body.
        || method == "CONNECT"
        || (upgrade.is_some() && framed && length != Some(b"0"))
        || (length.is_some() && coding.is_some())
        || length.is_some_and(|digits| digits.is_empty() || !digits.iter().all(u8::is_ascii_digit))
        || coding.is_some_and(|coding| !coding.eq_ignore_ascii_case(b"chunked"))
        || host.is_some_and(|host| !is_host(host));
    doubtful.then_some(400)
}

/// Whether the target has a form that RFC 9112 §3.2 allows for the method.
fn is_target(method: &str, target: &str) -> bool {
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    match rest {
        Some(rest) => {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            !authority.is_empty() && is_host(authority.as_bytes())
        }
        None => (target == "*" && method == "OPTIONS") || target.starts_with('/'),
    }
}

/// Whether this is a host with or without a port; an empty one is what some health checks send.
fn is_host(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, target: &str, headers: &[(&str, &str)]) -> Option<u16> {
        refuse_ambiguous(method, target, headers.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    #[test]
    fn ordinary_requests_pass() {
        let json = ("Content-Type", "application/json");
        assert_eq!(check("GET", "/health/live", &[("Host", "a.example:8001")]), None);
        assert_eq!(check("POST", "/a?b", &[("Host", "[::1]:1"), ("Content-Length", "2"), json]), None);
        assert_eq!(check("POST", "/a", &[("Host", ""), ("Transfer-Encoding", "chunked"), json]), None);
        assert_eq!(check("GET", "http://a.example/b", &[("Host", "a.example")]), None);
        assert_eq!(check("OPTIONS", "*", &[("Host", "a")]), None);
        assert_eq!(check("GET", "/", &[("Host", "a"), ("Upgrade", "websocket")]), None);
        assert_eq!(check("GET", "/", &[("Cookie", "a=b"), ("Cookie", "c=d"), ("X-Forwarded-For", "\u{e4}")]), None);
    }

    #[test]
    fn two_meanings_are_refused() {
        for headers in [
            &[("Content-Length", "1"), ("Content-Length", "1")][..],
            &[("Content-Length", "1"), ("Transfer-Encoding", "chunked")],
            &[("Content-Length", "+1")],
            &[("Content-Length", "1, 1")],
            &[("Content-Length", "")],
            &[("Transfer-Encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("Transfer-Encoding", "gzip, chunked")],
            &[("Transfer-Encoding", "identity")],
            &[("Host", "a"), ("host", "a")],
            &[("Host", "a/b")],
            &[("Host", "a@b")],
            &[("Host", "a, b")],
            &[("Authorization", "Bearer a"), ("Authorization", "Bearer b")],
            &[("Content-Type", "application/json"), ("Content-Type", "text/plain")],
            &[("Upgrade", "websocket"), ("Content-Length", "1")],
        ] {
            assert_eq!(check("POST", "/", headers), Some(400), "{headers:?}");
        }
    }

    #[test]
    fn targets_of_another_form_are_refused() {
        for (method, target) in [
            ("CONNECT", "a.example:443"),
            ("GET", "a.example:443"),
            ("GET", "*"),
            ("GET", ""),
            ("GET", "health/live"),
            ("GET", "ftp://a.example/"),
            ("GET", "http:///a"),
            ("GET", "http://user@a.example/"),
        ] {
            assert_eq!(check(method, target, &[("Host", "a")]), Some(400), "{method} {target}");
        }
    }

    #[test]
    fn heads_have_a_greatest_length_and_number_of_fields() {
        let many = vec![("X", "y"); HEADERS];
        assert_eq!(check("GET", "/", &many), None);
        assert_eq!(check("GET", "/", &[&many[..], &[("X", "y")]].concat()), Some(431));
        assert_eq!(check("GET", "/", &[("X", &"y".repeat(HEAD_BYTES))]), Some(431));
        assert_eq!(check("GET", &format!("/{}", "y".repeat(HEAD_BYTES)), &[]), Some(431));
    }
}
