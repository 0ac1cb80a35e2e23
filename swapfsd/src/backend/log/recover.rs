//! A table from the device: when a volume is mounted.
//!
//! After a clean stop its checkpoint has the table ([`super::checkpoint`]). Else all segments are
//! read, and of each slot's records the newest counts.
//!
//! **What can be believed.** Header and records of a part have a checksum. Parts up to the
//! greatest `durable_sequence` that any part names were flushed: their objects are there. Newer
//! ones may have been torn by a power failure, so all of their objects are tested. A part with one
//! that does not check never counted: it is left out, and made empty, so that it does not count
//! after the next power failure either. That takes a second reading, which happens after a power
//! failure in the middle of a write, only.
//!
//! A part whose head was torn hides what was written behind it, and that shall never be seen again:
//! the rest of such a segment is covered by an empty part. Numbers go on far above all that may be
//! hidden.

use super::checkpoint;
use super::derived;
use super::durable::tag_of;
use super::part::{LEAST_BYTES, make_empty};
use super::scan::{self, Ending, LogArea, SegmentEnd};
use super::segments::{NOTHING_STALE, State};
use super::{AtStart, Store};
use crate::backend::objects::entry::{DEVICE_START, Entry, Object};
use crate::buffer::{BufferPool, LARGE_BYTES};
use crate::codec::Encoding;
use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;
use swapfs_format::log::{
    AnchorState, Content, MAX_PART_BYTES, OBJECT_HEADER_LEN, PartError, PartHeader, PartKind,
    Record, payload_offset_for,
};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

/// More numbers than can have been given out for what is hidden behind torn heads.
const HIDDEN_NUMBERS: u64 = 1 << 24;

/// A part that must not be believed: its segment, and its place in it.
type Torn = (u32, u32);

/// Fills the table of a volume that is being mounted.
///
/// # Errors
/// What reading the device answers; no memory.
pub(super) fn recover(store: &Store) -> io::Result<AtStart> {
    let anchors = checkpoint::read_anchors(store).map_err(io::Error::from_raw_os_error)?;
    let newest = anchors.into_iter().flatten().max_by_key(|anchor| anchor.generation);
    if let Some(anchor) = newest {
        store.segments.anchor_generation().store(anchor.generation, Ordering::Relaxed);
        if let AnchorState::Clean { .. } = anchor.state {
            match checkpoint::load(store, &anchor) {
                Ok(()) => {
                    derived::count(store, |_| {});
                    return Ok(at_start(store));
                }
                Err(why) => {
                    log::warn!("the checkpoint can't be used ({why}): reading all segments");
                    clear(store);
                }
            }
        }
    }
    let mut torn = HashSet::new();
    loop {
        let mut reading = Reading::new(store, &torn)?;
        reading.all()?;
        let found = reading.test_newest()?;
        let sequences = (reading.last_write, reading.last_part);
        let open = std::mem::take(&mut reading.open);
        drop(reading);
        if found.is_empty() {
            let next = newest.map_or((0, 0), |anchor| {
                (anchor.next_write_sequence.max(1) - 1, anchor.next_sequence.max(1) - 1)
            });
            // What was read may be in the device's cache only, if it was a kill and no power
            // failure. Only then may anything say that it is durable.
            store.device.flush().map_err(io::Error::from_raw_os_error)?;
            let last_write = sequences.0.max(next.0) + HIDDEN_NUMBERS;
            store.segments.set_sequences(last_write, sequences.1.max(next.1) + HIDDEN_NUMBERS);
            for (segment, end) in open {
                cover(store, segment, end).map_err(io::Error::from_raw_os_error)?;
            }
            store.segments.set_sequences(last_write, store.segments.last_part());
            derived::count(store, |_| {});
            return Ok(at_start(store));
        }
        log::warn!("{} torn parts are left out: they were not flushed", found.len());
        for header in found {
            make_empty(store, &header).map_err(io::Error::from_raw_os_error)?;
            torn.insert((header.segment, header.offset_bytes));
        }
        clear(store);
    }
}

