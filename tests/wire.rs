//! What both engines do with bytes that no honest client sends, and with clients that are slow, silent or too many.
//! The statuses of the two are compared with each other and with what is expected of both.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use support::{Gateway, Options, eventually, pause};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any time-out that the tests configure.
const PATIENCE: Duration = Duration::from_secs(8);
const THREADS: usize = 8;

/// Short time-outs and few threads, so that a slow client is a quick test.
fn options() -> Options {
    Options::default()
        .with("BIFRONS_HTTP__HEAD_TIMEOUT", "1s")
        .with("BIFRONS_HTTP__BODY_TIMEOUT", "1s")
        .with("BIFRONS_HTTP__IDLE_TIMEOUT", "2s")
        .with("BIFRONS_HTTP__WRITE_TIMEOUT", "2s")
        .with("BIFRONS_ENGINES__V1__THREADS", &THREADS.to_string())
}

/// Both engines' addresses with the path of their sign-in.
fn engines(gateway: &Gateway) -> [(&'static str, SocketAddr, &'static str); 2] {
    [("v1", gateway.v1, "/api/v1/auth/login/"), ("v2", gateway.v2, "/api/v2/auth/login/")]
}

/// One response as it came.
#[derive(Debug)]
struct Received {
    status: u16,
    head: String,
    body: String,
}

/// What came back on a connection, and whether the server ended it.
#[derive(Debug)]
struct Exchange {
    received: Vec<Received>,
    ended: bool,
}

