//! Who asks at the same time asks together: whoever comes while another's question is under way waits for the next
//! one, which is for all that have come by then. Nobody waits for others to come, but for those whose turn it is
//! already and for those who are being told of their hashes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot::{Sender, channel};

use crate::{
    hashing::Telling,
    services::{error::Unavailable, ports::MOST_TOGETHER},
    settings::Settings,
    store::one_commit,
};

/// Those that wait in one worker, and how many tasks ask for them; clones are the same.
pub struct Together<Q, A> {
    state: Arc<Mutex<State<Q, A>>>,
    side_by_side: usize,
    most: usize,
    telling: Telling,
}

impl<Q, A> Clone for Together<Q, A> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), telling: self.telling.clone(), ..*self }
    }
}

struct State<Q, A> {
    waiting: Vec<(Q, Tell<A>)>,
    tasks: usize,
}

type Tell<A> = Sender<Result<A, Unavailable>>;

impl<Q: 'static, A: 'static> Together<Q, A> {
    /// So many questions side by side.
    pub fn new(side_by_side: usize) -> Self {
        let state = State { waiting: Vec::new(), tasks: 0 };
        let (state, telling) = (Arc::new(Mutex::new(state)), Telling::default());
        Self { state, side_by_side: side_by_side.max(1), most: MOST_TOGETHER, telling }
    }

    /// For what is asked of the database: together where it is a file, or else each by itself. Those who are being told
    /// of their hashes come together.
    pub fn in_file(settings: &Settings, telling: &Telling) -> Self {
        match one_commit::is_worthwhile(settings) {
            true => Self { telling: telling.clone(), ..Self::new(1) },
            false => Self { most: 1, ..Self::new(usize::MAX) },
        }
    }

    /// Asks by `ask_all`, which answers many in their order, in a task of its own: whoever gives up meanwhile gives up
    /// their answer, and nobody else's.
    ///
    /// # Errors
    /// What `ask_all` failed with.
    pub async fn ask(
        &self,
        question: Q,
        ask_all: impl AsyncFn(&[Q]) -> Result<Vec<A>, Unavailable> + 'static,
    ) -> Result<A, Unavailable> {
        let (tell, told) = channel();
        if self.wait(question, tell) {
            let mut task = Task { together: self.clone(), is_done: false };
            actix_web::rt::spawn(async move {
                task.ask_for_all(ask_all).await;
            });
        }
        told.await.map_err(|_gone| Unavailable::unanswered())?
    }

    // Whether a further task is to ask.
    fn wait(&self, question: Q, tell: Tell<A>) -> bool {
        let mut state = self.lock();
        state.waiting.push((question, tell));
        let is_needed = state.tasks < self.side_by_side;
        state.tasks += usize::from(is_needed);
        is_needed
    }

    // The first of those that wait.
    fn take(&self) -> (Vec<Q>, Vec<Tell<A>>) {
        let mut state = self.lock();
        // Whoever has gone away meanwhile is not asked for.
        state.waiting.retain(|(_, tell)| !tell.is_closed());
        // Under the same lock: whoever comes later starts a task.
        if state.waiting.is_empty() {
            state.tasks -= 1;
        }
        let count = state.waiting.len().min(self.most);
        state.waiting.drain(..count).unzip()
    }
}

impl<Q, A> Together<Q, A> {
    fn lock(&self) -> MutexGuard<'_, State<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q, A> Together<Q, A> {
    // Those who wait for this task; each has one of their own where nothing is asked together.
    fn give_up_waiting(&self) -> Vec<Tell<A>> {
        match self.most {
            1 => Vec::new(),
            _ => self.lock().waiting.drain(..).map(|(_, tell)| tell).collect(),
        }
    }
}

struct Task<Q, A> {
    together: Together<Q, A>,
    is_done: bool,
}

impl<Q: 'static, A: 'static> Task<Q, A> {
    async fn ask_for_all(&mut self, ask_all: impl AsyncFn(&[Q]) -> Result<Vec<A>, Unavailable>) {
        // Those whose turn it is already come first: what woke one often woke others.
        tokio::task::yield_now().await;
        loop {
            self.together.telling.ended().await;
            let (questions, tell) = self.together.take();
            if tell.is_empty() {
                self.is_done = true;
                return;
            }
            match ask_all(&questions).await {
                // Whoever gets no answer sees their sender gone.
                Ok(answers) => tell.into_iter().zip(answers).for_each(|(tell, answer)| {
                    let _ = tell.send(Ok(answer));
                }),
                // What is away is so for all who wait: they must not find it out one after the other.
                Err(error) => {
                    let others = self.together.give_up_waiting();
                    for tell in tell.into_iter().chain(others) {
                        let _ = tell.send(Err(error.again()));
                    }
                }
            }
        }
    }
}

