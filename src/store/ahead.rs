//! Requests that Redis has counted before they came, for those who ask so often that it would be asked of nothing else.
//! They count from when they are taken, in the window in which they may be used, so no limit is exceeded by them,
//! however many hold some: v1, and each worker of v2. What is not used by the end of the window, or of the process, or
//! the answer to which is lost, was counted in vain. At a time that is no more than an 80th of what was left (a quarter
//! more may be held from before), and than twice what comes within 20 ms. Where an 80th is less than 16, and so with
//! limits of up to a thousand, nothing is counted ahead (`redis/admit.lua`).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::services::limits::{Decision, Left, Rule};

// For how long ahead requests are counted, if they go on as they came.
const SPAN: Duration = Duration::from_millis(20);
// What came within less is a burst, and no rate.
const MOMENT: Duration = Duration::from_millis(10);
// For fewer it is not worth it; the script has the same number.
const LEAST: u32 = 16;
// Whose count began so long ago is as good as new.
const FORGOTTEN: Duration = Duration::from_secs(1);
// One in so many.
const FEW: u32 = 4;
const MOST_KEYS: usize = 10_000;

/// What was counted ahead, of requests under a single rule; and how often they come.
#[derive(Debug, Default)]
pub struct Ahead {
    keys: Mutex<HashMap<Rule, Known>>,
}

#[derive(Debug)]
struct Known {
    // Requests that came since then.
    came: u32,
    since: Instant,
    // Those that are held, and what is left when few of them are.
    held: u32,
    few: u32,
    // Somebody has found that they are few, and asks for more.
    is_asking: bool,
    // When the window ends in which they were counted, and what is left of it beside them.
    ends: Instant,
    remaining: u32,
}

impl Ahead {
    /// Takes one that was counted. When few are left, one request goes without, and asks for more before they are gone:
    /// whoever came meanwhile would wait for the answer.
    pub fn take(&self, rules: &[Rule], now: Instant) -> Option<Decision> {
        let [rule] = rules else { return None };
        let mut keys = self.lock();
        let known = keys.get_mut(rule).filter(|known| known.ends > now)?;
        if known.held <= known.few && !known.is_asking {
            known.is_asking = true;
            return None;
        }
        known.held = known.held.checked_sub(1)?;
        known.came = known.came.saturating_add(1);
        let remaining = known.remaining.saturating_add(known.held);
        Some(Decision::Admitted(vec![Left { remaining, reset: known.ends - now }]))
    }

    /// How many are to be counted ahead, beside so many that are asked for now.
    pub fn wanted(&self, rules: &[Rule], count: u32, now: Instant) -> u32 {
        let [rule] = rules else { return 0 };
        let mut keys = self.lock();
        if let Some(known) = keys.get_mut(rule).filter(|known| now - known.since < FORGOTTEN) {
            known.came = known.came.saturating_add(count);
            let passed = (now - known.since).max(MOMENT);
            let wanted = u128::from(known.came) * SPAN.as_micros() / passed.as_micros();
            let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
            if passed >= SPAN {
                (known.came, known.since) = (0, now);
            }
            // As long as many are held, these do.
            let are_few = known.held <= known.few || known.ends <= now;
            return if are_few && wanted >= LEAST { wanted } else { 0 };
        }
        if keys.len() >= MOST_KEYS {
            // Those that hold something are the last to go: it would have been counted in vain.
            keys.retain(|_, known| known.held > 0 && known.ends > now);
            if keys.len() >= MOST_KEYS {
                keys.clear();
            }
        }
        let new = Known { came: 0, since: now, held: 0, few: 0, is_asking: false, ends: now, remaining: 0 };
        let known = keys.entry(rule.clone()).or_insert(new);
        (known.came, known.since) = (count, now);
        0
    }

