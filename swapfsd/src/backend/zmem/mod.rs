//! `zmem`: pages compressed in the daemon's memory; nothing on disk but the superblock.
//!
//! ```text
//!   page --codec--> same-filled word ------------------> [table entry]
//!               \-> object: checksum + bytes --append--> [open segment of the arena]
//!                                                  \---> [table entry]   published last
//! ```
//!
//! * [`entry`], [`table`]: the slot table, one 8-byte entry a slot, the truth. A write stores
//!   its object in fresh memory, then publishes it by one atomic store, then frees the old one.
//! * [`arena`]: populated memory in segments; [`pool`]: objects appended to them.
//! * [`compact`]: moves what is left of sparse segments together, and so gives memory back.
//! * [`recompress`]: stores cold pages again by zstd.
//! * [`dedup`]: one object for identical pages.
//! * [`fanout`]: a large write on several threads.
//! * [`derived`]: all of the arena's counts again, from a scan of the table.
//!
//! **Who may read an object.** A slot's lock (one of a few hundred, [`Slots`]) is shared by those
//! who read the slot's object and taken alone by who changes its entry. An object is freed only
//! after its last entry was changed, so nobody reads freed memory. A slot's lock is held for one
//! page, never two of them at once, and the locks that are taken under it (a bucket of the
//! index, the free list, a decoder) are never held when a slot's is asked for.

mod arena;
mod compact;
mod counters;
mod dedup;
#[cfg(test)]
mod derived;
mod entry;
mod fanout;
mod pool;
mod recompress;
mod table;

use super::{AtStart, Backend};
use crate::codec::{self, Decoder, Encoded, Encoder, Encoding};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::held::Held;
use crate::sync::{Mutex, RwLock};
use crate::sys::memory;
use arena::{Arena, Role};
use counters::{Counters, Field};
use dedup::Dedup;
use entry::{AGE_MASK, Entry, Meaning, Object};
use fanout::Fanout;
use pool::{OpenSegment, Pool, Purpose};
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use swapfs_format::PAGE_LEN;
use swapfs_format::types::ZmemOptions;
use table::Table;

/// Locks of slots. Two requests meet by chance once in so many.
const LOCKS: usize = 1024;
/// How often the threads of the background look without being told.
const LOOK: Duration = Duration::from_millis(250);

/// What a thread needs to encode and store; there are enough for all threads.
#[derive(Debug)]
struct Writer {
    encoder: Encoder,
    open: OpenSegment,
}

/// The slots' locks.
#[derive(Debug)]
struct Slots(Box<[RwLock<()>]>);

impl Slots {
    fn of(&self, slot: u64) -> &RwLock<()> {
        &self.0[slot as usize % LOCKS]
    }
}

/// Everything but the threads.
#[derive(Debug)]
struct Store {
    table: Table,
    pool: Pool,
    slots: Slots,
    dedup: Option<Dedup>,
    counters: Counters,
    writers: Box<[Mutex<Writer>]>,
    decoders: Box<[Mutex<Decoder>]>,
    stop: AtomicBool,
}

/// The back end.
#[derive(Debug)]
pub struct Zmem {
    store: Arc<Store>,
    fanout: Fanout,
    threads: Vec<JoinHandle<()>>,
}

thread_local! {
    /// Which of several equal things is this thread's.
    static SEAT: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn seat() -> usize {
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
fn lock_any<T>(things: &[Mutex<T>]) -> std::sync::MutexGuard<'_, T> {
    let free = things.iter().find_map(Mutex::try_lock);
    free.unwrap_or_else(|| things[seat() % things.len()].lock())
}

impl Zmem {
    /// A volume of `slot_count` slots, all of them absent, served by `threads` threads.
    ///
    /// # Errors
    /// No memory for the reserve, or no thread.
    pub fn new(
        slot_count: u64,
        options: &ZmemOptions,
        threads: u32,
        _held: &Held,
    ) -> io::Result<Zmem> {
        let limit_bytes = options.limit_bytes.unwrap_or_else(|| default_limit(slot_count));
        let reserve_bytes = options.reserve_bytes.min(limit_bytes);
        let arena =
            Arc::new(Arena::new(limit_bytes, reserve_bytes, (threads as usize).max(6) - 2)?);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let writers = threads as usize + processors + 1;
        let store = Arc::new(Store {
            table: Table::new(Arc::clone(&arena), slot_count),
            dedup: options.dedup.then(|| Dedup::new(limit_bytes)).transpose()?,
            pool: Pool { arena },
            slots: Slots((0..LOCKS).map(|_| RwLock::new(())).collect()),
            counters: Counters::default(),
            writers: (0..writers)
                .map(|_| {
                    let encoder = Encoder::new(options.algorithm);
                    Mutex::new(Writer { encoder, open: OpenSegment::default() })
                })
                .collect(),
            decoders: (0..writers).map(|_| Mutex::new(Decoder::default())).collect(),
            stop: AtomicBool::new(false),
        });
        let fanout = Fanout::new(processors)?;
        let mut zmem = Zmem { store, fanout, threads: Vec::new() };
        zmem.spawn("zmem-reserve", keep_reserve)?;
        zmem.spawn("zmem-compact", compact::run)?;
        if let Some(recompress) = options.recompress {
            zmem.spawn("zmem-recompress", move |store| recompress::run(store, &recompress))?;
        }
        Ok(zmem)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce(&Store) + Send + 'static) -> io::Result<()> {
        let store = Arc::clone(&self.store);
        let thread = std::thread::Builder::new().name(name.to_owned());
        self.threads.push(thread.spawn(move || body(&store))?);
        Ok(())
    }
}

impl Drop for Zmem {
    fn drop(&mut self) {
        self.store.stop.store(true, Ordering::SeqCst);
        self.fanout.stop();
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                self.store.pool.arena.wake();
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(thread.join());
        }
    }
}

