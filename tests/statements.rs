//! The table of statements in docs/ARCHITECTURE.md, held against what each operation does: both engines, on SQLite and
//! on PostgreSQL, with Redis beside them. The numbers are read from the page.
//!
//! Database statements are what diesel's instrumentation tells, of whichever driver; `BEGIN` and `COMMIT` are among
//! them, since both drivers send them as statements. Commits are counted on PostgreSQL, by the transaction ids that it
//! gave out: one to each unit of work, or statement by itself, that changed something. Redis round trips are the
//! commands that `MONITOR` shows, but for those that scripts run, which `INFO commandstats` would count as well. Signs
//! of life of connections (`SELECT 1`, `PING`) count nowhere. Everything is done once before it is counted, so that
//! connections are open and scripts loaded.

mod support;

use bifrons::api::call::Parts;
use bifrons::api::{Call, Edge, Handled, Matched, Operation, Reply, Version};
use bifrons::async_engine::{self, AsyncPorts};
use bifrons::hashing::{HashPool, Telling};
use bifrons::parts;
use bifrons::services::create_user::{CreateUser, Credential, create_user};
use bifrons::services::deliver::{Posted, SendError, Sender, deliver_next};
use bifrons::services::keys::Keys;
use bifrons::services::model::{Caller, Role, SessionId};
use bifrons::services::passwords::Password;
use bifrons::services::ports::{Ports, READS_SIDE_BY_SIDE, Sessions as _};
use bifrons::services::run::run;
use bifrons::services::session_cache::MOST_AGE;
use bifrons::settings::{DatabaseUrl, Settings};
use bifrons::store::migrations;
use bifrons::sync_engine::{self, BlockingPorts};
use data_encoding::BASE64URL_NOPAD;
use diesel::connection::{Instrumentation, InstrumentationEvent, set_default_instrumentation};
use diesel::{Connection as _, PgConnection, RunQueryDsl as _};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use support::{Authenticator, PASSWORD, Postgres, Redis, fresh_directory, random_bytes, unique};

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    operation: String,
    /// How many, and how many more for each of something.
    statements: (usize, usize),
    /// How many on SQLite, where they are others.
    on_sqlite: Option<usize>,
    commits: usize,
    round_trips: usize,
}

/// Every row of the table, from the page.
fn rows_of(page: &str) -> Vec<Row> {
    let head = "| operation | database statements | of these, commits | Redis round trips |";
    let (_, after) = page.split_once(head).expect("the table of statements");
    let lines = after.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines.map(|line| row_of(line).unwrap_or_else(|| panic!("no row of the table: {line}"))).collect()
}

fn row_of(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let [operation, statements, commits, round_trips] = cells.try_into().ok()?;
    let (statements, on_sqlite) = match statements.split_once("; SQLite ") {
        None => (statements, None),
        Some((statements, on_sqlite)) => (statements, Some(on_sqlite.parse().ok()?)),
    };
    let statements = match statements.split_once(" + ") {
        None => (statements.parse().ok()?, 0),
        Some((fixed, more)) => (fixed.parse().ok()?, more.split_once(" for each")?.0.parse().ok()?),
    };
    let (commits, round_trips) = (commits.parse().ok()?, round_trips.parse().ok()?);
    Some(Row { operation: operation.to_owned(), statements, on_sqlite, commits, round_trips })
}

/// What an operation did.
struct Found {
    statements: Vec<String>,
    /// Where they can be counted.
    commits: Option<usize>,
    commands: Vec<String>,
}

/// Where it did otherwise than the row says, which is of `each` things.
fn difference(row: &Row, each: usize, found: &Found) -> Option<String> {
    // Commits can be counted on PostgreSQL only.
    let on_sqlite = row.on_sqlite.filter(|_| found.commits.is_none());
    let statements = on_sqlite.unwrap_or(row.statements.0 + row.statements.1 * each);
    let is_so = found.statements.len() == statements
        && found.commits.is_none_or(|commits| commits == row.commits)
        && found.commands.len() == row.round_trips;
    let Found { statements: sent, commits, commands } = found;
    let numbers = format!(
        "statements {statements}, found {}; commits {}, found {commits:?}; Redis {}, found {}",
        sent.len(),
        row.commits,
        row.round_trips,
        commands.len()
    );
    (!is_so).then(|| {
        let lines = sent.iter().chain(commands).fold(String::new(), |mut lines, line| {
            let _ = write!(lines, "\n        {}", line.chars().take(100).collect::<String>());
            lines
        });
        format!("{numbers}{lines}")
    })
}

static STATEMENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
// Those that a connection keeps prepared.
static KEPT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn recorder() -> Option<Box<dyn Instrumentation>> {
    Some(Box::new(|event: InstrumentationEvent<'_>| match event {
        InstrumentationEvent::StartQuery { query, .. } => {
            STATEMENTS.lock().expect("no panic under the lock").push(query.to_string());
        }
        InstrumentationEvent::CacheQuery { sql, .. } => {
            KEPT.lock().expect("no panic under the lock").insert(sql.to_owned());
        }
        _ => (),
    }))
}

/// Those that are prepared anew each time, which is a second round trip to PostgreSQL.
fn not_kept(statements: &[String]) -> Vec<&str> {
    let kept = KEPT.lock().expect("no panic under the lock");
    let texts = statements.iter().map(|shown| shown.split_once(" -- binds").map_or(shown.as_str(), |(text, _)| text));
    let is_prepared = |text: &&str| !text.starts_with("BEGIN") && *text != "COMMIT" && *text != "ROLLBACK";
    texts.filter(is_prepared).filter(|text| !kept.contains(*text)).collect()
}

