//! Pools of blocking connections, and units of work on them.

use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use diesel::{
    ConnectionError, PgConnection, SqliteConnection,
    connection::{AnsiTransactionManager, TransactionManager},
    r2d2::R2D2Connection,
    result::QueryResult,
};
use r2d2::{ManageConnection, Pool, PooledConnection};

use crate::{
    services::error::Unavailable,
    settings::{DatabaseUrl, Settings},
    store::{one_commit, sql, sqlite_pragmas},
};

/// A connection and what its pool must know of it.
pub struct Pooled<C> {
    conn: C,
    is_spoilt: bool,
    in_unit: bool,
    has_failed: bool,
    used_at: Instant,
}

impl<C> Pooled<C> {
    /// Passes a statement's answer on; after one that may have lost its server, the connection is
    /// closed instead of pooled.
    pub fn note<T>(&mut self, answer: QueryResult<T>) -> Result<T, Unavailable> {
        answer.map_err(|error| {
            self.is_spoilt |= !sql::spares_connection(&error);
            self.has_failed = true;
            Unavailable::database(error)
        })
    }
}

impl Pooled<SqliteConnection> {
    /// [`one_commit::in_one_commit`] on this connection.
    ///
    /// # Errors
    /// The database is away, or did not answer in time; then nothing is known to be written.
    pub fn in_one_commit<Q, A>(
        &mut self,
        all: &[Q],
        write: impl Fn(&Q, &mut SqliteConnection) -> QueryResult<A>,
    ) -> Result<Vec<Result<A, Unavailable>>, Unavailable> {
        let answers = one_commit::in_one_commit(&mut self.conn, all, write);
        self.note(answers).map(|answers| answers.into_iter().map(|answer| self.note(answer)).collect())
    }
}

impl<C> Deref for Pooled<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.conn
    }
}

impl<C> DerefMut for Pooled<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.conn
    }
}

/// Makes connections for a pool.
pub struct Manager<C> {
    url: String,
    setup: String,
    connection: PhantomData<fn() -> C>,
}

// A connection that was used a moment ago need not be asked whether it is alive.
const FRESH: Duration = Duration::from_secs(1);

impl<C: R2D2Connection + Send + 'static> ManageConnection for Manager<C> {
    type Connection = Pooled<C>;
    type Error = diesel::r2d2::Error;

    fn connect(&self) -> Result<Pooled<C>, Self::Error> {
        let mut conn = C::establish(&self.url).map_err(diesel::r2d2::Error::ConnectionError)?;
        let setup = conn.batch_execute(&self.setup).map_err(ConnectionError::CouldntSetupConfiguration);
        setup.map_err(diesel::r2d2::Error::ConnectionError)?;
        Ok(Pooled { conn, is_spoilt: false, in_unit: false, has_failed: false, used_at: Instant::now() })
    }

    fn is_valid(&self, conn: &mut Pooled<C>) -> Result<(), Self::Error> {
        if conn.used_at.elapsed() < FRESH { Ok(()) } else { conn.conn.ping().map_err(diesel::r2d2::Error::QueryError) }
    }

    // Asked when a connection comes back. One whose unit of work was not ended, after a panic for
    // instance, is closed: the database undoes the work.
    fn has_broken(&self, conn: &mut Pooled<C>) -> bool {
        conn.used_at = Instant::now();
        conn.is_spoilt || conn.in_unit || conn.conn.is_broken()
    }
}

/// The durable database, as a pool.
#[derive(Clone)]
pub enum Database {
    /// A file.
    Sqlite(Pool<Manager<SqliteConnection>>),
    /// A server.
    Postgres(Pool<Manager<PgConnection>>),
}

/// A connection on loan from its pool.
pub enum Connection {
    /// To the file.
    Sqlite(PooledConnection<Manager<SqliteConnection>>),
    /// To the server.
    Postgres(PooledConnection<Manager<PgConnection>>),
}

impl Database {
    /// Makes a pool; connections are opened as they are needed.
    pub fn new(settings: &Settings) -> Self {
        let (size, timeout) = (u32::from(settings.database.pool), settings.database.timeout);
        match settings.database() {
            DatabaseUrl::Sqlite(path) => {
                let url = path.to_string_lossy().into_owned();
                let setup = sqlite_pragmas(timeout, settings.database.durability);
                Self::Sqlite(pool(Manager { url, setup, connection: PhantomData }, size, timeout))
            }
            DatabaseUrl::Postgres(url) => {
                let url = with_deadlines(url.expose(), timeout);
                let setup = sql::postgres_setup(timeout);
                Self::Postgres(pool(Manager { url, setup, connection: PhantomData }, size, timeout))
            }
        }
    }

    /// Takes a connection; waits no longer than `database.timeout`.
    ///
    /// # Errors
    /// None is free, or none can be made.
    pub fn check_out(&self) -> Result<Connection, Unavailable> {
        match self {
            Self::Sqlite(pool) => pool.get().map(Connection::Sqlite),
            Self::Postgres(pool) => pool.get().map(Connection::Postgres),
        }
        .map_err(Unavailable::database)
    }
}

fn pool<M: ManageConnection>(manager: M, size: u32, timeout: Duration) -> Pool<M> {
    Pool::builder()
        .max_size(size)
        .min_idle(Some(0))
        .idle_timeout(Some(Duration::from_secs(300)))
        .connection_timeout(timeout)
        .error_handler(Box::new(r2d2::NopErrorHandler))
        .build_unchecked(manager)
}

// libpq would wait for a silent server for ever.
fn with_deadlines(url: &str, timeout: Duration) -> String {
    let separator = if url.contains('?') { '&' } else { '?' };
    let (seconds, millis) = (timeout.as_secs().max(2), timeout.as_millis());
    format!("{url}{separator}connect_timeout={seconds}&tcp_user_timeout={millis}")
}

impl Connection {
    /// Begins a unit of work.
    ///
    /// # Errors
    /// The database is away.
    pub fn begin(&mut self) -> Result<(), Unavailable> {
        match self {
            // A unit that will write says so at once, and never has to be told to start over.
            Self::Sqlite(conn) => {
                (conn.in_unit, conn.has_failed) = (true, false);
                let begun = AnsiTransactionManager::begin_transaction_sql(&mut conn.conn, "BEGIN IMMEDIATE");
                conn.note(begun)
            }
            Self::Postgres(conn) => {
                (conn.in_unit, conn.has_failed) = (true, false);
                let begun = AnsiTransactionManager::begin_transaction(&mut conn.conn);
                conn.note(begun)
            }
        }
    }

    /// Ends a unit of work: keeps it, or undoes it.
    ///
    /// # Errors
    /// The database is away, refuses to commit, or a statement of the unit failed: then nothing is kept.
    pub fn end(&mut self, keep: bool) -> Result<(), Unavailable> {
        match self {
            Self::Sqlite(conn) => conn.end(keep),
            Self::Postgres(conn) => conn.end(keep),
        }
    }
}

impl<C> Pooled<C>
where
    C: diesel::Connection<TransactionManager = AnsiTransactionManager>,
{
    fn end(&mut self, keep: bool) -> Result<(), Unavailable> {
        // PostgreSQL answers the commit of a unit in which a statement failed with a silent rollback.
        let keeps = keep && !self.has_failed;
        let ended = if keeps {
            AnsiTransactionManager::commit_transaction(&mut self.conn)
        } else {
            AnsiTransactionManager::rollback_transaction(&mut self.conn)
        };
        self.in_unit = ended.is_err();
        self.note(ended)?;
        if keep && !keeps { Err(Unavailable::database("a statement of the unit of work failed")) } else { Ok(()) }
    }
}
