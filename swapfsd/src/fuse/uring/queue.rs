//! One thread that serves a queue: takes requests out of its ring, does them, and commits.
//!
//! A request may come to a place whose thread is busy while others are not: the kernel does not
//! know which places are whose. So small requests are done first, and after each large one the
//! thread looks for more small ones: a page fault waits for one large write at most.
//!
//! **Draining** (for an upgrade): the threads answer nothing any more, and keep what comes, until
//! a request lies in every place. Then the kernel has nothing that it could give to this process,
//! which may be killed: what comes now waits in the kernel. The next process finds the requests
//! in the places and commits their answers itself.

use super::super::service::{Service, refuse};
use super::entries::{Entries, Layout, Whereabouts};
use super::progress::Progress;
use super::requests::{Answer, answer, transfer_now, written};
use super::wire::{InHeader, OutHeader, front, operation};
use crate::backend::CompletionSink;
use crate::buffer::{LARGE_BYTES, PageBuffer};
use crate::error::{Operation, Result};
use crate::sync::Mutex;
use crate::sys::alloc::IoPath;
use crate::sys::event::EventFd;
use crate::sys::fuse_ring::{FuseRing, Place};
use crate::sys::process;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The token of the wake-up; others are entries.
const WAKE: u64 = u64::MAX;
/// Answers that are handed over at the latest, though more requests are there.
const BATCH: u32 = 4;
/// A transfer that takes so long that the answers before it do not wait for it.
const LARGE_REQUEST_BYTES: usize = 64 << 10;

/// What the threads of a session have in common.
pub(super) struct Shared {
    pub(super) service: Arc<Service>,
    pub(super) entries: Entries,
    pub(super) layout: Layout,
    pub(super) device: OwnedFd,
    /// By thread.
    pub(super) finished: Vec<Finished>,
    /// Requests are kept, and not answered.
    pub(super) draining: AtomicBool,
    pub(super) progress: Progress,
}

/// Entries whose answer another thread has made, for the thread that commits it.
pub(super) struct Finished {
    list: Mutex<Vec<u32>>,
    /// The thread waits in its ring, or is about to.
    asleep: AtomicBool,
    wake: EventFd,
}

impl Finished {
    pub(super) fn new(depth: u32) -> io::Result<Finished> {
        Ok(Finished {
            list: Mutex::new(Vec::with_capacity(depth as usize)),
            asleep: AtomicBool::new(false),
            wake: EventFd::new()?,
        })
    }

    /// Has the thread look around.
    pub(super) fn wake(&self) {
        self.wake.signal();
    }

    fn add(&self, index: u32) {
        self.list.lock().push(index);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.wake.signal();
        }
    }
}

impl Shared {
    /// Puts the answer into the entry.
    fn set_answer(&self, index: u32, unique: u64, answer: Answer) {
        let (error, bytes) = match answer {
            Answer::Done(bytes) => (0, bytes),
            Answer::Failed(errno) => (-errno, 0),
            Answer::Read(..) | Answer::Write(..) => (-libc::EIO, 0),
        };
        let len = (size_of::<OutHeader>() + bytes) as u32;
        self.entries.set_answer(index, OutHeader { len, error, unique }, bytes);
        self.entries.note(index, Whereabouts::Answered);
    }
}

/// Answers requests that were started, on whatever thread they are done.
pub(super) struct Sink(pub(super) Arc<Shared>);

impl CompletionSink for Sink {
    fn complete(&self, token: u64, result: Result<PageBuffer>) {
        let (shared, index) = (&self.0, token as u32);
        let header: InHeader = front(&shared.entries.request(index).in_out).unwrap_or_default();
        let answer = match result {
            Ok(mut buffer) if header.operation == operation::WRITE => {
                let len = buffer.len();
                written(&mut buffer, len)
            }
            Ok(buffer) => Answer::Done(buffer.len()),
            Err(error) => Answer::Failed(refuse(&error)),
        };
        shared.set_answer(index, header.unique, answer);
        shared.finished[(index / shared.layout.depth) as usize].add(index);
    }
}

