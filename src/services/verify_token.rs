//! Whether a token is good, for services that do not hold the key (contract §2).

use garde::Validate;
use serde::Deserialize;

use super::{
    error::Unavailable,
    fields::{Exact, present, required_exact},
    ports::{Ports, Sessions as _},
    problem::Problem,
    refresh::{self, Verdict},
    tokens::{self, Kind},
};

/// `POST /auth/token/verify/`
#[derive(Debug, Deserialize, Validate)]
pub struct VerifyToken {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_exact))]
    token: Option<Exact>,
}

/// Why a token is not good.
#[derive(Debug, thiserror::Error)]
pub enum VerifyTokenError {
    /// Not issued here, out of date, spent, or of an ended session.
    #[error("the token is not valid")]
    NotValid,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<VerifyTokenError> for Problem {
    fn from(error: VerifyTokenError) -> Self {
        match error {
            VerifyTokenError::NotValid => Self::token_not_valid(),
            VerifyTokenError::Unavailable(error) => error.into(),
        }
    }
}

/// Says whether an access token would be accepted, or a refresh token would get a pair.
///
/// # Errors
/// [`VerifyTokenError`].
pub async fn verify_token<P: Ports>(ports: &P, request: VerifyToken) -> Result<(), VerifyTokenError> {
    let token = request.token.map(|token| token.0).unwrap_or_default();
    let (keys, policy, now) = (ports.keys(), &ports.policy().tokens, ports.now());
    let claims = tokens::open(&token, keys, policy, now).or(Err(VerifyTokenError::NotValid))?;
    let is_good = match claims.token_type {
        Kind::Access => {
            let known = ports.known_session(claims.sid, claims.user_id).await?.ok_or(VerifyTokenError::NotValid)?;
            let is_alive = known.session.is_alive(&ports.policy().sessions, now);
            is_alive && known.user.is_active && claims.user_id == known.user.id
        }
        // Whether it was spent must not be a second old.
        Kind::Refresh => {
            let found = ports.store().await?.session_with_user(claims.sid).await?;
            let (session, user) = found.ok_or(VerifyTokenError::NotValid)?;
            let verdict = refresh::judge(&claims, &session, &user, keys, ports.policy(), now);
            matches!(verdict, Verdict::Rotate | Verdict::Repeat)
        }
    };
    if is_good { Ok(()) } else { Err(VerifyTokenError::NotValid) }
}
