//! The mark that the volume is in use is kept fresh.
//!
//! It is a text that is written once; how fresh it is its time to live tells, which is set anew all the
//! time. That needs no memory of the server, so a full one takes it, and it is the server's clock that
//! counts.

use super::Shared;
use super::failure::Failure;
use super::link::{Link, accepted};
use super::mark::{Mark, TTL_MS};
use crate::sys::network_heap::NetworkPath;
use log::info;
use redis::Value;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

/// How often the mark is made fresh.
const INTERVAL: Duration = Duration::from_secs(15);

/// What the thread for all this waits for.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// The store was asked for something.
    pub(super) asked: bool,
    pub(super) stopped: bool,
}

/// The mark of this process.
#[derive(Debug)]
pub(super) struct OwnMark {
    mark: Mark,
    is_written: bool,
}

impl OwnMark {
    pub(super) fn new(run: u64) -> OwnMark {
        OwnMark { mark: Mark::own(run), is_written: false }
    }
}

impl Shared {
    /// Keeps the mark fresh, once the store is used.
    pub(super) fn keep_up(&self) {
        let _path = NetworkPath::enter();
        let mut state = self.upkeep.lock();
        while !state.asked {
            if state.stopped {
                return;
            }
            state = self.turn.wait(state);
        }
        drop(state);
        loop {
            if let Err(failure) = self.write_mark() {
                info!("remote: the mark that the volume is in use was not written: {failure}");
            }
            let mut state = self.upkeep.lock();
            let until = Instant::now() + INTERVAL;
            loop {
                if state.stopped {
                    return;
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                state = self.turn.wait_timeout(state, left);
            }
        }
    }

    /// Makes the mark fresh, and writes it where that was not done yet.
    pub(super) fn write_mark(&self) -> Result<(), Failure> {
        self.write_own(self.mark.lock())
    }

    /// The same; but if somebody is at it already, it is only looked whether the servers answer.
    pub(super) fn check_mark(&self) -> Result<(), Failure> {
        match self.mark.try_lock() {
            Some(own) => self.write_own(own),
            None => {
                let mut ping = redis::cmd("GET");
                ping.arg(self.names.mark());
                self.over_link(&mut |link, until| {
                    link.command(&ping, until).and_then(accepted).map(drop)
                })
            }
        }
    }

    /// The lock is held meanwhile, so that a mark that was removed is not written again.
    fn write_own(&self, mut own: MutexGuard<'_, Option<OwnMark>>) -> Result<(), Failure> {
        let Some(own) = own.as_mut() else { return Ok(()) };
        let text =
            serde_json::to_string(&own.mark).map_err(|error| Failure::odd(error.to_string()))?;
        let mut write = redis::cmd("SET");
        write.arg(self.names.mark()).arg(text).arg("PX").arg(TTL_MS);
        let mut refresh = redis::cmd("PEXPIRE");
        refresh.arg(self.names.mark()).arg(TTL_MS);
        let ask = |link: &mut Link, command, until| link.command(command, until).and_then(accepted);
        self.over_link(&mut |link, until| {
            let is_fresh = |link: &mut Link| match ask(link, &refresh, until) {
                Ok(answer) => Ok(answer == Value::Int(1)),
                // Who may not do that can still write it anew, if there is room.
                Err(failure) if failure.errno == libc::EACCES && link.is_open() => Ok(false),
                Err(failure) => Err(failure),
            };
            if own.is_written && is_fresh(link)? {
                return Ok(());
            }
            match ask(link, &write, until) {
                Ok(_) => own.is_written = true,
                // There is no room for it: one of an earlier process does as well.
                Err(failure) if failure.errno == libc::ENOSPC => {
                    if !is_fresh(link)? {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
            }
            Ok(())
        })
    }
}
