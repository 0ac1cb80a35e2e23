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
//! Whether a segment is populated must be right whenever the process is killed, so while that
//! changes the word says just this. All else can be had again by one scan of the slot table.
//!
//! * [`reserve`]: populating and releasing.
//! * [`adopt`]: the arena of a predecessor.

mod adopt;
mod reserve;

use super::entry::{Location, MAX_ARENA_BYTES};
use super::kept::{ARENA_REGION, Kept, Layout};
use crate::crash::{self, Point};
use crate::held::Held;
use crate::sync::{Condvar, Mutex};
use crate::sys::memory::Mapping;
use adopt::Warmed;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use swapfs_format::PAGE_LEN;

/// Bytes of a segment: objects are appended to it until it is full. Small enough that what is
/// left at the end of the few open ones is nothing, large enough that taking one is rare.
pub(in crate::backend) const SEGMENT_BYTES: usize = 256 << 10;
const FRAMES_PER_SEGMENT: u32 = (SEGMENT_BYTES / PAGE_LEN) as u32;
/// Segments that only the compactor may take: it needs some to make any free.
pub(in crate::backend) const COMPACTOR_SEGMENTS: usize = 2;
/// Frames for the table that can be ready beside those of the segment that is being used up: few
/// writers race for one, and a process that is killed leaves few that it had not yet linked.
const MAX_FREE_FRAMES: usize = 4 * FRAMES_PER_SEGMENT as usize;

/// What a segment is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(in crate::backend) enum State {
    Unpopulated = 0,
    Free = 1,
    /// Someone appends to it.
    Open = 2,
    Sealed = 3,
    /// The compactor is moving what is left of it.
    Victim = 4,
    /// Pages of the slot table.
    Table = 5,
    /// Being populated or released. A kill leaves it so, and its memory in any state.
    Changing = 6,
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
            5 => State::Table,
            _ => State::Changing,
        }
    }

    /// All of its memory is there.
    fn is_populated(self) -> bool {
        !matches!(self, State::Unpopulated | State::Changing)
    }
}

/// The threads that work in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) enum Role {
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
    /// Frames for the table that are ready, and where the next come from.
    frames: Vec<u32>,
    table_segment: Option<(u32, u32)>,
    waiting: usize,
}

/// The arena.
#[derive(Debug)]
pub(in crate::backend) struct Arena {
    mapping: Mapping,
    /// State and live bytes of each segment, in memory that is there as soon as the segment is.
    kept: Arc<Kept>,
    limit_segments: u32,
    /// The slot table's segments don't count against the limit.
    table_beside: bool,
    reserve_segments: usize,
    /// So many writes wait for a segment at most: the other threads are for reads.
    max_waiting: usize,
    /// How long a write waits for a free segment before it is refused.
    patience: Duration,
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
    warmed: Warmed,
}

/// The layout of an arena for `limit_bytes` of objects and table, with `reserve_bytes` free
/// beside them: limit, reserve, and all segments that it can have.
pub(in crate::backend) fn segments_for(limit_bytes: u64, reserve_bytes: u64) -> (u32, u32, u32) {
    let segments = |bytes: u64| bytes.min(MAX_ARENA_BYTES / 2).div_ceil(SEGMENT_BYTES as u64);
    let limit = segments(limit_bytes).max(4) as u32;
    let reserve = segments(reserve_bytes).max(4) as u32;
    (limit, reserve, limit + 2 * reserve + 2 * COMPACTOR_SEGMENTS as u32)
}

/// Segments that the table of so many slots takes at most, with a word beside each entry.
pub(in crate::backend) fn table_segments_for(slot_count: u64) -> u32 {
    let leaves = slot_count.div_ceil(512);
    let frames = 2 * leaves + leaves.div_ceil(512) + 1;
    frames.div_ceil(u64::from(FRAMES_PER_SEGMENT)) as u32
}

