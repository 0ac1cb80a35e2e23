//! Everything that is not in the slot table, again: by one scan of it.
//!
//! A process that takes over a volume's memory has the table, and the arena's memory; what lives
//! in each segment, how often an object is named, and the statistics follow from that. Requests
//! wait for this, so it takes no memory and no locks, and nothing in it is an atomic step.
//!
//! Objects that are not shared get their records in the index afterwards ([`super::dedup::refill`]):
//! that takes a look at each object, and nobody waits for it.
//!
//! A kill in here leaves the table as it was, and so costs nothing but one more scan.

use super::Store;
use super::counters::Tally;
use super::dedup::Dedup;
use super::entry::{Entry, Location, Meaning, Object};
use crate::crash::{self, Point};
use std::io;
use std::sync::atomic::Ordering;

/// Objects whose headers and records are fetched side by side: memory answers many requests in
/// the time of one.
const BATCH: usize = 64;

/// Makes the derived state of a volume that nobody else uses.
///
/// # Errors
/// `InvalidData` if the table leads nowhere; what a system call answers.
pub(super) fn rebuild(store: &Store) -> io::Result<()> {
    let arena = &store.pool.arena;
    arena.begin_adoption()?;
    store.dedup.begin_adoption()?;
    store.table.adopt_frames()?;
    crash::pass(Point::ZmemActivating);
    let mut tally = Tally::default();
    let live = arena.live_counts();
    if let Some(lower) = &store.lower {
        lower.begin_count();
    }
    match store.dedup() {
        None => store.table.for_each(0, store.table.slot_count(), |slot, cell| {
            let entry = Entry(cell.load(Ordering::Relaxed));
            let meaning = entry.meaning();
            tally.add(meaning);
            let Meaning::Object(object) = meaning else { return };
            match &store.lower {
                Some(lower) if object.device_offset().is_some() => lower.count(&object),
                Some(lower) => {
                    live.add(object.location, object.stored_bytes());
                    if let Some(copy) = store.copy_of(slot, entry).and_then(Entry::as_object) {
                        lower.count(&copy);
                        lower.count_copy(true);
                    }
                }
                None => live.add(object.location, object.stored_bytes()),
            }
        }),
        Some(dedup) => {
            let mut shared = store.shared.lock();
            shared.0.fill(0);
            let mut batch = Batch::new(store, dedup);
            // See there why those that say that they are shared come first.
            for_each_entry(store, |entry| {
                let meaning = entry.meaning();
                tally.add(meaning);
                if let Meaning::Object(object) = meaning
                    && entry.is_shared()
                {
                    shared.add(object.location);
                    batch.add(entry, object);
                }
            });
            batch.count();
            for_each_entry(store, |entry| {
                let Some(object) = entry.as_object() else { return };
                if entry.is_shared() {
                    return;
                }
                if shared.may_have(object.location) {
                    batch.add(entry, object);
                } else {
                    // Nobody else names it, and it gets its record later.
                    live.add(object.location, object.stored_bytes());
                }
            });
            batch.count();
        }
    }
    store.counters.adopt(&tally);
    arena.end_adoption();
    if let Some(lower) = &store.lower {
        lower.end_count();
    }
    Ok(())
}

fn for_each_entry(store: &Store, mut visit: impl FnMut(Entry)) {
    store.table.for_each(0, store.table.slot_count(), |_, cell| {
        visit(Entry(cell.load(Ordering::Relaxed)));
    });
}

/// Which objects may be shared: bits by a hash of their places. A wrong yes costs a look at the
/// object, which is most of what a take-over costs where pages are identical.
#[derive(Debug)]
pub(super) struct MayBeShared(Vec<u64>);

const MAY_BE_SHARED_BITS: u32 = 23;

impl MayBeShared {
    /// All of its memory is there. Empty where there is nothing to take over.
    pub(super) fn new(adopted: bool) -> MayBeShared {
        let words = if adopted { 1 << (MAY_BE_SHARED_BITS - 6) } else { 0 };
        // Not zeros, which would be promised and not there.
        MayBeShared(vec![u64::MAX; words])
    }

    fn place(location: Location) -> (usize, u64) {
        let hash = location.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - MAY_BE_SHARED_BITS);
        ((hash / 64) as usize, 1 << (hash % 64))
    }

    fn add(&mut self, location: Location) {
        let (word, bit) = MayBeShared::place(location);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    fn may_have(&self, location: Location) -> bool {
        let (word, bit) = MayBeShared::place(location);
        self.0.get(word).is_none_or(|word| word & bit != 0)
    }
}

/// Entries that are to be counted in the index.
struct Batch<'a> {
    store: &'a Store,
    dedup: &'a Dedup,
    entries: [(Entry, Option<Object>); BATCH],
    filled: usize,
}

impl<'a> Batch<'a> {
    fn new(store: &'a Store, dedup: &'a Dedup) -> Batch<'a> {
        Batch { store, dedup, entries: [(Entry::ABSENT, None); BATCH], filled: 0 }
    }

    fn add(&mut self, entry: Entry, object: Object) {
        self.entries[self.filled] = (entry, Some(object));
        self.filled += 1;
        if self.filled == BATCH {
            self.count();
        }
    }

    fn count(&mut self) {
        count_batch(self.store, self.dedup, &self.entries[..self.filled]);
        self.filled = 0;
    }
}

fn count_batch(store: &Store, dedup: &Dedup, batch: &[(Entry, Option<Object>)]) {
    let arena = &store.pool.arena;
    // In steps of their own: the loads of a step do not wait for each other.
    let mut checksums = [None; BATCH];
    for (checksum, (_, object)) in checksums.iter_mut().zip(batch) {
        *checksum = object.and_then(|object| arena.adopted_checksum(&object));
    }
    let mut buckets = [0; BATCH];
    for ((bucket, (_, object)), checksum) in buckets.iter_mut().zip(batch).zip(checksums) {
        if let (Some(object), Some(checksum)) = (object, checksum) {
            *bucket = dedup.adopted_bucket(checksum, object);
        }
    }
    for ((bucket, &(entry, object)), checksum) in buckets.into_iter().zip(batch).zip(checksums) {
        if let (Some(object), Some(checksum)) = (object, checksum)
            && dedup.adopt(bucket, entry, &object, checksum)
        {
            arena.live_counts().add(object.location, object.stored_bytes());
        }
    }
}
