//! What a member needs done: its cold pages moved down when it is full, and, of `log`, its sparse
//! segments emptied. One thread a member.

use super::carry::{Carrier, Target, for_each_on};
use super::counts::add;
use super::demote::{IDLE_LOOK, next_slots, slots_at_a_time, was_taken};
use super::doubts::GRACE;
use super::load::Why;
use super::lower::{Decodes, Lower};
use super::member::{Member, State};
use super::policy::{self, SWEEP_ROUNDS, Visit};
use super::space::{Layout, Stream};
use crate::backend::zmem::Store;
use crate::codec;
use crate::remote::{Key, nbd};
use crate::sys::process;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use swapfs_format::types::SegmentDiscard;

/// How often it looks without being told.
const LOOK: Duration = Duration::from_millis(50);
/// Segments that are emptied together: the slot table is looked at once for all of them.
const MAX_VICTIMS: usize = 64;
/// One of so many segments is to be free: collecting starts below that.
const FREE_PART: u64 = 50;
/// Where segments are nearly full of what lives, many must be emptied at once to gain one: so many
/// have to be free then, as far as there are.
const ROOM_TO_GAIN: u64 = 16;
/// And so great a part of few ones.
const ROOM_PART: u64 = 8;
/// How often it looks for freed room that the device has not been told of.
const DISCARDS: Duration = Duration::from_secs(1);
/// Objects that a server is asked to forget at once.
const MAX_REMOVALS: usize = 512;
/// How often a server is looked through at most.
const SWEEPS: Duration = Duration::from_secs(60);
/// How long a member is left alone that is full, and has nothing below.
const REST: Duration = Duration::from_secs(1);
/// Segments' worth of pages that go down where nothing can be gained by collecting.
const FORCED_SEGMENTS: u64 = 2;

/// Who looks after a member.
#[derive(Debug)]
pub(super) struct Upkeep {
    member: Arc<Member>,
    carrier: Carrier,
    /// The fullest first, by what lives in them.
    victims: BinaryHeap<(u64, u64)>,
    /// A bit for each segment: it is a victim.
    marked: Vec<u64>,
    cannot_discard: bool,
    rests_until: Instant,
    /// When it was last looked what there is to be discarded.
    discarded: Instant,
    /// When the server was last looked through.
    swept: Option<Instant>,
}

