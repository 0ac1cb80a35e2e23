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
//! * [`kept`]: what else outlives the process, where a supervisor holds the memory.
//! * [`derived`]: everything that is not in the table again, from a scan of it.
//! * [`below`]: of use where this is the top of a `tier` volume, only.
//!
//! **Killed at any instruction**, a successor finds the table in a state in which each slot has
//! its old page or its new one. What it must be able to rely on is little: an object's bytes are
//! there before the entry that names it is published, and stay until that entry was replaced; a
//! page of the table is zeros before it is linked; a segment that says that it is populated is;
//! and a word beside an entry is not changed while the entry needs it.
//!
//! **Who may read an object.** A slot's lock (one of a thousand, [`Slots`]) is shared by those
//! who read the slot's object and taken alone by who changes its entry. An object is freed only
//! after its last entry was changed, so nobody reads freed memory. A slot's lock is held for one
//! page, never two of them at once, and the locks that are taken under it (a bucket of the
//! index, the free list, a decoder) are never held when a slot's is asked for.

mod below;
mod compact;
mod counters;
mod dedup;
mod derived;
mod pool;
mod recompress;

use super::objects::{Slots, WritePages, arena, entry, fanout, fill, kept, lock_any, table};
use super::tier::Lower;
use super::{AtStart, Backend};
use crate::codec::{self, Decoder, Encoded, Encoder, Encoding};
use crate::crash::{self, Point};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::held::Held;
use crate::sync::{Condvar, Mutex};
use crate::sys::memory;
use arena::Arena;
pub(in crate::backend) use below::Found;
use counters::{Counters, Field};
use dedup::Dedup;
use derived::MayBeShared;
use entry::{AGE_MASK, Entry, Meaning, Object};
use fanout::Fanout;
use kept::{Kept, Layout};
pub(in crate::backend) use pool::{OpenSegment, Pool, Purpose};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use swapfs_format::PAGE_LEN;
use swapfs_format::types::ZmemOptions;
use table::Table;

/// How long a write waits for memory before it is refused.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the threads of the background look without being told.
const LOOK: Duration = Duration::from_millis(250);

/// What a thread needs to encode and store; there are enough for all threads.
#[derive(Debug)]
pub(in crate::backend) struct Writer {
    encoder: Encoder,
    pub(in crate::backend) open: OpenSegment,
}

/// Everything but the threads.
#[derive(Debug)]
pub(in crate::backend) struct Store {
    pub(in crate::backend) table: Table,
    pub(in crate::backend) pool: Pool,
    pub(in crate::backend) slots: Slots,
    /// What lies below the arena, if anything does. Then there is no index of identical pages.
    pub(in crate::backend) lower: Option<Arc<Lower>>,
    dedup: Dedup,
    /// Of use while a predecessor's memory is taken over, only.
    shared: Mutex<MayBeShared>,
    counters: Counters,
    pub(in crate::backend) writers: Box<[Mutex<Writer>]>,
    pub(in crate::backend) decoders: Box<[Mutex<Decoder>]>,
    kept: Arc<Kept>,
    /// Until it is active, the memory is a predecessor's and nothing is changed in it.
    active: Mutex<bool>,
    activated: Condvar,
    pub(in crate::backend) stop: AtomicBool,
}

/// The back end.
#[derive(Debug)]
pub struct Zmem {
    pub(in crate::backend) store: Arc<Store>,
    fanout: Fanout,
    threads: Vec<JoinHandle<()>>,
}

impl Zmem {
    /// A volume of `slot_count` slots, served by `threads` threads: all of them absent, or what
    /// a predecessor leaves in `held` when it dies. Nothing of that is changed before
    /// [`Backend::activate`], and all memory that this instance ever needs is taken here.
    ///
    /// # Errors
    /// No memory for the reserve, or no thread; or what is held is not a volume like this one.
    pub fn new(
        slot_count: u64,
        options: &ZmemOptions,
        threads: u32,
        held: &Held,
    ) -> io::Result<Zmem> {
        Zmem::top_of(slot_count, options, threads, held, None)
    }

