//! A plain HTTP/1.1 client that sends what it is told, right or wrong, and shows everything that comes back.

use serde_json::Value;
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A request as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Option<Vec<u8>>,
}

impl Request {
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: None }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: &str, body: &Value) -> Self {
        Self::new("POST", path).json(body)
    }

    pub fn patch(path: &str, body: &Value) -> Self {
        Self::new("PATCH", path).json(body)
    }

    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    #[must_use]
    pub fn form(self, fields: &[(&str, &str)]) -> Self {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.body("application/x-www-form-urlencoded", body)
    }

    #[must_use]
    pub fn body(self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.header("Content-Type", content_type).bytes(body)
    }

    /// A body without a `Content-Type`.
    #[must_use]
    pub fn bytes(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", format!("Bearer {token}"))
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name))
    }

    fn encode(&self, address: SocketAddr) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.path).into_bytes();
        let mut line = |name: &str, value: &[u8]| {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        };
        if !self.has("Host") {
            line("Host", address.to_string().as_bytes());
        }
        for (name, value) in &self.headers {
            line(name, value);
        }
        if let Some(body) = &self.body
            && !self.has("Content-Length")
            && !self.has("Transfer-Encoding")
        {
            line("Content-Length", body.len().to_string().as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case, in the order in which they came.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("no JSON ({error}): {} {}", self.status, String::from_utf8_lossy(&self.body))
        })
    }

    /// The value at a path such as `data.user.email`; null when there is none.
    pub fn at(&self, path: &str) -> Value {
        let mut value = &self.json();
        for key in path.split('.') {
            match value.get(key) {
                Some(inner) => value = inner,
                None => return Value::Null,
            }
        }
        value.clone()
    }

    /// The text at a path such as `data.access`.
    pub fn text(&self, path: &str) -> String {
        let value = self.at(path);
        value.as_str().map_or_else(|| panic!("no text at {path}: {}", self.shown()), str::to_owned)
    }

    pub fn code(&self) -> String {
        self.text("code")
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Every value of a header.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Status and body, for the message of a failed assertion.
    pub fn shown(&self) -> String {
        format!("{} {}", self.status, String::from_utf8_lossy(&self.body))
    }
}

/// One connection at a time, kept alive when the server does.
pub struct Client {
    address: SocketAddr,
    connection: Option<TcpStream>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    pub fn send(&mut self, request: &Request) -> Answer {
        self.try_send(request)
            .unwrap_or_else(|error| panic!("{} {} at {}: {error}", request.method, request.path, self.address))
    }

    /// Sends it, once more when a kept connection turns out to be closed.
    pub fn try_send(&mut self, request: &Request) -> Result<Answer> {
        let bytes = request.encode(self.address);
        if let Some(connection) = self.connection.take() {
            match self.exchange(connection, &bytes, request) {
                Err(error) if is_stale(&error) => {}
                result => return result,
            }
        }
        let connection = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(30)))?;
        connection.set_write_timeout(Some(Duration::from_secs(30)))?;
        connection.set_nodelay(true)?;
        self.exchange(connection, &bytes, request)
    }

    fn exchange(&mut self, mut connection: TcpStream, bytes: &[u8], request: &Request) -> Result<Answer> {
        // A server may answer a body that is too long before it has read it all.
        let written = connection.write_all(bytes);
        let (answer, keep) = match read_answer(&mut connection, &request.method) {
            Ok(read) => read,
            Err(error) => return Err(written.err().unwrap_or(error)),
        };
        if keep && written.is_ok() {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

fn is_stale(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Reads one answer; the flag says whether the connection may be used again.
fn read_answer(connection: &mut TcpStream, method: &str) -> Result<(Answer, bool)> {
    let mut buffer = Vec::new();
    let (status, headers) = loop {
        let end = read_until(connection, &mut buffer, b"\r\n\r\n")?;
        let head: Vec<u8> = buffer.drain(..end).collect();
        let (status, headers) = parse_head(&String::from_utf8_lossy(&head))?;
        if status >= 200 {
            break (status, headers);
        }
    };
    let mut answer = Answer { status, headers, body: Vec::new() };
    let chunked = answer.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let length = answer.header("content-length").map(str::parse::<usize>);
    let mut keep = !answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    if method == "HEAD" || status == 204 || status == 304 {
        answer.body.clear();
    } else if chunked {
        answer.body = read_chunks(connection, &mut buffer)?;
    } else if let Some(length) = length {
        let length = length.map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
        read_to(connection, &mut buffer, length)?;
        answer.body = buffer.drain(..length).collect();
    } else {
        connection.read_to_end(&mut buffer)?;
        answer.body = std::mem::take(&mut buffer);
        keep = false;
    }
    Ok((answer, keep && buffer.is_empty()))
}

fn parse_head(head: &str) -> Result<(u16, Vec<(String, String)>)> {
    let malformed = || Error::new(ErrorKind::InvalidData, format!("no HTTP answer: {head}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let mut headers = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok((status.ok_or_else(malformed)?, headers))
}

fn more(connection: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    let mut part = [0; 8192];
    let count = connection.read(&mut part)?;
    if count == 0 {
        return Err(Error::new(ErrorKind::UnexpectedEof, "the connection was closed before the answer was whole"));
    }
    buffer.extend(part.iter().take(count));
    Ok(())
}

fn read_to(connection: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> Result<()> {
    while buffer.len() < length {
        more(connection, buffer)?;
    }
    Ok(())
}

/// Reads until the mark has come and gives the position behind it.
fn read_until(connection: &mut TcpStream, buffer: &mut Vec<u8>, mark: &[u8]) -> Result<usize> {
    loop {
        if let Some(start) = buffer.windows(mark.len()).position(|window| window == mark) {
            return Ok(start + mark.len());
        }
        more(connection, buffer)?;
    }
}

fn read_chunks(connection: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = read_until(connection, buffer, b"\r\n")?;
        let line: Vec<u8> = buffer.drain(..end).collect();
        let line = String::from_utf8_lossy(&line);
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
        read_to(connection, buffer, size + 2)?;
        body.extend(buffer.drain(..size));
        buffer.drain(..2);
        if size == 0 {
            return Ok(body);
        }
    }
}
