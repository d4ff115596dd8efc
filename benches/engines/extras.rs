//! What does not fit a table of throughput: clients that drip, clients that are silent, and a storm of sign-ins.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    driver::{self, Kind, Load, Mark, Pace, Plan, Verdict, histogram},
    gateway::Gateway,
    measure::{self, Figure, Latency, Watched, real},
    processes::pause,
    world::{Engine, Same, Scenario, Traffic, World},
};

/// The connections of those who go about their business meanwhile.
const OTHERS: usize = 16;
/// A client that drips moves so many bytes, so often.
const DRIP_BYTES: usize = 24;
const DRIP_EVERY: Duration = Duration::from_millis(50);

/// So many may wait for an answer in a storm.
const STRANGERS: usize = 1000;

/// How clients fared beside such as drip or are silent.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    pub engine: &'static str,
    /// `slow` or `idle`.
    pub what: &'static str,
    pub clients: usize,
    /// Token verifications in a second without and with them.
    pub alone_per_second: f64,
    pub per_second: f64,
    pub latency: Latency,
    pub errors: u64,
    /// Requests of the clients in question that were answered whole.
    pub answered: u64,
    /// Connections that had no answer yet at the end.
    pub waiting: u64,
    /// Connections that the server closed, with or without an answer before.
    pub closed: u64,
    pub failed: u64,
    /// Resident memory of the gateway before and with them, in MiB.
    pub memory_before: f64,
    pub memory: f64,
    /// With silent connections before anything was hashed: Argon2's memory stays with its threads.
    pub memory_at_rest: Option<f64>,
    pub threads: u64,
}

/// A storm of sign-ins.
#[derive(Clone, Debug, Serialize)]
pub struct Storm {
    pub engine: &'static str,
    pub seconds: f64,
    /// Sign-ins in a second that the gateway can do.
    pub capacity: f64,
    pub arrivals: f64,
    pub offered: u64,
    pub accepted: u64,
    pub accepted_per_second: f64,
    pub accepted_latency: Latency,
    pub refused: u64,
    pub refused_without_retry_after: u64,
    pub refused_latency: Latency,
    pub errors: u64,
    /// `/health/live` during the storm.
    pub live: Latency,
    pub live_asked: u64,
    pub live_failed: u64,
    /// Sign-ins in a second, in the second after the storm.
    pub after_per_second: f64,
    pub memory_peak: f64,
}

fn verify(gateway: &Gateway, world: &mut World, engine: Engine, length: Duration) -> io::Result<Figure> {
    let plan = Plan {
        address: gateway.address(engine),
        connections: OTHERS,
        pace: Pace::Closed,
        warm_up: Duration::from_millis(300),
        length,
    };
    let mut load = Traffic::new(world, engine, Scenario::Verify, &plan);
    measure::measure(&plan, &mut load, &Watched::alone(gateway.pid()), &mut || {})
}

/// What became of the clients in question.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    answered: u64,
    waiting: u64,
    closed: u64,
    failed: u64,
}

/// Measures token verification beside clients that write and read a few bytes at a time.
///
/// # Errors
/// No sockets.
pub fn slow(
    gateway: &Gateway,
    world: &mut World,
    engine: Engine,
    clients: usize,
    length: Duration,
) -> io::Result<Beside> {
    let alone = verify(gateway, world, engine, length)?;
    let before = super::cpu::size(gateway.pid());
    let address = gateway.address(engine);
    let request = world.me(engine, address);
    beside(gateway, world, engine, "slow", clients, length, &alone, before.resident, move |ending| {
        drip(address, &request, clients, &ending)
    })
}

/// Measures token verification beside connections that have asked once and are silent.
///
/// # Errors
/// No sockets.
pub fn idle(
    gateway: &Gateway,
    world: &mut World,
    engine: Engine,
    clients: usize,
    length: Duration,
) -> io::Result<Beside> {
    let alone = verify(gateway, world, engine, length)?;
    let before = super::cpu::size(gateway.pid());
    let address = gateway.address(engine);
    beside(gateway, world, engine, "idle", clients, length, &alone, before.resident, move |ending| {
        silent(address, clients, ending)
    })
}

