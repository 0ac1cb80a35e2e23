//! A large write on several threads.
//!
//! There is no queue: a large write that is alone puts itself up in the one place where helpers
//! look, and starts; whoever comes along takes the next pages of it. A helper that comes too
//! late costs nothing but its waking. Where other large writes are under way, the processors
//! have enough to do, and nobody is called.
//!
//! No more large writes are worked on at once than there are processors ([`Gate`]). Side by side
//! they would all end late, and hold all threads until then: a read, which a program waits for,
//! would find none. And they are worked on by ordinary tasks. The daemon's threads are real-time
//! tasks, which get memory when others do not; but a large write takes none of the kernel's, and
//! compressing at that priority kept the kernel's own threads on the way of a read (loop, FUSE)
//! from the processors: reads took 1.8 ms beside writes, and take 0.3 since (RESULTS.md).

use super::WritePages;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::sync::{Condvar, Mutex};
use crate::sys::alloc::IoPath;
use crate::sys::process::{self, Ordinary};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use swapfs_format::PAGE_LEN;

/// A write of fewer pages is done before a helper has woken up.
const WORTH_PAGES: usize = 48;
/// Pages that are taken at a time.
const BATCH_BYTES: usize = 8 * PAGE_LEN;

/// One large write.
#[derive(Debug)]
struct Job<'a> {
    store: &'a dyn WritePages,
    first: u64,
    pages: &'a [u8],
    /// The next byte that nobody has taken.
    next: AtomicUsize,
    failed: Mutex<Option<Error>>,
}

impl Job<'_> {
    fn work(&self) {
        loop {
            let start = self.next.fetch_add(BATCH_BYTES, Ordering::Relaxed);
            if start >= self.pages.len() {
                return;
            }
            let batch = &self.pages[start..self.pages.len().min(start + BATCH_BYTES)];
            let first = self.first + (start / PAGE_LEN) as u64;
            if let Err(error) = self.store.write_pages(first, batch) {
                self.failed.lock().get_or_insert(error);
                // What nobody has taken yet is left undone.
                self.next.store(self.pages.len(), Ordering::Relaxed);
                return;
            }
        }
    }
}

/// A job whose owner waits until nobody uses it.
#[derive(Debug, Clone, Copy)]
struct JobPointer(*const Job<'static>);

// SAFETY: the job behind it is Sync, and is used only as `Place` counts.
unsafe impl Send for JobPointer {}

#[derive(Debug, Default)]
struct Place {
    job: Option<JobPointer>,
    /// All of the job is taken; it is its owner's to take it away.
    spent: bool,
    users: usize,
    stop: bool,
}

#[derive(Debug, Default)]
struct Shared {
    place: Mutex<Place>,
    put_up: Condvar,
    left: Condvar,
}

/// Lets so many large writes in at a time, in the order of their coming.
#[derive(Debug)]
struct Gate {
    room: usize,
    state: Mutex<GateState>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    inside: usize,
    /// Tickets given out, and those let in.
    given: u64,
    let_in: u64,
}

impl Gate {
    /// Waits for its turn. Answers how many others are inside.
    fn enter(&self) -> (usize, Inside<'_>) {
        let mut state = self.state.lock();
        let ticket = state.given;
        state.given += 1;
        while state.inside >= self.room || state.let_in != ticket {
            state = self.left.wait(state);
        }
        state.let_in += 1;
        let others = state.inside;
        state.inside += 1;
        // The next one may fit too.
        let more = state.inside < self.room && state.given > state.let_in;
        drop(state);
        if more {
            self.left.notify_all();
        }
        (others, Inside(self))
    }
}

/// One that was let in.
struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.inside -= 1;
        let waiting = state.given > state.let_in;
        drop(state);
        if waiting {
            self.0.left.notify_all();
        }
    }
}

