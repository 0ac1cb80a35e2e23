//! Positioned reads and writes that never come back short, and discards.

use super::errno;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a discard leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    /// The space was given back; the range reads as zeros.
    Yes,
    /// The file or device can't do it; nothing was changed.
    Unsupported,
}

/// Reads all of `buffer` at `offset`. An end of file before that is `EIO`: the image was
/// truncated under us.
///
/// # Errors
/// The errno of the failed call.
pub fn read_all_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> Result<(), i32> {
    while !buffer.is_empty() {
        // SAFETY: the pointer and length are those of a live, writable slice.
        let count = unsafe {
            libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), offset as i64)
        };
        match count {
            0 => return Err(libc::EIO),
            count if count > 0 => {
                buffer = &mut buffer[count as usize..];
                offset += count as u64;
            }
            _ => match errno() {
                libc::EINTR => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Writes all of `buffer` at `offset`.
///
/// # Errors
/// The errno of the failed call; the range then holds old or new bytes.
pub fn write_all_at(file: &File, mut buffer: &[u8], mut offset: u64) -> Result<(), i32> {
    while !buffer.is_empty() {
        // SAFETY: the pointer and length are those of a live slice.
        let count = unsafe {
            libc::pwrite(file.as_raw_fd(), buffer.as_ptr().cast(), buffer.len(), offset as i64)
        };
        match count {
            0 => return Err(libc::EIO),
            count if count > 0 => {
                buffer = &buffer[count as usize..];
                offset += count as u64;
            }
            _ => match errno() {
                libc::EINTR => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Gives the space of a range back; it reads as zeros afterwards. For a block device the kernel
/// turns this into a write of zeros that may unmap, and only if the device does that by itself.
///
/// # Errors
/// The errno of the failed call.
pub fn punch_hole(file: &File, offset: u64, length: u64) -> Result<Discarded, i32> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    loop {
        // SAFETY: no memory is passed.
        let result =
            unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) };
        if result == 0 {
            return Ok(Discarded::Yes);
        }
        match errno() {
            libc::EINTR => {}
            libc::EOPNOTSUPP | libc::ENOSYS => return Ok(Discarded::Unsupported),
            error => return Err(error),
        }
    }
}

/// Makes everything written durable.
///
/// # Errors
/// The errno of the failed call.
pub fn sync_data(file: &File) -> Result<(), i32> {
    // SAFETY: no memory is passed.
    if unsafe { libc::fdatasync(file.as_raw_fd()) } == 0 { Ok(()) } else { Err(errno()) }
}

/// Makes the file `bytes` long, with all its space allocated.
///
/// # Errors
/// The errno of the failed call; `EOPNOTSUPP` on file systems that can't.
pub fn allocate(file: &File, bytes: u64) -> Result<(), i32> {
    loop {
        // SAFETY: no memory is passed.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as i64) } == 0 {
            return Ok(());
        }
        match errno() {
            libc::EINTR => {}
            error => return Err(error),
        }
    }
}

/// Bytes that root can still write on the file system that `path` lies on.
///
/// # Errors
/// What statvfs(3) answers; `EINVAL` for a path with a zero byte.
pub fn available_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut statistics = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in a zero byte; the call fills the structure if it succeeds.
    super::check(unsafe { libc::statvfs(path.as_ptr(), statistics.as_mut_ptr()) })?;
    // SAFETY: filled by the call, which succeeded.
    let statistics = unsafe { statistics.assume_init() };
    Ok(statistics.f_bfree * statistics.f_frsize)
}
/// Asks the file system at `path` about itself, and waits for its answer.
///
/// # Errors
/// What statfs(2) answers.
pub fn ask_file_system(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut statistics = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends in a zero byte; the call fills the structure given.
    super::check(unsafe { libc::statfs(path.as_ptr(), statistics.as_mut_ptr()) }).map(drop)
}
