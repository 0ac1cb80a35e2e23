//! Everything on a log's device, looked at once: each segment, the newest record of each slot, and
//! what is wrong. Only reads.
//!
//! What `fsck.swapfs` and `swapfs inspect` have in common. The steps:
//!
//! 1. Every segment's parts are walked, and the newest record of each slot is kept ([`slots`]).
//!    Parts that may not have been durable count only as far as their objects are right.
//! 2. They are walked again, now that it is known which records count: live and dead bytes, and
//!    the checksums of objects.
//! 3. Anchors and the checkpoint of a clean stop are held against what was found ([`anchors`]).
//! 4. Where the parts of a segment end for a reason, that reason is judged ([`breaks`]): a part
//!    that a power failure tore is no damage, a part that was whole once is.

mod anchors;
mod breaks;
mod slots;
mod weight;

pub use anchors::{AnchorFound, AnchorSeen};

use super::super::device::BlockDevice;
use super::scan::{self, Ending, LogArea, for_each_part, read_part};
use serde::Serialize;
use slots::{Location, Slots};
use std::collections::HashSet;
use swapfs_format::log::{self, MAX_PART_BYTES, PartError, PartHeader, PartKind};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};
use weight::Weight;

/// What a segment is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SegmentState {
    /// Slots need something of it.
    Live,
    /// It was filled, and no slot needs anything of it any more.
    Dead,
    /// Nothing was written to it.
    Free,
    /// It holds the checkpoint of a clean stop.
    Checkpoint,
    /// A part of it can't be read, and was once whole.
    Damaged,
    /// It holds what belongs into another segment.
    Misplaced,
    /// It holds what is left of another volume; as good as free.
    Foreign,
}

/// A segment.
#[derive(Debug, Clone, Serialize)]
pub struct Segment {
    /// Its number, from 1.
    pub number: u32,
    /// What it is good for.
    pub state: SegmentState,
    /// Bytes of objects that slots need, their checksums included.
    pub live_bytes: u64,
    /// The rest of what was written to it.
    pub dead_bytes: u64,
    /// Parts of its last filling.
    pub parts: u32,
    /// The number of that filling.
    pub filling: Option<u64>,
    /// The sequence of its last part.
    pub newest_sequence: Option<u64>,
    /// What stands behind the last part.
    pub ending: String,
}

impl Segment {
    /// Bytes that were written to it.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.live_bytes + self.dead_bytes
    }
}

/// Sums over all segments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Slots that have an object.
    pub object_slots: u64,
    /// Slots whose page is one word over and over.
    pub same_filled_slots: u64,
    /// Slots of which the log says that they hold nothing.
    pub discarded_slots: u64,
    /// Encoded bytes of all slots' objects.
    pub encoded_bytes: u64,
    /// See [`Segment::live_bytes`].
    pub live_bytes: u64,
    /// See [`Segment::dead_bytes`].
    pub dead_bytes: u64,
    /// Bytes that nothing was written to.
    pub free_bytes: u64,
    /// Parts.
    pub parts: u64,
    /// Segments that end in a part that was not written whole. A power failure does that.
    pub torn_segments: u64,
    /// Segments with nothing but what is left of other volumes.
    pub foreign_segments: u64,
    /// Bad objects in parts that were not known to be durable: they do not count.
    pub torn_objects: u64,
    /// Bad objects that no slot needs.
    pub dead_bad_objects: u64,
}

/// What kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// An anchor is damaged, or says what can't be.
    Anchor,
    /// The anchor speaks of a clean stop, and the log has gone on since.
    Outdated,
    /// The checkpoint of a clean stop is not what the anchor or the parts say.
    Checkpoint,
    /// Header or records of a part are damaged.
    Summary,
    /// A part that belongs elsewhere.
    Misplaced,
    /// Sequences that do not grow, or that are there twice.
    Sequence,
    /// Objects that lie over each other.
    Overlap,
    /// An object that a slot needs has a wrong checksum.
    Object,
    /// A record that says what no record can say of this volume.
    Record,
    /// A part of a version or kind that this program does not know.
    Unknown,
    /// A segment can't be read.
    Unreadable,
}

/// What ends a problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// Nothing that a program could write.
    None,
    /// Writing a new anchor.
    NewAnchor,
    /// Zeros in the page there: the segment then ends before it.
    Zero,
    /// A part without records instead of the damaged one: what stands behind it counts again.
    Bridge,
}

