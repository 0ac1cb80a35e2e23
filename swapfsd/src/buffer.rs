//! Page-aligned buffers for requests in flight: mapped, populated and lent, never allocated.
//!
//! Two sizes, because a request is either a page or a read-ahead window, or a large swap-out.
//! Who finds no buffer waits until one comes back: every buffer is held by a request in flight,
//! so that ends without any new memory.

use crate::sync::{Condvar, Mutex};
use crate::sys::alloc::MAX_REQUEST_BYTES;
use crate::sys::memory::Mapping;
use crate::sys::pin::Pin;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Bytes of a small buffer: one swap read-ahead window with the default `vm.page-cluster`.
pub const SMALL_BYTES: usize = 32 << 10;
/// Bytes of a large buffer: the largest request.
pub const LARGE_BYTES: usize = MAX_REQUEST_BYTES;

struct Class {
    /// Where the class starts in the mapping.
    offset: usize,
    buffer_bytes: usize,
    free: Mutex<Free>,
    returned: Condvar,
}

struct Free {
    indices: Vec<u32>,
    waiting: usize,
}

/// Memory of a transport's own, in which requests arrive: places of [`LARGE_BYTES`] each.
#[derive(Debug)]
pub struct Payloads {
    /// Where it lies.
    pub mapping: Mapping,
    /// Where the first place starts in it, page-aligned.
    pub offset: usize,
    /// How many places there are.
    pub count: usize,
}

/// The class index of a buffer that lies in a payload.
const PAYLOAD: usize = 2;

struct Inner {
    mapping: Mapping,
    classes: [Class; 2],
    payloads: Option<Payloads>,
    /// Not where io_uring is not allowed; who serves says so.
    _pin: Option<Pin>,
}

/// The pool; clones are handles on the same buffers.
#[derive(Clone)]
pub struct BufferPool {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BufferPool({} bytes)", self.inner.mapping.len())
    }
}

impl BufferPool {
    /// Maps, populates and pins `small_count` buffers of 32 KiB and `large_count` of 1 MiB.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub fn new(small_count: u32, large_count: u32) -> io::Result<BufferPool> {
        BufferPool::with_payloads(small_count, large_count, None)
    }

    /// As [`BufferPool::new`], with a transport's own memory, which buffers can lie in too.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub fn with_payloads(
        small_count: u32,
        large_count: u32,
        payloads: Option<Payloads>,
    ) -> io::Result<BufferPool> {
        let small_total = small_count as usize * SMALL_BYTES;
        let mapping = Mapping::new(small_total + large_count as usize * LARGE_BYTES, true)?;
        let class = |offset, buffer_bytes, count: u32| Class {
            offset,
            buffer_bytes,
            free: Mutex::new(Free { indices: (0..count).rev().collect(), waiting: 0 }),
            returned: Condvar::new(),
        };
        let classes =
            [class(0, SMALL_BYTES, small_count), class(small_total, LARGE_BYTES, large_count)];
        let pin = Pin::new(mapping.as_ptr(), mapping.len()).ok();
        Ok(BufferPool { inner: Arc::new(Inner { mapping, classes, payloads, _pin: pin }) })
    }

    /// Lends a buffer of `len` bytes, whose contents are whatever was there before. Waits if all
    /// are out.
    ///
    /// # Panics
    /// If `len` is over [`LARGE_BYTES`].
    #[must_use]
    pub fn take(&self, len: usize) -> PageBuffer {
        assert!(len <= LARGE_BYTES, "a buffer of {len} bytes");
        let class_index = usize::from(len > SMALL_BYTES);
        let class = &self.inner.classes[class_index];
        let mut free = class.free.lock();
        let index = loop {
            match free.indices.pop() {
                Some(index) => break index,
                None => {
                    free.waiting += 1;
                    free = class.returned.wait(free);
                    free.waiting -= 1;
                }
            }
        };
        drop(free);
        PageBuffer { inner: Arc::clone(&self.inner), class_index, index, len }
    }

    /// The transport's memory, if there is such.
    #[must_use]
    pub fn payloads(&self) -> Option<&Payloads> {
        self.inner.payloads.as_ref()
    }

    /// The first `len` bytes of payload `index` as a buffer. It is the transport's duty to have
    /// at most one for each at a time: while a request is there, nobody else uses its payload.
    ///
    /// # Panics
    /// If there is no such payload, or it is shorter.
    #[must_use]
    pub fn payload(&self, index: u32, len: usize) -> PageBuffer {
        let count = self.inner.payloads.as_ref().map_or(0, |payloads| payloads.count);
        assert!((index as usize) < count && len <= LARGE_BYTES, "payload {index} of {len} bytes");
        PageBuffer { inner: Arc::clone(&self.inner), class_index: PAYLOAD, index, len }
    }

    /// All memory that buffers lie in, for registration with io_uring: start and length.
    #[must_use]
    pub fn memory(&self) -> [Option<(*mut u8, usize)>; 2] {
        let range = |mapping: &Mapping| (mapping.as_ptr(), mapping.len());
        let payloads = self.inner.payloads.as_ref().map(|payloads| range(&payloads.mapping));
        [Some(range(&self.inner.mapping)), payloads]
    }
}

