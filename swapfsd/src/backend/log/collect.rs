//! The collector: what lives in sparse segments moves together, and they become free.
//!
//! Victims are chosen by cost and benefit (Rosenblum and Ousterhout, "The Design and
//! Implementation of a Log-Structured File System", 1992): what a segment gives, by how long it has
//! been left alone. What is moved goes to a stream of its own, apart from what comes from the
//! buffer: what has survived a collection is cold.
//!
//! A victim is read part by part, and its own records say what was in it. What the slot table
//! still names is moved, encoded as it is, after a test of its checksum. Two things more must
//! not be lost with a victim, since what was flushed must be found after a power failure:
//!
//! * A dead object may be the last one of its slot that a device has: the newer one is still in the
//!   buffer. That is then written with what is moved. The same of a word and of a discard.
//! * The record of a discard keeps older records of its slots from being believed. It is moved for
//!   as long as there can be one, in any segment, free ones included, and the slot table names it.
//!   If the newer page of one of its slots is in the buffer, that is written instead.
//!
//! Victims are free when all that is on the device and flushed.

use super::Store;
use super::counters::Field;
use super::durable::tag_of;
use super::fill::{add_again, add_current, add_word};
use super::part::{Blocked, Builder, Clear, Stream, device_bytes};
use super::scan;
use super::segments::State;
use crate::backend::objects::entry::{
    DEVICE_START, Entry, HEADER_BYTES, Location, Meaning, Object,
};
use crate::codec;
use crate::crash::{self, Point};
use crate::sys::memory::Mapping;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use swapfs_format::log::{
    Content, MAX_PART_BYTES, OBJECT_HEADER_LEN, PartHeader, PartKind, RECORD_LEN, Record,
};

/// How often the collector looks without being told.
const LOOK: Duration = Duration::from_millis(100);
/// How long segments are left alone that could not be read.
const SHUNNED_FOR: Duration = Duration::from_secs(5);
/// Victims of one round at most: all of them are freed by one flush.
const MAX_VICTIMS: usize = 64;
/// Parts that a segment can have, of which the collector notes the heads.
const MAX_PARTS: usize = 8192;
/// Slots whose saving is remembered: two of the same place may be saved more than once.
const SAVED_PLACES: usize = 4096;

/// The collector.
#[derive(Debug)]
pub(super) struct Collector {
    mover: Mover,
    /// What is read of a victim.
    memory: Mapping,
}

#[derive(Debug)]
struct Mover {
    stream: Stream,
    builder: Builder,
    parts: Vec<PartHeader>,
    /// Victims of this round that are empty.
    emptied: Vec<u32>,
    /// Slots that were saved into the part in the making, each at its place and increased by one:
    /// a victim may have many old records of the same one.
    saved: Box<[u32]>,
}

/// A round ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Unmounting,
    /// There is no segment to move objects to.
    NoSegment,
    /// What is emptied must be freed first.
    Early,
    /// The victim can't be read.
    Unreadable,
}

impl Collector {
    /// With all memory that it will use.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(number: usize, dedup: bool) -> std::io::Result<Collector> {
        let mover = Mover {
            stream: Stream::new(number, 0),
            builder: Builder::new(dedup)?,
            parts: Vec::with_capacity(MAX_PARTS),
            emptied: Vec::with_capacity(MAX_VICTIMS),
            saved: vec![0; SAVED_PLACES].into(),
        };
        Ok(Collector { mover, memory: Mapping::new(MAX_PART_BYTES, true)? })
    }

    pub(super) fn run(mut self, store: &Store) {
        if !store.wait_until_active() {
            return;
        }
        // SAFETY: populated private memory of this collector's, which nobody else uses.
        let buffer =
            unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.memory.len()) };
        let mover = &mut self.mover;
        // What a predecessor had emptied waits for a flush.
        mover.free_pending(store);
        let mut forgiven = Instant::now();
        while !store.stop.load(Ordering::Relaxed) {
            if forgiven.elapsed() > SHUNNED_FOR {
                store.forgive_all();
                forgiven = Instant::now();
            }
            let wanted = store.take_wanted(LOOK);
            let free = store.segments.free_count();
            if free < store.layout.low_segments || wanted && free <= store.layout.keep_segments {
                mover.round(store, buffer);
            }
        }
        mover.stream.close(store);
    }
}