/// Something wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// Its kind.
    pub kind: ProblemKind,
    /// The segment that it is in.
    pub segment: Option<u32>,
    /// Where in the segment.
    pub offset_bytes: Option<u32>,
    /// The slot, or the first one of several.
    pub slot: Option<u32>,
    /// What and why.
    pub text: String,
    /// What ends it.
    pub remedy: Remedy,
    /// How many slots lose their newest version with that; `None`: that can't be told.
    pub lost_slots: Option<u64>,
    /// Where in the image the remedy goes.
    #[serde(skip)]
    pub remedy_offset_bytes: u64,
    /// What goes there.
    #[serde(skip)]
    pub page: Option<Box<[u8; PAGE_LEN]>>,
}

/// Everything that a look at a log shows.
#[derive(Debug, Serialize)]
pub struct Survey {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// The two anchors.
    pub anchors: [AnchorSeen; 2],
    /// Parts up to this number were durable.
    pub durable_sequence: u64,
    /// The greatest sequence of a part.
    pub newest_sequence: u64,
    /// The greatest sequence of a record.
    pub newest_write_sequence: u64,
    /// Sums.
    pub totals: Totals,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// All segments but the first one, which has the anchors.
    pub segments: Vec<Segment>,
}

/// A buffer for whole parts, page-aligned for direct I/O.
struct PartBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl PartBuffer {
    fn new() -> PartBuffer {
        let bytes = vec![0; MAX_PART_BYTES + PAGE_LEN];
        let start = bytes.as_ptr().align_offset(PAGE_LEN);
        PartBuffer { bytes, start }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..MAX_PART_BYTES]
    }
}

/// What is kept of a part.
#[derive(Debug, Clone, Copy)]
struct Part {
    sequence: u64,
    segment: u32,
    offset_bytes: u32,
    part_bytes: u32,
    kind: PartKind,
}

/// Where and why the parts of a segment end before its end.
#[derive(Debug, Clone, Copy)]
struct Break {
    segment: u32,
    offset_bytes: u32,
    why: Ending,
    /// The part before it.
    last: Option<PartHeader>,
}

struct Work<'a> {
    device: &'a dyn BlockDevice,
    area: LogArea,
    slot_count: u64,
    check_payload: bool,
    slots: Slots,
    /// By segment and offset.
    parts: Vec<Part>,
    /// Their sequences.
    sequences: HashSet<u64>,
    deferred: Vec<PartHeader>,
    breaks: Vec<Break>,
    /// [`Work::mount_sequence`].
    mount_sequence: u64,
    /// Older parts up to this number were durable before that mount.
    durable_before: u64,
    /// There was a clean stop, and its checkpoint and the parts bear each other out.
    checkpoint_has_all: bool,
    survey: Survey,
    buffer: PartBuffer,
    whole: PartBuffer,
}

