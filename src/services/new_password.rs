//! Gives a user another password: the one way in which reset and change end (contract §3, ASVS 7.4.3).

use super::{
    audit,
    error::Unavailable,
    events::Event,
    letters::Letter,
    lockout,
    model::{Caller, EndReason, OutboxEntry, SessionId, User},
    outbox,
    ports::{Audit as _, Outbox as _, Ports, Sessions as _, Users as _},
    register::stored_identifiers,
    reset_flow,
};

/// How it came about.
#[derive(Debug, Clone, Copy)]
pub enum Occasion {
    /// In this session, which goes on; every other one ends.
    Change(SessionId),
    /// With a link or code; every session ends.
    Reset,
}

/// Why there is no other password.
#[derive(Debug, thiserror::Error)]
pub enum NewPasswordError {
    /// The user was disabled or deleted, or their password changed, since they were looked up.
    #[error("the user has changed")]
    Changed,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Sets the password, ends sessions, tells the owner and writes it down, all or nothing; then voids
/// outstanding links and codes, which are bound to the old state and dead already.
///
/// # Errors
/// [`NewPasswordError`].
pub async fn set<P: Ports>(
    ports: &P,
    caller: &Caller,
    user: &User,
    hash: &str,
    occasion: Occasion,
) -> Result<(), NewPasswordError> {
    let now = ports.now();
    let (action, why, kept) = match occasion {
        Occasion::Change(session) => ("password_change", EndReason::PasswordChanged, Some(session)),
        Occasion::Reset => ("password_reset", EndReason::PasswordReset, None),
    };
    let event = audit::event(ports, action, caller).of_user(user.id);
    let event = kept.map(|session| event.clone().in_session(session)).unwrap_or(event);
    let letters = letters(ports, caller, user);
    ports
        .transaction(async |store| {
            if !store.set_password(user, hash, now).await? {
                return Err(NewPasswordError::Changed);
            }
            for session_id in store.end_sessions_of(user.id, kept, why, now).await? {
                let ended = Event::SessionEnded { user_id: user.id, session_id, reason: why };
                store.enqueue(&outbox::event(ports, &ended)).await?;
            }
            store.record(&event).await?;
            store.enqueue(&outbox::event(ports, &Event::PasswordChanged { user_id: user.id })).await?;
            for letter in &letters {
                store.enqueue(letter).await?;
            }
            Ok(())
        })
        .await?;
    // After the commit: a fault here must not undo it.
    if let Err(error) = tidy(ports, user, occasion).await {
        tracing::warn!(error = %error, "old links, codes and counts not deleted");
    }
    Ok(())
}

// To every address of theirs: whoever took over one of them must not be the only one to read it.
fn letters<P: Ports>(ports: &P, caller: &Caller, user: &User) -> Vec<OutboxEntry> {
    let client = caller.client();
    let policy = ports.policy();
    let letter = Letter::PasswordChanged {
        when: ports.now(),
        browser: client.browser,
        os: client.os,
        reset_url: format!("{}{}", policy.public_url, policy.links.password_forgotten),
    };
    stored_identifiers(user).iter().map(|to| outbox::letter(ports, to, letter.clone(), None)).collect()
}

async fn tidy<P: Ports>(ports: &P, user: &User, occasion: Occasion) -> Result<(), Unavailable> {
    reset_flow::void(ports, user.id).await?;
    // Failures were guesses at the old password; whoever proved the address may use the new one at once.
    if matches!(occasion, Occasion::Reset) {
        for identifier in stored_identifiers(user) {
            lockout::lift(ports, &identifier).await?;
        }
    }
    Ok(())
}
