//! The threads that hash passwords, for both engines.
//!
//! A hash costs a core for milliseconds and as much memory as it is told to, so there are as many threads as there
//! are slots, each with its own memory, and a queue in front of them that takes in nobody who would wait too long:
//! they had better be told at once to come back.

use std::{
    collections::VecDeque,
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    services::{
        error::Overloaded,
        passwords::{Arena, Kernel},
    },
    settings::Settings,
};

/// Work for a hashing thread; nothing is left to tell where nobody waits any more. One that is dropped instead was not
/// done: its queue had stood still too long.
pub type Job = Box<dyn FnOnce(&mut Arena) -> Option<Tell> + Send>;

/// What is left of a job once it is done: to tell whoever waits for it. It takes next to no time, and may leave something
/// for when all of a group were told.
pub type Tell = Box<dyn FnOnce() -> Option<Last> + Send>;

/// What comes when all of a group were told, such as to wake a thread of theirs.
pub type Last = Box<dyn FnOnce() + Send>;

/// What a job is, which tells how dear it is and whom to tell of it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A hash is made or verified.
    Hash,
    /// A new password is judged: a hundredth of a hash, for most.
    Judging,
}

// Whoever serves requests, and the database beside them, comes first: a storm of sign-ins must not hold up those who
// are signed in. Hashes have what is left, which is nearly everything.
const NICENESS: i32 = 5;

// While at least so many wait, so many are told together what came of their hashes. What each of them does then, at the
// database for the most part, interrupts the hashing and finds its memory in no cache; one after the other, all but the
// first find it warm. Nobody waits for it before there have been so many for longer than a group takes …
const TOGETHER: usize = 16;

// … and not where it would take longer than this, since a hash is dear. What the others' will take is not known: where
// all threads are at dearer ones than usual, it may be as long as one of them. Those whose passwords were judged wait for
// no hash, and not for long: they are told together as far as they were judged one right after the other.
const MOST_HELD: Duration = Duration::from_millis(200);
const JUDGED_HELD: Duration = Duration::from_millis(20);

// After a job, also with others waiting. A thread that never leaves its processor is not well looked after by every
// kernel: on Linux 6.18 those of the kernel's own threads that belong to that processor, and write for the database,
// waited for seconds. It costs some 60 µs, of which 50 are the system's slack: after each hash, but not after each judging
// of a password. With the least slack it was 10 µs, and in a minute of storm some waited for 1.4 and 2.5 s instead of 1.
const BREATH: Duration = Duration::from_nanos(1);
const BREATHLESS: Duration = Duration::from_millis(2);

// What a hash left is overwritten by the next one, or wiped when nobody waits; after so long in any case, while there are
// only passwords to judge.
const MOST_REMAINING: Duration = Duration::from_secs(1);

// Several are told by a thread that is not niced: whoever is told comes before a hashing thread, and would keep it from
// telling the next one until they have written what they have to, each in a commit of their own.
const TELLER_STACK: usize = 128 << 10;

/// Whether several are being told of their hashes right now. The first of them reads or writes at once what the others will
/// have to read or write in a moment: it had better wait for them, and do it together. There is one for either, since most
/// read before they write. Clones are the same.
#[derive(Clone, Default)]
pub struct Telling(Arc<TellingState>);

#[derive(Default)]
struct TellingState {
    now: Mutex<Now>,
    ended: Condvar,
    notify: Notify,
}

#[derive(Default)]
struct Now {
    is_under_way: bool,
    // How often it has ended; whoever waits does so for one end, however soon it begins again.
    ends: u64,
}

// Until those who were told have come, on processors that are busy, or the next group is to be told.
const TO_COME: Duration = Duration::from_micros(400);

// Until they have read what they have to beforehand, and have made what they will write; or the next group is to be told.
const TO_WRITE: Duration = Duration::from_millis(1);

impl Telling {
    /// Whether it is so.
    pub fn is_under_way(&self) -> bool {
        self.lock().is_under_way
    }

