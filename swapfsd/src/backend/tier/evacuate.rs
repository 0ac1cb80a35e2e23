//! Emptying a tier while it is in use: everything on it goes down, or up, and it is let go.
//!
//! What is asked for stands in memory that outlives the process ([`super::record`]), so whoever
//! takes over goes on. The member takes no pages from the moment that this begins; what is on its
//! way there arrives, and is found by the next round. Nothing has to be remembered but how fast and
//! which way: what is left is what the slot table says.

use super::Images;
use super::carry::{Carried, Carrier, Target, for_each_on};
use super::load::Why;
use super::lower::{Decodes, Lower};
use super::member::{Member, State};
use super::record::{Direction, Order};
use super::space::Stream;
use crate::backend::zmem::Store;
use crate::codec::Encoding;
use crate::crash::{self, Point};
use crate::members::Keeper;
use crate::sys::process;
use log::{info, warn};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it looks whether there is anything to do, though it is told.
const LOOK: Duration = Duration::from_millis(500);
/// How long it waits after a round in which nobody took anything.
const PAUSE: Duration = Duration::from_millis(200);
/// How often it says that it can't go on.
const COMPLAINT: Duration = Duration::from_secs(30);

/// Who empties tiers.
#[derive(Debug)]
pub(super) struct Evacuator {
    carrier: Carrier,
    keeper: Arc<dyn Keeper>,
    images: Arc<dyn Images>,
    speed: Speed,
}

/// How fast it goes, over a second and more.
#[derive(Debug)]
struct Speed {
    since: Instant,
    bytes: u64,
}

impl Speed {
    fn new() -> Speed {
        Speed { since: Instant::now(), bytes: 0 }
    }

    fn add(&mut self, lower: &Lower, bytes: u64) {
        self.bytes += bytes;
        let elapsed = self.since.elapsed().as_secs_f64();
        let said = lower.evacuated_bytes_per_s.load(Ordering::Relaxed);
        if elapsed >= 1.0 || said == 0 && elapsed > 0.0 {
            let speed = (self.bytes as f64 / elapsed) as u64;
            lower.evacuated_bytes_per_s.store(speed, Ordering::Relaxed);
        }
        if elapsed >= 1.0 {
            *self = Speed::new();
        }
    }
}

