//! Members that fail, go, and come back.

use super::*;
use member::State;

const LOG: MemberKind = MemberKind::Log;
const LINEAR: MemberKind = MemberKind::Linear;

fn key(slot: u64) -> u64 {
    slot * 8 + 3
}

#[test]
fn a_member_that_fails_takes_no_pages_until_it_works() {
    let fixture = Fixture::new(6000, 1 << 20, &[(LOG, 16 << 20, ""), (LINEAR, 32 << 20, "")]);
    let tier = fixture.open(false);
    for slot in 0..2000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    let log = member_at(&tier, 1);
    assert!(log.counters.pages.load(Ordering::Relaxed) > 500);
    fixture.devices[0].0.fail(true);
    // Swap-outs go on; what is demoted goes to the next tier.
    for slot in 2000..5000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("it is seen to fail", || log.state() == State::Failed);
    assert!(member_at(&tier, 2).counters.demoted_in_pages.load(Ordering::Relaxed) > 500);
    let mut errors = 0;
    for slot in 0..5000 {
        match read(&tier, slot) {
            Ok(page) => assert!(page == page_of(key(slot)), "slot {slot}"),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Io);
                assert_eq!(tier_of(&tier, slot), 1);
                errors += 1;
            }
        }
    }
    assert!(errors > 500, "{errors}");
    assert!(log.counters.read_errors.load(Ordering::Relaxed) >= errors);
    // Overwriting heals.
    let lost = (0..2000).find(|&slot| tier_of(&tier, slot) == 1).unwrap();
    tier.write(lost, &page_of(key(lost) + 8)).unwrap();
    check(&tier, lost, Some(key(lost) + 8), "overwritten");
    tier.write(lost, &page_of(key(lost))).unwrap();
    // Back again, it has what it had.
    fixture.devices[0].0.fail(false);
    wait_until("it is used again", || log.state() == State::Ok);
    for slot in 0..5000 {
        check(&tier, slot, Some(key(slot)), "after it came back");
    }
    assert_eq!(number(&tier, "damaged_objects"), 0);
}

#[test]
fn a_damaged_object_is_an_error_and_never_data() {
    let fixture = Fixture::new(1500, 1 << 20, &[(LINEAR, 16 << 20, "promote=never")]);
    let tier = fixture.open(false);
    // Raw ones and compressed ones.
    let key = |slot: u64| slot * 8 + if slot.is_multiple_of(2) { 2 } else { 3 };
    for slot in 0..1500 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    let (mut found, mut below) = (0, 0);
    for slot in 0..1500 {
        if tier_of(&tier, slot) == 0 {
            continue;
        }
        below += 1;
        if below % 7 != 0 {
            continue;
        }
        let object = tier.store().table.get(slot).as_object().unwrap();
        let lies = member_at(&tier, 1).lies(&object);
        let at = (DATA_OFFSET_BYTES + lies.offset + lies.stored / 2) as usize;
        fixture.devices[0].0.bytes.lock()[at] ^= 1 << (slot % 8);
        assert_eq!(read(&tier, slot).unwrap_err().kind, ErrorKind::Checksum);
        fixture.devices[0].0.bytes.lock()[at] ^= 1 << (slot % 8);
        check(&tier, slot, Some(key(slot)), "mended");
        found += 1;
    }
    assert!(found > 50, "{found}");
    assert_eq!(number(&tier, "damaged_objects"), found);
    assert_eq!(member_at(&tier, 1).state(), State::Ok);
}

#[test]
fn a_missing_member_is_used_when_it_comes() {
    let fixture = Fixture::new(3000, 1 << 20, &[(LOG, 16 << 20, ""), (LINEAR, 32 << 20, "")]);
    let tier = fixture.open(false);
    let log = member_at(&tier, 1);
    log.set_device(None);
    for slot in 0..3000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("it is seen to be gone", || log.state() != State::Ok);
    for slot in 0..3000 {
        check(&tier, slot, Some(key(slot)), "without it");
    }
    let (memory, setup) = &fixture.devices[0];
    let image = ("member-1".to_owned(), Arc::clone(memory), setup.clone());
    fixture.shelf.0.lock().push(image);
    wait_until("it is used again", || log.state() == State::Ok);
    for slot in 0..3000 {
        tier.write(slot, &page_of(key(slot) + 8)).unwrap();
    }
    wait_until("it takes pages", || log.counters.pages.load(Ordering::Relaxed) > 0);
}
