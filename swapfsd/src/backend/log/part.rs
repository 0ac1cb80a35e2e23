//! Building a part in memory, writing it, and publishing where its objects are now.
//!
//! ```text
//! memory   |         ...  header, records | objects ...            |
//!          0                              MIDDLE (1 MiB)
//! ```
//!
//! How many records a part has is known only when it is full, and they stand in front. So objects
//! are put behind the middle of the buffer, and header and records end there: what is written
//! starts somewhere before the middle.
//!
//! Nobody waits for a part: until it is on the device, entries name the places that its objects
//! come from, and those stay as they are. Then each entry is changed that still says the same.

use super::Store;
use super::counters::Field;
use crate::backend::objects::entry::{DEVICE_START, Entry, Location, Object};
use crate::codec::Encoding;
use crate::crash::{self, Point};
use crate::sys::memory::Mapping;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;
use swapfs_format::PAGE_LEN;
use swapfs_format::log::{
    Content, MAX_PART_BYTES, OBJECT_HEADER_LEN, PART_HEADER_LEN, PartHeader, PartKind, RECORD_LEN,
    Record, payload_offset_for,
};

const MIDDLE: usize = MAX_PART_BYTES;
/// What is left of a segment is not worth a part.
pub(super) const LEAST_BYTES: u64 = 24 << 10;
/// More records than fit with the smallest objects.
pub(super) const MAX_RECORDS: usize = MAX_PART_BYTES / (RECORD_LEN + OBJECT_HEADER_LEN);
/// Places of the table of known objects, and how many are looked at for one.
const KNOWN_PLACES: usize = 16 << 10;
const PROBES: usize = 8;
/// So often a write is tried in one place before another one is looked for.
const TRIES: u32 = 25;
/// How long a stream waits after a write that failed.
const RETRY: Duration = Duration::from_millis(200);

/// What an object takes on the device: itself, and its record.
pub(super) fn device_bytes(len: usize) -> u64 {
    (OBJECT_HEADER_LEN + len + RECORD_LEN) as u64
}

/// What becomes of a record when its part is on the device.
#[derive(Debug, Clone, Copy)]
struct Planned {
    sequence: u64,
    slot: u32,
    what: PlannedWhat,
    /// The record's place among its owner's, who is told when it is done with.
    source: u32,
}

#[derive(Debug, Clone, Copy)]
enum PlannedWhat {
    /// `expected` is what the slot's entry says as long as this is its page.
    Object {
        expected: Entry,
        encoding: Encoding,
        len: u16,
        checksum: u32,
        at: u32,
        /// Another record before this one has the same object.
        rider: bool,
    },
    /// `changes` is what the slot's lock counted when this was so.
    SameFilled {
        word: u64,
        changes: u64,
    },
    Discarded {
        count: u32,
        clear: Clear,
    },
}

/// When the slots of a discard that is on the device may say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clear {
    /// A later discard may have made them what they are.
    Never,
    /// Those that say that they were discarded by this record.
    IfNamed,
    /// If the slot's lock has counted no more than this since; of one slot.
    IfUnchanged(u64),
}

/// Where a stream of parts goes.
#[derive(Debug)]
pub(super) struct Stream {
    /// Its number among all streams.
    pub(super) number: usize,
    /// Free segments that it leaves to others.
    keep: usize,
    segment: Option<u32>,
    fill_bytes: u64,
    filling: u64,
}

impl Stream {
    pub(super) fn new(number: usize, keep: usize) -> Stream {
        Stream { number, keep, segment: None, fill_bytes: 0, filling: 0 }
    }

    /// Bytes that the next part can have. `None`: there is no free segment.
    fn room(&mut self, store: &Store) -> Option<usize> {
        let segment_bytes = store.segments.area.segment_bytes;
        if self.segment.is_some() && segment_bytes - self.fill_bytes < LEAST_BYTES {
            self.close(store);
        }
        if self.segment.is_none() {
            self.segment = Some(store.segments.take(self.keep)?);
            (self.fill_bytes, self.filling) = (0, 0);
            crash::pass(Point::LogSegmentTaken);
        }
        Some((segment_bytes - self.fill_bytes).min(MAX_PART_BYTES as u64) as usize)
    }

    /// Bytes of objects that surely fit into this stream's segment and the free ones.
    pub(super) fn room_bytes(&self, store: &Store) -> u64 {
        let layout = &store.layout;
        let left = match self.segment {
            Some(_) => store.segments.area.segment_bytes - self.fill_bytes,
            None => 0,
        };
        let usable = left.saturating_sub(2 * LEAST_BYTES);
        usable + store.segments.free_count() as u64 * layout.filled_bytes
    }

