//! Everything that is not in the slot table, again: by one scan of it.
//!
//! A process that takes over a volume's memory has the table, and the arena's memory; what lives
//! in each segment, how often an object is named, and the statistics follow from that. Requests
//! wait for this, so it takes no memory and no locks, and nothing in it is an atomic step.
//!
//! A kill in here leaves the table as it was, and so costs nothing but one more scan.

use super::Store;
use super::counters::Tally;
use super::dedup::Dedup;
use super::entry::{Entry, Meaning, Object};
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
    let mut right = true;
    store.table.for_each_frame(|frame| {
        let adopted = arena.adopt_frame(frame);
        right &= adopted;
        adopted
    });
    if !right {
        let text = "the slot table that was left behind is damaged";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    crash::pass(Point::ZmemActivating);
    let mut tally = Tally::default();
    match store.dedup() {
        None => for_each_entry(store, |entry| {
            let meaning = entry.meaning();
            tally.add(meaning);
            if let Meaning::Object(object) = meaning {
                arena.adopt_object(&object);
            }
        }),
        Some(dedup) => {
            // See there why in two passes.
            count_entries(store, dedup, true, |_| {});
            count_entries(store, dedup, false, |entry| tally.add(entry.meaning()));
        }
    }
    store.counters.adopt(&tally);
    arena.end_adoption();
    Ok(())
}

fn for_each_entry(store: &Store, mut visit: impl FnMut(Entry)) {
    store.table.for_each(0, store.table.slot_count(), |_, cell| {
        visit(Entry(cell.load(Ordering::Relaxed)));
    });
}

/// Counts the entries that say that they are shared, or those that do not, in the index. `visit`
/// gets all entries.
fn count_entries(store: &Store, dedup: &Dedup, shared: bool, mut visit: impl FnMut(Entry)) {
    let mut batch = [(Entry::ABSENT, None); BATCH];
    let mut filled = 0;
    for_each_entry(store, |entry| {
        visit(entry);
        let Some(object) = entry.as_object() else { return };
        if entry.is_shared() == shared {
            batch[filled] = (entry, Some(object));
            filled += 1;
            if filled == BATCH {
                count_batch(store, dedup, &batch);
                filled = 0;
            }
        }
    });
    count_batch(store, dedup, &batch[..filled]);
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
            arena.adopt_object(&object);
        }
    }
}