/// What came in since the last call.
fn statements() -> Vec<String> {
    let mut statements = std::mem::take(&mut *STATEMENTS.lock().expect("no panic under the lock"));
    // By which v1 asks a connection whether it lives.
    statements.retain(|statement| !statement.starts_with("SELECT 1 "));
    statements
}

/// What a Redis server is told, in the order in which it is.
struct Monitor {
    shown: BufReader<TcpStream>,
    control: BufReader<TcpStream>,
}

impl Monitor {
    fn start(port: u16) -> Self {
        let open = || {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
            BufReader::new(stream)
        };
        let mut monitor = Self { shown: open(), control: open() };
        monitor.shown.get_mut().write_all(b"MONITOR\r\n").expect("a command");
        assert_eq!(line(&mut monitor.shown), "+OK");
        monitor
    }

    /// What came in since the last call, but for what scripts did.
    fn commands(&mut self) -> Vec<String> {
        // What was told before this, is shown before it.
        let mark = format!("mark-{}", unique());
        self.control.get_mut().write_all(format!("ECHO {mark}\r\n").as_bytes()).expect("a command");
        let mut commands = Vec::new();
        loop {
            let shown = line(&mut self.shown);
            if shown.contains(&mark) {
                break;
            }
            if !shown.contains(" lua] ") && !shown.ends_with("] \"PING\"") {
                commands.push(shown);
            }
        }
        assert!(line(&mut self.control).starts_with('$'));
        assert_eq!(line(&mut self.control), mark);
        commands
    }
}

fn line(stream: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("a line in time");
    line.trim_end().to_owned()
}

/// The transaction ids of a PostgreSQL server.
struct Transactions(PgConnection);

impl Transactions {
    /// The next one that it gives out. Asking for it takes none.
    fn next(&mut self) -> usize {
        #[derive(diesel::QueryableByName)]
        struct Next {
            #[diesel(sql_type = diesel::sql_types::Text)]
            next: String,
        }
        let ask = diesel::sql_query("SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS next");
        ask.get_result::<Next>(&mut self.0).expect("an answer").next.parse().expect("a number")
    }
}

/// An engine's ports, made as the engine makes them, and its handler.
trait Engine: Ports + Clone {
    const VERSION: Version;

    fn new(settings: &Settings, keys: Arc<Keys>) -> Self;

    fn tell(story: impl AsyncFnOnce());

    async fn handle(&self, edge: &Edge, call: &Call, operation: Operation, parameters: &[String]) -> Handled;
}

fn hash_pool(settings: &Settings) -> HashPool {
    HashPool::start(settings, 1).expect("a thread")
}

impl Engine for BlockingPorts {
    const VERSION: Version = Version::V1;

    fn new(settings: &Settings, keys: Arc<Keys>) -> Self {
        let database = sync_engine::Database::new(settings);
        Self {
            ephemeral: sync_engine::EphemeralStore::new(settings, &database, Arc::default()).expect("a store"),
            sessions: sync_engine::SessionCache::new(Arc::default()),
            reads: sync_engine::Together::new(READS_SIDE_BY_SIDE),
            rotations: sync_engine::Together::new(bifrons::store::rotation::side_by_side(settings)),
            bundles: sync_engine::Together::in_file(settings, &Telling::default()),
            hasher: sync_engine::Hasher::new(parts::hash_params(settings), hash_pool(settings)),
            google: Arc::new(sync_engine::GoogleKeys::of(settings)),
            policy: Arc::new(parts::policy(settings)),
            keys,
            wake: Arc::default(),
            places: None,
            breaches: None,
            database,
        }
    }

    fn tell(story: impl AsyncFnOnce()) {
        run(story());
    }

    async fn handle(&self, edge: &Edge, call: &Call, operation: Operation, parameters: &[String]) -> Handled {
        sync_engine::handle(self, edge, call, operation, parameters)
    }
}

impl Engine for AsyncPorts {
    const VERSION: Version = Version::V2;

    fn new(settings: &Settings, keys: Arc<Keys>) -> Self {
        let database = async_engine::Database::new(settings, settings.database.pool.into()).expect("a pool");
        Self {
            ephemeral: async_engine::EphemeralStore::new(settings, &database, Arc::default(), &Telling::default())
                .expect("a store"),
            sessions: async_engine::SessionCache::new(Arc::default()),
            lookups: async_engine::Together::in_file(settings, &Telling::default()),
            reads: async_engine::Together::new(READS_SIDE_BY_SIDE),
            rotations: async_engine::Together::new(bifrons::store::rotation::side_by_side(settings)),
            bundles: async_engine::Together::in_file(settings, &Telling::default()),
            hasher: async_engine::Hasher::new(parts::hash_params(settings), hash_pool(settings)),
            google: Arc::new(async_engine::GoogleKeys::of(settings).expect("a client")),
            policy: Arc::new(parts::policy(settings)),
            keys,
            wake: Arc::default(),
            places: None,
            breaches: None,
            database,
        }
    }

    fn tell(story: impl AsyncFnOnce()) {
        actix_web::rt::System::new().block_on(story());
    }

    async fn handle(&self, edge: &Edge, call: &Call, operation: Operation, parameters: &[String]) -> Handled {
        async_engine::handle(self, edge, call, operation, parameters).await
    }
}

/// A request that is yet to be made.
#[derive(Clone)]
struct Ask {
    method: &'static str,
    path: String,
    body: Value,
    bearer: Option<String>,
    key: Option<String>,
    peer: IpAddr,
}

impl Ask {
    fn post(path: &str, body: Value) -> Self {
        Self { method: "POST", path: path.to_owned(), body, bearer: None, key: None, peer: stranger() }
    }

