//! The buffer: pages collect in memory, and are written out in the order of their coming.
//!
//! ```text
//! chunk (a segment of the arena)   | record, checksum, bytes | record | record, checksum, ... | 0
//! ```
//!
//! Each writer appends to a chunk of its own. A full one is sealed and queued. What is overwritten
//! or discarded meanwhile is dead when the chunk's turn comes, and never reaches the device. The
//! chunk is free again when all that lived in it is on the device.
//!
//! A record is complete when its sequence number is there: it is stored last, under the lock of its
//! slot, so that numbers are in the order in which entries change; and the place behind
//! it says that nothing follows before that. So who takes over after a kill finds all of a chunk
//! by walking it. The slot table alone says which of it lives.

use super::super::objects::arena::{Arena, SEGMENT_BYTES};
use super::super::objects::entry::{Entry, HEADER_BYTES, Location, Meaning, Object};
use crate::codec::Encoding;
use crate::crash::{self, Point};
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a record.
pub(super) const RECORD_BYTES: usize = 24;
/// What keeps a chunk from being free while it is open or queued.
pub(super) const HOLD_BYTES: u32 = 8;
const KIND_SAME_FILLED: u32 = 1;
const KIND_DISCARDED: u32 = 8;

/// A record as it lies in a chunk.
#[derive(Debug)]
#[repr(C)]
struct Raw {
    sequence: AtomicU64,
    slot: AtomicU32,
    /// Kind in the upper half, encoded bytes in the lower one.
    kind: AtomicU32,
    /// Word or count.
    value: AtomicU64,
}

const _: () = assert!(size_of::<Raw>() == RECORD_BYTES);

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Object(Object),
    SameFilled(u64),
    Discarded(u32),
}

/// A record that was found in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) sequence: u64,
    pub(super) slot: u32,
    pub(super) what: What,
    /// What it counts for in its chunk, and where it starts.
    pub(super) size: u32,
    pub(super) location: Location,
}

/// What an object with so many encoded bytes takes in a chunk.
pub(super) fn chunk_bytes(len: usize) -> u32 {
    (RECORD_BYTES + HEADER_BYTES + len).next_multiple_of(8) as u32
}

/// Where the record of an object in the arena starts.
pub(super) fn record_of(object: &Object) -> Location {
    object.location - RECORD_BYTES as Location
}

/// Where a writer appends.
#[derive(Debug, Default)]
pub(super) struct OpenChunk {
    chunk: Option<u32>,
    fill: usize,
    opened: Option<Instant>,
}

/// A chunk whose turn comes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queued {
    pub(super) chunk: u32,
    /// Chunks are numbered in the order of their sealing.
    pub(super) number: u64,
    /// When its first record came.
    pub(super) since: Instant,
}

#[derive(Debug)]
struct Queue {
    chunks: VecDeque<Queued>,
    next_number: u64,
    /// Chunks below this number are written without delay.
    forced: u64,
    /// By flusher: the least number of a chunk that it has taken and not finished.
    taken: [u64; super::segments::MAX_STREAMS],
    stop: bool,
}

/// The buffer.
#[derive(Debug)]
pub(super) struct Buffer {
    arena: std::sync::Arc<Arena>,
    queue: Mutex<Queue>,
    /// Something for flushers to do.
    work: Condvar,
    /// A chunk is finished.
    finished: Condvar,
    threshold_chunks: usize,
    deadline: Duration,
}

impl Buffer {
    /// `chunk_count`: all that can ever be queued. Beyond `threshold_chunks` they are written.
    pub(super) fn new(
        arena: std::sync::Arc<Arena>,
        chunk_count: usize,
        threshold_chunks: usize,
        deadline: Duration,
    ) -> Buffer {
        let mut chunks = VecDeque::with_capacity(chunk_count);
        // Its memory is there from the start.
        let filler = Queued { chunk: 0, number: 0, since: Instant::now() };
        chunks.resize(chunk_count, filler);
        chunks.clear();
        Buffer {
            arena,
            queue: Mutex::new(Queue {
                chunks,
                next_number: 0,
                forced: 0,
                taken: [u64::MAX; super::segments::MAX_STREAMS],
                stop: false,
            }),
            work: Condvar::new(),
            finished: Condvar::new(),
            threshold_chunks,
            deadline,
        }
    }

