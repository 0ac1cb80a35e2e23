//! A checksum for every slot, in memory that is there from the start: 4 bytes a slot.
//!
//! 31 bits of CRC-32, and one bit that says that the slot is being written. A process that is
//! killed between the device's write and the new checksum leaves that bit: nobody knows which of
//! the two pages the slot holds until the write, which was not answered, comes again.

use crate::held::Held;
use crate::sys::memory::Mapping;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use swapfs_format::PAGE_LEN;

/// Nothing is known about the slot since the mount.
const UNKNOWN: u32 = 0;
/// The slot is being written.
const CHANGING: u32 = 1 << 31;

/// The table. That a slot's page and its entry change together is `Volume`'s doing: it lets no
/// other request at a slot that is being written.
#[derive(Debug)]
pub(super) struct ChecksumTable {
    memory: Mapping,
    slot_count: u64,
    zero_page: u32,
}

impl ChecksumTable {
    pub(super) fn new(slot_count: u64, held: &Held) -> io::Result<ChecksumTable> {
        let len = usize::try_from(slot_count).map_err(|_| io::ErrorKind::OutOfMemory)? * 4;
        let memory = held.map_populated(0, len.next_multiple_of(PAGE_LEN))?;
        Ok(ChecksumTable { memory, slot_count, zero_page: checksum(&[0; PAGE_LEN]) })
    }

    fn entry(&self, slot: u64) -> &AtomicU32 {
        assert!(slot < self.slot_count);
        // SAFETY: the index was just checked: it lies inside the mapping.
        let entry = unsafe { self.memory.as_ptr().cast::<AtomicU32>().add(slot as usize) };
        // SAFETY: aligned, zeroed at the start, and only ever accessed through these atomics.
        unsafe { &*entry }
    }

    /// The slots are about to change: until that is done, or called off, nothing is known of
    /// them should this process end.
    pub(super) fn begin(&self, first: u64, count: u64) {
        for slot in first..first + count {
            self.entry(slot).fetch_or(CHANGING, Ordering::AcqRel);
        }
    }

    /// The change failed: the slots should hold what they held.
    pub(super) fn call_off(&self, first: u64, count: u64) {
        for slot in first..first + count {
            self.entry(slot).fetch_and(!CHANGING, Ordering::AcqRel);
        }
    }

    /// Remembers the pages that were written from slot `first` on.
    pub(super) fn record(&self, first: u64, pages: &[u8]) {
        for (slot, page) in (first..).zip(pages.chunks_exact(PAGE_LEN)) {
            self.entry(slot).store(checksum(page), Ordering::Release);
        }
    }

    /// The slots now read as zeros.
    pub(super) fn record_discard(&self, first: u64, count: u64) {
        for slot in first..first + count {
            self.entry(slot).store(self.zero_page, Ordering::Release);
        }
    }

    /// The first slot whose page is not what was written.
    pub(super) fn first_mismatch(&self, first: u64, pages: &[u8]) -> Option<u64> {
        (first..).zip(pages.chunks_exact(PAGE_LEN)).find_map(|(slot, page)| {
            let stored = self.entry(slot).load(Ordering::Acquire);
            let known = stored != UNKNOWN && stored & CHANGING == 0;
            (known && stored != checksum(page)).then_some(slot)
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.memory.len() as u64
    }
}

/// 31 bits of a page's CRC-32, never [`UNKNOWN`].
fn checksum(page: &[u8]) -> u32 {
    match crc32fast::hash(page) & !CHANGING {
        UNKNOWN => 1,
        crc => crc,
    }
}
