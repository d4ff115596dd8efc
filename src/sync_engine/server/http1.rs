//! HTTP/1.1 as v1 understands it: the bytes of a request taken apart, and those of a response put together. Framing about
//! which there is doubt is refused.

use std::{
    io::{self, Read},
    time::SystemTime,
};

use rouille::Response;

use super::{BodyError, Limits};

/// What the head of a response takes, so that its buffer seldom grows.
const USUAL_HEAD_BYTES: usize = 700;
/// Room for this many header fields is made without the heap.
const FEW_HEADERS: usize = 64;

/// A head that is not a request, to be told by a bare response of this status.
#[derive(Debug)]
pub struct Refused(pub u16);

/// A request's line and headers, understood.
#[derive(Debug)]
pub struct Head {
    pub method: String,
    /// Origin form, `*`, or the authority of a CONNECT.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub version: Version,
    pub body: Framing,
    pub keeps_alive: bool,
    pub expects_continue: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// The head at the start of `bytes` and its length, or `None` while it is incomplete.
///
/// The statuses are those that the v2 engine gives for the same bytes.
pub fn parse_head(bytes: &[u8], limits: &Limits) -> Result<Option<(usize, Head)>, Refused> {
    // On the stack, where they are as few as they are by default.
    let (mut few, mut many) = ([httparse::EMPTY_HEADER; FEW_HEADERS], Vec::new());
    let slots = few.get_mut(..limits.headers).unwrap_or_else(|| {
        many.resize(limits.headers, httparse::EMPTY_HEADER);
        &mut many
    });
    let mut parsed = httparse::Request::new(slots);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= limits.head_bytes => length,
        Ok(httparse::Status::Complete(_)) | Err(httparse::Error::TooManyHeaders) => return Err(Refused(431)),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Refused(400)),
    };
    let malformed = Refused(400);
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(malformed);
    };
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let Some(target) = request_target(target) else { return Err(malformed) };
    // A value that is not UTF-8 can be no token or identifier of ours, but need not end the request.
    let headers: Vec<_> = parsed
        .headers
        .iter()
        .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()))
        .collect();
    let Some(body) = body_framing(version, method, &headers) else { return Err(malformed) };
    let takes_over = method == "CONNECT" || lists(&headers, "upgrade", "websocket");
    let keeps_alive = !takes_over
        && !lists(&headers, "connection", "close")
        && (version == Version::Http11 || lists(&headers, "connection", "keep-alive"));
    let expects_continue = version == Version::Http11 && lists(&headers, "expect", "100-continue");
    let method = method.to_owned();
    Ok(Some((length, Head { method, target, headers, version, body, keeps_alive, expects_continue })))
}

/// The values of the header `name`.
fn values<'a>(headers: &'a [(String, String)], name: &'static str) -> impl Iterator<Item = &'a str> {
    headers.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Whether the list of the header `name` has `member`.
fn lists(headers: &[(String, String)], name: &'static str, member: &str) -> bool {
    values(headers, name).flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(member))
}

