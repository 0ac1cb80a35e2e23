//! The global allocator: the system's, with three things that a swap daemon needs.
//!
//! * **fuser's read buffers.** fuser reads each request into a `Vec` of 16 MiB + 4 KiB that it
//!   makes itself. Write data starts 80 bytes into it, so with any usual allocator it could not
//!   go to an O_DIRECT file without a copy, and its first use would fault. Allocations of just
//!   that size are placed so that byte 80 lies on a page boundary, and the part that a request
//!   of at most [`MAX_REQUEST_BYTES`] can reach is populated at once, and stays where it is.
//! * **Counting.** Threads mark the I/O path with [`IoPath::enter`]; allocations made there are
//!   counted (`heap_allocations_on_io_path` in stats.json), since there should be none: one
//!   could wait for memory that only swap can free.
//! * **The way to servers elsewhere.** What threads allocate on it comes from a pool of its own
//!   ([`super::network_heap`]).

use super::network_heap;
use super::pin::Pin;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// The largest read or write that the daemon negotiates with FUSE, in bytes.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Size of the buffer that fuser 0.18 reads requests into. Should that change, `copied_writes`
/// is no longer 0, and the tests in `tests/e2e/mounted.rs` fail.
const FUSER_BUFFER_BYTES: usize = (16 << 20) + 4096;
/// `fuse_in_header` and `fuse_write_in`: what stands before the data of a write.
const WRITE_HEADER_BYTES: usize = 80;
const PAGE: usize = 4096;
/// Room to move the start of the buffer to where byte 80 is page-aligned.
const FUSER_MAPPING_BYTES: usize = FUSER_BUFFER_BYTES + 2 * PAGE;
const START_IN_MAPPING: usize = PAGE - WRITE_HEADER_BYTES;

static IO_PATH_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static ON_IO_PATH: Cell<bool> = const { Cell::new(false) };
    /// The thread's allocations from the system.
    #[cfg(test)]
    static OF_THREAD: Cell<u64> = const { Cell::new(0) };
}

/// Allocations from the system that the calling thread has made.
#[cfg(test)]
pub(crate) fn thread_allocations() -> u64 {
    OF_THREAD.get()
}

/// While one of these lives, the thread is on the I/O path.
#[derive(Debug)]
pub struct IoPath(());

impl IoPath {
    /// Marks the calling thread until the guard is dropped.
    #[must_use]
    pub fn enter() -> IoPath {
        ON_IO_PATH.set(true);
        IoPath(())
    }
}

impl Drop for IoPath {
    fn drop(&mut self) {
        ON_IO_PATH.set(false);
    }
}

/// Heap allocations made on the I/O path since the process started.
#[must_use]
pub fn io_path_allocations() -> u64 {
    IO_PATH_ALLOCATIONS.load(Ordering::Relaxed)
}

struct SwapfsAllocator;

#[global_allocator]
static ALLOCATOR: SwapfsAllocator = SwapfsAllocator;

