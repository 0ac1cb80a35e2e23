//! Is the worker still there? Death is told by the kernel; this is about a worker that lives and
//! does not answer.
//!
//! Two things are a hang: the heartbeat stops (the process is stopped, or its threads get no
//! time), or the oldest request under way does not end though nothing of it waits for a device.
//! A request that waits for a device is none, however long: a successor would wait for the same
//! device.

use std::time::Duration;

/// What the worker shows of itself, see [`crate::control::Page`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signs {
    /// Goes up as long as the worker lives.
    pub heartbeat: u64,
    /// How long its oldest request has been under way.
    pub oldest: Duration,
    /// Requests that wait for a device.
    pub in_device: u32,
    /// The kernel has requests that nobody has read.
    pub unread: bool,
    /// Requests done, ever.
    pub done: u64,
}

/// Why a worker is to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hang {
    /// Its heart does not beat.
    Stopped,
    /// A request does not end.
    Stuck,
    /// Requests are there that it does not read.
    Deaf,
}

impl std::fmt::Display for Hang {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Hang::Stopped => "it shows no sign of life (is it stopped?)",
            Hang::Stuck => "a request does not end, and no device is to blame",
            Hang::Deaf => "it does not take requests any more",
        })
    }
}

/// Looks at the signs again and again.
#[derive(Debug, Default)]
pub struct Watchdog {
    limit: Duration,
    last: Signs,
    /// When the heart last beat, and when something was last done or nothing was waiting.
    beat_at: Duration,
    served_at: Duration,
}

impl Watchdog {
    /// A watchdog that bites after `limit`; zero: never.
    #[must_use]
    pub fn new(limit: Duration) -> Watchdog {
        Watchdog { limit, ..Watchdog::default() }
    }

    /// A worker begins to serve at `now`.
    pub fn restart(&mut self, now: Duration) {
        *self = Watchdog { beat_at: now, served_at: now, ..Watchdog::new(self.limit) };
    }

    /// Judges what is seen at `now`, a time that only goes up.
    pub fn look(&mut self, now: Duration, signs: Signs) -> Option<Hang> {
        if signs.heartbeat != self.last.heartbeat {
            self.beat_at = now;
        }
        if signs.done != self.last.done || !signs.unread || signs.in_device > 0 {
            self.served_at = now;
        }
        self.last = signs;
        if self.limit.is_zero() {
            None
        } else if now.saturating_sub(self.beat_at) >= self.limit {
            Some(Hang::Stopped)
        } else if signs.oldest >= self.limit && signs.in_device == 0 {
            Some(Hang::Stuck)
        } else if now.saturating_sub(self.served_at) >= self.limit {
            Some(Hang::Deaf)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn watchdog() -> Watchdog {
        let mut watchdog = Watchdog::new(at(20));
        watchdog.restart(at(100));
        watchdog
    }

    #[test]
    fn a_worker_that_beats_and_serves_is_left_alone() {
        let mut watchdog = watchdog();
        for second in 0..1000 {
            let signs = Signs { heartbeat: second, done: second, unread: true, ..Signs::default() };
            assert_eq!(watchdog.look(at(100 + second), signs), None);
        }
        // Idle: nothing is done, and nothing asked for.
        for second in 1000..2000 {
            let signs = Signs { heartbeat: second, done: 1000, ..Signs::default() };
            assert_eq!(watchdog.look(at(100 + second), signs), None);
        }
    }

    #[test]
    fn each_kind_of_hang_is_seen_after_the_limit_and_not_before() {
        let mut stopped = watchdog();
        assert_eq!(stopped.look(at(119), Signs::default()), None);
        assert_eq!(stopped.look(at(120), Signs::default()), Some(Hang::Stopped));
        let mut stuck = watchdog();
        let signs = |heartbeat, oldest| Signs { heartbeat, oldest: at(oldest), ..Signs::default() };
        assert_eq!(stuck.look(at(119), signs(1, 19)), None);
        assert_eq!(stuck.look(at(120), signs(2, 20)), Some(Hang::Stuck));
        let mut deaf = watchdog();
        for second in 0..20 {
            let signs = Signs { heartbeat: second + 1, unread: true, ..Signs::default() };
            assert_eq!(deaf.look(at(100 + second), signs), None);
        }
        let signs = Signs { heartbeat: 99, unread: true, ..Signs::default() };
        assert_eq!(deaf.look(at(120), signs), Some(Hang::Deaf));
    }

    #[test]
    fn a_slow_device_is_no_hang() {
        let mut watchdog = watchdog();
        for second in 0..1000 {
            let signs = Signs {
                heartbeat: second + 1,
                oldest: at(second),
                in_device: 1,
                unread: true,
                done: 0,
            };
            assert_eq!(watchdog.look(at(100 + second), signs), None);
        }
    }

    #[test]
    fn a_limit_of_zero_never_bites() {
        let mut watchdog = Watchdog::new(Duration::ZERO);
        watchdog.restart(at(1));
        assert_eq!(watchdog.look(at(10_000), Signs::default()), None);
    }
}
