//! The memory that a swap workload works on: an anonymous mapping, and the few calls that lock
//! memory or push it out. All of this package's unsafe code for memory is here.

use std::io;
use std::ptr::NonNull;

use crate::pattern::PAGE_BYTES;

/// Anonymous private memory, not touched yet.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    pages: usize,
}

impl Region {
    /// Maps `pages` pages.
    pub fn map(pages: usize) -> io::Result<Region> {
        let bytes = pages.checked_mul(PAGE_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Region { start, pages })
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// One page.
    #[must_use]
    pub fn page(&self, index: usize) -> &[u8; PAGE_BYTES] {
        assert!(index < self.pages, "page {index} of {}", self.pages);
        // SAFETY: the offset lies inside the mapping, by the assertion above.
        let page = unsafe { self.start.add(index * PAGE_BYTES) };
        // SAFETY: mapped, readable, initialised (anonymous memory reads as zeroes), and borrowed
        // from self, so no `page_mut` of it exists.
        unsafe { page.cast().as_ref() }
    }

    /// One page, to be written.
    pub fn page_mut(&mut self, index: usize) -> &mut [u8; PAGE_BYTES] {
        assert!(index < self.pages, "page {index} of {}", self.pages);
        // SAFETY: the offset lies inside the mapping, by the assertion above.
        let page = unsafe { self.start.add(index * PAGE_BYTES) };
        // SAFETY: mapped, writable, initialised, and borrowed from self exclusively.
        unsafe { page.cast().as_mut() }
    }

    /// Asks the kernel to swap `count` pages from `first` on out, now. The kernel may keep some.
    pub fn page_out(&self, first: usize, count: usize) -> io::Result<()> {
        assert!(first + count <= self.pages, "pages {first} + {count} of {}", self.pages);
        // SAFETY: the offset lies inside the mapping, by the assertion above.
        let start = unsafe { self.start.add(first * PAGE_BYTES) };
        // SAFETY: the range is this mapping's own, and paging it out does not change its contents.
        let result =
            unsafe { libc::madvise(start.as_ptr().cast(), count * PAGE_BYTES, libc::MADV_PAGEOUT) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and every borrow of it has ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.pages * PAGE_BYTES) };
    }
}

/// Keeps `values` in memory, so that the books about swapped pages are never swapped themselves.
pub fn lock<T>(values: &[T]) -> io::Result<()> {
    // SAFETY: the range is a live slice; locking does not change it. It stays locked until it is
    // unmapped or the process ends, which is harmless.
    let result = unsafe { libc::mlock(values.as_ptr().cast(), size_of_val(values)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
