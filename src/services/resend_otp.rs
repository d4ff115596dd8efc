//! Sends a new code; the answer is the same whether an account waits for one or not (contract §2).

use garde::Validate;
use serde::Deserialize;

use super::{
    audit,
    codes::{self, Purpose, SendTo, Stored},
    error::Unavailable,
    events::Event,
    fields::{Text, nullable},
    model::Caller,
    outbox,
    ports::{Bundle, Claiming, First, Ports},
    problem::Problem,
    register::{code_letter, stored_spelling, waits_for_code},
    verify_otp::{Target, VerifyOtpError, target},
};

/// `POST /auth/resend-otp/`
#[derive(Debug, Deserialize, Validate)]
pub struct ResendOtp {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    challenge: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    email: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    phone: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    email_or_phone: Option<Text>,
}

/// Why nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum ResendOtpError {
    /// The request names nobody.
    #[error(transparent)]
    Target(#[from] VerifyOtpError),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<ResendOtpError> for Problem {
    fn from(error: ResendOtpError) -> Self {
        match error {
            ResendOtpError::Target(error) => error.into(),
            ResendOtpError::Unavailable(error) => error.into(),
        }
    }
}

/// Sends a code to an account that waits for one, and does nothing visible otherwise.
///
/// # Errors
/// [`ResendOtpError`].
pub async fn resend_otp<P: Ports>(ports: &P, caller: &Caller, request: ResendOtp) -> Result<(), ResendOtpError> {
    let asked = match target(ports, request.challenge, request.email, request.phone, request.email_or_phone).await? {
        Target::Identifier(identifier) => identifier,
        Target::Challenge(_, Some(pending)) => pending.identifier(),
        // Forged or out of date: nobody to send to, and nothing to tell.
        Target::Challenge(_, None) => return Ok(()),
    };
    let user = ports.user_of(&asked).await?;
    let to = user.as_ref().and_then(|user| stored_spelling(user, &asked)).unwrap_or(asked);
    let who = user.as_ref().map_or(SendTo::Identifier(&to), |user| SendTo::Account(user.id));
    let event = audit::event(ports, "resend_otp", caller).with_identifier(ports, &to);
    let waiting = user.as_ref().filter(|user| waits_for_code(user));
    // Each case makes a code and writes an entry to the outbox: time must not tell them apart.
    let stand_in = ports.keys().stand_in(&to.comparable());
    let draw = |user| codes::draw(ports, user, Purpose::Registration, "");
    let ((code, with), (_, without)) = (draw(waiting.map_or(stand_in, |user| user.id)), draw(stand_in));
    let stored = Stored { always: Vec::new(), with, without };
    let claim = codes::claim_send(ports, &who, Purpose::Registration, stored);
    let code = code_letter(ports, &to, code);
    let withheld = Event::CodeWithheld { user_id: user.as_ref().map_or(stand_in, |user| user.id) };
    let withheld = outbox::event(ports, &withheld);
    // Too soon after the last one, nothing is sent and nothing is told: it would tell that there
    // was a last one.
    let (event, refused, letter) = match waiting {
        Some(user) => {
            let event = event.of_user(user.id);
            (event.clone(), event.refused("too_soon"), code)
        }
        None => {
            let event = event.refused("nobody_waits");
            (event.clone(), event, withheld.clone())
        }
    };
    let granted = Bundle { first: First::Nothing, session: None, event: &event, entries: &[letter] };
    ports.claim_and_write(&Claiming { claim: &claim, granted, withheld: (&refused, &[withheld]) }).await?;
    Ok(())
}
