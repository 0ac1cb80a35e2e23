//! The demo's work on memory: fill, push out, read back and verify.

use super::pattern::Pattern;
use super::progress::Progress;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::sys::area::Area;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;
use swapfs_format::PAGE_LEN;

/// Pages in one step: signals and progress come between steps.
const STEP_PAGES: usize = 2048;
/// Pages in one read of the verification.
const READ_PAGES: usize = 64;
/// How often pages that stayed are pushed again.
const MAX_PASSES: u32 = 40;
/// Time for write-back to end before the next pass.
const PASS_PAUSE: Duration = Duration::from_millis(25);

/// The area, its pattern, and the way to read it without risk.
pub struct Traffic {
    area: Area,
    pattern: Pattern,
    /// `/proc/self/mem`: a page that the swap area cannot give back is an error here, and would
    /// be SIGBUS in a plain read, with everything left up behind us.
    memory: File,
    interrupt: Interrupt,
}

/// What the verification found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Pages whose every byte was right.
    pub right_pages: u64,
    /// Pages with a wrong byte.
    pub wrong_pages: u64,
    /// Pages that could not be read.
    pub lost_pages: u64,
    /// The first page that was wrong or lost.
    pub first_bad_page: Option<u64>,
}

impl Verdict {
    /// Every byte of `page_count` pages was right.
    #[must_use]
    pub fn is_clean(&self, page_count: u64) -> bool {
        self.right_pages == page_count && self.wrong_pages == 0 && self.lost_pages == 0
    }

    fn count(&mut self, page: usize, read: Option<bool>) {
        match read {
            Some(true) => self.right_pages += 1,
            Some(false) => self.wrong_pages += 1,
            None => self.lost_pages += 1,
        }
        if read != Some(true) && self.first_bad_page.is_none() {
            self.first_bad_page = Some(page as u64);
        }
    }
}

impl Traffic {
    /// Maps `page_count` pages, not yet filled.
    ///
    /// # Errors
    /// If memory or `/proc` is not to be had.
    pub fn new(page_count: usize, seed: u64, interrupt: &Interrupt) -> Result<Traffic, Failure> {
        let area =
            Area::new(page_count).map_err(|error| Failure::os("demo", "map memory", &error))?;
        let memory = File::open("/proc/self/mem")
            .map_err(|error| Failure::os("/proc/self/mem", "open", &error))?;
        Ok(Traffic { area, pattern: Pattern::new(seed), memory, interrupt: interrupt.clone() })
    }

