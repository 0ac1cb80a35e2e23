//! What is counted about a member.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Steps of the histogram of reads: powers of two of microseconds.
const LATENCY_STEPS: usize = 24;

/// How long reads took.
#[derive(Debug, Default)]
pub(super) struct Latencies([AtomicU64; LATENCY_STEPS]);

impl Latencies {
    pub(super) fn record(&self, elapsed: Duration) {
        let step = (u64::BITS - (elapsed.as_micros() as u64).leading_zeros()) as usize;
        self.0[step.min(LATENCY_STEPS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// Microseconds that this part of the reads took at most, to a power of two; 0: none yet.
    pub(super) fn percentile_us(&self, part: f64) -> u64 {
        let counts = self.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        let total: u64 = counts.iter().sum();
        let wanted = (total as f64 * part).ceil() as u64;
        let mut sum = 0;
        for (step, count) in counts.into_iter().enumerate() {
            sum += count;
            if sum >= wanted && total > 0 {
                return 1 << step;
            }
        }
        0
    }
}

/// What is counted about a member since this process serves it.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) pages: AtomicU64,
    pub(super) read_pages: AtomicU64,
    pub(super) read_errors: AtomicU64,
    pub(super) write_errors: AtomicU64,
    pub(super) demoted_in_pages: AtomicU64,
    pub(super) demoted_in_bytes: AtomicU64,
    pub(super) demoted_out_pages: AtomicU64,
    pub(super) promoted_out_pages: AtomicU64,
    pub(super) collected_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) latencies: Latencies,
    /// Objects that a server does not have, though it said that it has them.
    pub(super) lost_objects: AtomicU64,
    /// Objects that a server answered wrongly.
    pub(super) wrong_objects: AtomicU64,
    /// Objects that are left on a server though nobody needs them.
    pub(super) left_objects: AtomicU64,
    /// Pages by age, as of the last look.
    pub(super) ages: [AtomicU64; 4],
}

pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_powers_of_two() {
        let latencies = Latencies::default();
        assert_eq!(latencies.percentile_us(0.5), 0);
        for _ in 0..99 {
            latencies.record(Duration::from_micros(100));
        }
        latencies.record(Duration::from_micros(5000));
        assert_eq!((latencies.percentile_us(0.5), latencies.percentile_us(0.999)), (128, 8192));
    }
}
