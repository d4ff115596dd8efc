//! Faults of everything the gateway stands on: a database that refuses to commit, servers that stop and come back, a
//! process that is killed. Nothing that was confirmed is lost, nothing is let through, and it recovers by itself.

mod support;

use serde_json::json;
use std::fs;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use support::{
    Account, Answer, Backend, Client, Engine, Gateway, Options, PASSWORD, Postgres, Redis, Request, Side, eventually,
    pause, random_bytes, run_alone, unique,
};

fn post(engine: Engine, path: &str, body: &serde_json::Value) -> Request {
    Request::post(&format!("/api/{}/{path}", engine.name()), body)
}

fn send(gateway: &Gateway, engine: Engine, request: &Request) -> Answer {
    Client::new(engine.address(gateway)).send(request)
}

fn refresh(gateway: &Gateway, engine: Engine, token: &str) -> Answer {
    send(gateway, engine, &post(engine, "auth/token/refresh/", &json!({ "refresh": token })))
}

fn login(gateway: &Gateway, engine: Engine, email: &str, password: &str) -> Answer {
    send(gateway, engine, &post(engine, "auth/login/", &json!({"email_or_phone": email, "password": password})))
}

fn account(gateway: &Gateway, engine: Engine) -> Account {
    Side::new(gateway, engine).account("someone")
}

/// A 503 as the contract has it: the envelope, the code, and when to come back.
#[track_caller]
fn assert_unavailable(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", answer.shown());
    assert!(["service_unavailable", "overloaded"].contains(&answer.code().as_str()), "{}", answer.shown());
    assert_eq!(answer.at("success"), json!(false), "{}", answer.shown());
    assert!(!answer.text("meta.request_id").is_empty() && !answer.text("message").is_empty(), "{}", answer.shown());
    let seconds: u64 = answer.header("retry-after").and_then(|it| it.parse().ok()).expect("whole seconds");
    assert!(seconds > 0);
    assert_eq!(answer.at("data.retry_after"), json!(seconds), "{}", answer.shown());
    let shown = answer.shown().to_lowercase();
    for word in ["postgres", "sqlite", "redis", "connection", "127.0.0.1"] {
        assert!(!shown.contains(word), "it shows {word}: {shown}");
    }
}

/// From now on nothing that writes a session can be committed.
fn refuse_commits(gateway: &Gateway) {
    let statements: &[&str] = match gateway.backend {
        Backend::PostgresRedis => &[
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'this commit is refused'; END $$",
            "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON sessions
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
        ],
        Backend::Embedded => &[
            "CREATE TABLE nowhere (id INTEGER PRIMARY KEY)",
            "CREATE TABLE refused (id INTEGER REFERENCES nowhere (id) DEFERRABLE INITIALLY DEFERRED)",
            "CREATE TRIGGER refuse_insert AFTER INSERT ON sessions BEGIN INSERT INTO refused VALUES (1); END",
            "CREATE TRIGGER refuse_update AFTER UPDATE ON sessions BEGIN INSERT INTO refused VALUES (1); END",
        ],
    };
    for statement in statements {
        gateway.query(statement);
    }
}

fn allow_commits(gateway: &Gateway) {
    let statements: &[&str] = match gateway.backend {
        Backend::PostgresRedis => &["DROP TRIGGER refuse ON sessions"],
        Backend::Embedded => &["DROP TRIGGER refuse_insert", "DROP TRIGGER refuse_update"],
    };
    for statement in statements {
        gateway.query(statement);
    }
}