    fn get(path: &str, bearer: &str) -> Self {
        Self { method: "GET", body: Value::Null, ..Self::post(path, Value::Null).by(bearer) }
    }

    fn by(self, bearer: &str) -> Self {
        Self { bearer: Some(bearer.to_owned()), ..self }
    }

    fn keyed(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }
}

/// The address of somebody who has not been here before.
fn stranger() -> IpAddr {
    let [.., a, b, c] = unique().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, a, b, c))
}

/// Status and body.
struct Answer(u16, Value);

impl Answer {
    fn text(&self, pointer: &str) -> String {
        let text = self.1.pointer(pointer).and_then(Value::as_str);
        text.unwrap_or_else(|| panic!("no {pointer} in {}", self.1)).to_owned()
    }
}

/// Keeps the letters that it is given.
#[derive(Default)]
struct Postbox(RefCell<Vec<Value>>);

impl Sender for Postbox {
    fn at_once(&self) -> usize {
        1
    }

    async fn send(&self, letters: &[Posted]) -> Vec<Result<(), SendError>> {
        let kept = letters.iter().map(|letter| serde_json::to_value(&letter.message).expect("JSON"));
        self.0.borrow_mut().extend(kept);
        vec![Ok(()); letters.len()]
    }
}

/// One engine on a database and a Redis of its own.
struct World<P> {
    ports: P,
    edge: Edge,
    monitor: RefCell<Monitor>,
    transactions: Option<RefCell<Transactions>>,
    post: Postbox,
    redis: redis::Client,
}

/// Somebody with a password, signed in.
struct Account {
    email: String,
    access: String,
    refresh: String,
}

/// What a case comes to.
struct Step {
    act: Act,
    /// How many of what the row counts for each.
    each: usize,
    /// When something was remembered on which the numbers rest.
    remembered_at: Option<Instant>,
}

enum Act {
    /// This request, with this status.
    Ask(Ask, u16),
    /// A letter is sent.
    Deliver,
}

impl Step {
    fn asks(ask: Ask, status: u16) -> Self {
        Self { act: Act::Ask(ask, status), each: 0, remembered_at: None }
    }

    fn of(self, each: usize) -> Self {
        Self { each, ..self }
    }

    fn remembered_since(self, at: Instant) -> Self {
        Self { remembered_at: Some(at), ..self }
    }
}

fn email(name: &str) -> String {
    format!("{name}{}@example.org", unique())
}

fn credentials(email: &str, password: &str) -> Value {
    json!({ "email_or_phone": email, "password": password })
}

const ANOTHER: &str = "fresh-Sandalwood-63-lagoon";

impl<P: Engine> World<P> {
    fn new(redis: &Redis, database: Option<&str>) -> Self {
        let url = redis.create_database();
        let mut overrides = vec![
            format!("data_dir={}", fresh_directory("statements").join("data").display()),
            format!("secrets.master={}", BASE64URL_NOPAD.encode(&random_bytes::<32>())),
            format!("store.url={url}"),
        ];
        overrides.extend(
            ["allow_weak=true", "memory_kib=1024", "iterations=1"].map(|setting| format!("passwords.{setting}")),
        );
        overrides.extend(database.map(|url| format!("database.url={url}")));
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        let settings = Settings::from_overrides(&overrides).expect("a configuration");
        settings.create_data_dir().expect("a directory");
        let keys = Arc::new(parts::keys(&settings).expect("keys"));
        migrations::migrate(&settings, &mut |_| ()).expect("a schema");
        migrations::prepare(&settings, &keys).expect("a database that is ready");
        let transactions = match settings.database() {
            DatabaseUrl::Sqlite(_) => None,
            DatabaseUrl::Postgres(url) => {
                let conn = PgConnection::establish(url.expose()).expect("a connection");
                Some(RefCell::new(Transactions(conn)))
            }
        };
        Self {
            ports: P::new(&settings, keys),
            edge: Edge::new(&settings),
            monitor: RefCell::new(Monitor::start(redis.port())),
            transactions,
            post: Postbox::default(),
            redis: redis::Client::open(url).expect("a URL"),
        }
    }

    fn name(&self) -> String {
        let database = if self.transactions.is_some() { "PostgreSQL" } else { "SQLite" };
        format!("{} on {database}", P::VERSION.word())
    }

    /// From now on something may be sent again to whom it was sent a moment ago.
    fn a_while_later(&self) {
        let mut conn = self.redis.get_connection().expect("a connection");
        let keys: Vec<String> = redis::cmd("KEYS").arg("sends:*:*").query(&mut conn).expect("keys");
        assert!(!keys.is_empty(), "nothing was sent");
        redis::cmd("DEL").arg(keys).exec(&mut conn).expect("an answer");
    }

    async fn ask(&self, ask: &Ask) -> Answer {
        let bearer = ask.bearer.as_ref().map(|token| format!("Bearer {token}"));
        let mut headers = vec![("content-type", b"application/json".as_slice())];
        headers.extend(bearer.iter().map(|bearer| ("authorization", bearer.as_bytes())));
        headers.extend(ask.key.iter().map(|key| ("x-idempotency-key", key.as_bytes())));
        let target = match ask.path.starts_with('/') {
            true => ask.path.clone(),
            false => format!("/api/{}/{}", P::VERSION.word(), ask.path),
        };
        let body = if ask.body.is_null() { Vec::new() } else { ask.body.to_string().into_bytes() };
        let parts = Parts { method: ask.method, target: &target, headers, peer: ask.peer, body: Ok(body) };
        let call = Call::new(P::VERSION, &self.edge, parts);
        let (is_legacy, handled) = match call.route() {
            Ok(Matched::Operation { operation, is_legacy, parameters }) => {
                (is_legacy, self.ports.handle(&self.edge, &call, operation, &parameters).await)
            }
            _ => panic!("no operation: {target}"),
        };
        let reply = Reply::new(&self.edge, &call, is_legacy, handled);
        Answer(reply.status, serde_json::from_slice(&reply.body).expect("JSON"))
    }

