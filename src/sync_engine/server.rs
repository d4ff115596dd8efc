//! The blocking HTTP/1.1 server of the v1 engine: rouille's types above, our own sockets below.
//! `rouille::Server` rests on tiny_http 0.12, which has no time-outs and no limits, stops when descriptors run out,
//! and lets one request hide in another; here every wait, length and count is bounded and doubtful framing is refused.
//!
//! A thread answers one request after the other. It stays with a connection for a short while after an answer, as long
//! as nobody else needs it; otherwise the connection waits without a thread, for its next request or for what is missing
//! of one (`waiting.rs`).

mod connection;
mod http1;
mod waiting;

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rouille::{Request, Response};

use connection::{After, Connection, Step, Stopped};
use http1::{Head, asks_to_close, encode};
use waiting::{Hand, LAST_LOOK, Waiting};

/// Argon2 keeps its memory on the heap, so a request needs little stack; only what is touched is resident.
const STACK_BYTES: usize = 1 << 20;
/// Of threads that are about to end.
const SPARE_PLACES: usize = 8;
/// How long a thread stays with a connection on which nothing arrives: while there may be more of those, and otherwise.
const STAY: Duration = Duration::from_millis(20);
const SHORT_STAY: Duration = Duration::from_millis(2);

/// What one client can take from the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// As many requests are answered at once; further ones wait.
    pub threads: usize,
    /// As many connections are open at once; further ones wait in the kernel's queue.
    pub connections: usize,
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
    /// Parts of requests, and of responses, that are kept without a thread, in bytes over all connections.
    pub held_bytes: usize,
    /// A thread ends when there was nothing to do for it so long; a few never do.
    pub thread_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            threads: 64,
            connections: 1024,
            head_bytes: 16 << 10,
            headers: 64,
            body_bytes: 64 << 10,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15),
            write_timeout: Duration::from_secs(10),
            requests_per_connection: 1000,
            held_bytes: 32 << 20,
            thread_idle: Duration::from_secs(10),
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
    limits: Limits,
    waiting: Waiting,
    /// Those that were started, in as many places as there may be.
    threads: Mutex<Vec<Option<JoinHandle<()>>>>,
    /// Set while threads cannot be started, so that the log has one line per shortage.
    short_of_threads: AtomicBool,
    /// The connection of each thread.
    slots: Vec<Mutex<Option<Arc<TcpStream>>>>,
    /// Threads that have not ended, and a signal for when that changes.
    running: Mutex<usize>,
    changed: Condvar,
}

