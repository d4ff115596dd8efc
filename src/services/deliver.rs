//! Empties the outbox: claims letters, sends them, settles them.
//!
//! A claimed letter belongs to its pump for the length of a lease that is longer than any attempt
//! to send it, so several instances never send one letter twice in ordinary running; a crash between
//! sending and settling may. Each letter waits for its own next attempt and stalls no other: several
//! are claimed at once only where none has to wait for a server ([`Sender::at_once`]).

use std::panic::{AssertUnwindSafe, catch_unwind};

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

/// A letter on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// Its idempotency key.
    pub id: Uuid,
    /// What goes to whom.
    pub message: Message,
    /// When it was written.
    pub at: OffsetDateTime,
}

/// The way out for letters.
#[expect(async_fn_in_trait, reason = "a pump runs on the thread that made it; no `Send` bound is wanted")]
pub trait Sender {
    /// How many letters it is given at a time, at most; more than one only where none waits for what became of another.
    fn at_once(&self) -> usize;
    /// Sends letters; tells of each, in their order, what became of it.
    async fn send(&self, letters: &[Posted]) -> Vec<Result<(), SendError>>;
}

/// Claims letters that are due, as many as the sender takes at once, sends and settles them; returns how many there were.
///
/// # Errors
/// The database is away; a letter that was claimed is claimed again when its lease ends.
pub async fn deliver_next<P: Ports, S: Sender>(ports: &P, sender: &S) -> Result<usize, Unavailable> {
    let policy = &ports.policy().outbox;
    let (owner, now, most) = (ports.new_id(), ports.now(), i64::try_from(sender.at_once()).unwrap_or(i64::MAX));
    // Not in turn with requests that write: one that came just after a letter would wait for it, and its time would tell
    // that there was one.
    let claimed = ports.store().await?.claim(owner, now, now + policy.lease, most).await?;
    if claimed.is_empty() {
        return Ok(0);
    }
    // One that makes the code panic must not cost the others an attempt.
    let open = |entry| catch_unwind(AssertUnwindSafe(|| open(ports, entry))).unwrap_or_else(|_panic| panicked());
    let opened = claimed.iter().map(open).collect::<Vec<_>>();
    let letters = opened.iter().filter_map(|letter| letter.as_ref().ok().cloned()).collect::<Vec<_>>();
    let mut told = sender.send(&letters).await.into_iter();
    let (mut sent, mut others) = (Vec::new(), Vec::new());
    for (entry, letter) in claimed.iter().zip(opened) {
        let told = letter.and_then(|_| told.next().unwrap_or_else(untold));
        let settlement = judge(entry.attempts, told, policy, ports.now());
        if let Settlement::Retry { error, .. } | Settlement::Dead { error } = &settlement {
            let is_dead = matches!(settlement, Settlement::Dead { .. });
            tracing::warn!(letter = %entry.id, kind = entry.kind, attempt = entry.attempts, is_dead, error, "not sent");
            others.push((entry.id, settlement));
        } else {
            sent.push(entry.id);
        }
    }
    // What cannot be settled is one letter's matter, too.
    let mut settled = settle(ports, &sent, owner, &Settlement::Sent).await;
    for (id, settlement) in others {
        settled = settled.and(settle(ports, &[id], owner, &settlement).await);
    }
    settled.map(|()| claimed.len())
}

async fn settle<P: Ports>(ports: &P, ids: &[Uuid], owner: Uuid, settlement: &Settlement) -> Result<(), Unavailable> {
    if ids.is_empty() {
        return Ok(());
    }
    let settled = ports.store().await?.settle(ids, owner, settlement, ports.now()).await?;
    if settled < ids.len() {
        tracing::warn!(letters = ?ids, settled, "the lease of some ended before they were settled");
    }
    Ok(())
}

// The letter in an entry, or why it is not sent.
fn open<P: Ports>(ports: &P, entry: &OutboxEntry) -> Result<Posted, SendError> {
    let hopeless = |error: &str| SendError::Permanent(error.to_owned());
    if entry.expires_at.is_some_and(|end| end <= ports.now()) {
        return Err(hopeless("its code ran out before it could be sent"));
    }
    // Claimed once more than allowed: an attempt ended the process, or the pump, before it was settled.
    if entry.attempts > ports.policy().outbox.attempts {
        return Err(hopeless("too many attempts were begun and never settled"));
    }
    let opened = ports.keys().open_payload(entry.id, &entry.payload).ok();
    let message = opened.and_then(|payload| serde_json::from_slice(&payload).ok());
    let message = message.ok_or_else(|| hopeless("its payload cannot be read"))?;
    Ok(Posted { id: entry.id, message, at: entry.created_at })
}

fn panicked() -> Result<Posted, SendError> {
    Err(SendError::Transient("it cannot be read".to_owned()))
}

fn untold() -> Result<(), SendError> {
    Err(SendError::Transient("nothing is known of it".to_owned()))
}

