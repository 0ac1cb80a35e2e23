//! `/proc/self/mounts`: where swapfs volumes are mounted.

use super::escape::{fields, unescape};
use crate::failure::Failure;
use std::path::PathBuf;

/// The file system type that the daemon mounts.
pub const FS_TYPE: &str = "fuse.swapfs";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted: for swapfs, the image's absolute path.
    pub source: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// The file system type.
    pub fs_type: String,
}

/// Parses the text. Lines with fewer than three fields are passed over.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = fields(line);
    Some(Mount {
        source: unescape(fields.next()?),
        target: unescape(fields.next()?),
        fs_type: String::from_utf8_lossy(fields.next()?).into_owned(),
    })
}

/// The mounted swapfs volumes.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn read_swapfs() -> Result<Vec<Mount>, Failure> {
    let mut mounts = parse(&super::read_file("/proc/self/mounts")?);
    mounts.retain(|mount| mount.fs_type == FS_TYPE);
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn mounts_of_a_real_file() {
        let text = b"/dev/vda / ext4 rw,relatime,discard 0 0\n\
            /var/lib/my\\040vm/swap.img /run/swapfs/6d0e fuse.swapfs rw,nosuid,user_id=0 0 0\n\
            tmpfs /mnt/tab\\011here tmpfs rw 0 0\n\nbroken line\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1].source, Path::new("/var/lib/my vm/swap.img"));
        assert_eq!(mounts[1].target, Path::new("/run/swapfs/6d0e"));
        assert_eq!(mounts[1].fs_type, FS_TYPE);
        assert_eq!(mounts[2].target, Path::new("/mnt/tab\there"));
    }
}
