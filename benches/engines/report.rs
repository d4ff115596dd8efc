//! What a run has found, for a person: a table, plots and a page.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::Serialize;

use super::{
    extras::{Beside, Storm},
    measure::{Cpu, Figure, Latency, Memory, real},
    page,
    plot::{Line, Plot},
    run::CROWD,
    targets::{self, Target},
};

/// Everything that a run has found.
#[derive(Serialize)]
pub struct Report {
    pub conditions: Vec<(String, String)>,
    pub targets: Vec<Target>,
    pub figures: Vec<Figure>,
    /// Resident memory of a gateway that has just started, in MiB, by backend.
    pub rest: Vec<(String, f64)>,
    /// Of processes that were started for one engine and scenario.
    pub peaks: Vec<Figure>,
    pub beside: Vec<Beside>,
    pub storms: Vec<Storm>,
}

/// A measurement is disturbed when others have more of the machine meanwhile.
pub const DISTURBED: f64 = 0.1;
/// From this share of others on, the report says so.
pub const SHARED: f64 = 0.05;

impl Report {
    /// The share of the machine that others had, in the middle of all measurements.
    pub fn others(&self) -> f64 {
        median(self.figures.iter().chain(&self.peaks).map(|figure| figure.others))
    }

    /// Holds what was found against the targets.
    pub fn judge(&mut self) {
        let grid = Grid::of(&self.figures);
        self.targets = targets::judge(&grid, self);
    }

    /// Writes `report.json`, `report.html` and the plots.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let plots = self.plots();
        for drawn in &plots {
            fs::write(directory.join(format!("{}.svg", drawn.name)), drawn.plot.alone())?;
        }
        fs::write(directory.join("report.json"), serde_json::to_vec_pretty(self)?)?;
        fs::write(directory.join("report.html"), page::page(self, &plots))
    }

    /// Throughput and latency against connections, of each scenario that was measured at more than one number of them.
    fn plots(&self) -> Vec<Drawn> {
        let grid = Grid::of(&self.figures);
        let mut series: BTreeMap<_, BySubject<'_>> = BTreeMap::new();
        for (row, cell) in grid.rows().filter(|(row, _)| row.arrivals == 0) {
            let across = real(u64::try_from(row.beside).unwrap_or_default());
            let subjects = series.entry((row.place, row.backend, row.scenario)).or_default();
            subjects.entry(row.subject).or_default().push((across, cell));
        }
        let mut plots = Vec::new();
        for ((_, backend, scenario), subjects) in series {
            if subjects.get("v1").or(subjects.get("v2")).is_none_or(|cells| cells.len() < 2) {
                continue;
            }
            let (mut throughput, mut latency) = (Vec::new(), Vec::new());
            for (subject, class) in [("v1", "v1"), ("v2", "v2")] {
                let Some(cells) = subjects.get(subject) else { continue };
                let rates = cells.iter().map(|(across, cell)| (*across, cell.per_second, cell.extent()));
                throughput.push(Line { name: subject.to_owned(), class, is_dashed: false, points: rates.collect() });
                let at = |value: fn(&Cell) -> f64| {
                    cells.iter().map(|(across, cell)| (*across, value(cell), (value(cell), value(cell)))).collect()
                };
                let (middle, high) = (at(|cell| cell.latency.p50), at(|cell| cell.latency.p99));
                latency.push(Line { name: format!("{subject} p50"), class, is_dashed: false, points: middle });
                latency.push(Line { name: format!("{subject} p99"), class, is_dashed: true, points: high });
            }
            for subject in subjects.keys().filter(|subject| is_limit(subject)) {
                let limit = limit_of(scenario, "v2") == Some(*subject);
                if let (true, Some((across, cell))) = (limit, subjects.get(subject).and_then(|cells| cells.first())) {
                    let points = vec![(*across, cell.per_second, cell.extent())];
                    throughput.push(Line { name: (*subject).to_owned(), class: "limit", is_dashed: true, points });
                }
            }
            // Beside a limit that is far above them, the engines would lie on the axis.
            let top = |of_limits: bool| {
                let lines = throughput.iter().filter(|line| (line.class == "limit") == of_limits);
                lines.flat_map(|line| &line.points).map(|point| point.1).fold(0.0, f64::max)
            };
            let is_far = top(true) > 4.0 * top(false);
            for (what, up, is_logarithmic, lines) in
                [("throughput", "answers/s", is_far, throughput), ("latency", "ms", true, latency)]
            {
                let title = format!("{scenario}: {what}");
                let plot = Plot { title, across: "connections", up, is_logarithmic, lines };
                plots.push(Drawn { backend: backend.to_owned(), name: format!("{backend}-{scenario}-{what}"), plot });
            }
        }
        plots
    }
}

