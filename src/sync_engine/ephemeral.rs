//! The ephemeral store on blocking connections: Redis, or a table of the database.

use std::{
    future::{Ready, ready},
    sync::Arc,
    time::{Duration, Instant},
};

use diesel::{OptionalExtension as _, prelude::*};
use r2d2::{ManageConnection, Pool};
use redis::{Client, RedisError, RedisResult};

use super::{
    database::{Connection, Database},
    together::Together,
};
use crate::{
    services::{
        error::Unavailable,
        limits::{Decision, LocalLimiter, Rule},
        ports::{Claim, Entry, Ephemeral},
    },
    settings::{Settings, StoreUrl},
    store::{
        ahead::Ahead,
        claim::ClaimedAt,
        prepared::Prepared,
        redis::{self as commands, Breaker, Crowd, Tries},
        rows::{EntryRow, entry_of},
        schema::ephemeral_entries as entries,
        sql::{self, Count},
        types::{DbMoment, Moment},
    },
    system,
};

/// Makes Redis connections with deadlines: the blocking driver has none by itself.
pub struct Manager {
    client: Client,
    timeout: Duration,
}

/// A connection and when it was last used.
pub struct Pooled {
    conn: redis::Connection,
    used_at: Instant,
}

// A connection that was used a moment ago need not be asked whether it is alive.
const FRESH: Duration = Duration::from_secs(1);

impl ManageConnection for Manager {
    type Connection = Pooled;
    type Error = RedisError;

    fn connect(&self) -> RedisResult<Pooled> {
        let conn = self.client.get_connection_with_timeout(self.timeout)?;
        conn.set_read_timeout(Some(self.timeout))?;
        conn.set_write_timeout(Some(self.timeout))?;
        Ok(Pooled { conn, used_at: Instant::now() })
    }

    fn is_valid(&self, pooled: &mut Pooled) -> RedisResult<()> {
        if pooled.used_at.elapsed() < FRESH { Ok(()) } else { redis::cmd("PING").query(&mut pooled.conn) }
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.used_at = Instant::now();
        !redis::ConnectionLike::is_open(&pooled.conn)
    }
}

/// Codes, counters and locks.
#[derive(Clone)]
pub struct EphemeralStore {
    place: Place,
    limiter: Arc<LocalLimiter>,
}

#[derive(Clone)]
enum Place {
    Table(Database),
    Redis { pool: Pool<Manager>, breaker: Arc<Breaker>, asking: Together<Vec<Rule>, Decision>, ahead: Arc<Ahead> },
}

impl EphemeralStore {
    /// Whether it is a table of the embedded database, so that what is written to both can be one commit.
    pub fn is_in_file(&self) -> bool {
        matches!(&self.place, Place::Table(Database::Sqlite(_)))
    }

    /// As `store.url` says; the table is in `database`.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn new(settings: &Settings, database: &Database, limiter: Arc<LocalLimiter>) -> Result<Self, RedisError> {
        let place = match settings.store() {
            StoreUrl::Embedded => Place::Table(database.clone()),
            StoreUrl::Redis(url) => {
                let timeout = settings.store.timeout;
                let manager = Manager { client: Client::open(url.expose())?, timeout };
                let pool = Pool::builder()
                    .max_size(u32::from(settings.store.pool))
                    .min_idle(Some(0))
                    .connection_timeout(timeout)
                    .error_handler(Box::new(r2d2::NopErrorHandler))
                    .build_unchecked(manager);
                Place::Redis { pool, breaker: Arc::default(), asking: Together::new(1), ahead: Arc::default() }
            }
        };
        Ok(Self { place, limiter })
    }
}

/// Runs `$table` with a database connection, or `$redis` with a Redis connection.
macro_rules! at {
    ($store:expr, $tries:expr, $conn:ident => $table:expr, $server:ident => $redis:expr) => {
        ready(match &$store.place {
            Place::Table(database) => database.check_out().and_then(|mut connection| match &mut connection {
                Connection::Sqlite(pooled) => {
                    let $conn = &mut ***pooled;
                    let answer = $table;
                    pooled.note(answer)
                }
                Connection::Postgres(pooled) => {
                    let $conn = &mut ***pooled;
                    let answer = $table;
                    pooled.note(answer)
                }
            }),
            Place::Redis { pool, breaker, .. } => on_redis(pool, breaker, $tries, |$server| $redis),
        })
    };
}

