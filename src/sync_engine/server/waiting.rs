//! Connections that no thread attends to. Of the threads that have nothing to do, one accepts connections and watches those
//! on which nothing arrives. When something does, it attends to that itself, and another one watches (leader and
//! followers), so that a request goes from thread to thread only where several come at once.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, ErrorKind},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Registry, Token, Waker, unix::SourceFd};
use rustix::io::Errno;
use socket2::SockRef;

use super::{
    Limits,
    connection::{Connection, Open},
    lock,
};

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
/// Events that are taken at a time.
const EVENTS: usize = 256;
/// So many threads there are from the start.
pub const FIRST_THREADS: usize = 8;
/// Threads that are asked for at a time.
const MORE_THREADS: usize = 8;
/// How often it is looked for what is late.
const TICK: Duration = Duration::from_millis(100);
/// Up to so many are busy as soon as there is something to do for one more.
const FEW_THREADS: usize = 48;
/// And more, when something has waited so long for one of those, and they take so long with each connection.
const STALL: Duration = Duration::from_millis(15);
const SLOW_ANSWER: Duration = Duration::from_millis(5);
/// How soon it is looked again, while something waits for a thread, and while there is no room or no time left.
const SOON: Duration = Duration::from_millis(2);
const RETRY: Duration = Duration::from_millis(20);
/// How long nothing is accepted after that failed, for instance because descriptors ran out.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long a request that arrives just as the server closes is still looked for.
pub const LAST_LOOK: Duration = Duration::from_millis(20);
/// How long a connection may be silent, before its first request and between two, while others wait to be accepted.
const FIRST_SILENCE: Duration = Duration::from_secs(1);
const LATER_SILENCE: Duration = Duration::from_millis(100);
/// What is kept of a request in any case, however much others have sent.
const ALWAYS_HELD_BYTES: usize = 8 << 10;

/// The connections that wait, for a byte or for a thread.
#[derive(Debug)]
pub struct Waiting {
    state: Mutex<State>,
    listener: TcpListener,
    registry: Registry,
    waker: Waker,
    /// Of the thread that watches.
    poller: Mutex<Poller>,
    /// What the state says, to be looked at without it.
    ready: AtomicUsize,
    is_roomy: AtomicBool,
    is_watched: AtomicBool,
    /// Connections that are open, attended to or not.
    pub open: Arc<AtomicUsize>,
    /// Whether somebody waits to be accepted, for whom there is no room.
    is_full: AtomicBool,
    closing: AtomicBool,
    /// Whether nothing will come any more.
    is_over: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// For a byte, or for their clients to take some, by descriptor.
    parked: HashMap<usize, Box<Connection>>,
    /// Of requests that are there in part, and of responses that were not taken, of those that wait.
    held_bytes: usize,
    untaken_bytes: usize,
    /// For a thread.
    ready: VecDeque<Ready>,
    /// How many of those were taken, ever.
    taken: u64,
    /// Whether a thread watches the silent ones, or is told to.
    is_watched: bool,
    /// Threads that there are, that there may be, and of the first those that have not come yet.
    threads: usize,
    most: usize,
    starting: usize,
    /// So many may be busy, unless they wait themselves.
    limit: usize,
    /// [`State::taken`] when that was last thought over.
    taken_before: u64,
    /// Threads without a connection, with their hands. The last one is the first to get one: its stack is in the caches,
    /// and those of the others may never be.
    idle: Vec<(Arc<Hand>, Thread)>,
    is_cut: bool,
}

/// A connection that waits for a thread.
#[derive(Debug)]
struct Ready {
    connection: Box<Connection>,
    since: Instant,
    /// [`State::taken`] at that time.
    taken: u64,
}

/// What is given to an idle thread.
#[derive(Debug, Default)]
pub struct Hand(Mutex<Option<Given>>);

#[derive(Debug)]
enum Given {
    Connection(Box<Connection>),
    Watch,
}

/// What a thread is to do.
enum Turn {
    Attend(Box<Connection>),
    Watch,
    Rest,
}

