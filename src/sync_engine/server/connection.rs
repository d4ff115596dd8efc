//! One client's connection: what it has sent, how far a request has come, and how long each part may take.

use std::{
    io::{self, ErrorKind, Read},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use rouille::Response;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use socket2::SockRef;

use super::{
    BodyError, Limits,
    http1::{ChunkDecoder, Framing, Head, Refused, Version, encode, parse_head},
};

/// What a connection without a request may keep allocated.
const IDLE_BUFFER_BYTES: usize = 4 << 10;
/// How long and how much a client may go on sending while it is told that its request is refused.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;
/// So much is read at a time.
const CHUNK_BYTES: usize = 8 << 10;
/// The kernel waits no longer than this at a time.
const RECHECK: Duration = Duration::from_millis(500);
/// How late the end of a wait may be noticed.
const NEARLY: Duration = Duration::from_millis(5);

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a connection is in the middle of.
#[derive(Debug)]
enum Phase {
    /// Nothing of a request has come yet.
    Silence,
    /// A part of its head has.
    Head,
    /// All of its head has, and maybe a part of its body.
    Body(Box<Head>, Option<ChunkDecoder>),
    /// A response, of which the client has taken so many bytes, and what comes after it.
    Response(Vec<u8>, usize, After),
    /// The last word is said, and what still comes is thrown away: so many bytes until now.
    Lingering(usize),
}

/// What comes after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The next request.
    Next,
    /// Whatever the client still sends: closing a socket with unread input would destroy our last words.
    Linger,
    End,
}

/// What can be done with what has come.
#[derive(Debug)]
pub enum Step {
    /// A request, or one whose body cannot be read.
    Request(Box<Head>, Result<Vec<u8>, BodyError>),
    /// Nothing before more comes, or more is taken.
    More,
    /// The client has taken a response, and may ask again.
    Answered,
    /// To tell the client by a bare response of this status, which is the last.
    Refused(u16),
    /// Nothing ever.
    End,
}

/// Why no further byte came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    Late,
    Gone,
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    pub stream: Arc<TcpStream>,
    pub peer: SocketAddr,
    /// Answers that were given on it.
    pub served: usize,
    /// Whether the poller is to be told what arrives.
    pub is_registered: bool,
    /// What it was last counted as keeping, in bytes.
    pub counted: usize,
    /// Since when it is silent.
    pub since: Instant,
    /// When what it is in the middle of has to be over.
    pub deadline: Instant,
    phase: Phase,
    /// What has come and was not looked at yet.
    buffer: Vec<u8>,
    patience: Patience,
    _open: Open,
}

/// Counts a connection for as long as it is open.
#[derive(Debug)]
pub struct Open(Arc<AtomicUsize>);

impl Open {
    pub fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// How long the kernel waits for a connection at most. To set it costs a system call, so it is left as it is while it
/// ends in time, or nearly so, and is not much too short.
#[derive(Debug, Default)]
struct Patience(Duration);

impl Patience {
    fn set(&mut self, left: Duration, set: impl FnOnce(Option<Duration>) -> io::Result<()>) -> io::Result<()> {
        let wanted = left.min(RECHECK);
        if self.0.is_zero() || self.0 > wanted + NEARLY || self.0 < wanted / 2 {
            set(Some(wanted))?;
            self.0 = wanted;
        }
        Ok(())
    }
}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(stream: TcpStream, peer: SocketAddr, limits: &Limits, open: Open) -> Self {
        let since = Instant::now();
        Self {
            stream: Arc::new(stream),
            peer,
            served: 0,
            is_registered: false,
            counted: 0,
            since,
            deadline: since + limits.head_timeout,
            phase: Phase::Silence,
            buffer: Vec::new(),
            patience: Patience::default(),
            _open: open,
        }
    }

    /// Whether nothing of a request has come since the last answer.
    pub fn is_silent(&self) -> bool {
        matches!(self.phase, Phase::Silence)
    }