impl Evacuator {
    /// With all memory that it will use. `keeper` is told of members that are let go, and the
    /// volume's superblock by `images`.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(keeper: Arc<dyn Keeper>, images: Arc<dyn Images>) -> io::Result<Evacuator> {
        Ok(Evacuator { carrier: Carrier::new()?, keeper, images, speed: Speed::new() })
    }

    pub(super) fn run(mut self, store: &Store) {
        let Some(lower) = store.lower.clone() else { return };
        process::stay_ordinary();
        if !store.wait_until_active() {
            return;
        }
        let mut complained: Option<Instant> = None;
        let mut decodes = Decodes::new();
        while !store.stop.load(Ordering::Relaxed) {
            let Some(order) = lower.records.evacuation() else {
                complained = None;
                self.speed = Speed::new();
                lower.evacuated_bytes_per_s.store(0, Ordering::Relaxed);
                end_called_off(&lower, None);
                lower.wait(LOOK);
                continue;
            };
            let Some(member) = lower.at(order.place) else {
                // Whoever has emptied it died before it was let go.
                self.forget(&lower, order.place);
                continue;
            };
            end_called_off(&lower, Some(order.place));
            // One that has failed may be emptied too, as far as it can be read.
            member.change_state(State::Ok, State::Evacuating);
            let carried = self.round(store, &lower, &member, &order);
            decodes.count(&lower);
            if self.let_go(&lower, &member, &order) {
                continue;
            }
            if carried.pages == 0 {
                if complained.is_none_or(|when| when.elapsed() > COMPLAINT) {
                    complained = Some(Instant::now());
                    complain(&member, carried);
                }
                lower.wait(PAUSE);
            }
        }
    }

    /// Moves everything that is found on the member in one look at the table.
    fn round(
        &mut self,
        store: &Store,
        lower: &Lower,
        member: &Arc<Member>,
        order: &Order,
    ) -> Carried {
        let slot_count = store.table.slot_count();
        let (mut first, mut total) = (0, Carried::default());
        let is_asked_for = || lower.records.evacuation().as_ref() == Some(order);
        while first < slot_count && is_asked_for() && !store.stop.load(Ordering::Relaxed) {
            let carrier = &mut self.carrier;
            let mut noted_bytes = 0;
            first = for_each_on(store, member, first, slot_count, |slot, cell, entry, copy| {
                if copy {
                    store.drop_copy(slot, cell);
                    return true;
                }
                // Little at a time where it is to go slowly.
                if carrier.is_full() || order.rate_bytes > 0 && noted_bytes > order.rate_bytes / 4 {
                    return false;
                }
                carrier.note(member, slot, cell);
                noted_bytes += entry.as_object().map_or(0, |object| member.lies(&object).stored);
                true
            });
            let _members_stay = lower.moving.read();
            let begun = Instant::now();
            let carried = self.carrier.carry(store, lower, member, Why::Evacuation, |encoding| {
                // Called off: what is left is left.
                is_asked_for().then(|| target(lower, member, order.direction, encoding)).flatten()
            });
            let moved = lower.records.evacuated_pages();
            moved.fetch_add(carried.pages, Ordering::Relaxed);
            crash::pass(Point::TierEvacuated);
            total.add(carried);
            if carried.no_room && carried.pages == 0 {
                break;
            }
            keep_pace(store, carried.bytes, order.rate_bytes, begun);
            self.speed.add(lower, carried.bytes);
        }
        total
    }

    /// Lets go of a member on which nothing is left.
    fn let_go(&self, lower: &Lower, member: &Arc<Member>, order: &Order) -> bool {
        if member.space.live_bytes() > 0 {
            return false;
        }
        // Nobody is about to put something there who has chosen it before. Not waited for: those who
        // come after one who waits would wait too, and swap-outs for them.
        let Some(alone) = lower.moving.try_write() else { return false };
        if member.space.live_bytes() > 0 || lower.records.evacuation().as_ref() != Some(order) {
            return false;
        }
        lower.records.at(member.place).withdraw();
        crash::pass(Point::TierWithdrawn);
        lower.uninstall(member.place);
        drop(alone);
        // Nobody else ends what is in doubt here, nor removes what nobody needs there.
        member.end_old_doubts(Duration::ZERO);
        if let Some(objects) = member.objects()
            && let Err(errno) = objects.clear(None)
        {
            let why = io::Error::from_raw_os_error(errno);
            warn!("{}: what is left there: {why}: see 'swapfs remote gc'", member.name());
        }
        info!("{} is empty, and no part of the volume any more", member.name());
        self.forget(lower, member.place);
        lower.wake();
        true
    }

    /// Has the descriptor of what is no member any more given up. The place is nobody else's until
    /// that is done: a new member's descriptor is not to be given up in its stead.
    fn forget(&self, lower: &Lower, place: usize) {
        if let Err(error) = self.keeper.forget(place) {
            warn!("the descriptor of a member that was let go: {error}");
        }
        // Before those who watch hear that it is done.
        if let Err(why) = self.images.record(&lower.setups()) {
            warn!("{why}");
        }
        lower.records.set_evacuation(None);
    }
}

/// A member that is not to be emptied any more takes pages again.
fn end_called_off(lower: &Lower, but: Option<usize>) {
    for member in lower.members().iter() {
        if Some(member.place) != but && member.change_state(State::Evacuating, State::Ok) {
            info!("{} is not emptied any more, and takes pages again", member.name());
        }
    }
}

/// Where an object goes from a member that is emptied.
fn target(
    lower: &Lower,
    member: &Member,
    direction: Direction,
    encoding: Encoding,
) -> Option<Target> {
    let order = member.order();
    let down =
        || lower.destination_below(order, encoding).map(|to| Target::Member(to, Stream::Fresh));
    let up = || match lower.destination_above(order) {
        Some(to) => Target::Member(to, Stream::Fresh),
        None => Target::Top,
    };
    match direction {
        Direction::Down => down(),
        Direction::Up => Some(up()),
        Direction::Auto => down().or_else(|| Some(up())),
    }
}

fn keep_pace(store: &Store, bytes: u64, rate_bytes: u64, begun: Instant) {
    if rate_bytes == 0 {
        return;
    }
    let takes = Duration::from_secs_f64(bytes as f64 / rate_bytes as f64);
    while begun.elapsed() < takes && !store.stop.load(Ordering::Relaxed) {
        std::thread::sleep((takes - begun.elapsed().min(takes)).min(PAUSE));
    }
}

fn complain(member: &Member, carried: Carried) {
    let name = member.name();
    if carried.unreadable > 0 {
        warn!("{name} can't be emptied: {} pages can't be read", carried.unreadable);
    } else if carried.no_room {
        warn!("{name} can't be emptied: no other tier has room: add one, or free memory");
    }
}
