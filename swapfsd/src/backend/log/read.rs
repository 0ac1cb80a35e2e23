//! Reading: what lies together on the device is read together.
//!
//! A part has its objects in the order of slots, so the eight pages of a swap read-ahead are one
//! piece of a few kilobytes more often than not, and one read of the device.

use super::Store;
use super::counters::Field;
use crate::backend::objects::entry::{AGE_MASK, Entry, HEADER_BYTES, Meaning, Object};
use crate::backend::objects::neighbours::{Run, first_run};
use crate::backend::objects::{fill, lock_any};
use crate::codec::{self, Encoding};
use crate::error::{Error, ErrorKind, Operation, Result};
use std::sync::atomic::Ordering;
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

/// Pages that are looked up before the device is read.
const BATCH: usize = 64;
/// The most that is read at a time.
const MAX_READ_BYTES: u64 = 256 << 10;
/// How often a page is looked for that keeps being moved.
const TRIES: u32 = 64;

/// A page that is on the device.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Which of the batch it is.
    index: usize,
    entry: Entry,
    object: Object,
    offset: u64,
}

const NOTHING: Wanted = Wanted {
    index: 0,
    entry: Entry::ABSENT,
    object: Object { encoding: Encoding::Raw, location: 0, len: 0 },
    offset: 0,
};

/// What became of a page.
enum Outcome {
    Done,
    OnDevice(Wanted),
}

