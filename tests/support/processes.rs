//! Child processes that end with the test process, even when that is killed, and the directories they work in.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Waits for the program and, beside it, for the end of standard input, which is the end of the test process.
const TIED: &str = r#"
signal=$0
exec 3<&0
"$@" </dev/null 3<&- >&2 & program=$!
echo $program
{ cat <&3; kill -"$signal" $program; sleep 5; kill -KILL $program; } >/dev/null 2>&1 & watcher=$!
wait $program; status=$?
kill $watcher 2>/dev/null
exit $status
"#;

/// Removes the directory when the test process has ended and its children are gone.
const SWEEP: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
for turn in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
  rm -rf "$0" 2>/dev/null
  sleep 0.5
  [ -e "$0" ] || exit 0
done
"#;

static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = tempfile::Builder::new().prefix("bifrons-test-").tempdir().expect("a temporary directory").keep();
    // PostgreSQL runs as another user and has to pass through.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o711)).expect("permissions of the temporary directory");
    let sweeper = Command::new("sh")
        .args(["-c", SWEEP])
        .arg(&root)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("sh starts");
    // Its standard input has to stay open as long as this process lives.
    std::mem::forget(sweeper);
    root
});

/// A new empty directory that is removed after the test process has ended.
pub fn fresh_directory(name: &str) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let directory = ROOT.join(format!("{name}-{}", COUNTER.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&directory).expect("a new directory");
    directory
}

/// Bytes from the system's random source, for keys that exist only during one test.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).expect("random bytes");
    bytes
}

/// Waits a moment between two looks at something.
#[expect(clippy::disallowed_methods, reason = "a test looks again after a while; no request waits on it")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Looks again and again until there is something to see.
pub fn eventually<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {within:?}");
        pause(Duration::from_millis(15));
    }
}

/// A port that was free a moment ago.
pub(super) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("the address of a listener").port()
}

/// What to run and how.
pub struct Program {
    pub path: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(String, String)>,
    pub directory: PathBuf,
    /// Standard output and standard error are appended here.
    pub log: PathBuf,
    /// The user and group to run as, when not those of the test.
    pub account: Option<(u32, u32)>,
    /// The signal that ends it together with the test.
    pub last_signal: &'static str,
}

impl Program {
    pub fn new(path: impl Into<PathBuf>, directory: &Path, log: &str) -> Self {
        Self {
            path: path.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: directory.to_path_buf(),
            log: directory.join(log),
            account: None,
            last_signal: "TERM",
        }
    }

    #[must_use]
    pub fn arguments<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_os_string()));
        self
    }

    pub fn start(&self) -> Process {
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = Command::new("sh");
        command.args(["-c", TIED, self.last_signal]).arg(&self.path).args(&self.arguments);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BIFRONS_") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(&self.directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        let mut child = command.spawn().expect("sh starts");
        let lifeline = child.stdin.take();
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line).expect("the process id");
        }
        let pid = line.trim().parse().expect("the process id is a number");
        Process { child, lifeline, pid }
    }
}

/// A running program; dropping it ends it.
pub struct Process {
    child: Child,
    lifeline: Option<ChildStdin>,
    pid: u32,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal by name (`TERM`, `KILL`, `STOP` …) to the program itself.
    pub fn signal(&self, name: &str) {
        let _ = Command::new("sh").args(["-c", r#"kill -"$0" "$1" 2>/dev/null"#, name, &self.pid.to_string()]).status();
    }

    /// The exit status when the program has ended; 128 and the number of the signal when one ended it.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the state of a child")
    }

    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let pid = self.pid;
        eventually(&format!("process {pid} ends"), within, || self.ended())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = self.child.wait();
    }
}
