//! `bifrons serve`: prepares the database, starts the engines that are on, stops them on a signal.

use std::{
    error::Error,
    io::{self, IsTerminal as _, Write as _},
    net::TcpListener,
    sync::Arc,
    time::Instant,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    api::Edge,
    async_engine, parts,
    services::{limits::LocalLimiter, ports::READS_SIDE_BY_SIDE, session_cache::Versions},
    settings::{MailUrl, Settings, SmsUrl},
    store::{self, migrations, rotation},
    sync_engine::{
        self, BlockingPorts, BreachList, Database, EphemeralStore, GoogleKeys, Hasher, Pump, Renewer, SessionCache,
        Together,
    },
    telemetry,
};

type Failure = Box<dyn Error + Send + Sync>;

/// Serves until SIGTERM or SIGINT; then takes no new connections, lets running requests finish
/// within `http.shutdown_grace`, settles the letters that are being sent, and returns.
///
/// # Errors
/// What keeps the gateway from starting, or requests that outlived the grace time.
pub fn serve(settings: &Settings) -> Result<(), Failure> {
    telemetry::install(settings)?;
    // From here on a signal is an orderly stop, however early it comes.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    raise_descriptor_limit(settings)?;
    let mut settings = settings.clone();
    bound_connections(&mut settings);
    let settings = &settings;
    settings.create_data_dir()?;
    let keys = Arc::new(parts::keys(settings)?);
    migrations::prepare(settings, &keys)?;
    // Closed last.
    let _held = store::hold_open(settings)?;
    let policy = Arc::new(parts::policy(settings));
    let edge = Arc::new(Edge::new(settings));
    let limiter = Arc::new(LocalLimiter::default());
    let places = parts::places(settings)?;
    let versions = Arc::<Versions>::default();
    let hashing = parts::hash_pool(settings)?;
    let (v1, v2) = (&settings.engines.v1, &settings.engines.v2);

    // Both addresses are taken before either engine answers.
    let v1_listener = v1.enabled.then(|| listen(v1.bind)).transpose()?;
    let v2_listener = v2.enabled.then(|| listen(v2.bind)).transpose()?;

    let sync_side = match v1_listener {
        Some(listener) => {
            let database = Database::new(settings);
            let ports = BlockingPorts {
                ephemeral: EphemeralStore::new(settings, &database, Arc::clone(&limiter))?,
                sessions: SessionCache::new(Arc::clone(&versions)),
                reads: Together::new(READS_SIDE_BY_SIDE),
                rotations: Together::new(rotation::side_by_side(settings)),
                bundles: Together::in_file(settings, hashing.telling_and_writing()),
                hasher: Hasher::new(parts::hash_params(settings), hashing.clone()),
                policy: Arc::clone(&policy),
                keys: Arc::clone(&keys),
                wake: Arc::default(),
                places: places.clone(),
                breaches: BreachList::of(settings)?.map(Arc::new),
                google: Arc::new(GoogleKeys::of(settings)),
                database,
            };
            let pump = Pump::start(settings, &ports)?;
            let renewer = Renewer::start(&ports)?;
            let server = sync_engine::start(settings, listener, ports, Arc::clone(&edge))?;
            tracing::info!(engine = "sync", address = %server.address(), "listening");
            Some((server, pump, renewer))
        }
        None => None,
    };
    let async_side = match v2_listener {
        Some(listener) => {
            let address = listener.local_addr()?;
            let shared = async_engine::Shared {
                settings: settings.clone(),
                policy,
                keys,
                edge,
                limiter,
                places,
                versions,
                hashing,
            };
            let engine = async_engine::start(listener, shared)?;
            tracing::info!(engine = "async", %address, "listening");
            Some(engine)
        }
        None => None,
    };
    announce(settings);

    let signal = signals.forever().next();
    tracing::info!(signal, "stopping");
    let grace = settings.http.shutdown_grace;
    // Both stop at the same time. An impatient second Ctrl-C ends the process at once.
    std::thread::spawn(move || {
        if signals.forever().any(|signal| signal == SIGINT) {
            std::process::exit(130);
        }
    });
    let stopping = async_side.map(|engine| std::thread::spawn(move || engine.stop()));
    let mut is_clean = true;
    if let Some((server, pump, _renewer)) = sync_side {
        let until = Instant::now() + grace;
        is_clean &= server.close(grace);
        is_clean &= pump.stop(until.saturating_duration_since(Instant::now()));
    }
    if let Some(stopping) = stopping {
        is_clean &= stopping.join().unwrap_or(false);
    }
    if !is_clean {
        return Err("some requests did not finish within http.shutdown_grace".into());
    }
    tracing::info!("stopped");
    Ok(())
}

