//! Locks an identifier after repeated failures (contract §4), whether it has an account or not.
//!
//! ```text
//!            failure, fewer than the limit            the lock runs out
//!             ┌───────┐                              ┌─────────────────┐
//!             ▼       │                              ▼                 │
//!   clean ──► counting ──── failure at the limit ──► locked ───────────┘ clean
//!     ▲          │
//!     └─ success ┘
//! ```
//! Failures are counted outside the failed request's unit of work, so that undoing it does not
//! undo them. A locked identifier counts no further: a lock does not extend itself. A device that
//! the user has signed in on counts for itself, and is locked for itself.

use std::time::Duration;

use super::{
    devices::{self, Device},
    error::Unavailable,
    identifier::Identifier,
    model::{Caller, SessionId, User, UserId},
    ports::{Entry, Ephemeral, Ports},
    register::stored_identifiers,
};

/// Whose failures are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    who: String,
    device: Option<String>,
}

impl Subject {
    /// An identifier's, on every device that its user has not signed in on, or on one that they have.
    pub fn new<P: Ports>(ports: &P, identifier: &Identifier, known: Option<&Device>) -> Self {
        let who = data_encoding::HEXLOWER.encode(&ports.keys().blind_index(identifier));
        Self { who, device: known.map(Device::name) }
    }

    /// A session's, in which the present password is shown again.
    pub fn signed_in(session: SessionId) -> Self {
        Self { who: format!("signed_in:{session}"), device: None }
    }

    /// A user's guesses at their second factor, by whatever method and in whichever sign-in.
    pub fn second_factor(user: UserId) -> Self {
        Self { who: format!("second_factor:{user}"), device: None }
    }

    fn key(&self, what: &str) -> String {
        match &self.device {
            None => format!("{what}:{}", self.who),
            Some(device) => format!("{what}:{}:{device}", self.who),
        }
    }
}

/// What one more failure does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Nothing yet.
    Counted,
    /// The identifier is to be locked; this failure is still answered as one.
    Lock,
    /// It came after the one that locked: whether it was a failure must not be told.
    TooLate,
}

/// Judges the `failures`th failure.
pub const fn judge(failures: i64, limit: i64) -> Verdict {
    if failures < limit {
        Verdict::Counted
    } else if failures == limit {
        Verdict::Lock
    } else {
        Verdict::TooLate
    }
}

/// How long the identifier is still locked.
///
/// # Errors
/// The store is away.
pub async fn locked_for<P: Ports>(ports: &P, subject: &Subject) -> Result<Option<Duration>, Unavailable> {
    Ok(left(ports, ports.ephemeral().get(&lock_key(subject)).await?))
}

/// Where a subject's lock is.
pub fn lock_key(subject: &Subject) -> String {
    subject.key("lock")
}

/// How long what was found at [`lock_key`] still locks.
pub fn left<P: Ports>(ports: &P, lock: Option<Entry>) -> Option<Duration> {
    lock.map(|lock| lock.expires_in.min(ports.policy().lockout.duration))
}

/// As [`locked_for`], and whether there are failures for [`forget`] to forget.
///
/// # Errors
/// The store is away.
pub async fn standing<P: Ports>(ports: &P, subject: &Subject) -> Result<(Option<Duration>, bool), Unavailable> {
    let [lock, failures] = ports.ephemeral().get_all([&lock_key(subject), &subject.key("failures")]).await?;
    Ok((left(ports, lock), failures.is_some()))
}

/// How long any of a user's identifiers is still locked on the caller's device: a lock on one of them is for every way in
/// that names none of them (ABUSE 19).
///
/// # Errors
/// The store is away.
pub async fn any_locked_for<P: Ports>(
    ports: &P,
    caller: &Caller,
    user: &User,
) -> Result<Option<Duration>, Unavailable> {
    let known = devices::known(ports, caller, Some(user));
    for identifier in stored_identifiers(user) {
        if let Some(wait) = locked_for(ports, &Subject::new(ports, &identifier, known.as_ref())).await? {
            return Ok(Some(wait));
        }
    }
    Ok(None)
}

/// What counting one more failure came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Counted {
    /// `Some` when failures beside this one locked: then it is to be answered as locked, as a success would be.
    pub too_late: Option<Duration>,
    /// Whether it set the lock, as exactly one of several side by side does.
    pub has_locked: bool,
}

/// Counts a failure. `Some` when the identifier was locked by failures beside this one: then it is
/// to be answered as locked, as a success would be.
///
/// # Errors
/// The store is away.
pub async fn count_failure<P: Ports>(ports: &P, subject: &Subject) -> Result<Option<Duration>, Unavailable> {
    Ok(count(ports, subject).await?.too_late)
}

/// The same, and whether this one locked.
///
/// # Errors
/// The store is away.
pub async fn count<P: Ports>(ports: &P, subject: &Subject) -> Result<Counted, Unavailable> {
    let policy = &ports.policy().lockout;
    let store = ports.ephemeral();
    // The count lives on beside the lock until its own end, which comes before the lock's.
    let failures = store.increment(&subject.key("failures"), policy.duration).await?;
    let verdict = judge(failures, policy.failures);
    if verdict == Verdict::Counted {
        return Ok(Counted { too_late: None, has_locked: false });
    }
    let left = store.put_if_absent(&subject.key("lock"), b"1", policy.duration).await?;
    if left.is_none() {
        note_locked_device(ports, subject).await?;
    }
    let wait = left.map_or(policy.duration, |left| left.min(policy.duration));
    Ok(Counted { too_late: (verdict == Verdict::TooLate).then_some(wait), has_locked: left.is_none() })
}

