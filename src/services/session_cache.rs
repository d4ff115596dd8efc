//! What is remembered of sessions and their users, so that reading a token's bearer needs no database each time.
//!
//! A memory is good for [`MOST_AGE`] from before it was read, so that the end of a session is seen on every
//! instance within the contract's second (§3). In the process that made a change it is seen at once: a memory tells the
//! [`Version`] of its session and user, which every change moves on. Whatever was being read while the change was made
//! tells the old version, which nobody relies on any more.

use std::{
    hash::{BuildHasher as _, RandomState},
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quick_cache::{
    DefaultHashBuilder, UnitWeighter,
    sync::{Cache, DefaultLifecycle, EntryAction, EntryResult, PlaceholderGuard},
};
use uuid::Uuid;

use super::{
    error::Unavailable,
    model::{Session, SessionId, User, UserId},
};

/// How long a memory is good at most, counted from before it was read. The rest of the contract's second is for the
/// answer that is being given meanwhile.
pub const MOST_AGE: Duration = Duration::from_millis(750);

/// How often an engine looks through its memories for those whose time is over, while there are new ones.
const SWEPT_EVERY: Duration = Duration::from_secs(1);

/// How many memories an engine keeps at most; each takes some two kilobytes.
const MOST_ENTRIES: u16 = 5_000;

/// How long those that are to be read anew are gathered, to be read together: a question for many costs little more
/// than one for a single session. Less than the last third of the shortest time that a memory is good for.
pub const GATHERED_FOR: Duration = Duration::from_millis(50);

/// A session and its user, as the database had them.
#[derive(Debug)]
pub struct Known {
    /// Ended or not.
    pub session: Arc<Session>,
    /// Not soft-deleted.
    pub user: Arc<User>,
    /// From before they were read.
    pub read_at: Instant,
    most_age: Duration,
    is_noted: AtomicBool,
    is_renewed: AtomicBool,
}

impl Known {
    /// As they were read after `read_at`.
    pub fn new(session: Session, user: User, read_at: Instant) -> Self {
        // The last byte of an id is random: sessions that were read at once are not all read again at once.
        let sooner = session.id.0.as_bytes().last().copied().unwrap_or_default();
        let most_age = MOST_AGE.saturating_sub(Duration::from_millis(sooner.into()));
        let (is_noted, is_renewed) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { session: Arc::new(session), user: Arc::new(user), read_at, most_age, is_noted, is_renewed }
    }

    /// How much longer this may be relied on.
    pub fn good_for(&self, now: Instant) -> Duration {
        self.most_age.saturating_sub(now.saturating_duration_since(self.read_at))
    }

    /// `true` for one of those who use this in the last third of its time: to read it anew, so that the others need not
    /// wait for that when its time is over.
    pub fn may_renew(&self, now: Instant) -> bool {
        self.good_for(now) < self.most_age / 3 && !self.is_renewed.swap(true, Ordering::Relaxed)
    }

    /// `true` for the first of those who want to note that the session is in use: one statement is enough.
    pub fn may_note(&self) -> bool {
        !self.is_noted.swap(true, Ordering::Relaxed)
    }
}

/// What came of a look for a session: none, or that the database is away.
pub type Found = Result<Option<Arc<Known>>, Unavailable>;

/// What a look for a session told. Those who were waiting for it are told the same, whatever it was; to those who come
/// later only a session that was there is worth anything, and not for long.
#[derive(Debug)]
pub struct Told {
    version: Version,
    found: Found,
    at: Instant,
}

/// What somebody can make of what was [`Told`].
#[derive(Debug)]
enum Worth {
    /// It is the answer.
    Answer(Found),
    /// It took too long to come and tells of a time before this was asked. Nobody else is to wait for the next look: so
    /// many looks that take too long would not be one after the other.
    TooLate,
    /// There has to be another look, for all who wait.
    Nothing,
}

impl Told {
    /// A look that has just ended, at what was under `version` when it began.
    fn new(version: Version, found: Found) -> Self {
        Self { version, found, at: Instant::now() }
    }

    /// The session under `version`, for as long as it may be relied on.
    pub fn known(&self, version: Version, now: Instant) -> Option<&Arc<Known>> {
        let known = self.found.as_ref().ok()?.as_ref()?;
        (self.version == version && !known.good_for(now).is_zero()).then_some(known)
    }

    /// What it is worth to whoever has asked at `asked` for what is under `version`.
    fn worth(&self, version: Version, asked: Instant, now: Instant) -> Worth {
        if self.version != version {
            return Worth::Nothing;
        }
        let was_waited_for = self.at >= asked;
        match &self.found {
            Ok(Some(known)) if !known.good_for(now).is_zero() => Worth::Answer(Ok(Some(Arc::clone(known)))),
            Ok(Some(_)) if was_waited_for => Worth::TooLate,
            Ok(None) if was_waited_for => Worth::Answer(Ok(None)),
            Err(error) if was_waited_for => Worth::Answer(Err(error.again())),
            Ok(_) | Err(_) => Worth::Nothing,
        }
    }

    /// Whether `other` is to be remembered instead: an answer may come so late that another has looked since.
    fn gives_way_to(&self, other: &Self) -> bool {
        let read_at = |told: &Self| told.found.as_ref().ok()?.as_ref().map(|known| known.read_at);
        self.version != other.version || read_at(self) < read_at(other)
    }

    /// Whether anybody who comes now or later can make something of it.
    fn is_of_use(&self, now: Instant) -> bool {
        matches!(&self.found, Ok(Some(known)) if !known.good_for(now).is_zero())
    }
}

/// The place of a session that somebody looks for.
pub type Place<'a> = PlaceholderGuard<
    'a,
    SessionId,
    Arc<Told>,
    UnitWeighter,
    DefaultHashBuilder,
    DefaultLifecycle<SessionId, Arc<Told>>,
>;

/// Whom somebody asks for, since when, and which of the changes they know of.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    id: SessionId,
    version: Version,
    at: Instant,
}