/// By subject, its cells by connections.
type BySubject<'a> = BTreeMap<&'a str, Vec<(f64, &'a Cell)>>;

/// A plot, and where it belongs.
pub struct Drawn {
    pub backend: String,
    pub name: String,
    pub plot: Plot,
}

/// The rounds of one subject put together: medians, since a machine has bad moments.
pub struct Cell {
    pub connections: usize,
    pub per_second: f64,
    pub latency: Latency,
    pub cpu: Cpu,
    pub memory: Memory,
    pub threads: u64,
    pub errors: u64,
    pub refused: u64,
    pub reconnects: u64,
    pub others: f64,
    /// Throughput by round.
    pub rounds: BTreeMap<usize, f64>,
}

/// A median with the least and the greatest.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Some(Self { median: median(values.iter().copied()), least: *values.first()?, greatest: *values.last()? })
    }

    /// One subject's throughput as a multiple of another's, round by round.
    pub fn ratio(of: &Cell, to: &Cell) -> Option<Self> {
        Self::of(of.rounds.iter().filter_map(|(round, rate)| Some(rate / to.rounds.get(round)?)))
    }
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (middle, is_even) = (values.len() / 2, values.len().is_multiple_of(2));
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    match is_even && !values.is_empty() {
        true => f64::midpoint(at(middle - 1), at(middle)),
        false => at(middle),
    }
}

impl Cell {
    /// The least and the greatest throughput of the rounds.
    fn extent(&self) -> (f64, f64) {
        let rates = || self.rounds.values().copied();
        (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max))
    }

    pub fn of(figures: &[&Figure]) -> Self {
        let middle = |value: fn(&Figure) -> f64| median(figures.iter().map(|figure| value(figure)));
        Self {
            connections: figures.first().map_or(0, |figure| figure.connections),
            per_second: middle(|figure| figure.per_second),
            latency: Latency {
                p50: middle(|figure| figure.latency.p50),
                p95: middle(|figure| figure.latency.p95),
                p99: middle(|figure| figure.latency.p99),
                max: middle(|figure| figure.latency.max),
            },
            cpu: Cpu {
                server: middle(|figure| figure.cpu.server),
                hashing: middle(|figure| figure.cpu.hashing),
                database: middle(|figure| figure.cpu.database),
                driver: middle(|figure| figure.cpu.driver),
            },
            memory: Memory {
                resident: middle(|figure| figure.memory.resident),
                peak: figures.iter().map(|figure| figure.memory.peak).fold(0.0, f64::max),
            },
            threads: figures.iter().map(|figure| figure.threads).max().unwrap_or_default(),
            errors: figures.iter().map(|figure| figure.failed()).sum(),
            refused: figures.iter().map(|figure| figure.refused).sum(),
            reconnects: figures.iter().map(|figure| figure.reconnects).sum(),
            others: middle(|figure| figure.others),
            rounds: figures.iter().map(|figure| (figure.round, figure.per_second)).collect(),
        }
    }
}

/// A number with three significant digits.
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        0.0 => 0,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// What a cell is about. Rows are in the order in which they were measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row<'a> {
    place: usize,
    pub backend: &'a str,
    pub scenario: &'a str,
    pub beside: usize,
    /// Arrivals in a second of an open loop; 0 for a closed one.
    arrivals: u64,
    /// Limits stand below the engines.
    is_limit: bool,
    pub subject: &'a str,
}

impl<'a> Row<'a> {
    pub fn with(self, subject: &'a str) -> Self {
        Self { subject, is_limit: is_limit(subject), ..self }
    }

    pub fn pace(&self) -> String {
        if self.arrivals == 0 { "closed".to_owned() } else { format!("{}/s", self.arrivals) }
    }

    pub fn is_engine(&self) -> bool {
        !self.is_limit
    }
}

fn is_limit(subject: &str) -> bool {
    !matches!(subject, "v1" | "v2")
}

/// An engine's throughput as a share of its limit.
pub struct Share<'a> {
    pub backend: &'a str,
    pub scenario: &'a str,
    pub subject: &'a str,
    /// Its connections.
    pub beside: usize,
    pub limit: &'static str,
    pub share: Spread,
    pub per_second: f64,
}

/// All figures by what they are about.
pub struct Grid<'a>(BTreeMap<Row<'a>, Cell>);

