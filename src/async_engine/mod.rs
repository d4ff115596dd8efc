//! Version 2: a few threads, many requests, and whoever must wait steps aside.

mod breaches;
mod database;
mod ephemeral;
mod extract;
mod google;
mod handlers;
mod hasher;
mod lease;
mod mailer;
mod ports;
mod pump;
mod rotations;
mod routes;
mod session_cache;
mod sms;
mod sqlite_thread;
mod store;
mod web;

pub use database::Database;
pub use ephemeral::EphemeralStore;
pub use google::GoogleKeys;
pub use handlers::handle;
pub use hasher::Hasher;
pub use ports::AsyncPorts;
pub use rotations::Rotations;
pub use routes::{Engine, Shared, start};
pub use session_cache::SessionCache;