impl State {
    /// Threads that attend to a connection.
    fn busy(&self) -> usize {
        self.threads.saturating_sub(self.idle.len() + self.starting + usize::from(self.is_watched))
    }

    fn turn(&mut self, hand: &Arc<Hand>) -> Turn {
        if !self.is_watched {
            self.is_watched = true;
            return Turn::Watch;
        }
        // The thread that asks counts as one that is busy.
        let taken = if self.busy() > self.limit { None } else { self.take_ready() };
        match taken {
            Some(connection) => Turn::Attend(connection),
            None => {
                self.idle.push((Arc::clone(hand), thread::current()));
                Turn::Rest
            }
        }
    }

    /// Whether a thread that had nothing to do is not needed any more.
    fn dismiss(&mut self, hand: &Arc<Hand>) -> bool {
        let place = self.idle.iter().position(|(idle, _)| Arc::ptr_eq(idle, hand));
        let place = place.filter(|_| self.threads > FIRST_THREADS);
        if let Some(place) = place {
            self.idle.remove(place);
            self.threads -= 1;
        }
        place.is_some()
    }

    /// What the thread that watches is to attend to itself, and how many more threads there is something to do for: the
    /// first that came, as long as there may be one more that is busy. Others that have nothing to do get the rest and the
    /// watching. Otherwise one of those that are busy will take it soon.
    fn found(&mut self, now: Instant) -> Option<(Box<Connection>, usize)> {
        if self.busy() >= self.limit {
            if !self.is_stalled(now) {
                return None;
            }
            self.limit = (self.limit + MORE_THREADS).min(self.most);
        }
        let first = self.take_ready()?;
        // From here on this thread is busy, and the next one watches.
        let watcher = self.idle.pop();
        self.is_watched = watcher.is_some();
        while self.busy() < self.limit && !self.ready.is_empty() {
            let Some((hand, thread)) = self.idle.pop() else { break };
            *lock(&hand.0) = self.take_ready().map(Given::Connection);
            thread.unpark();
        }
        if let Some((hand, thread)) = watcher {
            *lock(&hand.0) = Some(Given::Watch);
            thread.unpark();
        }
        let room = self.limit.saturating_sub(self.busy()).min(self.ready.len()) + usize::from(!self.is_watched);
        let lacking = room.min(MORE_THREADS).saturating_sub(self.starting);
        let lacking = lacking.min(self.most.saturating_sub(self.threads));
        self.threads += lacking;
        self.starting += lacking;
        Some((first, lacking))
    }

    /// Fewer threads are to be busy, as far as they did not wait themselves in the time since the last look.
    fn calm_down(&mut self, passed: Duration) {
        let taken = self.taken - std::mem::replace(&mut self.taken_before, self.taken);
        let taken = u32::try_from(taken).unwrap_or(u32::MAX);
        let busy = u32::try_from(self.busy()).unwrap_or(u32::MAX);
        if passed.saturating_mul(busy) < SLOW_ANSWER.saturating_mul(taken) / 2 {
            self.limit = (self.limit - self.limit / 4).max(self.most.min(FEW_THREADS));
        }
    }

    fn add_ready(&mut self, connection: Box<Connection>, now: Instant) {
        self.ready.push_back(Ready { connection, since: now, taken: self.taken });
    }

    fn take_ready(&mut self) -> Option<Box<Connection>> {
        let mut ready = self.ready.pop_front()?;
        self.taken += 1;
        self.discount(&mut ready.connection);
        Some(ready.connection)
    }

    /// Whether what came first has waited for long because the threads wait themselves. Where the processors are what is
    /// short, more threads would only take more memory.
    fn is_stalled(&self, now: Instant) -> bool {
        self.ready.front().is_some_and(|first| {
            let waited = now.duration_since(first.since);
            // Taken from the queue since it came, and what that makes for one thread.
            let taken = u32::try_from(self.taken - first.taken).unwrap_or(u32::MAX);
            let busy = u32::try_from(self.busy()).unwrap_or(u32::MAX);
            waited >= STALL && waited.saturating_mul(busy) > SLOW_ANSWER.saturating_mul(taken)
        })
    }

