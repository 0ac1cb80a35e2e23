mod adoption;
mod recount;

use super::*;
use crate::backend::Backend;
use swapfs_format::types::{Algorithm, Recompress};

const OPTIONS: ZmemOptions = ZmemOptions {
    algorithm: Algorithm::Lz4,
    limit_bytes: Some(64 << 20),
    reserve_bytes: 2 << 20,
    recompress: None,
    dedup: false,
};

fn zmem(slot_count: u64, change: impl FnOnce(&mut ZmemOptions)) -> Zmem {
    let mut options = OPTIONS;
    change(&mut options);
    let zmem = Zmem::new(slot_count, &options, 2, &Held::private()).unwrap();
    zmem.activate().unwrap();
    zmem
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A page of one of several kinds that says which `id` it is; kind 0 to 5.
fn page_of(id: u64, kind: u64) -> Vec<u8> {
    let mut random = Random(id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let words: Vec<u64> = match kind {
        // Same-filled, in the entry and beside it.
        0 => vec![id; 512],
        1 => vec![random.next() | 1 << 63; 512],
        // Compressible: little, well.
        2 => (0..512).map(|n| if n % 2 == 0 { random.next() } else { id }).collect(),
        3 => (0..512).map(|n| id + n / 8).collect(),
        // Random.
        4 => (0..512).map(|_| random.next()).collect(),
        // Hardly compressible by lz4, better by zstd: random digits.
        _ => {
            let mut digits =
                || u64::from_le_bytes(std::array::from_fn(|_| b'0' + (random.next() % 10) as u8));
            (0..512).map(|_| digits()).collect()
        }
    };
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn number(zmem: &Zmem, wanted: &str) -> u64 {
    let mut found = None;
    zmem.statistics(&mut |name, value| {
        if name == wanted {
            found = Some(value);
        }
    });
    found.unwrap_or_else(|| panic!("no number {wanted}"))
}

fn read(zmem: &Zmem, slot: u64) -> Result<Vec<u8>> {
    let mut page = vec![0xee; PAGE_LEN];
    zmem.read(slot, &mut page).map(|()| page)
}

/// Waits until `done`, which is checked for up to a minute: how long it takes is not the test.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within a minute: {what}");
}

#[test]
fn every_kind_of_page_comes_back() {
    for algorithm in [Algorithm::Lz4, Algorithm::Zstd { level: 3 }] {
        for dedup in [false, true] {
            let zmem = zmem(1 << 20, |options| {
                (options.algorithm, options.dedup) = (algorithm, dedup);
            });
            for slot in 0..60u64 {
                // Far apart, so that there are several leaves.
                zmem.write(slot * 1000, &page_of(slot, slot % 6)).unwrap();
            }
            for slot in 0..60u64 {
                assert_eq!(read(&zmem, slot * 1000).unwrap(), page_of(slot, slot % 6), "{slot}");
                assert_eq!(read(&zmem, slot * 1000 + 1).unwrap(), vec![0; PAGE_LEN]);
            }
            assert_eq!(number(&zmem, "same_pages"), 20);
            assert_eq!(number(&zmem, "orig_data_size_bytes"), 60 * 4096);
            zmem.discard(0, 60_000).unwrap();
            assert_eq!(read(&zmem, 2000).unwrap(), vec![0; PAGE_LEN]);
            assert_eq!(number(&zmem, "orig_data_size_bytes"), 0);
            assert_eq!(number(&zmem, "compr_data_size_bytes"), 0);
        }
    }
}

#[test]
fn a_large_write_is_stored_whole() {
    let zmem = zmem(4096, |_| {});
    let pages: Vec<u8> = (0..256).flat_map(|slot| page_of(slot, slot % 6)).collect();
    for round in 0..20 {
        zmem.write(round * 100, &pages).unwrap();
        let mut out = vec![0; pages.len()];
        zmem.read(round * 100, &mut out).unwrap();
        assert!(out == pages, "round {round}");
    }
}

/// Random writes and discards against a model; with everything on, so that objects move.
fn random_run(zmem: &Zmem, slots: u64, steps: u64, seed: u64) -> Vec<Option<(u64, u64)>> {
    println!("seed {seed}");
    let mut random = Random(seed | 1);
    let mut model = vec![None; slots as usize];
    for step in 0..steps {
        let slot = random.next() % slots;
        match random.next() % 10 {
            0 => {
                let count = (random.next() % 64).min(slots - slot);
                zmem.discard(slot, count).unwrap();
                model[slot as usize..(slot + count) as usize].fill(None);
            }
            1..=6 => {
                // Few of the ids, so that there are identical pages.
                let (id, kind) = (random.next() % 500, random.next() % 6);
                zmem.write(slot, &page_of(id, kind)).unwrap();
                model[slot as usize] = Some((id, kind));
            }
            _ => check(zmem, slot, model[slot as usize], step),
        }
    }
    for slot in 0..slots {
        check(zmem, slot, model[slot as usize], steps);
    }
    model
}

fn check(zmem: &Zmem, slot: u64, model: Option<(u64, u64)>, step: u64) {
    let expected = model.map_or(vec![0; PAGE_LEN], |(id, kind)| page_of(id, kind));
    assert!(read(zmem, slot).unwrap() == expected, "slot {slot} after {step} steps");
}

/// Stops the threads and compares what was counted with what the table says, and then what a
/// successor would make of it.
fn check_derived(zmem: Zmem) {
    let store = Arc::clone(&zmem.store);
    drop(zmem);
    check_counts(&store);
    derived::rebuild(&store).unwrap();
    check_counts(&store);
}

fn check_counts(store: &Store) {
    let derived = recount::scan(store);
    let arena = &store.pool.arena;
    let mut used = 0;
    for segment in 0..arena.touched_segments() {
        let (state, live) = arena.segment(segment);
        let expected = derived.live_bytes.get(&segment).copied().unwrap_or(0);
        match state {
            arena::State::Open | arena::State::Sealed => {
                assert_eq!(live, expected, "segment {segment}");
                used += 1;
            }
            arena::State::Table => {
                assert!(derived.table_segments.contains(&segment));
                used += 1;
            }
            arena::State::Free | arena::State::Unpopulated => assert_eq!(expected, 0),
            other => panic!("segment {segment} is {other:?}"),
        }
    }
    assert_eq!(arena.used_segments(), used);
    let live_bytes: u64 = derived.live_bytes.values().map(|&live| u64::from(live)).sum();
    assert_eq!(arena.live_bytes(), live_bytes);
    assert_eq!(store.counters.sum(Field::Pages), derived.pages);
    assert_eq!(store.counters.sum(Field::SamePages), derived.same_pages);
    assert_eq!(store.counters.sum(Field::EncodedBytes), derived.encoded_bytes);
    assert_eq!(arena.table_bytes(), derived.table_frames * 4096);
    let shared: u64 = derived.entries.values().map(|&entries| u64::from(entries) - 1).sum();
    if let Some(dedup) = store.dedup() {
        assert_eq!(dedup.shared_pages(), shared);
        let (mut indexed, mut indexed_shared) = (0, 0);
        dedup.for_each(|object, entries| {
            indexed += 1;
            indexed_shared += u64::from(entries) - 1;
            assert_eq!(derived.entries.get(&object.location), Some(&entries), "{object:?}");
        });
        assert_eq!(dedup.indexed(), indexed);
        assert_eq!(indexed_shared, shared, "a shared object without a record");
        assert!(shared > 0 && indexed > 0);
    } else {
        assert_eq!(shared, 0);
    }
}

#[test]
fn derived_state_is_what_the_table_says() {
    for (seed, dedup) in [(11, false), (12, true)] {
        let zmem = zmem(5000, |options| {
            options.dedup = dedup;
            options.recompress =
                Some(Recompress { level: 3, age: Duration::from_millis(30), rate_bytes: 1 << 30 });
        });
        random_run(&zmem, 5000, 60_000, seed);
        println!(
            "{} moved, {} again",
            number(&zmem, "pages_compacted"),
            number(&zmem, "pages_recompressed")
        );
        check_derived(zmem);
    }
}

#[test]
fn compaction_moves_objects_and_keeps_them() {
    for dedup in [false, true] {
        let zmem = zmem(8192, |options| options.dedup = dedup);
        for slot in 0..8192 {
            zmem.write(slot, &page_of(slot, 2)).unwrap();
        }
        for slot in (0..8192).filter(|slot| slot % 10 != 0) {
            zmem.discard(slot, 1).unwrap();
        }
        wait_until("most memory given back", || {
            let live = number(&zmem, "compr_data_size_bytes") + number(&zmem, "mem_table_bytes");
            let reserve = (OPTIONS.reserve_bytes / 4 * 5) + 4 * 256 * 1024;
            number(&zmem, "mem_populated_bytes") <= live * 13 / 10 + reserve
        });
        assert!(number(&zmem, "pages_compacted") > 100);
        for slot in (0..8192).step_by(10) {
            assert!(read(&zmem, slot).unwrap() == page_of(slot, 2), "slot {slot}");
        }
        let store = Arc::clone(&zmem.store);
        drop(zmem);
        assert_eq!(store.counters.sum(Field::Pages), 820);
    }
}

#[test]
fn cold_pages_are_recompressed_and_touched_ones_are_not() {
    let zmem = zmem(2000, |options| {
        let age = Duration::from_millis(300);
        options.recompress = Some(Recompress { level: 9, age, rate_bytes: 1 << 30 });
    });
    for slot in 0..1000 {
        zmem.write(slot, &page_of(slot, 5)).unwrap();
    }
    let before = number(&zmem, "compr_data_size_bytes");
    wait_until("all but one recompressed", || {
        // Slot 0 is read all the time.
        read(&zmem, 0).unwrap();
        number(&zmem, "zstd_pages") == 999
    });
    assert!(number(&zmem, "compr_data_size_bytes") < before * 3 / 4);
    for slot in 0..1000 {
        assert!(read(&zmem, slot).unwrap() == page_of(slot, 5), "slot {slot}");
    }
}

#[test]
fn identical_pages_share_an_object_until_they_differ() {
    let zmem = zmem(1000, |options| options.dedup = true);
    for slot in 0..900 {
        zmem.write(slot, &page_of(slot % 3, 3)).unwrap();
    }
    assert_eq!(number(&zmem, "dedup_shared_pages"), 897);
    assert_eq!(number(&zmem, "dedup_indexed_objects"), 3);
    let shared = number(&zmem, "compr_data_size_bytes");
    zmem.write(3, &page_of(77, 3)).unwrap();
    assert!(number(&zmem, "compr_data_size_bytes") > shared);
    for slot in (0..900).filter(|&slot| slot != 3) {
        assert!(read(&zmem, slot).unwrap() == page_of(slot % 3, 3), "slot {slot}");
    }
    zmem.discard(0, 1000).unwrap();
    assert_eq!(number(&zmem, "compr_data_size_bytes"), 0);
    assert_eq!(number(&zmem, "dedup_shared_pages"), 0);
}

/// The index grows while it is used.
#[test]
fn many_objects_are_indexed() {
    let zmem = zmem(40_000, |options| options.dedup = true);
    for slot in 0..20_000 {
        zmem.write(slot, &page_of(slot, 3)).unwrap();
    }
    for slot in 20_000..40_000 {
        zmem.write(slot, &page_of(slot - 20_000, 3)).unwrap();
    }
    assert!(
        number(&zmem, "dedup_shared_pages") > 15_000,
        "{}",
        number(&zmem, "dedup_shared_pages")
    );
    for slot in 0..40_000 {
        assert!(read(&zmem, slot).unwrap() == page_of(slot % 20_000, 3), "slot {slot}");
    }
    check_derived(zmem);
}

#[test]
fn a_flipped_bit_is_an_error_and_never_data() {
    let mut random = Random(5);
    for dedup in [false, true] {
        let zmem = zmem(100, |options| options.dedup = dedup);
        for slot in 0..100 {
            zmem.write(slot, &page_of(slot, 2 + slot % 4)).unwrap();
        }
        let mut found = 0;
        for slot in 0..100 {
            let object = zmem.store.table.get(slot).as_object().unwrap();
            let size = entry::HEADER_BYTES + object.len;
            let bit = random.next() as usize % (size * 8);
            let byte = zmem.store.pool.arena.at(object.location, size).wrapping_add(bit / 8);
            // SAFETY: a byte of the object; nobody else uses the volume.
            unsafe { *byte ^= 1 << (bit % 8) };
            let error = read(&zmem, slot).unwrap_err();
            assert_eq!((error.kind, error.slot), (ErrorKind::Checksum, slot));
            found += 1;
            // A damaged page can be written again.
            zmem.write(slot, &page_of(slot + 1, 2)).unwrap();
            assert_eq!(read(&zmem, slot).unwrap(), page_of(slot + 1, 2));
        }
        assert_eq!(number(&zmem, "checksum_errors"), found);
    }
}

#[test]
fn a_damaged_table_entry_is_an_error_or_the_page() {
    let zmem = zmem(100, |_| {});
    for slot in 0..100 {
        zmem.write(slot, &page_of(slot, slot % 6)).unwrap();
    }
    for slot in 0..100 {
        let cell = zmem.store.table.cell_of(slot).unwrap();
        let right = cell.load(Ordering::Relaxed);
        for bit in 0..64 {
            cell.store(right ^ 1 << bit, Ordering::Relaxed);
            // The age and the marks are no part of what is read.
            if let Ok(page) = read(&zmem, slot) {
                assert!(page == page_of(slot, slot % 6), "slot {slot}, bit {bit}");
            }
        }
        cell.store(right, Ordering::Relaxed);
    }
}

#[test]
fn at_the_limit_writes_are_refused_and_nothing_is_lost() {
    let zmem = zmem(10_000, |options| options.limit_bytes = Some(4 << 20));
    let mut stored = 0;
    let refused = loop {
        match zmem.write(stored, &page_of(stored, 4)) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((refused.kind, refused.slot), (ErrorKind::NoSpace, stored));
    assert!(stored > 700 && stored < 1024, "{stored} pages in 4 MiB");
    assert!(number(&zmem, "refused_writes") >= 1);
    assert!(number(&zmem, "mem_used_total_bytes") <= 4 << 20);
    for slot in 0..stored {
        assert!(read(&zmem, slot).unwrap() == page_of(slot, 4), "slot {slot}");
    }
    assert_eq!(read(&zmem, stored).unwrap(), vec![0; PAGE_LEN]);
    // Room again, scattered over all segments: the compactor has to gather it.
    for slot in (0..stored).step_by(2) {
        zmem.discard(slot, 1).unwrap();
    }
    for slot in (0..stored / 2).step_by(2) {
        zmem.write(slot, &page_of(slot + 5, 4)).unwrap();
    }
    for slot in 0..stored / 2 {
        let id = if slot % 2 == 0 { slot + 5 } else { slot };
        assert!(read(&zmem, slot).unwrap() == page_of(id, 4), "slot {slot}");
    }
}

/// What dies is scattered over all segments, and slots do not lie in the order of segments: the
/// compactor must get room back with the two segments that are set aside for it.
#[test]
fn at_the_limit_room_comes_back_in_any_order() {
    let zmem = zmem(4096, |options| {
        (options.limit_bytes, options.reserve_bytes) = (Some(6 << 20), 16 << 20);
    });
    let mut random = Random(99);
    let mut slots: Vec<u64> = (0..1200).collect();
    for index in (1..slots.len()).rev() {
        slots.swap(index, random.next() as usize % (index + 1));
    }
    for &slot in &slots {
        zmem.write(slot, &page_of(slot, 4)).unwrap();
    }
    // Nothing free is left, then half of it dies.
    let mut extra = 1200;
    while extra < 2000 && zmem.write(extra, &page_of(extra, 4)).is_ok() {
        extra += 1;
    }
    for &slot in slots.iter().step_by(2) {
        zmem.discard(slot, 1).unwrap();
    }
    // A write that is refused while the compactor gathers room may come again, as the kernel's do.
    for slot in 2000..2400 {
        wait_until("room for a write", || zmem.write(slot, &page_of(slot, 4)).is_ok());
    }
    for slot in (1200..extra).chain(2000..2400).chain(slots.into_iter().skip(1).step_by(2)) {
        assert!(read(&zmem, slot).unwrap() == page_of(slot, 4), "slot {slot}");
    }
    check_derived(zmem);
}

/// What several writers have open is room too.
#[test]
fn a_small_limit_is_used_by_whoever_writes() {
    let zmem = zmem(4096, |options| options.limit_bytes = Some(2 << 20));
    let large: Vec<u8> = (0..256).flat_map(|slot| page_of(slot, 3)).collect();
    zmem.write(0, &large).unwrap();
    zmem.discard(0, 256).unwrap();
    let mut stored = 0;
    while zmem.write(stored, &page_of(stored, 4)).is_ok() {
        stored += 1;
    }
    assert!(stored > 350, "{stored} pages in 2 MiB");
    zmem.discard(0, 4096).unwrap();
    let used = || number(&zmem, "mem_used_total_bytes");
    wait_until("nearly all of it free", || {
        // May be refused until then.
        let _ = zmem.write(5, &page_of(1, 3));
        used() <= 1 << 20
    });
}

/// An object that many slots name is one object after it has moved.
#[test]
fn shared_objects_move_once() {
    let zmem = zmem(30_000, |options| {
        options.dedup = true;
        let age = Duration::from_millis(300);
        options.recompress = Some(Recompress { level: 3, age, rate_bytes: 1 << 30 });
    });
    for slot in 0..20_000 {
        // A thousand objects that twenty slots name, and ballast that dies.
        zmem.write(slot, &page_of(slot % 1000, 5)).unwrap();
        if slot % 4 == 0 {
            zmem.write(20_000 + slot / 4, &page_of(100_000 + slot, 2)).unwrap();
        }
    }
    let before = number(&zmem, "compr_data_size_bytes");
    zmem.discard(20_000, 10_000).unwrap();
    wait_until("recompressed", || number(&zmem, "zstd_pages") > 19_900);
    assert!(number(&zmem, "compr_data_size_bytes") < before / 2);
    assert!(number(&zmem, "dedup_shared_pages") > 18_000);
    for slot in 0..20_000 {
        assert!(read(&zmem, slot).unwrap() == page_of(slot % 1000, 5), "slot {slot}");
    }
    check_derived(zmem);
}

/// Each thread has slots of its own and knows what must be in them, while objects move.
#[test]
fn concurrent_writers_lose_nothing() {
    const SLOTS: u64 = 600;
    let zmem = zmem(4 * SLOTS, |options| {
        (options.dedup, options.limit_bytes) = (true, Some(12 << 20));
        let age = Duration::from_millis(30);
        options.recompress = Some(Recompress { level: 1, age, rate_bytes: 1 << 30 });
    });
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let zmem = &zmem;
            scope.spawn(move || {
                let mut random = Random(0x777 + thread);
                let mut model = vec![None; SLOTS as usize];
                for step in 0..20_000 {
                    let index = random.next() % SLOTS;
                    let slot = thread * SLOTS + index;
                    match random.next() % 4 {
                        0 if step % 5 == 0 => {
                            zmem.discard(slot, 1).unwrap();
                            model[index as usize] = None;
                        }
                        0 | 1 => check(zmem, slot, model[index as usize], step),
                        _ => {
                            let page = (random.next() % 300, random.next() % 6);
                            zmem.write(slot, &page_of(page.0, page.1)).unwrap();
                            model[index as usize] = Some(page);
                        }
                    }
                }
                for index in 0..SLOTS {
                    check(zmem, thread * SLOTS + index, model[index as usize], u64::MAX);
                }
            });
        }
    });
    assert!(number(&zmem, "pages_compacted") > 0 && number(&zmem, "pages_recompressed") > 0);
    check_derived(zmem);
}

