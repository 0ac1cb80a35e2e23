//! A successor on the memory of a predecessor.

use super::*;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::time::Instant;

/// Files in memory, as a supervisor holds them.
struct Regions([File; crate::held::BACKEND_REGIONS]);

impl Regions {
    fn new() -> Regions {
        Regions(std::array::from_fn(|_| {
            // SAFETY: the name is a C string.
            let descriptor = unsafe { libc::memfd_create(c"swapfs".as_ptr(), libc::MFD_CLOEXEC) };
            assert!(descriptor >= 0);
            // SAFETY: just made, and nobody else's.
            unsafe { File::from_raw_fd(descriptor) }
        }))
    }

    fn held(&self, adopted: bool) -> Held {
        Held::regions(std::array::from_fn(|index| self.0[index].try_clone().unwrap()), adopted)
    }

    fn zmem(&self, slot_count: u64, options: &ZmemOptions, adopted: bool) -> Zmem {
        Zmem::new(slot_count, options, 2, &self.held(adopted)).unwrap()
    }

    /// Bytes of memory that a region takes.
    fn allocated_bytes(&self, index: usize) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.0[index].metadata().unwrap().blocks() * 512
    }
}

type Model = Vec<Option<(u64, u64)>>;

fn change(zmem: &Zmem, model: &mut Model, random: &mut Random, steps: u64) {
    let slots = model.len() as u64;
    for step in 0..steps {
        let slot = random.next() % slots;
        match random.next() % 10 {
            0 => {
                let count = (random.next() % 32).min(slots - slot);
                zmem.discard(slot, count).unwrap();
                model[slot as usize..(slot + count) as usize].fill(None);
            }
            1..=7 => {
                let page = (random.next() % 500, random.next() % 6);
                zmem.write(slot, &page_of(page.0, page.1)).unwrap();
                model[slot as usize] = Some(page);
            }
            _ => check(zmem, slot, model[slot as usize], step),
        }
    }
}

fn check_all(zmem: &Zmem, model: &Model) {
    for (slot, &page) in (0..).zip(model) {
        check(zmem, slot, page, u64::MAX);
    }
}

fn everything_on(dedup: bool) -> ZmemOptions {
    let age = Duration::from_millis(30);
    ZmemOptions {
        limit_bytes: Some(12 << 20),
        dedup,
        recompress: Some(Recompress { level: 3, age, rate_bytes: 1 << 30 }),
        ..OPTIONS
    }
}

/// Twenty times: serve, with a standby beside; end; the standby takes over.
#[test]
fn a_successor_has_every_page_and_counts_right() {
    for dedup in [false, true] {
        let (mut random, slots) = (Random(0x5eed), 3000);
        let regions = Regions::new();
        let options = everything_on(dedup);
        let mut model: Model = vec![None; slots];
        let mut serving = regions.zmem(slots as u64, &options, false);
        serving.activate().unwrap();
        for round in 0..20 {
            change(&serving, &mut model, &mut random, 1000);
            let next = regions.zmem(slots as u64, &options, true);
            change(&serving, &mut model, &mut random, 1000);
            if round % 3 != 0 {
                next.warm();
                change(&serving, &mut model, &mut random, 1000);
                next.warm();
            }
            if round % 4 == 3 {
                // One that never takes over leaves no trace.
                drop(regions.zmem(slots as u64, &options, true));
            }
            let used = number(&serving, "mem_used_total_bytes");
            drop(serving);
            next.activate().unwrap();
            // Its threads run already, and may hold segments that they move objects to. (Exactly
            // what the table says: `rebuilt_state_is_what_a_recount_says`.)
            let moving_bytes = 32 * arena::SEGMENT_BYTES as u64;
            assert!(number(&next, "mem_used_total_bytes") <= used + moving_bytes);
            check_all(&next, &model);
            serving = next;
        }
        let pages = model.iter().flatten().count() as u64;
        assert_eq!(number(&serving, "orig_data_size_bytes"), pages * 4096);
        check_derived(serving);
    }
}

