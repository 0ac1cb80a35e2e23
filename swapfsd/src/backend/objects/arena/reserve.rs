//! Populating segments before they are needed, and giving them back. All of it is done by one
//! thread, which may wait for memory.

use super::{Arena, Role, SEGMENT_BYTES, State};
use crate::crash::{self, Point};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Unpopulated segments that are released again between two looks at the reserve.
const HOLES_AT_A_TIME: u32 = 1024;

impl Arena {
    /// Populates or releases until the reserve is what it shall be: exactly if the volume is
    /// `idle`, else with some surplus, so that segments do not go back and forth. May wait for
    /// memory: it is in nobody's way. Only one thread may be in here.
    pub(in crate::backend) fn keep_reserve(&self, stop: &AtomicBool, idle: bool) -> io::Result<()> {
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

    /// Keeps the reserve, until `stop`: what the thread of [`Role::Reserve`] does. `more` is done
    /// with it each time. A predecessor's arena has its holes released once.
    pub(in crate::backend) fn run_reserve(
        &self,
        stop: &AtomicBool,
        look: Duration,
        mut more: impl FnMut() -> io::Result<()>,
    ) {
        let mut said = false;
        let mut changes_before = 0;
        let mut holes = self.kept.is_adopted();
        while !stop.load(Ordering::Relaxed) {
            let changes = self.changes();
            let idle = changes == changes_before;
            changes_before = changes;
            let kept = self.keep_reserve(stop, idle).and_then(|()| more());
            let kept = match holes {
                true => kept.and_then(|()| self.release_holes(stop)),
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
            self.wait_for_work(Role::Reserve, look);
        }
    }

    /// Populates the reserve of an arena that nobody uses yet.
    ///
    /// # Errors
    /// No memory.
    pub(in crate::backend) fn fill_reserve(&self) -> io::Result<()> {
        while self.free_segments() < self.reserve_segments && self.populate_one()? {}
        Ok(())
    }

    /// Makes one more segment free; false if there is none.
    fn populate_one(&self) -> io::Result<bool> {
        let released = self.pools.lock().released.pop();
        let segment = match released {
            Some(segment) => segment,
            None if self.kept.untouched() < self.kept.layout().segment_count => {
                // Also puts the pages of its information in place, and of our lists.
                let segment = self.kept.touch_next();
                self.touch_lists();
                segment
            }
            None => return Ok(false),
        };
        // From here to the end a kill leaves a segment that is released again.
        self.info(segment).store(State::Changing.bits(), Ordering::Release);
        crash::pass(Point::ZmemSegmentChanging);
        // Whoever had it mapped before its release has to map it again.
        self.kept.generation(segment).fetch_add(1, Ordering::AcqRel);
        let offset = segment as usize * SEGMENT_BYTES;
        if let Err(error) = self.mapping.populate_range(offset, SEGMENT_BYTES) {
            // What there was of it was not enough.
            drop(self.mapping.release(offset, SEGMENT_BYTES));
            self.info(segment).store(State::Unpopulated.bits(), Ordering::Release);
            self.pools.lock().released.push(segment);
            return Err(error);
        }
        crash::pass(Point::ZmemSegmentChanged);
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
        self.info(segment).store(State::Changing.bits(), Ordering::Release);
        crash::pass(Point::ZmemSegmentChanging);
        let released = self.mapping.release(segment as usize * SEGMENT_BYTES, SEGMENT_BYTES);
        if released.is_err() {
            self.info(segment).store(State::Free.bits(), Ordering::Release);
            self.pools.lock().free.push(segment);
            return released;
        }
        crash::pass(Point::ZmemSegmentChanged);
        self.info(segment).store(State::Unpopulated.bits(), Ordering::Release);
        self.populated.fetch_sub(1, Ordering::Relaxed);
        self.pools.lock().released.push(segment);
        Ok(())
    }

    /// Releases every unpopulated segment of a predecessor's arena once more. Someone who waited
    /// to take over may have filled one by looking at it ([`Arena::warm`]). On the reserve's
    /// thread, after the reserve is there: it frees memory, and nobody waits for that.
    ///
    /// # Errors
    /// What fallocate(2) answers.
    pub(in crate::backend) fn release_holes(&self, stop: &AtomicBool) -> io::Result<()> {
        let untouched = self.kept.untouched();
        for chunk in (0..untouched).step_by(HOLES_AT_A_TIME as usize) {
            let mut hole = None;
            for segment in chunk..untouched.min(chunk + HOLES_AT_A_TIME) {
                if self.segment(segment).0 == State::Unpopulated {
                    hole.get_or_insert(segment);
                } else if let Some(first) = hole.take() {
                    self.release_range(first, segment)?;
                }
            }
            if let Some(first) = hole {
                self.release_range(first, untouched.min(chunk + HOLES_AT_A_TIME))?;
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.keep_reserve(stop, false)?;
        }
        Ok(())
    }

    pub(super) fn release_range(&self, first: u32, end: u32) -> io::Result<()> {
        let segments = (end - first) as usize;
        self.mapping.release(first as usize * SEGMENT_BYTES, segments * SEGMENT_BYTES)
    }
}