#[test]
fn a_commit_that_fails_spends_no_token_no_code_and_signs_nobody_in() {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        let gateway = Gateway::start(Options::new(backend));
        let accounts = Engine::BOTH.map(|engine| (engine, account(&gateway, engine)));
        let waiting = Engine::BOTH.map(|engine| {
            let mut side = Side::new(&gateway, engine);
            let email = side.email("waiting");
            let (code, challenge) = side.register(&email, PASSWORD);
            (engine, json!({ "challenge": challenge, "otp": code }))
        });
        let sessions = gateway.query("select count(*) from sessions");
        let signed_in = "select count(*) from audit_events where action = 'login' and outcome = 'success'";
        let audited = gateway.query(signed_in);

        refuse_commits(&gateway);
        for (engine, account) in &accounts {
            // More often than the pool has connections.
            for _ in 0..12 {
                assert_unavailable(&refresh(&gateway, *engine, &account.refresh));
            }
            assert_unavailable(&login(&gateway, *engine, &account.email, PASSWORD));
        }
        for (engine, body) in &waiting {
            assert_unavailable(&send(&gateway, *engine, &post(*engine, "auth/verify-otp/", body)));
        }
        assert_eq!(gateway.query("select count(*) from sessions"), sessions);
        assert_eq!(gateway.query(signed_in), audited, "a sign-in that was not committed is audited as one");
        allow_commits(&gateway);

        for (engine, account) in &accounts {
            let child = refresh(&gateway, *engine, &account.refresh);
            assert_eq!(child.status, 200, "{backend:?}: {}", child.shown());
            let next = refresh(&gateway, engine.other(), &child.text("data.refresh"));
            assert_eq!(next.status, 200, "{backend:?}: {}", next.shown());
            let again = login(&gateway, *engine, &account.email, PASSWORD);
            assert_eq!(again.status, 200, "{backend:?}: {}", again.shown());
        }
        for (engine, body) in &waiting {
            let verified = send(&gateway, *engine, &post(*engine, "auth/verify-otp/", body));
            assert_eq!(verified.status, 200, "{backend:?}: the code was spent on nothing: {}", verified.shown());
        }
    }
}

/// A gateway on servers that belong to one test, so that it may stop them.
struct Servers {
    postgres: Postgres,
    redis: Redis,
    database: String,
    gateway: Gateway,
}

impl Servers {
    fn start(env: &[(&str, &str)]) -> Self {
        let (postgres, redis) = (Postgres::start(), Redis::start());
        let database = postgres.create_database();
        let store = redis.create_database();
        let secret = data_encoding::BASE64URL_NOPAD.encode(&random_bytes::<32>());
        let mut all = vec![
            ("BIFRONS_DATABASE__URL", database.as_str()),
            ("BIFRONS_STORE__URL", store.as_str()),
            ("BIFRONS_SECRETS__MASTER", secret.as_str()),
            ("BIFRONS_DATABASE__TIMEOUT", "1s"),
            ("BIFRONS_STORE__TIMEOUT", "500ms"),
        ];
        let migrated = run_alone(&all, &["migrate"], "");
        assert!(migrated.status.success(), "{}", migrated.errors);
        all.extend(env);
        // To the harness it is embedded: it need not make a database.
        let options =
            all.iter().fold(Options::new(Backend::Embedded), |options, (key, value)| options.with(key, value));
        let gateway = Gateway::start(options);
        Self { postgres, redis, database, gateway }
    }
}

/// One client that refreshes over and over, and one that registers.
#[derive(Default)]
struct Seen {
    /// Every token that was given, the first one from the sign-in.
    chain: Vec<String>,
    /// Addresses and challenges of answered registrations.
    registered: Vec<(String, String)>,
    /// How often it was told to come back.
    refusals: usize,
    finished: bool,
}

/// Refreshes and registers until it is told to stop; a refusal is tried again, a lost connection ends it.
fn load(
    gateway: &Gateway,
    engine: Engine,
    first: String,
    (stop, served): (&AtomicBool, &AtomicUsize),
    may_break: bool,
) -> Seen {
    let mut client = Client::new(engine.address(gateway));
    let mut seen = Seen { chain: vec![first], ..Seen::default() };
    let mut turn = 0u32;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let token = seen.chain.last().expect("a token");
        let (email, request) = if turn.is_multiple_of(3) {
            let email = format!("new{}@example.com", unique());
            let body = json!({ "email": email, "password": PASSWORD });
            (Some(email), post(engine, "auth/register/", &body))
        } else {
            (None, post(engine, "auth/token/refresh/", &json!({ "refresh": token })))
        };
        let answer = match client.try_send(&request) {
            Ok(answer) => answer,
            Err(_) if may_break => return seen,
            Err(error) => panic!("{} answers nothing: {error}", engine.name()),
        };
        match (answer.status, email) {
            (200, None) => {
                seen.chain.push(answer.text("data.refresh"));
                served.fetch_add(1, Ordering::Relaxed);
            }
            (201, Some(email)) => seen.registered.push((email, answer.text("data.challenge"))),
            (503, _) => {
                assert_unavailable(&answer);
                seen.refusals += 1;
                pause(Duration::from_millis(20));
            }
            _ => panic!("{}: {} to {}", engine.name(), answer.shown(), request.path),
        }
    }
    seen.finished = true;
    seen
}

