//! One process's share of the swap workload: memory that is written, rewritten, pushed out, read
//! back and compared, with a locked book of what every page must hold.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::memory::{Region, lock};
use crate::pattern::{PAGE_BYTES, PageBytes, Pattern};
use crate::rng::Rng;

/// How many bad pages are described; all are counted.
const DESCRIBED_MAX: usize = 16;
/// How much one MADV_PAGEOUT takes: 8 MiB.
const PAGE_OUT_PAGES: usize = 2048;
/// A run of neighbours in `mixed` access.
const RUN_PAGES_MAX: u64 = 64;

/// In which order pages are touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// Any page at any time.
    Random,
    /// From the first to the last.
    Sequential,
    /// Runs of neighbours that start anywhere.
    Mixed,
}

/// What one process does.
#[derive(Debug, Clone)]
pub struct Work<'a> {
    /// Pages of memory.
    pub pages: usize,
    /// Rounds of as many touches as there are pages.
    pub passes: u32,
    /// What everything random follows from.
    pub seed: u64,
    /// The order of touches.
    pub touch: Touch,
    /// The share of every page that compresses.
    pub compressible_percent: u32,
    /// Push everything out after filling and after every pass.
    pub page_out: bool,
    /// Go on with further passes until this file exists.
    pub until: Option<&'a Path>,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Pages of memory.
    pub pages: u64,
    /// Passes made.
    pub passes: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Pages compared, every byte.
    pub pages_verified: u64,
    /// Pages that were wrong.
    pub bad_pages: u64,
    /// The first of them, described.
    pub bad: Vec<String>,
    /// Time in filling and MADV_PAGEOUT.
    pub out_ms: u64,
    /// Time of the final read of everything.
    pub in_ms: u64,
}

/// After so many touches it is looked whether it is enough.
const LOOK_PAGES: u64 = 256;

struct Worker<'a> {
    work: &'a Work<'a>,
    region: Region,
    /// What every page holds.
    generations: Vec<u32>,
    scratch: Box<PageBytes>,
    pattern: Pattern,
    rng: Rng,
    report: Report,
    out: Duration,
}

/// Does the work. `ready` is called once, when all memory is filled (and pushed out, if asked).
pub fn run(work: &Work<'_>, ready: impl FnOnce()) -> io::Result<Report> {
    let worker = Worker {
        region: Region::map(work.pages)?,
        generations: vec![0; work.pages],
        scratch: Box::default(),
        pattern: Pattern::new(work.seed, work.compressible_percent),
        rng: Rng::new(work.seed),
        report: Report {
            pages: work.pages as u64,
            bad: Vec::with_capacity(DESCRIBED_MAX),
            ..Report::default()
        },
        out: Duration::ZERO,
        work,
    };
    lock(&worker.generations)?;
    lock(std::slice::from_ref(&*worker.scratch))?;
    worker.run(ready)
}

