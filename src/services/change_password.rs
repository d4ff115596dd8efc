//! Changes the password of a signed-in user, who shows the present one again (contract §2).

use std::time::Duration;

use garde::Validate;
use serde::Deserialize;

use super::{
    audit,
    authenticate::Bearer,
    confirm_reset::personal,
    devices,
    error::{Overloaded, Unavailable},
    fields::{FieldErrors, bounded_password, field_error, nullable, present, required_password},
    judge_password::{JudgeError, judge_password},
    lockout::{self, Subject},
    model::Caller,
    new_password::{self, NewPasswordError, Occasion},
    passwords::{HashAs, Password, Verified},
    ports::{Audit as _, Ports},
    problem::Problem,
};

/// `POST /password/change/`
#[derive(Debug, Deserialize, Validate)]
pub struct ChangePassword {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(bounded_password))]
    current_password: Option<Password>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(bounded_password))]
    old_password: Option<Password>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    new_password: Option<Password>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    confirm_password: Option<Password>,
}

/// Why the password is the old one still.
#[derive(Debug, thiserror::Error)]
pub enum ChangePasswordError {
    /// Fields are missing or wrong, or the new password breaks rules.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// The present password was another.
    #[error("the present password is wrong")]
    WrongPassword,
    /// Too many wrong ones.
    #[error("too many wrong passwords")]
    Locked(Duration),
    /// Too many hashes are being made.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<JudgeError> for ChangePasswordError {
    fn from(error: JudgeError) -> Self {
        match error {
            JudgeError::Overloaded(error) => Self::Overloaded(error),
            JudgeError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

impl From<ChangePasswordError> for Problem {
    fn from(error: ChangePasswordError) -> Self {
        match error {
            ChangePasswordError::Invalid(errors) => Self::invalid(errors),
            ChangePasswordError::WrongPassword => Self {
                errors: Some(field_error("current_password", "This is not your present password.")),
                ..Self::new(400, "invalid_current_password", "The current password is wrong.")
            },
            ChangePasswordError::Locked(wait) => {
                Self::new(429, "account_locked", "Too many failed attempts. Please try again later.").after(wait)
            }
            ChangePasswordError::Overloaded(error) => error.into(),
            ChangePasswordError::Unavailable(error) => error.into(),
        }
    }
}

/// Sets the new password; every other session ends. Returns the device's token anew: it has signed in
/// with this password, so to say.
///
/// # Errors
/// [`ChangePasswordError`].
pub async fn change_password<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    request: ChangePassword,
) -> Result<String, ChangePasswordError> {
    let invalid = |field: &str, sentence: &str| Err(ChangePasswordError::Invalid(field_error(field, sentence)));
    let present = request.current_password.or(request.old_password).filter(|given| !given.expose().is_empty());
    let Some(present) = present else { return invalid("current_password", "This field is required.") };
    let new = request.new_password.unwrap_or_else(|| Password::new(""));
    if request.confirm_password.is_some_and(|again| again.expose() != new.expose()) {
        return invalid("confirm_password", "The two passwords do not match.");
    }
    let user = &bearer.user;
    if new.expose().chars().count() > ports.policy().passwords.max_length {
        let broken = judge_password(ports, &new, &[]).await?;
        return Err(ChangePasswordError::Invalid([("new_password".to_owned(), broken)].into()));
    }
    // A stolen access token must not be a way to guess the password (ABUSE 19).
    let subject = Subject::signed_in(user.id);
    let event = audit::event(ports, "password_change", caller).of_user(user.id).in_session(bearer.session.id);
    let locked = lockout::locked_for(ports, &subject).await?;
    if let Some(wait) = locked {
        ports.store().await?.record(&event.refused("locked")).await?;
        return Err(ChangePasswordError::Locked(wait));
    }
    let verified = ports.verify_password(present.clone(), user.password_hash.clone(), None).await?;
    if user.password_hash.is_none() || !matches!(verified, Verified::Yes | Verified::Outdated) {
        let too_late = lockout::count_failure(ports, &subject).await?;
        let reason = if too_late.is_some() { "locked" } else { "invalid_current_password" };
        ports.store().await?.record(&event.refused(reason)).await?;
        return Err(too_late.map_or(ChangePasswordError::WrongPassword, ChangePasswordError::Locked));
    }
    // Guesses side by side with this one may have locked it meanwhile.
    if let Some(wait) = lockout::locked_for(ports, &subject).await? {
        return Err(ChangePasswordError::Locked(wait));
    }
    let mut broken = judge_password(ports, &new, &personal(user)).await?;
    if new.expose() == present.expose() {
        broken.push("The new password must differ from the present one.".to_owned());
    }
    if !broken.is_empty() {
        return Err(ChangePasswordError::Invalid([("new_password".to_owned(), broken)].into()));
    }
    let hash = ports.hash_password(new, HashAs::New(ports.random())).await?;
    match new_password::set(ports, caller, user, &hash, Occasion::Change(bearer.session.id)).await {
        Ok(()) => (),
        // By another change at the same time: the present password is another now.
        Err(NewPasswordError::Changed) => return Err(ChangePasswordError::WrongPassword),
        Err(NewPasswordError::Unavailable(error)) => return Err(error.into()),
    }
    if let Err(error) = lockout::forget(ports, &subject).await {
        tracing::warn!(error = %error, "failures not forgotten");
    }
    Ok(devices::remember(ports, caller, user.id))
}
