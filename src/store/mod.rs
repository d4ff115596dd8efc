//! What both engines' stores share: schema, rows, migrations, Redis scripts and session settings.

pub mod migrations;
pub mod postgres_tls;
pub mod redis;
pub mod rows;
pub mod schema;
pub mod sql;
pub mod types;

use crate::settings::Durability;

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
