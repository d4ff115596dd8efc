//! Sessions that move on at the same time do so together: whoever comes while another commits waits for the next
//! commit, which serves all that have come by then. Nobody waits for others to come.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    mpsc::{Sender, TryRecvError, channel},
};

use crate::{
    services::{
        error::Unavailable,
        ports::{MOST_TOGETHER, Rotated, Rotation},
    },
    settings::{DatabaseUrl, Settings},
};

type Outcome = Result<Option<Rotated>, Unavailable>;

/// Those that wait, and how many commit; clones are the same.
#[derive(Clone)]
pub struct Rotations {
    state: Arc<Mutex<State>>,
    side_by_side: usize,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    leaders: usize,
}

struct Waiting {
    rotation: Rotation,
    tell: Sender<News>,
    // Has been told to lead, and has not done so yet.
    leads: bool,
}

enum News {
    Done(Outcome),
    // To commit for all that wait.
    Lead,
}

impl Rotations {
    /// Two commits side by side on a server: while one waits for the disk, the other is made up. A file has one writer.
    pub fn of(settings: &Settings) -> Self {
        let side_by_side = match settings.database() {
            DatabaseUrl::Sqlite(_) => 1,
            DatabaseUrl::Postgres(_) => 2,
        };
        Self { state: Arc::default(), side_by_side }
    }

    /// Moves a session on by `commit`, which takes many, on this thread or on that of another who waits.
    ///
    /// # Errors
    /// What `commit` failed with.
    pub fn rotate(
        &self,
        rotation: Rotation,
        commit: impl Fn(&[Rotation]) -> Result<Vec<Option<Rotated>>, Unavailable>,
    ) -> Outcome {
        let (tell, news) = channel();
        let mut state = self.lock();
        state.waiting.push(Waiting { rotation, tell, leads: false });
        let mut leading = None;
        if state.leaders < self.side_by_side {
            state.leaders += 1;
            leading = Some(Leading(self));
        }
        drop(state);
        loop {
            let told = match &leading {
                None => news.recv().map_err(|_gone| TryRecvError::Disconnected),
                Some(_) => {
                    self.commit_once(&commit);
                    news.try_recv()
                }
            };
            match told {
                Ok(News::Done(outcome)) => return outcome,
                Ok(News::Lead) => leading = Some(Leading(self)),
                // More waited than move on together.
                Err(TryRecvError::Empty) => (),
                Err(TryRecvError::Disconnected) => return Err(Unavailable::database("the commit ended in a panic")),
            }
        }
    }

    fn commit_once(&self, commit: &impl Fn(&[Rotation]) -> Result<Vec<Option<Rotated>>, Unavailable>) {
        let (rotations, tell) = self.take();
        if rotations.is_empty() {
            return;
        }
        let committed = commit(&rotations);
        for (nth, tell) in tell.into_iter().enumerate() {
            let outcome = match &committed {
                Ok(outcomes) => Ok(outcomes.get(nth).copied().flatten()),
                Err(error) => Err(error.again()),
            };
            let _ = tell.send(News::Done(outcome));
        }
        // A database that is away is so for all who wait: they must not find it out one after the other.
        if let Err(error) = committed {
            for waiting in self.lock().waiting.drain(..) {
                let _ = waiting.tell.send(News::Done(Err(error.again())));
            }
        }
    }

