//! Everything that is not in the slot table, again: by one scan of it.
//!
//! After a mount, when the table was read from the device, and after a take-over, when a
//! predecessor has left it. A kill in here leaves the table as it was.

use super::Store;
use super::buffer::{HOLD_BYTES, RECORD_BYTES, What, chunk_bytes, record_of};
use super::cost_of;
use super::part::make_empty;
use crate::backend::objects::arena::SEGMENT_BYTES;
use crate::backend::objects::entry::{Entry, Location, Meaning};
use crate::crash::{self, Point};
use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;
use swapfs_format::log::{MAX_PART_BYTES, PartHeader, PartKind};

/// Makes the derived state of a volume that a predecessor has left, and that nobody else uses.
///
/// # Errors
/// `InvalidData` if the table leads nowhere; what a system call answers.
pub(super) fn adopt(store: &Store) -> io::Result<()> {
    let arena = &store.arena;
    for (stream, sequence, segment, offset_bytes) in store.segments.cut_off() {
        empty_cut_off(store, sequence, segment, offset_bytes)?;
        store.segments.end_part(stream);
    }
    arena.begin_adoption()?;
    store.table.adopt_frames()?;
    crash::pass(Point::LogActivating);
    let live = arena.live_counts();
    count(store, |entry| {
        if let Some(object) = entry.as_object()
            && object.device_offset().is_none()
            && object.location >= RECORD_BYTES as Location
        {
            live.add(record_of(&object), chunk_bytes(object.len));
        }
    });
    // Chunks in the order in which their first records came.
    let mut chunks: Vec<(u64, u32)> = Vec::with_capacity(arena.touched_segments() as usize);
    for chunk in 0..arena.touched_segments() {
        if !arena.may_be_objects(chunk) {
            continue;
        }
        let start = Location::from(chunk) * SEGMENT_BYTES as Location;
        let mut first = None;
        let mut lives = arena.segment(chunk).1 > 0;
        store.buffer.walk(chunk, |found| {
            first.get_or_insert(found.sequence);
            let slot = u64::from(found.slot);
            let plain_lives = match found.what {
                What::Object(_) => return,
                What::SameFilled(word) => keep_word(store, slot, word),
                What::Discarded(count) => {
                    store.any_discarded(slot, u64::from(count), found.sequence)
                }
            };
            // It is counted out when its turn comes, whether it is needed then or not.
            live.add(found.location, found.size);
            lives |= plain_lives;
        });
        if let (Some(first), true) = (first, lives) {
            live.add(start, HOLD_BYTES);
            chunks.push((first, chunk));
        } else if first.is_some() {
            // Nothing of it is needed: it is free.
            arena.forget_live(chunk);
        }
    }
    arena.end_adoption();
    chunks.sort_unstable();
    for (_, chunk) in chunks {
        store.buffer.enqueue(chunk, Instant::now());
    }
    Ok(())
}

/// A part that the predecessor was writing may be there in half: an empty one takes its place, lest
/// it is believed when later parts are durable.
fn empty_cut_off(store: &Store, sequence: u64, segment: u32, offset_bytes: u32) -> io::Result<()> {
    let area = &store.segments.area;
    let rest = area.segment_bytes - u64::from(offset_bytes);
    let header = PartHeader {
        kind: PartKind::Data,
        owner: area.owner,
        sequence,
        filling: match offset_bytes {
            0 => sequence,
            _ => store.segments.filling(segment),
        },
        began_sequence: store.segments.stale(segment),
        durable_sequence: 0,
        segment,
        offset_bytes,
        part_bytes: rest.min(MAX_PART_BYTES as u64) as u32,
        record_count: 0,
        payload_offset_bytes: 0,
        payload_bytes: 0,
        payload_crc32: 0,
        next_segment: 0,
    };
    make_empty(store, &header).map_err(io::Error::from_raw_os_error)
}

/// A word in the buffer that is its slot's page counts as not written, whatever the entry says: a
/// flusher may have been killed in between.
fn keep_word(store: &Store, slot: u64, word: u64) -> bool {
    let Some(cell) = store.table.cell_of(slot) else { return false };
    let entry = Entry(cell.load(Ordering::Relaxed));
    let lives = matches!(entry.meaning(), Meaning::SameFilled(named) if named == word);
    if lives && let Some(buffered) = Entry::same_filled_at(word, 0) {
        cell.store(buffered.buffered().0, Ordering::Relaxed);
    }
    lives
}

/// Counts what the table says, and makes the lists of segments. `visit` sees each entry.
pub(super) fn count(store: &Store, mut visit: impl FnMut(Entry)) {
    let segments = &store.segments;
    segments.begin_count();
    store.counters.begin_count();
    let mut accounted = 0;
    store.table.for_each(0, store.table.slot_count(), |_, cell| {
        let entry = Entry(cell.load(Ordering::Relaxed));
        store.counters.found(entry);
        accounted += cost_of(entry);
        if let Some(object) = entry.as_object()
            && let Some(segment) = object.device_offset().and_then(|at| segments.segment_of(at))
        {
            segments.add_object(segment, object.len, entry.is_shared());
        }
        visit(entry);
    });
    store.accounted_bytes.store(accounted, Ordering::Relaxed);
    segments.end_count();
}
