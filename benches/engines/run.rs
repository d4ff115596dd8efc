//! The order of a run: each backend, each scenario, each number of connections; and within that the engines and their
//! limits in turn, so that a bad moment of the machine meets all of them.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use bifrons::services::passwords::HashParams;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    conditions,
    cpu::{self, Machine},
    driver::{Pace, Plan},
    extras,
    gateway::{self, Gateway},
    limits::{self, Bare, BareServer, Form},
    measure::{self, Figure, Watched, real},
    options::{Backend, Options},
    processes::pause,
    report::{self, DISTURBED, Report},
    servers::Servers,
    world::{Engine, Same, Scenario, Traffic, World},
};

/// Argon2id as the gateway has it by default.
const HASH: HashParams = HashParams { memory_kib: 19_456, iterations: 2, parallelism: 1 };

/// Of what the slower engine can do, so that neither is overloaded.
const OPEN_SHARE: f64 = 0.6;

/// What else is measured in turn with the engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Hash,
    /// An actix handler that checks a token and answers something fixed.
    Checked,
    /// An actix handler that answers something fixed.
    Fixed,
    /// The blocking engine's server, with something fixed.
    Blocking,
    Rotation(Form),
}

fn limits_of(scenario: Scenario, backend: Backend) -> &'static [Limit] {
    match (scenario, backend) {
        (Scenario::Login | Scenario::Register, _) => &[Limit::Hash],
        (Scenario::Refresh, Backend::Embedded) => &[Limit::Rotation(Form::OneStatement)],
        (Scenario::Refresh, Backend::Postgres) => {
            &[Limit::Rotation(Form::OneStatement), Limit::Rotation(Form::Transaction)]
        }
        (Scenario::Verify, _) => &[Limit::Checked, Limit::Fixed, Limit::Blocking],
        (Scenario::Me, _) => &[Limit::Checked, Limit::Blocking],
        (Scenario::Mixed, _) => &[],
    }
}

/// From so many connections on, the 99th percentile is held against a turn of all of them (`targets::crowd`).
pub const CROWD: usize = 1000;

/// What is measured beside the engines with further numbers of connections: how late a bare handler's answers are with
/// as many.
fn limits_of_further(scenario: Scenario, connections: usize) -> &'static [Limit] {
    match scenario {
        Scenario::Verify | Scenario::Me if connections >= CROWD => &[Limit::Checked],
        _ => &[],
    }
}

/// Runs everything that the options ask for and reports it.
///
/// # Errors
/// The gateway or a server does not start, or users cannot be seeded.
pub fn run(options: &Options) -> io::Result<()> {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_bifrons"));
    // Ten thousand connections are as many descriptors.
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum })?;
    let program = fs::canonicalize(options.gateway.as_ref().unwrap_or(&built))?;
    let bar = ProgressBar::new(count(options));
    let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {pos}/{len}  about {eta} left  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let report = Report {
        conditions: conditions::now(options),
        targets: Vec::new(),
        figures: Vec::new(),
        rest: Vec::new(),
        peaks: Vec::new(),
        beside: Vec::new(),
        storms: Vec::new(),
    };
    let mut run = Run { options, program, bar, report, rates: BTreeMap::new(), bare: None };
    if !options.only_extras && !options.only_peaks {
        for backend in options.backends() {
            run.measure_on(backend)?;
        }
    }
    if options.peaks() {
        for backend in options.backends() {
            run.measure_peaks(backend)?;
        }
    }
    if !options.no_extras && !options.only_peaks {
        run.measure_extras()?;
    }
    run.bar.finish_and_clear();
    run.save()?;
    let report = run.report;
    if let Some(file) = &options.json {
        let all: Vec<_> = report.figures.iter().chain(&report.peaks).collect();
        fs::write(file, serde_json::to_vec_pretty(&all)?)?;
    }
    let page = options.out.join("report.html");
    write!(
        io::stdout(),
        "{}\n{}\nThe whole report: {}\n",
        report::table(&report.figures),
        report::summary(&report),
        page.display()
    )
}