    async fn done(&self, ask: &Ask) -> Answer {
        let answer = self.ask(ask).await;
        assert!(answer.0 < 300, "{}: {}", ask.path, answer.1);
        answer
    }

    /// Sends every letter that waits, and gives those to this address.
    async fn letters(&self, to: &str) -> Vec<Value> {
        while deliver_next(&self.ports, &self.post).await.expect("an answer") > 0 {}
        let letters = self.post.0.borrow();
        let is_to = |letter: &&Value| letter.get("to").is_some_and(|recipient| recipient.to_string().contains(to));
        letters.iter().filter(is_to).cloned().collect()
    }

    /// What the newest letter to this address says under this name.
    async fn told(&self, to: &str, name: &str) -> String {
        let letters = self.letters(to).await;
        let said = format!("/letter/{name}");
        let newest = letters.iter().rev().find_map(|letter| letter.pointer(&said)?.as_str());
        newest.unwrap_or_else(|| panic!("no letter to {to} with a {name}: {letters:?}")).to_owned()
    }

    async fn register(&self, email: &str) -> Answer {
        self.done(&Ask::post("auth/register/", json!({ "email": email, "password": PASSWORD }))).await
    }

    async fn user(&self, email: &str, phone: Option<String>) {
        let caller = Caller {
            ip: stranger(),
            request_id: String::new(),
            engine: "test",
            user_agent: String::new(),
            device_token: None,
        };
        let request = CreateUser {
            email: Some(email.to_owned()),
            phone,
            role: Role::Client,
            password: Credential::Password(Password::new(PASSWORD)),
            first_name: String::new(),
            last_name: String::new(),
        };
        if let Err(error) = create_user(&self.ports, &caller, request).await {
            panic!("{error}");
        }
    }

    async fn sign_in(&self, email: &str) -> Account {
        let answer = self.done(&Ask::post("auth/login/", credentials(email, PASSWORD))).await;
        let (access, refresh) = (answer.text("/data/access"), answer.text("/data/refresh"));
        Account { email: email.to_owned(), access, refresh }
    }

    async fn account(&self) -> Account {
        let email = email("ada");
        self.user(&email, None).await;
        self.sign_in(&email).await
    }

    /// Somebody with a second factor, and a token of their first step.
    async fn guarded(&self) -> (Account, Authenticator) {
        let account = self.account().await;
        let mut authenticator = self.begun(&account).await;
        let code = json!({ "code": authenticator.code() });
        self.done(&Ask::post("auth/mfa/totp/confirm/", code).by(&account.access)).await;
        (account, authenticator)
    }

    async fn begun(&self, account: &Account) -> Authenticator {
        let password = json!({ "current_password": PASSWORD });
        let answer = self.done(&Ask::post("auth/mfa/totp/", password).by(&account.access)).await;
        Authenticator::new(&answer.text("/data/secret"))
    }

    async fn mfa_token(&self, account: &Account) -> String {
        let answer = self.done(&Ask::post("auth/login/", credentials(&account.email, PASSWORD))).await;
        answer.text("/data/mfa_token")
    }

    /// Both parts of a reset link's path.
    async fn link(&self, email: &str) -> (String, String) {
        self.done(&Ask::post("password/reset-request/", json!({ "email_or_phone": email }))).await;
        let url = self.told(email, "url").await;
        let (start, token) = url.rsplit_once('/').expect("a path");
        let (_, uidb64) = start.rsplit_once('/').expect("a path");
        (uidb64.to_owned(), token.to_owned())
    }

    async fn session_of(&self, access: &str) -> SessionId {
        let answer = self.done(&Ask::get("auth/sessions/", access)).await;
        let sessions = answer.1.pointer("/data/results").and_then(Value::as_array).expect("a list");
        let own = sessions.iter().find(|session| session.get("is_current") == Some(&json!(true)));
        let id = own.and_then(|session| session.get("id")?.as_str()).expect("this session's id");
        SessionId(id.parse().expect("an id"))
    }

    /// Does it, and tells what it took.
    async fn count(&self, step: &Step) -> Found {
        let next = || self.transactions.as_ref().map(|transactions| transactions.borrow_mut().next());
        let before = next();
        let _ = (statements(), self.monitor.borrow_mut().commands());
        match &step.act {
            Act::Ask(ask, status) => {
                let answer = self.ask(ask).await;
                assert_eq!(answer.0, *status, "{}: {}", ask.path, answer.1);
            }
            Act::Deliver => {
                assert_eq!(deliver_next(&self.ports, &self.post).await.expect("an answer"), 1, "a letter waits");
            }
        }
        let (statements, commands) = (statements(), self.monitor.borrow_mut().commands());
        let commits = next().zip(before).map(|(after, before)| after - before);
        Found { statements, commits, commands }
    }
}

