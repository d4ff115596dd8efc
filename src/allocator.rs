//! How much of what was given back the system's allocator keeps for each thread.
//!
//! glibc keeps up to seven pieces of each size below 1032 bytes for the thread that gave them back, some 80 KiB for one
//! that has signed somebody in; v1 has a few hundred threads. Below [`TUNABLE`]'s size the pieces are those that are
//! asked for most, and the rest goes back to where all find it. It is read from the environment before a program begins
//! (glibc manual, "Tunables"), so the program begins once more: as the same process, with what it was given.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    process::Command,
};

const VARIABLE: &str = "GLIBC_TUNABLES";
/// In bytes.
const TUNABLE: &str = "glibc.malloc.tcache_max=200";
const ANY_OF_THIS: &[u8] = b"glibc.malloc.tcache";
/// The process that has begun once more. A program with capabilities of its own (`setcap`) finds no tunables in its
/// environment, whoever set them, and must not begin for ever.
const BEGUN: &str = "ALLOCATOR_TUNED_IN_PROCESS";

/// Begins this program once more with less kept for each thread, unless an operator has said how much.
///
/// Where that is not possible, it goes on as it is, and takes more memory.
pub fn keep_less() {
    let process = std::process::id().to_string();
    if env::var_os(BEGUN).is_some_and(|begun| begun == *process) {
        return;
    }
    let Some(tunables) = tunables(env::var_os(VARIABLE).as_deref()) else { return };
    let (Ok(program), mut arguments) = (env::current_exe(), env::args_os()) else { return };
    if cfg!(target_env = "gnu") {
        let name = arguments.next().unwrap_or_else(|| program.clone().into());
        let mut again = Command::new(program);
        let _ = again.arg0(name).args(arguments).env(VARIABLE, tunables).env(BEGUN, process).exec();
    }
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
