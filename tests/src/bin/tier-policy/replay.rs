//! A trace goes through a policy.

use crate::trace::{Kind, Op, Trace};
use serde::Serialize;

/// How many pages the top tier has room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Above this, pages go down ...
    pub(crate) high_pages: u32,
    /// ... until so many are left.
    pub(crate) low_pages: u32,
}

impl Room {
    pub(crate) fn new(pages: u32, high_percent: u32, low_percent: u32) -> Room {
        let part = |percent| (u64::from(pages) * u64::from(percent) / 100).max(1) as u32;
        Room { high_pages: part(high_percent), low_pages: part(low_percent) }
    }
}

/// A policy at work.
pub(crate) trait TopTier {
    /// The operation of number `at`. Was the page in the top tier?
    fn apply(&mut self, at: usize, op: Op) -> bool;

    /// Entries that a hand looked at, and pages that went down.
    fn work(&self) -> Work {
        Work::default()
    }
}

/// What a sweep costs.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Work {
    /// Entries that the hand looked at.
    pub(crate) looked_entries: u64,
    /// Pages that went down.
    pub(crate) demoted_pages: u64,
    /// Pages that came up.
    pub(crate) promoted_pages: u64,
}

impl Work {
    /// Entries that were looked at for each page that went down.
    pub(crate) fn looked(&self) -> f64 {
        self.looked_entries as f64 / self.demoted_pages.max(1) as f64
    }
}

/// What came of it, after the warm-up.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Outcome {
    pub(crate) reads: u64,
    pub(crate) read_hits: u64,
    pub(crate) writes: u64,
    pub(crate) write_hits: u64,
    /// Of the whole replay, with the warm-up.
    pub(crate) work: Work,
}

impl Outcome {
    /// Reads that found their page in the top tier, 0 to 1.
    pub(crate) fn read_hit_rate(&self) -> f64 {
        self.read_hits as f64 / self.reads.max(1) as f64
    }

    /// The same of reads and writes.
    pub(crate) fn hit_rate(&self) -> f64 {
        (self.read_hits + self.write_hits) as f64 / (self.reads + self.writes).max(1) as f64
    }
}

pub(crate) fn replay(trace: &Trace, tier: &mut dyn TopTier) -> Outcome {
    let mut outcome = Outcome::default();
    for (at, &op) in trace.ops.iter().enumerate() {
        let hit = u64::from(tier.apply(at, op));
        if at < trace.warm_up {
            continue;
        }
        match op.kind {
            Kind::Read => {
                outcome.reads += 1;
                outcome.read_hits += hit;
            }
            Kind::Write => {
                outcome.writes += 1;
                outcome.write_hits += hit;
            }
            Kind::Discard => {}
        }
    }
    outcome.work = tier.work();
    outcome
}
