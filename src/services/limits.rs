//! How often a client may ask: a sliding window, decided by one pure function wherever the
//! counters are kept.
//!
//! Two counters a key, of the present window and of the one before; the older one counts for the
//! part of it that the sliding window still covers. Redis runs the same arithmetic in
//! `store/redis/admit.lua`.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use time::OffsetDateTime;

use super::{
    model::{Caller, UserId},
    policy::LimitPolicy,
    ports::{Ephemeral, Ports},
    problem::Problem,
};

/// So many requests in so long a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Requests.
    pub count: u32,
    /// In this time.
    pub per: Duration,
}

/// One counter and its limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What is counted, e.g. `limit:burst:192.0.2.1`.
    pub key: String,
    /// How much of it is allowed.
    pub rate: Rate,
}

/// Whether a request may go on, and what is left of each rule, in the rules' order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// It was counted and may go on.
    Admitted(Vec<Left>),
    /// It was not counted.
    Throttled {
        /// When the next one would be admitted.
        retry_after: Duration,
        /// What is left.
        left: Vec<Left>,
    },
}

/// What is left of one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Requests that would be admitted now.
    pub remaining: u32,
    /// Until the present window ends.
    pub reset: Duration,
}

/// How a client stands with the limits of a route, for the `RateLimit-*` headers
/// (draft-ietf-httpapi-ratelimit-headers-06).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Every rule that applies.
    pub policy: Vec<Rate>,
    /// The limit of the rule that has the least left.
    pub limit: u32,
    /// What it has left.
    pub left: Left,
}

impl Standing {
    fn new(rules: &[Rule], left: &[Left]) -> Option<Self> {
        let (rule, left) = rules.iter().zip(left).min_by_key(|(_, left)| left.remaining)?;
        Some(Self { policy: rules.iter().map(|rule| rule.rate).collect(), limit: rule.rate.count, left: *left })
    }
}

/// The two counters of one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    index: u128,
    current: u32,
    previous: u32,
}

impl Window {
    /// The window as it stands at `now` (microseconds since 1970).
    fn at(self, now: u128, per: u128) -> Self {
        let index = now / per;
        match index.saturating_sub(self.index) {
            0 => self,
            1 => Self { index, current: 0, previous: self.current },
            _ => Self { index, current: 0, previous: 0 },
        }
    }

    /// How long until one more request fits; zero when it fits now.
    fn wait(self, now: u128, per: u128, limit: u32) -> Duration {
        let (per, elapsed) = (as_f64(per), as_f64(now % per));
        let (current, previous, limit) = (f64::from(self.current), f64::from(self.previous), f64::from(limit));
        // The share of a window that must have passed for `older` to weigh no more than `room`.
        let share = |older: f64, room: f64| if older <= room { 0.0 } else { 1.0 - room / older };
        let wait = if current + 1.0 > limit {
            per - elapsed + share(current, limit - 1.0) * per
        } else {
            share(previous, limit - 1.0 - current) * per - elapsed
        };
        Duration::from_secs_f64(wait.max(0.0) / 1e6)
    }

    // What fits beside what has been counted.
    fn left(self, now: u128, per: u128, limit: u32) -> Left {
        let (length, elapsed) = (as_f64(per), as_f64(now % per));
        let used = f64::from(self.current) + f64::from(self.previous) * (1.0 - elapsed / length);
        #[expect(clippy::as_conversions, reason = "between 0 and the limit, a u32")]
        let remaining = (f64::from(limit) - used).floor().max(0.0) as u32;
        Left { remaining, reset: Duration::from_secs_f64((length - elapsed) / 1e6) }
    }
}

#[expect(clippy::as_conversions, reason = "microseconds of a window are far below 2^53")]
fn as_f64(micros: u128) -> f64 {
    micros as f64
}

/// Counters in this process, shared by both engines: all there is on the embedded store, and what
/// decides while Redis is away.
#[derive(Debug, Default)]
pub struct LocalLimiter {
    windows: Mutex<HashMap<String, (Window, u128)>>,
}

const MOST_KEYS: usize = 100_000;

