//! Both engines under load, in turn, beside the limits that no server can beat: `make bench`, or
//! `cargo bench --bench engines -- --help`.

mod conditions;
mod cpu;
mod driver;
mod extras;
mod gateway;
mod limits;
mod measure;
mod options;
mod page;
mod plot;
#[path = "../../tests/support/postgres.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod postgres;
#[path = "../../tests/support/processes.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod processes;
#[path = "../../tests/support/redis.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod redis_server;
mod report;
mod run;
mod servers;
mod targets;
mod world;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use bifrons::allocator;
use clap::Parser as _;

use options::Options;

fn main() -> ExitCode {
    // The bare hash is made in the same pages as the gateway's.
    if let Err(error) = allocator::tune() {
        let _ = writeln!(io::stderr(), "warning: limits are measured with the allocator as it is: {error}");
    }
    let options = Options::parse();
    let ended = match (options.serve_bare, options.at) {
        (Some(bare), Some(address)) => limits::serve_bare(bare, address),
        _ => run::run(&options).map(|()| ExitCode::SUCCESS),
    };
    ended.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "error: {error}");
        ExitCode::FAILURE
    })
}
