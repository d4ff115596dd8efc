//! The outbox pump: tasks that send what is due.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lettre::message::Mailbox;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{
    mailer::{Mailer, write_all},
    ports::AsyncPorts,
    sms::SmsSender,
};
use crate::{
    mail::{SetupError, Spool, compose},
    services::{
        deliver::{Posted, SendError, Sender, deliver_next, purge},
        letters::Recipient,
    },
    settings::Settings,
};

/// Tells waiting pumps that a letter was written.
#[derive(Debug, Default)]
pub struct Wake(Notify);

impl Wake {
    /// So many letters were written. Kept for a pump that is not waiting right now, which looks for more anyway.
    pub fn wake(&self, letters: usize) {
        (0..letters.min(TASKS)).for_each(|_| self.0.notify_one());
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
    const fn tasks(&self) -> usize {
        match self {
            Self::Spool(_) => 1,
            Self::Servers { .. } => TASKS,
        }
    }
}

impl Sender for Post {
    fn at_once(&self) -> usize {
        match self {
            Self::Spool(spool) => spool.at_once(),
            Self::Servers { .. } => 1,
        }
    }

    async fn send(&self, letters: &[Posted]) -> Vec<Result<(), SendError>> {
        let (mailer, sms, from) = match self {
            Self::Spool(spool) => return write_all(spool, letters).await,
            Self::Servers { mailer, sms, from } => (mailer, sms, from),
        };
        let mut told = Vec::with_capacity(letters.len());
        for Posted { id, message, at } in letters {
            told.push(match &message.to {
                Recipient::Email(to) => match compose(from, to, &message.letter.render(), *id, *at) {
                    Ok(composed) => mailer.send(&composed, *id).await,
                    Err(error) => Err(error),
                },
                Recipient::Phone(to) => sms.send(to, &message.letter.sms(), *id).await,
            });
        }
        told
    }
}

/// Running pump tasks.
pub struct Pump {
    stopping: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

const TASKS: usize = 2;
const PURGE_EVERY: Duration = Duration::from_secs(600);

impl Pump {
    /// Starts the tasks on the present runtime, on which the mailer must live and die.
    ///
    /// # Errors
    /// The mail or text-message set-up cannot be used.
    pub fn start(settings: &Settings, ports: &AsyncPorts) -> Result<Self, SetupError> {
        let post = Arc::new(Post::new(settings)?);
        let (stopping, stop) = watch::channel(false);
        let spawn = |n: usize| {
            let (ports, post, stop) = (ports.clone(), Arc::clone(&post), stop.clone());
            actix_web::rt::spawn(async move { work(&ports, &post, stop, n == 0).await })
        };
        Ok(Self { stopping, tasks: (0..post.tasks()).map(spawn).collect() })
    }

    /// Lets letters that are being sent be settled within `grace`, then stops; `true` when they were.
    pub async fn stop(self, grace: Duration) -> bool {
        self.stopping.send_replace(true);
        let ended = async {
            for task in self.tasks {
                drop(task.await);
            }
        };
        timeout(grace, ended).await.is_ok()
    }
}

async fn work(ports: &AsyncPorts, post: &Arc<Post>, mut stop: watch::Receiver<bool>, purges: bool) {
    let mut purged_at = None::<Instant>;
    while !*stop.borrow() {
        // A task of its own: letters that make the code panic cost an attempt, not the pump.
        let (at, with) = (ports.clone(), Arc::clone(post));
        let delivered = actix_web::rt::spawn(async move { deliver_next(&at, &*with).await }).await;
        // After a letter, not only when there is none: there may always be one.
        if purges && purged_at.is_none_or(|at| at.elapsed() >= PURGE_EVERY) {
            purged_at = Some(Instant::now());
            let at = ports.clone();
            if let Ok(Err(error)) = actix_web::rt::spawn(async move { purge(&at).await }).await {
                tracing::warn!(error = %error, "old rows not deleted");
            }
        }
        match delivered {
            Ok(Ok(0)) | Err(_) => (),
            Ok(Ok(letters)) => {
                if letters < post.at_once() {
                    let _ = timeout(Spool::gather(letters), stop.changed()).await;
                }
                continue;
            }
            Ok(Err(error)) => tracing::warn!(error = %error, "the outbox cannot be read"),
        }
        let woken = async {
            tokio::select! {
                () = ports.wake.0.notified() => (),
                _ = stop.changed() => (),
            }
        };
        let _ = timeout(ports.policy.outbox.poll, woken).await;
    }
}