impl Arena {
    /// The arena that `kept` lays out: nothing of it is populated, or what a predecessor has.
    ///
    /// # Errors
    /// No address space.
    pub(in crate::backend) fn new(
        held: &Held,
        kept: Arc<Kept>,
        max_waiting: usize,
        patience: Duration,
    ) -> io::Result<Arena> {
        let Layout { segment_count, limit_segments, reserve_segments, .. } = *kept.layout();
        let mapping = held.map(ARENA_REGION, segment_count as usize * SEGMENT_BYTES)?;
        // Measured: huge pages make nothing here faster that can be seen (RESULTS.md).
        drop(mapping.use_small_pages());
        let arena = Arena {
            mapping,
            kept,
            limit_segments,
            table_beside: false,
            reserve_segments: reserve_segments as usize,
            max_waiting,
            patience,
            pools: Mutex::new(Pools {
                // What is free beyond the reserve is given back, but maybe not at once.
                free: Vec::with_capacity(segment_count as usize),
                released: Vec::with_capacity(segment_count as usize),
                frames: Vec::with_capacity(MAX_FREE_FRAMES),
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
            warmed: Warmed::new(segment_count)?,
        };
        arena.touch_lists();
        Ok(arena)
    }

    /// The limit is for objects alone from now on: the table is put beside it.
    pub(in crate::backend) fn put_table_beside(&mut self) {
        self.table_beside = true;
    }

    /// Segments that may be in use.
    fn limit(&self) -> u32 {
        match self.table_beside {
            false => self.limit_segments,
            true => {
                let frames = self.table_frames.load(Ordering::Relaxed);
                // One more, which is being used up.
                self.limit_segments + frames.div_ceil(FRAMES_PER_SEGMENT) + 1
            }
        }
    }

    fn info(&self, segment: u32) -> &AtomicU32 {
        self.kept.information(segment)
    }

    /// Segments that were ever populated are below this number.
    pub(in crate::backend) fn touched_segments(&self) -> u32 {
        self.kept.untouched()
    }

    /// Can anything lie at `location`? A damaged entry may say anything.
    pub(in crate::backend) fn may_hold(&self, location: Location) -> bool {
        location / (SEGMENT_BYTES as Location) < Location::from(self.kept.untouched())
    }

    /// State and live bytes of a segment.
    pub(in crate::backend) fn segment(&self, segment: u32) -> (State, u32) {
        let info = self.info(segment).load(Ordering::Acquire);
        (State::of(info), info & LIVE_MASK)
    }

    /// The state of the segment that `location` lies in.
    pub(in crate::backend) fn state_at(&self, location: Location) -> State {
        self.segment(segment_of(location)).0
    }

    /// First byte of a range that lies in one segment.
    ///
    /// # Panics
    /// If it does not.
    pub(in crate::backend) fn at(&self, location: Location, len: usize) -> *mut u8 {
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
    pub(in crate::backend) fn is_inside(&self, location: Location, len: usize) -> bool {
        self.may_hold(location)
            && segment_of(location) == segment_of(location + len as Location - 1)
            && matches!(self.state_at(location), State::Open | State::Sealed | State::Victim)
    }

    /// Takes a segment for objects, and waits a moment if there is none. `None`: refused.
    pub(in crate::backend) fn take_for_write(&self) -> Option<u32> {
        if let Some(segment) = self.take(COMPACTOR_SEGMENTS, self.limit(), State::Open) {
            return Some(segment);
        }
        let deadline = Instant::now() + self.patience;
        loop {
            // At the limit only the compactor can help, and only if there is something to gain.
            if self.in_use.load(Ordering::Relaxed) >= self.limit()
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
            // Below the limit more memory is on its way, and it takes milliseconds: a write that is
            // refused meanwhile (seen: medium writes of all threads at once) would be worse than a
            // read that waits as long.
            let at_limit = self.in_use.load(Ordering::Relaxed) >= self.limit();
            if at_limit && pools.waiting >= self.max_waiting {
                return None;
            }
            pools.waiting += 1;
            pools = self.freed.wait_timeout(pools, Duration::from_millis(5));
            pools.waiting -= 1;
            drop(pools);
            if let Some(segment) = self.take(COMPACTOR_SEGMENTS, self.limit(), State::Open) {
                return Some(segment);
            }
        }
    }

    /// Takes a segment to move objects to, at once or not at all. `set_aside` of them may be of
    /// those that only the compactor may take, beyond the limit too.
    pub(in crate::backend) fn take_for_move(&self, set_aside: usize) -> Option<u32> {
        if set_aside > 0 {
            self.take(0, self.limit() + COMPACTOR_SEGMENTS as u32, State::Open)
        } else {
            self.take(self.reserve_segments / 2, self.limit(), State::Open)
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
        crash::pass(Point::ZmemSegmentTaken);
        if left <= self.reserve_segments / 4 * 3 {
            self.wake();
        }
        Some(segment)
    }

    /// `len` bytes of an open segment are a live object from now on.
    pub(in crate::backend) fn add_live(&self, segment: u32, len: u32) {
        self.info(segment).fetch_add(len, Ordering::AcqRel);
        self.live_bytes.fetch_add(u64::from(len), Ordering::Relaxed);
    }

    /// The object of `len` bytes at `location` is dead; nobody can be reading it any more.
    pub(in crate::backend) fn sub_live(&self, location: Location, len: u32) {
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
    pub(in crate::backend) fn seal(&self, segment: u32) {
        let step = State::Sealed.bits() - State::Open.bits();
        let before = self.info(segment).fetch_add(step, Ordering::AcqRel);
        debug_assert_eq!(State::of(before), State::Open);
        if before & LIVE_MASK == 0 {
            self.free_if_empty(segment, State::Sealed);
        }
    }

    /// Makes a sealed segment a victim of the compactor.
    pub(in crate::backend) fn make_victim(&self, segment: u32) -> bool {
        let change = |info| {
            (State::of(info) == State::Sealed).then_some(info & LIVE_MASK | State::Victim.bits())
        };
        self.info(segment).fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
    }

    /// The compactor is done with the segment: free if nothing lives in it, else sealed again.
    pub(in crate::backend) fn end_victim(&self, segment: u32) -> bool {
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
            && self.in_use.load(Ordering::Relaxed) < self.limit();
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
    pub(in crate::backend) fn take_frame(&self) -> Option<u32> {
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
        crash::pass(Point::ZmemTablePage);
        Some(frame)
    }

    /// Takes a frame back that was never linked.
    pub(in crate::backend) fn give_frame_back(&self, frame: u32) {
        self.table_frames.fetch_sub(1, Ordering::Relaxed);
        let mut pools = self.pools.lock();
        // One thread gives one back at a time, so there is room; if not, one frame is lost.
        if pools.frames.len() < MAX_FREE_FRAMES {
            pools.frames.push(frame);
        }
    }

    /// The 512 words of a table page.
    pub(in crate::backend) fn frame_words(&self, frame: u32) -> &[AtomicU64] {
        let start = self.at(u64::from(frame) * PAGE_LEN as u64, PAGE_LEN);
        // SAFETY: inside the mapping, page-aligned, populated, and as a table page accessed
        // through these atomics only.
        unsafe { std::slice::from_raw_parts(start.cast(), PAGE_LEN / 8) }
    }

    /// Tells the threads of the background that there is work.
    pub(in crate::backend) fn wake(&self) {
        let mut wanted = self.wanted.lock();
        if *wanted != [true; 2] {
            *wanted = [true; 2];
            self.wake.notify_all();
        }
    }

    /// Waits until there is work for the thread of that role, or for `at_most`.
    pub(in crate::backend) fn wait_for_work(&self, role: Role, at_most: Duration) {
        let mut wanted = self.wanted.lock();
        if !wanted[role as usize] {
            wanted = self.wake.wait_timeout(wanted, at_most);
        }
        wanted[role as usize] = false;
    }

    /// Did a write find no segment since this was last asked?
    pub(in crate::backend) fn take_urgent(&self) -> bool {
        self.urgent.swap(false, Ordering::AcqRel)
    }

    /// The compactor has found nothing to gain: writes at the limit need not wait for it until as
    /// much has died as makes a segment.
    pub(in crate::backend) fn say_no_gain(&self) {
        let freed_bytes = self.freed_bytes.load(Ordering::Relaxed);
        self.no_gain_until.store(freed_bytes + SEGMENT_BYTES as u64, Ordering::Relaxed);
    }

    /// There may be something to gain again.
    pub(in crate::backend) fn forget_no_gain(&self) {
        self.no_gain_until.store(0, Ordering::Relaxed);
    }

    /// Can [`Arena::take_for_move`] take one beyond those that are set aside?
    pub(in crate::backend) fn has_room_to_spare(&self) -> bool {
        self.in_use.load(Ordering::Relaxed) + 1 < self.limit()
            && self.free_segments() > self.reserve_segments / 2 + 1
    }

    pub(in crate::backend) fn free_segments(&self) -> usize {
        self.pools.lock().free.len()
    }

    /// Segments that hold objects or table pages.
    pub(in crate::backend) fn used_segments(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// A number that changes whenever an object dies or is made.
    pub(in crate::backend) fn changes(&self) -> u64 {
        self.freed_bytes.load(Ordering::Relaxed).wrapping_mul(2).wrapping_add(self.live_bytes())
    }

    pub(in crate::backend) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of segments in use, objects and table.
    pub(in crate::backend) fn used_bytes(&self) -> u64 {
        u64::from(self.used_segments()) * SEGMENT_BYTES as u64
    }

    /// The greatest that [`Arena::used_bytes`] ever was.
    pub(in crate::backend) fn max_used_bytes(&self) -> u64 {
        u64::from(self.max_used_segments.load(Ordering::Relaxed)) * SEGMENT_BYTES as u64
    }

    pub(in crate::backend) fn limit_bytes(&self) -> u64 {
        u64::from(self.limit_segments) * SEGMENT_BYTES as u64
    }

    /// Bytes of memory that are present.
    pub(in crate::backend) fn populated_bytes(&self) -> u64 {
        u64::from(self.populated.load(Ordering::Relaxed)) * SEGMENT_BYTES as u64
    }

    /// Bytes of the slot table.
    pub(in crate::backend) fn table_bytes(&self) -> u64 {
        u64::from(self.table_frames.load(Ordering::Relaxed)) * PAGE_LEN as u64
    }
}

/// The segment that `location` lies in.
pub(in crate::backend) fn segment_of(location: Location) -> u32 {
    (location / SEGMENT_BYTES as u64) as u32
}
