//! The built binary as a running gateway, with both engines on free ports and data of its own.

use super::google::{CLIENT_ID, Google};
use super::http::{Client, Request};
use super::letters::{self, Mail, Sms};
use super::postgres::Postgres;
use super::processes::{Process, Program, eventually, free_port, fresh_directory, pause, random_bytes};
use super::redis::Redis;
use data_encoding::BASE64URL_NOPAD;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

static POSTGRES: LazyLock<Postgres> = LazyLock::new(Postgres::start);
static REDIS: LazyLock<Redis> = LazyLock::new(Redis::start);

/// Where the gateway keeps its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    #[default]
    Embedded,
    PostgresRedis,
}

/// How a gateway is started; what is set in `env` wins over everything else.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub backend: Backend,
    pub env: Vec<(String, String)>,
    /// A command line in front of the gateway's, which has to `exec` it.
    pub prefix: Vec<String>,
}

impl Options {
    pub fn new(backend: Backend) -> Self {
        Self { backend, ..Self::default() }
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// Why a gateway did not start.
#[derive(Debug)]
pub struct Refusal {
    pub status: ExitStatus,
    pub log: String,
}

/// What a command of the binary did.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub output: String,
    pub errors: String,
}

/// A running gateway; dropping it ends it.
pub struct Gateway {
    pub v1: SocketAddr,
    pub v2: SocketAddr,
    pub backend: Backend,
    environment: Vec<(String, String)>,
    prefix: Vec<String>,
    directory: PathBuf,
    process: Option<Process>,
}

impl Gateway {
    pub fn start(options: Options) -> Self {
        Self::try_start(options)
            .unwrap_or_else(|refusal| panic!("the gateway ended ({}): {}", refusal.status, refusal.log))
    }

    /// Starts it, or gives the reason why it ended before it was ready.
    pub fn try_start(options: Options) -> Result<Self, Refusal> {
        let mut environment = weak_and_unlimited();
        if options.backend == Backend::PostgresRedis {
            set(&mut environment, "BIFRONS_DATABASE__URL", &POSTGRES.create_database());
            set(&mut environment, "BIFRONS_STORE__URL", &REDIS.create_database());
            set(&mut environment, "BIFRONS_SECRETS__MASTER", &BASE64URL_NOPAD.encode(&random_bytes::<32>()));
        }
        Self::start_in(options, environment)
    }

    /// A gateway that somebody else runs: known are its addresses and the directories to which its messages go.
    pub fn elsewhere(v1: SocketAddr, v2: SocketAddr, mail: &Path, sms: &Path) -> Self {
        let directory = fresh_directory("elsewhere");
        for (name, place) in [("mail", mail), ("sms", sms)] {
            std::os::unix::fs::symlink(place, directory.join(name)).expect("a link to a directory of messages");
        }
        let environment = vec![("BIFRONS_DATA_DIR".to_owned(), directory.display().to_string())];
        let (backend, prefix) = (Backend::default(), Vec::new());
        Self { v1, v2, backend, environment, prefix, directory, process: None }
    }

    /// Another instance on the same database, store and keys; embedded, on the same files.
    pub fn twin(&self, env: &[(&str, &str)]) -> Self {
        let mut environment = self.environment.clone();
        for (key, value) in env {
            set(&mut environment, key, value);
        }
        let options = Options { backend: self.backend, env: Vec::new(), prefix: self.prefix.clone() };
        Self::start_in(options, environment).unwrap_or_else(|refusal| panic!("the twin ended: {}", refusal.log))
    }

    fn start_in(options: Options, mut environment: Vec<(String, String)>) -> Result<Self, Refusal> {
        for (key, value) in &options.env {
            set(&mut environment, key, value);
        }
        let directory = fresh_directory("gateway");
        if value(&environment, "BIFRONS_DATA_DIR").is_none() {
            set(&mut environment, "BIFRONS_DATA_DIR", &directory.join("data").display().to_string());
        }
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut gateway = Self {
            v1: nowhere,
            v2: nowhere,
            backend: options.backend,
            environment,
            prefix: options.prefix,
            directory,
            process: None,
        };
        if options.backend == Backend::PostgresRedis {
            let migrated = gateway.run(&["migrate"], "");
            if !migrated.status.success() {
                return Err(Refusal { status: migrated.status, log: migrated.errors });
            }
        }
        gateway.launch()?;
        Ok(gateway)
    }

