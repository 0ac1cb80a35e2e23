//! Requests that wait for a server elsewhere, or for room that only it can give, are kept off the
//! threads that serve: those are few, and pages in memory are wanted meanwhile.
//!
//! A request is done at once, by the thread that has it, as long as fewer than half of these threads
//! wait. From then on what would wait too is done by threads of the tier's own; and when all of
//! those wait, it waits its turn, no longer than its deadline.

use super::Tier;
use super::lower::{Lower, is_below};
use crate::backend::objects::entry::Entry;
use crate::backend::{AsynchronousBackend, Backend, Completion};
use crate::buffer::{PageBuffer, SMALL_BYTES};
use crate::error::{Error, Operation};
use crate::remote;
use crate::sync::{Condvar, Mutex};
use crate::sys::alloc::IoPath;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Instant;
use swapfs_format::PAGE_LEN;

/// Threads that wait for servers in the stead of those that serve.
pub const THREADS: usize = 24;
/// Requests of 32 KiB and less that may wait: all that a loop device has under way.
pub const SMALL_JOBS: usize = 128;
/// Larger requests that may wait.
pub const LARGE_JOBS: usize = 4;
/// More requests than can be under way ([`crate::volume`]).
const QUEUE_CAPACITY: usize = 512;
const STACK_BYTES: usize = 512 << 10;

#[derive(Debug)]
struct Job {
    operation: Operation,
    first: u64,
    buffer: PageBuffer,
    done: Completion,
    until: Instant,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<VecDeque<Job>>,
    more: Condvar,
    stop: AtomicBool,
    /// Jobs that wait or are done, with small buffers and large ones.
    jobs: [AtomicUsize; 2],
}

/// The threads, and what they have to do.
#[derive(Debug)]
pub(super) struct Waiting {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    started: AtomicBool,
}

impl Waiting {
    /// Without threads.
    pub(super) fn new() -> Waiting {
        let queue = Mutex::new(VecDeque::with_capacity(QUEUE_CAPACITY));
        let shared = Shared {
            queue,
            more: Condvar::new(),
            stop: AtomicBool::new(false),
            jobs: Default::default(),
        };
        Waiting {
            shared: Arc::new(shared),
            threads: Mutex::default(),
            started: AtomicBool::new(false),
        }
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn start(&self, tier: &Weak<Tier>) -> io::Result<()> {
        let mut threads = self.threads.lock();
        for _ in 0..THREADS {
            let (shared, tier) = (Arc::clone(&self.shared), Weak::clone(tier));
            let thread = std::thread::Builder::new().name("tier-wait".to_owned());
            threads.push(thread.stack_size(STACK_BYTES).spawn(move || shared.run(&tier))?);
        }
        self.started.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// There are threads to hand requests to.
    pub(super) fn is_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// There are buffers for such a one beside those of the threads that serve.
    fn takes(&self, bytes: usize) -> bool {
        let class = usize::from(bytes > SMALL_BYTES);
        self.shared.jobs[class].load(Ordering::Relaxed) < [SMALL_JOBS, LARGE_JOBS][class]
    }

    fn push(&self, job: Job) {
        self.shared.count(job.buffer.len()).fetch_add(1, Ordering::Relaxed);
        self.shared.queue.lock().push_back(job);
        self.shared.more.notify_one();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let own = std::thread::current().id();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            self.shared.more.notify_all();
            // The last owner of the tier can be one of these.
            if thread.thread().id() != own {
                drop(thread.join());
            }
        }
    }
}

impl Shared {
    fn count(&self, bytes: usize) -> &AtomicUsize {
        &self.jobs[usize::from(bytes > SMALL_BYTES)]
    }

    fn run(&self, tier: &Weak<Tier>) {
        Lower::never_counted();
        let _io_path = IoPath::enter();
        loop {
            let mut queue = self.queue.lock();
            let job = loop {
                if self.stop.load(Ordering::SeqCst) {
                    return;
                }
                if let Some(job) = queue.pop_front() {
                    break job;
                }
                queue = self.more.wait_timeout(queue, std::time::Duration::from_millis(500));
            };
            drop(queue);
            // Without a tier nobody waits: dropping the job says so.
            let Some(tier) = tier.upgrade() else {
                self.count(job.buffer.len()).fetch_sub(1, Ordering::Relaxed);
                continue;
            };
            let Job { operation, first, mut buffer, done, until } = job;
            let outcome = match operation {
                _ if Instant::now() >= until => {
                    Err(Error::from_os(operation, first, libc::ETIMEDOUT))
                }
                Operation::Write => tier.write(first, &buffer),
                _ => remote::until(until, || tier.read(first, &mut buffer)),
            };
            self.count(buffer.len()).fetch_sub(1, Ordering::Relaxed);
            done.complete(outcome.map(|()| buffer));
        }
    }
}

impl Tier {
    /// Does a page of these lie on a server elsewhere?
    fn is_elsewhere(&self, first: u64, count: u64) -> bool {
        let members = self.lower.members();
        (first..first + count).any(|slot| {
            let cell = self.store().table.cell_of(slot);
            let entry = cell.map(|cell| Entry(cell.load(Ordering::Acquire)));
            let location = entry.and_then(Entry::as_object).map(|object| object.location);
            location.filter(|&location| is_below(location)).is_some_and(|location| {
                members.iter().any(|member| member.is_remote() && member.has(location))
            })
        })
    }
}

impl AsynchronousBackend for Tier {
    fn is_worth_starting(&self, bytes: usize) -> bool {
        self.lower.threads_waiting() >= self.lower.most_waiting.load(Ordering::Relaxed)
            && self.waiting.takes(bytes)
    }

    fn start_read(&self, first: u64, mut buffer: PageBuffer, done: Completion) {
        if self.is_elsewhere(first, (buffer.len() / PAGE_LEN) as u64) {
            let until = Instant::now() + self.lower.deadline();
            return self.waiting.push(Job {
                operation: Operation::Read,
                first,
                buffer,
                done,
                until,
            });
        }
        let outcome = self.read(first, &mut buffer);
        done.complete(outcome.map(|()| buffer));
    }

    fn start_write(&self, first: u64, buffer: PageBuffer, done: Completion) {
        let until = Instant::now() + self.lower.deadline();
        self.waiting.push(Job { operation: Operation::Write, first, buffer, done, until });
    }
}
