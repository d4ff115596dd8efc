//! Who asks at the same time asks together: whoever comes while another's question is under way waits for the next
//! one, which is for all that have come by then. Nobody waits for others to come.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    mpsc::{SyncSender, TryRecvError, sync_channel},
};

use crate::services::{error::Unavailable, ports::MOST_TOGETHER};

/// Those that wait, and how many ask for them; clones are the same.
pub struct Together<Q, A> {
    state: Arc<Mutex<State<Q, A>>>,
    side_by_side: usize,
}

impl<Q, A> Clone for Together<Q, A> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), side_by_side: self.side_by_side }
    }
}

struct State<Q, A> {
    waiting: Vec<Waiting<Q, A>>,
    leaders: usize,
}

struct Waiting<Q, A> {
    question: Q,
    tell: SyncSender<News<A>>,
    // Leads, or has been told to.
    leads: bool,
}

enum News<A> {
    Done(Result<A, Unavailable>),
    // To ask for all that wait.
    Lead,
}

// To lead and to be done: whoever tells never waits for room.
const MOST_NEWS: usize = 2;

impl<Q, A> Together<Q, A> {
    /// So many questions side by side.
    pub fn new(side_by_side: usize) -> Self {
        let state = State { waiting: Vec::new(), leaders: 0 };
        Self { state: Arc::new(Mutex::new(state)), side_by_side }
    }

    /// Asks by `ask_all`, which answers many in their order, on this thread or on that of another who waits.
    ///
    /// # Errors
    /// What `ask_all` failed with.
    pub fn ask(&self, question: Q, ask_all: impl Fn(&[Q]) -> Result<Vec<A>, Unavailable>) -> Result<A, Unavailable> {
        let (tell, news) = sync_channel(MOST_NEWS);
        let mut state = self.lock();
        // Whoever leads at once is handed no further lead.
        let leads = state.leaders < self.side_by_side;
        state.leaders += usize::from(leads);
        state.waiting.push(Waiting { question, tell, leads });
        drop(state);
        let mut leading = leads.then(|| Leading(self));
        loop {
            let told = if leading.is_some() && self.ask_once(&ask_all) {
                news.try_recv()
            } else {
                // Nobody waits: what was asked here is with another who leads, and its answer need not be watched for.
                leading = None;
                news.recv().map_err(|_gone| TryRecvError::Disconnected)
            };
            match told {
                Ok(News::Done(answer)) => return answer,
                Ok(News::Lead) => leading = Some(Leading(self)),
                // More waited than are asked for together.
                Err(TryRecvError::Empty) => (),
                Err(TryRecvError::Disconnected) => return Err(Unavailable::unanswered()),
            }
        }
    }

    // Whether anybody waited.
    fn ask_once(&self, ask_all: &impl Fn(&[Q]) -> Result<Vec<A>, Unavailable>) -> bool {
        let (questions, tell) = self.take();
        if questions.is_empty() {
            return false;
        }
        match ask_all(&questions) {
            // Whoever gets no answer sees their sender gone.
            Ok(answers) => tell.into_iter().zip(answers).for_each(|(tell, answer)| {
                let _ = tell.send(News::Done(Ok(answer)));
            }),
            // What is away is so for all who wait: they must not find it out one after the other.
            Err(error) => {
                let others = self.lock().waiting.drain(..).map(|waiting| waiting.tell).collect::<Vec<_>>();
                for tell in tell.into_iter().chain(others) {
                    let _ = tell.send(News::Done(Err(error.again())));
                }
            }
        }
        true
    }

    // The first of those that wait.
    fn take(&self) -> (Vec<Q>, Vec<SyncSender<News<A>>>) {
        let mut state = self.lock();
        let count = state.waiting.len().min(MOST_TOGETHER);
        state.waiting.drain(..count).map(|waiting| (waiting.question, waiting.tell)).unzip()
    }

    fn lock(&self) -> MutexGuard<'_, State<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Hands the lead on when it ends, however it does.
struct Leading<'a, Q, A>(&'a Together<Q, A>);

