//! Convoys without a server: the tests' threads lead, and bring what they like.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// As good as for ever: no test depends on how quick its threads are.
const LONG: Duration = Duration::from_secs(3600);

fn key(slot: u64) -> Key {
    Key { slot, number: 7 * slot }
}

/// What is stored for a key: nothing for some.
fn stored(key: Key) -> Option<Vec<u8>> {
    let len = (key.slot * 37 % VALUE_BYTES as u64) as usize;
    (!key.slot.is_multiple_of(11)).then(|| vec![key.number as u8; len])
}

fn lead(convoy: &Convoy) -> Lead<'_> {
    match convoy.join(&[key(1)]) {
        Way::Leads(lead) => lead,
        Way::Alone | Way::Carried(_) => panic!("it does not lead"),
    }
}

/// Nobody is under way, and no seat is lost.
fn assert_empty(convoy: &Convoy) {
    let state = convoy.state.lock();
    assert_eq!((state.leaders, state.waiting.len(), state.free.len()), (0, 0, SEATS));
}

/// Waits until so many wait.
fn until_waiting(convoy: &Convoy, count: usize) {
    while convoy.state.lock().waiting.len() < count {
        std::thread::yield_now();
    }
}

/// What it was brought; `None`: it goes alone.
fn be_carried(convoy: &Convoy, keys: &[Key]) -> Option<Vec<Option<Vec<u8>>>> {
    match convoy.join(keys) {
        Way::Alone => None,
        Way::Leads(_) => panic!("it leads"),
        Way::Carried(arrival) => {
            let mut got = Vec::new();
            arrival.unpack(&mut |index, value| {
                assert_eq!(index, got.len());
                got.push(value.map(<[u8]>::to_vec));
            });
            Some(got)
        }
    }
}

#[test]
fn those_who_wait_are_brought_what_they_want() {
    let convoy = Convoy::new(1, LONG);
    let wanted: Vec<Vec<Key>> = vec![vec![key(2), key(11), key(3)], vec![key(4)], vec![key(2); 2]];
    std::thread::scope(|scope| {
        let mut leader = lead(&convoy);
        let carry = |keys| be_carried(&convoy, keys);
        let passengers: Vec<_> =
            wanted.iter().map(|keys| scope.spawn(move || carry(keys))).collect();
        until_waiting(&convoy, wanted.len());
        let boarded = leader.board(1);
        // In any order.
        for place in (0..boarded.len()).rev() {
            leader.deliver(place, stored(boarded[place]).as_deref());
        }
        for (keys, passenger) in wanted.iter().zip(passengers) {
            let expected: Vec<_> = keys.iter().map(|key| stored(*key)).collect();
            assert_eq!(passenger.join().unwrap(), Some(expected));
        }
    });
    assert_empty(&convoy);
}

#[test]
fn who_is_not_brought_everything_goes_alone() {
    let convoy = Convoy::new(1, LONG);
    let long = vec![0; VALUE_BYTES + 1];
    // Nothing, half of it, and too much of it.
    for values in [&[][..], &[Some(&b"one"[..])], &[Some(&long[..]), None]] {
        std::thread::scope(|scope| {
            let mut leader = lead(&convoy);
            let passenger = scope.spawn(|| be_carried(&convoy, &[key(2), key(3)]));
            until_waiting(&convoy, 1);
            assert_eq!(leader.board(1), [key(2), key(3)]);
            for (place, value) in values.iter().enumerate() {
                leader.deliver(place, *value);
            }
            drop(leader);
            assert_eq!(passenger.join().unwrap(), None);
        });
        assert_empty(&convoy);
    }
}

#[test]
fn what_is_too_long_is_told_at_once() {
    let convoy = Convoy::new(1, LONG);
    std::thread::scope(|scope| {
        let mut leader = lead(&convoy);
        let passenger = scope.spawn(|| be_carried(&convoy, &[key(2), key(3)]));
        until_waiting(&convoy, 1);
        leader.board(1);
        leader.deliver(1, Some(&vec![0; VALUE_BYTES + 1]));
        // While it is led on.
        assert_eq!(passenger.join().unwrap(), None);
        leader.deliver(0, None);
        drop(leader);
    });
    assert_empty(&convoy);
}

#[test]
fn a_leader_that_panics_leaves_nobody_behind() {
    let convoy = Convoy::new(1, LONG);
    std::thread::scope(|scope| {
        let leader = lead(&convoy);
        let passengers = [2, 3].map(|slot| {
            scope.spawn({
                let convoy = &convoy;
                move || matches!(convoy.join(&[key(slot)]), Way::Leads(_) | Way::Alone)
            })
        });
        until_waiting(&convoy, 2);
        let panics = scope.spawn(move || {
            let mut leader = leader;
            leader.board(MAX_TOGETHER - 1);
            panic!("on purpose");
        });
        assert!(panics.join().is_err());
        for passenger in passengers {
            assert!(passenger.join().unwrap());
        }
    });
    assert_empty(&convoy);
}

