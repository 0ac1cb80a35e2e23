//! How far the threads of a session have got together.

use crate::sync::{Condvar, Mutex};
use std::io;
use std::time::{Duration, Instant};

/// Threads that have done the present step, and what went wrong.
#[derive(Debug, Default)]
struct Count {
    done: u32,
    /// Steps that were begun.
    step: u32,
    error: Option<i32>,
}

/// Several threads do a step each; another one begins it, and waits until all have done it.
#[derive(Debug)]
pub(super) struct Progress {
    threads: u32,
    count: Mutex<Count>,
    changed: Condvar,
}

impl Progress {
    pub(super) fn new(threads: u32) -> Progress {
        Progress { threads, count: Mutex::new(Count::default()), changed: Condvar::new() }
    }

    /// The next step begins; nobody has done it yet.
    pub(super) fn begin(&self) {
        let mut count = self.count.lock();
        count.done = 0;
        count.step += 1;
        drop(count);
        self.changed.notify_all();
    }

    /// Waits until so many steps were begun.
    pub(super) fn wait_for_step(&self, step: u32) {
        let mut count = self.count.lock();
        while count.step < step {
            count = self.changed.wait(count);
        }
    }

    /// The calling thread has done the step.
    pub(super) fn one_more(&self) {
        self.count.lock().done += 1;
        self.changed.notify_all();
    }

    /// The calling thread could not do it.
    pub(super) fn failed(&self, error: &io::Error) {
        self.count.lock().error = Some(error.raw_os_error().unwrap_or(libc::EIO));
        self.one_more();
    }

    /// Waits until all threads have done the step. False: not in time.
    ///
    /// # Errors
    /// The error of a thread that failed.
    pub(super) fn wait_for_all(&self, at_most: Duration) -> io::Result<bool> {
        let started = Instant::now();
        loop {
            let count = self.count.lock();
            if let Some(errno) = count.error {
                return Err(io::Error::from_raw_os_error(errno));
            }
            if count.done >= self.threads {
                return Ok(true);
            }
            drop(count);
            if started.elapsed() > at_most {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