    pub(super) fn close(&mut self, store: &Store) {
        if let Some(segment) = self.segment.take() {
            store.segments.close(segment);
        }
    }
}

/// A part in the making.
#[derive(Debug)]
pub(super) struct Builder {
    memory: Mapping,
    records: Vec<Planned>,
    payload_bytes: usize,
    capacity_bytes: usize,
    began: u64,
    /// Where objects are found by what they hold, if identical ones are written once: a hash table
    /// of numbers of records, from 1.
    known: Option<Box<[u16]>>,
}

/// Why a part can't be begun or written just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocked {
    /// There is no free segment.
    NoSegment,
    /// The volume is being unmounted.
    Stopping,
}

impl Builder {
    /// An empty one, with all memory that it will use. `dedup`: identical objects are put into a
    /// part once.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(dedup: bool) -> io::Result<Builder> {
        let memory = Mapping::new(2 * MAX_PART_BYTES, true)?;
        let nothing = Planned {
            sequence: 0,
            slot: 0,
            what: PlannedWhat::SameFilled { word: 0, changes: 0 },
            source: 0,
        };
        let mut records = vec![nothing; MAX_RECORDS + 1];
        records.clear();
        let known = dedup.then(|| vec![0; KNOWN_PLACES].into());
        Ok(Builder { memory, records, payload_bytes: 0, capacity_bytes: 0, began: 0, known })
    }

    #[expect(clippy::mut_from_ref, reason = "the caller has the builder for itself")]
    fn bytes(&self, range: std::ops::Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.memory.len());
        // SAFETY: inside the mapping, as just checked.
        let start = unsafe { self.memory.as_ptr().add(range.start) };
        // SAFETY: populated private memory of this builder's, which its callers have alone; no
        // two slices are made at a time.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }

    /// Begins a part for `stream`, if none is begun.
    pub(super) fn begin(&mut self, store: &Store, stream: &mut Stream) -> Result<(), Blocked> {
        if self.capacity_bytes == 0 {
            self.capacity_bytes = stream.room(store).ok_or(Blocked::NoSegment)?;
            self.began = store.segments.last_write();
        }
        Ok(())
    }

    /// Nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whose record was put in last.
    pub(super) fn last_slot(&self) -> Option<u32> {
        self.records.last().map(|planned| planned.slot)
    }

    /// Fits one more record, with `stored` bytes behind it?
    pub(super) fn fits(&self, stored: usize) -> bool {
        self.records.len() < MAX_RECORDS
            && payload_offset_for(self.records.len() + 1) + self.payload_bytes + stored
                <= self.capacity_bytes
    }

    /// Adds an object, `stored` with its checksum in front.
    pub(super) fn push_object(
        &mut self,
        (sequence, slot, source): (u64, u32, u32),
        expected: Entry,
        object: &Object,
        stored: &[u8],
    ) {
        let checksum = u32::from_le_bytes([stored[0], stored[1], stored[2], stored[3]]);
        let same = self.find(object, checksum, stored);
        let at = same.unwrap_or(self.payload_bytes as u32);
        if same.is_none() {
            let end = MIDDLE + self.payload_bytes;
            self.bytes(end..end + stored.len()).copy_from_slice(stored);
            self.payload_bytes += stored.len();
        }
        let (encoding, len) = (object.encoding, object.len as u16);
        let rider = same.is_some();
        let what = PlannedWhat::Object { expected, encoding, len, checksum, at, rider };
        self.records.push(Planned { sequence, slot, what, source });
    }

    /// Where in the payload these bytes are already; else they are known by the next record's
    /// number from now on. Encoding is deterministic, so identical pages have identical bytes; the
    /// checksum finds them, and then they are compared: a collision costs that and nothing else.
    fn find(&mut self, object: &Object, checksum: u32, stored: &[u8]) -> Option<u32> {
        let mut known = self.known.take()?;
        let first = object.content_hash(checksum) as usize % KNOWN_PLACES;
        let mut found = None;
        for place in first..first + PROBES {
            let number = &mut known[place % KNOWN_PLACES];
            let Some(index) = usize::from(*number).checked_sub(1) else {
                // Few parts have more records than that, and only of the smallest objects.
                *number = u16::try_from(self.records.len() + 1).unwrap_or(0);
                break;
            };
            if let Some(Planned { what: PlannedWhat::Object { encoding, len, at, .. }, .. }) =
                self.records.get(index)
                && (*encoding, usize::from(*len)) == (object.encoding, object.len)
                && self.bytes(MIDDLE + *at as usize..MIDDLE + *at as usize + stored.len()) == stored
            {
                found = Some(*at);
                break;
            }
        }
        self.known = Some(known);
        found
    }

    /// Adds a record of a same-filled page, as of when the slot's lock had counted `changes`.
    pub(super) fn push_word(
        &mut self,
        (sequence, slot, source): (u64, u32, u32),
        word: u64,
        changes: u64,
    ) {
        let what = PlannedWhat::SameFilled { word, changes };
        self.records.push(Planned { sequence, slot, what, source });
    }

    /// Adds a record of a discard.
    pub(super) fn push_discard(
        &mut self,
        (sequence, slot, source): (u64, u32, u32),
        count: u32,
        clear: Clear,
    ) {
        let what = PlannedWhat::Discarded { count, clear };
        self.records.push(Planned { sequence, slot, what, source });
    }

    /// Writes the part, publishes its objects, and tells `done` of each record's source. The
    /// builder is empty then.
    ///
    /// A write that fails is tried again until it succeeds, and after a while elsewhere.
    ///
    /// # Errors
    /// `NoSegment`, `Stopping`: nothing has changed, and it may be called again.
    pub(super) fn write(
        &mut self,
        store: &Store,
        stream: &mut Stream,
        mut done: impl FnMut(u32),
    ) -> Result<(), Blocked> {
        if self.records.is_empty() {
            self.capacity_bytes = 0;
            return Ok(());
        }
        let header = loop {
            let header = self.build(store, stream)?;
            if self.put(store, stream, &header)? {
                break header;
            }
        };
        // Only now: a part that is cut off by a kill has nothing that anybody believes in.
        store.segments.end_part(stream.number);
        crash::pass(Point::LogPartWritten);
        let place = Place {
            segment: header.segment,
            payload_at: header.offset_bytes + header.payload_offset_bytes,
        };
        for planned in &self.records {
            publish(store, planned, place);
            done(planned.source);
        }
        self.records.clear();
        if let Some(known) = &mut self.known {
            known.fill(0);
        }
        self.payload_bytes = 0;
        self.capacity_bytes = 0;
        Ok(())
    }

    /// Where in the memory the part starts.
    fn start(&self) -> usize {
        MIDDLE - payload_offset_for(self.records.len())
    }

    /// Puts header and records in front of the payload, for the stream's next place.
    fn build(&mut self, store: &Store, stream: &mut Stream) -> Result<PartHeader, Blocked> {
        let payload_offset = payload_offset_for(self.records.len());
        let part_bytes = (payload_offset + self.payload_bytes).next_multiple_of(PAGE_LEN);
        let segment = loop {
            if let Some(segment) = stream.segment {
                break segment;
            }
            // The one before has failed.
            if stream.room(store).ok_or(Blocked::NoSegment)? < part_bytes {
                // Only the start of a segment has surely room for what was begun elsewhere.
                stream.close(store);
            }
        };
        let offset_bytes = stream.fill_bytes as u32;
        let sequence = store.segments.begin_part(stream.number, segment, offset_bytes);
        if stream.filling == 0 {
            stream.filling = sequence;
            store.segments.begin_filling(segment, sequence, self.began);
        }
        // Zeros up to the end of the last page: nothing of the memory's past goes to the device.
        let end = MIDDLE + self.payload_bytes;
        self.bytes(end..MIDDLE + part_bytes - payload_offset).fill(0);
        let start = self.start();
        self.bytes(start..MIDDLE).fill(0);
        let payload_at = offset_bytes + payload_offset as u32;
        for (index, planned) in self.records.iter().enumerate() {
            let at = start + PART_HEADER_LEN + index * RECORD_LEN;
            let record = planned.record(payload_at).encode();
            self.bytes(at..at + RECORD_LEN).copy_from_slice(&record);
        }
        let header = PartHeader {
            kind: PartKind::Data,
            owner: store.segments.area.owner,
            sequence,
            filling: stream.filling,
            began_sequence: self.began,
            durable_sequence: store.segments.durable_part(),
            segment,
            offset_bytes,
            part_bytes: part_bytes as u32,
            record_count: self.records.len() as u32,
            payload_offset_bytes: payload_offset as u32,
            payload_bytes: self.payload_bytes as u32,
            payload_crc32: crc32fast::hash(self.bytes(MIDDLE..end)),
            next_segment: 0,
        };
        header.write_to(self.bytes(start..start + part_bytes));
        crash::pass(Point::LogPartBuilt);
        Ok(header)
    }

    /// Writes what was built. False: that place can't be written, but a page that says so could:
    /// the stream goes on elsewhere.
    fn put(
        &mut self,
        store: &Store,
        stream: &mut Stream,
        header: &PartHeader,
    ) -> Result<bool, Blocked> {
        let start = self.start();
        let place = store.segments.area.offset_of(header.segment, u64::from(header.offset_bytes));
        let mut tries = 0;
        loop {
            let part = self.bytes(start..start + header.part_bytes as usize);
            match store.device.write_at(part, place) {
                Ok(()) => {
                    stream.fill_bytes += u64::from(header.part_bytes);
                    store.device_works();
                    store.counters.add(Field::DeviceWrittenBytes, u64::from(header.part_bytes));
                    store.counters.add(Field::PartsWritten, 1);
                    return Ok(true);
                }
                Err(errno) => store.device_failed("write", header.segment, errno),
            }
            if store.stop.load(Ordering::Relaxed) {
                return Err(Blocked::Stopping);
            }
            tries += 1;
            // Not where segments are few: a device that fails for a while shall not use them up.
            if tries % TRIES == 0
                && store.segments.free_count() > 2 * store.layout.low_segments
                && make_empty(store, header).is_ok()
            {
                store.segments.end_part(stream.number);
                stream.close(store);
                return Ok(false);
            }
            std::thread::sleep(RETRY);
        }
    }
}

