//! Small requests that travel together: while as many of them are under way as help, those that come
//! meanwhile wait for each other, and one connection carries them all, by one system call each way.
//! (Journals commit in groups for the same reason.)
//!
//! A request that comes *leads* if few others do: it takes a link, has those board that wait by then,
//! and brings all of them what they asked for. When it is done, the first who waits leads.
//! Nobody waits for long, and nobody is carried twice: who is not brought everything goes alone, in
//! what is left of its own deadline, and after any trouble all go alone for a while, so that a server
//! that fails keeps nobody busy but those who want something of it.

use super::super::Key;
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

/// Objects that a request may ask for to be carried.
pub(super) const MAX_KEYS: usize = 4;
/// Bytes of an object that can be carried.
const VALUE_BYTES: usize = 4096 + 256;
/// Requests that can wait or be carried at a time.
const SEATS: usize = 32;
/// Objects that travel together.
const MAX_TOGETHER: usize = 64;
/// How long a request waits until it is carried.
const WAIT: Duration = Duration::from_millis(20);
/// How long all go alone after trouble.
const ALONE: Duration = Duration::from_secs(1);

/// What of the heap a convoy takes, in bytes.
pub(super) const HEAP_BYTES: usize = SEATS * MAX_KEYS * VALUE_BYTES + (64 << 10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nobody carries it yet.
    Waiting,
    /// Somebody does.
    Carried,
    /// It has all that it asked for.
    Arrived,
    /// It is to lead.
    Leads,
    /// It is to go alone.
    Left,
}

struct State {
    progress: [Progress; SEATS],
    free: Vec<usize>,
    /// Seats of those who wait, in the order of their coming.
    waiting: VecDeque<usize>,
    /// Those who lead.
    leaders: usize,
    alone_until: Option<Instant>,
}

/// What one who is carried asked for, and has got.
struct Baggage {
    keys: [Key; MAX_KEYS],
    count: usize,
    /// How many bytes each object has; `None`: there is none.
    lens: [Option<usize>; MAX_KEYS],
    /// Which are here.
    here: [bool; MAX_KEYS],
    bytes: Box<[u8]>,
}

struct Seat {
    /// Its progress has changed.
    told: Condvar,
    baggage: Mutex<Baggage>,
}

/// Where requests meet.
pub(super) struct Convoy {
    state: Mutex<State>,
    seats: Box<[Seat]>,
    max_leaders: usize,
}

impl fmt::Debug for Convoy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Convoy").field("max_leaders", &self.max_leaders).finish_non_exhaustive()
    }
}

/// How a request goes on.
pub(super) enum Way<'a> {
    Alone,
    Leads(Lead<'a>),
    /// It was carried, and has everything.
    Carried(Arrival<'a>),
}

impl Convoy {
    /// For so many at a time that lead.
    pub(super) fn new(max_leaders: usize) -> Convoy {
        let seat = |_| Seat {
            told: Condvar::new(),
            baggage: Mutex::new(Baggage {
                keys: [Key { slot: 0, number: 0 }; MAX_KEYS],
                count: 0,
                lens: [None; MAX_KEYS],
                here: [false; MAX_KEYS],
                bytes: vec![0; MAX_KEYS * VALUE_BYTES].into_boxed_slice(),
            }),
        };
        let state = State {
            progress: [Progress::Left; SEATS],
            free: (0..SEATS).rev().collect(),
            waiting: VecDeque::with_capacity(SEATS),
            leaders: 0,
            alone_until: None,
        };
        Convoy { state: Mutex::new(state), seats: (0..SEATS).map(seat).collect(), max_leaders }
    }

    /// Has a request lead, or waits until it was carried. `patience` is how long an attempt may
    /// take: who has not that much time until `end` goes alone.
    pub(super) fn join(&self, keys: &[Key], end: Instant, patience: Duration) -> Way<'_> {
        let begun = Instant::now();
        if keys.len() > MAX_KEYS || end.saturating_duration_since(begun) < patience + WAIT {
            return Way::Alone;
        }
        let mut state = self.state.lock();
        match state.alone_until {
            Some(until) if begun < until => return Way::Alone,
            Some(_) => state.alone_until = None,
            None => {}
        }
        if state.leaders < self.max_leaders {
            state.leaders += 1;
            return Way::Leads(Lead::new(self));
        }
        let Some(seat) = state.free.pop() else { return Way::Alone };
        self.seats[seat].baggage.lock().pack(keys);
        state.progress[seat] = Progress::Waiting;
        state.waiting.push_back(seat);
        loop {
            match state.progress[seat] {
                Progress::Waiting => {
                    let waited = begun.elapsed();
                    if waited >= WAIT {
                        state.waiting.retain(|waiting| *waiting != seat);
                        state.free.push(seat);
                        return Way::Alone;
                    }
                    state = self.seats[seat].told.wait_timeout(state, WAIT - waited);
                }
                // Whoever carries it has a deadline.
                Progress::Carried => state = self.seats[seat].told.wait(state),
                Progress::Arrived => return Way::Carried(Arrival { convoy: self, seat }),
                Progress::Leads => {
                    state.free.push(seat);
                    return Way::Leads(Lead::new(self));
                }
                Progress::Left => {
                    state.free.push(seat);
                    return Way::Alone;
                }
            }
        }
    }

    /// Something went wrong: requests go alone for a while.
    pub(super) fn disperse(&self) {
        self.state.lock().alone_until = Some(Instant::now() + ALONE);
    }

    /// All is well again.
    #[cfg(test)]
    pub(super) fn gather(&self) {
        self.state.lock().alone_until = None;
    }
}

