//! More than a gateway should take: cases 35, 36 and 37.

use crate::actors::{address, login, person};
use crate::support::{Client, Engine, Gateway, PASSWORD, Request, Side, Story};
use crate::target::{everywhere, inside, own_gateways, own_worlds};
use serde_json::json;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What hashing costs by default.
const COSTLY: Story =
    Story { env: &[("BIFRONS_PASSWORDS__MEMORY_KIB", "19456"), ("BIFRONS_PASSWORDS__ITERATIONS", "2")] };

/// The processor time that the gateway has used, in hundredths of a second.
fn processor_time(gateway: &Gateway) -> u64 {
    let line = fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).expect("the process's statistics");
    let fields = line.rsplit(')').next().unwrap_or_default().split_whitespace();
    // User and system time are the 14th and 15th field; the name, which ends at the bracket, is the second.
    fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// A line of the process's status, in KiB.
fn memory(gateway: &Gateway, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("the process's status");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
    line.split_whitespace().next().and_then(|size| size.parse().ok()).expect("a number")
}

#[test]
fn case_35_a_password_of_a_megabyte_is_refused_unread_wherever_one_is_taken() {
    everywhere(|side| {
        let account = person(side, "verbose");
        for length in [100_000, 1_000_000] {
            let long = "k".repeat(length);
            for (path, body) in [
                ("login", json!({ "email_or_phone": account.email, "password": long })),
                ("register", json!({ "email": account.email, "password": long })),
                ("register", json!({ "email": account.email, "password": PASSWORD, "password2": long })),
            ] {
                for prefix in ["/api/{v}/auth/", "/auth/"] {
                    let answer = side.send(&Request::post(&format!("{prefix}{path}/"), &body));
                    side.refused(&answer, 413, "payload_too_large");
                }
            }
        }
        let answer = side.send(&login(&account.email, &"k".repeat(10_000_000)));
        side.refused(&answer, 413, "payload_too_large");
    });
}

#[test]
fn case_35_a_password_over_its_limit_costs_no_hash() {
    // Alone on its gateways: another story's work would be counted too.
    own_worlds("it measures the processor time of the gateway", COSTLY, |side| {
        let account = person(side, "verbose");
        let measured = |side: &mut Side<'_>, password: &str, count: u32| {
            let before = processor_time(side.gateway);
            for _ in 0..count {
                let answer = side.send(&login(&account.email, password));
                assert!([400, 401, 429].contains(&answer.status), "{}", answer.shown());
            }
            (processor_time(side.gateway) - before) * 10 / u64::from(count)
        };
        let cheap = measured(side, &"k".repeat(60_000), 40);
        let hashed = measured(side, crate::WRONG, 10);
        assert!(cheap < 5, "{cheap} ms of processor time for a password over the limit; {hashed} ms for a hash");
        assert!(hashed > cheap, "the measurement sees no hash: {hashed} ms, {cheap} ms");
    });
}

/// What is sent: a beginning, a piece over and over, an end; and the statuses that may come back.
struct Flood {
    name: &'static str,
    start: String,
    piece: Vec<u8>,
    pieces: usize,
    end: &'static str,
    statuses: &'static [u16],
}

/// Gives the status, and how much was sent until it came.
fn pour(address: SocketAddr, flood: &Flood) -> (Option<u16>, usize) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a time-out");
    stream.set_write_timeout(Some(Duration::from_secs(15))).expect("a time-out");
    let mut reading = stream.try_clone().expect("a second handle");
    let answered = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut answer = [0; 12];
            let read = reading.read_exact(&mut answer);
            answered.store(true, Ordering::Release);
            read.ok()?;
            std::str::from_utf8(&answer).ok()?.rsplit(' ').next()?.parse().ok()
        });
        let mut sent = 0;
        if stream.write_all(flood.start.as_bytes()).is_ok() {
            let whole = flood.pieces * flood.piece.len();
            while sent < whole && !answered.load(Ordering::Acquire) && stream.write_all(&flood.piece).is_ok() {
                sent += flood.piece.len();
            }
            if sent == whole {
                // Refused meanwhile, it is not read any more.
                let _ = stream.write_all(flood.end.as_bytes());
            }
        }
        let status = reader.join().expect("no panic in the reader");
        // A server may have gone before it has read it all.
        drop(stream.shutdown(Shutdown::Both));
        (status, sent)
    })
}

