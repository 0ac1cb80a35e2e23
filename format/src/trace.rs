//! The trace file: what the daemon did to a volume's device, operation by operation.
//!
//! A header of [`HEADER_LEN`] bytes, then records of [`RECORD_LEN`], to the end of the file. Only
//! ever appended to; the process that appends may be killed, so the last record can be cut off.
//! Records are in about the order in which the operations ended.

use crate::PAGE_BYTES;
use std::fmt;
use std::mem::{offset_of, size_of};
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a trace file. The line ends show a copy that went through a text conversion.
pub const MAGIC: [u8; 8] = *b"swftrc\r\n";
/// The one version of this layout.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = 64;
/// Bytes of a record.
pub const RECORD_LEN: usize = 32;
/// The longest duration that a record can say; longer ones say this: 78 hours.
pub const MAX_DURATION_NS: u64 = (1 << 48) - 1;
/// What is taken for a segment where a volume has none, and its erase block is no flash's.
pub const DEFAULT_SEGMENT_BYTES: u64 = 2 << 20;

/// What a record is about. The numbers are those in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A read of the device.
    Read = 1,
    /// A write to the device.
    Write = 2,
    /// A range that the device was told to forget.
    Discard = 3,
    /// A flush of the device; no range.
    Flush = 4,
    /// Operations that are missing here: `length` says how many.
    Lost = 5,
    /// What the back end took from the kernel since the last such record: `length` bytes.
    Accepted = 6,
    /// Another process goes on from here: the one before it was killed, or replaced.
    Restart = 7,
}

impl RecordKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [RecordKind; 7] = [
        RecordKind::Read,
        RecordKind::Write,
        RecordKind::Discard,
        RecordKind::Flush,
        RecordKind::Lost,
        RecordKind::Accepted,
        RecordKind::Restart,
    ];

    /// The kind that the file has this number for.
    #[must_use]
    pub fn from_number(number: u8) -> Option<RecordKind> {
        RecordKind::ALL.into_iter().find(|&kind| kind as u8 == number)
    }

    /// Its name, as in `FORMAT.md`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RecordKind::Read => "read",
            RecordKind::Write => "write",
            RecordKind::Discard => "discard",
            RecordKind::Flush => "flush",
            RecordKind::Lost => "lost",
            RecordKind::Accepted => "accepted",
            RecordKind::Restart => "restart",
        }
    }
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    record_bytes: U32,
    uuid: [u8; 16],
    data_offset_bytes: U64,
    segment_bytes: U64,
    started_unix_ns: U64,
    started_boot_ns: U64,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRecord {
    start_ns: U64,
    offset_bytes: U64,
    length_bytes: U64,
    kind: u8,
    reserved: u8,
    duration_ns: [u8; 6],
}

const _: () = {
    assert!(size_of::<RawHeader>() == HEADER_LEN);
    assert!(size_of::<RawRecord>() == RECORD_LEN);
    assert!(offset_of!(RawHeader, uuid) == 16);
    assert!(offset_of!(RawHeader, started_boot_ns) == 56);
    assert!(offset_of!(RawRecord, kind) == 24);
    assert!(offset_of!(RawRecord, duration_ns) == 26);
};

/// The header's layout as `(name, offset, length)` in bytes: what `FORMAT.md` is tested against.
#[must_use]
pub fn header_layout() -> Vec<(&'static str, usize, usize)> {
    vec![
        ("magic", offset_of!(RawHeader, magic), 8),
        ("version", offset_of!(RawHeader, version), 4),
        ("record_bytes", offset_of!(RawHeader, record_bytes), 4),
        ("uuid", offset_of!(RawHeader, uuid), 16),
        ("data_offset_bytes", offset_of!(RawHeader, data_offset_bytes), 8),
        ("segment_bytes", offset_of!(RawHeader, segment_bytes), 8),
        ("started_unix_ns", offset_of!(RawHeader, started_unix_ns), 8),
        ("started_boot_ns", offset_of!(RawHeader, started_boot_ns), 8),
    ]
}

