//! What `log` writes into its data section: anchors, and parts of segments.
//!
//! ```text
//! data section   | segment 0   | segment 1            | segment 2            | ...
//!                | two anchors | part | part | free   | part                 |
//! part           | header, records, zeros to 4 KiB | objects, zeros to 4 KiB |
//! ```
//!
//! A segment is written once, front to back, part by part, before it is erased and filled again.
//! A part describes itself: which volume, which segment and place, and a record for each object
//! in it. All parts of one filling have the same `filling` number, so what is left of an older
//! filling behind them is known for what it is. `FORMAT.md` has every byte.

use crate::{PAGE_BYTES, PAGE_LEN};
use std::fmt;
use std::mem::{offset_of, size_of};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a part.
pub const PART_MAGIC: [u8; 8] = *b"swfspart";
/// First bytes of an anchor.
pub const ANCHOR_MAGIC: [u8; 8] = *b"swfsanch";
/// The version of everything in this module.
pub const VERSION: u16 = 1;
/// Bytes of a part's header; the records follow.
pub const PART_HEADER_LEN: usize = 128;
/// Bytes of a record.
pub const RECORD_LEN: usize = 24;
/// Bytes in front of an object's encoded bytes: their checksum.
pub const OBJECT_HEADER_LEN: usize = 4;
/// Segments are at least and at most so large; powers of two.
pub const MIN_SEGMENT_BYTES: u64 = 64 << 10;
/// See [`MIN_SEGMENT_BYTES`].
pub const MAX_SEGMENT_BYTES: u64 = 64 << 20;
/// The segment size where nothing else is known.
pub const DEFAULT_SEGMENT_BYTES: u64 = 2 << 20;
/// A part is at most so long, so that one can be built and read in a buffer of that size.
pub const MAX_PART_BYTES: usize = 1 << 20;
/// Fewer segments than this are no volume: the anchors', and what garbage collection needs.
pub const MIN_SEGMENTS: u64 = 16;
/// Anchors lie at these places in the data section.
pub const ANCHOR_OFFSETS_BYTES: [u64; 2] = [0, PAGE_BYTES];

/// What a part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum PartKind {
    /// Objects, with a record for each.
    Data = 1,
    /// A piece of the checkpoint of a clean stop; its records are none.
    Checkpoint = 2,
}

/// What a record says about a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// An object: its encoding's number (2: raw, 3: lz4, 4: zstd), where in the segment its
    /// checksum starts, its encoded bytes (1 to 4096), and their checksum.
    Object {
        /// The number of the encoding.
        encoding: u8,
        /// Byte of the segment at which the object's checksum starts.
        offset: u32,
        /// Encoded bytes, without the checksum in front of them.
        len: u16,
        /// CRC-32 of encoding and bytes.
        checksum: u32,
    },
    /// The page is this word over and over.
    SameFilled(u64),
    /// This slot and those behind it, so many in all, hold nothing.
    Discarded(u32),
}

/// What a write or discard did, as a part remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Of two records of a slot, the one with the greater number is the newer one.
    pub sequence: u64,
    /// The slot, or the first one.
    pub slot: u32,
    /// What it holds.
    pub content: Content,
}

const KIND_SAME_FILLED: u8 = 1;
const KIND_DISCARDED: u8 = 8;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRecord {
    sequence: U64,
    slot: U32,
    value: [u8; 8],
    length: U16,
    kind: u8,
    reserved: u8,
}

