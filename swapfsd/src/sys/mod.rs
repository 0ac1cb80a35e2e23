//! Every unsafe system call, each behind a narrow safe wrapper.

pub mod address_space;
pub mod alloc;
pub mod device;
pub mod event;
pub mod file;
pub mod fuse_ring;
pub mod hold;
pub mod memory;
pub mod mount;
pub mod network_heap;
pub mod passing;
pub mod pin;
pub mod process;
pub mod socket;
pub mod spawn;
pub mod stream;

/// `Ok` with a non-negative result of a libc call, else the error in errno.
pub(crate) fn check(result: libc::c_int) -> std::io::Result<libc::c_int> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

/// The errno of the calling thread's last failed call.
pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
