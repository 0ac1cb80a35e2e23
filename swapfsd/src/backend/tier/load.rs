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

use super::counts::add;
use super::envelope::{self, ENVELOPE_BYTES};
use super::member::Member;
use super::policy;
use super::space::{Extent, MAX_EXTENT_BYTES, Space, Stream};
use crate::backend::objects::entry::{Entry, HEADER_BYTES, Object};
use crate::backend::zmem::Store;
use crate::codec::Encoding;
use crate::crash::{self, Point};
use crate::remote::{Key, nbd};
use crate::sys::memory::Mapping;
use crate::sys::process;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use swapfs_format::PAGE_LEN;

/// Objects in a load at most: more than fit into an extent, unless they are tiny.
const MAX_ITEMS: usize = 8 << 10;

/// Objects that are put on a server by one call.
const MAX_PUT: usize = 256;

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
    /// Where in the load it is, and what it takes there.
    at: usize,
    stored: usize,
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
            at: 0,
            stored: 0,
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
        let extent = member.begin(stream);
        self.to = extent.map(|extent| (Arc::clone(member), extent));
        self.fill = 0;
        self.to.is_some()
    }

    /// Does such an object fit?
    pub(super) fn fits(&self, len: usize) -> bool {
        self.to.as_ref().is_some_and(|(member, extent)| {
            self.items.len() < MAX_ITEMS && self.fill + member.stored_bytes(len) <= extent.capacity
        })
    }

    /// Adds an object that fits.
    pub(super) fn push(&mut self, moved: &Moved<'_>) {
        let Some((member, extent)) = &self.to else { return };
        let offset = member.offset_in(extent, self.fill);
        let size = member.stored_bytes(moved.bytes.len());
        let new = member.object_at(offset, moved.encoding, moved.bytes.len(), moved.checksum);
        let lies = member.lies_of(moved.slot, &new);
        let taken = member.space.taken_by(lies.stored);
        let fill = self.fill;
        let in_front = lies.stored as usize != moved.bytes.len();
        let sealed =
            member.has_objects().then(|| envelope::seal(&Key { slot: moved.slot, number: offset }));
        let mut to = &mut self.bytes()[fill..fill + size];
        if let Some(envelope) = sealed {
            let (front, rest) = to.split_at_mut(ENVELOPE_BYTES);
            front.copy_from_slice(&envelope);
            to = rest;
        }
        let (front, rest) = to.split_at_mut(if in_front { HEADER_BYTES } else { 0 });
        if in_front {
            front.copy_from_slice(&(moved.checksum ^ lies.salt).to_le_bytes());
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
            at: fill,
            stored: size,
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
        match member.has_objects() {
            true => self.put(store, &member, extent, why, &mut outcome),
            false => self.write(store, &member, extent, why, &mut outcome),
        }
        for item in &self.items {
            if let Source::Arena(object) = item.source {
                store.pool.free(&object);
            }
        }
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

    /// By one write to a device.
    fn write(
        &mut self,
        store: &Store,
        member: &Arc<Member>,
        extent: Extent,
        why: Why,
        outcome: &mut Outcome,
    ) {
        let (fill, end) = (self.fill, self.fill.next_multiple_of(PAGE_LEN));
        self.bytes()[fill..end].fill(0);
        crash::pass(Point::TierLoaded);
        let sending = member.begin_sending();
        // A server may do it later than it says, or not say so: a successor is to know.
        let line = match (&sending, member.is_remote()) {
            (Some(_), true) => member.begin_write(extent.offset, end as u64),
            (Some(_), false) => Some(0),
            (None, _) => None,
        };
        let outcome_of_write = match line {
            Some(_) => process::as_realtime(|| member.write(&self.bytes()[..end], extent.offset)),
            None => Err(libc::EBUSY),
        };
        let written = outcome_of_write.is_ok();
        drop(sending);
        crash::pass(Point::TierWritten);
        outcome.failed = !written;
        outcome.written_bytes = if written { end as u64 } else { 0 };
        if let (Some(line), true) = (line, member.is_remote()) {
            if outcome_of_write.is_err_and(nbd::may_still_happen) {
                // It may arrive still: nothing else is put there for a while.
                member.doubts.add(Space::doubt_of(extent), line);
                return;
            }
            member.end_write(line);
        }
        // What could not be written is given back as a whole.
        if written {
            for item in &self.items {
                publish_or_free(store, member, item, why, outcome);
            }
        }
        member.space.end(extent, if written { end } else { 0 });
    }

    /// As objects of their own on a server.
    fn put(
        &mut self,
        store: &Store,
        member: &Arc<Member>,
        extent: Extent,
        why: Why,
        outcome: &mut Outcome,
    ) {
        crash::pass(Point::TierLoaded);
        let items = std::mem::take(&mut self.items);
        for some in items.chunks(MAX_PUT) {
            let bytes = &*self.bytes();
            let mut objects = [(Key { slot: 0, number: 0 }, &bytes[..0]); MAX_PUT];
            for (object, item) in objects.iter_mut().zip(some) {
                let key = Key { slot: item.slot, number: item.offset };
                *object = (key, &bytes[item.at..item.at + item.stored]);
            }
            let objects = &objects[..some.len()];
            let sending = if outcome.failed { None } else { member.begin_sending() };
            let put = match sending {
                Some(_) => process::as_realtime(|| member.put(objects)).is_ok(),
                None => false,
            };
            if sending.is_some() && !put {
                // Any of them may be there.
                objects.iter().for_each(|(key, _)| member.remove_later(*key));
            }
            drop(sending);
            crash::pass(Point::TierWritten);
            outcome.failed |= !put;
            if put {
                outcome.written_bytes += some.iter().map(|item| item.stored as u64).sum::<u64>();
                for item in some {
                    publish_or_free(store, member, item, why, outcome);
                }
            }
        }
        self.items = items;
        member.space.end(extent, self.fill);
    }
}

/// Publishes what is on its member now; what can't be published is given up.
fn publish_or_free(store: &Store, member: &Member, item: &Item, why: Why, outcome: &mut Outcome) {
    member.space.placed(item.offset, item.size);
    if publish(store, member, item, why) {
        outcome.pages += 1;
        outcome.bytes += item.len;
        return;
    }
    member.space.free(item.offset, item.size);
    if member.has_objects() {
        member.remove_later(Key { slot: item.slot, number: item.offset });
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
    store.release(item.slot, old);
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
