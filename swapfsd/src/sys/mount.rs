//! Mounting and unmounting a FUSE file system by system call: no libfuse, no fusermount.

use super::check;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The type that /proc/mounts shows.
pub const FILESYSTEM_TYPE: &str = "fuse.swapfs";

/// Mounts the connection `device` (an open /dev/fuse) on `mountpoint`, shown as `source`.
///
/// Everybody may look at the statistics; the kernel checks the modes of the files.
///
/// # Errors
/// What mount(2) answers; `EINVAL` for a path with a zero byte.
pub fn mount_fuse(device: &File, source: &Path, mountpoint: &Path) -> io::Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let source = c_string(source.as_os_str().as_bytes())?;
    let mountpoint = c_string(mountpoint.as_os_str().as_bytes())?;
    let kind = c_string(FILESYSTEM_TYPE.as_bytes())?;
    let options = c_string(options.as_bytes())?;
    let flags = libc::MS_NODEV | libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NOATIME;
    // SAFETY: all pointers are to strings that end in a zero byte and live until the call ends.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            mountpoint.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    })
    .map(drop)
}

/// Unmounts; `EBUSY` as long as a file below it is open.
///
/// # Errors
/// What umount2(2) answers.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    let mountpoint = c_string(mountpoint.as_os_str().as_bytes())?;
    // SAFETY: the pointer is to a string that ends in a zero byte.
    check(unsafe { libc::umount2(mountpoint.as_ptr(), libc::UMOUNT_NOFOLLOW) }).map(drop)
}

/// Ends the connection of a mount, whoever holds it open: what waits for an answer gets an error.
#[derive(Debug)]
pub struct Abort(CString);

impl Abort {
    /// Prepared, so that nothing is allocated when it is needed.
    ///
    /// # Errors
    /// `EINVAL` for a path with a zero byte.
    pub fn new(mountpoint: &Path) -> io::Result<Abort> {
        c_string(mountpoint.as_os_str().as_bytes()).map(Abort)
    }

    /// Ends it now. The mount itself stays as long as a file in it is open.
    pub fn abort(&self) {
        // SAFETY: the pointer is to a string that ends in a zero byte.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_FORCE | libc::UMOUNT_NOFOLLOW) };
    }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