    fn raw(&self, location: Location) -> &Raw {
        let start = self.arena.at(location, RECORD_BYTES);
        // SAFETY: populated memory of one chunk, aligned to 8 bytes; any bits are a record, whose
        // fields are atomics; the places of records are accessed through these only, or as bytes
        // of an object that is not there any more.
        unsafe { &*start.cast() }
    }

    /// Makes sure that `size` bytes can be appended. `None`: no room.
    fn room(&self, open: &mut OpenChunk, size: usize) -> Option<u32> {
        // The end mark has to fit too.
        if let Some(chunk) = open.chunk
            && open.fill + size + 8 <= SEGMENT_BYTES
        {
            return Some(chunk);
        }
        // First, so that a flusher can have it while this waits for another one.
        self.close(open);
        let next = self.arena.take_for_write()?;
        self.arena.add_live(next, HOLD_BYTES);
        let start = Location::from(next) * SEGMENT_BYTES as Location;
        self.raw(start).sequence.store(0, Ordering::Release);
        *open = OpenChunk { chunk: Some(next), fill: 0, opened: Some(Instant::now()) };
        Some(next)
    }

    /// Seals what a writer has open, and queues it; false if that is nothing.
    pub(super) fn close(&self, open: &mut OpenChunk) -> bool {
        let Some(chunk) = open.chunk.take() else { return false };
        self.arena.seal(chunk);
        self.enqueue(chunk, open.opened.take().unwrap_or_else(Instant::now));
        true
    }

    /// The writer's chunk has waited for more since before `time`.
    pub(super) fn is_older(open: &OpenChunk, age: Duration) -> bool {
        open.opened.is_some_and(|opened| opened.elapsed() >= age)
    }

    /// Queues a sealed chunk.
    pub(super) fn enqueue(&self, chunk: u32, since: Instant) {
        let mut queue = self.queue.lock();
        let number = queue.next_number;
        queue.next_number += 1;
        queue.chunks.push_back(Queued { chunk, number, since });
        if queue.chunks.len() > self.threshold_chunks {
            self.work.notify_one();
        }
    }

