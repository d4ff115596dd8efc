//! What the gateway does, written once for both engines: no threads, sockets, databases or
//! runtimes here, only functions over [`ports`].

pub mod audit;
pub mod authenticate;
pub mod codes;
pub mod create_user;
pub mod deliver;
pub mod error;
pub mod events;
pub mod fields;
pub mod identifier;
pub mod keys;
pub mod letters;
pub mod limits;
pub mod lockout;
pub mod login;
pub mod logout;
#[cfg(test)]
pub mod memory;
pub mod model;
pub mod outbox;
pub mod passwords;
pub mod policy;
pub mod ports;
pub mod problem;
pub mod profile;
pub mod ready;
pub mod refresh;
pub mod register;
pub mod registration;
pub mod resend_otp;
pub mod run;
pub mod session;
pub mod tokens;
pub mod verify_otp;
pub mod verify_token;