impl<Q, A> Drop for Task<Q, A> {
    // After a panic, or when the worker ends: nobody may wait for a task that is gone.
    fn drop(&mut self) {
        if !self.is_done {
            let mut state = self.together.lock();
            state.tasks -= 1;
            drop(state);
            drop(self.together.give_up_waiting());
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

    use super::*;

    type Doubling = Together<usize, usize>;

    #[expect(clippy::unnecessary_wraps, reason = "of the form that a question for several has")]
    fn double(all: &[usize]) -> Result<Vec<usize>, Unavailable> {
        Ok(all.iter().map(|number| number * 2).collect())
    }

    #[test]
    fn whoever_comes_during_a_question_is_in_the_next_one() {
        System::new().block_on(async {
            // How many each question was for.
            let (together, sizes) = (Doubling::new(1), Rc::new(RefCell::new(Vec::new())));
            let asking: Vec<_> = (0..151)
                .map(|nth| {
                    let (together, sizes) = (together.clone(), Rc::clone(&sizes));
                    actix_web::rt::spawn(async move {
                        let ask_all = async move |all: &[usize]| {
                            sizes.borrow_mut().push(all.len());
                            tokio::task::yield_now().await;
                            double(all)
                        };
                        together.ask(nth, ask_all).await
                    })
                })
                .collect();
            for (nth, one) in asking.into_iter().enumerate() {
                assert_eq!(one.await.unwrap().unwrap(), nth * 2);
            }
            let sizes = sizes.borrow();
            assert_eq!(sizes.iter().sum::<usize>(), 151);
            assert!(sizes.len() <= 5 && sizes.iter().all(|size| *size <= MOST_TOGETHER), "{sizes:?}");
            let state = together.lock();
            assert_eq!((state.tasks, state.waiting.len()), (0, 0));
        });
    }

    #[test]
    fn those_who_are_being_told_of_their_hashes_ask_together() {
        System::new().block_on(async {
            let telling = Telling::default();
            // The default is a file.
            let together = Doubling::in_file(&Settings::from_overrides(&[]).unwrap(), &telling);
            let sizes = Rc::new(RefCell::new(Vec::new()));
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let (begin, begun) = channel();
            let told = std::thread::spawn(move || {
                telling.during(|| {
                    begin.send(()).unwrap();
                    ended.recv().unwrap();
                });
            });
            begun.await.unwrap();
            let mut asking = Vec::new();
            for nth in 0..16 {
                let (together, sizes) = (together.clone(), Rc::clone(&sizes));
                asking.push(actix_web::rt::spawn(async move {
                    let ask_all = async move |all: &[usize]| {
                        sizes.borrow_mut().push(all.len());
                        double(all)
                    };
                    together.ask(nth, ask_all).await
                }));
                // The next one comes when whoever asks could have asked long ago.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!((together.lock().waiting.len(), sizes.borrow().len()), (16, 0));
            end.send(()).unwrap();
            for (nth, one) in asking.into_iter().enumerate() {
                assert_eq!(one.await.unwrap().unwrap(), nth * 2);
            }
            assert_eq!(*sizes.borrow(), [16]);
            told.join().unwrap();
        });
    }

    #[test]
    fn who_gives_up_keeps_nobody_from_an_answer_and_is_not_asked_for() {
        System::new().block_on(async {
            let (together, asked) = (Doubling::new(1), Rc::new(RefCell::new(Vec::new())));
            let ask_all = |asked: &Rc<RefCell<Vec<usize>>>| {
                let asked = Rc::clone(asked);
                async move |all: &[usize]| {
                    asked.borrow_mut().extend_from_slice(all);
                    double(all)
                }
            };
            {
                let mut given_up = pin!(together.ask(1, ask_all(&asked)));
                poll_fn(|context| {
                    assert!(given_up.as_mut().poll(context).is_pending());
                    Poll::Ready(())
                })
                .await;
            }
            assert_eq!(together.ask(2, ask_all(&asked)).await.unwrap(), 4);
            assert_eq!(*asked.borrow(), [2]);
        });
    }

    #[test]
    fn whoever_waits_while_a_question_fails_is_told_so_at_once() {
        System::new().block_on(async {
            let (together, questions) = (Doubling::new(1), Rc::new(Cell::new(0)));
            let asking: Vec<_> = (0..200)
                .map(|nth| {
                    let (together, questions) = (together.clone(), Rc::clone(&questions));
                    actix_web::rt::spawn(async move {
                        let ask_all = async move |_: &[usize]| {
                            questions.set(questions.get() + 1);
                            tokio::task::yield_now().await;
                            Err(Unavailable::database("on purpose"))
                        };
                        together.ask(nth, ask_all).await
                    })
                })
                .collect();
            for one in asking {
                assert!(one.await.unwrap().is_err());
            }
            assert!(questions.get() <= 2, "{}", questions.get());
        });
    }

    #[test]
    fn whoever_gets_no_answer_and_whoever_waits_for_a_panic_is_told_so() {
        System::new().block_on(async {
            let together = Doubling::new(1);
            assert!(together.ask(1, async |_: &[usize]| Ok(Vec::new())).await.is_err());
            assert!(together.ask(1, async |_: &[usize]| panic!("on purpose")).await.is_err());
            assert_eq!(together.ask(1, async |all: &[usize]| double(all)).await.unwrap(), 2);
        });
    }
}
