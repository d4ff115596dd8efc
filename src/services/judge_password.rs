//! Judges a new password by every rule there is (contract §4), so that each that it breaks can be named.

use super::{
    breaches::Range,
    error::{Overloaded, Unavailable},
    passwords::{self, Guessable, Password},
    policy::Breaches,
    ports::Ports,
};

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// Too many hashes are being made, and judging costs as much.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// The look-up of breached passwords does not answer, and is to be closed then.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The sentences for every rule that a new password breaks; none when it is good. `personal` is what is
/// known of the person.
///
/// # Errors
/// [`JudgeError`].
pub async fn judge_password<P: Ports>(
    ports: &P,
    password: &Password,
    personal: &[&str],
) -> Result<Vec<String>, JudgeError> {
    let policy = &ports.policy().passwords;
    let mut broken = passwords::judge_form(password, personal, policy);
    if password.expose().chars().count() > policy.max_length {
        // What is too long is not looked at any further (ABUSE 35).
        return Ok(broken);
    }
    let known: Vec<String> = personal.iter().map(|text| (*text).to_owned()).collect();
    match ports.is_guessable(password.clone(), known).await? {
        Guessable::Common => broken.push(passwords::COMMON.to_owned()),
        Guessable::Easily => broken.push(passwords::GUESSABLE.to_owned()),
        Guessable::Hardly => (),
    }
    // Nobody outside is asked about a password that is refused anyway.
    if broken.is_empty() && is_breached(ports, password).await? {
        broken.push(passwords::BREACHED.to_owned());
    }
    Ok(broken)
}

async fn is_breached<P: Ports>(ports: &P, password: &Password) -> Result<bool, Unavailable> {
    let policy = ports.policy().passwords.breaches;
    if policy == Breaches::Off {
        return Ok(false);
    }
    let range = Range::of(password);
    let listed = ports.breaches(&range.prefix).await.and_then(|answer| {
        range.is_listed(&answer).ok_or_else(|| Unavailable::breaches("its answer is no range of digests"))
    });
    match (listed, policy) {
        (Err(error), Breaches::FailOpen) => {
            tracing::warn!(error = %error, "a new password was not looked up");
            Ok(false)
        }
        (listed, _) => listed,
    }
}
