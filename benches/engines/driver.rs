//! A load generator on one thread, as cheap as can be since it shares the machine with what it measures: non-blocking
//! sockets under one `epoll`, one read and one write for each request.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    io::{self, ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token, event::Event, net::TcpStream, unix::SourceFd};
use rustix::{
    fd::{AsRawFd as _, OwnedFd},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};

/// A request that has no answer by then has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// A client that was told to come back later does so after this at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 64 << 10;
const TIMER: Token = Token(usize::MAX);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Login,
    Register,
    Refresh,
    Verify,
    Me,
    /// An answer that takes no work.
    Fixed,
}

/// What an answer was.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// 503 or 429: the server says that it is at its limit.
    Refused,
    Wrong(String),
}

/// Makes the requests of a run and reads its answers.
pub trait Load {
    /// Appends the next request of a connection.
    fn request(&mut self, connection: usize, out: &mut Vec<u8>) -> Kind;
    fn answer(&mut self, connection: usize, kind: Kind, status: u16, body: &[u8]) -> Verdict;
    /// There will be no answer to the connection's last request.
    fn lost(&mut self, _connection: usize) {}
    /// Whether a connection asks again once it has its answer.
    fn goes_on(&self) -> bool {
        true
    }
    /// Whether the run may end before its time.
    fn is_done(&self) -> bool {
        false
    }
    /// How long the answers to the last requests are waited for.
    fn patience(&self) -> Duration {
        Duration::from_secs(40)
    }
}

/// When the next request begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// When the connection's last one is answered.
    Closed,
    /// At a fixed rate, whatever the answers do; latency counts from the scheduled arrival.
    Open { per_second: f64 },
}

pub struct Plan {
    pub address: SocketAddr,
    pub connections: usize,
    pub pace: Pace,
    pub warm_up: Duration,
    pub length: Duration,
}

/// Where a run has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Began,
    Ended,
    /// Some time has passed.
    Tick,
}

/// What a run has counted between its begin and its end.
pub struct Tally {
    pub seconds: f64,
    pub good: u64,
    pub refused: u64,
    /// Refusals that did not say when to come back.
    pub unexplained: u64,
    pub errors: BTreeMap<String, u64>,
    /// Connections opened again because the server had closed them between two requests.
    pub reconnects: u64,
    /// Connections that the server closed while they had no request.
    pub closed_idle: u64,
    /// Arrivals of an open loop that fell into the window.
    pub offered: u64,
    /// Latencies of good answers, in microseconds.
    pub latencies: BTreeMap<Kind, Histogram<u64>>,
    pub refusals: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        Self {
            seconds: 0.0,
            good: 0,
            refused: 0,
            unexplained: 0,
            errors: BTreeMap::new(),
            reconnects: 0,
            closed_idle: 0,
            offered: 0,
            latencies: BTreeMap::new(),
            refusals: histogram(),
        }
    }

    pub fn all_latencies(&self) -> Histogram<u64> {
        let mut sum = histogram();
        for part in self.latencies.values() {
            // Both have the same bounds.
            let _ = sum.add(part);
        }
        sum
    }

    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

#[expect(clippy::expect_used, reason = "the bounds are constants")]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 300_000_000, 3).expect("valid bounds")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

struct Connection {
    stream: Option<TcpStream>,
    is_connecting: bool,
    /// Whether the server has answered on this stream.
    is_proven: bool,
    was_opened: bool,
    is_busy: bool,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// From when the latency counts.
    due: Instant,
    kind: Kind,
}

enum Parsed {
    Partial,
    Malformed,
    Whole { status: u16, closes: bool, retry_after: Option<u64>, body: std::ops::Range<usize> },
}

/// Drives a load against a server.
///
/// # Errors
/// The sockets cannot be made or watched; what the server does is never an error.
pub fn drive(plan: &Plan, load: &mut dyn Load, watch: &mut dyn FnMut(Mark)) -> io::Result<Tally> {
    let poll = Poll::new()?;
    let now = Instant::now();
    let connections = (0..plan.connections).map(|_| Connection {
        stream: None,
        is_connecting: false,
        is_proven: false,
        was_opened: false,
        is_busy: false,
        out: Vec::new(),
        sent: 0,
        input: Vec::new(),
        due: now,
        kind: Kind::Fixed,
    });
    let from = now + plan.warm_up;
    let mut drive = Drive {
        connections: connections.collect(),
        poll,
        plan,
        load,
        tally: Tally::new(),
        buffer: vec![0; READ_BYTES],
        timers: BinaryHeap::new(),
        idle: Vec::new(),
        backlog: VecDeque::new(),
        busy: 0,
        from,
        until: from + plan.length,
        is_counting: false,
        is_ending: false,
    };
    drive.run(watch)?;
    Ok(drive.tally)
}

