//! Where in an image the parts lie.
//!
//! ```text
//! | superblock | padding      | data section               | padding | backup superblock |
//! 0            4 KiB          data_offset                            image_bytes - 4 KiB
//! ```
//!
//! The backup is the image's last whole page, as far as can be from what overwrites the start
//! of a device by mistake. A ghost image is the two superblocks and nothing else.

use crate::PAGE_BYTES;
use crate::log::MIN_SEGMENTS;
use crate::member::{MIN_MEMBER_BYTES, MIN_MEMBER_SEGMENTS};
use crate::swap_header::{MAX_SLOT_COUNT, MIN_SLOT_COUNT};
use std::fmt;

/// The data section starts at a multiple of this, and of the erase block if that is larger.
pub const DATA_ALIGNMENT_BYTES: u64 = 1 << 20;
/// The largest erase block that a superblock may name.
pub const MAX_ERASE_BLOCK_BYTES: u64 = 1 << 30;

/// The parts of an image, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Slots in the volume, page 0 counted.
    pub slot_count: u64,
    /// First byte of the data section; 0 for a ghost image.
    pub data_offset_bytes: u64,
    /// Length of the data section; 0 for a ghost image.
    pub data_bytes: u64,
    /// Where the backup superblock lies.
    pub backup_offset_bytes: u64,
    /// What the image takes in all.
    pub image_bytes: u64,
}

/// Why no volume can be laid out as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GeometryError {
    /// The volume would have no page.
    ZeroSize,
    /// The size is no multiple of the page.
    NotWholePages(u64),
    /// Fewer pages than the kernel takes as a swap area.
    TooSmall(u64),
    /// More pages than a swap header can describe.
    TooLarge(u64),
    /// The erase block is no power of two, under a page or over 1 GiB.
    BadEraseBlock(u64),
    /// Less data than a member of a tier volume can work with.
    MemberTooSmall {
        /// Bytes of data that were asked for.
        have: u64,
        /// The least.
        need: u64,
    },
    /// The image has no room for a volume of that size.
    ImageTooSmall {
        /// Bytes that the image has.
        have: u64,
        /// Bytes that it would need.
        need: u64,
    },
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::size::human;
        match *self {
            GeometryError::ZeroSize => write!(f, "the size is 0: a volume needs at least 40 KiB"),
            GeometryError::NotWholePages(bytes) => write!(
                f,
                "{bytes} bytes is not a multiple of the page (4096 bytes): {} or {} would be",
                bytes / PAGE_BYTES * PAGE_BYTES,
                (bytes / PAGE_BYTES + 1) * PAGE_BYTES
            ),
            GeometryError::TooSmall(bytes) => write!(
                f,
                "{} is too small: the least is {MIN_SLOT_COUNT} pages (40 KiB), as for mkswap",
                human(bytes)
            ),
            GeometryError::TooLarge(bytes) => write!(
                f,
                "{} is too large: a swap header describes at most {}",
                human(bytes),
                human(MAX_SLOT_COUNT * PAGE_BYTES)
            ),
            GeometryError::BadEraseBlock(bytes) => write!(
                f,
                "an erase block of {bytes} bytes is not possible: it is a power of two from 4096 to 1 GiB"
            ),
            GeometryError::MemberTooSmall { have, need } => {
                write!(f, "{} is too small for a member: the least is {}", human(have), human(need))
            }
            GeometryError::ImageTooSmall { have, need } => write!(
                f,
                "the image has {} ({have} bytes), and {} ({need} bytes) are needed",
                human(have),
                human(need)
            ),
        }
    }
}

impl std::error::Error for GeometryError {}

fn check_volume_bytes(volume_bytes: u64) -> Result<u64, GeometryError> {
    if volume_bytes == 0 {
        return Err(GeometryError::ZeroSize);
    }
    if !volume_bytes.is_multiple_of(PAGE_BYTES) {
        return Err(GeometryError::NotWholePages(volume_bytes));
    }
    match volume_bytes / PAGE_BYTES {
        slots if slots < MIN_SLOT_COUNT => Err(GeometryError::TooSmall(volume_bytes)),
        slots if slots > MAX_SLOT_COUNT => Err(GeometryError::TooLarge(volume_bytes)),
        slots => Ok(slots),
    }
}

fn data_offset(erase_block_bytes: u64) -> Result<u64, GeometryError> {
    let possible = PAGE_BYTES..=MAX_ERASE_BLOCK_BYTES;
    if !erase_block_bytes.is_power_of_two() || !possible.contains(&erase_block_bytes) {
        return Err(GeometryError::BadEraseBlock(erase_block_bytes));
    }
    Ok(erase_block_bytes.max(DATA_ALIGNMENT_BYTES))
}