/// The target without scheme, authority and fragment, when it is a valid one (RFC 9112 §3.2).
fn request_target(target: &str) -> Option<String> {
    let origin = match target.split_once("://") {
        _ if target.starts_with('/') => target.to_owned(),
        None if target == "*" || is_authority(target) => return Some(target.to_owned()),
        Some((scheme, rest)) if ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at_checked(end)?;
            // RFC 9110 §4.2.4: user information is a disguise.
            if !is_authority(authority) || authority.contains('@') {
                return None;
            }
            if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
        }
        _ => return None,
    };
    let whole = origin.split_once('#').map_or(origin.as_str(), |(before, _)| before);
    let (path, query) = whole.split_once('?').unwrap_or((whole, ""));
    let in_path = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>' | b'`');
    let in_query = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>');
    (path.bytes().all(in_path) && query.bytes().all(in_query)).then(|| whole.to_owned())
}

fn is_authority(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@[]".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

/// How long the body is, when there is no doubt about it (RFC 9112 §6.3, and no leniency).
fn body_framing(version: Version, method: &str, headers: &[(String, String)]) -> Option<Framing> {
    let hosts = values(headers, "host").count();
    if hosts > 1 || (hosts == 0 && version == Version::Http11) {
        return None;
    }
    let mut lengths = values(headers, "content-length");
    let length = match (lengths.next(), lengths.next()) {
        (None, _) => None,
        (Some(digits), None) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().ok().map(Framing::Length)?)
        }
        _ => return None,
    };
    let mut encodings = values(headers, "transfer-encoding");
    match (encodings.next(), encodings.next()) {
        (None, _) if length.is_none() && version == Version::Http10 && method == "POST" => None,
        (None, _) => Some(length.unwrap_or(Framing::None)),
        (Some(coding), None) if length.is_none() && version == Version::Http11 => {
            coding.eq_ignore_ascii_case("chunked").then_some(Framing::Chunked)
        }
        _ => None,
    }
}

/// Joins the chunks of a body (RFC 9112 §7.1); extensions and trailers are read and dropped.
#[derive(Debug)]
pub struct ChunkDecoder {
    pub body: Vec<u8>,
    state: ChunkState,
    /// What is left of the size line's or the chunk's number.
    size: usize,
    body_left: usize,
    /// How many bytes besides the data may still come.
    overhead_left: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    FirstDigit,
    Digits,
    Blank,
    Extension,
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    TrailerStart,
    Trailer,
    TrailerLineFeed,
    LastLineFeed,
    Done,
}

impl ChunkDecoder {
    /// A body of one-byte chunks has five bytes of framing for each byte, which the allowance covers.
    pub fn new(body_bytes: usize, line_bytes: usize) -> Self {
        let overhead_left = body_bytes.saturating_mul(5).saturating_add(line_bytes);
        Self { body: Vec::new(), state: ChunkState::FirstDigit, size: 0, body_left: body_bytes, overhead_left }
    }

    pub fn is_done(&self) -> bool {
        self.state == ChunkState::Done
    }

    /// Takes what it can from `bytes` and says how many those were; it never takes one after the end of the body.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        let mut rest = bytes;
        while !self.is_done() {
            if self.state == ChunkState::Data {
                let (data, after) = rest.split_at(self.size.min(rest.len()));
                self.body.extend_from_slice(data);
                self.size -= data.len();
                rest = after;
                if self.size > 0 {
                    break;
                }
                self.state = ChunkState::DataReturn;
            }
            let Some((&byte, after)) = rest.split_first() else { break };
            rest = after;
            self.overhead_left = self.overhead_left.checked_sub(1).ok_or(BodyError::TooLarge)?;
            self.state = self.step(byte)?;
        }
        Ok(bytes.len() - rest.len())
    }

    /// The state after a byte that is not data.
    fn step(&mut self, byte: u8) -> Result<ChunkState, BodyError> {
        use ChunkState as S;
        Ok(match (self.state, byte) {
            (S::FirstDigit, _) => {
                self.size = 0;
                self.digit(byte)?
            }
            (S::Digits | S::Blank, b' ' | b'\t') => S::Blank,
            (S::Digits | S::Blank, b';') => S::Extension,
            (S::Digits | S::Blank | S::Extension, b'\r') => S::SizeLineFeed,
            (S::Digits, _) => self.digit(byte)?,
            (S::Extension, b'\t' | b' '..=b'~' | 0x80..) => S::Extension,
            (S::SizeLineFeed, b'\n') if self.size == 0 => S::TrailerStart,
            (S::SizeLineFeed, b'\n') => {
                self.body_left = self.body_left.checked_sub(self.size).ok_or(BodyError::TooLarge)?;
                S::Data
            }
            (S::DataReturn, b'\r') => S::DataLineFeed,
            (S::DataLineFeed, b'\n') => S::FirstDigit,
            (S::TrailerStart, b'\r') => S::LastLineFeed,
            (S::Trailer, b'\r') => S::TrailerLineFeed,
            (S::TrailerStart | S::Trailer, b'\t' | b' '..=b'~' | 0x80..) => S::Trailer,
            (S::TrailerLineFeed, b'\n') => S::TrailerStart,
            (S::LastLineFeed, b'\n') => S::Done,
            _ => return Err(BodyError::Malformed),
        })
    }

    fn digit(&mut self, byte: u8) -> Result<ChunkState, BodyError> {
        let digit = char::from(byte).to_digit(16).and_then(|digit| usize::try_from(digit).ok());
        let digit = digit.ok_or(BodyError::Malformed)?;
        let size = self.size.checked_mul(16).and_then(|size| size.checked_add(digit));
        self.size = size.ok_or(BodyError::Malformed)?;
        Ok(ChunkState::Digits)
    }
}

pub fn asks_to_close(response: &Response) -> bool {
    let mut headers = response.headers.iter();
    headers.any(|(name, value)| name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close"))
}

/// The bytes of a response, so that it goes out in one write.
pub fn encode(response: Response, version: Version, stays: bool, is_head: bool) -> io::Result<Vec<u8>> {
    let status = response.status_code;
    let mut body = Vec::new();
    response.data.into_reader_and_size().0.read_to_end(&mut body)?;
    let spelled = match version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
    };
    let mut head = String::with_capacity(USUAL_HEAD_BYTES + body.len());
    head.extend([spelled, " ", &status.to_string(), " ", reason(status), "\r\n"]);
    let bodiless = matches!(status, 100..=199 | 204 | 304);
    if !bodiless {
        write_field(&mut head, "Content-Length", &body.len().to_string());
    }
    match (stays, version) {
        (false, _) => write_field(&mut head, "Connection", "close"),
        (true, Version::Http10) => write_field(&mut head, "Connection", "keep-alive"),
        (true, Version::Http11) => {}
    }
    write_field(&mut head, "Date", &httpdate::fmt_http_date(now()));
    for (name, value) in &response.headers {
        let ours = ["content-length", "connection", "transfer-encoding", "date"];
        if !ours.iter().any(|our| name.eq_ignore_ascii_case(our)) {
            write_field(&mut head, name, &value.replace(|c: char| c.is_ascii_control() && c != '\t', " "));
        }
    }
    head.push_str("\r\n");
    let mut encoded = head.into_bytes();
    if !is_head && !bodiless {
        encoded.append(&mut body);
    }
    Ok(encoded)
}

fn write_field(head: &mut String, name: &str, value: &str) {
    head.extend([name, ": ", value, "\r\n"]);
}

#[expect(clippy::disallowed_methods, reason = "the Date header tells when the response was made, not what was decided")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// The reason phrases of RFC 9110 and RFC 6585 for the statuses of a gateway.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn head(bytes: &[u8]) -> Result<Option<(usize, Head)>, u16> {
        parse_head(bytes, &Limits::default()).map_err(|refused| refused.0)
    }

    fn framing(lines: &str) -> Result<Framing, u16> {
        let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        head(text.as_bytes()).map(|parsed| parsed.expect("a whole head").1.body)
    }

    /// The body and what follows it, once it is whole.
    type Decoded = Option<(Vec<u8>, Vec<u8>)>;

    fn decode(pieces: &[&[u8]]) -> Result<Decoded, BodyError> {
        let mut decoder = ChunkDecoder::new(64, 64);
        let mut buffer = Vec::new();
        for piece in pieces {
            buffer.extend_from_slice(piece);
            let used = decoder.feed(&buffer)?;
            buffer.drain(..used);
        }
        Ok(decoder.is_done().then_some((decoder.body, buffer)))
    }

    #[test]
    fn the_length_of_a_body_is_taken_only_when_there_is_no_doubt() {
        assert_eq!(framing(""), Ok(Framing::None));
        assert_eq!(framing("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(framing("Content-Length: 30000000000\r\n"), Ok(Framing::Length(30_000_000_000)));
        assert_eq!(framing("Transfer-Encoding: Chunked\r\n"), Ok(Framing::Chunked));
        for doubtful in [
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999999\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Host: b\r\n",
            "X: a\r\n folded\r\n",
        ] {
            assert_eq!(framing(doubtful), Err(400), "{doubtful:?}");
        }
    }

    #[test]
    fn an_old_client_states_the_length_of_what_it_posts() {
        assert_eq!(head(b"POST / HTTP/1.0\r\n\r\n").err(), Some(400));
        assert_eq!(head(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").err(), Some(400));
        let (_, old) = head(b"GET / HTTP/1.0\r\n\r\n").expect("well-formed").expect("whole");
        assert!(!old.keeps_alive);
    }

    #[test]
    fn a_target_is_reduced_to_its_path_and_query() {
        for (given, taken) in [
            ("/a?b=c", Some("/a?b=c")),
            ("/a#b", Some("/a")),
            ("*", Some("*")),
            ("http://host/a", Some("/a")),
            ("HTTP://host:1", Some("/")),
            ("http://host?b", Some("/?b")),
            ("host:443", Some("host:443")),
            ("//host/a", Some("//host/a")),
            ("ftp://host/a", None),
            ("http:///a", None),
            ("http://user@host/a", None),
            ("/a<b", None),
            ("/a?b\"c", None),
            ("/\u{e4}", None),
        ] {
            assert_eq!(request_target(given).as_deref(), taken, "{given}");
        }
    }

    #[test]
    fn heads_have_a_greatest_length_and_number_of_fields() {
        let of = |count: usize, name: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", name.repeat(count));
        assert!(head(of(63, "X: y\r\n").as_bytes()).is_ok());
        assert_eq!(head(of(64, "X: y\r\n").as_bytes()).err(), Some(431));
        assert_eq!(head(of(1, &format!("X: {}\r\n", "y".repeat(20_000))).as_bytes()).err(), Some(431));
    }

    #[test]
    fn chunks_are_joined_and_what_follows_is_left() {
        let whole: &[u8] = b"3;name=\"v\"\r\nabc\r\n0A \r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nGET /";
        assert_eq!(decode(&[whole]), Ok(Some((b"abc0123456789".to_vec(), b"GET /".to_vec()))));
        assert_eq!(decode(&[b"0\r\n\r\n"]), Ok(Some((Vec::new(), Vec::new()))));
        assert_eq!(decode(&[b"3\r\nabc\r\n"]), Ok(None));
    }

    #[test]
    fn doubtful_chunks_are_refused() {
        for bytes in [
            &b"\r\n\r\n"[..],
            b"+3\r\nabc\r\n",
            b"0x3\r\nabc\r\n",
            b"3\nabc\r\n",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n",
            b"3 3\r\n",
            b"3;a\nb\r\n",
            b"FFFFFFFFFFFFFFFFF\r\n",
            b"0\r\nA: b\nC: d\r\n\r\n",
            b"0\r\n\rX",
        ] {
            assert_eq!(decode(&[bytes]), Err(BodyError::Malformed), "{}", bytes.escape_ascii());
        }
        assert_eq!(decode(&[b"41\r\n"]), Err(BodyError::TooLarge));
        assert_eq!(decode(&[b"FFFFFFFFFFFFFFFF\r\n"]), Err(BodyError::TooLarge));
        let endless = b"1\r\na\r\n".repeat(65);
        assert_eq!(decode(&[&endless]), Err(BodyError::TooLarge));
        let endless = [&b"0\r\n"[..], &b"X: y\r\n".repeat(200)].concat();
        assert_eq!(decode(&[&endless]), Err(BodyError::TooLarge));
    }

    proptest! {
        #[test]
        fn a_chunked_body_is_the_same_however_it_is_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..8), 0..8),
            cuts in proptest::collection::vec(0_usize..200, 0..8),
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                write!(bytes, "{:x}\r\n", chunk.len())?;
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\nnext");
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(decode(&pieces), Ok(Some((chunks.concat(), b"next".to_vec()))));
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(head(&bytes));
            drop(decode(&[&bytes]));
        }
    }
}
