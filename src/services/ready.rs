//! Whether this instance can serve: `GET /health/ready`.

use serde::Serialize;

use super::{
    model::UserId,
    ports::{Ephemeral as _, Ports, Users as _},
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

// A look-up by primary key: the cheapest question that needs the schema.
const NOBODY: UserId = UserId(uuid::Uuid::nil());

/// Asks the database and the store.
pub async fn ready<P: Ports>(ports: &P) -> Readiness {
    let database = async { ports.store().await?.user(NOBODY).await };
    let word = |works: bool| if works { "ok" } else { "unavailable" };
    Readiness { database: word(database.await.is_ok()), store: word(ports.ephemeral().ping().await.is_ok()) }
}
