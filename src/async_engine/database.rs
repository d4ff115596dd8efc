//! Pools of connections that do not block, and units of work on them.

use std::{sync::Arc, time::Duration};

use deadpool::{
    Runtime,
    managed::{Manager, Object, QueueMode, Timeouts},
};
use diesel::{ConnectionError, ConnectionResult, QueryResult, SqliteConnection, result::Error};
use diesel_async::{
    AnsiTransactionManager, AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _,
    TransactionManager as _,
    pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod, deadpool::Pool},
    sync_connection_wrapper::{SyncConnectionWrapper, SyncTransactionManagerWrapper},
};
use tokio::time::timeout;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{lease::Lease, sqlite_thread::SqliteThread};
use crate::{
    services::error::Unavailable,
    settings::{DatabaseUrl, Settings},
    store::{one_commit, postgres_tls, sql, sqlite_pragmas},
};

type EmbeddedConnection = SyncConnectionWrapper<SqliteConnection, SqliteThread>;
type SqliteTransactions = SyncTransactionManagerWrapper<diesel::connection::AnsiTransactionManager>;

/// The durable database, as a pool.
#[derive(Clone)]
pub enum Database {
    /// A file.
    Sqlite {
        /// Connections that read.
        readers: Pool<EmbeddedConnection>,
        /// The one that requests write on; others wait for it in turn and without a thread. What it remembers of the
        /// file stays good until somebody else writes: the pump, which is not to be in that queue, or v1.
        writer: Pool<EmbeddedConnection>,
        /// For a connection, and for a statement.
        timeout: Duration,
    },
    /// A server. Each worker has a pool of its own: a connection lives on the runtime that made it.
    Postgres(Pool<AsyncPgConnection>, Duration),
}

/// A connection on loan from its pool.
#[expect(clippy::large_enum_variant, reason = "one a request, on its stack; a box would cost an allocation each time")]
pub enum Connection {
    /// To the file.
    Sqlite(Lease<AsyncDieselConnectionManager<EmbeddedConnection>>),
    /// To the server.
    Postgres(Lease<AsyncDieselConnectionManager<AsyncPgConnection>>),
}

impl Database {
    /// Makes a pool of `size` connections; they are opened as they are needed.
    ///
    /// # Errors
    /// The pool or its TLS roots cannot be set up.
    pub fn new(settings: &Settings, size: usize) -> Result<Self, Unavailable> {
        let timeout = settings.database.timeout;
        match settings.database() {
            DatabaseUrl::Sqlite(path) => {
                let pragmas = sqlite_pragmas(timeout, settings.database.durability);
                let pool_of = |size: usize| {
                    let pragmas = pragmas.clone();
                    let config = config(move |url: String| {
                        let pragmas = pragmas.clone();
                        async move {
                            let mut conn = EmbeddedConnection::establish(&url).await?;
                            let set = conn.batch_execute(&pragmas).await;
                            set.map_err(ConnectionError::CouldntSetupConfiguration)?;
                            Ok(conn)
                        }
                    });
                    pool(AsyncDieselConnectionManager::new_with_config(path.to_string_lossy(), config), size, timeout)
                };
                Ok(Self::Sqlite { readers: pool_of(size)?, writer: pool_of(1)?, timeout })
            }
            DatabaseUrl::Postgres(url) => {
                let tls = postgres_tls::client_config(settings, url.expose()).map_err(Unavailable::database)?;
                let tls = tls.map(MakeRustlsConnect::new);
                let setup = sql::postgres_setup(timeout);
                let config = config(move |url: String| {
                    let (tls, setup) = (tls.clone(), setup.clone());
                    async move { connect(&url, tls, &setup, timeout).await }
                });
                let manager = AsyncDieselConnectionManager::new_with_config(url.expose(), config);
                Ok(Self::Postgres(pool(manager, size, timeout)?, timeout))
            }
        }
    }

    /// Takes a connection; waits no longer than `database.timeout`.
    ///
    /// The wait has room of its own: every operation asks for connections, and would be two KiB larger for it while it
    /// waits for something else.
    ///
    /// # Errors
    /// None is free, or none can be made.
    pub async fn check_out(&self) -> Result<Connection, Unavailable> {
        match self {
            Self::Sqlite { readers: pool, timeout, .. } => Self::lend(pool, *timeout).await,
            Self::Postgres(pool, timeout) => {
                let lent =
                    Box::pin(pool.get()).await.map(|conn| Connection::Postgres(Lease::new(conn, *timeout, close)));
                lent.map_err(Unavailable::database)
            }
        }
    }

