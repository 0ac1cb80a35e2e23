//! The arena of a predecessor: mapped while that one is still serving, taken over when it is dead.

use super::super::entry::{HEADER_BYTES, Location, Object};
use super::{
    Arena, FRAMES_PER_SEGMENT, LIVE_MASK, MAX_FREE_FRAMES, SEGMENT_BYTES, State, segment_of,
};
use crate::sys::memory::Mapping;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use swapfs_format::PAGE_LEN;

/// Segments that all the looking of one standby may fill by mistake.
const MAX_FILLED: u32 = 16;
/// Entries of the lists of segments that are in place before they are needed.
const LISTS_AHEAD: usize = PAGE_LEN / size_of::<u32>();

/// Which of a predecessor's segments this process has in its page tables.
#[derive(Debug)]
pub(in crate::backend) struct Warmed {
    /// By segment: its generation when it was mapped; 0: never.
    generations: Mapping,
    /// Segments from here on were not looked at, and their part of `generations` not touched.
    end: AtomicU32,
    /// Segments that were released while they were being mapped.
    filled: AtomicU32,
}

impl Warmed {
    pub(super) fn new(segment_count: u32) -> io::Result<Warmed> {
        let bytes = (segment_count as usize * 4).next_multiple_of(PAGE_LEN);
        let generations = Mapping::new(bytes, false)?;
        Ok(Warmed { generations, end: AtomicU32::new(0), filled: AtomicU32::new(0) })
    }

    fn generation(&self, segment: u32) -> &AtomicU32 {
        assert!((segment as usize + 1) * 4 <= self.generations.len());
        // SAFETY: inside the mapping, as just checked.
        let word = unsafe { self.generations.as_ptr().cast::<AtomicU32>().add(segment as usize) };
        // SAFETY: aligned, zeroed at the start, only ever accessed through these atomics.
        unsafe { &*word }
    }
}

/// The segments that were ever populated, while an arena is adopted. Nothing else runs, so that
/// no step has to be atomic.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct LiveCounts<'a>(&'a [AtomicU32]);

impl LiveCounts<'_> {
    /// Of the segment that `location` lies in, `size` bytes from there on are alive.
    pub(in crate::backend) fn add(&self, location: Location, size: u32) {
        let end = location + Location::from(size) - 1;
        let segment = segment_of(location);
        let Some(info) = self.0.get(segment as usize) else { return };
        let before = info.load(Ordering::Relaxed);
        // Damaged entries may say anything.
        if segment_of(end) == segment
            && State::of(before) == State::Sealed
            && (before & LIVE_MASK) + size <= LIVE_MASK
        {
            info.store(before + size, Ordering::Relaxed);
        }
    }
}

impl Arena {
    /// Touches what the lists of segments will need of their memory: for as many segments as
    /// were ever populated, and some more. They are appended to by writes and discards.
    pub(super) fn touch_lists(&self) {
        let needed = self.kept.untouched() as usize + LISTS_AHEAD;
        let mut pools = self.pools.lock();
        let pools = &mut *pools;
        for list in [&mut pools.free, &mut pools.released] {
            let end = needed.saturating_sub(list.len());
            for place in list.spare_capacity_mut().iter_mut().take(end).step_by(LISTS_AHEAD) {
                place.write(0);
            }
        }
        for place in pools.frames.spare_capacity_mut() {
            place.write(0);
        }
    }

    /// Maps what the predecessor has populated since this was last called.
    ///
    /// Mapping a hole would fill it, and the predecessor may release a segment between our look
    /// at its state and the mapping. Then memory is taken that nobody counts. Such a segment is
    /// known by its state or generation having changed when it is mapped; it can't be released
    /// from here, since the predecessor may be populating it again by now. So this is rare (a
    /// segment must be populated and released within two calls), it is bounded (after
    /// `MAX_FILLED` of them nothing more is mapped), and it ends: the predecessor populates the
    /// segment that it has released last before all others, and whoever is activated releases
    /// every unpopulated segment once more ([`Arena::release_holes`]).
    pub(in crate::backend) fn warm(&self) {
        if self.kept.map_present().is_err() {
            return;
        }
        self.touch_lists();
        let untouched = self.kept.untouched();
        for segment in 0..untouched {
            if self.warmed.filled.load(Ordering::Relaxed) >= MAX_FILLED {
                break;
            }
            let generation = self.kept.generation(segment).load(Ordering::Acquire);
            let mapped = self.warmed.generation(segment);
            if !self.segment(segment).0.is_populated()
                || mapped.load(Ordering::Relaxed) == generation
            {
                continue;
            }
            let offset = segment as usize * SEGMENT_BYTES;
            let done = self.mapping.map_present(offset, SEGMENT_BYTES).is_ok();
            let unchanged = self.segment(segment).0.is_populated()
                && self.kept.generation(segment).load(Ordering::Acquire) == generation;
            if !unchanged {
                self.warmed.filled.fetch_add(1, Ordering::Relaxed);
            } else if done {
                mapped.store(generation, Ordering::Relaxed);
            }
        }
        self.warmed.end.fetch_max(untouched, Ordering::Relaxed);
    }

