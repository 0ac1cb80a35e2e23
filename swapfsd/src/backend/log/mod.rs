//! `log`: pages compressed, packed, and written in sequence, for flash.
//!
//! ```text
//!   page --codec--> same-filled word -----------------------------> [table entry]
//!               \-> object --append--> [chunk of the buffer] -----> [table entry]
//!                                            | its turn                  ^
//!                                            v                           | published when the
//!                                      [part, in order of slots]         | part is written
//!                                            | one large write           |
//!                                            v                           |
//!                              [segment of the device] ------------------'
//!                                            | sparse: collected
//!                                            v
//!                                      [part of a segment of cold objects]
//! ```
//!
//! * the slot table is [`super::objects`]'s: an entry names a place in memory or on the device;
//! * [`buffer`]: pages wait in memory; [`flush`]: they become parts; [`part`]: how these are built,
//!   written and published;
//! * [`segments`]: the device's segments; [`collect`]: garbage collection;
//! * [`read`]: neighbours are read together;
//! * [`scan`]: what is on a device, believed as far as checksums go; [`recover`]: a table from it;
//!   [`checkpoint`]: the table of a clean stop; [`survey`]: for fsck and inspect;
//! * [`derived`]: everything that is not in the table again, after a kill.
//!
//! **Killed at any instruction**, a successor finds in the table each slot's old page or its new
//! one. An entry names the buffer until the part that the page went into is on the device, and
//! what it names stays as it is until it was replaced.
//!
//! **After a power failure** the device alone says what was there. Each record has a number, taken
//! when the page was written, and of a slot's records the one with the greatest counts.
//!
//! **Who may read an object.** In the buffer: who has the slot's lock, as in `zmem`. On the device:
//! anybody, without a lock, since a read takes long. If it finds the wrong bytes, and the entry
//! has changed meanwhile, the object was moved, and is read again.

mod buffer;
mod checkpoint;
mod collect;
mod counters;
mod derived;
mod flush;
mod part;
mod read;
mod recover;
pub mod scan;
mod segments;
pub mod survey;

use super::device::BlockDevice;
use super::objects::arena::{self, Arena, Role, SEGMENT_BYTES};
use super::objects::entry::{self, Entry, MAX_DEVICE_BYTES, Meaning};
use super::objects::fanout::Fanout;
use super::objects::kept::{Kept, Layout as KeptLayout};
use super::objects::table::{self, Table};
use super::objects::{Slots, WritePages, lock_any};
use super::{AtStart, Backend};
use crate::buffer::BufferPool;
use crate::codec::{self, Decoder, Encoded, Encoder, Encoding};
use crate::crash::{self, Point};
use crate::control::InDevice;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::held::Held;
use crate::sync::{Condvar, Mutex};
use buffer::{Buffer, OpenChunk, What};
use collect::Collector;
use counters::{Counters, Field};
use flush::Flusher;
use part::{Clear, device_bytes};
use scan::LogArea;
use segments::Segments;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use swapfs_format::PAGE_LEN;
use swapfs_format::log::{MAX_PART_BYTES, RECORD_LEN};
use swapfs_format::types::LogOptions;

/// How long a write waits for room in the buffer before it is refused: a slow device is given time.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long it waits before it has others' chunks written out, which may be all that there are.
const IMPATIENCE: Duration = Duration::from_millis(100);
/// A device that has taken nothing for so long does not make anybody wait for a flush.
const FAILING: Duration = Duration::from_secs(10);
/// How often the threads of the background look without being told.
const LOOK: Duration = Duration::from_millis(250);
/// Segments that only the collector may take.
const KEEP_SEGMENTS: usize = 3;
/// What the collector can't win back at the end of a part: the rest of a page, and less than an
/// object that did not fit; and the rest of the page of its records.
const PART_LOSS_BYTES: u64 = 3 * PAGE_LEN as u64;

/// What a thread needs to encode and store; there are enough for all threads.
#[derive(Debug)]
struct Writer {
    encoder: Encoder,
    open: OpenChunk,
}