    /// Starts the process; a free port may be taken by another before the gateway has it, so it tries more than once.
    fn launch(&mut self) -> Result<(), Refusal> {
        for _ in 0..3 {
            if self.process.is_none() && self.v1.port() == 0 {
                self.v1 = SocketAddr::from(([127, 0, 0, 1], free_port()));
                self.v2 = self.v1;
                // The system may name the same free port twice.
                while self.v2 == self.v1 {
                    self.v2 = SocketAddr::from(([127, 0, 0, 1], free_port()));
                }
            }
            match self.launch_once() {
                Err(refusal) if refusal.log.contains("in use") => self.v1.set_port(0),
                result => return result,
            }
        }
        self.launch_once()
    }

    fn launch_once(&mut self) -> Result<(), Refusal> {
        let mut command = self.prefix.clone();
        command.extend([env!("CARGO_BIN_EXE_bifrons").to_owned(), "serve".to_owned()]);
        let path = command.remove(0);
        let mut program = Program::new(path, &self.directory, "gateway.log").arguments(command);
        program.environment = self.environment.clone();
        set(&mut program.environment, "BIFRONS_ENGINES__V1__BIND", &self.v1.to_string());
        set(&mut program.environment, "BIFRONS_ENGINES__V2__BIND", &self.v2.to_string());
        program.last_signal = "KILL";
        let before = self.log().len();
        let mut process = program.start();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = process.ended() {
                return Err(Refusal { status, log: self.log().get(before..).unwrap_or_default().to_owned() });
            }
            if self.listening().iter().all(|address| is_ready(*address)) {
                self.process = Some(process);
                return Ok(());
            }
            assert!(Instant::now() < deadline, "the gateway is not ready: {}", self.log());
            pause(Duration::from_millis(20));
        }
    }

    /// The addresses of the engines that are on.
    pub fn listening(&self) -> Vec<SocketAddr> {
        let on =
            |engine: &str| value(&self.environment, &format!("BIFRONS_ENGINES__{engine}__ENABLED")) != Some("false");
        [("V1", self.v1), ("V2", self.v2)]
            .into_iter()
            .filter(|(name, _)| on(name))
            .map(|(_, address)| address)
            .collect()
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("a running gateway").pid()
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        self.process.as_ref().expect("a running gateway").signal(name);
    }

    /// SIGTERM; gives the exit status.
    pub fn stop(&mut self) -> ExitStatus {
        self.end("TERM")
    }

    /// SIGKILL: whatever was not on the disk is lost.
    pub fn kill(&mut self) {
        self.end("KILL");
    }

    fn end(&mut self, signal: &str) -> ExitStatus {
        let mut process = self.process.take().expect("a running gateway");
        process.signal(signal);
        process.wait(Duration::from_secs(40))
    }

    /// Starts it again on the same data and ports; stops it before when it runs.
    pub fn restart(&mut self) {
        if self.process.is_some() {
            self.stop();
        }
        if let Err(refusal) = self.launch() {
            panic!("the gateway does not start again: {}", refusal.log);
        }
    }

