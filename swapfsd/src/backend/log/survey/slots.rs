//! The newest record of each slot: 16 bytes a slot, which the system gives when they are used.

use super::super::scan::LogArea;
use super::Totals;
use swapfs_format::log::{Content, PartHeader, Record};

const KIND_SHIFT: u32 = 61;
const PLACE_MASK: u64 = (1 << KIND_SHIFT) - 1;
const OBJECT: u64 = 1 << KIND_SHIFT;
const SAME_FILLED: u64 = 2 << KIND_SHIFT;
const DISCARDED: u64 = 3 << KIND_SHIFT;

/// What a record says, and where: the byte of the data section at which its object starts, or its
/// part, if it has none. Never 0, since every kind has a bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location(u64);

impl Location {
    pub(super) fn of(record: &Record, header: &PartHeader, area: &LogArea) -> Location {
        let segment = u64::from(header.segment) * area.segment_bytes;
        let part = segment + u64::from(header.offset_bytes);
        Location(match record.content {
            Content::Object { offset, .. } => OBJECT | (segment + u64::from(offset)),
            Content::SameFilled(_) => SAME_FILLED | part,
            Content::Discarded(_) => DISCARDED | part,
        })
    }
}

/// All slots.
pub(super) struct Slots {
    sequences: Vec<u64>,
    /// [`Location`]s; 0: no record.
    locations: Vec<u64>,
    newest_sequence: u64,
}

impl Slots {
    pub(super) fn new(slot_count: u64) -> Slots {
        let zeros = || vec![0; slot_count as usize];
        Slots { sequences: zeros(), locations: zeros(), newest_sequence: 0 }
    }

    /// The greatest sequence of all records.
    pub(super) fn newest_sequence(&self) -> u64 {
        self.newest_sequence
    }

    /// The volume has all slots that the record names.
    pub(super) fn has_place_for(&self, record: &Record) -> bool {
        let count = match record.content {
            Content::Discarded(count) => u64::from(count),
            _ => 1,
        };
        u64::from(record.slot) + count <= self.sequences.len() as u64
    }

    fn range(&self, record: &Record) -> std::ops::Range<usize> {
        let start = record.slot as usize;
        let count = match record.content {
            Content::Discarded(count) => count as usize,
            _ => 1,
        };
        start.min(self.sequences.len())..(start + count).min(self.sequences.len())
    }

    /// The slots that would hold something else if this record counted.
    pub(super) fn beaten(&self, record: &Record) -> impl Iterator<Item = u32> + use<'_> {
        let sequence = record.sequence;
        let discard = matches!(record.content, Content::Discarded(_));
        let changes = move |slot: &usize| match self.locations[*slot] {
            0 => !discard,
            now => self.sequences[*slot] < sequence && !(discard && now & !PLACE_MASK == DISCARDED),
        };
        self.range(record).filter(changes).map(|slot| slot as u32)
    }

    /// Takes a record in. Garbage collection copies objects with the sequence that they have: of
    /// two such the one in the newer part counts, which `is_older` tells of a place.
    pub(super) fn take_in(
        &mut self,
        record: &Record,
        location: &Location,
        is_older: impl Fn(u64) -> bool,
    ) {
        self.newest_sequence = self.newest_sequence.max(record.sequence);
        for slot in self.range(record) {
            let (sequence, now) = (self.sequences[slot], self.locations[slot]);
            let wins = now == 0
                || sequence < record.sequence
                || sequence == record.sequence && is_older(now & PLACE_MASK);
            if wins {
                self.sequences[slot] = record.sequence;
                self.locations[slot] = location.0;
            }
        }
    }

    /// The record is the newest one of its slot, or of one of its slots.
    pub(super) fn is_newest(&self, record: &Record, location: &Location) -> bool {
        self.range(record).any(|slot| {
            self.sequences[slot] == record.sequence && self.locations[slot] == location.0
        })
    }

    /// Where in the data section the slot's object starts, if it has one.
    pub(super) fn object_place(&self, slot: usize) -> Option<u64> {
        let location = *self.locations.get(slot)?;
        (location & !PLACE_MASK == OBJECT).then_some(location & PLACE_MASK)
    }

    pub(super) fn count(&self, totals: &mut Totals) {
        for location in &self.locations {
            match location & !PLACE_MASK {
                OBJECT => totals.object_slots += 1,
                SAME_FILLED => totals.same_filled_slots += 1,
                DISCARDED => totals.discarded_slots += 1,
                _ => {}
            }
        }
    }
}
