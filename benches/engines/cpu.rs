//! What processes have used so far, read from `/proc`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use super::measure::real;

/// Processor time of single processes.
#[derive(Clone, Debug, Default)]
pub struct Usage(BTreeMap<u32, Duration>);

impl Usage {
    /// What these processes have used until now.
    pub fn of(pids: impl IntoIterator<Item = u32>) -> Self {
        Self(pids.into_iter().filter_map(|pid| Some((pid, stat(pid)?.time))).collect())
    }

    /// What the threads of a process whose names begin so have used until now.
    pub fn of_threads(pid: u32, name: &str) -> Self {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let used = tasks.filter_map(|task| {
            let is_one = fs::read_to_string(task.path().join("comm")).ok()?.starts_with(name);
            let id = task.file_name().to_str()?.parse().ok()?;
            is_one.then_some((id, read(&task.path().join("stat"))?.time))
        });
        Self(used.collect())
    }

    /// What was used since an earlier reading; a process that has ended in between is left out.
    pub fn since(&self, earlier: &Self) -> Duration {
        let used =
            |(pid, time): (&u32, &Duration)| time.saturating_sub(earlier.0.get(pid).copied().unwrap_or_default());
        self.0.iter().map(used).sum()
    }
}

struct Stat {
    parent: u32,
    time: Duration,
}

fn stat(pid: u32) -> Option<Stat> {
    read(Path::new(&format!("/proc/{pid}/stat")))
}

fn read(file: &Path) -> Option<Stat> {
    let text = fs::read_to_string(file).ok()?;
    // The name stands in parentheses and may hold blanks.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Stat { parent: number(1)?.try_into().ok()?, time: Duration::from_millis(ticks * 1000 / per_second) })
}

/// How busy the whole machine has been since it was started, in ticks of its processors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine {
    busy: u64,
    all: u64,
}

impl Machine {
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_ascii_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
        let sum = |fields: &[usize]| fields.iter().filter_map(|field| ticks.get(*field)).sum();
        // User, nice, system, and what the host gave to other machines.
        Self { busy: sum(&[0, 1, 2, 7]), all: ticks.iter().sum() }
    }

    /// The share of the machine that others have had since an earlier reading, when `own` is what this run has used.
    pub fn others_since(self, earlier: Self, own: Duration) -> f64 {
        let own = own.as_secs_f64() * real(rustix::param::clock_ticks_per_second());
        let (busy, all) = (real(self.busy - earlier.busy), real(self.all - earlier.all));
        ((busy - own) / all.max(1.0)).max(0.0)
    }
}

/// A process and all that descend from it.
pub fn family(root: u32) -> BTreeSet<u32> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some((pid, stat)) = pid.and_then(|pid| Some((pid, stat(pid)?))) {
            parents.insert(pid, stat.parent);
        }
    }
    let mut family = BTreeSet::from([root]);
    loop {
        let known = family.len();
        family.extend(
            parents.iter().filter(|(_, parent)| family.contains(parent)).map(|(pid, _)| *pid).collect::<Vec<_>>(),
        );
        if family.len() == known {
            return family;
        }
    }
}

/// The processes of the databases that this process has started.
pub fn databases() -> Vec<u32> {
    let is_database = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        matches!(name.trim(), "postgres" | "redis-server")
    };
    family(std::process::id()).into_iter().filter(is_database).collect()
}

/// Memory in KiB, and threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    pub resident: u64,
    pub peak: u64,
    pub threads: u64,
}

pub fn size(pid: u32) -> Size {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or_default()
    };
    Size { resident: number("VmRSS"), peak: number("VmHWM"), threads: number("Threads") }
}

/// Lets the peak begin anew, where the kernel permits it.
pub fn forget_peak(pid: u32) -> bool {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").is_ok()
}
