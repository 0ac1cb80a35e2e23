//! What a store does beside its requests: the mark that the volume is in use is kept fresh, and what
//! an earlier mount has left is removed.
//!
//! The mark is a text that is written once; how fresh it is its time to live tells, which is set anew
//! all the time. That needs no memory of the server, so a full one takes it, and it is the server's
//! clock that counts.

use super::failure::Failure;
use super::link::{Link, accepted};
use super::mark::{Mark, TTL_MS};
use super::{Shared, gc};
use crate::sys::network_heap::NetworkPath;
use log::info;
use redis::Value;
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
    /// It was looked what was there before.
    has_looked: bool,
    /// The run of an earlier mount that is over, whose objects may be there still.
    left_run: Option<u64>,
}

impl OwnMark {
    pub(super) fn new(run: u64) -> OwnMark {
        OwnMark { mark: Mark::own(run), is_written: false, has_looked: false, left_run: None }
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
        let mut marked = self.keep_fresh();
        let left = self.mark.lock().as_mut().and_then(|own| own.left_run.take());
        if let Some(run) = left {
            let removed = self.remove_run(run, &mut || {
                if marked.elapsed() >= INTERVAL {
                    marked = self.keep_fresh();
                }
            });
            match removed {
                Ok(0) => {}
                Ok(keys) => info!("remote: {keys} objects of an earlier mount were removed"),
                Err(failure) => info!("remote: objects of an earlier mount are left: {failure}"),
            }
        }
        loop {
            let mut state = self.upkeep.lock();
            let until = marked + INTERVAL;
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
            drop(state);
            marked = self.keep_fresh();
        }
    }

    /// Makes the mark fresh; answers when that was done.
    fn keep_fresh(&self) -> Instant {
        if let Err(failure) = self.write_mark() {
            info!("remote: the mark that the volume is in use was not written: {failure}");
        }
        Instant::now()
    }

    /// Makes the mark fresh, and writes it where that was not done yet.
    pub(super) fn write_mark(&self) -> Result<(), Failure> {
        // Held meanwhile, so that a mark that was removed is not written again.
        let mut own = self.mark.lock();
        let Some(own) = own.as_mut() else { return Ok(()) };
        let text =
            serde_json::to_string(&own.mark).map_err(|error| Failure::odd(error.to_string()))?;
        let mut write = redis::cmd("SET");
        write.arg(self.names.mark()).arg(text).arg("PX").arg(TTL_MS);
        let mut refresh = redis::cmd("PEXPIRE");
        refresh.arg(self.names.mark()).arg(TTL_MS);
        let ask = |link: &mut Link, command, until| link.command(command, until).and_then(accepted);
        self.over_link(&mut |link, until| {
            if own.is_written && ask(link, &refresh, until)? == Value::Int(1) {
                return Ok(());
            }
            if !own.has_looked {
                own.left_run = gc::mark_of(link, &self.names, until)?.and_then(|(before, age)| {
                    own.mark.follows(&before, age).then(|| before.run_number()).flatten()
                });
                own.has_looked = true;
            }
            match ask(link, &write, until) {
                Ok(_) => own.is_written = true,
                // There is no room for it: one of an earlier process does as well.
                Err(failure) if failure.errno == libc::ENOSPC => {
                    if ask(link, &refresh, until)? != Value::Int(1) {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
            }
            Ok(())
        })
    }

    fn remove_run(&self, run: u64, meanwhile: &mut dyn FnMut()) -> Result<u64, Failure> {
        let deadline = self.settings.server.deadline;
        let mut link = self.pool.take(Instant::now() + deadline)?;
        let begun = Instant::now();
        let wanted = |of, _| of == run;
        let progress = &mut |_| meanwhile();
        let volume = self.settings.volume;
        let swept = gc::sweep(&mut link, volume, deadline, &wanted, Some(run), progress);
        match &swept {
            Ok(_) => self.pool.give(link),
            Err(failure) => self.give_or_lose(link, begun, failure),
        }
        swept
    }
}
