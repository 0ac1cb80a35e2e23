//! What is cold goes down: from the top, as soon as it passes its high watermark, until it has
//! reached the low one.
//!
//! A hand goes round the slot table; what it does at each entry is [`super::policy`]'s business.
//! Two threads share the hand, so that one gathers pages while the other one's are being written.

use super::counts::add;
use super::load::{Load, Moved, Outcome, Source, Why};
use super::lower::{Decodes, Lower, is_below};
use super::member::{Member, State};
use super::policy::{self, SWEEP_ROUNDS, Visit, VisitBelow};
use super::space::Stream;
use crate::backend::objects::entry::{Entry, Object};
use crate::backend::zmem::Store;
use crate::codec::Encoding;
use crate::crash::{self, Point};
use crate::sys::process;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the threads look without being told.
const LOOK: Duration = Duration::from_millis(50);
/// The same while nothing changes: nobody's processor is to be woken for nothing.
pub(super) const IDLE_LOOK: Duration = Duration::from_millis(500);
/// Slots that a thread looks at before it asks again whether that is enough.
const SLOTS_AT_A_TIME: u64 = 8 << 10;

/// One of the threads.
#[derive(Debug)]
pub(super) struct Demoter {
    /// Where most pages go.
    load: Load,
    /// Where those go that a member skips, if they go elsewhere.
    raw: Load,
    raw_goes_elsewhere: bool,
    /// It works only where a server elsewhere may keep others from it.
    is_further: bool,
}

/// Nobody below takes pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NoRoom;

impl Demoter {
    /// With all memory that it will use.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(is_further: bool) -> io::Result<Demoter> {
        let (load, raw) = (Load::new()?, Load::new()?);
        Ok(Demoter { load, raw, raw_goes_elsewhere: false, is_further })
    }

    pub(super) fn run(mut self, store: &Store) {
        let Some(lower) = store.lower.clone() else { return };
        // Looking through the table at a higher priority would keep the kernel's threads on the way
        // of a read from the processors.
        process::stay_ordinary();
        if !store.wait_until_active() {
            return;
        }
        let mut decodes = Decodes::new();
        let mut changes = 0;
        while !store.stop.load(Ordering::Relaxed) {
            if self.is_further && !lower.members().iter().any(|member| member.is_late()) {
                lower.wait(IDLE_LOOK);
                continue;
            }
            let urgent = lower.take_urgent();
            if !urgent && !is_over(store, &lower) {
                let changes_before = std::mem::replace(&mut changes, store.pool.arena.changes());
                lower.wait(if changes == changes_before { IDLE_LOOK } else { LOOK });
                continue;
            }
            if urgent && store.close_other_writers() {
                store.pool.arena.wake();
            }
            let moved = self.demote(store, &lower, urgent);
            lower.counters.demoted_from_top.fetch_add(moved, Ordering::Relaxed);
            decodes.count(&lower);
            if moved == 0 {
                lower.wait(LOOK);
            }
        }
    }

    /// Moves pages down until there is enough room; answers how many.
    fn demote(&mut self, store: &Store, lower: &Lower, urgent: bool) -> u64 {
        let _members_stay = lower.moving.read();
        if store.stop.load(Ordering::Relaxed) {
            return 0;
        }
        let place = |encoding| lower.destination_below(0, encoding).map(|member| member.place);
        self.raw_goes_elsewhere = place(Encoding::Raw) != place(Encoding::Lz4);
        let slot_count = store.table.slot_count();
        let most = SWEEP_ROUNDS * slot_count.div_ceil(SLOTS_AT_A_TIME).max(1);
        let (mut moved, mut full) = (0, false);
        for _ in 0..most {
            let first = next_slots(&lower.hand, slot_count);
            store.table.for_each(first, first + SLOTS_AT_A_TIME, |slot, cell| {
                if !full {
                    match self.visit(store, lower, slot, cell) {
                        Ok(pages) => moved += pages,
                        Err(NoRoom) => full = true,
                    }
                }
            });
            let enough = !is_over(store, lower) && (!urgent || moved > 0);
            if full || enough || store.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        moved += self.send(store, lower);
        moved
    }

    /// Looks at one entry; answers how many pages have gone down with it.
    fn visit(
        &mut self,
        store: &Store,
        lower: &Lower,
        slot: u64,
        cell: &AtomicU64,
    ) -> Result<u64, NoRoom> {
        let entry = Entry(cell.load(Ordering::Acquire));
        let Some(object) = entry.as_object() else { return Ok(0) };
        if is_below(object.location) {
            look_below(lower, cell, entry);
            return Ok(0);
        }
        match policy::at_hand(entry.age()) {
            Visit::Older => {
                // Whoever changed it meanwhile has touched it.
                let older = entry.older().0;
                let _ = cell.compare_exchange(entry.0, older, Ordering::AcqRel, Ordering::Relaxed);
                Ok(0)
            }
            Visit::Take if entry.is_shared() => Ok(u64::from(to_copy(store, lower, slot, cell))),
            Visit::Take => self.take(store, lower, slot, cell, entry, &object),
        }
    }

    /// Puts an object of the arena into a load.
    fn take(
        &mut self,
        store: &Store,
        lower: &Lower,
        slot: u64,
        cell: &AtomicU64,
        entry: Entry,
        object: &Object,
    ) -> Result<u64, NoRoom> {
        let mut sent = 0;
        let load = match object.encoding == Encoding::Raw && self.raw_goes_elsewhere {
            true => &mut self.raw,
            false => &mut self.load,
        };
        if !load.fits(object.len) {
            // Nothing is written while a slot's lock is held.
            sent = send(store, lower, load).pages;
            // Its room may be gone by the time that it is asked for.
            let begun = (0..2).any(|_| {
                let to = lower.destination_below(0, object.encoding);
                to.is_some_and(|to| load.begin(&to, Stream::Fresh))
            });
            if !begun {
                return Err(NoRoom);
            }
        }
        let _shared = store.slots.of(slot).read();
        // Touched meanwhile, or moved, or it does not fit into what was begun: it has its turn later.
        if cell.load(Ordering::Acquire) == entry.0
            && load.fits(object.len)
            && let Some((bytes, checksum)) = store.pool.unchecked(object)
        {
            store.pool.hold(object);
            let (encoding, source) = (object.encoding, Source::Arena(*object));
            load.push(&Moved { slot, entry, encoding, checksum, bytes, source });
            was_taken(cell, entry);
        }
        Ok(sent)
    }

    fn send(&mut self, store: &Store, lower: &Lower) -> u64 {
        send(store, lower, &mut self.load).pages + send(store, lower, &mut self.raw).pages
    }
}