/// Runs a command, on another connection once more where that does no harm.
fn on_redis<T>(
    pool: &Pool<Manager>,
    breaker: &Breaker,
    tries: Tries,
    command: impl Fn(&mut redis::Connection) -> RedisResult<T>,
) -> Result<T, Unavailable> {
    if breaker.is_open() {
        return Err(Unavailable::store("not asked again yet"));
    }
    let attempt = || pool.get().map(|mut pooled| command(&mut pooled.conn));
    let answer = match attempt() {
        Ok(Err(error)) if tries == Tries::Two && error.is_io_error() && !error.is_timeout() => attempt(),
        answer => answer,
    };
    let is_away = match &answer {
        Ok(Err(error)) => error.is_io_error(),
        other => other.is_err(),
    };
    breaker.note(!is_away);
    answer.map_err(Unavailable::store)?.map_err(Unavailable::store)
}

#[expect(refining_impl_trait, reason = "`Ready` is the proof that nothing here waits")]
impl Ephemeral for EphemeralStore {
    fn put(&self, key: &str, value: &[u8], ttl: Duration) -> Ready<Result<(), Unavailable>> {
        let until = DbMoment(system::now() + ttl);
        at!(self, Tries::Two,
            conn => {
                let fresh = || (entries::value.eq(value), entries::count.eq(0), entries::expires_at.eq(until));
                Prepared(diesel::insert_into(entries::table)
                    .values((entries::key.eq(key), fresh()))
                    .on_conflict(entries::key)
                    .do_update()
                    .set(fresh()))
                    .run(conn)
            },
            server => commands::put(key, value, ttl).query(server))
    }

    fn put_if_absent(&self, key: &str, value: &[u8], ttl: Duration) -> Ready<Result<Option<Duration>, Unavailable>> {
        let now = system::now();
        at!(self, Tries::One,
            conn => Prepared(diesel::sql_query(sql::PUT_IF_ABSENT)
                .bind::<diesel::sql_types::Text, _>(key)
                .bind::<diesel::sql_types::Binary, _>(value)
                .bind::<Moment, _>(DbMoment(now + ttl))
                .bind::<Moment, _>(DbMoment(now)))
                .changed(conn)
                .and_then(|stored| {
                    if stored == 1 {
                        return Ok(None);
                    }
                    let until = entries::table.find(key).select(entries::expires_at).get_result::<DbMoment>(conn);
                    Ok(Some(until.optional()?.map_or(Duration::ZERO, |until| (until.0 - now).unsigned_abs())))
                }),
            server => commands::put_if_absent(key, value, ttl).invoke(server).map(commands::remaining))
    }

    fn get(&self, key: &str) -> Ready<Result<Option<Entry>, Unavailable>> {
        let now = system::now();
        at!(self, Tries::Two,
            conn => entries::table
                .filter(entries::key.eq(key).and(entries::expires_at.gt(DbMoment(now))))
                .select((entries::value, entries::expires_at))
                .first::<(Vec<u8>, DbMoment)>(conn)
                .optional()
                .map(|found| found.map(|(value, until)| Entry { value, expires_in: (until.0 - now).unsigned_abs() })),
            server => commands::get(key).invoke(server).map(commands::entry))
    }

    fn claim(&self, claim: &Claim) -> Ready<Result<bool, Unavailable>> {
        let ask = || match &self.place {
            Place::Table(database) => {
                let claimed = ClaimedAt { claim: claim.clone(), now: system::now() };
                match &mut database.check_out()? {
                    Connection::Sqlite(pooled) => {
                        let granted = pooled.in_one_commit(&[claimed], ClaimedAt::in_sqlite)?;
                        granted.into_iter().next().ok_or_else(Unavailable::unanswered)?
                    }
                    Connection::Postgres(pooled) => {
                        let answer = claimed.for_postgres().load(&mut ***pooled).and_then(sql::counted);
                        pooled.note(answer).map(|count| count > 0)
                    }
                }
            }
            Place::Redis { pool, breaker, .. } => {
                let granted =
                    on_redis(pool, breaker, Tries::One, |server| commands::claim(claim).invoke::<i64>(server));
                Ok(granted? == 1)
            }
        };
        ready(ask())
    }

