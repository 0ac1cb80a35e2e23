//! What a reviewer found: a device that fails, delays and holds reads back, and what came of it.
use super::*;
use std::sync::atomic::AtomicUsize;

#[derive(Debug)]
struct Gate {
    live: Memory,
    armed: AtomicBool,
    held: AtomicBool,
    release: AtomicBool,
    fail_writes: AtomicUsize,
    fail_reads: AtomicBool,
    writes: AtomicUsize,
    write_delay_us: AtomicU64,
}
impl Gate {
    fn new(area: &LogArea) -> Gate {
        Gate {
            live: Memory::new(area),
            armed: AtomicBool::new(false),
            held: AtomicBool::new(false),
            release: AtomicBool::new(false),
            fail_writes: AtomicUsize::new(0),
            fail_reads: AtomicBool::new(false),
            writes: AtomicUsize::new(0),
            write_delay_us: AtomicU64::new(0),
        }
    }
}
impl BlockDevice for Gate {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> std::result::Result<(), i32> {
        if std::thread::current().name() == Some("slow-reader")
            && self.armed.swap(false, Ordering::SeqCst)
        {
            self.held.store(true, Ordering::SeqCst);
            while !self.release.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if self.fail_reads.load(Ordering::SeqCst) {
            return Err(libc::EIO);
        }
        self.live.read_at(buffer, offset_bytes)
    }
    fn write_at(&self, buffer: &[u8], offset_bytes: u64) -> std::result::Result<(), i32> {
        let d = self.write_delay_us.load(Ordering::Relaxed);
        if d > 0 {
            std::thread::sleep(Duration::from_micros(d));
        }
        if self.fail_writes.load(Ordering::SeqCst) > 0 {
            return Err(libc::EIO);
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.live.write_at(buffer, offset_bytes)
    }
    fn discard(&self, _o: u64, _l: u64) -> std::result::Result<Discarded, i32> {
        Ok(Discarded::Yes)
    }
    fn flush(&self) -> std::result::Result<(), i32> {
        Ok(())
    }
    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
}

fn raw_key(random: &mut Random) -> u64 {
    random.next() / 5 * 5 + 2
}

fn stats(log: &Log) {
    log.statistics(&mut |name, value| println!("{name} {value}"));
    for s in log.store.segments.area.segments() {
        let i = log.store.segments.segment(s);
        print!("{s}:{:?}/{}{} ", i.0, i.1, if log.store.is_shunned(s) { "!" } else { "" });
    }
    println!();
}

#[test]
fn a_read_never_answers_another_slots_page() {
    let (area, slots) = (area(40), 300);
    let device = Arc::new(Gate::new(&area));
    let log = Arc::new(open(device.clone(), area, slots, &OPTIONS));
    let mut random = Random(5);
    let mut keys = vec![0; slots as usize];
    for slot in 0..slots {
        keys[slot as usize] = raw_key(&mut random);
        log.write(slot, &page_of(keys[slot as usize])).unwrap();
    }
    log.flush().unwrap();
    // each victim slot: read is held in the device, all others are overwritten in turn.
    let mut wrong = 0;
    for target in (0..slots).step_by(37) {
        device.release.store(false, Ordering::SeqCst);
        device.held.store(false, Ordering::SeqCst);
        device.armed.store(true, Ordering::SeqCst);
        let before = log.store.entry(target).as_object().unwrap().device_offset().unwrap();
        let again = log.clone();
        let reader = std::thread::Builder::new()
            .name("slow-reader".into())
            .spawn(move || {
                let mut page = vec![0; PAGE_LEN];
                again.read(target, &mut page).map(|()| page)
            })
            .unwrap();
        while !device.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        for round in 0..400 {
            for slot in (0..slots).filter(|&slot| slot != target) {
                if random.below(10) > 1 {
                    let _ = round;
                    continue;
                }
                keys[slot as usize] = raw_key(&mut random);
                log.write(slot, &page_of(keys[slot as usize])).unwrap();
            }
            log.flush().unwrap();
            // As long as something else of the same size lies there whole: that is when it goes on.
            let x = (before / area.segment_bytes) as u32;
            let moved =
                log.store.entry(target).as_object().unwrap().device_offset().unwrap() != before;
            let mut there = false;
            let mut buffer = vec![0; MAX_PART_BYTES];
            let _ = scan::for_each_part(&*device, &area, x, &mut buffer, |header, bytes| {
                for record in swapfs_format::log::records(bytes, header).flatten() {
                    if let swapfs_format::log::Content::Object { offset, len: 4096, .. } =
                        record.content
                    {
                        there |= u64::from(record.slot) != target
                            && u64::from(offset) == before % area.segment_bytes;
                    }
                }
            });
            if round % 100 == 0 || moved && there {
                println!(
                    "round {round}: L {:#x} moved {moved} there {there}",
                    before % area.segment_bytes
                );
            }
            if moved && there {
                break;
            }
        }
        println!("victims {} free {}", number(&log, "gc_victims"), number(&log, "segments_free"));
        device.release.store(true, Ordering::SeqCst);
        match reader.join().unwrap() {
            Ok(page) => {
                if page != page_of(keys[target as usize]) {
                    let whose = (0..slots).find(|&s| page_of(keys[s as usize]) == page);
                    println!(
                        "slot {target}: WRONG PAGE answered with success; it is slot {whose:?}'s page"
                    );
                    wrong += 1;
                }
            }
            Err(error) => println!("slot {target}: {error}"),
        }
    }
    assert_eq!(wrong, 0);
}

#[test]
fn segments_full_of_words_do_not_stop_the_collector() {
    let (area, slots) = (area(64), 60_000);
    let device = Arc::new(Gate::new(&area));
    let log = open(device.clone(), area, slots, &OPTIONS);
    let mut random = Random(5);
    for slot in 0..30_000 {
        let mut page = vec![0; PAGE_LEN];
        super::super::super::objects::fill(&mut page, slot / 4 + 1);
        log.write(slot, &page).unwrap();
    }
    log.flush().unwrap();
    println!(
        "words are written: usable {} accounted {}",
        number(&log, "usable_bytes"),
        number(&log, "compr_data_size_bytes")
    );
    let started = Instant::now();
    let mut worst = Duration::ZERO;
    for round in 0..3000u64 {
        let slot = 40_000 + random.below(200);
        let at = Instant::now();
        if let Err(error) = log.write(slot, &page_of(raw_key(&mut random))) {
            stats(&log);
            panic!("round {round} after {:?}: {error}", started.elapsed());
        }
        worst = worst.max(at.elapsed());
        if round % 30 == 0 {
            if let Err(error) = log.flush() {
                stats(&log);
                panic!("flush {round} {:?}: {error}", started.elapsed());
            }
            if round % 300 == 0 {
                println!(
                    "{round} {:?} victims {} free {} written {}",
                    started.elapsed(),
                    number(&log, "gc_victims"),
                    number(&log, "segments_free"),
                    number(&log, "device_written_bytes")
                );
            }
        }
    }
    stats(&log);
    println!("worst write {worst:?}, all {:?}", started.elapsed());
}

#[test]
fn a_device_that_can_be_written_again_is_written_again() {
    let (area, slots) = (area(40), 300);
    let device = Arc::new(Gate::new(&area));
    let log = open(device.clone(), area, slots, &OPTIONS);
    let mut random = Random(5);
    for _ in 0..3000 {
        log.write(random.below(slots), &page_of(raw_key(&mut random))).unwrap();
    }
    device.fail_writes.store(1, Ordering::SeqCst);
    let until = Instant::now() + Duration::from_secs(4);
    let mut refused = 0;
    while Instant::now() < until {
        refused +=
            u32::from(log.write(random.below(slots), &page_of(raw_key(&mut random))).is_err());
    }
    device.fail_writes.store(0, Ordering::SeqCst);
    println!("device works again; refused {refused}");
    let until = Instant::now() + Duration::from_secs(30);
    let (mut ok, mut bad) = (0, 0);
    while Instant::now() < until && ok < 3000 {
        match log.write(random.below(slots), &page_of(raw_key(&mut random))) {
            Ok(()) => ok += 1,
            Err(_) => bad += 1,
        }
    }
    stats(&log);
    println!("ok {ok} bad {bad}");
    assert!(ok >= 3000);
}

#[test]
fn of_two_copies_the_one_that_checks_counts() {
    use swapfs_format::log::{Content, PartHeader, PartKind, Record, payload_offset_for};
    let (area, slots) = (area(40), 64);
    let device = Arc::new(Memory::new(&area));
    let part = |segment: u32,
                offset: u32,
                sequence: u64,
                filling: u64,
                durable: u64,
                what: &[(u32, u64, u64)]| {
        let head = payload_offset_for(what.len());
        let mut bytes = vec![0; head];
        for (index, &(slot, number, key)) in what.iter().enumerate() {
            let page = page_of(key);
            let checksum = crate::codec::checksum(crate::codec::Encoding::Raw, &page);
            let content = Content::Object {
                encoding: 2,
                offset: offset + bytes.len() as u32,
                len: 4096,
                checksum,
            };
            let record = Record { sequence: number, slot, content }.encode();
            bytes[128 + index * 24..][..24].copy_from_slice(&record);
            bytes.extend_from_slice(&checksum.to_le_bytes());
            bytes.extend_from_slice(&page);
        }
        let payload = bytes.len() - head;
        let crc = crc32fast::hash(&bytes[head..]);
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        PartHeader {
            kind: PartKind::Data,
            owner: area.owner,
            sequence,
            filling,
            began_sequence: 1,
            durable_sequence: durable,
            segment,
            offset_bytes: offset,
            part_bytes: bytes.len() as u32,
            record_count: what.len() as u32,
            payload_offset_bytes: head as u32,
            payload_bytes: payload as u32,
            payload_crc32: crc,
            next_segment: 0,
        }
        .write_to(&mut bytes);
        device.write_at(&bytes, area.offset_of(segment, u64::from(offset))).unwrap();
        bytes
    };
    // The collector's segment, begun early, gets slot 7 from segment 2 late.
    let first = part(1, 0, 10, 10, 9, &[(5, 90, 502)]);
    let old = part(2, 0, 20, 20, 10, &[(7, 100, 702)]);
    part(1, first.len() as u32, 30, 10, 20, &[(7, 100, 702)]);
    // Flushed; segment 2 is free. Others go on.
    part(3, 0, 31, 31, 30, &[(8, 110, 802)]);
    // Segment 2 is written again, and the write is torn: its first block is not there.
    let new = part(2, 0, 32, 32, 30, &[(9, 120, 902)]);
    device.write_at(&old[..4096], area.offset_of(2, 0)).unwrap();
    assert_eq!(old.len(), new.len());
    let log = open(device.clone(), area, slots, &OPTIONS);
    let mut page = vec![0; PAGE_LEN];
    let outcome = log.read(7, &mut page);
    println!("slot 7, flushed long ago: {outcome:?}, right: {}", page == page_of(702));
    assert!(outcome.is_ok() && page == page_of(702));
}

/// Single slots are written and discarded again and again beside pages that stay. Old records of
/// discards were all moved for as long as the slot's newer page was in the buffer, and filled the
/// device.
#[test]
fn records_of_discards_do_not_pile_up() {
    let (area, slots) = (area(40), 4000);
    let log = open(Arc::new(Gate::new(&area)), area, slots, &OPTIONS);
    let mut random = Random(5);
    let keys: Vec<u64> = (0..60).map(|_| raw_key(&mut random)).collect();
    for (slot, &key) in (0..).zip(&keys) {
        log.write(slot, &page_of(key)).unwrap();
    }
    log.flush().unwrap();
    for _ in 0..400 {
        for slot in 1000..1500 {
            log.write(slot, &page_of(3)).unwrap();
            log.discard(slot, 1).unwrap();
        }
        log.flush().unwrap();
    }
    stats(&log);
    check_counts(&log);
    let mut page = vec![0; PAGE_LEN];
    for (slot, &key) in (0..).zip(&keys) {
        log.read(slot, &mut page).unwrap();
        assert!(page == page_of(key), "slot {slot}");
    }
}

/// Words come and go again beside pages that are rewritten: each time one more record says what
/// the slot's entry says, and they were all moved.
#[test]
fn records_of_words_do_not_pile_up() {
    let (area, slots) = (area(40), 40_000);
    let log = open(Arc::new(Gate::new(&area)), area, slots, &OPTIONS);
    let mut random = Random(5);
    for _ in 0..400 {
        for _ in 0..150 {
            let slot = 1000 + random.below(2900);
            log.write(slot, &page_of(5)).unwrap();
            log.write(slot, &page_of(10)).unwrap();
        }
        log.flush().unwrap();
        for _ in 0..10 {
            log.write(random.below(60), &page_of(raw_key(&mut random))).unwrap();
        }
        log.flush().unwrap();
    }
    stats(&log);
    check_counts(&log);
    assert!(number(&log, "write_amplification_percent") < 300);
}

/// Flushes have a slot's page written for each of its older ones, and with `dedup` all of these
/// records name one object: they were all moved.
#[test]
fn records_of_one_object_are_moved_once() {
    let (area, slots) = (area(40), 4000);
    let options = LogOptions { dedup: true, deadline: Duration::from_secs(2), ..OPTIONS };
    let log = open(Arc::new(Gate::new(&area)), area, slots, &options);
    let mut page = vec![0; PAGE_LEN];
    let mut key = 1u64 << 60;
    for batch in 0..200 {
        for slot in batch * 10..batch * 10 + 10 {
            for _ in 0..100 {
                key += 1;
                page[..8].copy_from_slice(&key.to_le_bytes());
                log.write(slot, &page).unwrap();
            }
        }
        log.flush().unwrap();
    }
    stats(&log);
    check_counts(&log);
    assert!(number(&log, "write_amplification_percent") < 100);
}
