//! Changes while the volume is in use: members that come and go, options.
//!
//! A member is held by the supervisor before it is part of the volume, and empty and no part of it
//! before it is let go: so whoever takes over has every member on which a page can be. What the
//! next mount is to find is written to superblocks last; should that fail, it is said, and holds
//! until the unmount all the same.

use super::member::{Member, State};
use super::record::Order;
use super::{Backing, Tier, member_of, place_of, record, report};
use crate::admin::{Administration, Direction, Done, Progress, Reply, Request};
use crate::crash::{self, Point};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use swapfs_format::member::{MAX_DEVICE_MEMBERS, MemberKind, MemberOptions};

/// How often progress is told.
const STEP: Duration = Duration::from_secs(1);
/// How often it is looked whether that has ended.
const LOOK: Duration = Duration::from_millis(50);

fn done() -> Reply {
    Reply::Done(Done::default())
}

impl Tier {
    fn member(&self, order: u32) -> Result<Arc<Member>, String> {
        self.lower.of_order(order).ok_or_else(|| {
            format!("tier {order}: there is none: 'swapfs tiers' shows those that there are")
        })
    }

    fn add(&self, image: &Path) -> Result<Reply, String> {
        let _alone = self.changing.lock();
        self.may_change_members()?;
        let lower = &self.lower;
        let path = image.to_str().ok_or_else(|| format!("{}: no text", image.display()))?;
        let fail = |why: &dyn std::fmt::Display| format!("tier add: {path}: {why}");
        self.forget_strays();
        // Whoever was killed while it was added may have come that far.
        if let Some(member) = lower.members().iter().find(|member| member.identity.path == path) {
            return Err(fail(&format_args!("it is tier {} already", member.order())));
        }
        let opened = self.images.open(path).map_err(|why| format!("tier add: {why}"))?;
        let order = opened.setup.order;
        if let Some(member) = lower.of_order(order) {
            return Err(fail(&format_args!(
                "tier {order} is there already ({}): give another --order",
                member.identity.path
            )));
        }
        // One that is being let go has its place until that is done.
        let leaving = lower.records.evacuation().map(|order| order.place);
        let free = |place: &usize| lower.at(*place).is_none() && leaving != Some(*place);
        let Some(place) = (0..MAX_DEVICE_MEMBERS).find(free) else {
            let most = format_args!("a volume has {MAX_DEVICE_MEMBERS} members at most");
            return Err(fail(&format_args!("{most}: remove another one first")));
        };
        let identity = place_of(lower, &opened.setup).map_err(|error| fail(&error))?;
        // All memory that it needs, before anybody knows of it.
        let device = opened.device.clone().opened(identity.run).map_err(|error| fail(&error))?;
        let device = Some(device);
        let member = member_of(lower, place, identity.clone(), device).map_err(|e| fail(&e))?;
        let member = Arc::new(member);
        if let Backing::Blocks(device) = &opened.device.backing {
            device.lock().map_err(|error| fail(&error))?;
        }
        if member.is_remote() {
            self.start_waiting().map_err(|error| fail(&error))?;
            if let Some(Err(errno)) = member.objects().map(|objects| objects.check()) {
                let why = std::io::Error::from_raw_os_error(errno);
                return Err(fail(&format_args!("the server can't be used: {why}")));
            }
        }
        let start = self.prepare_upkeep(Arc::clone(&member)).map_err(|error| fail(&error))?;
        // From here on a successor knows of it, and finds nothing on it.
        lower.records.at(place).publish(&identity, &opened.setup.options);
        crash::pass(Point::TierAdded);
        if let Err(error) = self.keeper.hold(place, &opened.file) {
            lower.records.at(place).withdraw();
            // In case it came late.
            self.strays[place].store(true, Ordering::Release);
            return Err(fail(&format_args!(
                "the supervisor does not take it: {error}: try again in a moment"
            )));
        }
        crash::pass(Point::TierHeld);
        // Now pages may come.
        lower.install(Arc::clone(&member));
        let _ = start.send(());
        log::info!("{} was added", member.name());
        lower.wake();
        self.images.record(&lower.setups())?;
        Ok(Reply::Done(Done { order: Some(order), ..Done::default() }))
    }