/// Measurements, for the progress bar.
fn count(options: &Options) -> u64 {
    let (first, others) = options.rounds();
    let engines = options.engines().len();
    let further: Vec<usize> = options.connections().iter().skip(1).copied().collect();
    let mut count = if options.no_extras || options.only_peaks { 0 } else { (options.extras().0.len() + 2) * engines };
    for backend in options.backends() {
        for scenario in options.scenarios().into_iter().filter(|_| !options.only_extras && !options.only_peaks) {
            let limits = if options.no_limits { 0 } else { limits_of(scenario, backend).len() };
            let open = if options.is_open(scenario) { engines } else { 0 };
            let crowds = further.iter().map(|connections| limits_of_further(scenario, *connections).len());
            let crowds = if options.no_limits { 0 } else { crowds.sum() };
            count += first * (engines + limits) + others * (further.len() * engines + crowds) + open;
        }
        if options.peaks() {
            count += options.scenarios().len() * engines;
        }
    }
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn named(mut figure: Figure, engine: Engine, backend: Backend, scenario: Scenario) -> Figure {
    figure.subject = engine.name().to_owned();
    figure.backend = backend.name().to_owned();
    figure.scenario = scenario.name().to_owned();
    figure
}

struct Run<'a> {
    options: &'a Options,
    program: PathBuf,
    bar: ProgressBar,
    report: Report,
    /// Answers in a second, as last seen.
    rates: BTreeMap<(Engine, Scenario), f64>,
    bare: Option<(BareServer, BareServer)>,
}

/// What is there while one backend is measured.
struct Stage {
    backend: Backend,
    servers: Option<Servers>,
    gateway: Gateway,
    world: World,
    /// Sessions that the database rotates by itself.
    rows: Vec<String>,
}

