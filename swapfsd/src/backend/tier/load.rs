//! A load of objects on its way to a member: gathered in memory, written at once, published one by
//! one.
//!
//! ```text
//! object --push--> [load] --write--> [extent of the member] --publish--> [table entry]
//!    | held                                                        old place freed
//! ```
//!
//! Objects travel as they are, with their checksums. Until a load is on the device, entries name
//! the places that its objects come from. Then each entry is changed that still says the same, and
//! whose object can't have been another one meanwhile: an object of the arena is *held*, so that
//! its segment is not used again; of a device's, the segment's generation must be what it was when
//! it was read.

use super::member::{Member, add};
use super::policy;
use super::space::{Extent, MAX_EXTENT_BYTES, Stream};
use crate::backend::objects::entry::{Entry, HEADER_BYTES, Object};
use crate::backend::zmem::Store;
use crate::codec::Encoding;
use crate::crash::{self, Point};
use crate::sys::memory::Mapping;
use crate::sys::process;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use swapfs_format::PAGE_LEN;

/// More than fit into an extent.
const MAX_ITEMS: usize = MAX_EXTENT_BYTES / (HEADER_BYTES + 24);

/// What an object comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// The arena, where it is held.
    Arena(Object),
    /// A segment of a member, as of that generation of it.
    Device { place: usize, segment: u64, generation: u32 },
}

/// Why it moves: what becomes of its age, and what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It is cold.
    Demotion,
    /// It is in the way.
    Collection,
    /// Its tier is emptied.
    Evacuation,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    slot: u64,
    expected: Entry,
    new: Object,
    offset: u64,
    /// What it takes on the member.
    size: u64,
    /// Its encoded bytes.
    len: u64,
    source: Source,
}

/// An object to be moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved<'a> {
    pub(super) slot: u64,
    /// What the slot's entry says.
    pub(super) entry: Entry,
    pub(super) encoding: Encoding,
    pub(super) checksum: u32,
    pub(super) bytes: &'a [u8],
    pub(super) source: Source,
}

/// What became of a load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) pages: u64,
    /// Encoded bytes of these.
    pub(super) bytes: u64,
    /// What was written to the member for them.
    pub(super) written_bytes: u64,
    /// The member could not be written to.
    pub(super) failed: bool,
}

/// A load.
#[derive(Debug)]
pub(super) struct Load {
    memory: Mapping,
    items: Vec<Item>,
    to: Option<(Arc<Member>, Extent)>,
    fill: usize,
}

impl Load {
    /// An empty one, with all memory that it will use.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new() -> io::Result<Load> {
        let memory = Mapping::new(MAX_EXTENT_BYTES, true)?;
        let object = Object { encoding: Encoding::Raw, location: 0, len: 1 };
        let nothing = Item {
            slot: 0,
            expected: Entry::ABSENT,
            new: object,
            offset: 0,
            size: 0,
            len: 0,
            source: Source::Arena(object),
        };
        // Touched, so that it is there.
        let mut items = vec![nothing; MAX_ITEMS];
        items.clear();
        Ok(Load { memory, items, to: None, fill: 0 })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: populated private memory of this load's, which its borrower has alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.memory.len()) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Where it goes.
    pub(super) fn member(&self) -> Option<&Arc<Member>> {
        self.to.as_ref().map(|(member, _)| member)
    }

    /// Begins one for `member`. False: there is no room.
    pub(super) fn begin(&mut self, member: &Arc<Member>, stream: Stream) -> bool {
        debug_assert!(self.is_empty() && self.to.is_none());
        let extent = member.space.begin(stream);
        self.to = extent.map(|extent| (Arc::clone(member), extent));
        self.fill = 0;
        self.to.is_some()
    }

    /// Does such an object fit?
    pub(super) fn fits(&self, encoding: Encoding, len: usize) -> bool {
        self.to.as_ref().is_some_and(|(member, extent)| {
            self.items.len() < MAX_ITEMS
                && self.fill + member.stored_bytes(encoding, len) <= extent.capacity
        })
    }

