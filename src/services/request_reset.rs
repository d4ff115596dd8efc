//! Asks for a new password; the answer is the same whether the account exists or not (contract §2).

use garde::Validate;
use serde::Deserialize;

use super::{
    audit,
    codes::{self, Purpose, SendTo},
    error::Unavailable,
    events::Event,
    fields::{FieldErrors, Text, nullable},
    identifier::one_of,
    model::{Caller, User},
    outbox,
    ports::{Audit as _, Outbox as _, Ports, Users as _},
    problem::Problem,
    register::stored_spelling,
    reset_flow,
};

/// `POST /password/reset-request/`
#[derive(Debug, Deserialize, Validate)]
pub struct RequestReset {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    email_or_phone: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    email: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    phone: Option<Text>,
}

/// Why nothing was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RequestResetError {
    /// Fields are missing or wrong.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<RequestResetError> for Problem {
    fn from(error: RequestResetError) -> Self {
        match error {
            RequestResetError::Invalid(errors) => Self::invalid(errors),
            RequestResetError::Unavailable(error) => error.into(),
        }
    }
}

/// Whether this account's password may be reset: whoever waits for their first code, or was disabled,
/// gets nothing.
pub fn may_reset(user: &User) -> bool {
    user.is_verified && user.is_active
}

/// Sends a link or a code to the stored address or number of an account, and does nothing visible
/// otherwise.
///
/// # Errors
/// [`RequestResetError`].
pub async fn request_reset<P: Ports>(
    ports: &P,
    caller: &Caller,
    request: RequestReset,
) -> Result<(), RequestResetError> {
    let region = &ports.policy().default_region;
    let asked =
        one_of(request.email_or_phone, request.email, request.phone, region).map_err(RequestResetError::Invalid)?;
    let user = ports.store().await?.user_by_identifier(&asked).await?;
    let to = user.as_ref().and_then(|user| stored_spelling(user, &asked)).unwrap_or(asked);
    let who = user.as_ref().map_or(SendTo::Identifier(&to), |user| SendTo::Account(user.id));
    let may_send = codes::claim_send(ports, &who, Purpose::PasswordReset).await?;
    let entitled = user.as_ref().filter(|user| may_reset(user));
    // Each case makes a link or code and writes an entry to the outbox: time must not tell them apart.
    let nobody = User::new(ports.keys().stand_in(&to.comparable()), String::new(), ports.now());
    let letter_for = entitled.filter(|_| may_send).unwrap_or(&nobody);
    let letter = reset_flow::letter(ports, letter_for, &to).await?;
    let withheld = Event::CodeWithheld { user_id: user.as_ref().map_or(nobody.id, |user| user.id) };
    let withheld = outbox::event(ports, &withheld);

    let event = audit::event(ports, "password_reset_request", caller).with_identifier(ports, &to);
    let event = user.as_ref().map(|user| event.clone().of_user(user.id)).unwrap_or(event);
    let (event, entry) = match (entitled, may_send) {
        (Some(_), true) => (event, letter),
        (Some(_), false) => (event.refused("too_soon"), withheld),
        (None, _) => (event.refused("not_entitled"), withheld),
    };
    let written = ports
        .transaction(async |store| {
            store.record(&event).await?;
            store.enqueue(&entry).await?;
            Ok::<_, RequestResetError>(())
        })
        .await;
    if written.is_err() && may_send {
        // Nothing will be sent, so the next request need not wait; should this fail too, it must.
        let _ = codes::release_send(ports, &who, Purpose::PasswordReset).await;
    }
    written
}
