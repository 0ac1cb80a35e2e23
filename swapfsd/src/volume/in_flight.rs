//! The requests that are under way, and the rule that keeps those apart that must not meet.
//!
//! A request holds its range of slots from before the back end sees it until after it is done.
//! Reads share; a write or discard has its range to itself. A request takes its one range in
//! one step and holds no other, and waits only for requests that came before it, so requests
//! can't wait for each other in a circle, and none waits for ever.
//!
//! The table is a short array that is searched from end to end: with the 128 requests that a
//! loop device has in flight that is far below a microsecond, and it needs no allocation.

use crate::backend::Completion;
use crate::error::Operation;
use crate::sync::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Requests under way at most: FUSE's background requests (256) and those of its threads.
const CAPACITY: usize = 512;

/// What an asynchronous request leaves here until it is done.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) done: Completion,
    pub(super) operation: Operation,
    pub(super) started: Instant,
    pub(super) bytes: u64,
}

/// The right to a range of slots.
#[derive(Debug)]
pub(super) struct Ticket(u32);

impl Ticket {
    pub(super) fn token(&self) -> u64 {
        u64::from(self.0)
    }

    pub(super) fn from_token(token: u64) -> Ticket {
        Ticket(token as u32)
    }
}

#[derive(Debug, Clone, Copy)]
struct Range {
    first: u64,
    end: u64,
    exclusive: bool,
}

impl Range {
    /// The two must not be under way together.
    fn meets(&self, other: &Range) -> bool {
        let overlap = other.first < self.end && self.first < other.end;
        overlap && (self.exclusive || other.exclusive)
    }
}

#[derive(Debug)]
struct State {
    /// Under way, in no order: ticket, the number of its coming, range.
    active: Vec<(u32, u64, Range)>,
    /// Waiting, in the order of their coming, with the number that each was given.
    waiting: Vec<(u64, Range)>,
    next_number: u64,
    pending: Vec<Option<Pending>>,
    free: Vec<u32>,
}

impl State {
    /// Nothing under way, and nobody who waits since before `number`, is in the way of `range`.
    fn may_enter(&self, number: u64, range: &Range) -> bool {
        !self.active.iter().any(|(.., other)| range.meets(other))
            && !self.waiting.iter().any(|(other, earlier)| *other < number && range.meets(earlier))
    }
}

#[derive(Debug)]
pub(super) struct InFlight {
    state: Mutex<State>,
    ended: Condvar,
    count: AtomicUsize,
    ended_total: AtomicU64,
}