impl Record {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let (value, length, kind) = match self.content {
            Content::Object { encoding, offset, len, checksum } => {
                let value = u64::from(checksum) | u64::from(offset) << 32;
                // 1 to 4096 bytes.
                (value, len, encoding)
            }
            Content::SameFilled(word) => (word, 0, KIND_SAME_FILLED),
            Content::Discarded(count) => (u64::from(count), 0, KIND_DISCARDED),
        };
        let raw = RawRecord {
            sequence: self.sequence.into(),
            slot: self.slot.into(),
            value: value.to_le_bytes(),
            length: length.into(),
            kind,
            reserved: 0,
        };
        zerocopy::transmute!(raw)
    }

    /// A record again. `None`: no record says this.
    #[must_use]
    pub fn decode(bytes: &[u8; RECORD_LEN]) -> Option<Record> {
        let raw: RawRecord = zerocopy::transmute!(*bytes);
        let value = u64::from_le_bytes(raw.value);
        let content = match raw.kind {
            KIND_SAME_FILLED => Content::SameFilled(value),
            KIND_DISCARDED => Content::Discarded(u32::try_from(value).ok()?),
            encoding @ 2..=4 => {
                let len = raw.length.get();
                if !(1..=PAGE_LEN as u16).contains(&len) {
                    return None;
                }
                let (checksum, offset) = (value as u32, (value >> 32) as u32);
                Content::Object { encoding, offset, len, checksum }
            }
            _ => return None,
        };
        Some(Record { sequence: raw.sequence.get(), slot: raw.slot.get(), content })
    }
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPartHeader {
    magic: [u8; 8],
    crc32: U32,
    version: U16,
    kind: U16,
    volume_uuid: [u8; 16],
    created_unix_s: U64,
    sequence: U64,
    filling: U64,
    began_sequence: U64,
    durable_sequence: U64,
    segment: U32,
    offset_bytes: U32,
    part_bytes: U32,
    record_count: U32,
    payload_offset_bytes: U32,
    payload_bytes: U32,
    payload_crc32: U32,
    next_segment: U32,
    reserved: [u8; 24],
}

const _: () = {
    assert!(size_of::<RawRecord>() == RECORD_LEN);
    assert!(size_of::<RawPartHeader>() == PART_HEADER_LEN);
    assert!(offset_of!(RawPartHeader, crc32) == 8);
    assert!(offset_of!(RawPartHeader, volume_uuid) == 16);
    assert!(offset_of!(RawPartHeader, sequence) == 40);
    assert!(offset_of!(RawPartHeader, segment) == 72);
    assert!(offset_of!(RawPartHeader, payload_crc32) == 96);
    assert!(size_of::<RawAnchor>() == ANCHOR_LEN);
};

/// Whose log it is: parts of other volumes, and of earlier formats of this one, do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The superblock's UUID.
    pub uuid: Uuid,
    /// The superblock's creation time.
    pub created_unix_s: u64,
}

/// The head of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartHeader {
    /// What it holds.
    pub kind: PartKind,
    /// Whose it is.
    pub owner: Owner,
    /// The part's own number: each part that is written has a greater one.
    pub sequence: u64,
    /// The number of the first part of this filling of the segment.
    pub filling: u64,
    /// The write sequence when the part's contents were looked for: whatever was overwritten or
    /// discarded before that is not in it.
    pub began_sequence: u64,
    /// Parts up to this number were on the device, flushed, when this one was written.
    pub durable_sequence: u64,
    /// The segment's number.
    pub segment: u32,
    /// Where in the segment the part starts.
    pub offset_bytes: u32,
    /// All of it, a multiple of 4096.
    pub part_bytes: u32,
    /// Records behind the header.
    pub record_count: u32,
    /// Where in the part the payload starts, a multiple of 4096.
    pub payload_offset_bytes: u32,
    /// Bytes of it that are used.
    pub payload_bytes: u32,
    /// CRC-32 of the used payload.
    pub payload_crc32: u32,
    /// In a checkpoint: the segment in which it goes on when this one is at its end; else 0.
    pub next_segment: u32,
}

/// Why bytes are no part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartError {
    /// Another start: nothing was written here, or it was discarded.
    NoPart,
    /// A version or kind that this code does not know.
    Unknown,
    /// The checksum is not that of header and records: torn or damaged.
    BadChecksum,
    /// It names lengths or places that can't be.
    Impossible,
    /// It belongs to another volume, or to an earlier format of this one.
    OtherVolume,
    /// It says that it lies elsewhere.
    OtherPlace {
        /// The segment that it names.
        segment: u32,
        /// The place in it.
        offset_bytes: u32,
    },
    /// Only the first bytes of it were given: so many are needed.
    Short(usize),
}

