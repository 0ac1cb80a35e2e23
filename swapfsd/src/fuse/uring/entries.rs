//! The places that requests come to: headers and payload of each, in one mapping.
//!
//! ```text
//! page 0      who uses it, and how it is laid out
//! headers     512 bytes each: struct fuse_uring_req_header (288 bytes), then the place's state
//! payloads    1 MiB each, page-aligned: data of writes comes here, data of reads goes back
//! ```
//!
//! With a supervisor the memory is a file of its ([`Holdings`](crate::supervisor::link::Holdings)),
//! and every worker maps it at the address of the first one: the kernel knows a place by its
//! address. So a new program can commit the answer to a request that the old one was given.
//!
//! Back ends read and write the payloads directly: they are part of the
//! [`BufferPool`], so that O_DIRECT and io_uring's fixed buffers work on them.

use super::wire::{InHeader, OutHeader, RequestHeader, TransferIn, front, operation};
use crate::buffer::{BufferPool, LARGE_BYTES, PageBuffer, Payloads};
use crate::sys::fuse_ring::Place;
use crate::sys::memory::Mapping;
use crate::sys::pin::Pin;
use crate::sys::process;
use std::fs::{self, File};
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use swapfs_format::types::{BackendOptions, LinearEngine};
use zerocopy::IntoBytes;

const PAGE: usize = 4096;
/// Bytes of a place's headers and state.
const HEAD_BYTES: usize = 512;

/// How many places there are, and who serves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The kernel wants one for each CPU that there could ever be.
    pub queues: u32,
    /// Threads, each with a ring of its own, that serve a queue.
    pub threads_per_queue: u32,
    /// Places of each thread: a thread does one request at a time, the others wait for it.
    pub depth: u32,
}

impl Layout {
    /// What was measured to do best (tests/bench/RESULTS.md).
    #[must_use]
    pub fn for_this_machine(backend: &BackendOptions) -> Layout {
        let queues = possible_cpus();
        // Each is locked memory, and a machine may have room for hundreds of CPUs.
        let share = |places: u32| (places / queues).clamp(1, places / 4);
        let threads = |most: u32| (16 / queues).clamp(1, most);
        let (threads_per_queue, depth) = match backend {
            // A thread never waits: more of them only get in each other's way.
            BackendOptions::Zmem(_) | BackendOptions::Ram => (1, share(64)),
            // One waits for the device; what comes meanwhile is started, and nobody waits for it.
            BackendOptions::Linear(linear) if linear.engine == LinearEngine::Uring => {
                (threads(2), share(32))
            }
            // As many requests in the device as threads.
            BackendOptions::Linear(_)
            | BackendOptions::Log(_)
            | BackendOptions::Tier(_)
            | BackendOptions::Remote(_) => (threads(4), 1),
        };
        let default = Layout { queues, threads_per_queue, depth };
        // For measurements: THREADS,DEPTH.
        let Ok(wanted) = std::env::var("SWAPFS_URING_LAYOUT") else { return default };
        let mut numbers = wanted.split(',').map(|number| number.parse().unwrap_or(1));
        let mut next = || numbers.next().unwrap_or(1).max(1);
        Layout { queues, threads_per_queue: next(), depth: next() }
    }

    /// Places of all queues.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.threads() * self.depth
    }

    /// Threads of all queues.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.queues * self.threads_per_queue
    }

    fn payload_offset(&self) -> usize {
        PAGE + (self.entries() as usize * HEAD_BYTES).next_multiple_of(PAGE)
    }

    fn bytes(&self) -> usize {
        self.payload_offset() + self.entries() as usize * LARGE_BYTES
    }
}

/// CPUs that there could ever be, of which the kernel has a queue each.
#[must_use]
pub fn possible_cpus() -> u32 {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    (process::cpu_list(&text).len() as u32).max(1)
}

/// What one process says to the next, in page 0.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Shared {
    layout: [AtomicU32; 3],
    /// One of [`State`].
    pub(super) state: AtomicU32,
    /// Where the memory is mapped.
    address: AtomicU64,
}

/// Whose the places are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum State {
    /// The kernel has seen none yet.
    New = 0,
    /// A process serves.
    Live = 1,
    /// The process that served has held all requests: another one may go on.
    Drained = 2,
}

/// Where the request of a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Whereabouts {
    /// The kernel does not know the place, or waits for a request to put there.
    Empty = 0,
    /// It has come, and has no answer yet.
    Here = 1,
    /// Its answer is there, and not committed.
    Answered = 2,
}

/// Memory of the supervisor's. `adopted`: another process has served with it.
///
/// # Errors
/// If another layout is kept there, or something else is where the memory was; what mmap(2) and
/// madvise(2) answer.
pub fn held_memory(layout: Layout, file: File, adopted: bool) -> io::Result<Payloads> {
    let numbers = [layout.queues, layout.threads_per_queue, layout.depth];
    let mapping = if adopted {
        let front = Mapping::shared(file.try_clone()?, PAGE)?;
        let shared = shared_of(&front);
        if shared.layout.each_ref().map(|number| number.load(Relaxed)) != numbers {
            return Err(io::Error::other("requests are kept in another layout"));
        }
        Mapping::shared_at(file, layout.bytes(), shared.address.load(Relaxed) as usize)?
    } else {
        Mapping::shared(file, layout.bytes())?
    };
    mapping.populate_range(0, layout.bytes())?;
    if !adopted {
        let shared = shared_of(&mapping);
        for (place, number) in shared.layout.iter().zip(numbers) {
            place.store(number, Relaxed);
        }
        shared.address.store(mapping.as_ptr() as u64, Relaxed);
    }
    payloads(layout, mapping)
}