impl Worker<'_> {
    fn run(mut self, ready: impl FnOnce()) -> io::Result<Report> {
        let start = Instant::now();
        for page in 0..self.work.pages {
            self.write(page);
        }
        self.out += start.elapsed();
        self.page_out()?;
        ready();
        while self.goes_on() {
            self.pass();
            self.page_out()?;
            self.report.passes += 1;
        }
        let start = Instant::now();
        for page in 0..self.work.pages {
            self.verify(page);
        }
        self.report.in_ms = start.elapsed().as_millis() as u64;
        self.report.out_ms = self.out.as_millis() as u64;
        Ok(self.report)
    }

    /// Not all passes that must be are done, or nobody has said yet that it is enough.
    fn goes_on(&self) -> bool {
        self.report.passes < u64::from(self.work.passes)
            || self.work.until.is_some_and(|path| !path.exists())
    }

    /// As many touches as there are pages, half of them writes. One that need not be ends early
    /// when it is enough: where memory is short, a pass takes a minute.
    fn pass(&mut self) {
        let pages = self.work.pages as u64;
        let mut touched = 0;
        let mut looked = 0;
        while touched < pages {
            if touched - looked >= LOOK_PAGES {
                looked = touched;
                if !self.goes_on() {
                    return;
                }
            }
            let (first, count) = match self.work.touch {
                Touch::Random => (self.rng.below(pages), 1),
                Touch::Sequential => (touched, 1),
                Touch::Mixed => (self.rng.below(pages), 1 + self.rng.below(RUN_PAGES_MAX)),
            };
            let last = (first + count).min(pages);
            for page in first..last {
                if self.rng.one_in(2) {
                    // Checked before it is overwritten, or a wrong page would go unseen.
                    self.verify(page as usize);
                    self.write(page as usize);
                } else {
                    self.verify(page as usize);
                }
            }
            touched += last - first;
        }
    }

    fn write(&mut self, page: usize) {
        self.generations[page] += 1;
        self.pattern.fill(page as u32, self.generations[page], self.region.page_mut(page));
        self.report.pages_written += 1;
    }

    fn verify(&mut self, page: usize) {
        let generation = self.generations[page];
        let found = self.region.page(page);
        let result = self.pattern.check(page as u32, generation, found, &mut self.scratch);
        self.report.pages_verified += 1;
        let Err(difference) = result else { return };
        self.report.bad_pages += 1;
        if self.report.bad.len() < DESCRIBED_MAX {
            self.report.bad.push(difference.to_string());
        }
        // Count every damage once: make the page right again.
        self.pattern.fill(page as u32, generation, self.region.page_mut(page));
    }

    fn page_out(&mut self) -> io::Result<()> {
        if !self.work.page_out {
            return Ok(());
        }
        let start = Instant::now();
        for first in (0..self.work.pages).step_by(PAGE_OUT_PAGES) {
            let count = PAGE_OUT_PAGES.min(self.work.pages - first);
            self.region.page_out(first, count)?;
        }
        self.out += start.elapsed();
        Ok(())
    }
}

impl Report {
    /// Adds another process's report. Times are those of the slowest: they ran side by side.
    pub fn add(&mut self, other: Report) {
        self.pages += other.pages;
        self.passes = self.passes.max(other.passes);
        self.pages_written += other.pages_written;
        self.pages_verified += other.pages_verified;
        self.bad_pages += other.bad_pages;
        self.bad.extend(other.bad);
        self.bad.truncate(DESCRIBED_MAX);
        self.out_ms = self.out_ms.max(other.out_ms);
        self.in_ms = self.in_ms.max(other.in_ms);
    }
}

/// Pages per MiB.
pub const PAGES_PER_MIB: usize = (1 << 20) / PAGE_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    fn work(touch: Touch) -> Work<'static> {
        Work {
            pages: 500,
            passes: 3,
            seed: 9,
            touch,
            compressible_percent: 50,
            page_out: false,
            until: None,
        }
    }

    #[test]
    fn good_memory_has_no_bad_page() {
        for touch in [Touch::Random, Touch::Sequential, Touch::Mixed] {
            let mut ready = 0;
            let report = run(&work(touch), || ready += 1).unwrap();
            assert_eq!((report.bad_pages, report.passes, ready), (0, 3, 1));
            assert!(report.pages_verified >= 4 * 500, "{report:?}");
            assert!(report.pages_written > 500, "{report:?}");
        }
    }

    #[test]
    fn work_goes_on_until_the_file_exists() {
        let folder = tempfile::tempdir().unwrap();
        let stop = folder.path().join("stop");
        let work = Work { until: Some(&stop), passes: 0, ..work(Touch::Random) };
        let report = run(&work, || std::fs::write(&stop, "").unwrap()).unwrap();
        assert_eq!((report.bad_pages, report.passes), (0, 0));
    }

    #[test]
    fn a_wrong_page_is_counted_once_and_described() {
        let work = work(Touch::Random);
        let mut worker = Worker {
            region: Region::map(work.pages).unwrap(),
            generations: vec![0; work.pages],
            scratch: Box::default(),
            pattern: Pattern::new(work.seed, work.compressible_percent),
            rng: Rng::new(1),
            report: Report::default(),
            out: Duration::ZERO,
            work: &work,
        };
        worker.write(3);
        worker.region.page_mut(3)[100] ^= 1;
        worker.verify(3);
        worker.verify(3);
        assert_eq!((worker.report.bad_pages, worker.report.pages_verified), (1, 2));
        assert!(worker.report.bad[0].starts_with("page 3 generation 1: 1 bytes differ, first at"));
    }
}
