//! The blocking HTTP/1.1 server of the v1 engine: rouille's types above, our own sockets below.
//! `rouille::Server` rests on tiny_http 0.12, which has no time-outs and no limits, stops when descriptors run out,
//! and lets one request hide in another; here every wait, length and count is bounded and doubtful framing is refused.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use rouille::{Request, Response};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

/// Argon2 keeps its memory on the heap, so a request needs little stack; only what is touched is resident.
const STACK_BYTES: usize = 1 << 20;
/// So many threads wait for connections from the start.
const FIRST_THREADS: usize = 8;
/// How long a thread waits after an `accept` that failed, for instance because descriptors ran out.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// What an idle connection may keep allocated.
const IDLE_BUFFER_BYTES: usize = 4 << 10;
/// What the head of a response takes, so that its buffer seldom grows.
const USUAL_HEAD_BYTES: usize = 700;
/// How long and how much a client may go on sending while it is told that its request is refused.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;
/// How long a connection may be silent, before its first request and between two, while others wait for a thread.
const FIRST_SILENCE: Duration = Duration::from_secs(1);
const LATER_SILENCE: Duration = Duration::from_millis(100);
/// How often a silent connection looks whether others wait for a thread.
const RECHECK: Duration = Duration::from_millis(500);
/// Room for this many header fields is made without the heap.
const FEW_HEADERS: usize = 64;
/// How long a request that arrives just as the server closes is still looked for.
const LAST_LOOK: Duration = Duration::from_millis(20);

/// What one client can take from the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// As many connections are served at once; further ones wait in the kernel's queue.
    pub threads: usize,
    /// Longest request line and headers together, in bytes.
    pub head_bytes: usize,
    /// Most header fields of a request.
    pub headers: usize,
    /// Longest body, in bytes, after chunks are joined.
    pub body_bytes: usize,
    /// A head must be complete this long after its first byte; the first head, after the connection was accepted.
    pub head_timeout: Duration,
    /// A body must be complete this long after its head.
    pub body_timeout: Duration,
    /// A connection may be silent this long between two requests.
    pub idle_timeout: Duration,
    /// A client must have taken a whole response within this time.
    pub write_timeout: Duration,
    /// A connection is closed after so many requests.
    pub requests_per_connection: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            threads: 64,
            head_bytes: 16 << 10,
            headers: 64,
            body_bytes: 64 << 10,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15),
            write_timeout: Duration::from_secs(10),
            requests_per_connection: 1000,
        }
    }
}

/// Why the body of a request is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// Longer than [`Limits::body_bytes`], declared or sent.
    TooLarge,
    /// Not complete within [`Limits::body_timeout`].
    TimedOut,
    /// Its chunks are not well-formed.
    Malformed,
}

/// A running server; it goes on serving until [`Server::close`] is called.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    listener: TcpListener,
    limits: Limits,
    closing: AtomicBool,
    /// Threads that wait in `accept`.
    idle_threads: AtomicUsize,
    /// Those that were started: more are, up to [`Limits::threads`], when the last idle one has accepted.
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Whether more can be started.
    can_grow: AtomicBool,
    /// Set while threads cannot be started or `accept` fails, so that the log has one line per shortage.
    short_of_threads: AtomicBool,
    short_of_descriptors: AtomicBool,
    /// The connection of each thread.
    slots: Vec<Mutex<Option<Slot>>>,
    /// Threads that have not ended, and a signal for when that or `closing` changes.
    running: Mutex<usize>,
    changed: Condvar,
}

/// A connection as the other threads see it.
#[derive(Debug)]
struct Slot {
    stream: Arc<TcpStream>,
    /// Since when it has waited for the first byte of a request; `None` while a request is under way.
    waiting_since: Option<Instant>,
    /// Whether it has had an answer already.
    answered: bool,
}

