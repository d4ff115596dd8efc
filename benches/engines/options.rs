//! What can be asked of a run.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};

use super::{
    limits::Bare,
    world::{Engine, Scenario},
};

const EXAMPLES: &str = "\
Examples, each after `cargo bench --bench engines --`:
  --quick                                          a look in three minutes
  --full                                           everything, for about an hour
  --backends embedded --scenarios login,verify --connections 64 --rounds 5
  --scenarios refresh --set database.durability=normal --json after.json";

/// Drives both engines of the gateway in turn and shows what they do, what it costs, and how near it comes to what
/// this machine can do at all.
#[derive(Debug, Parser)]
#[command(name = "engines", after_help = EXAMPLES)]
pub struct Options {
    /// Where the gateway keeps its data [default: both]
    #[arg(long, value_delimiter = ',', value_enum)]
    pub backends: Vec<Backend>,
    /// [default: all]
    #[arg(long, value_delimiter = ',', value_enum)]
    pub scenarios: Vec<Scenario>,
    /// Connections at once; the limits are measured beside 64, or else the first of these
    #[arg(long, value_delimiter = ',', value_name = "N")]
    connections: Vec<usize>,
    /// The engines to measure
    #[arg(long, value_enum, default_value = "both")]
    engine: Which,
    /// How often each is measured, in turn with the others
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of a measurement
    ///
    /// With --full sign-ins, sign-ups and the bare hash are measured for 5 s at least.
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// What passes before each measurement and does not count
    #[arg(long, value_name = "SECONDS")]
    warmup: Option<f64>,
    /// How long each measurement may wait for others to let the machine alone, and be repeated when they did not
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    patience: f64,
    /// Less of everything
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,
    /// More of everything, up to 1000 connections
    #[arg(long)]
    pub full: bool,
    /// The gateway's binary [default: the one built beside this bench]
    #[arg(long, value_name = "FILE")]
    pub gateway: Option<PathBuf>,
    /// Hands KEY=VALUE to the gateway; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// log.level of the gateway, whose log goes to a file
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log: String,
    /// Leaves the limits out
    #[arg(long)]
    pub no_limits: bool,
    /// Leaves out the slow and the silent clients and the storm
    #[arg(long)]
    pub no_extras: bool,
    /// Only these
    #[arg(long, conflicts_with = "no_extras")]
    pub only_extras: bool,
    /// Measures the peak of memory of each engine and scenario with 1000 connections too, each on a gateway of its own
    /// that was started for it; part of --full
    #[arg(long, conflicts_with = "only_extras")]
    peaks: bool,
    /// Only these
    #[arg(long, conflicts_with = "only_extras")]
    pub only_peaks: bool,
    /// Measures every scenario at a fixed rate of arrivals too
    #[arg(long)]
    open_loop: bool,
    /// Where report.html, report.json and the plots go
    #[arg(long, value_name = "DIR", default_value = "target/bench-report")]
    pub out: PathBuf,
    /// Writes every single figure to a file too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
    /// What a child process of the bench does.
    #[arg(long, hide = true, value_enum)]
    pub serve_bare: Option<Bare>,
    #[arg(long, hide = true)]
    pub at: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// SQLite and the store in it
    Embedded,
    /// PostgreSQL and Redis, started for the run
    Postgres,
}

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Postgres => "postgres",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    V1,
    V2,
    Both,
}

impl Options {
    pub fn backends(&self) -> Vec<Backend> {
        or_else(&self.backends, Backend::value_variants())
    }

    pub fn scenarios(&self) -> Vec<Scenario> {
        or_else(&self.scenarios, Scenario::value_variants())
    }

    /// All numbers of connections, the one with the limits first.
    pub fn connections(&self) -> Vec<usize> {
        let default: &[usize] = match (self.quick, self.full) {
            (true, _) => &[64],
            (_, true) => &[64, 1, 16, 256, 1000],
            _ => &[64, 1, 16, 256],
        };
        let mut all = or_else(&self.connections, default);
        all.retain(|count| *count > 0);
        all.sort_by_key(|count| *count != 64);
        all
    }

    pub fn engines(&self) -> &'static [Engine] {
        match self.engine {
            Which::V1 => &[Engine::V1],
            Which::V2 => &[Engine::V2],
            Which::Both => &[Engine::V1, Engine::V2],
        }
    }

    /// How often at the number of connections that has the limits, and at the others.
    pub fn rounds(&self) -> (usize, usize) {
        match (self.rounds, self.quick, self.full) {
            (Some(rounds), ..) => (rounds, rounds),
            (_, true, _) => (1, 1),
            (.., true) => (5, 3),
            _ => (2, 1),
        }
    }

    pub fn length(&self) -> Duration {
        let default = match (self.quick, self.full) {
            (true, _) => 1.5,
            (_, true) => 5.0,
            _ => 1.8,
        };
        seconds(self.seconds.unwrap_or(default))
    }

    /// The numbers of connections without limits are there for the course of a line: half as long will do.
    pub fn length_at(&self, connections: usize) -> Duration {
        let is_first = self.connections().first() == Some(&connections);
        if is_first || self.full || self.seconds.is_some() { self.length() } else { self.length() / 2 }
    }

    /// Where hashes are made. In groups of sixteen answers a short turn counts a group more or less.
    pub fn length_of_hashing(&self) -> Duration {
        if self.full { self.length().max(Duration::from_secs(5)) } else { self.length() }
    }

    /// Whether a scenario is measured at a fixed rate of arrivals too.
    pub fn is_open(&self, scenario: Scenario) -> bool {
        let by_default = matches!(scenario, Scenario::Login | Scenario::Verify) && !self.quick;
        self.open_loop || self.full || by_default && self.connections.is_empty()
    }

    /// Whether peaks are measured, each on a gateway of its own.
    pub fn peaks(&self) -> bool {
        self.only_peaks || self.peaks || self.full && !self.only_extras
    }

    /// Silent connections, clients that drip, and seconds of storm.
    pub fn extras(&self) -> (&'static [usize], usize, Duration) {
        match (self.quick, self.full) {
            (true, _) => (&[10_000], 100, seconds(4.0)),
            (_, true) => (&[1000, 10_000], 200, seconds(60.0)),
            _ => (&[10_000], 200, seconds(6.0)),
        }
    }

    pub fn patience(&self) -> Duration {
        seconds(self.patience)
    }

    pub fn warm_up(&self) -> Duration {
        seconds(self.warmup.unwrap_or(0.4))
    }
}

fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number).unwrap_or_default()
}

fn or_else<T: Clone>(given: &[T], default: &[T]) -> Vec<T> {
    if given.is_empty() { default.to_vec() } else { given.to_vec() }
}
