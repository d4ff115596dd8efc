//! What no gateway can beat on this machine: the bare hash, a bare server, the database's statements by themselves.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::ExitCode,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, available_parallelism},
    time::{Duration, Instant},
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, rt::System, web};
use bifrons::{
    services::{
        passwords::{Arena, HashParams, Password, weakness},
        policy::{Breaches, PasswordPolicy},
    },
    settings::Durability,
    store::{
        schema::sessions,
        sqlite_pragmas,
        types::{DbId, DbMoment},
    },
    sync_engine::server::{self, Limits},
    system,
};
use diesel::{
    Connection as _, ExpressionMethods as _, QueryDsl as _, RunQueryDsl as _, connection::SimpleConnection as _,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    cpu::{self, Machine, Usage},
    driver::histogram,
    measure::{Cpu, Figure, Latency, real},
    processes::{Process, Program, eventually, free_port, fresh_directory},
    servers::Servers,
    world::{NEW_PASSWORDS, PASSWORD},
};

/// So many clients ask the database at once.
pub const DATABASE_CLIENTS: usize = 16;
/// Rows that are rotated; each client has some of its own.
const ROWS: usize = 512;
/// Any answer will do; this one is as long as that of `me`.
const FIXED: &str = r#"{"success":true,"message":"Your profile.","data":{"id":"0190b6a4-3c1e-7c3a-9d5e-0c8f1f2a3b4c","email":"load-0@example.com","phone":"","first_name":"","last_name":"","role":"client","is_verified":true,"avatar":"","bio":"","country":"","state":"","city":"","address":"","date_joined":"2026-01-01T00:00:00Z"},"errors":null,"meta":{"request_id":"0190b6a43c1e7c3a9d5e0c8f1f2a3b4c"}}"#;
const SIGNING_KEY: &[u8] = b"a key that signs tokens of nobody in particular";

/// As many hashes at once as the gateway computes by default.
pub fn slots() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// What it costs to judge a new password, in milliseconds: the mean of those of the bench, measured once.
pub fn judging() -> f64 {
    static JUDGING: LazyLock<f64> = LazyLock::new(|| {
        let policy = PasswordPolicy { min_length: 8, max_length: 128, min_score: 2, breaches: Breaches::Off };
        let (passwords, times) = (NEW_PASSWORDS.map(Password::new), 20_u32);
        let judge_all = || {
            for password in &passwords {
                let judged = std::hint::black_box(weakness(password, &["load-0@example.com"], &policy));
                assert!(judged.is_none(), "who signs up in the bench has a good password");
            }
        };
        // The first one reads its lists.
        judge_all();
        let began = Instant::now();
        for _ in 0..times {
            judge_all();
        }
        (began.elapsed() / times).as_secs_f64() * 1000.0 / f64::from(u32::try_from(passwords.len()).unwrap_or(1))
    });
    *JUDGING
}

/// Hashes as the gateway does by default while others wait, without wiping in between, and does nothing else.
pub fn hash_rate(params: HashParams, slots: usize, length: Duration, tick: &mut dyn FnMut()) -> Figure {
    let (ending, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut used, mut seconds, mut others) = (Duration::ZERO, 0.0, 0.0);
    thread::scope(|scope| {
        for _ in 0..slots {
            scope.spawn(|| {
                let (password, mut arena) = (Password::new(PASSWORD), Arena::default());
                while !ending.load(Relaxed) {
                    drop(std::hint::black_box(params.hash(&password, [7; 16], &mut arena)));
                    count.fetch_add(1, Relaxed);
                }
            });
        }
        // The first hash of each thread takes its memory.
        pause(Duration::from_millis(200), tick);
        let own = [std::process::id()];
        let (before, began, first) = (Usage::of(own), Instant::now(), count.load(Relaxed));
        let machine = Machine::now();
        pause(length, tick);
        let after = count.load(Relaxed);
        used = Usage::of(own).since(&before);
        others = Machine::now().others_since(machine, used);
        seconds = began.elapsed().as_secs_f64();
        count.store(after - first, Relaxed);
        ending.store(true, Relaxed);
    });
    let good = count.load(Relaxed).max(1);
    Figure {
        subject: "hash".to_owned(),
        connections: slots,
        seconds,
        good,
        per_second: real(good) / seconds,
        cpu: Cpu { server: used.as_secs_f64() * 1000.0 / real(good), ..Cpu::default() },
        others,
        ..Figure::default()
    }
}