/// The thread.
pub(super) struct Server {
    shared: Arc<Shared>,
    sink: Arc<Sink>,
    /// Which of all threads it is.
    number: u32,
    ring: FuseRing,
    /// Where the entries are; the kernel reads it when they are registered.
    places: Vec<Place>,
    /// Entries that the kernel still knows.
    alive: u32,
    /// Answers that are not handed over yet.
    pushed: u32,
    /// While draining: places with a request that nobody works on. Of all others that have one, a
    /// back end is at work, or they wait in `large`, or their answer does in [`Finished`].
    kept: Vec<u32>,
    drained: bool,
    /// No request comes to the queue of a CPU that is off.
    is_reached: bool,
    taken: Vec<u32>,
    /// Large requests that wait until there are no small ones.
    large: VecDeque<u32>,
}

impl Server {
    /// On the thread that will serve.
    pub(super) fn new(shared: Arc<Shared>, number: u32) -> io::Result<Server> {
        let Layout { depth, threads_per_queue, .. } = shared.layout;
        let ring = FuseRing::new(shared.device.as_raw_fd(), (depth + 1).next_power_of_two())?;
        let first = number * depth;
        let places = (first..first + depth).map(|index| shared.entries.place(index)).collect();
        let sink = Arc::new(Sink(Arc::clone(&shared)));
        let taken = Vec::with_capacity(depth as usize);
        let kept = Vec::with_capacity(depth as usize);
        let large = VecDeque::with_capacity(depth as usize);
        Ok(Server {
            shared,
            sink,
            number,
            ring,
            places,
            alive: 0,
            pushed: 0,
            kept,
            drained: false,
            is_reached: process::online_cpus().contains(&(number / threads_per_queue)),
            taken,
            large,
        })
    }

    fn queue(&self) -> u16 {
        (self.number / self.shared.layout.threads_per_queue) as u16
    }

    /// Runs on the CPU whose requests it serves: the loop worker that sent one waits there, and
    /// its data is in that CPU's cache.
    pub(super) fn stay_on_cpu(&self) -> io::Result<()> {
        process::stay_on_cpu(u32::from(self.queue()))
    }

    fn own_entries(&self) -> std::ops::Range<u32> {
        let first = self.number * self.shared.layout.depth;
        first..first + self.shared.layout.depth
    }

    /// Gives the kernel all places, and goes on with requests that another process has left in
    /// them.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.ring.arm_wake(self.shared.finished[self.number as usize].wake.as_raw_fd(), WAKE);
        let queue = self.queue();
        for (index, place) in self.own_entries().zip(&self.places) {
            if self.shared.entries.noted(index) == Whereabouts::Empty {
                // SAFETY: places and their memory live as long as the process; what is in them is
                // only touched between a request's completion and its commit.
                unsafe { self.ring.register(queue, place, u64::from(index)) };
            }
            self.alive += 1;
        }
        self.kept.extend(self.own_entries());
        while let Err(error) = self.ring.submit() {
            if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Deals with what was kept.
    fn go_on(&mut self) {
        while let Some(index) = self.kept.pop() {
            match self.shared.entries.noted(index) {
                Whereabouts::Here => self.serve(index),
                Whereabouts::Answered => self.commit_answer(index),
                Whereabouts::Empty => {}
            }
        }
    }

    /// Serves until the connection has ended.
    ///
    /// # Errors
    /// If the kernel does not take the entries.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let _io_path = IoPath::enter();
        let mut outcome = Ok(());
        self.go_on();
        while self.alive > 0 {
            self.wait();
            while let Some((token, result)) = self.ring.completed() {
                if token == WAKE {
                    let wake = self.shared.finished[self.number as usize].wake.as_raw_fd();
                    self.ring.arm_wake(wake, WAKE);
                } else if result >= 0 {
                    let index = token as u32;
                    self.shared.entries.note(index, Whereabouts::Here);
                    if self.shared.draining.load(Ordering::Acquire) {
                        self.kept.push(index);
                    } else if self.shared.entries.is_large(index, LARGE_REQUEST_BYTES) {
                        self.large.push_back(index);
                    } else {
                        self.serve(index);
                    }
                } else {
                    self.alive -= 1;
                    if !matches!(-result, libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV) {
                        let error = io::Error::from_raw_os_error(-result);
                        log::error!("the kernel has taken a place for requests back: {error}");
                        outcome = Err(error);
                    }
                }
            }
            self.take_finished();
            self.do_a_large_one();
            self.see_to_draining();
        }
        if let Err(error) = &outcome {
            // Nobody serves this CPU any more: the end of the process ends the connection.
            log::error!("a queue has no places left: {error}");
            crate::logging::flush_for(std::time::Duration::from_millis(100));
            std::process::abort();
        }
        if !self.drained {
            self.shared.progress.one_more();
        }
        outcome
    }

