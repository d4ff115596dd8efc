//! Who bears an access token, and whether its session still lives.

use std::time::Duration;

use super::{
    error::Unavailable,
    model::{Session, User},
    ports::{Ports, Sessions as _},
    problem::Problem,
    tokens::{self, Kind},
};

/// The bearer of a valid access token.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// Who.
    pub user: User,
    /// In which session.
    pub session: Session,
}

/// Why nobody was recognised.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticateError {
    /// No token was given.
    #[error("no access token was given")]
    Missing,
    /// Not issued here, out of date, of another kind, or of an ended session.
    #[error("the access token is not valid")]
    NotValid,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<AuthenticateError> for Problem {
    fn from(error: AuthenticateError) -> Self {
        match error {
            AuthenticateError::Missing => {
                Self::new(401, "not_authenticated", "Authentication credentials were not provided.")
            }
            AuthenticateError::NotValid => Self::token_not_valid(),
            AuthenticateError::Unavailable(error) => error.into(),
        }
    }
}

/// Recognises the bearer of an access token. The session is looked up each time, so that ending
/// it works at once, on every instance.
///
/// # Errors
/// [`AuthenticateError`].
pub async fn authenticate<P: Ports>(ports: &P, token: Option<&str>) -> Result<Bearer, AuthenticateError> {
    let token = token.ok_or(AuthenticateError::Missing)?;
    let (keys, now) = (ports.keys(), ports.now());
    let claims = tokens::open(token, keys, &ports.policy().tokens, now).or(Err(AuthenticateError::NotValid))?;
    if claims.token_type != Kind::Access {
        return Err(AuthenticateError::NotValid);
    }
    let mut store = ports.store().await?;
    let found = store.session_with_user(claims.sid).await?;
    let (session, user) = found.ok_or(AuthenticateError::NotValid)?;
    if !session.is_alive(&ports.policy().sessions, now) || !user.is_active || claims.user_id != user.id {
        return Err(AuthenticateError::NotValid);
    }
    if session.last_used_at + NOTED_EVERY < now {
        // A note that is not taken must not keep anybody out.
        if let Err(error) = store.touch_session(session.id, now - NOTED_EVERY, now).await {
            tracing::warn!(error = %error, "the use of a session was not noted");
        }
    }
    Ok(Bearer { user, session })
}

// Not at every request: each note is a write.
const NOTED_EVERY: Duration = Duration::from_secs(60);
