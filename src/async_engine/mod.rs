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
mod renewer;
mod routes;
mod server;
mod session_cache;
mod sms;
mod sqlite_thread;
mod store;
mod together;
mod web;

pub use database::Database;
pub use ephemeral::EphemeralStore;
pub use google::GoogleKeys;
pub use handlers::handle;
pub use hasher::Hasher;
pub use ports::AsyncPorts;
pub use routes::{Engine, Shared, start};
pub use session_cache::SessionCache;
pub use together::Together;