#[test]
fn case_36_what_is_too_large_is_refused_in_time_and_costs_no_memory() {
    everywhere(|side| {
        let address = side.engine.address(side.gateway);
        let path = format!("/api/{}/auth/login/", side.engine.name());
        let head = |line: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{line}");
        let megabyte = vec![b'x'; 1 << 20];
        let chunk = [b"1000\r\n".as_slice(), &[b'x'; 4096], b"\r\n"].concat();
        let field = [b"X-A: ".as_slice(), &[b'y'; 8192], b"\r\n"].concat();
        let flood = |name, start, piece: &[u8], pieces, end, statuses| Flood {
            name,
            start,
            piece: piece.to_vec(),
            pieces,
            end,
            statuses,
        };
        let head_of = |length: &str| head(&format!("Content-Length: {length}\r\n\r\n"));
        let too_long: &[u16] = &[431, 400];
        let floods = [
            flood("a body of 100 MB", head_of("104857600"), &megabyte, 100, "", &[413]),
            flood("chunks without end", head("Transfer-Encoding: chunked\r\n\r\n"), &chunk, 25_000, "", &[413]),
            flood("a head of 64 KB", head(""), &field, 8, "\r\n", too_long),
            flood("ten thousand fields", head(""), b"X-B: y\r\n", 10_000, "\r\n", too_long),
            flood("a token of a megabyte", head("Authorization: Bearer "), &megabyte, 1, "\r\n\r\n", too_long),
            flood("an address of a megabyte", "GET /".to_owned(), &megabyte, 1, " HTTP/1.1\r\n\r\n", &[414, 431, 400]),
        ];
        for flood in &floods {
            let (status, sent) = pour(address, flood);
            // A refused client is cut while it sends; the answer may be lost by that, and the end is refusal enough.
            let name = flood.name;
            assert!(status.is_none_or(|status| flood.statuses.contains(&status)), "{name}: {status:?}");
            assert!(sent < 64 << 20, "{name}: {sent} bytes were taken");
        }
        let token = json!({ "refresh": "x".repeat(1 << 20) });
        let answer = side.post("auth/token/refresh/", &token);
        side.refused(&answer, 413, "payload_too_large");
        let answer = side.post("auth/token/verify/", &json!({ "token": "x".repeat(60_000) }));
        side.refused(&answer, 401, "token_not_valid");
        inside("it reads the memory of the process", || {
            // Lanes side by side, after a round in which the allocator took what it keeps.
            let round = || {
                thread::scope(|scope| {
                    for _ in 0..4 {
                        scope.spawn(|| floods.iter().for_each(|flood| _ = pour(address, flood)));
                    }
                });
            };
            round();
            let before = memory(side.gateway, "RssAnon:");
            round();
            let grown = memory(side.gateway, "RssAnon:").saturating_sub(before);
            assert!(grown < 16 << 10, "{grown} KiB more");
        });
        assert_eq!(side.send(&Request::get("/health/live")).status, 200);
    });
}

#[test]
fn case_37_five_hundred_sign_ins_at_once_take_the_memory_of_the_slots_and_leave_the_rest_of_it_quick() {
    let env: Vec<_> = COSTLY.env.iter().copied().chain([("BIFRONS_PASSWORDS__SLOTS", "2")]).collect();
    own_gateways("it needs passwords.slots and reads the memory of the process", &env, |gateway| {
        for engine in Engine::BOTH {
            let names: Vec<_> = {
                let mut side = Side::new(gateway, engine);
                (0..500).map(|_| address(&mut side, "flood")).collect()
            };
            let before = memory(gateway, "VmHWM:");
            let (statuses, health) = flood(gateway, engine, &names);
            let grown = memory(gateway, "VmHWM:").saturating_sub(before);
            let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
            assert_eq!(count(401) + count(503), 500, "{statuses:?}");
            assert!(count(401) > 0 && count(503) > 0, "{} judged, {} sent away", count(401), count(503));
            // Two slots of 19 MiB for both engines, and what 500 connections cost.
            assert!(grown < (2 * 19 + 64) << 10, "{}: {grown} KiB more", engine.name());
            let middle = health.get(health.len() / 2).copied().unwrap_or_default();
            assert!(health.len() >= 5, "health was asked {} times", health.len());
            assert!(middle < Duration::from_millis(50), "{}: health takes {health:?}", engine.name());
        }
    });
}

/// Signs in under all the names at once, asks for health meanwhile; gives the statuses, and the times in order.
fn flood(gateway: &Gateway, engine: Engine, names: &[String]) -> (Vec<u16>, Vec<Duration>) {
    let address = engine.address(gateway);
    let path = format!("/api/{}/auth/login/", engine.name());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut times = Vec::new();
            // One connection, kept: a monitor does not come anew each time.
            let mut client = Client::new(address);
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                assert_eq!(client.send(&Request::get("/health/live")).status, 200);
                times.push(start.elapsed());
                crate::support::pause(Duration::from_millis(5));
            }
            times.sort();
            times
        });
        let attempts: Vec<_> = names
            .iter()
            .map(|name| {
                let request = Request { path: path.clone(), ..login(name, PASSWORD) };
                scope.spawn(move || {
                    let answer = Client::new(address).send(&request);
                    if answer.status == 503 {
                        assert_eq!(answer.code(), "overloaded", "{}", answer.shown());
                        assert!(answer.header("retry-after").is_some(), "{}", answer.shown());
                    }
                    answer.status
                })
            })
            .collect();
        let statuses = attempts.into_iter().map(|attempt| attempt.join().expect("an answer")).collect();
        over.store(true, Ordering::Relaxed);
        (statuses, watcher.join().expect("no panic in the watcher"))
    })
}
