//! The threads that hash passwords, for both engines.
//!
//! A hash costs a core for milliseconds and as much memory as it is told to, so there are as many threads as there
//! are slots, each with its own memory, and a queue in front of them that takes in nobody who would wait too long:
//! they had better be told at once to come back.

use std::{
    collections::VecDeque,
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    services::{
        error::Overloaded,
        passwords::{Arena, Kernel},
    },
    settings::Settings,
};

/// Work for a hashing thread. One that is dropped instead was not done: its queue had stood still too long.
pub type Job = Box<dyn FnOnce(&mut Arena) -> Tell + Send>;

/// What is left of a job once it is done: to tell whoever waits for it. It takes next to no time.
pub type Tell = Box<dyn FnOnce() + Send>;

// Whoever serves requests, and the database beside them, comes first: a storm of sign-ins must not hold up those who
// are signed in. Hashes have what is left, which is nearly everything.
const NICENESS: i32 = 5;

// While at least so many wait, so many are told together what came of their jobs. What each of them does then, at the
// database for the most part, interrupts the hashing and finds its memory in no cache; one after the other, all but the
// first find it warm. Only whoever has waited for longer than it takes to fill a group waits for it …
const TOGETHER: usize = 16;

// … and not where it would take longer than this, since a job is dear. What the others' jobs will take is not known: where
// all threads are at jobs dearer than usual, it may be as long as one of them.
const MOST_HELD: Duration = Duration::from_millis(200);

// After a job, also with others waiting. A thread that never leaves its processor is not well looked after by every
// kernel: on Linux 6.18 those of the kernel's own threads that belong to that processor, and write for the database,
// waited for seconds. It costs some 60 µs: after each hash, but not after each judging of a password.
const BREATH: Duration = Duration::from_nanos(1);
const BREATHLESS: Duration = Duration::from_millis(2);

/// The threads and the queue in front of them; clones are the same.
#[derive(Clone)]
pub struct HashPool(Arc<Closing>);

// Ends the threads with the last clone.
struct Closing(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    slots: u32,
    kernel: Kernel,
    places: usize,
    patience: Duration,
}

struct State {
    waiting: VecDeque<(Instant, Job)>,
    idle: usize,
    // Of those whose jobs are done.
    untold: Vec<Tell>,
    // When the first of them was put there.
    untold_since: Instant,
    // What a job took of late.
    usual: Duration,
    is_closed: bool,
}

