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
//! * [`lower`]: which members there are; [`member`]: one of them; [`space`]: the room on it;
//!   [`record`]: what a successor must know of them;
//! * [`load`]: objects on their way to a member; [`demote`]: from the top; [`carry`]: from a member;
//!   [`upkeep`]: what each member needs done; [`evacuate`]: emptying one;
//! * [`read`]: swap-ins from below, and promotion; [`health`]: members that failed;
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
mod demote;
mod evacuate;
mod health;
mod load;
mod lower;
mod member;
pub mod policy;
mod read;
mod record;
mod report;
mod space;
mod upkeep;

pub(in crate::backend) use lower::Lower;

use super::device::BlockDevice;
use super::zmem::{Store, Zmem};
use super::{AtStart, Backend, EvacuationReport, TierReport};
use crate::admin::Administration;
use crate::buffer::BufferPool;
use crate::error::Result;
use crate::held::Held;
use crate::members::Keeper;
use crate::sync::Mutex;
use demote::Demoter;
use evacuate::Evacuator;
use member::Member;
use read::Reader;
use record::{Identity, Records};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use swapfs_format::member::{MAX_DEVICE_MEMBERS, MemberKind, MemberOptions};
use swapfs_format::types::TierOptions;
use upkeep::Upkeep;
use uuid::Uuid;

/// Threads that move pages down from the top.
const DEMOTERS: usize = 2;
/// `linear` has no segments of its own; these are what generations are counted by.
const BLOCK_SEGMENT_BYTES: u64 = 1 << 20;
/// The same of a small member.
const SMALL_BLOCK_SEGMENT_BYTES: u64 = 64 << 10;
/// Members of fewer bytes are small.
const SMALL_BYTES: u64 = 64 << 20;

/// A member's device.
#[derive(Debug, Clone)]
pub struct MemberDevice {
    /// Where its bytes are.
    pub device: Arc<dyn BlockDevice>,
    /// Freed segments are discarded if the option says `auto`.
    pub on_block_device: bool,
}

/// What a member's superblock says.
#[derive(Debug, Clone)]
pub struct MemberSetup {
    /// Its place in the order of tiers, from 1.
    pub order: u32,
    /// UUID of its own.
    pub uuid: Uuid,
    /// How it stores pages.
    pub kind: MemberKind,
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
    fn check(&self, device: &dyn BlockDevice, uuid: Uuid) -> std::result::Result<(), i32>;

    /// Writes the table of members into the volume's superblock, for the next mount.
    ///
    /// # Errors
    /// In words, why it can't be written.
    fn record(&self, members: &[MemberSetup]) -> std::result::Result<(), String>;

    /// Has `change` make new options of those in a member's superblock, and writes them there;
    /// answers them.
    ///
    /// # Errors
    /// In words, what `change` or the device has against it.
    fn record_options(
        &self,
        device: &dyn BlockDevice,
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
}

impl Tier {
    /// A tier volume, empty, or on what a predecessor left.
    ///
    /// # Errors
    /// No memory; `InvalidData` if what a predecessor left is not understood.
    pub fn new(setup: Setup<'_>, held: &Held) -> io::Result<Tier> {
        let Setup { slot_count, options, threads, buffers, devices, members, keeper, images } =
            setup;
        let lower = Arc::new(Lower::new(Records::new(held)?, options));
        if !held.is_adopted() {
            for (place, member) in members {
                let identity = place_of(&lower, &member)?;
                lower.records.at(place).publish(&identity, &member.options);
                install(&lower, place, identity, devices.get(place).cloned().flatten())?;
            }
        } else {
            for (place, device) in devices.iter().enumerate() {
                if let Some(identity) = lower.records.at(place).identity() {
                    install(&lower, place, identity, device.clone())?;
                }
            }
        }
        let mut top =
            Zmem::top_of(slot_count, &options.zmem, threads, held, Some(Arc::clone(&lower)))?;
        for _ in 0..DEMOTERS {
            let demoter = Demoter::new()?;
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
        };
        for member in tier.lower.members().iter() {
            tier.look_after(Arc::clone(member))?;
        }
        Ok(tier)
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
    let segment_bytes = match member.kind {
        MemberKind::Log => member.segment_bytes,
        MemberKind::Linear if member.data_bytes < SMALL_BYTES => SMALL_BLOCK_SEGMENT_BYTES,
        MemberKind::Linear => BLOCK_SEGMENT_BYTES,
    };
    let segment_count = member.data_bytes / segment_bytes.max(1);
    let base = lower.free_base(segment_count * segment_bytes);
    let base = base.ok_or_else(|| {
        let why = "all members together have more than 4 TiB, which entries can't say";
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })?;
    Ok(Identity {
        order: member.order,
        kind: member.kind,
        uuid: member.uuid,
        base,
        data_offset_bytes: member.data_offset_bytes,
        segment_bytes,
        segment_count,
        path: member.path.clone(),
    })
}

fn install(
    lower: &Lower,
    place: usize,
    identity: Identity,
    device: Option<MemberDevice>,
) -> io::Result<Arc<Member>> {
    let member = Arc::new(member_of(place, identity, device)?);
    lower.install(Arc::clone(&member));
    Ok(member)
}

fn member_of(place: usize, identity: Identity, device: Option<MemberDevice>) -> io::Result<Member> {
    let on_block_device = device.as_ref().is_some_and(|device| device.on_block_device);
    Member::new(place, identity, device.map(|device| device.device), on_block_device)
}

impl Drop for Tier {
    fn drop(&mut self) {
        self.top.stop_soon();
        self.lower.wake();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            while !thread.is_finished() {
                self.lower.wake();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            drop(thread.join());
        }
    }
}

impl Backend for Tier {
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        let (store, lower, buffers) = (&**self.store(), &*self.lower, &self.buffers);
        Reader { store, lower, buffers }.read(first, pages)
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
