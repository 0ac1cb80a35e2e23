//! What a tier volume's members are, for whoever takes over: a page of memory that the supervisor
//! holds.
//!
//! ```text
//! 0      header: magic, and an evacuation that is under way
//! 512    one record of 416 bytes for each place: what the member is, and how it is to be used
//! 4096   one line of 16 bytes for each write that is on its way to a server elsewhere
//! ```
//!
//! A place is where a member's descriptor stands in the supervisor's holdings. Its record is
//! written before its state says that there is a member, and the member is empty before the state
//! says that there is none: so whatever the slot table names has a record.

use super::space::Layout;
use crate::held::Held;
use crate::sys::memory::Mapping;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use swapfs_format::PAGE_LEN;
use swapfs_format::member::{Keep, MAX_DEVICE_MEMBERS, MemberKind, MemberOptions, Promote};
use swapfs_format::types::SegmentDiscard;
use uuid::Uuid;

/// The region of this page.
const TIER_REGION: usize = 3;
/// The last byte is the version.
const MAGIC: u64 = u64::from_le_bytes(*b"swaptie\x02");
const RECORDS_OFFSET: usize = 512;
/// Where the lines of writes begin.
const WRITES_OFFSET: usize = PAGE_LEN;
/// Writes to servers elsewhere that may be on their way, or in doubt, at a time.
pub(super) const MAX_WRITES: usize = 128;
/// All of it.
const RECORDS_BYTES: usize = 2 * PAGE_LEN;
/// Bytes of a path that are kept: for messages.
const PATH_BYTES: usize = 192;

#[derive(Debug)]
#[repr(C)]
struct Header {
    magic: AtomicU64,
    /// The place that is being emptied, and one more; 0: none.
    evacuated: AtomicU32,
    direction: AtomicU32,
    /// Bytes a second; 0: no limit.
    rate_bytes: AtomicU64,
    moved_pages: AtomicU64,
    /// The top's watermarks, in per cent, where they were changed since the mount.
    top_high: AtomicU32,
    top_low: AtomicU32,
}

/// One member.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Record {
    in_use: AtomicU32,
    order: AtomicU32,
    kind: AtomicU32,
    high_percent: AtomicU32,
    low_percent: AtomicU32,
    promote: AtomicU32,
    keep: AtomicU32,
    incompressible: AtomicU32,
    discard: AtomicU32,
    path_len: AtomicU32,
    uuid: [AtomicU64; 2],
    base: AtomicU64,
    data_offset_bytes: AtomicU64,
    segment_bytes: AtomicU64,
    segment_count: AtomicU64,
    rate_bytes: AtomicU64,
    /// See [`Layout`], and whether it is on a server elsewhere.
    layout: AtomicU32,
    is_remote: AtomicU32,
    /// Part of the keys of objects on a server: another one in each mount.
    run: AtomicU64,
    /// The number of the next object. Never one twice, whoever serves: a key must mean one page.
    next_number: AtomicU64,
    path: [AtomicU64; PATH_BYTES / 8],
}

/// A write that is on its way to a server elsewhere: it can still arrive when its writer has died.
#[derive(Debug)]
#[repr(C)]
struct Write {
    /// 0: none. Else the place and one more, and how many bytes above 8 bits.
    what: AtomicU64,
    offset: AtomicU64,
}

const _: () = {
    assert!(size_of::<Header>() <= RECORDS_OFFSET);
    assert!(RECORDS_OFFSET + MAX_DEVICE_MEMBERS * size_of::<Record>() <= PAGE_LEN);
    assert!(WRITES_OFFSET + MAX_WRITES * size_of::<Write>() <= RECORDS_BYTES);
    assert!(RECORDS_OFFSET.is_multiple_of(8) && size_of::<Record>().is_multiple_of(8));
};

/// What of a member does not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) order: u32,
    pub(super) kind: MemberKind,
    pub(super) uuid: Uuid,
    /// Where its bytes start in the address space of all members.
    pub(super) base: u64,
    pub(super) data_offset_bytes: u64,
    pub(super) segment_bytes: u64,
    pub(super) segment_count: u64,
    pub(super) layout: Layout,
    /// It is on a server elsewhere.
    pub(super) is_remote: bool,
    /// See [`Record::take_number`].
    pub(super) run: u64,
    pub(super) path: String,
}

