//! Reads anew what is remembered of the sessions in use, before its time is over: no request waits for that.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::Instant,
};

use super::ports::BlockingPorts;
use crate::services::{
    error::Unavailable,
    ports::{MOST_TOGETHER, Sessions as _},
    run::run,
    session_cache::{GATHERED_FOR, Known},
};

/// A running thread; it ends when this is dropped, after what it is reading.
pub struct Renewer {
    is_stopping: Arc<AtomicBool>,
    thread: Thread,
}

impl Renewer {
    /// Starts it.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn start(ports: &BlockingPorts) -> io::Result<Self> {
        let (ports, is_stopping) = (ports.clone(), Arc::<AtomicBool>::default());
        let sessions = ports.sessions.clone();
        let ended = Arc::clone(&is_stopping);
        let running =
            thread::Builder::new().name("v1-renewer".into()).stack_size(1 << 20).spawn(move || work(&ports, &ended))?;
        let thread = running.thread().clone();
        sessions.set_renewer(thread.clone());
        Ok(Self { is_stopping, thread })
    }
}

impl Drop for Renewer {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

#[expect(clippy::disallowed_methods, reason = "no request waits: each has its answer from what is remembered")]
fn work(ports: &BlockingPorts, is_stopping: &AtomicBool) {
    loop {
        // Also wakes for nothing, which costs little.
        thread::park();
        if is_stopping.load(Ordering::Relaxed) {
            return;
        }
        thread::sleep(GATHERED_FOR);
        // Where it fails, whoever asks when the time of what is remembered is over finds out.
        if let Ok(Err(error)) = catch_unwind(AssertUnwindSafe(|| read(ports))) {
            tracing::debug!(error = %error, "sessions not read anew");
        }
    }
}

fn read(ports: &BlockingPorts) -> Result<(), Unavailable> {
    for keys in ports.sessions.take_due().chunks(MOST_TOGETHER) {
        let (read_at, ids) = (Instant::now(), keys.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        let found = run(ports.check_out()?.sessions_with_users(&ids))?;
        for (key, found) in keys.iter().zip(found) {
            if let Ok(Some((session, user))) = found {
                ports.sessions.keep(*key, Known::new(session, user, read_at));
            }
        }
    }
    Ok(())
}