impl fmt::Display for PartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartError::NoPart => write!(f, "no part starts here"),
            PartError::Unknown => write!(f, "an unknown version or kind"),
            PartError::BadChecksum => write!(f, "the checksum of header and records is wrong"),
            PartError::Impossible => write!(f, "lengths or places that can't be"),
            PartError::OtherVolume => write!(f, "a part of another or an older volume"),
            PartError::OtherPlace { segment, offset_bytes } => {
                write!(f, "a part that belongs to byte {offset_bytes} of segment {segment}")
            }
            PartError::Short(bytes) => write!(f, "{bytes} bytes are needed to read it"),
        }
    }
}

/// Where header and records end, rounded to a page: where the payload may start.
#[must_use]
pub const fn payload_offset_for(record_count: usize) -> usize {
    (PART_HEADER_LEN + record_count * RECORD_LEN).next_multiple_of(PAGE_LEN)
}

impl PartHeader {
    /// Bytes of header and records.
    #[must_use]
    pub fn summary_bytes(&self) -> usize {
        PART_HEADER_LEN + self.record_count as usize * RECORD_LEN
    }

    fn raw(&self) -> RawPartHeader {
        RawPartHeader {
            magic: PART_MAGIC,
            crc32: U32::ZERO,
            version: VERSION.into(),
            kind: (self.kind as u16).into(),
            volume_uuid: *self.owner.uuid.as_bytes(),
            created_unix_s: self.owner.created_unix_s.into(),
            sequence: self.sequence.into(),
            filling: self.filling.into(),
            began_sequence: self.began_sequence.into(),
            durable_sequence: self.durable_sequence.into(),
            segment: self.segment.into(),
            offset_bytes: self.offset_bytes.into(),
            part_bytes: self.part_bytes.into(),
            record_count: self.record_count.into(),
            payload_offset_bytes: self.payload_offset_bytes.into(),
            payload_bytes: self.payload_bytes.into(),
            payload_crc32: self.payload_crc32.into(),
            next_segment: self.next_segment.into(),
            reserved: [0; 24],
        }
    }

    /// Puts the header in front of the records that `part` has already, with the checksum of
    /// both.
    ///
    /// # Panics
    /// If `part` has no room for header and records.
    pub fn write_to(&self, part: &mut [u8]) {
        let summary = &mut part[..self.summary_bytes()];
        summary[..PART_HEADER_LEN].copy_from_slice(self.raw().as_bytes());
        let crc32 = crc32fast::hash(summary);
        summary[8..12].copy_from_slice(&crc32.to_le_bytes());
    }

    /// The header of the part that `bytes` start with, which were read at `offset_bytes` of
    /// segment `segment` of `owner`'s log, with segments of `segment_bytes`.
    ///
    /// # Errors
    /// Why there is none; [`PartError::Short`] if `bytes` do not reach to its last record.
    pub fn decode(
        bytes: &[u8],
        owner: &Owner,
        segment: u32,
        offset_bytes: u32,
        segment_bytes: u64,
    ) -> Result<PartHeader, PartError> {
        let Ok((raw, _)) = RawPartHeader::read_from_prefix(bytes) else {
            return Err(PartError::Short(PART_HEADER_LEN));
        };
        if raw.magic != PART_MAGIC {
            return Err(PartError::NoPart);
        }
        let summary_bytes = PART_HEADER_LEN + raw.record_count.get() as usize * RECORD_LEN;
        if summary_bytes > MAX_PART_BYTES {
            return Err(PartError::BadChecksum);
        }
        if bytes.len() < summary_bytes {
            return Err(PartError::Short(summary_bytes));
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..8]);
        hasher.update(&[0; 4]);
        hasher.update(&bytes[12..summary_bytes]);
        if hasher.finalize() != raw.crc32.get() {
            return Err(PartError::BadChecksum);
        }
        let kind = match raw.kind.get() {
            1 => PartKind::Data,
            2 => PartKind::Checkpoint,
            _ => return Err(PartError::Unknown),
        };
        if raw.version.get() != VERSION {
            return Err(PartError::Unknown);
        }
        let header = PartHeader {
            kind,
            owner: Owner {
                uuid: Uuid::from_bytes(raw.volume_uuid),
                created_unix_s: raw.created_unix_s.get(),
            },
            sequence: raw.sequence.get(),
            filling: raw.filling.get(),
            began_sequence: raw.began_sequence.get(),
            durable_sequence: raw.durable_sequence.get(),
            segment: raw.segment.get(),
            offset_bytes: raw.offset_bytes.get(),
            part_bytes: raw.part_bytes.get(),
            record_count: raw.record_count.get(),
            payload_offset_bytes: raw.payload_offset_bytes.get(),
            payload_bytes: raw.payload_bytes.get(),
            payload_crc32: raw.payload_crc32.get(),
            next_segment: raw.next_segment.get(),
        };
        if header.owner != *owner {
            return Err(PartError::OtherVolume);
        }
        if (header.segment, header.offset_bytes) != (segment, offset_bytes) {
            let (segment, offset_bytes) = (header.segment, header.offset_bytes);
            return Err(PartError::OtherPlace { segment, offset_bytes });
        }
        let part_bytes = u64::from(header.part_bytes);
        let payload_end = u64::from(header.payload_offset_bytes) + u64::from(header.payload_bytes);
        let possible = part_bytes.is_multiple_of(PAGE_BYTES)
            && part_bytes <= MAX_PART_BYTES as u64
            && u64::from(offset_bytes) + part_bytes <= segment_bytes
            && header.payload_offset_bytes as usize >= summary_bytes
            && payload_end <= part_bytes
            && header.filling <= header.sequence;
        if possible { Ok(header) } else { Err(PartError::Impossible) }
    }
}

