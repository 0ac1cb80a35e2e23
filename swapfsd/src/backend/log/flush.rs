//! The flushers: chunks of the buffer become parts on the device.
//!
//! Each flusher has a stream of its own, and waits for its write: so there are as many writes in
//! flight as flushers. It takes the oldest chunks until what lives in them fills a part, and puts
//! that in the order of slots: pages that the kernel reads together lie together.

use super::Store;
use super::buffer::{Buffer, Found, Queued, What};
use super::fill::{Added, add_buffered};
use super::part::{Blocked, Builder, Stream, device_bytes};
use crate::backend::objects::arena::SEGMENT_BYTES;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;
use swapfs_format::log::{MAX_PART_BYTES, RECORD_LEN};

/// How often a flusher looks without being told.
const LOOK: Duration = Duration::from_millis(100);
/// Chunks that a flusher can have taken at most.
const MAX_TAKEN: usize = 64;
/// Records that it can have waiting.
const MAX_WAITING: usize = 24 << 10;

/// A chunk whose records are not all written.
#[derive(Debug, Clone, Copy)]
struct Taken {
    queued: Queued,
    left: u32,
}

/// One flusher.
#[derive(Debug)]
pub(super) struct Flusher {
    stream: Stream,
    builder: Builder,
    max_taken: usize,
    taken: VecDeque<Taken>,
    /// Records that were taken and not written, with the number of their chunk.
    waiting: Vec<(Found, u32)>,
    waiting_bytes: u64,
}

