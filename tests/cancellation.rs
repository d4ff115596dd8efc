//! What is given up half-way: units of work that are dropped, and clients that go away. Nothing is half done, and no
//! lock, connection, descriptor or thread is left behind.

mod support;

use bifrons::async_engine::{AsyncPorts, Database, EphemeralStore, GoogleKeys, Hasher, SessionCache, Together};
use bifrons::hashing::{HashPool, Telling};
use bifrons::parts;
use bifrons::services::error::Unavailable;
use bifrons::services::model::{
    AuditEvent, Caller, Channel, OutboxEntry, OutboxState, Outcome, Place, ProfileChanges, Session, SessionId, User,
    UserId,
};
use bifrons::services::ports::{
    Audit as _, Inserted, Living, Outbox as _, Ports as _, READS_SIDE_BY_SIDE, Rotation, Sessions as _, Users as _,
};
use bifrons::settings::{DatabaseUrl, Settings};
use bifrons::store::migrations;
use data_encoding::BASE64URL_NOPAD;
use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, PgConnection, RunQueryDsl as _, SqliteConnection};
use serde_json::json;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};
use support::{
    Account, Backend, Client, Engine, Gateway, Options, Postgres, Request, Side, eventually, fresh_directory, pause,
    random_bytes, unique,
};

fn up_to(most: u64) -> u64 {
    u64::from_le_bytes(random_bytes()) % (most + 1)
}

