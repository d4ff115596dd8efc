//! One measurement: a load against a server for a while, and what it cost whom.

use std::{collections::BTreeMap, io, time::Duration};

use serde::Serialize;

use super::{
    cpu::{self, Machine, Usage},
    driver::{self, Kind, Load, Mark, Pace, Plan, Tally},
};

/// What one measurement found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figure {
    pub backend: String,
    /// `v1`, `v2`, or the name of a limit.
    pub subject: String,
    pub scenario: String,
    pub connections: usize,
    /// The connections of the engines that a limit was measured beside.
    pub beside: usize,
    /// The arrivals in a second of an open loop.
    pub arrivals: Option<f64>,
    pub round: usize,
    pub seconds: f64,
    /// Requests of an open loop that were due within the window.
    pub offered: u64,
    pub good: u64,
    pub per_second: f64,
    pub latency: Latency,
    pub latency_by_request: BTreeMap<String, Latency>,
    pub refused: u64,
    pub refused_without_retry_after: u64,
    pub refusal_latency: Latency,
    pub errors: BTreeMap<String, u64>,
    pub reconnects: u64,
    /// Processor time for each answer, in milliseconds.
    pub cpu: Cpu,
    pub memory: Memory,
    pub threads: u64,
    /// The share of the machine that others had meanwhile.
    pub others: f64,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cpu {
    pub server: f64,
    /// What of that the threads took that do nothing but hash and judge passwords.
    pub hashing: f64,
    pub database: f64,
    pub driver: f64,
}

/// In MiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    pub resident: f64,
    pub peak: f64,
}

impl Latency {
    pub fn of(histogram: &hdrhistogram::Histogram<u64>) -> Self {
        let at = |quantile: f64| real(histogram.value_at_quantile(quantile)) / 1000.0;
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: real(histogram.max()) / 1000.0 }
    }
}

impl Figure {
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    pub fn read(&mut self, tally: &Tally) {
        self.seconds = tally.seconds;
        self.good = tally.good;
        self.offered = tally.offered;
        self.per_second = real(tally.good) / tally.seconds.max(f64::MIN_POSITIVE);
        self.latency = Latency::of(&tally.all_latencies());
        let by_request = tally.latencies.iter().map(|(kind, histogram)| (name(*kind), Latency::of(histogram)));
        self.latency_by_request = by_request.collect();
        self.refused = tally.refused;
        self.refused_without_retry_after = tally.unexplained;
        self.refusal_latency = Latency::of(&tally.refusals);
        self.errors.clone_from(&tally.errors);
        self.reconnects = tally.reconnects;
    }
}

fn name(kind: Kind) -> String {
    format!("{kind:?}").to_ascii_lowercase()
}

/// Whose processor time is read.
pub struct Watched {
    pub server: u32,
    /// And that of the databases that this process has started.
    pub with_databases: bool,
    /// Whether its peak of memory counts from its start, or else from the begin of the window.
    pub peak_since_start: bool,
}

impl Watched {
    pub const fn alone(server: u32) -> Self {
        Self { server, with_databases: false, peak_since_start: false }
    }

    fn read(&self) -> [Usage; 4] {
        [
            Usage::of([self.server]),
            // At each reading anew: there is a process for each connection, and engines open them when they need them.
            Usage::of(if self.with_databases { cpu::databases() } else { Vec::new() }),
            Usage::of([std::process::id()]),
            Usage::of_threads(self.server, "hash-"),
        ]
    }
}

/// Runs a plan and reads the meters at its begin and end.
///
/// # Errors
/// The driver has no sockets.
pub fn measure(plan: &Plan, load: &mut dyn Load, watched: &Watched, tick: &mut dyn FnMut()) -> io::Result<Figure> {
    let mut figure = Figure { connections: plan.connections, ..Figure::default() };
    if let Pace::Open { per_second } = plan.pace {
        figure.arrivals = Some(per_second);
    }
    let (mut before, mut machine, mut used) = (None, Machine::default(), [Duration::ZERO; 4]);
    let tally = driver::drive(plan, load, &mut |mark| match mark {
        Mark::Began => {
            if !watched.peak_since_start {
                cpu::forget_peak(watched.server);
            }
            before = Some(watched.read());
            machine = Machine::now();
        }
        Mark::Ended => {
            let after = watched.read();
            if let Some(before) = &before {
                for ((used, after), before) in used.iter_mut().zip(&after).zip(before) {
                    *used = after.since(before);
                }
            }
            figure.others = Machine::now().others_since(machine, used.iter().take(3).sum());
            let size = cpu::size(watched.server);
            figure.memory = Memory { resident: real(size.resident) / 1024.0, peak: real(size.peak) / 1024.0 };
            figure.threads = size.threads;
        }
        Mark::Tick => tick(),
    })?;
    figure.read(&tally);
    let answers = real(tally.good.max(1));
    let [server, database, driver, hashing] = used.map(|time| time.as_secs_f64() * 1000.0 / answers);
    figure.cpu = Cpu { server, hashing, database, driver };
    Ok(figure)
}

#[expect(clippy::as_conversions, reason = "counts and kibibytes are far below what a float holds exactly")]
pub fn real(number: u64) -> f64 {
    number as f64
}
