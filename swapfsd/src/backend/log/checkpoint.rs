//! The table of a clean stop, and the anchors that say whether there is one.
//!
//! A mount writes an anchor that says `in use` before it writes anything else, so a checkpoint
//! counts only as long as nothing has happened since.

use super::Store;
use super::recover::set_entry;
use super::segments::{NOTHING_STALE, State};
use crate::backend::objects::entry::{DEVICE_START, Entry, Object};
use crate::buffer::{BufferPool, LARGE_BYTES};
use std::io;
use std::sync::atomic::Ordering;
use swapfs_format::PAGE_LEN;
use swapfs_format::log::{
    ANCHOR_OFFSETS_BYTES, Anchor, AnchorState, CHECKPOINT_LEAF_LEN, CHECKPOINT_LEAF_SLOTS,
    CHECKPOINT_SEGMENT_LEAVES, MAX_PART_BYTES, PartHeader, PartKind, payload_offset_for,
};

const LEAF_SLOTS: u64 = CHECKPOINT_LEAF_SLOTS as u64;
const FREE: u64 = 1 << 63;

/// Both anchors, as far as they are this volume's.
///
/// # Errors
/// The errno of a read that failed.
pub(super) fn read_anchors(store: &Store) -> Result<[Option<Anchor>; 2], i32> {
    let area = &store.segments.area;
    let mut buffer = store.buffers.take(PAGE_LEN);
    let mut anchors = [None; 2];
    for (anchor, offset) in anchors.iter_mut().zip(ANCHOR_OFFSETS_BYTES) {
        store.device.read_at(&mut buffer, area.data_offset_bytes + offset)?;
        let found = Anchor::decode(&buffer, &area.owner);
        *anchor = found.filter(|anchor| anchor.segment_bytes == area.segment_bytes);
    }
    Ok(anchors)
}

/// Writes the next anchor, to the place of the older one.
fn write_anchor(store: &Store, state: AnchorState) -> Result<(), i32> {
    let area = &store.segments.area;
    let generation = store.segments.anchor_generation().fetch_add(1, Ordering::Relaxed) + 1;
    let anchor = Anchor {
        owner: area.owner,
        generation,
        segment_bytes: area.segment_bytes,
        next_sequence: store.segments.last_part() + 1,
        next_write_sequence: store.segments.last_write() + 1,
        state,
    };
    let mut buffer = store.buffers.take(PAGE_LEN);
    buffer.copy_from_slice(&anchor.encode());
    let place = ANCHOR_OFFSETS_BYTES[(generation % 2) as usize];
    store.device.write_at(&buffer, area.data_offset_bytes + place)?;
    store.device.flush()
}

/// The volume is mounted: what a checkpoint says does not count from now on.
///
/// # Errors
/// If the device can't be written.
pub(super) fn say_in_use(store: &Store) -> io::Result<()> {
    write_anchor(store, AnchorState::InUse).map_err(io::Error::from_raw_os_error)
}

/// Leaves of the checkpoint: of the table, and of the segments.
fn leaf_numbers(store: &Store) -> impl Iterator<Item = u64> + '_ {
    let leaves = store.table.slot_count().div_ceil(LEAF_SLOTS);
    let segments = u64::from(store.segments.area.segment_count).div_ceil(LEAF_SLOTS);
    let used = (0..leaves).filter(|leaf| store.table.cell_of(leaf * LEAF_SLOTS).is_some());
    used.chain((0..segments).map(|leaf| CHECKPOINT_SEGMENT_LEAVES + leaf))
}