/// A buffer on loan: page-aligned, `len` bytes long; it goes back to its pool when dropped.
pub struct PageBuffer {
    inner: Arc<Inner>,
    class_index: usize,
    index: u32,
    len: usize,
}

impl PageBuffer {
    /// Which part of [`BufferPool::memory`] it lies in.
    #[must_use]
    pub fn memory_index(&self) -> u16 {
        u16::from(self.class_index == PAYLOAD)
    }

    fn start(&self) -> *mut u8 {
        if let (PAYLOAD, Some(payloads)) = (self.class_index, &self.inner.payloads) {
            let offset = payloads.offset + self.index as usize * LARGE_BYTES;
            // SAFETY: `payload` has made sure that there are so many, inside the mapping.
            return unsafe { payloads.mapping.as_ptr().add(offset) };
        }
        let class = &self.inner.classes[self.class_index];
        let offset = class.offset + self.index as usize * class.buffer_bytes;
        // SAFETY: `new` made the mapping large enough for every index of every class.
        unsafe { self.inner.mapping.as_ptr().add(offset) }
    }
}

impl std::fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageBuffer({} bytes)", self.len)
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is lent to this value alone, and is as long as its class, which is
        // not shorter than `len`.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        let Some(class) = self.inner.classes.get(self.class_index) else { return };
        let mut free = class.free.lock();
        free.indices.push(self.index);
        let waiting = free.waiting > 0;
        drop(free);
        if waiting {
            class.returned.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_apart_and_come_back() {
        let pool = BufferPool::new(2, 1).unwrap();
        let mut small = pool.take(4096);
        let mut other = pool.take(SMALL_BYTES);
        let mut large = pool.take(LARGE_BYTES);
        for (buffer, value) in [(&mut small, 1u8), (&mut other, 2), (&mut large, 3)] {
            assert_eq!(buffer.as_ptr() as usize % 4096, 0);
            buffer.fill(value);
        }
        assert!(small.iter().all(|&byte| byte == 1));
        assert!(other.iter().all(|&byte| byte == 2));
        assert!(large.iter().all(|&byte| byte == 3));
        let first = small.as_ptr();
        drop(small);
        assert_eq!(pool.take(1).as_ptr(), first);
    }

    #[test]
    fn who_finds_none_waits_for_one() {
        let pool = BufferPool::new(1, 0).unwrap();
        let held = pool.take(4096);
        let waiting = std::thread::spawn({
            let pool = pool.clone();
            move || pool.take(4096).len()
        });
        drop(held);
        assert_eq!(waiting.join().unwrap(), 4096);
    }
}