/// What is done, for a row of the table.
#[derive(Clone, Copy, Debug)]
enum Case {
    RegisterNew,
    RegisterTaken,
    RegisterKeyed,
    RegisterReplayed,
    VerifyRight,
    VerifyRightByAddress,
    VerifyWrong,
    VerifyWrongOfNobody,
    VerifyWrongByAddress,
    VerifyNobodyByAddress,
    ResendWaiting,
    ResendNobody,
    ResendByChallenge,
    Login,
    LoginWrong,
    LoginUnknown,
    LoginWrongAgain,
    LoginNotVerified,
    LoginNotVerifiedTaken,
    LoginGuarded,
    MfaRight,
    MfaWrong,
    Refresh,
    RefreshSameParent,
    RefreshSpent,
    RefreshOver,
    VerifyAccess,
    VerifyAccessRemembered,
    VerifyRefresh,
    Me,
    MeRemembered,
    MeNoted,
    UpdateMe,
    UpdateMeKeyed,
    UpdateMeReplayed,
    Sessions,
    SessionsRemembered,
    LoginEvents,
    LoginEventsRemembered,
    Revoke,
    RevokeOthers,
    RequestReset,
    RequestResetOfNobody,
    ConfirmReset,
    ConfirmResetOfTwo,
    ConfirmResetWrong,
    ChangePassword,
    ChangePasswordWrong,
    Logout,
    Mfa,
    MfaOfGuarded,
    BeginTotp,
    ConfirmTotp,
    ReplaceRecoveryCodes,
    DisableMfa,
    Ready,
    Letter,
}

/// The rows, and what is done for each; of some, in more than one way.
const CASES: &[(&str, &[Case])] = &[
    ("register, new account or taken address", &[Case::RegisterNew, Case::RegisterTaken]),
    ("register, with an idempotency key", &[Case::RegisterKeyed]),
    ("register, the same key again", &[Case::RegisterReplayed]),
    ("verify-otp, right code", &[Case::VerifyRight]),
    ("verify-otp by address, right code", &[Case::VerifyRightByAddress]),
    ("verify-otp, wrong code or nobody's", &[Case::VerifyWrong, Case::VerifyWrongOfNobody]),
    ("verify-otp by address, wrong code or nobody's", &[Case::VerifyWrongByAddress, Case::VerifyNobodyByAddress]),
    ("resend-otp by address, whether an account waits or not", &[Case::ResendWaiting, Case::ResendNobody]),
    ("resend-otp", &[Case::ResendByChallenge]),
    ("login", &[Case::Login]),
    ("login, wrong password", &[Case::LoginWrong, Case::LoginUnknown]),
    ("login, wrong password, as before from the same network", &[Case::LoginWrongAgain]),
    ("login, right password, not verified", &[Case::LoginNotVerified, Case::LoginNotVerifiedTaken]),
    ("login, right password, second factor asked for", &[Case::LoginGuarded]),
    ("mfa/verify, right code", &[Case::MfaRight]),
    ("mfa/verify, wrong code", &[Case::MfaWrong]),
    ("refresh", &[Case::Refresh]),
    ("refresh, same parent within the grace time", &[Case::RefreshSameParent]),
    ("refresh, spent token", &[Case::RefreshSpent]),
    ("refresh, session that is over", &[Case::RefreshOver]),
    ("token verify, access token", &[Case::VerifyAccess]),
    ("token verify, access token of a remembered session", &[Case::VerifyAccessRemembered]),
    ("token verify, refresh token", &[Case::VerifyRefresh]),
    ("me", &[Case::Me]),
    ("me, remembered session", &[Case::MeRemembered]),
    ("me, use of the session noted", &[Case::MeNoted]),
    ("change of the account", &[Case::UpdateMe]),
    ("change of the account, with an idempotency key", &[Case::UpdateMeKeyed]),
    ("change of the account, the same key again", &[Case::UpdateMeReplayed]),
    ("list of sessions, list of sign-ins", &[Case::Sessions, Case::LoginEvents]),
    (
        "list of sessions, list of sign-ins, remembered session",
        &[Case::SessionsRemembered, Case::LoginEventsRemembered],
    ),
    ("end of a session", &[Case::Revoke]),
    ("end of all others", &[Case::RevokeOthers]),
    ("reset-request, whether an account is entitled or not", &[Case::RequestReset, Case::RequestResetOfNobody]),
    ("reset-confirm", &[Case::ConfirmReset]),
    ("reset-confirm, account with address and number", &[Case::ConfirmResetOfTwo]),
    ("reset-confirm, wrong link", &[Case::ConfirmResetWrong]),
    ("change of the password", &[Case::ChangePassword]),
    ("change of the password, wrong present one", &[Case::ChangePasswordWrong]),
    ("logout", &[Case::Logout]),
    ("state of the second factor, of a user without one", &[Case::Mfa]),
    ("state of the second factor, of a user who has one", &[Case::MfaOfGuarded]),
    ("authenticator, begun", &[Case::BeginTotp]),
    ("authenticator, confirmed", &[Case::ConfirmTotp]),
    ("new recovery codes", &[Case::ReplaceRecoveryCodes]),
    ("second factor switched off", &[Case::DisableMfa]),
    ("ready", &[Case::Ready]),
    ("a letter by itself, in the pump", &[Case::Letter]),
];

