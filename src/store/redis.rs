//! Redis commands as values, which two drivers run: each is one round trip.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use redis::{Cmd, ErrorKind, RedisResult, Script, ScriptInvocation};

use super::ahead::Ahead;
use crate::services::{
    limits::{Decision, Left, Rule},
    ports::{Claim, Entry},
};

// Keys: where the right is noted, the two counters, then where to store in any case, with the right, and without it.
static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local is_free = ARGV[1] == '0' or redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1])
         local counter = is_free and KEYS[2] or KEYS[3]
         local count = redis.call('INCR', counter)
         if redis.call('PTTL', counter) < 0 then redis.call('PEXPIRE', counter, ARGV[2]) end
         local granted = is_free and count <= tonumber(ARGV[3])
         local left_out = granted and #KEYS or #KEYS - 1
         for n = 4, #KEYS do
           if n ~= left_out then redis.call('SET', KEYS[n], ARGV[2 * n - 4], 'PX', ARGV[2 * n - 3]) end
         end
         return granted and 1 or 0",
    )
});

// -1: stored; otherwise the milliseconds that the value found still lives.
static PUT_IF_ABSENT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return -1 end
         return redis.call('PTTL', KEYS[1])",
    )
});

static GET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local value = redis.call('GET', KEYS[1])
         if not value then return false end
         return {value, redis.call('PTTL', KEYS[1])}",
    )
});

static GET_ALL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local found = {}
         for n, key in ipairs(KEYS) do
           local value = redis.call('GET', key)
           found[n] = value and {value, redis.call('PTTL', key)}
         end
         return found",
    )
});

static REMOVE_IF_EQUAL: LazyLock<Script> = LazyLock::new(|| {
    Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")
});

static INCREMENT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local count = redis.call('INCR', KEYS[1])
         if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
         return count",
    )
});

// The newest window may be another by now: then what was counted in it hardly weighs any more.
static TAKE_BACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "for _, key in ipairs(KEYS) do
           local current = redis.call('HGET', key, 'current')
           if current and tonumber(current) > 0 then redis.call('HINCRBY', key, 'current', -1) end
         end",
    )
});

static DECREMENT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if tonumber(redis.call('GET', KEYS[1]) or 0) > 0 then return redis.call('DECR', KEYS[1]) end
         return 0",
    )
});

static ADMIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/admit.lua")));

/// Stores a value.
pub fn put(key: &str, value: &[u8], ttl: Duration) -> Cmd {
    let mut command = redis::cmd("SET");
    command.arg(key).arg(value).arg("PX").arg(millis(ttl));
    command
}

/// Answers `i64`, for [`remaining`].
pub fn put_if_absent(key: &str, value: &[u8], ttl: Duration) -> ScriptInvocation<'static> {
    invocation(&PUT_IF_ABSENT, key, |script| {
        script.arg(value).arg(millis(ttl));
    })
}

/// Reads the answer of [`put_if_absent`].
pub fn remaining(answer: i64) -> Option<Duration> {
    u64::try_from(answer).ok().map(Duration::from_millis)
}

/// Answers `i64`: 1 where the right is granted.
pub fn claim(claim: &Claim) -> ScriptInvocation<'static> {
    let mut script = CLAIM.prepare_invoke();
    script.key(&claim.key).key(&claim.had).key(&claim.withheld);
    // The shortest life in Redis would be long enough to refuse the next one.
    let life = if claim.ttl.is_zero() { 0 } else { millis(claim.ttl) };
    script.arg(life).arg(millis(claim.window)).arg(claim.most);
    for put in claim.always.iter().chain([&claim.with, &claim.without]) {
        script.key(&put.key).arg(&put.value).arg(millis(put.ttl));
    }
    script
}

/// Answers `Vec<Option<(Vec<u8>, i64)>>`, each for [`entry`].
pub fn get_all(keys: &[&str]) -> ScriptInvocation<'static> {
    let mut script = GET_ALL.prepare_invoke();
    for key in keys {
        script.key(*key);
    }
    script
}

/// Reads the answer of [`get_all`].
pub fn entries<const N: usize>(answer: Vec<Option<(Vec<u8>, i64)>>) -> RedisResult<[Option<Entry>; N]> {
    let entries: Vec<_> = answer.into_iter().map(entry).collect();
    entries.try_into().map_err(|_other| (ErrorKind::UnexpectedReturnType, "not one answer for each key").into())
}

/// Answers `Option<(Vec<u8>, i64)>`, for [`entry`].
pub fn get(key: &str) -> ScriptInvocation<'static> {
    invocation(&GET, key, |_| ())
}

