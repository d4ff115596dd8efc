//! What this engine remembers of sessions; who asks for what another is reading waits for that one.

use std::{
    sync::{Arc, OnceLock},
    thread::Thread,
    time::Instant,
};

use quick_cache::sync::EntryResult;

use crate::services::{
    error::Unavailable,
    model::{Session, SessionId, User, UserId},
    session_cache::{Found, Key, Known, Memories, Versions},
};

/// Sessions by id, for less than a second each.
#[derive(Clone)]
pub struct SessionCache {
    memories: Arc<Memories>,
    renewer: Arc<OnceLock<Thread>>,
}

impl SessionCache {
    /// Empty. `versions` is what all engines of the process share.
    pub fn new(versions: Arc<Versions>) -> Self {
        Self { memories: Arc::new(Memories::new(versions)), renewer: Arc::default() }
    }

    /// The versions that changes are told to.
    pub fn versions(&self) -> &Arc<Versions> {
        self.memories.versions()
    }

    /// From now on `renewer` is unparked when something is due: it is to have what is due by
    /// [`GATHERED_FOR`](crate::services::session_cache::GATHERED_FOR) from then read anew and kept. Without one,
    /// whoever asks too late for what is remembered reads it.
    pub fn set_renewer(&self, renewer: Thread) {
        let _ = self.renewer.set(renewer);
    }

    /// What is to be read anew by now.
    pub fn take_due(&self) -> Vec<Key> {
        self.memories.take_due()
    }

    /// Remembers what was read anew; see [`Memories::keep`].
    pub fn keep(&self, key: Key, known: Known) {
        self.memories.keep(key, known);
    }

    /// A session of `user`, remembered or read.
    ///
    /// # Errors
    /// The database is away.
    pub fn get(
        &self,
        id: SessionId,
        user: UserId,
        read: impl Fn() -> Result<Option<(Session, User)>, Unavailable>,
    ) -> Found {
        let look = || {
            let read_at = Instant::now();
            let found = read()?;
            Ok(found.map(|(session, user)| Arc::new(Known::new(session, user, read_at))))
        };
        let asked = self.memories.ask(id, user);
        let renew = self.renewer.get().map(|renewer| || renewer.unpark());
        if let Some(known) = self.memories.known(&asked, renew) {
            return Ok(Some(known));
        }
        match self.memories.told.entry(&id, None, Memories::judge(asked)) {
            EntryResult::Retained(Some(found)) => found,
            EntryResult::Vacant(place) | EntryResult::Replaced(place, _) => {
                let found = look();
                self.memories.tell(place, &asked, &found);
                found
            }
            EntryResult::Retained(None) | EntryResult::Removed(..) | EntryResult::Timeout => look(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Duration,
    };

    use uuid::Uuid;

    use super::*;
    use crate::services::{
        memory,
        session_cache::{Changes, MOST_AGE},
    };

    const ID: SessionId = SessionId(Uuid::from_u128(1));
    const USER: UserId = UserId(Uuid::from_u128(2));

    fn row() -> (Session, User) {
        let user = User::new(USER, "pid".into(), time::OffsetDateTime::UNIX_EPOCH);
        (memory::session(time::OffsetDateTime::UNIX_EPOCH, Duration::from_secs(60)), user)
    }

    #[test]
    fn who_asks_at_once_waits_for_one_look() {
        let (cache, looks) = (SessionCache::new(Arc::default()), AtomicUsize::new(0));
        let look = || {
            looks.fetch_add(1, Ordering::SeqCst);
            thread::park_timeout(Duration::from_millis(100));
            Ok(Some(row()))
        };
        thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| cache.get(ID, USER, look))).collect();
            assert!(asking.into_iter().all(|one| one.join().unwrap().unwrap().is_some()));
        });
        assert_eq!(looks.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_is_in_use_is_read_anew_before_its_time_is_over() {
        let (cache, key) =
            (SessionCache::new(Arc::default()), |cache: &SessionCache| (ID, cache.versions().of(ID, USER)));
        let read_before = |share: u32| {
            let (session, user) = row();
            Known::new(session, user, Instant::now().checked_sub(MOST_AGE * share / 10).unwrap())
        };
        let get = || cache.get(ID, USER, || Err(Unavailable::database("on purpose"))).unwrap().unwrap().read_at;
        let old = read_before(7);
        let old_at = old.read_at;
        cache.keep(key(&cache), old);
        // Nobody would read it.
        assert!(get() == old_at && cache.take_due().is_empty());
        cache.set_renewer(thread::current());
        assert!((0..3).all(|_| get() == old_at));
        thread::park();
        let due = cache.take_due();
        assert_eq!(due, [key(&cache)]);
        for (share, is_kept) in [(5, true), (7, false), (3, true)] {
            let known = read_before(share);
            let read_at = known.read_at;
            cache.keep(due[0], known);
            assert_eq!(get() == read_at, is_kept);
        }
    }

    #[test]
    fn a_miss_and_a_failure_are_not_remembered() {
        let cache = SessionCache::new(Arc::default());
        assert!(cache.get(ID, USER, || Ok(None)).unwrap().is_none());
        assert!(cache.get(ID, USER, || Err(Unavailable::database("on purpose"))).is_err());
        assert!(cache.get(ID, USER, || Ok(Some(row()))).unwrap().is_some());
    }

    #[test]
    fn what_was_read_while_it_was_changed_is_seen_by_nobody_who_asks_later() {
        let cache = SessionCache::new(Arc::default());
        let old = cache.get(ID, USER, || {
            Changes::new(Arc::clone(cache.versions())).note_session(ID);
            Ok(Some(row()))
        });
        assert!(old.unwrap().is_some());
        assert!(cache.get(ID, USER, || Ok(None)).unwrap().is_none());
    }

    #[test]
    fn those_who_wait_share_a_failure_and_whoever_comes_later_looks_again() {
        let (cache, looks) = (SessionCache::new(Arc::default()), AtomicUsize::new(0));
        let look = || {
            looks.fetch_add(1, Ordering::SeqCst);
            thread::park_timeout(Duration::from_millis(200));
            Err(Unavailable::database("on purpose"))
        };
        thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| cache.get(ID, USER, look))).collect();
            assert!(asking.into_iter().all(|one| one.join().unwrap().is_err()));
        });
        // Were each to look by itself, a database that is away would cost them its time limit one after the other.
        assert_eq!(looks.load(Ordering::SeqCst), 1);
        assert!(cache.get(ID, USER, || Ok(Some(row()))).unwrap().is_some());
    }

    #[test]
    fn what_was_changed_since_it_was_read_is_not_kept() {
        let cache = SessionCache::new(Arc::default());
        let key = (ID, cache.versions().of(ID, USER));
        let (session, user) = row();
        let known = Known::new(session, user, Instant::now());
        Changes::new(Arc::clone(cache.versions())).note_session(ID);
        cache.keep(key, known);
        assert!(cache.memories.told.is_empty() && cache.get(ID, USER, || Ok(None)).unwrap().is_none());
    }

    #[test]
    fn what_is_over_is_forgotten_with_the_next_look() {
        let cache = SessionCache::new(Arc::default());
        let id = |n| SessionId(Uuid::from_u128(n));
        for n in 1..=10 {
            assert!(cache.get(id(n), USER, || Ok(Some(row()))).unwrap().is_some());
        }
        assert_eq!(cache.memories.told.len(), 10);
        thread::park_timeout(Duration::from_secs(2));
        assert!(cache.get(id(11), USER, || Ok(Some(row()))).unwrap().is_some());
        assert_eq!(cache.memories.told.len(), 1);
    }
}