/// What an engine remembers of sessions. How it waits for a look is the engine's own.
#[derive(Debug)]
pub struct Memories {
    /// By session; entered with [`Memories::judge`].
    pub told: Cache<SessionId, Arc<Told>>,
    due: Due,
    versions: Arc<Versions>,
    swept: Mutex<Instant>,
}

impl Memories {
    /// None yet. `versions` is what all engines of the process share.
    pub fn new(versions: Arc<Versions>) -> Self {
        let told = Cache::new(MOST_ENTRIES.into());
        Self { told, due: Due::default(), versions, swept: Mutex::new(Instant::now()) }
    }

    /// The versions that changes are told to.
    pub const fn versions(&self) -> &Arc<Versions> {
        &self.versions
    }

    /// What is to be read anew by now.
    pub fn take_due(&self) -> Vec<Key> {
        self.due.take()
    }

    /// Somebody asks for a session of `user`, now.
    pub fn ask(&self, id: SessionId, user: UserId) -> Asked {
        Asked { id, version: self.versions.of(id, user), at: Instant::now() }
    }

    /// What is remembered. `renew` is called where the caller is to see to it that what is due is read anew, by
    /// [`GATHERED_FOR`] from now. Without one, whoever asks too late for what is remembered reads it.
    pub fn known(&self, asked: &Asked, renew: Option<impl FnOnce()>) -> Option<Arc<Known>> {
        let told = self.told.get(&asked.id)?;
        let known = told.known(asked.version, asked.at)?;
        if let Some(renew) = renew
            && known.may_renew(asked.at)
            && self.due.add((asked.id, asked.version), asked.at)
        {
            renew();
        }
        Some(Arc::clone(known))
    }

