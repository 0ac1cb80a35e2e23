//! Whether there is a connection at all: requests wait here for one, and the connector learns here
//! that one has gone, and that one is wanted at all.

use super::counters::{Counters, count};
use super::table::Ended;
use crate::sync::{Condvar, Mutex};
use crate::sys::event::EventFd;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug)]
struct State {
    up: usize,
    /// Since when there is none, or since when one is wanted, if that came later.
    gone_since: Instant,
    /// Why the last attempt to connect failed, or 0.
    errno: i32,
    /// Attempts to connect that have ended.
    attempts: u64,
    stop: bool,
    waiting: u32,
}

/// See above.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    /// Somebody has wanted a connection; changes under the lock.
    asked: AtomicBool,
    changed: Condvar,
    /// For the connector: something has changed.
    pub(super) event: EventFd,
    pub(super) counters: Counters,
    deadline: Duration,
}

impl Gate {
    pub(super) fn new(deadline: Duration) -> io::Result<Gate> {
        let state = State {
            up: 0,
            gone_since: Instant::now(),
            errno: 0,
            attempts: 0,
            stop: false,
            waiting: 0,
        };
        Ok(Gate {
            state: Mutex::new(state),
            asked: AtomicBool::new(false),
            changed: Condvar::new(),
            event: EventFd::new()?,
            counters: Counters::default(),
            deadline,
        })
    }

    /// A connection is wanted. The first time, it is from now on that none has been there.
    pub(super) fn ask(&self) {
        if self.asked.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state.lock();
        if !self.asked.swap(true, Ordering::Relaxed) {
            state.gone_since = Instant::now();
            self.changed.notify_all();
        }
    }

    /// For the connector: waits until a connection is wanted, or none will ever be.
    pub(super) fn wait_until_asked(&self) {
        let mut state = self.state.lock();
        while !self.asked.load(Ordering::Relaxed) && !state.stop {
            state = self.changed.wait(state);
        }
    }

    /// A connection is there; `publish` makes it be seen.
    pub(super) fn came(&self, publish: impl FnOnce()) {
        let mut state = self.state.lock();
        publish();
        state.up += 1;
        state.errno = 0;
        self.changed.notify_all();
    }

    /// A connection is gone; `publish` makes that be seen.
    pub(super) fn went(&self, ended: Ended, publish: impl FnOnce()) {
        if matches!(ended, Ended::Failed(_)) {
            count(&self.counters.protocol_errors, 1);
        }
        let mut state = self.state.lock();
        publish();
        state.up = state.up.saturating_sub(1);
        if state.up == 0 {
            state.gone_since = Instant::now();
        }
        drop(state);
        self.event.signal();
    }

    /// An attempt to connect has ended.
    pub(super) fn attempted(&self, errno: i32) {
        let mut state = self.state.lock();
        state.attempts += 1;
        state.errno = errno;
        self.changed.notify_all();
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.lock().up > 0
    }

    pub(super) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
        self.event.signal();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.state.lock().stop
    }

    /// Waits until `choose` finds a connection, but not beyond `deadline`, and not if there has
    /// been none for as long as a request may take.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn wait<T>(
        &self,
        deadline: Instant,
        choose: impl Fn() -> Option<T>,
    ) -> Result<T, i32> {
        let mut state = self.state.lock();
        loop {
            if let Some(chosen) = choose() {
                return Ok(chosen);
            }
            let until = deadline.min(state.gone_since + self.deadline);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.stop {
                let errno = if state.errno == 0 { libc::ETIMEDOUT } else { state.errno };
                return Err(errno);
            }
            state.waiting += 1;
            state = self.changed.wait_timeout(state, left);
            state.waiting -= 1;
        }
    }

    /// Waits until an attempt to connect has ended, or until `deadline`; answers whether there is
    /// a connection.
    pub(super) fn wait_for_first(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while state.up == 0 && state.attempts == 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left);
        }
        state.up > 0
    }

    pub(super) fn count_timeout(&self) {
        count(&self.counters.timeouts, 1);
    }
}
