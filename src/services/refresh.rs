//! Refresh-token rotation with reuse detection (contract §3, RFC 9700 §4.14).
//!
//! A session counts its generations; a refresh token belongs to one of them. The token of the
//! present generation moves the session on; that of the generation before, shown within the grace
//! time, gets the same child again; any other of this session is a copy, and ends it.

use garde::Validate;
use serde::Deserialize;
use time::OffsetDateTime;

use super::{
    audit,
    error::Unavailable,
    events::Event,
    fields::{Exact, FieldErrors, field_error, nullable},
    keys::Keys,
    letters::Letter,
    limits::{Class, Standing, admit, take_back},
    model::{Caller, EndReason, Session, User, UserId},
    outbox,
    policy::Policy,
    ports::{Audit as _, Outbox as _, Ports, Rotated, Rotation, Sessions as _},
    problem::Problem,
    sessions::living,
    tokens::{self, Claims, Issue, Kind, Pair},
    verify_otp::identifier_of,
};

/// `POST /auth/token/refresh/`; without `refresh`, the cookie's token is meant.
#[derive(Debug, Deserialize, Validate)]
pub struct Refresh {
    /// The refresh token.
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    pub refresh: Option<Exact>,
}

/// Why there is no new pair.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// No token was given.
    #[error("no refresh token was given")]
    Invalid(FieldErrors),
    /// Not issued here, out of date, or of an ended session.
    #[error("the refresh token is not valid")]
    NotValid,
    /// It was spent before: the session is ended.
    #[error("the refresh token was used before")]
    Reused,
    /// Too many requests of this user, or of this address with tokens that are no good.
    #[error("too many requests")]
    Throttled(Problem),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<RefreshError> for Problem {
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::Invalid(errors) => Self::invalid(errors),
            RefreshError::NotValid => Self::token_not_valid(),
            RefreshError::Reused => {
                Self::new(401, "token_reused", "This refresh token was used before. Please sign in again.")
            }
            RefreshError::Throttled(problem) => problem,
            RefreshError::Unavailable(error) => error.into(),
        }
    }
}

/// What a refresh token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It is of the present generation.
    Rotate,
    /// It is the parent of the present generation, within the grace time.
    Repeat,
    /// It was spent: somebody has a copy.
    Reused,
    /// The session or its user is no more.
    Dead,
}

/// Judges a refresh token's claims against its session.
pub fn judge(
    claims: &Claims,
    session: &Session,
    user: &User,
    keys: &Keys,
    policy: &Policy,
    now: OffsetDateTime,
) -> Verdict {
    if !session.is_alive(&policy.sessions, now) || !user.is_active || claims.user_id != session.user_id {
        return Verdict::Dead;
    }
    let is_of = |generation| tokens::is_of_generation(claims, session, generation, keys);
    if is_of(session.generation) {
        Verdict::Rotate
    } else if is_of(session.generation - 1) && now - session.rotated_at <= policy.tokens.reuse_grace {
        Verdict::Repeat
    } else {
        Verdict::Reused
    }
}

/// Gives the next pair. Counted for the user when the token is a living one, else for the client's
/// address: a token that is no good must not use up its user's requests.
///
/// How the client stands with its limits is told in either case.
pub async fn refresh<P: Ports>(
    ports: &P,
    caller: &Caller,
    token: Option<&str>,
) -> (Option<Standing>, Result<Pair, RefreshError>) {
    let mut standing = None;
    let refreshed = next_pair(ports, caller, token, &mut standing).await;
    (standing, refreshed)
}

