//! What this engine remembers of sessions; who asks for what another is reading waits for that one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quick_cache::sync::{Cache, EntryAction, EntryResult};

use crate::services::{
    error::Unavailable,
    model::{Session, SessionId, User, UserId},
    session_cache::{Due, Key, Known, MOST_ENTRIES, Swept, Told, Version, Versions, Worth},
};

/// Sessions by id, for less than a second each.
#[derive(Clone)]
pub struct SessionCache {
    told: Arc<Cache<SessionId, Arc<Told>>>,
    swept: Arc<Swept>,
    due: Arc<Due>,
    versions: Arc<Versions>,
}

impl SessionCache {
    /// Empty. `versions` is what all engines of the process share.
    pub fn new(versions: Arc<Versions>) -> Self {
        let told = Arc::new(Cache::new(MOST_ENTRIES.into()));
        Self { told, swept: Arc::default(), due: Arc::default(), versions }
    }

    /// The versions that changes are told to.
    pub const fn versions(&self) -> &Arc<Versions> {
        &self.versions
    }

    /// What is to be read anew by now; see [`Self::get`].
    pub fn take_due(&self) -> Vec<Key> {
        self.due.take()
    }

    /// Remembers what was read, unless what is there is newer, or somebody is looking at this moment.
    pub fn keep(&self, key: Key, known: Known) {
        let (id, version) = key;
        // It was changed meanwhile.
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

    /// A session of `user`, remembered or read. `renew` is called now and then: it is to have what is due by
    /// [`GATHERED_FOR`](crate::services::session_cache::GATHERED_FOR) from then read anew and kept.
    ///
    /// # Errors
    /// The database is away.
    pub async fn get<F>(
        &self,
        id: SessionId,
        user: UserId,
        read: impl Fn() -> F,
        renew: impl FnOnce(),
    ) -> Result<Option<Arc<Known>>, Unavailable>
    where
        F: Future<Output = Result<Option<(Session, User)>, Unavailable>>,
    {
        let (version, asked) = (self.versions.of(id, user), Instant::now());
        let there = self.told.get(&id);
        if let Some(known) = there.as_ref().and_then(|told| told.known(version, asked)) {
            if known.may_renew(asked) && self.due.add((id, version), asked) {
                renew();
            }
            return Ok(Some(Arc::clone(known)));
        }
        drop(there);
        // What is nearly always there is found without the room that reading takes.
        Box::pin(self.look(id, version, asked, read)).await
    }

    /// One look for all who ask meanwhile.
    async fn look<F>(
        &self,
        id: SessionId,
        version: Version,
        asked: Instant,
        read: impl Fn() -> F,
    ) -> Result<Option<Arc<Known>>, Unavailable>
    where
        F: Future<Output = Result<Option<(Session, User)>, Unavailable>>,
    {
        let look = async || {
            let read_at = Instant::now();
            let found = read().await?;
            Ok(found.map(|(session, user)| Arc::new(Known::new(session, user, read_at))))
        };
        let judge = |_: &SessionId, there: &mut Arc<Told>| match there.worth(version, asked, Instant::now()) {
            Worth::Answer(found) => EntryAction::Retain(Some(found)),
            Worth::TooLate => EntryAction::Retain(None),
            Worth::Nothing => EntryAction::ReplaceWithGuard,
        };
        match self.told.entry_async(&id, judge).await {
            EntryResult::Retained(Some(found)) => found,
            EntryResult::Vacant(place) | EntryResult::Replaced(place, _) => {
                let found = look().await;
                let told = found.as_ref().map(Clone::clone).map_err(Unavailable::again);
                // Should it have no place any more, those who wait are told all the same.
                let _ = place.insert(Arc::new(Told::new(version, told)));
                self.sweep();
                found
            }
            EntryResult::Retained(None) | EntryResult::Removed(..) | EntryResult::Timeout => look().await,
        }
    }

    /// Forgets now and then what is of no use any more.
    fn sweep(&self) {
        let now = Instant::now();
        if self.swept.is_due(now) {
            self.told.retain(|_, told| told.is_of_use(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        future::{pending, poll_fn},
        pin::{Pin, pin},
        rc::Rc,
        task::Poll,
    };

    use actix_web::rt::System;
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

    type Row = Result<Option<(Session, User)>, Unavailable>;

    fn counted(looks: &Rc<Cell<u32>>) -> impl Fn() -> Pin<Box<dyn Future<Output = Row>>> {
        let looks = Rc::clone(looks);
        move || {
            let looks = Rc::clone(&looks);
            Box::pin(async move {
                looks.set(looks.get() + 1);
                tokio::task::yield_now().await;
                Ok(Some(row()))
            })
        }
    }

    #[test]
    fn what_is_in_use_is_read_anew_before_its_time_is_over() {
        System::new().block_on(async {
            let (cache, looks) = (SessionCache::new(Arc::default()), Rc::new(Cell::new(0)));
            let (session, user) = row();
            let old = Instant::now().checked_sub(MOST_AGE * 7 / 10).unwrap();
            cache.keep((ID, cache.versions.of(ID, USER)), Known::new(session, user, old));
            let renewals = Cell::new(0);
            let get = async || {
                let renew = || renewals.set(renewals.get() + 1);
                cache.get(ID, USER, counted(&looks), renew).await.unwrap().unwrap()
            };
            for _ in 0..3 {
                assert_eq!(get().await.read_at, old);
            }
            assert_eq!((renewals.get(), looks.get()), (1, 0));
            let due = cache.take_due();
            assert_eq!(due, [(ID, cache.versions.of(ID, USER))]);
            let (session, user) = row();
            cache.keep(due[0], Known::new(session, user, Instant::now()));
            assert!(get().await.read_at > old && (renewals.get(), looks.get()) == (1, 0));
        });
    }

    #[test]
    fn a_look_that_comes_late_replaces_nothing_newer() {
        System::new().block_on(async {
            let cache = SessionCache::new(Arc::default());
            let key = (ID, cache.versions.of(ID, USER));
            let now = Instant::now();
            let read_before = |millis| {
                let (session, user) = row();
                Known::new(session, user, now.checked_sub(Duration::from_millis(millis)).unwrap())
            };
            for (millis, kept) in [(50, 50), (200, 50), (10, 10)] {
                cache.keep(key, read_before(millis));
                let told = cache.told.get(&ID).unwrap();
                assert_eq!(told.known(key.1, now).unwrap().read_at, read_before(kept).read_at);
            }
        });
    }

    #[test]
    fn who_asks_at_once_waits_for_one_look() {
        System::new().block_on(async {
            let (cache, looks) = (SessionCache::new(Arc::default()), Rc::new(Cell::new(0)));
            let look = counted(&looks);
            let one = async || cache.get(ID, USER, &look, || ()).await.unwrap().is_some();
            assert_eq!(tokio::join!(one(), one(), one()), (true, true, true));
            assert_eq!(looks.get(), 1);
        });
    }

    #[test]
    fn whoever_gives_up_leaves_the_look_to_another() {
        System::new().block_on(async {
            let cache = SessionCache::new(Arc::default());
            {
                let mut given_up = pin!(cache.get(ID, USER, pending, || ()));
                poll_fn(|context| {
                    assert!(given_up.as_mut().poll(context).is_pending());
                    Poll::Ready(())
                })
                .await;
            }
            assert!(cache.get(ID, USER, || async { Ok(Some(row())) }, || ()).await.unwrap().is_some());
        });
    }

    #[test]
    fn a_miss_and_a_failure_are_not_remembered() {
        System::new().block_on(async {
            let cache = SessionCache::new(Arc::default());
            assert!(cache.get(ID, USER, || async { Ok(None) }, || ()).await.unwrap().is_none());
            assert!(cache.get(ID, USER, || async { Err(Unavailable::database("on purpose")) }, || ()).await.is_err());
            assert!(cache.get(ID, USER, || async { Ok(Some(row())) }, || ()).await.unwrap().is_some());
        });
    }

    #[test]
    fn what_was_read_while_it_was_changed_is_seen_by_nobody_who_asks_later() {
        System::new().block_on(async {
            let cache = SessionCache::new(Arc::default());
            let look = || {
                let versions = Arc::clone(cache.versions());
                async {
                    Changes::new(versions).note_session(ID);
                    Ok(Some(row()))
                }
            };
            let old = cache.get(ID, USER, look, || ());
            assert!(old.await.unwrap().is_some());
            assert!(cache.get(ID, USER, || async { Ok(None) }, || ()).await.unwrap().is_none());
        });
    }
}
