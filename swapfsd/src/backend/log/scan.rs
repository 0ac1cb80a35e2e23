//! Reading a log from its device: the area that it lies in, and the parts of a segment.
//!
//! What a mount after a crash, garbage collection, `fsck.swapfs` and `swapfs inspect` have in
//! common. Nothing here believes anything that a checksum does not cover.

use super::super::device::BlockDevice;
use crate::codec::{self, Encoding};
use swapfs_format::log::{
    self, Content, MAX_PART_BYTES, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, MIN_SEGMENTS,
    OBJECT_HEADER_LEN, Owner, PartError, PartHeader, Record,
};
use swapfs_format::superblock::Superblock;
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

/// What a slot table entry can address.
const MAX_DATA_BYTES: u64 = 4 << 40;
/// What is read of a part before its length is known: header and records of most parts.
const FIRST_READ_BYTES: usize = 32 << 10;

/// Where in an image the log lies, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogArea {
    /// First byte of the data section.
    pub data_offset_bytes: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments, with the first one, which has the anchors.
    pub segment_count: u32,
    /// What every part of it names.
    pub owner: Owner,
}

impl LogArea {
    /// The area that a superblock of type `log` describes.
    ///
    /// # Errors
    /// In words, why there can be none.
    pub fn of(superblock: &Superblock) -> Result<LogArea, String> {
        let segment_bytes = u64::from(superblock.erase_block_bytes);
        if !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&segment_bytes) {
            return Err(format!(
                "its erase block, which is the segment, has {segment_bytes} bytes: type 'log' \
                 takes 64 KiB to 64 MiB"
            ));
        }
        let segment_count = superblock.data_bytes / segment_bytes;
        let Some(segment_count) =
            u32::try_from(segment_count).ok().filter(|&count| u64::from(count) >= MIN_SEGMENTS)
        else {
            return Err(format!(
                "its data section has {segment_count} segments: type 'log' takes \
                 {MIN_SEGMENTS} and more"
            ));
        };
        if superblock.data_bytes > MAX_DATA_BYTES {
            return Err(
                "its data section is larger than 4 TiB, which type 'log' can't address".to_owned()
            );
        }
        Ok(LogArea {
            data_offset_bytes: superblock.data_offset_bytes,
            segment_bytes,
            segment_count,
            owner: Owner { uuid: superblock.uuid, created_unix_s: superblock.created_unix_s },
        })
    }

    /// Where in the image a byte of a segment lies.
    #[must_use]
    pub fn offset_of(&self, segment: u32, offset_bytes: u64) -> u64 {
        self.data_offset_bytes + u64::from(segment) * self.segment_bytes + offset_bytes
    }

    /// The numbers of the segments that hold parts.
    #[must_use]
    pub fn segments(&self) -> std::ops::Range<u32> {
        1..self.segment_count
    }
}

/// How the parts of a segment end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentEnd {
    /// Parts that there are.
    pub parts: u32,
    /// Where the last one ends.
    pub end_bytes: u32,
    /// What stands there.
    pub why: Ending,
}

/// What stands behind the last part of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing more fits.
    Full,
    /// No part, for that reason.
    NoPart(PartError),
    /// A part of an older filling.
    OlderFilling,
}

/// The header of the part that stands at a place of a segment, if one does; `buffer`, which is as
/// for [`for_each_part`], then starts with its bytes, its records' at least.
///
/// # Errors
/// The errno of a read that failed.
pub fn part_at(
    device: &dyn BlockDevice,
    area: &LogArea,
    segment: u32,
    offset_bytes: u32,
    buffer: &mut [u8],
) -> Result<Result<PartHeader, PartError>, i32> {
    let rest = (area.segment_bytes - u64::from(offset_bytes)).min(MAX_PART_BYTES as u64) as usize;
    let mut wanted = FIRST_READ_BYTES;
    loop {
        let bytes = &mut buffer[..wanted.next_multiple_of(PAGE_LEN).min(rest)];
        device.read_at(bytes, area.offset_of(segment, u64::from(offset_bytes)))?;
        match PartHeader::decode(bytes, &area.owner, segment, offset_bytes, area.segment_bytes) {
            Err(PartError::Short(needed)) if needed > bytes.len() && needed <= rest => {
                wanted = needed;
            }
            found => return Ok(found),
        }
    }
}