    /// One at a time; while draining none, they are kept.
    fn do_a_large_one(&mut self) {
        if self.shared.draining.load(Ordering::Acquire) {
            self.kept.extend(self.large.drain(..));
        } else if let Some(index) = self.large.pop_front() {
            self.serve(index);
        }
    }

    /// Hands answers over, and waits for the next request if there is nothing else to do.
    fn wait(&mut self) {
        let finished = &self.shared.finished[self.number as usize];
        finished.asleep.store(true, Ordering::SeqCst);
        let idle = finished.list.lock().is_empty() && self.large.is_empty();
        let outcome = self.ring.submit_and_wait(idle);
        finished.asleep.store(false, Ordering::SeqCst);
        self.pushed = 0;
        match outcome {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
            Err(error) => {
                log::error!("io_uring_enter: {error}");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    fn serve(&mut self, index: u32) {
        let request = self.shared.entries.request(index);
        let header: InHeader = front(&request.in_out).unwrap_or_default();
        let service = Arc::clone(&self.shared.service);
        let mut payload = self.shared.entries.payload(index, LARGE_BYTES);
        let came = (request.entry.payload_bytes as usize).min(LARGE_BYTES);
        let mut answer = answer(&service, &header, &request.operation, &mut payload, came);
        if let Answer::Read(offset, len) | Answer::Write(offset, len) = answer {
            service.keep_awake();
            if service.volume().prefers_start(offset, len) {
                drop(payload);
                return self.start(index, answer);
            }
            if len >= LARGE_REQUEST_BYTES && self.pushed > 0 {
                self.hand_over();
            }
            answer = transfer_now(&service, answer, &mut payload);
        }
        self.shared.set_answer(index, header.unique, answer);
        self.commit(index, request.entry.commit_id);
    }

    /// Starts a transfer; whoever finishes it makes the answer.
    fn start(&self, index: u32, answer: Answer) {
        let sink: Arc<dyn CompletionSink> = Arc::<Sink>::clone(&self.sink);
        let token = u64::from(index);
        let volume = self.shared.service.volume();
        let buffer = |len| self.shared.entries.payload(index, len);
        match answer {
            Answer::Read(offset, len) => {
                let done = Service::completion(sink, token, Operation::Read, offset);
                volume.start_read(offset, buffer(len), done);
            }
            Answer::Write(offset, len) => {
                let done = Service::completion(sink, token, Operation::Write, offset);
                volume.start_write(offset, buffer(len), done);
            }
            Answer::Done(_) | Answer::Failed(_) => {}
        }
    }

    fn take_finished(&mut self) {
        let finished = &self.shared.finished[self.number as usize];
        std::mem::swap(&mut *finished.list.lock(), &mut self.taken);
        while let Some(index) = self.taken.pop() {
            if self.shared.draining.load(Ordering::Acquire) {
                self.kept.push(index);
            } else {
                self.commit_answer(index);
            }
        }
    }

    fn see_to_draining(&mut self) {
        let draining = self.shared.draining.load(Ordering::Acquire);
        if draining && !self.drained && self.all_is_kept() {
            self.drained = true;
            self.shared.progress.one_more();
        } else if !draining && (self.drained || !self.kept.is_empty()) {
            // Called off.
            self.drained = false;
            self.go_on();
        }
    }

    /// There is a request in every place, and nobody is at work on it. To a CPU that is off none
    /// comes, so those count that are there.
    fn all_is_kept(&self) -> bool {
        let is_there = |index: &u32| self.shared.entries.noted(*index) != Whereabouts::Empty;
        let wanted = match self.is_reached {
            true => self.alive as usize,
            false => self.own_entries().filter(is_there).count(),
        };
        self.kept.len() == wanted
    }

    fn commit_answer(&mut self, index: u32) {
        self.commit(index, self.shared.entries.request(index).entry.commit_id);
    }

    fn commit(&mut self, index: u32, commit_id: u64) {
        self.shared.entries.note(index, Whereabouts::Empty);
        self.ring.commit(self.queue(), commit_id, u64::from(index));
        self.pushed += 1;
        if self.pushed >= BATCH {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        // Should it fail, the next wait does it.
        if self.ring.submit().is_ok() {
            self.pushed = 0;
        }
    }
}