impl<P: Engine> World<P> {
    /// Does everything that comes before.
    async fn prepare(&self, case: Case) -> Step {
        let wrong = |code: &str| if code == "000000" { "000001" } else { "000000" };
        match case {
            Case::RegisterNew => {
                Step::asks(Ask::post("auth/register/", json!({ "email": email("new"), "password": PASSWORD })), 201)
            }
            Case::RegisterTaken => {
                let account = self.account().await;
                Step::asks(Ask::post("auth/register/", json!({ "email": account.email, "password": ANOTHER })), 201)
            }
            Case::RegisterKeyed | Case::RegisterReplayed => {
                let body = json!({ "email": email("new"), "password": PASSWORD });
                let ask = Ask::post("auth/register/", body).keyed(&format!("key-{}", unique()));
                if matches!(case, Case::RegisterReplayed) {
                    self.done(&ask).await;
                }
                Step::asks(ask, 201)
            }
            Case::VerifyRight | Case::VerifyRightByAddress | Case::VerifyWrong | Case::VerifyWrongByAddress => {
                let email = email("waiting");
                let challenge = self.register(&email).await.text("/data/challenge");
                let code = self.told(&email, "code").await;
                let is_right = matches!(case, Case::VerifyRight | Case::VerifyRightByAddress);
                let (code, status) = if is_right { (code.as_str(), 200) } else { (wrong(&code), 400) };
                let body = match case {
                    Case::VerifyRight | Case::VerifyWrong => json!({ "challenge": challenge, "otp": code }),
                    _ => json!({ "email_or_phone": email, "otp": code }),
                };
                Step::asks(Ask::post("auth/verify-otp/", body), status)
            }
            Case::VerifyWrongOfNobody => {
                let account = self.account().await;
                let challenge = self.register(&account.email).await.text("/data/challenge");
                Step::asks(Ask::post("auth/verify-otp/", json!({ "challenge": challenge, "otp": "000000" })), 400)
            }
            Case::VerifyNobodyByAddress => {
                let body = json!({ "email_or_phone": email("nobody"), "otp": "000000" });
                Step::asks(Ask::post("auth/verify-otp/", body), 400)
            }
            Case::ResendWaiting | Case::ResendByChallenge => {
                let email = email("waiting");
                let challenge = self.register(&email).await.text("/data/challenge");
                self.a_while_later();
                let body = match case {
                    Case::ResendWaiting => json!({ "email_or_phone": email }),
                    _ => json!({ "challenge": challenge }),
                };
                Step::asks(Ask::post("auth/resend-otp/", body), 200)
            }
            Case::ResendNobody => {
                Step::asks(Ask::post("auth/resend-otp/", json!({ "email_or_phone": email("nobody") })), 200)
            }
            Case::Login | Case::LoginWrong | Case::LoginWrongAgain => {
                let email = email("ada");
                self.user(&email, None).await;
                let password = if matches!(case, Case::Login) { PASSWORD } else { ANOTHER };
                let ask = Ask::post("auth/login/", credentials(&email, password));
                if matches!(case, Case::LoginWrongAgain) {
                    assert_eq!(self.ask(&ask).await.0, 401);
                }
                Step::asks(ask, if matches!(case, Case::Login) { 200 } else { 401 })
            }
            Case::LoginUnknown => Step::asks(Ask::post("auth/login/", credentials(&email("nobody"), PASSWORD)), 401),
            Case::LoginNotVerified => {
                let email = email("waiting");
                self.register(&email).await;
                Step::asks(Ask::post("auth/login/", credentials(&email, PASSWORD)), 403)
            }
            Case::LoginNotVerifiedTaken => {
                let account = self.account().await;
                let body = json!({ "email": account.email, "password": ANOTHER });
                self.done(&Ask::post("auth/register/", body)).await;
                Step::asks(Ask::post("auth/login/", credentials(&account.email, ANOTHER)), 403)
            }
            Case::LoginGuarded => {
                let (account, _) = self.guarded().await;
                Step::asks(Ask::post("auth/login/", credentials(&account.email, PASSWORD)), 200)
            }
            Case::MfaRight | Case::MfaWrong => {
                let (account, mut authenticator) = self.guarded().await;
                let token = self.mfa_token(&account).await;
                let (code, status) = match case {
                    Case::MfaRight => (authenticator.code(), 200),
                    _ => (authenticator.wrong_code(), 401),
                };
                let body = json!({ "mfa_token": token, "method": "totp", "code": code });
                Step::asks(Ask::post("auth/mfa/verify/", body), status)
            }
            Case::Refresh | Case::RefreshSameParent | Case::RefreshSpent | Case::RefreshOver => {
                let account = self.account().await;
                let ask = Ask::post("auth/token/refresh/", json!({ "refresh": account.refresh }));
                match case {
                    Case::RefreshSameParent => drop(self.done(&ask).await),
                    Case::RefreshSpent => {
                        let child = self.done(&ask).await.text("/data/refresh");
                        self.done(&Ask::post("auth/token/refresh/", json!({ "refresh": child }))).await;
                    }
                    Case::RefreshOver => {
                        self.done(&Ask::post("auth/logout/", json!({})).by(&account.access)).await;
                    }
                    _ => (),
                }
                let is_good = matches!(case, Case::Refresh | Case::RefreshSameParent);
                Step::asks(ask, if is_good { 200 } else { 401 })
            }
            Case::VerifyAccess | Case::VerifyRefresh => {
                let account = self.account().await;
                let token = if matches!(case, Case::VerifyAccess) { account.access } else { account.refresh };
                Step::asks(Ask::post("auth/token/verify/", json!({ "token": token })), 200)
            }
            Case::VerifyAccessRemembered => {
                let account = self.account().await;
                self.remembered(Ask::post("auth/token/verify/", json!({ "token": account.access }))).await
            }
            Case::Me => Step::asks(Ask::get("auth/me/", &self.account().await.access), 200),
            Case::MeRemembered => self.remembered(Ask::get("auth/me/", &self.account().await.access)).await,
            Case::MeNoted => {
                let account = self.account().await;
                let (session, now) = (self.session_of(&account.access).await, self.ports.now());
                let mut store = self.ports.store().await.expect("a connection");
                let (later, before) = (now + Duration::from_secs(60), now - Duration::from_secs(120));
                store.touch_session(session, later, before).await.expect("an answer");
                Step::asks(Ask::get("auth/me/", &account.access), 200)
            }
            Case::UpdateMe | Case::UpdateMeKeyed | Case::UpdateMeReplayed => {
                let account = self.account().await;
                let patch = Ask { method: "PATCH", ..Ask::post("auth/me/", json!({ "city": "Lagos" })) };
                let mut ask = patch.by(&account.access);
                if !matches!(case, Case::UpdateMe) {
                    ask = ask.keyed(&format!("key-{}", unique()));
                }
                if matches!(case, Case::UpdateMeReplayed) {
                    self.done(&ask).await;
                }
                Step::asks(ask, 200)
            }
            Case::Sessions => Step::asks(Ask::get("auth/sessions/", &self.account().await.access), 200),
            Case::SessionsRemembered => self.remembered(Ask::get("auth/sessions/", &self.account().await.access)).await,
            Case::LoginEvents => Step::asks(Ask::get("auth/login-events/", &self.account().await.access), 200),
            Case::LoginEventsRemembered => {
                self.remembered(Ask::get("auth/login-events/", &self.account().await.access)).await
            }
            Case::Revoke => {
                let account = self.account().await;
                let other = self.sign_in(&account.email).await;
                let session = self.session_of(&other.access).await;
                let path = format!("auth/sessions/{session}/");
                let ask = Ask { method: "DELETE", body: Value::Null, ..Ask::post(&path, Value::Null) };
                Step::asks(ask.by(&account.access), 200)
            }
            Case::RevokeOthers | Case::ChangePassword => {
                let account = self.account().await;
                for _ in 0..2 {
                    self.sign_in(&account.email).await;
                }
                let ask = match case {
                    Case::RevokeOthers => Ask::post("auth/sessions/revoke-others/", json!({})),
                    _ => {
                        let body = json!({ "current_password": PASSWORD, "new_password": ANOTHER });
                        Ask::post("password/change/", body)
                    }
                };
                Step::asks(ask.by(&account.access), 200).of(2)
            }
            Case::RequestReset => {
                let account = self.account().await;
                Step::asks(Ask::post("password/reset-request/", json!({ "email_or_phone": account.email })), 200)
            }
            Case::RequestResetOfNobody => {
                Step::asks(Ask::post("password/reset-request/", json!({ "email_or_phone": email("nobody") })), 200)
            }
            Case::ConfirmReset | Case::ConfirmResetOfTwo | Case::ConfirmResetWrong => {
                let email = email("ada");
                let phone = matches!(case, Case::ConfirmResetOfTwo);
                self.user(&email, phone.then(|| format!("+234803{:07}", unique()))).await;
                for _ in 0..2 {
                    self.sign_in(&email).await;
                }
                let (uidb64, mut token) = self.link(&email).await;
                let is_wrong = matches!(case, Case::ConfirmResetWrong);
                if is_wrong {
                    let first = token.remove(0);
                    token.insert(0, if first == 'A' { 'B' } else { 'A' });
                }
                let body = json!({ "uidb64": uidb64, "token": token, "new_password": ANOTHER });
                Step::asks(Ask::post("password/reset-confirm/", body), if is_wrong { 400 } else { 200 }).of(2)
            }
            Case::ChangePasswordWrong => {
                let account = self.account().await;
                let body = json!({ "current_password": ANOTHER, "new_password": "gentle-Harbour-51-quilt" });
                Step::asks(Ask::post("password/change/", body).by(&account.access), 400)
            }
            Case::Logout => Step::asks(Ask::post("auth/logout/", json!({})).by(&self.account().await.access), 200),
            Case::Mfa => Step::asks(Ask::get("auth/mfa/", &self.account().await.access), 200),
            Case::MfaOfGuarded => Step::asks(Ask::get("auth/mfa/", &self.guarded().await.0.access), 200),
            Case::BeginTotp => {
                let account = self.account().await;
                let ask = Ask::post("auth/mfa/totp/", json!({ "current_password": PASSWORD }));
                Step::asks(ask.by(&account.access), 200)
            }
            Case::ConfirmTotp => {
                let account = self.account().await;
                let code = self.begun(&account).await.code();
                Step::asks(Ask::post("auth/mfa/totp/confirm/", json!({ "code": code })).by(&account.access), 200)
            }
            Case::ReplaceRecoveryCodes | Case::DisableMfa => {
                let (account, mut authenticator) = self.guarded().await;
                let path = match case {
                    Case::DisableMfa => "auth/mfa/disable/",
                    _ => "auth/mfa/recovery-codes/",
                };
                let body = json!({ "current_password": PASSWORD, "code": authenticator.code() });
                Step::asks(Ask::post(path, body).by(&account.access), 200)
            }
            Case::Ready => Step::asks(Ask { method: "GET", ..Ask::post("/health/ready", Value::Null) }, 200),
            Case::Letter => {
                self.letters("").await;
                self.register(&email("waiting")).await;
                Step { act: Act::Deliver, each: 0, remembered_at: None }
            }
        }
    }