/// Looks at a log; at the objects' checksums too if `check_payload`, for which everything that was
/// written has to be read. `progress` is told how many of how many steps are done.
///
/// The log may be in use meanwhile: then the answer is that of no one moment, and problems in it
/// mean nothing.
pub fn survey(
    device: &dyn BlockDevice,
    area: &LogArea,
    slot_count: u64,
    check_payload: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Survey {
    let mut buffer = PartBuffer::new();
    let anchors = anchors::read(device, area, buffer.get());
    let mut work = Work {
        device,
        area: *area,
        slot_count,
        check_payload,
        slots: Slots::new(slot_count),
        parts: Vec::new(),
        sequences: HashSet::new(),
        deferred: Vec::new(),
        breaks: Vec::new(),
        mount_sequence: 0,
        durable_before: 0,
        checkpoint_has_all: false,
        survey: Survey {
            segment_bytes: area.segment_bytes,
            anchors,
            durable_sequence: 0,
            newest_sequence: 0,
            newest_write_sequence: 0,
            totals: Totals::default(),
            problems: Vec::new(),
            segments: Vec::with_capacity(area.segment_count as usize),
        },
        buffer,
        whole: PartBuffer::new(),
    };
    work.mount_sequence = work.mount_sequence();
    let count = u64::from(area.segments().end - area.segments().start);
    for (done, segment) in (0..).zip(area.segments()) {
        progress(done, 2 * count);
        work.walk(segment);
    }
    work.settle();
    for (done, segment) in (count..).zip(area.segments()) {
        progress(done, 2 * count);
        work.weigh(segment);
    }
    work.judge_sequences();
    work.judge_anchors();
    work.judge_breaks();
    progress(2 * count, 2 * count);
    work.sum_up();
    work.survey
}

impl Work<'_> {
    /// Reads a segment's parts, and takes in what their records say.
    fn walk(&mut self, segment: u32) {
        let (parts, slots, survey) = (&mut self.parts, &mut self.slots, &mut self.survey);
        let (deferred, sequences) = (&mut self.deferred, &mut self.sequences);
        let (mount_sequence, durable_before) = (self.mount_sequence, &mut self.durable_before);
        let mut last: Option<PartHeader> = None;
        let end =
            for_each_part(self.device, &self.area, segment, self.buffer.get(), |header, bytes| {
                parts.push(Part {
                    sequence: header.sequence,
                    segment,
                    offset_bytes: header.offset_bytes,
                    part_bytes: header.part_bytes,
                    kind: header.kind,
                });
                if !sequences.insert(header.sequence) {
                    survey.problems.push(Problem {
                        segment: Some(segment),
                        offset_bytes: Some(header.offset_bytes),
                        ..Problem::new(
                            ProblemKind::Sequence,
                            format!("segment {segment}: a second part {}", header.sequence),
                        )
                    });
                }
                survey.newest_sequence = survey.newest_sequence.max(header.sequence);
                survey.durable_sequence = survey.durable_sequence.max(header.durable_sequence);
                if header.sequence < mount_sequence {
                    *durable_before = header.durable_sequence.max(*durable_before);
                }
                last = Some(*header);
                if header.kind != PartKind::Data {
                } else if header.sequence <= survey.durable_sequence {
                    take_in(slots, parts, survey, &self.area, header, bytes);
                } else {
                    deferred.push(*header);
                }
            });
        let (found, ending) = match end {
            Ok(end) => {
                if end.why != Ending::Full {
                    let offset_bytes = end.end_bytes;
                    self.breaks.push(Break { segment, offset_bytes, why: end.why, last });
                }
                (end.parts, ending_text(end.why))
            }
            Err(errno) => {
                let why = std::io::Error::from_raw_os_error(errno);
                let text = format!("segment {segment} can't be read: {why}");
                self.survey.problems.push(Problem {
                    segment: Some(segment),
                    ..Problem::new(ProblemKind::Unreadable, text.clone())
                });
                (0, text)
            }
        };
        self.survey.segments.push(Segment {
            number: segment,
            state: match (end, found) {
                (Err(_), _) => SegmentState::Damaged,
                (Ok(_), 0) => SegmentState::Free,
                (Ok(_), _) => SegmentState::Dead,
            },
            live_bytes: 0,
            dead_bytes: last.map_or(0, |last| u64::from(last.offset_bytes + last.part_bytes)),
            parts: found,
            filling: last.map(|last| last.filling),
            newest_sequence: last.map(|last| last.sequence),
            ending,
        });
    }

    /// Takes in the parts of which it was not known yet whether they were durable.
    fn settle(&mut self) {
        self.survey.newest_write_sequence = self.slots.newest_sequence();
        if self.clean_anchor().is_some_and(|anchor| !self.is_outdated(anchor)) {
            self.survey.durable_sequence = u64::MAX;
        }
        for header in std::mem::take(&mut self.deferred) {
            let (slots, parts, survey) = (&mut self.slots, &self.parts, &mut self.survey);
            if header.sequence <= survey.durable_sequence {
                let len = header.summary_bytes().next_multiple_of(PAGE_LEN);
                let bytes = &mut self.buffer.get()[..len];
                let place = self.area.offset_of(header.segment, u64::from(header.offset_bytes));
                if self.device.read_at(bytes, place).is_ok() {
                    take_in(slots, parts, survey, &self.area, &header, bytes);
                }
                continue;
            }
            let buffer = self.buffer.get();
            let Ok(bytes) = read_part(self.device, &self.area, &header, buffer) else { continue };
            let mut torn = 0;
            scan::for_each_checked(bytes, &header, |_, _, right| torn += u64::from(!right));
            survey.totals.torn_objects += torn;
            if torn > 0 {
                // A mount believes all of a part or nothing.
                continue;
            }
            scan::for_each_checked(bytes, &header, |_, record, _| {
                slots.take_in(record, &Location::of(record, &header, &self.area), |place| {
                    part_at_place(parts, &self.area, place) < header.sequence
                });
            });
        }
        let survey = &mut self.survey;
        survey.newest_write_sequence =
            survey.newest_write_sequence.max(self.slots.newest_sequence());
    }

    /// Counts what is needed of a segment, and looks at its objects.
    fn weigh(&mut self, segment: u32) {
        let Work { device, area, slots, survey, whole, .. } = self;
        let mut weight = Weight::default();
        let result = for_each_part(*device, area, segment, self.buffer.get(), |header, bytes| {
            if header.kind != PartKind::Data {
                return;
            }
            let part = if self.check_payload {
                read_part(*device, area, header, whole.get()).ok()
            } else {
                None
            };
            weight.add_part(slots, area, header, bytes, part, survey);
        });
        // It could be read before: who can't now has said so, or has a disk that is failing.
        let _: Result<_, i32> = result;
        weight.report(segment, survey);
        let index = survey.segments.len().min((segment - area.segments().start) as usize);
        if let Some(found) = survey.segments.get_mut(index) {
            found.live_bytes = weight.live_bytes.min(found.dead_bytes);
            found.dead_bytes -= found.live_bytes;
            if weight.live_records > 0 && found.state == SegmentState::Dead {
                found.state = SegmentState::Live;
            }
        }
    }

    /// Parts follow each other in one segment with growing numbers.
    fn judge_sequences(&mut self) {
        for pair in self.parts.windows(2) {
            let (before, part) = (pair[0], pair[1]);
            if before.segment == part.segment && part.sequence <= before.sequence {
                let text = format!(
                    "segment {}: part {} stands behind part {}",
                    part.segment, part.sequence, before.sequence
                );
                self.survey.problems.push(Problem {
                    segment: Some(part.segment),
                    offset_bytes: Some(part.offset_bytes),
                    ..Problem::new(ProblemKind::Sequence, text)
                });
            }
        }
    }

    fn segment_mut(&mut self, segment: u32) -> Option<&mut Segment> {
        self.survey.segments.get_mut((segment - self.area.segments().start) as usize)
    }

    fn sum_up(&mut self) {
        let survey = &mut self.survey;
        let totals = &mut survey.totals;
        for segment in &survey.segments {
            totals.live_bytes += segment.live_bytes;
            totals.dead_bytes += segment.dead_bytes;
            totals.free_bytes += survey.segment_bytes - segment.used_bytes();
            totals.parts += u64::from(segment.parts);
            totals.foreign_segments += u64::from(segment.state == SegmentState::Foreign);
        }
        self.slots.count(totals);
    }
}

