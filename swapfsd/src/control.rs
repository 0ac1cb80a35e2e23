//! What supervisor and worker know of each other: one page of memory that both have mapped.
//!
//! The worker that serves beats here ten times a second and says how its requests are; the
//! supervisor looks on (`supervisor/watchdog.rs`), and leaves its own numbers for `stats.json`.
//! What every successor must know of the connection is here too. Nothing in it decides about
//! pages.

use crate::stats::{Counters, SHARED_BYTES, counters_at};
use crate::sys::memory::Mapping;
use std::fs::File;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use swapfs_format::PAGE_LEN;

/// Version of this page and of what the regions hold. A program of another version can't take
/// over (`swapfs upgrade` refuses it).
pub const HANDOVER_VERSION: u32 = 5;
/// Where the copy of the superblock lies, behind the control page.
pub const SUPERBLOCK_OFFSET: usize = PAGE_LEN;
/// Where the volume's counters lie.
const COUNTERS_OFFSET: usize = 2 * PAGE_LEN;
/// Bytes of the region: the page, the superblock, the counters.
pub const CONTROL_BYTES: usize = (COUNTERS_OFFSET + SHARED_BYTES).next_multiple_of(PAGE_LEN);

/// The page. Plain numbers, each written by one side only.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Page {
    /// [`HANDOVER_VERSION`] of who made it.
    pub version: AtomicU32,
    /// Minor version of the FUSE protocol that the kernel speaks.
    pub fuse_minor: AtomicU32,
    /// What the kernel's INIT offered, as FUSE_INIT flags.
    pub fuse_flags: AtomicU64,
    /// When the volume was mounted, nanoseconds of CLOCK_BOOTTIME.
    pub mounted_ns: AtomicU64,

    /// Written by the worker that serves: goes up as long as it lives.
    pub heartbeat: AtomicU64,
    /// Its process id.
    pub worker_pid: AtomicU32,
    /// Requests that it is doing now.
    pub in_flight: AtomicU32,
    /// How long the oldest of them has been under way, in milliseconds.
    pub oldest_ms: AtomicU64,
    /// Requests that it has done.
    pub done: AtomicU64,
    /// Of those in flight, how many wait for a device.
    pub in_device: AtomicU32,

    /// Requests lie with the worker that can't be given to another one: it serves by rings, and has
    /// not been drained.
    pub holds_requests: AtomicU32,

    /// Written by the supervisor; 0: there is none any more.
    pub supervisor_pid: AtomicU32,
    /// The process that waits to take over.
    pub standby_pid: AtomicU32,
    /// Workers that died or hung and were replaced.
    pub takeovers: AtomicU32,
    /// Of these, workers that hung.
    pub hangs: AtomicU32,
    /// Upgrades that succeeded.
    pub upgrades: AtomicU32,
    /// From the death of the last worker that was replaced to its successor's service, in
    /// microseconds.
    pub last_pause_us: AtomicU64,
    /// The longest of these.
    pub longest_pause_us: AtomicU64,
    /// Heap allocations of the supervisor since it watches: none.
    pub supervisor_allocations: AtomicU64,
}

/// The page, mapped.
#[derive(Debug)]
pub struct Control {
    mapping: Mapping,
}

impl Control {
    /// Maps the region of a supervisor, or with `None` a page of this process alone.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub fn new(region: Option<File>) -> io::Result<Control> {
        let mapping = match region {
            Some(file) => Mapping::shared(file, CONTROL_BYTES)?,
            None => Mapping::new(CONTROL_BYTES, false)?,
        };
        mapping.populate_range(0, CONTROL_BYTES)?;
        Ok(Control { mapping })
    }

    /// The numbers.
    #[must_use]
    pub fn page(&self) -> &Page {
        // SAFETY: page-aligned, long enough, zeroed at first, and only accessed as atomics.
        unsafe { &*self.mapping.as_ptr().cast::<Page>() }
    }

    /// The volume's counters: those of all who have served it.
    pub(crate) fn counters(&'static self) -> &'static Counters {
        // SAFETY: inside the mapping.
        let start = unsafe { self.mapping.as_ptr().add(COUNTERS_OFFSET) };
        // SAFETY: SHARED_BYTES at a page's start, which are zeroed at first and for nothing else;
        // `self` lives as long as the process, and the mapping with it.
        unsafe { counters_at(start) }
    }

    /// The superblock that the volume was mounted by, as it stood in the image.
    #[must_use]
    pub fn superblock(&self) -> [u8; PAGE_LEN] {
        // SAFETY: inside the mapping.
        let start = unsafe { self.mapping.as_ptr().add(SUPERBLOCK_OFFSET) };
        // SAFETY: a page of plain bytes, written once before there is another process.
        unsafe { start.cast::<[u8; PAGE_LEN]>().read() }
    }

    /// Keeps the superblock for those who come later; before any of them is started.
    pub fn keep_superblock(&self, bytes: &[u8; PAGE_LEN]) {
        // SAFETY: inside the mapping.
        let start = unsafe { self.mapping.as_ptr().add(SUPERBLOCK_OFFSET) };
        // SAFETY: as above; nobody else reads it yet.
        unsafe { start.cast::<[u8; PAGE_LEN]>().write(*bytes) };
    }
}

static CONTROL: OnceLock<Control> = OnceLock::new();
/// Requests of this process that wait for a device.
static IN_DEVICE: AtomicU32 = AtomicU32::new(0);

/// This process's page from now on. A second call changes nothing.
pub fn install(control: Control) -> &'static Control {
    CONTROL.get_or_init(|| control)
}

/// This process's page, if it has one.
#[must_use]
pub fn installed() -> Option<&'static Control> {
    CONTROL.get()
}

/// A request waits for a device from now on: that it takes long is no hang of ours.
pub fn enter_device() {
    IN_DEVICE.fetch_add(1, Ordering::Relaxed);
}

/// It does not any more.
pub fn leave_device() {
    IN_DEVICE.fetch_sub(1, Ordering::Relaxed);
}

/// Requests of this process that wait for a device now.
#[must_use]
pub fn in_device() -> u32 {
    IN_DEVICE.load(Ordering::Relaxed)
}

/// While it lives, a request waits for a device.
#[derive(Debug)]
pub struct InDevice(());

impl InDevice {
    /// Until the guard is dropped.
    #[must_use]
    pub fn enter() -> InDevice {
        enter_device();
        InDevice(())
    }
}

impl Drop for InDevice {
    fn drop(&mut self) {
        leave_device();
    }
}

const _: () = assert!(size_of::<Page>() <= SUPERBLOCK_OFFSET);