/// The page is on its way: the hand, which may come round before it has arrived, shall not take it
/// again.
pub(super) fn was_taken(cell: &AtomicU64, entry: Entry) {
    let young = entry.with_age(policy::AGE_OF_TOUCHED).0;
    let _ = cell.compare_exchange(entry.0, young, Ordering::AcqRel, Ordering::Relaxed);
}

/// What the top's hand does with a page that lies below: its mark that it was seen ends some time.
fn look_below(lower: &Lower, cell: &AtomicU64, entry: Entry) {
    let new = match policy::at_hand_below(entry.was_tried(), entry.age()) {
        VisitBelow::Leave => return,
        VisitBelow::Older => entry.older(),
        VisitBelow::Forget => entry.not_tried(),
    };
    let changed = cell.compare_exchange(entry.0, new.0, Ordering::AcqRel, Ordering::Relaxed);
    if changed.is_ok() && !new.was_tried() {
        lower.judge.forgot();
    }
}

/// Sends a load down, as fast as its member is to be written to.
fn send(store: &Store, lower: &Lower, load: &mut Load) -> Outcome {
    let member = load.member().cloned();
    let outcome = load.send(store, Why::Demotion);
    if let Some(member) = member {
        keep_rate(store, lower, &member, outcome.written_bytes);
    }
    outcome
}

/// Waits as the member's rate asks; not while a swap-out waits for room.
pub(super) fn keep_rate(store: &Store, lower: &Lower, member: &Member, bytes: u64) {
    let mut wait = member.pace(bytes, lower.records.at(member.place).rate_bytes());
    while !wait.is_zero() && !store.stop.load(Ordering::Relaxed) && !lower.is_urgent() {
        let step = wait.min(LOOK);
        std::thread::sleep(step);
        wait -= step;
    }
}

/// The next slots that nobody has looked at in this round.
pub(super) fn next_slots(hand: &AtomicU64, slot_count: u64) -> u64 {
    let next = |at: u64| {
        let next = at + SLOTS_AT_A_TIME;
        Some(if next >= slot_count { 0 } else { next })
    };
    hand.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).unwrap_or(0)
}

/// Slots that [`next_slots`] stands for.
pub(super) const fn slots_at_a_time() -> u64 {
    SLOTS_AT_A_TIME
}

/// Is the top above its low watermark, once it has passed the high one?
fn is_over(store: &Store, lower: &Lower) -> bool {
    let arena = &store.pool.arena;
    let percent = if lower.over.load(Ordering::Relaxed) {
        lower.top.low_percent.load(Ordering::Relaxed)
    } else {
        lower.top.high_percent.load(Ordering::Relaxed)
    };
    let over = arena.live_bytes() > arena.limit_bytes() / 100 * percent;
    lower.over.store(over, Ordering::Relaxed);
    over
}

/// A page with a copy below that is as good: its entry names the copy, and nothing is written.
fn to_copy(store: &Store, lower: &Lower, slot: u64, cell: &AtomicU64) -> bool {
    let alone = store.slots.of(slot).write();
    let entry = Entry(cell.load(Ordering::Acquire));
    let Some(copy) = store.copy_of(slot, entry) else { return false };
    let member: Option<Arc<Member>> =
        copy.as_object().and_then(|object| lower.member_of(object.location));
    let Some(member) = member.filter(|member| member.state() == State::Ok) else {
        drop(alone);
        // It is written anew, later.
        store.drop_copy(slot, cell);
        return false;
    };
    let new = copy.with_age(policy::AGE_OF_NEW);
    let exchange = cell.compare_exchange(entry.0, new.0, Ordering::AcqRel, Ordering::Acquire);
    if exchange.is_err() {
        // Made older by somebody.
        return false;
    }
    drop(alone);
    crash::pass(Point::TierPublished);
    store.release(slot, entry);
    lower.count_copy(false);
    add(&member.counters.demoted_in_pages, 1);
    lower.counters.demoted_to_copies.fetch_add(1, Ordering::Relaxed);
    true
}