impl Store {
    pub(super) fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        for (start, batch) in (first..).step_by(BATCH).zip(pages.chunks_mut(BATCH * PAGE_LEN)) {
            self.read_batch(start, batch)?;
        }
        Ok(())
    }

    fn read_batch(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        let mut wanted = [NOTHING; BATCH];
        let mut count = 0;
        for (index, page) in pages.chunks_exact_mut(PAGE_LEN).enumerate() {
            match self.look_up(first + index as u64, index, page)? {
                Outcome::Done => {}
                Outcome::OnDevice(found) => {
                    wanted[count] = found;
                    count += 1;
                }
            }
        }
        let wanted = &mut wanted[..count];
        wanted.sort_unstable_by_key(|wanted| wanted.offset);
        let mut rest = &*wanted;
        let place = |wanted: &Wanted| (wanted.offset, end_of(wanted));
        while let Some(Run { count, from, end }) = first_run(rest, place, MAX_READ_BYTES) {
            let (run, others) = rest.split_at(count);
            self.read_run(first, run, from, end, pages)?;
            rest = others;
        }
        Ok(())
    }

    /// Reads from the device, from byte `from` of the data section up to `end`, and takes the
    /// pages of `run` out of it.
    fn read_run(
        &self,
        first: u64,
        run: &[Wanted],
        from: u64,
        end: u64,
        pages: &mut [u8],
    ) -> Result<()> {
        let mut buffer = self.buffers.take((end - from) as usize);
        let outcome = self.device.read_at(&mut buffer, self.segments.area.data_offset_bytes + from);
        self.counters.add(Field::DeviceReads, 1);
        self.counters.add(Field::DeviceReadBytes, end - from);
        let read = &*buffer;
        let mut again = [0; BATCH];
        let mut count = 0;
        for wanted in run {
            let page = &mut pages[wanted.index * PAGE_LEN..][..PAGE_LEN];
            let start = (wanted.offset - from) as usize;
            let stored = &read[start..start + HEADER_BYTES + wanted.object.len];
            let slot = first + wanted.index as u64;
            // The right bytes may be another slot's, if this one's were moved and the segment was
            // written again meanwhile. As long as the entry is the same, they were not.
            if outcome.is_ok()
                && self.decode(&wanted.object, stored, page)
                && self.entry(slot).is_same_as(wanted.entry)
            {
                self.counters.add(Field::ReadDevice, 1);
            } else {
                again[count] = wanted.index;
                count += 1;
            }
        }
        drop(buffer);
        // One by one: they were moved, or the device can't read some of it.
        for index in &again[..count] {
            let page = &mut pages[index * PAGE_LEN..][..PAGE_LEN];
            self.read_alone(first + *index as u64, page)?;
        }
        Ok(())
    }

    /// Reads one page that could not be read with others.
    fn read_alone(&self, slot: u64, page: &mut [u8]) -> Result<()> {
        let mut error = Error::new(ErrorKind::Io, Operation::Read, slot);
        for _ in 0..TRIES {
            let wanted = match self.look_up(slot, 0, page)? {
                Outcome::Done => return Ok(()),
                Outcome::OnDevice(wanted) => wanted,
            };
            let from = wanted.offset / PAGE_BYTES * PAGE_BYTES;
            let end = end_of(&wanted).next_multiple_of(PAGE_BYTES);
            let mut buffer = self.buffers.take((end - from) as usize);
            let offset = self.segments.area.data_offset_bytes + from;
            let outcome = self.device.read_at(&mut buffer, offset);
            self.counters.add(Field::DeviceReads, 1);
            self.counters.add(Field::DeviceReadBytes, end - from);
            let start = (wanted.offset - from) as usize;
            let stored = &buffer[start..start + HEADER_BYTES + wanted.object.len];
            let right = outcome.is_ok() && self.decode(&wanted.object, stored, page);
            drop(buffer);
            // Moved while it was read: then it is elsewhere now, and what was read means nothing.
            if !self.entry(slot).is_same_as(wanted.entry) {
                continue;
            }
            if right {
                self.counters.add(Field::ReadDevice, 1);
                return Ok(());
            }
            match outcome {
                Ok(()) => {
                    self.damaged(slot, "found by a read");
                    return Err(Error::new(ErrorKind::Checksum, Operation::Read, slot));
                }
                Err(errno) => {
                    self.counters.add(Field::DeviceErrors, 1);
                    return Err(Error::from_os(Operation::Read, slot, errno));
                }
            }
        }
        error.kind = ErrorKind::Io;
        Err(error)
    }

    /// Reads a page that is in memory, or says where on the device it is.
    fn look_up(&self, slot: u64, index: usize, page: &mut [u8]) -> Result<Outcome> {
        let Some(cell) = self.table.cell_of(slot) else {
            page.fill(0);
            self.counters.add(Field::ReadAbsent, 1);
            return Ok(Outcome::Done);
        };
        let _shared = self.slots.of(slot).read();
        let entry = Entry(cell.load(Ordering::Acquire));
        match entry.meaning() {
            Meaning::Absent | Meaning::Discarded(_) | Meaning::Discarding(_) => {
                page.fill(0);
                self.counters.add(Field::ReadAbsent, 1);
                return Ok(Outcome::Done);
            }
            Meaning::SameFilled(word) => {
                fill(page, word);
                self.counters.add(Field::ReadSame, 1);
                return Ok(Outcome::Done);
            }
            Meaning::Object(object) => {
                if entry.age() != 0 {
                    cell.fetch_and(!AGE_MASK, Ordering::Relaxed);
                }
                if let Some(offset) = object.device_offset() {
                    let end = offset + u64::from(object.stored_bytes());
                    if self.segments.segment_of(offset).is_some()
                        && self.segments.segment_of(end).is_some_and(|_| true)
                        || end == self.data_bytes()
                    {
                        return Ok(Outcome::OnDevice(Wanted { index, entry, object, offset }));
                    }
                } else if let Some(stored) = self.buffer.stored(&object)
                    && self.decode(&object, stored, page)
                {
                    self.counters.add(Field::ReadBuffer, 1);
                    return Ok(Outcome::Done);
                }
            }
            Meaning::SameFilledBeside(_) | Meaning::Damaged => {}
        }
        self.damaged(slot, "in memory");
        Err(Error::new(ErrorKind::Checksum, Operation::Read, slot))
    }

    fn data_bytes(&self) -> u64 {
        u64::from(self.segments.area.segment_count) * self.segments.area.segment_bytes
    }

    /// Checks and decodes an object, `stored` with its checksum; false if it is not what was
    /// stored.
    fn decode(&self, object: &Object, stored: &[u8], page: &mut [u8]) -> bool {
        let (front, bytes) = stored.split_at(HEADER_BYTES);
        let checksum = u32::from_le_bytes([front[0], front[1], front[2], front[3]]);
        if codec::checksum(object.encoding, bytes) != checksum {
            return false;
        }
        match object.encoding {
            Encoding::Zstd => lock_any(&self.decoders).decode_zstd(bytes, page),
            encoding => codec::decode(encoding, bytes, page),
        }
    }
}

fn end_of(wanted: &Wanted) -> u64 {
    wanted.offset + u64::from(wanted.object.stored_bytes())
}
