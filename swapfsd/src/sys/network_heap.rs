//! Memory for the way to servers elsewhere: what threads allocate while they are on it comes from
//! a pool that was populated before, since memory of the system could wait for a page that has to
//! be written to that very server. Each client of a server adds to the pool what it needs.
//!
//! The libraries that speak the protocols allocate as they like, so this stands below the global
//! allocator ([`super::alloc`]). Blocks have sizes of powers of two. At first the pool is a list of
//! blocks of the largest size; a size that has no free block splits one of the next larger size.
//! Blocks are never joined: what is used is the same for each request, so it settles. When nothing
//! is left, the system's allocator serves, and that is counted.

use super::memory::Mapping;
use crate::sync::Mutex;
use std::alloc::Layout;
use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const SMALLEST_BYTES: usize = 32;
/// The largest block, and what the pool's start is aligned to.
const LARGEST_BYTES: usize = 2 << 20;
const CLASSES: usize =
    (LARGEST_BYTES.trailing_zeros() - SMALLEST_BYTES.trailing_zeros()) as usize + 1;

/// How often memory can be added.
const REGIONS: usize = 8;

thread_local! {
    /// How many guards the thread has.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// While one of these lives, the thread's allocations come from the pool. They nest.
#[derive(Debug)]
pub struct NetworkPath(PhantomData<*const ()>);

impl NetworkPath {
    /// Marks the calling thread until the guard is dropped.
    #[must_use]
    pub fn enter() -> NetworkPath {
        DEPTH.set(DEPTH.get() + 1);
        NetworkPath(PhantomData)
    }
}

impl Drop for NetworkPath {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// The free blocks of one size; each holds the address of the next.
struct FreeList(Option<NonNull<u8>>);

// SAFETY: the blocks in the list belong to the list alone.
unsafe impl Send for FreeList {}

impl FreeList {
    /// # Safety
    /// `block` is a block of this list's size, which nobody uses.
    unsafe fn push(&mut self, block: NonNull<u8>) {
        // SAFETY: at least SMALLEST_BYTES long and aligned to its size, and unused.
        unsafe { block.cast::<Option<NonNull<u8>>>().write(self.0) };
        self.0 = Some(block);
    }

    fn pop(&mut self) -> Option<NonNull<u8>> {
        let block = self.0?;
        // SAFETY: written by `push`, and nobody has used the block since.
        self.0 = unsafe { block.cast::<Option<NonNull<u8>>>().read() };
        Some(block)
    }
}

/// Where some memory starts and ends.
struct Region {
    start: AtomicUsize,
    end: AtomicUsize,
}

/// Blocks of all sizes.
struct Heap {
    free: [Mutex<FreeList>; CLASSES],
    /// Its memory. Changed under the lock of the largest blocks, read without.
    regions: [Region; REGIONS],
    /// How many regions there are.
    region_count: AtomicUsize,
    used_bytes: AtomicUsize,
}

/// The size class of a block that holds `layout`, if there is one.
fn class_of(layout: &Layout) -> Option<usize> {
    let bytes = layout.size().max(layout.align()).max(SMALLEST_BYTES);
    if bytes > LARGEST_BYTES {
        return None;
    }
    Some((bytes.next_power_of_two() / SMALLEST_BYTES).trailing_zeros() as usize)
}

fn class_bytes(class: usize) -> usize {
    SMALLEST_BYTES << class
}

impl Heap {
    const fn new() -> Heap {
        Heap {
            free: [const { Mutex::new(FreeList(None)) }; CLASSES],
            regions: [const { Region { start: AtomicUsize::new(0), end: AtomicUsize::new(0) } };
                REGIONS],
            region_count: AtomicUsize::new(0),
            used_bytes: AtomicUsize::new(0),
        }
    }

    /// Takes more memory; false: it has as many regions as it can.
    ///
    /// # Safety
    /// The memory lives as long as the heap if it is taken, is aligned to [`LARGEST_BYTES`] and a
    /// multiple of it long, and nobody else uses it.
    unsafe fn give(&self, start: NonNull<u8>, bytes: usize) -> bool {
        let mut largest = self.free[CLASSES - 1].lock();
        let count = self.region_count.load(Ordering::Relaxed);
        let Some(region) = self.regions.get(count) else { return false };
        // Before anybody can have a block of it.
        region.start.store(start.as_ptr().expose_provenance(), Ordering::Relaxed);
        region.end.store(start.as_ptr() as usize + bytes, Ordering::Relaxed);
        self.region_count.store(count + 1, Ordering::Release);
        for offset in (0..bytes).step_by(LARGEST_BYTES).rev() {
            // SAFETY: inside the memory.
            let block = unsafe { start.add(offset) };
            // SAFETY: a block of the largest size, which nobody has had.
            unsafe { largest.push(block) };
        }
        true
    }

    /// Maps, populates and takes more memory, of `bytes` rounded up to [`LARGEST_BYTES`], for good;
    /// false: there is no room for another region.
    fn extend(&'static self, bytes: usize) -> io::Result<bool> {
        if self.regions().len() == REGIONS {
            return Ok(false);
        }
        let bytes = bytes.max(1).next_multiple_of(LARGEST_BYTES);
        let mapping = Mapping::new(bytes + LARGEST_BYTES, false)?;
        let offset = mapping.as_ptr().align_offset(LARGEST_BYTES);
        mapping.populate_range(offset, bytes)?;
        // SAFETY: inside the mapping, which is longer by a whole block.
        let start = unsafe { mapping.as_ptr().add(offset) };
        let Some(start) = NonNull::new(start) else { return Ok(false) };
        // SAFETY: aligned as just made sure, and nobody else's; kept below if it is taken.
        let taken = unsafe { self.give(start, bytes) };
        if taken {
            std::mem::forget(mapping);
        }
        Ok(taken)
    }

    fn regions(&self) -> &[Region] {
        &self.regions[..self.region_count.load(Ordering::Acquire).min(REGIONS)]
    }

    fn owns(&self, pointer: *const u8) -> bool {
        let address = pointer as usize;
        self.regions().iter().any(|region| {
            address < region.end.load(Ordering::Relaxed)
                && address >= region.start.load(Ordering::Relaxed)
        })
    }

    fn take(&self, class: usize) -> Option<NonNull<u8>> {
        // The locks are always taken from smaller to larger sizes.
        let mut free = self.free.get(class)?.lock();
        if let Some(block) = free.pop() {
            return Some(block);
        }
        let larger = self.take(class + 1)?;
        // SAFETY: the second half of a block of twice the size.
        let second = unsafe { larger.add(class_bytes(class)) };
        // SAFETY: as just said; nobody else has it.
        unsafe { free.push(second) };
        Some(larger)
    }

    fn allocate(&self, layout: &Layout) -> Option<NonNull<u8>> {
        let class = class_of(layout)?;
        let block = self.take(class)?;
        self.used_bytes.fetch_add(class_bytes(class), Ordering::Relaxed);
        Some(block)
    }

    /// # Safety
    /// `block` came from [`Heap::allocate`] of this heap with that layout, and is used no more.
    unsafe fn free(&self, block: NonNull<u8>, layout: &Layout) {
        let Some(class) = class_of(layout) else { return };
        self.used_bytes.fetch_sub(class_bytes(class), Ordering::Relaxed);
        // SAFETY: the layout gives the same size as when it was allocated.
        unsafe { self.free[class].lock().push(block) };
    }
}

static HEAP: Heap = Heap::new();
static OVERFLOWS: AtomicU64 = AtomicU64::new(0);

/// Adds memory to the pool, `bytes` rounded up to 2 MiB, and populates it; it stays for good. Before
/// the first call, everything comes from the system. After 8 calls nothing more is added, which the
/// log tells: what is missing then comes from the system, and is counted.
///
/// # Errors
/// `ENOMEM`, and what mmap(2) and madvise(2) answer otherwise.
pub fn start(bytes: usize) -> io::Result<()> {
    if !HEAP.extend(bytes)? {
        log::warn!("memory for servers elsewhere was added {REGIONS} times: no more is");
    }
    Ok(())
}

/// Allocations on the way to servers that the pool had no room for, or that are too large for it.
#[must_use]
pub fn network_heap_overflows() -> u64 {
    OVERFLOWS.load(Ordering::Relaxed)
}

/// Bytes of the pool that are in use.
#[must_use]
pub fn used_bytes() -> u64 {
    HEAP.used_bytes.load(Ordering::Relaxed) as u64
}

/// Whether the calling thread's allocations come from the pool.
pub(super) fn active() -> bool {
    // `try_with`: a thread that is ending may free and allocate after its locals are gone.
    HEAP.region_count.load(Ordering::Relaxed) != 0 && DEPTH.try_with(Cell::get).unwrap_or(0) > 0
}

/// Whether a block is one of the pool's.
pub(super) fn owns(pointer: *const u8) -> bool {
    HEAP.owns(pointer)
}

/// A block for `layout`; `None` if the pool has none, which is counted.
pub(super) fn allocate(layout: &Layout) -> Option<NonNull<u8>> {
    let block = HEAP.allocate(layout);
    if block.is_none() {
        OVERFLOWS.fetch_add(1, Ordering::Relaxed);
    }
    block
}

/// Whether a block for `layout` has room for one of another size too.
pub(super) fn fits(layout: &Layout, new_layout: &Layout) -> bool {
    class_of(layout) == class_of(new_layout)
}

/// Gives a block back.
///
/// # Safety
/// The pool [`owns`] it, it was allocated with that layout, and nobody uses it any more.
pub(super) unsafe fn free(block: *mut u8, layout: &Layout) {
    if let Some(block) = NonNull::new(block) {
        // SAFETY: passed on.
        unsafe { HEAP.free(block, layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bytes: usize, align: usize) -> Layout {
        Layout::from_size_align(bytes, align).unwrap()
    }

    #[test]
    fn classes_hold_what_they_are_for() {
        for bytes in [1, 31, 32, 33, 64, 65, 4096, 4097, LARGEST_BYTES] {
            let class = class_of(&layout(bytes, 1)).unwrap();
            assert!(class_bytes(class) >= bytes);
            assert!(class == 0 || class_bytes(class - 1) < bytes);
        }
        assert_eq!(class_of(&layout(8, 4096)).map(class_bytes), Some(4096));
        assert_eq!(class_of(&layout(LARGEST_BYTES + 1, 1)), None);
    }

    #[test]
    fn blocks_of_many_threads_never_overlap_and_come_back() {
        static LOCAL: Heap = Heap::new();
        const BYTES: usize = 4 * LARGEST_BYTES;
        let mapping = Box::leak(Box::new(Mapping::new(BYTES + LARGEST_BYTES, true).unwrap()));
        let offset = mapping.as_ptr().align_offset(LARGEST_BYTES);
        // SAFETY: inside the mapping.
        let start = NonNull::new(unsafe { mapping.as_ptr().add(offset) }).unwrap();
        // SAFETY: leaked, aligned, and nobody else's.
        assert!(unsafe { LOCAL.give(start, BYTES) });
        let threads: Vec<_> = (0..8u8)
            .map(|thread| {
                std::thread::spawn(move || {
                    let mut held: Vec<(NonNull<u8>, Layout)> = Vec::new();
                    let mut state = u64::from(thread) + 1;
                    for _ in 0..20_000 {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let random = (state >> 33) as usize;
                        if held.len() > 40 || (random.is_multiple_of(3) && !held.is_empty()) {
                            let (block, layout) = held.swap_remove(random % held.len());
                            for at in [0, layout.size() - 1] {
                                // SAFETY: inside the block, which is ours.
                                let byte = unsafe { block.add(at) };
                                // SAFETY: as above.
                                assert_eq!(unsafe { byte.read() }, thread);
                            }
                            // SAFETY: allocated below with that layout.
                            unsafe { LOCAL.free(block, &layout) };
                            continue;
                        }
                        let layout = layout(1 + random % (1 << (random % 15)), 1 << (random % 7));
                        let Some(block) = LOCAL.allocate(&layout) else { continue };
                        assert!(LOCAL.owns(block.as_ptr()));
                        assert_eq!(block.as_ptr() as usize % layout.align(), 0);
                        // SAFETY: the block is ours, and that long.
                        unsafe { block.write_bytes(thread, layout.size()) };
                        held.push((block, layout));
                    }
                    for (block, layout) in held {
                        // SAFETY: allocated above with that layout.
                        unsafe { LOCAL.free(block, &layout) };
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(LOCAL.used_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_empty_heap_says_so() {
        let heap = Heap::new();
        assert!(heap.allocate(&layout(10, 1)).is_none());
        assert!(!heap.owns(std::ptr::null()));
    }

    #[test]
    fn memory_is_added_until_there_is_no_room_for_more() {
        static LOCAL: Heap = Heap::new();
        let whole = layout(LARGEST_BYTES, 1);
        let mut held = Vec::new();
        for round in 0..REGIONS {
            let bytes = (1 + round % 2) * LARGEST_BYTES;
            assert!(LOCAL.extend(bytes - 1).unwrap());
            for _ in 0..bytes / LARGEST_BYTES {
                held.push(LOCAL.allocate(&whole).unwrap());
            }
            assert!(LOCAL.allocate(&whole).is_none());
        }
        assert!(!LOCAL.extend(1).unwrap());
        assert!(LOCAL.allocate(&layout(1, 1)).is_none());
        let mut starts: Vec<usize> = held.iter().map(|block| block.as_ptr() as usize).collect();
        starts.sort_unstable();
        assert!(starts.windows(2).all(|two| two[0] + LARGEST_BYTES <= two[1]));
        for block in held {
            assert!(LOCAL.owns(block.as_ptr()));
            // SAFETY: the last byte of the block.
            assert!(LOCAL.owns(unsafe { block.add(LARGEST_BYTES - 1) }.as_ptr()));
            // SAFETY: the block is ours, and that long.
            unsafe { block.write_bytes(7, LARGEST_BYTES) };
            // SAFETY: allocated above with that layout.
            unsafe { LOCAL.free(block, &whole) };
        }
        assert!(!LOCAL.owns(std::ptr::from_ref(&LOCAL).cast()));
        assert_eq!(LOCAL.used_bytes.load(Ordering::Relaxed), 0);
        assert!(LOCAL.allocate(&layout(1, 1)).is_some());
    }

    #[test]
    fn memory_is_added_while_it_is_used() {
        static LOCAL: Heap = Heap::new();
        let whole = layout(LARGEST_BYTES, 1);
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut taken = 0;
                        while LOCAL.regions().len() < REGIONS {
                            if let Some(block) = LOCAL.allocate(&whole) {
                                assert!(LOCAL.owns(block.as_ptr()));
                                taken += 1;
                            }
                        }
                        while LOCAL.allocate(&whole).is_some() {
                            taken += 1;
                        }
                        taken
                    })
                })
                .collect();
            for _ in 0..REGIONS {
                assert!(LOCAL.extend(LARGEST_BYTES).unwrap());
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, REGIONS);
    }

    #[test]
    fn allocations_on_the_path_are_the_pools_and_grow_and_shrink() {
        start(64 << 20).unwrap();
        let outside = vec![1u8; 100];
        assert!(!owns(outside.as_ptr()));
        let path = NetworkPath::enter();
        let nested = NetworkPath::enter();
        drop(nested);
        let mut inside: Vec<u8> = Vec::with_capacity(10);
        assert!(owns(inside.as_ptr()));
        for at in 0..100_000u32 {
            inside.push(at as u8);
        }
        assert!(owns(inside.as_ptr()));
        assert!(vec![0u8; 5000].iter().all(|byte| *byte == 0));
        let mut moved = outside;
        moved.resize(5000, 2);
        assert!(owns(moved.as_ptr()) && moved[99] == 1 && moved[100] == 2);
        drop(path);
        assert!((0..100_000u32).all(|at| inside[at as usize] == at as u8));
        inside.truncate(10);
        inside.shrink_to_fit();
        assert_eq!(inside[9], 9);
        assert!(!owns(inside.as_ptr()));
        // What is too large is the system's, and counted.
        let before = network_heap_overflows();
        let path = NetworkPath::enter();
        let large: Vec<u8> = Vec::with_capacity(LARGEST_BYTES + 1);
        assert!(!owns(large.as_ptr()));
        drop(path);
        assert!(network_heap_overflows() > before);
    }
}
