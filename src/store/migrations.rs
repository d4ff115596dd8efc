//! Brings a database to this binary's schema, or refuses it by name.

use std::{error::Error, fs, path::Path};

use diesel::{
    Connection, PgConnection, RunQueryDsl as _, SqliteConnection,
    connection::SimpleConnection as _,
    migration::{Migration, MigrationConnection, MigrationSource},
    prelude::*,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::schema::installation;
use crate::{
    services::keys::Keys,
    settings::{DatabaseUrl, Settings},
};

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");

// Any number will do, as long as every version of bifrons takes the same.
const ADVISORY_LOCK: i64 = 0x6269_6672_6f6e_7300;

/// How far a migration run has come.
#[derive(Debug, Clone, Copy)]
pub struct MigrationProgress<'a> {
    /// The migration that has just been applied.
    pub name: &'a str,
    /// How many are applied.
    pub done: usize,
    /// Of how many.
    pub total: usize,
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It has a migration that this binary does not know.
    #[error("the database is newer than this binary: it has migration {0}, which this binary does not know")]
    Newer(String),
    /// It lacks a migration that comes before one it has.
    #[error("the database has a gap: migration {missing} was never applied, although {applied} was")]
    Gap {
        /// The one that is missing.
        missing: String,
        /// A later one that is there.
        applied: String,
    },
    /// It is older than this binary, and not migrated at the start.
    #[error("the database lacks migration {0}: run `bifrons migrate` first")]
    Pending(String),
    /// It was made with another master secret.
    #[error("the database was made with another master secret (key {database}, configured is {configured})")]
    OtherSecret {
        /// Its key's id.
        database: String,
        /// The configured key's id.
        configured: String,
    },
}

