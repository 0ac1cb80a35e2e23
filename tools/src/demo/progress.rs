//! Progress lines of the demo: on a terminal a line that is written over, else one line a phase.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};
use swapfs_format::PAGE_BYTES;
use swapfs_format::size::human;

const REDRAW_STEP: Duration = Duration::from_millis(100);

/// One phase of the work.
pub struct Progress {
    phase: &'static str,
    page_count: usize,
    terminal: bool,
    silent: bool,
    started: Instant,
    drawn: Instant,
}

impl Progress {
    /// Begins a phase over `page_count` pages.
    #[must_use]
    pub fn begin(phase: &'static str, page_count: usize) -> Progress {
        let now = Instant::now();
        let terminal = io::stderr().is_terminal();
        Progress { phase, page_count, terminal, silent: false, started: now, drawn: now }
    }

    /// Shows nothing.
    #[must_use]
    pub fn silent() -> Progress {
        Progress { silent: true, terminal: false, ..Progress::begin("", 0) }
    }

    /// `done_pages` are done.
    pub fn at(&mut self, done_pages: usize) {
        if !self.terminal || self.drawn.elapsed() < REDRAW_STEP {
            return;
        }
        self.drawn = Instant::now();
        eprint!("\r{}: {} \x1b[K", self.phase, self.amount(done_pages));
        // A line that is not shown is no loss.
        let _ = io::stderr().flush();
    }

    /// Ends the phase and says how long it took.
    pub fn end(self) -> Duration {
        let took = self.started.elapsed();
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        if !self.silent {
            let amount = human(self.page_count as u64 * PAGE_BYTES);
            eprintln!("{}: {amount} in {:.2} s", self.phase, took.as_secs_f64());
        }
        took
    }

    fn amount(&self, done_pages: usize) -> String {
        let percent = (done_pages * 100).checked_div(self.page_count).unwrap_or(100);
        format!("{} ({percent} %)", human(done_pages as u64 * PAGE_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_shares() {
        let progress = Progress::begin("out", 512);
        assert_eq!(progress.amount(256), "1 MiB (50 %)");
        assert_eq!(progress.amount(512), "2 MiB (100 %)");
        assert_eq!(Progress::silent().amount(0), "0 B (100 %)");
    }
}
