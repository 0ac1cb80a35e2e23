//! Pages that go down and come up.

use super::*;

const LOG: MemberKind = MemberKind::Log;
const LINEAR: MemberKind = MemberKind::Linear;

/// Over three tiers, each too small: everything is read back, whoever serves.
#[test]
fn every_page_is_right_wherever_it_is() {
    for (seed, promote, keep) in [
        (0x5eed, "always", "exclusive"),
        (0x5eee, "always", "inclusive"),
        (0x5eef, "second", "exclusive"),
        (0x5ef0, "second", "inclusive"),
        (0x5ef1, "never", "exclusive"),
    ] {
        let options = format!("promote={promote},keep={keep},high=70,low=50");
        let slots = 1500;
        let fixture =
            Fixture::new(slots, 1 << 20, &[(LOG, 2 << 20, &options), (LINEAR, 8 << 20, &options)]);
        let (mut model, mut random) = (Model::new(slots), Random(seed));
        let mut tier = fixture.open(false);
        let mut moved = false;
        for round in 0..5 {
            let what = format!("seed {seed:x}, {options}, round {round}");
            model.change(&tier, &mut random, 2000);
            model.check_all(&tier, &what);
            let before: Vec<u64> =
                tier.lower.members().iter().map(|member| member.space.live_bytes()).collect();
            moved |= before.iter().any(|&bytes| bytes > 0);
            assert_eq!(number(&tier, "demotion_decompressions"), 0);
            assert_eq!(number(&tier, "damaged_objects"), 0, "{what}");
            let successor = fixture.standby(true);
            drop(tier);
            successor.activate().unwrap();
            model.check_all(&successor, &format!("{what}, the successor"));
            tier = successor;
        }
        assert!(moved, "nothing was moved");
        model.check_all(&tier, "at the end");
        let discarded = model.0.len() as u64;
        tier.discard(0, discarded).unwrap();
        wait_until("what was being moved is let go", || {
            tier.lower.members().iter().all(|member| member.space.live_bytes() == 0)
                && tier.store().pool.arena.live_bytes() == 0
        });
        assert!(
            tier.lower
                .members()
                .iter()
                .all(|member| member.counters.pages.load(Ordering::Relaxed) == 0)
        );
    }
}

/// Writers and readers of their own slots, side by side with everything that moves pages.
#[test]
fn side_by_side() {
    let options = "promote=always,keep=inclusive,high=60,low=40";
    let slots = 1600;
    let fixture =
        Fixture::new(slots, 1 << 20, &[(LOG, 3 << 20, options), (LINEAR, 8 << 20, options)]);
    let tier = fixture.open(false);
    std::thread::scope(|scope| {
        for part in 0..4 {
            let tier = &tier;
            scope.spawn(move || {
                let (first, count) = (part * slots / 4, slots / 4);
                let mut random = Random(0xabc + part);
                let mut model = vec![None; count as usize];
                for step in 0..6000 {
                    let index = random.below(count);
                    let slot = first + index;
                    if random.below(3) == 0 {
                        let key = 1 + random.below(1 << 40);
                        tier.write(slot, &page_of(key)).unwrap();
                        model[index as usize] = Some(key);
                    } else {
                        check(tier, slot, model[index as usize], &format!("step {step}"));
                    }
                }
                for (index, key) in (0..).zip(model) {
                    check(tier, first + index, key, "at the end");
                }
            });
        }
    });
    assert_eq!(number(&tier, "demotion_decompressions"), 0);
}

/// The top is full of cold pages; those that are read all the time stay nevertheless.
#[test]
fn hot_pages_stay_up_when_cold_ones_came_first() {
    let fixture = Fixture::new(4000, 4 << 20, &[(LOG, 32 << 20, "promote=second")]);
    let tier = fixture.open(false);
    let key = |slot: u64| slot * 8 + 3;
    for slot in 0..1000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    let hot = 1000..1200;
    for slot in hot.clone() {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    for slot in 1200..4000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
        if slot % 8 == 0 {
            for hot in hot.clone() {
                check(&tier, hot, Some(key(hot)), "hot");
            }
        }
    }
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    let up = hot.clone().filter(|&slot| tier_of(&tier, slot) == 0).count();
    assert!(up >= 190, "only {up} of 200 hot pages are in the top");
    assert!((0..1000).filter(|&slot| tier_of(&tier, slot) == 0).count() < 200);
}

