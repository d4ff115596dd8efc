//! The ephemeral store on connections that do not block: Redis, or a table of the database.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use diesel::{BoolExpressionMethods as _, ExpressionMethods as _, OptionalExtension as _, QueryDsl as _};
use diesel_async::RunQueryDsl as _;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::{sync::Mutex, time::timeout};

use super::{
    database::{Connection, Database},
    together::Together,
};
use crate::{
    hashing::Telling,
    services::{
        error::Unavailable,
        limits::{Decision, LocalLimiter, Rule},
        ports::{Claim, Entry, Ephemeral},
    },
    settings::{Settings, StoreUrl},
    store::{
        ahead::Ahead,
        claim::ClaimedAt,
        living::Living,
        prepared::Prepared,
        redis::{self as commands, Breaker, Crowd, Tries},
        schema::ephemeral_entries as entries,
        sql::{self, Count},
        types::{DbMoment, Moment},
    },
    system,
};

/// Codes, counters and locks.
#[derive(Clone)]
pub struct EphemeralStore {
    place: Place,
    limiter: Arc<LocalLimiter>,
}

#[derive(Clone)]
enum Place {
    Table(Table),
    Redis {
        line: Arc<Line>,
        breaker: Arc<Breaker>,
        limit: Duration,
        asking: Together<Vec<Rule>, Decision>,
        ahead: Arc<Ahead>,
    },
}

/// The table, and those of a worker who ask for it at once.
#[derive(Clone)]
struct Table {
    database: Database,
    reads: Together<Arc<Living>, Result<Vec<Option<Entry>>, Unavailable>>,
}

impl Table {
    // Those who ask for entries of a file at once do it in one trip to its thread, and go on together.
    async fn find(&self, keys: &[&str]) -> Result<Vec<Option<Entry>>, Unavailable> {
        let database = self.database.clone();
        let find_all = async move |all: &[Arc<Living>]| match &mut database.check_out().await? {
            Connection::Sqlite(lease) => lease.in_one_reading(all, |living, conn| living.in_sqlite(conn)).await,
            Connection::Postgres(lease) => {
                let mut found = Vec::with_capacity(all.len());
                for living in all {
                    let limit = lease.begin_statement();
                    let of_them = entries::key.eq_any(&living.keys);
                    let statement = entries::table
                        .filter(of_them.and(entries::expires_at.gt(DbMoment(living.now))))
                        .select((entries::key, entries::value, entries::expires_at));
                    let statement = Prepared(statement);
                    let rows = timeout(limit, statement.load(&mut **lease)).await;
                    found.push(lease.end_statement(rows).map(|rows| living.found(&rows)));
                }
                Ok(found)
            }
        };
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.reads.ask(Arc::new(Living { keys, now: system::now() }), find_all).await.flatten()
    }
}

/// The connection that all requests of a worker share: what they ask at once goes out together, and no request waits
/// for another's answer before it may ask.
struct Line {
    client: Client,
    config: AsyncConnectionConfig,
    current: Mutex<Option<Live>>,
}

struct Live {
    conn: MultiplexedConnection,
    number: u64,
    used_at: Instant,
}

// A connection that was used a moment ago need not be asked whether it is alive.
const FRESH: Duration = Duration::from_secs(1);

impl Line {
    // A connection and its number. Whoever finds none makes it, and the others wait for that.
    async fn take(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let mut current = self.current.lock().await;
        let mut next = 0;
        if let Some(live) = &mut *current {
            let is_alive = live.used_at.elapsed() < FRESH
                || redis::cmd("PING").query_async::<String>(&mut live.conn).await.is_ok();
            if is_alive {
                live.used_at = Instant::now();
                return Ok((live.conn.clone(), live.number));
            }
            next = live.number.wrapping_add(1);
            *current = None;
        }
        let conn = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        *current = Some(Live { conn: conn.clone(), number: next, used_at: Instant::now() });
        Ok((conn, next))
    }