/// Polls it so many times and then drops it, with the last answer still on its way.
async fn after_polls<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut left = polls;
    std::future::poll_fn(|context| {
        left = left.saturating_sub(1);
        match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Drops it after so many microseconds: the runtime's own timer counts in milliseconds.
async fn after_micros<T>(micros: u64, work: impl Future<Output = T>) -> Option<T> {
    let (ring, bell) = tokio::sync::oneshot::channel::<()>();
    thread::spawn(move || {
        pause(Duration::from_micros(micros));
        drop(ring);
    });
    tokio::select! {
        _ = bell => None,
        done = work => Some(done),
    }
}

/// Does it on a thread, so that the event loop runs on.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (answer, reply) = tokio::sync::oneshot::channel();
    thread::spawn(move || drop(answer.send(work())));
    reply.await.expect("no panic")
}

/// Lets the event loop run for a while.
async fn run_on(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

/// A connection past the gateway's own pools.
enum Direct {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Direct {
    fn open(settings: &Settings) -> Self {
        match settings.database() {
            DatabaseUrl::Sqlite(path) => {
                let mut conn = SqliteConnection::establish(&path.to_string_lossy()).expect("a connection");
                conn.batch_execute("PRAGMA busy_timeout = 1000; PRAGMA synchronous = OFF").expect("pragmas");
                Self::Sqlite(conn)
            }
            DatabaseUrl::Postgres(url) => {
                let mut conn = PgConnection::establish(url.expose()).expect("a connection");
                conn.batch_execute("SET lock_timeout = 1000").expect("a setting");
                Self::Postgres(conn)
            }
        }
    }

    fn execute(&mut self, statement: &str) {
        match self {
            Self::Sqlite(conn) => conn.batch_execute(statement),
            Self::Postgres(conn) => conn.batch_execute(statement),
        }
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    fn number(&mut self, statement: &str) -> i64 {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            value: i64,
        }
        let statement = diesel::sql_query(format!("SELECT ({statement}) AS value"));
        let row: Row = match self {
            Self::Sqlite(conn) => statement.get_result(conn),
            Self::Postgres(conn) => statement.get_result(conn),
        }
        .expect("a number");
        row.value
    }

    fn rows(&mut self) -> [i64; 4] {
        ["users", "sessions", "outbox", "audit_events"]
            .map(|table| self.number(&format!("SELECT count(*) FROM {table}")))
    }
}

fn settings(postgres: Option<&Postgres>) -> Settings {
    let mut overrides = vec![
        format!("data_dir={}", fresh_directory("cancellation").join("data").display()),
        format!("secrets.master={}", BASE64URL_NOPAD.encode(&random_bytes::<32>())),
        "database.durability=normal".to_owned(),
        "database.timeout=3s".to_owned(),
    ];
    overrides.extend(postgres.map(|server| format!("database.url={}", server.create_database())));
    let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    let settings = Settings::from_overrides(&overrides).expect("a configuration");
    settings.create_data_dir().expect("a directory");
    migrations::migrate(&settings, &mut |_| ()).expect("a schema");
    settings
}

fn ports(settings: &Settings, connections: usize) -> AsyncPorts {
    let database = Database::new(settings, connections).expect("a pool");
    AsyncPorts {
        ephemeral: EphemeralStore::new(settings, &database, Arc::default(), &Telling::default()).expect("a store"),
        sessions: SessionCache::new(Arc::default()),
        lookups: Together::in_file(settings, &Telling::default()),
        reads: Together::new(READS_SIDE_BY_SIDE),
        rotations: Together::new(bifrons::store::rotation::side_by_side(settings)),
        bundles: Together::in_file(settings, &Telling::default()),
        hasher: Hasher::new(parts::hash_params(settings), HashPool::start(settings, 1).expect("a thread")),
        google: Arc::new(GoogleKeys::of(settings).expect("a client")),
        policy: Arc::new(parts::policy(settings)),
        keys: Arc::new(parts::keys(settings).expect("keys")),
        wake: Arc::default(),
        places: None,
        breaches: None,
        database,
    }
}

fn user(ports: &AsyncPorts) -> User {
    let (id, now) = (ports.new_id(), ports.now());
    User { email: Some(format!("{id}@example.org")), ..User::new(UserId(id), id.simple().to_string(), now) }
}

fn session(ports: &AsyncPorts, user: UserId) -> Session {
    let now = ports.now();
    Session {
        id: SessionId(ports.new_id()),
        user_id: user,
        generation: 0,
        rotated_at: now,
        expires_at: now + Duration::from_secs(3600),
        created_at: now,
        last_used_at: now,
        ended_at: None,
        end_reason: None,
        ip: String::new(),
        user_agent: String::new(),
        browser: String::new(),
        os: String::new(),
        device: String::new(),
        place: Place::default(),
    }
}

/// A unit of work that changes the shared row first and then writes to every table.
async fn unit(ports: &AsyncPorts, shared: UserId) -> Result<(), Unavailable> {
    let (one, now) = (user(ports), ports.now());
    let letter = OutboxEntry {
        id: ports.new_id(),
        channel: Channel::Event,
        kind: "test".to_owned(),
        payload: vec![1],
        state: OutboxState::Published,
        attempts: 0,
        created_at: now,
        available_at: now,
        expires_at: None,
        last_error: String::new(),
    };
    let event = AuditEvent {
        id: ports.new_id(),
        at: now,
        action: "test",
        outcome: Outcome::Success,
        reason: "",
        user_id: Some(one.id),
        session_id: None,
        identifier_index: None,
        caller: Caller {
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            request_id: String::new(),
            engine: "async",
            user_agent: String::new(),
            device_token: None,
        },
        place: Place::default(),
    };
    let changes = ProfileChanges { bio: Some(one.id.to_string()), ..ProfileChanges::default() };
    ports
        .transaction(async |store| {
            store.update_profile(shared, &changes, now).await?;
            assert_eq!(store.insert_user(&one).await?, Inserted::Yes);
            store.insert_session(&session(ports, one.id)).await?;
            store.enqueue(&letter).await?;
            store.record(&event).await
        })
        .await
}

/// Gives up units of work and single statements at many points and looks at what is left behind each time.
async fn give_up_often(settings: &Settings, connections: usize, rounds: usize) {
    let ports = ports(settings, connections);
    let mut direct = Direct::open(settings);
    let shared = user(&ports);
    let its_session = session(&ports, shared.id);
    let mut store = ports.store().await.expect("a connection");
    assert_eq!(store.insert_user(&shared).await.expect("an answer"), Inserted::Yes);
    store.insert_session(&its_session).await.expect("an answer");
    drop(store);
    unit(&ports, shared.id).await.expect("an undisturbed unit of work");
    // Every wait of an undisturbed unit is a point at which it can be given up.
    let mut polls = 1;
    while after_polls(polls, unit(&ports, shared.id)).await.is_none() {
        polls += 1;
        assert!(polls < 10_000, "it never ends");
    }
    let [mut kept, ..] = direct.rows();
    let mut counts = [0usize; 2];
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let [done, other] = match round % 3 {
            0 => [after_polls(1 + round / 3 % polls, unit(&ports, shared.id)).await, None],
            1 => [after_micros(up_to(4000), unit(&ports, shared.id)).await, None],
            // Two at once, of which the second waits for the first: for the row, the writer or a connection.
            _ => {
                let (one, other) = (unit(&ports, shared.id), unit(&ports, shared.id));
                let (one, other) = tokio::join!(after_micros(up_to(5000), one), after_micros(up_to(5000), other));
                [one, other]
            }
        };
        let sure = [&done, &other].into_iter().flatten().map(|done| {
            assert!(done.is_ok(), "round {round}: {done:?}");
        });
        let sure = i64::try_from(sure.count()).expect("two");
        let index = usize::from(done.is_some());
        if let Some(count) = counts.get_mut(index) {
            *count += 1;
        }
        // Statements that stand for themselves, given up too.
        let rotation = async {
            let mut store = ports.store().await?;
            let now = ports.now();
            let living = Living { at: now, used_after: now, opened_after: now };
            let (id, user) = (its_session.id, its_session.user_id);
            let rotation = Rotation { id, user, from: 0, at: now, living, expires_at: now, absolute: None };
            store.rotate_sessions(&[rotation]).await?;
            store.user(shared.id).await.map(drop)
        };
        if round % 2 == 0 {
            after_polls(1 + round / 2 % 8, rotation).await;
        }

        // The row is free at once: whoever waits a second for the lock fails here.
        let began = Instant::now();
        let statement = format!("UPDATE users SET city = '{round}' WHERE pid = '{}'", shared.pid);
        let (back, rows) = elsewhere(move || {
            direct.execute(&statement);
            let rows = direct.rows();
            (direct, rows)
        })
        .await;
        direct = back;
        longest = longest.max(began.elapsed());
        let [users, sessions, outbox, audit] = rows;
        assert!(users - 1 == sessions - 1 && users - 1 == outbox && users - 1 == audit, "half of it: {rows:?}");
        assert!(users >= kept + sure, "round {round}: what was confirmed is gone");
        kept = users;

        // The pool serves on, without waiting for a connection that is not coming back.
        let began = Instant::now();
        let mut store = ports.store().await.expect("a connection");
        let read = store.user(shared.id).await.expect("an answer").expect("the user");
        assert_eq!(read.city, round.to_string());
        assert!(began.elapsed() < Duration::from_secs(1), "round {round}: the pool took {:?}", began.elapsed());
    }
    let [given_up, finished] = counts;
    assert!(given_up > rounds / 10 && finished > rounds / 10, "{given_up} given up, {finished} finished");
    assert!(longest < Duration::from_millis(900), "a lock was held for {longest:?}");
    for _ in 0..connections * 3 {
        unit(&ports, shared.id).await.expect("a unit of work");
    }
    if matches!(settings.database(), DatabaseUrl::Postgres(_)) {
        let ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                    AND application_name = 'bifrons'";
        let within = i64::try_from(connections).expect("few");
        wait_for(&mut direct, "connections are lost", ours, within).await;
        wait_for(&mut direct, "a unit of work is left", &format!("{ours} AND state LIKE 'idle in tr%'"), 0).await;
        drop(ports);
        wait_for(&mut direct, "connections stay open", ours, 0).await;
    } else {
        let threads = || named_threads("v2-sqlite");
        run_on(Duration::from_millis(50)).await;
        // And the one that writes.
        assert!(threads() <= connections + 1, "{} threads for {connections} connections", threads());
        drop(ports);
        run_on(Duration::from_millis(200)).await;
        assert_eq!(threads(), 0, "threads of closed connections");
    }
}

async fn wait_for(direct: &mut Direct, what: &str, statement: &str, most: i64) {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let found = direct.number(statement);
        if found <= most {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {found}, and {most} are right");
        run_on(Duration::from_millis(20)).await;
    }
}

fn named_threads(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("threads").flatten();
    tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|it| it.trim() == name)).count()
}