/// Puts a load on both engines, does something meanwhile, and gives what the clients saw; it is told how
/// often the client that was served least got a new token.
fn under_load<T>(
    gateway: &Gateway,
    may_break: bool,
    meanwhile: impl FnOnce(&dyn Fn() -> usize) -> T,
) -> (T, Vec<(Engine, Seen)>) {
    let starts: Vec<(Engine, String)> = [Engine::V1, Engine::V2, Engine::V1, Engine::V2]
        .map(|engine| (engine, account(gateway, engine).refresh))
        .into();
    let stop = AtomicBool::new(false);
    let served: [AtomicUsize; 4] = Default::default();
    thread::scope(|scope| {
        let clients: Vec<_> = starts
            .into_iter()
            .zip(&served)
            .map(|((engine, first), served)| {
                let watch = (&stop, served);
                (engine, scope.spawn(move || load(gateway, engine, first, watch, may_break)))
            })
            .collect();
        let done = meanwhile(&|| served.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or_default());
        stop.store(true, Ordering::Relaxed);
        let seen = clients.into_iter().map(|(engine, client)| (engine, client.join().expect("no panic"))).collect();
        (done, seen)
    })
}

/// The last token that a client was given is good, on either engine, and one spent long before ends the session.
fn assert_remembered(gateway: &Gateway, engine: Engine, seen: &Seen) {
    let last = seen.chain.last().expect("a token");
    let next = refresh(gateway, engine.other(), last);
    assert_eq!(next.status, 200, "{}: the last token given is refused: {}", engine.name(), next.shown());
    let after = refresh(gateway, engine, &next.text("data.refresh"));
    assert_eq!(after.status, 200, "{}", after.shown());
    let spent = seen.chain.get(seen.chain.len() / 2).expect("a token");
    let reused = refresh(gateway, engine, spent);
    assert_eq!((reused.status, reused.code().as_str()), (401, "token_reused"), "{}", reused.shown());
    let dead = refresh(gateway, engine, &after.text("data.refresh"));
    assert_eq!((dead.status, dead.code().as_str()), (401, "token_not_valid"), "{}", dead.shown());
}

/// Descriptors, and resident memory in KiB.
fn held(gateway: &Gateway) -> (usize, u64) {
    let pid = gateway.pid();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    (descriptors, line.trim().trim_end_matches("kB").trim().parse().expect("a number"))
}

fn assert_comes_back(gateway: &Gateway, (descriptors, memory): (usize, u64)) {
    eventually("descriptors come back", Duration::from_secs(5), || (held(gateway).0 <= descriptors + 6).then_some(()));
    let now = held(gateway).1;
    assert!(now <= memory + 24 * 1024, "{memory} KiB before, {now} KiB after");
}

fn is_ready(gateway: &Gateway, engine: Engine) -> bool {
    send(gateway, engine, &Request::get("/health/ready")).status == 200
}

fn wait_until_ready(gateway: &Gateway) {
    for engine in Engine::BOTH {
        eventually(&format!("{} is ready again", engine.name()), Duration::from_secs(8), || {
            is_ready(gateway, engine).then_some(())
        });
    }
}

/// The readiness names what is away, and the process is alive all the same.
fn assert_not_ready(gateway: &Gateway, away: &str, works: &str) {
    for engine in Engine::BOTH {
        let ready = send(gateway, engine, &Request::get("/health/ready"));
        assert_eq!(ready.status, 503, "{}", ready.shown());
        assert_eq!(ready.at(&format!("data.{away}")), json!("unavailable"), "{}", ready.shown());
        assert_eq!(ready.at(&format!("data.{works}")), json!("ok"), "{}", ready.shown());
        assert!(ready.header("retry-after").is_some(), "{:?}", ready.headers);
        let live = send(gateway, engine, &Request::get("/health/live"));
        assert_eq!(live.status, 200, "{}", live.shown());
    }
}

