//! The room on a member: where objects can be put, and how much of it is in use.
//!
//! ```text
//! log      objects one behind the other in segments, which are written from front to back, and
//!          free when nothing in them lives: sparse ones are emptied by the collector
//! linear   an object in a block of 4 KiB each: a freed block can be used again at once
//! objects  each object by a key of its own, that is never used twice: there is only a limit to keep
//! ```
//!
//! Room is taken in *extents*, which are written whole. Nothing here is on the device or outlives
//! the process: it follows from the slot table ([`Space::begin_count`]). What is counted as alive
//! includes extents that are being written, so that nobody takes their room.
//!
//! A segment has a *generation*, which goes up when room in it is taken anew. Who reads from a
//! device without a lock, to put it elsewhere, knows by it that what was read is what the entry
//! named all the time.

mod doubt;

pub(super) use doubt::Doubt;

use crate::sync::Mutex;
use crate::sys::memory::Mapping;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

/// The most that an extent has, in bytes.
pub(super) const MAX_EXTENT_BYTES: usize = 1 << 20;
/// What is left of a segment is not worth an extent.
const LEAST_EXTENT_BYTES: u64 = 24 << 10;
/// Free segments that only the collector takes.
pub(super) const KEEP_SEGMENTS: usize = 3;
/// Of a member that has fewer segments, the collector has fewer for itself.
const FEW_SEGMENTS: usize = 16;

/// Numbers of objects that a member of [`Layout::Objects`] has: it takes none when they are used up,
/// which takes a year at 30,000 a second.
pub(super) const OBJECT_NUMBERS: u64 = 1 << 40;
/// When there are fewer left, no more are begun with.
const LEAST_NUMBERS: u64 = 1 << 20;
/// What an object takes on a server beside its own bytes: an envelope, its key, and what the server needs to find
/// it (tests/bench/RESULTS.md).
pub(super) const OBJECT_OVERHEAD_BYTES: u64 = 330;

/// How objects lie on a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Packed into segments.
    Log,
    /// One in a block of 4 KiB.
    Linear,
    /// Each by itself, by a key.
    Objects,
}

/// Who takes room: what has survived a collection is kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Fresh = 0,
    Collected = 1,
}

const FREE: u16 = 0;
const OPEN: u16 = 1;
const USED: u16 = 2;

/// A segment.
#[derive(Debug)]
#[repr(C)]
struct Words {
    /// Bytes of it that are in use, extents that are being written among them.
    live: AtomicU64,
    generation: AtomicU32,
    state: AtomicU16,
    /// Something was put here since the device was last told that it is free.
    written: AtomicU16,
}

/// Room that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Byte of the member's data section.
    pub(super) offset: u64,
    pub(super) capacity: usize,
    stream: Stream,
}

#[derive(Debug)]
struct Lists {
    /// Free segments of `log`; first in, first out: all are written equally often.
    free: VecDeque<u32>,
    /// By stream: the segment that is being filled, and how far.
    open: [Option<(u32, u64)>; 2],
    /// Where `linear` looks for free blocks next.
    cursor: u64,
}

/// The room on a member.
#[derive(Debug)]
pub(super) struct Space {
    layout: Layout,
    segment_bytes: u64,
    segment_count: u64,
    words: Mapping,
    /// Of `linear`: a bit for each block in use.
    blocks: Option<Mapping>,
    live_bytes: AtomicU64,
    lists: Mutex<Lists>,
}

