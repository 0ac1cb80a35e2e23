//! The kernel's own header of a swap area: page 0 of every volume, never of an image.
//!
//! Layout: `union swap_header` in the kernel's `include/linux/swap.h`. The first 1024 bytes are
//! left for a boot loader and stay zero here.

use crate::{PAGE_BYTES, PAGE_LEN};
use uuid::Uuid;

/// Where the kernel looks for [`SIGNATURE`] in page 0.
pub const SIGNATURE_OFFSET: usize = PAGE_LEN - SIGNATURE.len();
/// What makes a page a version 1 swap header.
pub const SIGNATURE: &[u8; 10] = b"SWAPSPACE2";
/// Bytes of the label in the swap header, and so in the superblock.
pub const LABEL_LEN: usize = 16;
/// The largest volume that a swap header can describe: its last page is a 32-bit number.
pub const MAX_SLOT_COUNT: u64 = 1 << 32;
/// The smallest swap area that mkswap makes is 10 pages.
pub const MIN_SLOT_COUNT: u64 = 10;

const VERSION_OFFSET: usize = 1024;
const LAST_PAGE_OFFSET: usize = 1028;
/// The number of bad pages stands here, and stays 0.
const BAD_PAGE_COUNT_OFFSET: usize = 1032;
const UUID_OFFSET: usize = 1036;
const LABEL_OFFSET: usize = 1052;

/// The layout as `(name, offset, length)` in bytes: what `FORMAT.md` is tested against. What it
/// does not list is zero.
#[must_use]
pub fn layout() -> Vec<(&'static str, usize, usize)> {
    vec![
        ("version", VERSION_OFFSET, 4),
        ("last_page", LAST_PAGE_OFFSET, 4),
        ("bad_page_count", BAD_PAGE_COUNT_OFFSET, 4),
        ("uuid", UUID_OFFSET, 16),
        ("label", LABEL_OFFSET, LABEL_LEN),
        ("signature", SIGNATURE_OFFSET, SIGNATURE.len()),
    ]
}

/// What a swap header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapHeader {
    /// Pages in the area, page 0 counted: 10 to 2^32.
    pub slot_count: u64,
    /// The area's UUID.
    pub uuid: Uuid,
    /// The area's label, at most [`LABEL_LEN`] bytes.
    pub label: String,
}

impl SwapHeader {
    /// The header as page 0.
    ///
    /// # Panics
    /// If `slot_count` or `label` are out of the range given at the fields: a superblock that
    /// checks never holds such values.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE_LEN] {
        assert!((MIN_SLOT_COUNT..=MAX_SLOT_COUNT).contains(&self.slot_count));
        assert!(self.label.len() <= LABEL_LEN);
        let last_page = (self.slot_count - 1) as u32;
        let mut page = [0; PAGE_LEN];
        page[VERSION_OFFSET..][..4].copy_from_slice(&1u32.to_le_bytes());
        page[LAST_PAGE_OFFSET..][..4].copy_from_slice(&last_page.to_le_bytes());
        page[UUID_OFFSET..][..16].copy_from_slice(self.uuid.as_bytes());
        page[LABEL_OFFSET..][..self.label.len()].copy_from_slice(self.label.as_bytes());
        page[SIGNATURE_OFFSET..].copy_from_slice(SIGNATURE);
        page
    }

    /// Reads page 0. `None` if it is not a version 1 header; a label that is not UTF-8 is shown
    /// with replacement characters, as it is only for people.
    #[must_use]
    pub fn decode(page: &[u8; PAGE_LEN]) -> Option<SwapHeader> {
        if &page[SIGNATURE_OFFSET..] != SIGNATURE || read_u32(page, VERSION_OFFSET) != 1 {
            return None;
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&page[UUID_OFFSET..][..16]);
        let label = &page[LABEL_OFFSET..][..LABEL_LEN];
        let label_len = label.iter().position(|&byte| byte == 0).unwrap_or(LABEL_LEN);
        Some(SwapHeader {
            slot_count: u64::from(read_u32(page, LAST_PAGE_OFFSET)) + 1,
            uuid: Uuid::from_bytes(uuid),
            label: String::from_utf8_lossy(&label[..label_len]).into_owned(),
        })
    }

    /// Bytes of the area that this header describes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slot_count * PAGE_BYTES
    }
}

fn read_u32(page: &[u8; PAGE_LEN], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&page[offset..][..4]);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for (slot_count, label) in
            [(10, ""), (131_072, "swap"), (MAX_SLOT_COUNT, "sixteen bytes ok")]
        {
            let header = SwapHeader { slot_count, uuid: Uuid::new_v4(), label: label.to_owned() };
            assert_eq!(SwapHeader::decode(&header.encode()), Some(header));
        }
    }

    #[test]
    fn other_pages_are_no_header() {
        let header = SwapHeader { slot_count: 16, uuid: Uuid::nil(), label: String::new() };
        assert_eq!(SwapHeader::decode(&[0; PAGE_LEN]), None);
        let mut wrong_version = header.encode();
        wrong_version[1024] = 2;
        assert_eq!(SwapHeader::decode(&wrong_version), None);
        let mut hibernated = header.encode();
        hibernated[SIGNATURE_OFFSET..].copy_from_slice(b"S1SUSPEND\0");
        assert_eq!(SwapHeader::decode(&hibernated), None);
    }
}