    /// Sets an environment variable for the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        set(&mut self.environment, key, value);
    }

    /// A variable as the gateway was given it.
    pub fn variable(&self, key: &str) -> Option<&str> {
        value(&self.environment, key)
    }

    /// Everything it has written to standard error and standard output.
    pub fn log(&self) -> String {
        fs::read(self.directory.join("gateway.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    pub fn data_directory(&self) -> PathBuf {
        PathBuf::from(value(&self.environment, "BIFRONS_DATA_DIR").expect("a data directory"))
    }

    /// Runs another command of the binary with the same configuration.
    pub fn run(&self, arguments: &[&str], input: &str) -> Outcome {
        run_with(&self.environment, &self.directory, arguments, input)
    }

    /// The mails addressed to this address, oldest first.
    pub fn mails_to(&self, address: &str) -> Vec<Mail> {
        let mut mails = letters::mails(&self.data_directory().join("mail"), address);
        mails.retain(|mail| {
            mail.header("to").is_some_and(|to| {
                let to = to.rsplit('<').next().unwrap_or(to).trim_end_matches('>');
                to.eq_ignore_ascii_case(address)
            })
        });
        mails
    }

    /// The mail with this number to this address, counted from 1.
    pub fn wait_for_mail(&self, address: &str, nth: usize) -> Mail {
        eventually(&format!("mail {nth} to {address}"), Duration::from_secs(15), || {
            self.mails_to(address).into_iter().nth(nth - 1)
        })
    }

    /// The text messages sent to this number (E.164), oldest first.
    pub fn texts_to(&self, number: &str) -> Vec<Sms> {
        let mut texts = letters::messages(&self.data_directory().join("sms"), number);
        texts.retain(|text| text.to == number);
        texts
    }

    /// The text message with this number in the row, counted from 1.
    pub fn wait_for_text(&self, number: &str, nth: usize) -> Sms {
        eventually(&format!("text message {nth} to {number}"), Duration::from_secs(15), || {
            self.texts_to(number).into_iter().nth(nth - 1)
        })
    }

    /// Everything that somebody who steals the database and the store can read.
    pub fn stored_bytes(&self) -> Vec<u8> {
        match self.backend {
            Backend::Embedded => {
                let mut bytes = Vec::new();
                for entry in fs::read_dir(self.data_directory()).expect("the data directory").flatten() {
                    if entry.path().is_file() && entry.file_name() != "master.key" {
                        bytes.extend(fs::read(entry.path()).expect("a file of the data directory"));
                    }
                }
                bytes
            }
            Backend::PostgresRedis => {
                let mut bytes = POSTGRES.dump(self.variable("BIFRONS_DATABASE__URL").expect("a database"));
                bytes.extend(REDIS.dump(self.variable("BIFRONS_STORE__URL").expect("a store")));
                bytes
            }
        }
    }

    /// Runs a statement in the gateway's database; the rows come one per line, columns separated by `|`.
    pub fn query(&self, statement: &str) -> String {
        match self.backend {
            Backend::PostgresRedis => {
                POSTGRES.query(self.variable("BIFRONS_DATABASE__URL").expect("a database"), statement)
            }
            Backend::Embedded => query_sqlite(&self.data_directory().join("bifrons.db"), statement),
        }
    }
}

/// Runs a command of the binary in an empty directory, without a gateway.
pub fn run_alone(env: &[(&str, &str)], arguments: &[&str], input: &str) -> Outcome {
    let directory = fresh_directory("command");
    let mut environment = vec![("BIFRONS_DATA_DIR".to_owned(), directory.join("data").display().to_string())];
    for (key, value) in env {
        set(&mut environment, key, value);
    }
    run_with(&environment, &directory, arguments, input)
}

fn run_with(environment: &[(String, String)], directory: &Path, arguments: &[&str], input: &str) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bifrons"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BIFRONS_") {
            command.env_remove(name);
        }
    }
    let mut child = command
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    if let Some(mut stdin) = child.stdin.take() {
        // A command that needs no input may have ended already.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().expect("the output of the binary");
    Outcome {
        status: output.status,
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Cheap hashes, no limits, so that a test meets a limit only when it asks for one, and a Google of the tests' own.
fn weak_and_unlimited() -> Vec<(String, String)> {
    let google = Google::shared().jwks_url();
    [
        ("BIFRONS_GOOGLE__CLIENT_IDS", CLIENT_ID),
        ("BIFRONS_GOOGLE__JWKS_URL", google.as_str()),
        ("BIFRONS_STUFFING__RATE", "off"),
        ("BIFRONS_LIMITS__BURST", "off"),
        ("BIFRONS_LIMITS__SUSTAINED", "off"),
        ("BIFRONS_LIMITS__GENERAL", "off"),
        ("BIFRONS_PASSWORDS__ALLOW_WEAK", "true"),
        ("BIFRONS_PASSWORDS__MEMORY_KIB", "1024"),
        ("BIFRONS_PASSWORDS__ITERATIONS", "1"),
        // Many gateways share the machine: nobody is to be turned away because others are at work.
        ("BIFRONS_PASSWORDS__QUEUE_TIMEOUT", "10s"),
        // Whoever writes a letter wakes the pump; many gateways that look at their outbox all the time are a load.
        ("BIFRONS_OUTBOX__POLL", "250ms"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec()
}

fn set(environment: &mut Vec<(String, String)>, key: &str, value: &str) {
    environment.retain(|(other, _)| other != key);
    environment.push((key.to_owned(), value.to_owned()));
}

fn value<'a>(environment: &'a [(String, String)], key: &str) -> Option<&'a str> {
    environment.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str())
}

fn is_ready(address: SocketAddr) -> bool {
    Client::new(address).try_send(&Request::get("/health/ready")).is_ok_and(|answer| answer.status == 200)
}

fn query_sqlite(file: &Path, statement: &str) -> String {
    let script = "import sqlite3, sys\n\
        connection = sqlite3.connect(sys.argv[1], timeout=10)\n\
        for row in connection.execute(sys.argv[2]): print('|'.join('' if v is None else str(v) for v in row))\n\
        connection.commit()";
    let output = Command::new("python3").args(["-c", script]).arg(file).arg(statement).output();
    let output = output.unwrap_or_else(|_| panic!("python3 is missing: run scripts/bootstrap"));
    assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
