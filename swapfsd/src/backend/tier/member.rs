//! A member as it is used: its device, its room, whether it works, and what is counted about it.
//!
//! An object on a `log` member is its checksum and its bytes, as in the arena. On a `linear` member
//! a compressed object stands so at the start of its block; a raw page fills the block, and its
//! checksum is in its table entry: the upper 24 bits of it, where other entries have the length of
//! the object and the place inside the block. Of a member whose layout is `objects` the place is the
//! number in the object's key ([`crate::remote::Key`]); what is stored there is an envelope
//! ([`super::envelope`]) with the checksum and the bytes in it.

mod elsewhere;

pub(super) use elsewhere::MAX_REMOTE_LOADS;

use super::counts::{Counters, add};
use super::doubts::Doubts;
use super::envelope::ENVELOPE_BYTES;
use super::record::{Identity, Record, Records};
use super::removals::Removals;
use super::space::{Extent, Layout, Space, Stream};
use super::{Backing, MemberDevice};
use crate::backend::device::BlockDevice;
use crate::backend::objects::entry::{DEVICE_START, HEADER_BYTES, Location, Object};
use crate::codec::{self, Encoding};
use crate::remote::{Key, ObjectStore};
use crate::sync::{Mutex, RwLock};
use crate::sys::file::Discarded;
use log::{error, info};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

/// Bits of the checksum of a raw page in a block: those that the entry has room for.
const BLOCK_CHECK_SHIFT: u32 = 8;

/// Whether a member can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum State {
    Ok = 0,
    /// It has failed: it takes no pages until it has been looked at.
    Failed = 1,
    /// It is being emptied.
    Evacuating = 2,
    /// There is no device at all.
    Missing = 3,
}

impl State {
    fn from_number(number: u32) -> State {
        match number {
            0 => State::Ok,
            1 => State::Failed,
            2 => State::Evacuating,
            _ => State::Missing,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Failed => "failed",
            State::Evacuating => "evacuating",
            State::Missing => "missing",
        }
    }
}

/// How an object's bytes are tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// By the checksum that stands in front of them.
    InFront,
    /// By these bits of it.
    Upper24(u32),
}

/// Where on a member an object lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lies {
    /// Byte of the member's data section.
    pub(super) offset: u64,
    /// Bytes from there on, a checksum among them if it stands in front.
    pub(super) stored: u64,
    pub(super) check: Check,
    pub(super) encoding: Encoding,
    /// What the checksum in front is mixed with: see [`Member::lies_of`].
    pub(super) salt: u32,
}

impl Lies {
    /// The encoded bytes in what was read from there, and their whole checksum as it should be, as
    /// far as that is known. `None`: they are not what was stored.
    pub(super) fn checked<'a>(&self, stored: &'a [u8]) -> Option<&'a [u8]> {
        let (bytes, checksum) = self.unchecked(stored)?;
        (codec::checksum(self.encoding, bytes) == checksum).then_some(bytes)
    }

    /// As [`Lies::checked`] of an object whose checksum stands in front, without the test: what is
    /// damaged stays so, and is found when it is read.
    pub(super) fn unchecked<'a>(&self, stored: &'a [u8]) -> Option<(&'a [u8], u32)> {
        match self.check {
            Check::InFront => {
                let (front, bytes) = stored.split_at_checked(HEADER_BYTES)?;
                Some((bytes, u32::from_le_bytes(front.try_into().ok()?) ^ self.salt))
            }
            Check::Upper24(expected) => {
                let checksum = codec::checksum(self.encoding, stored);
                (checksum >> BLOCK_CHECK_SHIFT == expected).then_some((stored, checksum))
            }
        }
    }
}

/// What keeps a rate.
#[derive(Debug)]
struct Pace {
    /// Until when what was moved takes at the rate.
    until: Instant,
}

/// A member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) place: usize,
    pub(super) identity: Identity,
    name: String,
    pub(super) space: Space,
    pub(super) counters: Counters,
    /// Freed segments may be discarded, if the option says `auto`.
    pub(super) on_block_device: bool,
    /// The next slot that its hand looks at.
    pub(super) hand: AtomicU64,
    /// It has passed its high watermark, and not reached the low one.
    pub(super) over: AtomicBool,
    /// Its collector gains nothing.
    pub(super) stuck: AtomicBool,
    /// Of objects on a server: those that are to be removed.
    pub(super) removals: Removals,
    /// Of blocks on a server: room where something may still arrive.
    pub(super) doubts: Doubts,
    records: Arc<Records>,
    device: RwLock<Option<MemberDevice>>,
    state: AtomicU32,
    pace: Mutex<Pace>,
    /// Loads that are on their way to it, and since when the oldest is, in milliseconds since `made`.
    loads: AtomicU32,
    busy_since_ms: AtomicU64,
    made: Instant,
    /// Its server has no room: it is not asked for any until then, in milliseconds since `made`.
    full_until_ms: AtomicU64,
}

