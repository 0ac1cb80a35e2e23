//! Emptying a tier while it is in use: everything on it goes down, or up, and it is let go.
//!
//! What is asked for stands in memory that outlives the process ([`super::record`]), so whoever
//! takes over goes on. The member takes no pages from the moment that this begins; what is on its
//! way there arrives, and is found by the next round. Nothing has to be remembered but how fast and
//! which way: what is left is what the slot table says.

use super::carry::{Carried, Carrier, Target, for_each_on};
use super::load::Why;
use super::lower::Lower;
use super::member::{Member, State};
use super::record::{Direction, Order};
use super::space::Stream;
use crate::backend::zmem::Store;
use crate::codec::Encoding;
use crate::crash::{self, Point};
use crate::members::Keeper;
use log::{info, warn};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it looks whether there is anything to do.
const LOOK: Duration = Duration::from_millis(100);
/// How long it waits after a round in which nobody took anything.
const PAUSE: Duration = Duration::from_millis(200);
/// How often it says that it can't go on.
const COMPLAINT: Duration = Duration::from_secs(30);

/// Who empties tiers.
#[derive(Debug)]
pub(super) struct Evacuator {
    carrier: Carrier,
    keeper: Arc<dyn Keeper>,
}

impl Evacuator {
    /// With all memory that it will use. `keeper` is told of members that are let go.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(keeper: Arc<dyn Keeper>) -> io::Result<Evacuator> {
        Ok(Evacuator { carrier: Carrier::new()?, keeper })
    }

    pub(super) fn run(mut self, store: &Store) {
        let Some(lower) = store.lower.clone() else { return };
        if !store.wait_until_active() {
            return;
        }
        let mut complained: Option<Instant> = None;
        while !store.stop.load(Ordering::Relaxed) {
            let Some(order) = lower.records.evacuation() else {
                complained = None;
                end_called_off(&lower);
                lower.wait(LOOK);
                continue;
            };
            let Some(member) = lower.at(order.place) else {
                // Whoever has emptied it died before it was let go.
                self.forget(&lower, order.place);
                continue;
            };
            // One that has failed may be emptied too, as far as it can be read.
            member.change_state(State::Ok, State::Evacuating);
            let carried = self.round(store, &lower, &member, &order);
            if self.let_go(&lower, &member) {
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
            let bytes_per_s = carried.bytes as f64 / begun.elapsed().as_secs_f64().max(1e-3);
            lower.evacuated_bytes_per_s.store(bytes_per_s as u64, Ordering::Relaxed);
            if carried.no_room && carried.pages == 0 {
                break;
            }
            keep_pace(store, carried.bytes, order.rate_bytes, begun);
        }
        total
    }

    /// Lets go of a member on which nothing is left.
    fn let_go(&self, lower: &Lower, member: &Arc<Member>) -> bool {
        if member.space.live_bytes() > 0 {
            return false;
        }
        // Nobody is about to put something there who has chosen it before.
        let alone = lower.moving.write();
        if member.space.live_bytes() > 0 || lower.records.evacuation().is_none() {
            return false;
        }
        lower.records.at(member.place).withdraw();
        crash::pass(Point::TierWithdrawn);
        lower.uninstall(member.place);
        drop(alone);
        self.forget(lower, member.place);
        lower.wake();
        info!("{} is empty, and no part of the volume any more", member.name());
        true
    }

    /// Has the descriptor of what is no member any more given up. The place is nobody else's until
    /// that is done: a new member's descriptor is not to be given up in its stead.
    fn forget(&self, lower: &Lower, place: usize) {
        if let Err(error) = self.keeper.forget(place) {
            warn!("the descriptor of a member that was let go: {error}");
        }
        lower.records.set_evacuation(None);
    }
}

/// A member that is not to be emptied any more takes pages again.
fn end_called_off(lower: &Lower) {
    for member in lower.members().iter() {
        if member.change_state(State::Evacuating, State::Ok) {
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
        std::thread::sleep((takes - begun.elapsed().min(takes)).min(LOOK));
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
