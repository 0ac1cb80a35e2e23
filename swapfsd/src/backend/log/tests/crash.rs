//! Power failures: a device with a durable and a live image, and a failure at every write in turn.
//!
//! The device notes everything that is done to it. Afterwards, for each of these operations, an
//! image is made as a failure just there could have left it: what was flushed is there, and of
//! everything later each block of 4 KiB is old or new, whatever its neighbours are. A log is
//! opened on it, and each slot must hold what was flushed, or what was written later, and nothing
//! else. (The habit is redb's: tests/crash_consistency.rs.)

use super::*;

/// What was done to the device.
#[derive(Debug)]
enum Done {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    Discard {
        offset: usize,
        length: usize,
    },
    /// All before this index is durable.
    Flush {
        upto: usize,
    },
}

#[derive(Debug)]
struct Recorded {
    live: Memory,
    done: Mutex<Vec<Done>>,
}

impl Recorded {
    fn count(&self) -> usize {
        self.done.lock().len()
    }
}

impl BlockDevice for Recorded {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> std::result::Result<(), i32> {
        self.live.read_at(buffer, offset_bytes)
    }

    fn write_at(&self, buffer: &[u8], offset_bytes: u64) -> std::result::Result<(), i32> {
        self.live.write_at(buffer, offset_bytes)?;
        let (offset, bytes) = (offset_bytes as usize, buffer.to_vec());
        self.done.lock().push(Done::Write { offset, bytes });
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> std::result::Result<Discarded, i32> {
        self.live.discard(offset, length)?;
        let (offset, length) = (offset as usize, length as usize);
        self.done.lock().push(Done::Discard { offset, length });
        Ok(Discarded::Yes)
    }

    fn flush(&self) -> std::result::Result<(), i32> {
        let upto = self.count();
        self.done.lock().push(Done::Flush { upto });
        Ok(())
    }

    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What the user of the volume did, and how many operations the device had seen by then.
#[derive(Debug)]
enum Event {
    /// It was begun.
    Set { at: usize, slot: usize, key: Option<u64> },
    /// It had returned.
    Flushed { at: usize },
}

/// `alike`: most pages are one of a few.
fn work(
    log: &Log,
    device: &Recorded,
    random: &mut Random,
    (slots, steps): (u64, u64),
    alike: bool,
) -> Vec<Event> {
    let mut events = vec![Event::Flushed { at: device.count() }];
    for _ in 0..steps {
        // A few slots are written all the time, others hardly ever.
        let slot = if random.below(4) == 0 { random.below(16) } else { random.below(slots) };
        let at = device.count();
        match random.below(60) {
            0 => {
                log.flush().unwrap();
                events.push(Event::Flushed { at: device.count() });
            }
            1..=4 => {
                let count = random.below(20).min(slots - slot).max(1);
                let range = slot as usize..(slot + count) as usize;
                events.extend(range.map(|slot| Event::Set { at, slot, key: None }));
                log.discard(slot, count).unwrap();
            }
            5 => std::thread::sleep(Duration::from_millis(12)),
            _ => {
                let few = alike && random.below(3) > 0;
                let key = if few { 2 + 5 * random.below(9) } else { random.next() };
                events.push(Event::Set { at, slot: slot as usize, key: Some(key) });
                log.write(slot, &page_of(key)).unwrap();
            }
        }
    }
    events
}

/// The device's blocks, each as old or as new as may be, after a failure at operation `at`.
fn after_failure(durable: &[u8], done: &[Done], at: usize, random: &mut Random) -> Vec<u8> {
    let flushed = done[..at].iter().rev().find_map(|done| match done {
        Done::Flush { upto } => Some(*upto),
        _ => None,
    });
    let mut image = durable.to_vec();
    // How much of what was not flushed is there: from nothing to nearly all.
    let luck = random.below(5);
    // What was on its way may have come as far, too: but not what waited for a flush.
    let is_flush = |done: &Done| matches!(done, Done::Flush { .. });
    let on_its_way = done[at..].iter().take(2).take_while(|done| !is_flush(done)).count();
    for done in &done[flushed.unwrap_or(0)..at + on_its_way] {
        match done {
            Done::Write { offset, bytes } => {
                for (index, block) in bytes.chunks(4096).enumerate() {
                    if random.below(4) < luck {
                        let start = offset + index * 4096;
                        image[start..start + block.len()].copy_from_slice(block);
                    }
                }
            }
            Done::Discard { offset, length } => {
                if random.below(4) < luck {
                    image[*offset..offset + length].fill(0xdd);
                }
            }
            Done::Flush { .. } => {}
        }
    }
    image
}

/// What a slot may hold after a failure at operation `at`.
fn allowed(events: &[Event], slot: usize, at: usize) -> Vec<Option<u64>> {
    let mut allowed = vec![None];
    for event in events {
        match event {
            Event::Flushed { at: flushed } if *flushed <= at => {
                allowed = allowed.split_off(allowed.len() - 1);
            }
            Event::Set { at: begun, slot: changed, key }
                if *begun <= at + 2 && *changed == slot =>
            {
                allowed.push(*key);
            }
            _ => {}
        }
    }
    allowed
}

fn fail_at_every_operation(seed: u64, steps: u64, step_by: u64, dedup: bool) {
    println!("seed {seed}, dedup {dedup}");
    let (area, slots) = (area(44), 240);
    let mut random = Random(seed);
    let device = Arc::new(Recorded { live: Memory::new(&area), done: Mutex::default() });
    let options = LogOptions { dedup, ..OPTIONS };
    let log = open(device.clone(), area, slots, &options);
    let events = work(&log, &device, &mut random, (slots, steps), dedup);
    let victims = number(&log, "gc_victims");
    println!("{victims} victims");
    assert!(victims > 5);
    assert_eq!(number(&log, "dedup_shared_pages") > 0, dedup);
    let not_saved = number(&log, "gc_not_saved_pages");
    drop(log);
    if not_saved > 0 {
        println!("left out: the device was so full that the collector could not save everything");
        return;
    }
    let done = device.done.lock();
    let bytes = device.live.0.lock().len();
    let (mut durable, mut applied) = (vec![0; bytes], 0);
    for at in 0..done.len() {
        if let Done::Flush { upto } = done[at] {
            for done in &done[applied..upto] {
                match done {
                    Done::Write { offset, bytes } => {
                        durable[*offset..offset + bytes.len()].copy_from_slice(bytes);
                    }
                    Done::Discard { offset, length } => {
                        durable[*offset..offset + length].fill(0xdd);
                    }
                    Done::Flush { .. } => {}
                }
            }
            applied = applied.max(upto);
        }
        if at as u64 % step_by != seed % step_by {
            continue;
        }
        let image = after_failure(&durable, &done, at + 1, &mut random);
        let again = open(Arc::new(Memory(Mutex::new(image))), area, slots, &options);
        let mut page = vec![0; PAGE_LEN];
        for slot in 0..slots as usize {
            let allowed = allowed(&events, slot, at + 1);
            again.read(slot as u64, &mut page).unwrap_or_else(|error| {
                show(&again, slot as u32);
                for (index, done) in done.iter().enumerate().take(at + 3) {
                    match done {
                        Done::Write { offset, bytes } => println!(
                            "{index}: write segment {} at {:#x}, {:#x}",
                            (offset - (1 << 20)) / 65536,
                            (offset - (1 << 20)) % 65536,
                            bytes.len()
                        ),
                        other => println!("{index}: {other:x?}"),
                    }
                }
                panic!("failure at operation {at}: slot {slot}: {error}: {allowed:?}")
            });
            let right = allowed.iter().any(|key| match key {
                Some(key) => page == page_of(*key),
                None => page.iter().all(|&byte| byte == 0),
            });
            let last = allowed.last();
            assert!(right, "failure at operation {at}: slot {slot} of {allowed:?}, {last:?}");
        }
    }
    println!("{} failures", done.len() as u64 / step_by);
}

/// Shows all records of a slot on the device.
fn show(log: &Log, slot: u32) {
    let store = &log.store;
    let mut buffer = vec![0; MAX_PART_BYTES];
    println!("entry {:?}", store.entry(u64::from(slot)).meaning());
    for segment in store.segments.area.segments() {
        let shown = scan::for_each_part(
            &*store.device,
            &store.segments.area,
            segment,
            &mut buffer,
            |header, bytes| {
                println!("segment {segment}: part {header:?}");
                for record in swapfs_format::log::records(bytes, header).flatten() {
                    let hit = match record.content {
                        swapfs_format::log::Content::Discarded(count) => {
                            (record.slot..record.slot + count).contains(&slot)
                        }
                        _ => record.slot == slot,
                    };
                    if hit {
                        println!("   {record:?}");
                    }
                }
            },
        );
        println!("{segment}: {shown:?}");
    }
}

#[test]
fn what_was_flushed_survives_a_power_failure_at_every_operation() {
    let seed = std::env::var("SWAPFS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| since.as_nanos() as u64 | 1)
    });
    // Every sixth, beginning with any; with SWAPFS_LONG=1 all of them.
    let step_by = if std::env::var("SWAPFS_LONG").is_ok_and(|long| long == "1") { 1 } else { 6 };
    fail_at_every_operation(seed, 2400, step_by, false);
    fail_at_every_operation(seed, 4000, step_by, true);
}

/// What the device has after a clean stop is all of it, and so it is without the checkpoint.
#[test]
fn a_clean_stop_and_a_scan_find_the_same() {
    for closed in [true, false] {
        let (area, slots) = (area(64), 400);
        let device = Arc::new(Memory::new(&area));
        let (mut model, mut random) = (Model(vec![None; slots as usize]), Random(99));
        for round in 0..6 {
            let log = open(device.clone(), area, slots, &OPTIONS);
            model.check(&log);
            change(&log, &mut model, &mut random, 1500);
            match closed {
                true => log.close().unwrap(),
                false => log.flush().unwrap(),
            }
            check_counts(&log);
            drop(log);
            if closed && round % 2 == 0 {
                // Opened and closed with nothing done.
                let log = open(device.clone(), area, slots, &OPTIONS);
                log.close().unwrap();
            }
        }
        let log = open(device, area, slots, &OPTIONS);
        model.check(&log);
        check_counts(&log);
    }
}
