//! Opens sessions: the one way in which every kind of sign-in ends.

use time::OffsetDateTime;

use super::{
    audit, devices,
    error::Unavailable,
    events::Event,
    model::{AuditEvent, Caller, EndReason, OutboxEntry, Page, Session, SessionId, User},
    outbox,
    policy::{Policy, SessionPolicy},
    ports::{Audit as _, Bundle, First, Outbox as _, Ports, Sessions as _, Users as _},
    second_factor::Shown,
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
    /// The new session.
    pub session: SessionId,
}

/// Somebody who has to show their second factor before they are signed in.
#[derive(Clone)]
pub struct Half {
    /// Who.
    pub user: User,
    /// The password's hash made anew, when it was out of date.
    pub new_hash: Option<String>,
    /// The way in, as audit events name it.
    pub way: &'static str,
    /// The account elsewhere that is linked with theirs once they have shown it: its subject's index.
    pub to_link: Option<[u8; 32]>,
}

/// What a way in has opened.
#[must_use]
pub enum Opened {
    /// A session.
    Session(SignedIn),
    /// Nothing yet: `second_factor::enter` asks for the second factor.
    SecondFactor(Half),
}

/// A sign-in that is noted in its user's row, which the unit of work holds from then on.
#[must_use]
pub struct Noted {
    user: User,
    session: Session,
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
    /// The user was disabled or deleted, or their password or second factor changed, since they were
    /// looked up.
    #[error("the user has changed")]
    Changed,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Writes everything that a sign-in writes, in the caller's unit of work. Whoever has a second factor gets no
/// session here, whichever way they came.
///
/// # Errors
/// [`OpenError`].
pub async fn open<P: Ports>(
    ports: &P,
    store: &mut P::Store,
    user: User,
    new_hash: Option<&str>,
    action: &'static str,
    caller: &Caller,
) -> Result<Opened, OpenError> {
    if user.second_factor_at.is_some() {
        // Told to its owner if it is never shown: somebody knows the password.
        let event = audit::event(ports, action, caller).of_user(user.id).refused("second_factor_required");
        store.record(&event).await?;
        let new_hash = new_hash.map(str::to_owned);
        return Ok(Opened::SecondFactor(Half { user, new_hash, way: action, to_link: None }));
    }
    let noted = note(ports, store, user, new_hash, caller).await?;
    Ok(Opened::Session(write(ports, store, noted, action, caller).await?))
}

/// Begins the sign-in of somebody who shows their second factor, before it is spent: whatever changes a second factor
/// takes the user's row first, so that no two units of work wait for each other.
///
/// # Errors
/// [`OpenError`].
pub async fn note<P: Ports>(
    ports: &P,
    store: &mut P::Store,
    user: User,
    new_hash: Option<&str>,
    caller: &Caller,
) -> Result<Noted, OpenError> {
    let session = begin(ports, &user, caller);
    match store.record_login(&user, new_hash, session.created_at).await? {
        true => Ok(Noted { user, session }),
        false => Err(OpenError::Changed),
    }
}

/// Ends it, in the unit of work that has spent the second factor.
///
/// # Errors
/// The database is away.
pub async fn open_proven<P: Ports>(
    ports: &P,
    store: &mut P::Store,
    noted: Noted,
    action: &'static str,
    caller: &Caller,
    _shown: &Shown,
) -> Result<SignedIn, Unavailable> {
    write(ports, store, noted, action, caller).await
}

async fn write<P: Ports>(
    ports: &P,
    store: &mut P::Store,
    noted: Noted,
    action: &'static str,
    caller: &Caller,
) -> Result<SignedIn, Unavailable> {
    let Noted { user, session } = noted;
    store.insert_session(&session).await?;
    displace(ports, store, &session).await?;
    store.record(&signed_in_event(ports, &session, action, caller)).await?;
    store.enqueue(&started(ports, &session)).await?;
    Ok(signed_in(ports, user, &session, caller))
}

fn signed_in_event<P: Ports>(ports: &P, session: &Session, action: &'static str, caller: &Caller) -> AuditEvent {
    audit::event(ports, action, caller).of_user(session.user_id).in_session(session.id)
}

fn started<P: Ports>(ports: &P, session: &Session) -> OutboxEntry {
    outbox::event(ports, &Event::SessionStarted { user_id: session.user_id, session_id: session.id })
}

fn signed_in<P: Ports>(ports: &P, mut user: User, session: &Session, caller: &Caller) -> SignedIn {
    user.last_login_at = Some(session.created_at);
    let device = devices::remember(ports, caller, user.id);
    let tokens = tokens::mint(session, ports.keys(), &ports.policy().tokens);
    SignedIn { user, tokens, device, session: session.id }
}

/// As [`open`], in a unit of work of its own; in one trip, unless other sessions have to be looked at.
///
/// # Errors
/// [`OpenError`].
pub async fn sign_in<P: Ports>(
    ports: &P,
    user: User,
    new_hash: Option<&str>,
    action: &'static str,
    caller: &Caller,
) -> Result<Opened, OpenError> {
    if user.second_factor_at.is_some() || ports.policy().sessions.most.is_some() {
        return ports.transaction(async |store| open(ports, store, user, new_hash, action, caller).await).await;
    }
    let session = begin(ports, &user, caller);
    let bundle = Bundle {
        // Whoever has set a second factor up meanwhile has changed, and gets no session.
        first: First::SignIn { user: &user, new_hash, at: session.created_at },
        session: Some(&session),
        event: &signed_in_event(ports, &session, action, caller),
        entries: &[started(ports, &session)],
    };
    match ports.write(&bundle).await? {
        true => Ok(Opened::Session(signed_in(ports, user, &session, caller))),
        false => Err(OpenError::Changed),
    }
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

#[cfg(test)]
impl Opened {
    /// The session of somebody without a second factor.
    pub fn session(self) -> SignedIn {
        match self {
            Self::Session(signed_in) => signed_in,
            Self::SecondFactor(_) => panic!("a second factor is asked for"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::services::{
        memory::{self, World, caller},
        model::Place,
        run::run,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn world(sessions: SessionPolicy) -> (World, User) {
        let world = World::with(Policy { sessions, ..memory::policy() });
        let ada = world.add_ada();
        (world, ada)
    }

    fn at_most(most: usize) -> SessionPolicy {
        SessionPolicy { most: Some(most), ..memory::policy().sessions }
    }

    fn living(world: &World) -> Vec<bool> {
        world.sessions().iter().map(|session| session.ended_at.is_none()).collect()
    }

    #[test]
    fn a_session_knows_where_and_with_what_it_began() {
        let (world, ada) = world(memory::policy().sessions);
        let (one, other) = (begin(&world, &ada, &caller()), begin(&world, &ada, &caller()));
        assert_ne!(one.id, other.id);
        assert_eq!((one.browser.as_str(), one.os.as_str(), one.device.as_str()), ("Firefox", "Linux", "desktop"));
        assert_eq!((one.ip.as_str(), one.user_agent), ("192.0.2.1", caller().user_agent));
        assert_eq!(one.place, Place { country: "Nigeria".into(), city: "Lagos".into() });
        let moments = [one.created_at, one.rotated_at, one.last_used_at];
        assert_eq!(moments, [world.now(); 3]);
        assert_eq!(one.expires_at, world.now() + Duration::from_secs(30 * 86_400));
    }

    #[test]
    fn a_refresh_token_outlives_no_absolute_limit() {
        let opened = OffsetDateTime::UNIX_EPOCH;
        let policy = |absolute: Option<u64>| {
            let sessions = SessionPolicy { absolute: absolute.map(Duration::from_secs), ..memory::policy().sessions };
            Policy { sessions, ..memory::policy() }
        };
        let life = Duration::from_secs(30 * 86_400);
        let used = opened + Duration::from_secs(500);
        assert_eq!(expiry(&policy(None), opened, used), used + life);
        assert_eq!(expiry(&policy(Some(1000)), opened, used), opened + Duration::from_secs(1000));
        assert_eq!(expiry(&policy(Some(365 * 86_400)), opened, used), used + life);
    }

    #[test]
    fn every_limit_ends_a_session_by_itself() {
        let began = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let hours = |n: u64| Duration::from_secs(n * 3600);
        let session = memory::session(began, hours(10));
        let policy = |idle: Option<u64>, absolute: Option<u64>| SessionPolicy {
            idle: idle.map(hours),
            absolute: absolute.map(hours),
            most: None,
        };
        for (policy, life) in [
            (policy(None, None), hours(10)),
            (policy(Some(20), Some(20)), hours(10)),
            (policy(Some(2), None), hours(2)),
            (policy(None, Some(3)), hours(3)),
        ] {
            let last = began + life;
            assert!(session.is_alive(&policy, last - Duration::from_micros(1)), "{policy:?}");
            assert!(!session.is_alive(&policy, last), "{policy:?}");
        }
        let used = Session { last_used_at: began + hours(1), ..session.clone() };
        assert!(used.is_alive(&policy(Some(2), None), began + hours(2)));
        let ended = Session { ended_at: Some(began), ..session };
        assert!(!ended.is_alive(&policy(None, None), began));
    }

    #[test]
    fn a_further_sign_in_ends_the_least_recently_used_one() {
        let (world, ada) = world(at_most(2));
        let first = world.sign_in(ada.id).tokens;
        world.pass(SECOND);
        world.sign_in(ada.id);
        world.pass(Duration::from_secs(120));
        world.bearer(&first);
        world.sign_in(ada.id);
        assert_eq!(living(&world), [true, false, true], "the first was used after the second");
        assert_eq!(world.sessions()[1].end_reason, Some(EndReason::Displaced));
        assert_eq!(world.events().iter().filter(|kind| *kind == "SessionEnded").count(), 1);
        world.pass(SECOND);
        world.sign_in(ada.id);
        assert_eq!(living(&world), [false, false, true, true]);
    }

    #[test]
    fn with_room_for_one_the_newest_stays() {
        let (world, ada) = world(at_most(1));
        for _ in 0..3 {
            world.sign_in(ada.id);
        }
        assert_eq!(living(&world), [false, false, true]);
        let grace = world.add("grace@example.org", None);
        world.sign_in(grace.id);
        assert_eq!(living(&world), [false, false, true, true], "each user has room of their own");
    }

    #[test]
    fn a_limit_set_later_ends_what_is_beyond_it() {
        let (world, ada) = world(SessionPolicy { most: None, ..memory::policy().sessions });
        for _ in 0..5 {
            world.sign_in(ada.id);
            world.pass(SECOND);
        }
        assert_eq!(living(&world), [true; 5]);
        let limited = World::with(Policy { sessions: at_most(3), ..memory::policy() });
        let ada = limited.add_ada();
        for session in world.sessions() {
            run(limited.clone().insert_session(&Session { user_id: ada.id, ..session })).unwrap();
        }
        limited.pass(Duration::from_secs(60));
        limited.sign_in(ada.id);
        assert_eq!(living(&limited), [false, false, false, true, true, true]);
    }

    #[test]
    fn what_no_longer_lives_takes_up_no_room() {
        let sessions = SessionPolicy { idle: Some(Duration::from_secs(300)), ..at_most(2) };
        let (world, ada) = world(sessions);
        world.sign_in(ada.id);
        world.pass(Duration::from_secs(300));
        world.sign_in(ada.id);
        world.sign_in(ada.id);
        assert_eq!(world.sessions()[0].end_reason, None, "it ran out by itself");
        assert_eq!(living(&world), [true; 3]);
    }

    #[test]
    fn a_sign_in_that_is_undone_displaces_nobody() {
        let (world, ada) = world(at_most(1));
        world.sign_in(ada.id);
        world.fail_commits(true);
        let refused =
            run(world.transaction(async |store| open(&world, store, ada.clone(), None, "login", &caller()).await));
        assert!(matches!(refused, Err(OpenError::Unavailable(_))));
        assert_eq!(living(&world), [true]);
    }

    #[test]
    fn a_user_who_has_changed_gets_no_session() {
        type Change = fn(&mut User);
        let changes: [Change; 4] = [
            |user| user.second_factor_at = Some(OffsetDateTime::UNIX_EPOCH),
            |user| user.password_hash = Some("$another".into()),
            |user| user.is_active = false,
            |user| user.deleted_at = Some(OffsetDateTime::UNIX_EPOCH),
        ];
        for change in changes {
            let (world, ada) = world(memory::policy().sessions);
            let entries = world.entries();
            world.change_user(change);
            let refused =
                run(world.transaction(async |store| open(&world, store, ada.clone(), None, "login", &caller()).await));
            assert!(matches!(refused, Err(OpenError::Changed)));
            assert!(world.sessions().is_empty());
            assert_eq!(world.entries(), entries);
        }
    }

    #[test]
    fn a_sign_in_is_noted_with_the_hash_made_anew() {
        let (world, ada) = world(memory::policy().sessions);
        let opened =
            run(world.transaction(async |store| open(&world, store, ada, Some("$new"), "login", &caller()).await));
        assert_eq!(opened.unwrap().session().user.last_login_at, Some(world.now()));
        let ada = world.users().remove(0);
        assert_eq!((ada.last_login_at, ada.password_hash.as_deref()), (Some(world.now()), Some("$new")));
        assert_eq!(ada.password_changed_at, None, "it is the same password");
        assert_eq!(world.audited().last(), Some(&("login", "")));
        assert_eq!(world.events().last().unwrap(), "SessionStarted");
    }
}
