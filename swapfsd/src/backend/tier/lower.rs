//! The tiers below the arena: which members there are, where each has its locations, and who takes
//! pages.
//!
//! All members share one address space, that of a table entry's locations beyond the arena's: each
//! has a range of it from the moment it is added. So one entry says everything about a page, and
//! moving it is one store.

use super::counts::Latencies;
use super::member::Member;
use super::policy::Judge;
use super::record::Records;
use super::{Backing, MemberDevice, MemberSetup};
use crate::backend::objects::entry::{DEVICE_START, Location, MAX_DEVICE_BYTES, Object};
use crate::backend::zmem::Store;
use crate::codec::{self, Encoding};
use crate::sync::{Condvar, Mutex, RwLock};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use swapfs_format::member::MAX_DEVICE_MEMBERS;
use swapfs_format::types::TierOptions;

thread_local! {
    static NOT_COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// Where no member is on a server.
const NO_DEADLINE: Duration = Duration::from_secs(3600);

/// What is counted about all members together.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Objects that were decoded by a thread that moves them. There is no need to.
    pub(super) decompressions: AtomicU64,
    /// Pages whose copy below was still there when they were demoted: nothing was written.
    pub(super) demoted_to_copies: AtomicU64,
    /// Pages of the top that have a copy below.
    pub(super) copies: AtomicU64,
    /// Pages that went down from the top.
    pub(super) demoted_from_top: AtomicU64,
    /// Pages that changed while they were being moved.
    pub(super) moves_in_vain: AtomicU64,
    /// Swap-outs that had to wait for room.
    pub(super) urged: AtomicU64,
    /// Objects that were found damaged when they were read or moved.
    pub(super) damaged: AtomicU64,
}

/// How the top is to be used.
#[derive(Debug)]
pub(super) struct TopSettings {
    pub(super) high_percent: AtomicU64,
    pub(super) low_percent: AtomicU64,
}

/// The members.
#[derive(Debug)]
pub(in crate::backend) struct Lower {
    pub(super) records: Arc<Records>,
    places: [RwLock<Option<Arc<Member>>>; MAX_DEVICE_MEMBERS],
    pub(super) top: TopSettings,
    pub(super) top_ages: [AtomicU64; 4],
    pub(super) top_latencies: Latencies,
    /// How fast the tier that is being emptied has got emptier of late.
    pub(super) evacuated_bytes_per_s: AtomicU64,
    pub(super) counters: Counters,
    pub(super) judge: Judge,
    pub(super) probe: Duration,
    /// The next slot that the top's hand looks at.
    pub(super) hand: AtomicU64,
    /// The top has passed its high watermark, and not reached the low one.
    pub(super) over: AtomicBool,
    /// A swap-out waits for room.
    urgent: AtomicBool,
    waiting_writes: AtomicUsize,
    threads_waiting: AtomicIsize,
    /// So many of the threads that serve may wait.
    pub(super) most_waiting: AtomicUsize,
    /// The longest of the members'.
    deadline_ms: AtomicU64,
    wanted: Mutex<()>,
    wake: Condvar,
    /// While pages are being moved, what is changed about members waits.
    pub(super) moving: RwLock<()>,
}

impl Lower {
    /// Without members.
    pub(super) fn new(records: Records, options: &TierOptions) -> Lower {
        let (high, low) = (u64::from(options.high_percent), u64::from(options.low_percent));
        Lower {
            records: Arc::new(records),
            places: std::array::from_fn(|_| RwLock::new(None)),
            top: TopSettings {
                high_percent: AtomicU64::new(high),
                low_percent: AtomicU64::new(low),
            },
            top_ages: Default::default(),
            top_latencies: Latencies::default(),
            evacuated_bytes_per_s: AtomicU64::new(0),
            counters: Counters::default(),
            judge: Judge::new(),
            probe: options.probe,
            hand: AtomicU64::new(0),
            over: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            waiting_writes: AtomicUsize::new(0),
            threads_waiting: AtomicIsize::new(0),
            most_waiting: AtomicUsize::new(1),
            deadline_ms: AtomicU64::new(0),
            wanted: Mutex::new(()),
            wake: Condvar::new(),
            moving: RwLock::new(()),
        }
    }

    /// What was changed while predecessors served, maybe since this instance was made.
    pub(super) fn adopt_settings(&self) {
        if let Some((high, low)) = self.records.top() {
            self.top.high_percent.store(high, Ordering::Relaxed);
            self.top.low_percent.store(low, Ordering::Relaxed);
        }
    }

    /// The member in a place.
    pub(super) fn at(&self, place: usize) -> Option<Arc<Member>> {
        self.places.get(place)?.read().clone()
    }

    pub(super) fn install(&self, member: Arc<Member>) {
        let place = member.place;
        *self.places[place].write() = Some(member);
    }