    /// Adds an object that fits.
    pub(super) fn push(&mut self, moved: &Moved<'_>) {
        let Some((member, extent)) = &self.to else { return };
        let offset = extent.offset + self.fill as u64;
        let size = member.stored_bytes(moved.encoding, moved.bytes.len());
        let new = member.object_at(offset, moved.encoding, moved.bytes.len(), moved.checksum);
        let lies = member.lies(&new);
        let taken = member.space.taken_by(lies.stored);
        let fill = self.fill;
        let in_front = lies.stored as usize != moved.bytes.len();
        let to = &mut self.bytes()[fill..fill + size];
        let (front, rest) = to.split_at_mut(if in_front { HEADER_BYTES } else { 0 });
        if in_front {
            front.copy_from_slice(&moved.checksum.to_le_bytes());
        }
        let (body, padding) = rest.split_at_mut(moved.bytes.len());
        body.copy_from_slice(moved.bytes);
        // Nothing of the memory's past goes to the device.
        padding.fill(0);
        self.items.push(Item {
            slot: moved.slot,
            expected: moved.entry,
            new,
            offset,
            size: taken,
            len: moved.bytes.len() as u64,
            source: moved.source,
        });
        self.fill += size;
    }

    /// Writes the load, publishes its objects, and is empty then.
    pub(super) fn send(&mut self, store: &Store, why: Why) -> Outcome {
        let Some((member, extent)) = self.to.take() else { return Outcome::default() };
        let mut outcome = Outcome::default();
        if self.items.is_empty() {
            member.space.give_back(extent);
            return outcome;
        }
        let (fill, end) = (self.fill, self.fill.next_multiple_of(PAGE_LEN));
        self.bytes()[fill..end].fill(0);
        crash::pass(Point::TierLoaded);
        let written = process::as_realtime(|| member.write(&self.bytes()[..end], extent.offset));
        crash::pass(Point::TierWritten);
        outcome.failed = written.is_err();
        outcome.written_bytes = if outcome.failed { 0 } else { end as u64 };
        for item in &self.items {
            // What could not be written is given back as a whole, below.
            if !outcome.failed {
                member.space.placed(item.offset, item.size);
                if publish(store, &member, item, why) {
                    outcome.pages += 1;
                    outcome.bytes += item.len;
                } else {
                    member.space.free(item.offset, item.size);
                }
            }
            if let Source::Arena(object) = item.source {
                store.pool.free(&object);
            }
        }
        member.space.end(extent, if outcome.failed { 0 } else { end });
        if why == Why::Collection {
            add(&member.counters.collected_bytes, outcome.bytes);
        } else {
            add(&member.counters.demoted_in_pages, outcome.pages);
            add(&member.counters.demoted_in_bytes, outcome.bytes);
        }
        if let Some(lower) = &store.lower {
            let vain = self.items.len() as u64 - outcome.pages;
            lower.counters.moves_in_vain.fetch_add(vain, Ordering::Relaxed);
        }
        self.items.clear();
        outcome
    }
}

/// Makes the slot's entry name the object's new place, if it still names the old one.
fn publish(store: &Store, member: &Member, item: &Item, why: Why) -> bool {
    let Some(cell) = store.table.cell_of(item.slot) else { return false };
    let alone = store.slots.of(item.slot).write();
    if !is_as_read(store, &item.source) {
        return false;
    }
    let old = loop {
        let current = Entry(cell.load(Ordering::Acquire));
        if !current.is_same_as(item.expected) {
            return false;
        }
        let new = match why {
            Why::Demotion => Entry::object(item.new).with_age(policy::AGE_OF_NEW),
            // It is where it was, as far as anybody can tell.
            Why::Collection | Why::Evacuation => Entry::object(item.new).with_history_of(current),
        };
        // Its age may change without the lock.
        let exchange = cell.compare_exchange(current.0, new.0, Ordering::AcqRel, Ordering::Acquire);
        if exchange.is_ok() {
            break current;
        }
    };
    // Before the old one is freed: who looks must not see fewer than there are.
    add(&member.counters.pages, 1);
    drop(alone);
    crash::pass(Point::TierPublished);
    store.release(old);
    true
}

/// What was read is what the entry named all the time.
fn is_as_read(store: &Store, source: &Source) -> bool {
    match *source {
        Source::Arena(_) => true,
        Source::Device { place, segment, generation } => {
            let member = store.lower.as_ref().and_then(|lower| lower.at(place));
            member.is_some_and(|member| member.space.generation(segment) == generation)
        }
    }
}