async fn next_pair<P: Ports>(
    ports: &P,
    caller: &Caller,
    token: Option<&str>,
    standing: &mut Option<Standing>,
) -> Result<Pair, RefreshError> {
    let (keys, policy) = (ports.keys(), &ports.policy().tokens);
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        count(ports, caller, None, standing).await?;
        return Err(RefreshError::Invalid(field_error("refresh", "This field is required.")));
    };
    let opened = tokens::open(token, keys, policy, ports.now());
    let Some(claims) = opened.ok().filter(|claims| claims.token_type == Kind::Refresh) else {
        count(ports, caller, None, standing).await?;
        return Err(RefreshError::NotValid);
    };
    // Before anything is written. Whether the token is a living one shows later; what a dead one has used up of its
    // user's requests is given back.
    let counted = count(ports, caller, Some(claims.user_id), standing).await;
    // The usual case is one statement: the token tells its generation, and the session moves on if it is in that one.
    if let (Ok(()), Some(from)) = (&counted, tokens::generation(&claims, keys))
        && let Some(pair) = rotate(ports, &claims, from).await?
    {
        return Ok(pair);
    }
    // The usual case does without the room that this takes.
    Box::pin(look_and_judge(ports, caller, &claims, counted, standing)).await
}

// Counts a request before anything is written for it.
async fn count<P: Ports>(
    ports: &P,
    caller: &Caller,
    user: Option<UserId>,
    standing: &mut Option<Standing>,
) -> Result<(), RefreshError> {
    *standing = admit(ports, Class::Sustained, caller, user).await.map_err(RefreshError::Throttled)?;
    Ok(())
}

async fn look_and_judge<P: Ports>(
    ports: &P,
    caller: &Caller,
    claims: &Claims,
    counted: Result<(), RefreshError>,
    standing: &mut Option<Standing>,
) -> Result<Pair, RefreshError> {
    let (keys, policy) = (ports.keys(), &ports.policy().tokens);
    let give_back = async || {
        if counted.is_ok() {
            take_back(ports, Class::Sustained, caller, claims.user_id).await;
        }
    };
    // Whoever loses the race for the rotation finds the winner's generation on the second look.
    for _ in 0..3 {
        let found = ports.store().await?.session_with_user(claims.sid).await?;
        let Some((session, user)) = found else {
            give_back().await;
            count(ports, caller, None, standing).await?;
            return Err(RefreshError::NotValid);
        };
        match judge(claims, &session, &user, keys, ports.policy(), ports.now()) {
            Verdict::Rotate | Verdict::Repeat if counted.is_err() => break,
            Verdict::Repeat => return Ok(tokens::mint(&session, keys, policy)),
            Verdict::Rotate => {
                if let Some(pair) = rotate(ports, claims, session.generation).await? {
                    return Ok(pair);
                }
            }
            Verdict::Dead => {
                give_back().await;
                count(ports, caller, None, standing).await?;
                let event = audit::event(ports, "token_refresh", caller).of_user(user.id).in_session(session.id);
                ports.store_to_write().await?.record(&event.refused("session_over")).await?;
                return Err(RefreshError::NotValid);
            }
            // The session ends whatever the limits say; once it has, the token is a dead one.
            Verdict::Reused => {
                end_reused(ports, caller, &session, &user).await?;
                give_back().await;
                count(ports, caller, None, standing).await?;
                return Err(RefreshError::Reused);
            }
        }
    }
    counted.and(Err(RefreshError::NotValid))
}

// The next pair of the token's session, if it is in this generation and lives.
async fn rotate<P: Ports>(ports: &P, claims: &Claims, from: i64) -> Result<Option<Pair>, Unavailable> {
    let (policy, at) = (ports.policy(), ports.now());
    let rotation = Rotation {
        id: claims.sid,
        user: claims.user_id,
        from,
        at,
        living: living(&policy.sessions, at),
        expires_at: at + policy.tokens.refresh_ttl,
        absolute: policy.sessions.absolute,
    };
    let rotated = ports.rotate_session(rotation).await?;
    Ok(rotated.map(|Rotated { at, expires_at }| {
        let issue = Issue { session: claims.sid, user: claims.user_id, generation: from + 1, at, expires_at };
        tokens::mint(issue, ports.keys(), &policy.tokens)
    }))
}

