//! How fast the device answers, to choose between waiting for it and handing a request over.
//!
//! A hand-over to the ring thread costs two switches and, for a write, a copy: some 10 us for a
//! page and 100 us for a large write, measured (tests/bench/RESULTS.md). A device in memory
//! answers sooner; a disk does not. The averages are of requests that a thread did by itself,
//! and there are always some: a request that is alone is never handed over.

use crate::buffer::SMALL_BYTES;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Slower than this on the average, a small request is worth handing over.
const SMALL_LIMIT_NS: u64 = 20_000;
/// The same for a large one.
const LARGE_LIMIT_NS: u64 = 150_000;
/// Each request moves the average by one part in so many.
const WEIGHT: u64 = 16;

/// Moving averages for small and for large requests, in nanoseconds.
#[derive(Debug)]
pub(super) struct Pace {
    averages_ns: [AtomicU64; 2],
}

impl Default for Pace {
    /// A device is taken for a slow one until it shows better.
    fn default() -> Pace {
        Pace { averages_ns: [AtomicU64::new(100_000), AtomicU64::new(1_000_000)] }
    }
}

fn class_of(bytes: usize) -> usize {
    usize::from(bytes > SMALL_BYTES)
}

impl Pace {
    /// A thread did a request of `bytes` by itself. Two threads at once may lose one of the two
    /// samples: it is an average.
    pub(super) fn record(&self, bytes: usize, elapsed: Duration) {
        let average = &self.averages_ns[class_of(bytes)];
        let sample_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).min(1 << 32);
        let before_ns = average.load(Ordering::Relaxed);
        let after_ns = before_ns - before_ns / WEIGHT + sample_ns / WEIGHT;
        average.store(after_ns, Ordering::Relaxed);
    }

    pub(super) fn is_slow(&self, bytes: usize) -> bool {
        let limit_ns = [SMALL_LIMIT_NS, LARGE_LIMIT_NS][class_of(bytes)];
        self.average_ns(bytes) > limit_ns
    }

    /// The average of requests like one of `bytes`.
    pub(super) fn average_ns(&self, bytes: usize) -> u64 {
        self.averages_ns[class_of(bytes)].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_the_device() {
        let pace = Pace::default();
        assert!(pace.is_slow(4096) && pace.is_slow(1 << 20));
        for _ in 0..100 {
            pace.record(4096, Duration::from_micros(5));
        }
        assert!(!pace.is_slow(4096), "{}", pace.average_ns(4096));
        assert!(pace.is_slow(1 << 20), "large requests have an average of their own");
        for _ in 0..100 {
            pace.record(4096, Duration::from_micros(90));
        }
        assert!(pace.is_slow(4096), "{}", pace.average_ns(4096));
        pace.record(4096, Duration::from_secs(1 << 40));
    }
}