    /// What becomes of what is there, once nobody is looking: it is the answer, or it came too late and the caller looks
    /// by themselves (`None`), or its place is theirs, to look for all.
    pub fn judge(asked: Asked) -> impl FnOnce(&SessionId, &mut Arc<Told>) -> EntryAction<Option<Found>> {
        move |_, there| match there.worth(asked.version, asked.at, Instant::now()) {
            Worth::Answer(found) => EntryAction::Retain(Some(found)),
            Worth::TooLate => EntryAction::Retain(None),
            Worth::Nothing => EntryAction::ReplaceWithGuard,
        }
    }

    /// Tells those who wait what was found, and remembers it.
    pub fn tell(&self, place: Place<'_>, asked: &Asked, found: &Found) {
        let found = match found {
            Ok(known) => Ok(known.clone()),
            Err(error) => Err(error.again()),
        };
        // Should it have no place any more, those who wait are told all the same.
        let _ = place.insert(Arc::new(Told::new(asked.version, found)));
        let now = Instant::now();
        if self.is_to_be_swept(now) {
            self.told.retain(|_, told| told.is_of_use(now));
        }
    }

    /// Remembers what was read anew, unless it was changed meanwhile, what is there is newer, or somebody is looking at
    /// this moment.
    pub fn keep(&self, key: Key, known: Known) {
        let (id, version) = key;
        if self.versions.of(id, known.user.id) != version {
            return;
        }
        let new = Arc::new(Told::new(version, Ok(Some(Arc::new(known)))));
        let replace = |_: &SessionId, there: &mut Arc<Told>| {
            if there.gives_way_to(&new) {
                *there = Arc::clone(&new);
            }
            EntryAction::Retain(())
        };
        if let EntryResult::Vacant(place) = self.told.entry(&id, Some(Duration::ZERO), replace) {
            let _ = place.insert(new);
        }
    }

    /// `true` for one caller now and then.
    fn is_to_be_swept(&self, now: Instant) -> bool {
        let mut last = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = now.saturating_duration_since(*last) >= SWEPT_EVERY;
        if is_due {
            *last = now;
        }
        is_due
    }
}

/// What is to be read anew: the session, and which of its changes the memory knows of.
pub type Key = (SessionId, Version);

/// What is in use and soon too old, to be read anew by one for all.
#[derive(Debug, Default)]
pub struct Due(Mutex<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    keys: Vec<Key>,
    since: Option<Instant>,
}

impl Due {
    /// `true` if the caller is to see to it that these are taken, [`GATHERED_FOR`] from `now`.
    pub fn add(&self, key: Key, now: Instant) -> bool {
        let mut gathered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Should nobody take them: there are no more memories than that.
        if gathered.keys.len() < usize::from(MOST_ENTRIES) {
            gathered.keys.push(key);
        }
        // Whoever was to take them may be gone, with the worker that they ran on.
        let is_seen_to = gathered.since.is_some_and(|since| now.saturating_duration_since(since) < MOST_AGE);
        if !is_seen_to {
            gathered.since = Some(now);
        }
        !is_seen_to
    }

    /// All there are.
    pub fn take(&self) -> Vec<Key> {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).keys
    }
}

/// Which changes a memory knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    session: u64,
    user: u64,
}

// Strangers may share a counter: then one forgets the other, which costs a statement.
const COUNTERS: u16 = 4096;

/// Counts the changes of sessions and users that this process makes; both engines share one.
#[derive(Debug)]
pub struct Versions {
    counters: Vec<AtomicU64>,
    // Nobody outside can choose ids that share a counter.
    hasher: RandomState,
}

impl Default for Versions {
    fn default() -> Self {
        let counters = std::iter::repeat_with(AtomicU64::default).take(COUNTERS.into()).collect();
        Self { counters, hasher: RandomState::new() }
    }
}