/// A page that came up and was not changed goes down again for nothing.
#[test]
fn an_inclusive_copy_saves_a_write() {
    let fixture = Fixture::new(3000, 2 << 20, &[(LOG, 16 << 20, "promote=always,keep=inclusive")]);
    let tier = fixture.open(false);
    let key = |slot: u64| slot * 8 + 3;
    for slot in 0..3000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    for round in 0..4 {
        for slot in 0..3000 {
            check(&tier, slot, Some(key(slot)), &format!("round {round}"));
        }
    }
    wait_until("pages go back to their copies", || {
        check(&tier, 5, Some(key(5)), "while waiting");
        number(&tier, "demoted_to_copies_pages") > 100
    });
    // Overwritten and discarded, copies are freed with their pages.
    for slot in 0..1500 {
        tier.write(slot, &page_of(key(slot) + 8)).unwrap();
    }
    tier.discard(1500, 1500).unwrap();
    for slot in 0..1500 {
        check(&tier, slot, Some(key(slot) + 8), "overwritten");
    }
    tier.discard(0, 1500).unwrap();
    wait_until("all is freed", || member_at(&tier, 1).space.live_bytes() == 0);
}

/// Incompressible pages go past a member that does not want them.
#[test]
fn incompressible_pages_skip_a_tier() {
    let fixture = Fixture::new(
        2000,
        1 << 20,
        &[(LOG, 16 << 20, "incompressible=skip"), (LINEAR, 16 << 20, "")],
    );
    let tier = fixture.open(false);
    for slot in 0..2000 {
        // Of eight kinds, the third is random.
        let key = slot * 8 + if slot % 2 == 0 { 2 } else { 3 };
        tier.write(slot, &page_of(key)).unwrap();
    }
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    let mut seen = [0; 3];
    for slot in 0..2000 {
        let order = tier_of(&tier, slot);
        seen[order as usize] += 1;
        assert!(order == 0 || (order == 2) == (slot % 2 == 0), "slot {slot} is in tier {order}");
    }
    assert!(seen[1] > 100 && seen[2] > 100, "{seen:?}");
}

/// A member that is smaller than what it is given has its coldest moved on, and its segments
/// emptied.
#[test]
fn what_is_too_much_goes_on_to_the_next_tier() {
    let fixture =
        Fixture::new(6000, 1 << 20, &[(LOG, 2 << 20, "high=70,low=50"), (LINEAR, 32 << 20, "")]);
    let tier = fixture.open(false);
    for round in 0..3 {
        for slot in 0..6000 {
            tier.write(slot, &page_of(slot * 8 + 3 + round)).unwrap();
        }
    }
    for slot in 0..6000 {
        check(&tier, slot, Some(slot * 8 + 5), "at the end");
    }
    let linear = member_at(&tier, 2);
    assert!(linear.counters.demoted_in_pages.load(Ordering::Relaxed) > 1000);
}

/// Nowhere is room: a write is refused, and nothing is lost.
#[test]
fn a_full_volume_refuses_and_keeps() {
    let fixture = Fixture::new(3000, 1 << 20, &[(LINEAR, 1 << 20, "")]);
    let tier = fixture.open(false);
    let mut written = Vec::new();
    for slot in 0..3000u64 {
        match tier.write(slot, &page_of(slot * 8 + 2)) {
            Ok(()) => written.push(slot),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::NoSpace);
                break;
            }
        }
    }
    assert!((256 + 100..3000).contains(&written.len()), "{}", written.len());
    for &slot in &written {
        check(&tier, slot, Some(slot * 8 + 2), "full");
    }
    tier.discard(0, 200).unwrap();
    tier.write(2999, &page_of(2)).unwrap();
    check(&tier, 2999, Some(2), "after a discard");
}

/// Promotion follows its option.
#[test]
fn promotion_is_as_the_option_says() {
    for (promote, after_first, after_second) in
        [("always", true, true), ("second", false, true), ("never", false, false)]
    {
        let options = format!("promote={promote}");
        let mut fixture = Fixture::new(4000, 4 << 20, &[(LOG, 32 << 20, &options)]);
        // It is always about to go down to the low watermark, so there is no room for nothing.
        (fixture.options.high_percent, fixture.options.low_percent) = (50, 5);
        let tier = fixture.open(false);
        for slot in 0..4000 {
            tier.write(slot, &page_of(slot * 8 + 3)).unwrap();
        }
        wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
        tier.lower.top.low_percent.store(0, Ordering::Relaxed);
        let slot = (0..4000).find(|&slot| tier_of(&tier, slot) == 1).unwrap();
        check(&tier, slot, Some(slot * 8 + 3), "first");
        assert_eq!(tier_of(&tier, slot) == 0, after_first, "{promote}");
        check(&tier, slot, Some(slot * 8 + 3), "second");
        assert_eq!(tier_of(&tier, slot) == 0, after_second, "{promote}");
        check(&tier, slot, Some(slot * 8 + 3), "third");
    }
}