/// Calls `visit` with each part of the segment's last filling, in order: its header, and the bytes
/// of header and records, for [`log::records`]. `buffer` is page-aligned and has room for
/// [`MAX_PART_BYTES`].
///
/// # Errors
/// The errno of a read that failed.
pub fn for_each_part(
    device: &dyn BlockDevice,
    area: &LogArea,
    segment: u32,
    buffer: &mut [u8],
    mut visit: impl FnMut(&PartHeader, &[u8]),
) -> Result<SegmentEnd, i32> {
    let mut filling = None;
    let mut end = SegmentEnd { parts: 0, end_bytes: 0, why: Ending::Full };
    while u64::from(end.end_bytes) + PAGE_BYTES <= area.segment_bytes {
        let found = part_at(device, area, segment, end.end_bytes, buffer)?;
        let header = match found {
            Ok(header) => header,
            Err(error) => {
                end.why = Ending::NoPart(error);
                return Ok(end);
            }
        };
        if *filling.get_or_insert(header.filling) != header.filling || header.part_bytes == 0 {
            end.why = Ending::OlderFilling;
            return Ok(end);
        }
        visit(&header, &buffer[..header.summary_bytes()]);
        end.parts += 1;
        end.end_bytes += header.part_bytes;
    }
    Ok(end)
}

/// Where an object lies that a record of `header`'s part names, as a range of the part; `None` if
/// that is not inside its payload.
#[must_use]
pub fn object_range(header: &PartHeader, offset: u32, len: u16) -> Option<std::ops::Range<usize>> {
    let start = offset.checked_sub(header.offset_bytes)? as usize;
    let end = start + OBJECT_HEADER_LEN + usize::from(len);
    let payload = header.payload_offset_bytes as usize;
    let inside = start >= payload && end <= payload + header.payload_bytes as usize;
    inside.then_some(start..end)
}

/// The encoded bytes of an object, `stored` with its checksum in front, if they are what the
/// record says.
#[must_use]
pub fn checked_object(stored: &[u8], encoding: u8, checksum: u32) -> Option<(Encoding, &[u8])> {
    let encoding = Encoding::from_number(encoding)?;
    let (front, bytes) = stored.split_first_chunk::<OBJECT_HEADER_LEN>()?;
    let right =
        u32::from_le_bytes(*front) == checksum && codec::checksum(encoding, bytes) == checksum;
    right.then_some((encoding, bytes))
}

/// Reads a whole part into `buffer`, which has room for [`MAX_PART_BYTES`].
///
/// # Errors
/// The errno of a read that failed.
pub fn read_part<'a>(
    device: &dyn BlockDevice,
    area: &LogArea,
    header: &PartHeader,
    buffer: &'a mut [u8],
) -> Result<&'a [u8], i32> {
    let bytes = &mut buffer[..header.part_bytes as usize];
    let offset = area.offset_of(header.segment, u64::from(header.offset_bytes));
    device.read_at(bytes, offset)?;
    Ok(bytes)
}

/// Calls `visit` with each record of a whole part, and whether its object is there and right.
pub fn for_each_checked(
    part: &[u8],
    header: &PartHeader,
    mut visit: impl FnMut(u32, &Record, bool),
) {
    for (index, record) in (0..).zip(log::records(part, header)) {
        let Some(record) = record else { continue };
        let right = match record.content {
            Content::Object { encoding, offset, len, checksum } => {
                object_range(header, offset, len)
                    .and_then(|range| checked_object(&part[range], encoding, checksum))
                    .is_some()
            }
            Content::SameFilled(_) | Content::Discarded(_) => true,
        };
        visit(index, &record, right);
    }
}