impl Mover {
    /// Empties victims until there are enough free segments, and frees them.
    fn round(&mut self, store: &Store, buffer: &mut [u8]) {
        let layout = &store.layout;
        let oldest_stale = store.segments.oldest_stale();
        let mut gained = 0;
        while self.emptied.len() < MAX_VICTIMS && !store.stop.load(Ordering::Relaxed) {
            let free = store.segments.free_count();
            if free + self.emptied.len() >= layout.high_segments
                // Better to free what there is than to use up the last ones.
                || free <= 1 && !self.emptied.is_empty()
            {
                break;
            }
            let Some(victim) = self.choose(store, self.stream.room_bytes(store)) else { break };
            if !store.segments.make_victim(victim) {
                continue;
            }
            store.counters.add(Field::Victims, 1);
            match self.empty(store, victim, oldest_stale, buffer) {
                Ok(()) => {
                    store.could_be_read(victim);
                    self.emptied.push(victim);
                    gained += 1;
                }
                Err(why) => {
                    store.segments.spare_victim(victim);
                    if why == Stopped::Unreadable {
                        // For a while: if the device fails, others can't be read either.
                        store.shun(victim);
                        std::thread::sleep(LOOK);
                    }
                    break;
                }
            }
        }
        if self.finish_part(store).is_ok() {
            self.free_emptied(store);
        }
        if gained == 0 {
            store.segments.wait_for_free(LOOK);
        }
    }

    /// The used segment that is best emptied, and of which no more than `room_bytes` live; `None`:
    /// nothing is to be gained.
    fn choose(&self, store: &Store, room_bytes: u64) -> Option<u32> {
        let segments = &store.segments;
        let size = segments.area.segment_bytes;
        let now = segments.last_part() + 1;
        let (mut best, mut oldest, mut least) = (None, None, None);
        for segment in segments.area.segments() {
            let (state, live) = segments.segment(segment);
            if state != State::Used || store.is_shunned(segment) {
                continue;
            }
            // Words and discards may all be dead; nobody knows before they are looked at.
            let plain_bytes = segments.plain(segment) * RECORD_LEN as u64;
            if live + plain_bytes == 0 {
                return Some(segment);
            }
            // Only objects need room: the rest is left unsaved where there is none.
            if segments.most_live_bytes(segment) > room_bytes {
                // Most of its riders' objects may be there once.
                if live <= room_bytes && least.is_none_or(|(_, bytes)| live < bytes) {
                    least = Some((segment, live));
                }
                continue;
            }
            let live = live + plain_bytes;
            if plain_bytes > 0 {
                let filling = segments.filling(segment);
                if oldest.is_none_or(|(_, least)| filling < least) {
                    oldest = Some((segment, filling));
                }
            }
            let dead = size.saturating_sub(live);
            // Less than this is lost again in part heads and ends.
            if dead < store.layout.least_gain_bytes {
                continue;
            }
            let age = now.saturating_sub(segments.filling(segment)) as f64;
            let score = dead as f64 * age / (size + live) as f64;
            if best.is_none_or(|(_, most)| score > most) {
                best = Some((segment, score));
            }
        }
        // The longer ago, the more of its words and discards are dead.
        best.map(|(segment, _)| segment)
            .or(oldest.map(|(segment, _)| segment))
            .or(least.map(|(segment, _)| segment))
    }

    /// Moves everything out of a victim that must not be lost with it, or puts it into the part in
    /// the making.
    fn empty(
        &mut self,
        store: &Store,
        victim: u32,
        oldest_stale: u64,
        buffer: &mut [u8],
    ) -> Result<(), Stopped> {
        let area = &store.segments.area;
        self.parts.clear();
        let parts = &mut self.parts;
        let device = &*store.device;
        let found = scan::for_each_part(device, area, victim, buffer, |header, _| {
            if header.kind == PartKind::Data && parts.len() < MAX_PARTS {
                parts.push(*header);
            }
        });
        if let Err(errno) = found {
            store.device_failed("read", victim, errno);
            return Err(Stopped::Unreadable);
        }
        for index in 0..self.parts.len() {
            let header = self.parts[index];
            let whole = store.segments.segment(victim).1 > 0;
            // Where nothing lives, the records are all that is of interest.
            let wanted = if whole { header.part_bytes as usize } else { header.summary_bytes() };
            let bytes = &mut buffer[..wanted.next_multiple_of(4096)];
            let offset = area.offset_of(victim, u64::from(header.offset_bytes));
            if let Err(errno) = device.read_at(bytes, offset) {
                store.device_failed("read", victim, errno);
                return Err(Stopped::Unreadable);
            }
            store.counters.add(Field::CollectedReadBytes, bytes.len() as u64);
            for record in swapfs_format::log::records(bytes, &header).flatten() {
                self.keep(store, victim, &header, whole.then_some(&*bytes), &record, oldest_stale)?;
            }
        }
        Ok(())
    }