impl LocalLimiter {
    /// Counts one request against every rule, or against none.
    pub fn admit(&self, rules: &[Rule], now: OffsetDateTime) -> Decision {
        let now = u128::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or_default();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counted = Vec::with_capacity(rules.len());
        let mut longest = Duration::ZERO;
        for rule in rules {
            let per = rule.rate.per.as_micros().max(1);
            let (known, _) = windows.get(&rule.key).copied().unwrap_or_default();
            let window = known.at(now, per);
            longest = longest.max(window.wait(now, per, rule.rate.count));
            counted.push((rule, window, per));
        }
        let mut left = Vec::with_capacity(rules.len());
        if !longest.is_zero() {
            left.extend(counted.iter().map(|(rule, window, per)| window.left(now, *per, rule.rate.count)));
            return Decision::Throttled { retry_after: longest, left };
        }
        for (rule, window, per) in counted {
            let window = Window { current: window.current.saturating_add(1), ..window };
            left.push(window.left(now, per, rule.rate.count));
            windows.insert(rule.key.clone(), (window, (window.index + 2) * per));
        }
        if windows.len() > MOST_KEYS {
            windows.retain(|_, (_, stale_at)| *stale_at > now);
            // A flood of addresses with one request each must not push out those that asked often.
            if windows.len() > MOST_KEYS {
                windows.retain(|_, (window, _)| window.current.saturating_add(window.previous) > 1);
            }
            // Still too many: some are forgotten, whichever they are, but never all.
            if windows.len() > MOST_KEYS {
                let excess = windows.len() - MOST_KEYS + MOST_KEYS / 10;
                let forgotten: Vec<String> = windows.keys().take(excess).cloned().collect();
                for key in &forgotten {
                    windows.remove(key);
                }
            }
        }
        Decision::Admitted(left)
    }
}

impl LocalLimiter {
    /// Uncounts a request that was counted at about this time.
    pub fn take_back(&self, rules: &[Rule], now: OffsetDateTime) {
        let now = u128::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or_default();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        for rule in rules {
            if let Some((window, _)) = windows.get_mut(&rule.key) {
                *window = window.at(now, rule.rate.per.as_micros().max(1));
                window.current = window.current.saturating_sub(1);
            }
        }
    }
}

/// Which limits a route is under (contract §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Takes a credential or a code: burst and sustained, per address.
    Credential,
    /// Refresh and logout: sustained, per address until a user is known.
    Sustained,
    /// Other authenticated routes: general, per user.
    General,
    /// Token verification: its own.
    TokenVerify,
    /// Health and documents: none.
    Free,
}

/// Counts a request of `caller` before anything else is done for it, and says how the client stands.
///
/// # Errors
/// 429 `throttled`, with the standing.
pub async fn admit<P: Ports>(
    ports: &P,
    class: Class,
    caller: &Caller,
    user: Option<UserId>,
) -> Result<Option<Standing>, Problem> {
    admit_by(ports, &rules(&ports.policy().limits, class, caller, user)).await
}

/// Uncounts a request that [`admit`] has counted for this user, who had nothing to do with it.
pub async fn take_back<P: Ports>(ports: &P, class: Class, caller: &Caller, user: UserId) {
    let rules = rules(&ports.policy().limits, class, caller, Some(user));
    if !rules.is_empty() {
        ports.ephemeral().take_back(&rules).await;
    }
}

/// Counts a request against these rules.
///
/// # Errors
/// As [`admit`].
pub async fn admit_by<P: Ports>(ports: &P, rules: &[Rule]) -> Result<Option<Standing>, Problem> {
    if rules.is_empty() {
        return Ok(None);
    }
    match ports.ephemeral().admit(rules).await {
        Decision::Admitted(left) => Ok(Standing::new(rules, &left)),
        Decision::Throttled { retry_after, left } => {
            let rules_of = rules.first().map_or("", |rule| rule.key.split(':').nth(1).unwrap_or_default());
            tracing::warn!(rule = rules_of, "throttled");
            Err(Problem { standing: Standing::new(rules, &left), ..Problem::throttled(retry_after) })
        }
    }
}

fn rules(limits: &LimitPolicy, class: Class, caller: &Caller, user: Option<UserId>) -> Vec<Rule> {
    let network = client_network(caller);
    let who = user.map_or_else(|| network.clone(), |user| user.to_string());
    let rule =
        |name: &str, rate: Option<Rate>, who: &str| rate.map(|rate| Rule { key: format!("limit:{name}:{who}"), rate });
    let rules = match class {
        Class::Credential => vec![rule("burst", limits.burst, &network), rule("sustained", limits.sustained, &who)],
        Class::Sustained => vec![rule("sustained", limits.sustained, &who)],
        Class::General => vec![rule("general", limits.general, &who)],
        Class::TokenVerify => vec![rule("token_verify", limits.token_verify, &network)],
        Class::Free => Vec::new(),
    };
    rules.into_iter().flatten().collect()
}

