//! The ephemeral store on connections that do not block: Redis, or a table of the database.

use std::{sync::Arc, time::Duration};

use deadpool_redis::{Manager, Pool, Runtime};
use diesel::{BoolExpressionMethods as _, ExpressionMethods as _, OptionalExtension as _, QueryDsl as _};
use diesel_async::RunQueryDsl as _;
use redis::{AsyncConnectionConfig, RedisError, RedisResult};
use tokio::time::timeout;

use super::database::{Connection, Database};
use crate::{
    services::{
        error::Unavailable,
        limits::{Decision, LocalLimiter, Rule},
        ports::{Entry, Ephemeral},
    },
    settings::{Settings, StoreUrl},
    store::{
        redis::{self as commands, Breaker, Tries},
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
    Table(Database),
    Redis { pool: Pool, breaker: Arc<Breaker>, limit: Duration },
}

impl EphemeralStore {
    /// As `store.url` says, with `size` connections; the table is in `database`.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn new(
        settings: &Settings,
        database: &Database,
        limiter: Arc<LocalLimiter>,
        size: usize,
    ) -> Result<Self, Unavailable> {
        let place = match settings.store() {
            StoreUrl::Embedded => Place::Table(database.clone()),
            StoreUrl::Redis(url) => {
                let patience = Some(settings.store.timeout);
                let config =
                    AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
                let manager = Manager::new_with_config(url.expose(), config).map_err(Unavailable::store)?;
                let builder = Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1);
                let builder = builder.wait_timeout(patience).create_timeout(patience).recycle_timeout(patience);
                Place::Redis {
                    pool: builder.build().map_err(Unavailable::store)?,
                    breaker: Arc::default(),
                    limit: settings.store.timeout,
                }
            }
        };
        Ok(Self { place, limiter })
    }
}

/// Runs `$table` with a database connection, or `$redis` with a Redis connection.
macro_rules! at {
    ($store:expr, $tries:expr, $conn:ident => $table:expr, $server:ident => $redis:expr) => {
        match &$store.place {
            Place::Table(database) => match &mut database.check_out().await? {
                Connection::Sqlite(lease, _) => {
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
            },
            Place::Redis { pool, breaker, limit } => {
                on_redis(pool, breaker, *limit, $tries, async |$server: &mut deadpool_redis::Connection| $redis).await
            }
        }
    };
}

/// Runs a command within the limit, on another connection once more where that does no harm.
async fn on_redis<T>(
    pool: &Pool,
    breaker: &Breaker,
    limit: Duration,
    tries: Tries,
    command: impl AsyncFn(&mut deadpool_redis::Connection) -> RedisResult<T>,
) -> Result<T, Unavailable> {
    if breaker.is_open() {
        return Err(Unavailable::store("not asked again yet"));
    }
    let both = async {
        match attempt(pool, &command).await {
            Ok(Err(error)) if tries == Tries::Two && error.is_io_error() => attempt(pool, &command).await,
            answer => answer,
        }
    };
    let answer = timeout(limit, both).await.map_err(Unavailable::store).flatten();
    let is_away = match &answer {
        Ok(Err(error)) => error.is_io_error(),
        other => other.is_err(),
    };
    breaker.note(!is_away);
    answer?.map_err(Unavailable::store)
}

async fn attempt<T>(
    pool: &Pool,
    command: &impl AsyncFn(&mut deadpool_redis::Connection) -> RedisResult<T>,
) -> Result<RedisResult<T>, Unavailable> {
    let mut conn = pool.get().await.map_err(Unavailable::store)?;
    let answer = command(&mut conn).await;
    if answer.as_ref().is_err_and(RedisError::is_io_error) {
        drop(deadpool_redis::Connection::take(conn));
    }
    Ok(answer)
}

impl Ephemeral for EphemeralStore {
    async fn put(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Unavailable> {
        let until = DbMoment(system::now() + ttl);
        at!(self, Tries::Two,
            conn => {
                let fresh = || (entries::value.eq(value), entries::count.eq(0), entries::expires_at.eq(until));
                diesel::insert_into(entries::table)
                    .values((entries::key.eq(key), fresh()))
                    .on_conflict(entries::key)
                    .do_update()
                    .set(fresh())
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
                let stored = diesel::sql_query(sql::PUT_IF_ABSENT)
                    .bind::<diesel::sql_types::Text, _>(key)
                    .bind::<diesel::sql_types::Binary, _>(value)
                    .bind::<Moment, _>(DbMoment(now + ttl))
                    .bind::<Moment, _>(DbMoment(now))
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
        let now = system::now();
        at!(self, Tries::Two,
            conn => entries::table
                .filter(entries::key.eq(key).and(entries::expires_at.gt(DbMoment(now))))
                .select((entries::value, entries::expires_at))
                .first::<(Vec<u8>, DbMoment)>(conn)
                .await
                .optional()
                .map(|found| found.map(|(value, until)| Entry { value, expires_in: (until.0 - now).unsigned_abs() })),
            server => commands::get(key).invoke_async(server).await.map(commands::entry))
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
            conn => diesel::sql_query(sql::INCREMENT)
                .bind::<diesel::sql_types::Text, _>(key)
                .bind::<diesel::sql_types::Binary, _>(b"".as_slice())
                .bind::<Moment, _>(DbMoment(now + ttl))
                .bind::<Moment, _>(DbMoment(now))
                .get_result::<Count>(conn)
                .await
                .map(|counted| counted.count),
            server => commands::increment(key, ttl).invoke_async(server).await)
    }

    async fn decrement(&self, key: &str) -> Result<(), Unavailable> {
        let now = DbMoment(system::now());
        at!(self, Tries::One,
            conn => diesel::update(entries::table)
                .filter(entries::key.eq(key).and(entries::count.gt(0)).and(entries::expires_at.gt(now)))
                .set(entries::count.eq(entries::count - 1))
                .execute(conn)
                .await
                .map(drop),
            server => commands::decrement(key).invoke_async(server).await.map(|_: i64| ()))
    }

    async fn admit(&self, rules: &[Rule]) -> Decision {
        let decision = match &self.place {
            Place::Table(_) => None,
            Place::Redis { pool, breaker, limit } => {
                let asked =
                    async |server: &mut deadpool_redis::Connection| commands::admit(rules).invoke_async(server).await;
                let answer: Option<Vec<u64>> = on_redis(pool, breaker, *limit, Tries::One, asked).await.ok();
                answer.as_deref().and_then(commands::decision)
            }
        };
        decision.unwrap_or_else(|| self.limiter.admit(rules, system::now()))
    }
}
