//! Empties the outbox: claims a letter, sends it, settles it.
//!
//! A claimed letter belongs to its pump for the length of a lease that is longer than any attempt
//! to send, so several instances never send one letter twice in ordinary running; a crash between
//! sending and settling may. Each letter waits for its own next attempt and stalls no other.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    error::Unavailable,
    imported_hashes::Profile,
    letters::Message,
    model::{OutboxEntry, Settlement},
    policy::OutboxPolicy,
    ports::{Before, Outbox as _, Ports, Users as _},
    registration::REGISTRATION_TTL,
};

/// Why a letter was not sent; the sentence holds no address and no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Another attempt cannot do better.
    #[error("{0}")]
    Permanent(String),
    /// Another attempt may.
    #[error("{0}")]
    Transient(String),
}

/// The way out for letters.
#[expect(async_fn_in_trait, reason = "a pump runs on the thread that made it; no `Send` bound is wanted")]
pub trait Sender {
    /// Sends one letter; `id` is its idempotency key, `at` when it was written.
    async fn send(&self, id: Uuid, message: &Message, at: OffsetDateTime) -> Result<(), SendError>;
}

/// Claims one letter that is due, sends and settles it; `false` when none was due.
///
/// # Errors
/// The database is away; a letter that was claimed is claimed again when its lease ends.
pub async fn deliver_next<P: Ports, S: Sender>(ports: &P, sender: &S) -> Result<bool, Unavailable> {
    let policy = &ports.policy().outbox;
    let owner = ports.new_id();
    let now = ports.now();
    // Not in turn with requests that write: one that came just after a letter would wait for it, and its time would tell
    // that there was one.
    let claimed = ports.store().await?.claim(owner, now, now + policy.lease, 1).await?;
    let Some(entry) = claimed.into_iter().next() else { return Ok(false) };
    let settlement = attempt(ports, sender, &entry).await;
    if let Settlement::Retry { error, .. } | Settlement::Dead { error } = &settlement {
        let is_dead = matches!(settlement, Settlement::Dead { .. });
        tracing::warn!(letter = %entry.id, kind = entry.kind, attempt = entry.attempts, is_dead, error, "not sent");
    }
    if !ports.store().await?.settle(entry.id, owner, &settlement, ports.now()).await? {
        tracing::warn!(letter = %entry.id, "the lease ended before the letter was settled");
    }
    Ok(true)
}

async fn attempt<P: Ports, S: Sender>(ports: &P, sender: &S, entry: &OutboxEntry) -> Settlement {
    let now = ports.now();
    if entry.expires_at.is_some_and(|end| end <= now) {
        return Settlement::Dead { error: "its code ran out before it could be sent".to_owned() };
    }
    // Claimed once more than allowed: an attempt ended the process, or the pump, before it was settled.
    if entry.attempts > ports.policy().outbox.attempts {
        return Settlement::Dead { error: "too many attempts were begun and never settled".to_owned() };
    }
    let opened = ports.keys().open_payload(entry.id, &entry.payload).ok();
    let message = opened.and_then(|payload| serde_json::from_slice::<Message>(&payload).ok());
    let Some(message) = message else {
        return Settlement::Dead { error: "its payload cannot be read".to_owned() };
    };
    match sender.send(entry.id, &message, entry.created_at).await {
        Ok(()) => Settlement::Sent,
        Err(SendError::Permanent(error)) => Settlement::Dead { error },
        Err(SendError::Transient(error)) => judge(entry.attempts, error, &ports.policy().outbox, ports.now()),
    }
}

/// Judges the `attempts`th failure: later, twice as late each time, or never.
pub fn judge(attempts: i32, error: String, policy: &OutboxPolicy, now: OffsetDateTime) -> Settlement {
    if attempts >= policy.attempts {
        return Settlement::Dead { error };
    }
    let doublings = u32::try_from(attempts - 1).unwrap_or_default().min(20);
    let wait = policy.backoff.saturating_mul(1 << doublings).min(policy.backoff_max);
    Settlement::Retry { at: now + wait, error }
}

/// Deletes what its retention no longer covers.
///
/// # Errors
/// The database is away.
pub async fn purge<P: Ports>(ports: &P) -> Result<usize, Unavailable> {
    let (policy, now) = (ports.policy(), ports.now());
    let unused = policy.tokens.refresh_ttl;
    let shortest = policy.sessions.absolute.map_or(unused, |absolute| absolute.min(unused));
    let before = Before {
        outbox: now - policy.outbox.retention,
        audit: now - policy.audit_retention,
        unverified: now - REGISTRATION_TTL,
        sessions: now - shortest,
    };
    // Statement by statement, each of which may take a while: whoever writes must not wait for them all.
    let mut store = ports.store().await?;
    let purged = store.purge(now, &before).await?;
    let left_out = Profile::of_rows(store.imported_hashes().await?).left_out();
    if left_out > 0 {
        tracing::warn!(
            left_out,
            "imported hashes of too many scrypt or Argon2 parameter sets: time tells whose sign-in failed with the lightest"
        );
    }
    Ok(purged)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::services::memory;

    #[test]
    fn each_attempt_waits_twice_as_long_until_the_last() {
        let policy = OutboxPolicy { attempts: 4, backoff_max: Duration::from_secs(12), ..memory::policy().outbox };
        let now = OffsetDateTime::UNIX_EPOCH;
        let wait = |attempts| match judge(attempts, "x".into(), &policy, now) {
            Settlement::Retry { at, .. } => Some((at - now).whole_seconds()),
            _ => None,
        };
        assert_eq!([1, 2, 3, 4, 5].map(wait), [Some(5), Some(10), Some(12), None, None]);
    }
}
