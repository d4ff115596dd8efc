//! What this engine remembers of sessions; who asks for what another is reading waits for that one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use moka::{Entry, Expiry, future::Cache, ops::compute::Op};

use crate::services::{
    error::Unavailable,
    model::{Session, SessionId, User, UserId},
    session_cache::{Due, Key, Known, MOST_ENTRIES, Versions},
};

/// Sessions by id, for less than a second each.
#[derive(Clone)]
pub struct SessionCache {
    known: Cache<Key, Arc<Known>>,
    due: Arc<Due>,
    versions: Arc<Versions>,
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
        Self { known, due: Arc::default(), versions }
    }

    /// The versions that changes are told to.
    pub const fn versions(&self) -> &Arc<Versions> {
        &self.versions
    }

    /// What is to be read anew by now; see [`Self::get`].
    pub fn take_due(&self) -> Vec<Key> {
        self.due.take()
    }

    /// Remembers what was read, unless what is there is newer: an answer may come so late that another has looked since.
    pub async fn keep(&self, key: Key, known: Known) {
        let put = async |there: Option<Entry<Key, Arc<Known>>>| match there {
            Some(there) if there.value().read_at >= known.read_at => Op::Nop,
            _ => Op::Put(Arc::new(known)),
        };
        self.known.entry(key).and_compute_with(put).await;
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
        F: Future<Output = Result<Option<(Session, User)>, Unavailable>> + 'static,
    {
        let look = || {
            let (read_at, found) = (Instant::now(), read());
            async move {
                let (session, user) = found.await.map_err(Miss::Unavailable)?.ok_or(Miss::Absent)?;
                Ok(Arc::new(Known::new(session, user, read_at)))
            }
        };
        let key = (id, self.versions.of(id, user));
        // What is nearly always there is found without the room that reading takes.
        let now = Instant::now();
        if let Some(known) = self.known.get(&key).await.filter(|known| !known.good_for(now).is_zero()) {
            if known.may_renew(now) && self.due.add(key, now) {
                renew();
            }
            return Ok(Some(known));
        }
        let found = match Box::pin(self.known.try_get_with(key, look())).await {
            // Another's answer that took too long to come tells of a time before this was asked.
            Ok(known) if known.good_for(Instant::now()).is_zero() => Box::pin(look()).await,
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
            cache.known.insert((ID, cache.versions.of(ID, USER)), Arc::new(Known::new(session, user, old))).await;
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
            cache.keep(due[0], Known::new(session, user, Instant::now())).await;
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
                cache.keep(key, read_before(millis)).await;
                assert_eq!(cache.known.get(&key).await.unwrap().read_at, read_before(kept).read_at);
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
