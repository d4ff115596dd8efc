//! What the gateway has set out to reach on any machine, as ratios within one run.

use serde::Serialize;

use super::{
    extras::{Beside, Storm},
    limits::{judging, slots},
    measure::{Figure, real},
    report::{Cell, DISTURBED, Grid, Report, Spread, percent, short},
    run::CROWD,
};

/// A target and what was found.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    pub name: &'static str,
    pub demand: String,
    pub found: Vec<Found>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// `embedded v1`, for instance.
    pub place: String,
    pub value: String,
    pub is_met: bool,
}

impl Target {
    fn new(name: &'static str, demand: impl Into<String>) -> Self {
        Self { name, demand: demand.into(), found: Vec::new() }
    }

    fn find(&mut self, place: String, value: String, is_met: bool) {
        self.found.push(Found { place, value, is_met });
    }

    /// One throughput beside another.
    fn share(&mut self, place: String, of: &Cell, to: &Cell, least: f64) {
        if let Some(share) = Spread::ratio(of, to) {
            let remark = if of.others.max(to.others) > DISTURBED { ", disturbed" } else { "" };
            self.find(place, format!("{}{remark}", percent(share)), share.median >= least);
        }
    }

    /// `None` when nothing was measured for it.
    pub fn is_met(&self) -> Option<bool> {
        (!self.found.is_empty()).then(|| self.found.iter().all(|found| found.is_met))
    }
}

pub fn judge(grid: &Grid<'_>, report: &Report) -> Vec<Target> {
    let Report { rest, peaks, figures, beside, storms, .. } = report;
    let mut targets = vec![
        hashing(grid),
        beyond_the_hash(grid),
        refresh(grid),
        token_check(grid, "verify", "Token verification beside a bare actix handler that checks a token", 0.70),
        token_check(grid, "me", "The own account beside that handler", 0.40),
        engines(grid),
        crowd(figures),
        at_rest(rest),
        under_load(figures),
        peak(peaks),
    ];
    targets.extend(silent(beside));
    targets.push(slow(beside));
    targets.extend(storm(storms));
    targets
}

fn hashing(grid: &Grid<'_>) -> Target {
    let mut target = Target::new("Sign-in and sign-up beside the bare hash", "at least 92 % of its rate");
    for scenario in ["login", "register"] {
        for (place, of, limit) in grid.beside(scenario, "hash") {
            target.share(format!("{scenario} {place}"), of, limit, 0.92);
        }
    }
    target
}

fn beyond_the_hash(grid: &Grid<'_>) -> Target {
    let mut target = Target::new("Processor time beyond the hash", "at most 0.6 ms for a sign-in or sign-up");
    // The threads that hash judge new passwords, too.
    for (scenario, judging) in [("login", 0.0), ("register", judging())] {
        for (place, of, _) in grid.beside(scenario, "hash") {
            let beyond = of.cpu.server - of.cpu.hashing + judging;
            target.find(format!("{scenario} {place}"), format!("{beyond:.2} ms"), beyond <= 0.6);
        }
    }
    target
}

fn refresh(grid: &Grid<'_>) -> Target {
    let mut target = Target::new(
        "Rotation on PostgreSQL beside its one statement by 16 clients",
        "at least 60 % of its rate, each commit on the disk",
    );
    for (place, of, limit) in grid.beside("refresh", "one statement") {
        if place.starts_with("postgres") {
            target.share(place, of, limit, 0.60);
        }
    }
    target
}

fn token_check(grid: &Grid<'_>, scenario: &str, name: &'static str, least: f64) -> Target {
    let mut target = Target::new(name, format!("v2 at least {:.0} % of its rate", least * 100.0));
    for (place, of, limit) in grid.beside(scenario, "actix, token checked") {
        if place.contains("v2") {
            target.share(place, of, limit, least);
        }
    }
    target
}

fn engines(grid: &Grid<'_>) -> Target {
    let mut target = Target::new("v1 beside v2", "at least 60 % of its rate");
    for (backend, scenario, v1, v2) in grid.pairs() {
        target.share(format!("{scenario} {backend}"), v1, v2, 0.60);
    }
    target
}

fn crowd(figures: &[Figure]) -> Target {
    let mut target =
        Target::new("1000 connections", "no errors, and 99 % of the answers within connections ÷ throughput × 1.5");
    let of_crowds = |figure: &&Figure| figure.connections >= CROWD && figure.arrivals.is_none();
    for figure in figures.iter().filter(of_crowds).filter(|figure| figure.subject.starts_with('v')) {
        let (allowed, failed) = (allowed(figure), figure.failed());
        // The same driver, machine and moment: what no handler keeps to there is not the gateway's.
        let is_bare = |other: &&Figure| {
            let place =
                |figure: &Figure| (figure.backend.clone(), figure.scenario.clone(), figure.beside, figure.round);
            other.subject == "actix, token checked" && place(other) == place(figure)
        };
        let bare = figures.iter().find(is_bare).map(|bare| {
            let (late, allowed) = (short(bare.latency.p99), short(self::allowed(bare)));
            format!("; a bare handler: {late} of {allowed}")
        });
        target.find(
            format!("{} {} {}", figure.scenario, figure.backend, figure.subject),
            format!(
                "p99 {} of {} ms, {failed} errors{}",
                short(figure.latency.p99),
                short(allowed),
                bare.unwrap_or_default()
            ),
            failed == 0 && figure.latency.p99 <= allowed,
        );
    }
    target
}