/// Fewest bytes of data of a member.
fn least_member(unit_bytes: u64) -> u64 {
    match unit_bytes {
        PAGE_BYTES => MIN_MEMBER_BYTES,
        _ => MIN_MEMBER_BYTES.max(MIN_MEMBER_SEGMENTS * unit_bytes),
    }
}

/// Most bytes of data of a member: whole units, and a place for each in `slot_count`.
fn largest_member(unit_bytes: u64) -> u64 {
    MAX_SLOT_COUNT * PAGE_BYTES / unit_bytes * unit_bytes
}

impl Geometry {
    /// A ghost image: both superblocks, and a promise of `volume_bytes`.
    ///
    /// # Errors
    /// If no swap area can have that size.
    pub fn ghost(volume_bytes: u64) -> Result<Geometry, GeometryError> {
        Ok(Geometry {
            slot_count: check_volume_bytes(volume_bytes)?,
            data_offset_bytes: 0,
            data_bytes: 0,
            backup_offset_bytes: PAGE_BYTES,
            image_bytes: 2 * PAGE_BYTES,
        })
    }

    /// The smallest image whose data section has a place for each of the volume's slots.
    ///
    /// # Errors
    /// If no swap area can have that size, or the erase block is not possible.
    pub fn in_place(volume_bytes: u64, erase_block_bytes: u64) -> Result<Geometry, GeometryError> {
        let slot_count = check_volume_bytes(volume_bytes)?;
        let data_offset_bytes = data_offset(erase_block_bytes)?;
        let backup_offset_bytes = data_offset_bytes + volume_bytes;
        Ok(Geometry {
            slot_count,
            data_offset_bytes,
            data_bytes: volume_bytes,
            backup_offset_bytes,
            image_bytes: backup_offset_bytes + PAGE_BYTES,
        })
    }

    /// A volume in an image that is there already: as large as fits, or `volume_bytes`. The
    /// backup goes to the image's last whole page, whatever the volume's size.
    ///
    /// # Errors
    /// If the image has no room, or as for [`Geometry::in_place`].
    pub fn fitted(
        image_bytes: u64,
        volume_bytes: Option<u64>,
        erase_block_bytes: u64,
    ) -> Result<Geometry, GeometryError> {
        let image_bytes = image_bytes / PAGE_BYTES * PAGE_BYTES;
        let overhead = data_offset(erase_block_bytes)? + PAGE_BYTES;
        let least = overhead + MIN_SLOT_COUNT * PAGE_BYTES;
        if image_bytes < least {
            return Err(GeometryError::ImageTooSmall { have: image_bytes, need: least });
        }
        let largest = (image_bytes - overhead).min(MAX_SLOT_COUNT * PAGE_BYTES);
        let geometry = Geometry::in_place(volume_bytes.unwrap_or(largest), erase_block_bytes)?;
        if geometry.image_bytes > image_bytes {
            return Err(GeometryError::ImageTooSmall {
                have: image_bytes,
                need: geometry.image_bytes,
            });
        }
        Ok(Geometry { image_bytes, backup_offset_bytes: image_bytes - PAGE_BYTES, ..geometry })
    }

    /// An image with a data section of whole segments, as large as the volume, and one more for
    /// the anchors. (If nothing could be compressed, not all of the volume would fit.)
    ///
    /// # Errors
    /// As [`Geometry::in_place`].
    pub fn in_segments(volume_bytes: u64, segment_bytes: u64) -> Result<Geometry, GeometryError> {
        let slot_count = check_volume_bytes(volume_bytes)?;
        let data_offset_bytes = data_offset(segment_bytes)?;
        let segments = (volume_bytes.div_ceil(segment_bytes) + 1).max(MIN_SEGMENTS);
        let data_bytes = segments * segment_bytes;
        let backup_offset_bytes = data_offset_bytes + data_bytes;
        Ok(Geometry {
            slot_count,
            data_offset_bytes,
            data_bytes,
            backup_offset_bytes,
            image_bytes: backup_offset_bytes + PAGE_BYTES,
        })
    }

