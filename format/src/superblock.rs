//! The superblock: the first 4 KiB of an image, with a backup in its last page.
//!
//! Invariants of a superblock that checks:
//! * its magic, version and CRC-32 are right, and all reserved bytes are zero;
//! * every part that it places lies inside `image_bytes`, and no two parts overlap;
//! * the type name, label, options, tool version and path hints are UTF-8 padded with zeros;
//! * bytes 4086 to 4095 can never hold the signature of a swap area: the CRC's own place is the
//!   last four, and the six before it are reserved, so that `swapon IMAGE` fails.
//!
//! `FORMAT.md` has the layout byte by byte. Both copies are the same.

use crate::geometry::{Geometry, MAX_ERASE_BLOCK_BYTES};
use crate::swap_header::{LABEL_LEN, MAX_SLOT_COUNT, MIN_SLOT_COUNT, SwapHeader};
use crate::{PAGE_BYTES, PAGE_LEN, size, types};
use std::fmt;
use std::mem::{offset_of, size_of};
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of an image. The line ends show a copy that went through a text conversion.
pub const MAGIC: [u8; 8] = *b"swapfs\r\n";
/// The one version of this layout.
pub const VERSION: u32 = 1;
/// Where the primary copy lies.
pub const PRIMARY_OFFSET_BYTES: u64 = 0;
/// Longest name of a back-end type, in bytes.
pub const TYPE_NAME_LEN: usize = 16;
/// Longest option text, in bytes.
pub const OPTIONS_LEN: usize = 1024;
/// Longest tool version text, in bytes.
pub const TOOL_VERSION_LEN: usize = 32;
/// Most members of a volume.
pub const MAX_MEMBERS: usize = 16;
/// Longest path hint of a member, in bytes.
pub const PATH_HINT_LEN: usize = 96;

/// Compatible features that this code knows: unknown ones may be ignored.
pub const KNOWN_COMPATIBLE: u64 = 0;
/// Features that allow reading (fsck, inspect) but no mount unless known.
pub const KNOWN_READ_ONLY_COMPATIBLE: u64 = 0;
/// Features without which nothing in the image may be touched or believed.
pub const KNOWN_INCOMPATIBLE: u64 = 0;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMember {
    uuid: [u8; 16],
    size_bytes: U64,
    order: U32,
    reserved: [u8; 4],
    path_hint: [u8; PATH_HINT_LEN],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 8],
    version: U32,
    header_bytes: U32,
    features_compatible: U64,
    features_read_only_compatible: U64,
    features_incompatible: U64,
    uuid: [u8; 16],
    label: [u8; LABEL_LEN],
    type_name: [u8; TYPE_NAME_LEN],
    page_bytes: U32,
    erase_block_bytes: U32,
    slot_count: U64,
    image_bytes: U64,
    data_offset_bytes: U64,
    data_bytes: U64,
    backup_offset_bytes: U64,
    created_unix_s: U64,
    generation: U64,
    volume_uuid: [u8; 16],
    member_order: U32,
    member_count: U32,
    tool_version: [u8; TOOL_VERSION_LEN],
    reserved0: [u8; 304],
    options: [u8; OPTIONS_LEN],
    members: [RawMember; MAX_MEMBERS],
    reserved1: [u8; 508],
    crc32: U32,
}

const _: () = {
    assert!(size_of::<RawMember>() == 128);
    assert!(size_of::<RawSuperblock>() == PAGE_LEN);
    assert!(offset_of!(RawSuperblock, features_compatible) == 16);
    assert!(offset_of!(RawSuperblock, uuid) == 40);
    assert!(offset_of!(RawSuperblock, page_bytes) == 88);
    assert!(offset_of!(RawSuperblock, slot_count) == 96);
    assert!(offset_of!(RawSuperblock, created_unix_s) == 136);
    assert!(offset_of!(RawSuperblock, volume_uuid) == 152);
    assert!(offset_of!(RawSuperblock, tool_version) == 176);
    assert!(offset_of!(RawSuperblock, options) == 512);
    assert!(offset_of!(RawSuperblock, members) == 1536);
    assert!(offset_of!(RawSuperblock, reserved1) == 3584);
    assert!(offset_of!(RawSuperblock, crc32) == 4092);
};

