//! Files in memory that is never swapped: a private tmpfs mounted `noswap`.
//!
//! memfd_create(2) would be simpler, but its pages are swappable, and mlock(2) ends with the
//! process that asked for it. The mount has no place in the file system's tree: it lives as long
//! as a file of it is open.

use super::check;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Of linux/mount.h; libc has no names for them.
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// `count` empty files on a tmpfs of their own that is never swapped and has no limit of size.
///
/// # Errors
/// `EINVAL` on kernels before 6.4, `EPERM` without CAP_SYS_ADMIN.
pub fn unswappable_files(count: usize) -> io::Result<Vec<File>> {
    let mount = mount_tmpfs()?;
    (0..count)
        .map(|_| {
            let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
            let (directory, here) = (mount.as_raw_fd(), c".");
            // SAFETY: the path ends in a zero byte.
            let file = check(unsafe {
                libc::openat(directory, here.as_ptr(), flags, 0o600 as libc::c_uint)
            })?;
            // SAFETY: the descriptor is new, and nobody else owns it.
            Ok(File::from(unsafe { OwnedFd::from_raw_fd(file) }))
        })
        .collect()
}

/// An open directory: the root of a tmpfs that is mounted nowhere.
fn mount_tmpfs() -> io::Result<OwnedFd> {
    let flags: libc::c_uint = 1; // FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
    // SAFETY: the name ends in a zero byte.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), flags) };
    let context = owned(context)?;
    set(&context, FSCONFIG_SET_FLAG, Some(c"noswap"), None)?;
    // The back end has its own limit; half of the memory would be the default here.
    set(&context, FSCONFIG_SET_STRING, Some(c"size"), Some(c"0"))?;
    set(&context, FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: no memory is passed.
    let mount = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), flags, 0) };
    owned(mount)
}

fn set(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    let (key, value) = (pointer(key), pointer(value));
    let context = context.as_raw_fd();
    // SAFETY: the pointers are null or to strings that end in a zero byte.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, context, command, key, value, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = check(libc::c_int::try_from(result).unwrap_or(-1))?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::Mapping;
    use std::sync::atomic::{AtomicU8, Ordering};

    #[test]
    fn what_one_mapping_stores_another_one_reads() {
        let files = match unswappable_files(2) {
            Ok(files) => files,
            Err(error) => {
                println!("SKIPPED unswappable_files: {error}");
                return;
            }
        };
        let [file, _] = <[File; 2]>::try_from(files).unwrap();
        let one = Mapping::shared(file.try_clone().unwrap(), 1 << 20).unwrap();
        let two = Mapping::shared(file, 1 << 20).unwrap();
        one.populate_range(0, 8192).unwrap();
        two.map_present(0, 8192).unwrap();
        let byte = |mapping: &Mapping| {
            // SAFETY: inside the mapping.
            let place = unsafe { mapping.as_ptr().add(5000) };
            // SAFETY: live as long as the mappings, which are this test's only.
            unsafe { &*place.cast::<AtomicU8>() }
        };
        byte(&one).store(7, Ordering::Relaxed);
        assert_eq!(byte(&two).load(Ordering::Relaxed), 7);
        two.release(4096, 4096).unwrap();
        assert_eq!(byte(&one).load(Ordering::Relaxed), 0);
    }
}