/// The helpers.
#[derive(Debug)]
pub(in crate::backend) struct Fanout {
    shared: Arc<Shared>,
    gate: Gate,
    /// The threads that write are real-time tasks.
    realtime: bool,
    helpers: Vec<JoinHandle<()>>,
}

impl Fanout {
    /// For so many processors: one helper less, asleep.
    pub(in crate::backend) fn new(processors: usize) -> io::Result<Fanout> {
        let shared = Arc::new(Shared::default());
        let gate = Gate { room: processors, state: Mutex::default(), left: Condvar::new() };
        let realtime = process::plans_realtime();
        let mut fanout = Fanout { shared, gate, realtime, helpers: Vec::new() };
        for _ in 1..processors {
            let shared = Arc::clone(&fanout.shared);
            let thread = std::thread::Builder::new().name("write-helper".to_owned());
            fanout.helpers.push(thread.spawn(move || help(&shared))?);
        }
        Ok(fanout)
    }

    /// Stores `pages` from slot `first` on, with help if that is worth it.
    pub(in crate::backend) fn write(
        &self,
        store: &dyn WritePages,
        first: u64,
        pages: &[u8],
    ) -> Result<()> {
        if pages.len() < WORTH_PAGES * PAGE_LEN {
            return store.write_pages(first, pages);
        }
        let (others, _inside) = self.gate.enter();
        let _ordinary = self.realtime.then(Ordinary::enter);
        if others < self.helpers.len() {
            self.write_with_help(store, first, pages)
        } else {
            store.write_pages(first, pages)
        }
    }

    fn write_with_help(&self, store: &dyn WritePages, first: u64, pages: &[u8]) -> Result<()> {
        let job = Job { store, first, pages, next: AtomicUsize::new(0), failed: Mutex::default() };
        let pointer = JobPointer((&raw const job).cast());
        {
            let mut place = self.shared.place.lock();
            if place.job.is_some() {
                drop(place);
                return store.write_pages(first, pages);
            }
            (place.job, place.spent) = (Some(pointer), false);
        }
        let taken_back = TakeBack(&self.shared);
        self.shared.put_up.notify_all();
        job.work();
        drop(taken_back);
        let failed = job.failed.lock().take();
        failed.map_or(Ok(()), Err)
    }

    /// Ends the helpers.
    pub(in crate::backend) fn stop(&mut self) {
        self.shared.place.lock().stop = true;
        self.shared.put_up.notify_all();
        for helper in self.helpers.drain(..) {
            drop(helper.join());
        }
    }
}

/// Takes the job back and waits for its users, also when its owner panics.
struct TakeBack<'a>(&'a Shared);

impl Drop for TakeBack<'_> {
    fn drop(&mut self) {
        let mut place = self.0.place.lock();
        place.spent = true;
        while place.users > 0 {
            place = self.0.left.wait(place);
        }
        place.job = None;
    }
}

/// A helper's use of a job; ends also when it panics, and the job has then failed.
struct Use<'a> {
    shared: &'a Shared,
    job: &'a Job<'a>,
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = Error::new(ErrorKind::Io, Operation::Write, self.job.first);
            self.job.failed.lock().get_or_insert(error);
        }
        let mut place = self.shared.place.lock();
        place.spent = true;
        place.users -= 1;
        if place.users == 0 {
            self.shared.left.notify_all();
        }
    }
}

fn help(shared: &Shared) {
    // What it works on are large writes.
    process::stay_ordinary();
    let _io_path = IoPath::enter();
    let mut place = shared.place.lock();
    while !place.stop {
        let job = match place.job {
            Some(JobPointer(job)) if !place.spent => job,
            _ => {
                place = shared.put_up.wait(place);
                continue;
            }
        };
        place.users += 1;
        drop(place);
        // SAFETY: while `users` is not zero, the owner stays in `TakeBack` at the latest, so the
        // job is alive; it was put up under the same lock.
        let used = Use { shared, job: unsafe { &*job } };
        used.job.work();
        drop(used);
        place = shared.place.lock();
    }
}
