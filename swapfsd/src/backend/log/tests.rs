//! A log on a device in memory.

use super::super::device::BlockDevice;
use super::*;
use crate::sys::file::Discarded;
use swapfs_format::log::Owner;
use swapfs_format::types::{Algorithm, SegmentDiscard};

mod crash;
mod found;

pub(super) const SEGMENT_BYTES_IN_TESTS: u64 = 64 << 10;

pub(super) const OPTIONS: LogOptions = LogOptions {
    dedup: false,
    segment_bytes: None,
    algorithm: Algorithm::Lz4,
    buffer_bytes: 4 << 20,
    deadline: Duration::from_millis(10),
    gc_low_percent: 1,
    gc_high_percent: 2,
    discard: SegmentDiscard::Off,
};

pub(super) fn area(segment_count: u32) -> LogArea {
    LogArea {
        data_offset_bytes: 1 << 20,
        segment_bytes: SEGMENT_BYTES_IN_TESTS,
        segment_count,
        owner: Owner { uuid: uuid::Uuid::from_bytes([5; 16]), created_unix_s: 9 },
    }
}

/// A device that is nothing but bytes.
#[derive(Debug)]
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn new(area: &LogArea) -> Memory {
        let bytes = area.offset_of(area.segment_count, 0) as usize;
        Memory(Mutex::new(vec![0; bytes]))
    }
}

impl BlockDevice for Memory {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> std::result::Result<(), i32> {
        let bytes = self.0.lock();
        let start = offset_bytes as usize;
        buffer.copy_from_slice(bytes.get(start..start + buffer.len()).ok_or(libc::EIO)?);
        Ok(())
    }