/// Covers what may be hidden behind the last part of a segment.
fn cover(store: &Store, segment: u32, mut end: SegmentEnd) -> Result<(), i32> {
    let area = &store.segments.area;
    let mut page = store.buffers.take(PAGE_LEN);
    if end.parts == 0 {
        page.fill(0);
        return store.device.write_at(&page, area.offset_of(segment, 0));
    }
    while u64::from(end.end_bytes) < area.segment_bytes {
        let rest = area.segment_bytes - u64::from(end.end_bytes);
        let header = PartHeader {
            kind: PartKind::Data,
            owner: area.owner,
            sequence: store.segments.begin_part(0, segment, end.end_bytes),
            filling: store.segments.filling(segment),
            began_sequence: store.segments.stale(segment),
            durable_sequence: store.segments.durable_part(),
            segment,
            offset_bytes: end.end_bytes,
            part_bytes: rest.min(MAX_PART_BYTES as u64) as u32,
            record_count: 0,
            payload_offset_bytes: payload_offset_for(0) as u32,
            payload_bytes: 0,
            payload_crc32: crc32fast::hash(&[]),
            next_segment: 0,
        };
        store.segments.end_part(0);
        page.fill(0);
        header.write_to(&mut page);
        store.device.write_at(&page, area.offset_of(segment, u64::from(end.end_bytes)))?;
        end.end_bytes += header.part_bytes;
    }
    Ok(())
}

/// Takes everything out of the table again.
fn clear(store: &Store) {
    store.table.for_each(0, store.table.slot_count(), |_, cell| {
        cell.store(Entry::ABSENT.0, Ordering::Relaxed);
    });
    for segment in store.segments.area.segments() {
        store.segments.adopt(segment, State::Free, 0, NOTHING_STALE);
    }
}

fn at_start(store: &Store) -> AtStart {
    if store.entry(0).is_absent() { AtStart::Empty } else { AtStart::Kept }
}

/// Sets a slot's entry, while nothing runs that makes memory for the table.
///
/// # Errors
/// No memory.
pub(super) fn set_entry(store: &Store, slot: u64, entry: Entry) -> io::Result<()> {
    if entry == Entry::ABSENT {
        if let Some(cell) = store.table.cell_of(slot) {
            cell.store(entry.0, Ordering::Relaxed);
        }
        return Ok(());
    }
    if store.arena.free_segments() < 8 {
        store.arena.fill_reserve()?;
    }
    let cell = store.table.cell_or_make(slot);
    let cell = cell.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
    cell.store(entry.0, Ordering::Relaxed);
    Ok(())
}

/// One reading of all segments.
struct Reading<'a> {
    store: &'a Store,
    torn: &'a HashSet<Torn>,
    memory: BufferPool,
    /// By slot: the number of the record that counts.
    newest: Vec<u64>,
    /// Parts that may not have been flushed when they were found.
    young: Vec<PartHeader>,
    /// Segments that were being written, or whose first head is torn, and where their parts end.
    open: Vec<(u32, SegmentEnd)>,
    durable: u64,
    last_write: u64,
    last_part: u64,
    failed: Option<io::Error>,
}