/// Writes a head without records in the place of a part's: what follows it in the segment is still
/// found, and nothing of it counts.
///
/// # Errors
/// The errno of the write.
pub(super) fn make_empty(store: &Store, header: &PartHeader) -> Result<(), i32> {
    let empty = PartHeader {
        record_count: 0,
        payload_offset_bytes: payload_offset_for(0) as u32,
        payload_bytes: 0,
        payload_crc32: crc32fast::hash(&[]),
        ..*header
    };
    let mut page = store.buffers.take(PAGE_LEN);
    page.fill(0);
    // It has no records, so it lies in one sector, which is written or not.
    empty.write_to(&mut page);
    let offset = u64::from(header.offset_bytes);
    store.device.write_at(&page, store.segments.area.offset_of(header.segment, offset))
}

#[derive(Debug, Clone, Copy)]
struct Place {
    segment: u32,
    /// Where in the segment the payload starts.
    payload_at: u32,
}

impl Planned {
    fn record(&self, payload_at: u32) -> Record {
        let content = match self.what {
            PlannedWhat::Object { encoding, len, checksum, at, .. } => {
                Content::Object { encoding: encoding as u8, offset: payload_at + at, len, checksum }
            }
            PlannedWhat::SameFilled { word, .. } => Content::SameFilled(word),
            PlannedWhat::Discarded { count, .. } => Content::Discarded(count),
        };
        Record { sequence: self.sequence, slot: self.slot, content }
    }
}