    pub(super) fn uninstall(&self, place: usize) {
        *self.places[place].write() = None;
    }

    /// All members, hottest first.
    pub(super) fn members(&self) -> Members {
        let mut found: Members = Default::default();
        for (to, place) in found.0.iter_mut().zip(&self.places) {
            *to = place.read().clone();
        }
        // Those that are not there last.
        found.0.sort_by_key(|member| member.as_ref().map_or(u32::MAX, |member| member.order()));
        found
    }

    /// The member that a location lies on.
    pub(super) fn member_of(&self, location: Location) -> Option<Arc<Member>> {
        self.places
            .iter()
            .find_map(|place| place.read().as_ref().filter(|member| member.has(location)).cloned())
    }

    /// Room in the address space for a new member.
    pub(super) fn free_base(&self, bytes: u64) -> Option<u64> {
        let mut taken: Vec<(u64, u64)> = self
            .members()
            .iter()
            .map(|member| (member.identity.base, member.space.addresses()))
            .collect();
        taken.sort_unstable();
        let mut base = 0;
        for (start, length) in taken {
            if base + bytes <= start {
                break;
            }
            base = base.max(start + length);
        }
        (base + bytes <= MAX_DEVICE_BYTES).then_some(base)
    }

    /// The top is above its high watermark.
    pub(super) fn is_top_full(&self, store: &Store) -> bool {
        let arena = &store.pool.arena;
        let high = self.top.high_percent.load(Ordering::Relaxed);
        arena.live_bytes() > arena.limit_bytes() / 100 * high
    }

    /// Nothing has to go from the top for a page that comes there.
    pub(super) fn has_room_above(&self, store: &Store) -> bool {
        let arena = &store.pool.arena;
        let low = self.top.low_percent.load(Ordering::Relaxed);
        arena.live_bytes() < arena.limit_bytes() / 100 * low
    }

    /// The object there, of the slot's, is named by no entry any more.
    pub(in crate::backend) fn free(&self, slot: u64, object: &Object) {
        if let Some(member) = self.member_of(object.location) {
            member.free(slot, object);
        }
    }

    /// A page of the top has a copy below from now on, or none any more.
    pub(in crate::backend) fn count_copy(&self, more: bool) {
        match more {
            true => self.counters.copies.fetch_add(1, Ordering::Relaxed),
            false => self.counters.copies.fetch_sub(1, Ordering::Relaxed),
        };
    }

    /// Everything is about to be counted again. Nobody else is here.
    pub(in crate::backend) fn begin_count(&self) {
        for member in self.members().iter() {
            member.space.begin_count();
            member.counters.pages.store(0, Ordering::Relaxed);
        }
        self.counters.copies.store(0, Ordering::Relaxed);
    }

    /// An entry names that object, or a page's copy.
    pub(in crate::backend) fn count(&self, object: &Object) {
        if let Some(member) = self.member_of(object.location) {
            member.count(object);
        }
    }

    pub(in crate::backend) fn end_count(&self) {
        for member in self.members().iter() {
            if member.is_remote() {
                member.adopt_writes();
            }
            member.space.end_count();
        }
    }

    /// The member that takes a page which comes from the tier `order`: the first one below it that
    /// has room. A `log` member that is about to make room is waited for, unless it is urgent.
    pub(super) fn destination_below(&self, order: u32, encoding: Encoding) -> Option<Arc<Member>> {
        let members = self.members();
        let mut skipped = None;
        let urgent = self.is_urgent();
        for member in members.iter().filter(|member| member.order() > order) {
            if !member.takes_pages() || urgent && !member.space.has_room() {
                continue;
            }
            let skips =
                encoding == Encoding::Raw && !self.records.at(member.place).takes_incompressible();
            if !skips {
                return Some(Arc::clone(member));
            }
            skipped.get_or_insert_with(|| Arc::clone(member));
        }
        // Better there than nowhere.
        skipped
    }

    /// The nearest member above the tier `order` that has room.
    pub(super) fn destination_above(&self, order: u32) -> Option<Arc<Member>> {
        let members = self.members();
        let mut above = members.iter().filter(|member| member.order() < order).rev();
        above.find(|member| member.takes_pages()).cloned()
    }

    /// A swap-out finds no room: pages are to be moved down at once. False: nobody takes them.
    pub(in crate::backend) fn urge(&self) -> bool {
        self.urgent.store(true, Ordering::Release);
        self.wake();
        self.members().iter().any(|member| member.will_take_pages())
    }

    /// Was anybody waiting since this was last asked?
    pub(super) fn take_urgent(&self) -> bool {
        self.urgent.swap(false, Ordering::AcqRel)
    }

    /// Somebody waits for room now.
    pub(super) fn is_urgent(&self) -> bool {
        self.waiting_writes.load(Ordering::Relaxed) > 0
    }