#[expect(clippy::too_many_arguments, reason = "the two kinds of clients differ in nothing but these")]
fn beside(
    gateway: &Gateway,
    world: &mut World,
    engine: Engine,
    what: &'static str,
    clients: usize,
    length: Duration,
    alone: &Figure,
    resident_before: u64,
    crowd: impl FnOnce(Arc<AtomicBool>) -> io::Result<Fate> + Send,
) -> io::Result<Beside> {
    let ending = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let crowd = {
            let ending = Arc::clone(&ending);
            scope.spawn(move || crowd(ending))
        };
        // Until they have all come in.
        pause(Duration::from_secs(2));
        let with = verify(gateway, world, engine, length);
        let size = super::cpu::size(gateway.pid());
        ending.store(true, Relaxed);
        let fate = crowd.join().map_err(|_panic| io::Error::other("the crowd has panicked"))??;
        let with = with?;
        Ok(Beside {
            engine: engine.name(),
            what,
            clients,
            alone_per_second: alone.per_second,
            per_second: with.per_second,
            latency: with.latency,
            errors: with.failed() + with.refused,
            answered: fate.answered,
            waiting: fate.waiting,
            closed: fate.closed,
            failed: fate.failed,
            memory_before: real(resident_before) / 1024.0,
            memory: real(size.resident) / 1024.0,
            memory_at_rest: None,
            threads: size.threads,
        })
    })
}

/// Resident memory with silent connections, in MiB.
///
/// # Errors
/// No sockets.
pub fn memory_with_idle(gateway: &Gateway, engine: Engine, clients: usize) -> io::Result<f64> {
    let ending = Arc::new(AtomicBool::new(false));
    let address = gateway.address(engine);
    thread::scope(|scope| {
        let crowd = {
            let ending = Arc::clone(&ending);
            scope.spawn(move || silent(address, clients, ending))
        };
        pause(Duration::from_secs(3));
        let size = super::cpu::size(gateway.pid());
        ending.store(true, Relaxed);
        crowd.join().map_err(|_panic| io::Error::other("the crowd has panicked"))??;
        Ok(real(size.resident) / 1024.0)
    })
}

/// Connections that ask once and then stay open until they are told to end.
fn silent(address: SocketAddr, clients: usize, ending: Arc<AtomicBool>) -> io::Result<Fate> {
    let plan = Plan {
        address,
        connections: clients,
        pace: Pace::Closed,
        warm_up: Duration::ZERO,
        length: Duration::from_secs(60),
    };
    let mut load = Once { same: Same::get(address, "/health/live", None), ending, answered: 0, lost: 0 };
    let tally = driver::drive(&plan, &mut load, &mut |_: Mark| {})?;
    let failed = tally.failed();
    Ok(Fate { answered: load.answered, waiting: load.lost.saturating_sub(failed), closed: tally.closed_idle, failed })
}

/// One request on each connection, which then stays open.
struct Once {
    same: Same,
    ending: Arc<AtomicBool>,
    answered: u64,
    lost: u64,
}

impl Load for Once {
    fn request(&mut self, connection: usize, out: &mut Vec<u8>) -> Kind {
        self.same.request(connection, out)
    }

    fn answer(&mut self, connection: usize, kind: Kind, status: u16, body: &[u8]) -> Verdict {
        self.answered += 1;
        self.same.answer(connection, kind, status, body)
    }

    fn lost(&mut self, _: usize) {
        self.lost += 1;
    }

    fn goes_on(&self) -> bool {
        false
    }

    fn is_done(&self) -> bool {
        self.ending.load(Relaxed)
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(200)
    }
}

struct Dripping {
    stream: TcpStream,
    sent: usize,
    received: Vec<u8>,
}

fn connect(address: SocketAddr) -> io::Result<Dripping> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(Dripping { stream, sent: 0, received: Vec::new() })
}

/// Sends and reads a few bytes of each connection in turn until it is told to end.
fn drip(address: SocketAddr, request: &[u8], clients: usize, ending: &AtomicBool) -> io::Result<Fate> {
    let mut fate = Fate::default();
    let mut connections: Vec<Option<Dripping>> = (0..clients).map(|_| None).collect();
    while !ending.load(Relaxed) {
        let began = Instant::now();
        for slot in &mut connections {
            let Some(connection) = slot else {
                match connect(address) {
                    Ok(connection) => *slot = Some(connection),
                    Err(_) => fate.failed += 1,
                }
                continue;
            };
            match connection.turn(request) {
                Ok(false) => {}
                Ok(true) => {
                    fate.answered += 1;
                    // The next request goes over the same connection.
                    connection.sent = 0;
                    connection.received.clear();
                }
                Err(error) => {
                    if error.kind() == ErrorKind::UnexpectedEof {
                        fate.closed += 1;
                    } else {
                        fate.failed += 1;
                    }
                    *slot = None;
                }
            }
        }
        pause(DRIP_EVERY.saturating_sub(began.elapsed()));
    }
    Ok(fate)
}

