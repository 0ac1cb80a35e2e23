//! Members that have failed are looked at now and then, and used again when they work. And how old
//! pages are, for those who ask.

use super::lower::{Lower, is_below};
use super::member::State;
use super::{Backing, Images};
use crate::backend::objects::entry::Entry;
use crate::backend::zmem::Store;
use crate::members::Keeper;
use crate::sys::process;
use log::warn;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the thread wakes up.
const LOOK: Duration = Duration::from_millis(200);
/// How often pages are counted by age, at most.
const SURVEY: Duration = Duration::from_secs(5);
/// How often a server elsewhere is asked whether it works again, at least.
const PROBE_ELSEWHERE: Duration = Duration::from_secs(1);
/// A survey takes this part of the time at most.
const SURVEY_PART: u32 = 100;

pub(super) fn run(store: &Store, images: &dyn Images, keeper: &dyn Keeper) {
    let Some(lower) = store.lower.clone() else { return };
    process::stay_ordinary();
    if !store.wait_until_active() {
        return;
    }
    let mut looked = Instant::now();
    let mut next_survey = Instant::now();
    while !store.stop.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
        // A server is asked more often: that costs it nothing.
        let elsewhere = lower.members().iter().any(|member| member.is_remote());
        let probe_every = if elsewhere { lower.probe.min(PROBE_ELSEWHERE) } else { lower.probe };
        if looked.elapsed() >= probe_every {
            looked = Instant::now();
            probe(&lower, images, keeper);
        }
        if Instant::now() >= next_survey {
            let begun = Instant::now();
            survey(store, &lower);
            next_survey = Instant::now() + SURVEY.max(begun.elapsed() * SURVEY_PART);
        }
    }
}

/// Looks after every member that has failed.
pub(super) fn probe(lower: &Lower, images: &dyn Images, keeper: &dyn Keeper) {
    for member in lower.members().iter() {
        if !matches!(member.state(), State::Failed | State::Missing) {
            continue;
        }
        let identity = &member.identity;
        if let Some(device) = member.device()
            && images.check(&device, identity.uuid).is_ok()
        {
            member.recover();
            lower.wake();
            continue;
        }
        // What is elsewhere is looked for by whoever talks to it, once that can be begun with.
        if let Some(device) = member.device().filter(|_| member.is_remote()) {
            if matches!(device.backing, Backing::Unopened(_))
                && let Ok(device) = device.opened(identity.run)
            {
                member.set_device(Some(device));
            }
            continue;
        }
        // The device may have come back as another one.
        let Ok(opened) = images.open(&identity.path) else { continue };
        let same = opened.setup.uuid == identity.uuid
            && opened.setup.data_offset_bytes == identity.data_offset_bytes;
        if !same {
            continue;
        }
        let device = opened.device.opened(identity.run);
        let Ok(device) = device.inspect_err(|error| warn!("{}: {error}", member.name())) else {
            continue;
        };
        if images.check(&device, identity.uuid).is_ok() {
            // A successor is to have this one, and no other program.
            let held = keeper.hold(member.place, &opened.file);
            let locked = held.and_then(|()| match &device.backing {
                Backing::Blocks(device) => device.lock(),
                Backing::Objects(_) | Backing::Unopened(_) => Ok(()),
            });
            if let Err(error) = locked {
                warn!("{} is there again, and can't be held: {error}", member.name());
                continue;
            }
            warn!("{} is there again", member.name());
            member.set_device(Some(device));
            member.recover();
            lower.wake();
        }
    }
}

/// Counts pages by tier and age.
pub(super) fn survey(store: &Store, lower: &Lower) {
    let members = lower.members();
    let mut top = [0; 4];
    let mut below: Vec<[u64; 4]> = members.iter().map(|_| [0; 4]).collect();
    store.table.for_each(0, store.table.slot_count(), |_, cell| {
        let entry = Entry(cell.load(Ordering::Relaxed));
        let Some(object) = entry.as_object() else { return };
        let age = entry.age() as usize;
        if !is_below(object.location) {
            top[age] += 1;
        } else if let Some(place) = members.iter().position(|member| member.has(object.location)) {
            below[place][age] += 1;
        }
    });
    for (to, count) in lower.top_ages.iter().zip(top) {
        to.store(count, Ordering::Relaxed);
    }
    for (member, counts) in members.iter().zip(below) {
        for (to, count) in member.counters.ages.iter().zip(counts) {
            to.store(count, Ordering::Relaxed);
        }
    }
}
