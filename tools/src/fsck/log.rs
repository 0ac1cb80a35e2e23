//! The log of a volume of type `log`: what is wrong in it, and which of it can be repaired.

use super::survey::{FORMAT_AGAIN, Problem, ProblemKind, Repair};
use crate::failure::Failure;
use crate::log_survey;
use serde::Serialize;
use std::fmt;
use swapfs_format::size::human;
use swapfs_format::superblock::Superblock;
use swapfsd::backend::log::survey as log;
use swapfsd::backend::log::survey::{Remedy, SegmentState};
use swapfsd::image::Image;

/// What a log holds, in numbers.
#[derive(Debug, Serialize)]
pub struct LogReport {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// How many segments there are of each state.
    pub live_segments: u64,
    /// See [`SegmentState::Dead`].
    pub dead_segments: u64,
    /// See [`SegmentState::Free`]; what is left of other volumes is free.
    pub free_segments: u64,
    /// See [`SegmentState::Checkpoint`].
    pub checkpoint_segments: u64,
    /// See [`SegmentState::Damaged`]; misplaced ones too.
    pub damaged_segments: u64,
    /// Slots, bytes, parts.
    pub totals: log::Totals,
}

impl fmt::Display for LogReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = &self.totals;
        write!(
            f,
            "segments of {}: {} live, {} dead, {} free, {} of the checkpoint, {} damaged; {} live, \
             {} dead, {} free; slots: {} with an object, {} same-filled, {} discarded",
            human(self.segment_bytes),
            self.live_segments,
            self.dead_segments,
            self.free_segments,
            self.checkpoint_segments,
            self.damaged_segments,
            human(totals.live_bytes),
            human(totals.dead_bytes),
            human(totals.free_bytes),
            totals.object_slots,
            totals.same_filled_slots,
            totals.discarded_slots
        )
    }
}

/// Looks at the log; at all of its objects too if `thorough`.
///
/// # Errors
/// If the image can't be opened once more.
pub(super) fn check(
    image: &Image,
    superblock: &Superblock,
    thorough: bool,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<String>,
) -> Result<LogReport, Failure> {
    let found = log_survey::of(image, superblock, thorough)?;
    note(&found.totals, notes);
    let count = |states: &[SegmentState]| {
        found.segments.iter().filter(|segment| states.contains(&segment.state)).count() as u64
    };
    let report = LogReport {
        segment_bytes: found.segment_bytes,
        live_segments: count(&[SegmentState::Live]),
        dead_segments: count(&[SegmentState::Dead]),
        free_segments: count(&[SegmentState::Free, SegmentState::Foreign]),
        checkpoint_segments: count(&[SegmentState::Checkpoint]),
        damaged_segments: count(&[SegmentState::Damaged, SegmentState::Misplaced]),
        totals: found.totals,
    };
    problems.extend(found.problems.into_iter().map(problem));
    Ok(report)
}

fn note(totals: &log::Totals, notes: &mut Vec<String>) {
    let mut say = |count: u64, what: &str, why: &str| {
        if count > 0 {
            notes.push(format!("{what}: {count}: {why}"));
        }
    };
    say(
        totals.torn_segments,
        "segments that end in a part that was not written whole",
        "after a crash or a power failure that is as it should be",
    );
    say(
        totals.torn_objects,
        "objects that were not written whole, at the end of the log",
        "after a power failure that is as it should be",
    );
    say(
        totals.dead_bad_objects,
        "objects with a wrong checksum that no slot needs",
        "nothing is lost, but the device may be failing",
    );
    say(
        totals.foreign_segments,
        "segments with nothing but what is left of another or an older volume",
        "they are free",
    );
}

fn problem(found: log::Problem) -> Problem {
    let kind = match found.kind {
        log::ProblemKind::Anchor => ProblemKind::LogAnchor,
        log::ProblemKind::Outdated => ProblemKind::LogOutdated,
        log::ProblemKind::Checkpoint => ProblemKind::LogCheckpoint,
        log::ProblemKind::Summary => ProblemKind::LogSummary,
        log::ProblemKind::Misplaced => ProblemKind::LogMisplaced,
        log::ProblemKind::Sequence => ProblemKind::LogSequence,
        log::ProblemKind::Overlap => ProblemKind::LogOverlap,
        log::ProblemKind::Object => ProblemKind::LogObject,
        log::ProblemKind::Record => ProblemKind::LogRecord,
        log::ProblemKind::Unknown => ProblemKind::LogUnknown,
        log::ProblemKind::Unreadable => ProblemKind::LogUnreadable,
    };
    let action = match found.remedy {
        Remedy::None => "",
        Remedy::NewAnchor => "write a new anchor",
        Remedy::Zero => "zero the page there, so that the segment ends before it",
        Remedy::Bridge => "write an empty part there, so that those behind it count again",
    };
    let repair = found.page.map(|page| Repair {
        action,
        offset_bytes: found.remedy_offset_bytes,
        page,
        loses: found.lost_slots != Some(0),
    });
    let advice = match (&repair, kind) {
        (Some(_), _) => String::new(),
        (None, ProblemKind::LogObject) => format!(
            "reading such a slot is an error until it is written or discarded again: use swapon \
             --discard=once, or {FORMAT_AGAIN}"
        ),
        (None, ProblemKind::LogUnknown) => {
            "use the swapfs that wrote it, or a newer one".to_owned()
        }
        (None, ProblemKind::LogUnreadable) => {
            format!("see the kernel's log about the device, or {FORMAT_AGAIN}")
        }
        (None, _) => FORMAT_AGAIN.to_owned(),
    };
    Problem { kind, text: found.text, repair, advice }
}
