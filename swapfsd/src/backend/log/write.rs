//! Writes and discards: into the buffer, and into the slot table.

use super::buffer::{self, OpenChunk, What};
use super::counters::Field;
use super::part::device_bytes;
use super::{PATIENCE, Store, Writer, cost_of};
use crate::backend::objects::entry::{self, Entry, Meaning};
use crate::backend::objects::{WritePages, lock_any};
use crate::codec::{self, Encoded, Encoding};
use crate::crash::{self, Point};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use swapfs_format::PAGE_LEN;
use swapfs_format::log::RECORD_LEN;

impl Store {
    fn write_page(&self, writer: &mut Writer, slot: u64, page: &[u8]) -> Result<()> {
        let no_space = || {
            self.counters.add(Field::Refused, 1);
            Error::new(ErrorKind::NoSpace, Operation::Write, slot)
        };
        let Writer { encoder, open } = writer;
        let (encoding, bytes) = match encoder.encode(page) {
            Encoded::SameFilled(word) => match Entry::same_filled_at(word, 0) {
                Some(entry) => {
                    return self.write_word(open, slot, word, entry).ok_or_else(no_space);
                }
                // The word has no place in the entry: a small object.
                None => {
                    let bytes = entry::word_object(word);
                    return self
                        .write_object(open, slot, Encoding::Lz4, &bytes)
                        .ok_or_else(no_space);
                }
            },
            Encoded::Bytes(encoding, bytes) => (encoding, bytes),
        };
        self.write_object(open, slot, encoding, bytes).ok_or_else(no_space)
    }

    fn write_word(&self, open: &mut OpenChunk, slot: u64, word: u64, entry: Entry) -> Option<()> {
        let current = self.entry(slot);
        if current.meaning() == Meaning::SameFilled(word) {
            return Some(());
        }
        let charge = self.charge(current, RECORD_LEN as u64)?;
        let cell = self.with_room(open, |_| self.table.cell_or_make(slot))?;
        let record = self
            .with_room(open, |open| self.buffer.append_plain(open, slot, What::SameFilled(word)))?;
        self.accepted(RECORD_LEN as u64);
        charge.keep();
        self.publish(slot, cell, record, entry.buffered());
        Some(())
    }

    fn write_object(
        &self,
        open: &mut OpenChunk,
        slot: u64,
        encoding: Encoding,
        bytes: &[u8],
    ) -> Option<()> {
        let charge = self.charge(self.entry(slot), device_bytes(bytes.len()))?;
        // Before the object, so that there is none to take back.
        let cell = self.with_room(open, |_| self.table.cell_or_make(slot))?;
        let checksum = codec::checksum(encoding, bytes);
        let object = self.with_room(open, |open| {
            self.buffer.append_object(open, slot, (encoding, checksum), bytes)
        })?;
        self.accepted(device_bytes(bytes.len()));
        charge.keep();
        self.publish(slot, cell, buffer::record_of(&object), Entry::object(object));
        Some(())
    }

    fn accepted(&self, bytes: u64) {
        self.counters.add(Field::AcceptedBytes, bytes);
        self.device.accepted(bytes);
    }

