//! Connections on which nothing is asked cost little and have an end. actix's part of a connection, whose buffers take 20
//! to 40 KiB, is there only while something is asked and answered, but for the first few connections of each worker, and
//! for those where it is not plain whether that part holds anything more.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use actix_http::{Extensions, error::DispatchError};
use actix_server::GracefulShutdownSignal;
use actix_service::{Service, ServiceFactory, fn_factory, fn_service};
use actix_web::rt::{self, net::TcpStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    select,
    sync::{Notify, Semaphore, SemaphorePermit},
    time::{sleep_until, timeout},
};

/// How many connections of a worker keep actix's part between their requests, which is a little faster.
const KEPT: usize = 16;
/// How many others have it at a time, and how long one keeps the next out, and waits for a place at most: what takes
/// longer does not keep the worker busy. That saves memory where many ask for what is answered soon; it is no bound.
const PLACES: usize = 128;
const PLACE: Duration = Duration::from_millis(25);

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the head of a request, from its first byte; for the first, from when the connection was accepted.
    pub head: Duration,
    /// To begin the next request.
    pub idle: Duration,
    /// To take an answer, from when it was made.
    pub write: Duration,
}

type Peer = Option<SocketAddr>;

/// Serves connections by `http`, which speaks HTTP/1.1 on one until that ends.
pub fn serve<F>(
    http: F,
    patience: Patience,
    ending: GracefulShutdownSignal,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = DispatchError, InitError = ()>
where
    F: ServiceFactory<(Io, Peer), Config = (), Response = (), Error = DispatchError, InitError = ()>,
    F::Future: 'static,
    F::Service: 'static,
{
    fn_factory(move || {
        let (made, ending) = (http.new_service(()), ending.clone());
        async move {
            let (http, worker) = (Rc::new(made.await?), Rc::new(Worker::new()));
            let told = Rc::clone(&worker);
            rt::spawn(async move {
                ending.notified().await;
                told.is_ending.set(true);
                told.ending.notify_waiters();
            });
            Ok(fn_service(move |stream| connection(Rc::clone(&http), Rc::clone(&worker), stream, patience)))
        }
    })
}

/// What the connections of a worker share.
struct Worker {
    // With actix's part, for as long as they last.
    kept: Cell<usize>,
    // For the others, in the order of their coming.
    places: Semaphore,
    is_ending: Cell<bool>,
    ending: Notify,
}

impl Worker {
    fn new() -> Self {
        Self { kept: Cell::new(0), places: Semaphore::new(PLACES), is_ending: Cell::new(false), ending: Notify::new() }
    }

    // A place, if there is one in time.
    async fn place(&self) -> Option<SemaphorePermit<'_>> {
        match self.places.try_acquire() {
            Ok(place) => Some(place),
            Err(_) => timeout(PLACE, self.places.acquire()).await.ok()?.ok(),
        }
    }
}

/// Counts those that keep actix's part.
struct Kept<'a>(Option<&'a Cell<usize>>);

impl<'a> Kept<'a> {
    fn new(count: Option<&'a Cell<usize>>) -> Self {
        count.inspect(|count| count.update(|kept| kept + 1));
        Self(count)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.inspect(|count| count.update(|kept| kept - 1));
    }
}

