//! What a signed-in user shows once more before something that an access token alone must not do: the present
//! password, and a code when there is a second factor (ASVS 7.5.1, 7.5.3).

use std::time::Duration;

use super::{
    audit,
    authenticate::Bearer,
    error::{Overloaded, Unavailable},
    fields::{FieldErrors, field_error},
    lockout::{self, Subject},
    model::{Caller, MfaMethod},
    passwords::{Password, Verified},
    ports::{Audit as _, Ports},
    problem::Problem,
    second_factor::{self, GuessError, Proof},
};

/// How long a sign-in counts as one of a moment ago, for who has no password.
pub const RECENT: Duration = Duration::from_secs(600);

/// Why it was not shown.
#[derive(Debug, thiserror::Error)]
pub enum StepUpError {
    /// A field is missing.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// The present password was another.
    #[error("the present password is wrong")]
    WrongPassword,
    /// The code is wrong or spent.
    #[error("the code is wrong")]
    WrongCode,
    /// Too many wrong ones.
    #[error("too many were wrong")]
    Locked(Duration),
    /// There is no password to show, and the sign-in was too long ago.
    #[error("the sign-in was too long ago")]
    Required,
    /// Too many hashes are being made.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<GuessError> for StepUpError {
    fn from(error: GuessError) -> Self {
        match error {
            GuessError::Wrong => Self::WrongCode,
            GuessError::Locked(wait) => Self::Locked(wait),
            GuessError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

impl From<StepUpError> for Problem {
    fn from(error: StepUpError) -> Self {
        match error {
            StepUpError::Invalid(errors) => Self::invalid(errors),
            StepUpError::WrongPassword => Self {
                errors: Some(field_error("current_password", "This is not your present password.")),
                ..Self::new(400, "invalid_current_password", "The current password is wrong.")
            },
            StepUpError::WrongCode => Self::invalid_mfa_code(),
            StepUpError::Locked(wait) => {
                Self::new(429, "account_locked", "Too many failed attempts. Please try again later.").after(wait)
            }
            StepUpError::Required => Self::new(403, "step_up_required", "Please sign in again to do this."),
            StepUpError::Overloaded(error) => error.into(),
            StepUpError::Unavailable(error) => error.into(),
        }
    }
}

/// Checks the present password, counted for the session: a stolen access token must not be a way to guess it
/// (ABUSE 19), nor to keep its owner from showing it in another session. `action` is what the audit event calls it.
///
/// # Errors
/// [`StepUpError`].
pub async fn show_password<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    action: &'static str,
    password: &Password,
) -> Result<(), StepUpError> {
    let user = &bearer.user;
    let subject = Subject::signed_in(bearer.session.id);
    let event = audit::event(ports, action, caller).of_user(user.id).in_session(bearer.session.id);
    let locked = lockout::locked_for(ports, &subject).await?;
    if let Some(wait) = locked {
        ports.store_to_write().await?.record(&event.refused("locked")).await?;
        return Err(StepUpError::Locked(wait));
    }
    let verified = ports.verify_password(password.clone(), user.password_hash.clone(), None).await?;
    if user.password_hash.is_none() || !matches!(verified, Verified::Yes | Verified::Outdated) {
        let too_late = lockout::count_failure(ports, &subject).await?;
        let reason = if too_late.is_some() { "locked" } else { "invalid_current_password" };
        ports.store_to_write().await?.record(&event.refused(reason)).await?;
        return Err(too_late.map_or(StepUpError::WrongPassword, StepUpError::Locked));
    }
    // Guesses side by side with this one may have locked it meanwhile.
    if let Some(wait) = lockout::locked_for(ports, &subject).await? {
        ports.store_to_write().await?.record(&event.refused("locked")).await?;
        return Err(StepUpError::Locked(wait));
    }
    Ok(())
}

/// Clears the count of wrong passwords, once what the right one was for is done.
pub async fn forgive<P: Ports>(ports: &P, bearer: &Bearer) {
    if let Err(error) = lockout::forget(ports, &Subject::signed_in(bearer.session.id)).await {
        tracing::warn!(error = %error, "failures not forgotten");
    }
}

/// Checks the present password, or that who has none has signed in a moment ago.
///
/// # Errors
/// [`StepUpError`].
pub async fn step_up<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    action: &'static str,
    password: Option<Password>,
) -> Result<(), StepUpError> {
    if bearer.user.password_hash.is_none() {
        if bearer.session.created_at + RECENT > ports.now() {
            return Ok(());
        }
        let event = audit::event(ports, action, caller).of_user(bearer.user.id).in_session(bearer.session.id);
        ports.store_to_write().await?.record(&event.refused("step_up_required")).await?;
        return Err(StepUpError::Required);
    }
    let Some(password) = password.filter(|given| !given.expose().is_empty()) else {
        return Err(StepUpError::Invalid(field_error("current_password", "This field is required.")));
    };
    show_password(ports, caller, bearer, action, &password).await
}

/// The same, and a code of the second factor, which is not spent yet.
///
/// # Errors
/// [`StepUpError`].
pub async fn step_up_with_code<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    action: &'static str,
    password: Option<Password>,
    typed: &str,
) -> Result<Proof, StepUpError> {
    step_up(ports, caller, bearer, action, password).await?;
    let guessed = second_factor::guess(ports, &bearer.user, method_of(typed), typed).await;
    if let Err(error) = &guessed {
        refuse_guess(ports, caller, bearer, action, error).await?;
    }
    Ok(guessed?)
}

// No recovery code is six digits.
fn method_of(typed: &str) -> MfaMethod {
    let letters = || typed.chars().filter(|letter| !letter.is_whitespace() && *letter != '-');
    match letters().count() == 6 && letters().all(|letter| letter.is_ascii_digit()) {
        true => MfaMethod::Totp,
        false => MfaMethod::RecoveryCode,
    }
}

/// Writes down that a guess of a signed-in user was refused.
///
/// # Errors
/// The database is away.
pub async fn refuse_guess<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    action: &'static str,
    error: &GuessError,
) -> Result<(), Unavailable> {
    let reason = match error {
        GuessError::Wrong => "invalid_mfa_code",
        GuessError::Locked(_) => "locked",
        GuessError::Unavailable(_) => return Ok(()),
    };
    let event = audit::event(ports, action, caller).of_user(bearer.user.id).in_session(bearer.session.id);
    ports.store_to_write().await?.record(&event.refused(reason)).await
}
