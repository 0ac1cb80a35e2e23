//! Memory that stays where it is.
//!
//! Locked memory is never paged out, but the kernel still moves it: compaction takes a page out of
//! the page tables, copies it, and puts the copy in. A thread that the kernel copies a request to
//! or from waits for that, and if its process is killed meanwhile, it does not try again: the
//! request ends with EIO (measured: one in 76 and in 111 kills while memory was compacted all the
//! time, none in 1,300 since; tests/bench/RESULTS.md). Compaction leaves pages alone that somebody
//! has pinned for long, as io_uring does with buffers that are registered with it.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// `IORING_REGISTER_BUFFERS` of linux/io_uring.h.
const REGISTER_BUFFERS: libc::c_uint = 0;
/// Bytes of `struct io_uring_params`.
const PARAMS_BYTES: usize = 120;

/// errno of the last time that memory could not be pinned; 0: it always could.
static FAILED: AtomicI32 = AtomicI32::new(0);

/// Pages are pinned for as long as this lives. No memory of this process's is used for it.
#[derive(Debug)]
pub struct Pin(OwnedFd);

impl Pin {
    /// Pins the pages of `len` bytes at `start`, which must be anonymous memory.
    ///
    /// # Errors
    /// What io_uring_setup(2) answers, `ENOSYS` or `EPERM` where io_uring is not allowed, and what
    /// io_uring_register(2) does. It is kept for [`failure`].
    pub fn new(start: *const u8, len: usize) -> io::Result<Pin> {
        Pin::register(start, len).inspect_err(|error| {
            FAILED.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed);
        })
    }

    fn register(start: *const u8, len: usize) -> io::Result<Pin> {
        let mut params = [0u64; PARAMS_BYTES / 8];
        // SAFETY: the call reads and writes the structure given, which has its size.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
        let ring = check(ring as libc::c_int)?;
        // SAFETY: the descriptor is new, and nobody else owns it.
        let ring = unsafe { OwnedFd::from_raw_fd(ring) };
        let memory = libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len };
        // SAFETY: the vector is read during the call; the kernel does nothing to the memory.
        let registered = unsafe {
            let number = libc::SYS_io_uring_register;
            libc::syscall(number, ring.as_raw_fd(), REGISTER_BUFFERS, &raw const memory, 1)
        };
        check(registered as libc::c_int)?;
        Ok(Pin(ring))
    }

    /// The descriptor that the pin lives as long as.
    pub(super) fn into_descriptor(self) -> OwnedFd {
        self.0
    }
}

/// Why memory could not be pinned, if there is such memory.
#[must_use]
pub fn failure() -> Option<io::Error> {
    let errno = FAILED.load(Ordering::Relaxed);
    (errno != 0).then(|| io::Error::from_raw_os_error(errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::Mapping;

    #[test]
    fn memory_is_pinned_or_the_reason_is_kept() {
        let mapping = Mapping::new(64 << 10, true).unwrap();
        match Pin::new(mapping.as_ptr(), mapping.len()) {
            Ok(pin) => drop(pin),
            Err(error) => {
                assert_eq!(failure().unwrap().raw_os_error(), error.raw_os_error());
                println!("SKIPPED pinning: {error}");
            }
        }
        let nowhere = Pin::new(std::ptr::without_provenance(4096), 4096);
        assert!(nowhere.is_err(), "{nowhere:?}");
        assert!(failure().is_some());
    }
}