async fn connection<S>(
    http: Rc<S>,
    worker: Rc<Worker>,
    stream: TcpStream,
    patience: Patience,
) -> Result<(), DispatchError>
where
    S: Service<(Io, Peer), Response = (), Error = DispatchError>,
{
    let peer = stream.peer_addr().ok();
    let line = Rc::new(Line::new(stream));
    let mut silence = patience.head;
    loop {
        match line.listen(&worker, silence).await {
            Heard::Something => (),
            Heard::Ending => return Ok(()),
            Heard::Nothing => {
                line.close_late();
                return Ok(());
            }
        }
        // Those that came when there were few keep theirs, and need not be followed.
        let is_kept = worker.kept.get() < KEPT;
        let _kept = Kept::new(is_kept.then_some(&worker.kept));
        let place = Cell::new(if is_kept { None } else { worker.place().await });
        *line.exchange.borrow_mut() = if is_kept { Exchange::Unclear } else { Exchange::None };
        let mut attending = Box::pin(http.call((Io(Rc::clone(&line)), peer)));
        let mut late = pin!(line.late(patience, &place));
        let ended = poll_fn(|context| match attending.as_mut().poll(context) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if matches!(*line.exchange.borrow(), Exchange::Answered) => Poll::Ready(None),
            // Looked at after the other: what has just been read may be a whole head.
            Poll::Pending => late.as_mut().poll(context).map(|()| Some(Ok(()))),
        });
        if let Some(ended) = ended.await {
            return ended;
        }
        silence = patience.idle;
    }
}

enum Heard {
    Something,
    Nothing,
    Ending,
}

/// A client's connection.
struct Line {
    stream: RefCell<TcpStream>,
    exchange: RefCell<Exchange>,
    // Requests whose heads have come and whose answers have not been made.
    asked: Cell<usize>,
    // When the connection was accepted or the last answer made.
    since: Cell<Instant>,
    // The first byte after that.
    head_since: Cell<Option<Instant>>,
    // What was last written was not all taken.
    is_full: Cell<bool>,
}

impl Line {
    fn new(stream: TcpStream) -> Self {
        let now = Instant::now();
        Self {
            stream: RefCell::new(stream),
            exchange: RefCell::default(),
            asked: Cell::new(0),
            since: Cell::new(now),
            // The time for the first head has begun.
            head_since: Cell::new(Some(now)),
            is_full: Cell::new(false),
        }
    }

    // Until there is something to read, which may be its end.
    async fn listen(&self, worker: &Worker, silence: Duration) -> Heard {
        let mut ending = pin!(worker.ending.notified());
        ending.as_mut().enable();
        let something = poll_fn(|context| self.stream.borrow().poll_read_ready(context));
        let first = async {
            select! {
                biased;
                // What is wrong with it is found out by whoever reads. Also at the end: what has come is answered.
                _ = something => Heard::Something,
                () = async {}, if worker.is_ending.get() => Heard::Ending,
                () = ending => Heard::Ending,
            }
        };
        timeout(silence, first).await.unwrap_or(Heard::Nothing)
    }

    // Until the head of a request is overdue, or the taking of an answer. actix would watch over the first head of its
    // part only, over silence only as long as nothing of the next request was read, and over the other not at all.
    async fn late(&self, patience: Patience, place: &Cell<Option<SemaphorePermit<'_>>>) {
        let held = place.take();
        if held.is_some() {
            place.set(held);
            let first = PLACE.min(patience.head).min(patience.idle).min(patience.write);
            sleep_until((Instant::now() + first).into()).await;
            place.set(None);
        }
        loop {
            let now = Instant::now();
            let end = match self.asked.get() {
                0 if self.is_full.get() => self.since.get() + patience.write,
                0 => {
                    let idle = self.since.get() + patience.idle;
                    self.head_since.get().map_or(idle, |since| idle.min(since + patience.head))
                }
                _ => now + patience.head,
            };
            if end <= now {
                return self.close_late();
            }
            // Soon enough for whatever begins meanwhile.
            sleep_until(end.min(now + patience.head.min(patience.write)).into()).await;
        }
    }

    // Who was slow to ask is told so, as actix does; nobody waits for it to be taken.
    #[expect(clippy::disallowed_methods, reason = "the Date header tells when the response was made")]
    fn close_late(&self) {
        if self.head_since.get().is_none() || self.is_full.get() {
            return;
        }
        let date = httpdate::fmt_http_date(SystemTime::now());
        let response =
            format!("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\ndate: {date}\r\n\r\n");
        let _ = self.stream.borrow().try_write(response.as_bytes());
    }
}

/// A connection, as its requests know it.
pub struct Asked(Rc<Line>);

