//! Cold pages again, by zstd: fewer bytes for pages that nobody has asked for in a while.
//!
//! The age of an object is counted in its table entry: every third of `recompress-age` each
//! entry gets one tick older, a read makes it young. An object of the greatest age is decoded,
//! encoded again, and published if it got smaller; until then the old one stays what it was.
//! This happens on a thread of its own at low priority, no faster than `recompress-rate`, and
//! only while the reserve is not needed by writes.

use super::counters::Field;
use super::entry::{Entry, OLDEST, Object};
use super::pool::{OpenSegment, Purpose};
use super::{LOOK, Store};
use crate::codec::{Encoded, Encoder, Encoding};
use crate::crash::{self, Point};
use crate::sys::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use swapfs_format::PAGE_LEN;
use swapfs_format::types::{Algorithm, Recompress};

/// A new object is worth its publication if it is shorter by this part at least.
const WORTH_PART: usize = 16;
/// The rate is kept over this many pages at a time.
const PAGES_PER_BREAK: u64 = 16;

pub(super) fn run(store: &Store, options: &Recompress) {
    process::stay_ordinary();
    let priority = Priority { realtime: process::plans_realtime() };
    priority.low();
    let mut worker = Worker {
        store,
        encoder: Encoder::new(Algorithm::Zstd { level: options.level }),
        open: OpenSegment::default(),
        page: Box::new([0; PAGE_LEN]),
        rate_bytes: options.rate_bytes,
        priority,
        pages: 0,
        started: Instant::now(),
    };
    if !store.wait_until_active() {
        return;
    }
    let tick = (options.age / OLDEST as u32).max(Duration::from_millis(10));
    let mut next = Instant::now() + tick;
    while !store.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now < next {
            std::thread::sleep((next - now).min(LOOK));
            continue;
        }
        worker.pass();
        next = Instant::now().max(next + tick);
    }
    store.pool.close(&mut worker.open);
}

/// Compressing is done at low priority; but who holds a lock that swap-ins may wait for runs
/// like the threads that serve them, or it could be kept from giving the lock back.
#[derive(Debug, Clone, Copy)]
struct Priority {
    /// The other threads are real-time tasks.
    realtime: bool,
}

impl Priority {
    fn low(self) {
        if let Err(error) = process::set_background() {
            log::warn!("recompression at low priority: {error}");
        }
    }

    /// Until the guard is dropped.
    fn raised(self) -> Raised {
        if self.realtime {
            // It was one before: it may be one again.
            drop(process::set_realtime());
        }
        Raised(self)
    }
}

struct Raised(Priority);

impl Drop for Raised {
    fn drop(&mut self) {
        if self.0.realtime {
            self.0.low();
        }
    }
}

struct Worker<'a> {
    store: &'a Store,
    encoder: Encoder,
    open: OpenSegment,
    page: Box<[u8; PAGE_LEN]>,
    rate_bytes: u64,
    priority: Priority,
    /// Since `started`.
    pages: u64,
    started: Instant,
}