/// What a client is counted as: its address, or of an IPv6 one the /64, all of which one host has to
/// choose from.
pub fn client_network(caller: &Caller) -> String {
    match caller.ip.to_canonical() {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { count: 10, per: Duration::from_secs(60) };

    fn at(seconds: f64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000) + time::Duration::seconds_f64(seconds)
    }

    fn ask(limiter: &LocalLimiter, seconds: f64) -> Decision {
        limiter.admit(&[Rule { key: "k".into(), rate: RATE }], at(seconds))
    }

    fn is_admitted(decision: &Decision) -> bool {
        matches!(decision, Decision::Admitted(_))
    }

    #[test]
    fn as_many_as_allowed_pass_and_no_more() {
        let limiter = LocalLimiter::default();
        for _ in 0..10 {
            assert!(is_admitted(&ask(&limiter, 1.0)));
        }
        assert!(matches!(ask(&limiter, 1.0), Decision::Throttled { .. }));
    }

    #[test]
    fn no_sixty_seconds_see_more_than_the_limit() {
        let limiter = LocalLimiter::default();
        let admitted: Vec<f64> =
            (0..3000u32).map(|n| f64::from(n) * 0.1).filter(|at| is_admitted(&ask(&limiter, *at))).collect();
        for start in &admitted {
            let within = admitted.iter().filter(|at| **at >= *start && **at < *start + 60.0).count();
            assert!(within <= 11, "{within} in a minute from {start}");
        }
        assert!(admitted.len() >= 40, "{}", admitted.len());
    }

    #[test]
    fn waiting_as_told_is_enough() {
        let limiter = LocalLimiter::default();
        let mut now = 37.0;
        for _ in 0..100 {
            match ask(&limiter, now) {
                Decision::Admitted(_) => now += 0.01,
                Decision::Throttled { retry_after, .. } => {
                    now += retry_after.as_secs_f64() + 0.001;
                    assert!(is_admitted(&ask(&limiter, now)));
                }
            }
        }
    }

    #[test]
    fn a_throttled_request_counts_against_no_rule() {
        let limiter = LocalLimiter::default();
        let tight = Rule { key: "tight".into(), rate: Rate { count: 1, ..RATE } };
        let wide = Rule { key: "wide".into(), rate: Rate { count: 2, ..RATE } };
        assert!(is_admitted(&limiter.admit(&[tight.clone(), wide.clone()], at(0.0))));
        assert!(matches!(limiter.admit(&[tight, wide.clone()], at(0.0)), Decision::Throttled { .. }));
        assert!(is_admitted(&limiter.admit(&[wide], at(0.0))));
    }

    #[test]
    fn what_is_taken_back_was_never_counted() {
        let limiter = LocalLimiter::default();
        let rules = [Rule { key: "k".into(), rate: RATE }];
        for _ in 0..30 {
            assert!(is_admitted(&ask(&limiter, 1.0)));
            limiter.take_back(&rules, at(1.1));
        }
        for _ in 0..10 {
            assert!(is_admitted(&ask(&limiter, 1.0)));
        }
        assert!(!is_admitted(&ask(&limiter, 1.0)));
        limiter.take_back(&[Rule { key: "unknown".into(), rate: RATE }], at(1.0));
        assert_eq!(limiter.windows.lock().unwrap().len(), 1);
    }

    #[test]
    fn what_is_left_is_what_would_be_admitted() {
        let limiter = LocalLimiter::default();
        for (now, n) in (0..10u32).map(|n| (f64::from(n), n)) {
            let Decision::Admitted(left) = ask(&limiter, now) else { panic!("throttled at {now}") };
            assert_eq!(left[0].remaining, 9 - n);
        }
        let Decision::Throttled { left, .. } = ask(&limiter, 11.0) else { panic!("admitted") };
        assert_eq!(left[0].remaining, 0);
        let rules = [Rule { key: "k".into(), rate: RATE }, Rule { key: "l".into(), rate: Rate { count: 3, ..RATE } }];
        let Decision::Admitted(left) = limiter.admit(&rules, at(130.0)) else { panic!("throttled") };
        let standing = Standing::new(&rules, &left).unwrap();
        assert_eq!((standing.limit, standing.left.remaining, standing.policy.len()), (3, 2, 2));
    }

    #[test]
    fn a_flood_of_addresses_takes_no_memory_without_end_and_frees_nobody_who_asked_often() {
        let limiter = LocalLimiter::default();
        for _ in 0..10 {
            assert!(is_admitted(&ask(&limiter, 1.0)));
        }
        for address in 0..MOST_KEYS * 2 {
            let rule = Rule { key: format!("flood:{address}"), rate: RATE };
            assert!(is_admitted(&limiter.admit(&[rule], at(2.0))));
        }
        assert!(limiter.windows.lock().unwrap().len() <= MOST_KEYS);
        assert!(!is_admitted(&ask(&limiter, 3.0)));
    }

    #[test]
    fn ipv6_counts_by_its_64() {
        let caller = |ip: &str| Caller {
            ip: ip.parse().unwrap(),
            request_id: String::new(),
            engine: "sync",
            user_agent: String::new(),
            device_token: None,
        };
        assert_eq!(client_network(&caller("2001:db8:1:2::1")), client_network(&caller("2001:db8:1:2:ffff::9")));
        assert_ne!(client_network(&caller("2001:db8:1:2::1")), client_network(&caller("2001:db8:1:3::1")));
        assert_eq!(client_network(&caller("::ffff:192.0.2.1")), "192.0.2.1");
    }
}