/// The records of a part whose header was decoded from the same bytes; `None` for one that says
/// nothing that a record can say.
pub fn records<'a>(
    bytes: &'a [u8],
    header: &PartHeader,
) -> impl Iterator<Item = Option<Record>> + use<'a> {
    let (records, _) = bytes[PART_HEADER_LEN..header.summary_bytes()].as_chunks::<RECORD_LEN>();
    records.iter().map(Record::decode)
}

/// Bytes of an anchor.
pub const ANCHOR_LEN: usize = 128;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawAnchor {
    magic: [u8; 8],
    crc32: U32,
    version: U16,
    state: U16,
    volume_uuid: [u8; 16],
    created_unix_s: U64,
    generation: U64,
    segment_bytes: U64,
    next_sequence: U64,
    next_write_sequence: U64,
    checkpoint_segment: U32,
    checkpoint_parts: U32,
    checkpoint_sequence: U64,
    reserved: [u8; 40],
}

/// How the log was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnchorState {
    /// Mounted, or killed: only the segments themselves say what they hold.
    InUse,
    /// Stopped in order: the checkpoint has everything.
    Clean {
        /// The segment that the checkpoint starts in.
        checkpoint_segment: u32,
        /// How many parts it has.
        checkpoint_parts: u32,
        /// The sequence of its first part.
        checkpoint_sequence: u64,
    },
}

/// One of the two places that say how the log was left. The one with the greater generation
/// counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// Whose it is.
    pub owner: Owner,
    /// Grows with each anchor that is written.
    pub generation: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Parts from here on are new.
    pub next_sequence: u64,
    /// Records from here on are new.
    pub next_write_sequence: u64,
    /// How it was left.
    pub state: AnchorState,
}

