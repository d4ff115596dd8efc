//! Sign-out: of this session, of the one that a given refresh token belongs to, or of all.

use garde::Validate;
use serde::Deserialize;

use super::{
    audit,
    authenticate::Bearer,
    error::Unavailable,
    events::Event,
    fields::{Exact, Flag, nullable},
    model::{Caller, EndReason, SessionId},
    outbox,
    ports::{Audit as _, Outbox as _, Ports, Sessions as _},
    problem::Problem,
    tokens::{self, Kind},
};

/// `POST /auth/logout/`
#[derive(Debug, Default, Deserialize, Validate)]
pub struct Logout {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    refresh: Option<Exact>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    refresh_token: Option<Exact>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    all: Option<Flag>,
}

/// Why nothing was ended.
#[derive(Debug, thiserror::Error)]
pub enum LogoutError {
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<LogoutError> for Problem {
    fn from(error: LogoutError) -> Self {
        match error {
            LogoutError::Unavailable(error) => error.into(),
        }
    }
}

/// Ends sessions; their refresh and access tokens are dead from then on.
///
/// # Errors
/// [`LogoutError`].
pub async fn logout<P: Ports>(ports: &P, caller: &Caller, bearer: &Bearer, request: Logout) -> Result<(), LogoutError> {
    let token = request.refresh.or(request.refresh_token);
    let named = token.and_then(|token| named_session(ports, bearer, &token.0));
    let everywhere = request.all.unwrap_or_default().0;
    let (user_id, now) = (bearer.user.id, ports.now());
    let action = if everywhere { "logout_all" } else { "logout" };
    ports
        .transaction(async |store| {
            let (why, ended) = if everywhere {
                (EndReason::LogoutAll, store.end_sessions_of(user_id, None, EndReason::LogoutAll, now).await?)
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

// A refresh token that has been rotated since still names its session. One that is out of date or
// somebody else's names none: it must not keep its bearer from signing out.
fn named_session<P: Ports>(ports: &P, bearer: &Bearer, token: &str) -> Option<SessionId> {
    let claims = tokens::open(token, ports.keys(), &ports.policy().tokens, ports.now()).ok()?;
    let is_own = claims.token_type == Kind::Refresh && claims.user_id == bearer.user.id;
    is_own.then_some(claims.sid)
}
