//! The memory that objects and table pages lie in: segments of one large mapping.
//!
//! The mapping reserves addresses only. A thread of its own ([`Arena::keep_reserve`]) populates
//! segments before anybody needs them, `reserve=` bytes ahead, and gives surplus ones back. So
//! the I/O path takes segments that are there, and never waits in a page fault: if none is left,
//! it waits a moment for that thread or for the compactor, and is then refused.
//!
//! ```text
//! unpopulated --populate--> free --take--> open --seal--> sealed --compactor--> victim
//!      ^                    |  ^                            |                     |
//!      +------release-------+  +----------- empty ----------+------- empty -------+
//! ```
//!
//! Of each segment there is one word: its state, and the bytes of it that live objects take.
//! Both can be had again by one scan of the slot table.

use super::entry::{Location, MAX_ARENA_BYTES};
use crate::sync::{Condvar, Mutex};
use crate::sys::memory::Mapping;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use swapfs_format::PAGE_LEN;

/// Bytes of a segment: objects are appended to it until it is full. Small enough that what is
/// left at the end of the few open ones is nothing, large enough that taking one is rare.
pub(super) const SEGMENT_BYTES: usize = 256 << 10;
const FRAMES_PER_SEGMENT: u32 = (SEGMENT_BYTES / PAGE_LEN) as u32;
/// Segments that only the compactor may take: it needs some to make any free.
pub(super) const COMPACTOR_SEGMENTS: usize = 2;
/// How long a write waits for a free segment before it is refused.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a segment is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum State {
    Unpopulated = 0,
    Free = 1,
    /// Someone appends to it.
    Open = 2,
    Sealed = 3,
    /// The compactor is moving what is left of it.
    Victim = 4,
    /// Pages of the slot table.
    Table = 5,
}

const STATE_SHIFT: u32 = 24;
const LIVE_MASK: u32 = (1 << STATE_SHIFT) - 1;

impl State {
    fn bits(self) -> u32 {
        (self as u32) << STATE_SHIFT
    }

    fn of(info: u32) -> State {
        match info >> STATE_SHIFT {
            0 => State::Unpopulated,
            1 => State::Free,
            2 => State::Open,
            3 => State::Sealed,
            4 => State::Victim,
            _ => State::Table,
        }
    }
}

/// The threads that work in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Keeps the reserve, and the index of identical pages large enough.
    Reserve = 0,
    Compactor = 1,
}

/// What the locks of the arena guard.
#[derive(Debug)]
struct Pools {
    free: Vec<u32>,
    /// Given back to the system; only the reserve's thread uses it.
    released: Vec<u32>,
    /// Segments from here on were never populated.
    untouched: u32,
    /// Frames for the table that are ready, and where the next come from.
    frames: Vec<u32>,
    table_segment: Option<(u32, u32)>,
    waiting: usize,
}

/// The arena.
#[derive(Debug)]
pub(super) struct Arena {
    mapping: Mapping,
    /// State and live bytes of each segment, in memory that is there as soon as the segment is.
    info: Mapping,
    segment_count: u32,
    limit_segments: u32,
    reserve_segments: usize,
    /// So many writes wait for a segment at most: the other threads are for reads.
    max_waiting: usize,
    pools: Mutex<Pools>,
    freed: Condvar,
    /// By role: there is something to do.
    wanted: Mutex<[bool; 2]>,
    wake: Condvar,
    /// A write has waited in vain, and nothing has become free since: others need not wait too,
    /// or reads would find all threads waiting.
    exhausted: AtomicBool,
    /// A write found no segment: the compactor shall not wait for its threshold.
    urgent: AtomicBool,
    in_use: AtomicU32,
    populated: AtomicU32,
    table_frames: AtomicU32,
    live_bytes: AtomicU64,
    /// Bytes of objects that died, ever; and how many there have to be before the compactor,
    /// which found nothing to gain, is asked again.
    freed_bytes: AtomicU64,
    no_gain_until: AtomicU64,
    max_used_segments: AtomicU32,
}

