//! The second factor of a sign-in (contract §3): what waits for it, guesses at it, and what a change of it writes.
//!
//! Guesses are counted for the account, whichever method they are for and however often the sign-in is begun anew: in a
//! count that locks for a while and that a right guess clears, and in one for the day, from which a right guess takes
//! nothing but itself back.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    audit,
    error::Unavailable,
    events::Event,
    identifier::Identifier,
    keys::same,
    letters::{FactorChange, Letter},
    lockout::{self, Counted, Subject},
    login_events::WAYS_IN,
    model::{Caller, EndReason, MfaMethod, SessionId, User, UserId},
    outbox,
    ports::{Audit as _, Ephemeral as _, Outbox as _, Ports, SecondFactors as _, Sessions as _},
    recovery_codes,
    register::stored_identifiers,
    session::{Half, Opened, SignedIn},
    totp::TotpFactor,
};

/// What a sign-in came to.
#[expect(clippy::large_enum_variant, reason = "made once a request; boxing the usual one buys nothing")]
#[derive(Clone)]
pub enum Entered {
    /// A session.
    SignedIn(SignedIn),
    /// The second factor is asked for.
    SecondFactor(Challenge),
}

#[cfg(test)]
impl Entered {
    /// The session of somebody without a second factor.
    pub fn signed_in(self) -> SignedIn {
        match self {
            Self::SignedIn(signed_in) => signed_in,
            Self::SecondFactor(_) => panic!("a second factor is asked for"),
        }
    }

    /// What is to be gone on with.
    pub fn challenge(self) -> Challenge {
        match self {
            Self::SecondFactor(challenge) => challenge,
            Self::SignedIn(_) => panic!("no second factor is asked for"),
        }
    }
}

/// What a sign-in that waits for its second factor is gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// `mfa_token`: good for nothing else.
    pub token: String,
    /// How long it is good.
    pub expires_in: Duration,
}

const PURPOSE: &str = "second factor";

// A sign-in that waits, sealed in the ephemeral store.
#[derive(Serialize, Deserialize)]
struct Kept {
    user_id: UserId,
    way: String,
    new_hash: Option<String>,
    // `email` or `phone`, and which.
    identifier: Option<(String, String)>,
    to_link: Option<[u8; 32]>,
    binding: String,
}

/// A sign-in that waits for its second factor, as it was kept.
pub struct Waiting {
    /// Whose.
    pub user_id: UserId,
    /// The way in, as audit events name it.
    pub way: &'static str,
    /// The password's hash made anew, when it was out of date.
    pub new_hash: Option<String>,
    /// What they signed in with; `None` with an account elsewhere.
    pub identifier: Option<Identifier>,
    /// The account elsewhere that is to be linked with theirs: its subject's index.
    pub to_link: Option<[u8; 32]>,
    binding: String,
    key: String,
    value: Vec<u8>,
    expires_in: Duration,
}

impl Waiting {
    /// Whether the user is still as they were: a new password and another second factor end what waits.
    pub fn is_of(&self, user: &User) -> bool {
        self.binding == binding(user)
    }
}

fn binding(user: &User) -> String {
    let nanos = |at: Option<time::OffsetDateTime>| at.map(time::OffsetDateTime::unix_timestamp_nanos);
    format!("{:?}|{:?}", nanos(user.password_changed_at), nanos(user.second_factor_at))
}

/// Goes on with what a way in has opened, after its unit of work: keeps what waits for a second factor. `identifier`
/// is what was signed in with, whose lock the second step obeys too; without one it obeys that of each of the user's.
///
/// # Errors
/// The store is away.
pub async fn enter<P: Ports>(
    ports: &P,
    opened: Opened,
    identifier: Option<&Identifier>,
) -> Result<Entered, Unavailable> {
    match opened {
        Opened::Session(signed_in) => Ok(Entered::SignedIn(signed_in)),
        // Most have none, and do without the room that it takes.
        Opened::SecondFactor(half) => Box::pin(challenge(ports, half, identifier)).await,
    }
}

async fn challenge<P: Ports>(ports: &P, half: Half, identifier: Option<&Identifier>) -> Result<Entered, Unavailable> {
    let Half { user, new_hash, way, to_link } = half;
    let kept = Kept {
        user_id: user.id,
        way: way.to_owned(),
        new_hash,
        identifier: identifier.map(|it| (it.kind().to_owned(), it.as_str().to_owned())),
        to_link,
        binding: binding(&user),
    };
    let (id, keys, ttl) = (ports.new_id(), ports.keys(), ports.policy().mfa.ttl);
    let clear = serde_json::to_vec(&kept).unwrap_or_default();
    ports.ephemeral().put(&key(id), &keys.seal_payload(id, &clear, ports.random()), ttl).await?;
    let token = keys.seal_challenge(PURPOSE, id.as_bytes(), ports.random());
    Ok(Entered::SecondFactor(Challenge { token, expires_in: ttl }))
}

fn key(id: Uuid) -> String {
    format!("mfa:{id}")
}