impl Run<'_> {
    fn measure_on(&mut self, backend: Backend) -> io::Result<()> {
        let options = self.options;
        let (servers, gateway) = self.started(backend)?;
        // Once the pools have seen that nobody asks.
        pause(Duration::from_secs(2));
        let resident = real(cpu::size(gateway.pid()).resident) / 1024.0;
        self.report.rest.push((backend.name().to_owned(), resident));
        self.bar.set_message(format!("{}: making users and signing them in", backend.name()));
        self.bar.tick();
        let connections = options.connections();
        let world = World::seed(&gateway, connections.iter().copied().max().unwrap_or(1))?;
        let rows = servers.as_ref().map(limits::postgres_rows).unwrap_or_default();
        let mut stage = Stage { backend, servers, gateway, world, rows };
        for scenario in options.scenarios() {
            self.tell(&format!("{} {}", backend.name(), scenario.name()));
            for (place, connections) in connections.iter().enumerate() {
                let (first, others) = options.rounds();
                for round in 0..if place == 0 { first } else { others } {
                    for engine in options.engines() {
                        self.drive(&mut stage, *engine, scenario, *connections, Pace::Closed, round)?;
                    }
                    let limits = match place {
                        _ if options.no_limits => &[],
                        0 => limits_of(scenario, backend),
                        _ => limits_of_further(scenario, *connections),
                    };
                    for limit in limits {
                        self.limit(&stage, *limit, scenario, *connections, round)?;
                    }
                }
                if place == 0 && options.is_open(scenario) {
                    let rates = options.engines().iter().filter_map(|engine| self.rates.get(&(*engine, scenario)));
                    let slower = rates.copied().fold(f64::INFINITY, f64::min);
                    if slower.is_finite() && slower > 0.0 {
                        let pace = Pace::Open { per_second: (slower * OPEN_SHARE).round().max(1.0) };
                        for engine in options.engines() {
                            self.drive(&mut stage, *engine, scenario, *connections, pace, 0)?;
                        }
                    }
                }
            }
            // A run that is broken off leaves what it had.
            self.save()?;
        }
        Ok(())
    }

    /// The peak of memory with as many connections as are a crowd: of one engine in one scenario, on a process that was
    /// started for it, from its start on. What earlier work has left resident would count otherwise.
    fn measure_peaks(&mut self, backend: Backend) -> io::Result<()> {
        let options = self.options;
        let (servers, mut gateway) = self.started(backend)?;
        // Those of another backend would make the warm-up too short or too long.
        self.rates.clear();
        let mut world = World::seed(&gateway, CROWD)?;
        for scenario in options.scenarios() {
            self.tell(&format!("{} {}, peaks", backend.name(), scenario.name()));
            for engine in options.engines() {
                self.say(backend, scenario, CROWD, engine.name());
                world.repair(&gateway)?;
                gateway.restart()?;
                let plan = self.plan(gateway.address(*engine), *engine, scenario, CROWD, Pace::Closed);
                let mut load = Traffic::new(&mut world, *engine, scenario, &plan);
                let watched =
                    Watched { server: gateway.pid(), with_databases: servers.is_some(), peak_since_start: true };
                let figure = measure::measure(&plan, &mut load, &watched, &mut || self.bar.tick())?;
                self.report.peaks.push(named(figure, *engine, backend, scenario));
                self.bar.inc(1);
            }
            self.save()?;
        }
        Ok(())
    }

    fn started(&mut self, backend: Backend) -> io::Result<(Option<Servers>, Gateway)> {
        self.bar.set_message(format!("{}: starting", backend.name()));
        self.bar.tick();
        let servers = (backend == Backend::Postgres).then(Servers::start);
        if let Some(servers) = &servers {
            let versions = [("PostgreSQL", servers.postgres_version()), ("Redis", servers.redis_version())];
            for (name, version) in versions {
                if !self.report.conditions.iter().any(|(known, _)| known == name) {
                    self.report.conditions.push((name.to_owned(), version));
                }
            }
        }
        let gateway = Gateway::start(&self.gateway_options(&[]), servers.as_ref())?;
        Ok((servers, gateway))
    }

    fn gateway_options<'b>(&'b self, environment: &'b [(&'b str, String)]) -> gateway::Options<'b> {
        let options = self.options;
        gateway::Options { program: self.program.clone(), log: &options.log, set: &options.set, environment }
    }

    /// What is measured once, on the embedded backend: it is about the engines and not their data.
    fn measure_extras(&mut self) -> io::Result<()> {
        let options = self.options;
        let (silent, dripping, storm) = options.extras();
        let environment = [
            // Silent connections must leave room for others.
            ("ENGINES__V1__CONNECTIONS", "12000".to_owned()),
            ("ENGINES__V2__CONNECTIONS", "12000".to_owned()),
            ("PASSWORDS__QUEUE", "64".to_owned()),
        ];
        let length = options.length().min(Duration::from_secs(4));
        for engine in options.engines() {
            // Each has a gateway of its own, so that the memory is that of one crowd.
            self.tell(&format!("{} beside crowds", engine.name()));
            let say = |what: &str| {
                self.bar.set_message(format!("{}: {what}", engine.name()));
                self.bar.tick();
            };
            let gateway = Gateway::start(&self.gateway_options(&environment), None)?;
            let mut at_rest = Vec::new();
            for clients in silent {
                say("silent connections, at rest");
                at_rest.push((*clients, extras::memory_with_idle(&gateway, *engine, *clients)?));
            }
            let mut world = World::seed(&gateway, 16)?;
            say("clients that drip");
            self.report.beside.push(extras::slow(&gateway, &mut world, *engine, dripping, length)?);
            self.bar.inc(1);
            for (clients, memory) in at_rest {
                say("silent connections");
                let mut beside = extras::idle(&gateway, &mut world, *engine, clients, length)?;
                beside.memory_at_rest = Some(memory);
                self.report.beside.push(beside);
                self.bar.inc(1);
            }
            say("a storm of sign-ins");
            self.report.storms.push(extras::storm(&gateway, &mut world, *engine, storm)?);
            self.bar.inc(1);
        }
        Ok(())
    }

    fn drive(
        &mut self,
        stage: &mut Stage,
        engine: Engine,
        scenario: Scenario,
        connections: usize,
        pace: Pace,
        round: usize,
    ) -> io::Result<()> {
        self.say(stage.backend, scenario, connections, engine.name());
        let plan = self.plan(stage.gateway.address(engine), engine, scenario, connections, pace);
        let figure = self.undisturbed(&mut |tick| {
            stage.world.repair(&stage.gateway)?;
            let mut load = Traffic::new(&mut stage.world, engine, scenario, &plan);
            let with_databases = stage.servers.is_some();
            let watched = Watched { server: stage.gateway.pid(), with_databases, peak_since_start: false };
            measure::measure(&plan, &mut load, &watched, tick)
        })?;
        if pace == Pace::Closed {
            self.rates.insert((engine, scenario), figure.per_second);
        }
        let figure = named(figure, engine, stage.backend, scenario);
        self.keep(figure, stage.backend, scenario, connections, round);
        Ok(())
    }

    fn plan(&self, address: SocketAddr, engine: Engine, scenario: Scenario, connections: usize, pace: Pace) -> Plan {
        // Each connection has to come round once before latencies mean something.
        let is_hashed = matches!(scenario, Scenario::Login | Scenario::Register);
        let assumed = if is_hashed { 80.0 } else { 1000.0 };
        let rate = self.rates.get(&(engine, scenario)).copied().unwrap_or(assumed).max(1.0);
        let turn = Duration::from_secs_f64(real(u64::try_from(connections).unwrap_or(u64::MAX)) / rate);
        let length = if is_hashed && self.options.full {
            self.options.length_of_hashing()
        } else {
            self.options.length_at(connections)
        };
        Plan {
            address,
            connections,
            pace,
            warm_up: self.options.warm_up().max(turn.mul_f64(1.2)),
            length: length.max(turn),
        }
    }

    fn limit(
        &mut self,
        stage: &Stage,
        limit: Limit,
        scenario: Scenario,
        connections: usize,
        round: usize,
    ) -> io::Result<()> {
        self.say(stage.backend, scenario, connections, "its limit");
        let length = self.options.length();
        let figure = match limit {
            Limit::Hash => {
                let length = self.options.length_of_hashing();
                self.undisturbed(&mut |tick| Ok(limits::hash_rate(HASH, limits::slots(), length, tick)))?
            }
            Limit::Rotation(form) => self.undisturbed(&mut |tick| match &stage.servers {
                Some(servers) => limits::postgres_rotations(servers, &stage.rows, form, length, tick),
                None => limits::sqlite_rotations(&stage.gateway.data_directory().join("bifrons.db"), length, tick),
            })?,
            Limit::Checked => self.bare(Bare::Actix, "/checked", "actix, token checked", connections)?,
            Limit::Fixed => self.bare(Bare::Actix, "/fixed", "actix, fixed", connections)?,
            Limit::Blocking => self.bare(Bare::Blocking, "/fixed", "blocking, fixed", connections)?,
        };
        self.keep(figure, stage.backend, scenario, connections, round);
        Ok(())
    }

    /// Measures once others let the machine alone, and again when they did not meanwhile, as long as there is patience.
    fn undisturbed(&self, attempt: &mut dyn FnMut(&mut dyn FnMut()) -> io::Result<Figure>) -> io::Result<Figure> {
        let mut tick = || self.bar.tick();
        let deadline = Instant::now() + self.options.patience();
        let mut best: Option<Figure> = None;
        loop {
            while Instant::now() < deadline {
                let machine = Machine::now();
                pause(Duration::from_millis(300));
                if Machine::now().others_since(machine, Duration::ZERO) <= DISTURBED {
                    break;
                }
                tick();
            }
            let next = attempt(&mut tick)?;
            let best = best.get_or_insert_with(|| next.clone());
            if next.others < best.others {
                *best = next;
            }
            if best.others <= DISTURBED || Instant::now() >= deadline {
                return Ok(best.clone());
            }
        }
    }

    fn bare(&mut self, bare: Bare, path: &str, name: &str, connections: usize) -> io::Result<Figure> {
        if self.bare.is_none() {
            self.bare = Some((BareServer::start(Bare::Actix)?, BareServer::start(Bare::Blocking)?));
        }
        let Some((actix, blocking)) = &self.bare else { return Err(io::Error::other("no bare server")) };
        let server = if bare == Bare::Actix { actix } else { blocking };
        let plan = Plan {
            address: server.address,
            connections,
            pace: Pace::Closed,
            warm_up: self.options.warm_up(),
            length: self.options.length(),
        };
        let mut load = Same::get(server.address, path, Some(&limits::token()?));
        let watched = Watched::alone(server.pid());
        let mut figure = self.undisturbed(&mut |tick| measure::measure(&plan, &mut load, &watched, tick))?;
        figure.subject = name.to_owned();
        Ok(figure)
    }

    fn save(&mut self) -> io::Result<()> {
        self.report.judge();
        self.report.write(&self.options.out)
    }

    /// Where there is no terminal for a bar.
    fn tell(&self, what: &str) {
        if self.bar.is_hidden() {
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or_default());
            let seconds = self.bar.elapsed().as_secs();
            // Nobody may be listening.
            let _ = writeln!(io::stderr(), "{seconds} s, {done} of {all}: {what}");
        }
    }

    fn say(&self, backend: Backend, scenario: Scenario, connections: usize, what: &str) {
        self.bar.set_message(format!("{}: {} {connections} {what}", backend.name(), scenario.name()));
        self.bar.tick();
    }

    fn keep(&mut self, mut figure: Figure, backend: Backend, scenario: Scenario, beside: usize, round: usize) {
        figure.beside = beside;
        figure.backend = backend.name().to_owned();
        figure.scenario = scenario.name().to_owned();
        figure.round = round;
        self.report.figures.push(figure);
        self.bar.inc(1);
    }
}