/// The layout as `(name, offset, length)` in bytes: what `FORMAT.md` is tested against.
#[must_use]
pub fn layout() -> Vec<(&'static str, usize, usize)> {
    macro_rules! fields {
        ($type:ty: $($name:ident),+) => {{
            let mut rows = vec![$((stringify!($name), offset_of!($type, $name))),+];
            rows.push(("", size_of::<$type>()));
            rows.windows(2).map(|pair| (pair[0].0, pair[0].1, pair[1].1 - pair[0].1)).collect::<Vec<_>>()
        }};
    }
    fields!(RawSuperblock: magic, version, header_bytes, features_compatible,
        features_read_only_compatible, features_incompatible, uuid, label, type_name, page_bytes,
        erase_block_bytes, slot_count, image_bytes, data_offset_bytes, data_bytes,
        backup_offset_bytes, created_unix_s, generation, volume_uuid, member_order, member_count,
        tool_version, reserved0, options, members, reserved1, crc32)
}

/// The layout of one entry of the member table, as for [`layout`].
#[must_use]
pub fn member_layout() -> Vec<(&'static str, usize, usize)> {
    vec![
        ("uuid", offset_of!(RawMember, uuid), 16),
        ("size_bytes", offset_of!(RawMember, size_bytes), 8),
        ("order", offset_of!(RawMember, order), 4),
        ("reserved", offset_of!(RawMember, reserved), 4),
        ("path_hint", offset_of!(RawMember, path_hint), PATH_HINT_LEN),
    ]
}

/// A member image of a volume over several images.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Member {
    /// UUID of the member's own superblock; what it is found by.
    pub uuid: Uuid,
    /// Bytes of the member's data section.
    pub size_bytes: u64,
    /// Place in the order of tiers, hottest first, from 1: 0 is the memory of the daemon.
    pub order: u32,
    /// Where it was when the volume was formatted.
    pub path_hint: String,
}

/// A superblock in memory.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Superblock {
    /// Feature bits, compatible.
    pub features_compatible: u64,
    /// Feature bits, read-only compatible.
    pub features_read_only_compatible: u64,
    /// Feature bits, incompatible.
    pub features_incompatible: u64,
    /// The image's UUID, also in the swap header.
    pub uuid: Uuid,
    /// The label, at most 16 bytes, also in the swap header.
    pub label: String,
    /// Name of the back-end type.
    pub type_name: String,
    /// Erase block that the data section is aligned to; a power of two.
    pub erase_block_bytes: u32,
    /// Slots in the volume, page 0 counted.
    pub slot_count: u64,
    /// Bytes that the image takes.
    pub image_bytes: u64,
    /// First byte of the data section; 0 for a ghost image.
    pub data_offset_bytes: u64,
    /// Length of the data section; 0 for a ghost image.
    pub data_bytes: u64,
    /// Where the backup copy lies.
    pub backup_offset_bytes: u64,
    /// Creation time, seconds since 1970.
    pub created_unix_s: u64,
    /// Counts the times that the superblock was written.
    pub generation: u64,
    /// UUID of the volume that the image belongs to: its own, or a `tier` volume's.
    pub volume_uuid: Uuid,
    /// The image's place among that volume's tiers, from 1; 0 if it belongs to none.
    pub member_order: u32,
    /// Which tool wrote it.
    pub tool_version: String,
    /// Options of the back end, `key=value,...`.
    pub options: String,
    /// Members, for a volume over several images.
    pub members: Vec<Member>,
}