impl HashPool {
    /// Starts `slots` threads with `passwords.queue` places in front of them.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(settings: &Settings, slots: usize) -> io::Result<Self> {
        let passwords = &settings.passwords;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                idle: 0,
                untold: Vec::new(),
                untold_since: Instant::now(),
                usual: Duration::ZERO,
                is_closed: false,
            }),
            wake: Condvar::new(),
            slots: u32::try_from(slots).unwrap_or(u32::MAX).max(1),
            kernel: passwords.kernel,
            places: passwords.queue,
            patience: passwords.queue_timeout,
        });
        let pool = Self(Arc::new(Closing(Arc::clone(&shared))));
        for n in 0..slots {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("hash-{n}")).stack_size(1 << 20).spawn(move || shared.work())?;
        }
        Ok(pool)
    }

    /// Puts a job into the queue.
    ///
    /// # Errors
    /// [`Overloaded`]: it would wait longer than `passwords.queue_timeout`, or there is no place.
    pub fn submit(&self, job: Job) -> Result<(), Overloaded> {
        let shared = &self.0.0;
        let mut state = shared.lock();
        if !shared.has_room(&state) {
            return Err(Overloaded);
        }
        state.waiting.push_back((Instant::now(), job));
        drop(state);
        shared.wake.notify_one();
        Ok(())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.wake.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Whether one more will have its turn in time, as far as can be told.
    fn has_room(&self, state: &State) -> bool {
        let before = state.waiting.len();
        let is_free = state.idle > before;
        let turns = u32::try_from(before + 1).unwrap_or(u32::MAX);
        is_free || (before < self.places && state.usual.saturating_mul(turns) / self.slots <= self.patience)
    }

    fn work(&self) {
        // Not granted everywhere; it is a courtesy.
        let _ = rustix::process::nice(NICENESS);
        let mut arena = Arena::new(self.kernel);
        let mut breathed = Instant::now();
        loop {
            let mut state = self.lock();
            state.idle += 1;
            let next = loop {
                match state.waiting.pop_front() {
                    // The machine is slower than it was: dropping it tells whoever waits.
                    Some((since, _)) if since.elapsed() > self.patience => (),
                    Some((since, job)) => break Some((since.elapsed(), job)),
                    // All that waited have given up.
                    None if !state.untold.is_empty() => {
                        let told = mem::take(&mut state.untold);
                        drop(state);
                        tell(told);
                        state = self.lock();
                    }
                    None if state.is_closed => break None,
                    None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            state.idle -= 1;
            drop(state);
            let Some((waited, job)) = next else { return };
            let began = Instant::now();
            // A panic is told by the hook; it must not cost a thread.
            let done = catch_unwind(AssertUnwindSafe(|| job(&mut arena)));
            if done.is_err() {
                arena = Arena::new(self.kernel);
            }
            let took = began.elapsed();
            let mut state = self.lock();
            state.usual = if state.usual.is_zero() { took } else { (state.usual * 7 + took) / 8 };
            if state.untold.is_empty() {
                state.untold_since = Instant::now();
            }
            state.untold.extend(done);
            let told = if self.may_hold(&state, waited) { Vec::new() } else { mem::take(&mut state.untold) };
            drop(state);
            tell(told);
            if breathed.elapsed() >= BREATHLESS {
                breathe();
                breathed = Instant::now();
            }
        }
    }

    // Whether those whose jobs are done are to be told later, with others; the last of them has waited for so long.
    fn may_hold(&self, state: &State, waited: Duration) -> bool {
        let group = u32::try_from(TOGETHER).unwrap_or(u32::MAX);
        let longest = state.usual.saturating_mul(group) / self.slots;
        state.untold.len() < TOGETHER
            && state.waiting.len() >= TOGETHER
            && longest <= waited.min(MOST_HELD)
            && state.untold_since.elapsed() + state.usual <= MOST_HELD
    }
}

fn tell(all: Vec<Tell>) {
    for tell in all {
        // As with a job: it must not cost a thread, nor the others their answers.
        let _ = catch_unwind(AssertUnwindSafe(tell));
    }
}

#[expect(clippy::disallowed_methods, reason = "no request waits: what was asked for is answered")]
fn breathe() {
    thread::sleep(BREATH);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    fn pool(slots: usize, overrides: &[&str]) -> HashPool {
        HashPool::start(&Settings::from_overrides(overrides).unwrap(), slots).unwrap()
    }

    // A job that waits to be let go, and what to let it go with; it tells when it has begun.
    fn held() -> (Job, Sender<()>, Receiver<()>) {
        let (go, gone) = channel::<()>();
        let (begin, begun) = channel();
        let job = move |_: &mut Arena| -> Tell {
            let _ = begin.send(());
            let _ = gone.recv();
            Box::new(|| ())
        };
        (Box::new(job), go, begun)
    }

    fn answered() -> (Job, Receiver<()>) {
        let (done, answer) = channel();
        let job = move |_: &mut Arena| -> Tell { Box::new(move || done.send(()).unwrap_or_default()) };
        (Box::new(job), answer)
    }

    fn hold_all(pool: &HashPool, slots: usize) -> Vec<Sender<()>> {
        // On a busy machine a thread may come too late for its first job.
        let hold = || {
            let (job, go, begun) = held();
            pool.submit(job).unwrap();
            begun.recv().ok().map(|()| go)
        };
        (0..slots).map(|_| std::iter::repeat_with(hold).flatten().next().unwrap()).collect()
    }

    #[test]
    fn as_many_run_at_once_as_there_are_slots_and_as_many_wait_as_there_are_places() {
        let pool = pool(2, &["passwords.queue=1"]);
        let held = hold_all(&pool, 2);
        let (one, answer) = answered();
        pool.submit(one).unwrap();
        assert!(pool.submit(answered().0).is_err());
        drop(held);
        answer.recv().unwrap();
    }

    #[test]
    fn who_would_wait_too_long_is_turned_away_at_once() {
        let pool = pool(1, &["passwords.queue=1000", "passwords.queue_timeout=1s"]);
        pool.0.0.lock().usual = Duration::from_millis(300);
        let held = hold_all(&pool, 1);
        let waiting: Vec<_> = std::iter::from_fn(|| {
            let (job, answer) = answered();
            pool.submit(job).is_ok().then_some(answer)
        })
        .collect();
        assert_eq!(waiting.len(), 3);
        drop(held);
        assert!(waiting.into_iter().all(|answer| answer.recv().is_ok()));
    }

    #[test]
    fn a_job_that_has_waited_too_long_is_not_done() {
        let pool = pool(1, &["passwords.queue_timeout=50ms"]);
        let held = hold_all(&pool, 1);
        let (job, answer) = answered();
        pool.submit(job).unwrap();
        assert!(answer.recv_timeout(Duration::from_millis(100)).is_err());
        drop(held);
        assert_eq!(answer.recv(), Err(std::sync::mpsc::RecvError), "dropped, which tells whoever waits");
        let again = || {
            // What was held for so long made the usual time long.
            pool.0.0.lock().usual = Duration::ZERO;
            let (job, answer) = answered();
            pool.submit(job).is_ok() && answer.recv().is_ok()
        };
        assert!(std::iter::repeat_with(again).take(100).any(|is_done| is_done));
    }

    // Zero would be as good as not known: then the next job counts for all of it.
    const CHEAP: Duration = Duration::from_nanos(1);

    // What becomes of so many jobs that wait behind one, of which each leaves its number when it is done and when it is
    // told; the usual job takes `usual`.
    fn course(count: usize, usual: Duration) -> Vec<(&'static str, usize)> {
        let pool = pool(1, &["passwords.queue_timeout=10s"]);
        let held = hold_all(&pool, 1);
        let (note, noted) = channel();
        for nth in 0..count {
            let (note, told) = (note.clone(), note.clone());
            let job = move |_: &mut Arena| -> Tell {
                note.send(("done", nth)).unwrap();
                Box::new(move || told.send(("told", nth)).unwrap())
            };
            pool.submit(Box::new(job)).unwrap();
        }
        drop(note);
        // Nobody ends a job meanwhile, which would count.
        pool.0.0.lock().usual = usual;
        drop(held);
        noted.iter().collect()
    }

    #[test]
    fn while_many_wait_groups_are_told_together_and_nobody_is_forgotten() {
        // Whoever is told right after their job was not held.
        let held = |course: &[(&str, usize)]| {
            let pairs =
                course.windows(2).filter(|pair| matches!(pair, [("done", one), ("told", other)] if one == other));
            course.len() / 2 - pairs.count()
        };
        // On a busy machine a job may come to be dear.
        let courses = || std::iter::repeat_with(|| course(TOGETHER * 3, CHEAP)).take(20);
        let course = courses().find(|course| held(course) >= TOGETHER).expect("a group");
        let told = |nth: usize| course.iter().position(|one| *one == ("told", nth)).unwrap();
        let done = |nth: usize| course.iter().position(|one| *one == ("done", nth)).unwrap();
        assert_eq!(course.len(), TOGETHER * 6);
        assert!((0..TOGETHER * 3).all(|nth| told(nth) > done(nth)));
        let longest = course.chunk_by(|one, next| one.0 == next.0).map(<[_]>::len).max();
        assert!(longest <= Some(TOGETHER), "{course:?}");
    }

    #[test]
    fn nobody_is_held_where_few_wait_or_a_job_is_dear() {
        let at_once = |course: Vec<(&str, usize)>| {
            let numbers = (0..course.len() / 2).flat_map(|nth| [("done", nth), ("told", nth)]);
            course == numbers.collect::<Vec<_>>()
        };
        assert!(at_once(course(TOGETHER - 1, CHEAP)));
        // It stays dear for longer than there are jobs.
        assert!(at_once(course(TOGETHER * 3, Duration::from_secs(10))));
    }

    #[test]
    fn a_panic_costs_no_thread_and_the_threads_end_with_the_pool() {
        let pool = pool(1, &[]);
        pool.submit(Box::new(|_| -> Tell { panic!("on purpose") })).unwrap();
        let (job, answer) = answered();
        pool.submit(job).unwrap();
        answer.recv().unwrap();
        let shared = Arc::downgrade(&pool.0.0);
        drop(pool);
        let deadline = Instant::now() + Duration::from_secs(10);
        while shared.strong_count() > 0 {
            assert!(Instant::now() < deadline, "a thread goes on");
            thread::yield_now();
        }
    }
}
