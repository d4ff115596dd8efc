//! Who bears an access token, and whether its session still lives.

use std::{sync::Arc, time::Duration};

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
    pub user: Arc<User>,
    /// In which session.
    pub session: Arc<Session>,
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

/// How old what is known of a bearer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Looked up now: for whatever changes something.
    Anew,
    /// Less than a second old where another instance has changed it (contract §3): for what is only read.
    Remembered,
}

/// Recognises the bearer of an access token, whose session has to live.
///
/// # Errors
/// [`AuthenticateError`].
pub async fn authenticate<P: Ports>(ports: &P, token: Option<&str>, look: Look) -> Result<Bearer, AuthenticateError> {
    let token = token.ok_or(AuthenticateError::Missing)?;
    let (keys, now) = (ports.keys(), ports.now());
    let claims = tokens::open(token, keys, &ports.policy().tokens, now).or(Err(AuthenticateError::NotValid))?;
    if claims.token_type != Kind::Access {
        return Err(AuthenticateError::NotValid);
    }
    let (bearer, may_note) = match look {
        Look::Anew => {
            let found = ports.store().await?.session_with_user(claims.sid).await?;
            let (session, user) = found.ok_or(AuthenticateError::NotValid)?;
            (Bearer { user: Arc::new(user), session: Arc::new(session) }, true)
        }
        Look::Remembered => {
            let known = ports.known_session(claims.sid, claims.user_id).await?.ok_or(AuthenticateError::NotValid)?;
            let bearer = Bearer { user: Arc::clone(&known.user), session: Arc::clone(&known.session) };
            let is_due = bearer.session.last_used_at + NOTED_EVERY < now;
            (bearer, is_due && known.may_note())
        }
    };
    let Bearer { user, session } = &bearer;
    if !session.is_alive(&ports.policy().sessions, now) || !user.is_active || claims.user_id != user.id {
        return Err(AuthenticateError::NotValid);
    }
    if session.last_used_at + NOTED_EVERY < now && may_note {
        let note = async { ports.store_to_write().await?.touch_session(session.id, now - NOTED_EVERY, now).await };
        // A note that is not taken must not keep anybody out.
        if let Err(error) = note.await {
            tracing::warn!(error = %error, "the use of a session was not noted");
        }
    }
    Ok(bearer)
}

// Not at every request: each note is a write.
const NOTED_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{
        memory::{self, World, caller},
        model::EndReason,
        policy::{Policy, SessionPolicy, TokenPolicy},
        refresh::refresh,
        run::run,
        tokens::Pair,
    };

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn signed_in(world: &World) -> Pair {
        world.sign_in(world.users()[0].id).tokens
    }

    fn is_not_valid(world: &World, token: &str) -> bool {
        matches!(run(authenticate(world, Some(token), Look::Anew)), Err(AuthenticateError::NotValid))
    }

    fn limited(idle: Option<u64>, absolute: Option<u64>) -> World {
        let sessions = SessionPolicy { idle: idle.map(seconds), absolute: absolute.map(seconds), most: None };
        let world = World::with(Policy { sessions, ..memory::policy() });
        world.add_ada();
        world
    }

    #[test]
    fn an_access_token_names_its_bearer_and_a_refresh_token_nobody() {
        let world = World::with_ada();
        let pair = signed_in(&world);
        let bearer = run(authenticate(&world, Some(&pair.access), Look::Remembered)).unwrap();
        assert_eq!((bearer.user.id, bearer.session.id), (world.users()[0].id, world.sessions()[0].id));
        assert!(matches!(run(authenticate(&world, None, Look::Anew)), Err(AuthenticateError::Missing)));
        for token in [pair.refresh.as_str(), "", "x", "a.b.c", &format!("{}x", pair.access)] {
            assert!(is_not_valid(&world, token), "{token}");
        }
    }

    #[test]
    fn what_changed_since_sign_in_counts_at_once() {
        type Change = fn(&World);
        let changes: [Change; 3] = [
            |world| world.change_user(|user| user.is_active = false),
            World::hide_user,
            |world| {
                let session = world.sessions()[0].id;
                assert!(run(world.clone().end_session(session, EndReason::Revoked, world.now())).unwrap());
            },
        ];
        for change in changes {
            let world = World::with_ada();
            let pair = signed_in(&world);
            assert!(world.is_alive(&pair));
            change(&world);
            assert!(is_not_valid(&world, &pair.access));
        }
    }

    #[test]
    fn a_session_that_is_not_used_for_too_long_ends_its_tokens() {
        let world = limited(Some(300), None);
        let (used, unused) = (signed_in(&world), signed_in(&world));
        world.pass(seconds(200));
        assert!(world.is_alive(&used));
        world.pass(seconds(100));
        assert!(is_not_valid(&world, &unused.access));
        world.pass(seconds(199));
        assert!(world.is_alive(&used));
        world.pass(seconds(300));
        assert!(is_not_valid(&world, &used.access), "and is not brought back by being tried");
        assert!(is_not_valid(&world, &used.access));
    }

    #[test]
    fn a_session_that_is_too_old_ends_however_it_is_used() {
        let world = limited(None, Some(2000));
        let mut pair = signed_in(&world);
        for _ in 0..3 {
            world.pass(seconds(600));
            pair = run(refresh(&world, &caller(), Some(&pair.refresh))).1.unwrap();
            assert!(world.is_alive(&pair));
        }
        world.pass(seconds(199));
        assert!(world.is_alive(&pair));
        world.pass(seconds(1));
        assert!(is_not_valid(&world, &pair.access));
    }

    #[test]
    fn an_access_token_runs_out_by_itself() {
        let world = limited(None, None);
        let pair = signed_in(&world);
        let TokenPolicy { access_ttl, .. } = memory::policy().tokens;
        world.pass(access_ttl - seconds(1));
        assert!(world.is_alive(&pair));
        world.pass(seconds(1));
        assert!(is_not_valid(&world, &pair.access));
    }

    #[test]
    fn use_is_noted_once_a_minute_at_most() {
        let world = World::with_ada();
        let pair = signed_in(&world);
        let began = world.now();
        let touches = |after: u64| {
            world.pass(seconds(after));
            world.calls();
            assert!(world.is_alive(&pair));
            world.calls().iter().filter(|call| **call == "touch_session").count()
        };
        assert_eq!([touches(0), touches(30), touches(30)], [0, 0, 0]);
        assert_eq!(world.sessions()[0].last_used_at, began);
        assert_eq!(touches(1), 1);
        assert_eq!(world.sessions()[0].last_used_at, began + seconds(61));
        assert_eq!([touches(0), touches(60), touches(1), touches(59)], [0, 0, 1, 0]);
        assert_eq!(world.sessions()[0].last_used_at, began + seconds(122));
    }

    #[test]
    fn a_note_that_is_not_taken_keeps_nobody_out() {
        let world = World::with_ada();
        let pair = signed_in(&world);
        world.pass(seconds(120));
        world.fail_commits(true);
        let used = world.sessions()[0].last_used_at;
        assert!(world.is_alive(&pair));
        assert_eq!(world.sessions()[0].last_used_at, used);
    }
}