/// Without `Volume` in front: readers, writers and discards of the same slots at once. Whoever
/// reads sees one whole page, of any of the writers, or zeros.
#[test]
fn concurrent_requests_see_whole_pages() {
    const SLOTS: u64 = 32;
    for dedup in [false, true] {
        let zmem = zmem(SLOTS, |options| {
            options.dedup = dedup;
            options.limit_bytes = Some(8 << 20);
            let age = Duration::from_millis(30);
            options.recompress = Some(Recompress { level: 1, age, rate_bytes: 1 << 30 });
        });
        let pages: Vec<Vec<u8>> = (0..48).map(|id| page_of(id, 2 + id % 4)).collect();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (zmem, pages) = (&zmem, &pages);
                scope.spawn(move || {
                    let mut random = Random(0x1234_5678 + thread);
                    let mut out = vec![0; PAGE_LEN];
                    for _ in 0..8000 {
                        let slot = random.next() % SLOTS;
                        let id = (random.next() % 48) as usize;
                        match random.next() % 8 {
                            0 => zmem.discard(slot, 1).unwrap(),
                            1..=4 => zmem.write(slot, &pages[id]).unwrap(),
                            _ => {
                                zmem.read(slot, &mut out).unwrap();
                                let whole = pages.contains(&out) || out.iter().all(|&b| b == 0);
                                assert!(whole, "slot {slot} is a mixture");
                            }
                        }
                    }
                });
            }
        });
        check_derived_only_counts(zmem);
    }
}