impl Baggage {
    fn pack(&mut self, keys: &[Key]) {
        self.keys[..keys.len()].copy_from_slice(keys);
        self.count = keys.len();
        (self.lens, self.here) = ([None; MAX_KEYS], [false; MAX_KEYS]);
    }

    /// Takes what is stored for a key; false: there is no room for that much.
    fn take(&mut self, index: usize, value: Option<&[u8]>) -> bool {
        self.lens[index] = value.map(<[u8]>::len);
        if let Some(value) = value {
            let room = &mut self.bytes[index * VALUE_BYTES..][..VALUE_BYTES];
            let Some(to) = room.get_mut(..value.len()) else { return false };
            to.copy_from_slice(value);
        }
        self.here[index] = true;
        true
    }

    fn is_complete(&self) -> bool {
        self.here[..self.count].iter().all(|here| *here)
    }
}

struct Passenger {
    seat: usize,
    arrived: bool,
}

/// A request that leads. When this ends, those it has not brought everything go alone, and the first
/// who waits leads.
pub(super) struct Lead<'a> {
    convoy: &'a Convoy,
    passengers: Vec<Passenger>,
    /// Of each object that they want, whose it is, and its index there.
    wanted: Vec<(usize, usize)>,
}

impl<'a> Lead<'a> {
    fn new(convoy: &'a Convoy) -> Lead<'a> {
        Lead { convoy, passengers: Vec::new(), wanted: Vec::new() }
    }

    /// Has those board that wait, if they fit beside `own` objects, and answers their keys.
    pub(super) fn board(&mut self, own: usize) -> Vec<Key> {
        let mut keys = Vec::with_capacity(MAX_TOGETHER);
        let mut state = self.convoy.state.lock();
        while let Some(&seat) = state.waiting.front() {
            let baggage = self.convoy.seats[seat].baggage.lock();
            if own + keys.len() + baggage.count > MAX_TOGETHER {
                break;
            }
            state.waiting.pop_front();
            state.progress[seat] = Progress::Carried;
            keys.extend_from_slice(&baggage.keys[..baggage.count]);
            self.wanted.extend((0..baggage.count).map(|index| (self.passengers.len(), index)));
            self.passengers.push(Passenger { seat, arrived: false });
        }
        keys
    }

    /// Brings an object to who wants it, by its place among the keys of those that boarded.
    pub(super) fn deliver(&mut self, place: usize, value: Option<&[u8]>) {
        let Some(&(passenger, index)) = self.wanted.get(place) else { return };
        let Passenger { seat, arrived } = &mut self.passengers[passenger];
        let mut baggage = self.convoy.seats[*seat].baggage.lock();
        if baggage.take(index, value) && baggage.is_complete() {
            drop(baggage);
            // From then on another one may sit there.
            *arrived = true;
            self.convoy.state.lock().progress[*seat] = Progress::Arrived;
            self.convoy.seats[*seat].told.notify_one();
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut state = self.convoy.state.lock();
        let next = state.waiting.pop_front();
        match next {
            Some(seat) => state.progress[seat] = Progress::Leads,
            None => state.leaders -= 1,
        }
        let left = || self.passengers.iter().filter(|passenger| !passenger.arrived);
        for passenger in left() {
            state.progress[passenger.seat] = Progress::Left;
        }
        drop(state);
        for seat in next.into_iter().chain(left().map(|passenger| passenger.seat)) {
            self.convoy.seats[seat].told.notify_one();
        }
    }
}

/// A request that was carried.
pub(super) struct Arrival<'a> {
    convoy: &'a Convoy,
    seat: usize,
}

impl Arrival<'_> {
    /// What it asked for.
    pub(super) fn unpack(&self, each: &mut dyn FnMut(usize, Option<&[u8]>)) {
        let baggage = self.convoy.seats[self.seat].baggage.lock();
        for index in 0..baggage.count {
            let from = &baggage.bytes[index * VALUE_BYTES..];
            each(index, baggage.lens[index].and_then(|len| from.get(..len)));
        }
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        self.convoy.state.lock().free.push(self.seat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const LONG: Duration = Duration::from_secs(60);
    const PATIENCE: Duration = Duration::from_millis(100);

    fn key(slot: u64) -> Key {
        Key { slot, number: 7 * slot }
    }

    /// What is stored for a key: nothing for some.
    fn stored(key: Key) -> Option<Vec<u8>> {
        let len = (key.slot * 37 % VALUE_BYTES as u64) as usize;
        (!key.slot.is_multiple_of(11)).then(|| vec![key.number as u8; len])
    }

    fn join<'a>(convoy: &'a Convoy, keys: &[Key]) -> Way<'a> {
        convoy.join(keys, Instant::now() + LONG, PATIENCE)
    }