/// Which way an evacuation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Direction {
    /// Down, where there is something below that takes pages; else up.
    Auto = 0,
    Up = 1,
    Down = 2,
}

impl Direction {
    pub(super) fn from_number(number: u32) -> Direction {
        match number {
            1 => Direction::Up,
            2 => Direction::Down,
            _ => Direction::Auto,
        }
    }
}

/// An evacuation as it is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) place: usize,
    pub(super) direction: Direction,
    /// Bytes a second; 0: no limit.
    pub(super) rate_bytes: u64,
}

/// The page.
#[derive(Debug)]
pub(super) struct Records {
    memory: Mapping,
}

impl Records {
    /// A predecessor's, or new without members.
    ///
    /// # Errors
    /// No memory; `InvalidData` where the predecessor's is not what it should be.
    pub(super) fn new(held: &Held) -> io::Result<Records> {
        let memory = held.map(TIER_REGION, RECORDS_BYTES)?;
        if held.is_adopted() {
            memory.map_present(0, RECORDS_BYTES)?;
        } else {
            memory.populate_range(0, RECORDS_BYTES)?;
        }
        let records = Records { memory };
        let magic = &records.header().magic;
        if !held.is_adopted() {
            magic.store(MAGIC, Ordering::Release);
        } else if magic.load(Ordering::Acquire) != MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the memory left behind is not that of a tier volume, or of another version of \
                 this program: unmount it and mount it again",
            ));
        }
        Ok(records)
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned and a page long; any bits are a header, whose fields
        // are atomics.
        unsafe { &*self.memory.as_ptr().cast() }
    }

    /// The record of a place.
    pub(super) fn at(&self, place: usize) -> &Record {
        assert!(place < MAX_DEVICE_MEMBERS);
        // SAFETY: inside the page, as its layout asserts.
        let start =
            unsafe { self.memory.as_ptr().add(RECORDS_OFFSET + place * size_of::<Record>()) };
        // SAFETY: aligned; any bits are a record, whose fields are atomics.
        unsafe { &*start.cast() }
    }

    fn write_at(&self, line: usize) -> &Write {
        assert!(line < MAX_WRITES);
        let offset = WRITES_OFFSET + line * size_of::<Write>();
        // SAFETY: inside the memory, as its layout asserts.
        let start = unsafe { self.memory.as_ptr().add(offset) };
        // SAFETY: aligned; any bits are a line, whose fields are atomics.
        unsafe { &*start.cast() }
    }

    /// Notes that `bytes` are about to be written to a member. `None`: too many are.
    pub(super) fn begin_write(&self, place: usize, offset: u64, bytes: u64) -> Option<usize> {
        let what = (place as u64 + 1) | (bytes << 8);
        let order = (Ordering::AcqRel, Ordering::Relaxed);
        (0..MAX_WRITES).find(|&line| {
            let write = self.write_at(line);
            // Taken first: a successor that finds it without its offset, which is that of an earlier
            // write, keeps room from being used that is free.
            let taken = write.what.compare_exchange(0, what, order.0, order.1).is_ok();
            if taken {
                write.offset.store(offset, Ordering::Release);
            }
            taken
        })
    }

    /// It has arrived, or nothing will.
    pub(super) fn end_write(&self, line: usize) {
        self.write_at(line).what.store(0, Ordering::Release);
    }

    /// Writes that a predecessor began and nobody has seen the end of: line, place, offset, bytes.
    pub(super) fn writes(&self) -> impl Iterator<Item = (usize, usize, u64, u64)> {
        (0..MAX_WRITES).filter_map(|line| {
            let write = self.write_at(line);
            let what = write.what.load(Ordering::Acquire);
            let place = (what & 0xff).checked_sub(1)? as usize;
            Some((line, place, write.offset.load(Ordering::Acquire), what >> 8))
        })
    }

    /// The evacuation that is under way.
    pub(super) fn evacuation(&self) -> Option<Order> {
        let header = self.header();
        let place = header.evacuated.load(Ordering::Acquire).checked_sub(1)? as usize;
        (place < MAX_DEVICE_MEMBERS).then(|| Order {
            place,
            direction: Direction::from_number(header.direction.load(Ordering::Relaxed)),
            rate_bytes: header.rate_bytes.load(Ordering::Relaxed),
        })
    }

    /// Begins one, or ends it.
    pub(super) fn set_evacuation(&self, order: Option<Order>) {
        let header = self.header();
        if let Some(order) = order {
            header.direction.store(order.direction as u32, Ordering::Relaxed);
            header.rate_bytes.store(order.rate_bytes, Ordering::Relaxed);
            header.moved_pages.store(0, Ordering::Relaxed);
        }
        let number = order.map_or(0, |order| order.place as u32 + 1);
        header.evacuated.store(number, Ordering::Release);
    }

    /// The top's watermarks in per cent, high and low, where they were changed.
    pub(super) fn top(&self) -> Option<(u64, u64)> {
        let header = self.header();
        let high = header.top_high.load(Ordering::Acquire);
        (high > 0).then(|| (u64::from(high), u64::from(header.top_low.load(Ordering::Relaxed))))
    }

    /// For those who serve after this process.
    pub(super) fn set_top(&self, high_percent: u64, low_percent: u64) {
        let header = self.header();
        header.top_low.store(low_percent as u32, Ordering::Relaxed);
        header.top_high.store(high_percent as u32, Ordering::Release);
    }

    /// Pages that it has moved, whoever has served.
    pub(super) fn evacuated_pages(&self) -> &AtomicU64 {
        &self.header().moved_pages
    }
}

