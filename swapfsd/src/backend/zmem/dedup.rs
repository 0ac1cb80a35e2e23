//! One object for identical pages: an index of objects by what they hold.
//!
//! Encoding is deterministic, so identical pages have identical encoded bytes. The index finds
//! objects by checksum, length and encoding, and then the bytes are compared: a collision costs
//! that comparison and never gives the wrong page.
//!
//! The index is best effort. A record is 16 bytes; eight share a bucket of two cache lines, and
//! an object that finds its bucket full takes the place of one that is not shared. It grows with the pool by linear
//! hashing (W. Litwin, VLDB 1980): one bucket is split at a time, so there is never a moment in
//! which all of it is rebuilt. Its memory is populated by the thread that splits, never faulted
//! in by a write.
//!
//! How many entries name an object stands in its record. An object without one has one entry.
//!
//! **Counting again.** After a kill the index is filled from the table. It must then have a record
//! for each object with several entries, though a bucket may be too small for all objects that
//! belong there. So an entry that was made for an object found here says so
//! ([`Entry::shared_object`]), and a record whose object had such an entry is kept for as long
//! as the object lives, never displaced. There are no more of those in a bucket than it has
//! places, so they can all be put in first. The rest gets its records when requests are served
//! again ([`refill`]), as far as there is room: no record is the same as one entry. (A kill in the
//! middle of a split changes nothing about that: what was in the old bucket fits into it.)

use super::Store;
use super::arena::State;
use super::entry::{Entry, Object};
use super::kept::{INDEX_REGION, Kept};
use super::pool::Pool;
use crate::codec::{self, Encoding};
use crate::crash::{self, Point};
use crate::held::Held;
use crate::sync::Mutex;
use crate::sys::memory::Mapping;
use crate::sys::process;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use swapfs_format::PAGE_LEN;

/// Records of a bucket.
const WAYS: usize = 8;
const BUCKET_BYTES: usize = WAYS * size_of::<Record>();
const BUCKETS_PER_PAGE: u32 = (PAGE_LEN / BUCKET_BYTES) as u32;
/// Locks, and buckets at the start. A bucket and the one that it is split into have the same
/// lock, since the number of buckets at the start is a multiple of the number of locks.
const LOCKS: u32 = 256;
/// Buckets are split while there are more records than this for each.
const RECORDS_PER_BUCKET: u64 = 4;

/// An object that entries share. `entries` is 0 in an empty record.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Record {
    /// As a table entry names it.
    object: u64,
    checksum: u32,
    entries: u32,
}

/// In `entries`: there was more than one, and there may be a table entry that says so.
const SHARED: u32 = 1 << 31;
/// In `entries`: the number.
const ENTRIES_MASK: u32 = SHARED - 1;

impl Record {
    fn entries(&self) -> u32 {
        self.entries & ENTRIES_MASK
    }
}

/// The index.
#[derive(Debug)]
pub(super) struct Dedup {
    memory: Mapping,
    /// Has the number of buckets.
    kept: Arc<Kept>,
    max_buckets: u32,
    locks: Box<[Mutex<()>]>,
    records: AtomicU64,
    shared: AtomicU64,
    on: AtomicBool,
}

/// Buckets that an index for the objects of `limit_bytes` can have.
pub(super) fn max_buckets_for(limit_bytes: u64) -> u32 {
    // Objects of a kilobyte, four in a bucket.
    let max_buckets = (limit_bytes / 4096).clamp(u64::from(LOCKS), 1 << 31) as u32;
    max_buckets.next_power_of_two()
}

impl Dedup {
    /// An index as large as `kept` says; nearly all of it is only addresses.
    ///
    /// # Errors
    /// No address space, or no memory for the start.
    pub(super) fn new(held: &Held, kept: Arc<Kept>, on: bool) -> io::Result<Dedup> {
        let max_buckets = kept.layout().max_buckets;
        let memory = held.map(INDEX_REGION, max_buckets as usize * BUCKET_BYTES)?;
        let start_bytes = LOCKS as usize * BUCKET_BYTES;
        if kept.is_adopted() {
            memory.map_present(0, start_bytes)?;
        } else {
            // The start is there also if there is no index: a successor may have one.
            if on || held.is_shared() {
                memory.populate_range(0, start_bytes)?;
            }
            if on {
                kept.set_buckets(LOCKS);
            }
        }
        Ok(Dedup {
            memory,
            kept,
            max_buckets,
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            records: AtomicU64::new(0),
            shared: AtomicU64::new(0),
            on: AtomicBool::new(on),
        })
    }