    /// A volume of `volume_bytes`, or as large as the data section, in an image that is there
    /// already, with as many segments as fit. It may be larger than the image, since pages are
    /// compressed.
    ///
    /// # Errors
    /// If the image has no room for the fewest segments, or as [`Geometry::in_place`].
    pub fn fitted_segments(
        image_bytes: u64,
        volume_bytes: Option<u64>,
        segment_bytes: u64,
    ) -> Result<Geometry, GeometryError> {
        let image_bytes = image_bytes / PAGE_BYTES * PAGE_BYTES;
        let data_offset_bytes = data_offset(segment_bytes)?;
        let room = image_bytes.saturating_sub(data_offset_bytes + PAGE_BYTES);
        let segments = room / segment_bytes;
        if segments < MIN_SEGMENTS {
            let need = data_offset_bytes + MIN_SEGMENTS * segment_bytes + PAGE_BYTES;
            return Err(GeometryError::ImageTooSmall { have: image_bytes, need });
        }
        let data_bytes = segments * segment_bytes;
        let slot_count = check_volume_bytes(
            volume_bytes.unwrap_or(data_bytes.min(MAX_SLOT_COUNT * PAGE_BYTES)),
        )?;
        Ok(Geometry {
            slot_count,
            data_offset_bytes,
            data_bytes,
            backup_offset_bytes: image_bytes - PAGE_BYTES,
            image_bytes,
        })
    }

    /// A member image with a data section of `data_bytes`, rounded up to whole units: pages, or the
    /// segments of a log.
    ///
    /// # Errors
    /// If that is too little for a member, or more than 2^32 pages, or the erase block is not
    /// possible.
    pub fn member(
        data_bytes: u64,
        unit_bytes: u64,
        erase_block_bytes: u64,
    ) -> Result<Geometry, GeometryError> {
        let data_offset_bytes = data_offset(erase_block_bytes)?;
        let need = least_member(unit_bytes);
        if data_bytes < need {
            return Err(GeometryError::MemberTooSmall { have: data_bytes, need });
        }
        if data_bytes > largest_member(unit_bytes) {
            return Err(GeometryError::TooLarge(data_bytes));
        }
        let data_bytes = data_bytes.next_multiple_of(unit_bytes);
        let backup_offset_bytes = data_offset_bytes + data_bytes;
        Ok(Geometry {
            slot_count: data_bytes / PAGE_BYTES,
            data_offset_bytes,
            data_bytes,
            backup_offset_bytes,
            image_bytes: backup_offset_bytes + PAGE_BYTES,
        })
    }

    /// A stub: a member whose pages live elsewhere, `capacity_bytes` of them, rounded up to pages.
    ///
    /// # Errors
    /// If that is too little for a member, or more than 2^32 pages.
    pub fn stub(capacity_bytes: u64) -> Result<Geometry, GeometryError> {
        if capacity_bytes < MIN_MEMBER_BYTES {
            return Err(GeometryError::MemberTooSmall {
                have: capacity_bytes,
                need: MIN_MEMBER_BYTES,
            });
        }
        if capacity_bytes > largest_member(PAGE_BYTES) {
            return Err(GeometryError::TooLarge(capacity_bytes));
        }
        Geometry::ghost(capacity_bytes.next_multiple_of(PAGE_BYTES))
    }

    /// A member in an image that is there already: with as many whole units as fit, or with
    /// `data_bytes`, rounded up. The backup goes to the image's last whole page.
    ///
    /// # Errors
    /// If the image has no room, or as for [`Geometry::member`].
    pub fn fitted_member(
        image_bytes: u64,
        data_bytes: Option<u64>,
        unit_bytes: u64,
        erase_block_bytes: u64,
    ) -> Result<Geometry, GeometryError> {
        let have = image_bytes / PAGE_BYTES * PAGE_BYTES;
        let room = have.saturating_sub(data_offset(erase_block_bytes)? + PAGE_BYTES);
        let largest = room.min(largest_member(unit_bytes)) / unit_bytes * unit_bytes;
        let wanted = data_bytes.unwrap_or(largest.max(least_member(unit_bytes)));
        let geometry = Geometry::member(wanted, unit_bytes, erase_block_bytes)?;
        if geometry.image_bytes > have {
            return Err(GeometryError::ImageTooSmall { have, need: geometry.image_bytes });
        }
        Ok(Geometry { image_bytes: have, backup_offset_bytes: have - PAGE_BYTES, ..geometry })
    }