    /// Pages in the area.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.area.page_count()
    }

    /// Writes the pattern.
    ///
    /// # Errors
    /// If a signal came.
    pub fn fill(&mut self, progress: &mut Progress) -> Result<(), Failure> {
        for step in steps(self.page_count()) {
            self.interrupt.check("fill memory")?;
            for page in step.clone() {
                self.pattern.fill(page, self.area.bytes_mut(page..page + 1));
            }
            progress.at(step.end);
        }
        Ok(())
    }

    /// Pushes every page out once. What the kernel takes is then on its way to the device, and
    /// stays in the swap cache until [`Traffic::evict`].
    ///
    /// # Errors
    /// If a signal came, or the kernel is older than 5.4.
    pub fn push_out(&self, progress: &mut Progress) -> Result<(), Failure> {
        for step in steps(self.page_count()) {
            self.interrupt.check("push memory out")?;
            self.page_out(step.clone())?;
            progress.at(step.end);
        }
        Ok(())
    }

    /// Frees what is still in memory, so that reading back has to go to the device. A page that
    /// was written out stays in the swap cache, unmapped, where MADV_PAGEOUT does not see it:
    /// reading one byte maps it again, and since it is clean, the next push frees it at once.
    /// Returns the pages that stayed.
    ///
    /// # Errors
    /// If a signal came.
    pub fn evict(&self, progress: &mut Progress) -> Result<u64, Failure> {
        let mut stayed = 0;
        for pass in 0..=MAX_PASSES {
            stayed = 0;
            for step in steps(self.page_count()) {
                self.interrupt.check("free what was pushed out")?;
                let resident = self
                    .area
                    .resident(step.clone())
                    .map_err(|error| Failure::os("demo", "ask what is in memory", &error))?;
                let pages: Vec<usize> = step
                    .clone()
                    .zip(&resident)
                    .filter(|(_, flag)| **flag)
                    .map(|(p, _)| p)
                    .collect();
                stayed += pages.len();
                if pages.is_empty() || pass == MAX_PASSES {
                    continue;
                }
                let mut byte = [0u8; 1];
                for page in pages {
                    // One that cannot be read is found again, and counted, in the verification.
                    let _ = self.memory.read_at(&mut byte, self.area.address(page));
                }
                self.page_out(step)?;
            }
            progress.at(self.page_count() - stayed);
            if stayed == 0 {
                break;
            }
            thread::sleep(PASS_PAUSE);
        }
        Ok(stayed as u64)
    }

    /// Reads everything back and compares every byte.
    ///
    /// # Errors
    /// If a signal came. Bad pages are no error here: they are counted.
    pub fn verify(&self, progress: &mut Progress) -> Result<Verdict, Failure> {
        let mut verdict = Verdict::default();
        let mut expected = vec![0u8; PAGE_LEN];
        let mut read = vec![0u8; READ_PAGES * PAGE_LEN];
        for step in steps(self.page_count()) {
            self.interrupt.check("read memory back")?;
            for first in step.clone().step_by(READ_PAGES) {
                let pages = first..(first + READ_PAGES).min(step.end);
                let bytes = &mut read[..pages.len() * PAGE_LEN];
                let whole = self.memory.read_exact_at(bytes, self.area.address(first)).is_ok();
                for (page, got) in pages.zip(bytes.chunks_mut(PAGE_LEN)) {
                    // One bad page spoils a long read: then each page is read by itself.
                    let readable =
                        whole || self.memory.read_exact_at(got, self.area.address(page)).is_ok();
                    self.pattern.fill(page, &mut expected);
                    verdict.count(page, readable.then(|| *got == *expected));
                }
            }
            progress.at(step.end);
        }
        Ok(verdict)
    }

    fn page_out(&self, pages: Range<usize>) -> Result<(), Failure> {
        self.area.page_out(pages).map_err(|error| {
            Failure::os("demo", "push memory out", &error)
                .and("MADV_PAGEOUT needs Linux 5.4 or later")
        })
    }
}

/// The area in steps of [`STEP_PAGES`].
fn steps(page_count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..page_count)
        .step_by(STEP_PAGES)
        .map(move |first| first..(first + STEP_PAGES).min(page_count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(interrupt: &Interrupt) -> Traffic {
        let mut traffic = Traffic::new(STEP_PAGES + 100, 7, interrupt).unwrap();
        traffic.fill(&mut Progress::silent()).unwrap();
        traffic
    }

    #[test]
    fn what_was_written_is_right() {
        // With no swap area, nothing goes out, and pushing has to be harmless.
        let traffic = traffic(&Interrupt::default());
        traffic.push_out(&mut Progress::silent()).unwrap();
        let verdict = traffic.verify(&mut Progress::silent()).unwrap();
        assert!(verdict.is_clean(STEP_PAGES as u64 + 100));
        assert!(!verdict.is_clean(STEP_PAGES as u64 + 101));
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let mut traffic = traffic(&Interrupt::default());
        traffic.area.bytes_mut(2100..2101)[4095] ^= 1;
        traffic.area.bytes_mut(70..71)[0] ^= 0x80;
        let verdict = traffic.verify(&mut Progress::silent()).unwrap();
        assert_eq!(verdict.wrong_pages, 2);
        assert_eq!(verdict.first_bad_page, Some(70));
        assert_eq!(verdict.right_pages, STEP_PAGES as u64 + 98);
    }

    #[test]
    fn a_page_that_cannot_be_read_is_lost_and_its_neighbours_are_not() {
        let mut verdict = Verdict::default();
        verdict.count(0, Some(true));
        verdict.count(1, None);
        verdict.count(2, Some(true));
        assert_eq!((verdict.right_pages, verdict.lost_pages), (2, 1));
        assert_eq!(verdict.first_bad_page, Some(1));
        assert!(!verdict.is_clean(2));
    }

    #[test]
    fn a_signal_ends_every_phase() {
        let interrupt = Interrupt::default();
        let traffic = traffic(&interrupt);
        interrupt.raise();
        assert!(traffic.push_out(&mut Progress::silent()).is_err());
        assert!(traffic.evict(&mut Progress::silent()).is_err());
        assert!(traffic.verify(&mut Progress::silent()).is_err());
    }
}