/// What is rebuilt is compared with a recount at once, with no thread in between.
#[test]
fn rebuilt_state_is_what_a_recount_says() {
    for dedup in [false, true] {
        let (mut random, slots) = (Random(77), 5000);
        let regions = Regions::new();
        let options = everything_on(dedup);
        let mut model: Model = vec![None; slots];
        let first = regions.zmem(slots as u64, &options, false);
        first.activate().unwrap();
        change(&first, &mut model, &mut random, 30_000);
        drop(first);
        let second = regions.zmem(slots as u64, &options, true);
        let store = Arc::clone(&second.store);
        drop(second);
        derived::rebuild(&store).unwrap();
        check_counts(&store);
        // And once more: a kill in the middle of it does no harm.
        derived::rebuild(&store).unwrap();
        check_counts(&store);
    }
}

/// Buckets that are full of objects, of which few are shared.
#[test]
fn full_buckets_keep_all_shared_objects() {
    let options = ZmemOptions { limit_bytes: Some(32 << 20), dedup: true, ..OPTIONS };
    let (regions, slots) = (Regions::new(), 80_000);
    let first = regions.zmem(slots, &options, false);
    first.activate().unwrap();
    // Half a kilobyte each: far more objects than records.
    for slot in 0..30_000 {
        first.write(slot, &page_of(slot, 3)).unwrap();
        if slot % 3 == 0 {
            first.write(30_000 + slot, &page_of(slot, 3)).unwrap();
        }
    }
    assert!(number(&first, "dedup_shared_pages") > 9000);
    // The first of two entries goes: the other one still says that it was not alone.
    first.discard(0, 3000).unwrap();
    let shared = number(&first, "dedup_shared_pages");
    drop(first);
    // Though this one would have no index.
    let second = regions.zmem(slots, &ZmemOptions { dedup: false, ..options }, true);
    second.activate().unwrap();
    assert_eq!(number(&second, "dedup_shared_pages"), shared);
    second.discard(3000, 20_000).unwrap();
    for slot in 0..20_000 {
        second.write(60_000 + slot, &page_of(100_000 + slot, 3)).unwrap();
    }
    for slot in (0..30_000).step_by(3) {
        assert!(read(&second, 30_000 + slot).unwrap() == page_of(slot, 3), "slot {slot}");
    }
    check_derived(second);
}

/// Also what only one entry named is found again, a moment after the take-over.
#[test]
fn identical_pages_are_found_after_a_take_over() {
    let options = ZmemOptions { dedup: true, ..OPTIONS };
    let regions = Regions::new();
    let first = regions.zmem(1000, &options, false);
    first.activate().unwrap();
    for slot in 0..500 {
        first.write(slot, &page_of(slot, 3)).unwrap();
    }
    drop(first);
    let second = regions.zmem(1000, &options, true);
    second.activate().unwrap();
    wait_until("indexed", || number(&second, "dedup_indexed_objects") == 500);
    for slot in 500..1000 {
        second.write(slot, &page_of(slot - 500, 3)).unwrap();
    }
    assert_eq!(number(&second, "dedup_shared_pages"), 500);
    check_derived(second);
}

