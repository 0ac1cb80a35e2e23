//! The two anchors, and the checkpoint of a clean stop, held against what the segments hold.

use super::super::scan::{LogArea, part_at, read_part};
use super::{Part, Problem, ProblemKind, Remedy, SegmentState, Work, plural};
use crate::backend::device::BlockDevice;
use crate::backend::objects::entry::{Entry, Meaning};
use serde::Serialize;
use swapfs_format::log::{
    ANCHOR_MAGIC, ANCHOR_OFFSETS_BYTES, Anchor, AnchorState, CHECKPOINT_LEAF_LEN,
    CHECKPOINT_LEAF_SLOTS, Owner, PartKind,
};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};
use uuid::Uuid;

/// What stands in an anchor's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnchorFound {
    /// An anchor of this log, written while the log was in use.
    InUse,
    /// An anchor of this log, written by a clean stop.
    Clean,
    /// Zeros: none was written there yet.
    Empty,
    /// An anchor of another or an older volume.
    Foreign,
    /// Something else.
    Damaged,
    /// The page can't be read.
    Unreadable,
}

/// One of the two places for anchors.
#[derive(Debug, Clone, Serialize)]
pub struct AnchorSeen {
    /// What is there.
    pub found: AnchorFound,
    /// The anchor's number, if it is one of this log.
    pub generation: Option<u64>,
    /// It is the one that a mount goes by.
    pub counts: bool,
    /// The anchor.
    #[serde(skip)]
    pub anchor: Option<Anchor>,
}

/// Reads both.
pub(super) fn read(device: &dyn BlockDevice, area: &LogArea, buffer: &mut [u8]) -> [AnchorSeen; 2] {
    let mut seen = ANCHOR_OFFSETS_BYTES.map(|offset_bytes| {
        let page = &mut buffer[..PAGE_LEN];
        let read = device.read_at(page, area.data_offset_bytes + offset_bytes);
        let anchor = Anchor::decode(page, &area.owner).filter(|_| read.is_ok());
        let found = match (read, anchor) {
            (Err(_), _) => AnchorFound::Unreadable,
            // Who goes by its segments would find others than were written.
            (Ok(()), Some(anchor)) if anchor.segment_bytes != area.segment_bytes => {
                AnchorFound::Damaged
            }
            (Ok(()), Some(anchor)) if anchor.state == AnchorState::InUse => AnchorFound::InUse,
            (Ok(()), Some(_)) => AnchorFound::Clean,
            (Ok(()), None) if page.iter().all(|&byte| byte == 0) => AnchorFound::Empty,
            (Ok(()), None) if is_of_others(page) => AnchorFound::Foreign,
            (Ok(()), None) => AnchorFound::Damaged,
        };
        let anchor = anchor.filter(|_| matches!(found, AnchorFound::InUse | AnchorFound::Clean));
        let generation = anchor.map(|anchor| anchor.generation);
        AnchorSeen { found, generation, counts: false, anchor }
    });
    let newer = usize::from(seen[1].generation > seen[0].generation);
    seen[newer].counts = seen[newer].anchor.is_some();
    seen
}

/// The page holds a whole anchor of whomever it names.
fn is_of_others(page: &[u8]) -> bool {
    let (Some(uuid), Some(created)) = (page[16..].first_chunk(), page[32..].first_chunk()) else {
        return false;
    };
    let created_unix_s = u64::from_le_bytes(*created);
    let owner = Owner { uuid: Uuid::from_bytes(*uuid), created_unix_s };
    page.starts_with(&ANCHOR_MAGIC) && Anchor::decode(page, &owner).is_some()
}

/// What is wrong with a checkpoint.
struct Mismatch {
    why: String,
    /// Without it, slots have only older versions.
    loses: bool,
}