impl Upkeep {
    /// With all memory that it will use.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(member: Arc<Member>) -> io::Result<Upkeep> {
        let words = (member.space.segment_count() as usize).div_ceil(64);
        // Touched, so that it is there.
        let mut marked = vec![u64::MAX; words];
        marked.fill(0);
        let mut victims = BinaryHeap::with_capacity(MAX_VICTIMS + 1);
        victims.extend((0..=MAX_VICTIMS as u64).map(|number| (number, number)));
        victims.clear();
        Ok(Upkeep {
            member,
            carrier: Carrier::new()?,
            victims,
            marked,
            cannot_discard: false,
            rests_until: Instant::now(),
            discarded: Instant::now(),
            swept: None,
        })
    }

    pub(super) fn run(mut self, store: &Store) {
        let Some(lower) = store.lower.clone() else { return };
        process::stay_ordinary();
        if !store.wait_until_active() {
            return;
        }
        let is_mine = |member: &Arc<Member>| {
            lower.at(member.place).is_some_and(|installed| Arc::ptr_eq(&installed, member))
        };
        let mut decodes = Decodes::new();
        let mut live_bytes = 0;
        while !store.stop.load(Ordering::Relaxed) && is_mine(&self.member) {
            let mut worked = false;
            if self.wants_collection() {
                let gained = self.collect(store, &lower);
                self.member.stuck.store(!gained, Ordering::Relaxed);
                worked |= gained;
            } else {
                self.member.stuck.store(false, Ordering::Relaxed);
            }
            if self.member.state() == State::Ok && Instant::now() >= self.rests_until {
                // Where segments are all about as full, holes must be made in them first.
                let forced = match self.member.stuck.load(Ordering::Relaxed) {
                    true => FORCED_SEGMENTS * self.member.space.segment_bytes(),
                    false => 0,
                };
                if forced > 0 || self.is_over(&lower) {
                    worked |= self.demote(store, &lower, forced);
                }
            }
            decodes.count(&lower);
            self.member.end_old_doubts(GRACE);
            worked |= self.remove_objects(store);
            self.sweep(&lower);
            // What there is to be discarded is looked for in all segments, so not all the time.
            if !worked && self.wants_discards(&lower) && self.discarded.elapsed() >= DISCARDS {
                worked = self.discard(store, &lower);
                self.discarded = Instant::now();
            }
            if !worked {
                let live_before =
                    std::mem::replace(&mut live_bytes, self.member.space.live_bytes());
                lower.wait(if live_bytes == live_before { IDLE_LOOK } else { LOOK });
            }
        }
    }

    /// Is it above its low watermark, once it has passed the high one?
    fn is_over(&self, lower: &Lower) -> bool {
        let (member, record) = (&self.member, lower.records.at(self.member.place));
        let percent = match member.over.load(Ordering::Relaxed) {
            true => record.low_percent(),
            false => record.high_percent(),
        };
        let over = member.space.live_bytes() > member.space.usable_bytes() / 100 * percent;
        member.over.store(over, Ordering::Relaxed);
        over
    }

    /// Moves cold pages down until the low watermark is reached, and `least_bytes` at least; false:
    /// nothing was to be done.
    fn demote(&mut self, store: &Store, lower: &Lower, least_bytes: u64) -> bool {
        let _members_stay = lower.moving.read();
        let member = Arc::clone(&self.member);
        let slot_count = store.table.slot_count();
        let has_target = lower.destination_below(member.order(), codec::Encoding::Lz4).is_some();
        // With nothing below there are only copies to be dropped.
        let rounds = if has_target { SWEEP_ROUNDS } else { 1 };
        let most = rounds * slot_count.div_ceil(slots_at_a_time()).max(1);
        let live_before = member.space.live_bytes();
        let (mut gained, mut noted_bytes, mut full) = (0, 0, false);
        let is_enough = |noted: u64| {
            let low = lower.records.at(member.place).low_percent();
            let target = member.space.usable_bytes() / 100 * low;
            let target = match least_bytes {
                0 => target,
                least => live_before.saturating_sub(least),
            };
            member.space.live_bytes().saturating_sub(noted) <= target
        };
        for _ in 0..most {
            let first = next_slots(&member.hand, slot_count);
            let carrier = &mut self.carrier;
            for_each_on(
                store,
                &member,
                first,
                first + slots_at_a_time(),
                |slot, cell, entry, copy| {
                    if copy {
                        // Its page is in the top, and young: the copy is the first thing to go.
                        gained += u64::from(store.drop_copy(slot, cell));
                        return true;
                    }
                    match policy::at_hand(entry.age()) {
                        _ if !has_target => {}
                        Visit::Older => {
                            let older = entry.older().0;
                            let order = (Ordering::AcqRel, Ordering::Relaxed);
                            let _ = cell.compare_exchange(entry.0, older, order.0, order.1);
                        }
                        Visit::Take => {
                            carrier.note(&member, slot, cell);
                            was_taken(cell, entry);
                            noted_bytes += entry.as_object().map_or(0, |object| {
                                member.space.taken_by(u64::from(object.stored_bytes()))
                            });
                        }
                    }
                    !carrier.is_full() && !is_enough(noted_bytes)
                },
            );
            if carrier.is_full() || is_enough(noted_bytes) {
                let carried = self.carry_down(store, lower);
                gained += carried;
                noted_bytes = 0;
                full = carried == 0;
            }
            if full || is_enough(0) || store.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        gained += self.carry_down(store, lower);
        if gained == 0 {
            self.rests_until = Instant::now() + REST;
        }
        gained > 0
    }

    fn carry_down(&mut self, store: &Store, lower: &Lower) -> u64 {
        if self.carrier.is_empty() {
            return 0;
        }
        let member = &self.member;
        let carried = self.carrier.carry(store, lower, member, Why::Demotion, |encoding| {
            let to = lower.destination_below(member.order(), encoding)?;
            Some(Target::Member(to, Stream::Fresh))
        });
        add(&member.counters.demoted_out_pages, carried.pages);
        carried.pages
    }

    /// Has objects removed from their server that nobody needs; false: there are none, or it does not
    /// answer.
    fn remove_objects(&mut self, store: &Store) -> bool {
        let mut any = false;
        while self.member.has_objects()
            && !store.stop.load(Ordering::Relaxed)
            && !matches!(self.member.state(), State::Failed | State::Missing)
        {
            let mut keys = [Key { slot: 0, number: 0 }; MAX_REMOVALS];
            let count = self.member.removals.take(&mut keys);
            if count == 0 {
                break;
            }
            any = true;
            let Some(objects) = self.member.objects() else { break };
            if let Err(errno) = objects.remove(&keys[..count]) {
                // Unless somebody else wants the room: it works, or somebody will find out.
                keys[..count].iter().for_each(|key| self.member.remove_later(*key));
                self.member.fail("removing objects failed", errno);
                return false;
            }
        }
        any
    }

    /// Removes what is left on a server, since there were too many to be noted or a predecessor has
    /// died, when nothing is needed that is there.
    fn sweep(&mut self, lower: &Lower) {
        let (member, counters) = (&self.member, &self.member.counters);
        let left = counters.left_objects.load(Ordering::Relaxed);
        let is_time = self.swept.is_none_or(|when| when.elapsed() >= SWEEPS);
        if left == 0 || !is_time || member.state() != State::Ok {
            return;
        }
        let Some(objects) = member.objects() else { return };
        // Those that are put from now on have greater numbers.
        let below = {
            let Some(_alone) = lower.moving.try_write() else { return };
            let live = member.space.live_bytes();
            if counters.pages.load(Ordering::Relaxed) > 0 || live > 0 {
                return;
            }
            member.numbers_taken()
        };
        self.swept = Some(Instant::now());
        if objects.clear(Some(below)).is_ok() {
            counters.left_objects.fetch_sub(left, Ordering::Relaxed);
        }
    }

    fn wants_discards(&self, lower: &Lower) -> bool {
        match lower.records.at(self.member.place).discard() {
            SegmentDiscard::On => true,
            SegmentDiscard::Auto => self.member.on_block_device,
            SegmentDiscard::Off => false,
        }
    }

    /// Tells the device of room that was freed; false: there is none, or it does not want to know.
    fn discard(&mut self, store: &Store, lower: &Lower) -> bool {
        let (member, mut any) = (&self.member, false);
        while !self.cannot_discard && !store.stop.load(Ordering::Relaxed) {
            // While it is under way the member is not let go: somebody else's by then.
            let _members_stay = lower.moving.read();
            if member.state() != State::Ok {
                break;
            }
            let Some(extent) = member.space.begin_discard() else { break };
            let (offset, bytes) = (extent.offset, extent.capacity as u64);
            // A server may do it later than it says: a successor is to know.
            let line = match member.is_remote() {
                true => member.begin_write(offset, bytes),
                false => Some(0),
            };
            let Some(line) = line else {
                member.space.end_discard(extent);
                break;
            };
            let outcome = member.discard(offset, bytes);
            any = true;
            match (member.is_remote(), outcome) {
                (false, _) => member.space.end_discard(extent),
                (true, Err(errno)) if nbd::may_still_happen(errno) => {
                    member.doubts.add(member.space.doubt_of_discard(extent), line);
                    break;
                }
                (true, _) => {
                    member.space.end_discard(extent);
                    member.end_write(line);
                }
            }
            if let Err(errno) = outcome {
                // Asked once: it is a favour to the device.
                self.cannot_discard = true;
                let why = io::Error::from_raw_os_error(errno);
                log::info!("{} takes no discards: {why}", member.name());
            }
        }
        any
    }

    /// There are few free segments.
    fn wants_collection(&self) -> bool {
        let space = &self.member.space;
        if space.layout() != Layout::Log || self.member.state() != State::Ok {
            return false;
        }
        let count = space.segment_count();
        let wanted = (count / FREE_PART)
            .max((count / ROOM_PART).min(ROOM_TO_GAIN))
            .max(space.keep_segments() as u64 + 2);
        (space.free_segments() as u64) < wanted
    }

    /// Empties sparse segments; false: nothing is to be gained.
    fn collect(&mut self, store: &Store, lower: &Lower) -> bool {
        let _members_stay = lower.moving.read();
        let member = Arc::clone(&self.member);
        if !self.choose_victims() {
            return false;
        }
        let free_before = member.space.free_segments();
        let slot_count = store.table.slot_count();
        let mut first = 0;
        while first < slot_count && !store.stop.load(Ordering::Relaxed) {
            let (carrier, marked) = (&mut self.carrier, &self.marked);
            first = for_each_on(store, &member, first, slot_count, |slot, cell, entry, copy| {
                let Some(object) = entry.as_object() else { return true };
                let segment = member.space.segment_of(member.lies(&object).offset);
                if marked[(segment / 64) as usize] >> (segment % 64) & 1 == 0 {
                    return true;
                }
                if copy {
                    store.drop_copy(slot, cell);
                    return true;
                }
                if carrier.is_full() {
                    return false;
                }
                carrier.note(&member, slot, cell);
                true
            });
            let carried = self.carrier.carry(store, lower, &member, Why::Collection, |_| {
                Some(Target::Member(Arc::clone(&member), Stream::Collected))
            });
            if carried.no_room {
                break;
            }
        }
        self.marked.fill(0);
        member.space.free_segments() > free_before
    }

    /// Marks the emptiest segments, as many as there is room to move what lives in them.
    fn choose_victims(&mut self) -> bool {
        let space = &self.member.space;
        self.victims.clear();
        for segment in 0..space.segment_count() {
            let Some(live) = space.used_segment(segment) else { continue };
            self.victims.push((live, segment));
            if self.victims.len() > MAX_VICTIMS {
                self.victims.pop();
            }
        }
        // What is lost at the ends of extents.
        let segment_bytes = space.segment_bytes();
        let usable = segment_bytes - segment_bytes / 32;
        let room = space.free_segments() as u64 * usable;
        let (mut live_bytes, mut count) = (0, 0);
        let mut all: u64 = self.victims.iter().map(|(live, _)| live).sum();
        // The fullest ones go until the rest fits.
        while all > room
            && let Some((live, _)) = self.victims.pop()
        {
            all -= live;
        }
        for (live, segment) in self.victims.drain() {
            self.marked[(segment / 64) as usize] |= 1 << (segment % 64);
            live_bytes += live;
            count += 1;
        }
        // A segment at least must be gained, or it would go on for ever.
        if count > live_bytes.div_ceil(usable) {
            return true;
        }
        self.marked.fill(0);
        false
    }
}
