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
/// How long a request waits until it is carried, and one that leads until there is a link.
pub(super) const WAIT: Duration = Duration::from_millis(20);
/// How long all go alone after trouble.
const ALONE: Duration = Duration::from_secs(1);

/// How long all go alone after somebody has waited in vain.
const SHORTLY: Duration = Duration::from_millis(200);

/// What of the heap a convoy takes, in bytes: its blocks are powers of two.
pub(super) const HEAP_BYTES: usize =
    SEATS * (MAX_KEYS * VALUE_BYTES).next_power_of_two() + (64 << 10);

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
    wait: Duration,
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
    /// For so many at a time that lead; others wait for so long.
    pub(super) fn new(max_leaders: usize, wait: Duration) -> Convoy {
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
        Convoy {
            state: Mutex::new(state),
            seats: (0..SEATS).map(seat).collect(),
            max_leaders,
            wait,
        }
    }

    /// Has a request lead, or waits until it was carried. Who may not want to wait for the attempt
    /// of another one does not call this.
    pub(super) fn join(&self, keys: &[Key]) -> Way<'_> {
        let begun = Instant::now();
        if keys.len() > MAX_KEYS {
            return Way::Alone;
        }
        let mut state = self.state.lock();
        if state.is_dispersed(begun) {
            return Way::Alone;
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
                    if waited >= self.wait {
                        state.waiting.retain(|waiting| *waiting != seat);
                        state.free.push(seat);
                        // The others need not find out by themselves that all who lead are held up.
                        state.disperse(SHORTLY);
                        return Way::Alone;
                    }
                    state = self.seats[seat].told.wait_timeout(state, self.wait - waited);
                }
                // Whoever carries it has a deadline, and does nothing else meanwhile.
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
        self.state.lock().disperse(ALONE);
    }

    /// All is well again.
    #[cfg(test)]
    pub(super) fn gather(&self) {
        self.state.lock().alone_until = None;
    }
}

impl State {
    fn disperse(&mut self, how_long: Duration) {
        let until = Instant::now() + how_long;
        self.alone_until = Some(self.alone_until.map_or(until, |before| before.max(until)));
    }

    /// Do all go alone?
    fn is_dispersed(&mut self, now: Instant) -> bool {
        if self.alone_until.is_some_and(|until| now >= until) {
            self.alone_until = None;
        }
        self.alone_until.is_some()
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
    /// Another one may sit there now.
    is_gone: bool,
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
            self.passengers.push(Passenger { seat, is_gone: false });
        }
        keys
    }

    /// Brings an object to who wants it, by its place among the keys of those that boarded.
    pub(super) fn deliver(&mut self, place: usize, value: Option<&[u8]>) {
        let Some(&(passenger, index)) = self.wanted.get(place) else { return };
        let Passenger { seat, is_gone } = &mut self.passengers[passenger];
        if *is_gone {
            return;
        }
        let mut baggage = self.convoy.seats[*seat].baggage.lock();
        let progress = match baggage.take(index, value) {
            false => Progress::Left,
            true if baggage.is_complete() => Progress::Arrived,
            true => return,
        };
        drop(baggage);
        *is_gone = true;
        self.convoy.state.lock().progress[*seat] = progress;
        self.convoy.seats[*seat].told.notify_one();
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut state = self.convoy.state.lock();
        let is_dispersed = state.is_dispersed(Instant::now());
        // It may be many: they are told after the lock was given up.
        let mut to_tell = [0; SEATS];
        let mut count = 0;
        let mut tell = |seat| {
            to_tell[count] = seat;
            count += 1;
        };
        while is_dispersed && let Some(seat) = state.waiting.pop_front() {
            state.progress[seat] = Progress::Left;
            tell(seat);
        }
        match state.waiting.pop_front() {
            Some(seat) => {
                state.progress[seat] = Progress::Leads;
                tell(seat);
            }
            None => state.leaders -= 1,
        }
        for passenger in self.passengers.iter().filter(|passenger| !passenger.is_gone) {
            state.progress[passenger.seat] = Progress::Left;
            tell(passenger.seat);
        }
        drop(state);
        for seat in &to_tell[..count] {
            self.convoy.seats[*seat].told.notify_one();
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
mod tests;
