//! Whether this instance can serve: `GET /health/ready`.

use std::time::Duration;

use serde::Serialize;

use super::{
    model::{SessionId, UserId},
    ports::{Ephemeral as _, Living, Ports, Rotation, Sessions as _},
};

/// What works and what does not.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Readiness {
    /// `ok` or `unavailable`.
    pub database: &'static str,
    /// `ok` or `unavailable`.
    pub store: &'static str,
}

impl Readiness {
    /// Whether everything works.
    pub fn is_ready(&self) -> bool {
        self.database == "ok" && self.store == "ok"
    }
}

// A session that nobody has: the cheapest statement that needs the schema and the right to write.
const NOBODY: SessionId = SessionId(uuid::Uuid::nil());
const NOBODY_AT_ALL: UserId = UserId(uuid::Uuid::nil());
// Of a value that the store has kept for less than this, it need not be asked again.
const FRESH: Duration = Duration::from_secs(1);

/// Asks the database and the store. Either may still be read when nothing can be written any more, on
/// a full disk or a standby for instance, so both are asked to write; at most once a second there is
/// something to write, however often this is asked.
pub async fn ready<P: Ports>(ports: &P) -> Readiness {
    let now = ports.now();
    let living = Living { at: now, used_after: now, opened_after: now };
    let nobodys =
        Rotation { id: NOBODY, user: NOBODY_AT_ALL, from: 0, at: now, living, expires_at: now, absolute: None };
    let database = async { ports.store_to_write().await?.rotate_sessions(&[nobodys]).await };
    let word = |works: bool| if works { "ok" } else { "unavailable" };
    let database = word(database.await.is_ok());
    Readiness { database, store: word(ports.ephemeral().put_if_absent("ready", b"", FRESH).await.is_ok()) }
}
