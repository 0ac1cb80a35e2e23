//! The derived state counted in another way: with maps, and nothing of what is tested.

use super::super::Store;
use super::super::arena::segment_of;
use super::super::entry::{Entry, Location, Meaning};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use swapfs_format::PAGE_LEN;

/// What a scan of the table shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Derived {
    /// Bytes that live in each segment that holds objects.
    pub(super) live_bytes: HashMap<u32, u32>,
    /// How many entries name each object.
    pub(super) entries: HashMap<Location, u32>,
    /// Pages of the table, and the segments that they lie in.
    pub(super) table_frames: u64,
    pub(super) table_segments: Vec<u32>,
    /// Encoded bytes of all slots.
    pub(super) encoded_bytes: u64,
    /// Slots that hold a page, and those that are same-filled.
    pub(super) pages: u64,
    pub(super) same_pages: u64,
}

/// Scans the table of a volume that nobody writes to.
pub(super) fn scan(store: &Store) -> Derived {
    let mut derived = Derived::default();
    store.table.for_each(0, store.table.slot_count(), |_, cell| {
        derived.pages += 1;
        match Entry(cell.load(Ordering::Acquire)).meaning() {
            Meaning::Object(object) => {
                derived.encoded_bytes += object.len as u64;
                let entries = derived.entries.entry(object.location).or_insert(0);
                *entries += 1;
                if *entries == 1 {
                    *derived.live_bytes.entry(segment_of(object.location)).or_insert(0) +=
                        object.stored_bytes();
                }
            }
            Meaning::SameFilled(_) | Meaning::SameFilledBeside(_) => derived.same_pages += 1,
            Meaning::Absent | Meaning::Discarded(_) | Meaning::Discarding(_) | Meaning::Damaged => {
            }
        }
    });
    store.table.for_each_frame(|frame| {
        derived.table_segments.push(segment_of(u64::from(frame) * PAGE_LEN as u64));
        derived.table_frames += 1;
        true
    });
    derived.table_segments.sort_unstable();
    derived.table_segments.dedup();
    derived
}
