//! Hashes passwords on the threads that are there for it, and leaves the event loop meanwhile.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    state: Arc<Mutex<Untold>>,
}

#[derive(Default)]
struct Untold {
    tells: Vec<Last>,
    // Whether the worker has been called, and not come yet.
    is_called: bool,
}

impl Inbox {
    fn of(worker: ArbiterHandle) -> Self {
        Self { worker, state: Arc::default() }
    }

    // Until the worker is called, whoever puts something there is to call it when all of a group were told: the first one
    // may be on a thread that does not come to it for a while.
    fn put(self, tell: Last) -> Option<Last> {
        let mut state = lock(&self.state);
        state.tells.push(tell);
        let is_called = state.is_called;
        drop(state);
        (!is_called).then(|| -> Last { Box::new(move || self.call()) })
    }

    fn call(self) {
        let mut state = lock(&self.state);
        if state.tells.is_empty() || mem::replace(&mut state.is_called, true) {
            return;
        }
        drop(state);
        let errand = Errand(Some(self.state));
        // If the worker has ended, its requests have, too.
        let _ = self.worker.spawn_fn(move || errand.run());
    }
}

// Lets go what is untold where it is never run.
struct Errand(Option<Arc<Mutex<Untold>>>);

impl Errand {
    fn run(mut self) {
        if let Some(state) = self.0.take() {
            take(&state).into_iter().for_each(|tell| tell());
        }
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        if let Some(state) = self.0.take() {
            drop(take(&state));
        }
    }
}

fn lock(state: &Mutex<Untold>) -> MutexGuard<'_, Untold> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

// Whoever comes later calls the worker again.
fn take(state: &Mutex<Untold>) -> Vec<Last> {
    let mut state = lock(state);
    state.is_called = false;
    mem::take(&mut state.tells)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{RecvTimeoutError, channel},
        thread,
        time::Duration,
    };

    use actix_web::rt::System;

    use super::*;

    fn inbox() -> (Arbiter, Inbox) {
        let arbiter = Arbiter::new();
        let (give, given) = channel();
        assert!(arbiter.spawn_fn(move || give.send(Arbiter::try_current().map(Inbox::of)).unwrap()));
        (arbiter, given.recv().unwrap().expect("on a worker there is one"))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_worker_tells_in_one_turn_who_is_told_together() {
        System::new().block_on(async {
            let (arbiter, inbox) = inbox();
            let (note, noted) = channel();
            let here = thread::current().id();
            for _ in 0..2 {
                let put = |nth: usize| {
                    let (note, call) = (note.clone(), inbox.state.clone());
                    let tell = move || note.send((nth, thread::current().id(), lock(&call).tells.len())).unwrap();
                    inbox.clone().put(Box::new(tell)).expect("nobody has called the worker")
                };
                let calls: Vec<_> = (0..3).map(put).collect();
                assert!(noted.try_recv().is_err(), "nobody before all were");
                // Whoever comes to it first.
                calls.into_iter().rev().for_each(|call| call());
                for nth in 0..3 {
                    let (told, by, left) = noted.recv_timeout(LONG).unwrap();
                    assert_eq!((told, left), (nth, 0));
                    assert_ne!(by, here);
                }
                assert!(noted.try_recv().is_err(), "nobody twice");
            }
            assert!(arbiter.stop());
        });
    }

    #[test]
    fn whoever_comes_while_the_worker_is_called_is_told_with_the_others() {
        System::new().block_on(async {
            let (arbiter, inbox) = inbox();
            let ((hold, held), (note, noted)) = (channel::<()>(), channel());
            assert!(arbiter.spawn_fn(move || held.recv().unwrap()));
            let other = note.clone();
            inbox.clone().put(Box::new(move || note.send(1).unwrap())).unwrap()();
            assert!(inbox.clone().put(Box::new(move || other.send(2).unwrap())).is_none());
            hold.send(()).unwrap();
            assert_eq!([noted.recv_timeout(LONG), noted.recv_timeout(LONG)], [Ok(1), Ok(2)]);
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
                inbox.clone().put(Box::new(move || held.send(()).unwrap())).expect("it has not been called")();
                assert_eq!(lets_go.recv_timeout(LONG), Err(RecvTimeoutError::Disconnected));
            }
        });
    }
}