impl Asked {
    /// The head of a request has come; to be dropped when its answer is made.
    pub fn begin(&self) -> Answering {
        self.0.asked.update(|count| count + 1);
        self.0.head_since.set(None);
        Answering(Rc::clone(&self.0))
    }
}

/// A request under way.
pub struct Answering(Rc<Line>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.asked.update(|count| count - 1);
        self.0.since.set(Instant::now());
    }
}

/// Tells the requests of a connection of it; for actix's `on_connect_ext`.
pub fn introduce(io: &Io, data: &mut Extensions) {
    data.insert(Asked(Rc::clone(&io.0)));
}

/// What actix reads from and writes to.
pub struct Io(Rc<Line>);

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(context, buffer);
        if matches!(read, Poll::Ready(Ok(()))) {
            self.0.exchange.borrow_mut().was_read(buffer.filled().get(before..).unwrap_or_default());
            // As long as an answer is being sent, the next request cannot begin.
            let is_owed = self.0.asked.get() > 0 || self.0.is_full.get();
            if !is_owed && self.0.head_since.get().is_none() {
                self.0.head_since.set(Some(Instant::now()));
            }
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(context, bytes);
        self.0.is_full.set(!matches!(written, Poll::Ready(Ok(length)) if length == bytes.len()));
        if let Poll::Ready(Ok(length)) = written {
            self.0.exchange.borrow_mut().was_written(bytes.get(..length).unwrap_or_default());
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(context)
    }
}

/// How far a request and its response have come, as far as that is plain from the bytes. Only where one whole request was
/// read, and nothing after it, and one whole response was written, after which the connection goes on, is there nothing
/// in actix's part that would be lost with it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Exchange {
    #[default]
    None,
    Asking {
        left: usize,
    },
    Asked,
    Answering {
        left: usize,
    },
    Answered,
    Unclear,
}

impl Exchange {
    fn was_read(&mut self, bytes: &[u8]) {
        *self = match *self {
            Self::None | Self::Answered => match request_length(bytes) {
                Some(length) => Self::asking(length, bytes),
                None => Self::Unclear,
            },
            Self::Asking { left } => Self::asking(left, bytes),
            Self::Asked | Self::Answering { .. } | Self::Unclear => Self::Unclear,
        };
    }

    fn was_written(&mut self, bytes: &[u8]) {
        *self = match *self {
            Self::Asked => match response_length(bytes) {
                Some(length) => Self::answering(length, bytes),
                None => Self::Unclear,
            },
            Self::Answering { left } => Self::answering(left, bytes),
            Self::None | Self::Asking { .. } | Self::Answered | Self::Unclear => Self::Unclear,
        };
    }

    const fn asking(left: usize, bytes: &[u8]) -> Self {
        match left.checked_sub(bytes.len()) {
            Some(0) => Self::Asked,
            Some(left) => Self::Asking { left },
            None => Self::Unclear,
        }
    }

    const fn answering(left: usize, bytes: &[u8]) -> Self {
        match left.checked_sub(bytes.len()) {
            Some(0) => Self::Answered,
            Some(left) => Self::Answering { left },
            None => Self::Unclear,
        }
    }
}

// With more header fields than this it is not plain.
const FIELDS: usize = 48;

// Of the whole request whose head is at the start of these bytes.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let head = request.parse(bytes).ok().filter(httparse::Status::is_complete)?.unwrap();
    let is_plain = request.version == Some(1) && !matches!(request.method?, "HEAD" | "CONNECT");
    let body = body_length(request.headers)?.unwrap_or(0);
    is_plain.then(|| head.checked_add(body)).flatten()
}

// Of the whole response, to any request but HEAD, whose head is at the start of these bytes.
fn response_length(bytes: &[u8]) -> Option<usize> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let head = response.parse(bytes).ok().filter(httparse::Status::is_complete)?.unwrap();
    let body = match (response.code?, body_length(response.headers)?) {
        (100..200, _) => return None,
        (204 | 304, _) => 0,
        (_, length) => length?,
    };
    head.checked_add(body)
}

