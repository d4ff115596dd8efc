//! Sign-out: of this session, of the one that a given refresh token belongs to, or of all.

use garde::Validate;
use serde::Deserialize;

use super::{
    audit,
    authenticate::Bearer,
    error::Unavailable,
    events::Event,
    fields::{FieldErrors, Flag, Text, field_error, nullable},
    model::{Caller, EndReason, SessionId},
    outbox,
    ports::{Audit as _, Outbox as _, Ports, Sessions as _},
    problem::Problem,
    tokens::{self, Kind},
};

/// `POST /auth/logout/`
#[derive(Debug, Default, Deserialize, Validate)]
pub struct Logout {
    #[serde(default, alias = "refresh_token", deserialize_with = "nullable")]
    #[garde(skip)]
    refresh: Option<Text>,
    #[serde(default)]
    #[garde(skip)]
    all: Flag,
}

/// Why nothing was ended.
#[derive(Debug, thiserror::Error)]
pub enum LogoutError {
    /// The refresh token given is none of this user's.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<LogoutError> for Problem {
    fn from(error: LogoutError) -> Self {
        match error {
            LogoutError::Invalid(errors) => Self::invalid(errors),
            LogoutError::Unavailable(error) => error.into(),
        }
    }
}

/// Ends sessions; their refresh and access tokens are dead from then on.
///
/// # Errors
/// [`LogoutError`].
pub async fn logout<P: Ports>(ports: &P, caller: &Caller, bearer: &Bearer, request: Logout) -> Result<(), LogoutError> {
    let named = request.refresh.map(|token| named_session(ports, bearer, &token.0)).transpose()?;
    let (user_id, now) = (bearer.user.id, ports.now());
    let action = if request.all.0 { "logout_all" } else { "logout" };
    ports
        .transaction(async |store| {
            let (why, ended) = if request.all.0 {
                (EndReason::LogoutAll, store.end_sessions_of(user_id, EndReason::LogoutAll, now).await?)
            } else {
                let mut ended = Vec::new();
                let others = named.filter(|session| *session != bearer.session.id);
                for session in [Some(bearer.session.id), others].into_iter().flatten() {
                    if store.end_session(session, EndReason::Logout, now).await? {
                        ended.push(session);
                    }
                }
                (EndReason::Logout, ended)
            };
            let event = audit::event(ports, action, caller).of_user(user_id).in_session(bearer.session.id);
            store.record(&event).await?;
            for session_id in ended {
                let event = Event::SessionEnded { user_id, session_id, reason: why };
                store.enqueue(&outbox::event(ports, &event)).await?;
            }
            Ok(())
        })
        .await
}

// A refresh token that has been rotated since still names its session.
fn named_session<P: Ports>(ports: &P, bearer: &Bearer, token: &str) -> Result<SessionId, LogoutError> {
    let claims = tokens::open(token, ports.keys(), &ports.policy().tokens, ports.now()).ok();
    let is_own = |claims: &tokens::Claims| claims.token_type == Kind::Refresh && claims.user_id == bearer.user.id;
    let claims = claims.filter(is_own);
    claims
        .map(|claims| claims.sid)
        .ok_or_else(|| LogoutError::Invalid(field_error("refresh", "This is no valid refresh token of yours.")))
}
