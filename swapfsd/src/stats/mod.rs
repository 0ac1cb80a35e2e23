//! What a volume counts: requests, bytes, errors, sizes and latencies.
//!
//! Counters are spread over shards by thread, so that threads do not share cache lines on the
//! I/O path; a reader adds the shards up. [`json`] and [`prometheus`] show them.

pub mod json;
pub mod prometheus;
mod tiers;

use crate::error::{ErrorKind, Operation};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Upper bounds of the request size histogram: 4 KiB to 1 MiB, in powers of two.
pub const SIZE_BUCKETS: usize = 9;
/// Upper bounds of the latency histogram: 1 us to 8.4 s, in powers of two, then everything.
pub const LATENCY_BUCKETS: usize = 25;
const SHARDS: usize = 16;

#[repr(C, align(128))]
#[derive(Debug, Default)]
pub(crate) struct Shard {
    requests: [AtomicU64; 4],
    bytes: [AtomicU64; 4],
    errors: [AtomicU64; 4],
    checksum_errors: AtomicU64,
    partial_writes: AtomicU64,
    sizes: [[AtomicU64; SIZE_BUCKETS]; 2],
    latencies: [[AtomicU64; LATENCY_BUCKETS]; 2],
    latency_sums_us: [AtomicU64; 2],
}

/// The counters of one volume.
#[derive(Debug)]
pub struct Stats {
    shards: &'static [Shard; SHARDS],
}

/// Bytes of the counters where they outlive a process.
pub const SHARED_BYTES: usize = size_of::<[Shard; SHARDS]>();

impl Default for Stats {
    /// In the control page's region where there is one, so that they go on counting when another
    /// process takes over; else in memory of this process, which is never given back: there is
    /// one volume in a process.
    fn default() -> Stats {
        let shared = crate::control::installed().map(crate::control::Control::counters);
        Stats { shards: shared.unwrap_or_else(|| Box::leak(Box::default())) }
    }
}

/// The counters at an address.
///
/// # Safety
/// [`SHARED_BYTES`] of memory that live as long as the process, aligned to a page, zeroed at first
/// and used for nothing else.
pub(crate) unsafe fn counters_at(start: *const u8) -> &'static Counters {
    // SAFETY: as the caller promises; any bytes are counters.
    unsafe { &*start.cast() }
}

/// The counters, wherever they are.
pub(crate) type Counters = [Shard; SHARDS];

/// All counters at one moment, indexed by [`Operation`]; histograms by read (0) and write (1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests that succeeded or failed.
    pub requests: [u64; 4],
    /// Bytes of requests that succeeded.
    pub bytes: [u64; 4],
    /// Requests that failed.
    pub errors: [u64; 4],
    /// Of these, reads that met a wrong checksum.
    pub checksum_errors: u64,
    /// Writes that were not whole pages.
    pub partial_writes: u64,
    /// Requests by size, see [`size_bound_bytes`].
    pub sizes: [[u64; SIZE_BUCKETS]; 2],
    /// Requests by time in the volume and back end, see [`latency_bound_us`].
    pub latencies: [[u64; LATENCY_BUCKETS]; 2],
    /// Sum of these times, microseconds.
    pub latency_sums_us: [u64; 2],
}

/// Upper bound of a bucket of the size histogram.
#[must_use]
pub fn size_bound_bytes(bucket: usize) -> u64 {
    4096 << bucket
}

/// Upper bound of a bucket of the latency histogram; `None` for the last one.
#[must_use]
pub fn latency_bound_us(bucket: usize) -> Option<u64> {
    (bucket + 1 < LATENCY_BUCKETS).then(|| 1 << bucket)
}

fn bucket_of(value: u64, least_bound: u64, buckets: usize) -> usize {
    let steps = value.div_ceil(least_bound).max(1).next_power_of_two().trailing_zeros();
    (steps as usize).min(buckets - 1)
}

fn shard_index() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static INDEX: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
    }
    let mut index = INDEX.get();
    if index == usize::MAX {
        index = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
        INDEX.set(index);
    }
    index
}

