//! Opens sessions: the one way in which every kind of sign-in ends.

use time::OffsetDateTime;

use super::{
    audit,
    error::Unavailable,
    events::Event,
    model::{Caller, Session, SessionId, User},
    outbox,
    ports::{Audit as _, Outbox as _, Ports, Sessions as _, Users as _},
    tokens::{self, Pair},
};

/// Somebody who has just signed in.
#[derive(Clone)]
pub struct SignedIn {
    /// Who.
    pub user: User,
    /// Their tokens.
    pub tokens: Pair,
}

/// A session of `user` that begins now; its id is new, whatever the client sent (ASVS 7.2.4).
pub fn begin<P: Ports>(ports: &P, user: &User, caller: &Caller) -> Session {
    let now = ports.now();
    let client = caller.client();
    Session {
        id: SessionId(ports.new_id()),
        user_id: user.id,
        generation: 0,
        rotated_at: now,
        expires_at: now + ports.policy().tokens.refresh_ttl,
        created_at: now,
        last_used_at: now,
        ended_at: None,
        end_reason: None,
        ip: caller.ip.to_string(),
        user_agent: caller.user_agent.clone(),
        browser: client.browser,
        os: client.os,
        device: client.device,
    }
}

/// Why no session was opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The user was disabled or deleted, or their password changed, since they were looked up.
    #[error("the user has changed")]
    Changed,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Writes everything that a sign-in writes, in the caller's unit of work.
///
/// # Errors
/// [`OpenError`].
pub async fn open<P: Ports>(
    ports: &P,
    store: &mut P::Store,
    mut user: User,
    new_hash: Option<&str>,
    action: &'static str,
    caller: &Caller,
) -> Result<SignedIn, OpenError> {
    let session = begin(ports, &user, caller);
    if !store.record_login(&user, new_hash, session.created_at).await? {
        return Err(OpenError::Changed);
    }
    store.insert_session(&session).await?;
    store.record(&audit::event(ports, action, caller).of_user(user.id).in_session(session.id)).await?;
    let started = Event::SessionStarted { user_id: user.id, session_id: session.id };
    store.enqueue(&outbox::event(ports, &started)).await?;
    user.last_login_at = Some(session.created_at);
    Ok(SignedIn { tokens: tokens::mint(&session, ports.keys(), &ports.policy().tokens), user })
}

impl Session {
    /// Whether its tokens may be used at `now`.
    pub fn is_alive(&self, now: OffsetDateTime) -> bool {
        self.ended_at.is_none() && self.expires_at > now
    }
}
