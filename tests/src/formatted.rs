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
    let ghost = types::find(type_name).is_some_and(|spec| spec.ghost);
    let is_log = type_name == LOG.name;
    let volume_bytes = slots * PAGE_BYTES;
    let geometry = if ghost {
        Geometry::ghost(volume_bytes)
    } else if is_log {
        let image_bytes = (2 << 20) + 2 * volume_bytes.max(16 * SEGMENT_BYTES);
        Geometry::fitted_segments(image_bytes, Some(volume_bytes), SEGMENT_BYTES)
    } else {
        Geometry::in_place(volume_bytes, PAGE_BYTES)
    };
    let geometry = geometry.unwrap_or_else(|error| panic!("{type_name}: {error}"));
    let mut superblock = Superblock::new(type_name, &geometry, uuid::Uuid::new_v4());
    if is_log {
        superblock.erase_block_bytes = SEGMENT_BYTES as u32;
    }
    superblock
}