/// Starts the first of the threads `v1-0`, `v1-1`, … that accept connections and call `answer` for every well-formed request.
///
/// `answer` is told when the body could not be read; the request then has an empty body, and the connection is closed
/// after the response. A head that is malformed, too long or late never reaches `answer`.
///
/// # Errors
///
/// When the listener has no address or a thread cannot be started.
pub fn start<F>(listener: TcpListener, limits: Limits, answer: F) -> io::Result<Server>
where
    F: Fn(&Request, Result<(), BodyError>) -> Response + Send + Sync + 'static,
{
    let address = listener.local_addr()?;
    listener.set_nonblocking(false)?;
    let threads = limits.threads.max(1);
    let shared = Arc::new(Shared {
        listener,
        limits,
        closing: AtomicBool::new(false),
        idle_threads: AtomicUsize::new(0),
        threads: Mutex::new(Vec::new()),
        can_grow: AtomicBool::new(true),
        short_of_threads: AtomicBool::new(false),
        short_of_descriptors: AtomicBool::new(false),
        slots: (0..threads).map(|_| Mutex::new(None)).collect(),
        running: Mutex::new(0),
        changed: Condvar::new(),
    });
    let answer = Arc::new(answer);
    let server = Server { shared, address };
    for _ in 0..threads.min(FIRST_THREADS) {
        if let Err(error) = grow(&server.shared, &answer) {
            server.close(Duration::from_secs(1));
            return Err(error);
        }
    }
    Ok(server)
}

/// Starts one more thread, and says whether it did: not when there are as many as there may be, or the server closes.
fn grow<F>(shared: &Arc<Shared>, answer: &Arc<F>) -> io::Result<bool>
where
    F: Fn(&Request, Result<(), BodyError>) -> Response + Send + Sync + 'static,
{
    let mut threads = lock(&shared.threads);
    let (index, most) = (threads.len(), shared.slots.len());
    if index == most || shared.is_closing() {
        return Ok(false);
    }
    *lock(&shared.running) += 1;
    let (its, answer) = (Arc::clone(shared), Arc::clone(answer));
    let spawned = thread::Builder::new()
        .name(format!("v1-{index}"))
        .stack_size(STACK_BYTES)
        .spawn(move || its.run(index, &answer));
    shared.can_grow.store(spawned.is_ok() && index + 1 < most, SeqCst);
    match spawned {
        Ok(thread) => {
            threads.push(thread);
            shared.short_of_threads.store(false, SeqCst);
            Ok(true)
        }
        Err(error) => {
            *lock(&shared.running) -= 1;
            Err(error)
        }
    }
}

impl Server {
    /// The address that is listened on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more connections, ends the silent ones, and waits for running requests.
    ///
    /// False when some were not done within `grace`; their connections are then cut.
    pub fn close(self, grace: Duration) -> bool {
        let shared = &self.shared;
        shared.closing.store(true, SeqCst);
        // Linux wakes every thread in `accept` and refuses new connections; elsewhere each is woken by a connection.
        if SockRef::from(&shared.listener).shutdown(Shutdown::Both).is_err() {
            for _ in lock(&shared.threads).iter() {
                drop(TcpStream::connect_timeout(&reachable(self.address), Duration::from_millis(100)));
            }
        }
        for slot in &shared.slots {
            if let Some(slot) = lock(slot).as_ref().filter(|slot| slot.waiting_since.is_some()) {
                drop(slot.stream.shutdown(Shutdown::Read));
            }
        }
        let done = shared.wait_until_ended(grace);
        if !done {
            for slot in &shared.slots {
                if let Some(slot) = lock(slot).as_ref() {
                    drop(slot.stream.shutdown(Shutdown::Both));
                }
            }
            // A handler that still computes cannot be stopped; its thread ends with the process.
            if !shared.wait_until_ended(Duration::from_millis(100)) {
                return false;
            }
        }
        for thread in std::mem::take(&mut *lock(&shared.threads)) {
            drop(thread.join());
        }
        done
    }
}

/// An address of this machine that leads to a listener on `bound`.
fn reachable(bound: SocketAddr) -> SocketAddr {
    match bound {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, bound.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, bound.port()).into(),
        _ => bound,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a thread as ended, whichever way it ends.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.changed.notify_all();
    }
}

/// Empties a thread's slot, whichever way its connection ends.
struct Occupied<'a>(&'a Mutex<Option<Slot>>);

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        lock(self.0).take();
    }
}

impl Shared {
    fn is_closing(&self) -> bool {
        self.closing.load(SeqCst)
    }

