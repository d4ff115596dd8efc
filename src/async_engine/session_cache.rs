//! What this engine remembers of sessions; who asks for what another is reading waits for that one.

use std::{sync::Arc, time::Instant};

use quick_cache::sync::EntryResult;

use crate::services::{
    error::Unavailable,
    model::{Session, SessionId, User, UserId},
    session_cache::{Asked, Found, Key, Known, Memories, Versions},
};

/// Sessions by id, for less than a second each.
#[derive(Clone)]
pub struct SessionCache {
    memories: Arc<Memories>,
}

impl SessionCache {
    /// Empty. `versions` is what all engines of the process share.
    pub fn new(versions: Arc<Versions>) -> Self {
        Self { memories: Arc::new(Memories::new(versions)) }
    }

    /// The versions that changes are told to.
    pub fn versions(&self) -> &Arc<Versions> {
        self.memories.versions()
    }

    /// What is to be read anew by now; see [`Self::get`].
    pub fn take_due(&self) -> Vec<Key> {
        self.memories.take_due()
    }

    /// Remembers what was read anew; see [`Memories::keep`].
    pub fn keep(&self, key: Key, known: Known) {
        self.memories.keep(key, known);
    }

    /// A session of `user`, remembered or read. `renew` is called now and then: it is to have what is due by
    /// [`GATHERED_FOR`](crate::services::session_cache::GATHERED_FOR) from then read anew and kept.
    ///
    /// # Errors
    /// The database is away.
    pub async fn get<F>(&self, id: SessionId, user: UserId, read: impl Fn() -> F, renew: impl FnOnce()) -> Found
    where
        F: Future<Output = Result<Option<(Session, User)>, Unavailable>>,
    {
        let asked = self.memories.ask(id, user);
        if let Some(known) = self.memories.known(&asked, Some(renew)) {
            return Ok(Some(known));
        }
        // What is nearly always there is found without the room that reading takes.
        Box::pin(self.look(id, asked, read)).await
    }

    /// One look for all who ask meanwhile.
    async fn look<F>(&self, id: SessionId, asked: Asked, read: impl Fn() -> F) -> Found
    where
        F: Future<Output = Result<Option<(Session, User)>, Unavailable>>,
    {
        let look = async || {
            let read_at = Instant::now();
            let found = read().await?;
            Ok(found.map(|(session, user)| Arc::new(Known::new(session, user, read_at))))
        };
        match self.memories.told.entry_async(&id, Memories::judge(asked)).await {
            EntryResult::Retained(Some(found)) => found,
            EntryResult::Vacant(place) | EntryResult::Replaced(place, _) => {
                let found = look().await;
                self.memories.tell(place, &asked, &found);
                found
            }
            EntryResult::Retained(None) | EntryResult::Removed(..) | EntryResult::Timeout => look().await,
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
        time::Duration,
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
            cache.keep((ID, cache.versions().of(ID, USER)), Known::new(session, user, old));
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
            assert_eq!(due, [(ID, cache.versions().of(ID, USER))]);
            let (session, user) = row();
            cache.keep(due[0], Known::new(session, user, Instant::now()));
            assert!(get().await.read_at > old && (renewals.get(), looks.get()) == (1, 0));
        });
    }

    #[test]
    fn a_look_that_comes_late_replaces_nothing_newer() {
        System::new().block_on(async {
            let cache = SessionCache::new(Arc::default());
            let key = (ID, cache.versions().of(ID, USER));
            let now = Instant::now();
            let read_before = |millis| {
                let (session, user) = row();
                Known::new(session, user, now.checked_sub(Duration::from_millis(millis)).unwrap())
            };
            for (millis, kept) in [(50, 50), (200, 50), (10, 10)] {
                cache.keep(key, read_before(millis));
                let told = cache.memories.told.get(&ID).unwrap();
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