fn count() {
    #[cfg(test)]
    let _ = OF_THREAD.try_with(|count| count.set(count.get() + 1));
    // `try_with`: a thread that is ending may free and allocate after its locals are gone.
    if ON_IO_PATH.try_with(Cell::get).unwrap_or(false) {
        IO_PATH_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_fuser_buffer(layout: &Layout) -> bool {
    layout.size() == FUSER_BUFFER_BYTES && layout.align() <= 16
}

fn map_fuser_buffer() -> *mut u8 {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address that the kernel chooses.
    let mapping =
        unsafe { libc::mmap(std::ptr::null_mut(), FUSER_MAPPING_BYTES, protection, flags, -1, 0) };
    if mapping == libc::MAP_FAILED {
        return std::ptr::null_mut();
    }
    // One page holds the header's 80 bytes. A kernel without MADV_POPULATE_WRITE faults later.
    let used_bytes = MAX_REQUEST_BYTES + 2 * PAGE;
    let populated = super::memory::populate(mapping.cast(), used_bytes, true);
    if populated.is_ok()
        && let Ok(pin) = Pin::new(mapping.cast(), used_bytes)
    {
        let descriptor = pin.into_descriptor().into_raw_fd();
        // SAFETY: the first of the bytes before the buffer, page-aligned.
        unsafe { mapping.cast::<RawFd>().write(descriptor + 1) };
    }
    // SAFETY: START_IN_MAPPING is inside the mapping.
    unsafe { mapping.cast::<u8>().add(START_IN_MAPPING) }
}

// SAFETY: memory comes from the pool, whose blocks are known by their addresses; or else, for one
// size, from a mapping of its own that is large enough and is given back whole, by the layout; or
// else from `System`. `dealloc` tells them apart in the same order.
unsafe impl GlobalAlloc for SwapfsAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if network_heap::active()
            && let Some(block) = network_heap::allocate(&layout)
        {
            return block.as_ptr();
        }
        count();
        if is_fuser_buffer(&layout) {
            return map_fuser_buffer();
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if network_heap::active()
            && let Some(block) = network_heap::allocate(&layout)
        {
            // SAFETY: the block is at least that long, and nobody else has it.
            unsafe { block.write_bytes(0, layout.size()) };
            return block.as_ptr();
        }
        count();
        if is_fuser_buffer(&layout) {
            return map_fuser_buffer();
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if network_heap::owns(pointer) {
            // SAFETY: it is the pool's, and the caller gives it up with the layout it has.
            return unsafe { network_heap::free(pointer, &layout) };
        }
        if is_fuser_buffer(&layout) {
            // SAFETY: such a layout was given START_IN_MAPPING into its own mapping.
            let mapping = unsafe { pointer.sub(START_IN_MAPPING) };
            // SAFETY: written when the buffer was mapped, or zero.
            let descriptor = unsafe { mapping.cast::<RawFd>().read() } - 1;
            if descriptor >= 0 {
                // SAFETY: nobody else knows of it.
                drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
            // SAFETY: the whole of that mapping, which nobody uses any more.
            unsafe { libc::munmap(mapping.cast(), FUSER_MAPPING_BYTES) };
            return;
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else {
            return std::ptr::null_mut();
        };
        let pooled = network_heap::owns(pointer);
        if pooled && network_heap::fits(&layout, &new_layout) {
            return pointer;
        }
        let special = is_fuser_buffer(&layout) || is_fuser_buffer(&new_layout);
        match pooled || special || network_heap::active() {
            true => {
                // SAFETY: the caller promises that new_size is not zero.
                let moved = unsafe { self.alloc(new_layout) };
                if !moved.is_null() {
                    let kept = layout.size().min(new_size);
                    // SAFETY: both are at least `kept` long, and they are different objects.
                    unsafe { std::ptr::copy_nonoverlapping(pointer, moved, kept) };
                    // SAFETY: the caller gives the old block up.
                    unsafe { self.dealloc(pointer, layout) };
                }
                moved
            }
            false => {
                count();
                // SAFETY: the caller's promises are passed on.
                unsafe { System.realloc(pointer, layout, new_size) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_data_in_fusers_buffer_is_page_aligned() {
        let mut buffer = vec![0u8; FUSER_BUFFER_BYTES];
        let address = buffer.as_ptr() as usize;
        assert_eq!((address + WRITE_HEADER_BYTES) % PAGE, 0);
        assert_eq!(address % 8, 0, "fuser moves the start if it is not aligned for its header");
        buffer[FUSER_BUFFER_BYTES - 1] = 1;
        assert_eq!(buffer[0], 0);
        buffer.push(9);
        assert_eq!((buffer[FUSER_BUFFER_BYTES - 1], buffer[FUSER_BUFFER_BYTES]), (1, 9));
        buffer.truncate(FUSER_BUFFER_BYTES);
        buffer.shrink_to_fit();
        assert_eq!(buffer[FUSER_BUFFER_BYTES - 1], 1);
    }

    #[test]
    fn allocations_are_counted_on_the_io_path_only() {
        let before = io_path_allocations();
        drop(std::hint::black_box(Box::new(1)));
        assert_eq!(io_path_allocations(), before);
        let path = IoPath::enter();
        drop(std::hint::black_box(Box::new(2)));
        drop(path);
        assert_eq!(io_path_allocations(), before + 1);
    }
}