    // The connection of this number is no good any more.
    async fn spoil(&self, number: u64) {
        if let Some(live) = self.current.lock().await.as_mut().filter(|live| live.number == number) {
            // So long ago that it is asked first.
            live.used_at = live.used_at.checked_sub(FRESH).unwrap_or(live.used_at);
        }
    }
}

impl EphemeralStore {
    /// Whether it is a table of the embedded database, so that what is written to both can be one commit.
    pub fn is_in_file(&self) -> bool {
        matches!(&self.place, Place::Table(Table { database: Database::Sqlite { .. }, .. }))
    }

    /// As `store.url` says; the table is in `database`. Those who are told of their hashes by `telling` read together.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn new(
        settings: &Settings,
        database: &Database,
        limiter: Arc<LocalLimiter>,
        telling: &Telling,
    ) -> Result<Self, Unavailable> {
        let place = match settings.store() {
            StoreUrl::Embedded => {
                Place::Table(Table { database: database.clone(), reads: Together::in_file(settings, telling) })
            }
            StoreUrl::Redis(url) => {
                let patience = Some(settings.store.timeout);
                let config =
                    AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
                let client = Client::open(url.expose()).map_err(Unavailable::store)?;
                let line = Arc::new(Line { client, config, current: Mutex::default() });
                Place::Redis {
                    line,
                    breaker: Arc::default(),
                    limit: settings.store.timeout,
                    asking: Together::new(1),
                    ahead: Arc::default(),
                }
            }
        };
        Ok(Self { place, limiter })
    }
}

/// Runs `$table` with a database connection that writes, or `$redis` with a Redis connection.
macro_rules! at {
    // In turn with units of work: SQLite itself would have writers try again and again, some of them for seconds.
    ($store:expr, $tries:expr, $conn:ident => $table:expr, $server:ident => $redis:expr) => {
        match &$store.place {
            Place::Table(Table { database, .. }) => {
                // Bound first: a temporary would take its room twice while the statement is waited for.
                let mut connection = database.check_out_to_write().await?;
                match &mut connection {
                    Connection::Sqlite(lease) => {
                        let limit = lease.begin_statement();
                        let $conn = &mut **lease;
                        let answer = timeout(limit, async { $table }).await;
                        lease.end_statement(answer)
                    }
                    Connection::Postgres(lease) => {
                        let limit = lease.begin_statement();
                        let $conn = &mut **lease;
                        let answer = timeout(limit, async { $table }).await;
                        lease.end_statement(answer)
                    }
                }
            }
            Place::Redis { line, breaker, limit, .. } => {
                on_redis(line, breaker, *limit, $tries, async |$server: &mut MultiplexedConnection| $redis).await
            }
        }
    };
}

/// Runs a command within the limit, on another connection once more where that does no harm.
async fn on_redis<T>(
    line: &Line,
    breaker: &Breaker,
    limit: Duration,
    tries: Tries,
    command: impl AsyncFn(&mut MultiplexedConnection) -> RedisResult<T>,
) -> Result<T, Unavailable> {
    if breaker.is_open() {
        return Err(Unavailable::store("not asked again yet"));
    }
    // With room of its own, as where a connection to the database is waited for.
    let both = Box::pin(async {
        match attempt(line, &command).await {
            Ok(Err(error)) if tries == Tries::Two && error.is_io_error() => attempt(line, &command).await,
            answer => answer,
        }
    });
    let answer = timeout(limit, both).await.map_err(Unavailable::store).flatten();
    let is_away = match &answer {
        Ok(Err(error)) => error.is_io_error(),
        other => other.is_err(),
    };
    breaker.note(!is_away);
    answer?.map_err(Unavailable::store)
}

