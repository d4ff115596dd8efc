//! Sessions that move on at the same time do so together: whoever comes while another commits waits for the next
//! commit, which serves all that have come by then. Nobody waits for others to come.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot::{Sender, channel};

use crate::{
    services::{
        error::Unavailable,
        ports::{MOST_TOGETHER, Rotated, Rotation},
    },
    settings::{DatabaseUrl, Settings},
};

type Outcome = Result<Option<Rotated>, Unavailable>;

/// Those that wait in one worker, and how many tasks commit; clones are the same.
#[derive(Clone)]
pub struct Rotations {
    state: Arc<Mutex<State>>,
    side_by_side: usize,
}

#[derive(Default)]
struct State {
    waiting: Vec<(Rotation, Sender<Outcome>)>,
    tasks: usize,
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

    /// Moves a session on by `commit`, which takes many, in a task of its own: whoever gives up meanwhile gives up their
    /// answer, and nobody else's.
    ///
    /// # Errors
    /// What `commit` failed with.
    pub async fn rotate(
        &self,
        rotation: Rotation,
        commit: impl AsyncFn(&[Rotation]) -> Result<Vec<Option<Rotated>>, Unavailable> + 'static,
    ) -> Outcome {
        let (tell, told) = channel();
        if self.wait(rotation, tell) {
            let mut task = Task { rotations: self.clone(), is_done: false };
            actix_web::rt::spawn(async move { task.commit_all(commit).await });
        }
        told.await.map_err(|_gone| Unavailable::database("the commit ended in a panic"))?
    }

    // Whether a further task is to commit.
    fn wait(&self, rotation: Rotation, tell: Sender<Outcome>) -> bool {
        let mut state = self.lock();
        state.waiting.push((rotation, tell));
        let is_needed = state.tasks < self.side_by_side;
        state.tasks += usize::from(is_needed);
        is_needed
    }