fn pause(length: Duration, tick: &mut dyn FnMut()) {
    let until = Instant::now() + length;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        super::processes::pause(left.min(Duration::from_millis(250)));
        tick();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bare {
    Actix,
    Blocking,
}

/// A server that does next to nothing, in a process of its own.
pub struct BareServer {
    pub address: SocketAddr,
    process: Process,
}

impl BareServer {
    pub fn start(bare: Bare) -> io::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let which = match bare {
            Bare::Actix => "actix",
            Bare::Blocking => "blocking",
        };
        let program = Program::new(std::env::current_exe()?, &fresh_directory("bare"), "bare.log").arguments([
            "--serve-bare",
            which,
            "--at",
            &address.to_string(),
        ]);
        let mut process = program.start();
        eventually("the bare server listens", Duration::from_secs(10), || {
            assert!(process.ended().is_none(), "the bare server has ended");
            std::net::TcpStream::connect(address).ok()
        });
        Ok(Self { address, process })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// What the child process does.
pub fn serve_bare(bare: Bare, address: SocketAddr) -> io::Result<ExitCode> {
    let listener = TcpListener::bind(address)?;
    match bare {
        Bare::Actix => System::new().block_on(async {
            let key = web::Data::new(Checker::new());
            HttpServer::new(move || {
                App::new()
                    .app_data(key.clone())
                    .route("/fixed", web::get().to(|| async { fixed() }))
                    .route("/checked", web::get().to(checked))
            })
            .workers(slots())
            .listen(listener)?
            .run()
            .await
        })?,
        Bare::Blocking => {
            let limits = Limits { threads: 256, requests_per_connection: usize::MAX, ..Limits::default() };
            let _server = server::start(listener, limits, |_, _| {
                rouille::Response::from_data("application/json", FIXED).with_status_code(200)
            })?;
            loop {
                thread::park();
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn fixed() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(FIXED)
}

#[derive(Serialize, Deserialize)]
struct Claims {
    token_type: String,
    exp: i64,
    iat: i64,
    jti: String,
    user_id: String,
    sid: String,
    iss: String,
    aud: String,
}

struct Checker {
    key: DecodingKey,
    validation: Validation,
}

impl Checker {
    fn new() -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&["bench"]);
        validation.set_audience(&["bench"]);
        Self { key: DecodingKey::from_secret(SIGNING_KEY), validation }
    }
}

async fn checked(request: HttpRequest, checker: web::Data<Checker>) -> HttpResponse {
    let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer "));
    let claims = token.and_then(|token| jsonwebtoken::decode::<Claims>(token, &checker.key, &checker.validation).ok());
    match claims {
        Some(data) if data.claims.token_type == "access" => fixed(),
        _ => HttpResponse::Unauthorized().finish(),
    }
}

/// A token that the bare server accepts.
pub fn token() -> io::Result<String> {
    let now = system::now().unix_timestamp();
    let claims = Claims {
        token_type: "access".to_owned(),
        exp: now + 86_400,
        iat: now,
        jti: "0".repeat(32),
        user_id: Uuid::from_u128(1).to_string(),
        sid: Uuid::from_u128(2).to_string(),
        iss: "bench".to_owned(),
        aud: "bench".to_owned(),
    };
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SIGNING_KEY)).map_err(io::Error::other)
}

/// How a rotation is put to PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One guarded update that returns what the answer needs.
    OneStatement,
    /// A unit of work that looks first: four round trips.
    Transaction,
}

const UPDATE: &str = "update sessions set generation = generation + 1, rotated_at = now(), last_used_at = now(), \
    expires_at = now() + interval '30 days' where id = ($1::text)::uuid and generation = $2 and ended_at is null \
    and expires_at > now() returning user_id, generation, created_at, expires_at";