    /// Not of a volume of type `remote`, which is its own only member.
    fn may_change_members(&self) -> Result<(), String> {
        match self.is_open {
            true => Ok(()),
            false => Err("the volume is of type 'remote', which has one tier on a server and no \
                          others: format a volume of type 'tier' for that"
                .to_owned()),
        }
    }

    /// Gives up what a predecessor had held and not made a member: its image would stay locked.
    fn forget_strays(&self) {
        for (place, stray) in self.strays.iter().enumerate() {
            if stray.swap(false, Ordering::AcqRel)
                && !self.lower.records.at(place).is_in_use()
                && let Err(error) = self.keeper.forget(place)
            {
                log::warn!("the descriptor of what was never made a member: {error}");
            }
        }
    }

    fn remove(
        &self,
        order: u32,
        direction: Direction,
        rate_bytes: Option<u64>,
        reply: &mut dyn FnMut(Reply) -> bool,
    ) -> Result<Reply, String> {
        if order == 0 {
            return Err(
                "tier 0 is the daemon's memory, which every volume has: 'swapfs tier set' \
                        changes how much of it is used"
                    .to_owned(),
            );
        }
        {
            let _alone = self.changing.lock();
            self.may_change_members()?;
            let member = self.member(order)?;
            if let Some(other) = self.lower.records.evacuation() {
                let other = self.lower.at(other.place).map_or(0, |member| member.order());
                return Err(format!(
                    "tier {order}: tier {other} is being emptied: wait for that ('swapfs tier \
                     watch') or call it off ('swapfs tier cancel')"
                ));
            }
            self.has_room_for(&member, direction)?;
            let direction = match direction {
                Direction::Auto => record::Direction::Auto,
                Direction::Up => record::Direction::Up,
                Direction::Down => record::Direction::Down,
            };
            let rate_bytes = rate_bytes.unwrap_or(0);
            let order = Order { place: member.place, direction, rate_bytes };
            self.lower.records.set_evacuation(Some(order));
            self.lower.wake();
        }
        self.watch(reply)
    }

    /// Can what lies on the member go anywhere?
    fn has_room_for(&self, member: &Member, direction: Direction) -> Result<(), String> {
        let (order, members) = (member.order(), self.lower.members());
        let room = |up: bool| -> u64 {
            members
                .iter()
                .filter(|other| other.state() == State::Ok)
                .filter(|other| if up { other.order() < order } else { other.order() > order })
                .map(|other| other.space.usable_bytes().saturating_sub(other.space.live_bytes()))
                .sum()
        };
        let arena = &self.store().pool.arena;
        let top = arena.limit_bytes().saturating_sub(arena.live_bytes());
        let room_bytes = match direction {
            Direction::Down => room(false),
            Direction::Up => room(true) + top,
            Direction::Auto => room(false) + room(true) + top,
        };
        let live_bytes = member.space.live_bytes();
        if live_bytes <= room_bytes {
            return Ok(());
        }
        let human = swapfs_format::size::human;
        Err(format!(
            "tier {order} has {} of pages, and the tiers {} have room for {}: add a tier first, or \
             free memory",
            human(live_bytes),
            match direction {
                Direction::Down => "below it",
                Direction::Up => "above it",
                Direction::Auto => "beside it",
            },
            human(room_bytes)
        ))
    }

