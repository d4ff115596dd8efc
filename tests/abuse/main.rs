//! The abuse list of docs/ABUSE.md: each case is a test whose name begins with its number. By default they run on both
//! engines, embedded and on PostgreSQL + Redis; an operator may point them at an installation of their own.

#[path = "../support/mod.rs"]
mod support;

mod actors;
mod codes;
mod google;
mod imported;
mod input;
mod lifecycle;
mod lockout;
mod overload;
mod reset;
mod rights;
mod second_factor;
mod sessions;
mod statistics;
mod target;
mod timing;

/// Of no account, and strong enough for one.
const WRONG: &str = "no-such-Marmalade-94-harbour";

/// Neither right nor the same as the step before.
fn other_code(code: &str, step: u32) -> String {
    let number: u32 = code.parse().expect("six digits");
    format!("{:06}", (number + step) % 1_000_000)
}