impl<Q, A> Drop for Leading<'_, Q, A> {
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

    use super::*;

    type Doubling = Together<usize, usize>;

    #[expect(clippy::unnecessary_wraps, reason = "of the form that a question for several has")]
    fn double(all: &[usize]) -> Result<Vec<usize>, Unavailable> {
        Ok(all.iter().map(|number| number * 2).collect())
    }

    // Asks all of them at once, and says what became of each.
    fn ask<T: Send>(count: usize, one: impl Fn(usize) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let one = &one;
            let asking: Vec<_> = (0..count).map(|nth| scope.spawn(move || one(nth))).collect();
            asking.into_iter().map(|one| one.join().unwrap()).collect()
        })
    }

    fn wait_for(together: &Doubling, waiting: usize) {
        while together.lock().waiting.len() < waiting {
            thread::yield_now();
        }
    }

    fn assert_at_rest(together: &Doubling) {
        let state = together.lock();
        assert_eq!((state.leaders, state.waiting.len()), (0, 0));
    }

    #[test]
    fn whoever_comes_during_a_question_is_in_the_next_one() {
        let (together, questions, first) = (Doubling::new(1), AtomicUsize::new(0), AtomicUsize::new(0));
        let ask_all = |all: &[usize]| {
            // The first one, which is for one or a few, is held until all others wait.
            if questions.fetch_add(1, Ordering::SeqCst) == 0 {
                first.store(all.len(), Ordering::SeqCst);
                wait_for(&together, 151 - all.len());
            }
            assert!(all.len() <= MOST_TOGETHER);
            double(all)
        };
        let answers = ask(151, |nth| together.ask(nth, ask_all).unwrap());
        assert_eq!(answers, (0..151).map(|nth| nth * 2).collect::<Vec<_>>());
        let others = 151 - first.load(Ordering::SeqCst);
        assert_eq!(questions.load(Ordering::SeqCst), 1 + others.div_ceil(MOST_TOGETHER));
        assert_at_rest(&together);
    }

    #[test]
    fn as_many_ask_side_by_side_as_may_and_no_more() {
        let (together, now, most) = (Doubling::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        let ask_all = |all: &[usize]| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Whoever leads waits for the other who does.
            while most.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            now.fetch_sub(1, Ordering::SeqCst);
            double(all)
        };
        assert_eq!(ask(40, |nth| together.ask(nth, ask_all).unwrap()).len(), 40);
        assert_eq!(most.load(Ordering::SeqCst), 2);
        assert_at_rest(&together);
    }

    #[test]
    fn whoever_waits_while_a_question_fails_is_told_so_at_once() {
        let (together, questions) = (Doubling::new(1), AtomicUsize::new(0));
        let ask_all = |all: &[usize]| {
            if questions.fetch_add(1, Ordering::SeqCst) == 0 {
                wait_for(&together, 151 - all.len());
            }
            Err(Unavailable::database("on purpose"))
        };
        assert!(ask(151, |nth| together.ask(nth, ask_all)).iter().all(Result::is_err));
        assert_eq!(questions.load(Ordering::SeqCst), 1);
        assert_at_rest(&together);
    }

    #[test]
    fn whoever_gets_no_answer_and_whoever_waits_for_a_panic_is_told_so() {
        let together = Doubling::new(1);
        assert!(together.ask(1, |_| Ok(Vec::new())).is_err());
        let (panics, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let ask_all = |all: &[usize]| {
            if panics.fetch_add(1, Ordering::SeqCst) == 0 {
                lost.store(all.len(), Ordering::SeqCst);
                wait_for(&together, 11 - all.len());
                panic!("on purpose");
            }
            double(all)
        };
        let done = ask(11, |nth| catch_unwind(AssertUnwindSafe(|| together.ask(nth, ask_all))));
        assert_eq!(
            done.iter().filter(|one| one.as_ref().is_ok_and(Result::is_ok)).count(),
            11 - lost.load(Ordering::SeqCst)
        );
        assert_at_rest(&together);
    }
}
