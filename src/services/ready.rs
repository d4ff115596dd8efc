//! Whether this instance can serve: `GET /health/ready`.

use serde::Serialize;

use super::{
    model::Channel,
    ports::{Ephemeral as _, Outbox as _, Ports},
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

/// Asks the database and the store.
pub async fn ready<P: Ports>(ports: &P) -> Readiness {
    let database = async { ports.store().await?.pending(Channel::Mail).await };
    let word = |works: bool| if works { "ok" } else { "unavailable" };
    Readiness { database: word(database.await.is_ok()), store: word(ports.ephemeral().ping().await.is_ok()) }
}
