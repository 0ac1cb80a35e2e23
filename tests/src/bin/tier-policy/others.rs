//! What the tier's policy is compared with.

use crate::replay::{Room, TopTier};
use crate::trace::{Kind, Op};
use std::collections::BinaryHeap;
use swapfs_tests::rng::Rng;

const NONE: u32 = u32::MAX;

/// Pages in an order: the newest first, the next to go last.
struct Queue {
    newer: Vec<u32>,
    older: Vec<u32>,
    newest: u32,
    oldest: u32,
}

impl Queue {
    fn new(slots: u32) -> Queue {
        let links = vec![NONE; slots as usize];
        Queue { newer: links.clone(), older: links, newest: NONE, oldest: NONE }
    }

    fn push(&mut self, slot: u32) {
        self.newer[slot as usize] = NONE;
        self.older[slot as usize] = self.newest;
        match self.newest {
            NONE => self.oldest = slot,
            newest => self.newer[newest as usize] = slot,
        }
        self.newest = slot;
    }

    fn remove(&mut self, slot: u32) {
        let (newer, older) = (self.newer[slot as usize], self.older[slot as usize]);
        match newer {
            NONE => self.newest = older,
            newer => self.older[newer as usize] = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.newer[older as usize] = newer,
        }
    }
}

/// What a touch of a page in the queue does to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// It is the newest again: exact LRU.
    Touched,
    /// Nothing, only a write makes it the newest: FIFO, the order of writing.
    Written,
    /// As before; but a page that was read goes round once more when its turn has come: CLOCK
    /// (Corbato, "A paging experiment with the Multics system", 1968).
    WrittenSecondChance,
}

/// LRU, FIFO, and FIFO with a second chance.
pub(crate) struct Queued {
    order: Order,
    room: Room,
    queue: Queue,
    is_top: Vec<bool>,
    was_read: Vec<bool>,
    pages: u32,
}

impl Queued {
    pub(crate) fn new(order: Order, slots: u32, room: Room) -> Queued {
        let flags = vec![false; slots as usize];
        Queued {
            order,
            room,
            queue: Queue::new(slots),
            is_top: flags.clone(),
            was_read: flags,
            pages: 0,
        }
    }

    fn come(&mut self, slot: u32) {
        self.queue.push(slot);
        self.is_top[slot as usize] = true;
        self.was_read[slot as usize] = false;
        self.pages += 1;
        if self.pages <= self.room.high_pages {
            return;
        }
        while self.pages > self.room.low_pages {
            let victim = self.queue.oldest;
            self.queue.remove(victim);
            if std::mem::take(&mut self.was_read[victim as usize]) {
                self.queue.push(victim);
            } else {
                self.is_top[victim as usize] = false;
                self.pages -= 1;
            }
        }
    }
}

impl TopTier for Queued {
    fn apply(&mut self, _at: usize, op: Op) -> bool {
        let hit = self.is_top[op.slot as usize];
        match op.kind {
            Kind::Discard if hit => {
                self.queue.remove(op.slot);
                self.is_top[op.slot as usize] = false;
                self.pages -= 1;
            }
            Kind::Discard => {}
            _ if !hit => self.come(op.slot),
            Kind::Read if self.order == Order::WrittenSecondChance => {
                self.was_read[op.slot as usize] = true;
            }
            Kind::Read if self.order == Order::Written => {}
            _ => {
                self.queue.remove(op.slot);
                self.queue.push(op.slot);
            }
        }
        hit
    }
}

/// Any page goes.
pub(crate) struct AnyPage {
    room: Room,
    random: Rng,
    top: Vec<u32>,
    /// Where in `top` a page is.
    index: Vec<u32>,
}

impl AnyPage {
    pub(crate) fn new(slots: u32, room: Room) -> AnyPage {
        let index = vec![NONE; slots as usize];
        AnyPage { room, random: Rng::new(1), top: Vec::new(), index }
    }

    fn remove(&mut self, index: u32) {
        let slot = self.top.swap_remove(index as usize);
        self.index[slot as usize] = NONE;
        if let Some(&moved) = self.top.get(index as usize) {
            self.index[moved as usize] = index;
        }
    }
}

impl TopTier for AnyPage {
    fn apply(&mut self, _at: usize, op: Op) -> bool {
        let index = self.index[op.slot as usize];
        match (op.kind, index != NONE) {
            (Kind::Discard, true) => self.remove(index),
            (Kind::Discard, false) | (_, true) => {}
            (_, false) => {
                self.index[op.slot as usize] = self.top.len() as u32;
                self.top.push(op.slot);
                if self.top.len() as u32 > self.room.high_pages {
                    while self.top.len() as u32 > self.room.low_pages {
                        let index = self.random.below(self.top.len() as u64) as u32;
                        self.remove(index);
                    }
                }
            }
        }
        index != NONE
    }
}

/// The most read hits that any policy can have (Belady, "A study of replacement algorithms for a
/// virtual-storage computer", 1966): the page goes whose next read is farthest away. One that is
/// overwritten or discarded before it is read has no next read. A page that was read may stay
/// where it is, if all others are read sooner; a written one must come in.
pub(crate) struct Optimum {
    room: Room,
    /// For each operation, when its slot's page is read next.
    next_read: Vec<u32>,
    /// When the page is read next, if it is in the top.
    due: Vec<Option<u32>>,
    /// Also has what is no longer so.
    heap: BinaryHeap<(u32, u32)>,
    pages: u32,
}

impl Optimum {
    pub(crate) fn new(slots: u32, ops: &[Op], room: Room) -> Optimum {
        let mut next = vec![NONE; slots as usize];
        let mut next_read = vec![NONE; ops.len()];
        for (at, op) in ops.iter().enumerate().rev() {
            let next = &mut next[op.slot as usize];
            next_read[at] = *next;
            *next = if op.kind == Kind::Read { at as u32 } else { NONE };
        }
        let due = vec![None; slots as usize];
        Optimum { room, next_read, due, heap: BinaryHeap::new(), pages: 0 }
    }
}

impl Optimum {
    fn shrink(&mut self, pages: u32) {
        while self.pages > pages {
            let Some((next, slot)) = self.heap.pop() else { break };
            let due = &mut self.due[slot as usize];
            if *due == Some(next) {
                *due = None;
                self.pages -= 1;
            }
        }
    }
}

impl TopTier for Optimum {
    fn apply(&mut self, at: usize, op: Op) -> bool {
        let slot = op.slot as usize;
        let hit = self.due[slot].is_some();
        if op.kind == Kind::Discard {
            self.pages -= u32::from(hit);
            self.due[slot] = None;
            return hit;
        }
        if op.kind == Kind::Write && !hit {
            self.shrink(self.room.high_pages - 1);
        }
        let next = self.next_read[at];
        self.due[slot] = Some(next);
        self.heap.push((next, op.slot));
        self.pages += u32::from(!hit);
        // The page that was read can be the one that goes: that is how it stays below.
        self.shrink(self.room.high_pages);
        hit
    }
}