    /// Waits for the end, if several are being told now: some 500 µs, or 1.5 ms until they write.
    pub fn wait(&self) {
        let now = self.lock();
        let seen = now.ends;
        let ended = self.0.ended.wait_while(now, |now| now.is_under_way && now.ends == seen);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }

    /// [`Self::wait`], without a thread.
    pub async fn ended(&self) {
        // Made before it is looked for: an end in between is not missed.
        let ended = self.0.notify.notified();
        if self.is_under_way() {
            ended.await;
        }
    }

    /// It is so while `tell` runs, whatever becomes of it.
    pub fn during(&self, tell: impl FnOnce()) {
        self.lock().is_under_way = true;
        let _ending = Ending(self);
        tell();
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Ending<'a>(&'a Telling);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut now = self.0.lock();
        (now.is_under_way, now.ends) = (false, now.ends + 1);
        drop(now);
        self.0.0.ended.notify_all();
        self.0.0.notify.notify_waiters();
    }
}

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
    telling: Telling,
    telling_and_writing: Telling,
}

struct State {
    waiting: VecDeque<Waiting>,
    // For how long there have been enough to be told together.
    crowded_since: Option<Instant>,
    idle: usize,
    hashes: Line,
    judgings: Line,
    is_closed: bool,
}

struct Waiting {
    since: Instant,
    work: Work,
    job: Job,
}

// What there is of jobs of one kind.
struct Line {
    waiting: u32,
    // Of those whose jobs are done.
    untold: Vec<Tell>,
    // When the first of them was put there.
    untold_since: Instant,
    // What a job took of late.
    usual: Duration,
}

impl Line {
    fn new() -> Self {
        Self { waiting: 0, untold: Vec::new(), untold_since: Instant::now(), usual: Duration::ZERO }
    }

    fn note(&mut self, took: Duration, tell: Tell) {
        self.usual = if self.usual.is_zero() { took } else { (self.usual * 7 + took) / 8 };
        if self.untold.is_empty() {
            self.untold_since = Instant::now();
        }
        self.untold.push(tell);
    }
}

impl State {
    const fn line(&mut self, work: Work) -> &mut Line {
        match work {
            Work::Hash => &mut self.hashes,
            Work::Judging => &mut self.judgings,
        }
    }

    fn push(&mut self, work: Work, job: Job) {
        let since = Instant::now();
        self.line(work).waiting += 1;
        self.waiting.push_back(Waiting { since, work, job });
        if self.waiting.len() >= TOGETHER {
            self.crowded_since.get_or_insert(since);
        }
    }

    fn pop(&mut self) -> Option<Waiting> {
        let next = self.waiting.pop_front()?;
        self.line(next.work).waiting -= 1;
        if self.waiting.len() < TOGETHER {
            self.crowded_since = None;
        }
        Some(next)
    }

    // What those who wait will take of one thread, and one more, as far as can be told. A good password is hashed once it
    // was judged, behind those who are here by now: who would be turned away then had better be so at once.
    fn work_with(&self, work: Work) -> Duration {
        let (hashes, judgings) = (&self.hashes, &self.judgings);
        let (hashed, judged) = match work {
            Work::Hash => (hashes.waiting + 1, judgings.waiting),
            Work::Judging => (hashes.waiting + judgings.waiting + 1, judgings.waiting + 1),
        };
        hashes.usual.saturating_mul(hashed).saturating_add(judgings.usual.saturating_mul(judged))
    }