impl Flusher {
    /// Flusher `number`, which leaves `keep` free segments to the collector, and has at most
    /// `max_taken` chunks. `dedup`: identical pages of a part are written once.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(
        number: usize,
        keep: usize,
        max_taken: usize,
        dedup: bool,
    ) -> std::io::Result<Flusher> {
        let nothing =
            Found { sequence: 0, slot: 0, what: What::Discarded(0), size: 0, location: 0 };
        let mut waiting = vec![(nothing, 0); MAX_WAITING];
        waiting.clear();
        Ok(Flusher {
            stream: Stream::new(number, keep),
            builder: Builder::new(dedup)?,
            max_taken: max_taken.clamp(1, MAX_TAKEN),
            taken: VecDeque::with_capacity(MAX_TAKEN),
            waiting,
            waiting_bytes: 0,
        })
    }

    pub(super) fn run(mut self, store: &Store) {
        if !store.wait_until_active() {
            return;
        }
        loop {
            let stopping = store.stop.load(Ordering::Relaxed);
            if stopping {
                break;
            }
            let pause = match self.is_full() || !self.has_room() || self.is_urgent(store) {
                true => Duration::ZERO,
                false => LOOK,
            };
            if self.has_room()
                && let Some(queued) = store.buffer.take(self.stream.number, pause)
            {
                self.take(store, queued);
                if !self.is_full() && self.has_room() {
                    // Maybe more fits into the same part.
                    continue;
                }
            }
            if self.stream.number == 0 {
                store.close_old_chunks();
            }
            let all = self.is_urgent(store) || !self.has_room();
            if all || self.is_full() {
                self.write(store, all);
            }
            self.finish(store);
        }
        self.stream.close(store);
    }

    /// Must the oldest of what was taken be written now?
    fn is_urgent(&self, store: &Store) -> bool {
        self.taken.front().is_some_and(|taken| store.buffer.is_urgent(&taken.queued))
    }

    /// What waits fills a part.
    fn is_full(&self) -> bool {
        self.waiting_bytes >= MAX_PART_BYTES as u64
    }

    /// Can one more chunk be taken? It may be full of the smallest records. And few chunks are
    /// kept from being free, though little may live in them.
    fn has_room(&self) -> bool {
        self.taken.len() < self.max_taken
            && self.waiting.len() + SEGMENT_BYTES / RECORD_LEN < MAX_WAITING
    }

    /// Notes what lives in a chunk.
    fn take(&mut self, store: &Store, queued: Queued) {
        let mut left = 0;
        let forced = store.buffer.forced();
        store.buffer.walk(queued.chunk, |found| {
            let slot = u64::from(found.slot);
            let lives = match found.what {
                What::Discarded(count) => {
                    store.any_discarded(slot, u64::from(count), found.sequence)
                }
                _ => Buffer::lives(&found, store.entry(slot)),
            };
            // A flush may have been told that this is on its way: then its slot's newer page is.
            let forced = queued.number < forced && !matches!(found.what, What::Discarded(_));
            if lives || forced {
                self.waiting_bytes += bytes_of(&found);
                self.waiting.push((found, queued.chunk));
                left += 1;
            } else if !matches!(found.what, What::Object(_)) {
                store.buffer.free_plain(&found);
            }
        });
        self.taken.push_back(Taken { queued, left });
        self.finish(store);
    }

    /// Writes parts of what waits: full ones, and with `all` the last one too.
    fn write(&mut self, store: &Store, all: bool) {
        // The newest of a slot first: the older ones need not be written for a flush then.
        self.waiting.sort_unstable_by_key(|(found, _)| (found.slot, Reverse(found.sequence)));
        let mut next = 0;
        let forced = store.buffer.forced();
        while next < self.waiting.len() {
            if !all && self.waiting_bytes < MAX_PART_BYTES as u64 / 2 {
                break;
            }
            if self.builder.begin(store, &mut self.stream).is_err() {
                if store.stop.load(Ordering::Relaxed) {
                    break;
                }
                store.want_segments();
                store.segments.wait_for_free(LOOK);
                continue;
            }
            let first = next;
            while let Some(&(found, chunk)) = self.waiting.get(next) {
                let forced = forced
                    > self
                        .taken
                        .iter()
                        .find(|taken| taken.queued.chunk == chunk)
                        .map_or(u64::MAX, |taken| taken.queued.number);
                match add_buffered(store, &mut self.builder, &found, next as u32, forced) {
                    Added::Yes => {}
                    Added::NotNeeded => done_with(store, &mut self.taken, &found, chunk),
                    Added::NoRoom => break,
                }
                self.waiting_bytes -= bytes_of(&found);
                next += 1;
            }
            debug_assert!(next > first);
            if !self.write_part(store) {
                // The volume is being unmounted, or is killed: what is in the builder is given up
                // with it, and is still in the buffer.
                break;
            }
        }
        self.waiting.drain(..next);
    }

    fn write_part(&mut self, store: &Store) -> bool {
        let Flusher { stream, builder, taken, waiting, .. } = self;
        loop {
            let outcome = builder.write(store, stream, |source| {
                let (found, chunk) = waiting[source as usize];
                done_with(store, taken, &found, chunk);
            });
            match outcome {
                Ok(()) => return true,
                Err(Blocked::Stopping) => return false,
                Err(Blocked::NoSegment) => {
                    if store.stop.load(Ordering::Relaxed) {
                        return false;
                    }
                    store.want_segments();
                    store.segments.wait_for_free(LOOK);
                }
            }
        }
    }

    /// Lets go of chunks of which nothing is left to be written.
    fn finish(&mut self, store: &Store) {
        let before = self.taken.len();
        self.taken.retain(|taken| {
            if taken.left == 0 {
                store.buffer.let_go(taken.queued.chunk);
            }
            taken.left > 0
        });
        if self.taken.len() < before {
            let least = self.taken.iter().map(|taken| taken.queued.number).min();
            store.buffer.finish_below(self.stream.number, least.unwrap_or(u64::MAX));
        }
    }
}

fn bytes_of(found: &Found) -> u64 {
    match found.what {
        What::Object(object) => device_bytes(object.len),
        _ => RECORD_LEN as u64,
    }
}

/// A record is on the device, or not needed any more.
fn done_with(store: &Store, taken: &mut VecDeque<Taken>, found: &Found, chunk: u32) {
    if !matches!(found.what, What::Object(_)) {
        store.buffer.free_plain(found);
    }
    if let Some(taken) = taken.iter_mut().find(|taken| taken.queued.chunk == chunk) {
        taken.left -= 1;
    }
}
