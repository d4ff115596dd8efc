//! Hashes passwords on the threads that are there for it, and leaves the event loop meanwhile.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use actix_rt::{Arbiter, ArbiterHandle};
use tokio::sync::oneshot;

use crate::{
    hashing::{HashPool, Last, Tell, Work},
    services::{
        error::Overloaded,
        imported_hashes::{Cost, Profile},
        passwords::{self, Arena, HashAs, HashParams, Password, Verified, Weakness},
        policy::PasswordPolicy,
    },
};

/// Hashes passwords, so many at a time.
#[derive(Clone)]
pub struct Hasher {
    params: HashParams,
    pool: HashPool,
    inbox: Option<Inbox>,
}

impl Hasher {
    /// At this cost, on these threads.
    pub const fn new(params: HashParams, pool: HashPool) -> Self {
        Self { params, pool, inbox: None }
    }

    /// The same for the worker that this is called on: whoever is told together there is told in one turn.
    #[must_use]
    pub fn here(&self) -> Self {
        Self { inbox: Arbiter::try_current().map(Inbox::of), ..self.clone() }
    }

    /// Makes a hash.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn hash(&self, password: Password, how: HashAs) -> Result<String, Overloaded> {
        let params = self.params;
        self.run(Work::Hash, move |arena| params.hash_as(&password, &how, arena)).await?.ok_or(Overloaded)
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
        self.run(Work::Hash, move |arena| params.verify(&password, hash.as_deref(), other.as_deref(), arena)).await
    }

    /// Judges a new password.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn weakness(
        &self,
        password: Password,
        personal: Vec<String>,
        policy: PasswordPolicy,
    ) -> Result<Option<Weakness>, Overloaded> {
        self.run(Work::Judging, move |_: &mut Arena| passwords::weakness(&password, &personal, &policy)).await
    }

    /// Does the work that a failed sign-in lacks beside others.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn make_up(&self, password: Password, profile: Profile, done: Option<Cost>) -> Result<(), Overloaded> {
        self.run(Work::Hash, move |_: &mut Arena| profile.make_up(done, &password)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: Work,
        run: impl FnOnce(&mut Arena) -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let ((answer, reply), inbox) = (oneshot::channel(), self.inbox.clone());
        let job = move |arena: &mut Arena| -> Option<Tell> {
            // Whoever has gone away meanwhile costs nothing more.
            if answer.is_closed() {
                return None;
            }
            let done = run(arena);
            let tell = move || drop(answer.send(done));
            Some(Box::new(move || match inbox {
                Some(inbox) => inbox.put(Box::new(tell)),
                None => {
                    tell();
                    None
                }
            }))
        };
        self.pool.submit(work, Box::new(job))?;
        reply.await.map_err(|_dropped| Overloaded)
    }
}

/// What a worker has to tell its requests. Told from another thread, each of a group would wake the worker, which would
/// go before that thread, answer one, and wait for the next.
#[derive(Clone)]
struct Inbox {
    worker: ArbiterHandle,
    untold: Arc<Mutex<Vec<Last>>>,
}

impl Inbox {
    fn of(worker: ArbiterHandle) -> Self {
        Self { worker, untold: Arc::default() }
    }

    // Whoever puts the first one there is to see to it that all are told.
    fn put(self, tell: Last) -> Option<Last> {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        untold.push(tell);
        let is_first = untold.len() == 1;
        drop(untold);
        is_first.then(|| -> Last { Box::new(move || self.tell_there()) })
    }

    fn tell_there(self) {
        let untold = Arc::clone(&self.untold);
        let take = |untold: &Mutex<Vec<Last>>| mem::take(&mut *untold.lock().unwrap_or_else(PoisonError::into_inner));
        let tell_all = {
            let untold = Arc::clone(&untold);
            move || take(&untold).into_iter().for_each(|tell| tell())
        };
        if !self.worker.spawn_fn(tell_all) {
            // The worker has ended, and its requests with it.
            drop(take(&untold));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use actix_web::rt::System;

    use super::*;

    fn inbox() -> (Arbiter, Inbox) {
        let arbiter = Arbiter::new();
        let (give, given) = channel();
        assert!(arbiter.spawn_fn(move || give.send(Arbiter::try_current().map(Inbox::of)).unwrap()));
        (arbiter, given.recv().unwrap().expect("on a worker there is one"))
    }

    #[test]
    fn a_worker_is_woken_once_for_all_that_are_told_together() {
        System::new().block_on(async {
            let (arbiter, inbox) = inbox();
            let (note, noted) = channel();
            for _ in 0..2 {
                let mut last: Vec<Last> = (0..3)
                    .filter_map(|nth| {
                        let note = note.clone();
                        inbox.clone().put(Box::new(move || note.send((nth, std::thread::current().id())).unwrap()))
                    })
                    .collect();
                assert_eq!(last.len(), 1);
                assert!(noted.try_recv().is_err(), "nobody before all were");
                last.pop().unwrap()();
                let told: Vec<_> = noted.iter().take(3).collect();
                assert_eq!(told.iter().map(|(nth, _)| *nth).collect::<Vec<_>>(), [0, 1, 2]);
                assert!(told.iter().all(|(_, thread)| *thread != std::thread::current().id()));
            }
            assert!(arbiter.stop());
        });
    }

    #[test]
    fn what_a_worker_that_has_ended_was_to_tell_is_let_go() {
        System::new().block_on(async {
            let (arbiter, inbox) = inbox();
            assert!(arbiter.stop());
            arbiter.join().unwrap();
            for _ in 0..2 {
                let (held, lets_go) = channel::<()>();
                inbox.clone().put(Box::new(move || held.send(()).unwrap())).expect("the first one")();
                assert!(lets_go.recv().is_err());
            }
        });
    }
}
