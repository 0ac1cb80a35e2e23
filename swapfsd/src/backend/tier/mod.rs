//! `tier`: several back ends, one below the other. Hot pages are in memory, cold ones on devices.
//!
//! ```text
//!   swap-out --codec--> [arena]  <-- promoted ---+         tier 0: zmem, as it is
//!                          | cold                |
//!                          v                     |
//!                       [log member]  -----------+         tier 1, 2, ...: packed segments,
//!                          | colder              |                       or a block an object
//!                          v                     |
//!                       [linear member] ---------+-- swap-in: read where it lies
//! ```
//!
//! **One table.** The top is a whole [`super::zmem`], with its slot table; this adds places below
//! its arena that an entry can name. There is no map below a map: moving an object is one store into
//! the table, and its bytes travel as they were encoded once.
//!
//! * [`policy`]: who goes down, who comes back; decisions only;
//! * [`lower`]: which members there are; [`member`]: one of them; [`counts`]: its numbers; [`space`]: the room on it;
//!   [`record`]: what a successor must know of them;
//! * [`load`]: objects on their way to a member; [`demote`]: from the top; [`carry`]: from a member;
//!   [`upkeep`]: what each member needs done; [`evacuate`]: emptying one;
//! * [`read`]: swap-ins from below, and promotion; [`health`]: members that failed;
//! * [`envelope`], [`removals`]: objects on a server elsewhere; [`doubts`]: blocks on one;
//!   [`waiting`]: requests that wait for one;
//! * [`admin`]: changes while it is in use; [`report`]: the numbers.
//!
//! **Killed at any instruction**, a successor finds each slot's page where its entry says. A load is
//! on its device before an entry names a place in it, and what an entry names stays until that
//! entry was replaced. All that is known about room on devices follows from the table again. What
//! members hold means nothing without it: a volume begins empty at each mount, as `zmem` does.
//!
//! **Who may move an object.** Whoever has read it, by changing the slot's entry under the slot's
//! lock, if that still says the same, and if its place can't have been used again meanwhile
//! ([`load`]).

mod admin;
mod carry;
mod counts;
mod demote;
mod doubts;
mod envelope;
mod evacuate;
mod health;
mod load;
mod lower;
mod member;
pub mod policy;
mod read;
mod record;
mod removals;
mod report;
mod space;
mod upkeep;
mod waiting;

pub(in crate::backend) use lower::Lower;
pub use space::Layout;
pub use waiting::{LARGE_JOBS, SMALL_JOBS, THREADS as WAITING_THREADS};

use super::device::BlockDevice;
use super::zmem::{Store, Zmem};
use super::{AsynchronousBackend, AtStart, Backend, EvacuationReport, TierReport};
use crate::admin::Administration;
use crate::buffer::BufferPool;
use crate::error::Result;
use crate::held::Held;
use crate::members::Keeper;
use crate::remote::{self, ObjectStore};
use crate::sync::Mutex;
use demote::Demoter;
use evacuate::Evacuator;
use member::{MAX_REMOTE_LOADS, Member};
use read::Reader;
use record::{Identity, Records};
use space::OBJECT_NUMBERS;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use swapfs_format::member::{MAX_DEVICE_MEMBERS, MemberKind, MemberOptions};
use swapfs_format::types::TierOptions;
use upkeep::Upkeep;
use uuid::Uuid;
use waiting::Waiting;

/// Threads that move pages down from the top; as many more as a server elsewhere may keep from it.
const DEMOTERS: usize = 2;
/// `linear` has no segments of its own; these are what generations are counted by.
const BLOCK_SEGMENT_BYTES: u64 = 1 << 20;
/// The same of a small member.
const SMALL_BLOCK_SEGMENT_BYTES: u64 = 64 << 10;
/// How long a server may take that is to be used by a new volume.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// Members of fewer bytes are small.
const SMALL_BYTES: u64 = 64 << 20;

