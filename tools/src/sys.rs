//! The system calls that the standard library lacks, each in a narrow safe wrapper. All the
//! `unsafe` code of the tools is in this module.

pub mod area;
pub mod fs;
pub mod loop_ioctl;
pub mod process;
pub mod swap;

use std::ffi::{CString, c_int};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path as the kernel takes it.
fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the path has a zero byte in it"))
}

/// The return value of a call that answers -1 and sets errno.
fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