impl Space {
    /// All of it free. All memory that it needs is taken here.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(layout: Layout, segment_bytes: u64, segment_count: u64) -> io::Result<Space> {
        let pages = |bytes: u64| (bytes as usize).next_multiple_of(PAGE_LEN);
        let word_count = if layout == Layout::Objects { 1 } else { segment_count };
        let words = Mapping::new(pages(word_count * size_of::<Words>() as u64), true)?;
        let blocks = match layout {
            Layout::Log | Layout::Objects => None,
            Layout::Linear => {
                let blocks = segment_count * segment_bytes / PAGE_BYTES;
                Some(Mapping::new(pages(blocks.div_ceil(64) * 8), true)?)
            }
        };
        let mut free = VecDeque::new();
        if layout == Layout::Log {
            free.extend(0..segment_count as u32);
        }
        let lists = Lists { free, open: [None; 2], cursor: 0 };
        Ok(Space {
            layout,
            segment_bytes,
            segment_count,
            words,
            blocks,
            live_bytes: AtomicU64::new(0),
            lists: Mutex::new(lists),
        })
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn segment_count(&self) -> u64 {
        self.segment_count
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// All bytes that there are.
    pub(super) fn capacity_bytes(&self) -> u64 {
        self.segment_bytes * self.segment_count
    }

    /// Places that there are in the address space of all members.
    pub(super) fn addresses(&self) -> u64 {
        match self.layout {
            Layout::Log | Layout::Linear => self.capacity_bytes(),
            Layout::Objects => OBJECT_NUMBERS,
        }
    }

    /// Bytes that objects take, or will when they are written.
    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that can't be written to just now.
    pub(super) fn used_bytes(&self) -> u64 {
        match self.layout {
            Layout::Log => self.capacity_bytes() - self.free_segments() as u64 * self.segment_bytes,
            Layout::Linear | Layout::Objects => self.live_bytes(),
        }
    }

    /// Bytes that may live here: without what the collector needs to work.
    pub(super) fn usable_bytes(&self) -> u64 {
        match self.layout {
            Layout::Linear => self.capacity_bytes(),
            Layout::Objects => self.capacity_bytes().saturating_sub(MAX_EXTENT_BYTES as u64),
            Layout::Log => {
                let kept = 2 * self.keep_segments() as u64 + 1;
                self.segment_count.saturating_sub(kept) * self.segment_bytes / 16 * 15
            }
        }
    }

    /// Can an extent be taken now, by others than the collector?
    pub(super) fn has_room(&self) -> bool {
        match self.layout {
            Layout::Linear => self.live_bytes() < self.capacity_bytes(),
            Layout::Objects => self.live_bytes() + MAX_EXTENT_BYTES as u64 <= self.capacity_bytes(),
            Layout::Log => {
                let lists = self.lists.lock();
                let open = lists.open[Stream::Fresh as usize];
                let room = |fill| self.segment_bytes - fill >= LEAST_EXTENT_BYTES;
                open.is_some_and(|(_, fill)| room(fill)) || lists.free.len() > self.keep_segments()
            }
        }
    }

    /// Free segments that only the collector takes.
    pub(super) fn keep_segments(&self) -> usize {
        if self.segment_count < FEW_SEGMENTS as u64 { 1 } else { KEEP_SEGMENTS }
    }

    pub(super) fn free_segments(&self) -> usize {
        self.lists.lock().free.len()
    }

    fn word_count(&self) -> u64 {
        if self.layout == Layout::Objects { 1 } else { self.segment_count }
    }

    fn words(&self, segment: u64) -> &Words {
        let offset = segment as usize * size_of::<Words>();
        assert!(offset + size_of::<Words>() <= self.words.len());
        // SAFETY: inside the mapping, as just checked.
        let start = unsafe { self.words.as_ptr().add(offset) };
        // SAFETY: aligned to 16 bytes; any bits are words; only accessed through these atomics.
        unsafe { &*start.cast() }
    }

    fn block_words(&self) -> &[AtomicU64] {
        let Some(blocks) = &self.blocks else { return &[] };
        // SAFETY: all of the mapping, page-aligned; any bits are words; only accessed through
        // these atomics.
        unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len() / 8) }
    }

    fn block_count(&self) -> u64 {
        self.capacity_bytes() / PAGE_BYTES
    }

    /// Can there be an object of `size` bytes?
    pub(super) fn is_inside(&self, offset: u64, size: u64) -> bool {
        match self.layout {
            Layout::Objects => offset < OBJECT_NUMBERS,
            _ => offset.checked_add(size).is_some_and(|end| end <= self.capacity_bytes()),
        }
    }

    /// Bytes that an object of `stored` bytes takes.
    pub(super) fn taken_by(&self, stored: u64) -> u64 {
        match self.layout {
            Layout::Log => stored,
            Layout::Linear => PAGE_BYTES,
            Layout::Objects => stored + OBJECT_OVERHEAD_BYTES,
        }
    }

    /// The segment that something lies in: 0 of [`Layout::Objects`], which has none.
    pub(super) fn segment_of(&self, offset: u64) -> u64 {
        match self.layout {
            Layout::Objects => 0,
            _ => offset / self.segment_bytes,
        }
    }

    /// Goes up when room in the segment is taken anew. Objects by keys are never where others were.
    pub(super) fn generation(&self, segment: u64) -> u32 {
        self.words(segment).generation.load(Ordering::Acquire)
    }

    /// Takes room for `stream`. `None`: there is none but what the collector needs. `numbers`: how
    /// many keys were given away, of [`Layout::Objects`].
    pub(super) fn begin(&self, stream: Stream, numbers: u64) -> Option<Extent> {
        if self.layout == Layout::Objects {
            return self.begin_objects(stream, numbers);
        }
        let mut lists = self.lists.lock();
        match self.layout {
            Layout::Objects => None,
            Layout::Log => self.begin_in_segment(&mut lists, stream),
            Layout::Linear => self.begin_in_blocks(&mut lists, stream),
        }
    }

    /// Room by the limit alone.
    fn begin_objects(&self, stream: Stream, numbers: u64) -> Option<Extent> {
        let bytes = MAX_EXTENT_BYTES as u64;
        let more = |live: u64| (live + bytes <= self.capacity_bytes()).then_some(live + bytes);
        if numbers + LEAST_NUMBERS > OBJECT_NUMBERS {
            return None;
        }
        self.live_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Extent { offset: 0, capacity: MAX_EXTENT_BYTES, stream })
    }

    fn begin_in_segment(&self, lists: &mut Lists, stream: Stream) -> Option<Extent> {
        let open = &mut lists.open[stream as usize];
        if let Some((segment, fill)) = *open
            && self.segment_bytes - fill < LEAST_EXTENT_BYTES
        {
            *open = None;
            self.close(&mut lists.free, segment);
        }
        if lists.open[stream as usize].is_none() {
            let keep = if stream == Stream::Collected { 0 } else { self.keep_segments() };
            if lists.free.len() <= keep {
                return None;
            }
            let segment = lists.free.pop_front()?;
            let words = self.words(u64::from(segment));
            words.generation.fetch_add(1, Ordering::AcqRel);
            words.state.store(OPEN, Ordering::Release);
            words.written.store(1, Ordering::Relaxed);
            lists.open[stream as usize] = Some((segment, 0));
        }
        let (segment, fill) = lists.open[stream as usize].as_mut()?;
        let capacity = (self.segment_bytes - *fill).min(MAX_EXTENT_BYTES as u64);
        let offset = u64::from(*segment) * self.segment_bytes + *fill;
        *fill += capacity;
        self.add_live(offset, capacity);
        Some(Extent { offset, capacity: capacity as usize, stream })
    }

    fn close(&self, free: &mut VecDeque<u32>, segment: u32) {
        let words = self.words(u64::from(segment));
        words.state.store(USED, Ordering::SeqCst);
        if words.live.load(Ordering::SeqCst) == 0 {
            self.make_free(free, segment);
        }
    }

    fn make_free(&self, free: &mut VecDeque<u32>, segment: u32) {
        let words = self.words(u64::from(segment));
        if words.live.load(Ordering::SeqCst) == 0
            && words.state.compare_exchange(USED, FREE, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            free.push_back(segment);
        }
    }

    /// The next run of free blocks, wherever it is.
    fn begin_in_blocks(&self, lists: &mut Lists, stream: Stream) -> Option<Extent> {
        let words = self.block_words();
        let count = self.block_count();
        let is_free = |block: u64| {
            words[(block / 64) as usize].load(Ordering::Acquire) >> (block % 64) & 1 == 0
        };
        let (mut block, mut looked) = (lists.cursor % count.max(1), 0);
        while looked < count {
            if block >= count {
                block = 0;
            }
            if block.is_multiple_of(64)
                && words[(block / 64) as usize].load(Ordering::Acquire) == u64::MAX
            {
                block += 64;
                looked += 64;
                continue;
            }
            if is_free(block) {
                break;
            }
            block += 1;
            looked += 1;
        }
        if looked >= count {
            return None;
        }
        let most = (MAX_EXTENT_BYTES as u64 / PAGE_BYTES).min(count - block);
        let run = (0..most).take_while(|&index| is_free(block + index)).count() as u64;
        for taken in block..block + run {
            words[(taken / 64) as usize].fetch_or(1 << (taken % 64), Ordering::AcqRel);
        }
        let (offset, capacity) = (block * PAGE_BYTES, run * PAGE_BYTES);
        for segment in self.segment_of(offset)..=self.segment_of(offset + capacity - 1) {
            let words = self.words(segment);
            words.generation.fetch_add(1, Ordering::AcqRel);
            words.written.store(1, Ordering::Relaxed);
        }
        self.live_bytes.fetch_add(capacity, Ordering::Relaxed);
        lists.cursor = block + run;
        Some(Extent { offset, capacity: capacity as usize, stream })
    }

    /// `size` bytes at `offset`, in an extent that is being written, are an object from now on.
    pub(super) fn placed(&self, offset: u64, size: u64) {
        match self.layout {
            Layout::Log => self.add_live(offset, size),
            Layout::Linear => {}
            Layout::Objects => {
                self.live_bytes.fetch_add(size, Ordering::Relaxed);
            }
        }
    }

    /// What was put into the extent is published, or given up; `used` bytes of it were written.
    pub(super) fn end(&self, extent: Extent, used: usize) {
        let used = used.next_multiple_of(PAGE_LEN) as u64;
        match self.layout {
            Layout::Log => {
                let (segment, capacity) = (self.segment_of(extent.offset), extent.capacity as u64);
                let end = extent.offset % self.segment_bytes + capacity;
                let mut lists = self.lists.lock();
                if let Some((open, fill)) = &mut lists.open[extent.stream as usize]
                    && u64::from(*open) == segment
                    && *fill == end
                {
                    // Nobody has taken what is behind it.
                    *fill = end - capacity + used;
                }
                drop(lists);
                self.sub_live(extent.offset, capacity);
            }
            Layout::Linear => {
                let end = extent.offset + extent.capacity as u64;
                for offset in (extent.offset + used..end).step_by(PAGE_LEN) {
                    self.free(offset, PAGE_BYTES);
                }
            }
            Layout::Objects => self.sub_live_bytes(extent.capacity as u64),
        }
    }

    /// Not below zero: a damaged entry may name what was never there.
    fn sub_live_bytes(&self, bytes: u64) {
        let less = |live: u64| Some(live.saturating_sub(bytes));
        let _ = self.live_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// The extent could not be written: nothing was put there.
    pub(super) fn give_back(&self, extent: Extent) {
        self.end(extent, 0);
    }

    /// What was placed there is named by no entry any more.
    pub(super) fn free(&self, offset: u64, size: u64) {
        match self.layout {
            Layout::Log => self.sub_live(offset, size),
            Layout::Linear => {
                let block = offset / PAGE_BYTES;
                let Some(word) = self.block_words().get((block / 64) as usize) else { return };
                let bit = 1 << (block % 64);
                if word.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                    self.live_bytes.fetch_sub(PAGE_BYTES, Ordering::Relaxed);
                }
            }
            Layout::Objects => self.sub_live_bytes(size),
        }
    }

    fn add_live(&self, offset: u64, bytes: u64) {
        self.words(self.segment_of(offset)).live.fetch_add(bytes, Ordering::SeqCst);
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub_live(&self, offset: u64, bytes: u64) {
        let segment = self.segment_of(offset);
        let words = self.words(segment);
        let less = |live: u64| live.checked_sub(bytes);
        // A damaged entry may name a place where nothing was.
        let Ok(before) = words.live.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) else {
            return;
        };
        self.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if before == bytes && words.state.load(Ordering::SeqCst) == USED {
            self.make_free(&mut self.lists.lock().free, segment as u32);
        }
    }

    /// A segment that can be emptied, and what lives in it.
    pub(super) fn used_segment(&self, segment: u64) -> Option<u64> {
        let words = self.words(segment);
        (words.state.load(Ordering::Acquire) == USED).then(|| words.live.load(Ordering::Acquire))
    }

    /// Takes a segment in which nothing lives, and which the device has not been told of since it was
    /// written. `None`: there is none.
    pub(super) fn begin_discard(&self) -> Option<Extent> {
        let mut lists = self.lists.lock();
        let extent = |segment: u64| Extent {
            offset: segment * self.segment_bytes,
            capacity: self.segment_bytes as usize,
            stream: Stream::Fresh,
        };
        match self.layout {
            Layout::Log => {
                let is_written = |&segment: &u32| {
                    self.words(u64::from(segment)).written.load(Ordering::Relaxed) != 0
                };
                let place = lists.free.iter().position(is_written)?;
                let segment = lists.free.remove(place)?;
                self.words(u64::from(segment)).state.store(OPEN, Ordering::Release);
                Some(extent(u64::from(segment)))
            }
            Layout::Linear => {
                let blocks = self.segment_bytes / PAGE_BYTES;
                let words = self.block_words();
                let is_free = |block: u64| {
                    words[(block / 64) as usize].load(Ordering::Acquire) >> (block % 64) & 1 == 0
                };
                let segment = (0..self.segment_count).find(|&segment| {
                    self.words(segment).written.load(Ordering::Relaxed) != 0
                        && (segment * blocks..(segment + 1) * blocks).all(is_free)
                })?;
                for block in segment * blocks..(segment + 1) * blocks {
                    words[(block / 64) as usize].fetch_or(1 << (block % 64), Ordering::AcqRel);
                }
                self.live_bytes.fetch_add(self.segment_bytes, Ordering::Relaxed);
                self.words(segment).generation.fetch_add(1, Ordering::AcqRel);
                Some(extent(segment))
            }
            Layout::Objects => None,
        }
    }

    /// The device has been told, or does not want to be.
    pub(super) fn end_discard(&self, extent: Extent) {
        let segment = self.segment_of(extent.offset);
        self.words(segment).written.store(0, Ordering::Relaxed);
        match self.layout {
            Layout::Log => {
                let mut lists = self.lists.lock();
                self.words(segment).state.store(FREE, Ordering::Release);
                lists.free.push_back(segment as u32);
            }
            Layout::Linear | Layout::Objects => self.end(extent, 0),
        }
    }

    /// Forgets what lives, before it is counted again. Nobody else is here.
    pub(super) fn begin_count(&self) {
        for segment in 0..self.word_count() {
            let words = self.words(segment);
            words.live.store(0, Ordering::Relaxed);
            words.state.store(FREE, Ordering::Relaxed);
        }
        self.block_words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.live_bytes.store(0, Ordering::Relaxed);
    }

    /// An entry names `size` bytes at `offset`.
    pub(super) fn count(&self, offset: u64, size: u64) {
        if !self.is_inside(offset, size) {
            return;
        }
        match self.layout {
            Layout::Log => self.add_live(offset, size),
            Layout::Linear => {
                let block = offset / PAGE_BYTES;
                let Some(word) = self.block_words().get((block / 64) as usize) else { return };
                word.fetch_or(1 << (block % 64), Ordering::Relaxed);
                self.live_bytes.fetch_add(PAGE_BYTES, Ordering::Relaxed);
            }
            Layout::Objects => {
                self.live_bytes.fetch_add(size, Ordering::Relaxed);
            }
        }
    }

    /// Makes the list of what is free. A segment that a predecessor was filling is not filled on.
    pub(super) fn end_count(&self) {
        let mut lists = self.lists.lock();
        lists.open = [None; 2];
        if self.layout != Layout::Log {
            return;
        }
        lists.free.clear();
        for segment in 0..self.segment_count {
            let words = self.words(segment);
            if words.live.load(Ordering::Relaxed) > 0 {
                words.state.store(USED, Ordering::Relaxed);
            } else {
                lists.free.push_back(segment as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests;
