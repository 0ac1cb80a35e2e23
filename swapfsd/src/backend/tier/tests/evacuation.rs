//! Tiers that are emptied while they are in use.

use super::record::{Direction, Order};
use super::*;
use member::State;

const LOG: MemberKind = MemberKind::Log;
const LINEAR: MemberKind = MemberKind::Linear;

fn evacuate(tier: &Tier, place: usize, direction: Direction) {
    tier.lower.records.set_evacuation(Some(Order { place, direction, rate_bytes: 0 }));
    tier.lower.wake();
}

#[test]
fn a_tier_is_emptied_under_load() {
    for (place, direction) in [(0, Direction::Down), (1, Direction::Up), (0, Direction::Auto)] {
        let fixture = Fixture::new(
            2500,
            1 << 20,
            &[
                (LOG, 8 << 20, "promote=always,keep=inclusive"),
                (LINEAR, 16 << 20, "promote=always"),
            ],
        );
        let (mut model, mut random) = (Model::new(2500), Random(0xe7ac));
        let tier = fixture.open(false);
        for round in 0..4 {
            model.change(&tier, &mut random, 2000);
            model.check_all(&tier, &format!("round {round}"));
        }
        evacuate(&tier, place, direction);
        wait_until("it is gone", || {
            model.change(&tier, &mut random, 50);
            tier.lower.at(place).is_none()
        });
        assert!(!tier.lower.records.at(place).is_in_use());
        model.change(&tier, &mut random, 500);
        model.check_all(&tier, "afterwards");
        // Nothing names it any more, and a successor knows.
        let successor = fixture.standby(true);
        drop(tier);
        successor.activate().unwrap();
        assert!(successor.lower.at(place).is_none());
        model.check_all(&successor, "the successor");
    }
}

#[test]
fn an_evacuation_goes_on_after_a_death_and_can_be_called_off() {
    let fixture = Fixture::new(4000, 1 << 20, &[(LOG, 16 << 20, ""), (LINEAR, 32 << 20, "")]);
    let key = |slot: u64| slot * 8 + 3;
    let tier = fixture.open(false);
    for slot in 0..4000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("the top has room", || !tier.lower.over.load(Ordering::Relaxed));
    let order = Order { place: 0, direction: Direction::Down, rate_bytes: 256 << 10 };
    tier.lower.records.set_evacuation(Some(order));
    wait_until("it has begun", || member_at(&tier, 1).state() == State::Evacuating);
    let successor = fixture.standby(true);
    drop(tier);
    successor.activate().unwrap();
    let log = member_at(&successor, 1);
    wait_until("the successor goes on", || log.state() == State::Evacuating);
    // Called off, it takes pages again.
    successor.lower.records.set_evacuation(None);
    wait_until("it takes pages again", || log.state() == State::Ok);
    for slot in 0..4000 {
        check(&successor, slot, Some(key(slot)), "called off");
    }
    evacuate(&successor, 0, Direction::Auto);
    wait_until("it is gone", || successor.lower.at(0).is_none());
    for slot in 0..4000 {
        check(&successor, slot, Some(key(slot)), "at the end");
    }
}

/// The supervisor starts a successor as soon as it holds a new member, which is published after that.
#[test]
fn a_successor_that_was_made_before_a_member_was_published_has_it() {
    let fixture = Fixture::new(4000, 1 << 20, &[(LOG, 2 << 20, ""), (LINEAR, 32 << 20, "")]);
    let tier = fixture.open(false);
    evacuate(&tier, 1, Direction::Auto);
    wait_until("it is gone", || tier.lower.at(1).is_none());
    let (memory, setup) = &fixture.devices[1];
    fixture.shelf.0.lock().push(("there".to_owned(), Arc::clone(memory), setup.clone()));
    let successor = fixture.standby(true);
    assert!(successor.lower.at(1).is_none());
    let request = crate::admin::Request::Add { image: "there".into() };
    tier.administration().unwrap().handle(&request, &mut |_| true).unwrap();
    let key = |slot: u64| slot * 8 + 2;
    for slot in 0..1000 {
        tier.write(slot, &page_of(key(slot))).unwrap();
    }
    wait_until("pages on it", || (0..1000).any(|slot| tier_of(&tier, slot) == 2));
    drop(tier);
    successor.activate().unwrap();
    for slot in 0..1000 {
        check(&successor, slot, Some(key(slot)), "the successor");
    }
    // And its pages move as those of any other.
    evacuate(&successor, 0, Direction::Down);
    wait_until("it is gone", || successor.lower.at(0).is_none());
    assert!((0..1000).any(|slot| tier_of(&successor, slot) == 2));
}