impl Dripping {
    /// Moves a few bytes; true when an answer is whole.
    fn turn(&mut self, request: &[u8]) -> io::Result<bool> {
        let would_block = |error: io::Error| if error.kind() == ErrorKind::WouldBlock { Ok(0) } else { Err(error) };
        let end = (self.sent + DRIP_BYTES).min(request.len());
        if let Some(part) = request.get(self.sent..end).filter(|part| !part.is_empty()) {
            self.sent += self.stream.write(part).or_else(would_block)?;
            return Ok(false);
        }
        // Answers are longer than requests: read four times as fast.
        let mut part = [0; DRIP_BYTES * 4];
        match self.stream.read(&mut part) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.received.extend_from_slice(part.get(..count).unwrap_or_default()),
            Err(error) => drop(would_block(error)?),
        }
        Ok(driver::is_whole(&self.received))
    }
}

/// Ten times as many sign-ins as the gateway can do.
///
/// # Errors
/// No sockets.
pub fn storm(gateway: &Gateway, world: &mut World, engine: Engine, length: Duration) -> io::Result<Storm> {
    let address = gateway.address(engine);
    let watched = Watched::alone(gateway.pid());
    let mut sign_in = |connections: usize, pace: Pace, warm_up: Duration, length: Duration| {
        let plan = Plan { address, connections, pace, warm_up, length };
        let mut load = match pace {
            Pace::Closed => Traffic::new(world, engine, Scenario::Login, &plan),
            Pace::Open { .. } => Traffic::of_strangers(world, engine, &plan),
        };
        measure::measure(&plan, &mut load, &watched, &mut || {})
    };
    let capacity = sign_in(OTHERS, Pace::Closed, Duration::from_secs(1), Duration::from_secs(3))?.per_second;
    let arrivals = (capacity * 10.0).max(10.0);
    let ending = AtomicBool::new(false);
    let (figure, live, asked, failed) = thread::scope(|scope| {
        let probe = scope.spawn(|| probe(address, &ending));
        let figure = sign_in(STRANGERS, Pace::Open { per_second: arrivals }, Duration::from_millis(500), length);
        ending.store(true, Relaxed);
        let (live, asked, failed) = probe.join().map_err(|_panic| io::Error::other("the probe has panicked"))?;
        Ok::<_, io::Error>((figure?, live, asked, failed))
    })?;
    let after = sign_in(OTHERS, Pace::Closed, Duration::from_millis(1000), Duration::from_secs(2))?;
    Ok(Storm {
        engine: engine.name(),
        seconds: figure.seconds,
        capacity,
        arrivals,
        offered: figure.offered,
        accepted: figure.good,
        accepted_per_second: figure.per_second,
        accepted_latency: figure.latency,
        refused: figure.refused,
        refused_without_retry_after: figure.refused_without_retry_after,
        refused_latency: figure.refusal_latency,
        errors: figure.failed(),
        live,
        live_asked: asked,
        live_failed: failed,
        after_per_second: after.per_second,
        memory_peak: figure.memory.peak,
    })
}

/// Asks twenty times a second whether the gateway lives, each time on a connection that is kept.
fn probe(address: SocketAddr, ending: &AtomicBool) -> (Latency, u64, u64) {
    let (mut latencies, mut asked, mut failed) = (histogram(), 0, 0);
    let mut kept: Option<TcpStream> = None;
    while !ending.load(Relaxed) {
        let began = Instant::now();
        asked += 1;
        match live(address, &mut kept) {
            Ok(()) => latencies.saturating_record(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)),
            Err(_) => failed += 1,
        }
        pause(Duration::from_millis(50).saturating_sub(began.elapsed()));
    }
    (Latency::of(&latencies), asked, failed)
}

fn live(address: SocketAddr, kept: &mut Option<TcpStream>) -> io::Result<()> {
    for turn in 0..2 {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        let mut received = Vec::new();
        let mut ask = || -> io::Result<()> {
            stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: bench\r\n\r\n")?;
            let mut part = [0; 4096];
            while !driver::is_whole(&received) {
                match stream.read(&mut part)? {
                    0 => return Err(ErrorKind::UnexpectedEof.into()),
                    count => received.extend_from_slice(part.get(..count).unwrap_or_default()),
                }
            }
            Ok(())
        };
        match ask() {
            Ok(()) => {
                if !received.windows(17).any(|window| window.eq_ignore_ascii_case(b"connection: close")) {
                    *kept = Some(stream);
                }
                return if received.starts_with(b"HTTP/1.1 200") { Ok(()) } else { Err(io::Error::other("not live")) };
            }
            // A kept connection may have been closed.
            Err(_) if turn == 0 && received.is_empty() => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("closed twice"))
}
