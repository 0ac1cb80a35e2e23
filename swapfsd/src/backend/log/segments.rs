//! The device's segments: what each of them is used for, and how much of it lives.
//!
//! ```text
//! free --take--> open --close--> used --collector--> victim --empty--> pending --flush--> free
//! ```
//!
//! A segment that was emptied is *pending* until the device has been flushed: only then is what was
//! moved out of it safe elsewhere, and it may be written again. These words outlive the process
//! ([`crate::held`]), with the two numbers that everything on the device is ordered by. How much of
//! a segment lives is counted again from the slot table after a kill.

use super::part::device_bytes;
use super::scan::LogArea;
use crate::held::Held;
use crate::sync::{Condvar, Mutex};
use crate::sys::memory::Mapping;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use swapfs_format::PAGE_LEN;
use swapfs_format::log::{OBJECT_HEADER_LEN, RECORD_LEN};

/// The region of this file.
const LOG_REGION: usize = 3;
/// The last byte is the version of what lies in the region.
const MAGIC: u64 = u64::from_le_bytes(*b"logkept\x02");
/// Streams of parts that can be written side by side.
pub(super) const MAX_STREAMS: usize = 8;

/// What a segment is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum State {
    Free = 0,
    /// A stream writes parts to it.
    Open = 1,
    Used = 2,
    /// The collector is moving what is left of it.
    Victim = 3,
    /// Empty; what was in it is on its way to being durable elsewhere.
    Pending = 4,
}

const STATE_SHIFT: u32 = 40;
const LIVE_MASK: u64 = (1 << STATE_SHIFT) - 1;

impl State {
    fn bits(self) -> u64 {
        (self as u64) << STATE_SHIFT
    }

    fn of(info: u64) -> State {
        match info >> STATE_SHIFT {
            0 => State::Free,
            1 => State::Open,
            3 => State::Victim,
            4 => State::Pending,
            _ => State::Used,
        }
    }
}

#[derive(Debug)]
#[repr(C)]
struct Header {
    magic: AtomicU64,
    segment_count: AtomicU64,
    segment_bytes: AtomicU64,
    /// The last number that a write or discard was given.
    write_sequence: AtomicU64,
    /// The last number that a part was given.
    part_sequence: AtomicU64,
    /// Parts up to this one are on the device, flushed.
    durable_part: AtomicU64,
    anchor_generation: AtomicU64,
    /// By stream: the part that is being written, and where; 0: none. Nothing of it counts yet.
    in_flight: [AtomicU64; MAX_STREAMS],
    in_flight_at: [AtomicU64; MAX_STREAMS],
}

/// The words of a segment.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Words {
    /// State, and the bytes that live objects take with their records.
    info: AtomicU64,
    /// The number of its first part.
    filling: AtomicU64,
    /// The write sequence when its first part was begun.
    began: AtomicU64,
    /// The least of these numbers that any record still readable in the segment can depend on:
    /// that of the older filling, until this one is durable.
    stale: AtomicU64,
    /// Records of words and discards in it; how many of them still count nobody knows.
    plain: AtomicU64,
    /// Entries that name an object of the segment which counts for another one.
    riders: AtomicU64,
}

/// A segment was never written: nothing stale is in it.
pub(super) const NOTHING_STALE: u64 = u64::MAX >> 1;

#[derive(Debug)]
struct Free {
    /// First in, first out: all segments are written equally often.
    segments: VecDeque<u32>,
    waiting: usize,
}

fn live_bytes_of(len: usize, rider: bool) -> u64 {
    if rider { RECORD_LEN as u64 } else { device_bytes(len) }
}

/// The segments.
#[derive(Debug)]
pub(super) struct Segments {
    memory: Mapping,
    pub(super) area: LogArea,
    free: Mutex<Free>,
    freed: Condvar,
    /// Guards that numbers are given out and noted together.
    numbers: Mutex<()>,
    live_bytes: AtomicU64,
    pending: AtomicU64,
}

