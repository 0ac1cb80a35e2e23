//! What a file or block device is: size, lock, kind of file system.

use super::check;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `BLKGETSIZE64` of linux/fs.h: `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// Bytes of a block device.
///
/// # Errors
/// What the ioctl answers; `ENOTTY` if it is no block device.
pub fn block_device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the ioctl writes one u64 to the address given.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) })?;
    Ok(bytes)
}

/// Takes the lock that everybody who changes an image takes; it ends with the descriptor.
///
/// # Errors
/// `EWOULDBLOCK` if somebody has it.
pub fn lock_exclusively(file: &File) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// Locks the first byte of this open file (not of the process, nor of the file) for writing, and waits for others that
/// have locked theirs of the same file. The lock ends when nobody uses the open file any more,
/// the kernel's own requests in flight included. Independent of [`lock_exclusively`].
///
/// # Errors
/// What fcntl(2) answers to `F_OFD_SETLKW`.
pub fn lock_open_file(file: &File) -> io::Result<()> {
    loop {
        match set_lock(file, 0, libc::F_OFD_SETLKW) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// As [`lock_open_file`], of the byte given alone, without waiting. False: somebody else has it.
///
/// # Errors
/// What fcntl(2) answers to `F_OFD_SETLK`.
pub fn try_lock_open_file(file: &File, byte: u8) -> io::Result<bool> {
    match set_lock(file, byte, libc::F_OFD_SETLK) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Gives a byte free that this open file has locked.
///
/// # Errors
/// What fcntl(2) answers to `F_OFD_SETLK`.
pub fn unlock_open_file(file: &File, byte: u8) -> io::Result<()> {
    change_lock(file, byte, libc::F_OFD_SETLK, libc::F_UNLCK)
}

fn set_lock(file: &File, byte: u8, command: libc::c_int) -> io::Result<()> {
    change_lock(file, byte, command, libc::F_WRLCK)
}

fn change_lock(file: &File, byte: u8, command: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = libc::off_t::from(byte);
    lock.l_len = 1;
    // SAFETY: the structure is read during the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) }).map(drop)
}

/// The file lies on a file system in memory whose pages are swapped out themselves.
#[must_use]
pub fn is_on_tmpfs(file: &File) -> bool {
    /// Of linux/magic.h; libc has no name for it.
    const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6_u32 as libc::__fsword_t;
    let mut statistics = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the call fills the structure given, if it succeeds.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), statistics.as_mut_ptr()) };
    if result != 0 {
        return false;
    }
    // SAFETY: filled by the call, which succeeded.
    let kind = unsafe { statistics.assume_init() }.f_type;
    kind == libc::TMPFS_MAGIC || kind == RAMFS_MAGIC
}
