//! A CRC-32 for every slot, in memory that is there from the start: 4 bytes a slot.

use crate::sys::memory::Mapping;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use swapfs_format::PAGE_LEN;

/// Nothing is known about the slot since the mount.
const UNKNOWN: u32 = 0;

/// The table. That a slot's page and its entry change together is `Volume`'s doing: it lets no
/// other request at a slot that is being written.
#[derive(Debug)]
pub(super) struct ChecksumTable {
    memory: Mapping,
    slot_count: u64,
    zero_page: u32,
}

impl ChecksumTable {
    pub(super) fn new(slot_count: u64) -> io::Result<ChecksumTable> {
        let len = usize::try_from(slot_count).map_err(|_| io::ErrorKind::OutOfMemory)? * 4;
        let memory = Mapping::new(len.next_multiple_of(PAGE_LEN), true)?;
        Ok(ChecksumTable { memory, slot_count, zero_page: checksum(&[0; PAGE_LEN]) })
    }

    fn entry(&self, slot: u64) -> &AtomicU32 {
        assert!(slot < self.slot_count);
        // SAFETY: the index was just checked: it lies inside the mapping.
        let entry = unsafe { self.memory.as_ptr().cast::<AtomicU32>().add(slot as usize) };
        // SAFETY: aligned, zeroed at the start, and only ever accessed through these atomics.
        unsafe { &*entry }
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
            (stored != UNKNOWN && stored != checksum(page)).then_some(slot)
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.memory.len() as u64
    }
}

/// CRC-32 of a page, never [`UNKNOWN`].
fn checksum(page: &[u8]) -> u32 {
    match crc32fast::hash(page) {
        UNKNOWN => 1,
        crc => crc,
    }
}
