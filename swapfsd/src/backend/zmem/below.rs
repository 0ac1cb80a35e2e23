//! What this back end does where it is the top of a `tier` volume: pages may lie below the arena
//! ([`crate::backend::tier`]), or have a copy there.
//!
//! An entry whose object lies at a device's location names a page below. An object in the arena
//! whose entry says that it is *shared* has a copy below: the word beside the entry is the entry
//! that it had there, and is not changed as long as the entry says so.

use super::counters::Field;
use super::{Store, Writer};
use crate::backend::objects::entry::{Entry, Object};
use crate::backend::objects::lock_any;
use crate::backend::tier::policy;
use crate::control::InDevice;
use crate::crash::{self, Point};
use crate::error::{Error, ErrorKind, Operation, Result};
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a write waits for a segment before it asks for pages to be moved down.
pub(super) const IMPATIENCE: Duration = Duration::from_millis(20);
/// How long it then waits before it is refused: slow devices are given time.
const PATIENCE: Duration = Duration::from_secs(8);
/// How often it looks.
const STEP: Duration = Duration::from_millis(1);

/// Where a page was found.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) enum Found {
    /// It was read.
    Page,
    /// It lies below, where this entry says.
    Below(Entry, Object),
}

/// What a slot's entry was, and what it needed.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct Replaced {
    pub(in crate::backend) entry: Entry,
    copy: Option<Entry>,
}

impl Store {
    /// Slots that hold a page, wherever.
    pub(in crate::backend) fn pages(&self) -> u64 {
        self.counters.sum(Field::Pages)
    }

    /// Pages that were read from memory.
    pub(in crate::backend) fn pages_read(&self) -> u64 {
        [Field::ReadSame, Field::ReadRaw, Field::ReadLz4, Field::ReadZstd]
            .into_iter()
            .map(|field| self.counters.sum(field))
            .sum()
    }

    /// Pages in memory that did not check.
    pub(in crate::backend) fn read_errors(&self) -> u64 {
        self.counters.sum(Field::ChecksumErrors)
    }

    /// Puts `new` in the place of a slot's entry. The caller has the slot's lock, alone.
    pub(in crate::backend) fn swap(&self, slot: u64, cell: &AtomicU64, new: Entry) -> Replaced {
        let new = match new.as_object() {
            Some(_) if self.lower.is_some() => new.with_age(policy::AGE_OF_NEW),
            _ => new,
        };
        let entry = Entry(cell.swap(new.0, Ordering::AcqRel));
        Replaced { entry, copy: self.copy_of(slot, entry) }
    }

    /// The entry that names the copy below of a slot's page, whose entry is `entry`. The caller
    /// has the slot's lock, or nobody else is there.
    pub(in crate::backend) fn copy_of(&self, slot: u64, entry: Entry) -> Option<Entry> {
        self.lower.as_ref()?;
        let object = entry.as_object()?;
        if object.device_offset().is_some() || !entry.is_shared() {
            return None;
        }
        Some(Entry(self.table.word(slot)?.load(Ordering::Acquire)))
    }

    /// Frees what an entry named that is no longer in the table, the copy below too.
    pub(in crate::backend) fn release_all(&self, slot: u64, old: Replaced) {
        self.release(slot, old.entry);
        if let Some(copy) = old.copy {
            self.release_copy(slot, copy);
        }
    }

    fn release_copy(&self, slot: u64, copy: Entry) {
        self.release(slot, copy);
        if let Some(lower) = &self.lower {
            lower.count_copy(false);
        }
    }

    /// `new`, which names a page's new place in the arena, with the copy below that the page had
    /// as of `old`.
    pub(super) fn with_copy_of(&self, new: Entry, old: Entry) -> Entry {
        match new.as_object() {
            Some(object) if self.lower.is_some() && old.is_shared() => {
                Entry::shared_object(object).with_history_of(new)
            }
            _ => new,
        }
    }

    /// Frees the copy below of a slot's page, if it has one. False: it has none.
    pub(in crate::backend) fn drop_copy(&self, slot: u64, cell: &AtomicU64) -> bool {
        if self.lower.is_none() || !Entry(cell.load(Ordering::Acquire)).is_shared() {
            return false;
        }
        let alone = self.slots.of(slot).write();
        loop {
            let entry = Entry(cell.load(Ordering::Acquire));
            let (Some(copy), Some(object)) = (self.copy_of(slot, entry), entry.as_object()) else {
                return false;
            };
            let without = Entry::object(object).with_history_of(entry);
            // Its age may change without the lock.
            let exchange =
                cell.compare_exchange(entry.0, without.0, Ordering::AcqRel, Ordering::Acquire);
            if exchange.is_ok() {
                drop(alone);
                crash::pass(Point::TierCopyDropped);
                self.release_copy(slot, copy);
                return true;
            }
        }
    }

    /// Writes a page for which there was no room, when pages were moved down. A swap-out waits
    /// here, and only here, for those that move them; until `deadline`, which is set if it is not.
    ///
    /// # Errors
    /// `NoSpace`: nothing below takes pages, or not in time.
    pub(super) fn write_when_there_is_room<'a>(
        &'a self,
        mut writer: MutexGuard<'a, Writer>,
        slot: u64,
        page: &[u8],
        deadline: &mut Option<Instant>,
    ) -> Result<MutexGuard<'a, Writer>> {
        let Some(lower) = self.lower.as_ref() else {
            return Err(Error::new(ErrorKind::NoSpace, Operation::Write, slot));
        };
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
        lower.enter_wait();
        // A device is waited for, as far as the supervisor's watchdog is concerned.
        let _in_device = InDevice::enter();
        let outcome = loop {
            let takes_pages = lower.urge();
            drop(writer);
            std::thread::sleep(STEP);
            self.pool.arena.forget_no_gain();
            writer = lock_any(&self.writers);
            match self.write_page(&mut writer, slot, page) {
                Ok(()) => break Ok(writer),
                Err(error)
                    // The kernel keeps the page, and tries again.
                    if !takes_pages
                        || lower.is_clogged()
                        || Instant::now() >= deadline
                        || self.stop.load(Ordering::Relaxed) =>
                {
                    break Err(error);
                }
                Err(_) => {}
            }
        };
        lower.leave_wait();
        outcome
    }
}