    /// Whether somebody waits whom no thread is free to serve.
    fn is_crowded(&self) -> bool {
        // Without descriptors, a thread more would accept nobody.
        let can_grow = self.can_grow.load(SeqCst) && !self.short_of_descriptors.load(SeqCst);
        if self.idle_threads.load(SeqCst) > 0 || can_grow {
            return false;
        }
        let mut waiting = [PollFd::new(&self.listener, PollFlags::IN)];
        // When it cannot be told, it may be so.
        poll(&mut waiting, Some(&Timespec::default())).map_or(true, |found| found > 0)
    }

    /// Whether every thread has ended within `limit`.
    fn wait_until_ended(&self, limit: Duration) -> bool {
        self.changed.notify_all();
        let running = lock(&self.running);
        let waited = self.changed.wait_timeout_while(running, limit, |running| *running > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }

    fn run<F>(self: &Arc<Self>, index: usize, answer: &Arc<F>)
    where
        F: Fn(&Request, Result<(), BodyError>) -> Response + Send + Sync + 'static,
    {
        let _running = Running(self);
        let Some(slot) = self.slots.get(index) else { return };
        while !self.is_closing() {
            self.idle_threads.fetch_add(1, SeqCst);
            let accepted = self.listener.accept();
            let idle_before = self.idle_threads.fetch_sub(1, SeqCst);
            match accepted {
                Ok((stream, peer)) => {
                    self.short_of_descriptors.store(false, SeqCst);
                    if idle_before == 1 {
                        self.make_room(answer);
                    }
                    // A fault of this file must cost one connection, not a thread.
                    let served = catch_unwind(AssertUnwindSafe(|| self.serve(slot, stream, peer, &**answer)));
                    if served.is_err() {
                        tracing::error!("a connection ended in a panic");
                    }
                }
                Err(_) if self.is_closing() => return,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    if !self.short_of_descriptors.swap(true, SeqCst) {
                        tracing::warn!(%error, "connections cannot be accepted for now");
                    }
                    let running = lock(&self.running);
                    drop(self.changed.wait_timeout_while(running, ACCEPT_BACKOFF, |_| !self.is_closing()));
                }
            }
        }
    }

    /// Sees to it that somebody can accept another connection.
    fn make_room<F>(self: &Arc<Self>, answer: &Arc<F>)
    where
        F: Fn(&Request, Result<(), BodyError>) -> Response + Send + Sync + 'static,
    {
        let has_grown = grow(self, answer).unwrap_or_else(|error| {
            if !self.short_of_threads.swap(true, SeqCst) {
                tracing::warn!(%error, "no further thread can be started for now");
            }
            false
        });
        if !has_grown {
            self.reclaim();
        }
    }

    /// Ends the connection that has been silent longest, so that its thread can accept another.
    fn reclaim(&self) {
        let now = Instant::now();
        let waiting = self.slots.iter().filter_map(|slot| {
            let guard = lock(slot);
            let seen = guard.as_ref()?;
            let since = seen.waiting_since?;
            let allowed = if seen.answered { LATER_SILENCE } else { FIRST_SILENCE };
            (now.duration_since(since) >= allowed).then_some((since, slot))
        });
        let Some((since, slot)) = waiting.min_by_key(|(since, _)| *since) else { return };
        if let Some(slot) = lock(slot).as_ref().filter(|slot| slot.waiting_since == Some(since)) {
            drop(slot.stream.shutdown(Shutdown::Read));
        }
    }