    /// Whether something has come that was not looked at yet.
    pub fn has_more(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether it waits for the client to take something, not to send it.
    pub fn is_writing(&self) -> bool {
        matches!(self.phase, Phase::Response(..))
    }

    /// What it keeps allocated for what has come and was not looked at.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// What it keeps allocated for what has come of a request or was not taken of a response, about; nothing while it is
    /// silent.
    pub fn held_bytes(&self) -> usize {
        let (head, body) = match &self.phase {
            Phase::Silence | Phase::Lingering(_) => return 0,
            Phase::Head => (0, 0),
            Phase::Response(bytes, ..) => (0, bytes.capacity()),
            Phase::Body(head, decoder) => {
                let fields = head.headers.iter().map(|(name, value)| name.len() + value.len() + 48);
                (fields.sum(), decoder.as_ref().map_or(0, |decoder| decoder.body.capacity()))
            }
        };
        self.buffer.capacity() + head + body
    }

    /// Begins to send a response, which the client has to take within its time.
    pub fn respond(&mut self, response: Vec<u8>, after: After, limits: &Limits) {
        self.phase = Phase::Response(response, 0, after);
        self.deadline = Instant::now() + limits.write_timeout;
    }

    /// Takes from what has come the next request, as far as there is one.
    pub fn step(&mut self, limits: &Limits) -> Step {
        loop {
            match &mut self.phase {
                Phase::Silence => {
                    self.skip_empty_lines();
                    if self.buffer.is_empty() {
                        self.buffer.shrink_to(IDLE_BUFFER_BYTES);
                        return Step::More;
                    }
                    // The first head's time began with the connection.
                    if self.served > 0 {
                        self.deadline = Instant::now() + limits.head_timeout;
                    }
                    self.phase = Phase::Head;
                }
                Phase::Head => match parse_head(&self.buffer, limits) {
                    Ok(Some((length, head))) => {
                        self.buffer.drain(..length);
                        if let Err(step) = self.expect_body(Box::new(head), limits) {
                            return step;
                        }
                    }
                    Ok(None) if self.buffer.len() > limits.head_bytes => return Step::Refused(431),
                    Ok(None) => return Step::More,
                    Err(Refused(status)) => return Step::Refused(status),
                },
                Phase::Body(head, decoder) => {
                    let body = match (head.body, decoder) {
                        (Framing::Chunked, Some(decoder)) => match decoder.feed(&self.buffer) {
                            Ok(used) => {
                                self.buffer.drain(..used);
                                decoder.is_done().then(|| Ok(std::mem::take(&mut decoder.body)))
                            }
                            Err(error) => Some(Err(error)),
                        },
                        (Framing::Length(length), _) => {
                            let length = usize::try_from(length).unwrap_or(usize::MAX);
                            (self.buffer.len() >= length).then(|| {
                                let rest = self.buffer.split_off(length);
                                Ok(std::mem::replace(&mut self.buffer, rest))
                            })
                        }
                        (Framing::None | Framing::Chunked, _) => Some(Ok(Vec::new())),
                    };
                    let Some(body) = body else { return Step::More };
                    match std::mem::replace(&mut self.phase, Phase::Silence) {
                        Phase::Body(head, _) => return Step::Request(head, body),
                        Phase::Silence | Phase::Head | Phase::Response(..) | Phase::Lingering(_) => return Step::End,
                    }
                }
                Phase::Response(bytes, taken, after) => {
                    let after = *after;
                    while let Some(rest) = bytes.get(*taken..).filter(|rest| !rest.is_empty()) {
                        match send(&*self.stream, rest, SendFlags::DONTWAIT) {
                            Ok(length) => *taken += length,
                            Err(Errno::INTR) => {}
                            Err(Errno::AGAIN) => return Step::More,
                            Err(_) => return Step::End,
                        }
                    }
                    match after {
                        After::Next => {
                            self.served += 1;
                            self.phase = Phase::Silence;
                            self.since = Instant::now();
                            self.deadline = self.since + limits.idle_timeout;
                            return Step::Answered;
                        }
                        After::Linger if self.stream.shutdown(Shutdown::Write).is_ok() => {
                            self.phase = Phase::Lingering(0);
                            self.deadline = Instant::now() + LINGER;
                        }
                        After::Linger | After::End => return Step::End,
                    }
                }
                Phase::Lingering(taken) => {
                    *taken += self.buffer.len();
                    self.buffer = Vec::new();
                    return if *taken < LINGER_BYTES { Step::More } else { Step::End };
                }
            }
        }
    }

    /// Waits for the body of a head, if it has one that may be sent.
    fn expect_body(&mut self, head: Box<Head>, limits: &Limits) -> Result<(), Step> {
        let is_waiting = match head.body {
            Framing::None => return Err(Step::Request(head, Ok(Vec::new()))),
            Framing::Length(length) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length > limits.body_bytes {
                    return Err(Step::Request(head, Err(BodyError::TooLarge)));
                }
                length > self.buffer.len()
            }
            Framing::Chunked => self.buffer.is_empty(),
        };
        self.deadline = Instant::now() + limits.body_timeout;
        // The client waits for it to send its body.
        if head.expects_continue && is_waiting {
            let sent = send(&*self.stream, CONTINUE, SendFlags::DONTWAIT);
            // Who has not even taken that much of what was sent before waits in vain.
            if sent != Ok(CONTINUE.len()) {
                return Err(Step::End);
            }
        }
        let decoder = (head.body == Framing::Chunked).then(|| ChunkDecoder::new(limits.body_bytes, limits.head_bytes));
        self.phase = Phase::Body(head, decoder);
        Ok(())
    }

