//! statfs(2), access to mounts.

use super::{c_path, check};
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;

/// What a file system says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Free, the part kept for root not counted.
    pub free_bytes: u64,
    /// A file system in memory whose pages are themselves swapped (tmpfs) or never leave (ramfs).
    pub in_memory: bool,
}

const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Asks the file system that `path` lies on.
///
/// # Errors
/// As statfs(2).
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let path = c_path(path)?;
    let mut answer = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` ends with a zero byte; `answer` has room for the structure.
    check(unsafe { libc::statfs(path.as_ptr(), answer.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled the structure.
    let answer = unsafe { answer.assume_init() };
    // The fields' types differ between C libraries.
    let kind = answer.f_type as u64 & 0xffff_ffff;
    Ok(FileSystem {
        free_bytes: answer.f_bavail.saturating_mul(answer.f_bsize as u64),
        in_memory: kind == TMPFS_MAGIC || kind == RAMFS_MAGIC,
    })
}

/// Takes the mount at `target` away. Never follows a link at the end of the path.
///
/// # Errors
/// As umount2(2): EBUSY while a file on it is open, EINVAL when it is no mount point.
pub fn unmount(target: &Path) -> io::Result<()> {
    let path = c_path(target)?;
    // SAFETY: `path` is a string that ends with a zero byte and outlives the call.
    check(unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_in_memory_and_the_root_is_not() {
        assert!(file_system(Path::new("/dev/shm")).unwrap().in_memory);
        let proc = file_system(Path::new("/proc")).unwrap();
        assert!(!proc.in_memory);
        assert_eq!(proc.free_bytes, 0);
    }

    #[test]
    fn what_is_not_mounted_is_not_unmounted() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        assert!(unmount(dir.path()).is_err());
    }
}