    /// Serves one connection until it ends.
    fn serve<F: Fn(&Request, Result<(), BodyError>) -> Response>(
        &self,
        slot: &Mutex<Option<Slot>>,
        stream: TcpStream,
        peer: SocketAddr,
        answer: &F,
    ) {
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let stream = Arc::new(stream);
        *lock(slot) = Some(Slot { stream: Arc::clone(&stream), waiting_since: None, answered: false });
        let _occupied = Occupied(slot);
        let mut connection = Connection {
            stream: &stream,
            buffer: Vec::new(),
            deadline: Instant::now(),
            read_patience: Patience::default(),
            write_patience: Patience::default(),
        };
        for served in 1.. {
            let first = served == 1;
            let head = match self.wait_for_request(slot, &mut connection, first) {
                Ok(()) => connection.read_head(&self.limits),
                Err(ended) => Err(ended),
            };
            let head = match head {
                Ok(head) => head,
                Err(Ended::Refused(status)) => {
                    tracing::debug!(%peer, status, "a malformed or late request head was refused");
                    connection.refuse(status, self.limits.write_timeout);
                    return;
                }
                Err(Ended::Gone) => return,
            };
            let (body, read) = match connection.read_body(&head, &self.limits) {
                Ok(body) => (body, Ok(())),
                Err(Unread::Body(error)) => (Vec::new(), Err(error)),
                Err(Unread::Gone) => return,
            };
            let Head { method, target, headers, version, keeps_alive, .. } = head;
            let is_head = method == "HEAD";
            let request = Request::fake_http_from(peer, method, target, headers, body);
            let answered = catch_unwind(AssertUnwindSafe(|| answer(&request, read)));
            let panicked = answered.is_err();
            let response = answered.unwrap_or_else(|_| Response::empty_204().with_status_code(500));
            let stays = keeps_alive
                && read.is_ok()
                && !panicked
                && served < self.limits.requests_per_connection
                && !self.is_closing()
                // A request that is here already is answered before the thread is given to someone else.
                && (!connection.buffer.is_empty() || !self.is_crowded())
                && !asks_to_close(&response);
            let Ok(encoded) = encode(response, version, stays, is_head) else { return };
            if !connection.write(&encoded, self.limits.write_timeout) {
                return;
            }
            if !stays {
                // A client that asked for the end sends nothing more; any other may be about to.
                if keeps_alive || read.is_err() {
                    connection.linger();
                }
                return;
            }
            if let Some(slot) = lock(slot).as_mut() {
                slot.answered = true;
            }
        }
    }

    /// Waits for the first byte of a request.
    fn wait_for_request(
        &self,
        slot: &Mutex<Option<Slot>>,
        connection: &mut Connection<'_>,
        first: bool,
    ) -> Result<(), Ended> {
        let mark = |since: Option<Instant>| {
            if let Some(slot) = lock(slot).as_mut() {
                slot.waiting_since = since;
            }
        };
        let since = Instant::now();
        let (patience, allowed) = match first {
            true => (self.limits.head_timeout, FIRST_SILENCE),
            false => (self.limits.idle_timeout, LATER_SILENCE),
        };
        let end = since + patience;
        connection.deadline = end;
        connection.skip_empty_lines();
        if connection.buffer.is_empty() {
            connection.buffer.shrink_to(IDLE_BUFFER_BYTES);
        }
        while connection.buffer.is_empty() {
            // Marked first and looked at afterwards, or a thread that closes or reclaims could miss this connection.
            mark(Some(since));
            let (closing, crowded) = (self.is_closing(), self.is_crowded());
            let now = Instant::now();
            let until = match (closing, crowded) {
                (true, _) => now + LAST_LOOK,
                (false, true) => (since + allowed).max(now + LAST_LOOK),
                // Whoever comes next has no thread to be accepted by.
                (false, false) if self.idle_threads.load(SeqCst) == 0 => now + allowed,
                (false, false) => now + RECHECK,
            };
            connection.deadline = until.min(end);
            let read = connection.read_more();
            mark(None);
            match read {
                Ok(()) => connection.skip_empty_lines(),
                Err(Stopped::Late) if first && until >= end && !closing => return Err(Ended::Refused(408)),
                Err(Stopped::Late) if until < end && !closing && !crowded => {}
                Err(_) => return Err(Ended::Gone),
            }
            connection.deadline = end;
        }
        // The first head's time began with the connection.
        if !first {
            connection.deadline = Instant::now() + self.limits.head_timeout;
        }
        Ok(())
    }
}

/// Why no further byte came.
enum Stopped {
    Late,
    Gone,
}

/// Why there is no request.
#[derive(Debug)]
enum Ended {
    /// To be told by a bare response of this status.
    Refused(u16),
    Gone,
}

/// Why there is no body.
enum Unread {
    Body(BodyError),
    Gone,
}

/// One client's connection, and what it has sent but was not looked at yet.
struct Connection<'a> {
    stream: &'a TcpStream,
    buffer: Vec<u8>,
    deadline: Instant,
    read_patience: Patience,
    write_patience: Patience,
}

