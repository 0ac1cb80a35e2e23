//! Many durations in little memory: percentiles to within some three percent.

use serde::Serialize;

/// Each power of two is divided into so many parts.
const PARTS: u64 = 32;
const PART_BITS: u32 = PARTS.trailing_zeros();
const BUCKETS: usize = (64 - PART_BITS as usize + 1) * PARTS as usize;

/// How often each duration came, about.
#[derive(Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum_ns: u128,
    max_ns: u64,
}

/// What is shown of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// The arithmetic mean.
    pub mean_us: f64,
    /// The median.
    pub p50_us: f64,
    /// Nine of ten took no longer.
    pub p90_us: f64,
    /// 99 of 100 took no longer.
    pub p99_us: f64,
    /// 999 of 1000 took no longer.
    pub p999_us: f64,
    /// The longest one.
    pub max_us: f64,
}

impl Histogram {
    pub(super) fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], count: 0, sum_ns: 0, max_ns: 0 }
    }

    pub(super) fn add(&mut self, duration_ns: u64) {
        self.counts[bucket(duration_ns)] += 1;
        self.count += 1;
        self.sum_ns += u128::from(duration_ns);
        self.max_ns = self.max_ns.max(duration_ns);
    }

    /// `None` if there was nothing.
    pub(super) fn latency(&self) -> Option<Latency> {
        let us = |ns: u64| ns as f64 / 1000.0;
        (self.count > 0).then(|| Latency {
            mean_us: (self.sum_ns / u128::from(self.count)) as f64 / 1000.0,
            p50_us: us(self.quantile_ns(0.5)),
            p90_us: us(self.quantile_ns(0.9)),
            p99_us: us(self.quantile_ns(0.99)),
            p999_us: us(self.quantile_ns(0.999)),
            max_us: us(self.max_ns),
        })
    }

    fn quantile_ns(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_bound_ns(index).min(self.max_ns);
            }
        }
        self.max_ns
    }
}

/// Small numbers each for themselves, then [`PARTS`] buckets for each power of two.
fn bucket(value: u64) -> usize {
    if value < PARTS {
        return value as usize;
    }
    let shift = value.ilog2() - PART_BITS;
    (u64::from(shift) * PARTS + (value >> shift)) as usize
}

/// The largest value of a bucket.
fn upper_bound_ns(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * PARTS {
        return bucket;
    }
    let (shift, part) = (bucket / PARTS - 1, bucket % PARTS + PARTS);
    // The last bucket of all ends where the numbers do.
    ((u128::from(part + 1) << shift) - 1).min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        let values = (0..64).flat_map(|bit| {
            let power = 1u64 << bit;
            [power - 1, power, power + power / 3, power + (power - 1)]
        });
        for value in values.chain([u64::MAX]) {
            let index = bucket(value);
            assert!(index < BUCKETS, "{value}");
            assert!(upper_bound_ns(index) >= value, "{value}");
            assert!(index == 0 || upper_bound_ns(index - 1) < value, "{value}");
        }
    }

    #[test]
    fn percentiles_are_about_right() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.latency(), None);
        for ns in 1..=100_000 {
            histogram.add(ns);
        }
        let latency = histogram.latency().unwrap();
        let close = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.035;
        assert!(close(latency.p50_us, 50.0), "{latency:?}");
        assert!(close(latency.p90_us, 90.0), "{latency:?}");
        assert!(close(latency.p99_us, 99.0), "{latency:?}");
        assert!(close(latency.mean_us, 50.0), "{latency:?}");
        assert_eq!(latency.max_us, 100.0);
    }
}