// What is open besides the connections of clients.
fn other_descriptors(settings: &Settings) -> u64 {
    // Each worker of v2 waits with a few of its own.
    let workers = match settings.engines.v2.workers {
        _ if !settings.engines.v2.enabled => 0,
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
    let workers = u64::try_from(workers).unwrap_or(u64::MAX).saturating_mul(4);
    u64::from(settings.database.pool) * 4 + u64::from(settings.store.pool) * 2 + 64 + workers
}

// Each connection is a descriptor; as many as v1 has threads must be possible at least.
fn raise_descriptor_limit(settings: &Settings) -> Result<(), Failure> {
    let limits = getrlimit(Resource::Nofile);
    // Should it fail, the present limit stays, and is judged below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum });
    let engine = &settings.engines.v1;
    let threads = if engine.enabled { u64::try_from(engine.threads)? } else { 0 };
    let needed = threads + other_descriptors(settings);
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Err(format!(
            "the configuration needs at least {needed} file descriptors and the limit is {limit}: \
             lower engines.v1.threads, or raise the limit (LimitNOFILE, ulimit -n)"
        )
        .into()),
        _ => Ok(()),
    }
}

// So many of one engine at most that the databases and the other find descriptors, too, whatever its clients do.
fn bound_connections(settings: &mut Settings) {
    let others = other_descriptors(settings);
    let Some(limit) = getrlimit(Resource::Nofile).current else { return };
    let engines = &mut settings.engines;
    let left = limit.saturating_sub(others);
    let most = if engines.v1.enabled && engines.v2.enabled { left / 5 * 3 } else { left };
    let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    let (v1, v2) = (&mut engines.v1, &mut engines.v2);
    for (engine, is_on, connections) in
        [("v1", v1.enabled, &mut v1.connections), ("v2", v2.enabled, &mut v2.connections)]
    {
        if is_on && most < *connections {
            tracing::info!(engine, connections = most, "fewer connections than it may have: descriptors are few");
            *connections = most;
        }
    }
}

// A restart must not wait for the old connections' last state.
fn listen(address: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    let open = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        // Inherited by every connection: a client that sends without reading makes us hold little.
        socket.set_recv_buffer_size(16 << 10)?;
        socket.bind(&SockAddr::from(address))?;
        socket.listen(1024)?;
        Ok(socket.into())
    };
    Ok(open().map_err(|error| format!("cannot listen on {address}: {error}"))?)
}

// On a terminal for a person, otherwise as a record among the others.
fn announce(settings: &Settings) {
    let engines = &settings.engines;
    let address = |enabled: bool, bind: std::net::SocketAddr, version: &str| match enabled {
        true => format!("http://{bind}/api/{version}/"),
        false => "off".to_owned(),
    };
    let v1 = address(engines.v1.enabled, engines.v1.bind, "v1");
    let v2 = address(engines.v2.enabled, engines.v2.bind, "v2");
    let mail = match settings.mail() {
        MailUrl::File(directory) => format!("{}/*.eml", directory.display()),
        MailUrl::Smtp { host, port, .. } => format!("by SMTP to {host}:{port}"),
    };
    let texts = match settings.sms() {
        SmsUrl::File(directory) => format!("{}/*.txt", directory.display()),
        SmsUrl::Twilio { .. } => "by Twilio".to_owned(),
    };
    if !io::stdout().is_terminal() {
        tracing::info!(v1, v2, mail, texts, "ready");
        return;
    }
    let lines = format!(
        "bifrons is ready.\n  v1 (blocking)  {v1}\n  v2 (async)     {v2}\n  mail           {mail}\n  \
         text messages  {texts}\nStop with Ctrl-C.\n"
    );
    let _ = io::stdout().write_all(lines.as_bytes());
}