impl<'a> Reading<'a> {
    fn new(store: &'a Store, torn: &'a HashSet<Torn>) -> io::Result<Reading<'a>> {
        Ok(Reading {
            store,
            torn,
            memory: BufferPool::new(0, 1)?,
            newest: vec![0; store.table.slot_count() as usize],
            young: Vec::new(),
            open: Vec::new(),
            durable: 0,
            last_write: 0,
            last_part: 0,
            failed: None,
        })
    }

    fn area(&self) -> &'a LogArea {
        &self.store.segments.area
    }

    fn all(&mut self) -> io::Result<()> {
        let mut buffer = self.memory.take(LARGE_BYTES);
        for segment in self.area().segments() {
            let (mut filling, mut plain) = (None, 0);
            let read = scan::for_each_part(
                &*self.store.device,
                self.area(),
                segment,
                &mut buffer,
                |header, bytes| {
                    filling.get_or_insert((header.filling, header.began_sequence));
                    self.last_part = self.last_part.max(header.sequence);
                    self.last_write = self.last_write.max(header.began_sequence);
                    self.durable = self.durable.max(header.durable_sequence);
                    if header.kind != PartKind::Data
                        || self.torn.contains(&(segment, header.offset_bytes))
                    {
                        return;
                    }
                    if header.sequence > self.durable {
                        self.young.push(*header);
                    }
                    // Known before its objects are: of two that are the same, the younger counts.
                    self.store.segments.adopt(segment, State::Used, header.filling, 0);
                    let mut greatest = None;
                    for record in swapfs_format::log::records(bytes, header).flatten() {
                        let mut rider = false;
                        match record.content {
                            // Not behind all before it: it was there already.
                            Content::Object { offset, .. } => {
                                rider = Some(offset) <= greatest;
                                greatest = greatest.max(Some(offset));
                            }
                            _ => plain += 1,
                        }
                        if let Err(error) = self.believe(segment, &record, rider) {
                            self.failed = Some(error);
                        }
                    }
                },
            );
            let found = match read {
                Ok(end) => {
                    let rest = self.area().segment_bytes - u64::from(end.end_bytes);
                    let torn_head = end.why == Ending::NoPart(PartError::BadChecksum);
                    if torn_head || end.parts > 0 && rest >= LEAST_BYTES {
                        self.open.push((segment, end));
                    }
                    filling
                }
                Err(errno) => {
                    // What can't be read can't be trusted to be free either: it is left alone.
                    self.store.device_failed("read", segment, errno);
                    self.store.shun(segment);
                    Some((0, 0))
                }
            };
            match found {
                Some((filling, began)) => {
                    self.store.segments.adopt(segment, State::Used, filling, began);
                }
                None => self.store.segments.adopt(segment, State::Free, 0, NOTHING_STALE),
            }
            (0..plain).for_each(|_| self.store.segments.add_plain(segment));
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
        }
        Ok(())
    }

    /// `rider`: the object is also that of a record before this one.
    fn believe(&mut self, segment: u32, record: &Record, rider: bool) -> io::Result<()> {
        self.last_write = self.last_write.max(record.sequence);
        let first = u64::from(record.slot);
        let slot_count = self.store.table.slot_count();
        let (count, entry) = match record.content {
            Content::Discarded(count) => (u64::from(count), Entry::discarded_by(record.sequence)),
            Content::SameFilled(word) => {
                let entry = Entry::same_filled_at(word, tag_of(segment));
                (1, entry.unwrap_or_else(|| Entry::same_filled(word).0))
            }
            Content::Object { encoding, offset, len, .. } => {
                let Some(encoding) = Encoding::from_number(encoding) else { return Ok(()) };
                let end = u64::from(offset) + OBJECT_HEADER_LEN as u64 + u64::from(len);
                if end > self.area().segment_bytes {
                    return Ok(());
                }
                let offset = u64::from(segment) * self.area().segment_bytes + u64::from(offset);
                let location = DEVICE_START + offset;
                let object = Object { encoding, location, len: usize::from(len) };
                (1, if rider { Entry::shared_object(object) } else { Entry::object(object) })
            }
        };
        for slot in first..(first + count).min(slot_count) {
            let newest = self.newest[slot as usize];
            let newer = record.sequence > newest
                // An object that was moved is there twice until its old place is written again,
                // and maybe half of that.
                || record.sequence == newest && newest > 0 && !self.checks(slot, record);
            if newer {
                self.newest[slot as usize] = record.sequence;
                set_entry(self.store, slot, entry)?;
            }
        }
        Ok(())
    }

    /// Is the object that the slot's entry names what the record says?
    fn checks(&self, slot: u64, record: &Record) -> bool {
        let Content::Object { encoding, checksum, .. } = record.content else { return true };
        let named = self.store.entry(slot).as_object();
        let Some((object, offset)) =
            named.and_then(|object| Some((object, object.device_offset()?)))
        else {
            return true;
        };
        let from = offset / PAGE_BYTES * PAGE_BYTES;
        let end = (offset + u64::from(object.stored_bytes())).next_multiple_of(PAGE_BYTES);
        let mut buffer = self.store.buffers.take((end - from) as usize);
        let place = self.area().data_offset_bytes + from;
        if self.store.device.read_at(&mut buffer, place).is_err() {
            return false;
        }
        let start = (offset - from) as usize;
        let stored = &buffer[start..start + object.stored_bytes() as usize];
        object.encoding as u8 == encoding
            && scan::checked_object(stored, encoding, checksum).is_some()
    }

    /// Tests the objects of parts that may not have been flushed; answers those parts that are torn.
    fn test_newest(&mut self) -> io::Result<Vec<PartHeader>> {
        let mut buffer = self.memory.take(LARGE_BYTES);
        let mut torn = Vec::new();
        for header in self.young.iter().filter(|header| header.sequence > self.durable) {
            let part = scan::read_part(&*self.store.device, self.area(), header, &mut buffer);
            let part = part.map_err(io::Error::from_raw_os_error)?;
            let mut all_right = true;
            scan::for_each_checked(part, header, |_, _, right| all_right &= right);
            if !all_right {
                torn.push(*header);
            }
        }
        Ok(torn)
    }
}

const _: () = assert!(LARGE_BYTES >= MAX_PART_BYTES);
