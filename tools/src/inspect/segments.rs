//! The segments of a log: a map of characters, sums, and how live share goes with age.

use super::NAME_WIDTH;
use serde::Serialize;
use std::fmt;
use swapfs_format::PAGE_BYTES;
use swapfs_format::size::human;
use swapfsd::backend::log::survey::{AnchorFound, Segment, SegmentState, Survey};

/// Segments in a line of the map.
const LINE: usize = 64;
/// Steps of the age line.
const AGES: usize = 64;

/// What there is to say about a log.
#[derive(Debug, Serialize)]
pub struct LogView {
    /// The log was not stopped in order: it is mounted, or was when the machine went down. If it
    /// is mounted, the rest is of no one moment, and problems mean nothing.
    pub in_use: bool,
    /// How many written segments have a live share of up to 10 %, 20 %, and so on.
    pub live_share_histogram: [u64; 10],
    /// The mean live share of written segments, the oldest filling first, in up to 64 steps.
    pub live_share_by_age: Vec<f64>,
    /// Everything that was found.
    #[serde(flatten)]
    pub survey: Survey,
}

impl LogView {
    /// The view of a survey.
    #[must_use]
    pub fn new(survey: Survey) -> LogView {
        let mut histogram = [0; 10];
        let written = in_order_of_filling(&survey.segments);
        for segment in &written {
            let tenth = (live_share(segment, survey.segment_bytes) * 10.0) as usize;
            histogram[tenth.min(9)] += 1;
        }
        let step = written.len().div_ceil(AGES).max(1);
        let mean = |segments: &[&Segment]| {
            let sum: f64 =
                segments.iter().map(|segment| live_share(segment, survey.segment_bytes)).sum();
            sum / segments.len() as f64
        };
        let by_age = written.chunks(step).map(mean).collect();
        let counting = survey.anchors.iter().find(|anchor| anchor.counts);
        LogView {
            in_use: counting.is_some_and(|anchor| anchor.found == AnchorFound::InUse),
            live_share_histogram: histogram,
            live_share_by_age: by_age,
            survey,
        }
    }

    /// How many segments are of a state.
    #[must_use]
    pub fn count(&self, state: SegmentState) -> usize {
        self.survey.segments.iter().filter(|segment| segment.state == state).count()
    }
}

/// Segments that were written to, in the order in which they were.
pub(super) fn in_order_of_filling(segments: &[Segment]) -> Vec<&Segment> {
    let mut written: Vec<&Segment> =
        segments.iter().filter(|segment| segment.filling.is_some()).collect();
    written.sort_by_key(|segment| segment.filling);
    written
}

/// How much of a segment slots need, 0 to 1.
pub(super) fn live_share(segment: &Segment, segment_bytes: u64) -> f64 {
    segment.live_bytes as f64 / segment_bytes as f64
}

/// A segment's character in the map.
fn character(segment: &Segment, segment_bytes: u64) -> char {
    match segment.state {
        SegmentState::Free => '.',
        SegmentState::Dead => '-',
        SegmentState::Checkpoint => 'C',
        SegmentState::Damaged => 'X',
        SegmentState::Misplaced => 'M',
        SegmentState::Foreign => ',',
        SegmentState::Live => digit(live_share(segment, segment_bytes)),
    }
}

/// Tenths, as one digit.
fn digit(share: f64) -> char {
    char::from(b'0' + ((share * 10.0) as u8).min(9))
}

const LEGEND: &str = "A anchors, 0 to 9 tenths live, - dead, . free, , free with what is left of \
                      another volume, C checkpoint, X damaged, M misplaced";

impl fmt::Display for LogView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Survey { segment_bytes, totals, segments, problems, .. } = &self.survey;
        let mut row =
            |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<NAME_WIDTH$}{value}");
        let state = if self.in_use {
            "in use: mounted, or not stopped in order; if it is mounted, what follows is of no one \
             moment"
        } else {
            "stopped in order"
        };
        row("log", &state)?;
        let count = |state| self.count(state);
        row(
            "segments",
            &format_args!(
                "{} of {}: {} live, {} dead, {} free, {} of the checkpoint, {} damaged",
                segments.len() + 1,
                human(*segment_bytes),
                count(SegmentState::Live),
                count(SegmentState::Dead),
                count(SegmentState::Free) + count(SegmentState::Foreign),
                count(SegmentState::Checkpoint),
                count(SegmentState::Damaged) + count(SegmentState::Misplaced)
            ),
        )?;
        row(
            "bytes",
            &format_args!(
                "{} live, {} dead, {} free",
                human(totals.live_bytes),
                human(totals.dead_bytes),
                human(totals.free_bytes)
            ),
        )?;
        let pages = totals.object_slots * PAGE_BYTES;
        row(
            "slots",
            &format_args!(
                "{} with an object ({} as {}), {} same-filled, {} discarded",
                totals.object_slots,
                human(pages),
                human(totals.encoded_bytes),
                totals.same_filled_slots,
                totals.discarded_slots
            ),
        )?;
        if !problems.is_empty() {
            row("problems", &format_args!("{}: see fsck.swapfs -n", problems.len()))?;
        }
        for (index, count) in self.live_share_histogram.iter().enumerate() {
            let name = if index == 0 { "live share" } else { "" };
            let (from, to) = (index * 10, index * 10 + 10);
            row(name, &format_args!("{from:>3} to {to:>3} %: {count}"))?;
        }
        let ages: String = self.live_share_by_age.iter().map(|&share| digit(share)).collect();
        row("by age", &format_args!("oldest {ages} newest (tenths live)"))?;
        row("map", &LEGEND)?;
        let characters = std::iter::once('A')
            .chain(segments.iter().map(|segment| character(segment, *segment_bytes)));
        let characters: Vec<char> = characters.collect();
        for (index, line) in characters.chunks(LINE).enumerate() {
            row(
                &format!("{:>NAME_WIDTH$}", format!("{}  ", index * LINE)),
                &String::from_iter(line),
            )?;
        }
        Ok(())
    }
}
