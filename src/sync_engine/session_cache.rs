//! What this engine remembers of sessions; who asks for what another is reading waits for that one.

use std::{sync::Arc, time::Instant};

use moka::{Expiry, sync::Cache};

use crate::services::{
    error::Unavailable,
    model::{Session, SessionId, User, UserId},
    session_cache::{Known, MOST_ENTRIES, Version, Versions},
};

type Key = (SessionId, Version);

/// Sessions by id, for less than a second each.
#[derive(Clone)]
pub struct SessionCache {
    known: Cache<Key, Arc<Known>>,
    versions: Arc<Versions>,
}

struct GoodFor;

impl Expiry<Key, Arc<Known>> for GoodFor {
    fn expire_after_create(&self, _: &Key, known: &Arc<Known>, now: Instant) -> Option<std::time::Duration> {
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
        let known = Cache::builder().max_capacity(MOST_ENTRIES).expire_after(GoodFor).build();
        Self { known, versions }
    }

    /// The versions that changes are told to.
    pub const fn versions(&self) -> &Arc<Versions> {
        &self.versions
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
        let found = match self.known.try_get_with((id, self.versions.of(id, user)), look) {
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
        time::Duration,
    };

    use uuid::Uuid;

    use super::*;
    use crate::services::{memory, session_cache::Changes};

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