    /// What becomes of it when its time is over.
    pub fn late(&mut self) -> Step {
        match std::mem::replace(&mut self.phase, Phase::Silence) {
            Phase::Silence if self.served > 0 => Step::End,
            Phase::Silence | Phase::Head => Step::Refused(408),
            Phase::Body(head, _) => Step::Request(head, Err(BodyError::TimedOut)),
            Phase::Response(..) => {
                self.reset();
                Step::End
            }
            Phase::Lingering(_) => Step::End,
        }
    }

    /// Lets the kernel forget what the client has not taken.
    pub fn reset(&self) {
        drop(SockRef::from(&*self.stream).set_linger(Some(Duration::ZERO)));
    }

    /// Reads what has arrived, as far as a request could be as long.
    pub fn read_now(&mut self, limits: &Limits) -> Result<(), Stopped> {
        let mut chunk = [0; CHUNK_BYTES];
        let mut some = false;
        while self.buffer.len() < limits.head_bytes + limits.body_bytes {
            match recv(&*self.stream, &mut chunk[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) if !some => return Err(Stopped::Gone),
                Ok((length, _)) => {
                    self.buffer.extend_from_slice(chunk.get(..length).unwrap_or_default());
                    some = true;
                    if length < CHUNK_BYTES {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(Stopped::Gone),
            }
        }
        Ok(())
    }

    /// Whether something has arrived that was not read yet.
    pub fn has_arrived(&self) -> bool {
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        recv(&*self.stream, &mut [0; 1][..], flags).is_ok_and(|(length, _)| length > 0)
    }

    /// Waits for more bytes until then.
    pub fn read_until(&mut self, until: Instant) -> Result<(), Stopped> {
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Stopped::Late);
            }
            let mut stream = &*self.stream;
            if self.patience.set(left, |patience| stream.set_read_timeout(patience)).is_err() {
                return Err(Stopped::Gone);
            }
            match stream.read(&mut chunk) {
                Ok(0) => return Err(Stopped::Gone),
                Ok(length) => {
                    self.buffer.extend_from_slice(chunk.get(..length).unwrap_or_default());
                    return Ok(());
                }
                // Late only when the clock says so.
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

    /// Answers a head that is not a request.
    pub fn refuse(&mut self, status: u16, limits: &Limits) -> Step {
        let response = Response::empty_204().with_status_code(status);
        match encode(response, Version::Http11, false, false) {
            Ok(encoded) => {
                self.respond(encoded, After::Linger, limits);
                self.step(limits)
            }
            Err(_) => Step::End,
        }
    }
}