/// The layout of a record, as for [`header_layout`].
#[must_use]
pub fn record_layout() -> Vec<(&'static str, usize, usize)> {
    vec![
        ("start_ns", offset_of!(RawRecord, start_ns), 8),
        ("offset_bytes", offset_of!(RawRecord, offset_bytes), 8),
        ("length_bytes", offset_of!(RawRecord, length_bytes), 8),
        ("kind", offset_of!(RawRecord, kind), 1),
        ("reserved", offset_of!(RawRecord, reserved), 1),
        ("duration_ns", offset_of!(RawRecord, duration_ns), 6),
    ]
}

/// What was traced, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// UUID of the image.
    pub uuid: Uuid,
    /// Where its data section starts; segments are counted from there.
    pub data_offset_bytes: u64,
    /// The volume's segment, its erase block, or [`DEFAULT_SEGMENT_BYTES`].
    pub segment_bytes: u64,
    /// When the trace began, nanoseconds since 1970.
    pub started_unix_ns: u64,
    /// The same moment, nanoseconds since the machine started: a later process reckons from it.
    pub started_boot_ns: u64,
}

/// Why bytes are no trace file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// Fewer than [`HEADER_LEN`] bytes.
    TooShort(usize),
    /// The first 8 bytes are not [`MAGIC`].
    BadMagic,
    /// A version that this code does not know.
    UnknownVersion(u32),
    /// A number that no trace file has there; its name.
    Impossible(&'static str),
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderError::TooShort(bytes) => {
                write!(f, "{bytes} bytes, less than the header of a trace file ({HEADER_LEN})")
            }
            HeaderError::BadMagic => write!(f, "not a trace file (other bytes at its start)"),
            HeaderError::UnknownVersion(version) => write!(
                f,
                "a trace file of version {version}, which this program does not know (it knows \
                 {VERSION})"
            ),
            HeaderError::Impossible(name) => {
                write!(f, "a damaged trace file: its header has an impossible {name}")
            }
        }
    }
}

impl std::error::Error for HeaderError {}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let raw = RawHeader {
            magic: MAGIC,
            version: VERSION.into(),
            record_bytes: (RECORD_LEN as u32).into(),
            uuid: *self.uuid.as_bytes(),
            data_offset_bytes: self.data_offset_bytes.into(),
            segment_bytes: self.segment_bytes.into(),
            started_unix_ns: self.started_unix_ns.into(),
            started_boot_ns: self.started_boot_ns.into(),
        };
        zerocopy::transmute!(raw)
    }

    /// The header that `bytes` start with.
    ///
    /// # Errors
    /// Why there is none.
    pub fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        let raw = match RawHeader::read_from_prefix(bytes) {
            Ok((raw, _)) => raw,
            // What is there of it can already be wrong, and says more.
            Err(_) if !bytes.starts_with(&MAGIC) && bytes.len() >= MAGIC.len() => {
                return Err(HeaderError::BadMagic);
            }
            Err(_) => return Err(HeaderError::TooShort(bytes.len())),
        };
        if raw.magic != MAGIC {
            return Err(HeaderError::BadMagic);
        }
        if raw.version.get() != VERSION {
            return Err(HeaderError::UnknownVersion(raw.version.get()));
        }
        if raw.record_bytes.get() as usize != RECORD_LEN {
            return Err(HeaderError::Impossible("record_bytes"));
        }
        if raw.segment_bytes.get() < PAGE_BYTES {
            return Err(HeaderError::Impossible("segment_bytes"));
        }
        Ok(Header {
            uuid: Uuid::from_bytes(raw.uuid),
            data_offset_bytes: raw.data_offset_bytes.get(),
            segment_bytes: raw.segment_bytes.get(),
            started_unix_ns: raw.started_unix_ns.get(),
            started_boot_ns: raw.started_boot_ns.get(),
        })
    }
}