    /// Appends; if there is no room, what other writers have open may be written out.
    fn with_room<T>(
        &self,
        open: &mut OpenChunk,
        mut append: impl FnMut(&mut OpenChunk) -> Option<T>,
    ) -> Option<T> {
        let mut deadline = None;
        loop {
            if let Some(appended) = append(open) {
                return Some(appended);
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
            if Instant::now() >= deadline || self.stop.load(Ordering::Relaxed) {
                return None;
            }
            for mut writer in self.writers.iter().filter_map(Mutex::try_lock) {
                self.buffer.close(&mut writer.open);
            }
            self.buffer.force();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Makes sure that the device has room for what a slot is to hold instead of `old`.
    fn charge(&self, old: Entry, cost: u64) -> Option<Charge<'_>> {
        let before = self.accounted_bytes.fetch_add(cost, Ordering::Relaxed);
        let charge = Charge { store: self, cost };
        let lost = self.unreadable_bytes.load(Ordering::Relaxed);
        let usable = self.layout.usable_bytes.saturating_sub(lost);
        // What is smaller than what it replaces is no promise of more than there is.
        (cost <= cost_of(old) || before + cost <= usable + cost_of(old)).then_some(charge)
    }

    /// Completes the record, makes `entry` the slot's, and frees what it was before.
    fn publish(&self, slot: u64, cell: &AtomicU64, record: entry::Location, entry: Entry) {
        let mut alone = self.slots.of(slot).write();
        *alone += 1;
        self.buffer.complete(record, self.segments.next_write());
        let old = Entry(cell.swap(entry.0, Ordering::AcqRel));
        drop(alone);
        crash::pass(Point::LogWritten);
        self.forget(old, entry);
    }

    /// The slot's entry was `old`, and is `new` now.
    fn forget(&self, old: Entry, new: Entry) {
        self.counters.replaced(old, new);
        self.accounted_bytes.fetch_sub(cost_of(old), Ordering::Relaxed);
        if let Some(object) = old.as_object()
            && object.device_offset().is_none()
        {
            self.counters.add(Field::AbsorbedBytes, device_bytes(object.len));
        }
        self.release(old);
    }

    /// Frees the object of an entry that is no longer in the table.
    pub(super) fn release(&self, old: Entry) {
        let Some(object) = old.as_object() else { return };
        match object.device_offset() {
            None => self.buffer.free(&object),
            Some(offset) => {
                if let Some(segment) = self.segments.segment_of(offset) {
                    self.segments.sub_object(segment, object.len, old.is_shared());
                }
            }
        }
    }

    pub(super) fn discard(&self, first: u64, count: u64) {
        let mut present = false;
        let is_known = |cell: &AtomicU64| {
            let entry = Entry(cell.load(Ordering::Acquire));
            matches!(entry.meaning(), Meaning::Discarded(_))
        };
        self.table.for_each(first, first + count, |_, cell| present |= !is_known(cell));
        if !present {
            return;
        }
        let mut slot = first;
        while slot < first + count {
            let part = (first + count - slot).min(u64::from(u32::MAX));
            let mut writer = lock_any(&self.writers);
            let what = What::Discarded(part as u32);
            let record =
                self.with_room(&mut writer.open, |open| self.buffer.append_plain(open, slot, what));
            self.table.for_each(slot, slot + part, |slot, cell| {
                // The device has a record of its own for that slot.
                if is_known(cell) {
                    return;
                }
                let mut alone = self.slots.of(slot).write();
                *alone += 1;
                let old = Entry(cell.swap(Entry::DISCARDED.0, Ordering::AcqRel));
                drop(alone);
                crash::pass(Point::LogDiscarding);
                // It can't be refused.
                self.accounted_bytes.fetch_add(cost_of(Entry::DISCARDED), Ordering::Relaxed);
                self.forget(old, Entry::DISCARDED);
            });
            // Last, so that no record of what was discarded has a greater number.
            let sequence = self.segments.next_write();
            match record {
                Some(record) => {
                    self.table.for_each(slot, slot + part, |slot, cell| {
                        let _alone = self.slots.of(slot).write();
                        // The collector may have told a device already.
                        if cell.load(Ordering::Acquire) == Entry::DISCARDED.0 {
                            cell.store(Entry::discarding(sequence).0, Ordering::Release);
                        }
                    });
                    self.buffer.complete(record, sequence);
                }
                // The slots hold nothing all the same, until a power failure.
                None => self.counters.add(Field::DiscardsNotNoted, 1),
            }
            slot += part;
        }
    }
}

/// Room on the device that a write has been promised; given back if it is not kept.
struct Charge<'a> {
    store: &'a Store,
    cost: u64,
}

impl Charge<'_> {
    fn keep(mut self) {
        self.cost = 0;
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.store.accounted_bytes.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

impl WritePages for Store {
    fn write_pages(&self, first: u64, pages: &[u8]) -> Result<()> {
        let mut writer = lock_any(&self.writers);
        for (slot, page) in (first..).zip(pages.chunks_exact(PAGE_LEN)) {
            self.write_page(&mut writer, slot, page)?;
        }
        Ok(())
    }
}