impl Worker<'_> {
    /// Makes every object a tick older, and recompresses the oldest.
    fn pass(&mut self) {
        let store = self.store;
        (self.pages, self.started) = (0, Instant::now());
        store.table.for_each(0, store.table.slot_count(), |slot, cell| {
            let entry = Entry(cell.load(Ordering::Acquire));
            let Some(object) = entry.as_object() else { return };
            if object.device_offset().is_some() {
                return;
            }
            if store.stop.load(Ordering::Relaxed) {
                return;
            }
            if entry.age() < OLDEST {
                // Whoever changed it meanwhile has touched it.
                let older = entry.older().0;
                let _ = cell.compare_exchange(entry.0, older, Ordering::AcqRel, Ordering::Relaxed);
            } else if object.encoding != Encoding::Zstd && !entry.was_tried() {
                self.recompress(slot, cell, entry, &object);
            }
        });
    }

    fn recompress(&mut self, slot: u64, cell: &AtomicU64, entry: Entry, object: &Object) {
        let store = self.store;
        self.keep_rate();
        {
            let _raised = self.priority.raised();
            let _shared = store.slots.of(slot).read();
            if cell.load(Ordering::Acquire) != entry.0
                || !store.read_object(object, &mut self.page[..])
            {
                // Touched meanwhile, or damaged: a read will say so.
                return;
            }
            // The same entry could name another object in the same place by the time that it is
            // compared, if the place were used again.
            store.pool.hold(object);
        }
        self.replace(slot, cell, entry, object);
        store.pool.free(object);
    }

    /// Encodes the page that `object`, which is held, holds, and puts what comes of it in its place.
    fn replace(&mut self, slot: u64, cell: &AtomicU64, entry: Entry, object: &Object) {
        let store = self.store;
        let worth = object.len - object.len / WORTH_PART;
        let encoded = self.encoder.encode(&self.page[..]);
        let _raised = self.priority.raised();
        let stored = match encoded {
            Encoded::Bytes(encoding @ Encoding::Zstd, bytes) if bytes.len() < worth => {
                store.store(&mut self.open, Purpose::Recompress, encoding, bytes)
            }
            _ => {
                let tried = entry.tried().0;
                let _ = cell.compare_exchange(entry.0, tried, Ordering::AcqRel, Ordering::Relaxed);
                store.counters.add(Field::RecompressTried, 1);
                return;
            }
        };
        // No room that is not needed otherwise: later.
        let Some(stored) = stored else { return };
        crash::pass(Point::ZmemRecompressed);
        let new = store.with_copy_of(stored.with_history_of(entry), entry);
        let alone = store.slots.of(slot).write();
        let exchanged =
            cell.compare_exchange(entry.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        drop(alone);
        if exchanged {
            crash::pass(Point::ZmemRecompressPublished);
            store.counters.replaced(entry, new);
            store.release(slot, entry);
            store.counters.add(Field::Recompressed, 1);
            let saved = object.len - new.as_object().map_or(object.len, |stored| stored.len);
            store.counters.add(Field::RecompressedSavedBytes, saved as i64);
        } else {
            store.release(slot, new);
        }
    }

    fn keep_rate(&mut self) {
        self.pages += 1;
        if !self.pages.is_multiple_of(PAGES_PER_BREAK) {
            return;
        }
        let due = self.pages as f64 * PAGE_LEN as f64 / self.rate_bytes as f64;
        while !self.store.stop.load(Ordering::Relaxed) {
            let ahead = due - self.started.elapsed().as_secs_f64();
            if ahead <= 0.0 {
                return;
            }
            std::thread::sleep(Duration::from_secs_f64(ahead.min(LOOK.as_secs_f64())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::backend::objects::entry::AGE_MASK;
    use crate::backend::zmem::Zmem;
    use crate::held::Held;
    use swapfs_format::types::ZmemOptions;

    fn page(seed: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE_LEN];
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for word in page.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let value = state | 0x8080_8080_8080_8080;
            word.copy_from_slice(&value.to_le_bytes());
        }
        page
    }

    /// The hand of a tier volume makes entries older too: `entry.0` may come again.
    #[test]
    fn a_page_that_was_overwritten_does_not_come_back() {
        let options = ZmemOptions {
            algorithm: Algorithm::Lz4,
            limit_bytes: Some(64 << 20),
            reserve_bytes: 2 << 20,
            recompress: None,
            dedup: false,
        };
        let zmem = Zmem::new(100, &options, 2, &Held::private()).unwrap();
        zmem.activate().unwrap();
        let store = &*zmem.store;
        zmem.write(0, &page(1)).unwrap();
        let cell = store.table.cell_of(0).unwrap();
        cell.fetch_or(AGE_MASK, Ordering::Relaxed);
        let entry = Entry(cell.load(Ordering::Relaxed));
        let object = entry.as_object().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut worker = Worker {
                    store,
                    encoder: Encoder::new(Algorithm::Zstd { level: 3 }),
                    open: OpenSegment::default(),
                    page: Box::new([0; PAGE_LEN]),
                    rate_bytes: 64 << 10,
                    priority: Priority { realtime: false },
                    pages: 15,
                    started: Instant::now(),
                };
                worker.recompress(0, cell, entry, &object);
            });
            std::thread::sleep(Duration::from_millis(300));
            zmem.discard(0, 1).unwrap();
            store.close_other_writers();
            zmem.write(0, &page(2)).unwrap();
            // As two visits of the demoter's hand do.
            cell.fetch_or(AGE_MASK, Ordering::Relaxed);
        });
        let mut read = vec![0; PAGE_LEN];
        zmem.read(0, &mut read).unwrap();
        assert!(read == page(2), "the page is the old one: {}", read == page(1));
    }
}