    /// One more swap-out waits for room, until it leaves.
    pub(in crate::backend) fn enter_wait(&self) {
        self.waiting_writes.fetch_add(1, Ordering::Relaxed);
        self.counters.urged.fetch_add(1, Ordering::Relaxed);
        self.count_waiting(1);
    }

    pub(in crate::backend) fn leave_wait(&self) {
        self.waiting_writes.fetch_sub(1, Ordering::Relaxed);
        self.count_waiting(-1);
    }

    /// Waits for a server elsewhere while `work` goes on.
    pub(super) fn waiting<T>(&self, work: impl FnOnce() -> T) -> T {
        self.count_waiting(1);
        let outcome = work();
        self.count_waiting(-1);
        outcome
    }

    fn count_waiting(&self, by: isize) {
        if !NOT_COUNTED.get() {
            self.threads_waiting.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// The calling thread does not serve: nobody minds that it waits.
    pub(super) fn never_counted() {
        NOT_COUNTED.set(true);
    }

    /// Threads that serve and wait, for a server elsewhere or for room.
    pub(super) fn threads_waiting(&self) -> usize {
        self.threads_waiting.load(Ordering::Relaxed).max(0) as usize
    }

    /// How long a request may wait for a server elsewhere.
    pub(super) fn deadline(&self) -> Duration {
        match self.deadline_ms.load(Ordering::Relaxed) {
            0 => NO_DEADLINE,
            ms => Duration::from_millis(ms),
        }
    }

    /// There is a member with that one.
    pub(super) fn note_deadline(&self, deadline: Duration) {
        self.deadline_ms.fetch_max(deadline.as_millis() as u64, Ordering::Relaxed);
    }

    /// A server elsewhere keeps pages from going there for so long that requests which wait for room
    /// would keep all threads that serve.
    pub(in crate::backend) fn is_clogged(&self) -> bool {
        let most_waiting = self.most_waiting.load(Ordering::Relaxed);
        self.threads_waiting() > most_waiting
            && self.members().iter().any(|member| member.is_late())
    }

    /// Tells the threads that move pages that there may be something to do.
    pub(super) fn wake(&self) {
        let _those_who_wait = self.wanted.lock();
        self.wake.notify_all();
    }

    /// Waits until there may be something to do, or for `at_most`.
    pub(super) fn wait(&self, at_most: Duration) {
        let wanted = self.wanted.lock();
        drop(self.wake.wait_timeout(wanted, at_most));
    }

    /// Has every member's device wait for a predecessor's last writes.
    pub(super) fn lock_devices(&self) {
        for member in self.members().iter() {
            let Some(MemberDevice { backing: Backing::Blocks(device), .. }) = member.device()
            else {
                continue;
            };
            // Of a server nobody can know: see `super::doubts`. Nor is it waited for.
            if member.is_remote() {
                continue;
            }
            if let Err(error) = device.lock() {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                member.fail("waiting for a predecessor's writes", errno);
            }
        }
    }

    /// What the members are now, for the superblock.
    pub(super) fn setups(&self) -> Vec<MemberSetup> {
        let of = |member: &Arc<Member>| {
            let identity = &member.identity;
            MemberSetup {
                order: identity.order,
                uuid: identity.uuid,
                kind: identity.kind,
                layout: identity.layout,
                is_remote: identity.is_remote,
                data_offset_bytes: identity.data_offset_bytes,
                data_bytes: identity.segment_count * identity.segment_bytes,
                segment_bytes: identity.segment_bytes,
                path: identity.path.clone(),
                options: self.records.at(member.place).options(identity.kind),
            }
        };
        self.members().iter().map(of).collect()
    }

    /// The member of that order.
    pub(super) fn of_order(&self, order: u32) -> Option<Arc<Member>> {
        self.members().iter().find(|member| member.order() == order).cloned()
    }
}

/// Counts what a thread that moves objects has decoded.
#[derive(Debug)]
pub(super) struct Decodes(u64);

impl Decodes {
    /// From now on.
    pub(super) fn new() -> Decodes {
        Decodes(codec::decodes_of_this_thread())
    }

    /// Adds what there was since the last time.
    pub(super) fn count(&mut self, lower: &Lower) {
        let before = std::mem::replace(&mut self.0, codec::decodes_of_this_thread());
        lower.counters.decompressions.fetch_add(self.0 - before, Ordering::Relaxed);
    }
}

/// Is this a location below the arena?
pub(super) fn is_below(location: Location) -> bool {
    location >= DEVICE_START
}

/// The members as they were at some time, hottest first.
#[derive(Debug, Default)]
pub(super) struct Members([Option<Arc<Member>>; MAX_DEVICE_MEMBERS]);

impl Members {
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Member>> {
        self.0.iter().flatten()
    }
}