/// Half of the machine's memory, and never more than the pages could take uncompressed: with
/// their entries and what is left over at the end of a segment, and room to write into.
fn default_limit(slot_count: u64) -> u64 {
    let uncompressed = slot_count * (PAGE_LEN as u64 + 104) + (64 << 18);
    (memory::total_bytes() / 2).min(uncompressed)
}

fn keep_reserve(store: &Store) {
    let arena = &store.pool.arena;
    let mut said = false;
    let mut changes_before = 0;
    while !store.stop.load(Ordering::Relaxed) {
        let changes = arena.changes();
        let idle = changes == changes_before;
        changes_before = changes;
        match arena.keep_reserve(&store.stop, idle).and_then(|()| dedup::grow(store)) {
            Ok(()) => said = false,
            Err(error) if !said => {
                log::warn!("the reserve of memory can't be kept: {error}");
                said = true;
            }
            Err(_) => {}
        }
        arena.wait_for_work(Role::Reserve, LOOK);
    }
}

impl Store {
    /// Stores pages from slot `first` on, one after the other.
    fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        let mut writer = lock_any(&self.writers);
        for (index, page) in pages.chunks_exact(PAGE_LEN).enumerate() {
            self.write_page(&mut writer, first + index as u64, page)?;
        }
        Ok(())
    }

    fn write_page(&self, writer: &mut Writer, slot: u64, page: &[u8]) -> Result<()> {
        let no_space = || {
            self.counters.add(Field::Refused, 1);
            Error::new(ErrorKind::NoSpace, Operation::Write, slot)
        };
        let Writer { encoder, open } = writer;
        let entry = match encoder.encode(page) {
            Encoded::SameFilled(word) => {
                let (entry, beside) = Entry::same_filled(word);
                if beside {
                    let cell = self.table.word_or_make(slot).ok_or_else(no_space)?;
                    return self.publish_beside(slot, entry, word, cell).ok_or_else(no_space);
                }
                entry
            }
            Encoded::Bytes(encoding, bytes) => {
                // Before the object, so that there is none to take back.
                self.table.cell_or_make(slot).ok_or_else(no_space)?;
                let mut object = self.store(open, Purpose::Write, encoding, bytes);
                if object.is_none() && self.close_other_writers() {
                    object = self.store(open, Purpose::Write, encoding, bytes);
                }
                Entry::object(object.ok_or_else(no_space)?)
            }
        };
        self.publish(slot, entry).ok_or_else(no_space)
    }

    /// There is no room: what other writers have open may have some, or may be full of dead
    /// objects, and the compactor can only get at it when it is closed. False: nothing was open.
    fn close_other_writers(&self) -> bool {
        let mut closed = false;
        for mut writer in self.writers.iter().filter_map(Mutex::try_lock) {
            closed |= self.pool.close(&mut writer.open);
        }
        if closed {
            self.pool.arena.forget_no_gain();
        }
        closed
    }

    /// Stores an object, or finds one that is the same. `None`: no room.
    fn store(
        &self,
        open: &mut OpenSegment,
        purpose: Purpose,
        encoding: Encoding,
        bytes: &[u8],
    ) -> Option<Object> {
        self.place(open, purpose, encoding, codec::checksum(encoding, bytes), bytes)
    }

    /// As [`Store::store`], with the checksum that the bytes should have.
    fn place(
        &self,
        open: &mut OpenSegment,
        purpose: Purpose,
        encoding: Encoding,
        checksum: u32,
        bytes: &[u8],
    ) -> Option<Object> {
        let mut append = || self.pool.append(open, purpose, encoding, checksum, bytes);
        match &self.dedup {
            Some(dedup) => {
                let or_nothing = purpose != Purpose::Write;
                dedup.store(&self.pool, or_nothing, encoding, checksum, bytes, append)
            }
            None => append(),
        }
    }

    /// Makes `entry` the slot's, and frees what it was before. `None`: no memory for the table.
    fn publish(&self, slot: u64, entry: Entry) -> Option<()> {
        let cell = self.table.cell_or_make(slot)?;
        let alone = self.slots.of(slot).write();
        let old = Entry(cell.swap(entry.0, Ordering::AcqRel));
        drop(alone);
        self.counters.replaced(old, entry);
        self.release(old);
        Some(())
    }

    /// As [`Store::publish`], of a same-filled page whose word goes beside the entry.
    fn publish_beside(
        &self,
        slot: u64,
        entry: Entry,
        word: u64,
        beside: &std::sync::atomic::AtomicU64,
    ) -> Option<()> {
        let cell = self.table.cell_or_make(slot)?;
        let alone = self.slots.of(slot).write();
        // Killed between these two, the slot's old page reads as damaged if it was one of this
        // kind too: the request was not answered, so the kernel still has the new one.
        beside.store(word, Ordering::Release);
        let old = Entry(cell.swap(entry.0, Ordering::AcqRel));
        drop(alone);
        self.counters.replaced(old, entry);
        self.release(old);
        Some(())
    }

    /// Frees the object of an entry that is no longer in the table.
    fn release(&self, old: Entry) {
        if let Some(object) = old.as_object() {
            match &self.dedup {
                Some(dedup) => dedup.release(&self.pool, &object),
                None => self.pool.free(&object),
            }
        }
    }

    fn read_page(&self, slot: u64, page: &mut [u8]) -> Result<()> {
        let Some(cell) = self.table.cell_of(slot) else {
            page.fill(0);
            self.counters.add(Field::ReadAbsent, 1);
            return Ok(());
        };
        let _shared = self.slots.of(slot).read();
        let entry = Entry(cell.load(Ordering::Acquire));
        let (right, found) = match entry.meaning() {
            Meaning::Absent => {
                page.fill(0);
                (true, Field::ReadAbsent)
            }
            Meaning::SameFilled(word) => {
                fill(page, word);
                (true, Field::ReadSame)
            }
            Meaning::SameFilledBeside(checksum) => {
                let word = self.table.word(slot).map_or(0, |word| word.load(Ordering::Acquire));
                fill(page, word);
                (entry::word_checksum(word) == checksum, Field::ReadSame)
            }
            Meaning::Object(object) => {
                if entry.age() != 0 {
                    // Only readers change it while the lock is shared.
                    cell.fetch_and(!AGE_MASK, Ordering::Relaxed);
                }
                let found = match object.encoding {
                    Encoding::Raw => Field::ReadRaw,
                    Encoding::Lz4 => Field::ReadLz4,
                    Encoding::Zstd => Field::ReadZstd,
                };
                (self.read_object(&object, page), found)
            }
            Meaning::Damaged => (false, Field::ReadAbsent),
        };
        if right {
            self.counters.add(found, 1);
            Ok(())
        } else {
            self.counters.add(Field::ChecksumErrors, 1);
            Err(Error::new(ErrorKind::Checksum, Operation::Read, slot))
        }
    }

    /// Checks and decodes; false if the object is not what was stored.
    fn read_object(&self, object: &Object, page: &mut [u8]) -> bool {
        let Ok((bytes, _)) = self.pool.checked(object) else { return false };
        match object.encoding {
            Encoding::Zstd => lock_any(&self.decoders).decode_zstd(bytes, page),
            encoding => codec::decode(encoding, bytes, page),
        }
    }

    fn discard(&self, first: u64, count: u64) {
        self.table.for_each(first, first + count, |slot, cell| {
            let alone = self.slots.of(slot).write();
            let old = Entry(cell.swap(Entry::ABSENT.0, Ordering::AcqRel));
            drop(alone);
            self.counters.replaced(old, Entry::ABSENT);
            self.release(old);
        });
    }
}

fn fill(page: &mut [u8], word: u64) {
    for chunk in page.chunks_exact_mut(8) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
}

impl Backend for Zmem {
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        (first..)
            .zip(pages.chunks_exact_mut(PAGE_LEN))
            .try_for_each(|(slot, page)| self.store.read_page(slot, page))
    }

    fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        self.fanout.write(&self.store, first, pages)
    }

    fn discard(&self, first: u64, count: u64) -> Result<()> {
        self.store.discard(first, count);
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
        counters::report(&self.store, report);
    }
}

#[cfg(test)]
mod tests;
