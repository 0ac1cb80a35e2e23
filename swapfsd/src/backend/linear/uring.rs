//! The `uring` engine: one thread owns an io_uring and keeps the requests of all threads in it.
//!
//! Requests reach the thread through a bounded queue. While the thread has work it looks into
//! the queue by itself; before it sleeps it says so, and the next request wakes it through an
//! eventfd whose read is always in the ring. One owner for submission and completion lets the
//! ring run with `SINGLE_ISSUER` and `DEFER_TASKRUN`: completions are then handled in batches,
//! where this thread waits, and never interrupt a thread that sleeps in /dev/fuse.
//!
//! The memory of the buffer pool is registered, so that the kernel does not look up and pin the
//! pages of each request.

use super::device::Device;
use crate::backend::Completion;
use crate::buffer::PageBuffer;
use crate::control;
use crate::error::{Error, Operation};
use crate::sync::{Condvar, Mutex};
use crate::sys::alloc::IoPath;
use crate::sys::file;
use crate::trace::Kind;
use io_uring::{IoUring, opcode, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;
use swapfs_format::PAGE_LEN;

/// Requests in the ring at most. The loop device has 128 in flight, FUSE 256.
const RING_ENTRIES: u32 = 256;
/// Requests that may wait for the ring thread to look; then their threads wait.
const QUEUE_CAPACITY: usize = 512;
/// The token of the eventfd's read.
const WAKE_TOKEN: u64 = u64::MAX;

#[derive(Debug)]
struct Job {
    operation: Operation,
    first: u64,
    buffer: PageBuffer,
    done: Completion,
    /// When it went into the ring, if somebody wants to know.
    started: Option<Instant>,
}

#[derive(Debug)]
struct Shared {
    device: Arc<Device>,
    queue: Mutex<VecDeque<Job>>,
    room: Condvar,
    /// The ring thread is about to wait, or waits, in the kernel.
    asleep: AtomicBool,
    stop: AtomicBool,
    wake: crate::sys::event::EventFd,
    submitted: AtomicU64,
    batches: AtomicU64,
    wakes: AtomicU64,
}

/// The engine; dropping it finishes what is in flight and ends the thread.
#[derive(Debug)]
pub(super) struct UringEngine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl UringEngine {
    pub(super) fn new(device: Arc<Device>) -> io::Result<UringEngine> {
        let shared = Arc::new(Shared {
            device,
            queue: Mutex::new(VecDeque::with_capacity(QUEUE_CAPACITY)),
            room: Condvar::new(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            wake: crate::sys::event::EventFd::new()?,
            submitted: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            wakes: AtomicU64::new(0),
        });
        // The ring is made by the thread that uses it (SINGLE_ISSUER); its fate is told here.
        let (told, outcome) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("uring".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || match RingThread::new(&shared) {
                Ok(mut ring) => {
                    drop(told.send(Ok(())));
                    ring.run();
                }
                Err(error) => drop(told.send(Err(error))),
            }
        })?;
        outcome.recv().map_err(|_| io::Error::other("the uring thread ended at once"))??;
        Ok(UringEngine { shared, thread: Some(thread) })
    }

    /// Takes the request over; `done` is told when it is finished.
    pub(super) fn start(
        &self,
        operation: Operation,
        first: u64,
        buffer: PageBuffer,
        done: Completion,
    ) {
        let shared = &self.shared;
        let mut queue = shared.queue.lock();
        while queue.len() == QUEUE_CAPACITY {
            queue = shared.room.wait(queue);
        }
        queue.push_back(Job { operation, first, buffer, done, started: None });
        drop(queue);
        // The thread says that it sleeps before it looks into the queue for the last time.
        if shared.asleep.swap(false, Ordering::SeqCst) {
            shared.wakes.fetch_add(1, Ordering::Relaxed);
            shared.wake.signal();
        }
    }

    pub(super) fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        report("uring_requests", self.shared.submitted.load(Ordering::Relaxed));
        report("uring_batches", self.shared.batches.load(Ordering::Relaxed));
        report("uring_wakes", self.shared.wakes.load(Ordering::Relaxed));
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake.signal();
        // The last owner of a volume can be a completion that this very thread just told.
        match self.thread.take() {
            Some(thread) if thread.thread().id() != std::thread::current().id() => {
                drop(thread.join());
            }
            _ => {}
        }
    }
}

struct RingThread<'a> {
    shared: &'a Shared,
    ring: IoUring,
    /// Requests in the ring, by token.
    jobs: Vec<Option<Job>>,
    free: Vec<u32>,
    wake_value: Box<[u8; 8]>,
    wake_armed: bool,
}

impl<'a> RingThread<'a> {
    fn new(shared: &'a Shared) -> io::Result<RingThread<'a>> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(RING_ENTRIES)
            // Kernels before 6.1 have neither.
            .or_else(|_| IoUring::new(RING_ENTRIES))?;
        let memory: Vec<libc::iovec> = shared
            .device
            .buffers
            .memory()
            .into_iter()
            .flatten()
            .map(|(start, len)| libc::iovec { iov_base: start.cast(), iov_len: len })
            .collect();
        // SAFETY: the pool's memory stays mapped as long as the device, which outlives the ring.
        unsafe { ring.submitter().register_buffers(&memory) }?;
        Ok(RingThread {
            shared,
            ring,
            jobs: (0..RING_ENTRIES).map(|_| None).collect(),
            free: (0..RING_ENTRIES - 1).rev().collect(),
            wake_value: Box::new([0; 8]),
            wake_armed: false,
        })
    }