/// One operation, or one remark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it is about.
    pub kind: RecordKind,
    /// When it began, counted from the start of the trace.
    pub start_ns: u64,
    /// How long it took, [`MAX_DURATION_NS`] at most; 0 for remarks.
    pub duration_ns: u64,
    /// Where in the image; 0 for a flush, and for remarks.
    pub offset_bytes: u64,
    /// How many bytes; see [`RecordKind`] for remarks.
    pub length_bytes: u64,
}

impl Record {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let [duration_ns @ .., _, _] = self.duration_ns.min(MAX_DURATION_NS).to_le_bytes();
        let raw = RawRecord {
            start_ns: self.start_ns.into(),
            offset_bytes: self.offset_bytes.into(),
            length_bytes: self.length_bytes.into(),
            kind: self.kind as u8,
            reserved: 0,
            duration_ns,
        };
        zerocopy::transmute!(raw)
    }

    /// A record again. `None`: its kind is none that this code knows.
    #[must_use]
    pub fn decode(bytes: &[u8; RECORD_LEN]) -> Option<Record> {
        let raw: RawRecord = zerocopy::transmute!(*bytes);
        let mut duration_ns = [0; 8];
        duration_ns[..6].copy_from_slice(&raw.duration_ns);
        Some(Record {
            kind: RecordKind::from_number(raw.kind)?,
            start_ns: raw.start_ns.get(),
            duration_ns: u64::from_le_bytes(duration_ns),
            offset_bytes: raw.offset_bytes.get(),
            length_bytes: raw.length_bytes.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: Header = Header {
        uuid: Uuid::from_u128(7),
        data_offset_bytes: 1 << 20,
        segment_bytes: 2 << 20,
        started_unix_ns: 1_795_000_000_123_456_789,
        started_boot_ns: 42,
    };

    #[test]
    fn a_header_comes_back_as_it_was() {
        assert_eq!(Header::decode(&HEADER.encode()), Ok(HEADER));
    }

    #[test]
    fn what_is_no_header_says_why() {
        let whole = HEADER.encode();
        assert_eq!(Header::decode(&[]), Err(HeaderError::TooShort(0)));
        assert_eq!(Header::decode(&whole[..63]), Err(HeaderError::TooShort(63)));
        assert_eq!(Header::decode(b"text of some kind"), Err(HeaderError::BadMagic));
        let changed = |at: usize, byte: u8| {
            let mut bytes = whole;
            bytes[at] = byte;
            Header::decode(&bytes).unwrap_err()
        };
        assert_eq!(changed(6, b'\n'), HeaderError::BadMagic);
        assert_eq!(changed(8, 9), HeaderError::UnknownVersion(9));
        assert_eq!(changed(12, 33), HeaderError::Impossible("record_bytes"));
        assert_eq!(changed(42, 0), HeaderError::Impossible("segment_bytes"));
    }

    #[test]
    fn a_duration_that_is_too_long_says_the_longest() {
        let record = Record {
            kind: RecordKind::Flush,
            start_ns: 1,
            duration_ns: u64::MAX,
            offset_bytes: 0,
            length_bytes: 0,
        };
        assert_eq!(Record::decode(&record.encode()).unwrap().duration_ns, MAX_DURATION_NS);
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(Record::decode(&[0; RECORD_LEN]), None);
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was(
            kind in 0..RecordKind::ALL.len(),
            start_ns: u64,
            duration_ns in 0..=MAX_DURATION_NS,
            offset_bytes: u64,
            length_bytes: u64,
        ) {
            let kind = RecordKind::ALL[kind];
            let record = Record { kind, start_ns, duration_ns, offset_bytes, length_bytes };
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: [u8; HEADER_LEN]) {
            let _ = Header::decode(&bytes);
            let _ = Record::decode(bytes.first_chunk().unwrap());
        }
    }
}
