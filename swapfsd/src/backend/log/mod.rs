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
//! * [`write`]: writes and discards; [`buffer`]: pages wait in memory; [`flush`]: they become parts;
//!   [`fill`]: what goes into one; [`part`]: how these are built,
//!   written and published;
//! * [`durable`]: what the device has, and what it knows;
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
//! anybody, without a lock, since a read takes long. If the entry has changed meanwhile, the object
//! was moved, what was read may be anything, and it is read again.

mod buffer;
mod checkpoint;

mod collect;
mod counters;
mod derived;
mod durable;
mod fill;
mod flush;
mod part;
mod read;
mod recover;
pub mod scan;
mod segments;
pub mod survey;
mod write;

use super::device::BlockDevice;
use super::objects::Slots;
use super::objects::arena::{self, Arena, SEGMENT_BYTES};
use super::objects::entry::{Entry, MAX_DEVICE_BYTES, Meaning};
use super::objects::fanout::Fanout;
use super::objects::kept::{Kept, Layout as KeptLayout};
use super::objects::table::{self, Table};
use super::{AtStart, Backend};
use crate::buffer::BufferPool;
use crate::codec::{Decoder, Encoder};
use crate::error::{Error, Operation, Result};
use crate::held::Held;
use crate::sync::{Condvar, Mutex};
use buffer::{Buffer, OpenChunk};
use collect::Collector;
use counters::{Counters, Field};
use flush::Flusher;
use part::device_bytes;
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
    /// What objects and words take or will take on the device.
    accounted_bytes: AtomicU64,
    /// Segments that could not be read or emptied: a bit for each.
    shunned: Box<[AtomicU64]>,
    /// What is dead in them, and can't be had back as long as they can't be read.
    unreadable: Mutex<Vec<(u32, u64)>>,
    unreadable_bytes: AtomicU64,
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
            accounted_bytes: AtomicU64::new(0),
            shunned: (0..area.segment_count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            unreadable: Mutex::new(Vec::with_capacity(area.segment_count as usize)),
            unreadable_bytes: AtomicU64::new(0),
            arena,
            kept,
            active: Mutex::new(false),
            activated: Condvar::new(),
            wanted: Mutex::new(false),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let found = if held.is_adopted() { AtStart::Kept } else { recover::recover(&store)? };
        let fanout = Fanout::new(processors)?;
        let threads = Mutex::default();
        let log = Log { store, fanout, threads, found: Mutex::new(Some(found)) };
        log.spawn("log-reserve", keep_reserve)?;
        for number in 0..layout.flushers {
            let share = buffer_chunks / 4 / layout.flushers;
            let flusher = Flusher::new(number, layout.keep_segments, share, options.dedup)?;
            log.spawn("log-flush", move |store| flusher.run(store))?;
        }
        let collector = Collector::new(layout.flushers, options.dedup)?;
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
    if store.wait_until_active() {
        store.arena.run_reserve(&store.stop, LOOK, || Ok(()));
    }
}

/// What a table entry takes on the device, now or later.
fn cost_of(entry: Entry) -> u64 {
    match entry.meaning() {
        Meaning::Object(object) => device_bytes(object.len),
        Meaning::SameFilled(_) => RECORD_LEN as u64,
        // Until the slot is written again: nobody knows when its record is needed no more.
        _ if entry.is_absent() && entry != Entry::ABSENT => RECORD_LEN as u64,
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

    /// The collector tries all segments again.
    fn forgive_all(&self) {
        self.shunned.iter().for_each(|bits| bits.store(0, Ordering::Relaxed));
    }

    /// The collector leaves the segment alone for a while.
    fn shun(&self, segment: u32) {
        let bit = 1 << (segment % 64);
        self.shunned[segment as usize / 64].fetch_or(bit, Ordering::Relaxed);
        let dead = self.layout.filled_bytes.saturating_sub(self.segments.segment(segment).1);
        let mut unreadable = self.unreadable.lock();
        if unreadable.iter().all(|&(known, _)| known != segment) {
            // There is a place for each.
            unreadable.push((segment, dead));
            self.unreadable_bytes.fetch_add(dead, Ordering::Relaxed);
        }
        self.counters.add(Field::ShunnedSegments, 1);
    }

    /// A segment was read to its end.
    fn could_be_read(&self, segment: u32) {
        self.unreadable.lock().retain(|&(known, dead)| {
            if known == segment {
                self.unreadable_bytes.fetch_sub(dead, Ordering::Relaxed);
            }
            known != segment
        });
    }

    /// A slot's object does not check.
    fn damaged(&self, slot: u64, how: &str) {
        self.counters.add(Field::ChecksumErrors, 1);
        log::error!("slot {slot}: the stored page is damaged ({how})");
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
        checkpoint::write(&self.store).map_err(|errno| Error::from_os(Operation::Flush, 0, errno))
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        counters::report(&self.store, report);
    }
}

#[cfg(test)]
mod tests;