async fn end_reused<P: Ports>(ports: &P, caller: &Caller, session: &Session, user: &User) -> Result<(), Unavailable> {
    let now = ports.now();
    let why = EndReason::TokenReused;
    let letter = identifier_of(user).map(|identifier| {
        let (browser, os) = (session.browser.clone(), session.os.clone());
        let letter = Letter::SessionReuseDetected { when: now, browser, os };
        outbox::letter(ports, &identifier, letter, None)
    });
    ports
        .transaction(async |store| {
            if store.end_session(session.id, why, now).await? {
                let event = audit::event(ports, "token_refresh", caller).of_user(user.id).in_session(session.id);
                store.record(&event.refused("token_reused")).await?;
                let ended = Event::SessionEnded { user_id: user.id, session_id: session.id, reason: why };
                store.enqueue(&outbox::event(ports, &ended)).await?;
                if let Some(letter) = &letter {
                    store.enqueue(letter).await?;
                }
            }
            Ok::<_, Unavailable>(())
        })
        .await?;
    tracing::warn!(session = %session.id, "a spent refresh token was shown: the session is ended");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::services::{
        create_user::Credential,
        limits::Rate,
        memory::{World, caller, policy},
        model::Role,
        passwords::Password,
        run::run,
        session,
    };

    fn signed_in() -> (World, Pair) {
        signed_in_to(World::new())
    }

    fn signed_in_to(world: World) -> (World, Pair) {
        let request = crate::services::create_user::CreateUser {
            email: Some("ada@example.org".into()),
            phone: None,
            role: Role::Client,
            password: Credential::Password(Password::new("violet-Kettle-93")),
            first_name: String::new(),
            last_name: String::new(),
        };
        let _ = run(crate::services::create_user::create_user(&world, &caller(), request)).unwrap();
        let user = world.users().remove(0);
        let opened = run(session::open(&world, &mut world.clone(), user, None, "login", &caller())).unwrap().session();
        (world, opened.tokens)
    }

    fn next(world: &World, token: &str) -> Result<Pair, RefreshError> {
        run(refresh(world, &caller(), Some(token))).1
    }

    #[test]
    fn each_refresh_gives_new_tokens() {
        let (world, first) = signed_in();
        let second = next(&world, &first.refresh).unwrap();
        let third = next(&world, &second.refresh).unwrap();
        assert!(first.refresh != second.refresh && second.refresh != third.refresh);
        assert!(first.access != second.access);
    }

    #[test]
    fn within_the_grace_time_a_parent_gets_the_same_child() {
        let (world, first) = signed_in();
        let child = next(&world, &first.refresh).unwrap();
        world.pass(Duration::from_secs(30));
        assert!(next(&world, &first.refresh).unwrap() == child);
        assert!(next(&world, &child.refresh).is_ok());
    }

    #[test]
    fn after_the_grace_time_a_parent_ends_the_session() {
        let (world, first) = signed_in();
        let child = next(&world, &first.refresh).unwrap();
        world.pass(Duration::from_secs(31));
        assert!(matches!(next(&world, &first.refresh), Err(RefreshError::Reused)));
        assert!(matches!(next(&world, &child.refresh), Err(RefreshError::NotValid)));
        assert_eq!(world.sessions()[0].end_reason, Some(EndReason::TokenReused));
        assert!(world.audited().ends_with(&[("token_refresh", "token_reused"), ("token_refresh", "session_over")]));
        assert_eq!(world.letters().last().unwrap().letter.kind(), "session_reuse_detected");
        assert_eq!(world.events().last().unwrap(), "SessionEnded");
    }

    #[test]
    fn a_grandparent_ends_the_session_at_once() {
        let (world, first) = signed_in();
        let child = next(&world, &first.refresh).unwrap();
        next(&world, &child.refresh).unwrap();
        assert!(matches!(next(&world, &first.refresh), Err(RefreshError::Reused)));
    }

    #[test]
    fn a_commit_that_fails_spends_nothing() {
        let (world, first) = signed_in();
        world.fail_commits(true);
        assert!(matches!(next(&world, &first.refresh), Err(RefreshError::Unavailable(_))));
        world.fail_commits(false);
        assert!(next(&world, &first.refresh).is_ok());
    }

    #[test]
    fn what_changed_since_sign_in_counts() {
        let (world, first) = signed_in();
        world.change_user(|user| user.is_active = false);
        assert!(matches!(next(&world, &first.refresh), Err(RefreshError::NotValid)));
        world.change_user(|user| user.is_active = true);
        world.pass(Duration::from_secs(31 * 86_400));
        assert!(matches!(next(&world, &first.refresh), Err(RefreshError::NotValid)));
    }

    #[test]
    fn an_access_token_refreshes_nothing() {
        let (world, first) = signed_in();
        assert!(matches!(next(&world, &first.access), Err(RefreshError::NotValid)));
        assert!(matches!(next(&world, ""), Err(RefreshError::Invalid(_))));
    }

    fn limited(sessions: crate::services::policy::SessionPolicy) -> (World, Pair) {
        let world = World::with(Policy { sessions, ..crate::services::memory::policy() });
        let ada = world.add_ada();
        let tokens = world.sign_in(ada.id).tokens;
        (world, tokens)
    }

    #[test]
    fn a_refresh_is_a_use() {
        let idle = Some(Duration::from_secs(1000));
        let (world, mut pair) = limited(crate::services::policy::SessionPolicy { idle, absolute: None, most: None });
        for _ in 0..4 {
            world.pass(Duration::from_secs(999));
            pair = next(&world, &pair.refresh).unwrap();
            assert_eq!(world.sessions()[0].last_used_at, world.now());
        }
        world.pass(Duration::from_secs(1000));
        assert!(matches!(next(&world, &pair.refresh), Err(RefreshError::NotValid)));
        assert_eq!(world.audited().last(), Some(&("token_refresh", "session_over")));
        assert_eq!(world.sessions()[0].end_reason, None, "it ran out by itself");
    }

    #[test]
    fn no_refresh_leads_beyond_the_absolute_limit() {
        let absolute = Some(Duration::from_secs(10_000));
        let (world, mut pair) = limited(crate::services::policy::SessionPolicy { idle: None, absolute, most: None });
        let end = world.now() + Duration::from_secs(10_000);
        for _ in 0..4 {
            assert_eq!(pair.refresh_expires_at, end);
            world.pass(Duration::from_secs(2400));
            pair = next(&world, &pair.refresh).unwrap();
        }
        // What is left is less than an access token's life.
        assert_eq!(pair.expires_in, 400);
        world.pass(Duration::from_secs(399));
        assert!(world.is_alive(&pair));
        world.pass(Duration::from_secs(1));
        assert!(matches!(next(&world, &pair.refresh), Err(RefreshError::NotValid)));
    }

    #[test]
    fn a_displaced_sessions_tokens_are_dead() {
        let most = crate::services::policy::SessionPolicy { idle: None, absolute: None, most: Some(1) };
        let (world, first) = limited(most);
        let second = world.sign_in(world.users()[0].id).tokens;
        assert!(matches!(next(&world, &first.refresh), Err(RefreshError::NotValid)));
        assert!(!world.is_alive(&first));
        assert!(next(&world, &second.refresh).is_ok());
    }

    #[test]
    fn who_shows_a_copy_of_a_session_that_is_over_is_told_no_more() {
        let (world, first) = signed_in();
        next(&world, &first.refresh).unwrap();
        run(world.clone().end_session(world.sessions()[0].id, EndReason::Logout, world.now())).unwrap();
        world.pass(Duration::from_secs(31));
        let letters = world.letters().len();
        assert!(matches!(next(&world, &first.refresh), Err(RefreshError::NotValid)));
        assert_eq!(world.letters().len(), letters);
        assert_eq!(world.sessions()[0].end_reason, Some(EndReason::Logout));
    }

    #[test]
    fn a_dead_token_is_counted_before_it_is_written_down() {
        let mut policy = policy();
        policy.limits.sustained = Some(Rate { count: 2, per: Duration::from_secs(3600) });
        let (world, pair) = signed_in_to(World::with(policy));
        let session = world.sessions()[0].clone();
        assert!(run(world.clone().end_session(session.id, EndReason::Logout, world.now())).unwrap());
        for _ in 0..2 {
            assert!(matches!(next(&world, &pair.refresh), Err(RefreshError::NotValid)));
        }
        let written = world.audited().len();
        for _ in 0..5 {
            assert!(matches!(next(&world, &pair.refresh), Err(RefreshError::Throttled(_))));
        }
        assert_eq!(world.audited().len(), written);
    }
}
