//! An authentication gateway: one service layer behind a blocking and an async HTTP engine.

pub mod admin;
pub mod allocator;
pub mod api;
pub mod async_engine;
pub mod cli;
pub mod hashing;
pub mod mail;
pub mod parts;
pub mod places;
pub mod serve;
pub mod services;
pub mod settings;
pub mod store;
pub mod sync_engine;
pub mod system;
pub mod telemetry;
