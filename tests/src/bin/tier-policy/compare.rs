//! Every policy on every trace, with rooms of several sizes.

use crate::others::{AnyPage, Optimum, Order, Queued};
use crate::replay::{Outcome, Room, TopTier, replay};
use crate::slots::SlotTable;
use crate::trace::Trace;
use serde::Serialize;
use swapfs_format::member::Promote;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Policy {
    /// Belady's, in all of the room.
    Optimum,
    /// The tier's, `promote=always`.
    Always,
    /// The tier's, `promote=second`.
    Second,
    /// Exact LRU between the same watermarks.
    Lru,
    /// Exact LRU in all of the room: no watermarks, a page goes for each that comes.
    LruFull,
    /// The order of writing, where what was read goes round once more.
    Clock,
    /// The order of writing.
    Fifo,
    /// Any page goes.
    Random,
}

impl Policy {
    pub(crate) const ALL: [Policy; 8] = [
        Policy::Optimum,
        Policy::Always,
        Policy::Second,
        Policy::Lru,
        Policy::LruFull,
        Policy::Clock,
        Policy::Fifo,
        Policy::Random,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Policy::Optimum => "optimum",
            Policy::Always => "always",
            Policy::Second => "second",
            Policy::Lru => "LRU",
            Policy::LruFull => "LRU full",
            Policy::Clock => "clock",
            Policy::Fifo => "FIFO",
            Policy::Random => "random",
        }
    }

    pub(crate) fn run(self, trace: &Trace, pages: u32, watermarks: Watermarks) -> Outcome {
        let marks = Room::new(pages, watermarks.high_percent, watermarks.low_percent);
        let full = Room::new(pages, 100, 100);
        let slots = trace.slots;
        let mut tier: Box<dyn TopTier> = match self {
            Policy::Optimum => Box::new(Optimum::new(slots, &trace.ops, full)),
            Policy::Always => Box::new(SlotTable::new(Promote::Always, slots, marks)),
            Policy::Second => Box::new(SlotTable::new(Promote::Second, slots, marks)),
            Policy::Lru => Box::new(Queued::new(Order::Touched, slots, marks)),
            Policy::LruFull => Box::new(Queued::new(Order::Touched, slots, full)),
            Policy::Clock => Box::new(Queued::new(Order::WrittenSecondChance, slots, marks)),
            Policy::Fifo => Box::new(Queued::new(Order::Written, slots, marks)),
            Policy::Random => Box::new(AnyPage::new(slots, marks)),
        };
        replay(trace, tier.as_mut())
    }
}

/// In per cent of the room.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Watermarks {
    pub(crate) high_percent: u32,
    pub(crate) low_percent: u32,
}

/// One trace with one room.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) trace: String,
    /// The room, in per cent of the slots that the trace uses, and in pages.
    pub(crate) room_percent: u32,
    pub(crate) room_pages: u32,
    pub(crate) results: Vec<PolicyResult>,
}

/// What one policy did there. Rates and ratios are of reads, 0 to 1.
#[derive(Debug, Serialize)]
pub(crate) struct PolicyResult {
    pub(crate) policy: Policy,
    pub(crate) read_hit_rate: f64,
    /// Of reads and overwrites.
    pub(crate) hit_rate: f64,
    pub(crate) ratio_to_lru: f64,
    pub(crate) ratio_to_lru_full: f64,
    pub(crate) ratio_to_optimum: f64,
    pub(crate) outcome: Outcome,
}

impl Row {
    pub(crate) fn of(&self, policy: Policy) -> Option<&PolicyResult> {
        self.results.iter().find(|result| result.policy == policy)
    }
}

/// Where the other has no hit either, nothing is lost.
fn ratio(rate: f64, other: f64) -> f64 {
    if other > 0.0 { rate / other } else { 1.0 }
}

/// One row for each of the rooms.
pub(crate) fn compare(trace: &Trace, room_percents: &[u32], watermarks: Watermarks) -> Vec<Row> {
    let row = |&room_percent: &u32| {
        let room_pages =
            (u64::from(trace.used_slots) * u64::from(room_percent) / 100).max(1) as u32;
        let outcomes = Policy::ALL.map(|policy| policy.run(trace, room_pages, watermarks));
        let rate = |policy: Policy| outcomes[policy as usize].read_hit_rate();
        let result = |policy: Policy| {
            let outcome = outcomes[policy as usize];
            let read_hit_rate = outcome.read_hit_rate();
            PolicyResult {
                policy,
                read_hit_rate,
                hit_rate: outcome.hit_rate(),
                ratio_to_lru: ratio(read_hit_rate, rate(Policy::Lru)),
                ratio_to_lru_full: ratio(read_hit_rate, rate(Policy::LruFull)),
                ratio_to_optimum: ratio(read_hit_rate, rate(Policy::Optimum)),
                outcome,
            }
        };
        let results = Policy::ALL.into_iter().map(result).collect();
        Row { trace: trace.name.clone(), room_percent, room_pages, results }
    };
    room_percents.iter().map(row).collect()
}