impl<'a> Grid<'a> {
    pub fn of(figures: &'a [Figure]) -> Self {
        let mut order: Vec<(&str, &str)> = Vec::new();
        let mut rows: BTreeMap<Row<'a>, Vec<&Figure>> = BTreeMap::new();
        for figure in figures {
            let (backend, scenario) = (figure.backend.as_str(), figure.scenario.as_str());
            let place = order.iter().position(|other| *other == (backend, scenario)).unwrap_or_else(|| {
                order.push((backend, scenario));
                order.len() - 1
            });
            let row = Row {
                place,
                backend,
                scenario,
                beside: figure.beside,
                arrivals: figure.arrivals.map_or(0, whole),
                is_limit: is_limit(&figure.subject),
                subject: &figure.subject,
            };
            rows.entry(row).or_default().push(figure);
        }
        Self(rows.into_iter().map(|(row, figures)| (row, Cell::of(&figures))).collect())
    }

    pub fn rows(&self) -> impl Iterator<Item = (&Row<'a>, &Cell)> {
        self.0.iter()
    }

    pub fn cell(&self, row: Row<'_>) -> Option<&Cell> {
        self.0.iter().find(|(other, _)| **other == row).map(|(_, cell)| cell)
    }

    /// Each engine in a scenario, with a limit that was measured in turn with it. The place names a crowd's connections.
    pub fn beside(&self, scenario: &str, limit: &str) -> Vec<(String, &Cell, &Cell)> {
        let of_scenario = self.0.iter().filter(|(row, _)| row.scenario == scenario && row.arrivals == 0);
        let pairs = of_scenario.filter(|(row, _)| row.is_engine()).filter_map(|(row, cell)| {
            let crowd = if row.beside >= CROWD { format!(", {} connections", row.beside) } else { String::new() };
            Some((format!("{} {}{crowd}", row.backend, row.subject), cell, self.cell(row.with(limit))?))
        });
        pairs.collect()
    }

    /// Both engines in each scenario, at 64 connections or the number measured first.
    pub fn pairs(&self) -> Vec<(&'a str, &'a str, &Cell, &Cell)> {
        let mut pairs: Vec<(Row<'a>, &Cell, &Cell)> = Vec::new();
        for (row, v1) in self.0.iter().filter(|(row, _)| row.subject == "v1" && row.arrivals == 0) {
            let Some(v2) = self.cell(row.with("v2")) else { continue };
            match pairs.iter_mut().find(|(other, ..)| other.place == row.place) {
                None => pairs.push((*row, v1, v2)),
                Some(pair) if row.beside == 64 => *pair = (*row, v1, v2),
                Some(_) => {}
            }
        }
        pairs.into_iter().map(|(row, v1, v2)| (row.backend, row.scenario, v1, v2)).collect()
    }

    pub fn shares(&self) -> impl Iterator<Item = Share<'_>> {
        let engines = self.0.iter().filter(|(row, _)| row.is_engine() && row.arrivals == 0);
        engines.filter_map(|(row, cell)| {
            let limit = limit_of(row.scenario, row.subject)?;
            let share = Spread::ratio(cell, self.cell(row.with(limit))?)?;
            let Row { backend, scenario, subject, beside, .. } = *row;
            Some(Share { backend, scenario, subject, beside, limit, share, per_second: cell.per_second })
        })
    }
}

/// What an engine is held against in a scenario.
fn limit_of(scenario: &str, subject: &str) -> Option<&'static str> {
    Some(match (scenario, subject) {
        ("login" | "register", _) => "hash",
        ("refresh", _) => "one statement",
        ("verify" | "me", "v2") => "actix, token checked",
        ("verify" | "me", _) => "blocking, fixed",
        _ => return None,
    })
}

fn whole(rate: f64) -> u64 {
    format!("{rate:.0}").parse().unwrap_or_default()
}