struct Drive<'a> {
    connections: Vec<Connection>,
    poll: Poll,
    plan: &'a Plan,
    load: &'a mut dyn Load,
    tally: Tally,
    buffer: Vec<u8>,
    /// Connections that wait before they ask again.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Connections without a request, in an open loop.
    idle: Vec<usize>,
    /// Arrivals that no connection was free for.
    backlog: VecDeque<Instant>,
    busy: usize,
    from: Instant,
    until: Instant,
    is_counting: bool,
    is_ending: bool,
}

impl Drive<'_> {
    fn run(&mut self, watch: &mut dyn FnMut(Mark)) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let timer = self.start()?;
        let mut next_arrival = Instant::now();
        let mut began = next_arrival;
        let mut ticked = next_arrival;
        loop {
            let now = Instant::now();
            if !self.is_counting && now >= self.from {
                self.is_counting = true;
                watch(Mark::Began);
                began = Instant::now();
                self.until = began + self.plan.length;
                self.from = began;
            }
            if !self.is_ending && (now >= self.until || self.load.is_done()) {
                self.is_ending = true;
                self.until = self.until.min(now);
                self.tally.seconds = began.elapsed().as_secs_f64();
                watch(Mark::Ended);
            }
            if now.duration_since(ticked) > Duration::from_millis(250) {
                ticked = now;
                watch(Mark::Tick);
                self.give_up_on_silence(now);
            }
            if self.is_ending
                && ((self.busy == 0 && self.backlog.is_empty()) || now > self.until + self.load.patience())
            {
                self.abandon();
                return Ok(());
            }
            let next_mark = if self.is_counting { self.until } else { self.from };
            let mut wait = next_mark.saturating_duration_since(now).clamp(Duration::ZERO, Duration::from_millis(100));
            if self.is_ending {
                wait = Duration::from_millis(50);
            }
            if let Some(Reverse((at, _))) = self.timers.peek() {
                wait = wait.min(at.saturating_duration_since(now));
            }
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                match event.token() {
                    TIMER => {
                        if let Some(timer) = &timer {
                            // Which expirations these were is told by the clock.
                            let _ = rustix::io::read(timer, &mut [0; 8]);
                        }
                    }
                    Token(index) => self.on_event(index, event),
                }
            }
            if let Pace::Open { per_second } = self.plan.pace {
                self.arrive(&mut next_arrival, Duration::from_secs_f64(1.0 / per_second));
            }
            let now = Instant::now();
            while self.timers.peek().is_some_and(|Reverse((at, _))| *at <= now) {
                if let Some(Reverse((_, index))) = self.timers.pop() {
                    self.next(index, now);
                }
            }
        }
    }

    /// Opens the connections; in an open loop, gives a timer that is as fine as the arrivals.
    fn start(&mut self) -> io::Result<Option<OwnedFd>> {
        let now = Instant::now();
        match self.plan.pace {
            Pace::Closed => {
                (0..self.connections.len()).for_each(|index| self.begin(index, now));
                Ok(None)
            }
            Pace::Open { per_second } => {
                self.idle = (0..self.connections.len()).rev().collect();
                let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
                let nanoseconds = Duration::from_secs_f64(1.0 / per_second).as_nanos();
                let every = Timespec {
                    tv_sec: i64::try_from(nanoseconds / 1_000_000_000).unwrap_or_default(),
                    tv_nsec: i64::try_from(nanoseconds % 1_000_000_000).unwrap_or_default(),
                };
                let times = Itimerspec { it_interval: every, it_value: every };
                timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
                self.poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
                Ok(Some(timer))
            }
        }
    }

    fn arrive(&mut self, next: &mut Instant, every: Duration) {
        let now = Instant::now();
        while *next <= now && !self.is_ending {
            if self.is_counting && *next >= self.from && *next < self.until {
                self.tally.offered += 1;
            }
            match self.idle.pop() {
                Some(index) => self.begin(index, *next),
                None => self.backlog.push_back(*next),
            }
            *next += every;
        }
        // Those that are waiting for a connection are still answered.
    }

    /// Sends the next request of a connection.
    fn begin(&mut self, index: usize, due: Instant) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.out.clear();
        connection.kind = self.load.request(index, &mut connection.out);
        connection.sent = 0;
        connection.due = due;
        connection.is_busy = true;
        self.busy += 1;
        if connection.stream.is_some() {
            self.flush(index);
        } else {
            self.open(index);
        }
    }

    fn open(&mut self, index: usize) {
        let opened = TcpStream::connect(self.plan.address).and_then(|mut stream| {
            stream.set_nodelay(true)?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(index), interest)?;
            Ok(stream)
        });
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.was_opened && self.is_counting && !self.is_ending {
            self.tally.reconnects += 1;
        }
        connection.was_opened = true;
        connection.is_proven = false;
        connection.is_connecting = true;
        connection.sent = 0;
        connection.input.clear();
        match opened {
            Ok(stream) => connection.stream = Some(stream),
            Err(error) => self.fail(index, format!("connect: {error}")),
        }
    }

    fn on_event(&mut self, index: usize, event: &Event) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(stream) = &connection.stream else { return };
        if connection.is_connecting {
            match stream.take_error() {
                Ok(None) if event.is_writable() && stream.peer_addr().is_ok() => connection.is_connecting = false,
                Ok(None) => return,
                Ok(Some(error)) | Err(error) => return self.fail(index, format!("connect: {error}")),
            }
        }
        if connection.is_busy && connection.sent < connection.out.len() {
            self.flush(index);
        }
        if event.is_readable() || event.is_read_closed() {
            self.read(index);
        }
    }

    fn flush(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(stream) = connection.stream.as_mut().filter(|_| !connection.is_connecting) else { return };
        while let Some(rest) = connection.out.get(connection.sent..).filter(|rest| !rest.is_empty()) {
            match stream.write(rest) {
                Ok(count) => connection.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.closed(index, &error.to_string()),
            }
        }
    }

    fn read(&mut self, index: usize) {
        loop {
            let Some(connection) = self.connections.get_mut(index) else { return };
            let Some(stream) = connection.stream.as_mut() else { return };
            let count = match stream.read(&mut self.buffer) {
                Ok(0) => return self.closed(index, "closed before an answer"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return self.closed(index, &error.to_string()),
            };
            let part = self.buffer.get(..count).unwrap_or_default();
            let is_first = connection.input.is_empty();
            if !is_first {
                connection.input.extend_from_slice(part);
            }
            let whole: &[u8] = if is_first { part } else { &connection.input };
            match parse(whole) {
                Parsed::Malformed => return self.fail(index, "not HTTP".to_owned()),
                Parsed::Partial => {
                    if is_first {
                        connection.input.extend_from_slice(part);
                    }
                }
                Parsed::Whole { status, closes, retry_after, body } => {
                    if !connection.is_busy {
                        return self.fail(index, "an answer to nothing".to_owned());
                    }
                    let body = whole.get(body).unwrap_or_default();
                    let verdict = self.load.answer(index, connection.kind, status, body);
                    connection.input.clear();
                    connection.is_proven = true;
                    if closes {
                        connection.stream = None;
                        self.tally.closed_idle += u64::from(!self.load.goes_on());
                    }
                    return self.answered(index, verdict, retry_after);
                }
            }
            // A read that did not fill the buffer has emptied the socket; the next bytes are another event.
            if count < READ_BYTES {
                return;
            }
        }
    }

    fn answered(&mut self, index: usize, verdict: Verdict, retry_after: Option<u64>) {
        let now = Instant::now();
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.is_busy = false;
        self.busy -= 1;
        let (kind, latency, due) = (connection.kind, now.duration_since(connection.due), connection.due);
        let is_counted = self.counts(due);
        let mut pause = Duration::ZERO;
        if verdict == Verdict::Refused {
            pause = Duration::from_secs(retry_after.unwrap_or(1)).min(LONGEST_PAUSE);
        }
        if is_counted {
            match verdict {
                Verdict::Good => {
                    if !self.is_ending {
                        self.tally.good += 1;
                    }
                    self.tally.latencies.entry(kind).or_insert_with(histogram).saturating_record(micros(latency));
                }
                Verdict::Refused => {
                    self.tally.refused += 1;
                    self.tally.unexplained += u64::from(retry_after.is_none());
                    self.tally.refusals.saturating_record(micros(latency));
                }
                Verdict::Wrong(what) => *self.tally.errors.entry(what).or_default() += 1,
            }
        }
        match self.plan.pace {
            Pace::Closed if !pause.is_zero() => self.timers.push(Reverse((now + pause, index))),
            _ => self.next(index, now),
        }
    }

    /// Whether what happens now to a request that was due then belongs to the window.
    fn counts(&self, due: Instant) -> bool {
        match self.plan.pace {
            Pace::Closed => self.is_counting && !self.is_ending,
            Pace::Open { .. } => self.is_counting && due >= self.from && due < self.until,
        }
    }

    /// Lets a connection without a request go on.
    fn next(&mut self, index: usize, now: Instant) {
        match self.plan.pace {
            Pace::Closed if self.is_ending || !self.load.goes_on() => {}
            Pace::Closed => self.begin(index, now),
            Pace::Open { .. } => match self.backlog.pop_front() {
                Some(due) => self.begin(index, due),
                None => self.idle.push(index),
            },
        }
    }

    /// The server closed the connection. One that it had answered on before may be closed between two requests: the
    /// request goes out once more.
    fn closed(&mut self, index: usize, why: &str) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.stream = None;
        if !connection.is_busy {
            self.tally.closed_idle += 1;
            return;
        }
        if connection.is_proven && connection.input.is_empty() {
            self.open(index);
        } else {
            self.fail(index, why.to_owned());
        }
    }

    fn fail(&mut self, index: usize, why: String) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.stream = None;
        connection.input.clear();
        if !connection.is_busy {
            return;
        }
        connection.is_busy = false;
        self.busy -= 1;
        self.load.lost(index);
        let due = connection.due;
        if self.counts(due) {
            *self.tally.errors.entry(why).or_default() += 1;
        }
        // Not at once, or a server that is down would be asked without end.
        self.timers.push(Reverse((Instant::now() + Duration::from_millis(20), index)));
    }

    fn give_up_on_silence(&mut self, now: Instant) {
        for index in 0..self.connections.len() {
            let is_late = |c: &Connection| c.is_busy && now.duration_since(c.due) > PATIENCE;
            if self.connections.get(index).is_some_and(is_late) {
                self.fail(index, "no answer".to_owned());
            }
        }
    }

    /// Gives up on what is not answered yet.
    fn abandon(&mut self) {
        for index in 0..self.connections.len() {
            let Some(connection) = self.connections.get(index).filter(|connection| connection.is_busy) else {
                continue;
            };
            let due = connection.due;
            self.load.lost(index);
            if matches!(self.plan.pace, Pace::Open { .. }) && self.counts(due) {
                *self.tally.errors.entry("no answer".to_owned()).or_default() += 1;
            }
        }
        let unsent = self.backlog.iter().filter(|due| self.counts(**due)).count();
        if unsent > 0 {
            let unsent = u64::try_from(unsent).unwrap_or(u64::MAX);
            *self.tally.errors.entry("never sent".to_owned()).or_default() += unsent;
        }
    }
}

/// Whether an answer is there, body and all.
pub fn is_whole(bytes: &[u8]) -> bool {
    matches!(parse(bytes), Parsed::Whole { .. })
}

fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Malformed,
    };
    let (mut length, mut closes, mut retry_after) = (0, false, None);
    for header in response.headers.iter() {
        let text = || std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            let Ok(parsed) = text().parse::<usize>() else { return Parsed::Malformed };
            length = parsed;
        } else if header.name.eq_ignore_ascii_case("connection") {
            closes = text().eq_ignore_ascii_case("close");
        } else if header.name.eq_ignore_ascii_case("retry-after") {
            retry_after = text().parse().ok();
        }
    }
    if bytes.len() < head + length {
        return Parsed::Partial;
    }
    Parsed::Whole { status: response.code.unwrap_or_default(), closes, retry_after, body: head..head + length }
}