fn fill_leaf(store: &Store, number: u64, block: &mut [u8], written: &[u32]) {
    let (head, words) = block.split_at_mut(8);
    head.copy_from_slice(&number.to_le_bytes());
    for (index, word) in (0..).zip(words.chunks_exact_mut(8)) {
        let value = match number.checked_sub(CHECKPOINT_SEGMENT_LEAVES) {
            None => {
                let slot = number * LEAF_SLOTS + index;
                let inside = slot < store.table.slot_count();
                portable(if inside { store.entry(slot) } else { Entry::ABSENT })
            }
            Some(leaf) => segment_word(store, leaf * LEAF_SLOTS + index, written),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// An entry with its place counted from the start of the data section.
fn portable(entry: Entry) -> u64 {
    match entry.as_object() {
        Some(mut object) => match object.device_offset() {
            Some(offset) => {
                object.location = offset;
                same_kind(entry, object).0
            }
            // Everything was written out before.
            None => Entry::ABSENT.0,
        },
        None if entry.is_unknown_discard() => Entry::ABSENT.0,
        None => entry.0,
    }
}

/// An entry for `object`, shared like `entry`.
fn same_kind(entry: Entry, object: Object) -> Entry {
    if entry.is_shared() { Entry::shared_object(object) } else { Entry::object(object) }
}

fn segment_word(store: &Store, segment: u64, written: &[u32]) -> u64 {
    let Some(segment) = u32::try_from(segment).ok() else { return FREE };
    if !store.segments.area.segments().contains(&segment) {
        return FREE;
    }
    let free = store.segments.segment(segment).0 == State::Free || written.contains(&segment);
    let stale = store.segments.stale(segment).min(NOTHING_STALE);
    stale | if free { FREE } else { 0 }
}

/// Writes the table and an anchor that says where it is. Nothing else runs, and everything that was
/// buffered is on the device. If there is no room for it, the next mount reads all segments.
///
/// # Errors
/// The errno of a write that failed: the next mount reads all segments.
pub(super) fn write(store: &Store) -> Result<(), i32> {
    let area = &store.segments.area;
    let part_bytes = area.segment_bytes.min(MAX_PART_BYTES as u64) as usize;
    let head = payload_offset_for(0);
    let leaves_per_part = (part_bytes - head) / CHECKPOINT_LEAF_LEN;
    let parts_per_segment = (area.segment_bytes as usize / part_bytes) as u64;
    let leaves = leaf_numbers(store).count();
    let parts = leaves.div_ceil(leaves_per_part) as u64;
    let mut segments = Vec::new();
    while (segments.len() as u64) < parts.div_ceil(parts_per_segment) {
        let Some(segment) = store.segments.take(0) else {
            log::info!("no room for a checkpoint: the next mount reads all segments");
            return Ok(());
        };
        segments.push(segment);
    }
    let memory = BufferPool::new(0, 1).map_err(|_| libc::ENOMEM)?;
    let mut buffer = memory.take(LARGE_BYTES);
    let mut numbers = leaf_numbers(store);
    let first_sequence = store.segments.last_part() + 1;
    let mut filling = 0;
    for part in 0..parts {
        let bytes = &mut buffer[..part_bytes];
        bytes.fill(0);
        let mut used = 0;
        for number in numbers.by_ref().take(leaves_per_part) {
            let block = &mut bytes[head + used..][..CHECKPOINT_LEAF_LEN];
            fill_leaf(store, number, block, &segments);
            used += CHECKPOINT_LEAF_LEN;
        }
        let at = (part / parts_per_segment) as usize;
        let offset_bytes = (part % parts_per_segment) as u32 * part_bytes as u32;
        let sequence = store.segments.begin_part(0, segments[at], offset_bytes);
        store.segments.end_part(0);
        if part % parts_per_segment == 0 {
            filling = sequence;
        }
        let header = PartHeader {
            kind: PartKind::Checkpoint,
            owner: area.owner,
            sequence,
            filling,
            began_sequence: store.segments.last_write(),
            durable_sequence: first_sequence - 1,
            segment: segments[at],
            offset_bytes,
            part_bytes: part_bytes as u32,
            record_count: 0,
            payload_offset_bytes: head as u32,
            payload_bytes: used as u32,
            payload_crc32: crc32fast::hash(&bytes[head..head + used]),
            next_segment: segments.get(at + 1).copied().unwrap_or(0),
        };
        header.write_to(bytes);
        let offset = area.offset_of(header.segment, u64::from(header.offset_bytes));
        store.device.write_at(bytes, offset)?;
    }
    store.device.flush()?;
    let checkpoint_segment = segments.first().copied().unwrap_or(0);
    write_anchor(
        store,
        AnchorState::Clean {
            checkpoint_segment,
            checkpoint_parts: parts as u32,
            checkpoint_sequence: first_sequence,
        },
    )
}

/// Fills the table from a checkpoint.
///
/// # Errors
/// In words, why it can't be believed; the table may be half full then.
pub(super) fn load(store: &Store, anchor: &Anchor) -> Result<(), String> {
    let AnchorState::Clean { checkpoint_segment, checkpoint_parts, checkpoint_sequence } =
        anchor.state
    else {
        return Err("there is none".to_owned());
    };
    let area = &store.segments.area;
    let memory = BufferPool::new(0, 1).map_err(|error| error.to_string())?;
    let mut buffer = memory.take(LARGE_BYTES);
    let (mut segment, mut offset) = (checkpoint_segment, 0u32);
    for part in 0..checkpoint_parts {
        if !area.segments().contains(&segment) {
            return Err(format!("it names segment {segment}"));
        }
        let rest = area.segment_bytes - u64::from(offset);
        let bytes = &mut buffer[..rest.min(MAX_PART_BYTES as u64) as usize];
        let read = store.device.read_at(bytes, area.offset_of(segment, u64::from(offset)));
        read.map_err(|errno| io::Error::from_raw_os_error(errno).to_string())?;
        let header = PartHeader::decode(bytes, &area.owner, segment, offset, area.segment_bytes)
            .map_err(|error| format!("part {part}: {error}"))?;
        let start = header.payload_offset_bytes as usize;
        let payload = &bytes[start..start + header.payload_bytes as usize];
        let expected = checkpoint_sequence + u64::from(part);
        if header.kind != PartKind::Checkpoint
            || header.sequence != expected
            || crc32fast::hash(payload) != header.payload_crc32
        {
            return Err(format!("part {part} is not what was written"));
        }
        for block in payload.chunks_exact(CHECKPOINT_LEAF_LEN) {
            load_leaf(store, block).map_err(|error| error.to_string())?;
        }
        offset += header.part_bytes;
        if u64::from(offset) >= area.segment_bytes {
            (segment, offset) = (header.next_segment, 0);
        }
    }
    store
        .segments
        .set_sequences(anchor.next_write_sequence.max(1) - 1, anchor.next_sequence.max(1) - 1);
    Ok(())
}

fn load_leaf(store: &Store, block: &[u8]) -> io::Result<()> {
    let (words, _) = block.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
    let number = words.next().unwrap_or(0);
    for (index, word) in (0..).zip(words) {
        match number.checked_sub(CHECKPOINT_SEGMENT_LEAVES) {
            None => {
                let slot = number * LEAF_SLOTS + index;
                if slot < store.table.slot_count() {
                    let entry = match Entry(word).as_object() {
                        Some(mut object) if object.device_offset().is_none() => {
                            object.location += DEVICE_START;
                            same_kind(Entry(word), object)
                        }
                        _ => Entry(word),
                    };
                    set_entry(store, slot, entry)?;
                }
            }
            Some(leaf) => {
                let segment = u32::try_from(leaf * LEAF_SLOTS + index).unwrap_or(0);
                if store.segments.area.segments().contains(&segment) {
                    let state = if word & FREE != 0 { State::Free } else { State::Used };
                    store.segments.adopt(segment, state, 0, word & !FREE);
                }
            }
        }
    }
    Ok(())
}