#[test]
fn postgres_may_stop_and_come_back_under_load() {
    let servers = Servers::start(&[]);
    let Servers { postgres, gateway, .. } = &servers;
    let victim = account(gateway, Engine::V1);
    let (before, seen) = under_load(gateway, false, |_| {
        pause(Duration::from_millis(800));
        let before = held(gateway);
        for _ in 0..2 {
            postgres.stop();
            assert_not_ready(gateway, "database", "store");
            for engine in Engine::BOTH {
                let began = Instant::now();
                assert_unavailable(&login(gateway, engine, &victim.email, PASSWORD));
                assert_unavailable(&login(gateway, engine, &victim.email, "a wrong password"));
                assert_unavailable(&refresh(gateway, engine, &victim.refresh));
                let me = format!("/api/{}/auth/me/", engine.name());
                assert_unavailable(&send(gateway, engine, &Request::get(&me).bearer(&victim.access)));
                assert!(began.elapsed() < Duration::from_secs(8), "a refusal takes {:?}", began.elapsed() / 4);
            }
            postgres.start_again();
            wait_until_ready(gateway);
            pause(Duration::from_millis(500));
        }
        before
    });
    for (engine, seen) in &seen {
        assert!(seen.finished && seen.refusals > 0, "{}: nothing was refused", engine.name());
        assert!(seen.chain.len() > 1, "{}: nothing was refreshed", engine.name());
        assert_remembered(gateway, *engine, seen);
    }
    let registered: usize = seen.iter().map(|(_, seen)| seen.registered.len()).sum();
    let query = |statement: &str| -> usize { postgres.query(&servers.database, statement).parse().expect("a number") };
    // Those whose answer was lost may be there as well.
    let users = query("select count(*) from users");
    assert!(users >= registered + 5, "{registered} were registered, {users} are there");
    assert_eq!(query("select count(*) from outbox where kind = 'UserRegistered'"), users, "some are half registered");
    let idle = "select count(*) from pg_stat_activity where state like 'idle in transaction%'";
    eventually("no unit of work is left open", Duration::from_secs(3), || (query(idle) == 0).then_some(()));
    let child = refresh(gateway, Engine::V2, &victim.refresh);
    assert_eq!(child.status, 200, "{}", child.shown());
    assert_comes_back(gateway, before);
}

#[test]
fn redis_may_stop_and_come_back() {
    let servers = Servers::start(&[("BIFRONS_LIMITS__BURST", "12/min"), ("BIFRONS_OTP__RESEND_INTERVAL", "0s")]);
    let Servers { redis, gateway, .. } = &servers;
    let victim = account(gateway, Engine::V1);
    redis.stop();
    assert_not_ready(gateway, "store", "database");
    // Without its store the gateway cannot tell whether somebody is locked out, so nobody is let in; the limit holds
    // with counters of the process, which both engines share.
    let mut refusals = [0, 0];
    for turn in 0..20 {
        for engine in Engine::BOTH {
            let password = if turn % 2 == 0 { PASSWORD } else { "a wrong password" };
            let answer = login(gateway, engine, &victim.email, password);
            match (answer.status, &mut refusals) {
                (503, [unavailable, _]) => {
                    assert_unavailable(&answer);
                    *unavailable += 1;
                }
                (429, [_, throttled]) => {
                    assert_eq!(answer.code(), "throttled", "{}", answer.shown());
                    assert!(answer.header("retry-after").is_some());
                    *throttled += 1;
                }
                _ => panic!("{}: {}", engine.name(), answer.shown()),
            }
        }
    }
    // Two windows of the clock may share the attempts between them.
    let [unavailable, throttled] = refusals;
    assert!((12..=24).contains(&unavailable) && throttled == 40 - unavailable, "{refusals:?}");
    // What needs no store goes on.
    let mut token = victim.refresh.clone();
    for engine in Engine::BOTH {
        let child = refresh(gateway, engine, &token);
        assert_eq!(child.status, 200, "{}", child.shown());
        token = child.text("data.refresh");
        let me = Request::get(&format!("/api/{}/auth/me/", engine.name())).bearer(&child.text("data.access"));
        assert_eq!(send(gateway, engine, &me).status, 200);
    }
    let before = held(gateway);
    redis.start_again();
    wait_until_ready(gateway);
    for engine in Engine::BOTH {
        // Each worker asks the store again in its own time, and counts by itself until then.
        eventually(&format!("{} lets in again", engine.name()), Duration::from_secs(4), || {
            (login(gateway, engine, &victim.email, PASSWORD).status == 200).then_some(())
        });
    }
    account(gateway, Engine::V2);
    assert_comes_back(gateway, before);
}

