//! The async engine's port: takes requests from actix, finds their operation, answers.

use std::{
    error::Error,
    net::TcpListener,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll},
    thread::{self, JoinHandle, available_parallelism},
    time::{Duration, Instant},
};

use actix_http::{HttpServiceBuilder, KeepAlive};
use actix_server::{Server, ServerHandle};
use actix_service::{fn_service, map_config};
use actix_web::{
    App, HttpMessage as _, HttpResponse,
    dev::{AppConfig, RequestHead, ServiceRequest},
    http::header::HeaderMap,
    rt::System,
};
use socket2::SockRef;
use tracing::Instrument as _;

use super::{
    breaches::BreachList,
    database::Database,
    ephemeral::EphemeralStore,
    extract,
    google::GoogleKeys,
    handlers,
    hasher::Hasher,
    ports::AsyncPorts,
    pump::{Pump, Wake},
    server::{Asked, Patience, introduce, serve},
    session_cache::SessionCache,
    together::Together,
};
use crate::{
    api::{Edge, Handled, Matched, Operation, Reply, framing, log},
    hashing::HashPool,
    parts,
    places::Places,
    services::{
        error::Unavailable, keys::Keys, limits::LocalLimiter, policy::Policy, ports::READS_SIDE_BY_SIDE,
        problem::Problem, session_cache::Versions,
    },
    settings::Settings,
    store::rotation,
};

type Failure = Box<dyn Error + Send + Sync>;

/// What the engine is built of.
pub struct Shared {
    /// The configuration.
    pub settings: Settings,
    /// The operator's decisions.
    pub policy: Arc<Policy>,
    /// Derived from the master secret.
    pub keys: Arc<Keys>,
    /// Proxies, origins, cookies.
    pub edge: Arc<Edge>,
    /// Counters that both engines share.
    pub limiter: Arc<LocalLimiter>,
    /// Where addresses are.
    pub places: Option<Arc<Places>>,
    /// What changes of sessions and users are told to, in both engines.
    pub versions: Arc<Versions>,
    /// The threads that hash passwords, for both engines.
    pub hashing: HashPool,
}

/// A running engine.
pub struct Engine {
    handle: ServerHandle,
    requests: Arc<Requests>,
    grace: Duration,
    thread: JoinHandle<bool>,
}

impl Engine {
    /// Takes no more connections, lets running requests finish within `http.shutdown_grace`,
    /// settles letters; `true` when all was done in time.
    pub fn stop(self) -> bool {
        // actix counts whole seconds; what it cuts, it cuts then.
        let deadline = Instant::now() + self.grace.saturating_sub(Duration::from_millis(100));
        let _ = self.requests.deadline.set(deadline);
        // The command is sent at once; the engine's own thread sees to it.
        drop(self.handle.stop(true));
        self.thread.join().unwrap_or(false)
    }
}

/// Starts serving on an open listener, on threads of its own.
///
/// # Errors
/// A pool, a thread or the mailer cannot be set up.
pub fn start(listener: TcpListener, shared: Shared) -> Result<Engine, Failure> {
    // Inherited by every connection: the kernel cuts off a client that does not read.
    SockRef::from(&listener).set_tcp_user_timeout(Some(shared.settings.http.write_timeout))?;
    let grace = Duration::from_secs(grace_seconds(&shared.settings));
    let (started, ready) = mpsc::channel();
    let thread = thread::Builder::new().name("v2".into()).spawn(move || {
        System::new().block_on(async move {
            match prepare(listener, shared) {
                Ok((server, pump, requests)) => {
                    let _ = started.send(Ok((server.handle(), Arc::clone(&requests))));
                    let ended = server.await;
                    // actix does not tell what it cut off at the end of the grace time.
                    let is_clean = ended.is_ok() && requests.all_answered();
                    pump.stop(LAST_LETTERS).await && is_clean
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                    false
                }
            }
        })
    })?;
    let (handle, requests) = ready.recv()??;
    Ok(Engine { handle, requests, grace, thread })
}

