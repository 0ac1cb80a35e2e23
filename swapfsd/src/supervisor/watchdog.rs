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

/// A look counts for so long at most: should the whole machine, or all of us, have stood still
/// (a frozen cgroup, a stopped virtual machine), that is no hang of the worker's.
pub const LOOK_AT_MOST: Duration = Duration::from_secs(1);
/// What a worker that is coming up, or making state again, is given at least.
const UP_PATIENCE: Duration = Duration::from_secs(60);

/// Looks at the signs again and again.
#[derive(Debug, Default)]
pub struct Watchdog {
    limit: Duration,
    looked_at: Duration,
    last: Signs,
    /// Without a heartbeat, and without anything done though something waited.
    silent: Duration,
    deaf: Duration,
    /// Doubles with each worker in a row that was killed before it served.
    up_patience: Duration,
}

impl Watchdog {
    /// A watchdog that bites after `limit`; zero: never.
    #[must_use]
    pub fn new(limit: Duration) -> Watchdog {
        Watchdog { limit, up_patience: UP_PATIENCE.max(limit), ..Watchdog::default() }
    }

    /// Another worker begins, to come up or to serve, at `now`.
    pub fn restart(&mut self, now: Duration) {
        self.looked_at = now;
        (self.silent, self.deaf) = (Duration::ZERO, Duration::ZERO);
    }

    /// Judges what is seen at `now`, a time that only goes up. `serves`: the worker has said so;
    /// before that only its heart counts, and with more patience.
    pub fn look(&mut self, now: Duration, signs: Signs, serves: bool) -> Option<Hang> {
        let passed = now.saturating_sub(self.looked_at).min(LOOK_AT_MOST);
        self.looked_at = now;
        let beats = signs.heartbeat != self.last.heartbeat;
        self.silent = if beats { Duration::ZERO } else { self.silent + passed };
        let served = signs.done != self.last.done || !signs.unread || signs.in_device > 0;
        self.deaf = if served || !serves { Duration::ZERO } else { self.deaf + passed };
        self.last = signs;
        if self.limit.is_zero() {
            return None;
        }
        if !serves {
            let hangs = self.silent >= self.up_patience;
            if hangs {
                self.up_patience *= 2;
            }
            return hangs.then_some(Hang::Stopped);
        }
        self.up_patience = UP_PATIENCE.max(self.limit);
        if self.silent >= self.limit {
            Some(Hang::Stopped)
        } else if signs.oldest >= self.limit && signs.in_device == 0 {
            Some(Hang::Stuck)
        } else if self.deaf >= self.limit {
            Some(Hang::Deaf)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Looks twice a second from `from` on, for `seconds`; the signs are made of the seconds that
    /// have passed.
    fn watch(
        watchdog: &mut Watchdog,
        seconds: u64,
        serves: bool,
        signs: impl Fn(u64) -> Signs,
    ) -> Option<(u64, Hang)> {
        let start = Duration::from_secs(100);
        watchdog.restart(start);
        (0..2 * seconds).find_map(|half| {
            let now = start + Duration::from_millis(500 * half);
            watchdog.look(now, signs(half / 2), serves).map(|hang| (half / 2, hang))
        })
    }

    #[test]
    fn a_worker_that_beats_and_serves_is_left_alone() {
        let mut watchdog = Watchdog::new(LIMIT);
        let busy = |s| Signs { heartbeat: s, done: s, unread: true, ..Signs::default() };
        assert_eq!(watch(&mut watchdog, 1000, true, busy), None);
        // Idle: nothing is done, and nothing asked for.
        let idle = |s| Signs { heartbeat: s, done: 1000, ..Signs::default() };
        assert_eq!(watch(&mut watchdog, 1000, true, idle), None);
    }

    #[test]
    fn each_kind_of_hang_is_seen_after_the_limit_and_not_before() {
        let seen = |signs: fn(u64) -> Signs| watch(&mut Watchdog::new(LIMIT), 100, true, signs);
        let stopped = seen(|_| Signs::default());
        assert!(matches!(stopped, Some((19..=21, Hang::Stopped))), "{stopped:?}");
        let oldest = |s| Duration::from_secs(s);
        let stuck = watch(&mut Watchdog::new(LIMIT), 100, true, |s| Signs {
            heartbeat: s,
            oldest: oldest(s),
            done: s,
            ..Signs::default()
        });
        assert!(matches!(stuck, Some((19..=21, Hang::Stuck))), "{stuck:?}");
        let deaf = seen(|s| Signs { heartbeat: s, unread: true, ..Signs::default() });
        assert!(matches!(deaf, Some((19..=21, Hang::Deaf))), "{deaf:?}");
    }

    #[test]
    fn a_slow_device_is_no_hang() {
        let signs = |s| Signs {
            heartbeat: s,
            oldest: Duration::from_secs(s),
            in_device: 1,
            unread: true,
            done: 0,
        };
        assert_eq!(watch(&mut Watchdog::new(LIMIT), 1000, true, signs), None);
    }

    /// What the predecessor left on the page says nothing of its successor.
    #[test]
    fn a_worker_that_comes_up_is_given_time_and_more_each_time() {
        let mut watchdog = Watchdog::new(LIMIT);
        let left = |_| Signs { oldest: LIMIT * 10, unread: true, ..Signs::default() };
        let first = watch(&mut watchdog, 1000, false, left).map(|(seconds, _)| seconds);
        let second = watch(&mut watchdog, 1000, false, left).map(|(seconds, _)| seconds);
        assert!(
            matches!((first, second), (Some(58..=61), Some(118..=121))),
            "{first:?} {second:?}"
        );
        let rebuilding = |s| Signs { heartbeat: s, unread: true, ..Signs::default() };
        assert_eq!(watch(&mut watchdog, 1000, false, rebuilding), None);
    }

    #[test]
    fn a_machine_that_stood_still_is_no_hang() {
        let mut watchdog = Watchdog::new(LIMIT);
        watchdog.restart(Duration::from_secs(1));
        for hour in 1..10 {
            let now = Duration::from_secs(3600 * hour);
            assert_eq!(watchdog.look(now, Signs::default(), true), None);
        }
    }

    #[test]
    fn a_limit_of_zero_never_bites() {
        assert_eq!(
            watch(&mut Watchdog::new(Duration::ZERO), 1000, true, |_| Signs::default()),
            None
        );
    }
}
