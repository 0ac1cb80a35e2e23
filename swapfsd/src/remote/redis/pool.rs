//! The links of a store: requests take one each, threads of their own make new ones.

use super::counters::{Counters, count};
use super::failure::Failure;
use super::link::{Link, Maker};
use crate::sync::{Condvar, Mutex};
use crate::sys::network_heap::NetworkPath;
use log::{info, warn};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Threads that make links.
const CONNECTORS: usize = 2;
/// How long after a failed attempt the next one is made: at first, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A link that was not used for that long is looked at before it is used.
const IDLE: Duration = Duration::from_secs(1);

struct State {
    idle: Vec<Link>,
    /// Links that there are, idle or in use.
    live: usize,
    /// Links that are being made.
    making: usize,
    /// Requests that wait for a link.
    waiting: usize,
    /// A link was asked for: before that, none is made.
    wanted: bool,
    /// Since when there is no link at all.
    gone_since: Option<Instant>,
    /// Why the last attempt to make one failed; `None`: it did not.
    said: Option<Failure>,
    /// Attempts that failed since one succeeded.
    failures: u32,
    not_before: Instant,
    /// Links that were used last before that may be dead.
    doubted: Instant,
    stopped: bool,
}

/// The links.
pub(super) struct Pool {
    state: Mutex<State>,
    /// A link is free, or there is no hope of one.
    free: Condvar,
    /// A link is missing.
    missing: Condvar,
    pub(super) maker: Maker,
    limit: usize,
    deadline: Duration,
    pub(super) counters: Arc<Counters>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("maker", &self.maker).finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts what makes links, once one is wanted.
    ///
    /// # Errors
    /// If a thread can't be started.
    pub(super) fn start(
        maker: Maker,
        limit: usize,
        deadline: Duration,
        counters: Arc<Counters>,
    ) -> io::Result<Arc<Pool>> {
        let now = Instant::now();
        let state = State {
            idle: Vec::with_capacity(limit),
            live: 0,
            making: 0,
            waiting: 0,
            wanted: false,
            gone_since: None,
            said: None,
            failures: 0,
            not_before: now,
            doubted: now,
            stopped: false,
        };
        let (free, missing) = (Condvar::new(), Condvar::new());
        let state = Mutex::new(state);
        let pool = Arc::new(Pool { state, free, missing, maker, limit, deadline, counters });
        for _ in 0..CONNECTORS.min(limit) {
            let own = Arc::clone(&pool);
            let thread = std::thread::Builder::new().name("remote-connect".to_owned());
            if let Err(error) = thread.spawn(move || own.connect()) {
                pool.stop();
                return Err(error);
            }
        }
        Ok(pool)
    }

    /// Lets the threads end; requests that wait fail.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        let idle = std::mem::take(&mut state.idle);
        state.live = state.live.saturating_sub(idle.len());
        drop(state);
        self.missing.notify_all();
        self.free.notify_all();
    }

    /// Links that there are.
    pub(super) fn live(&self) -> usize {
        self.state.lock().live
    }

    /// A link that nobody else has.
    ///
    /// # Errors
    /// If there is none until then, or there has been none for so long that there is no hope.
    pub(super) fn take(&self, until: Instant) -> Result<Link, Failure> {
        let mut state = self.state.lock();
        if !state.wanted {
            (state.wanted, state.gone_since) = (true, Some(Instant::now()));
            self.missing.notify_all();
        }
        loop {
            if state.stopped {
                return Err(Failure::new(libc::ESHUTDOWN, "the store is being closed"));
            }
            while let Some(link) = state.idle.pop() {
                let doubtful = link.used < state.doubted || link.used.elapsed() > IDLE;
                if !doubtful || link.quiet() {
                    return Ok(link);
                }
                self.forget(&mut state, 1, Instant::now());
            }
            let now = Instant::now();
            let gone = state.live == 0
                && state.gone_since.is_some_and(|since| now.duration_since(since) >= self.deadline);
            if gone || now >= until {
                let said = state.said.clone().filter(|_| state.live == 0);
                return Err(said.unwrap_or_else(Failure::time_out));
            }
            state.waiting += 1;
            state = self.free.wait_timeout(state, until - now);
            state.waiting -= 1;
        }
    }

    fn forget(&self, state: &mut State, links: usize, since: Instant) {
        state.live = state.live.saturating_sub(links);
        if state.live == 0 && links > 0 {
            state.gone_since = Some(since);
        }
        count(&self.counters.lost_connections, links as u64);
        self.missing.notify_all();
    }

    /// Gives a link back, on which all replies have been received.
    pub(super) fn give(&self, mut link: Link) {
        if link.stale() {
            drop(link);
            let mut state = self.state.lock();
            self.forget(&mut state, 1, Instant::now());
            return;
        }
        link.used = Instant::now();
        let mut state = self.state.lock();
        if state.stopped {
            return;
        }
        state.idle.push(link);
        if state.waiting > 0 {
            self.free.notify_one();
        }
    }

    /// Something went wrong with a link that was taken at `since`, and it is there no more.
    pub(super) fn lose(&self, since: Instant, failure: &Failure) {
        let mut state = self.state.lock();
        state.doubted = Instant::now();
        let timed_out = failure.errno == libc::ETIMEDOUT;
        // If a server does not answer on one link, it need not be waited for on all others too.
        let idle = if timed_out { std::mem::take(&mut state.idle) } else { Vec::new() };
        let since = if timed_out { since } else { state.doubted };
        self.forget(&mut state, 1 + idle.len(), since);
        if state.said.is_none() {
            state.said = Some(failure.clone());
        }
    }

    fn connect(&self) {
        let _path = NetworkPath::enter();
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return;
            }
            if !state.wanted || state.live + state.making >= self.limit {
                state = self.missing.wait(state);
                continue;
            }
            let now = Instant::now();
            if now < state.not_before {
                let wait = state.not_before - now;
                state = self.missing.wait_timeout(state, wait);
                continue;
            }
            state.making += 1;
            drop(state);
            let made = self.maker.make();
            state = self.state.lock();
            state.making -= 1;
            match made {
                Ok(link) if !state.stopped => {
                    count(&self.counters.connects, 1);
                    if state.failures > 0 {
                        info!("remote: there is a connection again");
                    }
                    (state.failures, state.said, state.gone_since) = (0, None, None);
                    state.live += 1;
                    state.idle.push(link);
                    self.free.notify_one();
                }
                Ok(_) => {}
                Err(failure) => {
                    count(&self.counters.failed_connects, 1);
                    if state.failures == 0 {
                        warn!("remote: can't connect: {failure}");
                    }
                    let back_off = BACK_OFF.0 * (1 << state.failures.min(6));
                    state.failures = state.failures.saturating_add(1);
                    state.not_before = Instant::now() + back_off.min(BACK_OFF.1);
                    state.said = Some(failure);
                    // Those who wait may have waited long enough.
                    self.free.notify_all();
                }
            }
        }
    }
}