fn check_derived_only_counts(zmem: Zmem) {
    let store = Arc::clone(&zmem.store);
    drop(zmem);
    let derived = recount::scan(&store);
    assert_eq!(store.counters.sum(Field::Pages), derived.pages);
    assert_eq!(
        store.pool.arena.live_bytes(),
        derived.live_bytes.values().map(|&live| u64::from(live)).sum::<u64>()
    );
}

#[test]
fn an_empty_volume_of_a_tebibyte_costs_next_to_nothing() {
    let zmem = zmem(1 << 28, |options| options.limit_bytes = Some(1 << 40));
    assert_eq!(number(&zmem, "mem_table_bytes"), 0);
    assert_eq!(number(&zmem, "mem_used_total_bytes"), 0);
    zmem.write((1 << 28) - 1, &page_of(1, 3)).unwrap();
    assert_eq!(read(&zmem, (1 << 28) - 1).unwrap(), page_of(1, 3));
    assert_eq!(number(&zmem, "mem_table_bytes"), 8192);
    // 8 bytes for each slot that is used.
    for slot in 0..100_000 {
        zmem.write(slot, &page_of(slot, 0)).unwrap();
    }
    assert!(number(&zmem, "mem_table_bytes") < 100_000 * 8 + 5 * 4096);
    zmem.discard(0, 1 << 28).unwrap();
}

#[test]
fn half_a_split_of_the_index_leaves_no_record_behind() {
    let zmem = zmem(1 << 16, |options| options.dedup = true);
    let dedup = zmem.store.dedup().unwrap();
    for slot in 0..1000 {
        zmem.write(slot, &page_of(slot, 2)).unwrap();
    }
    let before = dedup.bucket_count();
    assert!(dedup.leave_half_a_split());
    for slot in 1000..6000 {
        zmem.write(slot, &page_of(slot, 2)).unwrap();
    }
    wait_until("the index has grown", || dedup.bucket_count() > before);
    // While it grows, records move out of the sight of whoever counts them.
    wait_until("each object has one record", || {
        let mut places = Vec::new();
        dedup.for_each(|object, _| places.push(object.location));
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        places.len() == count && count as u64 == dedup.indexed()
    });
}