    /// What a connection was counted with is counted no more.
    fn discount(&mut self, connection: &mut Connection) {
        let held = if connection.is_writing() { &mut self.untaken_bytes } else { &mut self.held_bytes };
        *held = held.saturating_sub(std::mem::take(&mut connection.counted));
    }

    /// The connection whose response ought to have been taken before all others.
    fn take_slowest(&mut self) -> Option<Box<Connection>> {
        let writing = self.parked.iter().filter(|(_, connection)| connection.is_writing());
        let slowest = writing.min_by_key(|(_, connection)| connection.deadline).map(|(descriptor, _)| *descriptor)?;
        let mut slowest = self.parked.remove(&slowest)?;
        self.discount(&mut slowest);
        Some(slowest)
    }

    /// Gives one that is silent, to be ended, unless a request has just arrived there.
    fn take_silent(&mut self, descriptor: usize, now: Instant) -> Option<Box<Connection>> {
        let connection = self.parked.remove(&descriptor)?;
        if connection.has_arrived() {
            self.add_ready(connection, now);
            return None;
        }
        Some(connection)
    }
}

impl Waiting {
    /// For the connections of a listener, and so many threads at most.
    ///
    /// # Errors
    /// Descriptors have run out, or the listener cannot be watched.
    pub fn new(listener: TcpListener, most: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        Ok(Self {
            state: Mutex::new(State { most, limit: most.min(FEW_THREADS), ..State::default() }),
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKER)?,
            ready: AtomicUsize::new(0),
            is_roomy: AtomicBool::new(true),
            is_watched: AtomicBool::new(false),
            open: Arc::default(),
            is_full: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            poller: Mutex::new(Poller::new(poll, &listener)?),
            listener,
        })
    }

    fn with_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        self.ready.store(state.ready.len(), Relaxed);
        self.is_roomy.store(state.busy() < state.limit, Relaxed);
        self.is_watched.store(state.is_watched || state.starting > 0, Relaxed);
        result
    }

    /// How many wait for a thread.
    pub fn ready(&self) -> usize {
        self.ready.load(Relaxed)
    }

    /// Whether there may be one more thread that is busy.
    pub fn is_roomy(&self) -> bool {
        self.is_roomy.load(Relaxed)
    }

    /// Whether a thread watches those that are silent, or will.
    pub fn is_watched(&self) -> bool {
        self.is_watched.load(Relaxed)
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(SeqCst)
    }

    /// Whether a connection ought to end, since others wait for its place.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Relaxed)
    }

    /// How many there are to be at first.
    pub fn first_threads(&self) -> usize {
        self.with_state(|state| {
            state.threads = state.most.min(FIRST_THREADS);
            state.starting = state.threads;
            state.threads
        })
    }

    /// A thread that was asked for has come.
    pub fn started(&self) {
        self.with_state(|state| state.starting = state.starting.saturating_sub(1));
    }

    /// So many threads that were asked for will not come.
    pub fn not_started(&self, threads: usize) {
        self.with_state(|state| {
            state.starting = state.starting.saturating_sub(threads);
            state.threads = state.threads.saturating_sub(threads);
        });
    }

    /// The next connection on which there is something to do, for a thread that has none, and how many more threads there is
    /// something to do for; `None` when there will be none any more.
    pub fn next(&self, hand: &Arc<Hand>, limits: &Limits) -> Option<(Box<Connection>, usize)> {
        let mut watches = false;
        loop {
            if self.is_over.load(SeqCst) {
                return None;
            }
            let turn = if watches { Turn::Watch } else { self.with_state(|state| state.turn(hand)) };
            watches = false;
            match turn {
                Turn::Attend(connection) => return Some((connection, 0)),
                Turn::Watch => {
                    // A fault here must not be the end of all.
                    let watched = catch_unwind(AssertUnwindSafe(|| self.watch(limits)));
                    match watched {
                        Ok(found) => return found,
                        Err(_) => {
                            tracing::error!("watching the connections ended in a panic");
                            self.with_state(|state| state.is_watched = false);
                            thread::park_timeout(RETRY);
                        }
                    }
                }
                Turn::Rest => loop {
                    let given = lock(&hand.0).take();
                    match given {
                        Some(Given::Connection(connection)) => return Some((connection, 0)),
                        Some(Given::Watch) => {
                            watches = true;
                            break;
                        }
                        None if self.is_over.load(SeqCst) => return None,
                        None => {
                            let since = Instant::now();
                            thread::park_timeout(limits.thread_idle);
                            if since.elapsed() >= limits.thread_idle && self.with_state(|state| state.dismiss(hand)) {
                                return None;
                            }
                        }
                    }
                },
            }
        }
    }

    /// Watches until there is something to do, and leaves the watching to another thread then.
    fn watch(&self, limits: &Limits) -> Option<(Box<Connection>, usize)> {
        let mut poller = lock(&self.poller);
        loop {
            let now = Instant::now();
            let (closing, open) = (self.is_closing(), self.open.load(SeqCst));
            if closing {
                poller.at_the_door = None;
                if open == 0 || lock(&self.state).is_cut {
                    self.end();
                    return None;
                }
            }
            // However many wait for a thread: others have to be accepted, read from and timed.
            if now.duration_since(poller.looked) >= SOON {
                poller.look(self, limits, Some(Duration::ZERO));
            }
            if let Some(found) = self.with_state(|state| state.found(now)) {
                return Some(found);
            }
            let timeout = poller.timeout(self, closing, open);
            poller.look(self, limits, timeout);
        }
    }

    /// Waits for more bytes, or for the client to take some, without a thread.
    ///
    /// # Errors
    /// Gives the connection back when too much of requests is kept like that already.
    pub fn park(&self, mut connection: Box<Connection>, limits: &Limits) -> Result<(), Box<Connection>> {
        let stream = Arc::clone(&connection.stream);
        let (is_writing, fd, bytes) = (connection.is_writing(), stream.as_raw_fd(), connection.held_bytes());
        let Ok(descriptor) = usize::try_from(fd) else { return Ok(()) };
        let was_registered = std::mem::replace(&mut connection.is_registered, true);
        let interest = if is_writing { Interest::WRITABLE } else { Interest::READABLE };
        let add = || self.registry.register(&mut SourceFd(&fd), Token(descriptor), interest);
        let change = || self.registry.reregister(&mut SourceFd(&fd), Token(descriptor), interest);
        let ended = self.with_state(|state| {
            if state.is_cut || (self.is_closing() && connection.is_silent()) {
                return Ok(vec![connection]);
            }
            let mut ended = Vec::new();
            if is_writing {
                // The one that has been slow longest has to go.
                while state.untaken_bytes + bytes > limits.held_bytes {
                    let Some(slow) = state.take_slowest() else { break };
                    ended.push(slow);
                }
                state.untaken_bytes += bytes;
            } else {
                if bytes > ALWAYS_HELD_BYTES && state.held_bytes + bytes > limits.held_bytes {
                    return Err(connection);
                }
                state.held_bytes += bytes;
            }
            connection.counted = bytes;
            state.parked.insert(descriptor, connection);
            // Either way, what has arrived already is told of once more; whoever is told waits for the state.
            let watched = if was_registered { change().or_else(|_| add()) } else { add().or_else(|_| change()) };
            if watched.is_err() {
                // Its thread finds out what there is about it.
                if let Some(connection) = state.parked.remove(&descriptor) {
                    state.add_ready(connection, Instant::now());
                }
            }
            Ok(ended)
        })?;
        ended.iter().filter(|connection| connection.is_writing()).for_each(|connection| connection.reset());
        Ok(())
    }

    /// Puts a connection that has sent its next request already at the end of those that wait for a thread.
    ///
    /// # Errors
    /// Gives it back when too much of requests is kept already.
    pub fn queue(&self, mut connection: Box<Connection>, limits: &Limits) -> Result<(), Box<Connection>> {
        let bytes = connection.buffered_bytes();
        self.with_state(|state| {
            if bytes > ALWAYS_HELD_BYTES && state.held_bytes + bytes > limits.held_bytes {
                return Err(connection);
            }
            connection.counted = bytes;
            state.held_bytes += bytes;
            state.add_ready(connection, Instant::now());
            Ok(())
        })
    }

    /// No longer wakes the poller for what arrives there.
    pub fn unwatch(&self, connection: &mut Connection) {
        if std::mem::take(&mut connection.is_registered) {
            // Should it fail, the poller wakes in vain.
            drop(self.registry.deregister(&mut SourceFd(&connection.stream.as_raw_fd())));
        }
    }

    /// Accepts no more, and ends what is silent, but for requests that are about to arrive.
    pub fn close(&self) {
        self.closing.store(true, SeqCst);
        // On Linux new connections are refused from here on; elsewhere they wait for what never comes.
        drop(SockRef::from(&self.listener).shutdown(Shutdown::Both));
        self.wake();
        let until = Instant::now() + LAST_LOOK;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            thread::park_timeout(left);
        }
        let now = Instant::now();
        let ended: Vec<_> = self.with_state(|state| {
            let silent = state.parked.iter().filter(|(_, connection)| connection.is_silent());
            let silent: Vec<_> = silent.map(|(descriptor, _)| *descriptor).collect();
            silent.into_iter().filter_map(|descriptor| state.take_silent(descriptor, now)).collect()
        });
        drop(ended);
        self.wake();
    }

    /// Ends what waits, and lets nobody wait any more.
    pub fn cut(&self) {
        let ended = self.with_state(|state| {
            state.is_cut = true;
            (state.held_bytes, state.untaken_bytes) = (0, 0);
            (std::mem::take(&mut state.parked), std::mem::take(&mut state.ready))
        });
        drop(ended);
        self.wake();
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "the thread that watches connections cannot be woken");
        }
    }

    /// Tells all threads that nothing will come any more.
    fn end(&self) {
        self.is_over.store(true, SeqCst);
        lock(&self.state).idle.iter().for_each(|(_, thread)| thread.unpark());
    }

    /// Those for which something has arrived.
    fn awake(&self, descriptors: &[usize]) {
        let now = Instant::now();
        self.with_state(|state| {
            for descriptor in descriptors {
                // Whoever is attended to is read from there.
                if let Some(connection) = state.parked.remove(descriptor) {
                    state.add_ready(connection, now);
                }
            }
        });
    }

    /// Those whose time is over.
    fn expire(&self, now: Instant) {
        self.with_state(|state| {
            let mut late = Vec::new();
            for (descriptor, connection) in &state.parked {
                if connection.deadline <= now {
                    late.push(*descriptor);
                }
            }
            for descriptor in late {
                if let Some(connection) = state.parked.remove(&descriptor) {
                    state.add_ready(connection, now);
                }
            }
        });
    }

    /// Ends up to so many of the connections that have been silent longest, if that is long enough while others wait, and
    /// says whether there was one.
    fn reclaim(&self, now: Instant, most: usize) -> bool {
        let ended: Vec<_> = self.with_state(|state| {
            let silent = state.parked.iter().filter(|(_, connection)| {
                let allowed = if connection.served > 0 { LATER_SILENCE } else { FIRST_SILENCE };
                connection.is_silent() && now.duration_since(connection.since) >= allowed
            });
            let mut silent: Vec<_> = silent.map(|(descriptor, connection)| (connection.since, *descriptor)).collect();
            silent.sort_unstable();
            let longest = silent.into_iter().take(most);
            longest.filter_map(|(_, descriptor)| state.take_silent(descriptor, now)).collect()
        });
        !ended.is_empty()
    }
}