/// How long the kernel waits for a connection at most. To set it costs a system call, so it is left as it is while it
/// ends in time and is not much too short.
#[derive(Default)]
struct Patience(Duration);

impl Patience {
    fn set(&mut self, left: Duration, set: impl FnOnce(Option<Duration>) -> io::Result<()>) -> io::Result<()> {
        let wanted = left.min(RECHECK);
        if self.0.is_zero() || self.0 > wanted || self.0 < wanted / 2 {
            set(Some(wanted))?;
            self.0 = wanted;
        }
        Ok(())
    }
}

impl Connection<'_> {
    /// Waits for more bytes until the deadline.
    fn read_more(&mut self) -> Result<(), Stopped> {
        let mut chunk = [0; 8 << 10];
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Stopped::Late);
            }
            if self.read_patience.set(left, |patience| self.stream.set_read_timeout(patience)).is_err() {
                return Err(Stopped::Gone);
            }
            let mut stream = self.stream;
            match stream.read(&mut chunk) {
                Ok(0) => return Err(Stopped::Gone),
                Ok(length) => {
                    self.buffer.extend_from_slice(chunk.get(..length).unwrap_or_default());
                    return Ok(());
                }
                // Late only when the deadline says so.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                }
                Err(_) => return Err(Stopped::Gone),
            }
        }
    }

    /// Drops the empty lines that may stand before a request (RFC 9112 §2.2).
    fn skip_empty_lines(&mut self) {
        let empty = self.buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.buffer.drain(..empty);
    }

    fn read_head(&mut self, limits: &Limits) -> Result<Head, Ended> {
        loop {
            match parse_head(&self.buffer, limits)? {
                Some((length, head)) => {
                    self.buffer.drain(..length);
                    return Ok(head);
                }
                None if self.buffer.len() > limits.head_bytes => return Err(Ended::Refused(431)),
                None => self.read_more().map_err(|stopped| match stopped {
                    Stopped::Late => Ended::Refused(408),
                    Stopped::Gone => Ended::Gone,
                })?,
            }
        }
    }

    fn read_body(&mut self, head: &Head, limits: &Limits) -> Result<Vec<u8>, Unread> {
        self.deadline = Instant::now() + limits.body_timeout;
        match head.body {
            Framing::None => Ok(Vec::new()),
            Framing::Length(length) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length > limits.body_bytes {
                    return Err(Unread::Body(BodyError::TooLarge));
                }
                self.send_continue(head, length > self.buffer.len(), limits)?;
                while self.buffer.len() < length {
                    self.read_body_bytes()?;
                }
                let rest = self.buffer.split_off(length);
                Ok(std::mem::replace(&mut self.buffer, rest))
            }
            Framing::Chunked => {
                self.send_continue(head, self.buffer.is_empty(), limits)?;
                let mut decoder = ChunkDecoder::new(limits.body_bytes, limits.head_bytes);
                loop {
                    let used = decoder.feed(&self.buffer).map_err(Unread::Body)?;
                    self.buffer.drain(..used);
                    if decoder.is_done() {
                        return Ok(decoder.body);
                    }
                    self.read_body_bytes()?;
                }
            }
        }
    }

    fn read_body_bytes(&mut self) -> Result<(), Unread> {
        self.read_more().map_err(|stopped| match stopped {
            Stopped::Late => Unread::Body(BodyError::TimedOut),
            Stopped::Gone => Unread::Gone,
        })
    }

    /// Tells a client that waits for it to send its body.
    fn send_continue(&mut self, head: &Head, is_waiting: bool, limits: &Limits) -> Result<(), Unread> {
        if head.expects_continue && is_waiting && !self.write(b"HTTP/1.1 100 Continue\r\n\r\n", limits.write_timeout) {
            return Err(Unread::Gone);
        }
        Ok(())
    }

    /// Writes all of it within `limit`, or resets the connection.
    fn write(&mut self, mut bytes: &[u8], limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut stream = self.stream;
        while !bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let written = if left.is_zero() {
                Err(ErrorKind::TimedOut.into())
            } else {
                let set = self.write_patience.set(left, |patience| stream.set_write_timeout(patience));
                set.and_then(|()| stream.write(bytes))
            };
            match written {
                Ok(length) if length > 0 => bytes = bytes.get(length..).unwrap_or_default(),
                // Late only when the deadline says so, which is found out above.
                Err(error)
                    if !left.is_zero()
                        && matches!(
                            error.kind(),
                            ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut
                        ) => {}
                Ok(_) | Err(_) => {
                    // Otherwise the kernel would keep what the client does not take.
                    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
                    return false;
                }
            }
        }
        true
    }

    /// Answers a head that is not a request.
    fn refuse(&mut self, status: u16, limit: Duration) {
        let response = Response::empty_204().with_status_code(status);
        if encode(response, Version::Http11, false, false).is_ok_and(|encoded| self.write(&encoded, limit)) {
            self.linger();
        }
    }

    /// Lets the client read our last words: closing a socket with unread input would destroy them.
    fn linger(&mut self) {
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        self.deadline = Instant::now() + LINGER;
        let mut taken = 0;
        while taken < LINGER_BYTES {
            self.buffer.clear();
            if self.read_more().is_err() {
                return;
            }
            taken += self.buffer.len();
        }
    }
}