fn on_a_runtime(story: impl Future<Output = ()>) {
    actix_web::rt::System::new().block_on(story);
}

#[test]
fn a_unit_of_work_that_is_given_up_on_sqlite_is_whole_or_undone() {
    for connections in [1, 2] {
        on_a_runtime(give_up_often(&settings(None), connections, 240));
    }
}

#[test]
fn a_unit_of_work_that_is_given_up_on_postgres_is_whole_or_undone() {
    let postgres = Postgres::start();
    for connections in [1, 2] {
        on_a_runtime(give_up_often(&settings(Some(&postgres)), connections, 240));
    }
}

/// A statement that waits for somebody's unit of work is given up: the event loop, which that unit needs too, runs on.
async fn give_up_a_waiting_statement(settings: &Settings) {
    let ports = ports(settings, 2);
    let shared = user(&ports);
    let mut store = ports.store().await.expect("a connection");
    assert_eq!(store.insert_user(&shared).await.expect("an answer"), Inserted::Yes);
    drop(store);
    for _ in 0..3 {
        let began = Instant::now();
        let at_work = ports.transaction(async |store| {
            store.record_login(&shared, None, ports.now()).await?;
            run_on(Duration::from_millis(100)).await;
            store.record_login(&shared, None, ports.now()).await
        });
        let waiting = async {
            run_on(Duration::from_millis(20)).await;
            ports.store().await?.record_login(&shared, None, ports.now()).await
        };
        let (worked, waited) = tokio::join!(at_work, after_micros(50_000, waiting));
        assert!(waited.is_none(), "it did not wait for the unit of work");
        assert!(worked.is_ok(), "{worked:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "the event loop stood still: {:?}", began.elapsed());
        unit(&ports, shared.id).await.expect("a unit of work");
    }
}

#[test]
fn a_waiting_statement_that_is_given_up_does_not_stop_the_event_loop() {
    on_a_runtime(give_up_a_waiting_statement(&settings(None)));
    on_a_runtime(give_up_a_waiting_statement(&settings(Some(&Postgres::start()))));
}

/// From now on a unit of work takes some milliseconds, in the middle of which a client can leave.
fn slow_down(gateway: &Gateway) {
    let statements: &[&str] = match gateway.backend {
        Backend::PostgresRedis => &[
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_sleep(0.006); RETURN NEW; END $$",
            "CREATE TRIGGER slow BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION slow()",
        ],
        Backend::Embedded => &[
            "CREATE VIEW slow AS WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000)
                 SELECT count(*) AS count FROM n",
            "CREATE TRIGGER slow_insert AFTER INSERT ON audit_events BEGIN SELECT count FROM slow; END",
        ],
    };
    for statement in statements {
        gateway.query(statement);
    }
}

fn speed_up(gateway: &Gateway) {
    let statements: &[&str] = match gateway.backend {
        Backend::PostgresRedis => &["DROP TRIGGER slow ON audit_events", "DROP FUNCTION slow"],
        Backend::Embedded => &["DROP TRIGGER slow_insert", "DROP VIEW slow"],
    };
    for statement in statements {
        gateway.query(statement);
    }
}

/// How a client goes away.
#[derive(Clone, Copy)]
enum Exit {
    Close,
    Reset,
    HalfBody,
}

fn send_and_leave(engine: Engine, gateway: &Gateway, path: &str, body: &str, exit: Exit, after: Duration) {
    let address = engine.address(gateway);
    // A full backlog is a refusal like any other.
    let Ok(mut connection) = TcpStream::connect_timeout(&address, Duration::from_secs(5)) else { return };
    let head = format!(
        "POST /api/{}/{path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        engine.name(),
        body.len()
    );
    let bytes = [head.as_bytes(), body.as_bytes()].concat();
    let most = if matches!(exit, Exit::HalfBody) { head.len() + body.len() / 2 } else { bytes.len() };
    let _ = connection.write_all(bytes.get(..most).unwrap_or_default());
    pause(after);
    if matches!(exit, Exit::Reset) {
        let _ = socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO));
    }
}