/// Where a member's bytes are.
#[derive(Debug, Clone)]
pub enum Backing {
    /// On a device, here or elsewhere.
    Blocks(Arc<dyn BlockDevice>),
    /// On a server, as objects.
    Objects(Arc<dyn ObjectStore>),
    /// The same, when it is known in which run of the volume.
    Unopened(Arc<dyn Opens>),
}

/// A store of objects that is not open yet.
pub trait Opens: Send + Sync + std::fmt::Debug {
    /// Opens it for the run of the volume that has this number; the server need not be there.
    ///
    /// # Errors
    /// No memory, or no threads.
    fn open(&self, run: u64) -> io::Result<Arc<dyn ObjectStore>>;
}

impl Backing {
    /// Reports what a client of a server counts.
    pub(super) fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        match self {
            Backing::Blocks(device) => device.statistics(report),
            Backing::Objects(store) => store.statistics(report),
            Backing::Unopened(_) => {}
        }
    }
}

/// A member's device, or its server.
#[derive(Debug, Clone)]
pub struct MemberDevice {
    /// Where its bytes are.
    pub backing: Backing,
    /// Freed segments are discarded if the option says `auto`.
    pub on_block_device: bool,
    /// How long a request may take, of one that is on a server elsewhere.
    pub deadline: Option<Duration>,
}

impl MemberDevice {
    fn opened(self, run: u64) -> io::Result<MemberDevice> {
        Ok(match self.backing {
            Backing::Unopened(opens) => {
                MemberDevice { backing: Backing::Objects(opens.open(run)?), ..self }
            }
            _ => self,
        })
    }
}

/// What a member's superblock says.
#[derive(Debug, Clone)]
pub struct MemberSetup {
    /// Its place in the order of tiers, from 1.
    pub order: u32,
    /// UUID of its own.
    pub uuid: Uuid,
    /// What it was formatted as.
    pub kind: MemberKind,
    /// How pages lie there.
    pub layout: Layout,
    /// It is on a server elsewhere.
    pub is_remote: bool,
    /// Where its data section starts, in bytes.
    pub data_offset_bytes: u64,
    /// Bytes of its data section.
    pub data_bytes: u64,
    /// Segment of a log, in bytes.
    pub segment_bytes: u64,
    /// For messages.
    pub path: String,
    /// How it is to be used.
    pub options: MemberOptions,
}

/// How a tier volume is to work.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Slots of the volume.
    pub slot_count: u64,
    /// Its options.
    pub options: &'a TierOptions,
    /// Threads that serve requests.
    pub threads: u32,
    /// Buffers for reads of devices.
    pub buffers: BufferPool,
    /// The devices of its members, by place. On memory that a predecessor left these are the ones
    /// that it had.
    pub devices: [Option<MemberDevice>; MAX_DEVICE_MEMBERS],
    /// What its members are, by place: of a new mount.
    pub members: Vec<(usize, MemberSetup)>,
    /// Members come and go; not of a volume that is a member itself.
    pub is_open: bool,
    /// Told of members that come and go.
    pub keeper: Arc<dyn Keeper>,
    /// Opens images, and writes the volume's superblock.
    pub images: Arc<dyn Images>,
}

/// A member's image, opened.
#[derive(Debug)]
pub struct OpenedMember {
    /// Its device.
    pub device: MemberDevice,
    /// What its superblock says.
    pub setup: MemberSetup,
    /// The open file, with the lock on it.
    pub file: std::fs::File,
}

/// Where member images come from, and where the volume's table of them stands.
pub trait Images: Send + Sync + std::fmt::Debug {
    /// Opens the image at `path`, which was formatted as a member of this volume.
    ///
    /// # Errors
    /// In words, why it can't be used.
    fn open(&self, path: &str) -> std::result::Result<OpenedMember, String>;

    /// Looks whether a member that failed can be read and written again.
    ///
    /// # Errors
    /// The errno, or `EINVAL` where another image is there now.
    fn check(&self, device: &MemberDevice, uuid: Uuid) -> std::result::Result<(), i32>;