/// The figures as lines of text.
pub fn table(figures: &[Figure]) -> String {
    let grid = Grid::of(figures);
    let mut lines = format!(
        "{:<9} {:<9} {:>5} {:>7} {:<20} {:>9} {:>8} {:>8} {:>8} {:>6} {:>7} {:>6} {:>22} {:>8} {:>4} {:>6}  {}\n",
        "backend",
        "scenario",
        "conns",
        "pace",
        "",
        "answers/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "errors",
        "refused",
        "reconn",
        "CPU ms server/db/drive",
        "peak MiB",
        "thr",
        "others",
        "share of limit; v2/v1"
    );
    let mut last = None;
    for (row, cell) in grid.rows() {
        let group = (row.place, row.beside, row.arrivals);
        if last.is_some_and(|last| last != group) {
            lines.push('\n');
        }
        last = Some(group);
        let cpu = format!("{}/{}/{}", short(cell.cpu.server), short(cell.cpu.database), short(cell.cpu.driver));
        let mut remarks = Vec::new();
        if row.is_engine() && row.arrivals == 0 {
            let limit = limit_of(row.scenario, row.subject);
            let share = limit.and_then(|limit| Spread::ratio(cell, grid.cell(row.with(limit))?));
            remarks.extend(share.map(percent));
        }
        if row.subject == "v2" {
            let ratio = grid.cell(row.with("v1")).and_then(|v1| Spread::ratio(cell, v1));
            remarks.extend(ratio.map(|ratio| format!("v2/v1 {}", multiple(ratio))));
        }
        lines.push_str(&format!(
            "{:<9} {:<9} {:>5} {:>7} {:<20} {:>9} {:>8} {:>8} {:>8} {:>6} {:>7} {:>6} {cpu:>22} {:>8} {:>4} {:>4.0} %  {}\n",
            row.backend,
            row.scenario,
            cell.connections,
            row.pace(),
            row.subject,
            short(cell.per_second),
            short(cell.latency.p50),
            short(cell.latency.p95),
            short(cell.latency.p99),
            cell.errors,
            cell.refused,
            cell.reconnects,
            short(cell.memory.peak),
            cell.threads,
            cell.others * 100.0,
            remarks.join("; "),
        ));
    }
    for figure in figures.iter().filter(|figure| !figure.errors.is_empty()) {
        lines.push_str(&format!(
            "errors: {} {} {} {} connections: {:?}\n",
            figure.backend, figure.subject, figure.scenario, figure.connections, figure.errors
        ));
    }
    lines
}

/// The middle, and from where to where when that is more than one measurement.
pub fn percent(share: Spread) -> String {
    let whole = |value: f64| format!("{:.0}", value * 100.0);
    match share.greatest > share.least {
        true => format!("{} % ({}–{})", whole(share.median), whole(share.least), whole(share.greatest)),
        false => format!("{} %", whole(share.median)),
    }
}

pub fn multiple(ratio: Spread) -> String {
    match ratio.greatest > ratio.least {
        true => format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.least, ratio.greatest),
        false => format!("{:.2}", ratio.median),
    }
}

/// What was found beside the table, and which targets are met.
pub fn summary(report: &Report) -> String {
    let mut lines = String::new();
    let others = report.others();
    if others >= SHARED {
        let others = others * 100.0;
        lines.push_str(&format!(
            "The machine was shared: others had {others:.0} % of it while most of this was measured.\n"
        ));
    }
    for beside in &report.beside {
        lines.push_str(&format!(
            "{} {} {} clients: verify {}/s alone, {}/s with them (p99 {} ms, {} errors); {} answered, {} waiting, {} closed, {} failed; \
             {:.1} MiB before, {:.1} MiB with them{}, {} threads\n",
            beside.engine,
            beside.clients,
            beside.what,
            short(beside.alone_per_second),
            short(beside.per_second),
            short(beside.latency.p99),
            beside.errors,
            beside.answered,
            beside.waiting,
            beside.closed,
            beside.failed,
            beside.memory_before,
            beside.memory,
            beside.memory_at_rest.map(|memory| format!(" ({memory:.1} MiB before any hash)")).unwrap_or_default(),
            beside.threads
        ));
    }
    for storm in &report.storms {
        lines.push_str(&format!(
            "{} storm of {}/s for {:.0} s on a capacity of {}/s: {} accepted (p50 {} ms, slowest {} ms), {} refused \
             (p99 {} ms, {} without Retry-After), {} errors; live p99 {} ms, slowest {} ms; {}/s afterwards; peak {:.0} MiB\n",
            storm.engine,
            short(storm.arrivals),
            storm.seconds,
            short(storm.capacity),
            storm.accepted,
            short(storm.accepted_latency.p50),
            short(storm.accepted_latency.max),
            storm.refused,
            short(storm.refused_latency.p99),
            storm.refused_without_retry_after,
            storm.errors,
            short(storm.live.p99),
            short(storm.live.max),
            short(storm.after_per_second),
            storm.memory_peak
        ));
    }
    lines.push('\n');
    for target in &report.targets {
        let mark = match target.is_met() {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "not measured",
        };
        lines.push_str(&format!("{mark:<13} {}: {}\n", target.name, target.demand));
        for found in &target.found {
            lines.push_str(&format!(
                "{:15}{} {}: {}\n",
                "",
                if found.is_met { "+" } else { "-" },
                found.place,
                found.value
            ));
        }
    }
    lines
}