impl Segments {
    /// The segments of `area`: a predecessor's, or all of them free.
    ///
    /// # Errors
    /// No memory; `InvalidData` where the predecessor's are not what they should be.
    pub(super) fn new(held: &Held, area: LogArea) -> io::Result<Segments> {
        let bytes = PAGE_LEN + area.segment_count as usize * size_of::<Words>();
        let bytes = bytes.next_multiple_of(PAGE_LEN);
        let memory = held.map(LOG_REGION, bytes)?;
        if held.is_adopted() {
            memory.map_present(0, bytes)?;
        } else {
            memory.populate_range(0, bytes)?;
        }
        let segments = Segments {
            memory,
            area,
            free: Mutex::new(Free {
                segments: VecDeque::with_capacity(area.segment_count as usize),
                waiting: 0,
            }),
            freed: Condvar::new(),
            numbers: Mutex::new(()),
            live_bytes: AtomicU64::new(0),
            pending: AtomicU64::new(0),
        };
        let header = segments.header();
        if held.is_adopted() {
            let same = header.magic.load(Ordering::Acquire) == MAGIC
                && header.segment_count.load(Ordering::Relaxed) == u64::from(area.segment_count)
                && header.segment_bytes.load(Ordering::Relaxed) == area.segment_bytes;
            if !same {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the memory left behind is not that of this log, or of another version of \
                     this program: unmount it and mount it again",
                ));
            }
        } else {
            for segment in area.segments() {
                let words = segments.words(segment);
                words.began.store(NOTHING_STALE, Ordering::Relaxed);
                words.stale.store(NOTHING_STALE, Ordering::Relaxed);
            }
            header.segment_count.store(u64::from(area.segment_count), Ordering::Relaxed);
            header.segment_bytes.store(area.segment_bytes, Ordering::Relaxed);
            header.magic.store(MAGIC, Ordering::Release);
        }
        Ok(segments)
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned and has the first page; any bits are a header,
        // whose fields are atomics.
        unsafe { &*self.memory.as_ptr().cast() }
    }

    fn words(&self, segment: u32) -> &Words {
        let offset = PAGE_LEN + segment as usize * size_of::<Words>();
        assert!(offset + size_of::<Words>() <= self.memory.len());
        // SAFETY: inside the mapping, as just checked.
        let start = unsafe { self.memory.as_ptr().add(offset) };
        // SAFETY: aligned to 8 bytes; any bits are words; only accessed through these atomics.
        unsafe { &*start.cast() }
    }

    /// State and live bytes of a segment.
    pub(super) fn segment(&self, segment: u32) -> (State, u64) {
        let info = self.words(segment).info.load(Ordering::Acquire);
        (State::of(info), info & LIVE_MASK)
    }

    /// The number of the first part of the segment's filling.
    pub(super) fn filling(&self, segment: u32) -> u64 {
        self.words(segment).filling.load(Ordering::Relaxed)
    }

    /// Says what was found in a segment when the log was read: only before it is activated.
    pub(super) fn adopt(&self, segment: u32, state: State, filling: u64, stale: u64) {
        let words = self.words(segment);
        words.filling.store(filling, Ordering::Relaxed);
        words.began.store(stale, Ordering::Relaxed);
        words.stale.store(stale, Ordering::Relaxed);
        words.plain.store(0, Ordering::Relaxed);
        words.info.store(state.bits(), Ordering::Relaxed);
    }

    /// As [`Segments::adopt`], of the state alone, with nothing alive.
    pub(super) fn set_state(&self, segment: u32, state: State) {
        self.words(segment).info.store(state.bits(), Ordering::Release);
    }

    /// The segment that a byte of the data section lies in, if it can hold objects.
    pub(super) fn segment_of(&self, offset_bytes: u64) -> Option<u32> {
        let segment = offset_bytes / self.area.segment_bytes;
        self.area.segments().contains(&(segment as u32)).then_some(segment as u32)
    }

    /// Bytes of a segment are a live object from now on.
    fn add_live(&self, segment: u32, bytes: u64) {
        self.words(segment).info.fetch_add(bytes, Ordering::AcqRel);
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// They are dead.
    fn sub_live(&self, segment: u32, bytes: u64) {
        let before = self.words(segment).info.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before & LIVE_MASK >= bytes);
        self.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// An entry names an object of `len` encoded bytes in the segment. That of a page identical to
    /// another one of its part is a *rider*: only its record counts, the object counts for the
    /// other.
    pub(super) fn add_object(&self, segment: u32, len: usize, rider: bool) {
        if rider {
            self.words(segment).riders.fetch_add(1, Ordering::Relaxed);
        }
        self.add_live(segment, live_bytes_of(len, rider));
    }

    /// It does not any more.
    pub(super) fn sub_object(&self, segment: u32, len: usize, rider: bool) {
        self.sub_live(segment, live_bytes_of(len, rider));
        if rider {
            self.words(segment).riders.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What lives in the segment at most: an object's rider may be all that is left to name it.
    pub(super) fn most_live_bytes(&self, segment: u32) -> u64 {
        let words = self.words(segment);
        let live = words.info.load(Ordering::Acquire) & LIVE_MASK;
        let riders = words.riders.load(Ordering::Relaxed);
        let most = live + riders * (OBJECT_HEADER_LEN + PAGE_LEN) as u64;
        most.min(live.max(self.area.segment_bytes))
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    fn change(&self, segment: u32, from: State, to: State) -> bool {
        let change = |info| (State::of(info) == from).then_some(info & LIVE_MASK | to.bits());
        let info = &self.words(segment).info;
        info.fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
    }

    /// Takes a free segment, if there are more than `keep`.
    pub(super) fn take(&self, keep: usize) -> Option<u32> {
        let mut free = self.free.lock();
        if free.segments.len() <= keep {
            return None;
        }
        let segment = free.segments.pop_front()?;
        drop(free);
        self.set_state(segment, State::Open);
        Some(segment)
    }

    /// Waits until a segment becomes free, or for `at_most`.
    pub(super) fn wait_for_free(&self, at_most: Duration) {
        let mut free = self.free.lock();
        free.waiting += 1;
        let mut free = self.freed.wait_timeout(free, at_most);
        free.waiting -= 1;
    }

    /// Nobody writes to the segment any more.
    pub(super) fn close(&self, segment: u32) {
        self.change(segment, State::Open, State::Used);
    }

    /// Makes a used segment a victim.
    pub(super) fn make_victim(&self, segment: u32) -> bool {
        self.change(segment, State::Used, State::Victim)
    }

    /// Calls a collection off, or finds that something still lives in the segment.
    pub(super) fn spare_victim(&self, segment: u32) {
        self.change(segment, State::Victim, State::Used);
    }

    /// A victim is empty: it waits for the next flush. False: something lives in it.
    pub(super) fn make_pending(&self, segment: u32) -> bool {
        let info = &self.words(segment).info;
        let (from, to) = (State::Victim.bits(), State::Pending.bits());
        let empty = info.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if empty {
            self.pending.fetch_add(1, Ordering::Relaxed);
        }
        empty
    }

    /// A pending segment is free.
    pub(super) fn make_free(&self, segment: u32) {
        self.set_state(segment, State::Free);
        self.pending.fetch_sub(1, Ordering::Relaxed);
        let mut free = self.free.lock();
        free.segments.push_back(segment);
        if free.waiting > 0 {
            self.freed.notify_all();
        }
    }

    pub(super) fn free_count(&self) -> usize {
        self.free.lock().segments.len()
    }

    pub(super) fn pending_count(&self) -> usize {
        self.pending.load(Ordering::Relaxed) as usize
    }

    /// A new filling of an open segment begins with part `sequence`, whose contents are looked for
    /// at write sequence `began`.
    pub(super) fn begin_filling(&self, segment: u32, sequence: u64, began: u64) {
        let words = self.words(segment);
        words.filling.store(sequence, Ordering::Relaxed);
        words.began.store(began, Ordering::Relaxed);
        words.stale.fetch_min(began, Ordering::Relaxed);
        words.plain.store(0, Ordering::Relaxed);
    }

    /// The segment has one more record of a word or a discard.
    pub(super) fn add_plain(&self, segment: u32) {
        self.words(segment).plain.fetch_add(1, Ordering::Relaxed);
    }

    /// How many of them it has.
    pub(super) fn plain(&self, segment: u32) -> u64 {
        self.words(segment).plain.load(Ordering::Relaxed)
    }

    /// What any record still readable on the device may depend on.
    pub(super) fn oldest_stale(&self) -> u64 {
        let stale = |segment| self.words(segment).stale.load(Ordering::Relaxed);
        self.area.segments().map(stale).min().unwrap_or(0)
    }

    /// What is left in the segment was written, or looked for, at that time or later.
    pub(super) fn stale(&self, segment: u32) -> u64 {
        self.words(segment).stale.load(Ordering::Relaxed)
    }

    /// A number for a write or discard: greater than all before.
    pub(super) fn next_write(&self) -> u64 {
        self.header().write_sequence.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The last of these numbers.
    pub(super) fn last_write(&self) -> u64 {
        self.header().write_sequence.load(Ordering::Acquire)
    }

    /// A number for a part, which `stream` is about to write at that place.
    pub(super) fn begin_part(&self, stream: usize, segment: u32, offset_bytes: u32) -> u64 {
        let _alone = self.numbers.lock();
        let header = self.header();
        let sequence = header.part_sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let place = u64::from(segment) << 32 | u64::from(offset_bytes);
        header.in_flight_at[stream].store(place, Ordering::Relaxed);
        header.in_flight[stream].store(sequence, Ordering::Release);
        sequence
    }

    /// The stream's part is on the device, or an empty one in its place. From now on something may
    /// be published that lies in it.
    pub(super) fn end_part(&self, stream: usize) {
        self.header().in_flight[stream].store(0, Ordering::Release);
    }

    /// Parts that a predecessor was writing, with segment and place: nothing of them counts.
    pub(super) fn cut_off(&self) -> impl Iterator<Item = (usize, u64, u32, u32)> + '_ {
        let header = self.header();
        (0..MAX_STREAMS).filter_map(|stream| {
            let sequence = header.in_flight[stream].load(Ordering::Acquire);
            let place = header.in_flight_at[stream].load(Ordering::Relaxed);
            (sequence != 0).then_some((stream, sequence, (place >> 32) as u32, place as u32))
        })
    }

    /// All parts up to this number are written.
    pub(super) fn completed_part(&self) -> u64 {
        let _alone = self.numbers.lock();
        let header = self.header();
        let in_flight = header.in_flight.iter().map(|part| part.load(Ordering::Acquire));
        let first = in_flight.filter(|&part| part != 0).min().unwrap_or(u64::MAX);
        header.part_sequence.load(Ordering::Relaxed).min(first - 1)
    }

    pub(super) fn durable_part(&self) -> u64 {
        self.header().durable_part.load(Ordering::Relaxed)
    }

    /// Parts up to `sequence` are flushed.
    pub(super) fn note_durable(&self, sequence: u64) {
        self.header().durable_part.fetch_max(sequence, Ordering::Relaxed);
        for segment in self.area.segments() {
            let words = self.words(segment);
            if words.filling.load(Ordering::Relaxed) <= sequence {
                words.stale.store(words.began.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }

    /// Numbers from here on are new: what reading the log has shown.
    pub(super) fn set_sequences(&self, last_write: u64, last_part: u64) {
        self.header().write_sequence.store(last_write, Ordering::Relaxed);
        self.header().part_sequence.store(last_part, Ordering::Relaxed);
        self.header().durable_part.store(last_part, Ordering::Relaxed);
    }

    pub(super) fn last_part(&self) -> u64 {
        self.header().part_sequence.load(Ordering::Relaxed)
    }

    /// The number of the anchor that was written last.
    pub(super) fn anchor_generation(&self) -> &AtomicU64 {
        &self.header().anchor_generation
    }

    /// Forgets what lives, before it is counted again. What a predecessor had open is closed.
    pub(super) fn begin_count(&self) {
        self.live_bytes.store(0, Ordering::Relaxed);
        for segment in self.area.segments() {
            let state = match self.segment(segment).0 {
                State::Open | State::Victim => State::Used,
                state => state,
            };
            self.set_state(segment, state);
            self.words(segment).riders.store(0, Ordering::Relaxed);
        }
    }

    /// Makes the list of free segments again.
    pub(super) fn end_count(&self) {
        let mut free = self.free.lock();
        free.segments.clear();
        let mut pending = 0;
        for segment in self.area.segments() {
            match self.segment(segment).0 {
                State::Free => free.segments.push_back(segment),
                State::Pending => pending += 1,
                _ => {}
            }
        }
        self.pending.store(pending, Ordering::Relaxed);
    }
}

const _: () = assert!(size_of::<Header>() <= PAGE_LEN && size_of::<Words>() == 48);
