//! The outbox pump: threads that send what is due.

use std::{
    future::{Ready, ready},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lettre::message::Mailbox;

use super::{mailer::Mailer, ports::BlockingPorts, sms::SmsSender};
use crate::{
    mail::{SetupError, Spool, compose},
    services::{
        deliver::{Posted, SendError, Sender, deliver_next, purge},
        letters::Recipient,
        run::run,
    },
    settings::Settings,
};

/// Tells waiting pumps that a letter was written, or that they are to stop.
#[derive(Debug, Default)]
pub struct Wake {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    letters: u64,
    is_stopping: bool,
    running: usize,
}

impl Wake {
    /// So many letters were written.
    pub fn wake(&self, letters: usize) {
        if letters > 0 {
            self.state.lock().unwrap_or_else(PoisonError::into_inner).letters += 1;
            // As many threads as there are letters; those at work look again before they wait.
            (0..letters.min(THREADS)).for_each(|_| self.changed.notify_one());
        }
    }

    fn stop(&self) {
        self.change(|state| state.is_stopping = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    // Whether every pump has ended within `grace`.
    fn all_ended(&self, grace: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(state, grace, |state| state.running > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.running == 0
    }

    fn is_stopping(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_stopping
    }

    // For this long, unless it is to stop.
    fn rest(&self, time: Duration) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(state, time, |state| !state.is_stopping));
    }

    // Until something changed since `seen`, or for `poll`; returns what is seen now.
    fn wait(&self, seen: u64, poll: Duration) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut State| state.letters == seen && !state.is_stopping;
        let waited = self.changed.wait_timeout_while(state, poll, idle);
        waited.unwrap_or_else(PoisonError::into_inner).0.letters
    }
}

/// Sends mail and text messages.
enum Post {
    Spool(Spool),
    Servers { mailer: Mailer, sms: SmsSender, from: Mailbox },
}

impl Post {
    fn new(settings: &Settings) -> Result<Self, SetupError> {
        if let Some(spool) = Spool::of(settings) {
            return Ok(Self::Spool(spool));
        }
        let mailer = Mailer::new(&settings.mail(), settings.mail.timeout)?;
        let sms = SmsSender::new(&settings.sms(), settings.sms.timeout)?;
        Ok(Self::Servers { mailer, sms, from: settings.mail.from.clone() })
    }

    // With servers more than one, so that a slow recipient does not hold up the next.
    const fn threads(&self) -> usize {
        match self {
            Self::Spool(_) => 1,
            Self::Servers { .. } => THREADS,
        }
    }
}

#[expect(refining_impl_trait, reason = "`Ready` is the proof that nothing here waits")]
impl Sender for Post {
    fn at_once(&self) -> usize {
        match self {
            Self::Spool(spool) => spool.at_once(),
            Self::Servers { .. } => 1,
        }
    }

    fn send(&self, letters: &[Posted]) -> Ready<Vec<Result<(), SendError>>> {
        let (mailer, sms, from) = match self {
            Self::Spool(spool) => return ready(spool.write(letters)),
            Self::Servers { mailer, sms, from } => (mailer, sms, from),
        };
        let send = |Posted { id, message, at }: &Posted| match &message.to {
            Recipient::Email(to) => {
                compose(from, to, &message.letter.render(), *id, *at).and_then(|composed| mailer.send(&composed, *id))
            }
            Recipient::Phone(to) => sms.send(to, &message.letter.sms(), *id),
        };
        ready(letters.iter().map(send).collect())
    }
}

/// Running pump threads.
pub struct Pump {
    wake: Arc<Wake>,
}

const THREADS: usize = 2;
const PURGE_EVERY: Duration = Duration::from_secs(600);

impl Pump {
    /// Starts the threads.
    ///
    /// # Errors
    /// The mail or text-message set-up cannot be used.
    pub fn start(settings: &Settings, ports: &BlockingPorts) -> Result<Self, SetupError> {
        let post = Arc::new(Post::new(settings)?);
        let spawn = |n: usize| -> io::Result<JoinHandle<()>> {
            let (ports, post) = (ports.clone(), Arc::clone(&post));
            ports.wake.change(|state| state.running += 1);
            thread::Builder::new()
                .name(format!("v1-pump-{n}"))
                .stack_size(1 << 20)
                .spawn(move || work(&ports, &post, n == 0))
        };
        let threads = (0..post.threads()).map(spawn).collect::<io::Result<Vec<_>>>();
        threads.map_err(|error| SetupError(format!("cannot start a pump: {error}")))?;
        Ok(Self { wake: Arc::clone(&ports.wake) })
    }

    /// Lets letters that are being sent be settled within `grace`, then stops; `true` when they were.
    pub fn stop(self, grace: Duration) -> bool {
        self.wake.stop();
        self.wake.all_ended(grace)
    }
}

fn work(ports: &BlockingPorts, post: &Post, purges: bool) {
    let mut seen = 0;
    let mut purged_at = None::<Instant>;
    while !ports.wake.is_stopping() {
        // Letters that make the code panic cost an attempt, not the pump.
        let delivered = catch_unwind(AssertUnwindSafe(|| run(deliver_next(ports, post))));
        // After a letter, not only when there is none: there may always be one.
        if purges && purged_at.is_none_or(|at| at.elapsed() >= PURGE_EVERY) {
            purged_at = Some(Instant::now());
            if let Ok(Err(error)) = catch_unwind(AssertUnwindSafe(|| run(purge(ports)))) {
                tracing::warn!(error = %error, "old rows not deleted");
            }
        }
        match delivered {
            Ok(Ok(0)) | Err(_) => (),
            Ok(Ok(letters)) => {
                if letters < post.at_once() {
                    ports.wake.rest(Spool::gather(letters));
                }
                continue;
            }
            Ok(Err(error)) => tracing::warn!(error = %error, "the outbox cannot be read"),
        }
        seen = ports.wake.wait(seen, ports.policy.outbox.poll);
    }
    ports.wake.change(|state| state.running -= 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_ends_with_the_pump_and_not_with_a_letter() {
        let wake = Wake::default();
        let rest = |time: Duration| {
            let began = Instant::now();
            wake.rest(time);
            began.elapsed()
        };
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(60));
        thread::scope(|scope| {
            let resting = scope.spawn(|| rest(short));
            while !resting.is_finished() {
                wake.wake(1);
                thread::yield_now();
            }
            assert!(resting.join().unwrap() >= short);
            let resting = scope.spawn(|| rest(long));
            wake.stop();
            assert!(resting.join().unwrap() < long / 2);
        });
    }
}