    /// Writes the table of members into the volume's superblock, for the next mount.
    ///
    /// # Errors
    /// In words, why it can't be written.
    fn record(&self, members: &[MemberSetup]) -> std::result::Result<(), String>;

    /// Has `change` make new options of those in the superblock of the member at `path`, and writes
    /// them there; answers them.
    ///
    /// # Errors
    /// In words, what `change` or the device has against it.
    fn record_options(
        &self,
        device: &MemberDevice,
        path: &str,
        uuid: Uuid,
        change: &dyn Fn(MemberKind, &str) -> std::result::Result<String, String>,
    ) -> std::result::Result<MemberOptions, String>;
}

/// The back end.
#[derive(Debug)]
pub struct Tier {
    top: Zmem,
    lower: Arc<Lower>,
    buffers: BufferPool,
    keeper: Arc<dyn Keeper>,
    images: Arc<dyn Images>,
    /// Threads of members, which come and go.
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// One change at a time.
    changing: Mutex<()>,
    /// What was held at each place when this instance was made, until it serves.
    given: Mutex<[Option<MemberDevice>; MAX_DEVICE_MEMBERS]>,
    /// Places at which something is held that is no member.
    strays: [AtomicBool; MAX_DEVICE_MEMBERS],
    is_open: bool,
    /// It may be mounted though servers are not there.
    may_be_degraded: bool,
    /// This, for threads that must not keep it.
    own: OnceLock<Weak<Tier>>,
    /// Requests that would keep the threads that serve from others.
    waiting: Waiting,
}

impl Tier {
    /// A tier volume, empty, or on what a predecessor left.
    ///
    /// # Errors
    /// No memory; `InvalidData` if what a predecessor left is not understood.
    pub fn new(setup: Setup<'_>, held: &Held) -> io::Result<Tier> {
        let Setup { slot_count, options, threads, .. } = setup;
        let Setup { buffers, devices, members, is_open, keeper, images, .. } = setup;
        let lower = Arc::new(Lower::new(Records::new(held)?, options));
        if !held.is_adopted() {
            for (place, member) in members {
                let identity = place_of(&lower, &member)?;
                lower.records.at(place).publish(&identity, &member.options);
                let device = devices.get(place).cloned().flatten();
                let device = device.map(|device| device.opened(identity.run)).transpose()?;
                install(&lower, place, identity, device)?;
            }
        } else {
            for (place, device) in devices.iter().enumerate() {
                if let Some(identity) = lower.records.at(place).identity() {
                    let device = again(device.clone(), &identity);
                    install(&lower, place, identity, device)?;
                }
            }
        }
        lower.most_waiting.store((threads as usize / 2).max(1), Ordering::Relaxed);
        let mut top =
            Zmem::top_of(slot_count, &options.zmem, threads, held, Some(Arc::clone(&lower)))?;
        for number in 0..DEMOTERS + MAX_REMOTE_LOADS as usize {
            let demoter = Demoter::new(number >= DEMOTERS)?;
            top.spawn("tier-demote", move |store| demoter.run(store))?;
        }
        let evacuator = Evacuator::new(Arc::clone(&keeper), Arc::clone(&images))?;
        top.spawn("tier-evacuate", move |store| evacuator.run(store))?;
        let (found_by, held_by) = (Arc::clone(&images), Arc::clone(&keeper));
        top.spawn("tier-health", move |store| health::run(store, &*found_by, &*held_by))?;
        let tier = Tier {
            top,
            lower,
            buffers,
            keeper,
            images,
            threads: Mutex::default(),
            changing: Mutex::new(()),
            given: Mutex::new(if held.is_adopted() { devices } else { Default::default() }),
            strays: Default::default(),
            is_open,
            may_be_degraded: options.degraded,
            own: OnceLock::new(),
            waiting: Waiting::new(),
        };
        for member in tier.lower.members().iter() {
            tier.look_after(Arc::clone(member))?;
        }
        Ok(tier)
    }