/// A request's line and headers, understood.
#[derive(Debug)]
struct Head {
    method: String,
    /// Origin form, `*`, or the authority of a CONNECT.
    target: String,
    headers: Vec<(String, String)>,
    version: Version,
    body: Framing,
    keeps_alive: bool,
    expects_continue: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// The head at the start of `bytes` and its length, or `None` while it is incomplete.
///
/// The statuses are those that the v2 engine gives for the same bytes.
fn parse_head(bytes: &[u8], limits: &Limits) -> Result<Option<(usize, Head)>, Ended> {
    // On the stack, where they are as few as they are by default.
    let (mut few, mut many) = ([httparse::EMPTY_HEADER; FEW_HEADERS], Vec::new());
    let slots = few.get_mut(..limits.headers).unwrap_or_else(|| {
        many.resize(limits.headers, httparse::EMPTY_HEADER);
        &mut many
    });
    let mut parsed = httparse::Request::new(slots);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= limits.head_bytes => length,
        Ok(httparse::Status::Complete(_)) | Err(httparse::Error::TooManyHeaders) => return Err(Ended::Refused(431)),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Ended::Refused(400)),
    };
    let malformed = Ended::Refused(400);
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
struct ChunkDecoder {
    body: Vec<u8>,
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
    fn new(body_bytes: usize, line_bytes: usize) -> Self {
        let overhead_left = body_bytes.saturating_mul(5).saturating_add(line_bytes);
        Self { body: Vec::new(), state: ChunkState::FirstDigit, size: 0, body_left: body_bytes, overhead_left }
    }

    fn is_done(&self) -> bool {
        self.state == ChunkState::Done
    }