// `None` where the body's length is not plain, or the connection is to end or to become another.
fn body_length(fields: &[httparse::Header<'_>]) -> Option<Option<usize>> {
    let mut length = None;
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let told = std::str::from_utf8(field.value).ok()?.parse().ok()?;
            if length.replace(told).is_some() {
                return None;
            }
        } else if is("connection") && !field.value.eq_ignore_ascii_case(b"keep-alive")
            || ["transfer-encoding", "upgrade", "expect"].into_iter().any(is)
        {
            return None;
        }
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const POST: &str = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

    fn but(text: &str, last: usize) -> &str {
        text.split_at(text.len() - last).0
    }

    fn after(read: &[&str], written: &[&str]) -> Exchange {
        let mut exchange = Exchange::None;
        read.iter().for_each(|bytes| exchange.was_read(bytes.as_bytes()));
        written.iter().for_each(|bytes| exchange.was_written(bytes.as_bytes()));
        exchange
    }

    #[test]
    fn a_whole_request_and_a_whole_response_are_seen() {
        for read in [vec![GET], vec![POST], vec![but(POST, 3), "abc"], vec![but(POST, 1), "c"]] {
            assert_eq!(after(&read, &[]), Exchange::Asked, "{read:?}");
            assert_eq!(after(&read, &[OK]), Exchange::Answered, "{read:?}");
        }
        for written in [vec![but(OK, 2), "{", "}"], vec!["HTTP/1.1 204 No Content\r\nconnection: keep-alive\r\n\r\n"]] {
            assert_eq!(after(&[GET], &written), Exchange::Answered, "{written:?}");
        }
        // And the next one.
        let mut exchange = after(&[GET], &[OK]);
        exchange.was_read(POST.as_bytes());
        assert_eq!(exchange, Exchange::Asked);
    }

    #[test]
    fn nothing_is_over_before_it_is() {
        let head = but(OK, 2);
        for (read, written) in [
            (vec![], vec![]),
            (vec![GET], vec![]),
            (vec![GET], vec![head]),
            (vec![GET], vec![head, "{"]),
            (vec![but(POST, 1)], vec![]),
        ] {
            assert_ne!(after(&read, &written), Exchange::Answered, "{read:?} {written:?}");
        }
    }

    #[test]
    fn what_is_not_plain_stays_so() {
        let twice = [GET, GET].concat();
        let more = [POST, "d"].concat();
        let head_split = GET.split_at(9);
        for read in [
            vec![twice.as_str()],
            vec![GET, GET],
            vec![GET, "x"],
            vec![more.as_str()],
            vec![but(POST, 1), "cd"],
            vec![head_split.0, head_split.1],
            vec![""],
            vec!["nonsense\r\n\r\n"],
            vec!["HEAD / HTTP/1.1\r\n\r\n"],
            vec!["CONNECT a:1 HTTP/1.1\r\n\r\n"],
            vec!["GET / HTTP/1.0\r\n\r\n"],
            vec!["GET / HTTP/1.1\r\nConnection: close\r\n\r\n"],
            vec!["GET / HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n\r\n"],
            vec!["POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
            vec!["POST / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"],
            vec!["POST / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n"],
            vec!["POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"],
            vec!["POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"],
        ] {
            assert_eq!(after(&read, &[OK]), Exchange::Unclear, "{read:?}");
            assert_eq!(after(&read, &[OK, OK]), Exchange::Unclear, "{read:?}");
        }
        for written in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nx",
            "HTTP/1.1 200 OK\r\ncontent-le",
        ] {
            assert_eq!(after(&[GET], &[written]), Exchange::Unclear, "{written}");
        }
        // Answered before all was asked.
        assert_eq!(after(&[but(POST, 1)], &[OK]), Exchange::Unclear);
        let mut kept = Exchange::Unclear;
        kept.was_read(GET.as_bytes());
        kept.was_written(OK.as_bytes());
        assert_eq!(kept, Exchange::Unclear);
    }
}