/// Reads the answer of [`get`].
pub fn entry(answer: Option<(Vec<u8>, i64)>) -> Option<Entry> {
    let (value, millis) = answer?;
    Some(Entry { value, expires_in: Duration::from_millis(u64::try_from(millis).ok()?) })
}

/// Answers `i64`: how many were removed.
pub fn remove_if_equal(key: &str, value: &[u8]) -> ScriptInvocation<'static> {
    invocation(&REMOVE_IF_EQUAL, key, |script| {
        script.arg(value);
    })
}

/// Removes a value or counter.
pub fn remove(key: &str) -> Cmd {
    Cmd::del(key)
}

/// Answers `i64`: the new count.
pub fn increment(key: &str, ttl: Duration) -> ScriptInvocation<'static> {
    invocation(&INCREMENT, key, |script| {
        script.arg(millis(ttl));
    })
}

/// Answers `i64`, of no use.
pub fn decrement(key: &str) -> ScriptInvocation<'static> {
    invocation(&DECREMENT, key, |_| ())
}

/// Requests that come at once, each under its rules. Those under the same rules are counted in one go.
pub struct Crowd<'a> {
    groups: Vec<Group<'a>>,
    // The group of each, and how many of that group came before it.
    places: Vec<(usize, u32)>,
    asked_at: Instant,
}

// Requests under the same rules, and how many more of them are to be counted.
struct Group<'a> {
    rules: &'a [Rule],
    count: u32,
    ahead: u32,
}

impl<'a> Crowd<'a> {
    /// Of the rules of each. Of those who ask often, more are counted, which go to `ahead`.
    pub fn of(all: &'a [Vec<Rule>], ahead: &Ahead) -> Self {
        let (mut groups, mut places) = (Vec::<Group<'_>>::new(), Vec::with_capacity(all.len()));
        let mut known = HashMap::new();
        for rules in all.iter().map(Vec::as_slice) {
            let index = *known.entry(rules).or_insert(groups.len());
            match groups.get_mut(index) {
                Some(group) => {
                    places.push((index, group.count));
                    group.count += 1;
                }
                None => {
                    places.push((index, 0));
                    groups.push(Group { rules, count: 1, ahead: 0 });
                }
            }
        }
        let asked_at = Instant::now();
        for group in &mut groups {
            group.ahead = ahead.wanted(group.rules, group.count, asked_at);
        }
        Self { groups, places, asked_at }
    }

    /// Answers `Vec<u64>`, for [`Self::decisions`].
    pub fn admit(&self) -> ScriptInvocation<'static> {
        let mut script = ADMIT.prepare_invoke();
        for Group { rules, count, ahead } in &self.groups {
            script.arg(*count).arg(*ahead).arg(rules.len());
            for rule in *rules {
                let micros = u64::try_from(rule.rate.per.as_micros()).unwrap_or(u64::MAX);
                script.key(&rule.key).arg(micros).arg(rule.rate.count);
            }
        }
        script
    }

    /// Reads the answer of [`Self::admit`]: for each group, how many were admitted, microseconds that the others are to
    /// wait, and how many were counted ahead, which `ahead` keeps; then for each rule what remains beside all these, and
    /// microseconds until its window ends.
    pub fn decisions(&self, mut answer: &[u64], ahead: &Ahead) -> Option<Vec<Decision>> {
        let mut groups = Vec::with_capacity(self.groups.len());
        for Group { rules, .. } in &self.groups {
            let (group, rest) = answer.split_at_checked(3 + 2 * rules.len())?;
            let ([admitted, wait, more], left) = group.split_first_chunk::<3>()?;
            let left = left.as_chunks::<2>().0.iter().map(|[remaining, reset]| Left {
                remaining: u32::try_from(*remaining).unwrap_or(u32::MAX),
                reset: Duration::from_micros(*reset),
            });
            let left: Vec<_> = left.collect();
            let more = u32::try_from(*more).unwrap_or(u32::MAX);
            let held = match (*rules, left.as_slice()) {
                ([rule], [left]) => ahead.keep(rule, more, *left, self.asked_at, Instant::now()),
                _ => 0,
            };
            groups.push((u32::try_from(*admitted).unwrap_or(u32::MAX), *wait, held, left));
            answer = rest;
        }
        let decision = |(index, before): &(usize, u32)| {
            let (admitted, wait, held, left) = groups.get(*index)?;
            let after = admitted.checked_sub(before + 1);
            let unused = after.map_or(0, |after| after.saturating_add(*held));
            let left = left.iter().map(|left| Left { remaining: left.remaining.saturating_add(unused), ..*left });
            let left = left.collect();
            Some(match after {
                Some(_) => Decision::Admitted(left),
                None => Decision::Throttled { retry_after: Duration::from_micros((*wait).max(1)), left },
            })
        };
        self.places.iter().map(decision).collect()
    }
}