fn prepare(listener: TcpListener, shared: Shared) -> Result<(Server, Pump, Arc<Requests>), Failure> {
    let Shared { settings, policy, keys, edge, limiter, places, versions, hashing } = shared;
    let workers = match settings.engines.v2.workers {
        0 => available_parallelism().map_or(1, NonZero::get),
        workers => workers,
    };
    let (telling, writing) = (hashing.telling().clone(), hashing.telling_and_writing().clone());
    let hasher = Hasher::new(parts::hash_params(&settings), hashing);
    let wake = Arc::new(Wake::default());
    let sessions = SessionCache::new(versions);
    let breaches = BreachList::of(&settings)?.map(Arc::new);
    let google = Arc::new(GoogleKeys::of(&settings)?);
    // SQLite's connections live on threads of their own and serve all workers; a PostgreSQL or
    // Redis connection lives on the worker that made it.
    let embedded = match settings.database() {
        crate::settings::DatabaseUrl::Sqlite(_) => Some(Database::new(&settings, settings.database.pool.into())?),
        crate::settings::DatabaseUrl::Postgres(_) => None,
    };
    let ports = move |settings: &Settings, share: usize| -> Result<AsyncPorts, Unavailable> {
        let size = |pool: u16| usize::from(pool).div_ceil(share).max(1);
        let database = match &embedded {
            Some(database) => database.clone(),
            None => Database::new(settings, size(settings.database.pool))?,
        };
        let ephemeral = EphemeralStore::new(settings, &database, Arc::clone(&limiter), &telling)?;
        Ok(AsyncPorts {
            database,
            ephemeral,
            sessions: sessions.clone(),
            lookups: Together::in_file(settings, &telling),
            reads: Together::new(READS_SIDE_BY_SIDE),
            rotations: Together::new(rotation::side_by_side(settings)),
            bundles: Together::in_file(settings, &writing),
            hasher: hasher.here(),
            policy: Arc::clone(&policy),
            keys: Arc::clone(&keys),
            wake: Arc::clone(&wake),
            places: places.clone(),
            breaches: breaches.clone(),
            google: Arc::clone(&google),
        })
    };
    let pump = Pump::start(&settings, &ports(&settings, usize::MAX)?)?;
    // What fails here would fail in each worker, where nobody could be told.
    drop(ports(&settings, workers)?);
    let http = settings.http.clone();
    let grace = grace_seconds(&settings);
    let connections = settings.engines.v2.connections.div_ceil(workers);
    let requests = Arc::new(Requests::default());
    let counter = Arc::clone(&requests);
    let builder = Server::build();
    let ending = builder.graceful_shutdown_signal();
    let server = builder
        .workers(workers)
        .max_concurrent_connections(connections)
        .shutdown_timeout(grace)
        .disable_signals()
        .listen("v2", listener, move || {
            #[expect(clippy::expect_used, reason = "the same call has just succeeded, and connects to nothing")]
            let ports = ports(&settings, workers).expect("pools that were built before");
            let (edge, requests) = (Arc::clone(&edge), Arc::clone(&counter));
            let state = Rc::new(AppState { ports, edge, requests, body_timeout: http.body_timeout });
            let serve_one = move |mut request: ServiceRequest| {
                let state = Rc::clone(&state);
                async move {
                    let response = answer(&state, &mut request).await;
                    Ok::<_, actix_web::Error>(request.into_response(response))
                }
            };
            let app = App::new().default_service(fn_service(serve_one));
            let signal = ending.clone();
            let speaker = HttpServiceBuilder::default()
                .graceful_shutdown_signal(move || {
                    let signal = signal.clone();
                    async move { signal.notified().await }
                })
                // `server.rs` watches over both, for every request and not for the first alone.
                .keep_alive(KeepAlive::Os)
                .client_request_timeout(Duration::ZERO)
                .client_disconnect_timeout(Duration::from_secs(1))
                .on_connect_ext(introduce)
                .h1(map_config(app, |()| AppConfig::default()));
            let patience = Patience { head: http.head_timeout, idle: http.idle_timeout, write: http.write_timeout };
            serve(speaker, patience, ending.clone())
        })?
        .run();
    Ok((server, pump, requests))
}

// actix takes whole seconds: rounded up, so that no request gets less than was promised.
fn grace_seconds(settings: &Settings) -> u64 {
    settings.http.shutdown_grace.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

/// What each request of a worker is answered with.
struct AppState {
    ports: AsyncPorts,
    edge: Arc<Edge>,
    requests: Arc<Requests>,
    body_timeout: Duration,
}

// How long letters that are being sent may still take when all requests have ended.
const LAST_LETTERS: Duration = Duration::from_secs(5);

/// Requests under way, and whether any was given up while the engine stopped.
#[derive(Debug, Default)]
struct Requests {
    running: AtomicUsize,
    // When the grace time ends, once the engine stops.
    deadline: OnceLock<Instant>,
    any_cut: AtomicBool,
}

impl Requests {
    fn all_answered(&self) -> bool {
        self.running.load(SeqCst) == 0 && !self.any_cut.load(SeqCst)
    }
}

struct Counted<'a> {
    requests: &'a Requests,
    is_answered: bool,
}