    fn write_at(&self, buffer: &[u8], offset_bytes: u64) -> std::result::Result<(), i32> {
        assert!(offset_bytes.is_multiple_of(4096) && buffer.len().is_multiple_of(4096));
        let mut bytes = self.0.lock();
        let start = offset_bytes as usize;
        bytes.get_mut(start..start + buffer.len()).ok_or(libc::EIO)?.copy_from_slice(buffer);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> std::result::Result<Discarded, i32> {
        self.0.lock()[offset as usize..(offset + length) as usize].fill(0xdd);
        Ok(Discarded::Yes)
    }

    fn flush(&self) -> std::result::Result<(), i32> {
        Ok(())
    }

    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn open(
    device: Arc<dyn BlockDevice>,
    area: LogArea,
    slots: u64,
    options: &LogOptions,
) -> Log {
    let settings = LogSettings { options, discard: true, threads: 2 };
    let buffers = BufferPool::new(16, 4).unwrap();
    let log = Log::new(device, area, slots, settings, buffers, &Held::private()).unwrap();
    log.activate().unwrap();
    log
}

pub(super) fn number(log: &Log, wanted: &str) -> u64 {
    let mut found = None;
    log.statistics(&mut |name, value| {
        if name == wanted {
            found = Some(value);
        }
    });
    found.unwrap_or_else(|| panic!("no number {wanted}"))
}

/// A page of its own for each `key`: of one word, compressible, or random.
pub(super) fn page_of(key: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE_LEN];
    match key % 5 {
        0 => super::super::objects::fill(&mut page, key),
        1 => {
            for (index, word) in page.chunks_exact_mut(8).enumerate() {
                let value = key.wrapping_mul(0x9e37_79b9).wrapping_add(index as u64 / 7);
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
        _ => {
            let mut state = key | 1;
            for word in page.chunks_exact_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                word.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
            }
        }
    }
    page
}

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What every slot must hold, by the key of its page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model(pub(super) Vec<Option<u64>>);

impl Model {
    pub(super) fn check(&self, log: &Log) {
        let mut page = vec![0; PAGE_LEN];
        for (slot, key) in (0..).zip(&self.0) {
            log.read(slot, &mut page).unwrap_or_else(|error| panic!("slot {slot}: {error:?}"));
            let expected = key.map_or_else(|| vec![0; PAGE_LEN], page_of);
            assert!(page == expected, "slot {slot} does not hold page {key:?}");
        }
    }
}

/// Random writes, discards and flushes.
pub(super) fn change(log: &Log, model: &mut Model, random: &mut Random, steps: u64) {
    let slots = model.0.len() as u64;
    for _ in 0..steps {
        let slot = random.below(slots);
        match random.below(40) {
            0 => log.flush().unwrap(),
            1..4 => {
                let count = random.below(24).min(slots - slot).max(1);
                log.discard(slot, count).unwrap();
                model.0[slot as usize..(slot + count) as usize].fill(None);
            }
            _ => {
                let key = random.next();
                log.write(slot, &page_of(key)).unwrap();
                model.0[slot as usize] = Some(key);
            }
        }
    }
}

#[test]
fn pages_come_back_through_buffer_device_and_collection() {
    let (area, slots) = (area(64), 400);
    let device = Arc::new(Memory::new(&area));
    let log = open(device, area, slots, &OPTIONS);
    let (mut model, mut random) = (Model(vec![None; slots as usize]), Random(77));
    for round in 0..40 {
        change(&log, &mut model, &mut random, 200);
        if round % 5 == 0 {
            std::thread::sleep(Duration::from_millis(30));
        }
        model.check(&log);
    }
    assert!(number(&log, "gc_victims") > 20);
    assert!(number(&log, "read_device_pages") > 1000);
    let pages = model.0.iter().flatten().count() as u64;
    assert_eq!(number(&log, "orig_data_size_bytes"), pages * 4096);
    check_counts(&log);
}

/// Pages that are alike, with `dedup` on, and then, on what that has left, off.
#[test]
fn identical_pages_of_a_part_are_written_once() {
    let (area, slots) = (area(64), 400);
    let device = Arc::new(Memory::new(&area));
    let (mut model, mut random) = (Model(vec![None; slots as usize]), Random(41));
    let mut written = 0;
    for round in 0..12 {
        let dedup = round % 3 < 2;
        let options = LogOptions { dedup, ..OPTIONS };
        let log = open(device.clone(), area, slots, &options);
        model.check(&log);
        check_counts(&log);
        // Without it, what was shared is written again as pages of their own when it moves.
        let shared = number(&log, "dedup_shared_pages");
        for slot in 0..slots {
            if random.below(8) > 0 {
                let key = 2 + 5 * random.below(6);
                log.write(slot, &page_of(key)).unwrap();
                model.0[slot as usize] = Some(key);
            }
        }
        match round % 2 {
            0 => log.close().unwrap(),
            _ => log.flush().unwrap(),
        }
        let after = number(&log, "dedup_shared_pages");
        match dedup {
            true => assert!(after > 250, "{after} of 400 are shared"),
            false => assert!(after <= shared),
        }
        if round == 0 {
            written = number(&log, "device_written_bytes");
        }
        model.check(&log);
        drop(log);
    }
    assert!(written < slots * PAGE_LEN as u64 / 2, "{written} bytes of 400 pages");
}

/// What is derived while it runs is what a count of the table says.
fn check_counts(log: &Log) {
    log.flush().unwrap();
    let store = &log.store;
    let accounted = store.accounted_bytes.load(Ordering::Relaxed);
    let (mut live, mut expected) = (vec![0; store.segments.area.segment_count as usize], 0);
    store.table.for_each(0, store.table.slot_count(), |_, cell| {
        let entry = Entry(cell.load(Ordering::Relaxed));
        expected += cost_of(entry);
        if let Some(object) = entry.as_object()
            && let Some(segment) =
                object.device_offset().and_then(|at| store.segments.segment_of(at))
        {
            let rider = entry.is_shared();
            live[segment as usize] +=
                if rider { RECORD_LEN as u64 } else { device_bytes(object.len) };
        }
    });
    assert_eq!(accounted, expected);
    for segment in store.segments.area.segments() {
        assert_eq!(store.segments.segment(segment).1, live[segment as usize], "{segment}");
    }
}

#[test]
fn large_writes_and_flushes() {
    let (area, slots) = (area(97), 640);
    let device = Arc::new(Memory::new(&area));
    let log =
        open(device, area, slots, &LogOptions { deadline: Duration::from_secs(30), ..OPTIONS });
    let (mut model, mut random) = (Model(vec![None; slots as usize]), Random(3));
    for _ in 0..400 {
        let count = if random.below(8) == 0 { 250 } else { 16 };
        let first = random.below(slots - count);
        let keys: Vec<u64> = (0..count).map(|_| random.next() / 5 * 5 + 2).collect();
        let pages: Vec<u8> = keys.iter().flat_map(|&key| page_of(key)).collect();
        if let Err(error) = log.write(first, &pages) {
            log.statistics(&mut |name, value| println!("{name} {value}"));
            for segment in log.store.segments.area.segments() {
                println!("{segment} {:?}", log.store.segments.segment(segment));
            }
            panic!("{error}");
        }
        for (slot, key) in (first as usize..).zip(keys) {
            model.0[slot] = Some(key);
        }
        if random.below(10) == 0 {
            let started = Instant::now();
            while !log.store.write_out_for(Duration::from_secs(3)) {
                if started.elapsed() > Duration::from_secs(2) {
                    log.statistics(&mut |name, value| println!("{name} {value}"));
                    for segment in log.store.segments.area.segments() {
                        println!("{segment} {:?}", log.store.segments.segment(segment));
                    }
                    panic!("stuck");
                }
            }
        }
    }
    model.check(&log);
    check_counts(&log);
}