    /// There is an index.
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Entries that name an object that another one names too.
    pub(super) fn shared_pages(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }

    /// Objects in the index.
    pub(super) fn indexed(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// The bucket of a hash, as long as there are `buckets`.
    fn bucket_of(hash: u32, buckets: u32) -> u32 {
        let power = buckets.next_power_of_two();
        match hash & (power - 1) {
            bucket if bucket < buckets => bucket,
            unsplit => unsplit & (power / 2 - 1),
        }
    }

    /// Runs `work` with the records of the hash's bucket, alone.
    fn with_bucket<T>(&self, hash: u32, work: impl FnOnce(&mut [Record; WAYS]) -> T) -> T {
        let _alone = self.locks[(hash % LOCKS) as usize].lock();
        // Buckets of this lock are split only under it, so this does not change for this hash.
        let bucket = Self::bucket_of(hash, self.kept.buckets());
        work(self.bucket(bucket))
    }

    /// The caller has the bucket's lock.
    #[expect(clippy::mut_from_ref, reason = "the records are guarded by the bucket's lock")]
    fn bucket(&self, bucket: u32) -> &mut [Record; WAYS] {
        let offset = bucket as usize * BUCKET_BYTES;
        assert!(offset + BUCKET_BYTES <= self.memory.len());
        // SAFETY: inside the mapping, as just checked.
        let start = unsafe { self.memory.as_ptr().add(offset) };
        // SAFETY: aligned to a bucket; any bytes are records; guarded by the bucket's lock, which
        // callers hold for as long as they use this.
        unsafe { &mut *start.cast() }
    }

    /// Finds an object with these bytes, or makes one with `append` and remembers it; answers an
    /// entry for it, which the caller publishes or [releases](Dedup::release). With
    /// `or_nothing`, an object that can't be remembered is not made: an object that many entries
    /// name shall not be moved once for each of them.
    pub(super) fn store(
        &self,
        pool: &Pool,
        or_nothing: bool,
        encoding: Encoding,
        checksum: u32,
        bytes: &[u8],
        append: impl FnOnce() -> Option<Object>,
    ) -> Option<Entry> {
        let key = Object { encoding, location: 0, len: bytes.len() }.content_hash(checksum);
        let found = self.with_bucket(key, |bucket| {
            for record in bucket.iter_mut().filter(|record| record.entries() > 0) {
                let Some(object) = Entry(record.object).as_object() else { continue };
                if record.checksum == checksum
                    && record.entries() < ENTRIES_MASK
                    && object.encoding == encoding
                    && pool.arena.state_at(object.location) != State::Victim
                    && pool
                        .unchecked(&object)
                        .is_some_and(|(stored, sum)| sum == checksum && stored == bytes)
                {
                    record.entries = (record.entries + 1) | SHARED;
                    crash::pass(Point::ZmemIndexed);
                    return Some(Entry::shared_object(object));
                }
            }
            None
        });
        if found.is_some() {
            self.shared.fetch_add(1, Ordering::Relaxed);
            return found;
        }
        let object = append()?;
        let record = Record { object: Entry::object(object).0, checksum, entries: 1 };
        let remembered = self.with_bucket(key, |bucket| {
            let free = bucket.iter().position(|record| record.entries() == 0);
            if free.is_some() {
                self.records.fetch_add(1, Ordering::Relaxed);
            }
            let place = free.or_else(|| displaceable(bucket));
            if let Some(place) = place {
                bucket[place] = record;
                crash::pass(Point::ZmemIndexed);
            }
            place.is_some()
        });
        if !remembered && or_nothing {
            pool.free(&object);
            return None;
        }
        if self.is_small() {
            pool.arena.wake();
        }
        Some(Entry::object(object))
    }

    /// An entry does not name the object any more; with the last one it is freed.
    pub(super) fn release(&self, pool: &Pool, object: &Object) {
        // With a damaged checksum its record can't be found, so nobody knows who else names it:
        // it is never freed, lest someone reads another page in its place.
        let Ok((_, checksum)) = pool.checked(object) else { return };
        let named = Entry::object(*object).0;
        let last = self.with_bucket(object.content_hash(checksum), |bucket| {
            let found = |record: &&mut Record| record.entries() > 0 && record.object == named;
            let Some(record) = bucket.iter_mut().find(found) else { return true };
            record.entries -= 1;
            crash::pass(Point::ZmemIndexed);
            let last = record.entries() == 0;
            if last {
                record.entries = 0;
                self.records.fetch_sub(1, Ordering::Relaxed);
            } else {
                self.shared.fetch_sub(1, Ordering::Relaxed);
            }
            last
        });
        if last {
            pool.free(object);
        }
    }

    /// There are more objects than the buckets shall hold.
    fn is_small(&self) -> bool {
        let buckets = self.kept.buckets();
        buckets < self.max_buckets && self.indexed() > u64::from(buckets) * RECORDS_PER_BUCKET
    }

    /// Splits buckets until there are enough. Only one thread may be in here.
    ///
    /// # Errors
    /// No memory for more buckets.
    pub(super) fn grow(&self) -> io::Result<()> {
        while self.is_small() {
            let buckets = self.kept.buckets();
            if buckets.is_multiple_of(BUCKETS_PER_PAGE) {
                self.memory.populate_range(buckets as usize * BUCKET_BYTES, PAGE_LEN)?;
            }
            self.split(buckets);
        }
        Ok(())
    }

    /// Makes bucket number `new`, with half of what the bucket below it had.
    fn split(&self, new: u32) {
        let _alone = self.locks[(new % LOCKS) as usize].lock();
        let old = new - (new + 1).next_power_of_two() / 2;
        let (from, to) = (self.bucket(old), self.bucket(new));
        for (record, place) in from.iter_mut().zip(to.iter_mut()) {
            // A split that a kill has cut off may have left something here.
            *place = Record::default();
            let Some(object) = Entry(record.object).as_object() else { continue };
            let hash = object.content_hash(record.checksum);
            if record.entries() > 0 && Self::bucket_of(hash, new + 1) == new {
                *place = *record;
                record.entries = 0;
                crash::pass(Point::ZmemIndexSplit);
            }
        }
        crash::pass(Point::ZmemIndexSplit);
        self.kept.set_buckets(new + 1);
    }

    /// Puts the predecessor's index into this process's page tables.
    ///
    /// # Errors
    /// What madvise(2) answers.
    pub(super) fn map_present(&self) -> io::Result<()> {
        let bytes = self.kept.buckets() as usize * BUCKET_BYTES;
        if bytes == 0 {
            return Ok(());
        }
        self.memory.map_present(0, bytes.next_multiple_of(PAGE_LEN))
    }

    /// Takes the predecessor's index over, if there is one or this instance shall have one, and
    /// makes it empty. Nothing else runs.
    ///
    /// # Errors
    /// What madvise(2) answers.
    pub(super) fn begin_adoption(&self) -> io::Result<()> {
        let on = self.is_on() || self.kept.buckets() > 0;
        self.on.store(on, Ordering::Relaxed);
        if !on {
            return Ok(());
        }
        self.map_present()?;
        if self.kept.buckets() == 0 {
            self.kept.set_buckets(LOCKS);
        }
        for bucket in 0..self.kept.buckets() {
            *self.bucket(bucket) = [Record::default(); WAYS];
        }
        self.records.store(0, Ordering::Relaxed);
        self.shared.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Where the object's record belongs; reads it, so that it is in the processor's cache when
    /// it is needed.
    pub(super) fn adopted_bucket(&self, checksum: u32, object: &Object) -> u32 {
        let bucket = Self::bucket_of(object.content_hash(checksum), self.kept.buckets());
        std::hint::black_box(self.bucket(bucket)[0].entries);
        bucket
    }

    /// An entry names the object. All that say that they are shared come first. Answers whether
    /// it is the object's first. Nothing else runs.
    pub(super) fn adopt(&self, bucket: u32, entry: Entry, object: &Object, checksum: u32) -> bool {
        let named = Entry::object(*object).0;
        let records = self.bucket(bucket);
        let known = |record: &&mut Record| record.object == named && record.entries() > 0;
        if let Some(record) = records.iter_mut().find(known) {
            record.entries = (record.entries + 1) | SHARED;
            add_alone(&self.shared);
            return false;
        }
        let free = records.iter().position(|record| record.entries() == 0);
        if let Some(place) = free {
            let entries = if entry.is_shared() { 1 | SHARED } else { 1 };
            records[place] = Record { object: named, checksum, entries };
            add_alone(&self.records);
        }
        // A shared object finds no place only where its checksum is damaged, and such an object
        // is never freed.
        true
    }

    /// Makes a record for an object that one entry names, if it has none and there is a place.
    fn remember(&self, object: &Object, checksum: u32) {
        let named = Entry::object(*object).0;
        self.with_bucket(object.content_hash(checksum), |bucket| {
            if bucket.iter().any(|record| record.entries() > 0 && record.object == named) {
                return;
            }
            if let Some(free) = bucket.iter_mut().find(|record| record.entries() == 0) {
                *free = Record { object: named, checksum, entries: 1 };
                self.records.fetch_add(1, Ordering::Relaxed);
                crash::pass(Point::ZmemIndexed);
            }
        });
    }

    /// Calls `visit` with each object that has a record, and how many entries name it.
    /// What a kill in the middle of the next split would leave; false if the index can't grow.
    #[cfg(test)]
    pub(super) fn leave_half_a_split(&self) -> bool {
        let new = self.kept.buckets();
        if new >= self.max_buckets {
            return false;
        }
        if new.is_multiple_of(BUCKETS_PER_PAGE) {
            self.memory.populate_range(new as usize * BUCKET_BYTES, PAGE_LEN).unwrap();
        }
        let _alone = self.locks[(new % LOCKS) as usize].lock();
        let old = new - (new + 1).next_power_of_two() / 2;
        *self.bucket(new) = *self.bucket(old);
        true
    }

    /// Buckets that there are.
    #[cfg(test)]
    pub(super) fn bucket_count(&self) -> u32 {
        self.kept.buckets()
    }

    #[cfg(test)]
    pub(super) fn for_each(&self, mut visit: impl FnMut(Object, u32)) {
        for bucket in 0..self.kept.buckets() {
            let _alone = self.locks[(bucket % LOCKS) as usize].lock();
            for record in self.bucket(bucket).iter().filter(|record| record.entries() > 0) {
                if let Some(object) = Entry(record.object).as_object() {
                    visit(object, record.entries());
                }
            }
        }
    }
}

/// A record that can make room: that of an object that never had but one entry needs none.
fn displaceable(bucket: &[Record; WAYS]) -> Option<usize> {
    bucket.iter().position(|record| record.entries == 1)
}

/// One more, where nobody else counts.
fn add_alone(number: &AtomicU64) {
    number.store(number.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Gives the objects that a predecessor has left, and that only one entry names, their records
/// back, as far as there are places for them. On a thread of its own, which then ends.
pub(super) fn refill(store: &Store) {
    if !store.wait_until_active() {
        return;
    }
    let Some(dedup) = store.dedup() else { return };
    // Like the compactor, and for the same reason.
    process::stay_ordinary();
    store.table.for_each(0, store.table.slot_count(), |slot, cell| {
        if store.stop.load(Ordering::Relaxed) {
            return;
        }
        // While this is held, the entry names the object; and it is the only one to, or there
        // would be a record.
        let _shared = store.slots.of(slot).read();
        let entry = Entry(cell.load(Ordering::Acquire));
        if let Some(object) = entry.as_object()
            && !entry.is_shared()
            && let Some((_, checksum)) = store.pool.unchecked(&object)
        {
            dedup.remember(&object, checksum);
        }
    });
}

/// Keeps the index as large as the pool needs it.
pub(super) fn grow(store: &Store) -> io::Result<()> {
    store.dedup().map_or(Ok(()), Dedup::grow)
}

const _: () = assert!(size_of::<Record>() == 16);
const _: () = assert!(codec::MAX_OBJECT_BYTES <= 4096);