    fn get_all<const N: usize>(&self, keys: [&str; N]) -> Ready<Result<[Option<Entry>; N], Unavailable>> {
        let now = system::now();
        at!(self, Tries::Two,
            conn => Prepared(entries::table
                .filter(entries::key.eq_any(keys).and(entries::expires_at.gt(DbMoment(now))))
                .select((entries::key, entries::value, entries::expires_at)))
                .load::<EntryRow>(conn)
                .map(|rows| keys.map(|key| entry_of(key, &rows, now))),
            server => commands::get_all(&keys).invoke(server).and_then(commands::entries))
    }

    fn remove_if_equal(&self, key: &str, value: &[u8]) -> Ready<Result<bool, Unavailable>> {
        let now = DbMoment(system::now());
        at!(self, Tries::One,
            conn => diesel::delete(entries::table)
                .filter(entries::key.eq(key).and(entries::value.eq(value)).and(entries::expires_at.gt(now)))
                .execute(conn)
                .map(|removed| removed == 1),
            server => commands::remove_if_equal(key, value).invoke(server).map(|removed: i64| removed == 1))
    }

    fn remove(&self, key: &str) -> Ready<Result<(), Unavailable>> {
        at!(self, Tries::Two,
            conn => diesel::delete(entries::table.find(key)).execute(conn).map(drop),
            server => commands::remove(key).query(server))
    }

    fn increment(&self, key: &str, ttl: Duration) -> Ready<Result<i64, Unavailable>> {
        let now = system::now();
        at!(self, Tries::One,
            conn => Prepared(diesel::sql_query(sql::INCREMENT)
                .bind::<diesel::sql_types::Text, _>(key)
                .bind::<diesel::sql_types::Binary, _>(b"".as_slice())
                .bind::<Moment, _>(DbMoment(now + ttl))
                .bind::<Moment, _>(DbMoment(now)))
                // To its end, as in `store::rotation`.
                .load::<Count>(conn)
                .and_then(sql::counted),
            server => commands::increment(key, ttl).invoke(server))
    }

    fn take_back(&self, rules: &[Rule]) -> Ready<()> {
        if let Place::Redis { pool, breaker, .. } = &self.place {
            let asked = |server: &mut redis::Connection| commands::take_back(rules).invoke::<()>(server);
            if on_redis(pool, breaker, Tries::One, asked).is_ok() {
                return ready(());
            }
        }
        self.limiter.take_back(rules, system::now());
        ready(())
    }

    fn decrement(&self, key: &str) -> Ready<Result<(), Unavailable>> {
        let now = DbMoment(system::now());
        at!(self, Tries::One,
            conn => Prepared(diesel::update(entries::table)
                .filter(entries::key.eq(key).and(entries::count.gt(0)).and(entries::expires_at.gt(now)))
                .set(entries::count.eq(entries::count - 1)))
                .run(conn),
            server => commands::decrement(key).invoke(server).map(|_: i64| ()))
    }

    fn admit(&self, rules: &[Rule]) -> Ready<Decision> {
        let decision = match &self.place {
            Place::Table(_) => None,
            Place::Redis { pool, breaker, asking, ahead } => {
                if let Some(counted) = ahead.take(rules, Instant::now()) {
                    return ready(counted);
                }
                let ask_all = |all: &[Vec<Rule>]| {
                    let crowd = Crowd::of(all, ahead);
                    let answer: Vec<u64> = on_redis(pool, breaker, Tries::One, |server| crowd.admit().invoke(server))?;
                    crowd.decisions(&answer, ahead).ok_or_else(|| Unavailable::store("an answer of another form"))
                };
                asking.ask(rules.to_vec(), ask_all).ok()
            }
        };
        ready(decision.unwrap_or_else(|| self.limiter.admit(rules, system::now())))
    }
}