/// Why 4 KiB are no superblock that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer than 4096 bytes.
    TooShort(usize),
    /// The device could not read it: its errno.
    Unreadable(i32),
    /// The first 8 bytes are not [`MAGIC`].
    BadMagic,
    /// A version that this code does not know.
    UnknownVersion(u32),
    /// The CRC-32 does not match the bytes.
    BadChecksum {
        /// What the superblock says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// Incompatible feature bits that this code does not know.
    UnknownIncompatible(u64),
    /// A field has a value that cannot be.
    BadField {
        /// Name of the field in `FORMAT.md`.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::TooShort(len) => {
                write!(f, "only {len} bytes long: a superblock has {PAGE_LEN}")
            }
            DecodeError::Unreadable(errno) => {
                write!(f, "the superblock can't be read (errno {errno})")
            }
            DecodeError::BadMagic => write!(f, "no swapfs superblock (wrong magic)"),
            DecodeError::UnknownVersion(version) => write!(
                f,
                "superblock version {version}: this program knows version {VERSION}: use a newer one"
            ),
            DecodeError::BadChecksum { stored, computed } => write!(
                f,
                "superblock checksum is wrong (stored {stored:08x}, computed {computed:08x})"
            ),
            DecodeError::UnknownIncompatible(bits) => write!(
                f,
                "superblock has incompatible features {bits:#x} that this program does not know: \
                 use a newer one"
            ),
            DecodeError::BadField { field, why } => write!(f, "superblock field {field}: {why}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Why a superblock cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeError {
    /// Name of the field in `FORMAT.md`.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

impl std::error::Error for EncodeError {}

impl Superblock {
    /// A new superblock, generation 1, for a volume laid out as `geometry`.
    #[must_use]
    pub fn new(type_name: &str, geometry: &Geometry, uuid: Uuid) -> Superblock {
        Superblock {
            features_compatible: 0,
            features_read_only_compatible: 0,
            features_incompatible: 0,
            uuid,
            label: String::new(),
            type_name: type_name.to_owned(),
            erase_block_bytes: PAGE_BYTES as u32,
            slot_count: geometry.slot_count,
            image_bytes: geometry.image_bytes,
            data_offset_bytes: geometry.data_offset_bytes,
            data_bytes: geometry.data_bytes,
            backup_offset_bytes: geometry.backup_offset_bytes,
            created_unix_s: 0,
            generation: 1,
            volume_uuid: uuid,
            member_order: 0,
            tool_version: format!("swapfs {}", env!("CARGO_PKG_VERSION")),
            options: String::new(),
            members: Vec::new(),
        }
    }

    /// Reads a superblock; everything that can be checked without the device is checked.
    ///
    /// # Errors
    /// The first thing found wrong, in the order magic, version, checksum, features, fields.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, DecodeError> {
        let (raw, _) = RawSuperblock::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::TooShort(bytes.len()))?;
        if raw.magic != MAGIC {
            return Err(DecodeError::BadMagic);
        }
        let computed = checksum(raw);
        if raw.version.get() != VERSION {
            // With the version that we know, is the checksum right? Then a bit has flipped in
            // the version, and no newer program wrote this.
            let known = RawSuperblock { version: VERSION.into(), ..*raw };
            let stored = raw.crc32.get();
            return Err(match checksum(&known) == stored {
                true => DecodeError::BadChecksum { stored, computed },
                false => DecodeError::UnknownVersion(raw.version.get()),
            });
        }
        if raw.crc32.get() != computed {
            return Err(DecodeError::BadChecksum { stored: raw.crc32.get(), computed });
        }
        let unknown = raw.features_incompatible.get() & !KNOWN_INCOMPATIBLE;
        if unknown != 0 {
            return Err(DecodeError::UnknownIncompatible(unknown));
        }
        let superblock = fields_of(raw)?;
        superblock
            .check()
            .map_err(|EncodeError { field, why }| DecodeError::BadField { field, why })?;
        Ok(superblock)
    }

    /// The superblock as it stands on disk.
    ///
    /// # Errors
    /// If a field has a value that [`Superblock::decode`] would refuse.
    pub fn encode(&self) -> Result<[u8; PAGE_LEN], EncodeError> {
        self.check()?;
        let mut raw = RawSuperblock {
            magic: MAGIC,
            version: VERSION.into(),
            header_bytes: (PAGE_LEN as u32).into(),
            features_compatible: self.features_compatible.into(),
            features_read_only_compatible: self.features_read_only_compatible.into(),
            features_incompatible: self.features_incompatible.into(),
            uuid: self.uuid.into_bytes(),
            label: padded("label", &self.label)?,
            type_name: padded("type_name", &self.type_name)?,
            page_bytes: (PAGE_BYTES as u32).into(),
            erase_block_bytes: self.erase_block_bytes.into(),
            slot_count: self.slot_count.into(),
            image_bytes: self.image_bytes.into(),
            data_offset_bytes: self.data_offset_bytes.into(),
            data_bytes: self.data_bytes.into(),
            backup_offset_bytes: self.backup_offset_bytes.into(),
            created_unix_s: self.created_unix_s.into(),
            generation: self.generation.into(),
            volume_uuid: self.volume_uuid.into_bytes(),
            member_order: self.member_order.into(),
            member_count: (self.members.len() as u32).into(),
            tool_version: padded("tool_version", &self.tool_version)?,
            reserved0: [0; 304],
            options: padded("options", &self.options)?,
            members: [EMPTY_MEMBER; MAX_MEMBERS],
            reserved1: [0; 508],
            crc32: 0.into(),
        };
        for (raw_member, member) in raw.members.iter_mut().zip(&self.members) {
            *raw_member = RawMember {
                uuid: member.uuid.into_bytes(),
                size_bytes: member.size_bytes.into(),
                order: member.order.into(),
                reserved: [0; 4],
                path_hint: padded("members.path_hint", &member.path_hint)?,
            };
        }
        raw.crc32 = checksum(&raw).into();
        Ok(zerocopy::transmute!(raw))
    }

    /// The back-end type, if this program knows it.
    #[must_use]
    pub fn type_spec(&self) -> Option<&'static types::TypeSpec> {
        types::find(&self.type_name)
    }

    /// No data section: pages live outside the image.
    #[must_use]
    pub fn is_ghost(&self) -> bool {
        self.data_bytes == 0
    }

    /// The image belongs to a volume over several images, and is none itself.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.volume_uuid != self.uuid
    }

    /// Bytes of the volume: what `swapon` sees.
    #[must_use]
    pub fn volume_bytes(&self) -> u64 {
        self.slot_count * PAGE_BYTES
    }

    /// The header that belongs into page 0 of the volume.
    #[must_use]
    pub fn swap_header(&self) -> SwapHeader {
        SwapHeader { slot_count: self.slot_count, uuid: self.uuid, label: self.label.clone() }
    }

    /// The invariants at the head of this module that one superblock can show.
    fn check(&self) -> Result<(), EncodeError> {
        let bad = |field, why| Err(EncodeError { field, why });
        if !(MIN_SLOT_COUNT..=MAX_SLOT_COUNT).contains(&self.slot_count) {
            let why =
                format!("{} is not from {MIN_SLOT_COUNT} to {MAX_SLOT_COUNT}", self.slot_count);
            return bad("slot_count", why);
        }
        let erase_block = u64::from(self.erase_block_bytes);
        let possible = PAGE_BYTES..=MAX_ERASE_BLOCK_BYTES;
        if !erase_block.is_power_of_two() || !possible.contains(&erase_block) {
            let why = format!("{erase_block} is no power of two from 4096 to 1 GiB");
            return bad("erase_block_bytes", why);
        }
        if !self.data_offset_bytes.is_multiple_of(erase_block) {
            let why = format!("{} is not aligned to the erase block", self.data_offset_bytes);
            return bad("data_offset_bytes", why);
        }
        for (field, value) in [
            ("image_bytes", self.image_bytes),
            ("data_offset_bytes", self.data_offset_bytes),
            ("data_bytes", self.data_bytes),
            ("backup_offset_bytes", self.backup_offset_bytes),
        ] {
            if !value.is_multiple_of(PAGE_BYTES) {
                return bad(field, format!("{value} is no multiple of {PAGE_BYTES}"));
            }
        }
        let backup_end = self.backup_offset_bytes.checked_add(PAGE_BYTES);
        if self.backup_offset_bytes == 0 || backup_end.is_none_or(|end| end > self.image_bytes) {
            let why = format!(
                "{} is not inside the image of {}",
                self.backup_offset_bytes,
                size::human(self.image_bytes)
            );
            return bad("backup_offset_bytes", why);
        }
        let data_end = self.data_offset_bytes.checked_add(self.data_bytes);
        let misplaced = self.data_bytes > 0 && self.data_offset_bytes < PAGE_BYTES;
        if misplaced || data_end.is_none_or(|end| end > self.backup_offset_bytes) {
            let why = format!(
                "{} bytes from {} overlap a superblock",
                self.data_bytes, self.data_offset_bytes
            );
            return bad("data_bytes", why);
        }
        if self.type_name.is_empty() {
            return bad("type_name", "empty".to_owned());
        }
        if self.members.len() > MAX_MEMBERS {
            return bad("member_count", format!("{} is over {MAX_MEMBERS}", self.members.len()));
        }
        Ok(())
    }
}

