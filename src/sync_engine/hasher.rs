//! Hashes passwords on the threads that are there for it; the request's own thread waits.

use std::sync::mpsc::sync_channel;

use crate::{
    hashing::{HashPool, Tell, Work},
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
}

impl Hasher {
    /// At this cost, on these threads.
    pub const fn new(params: HashParams, pool: HashPool) -> Self {
        Self { params, pool }
    }

    /// Makes a hash.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn hash(&self, password: Password, how: HashAs) -> Result<String, Overloaded> {
        let params = self.params;
        self.run(Work::Hash, move |arena| params.hash_as(&password, &how, arena))?.ok_or(Overloaded)
    }

    /// Verifies a hash, or else another one of the same salt.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn verify(
        &self,
        password: Password,
        hash: Option<String>,
        other: Option<String>,
    ) -> Result<Verified, Overloaded> {
        let params = self.params;
        self.run(Work::Hash, move |arena| params.verify(&password, hash.as_deref(), other.as_deref(), arena))
    }

    /// Judges a new password.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn weakness(
        &self,
        password: Password,
        personal: Vec<String>,
        policy: PasswordPolicy,
    ) -> Result<Option<Weakness>, Overloaded> {
        self.run(Work::Judging, move |_: &mut Arena| passwords::weakness(&password, &personal, &policy))
    }

    /// Does the work that a failed sign-in lacks beside others.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn make_up(&self, password: Password, profile: Profile, done: Option<Cost>) -> Result<(), Overloaded> {
        self.run(Work::Hash, move |_: &mut Arena| profile.make_up(done, &password))
    }

    fn run<T: Send + 'static>(
        &self,
        work: Work,
        run: impl FnOnce(&mut Arena) -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let (answer, reply) = sync_channel(1);
        let job = move |arena: &mut Arena| -> Option<Tell> {
            let done = run(arena);
            Some(Box::new(move || {
                // Who waits is a thread of its own for each, so that nothing is left for all of them.
                let _ = answer.send(done);
                None
            }))
        };
        self.pool.submit(work, Box::new(job))?;
        reply.recv().map_err(|_dropped| Overloaded)
    }
}