impl Member {
    /// With all memory that it needs. `device`: `None` if it is missing.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(
        place: usize,
        identity: Identity,
        device: Option<MemberDevice>,
        records: Arc<Records>,
    ) -> io::Result<Member> {
        let space = Space::new(identity.layout, identity.segment_bytes, identity.segment_count)?;
        let Identity { order, path, .. } = &identity;
        let on_block_device = device.as_ref().is_some_and(|device| device.on_block_device);
        let removals = Removals::new(identity.layout == Layout::Objects)?;
        let name = format!("tier {order} ({}, {path})", identity.kind.type_name());
        let is_there =
            device.as_ref().is_some_and(|device| !matches!(device.backing, Backing::Unopened(_)));
        let state = if is_there { State::Ok } else { State::Missing };
        Ok(Member {
            place,
            identity,
            name,
            space,
            counters: Counters::default(),
            on_block_device,
            hand: AtomicU64::new(0),
            over: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            removals,
            doubts: Doubts::new(),
            records,
            device: RwLock::new(device),
            state: AtomicU32::new(state as u32),
            pace: Mutex::new(Pace { until: Instant::now() }),
            loads: AtomicU32::new(0),
            busy_since_ms: AtomicU64::new(0),
            made: Instant::now(),
            full_until_ms: AtomicU64::new(0),
        })
    }

    fn record(&self) -> &Record {
        self.records.at(self.place)
    }

    /// Its pages are objects on a server.
    pub(super) fn has_objects(&self) -> bool {
        self.space.layout() == Layout::Objects
    }

    /// It is on a server elsewhere: it may answer late, or never.
    pub(super) fn is_remote(&self) -> bool {
        self.identity.is_remote
    }

    fn now_ms(&self) -> u64 {
        self.made.elapsed().as_millis() as u64
    }

    /// Takes room.
    pub(super) fn begin(&self, stream: Stream) -> Option<Extent> {
        let numbers = if self.has_objects() { self.numbers_taken() } else { 0 };
        self.space.begin(stream, numbers)
    }

    /// How many objects were ever put on its server.
    pub(super) fn numbers_taken(&self) -> u64 {
        self.record().numbers_taken()
    }

    /// Where the next object is put that goes to byte `at` of an extent.
    pub(super) fn offset_in(&self, extent: &Extent, at: usize) -> u64 {
        match self.has_objects() {
            true => self.record().take_number(),
            false => extent.offset + at as u64,
        }
    }

    pub(super) fn order(&self) -> u32 {
        self.identity.order
    }

    pub(super) fn state(&self) -> State {
        State::from_number(self.state.load(Ordering::Acquire))
    }

    /// Changes the state if it is `from`.
    pub(super) fn change_state(&self, from: State, to: State) -> bool {
        let (from, to) = (from as u32, to as u32);
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Pages can be put here: there is room, or it is about to be made.
    pub(super) fn takes_pages(&self) -> bool {
        !self.is_late() && self.will_take_pages()
    }

    /// The same, at once or when its server has taken what is on its way.
    pub(super) fn will_take_pages(&self) -> bool {
        self.state() == State::Ok
            && !(self.is_remote() && self.has_no_room_elsewhere())
            && self.space.live_bytes() < self.space.usable_bytes()
            && (self.space.has_room() || !self.stuck.load(Ordering::Relaxed))
    }

    /// For messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A device in the place of one that has gone.
    pub(super) fn set_device(&self, device: Option<MemberDevice>) {
        *self.device.write() = device;
    }

    /// The device, if there is one.
    pub(super) fn device(&self) -> Option<MemberDevice> {
        self.device.read().clone()
    }

    fn device_or_fail(&self) -> Result<Arc<dyn BlockDevice>, i32> {
        match self.device.read().as_ref().map(|device| &device.backing) {
            Some(Backing::Blocks(device)) => Ok(Arc::clone(device)),
            _ => {
                self.fail("it is not there", libc::ENODEV);
                Err(libc::EIO)
            }
        }
    }

    /// The store of objects, if it has one.
    pub(super) fn objects(&self) -> Option<Arc<dyn ObjectStore>> {
        match self.device.read().as_ref().map(|device| &device.backing) {
            Some(Backing::Objects(store)) => Some(Arc::clone(store)),
            _ => None,
        }
    }

    /// It does not work: it takes no pages until somebody has looked after it.
    pub(super) fn fail(&self, what: &str, errno: i32) {
        let failed = self.change_state(State::Ok, State::Failed);
        if failed {
            // The system's words for it would take memory.
            let name = self.name();
            error!("{name}: {what} (errno {errno}): it takes no pages until it works again");
        }
    }

    /// It works again.
    pub(super) fn recover(&self) {
        for from in [State::Failed, State::Missing] {
            if self.change_state(from, State::Ok) {
                info!("{} works again", self.name());
            }
        }
    }

    /// Does that location lie here?
    pub(super) fn has(&self, location: Location) -> bool {
        location
            .checked_sub(DEVICE_START + self.identity.base)
            .is_some_and(|offset| offset < self.space.addresses())
    }

    /// Where an object lies that [`Member::has`].
    pub(super) fn lies(&self, object: &Object) -> Lies {
        let offset = object.location - DEVICE_START - self.identity.base;
        let encoding = object.encoding;
        if self.space.layout() == Layout::Linear && encoding == Encoding::Raw {
            let (block, place) = (offset / PAGE_BYTES * PAGE_BYTES, offset % PAGE_BYTES);
            let expected = (place as u32) << 12 | (object.len as u32 - 1);
            let check = Check::Upper24(expected);
            return Lies { offset: block, stored: PAGE_BYTES, check, encoding, salt: 0 };
        }
        let stored = u64::from(object.stored_bytes());
        Lies { offset, stored, check: Check::InFront, encoding, salt: 0 }
    }

    /// Where the slot's object lies. On a server elsewhere there may be again what was there before,
    /// with a checksum that is right: when it has lost what it had acknowledged, or done late what
    /// nobody waits for. So that another slot's page is not taken, nor one of another mount, the
    /// checksum in front is mixed with both.
    pub(super) fn lies_of(&self, slot: u64, object: &Object) -> Lies {
        let mut lies = self.lies(object);
        if self.is_remote() && !self.has_objects() {
            let mixed = (slot ^ self.identity.run).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            lies.salt = (mixed >> 32) as u32;
        }
        lies
    }

    /// What an entry says of an object that is put at `offset`.
    pub(super) fn object_at(
        &self,
        offset: u64,
        encoding: Encoding,
        len: usize,
        checksum: u32,
    ) -> Object {
        let location = DEVICE_START + self.identity.base + offset;
        if self.space.layout() == Layout::Linear && encoding == Encoding::Raw {
            let check = checksum >> BLOCK_CHECK_SHIFT;
            let location = location + Location::from(check >> 12);
            return Object { encoding, location, len: (check & 0xfff) as usize + 1 };
        }
        Object { encoding, location, len }
    }

    /// Bytes that an object takes in an extent: with its checksum, unless it fills a block.
    pub(super) fn stored_bytes(&self, len: usize) -> usize {
        match self.space.layout() {
            Layout::Linear => PAGE_LEN,
            Layout::Log => HEADER_BYTES + len,
            Layout::Objects => ENVELOPE_BYTES + HEADER_BYTES + len,
        }
    }

    /// The object there, of the slot's, is named by no entry any more.
    pub(super) fn free(&self, slot: u64, object: &Object) {
        let lies = self.lies(object);
        if self.space.is_inside(lies.offset, lies.stored) {
            if self.has_objects() {
                self.remove_later(Key { slot, number: lies.offset });
            }
            self.space.free(lies.offset, self.space.taken_by(lies.stored));
            self.counters.pages.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// An entry names an object there: when everything is counted again.
    pub(super) fn count(&self, object: &Object) {
        let lies = self.lies(object);
        self.space.count(lies.offset, self.space.taken_by(lies.stored));
        add(&self.counters.pages, 1);
    }

    /// Reads whole pages of the data section.
    ///
    /// # Errors
    /// The errno, which the member has failed by.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), i32> {
        let device = self.device_or_fail()?;
        let started = Instant::now();
        let outcome = device.read_at(buffer, self.identity.data_offset_bytes + offset);
        self.counters.latencies.record(started.elapsed());
        add(&self.counters.read_bytes, buffer.len() as u64);
        outcome.inspect_err(|&errno| self.fail("reading failed", errno))
    }

    /// Writes whole pages of the data section.
    ///
    /// # Errors
    /// As for [`Member::read`].
    pub(super) fn write(&self, buffer: &[u8], offset: u64) -> Result<(), i32> {
        let device = self.device_or_fail()?;
        device.write_at(buffer, self.identity.data_offset_bytes + offset).inspect_err(
            |&errno| {
                add(&self.counters.write_errors, 1);
                self.fail("writing failed", errno);
            },
        )?;
        add(&self.counters.written_bytes, buffer.len() as u64);
        Ok(())
    }

    /// The range of the data section holds nothing that is needed.
    ///
    /// # Errors
    /// The errno, `EOPNOTSUPP` where there is no such thing. The member works on all the same.
    pub(super) fn discard(&self, offset: u64, bytes: u64) -> Result<(), i32> {
        let device = self.device_or_fail()?;
        match device.discard(self.identity.data_offset_bytes + offset, bytes)? {
            Discarded::Yes => Ok(()),
            Discarded::Unsupported => Err(libc::EOPNOTSUPP),
        }
    }

    /// `bytes` were moved here at `rate_bytes` a second at most (0: no limit): how long to wait
    /// before the next are.
    pub(super) fn pace(&self, bytes: u64, rate_bytes: u64) -> Duration {
        if rate_bytes == 0 {
            return Duration::ZERO;
        }
        let mut pace = self.pace.lock();
        let now = Instant::now();
        let takes = Duration::from_secs_f64(bytes as f64 / rate_bytes as f64);
        pace.until = pace.until.max(now) + takes;
        pace.until - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::objects::entry::Entry;
    use crate::held::Held;
    use proptest::prelude::*;
    use swapfs_format::member::MemberKind;
    use uuid::Uuid;

    fn member(kind: MemberKind, base: u64) -> Member {
        let layout = if kind == MemberKind::Log { Layout::Log } else { Layout::Linear };
        let identity = Identity {
            order: 1,
            kind,
            layout,
            is_remote: false,
            run: 0,
            uuid: Uuid::nil(),
            base,
            data_offset_bytes: 1 << 20,
            segment_bytes: 1 << 20,
            segment_count: 16,
            path: "there".to_owned(),
        };
        let records = Records::new(&Held::private()).unwrap();
        Member::new(0, identity, None, Arc::new(records)).unwrap()
    }

    proptest! {
        #[test]
        fn an_object_lies_where_it_was_put(
            linear in any::<bool>(), number in 2..=4u8, len in 1..4092usize, block in 0..4000u64,
            checksum in any::<u32>(), base in 0..1000u64
        ) {
            let kind = if linear { MemberKind::Linear } else { MemberKind::Log };
            let member = member(kind, base << 20);
            let encoding = Encoding::from_number(number).unwrap();
            let len = if encoding == Encoding::Raw { 4096 } else { len };
            let offset = if linear { block * 4096 } else { block * 4096 + checksum as u64 % 4096 };
            let object = member.object_at(offset, encoding, len, checksum);
            let read = Entry::object(object).as_object().unwrap();
            prop_assert!(member.has(read.location));
            let lies = member.lies(&read);
            prop_assert_eq!(lies.offset, offset);
            prop_assert_eq!(lies.encoding, encoding);
            if linear && encoding == Encoding::Raw {
                prop_assert_eq!((lies.check, lies.stored), (Check::Upper24(checksum >> 8), 4096));
            } else {
                prop_assert_eq!((lies.check, lies.stored), (Check::InFront, 4 + len as u64));
            }
        }

        #[test]
        fn a_flipped_bit_of_a_raw_block_is_found(at in 0..4096usize, bit in 0..8u32) {
            let member = member(MemberKind::Linear, 0);
            let mut page: Vec<u8> = (0..4096u32).map(|i| (i * 7 % 251) as u8).collect();
            let checksum = codec::checksum(Encoding::Raw, &page);
            let lies = member.lies(&member.object_at(8192, Encoding::Raw, 4096, checksum));
            prop_assert!(lies.checked(&page).is_some());
            page[at] ^= 1 << bit;
            prop_assert!(lies.checked(&page).is_none());
        }
    }

    #[test]
    fn a_rate_is_kept() {
        let member = member(MemberKind::Log, 0);
        assert_eq!(member.pace(1 << 30, 0), Duration::ZERO);
        assert!(member.pace(1 << 20, 1 << 20) <= Duration::from_secs(1));
        let second = member.pace(1 << 20, 1 << 20);
        assert!(second > Duration::from_millis(1500) && second <= Duration::from_secs(2));
    }
}