/// The sign-in that a token stands for, if it still waits.
///
/// # Errors
/// The store is away.
pub async fn waiting<P: Ports>(ports: &P, token: &str) -> Result<Option<Waiting>, Unavailable> {
    let keys = ports.keys();
    let id = keys.open_challenge(PURPOSE, token).ok().and_then(|bytes| Uuid::from_slice(&bytes).ok());
    let Some(id) = id else { return Ok(None) };
    let key = key(id);
    let Some(entry) = ports.ephemeral().get(&key).await? else { return Ok(None) };
    let kept = keys.open_payload(id, &entry.value).ok().and_then(|clear| serde_json::from_slice(&clear).ok());
    let Some(Kept { user_id, way, new_hash, identifier, to_link, binding }) = kept else { return Ok(None) };
    let Some(way) = WAYS_IN.into_iter().find(|known| *known == way) else { return Ok(None) };
    let identifier = identifier.map(|(kind, text)| match kind.as_str() {
        "email" => Identifier::Email(text),
        _ => Identifier::Phone(text),
    });
    let (value, expires_in) = (entry.value, entry.expires_in);
    Ok(Some(Waiting { user_id, way, new_hash, identifier, to_link, binding, key, value, expires_in }))
}

/// Ends the wait; `true` for exactly one of several callers.
///
/// # Errors
/// The store is away.
pub async fn claim<P: Ports>(ports: &P, waiting: &Waiting) -> Result<bool, Unavailable> {
    ports.ephemeral().remove_if_equal(&waiting.key, &waiting.value).await
}

/// Takes the end of the wait back, when the sign-in could not be done.
///
/// # Errors
/// The store is away.
pub async fn give_back<P: Ports>(ports: &P, waiting: &Waiting) -> Result<(), Unavailable> {
    ports.ephemeral().put_if_absent(&waiting.key, &waiting.value, waiting.expires_in).await.map(drop)
}

/// A right guess, not spent yet.
#[must_use]
pub enum Proof {
    /// The code of this step.
    Totp(i64),
    /// The recovery code of this digest, and how many are left without it.
    RecoveryCode([u8; 32], usize),
}

/// Says that a second factor was shown and is spent, in the unit of work that it is for.
pub struct Shown(());

