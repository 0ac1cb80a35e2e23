//! Objects in the arena: appended to open segments, read in place, freed by count.
//!
//! An object is its checksum (4 bytes) and its encoded bytes, one behind the other without any
//! rounding: there are no size classes, so nothing is lost inside an object, and what is lost
//! between objects is what died there since. The compactor closes those gaps ([`super::compact`]).
//! This is the log of a log-structured store, in memory.
//!
//! Each writer has an open segment of its own, so that threads that write share nothing but the
//! list of free segments, which they visit once in 256 KiB.

use super::arena::{Arena, SEGMENT_BYTES, segment_of};
use super::entry::{HEADER_BYTES, Location, Object};
use crate::codec::{self, Encoding};
use crate::crash::{self, Point};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where a writer appends.
#[derive(Debug, Default)]
pub(in crate::backend) struct OpenSegment {
    segment: Option<u32>,
    fill: usize,
    /// Segments that were taken beforehand; the compactor appends to no others.
    ready: Vec<u32>,
}

/// What one object takes at most: less than that may be left over at the end of a segment.
pub(in crate::backend) const MAX_OBJECT_BYTES: u64 =
    (HEADER_BYTES + codec::MAX_OBJECT_BYTES) as u64;

impl OpenSegment {
    /// For the compactor, with room to note `ready_max` segments.
    pub(in crate::backend) fn with_ready(ready_max: usize) -> OpenSegment {
        OpenSegment { ready: Vec::with_capacity(ready_max), ..OpenSegment::default() }
    }

    /// Notes a segment that will be appended to when the one before it is full.
    pub(in crate::backend) fn add_ready(&mut self, segment: u32) {
        self.ready.push(segment);
    }

    /// Bytes of objects that surely fit, in whatever order they come.
    pub(in crate::backend) fn room_bytes(&self) -> u64 {
        let left = self.segment.map_or(0, |_| SEGMENT_BYTES - self.fill) as u64;
        let usable = |bytes: u64| bytes.saturating_sub(MAX_OBJECT_BYTES);
        usable(left) + self.ready.len() as u64 * usable(SEGMENT_BYTES as u64)
    }

    /// Takes a segment back that was not needed.
    pub(in crate::backend) fn take_unused(&mut self) -> Option<u32> {
        self.ready.pop()
    }
}

/// Who asks for room, and so how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) enum Purpose {
    /// A write of the kernel's: waits a moment.
    Write,
    /// The compactor: has segments set aside, since it makes free ones.
    Compact,
    /// The recompressor, and promotion: goes without where others need the room.
    Recompress,
}

/// An object that does not check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) struct Corrupt;

/// The objects.
#[derive(Debug)]
pub(in crate::backend) struct Pool {
    pub(in crate::backend) arena: Arc<Arena>,
}

impl Pool {
    /// Stores an object. `None`: no room, and nothing was changed.
    pub(in crate::backend) fn append(
        &self,
        open: &mut OpenSegment,
        purpose: Purpose,
        encoding: Encoding,
        checksum: u32,
        bytes: &[u8],
    ) -> Option<Object> {
        let size = HEADER_BYTES + bytes.len();
        let segment = match open.segment {
            Some(segment) if open.fill + size <= SEGMENT_BYTES => segment,
            _ => self.open_next(open, purpose)?,
        };
        let location = segment as Location * SEGMENT_BYTES as Location + open.fill as Location;
        let start = self.arena.at(location, size);
        // SAFETY: this range of an open segment is nobody else's: who has `open` owns all of the
        // segment from `fill` on, and no entry names it yet.
        let to = unsafe { std::slice::from_raw_parts_mut(start, size) };
        let (header, body) = to.split_at_mut(HEADER_BYTES);
        header.copy_from_slice(&checksum.to_le_bytes());
        body.copy_from_slice(bytes);
        open.fill += size;
        self.arena.add_live(segment, size as u32);
        crash::pass(Point::ZmemStored);
        Some(Object { encoding, location, len: bytes.len() })
    }

    fn open_next(&self, open: &mut OpenSegment, purpose: Purpose) -> Option<u32> {
        let next = match purpose {
            Purpose::Write => self.arena.take_for_write(),
            Purpose::Compact => open.ready.pop(),
            Purpose::Recompress => self.arena.take_for_move(0),
        }?;
        if let Some(full) = open.segment.replace(next) {
            self.arena.seal(full);
        }
        open.fill = 0;
        Some(next)
    }

    /// Closes what a writer had open; false if that was nothing.
    pub(in crate::backend) fn close(&self, open: &mut OpenSegment) -> bool {
        let closed = open.segment.take().inspect(|&segment| self.arena.seal(segment));
        closed.is_some()
    }

    /// The bytes of an object whose checksum is right, and the checksum.
    ///
    /// The caller keeps the object alive as long as it has the bytes: by the lock of a slot
    /// whose entry names it.
    pub(in crate::backend) fn checked(&self, object: &Object) -> Result<(&[u8], u32), Corrupt> {
        let (bytes, checksum) = self.unchecked(object).ok_or(Corrupt)?;
        match codec::checksum(object.encoding, bytes) == checksum {
            true => Ok((bytes, checksum)),
            false => Err(Corrupt),
        }
    }

    /// The bytes of an object and the checksum that they should have. `None` if there can be
    /// none at that place.
    pub(in crate::backend) fn unchecked(&self, object: &Object) -> Option<(&[u8], u32)> {
        let size = HEADER_BYTES + object.len;
        if !self.arena.is_inside(object.location, size) {
            return None;
        }
        let start = self.arena.at(object.location, size);
        // SAFETY: populated memory inside one segment, written before the entry that names it
        // was published, and not again as long as the caller keeps the object alive. (An entry
        // that was damaged in memory, and not found out by its check bits, could name a place
        // that is being written: the checksum then decides about the bytes, whatever they are.)
        let stored = unsafe { std::slice::from_raw_parts(start, size) };
        let (header, bytes) = stored.split_at(HEADER_BYTES);
        Some((bytes, u32::from_le_bytes([header[0], header[1], header[2], header[3]])))
    }

    /// Keeps the object's place from being used again, though it may be freed: until it is freed
    /// once more. The caller has the lock of a slot whose entry names it.
    pub(in crate::backend) fn hold(&self, object: &Object) {
        self.arena.add_live(segment_of(object.location), object.stored_bytes());
    }

    /// The object is no longer named by any entry, and nobody reads it.
    pub(in crate::backend) fn free(&self, object: &Object) {
        // Readers that had the lock before us are done with it.
        std::sync::atomic::fence(Ordering::Acquire);
        let size = object.stored_bytes();
        // A damaged entry may name a place where nothing was: that is not ours to free.
        if self.arena.is_inside(object.location, size as usize)
            && self.arena.segment(segment_of(object.location)).1 >= size
        {
            self.arena.sub_live(object.location, size);
        }
    }
}