fn leave_often(gateway: &Gateway, engine: Engine, account: &Account, times: usize) {
    let exits = [Exit::Close, Exit::Reset, Exit::Reset, Exit::HalfBody];
    thread::scope(|scope| {
        for thread in 0..6 {
            scope.spawn(move || {
                for turn in 0..times / 6 {
                    let (path, body) = match (thread + turn) % 3 {
                        0 => {
                            let email = format!("gone{}@example.com", unique());
                            ("auth/register/", json!({"email": email, "password": account.password}))
                        }
                        1 => ("auth/login/", json!({"email_or_phone": account.email, "password": account.password})),
                        _ => ("auth/token/refresh/", json!({"refresh": account.refresh})),
                    };
                    let exit = exits.get(turn / 3 % 4).copied().unwrap_or(Exit::Close);
                    let after = Duration::from_micros(up_to(20_000));
                    send_and_leave(engine, gateway, path, &body.to_string(), exit, after);
                }
            });
        }
    });
}

/// Descriptors and threads of the gateway.
fn held(gateway: &Gateway) -> [usize; 2] {
    ["fd", "task"].map(|what| fs::read_dir(format!("/proc/{}/{what}", gateway.pid())).expect("a process").count())
}

fn open_files(gateway: &Gateway) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("a process").flatten();
    files.filter_map(|file| Some(fs::read_link(file.path()).ok()?.display().to_string())).collect()
}