/// Why a guess is no proof.
#[derive(Debug, thiserror::Error)]
pub enum GuessError {
    /// It is wrong, or was right once.
    #[error("the code is wrong")]
    Wrong,
    /// Too many were wrong.
    #[error("the second factor is locked")]
    Locked(Duration),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Checks a guess at a user's second factor.
///
/// # Errors
/// [`GuessError`].
pub async fn guess<P: Ports>(ports: &P, user: &User, method: MfaMethod, typed: &str) -> Result<Proof, GuessError> {
    // Looked up before the guess is counted: what the database could not tell is no guess.
    match method {
        MfaMethod::Totp => {
            let factor = ports.store().await?.totp(user.id).await?;
            count_and_compare(ports, user, || factor?.step_of(typed, ports.now()).map(Proof::Totp)).await
        }
        MfaMethod::RecoveryCode => {
            let unused = ports.store().await?.recovery_codes(user.id).await?;
            let digest = recovery_codes::digest(ports.keys(), user.id, typed);
            let left = unused.len().saturating_sub(1);
            let is_one = || unused.iter().any(|kept| same(kept, &digest));
            count_and_compare(ports, user, || is_one().then_some(Proof::RecoveryCode(digest, left))).await
        }
    }
}

/// Checks a guess at an authenticator that is not the user's yet.
///
/// # Errors
/// [`GuessError`].
pub async fn guess_first<P: Ports>(
    ports: &P,
    user: &User,
    factor: &TotpFactor,
    typed: &str,
) -> Result<i64, GuessError> {
    count_and_compare(ports, user, || factor.step_of(typed, ports.now())).await
}

// Counts a guess and then looks at it, so that guesses side by side get no more than their number.
async fn count_and_compare<P: Ports, T>(
    ports: &P,
    user: &User,
    compare: impl FnOnce() -> Option<T>,
) -> Result<T, GuessError> {
    let (subject, day) = (Subject::second_factor(user.id), day(user.id));
    if let Some(wait) = lockout::locked_for(ports, &subject).await? {
        return Err(GuessError::Locked(wait));
    }
    let store = ports.ephemeral();
    if store.increment(&day, DAY).await? > ports.policy().mfa.daily_guesses {
        let left = store.get(&day).await?.map_or(Duration::ZERO, |counted| counted.expires_in.min(DAY));
        // It was not looked at. Every guess that was, and was wrong, stays counted: so however many come side by
        // side, and whatever those that are not looked at or right take back, no more are looked at than may be wrong.
        store.decrement(&day).await?;
        return Err(GuessError::Locked(left));
    }
    let Counted { too_late, has_locked } = lockout::count(ports, &subject).await?;
    let found = if too_late.is_none() { compare() } else { None };
    // A right guess clears the lock that it set.
    if has_locked && found.is_none() {
        tell_of_lock(ports, user).await?;
    }
    match (found, too_late) {
        (Some(found), _) => Ok(found),
        (None, None) => Err(GuessError::Wrong),
        (None, Some(wait)) => {
            store.decrement(&day).await?;
            Err(GuessError::Locked(wait))
        }
    }
}

const DAY: Duration = Duration::from_secs(86_400);

fn day(user: UserId) -> String {
    format!("guesses:second_factor:{user}")
}

// To every address of theirs, once for each lock: somebody has got as far as the second factor.
async fn tell_of_lock<P: Ports>(ports: &P, user: &User) -> Result<(), Unavailable> {
    let minutes = ports.policy().lockout.duration.as_secs().div_ceil(60);
    ports
        .transaction(async |store| {
            for to in stored_identifiers(user) {
                let letter = Letter::SecondFactorLocked { minutes, reset_url: reset_url(ports) };
                store.enqueue(&outbox::letter(ports, &to, letter, None)).await?;
            }
            Ok(())
        })
        .await
}

/// Takes a right guess back, whether what it was for could be done or not, and clears the count that locks for a while.
/// The wrong guesses of the day stay counted: a thief with the password must not live on the owner's sign-ins.
pub async fn forgive<P: Ports>(ports: &P, user: UserId) {
    // After the commit: a fault here must not undo it.
    let forgiven = async {
        lockout::clear(ports, &Subject::second_factor(user)).await?;
        ports.ephemeral().decrement(&day(user)).await
    };
    if let Err(error) = forgiven.await {
        tracing::warn!(error = %error, "guesses at a second factor not forgotten");
    }
}

/// Lifts the lock and clears every count, for an operator; `true` when no code was taken before.
///
/// # Errors
/// The store is away.
pub async fn lift<P: Ports>(ports: &P, user: UserId) -> Result<bool, Unavailable> {
    let (store, day) = (ports.ephemeral(), day(user));
    let was_locked = lockout::clear(ports, &Subject::second_factor(user)).await?;
    // One more tells whether the day's were used up.
    let is_exhausted = store.increment(&day, DAY).await? > ports.policy().mfa.daily_guesses;
    store.remove(&day).await?;
    Ok(was_locked || is_exhausted)
}

/// Spends a right guess in the unit of work that it is for, which holds the user's row already; `None` when another has
/// spent it.
///
/// # Errors
/// The database is away.
pub async fn spend<P: Ports>(
    ports: &P,
    store: &mut P::Store,
    user: &User,
    proof: &Proof,
) -> Result<Option<Shown>, Unavailable> {
    let is_spent = match proof {
        Proof::Totp(step) => store.advance_totp(user.id, *step).await?,
        Proof::RecoveryCode(digest, _) => store.spend_recovery_code(user.id, digest, ports.now()).await?,
    };
    Ok(is_spent.then_some(Shown(())))
}

/// Tells the owner that a recovery code has signed in, and how many are left. A change has a letter of its own, and
/// leaves other codes than these.
///
/// # Errors
/// The database is away.
pub async fn tell_of_recovery_code<P: Ports>(
    ports: &P,
    store: &mut P::Store,
    user: &User,
    proof: &Proof,
) -> Result<(), Unavailable> {
    let Proof::RecoveryCode(_, left) = proof else { return Ok(()) };
    for to in stored_identifiers(user) {
        let letter = Letter::RecoveryCodeUsed { left: *left, reset_url: reset_url(ports) };
        store.enqueue(&outbox::letter(ports, &to, letter, None)).await?;
    }
    Ok(())
}

fn reset_url<P: Ports>(ports: &P) -> String {
    let policy = ports.policy();
    format!("{}{}", policy.public_url, policy.links.password_forgotten)
}

/// Writes what every change of a second factor writes: other sessions end, the owner is told, audit and domain event.
///
/// # Errors
/// The database is away.
pub async fn note_change<P: Ports>(
    ports: &P,
    store: &mut P::Store,
    caller: &Caller,
    user: &User,
    kept: Option<SessionId>,
    change: FactorChange,
) -> Result<(), Unavailable> {
    let (now, why) = (ports.now(), EndReason::SecondFactorChanged);
    for session_id in store.end_sessions_of(user.id, kept, why, now).await? {
        let ended = Event::SessionEnded { user_id: user.id, session_id, reason: why };
        store.enqueue(&outbox::event(ports, &ended)).await?;
    }
    let event = audit::event(ports, change.action(), caller).of_user(user.id);
    let event = kept.map(|session| event.clone().in_session(session)).unwrap_or(event);
    store.record(&event).await?;
    store.enqueue(&outbox::event(ports, &Event::SecondFactorChanged { user_id: user.id, change })).await?;
    let client = caller.client();
    // To every address of theirs: whoever took over one of them must not be the only one to read it.
    for to in stored_identifiers(user) {
        let letter = Letter::SecondFactorChanged {
            change,
            when: now,
            browser: client.browser.clone(),
            os: client.os.clone(),
            reset_url: reset_url(ports),
        };
        store.enqueue(&outbox::letter(ports, &to, letter, None)).await?;
    }
    Ok(())
}