/// Starts the first of the threads `v1-0`, `v1-1`, … that accept connections and call `answer` for every well-formed request.
///
/// `answer` is told when the body could not be read; the request then has an empty body, and the connection is closed
/// after the response. A head that is malformed, too long or late never reaches `answer`.
///
/// # Errors
///
/// When the listener has no address, cannot be watched, or a thread cannot be started.
pub fn start<F>(listener: TcpListener, limits: Limits, answer: F) -> io::Result<Server>
where
    F: Fn(&Request, Result<(), BodyError>) -> Response + Send + Sync + 'static,
{
    let address = listener.local_addr()?;
    let threads = limits.threads.max(1);
    let shared = Arc::new(Shared {
        limits,
        waiting: Waiting::new(listener, threads)?,
        threads: Mutex::new((0..threads + SPARE_PLACES).map(|_| None).collect()),
        short_of_threads: AtomicBool::new(false),
        slots: (0..threads + SPARE_PLACES).map(|_| Mutex::new(None)).collect(),
        running: Mutex::new(0),
        changed: Condvar::new(),
    });
    let answer = Arc::new(answer);
    let server = Server { shared: Arc::clone(&shared), address };
    for _ in 0..shared.waiting.first_threads() {
        if let Err(error) = grow(&shared, &answer) {
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
    let free = threads.iter().position(|thread| thread.as_ref().is_none_or(JoinHandle::is_finished));
    let Some(index) = free.filter(|_| !shared.waiting.is_closing()) else { return Ok(false) };
    *lock(&shared.running) += 1;
    let (its, answer) = (Arc::clone(shared), Arc::clone(answer));
    let spawned = thread::Builder::new()
        .name(format!("v1-{index}"))
        .stack_size(STACK_BYTES)
        .spawn(move || its.run(index, &answer));
    match spawned {
        Ok(thread) => {
            if let Some(place) = threads.get_mut(index) {
                *place = Some(thread);
            }
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
        shared.waiting.close();
        let done = shared.wait_until_ended(grace);
        if !done {
            shared.waiting.cut();
            for slot in &shared.slots {
                if let Some(stream) = lock(slot).as_ref() {
                    drop(stream.shutdown(Shutdown::Both));
                }
            }
            // A handler that still computes cannot be stopped; its thread ends with the process.
            if !shared.wait_until_ended(Duration::from_millis(100)) {
                return false;
            }
        }
        for thread in std::mem::take(&mut *lock(&shared.threads)).into_iter().flatten() {
            drop(thread.join());
        }
        done
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
struct Occupied<'a>(&'a Mutex<Option<Arc<TcpStream>>>);

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        lock(self.0).take();
    }
}

impl Shared {
    /// Whether every thread has ended within `limit`.
    fn wait_until_ended(&self, limit: Duration) -> bool {
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
        let hand = Arc::new(Hand::default());
        self.waiting.started();
        while let Some((connection, lacking)) = self.waiting.next(&hand, &self.limits) {
            self.make_room(lacking, answer);
            *lock(slot) = Some(Arc::clone(&connection.stream));
            let _occupied = Occupied(slot);
            // A fault of this file must cost one connection, not a thread.
            let attended = catch_unwind(AssertUnwindSafe(|| self.attend(connection, &**answer)));
            if attended.is_err() {
                tracing::error!("a connection ended in a panic");
            }
        }
    }

    /// Starts so many more threads, as far as there may be more.
    fn make_room<F>(self: &Arc<Self>, lacking: usize, answer: &Arc<F>)
    where
        F: Fn(&Request, Result<(), BodyError>) -> Response + Send + Sync + 'static,
    {
        for started in 0..lacking {
            let error = match grow(self, answer) {
                Ok(true) => continue,
                Ok(false) => None,
                Err(error) => Some(error),
            };
            self.waiting.not_started(lacking - started);
            if let Some(error) = error.filter(|_| !self.short_of_threads.swap(true, SeqCst)) {
                tracing::warn!(%error, "no further thread can be started for now");
            }
            return;
        }
    }

    /// Does what there is to be done on a connection, until it ends or waits again.
    fn attend<F: Fn(&Request, Result<(), BodyError>) -> Response>(&self, mut connection: Box<Connection>, answer: &F) {
        // It comes here because something has arrived or was taken, because it is new, or because its time is over.
        // Nothing is read for one that had its next request here already: it has to be answered first.
        let is_queued = connection.is_silent() && connection.has_more();
        if !is_queued && !connection.is_writing() && connection.read_now(&self.limits).is_err() {
            return;
        }
        let mut step = connection.step(&self.limits);
        let mut last_look = None;
        loop {
            step = match step {
                Step::End => return,
                Step::Refused(status) => {
                    tracing::debug!(peer = %connection.peer, status, "a malformed or late request head was refused");
                    connection.refuse(status, &self.limits)
                }
                Step::Request(head, body) => {
                    self.answer(&mut connection, *head, body, answer);
                    connection.step(&self.limits)
                }
                // Those who sent several requests at once have to wait for their turn with each.
                Step::Answered if connection.has_more() && self.waiting.ready() > 0 => {
                    match self.waiting.queue(connection, &self.limits) {
                        Ok(()) => return,
                        Err(back) => {
                            connection = back;
                            connection.step(&self.limits)
                        }
                    }
                }
                Step::Answered => connection.step(&self.limits),
                Step::More => {
                    let now = Instant::now();
                    if connection.deadline <= now {
                        step = connection.late();
                        continue;
                    }
                    let is_last = self.waiting.is_closing() && connection.is_silent();
                    let until = match () {
                        () if is_last => *last_look.get_or_insert(now + LAST_LOOK),
                        () if connection.is_writing() => now,
                        () => now + self.patience(),
                    };
                    let read = match until > now {
                        true => {
                            self.waiting.unwatch(&mut connection);
                            connection.read_until(until.min(connection.deadline))
                        }
                        false => Err(Stopped::Late),
                    };
                    match read {
                        Ok(()) => connection.step(&self.limits),
                        Err(Stopped::Gone) => return,
                        Err(Stopped::Late) if is_last => return,
                        // Found to be late above, or given a last look.
                        Err(Stopped::Late)
                            if connection.deadline <= Instant::now()
                                || (self.waiting.is_closing() && connection.is_silent()) =>
                        {
                            Step::More
                        }
                        Err(Stopped::Late) => match self.waiting.park(connection, &self.limits) {
                            Ok(()) => return,
                            // What others have not finished takes all the room that there is.
                            Err(back) => {
                                connection = back;
                                Step::Refused(503)
                            }
                        },
                    }
                }
            };
        }
    }

    /// How long a thread stays with a connection on which nothing arrives.
    fn patience(&self) -> Duration {
        let waiting = &self.waiting;
        match () {
            () if waiting.ready() > 0 || !waiting.is_watched() => Duration::ZERO,
            () if waiting.is_roomy() => STAY,
            () => SHORT_STAY,
        }
    }

    /// Answers a request.
    fn answer<F: Fn(&Request, Result<(), BodyError>) -> Response>(
        &self,
        connection: &mut Connection,
        head: Head,
        body: Result<Vec<u8>, BodyError>,
        answer: &F,
    ) {
        let (body, read) = match body {
            Ok(body) => (body, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        let Head { method, target, headers, version, keeps_alive, .. } = head;
        let is_head = method == "HEAD";
        let request = Request::fake_http_from(connection.peer, method, target, headers, body);
        let answered = catch_unwind(AssertUnwindSafe(|| answer(&request, read)));
        let panicked = answered.is_err();
        let response = answered.unwrap_or_else(|_| Response::empty_204().with_status_code(500));
        let stays = keeps_alive
            && read.is_ok()
            && !panicked
            && connection.served + 1 < self.limits.requests_per_connection
            && !self.waiting.is_closing()
            // A request that is here already is answered before the place is given to someone else.
            && (connection.has_more() || !self.waiting.is_full())
            && !asks_to_close(&response);
        let after = match () {
            () if stays => After::Next,
            // A client that asked for the end sends nothing more; any other may be about to.
            () if keeps_alive || read.is_err() => After::Linger,
            () => After::End,
        };
        match encode(response, version, stays, is_head) {
            Ok(encoded) => connection.respond(encoded, after, &self.limits),
            // Nobody knows how much of it was there.
            Err(_) => connection.respond(Vec::new(), After::End, &self.limits),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::Ipv4Addr,
        sync::mpsc,
    };

    use super::*;

    /// More than the kernel keeps for a connection.
    const LONG: usize = 10 << 20;

    fn serve(limits: Limits) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        start(listener, limits, |request, body| match (request.url().as_str(), body) {
            ("/panic", _) => panic!("asked to"),
            ("/long", _) => Response::text("x".repeat(LONG) + "end"),
            ("/soon", _) => {
                pause(Duration::from_millis(10));
                Response::text("soon")
            }
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

    #[expect(clippy::disallowed_methods, reason = "time has to pass")]
    fn pause(time: Duration) {
        thread::sleep(time);
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

    fn connect(server: &Server) -> TcpStream {
        TcpStream::connect(server.address()).expect("a connection")
    }

    fn answer_to(stream: &mut TcpStream, bytes: &[u8]) -> String {
        stream.write_all(bytes).expect("sent");
        let mut answer = [0; 512];
        let length = stream.read(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    const ASKS: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const ASKS_LAST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

    fn assert_kept(answer: &str) {
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("Connection: close"), "{answer}");
    }

    #[test]
    fn connections_need_no_thread_while_they_wait() {
        let server = serve(Limits { threads: 2, ..Limits::default() });
        let mut kept: Vec<_> = (0..50).map(|_| connect(&server)).collect();
        for round in 0..20 {
            for stream in &mut kept {
                assert_kept(&answer_to(stream, ASKS));
            }
            // In some rounds they wait for long enough to be without a thread.
            if round % 7 == 0 {
                pause(STAY * 2);
            }
        }
        // Nor while a part of a request is missing.
        let parts: [(&[u8], &[u8]); 3] = [
            (b"GET / HT", b"TP/1.1\r\nHost: a\r\n\r\n"),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab", b"cd"),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na", b"b\r\n0\r\n\r\n"),
        ];
        let of = |index: usize| parts[index % parts.len()];
        kept.iter_mut().enumerate().for_each(|(index, stream)| stream.write_all(of(index).0).expect("sent"));
        pause(STAY * 2);
        let started = Instant::now();
        ask(&server, ASKS_LAST);
        assert!(started.elapsed() < Duration::from_secs(3));
        for (index, stream) in kept.iter_mut().enumerate() {
            assert_kept(&answer_to(stream, of(index).1));
        }
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn who_does_not_read_holds_no_thread_and_gets_all_of_it_when_they_do() {
        let server = serve(Limits { threads: 2, ..Limits::default() });
        let mut slow: Vec<_> = (0..3)
            .map(|_| {
                let mut stream = connect(&server);
                stream.write_all(b"GET /long HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("sent");
                stream
            })
            .collect();
        pause(Duration::from_millis(100));
        ask(&server, ASKS_LAST);
        for stream in &mut slow {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).expect("all of it");
            assert!(answer.len() > LONG && answer.ends_with(b"end"), "{}", answer.len());
        }
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn who_never_reads_is_cut_in_the_time_for_a_response() {
        let server = serve(Limits { threads: 2, write_timeout: Duration::from_millis(300), ..Limits::default() });
        let mut stream = connect(&server);
        stream.write_all(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        pause(Duration::from_secs(1));
        let mut answer = Vec::new();
        assert!(stream.read_to_end(&mut answer).is_err() || answer.len() < LONG, "{}", answer.len());
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn a_deadline_is_one_however_the_bytes_trickle() {
        let limit = Duration::from_millis(300);
        let server = serve(Limits { head_timeout: limit, body_timeout: limit, ..Limits::default() });
        let starts: [&[u8]; 2] =
            [b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;"];
        for start in starts {
            let mut stream = connect(&server);
            stream.set_nodelay(true).expect("set");
            stream.write_all(start).expect("sent");
            let started = Instant::now();
            // More often than a thread would stay for.
            while stream.write_all(b"a").is_ok() && started.elapsed() < Duration::from_secs(5) {
                pause(Duration::from_micros(500));
            }
            assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        }
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn parts_of_requests_are_kept_up_to_a_limit_and_small_ones_in_any_case() {
        let server = serve(Limits {
            threads: 4,
            held_bytes: 1 << 20,
            body_timeout: Duration::from_secs(60),
            ..Limits::default()
        });
        let head = |length: usize| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        let mut small: Vec<_> = (0..20).map(|_| connect(&server)).collect();
        small.iter_mut().for_each(|stream| stream.write_all(head(4).as_bytes()).expect("sent"));
        // Each keeps nearly 64 KiB.
        let mut part = head(60_000).into_bytes();
        part.resize(part.len() + 59_000, b'x');
        let mut large: Vec<_> = (0..40).map(|_| connect(&server)).collect();
        large.iter_mut().for_each(|stream| drop(stream.write_all(&part)));
        pause(Duration::from_millis(300));
        let mut statuses = Vec::new();
        for stream in &mut large {
            stream.set_nonblocking(true).expect("set");
            let mut answer = [0; 64];
            if let Ok(length @ 1..) = stream.read(&mut answer) {
                statuses.push(String::from_utf8_lossy(&answer[..length]).get(..12).map(str::to_owned));
            }
        }
        assert!((20..=34).contains(&statuses.len()), "{}", statuses.len());
        assert!(statuses.iter().all(|status| status.as_deref() == Some("HTTP/1.1 503")), "{statuses:?}");
        small.iter_mut().for_each(|stream| assert_kept(&answer_to(stream, b"abcd")));
        drop(large);
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn who_has_not_taken_a_response_for_longest_makes_room_for_others() {
        let server = serve(Limits { threads: 2, held_bytes: 25 << 20, ..Limits::default() });
        let mut slow: Vec<_> = (0..3)
            .map(|_| {
                let mut stream = connect(&server);
                stream.write_all(b"GET /long HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("sent");
                pause(Duration::from_millis(200));
                stream
            })
            .collect();
        let whole: Vec<_> = slow
            .iter_mut()
            .map(|stream| {
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).is_ok() && answer.len() > LONG
            })
            .collect();
        assert_eq!(whole, [false, true, true]);
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn who_sends_many_requests_at_once_is_answered_in_turn_with_others_and_to_the_end() {
        let server = serve(Limits { threads: 2, ..Limits::default() });
        thread::scope(|scope| {
            let clients: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let mut stream = connect(&server);
                        stream.write_all(&b"GET /soon HTTP/1.1\r\nHost: a\r\n\r\n".repeat(50)).expect("sent");
                        stream.shutdown(Shutdown::Write).expect("no more");
                        let mut answers = String::new();
                        stream.read_to_string(&mut answers).expect("answers");
                        answers.matches("HTTP/1.1 200").count()
                    })
                })
                .collect();
            pause(Duration::from_millis(100));
            // There is work for two seconds and more.
            let started = Instant::now();
            ask(&server, ASKS_LAST);
            assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
            for client in clients {
                assert_eq!(client.join().expect("answers"), 50);
            }
        });
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn what_has_arrived_is_answered_at_the_end() {
        let server = serve(Limits { threads: 2, ..Limits::default() });
        let mut streams: Vec<_> = (0..20).map(|_| connect(&server)).collect();
        streams.iter_mut().for_each(|stream| assert_kept(&answer_to(stream, ASKS)));
        pause(STAY * 3);
        streams.iter_mut().for_each(|stream| stream.write_all(ASKS).expect("sent"));
        assert!(server.close(Duration::from_secs(5)));
        for stream in &mut streams {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer and an end");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }

    #[test]
    fn many_that_ask_all_the_time_share_few_threads() {
        let server = serve(Limits { threads: 3, ..Limits::default() });
        let asked: Vec<_> = thread::scope(|scope| {
            let clients: Vec<_> = (0..24)
                .map(|_| {
                    scope.spawn(|| {
                        let mut stream = connect(&server);
                        (0..500).for_each(|_| assert_kept(&answer_to(&mut stream, ASKS)));
                        Instant::now()
                    })
                })
                .collect();
            clients.into_iter().map(|client| client.join().expect("all answers")).collect()
        });
        assert_eq!(asked.len(), 24);
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn beyond_the_connections_that_there_may_be_silent_ones_end_and_answers_end_theirs() {
        let server = serve(Limits { threads: 2, connections: 4, ..Limits::default() });
        let mut kept: Vec<_> = (0..4).map(|_| connect(&server)).collect();
        for _ in 0..20 {
            kept.iter_mut().for_each(|stream| assert_kept(&answer_to(stream, ASKS)));
        }
        // All four go on asking, so that none is silent for long; the next to come is accepted all the same.
        let mut more = connect(&server);
        more.write_all(ASKS).expect("sent");
        let mut has_ended = |stream: &mut TcpStream| {
            let mut answer = [0; 512];
            let length = stream.write_all(ASKS).and_then(|()| stream.read(&mut answer)).unwrap_or(0);
            length == 0 || String::from_utf8_lossy(&answer[..length]).contains("Connection: close")
        };
        assert!((0..1000).any(|_| kept.iter_mut().any(&mut has_ended)), "nobody made room");
        assert!(more.read(&mut [0; 512]).expect("an answer") > 0);
        drop((more, kept));
        let started = Instant::now();
        while server.shared.waiting.open.load(SeqCst) > 0 && started.elapsed() < Duration::from_secs(10) {
            pause(Duration::from_millis(10));
        }
        // Silent ones make room at once, those that have asked already before the others.
        let mut silent: Vec<_> = (0..4).map(|_| connect(&server)).collect();
        silent.iter_mut().take(2).for_each(|stream| assert_kept(&answer_to(stream, ASKS)));
        let started = Instant::now();
        assert_kept(&answer_to(&mut connect(&server), ASKS));
        assert!(started.elapsed() < Duration::from_secs(3));
        assert_kept(&answer_to(&mut silent[3], ASKS));
        assert!(server.close(Duration::from_secs(5)));
    }

    #[test]
    fn threads_are_started_as_they_are_needed_and_end_when_they_are_not() {
        let (entered, inside) = mpsc::channel();
        let (gate, waits) = mpsc::channel::<()>();
        let (entered, waits) = (Mutex::new(entered), Mutex::new(waits));
        let limits = Limits { threads: 80, thread_idle: Duration::from_secs(1), ..Limits::default() };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let server = start(listener, limits, move |request, _| {
            if request.url() == "/waits" {
                lock(&entered).send(()).expect("the test listens");
                // Until the test drops the gate.
                let _ = lock(&waits).recv();
            }
            Response::text("answered")
        })
        .expect("a server");
        let count = || lock(&server.shared.threads).iter().flatten().filter(|thread| !thread.is_finished()).count();
        assert_eq!(count(), waiting::FIRST_THREADS);
        // All wait in their handlers, so that each needs a thread, those after the first few as well.
        let mut asking: Vec<_> = (0..79).map(|_| connect(&server)).collect();
        asking.iter_mut().for_each(|stream| stream.write_all(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent"));
        asking.iter().for_each(|_| inside.recv_timeout(Duration::from_secs(20)).expect("a thread for each"));
        let mut last = connect(&server);
        last.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        assert_kept(&answer_to(&mut last, ASKS));
        assert!(count() > asking.len(), "{}", count());
        drop(gate);
        asking.iter_mut().for_each(|stream| assert_kept(&answer_to(stream, b"")));
        let started = Instant::now();
        while count() > waiting::FIRST_THREADS && started.elapsed() < Duration::from_secs(10) {
            pause(Duration::from_millis(50));
        }
        assert_eq!(count(), waiting::FIRST_THREADS);
        asking.iter_mut().for_each(|stream| assert_kept(&answer_to(stream, ASKS)));
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