impl Anchor {
    /// The page that is written.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE_LEN] {
        let (state, segment, parts, sequence) = match self.state {
            AnchorState::InUse => (1, 0, 0, 0),
            AnchorState::Clean { checkpoint_segment, checkpoint_parts, checkpoint_sequence } => {
                (2, checkpoint_segment, checkpoint_parts, checkpoint_sequence)
            }
        };
        let mut raw = RawAnchor {
            magic: ANCHOR_MAGIC,
            crc32: U32::ZERO,
            version: VERSION.into(),
            state: state.into(),
            volume_uuid: *self.owner.uuid.as_bytes(),
            created_unix_s: self.owner.created_unix_s.into(),
            generation: self.generation.into(),
            segment_bytes: self.segment_bytes.into(),
            next_sequence: self.next_sequence.into(),
            next_write_sequence: self.next_write_sequence.into(),
            checkpoint_segment: segment.into(),
            checkpoint_parts: parts.into(),
            checkpoint_sequence: sequence.into(),
            reserved: [0; 40],
        };
        raw.crc32 = crc32fast::hash(raw.as_bytes()).into();
        let mut page = [0; PAGE_LEN];
        page[..ANCHOR_LEN].copy_from_slice(raw.as_bytes());
        page
    }

    /// The anchor of `owner`'s log that `page` holds, if it holds one.
    #[must_use]
    pub fn decode(page: &[u8], owner: &Owner) -> Option<Anchor> {
        let (mut raw, _) = RawAnchor::read_from_prefix(page).ok()?;
        let crc32 = raw.crc32.get();
        raw.crc32 = U32::ZERO;
        let found = Owner {
            uuid: Uuid::from_bytes(raw.volume_uuid),
            created_unix_s: raw.created_unix_s.get(),
        };
        if raw.magic != ANCHOR_MAGIC
            || crc32fast::hash(raw.as_bytes()) != crc32
            || raw.version.get() != VERSION
            || found != *owner
        {
            return None;
        }
        let state = match raw.state.get() {
            1 => AnchorState::InUse,
            2 => AnchorState::Clean {
                checkpoint_segment: raw.checkpoint_segment.get(),
                checkpoint_parts: raw.checkpoint_parts.get(),
                checkpoint_sequence: raw.checkpoint_sequence.get(),
            },
            _ => return None,
        };
        Some(Anchor {
            owner: found,
            generation: raw.generation.get(),
            segment_bytes: raw.segment_bytes.get(),
            next_sequence: raw.next_sequence.get(),
            next_write_sequence: raw.next_write_sequence.get(),
            state,
        })
    }
}

/// The layouts of part header, record and anchor as `(name, offset, length)`: what `FORMAT.md` is
/// tested against.
pub mod layout {
    use super::{RawAnchor, RawPartHeader, RawRecord};
    use std::mem::{offset_of, size_of};

    macro_rules! fields {
        ($type:ty: $($name:ident),+) => {{
            let mut rows = vec![$((stringify!($name), offset_of!($type, $name))),+];
            rows.push(("", size_of::<$type>()));
            rows.windows(2).map(|pair| (pair[0].0, pair[0].1, pair[1].1 - pair[0].1)).collect()
        }};
    }

    /// Of a part's header.
    #[must_use]
    pub fn part_header() -> Vec<(&'static str, usize, usize)> {
        fields!(RawPartHeader: magic, crc32, version, kind, volume_uuid, created_unix_s, sequence,
            filling, began_sequence, durable_sequence, segment, offset_bytes, part_bytes,
            record_count, payload_offset_bytes, payload_bytes, payload_crc32, next_segment,
            reserved)
    }

    /// Of a record.
    #[must_use]
    pub fn record() -> Vec<(&'static str, usize, usize)> {
        fields!(RawRecord: sequence, slot, value, length, kind, reserved)
    }

    /// Of an anchor.
    #[must_use]
    pub fn anchor() -> Vec<(&'static str, usize, usize)> {
        fields!(RawAnchor: magic, crc32, version, state, volume_uuid, created_unix_s, generation,
            segment_bytes, next_sequence, next_write_sequence, checkpoint_segment,
            checkpoint_parts, checkpoint_sequence, reserved)
    }
}

/// Where a slot's page is, as a checkpoint says it: 8 bytes a slot, 512 slots a leaf, as the
/// daemon has them in memory, with places counted from the start of the data section.
pub const CHECKPOINT_LEAF_SLOTS: usize = 512;
/// Leaves from this number on say for 512 segments each, in place of entries: bit 63 is set if the
/// segment is free, and the rest is a write sequence: whatever is left in the segment was
/// written, or looked for, at that time or later.
pub const CHECKPOINT_SEGMENT_LEAVES: u64 = 1 << 32;
/// Bytes of a leaf in a checkpoint: its number, then its entries.
pub const CHECKPOINT_LEAF_LEN: usize = 8 + 8 * CHECKPOINT_LEAF_SLOTS;
/// Leaves that a checkpoint's part holds at most.
pub const CHECKPOINT_LEAVES_PER_PART: usize = 64;

#[cfg(test)]
mod tests;