/// One and a half turns of all connections, in milliseconds.
fn allowed(figure: &Figure) -> f64 {
    real(u64::try_from(figure.connections).unwrap_or_default()) / figure.per_second.max(0.001) * 1500.0
}

fn at_rest(rest: &[(String, f64)]) -> Target {
    let mut target = Target::new("Memory at rest, both engines", "less than 30 MiB");
    for (backend, resident) in rest {
        target.find(backend.clone(), format!("{resident:.1} MiB"), *resident < 30.0);
    }
    target
}

/// In MiB, and the same in words. Both engines share the slots.
fn allowed_memory() -> (f64, String) {
    let hashes = slots();
    let allowed = 64.0 + 19.0 * real(u64::try_from(hashes).unwrap_or_default());
    (allowed, format!("less than 64 MiB and 19 MiB for each of {hashes} hash slots, {allowed:.0} MiB"))
}

fn peak(peaks: &[Figure]) -> Target {
    let (allowed, demand) = allowed_memory();
    let mut target =
        Target::new("Peak of memory since the start, one engine and scenario with 1000 connections", demand);
    for figure in peaks {
        let place = format!("{} {} {}", figure.scenario, figure.backend, figure.subject);
        let (peak, failed) = (figure.memory.peak, figure.failed());
        target.find(place, format!("{peak:.0} MiB, {failed} errors"), peak < allowed && failed == 0);
    }
    target
}

fn under_load(figures: &[Figure]) -> Target {
    let (allowed, demand) = allowed_memory();
    let mut target = Target::new("Memory under load, everything on both engines one after the other", demand);
    for backend in ["embedded", "postgres"] {
        let of_engines = figures.iter().filter(|figure| figure.backend == backend && figure.subject.starts_with('v'));
        if let Some(peak) = of_engines.map(|figure| figure.memory.peak).max_by(f64::total_cmp) {
            target.find(backend.to_owned(), format!("{peak:.0} MiB"), peak < allowed);
        }
    }
    target
}

fn unharmed(beside: &Beside) -> bool {
    beside.errors == 0 && beside.per_second >= 0.8 * beside.alone_per_second
}

fn told(beside: &Beside) -> String {
    let share = 100.0 * beside.per_second / beside.alone_per_second.max(0.001);
    format!("others at {share:.0} %, {} errors", beside.errors)
}

fn silent(all: &[Beside]) -> [Target; 2] {
    [("v1", "10 000 silent connections on v1"), ("v2", "10 000 silent connections on v2")].map(|(engine, name)| {
        let mut target = Target::new(name, "less than 120 MiB on a gateway that has not hashed yet, others unharmed");
        for beside in all.iter().filter(|beside| beside.what == "idle" && beside.engine == engine) {
            let at_rest = beside.memory_at_rest.unwrap_or(beside.memory);
            let Beside { answered, waiting, closed, failed, .. } = beside;
            let fate = format!("{answered} answered, {waiting} waiting, {closed} closed, {failed} failed");
            let found = format!("{at_rest:.0} MiB, {:.0} after hashes; {fate}; {}", beside.memory, told(beside));
            target.find(
                format!("{} connections", beside.clients),
                found,
                unharmed(beside) && at_rest < 120.0 && *failed == 0 && *closed == 0,
            );
        }
        target
    })
}

fn slow(all: &[Beside]) -> Target {
    let mut target = Target::new("Clients that drip", "others unharmed");
    for beside in all.iter().filter(|beside| beside.what == "slow") {
        target.find(format!("{} on {}", beside.clients, beside.engine), told(beside), unharmed(beside));
    }
    target
}

fn storm(storms: &[Storm]) -> [Target; 4] {
    let mut accepted = Target::new("Storm of sign-ins, 10 × capacity: the accepted", "answered within 2 s");
    let mut refused = Target::new("Storm: the others", "503 with Retry-After at once, nothing else");
    let mut live = Target::new("Storm: /health/live", "within 50 ms throughout");
    let mut after = Target::new("Storm: a second later", "full speed");
    for storm in storms {
        let place = || storm.engine.to_owned();
        accepted.find(
            place(),
            format!("{} in all, slowest {:.0} ms", storm.accepted, storm.accepted_latency.max),
            storm.accepted > 0 && storm.accepted_latency.max <= 2000.0,
        );
        refused.find(
            place(),
            format!(
                "{} of {}, p99 {} ms, {} without Retry-After, {} errors",
                storm.refused,
                storm.offered,
                short(storm.refused_latency.p99),
                storm.refused_without_retry_after,
                storm.errors
            ),
            storm.refused_without_retry_after == 0 && storm.errors == 0 && storm.refused_latency.p99 < 100.0,
        );
        live.find(
            place(),
            format!("slowest {} ms of {}, {} failed", short(storm.live.max), storm.live_asked, storm.live_failed),
            storm.live_failed == 0 && storm.live.max < 50.0,
        );
        let share = storm.after_per_second / storm.capacity.max(0.001);
        after.find(place(), format!("{:.0} % of before", share * 100.0), share >= 0.9);
    }
    [accepted, refused, live, after]
}