    fn all_untold(&mut self) -> Vec<Tell> {
        let mut all = mem::take(&mut self.judgings.untold);
        all.append(&mut self.hashes.untold);
        all
    }
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
                crowded_since: None,
                idle: 0,
                hashes: Line::new(),
                judgings: Line::new(),
                is_closed: false,
            }),
            wake: Condvar::new(),
            slots: u32::try_from(slots).unwrap_or(u32::MAX).max(1),
            kernel: passwords.kernel,
            places: passwords.queue,
            patience: passwords.queue_timeout,
            telling: Telling::default(),
            telling_and_writing: Telling::default(),
        });
        let pool = Self(Arc::new(Closing(Arc::clone(&shared))));
        let (teller, groups) = mpsc::channel::<Vec<Tell>>();
        let its = Arc::clone(&shared);
        thread::Builder::new().name("tell-hashes".into()).stack_size(TELLER_STACK).spawn(move || {
            // Until the hashing threads end; what they share is not gone before this one.
            let mut next = None;
            while let Some(group) = next.take().or_else(|| groups.recv().ok()) {
                its.telling_and_writing.during(|| {
                    its.telling.during(|| {
                        tell(group);
                        next = groups.recv_timeout(TO_COME).ok();
                    });
                    next = next.take().or_else(|| groups.recv_timeout(TO_WRITE).ok());
                });
            }
        })?;
        for n in 0..slots {
            let (shared, teller) = (Arc::clone(&shared), teller.clone());
            thread::Builder::new().name(format!("hash-{n}")).stack_size(1 << 20).spawn(move || shared.work(&teller))?;
        }
        Ok(pool)
    }

    /// Whether several are being told of their hashes: until they have come to read what they have to.
    pub fn telling(&self) -> &Telling {
        &self.0.0.telling
    }

    /// The same, until they have come to write as well.
    pub fn telling_and_writing(&self) -> &Telling {
        &self.0.0.telling_and_writing
    }

    /// Puts a job of this kind into the queue.
    ///
    /// # Errors
    /// [`Overloaded`]: it would wait longer than `passwords.queue_timeout`, or there is no place.
    pub fn submit(&self, work: Work, job: Job) -> Result<(), Overloaded> {
        let shared = &self.0.0;
        let mut state = shared.lock();
        if !shared.has_room(&state, work) {
            return Err(Overloaded);
        }
        state.push(work, job);
        // A thread that has work to do looks for more afterwards; to wake nobody is a call of the system all the same.
        let is_waited_for = state.idle > 0;
        drop(state);
        if is_waited_for {
            shared.wake.notify_one();
        }
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
    fn has_room(&self, state: &State, work: Work) -> bool {
        let before = state.waiting.len();
        let is_free = state.idle > before;
        is_free || (before < self.places && state.work_with(work) / self.slots <= self.patience)
    }

    fn work(&self, teller: &mpsc::Sender<Vec<Tell>>) {
        // Not granted everywhere; it is a courtesy.
        let _ = rustix::process::nice(NICENESS);
        let mut arena = Arena::new(self.kernel);
        let (mut breathed, mut hashed) = (Instant::now(), Instant::now());
        loop {
            let mut state = self.lock();
            state.idle += 1;
            let next = loop {
                match state.pop() {
                    // The machine is slower than it was: dropping it tells whoever waits.
                    Some(one) if one.since.elapsed() > self.patience => (),
                    Some(one) => break Some(one),
                    None => {
                        // All that waited have given up.
                        let told = state.all_untold();
                        if !told.is_empty() {
                            drop(state);
                            hand_over(told, teller);
                            state = self.lock();
                        } else if state.is_closed {
                            break None;
                        } else if arena.is_used() {
                            // Where others wait, their hashes overwrite what this one left.
                            drop(state);
                            arena.wipe();
                            state = self.lock();
                        } else {
                            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                        }
                    }
                }
            };
            state.idle -= 1;
            // Nobody whose password was judged waits for a hash.
            let is_dear = next.as_ref().is_some_and(|next| next.work == Work::Hash);
            let due = if is_dear { mem::take(&mut state.judgings.untold) } else { Vec::new() };
            drop(state);
            let Some(Waiting { work, job, .. }) = next else { return };
            hand_over(due, teller);
            let began = Instant::now();
            match work {
                Work::Hash => hashed = began,
                Work::Judging if began.saturating_duration_since(hashed) >= MOST_REMAINING => arena.wipe(),
                Work::Judging => (),
            }
            // A panic is told by the hook; it must not cost a thread.
            let done = catch_unwind(AssertUnwindSafe(|| job(&mut arena)));
            if done.is_err() {
                arena = Arena::new(self.kernel);
            }
            let took = began.elapsed();
            let mut state = self.lock();
            if let Ok(Some(tell)) = done {
                state.line(work).note(took, tell);
            }
            let now = Instant::now();
            let mut due = Vec::new();
            if !may_hold_judged(&state, now) {
                due.append(&mut state.judgings.untold);
            }
            if !self.may_hold_hashed(&state, now) {
                due.append(&mut state.hashes.untold);
            }
            drop(state);
            hand_over(due, teller);
            if breathed.elapsed() >= BREATHLESS {
                breathe();
                breathed = Instant::now();
            }
        }
    }

    // Whether those whose hashes are done are to be told later, with others.
    fn may_hold_hashed(&self, state: &State, now: Instant) -> bool {
        let hashes = &state.hashes;
        let since = |then: Instant| now.saturating_duration_since(then);
        let group = u32::try_from(TOGETHER).unwrap_or(u32::MAX);
        let longest = (hashes.usual.saturating_mul(group) / self.slots).min(MOST_HELD);
        // Whatever is next.
        let next = hashes.usual.max(state.judgings.usual);
        hashes.untold.len() < TOGETHER
            && state.crowded_since.is_some_and(|then| since(then) >= longest)
            && since(hashes.untold_since) + next <= MOST_HELD
    }
}