#[test]
fn a_kill_under_load_forgets_nothing_that_was_confirmed() {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        // Letters that were claimed when it was killed are due again when their lease ends.
        let options = Options::new(backend)
            .with("BIFRONS_MAIL__TIMEOUT", "900ms")
            .with("BIFRONS_SMS__TIMEOUT", "900ms")
            .with("BIFRONS_OUTBOX__LEASE", "2s");
        let mut gateway = Gateway::start(options);
        let ((), seen) = under_load(&gateway, true, |least| {
            pause(Duration::from_millis(1500));
            eventually("every client is served", Duration::from_secs(15), || (least() > 4).then_some(()));
            gateway.signal("KILL");
            pause(Duration::from_millis(100));
        });
        gateway.kill();
        gateway.restart();
        for (engine, seen) in &seen {
            assert!(seen.chain.len() > 1, "{}: nothing was refreshed", engine.name());
            assert_remembered(&gateway, *engine, seen);
        }
        let number = |statement: &str| -> usize { gateway.query(statement).parse().expect("a number") };
        let users = number("select count(*) from users");
        let registered: Vec<_> = seen.iter().flat_map(|(_, seen)| &seen.registered).collect();
        assert!(users >= registered.len() + 4, "{} were registered, {users} are there", registered.len());
        assert_eq!(number("select count(*) from outbox where kind = 'UserRegistered'"), users, "half registered");
        let audited = number("select count(distinct user_id) from audit_events where action = 'register'");
        assert_eq!(audited, users, "half registered");
        // Everybody who was told to look for a code gets it, and it works.
        assert!(!registered.is_empty(), "nobody was registered");
        for (email, challenge) in registered.iter().rev().take(12) {
            let code = gateway.wait_for_mail(email, 1).code().expect("a code");
            let body = json!({ "challenge": challenge, "otp": code });
            let answer = send(&gateway, Engine::V2, &post(Engine::V2, "auth/verify-otp/", &body));
            assert_eq!(answer.status, 200, "{backend:?}: {email}: {}", answer.shown());
        }
    }
}

#[test]
fn a_letter_that_was_being_sent_when_the_process_was_killed_arrives() {
    for engine in Engine::BOTH {
        // A mail server that takes the call and then says nothing.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let silent = format!("smtp://{}", listener.local_addr().expect("its address"));
        let mut options = Options::new(Backend::Embedded)
            .with("BIFRONS_MAIL__URL", &silent)
            .with("BIFRONS_MAIL__TIMEOUT", "900ms")
            .with("BIFRONS_SMS__TIMEOUT", "900ms")
            .with("BIFRONS_OUTBOX__LEASE", "2s");
        options
            .env
            .push((format!("BIFRONS_ENGINES__{}__ENABLED", engine.other().name().to_uppercase()), "false".into()));
        let mut gateway = Gateway::start(options);
        let (called, calls) = mpsc::channel();
        thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok((connection, _)) = listener.accept() {
                held.push(connection);
                if called.send(()).is_err() {
                    return;
                }
            }
        });
        let email = format!("caught{}@example.com", unique());
        let body = json!({ "email": email, "password": PASSWORD });
        let answer = send(&gateway, engine, &post(engine, "auth/register/", &body));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        calls.recv_timeout(Duration::from_secs(5)).expect("the letter is being sent");
        gateway.kill();
        assert_eq!(gateway.query("select state || attempts from outbox where channel = 'mail'"), "pending1");
        gateway.set("BIFRONS_MAIL__URL", &format!("file://{}", gateway.data_directory().join("mail").display()));
        gateway.restart();
        let code = gateway.wait_for_mail(&email, 1).code().expect("a code");
        let body = json!({ "challenge": answer.text("data.challenge"), "otp": code });
        let verified = send(&gateway, engine, &post(engine, "auth/verify-otp/", &body));
        assert_eq!(verified.status, 200, "{}", verified.shown());
        pause(Duration::from_millis(300));
        assert_eq!(gateway.mails_to(&email).len(), 1, "one letter is sent once");
    }
}

#[test]
fn a_mail_server_that_is_silent_holds_up_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("smtp://{}", listener.local_addr().expect("its address"));
    let gateway = Gateway::start(Options::new(Backend::Embedded).with("BIFRONS_MAIL__URL", &silent));
    for engine in Engine::BOTH {
        for _ in 0..5 {
            let began = Instant::now();
            let email = format!("held{}@example.com", unique());
            let body = json!({ "email": email, "password": PASSWORD });
            let answer = send(&gateway, engine, &post(engine, "auth/register/", &body));
            assert_eq!(answer.status, 201, "{}", answer.shown());
            assert!(began.elapsed() < Duration::from_secs(3), "it waited {:?}", began.elapsed());
        }
    }
}