const SELECT: &str = "select s.*, u.* from sessions s join users u on u.id = s.user_id \
    where s.id = ($1::text)::uuid and u.deleted_at is null";

/// Rows beside those of the gateway's clients, which nobody holds a token of.
pub fn postgres_rows(servers: &Servers) -> Vec<String> {
    let statement = format!(
        "insert into sessions select (jsonb_populate_record(null::sessions, \
         to_jsonb(s) || jsonb_build_object('id', gen_random_uuid(), 'generation', 0))).* \
         from (select * from sessions limit 1) s, generate_series(1, {ROWS}) returning id"
    );
    servers.query(&statement).lines().map(str::to_owned).collect()
}

/// Rotates sessions by SQL alone.
///
/// # Errors
/// What PostgreSQL says.
#[expect(clippy::disallowed_methods, reason = "the bench has a runtime for this one measurement")]
pub fn postgres_rotations(
    servers: &Servers,
    rows: &[String],
    form: Form,
    length: Duration,
    tick: &mut dyn FnMut(),
) -> io::Result<Figure> {
    let ending = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let url = servers.urls().0;
    let (latencies, seconds, used, others) = runtime.block_on(async {
        let mut clients = Vec::new();
        for rows in rows.chunks(rows.len().div_ceil(DATABASE_CLIENTS).max(1)) {
            let (client, connection) =
                tokio_postgres::connect(&url, tokio_postgres::NoTls).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            let (rows, ending) = (rows.to_vec(), Arc::clone(&ending));
            clients.push(tokio::spawn(rotate(client, rows, form, ending)));
        }
        let mut second = tokio::time::interval(Duration::from_millis(250));
        // The statements are prepared and the rows' generations read within this.
        for _ in 0..2 {
            second.tick().await;
        }
        let read = || (Usage::of([std::process::id()]), Usage::of(cpu::databases()));
        let (before, machine, began) = (read(), Machine::now(), Instant::now());
        while began.elapsed() < length {
            second.tick().await;
            tick();
        }
        let window = (began, Instant::now());
        let after = read();
        let used = (after.0.since(&before.0), after.1.since(&before.1));
        let others = Machine::now().others_since(machine, used.0 + used.1);
        ending.store(true, Relaxed);
        let mut latencies = histogram();
        for client in clients {
            let done = client.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
            for (at, latency) in done {
                if at >= window.0 && at < window.1 {
                    latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
                }
            }
        }
        Ok::<_, io::Error>((latencies, window.1.duration_since(window.0).as_secs_f64(), used, others))
    })?;
    let good = latencies.len().max(1);
    Ok(Figure {
        subject: match form {
            Form::OneStatement => "one statement",
            Form::Transaction => "transaction",
        }
        .to_owned(),
        connections: DATABASE_CLIENTS,
        seconds,
        good,
        per_second: real(good) / seconds,
        latency: Latency::of(&latencies),
        cpu: Cpu {
            driver: used.0.as_secs_f64() * 1000.0 / real(good),
            database: used.1.as_secs_f64() * 1000.0 / real(good),
            ..Cpu::default()
        },
        others,
        ..Figure::default()
    })
}

async fn rotate(
    client: tokio_postgres::Client,
    rows: Vec<String>,
    form: Form,
    ending: Arc<AtomicBool>,
) -> Result<Vec<(Instant, Duration)>, tokio_postgres::Error> {
    let (update, select) = (client.prepare(UPDATE).await?, client.prepare(SELECT).await?);
    // The client takes a UUID as sixteen bytes only with a feature that nothing else needs.
    let mut rows: Vec<(String, i64)> = rows.into_iter().map(|id| (id, 0)).collect();
    for (id, generation) in &mut rows {
        *generation =
            client.query_one("select generation from sessions where id = ($1::text)::uuid", &[id]).await?.get(0);
    }
    let mut done = Vec::new();
    while !ending.load(Relaxed) {
        for (id, generation) in &mut rows {
            let began = Instant::now();
            let changed = match form {
                Form::OneStatement => client.query(&update, &[id, generation]).await?,
                Form::Transaction => {
                    client.batch_execute("begin").await?;
                    client.query(&select, &[id]).await?;
                    let changed = client.query(&update, &[id, generation]).await?;
                    client.batch_execute("commit").await?;
                    changed
                }
            };
            *generation += i64::try_from(changed.len()).unwrap_or_default();
            let now = Instant::now();
            done.push((now, now.duration_since(began)));
            if ending.load(Relaxed) {
                break;
            }
        }
    }
    Ok(done)
}