fn kind_number(kind: MemberKind) -> u32 {
    match kind {
        MemberKind::Log => 0,
        MemberKind::Linear => 1,
        MemberKind::Remote => 2,
    }
}

fn layout_number(layout: Layout) -> u32 {
    match layout {
        Layout::Log => 0,
        Layout::Linear => 1,
        Layout::Objects => 2,
    }
}

impl Record {
    /// There is a member here.
    pub(super) fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Acquire) != 0
    }

    /// There is one from now on.
    pub(super) fn publish(&self, identity: &Identity, options: &MemberOptions) {
        let (high, low) = identity.uuid.as_u64_pair();
        self.uuid[0].store(high, Ordering::Relaxed);
        self.uuid[1].store(low, Ordering::Relaxed);
        self.order.store(identity.order, Ordering::Relaxed);
        self.kind.store(kind_number(identity.kind), Ordering::Relaxed);
        self.layout.store(layout_number(identity.layout), Ordering::Relaxed);
        self.is_remote.store(u32::from(identity.is_remote), Ordering::Relaxed);
        self.run.store(identity.run, Ordering::Relaxed);
        self.next_number.store(0, Ordering::Relaxed);
        self.base.store(identity.base, Ordering::Relaxed);
        self.data_offset_bytes.store(identity.data_offset_bytes, Ordering::Relaxed);
        self.segment_bytes.store(identity.segment_bytes, Ordering::Relaxed);
        self.segment_count.store(identity.segment_count, Ordering::Relaxed);
        let path = identity.path.as_bytes();
        let path = &path[..path.len().min(PATH_BYTES)];
        for (word, bytes) in self.path.iter().zip(path.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        self.path_len.store(path.len() as u32, Ordering::Relaxed);
        self.set(options);
        self.in_use.store(1, Ordering::Release);
    }

    /// A number for an object that is put on a server: nobody had it, and nobody will.
    pub(super) fn take_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::AcqRel)
    }

    /// How many were taken.
    pub(super) fn numbers_taken(&self) -> u64 {
        self.next_number.load(Ordering::Relaxed)
    }

    /// There is none any more: it is empty.
    pub(super) fn withdraw(&self) {
        self.in_use.store(0, Ordering::Release);
    }

    /// How it is to be used from now on. What an option of the format can't change stays.
    pub(super) fn set(&self, options: &MemberOptions) {
        let promote = match options.promote {
            Promote::Always => 0,
            Promote::Second => 1,
            Promote::Never => 2,
        };
        let discard = match options.discard {
            SegmentDiscard::Auto => 0,
            SegmentDiscard::On => 1,
            SegmentDiscard::Off => 2,
        };
        self.high_percent.store(options.high_percent, Ordering::Relaxed);
        self.low_percent.store(options.low_percent, Ordering::Relaxed);
        self.promote.store(promote, Ordering::Relaxed);
        self.keep.store(u32::from(options.keep == Keep::Inclusive), Ordering::Relaxed);
        self.incompressible.store(u32::from(options.incompressible), Ordering::Relaxed);
        self.discard.store(discard, Ordering::Relaxed);
        self.rate_bytes.store(options.rate_bytes.unwrap_or(0), Ordering::Relaxed);
    }

    /// What the member is. `None`: there is none.
    pub(super) fn identity(&self) -> Option<Identity> {
        if !self.is_in_use() {
            return None;
        }
        let path_len = (self.path_len.load(Ordering::Relaxed) as usize).min(PATH_BYTES);
        let path: Vec<u8> = self
            .path
            .iter()
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .take(path_len)
            .collect();
        let uuid = self.uuid.each_ref().map(|word| word.load(Ordering::Relaxed));
        Some(Identity {
            order: self.order.load(Ordering::Relaxed),
            kind: match self.kind.load(Ordering::Relaxed) {
                0 => MemberKind::Log,
                1 => MemberKind::Linear,
                _ => MemberKind::Remote,
            },
            layout: match self.layout.load(Ordering::Relaxed) {
                0 => Layout::Log,
                1 => Layout::Linear,
                _ => Layout::Objects,
            },
            is_remote: self.is_remote.load(Ordering::Relaxed) != 0,
            run: self.run.load(Ordering::Relaxed),
            uuid: Uuid::from_u64_pair(uuid[0], uuid[1]),
            base: self.base.load(Ordering::Relaxed),
            data_offset_bytes: self.data_offset_bytes.load(Ordering::Relaxed),
            segment_bytes: self.segment_bytes.load(Ordering::Relaxed),
            segment_count: self.segment_count.load(Ordering::Relaxed),
            path: String::from_utf8_lossy(&path).into_owned(),
        })
    }

    /// How it is to be used.
    pub(super) fn options(&self, kind: MemberKind) -> MemberOptions {
        MemberOptions {
            kind,
            high_percent: self.high_percent() as u32,
            low_percent: self.low_percent() as u32,
            promote: self.promote(),
            keep: self.keep(),
            rate_bytes: Some(self.rate_bytes()).filter(|&bytes| bytes > 0),
            incompressible: self.takes_incompressible(),
            segment_bytes: None,
            discard: self.discard(),
            remote: None,
        }
    }

    pub(super) fn high_percent(&self) -> u64 {
        u64::from(self.high_percent.load(Ordering::Relaxed))
    }

    pub(super) fn low_percent(&self) -> u64 {
        u64::from(self.low_percent.load(Ordering::Relaxed))
    }

    pub(super) fn promote(&self) -> Promote {
        match self.promote.load(Ordering::Relaxed) {
            0 => Promote::Always,
            1 => Promote::Second,
            _ => Promote::Never,
        }
    }

    pub(super) fn keep(&self) -> Keep {
        match self.keep.load(Ordering::Relaxed) {
            0 => Keep::Exclusive,
            _ => Keep::Inclusive,
        }
    }

    /// Incompressible pages are taken.
    pub(super) fn takes_incompressible(&self) -> bool {
        self.incompressible.load(Ordering::Relaxed) != 0
    }

    pub(super) fn discard(&self) -> SegmentDiscard {
        match self.discard.load(Ordering::Relaxed) {
            0 => SegmentDiscard::Auto,
            1 => SegmentDiscard::On,
            _ => SegmentDiscard::Off,
        }
    }

    /// Bytes a second that may be moved here; 0: no limit.
    pub(super) fn rate_bytes(&self) -> u64 {
        self.rate_bytes.load(Ordering::Relaxed)
    }
}
