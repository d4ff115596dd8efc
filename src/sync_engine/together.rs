//! Who asks at the same time asks together: whoever comes while another's question is under way waits for the next
//! one, which is for all that have come by then. Nobody waits for others to come, but while several are being told of
//! their hashes.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use crate::{
    hashing::Telling,
    services::{error::Unavailable, ports::MOST_TOGETHER},
    settings::Settings,
    store::one_commit,
};

/// Those that wait, and how many ask for them; clones are the same.
pub struct Together<Q, A> {
    state: Arc<Mutex<State<Q, A>>>,
    side_by_side: usize,
    telling: Telling,
}

impl<Q, A> Clone for Together<Q, A> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), telling: self.telling.clone(), ..*self }
    }
}

struct State<Q, A> {
    // The last one takes in whoever comes, until it is full.
    groups: VecDeque<Group<Q, A>>,
    leaders: usize,
}

// Those that will be asked for together. The first of them leads, once it is told to.
struct Group<Q, A> {
    questions: Vec<Q>,
    shared: Arc<Shared<A>>,
    leads: bool,
}

// All of a group wait for one thing, so that one call wakes them all.
struct Shared<A> {
    lead: OnceLock<()>,
    answers: OnceLock<Result<Answers<A>, Unavailable>>,
}

// In the order of the questions; each is taken by its own asker.
type Answers<A> = Vec<Mutex<Option<A>>>;

impl<A> Shared<A> {
    fn new() -> Arc<Self> {
        Arc::new(Self { lead: OnceLock::new(), answers: OnceLock::new() })
    }

    // Wakes all, also whoever waits to lead.
    fn tell(&self, answers: Result<Answers<A>, Unavailable>) {
        let _ = self.answers.set(answers);
        let _ = self.lead.set(());
    }

    fn take(&self, nth: usize) -> Result<A, Unavailable> {
        match self.answers.wait() {
            Ok(answers) => {
                let answer = answers.get(nth).and_then(|answer| lock(answer).take());
                answer.ok_or_else(Unavailable::unanswered)
            }
            Err(error) => Err(error.again()),
        }
    }
}

impl<Q, A> Together<Q, A> {
    /// So many questions side by side.
    pub fn new(side_by_side: usize) -> Self {
        let state = State { groups: VecDeque::new(), leaders: 0 };
        let (state, telling) = (Arc::new(Mutex::new(state)), Telling::default());
        Self { state, side_by_side: side_by_side.max(1), telling }
    }

    /// For what is asked of the database: together where it is a file, or else each by itself. Those who are being told
    /// of their hashes come together.
    pub fn in_file(settings: &Settings, telling: &Telling) -> Self {
        match one_commit::is_worthwhile(settings) {
            true => Self { telling: telling.clone(), ..Self::new(1) },
            false => Self::new(usize::MAX),
        }
    }

    /// Asks by `ask_all`, which answers many in their order, on this thread or on that of another who waits.
    ///
    /// # Errors
    /// What `ask_all` failed with.
    pub fn ask(&self, question: Q, ask_all: impl Fn(&[Q]) -> Result<Vec<A>, Unavailable>) -> Result<A, Unavailable> {
        let (shared, nth) = match self.join(question) {
            Place::Alone(question) => {
                let shared = Shared::new();
                Leading(self, &shared).ask(&[question], &ask_all);
                (shared, 0)
            }
            Place::First(shared) => {
                shared.lead.wait();
                if shared.answers.get().is_none() {
                    self.telling.wait();
                }
                // No longer there when it was told that what all ask for is away.
                if let Some(questions) = self.take_out(&shared) {
                    Leading(self, &shared).ask(&questions, &ask_all);
                }
                (shared, 0)
            }
            Place::Behind(shared, nth) => (shared, nth),
        };
        shared.take(nth)
    }

    fn join(&self, question: Q) -> Place<Q, A> {
        let mut state = lock(&self.state);
        if state.leaders < self.side_by_side {
            state.leaders += 1;
            if !self.telling.is_under_way() {
                return Place::Alone(question);
            }
            let group = Group { questions: vec![question], shared: Shared::new(), leads: true };
            let shared = Arc::clone(&group.shared);
            let _ = shared.lead.set(());
            state.groups.push_back(group);
            return Place::First(shared);
        }
        match state.groups.back_mut().filter(|group| group.questions.len() < MOST_TOGETHER) {
            Some(group) => {
                group.questions.push(question);
                Place::Behind(Arc::clone(&group.shared), group.questions.len() - 1)
            }
            None => {
                let shared = Shared::new();
                let group = Group { questions: vec![question], shared: Arc::clone(&shared), leads: false };
                state.groups.push_back(group);
                Place::First(shared)
            }
        }
    }