    /// The predecessor is dead: maps what [`Arena::warm`] has not, and makes all that is not
    /// memory empty. [`Arena::adopt_frame`] and [`LiveCounts::add`] put into it what the
    /// table says, and [`Arena::end_adoption`] makes the lists.
    pub(in crate::backend) fn begin_adoption(&self) -> io::Result<()> {
        self.kept.map_present()?;
        let warmed_end = self.warmed.end.load(Ordering::Relaxed);
        // Neighbours are mapped by one call.
        let mut unmapped = None;
        let map = |first: u32, end: u32| {
            let segments = (end - first) as usize;
            self.mapping.map_present(first as usize * SEGMENT_BYTES, segments * SEGMENT_BYTES)
        };
        for segment in 0..self.kept.untouched() {
            let (state, _) = self.segment(segment);
            let generation = self.kept.generation(segment).load(Ordering::Relaxed);
            let mapped = segment < warmed_end
                && self.warmed.generation(segment).load(Ordering::Relaxed) == generation;
            if state.is_populated() && !mapped {
                unmapped.get_or_insert(segment);
            } else if let Some(first) = unmapped.take() {
                map(first, segment)?;
            }
            match state {
                State::Unpopulated => {}
                State::Changing => {
                    // If this fails it is done again later, with all unpopulated ones.
                    drop(self.release_range(segment, segment + 1));
                    self.info(segment).store(State::Unpopulated.bits(), Ordering::Relaxed);
                }
                _ => self.info(segment).store(State::Sealed.bits(), Ordering::Relaxed),
            }
            self.kept.linked(segment).store(0, Ordering::Relaxed);
        }
        if let Some(first) = unmapped {
            map(first, self.kept.untouched())?;
        }
        Ok(())
    }

    /// A frame that the table uses. False: there can be none.
    pub(in crate::backend) fn adopt_frame(&self, frame: u32) -> bool {
        let segment = frame / FRAMES_PER_SEGMENT;
        let populated = segment < self.kept.untouched() && self.segment(segment).0.is_populated();
        if populated {
            let bits = State::Table.bits() | SEGMENT_BYTES as u32;
            self.info(segment).store(bits, Ordering::Relaxed);
            let linked = self.kept.linked(segment);
            let bit = 1 << (frame % FRAMES_PER_SEGMENT);
            linked.store(linked.load(Ordering::Relaxed) | bit, Ordering::Relaxed);
        }
        populated
    }

    /// While the arena is adopted: may the segment hold objects?
    pub(in crate::backend) fn may_be_objects(&self, segment: u32) -> bool {
        self.segment(segment).0 == State::Sealed
    }

    /// While the arena is adopted: nothing that lives in the segment is needed.
    pub(in crate::backend) fn forget_live(&self, segment: u32) {
        self.info(segment).store(State::Sealed.bits(), Ordering::Relaxed);
    }

    /// Where live objects are counted, by segment.
    pub(in crate::backend) fn live_counts(&self) -> LiveCounts<'_> {
        LiveCounts(self.kept.all_information())
    }

    /// The checksum in front of an object, if there can be one.
    pub(in crate::backend) fn adopted_checksum(&self, object: &Object) -> Option<u32> {
        if !self.is_inside(object.location, HEADER_BYTES + object.len) {
            return None;
        }
        let start = self.at(object.location, HEADER_BYTES);
        // SAFETY: populated memory that nobody writes to while the arena is adopted.
        Some(u32::from_le_bytes(unsafe { start.cast::<[u8; HEADER_BYTES]>().read() }))
    }

    /// Makes the lists and the sums of what was adopted.
    pub(in crate::backend) fn end_adoption(&self) {
        let mut pools = self.pools.lock();
        let pools = &mut *pools;
        pools.free.clear();
        pools.released.clear();
        pools.frames.clear();
        pools.table_segment = None;
        let (mut in_use, mut populated, mut frames, mut live_bytes) = (0, 0, 0, 0);
        // The lists are taken from at their ends: lower segments first.
        for segment in (0..self.kept.untouched()).rev() {
            let (state, live) = self.segment(segment);
            if state == State::Unpopulated {
                pools.released.push(segment);
                continue;
            }
            populated += 1;
            if state == State::Table {
                let linked = self.kept.linked(segment).load(Ordering::Relaxed);
                in_use += 1;
                frames += linked.count_ones();
                for frame in (0..FRAMES_PER_SEGMENT).filter(|frame| linked >> frame & 1 == 0) {
                    if pools.frames.len() < MAX_FREE_FRAMES {
                        pools.frames.push(segment * FRAMES_PER_SEGMENT + frame);
                    }
                }
            } else if live > 0 {
                in_use += 1;
                live_bytes += u64::from(live);
            } else {
                self.info(segment).store(State::Free.bits(), Ordering::Relaxed);
                pools.free.push(segment);
            }
        }
        let set = |number: &AtomicU32, value: u32| number.store(value, Ordering::Relaxed);
        set(&self.in_use, in_use);
        set(&self.populated, populated);
        set(&self.table_frames, frames);
        self.max_used_segments.fetch_max(in_use, Ordering::Relaxed);
        let live: &AtomicU64 = &self.live_bytes;
        live.store(live_bytes, Ordering::Relaxed);
    }
}