impl Problem {
    fn new(kind: ProblemKind, text: String) -> Problem {
        Problem {
            kind,
            segment: None,
            offset_bytes: None,
            slot: None,
            text,
            remedy: Remedy::None,
            lost_slots: Some(0),
            remedy_offset_bytes: 0,
            page: None,
        }
    }
}

/// Takes in all records of a part whose objects are not in doubt.
fn take_in(
    slots: &mut Slots,
    parts: &[Part],
    survey: &mut Survey,
    area: &LogArea,
    header: &PartHeader,
    bytes: &[u8],
) {
    for record in log::records(bytes, header) {
        let said = record.filter(|record| slots.has_place_for(record));
        let Some(record) = said else {
            let what = record.map_or("a record that says nothing known".to_owned(), |record| {
                format!("a record for slot {}, which the volume does not have", record.slot)
            });
            survey.problems.push(Problem {
                segment: Some(header.segment),
                offset_bytes: Some(header.offset_bytes),
                slot: record.map(|record| record.slot),
                ..Problem::new(
                    ProblemKind::Record,
                    format!("segment {}, byte {}: {what}", header.segment, header.offset_bytes),
                )
            });
            continue;
        };
        slots.take_in(&record, &Location::of(&record, header, area), |place| {
            part_at_place(parts, area, place) < header.sequence
        });
    }
}

/// The sequence of the part that a byte of the data section lies in; 0 if none is known.
fn part_at_place(parts: &[Part], area: &LogArea, place: u64) -> u64 {
    let segment = (place / area.segment_bytes) as u32;
    let offset = (place % area.segment_bytes) as u32;
    let behind =
        parts.partition_point(|part| (part.segment, part.offset_bytes) <= (segment, offset));
    match behind.checked_sub(1).map(|index| &parts[index]) {
        Some(part) if part.segment == segment && offset < part.offset_bytes + part.part_bytes => {
            part.sequence
        }
        _ => 0,
    }
}

fn ending_text(why: Ending) -> String {
    match why {
        Ending::Full => "full".to_owned(),
        Ending::OlderFilling => "parts of an older filling".to_owned(),
        Ending::NoPart(PartError::NoPart) => "nothing more was written".to_owned(),
        Ending::NoPart(error) => error.to_string(),
    }
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Where in the image a page of a segment lies.
fn page_place(area: &LogArea, segment: u32, offset_bytes: u32) -> u64 {
    area.offset_of(segment, u64::from(offset_bytes) / PAGE_BYTES * PAGE_BYTES)
}

#[cfg(test)]
mod tests;