    /// Tells how the evacuation that is under way gets on, to its end.
    fn watch(&self, reply: &mut dyn FnMut(Reply) -> bool) -> Result<Reply, String> {
        let Some(order) = self.lower.records.evacuation() else {
            return Err("no tier is being emptied".to_owned());
        };
        let watched = self.lower.at(order.place);
        let mut told: Option<(Instant, u64)> = None;
        let mut listens = true;
        while self.lower.records.evacuation().is_some_and(|now| now.place == order.place) {
            if self.store().stop.load(Ordering::Relaxed) {
                return Err("the volume is being unmounted".to_owned());
            }
            if listens
                && told.is_none_or(|(when, _)| when.elapsed() >= STEP)
                && let Some(evacuation) = report::evacuation(&self.lower)
            {
                let left = evacuation.left_bytes;
                let rate = told.map_or(evacuation.bytes_per_s, |(when, before)| {
                    let gone = before.saturating_sub(left) as f64;
                    (gone / when.elapsed().as_secs_f64()) as u64
                });
                told = Some((Instant::now(), left));
                listens = reply(Reply::Progress(Progress {
                    left_bytes: left,
                    moved_pages: evacuation.moved_pages,
                    left_pages: evacuation.left_pages,
                    bytes_per_s: rate,
                    eta_s: (rate > 0).then(|| left.div_ceil(rate)),
                }));
            }
            std::thread::sleep(LOOK);
        }
        let is_there = watched.is_some_and(|watched| {
            self.lower.at(order.place).is_some_and(|member| Arc::ptr_eq(&member, &watched))
        });
        if is_there {
            return Err("it was called off: the tier takes pages again".to_owned());
        }
        Ok(done())
    }

    fn cancel(&self) -> Result<Reply, String> {
        let _alone = self.changing.lock();
        if self.lower.records.evacuation().is_none() {
            return Err("no tier is being emptied".to_owned());
        }
        self.lower.records.set_evacuation(None);
        self.lower.wake();
        Ok(done())
    }

    fn set(&self, order: u32, options: &str) -> Result<Reply, String> {
        let _alone = self.changing.lock();
        if order == 0 {
            return self.set_top(options);
        }
        let member = self.member(order)?;
        let wrong = |why: &dyn std::fmt::Display| format!("tier set: tier {order}: {why}");
        let change = |kind: MemberKind, old: &str| {
            MemberOptions::merged(kind, old, options).map_err(|why| why.to_string())
        };
        let device = member.device().ok_or_else(|| wrong(&"its device is not there"))?;
        let (path, uuid) = (&member.identity.path, member.identity.uuid);
        let options = self.images.record_options(&device, path, uuid, &change);
        self.lower.records.at(member.place).set(&options.map_err(|why| wrong(&why))?);
        self.lower.wake();
        Ok(done())
    }

    /// The top's watermarks; until the unmount, since the volume's options are the mount's.
    fn set_top(&self, options: &str) -> Result<Reply, String> {
        let top = &self.lower.top;
        let (mut high, mut low) =
            (top.high_percent.load(Ordering::Relaxed), top.low_percent.load(Ordering::Relaxed));
        for option in options.split(',') {
            let value = option.split_once('=').and_then(|(key, value)| {
                let value: u64 = value.trim().parse().ok().filter(|value| *value <= 100)?;
                Some((key.trim(), value))
            });
            match value {
                Some(("high", value)) => high = value,
                Some(("low", value)) => low = value,
                _ => {
                    return Err(format!(
                        "tier set: tier 0: {option}: high=PER CENT and low=PER CENT can be changed \
                         while it is mounted; other options by 'mount -o' or 'mkswapfs'"
                    ));
                }
            }
        }
        if low >= high {
            return Err(format!("tier set: tier 0: low={low} must be below high={high}"));
        }
        top.high_percent.store(high, Ordering::Relaxed);
        top.low_percent.store(low, Ordering::Relaxed);
        self.lower.records.set_top(high, low);
        self.lower.wake();
        Ok(done())
    }
}

impl Administration for Tier {
    fn handle(
        &self,
        request: &Request,
        reply: &mut dyn FnMut(Reply) -> bool,
    ) -> Result<Reply, String> {
        match request {
            Request::Add { image } => self.add(image),
            Request::Remove { tier, direction, rate_bytes } => {
                self.remove(*tier, *direction, *rate_bytes, reply)
            }
            Request::Watch => self.watch(reply),
            Request::Cancel => self.cancel(),
            Request::Set { tier, options } => self.set(*tier, options),
            // Those that the server answers.
            Request::Tiers | Request::Drop => Err("not for the tiers: this is a bug".to_owned()),
        }
    }
}