impl Arena {
    /// An arena for `limit_bytes` of objects and table, with `reserve_bytes` populated at once.
    ///
    /// # Errors
    /// No address space, or no memory for the reserve.
    pub(super) fn new(
        limit_bytes: u64,
        reserve_bytes: u64,
        max_waiting: usize,
    ) -> io::Result<Arena> {
        let segments = |bytes: u64| bytes.min(MAX_ARENA_BYTES / 2).div_ceil(SEGMENT_BYTES as u64);
        let limit_segments = segments(limit_bytes).max(4) as u32;
        let reserve_segments = segments(reserve_bytes).max(4) as usize;
        let segment_count =
            limit_segments + 2 * reserve_segments as u32 + 2 * COMPACTOR_SEGMENTS as u32;
        let info_bytes = (segment_count as usize * 4).next_multiple_of(PAGE_LEN);
        let arena = Arena {
            mapping: Mapping::new(segment_count as usize * SEGMENT_BYTES, false)?,
            info: Mapping::new(info_bytes, false)?,
            segment_count,
            limit_segments,
            reserve_segments,
            max_waiting,
            pools: Mutex::new(Pools {
                // What is free beyond the reserve is given back, but maybe not at once.
                free: Vec::with_capacity(segment_count as usize),
                released: Vec::with_capacity(segment_count as usize),
                untouched: 0,
                frames: Vec::with_capacity(2 * FRAMES_PER_SEGMENT as usize),
                table_segment: None,
                waiting: 0,
            }),
            freed: Condvar::new(),
            wanted: Mutex::new([false; 2]),
            wake: Condvar::new(),
            exhausted: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            in_use: AtomicU32::new(0),
            populated: AtomicU32::new(0),
            table_frames: AtomicU32::new(0),
            live_bytes: AtomicU64::new(0),
            freed_bytes: AtomicU64::new(0),
            no_gain_until: AtomicU64::new(0),
            max_used_segments: AtomicU32::new(0),
        };
        // Measured: huge pages make nothing here faster that can be seen (RESULTS.md).
        drop(arena.mapping.use_small_pages());
        while arena.free_segments() < reserve_segments {
            arena.populate_one()?;
        }
        Ok(arena)
    }

    fn info(&self, segment: u32) -> &AtomicU32 {
        assert!(segment < self.segment_count);
        // SAFETY: inside the mapping, as just checked.
        let word = unsafe { self.info.as_ptr().cast::<AtomicU32>().add(segment as usize) };
        // SAFETY: aligned, zeroed at the start, only ever accessed through these atomics.
        unsafe { &*word }
    }

    /// Segments that were ever populated are below this number.
    pub(super) fn touched_segments(&self) -> u32 {
        self.pools.lock().untouched
    }

    /// Can anything lie at `location`? A damaged entry may say anything.
    pub(super) fn may_hold(&self, location: Location) -> bool {
        location / (SEGMENT_BYTES as Location) < Location::from(self.segment_count)
    }

    /// State and live bytes of a segment.
    pub(super) fn segment(&self, segment: u32) -> (State, u32) {
        let info = self.info(segment).load(Ordering::Acquire);
        (State::of(info), info & LIVE_MASK)
    }

    /// The state of the segment that `location` lies in.
    pub(super) fn state_at(&self, location: Location) -> State {
        self.segment(segment_of(location)).0
    }

