//! A PostgreSQL cluster of the test's own, in a temporary directory and on a free port.

use super::processes::{Process, Program, eventually, free_port, fresh_directory};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A cluster; dropping it ends it.
pub struct Postgres {
    programs: PathBuf,
    directory: PathBuf,
    port: u16,
    account: Option<(u32, u32)>,
    settings: Vec<String>,
    process: Mutex<Option<Process>>,
    databases: AtomicU32,
}

impl Postgres {
    /// Starts a cluster that does not wait for the disk.
    pub fn start() -> Self {
        Self::start_with(&["fsync=off", "synchronous_commit=off", "full_page_writes=off"])
    }

    /// Starts a cluster with these settings, and the default for all others.
    pub fn start_with(settings: &[&str]) -> Self {
        let directory = fresh_directory("postgres");
        let account = account(&directory);
        let cluster = Self {
            programs: programs(),
            port: free_port(),
            account,
            settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
            process: Mutex::new(None),
            databases: AtomicU32::new(0),
            directory,
        };
        let mut initdb = Program::new(cluster.programs.join("initdb"), &cluster.directory, "initdb.log").arguments([
            "--no-sync",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--pgdata=data",
        ]);
        initdb.account = account;
        let status = initdb.start().wait(Duration::from_secs(60));
        assert!(status.success(), "initdb: {}", fs::read_to_string(&initdb.log).unwrap_or_default());
        cluster.start_again();
        cluster
    }

    /// Starts it again on the same port and data.
    pub fn start_again(&self) {
        let mut server = Program::new(self.programs.join("postgres"), &self.directory, "postgres.log").arguments([
            "-D",
            "data",
            "-p",
            &self.port.to_string(),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "max_connections=400",
            "-c",
            "shared_buffers=64MB",
        ]);
        server = server.arguments(["-c".to_owned(), format!("unix_socket_directories={}", self.directory.display())]);
        for setting in &self.settings {
            server = server.arguments(["-c", setting]);
        }
        server.account = self.account;
        server.last_signal = "QUIT";
        let mut process = server.start();
        eventually("PostgreSQL answers", Duration::from_secs(30), || {
            let log = || fs::read_to_string(&server.log).unwrap_or_default();
            assert!(process.ended().is_none(), "PostgreSQL ended: {}", log());
            let ready = Command::new(self.programs.join("pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres"])
                .status();
            ready.expect("pg_isready runs").success().then_some(())
        });
        *self.process.lock().expect("no panic under the lock") = Some(process);
    }

    /// Ends it as `pg_ctl stop -m fast` does: connections are closed, work is undone.
    pub fn stop(&self) {
        if let Some(mut process) = self.process.lock().expect("no panic under the lock").take() {
            process.signal("INT");
            process.wait(Duration::from_secs(30));
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes an empty database and gives its URL.
    pub fn create_database(&self) -> String {
        let name = format!("bifrons_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.query(&self.url("postgres"), &format!("create database {name}"));
        self.url(&name)
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Runs a statement; the rows come back one per line, columns separated by `|`.
    pub fn query(&self, url: &str, statement: &str) -> String {
        let output = Command::new(self.programs.join("psql"))
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement])
            .output()
            .expect("psql runs");
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Everything that a dump of the database shows.
    pub fn dump(&self, url: &str) -> Vec<u8> {
        let output = Command::new(self.programs.join("pg_dump")).args(["-d", url]).output().expect("pg_dump runs");
        assert!(output.status.success(), "pg_dump: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

fn programs() -> PathBuf {
    let mut candidates: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(version, programs)| *version >= 15 && programs.join("initdb").exists())
        .collect();
    candidates.sort();
    if let Some((_, programs)) = candidates.pop() {
        return programs;
    }
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .find(|directory| directory.join("initdb").exists())
        .unwrap_or_else(|| panic!("PostgreSQL is missing: run scripts/bootstrap"))
}

/// PostgreSQL refuses to run as root; the directory then belongs to the user that it runs as.
fn account(directory: &Path) -> Option<(u32, u32)> {
    let own = fs::metadata("/proc/self").expect("the own process").uid();
    if own != 0 {
        return None;
    }
    let number = |option: &str| -> u32 {
        let output = Command::new("id").args([option, "postgres"]).output().expect("id runs");
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("the user postgres is missing: run scripts/bootstrap"))
    };
    let account = (number("-u"), number("-g"));
    let changed = Command::new("chown").arg(format!("{}:{}", account.0, account.1)).arg(directory).status();
    assert!(changed.expect("chown runs").success(), "chown of {}", directory.display());
    Some(account)
}