    /// The same again, as long as its session is remembered.
    async fn remembered(&self, ask: Ask) -> Step {
        let at = Instant::now();
        self.done(&ask).await;
        Step::asks(ask, 200).remembered_since(at)
    }
}

/// Does each case and tells of those that did otherwise than their row says.
async fn differences<P: Engine>(world: &World<P>, rows: &[Row]) -> Vec<String> {
    let mut differences = Vec::new();
    for (operation, cases) in CASES {
        let row = rows.iter().find(|row| row.operation == *operation);
        let row = row.unwrap_or_else(|| panic!("the table has no row {operation:?}"));
        for case in *cases {
            // Connections are opened and scripts loaded; what is counted comes after.
            let _ = world.count(&world.prepare(*case).await).await;
            let (step, found) = counted(world, *case).await;
            let difference = difference(row, step.each, &found);
            // As many texts as there are sets of fields: not worth keeping.
            let is_any_text = matches!(case, Case::UpdateMe | Case::UpdateMeKeyed);
            let not_kept = not_kept(&found.statements).into_iter().filter(|_| !is_any_text);
            let not_kept = not_kept.map(|text| format!("not kept prepared: {text}"));
            let found = difference.into_iter().chain(not_kept);
            differences.extend(found.map(|text| format!("{operation} ({case:?}, {}): {text}", world.name())));
        }
    }
    differences
}