type Failure = Box<dyn Error + Send + Sync>;
type Listener<'a> = &'a mut dyn FnMut(MigrationProgress<'_>);

const MASTER_KEY_ID: &str = "master_key_id";

// Both databases spell it alike, but diesel's traits do not say so in one bound.
macro_rules! check_secret {
    ($conn:expr, $keys:expr) => {{
        let (conn, configured) = ($conn, $keys.id());
        diesel::insert_into(installation::table)
            .values((installation::name.eq(MASTER_KEY_ID), installation::value.eq(&configured)))
            .on_conflict_do_nothing()
            .execute(conn)?;
        let database: String = installation::table.find(MASTER_KEY_ID).select(installation::value).get_result(conn)?;
        if database == configured { Ok(()) } else { Err(SchemaError::OtherSecret { database, configured }.into()) }
    }};
}
/// Applies what is pending, under a lock, and returns how many that were.
///
/// # Errors
/// The database does not answer, a migration fails, or [`SchemaError`].
pub fn migrate(settings: &Settings, progress: Listener<'_>) -> Result<usize, Failure> {
    match settings.database() {
        DatabaseUrl::Sqlite(path) => migrate_sqlite(&path, progress),
        DatabaseUrl::Postgres(url) => {
            let mut conn = locked_postgres(url.expose())?;
            apply(&mut conn, &POSTGRES, progress)
        }
    }
}

/// Makes the database ready to serve: migrates the embedded one, checks the other, and refuses
/// either when it was made with another master secret.
///
/// # Errors
/// As [`migrate`], and [`SchemaError`].
pub fn prepare(settings: &Settings, keys: &Keys) -> Result<(), Failure> {
    match settings.database() {
        DatabaseUrl::Sqlite(path) => {
            migrate_sqlite(&path, &mut |_| ())?;
            let mut conn = SqliteConnection::establish(&path.to_string_lossy())?;
            conn.batch_execute("PRAGMA busy_timeout = 10000")?;
            check_secret!(&mut conn, keys)
        }
        DatabaseUrl::Postgres(url) => {
            let mut conn = locked_postgres(url.expose())?;
            if let Some(first) = pending(&mut conn, &POSTGRES)?.first() {
                return Err(SchemaError::Pending(first.name().to_string()).into());
            }
            check_secret!(&mut conn, keys)
        }
    }
}

// Even a look at what is applied may make the table of migrations; the lock goes with the connection.
fn locked_postgres(url: &str) -> Result<PgConnection, Failure> {
    let reached = PgConnection::establish(url);
    let mut conn = reached.map_err(|error| format!("cannot reach the PostgreSQL database: {error}"))?;
    diesel::sql_query(format!("SELECT pg_advisory_lock({ADVISORY_LOCK})")).execute(&mut conn)?;
    Ok(conn)
}

fn migrate_sqlite(path: &Path, progress: Listener<'_>) -> Result<usize, Failure> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Two starts at once: the second waits here, then finds nothing left to do.
    let lock = fs::File::create(path.with_extension("migrate.lock"))?;
    lock.lock()?;
    make_private(path)?;
    let mut conn = SqliteConnection::establish(&path.to_string_lossy())?;
    conn.batch_execute("PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL;")?;
    apply(&mut conn, &SQLITE, progress)
}

// The file holds personal data; SQLite gives its journal files the same mode.
fn make_private(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    Ok(())
}

fn apply<C>(conn: &mut C, source: &EmbeddedMigrations, progress: Listener<'_>) -> Result<usize, Failure>
where
    C: MigrationHarness<C::Backend> + MigrationConnection,
{
    let pending = pending(conn, source)?;
    let total = pending.len();
    for (done, migration) in pending.iter().enumerate() {
        conn.run_migration(migration)?;
        progress(MigrationProgress { name: &migration.name().to_string(), done: done + 1, total });
    }
    Ok(total)
}

type Boxed<C> = Box<dyn Migration<<C as Connection>::Backend>>;

fn pending<C>(conn: &mut C, source: &EmbeddedMigrations) -> Result<Vec<Boxed<C>>, Failure>
where
    C: MigrationHarness<C::Backend> + MigrationConnection,
{
    conn.setup()?;
    let known = MigrationSource::<C::Backend>::migrations(source)?;
    let names: Vec<(String, String)> =
        known.iter().map(|one| (one.name().version().to_string(), one.name().to_string())).collect();
    let applied: Vec<String> = conn.applied_migrations()?.iter().map(ToString::to_string).collect();
    check(&names, &applied)?;
    let is_pending = |one: &Boxed<C>| !applied.contains(&one.name().version().to_string());
    let mut pending: Vec<_> = known.into_iter().filter(is_pending).collect();
    pending.sort_by_key(|one| one.name().version().to_string());
    Ok(pending)
}

fn check(known: &[(String, String)], applied: &[String]) -> Result<(), SchemaError> {
    if let Some(newer) = applied.iter().find(|version| known.iter().all(|(known, _)| known != *version)) {
        return Err(SchemaError::Newer(newer.clone()));
    }
    let missing = known.iter().filter(|(version, _)| !applied.contains(version));
    for (version, name) in missing {
        if let Some(later) = applied.iter().find(|applied| *applied > version) {
            return Err(SchemaError::Gap { missing: name.clone(), applied: later.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(versions: &[&str]) -> Vec<(String, String)> {
        versions.iter().map(|version| ((*version).to_owned(), format!("{version}_x"))).collect()
    }

    fn applied(versions: &[&str]) -> Vec<String> {
        versions.iter().map(|version| (*version).to_owned()).collect()
    }

    #[test]
    fn a_database_older_or_as_old_is_taken() {
        assert!(check(&names(&["0001", "0002"]), &applied(&[])).is_ok());
        assert!(check(&names(&["0001", "0002"]), &applied(&["0001"])).is_ok());
        assert!(check(&names(&["0001", "0002"]), &applied(&["0002", "0001"])).is_ok());
    }

    #[test]
    fn a_newer_database_and_one_with_a_gap_are_refused_by_name() {
        let newer = check(&names(&["0001"]), &applied(&["0001", "0009"])).unwrap_err();
        assert!(newer.to_string().contains("0009"));
        let gap = check(&names(&["0001", "0002", "0003"]), &applied(&["0001", "0003"])).unwrap_err();
        assert!(gap.to_string().contains("0002_x") && gap.to_string().contains("0003"));
    }

    #[derive(diesel::QueryableByName)]
    struct Step {
        #[diesel(sql_type = diesel::sql_types::Text)]
        opcode: String,
    }

    // A list in a `CHECK` is a table that SQLite makes for each row; without one the words are checked all the same.
    #[test]
    fn sqlite_checks_words_without_a_table_for_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bifrons.db");
        migrate_sqlite(&path, &mut |_| ()).unwrap();
        let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        let user = |role: &str, provider: &str| {
            format!(
                "INSERT INTO users (id, role, auth_provider, is_verified, is_active, is_contested, first_name, last_name,
                     bio, avatar, country, state, city, address, pid, created_at, updated_at)
                 VALUES (randomblob(16), '{role}', '{provider}', 0, 1, 0, '', '', '', '', '', '', '', '',
                     hex(randomblob(8)), 0, 0)"
            )
        };
        let entry = |channel: &str, state: &str| {
            format!(
                "INSERT INTO outbox (id, channel, kind, payload, state, attempts, created_at, available_at, last_error)
                 VALUES (randomblob(16), '{channel}', '', x'', '{state}', 0, 0, 0, '')"
            )
        };
        for insert in [user("client", "email"), entry("mail", "pending")] {
            let steps: Vec<Step> = diesel::sql_query(format!("EXPLAIN {insert}")).load(&mut conn).unwrap();
            let made = steps.iter().filter(|step| step.opcode == "OpenEphemeral").count();
            assert!(steps.len() > 10 && made == 0, "{made}: {insert}");
        }
        let roles = ["client", "vendor", "staff", "admin"].map(|role| user(role, "google"));
        let providers = ["email", "phone"].map(|provider| user("client", provider));
        let channels = ["mail", "sms", "event"].map(|channel| entry(channel, "dead"));
        let states = ["pending", "sent", "published"].map(|state| entry("mail", state));
        for insert in [&roles[..], &providers, &channels, &states].concat() {
            assert_eq!(diesel::sql_query(insert).execute(&mut conn).unwrap(), 1);
        }
        for insert in [user("root", "email"), user("client", "fax"), entry("fax", "dead"), entry("mail", "lost")] {
            let refused = diesel::sql_query(&insert).execute(&mut conn).unwrap_err();
            assert!(refused.to_string().contains("CHECK"), "{refused}: {insert}");
        }
    }
}
