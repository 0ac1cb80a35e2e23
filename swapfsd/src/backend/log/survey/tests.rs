//! What a log writes is in order, whenever it stops: by itself, or by a power failure.
//! Damage is `fsck.swapfs`'s to test.

use super::super::tests::{Model, OPTIONS, Random, area, change, open};
use super::*;
use crate::backend::Backend;
use crate::sync::Mutex;
use crate::sys::file::Discarded;
use std::io;
use std::sync::Arc;

/// A device with a write cache.
#[derive(Debug)]
struct Cached(Mutex<Bytes>);

#[derive(Debug)]
struct Bytes {
    now: Vec<u8>,
    flushed: Vec<u8>,
    /// Writes until the power fails.
    writes_left: u64,
    /// What was on the device then.
    left: Option<Vec<u8>>,
}

impl Cached {
    fn new(bytes: Vec<u8>, writes_left: u64) -> Cached {
        let flushed = bytes.clone();
        Cached(Mutex::new(Bytes { now: bytes, flushed, writes_left, left: None }))
    }
}

impl Bytes {
    /// Of each page, what was flushed or what was written.
    fn fail(&self, random: &mut Random) -> Vec<u8> {
        let mut left = self.now.clone();
        for (page, old) in left.chunks_mut(PAGE_LEN).zip(self.flushed.chunks(PAGE_LEN)) {
            if random.below(2) == 0 {
                page.copy_from_slice(old);
            }
        }
        left
    }
}

fn zeros(area: &LogArea) -> Vec<u8> {
    vec![0; area.offset_of(area.segment_count, 0) as usize]
}

impl BlockDevice for Cached {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<(), i32> {
        let bytes = self.0.lock();
        buffer.copy_from_slice(&bytes.now[offset_bytes as usize..][..buffer.len()]);
        Ok(())
    }

    fn write_at(&self, buffer: &[u8], offset_bytes: u64) -> Result<(), i32> {
        let mut bytes = self.0.lock();
        bytes.now[offset_bytes as usize..][..buffer.len()].copy_from_slice(buffer);
        bytes.writes_left = bytes.writes_left.wrapping_sub(1);
        if bytes.writes_left == 0 {
            bytes.left = Some(bytes.fail(&mut Random(offset_bytes | 1)));
        }
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> Result<Discarded, i32> {
        self.0.lock().now[offset_bytes as usize..][..length_bytes as usize].fill(0xdd);
        Ok(Discarded::Yes)
    }

    fn flush(&self) -> Result<(), i32> {
        let mut bytes = self.0.lock();
        let Bytes { now, flushed, .. } = &mut *bytes;
        flushed.copy_from_slice(now);
        Ok(())
    }

    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
}

const SLOTS: u64 = 400;

fn look(device: &dyn BlockDevice, area: &LogArea) -> Survey {
    let mut steps = 0;
    let survey = survey(device, area, SLOTS, true, &mut |done, total| {
        assert!(steps <= done && done <= total);
        steps = done;
    });
    assert_eq!(survey.segments.len() as u32, area.segment_count - 1);
    let totals = &survey.totals;
    let sum = totals.live_bytes + totals.dead_bytes + totals.free_bytes;
    assert_eq!(sum, u64::from(area.segment_count - 1) * area.segment_bytes);
    survey
}

#[test]
fn a_log_that_was_stopped_in_order_is_as_the_model_says() {
    let area = area(64);
    let device = Arc::new(Cached::new(zeros(&area), 0));
    let (mut model, mut random) = (Model(vec![None; SLOTS as usize]), Random(5));
    for round in 0..6 {
        let log = open(device.clone(), area, SLOTS, &OPTIONS);
        change(&log, &mut model, &mut random, 500);
        log.close().unwrap();
        drop(log);
        let survey = look(&*device, &area);
        assert!(survey.problems.is_empty(), "round {round}: {:#?}", survey.problems);
        assert!(survey.anchors.iter().any(|one| one.counts && one.found == AnchorFound::Clean));
        let pages = model.0.iter().flatten().count() as u64;
        let totals = &survey.totals;
        assert_eq!(totals.object_slots + totals.same_filled_slots, pages, "round {round}");
        let state = |state| survey.segments.iter().filter(|one| one.state == state).count();
        assert!(state(SegmentState::Checkpoint) > 0 && state(SegmentState::Live) > 0);
    }
}

#[test]
fn a_power_failure_is_no_damage() {
    let area = area(64);
    let mut random = Random(9);
    let mut left = zeros(&area);
    let mut torn = 0;
    for round in 0..40 {
        let device = Arc::new(Cached::new(left, 3 + random.below(40)));
        let mut model = Model(vec![None; SLOTS as usize]);
        let log = open(device.clone(), area, SLOTS, &OPTIONS);
        while device.0.lock().left.is_none() {
            change(&log, &mut model, &mut random, 20);
        }
        log.close().unwrap();
        drop(log);
        let Bytes { now, left: torn_bytes, .. } = &mut *device.0.lock();
        let survey = look(&Cached::new(torn_bytes.take().unwrap(), 0), &area);
        // The next round goes on where the power did not fail.
        left = std::mem::take(now);
        assert!(survey.problems.is_empty(), "round {round}: {:#?}", survey.problems);
        torn += survey.totals.torn_segments + survey.totals.torn_objects;
    }
    assert!(torn > 10, "{torn}");
}
