//! Argon2id costs a core for milliseconds, so it has threads of its own, behind a bounded queue.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
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
        imported_hashes::{Cost, Profile},
        passwords::{self, Arena, Guessable, HashAs, HashParams, Password, Verified},
        policy::PasswordPolicy,
    },
    settings::Settings,
};

type Job = Box<dyn FnOnce(&mut Arena) + Send>;

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
    pub async fn hash(&self, password: Password, how: HashAs) -> Result<String, Overloaded> {
        let params = self.params;
        let work = move |arena: &mut Arena| match how {
            HashAs::New(salt) => params.hash(&password, salt, arena),
            HashAs::Like(stored) => params.hash_like(&password, &stored, arena),
            HashAs::Beside(other) => params.hash_beside(&password, &other, arena),
        };
        self.run(work).await?.ok_or(Overloaded)
    }

    /// Verifies a hash, or else another one of the same salt.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn verify(
        &self,
        password: Password,
        hash: Option<String>,
        other: Option<String>,
    ) -> Result<Verified, Overloaded> {
        let params = self.params;
        self.run(move |arena| params.verify(&password, hash.as_deref(), other.as_deref(), arena)).await
    }

    /// Judges a new password.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn is_guessable(
        &self,
        password: Password,
        personal: Vec<String>,
        policy: PasswordPolicy,
    ) -> Result<Guessable, Overloaded> {
        let judge = move |_: &mut Arena| {
            let personal: Vec<&str> = personal.iter().map(String::as_str).collect();
            passwords::is_guessable(&password, &personal, &policy)
        };
        self.run(judge).await
    }

    /// Does the work that a failed sign-in lacks beside others.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn make_up(&self, password: Password, profile: Profile, done: Option<Cost>) -> Result<(), Overloaded> {
        self.run(move |_: &mut Arena| profile.make_up(done, &password)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Arena) -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let (answer, reply) = oneshot::channel();
        let job = move |arena: &mut Arena| {
            // Whoever has gone away meanwhile costs nothing more.
            if !answer.is_closed() {
                drop(answer.send(work(arena)));
            }
        };
        self.jobs.try_send(Box::new(job)).map_err(|_full| Overloaded)?;
        reply.await.map_err(|_ended| Overloaded)
    }
}

fn work(inbox: &Mutex<Receiver<Job>>) {
    let mut arena = Arena::default();
    loop {
        let next = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        // A panic is told by the hook; it must not cost a hasher.
        if catch_unwind(AssertUnwindSafe(|| job(&mut arena))).is_err() {
            arena = Arena::default();
        }
    }
}