    /// Bytes of the volume: what `swapon` sees.
    #[must_use]
    pub fn volume_bytes(&self) -> u64 {
        self.slot_count * PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_that_no_swap_area_has() {
        use GeometryError::{NotWholePages, TooLarge, TooSmall, ZeroSize};
        assert_eq!(Geometry::ghost(0), Err(ZeroSize));
        assert_eq!(Geometry::ghost(4097), Err(NotWholePages(4097)));
        assert_eq!(Geometry::ghost(4096), Err(TooSmall(4096)));
        assert_eq!(Geometry::ghost(17 << 40), Err(TooLarge(17 << 40)));
        assert!(Geometry::ghost(16 << 40).is_ok());
    }

    #[test]
    fn an_image_without_room_says_how_much_it_needs() {
        assert_eq!(
            Geometry::fitted(1 << 20, None, 4096),
            Err(GeometryError::ImageTooSmall { have: 1 << 20, need: (1 << 20) + 11 * 4096 })
        );
        assert_eq!(
            Geometry::fitted(8 << 20, Some(8 << 20), 4096),
            Err(GeometryError::ImageTooSmall { have: 8 << 20, need: (9 << 20) + 4096 })
        );
    }

    #[test]
    fn a_member_has_at_least_eight_segments() {
        let kib = 1 << 10;
        assert_eq!(
            Geometry::member(511 * kib, 4096, 4096),
            Err(GeometryError::MemberTooSmall { have: 511 * kib, need: 512 * kib })
        );
        assert_eq!(
            Geometry::member(kib << 10, 256 * kib, 256 * kib),
            Err(GeometryError::MemberTooSmall { have: kib << 10, need: 2048 * kib })
        );
        let member = Geometry::member(2049 * kib, 256 * kib, 256 * kib).unwrap();
        assert_eq!(member.data_bytes, 9 * 256 * kib);
        assert_eq!(
            Geometry::fitted_member(1 << 20, None, 64 * kib, 64 * kib),
            Err(GeometryError::ImageTooSmall { have: 1 << 20, need: 1540 * kib })
        );
        assert_eq!(
            Geometry::fitted_member(4 << 20, Some(8 << 20), 4096, 4096),
            Err(GeometryError::ImageTooSmall { have: 4 << 20, need: (9 << 20) + 4096 })
        );
    }

    #[test]
    fn a_stub_has_the_size_of_a_member_and_no_data() {
        let stub = Geometry::stub((1 << 20) + 1).unwrap();
        assert_eq!((stub.slot_count, stub.data_bytes, stub.image_bytes), (257, 0, 8192));
        assert_eq!(
            Geometry::stub(4096),
            Err(GeometryError::MemberTooSmall { have: 4096, need: 512 << 10 })
        );
        assert_eq!(Geometry::stub(u64::MAX), Err(GeometryError::TooLarge(u64::MAX)));
    }

    proptest! {
        #[test]
        fn members_are_whole_units_inside_their_image(
            image_pages in 0u64..1 << 34,
            tail in 0u64..4096,
            data_bytes in proptest::option::of(0u64..1 << 44),
            unit_shift in prop_oneof![Just(12u32), 16u32..=26],
        ) {
            let (image, unit) = (image_pages * PAGE_BYTES + tail, 1u64 << unit_shift);
            if let Ok(g) = Geometry::fitted_member(image, data_bytes, unit, unit) {
                prop_assert!(g.data_bytes.is_multiple_of(unit));
                prop_assert!(g.data_bytes >= MIN_MEMBER_BYTES);
                prop_assert!(unit == PAGE_BYTES || g.data_bytes / unit >= MIN_MEMBER_SEGMENTS);
                prop_assert_eq!(g.data_bytes, g.volume_bytes());
                prop_assert!(g.slot_count <= MAX_SLOT_COUNT);
                prop_assert!(g.data_offset_bytes + g.data_bytes <= g.backup_offset_bytes);
                prop_assert_eq!(g.backup_offset_bytes + PAGE_BYTES, g.image_bytes);
                prop_assert!(g.image_bytes <= image);
                if let Some(bytes) = data_bytes {
                    prop_assert_eq!(g.data_bytes, bytes.next_multiple_of(unit));
                }
            }
        }

        #[test]
        fn parts_never_overlap(
            image_pages in 0u64..1 << 34,
            tail in 0u64..4096,
            volume_pages in proptest::option::of(0u64..1 << 33),
            erase_shift in 0u32..32,
        ) {
            let image = image_pages * PAGE_BYTES + tail;
            let erase_block = 1u64 << erase_shift;
            if let Ok(g) = Geometry::fitted(image, volume_pages.map(|p| p * PAGE_BYTES), erase_block) {
                prop_assert!(g.data_offset_bytes >= PAGE_BYTES);
                prop_assert!(g.data_offset_bytes.is_multiple_of(erase_block));
                prop_assert_eq!(g.data_bytes, g.volume_bytes());
                prop_assert!(g.data_offset_bytes + g.data_bytes <= g.backup_offset_bytes);
                prop_assert_eq!(g.backup_offset_bytes + PAGE_BYTES, g.image_bytes);
                prop_assert!(g.image_bytes <= image);
                if let Some(pages) = volume_pages {
                    prop_assert_eq!(g.slot_count, pages);
                }
            }
        }
    }
}
