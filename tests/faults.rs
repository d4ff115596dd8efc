//! Faults of everything the gateway stands on: a database that refuses to commit, servers that stop and come back, a
//! process that is killed. Nothing that was confirmed is lost, nothing is let through, and it recovers by itself.

mod support;

use serde_json::json;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use support::{
    Account, Answer, Backend, Client, Engine, Gateway, Options, PASSWORD, Postgres, Process, Program, Redis, Request,
    Side, eventually, fresh_directory, guard, pause, random_bytes, run_alone, unique,
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
        let guarded = Engine::BOTH.map(|engine| {
            let mut side = Side::new(&gateway, engine);
            let account = side.account("guarded");
            let mut ada = guard(&mut side, account);
            // An authenticator's code on the one engine, a recovery code on the other.
            let (method, code) = match engine {
                Engine::V1 => ("totp", ada.authenticator.code()),
                Engine::V2 => ("recovery_code", ada.recovery_codes.pop().expect("a code")),
            };
            (engine, json!({ "mfa_token": ada.begin(&mut side), "method": method, "code": code }))
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
        for (engine, body) in &guarded {
            // More often than wrong codes would lock.
            for _ in 0..6 {
                assert_unavailable(&send(&gateway, *engine, &post(*engine, "auth/mfa/verify/", body)));
            }
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
        for (engine, body) in &guarded {
            let entered = send(&gateway, *engine, &post(*engine, "auth/mfa/verify/", body));
            assert_eq!(entered.status, 200, "{backend:?}: the second factor was spent on nothing: {}", entered.shown());
            let again = send(&gateway, engine.other(), &post(engine.other(), "auth/mfa/verify/", body));
            assert_eq!((again.status, again.code().as_str()), (401, "token_not_valid"), "{}", again.shown());
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

/// Tells the clients to stop.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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
        // A test that fails meanwhile must not leave its clients at work.
        let stopping = Stopping(&stop);
        let done = meanwhile(&|| served.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or_default());
        drop(stopping);
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
    assert_eq!(query(HALF_REGISTERED), 0, "some are half registered");
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

/// A small disk that a test may fill: a file system in memory, or where this process may not mount one,
/// a directory in which the C library refuses to write while a mark stands beside it. Either refuses with ENOSPC.
struct SmallDisk {
    directory: PathBuf,
    /// Unmounts it in the end.
    mounted: Option<Process>,
    /// A library to load before the gateway's own, and the mark.
    refusal: Option<(PathBuf, PathBuf)>,
}

/// Mounts, says so, and unmounts when it is told to end.
const MOUNT: &str = r#"
trap 'umount -l "$0"; exit 0' TERM
mount -t tmpfs -o size=64m,mode=0755 bifrons-test "$0" || exit 1
touch "$0/mounted"
while :; do sleep 1 & wait $!; done
"#;

/// Stands in for the calls that take space, and refuses them below `SMALL_DISK` while `SMALL_DISK_FULL` exists.
const REFUSAL: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
static int is_full(int fd) {
  const char *disk = getenv("SMALL_DISK"), *mark = getenv("SMALL_DISK_FULL");
  char link[64], path[4096];
  int saved = errno, full = 0;
  if (disk && mark && access(mark, F_OK) == 0) {
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length > 0) { path[length] = 0; full = strncmp(path, disk, strlen(disk)) == 0; }
  }
  errno = saved;
  return full;
}
#define REFUSE(result, name, parameters, arguments) \
  result name parameters { \
    static result (*next) parameters; \
    if (is_full(fd)) { errno = ENOSPC; return -1; } \
    if (!next) next = (result (*) parameters)dlsym(RTLD_NEXT, #name); \
    return next arguments; \
  }
REFUSE(ssize_t, write, (int fd, const void *from, size_t count), (fd, from, count))
REFUSE(ssize_t, pwrite, (int fd, const void *from, size_t count, off_t at), (fd, from, count, at))
REFUSE(ssize_t, pwrite64, (int fd, const void *from, size_t count, off64_t at), (fd, from, count, at))
REFUSE(ssize_t, writev, (int fd, const struct iovec *from, int count), (fd, from, count))
REFUSE(int, ftruncate, (int fd, off_t length), (fd, length))
REFUSE(int, ftruncate64, (int fd, off64_t length), (fd, length))
"#;

impl SmallDisk {
    fn new(may_mount: bool) -> Self {
        let directory = fresh_directory("small-disk");
        if may_mount && let Some(process) = Self::mount(&directory) {
            return Self { directory, mounted: Some(process), refusal: None };
        }
        let library = fresh_directory("refusal");
        let (source, library, mark) =
            (library.join("refusal.c"), library.join("refusal.so"), library.join("the-disk-is-full"));
        fs::write(&source, REFUSAL).expect("a source file");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output();
        let built = built.unwrap_or_else(|_| panic!("cc is missing: run scripts/bootstrap"));
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Self { directory, mounted: None, refusal: Some((library, mark)) }
    }

    /// `None` when this process may not mount.
    fn mount(directory: &Path) -> Option<Process> {
        let mut process = Program::new("sh", &fresh_directory("mount"), "mount.log")
            .arguments(["-c".as_ref(), MOUNT.as_ref(), directory.as_os_str()])
            .start();
        eventually("the small disk is mounted, or refused", Duration::from_secs(10), || {
            let is_mounted = directory.join("mounted").exists();
            (is_mounted || process.ended().is_some()).then_some(is_mounted)
        })
        .then_some(process)
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn options(&self) -> Options {
        let options = Options::new(Backend::Embedded).with("BIFRONS_DATA_DIR", &self.data().display().to_string());
        match &self.refusal {
            None => options,
            Some((library, mark)) => options
                .with("LD_PRELOAD", &library.display().to_string())
                .with("SMALL_DISK", &self.directory.display().to_string())
                .with("SMALL_DISK_FULL", &mark.display().to_string()),
        }
    }

    /// Takes every byte that is left.
    fn fill(&self) {
        if let Some((_, mark)) = &self.refusal {
            fs::write(mark, "").expect("the mark");
            return;
        }
        let mut file = File::create(self.directory.join("filler")).expect("a file");
        for size in [1 << 16, 1 << 12, 1] {
            let block = vec![b'x'; size];
            let error = loop {
                if let Err(error) = file.write_all(&block) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        }
    }

    fn free(&self) {
        let taken = self.refusal.as_ref().map_or(self.directory.join("filler"), |(_, mark)| mark.clone());
        fs::remove_file(taken).expect("the disk was full");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Some(process) = &mut self.mounted {
            process.signal("TERM");
            process.wait(Duration::from_secs(10));
        }
    }
}

/// The options of a gateway that delivers again soon what it could not deliver.
fn insistent(options: Options) -> Options {
    options
        .with("BIFRONS_MAIL__TIMEOUT", "900ms")
        .with("BIFRONS_SMS__TIMEOUT", "900ms")
        .with("BIFRONS_OUTBOX__LEASE", "2s")
        .with("BIFRONS_OUTBOX__BACKOFF", "200ms")
        .with("BIFRONS_OUTBOX__BACKOFF_MAX", "400ms")
        .with("BIFRONS_OUTBOX__ATTEMPTS", "100")
}

/// Registers somebody and gives what proves the address.
fn waiting(gateway: &Gateway, engine: Engine) -> serde_json::Value {
    let mut side = Side::new(gateway, engine);
    let email = side.email("waiting");
    let (code, challenge) = side.register(&email, PASSWORD);
    json!({ "challenge": challenge, "otp": code })
}

/// What needs the disk is refused, at once; what only reads goes on; the readiness says so.
fn assert_nothing_is_written(gateway: &Gateway, engine: Engine, victim: &Account, code: &serde_json::Value) {
    let email = format!("late{}@example.com", unique());
    let requests = [
        post(engine, "auth/token/refresh/", &json!({ "refresh": victim.refresh })),
        post(engine, "auth/login/", &json!({ "email_or_phone": victim.email, "password": PASSWORD })),
        post(engine, "auth/login/", &json!({ "email_or_phone": victim.email, "password": "a wrong password" })),
        post(engine, "auth/register/", &json!({ "email": email, "password": PASSWORD })),
        post(engine, "auth/verify-otp/", code),
    ];
    for request in &requests {
        let began = Instant::now();
        let answer = send(gateway, engine, request);
        assert_unavailable(&answer);
        assert_eq!(answer.code(), "service_unavailable", "{}", answer.shown());
        assert!(!answer.shown().contains("\"eyJ") && answer.header("set-cookie").is_none(), "{}", answer.shown());
        assert!(began.elapsed() < Duration::from_secs(3), "a refusal takes {:?}", began.elapsed());
    }
    let me = Request::get(&format!("/api/{}/auth/me/", engine.name())).bearer(&victim.access);
    let me = send(gateway, engine, &me);
    assert_eq!(me.status, 200, "{}: what is there can be read: {}", engine.name(), me.shown());
    let verify = post(engine, "auth/token/verify/", &json!({ "token": victim.access }));
    assert_eq!(send(gateway, engine, &verify).status, 200);
    // What was written a second ago is believed for a second.
    eventually(&format!("{} says that it is not ready", engine.name()), Duration::from_secs(4), || {
        let ready = send(gateway, engine, &Request::get("/health/ready"));
        (ready.status == 503 && ready.at("data.store") == json!("unavailable")).then_some(())
    });
    assert_eq!(send(gateway, engine, &Request::get("/health/live")).status, 200);
}

/// Fills the disk and waits until the journal has no room left that it had taken before.
fn fill_up(disk: &SmallDisk, gateway: &Gateway, victims: &[(Engine, Account, serde_json::Value)]) {
    disk.fill();
    let mut refused = 0;
    eventually("the journal is full as well", Duration::from_secs(15), || {
        for (engine, ..) in victims {
            let email = format!("filler{}@example.com", unique());
            let body = json!({ "email": email, "password": PASSWORD });
            let answer = send(gateway, *engine, &post(*engine, "auth/register/", &body));
            assert!([201, 503].contains(&answer.status), "{}", answer.shown());
            refused = if answer.status == 503 { refused + 1 } else { 0 };
        }
        (refused >= 8).then_some(())
    });
}

#[test]
fn a_full_disk_refuses_what_it_cannot_keep_and_loses_nothing() {
    full_disk(&SmallDisk::new(true));
}

#[test]
fn a_disk_that_fills_up_where_none_can_be_mounted_is_tested_as_well() {
    full_disk(&SmallDisk::new(false));
}

fn full_disk(disk: &SmallDisk) {
    let mut gateway = Gateway::start(insistent(disk.options()));
    let victims = Engine::BOTH.map(|engine| (engine, account(&gateway, engine), waiting(&gateway, engine)));
    let (before, seen) = under_load(&gateway, false, |least| {
        eventually("every client is served", Duration::from_secs(15), || (least() > 10).then_some(()));
        let before = held(&gateway);
        for _ in 0..2 {
            fill_up(disk, &gateway, &victims);
            let sessions = gateway.query("select count(*) from sessions");
            for (engine, victim, code) in &victims {
                assert_nothing_is_written(&gateway, *engine, victim, code);
            }
            pause(Duration::from_millis(700));
            assert_eq!(gateway.query("select count(*) from sessions"), sessions, "half signed in");
            disk.free();
            wait_until_ready(&gateway);
            let served = least();
            eventually("every client is served again", Duration::from_secs(15), || {
                (least() > served + 3).then_some(())
            });
        }
        before
    });
    assert_comes_back(&gateway, before);
    let number = |statement: &str| -> usize { gateway.query(statement).parse().expect("a number") };
    // Each rotation that was kept was told to its client, and the other way round.
    let told: usize = seen.iter().map(|(_, seen)| seen.chain.len() - 1).sum();
    assert_eq!(number("select sum(generation) from sessions"), told, "a refusal was kept, or a rotation was lost");
    for (engine, seen) in &seen {
        assert!(seen.finished && seen.refusals > 5, "{}: {} refusals", engine.name(), seen.refusals);
    }
    // Everybody was signed in once: the clients of the load, and the victims.
    assert_eq!(number("select count(*) from sessions"), seen.len() + victims.len());
    assert_whole(&gateway);

    // It is killed while the disk is full, with clients at work.
    let ((), at_the_end) = under_load(&gateway, true, |least| {
        eventually("every client is served", Duration::from_secs(15), || (least() > 3).then_some(()));
        fill_up(disk, &gateway, &victims);
        gateway.signal("KILL");
        pause(Duration::from_millis(100));
    });
    gateway.kill();
    disk.free();
    gateway.restart();
    assert_eq!(gateway.query("pragma integrity_check"), "ok");
    assert_eq!(gateway.query("pragma foreign_key_check"), "");
    for (engine, victim, code) in &victims {
        let verified = send(&gateway, *engine, &post(*engine, "auth/verify-otp/", code));
        assert_eq!(verified.status, 200, "the code was spent on nothing: {}", verified.shown());
        let child = refresh(&gateway, *engine, &victim.refresh);
        assert_eq!(child.status, 200, "the token was spent on nothing: {}", child.shown());
        let again = login(&gateway, engine.other(), &victim.email, PASSWORD);
        assert_eq!(again.status, 200, "{}", again.shown());
    }
    for (engine, seen) in seen.iter().chain(&at_the_end) {
        assert_remembered(&gateway, *engine, seen);
    }
    assert_whole(&gateway);
    // Letters that could not be written are written now.
    let registered = seen.iter().chain(&at_the_end).flat_map(|(_, seen)| seen.registered.iter().rev().take(3));
    let waits = "select count(*) from outbox where channel = 'mail' and state = 'pending'";
    eventually("every letter is sent or dead", Duration::from_secs(20), || (gateway.query(waits) == "0").then_some(()));
    assert_eq!(gateway.query("select count(*) from outbox where channel = 'mail' and state <> 'sent'"), "0");
    for (email, challenge) in registered {
        let code = gateway.wait_for_mail(email, 1).code().expect("a code");
        let body = json!({ "challenge": challenge, "otp": code });
        let answer = send(&gateway, Engine::V2, &post(Engine::V2, "auth/verify-otp/", &body));
        assert_eq!(answer.status, 200, "{email}: {}", answer.shown());
    }
}

/// How many are in one table only. One statement sees one state: clients who left may still be being served.
const HALF_REGISTERED: &str =
    "select abs((select count(*) from users) - (select count(*) from outbox where kind = 'UserRegistered'))";

/// Nobody is half registered or half signed in.
///
/// All is counted in one statement, which sees one state of the database: those who have left may still be being signed
/// in meanwhile.
fn assert_whole(gateway: &Gateway) {
    let counted = gateway.query(
        "select (select count(*) from users)
             || ' ' || (select count(*) from outbox where kind = 'UserRegistered')
             || ' ' || (select count(distinct user_id) from audit_events where action = 'register')
             || ' ' || (select count(*) from sessions)
             || ' ' || (select count(*) from outbox where kind = 'SessionStarted')
             || ' ' || (select count(distinct session_id) from audit_events where action in ('login', 'verify_otp'))",
    );
    let numbers: Vec<usize> = counted.split(' ').map(|number| number.parse().expect("a number")).collect();
    let [users, registered, audited, sessions, started, audited_sessions] = *numbers else {
        panic!("six numbers: {counted}");
    };
    assert!(users > 0 && sessions > 0, "nobody is there: {counted}");
    assert_eq!((registered, audited), (users, users), "some are half registered");
    assert_eq!((started, audited_sessions), (sessions, sessions), "half signed in");
}

#[test]
fn a_database_that_may_only_be_read_is_not_ready() {
    let gateway = Gateway::start(Options::new(Backend::PostgresRedis));
    let name = gateway.query("select current_database()");
    let set_read_only = |word: &str| {
        // One message is one transaction, which may write even when others may not.
        let default = format!("alter database \"{name}\" set default_transaction_read_only = {word}");
        gateway.query(&format!("set transaction read write; {default}"));
        gateway.query(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'bifrons'",
        );
    };
    let victims = Engine::BOTH.map(|engine| account(&gateway, engine));
    set_read_only("on");
    assert_not_ready(&gateway, "database", "store");
    for (engine, victim) in Engine::BOTH.iter().zip(&victims) {
        assert_unavailable(&refresh(&gateway, *engine, &victim.refresh));
    }
    set_read_only("off");
    wait_until_ready(&gateway);
    for (engine, victim) in Engine::BOTH.iter().zip(&victims) {
        assert_eq!(refresh(&gateway, *engine, &victim.refresh).status, 200);
    }
}

#[test]
fn redis_may_stop_and_come_back_under_load() {
    let servers = Servers::start(&[("BIFRONS_OTP__RESEND_INTERVAL", "0s")]);
    let Servers { redis, gateway, .. } = &servers;
    let victim = account(gateway, Engine::V2);
    let (before, seen) = under_load(gateway, false, |least| {
        eventually("every client is served", Duration::from_secs(15), || (least() > 4).then_some(()));
        let before = held(gateway);
        for _ in 0..2 {
            redis.stop();
            assert_not_ready(gateway, "store", "database");
            let served = least();
            pause(Duration::from_millis(800));
            for engine in Engine::BOTH {
                assert_unavailable(&login(gateway, engine, &victim.email, PASSWORD));
            }
            assert!(least() > served, "what needs no store goes on");
            redis.start_again();
            wait_until_ready(gateway);
            pause(Duration::from_millis(500));
        }
        before
    });
    for (engine, seen) in &seen {
        assert!(seen.finished && seen.refusals > 0, "{}: nothing was refused", engine.name());
        assert_remembered(gateway, *engine, seen);
    }
    let query =
        |statement: &str| -> usize { servers.postgres.query(&servers.database, statement).parse().expect("a number") };
    let users = query("select count(*) from users");
    let registered: usize = seen.iter().map(|(_, seen)| seen.registered.len()).sum();
    assert!(users >= registered + 5, "{registered} were registered, {users} are there");
    assert_eq!(query(HALF_REGISTERED), 0, "some are half registered");
    // The codes went with the store; whoever asks for another one is let in.
    for engine in Engine::BOTH {
        let of_engine = seen.iter().filter(|(other, _)| *other == engine);
        let (email, _) = of_engine.flat_map(|(_, seen)| &seen.registered).next().expect("a registration");
        gateway.wait_for_mail(email, 1);
        let resend = post(engine, "auth/resend-otp/", &json!({ "email_or_phone": email }));
        eventually("another code is sent", Duration::from_secs(5), || {
            (send(gateway, engine, &resend).status == 200).then_some(())
        });
        let code = gateway.wait_for_mail(email, 2).code().expect("a code");
        let answer = send(gateway, engine, &post(engine, "auth/verify-otp/", &json!({ "email": email, "otp": code })));
        assert_eq!(answer.status, 200, "{}: {}", engine.name(), answer.shown());
    }
    assert_comes_back(gateway, before);
}

#[test]
fn two_hundred_clients_that_leave_at_once_give_everything_back() {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        // Hardly more threads than clients, so that every one of them has soon taken the memory it ever takes.
        let gateway = Gateway::start(Options::new(backend).with("BIFRONS_ENGINES__V1__THREADS", "208"));
        for engine in Engine::BOTH {
            let victim = account(&gateway, engine);
            let body = json!({ "email_or_phone": victim.email, "password": PASSWORD }).to_string();
            let head = format!(
                "POST /api/{}/auth/login/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n",
                engine.name(),
                body.len()
            );
            // The pools open their connections during the first storms.
            let quiet = held(&gateway).0 + 60;
            let storm = || {
                let mut clients: Vec<TcpStream> =
                    (0..200).filter_map(|_| TcpStream::connect(engine.address(&gateway)).ok()).collect();
                assert_eq!(clients.len(), 200, "{}: it takes no more clients", engine.name());
                for (number, client) in clients.iter_mut().enumerate() {
                    // A part of the head, a part of the body, or everything and away before the answer.
                    let whole = format!("{head}{body}");
                    let most = match number % 4 {
                        0 => head.len() / 2,
                        1 => head.len(),
                        2 => head.len() + body.len() / 2,
                        _ => whole.len(),
                    };
                    client.write_all(whole.as_bytes().get(..most).expect("a part")).expect("it is read");
                }
                // Some are still to be accepted: a test of nobody would prove nothing.
                eventually("most of the clients are there at once", Duration::from_secs(5), || {
                    (held(&gateway).0 > quiet + 50).then_some(())
                });
                drop(clients);
            };
            let settle = || {
                eventually("the descriptors of those who left come back", Duration::from_secs(10), || {
                    (held(&gateway).0 < quiet).then_some(())
                });
            };
            for _ in 0..8 {
                storm();
                settle();
            }
            let before = held(&gateway);
            for _ in 0..8 {
                storm();
                settle();
                let again = login(&gateway, engine, &victim.email, PASSWORD);
                assert_eq!(again.status, 200, "{}: {}", engine.name(), again.shown());
            }
            assert_comes_back(&gateway, before);
            let next = refresh(&gateway, engine, &victim.refresh);
            assert_eq!(next.status, 200, "{}", next.shown());
        }
        assert_whole(&gateway);
    }
}
