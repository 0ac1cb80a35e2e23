//! Superblocks for tests that need no formatter.

use swapfs_format::PAGE_BYTES;
use swapfs_format::geometry::Geometry;
use swapfs_format::superblock::Superblock;
use swapfs_format::types::{self, LOG};

/// Bytes of a segment of `log` in tests: the smallest, so that they are collected all the time.
pub const SEGMENT_BYTES: u64 = 64 << 10;

/// The superblock of a volume of `slots` slots. A log has room for all of it twice.
///
/// # Panics
/// If there is no such type.
#[must_use]
pub fn superblock(type_name: &str, slots: u64) -> Superblock {
    let volume_bytes = slots * PAGE_BYTES;
    if type_name == LOG.name {
        return log_superblock(
            slots,
            14 + 2 * volume_bytes.max(16 * SEGMENT_BYTES) / SEGMENT_BYTES,
        );
    }
    let ghost = types::find(type_name).is_some_and(|spec| spec.ghost);
    let geometry = if ghost {
        Geometry::ghost(volume_bytes)
    } else {
        Geometry::in_place(volume_bytes, PAGE_BYTES)
    };
    let geometry = geometry.unwrap_or_else(|error| panic!("{type_name}: {error}"));
    Superblock::new(type_name, &geometry, uuid::Uuid::new_v4())
}

/// The superblock of a log of `slots` slots on a device of `segments` segments.
///
/// # Panics
/// If that is too few.
#[must_use]
pub fn log_superblock(slots: u64, segments: u64) -> Superblock {
    // One more, for the anchors; in front of them the superblock, behind them its copy.
    let image_bytes = (1 << 20) + (segments + 1) * SEGMENT_BYTES + PAGE_BYTES;
    let geometry = Geometry::fitted_segments(image_bytes, Some(slots * PAGE_BYTES), SEGMENT_BYTES);
    let geometry = geometry.unwrap_or_else(|error| panic!("{}: {error}", LOG.name));
    let mut superblock = Superblock::new(LOG.name, &geometry, uuid::Uuid::new_v4());
    superblock.erase_block_bytes = SEGMENT_BYTES as u32;
    superblock
}