    /// Takes a connection for what writes, after those who asked for one before.
    ///
    /// # Errors
    /// As [`Self::check_out`].
    pub async fn check_out_to_write(&self) -> Result<Connection, Unavailable> {
        match self {
            Self::Sqlite { writer, timeout, .. } => Self::lend(writer, *timeout).await,
            Self::Postgres(..) => self.check_out().await,
        }
    }

    async fn lend(pool: &Pool<EmbeddedConnection>, timeout: Duration) -> Result<Connection, Unavailable> {
        let lent =
            Box::pin(pool.get()).await.map(|conn| Connection::Sqlite(Lease::new(conn, timeout, close_when_idle)));
        lent.map_err(Unavailable::database)
    }
}

// A server notices that the connection is closed.
fn close<M: Manager>(object: Object<M>) {
    drop(Object::take(object));
}

// A file's connection is still at work on its thread: it must not make room for another before.
fn close_when_idle(object: Object<AsyncDieselConnectionManager<EmbeddedConnection>>) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return close(object) };
    runtime.spawn(async move {
        let mut conn = object;
        let _ = conn.spawn_blocking(|_| Ok(())).await;
        close(conn);
    });
}

impl Lease<AsyncDieselConnectionManager<EmbeddedConnection>> {
    /// Does `work` on the connection's thread, as one statement.
    ///
    /// # Errors
    /// The database is away, or did not answer in time.
    pub async fn on_its_thread<A: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut SqliteConnection) -> QueryResult<A> + Send + 'static,
    ) -> Result<A, Unavailable> {
        let limit = self.begin_statement();
        let conn = &mut **self;
        let answer = timeout(limit, conn.spawn_blocking(work)).await;
        self.end_statement(answer)
    }

    /// [`one_commit::in_one_commit`] on this connection, as one statement.
    ///
    /// # Errors
    /// The database is away, or did not answer in time; then nothing is known to be written.
    pub async fn in_one_commit<Q: Send + Sync + 'static, A: Send + 'static>(
        &mut self,
        all: &[Arc<Q>],
        write: impl Fn(&Q, &mut SqliteConnection) -> QueryResult<A> + Send + 'static,
    ) -> Result<Vec<Result<A, Unavailable>>, Unavailable> {
        let all = all.to_vec();
        let answers =
            self.on_its_thread(move |conn| one_commit::in_one_commit(conn, &all, |one, conn| write(one, conn))).await?;
        Ok(answers.into_iter().map(|answer| self.end_statement(Ok(answer))).collect())
    }

    /// Reads for each of `all`, in one trip to the connection's thread and from one state of the file. What cannot be read
    /// as what it is to be is one asker's matter.
    ///
    /// # Errors
    /// The database is away, or did not answer in time.
    pub async fn in_one_reading<Q: Send + Sync + 'static, A: Send + 'static>(
        &mut self,
        all: &[Arc<Q>],
        read: impl Fn(&Q, &mut SqliteConnection) -> QueryResult<A> + Send + 'static,
    ) -> Result<Vec<Result<A, Unavailable>>, Unavailable> {
        let all = all.to_vec();
        let read = move |one: &Arc<Q>, conn: &mut SqliteConnection| match read(one, conn) {
            Err(error @ Error::DeserializationError(_)) => Ok(Err(Unavailable::database(error))),
            answer => answer.map(Ok),
        };
        self.on_its_thread(move |conn| match &*all {
            // A statement by itself sees one state in any case.
            [one] => read(one, conn).map(|answer| vec![answer]),
            _ => diesel::Connection::transaction(conn, |conn| all.iter().map(|one| read(one, conn)).collect()),
        })
        .await
    }
}