/// What a thread accepts and watches with.
#[derive(Debug)]
struct Poller {
    poll: Poll,
    events: Events,
    /// Who was accepted and has no place yet.
    at_the_door: Option<(TcpStream, SocketAddr)>,
    /// Whether somebody may wait to be accepted, and from when on it is tried.
    may_accept: bool,
    accept_from: Instant,
    /// When it is tried again to make room.
    reclaim_from: Instant,
    looked: Instant,
    looked_for_late: Instant,
    /// So that the log has one line per shortage.
    is_short: bool,
    awake: Vec<usize>,
}

impl Poller {
    fn new(poll: Poll, listener: &TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        poll.registry().register(&mut SourceFd(&listener.as_raw_fd()), LISTENER, Interest::READABLE)?;
        let now = Instant::now();
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS),
            at_the_door: None,
            may_accept: true,
            accept_from: now,
            reclaim_from: now,
            looked: now,
            looked_for_late: now,
            is_short: false,
            awake: Vec::new(),
        })
    }

    /// How long there is nothing to do but to wait.
    fn timeout(&self, waiting: &Waiting, closing: bool, open: usize) -> Option<Duration> {
        let accepts = (self.may_accept || self.at_the_door.is_some()) && !closing;
        match () {
            () if waiting.ready() > 0 => Some(SOON),
            () if accepts && !waiting.is_full() && !self.is_short => Some(Duration::ZERO),
            () if accepts || closing => Some(RETRY),
            () if open > 0 => Some(TICK),
            () => None,
        }
    }

    /// Waits for something to arrive or somebody to come, and looks for what is late.
    fn look(&mut self, waiting: &Waiting, limits: &Limits, timeout: Option<Duration>) {
        self.wait(waiting, timeout);
        if !waiting.is_closing() {
            self.accept(waiting, limits);
        }
        let now = Instant::now();
        self.looked = now;
        if now.duration_since(self.looked_for_late) >= TICK {
            let passed = now.duration_since(std::mem::replace(&mut self.looked_for_late, now));
            waiting.with_state(|state| state.calm_down(passed));
            waiting.expire(now);
        }
    }

    /// Waits for something to arrive.
    fn wait(&mut self, waiting: &Waiting, timeout: Option<Duration>) {
        if let Err(error) = self.poll.poll(&mut self.events, timeout) {
            if error.kind() != ErrorKind::Interrupted {
                tracing::error!(%error, "connections cannot be watched for now");
                thread::park_timeout(RETRY);
            }
            return;
        }
        self.awake.clear();
        for event in &self.events {
            match event.token() {
                LISTENER => self.may_accept = true,
                WAKER => {}
                Token(descriptor) => self.awake.push(descriptor),
            }
        }
        if !self.awake.is_empty() {
            waiting.awake(&self.awake);
        }
    }

    /// Accepts those who wait for it, as far as there is room.
    fn accept(&mut self, waiting: &Waiting, limits: &Limits) {
        let mut now = Instant::now();
        let mut is_full = false;
        for _ in 0..EVENTS {
            if self.at_the_door.is_none() {
                if !self.may_accept || now < self.accept_from {
                    break;
                }
                match waiting.listener.accept() {
                    Ok(accepted) => {
                        self.is_short = false;
                        self.at_the_door = Some(accepted);
                    }
                    Err(error) => match error.kind() {
                        ErrorKind::WouldBlock => self.may_accept = false,
                        _ if waiting.is_closing() => break,
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                        _ => {
                            if !std::mem::replace(&mut self.is_short, true) {
                                tracing::warn!(%error, "connections cannot be accepted for now");
                            }
                            now = Instant::now();
                            let lacks_descriptors =
                                matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE));
                            let freed = lacks_descriptors && waiting.reclaim(now, 1);
                            self.accept_from = if freed { now } else { now + ACCEPT_BACKOFF };
                        }
                    },
                }
            }
            if self.at_the_door.is_some() && waiting.open.load(SeqCst) >= limits.connections {
                // Not all the time: each look is at all of them.
                let is_due = now >= self.reclaim_from;
                if !is_due || !waiting.reclaim(now, limits.connections / EVENTS + 1) {
                    if is_due {
                        self.reclaim_from = now + RETRY;
                    }
                    is_full = true;
                    break;
                }
            }
            let Some((stream, peer)) = self.at_the_door.take() else { continue };
            // Elsewhere than on Linux it is as its listener is.
            if stream.set_nonblocking(false).is_ok() && stream.set_nodelay(true).is_ok() {
                let connection = Box::new(Connection::new(stream, peer, limits, Open::new(&waiting.open)));
                waiting.with_state(|state| state.add_ready(connection, now));
            }
        }
        waiting.is_full.store(is_full, Relaxed);
    }
}