/// Judges what became of the `attempts`th attempt; after a failure: later, twice as late each time, or never.
pub fn judge(attempts: i32, told: Result<(), SendError>, policy: &OutboxPolicy, now: OffsetDateTime) -> Settlement {
    let error = match told {
        Ok(()) => return Settlement::Sent,
        Err(SendError::Permanent(error)) => return Settlement::Dead { error },
        Err(SendError::Transient(error)) if attempts >= policy.attempts => return Settlement::Dead { error },
        Err(SendError::Transient(error)) => error,
    };
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

    use std::cell::RefCell;

    use super::*;
    use crate::services::{
        identifier::Identifier,
        letters::{Letter, Recipient},
        memory::{self, World},
        model::OutboxState,
        outbox,
        run::run,
    };

    /// Takes three at a time, and fails those that go to somebody whose name begins so.
    #[derive(Default)]
    struct Three(RefCell<Vec<Vec<String>>>);

    impl Sender for Three {
        fn at_once(&self) -> usize {
            3
        }

        async fn send(&self, letters: &[Posted]) -> Vec<Result<(), SendError>> {
            let to = |letter: &Posted| match &letter.message.to {
                Recipient::Email(to) | Recipient::Phone(to) => to.clone(),
            };
            let names: Vec<String> = letters.iter().map(to).collect();
            let tell = |name: &String| match name.as_str() {
                name if name.starts_with("never") => Err(SendError::Permanent("gone".to_owned())),
                name if name.starts_with("later") => Err(SendError::Transient("away".to_owned())),
                _ => Ok(()),
            };
            let told = names.iter().map(tell).collect();
            self.0.borrow_mut().push(names);
            told
        }
    }

    fn write(world: &World, name: &str, lives: Option<Duration>) {
        let to = Identifier::email(&format!("{name}@example.org")).unwrap();
        let letter = Letter::VerificationCode { code: "042917".to_owned(), minutes: 10 };
        let entry = outbox::letter(world, &to, letter, lives.map(|lives| world.now() + lives));
        run(world.clone().enqueue(&entry)).unwrap();
    }

    #[test]
    fn of_letters_that_go_at_once_each_is_settled_for_itself() {
        let (world, sender) = (World::new(), Three::default());
        write(&world, "well", None);
        write(&world, "overdue", Some(Duration::from_secs(1)));
        write(&world, "later", None);
        write(&world, "never", None);
        write(&world, "last", None);
        world.pass(Duration::from_secs(2));
        let deliver = || run(deliver_next(&world, &sender)).unwrap();
        assert_eq!([deliver(), deliver(), deliver()], [3, 2, 0]);
        let sent = |names: &[&str]| names.iter().map(|name| format!("{name}@example.org")).collect::<Vec<_>>();
        assert_eq!(*sender.0.borrow(), [sent(&["well", "later"]), sent(&["never", "last"])]);
        let mut entries = run(world.clone().outbox_entries(None, 9)).unwrap();
        entries.reverse();
        let states: Vec<_> = entries.iter().map(|entry| (entry.state, entry.last_error.as_str())).collect();
        let expected = [
            (OutboxState::Sent, ""),
            (OutboxState::Dead, "its code ran out before it could be sent"),
            (OutboxState::Pending, "away"),
            (OutboxState::Dead, "gone"),
            (OutboxState::Sent, ""),
        ];
        assert_eq!(states, expected);
        // Only what failed waits, for its own next attempt.
        world.pass(Duration::from_secs(5));
        assert_eq!([deliver(), deliver()], [1, 0]);
    }

    #[test]
    fn who_tells_nothing_of_a_letter_has_not_sent_it() {
        struct Silent;
        impl Sender for Silent {
            fn at_once(&self) -> usize {
                2
            }

            async fn send(&self, _: &[Posted]) -> Vec<Result<(), SendError>> {
                vec![Ok(())]
            }
        }
        let world = World::new();
        write(&world, "first", None);
        write(&world, "second", None);
        assert_eq!(run(deliver_next(&world, &Silent)).unwrap(), 2);
        let pending = run(world.clone().outbox_entries(Some(OutboxState::Pending), 9)).unwrap();
        assert_eq!(
            pending.iter().map(|entry| entry.last_error.as_str()).collect::<Vec<_>>(),
            ["nothing is known of it"]
        );
    }

    #[test]
    fn each_attempt_waits_twice_as_long_until_the_last() {
        let policy = OutboxPolicy { attempts: 4, backoff_max: Duration::from_secs(12), ..memory::policy().outbox };
        let now = OffsetDateTime::UNIX_EPOCH;
        let failed = || Err(SendError::Transient("x".into()));
        let wait = |attempts| match judge(attempts, failed(), &policy, now) {
            Settlement::Retry { at, .. } => Some((at - now).whole_seconds()),
            _ => None,
        };
        assert_eq!([1, 2, 3, 4, 5].map(wait), [Some(5), Some(10), Some(12), None, None]);
    }
}