    /// Does what must be done about one record of a victim.
    fn keep(
        &mut self,
        store: &Store,
        victim: u32,
        header: &PartHeader,
        part: Option<&[u8]>,
        record: &Record,
        oldest_stale: u64,
    ) -> Result<(), Stopped> {
        let slot = u64::from(record.slot);
        if slot >= store.table.slot_count() {
            return Ok(());
        }
        let key = (record.sequence, record.slot, 0);
        if let Content::Discarded(count) = record.content {
            return self.keep_discard(store, key, u64::from(count), oldest_stale);
        }
        let entry = store.entry(slot);
        match (entry.meaning(), record.content) {
            (Meaning::Object(object), Content::Object { offset, len, .. })
                if object.location == location_of(store, victim, offset)
                    && object.len == usize::from(len) =>
            {
                let range = scan::object_range(header, offset, len);
                let stored = part.zip(range).and_then(|(part, range)| part.get(range));
                let Some(stored) = stored else { return Err(Stopped::Unreadable) };
                self.make_room(store, stored.len())?;
                // Once, though several of its records may name the same object.
                let place = record.slot as usize % SAVED_PLACES;
                if self.saved[place] == record.slot + 1 {
                    return Ok(());
                }
                self.saved[place] = record.slot + 1;
                self.test(store, slot, &object, stored);
                self.builder.push_object(key, entry, &object, stored);
                store.counters.add(Field::CollectedBytes, device_bytes(object.len));
                crash::pass(Point::LogCollected);
            }
            // The newer page is in the buffer alone.
            _ if is_unwritten(entry) => self.save(store, record.slot)?,
            (Meaning::SameFilled(word), Content::SameFilled(old))
                if word == old && entry.tag().is_none_or(|tag| tag == tag_of(victim)) =>
            {
                self.renew(store, record.slot, entry)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The record of a discard moves while a slot is as it says. Otherwise the slots whose newer
    /// pages are in the buffer alone are saved, once each: were the record moved for them, so would
    /// be all the older ones that the slot has.
    fn keep_discard(
        &mut self,
        store: &Store,
        key: (u64, u32, u32),
        count: u64,
        oldest_stale: u64,
    ) -> Result<(), Stopped> {
        let (sequence, first, _) = key;
        if sequence <= oldest_stale {
            return Ok(());
        }
        let (first, mut counts) = (u64::from(first), false);
        let end = (first + count).min(store.table.slot_count());
        store.table.for_each(first, end, |_, cell| {
            counts |= Entry(cell.load(Ordering::Acquire)) == Entry::discarded_by(sequence);
        });
        if counts && count == 1 {
            return self.renew(store, key.1, Entry::discarded_by(sequence));
        }
        if counts {
            // Its number stays: there may be newer records of some of its slots.
            if self.room_to_save(store, 0)? {
                self.builder.push_discard(key, count as u32, Clear::Never);
            }
            return Ok(());
        }
        let mut outcome = Ok(());
        store.table.for_each(first, end, |slot, cell| {
            if outcome.is_ok() && is_unwritten(Entry(cell.load(Ordering::Acquire))) {
                outcome = self.save(store, slot as u32);
            }
        });
        outcome
    }

    /// The record of a word or a discard that counts is written again, with a new number: so of
    /// those that say the same, and there may be many, all others are dead.
    fn renew(&mut self, store: &Store, slot: u32, entry: Entry) -> Result<(), Stopped> {
        let place = slot as usize % SAVED_PLACES;
        if self.saved[place] == slot + 1 || !self.room_to_save(store, 0)? {
            return Ok(());
        }
        let same = |current: Entry| current == entry;
        if add_again(store, &mut self.builder, (slot, 0), same) {
            self.saved[place] = slot + 1;
            return Ok(());
        }
        // It was changed meanwhile.
        self.save(store, slot)
    }

    /// Puts a slot's page, which is in the buffer alone, into the part, whatever it is.
    fn save(&mut self, store: &Store, slot: u32) -> Result<(), Stopped> {
        let place = slot as usize % SAVED_PLACES;
        while self.saved[place] != slot + 1 {
            let entry = store.entry(u64::from(slot));
            match entry.meaning() {
                Meaning::Object(object) if object.device_offset().is_none() => {
                    if !self.room_to_save(store, HEADER_BYTES + object.len)? {
                        return Ok(());
                    }
                    if add_current(store, &mut self.builder, slot, 0) {
                        store.counters.add(Field::SavedPages, 1);
                        self.saved[place] = slot + 1;
                        return Ok(());
                    }
                    if store.entry(u64::from(slot)).is_same_as(entry) {
                        return Ok(());
                    }
                    // It was changed meanwhile.
                }
                _ if is_unwritten(entry) => {
                    if !self.room_to_save(store, 0)? {
                        return Ok(());
                    }
                    if add_word(store, &mut self.builder, slot, 0) {
                        self.saved[place] = slot + 1;
                        return Ok(());
                    }
                    // It is on the device by now, or something else that is in memory alone.
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// What is damaged moves as it is: it stays known for what it is.
    fn test(&self, store: &Store, slot: u64, object: &Object, stored: &[u8]) {
        let (front, bytes) = stored.split_at(OBJECT_HEADER_LEN);
        let checksum = u32::from_le_bytes([front[0], front[1], front[2], front[3]]);
        if codec::checksum(object.encoding, bytes) != checksum {
            store.damaged(slot, "found by garbage collection");
        }
    }

    /// As [`Mover::make_room`], for what is not moved but saved from a power failure. The last free
    /// segments are for what is moved: without them nothing could be collected at all. False:
    /// this time it is not saved.
    fn room_to_save(&mut self, store: &Store, stored: usize) -> Result<bool, Stopped> {
        if !self.builder.is_empty() && self.builder.fits(stored) {
            return Ok(true);
        }
        if store.segments.free_count() > 1 {
            return self.make_room(store, stored).map(|()| true);
        }
        if !self.emptied.is_empty() {
            // With what is emptied there will be more room.
            return Err(Stopped::Early);
        }
        store.counters.add(Field::NotSaved, 1);
        Ok(false)
    }

    /// Makes sure that a record with `stored` bytes fits into the part.
    fn make_room(&mut self, store: &Store, stored: usize) -> Result<(), Stopped> {
        if !self.builder.is_empty() && !self.builder.fits(stored) {
            self.finish_part(store)?;
        }
        self.builder.begin(store, &mut self.stream).map_err(|_| Stopped::NoSegment)
    }

    /// Writes what has been collected.
    fn finish_part(&mut self, store: &Store) -> Result<(), Stopped> {
        loop {
            match self.builder.write(store, &mut self.stream, |_| {}) {
                Ok(()) => {
                    self.saved.fill(0);
                    return Ok(());
                }
                Err(Blocked::Stopping) => return Err(Stopped::Unmounting),
                Err(Blocked::NoSegment) if store.stop.load(Ordering::Relaxed) => {
                    return Err(Stopped::Unmounting);
                }
                Err(Blocked::NoSegment) => store.segments.wait_for_free(LOOK),
            }
        }
    }

    /// Has the device keep what was moved, and frees what it was moved from.
    fn free_emptied(&mut self, store: &Store) {
        for victim in self.emptied.drain(..) {
            if !store.segments.make_pending(victim) {
                // No record named what lives there.
                store.segments.spare_victim(victim);
                store.shun(victim);
            }
            crash::pass(Point::LogEmptied);
        }
        self.free_pending(store);
    }

    fn free_pending(&mut self, store: &Store) {
        if store.segments.pending_count() == 0 || store.flush_device().is_err() {
            return;
        }
        let area = &store.segments.area;
        let is_pending = |&segment: &u32| store.segments.segment(segment).0 == State::Pending;
        // Neighbours are discarded together.
        let mut run: Option<(u32, u32)> = None;
        for segment in area.segments().filter(is_pending) {
            run = match run {
                Some((first, end)) if end == segment => Some((first, segment + 1)),
                Some((first, end)) => {
                    store.discard_segments(first, end);
                    Some((segment, segment + 1))
                }
                None => Some((segment, segment + 1)),
            };
        }
        if let Some((first, end)) = run {
            store.discard_segments(first, end);
        }
    }
}

/// What the slot holds is in memory alone.
fn is_unwritten(entry: Entry) -> bool {
    match entry.meaning() {
        Meaning::Object(object) => object.device_offset().is_none(),
        Meaning::SameFilled(_) => entry.is_buffered(),
        _ => entry.is_unknown_discard(),
    }
}

fn location_of(store: &Store, segment: u32, offset: u32) -> Location {
    DEVICE_START + u64::from(segment) * store.segments.area.segment_bytes + u64::from(offset)
}