/// Numbers that follow from the size of the device and the options.
#[derive(Debug, Clone, Copy)]
struct Layout {
    flushers: usize,
    /// Segments that only the collector may take.
    keep_segments: usize,
    /// Fewer free segments than this: collect, until there are `high_segments`.
    low_segments: usize,
    high_segments: usize,
    /// A segment with less dead in it is left alone.
    least_gain_bytes: u64,
    /// What surely fits into a segment.
    filled_bytes: u64,
    /// What may live, in bytes of objects and their records.
    usable_bytes: u64,
}

impl Layout {
    fn new(area: &LogArea, options: &LogOptions) -> Layout {
        let segments = area.segments().len();
        let flushers = match segments {
            0..64 => 1,
            64..256 => 2,
            _ => 3,
        };
        // No more than is surely free when the volume is full, or collecting would never end.
        let share = |percent: u32| (segments * percent as usize / 100).min(segments / 24);
        let least = KEEP_SEGMENTS + flushers + 1;
        // Where there are few segments, more of them free would be dear.
        let low_segments = least.max(share(options.gc_low_percent));
        let high_segments = (low_segments + 1).max(share(options.gc_high_percent));
        let parts = area.segment_bytes.div_ceil(MAX_PART_BYTES as u64);
        let loss = parts * PART_LOSS_BYTES;
        let filled = area.segment_bytes - loss;
        let usable = segments.saturating_sub(least + 1) as u64 * filled;
        Layout {
            flushers,
            keep_segments: KEEP_SEGMENTS,
            low_segments: low_segments.min(segments / 2),
            high_segments: high_segments.min(segments / 2 + 1),
            least_gain_bytes: loss + area.segment_bytes / 64,
            filled_bytes: filled,
            usable_bytes: usable / 16 * 15,
        }
    }
}

/// Everything but the threads.
#[derive(Debug)]
struct Store {
    table: Table,
    arena: Arc<Arena>,
    kept: Arc<Kept>,
    slots: Slots,
    buffer: Buffer,
    segments: Segments,
    device: Arc<dyn BlockDevice>,
    buffers: BufferPool,
    layout: Layout,
    discard: AtomicBool,
    deadline: Duration,
    counters: Counters,
    writers: Box<[Mutex<Writer>]>,
    decoders: Box<[Mutex<Decoder>]>,
    /// The first failure of the device since its last write.
    failing_since: Mutex<Option<Instant>>,
    /// The number of the last discard; 0 while one is under way.
    latest_discard: AtomicU64,
    /// What objects and words take or will take on the device.
    accounted_bytes: AtomicU64,
    /// Segments that could not be read or emptied: a bit for each.
    shunned: Box<[AtomicU64]>,
    /// Until it is active, the memory is a predecessor's and nothing is changed in it.
    active: Mutex<bool>,
    activated: Condvar,
    /// A flusher finds no segment.
    wanted: Mutex<bool>,
    wake: Condvar,
    stop: AtomicBool,
}

/// The back end.
#[derive(Debug)]
pub struct Log {
    store: Arc<Store>,
    fanout: Fanout,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// A mount, not a take-over: the device says what there is.
    found: Mutex<Option<AtStart>>,
}

/// How a log is to work.
#[derive(Debug, Clone, Copy)]
pub struct LogSettings<'a> {
    /// The volume's options.
    pub options: &'a LogOptions,
    /// Freed segments are discarded on the device.
    pub discard: bool,
    /// Threads that serve requests.
    pub threads: u32,
}