#[test]
fn the_first_who_waits_leads_next() {
    let convoy = Convoy::new(1, LONG);
    std::thread::scope(|scope| {
        let leader = lead(&convoy);
        let next = scope.spawn(|| matches!(convoy.join(&[key(2)]), Way::Leads(_)));
        until_waiting(&convoy, 1);
        drop(leader);
        assert!(next.join().unwrap());
    });
    assert_empty(&convoy);
}

#[test]
fn who_waits_in_vain_goes_alone_and_so_do_all_for_a_while() {
    let convoy = Convoy::new(1, Duration::from_millis(5));
    let leader = lead(&convoy);
    assert_eq!(be_carried(&convoy, &[key(2)]), None);
    let state = convoy.state.lock();
    assert!(state.alone_until.is_some());
    assert_eq!((state.waiting.len(), state.free.len()), (0, SEATS));
    drop(state);
    drop(leader);
    assert_empty(&convoy);
}

#[test]
fn after_trouble_all_go_alone_for_a_while() {
    let convoy = Convoy::new(1, LONG);
    std::thread::scope(|scope| {
        let leader = lead(&convoy);
        let passengers = [2, 3].map(|slot| {
            let convoy = &convoy;
            scope.spawn(move || be_carried(convoy, &[key(slot)]))
        });
        until_waiting(&convoy, 2);
        convoy.state.lock().disperse(LONG);
        drop(leader);
        // They don't lead either.
        for passenger in passengers {
            assert_eq!(passenger.join().unwrap(), None);
        }
    });
    assert!(matches!(convoy.join(&[key(2)]), Way::Alone));
    convoy.gather();
    drop(lead(&convoy));
    assert_empty(&convoy);
}

#[test]
fn what_asks_for_much_goes_alone() {
    assert!(matches!(Convoy::new(1, LONG).join(&[key(2); MAX_KEYS + 1]), Way::Alone));
}

#[test]
fn so_many_fit_and_no_more() {
    let convoy = Convoy::new(1, LONG);
    std::thread::scope(|scope| {
        let mut leader = lead(&convoy);
        for passenger in 0..SEATS as u64 {
            let convoy = &convoy;
            scope.spawn(move || drop(convoy.join(&[key(4 * passenger); MAX_KEYS])));
        }
        until_waiting(&convoy, SEATS);
        // No seat is free.
        let is_alone = matches!(convoy.join(&[key(2)]), Way::Alone);
        let boarded = leader.board(1).len();
        drop(leader);
        assert!(is_alone);
        assert_eq!(boarded, MAX_TOGETHER - MAX_KEYS);
    });
    assert_empty(&convoy);
}

/// Many threads, leaders that bring all, some or nothing: everybody ends, with what is right.
#[test]
fn nobody_is_left_behind() {
    let convoy = Convoy::new(2, LONG);
    let (led, carried) = (AtomicU64::new(0), AtomicU64::new(0));
    let one = |thread: u64, round: u64| {
        let first = thread * 10_000 + round * 4;
        let count = 1 + (round % MAX_KEYS as u64);
        let keys: Vec<Key> = (first..first + count).map(key).collect();
        match convoy.join(&keys) {
            Way::Alone => {}
            Way::Leads(mut leader) => {
                led.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
                let boarded = leader.board(keys.len());
                // Every fourth leader fails half way.
                let end = if round.is_multiple_of(4) { boarded.len() / 2 } else { boarded.len() };
                for (place, key) in boarded[..end].iter().enumerate() {
                    leader.deliver(place, stored(*key).as_deref());
                }
            }
            Way::Carried(arrival) => {
                carried.fetch_add(1, Ordering::Relaxed);
                let mut seen = 0;
                arrival.unpack(&mut |index, value| {
                    seen += 1;
                    assert_eq!(value, stored(keys[index]).as_deref());
                });
                assert_eq!(seen, keys.len());
            }
        }
    };
    // Rounds until both have been seen: on one processor it may take some.
    while led.load(Ordering::Relaxed) == 0 || carried.load(Ordering::Relaxed) < 100 {
        std::thread::scope(|scope| {
            for thread in 0..12 {
                let one = &one;
                scope.spawn(move || (0..400).for_each(|round| one(thread, round)));
            }
        });
        assert_empty(&convoy);
    }
}