    // The first of those that wait. Of one session, one rotation can succeed: the others are told to look again.
    fn take(&self) -> (Vec<Rotation>, Vec<Sender<News>>) {
        let mut state = self.lock();
        let count = state.waiting.len().min(MOST_TOGETHER);
        let (mut rotations, mut tell) = (Vec::<Rotation>::with_capacity(count), Vec::with_capacity(count));
        for waiting in state.waiting.drain(..count) {
            if rotations.iter().any(|known| known.id == waiting.rotation.id) {
                let _ = waiting.tell.send(News::Done(Ok(None)));
            } else {
                rotations.push(waiting.rotation);
                tell.push(waiting.tell);
            }
        }
        (rotations, tell)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Hands the lead on when it ends, however it does.
struct Leading<'a>(&'a Rotations);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let next = state.waiting.iter_mut().find(|waiting| !waiting.leads);
        let is_handed_on = next.is_some_and(|waiting| {
            waiting.leads = true;
            waiting.tell.send(News::Lead).is_ok()
        });
        if !is_handed_on {
            state.leaders -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::services::{
        model::{SessionId, UserId},
        ports::Living,
    };

    const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn rotations() -> Rotations {
        Rotations { state: Arc::default(), side_by_side: 1 }
    }

    fn rotation(session: usize) -> Rotation {
        let living = Living { at: AT, used_after: AT, opened_after: AT };
        let id = SessionId(Uuid::from_u128(u128::try_from(session).unwrap()));
        Rotation { id, user: UserId(Uuid::nil()), from: 0, at: AT, living, expires_at: AT, absolute: None }
    }

    fn all_rotate(rotations: &[Rotation]) -> Result<Vec<Option<Rotated>>, Unavailable> {
        Ok(vec![Some(Rotated { at: AT, expires_at: AT }); rotations.len()])
    }

    #[test]
    fn whoever_comes_during_a_commit_is_in_the_next_one() {
        let (together, commits) = (rotations(), AtomicUsize::new(0));
        let commit = |rotations: &[Rotation]| {
            // The first one is held until all others wait.
            if commits.fetch_add(1, Ordering::SeqCst) == 0 {
                while together.lock().waiting.len() < 150 {
                    thread::yield_now();
                }
            }
            assert!(rotations.len() <= MOST_TOGETHER);
            all_rotate(rotations)
        };
        thread::scope(|scope| {
            let ask = |nth| {
                let (together, commit) = (&together, &commit);
                scope.spawn(move || together.rotate(rotation(nth), commit))
            };
            let asking: Vec<_> = (0..151).map(ask).collect();
            assert!(asking.into_iter().all(|one| one.join().unwrap().unwrap().is_some()));
        });
        assert_eq!(commits.load(Ordering::SeqCst), 1 + 150_usize.div_ceil(MOST_TOGETHER));
        let state = together.lock();
        assert_eq!((state.leaders, state.waiting.len()), (0, 0));
    }

    #[test]
    fn one_session_moves_on_once_in_a_commit() {
        let (together, commits) = (rotations(), AtomicUsize::new(0));
        let commit = |rotations: &[Rotation]| {
            if commits.fetch_add(1, Ordering::SeqCst) == 0 {
                while together.lock().waiting.len() < 20 {
                    thread::yield_now();
                }
            }
            all_rotate(rotations)
        };
        let won = thread::scope(|scope| {
            let ask = |_| scope.spawn(|| together.rotate(rotation(7), commit).unwrap());
            let asking: Vec<_> = (0..21).map(ask).collect();
            asking.into_iter().filter_map(|one| one.join().unwrap()).count()
        });
        assert_eq!((won, commits.load(Ordering::SeqCst)), (2, 2));
    }

    #[test]
    fn whoever_waits_while_a_commit_fails_is_told_so_at_once() {
        let (together, commits) = (rotations(), AtomicUsize::new(0));
        let commit = |_: &[Rotation]| {
            if commits.fetch_add(1, Ordering::SeqCst) == 0 {
                while together.lock().waiting.len() < 150 {
                    thread::yield_now();
                }
            }
            Err(Unavailable::database("on purpose"))
        };
        thread::scope(|scope| {
            let ask = |nth| {
                let (together, commit) = (&together, &commit);
                scope.spawn(move || together.rotate(rotation(nth), commit))
            };
            let asking: Vec<_> = (0..151).map(ask).collect();
            assert!(asking.into_iter().all(|one| one.join().unwrap().is_err()));
        });
        assert_eq!(commits.load(Ordering::SeqCst), 1);
        let state = together.lock();
        assert_eq!((state.leaders, state.waiting.len()), (0, 0));
    }

    #[test]
    fn a_failure_is_told_to_everybody_and_a_panic_leaves_no_one_waiting() {
        let together = rotations();
        let failed = together.rotate(rotation(1), |_| Err(Unavailable::database("on purpose")));
        assert!(failed.is_err());
        let panics = AtomicUsize::new(0);
        let commit = |rotations: &[Rotation]| {
            if panics.fetch_add(1, Ordering::SeqCst) == 0 {
                while together.lock().waiting.len() < 10 {
                    thread::yield_now();
                }
                panic!("on purpose");
            }
            all_rotate(rotations)
        };
        let done = thread::scope(|scope| {
            let ask = |nth| {
                let (together, commit) = (&together, &commit);
                scope.spawn(move || catch_unwind(AssertUnwindSafe(|| together.rotate(rotation(nth), commit))))
            };
            let asking: Vec<_> = (0..11).map(ask).collect();
            asking.into_iter().map(|one| one.join().unwrap()).filter(Result::is_ok).count()
        });
        assert_eq!(done, 10);
        let state = together.lock();
        assert_eq!((state.leaders, state.waiting.len()), (0, 0));
    }
}
