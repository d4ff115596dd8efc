//! A user's own sessions: seen, and ended one by one or all but this (contract §2, ASVS 7.4.5, 7.5.2).

use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    audit,
    authenticate::Bearer,
    error::Unavailable,
    events::Event,
    model::{Caller, EndReason, Page, Session, SessionId},
    outbox,
    pages::Shown,
    policy::SessionPolicy,
    ports::{Audit as _, Living, Outbox as _, Ports, Sessions as _},
    problem::Problem,
};

/// Why no session was ended.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// There is none with this id that is the user's and lives.
    #[error("no such session")]
    NotFound,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<RevokeError> for Problem {
    fn from(error: RevokeError) -> Self {
        match error {
            RevokeError::NotFound => Self::new(404, "not_found", "There is no such session."),
            RevokeError::Unavailable(error) => error.into(),
        }
    }
}

/// Which sessions live at `now`.
pub fn living(policy: &SessionPolicy, now: OffsetDateTime) -> Living {
    let since = |limit: Option<std::time::Duration>| limit.map_or(OffsetDateTime::UNIX_EPOCH, |limit| now - limit);
    Living { at: now, used_after: since(policy.idle), opened_after: since(policy.absolute) }
}

/// The living sessions of the bearer, the newest sign-in first.
///
/// # Errors
/// The database is away.
pub async fn sessions<P: Ports>(ports: &P, bearer: &Bearer, page: Page) -> Result<Shown<Session>, Unavailable> {
    let living = living(&ports.policy().sessions, ports.now());
    let listed = ports.store().await?.sessions_of(bearer.user.id, &living, page).await?;
    Ok(Shown::new(listed, page, |session| (session.created_at, session.id.0)))
}

/// Ends one session of the bearer; another user's is not found.
///
/// # Errors
/// [`RevokeError`].
pub async fn revoke<P: Ports>(ports: &P, caller: &Caller, bearer: &Bearer, id: &str) -> Result<(), RevokeError> {
    let id = Uuid::try_parse(id).map(SessionId).or(Err(RevokeError::NotFound))?;
    let found = ports.store().await?.session_with_user(id).await?;
    let event = audit::event(ports, "session_revoke", caller).of_user(bearer.user.id);
    let Some((session, _)) =
        found.filter(|(session, user)| session.user_id == bearer.user.id && user.id == session.user_id)
    else {
        ports.store().await?.record(&event.refused("not_found")).await?;
        return Err(RevokeError::NotFound);
    };
    let (user_id, now) = (bearer.user.id, ports.now());
    if !session.is_alive(&ports.policy().sessions, now) {
        return Err(RevokeError::NotFound);
    }
    ports
        .transaction(async |store| {
            if !store.end_session(id, EndReason::Revoked, now).await? {
                return Err(RevokeError::NotFound);
            }
            store.record(&event.in_session(id)).await?;
            let ended = Event::SessionEnded { user_id, session_id: id, reason: EndReason::Revoked };
            store.enqueue(&outbox::event(ports, &ended)).await?;
            Ok(())
        })
        .await
}

/// Ends every session of the bearer but this one; returns how many.
///
/// # Errors
/// The database is away.
pub async fn revoke_others<P: Ports>(ports: &P, caller: &Caller, bearer: &Bearer) -> Result<usize, Unavailable> {
    let (user_id, this, now) = (bearer.user.id, bearer.session.id, ports.now());
    ports
        .transaction(async |store| {
            let ended = store.end_sessions_of(user_id, Some(this), EndReason::Revoked, now).await?;
            let event = audit::event(ports, "sessions_revoke_others", caller).of_user(user_id).in_session(this);
            store.record(&event).await?;
            for session_id in &ended {
                let ended = Event::SessionEnded { user_id, session_id: *session_id, reason: EndReason::Revoked };
                store.enqueue(&outbox::event(ports, &ended)).await?;
            }
            Ok(ended.len())
        })
        .await
}
