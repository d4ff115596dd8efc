//! The operating system's clock and random source, for the ports of both engines.

use std::{
    cell::RefCell,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use time::OffsetDateTime;
use zeroize::Zeroize as _;

/// The time, UTC, in whole microseconds, which is what both databases keep.
#[expect(clippy::disallowed_methods, reason = "this is where the clock port is answered")]
pub fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(now.microsecond() * 1000).unwrap_or(now)
}

/// Bytes from the system's random source.
///
/// A thread draws several at once, since a request needs many, a few bytes each: a sign-up drew eighteen times. What is
/// handed out is wiped from where it was, so that nothing tells afterwards what was drawn.
///
/// # Panics
/// When the system has none: there is no safe way on.
pub fn random<const N: usize>() -> [u8; N] {
    thread_local! {
        static DRAWN: RefCell<Drawn> = const { RefCell::new(Drawn { bytes: [0; AT_ONCE], left: 0 }) };
    }
    let mut bytes = [0; N];
    // Not where a thread is ending, or for more than there ever is.
    let is_taken = DRAWN.try_with(|drawn| drawn.borrow_mut().take(&mut bytes)).unwrap_or_default();
    if !is_taken {
        draw(&mut bytes);
    }
    bytes
}

const AT_ONCE: usize = 256;

// The last `left` are not handed out yet.
struct Drawn {
    bytes: [u8; AT_ONCE],
    left: usize,
}

impl Drawn {
    // Fills all of `wanted`, or nothing.
    fn take(&mut self, wanted: &mut [u8]) -> bool {
        if wanted.len() > AT_ONCE {
            return false;
        }
        if self.left < wanted.len() {
            draw(&mut self.bytes);
            self.left = AT_ONCE;
        }
        let from = AT_ONCE - self.left;
        let Some(next) = self.bytes.get_mut(from..from + wanted.len()) else { return false };
        wanted.copy_from_slice(next);
        next.zeroize();
        self.left -= wanted.len();
        true
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

#[expect(clippy::disallowed_methods, clippy::expect_used, reason = "this is where the random port is answered")]
fn draw(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system's random source");
}

/// A request's id, 32 hex digits: another one each time, in this process and in any other. It is no secret; asking the
/// system's random source for each would cost more than the rest of a short answer's head.
pub fn request_id() -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| u64::from_be_bytes(random()));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:016x}{:016x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_are_handed_out_twice_and_none_are_kept() {
        let mut drawn = Drawn { bytes: [0; AT_ONCE], left: 0 };
        let mut seen = std::collections::HashSet::new();
        for nth in 0..100 {
            let mut bytes = [0; 24];
            assert!(drawn.take(&mut bytes) && seen.insert(bytes));
            let (gone, left) = drawn.bytes.split_at(AT_ONCE - drawn.left);
            assert!(gone.iter().all(|byte| *byte == 0), "{nth}");
            // All zeros would be an accident of one in 2^128.
            assert!(left.len() < 16 || left.iter().any(|byte| *byte != 0), "{nth}");
        }
        assert!(drawn.take(&mut [0; AT_ONCE]) && drawn.left == 0);
        assert!(!drawn.take(&mut [0; AT_ONCE + 1]));
        assert!(drawn.take(&mut []));
    }

    #[test]
    fn any_number_of_bytes_is_drawn_and_other_ones_each_time_and_in_each_thread() {
        assert_ne!(random::<16>(), random::<16>());
        assert_ne!(random::<32>(), std::thread::spawn(random::<32>).join().unwrap());
        assert_ne!(random::<1000>(), [0; 1000]);
        assert_ne!(random::<AT_ONCE>(), random::<AT_ONCE>());
    }
}