    fn lead<'a>(convoy: &'a Convoy) -> Lead<'a> {
        match join(convoy, &[key(1)]) {
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

    /// Joins, again if it had to go alone since it waited too long: a test's leader may be slow.
    fn be_carried(convoy: &Convoy, keys: &[Key]) -> Vec<Option<Vec<u8>>> {
        loop {
            match join(convoy, keys) {
                Way::Alone => {}
                Way::Leads(_) => panic!("it leads"),
                Way::Carried(arrival) => {
                    let mut got = Vec::new();
                    arrival.unpack(&mut |index, value| {
                        assert_eq!(index, got.len());
                        got.push(value.map(<[u8]>::to_vec));
                    });
                    return got;
                }
            }
        }
    }

    #[test]
    fn those_who_wait_are_brought_what_they_want() {
        let convoy = Convoy::new(1);
        let wanted: Vec<Vec<Key>> = vec![vec![key(2), key(11), key(3)], vec![key(4)]];
        std::thread::scope(|scope| {
            let mut leader = lead(&convoy);
            let passengers: Vec<_> = wanted
                .iter()
                .map(|keys| {
                    let convoy = &convoy;
                    scope.spawn(move || be_carried(convoy, keys))
                })
                .collect();
            let mut boarded = Vec::new();
            while passengers.iter().any(|passenger| !passenger.is_finished()) {
                let before = boarded.len();
                boarded.extend(leader.board(1));
                // In any order.
                for place in (before..boarded.len()).rev() {
                    leader.deliver(place, stored(boarded[place]).as_deref());
                }
            }
            for (keys, passenger) in wanted.iter().zip(passengers) {
                let expected: Vec<_> = keys.iter().map(|key| stored(*key)).collect();
                assert_eq!(passenger.join().unwrap(), expected);
            }
        });
        assert_empty(&convoy);
    }

    #[test]
    fn who_is_not_brought_everything_goes_alone() {
        let convoy = Convoy::new(1);
        let long = vec![0; VALUE_BYTES + 1];
        // Nothing, half of it, and too much of it.
        for values in [&[][..], &[Some(&b"one"[..])], &[None, Some(&long[..])]] {
            std::thread::scope(|scope| {
                let mut leader = lead(&convoy);
                let passenger = scope.spawn(|| match join(&convoy, &[key(2), key(3)]) {
                    Way::Alone => true,
                    Way::Leads(_) | Way::Carried(_) => false,
                });
                until_waiting(&convoy, 1);
                assert_eq!(leader.board(1), [key(2), key(3)]);
                for (place, value) in values.iter().enumerate() {
                    leader.deliver(place, *value);
                }
                drop(leader);
                assert!(passenger.join().unwrap());
            });
            assert_empty(&convoy);
        }
    }

    #[test]
    fn the_first_who_waits_leads_next() {
        let convoy = Convoy::new(1);
        std::thread::scope(|scope| {
            let leader = lead(&convoy);
            let next = scope.spawn(|| matches!(join(&convoy, &[key(2)]), Way::Leads(_)));
            until_waiting(&convoy, 1);
            drop(leader);
            assert!(next.join().unwrap());
        });
        assert_empty(&convoy);
    }

    #[test]
    fn nobody_waits_for_long() {
        let convoy = Convoy::new(1);
        let _leader = lead(&convoy);
        let is_alone = |way: Way<'_>| matches!(way, Way::Alone);
        assert!(is_alone(join(&convoy, &[key(2)])));
        // What has no time for two attempts does not even begin to wait, nor what asks for much.
        let soon = Instant::now() + PATIENCE;
        assert!(is_alone(convoy.join(&[key(2)], soon, PATIENCE)));
        assert!(is_alone(join(&convoy, &[key(2); MAX_KEYS + 1])));
        let state = convoy.state.lock();
        assert_eq!((state.waiting.len(), state.free.len()), (0, SEATS));
    }

    #[test]
    fn after_trouble_all_go_alone_for_a_while() {
        let convoy = Convoy::new(2);
        drop(lead(&convoy));
        convoy.disperse();
        assert!(matches!(join(&convoy, &[key(2)]), Way::Alone));
        convoy.gather();
        drop(lead(&convoy));
        assert_empty(&convoy);
    }

    #[test]
    fn so_many_fit_and_no_more() {
        let convoy = Convoy::new(1);
        let stop = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let mut leader = lead(&convoy);
            for passenger in 0..SEATS as u64 - 1 {
                let (convoy, stop) = (&convoy, &stop);
                scope.spawn(move || {
                    while stop.load(Ordering::Relaxed) == 0 {
                        drop(join(convoy, &[key(4 * passenger); MAX_KEYS]));
                    }
                });
            }
            until_waiting(&convoy, MAX_TOGETHER / MAX_KEYS + 1);
            let boarded = leader.board(1);
            assert!(boarded.len() < MAX_TOGETHER && boarded.len().is_multiple_of(MAX_KEYS));
            stop.store(1, Ordering::Relaxed);
            drop(leader);
        });
        assert_empty(&convoy);
    }

    /// Many threads, leaders that bring all, some or nothing: everybody ends, with what is right.
    #[test]
    fn nobody_is_left_behind() {
        let convoy = Convoy::new(2);
        let carried = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..12u64 {
                let (convoy, carried) = (&convoy, &carried);
                scope.spawn(move || {
                    for round in 0..400u64 {
                        let first = thread * 10_000 + round * 4;
                        let count = 1 + (round % MAX_KEYS as u64);
                        let keys: Vec<Key> = (first..first + count).map(key).collect();
                        match join(convoy, &keys) {
                            Way::Alone => {}
                            Way::Leads(mut leader) => {
                                std::thread::yield_now();
                                let boarded = leader.board(keys.len());
                                // Every fourth leader fails half way.
                                let end = match round % 4 {
                                    0 => boarded.len() / 2,
                                    _ => boarded.len(),
                                };
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
                    }
                });
            }
        });
        println!("{} were carried", carried.load(Ordering::Relaxed));
        assert_empty(&convoy);
    }
}
