//! The operating system's clock and random source, for the ports of both engines.

use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering},
};

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

/// A request's id, 32 hex digits: another one each time, in this process and in any other. It is no secret; asking the
/// system's random source for each would cost more than the rest of a short answer's head.
pub fn request_id() -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| u64::from_be_bytes(random()));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:016x}{:016x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed))
}
