//! The operating system's clock and random source, for the ports of both engines.

use time::OffsetDateTime;

/// The time, UTC, in whole microseconds, which is what both databases keep.
#[expect(clippy::disallowed_methods, reason = "this is where the clock port is answered")]
pub fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(now.microsecond() * 1000).unwrap_or(now)
}

/// Bytes from the system's random source.
///
/// # Panics
/// When the system has none: there is no safe way on.
#[expect(clippy::disallowed_methods, clippy::expect_used, reason = "this is where the random port is answered")]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system's random source");
    bytes
}
