//! Counters in a few shards, each in cache lines of its own, so that threads that write do not take
//! turns for one line; they are summed when they are asked for.

use super::seat;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};

const SHARDS: usize = 8;

#[derive(Debug)]
#[repr(align(128))]
struct Shard<const N: usize>([AtomicI64; N]);

/// `N` counters.
#[derive(Debug)]
pub(in crate::backend) struct Counts<const N: usize>(Box<[Shard<N>]>);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Counts<N> {
        let shard = |_| Shard(std::array::from_fn(|_| AtomicI64::new(0)));
        Counts((0..SHARDS).map(shard).collect())
    }
}

impl<const N: usize> Counts<N> {
    /// Adds to counter `index`, in this thread's shard.
    pub(in crate::backend) fn add(&self, index: usize, by: i64) {
        self.0[seat() % SHARDS].0[index].fetch_add(by, Ordering::Relaxed);
    }

    /// The sum over all shards. While threads count, it may be a few off.
    pub(in crate::backend) fn sum(&self, index: usize) -> u64 {
        let sum: i64 = self.0.iter().map(|shard| shard.0[index].load(Ordering::Relaxed)).sum();
        sum.max(0) as u64
    }

    /// Makes some counters zero.
    pub(in crate::backend) fn clear(&self, indices: Range<usize>) {
        for shard in &self.0 {
            shard.0[indices.clone()].iter().for_each(|count| count.store(0, Ordering::Relaxed));
        }
    }
}
