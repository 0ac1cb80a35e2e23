//! `ram`: pages as they are, in memory that is populated when the volume is mounted.
//!
//! For tests and measurements: it shows what the way through FUSE and `Volume` costs when
//! storing costs nothing. As a swap area it only moves pages from memory to memory.

use super::{AtStart, Backend};
use crate::crash::{self, Point};
use crate::error::Result;
use crate::held::Held;
use crate::sync::RwLock;
use crate::sys::memory::Mapping;
use std::io;
use swapfs_format::PAGE_LEN;

/// Slots under one lock. Requests that do not overlap rarely meet.
const SLOTS_PER_LOCK: u64 = 64;

/// The back end.
#[derive(Debug)]
pub struct Ram {
    memory: Mapping,
    locks: Box<[RwLock<()>]>,
}

impl Ram {
    /// Takes memory for `slot_count` slots, all of it now.
    ///
    /// # Errors
    /// `ENOMEM` if there is not as much.
    pub fn new(slot_count: u64, held: &Held) -> io::Result<Ram> {
        let len = usize::try_from(slot_count)
            .ok()
            .and_then(|slots| slots.checked_mul(PAGE_LEN))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = held.map_populated(0, len)?;
        let locks = (0..slot_count.div_ceil(SLOTS_PER_LOCK)).map(|_| RwLock::new(())).collect();
        Ok(Ram { memory, locks })
    }

    /// Calls `copy` with the address and length of each part of the range that one lock covers.
    fn each_part(&self, first: u64, count: u64, mut copy: impl FnMut(u64, *mut u8, usize)) {
        let mut slot = first;
        let end = first + count;
        while slot < end {
            let part_end = end.min((slot / SLOTS_PER_LOCK + 1) * SLOTS_PER_LOCK);
            let len = (part_end - slot) as usize * PAGE_LEN;
            let offset = slot as usize * PAGE_LEN;
            assert!(offset + len <= self.memory.len());
            // SAFETY: the offset lies inside the mapping, as just checked.
            let start = unsafe { self.memory.as_ptr().add(offset) };
            copy(slot, start, len);
            slot = part_end;
        }
    }

    fn lock_of(&self, slot: u64) -> &RwLock<()> {
        &self.locks[(slot / SLOTS_PER_LOCK) as usize]
    }
}

impl Backend for Ram {
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        let mut rest = pages;
        self.each_part(first, (rest.len() / PAGE_LEN) as u64, |slot, start, len| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
            let _shared = self.lock_of(slot).read();
            // SAFETY: `start` has `len` bytes; writers of them hold the same lock exclusively.
            part.copy_from_slice(unsafe { std::slice::from_raw_parts(start, len) });
            rest = behind;
        });
        Ok(())
    }

    fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        let mut rest = pages;
        self.each_part(first, (rest.len() / PAGE_LEN) as u64, |slot, start, len| {
            let (part, behind) = rest.split_at(len);
            let _exclusive = self.lock_of(slot).write();
            // SAFETY: `start` has `len` bytes, and nobody else has them while the lock is held.
            let to = unsafe { std::slice::from_raw_parts_mut(start, len) };
            // A kill in here leaves pages that are neither old nor new. Their write was not
            // answered and comes again, and the kernel reads no page that it is writing.
            let half = len / PAGE_LEN / 2 * PAGE_LEN;
            to[..half].copy_from_slice(&part[..half]);
            crash::pass(Point::RamHalf);
            to[half..].copy_from_slice(&part[half..]);
            rest = behind;
        });
        Ok(())
    }

    fn discard(&self, first: u64, count: u64) -> Result<()> {
        // Not given back to the system: a later write would have to fault the page in.
        self.each_part(first, count, |slot, start, len| {
            let _exclusive = self.lock_of(slot).write();
            // SAFETY: as for `write`.
            unsafe { std::slice::from_raw_parts_mut(start, len) }.fill(0);
        });
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn at_start(&self) -> AtStart {
        AtStart::Empty
    }

    fn activate(&self) -> io::Result<()> {
        Ok(())
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        report("memory_bytes", self.memory.len() as u64);
    }
}
