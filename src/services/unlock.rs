//! Lifts a lock-out for an operator.

use super::{
    audit,
    error::Unavailable,
    identifier::{Identifier, InvalidIdentifier},
    lockout,
    model::Caller,
    ports::{Audit as _, Ports, Users as _},
    register::stored_identifiers,
};

/// Why nothing was lifted; `Display` is the sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// The address or number is malformed.
    #[error(transparent)]
    Identifier(#[from] InvalidIdentifier),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Lifts the lock of an identifier, and of the other one of its user where there is one, on every
/// device; `true` when something was locked.
///
/// # Errors
/// [`UnlockError`].
pub async fn unlock<P: Ports>(ports: &P, caller: &Caller, typed: &str) -> Result<bool, UnlockError> {
    let identifier = Identifier::email_or_phone(typed, &ports.policy().default_region)?;
    let user = ports.store().await?.user_by_identifier(&identifier).await?;
    let mut all = user.as_ref().map(stored_identifiers).unwrap_or_default();
    if !all.iter().any(|own| own.comparable() == identifier.comparable()) {
        all.push(identifier.clone());
    }
    let mut was_locked = false;
    for identifier in &all {
        was_locked |= lockout::lift(ports, identifier).await?;
    }
    let event = audit::event(ports, "unlock", caller).with_identifier(ports, &identifier);
    let event = user.map(|user| event.clone().of_user(user.id)).unwrap_or(event);
    ports.store().await?.record(&event).await?;
    Ok(was_locked)
}
