//! The tier's own policy, over entries that lie in the order of the slots, as in its table. What
//! is decided is decided by the back end's code.

use crate::replay::{Room, TopTier, Work};
use crate::trace::{Kind, Op};
use swapfs_format::member::Promote;
use swapfsd::backend::tier::policy::{
    AGE_OF_NEW, AGE_OF_SEEN, AGE_OF_TOUCHED, Judge, OnRead, SWEEP_ROUNDS, Visit, VisitBelow,
    age_of_promoted, at_hand, at_hand_below,
};

/// Eight bytes a slot, of which the policy knows five bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

const ABSENT: Entry = Entry(0);
const TOP: u64 = 1;
const BELOW: u64 = 2;
const TIER_MASK: u64 = 3;
const AGE_SHIFT: u32 = 3;
const SEEN: u64 = 1 << 5;

impl Entry {
    fn new(tier: u64, age: u64) -> Entry {
        Entry(tier | age << AGE_SHIFT)
    }

    fn is_top(self) -> bool {
        self.0 & TIER_MASK == TOP
    }

    fn is_below(self) -> bool {
        self.0 & TIER_MASK == BELOW
    }

    fn age(self) -> u64 {
        self.0 >> AGE_SHIFT & 3
    }

    fn was_seen(self) -> bool {
        self.0 & SEEN != 0
    }

    fn older(self) -> Entry {
        Entry(self.0 + (1 << AGE_SHIFT))
    }
}

/// The slot table, the hand, and what was learned.
pub(crate) struct SlotTable {
    promote: Promote,
    room: Room,
    entries: Vec<Entry>,
    hand: usize,
    top_pages: u32,
    judge: Judge,
    work: Work,
}

impl SlotTable {
    pub(crate) fn new(promote: Promote, slots: u32, room: Room) -> SlotTable {
        SlotTable {
            promote,
            room,
            entries: vec![ABSENT; slots as usize],
            hand: 0,
            top_pages: 0,
            judge: Judge::new(),
            work: Work::default(),
        }
    }

    fn come(&mut self, slot: usize, age: u64) {
        self.entries[slot] = Entry::new(TOP, age);
        self.top_pages += 1;
        if self.top_pages > self.room.high_pages {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        for _ in 0..SWEEP_ROUNDS * self.entries.len() as u64 {
            if self.top_pages <= self.room.low_pages {
                return;
            }
            self.visit();
            self.hand = (self.hand + 1) % self.entries.len();
        }
    }

    fn visit(&mut self) {
        self.work.looked_entries += 1;
        let entry = &mut self.entries[self.hand];
        if entry.is_top() {
            match at_hand(entry.age()) {
                Visit::Older => *entry = entry.older(),
                Visit::Take => {
                    *entry = Entry::new(BELOW, AGE_OF_NEW);
                    self.top_pages -= 1;
                    self.work.demoted_pages += 1;
                }
            }
        } else if entry.is_below() {
            match at_hand_below(entry.was_seen(), entry.age()) {
                VisitBelow::Leave => {}
                VisitBelow::Older => *entry = entry.older(),
                VisitBelow::Forget => {
                    *entry = Entry(entry.0 & !SEEN);
                    self.judge.forgot();
                }
            }
        }
    }

    fn read_below(&mut self, slot: usize) {
        let was_seen = self.entries[slot].was_seen();
        let has_room = self.top_pages < self.room.low_pages;
        match self.judge.on_read_below(self.promote, slot as u64, was_seen, has_room) {
            OnRead::Promote => {
                self.work.promoted_pages += 1;
                self.come(slot, age_of_promoted(was_seen));
            }
            OnRead::MarkSeen => {
                self.entries[slot] = Entry(Entry::new(BELOW, AGE_OF_SEEN).0 | SEEN);
            }
            OnRead::Nothing => {}
        }
    }
}

impl TopTier for SlotTable {
    fn apply(&mut self, _at: usize, op: Op) -> bool {
        let slot = op.slot as usize;
        let is_hit = self.entries[slot].is_top();
        match op.kind {
            Kind::Discard => {
                self.top_pages -= u32::from(is_hit);
                self.entries[slot] = ABSENT;
            }
            _ if is_hit => self.entries[slot] = Entry::new(TOP, AGE_OF_TOUCHED),
            Kind::Write => self.come(slot, AGE_OF_NEW),
            Kind::Read => self.read_below(slot),
        }
        is_hit
    }

    fn work(&self) -> Work {
        self.work
    }
}