    /// First byte of a range that lies in one segment.
    ///
    /// # Panics
    /// If it does not.
    pub(super) fn at(&self, location: Location, len: usize) -> *mut u8 {
        let location = location as usize;
        assert!(
            len <= SEGMENT_BYTES
                && location / SEGMENT_BYTES == (location + len.max(1) - 1) / SEGMENT_BYTES
                && location + len <= self.mapping.len()
        );
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.mapping.as_ptr().add(location) }
    }

    /// Can an object of `len` bytes lie at `location`?
    pub(super) fn is_inside(&self, location: Location, len: usize) -> bool {
        self.may_hold(location)
            && segment_of(location) == segment_of(location + len as Location - 1)
            && matches!(self.state_at(location), State::Open | State::Sealed | State::Victim)
    }

    /// Takes a segment for objects, and waits a moment if there is none. `None`: refused.
    pub(super) fn take_for_write(&self) -> Option<u32> {
        if let Some(segment) = self.take(COMPACTOR_SEGMENTS, self.limit_segments, State::Open) {
            return Some(segment);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            // At the limit only the compactor can help, and only if there is something to gain.
            if self.in_use.load(Ordering::Relaxed) >= self.limit_segments
                && self.freed_bytes.load(Ordering::Relaxed)
                    < self.no_gain_until.load(Ordering::Relaxed)
            {
                return None;
            }
            self.urgent.store(true, Ordering::Release);
            self.wake();
            if self.exhausted.load(Ordering::Relaxed) {
                return None;
            }
            if Instant::now() >= deadline {
                self.exhausted.store(true, Ordering::Relaxed);
                return None;
            }
            let mut pools = self.pools.lock();
            if pools.waiting >= self.max_waiting {
                return None;
            }
            pools.waiting += 1;
            pools = self.freed.wait_timeout(pools, Duration::from_millis(5));
            pools.waiting -= 1;
            drop(pools);
            if let Some(segment) = self.take(COMPACTOR_SEGMENTS, self.limit_segments, State::Open) {
                return Some(segment);
            }
        }
    }

    /// Takes a segment to move objects to, at once or not at all. `set_aside` of them may be of
    /// those that only the compactor may take, beyond the limit too.
    pub(super) fn take_for_move(&self, set_aside: usize) -> Option<u32> {
        if set_aside > 0 {
            self.take(0, self.limit_segments + COMPACTOR_SEGMENTS as u32, State::Open)
        } else {
            self.take(self.reserve_segments / 2, self.limit_segments, State::Open)
        }
    }

    fn take(&self, keep: usize, limit: u32, state: State) -> Option<u32> {
        let mut pools = self.pools.lock();
        let in_use = self.in_use.load(Ordering::Relaxed);
        let left = pools.free.len();
        if left <= keep || in_use >= limit {
            return None;
        }
        let segment = pools.free.pop()?;
        self.in_use.store(in_use + 1, Ordering::Relaxed);
        self.max_used_segments.fetch_max(in_use + 1, Ordering::Relaxed);
        self.info(segment).store(state.bits(), Ordering::Release);
        drop(pools);
        if left <= self.reserve_segments / 4 * 3 {
            self.wake();
        }
        Some(segment)
    }

    /// `len` bytes of an open segment are a live object from now on.
    pub(super) fn add_live(&self, segment: u32, len: u32) {
        self.info(segment).fetch_add(len, Ordering::AcqRel);
        self.live_bytes.fetch_add(u64::from(len), Ordering::Relaxed);
    }

    /// The object of `len` bytes at `location` is dead; nobody can be reading it any more.
    pub(super) fn sub_live(&self, location: Location, len: u32) {
        let segment = segment_of(location);
        let before = self.info(segment).fetch_sub(len, Ordering::AcqRel);
        debug_assert!(before & LIVE_MASK >= len);
        self.live_bytes.fetch_sub(u64::from(len), Ordering::Relaxed);
        self.freed_bytes.fetch_add(u64::from(len), Ordering::Relaxed);
        if before & LIVE_MASK == len && State::of(before) == State::Sealed {
            self.free_if_empty(segment, State::Sealed);
        }
    }

    /// Nobody appends to the segment any more.
    pub(super) fn seal(&self, segment: u32) {
        let step = State::Sealed.bits() - State::Open.bits();
        let before = self.info(segment).fetch_add(step, Ordering::AcqRel);
        debug_assert_eq!(State::of(before), State::Open);
        if before & LIVE_MASK == 0 {
            self.free_if_empty(segment, State::Sealed);
        }
    }

    /// Makes a sealed segment a victim of the compactor.
    pub(super) fn make_victim(&self, segment: u32) -> bool {
        let change = |info| {
            (State::of(info) == State::Sealed).then_some(info & LIVE_MASK | State::Victim.bits())
        };
        self.info(segment).fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
    }

    /// The compactor is done with the segment: free if nothing lives in it, else sealed again.
    pub(super) fn end_victim(&self, segment: u32) -> bool {
        if self.free_if_empty(segment, State::Victim) {
            return true;
        }
        let step = State::Victim.bits() - State::Sealed.bits();
        let before = self.info(segment).fetch_sub(step, Ordering::AcqRel);
        // The last object may have gone since.
        before & LIVE_MASK == 0 && self.free_if_empty(segment, State::Sealed)
    }

    fn free_if_empty(&self, segment: u32, state: State) -> bool {
        let exchange = self.info(segment).compare_exchange(
            state.bits(),
            State::Free.bits(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if exchange.is_err() {
            return false;
        }
        let mut pools = self.pools.lock();
        pools.free.push(segment);
        self.in_use.fetch_sub(1, Ordering::Relaxed);
        let surplus = pools.free.len() > self.surplus_from();
        self.became_free(&pools);
        drop(pools);
        if surplus {
            self.wake();
        }
        true
    }

    /// Tells who waits; under the lock, so that nobody misses it.
    fn became_free(&self, pools: &Pools) {
        let usable = pools.free.len() > COMPACTOR_SEGMENTS
            && self.in_use.load(Ordering::Relaxed) < self.limit_segments;
        if usable {
            self.exhausted.store(false, Ordering::Relaxed);
            if pools.waiting > 0 {
                self.freed.notify_all();
            }
        }
    }

    fn surplus_from(&self) -> usize {
        self.reserve_segments + self.reserve_segments / 4 + COMPACTOR_SEGMENTS
    }

    /// Takes a zeroed page for the table.
    pub(super) fn take_frame(&self) -> Option<u32> {
        let frame = loop {
            let mut pools = self.pools.lock();
            if let Some(frame) = pools.frames.pop() {
                break frame;
            }
            if let Some((segment, used)) = pools.table_segment {
                let next = used + 1;
                pools.table_segment = (next < FRAMES_PER_SEGMENT).then_some((segment, next));
                break segment * FRAMES_PER_SEGMENT + used;
            }
            drop(pools);
            let segment = self.take_for_write()?;
            let bits = State::Table.bits() | SEGMENT_BYTES as u32;
            let mut pools = self.pools.lock();
            if pools.table_segment.is_none() {
                self.info(segment).store(bits, Ordering::Release);
                pools.table_segment = Some((segment, 0));
            } else {
                // Someone else was faster.
                drop(pools);
                self.seal(segment);
            }
        };
        let page = self.at(u64::from(frame) * PAGE_LEN as u64, PAGE_LEN);
        // SAFETY: the frame is nobody's but ours until it is linked into the table.
        unsafe { page.write_bytes(0, PAGE_LEN) };
        self.table_frames.fetch_add(1, Ordering::Relaxed);
        Some(frame)
    }

    /// Takes a frame back that was never linked.
    pub(super) fn give_frame_back(&self, frame: u32) {
        self.table_frames.fetch_sub(1, Ordering::Relaxed);
        self.pools.lock().frames.push(frame);
    }

    /// The 512 words of a table page.
    pub(super) fn frame_words(&self, frame: u32) -> &[AtomicU64] {
        let start = self.at(u64::from(frame) * PAGE_LEN as u64, PAGE_LEN);
        // SAFETY: inside the mapping, page-aligned, populated, and as a table page accessed
        // through these atomics only.
        unsafe { std::slice::from_raw_parts(start.cast(), PAGE_LEN / 8) }
    }

    /// Tells the threads of the background that there is work.
    pub(super) fn wake(&self) {
        let mut wanted = self.wanted.lock();
        if *wanted != [true; 2] {
            *wanted = [true; 2];
            self.wake.notify_all();
        }
    }

    /// Waits until there is work for the thread of that role, or for `at_most`.
    pub(super) fn wait_for_work(&self, role: Role, at_most: Duration) {
        let mut wanted = self.wanted.lock();
        if !wanted[role as usize] {
            wanted = self.wake.wait_timeout(wanted, at_most);
        }
        wanted[role as usize] = false;
    }

    /// Did a write find no segment since this was last asked?
    pub(super) fn take_urgent(&self) -> bool {
        self.urgent.swap(false, Ordering::AcqRel)
    }

    /// The compactor has found nothing to gain: writes at the limit need not wait for it until as
    /// much has died as makes a segment.
    pub(super) fn say_no_gain(&self) {
        let freed_bytes = self.freed_bytes.load(Ordering::Relaxed);
        self.no_gain_until.store(freed_bytes + SEGMENT_BYTES as u64, Ordering::Relaxed);
    }

    /// There may be something to gain again.
    pub(super) fn forget_no_gain(&self) {
        self.no_gain_until.store(0, Ordering::Relaxed);
    }

    /// Populates or releases until the reserve is what it shall be: exactly if the volume is
    /// `idle`, else with some surplus, so that segments do not go back and forth. May wait for
    /// memory: it is in nobody's way. Only one thread may be in here.
    pub(super) fn keep_reserve(&self, stop: &AtomicBool, idle: bool) -> io::Result<()> {
        let surplus_from = if idle { self.reserve_segments } else { self.surplus_from() };
        while !stop.load(Ordering::Relaxed) {
            let free = self.free_segments();
            if free < self.reserve_segments {
                if !self.populate_one()? {
                    return Ok(());
                }
            } else if free > surplus_from {
                self.release_one()?;
            } else {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Makes one more segment free; false if there is none.
    fn populate_one(&self) -> io::Result<bool> {
        let segment = {
            let mut pools = self.pools.lock();
            match pools.released.pop() {
                Some(segment) => segment,
                None if pools.untouched < self.segment_count => {
                    pools.untouched += 1;
                    pools.untouched - 1
                }
                None => return Ok(false),
            }
        };
        let offset = segment as usize * SEGMENT_BYTES;
        if let Err(error) = self.mapping.populate_range(offset, SEGMENT_BYTES) {
            self.pools.lock().released.push(segment);
            return Err(error);
        }
        // Also puts the page of its information in place.
        self.info(segment).store(State::Free.bits(), Ordering::Release);
        self.populated.fetch_add(1, Ordering::Relaxed);
        let mut pools = self.pools.lock();
        pools.free.push(segment);
        self.became_free(&pools);
        drop(pools);
        Ok(true)
    }

    fn release_one(&self) -> io::Result<()> {
        let Some(segment) = self.pools.lock().free.pop() else { return Ok(()) };
        self.info(segment).store(State::Unpopulated.bits(), Ordering::Release);
        let released = self.mapping.release(segment as usize * SEGMENT_BYTES, SEGMENT_BYTES);
        if released.is_err() {
            self.info(segment).store(State::Free.bits(), Ordering::Release);
            self.pools.lock().free.push(segment);
            return released;
        }
        self.populated.fetch_sub(1, Ordering::Relaxed);
        self.pools.lock().released.push(segment);
        Ok(())
    }

    pub(super) fn free_segments(&self) -> usize {
        self.pools.lock().free.len()
    }

    /// Segments that hold objects or table pages.
    pub(super) fn used_segments(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// A number that changes whenever an object dies or is made.
    pub(super) fn changes(&self) -> u64 {
        self.freed_bytes.load(Ordering::Relaxed).wrapping_mul(2).wrapping_add(self.live_bytes())
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of segments in use, objects and table.
    pub(super) fn used_bytes(&self) -> u64 {
        u64::from(self.used_segments()) * SEGMENT_BYTES as u64
    }

    /// The greatest that [`Arena::used_bytes`] ever was.
    pub(super) fn max_used_bytes(&self) -> u64 {
        u64::from(self.max_used_segments.load(Ordering::Relaxed)) * SEGMENT_BYTES as u64
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        u64::from(self.limit_segments) * SEGMENT_BYTES as u64
    }

    /// Bytes of memory that are present.
    pub(super) fn populated_bytes(&self) -> u64 {
        u64::from(self.populated.load(Ordering::Relaxed)) * SEGMENT_BYTES as u64
    }

    /// Bytes of the slot table.
    pub(super) fn table_bytes(&self) -> u64 {
        u64::from(self.table_frames.load(Ordering::Relaxed)) * PAGE_LEN as u64
    }
}

/// The segment that `location` lies in.
pub(super) fn segment_of(location: Location) -> u32 {
    (location / SEGMENT_BYTES as u64) as u32
}
