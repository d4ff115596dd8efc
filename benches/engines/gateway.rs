//! The gateway as a child process, configured for being measured.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::{
    processes::{Process, Program, eventually, free_port, fresh_directory},
    servers::Servers,
    world::Engine,
};

/// A running gateway; dropping it ends it.
pub struct Gateway {
    v1: SocketAddr,
    v2: SocketAddr,
    program: PathBuf,
    directory: PathBuf,
    environment: Vec<(String, String)>,
    arguments: Vec<OsString>,
    process: Option<Process>,
}

pub struct Options<'a> {
    pub program: PathBuf,
    pub log: &'a str,
    /// `KEY=VALUE` for the command line.
    pub set: &'a [String],
    /// For this start alone, over the defaults below.
    pub environment: &'a [(&'a str, String)],
}

impl Gateway {
    pub fn start(options: &Options<'_>, servers: Option<&Servers>) -> io::Result<Self> {
        // Another program may take a free port before the gateway has it.
        let is_taken = |error: &io::Error| error.to_string().contains("in use");
        let mut started = Self::start_once(options, servers);
        for _ in 0..2 {
            if started.as_ref().err().is_some_and(is_taken) {
                started = Self::start_once(options, servers);
            }
        }
        started
    }

    fn start_once(options: &Options<'_>, servers: Option<&Servers>) -> io::Result<Self> {
        let directory = fresh_directory("gateway");
        apart(&directory);
        let (v1, v2) = (local(free_port()), local(free_port()));
        let mut gateway = Self {
            v1,
            v2,
            program: options.program.clone(),
            // It is to begin as it does elsewhere, and not with what this bench has begun with.
            environment: vec![("GLIBC_TUNABLES".to_owned(), String::new())],
            arguments: vec!["serve".into()],
            process: None,
            directory,
        };
        gateway.set("DATA_DIR", &gateway.data_directory().display().to_string());
        gateway.set("ENGINES__V1__BIND", &v1.to_string());
        gateway.set("ENGINES__V2__BIND", &v2.to_string());
        // So high that nobody meets them, and not off, so that counting them is part of what is measured.
        for limit in ["BURST", "SUSTAINED", "GENERAL", "TOKEN_VERIFY"] {
            gateway.set(&format!("LIMITS__{limit}"), "1000000/s");
        }
        // A long run must not end the sessions that it was given.
        gateway.set("TOKENS__ACCESS_TTL", "24h");
        // As many may wait as there are connections; the storm has the default.
        gateway.set("PASSWORDS__QUEUE", "2048");
        gateway.set("LOG__LEVEL", options.log);
        if let Some(servers) = servers {
            let (database, store) = servers.urls();
            gateway.set("DATABASE__URL", &database);
            gateway.set("STORE__URL", &store);
            // A key that protects nothing but the users of one run.
            gateway.set(
                "SECRETS__MASTER",
                &"bench".repeat(8).bytes().map(|byte| format!("{byte:02x}")).collect::<String>(),
            );
        }
        for (key, value) in options.environment {
            gateway.set(key, value);
        }
        if servers.is_some() {
            gateway.run(&["migrate"], "")?;
        }
        gateway.arguments.extend(options.set.iter().flat_map(|pair| ["--set".into(), pair.into()]));
        gateway.serve()?;
        Ok(gateway)
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut program = Program::new(&self.program, &self.directory, "gateway.log").arguments(&self.arguments);
        program.environment.clone_from(&self.environment);
        let mut process = program.start();
        let log = || fs::read_to_string(&program.log).unwrap_or_default();
        let ended = eventually("the gateway is ready", Duration::from_secs(30), || {
            let is_ready = [self.v1, self.v2].iter().all(|address| is_ready(*address));
            process.ended().map(Some).or_else(|| is_ready.then_some(None))
        });
        if let Some(status) = ended {
            return Err(io::Error::other(format!("the gateway ended ({status}): {}", log())));
        }
        self.process = Some(process);
        Ok(())
    }

    /// Ends the process and starts another one with the same data.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> io::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal("TERM");
            process.wait(Duration::from_secs(30));
        }
        self.serve()
    }

    fn set(&mut self, key: &str, value: &str) {
        let name = format!("BIFRONS_{key}");
        self.environment.retain(|(other, _)| *other != name);
        self.environment.push((name, value.to_owned()));
    }

    pub fn address(&self, engine: Engine) -> SocketAddr {
        match engine {
            Engine::V1 => self.v1,
            Engine::V2 => self.v2,
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Process::pid)
    }

    pub fn data_directory(&self) -> PathBuf {
        // A name of its own, since that is what its place on the disk comes from.
        self.directory.join(format!("data-{}", std::process::id()))
    }

    pub fn create_user(&self, email: &str, password: &str) -> io::Result<()> {
        self.run(&["user", "create", "--role", "client", "--email", email], &format!("{password}\n")).map(drop)
    }

    /// Runs another command of the binary with the same configuration.
    fn run(&self, arguments: &[&str], input: &str) -> io::Result<String> {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BIFRONS_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("bifrons {}: {errors}", arguments.join(" "))));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.signal("KILL");
        }
    }
}

/// What a directory holds is to stand apart from the files of runs before. Without a journal, ext4 passes by each inode
/// that was deleted in the last minutes whenever it makes a file, which would count as the gateway's.
fn apart(directory: &Path) {
    let set = |directory: &File| ioctl_setflags(directory, ioctl_getflags(directory)? | IFlags::TOPDIR);
    // Not every file system has that.
    let _ = File::open(directory).map(|directory| set(&directory));
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn is_ready(address: SocketAddr) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /health/ready HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        io::Read::read_to_string(&mut stream, &mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}