    /// As [`Zmem::new`], with something below the arena: the limit is then for pages alone, with
    /// the slot table beside it, and writes wait longer for room.
    pub(in crate::backend) fn top_of(
        slot_count: u64,
        options: &ZmemOptions,
        threads: u32,
        held: &Held,
        lower: Option<Arc<Lower>>,
    ) -> io::Result<Zmem> {
        let layout = layout(slot_count, options, lower.is_some());
        let kept = Arc::new(Kept::new(held, layout)?);
        let (max_waiting, patience) = match lower {
            None => ((threads as usize).max(6) - 2, PATIENCE),
            // They are slowed down, and not refused as long as there is room below.
            Some(_) => (usize::MAX, below::IMPATIENCE),
        };
        let mut arena = Arena::new(held, Arc::clone(&kept), max_waiting, patience)?;
        if lower.is_some() {
            arena.put_table_beside();
        }
        let arena = Arc::new(arena);
        let dedup = Dedup::new(held, Arc::clone(&kept), options.dedup)?;
        if !held.is_adopted() {
            arena.fill_reserve()?;
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let writers = threads as usize + processors + 1;
        let store = Arc::new(Store {
            table: Table::new(Arc::clone(&arena), Arc::clone(&kept), slot_count),
            dedup,
            shared: Mutex::new(MayBeShared::new(held.is_adopted())),
            pool: Pool { arena },
            lower,
            slots: Slots::default(),
            counters: Counters::default(),
            writers: (0..writers)
                .map(|_| {
                    let encoder = Encoder::new(options.algorithm);
                    Mutex::new(Writer { encoder, open: OpenSegment::default() })
                })
                .collect(),
            decoders: (0..writers).map(|_| Mutex::new(Decoder::default())).collect(),
            kept,
            active: Mutex::new(false),
            activated: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let fanout = Fanout::new(processors)?;
        let mut zmem = Zmem { store, fanout, threads: Vec::new() };
        zmem.spawn("zmem-reserve", keep_reserve)?;
        zmem.spawn("zmem-compact", compact::run)?;
        if held.is_adopted() {
            zmem.spawn("zmem-index", dedup::refill)?;
        }
        if let Some(recompress) = options.recompress {
            zmem.spawn("zmem-recompress", move |store| recompress::run(store, &recompress))?;
        }
        Ok(zmem)
    }

    /// Starts a thread of the background, which ends when the store says so.
    pub(in crate::backend) fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce(&Store) + Send + 'static,
    ) -> io::Result<()> {
        let store = Arc::clone(&self.store);
        let thread = std::thread::Builder::new().name(name.to_owned());
        self.threads.push(thread.spawn(move || body(&store))?);
        Ok(())
    }
}

impl Zmem {
    /// Has all threads of the background end.
    pub(in crate::backend) fn stop_soon(&self) {
        {
            let _unchanged = self.store.active.lock();
            self.store.stop.store(true, Ordering::SeqCst);
        }
        self.store.activated.notify_all();
    }
}

impl Drop for Zmem {
    fn drop(&mut self) {
        self.stop_soon();
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

/// How a new volume's memory is divided up.
fn layout(slot_count: u64, options: &ZmemOptions, table_beside: bool) -> Layout {
    let limit_bytes = options.limit_bytes.unwrap_or_else(|| default_limit(slot_count));
    let reserve_bytes = options.reserve_bytes.min(limit_bytes);
    let (limit_segments, reserve_segments, segment_count) =
        arena::segments_for(limit_bytes, reserve_bytes);
    // Entries, and a word beside each of them.
    let table_segments = match table_beside {
        true => arena::table_segments_for(slot_count),
        false => 0,
    };
    Layout {
        slot_count,
        node_slots: table::NODE_SLOTS,
        segment_count: segment_count + table_segments,
        limit_segments,
        reserve_segments,
        max_buckets: dedup::max_buckets_for(limit_bytes),
    }
}

fn keep_reserve(store: &Store) {
    if store.wait_until_active() {
        store.pool.arena.run_reserve(&store.stop, LOOK, || dedup::grow(store));
    }
}

impl Store {
    /// For the threads of the background; false if there will be nothing to do.
    pub(in crate::backend) fn wait_until_active(&self) -> bool {
        let mut active = self.active.lock();
        while !*active && !self.stop.load(Ordering::SeqCst) {
            active = self.activated.wait(active);
        }
        *active
    }

    /// The index of identical pages, if there is one.
    fn dedup(&self) -> Option<&Dedup> {
        self.dedup.is_on().then_some(&self.dedup)
    }

    fn write_page(&self, writer: &mut Writer, slot: u64, page: &[u8]) -> Result<()> {
        let no_space = || Error::new(ErrorKind::NoSpace, Operation::Write, slot);
        let Writer { encoder, open } = writer;
        let entry = match encoder.encode(page) {
            Encoded::SameFilled(word) => {
                let (entry, beside) = Entry::same_filled(word);
                if beside {
                    return self.write_beside(open, slot, entry, word).ok_or_else(no_space);
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
                object.ok_or_else(no_space)?
            }
        };
        self.publish(slot, entry).ok_or_else(no_space)
    }

    /// There is no room: what other writers have open may have some, or may be full of dead
    /// objects, and the compactor can only get at it when it is closed. False: nothing was open.
    pub(in crate::backend) fn close_other_writers(&self) -> bool {
        let mut closed = false;
        for mut writer in self.writers.iter().filter_map(Mutex::try_lock) {
            closed |= self.pool.close(&mut writer.open);
        }
        if closed {
            self.pool.arena.forget_no_gain();
        }
        closed
    }

    /// Stores an object, or finds one that is the same; answers an entry for it. `None`: no room.
    fn store(
        &self,
        open: &mut OpenSegment,
        purpose: Purpose,
        encoding: Encoding,
        bytes: &[u8],
    ) -> Option<Entry> {
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
    ) -> Option<Entry> {
        let mut append = || self.pool.append(open, purpose, encoding, checksum, bytes);
        match self.dedup() {
            Some(dedup) => {
                let or_nothing = purpose != Purpose::Write;
                dedup.store(&self.pool, or_nothing, encoding, checksum, bytes, append)
            }
            None => append().map(Entry::object),
        }
    }

    /// Makes `entry` the slot's, and frees what it was before. `None`: no memory for the table.
    fn publish(&self, slot: u64, entry: Entry) -> Option<()> {
        let cell = self.table.cell_or_make(slot)?;
        let alone = self.slots.of(slot).write();
        let old = self.swap(slot, cell, entry);
        drop(alone);
        crash::pass(Point::ZmemPublished);
        self.counters.replaced(old.entry, entry);
        self.release_all(slot, old);
        Some(())
    }

    /// Writes a same-filled page whose word goes beside the entry. `None`: no room.
    ///
    /// The word can't be replaced while the entry needs the old one: killed in between, neither
    /// page could be read. So where the old page is of this kind too, the new one is an object
    /// first, and there is always one of them.
    fn write_beside(
        &self,
        open: &mut OpenSegment,
        slot: u64,
        entry: Entry,
        word: u64,
    ) -> Option<()> {
        let beside = self.table.word_or_make(slot)?;
        let cell = self.table.cell_or_make(slot)?;
        // The word may be where a page's copy below is noted.
        self.drop_copy(slot, cell);
        let before = Entry(cell.load(Ordering::Acquire));
        let replaces_word = matches!(before.meaning(), Meaning::SameFilledBeside(_))
            && beside.load(Ordering::Acquire) != word;
        // Not in the index of identical pages: it dies at once. And before the slot is locked,
        // since it may wait for room.
        let between = if replaces_word { Some(self.append_word(open, word)?) } else { None };
        let alone = self.slots.of(slot).write();
        let mut replaced = None;
        if let Some(between) = &between {
            replaced = Some(cell.swap(Entry::object(*between).0, Ordering::AcqRel));
            crash::pass(Point::ZmemPublished);
        }
        beside.store(word, Ordering::Release);
        crash::pass(Point::ZmemWordStored);
        let last = cell.swap(entry.0, Ordering::AcqRel);
        drop(alone);
        crash::pass(Point::ZmemPublished);
        let old = Entry(replaced.unwrap_or(last));
        if let Some(between) = &between {
            self.pool.free(between);
        }
        self.counters.replaced(old, entry);
        self.release(slot, old);
        Some(())
    }

    /// Stores the page that `word` fills as an object.
    fn append_word(&self, open: &mut OpenSegment, word: u64) -> Option<Object> {
        let bytes = entry::word_object(word);
        let checksum = codec::checksum(Encoding::Lz4, &bytes);
        let mut append = || self.pool.append(open, Purpose::Write, Encoding::Lz4, checksum, &bytes);
        append().or_else(|| self.close_other_writers().then(append).flatten())
    }

    /// Frees the object of an entry of the slot's that is no longer in the table.
    pub(in crate::backend) fn release(&self, slot: u64, old: Entry) {
        if let Some(object) = old.as_object() {
            match (&self.lower, self.dedup()) {
                (Some(lower), _) if object.device_offset().is_some() => lower.free(slot, &object),
                (_, Some(dedup)) => dedup.release(&self.pool, &object),
                _ => self.pool.free(&object),
            }
        }
    }

    /// Reads a page, unless it lies below.
    pub(in crate::backend) fn read_page(&self, slot: u64, page: &mut [u8]) -> Result<Found> {
        let Some(cell) = self.table.cell_of(slot) else {
            page.fill(0);
            self.counters.add(Field::ReadAbsent, 1);
            return Ok(Found::Page);
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
            Meaning::Object(object) if self.lower.is_some() && object.device_offset().is_some() => {
                return Ok(Found::Below(entry, object));
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
            Meaning::Discarded(_) | Meaning::Discarding(_) | Meaning::Damaged => {
                (false, Field::ReadAbsent)
            }
        };
        if right {
            self.counters.add(found, 1);
            Ok(Found::Page)
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
            let old = self.swap(slot, cell, Entry::ABSENT);
            drop(alone);
            crash::pass(Point::ZmemDiscarding);
            self.counters.replaced(old.entry, Entry::ABSENT);
            self.release_all(slot, old);
        });
    }
}

impl WritePages for Store {
    fn write_pages(&self, first: u64, pages: &[u8]) -> Result<()> {
        let (mut writer, mut deadline) = (lock_any(&self.writers), None);
        for (slot, page) in (first..).zip(pages.chunks_exact(PAGE_LEN)) {
            let written = match self.write_page(&mut writer, slot, page) {
                Err(_) if self.lower.is_some() => {
                    self.write_when_there_is_room(writer, slot, page, &mut deadline)
                }
                written => written.map(|()| writer),
            };
            writer = written.inspect_err(|_| self.counters.add(Field::Refused, 1))?;
        }
        Ok(())
    }
}

impl Backend for Zmem {
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        (first..).zip(pages.chunks_exact_mut(PAGE_LEN)).try_for_each(|(slot, page)| {
            match self.store.read_page(slot, page)? {
                Found::Page => Ok(()),
                Found::Below(..) => Err(Error::new(ErrorKind::Checksum, Operation::Read, slot)),
            }
        })
    }

    fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        self.fanout.write(&*self.store, first, pages)
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
        if self.store.kept.is_adopted() {
            derived::rebuild(&self.store)?;
        }
        *self.store.active.lock() = true;
        self.store.activated.notify_all();
        Ok(())
    }

    fn warm(&self) {
        if self.store.kept.is_adopted() && !*self.store.active.lock() {
            self.store.pool.arena.warm();
            // Activation does what this could not.
            drop(self.store.dedup.map_present());
        }
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        counters::report(&self.store, report);
    }
}

#[cfg(test)]
mod tests;