impl Log {
    /// The log of `slot_count` slots in `area` of `device`. Without a predecessor, the device says
    /// what is in it.
    ///
    /// # Errors
    /// No memory; `InvalidData` if what a predecessor left is not understood.
    pub fn new(
        device: Arc<dyn BlockDevice>,
        area: LogArea,
        slot_count: u64,
        settings: LogSettings<'_>,
        buffers: BufferPool,
        held: &Held,
    ) -> io::Result<Log> {
        let LogSettings { options, discard, threads } = settings;
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        if u64::from(area.segment_count) * area.segment_bytes > MAX_DEVICE_BYTES {
            return Err(invalid("the data section is larger than 4 TiB"));
        }
        let kept = Arc::new(Kept::new(held, kept_layout(slot_count, options))?);
        // Writes wait for the device: they are slowed down, and not refused while it goes on.
        let arena = Arc::new(Arena::new(held, Arc::clone(&kept), usize::MAX, IMPATIENCE)?);
        if !held.is_adopted() {
            arena.fill_reserve()?;
        }
        let layout = Layout::new(&area, options);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let writers = threads as usize + processors + 1;
        let buffer_chunks = (options.buffer_bytes / SEGMENT_BYTES as u64) as usize;
        let buffer = Buffer::new(
            Arc::clone(&arena),
            kept.layout().segment_count as usize,
            buffer_chunks / 2,
            options.deadline,
        );
        let store = Arc::new(Store {
            table: Table::new(Arc::clone(&arena), Arc::clone(&kept), slot_count),
            slots: Slots::default(),
            buffer,
            segments: Segments::new(held, area)?,
            device,
            buffers,
            layout,
            discard: AtomicBool::new(discard),
            deadline: options.deadline,
            counters: Counters::default(),
            writers: (0..writers)
                .map(|_| {
                    let encoder = Encoder::new(options.algorithm);
                    Mutex::new(Writer { encoder, open: OpenChunk::default() })
                })
                .collect(),
            decoders: (0..writers).map(|_| Mutex::new(Decoder::default())).collect(),
            failing_since: Mutex::new(None),
            latest_discard: AtomicU64::new(0),
            accounted_bytes: AtomicU64::new(0),
            shunned: (0..area.segment_count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            arena,
            kept,
            active: Mutex::new(false),
            activated: Condvar::new(),
            wanted: Mutex::new(false),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let found = if held.is_adopted() {
            AtStart::Kept
        } else {
            recover::recover(&store)?
        };
        let fanout = Fanout::new(processors)?;
        let threads = Mutex::default();
        let log = Log { store, fanout, threads, found: Mutex::new(Some(found)) };
        log.spawn("log-reserve", keep_reserve)?;
        for number in 0..layout.flushers {
            let share = buffer_chunks / 4 / layout.flushers;
            let flusher = Flusher::new(number, layout.keep_segments, share)?;
            log.spawn("log-flush", move |store| flusher.run(store))?;
        }
        let collector = Collector::new(layout.flushers)?;
        log.spawn("log-collect", move |store| collector.run(store))?;
        Ok(log)
    }

    fn spawn(&self, name: &str, body: impl FnOnce(&Store) + Send + 'static) -> io::Result<()> {
        let store = Arc::clone(&self.store);
        let thread = std::thread::Builder::new().name(name.to_owned());
        self.threads.lock().push(thread.spawn(move || body(&store))?);
        Ok(())
    }

    /// Ends the threads of the background.
    fn end_threads(&self) {
        {
            let _unchanged = self.store.active.lock();
            self.store.stop.store(true, Ordering::SeqCst);
        }
        self.store.activated.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            while !thread.is_finished() {
                self.store.arena.wake();
                self.store.buffer.stop();
                self.store.want_segments();
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(thread.join());
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.end_threads();
        self.fanout.stop();
    }
}

/// How a new volume's memory is divided up: the buffer, and all of the table.
fn kept_layout(slot_count: u64, options: &LogOptions) -> KeptLayout {
    let leaves = slot_count.div_ceil(512);
    let table_bytes = (leaves + leaves.div_ceil(512) + 1) * PAGE_LEN as u64;
    let limit_bytes = options.buffer_bytes + table_bytes.next_multiple_of(SEGMENT_BYTES as u64);
    let reserve_bytes = (options.buffer_bytes / 4).min(16 << 20);
    let (limit_segments, reserve_segments, segment_count) =
        arena::segments_for(limit_bytes, reserve_bytes);
    KeptLayout {
        slot_count,
        node_slots: table::NODE_SLOTS,
        segment_count,
        limit_segments,
        reserve_segments,
        max_buckets: 1,
    }
}

fn keep_reserve(store: &Store) {
    let mut said = false;
    let mut changes_before = 0;
    if !store.wait_until_active() {
        return;
    }
    let mut holes = store.kept.is_adopted();
    while !store.stop.load(Ordering::Relaxed) {
        let changes = store.arena.changes();
        let idle = changes == changes_before;
        changes_before = changes;
        let kept = store.arena.keep_reserve(&store.stop, idle);
        let kept = match holes {
            true => kept.and_then(|()| store.arena.release_holes(&store.stop)),
            false => kept,
        };
        holes &= kept.is_err();
        match kept {
            Ok(()) => said = false,
            Err(error) if !said => {
                log::warn!("the reserve of memory can't be kept: {error}");
                said = true;
            }
            Err(_) => {}
        }
        store.arena.wait_for_work(Role::Reserve, LOOK);
    }
}

/// What a table entry takes on the device, now or later.
fn cost_of(entry: Entry) -> u64 {
    match entry.meaning() {
        Meaning::Object(object) => device_bytes(object.len),
        Meaning::SameFilled(_) => RECORD_LEN as u64,
        _ => 0,
    }
}

impl Store {
    /// For the threads of the background; false if there will be nothing to do.
    fn wait_until_active(&self) -> bool {
        let mut active = self.active.lock();
        while !*active && !self.stop.load(Ordering::SeqCst) {
            active = self.activated.wait(active);
        }
        *active
    }

    /// What the table says of a slot.
    fn entry(&self, slot: u64) -> Entry {
        let cell = self.table.cell_of(slot);
        cell.map_or(Entry::ABSENT, |cell| Entry(cell.load(Ordering::Acquire)))
    }

    /// Puts `new` in the place of `expected`; false: the slot says something else.
    fn replace(&self, slot: u64, expected: Entry, new: Entry) -> bool {
        let Some(cell) = self.table.cell_of(slot) else { return false };
        let mut changes = self.slots.of(slot).write();
        let current = Entry(cell.load(Ordering::Acquire));
        if !current.is_same_as(expected) {
            return false;
        }
        *changes += 1;
        cell.store(new.with_history_of(current).0, Ordering::Release);
        true
    }

    /// A device has the record of this word, as it was when the slot's lock had counted `changes`.
    /// If nothing has changed since, the slot's entry says so from now on.
    fn unbuffer(&self, slot: u64, word: u64, changes: u64) {
        let Some(cell) = self.table.cell_of(slot) else { return };
        let (entry, _) = Entry::same_filled(word);
        let now = self.slots.of(slot).write();
        if *now == changes && cell.load(Ordering::Acquire) == entry.buffered().0 {
            cell.store(entry.0, Ordering::Release);
        }
    }

    /// A device knows that these slots were discarded. Those that still are say so, if it is sure
    /// that this discard has made them what they are.
    fn undiscard(&self, first: u64, count: u64, clear: Clear) {
        let latest = self.latest_discard.load(Ordering::Acquire);
        match clear {
            Clear::IfLatest(sequence) if sequence == latest => {}
            Clear::IfUnchanged(_) => {}
            _ => return,
        }
        self.table.for_each(first, first + count, |slot, cell| {
            let now = self.slots.of(slot).write();
            let sure = match clear {
                Clear::IfUnchanged(changes) => *now == changes,
                // A discard says so before it changes anything.
                _ => self.latest_discard.load(Ordering::Acquire) == latest,
            };
            if sure && cell.load(Ordering::Acquire) == Entry::DISCARDED.0 {
                cell.store(Entry::ABSENT.0, Ordering::Release);
            }
        });
    }

    /// Does any of these slots hold nothing?
    fn any_absent(&self, first: u64, count: u64) -> bool {
        let end = (first + count).min(self.table.slot_count());
        (first..end).any(|slot| self.entry(slot).is_absent())
    }

    /// Is there one of these slots whose newest page no device has?
    fn any_unknown_to_device(&self, first: u64, count: u64) -> bool {
        let end = (first + count).min(self.table.slot_count());
        (first..end).any(|slot| {
            let entry = self.entry(slot);
            match entry.meaning() {
                Meaning::Object(object) => object.device_offset().is_none(),
                Meaning::SameFilled(_) => entry.is_buffered(),
                _ => true,
            }
        })
    }

    fn write_page(&self, writer: &mut Writer, slot: u64, page: &[u8]) -> Result<()> {
        let no_space = || {
            self.counters.add(Field::Refused, 1);
            Error::new(ErrorKind::NoSpace, Operation::Write, slot)
        };
        let Writer { encoder, open } = writer;
        let (encoding, bytes) = match encoder.encode(page) {
            Encoded::SameFilled(word) => match Entry::same_filled(word) {
                (entry, false) => {
                    return self.write_word(open, slot, word, entry).ok_or_else(no_space);
                }
                // The word has no place in the entry: a small object.
                (_, true) => {
                    let bytes = entry::word_object(word);
                    return self.write_object(open, slot, Encoding::Lz4, &bytes)
                        .ok_or_else(no_space);
                }
            },
            Encoded::Bytes(encoding, bytes) => (encoding, bytes),
        };
        self.write_object(open, slot, encoding, bytes).ok_or_else(no_space)
    }

    fn write_word(
        &self,
        open: &mut OpenChunk,
        slot: u64,
        word: u64,
        entry: Entry,
    ) -> Option<()> {
        let current = self.entry(slot);
        if current.is_same_as(entry) || current.is_same_as(entry.buffered()) {
            return Some(());
        }
        let charge = self.charge(current, RECORD_LEN as u64)?;
        let cell = self.table.cell_or_make(slot)?;
        let record = self.with_room(open, |open| {
            self.buffer.append_plain(open, slot, What::SameFilled(word))
        })?;
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
        let cell = self.table.cell_or_make(slot)?;
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
        (before + cost <= self.layout.usable_bytes + cost_of(old)).then_some(charge)
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
    fn release(&self, old: Entry) {
        let Some(object) = old.as_object() else { return };
        match object.device_offset() {
            None => self.buffer.free(&object),
            Some(offset) => {
                if let Some(segment) = self.segments.segment_of(offset) {
                    self.segments.sub_live(segment, device_bytes(object.len));
                }
            }
        }
    }

    fn discard(&self, first: u64, count: u64) {
        let mut present = false;
        self.table.for_each(first, first + count, |_, _| present = true);
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
            // No discard that came before says from now on what these slots are.
            self.latest_discard.store(0, Ordering::Release);
            self.table.for_each(slot, slot + part, |slot, cell| {
                let mut alone = self.slots.of(slot).write();
                *alone += 1;
                let old = Entry(cell.swap(Entry::DISCARDED.0, Ordering::AcqRel));
                drop(alone);
                crash::pass(Point::LogDiscarding);
                self.forget(old, Entry::DISCARDED);
            });
            // Last, so that no record of what was discarded has a greater number.
            let sequence = self.segments.next_write();
            match record {
                Some(record) => {
                    self.buffer.complete(record, sequence);
                    self.latest_discard.store(sequence, Ordering::Release);
                }
                // The slots hold nothing all the same, until a power failure.
                None => self.counters.add(Field::DiscardsNotNoted, 1),
            }
            slot += part;
        }
    }

    /// Closes chunks that have been open for long, so that their turn comes.
    fn close_old_chunks(&self) {
        for mut writer in self.writers.iter().filter_map(Mutex::try_lock) {
            if Buffer::is_older(&writer.open, self.deadline) {
                self.buffer.close(&mut writer.open);
            }
        }
    }

    /// Writes everything that is buffered by now; false: the volume is being unmounted, or the
    /// device takes nothing.
    fn write_out(&self) -> bool {
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
    fn write_out_for(&self, at_most: Duration) -> bool {
        for writer in &self.writers {
            self.buffer.close(&mut writer.lock().open);
        }
        let upto = self.buffer.force();
        self.buffer.wait_written(upto, at_most)
    }

    /// Has the device keep what is written to it.
    fn flush_device(&self) -> std::result::Result<(), i32> {
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
    fn discard_segments(&self, first: u32, end: u32) {
        let area = &self.segments.area;
        if self.discard.load(Ordering::Relaxed) {
            let length = u64::from(end - first) * area.segment_bytes;
            match self.device.discard(area.offset_of(first, 0), length) {
                Ok(crate::sys::file::Discarded::Yes) => {
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

    fn want_segments(&self) {
        let mut wanted = self.wanted.lock();
        if !*wanted {
            *wanted = true;
            self.wake.notify_all();
        }
    }

    /// For the collector: waits until a flusher wants segments, or for `at_most`.
    fn take_wanted(&self, at_most: Duration) -> bool {
        let mut wanted = self.wanted.lock();
        if !*wanted {
            wanted = self.wake.wait_timeout(wanted, at_most);
        }
        std::mem::take(&mut *wanted)
    }

    fn is_shunned(&self, segment: u32) -> bool {
        self.shunned[segment as usize / 64].load(Ordering::Relaxed) >> (segment % 64) & 1 == 1
    }

    /// The collector leaves the segment alone until the next mount.
    fn shun(&self, segment: u32) {
        self.shunned[segment as usize / 64].fetch_or(1 << (segment % 64), Ordering::Relaxed);
        self.counters.add(Field::ShunnedSegments, 1);
    }

    fn device_works(&self) {
        let mut failing_since = self.failing_since.lock();
        if failing_since.is_some() {
            *failing_since = None;
        }
    }

    fn device_failed(&self, doing: &str, segment: u32, errno: i32) {
        self.counters.add(Field::DeviceErrors, 1);
        self.failing_since.lock().get_or_insert_with(Instant::now);
        let error = io::Error::from_raw_os_error(errno);
        log::error!("{doing} of segment {segment} failed: {error}");
    }

    /// A slot's object does not check.
    fn damaged(&self, slot: u64, how: &str) {
        self.counters.add(Field::ChecksumErrors, 1);
        log::error!("slot {slot}: the stored page is damaged ({how})");
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

impl Backend for Log {
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        self.store.read(first, pages)
    }

    fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        self.fanout.write(&*self.store, first, pages)
    }

    fn discard(&self, first: u64, count: u64) -> Result<()> {
        self.store.discard(first, count);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let failed = |errno| Error::from_os(Operation::Flush, 0, errno);
        if !self.store.write_out() {
            return Err(failed(libc::EIO));
        }
        self.store.flush_device().map_err(failed)
    }

    fn at_start(&self) -> AtStart {
        self.found.lock().unwrap_or(AtStart::Kept)
    }

    /// Waits for a predecessor's writes, as `linear` does.
    fn activate(&self) -> io::Result<()> {
        self.store.device.lock()?;
        if self.store.kept.is_adopted() {
            derived::adopt(&self.store)?;
        } else {
            checkpoint::say_in_use(&self.store)?;
        }
        *self.store.active.lock() = true;
        self.store.activated.notify_all();
        Ok(())
    }

    fn warm(&self) {
        if self.store.kept.is_adopted() && !*self.store.active.lock() {
            self.store.arena.warm();
        }
    }

    fn close(&self) -> Result<()> {
        self.flush()?;
        // Nothing is written behind the checkpoint.
        self.end_threads();
        checkpoint::write(&self.store)
            .map_err(|errno| Error::from_os(Operation::Flush, 0, errno))
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        counters::report(&self.store, report);
    }
}

#[cfg(test)]
mod tests;