    /// As its users have it.
    ///
    /// # Errors
    /// No memory for the threads that wait for servers elsewhere.
    pub fn shared(self) -> io::Result<Arc<Tier>> {
        let tier = Arc::new(self);
        let _ = tier.own.set(Arc::downgrade(&tier));
        if tier.lower.members().iter().any(|member| member.is_remote()) {
            tier.start_waiting()?;
        }
        Ok(tier)
    }

    /// Starts the threads that wait for servers elsewhere, unless it has them.
    fn start_waiting(&self) -> io::Result<()> {
        match self.own.get() {
            Some(own) if !self.waiting.is_started() => self.waiting.start(own),
            _ => Ok(()),
        }
    }

    /// Looks whether the servers of a new volume are there.
    ///
    /// # Errors
    /// In words, which is not.
    pub fn check_servers(&self) -> std::result::Result<(), String> {
        for member in self.lower.members().iter() {
            let Some(objects) = member.objects() else { continue };
            let soon = Instant::now() + FIRST_ANSWER;
            if let Err(errno) = remote::until(soon, || objects.check()) {
                let why = io::Error::from_raw_os_error(errno);
                if self.may_be_degraded {
                    member.fail("the server does not answer", errno);
                    continue;
                }
                let next = match errno {
                    libc::EACCES => {
                        "it does not let us in, or we do not trust its certificate: see what auth= \
                         names, and the daemon's log"
                    }
                    _ => "see that the server runs, and that url= is right",
                };
                return Err(format!("{} can't be used: {why}: {next}", member.name()));
            }
        }
        Ok(())
    }

    fn reader(&self) -> Reader<'_> {
        Reader::new(self.store(), &self.lower, &self.buffers)
    }

    fn store(&self) -> &Arc<Store> {
        &self.top.store
    }

    /// The members are those that a predecessor had when it ended. One may have been let go since
    /// this instance was made; and one that was held before then may have become a member after it.
    fn settle_members(&self) -> io::Result<()> {
        let given = std::mem::take(&mut *self.given.lock());
        for (place, device) in given.into_iter().enumerate() {
            let Some(identity) = self.lower.records.at(place).identity() else {
                self.lower.uninstall(place);
                self.strays[place].store(device.is_some(), Ordering::Release);
                continue;
            };
            if self.lower.at(place).is_some_and(|member| member.identity.uuid == identity.uuid) {
                continue;
            }
            let device = again(device, &identity);
            let member = install(&self.lower, place, identity, device)?;
            self.look_after(member)?;
        }
        Ok(())
    }

    /// Starts the thread that does what a member needs.
    fn look_after(&self, member: Arc<Member>) -> io::Result<()> {
        let _ = self.prepare_upkeep(member)?.send(());
        Ok(())
    }

    /// As [`Tier::look_after`]; the thread begins when it is told to. It ends if it never is.
    fn prepare_upkeep(&self, member: Arc<Member>) -> io::Result<Sender<()>> {
        let name = format!("tier-upkeep-{}", member.order());
        let upkeep = Upkeep::new(member)?;
        let store = Arc::clone(self.store());
        let (start, told) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if told.recv().is_ok() {
                upkeep.run(&store);
            }
        })?;
        let mut threads = self.threads.lock();
        // Those of members that have gone.
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(start)
    }
}

