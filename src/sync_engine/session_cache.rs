//! What this engine remembers of sessions; who asks for what another is reading waits for that one.

use std::{
    sync::{Arc, OnceLock},
    thread::Thread,
    time::{Duration, Instant},
};

use moka::{Expiry, ops::compute::Op, sync::Cache};

use crate::services::{
    error::Unavailable,
    model::{Session, SessionId, User, UserId},
    session_cache::{Due, Key, Known, MOST_ENTRIES, Versions},
};

/// Sessions by id, for less than a second each.
#[derive(Clone)]
pub struct SessionCache {
    known: Cache<Key, Arc<Known>>,
    renewals: Arc<Renewals>,
    versions: Arc<Versions>,
}

#[derive(Default)]
struct Renewals {
    due: Due,
    renewer: OnceLock<Thread>,
}

struct GoodFor;

impl Expiry<Key, Arc<Known>> for GoodFor {
    fn expire_after_create(&self, _: &Key, known: &Arc<Known>, now: Instant) -> Option<Duration> {
        Some(known.good_for(now))
    }

    fn expire_after_update(&self, _: &Key, known: &Arc<Known>, now: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(known.good_for(now))
    }
}

enum Miss {
    Absent,
    Unavailable(Unavailable),
}

impl SessionCache {
    /// Empty. `versions` is what all engines of the process share.
    pub fn new(versions: Arc<Versions>) -> Self {
        let known = Cache::builder().max_capacity(MOST_ENTRIES.into()).expire_after(GoodFor).build();
        Self { known, renewals: Arc::default(), versions }
    }

    /// The versions that changes are told to.
    pub const fn versions(&self) -> &Arc<Versions> {
        &self.versions
    }

    /// From now on `renewer` is unparked when something is due: it is to have what is due by
    /// [`GATHERED_FOR`](crate::services::session_cache::GATHERED_FOR) from then read anew and kept. Without one,
    /// whoever asks too late for what is remembered reads it.
    pub fn set_renewer(&self, renewer: Thread) {
        let _ = self.renewals.renewer.set(renewer);
    }

    /// What is to be read anew by now.
    pub fn take_due(&self) -> Vec<Key> {
        self.renewals.due.take()
    }

    /// Remembers what was read, unless what is there is newer: an answer may come so late that another has looked since.
    pub fn keep(&self, key: Key, known: Known) {
        self.known.entry(key).and_compute_with(|there| match there {
            Some(there) if there.value().read_at >= known.read_at => Op::Nop,
            _ => Op::Put(Arc::new(known)),
        });
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
    ) -> Result<Option<Arc<Known>>, Unavailable> {
        let look = || {
            let read_at = Instant::now();
            let (session, user) = read().map_err(Miss::Unavailable)?.ok_or(Miss::Absent)?;
            Ok(Arc::new(Known::new(session, user, read_at)))
        };
        let (key, now) = ((id, self.versions.of(id, user)), Instant::now());
        if let Some(known) = self.known.get(&key).filter(|known| !known.good_for(now).is_zero()) {
            if let Some(renewer) = self.renewals.renewer.get()
                && known.may_renew(now)
                && self.renewals.due.add(key, now)
            {
                renewer.unpark();
            }
            return Ok(Some(known));
        }
        let found = match self.known.try_get_with(key, look) {
            // Another's answer that took too long to come tells of a time before this was asked.
            Ok(known) if known.good_for(Instant::now()).is_zero() => look(),
            Ok(known) => Ok(known),
            Err(miss) => match &*miss {
                Miss::Absent => Err(Miss::Absent),
                Miss::Unavailable(error) => Err(Miss::Unavailable(error.again())),
            },
        };
        match found {
            Ok(known) => Ok(Some(known)),
            Err(Miss::Absent) => Ok(None),
            Err(Miss::Unavailable(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
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
            (SessionCache::new(Arc::default()), |cache: &SessionCache| (ID, cache.versions.of(ID, USER)));
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
}
