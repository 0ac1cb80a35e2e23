//! What back ends that store compressed objects have in common: the slot table and the memory
//! under it.
//!
//! * [`entry`], [`table`]: the slot table, one 8-byte entry a slot, the truth;
//! * [`arena`]: populated memory in segments, for objects and for the table's pages;
//! * [`kept`]: what else outlives the process, where a supervisor holds the memory;
//! * [`fanout`]: a large write on several threads; [`neighbours`]: what is read by one read;
//!   [`counts`]: counters.

pub(super) mod arena;
pub(super) mod counts;
pub(super) mod entry;
pub(super) mod fanout;
pub(super) mod kept;
pub(super) mod neighbours;
pub(super) mod table;

use crate::error::Result;
use crate::sync::{Mutex, RwLock};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Locks of slots. Two requests meet by chance once in so many.
const LOCKS: usize = 1024;

/// The slots' locks. One is shared by those who read the slot's object, and taken alone by who
/// changes its entry. The number in it is for back ends that count such changes.
#[derive(Debug)]
pub(super) struct Slots(Box<[RwLock<u64>]>);

impl Default for Slots {
    fn default() -> Slots {
        Slots((0..LOCKS).map(|_| RwLock::new(0)).collect())
    }
}

impl Slots {
    pub(super) fn of(&self, slot: u64) -> &RwLock<u64> {
        &self.0[slot as usize % LOCKS]
    }
}

/// Something that stores pages, one after the other.
pub(super) trait WritePages: std::fmt::Debug + Sync {
    /// Stores whole pages from slot `first` on.
    ///
    /// # Errors
    /// `NoSpace`.
    fn write_pages(&self, first: u64, pages: &[u8]) -> Result<()>;
}

thread_local! {
    /// Which of several equal things is this thread's.
    static SEAT: Cell<usize> = const { Cell::new(usize::MAX) };
}

pub(super) fn seat() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    SEAT.with(|seat| {
        if seat.get() == usize::MAX {
            seat.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        seat.get()
    })
}

/// Locks the first of `things` that is free. Not each thread its own: of the writers, as few as
/// can be shall have a segment open.
pub(super) fn lock_any<T>(things: &[Mutex<T>]) -> std::sync::MutexGuard<'_, T> {
    let free = things.iter().find_map(Mutex::try_lock);
    free.unwrap_or_else(|| things[seat() % things.len()].lock())
}

/// Fills a page with a word.
pub(super) fn fill(page: &mut [u8], word: u64) {
    for chunk in page.chunks_exact_mut(8) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
}
