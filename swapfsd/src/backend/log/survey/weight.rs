//! What slots need of a segment, and whether its objects are what the records say.

use super::super::scan::{self, LogArea, object_range};
use super::slots::{Location, Slots};
use super::{Problem, ProblemKind, Survey, plural};
use swapfs_format::log::{self, Content, OBJECT_HEADER_LEN, PartHeader, Record};

/// An object of a part, for the search for overlaps.
struct Extent {
    start: u32,
    end: u32,
    live: bool,
}

/// What is needed of a segment.
#[derive(Default)]
pub(super) struct Weight {
    pub(super) live_bytes: u64,
    pub(super) live_records: u64,
    bad: Vec<(u32, u32)>,
    overlap: Option<(u32, u32)>,
}

impl Weight {
    pub(super) fn add_part(
        &mut self,
        slots: &Slots,
        area: &LogArea,
        header: &PartHeader,
        summary: &[u8],
        part: Option<&[u8]>,
        survey: &mut Survey,
    ) {
        let durable = header.sequence <= survey.durable_sequence;
        let mut extents = Vec::with_capacity(header.record_count as usize);
        for record in log::records(summary, header).flatten() {
            let live = slots.is_newest(&record, &Location::of(&record, header, area));
            let discard = matches!(record.content, Content::Discarded(_));
            self.live_records += u64::from(live && !discard);
            let Content::Object { offset, len, .. } = record.content else { continue };
            let end = offset.saturating_add(OBJECT_HEADER_LEN as u32 + u32::from(len));
            extents.push(Extent { start: offset, end, live });
            survey.totals.encoded_bytes += if live { u64::from(len) } else { 0 };
            let right = match part {
                Some(part) => is_right(part, header, &record),
                None => object_range(header, offset, len).is_some(),
            };
            if right {
            } else if live {
                self.bad.push((record.slot, offset));
            } else if durable {
                survey.totals.dead_bad_objects += 1;
            }
        }
        // Several slots may name the same object; it is there once.
        extents.sort_unstable_by_key(|extent| (extent.start, extent.end));
        let mut before: Option<Extent> = None;
        for extent in extents {
            match &mut before {
                Some(same) if (same.start, same.end) == (extent.start, extent.end) => {
                    same.live |= extent.live;
                    continue;
                }
                Some(under) if extent.start < under.end => {
                    self.overlap.get_or_insert((under.start, extent.start));
                }
                _ => {}
            }
            self.close(before.replace(extent));
        }
        self.close(before);
    }

    fn close(&mut self, extent: Option<Extent>) {
        if let Some(Extent { start, end, live: true }) = extent {
            self.live_bytes += u64::from(end - start);
        }
    }

    pub(super) fn report(&self, segment: u32, survey: &mut Survey) {
        if let Some((one, other)) = self.overlap {
            let text = format!("segment {segment}: the objects at bytes {one} and {other} overlap");
            survey.problems.push(Problem {
                segment: Some(segment),
                offset_bytes: Some(other),
                ..Problem::new(ProblemKind::Overlap, text)
            });
        }
        let Some(&(slot, offset)) = self.bad.first() else { return };
        let named: Vec<String> = self
            .bad
            .iter()
            .take(4)
            .map(|(slot, offset)| format!("slot {slot} at byte {offset}"))
            .collect();
        let more = if self.bad.len() > 4 { ", ..." } else { "" };
        let text = format!(
            "segment {segment}: {} with a wrong checksum: {}{more}",
            plural(self.bad.len() as u64, "live object"),
            named.join(", ")
        );
        survey.problems.push(Problem {
            segment: Some(segment),
            offset_bytes: Some(offset),
            slot: Some(slot),
            ..Problem::new(ProblemKind::Object, text)
        });
    }
}

/// The record's object is there, and has its checksum.
fn is_right(part: &[u8], header: &PartHeader, record: &Record) -> bool {
    let Content::Object { encoding, offset, len, checksum } = record.content else { return true };
    object_range(header, offset, len)
        .and_then(|range| scan::checked_object(part.get(range)?, encoding, checksum))
        .is_some()
}