impl Versions {
    /// The present version; to be asked for before the database is.
    pub fn of(&self, session: SessionId, user: UserId) -> Version {
        let read = |id: Uuid| self.counter(id).map_or(0, |counter| counter.load(Ordering::SeqCst));
        Version { session: read(session.0), user: read(user.0) }
    }

    fn move_on(&self, id: Uuid) {
        if let Some(counter) = self.counter(id) {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counter(&self, id: Uuid) -> Option<&AtomicU64> {
        let hash = usize::try_from(self.hasher.hash_one(id) % u64::from(COUNTERS)).ok()?;
        self.counters.get(hash)
    }
}

/// The sessions and users that were changed on one connection. When it is given back, after the commit where there
/// is one, this process forgets what it knew of them.
#[derive(Debug)]
pub struct Changes {
    versions: Arc<Versions>,
    ids: Vec<Uuid>,
}

impl Changes {
    /// None yet.
    pub const fn new(versions: Arc<Versions>) -> Self {
        Self { versions, ids: Vec::new() }
    }

    /// A session was changed, or may have been.
    pub fn note_session(&mut self, id: SessionId) {
        self.ids.push(id.0);
    }

    /// A user was changed, or sessions of theirs.
    pub fn note_user(&mut self, id: UserId) {
        self.ids.push(id.0);
    }
}

impl Drop for Changes {
    // Also after a unit of work that failed: whether it was committed may not be known.
    fn drop(&mut self) {
        for id in &self.ids {
            self.versions.move_on(*id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::memory::{self, World};

    fn ids() -> (SessionId, UserId) {
        (SessionId(Uuid::from_u128(1)), UserId(Uuid::from_u128(2)))
    }

    #[test]
    fn a_change_moves_the_version_on_when_its_connection_is_given_back() {
        let versions = Arc::new(Versions::default());
        let (session, user) = ids();
        for note in
            [|changes: &mut Changes| changes.note_session(ids().0), |changes: &mut Changes| changes.note_user(ids().1)]
        {
            let before = versions.of(session, user);
            let mut changes = Changes::new(Arc::clone(&versions));
            note(&mut changes);
            assert_eq!(versions.of(session, user), before, "not committed yet");
            drop(changes);
            assert_ne!(versions.of(session, user), before);
        }
        let before = versions.of(session, user);
        drop(Changes::new(Arc::clone(&versions)));
        assert_eq!(versions.of(session, user), before);
    }

    #[test]
    fn one_of_those_who_use_a_memory_late_renews_it() {
        let world = World::with_ada();
        let read_at = Instant::now();
        let session = memory::session(world.users()[0].created_at, MOST_AGE);
        let session = Session { id: SessionId(Uuid::from_u128(0x700)), ..session };
        let known = Known::new(session, world.users().remove(0), read_at);
        let after = |millis| read_at + Duration::from_millis(millis);
        assert!(!known.may_renew(read_at) && !known.may_renew(after(500)));
        assert!(known.may_renew(after(501)) && !known.may_renew(after(502)));
    }

    #[test]
    fn the_first_of_those_that_are_due_sees_to_all_of_them() {
        let (due, versions, now) = (Due::default(), Versions::default(), Instant::now());
        let key = |n: u128| (SessionId(Uuid::from_u128(n)), versions.of(SessionId(Uuid::from_u128(n)), ids().1));
        assert!(due.add(key(1), now) && !due.add(key(2), now + GATHERED_FOR));
        assert_eq!(due.take(), [key(1), key(2)]);
        assert!(due.take().is_empty());
        // Nobody came for those: another sees to it.
        assert!(due.add(key(3), now) && !due.add(key(4), now) && due.add(key(5), now + MOST_AGE));
        assert_eq!(due.take().len(), 3);
    }

    #[test]
    fn what_is_due_is_gathered_for_less_than_it_is_good_for() {
        let shortest = MOST_AGE - Duration::from_millis(255);
        assert!(GATHERED_FOR * 2 < shortest / 3);
    }

    #[test]
    fn a_memory_is_good_for_less_than_a_second_from_before_it_was_read() {
        let world = World::with_ada();
        let read_at = Instant::now();
        let known = |id: u128| {
            let session = memory::session(world.users()[0].created_at, MOST_AGE);
            Known::new(Session { id: SessionId(Uuid::from_u128(id)), ..session }, world.users().remove(0), read_at)
        };
        // Not all for as long: those that were read at once are not read again at once.
        assert_eq!(known(0x7FF).good_for(read_at), MOST_AGE - Duration::from_millis(255));
        let known = known(0x700);
        assert_eq!(known.good_for(read_at), MOST_AGE);
        assert_eq!(known.good_for(read_at + Duration::from_millis(700)), Duration::from_millis(50));
        assert_eq!(known.good_for(read_at + Duration::from_secs(5)), Duration::ZERO);
        assert!(MOST_AGE < Duration::from_secs(1));
    }

    #[test]
    fn one_of_many_notes_the_use_of_a_session() {
        let world = World::with_ada();
        let session = memory::session(world.users()[0].created_at, MOST_AGE);
        let known = Known::new(session, world.users().remove(0), Instant::now());
        assert_eq!([known.may_note(), known.may_note(), known.may_note()], [true, false, false]);
    }

    #[test]
    fn what_was_told_is_worth_something_to_those_who_waited_and_for_a_while_if_somebody_was_there() {
        let (versions, (session, user)) = (Versions::default(), ids());
        let version = versions.of(session, user);
        let known = |read_at| {
            let world = World::with_ada();
            let session = memory::session(world.users()[0].created_at, MOST_AGE);
            Arc::new(Known::new(session, world.users().remove(0), read_at))
        };
        let began = Instant::now();
        let there = Told::new(version, Ok(Some(known(began))));
        let slow = Told::new(version, Ok(Some(known(began.checked_sub(MOST_AGE).unwrap()))));
        let absent = Told::new(version, Ok(None));
        let failed = Told::new(version, Err(Unavailable::database("on purpose")));
        let now = Instant::now();
        assert!(there.known(version, now).is_some() && there.is_of_use(now));
        for told in [&slow, &absent, &failed] {
            assert!(told.known(version, now).is_none() && !told.is_of_use(now));
        }
        // Those who waited.
        assert!(matches!(there.worth(version, began, now), Worth::Answer(Ok(Some(_)))));
        assert!(matches!(slow.worth(version, began, now), Worth::TooLate));
        assert!(matches!(absent.worth(version, began, now), Worth::Answer(Ok(None))));
        assert!(matches!(failed.worth(version, began, now), Worth::Answer(Err(_))));
        // Those who come later.
        let later = now + Duration::from_millis(1);
        assert!(matches!(there.worth(version, later, later), Worth::Answer(Ok(Some(_)))));
        for told in [&slow, &absent, &failed] {
            assert!(matches!(told.worth(version, later, later), Worth::Nothing));
        }
        assert!(matches!(there.worth(version, later, later + MOST_AGE), Worth::Nothing));
        // After a change.
        versions.move_on(user.0);
        let changed = versions.of(session, user);
        assert!(matches!(there.worth(changed, began, now), Worth::Nothing) && there.known(changed, now).is_none());
        // What is newer stays.
        let newer = Told::new(version, Ok(Some(known(now))));
        assert!(there.gives_way_to(&newer) && !newer.gives_way_to(&there) && failed.gives_way_to(&there));
        assert!(newer.gives_way_to(&Told::new(changed, Ok(Some(known(began))))));
    }

    #[test]
    fn memories_are_looked_through_now_and_then() {
        let (memories, now) = (Memories::new(Arc::default()), Instant::now());
        let later = now + SWEPT_EVERY * 2;
        assert!(!memories.is_to_be_swept(now) && memories.is_to_be_swept(later) && !memories.is_to_be_swept(later));
    }
}