fn publish(store: &Store, planned: &Planned, place: Place) {
    let slot = u64::from(planned.slot);
    match planned.what {
        PlannedWhat::Object { expected, encoding, len, at, rider, .. } => {
            let offset = u64::from(place.segment) * store.segments.area.segment_bytes
                + u64::from(place.payload_at + at);
            let location = DEVICE_START + offset as Location;
            let len = usize::from(len);
            let object = Object { encoding, location, len };
            let new = if rider { Entry::shared_object(object) } else { Entry::object(object) };
            // Counted before it can die.
            store.segments.add_object(place.segment, len, rider);
            if store.replace(slot, expected, new) {
                crash::pass(Point::LogPublished);
                if expected.is_shared() != rider {
                    store.counters.replaced(expected, new);
                }
                store.release(expected);
            } else {
                store.segments.sub_object(place.segment, len, rider);
            }
        }
        PlannedWhat::SameFilled { word, changes } => {
            store.segments.add_plain(place.segment);
            store.unbuffer(slot, word, changes, place.segment);
            crash::pass(Point::LogPublished);
        }
        PlannedWhat::Discarded { count, clear } => {
            store.segments.add_plain(place.segment);
            store.undiscard((slot, u64::from(count)), planned.sequence, clear);
        }
    }
}
