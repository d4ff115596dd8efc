//! How much of what was given back the system's allocator keeps for each thread.
//!
//! glibc keeps up to seven pieces of each size up to 1032 bytes for the thread that gave them back, and v1 has a few
//! hundred threads: where all of them sign somebody in, that makes 15 MiB more than with pieces of up to 200 bytes, which
//! are those that are asked for most. The rest goes back to where all find it. How much is read from the environment
//! before a program begins (glibc manual, "Tunables"), so the program begins once more: as the same process, with what it
//! was given.

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
/// In bytes.
const TUNABLE: &str = "glibc.malloc.tcache_max=200";
const ANY_OF_THIS: &[u8] = b"glibc.malloc.tcache";
/// The process that has begun once more. A program with capabilities of its own (`setcap`) may find no tunables in its
/// environment, whoever set them, and must not begin for ever.
const BEGUN: &str = "ALLOCATOR_TUNED_IN_PROCESS";

/// Begins this program once more with less kept for each thread, unless an operator has set a tunable of that.
///
/// Where what runs is not what was called, as behind a loader or another name, it goes on as it is and takes more memory.
///
/// # Errors
/// It cannot be begun again; it may go on.
pub fn keep_less() -> io::Result<()> {
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
    let says_how_much = given.as_encoded_bytes().windows(ANY_OF_THIS.len()).any(|part| part == ANY_OF_THIS);
    if says_how_much {
        return None;
    }
    let mut all = given.to_owned();
    if !all.is_empty() {
        all.push(":");
    }
    all.push(TUNABLE);
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_has_set_stays_and_nothing_is_said_twice() {
        assert_eq!(tunables(None).unwrap(), TUNABLE);
        assert_eq!(tunables(Some(OsStr::new(""))).unwrap(), TUNABLE);
        let besides = tunables(Some(OsStr::new("glibc.malloc.arena_max=2"))).unwrap();
        assert_eq!(besides, "glibc.malloc.arena_max=2:glibc.malloc.tcache_max=200");
        assert_eq!(tunables(Some(&besides)), None, "it does not begin a third time");
        assert_eq!(tunables(Some(OsStr::new("glibc.malloc.tcache_count=3"))), None);
    }
}
