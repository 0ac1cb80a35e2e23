//! The compactor: what is left of sparse segments moves together, and they become free.
//!
//! A round marks the emptiest sealed segments as victims, as many as there is room to move what
//! lives in them, and then scans the slot table once: the table is the only thing that knows
//! where objects are, and a scan of it costs 8 bytes a slot where a page costs a thousand. So
//! objects need no way back to their slots, and one that several slots share is moved like any
//! other. Victims that are empty afterwards are free. Nothing here allocates memory: a write can
//! be waiting for it.

use super::arena::{COMPACTOR_SEGMENTS, Role, SEGMENT_BYTES, State};
use super::counters::Field;
use super::entry::Entry;
use super::pool::{OpenSegment, Purpose};
use super::{LOOK, Store};
use crate::crash::{self, Point};
use crate::sys::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// A round is due when this part of the memory in use could be had back (a write that is waiting
/// makes it due at once). Moving costs more the smaller this is: at an eighth, an object moves a
/// few times in its life.
const DUE_PART: u64 = 8;
/// The same while nobody writes: then it costs nobody anything.
const IDLE_DUE_PART: u64 = 32;
/// And when it is at least so much.
const DUE_SEGMENTS: u64 = 4;
/// Segments are sorted by how much lives in them into so many classes.
const CLASSES: usize = 64;
/// Segments fuller than this are left alone.
const SPARSE_BYTES: usize = SEGMENT_BYTES / 16 * 15;

/// Segments that a round fills at most.
const DESTINATIONS: usize = 16;

pub(super) fn run(store: &Store) {
    // It takes none of the kernel's memory, and as a real-time task it would keep the kernel's
    // threads on the way of a read from the processors.
    process::stay_ordinary();
    let mut open = OpenSegment::with_ready(DESTINATIONS);
    let mut changes_before = 0;
    // Nothing was due when last nothing had changed.
    let mut at_rest = false;
    let mut rounds_in_vain = 0;
    if !store.wait_until_active() {
        return;
    }
    while !store.stop.load(Ordering::Relaxed) {
        let urgent = store.pool.arena.take_urgent();
        let changes = store.pool.arena.changes();
        let idle = changes == changes_before;
        changes_before = changes;
        if idle && at_rest && !urgent {
            store.pool.arena.wait_for_work(Role::Compactor, LOOK);
            continue;
        }
        let due = is_due(store, urgent, if idle { IDLE_DUE_PART } else { DUE_PART });
        at_rest = idle && !due;
        let gained = due && round(store, &mut open) > 0;
        rounds_in_vain = if gained || !due { 0 } else { rounds_in_vain + 1 };
        if !gained {
            // A write that waits shall not make this thread spin. A round can gain nothing and
            // still bring the next one closer to it.
            if urgent && (!due || rounds_in_vain > 1) {
                store.pool.arena.say_no_gain();
            }
            store.pool.arena.wait_for_work(Role::Compactor, LOOK);
        }
    }
    store.pool.close(&mut open);
}

/// Sparse sealed segments by class: how many, and what lives in them.
fn survey(store: &Store) -> [(u64, u64); CLASSES] {
    let mut classes = [(0, 0); CLASSES];
    let arena = &store.pool.arena;
    for segment in 0..arena.touched_segments() {
        let (state, live) = arena.segment(segment);
        if state == State::Sealed && (live as usize) < SPARSE_BYTES {
            let class = &mut classes[live as usize * CLASSES / SEGMENT_BYTES];
            class.0 += 1;
            class.1 += u64::from(live);
        }
    }
    classes
}

fn is_due(store: &Store, urgent: bool, part: u64) -> bool {
    let (segments, live) =
        survey(store).iter().fold((0, 0), |sum, class| (sum.0 + class.0, sum.1 + class.1));
    let gain = segments.saturating_sub(live.div_ceil(SEGMENT_BYTES as u64));
    let used = u64::from(store.pool.arena.used_segments());
    gain >= DUE_SEGMENTS.max(used / part) || urgent && gain > 0
}

/// One round; answers how many segments became free, less those that it took.
///
/// What it moves surely fits into the segments that it takes beforehand. A round that ran out of
/// room half way would have emptied next to none of its victims, since objects are met in the
/// order of their slots: it would have used up room and gained nothing.
pub(super) fn round(store: &Store, open: &mut OpenSegment) -> u64 {
    let arena = &store.pool.arena;
    let mut taken = 0;
    while taken < DESTINATIONS {
        let Some(segment) = arena.take_for_move(COMPACTOR_SEGMENTS.saturating_sub(taken)) else {
            break;
        };
        open.add_ready(segment);
        taken += 1;
    }
    choose_victims(store, open.room_bytes());
    store.table.for_each(0, store.table.slot_count(), |slot, cell| {
        let entry = Entry(cell.load(Ordering::Acquire));
        if let Some(object) = entry.as_object()
            && arena.may_hold(object.location)
            && arena.state_at(object.location) == State::Victim
        {
            move_object(store, open, slot, cell);
        }
    });
    let mut freed = 0;
    for segment in 0..arena.touched_segments() {
        if arena.segment(segment).0 == State::Victim && arena.end_victim(segment) {
            freed += 1;
        }
    }
    while let Some(unused) = open.take_unused() {
        arena.seal(unused);
        taken -= 1;
    }
    store.counters.add(Field::CompactedSegments, freed);
    (freed as u64).saturating_sub(taken as u64)
}

/// Makes the emptiest sealed segments victims, of which no more than `room_bytes` live.
fn choose_victims(store: &Store, mut room_bytes: u64) {
    let arena = &store.pool.arena;
    let classes = survey(store);
    let mut whole_classes = 0;
    for (_, live) in classes {
        if live > room_bytes {
            break;
        }
        room_bytes -= live;
        whole_classes += 1;
    }
    // The first class that does not fit whole gives as many of its segments as fit.
    for segment in 0..arena.touched_segments() {
        let (state, live) = arena.segment(segment);
        if state != State::Sealed || live as usize >= SPARSE_BYTES {
            continue;
        }
        let class = live as usize * CLASSES / SEGMENT_BYTES;
        let fits = class < whole_classes || class == whole_classes && u64::from(live) <= room_bytes;
        if fits && arena.make_victim(segment) && class == whole_classes {
            room_bytes -= u64::from(live);
        }
    }
}

/// Moves the object of one slot to a segment of the compactor's.
fn move_object(store: &Store, open: &mut OpenSegment, slot: u64, cell: &AtomicU64) {
    let alone = store.slots.of(slot).write();
    let entry = Entry(cell.load(Ordering::Acquire));
    let Some(object) = entry.as_object() else { return };
    let arena = &store.pool.arena;
    if !arena.may_hold(object.location) || arena.state_at(object.location) != State::Victim {
        return;
    }
    // Its checksum goes with it, right or not: what was damaged stays so, and is found.
    let Some((bytes, checksum)) = store.pool.unchecked(&object) else { return };
    let moved = store.place(open, Purpose::Compact, object.encoding, checksum, bytes);
    let Some(moved) = moved else { return };
    crash::pass(Point::ZmemMoved);
    let new = store.with_copy_of(moved.with_history_of(entry), entry);
    // The age may have changed since: that is no loss.
    cell.store(new.0, Ordering::Release);
    drop(alone);
    crash::pass(Point::ZmemMovePublished);
    store.release(slot, entry);
    store.counters.add(Field::Compacted, 1);
}