fn config<C, F>(setup: impl Fn(String) -> F + Send + Sync + 'static) -> ManagerConfig<C>
where
    C: diesel_async::AsyncConnection + 'static,
    F: Future<Output = ConnectionResult<C>> + Send + 'static,
{
    let mut config = ManagerConfig::default();
    // A round trip a checkout is saved: a closed connection says so, a spoilt one was not pooled.
    config.recycling_method = RecyclingMethod::Fast;
    config.custom_setup = Box::new(move |url| Box::pin(setup(url.to_owned())));
    config
}

fn pool<M: Manager + 'static>(
    manager: M,
    size: usize,
    timeout: Duration,
) -> Result<deadpool::managed::Pool<M>, Unavailable> {
    let timeouts = Timeouts { wait: Some(timeout), create: Some(timeout), recycle: Some(timeout) };
    let builder = deadpool::managed::Pool::builder(manager)
        .max_size(size)
        // The one that came back last: its server's process is still warm, and those that are not needed grow old.
        .queue_mode(QueueMode::Lifo);
    builder.timeouts(timeouts).runtime(Runtime::Tokio1).build().map_err(Unavailable::database)
}

async fn connect(
    url: &str,
    tls: Option<MakeRustlsConnect>,
    setup: &str,
    timeout: Duration,
) -> ConnectionResult<AsyncPgConnection> {
    let bad = |error: tokio_postgres::Error| ConnectionError::BadConnection(reason(&error));
    let mut config: tokio_postgres::Config = postgres_tls::without_tls_parameters(url).parse().map_err(bad)?;
    config.connect_timeout(timeout).tcp_user_timeout(timeout);
    let mut conn = match tls {
        Some(tls) => {
            config.ssl_mode(tokio_postgres::config::SslMode::Require);
            let (client, connection) = config.connect(tls).await.map_err(bad)?;
            AsyncPgConnection::try_from_client_and_connection(client, connection).await?
        }
        None => {
            config.ssl_mode(tokio_postgres::config::SslMode::Disable);
            let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(bad)?;
            AsyncPgConnection::try_from_client_and_connection(client, connection).await?
        }
    };
    conn.batch_execute(setup).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

// tokio-postgres' own `Display` leaves out the cause.
fn reason(error: &tokio_postgres::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

impl Connection {
    fn in_unit(&mut self) -> &mut bool {
        match self {
            Self::Sqlite(conn) => &mut conn.in_unit,
            Self::Postgres(conn) => &mut conn.in_unit,
        }
    }

    fn has_failed(&mut self) -> &mut bool {
        match self {
            Self::Sqlite(conn) => &mut conn.has_failed,
            Self::Postgres(conn) => &mut conn.has_failed,
        }
    }

    /// Begins a unit of work. Dropped before it has ended, it is undone.
    ///
    /// # Errors
    /// The database is away.
    pub async fn begin(&mut self) -> Result<(), Unavailable> {
        *self.in_unit() = true;
        *self.has_failed() = false;
        match self {
            // A unit that will write says so at once, and never has to be told to start over.
            Self::Sqlite(conn) => {
                conn.on_its_thread(|conn| {
                    diesel::connection::AnsiTransactionManager::begin_transaction_sql(conn, "BEGIN IMMEDIATE")
                })
                .await
            }
            Self::Postgres(conn) => {
                let limit = conn.begin_statement();
                let begun = timeout(limit, AnsiTransactionManager::begin_transaction(&mut **conn)).await;
                conn.end_statement(begun)
            }
        }
    }

    /// Ends a unit of work: keeps it, or undoes it.
    ///
    /// # Errors
    /// The database is away, refuses to commit, or a statement of the unit failed: then nothing is kept.
    pub async fn end(&mut self, keep: bool) -> Result<(), Unavailable> {
        // PostgreSQL answers the commit of a unit in which a statement failed with a silent rollback.
        let keeps = keep && !*self.has_failed();
        let ended = match self {
            Self::Sqlite(conn) => {
                let limit = conn.begin_statement();
                let inner = &mut **conn;
                let ended = timeout(limit, async {
                    match keeps {
                        true => SqliteTransactions::commit_transaction(inner).await,
                        false => SqliteTransactions::rollback_transaction(inner).await,
                    }
                });
                let ended = ended.await;
                conn.end_statement(ended)
            }
            Self::Postgres(conn) => {
                let limit = conn.begin_statement();
                let inner = &mut **conn;
                let ended = timeout(limit, async {
                    match keeps {
                        true => AnsiTransactionManager::commit_transaction(inner).await,
                        false => AnsiTransactionManager::rollback_transaction(inner).await,
                    }
                });
                let ended = ended.await;
                conn.end_statement(ended)
            }
        };
        *self.in_unit() = ended.is_err();
        ended?;
        if keep && !keeps { Err(Unavailable::database("a statement of the unit of work failed")) } else { Ok(()) }
    }
}