impl Work<'_> {
    fn counting_anchor(&self) -> Option<&Anchor> {
        self.survey.anchors.iter().find(|seen| seen.counts).and_then(|seen| seen.anchor.as_ref())
    }

    /// Parts from this number on are of the mount that wrote the anchor that counts.
    pub(super) fn mount_sequence(&self) -> u64 {
        self.counting_anchor().map_or(0, |anchor| anchor.next_sequence)
    }

    /// The anchor that counts, if a clean stop wrote it.
    pub(super) fn clean_anchor(&self) -> Option<&Anchor> {
        self.counting_anchor().filter(|anchor| anchor.state != AnchorState::InUse)
    }

    /// Parts or records are newer than a clean stop.
    pub(super) fn is_outdated(&self, anchor: &Anchor) -> bool {
        let checkpoint_end = match anchor.state {
            AnchorState::InUse => 0,
            AnchorState::Clean { checkpoint_parts, checkpoint_sequence, .. } => {
                checkpoint_sequence.saturating_add(u64::from(checkpoint_parts))
            }
        };
        self.survey.newest_sequence >= anchor.next_sequence.max(checkpoint_end)
            || self.survey.newest_write_sequence >= anchor.next_write_sequence
    }

    pub(super) fn judge_anchors(&mut self) {
        let mut problems = Vec::new();
        // The state that a new anchor has; a clean stop stays one if everything bears it out.
        let mut state = AnchorState::InUse;
        if let Some(&anchor) = self.clean_anchor() {
            let outdated = self.is_outdated(&anchor);
            match self.check_checkpoint(&anchor) {
                _ if outdated => problems.push(Problem::new(
                    ProblemKind::Outdated,
                    "the anchor says that the log was stopped in order, and there are newer parts: \
                     a mount would not see them"
                        .to_owned(),
                )),
                Ok(()) => {
                    state = anchor.state;
                    self.checkpoint_has_all = true;
                }
                Err(Mismatch { why, loses }) => problems.push(Problem {
                    lost_slots: if loses { None } else { Some(0) },
                    ..Problem::new(
                        ProblemKind::Checkpoint,
                        format!("the checkpoint of the clean stop: {why}"),
                    )
                }),
            }
        }
        let seen = &self.survey.anchors;
        let counts = seen.iter().position(|anchor| anchor.counts);
        let same = seen[0].generation.is_some() && seen[0].generation == seen[1].generation;
        if same && seen[0].anchor != seen[1].anchor {
            problems.push(Problem::new(
                ProblemKind::Anchor,
                "both anchors have the same generation, and say different things".to_owned(),
            ));
        }
        let mut places = vec![counts.map_or(0, |place| 1 - place); problems.len()];
        for (place, anchor) in seen.iter().enumerate() {
            let why = match anchor.found {
                AnchorFound::InUse | AnchorFound::Clean => continue,
                // There need not be a second one, and none before the first mount.
                AnchorFound::Empty | AnchorFound::Foreign
                    if counts.is_some() || place == 1 || self.survey.newest_sequence == 0 =>
                {
                    continue;
                }
                AnchorFound::Empty => "there is none",
                AnchorFound::Foreign => "it belongs to another or an older volume",
                AnchorFound::Damaged => "it is damaged",
                AnchorFound::Unreadable => "it can't be read",
            };
            places.push(place);
            problems.push(Problem::new(ProblemKind::Anchor, format!("anchor {place}: {why}")));
        }
        let lost_slots = if problems.iter().all(|problem| problem.lost_slots == Some(0)) {
            Some(0)
        } else {
            None
        };
        for (mut problem, place) in problems.into_iter().zip(places) {
            let offset_bytes = ANCHOR_OFFSETS_BYTES[place];
            problem.remedy = Remedy::NewAnchor;
            problem.lost_slots = lost_slots;
            problem.remedy_offset_bytes = self.area.data_offset_bytes + offset_bytes;
            problem.page = Some(Box::new(self.new_anchor(state, place as u64).encode()));
            self.survey.problems.push(problem);
        }
    }

    /// An anchor above everything that was found.
    fn new_anchor(&self, state: AnchorState, place: u64) -> Anchor {
        // An anchor's number says where it goes, so that the next one goes to the other place.
        let at_place = |generation: u64| generation + u64::from(generation % 2 != place);
        let anchors = || self.survey.anchors.iter().filter_map(|seen| seen.anchor);
        let after = |newest: u64, said: fn(&Anchor) -> u64| {
            anchors().map(|anchor| said(&anchor)).fold(newest.saturating_add(1), u64::max)
        };
        Anchor {
            owner: self.area.owner,
            generation: at_place(after(0, |anchor| anchor.generation.saturating_add(1))),
            segment_bytes: self.area.segment_bytes,
            next_sequence: after(self.survey.newest_sequence, |anchor| anchor.next_sequence),
            next_write_sequence: after(self.survey.newest_write_sequence, |anchor| {
                anchor.next_write_sequence
            }),
            state,
        }
    }

    /// Whether the checkpoint is all there, and names no object where the log has none.
    fn check_checkpoint(&mut self, anchor: &Anchor) -> Result<(), Mismatch> {
        let AnchorState::Clean { checkpoint_segment, checkpoint_parts, checkpoint_sequence } =
            anchor.state
        else {
            return Ok(());
        };
        let broken = |why: String| Mismatch { why, loses: false };
        let mut parts: Vec<Part> = self
            .parts
            .iter()
            .filter(|part| {
                part.kind == PartKind::Checkpoint && part.sequence >= checkpoint_sequence
            })
            .copied()
            .collect();
        parts.sort_unstable_by_key(|part| part.sequence);
        if parts.len() < checkpoint_parts as usize {
            return Err(broken(format!(
                "{} of it, and {} are there",
                plural(u64::from(checkpoint_parts), "part"),
                parts.len()
            )));
        }
        parts.truncate(checkpoint_parts as usize);
        let starts = |part: &Part| {
            (part.segment, part.sequence) == (checkpoint_segment, checkpoint_sequence)
        };
        if !parts.first().is_none_or(starts) {
            return Err(broken("it does not start where the anchor says".to_owned()));
        }
        let mut wrong = 0;
        for part in &parts {
            let place = format!("segment {}, byte {}", part.segment, part.offset_bytes);
            match self.check_leaves(part) {
                Some(count) => wrong += count,
                None => return Err(broken(format!("{place}: it is damaged"))),
            }
            if let Some(segment) = self.segment_mut(part.segment)
                && segment.state == SegmentState::Dead
            {
                segment.state = SegmentState::Checkpoint;
            }
        }
        if wrong > 0 {
            let slots = plural(wrong, "slot");
            let why = format!("it has {slots} with an object where the parts' records have none");
            return Err(Mismatch { why, loses: true });
        }
        Ok(())
    }

    /// How many slots of a checkpoint's part have an object that is not the newest one of the
    /// records. `None`: the part is damaged.
    fn check_leaves(&mut self, part: &Part) -> Option<u64> {
        let buffer = self.buffer.get();
        let area = &self.area;
        let header =
            part_at(self.device, area, part.segment, part.offset_bytes, buffer).ok()?.ok()?;
        let bytes = read_part(self.device, area, &header, buffer).ok()?;
        let start = header.payload_offset_bytes as usize;
        let payload = bytes.get(start..)?.get(..header.payload_bytes as usize)?;
        if crc32fast::hash(payload) != header.payload_crc32
            || payload.len() % CHECKPOINT_LEAF_LEN != 0
        {
            return None;
        }
        // A collection and a flusher can have written the same page, with the same number, to two
        // places: which one was published nobody can tell from the records, and either will do.
        let mut elsewhere = Vec::new();
        let mut wrong = 0;
        for leaf in payload.chunks_exact(CHECKPOINT_LEAF_LEN) {
            let (words, _) = leaf.as_chunks::<8>();
            let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
            // Blocks beyond the slots are of another kind.
            let first = words.next()?.saturating_mul(CHECKPOINT_LEAF_SLOTS as u64);
            let slots = (first..self.slot_count.max(first)).zip(words);
            for (slot, entry) in slots {
                match Entry(entry).meaning() {
                    Meaning::Object(object) => {
                        let place = object.device_offset().unwrap_or(object.location);
                        match self.slots.object_place(slot as usize) {
                            Some(counts) if counts == place => {}
                            Some(counts) => elsewhere.push((place, counts, object.stored_bytes())),
                            None => wrong += 1,
                        }
                    }
                    Meaning::Damaged => wrong += 1,
                    _ => {}
                }
            }
        }
        for (place, counts, len) in elsewhere {
            let one = self.stored_at(place, len as usize);
            wrong += u64::from(one.is_none() || one != self.stored_at(counts, len as usize));
        }
        Some(wrong)
    }

    /// What stands at a byte of the data section.
    fn stored_at(&mut self, place: u64, len: usize) -> Option<Vec<u8>> {
        let from = place / PAGE_BYTES * PAGE_BYTES;
        let end = (place + len as u64).next_multiple_of(PAGE_BYTES);
        let bytes = &mut self.whole.get()[..(end - from) as usize];
        self.device.read_at(bytes, self.area.data_offset_bytes + from).ok()?;
        let start = (place - from) as usize;
        Some(bytes[start..start + len].to_vec())
    }
}
