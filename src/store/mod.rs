//! What both engines' stores share: schema, rows, migrations, Redis scripts and session settings.

pub mod ahead;
pub mod bundle;
pub mod claim;
pub mod living;
pub mod migrations;
pub mod one_commit;
pub mod postgres_tls;
pub mod prepared;
pub mod redis;
pub mod rotation;
pub mod rows;
pub mod schema;
pub mod sought;
pub mod sql;
pub mod types;

use diesel::{Connection as _, SqliteConnection, connection::SimpleConnection as _};

use crate::{
    services::error::Unavailable,
    settings::{DatabaseUrl, Durability, Settings},
};

/// The pragmas of every SQLite connection. The journal is WAL; with `full`, each commit reaches
/// the disk before it is confirmed, with `normal` a loss of power may take the last commits along
/// (a crash of the process never does).
pub fn sqlite_pragmas(busy_timeout: std::time::Duration, durability: Durability) -> String {
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    format!(
        "PRAGMA busy_timeout = {};
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = {synchronous};
         PRAGMA foreign_keys = ON;
         PRAGMA cache_size = -1024;",
        busy_timeout.as_millis()
    )
}

/// Opens the embedded database beside the pools; `None` where a server is the database. As long as it
/// is open, SQLite keeps the journal and its index: if the pools closed all their connections, as they
/// do with those that met a full disk, neither could be made again, and nothing could even be read.
///
/// # Errors
/// The file cannot be read.
pub fn hold_open(settings: &Settings) -> Result<Option<SqliteConnection>, Unavailable> {
    let DatabaseUrl::Sqlite(path) = settings.database() else { return Ok(None) };
    let mut conn = SqliteConnection::establish(&path.to_string_lossy()).map_err(Unavailable::database)?;
    let pragmas = sqlite_pragmas(settings.database.timeout, settings.database.durability);
    conn.batch_execute(&pragmas).map_err(Unavailable::database)?;
    // Only a read opens the index.
    conn.batch_execute("SELECT count(*) FROM sqlite_master").map_err(Unavailable::database)?;
    Ok(Some(conn))
}
