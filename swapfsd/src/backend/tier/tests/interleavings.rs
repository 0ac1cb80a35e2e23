//! Orders of events that a test has to bring about: found by a reviewer, each with what it did.

use super::record::{Direction, Order};
use super::space::Stream;
use super::*;
use crate::admin::Request;
use crate::backend::objects::entry::Entry;
use std::time::Instant;

const LOG: MemberKind = MemberKind::Log;
const LINEAR: MemberKind = MemberKind::Linear;

fn key(slot: u64) -> u64 {
    slot * 8 + 2
}

fn fragmented(log_bytes: u64, slots: u64, every: u64, options: &str) {
    let fixture =
        Fixture::new(20_000, 1 << 20, &[(LOG, log_bytes, options), (LINEAR, 128 << 20, "")]);
    let tier = fixture.open(false);
    for slot in 0..slots {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    std::thread::sleep(Duration::from_millis(300));
    let mut seen = 0;
    for slot in 0..slots {
        if tier_of(&tier, slot) == 1 {
            seen += 1;
            if seen % every == 0 {
                tier.discard(slot, 1).unwrap();
            }
        }
    }
    let log = member_at(&tier, 1);
    let begun = Instant::now();
    for slot in 10_000..12_000 {
        let outcome = tier.write(slot, &page_of(key(slot)));
        if outcome.is_err() {
            let linear = member_at(&tier, 2);
            panic!(
                "slot {slot} refused after {:?}: log live {} of usable {}, free {} keep {} state {:?}; linear uses {} of {}",
                begun.elapsed(),
                log.space.live_bytes(),
                log.space.usable_bytes(),
                log.space.free_segments(),
                log.space.keep_segments(),
                log.state(),
                linear.space.live_bytes(),
                linear.space.capacity_bytes()
            );
        }
    }
}

/// A `log` member whose segments are all about as full: nothing is gained by collecting them, and the
/// tier below is empty.
#[test]
fn a_fragmented_member_is_in_nobodys_way() {
    fragmented(15 * 65536, 400, 4, "");
    fragmented(15 * 65536, 400, 3, "");
    fragmented(64 * 65536, 1050, 5, "high=100,low=95");
    fragmented(200 * 65536, 3300, 6, "");
}

#[test]
fn a_standby_that_was_made_before_has_the_member() {
    let mut fixture = Fixture::new(4000, 1 << 20, &[(LINEAR, 64 << 10, "")]);
    let tier = fixture.open(false);
    let new = member(2, LINEAR, 32 << 20, "");
    let memory = Memory::new(32 << 20);
    fixture.shelf.0.lock().push(("member-2".to_owned(), Arc::clone(&memory), new.clone()));
    fixture.devices.push((memory, new));
    // What the supervisor starts on hold(): it has the descriptor; the record is not published yet.
    let standby = fixture.standby(true);
    let request = Request::Add { image: "member-2".into() };
    tier.administration().unwrap().handle(&request, &mut |_| true).unwrap();
    for slot in 0..1500 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    drop(tier);
    standby.activate().unwrap();
    let bad = (0..1500).filter(|&slot| read(&standby, slot).is_err()).count();
    assert_eq!(bad, 0, "pages lost");
}

#[test]
fn killed_between_publish_and_hold() {
    let mut fixture = Fixture::new(4000, 1 << 20, &[(LINEAR, 64 << 10, "")]);
    let tier = fixture.open(false);
    let new = member(2, LINEAR, 32 << 20, "");
    // As Tier::add does, up to the hold: a successor has no device for it, and nothing is on it.
    let identity = place_of(&tier.lower, &new).unwrap();
    tier.lower.records.at(1).publish(&identity, &new.options);
    for slot in 0..300 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    drop(tier);
    let successor = fixture.open(true);
    for slot in 0..300 {
        check(&successor, slot, Some(key(slot)), "the successor");
    }
    let added = member_at(&successor, 2);
    assert!(added.state() == member::State::Missing);
    let memory = Memory::new(32 << 20);
    fixture.devices.push((Arc::clone(&memory), new.clone()));
    fixture.shelf.0.lock().push(("member-2".to_owned(), memory, new));
    wait_until("it is found", || added.state() == member::State::Ok);
    for slot in 0..1500 {
        successor.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("pages on it", || added.counters.pages.load(Ordering::Relaxed) > 0);
}

/// A load that can't be written gives its room back once.
#[test]
fn a_failed_load_is_given_back_once() {
    for kind in [LINEAR, LOG] {
        let fixture = Fixture::new(3000, 1 << 20, &[(kind, 16 << 20, "")]);
        let tier = fixture.open(false);
        let device = &fixture.devices[0].0;
        let one = member_at(&tier, 1);
        for round in 0..20 {
            device.fail_writes.store(round % 2 == 0, Ordering::SeqCst);
            for slot in 0..300 {
                let slot = round * 100 + slot;
                tier.write(slot, &page_of(key(slot))).ok();
            }
            device.fail_writes.store(false, Ordering::SeqCst);
            wait_until("it works again", || one.state() == member::State::Ok);
        }
        tier.discard(0, 3000).unwrap();
        wait_until("all is given back", || one.space.live_bytes() == 0);
        assert_eq!(one.counters.pages.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn letting_go_is_in_nobodys_way() {
    letting_go(true);
}
#[test]
fn nobody_is_let_go() {
    letting_go(false);
}
fn letting_go(go: bool) {
    let fixture = Fixture::new(
        20_000,
        1 << 20,
        &[(LOG, 8 << 20, "high=30,low=10"), (LINEAR, 64 << 20, "rate=64K"), (LINEAR, 1 << 20, "")],
    );
    let tier = fixture.open(false);
    let mut slot = 0;
    let log = member_at(&tier, 1);
    while !log.over.load(Ordering::Relaxed) {
        tier.write(slot, &page_of(key(slot))).unwrap();
        slot += 1;
    }
    std::thread::sleep(Duration::from_millis(500));
    if go {
        tier.lower.records.set_evacuation(Some(Order {
            place: 2,
            direction: Direction::Up,
            rate_bytes: 0,
        }));
        tier.lower.wake();
    }
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    for more in 0..500 {
        let outcome = tier.write(slot + more, &page_of(key(slot + more)));
        if outcome.is_err() {
            panic!(
                "refused after {:?} and {more} pages: log live {} of {}",
                begun.elapsed(),
                log.space.live_bytes(),
                log.space.usable_bytes()
            );
        }
    }
}

#[test]
fn a_standby_takes_over_the_watermarks() {
    let fixture = Fixture::new(4000, 1 << 20, &[(LINEAR, 8 << 20, "")]);
    let tier = fixture.open(false);
    let standby = fixture.standby(true);
    let request = Request::Set { tier: 0, options: "high=33,low=22".to_owned() };
    tier.administration().unwrap().handle(&request, &mut |_| true).unwrap();
    drop(tier);
    standby.activate().unwrap();
    assert_eq!(standby.lower.top.high_percent.load(Ordering::Relaxed), 33);
}

#[test]
fn a_failed_log_is_not_collected() {
    let fixture =
        Fixture::new(6000, 1 << 20, &[(LOG, 2 << 20, "high=100,low=99"), (LINEAR, 64 << 20, "")]);
    let tier = fixture.open(false);
    for slot in 0..2000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    let log = member_at(&tier, 1);
    let mut slot = 2000;
    while log.space.free_segments() > 4 && slot < 6000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
        slot += 1;
        if slot % 50 == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    fixture.devices[0].0.fail(true);
    drop(read(
        &tier,
        (0..slot)
            .find(|&slot| {
                tier.store().table.get(slot).as_object().is_some() && tier_of(&tier, slot) == 1
            })
            .unwrap(),
    ));
    for old in (0..slot).filter(|slot| slot % 2 == 0) {
        if tier.store().table.get(old).as_object().is_some() && tier_of(&tier, old) == 1 {
            tier.discard(old, 1).unwrap();
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let before = log.counters.read_errors.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(1));
    let after = log.counters.read_errors.load(Ordering::Relaxed);
    assert!(after - before < 10);
}

/// The evacuation of another tier that is asked for while the first one is called off.
#[test]
fn one_is_called_off_and_another_one_begun() {
    let fixture = Fixture::new(4000, 1 << 20, &[(LOG, 2 << 20, ""), (LINEAR, 32 << 20, "")]);
    let tier = fixture.open(false);
    for slot in 0..3000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("pages on the lowest", || member_at(&tier, 2).space.live_bytes() > 1 << 20);
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    tier.lower.records.set_evacuation(Some(Order {
        place: 1,
        direction: Direction::Down,
        rate_bytes: 64 << 10,
    }));
    let linear = member_at(&tier, 2);
    wait_until("begun", || linear.state() == member::State::Evacuating);
    // cancel, and remove of the other: within LOOK of each other.
    tier.lower.records.set_evacuation(None);
    tier.lower.records.set_evacuation(Some(Order {
        place: 0,
        direction: Direction::Down,
        rate_bytes: 0,
    }));
    tier.lower.wake();
    std::thread::sleep(Duration::from_secs(3));
    assert!(linear.state() == member::State::Ok);
}

/// A supervisor that is slow: forget() may wait for ten seconds.
#[derive(Debug, Default)]
struct SlowKeeper {
    held: Mutex<[bool; 8]>,
    seconds: u64,
}

impl Keeper for SlowKeeper {
    fn hold(&self, place: usize, _: &File) -> io::Result<()> {
        self.held.lock()[place] = true;
        Ok(())
    }

    fn forget(&self, place: usize) -> io::Result<()> {
        std::thread::sleep(Duration::from_secs(self.seconds));
        self.held.lock()[place] = false;
        Ok(())
    }
}

fn with_keeper(fixture: &Fixture, keeper: Arc<SlowKeeper>) -> Tier {
    let regions = std::array::from_fn(|index| fixture.regions[index].try_clone().unwrap());
    let mut devices: [Option<MemberDevice>; MAX_DEVICE_MEMBERS] = Default::default();
    for (device, (memory, _)) in devices.iter_mut().zip(&fixture.devices) {
        let memory: Arc<dyn BlockDevice> = Arc::clone(memory) as Arc<dyn BlockDevice>;
        *device = Some(device_of(memory));
    }
    let setup = Setup {
        slot_count: fixture.slots,
        options: &fixture.options,
        threads: 2,
        buffers: BufferPool::new(16, 6).unwrap(),
        devices,
        members: fixture.devices.iter().map(|(_, setup)| setup.clone()).enumerate().collect(),
        keeper,
        images: Arc::clone(&fixture.shelf) as Arc<dyn Images>,
        is_open: true,
    };
    let tier = Tier::new(setup, &Held::regions(regions, false)).unwrap();
    tier.activate().unwrap();
    tier
}

#[test]
fn a_slow_supervisor_is_in_nobodys_way() {
    let fixture = Fixture::new(20_000, 1 << 20, &[(LOG, 32 << 20, ""), (LINEAR, 1 << 20, "")]);
    let tier = with_keeper(&fixture, Arc::new(SlowKeeper { seconds: 10, ..SlowKeeper::default() }));
    tier.lower.records.set_evacuation(Some(Order {
        place: 1,
        direction: Direction::Up,
        rate_bytes: 0,
    }));
    tier.lower.wake();
    wait_until("let go", || tier.lower.at(1).is_none());
    let begun = Instant::now();
    for slot in 0..2000 {
        if tier.write(slot, &page_of(key(slot))).is_err() {
            panic!("refused after {:?}, slot {slot}", begun.elapsed());
        }
    }
}

#[test]
fn added_while_another_one_is_let_go() {
    let fixture = Fixture::new(20_000, 1 << 20, &[(LOG, 32 << 20, ""), (LINEAR, 1 << 20, "")]);
    let keeper = Arc::new(SlowKeeper { seconds: 1, ..SlowKeeper::default() });
    let tier = with_keeper(&fixture, Arc::clone(&keeper));
    let new = member(3, LINEAR, 32 << 20, "");
    fixture.shelf.0.lock().push(("member-3".to_owned(), Memory::new(32 << 20), new));
    tier.lower.records.set_evacuation(Some(Order {
        place: 1,
        direction: Direction::Up,
        rate_bytes: 0,
    }));
    tier.lower.wake();
    wait_until("let go", || tier.lower.at(1).is_none());
    let request = Request::Add { image: "member-3".into() };
    tier.administration().unwrap().handle(&request, &mut |_| true).unwrap();
    let place = member_at(&tier, 3).place;
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        keeper.held.lock()[place],
        "place {place} is a member's, and the supervisor has forgotten it"
    );
}

/// A device whose read calls `hook` once the bytes were copied.
struct Hooked {
    inner: Arc<Memory>,
    hook: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    after: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}
impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hooked")
    }
}
impl BlockDevice for Hooked {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::result::Result<(), i32> {
        let hook = self.hook.lock().take();
        let armed = hook.is_some();
        if let Some(hook) = hook {
            hook();
        }
        self.inner.read_at(buffer, offset)?;
        let after = if armed { self.after.lock().take() } else { None };
        if let Some(after) = after {
            after();
        }
        Ok(())
    }
    fn write_at(&self, buffer: &[u8], offset: u64) -> std::result::Result<(), i32> {
        self.inner.write_at(buffer, offset)
    }
    fn discard(&self, offset: u64, length: u64) -> std::result::Result<Discarded, i32> {
        self.inner.discard(offset, length)
    }
    fn flush(&self) -> std::result::Result<(), i32> {
        Ok(())
    }
    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Evacuated upwards, pages push swap-outs aside.
#[test]
fn a_copy_has_no_mark() {
    let fixture = Fixture::new(4000, 1 << 20, &[(LOG, 32 << 20, "promote=second,keep=inclusive")]);
    let tier = fixture.open(false);
    for slot in 0..1000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    tier.lower.top.low_percent.store(0, Ordering::Relaxed);
    let slot = (0..1000).find(|&slot| tier_of(&tier, slot) == 1).unwrap();
    check(&tier, slot, Some(key(slot)), "first");
    check(&tier, slot, Some(key(slot)), "second");
    assert_eq!(tier_of(&tier, slot), 0);
    // All of it: nothing else may be there any more.
    tier.lower.top.high_percent.store(0, Ordering::Relaxed);
    wait_until("it goes down", || tier_of(&tier, slot) == 1);
    assert!(
        !tier.store().table.get(slot).was_tried(),
        "marked as seen, though nobody has read it since"
    );
}

/// The room is used again, and again by the same slot, while a reader is between the device and its
/// look at the entry.
#[test]
fn a_reader_does_not_take_another_slots_page() {
    // One block only: its room is used again at once.
    let mut fixture = Fixture::new(100, 1 << 20, &[(LINEAR, 64 << 10, "promote=never")]);
    (fixture.options.high_percent, fixture.options.low_percent) = (100, 99);
    let tier = Arc::new(fixture.open(false));
    fn words(key: u64) -> Vec<u8> {
        let mut page = vec![0u8; PAGE_LEN];
        for (index, word) in page.chunks_exact_mut(8).enumerate() {
            let value = if index % 3 == 0 {
                key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64
            } else {
                0x42
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
        page
    }
    let member = member_at(&tier, 1);
    // All blocks but one are taken by nobody.
    let all: Vec<_> = std::iter::from_fn(|| member.space.begin(Stream::Fresh, 0)).collect();
    assert_eq!(all.len(), 1);
    member.space.free(0, 4096);
    tier.write(1, &words(1)).unwrap();
    tier.write(2, &words(2)).unwrap();
    let down = |tier: &Tier, slot: u64| {
        let store = tier.store();
        let member = member_at(tier, 1);
        let cell = store.table.cell_of(slot).unwrap();
        let entry = Entry(cell.load(Ordering::SeqCst));
        let object = entry.as_object().unwrap();
        let mut load = load::Load::new().unwrap();
        assert!(load.begin(&member, Stream::Fresh));
        let (bytes, checksum) = store.pool.unchecked(&object).unwrap();
        store.pool.hold(&object);
        load.push(&load::Moved {
            slot,
            entry,
            encoding: object.encoding,
            checksum,
            bytes,
            source: load::Source::Arena(object),
        });
        assert_eq!(load.send(store, load::Why::Demotion).pages, 1);
    };
    down(&tier, 1);
    assert_eq!(tier_of(&tier, 1), 1);
    let up = |tier: &Tier, slot: u64| {
        // As another reader's promotion does.
        tier.lower.records.at(0).set(&MemberOptions::parse(LINEAR, "promote=always").unwrap());
        assert!(read(tier, slot).unwrap() == words(slot));
        tier.lower.records.at(0).set(&MemberOptions::parse(LINEAR, "promote=never").unwrap());
        assert_eq!(tier_of(tier, slot), 0);
    };
    let hooked = Arc::new(Hooked {
        inner: Arc::clone(&fixture.devices[0].0),
        hook: Mutex::new(None),
        after: Mutex::new(None),
    });
    let (weak, inner) = (Arc::downgrade(&tier), Arc::clone(&hooked));
    let before: Box<dyn FnOnce() + Send> = Box::new(move || {
        let tier = weak.upgrade().unwrap();
        up(&tier, 1);
        down(&tier, 2);
        // The reader's copy of the device is made now; then both go on.
        let tier2 = Arc::clone(&tier);
        *inner.after.lock() = Some(Box::new(move || {
            up(&tier2, 2);
            down(&tier2, 1);
        }));
    });
    *hooked.hook.lock() = Some(before);
    member.set_device(Some(device_of(hooked)));
    let page = read(&tier, 1).unwrap();
    assert!(page == words(1), "slot 1 was read as the page of slot 2: {}", page == words(2));
}