    // The first of those that wait. Of one session, one rotation can succeed: the others are told to look again.
    fn take(&self) -> (Vec<Rotation>, Vec<Sender<Outcome>>) {
        let mut state = self.lock();
        let (mut rotations, mut tell) = (Vec::<Rotation>::new(), Vec::new());
        while rotations.is_empty() && !state.waiting.is_empty() {
            let count = state.waiting.len().min(MOST_TOGETHER);
            for (rotation, sender) in state.waiting.drain(..count) {
                // Whoever has gone away meanwhile keeps their token.
                if sender.is_closed() {
                    continue;
                }
                if rotations.iter().any(|known| known.id == rotation.id) {
                    let _ = sender.send(Ok(None));
                } else {
                    rotations.push(rotation);
                    tell.push(sender);
                }
            }
        }
        // Under the same lock: whoever comes later starts a task.
        if rotations.is_empty() {
            state.tasks -= 1;
        }
        (rotations, tell)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Task {
    rotations: Rotations,
    is_done: bool,
}

impl Task {
    async fn commit_all(&mut self, commit: impl AsyncFn(&[Rotation]) -> Result<Vec<Option<Rotated>>, Unavailable>) {
        loop {
            let (rotations, tell) = self.rotations.take();
            if tell.is_empty() {
                self.is_done = true;
                return;
            }
            let committed = commit(&rotations).await;
            for (nth, tell) in tell.into_iter().enumerate() {
                let outcome = match &committed {
                    Ok(outcomes) => Ok(outcomes.get(nth).copied().flatten()),
                    Err(error) => Err(error.again()),
                };
                let _ = tell.send(outcome);
            }
            // A database that is away is so for all who wait: they must not find it out one after the other.
            if let Err(error) = committed {
                for (_, tell) in self.rotations.lock().waiting.drain(..) {
                    let _ = tell.send(Err(error.again()));
                }
            }
        }
    }
}

impl Drop for Task {
    // After a panic, or when the worker ends: nobody may wait for a task that is gone.
    fn drop(&mut self) {
        if !self.is_done {
            let mut state = self.rotations.lock();
            state.tasks -= 1;
            state.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        future::poll_fn,
        pin::pin,
        rc::Rc,
        task::Poll,
    };

    use actix_web::rt::System;
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

    fn rotation(session: u128) -> Rotation {
        let living = Living { at: AT, used_after: AT, opened_after: AT };
        let id = SessionId(Uuid::from_u128(session));
        Rotation { id, user: UserId(Uuid::nil()), from: 0, at: AT, living, expires_at: AT, absolute: None }
    }

    fn all_rotate(rotations: &[Rotation]) -> Result<Vec<Option<Rotated>>, Unavailable> {
        Ok(vec![Some(Rotated { at: AT, expires_at: AT }); rotations.len()])
    }

    // How many each commit was for.
    type Sizes = Rc<RefCell<Vec<usize>>>;

    fn ask(together: &Rotations, session: u128, sizes: &Sizes) -> tokio::task::JoinHandle<Outcome> {
        let (together, sizes) = (together.clone(), Rc::clone(sizes));
        actix_web::rt::spawn(async move {
            let commit = async move |rotations: &[Rotation]| {
                sizes.borrow_mut().push(rotations.len());
                tokio::task::yield_now().await;
                all_rotate(rotations)
            };
            together.rotate(rotation(session), commit).await
        })
    }

    #[test]
    fn whoever_comes_during_a_commit_is_in_the_next_one_and_each_session_once() {
        System::new().block_on(async {
            let (together, sizes) = (rotations(), Sizes::default());
            let asking: Vec<_> = (0..151).map(|nth| ask(&together, nth % 150, &sizes)).collect();
            let mut moved = 0;
            for one in asking {
                moved += usize::from(one.await.unwrap().unwrap().is_some());
            }
            assert_eq!(sizes.borrow().iter().sum::<usize>(), moved);
            assert!(sizes.borrow().len() <= 5 && sizes.borrow().iter().all(|size| *size <= MOST_TOGETHER), "{sizes:?}");
            assert!(moved >= 150);
            let state = together.lock();
            assert_eq!((state.tasks, state.waiting.len()), (0, 0));
        });
    }

    #[test]
    fn who_gives_up_keeps_nobody_from_moving_on() {
        System::new().block_on(async {
            let (together, commits) = (rotations(), Rc::new(Cell::new(0)));
            let commit = |commits: &Rc<Cell<i32>>| {
                let commits = Rc::clone(commits);
                async move |rotations: &[Rotation]| {
                    commits.set(commits.get() + 1);
                    all_rotate(rotations)
                }
            };
            {
                let mut given_up = pin!(together.rotate(rotation(1), commit(&commits)));
                poll_fn(|context| {
                    assert!(given_up.as_mut().poll(context).is_pending());
                    Poll::Ready(())
                })
                .await;
            }
            assert!(together.rotate(rotation(2), commit(&commits)).await.unwrap().is_some());
            assert_eq!(commits.get(), 1, "who has gone away keeps their token");
        });
    }

    #[test]
    fn whoever_waits_while_a_commit_fails_is_told_so_at_once() {
        System::new().block_on(async {
            let (together, commits) = (rotations(), Rc::new(Cell::new(0)));
            let asking: Vec<_> = (0..200)
                .map(|nth| {
                    let (together, commits) = (together.clone(), Rc::clone(&commits));
                    actix_web::rt::spawn(async move {
                        let commit = async move |_: &[Rotation]| {
                            commits.set(commits.get() + 1);
                            tokio::task::yield_now().await;
                            Err(Unavailable::database("on purpose"))
                        };
                        together.rotate(rotation(nth), commit).await
                    })
                })
                .collect();
            for one in asking {
                assert!(one.await.unwrap().is_err());
            }
            assert!(commits.get() <= 2, "{}", commits.get());
        });
    }

    #[test]
    fn a_failure_is_told_to_everybody_and_a_panic_leaves_no_one_waiting() {
        System::new().block_on(async {
            let together = rotations();
            let failed = together.rotate(rotation(1), async |_: &[Rotation]| Err(Unavailable::database("on purpose")));
            assert!(failed.await.is_err());
            let panicked = together.rotate(rotation(1), async |_: &[Rotation]| panic!("on purpose"));
            assert!(panicked.await.is_err());
            let next = together.rotate(rotation(1), async |rotations: &[Rotation]| all_rotate(rotations));
            assert!(next.await.unwrap().is_some());
        });
    }
}
