//! How large a volume is made when nobody says.

use crate::failure::Failure;
use std::path::Path;
use swapfs_format::size::human;

const MIB: u64 = 1 << 20;
/// Under this, a volume is of no use.
const LEAST_BYTES: u64 = 16 * MIB;
/// At most one part in this many of the free space.
const FREE_SPACE_DIVISOR: u64 = 4;

/// The machine's memory, but no more than a quarter of the free space, in whole MiB. `None` for
/// the free space: the image takes none (a ghost).
///
/// # Errors
/// If that leaves too little to be of use.
pub fn default_volume_bytes(
    directory: &Path,
    memory_bytes: u64,
    free_bytes: Option<u64>,
) -> Result<u64, Failure> {
    let room = free_bytes.map_or(u64::MAX, |free| free / FREE_SPACE_DIVISOR);
    let volume_bytes = memory_bytes.min(room) / MIB * MIB;
    if volume_bytes < LEAST_BYTES {
        return Err(Failure::new(
            directory.display(),
            format_args!(
                "a quarter of the free space ({}) is too little for a volume: choose a size \
                 with --size, or another place for the image",
                human(free_bytes.unwrap_or(0))
            ),
        ));
    }
    Ok(volume_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(memory: u64, free: Option<u64>) -> Result<u64, Failure> {
        default_volume_bytes(Path::new("/var/lib/swapfs"), memory, free)
    }

    #[test]
    fn memory_or_a_quarter_of_the_free_space() {
        assert_eq!(size(8 << 30, Some(400 << 30)), Ok(8 << 30));
        assert_eq!(size(8 << 30, Some(4 << 30)), Ok(1 << 30));
        assert_eq!(size(8 << 30, None), Ok(8 << 30));
    }

    #[test]
    fn whole_mib() {
        assert_eq!(size((100 << 20) + 4096, None), Ok(100 << 20));
    }

    #[test]
    fn too_little_space_says_so() {
        let failure = size(8 << 30, Some(60 << 20)).unwrap_err().to_string();
        assert!(failure.starts_with("/var/lib/swapfs: a quarter of the free space (60 MiB)"));
    }
}