impl<'a> Counted<'a> {
    fn new(requests: &'a Requests) -> Self {
        requests.running.fetch_add(1, SeqCst);
        Self { requests, is_answered: false }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        // Before that, it was the client that went away.
        let is_late = self.requests.deadline.get().is_some_and(|deadline| Instant::now() >= *deadline);
        if !self.is_answered && is_late {
            self.requests.any_cut.store(true, SeqCst);
        }
        self.requests.running.fetch_sub(1, SeqCst);
    }
}

async fn answer(state: &AppState, request: &mut ServiceRequest) -> HttpResponse {
    let AppState { ports, edge, requests, body_timeout } = state;
    let _answering = request.conn_data::<Asked>().map(Asked::begin);
    let mut counted = Counted::new(requests);
    let began = Instant::now();
    let mut payload = request.take_payload();
    let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let target = request.uri().to_string();
    if let Some(status) = framing::refuse_ambiguous(request.method().as_str(), &target, headers) {
        counted.is_answered = true;
        return extract::response(Reply::bare(status), payload);
    }
    let call = extract::call(edge, request, &target, &mut payload, *body_timeout).await;
    let matched = call.route();
    forget(request.head_mut(), &matched);
    let span = log::span(&call, &matched);
    let reply = async {
        let reply = match matched {
            Ok(Matched::Operation { operation, is_legacy, parameters }) => {
                let handling = handlers::handle(ports, edge, &call, operation, &parameters);
                Reply::new(edge, &call, is_legacy, Caught(Box::pin(handling)).await)
            }
            Ok(Matched::Options) => Reply::options(edge, &call),
            Err(problem) => Reply::problem(edge, &call, &problem),
        };
        log::answered(&reply, began);
        reply
    };
    let reply = reply.instrument(span).await;
    counted.is_answered = true;
    extract::response(reply, payload)
}

// What was read of a head is in the call. Its fields hold on to the buffer that they came in, which the connection can
// use again once they do not, also later, when actix has put the head aside for another request.
fn forget(head: &mut RequestHead, matched: &Result<Matched, Problem>) {
    match matched {
        // Those wait for nothing for long: to make the map anew each time would cost them more.
        Ok(Matched::Operation {
            operation: Operation::VerifyToken | Operation::Me | Operation::RefreshToken, ..
        }) => head.headers.clear(),
        // Where a thousand wait for hashes, their maps alone are 7 MiB.
        _ => head.headers = HeaderMap::new(),
    }
}

// A panic is a defect; its connection to the database is closed, which undoes what it had begun.
struct Caught<F>(Pin<Box<F>>);

impl<F: Future<Output = Handled>> Future for Caught<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let polled = catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context)));
        polled.unwrap_or_else(|_panic| Poll::Ready(Handled::new(None, Err(Problem::server_error()))))
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;
    use crate::api::Success;

    #[test]
    fn what_was_read_of_a_head_is_let_go() {
        let left = |operation| {
            let request = TestRequest::post().uri("/api/v2/auth/login/").insert_header(("Accept", "*/*"));
            let mut request = request.to_srv_request();
            let matched = Matched::Operation { operation, is_legacy: false, parameters: Vec::new() };
            forget(request.head_mut(), &Ok(matched));
            assert!(request.headers().is_empty());
            request.headers().capacity()
        };
        assert_eq!(left(Operation::Login), 0, "also its room, where others may wait for long");
        assert!(left(Operation::Me) > 0);
    }

    #[test]
    fn a_panic_is_a_server_error() {
        System::new().block_on(async {
            let panics = Caught(Box::pin(async { panic!("on purpose") })).await;
            assert_eq!(panics.outcome.err().unwrap().code, "server_error");
            let lives = Caught(Box::pin(async { Handled::new(None, Ok(Success::live())) })).await;
            assert!(lives.outcome.is_ok());
        });
    }
}
