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
    /// The identifier is to be locked.
    Lock,
}

/// Judges the `failures`th failure.
pub const fn judge(failures: i64, limit: i64) -> Verdict {
    if failures >= limit { Verdict::Lock } else { Verdict::Counted }
}

/// How long the identifier is still locked.
///
/// # Errors
/// The store is away.
pub async fn locked_for<P: Ports>(ports: &P, identifier: &Identifier) -> Result<Option<Duration>, Unavailable> {
    Ok(ports.ephemeral().get(&lock_key(ports, identifier)).await?.map(|lock| lock.expires_in))
}

/// Counts a failure; says how long the identifier is locked now, when it is.
///
/// # Errors
/// The store is away.
pub async fn count_failure<P: Ports>(ports: &P, identifier: &Identifier) -> Result<Option<Duration>, Unavailable> {
    let policy = &ports.policy().lockout;
    let store = ports.ephemeral();
    let failures = store.increment(&count_key(ports, identifier), policy.duration).await?;
    match judge(failures, policy.failures) {
        Verdict::Counted => Ok(None),
        Verdict::Lock => {
            let left = store.put_if_absent(&lock_key(ports, identifier), b"1", policy.duration).await?;
            // When the lock ends, counting starts anew.
            store.remove(&count_key(ports, identifier)).await?;
            Ok(Some(left.unwrap_or(policy.duration)))
        }
    }
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
        assert_eq!(
            [1, 4, 5, 6].map(|n| judge(n, 5)),
            [Verdict::Counted, Verdict::Counted, Verdict::Lock, Verdict::Lock]
        );
    }

    #[test]
    fn a_lock_ends_by_itself_and_is_not_extended() {
        let world = World::new();
        let ada = Identifier::email("ada@example.org").unwrap();
        for _ in 0..4 {
            assert_eq!(run(count_failure(&world, &ada)).unwrap(), None);
        }
        assert_eq!(run(count_failure(&world, &ada)).unwrap(), Some(Duration::from_secs(900)));
        world.pass(Duration::from_secs(600));
        for _ in 0..20 {
            run(count_failure(&world, &ada)).unwrap();
        }
        assert_eq!(run(locked_for(&world, &ada)).unwrap(), Some(Duration::from_secs(300)));
        world.pass(Duration::from_secs(301));
        assert_eq!(run(locked_for(&world, &ada)).unwrap(), None);
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