    /// Keeps what Redis, asked at `asked_at`, has counted ahead; `left` is what it leaves beside all that are held.
    /// Returns how many these are.
    pub fn keep(&self, rule: &Rule, counted: u32, left: Left, asked_at: Instant, now: Instant) -> u32 {
        let mut keys = self.lock();
        let Some(known) = keys.get_mut(rule) else { return 0 };
        // Redis' window ends no sooner: as long as this is not over, its answer is of the same one.
        if known.ends <= now {
            known.held = 0;
        }
        known.held = known.held.saturating_add(counted);
        if counted > 0 {
            (known.few, known.is_asking) = (counted / FEW, false);
        }
        (known.ends, known.remaining) = (asked_at + left.reset, left.remaining);
        known.held
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Rule, Known>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::limits::Rate;

    const PER: Duration = Duration::from_secs(60);

    fn rules(key: &str) -> [Rule; 1] {
        [Rule { key: key.to_owned(), rate: Rate { count: 100_000, per: PER } }]
    }

    fn left(remaining: u32, reset: Duration) -> Left {
        Left { remaining, reset }
    }

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn for_whoever_asks_often_as_much_is_wanted_as_comes_in_a_span() {
        let (ahead, rules, began) = (Ahead::default(), rules("often"), Instant::now());
        assert_eq!(ahead.wanted(&rules, 1, began), 0, "the first is no rate yet");
        assert_eq!(ahead.wanted(&rules, 99, began + millis(1)), 200, "100 within a moment");
        assert_eq!(ahead.wanted(&rules, 300, began + SPAN), 400, "400 within a span");
        assert_eq!(ahead.wanted(&rules, 50, began + SPAN * 2), 50, "those before are not counted again");
        assert_eq!(ahead.wanted(&rules, 50, began + SPAN * 2 + FORGOTTEN), 0, "long afterwards it is a new beginning");
    }

    #[test]
    fn for_whoever_asks_seldom_nothing_is_wanted() {
        let (ahead, began) = (Ahead::default(), Instant::now());
        for nth in 0..100 {
            assert_eq!(ahead.wanted(&rules("seldom"), 1, began + millis(25) * nth), 0);
        }
        let two = [rules("one"), rules("other")].concat();
        for _ in 0..100 {
            assert_eq!(ahead.wanted(&two, 100, began), 0, "under several rules nothing is counted ahead");
        }
        assert_eq!(ahead.take(&two, began), None);
        assert_eq!(ahead.take(&[], began), None);
    }

    #[test]
    fn what_was_counted_is_taken_once_and_tells_what_remains() {
        let (ahead, rules, now) = (Ahead::default(), rules("key"), Instant::now());
        assert_eq!(ahead.take(&rules, now), None);
        ahead.wanted(&rules, 1, now);
        assert_eq!(ahead.keep(&rules[0], 3, left(500, millis(9000)), now, now), 3);
        for remaining in [502, 501, 500] {
            let expected = Decision::Admitted(vec![left(remaining, millis(8900))]);
            assert_eq!(ahead.take(&rules, now + millis(100)), Some(expected));
        }
        assert_eq!(ahead.take(&rules, now + millis(100)), None);
        // Those that were taken belong to the rate as well.
        assert_eq!(ahead.wanted(&rules, 12, now + SPAN), 16);
    }

    #[test]
    fn what_was_counted_is_for_its_window_alone() {
        let (ahead, rules, now) = (Ahead::default(), rules("key"), Instant::now());
        ahead.wanted(&rules, 1, now);
        ahead.keep(&rules[0], 3, left(500, millis(10)), now, now);
        assert_eq!(ahead.take(&rules, now + millis(10)), None, "the window has ended");
        // Asked just before that, and answered in the next window.
        assert_eq!(ahead.keep(&rules[0], 2, left(600, PER), now + millis(9), now + millis(11)), 2);
        let taken = || (0..9).filter(|_| ahead.take(&rules, now + millis(20)).is_some()).count();
        assert_eq!(taken(), 2);
        // In the same window both are good.
        ahead.keep(&rules[0], 2, left(500, PER - millis(20)), now + millis(30), now + millis(31));
        assert_eq!(ahead.keep(&rules[0], 2, left(400, PER - millis(30)), now + millis(40), now + millis(41)), 4);
        assert_eq!(taken(), 4);
        assert_eq!(ahead.keep(&self::rules("unknown")[0], 2, left(400, PER), now, now), 0);
    }

    #[test]
    fn when_few_are_left_one_asks_for_more() {
        let (ahead, rules, now) = (Ahead::default(), rules("key"), Instant::now());
        ahead.wanted(&rules, 100, now);
        ahead.keep(&rules[0], 16, left(500, PER), now, now);
        let taken = || std::iter::from_fn(|| ahead.take(&rules, now)).count();
        assert_eq!(taken(), 12);
        assert_eq!(ahead.wanted(&rules, 1, now), 226, "for whoever found so few");
        assert_eq!(taken(), 4, "the others go on");
        assert_eq!(ahead.keep(&rules[0], 20, left(400, PER), now, now), 20);
        assert_eq!((taken(), taken()), (15, 5));
    }

    #[test]
    fn as_long_as_many_are_held_no_more_are_wanted() {
        let (ahead, rules, now) = (Ahead::default(), rules("key"), Instant::now());
        ahead.wanted(&rules, 100, now);
        ahead.keep(&rules[0], 1, left(500, millis(15)), now, now);
        assert_eq!(ahead.wanted(&rules, 100, now + millis(10)), 0);
        assert_eq!(ahead.wanted(&rules, 200, now + SPAN), 400, "what was held is of the window before");
    }

    #[test]
    fn a_flood_of_keys_takes_no_memory_without_end() {
        let (ahead, now) = (Ahead::default(), Instant::now());
        for key in 0..MOST_KEYS * 3 {
            ahead.wanted(&rules(&key.to_string()), 1, now);
            assert!(ahead.lock().len() <= MOST_KEYS);
        }
        // Nobody's flood takes away what somebody holds.
        let often = rules("often");
        ahead.wanted(&often, 1, now);
        ahead.keep(&often[0], 16, left(500, PER), now, now);
        for key in 0..MOST_KEYS * 3 {
            ahead.wanted(&rules(&format!("again {key}")), 1, now);
            assert!(ahead.lock().len() <= MOST_KEYS);
        }
        assert!(ahead.take(&often, now).is_some());
        // Unless there are too many that do.
        for key in 0..MOST_KEYS * 3 {
            let holder = rules(&format!("holder {key}"));
            ahead.wanted(&holder, 1, now);
            ahead.keep(&holder[0], 16, left(500, PER), now, now);
            assert!(ahead.lock().len() <= MOST_KEYS);
        }
    }
}
