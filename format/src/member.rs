//! The images that a `tier` volume stores pages in, its *device members*: their kinds and options.
//!
//! A member has a superblock of its own, whose `volume_uuid` names the volume, and a data section
//! that means nothing after an unmount. The volume's superblock lists its members, hottest first.

use crate::PAGE_BYTES;
use crate::options::{OptionError, OptionSet, OptionSpec, OptionTable, ValueKind};
use crate::remote::{RemoteOptions, options as remote};
use crate::superblock::Superblock;
use crate::types::{LINEAR, LOG, REMOTE, SegmentDiscard};

/// Most device members of a volume: the tiers 1 to 8, below the daemon's memory, which is tier 0.
pub const MAX_DEVICE_MEMBERS: usize = 8;
/// Fewest segments of a member of kind [`MemberKind::Log`]: some are filled while others are
/// emptied.
pub const MIN_MEMBER_SEGMENTS: u64 = 8;
/// Least bytes of a member's data section, of whatever kind.
pub const MIN_MEMBER_BYTES: u64 = MIN_MEMBER_SEGMENTS * crate::log::MIN_SEGMENT_BYTES;

/// How a member stores what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// Compressed pages packed into segments, which are written whole.
    Log,
    /// A page, or what it was compressed to, per block of 4 KiB.
    Linear,
    /// On servers elsewhere: the image is a stub without a data section, which says where.
    Remote,
}

/// When a page that is read from a member goes back to the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promote {
    /// At the first read.
    Always,
    /// At the second read.
    Second,
    /// Never.
    Never,
}

/// What becomes of the copy on a member when its page goes back to the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It stays, so that the page need not be written again if it is not changed.
    Inclusive,
    /// It is given up, and its space with it.
    Exclusive,
}

/// The options of a member, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberOptions {
    /// How it stores pages.
    pub kind: MemberKind,
    /// `high=`
    pub high_percent: u32,
    /// `low=`; less than `high_percent`.
    pub low_percent: u32,
    /// `promote=`
    pub promote: Promote,
    /// `keep=`
    pub keep: Keep,
    /// `rate=`, bytes a second; `None`: as fast as it goes.
    pub rate_bytes: Option<u64>,
    /// `incompressible=`: it takes pages that do not get smaller.
    pub incompressible: bool,
    /// `segment=`, of kind `log` and of a log on an NBD export; `None`: chosen at format time.
    pub segment_bytes: Option<u64>,
    /// `discard=`
    pub discard: SegmentDiscard,
    /// Where it is; of kind `remote`, and of no other.
    pub remote: Option<RemoteOptions>,
}

/// Options of every member.
const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "high",
        kind: ValueKind::Integer { min: 1, max: 100 },
        default: "90",
        per_mount: true,
        help: "per cent of it in use above which its coldest pages are moved to the tier below",
    },
    OptionSpec {
        key: "low",
        kind: ValueKind::Integer { min: 1, max: 100 },
        default: "80",
        per_mount: true,
        help: "per cent of it in use at which that ends; below high",
    },
    OptionSpec {
        key: "promote",
        kind: ValueKind::Choice(&["always", "second", "never"]),
        default: "second",
        per_mount: true,
        help: "when a page that is read here goes back to the top: at the first read, at the \
               second, or never",
    },
    OptionSpec {
        key: "keep",
        kind: ValueKind::Choice(&["inclusive", "exclusive"]),
        default: "exclusive",
        per_mount: true,
        help: "whether the copy here stays when its page goes back to the top: inclusive saves \
               writing it again, exclusive saves space",
    },
    OptionSpec {
        key: "rate",
        kind: ValueKind::SizeOrAuto { min: 64 << 10, max: 1 << 40 },
        default: "auto",
        per_mount: true,
        help: "bytes a second that are moved into it at most; auto: no limit",
    },
    OptionSpec {
        key: "incompressible",
        kind: ValueKind::Choice(&["take", "skip"]),
        default: "take",
        per_mount: true,
        help: "what becomes of pages that do not get smaller: it takes them, or they go to the \
               next tier below",
    },
    OptionSpec {
        key: "discard",
        kind: ValueKind::Choice(&["auto", "on", "off"]),
        default: "auto",
        per_mount: true,
        help: "discard freed space on the device; auto: on a block device, not in a file, whose \
               space would have to be allocated again",
    },
];

