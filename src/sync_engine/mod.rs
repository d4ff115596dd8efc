//! Version 1: one thread per request, and every call waits for its answer.

mod breaches;
mod database;
mod ephemeral;
mod extract;
mod google;
mod handlers;
mod hasher;
mod mailer;
mod ports;
mod pump;
mod renewer;
mod routes;
pub mod server;
mod session_cache;
mod sms;
mod store;
mod together;
mod web;

pub use breaches::BreachList;
pub use database::Database;
pub use ephemeral::EphemeralStore;
pub use google::GoogleKeys;
pub use handlers::handle;
pub use hasher::Hasher;
pub use ports::BlockingPorts;
pub use pump::Pump;
pub use renewer::Renewer;
pub use routes::start;
pub use session_cache::SessionCache;
pub use together::Together;
