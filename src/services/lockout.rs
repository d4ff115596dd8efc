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
//! undo them. A locked identifier counts no further: a lock does not extend itself.

use std::time::Duration;

use super::{
    error::Unavailable,
    identifier::Identifier,
    ports::{Ephemeral, Ports},
};

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
pub async fn locked_for<P: Ports>(ports: &P, identifier: &Identifier) -> Result<Option<Duration>, Unavailable> {
    Ok(ports.ephemeral().get(&lock_key(ports, identifier)).await?.map(|lock| lock.expires_in))
}

/// Counts a failure. `Some` when the identifier was locked by failures beside this one: then it is
/// to be answered as locked, as a success would be.
///
/// # Errors
/// The store is away.
pub async fn count_failure<P: Ports>(ports: &P, identifier: &Identifier) -> Result<Option<Duration>, Unavailable> {
    let policy = &ports.policy().lockout;
    let store = ports.ephemeral();
    // The count lives on beside the lock until its own end, which comes before the lock's.
    let failures = store.increment(&count_key(ports, identifier), policy.duration).await?;
    let verdict = judge(failures, policy.failures);
    if verdict == Verdict::Counted {
        return Ok(None);
    }
    let left = store.put_if_absent(&lock_key(ports, identifier), b"1", policy.duration).await?;
    Ok((verdict == Verdict::TooLate).then_some(left.unwrap_or(policy.duration)))
}

/// A success clears the identifier's count; a lock stays.
///
/// # Errors
/// The store is away.
pub async fn forget<P: Ports>(ports: &P, identifier: &Identifier) -> Result<(), Unavailable> {
    ports.ephemeral().remove(&count_key(ports, identifier)).await
}

fn lock_key<P: Ports>(ports: &P, identifier: &Identifier) -> String {
    format!("lock:{}", data_encoding::HEXLOWER.encode(&ports.keys().blind_index(identifier)))
}

fn count_key<P: Ports>(ports: &P, identifier: &Identifier) -> String {
    format!("failures:{}", data_encoding::HEXLOWER.encode(&ports.keys().blind_index(identifier)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{memory::World, run::run};

    #[test]
    fn the_limit_locks_and_not_before() {
        use Verdict::{Counted, Lock, TooLate};
        assert_eq!([1, 4, 5, 6].map(|n| judge(n, 5)), [Counted, Counted, Lock, TooLate]);
    }

    #[test]
    fn a_lock_ends_by_itself_and_counting_starts_anew() {
        let world = World::new();
        let ada = Identifier::email("ada@example.org").unwrap();
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
        let ada = Identifier::email("ada@example.org").unwrap();
        for _ in 0..4 {
            run(count_failure(&world, &ada)).unwrap();
        }
        run(forget(&world, &ada)).unwrap();
        assert_eq!(run(count_failure(&world, &ada)).unwrap(), None);
    }
}