/// What only kind `log` has.
const LOG_OPTIONS: &[OptionSpec] = &[OptionSpec {
    key: "segment",
    kind: ValueKind::SizeOrAuto { min: 64 << 10, max: 64 << 20 },
    default: "auto",
    per_mount: false,
    help: "bytes that are written in sequence and erased together, a power of two; auto: the \
           device's erase block or optimal I/O size, 2 MiB and more, less in a small image",
}];

/// What only kind `remote` has.
const REMOTE_OPTIONS: &[OptionSpec] = &[
    remote::URL,
    remote::CLUSTER,
    remote::AUTH,
    remote::CONNECTIONS,
    remote::DEADLINE,
    remote::REPLICAS,
    remote::LAYOUT,
    remote::CAPACITY,
];

impl MemberKind {
    /// Every kind.
    pub const ALL: [MemberKind; 3] = [MemberKind::Log, MemberKind::Linear, MemberKind::Remote];

    /// The name in the member's superblock, and before the colon in `--member`.
    #[must_use]
    pub fn type_name(self) -> &'static str {
        match self {
            MemberKind::Log => LOG.name,
            MemberKind::Linear => LINEAR.name,
            MemberKind::Remote => REMOTE.name,
        }
    }

    /// Its images have no data section: its pages live elsewhere.
    #[must_use]
    pub fn is_ghost(self) -> bool {
        self == MemberKind::Remote
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_type_name(name: &str) -> Option<MemberKind> {
        MemberKind::ALL.into_iter().find(|kind| kind.type_name() == name)
    }

    /// The kind of the member that `superblock` describes; `None` if it describes none, or one of a
    /// kind that is not known.
    #[must_use]
    pub fn of(superblock: &Superblock) -> Option<MemberKind> {
        MemberKind::from_type_name(&superblock.type_name).filter(|_| superblock.is_member())
    }

    /// The declarations of its options.
    #[must_use]
    pub fn table(self) -> OptionTable {
        let own: [&'static [OptionSpec]; 2] = match self {
            MemberKind::Log => [LOG_OPTIONS, &[]],
            MemberKind::Linear => [&[], &[]],
            MemberKind::Remote => [LOG_OPTIONS, REMOTE_OPTIONS],
        };
        OptionTable::new(self.type_name(), true, [OPTIONS, own[0], own[1]])
    }
}

impl MemberOptions {
    /// Parses the option text of a member's superblock (or of `--member`) into typed values.
    ///
    /// # Errors
    /// An unknown key, a key given twice, a value that the key does not take, or `low` not below
    /// `high`.
    pub fn parse(kind: MemberKind, text: &str) -> Result<MemberOptions, OptionError> {
        typed(kind, &OptionSet::parse_by(kind.table(), text)?)
    }

    /// The option text of a member, with `changes` put over it: for `swapfs tier set`.
    ///
    /// # Errors
    /// As for [`MemberOptions::parse`], and for `segment`, which is fixed at format time.
    pub fn merged(kind: MemberKind, old_text: &str, changes: &str) -> Result<String, OptionError> {
        let old = OptionSet::parse_by(kind.table(), old_text)?;
        let merged = old.overridden(&OptionSet::parse_by(kind.table(), changes)?)?;
        typed(kind, &merged).map(|_| merged.text())
    }
}

/// Bytes that pages may take on the member that `superblock` describes: its data section, or of a
/// stub what it says of the servers elsewhere.
#[must_use]
pub fn capacity_bytes(superblock: &Superblock) -> u64 {
    match superblock.is_ghost() {
        true => superblock.slot_count * PAGE_BYTES,
        false => superblock.data_bytes,
    }
}

fn typed(kind: MemberKind, set: &OptionSet) -> Result<MemberOptions, OptionError> {
    let (high_percent, low_percent) = set.high_and_low()?;
    Ok(MemberOptions {
        kind,
        high_percent,
        low_percent,
        promote: match set.choice("promote") {
            "always" => Promote::Always,
            "never" => Promote::Never,
            _ => Promote::Second,
        },
        keep: match set.choice("keep") {
            "inclusive" => Keep::Inclusive,
            _ => Keep::Exclusive,
        },
        rate_bytes: set.integer("rate"),
        incompressible: set.choice("incompressible") == "take",
        segment_bytes: match kind {
            MemberKind::Log | MemberKind::Remote => set.integer("segment"),
            MemberKind::Linear => None,
        },
        discard: SegmentDiscard::of(set),
        remote: match kind {
            MemberKind::Remote => Some(RemoteOptions::of(set)?),
            MemberKind::Log | MemberKind::Linear => None,
        },
    })
}

#[cfg(test)]
mod tests;
