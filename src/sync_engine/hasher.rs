//! Argon2id on the request's own thread, behind a counting gate that bounds memory and cores.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    services::{
        error::Overloaded,
        imported_hashes::{Cost, Profile},
        passwords::{self, Arena, Guessable, HashAs, HashParams, Password, Verified},
        policy::PasswordPolicy,
    },
    settings::Settings,
};

// Whoever has waited this long had better be told to come back.
const PATIENCE: Duration = Duration::from_secs(5);

/// Hashes passwords, so many at a time.
#[derive(Clone)]
pub struct Hasher {
    params: HashParams,
    gate: Arc<Gate>,
}

struct Gate {
    state: Mutex<State>,
    freed: Condvar,
    queue: usize,
}

struct State {
    // One for each slot that is not taken.
    free: Vec<Arena>,
    waiting: usize,
}

impl Hasher {
    /// With `passwords.slots` at a time and `passwords.queue` waiting.
    pub fn new(settings: &Settings, params: HashParams, slots: usize) -> Self {
        let free = std::iter::repeat_with(Arena::default).take(slots).collect();
        let state = Mutex::new(State { free, waiting: 0 });
        Self { params, gate: Arc::new(Gate { state, freed: Condvar::new(), queue: settings.passwords.queue }) }
    }

    /// Makes a hash.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn hash(&self, password: &Password, how: &HashAs) -> Result<String, Overloaded> {
        let mut slot = self.gate.enter()?;
        let arena = &mut slot.arena;
        let hash = match how {
            HashAs::New(salt) => self.params.hash(password, *salt, arena),
            HashAs::Like(stored) => self.params.hash_like(password, stored, arena),
            HashAs::Beside(other) => self.params.hash_beside(password, other, arena),
        };
        hash.ok_or(Overloaded)
    }

    /// Verifies a hash, or else another one of the same salt.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn verify(&self, password: &Password, hash: Option<&str>, other: Option<&str>) -> Result<Verified, Overloaded> {
        let mut slot = self.gate.enter()?;
        Ok(self.params.verify(password, hash, other, &mut slot.arena))
    }

    /// Judges a new password.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn is_guessable(
        &self,
        password: &Password,
        personal: &[String],
        policy: &PasswordPolicy,
    ) -> Result<Guessable, Overloaded> {
        let _slot = self.gate.enter()?;
        let personal: Vec<&str> = personal.iter().map(String::as_str).collect();
        Ok(passwords::is_guessable(password, &personal, policy))
    }

    /// Does the work that a failed sign-in lacks beside others.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn make_up(&self, password: &Password, profile: &Profile, done: Option<Cost>) -> Result<(), Overloaded> {
        let _slot = self.gate.enter()?;
        profile.make_up(done, password);
        Ok(())
    }
}

struct Slot<'a> {
    gate: &'a Gate,
    arena: Arena,
}

impl Gate {
    fn enter(&self) -> Result<Slot<'_>, Overloaded> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.free.is_empty() && state.waiting >= self.queue {
            return Err(Overloaded);
        }
        state.waiting += 1;
        loop {
            if let Some(arena) = state.free.pop() {
                state.waiting -= 1;
                return Ok(Slot { gate: self, arena });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.waiting -= 1;
                return Err(Overloaded);
            }
            state = self.freed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let arena = std::mem::take(&mut self.arena);
        self.gate.state.lock().unwrap_or_else(PoisonError::into_inner).free.push(arena);
        self.gate.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(slots: usize, queue: usize) -> Gate {
        let free = std::iter::repeat_with(Arena::default).take(slots).collect();
        Gate { state: Mutex::new(State { free, waiting: 0 }), freed: Condvar::new(), queue }
    }

    #[test]
    fn as_many_enter_as_there_are_slots() {
        let gate = gate(2, 0);
        let (one, _two) = (gate.enter().ok().unwrap(), gate.enter().ok().unwrap());
        assert!(gate.enter().is_err());
        drop(one);
        assert!(gate.enter().is_ok());
    }

    #[test]
    fn whoever_waits_enters_when_a_slot_is_freed() {
        let gate = gate(1, 1);
        let slot = gate.enter().ok().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.enter().is_ok());
            while gate.state.lock().unwrap().waiting == 0 {
                std::thread::yield_now();
            }
            assert!(gate.enter().is_err(), "the queue holds one");
            drop(slot);
            assert!(waiting.join().unwrap());
        });
    }
}
