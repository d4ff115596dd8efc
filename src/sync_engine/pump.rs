//! The outbox pump: threads that send what is due.

use std::{
    future::{Ready, ready},
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lettre::message::Mailbox;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{mailer::Mailer, ports::BlockingPorts, sms::SmsSender};
use crate::{
    mail::{SetupError, compose},
    services::{
        deliver::{SendError, Sender, deliver_next, purge},
        letters::{Message, Recipient},
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
}

impl Wake {
    /// A letter was written.
    pub fn wake(&self) {
        self.change(|state| state.letters += 1);
    }

    fn stop(&self) {
        self.change(|state| state.is_stopping = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn is_stopping(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_stopping
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
struct Post {
    mailer: Mailer,
    sms: SmsSender,
    from: Mailbox,
}

#[expect(refining_impl_trait, reason = "`Ready` is the proof that nothing here waits")]
impl Sender for Post {
    fn send(&self, id: Uuid, message: &Message, at: OffsetDateTime) -> Ready<Result<(), SendError>> {
        ready(match &message.to {
            Recipient::Email(to) => compose(&self.from, to, &message.letter.render(), id, at)
                .and_then(|composed| self.mailer.send(&composed, id)),
            Recipient::Phone(to) => self.sms.send(to, &message.letter.sms(), id),
        })
    }
}

/// Running pump threads.
pub struct Pump {
    wake: Arc<Wake>,
    threads: Vec<JoinHandle<()>>,
}

// More than one, so that a slow recipient does not hold up the next.
const THREADS: usize = 2;
const PURGE_EVERY: Duration = Duration::from_secs(600);

impl Pump {
    /// Starts the threads.
    ///
    /// # Errors
    /// The mail or text-message set-up cannot be used.
    pub fn start(settings: &Settings, ports: &BlockingPorts) -> Result<Self, SetupError> {
        let mailer = Mailer::new(&settings.mail(), settings.mail.timeout)?;
        let sms = SmsSender::new(&settings.sms(), settings.sms.timeout)?;
        let post = Arc::new(Post { mailer, sms, from: settings.mail.from.clone() });
        let spawn = |n: usize| -> io::Result<JoinHandle<()>> {
            let (ports, post) = (ports.clone(), Arc::clone(&post));
            thread::Builder::new()
                .name(format!("v1-pump-{n}"))
                .stack_size(1 << 20)
                .spawn(move || work(&ports, &post, n == 0))
        };
        let threads = (0..THREADS).map(spawn).collect::<io::Result<_>>();
        let threads = threads.map_err(|error| SetupError(format!("cannot start a pump: {error}")))?;
        Ok(Self { wake: Arc::clone(&ports.wake), threads })
    }

    /// Lets letters that are being sent be settled, then stops.
    pub fn stop(self) {
        self.wake.stop();
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn work(ports: &BlockingPorts, post: &Post, purges: bool) {
    let mut seen = 0;
    let mut purged_at = None::<Instant>;
    while !ports.wake.is_stopping() {
        if purges && purged_at.is_none_or(|at| at.elapsed() >= PURGE_EVERY) {
            purged_at = Some(Instant::now());
            if let Err(error) = run(purge(ports)) {
                tracing::warn!(error = %error, "old rows not deleted");
            }
        }
        match run(deliver_next(ports, post)) {
            Ok(true) => (),
            Ok(false) => seen = ports.wake.wait(seen, ports.policy.outbox.poll),
            Err(error) => {
                tracing::warn!(error = %error, "the outbox cannot be read");
                seen = ports.wake.wait(seen, ports.policy.outbox.poll);
            }
        }
    }
}
