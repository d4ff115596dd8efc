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
        ports.store_to_write().await?.record(&event.refused("not_found")).await?;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::services::{
        memory::{self, World, caller, request},
        model::UserId,
        pages::PageQuery,
        run::run,
        tokens::Pair,
    };

    const MINUTE: Duration = Duration::from_secs(60);

    fn whole() -> Page {
        request::<PageQuery>(json!({})).page().unwrap()
    }

    fn listed(world: &World, pair: &Pair) -> Vec<SessionId> {
        let shown = run(sessions(world, &world.bearer(pair), whole())).unwrap();
        assert_eq!(shown.count, i64::try_from(shown.results.len()).unwrap());
        shown.results.iter().map(|session| session.id).collect()
    }

    fn sign_in(world: &World, id: UserId) -> (SessionId, Pair) {
        let tokens = world.sign_in(id).tokens;
        (world.sessions().last().unwrap().id, tokens)
    }

    fn end(world: &World, pair: &Pair, id: &str) -> Result<(), RevokeError> {
        run(revoke(world, &caller(), &world.bearer(pair), id))
    }

    #[test]
    fn own_living_sessions_are_listed_the_newest_first() {
        let world = World::with_ada();
        let (ada, grace) = (world.users()[0].id, world.add("grace@example.org", None).id);
        let (first, _) = sign_in(&world, ada);
        world.pass(MINUTE);
        let (ended, its) = sign_in(&world, ada);
        let (_, of_grace) = sign_in(&world, grace);
        world.pass(MINUTE);
        let (this, tokens) = sign_in(&world, ada);
        end(&world, &its, &ended.to_string()).unwrap();
        assert_eq!(listed(&world, &tokens), [this, first]);
        assert_eq!(listed(&world, &of_grace).len(), 1);
    }

    #[test]
    fn what_has_run_out_is_too_old_or_was_not_used_is_not_listed() {
        let seconds = Duration::from_secs;
        let idle = SessionPolicy { idle: Some(seconds(300)), absolute: Some(seconds(900)), most: None };
        let world = World::with(crate::services::policy::Policy { sessions: idle, ..memory::policy() });
        let ada = world.add_ada().id;
        let (unused, _) = sign_in(&world, ada);
        let (used, tokens) = sign_in(&world, ada);
        world.pass(seconds(200));
        assert_eq!(listed(&world, &tokens).len(), 2);
        world.pass(seconds(100));
        assert_eq!(listed(&world, &tokens), [used], "{unused} was not used");
        for _ in 0..2 {
            world.pass(seconds(200));
            assert_eq!(listed(&world, &tokens), [used]);
        }
        world.pass(seconds(199));
        let (newest, its) = sign_in(&world, ada);
        assert_eq!(listed(&world, &its), [newest, used]);
        world.pass(seconds(1));
        assert_eq!(listed(&world, &its), [newest], "the other is too old");
    }

    #[test]
    fn pages_follow_one_another_without_gap_or_repetition() {
        let world = World::with_ada();
        let ada = world.users()[0].id;
        let mut all = Vec::new();
        for n in 0..7 {
            // Some of one moment, which their ids put in order.
            if n % 3 == 0 {
                world.pass(MINUTE);
            }
            all.push((world.now(), sign_in(&world, ada)));
        }
        let (_, (_, tokens)) = all.last().cloned().unwrap();
        all.sort_by_key(|(at, (id, _))| std::cmp::Reverse((*at, *id)));
        let (mut seen, mut cursor) = (Vec::new(), None);
        for shown in [3, 3, 1] {
            let query = match &cursor {
                None => json!({ "limit": 3 }),
                Some(cursor) => json!({ "limit": 3, "cursor": cursor }),
            };
            let page = request::<PageQuery>(query).page().unwrap();
            let part = run(sessions(&world, &world.bearer(&tokens), page)).unwrap();
            assert_eq!((part.count, part.results.len()), (7, shown));
            seen.extend(part.results.iter().map(|session| session.id));
            cursor = part.next;
        }
        assert_eq!(cursor, None);
        assert_eq!(seen, all.iter().map(|(_, (id, _))| *id).collect::<Vec<_>>());
    }

    #[test]
    fn one_that_is_ended_is_dead_at_once_and_written_down() {
        let world = World::with_ada();
        let ada = world.users()[0].id;
        let ((other, its), (this, tokens)) = (sign_in(&world, ada), sign_in(&world, ada));
        end(&world, &tokens, &other.to_string()).unwrap();
        assert!(!world.is_alive(&its) && world.is_alive(&tokens));
        assert_eq!(world.sessions()[0].end_reason, Some(EndReason::Revoked));
        assert_eq!(world.audited().last(), Some(&("session_revoke", "")));
        assert_eq!(world.events().last().unwrap(), "SessionEnded");
        assert!(matches!(end(&world, &tokens, &other.to_string()), Err(RevokeError::NotFound)), "it has ended");
        end(&world, &tokens, &this.to_string()).unwrap();
        assert!(!world.is_alive(&tokens), "one's own");
    }

    #[test]
    fn another_users_session_is_not_found_and_the_try_is_audited() {
        let world = World::with_ada();
        let (ada, grace) = (world.users()[0].id, world.add("grace@example.org", None).id);
        let ((_, tokens), (hers, its)) = (sign_in(&world, ada), sign_in(&world, grace));
        let nothing = uuid::Uuid::from_u128(9).to_string();
        for id in [hers.to_string(), nothing] {
            let audited = world.audited().len();
            assert!(matches!(end(&world, &tokens, &id), Err(RevokeError::NotFound)), "{id}");
            assert_eq!(world.audited()[audited..], [("session_revoke", "not_found")]);
        }
        for id in ["", "x", "1", "' OR 1=1 --", "00000000-0000-0000-0000-00000000000g"] {
            assert!(matches!(end(&world, &tokens, id), Err(RevokeError::NotFound)), "{id}");
        }
        assert!(world.is_alive(&its));
    }

    #[test]
    fn a_commit_that_fails_ends_nothing() {
        let world = World::with_ada();
        let ada = world.users()[0].id;
        let ((other, its), (_, tokens)) = (sign_in(&world, ada), sign_in(&world, ada));
        let bearer = world.bearer(&tokens);
        world.fail_commits(true);
        let refused = run(revoke(&world, &caller(), &bearer, &other.to_string()));
        assert!(matches!(refused, Err(RevokeError::Unavailable(_))));
        assert!(run(revoke_others(&world, &caller(), &bearer)).is_err());
        world.fail_commits(false);
        assert!(world.is_alive(&its));
    }

    #[test]
    fn all_others_end_and_this_one_goes_on() {
        let world = World::with_ada();
        let (ada, grace) = (world.users()[0].id, world.add("grace@example.org", None).id);
        let others = [sign_in(&world, ada), sign_in(&world, ada)];
        let ((_, tokens), (_, of_grace)) = (sign_in(&world, ada), sign_in(&world, grace));
        let bearer = world.bearer(&tokens);
        assert_eq!(run(revoke_others(&world, &caller(), &bearer)).unwrap(), 2);
        assert!(others.iter().all(|(_, pair)| !world.is_alive(pair)));
        assert!(world.is_alive(&tokens) && world.is_alive(&of_grace));
        assert_eq!(world.audited().last(), Some(&("sessions_revoke_others", "")));
        assert!(world.events().ends_with(&["SessionEnded".to_owned(), "SessionEnded".to_owned()]));
        assert_eq!(run(revoke_others(&world, &caller(), &bearer)).unwrap(), 0);
    }
}
