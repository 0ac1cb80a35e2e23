//! A bounded queue of records without a lock: many threads put in, one takes out.
//!
//! Without a lock, because the threads that put in are real-time tasks and the one that takes out
//! is an ordinary one: it could be kept from a processor while it held a lock that requests wait
//! for. Each place has a turn that says whose it is: the position that it is free for, or that
//! position plus one once there is something in it (D. Vyukov's bounded queue).

use std::sync::atomic::{AtomicU64, Ordering};
use swapfs_format::trace::{RECORD_LEN, Record};

const WORDS: usize = RECORD_LEN / 8;

#[derive(Debug)]
struct Place {
    turn: AtomicU64,
    /// Plain atomics, so that no access is undefined, whoever is too early or too late.
    words: [AtomicU64; WORDS],
}

/// The queue.
#[derive(Debug)]
pub(super) struct Ring {
    places: Box<[Place]>,
    /// The next position to put in at.
    next_in: AtomicU64,
    /// The next position to take out at.
    next_out: AtomicU64,
}

impl Ring {
    /// Room for `capacity` records, a power of two; all of the memory is touched.
    pub(super) fn new(capacity: usize) -> Ring {
        assert!(capacity.is_power_of_two());
        let place = |position| Place {
            turn: AtomicU64::new(position),
            words: [const { AtomicU64::new(0) }; WORDS],
        };
        let places = (0..capacity as u64).map(place).collect();
        Ring { places, next_in: AtomicU64::new(0), next_out: AtomicU64::new(0) }
    }

    fn place(&self, position: u64) -> &Place {
        &self.places[(position & (self.places.len() as u64 - 1)) as usize]
    }

    /// False: there was no room.
    pub(super) fn push(&self, record: &Record) -> bool {
        let mut position = self.next_in.load(Ordering::Relaxed);
        loop {
            let place = self.place(position);
            let turn = place.turn.load(Ordering::Acquire);
            if turn == position {
                let taken = self.next_in.compare_exchange_weak(
                    position,
                    position + 1,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                match taken {
                    Ok(_) => {
                        let bytes = record.encode();
                        for (word, bytes) in place.words.iter().zip(bytes.chunks_exact(8)) {
                            let bytes = bytes.first_chunk().copied().unwrap_or_default();
                            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
                        }
                        place.turn.store(position + 1, Ordering::Release);
                        return true;
                    }
                    Err(now) => position = now,
                }
            } else if turn < position {
                // Still the record of a round ago.
                return false;
            } else {
                position = self.next_in.load(Ordering::Relaxed);
            }
        }
    }

    /// The oldest record; for one thread only. `None`: none, or whoever is next has not finished.
    pub(super) fn pop(&self) -> Option<Record> {
        let position = self.next_out.load(Ordering::Relaxed);
        let place = self.place(position);
        if place.turn.load(Ordering::Acquire) != position + 1 {
            return None;
        }
        let mut bytes = [0; RECORD_LEN];
        for (word, bytes) in place.words.iter().zip(bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        place.turn.store(position + self.places.len() as u64, Ordering::Release);
        self.next_out.store(position + 1, Ordering::Relaxed);
        Record::decode(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swapfs_format::trace::RecordKind;

    fn record(number: u64) -> Record {
        Record {
            kind: RecordKind::Write,
            start_ns: number,
            duration_ns: number % 1000,
            offset_bytes: number << 12,
            length_bytes: 4096,
        }
    }

    #[test]
    fn what_goes_in_comes_out_in_order_and_no_more_than_there_is_room() {
        let ring = Ring::new(4);
        for round in 0..5 {
            let first = round * 10;
            assert!((first..first + 4).all(|number| ring.push(&record(number))));
            assert!(!ring.push(&record(99)));
            assert_eq!(ring.pop(), Some(record(first)));
            assert!(ring.push(&record(first + 4)));
            for number in first + 1..first + 5 {
                assert_eq!(ring.pop(), Some(record(number)));
            }
            assert_eq!(ring.pop(), None);
        }
    }

    #[test]
    fn many_threads_lose_nothing_that_was_taken() {
        const THREADS: u64 = 4;
        const EACH: u64 = 20_000;
        let ring = Ring::new(64);
        let pushed = AtomicU64::new(0);
        let running = AtomicU64::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (ring, pushed, running) = (&ring, &pushed, &running);
                scope.spawn(move || {
                    for number in 0..EACH {
                        let taken = ring.push(&record(thread << 32 | number));
                        pushed.fetch_add(u64::from(taken), Ordering::SeqCst);
                    }
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
            let mut last = [None; THREADS as usize];
            let mut popped = 0;
            loop {
                let ended = running.load(Ordering::SeqCst) == 0;
                while let Some(found) = ring.pop() {
                    assert_eq!(found, record(found.start_ns), "whole");
                    let (thread, number) = (found.start_ns >> 32, found.start_ns & 0xffff_ffff);
                    assert!(last[thread as usize] < Some(number), "in the thread's order");
                    last[thread as usize] = Some(number);
                    popped += 1;
                }
                if ended {
                    break;
                }
            }
            assert_eq!(popped, pushed.load(Ordering::SeqCst));
        });
    }
}