/// Uncounts a request that [`Crowd::admit`] has counted.
pub fn take_back(rules: &[Rule]) -> ScriptInvocation<'static> {
    let mut script = TAKE_BACK.prepare_invoke();
    for rule in rules {
        script.key(&rule.key);
    }
    script
}

/// How often a command may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tries {
    /// Once: it may have been carried out although its answer was lost, and a second time it would
    /// count twice or find its own work done.
    One,
    /// Twice, the second time on another connection: done twice, it is as if done once.
    Two,
}

fn invocation(
    script: &'static LazyLock<Script>,
    key: &str,
    arguments: impl FnOnce(&mut ScriptInvocation<'static>),
) -> ScriptInvocation<'static> {
    let mut invocation = script.prepare_invoke();
    invocation.key(key);
    arguments(&mut invocation);
    invocation
}

fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Remembers for a moment that a server is away, so that not every request waits for its timeout.
#[derive(Debug, Default)]
pub struct Breaker {
    open_until: Mutex<Option<Instant>>,
}

/// How long a server that was found away is not asked again.
const PAUSE: Duration = Duration::from_millis(500);

impl Breaker {
    /// Whether the server was found away a moment ago.
    pub fn is_open(&self) -> bool {
        let until = *self.open_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Notes whether the server answered.
    pub fn note(&self, answered: bool) {
        let until = (!answered).then(|| Instant::now() + PAUSE);
        *self.open_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::limits::Rate;

    #[test]
    fn a_breaker_opens_on_failure_and_closes_on_success() {
        let breaker = Breaker::default();
        assert!(!breaker.is_open());
        breaker.note(false);
        assert!(breaker.is_open());
        breaker.note(true);
        assert!(!breaker.is_open());
    }

    #[test]
    fn answers_are_read() {
        assert_eq!(remaining(-1), None);
        assert_eq!(remaining(1500), Some(Duration::from_millis(1500)));
        assert_eq!(entry(None), None);
    }

    #[test]
    fn each_of_a_crowd_is_told_how_it_stands() {
        let rate = Rate { count: 9, per: Duration::from_secs(60) };
        let rule = |key: &str| Rule { key: key.into(), rate };
        let (one, both) = (vec![rule("a")], vec![rule("a"), rule("b")]);
        let all = [one.clone(), both, one.clone(), one.clone(), Vec::new()];
        let ahead = Ahead::default();
        let crowd = Crowd::of(&all, &ahead);
        assert_eq!(crowd.groups.iter().map(|group| group.count).collect::<Vec<_>>(), [3, 1, 1]);
        let left = |remaining: &[u32]| {
            let left = |remaining: &u32| Left { remaining: *remaining, reset: Duration::from_micros(7) };
            remaining.iter().map(left).collect::<Vec<_>>()
        };
        assert_eq!(
            crowd.decisions(&[2, 5, 0, 0, 7, 1, 0, 0, 3, 7, 4, 7, 1, 0, 0], &ahead),
            Some(vec![
                Decision::Admitted(left(&[1])),
                Decision::Admitted(left(&[3, 4])),
                Decision::Admitted(left(&[0])),
                Decision::Throttled { retry_after: Duration::from_micros(5), left: left(&[0]) },
                Decision::Admitted(Vec::new()),
            ])
        );
        assert_eq!(crowd.decisions(&[2, 5, 0], &ahead), None);
        assert_eq!(ahead.take(&one, Instant::now()), None);

        let answer = [3, 0, 16, 40, 60_000_000, 1, 0, 0, 3, 7, 4, 7, 1, 0, 0];
        let decisions = crowd.decisions(&answer, &ahead).unwrap();
        let remaining = |decision: &Decision| match decision {
            Decision::Admitted(left) => left[0].remaining,
            Decision::Throttled { .. } => panic!("{decision:?}"),
        };
        let of_three: Vec<_> = [0, 2, 3].into_iter().map(|nth| remaining(&decisions[nth])).collect();
        assert_eq!(of_three, [58, 57, 56], "who was counted ahead comes after them");
        let taken = || std::iter::from_fn(|| ahead.take(&one, Instant::now())).map(|decision| remaining(&decision));
        assert!(taken().chain(taken()).eq((40..56).rev()));
    }
}