const EMPTY_MEMBER: RawMember = RawMember {
    uuid: [0; 16],
    size_bytes: U64::ZERO,
    order: U32::ZERO,
    reserved: [0; 4],
    path_hint: [0; PATH_HINT_LEN],
};

/// CRC-32 of everything before the CRC's own place.
fn checksum(raw: &RawSuperblock) -> u32 {
    crc32fast::hash(&raw.as_bytes()[..offset_of!(RawSuperblock, crc32)])
}

fn fields_of(raw: &RawSuperblock) -> Result<Superblock, DecodeError> {
    let bad = |field, why: String| Err(DecodeError::BadField { field, why });
    if raw.header_bytes.get() as usize != PAGE_LEN {
        return bad("header_bytes", format!("{} is not {PAGE_LEN}", raw.header_bytes));
    }
    if u64::from(raw.page_bytes.get()) != PAGE_BYTES {
        return bad("page_bytes", format!("{} is not {PAGE_BYTES}", raw.page_bytes));
    }
    let member_count = raw.member_count.get() as usize;
    if member_count > MAX_MEMBERS {
        return bad("member_count", format!("{member_count} is over {MAX_MEMBERS}"));
    }
    let (used, unused) = raw.members.split_at(member_count);
    let reserved = raw.reserved0.iter().chain(&raw.reserved1);
    let reserved = reserved.chain(used.iter().flat_map(|member| &member.reserved));
    if reserved.chain(unused.as_bytes()).any(|&byte| byte != 0) {
        return bad("reserved", "not zero".to_owned());
    }
    let mut members = Vec::with_capacity(member_count);
    for member in &raw.members[..member_count] {
        members.push(Member {
            uuid: Uuid::from_bytes(member.uuid),
            size_bytes: member.size_bytes.get(),
            order: member.order.get(),
            path_hint: text("members.path_hint", &member.path_hint)?,
        });
    }
    Ok(Superblock {
        features_compatible: raw.features_compatible.get(),
        features_read_only_compatible: raw.features_read_only_compatible.get(),
        features_incompatible: raw.features_incompatible.get(),
        uuid: Uuid::from_bytes(raw.uuid),
        label: text("label", &raw.label)?,
        type_name: text("type_name", &raw.type_name)?,
        erase_block_bytes: raw.erase_block_bytes.get(),
        slot_count: raw.slot_count.get(),
        image_bytes: raw.image_bytes.get(),
        data_offset_bytes: raw.data_offset_bytes.get(),
        data_bytes: raw.data_bytes.get(),
        backup_offset_bytes: raw.backup_offset_bytes.get(),
        created_unix_s: raw.created_unix_s.get(),
        generation: raw.generation.get(),
        volume_uuid: Uuid::from_bytes(raw.volume_uuid),
        member_order: raw.member_order.get(),
        tool_version: text("tool_version", &raw.tool_version)?,
        options: text("options", &raw.options)?,
        members,
    })
}

/// UTF-8 without zeros, padded with zeros.
fn text(field: &'static str, bytes: &[u8]) -> Result<String, DecodeError> {
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let bad = |why: &str| DecodeError::BadField { field, why: why.to_owned() };
    if bytes[len..].iter().any(|&byte| byte != 0) {
        return Err(bad("bytes behind its end"));
    }
    let text = std::str::from_utf8(&bytes[..len]).map_err(|_| bad("not UTF-8"))?;
    Ok(text.to_owned())
}

fn padded<const LEN: usize>(field: &'static str, text: &str) -> Result<[u8; LEN], EncodeError> {
    let mut bytes = [0; LEN];
    if text.len() > LEN {
        let why = format!("'{text}' has {} bytes: at most {LEN} fit", text.len());
        return Err(EncodeError { field, why });
    }
    if text.contains('\0') {
        return Err(EncodeError { field, why: "has a zero byte".to_owned() });
    }
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests;
