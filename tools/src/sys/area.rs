//! An area of anonymous memory that the demo pushes out to swap.

use super::check;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use swapfs_format::PAGE_LEN;

/// A private anonymous mapping of whole pages, given back when it is dropped.
#[derive(Debug)]
pub struct Area {
    start: NonNull<u8>,
    page_count: usize,
}

impl Area {
    /// Maps `page_count` pages; they take no memory before they are written.
    ///
    /// # Errors
    /// As mmap(2): ENOMEM, EINVAL for 0 pages.
    pub fn new(page_count: usize) -> io::Result<Area> {
        let len = page_count
            .checked_mul(PAGE_LEN)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: a new mapping at a place that the kernel chooses touches no memory in use.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Area { start, page_count })
    }

    /// Pages in the area.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.page_count
    }

    /// Where page `page` lies in this process: its offset in `/proc/self/mem`.
    #[must_use]
    pub fn address(&self, page: usize) -> u64 {
        self.start.as_ptr() as u64 + (page * PAGE_LEN) as u64
    }

    /// The bytes of `pages`, to fill them. Reading what was swapped out here would end the
    /// process with SIGBUS if the swap area failed: read through `/proc/self/mem` instead.
    ///
    /// # Panics
    /// If `pages` reaches beyond the area.
    pub fn bytes_mut(&mut self, pages: Range<usize>) -> &mut [u8] {
        let (start, len) = self.span(&pages);
        // SAFETY: `span` has tested that the pages lie in the mapping, which is readable and
        // writable; the borrow of `self` keeps it mapped and unshared.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Asks the kernel to swap `pages` out now. It does what it can: pages in motion stay.
    ///
    /// # Errors
    /// As madvise(2): EINVAL before Linux 5.4.
    ///
    /// # Panics
    /// If `pages` reaches beyond the area.
    pub fn page_out(&self, pages: Range<usize>) -> io::Result<()> {
        let (start, len) = self.span(&pages);
        // SAFETY: the range lies in our mapping; the advice changes no content.
        check(unsafe { libc::madvise(start.cast(), len, libc::MADV_PAGEOUT) })?;
        Ok(())
    }

    /// Which of `pages` are in memory (mapped, or in the swap cache): one flag for each.
    ///
    /// # Errors
    /// As mincore(2).
    ///
    /// # Panics
    /// If `pages` reaches beyond the area.
    pub fn resident(&self, pages: Range<usize>) -> io::Result<Vec<bool>> {
        let (start, len) = self.span(&pages);
        let mut flags = vec![0u8; pages.len()];
        // SAFETY: the range lies in our mapping, and `flags` has one byte for each of its pages.
        check(unsafe { libc::mincore(start.cast(), len, flags.as_mut_ptr()) })?;
        Ok(flags.into_iter().map(|flag| flag & 1 == 1).collect())
    }

    fn span(&self, pages: &Range<usize>) -> (*mut u8, usize) {
        assert!(pages.start <= pages.end && pages.end <= self.page_count, "pages of the area");
        // SAFETY: `pages.start` is at most the page count, so the result lies in the mapping or
        // one past its end.
        let start = unsafe { self.start.as_ptr().add(pages.start * PAGE_LEN) };
        (start, pages.len() * PAGE_LEN)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and whole, and nobody borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.page_count * PAGE_LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_written_pages_are_resident() {
        let mut area = Area::new(64).unwrap();
        area.bytes_mut(8..9).fill(7);
        let resident = area.resident(0..64).unwrap();
        assert!(resident[8]);
        assert_eq!(area.bytes_mut(8..9)[0], 7);
        assert_eq!(area.address(9) - area.address(8), 4096);
    }

    #[test]
    fn no_area_of_nothing() {
        assert!(Area::new(0).is_err());
    }
}