    // Whoever comes from now on is in another group.
    fn take_out(&self, shared: &Arc<Shared<A>>) -> Option<Vec<Q>> {
        let mut state = lock(&self.state);
        let index = state.groups.iter().position(|group| Arc::ptr_eq(&group.shared, shared))?;
        state.groups.remove(index).map(|group| group.questions)
    }
}

impl<Q, A> Together<Q, A> {
    // But for those whose first has been told to lead, and will find it out.
    fn take_all(&self) -> Vec<Group<Q, A>> {
        let mut state = lock(&self.state);
        let (leading, others) = mem::take(&mut state.groups).into_iter().partition(|group| group.leads);
        state.groups = leading;
        Vec::from(others)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// Whose answer it is: that of a question by itself, of the first of a group, or of another of it.
enum Place<Q, A> {
    Alone(Q),
    First(Arc<Shared<A>>),
    Behind(Arc<Shared<A>>, usize),
}

// Hands the lead on when it ends, however it does, and lets nobody wait for an answer that does not come.
struct Leading<'a, Q, A>(&'a Together<Q, A>, &'a Shared<A>);

impl<Q, A> Leading<'_, Q, A> {
    fn ask(self, questions: &[Q], ask_all: &impl Fn(&[Q]) -> Result<Vec<A>, Unavailable>) {
        match ask_all(questions) {
            Ok(answers) => self.1.tell(Ok(answers.into_iter().map(|answer| Mutex::new(Some(answer))).collect())),
            // What is away is so for all who wait: they must not find it out one after the other.
            Err(error) => {
                for shared in self.0.take_all().iter().map(|group| &group.shared) {
                    shared.tell(Err(error.again()));
                }
                self.1.tell(Err(error));
            }
        }
    }
}

impl<Q, A> Drop for Leading<'_, Q, A> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        match state.groups.iter_mut().find(|group| !group.leads) {
            Some(group) => {
                group.leads = true;
                let _ = group.shared.lead.set(());
            }
            None => state.leaders -= 1,
        }
        drop(state);
        // Unless it was told: a panic.
        self.1.tell(Ok(Vec::new()));
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
        let waiting_now = || lock(&together.state).groups.iter().map(|group| group.questions.len()).sum::<usize>();
        while waiting_now() < waiting {
            thread::yield_now();
        }
    }

    fn assert_at_rest(together: &Doubling) {
        let state = lock(&together.state);
        assert_eq!((state.leaders, state.groups.len()), (0, 0));
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
    fn those_who_are_being_told_of_their_hashes_ask_together() {
        let telling = Telling::default();
        // The default is a file.
        let together = Doubling::in_file(&Settings::from_overrides(&[]).unwrap(), &telling);
        let sizes = Mutex::new(Vec::new());
        let ask_all = |all: &[usize]| {
            lock(&sizes).push(all.len());
            double(all)
        };
        thread::scope(|scope| {
            let (together, ask_all) = (&together, &ask_all);
            telling.during(|| {
                for nth in 0..16 {
                    scope.spawn(move || assert_eq!(together.ask(nth, ask_all).unwrap(), nth * 2));
                }
                wait_for(together, 16);
                assert!(lock(&sizes).is_empty());
            });
        });
        assert_eq!(*lock(&sizes), [16]);
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
    fn whoever_was_told_to_lead_does_so_although_another_question_fails_meanwhile() {
        let together = Doubling::new(2);
        let (told, waiting) = (Shared::new(), Shared::new());
        {
            let mut state = lock(&together.state);
            let group = |shared: &Arc<_>, leads| Group { questions: vec![7], shared: Arc::clone(shared), leads };
            (state.leaders, state.groups) = (2, VecDeque::from([group(&told, true), group(&waiting, false)]));
        }
        Leading(&together, &Shared::new()).ask(&[1], &|_| Err(Unavailable::database("on purpose")));
        assert!(told.answers.get().is_none());
        assert!(waiting.take(0).is_err());
        let questions = together.take_out(&told).unwrap();
        Leading(&together, &told).ask(&questions, &double);
        assert_eq!(told.take(0).unwrap(), 14);
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
