//! What the integration tests share: servers of their own (PostgreSQL, Redis, the gateway), a plain HTTP client, and
//! stories that run in every world and are compared answer by answer.
#![expect(dead_code, unused_imports, reason = "each test binary uses its own part")]

mod answers;
mod authenticator;
mod document;
mod gateway;
mod google;
mod http;
mod letters;
mod postgres;
mod processes;
mod redis;
mod tokens;
mod worlds;

pub use answers::{Exchange, first_difference};
pub use authenticator::{Authenticator, Guarded, asked, first_step, guard, recovery_codes_of, second_step};
pub use document::{document, judge};
pub use gateway::{Backend, Gateway, Options, Outcome, Refusal, run_alone};
pub use google::{CLIENT_ID, Google, GoogleKey, IdToken, Keys, google, now};
pub use http::{Answer, Client, Request};
pub use letters::{Mail, Sms};
pub use postgres::Postgres;
pub use processes::{Process, Program, eventually, fresh_directory, pause, random_bytes};
pub use redis::Redis;
pub use tokens::{Claims, claims_of, signed};
pub use worlds::{Account, Engine, Side, Story, compare_in, for_each_backend, for_each_world, gateway_for, unique};

/// The password of every account that a story makes for itself.
pub const PASSWORD: &str = "violet-anchor-72-meadow";
