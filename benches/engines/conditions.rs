//! Under what conditions a run was made.

use std::{fs, process::Command};

use super::{limits::slots, options::Options};

pub fn now(options: &Options) -> Vec<(String, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let is_changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let gibibytes = memory.trim_end_matches(" kB").parse::<u64>().map_or(0, |kib| kib / (1 << 20));
    let load = read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
    let date = bifrons::system::now();
    let given: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    [
        ("made", format!("{} {:02}:{:02} UTC", date.date(), date.hour(), date.minute())),
        ("commit", if is_changed { format!("{commit}, with changes") } else { commit }),
        ("options", if given.is_empty() { "none".to_owned() } else { given.join(" ") }),
        ("processor", field(&read("/proc/cpuinfo"), "model name")),
        ("cores", slots().to_string()),
        ("memory", format!("{gibibytes} GiB")),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("load of the machine before", load),
        ("each measurement", format!("{:.1} s, {:?} rounds", options.length().as_secs_f64(), options.rounds().0)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}
