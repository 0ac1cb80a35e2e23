//! What the device has, and what it knows: writing out, flushing, and what becomes of entries then.

use super::buffer::Buffer;
use super::counters::Field;
use super::part::Clear;
use super::{FAILING, LOOK, Store};
use crate::backend::objects::entry::{Entry, Meaning};
use crate::control::InDevice;
use crate::sync::Mutex;
use crate::sys::file::Discarded;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What an entry says of the segment that a word's record is in.
pub(super) fn tag_of(segment: u32) -> u16 {
    segment as u16
}

impl Store {
    /// A device has a record of this word in `segment`, as it was when the slot's lock had counted
    /// `changes`. If nothing has changed since, the slot's entry says so from now on.
    pub(super) fn unbuffer(&self, slot: u64, word: u64, changes: u64, segment: u32) {
        let Some(cell) = self.table.cell_of(slot) else { return };
        let Some(entry) = Entry::same_filled_at(word, tag_of(segment)) else { return };
        let now = self.slots.of(slot).write();
        let said = Entry(cell.load(Ordering::Acquire)).meaning();
        if *now == changes && said == Meaning::SameFilled(word) {
            cell.store(entry.0, Ordering::Release);
        }
    }

    /// A device knows that these slots were discarded, by the record of that number. Those that
    /// surely are what they are by it say so from now on.
    pub(super) fn undiscard(&self, (first, count): (u64, u64), sequence: u64, clear: Clear) {
        if clear == Clear::Never {
            return;
        }
        self.table.for_each(first, first + count, |slot, cell| {
            let now = self.slots.of(slot).write();
            let entry = Entry(cell.load(Ordering::Acquire));
            let sure = match clear {
                Clear::IfUnchanged(changes) => {
                    *now == changes && entry.is_absent() && entry != Entry::ABSENT
                }
                _ => entry == Entry::discarding(sequence),
            };
            if sure {
                cell.store(Entry::discarded_by(sequence).0, Ordering::Release);
            }
        });
    }

    /// Is any of these slots discarded by the record of that number, and no device knows it?
    pub(super) fn any_discarded(&self, first: u64, count: u64, sequence: u64) -> bool {
        let end = (first + count).min(self.table.slot_count());
        (first..end).any(|slot| self.entry(slot) == Entry::discarding(sequence))
    }

    /// Closes chunks that have been open for long, so that their turn comes.
    pub(super) fn close_old_chunks(&self) {
        for mut writer in self.writers.iter().filter_map(Mutex::try_lock) {
            if Buffer::is_older(&writer.open, self.deadline) {
                self.buffer.close(&mut writer.open);
            }
        }
    }

    /// Writes everything that is buffered by now; false: the volume is being unmounted, or the
    /// device takes nothing.
    pub(super) fn write_out(&self) -> bool {
        // Waiting for the device, if by way of other threads: no hang.
        let _in_device = InDevice::enter();
        for writer in &self.writers {
            self.buffer.close(&mut writer.lock().open);
        }
        let upto = self.buffer.force();
        while !self.buffer.wait_written(upto, LOOK) {
            let failing = self.failing_since.lock().is_some_and(|since| since.elapsed() > FAILING);
            if failing || self.stop.load(Ordering::Relaxed) {
                return false;
            }
        }
        true
    }

    #[cfg(test)]
    pub(super) fn write_out_for(&self, at_most: std::time::Duration) -> bool {
        for writer in &self.writers {
            self.buffer.close(&mut writer.lock().open);
        }
        let upto = self.buffer.force();
        self.buffer.wait_written(upto, at_most)
    }

    /// Has the device keep what is written to it.
    pub(super) fn flush_device(&self) -> Result<(), i32> {
        let completed = self.segments.completed_part();
        let outcome = self.device.flush();
        match outcome {
            Ok(()) => {
                self.segments.note_durable(completed);
                self.counters.add(Field::Flushes, 1);
            }
            Err(errno) => self.device_failed("flush", 0, errno),
        }
        outcome
    }

    /// Pending segments from `first` up to `end` are free.
    pub(super) fn discard_segments(&self, first: u32, end: u32) {
        let area = &self.segments.area;
        if self.discard.load(Ordering::Relaxed) {
            let length = u64::from(end - first) * area.segment_bytes;
            match self.device.discard(area.offset_of(first, 0), length) {
                Ok(Discarded::Yes) => {
                    self.counters.add(Field::DiscardedBytes, length);
                }
                _ => self.discard.store(false, Ordering::Relaxed),
            }
        }
        for segment in first..end {
            self.segments.make_free(segment);
            self.counters.add(Field::SegmentsFreed, 1);
        }
    }

    pub(super) fn device_works(&self) {
        let mut failing_since = self.failing_since.lock();
        if failing_since.is_some() {
            *failing_since = None;
        }
    }

    pub(super) fn device_failed(&self, doing: &str, segment: u32, errno: i32) {
        self.counters.add(Field::DeviceErrors, 1);
        self.failing_since.lock().get_or_insert_with(Instant::now);
        let error = io::Error::from_raw_os_error(errno);
        log::error!("{doing} of segment {segment} failed: {error}");
    }
}