// Whether those whose passwords were judged are to be told later, with others: those right behind them.
fn may_hold_judged(state: &State, now: Instant) -> bool {
    let judgings = &state.judgings;
    judgings.untold.len() < TOGETHER
        && state.waiting.front().is_some_and(|next| next.work == Work::Judging)
        && now.saturating_duration_since(judgings.untold_since) + judgings.usual <= JUDGED_HELD
}

// A single one is told right here.
fn hand_over(all: Vec<Tell>, teller: &mpsc::Sender<Vec<Tell>>) {
    match all.len() {
        0 | 1 => tell(all),
        _ => teller.send(all).unwrap_or_else(|returned| tell(returned.0)),
    }
}

fn tell(all: Vec<Tell>) {
    // As with a job: it must not cost a thread, nor the others their answers.
    let tell = |tell: Tell| catch_unwind(AssertUnwindSafe(tell)).ok().flatten();
    let last: Vec<Last> = all.into_iter().filter_map(tell).collect();
    for last in last {
        let _ = catch_unwind(AssertUnwindSafe(last));
    }
}

#[expect(clippy::disallowed_methods, reason = "no request waits: what was asked for is answered")]
fn breathe() {
    thread::sleep(BREATH);
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            atomic::{AtomicUsize, Ordering::SeqCst},
            mpsc::{Receiver, Sender, channel},
        },
        task::{Context, Waker},
    };

    use super::*;
    use crate::services::passwords::{HashParams, Password};

    fn pool(slots: usize, overrides: &[&str]) -> HashPool {
        HashPool::start(&Settings::from_overrides(overrides).unwrap(), slots).unwrap()
    }

    // A job that waits to be let go, and what to let it go with; it tells when it has begun.
    fn held() -> (Job, Sender<()>, Receiver<()>) {
        let (go, gone) = channel::<()>();
        let (begin, begun) = channel();
        let job = move |_: &mut Arena| -> Option<Tell> {
            let _ = begin.send(());
            let _ = gone.recv();
            Some(Box::new(|| None))
        };
        (Box::new(job), go, begun)
    }

    fn answered() -> (Job, Receiver<()>) {
        let (done, answer) = channel();
        let job = move |_: &mut Arena| -> Option<Tell> { Some(Box::new(move || done.send(()).err().and(None))) };
        (Box::new(job), answer)
    }

    fn hold_all(pool: &HashPool, slots: usize) -> Vec<Sender<()>> {
        // On a busy machine a thread may come too late for its first job.
        let hold = || {
            let (job, go, begun) = held();
            pool.submit(Work::Hash, job).unwrap();
            begun.recv().ok().map(|()| go)
        };
        (0..slots).map(|_| std::iter::repeat_with(hold).flatten().next().unwrap()).collect()
    }

    #[test]
    fn as_many_run_at_once_as_there_are_slots_and_as_many_wait_as_there_are_places() {
        let pool = pool(2, &["passwords.queue=1"]);
        let held = hold_all(&pool, 2);
        let (one, answer) = answered();
        pool.submit(Work::Hash, one).unwrap();
        assert!(pool.submit(Work::Hash, answered().0).is_err());
        drop(held);
        answer.recv().unwrap();
    }

    #[test]
    fn who_would_wait_too_long_is_turned_away_at_once() {
        let pool = pool(1, &["passwords.queue=1000", "passwords.queue_timeout=1s"]);
        pool.0.0.lock().hashes.usual = Duration::from_millis(300);
        let held = hold_all(&pool, 1);
        let waiting: Vec<_> = std::iter::from_fn(|| {
            let (job, answer) = answered();
            pool.submit(Work::Hash, job).is_ok().then_some(answer)
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
        pool.submit(Work::Hash, job).unwrap();
        assert!(answer.recv_timeout(Duration::from_millis(100)).is_err());
        drop(held);
        assert_eq!(answer.recv(), Err(std::sync::mpsc::RecvError), "dropped, which tells whoever waits");
        let again = || {
            // What was held for so long made the usual time long.
            pool.0.0.lock().hashes.usual = Duration::ZERO;
            let (job, answer) = answered();
            pool.submit(Work::Hash, job).is_ok() && answer.recv().is_ok()
        };
        assert!(std::iter::repeat_with(again).take(100).any(|is_done| is_done));
    }

    // Zero would be as good as not known: then the next job counts for all of it.
    const CHEAP: Duration = Duration::from_nanos(1);

    // What becomes of jobs that wait behind one, of which each leaves its number when it is done and when it is told; the
    // usual hash takes `usual`.
    fn course(jobs: &[Work], usual: Duration) -> Vec<(&'static str, usize)> {
        let pool = pool(1, &["passwords.queue_timeout=10s"]);
        let held = hold_all(&pool, 1);
        let (note, noted) = channel();
        for (nth, work) in jobs.iter().enumerate() {
            let (note, told) = (note.clone(), note.clone());
            let job = move |_: &mut Arena| -> Option<Tell> {
                note.send(("done", nth)).unwrap();
                Some(Box::new(move || {
                    told.send(("told", nth)).unwrap();
                    None
                }))
            };
            pool.submit(*work, Box::new(job)).unwrap();
        }
        drop(note);
        // Nobody ends a job meanwhile, which would count.
        pool.0.0.lock().hashes.usual = usual;
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
        let courses = || std::iter::repeat_with(|| course(&[Work::Hash; TOGETHER * 3], CHEAP)).take(20);
        let course = courses().find(|course| held(course) >= TOGETHER).expect("a group");
        let told = |nth: usize| course.iter().position(|one| *one == ("told", nth)).unwrap();
        let done = |nth: usize| course.iter().position(|one| *one == ("done", nth)).unwrap();
        assert_eq!(course.len(), TOGETHER * 6);
        assert!((0..TOGETHER * 3).all(|nth| told(nth) > done(nth)));
    }

    #[test]
    fn what_is_left_when_one_was_told_comes_when_all_were() {
        let (note, noted) = channel();
        let told = |nth: usize| -> Tell {
            let (note, last) = (note.clone(), note.clone());
            Box::new(move || {
                note.send(("told", nth)).unwrap();
                assert_ne!(nth, 1, "on purpose");
                Some(Box::new(move || last.send(("last", nth)).unwrap()))
            })
        };
        tell((0..3).map(told).collect());
        let came: Vec<_> = noted.try_iter().collect();
        assert_eq!(came, [("told", 0), ("told", 1), ("told", 2), ("last", 0), ("last", 2)]);
    }

    #[test]
    fn it_is_known_while_several_are_told_and_not_while_one_is() {
        // A hash that waits behind so many who are judged one after the other.
        let known = |judgings: usize| {
            let pool = pool(1, &["passwords.queue_timeout=10s"]);
            let held = hold_all(&pool, 1);
            let (note, noted) = channel();
            for _ in 0..judgings {
                let (note, telling, writing) =
                    (note.clone(), pool.telling().clone(), pool.telling_and_writing().clone());
                let tell = move || {
                    note.send(telling.is_under_way() && writing.is_under_way()).unwrap();
                    None
                };
                pool.submit(Work::Judging, Box::new(move |_: &mut Arena| -> Option<Tell> { Some(Box::new(tell)) }))
                    .unwrap();
            }
            let (last, answer) = answered();
            pool.submit(Work::Hash, last).unwrap();
            drop((note, held));
            let known: Vec<_> = noted.iter().collect();
            answer.recv().unwrap();
            pool.telling().wait();
            let is_written = !pool.telling_and_writing().is_under_way();
            pool.telling_and_writing().wait();
            (known.len() == judgings).then_some((known, is_written))
        };
        assert_eq!(known(1).unwrap(), (vec![false], true));
        // On a busy machine one of them may be told by itself.
        let grouped = || {
            let (known, is_written) = known(3).unwrap();
            known == [true; 3] && !is_written
        };
        assert!(std::iter::repeat_with(grouped).take(20).any(|is_so| is_so));
    }

    #[test]
    fn whoever_waits_for_others_to_be_told_goes_on_after_a_panic_too() {
        let telling = Telling::default();
        telling.wait();
        let (waiting, ready) = channel();
        let other = telling.clone();
        let during = thread::spawn(move || {
            other.during(|| {
                ready.recv().unwrap();
                panic!("on purpose");
            });
        });
        while !telling.is_under_way() {
            thread::yield_now();
        }
        let mut ended = pin!(telling.ended());
        let mut context = Context::from_waker(Waker::noop());
        assert!(ended.as_mut().poll(&mut context).is_pending());
        waiting.send(()).unwrap();
        telling.wait();
        assert!(during.join().is_err() && !telling.is_under_way());
        assert!(ended.as_mut().poll(&mut context).is_ready());
        assert!(pin!(telling.ended()).poll(&mut context).is_ready());
    }

    // A job that makes a hash, or does not, and tells whether anything was left by the one before it.
    fn looking(is_hash: bool) -> (Job, Receiver<bool>) {
        let (note, noted) = channel();
        let job = move |arena: &mut Arena| -> Option<Tell> {
            let was_used = arena.is_used();
            if is_hash {
                let params = HashParams { memory_kib: 64, iterations: 1, parallelism: 1 };
                params.hash(&Password::new("violet-Kettle-93"), [1; 16], arena)?;
            }
            Some(Box::new(move || note.send(was_used).err().and(None)))
        };
        (Box::new(job), noted)
    }

    #[test]
    fn a_thread_that_has_nothing_to_do_wipes_what_its_last_hash_left() {
        let pool = pool(1, &["passwords.queue_timeout=10s"]);
        let was_used = |is_hash| {
            let (job, noted) = looking(is_hash);
            pool.submit(Work::Hash, job).unwrap();
            noted.recv_timeout(Duration::from_secs(10)).unwrap()
        };
        assert!(!was_used(true));
        // Whoever comes at once may be before it.
        assert!(std::iter::repeat_with(|| was_used(false)).take(10_000).any(|was_used| !was_used));
    }

    #[test]
    fn what_a_hash_left_is_wiped_although_there_are_passwords_to_judge_all_the_time() {
        let pool = pool(1, &["passwords.queue_timeout=10s"]);
        let all_held = hold_all(&pool, 1);
        let ((hash, hashed), (judging, judged)) = (looking(true), looking(false));
        let (last, looked) = looking(false);
        pool.submit(Work::Hash, hash).unwrap();
        pool.submit(Work::Judging, judging).unwrap();
        let (long, go, begun) = held();
        pool.submit(Work::Judging, long).unwrap();
        pool.submit(Work::Judging, last).unwrap();
        drop(all_held);
        begun.recv().unwrap();
        assert!(!hashed.recv().unwrap());
        let (_never, nothing) = channel::<()>();
        assert!(nothing.recv_timeout(MOST_REMAINING).is_err());
        drop(go);
        // On a busy machine there may be a second between the two.
        let _ = judged.recv().unwrap();
        assert!(!looked.recv().unwrap());
    }

    #[test]
    fn nobody_is_held_where_few_wait_or_a_job_is_dear() {
        let at_once = |course: Vec<(&str, usize)>| {
            let numbers = (0..course.len() / 2).flat_map(|nth| [("done", nth), ("told", nth)]);
            course == numbers.collect::<Vec<_>>()
        };
        assert!(at_once(course(&[Work::Hash; TOGETHER - 1], CHEAP)));
        // It stays dear for longer than there are jobs.
        assert!(at_once(course(&[Work::Hash; TOGETHER * 3], Duration::from_secs(3600))));
    }

    // Whether so many who are judged one after the other are told after the last of them, and while `next` is still at work.
    fn are_told_together(judgings: usize, next: Work) -> bool {
        let pool = pool(1, &["passwords.queue_timeout=10s"]);
        let held = hold_all(&pool, 1);
        let told = Arc::<AtomicUsize>::default();
        let (note, noted) = channel();
        for _ in 0..judgings {
            let (note, told) = (note.clone(), Arc::clone(&told));
            let job = move |_: &mut Arena| -> Option<Tell> {
                note.send(told.load(SeqCst) == 0).unwrap();
                Some(Box::new(move || {
                    told.fetch_add(1, SeqCst);
                    None
                }))
            };
            pool.submit(Work::Judging, Box::new(job)).unwrap();
        }
        let job = move |_: &mut Arena| -> Option<Tell> {
            let deadline = Instant::now() + Duration::from_secs(10);
            while told.load(SeqCst) < judgings && Instant::now() < deadline {
                thread::yield_now();
            }
            note.send(told.load(SeqCst) == judgings).unwrap();
            Some(Box::new(|| None))
        };
        pool.submit(next, Box::new(job)).unwrap();
        drop(held);
        let noted: Vec<_> = noted.iter().collect();
        assert_eq!(noted.len(), judgings + 1);
        noted.into_iter().all(|is_so| is_so)
    }

    #[test]
    fn those_judged_one_right_after_the_other_are_told_together_and_wait_for_no_hash() {
        assert!(are_told_together(1, Work::Hash));
        assert!(are_told_together(3, Work::Hash));
        assert!(are_told_together(TOGETHER, Work::Judging));
    }

    #[test]
    fn a_hash_is_held_only_in_a_crowd_that_lasts_and_never_for_long() {
        let pool = pool(2, &[]);
        let shared = &pool.0.0;
        let now = Instant::now() + Duration::from_secs(60);
        let ago = |milliseconds| now - Duration::from_millis(milliseconds);
        let may_hold = |usual, crowded, held, untold: usize| {
            let mut state = shared.lock();
            state.crowded_since = Some(ago(crowded));
            let tells = std::iter::repeat_with(|| -> Tell { Box::new(|| None) }).take(untold).collect();
            state.hashes =
                Line { waiting: 16, untold: tells, untold_since: ago(held), usual: Duration::from_millis(usual) };
            let may = shared.may_hold_hashed(&state, now);
            state.hashes.untold.clear();
            may
        };
        // A group takes eight of each thread's.
        assert!(!may_hold(10, 79, 0, 1));
        assert!(may_hold(10, 80, 0, 1));
        assert!(may_hold(10, 80, 100, TOGETHER - 1) && !may_hold(10, 80, 100, TOGETHER));
        assert!(may_hold(10, 80, 190, 1) && !may_hold(10, 80, 191, 1));
        // Where it would take longer, it is as large as there is time for.
        assert!(!may_hold(40, 199, 0, 1));
        assert!(may_hold(40, 200, 160, 1) && !may_hold(40, 200, 161, 1));
        assert!(!may_hold(201, 10_000, 0, 1));
        shared.lock().crowded_since = None;
        assert!(!shared.may_hold_hashed(&shared.lock(), now));
    }

    #[test]
    fn a_hash_is_held_no_longer_for_judgings_and_a_judging_for_no_hash_and_not_for_long() {
        let pool = pool(1, &[]);
        let now = Instant::now() + Duration::from_secs(60);
        let ago = |milliseconds| now - Duration::from_millis(milliseconds);
        let mut state = pool.0.0.lock();
        let tell = || -> Tell { Box::new(|| None) };
        let line = |usual, held| Line {
            waiting: 0,
            untold: vec![tell()],
            untold_since: ago(held),
            usual: Duration::from_millis(usual),
        };
        state.crowded_since = Some(ago(10_000));
        (state.hashes, state.judgings) = (line(10, 150), line(50, 0));
        assert!(pool.0.0.may_hold_hashed(&state, now));
        state.judgings = line(51, 0);
        assert!(!pool.0.0.may_hold_hashed(&state, now));
        // So that no thread takes it.
        let mut may_hold = |work, usual, held| {
            state.judgings = line(usual, held);
            state.waiting = VecDeque::from([Waiting { since: now, work, job: Box::new(|_| None) }]);
            let may = may_hold_judged(&state, now);
            state.waiting.clear();
            may
        };
        assert!(may_hold(Work::Judging, 1, 19) && !may_hold(Work::Judging, 1, 20));
        assert!(!may_hold(Work::Judging, 21, 0) && !may_hold(Work::Hash, 1, 0));
    }

    #[test]
    fn a_judging_counts_for_itself_and_the_hash_that_follows() {
        let pool = pool(1, &["passwords.queue=1000", "passwords.queue_timeout=1s"]);
        {
            let mut state = pool.0.0.lock();
            state.hashes.usual = Duration::from_millis(300);
            state.judgings.usual = Duration::from_millis(20);
        }
        let held = hold_all(&pool, 1);
        let submits = |work| pool.submit(work, answered().0).is_ok();
        assert!(submits(Work::Hash) && submits(Work::Judging));
        // 300, 320 and as much again are 940 milliseconds: no other judging has room.
        assert!(submits(Work::Judging) && !submits(Work::Judging));
        // The hashes that follow come behind this one, which is the second.
        assert!(submits(Work::Hash) && submits(Work::Hash) && !submits(Work::Hash));
        drop(held);
    }

    #[test]
    fn who_has_gone_away_says_nothing_of_what_a_hash_takes() {
        let pool = pool(1, &[]);
        let usual = Duration::from_secs(1);
        let held = hold_all(&pool, 1);
        (0..20).for_each(|_| pool.submit(Work::Hash, Box::new(|_| None)).unwrap());
        let (last, answer) = answered();
        pool.submit(Work::Judging, last).unwrap();
        pool.0.0.lock().hashes.usual = usual;
        drop(held);
        answer.recv().unwrap();
        assert!(pool.0.0.lock().hashes.usual >= usual * 7 / 8, "but for the one that was held");
    }

    #[test]
    fn a_panic_costs_no_thread_and_the_threads_end_with_the_pool() {
        let pool = pool(1, &[]);
        pool.submit(Work::Hash, Box::new(|_| -> Option<Tell> { panic!("on purpose") })).unwrap();
        let (job, answer) = answered();
        pool.submit(Work::Hash, job).unwrap();
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