impl Exchange {
    fn statuses(&self) -> Vec<u16> {
        self.received.iter().map(|response| response.status).collect()
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

/// Sends the bytes and reads until the server ends the connection.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Exchange {
    let mut stream = connect(address);
    thread::scope(|scope| {
        let mut writer = stream.try_clone().expect("a second handle");
        // A refused client is cut while it still sends, which is no fault.
        scope.spawn(move || drop(writer.write_all(bytes)));
        let exchange = read_to_end(&mut stream, bytes.starts_with(b"HEAD "));
        drop(stream.shutdown(Shutdown::Both));
        exchange
    })
}

fn read_to_end(stream: &mut TcpStream, bodiless: bool) -> Exchange {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 << 10];
    let ended = loop {
        match stream.read(&mut chunk) {
            Ok(0) => break true,
            Ok(length) => bytes.extend(chunk.iter().take(length)),
            Err(error) => break error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    };
    Exchange { received: responses(&bytes, bodiless), ended }
}

fn responses(bytes: &[u8], bodiless: bool) -> Vec<Received> {
    let text = String::from_utf8_lossy(bytes);
    let mut rest: &str = &text;
    let mut received = Vec::new();
    while let Some((head, after)) = rest.split_once("\r\n\r\n") {
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        let length = field(head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        let length = if bodiless { 0 } else { length };
        let Some((body, after)) = after.split_at_checked(length) else { panic!("a response was cut short: {text}") };
        received.push(Received { status, head: head.to_owned(), body: body.to_owned() });
        rest = after;
    }
    assert!(rest.is_empty(), "bytes that belong to no response: {rest:?}");
    received
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

/// A small well-formed request; the server ends the connection after it.
const LIVE: &[u8] = b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn is_live(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let sent = stream.set_read_timeout(Some(SECOND)).and_then(|()| stream.write_all(LIVE));
    let mut answer = [0; 12];
    sent.and_then(|()| stream.read_exact(&mut answer)).is_ok() && &answer == b"HTTP/1.1 200"
}

fn wait_until_live(gateway: &Gateway, limit: Duration) {
    for (engine, address, _) in engines(gateway) {
        eventually(&format!("{engine} serves"), limit, || is_live(address).then_some(()));
    }
}

/// The process's resident memory, in KiB.
fn resident(gateway: &Gateway) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("the process's status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("its resident memory");
    line.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("a number")
}

/// Bytes to send, and the statuses that both engines answer before they end the connection.
struct Probe {
    name: &'static str,
    bytes: Vec<u8>,
    statuses: &'static [u16],
    /// What the last body has to say.
    says: &'static str,
}

/// `$login` in the text stands for the path of the engine's sign-in.
fn probe(name: &'static str, text: impl AsRef<[u8]>, statuses: &'static [u16]) -> Probe {
    Probe { name, bytes: text.as_ref().to_vec(), statuses, says: "" }
}

/// A request that carries the lines given, for the path that is always served.
fn live(name: &'static str, lines: &str, statuses: &'static [u16]) -> Probe {
    probe(name, format!("GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n"), statuses)
}

/// A sign-in with the header lines and body given.
fn login(name: &'static str, lines: &str, body: &str, statuses: &'static [u16], says: &'static str) -> Probe {
    let text = format!(
        "POST $login HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n{lines}\r\n{body}"
    );
    Probe { says, ..probe(name, text, statuses) }
}

fn well_formed() -> Vec<Probe> {
    let chunked = "Transfer-Encoding: chunked\r\n";
    vec![
        live("plain", "", &[200]),
        probe("kept connection", [&b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"[..], LIVE].concat(), &[200, 200]),
        probe("an empty line before the request", [&b"\r\n"[..], LIVE].concat(), &[200]),
        probe("HEAD", "HEAD /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[200]),
        probe("HTTP/1.0", "GET /health/live HTTP/1.0\r\n\r\n", &[200]),
        probe(
            "HTTP/1.0 kept",
            "GET /health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /health/live HTTP/1.0\r\n\r\n",
            &[200, 200],
        ),
        probe("absolute form", "GET http://b/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[200]),
        probe("a fragment", "GET /health/live#b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[200]),
        live("a value that is not UTF-8 text", "User-Agent: \u{e4}\r\n", &[200]),
        live("an empty body", "Content-Length: 0\r\n", &[200]),
        live("an upgrade that is not wanted", "Upgrade: websocket\r\n", &[200]),
        live("many headers", &"X: y\r\n".repeat(60), &[200]),
        login("a body", "Content-Length: 2\r\n", "{}", &[400], "validation_error"),
        login("a chunked body", chunked, "2\r\n{}\r\n0\r\n\r\n", &[400], "validation_error"),
        login("several chunks", chunked, "1\r\n{\r\n01;x=\"y\"\r\n}\r\n000\r\n\r\n", &[400], "validation_error"),
        login("a trailer", chunked, "2\r\n{}\r\n0\r\nHost: b\r\nX: y\r\n\r\n", &[400], "validation_error"),
        login("100-continue", "Content-Length: 2\r\nExpect: 100-continue\r\n", "{}", &[400], "validation_error"),
        probe(
            "a body and a request in one packet",
            [
                &b"POST $login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"[..],
                LIVE,
            ]
            .concat(),
            &[400, 200],
        ),
        probe(
            "chunks and a request in one packet",
            [
                &b"POST $login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
                b"2\r\n{}\r\n0\r\n\r\n",
                LIVE,
            ]
            .concat(),
            &[400, 200],
        ),
    ]
}

fn malformed() -> Vec<Probe> {
    vec![
        probe("noise", "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03\r\n\r\n", &[400]),
        probe("no version", "GET /health/live\r\n\r\n", &[400]),
        probe("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400]),
        probe("no method", " /health/live HTTP/1.1\r\nHost: a\r\n\r\n", &[400]),
        probe("no host", "GET /health/live HTTP/1.1\r\n\r\n", &[400]),
        live("two hosts", "Host: b\r\n", &[400]),
        probe("a host that is none", "GET /health/live HTTP/1.1\r\nHost: a/b@c\r\nConnection: close\r\n\r\n", &[400]),
        live("space before the colon", "X : y\r\n", &[400]),
        live("a folded line", "X: y\r\n z\r\n", &[400]),
        live("a field without a name", ": y\r\n", &[400]),
        live("a field without a colon", "X\r\n", &[400]),
        live("a null byte", "X: \0\r\n", &[400]),
        live("a bare return", "X: a\rb\r\n", &[400]),
        probe("lower-case method", "get /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[405]),
        probe("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", &[400]),
        probe("authority form", "GET a:443 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[400]),
        probe("asterisk", "GET * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[400]),
        probe("another scheme", "GET ftp://a/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[400]),
        probe("a target with user", "GET http://b@a/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[400]),
        probe("a target that is not ASCII", "GET /\u{e4} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[400]),
        probe("a target with a bracket", "GET /<a> HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[400]),
        live("two authorizations", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", &[400]),
    ]
}

/// Bodies whose end two readers could see in different places; a request hidden behind must not be answered.
fn smuggling() -> Vec<Probe> {
    let hidden = "GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    let mut probes: Vec<_> = [
        ("two lengths", "Content-Length: 2\r\nContent-Length: 2\r\n"),
        ("two different lengths", "Content-Length: 2\r\nContent-Length: 40\r\n"),
        ("a list of lengths", "Content-Length: 2, 2\r\n"),
        ("a signed length", "Content-Length: +2\r\n"),
        ("a negative length", "Content-Length: -2\r\n"),
        ("a hexadecimal length", "Content-Length: 0x2\r\n"),
        ("no length", "Content-Length:\r\n"),
        ("a length beyond 64 bits", "Content-Length: 99999999999999999999999\r\n"),
        ("length and chunks", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"),
        ("chunks and length", "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n"),
        ("chunks twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("chunks twice in a list", "Transfer-Encoding: chunked, chunked\r\n"),
        ("identity", "Transfer-Encoding: identity\r\nContent-Length: 2\r\n"),
        ("gzip", "Transfer-Encoding: gzip, chunked\r\n"),
        ("a misspelt coding", "Transfer-Encoding: xchunked\r\n"),
        ("a coding behind a tab", "Transfer-Encoding:\x0bchunked\r\n"),
        ("a coding before the colon", "Transfer-Encoding : chunked\r\n"),
        ("an upgrade with a body", "Upgrade: websocket\r\nContent-Length: 2\r\n"),
    ]
    .into_iter()
    .map(|(name, lines)| login(name, lines, &format!("{{}}{hidden}"), &[400], ""))
    .collect();
    for (name, body) in [
        ("a chunk longer than it says", "1\r\n{}\r\n0\r\n\r\n"),
        ("a chunk ended by a line feed", "2\n{}\n0\n\n"),
        ("a signed chunk", "+2\r\n{}\r\n0\r\n\r\n"),
        ("a chunk with a prefix", "0x2\r\n{}\r\n0\r\n\r\n"),
        ("a chunk without a size", "\r\n{}\r\n0\r\n\r\n"),
        ("a chunk beyond 64 bits", "FFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n"),
        ("a line feed in an extension", "2;a\nb\r\n{}\r\n0\r\n\r\n"),
    ] {
        probes.push(login(name, chunked, &format!("{body}{hidden}"), &[400], ""));
    }
    probes.push(probe(
        "chunks in HTTP/1.0",
        "POST $login HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[400],
    ));
    probes.push(probe("no length in HTTP/1.0", "POST $login HTTP/1.0\r\n\r\n{}", &[400]));
    probes
}

fn oversize() -> Vec<Probe> {
    let chunked = "Transfer-Encoding: chunked\r\n";
    vec![
        login("30 GB declared", "Content-Length: 30000000000\r\n", "{", &[413], "payload_too_large"),
        login("64 bits declared", "Content-Length: 18446744073709551615\r\n", "{", &[413], "payload_too_large"),
        login("65 KiB sent", "Content-Length: 66560\r\n", &" ".repeat(66_560), &[413], "payload_too_large"),
        login("1 MB sent", "Content-Length: 1000000\r\n", &" ".repeat(1_000_000), &[413], "payload_too_large"),
        login("chunks without end", chunked, &format!("400\r\n{}\r\n", " ".repeat(1024)).repeat(200), &[413], ""),
        login("one chunk too large", chunked, &format!("FFFFF\r\n{}", " ".repeat(100_000)), &[413], ""),
        live("10 000 headers", &"X: y\r\n".repeat(10_000), &[431]),
        live("65 headers", &"X: y\r\n".repeat(63), &[431]),
        live("a 64 KB header", &format!("X: {}\r\n", "y".repeat(64_000)), &[431]),
        live("a 1 MB token", &format!("Authorization: Bearer {}\r\n", "y".repeat(1_000_000)), &[431]),
        probe("a head without end", ["GET / HTTP/1.1\r\n", &"X".repeat(1_000_000)].concat(), &[431]),
        probe("a 1 MB target", format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(1_000_000)), &[431]),
        probe("a 32 KB target", format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(32_000)), &[431]),
    ]
}

fn all_probes() -> impl Iterator<Item = Probe> {
    well_formed().into_iter().chain(malformed()).chain(smuggling()).chain(oversize())
}

/// What is wrong with an engine's answer to a probe.
fn faults(probe: &Probe, (engine, address, login): (&str, SocketAddr, &str)) -> Vec<String> {
    let mut faults = Vec::new();
    let bytes = replace(&probe.bytes, b"$login", login.as_bytes());
    let seen = exchange(address, &bytes);
    let finals: Vec<u16> = seen.statuses().into_iter().filter(|status| *status >= 200).collect();
    if finals != probe.statuses {
        faults.push(format!("{}: {engine} gave {finals:?} instead of {:?}", probe.name, probe.statuses));
    }
    if !seen.received.last().is_some_and(|last| last.body.contains(probe.says)) {
        faults.push(format!("{}: {engine} does not say {}: {seen:?}", probe.name, probe.says));
    }
    if !seen.ended {
        faults.push(format!("{}: {engine} left the connection open", probe.name));
    }
    if let Some(bare) = seen.received.iter().find(|one| field(&one.head, "date").is_none() && one.status >= 200) {
        faults.push(format!("{}: {engine} gave no date: {}", probe.name, bare.head));
    }
    faults
}

#[test]
fn both_engines_answer_every_probe_as_expected_and_alike() {
    let gateway = Gateway::start(options());
    let before = resident(&gateway);
    let faults: Vec<_> =
        all_probes().flat_map(|probe| engines(&gateway).map(|engine| faults(&probe, engine))).flatten().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let grown = resident(&gateway).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more after all probes");
}

/// How many connections a worker of v2 attends to while they are silent (`src/async_engine/server.rs: KEPT`).
const KEPT: usize = 16;

/// A gateway whose v2 has one worker with so many silent connections that further ones are not attended to while they
/// are; all have asked once, and are told of what became of that.
fn crowded(options: Options) -> (Gateway, Vec<TcpStream>) {
    let gateway = Gateway::start(options.with("BIFRONS_ENGINES__V2__WORKERS", "1"));
    let silent = (0..KEPT).map(|_| asked_once(gateway.v2)).collect();
    (gateway, silent)
}

const LIVE_AND_ON: &[u8] = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n";

fn asked_once(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(LIVE_AND_ON).expect("sent");
    assert_eq!(one_response(&mut stream, false).status, 200);
    stream
}

/// Reads one response, and no byte more.
fn one_response(stream: &mut TcpStream, bodiless: bool) -> Received {
    let mut bytes = Vec::new();
    let mut read = |bytes: &mut Vec<u8>| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(bytes)));
        bytes.extend(byte);
    };
    while !bytes.ends_with(b"\r\n\r\n") {
        read(&mut bytes);
    }
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let length = field(&head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    (0..if bodiless { 0 } else { length }).for_each(|_| read(&mut bytes));
    responses(&bytes, bodiless).remove(0)
}

#[test]
fn whoever_is_beyond_those_that_are_attended_to_is_answered_all_the_same() {
    let (gateway, silent) = crowded(options().with("BIFRONS_HTTP__IDLE_TIMEOUT", "60s"));
    let [_, engine] = engines(&gateway);
    let faults: Vec<_> = all_probes().flat_map(|probe| faults(&probe, engine)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    // One connection, asked in every way that keeps it.
    let (_, address, path) = engine;
    let post =
        |lines: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{lines}\r\n");
    let live = "GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n";
    let refused = post("Content-Length: 2\r\n");
    let elsewhere = refused.replace(path, "/nowhere");
    let chunked = post("Transfer-Encoding: chunked\r\n");
    let waits = post("Content-Length: 2\r\nExpect: 100-continue\r\n");
    let head = live.replace("GET", "HEAD");
    // What is sent with a pause between, and the statuses of the answers.
    let asked: [(&[&str], &[u16]); 11] = [
        (&[live], &[200]),
        (&[&refused, "{}"], &[400]),
        (&[&format!("{refused}{{}}")], &[400]),
        (&[live.split_at(9).0, live.split_at(9).1], &[200]),
        (&[&refused, "{", "}"], &[400]),
        (&[&format!("{elsewhere}{{}}")], &[404]),
        (&[&format!("{live}{refused}{{}}{live}")], &[200, 400, 200]),
        (&[&format!("{live}{}", live.split_at(20).0), live.split_at(20).1], &[200, 200]),
        (&[&format!("{chunked}2\r\n{{}}\r\n0\r\n\r\n")], &[400]),
        (&[&waits, "{}"], &[100, 400]),
        (&[&head], &[200]),
    ];
    // Anew for each, and one after the other; the first of a connection is often of another kind than those after it.
    let mut stream = asked_once(address);
    stream.set_nodelay(true).expect("no delay");
    for nth in 0..asked.len() {
        let mut fresh = asked_once(address);
        fresh.set_nodelay(true).expect("no delay");
        for (parts, statuses) in asked.iter().cycle().skip(nth).take(3) {
            for stream in [&mut stream, &mut fresh] {
                for part in *parts {
                    stream.write_all(part.as_bytes()).expect("sent");
                    pause(Duration::from_millis(10));
                }
                for status in *statuses {
                    assert_eq!(one_response(stream, *parts == [&head]).status, *status, "{parts:?}");
                }
            }
        }
    }
    // Whoever sends no more is answered what they asked.
    stream.write_all(live.as_bytes()).and_then(|()| stream.shutdown(Shutdown::Write)).expect("sent");
    let seen = read_to_end(&mut stream, false);
    assert!(seen.statuses() == [200] && seen.ended, "{seen:?}");
    // Where others go, there is room among those that are attended to: HTTP/1.0 and the like go on as before.
    drop(silent);
    assert_eq!(exchange(address, LIVE).statuses(), [200]);
}

#[test]
fn silent_connections_cost_little_and_have_an_end() {
    let (mut gateway, silent) = crowded(options().with("BIFRONS_HTTP__IDLE_TIMEOUT", "60s"));
    // v1 starts its threads.
    let few: Vec<_> = (0..THREADS).map(|_| asked_once(gateway.v1)).collect();
    let more: Vec<_> = [gateway.v1, gateway.v2]
        .into_iter()
        .flat_map(|address| {
            let before = resident(&gateway);
            let more: Vec<_> = (0..512).map(|_| asked_once(address)).collect();
            let each = resident(&gateway).saturating_sub(before) / more.len();
            assert!(each < 6, "{each} KiB for each silent connection at {address}");
            more
        })
        .chain(few)
        .collect();
    // Also after a second head that does not come to its end.
    let mut slow = asked_once(gateway.v2);
    slow.write_all(b"GET ").expect("sent");
    assert_eq!(read_to_end(&mut slow, false).statuses(), [408]);
    // They hold up nobody who wants to end, and were there until then.
    pause(SECOND / 5);
    let mut more: Vec<_> = more.into_iter().chain(silent).collect();
    for stream in &mut more {
        stream.write_all(LIVE_AND_ON).expect("sent");
        assert_eq!(one_response(stream, false).status, 200);
    }
    // Nor is a request that is under way then given up.
    let mut running = asked_once(gateway.v2);
    let post = "POST /api/v2/auth/login/ HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";
    write!(running, "{post}Content-Length: 2\r\n\r\n{{").expect("sent");
    pause(SECOND / 10);
    let started = Instant::now();
    gateway.signal("TERM");
    for mut stream in more {
        assert_eq!(stream.read(&mut [0; 16]).ok(), Some(0));
    }
    running.write_all(b"}").expect("sent");
    assert_eq!(read_to_end(&mut running, false).statuses(), [400]);
    let status = gateway.stop();
    assert!(status.success(), "{status}: {}", gateway.log());
    assert!(started.elapsed() < PATIENCE, "closing took {:?}", started.elapsed());

    let (gateway, mut silent) = crowded(options());
    silent.extend((0..8).map(|_| asked_once(gateway.v2)));
    let started = Instant::now();
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0; 16]).ok(), Some(0));
        // The first was made a while before the last.
        assert!(started.elapsed() > SECOND, "silence ended after {:?}", started.elapsed());
    }
    assert!(started.elapsed() < 3 * SECOND, "silence lasted {:?}", started.elapsed());
}

fn replace(bytes: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let found = bytes.windows(what.len()).position(|window| window == what);
    let Some((before, rest)) = found.and_then(|at| bytes.split_at_checked(at)) else { return bytes.to_vec() };
    [before, with, rest.get(what.len()..).unwrap_or_default()].concat()
}

#[test]
fn a_request_that_comes_byte_by_byte_is_understood() {
    let gateway = Gateway::start(options());
    for (engine, address, path) in engines(&gateway) {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n");
        let request = format!("{head}Transfer-Encoding: chunked\r\n\r\n1;a=b\r\n{{\r\n1\r\n}}\r\n0\r\nX: y\r\n\r\n");
        let mut stream = connect(address);
        stream.set_nodelay(true).expect("no delay");
        for byte in request.as_bytes() {
            stream.write_all(&[*byte]).expect("sent");
            pause(Duration::from_micros(200));
        }
        let seen = read_to_end(&mut stream, false);
        assert_eq!(seen.statuses(), [400], "{engine}: {seen:?}");
        assert!(seen.received[0].body.contains("validation_error"), "{engine}: {seen:?}");
    }
}

#[test]
fn a_client_that_waits_is_told_to_continue_and_head_has_no_body() {
    let gateway = Gateway::start(options());
    for (engine, address, path) in engines(&gateway) {
        let mut stream = connect(address);
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n");
        write!(stream, "{head}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n").expect("sent");
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).expect("an interim response");
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n", "{engine}");
        stream.write_all(b"{}").expect("sent");
        assert_eq!(read_to_end(&mut stream, false).statuses(), [400], "{engine}");

        let whole = exchange(address, LIVE);
        let head = exchange(address, &[b"HEAD".as_slice(), &LIVE[3..]].concat());
        assert_eq!(
            field(&whole.received[0].head, "content-length"),
            field(&head.received[0].head, "content-length"),
            "{engine}"
        );
    }
}

/// Sends one byte every tenth of a second until the server has had enough; gives what it said and when.
fn drip(address: SocketAddr, start: &str, bytes: &[u8]) -> (Exchange, Duration) {
    let mut stream = connect(address);
    stream.write_all(start.as_bytes()).expect("sent");
    let started = Instant::now();
    let mut writer = stream.try_clone().expect("a second handle");
    thread::scope(|scope| {
        scope.spawn(move || {
            for byte in bytes {
                pause(Duration::from_millis(100));
                if writer.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        });
        let seen = read_to_end(&mut stream, false);
        let taken = started.elapsed();
        drop(stream.shutdown(Shutdown::Both));
        (seen, taken)
    })
}

#[test]
fn slow_heads_and_bodies_and_silence_have_an_end() {
    let gateway = Gateway::start(options());
    let ends = |case: &str, address: SocketAddr, start: &str, bytes: &[u8], statuses: &[u16]| {
        let (seen, taken) = drip(address, start, bytes);
        assert_eq!(seen.statuses(), statuses, "{case} at {address}");
        assert!(seen.ended && taken < 4 * SECOND, "{case} at {address} took {taken:?}");
    };
    let live = "GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n";
    thread::scope(|scope| {
        for (_, address, path) in engines(&gateway) {
            scope.spawn(move || {
                let post = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n");
                let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
                ends("silence", address, "", b"", &[408]);
                ends("a slow head", address, "GET /health/live HTTP/1.1\r\n", &[b'X'; 50], &[408]);
                ends("a slow body", address, &format!("{post}Content-Length: 1000\r\n\r\n"), &[b' '; 50], &[408]);
                ends("slow chunks", address, &chunked, &b"1\r\n \r\n".repeat(9), &[408]);
                ends("silence after a response", address, live, b"", &[200]);
                // The time for the first head is one, whenever in it the first byte comes.
                let late = Instant::now();
                let mut stream = connect(address);
                pause(SECOND * 4 / 5);
                stream.write_all(b"GET ").expect("sent");
                assert_eq!(read_to_end(&mut stream, false).statuses(), [408], "at {address}");
                assert!(late.elapsed() < SECOND * 8 / 5, "a late head at {address} took {:?}", late.elapsed());
                ends("a slow second head", address, &format!("{live}GET "), &[b'X'; 50], &[200, 408]);
                ends("a slow third head", address, &live.repeat(2), &[b'X'; 50], &[200, 200, 408]);
            });
        }
    });
}

#[test]
fn a_client_that_never_reads_is_cut_and_costs_little_memory() {
    let gateway = Gateway::start(options());
    let before = resident(&gateway);
    for (engine, address, _) in engines(&gateway) {
        let started = Instant::now();
        let mut streams: Vec<_> = (0..4).map(|_| connect(address)).collect();
        let requests = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
        thread::scope(|scope| {
            for stream in &mut streams {
                scope.spawn(|| {
                    // Ends when the server has cut the connection, or takes no more for as long as patience lasts.
                    while stream.write_all(&requests).is_ok() && started.elapsed() < PATIENCE {}
                });
            }
        });
        let taken = started.elapsed();
        assert!(taken < PATIENCE, "{engine}: a client that never reads was still served after {taken:?}");
        let grown = resident(&gateway).saturating_sub(before);
        // actix decodes up to 128 KiB of waiting requests at once, whose heads take 4 to 6 MiB.
        let bound = if engine == "v1" { 1 << 10 } else { 8 << 10 };
        assert!(grown < streams.len() * bound, "{engine}: {grown} KiB more for clients that never read");
        assert!(is_live(address), "{engine}");
    }
}

#[test]
fn who_reads_too_slowly_is_cut_in_the_time_for_an_answer() {
    let gateway = Gateway::start(options());
    for (engine, address, path) in engines(&gateway) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        // Small, so that the server has to wait for the client.
        socket.set_recv_buffer_size(8 << 10).expect("a size");
        socket.connect(&address.into()).expect("a connection");
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let bundle = path.replace("auth/login/", "docs/swagger-ui-bundle.js");
        // More than the system keeps for a connection.
        let requests = format!("GET {bundle} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(16);
        stream.write_all(requests.as_bytes()).expect("sent");
        let started = Instant::now();
        let (mut taken, mut chunk) = (0, [0; 8 << 10]);
        while let Ok(length @ 1..) = stream.read(&mut chunk) {
            taken += length;
            // It goes on reading all the time, which is not enough.
            if started.elapsed() < 4 * SECOND {
                pause(Duration::from_millis(20));
            }
        }
        assert!(taken > 8 << 10 && started.elapsed() > SECOND, "{engine}: cut after {taken} bytes");
        assert!(taken < 16 * 1_000_000 && started.elapsed() < PATIENCE, "{engine}: not cut after {taken} bytes");
    }
}

#[test]
fn stuck_clients_keep_nobody_out() {
    // Nor does anything end soon that could make room.
    let gateway =
        Gateway::start(options().with("BIFRONS_HTTP__HEAD_TIMEOUT", "60s").with("BIFRONS_HTTP__BODY_TIMEOUT", "60s"));
    for (engine, address, path) in engines(&gateway) {
        let starts = [
            String::new(),
            "GET /health/live HTTP/1.1\r\n".to_owned(),
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"),
        ];
        let stuck: Vec<_> = (0..50 * THREADS)
            .map(|index| {
                let mut stream = connect(address);
                stream.write_all(starts[index % starts.len()].as_bytes()).expect("sent");
                stream
            })
            .collect();
        eventually(&format!("{engine} serves beside stuck clients"), PATIENCE, || is_live(address).then_some(()));
        drop(stuck);
    }
}

#[test]
fn idle_connections_leave_room_for_new_ones() {
    let gateway = Gateway::start(options().with("BIFRONS_HTTP__IDLE_TIMEOUT", "60s"));
    for (engine, address, _) in engines(&gateway) {
        let idle: Vec<_> = (0..2 * THREADS)
            .map(|_| {
                let mut stream = connect(address);
                stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
                assert!(stream.read(&mut [0; 4096]).expect("an answer") > 0, "{engine}");
                stream
            })
            .collect();
        let started = Instant::now();
        assert_eq!(exchange(address, LIVE).statuses(), [200], "{engine}");
        assert!(started.elapsed() < 2 * SECOND, "{engine} kept a new client waiting for {:?}", started.elapsed());
        drop(idle);
    }
}

/// As many connections as the kernel takes for the server, up to 200.
fn crowd(address: SocketAddr) -> Vec<TcpStream> {
    (0..200).map_while(|_| TcpStream::connect_timeout(&address, SECOND / 5).ok()).collect()
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let mut limited = options().with("BIFRONS_HTTP__IDLE_TIMEOUT", "60s").with("BIFRONS_HTTP__HEAD_TIMEOUT", "60s");
    limited.prefix = ["sh", "-c", "ulimit -n 160; exec \"$@\"", "sh"].map(str::to_owned).to_vec();
    let mut gateway = Gateway::start(limited);
    for (_, address, _) in engines(&gateway) {
        let crowd = crowd(address);
        assert!(crowd.len() > 160, "only {} connections", crowd.len());
        pause(SECOND / 2);
        drop(crowd);
        wait_until_live(&gateway, PATIENCE);
    }
    // Closing must work in the shortage, too.
    let crowds = engines(&gateway).map(|(_, address, _)| crowd(address));
    pause(SECOND / 2);
    let status = gateway.stop();
    assert!(status.success(), "{status}: {}", gateway.log());
    drop(crowds);
}

#[test]
fn a_running_request_is_answered_while_the_gateway_closes() {
    let mut gateway =
        Gateway::start(options().with("BIFRONS_HTTP__BODY_TIMEOUT", "5s").with("BIFRONS_HTTP__IDLE_TIMEOUT", "60s"));
    let mut idle = Vec::new();
    let mut running = Vec::new();
    for (engine, address, path) in engines(&gateway) {
        let mut stream = connect(address);
        stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        assert!(stream.read(&mut [0; 4096]).expect("an answer") > 0, "{engine}");
        idle.push((engine, stream));
        let mut stream = connect(address);
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n");
        write!(stream, "{head}Content-Length: 2\r\n\r\n{{").expect("sent");
        running.push((engine, stream));
    }
    pause(SECOND / 5);
    let started = Instant::now();
    gateway.signal("TERM");
    for (engine, mut stream) in idle {
        assert_eq!(stream.read(&mut [0; 16]).ok(), Some(0), "{engine} ends a silent connection");
        assert!(started.elapsed() < 2 * SECOND, "{engine} ended it after {:?}", started.elapsed());
    }
    for (engine, address, _) in engines(&gateway) {
        eventually(&format!("{engine} refuses connections"), 2 * SECOND, || {
            TcpStream::connect(address).is_err().then_some(())
        });
    }
    for (engine, mut stream) in running {
        stream.write_all(b"}").expect("sent");
        let seen = read_to_end(&mut stream, false);
        assert_eq!(seen.statuses(), [400], "{engine}: {seen:?}");
        assert_eq!(
            field(&seen.received[0].head, "connection").map(str::to_lowercase).as_deref(),
            Some("close"),
            "{engine}"
        );
    }
    let status = gateway.stop();
    assert!(status.success(), "{status}: {}", gateway.log());
    assert!(started.elapsed() < PATIENCE, "closing took {:?}", started.elapsed());
}

#[test]
fn memory_stays_flat_while_many_send_too_much() {
    let gateway = Gateway::start(options());
    let attack = |address: SocketAddr, path: &str| {
        let flood = " ".repeat(200_000);
        let large = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 30000000000\r\n\r\n{flood}");
        let chunks = format!("400\r\n{}\r\n", " ".repeat(1024)).repeat(200);
        let chunks = format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let head = format!("GET /{} HTTP/1.1\r\n", "y".repeat(300_000));
        for bytes in [large, chunks, head] {
            exchange(address, bytes.as_bytes());
        }
    };
    let round = || {
        thread::scope(|scope| {
            for (_, address, path) in engines(&gateway) {
                for _ in 0..4 {
                    scope.spawn(move || (0..3).for_each(|_| attack(address, path)));
                }
            }
        });
    };
    // The first round fills what the allocator keeps.
    round();
    let before = resident(&gateway);
    round();
    let grown = resident(&gateway).saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB more after a second round");
    wait_until_live(&gateway, PATIENCE);
}
