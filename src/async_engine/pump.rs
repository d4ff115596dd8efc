//! The outbox pump: tasks that send what is due.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lettre::message::Mailbox;
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};
use uuid::Uuid;

use super::{mailer::Mailer, ports::AsyncPorts, sms::SmsSender};
use crate::{
    mail::{SetupError, compose},
    services::{
        deliver::{SendError, Sender, deliver_next, purge},
        letters::{Message, Recipient},
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
struct Post {
    mailer: Mailer,
    sms: SmsSender,
    from: Mailbox,
}

impl Sender for Post {
    async fn send(&self, id: Uuid, message: &Message, at: OffsetDateTime) -> Result<(), SendError> {
        match &message.to {
            Recipient::Email(to) => {
                let composed = compose(&self.from, to, &message.letter.render(), id, at)?;
                self.mailer.send(&composed, id).await
            }
            Recipient::Phone(to) => self.sms.send(to, &message.letter.sms(), id).await,
        }
    }
}

/// Running pump tasks.
pub struct Pump {
    stopping: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

// More than one, so that a slow recipient does not hold up the next.
const TASKS: usize = 2;
const PURGE_EVERY: Duration = Duration::from_secs(600);

impl Pump {
    /// Starts the tasks on the present runtime, on which the mailer must live and die.
    ///
    /// # Errors
    /// The mail or text-message set-up cannot be used.
    pub fn start(settings: &Settings, ports: &AsyncPorts) -> Result<Self, SetupError> {
        let mailer = Mailer::new(&settings.mail(), settings.mail.timeout)?;
        let sms = SmsSender::new(&settings.sms(), settings.sms.timeout)?;
        let post = Arc::new(Post { mailer, sms, from: settings.mail.from.clone() });
        let (stopping, stop) = watch::channel(false);
        let spawn = |n: usize| {
            let (ports, post, stop) = (ports.clone(), Arc::clone(&post), stop.clone());
            actix_web::rt::spawn(async move { work(&ports, &post, stop, n == 0).await })
        };
        Ok(Self { stopping, tasks: (0..TASKS).map(spawn).collect() })
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
        // A task of its own: a letter that makes the code panic costs an attempt, not the pump.
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
            Ok(Ok(true)) => continue,
            Ok(Err(error)) => tracing::warn!(error = %error, "the outbox cannot be read"),
            Ok(Ok(false)) | Err(_) => (),
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
