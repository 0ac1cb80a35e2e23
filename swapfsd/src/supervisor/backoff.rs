//! How long to wait before the next worker is started: not at all, unless one after the other
//! crashes at once.
//!
//! A worker that is killed from outside has done nothing wrong. One that crashes on its own within
//! a second of taking over will probably do so again (the request that it crashed on comes again),
//! and the processor shall not be kept busy with that. It never ends: as long as there is swap on
//! the volume, giving up would lose it.

use crate::sys::spawn::Ended;
use std::time::Duration;

/// A worker that has lived so long was in order.
const GOOD_LIFE: Duration = Duration::from_secs(1);
/// The first crashes cost nothing.
const FREE: u32 = 3;
const STEP: Duration = Duration::from_millis(10);
const MOST: Duration = Duration::from_secs(5);

/// Counts crashes.
#[derive(Debug, Default)]
pub struct Backoff {
    crashes: u32,
}

impl Backoff {
    /// A worker ended in that way after `life`. Answers how long to wait before the next one
    /// serves.
    pub fn after(&mut self, ended: Ended, life: Duration) -> Duration {
        let by_itself = match ended {
            Ended::Exit(_) => true,
            Ended::Signal(signal) => signal != libc::SIGKILL && signal != libc::SIGTERM,
            Ended::Unknown => false,
        };
        if !by_itself || life >= GOOD_LIFE {
            self.crashes = 0;
            return Duration::ZERO;
        }
        self.crashes = self.crashes.saturating_add(1);
        match self.crashes.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(steps) => MOST.min(STEP * 2u32.saturating_pow(steps.min(16))),
        }
    }

    /// Crashes in a row.
    #[must_use]
    pub fn crashes(&self) -> u32 {
        self.crashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crashes_in_a_row_are_waited_after() {
        let short = Duration::from_millis(5);
        let mut backoff = Backoff::default();
        for _ in 0..1000 {
            assert_eq!(backoff.after(Ended::Signal(libc::SIGKILL), short), Duration::ZERO);
            assert_eq!(backoff.after(Ended::Unknown, short), Duration::ZERO);
        }
        let crash = Ended::Signal(libc::SIGSEGV);
        let waits: Vec<Duration> = (0..40).map(|_| backoff.after(crash, short)).collect();
        assert_eq!(&waits[..3], [Duration::ZERO; 3]);
        assert_eq!(waits[3], STEP);
        assert!(waits.is_sorted() && waits[39] == MOST);
        assert_eq!(backoff.after(crash, GOOD_LIFE), Duration::ZERO);
        assert_eq!(backoff.after(Ended::Exit(1), short), Duration::ZERO);
        assert_eq!(backoff.crashes(), 1);
    }
}