#[derive(diesel::QueryableByName)]
struct Columns {
    #[diesel(sql_type = diesel::sql_types::Text)]
    names: String,
}

/// Rotates sessions in the embedded database by SQL alone: one writer, since a file has no more.
///
/// # Errors
/// What SQLite says.
pub fn sqlite_rotations(file: &Path, length: Duration, tick: &mut dyn FnMut()) -> io::Result<Figure> {
    let mut connection = diesel::SqliteConnection::establish(&file.to_string_lossy()).map_err(io::Error::other)?;
    let pragmas = sqlite_pragmas(Duration::from_secs(5), Durability::Full);
    connection.batch_execute(&pragmas).map_err(io::Error::other)?;
    let names = "select group_concat(name) as names from pragma_table_info('sessions') \
                 where name not in ('id', 'generation')";
    let Columns { names } = diesel::sql_query(names).get_result(&mut connection).map_err(io::Error::other)?;
    let insert = format!(
        "insert into sessions (id, generation, {names}) select randomblob(16), -1, {names} \
         from (select * from sessions limit 1), (select value from json_each('[1,2,3,4,5,6,7,8]'))"
    );
    connection.batch_execute(&insert).map_err(io::Error::other)?;
    let ids: Vec<DbId> = sessions::table
        .filter(sessions::generation.eq(-1))
        .select(sessions::id)
        .load(&mut connection)
        .map_err(io::Error::other)?;
    let mut rows: Vec<(DbId, i64)> = ids.into_iter().map(|id| (id, -1)).collect();
    let own = [std::process::id()];
    let (before, machine) = (Usage::of(own), Machine::now());
    let (began, mut ticked) = (Instant::now(), Instant::now());
    let mut latencies = histogram();
    'all: loop {
        for (id, generation) in &mut rows {
            let (asked, now) = (Instant::now(), system::now());
            let changed = diesel::update(sessions::table)
                .filter(sessions::id.eq(*id))
                .filter(sessions::generation.eq(*generation))
                .filter(sessions::ended_at.is_null())
                .filter(sessions::expires_at.gt(DbMoment(now)))
                .set((
                    sessions::generation.eq(*generation + 1),
                    sessions::rotated_at.eq(DbMoment(now)),
                    sessions::last_used_at.eq(DbMoment(now)),
                    sessions::expires_at.eq(DbMoment(now + Duration::from_secs(2_592_000))),
                ))
                .execute(&mut connection)
                .map_err(io::Error::other)?;
            *generation += i64::try_from(changed).unwrap_or_default();
            latencies.saturating_record(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX));
            if ticked.elapsed() > Duration::from_millis(250) {
                ticked = Instant::now();
                tick();
            }
            if began.elapsed() >= length {
                break 'all;
            }
        }
    }
    let (seconds, good) = (began.elapsed().as_secs_f64(), latencies.len().max(1));
    let used = Usage::of(own).since(&before);
    let others = Machine::now().others_since(machine, used);
    for (id, _) in rows {
        diesel::delete(sessions::table.filter(sessions::id.eq(id)))
            .execute(&mut connection)
            .map_err(io::Error::other)?;
    }
    Ok(Figure {
        subject: "one statement".to_owned(),
        connections: 1,
        seconds,
        good,
        per_second: real(good) / seconds,
        latency: Latency::of(&latencies),
        cpu: Cpu { database: used.as_secs_f64() * 1000.0 / real(good), ..Cpu::default() },
        others,
        ..Figure::default()
    })
}
