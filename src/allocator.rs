//! What the system's allocator is told before the program begins.
//!
//! glibc keeps up to seven pieces of each size up to 1032 bytes for the thread that gave them back, and v1 has a few
//! hundred threads: where all of them sign somebody in, that makes 15 MiB more than with pieces of up to 200 bytes, which
//! are those that are asked for most. The rest goes back to where all find it.
//!
//! Large pieces, of which the 19 MiB of a hash are the largest by far, are to lie in pages of 2 MiB where the kernel is
//! set to give those on request (`transparent_hugepage/enabled` is `madvise`; with `always` they do anyway, with `never`
//! they do not). A hash goes through its memory without order, and finds more addresses of 4 KiB than a processor
//! remembers: sign-ins under load are faster by a twenty-fifth so (docs/BENCHMARKS.md).
//!
//! Both are read from the environment before a program begins (glibc manual, "Memory Allocation Tunables"), so the
//! program begins once more: as the same process, with what it was given.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
    sync::Arc,
};

use signal_hook::{consts::SIGPIPE, flag};

const VARIABLE: &str = "GLIBC_TUNABLES";
/// What is told, unless an operator has told something that begins with the other.
const TUNABLES: [(&str, &str); 2] = [
    // In bytes.
    ("glibc.malloc.tcache_max=200", "glibc.malloc.tcache"),
    // On request. The value is a mode and no number of pages; glibc before 2.35 does not know it and goes on without.
    ("glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb"),
];
/// The process that has begun once more. A program with capabilities of its own (`setcap`) may find no tunables in its
/// environment, whoever set them, and must not begin for ever.
const BEGUN: &str = "ALLOCATOR_TUNED_IN_PROCESS";

/// Begins this program once more with what the allocator is to be told, unless an operator has told it all of that.
///
/// Where what runs is not what was called, as behind a loader or another name, it goes on as it is, takes more
/// memory and makes fewer hashes.
///
/// # Errors
/// It cannot be begun again; it may go on.
pub fn tune() -> io::Result<()> {
    let process = std::process::id().to_string();
    if !cfg!(target_env = "gnu") || env::var_os(BEGUN).is_some_and(|begun| begun == *process) {
        return Ok(());
    }
    let Some(tunables) = tunables(env::var_os(VARIABLE).as_deref()) else { return Ok(()) };
    let (program, mut arguments) = (env::current_exe()?, env::args_os());
    let Some(name) = arguments.next().filter(|name| Path::new(name).file_name() == program.file_name()) else {
        return Ok(());
    };
    let mut again = Command::new(program);
    let failed = again.arg0(name).args(arguments).env(VARIABLE, tunables).env(BEGUN, process).exec();
    // Writing to a connection or a pipe that nobody reads would end the process from here on: `exec` puts the signal
    // back to what a new program expects.
    flag::register(SIGPIPE, Arc::default())?;
    Err(failed)
}

// What to begin with, if not with what there is.
fn tunables(given: Option<&OsStr>) -> Option<OsString> {
    let given = given.unwrap_or_default();
    let is_told = |of: &str| given.as_encoded_bytes().windows(of.len()).any(|part| part == of.as_bytes());
    let mut all = given.to_owned();
    for (tunable, _) in TUNABLES.iter().filter(|(_, any_of_this)| !is_told(any_of_this)) {
        if !all.is_empty() {
            all.push(":");
        }
        all.push(tunable);
    }
    (all != given).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_has_set_stays_and_nothing_is_said_twice() {
        let ours = "glibc.malloc.tcache_max=200:glibc.malloc.hugetlb=1";
        assert_eq!(tunables(None).unwrap(), ours);
        assert_eq!(tunables(Some(OsStr::new(""))).unwrap(), ours);
        let besides = tunables(Some(OsStr::new("glibc.malloc.arena_max=2"))).unwrap();
        assert_eq!(besides, *format!("glibc.malloc.arena_max=2:{ours}"));
        assert_eq!(tunables(Some(&besides)), None, "it does not begin a third time");
        let theirs = tunables(Some(OsStr::new("glibc.malloc.tcache_count=3"))).unwrap();
        assert_eq!(theirs, "glibc.malloc.tcache_count=3:glibc.malloc.hugetlb=1");
        let theirs = tunables(Some(OsStr::new("glibc.malloc.hugetlb=0"))).unwrap();
        assert_eq!(theirs, "glibc.malloc.hugetlb=0:glibc.malloc.tcache_max=200");
    }
}