    fn run(&mut self) {
        let _io_path = IoPath::enter();
        loop {
            self.take_from_queue();
            if self.shared.stop.load(Ordering::SeqCst) && self.in_flight() == 0 {
                return;
            }
            self.arm_wake();
            self.wait();
            self.reap();
        }
    }

    fn in_flight(&self) -> usize {
        self.jobs.len() - 1 - self.free.len()
    }

    /// Moves requests from the queue into the ring, as many as there is room for.
    fn take_from_queue(&mut self) {
        let mut queue = self.shared.queue.lock();
        let was_full = queue.len() == QUEUE_CAPACITY;
        let mut taken = 0;
        while let Some(index) = self.free.pop() {
            let Some(mut job) = queue.pop_front() else {
                self.free.push(index);
                break;
            };
            if job.operation == Operation::Write {
                let count = (job.buffer.len() / PAGE_LEN) as u64;
                self.shared.device.begin(job.first, count);
            }
            control::enter_device();
            job.started = self.shared.device.recorder.as_ref().map(|_| Instant::now());
            let entry = self.entry(&job).user_data(u64::from(index));
            self.jobs[index as usize] = Some(job);
            // SAFETY: the buffer that the entry names is registered, and the job that
            // holds the buffer stays in `jobs` until the entry has completed.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            // As many tokens as the submission queue has entries, one kept for the wake-up.
            debug_assert!(pushed.is_ok());
            taken += 1;
        }
        drop(queue);
        if was_full && taken > 0 {
            self.shared.room.notify_all();
        }
        self.shared.submitted.fetch_add(taken, Ordering::Relaxed);
    }

    fn entry(&self, job: &Job) -> io_uring::squeue::Entry {
        // Not a registered file, which a ring keeps open until it is torn down: after a kill that
        // takes the kernel 50 ms and more, and the successor waits until the file is closed
        // (`Linear::activate`). So each request in flight keeps it open for itself.
        let file = types::Fd(self.shared.device.file.as_raw_fd());
        let offset = self.shared.device.offset_of(job.first);
        let (start, len) = (job.buffer.as_ptr(), job.buffer.len() as u32);
        let registered = job.buffer.memory_index();
        match job.operation {
            Operation::Write => {
                opcode::WriteFixed::new(file, start, len, registered).offset(offset).build()
            }
            _ => opcode::ReadFixed::new(file, start.cast_mut(), len, registered)
                .offset(offset)
                .build(),
        }
    }

    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let file = types::Fd(self.shared.wake.as_raw_fd());
        let entry =
            opcode::Read::new(file, self.wake_value.as_mut_ptr(), 8).build().user_data(WAKE_TOKEN);
        // SAFETY: the eight bytes live as long as the ring.
        self.wake_armed = unsafe { self.ring.submission().push(&entry) }.is_ok();
    }

    /// Submits, and waits for one completion if there is nothing else to do.
    fn wait(&mut self) {
        self.shared.asleep.store(true, Ordering::SeqCst);
        let more = !self.shared.queue.lock().is_empty() && !self.free.is_empty();
        let wanted = usize::from(!more);
        if more {
            self.shared.asleep.store(false, Ordering::SeqCst);
        }
        match self.ring.submit_and_wait(wanted) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
            Err(error) => {
                // EAGAIN is a kernel out of memory: what is in flight completes and frees some.
                log::error!("io_uring_enter: {error}");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        self.shared.asleep.store(false, Ordering::SeqCst);
        self.shared.batches.fetch_add(1, Ordering::Relaxed);
    }

    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            if entry.user_data() == WAKE_TOKEN {
                self.wake_armed = false;
                continue;
            }
            let index = entry.user_data() as u32;
            if let Some(job) = self.jobs[index as usize].take() {
                self.free.push(index);
                control::leave_device();
                finish(&self.shared.device, job, entry.result());
            }
        }
    }
}

/// Does what is left to do of a request that came back from the ring, and answers it.
fn finish(device: &Device, mut job: Job, result: i32) {
    let outcome = match usize::try_from(result) {
        Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) => Ok(0),
        Err(_) => Err(-result),
        Ok(count) => Ok(count.min(job.buffer.len())),
    };
    // The rest of a short read or write is done here, at once: it is rare.
    let outcome = outcome.and_then(|count| {
        let offset = device.offset_of(job.first) + count as u64;
        match (&mut job.buffer[count..], job.operation) {
            ([], _) => Ok(()),
            (rest, Operation::Write) => file::write_all_at(&device.file, rest, offset),
            (rest, _) => file::read_all_at(&device.file, rest, offset),
        }
    });
    if let Some(started) = job.started {
        let kind = if job.operation == Operation::Write { Kind::Write } else { Kind::Read };
        device.ended(kind, job.first, job.buffer.len() as u64, started);
    }
    if outcome.is_err() && job.operation == Operation::Write {
        device.call_off(job.first, (job.buffer.len() / PAGE_LEN) as u64);
    }
    let outcome = outcome.map_err(|errno| Error::from_os(job.operation, job.first, errno));
    let outcome = outcome.and_then(|()| match job.operation {
        Operation::Write => {
            device.record(job.first, &job.buffer);
            Ok(())
        }
        _ => device.verify(job.first, &job.buffer),
    });
    let Job { buffer, done, .. } = job;
    done.complete(outcome.map(|()| buffer));
}