fn shared_of(mapping: &Mapping) -> &Shared {
    // SAFETY: the first page is there, zeros at first, and only accessed as atomics.
    unsafe { &*mapping.as_ptr().cast::<Shared>() }
}

/// Memory for a layout, of this process alone, all of it present and kept where it is.
///
/// # Errors
/// What mmap(2) and madvise(2) answer.
pub fn private_memory(layout: Layout) -> io::Result<Payloads> {
    payloads(layout, Mapping::new(layout.bytes(), true)?)
}

fn payloads(layout: Layout, mapping: Mapping) -> io::Result<Payloads> {
    if let Ok(pin) = Pin::new(mapping.as_ptr(), mapping.len()) {
        // As long as the process: so are the places.
        std::mem::forget(pin);
    }
    let (offset, count) = (layout.payload_offset(), layout.entries() as usize);
    Ok(Payloads { mapping, offset, count })
}

/// The places, by number.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    pool: BufferPool,
}

impl Entries {
    /// The places in the pool's payloads; `None` if it has none.
    pub(super) fn new(pool: BufferPool) -> Option<Entries> {
        pool.payloads()?;
        Some(Entries { pool })
    }

    fn head(&self, index: u32) -> *mut RequestHeader {
        let Some(payloads) = self.pool.payloads() else { return std::ptr::null_mut() };
        assert!((index as usize) < payloads.count, "entry {index}");
        // SAFETY: the mapping has room for so many heads before its payloads.
        unsafe { payloads.mapping.as_ptr().add(PAGE + index as usize * HEAD_BYTES).cast() }
    }

    /// What one process says to the next.
    pub(super) fn shared(&self) -> &Shared {
        let payloads = self.pool.payloads();
        shared_of(&payloads.unwrap_or_else(|| unreachable!("`new` has looked")).mapping)
    }

    fn whereabouts(&self, index: u32) -> &AtomicU32 {
        // SAFETY: behind the headers, in the 512 bytes of this place.
        let place = unsafe { self.head(index).cast::<u8>().add(size_of::<RequestHeader>()) };
        // SAFETY: aligned, and only accessed as an atomic.
        unsafe { &*place.cast::<AtomicU32>() }
    }

    /// Notes where the request of a place is.
    pub(super) fn note(&self, index: u32, is: Whereabouts) {
        self.whereabouts(index).store(is as u32, Release);
    }

    /// Where the request of a place is.
    pub(super) fn noted(&self, index: u32) -> Whereabouts {
        match self.whereabouts(index).load(Acquire) {
            1 => Whereabouts::Here,
            2 => Whereabouts::Answered,
            _ => Whereabouts::Empty,
        }
    }

    /// For the kernel: where it is.
    pub(super) fn place(&self, index: u32) -> Place {
        let mut payload = self.payload(index, LARGE_BYTES);
        let part = |base: *mut u8, len| libc::iovec { iov_base: base.cast(), iov_len: len };
        [
            part(self.head(index).cast(), size_of::<RequestHeader>()),
            part(payload.as_mut_ptr(), LARGE_BYTES),
        ]
    }

    /// A request that has come.
    pub(super) fn request(&self, index: u32) -> RequestHeader {
        // SAFETY: aligned, plain bytes, and the kernel does not write there while the request is
        // on this side.
        unsafe { self.head(index).read() }
    }

    /// It is a read or write of that many bytes or more.
    pub(super) fn is_large(&self, index: u32, bytes: usize) -> bool {
        let request = self.request(index);
        let header: InHeader = front(&request.in_out).unwrap_or_default();
        let transfer: TransferIn = front(&request.operation).unwrap_or_default();
        matches!(header.operation, operation::READ | operation::WRITE)
            && transfer.size as usize >= bytes
    }

    /// Puts an answer there; it is to be committed then.
    pub(super) fn set_answer(&self, index: u32, header: OutHeader, payload_bytes: usize) {
        let mut request = self.request(index);
        request.in_out[..size_of::<OutHeader>()].copy_from_slice(header.as_bytes());
        request.entry.payload_bytes = payload_bytes as u32;
        // SAFETY: as in `request`; the thread that deals with the request is the only one that
        // writes there.
        unsafe { self.head(index).write(request) };
    }

    /// Its payload as a buffer of `len` bytes; one at a time.
    pub(super) fn payload(&self, index: u32, len: usize) -> PageBuffer {
        self.pool.payload(index, len)
    }
}

const _: () = assert!(size_of::<RequestHeader>() <= HEAD_BYTES);