    /// Appends an object; answers it. It is not there before it is [completed](Buffer::complete),
    /// which comes next. `None`: no room.
    pub(super) fn append_object(
        &self,
        open: &mut OpenChunk,
        slot: u64,
        (encoding, checksum): (Encoding, u32),
        bytes: &[u8],
    ) -> Option<Object> {
        let size = chunk_bytes(bytes.len());
        let chunk = self.room(open, size as usize)?;
        let start = Location::from(chunk) * SEGMENT_BYTES as Location + open.fill as Location;
        let place = self.arena.at(start, size as usize);
        // SAFETY: the part behind the record, inside the range that was just checked.
        let object = unsafe { place.add(RECORD_BYTES) };
        // SAFETY: this range of an open chunk is nobody else's: who has `open` owns all of the
        // chunk from `fill` on, and no entry names it yet.
        let to = unsafe { std::slice::from_raw_parts_mut(object, HEADER_BYTES + bytes.len()) };
        to[..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        to[HEADER_BYTES..].copy_from_slice(bytes);
        let kind = (encoding as u32) << 16 | bytes.len() as u32;
        self.finish(open, start, size, slot, (kind, 0));
        let location = start + RECORD_BYTES as Location;
        Some(Object { encoding, location, len: bytes.len() })
    }

    /// Appends a record that is all that there is to say; answers where it starts. It is not there
    /// before it is [completed](Buffer::complete), which comes next. `None`: no room.
    pub(super) fn append_plain(
        &self,
        open: &mut OpenChunk,
        slot: u64,
        what: What,
    ) -> Option<Location> {
        let (kind, value) = match what {
            What::SameFilled(word) => (KIND_SAME_FILLED, word),
            What::Discarded(count) => (KIND_DISCARDED, u64::from(count)),
            What::Object(_) => return None,
        };
        let chunk = self.room(open, RECORD_BYTES)?;
        let start = Location::from(chunk) * SEGMENT_BYTES as Location + open.fill as Location;
        self.finish(open, start, RECORD_BYTES as u32, slot, (kind << 16, value));
        Some(start)
    }

    /// The record that was appended last is there, with that number.
    pub(super) fn complete(&self, record: Location, sequence: u64) {
        self.raw(record).sequence.store(sequence, Ordering::Release);
    }

    fn finish(
        &self,
        open: &mut OpenChunk,
        start: Location,
        size: u32,
        slot: u64,
        (kind, value): (u32, u64),
    ) {
        let end = open.fill + size as usize;
        // What follows says that nothing does, before this record says that it is there.
        if end + 8 <= SEGMENT_BYTES {
            let next = self.arena.at(start + Location::from(size), 8).cast::<AtomicU64>();
            // SAFETY: inside the chunk, aligned, and this writer's.
            unsafe { &*next }.store(0, Ordering::Release);
        }
        let raw = self.raw(start);
        raw.slot.store(slot as u32, Ordering::Relaxed);
        raw.kind.store(kind, Ordering::Relaxed);
        raw.value.store(value, Ordering::Relaxed);
        open.fill = end;
        self.arena.add_live((start / SEGMENT_BYTES as Location) as u32, size);
        crash::pass(Point::LogBuffered);
    }

    /// Calls `visit` with each record of a chunk that nobody appends to, and that is held.
    pub(super) fn walk(&self, chunk: u32, mut visit: impl FnMut(Found)) {
        let base = Location::from(chunk) * SEGMENT_BYTES as Location;
        let mut fill = 0;
        while fill + RECORD_BYTES <= SEGMENT_BYTES {
            let location = base + fill as Location;
            let raw = self.raw(location);
            let sequence = raw.sequence.load(Ordering::Acquire);
            if sequence == 0 {
                return;
            }
            let kind = raw.kind.load(Ordering::Relaxed);
            let value = raw.value.load(Ordering::Relaxed);
            let len = (kind & 0xffff) as usize;
            let (what, size) = match kind >> 16 {
                KIND_SAME_FILLED => (What::SameFilled(value), RECORD_BYTES as u32),
                KIND_DISCARDED => (What::Discarded(value as u32), RECORD_BYTES as u32),
                number => {
                    let Some(encoding) = Encoding::from_number(number as u8) else { return };
                    if !(1..=4096).contains(&len) {
                        return;
                    }
                    let location = location + RECORD_BYTES as Location;
                    (What::Object(Object { encoding, location, len }), chunk_bytes(len))
                }
            };
            let slot = raw.slot.load(Ordering::Relaxed);
            visit(Found { sequence, slot, what, size, location });
            fill += size as usize;
        }
    }

    /// The sequence number of a buffered object's record.
    pub(super) fn sequence_of(&self, object: &Object) -> u64 {
        self.raw(record_of(object)).sequence.load(Ordering::Acquire)
    }

    /// An object with its checksum in front. The caller has the lock of a slot that names it.
    pub(super) fn stored(&self, object: &Object) -> Option<&[u8]> {
        let size = HEADER_BYTES + object.len;
        if !self.arena.is_inside(object.location, size) {
            return None;
        }
        let start = self.arena.at(object.location, size);
        // SAFETY: populated memory inside one chunk, written before the entry that names it was
        // published, and not again as long as an entry does, which the caller sees to. (An entry
        // damaged in memory could name any place: the checksum decides about the bytes.)
        Some(unsafe { std::slice::from_raw_parts(start, size) })
    }

    /// A buffered object is named by no entry any more, and nobody reads it.
    pub(super) fn free(&self, object: &Object) {
        std::sync::atomic::fence(Ordering::Acquire);
        let size = chunk_bytes(object.len);
        if object.location >= RECORD_BYTES as Location
            && self.arena.is_inside(record_of(object), size as usize)
        {
            self.arena.sub_live(record_of(object), size);
        }
    }

    /// A record that is no object's is on the device, or not needed any more.
    pub(super) fn free_plain(&self, found: &Found) {
        self.arena.sub_live(found.location, found.size);
    }

    /// Everything in a chunk is done with: it is free as soon as nothing in it lives. It says
    /// that it is empty, for who takes over.
    pub(super) fn let_go(&self, chunk: u32) {
        let start = Location::from(chunk) * SEGMENT_BYTES as Location;
        self.raw(start).sequence.store(0, Ordering::Release);
        self.arena.sub_live(start, HOLD_BYTES);
    }

    /// Waits for something to do, at most for `at_most`, and takes the oldest chunk if it is due:
    /// there are many, it is old, or it was asked for.
    pub(super) fn take(&self, flusher: usize, at_most: Duration) -> Option<Queued> {
        let mut queue = self.queue.lock();
        if !self.is_due(&queue) && !queue.stop && !at_most.is_zero() {
            queue = self.work.wait_timeout(queue, at_most);
        }
        if !self.is_due(&queue) {
            return None;
        }
        let taken = queue.chunks.pop_front()?;
        queue.taken[flusher] = queue.taken[flusher].min(taken.number);
        if self.is_due(&queue) {
            self.work.notify_one();
        }
        Some(taken)
    }

    fn is_due(&self, queue: &Queue) -> bool {
        queue.chunks.front().is_some_and(|oldest| {
            queue.chunks.len() > self.threshold_chunks
                || oldest.number < queue.forced
                || oldest.since.elapsed() >= self.deadline
        })
    }

    /// Must what was taken from that chunk be written now, though a part is not full?
    pub(super) fn is_urgent(&self, oldest: &Queued) -> bool {
        oldest.since.elapsed() >= self.deadline || oldest.number < self.queue.lock().forced
    }

    /// Chunks below this number are waited for.
    pub(super) fn forced(&self) -> u64 {
        self.queue.lock().forced
    }

    /// The flusher has finished all chunks below `number`.
    pub(super) fn finish_below(&self, flusher: usize, number: u64) {
        let mut queue = self.queue.lock();
        queue.taken[flusher] = number;
        drop(queue);
        self.finished.notify_all();
    }

    /// Has all chunks that are queued by now written; answers a number for [`Buffer::wait_written`].
    pub(super) fn force(&self) -> u64 {
        let mut queue = self.queue.lock();
        queue.forced = queue.next_number;
        let upto = queue.forced;
        drop(queue);
        self.work.notify_all();
        upto
    }

    /// Waits until all chunks below `number` are on the device, or for `at_most`. True: they are.
    pub(super) fn wait_written(&self, number: u64, at_most: Duration) -> bool {
        let mut queue = self.queue.lock();
        if Self::written(&queue) < number {
            queue = self.finished.wait_timeout(queue, at_most);
        }
        Self::written(&queue) >= number
    }

    fn written(queue: &Queue) -> u64 {
        let waiting = queue.chunks.front().map_or(queue.next_number, |oldest| oldest.number);
        queue.taken.iter().copied().fold(waiting, u64::min)
    }

    pub(super) fn stop(&self) {
        self.queue.lock().stop = true;
        self.work.notify_all();
    }

    /// Chunks that wait.
    pub(super) fn queued(&self) -> usize {
        self.queue.lock().chunks.len()
    }

    /// Is this what the slot's entry says?
    pub(super) fn lives(found: &Found, entry: Entry) -> bool {
        match (found.what, entry.meaning()) {
            (What::Object(object), Meaning::Object(named)) => {
                object.location == named.location && object.len == named.len
            }
            (What::SameFilled(word), Meaning::SameFilled(named)) => {
                word == named && entry.is_buffered()
            }
            _ => false,
        }
    }
}
