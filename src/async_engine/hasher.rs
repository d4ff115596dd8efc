//! Argon2id costs a core for milliseconds, so it has threads of its own, behind a bounded queue.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use tokio::sync::oneshot;

use crate::{
    services::{
        error::Overloaded,
        passwords::{HashParams, Password, Verified},
    },
    settings::Settings,
};

type Job = Box<dyn FnOnce() + Send>;

/// Hashes passwords, so many at a time.
#[derive(Clone)]
pub struct Hasher {
    params: HashParams,
    jobs: SyncSender<Job>,
}

impl Hasher {
    /// Starts `slots` threads with `passwords.queue` places in front of them. They end when the
    /// last hasher is dropped.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(settings: &Settings, params: HashParams, slots: usize) -> io::Result<Self> {
        let (jobs, inbox) = sync_channel::<Job>(settings.passwords.queue);
        let inbox = Arc::new(Mutex::new(inbox));
        for n in 0..slots {
            let inbox = Arc::clone(&inbox);
            thread::Builder::new().name(format!("v2-argon2-{n}")).stack_size(1 << 20).spawn(move || work(&inbox))?;
        }
        Ok(Self { params, jobs })
    }

    /// Makes a hash.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn hash(&self, password: Password, salt: [u8; 16]) -> Result<String, Overloaded> {
        let params = self.params;
        self.run(move || params.hash(&password, salt)).await?.ok_or(Overloaded)
    }

    /// Verifies a hash.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn verify(&self, password: Password, hash: Option<String>) -> Result<Verified, Overloaded> {
        let params = self.params;
        self.run(move || params.verify(&password, hash.as_deref())).await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Overloaded> {
        let (answer, reply) = oneshot::channel();
        let job = move || {
            // Whoever has gone away meanwhile costs nothing more.
            if !answer.is_closed() {
                drop(answer.send(work()));
            }
        };
        self.jobs.try_send(Box::new(job)).map_err(|_full| Overloaded)?;
        reply.await.map_err(|_ended| Overloaded)
    }
}

fn work(inbox: &Mutex<Receiver<Job>>) {
    loop {
        let next = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        job();
    }
}