    /// Takes what it can from `bytes` and says how many those were; it never takes one after the end of the body.
    fn feed(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
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

fn asks_to_close(response: &Response) -> bool {
    let mut headers = response.headers.iter();
    headers.any(|(name, value)| name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close"))
}

/// The bytes of a response, so that it goes out in one write.
fn encode(response: Response, version: Version, stays: bool, is_head: bool) -> io::Result<Vec<u8>> {
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
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn head(bytes: &[u8]) -> Result<Option<(usize, Head)>, u16> {
        parse_head(bytes, &Limits::default()).map_err(|ended| match ended {
            Ended::Refused(status) => status,
            Ended::Gone => 0,
        })
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

    fn serve(limits: Limits) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        start(listener, limits, |request, body| match (request.url().as_str(), body) {
            ("/panic", _) => panic!("asked to"),
            (_, Err(BodyError::TimedOut)) => Response::text("late").with_status_code(408),
            (_, Err(BodyError::TooLarge)) => Response::text("large").with_status_code(413),
            (_, Err(BodyError::Malformed)) => Response::text("malformed").with_status_code(400),
            (path, Ok(())) => {
                let mut body = String::new();
                request.data().expect("not taken yet").read_to_string(&mut body).expect("text");
                Response::text(format!("{path} {body}"))
            }
        })
        .expect("a server")
    }

    fn ask(server: &Server, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(server.address()).expect("a connection");
        stream.write_all(bytes).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and an end");
        answer
    }

    #[test]
    fn pipelined_requests_are_answered_in_turn() {
        let server = serve(Limits::default());
        let answer = ask(
            &server,
            b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nonePOST /b HTTP/1.1\r\nHost: a\r\n\
              Transfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        );
        let order: Vec<_> = ["/a one", "/b two", "/c "].iter().filter_map(|body| answer.find(body)).collect();
        assert!(order.len() == 3 && order.is_sorted(), "{answer}");
        assert_eq!(answer.matches("Connection: close").count(), 1, "{answer}");
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn a_panic_is_an_answer_and_costs_no_thread() {
        let server = serve(Limits { threads: 1, ..Limits::default() });
        for _ in 0..3 {
            let answer = ask(&server, b"GET /panic HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n"), "{answer}");
        }
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn a_client_reads_why_its_large_body_is_refused() {
        let server = serve(Limits::default());
        let mut request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n".to_vec();
        request.resize(request.len() + 1_000_000, b'x');
        let answer = ask(&server, &request);
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("large"), "{answer}");
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn silent_connections_do_not_keep_others_out() {
        let server = serve(Limits { threads: 2, ..Limits::default() });
        let mut silent = Vec::new();
        for _ in 0..4 {
            let mut stream = TcpStream::connect(server.address()).expect("a connection");
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
            assert!(stream.read(&mut [0; 512]).expect("an answer") > 0);
            silent.push(stream);
        }
        let started = Instant::now();
        ask(&server, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(started.elapsed() < Duration::from_secs(3));
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn as_many_connections_as_threads_are_kept_until_one_more_comes() {
        let server = serve(Limits { threads: 2, ..Limits::default() });
        let connect = || TcpStream::connect(server.address()).expect("a connection");
        let ask_again = |stream: &mut TcpStream| {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
            let mut answer = [0; 512];
            let length = stream.read(&mut answer).expect("an answer");
            String::from_utf8_lossy(&answer[..length]).into_owned()
        };
        // One that no thread has taken yet counts as one more.
        let mut kept = [(), ()].map(|()| {
            let mut stream = connect();
            ask_again(&mut stream);
            stream
        });
        for _ in 0..20 {
            for stream in &mut kept {
                let answer = ask_again(stream);
                assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("Connection: close"), "{answer}");
            }
        }
        let _waiting = connect();
        assert!(ask_again(&mut kept[0]).contains("Connection: close"));
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn threads_are_started_as_they_are_needed_up_to_the_limit() {
        let server = serve(Limits { threads: 20, ..Limits::default() });
        let count = || lock(&server.shared.threads).len();
        assert_eq!(count(), FIRST_THREADS);
        let mut kept = Vec::new();
        for _ in 0..19 {
            let mut stream = TcpStream::connect(server.address()).expect("a connection");
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
            let mut answer = [0; 512];
            let length = stream.read(&mut answer).expect("an answer");
            assert!(!String::from_utf8_lossy(&answer[..length]).contains("Connection: close"));
            kept.push(stream);
        }
        assert_eq!(count(), 20);
        for _ in 0..10 {
            ask(&server, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        }
        assert_eq!(count(), 20);
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn closing_ends_silent_connections_at_once_and_refuses_new_ones() {
        let server = serve(Limits::default());
        let address = server.address();
        let mut silent: Vec<_> = (0..8).map(|_| TcpStream::connect(address).expect("a connection")).collect();
        for stream in silent.iter_mut().take(4) {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
            assert!(stream.read(&mut [0; 512]).expect("an answer") > 0);
        }
        let started = Instant::now();
        assert!(server.close(Duration::from_secs(5)));
        assert!(started.elapsed() < Duration::from_secs(2));
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn closing_cuts_what_is_not_done_within_the_grace() {
        let server = serve(Limits::default());
        let mut slow = TcpStream::connect(server.address()).expect("a connection");
        slow.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1").expect("sent");
        slow.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
        assert!(slow.read(&mut [0; 8]).is_err(), "no answer yet");
        assert!(!server.close(Duration::from_millis(300)));
    }
}