async fn counted<P: Engine>(world: &World<P>, case: Case) -> (Step, Found) {
    // On a busy machine what was to be remembered may be forgotten before it is asked for.
    for _ in 0..50 {
        let step = world.prepare(case).await;
        let found = world.count(&step).await;
        if step.remembered_at.is_none_or(|at| at.elapsed() < MOST_AGE) {
            return (step, found);
        }
    }
    panic!("{case:?}: the machine is too slow to remember anything");
}

fn page() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md");
    std::fs::read_to_string(path).expect("the page")
}

fn told<P: Engine>(redis: &Redis, postgres: Option<&Postgres>, rows: &[Row]) -> Vec<String> {
    let database = postgres.map(|server| (server, server.create_database()));
    let story = || {
        let mut told = (Vec::new(), None);
        P::tell(async || {
            let world = World::<P>::new(redis, database.as_ref().map(|(_, url)| url.as_str()));
            let before = database.as_ref().map(|(server, url)| scans(server, url, 1));
            told = (differences(&world, rows).await, before);
        });
        told
    };
    // All cases are one future, which is large without optimisation.
    let (mut found, before) = thread::scope(|scope| {
        let builder = thread::Builder::new().stack_size(64 << 20);
        builder.spawn_scoped(scope, story).expect("a thread").join().expect("no panic")
    });
    if let (Some((server, url)), Some(before)) = (&database, before) {
        let after = scans(server, url, 0);
        assert!(after.len() > 8, "{after:?}");
        let more = after.into_iter().filter(|(table, count)| before.get(table) != Some(count));
        found.extend(more.map(|(table, _)| format!("{table} is read whole, by {}", P::VERSION.word())));
    }
    found
}

/// How often each table was read whole, once nobody but so many is connected any more: only then all is counted. Of the
/// gateway's own tables, only the few rows of `imported_hashes` are always read so.
fn scans(server: &Postgres, url: &str, connected: usize) -> BTreeMap<String, String> {
    let others = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    let is_quiet = || server.query(url, others).parse::<usize>().expect("a number") <= connected;
    assert!((0..200).any(|_| is_quiet()), "connections are still open");
    let scans = "SELECT relname, seq_scan FROM pg_stat_user_tables
        WHERE relname NOT IN ('imported_hashes', '__diesel_schema_migrations')";
    let rows = server.query(url, scans);
    rows.lines()
        .filter_map(|row| row.split_once('|').map(|(table, count)| (table.to_owned(), count.to_owned())))
        .collect()
}

#[test]
fn each_operation_makes_the_statements_commits_and_round_trips_of_the_table() {
    set_default_instrumentation(recorder).expect("no panic under the lock");
    let rows = rows_of(&page());
    let redis = Redis::start();
    // Nothing but the gateway's own work takes transaction ids.
    let postgres = Postgres::start_with(&["fsync=off", "synchronous_commit=off", "autovacuum=off"]);
    let differences = [
        told::<BlockingPorts>(&redis, None, &rows),
        told::<BlockingPorts>(&redis, Some(&postgres), &rows),
        told::<AsyncPorts>(&redis, None, &rows),
        told::<AsyncPorts>(&redis, Some(&postgres), &rows),
    ]
    .concat();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn every_row_of_the_table_is_done_and_no_other() {
    let rows = rows_of(&page());
    let of_table: Vec<&str> = rows.iter().map(|row| row.operation.as_str()).collect();
    let done: Vec<&str> = CASES.iter().map(|(operation, _)| *operation).collect();
    assert_eq!(of_table, done);
}

#[test]
fn a_number_that_is_not_so_is_found() {
    let row = |statements, commits, round_trips| {
        let line = format!("| end of all others | {statements} | {commits} | {round_trips} |");
        row_of(&line).expect("a row")
    };
    let line = |count: usize| vec![String::from("x"); count];
    let found = Found { statements: line(7), commits: Some(1), commands: line(1) };
    assert_eq!(difference(&row("7", 1, 1), 0, &found), None);
    assert_eq!(difference(&row("5 + 1 for each", 1, 1), 2, &found), None);
    for wrong in [row("6", 1, 1), row("8", 1, 1), row("7", 0, 1), row("7", 2, 1), row("7", 1, 0), row("7", 1, 2)] {
        assert!(difference(&wrong, 0, &found).is_some(), "{wrong:?}");
    }
    for each in [1, 3] {
        assert!(difference(&row("5 + 1 for each", 1, 1), each, &found).is_some());
    }
    let uncounted = Found { commits: None, ..found };
    assert_eq!(difference(&row("7", 3, 1), 0, &uncounted), None);
}

#[test]
fn a_line_that_is_no_row_is_not_passed_over() {
    for line in ["| a | 1 | 1 |", "| a | one | 1 | 1 |", "| a | 1 + x for each | 1 | 1 |", "| a | 1 | 1 | 1 | 1 |"] {
        assert_eq!(row_of(line), None, "{line}");
    }
}