impl Stats {
    fn shard(&self) -> &Shard {
        &self.shards[shard_index()]
    }

    /// Counts a request of `bytes` that took `elapsed`.
    pub fn record(
        &self,
        operation: Operation,
        bytes: u64,
        elapsed: Duration,
        error: Option<ErrorKind>,
    ) {
        let add = |counter: &AtomicU64, value| counter.fetch_add(value, Ordering::Relaxed);
        let shard = self.shard();
        let index = operation as usize;
        add(&shard.requests[index], 1);
        match error {
            None => add(&shard.bytes[index], bytes),
            // The kernel asks once, and does without from then on.
            Some(ErrorKind::Unsupported) => 0,
            Some(_) => add(&shard.errors[index], 1),
        };
        if error == Some(ErrorKind::Checksum) {
            add(&shard.checksum_errors, 1);
        }
        if let Operation::Read | Operation::Write = operation {
            let elapsed_us = u64::try_from(elapsed.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
            add(&shard.sizes[index][bucket_of(bytes, 4096, SIZE_BUCKETS)], 1);
            add(&shard.latencies[index][bucket_of(elapsed_us, 1, LATENCY_BUCKETS)], 1);
            add(&shard.latency_sums_us[index], elapsed_us);
        }
    }

    /// Counts a write that was not whole pages.
    pub fn record_partial_write(&self) {
        self.shard().partial_writes.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds all shards up.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut sum = Snapshot::default();
        let add = |total: &mut [u64], counters: &[AtomicU64]| {
            for (total, counter) in total.iter_mut().zip(counters) {
                *total += counter.load(Ordering::Relaxed);
            }
        };
        for shard in self.shards {
            add(&mut sum.requests, &shard.requests);
            add(&mut sum.bytes, &shard.bytes);
            add(&mut sum.errors, &shard.errors);
            add(&mut sum.latency_sums_us, &shard.latency_sums_us);
            sum.checksum_errors += shard.checksum_errors.load(Ordering::Relaxed);
            sum.partial_writes += shard.partial_writes.load(Ordering::Relaxed);
            for kind in 0..2 {
                add(&mut sum.sizes[kind], &shard.sizes[kind]);
                add(&mut sum.latencies[kind], &shard.latencies[kind]);
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_is_at_most_their_bound() {
        for (bytes, bucket) in
            [(1, 0), (4096, 0), (4097, 1), (8192, 1), (524_288, 7), (1 << 20, 8), (1 << 30, 8)]
        {
            assert_eq!(bucket_of(bytes, 4096, SIZE_BUCKETS), bucket, "{bytes}");
        }
        assert_eq!(size_bound_bytes(SIZE_BUCKETS - 1), 1 << 20);
        for (us, bucket) in [(0, 0), (1, 0), (2, 1), (3, 2), (1 << 23, 23), (u64::MAX >> 2, 24)] {
            assert_eq!(bucket_of(us, 1, LATENCY_BUCKETS), bucket, "{us}");
        }
        assert_eq!(latency_bound_us(23), Some(1 << 23));
        assert_eq!(latency_bound_us(24), None);
    }

    #[test]
    fn shards_of_all_threads_are_added_up() {
        let stats = Stats::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let us = Duration::from_micros;
                    stats.record(Operation::Write, 8192, us(5), None);
                    stats.record(Operation::Read, 4096, us(9), Some(ErrorKind::Checksum));
                    stats.record(Operation::Flush, 0, us(9), None);
                    stats.record_partial_write();
                });
            }
        });
        let sum = stats.snapshot();
        assert_eq!(sum.requests, [8, 8, 0, 8]);
        assert_eq!(sum.bytes, [0, 65536, 0, 0]);
        assert_eq!((sum.errors, sum.checksum_errors, sum.partial_writes), ([8, 0, 0, 0], 8, 8));
        assert_eq!((sum.sizes[1][1], sum.latencies[0][4], sum.latencies[1][3]), (8, 8, 8));
    }
}
