//! Whether two sets of measured times can be told apart: the rank-sum test of Mann and Whitney, with its effect size,
//! and the difference of the trimmed means.

use std::fmt;

/// What two sets of times, in microseconds, come to.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// How probably a time of the second set is longer than one of the first; 0.5 says nothing at all.
    pub superiority: f64,
    /// How probable a difference of ranks as great as this is between two sets of one kind (both sides).
    pub p: f64,
    /// Of the first set, without the tenth at either end.
    pub first: f64,
    /// Of the second set.
    pub second: f64,
}

/// Below this, the difference is none of chance.
const SIGNIFICANT: f64 = 0.001;

/// The probability of superiority may be so far from one half: an attacker who has one look at either learns little.
const SLIGHT: f64 = 0.15;

/// A difference of the means, in microseconds, that is lost in the jitter of a network.
const UNSEEN: f64 = 50.0;

impl Comparison {
    /// Of two sets of at least twenty times each.
    pub fn of(first: &[f64], second: &[f64]) -> Self {
        assert!(first.len() >= 20 && second.len() >= 20, "too few times");
        let (superiority, z) = rank_sum(first, second);
        Self { superiority, p: both_sides(z), first: trimmed_mean(first), second: trimmed_mean(second) }
    }

    /// Not by chance, not slight, and not lost in the jitter of a network: all three.
    pub fn tells_apart(&self) -> bool {
        let difference = (self.first - self.second).abs();
        self.p < SIGNIFICANT && (self.superiority - 0.5).abs() > SLIGHT && difference > UNSEEN
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { superiority, p, first, second } = self;
        let difference = second - first;
        write!(
            formatter,
            "{first:9.1} us | {second:9.1} us | {difference:+8.1} us | superiority {superiority:.3} | p {p:.4}"
        )
    }
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("fewer than four thousand million"))
}

/// The probability of superiority of the second set, and the standardised rank sum, corrected for ties.
fn rank_sum(first: &[f64], second: &[f64]) -> (f64, f64) {
    let mut all: Vec<(f64, bool)> = first.iter().map(|time| (*time, false)).collect();
    all.extend(second.iter().map(|time| (*time, true)));
    all.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut ranks_of_second, mut ties, mut before) = (0.0, 0.0, 0.0);
    for group in all.chunk_by(|one, other| one.0.total_cmp(&other.0).is_eq()) {
        let size = float(group.len());
        let rank = before + (size + 1.0) / 2.0;
        ranks_of_second += rank * float(group.iter().filter(|(_, of_second)| *of_second).count());
        ties += size.powi(3) - size;
        before += size;
    }
    let (m, n) = (float(first.len()), float(second.len()));
    let whole = m + n;
    let u = ranks_of_second - n * (n + 1.0) / 2.0;
    let variance = m * n / 12.0 * (whole + 1.0 - ties / (whole * (whole - 1.0)));
    let z = if variance > 0.0 { (u - m * n / 2.0) / variance.sqrt() } else { 0.0 };
    (u / (m * n), z)
}

/// How probably a normal variable is as far from zero on either side (Abramowitz and Stegun 7.1.26).
fn both_sides(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let factors = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let polynomial = factors.into_iter().fold(0.0, |sum, factor| (sum + factor) * t);
    polynomial * (-x * x).exp()
}

fn trimmed_mean(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    let tenth = times.len() / 10;
    let kept = times.get(tenth..times.len() - tenth).expect("a tenth at either end");
    kept.iter().sum::<f64>() / float(kept.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, between 0 and 1, always the same.
    fn noise(seed: u64, count: usize) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from(u32::try_from(state >> 32).expect("the upper half")) / f64::from(u32::MAX)
        };
        (0..count).map(|_| next()).collect()
    }

    /// About 2 ms with a spread of some hundred microseconds and now and then a long one.
    fn times(seed: u64, shift: f64) -> Vec<f64> {
        noise(seed, 400).iter().map(|n| 2000.0 + shift + 300.0 * n + if *n > 0.97 { 5000.0 } else { 0.0 }).collect()
    }

    #[test]
    fn known_ranks_give_the_known_figures() {
        // U and z as R's wilcox.test(exact = FALSE, correct = FALSE) has them.
        let (superiority, z) = rank_sum(&[1.1, 2.2, 3.3, 4.4], &[2.2, 5.5, 6.6, 7.7, 8.8]);
        assert!((superiority - 17.5 / 20.0).abs() < 1e-12, "{superiority}");
        assert!((z - 7.5 / (20.0f64 / 12.0 * (10.0 - 6.0 / 72.0)).sqrt()).abs() < 1e-12, "{z}");
        for (z, p) in [(0.0, 1.0), (1.0, 0.317_310_5), (1.959_964, 0.05), (-3.290_527, 0.001)] {
            assert!((both_sides(z) - p).abs() < 1e-6, "{z}");
        }
        let all: Vec<_> = (0..20).map(f64::from).collect();
        assert!((trimmed_mean(&all) - 9.5).abs() < 1e-12);
    }

    #[test]
    fn times_of_one_kind_are_not_told_apart() {
        for seed in 1..=20 {
            let comparison = Comparison::of(&times(seed, 0.0), &times(seed + 100, 0.0));
            assert!(!comparison.tells_apart(), "{comparison}");
        }
    }

    #[test]
    fn a_few_microseconds_under_noise_are_let_pass_and_what_shows_is_found() {
        let slight = Comparison::of(&times(3, 0.0), &times(4, 20.0));
        assert!(!slight.tells_apart(), "{slight}");
        for shift in [150.0, -150.0, 1000.0, -2000.0] {
            let shown = Comparison::of(&times(3, 0.0), &times(4, shift));
            assert!(shown.tells_apart(), "{shown}");
        }
    }

    #[test]
    fn between_short_times_a_clear_difference_has_to_be_one_that_a_network_shows() {
        let clear = |shift: f64| noise(7, 400).iter().map(|n| 500.0 + shift + 5.0 * n).collect::<Vec<_>>();
        for (shift, told) in [(30.0, false), (80.0, true), (-80.0, true)] {
            let comparison = Comparison::of(&clear(0.0), &clear(shift));
            assert_eq!(comparison.tells_apart(), told, "{comparison}");
        }
    }
}
