//! Durations and rates as they are written in a configuration: `15m`, `10/min`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// The longest duration that a configuration may state: ten years.
const LONGEST: Duration = Duration::from_secs(3650 * 86_400);

const DURATION_FORM: &str = "a duration is a whole number and a unit (ms, s, m, h, d), such as \"15m\", up to 3650d";
const LIMIT_FORM: &str = "a limit is a duration, such as \"15m\", up to 3650d, or \"off\"";
const RATE_FORM: &str = "a rate is a number per s, min, hour or day, such as \"10/min\", or \"off\"";

/// A duration as it is written in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at_checked(digits).ok_or(DURATION_FORM)?;
        let Ok(number) = number.parse::<u64>() else {
            return Err(DURATION_FORM);
        };
        let milliseconds_per_unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(DURATION_FORM),
        };
        number
            .checked_mul(milliseconds_per_unit)
            .map(Duration::from_millis)
            .filter(|duration| *duration <= LONGEST)
            .map(Self)
            .ok_or(DURATION_FORM)
    }
}

/// How often something may happen: `count` times in each `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Times allowed, at least 1.
    pub count: u32,
    /// The length of time that `count` is about.
    pub per: Duration,
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (count, per) = text.trim().split_once('/').ok_or(RATE_FORM)?;
        let seconds = match per.trim() {
            "s" | "sec" | "second" => 1,
            "m" | "min" | "minute" => 60,
            "h" | "hour" => 3_600,
            "d" | "day" => 86_400,
            _ => return Err(RATE_FORM),
        };
        match count.trim().parse() {
            Ok(count) if count > 0 => Ok(Self { count, per: Duration::from_secs(seconds) }),
            _ => Err(RATE_FORM),
        }
    }
}

/// Reads a duration.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parsed(deserializer, DURATION_FORM, |text| text.parse::<Span>().map(|span| span.0))
}

/// Reads a duration, `None` being "off".
pub(super) fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parsed(deserializer, LIMIT_FORM, |text| match text.trim() {
        "off" => Ok(None),
        text => text.parse::<Span>().or(Err(LIMIT_FORM)).map(|span| Some(span.0)),
    })
}

/// Reads a rate, `None` being "off".
pub(super) fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Rate>, D::Error> {
    parsed(deserializer, RATE_FORM, |text| match text.trim() {
        "off" => Ok(None),
        text => text.parse().map(Some),
    })
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        duration(deserializer).map(Self)
    }
}

/// Reads a text by `parse`; any other type is answered with `form` too.
pub(super) fn parsed<'de, D: Deserializer<'de>, T, E: fmt::Display>(
    deserializer: D,
    form: &'static str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    struct Text<F> {
        form: &'static str,
        parse: F,
    }

    impl<T, E: fmt::Display, F: FnOnce(&str) -> Result<T, E>> Visitor<'_> for Text<F> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.form)
        }

        fn visit_str<X: de::Error>(self, text: &str) -> Result<T, X> {
            (self.parse)(text).map_err(|reason| X::custom(format!("found {text:?}, but {reason}")))
        }

        fn visit_u64<X: de::Error>(self, number: u64) -> Result<T, X> {
            Err(X::custom(format!("found {number}, but {}", self.form)))
        }

        fn visit_i64<X: de::Error>(self, number: i64) -> Result<T, X> {
            Err(X::custom(format!("found {number}, but {}", self.form)))
        }
    }

    deserializer.deserialize_str(Text { form, parse })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, milliseconds) in
            [("0s", 0), ("500ms", 500), ("60s", 60_000), ("15m", 900_000), ("2h", 7_200_000), ("30d", 2_592_000_000)]
        {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(milliseconds))), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_duration() {
        for text in
            ["", "s", "15", "-1s", "1.5h", "1 s", "15M", "4000d", "99999999999999999999d", "18446744073709551615d", "é"]
        {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_read_with_their_period() {
        for (text, count, seconds) in
            [("5/s", 5, 1), ("10/min", 10, 60), ("120/hour", 120, 3_600), ("1000/day", 1000, 86_400)]
        {
            assert_eq!(text.parse(), Ok(Rate { count, per: Duration::from_secs(seconds) }), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_rate() {
        for text in ["", "10", "0/min", "-1/min", "10/week", "/min", "off", "99999999999/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
