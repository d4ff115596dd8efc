//! Opens sessions: the one way in which every kind of sign-in ends.

use time::OffsetDateTime;

use super::{
    audit, devices,
    error::Unavailable,
    events::Event,
    model::{Caller, EndReason, Page, Session, SessionId, User},
    outbox,
    policy::{Policy, SessionPolicy},
    ports::{Audit as _, Outbox as _, Ports, Sessions as _, Users as _},
    sessions::living,
    tokens::{self, Pair},
};

/// Somebody who has just signed in.
#[derive(Clone)]
pub struct SignedIn {
    /// Who.
    pub user: User,
    /// Their tokens.
    pub tokens: Pair,
    /// The token of the device that they signed in on.
    pub device: String,
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
        expires_at: expiry(ports.policy(), now, now),
        created_at: now,
        last_used_at: now,
        ended_at: None,
        end_reason: None,
        ip: caller.ip.to_string(),
        user_agent: caller.user_agent.clone(),
        browser: client.browser,
        os: client.os,
        device: client.device,
        place: ports.place(caller.ip),
    }
}

/// When the refresh token of a session runs out that was opened at `opened` and is used at `now`.
pub fn expiry(policy: &Policy, opened: OffsetDateTime, now: OffsetDateTime) -> OffsetDateTime {
    let idle = now + policy.tokens.refresh_ttl;
    policy.sessions.absolute.map_or(idle, |absolute| idle.min(opened + absolute))
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
    displace(ports, store, &session).await?;
    store.record(&audit::event(ports, action, caller).of_user(user.id).in_session(session.id)).await?;
    let started = Event::SessionStarted { user_id: user.id, session_id: session.id };
    store.enqueue(&outbox::event(ports, &started)).await?;
    user.last_login_at = Some(session.created_at);
    let device = devices::remember(ports, caller, user.id);
    Ok(SignedIn { tokens: tokens::mint(&session, ports.keys(), &ports.policy().tokens), user, device })
}

// Ends the least recently used sessions beyond `sessions.max_per_user`. Sign-ins of one user side by
// side wait for one another at the user's row.
async fn displace<P: Ports>(ports: &P, store: &mut P::Store, newest: &Session) -> Result<(), Unavailable> {
    let policy = &ports.policy().sessions;
    let Some(most) = policy.most else { return Ok(()) };
    let (user_id, now, why) = (newest.user_id, newest.created_at, EndReason::Displaced);
    let page = Page { limit: MOST_LISTED, after: None };
    let mut others = store.sessions_of(user_id, &living(policy, now), page).await?.items;
    others.retain(|session| session.id != newest.id);
    others.sort_by_key(|session| std::cmp::Reverse((session.last_used_at, session.id)));
    for session in others.iter().skip(most - 1) {
        if store.end_session(session.id, why, now).await? {
            let ended = Event::SessionEnded { user_id, session_id: session.id, reason: why };
            store.enqueue(&outbox::event(ports, &ended)).await?;
        }
    }
    Ok(())
}

// More than may be configured: what was opened before the limit was set ends too, in a few sign-ins.
const MOST_LISTED: i64 = 2000;

impl Session {
    /// Whether its tokens may be used at `now`: neither ended nor run out, nor unused or open for too
    /// long (ASVS 7.3.1, 7.3.2).
    pub fn is_alive(&self, policy: &SessionPolicy, now: OffsetDateTime) -> bool {
        let living = living(policy, now);
        self.ended_at.is_none()
            && self.expires_at > living.at
            && self.last_used_at > living.used_after
            && self.created_at > living.opened_after
    }
}