// For `lift`, which could not name the devices otherwise.
async fn note_locked_device<P: Ports>(ports: &P, subject: &Subject) -> Result<(), Unavailable> {
    let Some(device) = &subject.device else { return Ok(()) };
    let (store, key) = (ports.ephemeral(), devices_key(&subject.who));
    let mut devices = store.get(&key).await?.map(|entry| entry.value).unwrap_or_default();
    devices.extend_from_slice(device.as_bytes());
    devices.push(b' ');
    store.put(&key, &devices, ports.policy().lockout.duration).await
}

fn devices_key(who: &str) -> String {
    format!("locked_devices:{who}")
}

/// A success clears the count; a lock stays.
///
/// # Errors
/// The store is away.
pub async fn forget<P: Ports>(ports: &P, subject: &Subject) -> Result<(), Unavailable> {
    ports.ephemeral().remove(&subject.key("failures")).await
}

/// Clears count and lock; `true` when it was locked.
///
/// # Errors
/// The store is away.
pub async fn clear<P: Ports>(ports: &P, subject: &Subject) -> Result<bool, Unavailable> {
    let was_locked = locked_for(ports, subject).await?.is_some();
    // The count first: with the lock gone and the count full, the next failure would lock again.
    ports.ephemeral().remove(&subject.key("failures")).await?;
    ports.ephemeral().remove(&subject.key("lock")).await?;
    Ok(was_locked)
}

/// Lifts the lock of an identifier and of every device, and clears the counts; `true` when something
/// was locked.
///
/// # Errors
/// The store is away.
pub async fn lift<P: Ports>(ports: &P, identifier: &Identifier) -> Result<bool, Unavailable> {
    let (store, everywhere) = (ports.ephemeral(), Subject::new(ports, identifier, None));
    let devices = store.get(&devices_key(&everywhere.who)).await?.map(|entry| entry.value).unwrap_or_default();
    let devices = String::from_utf8(devices).unwrap_or_default();
    let on_devices = devices
        .split_whitespace()
        .map(|device| Subject { device: Some(device.to_owned()), who: everywhere.who.clone() });
    let mut was_locked = false;
    for subject in on_devices.chain([everywhere.clone()]) {
        was_locked |= clear(ports, &subject).await?;
    }
    store.remove(&devices_key(&everywhere.who)).await?;
    Ok(was_locked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{
        memory::{World, caller},
        run::run,
    };

    fn ada(world: &World) -> Subject {
        Subject::new(world, &Identifier::email("ada@example.org").unwrap(), None)
    }

    #[test]
    fn the_limit_locks_and_not_before() {
        use Verdict::{Counted, Lock, TooLate};
        assert_eq!([1, 4, 5, 6].map(|n| judge(n, 5)), [Counted, Counted, Lock, TooLate]);
    }

    #[test]
    fn a_lock_ends_by_itself_and_counting_starts_anew() {
        let world = World::new();
        let ada = ada(&world);
        for _ in 0..5 {
            assert_eq!(run(locked_for(&world, &ada)).unwrap(), None);
            assert_eq!(run(count_failure(&world, &ada)).unwrap(), None);
        }
        assert_eq!(run(count_failure(&world, &ada)).unwrap(), Some(Duration::from_secs(900)));
        assert_eq!(run(locked_for(&world, &ada)).unwrap(), Some(Duration::from_secs(900)));
        world.pass(Duration::from_secs(901));
        assert_eq!(run(locked_for(&world, &ada)).unwrap(), None);
        assert_eq!(run(count_failure(&world, &ada)).unwrap(), None);
    }

    #[test]
    fn a_success_clears_the_count() {
        let world = World::new();
        let ada = ada(&world);
        for _ in 0..4 {
            run(count_failure(&world, &ada)).unwrap();
        }
        run(forget(&world, &ada)).unwrap();
        assert_eq!(run(count_failure(&world, &ada)).unwrap(), None);
    }

    #[test]
    fn known_devices_count_for_themselves_and_a_lift_reaches_all() {
        let world = World::new();
        let identifier = Identifier::email("ada@example.org").unwrap();
        let user = User::new(UserId(uuid::Uuid::from_u128(1)), String::new(), world.now());
        let device = || {
            let token = devices::remember(&world, &caller(), user.id);
            let caller = Caller { device_token: Some(token), ..caller() };
            let device = devices::known(&world, &caller, Some(&user)).unwrap();
            Subject::new(&world, &identifier, Some(&device))
        };
        let subjects = [ada(&world), device(), device()];
        for (n, subject) in subjects.iter().enumerate() {
            for later in &subjects[n..] {
                assert_eq!(run(locked_for(&world, later)).unwrap(), None);
            }
            for _ in 0..5 {
                run(count_failure(&world, subject)).unwrap();
            }
            assert!(run(locked_for(&world, subject)).unwrap().is_some());
        }
        assert!(run(lift(&world, &identifier)).unwrap());
        for subject in &subjects {
            assert_eq!(run(locked_for(&world, subject)).unwrap(), None);
            assert_eq!(run(count_failure(&world, subject)).unwrap(), None);
            assert_eq!(run(locked_for(&world, subject)).unwrap(), None, "the count began anew");
        }
        assert!(!run(lift(&world, &identifier)).unwrap());
    }
}