fn number(gateway: &Gateway, statement: &str) -> i64 {
    gateway.query(statement).parse().expect("a number")
}

/// Clients that leave, on one engine; then everything must be as before.
fn clients_leave(gateway: &Gateway, engine: Engine) {
    let place = format!("{} on {:?}", engine.name(), gateway.backend);
    let mut side = Side::new(gateway, engine);
    let account = side.account("here");
    // Pools and threads are then as many as they become.
    leave_often(gateway, engine, &account, 60);
    crowd(gateway, engine, &account);
    pause(Duration::from_millis(300));
    let before = held(gateway);
    slow_down(gateway);
    for _ in 0..3 {
        leave_often(gateway, engine, &account, 120);
        nothing_is_locked(gateway, &place);
    }
    speed_up(gateway);

    // Everybody else is served, at once and in full number.
    crowd(gateway, engine, &account);
    // The parent of many children that nobody received still has its successor.
    let child = side.refresh(&account.refresh);
    assert_eq!(child.status, 200, "{place}: {}", child.shown());
    let next = side.refresh(&child.text("data.refresh"));
    assert_eq!(next.status, 200, "{place}: {}", next.shown());
    let deadline = Instant::now() + SOON;
    loop {
        let now = held(gateway);
        if now.iter().zip(before).all(|(now, before)| *now <= before + 8) {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{place}: {now:?} descriptors and threads, {before:?} before: {:?}",
            open_files(gateway)
        );
        pause(Duration::from_millis(50));
    }

    // Nobody is half registered and nobody half signed in.
    let users = number(gateway, "select count(*) from users");
    assert_eq!(number(gateway, "select count(*) from outbox where kind = 'UserRegistered'"), users, "{place}");
    assert_eq!(number(gateway, "select count(distinct user_id) from audit_events where action = 'register'"), users);
    let sessions = number(gateway, "select count(*) from sessions");
    assert_eq!(number(gateway, "select count(*) from outbox where kind = 'SessionStarted'"), sessions, "{place}");
    let audited = "select count(distinct session_id) from audit_events where action in ('login', 'verify_otp')";
    assert_eq!(number(gateway, audited), sessions, "{place}");
    side.account("afterwards");
}

/// No unit of work is left open; asked before anybody else takes a connection from the pool and so may find it.
fn nothing_is_locked(gateway: &Gateway, place: &str) {
    pause(Duration::from_millis(150));
    let began = Instant::now();
    gateway.query("update users set city = 'free'");
    assert!(began.elapsed() < Duration::from_secs(3), "{place}: a lock was held for {:?}", began.elapsed());
    if gateway.backend == Backend::PostgresRedis {
        // Requests whose clients have gone may still be at work.
        let idle = "select count(*) from pg_stat_activity where datname = current_database()
                    and state like 'idle in transaction%'";
        let is_free = || (number(gateway, idle) == 0).then_some(());
        eventually(&format!("{place}: no unit of work is left open"), Duration::from_secs(2), is_free);
    }
}

const SOON: Duration = Duration::from_secs(5);

/// As many sign-ins at once as would exhaust a pool that had lost connections.
fn crowd(gateway: &Gateway, engine: Engine, account: &Account) {
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let body = json!({"email_or_phone": account.email, "password": account.password});
                let path = format!("/api/{}/auth/login/", engine.name());
                let answer = Client::new(engine.address(gateway)).send(&Request::post(&path, &body));
                assert_eq!(answer.status, 200, "{}", answer.shown());
            });
        }
    });
}

fn gateway(backend: Backend) -> Gateway {
    let options = Options::new(backend)
        .with("BIFRONS_DATABASE__POOL", "2")
        .with("BIFRONS_STORE__POOL", "2")
        .with("BIFRONS_ENGINES__V1__THREADS", "16")
        .with("BIFRONS_OTP__RESEND_INTERVAL", "0s");
    Gateway::start(options)
}

#[test]
fn clients_that_leave_an_embedded_gateway_leave_nothing_behind() {
    let gateway = gateway(Backend::Embedded);
    Engine::BOTH.into_iter().for_each(|engine| clients_leave(&gateway, engine));
}

#[test]
fn clients_that_leave_a_gateway_on_postgres_and_redis_leave_nothing_behind() {
    let gateway = gateway(Backend::PostgresRedis);
    Engine::BOTH.into_iter().for_each(|engine| clients_leave(&gateway, engine));
}