impl InFlight {
    pub(super) fn new() -> InFlight {
        let state = State {
            active: Vec::with_capacity(CAPACITY),
            waiting: Vec::with_capacity(CAPACITY),
            next_number: 0,
            pending: (0..CAPACITY).map(|_| None).collect(),
            free: (0..CAPACITY as u32).rev().collect(),
        };
        InFlight {
            state: Mutex::new(state),
            ended: Condvar::new(),
            count: AtomicUsize::new(0),
            ended_total: AtomicU64::new(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Requests that are done, ever.
    pub(super) fn ended_total(&self) -> u64 {
        self.ended_total.load(Ordering::Relaxed)
    }

    /// The number of the oldest request under way: as long as it stays the same, that request is
    /// not done.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.state.lock().active.iter().map(|(_, number, _)| *number).min()
    }

    /// Waits until no request that must not meet this one is under way, then enters it.
    pub(super) fn begin(
        &self,
        first: u64,
        count: u64,
        exclusive: bool,
        pending: Option<Pending>,
    ) -> Ticket {
        let range = Range { first, end: first + count, exclusive };
        let mut state = self.state.lock();
        let number = state.next_number;
        state.next_number += 1;
        if !state.may_enter(number, &range) || state.free.is_empty() {
            // As many threads as serve requests can wait here: far fewer than CAPACITY.
            state.waiting.push((number, range));
            while !state.may_enter(number, &range) || state.free.is_empty() {
                state = self.ended.wait(state);
            }
            state.waiting.retain(|(other, _)| *other != number);
            // Who waited behind this one may share with it.
            self.ended.notify_all();
        }
        let ticket = state.free.pop().unwrap_or_else(|| unreachable!("checked under the lock"));
        state.active.push((ticket, number, range));
        state.pending[ticket as usize] = pending;
        self.count.store(state.active.len(), Ordering::Relaxed);
        Ticket(ticket)
    }

    /// The request is done; answers what it left here.
    pub(super) fn end(&self, ticket: Ticket) -> Option<Pending> {
        let mut state = self.state.lock();
        let position = state.active.iter().position(|(active, ..)| *active == ticket.0)?;
        state.active.swap_remove(position);
        self.ended_total.fetch_add(1, Ordering::Relaxed);
        state.free.push(ticket.0);
        self.count.store(state.active.len(), Ordering::Relaxed);
        let pending = state.pending[ticket.0 as usize].take();
        let waiting = !state.waiting.is_empty();
        drop(state);
        if waiting {
            self.ended.notify_all();
        }
        pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicI64;

    #[test]
    fn reads_share_and_writes_do_not() {
        let flights = InFlight::new();
        let read = flights.begin(0, 4, false, None);
        let other_read = flights.begin(2, 4, false, None);
        let write_behind = flights.begin(6, 1, true, None);
        assert_eq!(flights.len(), 3);
        for ticket in [read, other_read, write_behind] {
            assert!(flights.end(ticket).is_none());
        }
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn a_ticket_that_was_given_back_is_no_right() {
        let flights = InFlight::new();
        let ticket = flights.begin(0, 1, true, None);
        let token = ticket.token();
        flights.end(ticket);
        assert!(flights.end(Ticket::from_token(token)).is_none());
    }

    /// A writer's turn comes although there is never a moment without a reader.
    #[test]
    fn readers_do_not_starve_a_writer() {
        let flights = InFlight::new();
        let held = flights.begin(0, 8, false, None);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| flights.end(flights.begin(4, 1, true, None)));
            while flights.state.lock().waiting.is_empty() {
                std::thread::yield_now();
            }
            // It came after the writer: it waits behind it, though it could share with `held`.
            let reader = scope.spawn(|| flights.end(flights.begin(0, 8, false, None)));
            while flights.state.lock().waiting.len() < 2 {
                std::thread::yield_now();
            }
            // Elsewhere nobody waits.
            flights.end(flights.begin(8, 1, true, None));
            flights.end(held);
            assert!(writer.join().unwrap().is_none() && reader.join().unwrap().is_none());
        });
        assert_eq!(flights.len(), 0);
    }

    /// Threads enter random overlapping ranges; for each slot, the readers and writers inside
    /// are counted: a writer must always find itself alone.
    #[test]
    fn overlapping_requests_never_meet() {
        const SLOTS: u64 = 16;
        let flights = InFlight::new();
        let inside: Vec<AtomicI64> = (0..SLOTS).map(|_| AtomicI64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (flights, inside) = (&flights, &inside);
                scope.spawn(move || {
                    let mut random = 0x9e37_79b9 + thread;
                    for _ in 0..20_000 {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let first = random % SLOTS;
                        let count = 1 + (random >> 8) % (SLOTS - first);
                        let exclusive = (random >> 16) % 2 == 0;
                        let step = if exclusive { -1000 } else { 1 };
                        let ticket = flights.begin(first, count, exclusive, None);
                        for slot in &inside[first as usize..(first + count) as usize] {
                            let before = slot.fetch_add(step, Ordering::SeqCst);
                            assert!(if exclusive { before == 0 } else { before >= 0 });
                        }
                        for slot in &inside[first as usize..(first + count) as usize] {
                            slot.fetch_sub(step, Ordering::SeqCst);
                        }
                        flights.end(ticket);
                    }
                });
            }
        });
        assert_eq!(flights.len(), 0);
    }
}