async fn attempt<T>(
    line: &Line,
    command: &impl AsyncFn(&mut MultiplexedConnection) -> RedisResult<T>,
) -> Result<RedisResult<T>, Unavailable> {
    let (mut conn, number) = line.take().await.map_err(Unavailable::store)?;
    let answer = command(&mut conn).await;
    if answer.as_ref().is_err_and(RedisError::is_io_error) {
        line.spoil(number).await;
    }
    Ok(answer)
}

impl Ephemeral for EphemeralStore {
    async fn put(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Unavailable> {
        let until = DbMoment(system::now() + ttl);
        at!(self, Tries::Two,
            conn => {
                let fresh = || (entries::value.eq(value), entries::count.eq(0), entries::expires_at.eq(until));
                Prepared(diesel::insert_into(entries::table)
                    .values((entries::key.eq(key), fresh()))
                    .on_conflict(entries::key)
                    .do_update()
                    .set(fresh()))
                    .execute(conn)
                    .await
                    .map(drop)
            },
            server => commands::put(key, value, ttl).query_async(server).await)
    }

    async fn put_if_absent(&self, key: &str, value: &[u8], ttl: Duration) -> Result<Option<Duration>, Unavailable> {
        let now = system::now();
        at!(self, Tries::One,
            conn => {
                let stored = Prepared(diesel::sql_query(sql::PUT_IF_ABSENT)
                    .bind::<diesel::sql_types::Text, _>(key)
                    .bind::<diesel::sql_types::Binary, _>(value)
                    .bind::<Moment, _>(DbMoment(now + ttl))
                    .bind::<Moment, _>(DbMoment(now)))
                    .execute(conn)
                    .await;
                match stored {
                    Ok(1) => Ok(None),
                    Ok(_) => {
                        let until = entries::table.find(key).select(entries::expires_at);
                        let until = until.get_result::<DbMoment>(conn).await.optional();
                        until.map(|until| Some(until.map_or(Duration::ZERO, |until| (until.0 - now).unsigned_abs())))
                    }
                    Err(error) => Err(error),
                }
            },
            server => commands::put_if_absent(key, value, ttl).invoke_async(server).await.map(commands::remaining))
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Unavailable> {
        match &self.place {
            Place::Table(table) => Ok(table.find(&[key]).await?.pop().flatten()),
            Place::Redis { line, breaker, limit, .. } => {
                let asked = async |server: &mut MultiplexedConnection| commands::get(key).invoke_async(server).await;
                on_redis(line, breaker, *limit, Tries::Two, asked).await.map(commands::entry)
            }
        }
    }

    async fn claim(&self, claim: &Claim) -> Result<bool, Unavailable> {
        match &self.place {
            Place::Table(Table { database, .. }) => {
                let claimed = ClaimedAt { claim: claim.clone(), now: system::now() };
                match &mut database.check_out_to_write().await? {
                    Connection::Sqlite(lease) => {
                        let all = [Arc::new(claimed)];
                        let granted = lease.in_one_commit(&all, |claimed, conn| claimed.in_sqlite(conn)).await?;
                        granted.into_iter().next().ok_or_else(Unavailable::unanswered)?
                    }
                    Connection::Postgres(lease) => {
                        let limit = lease.begin_statement();
                        let answer = timeout(limit, claimed.for_postgres().load(&mut **lease)).await;
                        let count = lease.end_statement(answer.map(|rows| rows.and_then(sql::counted)));
                        count.map(|count| count > 0)
                    }
                }
            }
            Place::Redis { line, breaker, limit, .. } => {
                let asked =
                    async |server: &mut MultiplexedConnection| commands::claim(claim).invoke_async::<i64>(server).await;
                Ok(on_redis(line, breaker, *limit, Tries::One, asked).await? == 1)
            }
        }
    }

    async fn get_all<const N: usize>(&self, keys: [&str; N]) -> Result<[Option<Entry>; N], Unavailable> {
        match &self.place {
            Place::Table(table) => table.find(&keys).await?.try_into().map_err(|_fewer| Unavailable::unanswered()),
            Place::Redis { line, breaker, limit, .. } => {
                let asked = async |server: &mut MultiplexedConnection| {
                    commands::get_all(&keys).invoke_async(server).await.and_then(commands::entries)
                };
                on_redis(line, breaker, *limit, Tries::Two, asked).await
            }
        }
    }

    async fn remove_if_equal(&self, key: &str, value: &[u8]) -> Result<bool, Unavailable> {
        let now = DbMoment(system::now());
        at!(self, Tries::One,
            conn => diesel::delete(entries::table)
                .filter(entries::key.eq(key).and(entries::value.eq(value)).and(entries::expires_at.gt(now)))
                .execute(conn)
                .await
                .map(|removed| removed == 1),
            server => commands::remove_if_equal(key, value).invoke_async(server).await.map(|removed: i64| removed == 1))
    }

    async fn remove(&self, key: &str) -> Result<(), Unavailable> {
        at!(self, Tries::Two,
            conn => diesel::delete(entries::table.find(key)).execute(conn).await.map(drop),
            server => commands::remove(key).query_async(server).await)
    }

    async fn increment(&self, key: &str, ttl: Duration) -> Result<i64, Unavailable> {
        let now = system::now();
        at!(self, Tries::One,
            conn => Prepared(diesel::sql_query(sql::INCREMENT)
                .bind::<diesel::sql_types::Text, _>(key)
                .bind::<diesel::sql_types::Binary, _>(b"".as_slice())
                .bind::<Moment, _>(DbMoment(now + ttl))
                .bind::<Moment, _>(DbMoment(now)))
                // To its end, as in `store::rotation`.
                .load::<Count>(conn)
                .await
                .and_then(sql::counted),
            server => commands::increment(key, ttl).invoke_async(server).await)
    }

    async fn take_back(&self, rules: &[Rule]) {
        if let Place::Redis { line, breaker, limit, .. } = &self.place {
            let asked =
                async |server: &mut MultiplexedConnection| commands::take_back(rules).invoke_async(server).await;
            let answer: Result<(), _> = on_redis(line, breaker, *limit, Tries::One, asked).await;
            if answer.is_ok() {
                return;
            }
        }
        self.limiter.take_back(rules, system::now());
    }

    async fn decrement(&self, key: &str) -> Result<(), Unavailable> {
        let now = DbMoment(system::now());
        at!(self, Tries::One,
            conn => Prepared(diesel::update(entries::table)
                .filter(entries::key.eq(key).and(entries::count.gt(0)).and(entries::expires_at.gt(now)))
                .set(entries::count.eq(entries::count - 1)))
                .execute(conn)
                .await
                .map(drop),
            server => commands::decrement(key).invoke_async(server).await.map(|_: i64| ()))
    }

    async fn admit(&self, rules: &[Rule]) -> Decision {
        let decision = match &self.place {
            Place::Table(..) => None,
            Place::Redis { line, breaker, limit, asking, ahead } => {
                if let Some(counted) = ahead.take(rules, Instant::now()) {
                    return counted;
                }
                let (line, breaker, limit, ahead) = (Arc::clone(line), Arc::clone(breaker), *limit, Arc::clone(ahead));
                let ask_all = async move |all: &[Vec<Rule>]| {
                    let crowd = Crowd::of(all, &ahead);
                    let asked = async |server: &mut MultiplexedConnection| crowd.admit().invoke_async(server).await;
                    let answer: Vec<u64> = on_redis(&line, &breaker, limit, Tries::One, asked).await?;
                    crowd.decisions(&answer, &ahead).ok_or_else(|| Unavailable::store("an answer of another form"))
                };
                asking.ask(rules.to_vec(), ask_all).await.ok()
            }
        };
        decision.unwrap_or_else(|| self.limiter.admit(rules, system::now()))
    }
}
