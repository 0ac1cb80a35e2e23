//! Why the parts of a segment end: a judgement on what stands where the next part would start.
//!
//! That is nothing, or what is left of an older filling or volume, or a part that a power failure
//! tore: all that is as it should be. Or it is a part that was whole and durable, which is damage.
//! What tells them apart is whether a durable part of the same filling follows, and whether the
//! number that the bad part claims was durable.

use super::super::scan::{Ending, for_each_part, part_at};
use super::{Break, Problem, ProblemKind, Remedy, SegmentState, Work, page_place, plural};
use crate::backend::device::BlockDevice;
use crate::sys::file::Discarded;
use std::collections::BTreeSet;
use std::io;
use swapfs_format::log::{
    self, MAX_PART_BYTES, PART_HEADER_LEN, PART_MAGIC, PartError, PartHeader, PartKind,
};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

/// Slots that a bad part has the newest version of, as far as it can be told.
type Orphans = Option<BTreeSet<u32>>;

impl Work<'_> {
    pub(super) fn judge_breaks(&mut self) {
        for place in std::mem::take(&mut self.breaks) {
            self.judge(&place);
        }
    }

    fn judge(&mut self, place: &Break) {
        let first = place.offset_bytes == 0;
        let Ending::NoPart(error) = place.why else {
            return self.judge_other_filling(place);
        };
        match error {
            PartError::OtherVolume => self.foreign(place),
            PartError::Unknown => self.unknown(place),
            PartError::OtherPlace { segment, offset_bytes } => {
                self.misplaced(place, segment, offset_bytes);
            }
            // A free segment; and who only wants a map reads no more than that takes.
            PartError::NoPart if first || !self.check_payload => {}
            _ => self.bad_part(place, error),
        }
    }

    /// An older filling behind a newer one is what was there before; the other way round, the
    /// device has lost the write of the newer one's start.
    fn judge_other_filling(&mut self, place: &Break) {
        let Break { segment, offset_bytes, .. } = *place;
        let Some(last) = place.last.filter(|_| place.why == Ending::OlderFilling) else { return };
        let found = part_at(self.device, &self.area, segment, offset_bytes, self.buffer.get());
        let Ok(Ok(newer)) = found else { return };
        if newer.filling > last.filling && newer.sequence <= self.survey.durable_sequence {
            let text = format!(
                "segment {segment}: filling {} stands behind filling {}, which is older",
                newer.filling, last.filling
            );
            self.report(place, ProblemKind::Sequence, text);
        }
    }

    fn foreign(&mut self, place: &Break) {
        if place.offset_bytes == 0 {
            self.set_state(place.segment, SegmentState::Foreign);
        }
    }

    fn unknown(&mut self, place: &Break) {
        let offset = self.area.offset_of(place.segment, u64::from(place.offset_bytes));
        let page = &mut self.buffer.get()[..PAGE_LEN];
        let read = self.device.read_at(page, offset);
        // UUID and creation time, where every version has them.
        let created = self.area.owner.created_unix_s.to_le_bytes();
        if read.is_err()
            || page[16..32] != *self.area.owner.uuid.as_bytes()
            || page[32..40] != created
        {
            return self.foreign(place);
        }
        self.set_state(place.segment, SegmentState::Damaged);
        let text = format!(
            "segment {}, byte {}: a part of a version or kind that this program does not know",
            place.segment, place.offset_bytes
        );
        self.report(place, ProblemKind::Unknown, text);
    }

    fn misplaced(&mut self, place: &Break, segment: u32, offset_bytes: u32) {
        let orphans = if (place.offset_bytes, offset_bytes) == (0, 0) {
            self.set_state(place.segment, SegmentState::Misplaced);
            self.orphans_elsewhere(place.segment, segment)
        } else {
            None
        };
        let text = format!(
            "segment {}, byte {}: what stands here belongs to segment {segment}, byte \
             {offset_bytes}: segments were swapped or copied{}",
            place.segment,
            place.offset_bytes,
            loss_text(&orphans)
        );
        self.report_with(place, ProblemKind::Misplaced, text, &orphans, Remedy::Zero, None);
    }

    /// What is newer than everything else in the parts that say they are segment `claimed`'s, and
    /// stand in segment `at`.
    fn orphans_elsewhere(&mut self, at: u32, claimed: u32) -> Orphans {
        let bytes = |segment: u32| u64::from(segment) * self.area.segment_bytes;
        let shift_bytes = bytes(at).wrapping_sub(bytes(claimed));
        let shifted = Shifted { device: self.device, shift_bytes };
        let mut orphans = BTreeSet::new();
        let slots = &self.slots;
        for_each_part(&shifted, &self.area, claimed, self.buffer.get(), |header, bytes| {
            if header.kind == PartKind::Data {
                let records = log::records(bytes, header).flatten();
                orphans.extend(
                    records
                        .filter(|one| slots.has_place_for(one))
                        .flat_map(|one| slots.beaten(&one).collect::<Vec<_>>()),
                );
            }
        })
        .ok()?;
        Some(orphans)
    }

    /// A part with that number was flushed. What a mount finds after a power failure counts as
    /// durable from then on: of older parts, only what was said before that mount is evidence.
    fn was_durable(&self, sequence: u64) -> bool {
        if sequence >= self.mount_sequence {
            sequence <= self.survey.durable_sequence
        } else {
            sequence <= self.durable_before || self.clean_anchor().is_some()
        }
    }

    /// A part whose header or records do not check, or a hole where one may have been.
    fn bad_part(&mut self, place: &Break, error: PartError) {
        let Break { segment, offset_bytes, last, .. } = *place;
        let Some((claimed, orphans)) = self.claims(place, error) else {
            return self.foreign(place);
        };
        // A part that a power failure tore at the start of a segment stands before what is left
        // of the filling before.
        let filling = last.map(|last| last.filling).or(claimed.map(|claimed| claimed.filling));
        let next = self
            .next_part(segment, offset_bytes, filling)
            .filter(|next| self.was_durable(next.sequence));
        let behind = next.map_or_else(BTreeSet::new, |next| self.orphans_from(&next));
        let needed = orphans.as_ref().is_none_or(|orphans| !orphans.is_empty());
        let damage = match (last, next, claimed) {
            // What was torn before a clean stop is there after it: nothing of it is needed.
            _ if self.checkpoint_has_all => false,
            // A free segment that was being filled anew: payload landed on old heads, and the new
            // head did not land. Nothing in it is needed.
            (Some(_), Some(_), _) => self.live_bytes(segment) > 0 || !behind.is_empty(),
            (None, Some(_), _) => needed || !behind.is_empty(),
            (_, None, Some(claimed)) => {
                // The number of a part that was torn may be given to another one later.
                let was_whole = self.was_durable(claimed.sequence)
                    && filling == Some(claimed.filling)
                    && !self.sequences.contains(&claimed.sequence);
                was_whole && needed
            }
            // A torn part has a header that says something, since that is one sector: this one was
            // whole.
            (_, None, None) => error != PartError::NoPart,
        };
        if !damage {
            self.survey.totals.torn_segments += u64::from(error != PartError::NoPart);
            return;
        }
        self.set_state(segment, SegmentState::Damaged);
        let bridge = next.and_then(|next| self.bridge(place, claimed.as_ref(), &next));
        let what = match error {
            PartError::NoPart => "the summary of a part is gone".to_owned(),
            error => format!("the summary of a part is damaged: {error}"),
        };
        let mut text = format!("segment {segment}, byte {offset_bytes}: {what}");
        let (remedy, orphans) = match (&bridge, next) {
            (Some(_), _) => (Remedy::Bridge, orphans),
            (None, None) => (Remedy::Zero, orphans),
            // At the start, zeros make the segment free, whatever follows.
            (None, Some(_)) if last.is_none() => {
                (Remedy::Zero, orphans.map(|orphans| &orphans | &behind))
            }
            (None, Some(_)) => (Remedy::None, orphans),
        };
        text += &loss_text(&orphans);
        if !behind.is_empty() {
            text += &format!("; {} in parts behind it", plural(behind.len() as u64, "more slot"));
        }
        self.report_with(place, ProblemKind::Summary, text, &orphans, remedy, bridge);
    }

    /// What counts in the parts of a segment that can be read.
    fn live_bytes(&self, segment: u32) -> u64 {
        let found = self.survey.segments.iter().find(|one| one.number == segment);
        found.map_or(u64::MAX, |one| one.live_bytes)
    }

    /// What a part that does not check would say if it did, and which slots it has the newest
    /// version of. `None`: it would be of another volume.
    fn claims(&mut self, place: &Break, error: PartError) -> Option<(Option<PartHeader>, Orphans)> {
        if error == PartError::NoPart {
            return Some((None, None));
        }
        let Break { segment, offset_bytes, .. } = *place;
        let offset = u64::from(offset_bytes);
        let rest = (self.area.segment_bytes - offset).min(MAX_PART_BYTES as u64) as usize;
        let bytes = &mut self.whole.get()[..rest];
        if self.device.read_at(bytes, self.area.offset_of(segment, offset)).is_err() {
            return Some((None, None));
        }
        let records = bytes[84..88].first_chunk().map_or(0, |count| u32::from_le_bytes(*count));
        let summary = PART_HEADER_LEN + records as usize * log::RECORD_LEN;
        if summary > rest {
            return Some((None, None));
        }
        bytes[8..12].fill(0);
        let crc32 = crc32fast::hash(&bytes[..summary]);
        bytes[8..12].copy_from_slice(&crc32.to_le_bytes());
        let area = &self.area;
        match PartHeader::decode(bytes, &area.owner, segment, offset_bytes, area.segment_bytes) {
            Err(PartError::OtherVolume) => None,
            Err(_) => Some((None, None)),
            Ok(header) => {
                let slots = &self.slots;
                let records = log::records(bytes, &header).flatten();
                let records = records.filter(|one| slots.has_place_for(one));
                let orphans = records.flat_map(|one| slots.beaten(&one).collect::<Vec<_>>());
                let data = header.kind == PartKind::Data;
                Some((Some(header), Some(orphans.filter(|_| data).collect())))
            }
        }
    }

    /// The first part behind a place that is one and belongs there; of `filling`, or if that is not
    /// known, of any that did not begin with it.
    fn next_part(&mut self, segment: u32, after: u32, filling: Option<u64>) -> Option<PartHeader> {
        let mut start = u64::from(after) + PAGE_BYTES;
        while start < self.area.segment_bytes {
            let len = (self.area.segment_bytes - start).min(MAX_PART_BYTES as u64);
            let bytes = &mut self.whole.get()[..len as usize];
            self.device.read_at(bytes, self.area.offset_of(segment, start)).ok()?;
            for (index, page) in (0..).zip(bytes.chunks(PAGE_LEN)) {
                if !page.starts_with(&PART_MAGIC) {
                    continue;
                }
                let offset = (start + index * PAGE_BYTES) as u32;
                let found = part_at(self.device, &self.area, segment, offset, self.buffer.get());
                if let Ok(Ok(header)) = found
                    && header.part_bytes > 0
                    && filling.map_or(header.sequence > header.filling, |it| it == header.filling)
                {
                    return Some(header);
                }
            }
            start += len;
        }
        None
    }

    /// What is newer than everything else in a part and those behind it.
    fn orphans_from(&mut self, first: &PartHeader) -> BTreeSet<u32> {
        let mut orphans = BTreeSet::new();
        let mut offset = first.offset_bytes;
        while u64::from(offset) + PAGE_BYTES <= self.area.segment_bytes {
            let buffer = self.buffer.get();
            let found = part_at(self.device, &self.area, first.segment, offset, buffer);
            let Ok(Ok(header)) = found else { break };
            if header.filling != first.filling || header.part_bytes == 0 {
                break;
            }
            offset += header.part_bytes;
            if header.kind == PartKind::Data {
                let records = log::records(buffer, &header).flatten();
                let records = records.filter(|one| self.slots.has_place_for(one));
                orphans.extend(records.flat_map(|one| self.slots.beaten(&one).collect::<Vec<_>>()));
            }
        }
        orphans
    }

    /// A part without records that reaches from a place to the next good part.
    fn bridge(
        &self,
        place: &Break,
        claimed: Option<&PartHeader>,
        next: &PartHeader,
    ) -> Option<Box<[u8; PAGE_LEN]>> {
        let part_bytes = next.offset_bytes - place.offset_bytes;
        if part_bytes as usize > MAX_PART_BYTES {
            return None;
        }
        let is_free = |number: &u64| !self.sequences.contains(number);
        let sequence = match place.last {
            // The first part of a filling gives it its number.
            None => Some(next.filling).filter(is_free),
            Some(last) => {
                let between = last.sequence + 1..next.sequence;
                let own = claimed.map(|claimed| claimed.sequence);
                let own = own.filter(|own| between.contains(own) && is_free(own));
                own.or_else(|| between.take(1000).find(is_free))
            }
        }?;
        let header = PartHeader {
            kind: PartKind::Data,
            owner: self.area.owner,
            sequence,
            filling: next.filling,
            began_sequence: place.last.map_or(0, |last| last.began_sequence),
            durable_sequence: 0,
            segment: place.segment,
            offset_bytes: place.offset_bytes,
            part_bytes,
            record_count: 0,
            payload_offset_bytes: PAGE_LEN as u32,
            payload_bytes: 0,
            payload_crc32: 0,
            next_segment: 0,
        };
        let mut page = Box::new([0; PAGE_LEN]);
        header.write_to(&mut page[..]);
        Some(page)
    }

    fn set_state(&mut self, segment: u32, state: SegmentState) {
        if let Some(found) = self.segment_mut(segment) {
            found.state = state;
        }
    }

    fn report(&mut self, place: &Break, kind: ProblemKind, text: String) {
        self.report_with(place, kind, text, &Some(BTreeSet::new()), Remedy::None, None);
    }

    fn report_with(
        &mut self,
        place: &Break,
        kind: ProblemKind,
        text: String,
        orphans: &Orphans,
        remedy: Remedy,
        page: Option<Box<[u8; PAGE_LEN]>>,
    ) {
        let zeros = (remedy == Remedy::Zero).then(|| Box::new([0; PAGE_LEN]));
        self.survey.problems.push(Problem {
            segment: Some(place.segment),
            offset_bytes: Some(place.offset_bytes),
            slot: orphans.as_ref().and_then(|orphans| orphans.first().copied()),
            remedy,
            lost_slots: orphans.as_ref().map(|orphans| orphans.len() as u64),
            remedy_offset_bytes: page_place(&self.area, place.segment, place.offset_bytes),
            page: page.or(zeros),
            ..Problem::new(kind, text)
        });
    }
}

fn loss_text(orphans: &Orphans) -> String {
    match orphans.as_ref().map(BTreeSet::len) {
        None => ": which slots it has the newest version of can't be told".to_owned(),
        Some(0) => ": no slot needs anything of it".to_owned(),
        Some(1) => ": 1 slot loses its newest version".to_owned(),
        Some(count) => format!(": {count} slots lose their newest version"),
    }
}

/// A device on which everything lies elsewhere; for reading only.
#[derive(Debug)]
struct Shifted<'a> {
    device: &'a dyn BlockDevice,
    shift_bytes: u64,
}

impl BlockDevice for Shifted<'_> {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<(), i32> {
        self.device.read_at(buffer, offset_bytes.wrapping_add(self.shift_bytes))
    }

    fn write_at(&self, _buffer: &[u8], _offset_bytes: u64) -> Result<(), i32> {
        Err(libc::EROFS)
    }

    fn discard(&self, _offset_bytes: u64, _length_bytes: u64) -> Result<Discarded, i32> {
        Err(libc::EROFS)
    }

    fn flush(&self) -> Result<(), i32> {
        Err(libc::EROFS)
    }

    fn lock(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }
}