#[test]
fn a_standby_changes_nothing() {
    let options = everything_on(true);
    let (regions, mut model) = (Regions::new(), vec![None; 2000]);
    let first = regions.zmem(2000, &options, false);
    first.activate().unwrap();
    change(&first, &mut model, &mut Random(3), 20_000);
    drop(first);
    let before: Vec<Vec<u8>> = regions.0.iter().map(contents).collect();
    let allocated = regions.allocated_bytes(0);
    let standby = regions.zmem(2000, &options, true);
    for _ in 0..3 {
        standby.warm();
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(standby);
    assert!(before == regions.0.iter().map(contents).collect::<Vec<_>>(), "something was changed");
    assert_eq!(regions.allocated_bytes(0), allocated, "a hole was filled");
}

fn contents(file: &File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Also the memory of a segment that a kill has left half way, and of one that a standby has
/// filled by looking at it.
#[test]
fn memory_that_nobody_counts_is_given_back() {
    let options = ZmemOptions { limit_bytes: Some(32 << 20), ..OPTIONS };
    let regions = Regions::new();
    let first = regions.zmem(20_000, &options, false);
    first.activate().unwrap();
    for slot in 0..6000 {
        first.write(slot, &page_of(slot, 4)).unwrap();
    }
    first.discard(0, 6000).unwrap();
    wait_until("released", || number(&first, "mem_populated_bytes") < 8 << 20);
    let store = Arc::clone(&first.store);
    drop(first);
    let arena = &store.pool.arena;
    let mut changed = 0;
    for segment in 0..arena.touched_segments() {
        match arena.segment(segment).0 {
            arena::State::Unpopulated if segment % 2 == 0 => {
                let offset = segment as usize * arena::SEGMENT_BYTES;
                let byte = arena.at(offset as u64, 1);
                // SAFETY: nobody uses this memory.
                unsafe { byte.write(7) };
                changed += 1;
            }
            arena::State::Free if changed % 2 == 0 => {
                let changing = (arena::State::Changing as u32) << 24;
                store.kept.information(segment).store(changing, Ordering::Relaxed);
                changed += 1;
            }
            _ => {}
        }
    }
    assert!(changed > 4);
    let second = regions.zmem(20_000, &options, true);
    second.activate().unwrap();
    wait_until("holes are holes again", || {
        regions.allocated_bytes(0) == number(&second, "mem_populated_bytes")
    });
    assert_eq!(read(&second, 17).unwrap(), vec![0; PAGE_LEN]);
}

#[test]
fn what_is_not_such_a_volume_is_refused() {
    let regions = Regions::new();
    let error = Zmem::new(100, &OPTIONS, 2, &regions.held(true)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    drop(regions.zmem(100, &OPTIONS, false));
    let error = Zmem::new(101, &OPTIONS, 2, &regions.held(true)).unwrap_err();
    assert!(error.to_string().contains("of 100 slots"), "{error}");
    // One that was never activated can be adopted; and its limit stays.
    let options = ZmemOptions { limit_bytes: Some(1 << 30), ..OPTIONS };
    let zmem = regions.zmem(100, &options, true);
    zmem.activate().unwrap();
    assert_eq!(number(&zmem, "mem_limit_bytes"), 64 << 20);
    zmem.write(5, &page_of(1, 3)).unwrap();
    assert_eq!(read(&zmem, 5).unwrap(), page_of(1, 3));
}

#[test]
fn a_word_beside_replaces_another_by_way_of_an_object() {
    for dedup in [false, true] {
        let zmem = zmem(100, |options| options.dedup = dedup);
        for id in 0..50 {
            zmem.write(3, &page_of(id, 1)).unwrap();
            assert_eq!(read(&zmem, 3).unwrap(), page_of(id, 1));
            assert_eq!(number(&zmem, "same_pages"), 1);
            assert_eq!(number(&zmem, "compr_data_size_bytes"), 0);
        }
    }
}

/// A take-over finds all pages, and how long it takes: of a gigabyte with `SWAPFS_LONG=1 cargo test
/// --release -p swapfsd --lib take_over_of_many -- --nocapture`, else of a fiftieth.
#[test]
fn take_over_of_many_pages() {
    let part = if std::env::var("SWAPFS_LONG").is_ok_and(|long| long == "1") { 1 } else { 50 };
    for (random_words, objects) in [(380u64, 340_000 / part), (128, 940_000 / part)] {
        // The last: every object has two entries, far from each other.
        for (dedup, entries) in [(false, 1), (true, 1), (true, 2)] {
            let options = ZmemOptions { limit_bytes: Some(2 << 30), dedup, ..OPTIONS };
            let regions = Regions::new();
            let slots = objects * entries;
            let first = regions.zmem(slots, &options, false);
            first.activate().unwrap();
            let mut random = Random(9);
            let mut page = vec![0u8; PAGE_LEN];
            for slot in 0..objects {
                for n in 0..random_words as usize {
                    let at = n * 8;
                    page[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
                }
                let slot = slot * 7919 % objects;
                for slot in (slot..slots).step_by(objects as usize) {
                    while first.write(slot, &page).is_err() {}
                }
            }
            let used = number(&first, "mem_used_total_bytes") >> 20;
            let average = number(&first, "compr_data_size_bytes") / objects;
            drop(first);
            for warm in [true, false] {
                let next = regions.zmem(slots, &options, true);
                let started = Instant::now();
                if warm {
                    next.warm();
                }
                let warmed = started.elapsed();
                let started = Instant::now();
                next.activate().unwrap();
                println!(
                    "{used} MiB, {objects} objects of {average} bytes, {entries} entries each, dedup \
                     {dedup}: activated in {:?}; warmed before: {warm}, in {warmed:?}",
                    started.elapsed()
                );
                assert_eq!(number(&next, "orig_data_size_bytes"), slots * 4096);
            }
        }
    }
}