/// Where a member's bytes are to lie in the address space of all members, and its segments.
fn place_of(lower: &Lower, member: &MemberSetup) -> io::Result<Identity> {
    let segment_bytes = match member.layout {
        Layout::Log => member.segment_bytes,
        _ if member.data_bytes < SMALL_BYTES => SMALL_BLOCK_SEGMENT_BYTES,
        _ => BLOCK_SEGMENT_BYTES,
    };
    let segment_count = member.data_bytes / segment_bytes.max(1);
    let addresses = match member.layout {
        Layout::Objects => OBJECT_NUMBERS,
        _ => segment_count * segment_bytes,
    };
    let base = lower.free_base(addresses);
    let base = base.ok_or_else(|| {
        let why = "all members together have more than 4 TiB, which entries can't say; one with \
                   objects on a server counts as 1 TiB";
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })?;
    // Another one in each mount: what is left of an earlier one is nobody's.
    let run = Uuid::new_v4().as_u64_pair().0;
    Ok(Identity {
        order: member.order,
        kind: member.kind,
        layout: member.layout,
        is_remote: member.is_remote,
        run,
        uuid: member.uuid,
        base,
        data_offset_bytes: member.data_offset_bytes,
        segment_bytes,
        segment_count,
        path: member.path.clone(),
    })
}

/// The device of a member that a predecessor has used. One that can't be opened now, since a file
/// with its password is not there, is looked at later: the others go on.
fn again(device: Option<MemberDevice>, identity: &Identity) -> Option<MemberDevice> {
    let device = device?;
    let opened = device.clone().opened(identity.run);
    Some(opened.unwrap_or_else(|error| {
        log::error!("tier {} ({}): {error}", identity.order, identity.path);
        device
    }))
}

fn install(
    lower: &Lower,
    place: usize,
    identity: Identity,
    device: Option<MemberDevice>,
) -> io::Result<Arc<Member>> {
    let member = Arc::new(member_of(lower, place, identity, device)?);
    lower.install(Arc::clone(&member));
    Ok(member)
}

fn member_of(
    lower: &Lower,
    place: usize,
    identity: Identity,
    device: Option<MemberDevice>,
) -> io::Result<Member> {
    if let Some(deadline) = device.as_ref().and_then(|device| device.deadline) {
        lower.note_deadline(deadline);
    }
    Member::new(place, identity, device, Arc::clone(&lower.records))
}

impl Drop for Tier {
    fn drop(&mut self) {
        self.top.stop_soon();
        self.lower.wake();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            while !thread.is_finished() {
                self.lower.wake();
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(thread.join());
        }
    }
}

impl Backend for Tier {
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        self.reader().read(first, pages)
    }

    fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        self.top.write(first, pages)
    }

    fn discard(&self, first: u64, count: u64) -> Result<()> {
        self.top.discard(first, count)
    }

    /// There is nothing that a power failure would leave.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// What is on servers elsewhere is removed: nobody will ask for it.
    fn close(&self) -> Result<()> {
        // Nothing is put there any more.
        self.top.stop_soon();
        self.lower.wake();
        let _all_stand = self.lower.moving.write();
        for member in self.lower.members().iter() {
            let Some(objects) = member.objects() else { continue };
            match objects.clear(None) {
                Ok(count) => log::info!("{}: {count} objects were removed", member.name()),
                Err(errno) => log::warn!(
                    "{}: its objects could not all be removed ({}): 'swapfs remote gc' does it when \
                     the server is there",
                    member.name(),
                    io::Error::from_raw_os_error(errno)
                ),
            }
        }
        Ok(())
    }

    fn at_start(&self) -> AtStart {
        AtStart::Empty
    }

    fn activate(&self) -> io::Result<()> {
        self.settle_members()?;
        self.lower.lock_devices();
        self.lower.adopt_settings();
        self.top.activate()?;
        self.lower.wake();
        Ok(())
    }

    fn asynchronous(&self) -> Option<&dyn AsynchronousBackend> {
        self.waiting.is_started().then_some(self as &dyn AsynchronousBackend)
    }

    fn warm(&self) {
        self.top.warm();
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        self.top.statistics(report);
        report::numbers(&self.lower, report);
    }

    fn tiers(&self, report: &mut dyn FnMut(&TierReport<'_>)) {
        report::tiers(self.store(), &self.lower, report);
    }

    fn evacuation(&self) -> Option<EvacuationReport> {
        report::evacuation(&self.lower)
    }

    fn administration(&self) -> Option<&dyn Administration> {
        Some(self)
    }
}

#[cfg(test)]
mod tests;
