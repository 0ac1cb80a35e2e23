//! Reading what lies below: what lies together is read together, and what is wanted again goes back
//! to the top.
//!
//! A device is read without a lock, since that takes long. If the entry has changed meanwhile, the
//! page was moved, what was read may be anything, and it is read again.

use super::lower::Lower;
use super::member::{Check, Lies, Member, State, add};
use super::policy::{self, OnRead};
use crate::backend::objects::entry::{AGE_MASK, Entry, Object};
use crate::backend::objects::lock_any;
use crate::backend::objects::neighbours::{Run, first_run};
use crate::backend::zmem::{Found, Purpose, Store};
use crate::buffer::BufferPool;
use crate::codec::{self, Encoding};
use crate::crash::{self, Point};
use crate::error::{Error, ErrorKind, Operation, Result};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use swapfs_format::member::Keep;
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

/// Pages that are looked up before a device is read.
const BATCH: usize = 64;
/// The most that is read at a time.
const MAX_READ_BYTES: u64 = 256 << 10;
/// How often a page is looked for that keeps being moved.
const TRIES: u32 = 64;

/// A page that lies below.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Which of the batch it is.
    index: usize,
    entry: Entry,
    place: usize,
    lies: Lies,
    /// Of the segment, when the entry was found.
    generation: u32,
}

/// What reads.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) store: &'a Store,
    pub(super) lower: &'a Lower,
    pub(super) buffers: &'a BufferPool,
}

fn damaged(slot: u64) -> Error {
    Error::new(ErrorKind::Checksum, Operation::Read, slot)
}

impl Reader<'_> {
    /// Reads pages from slot `first` on, wherever they are.
    ///
    /// # Errors
    /// `Io`: a member can't be read; `Checksum`.
    pub(super) fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        for (start, batch) in (first..).step_by(BATCH).zip(pages.chunks_mut(BATCH * PAGE_LEN)) {
            self.read_batch(start, batch)?;
        }
        Ok(())
    }

    fn read_batch(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        let lies = Lies { offset: 0, stored: 0, check: Check::InFront, encoding: Encoding::Raw };
        let nothing = Wanted { index: 0, entry: Entry::ABSENT, place: 0, lies, generation: 0 };
        let mut wanted = [nothing; BATCH];
        let mut count = 0;
        let sampled = is_sampled().then(Instant::now);
        for (index, page) in pages.chunks_exact_mut(PAGE_LEN).enumerate() {
            let slot = first + index as u64;
            if let Found::Below(entry, object) = self.store.read_page(slot, page)? {
                match self.locate(&object) {
                    Some((member, lies)) => {
                        let generation = generation_of(&member, &lies);
                        let place = member.place;
                        wanted[count] = Wanted { index, entry, place, lies, generation };
                        count += 1;
                    }
                    // Moved since, or damaged.
                    None => self.read_alone(slot, page)?,
                }
            }
        }
        if let Some(started) = sampled
            && count == 0
        {
            self.lower.top_latencies.record(started.elapsed());
        }
        let wanted = &mut wanted[..count];
        for wanted in wanted.iter_mut() {
            // A generation means something if the entry named the object when it was looked at.
            if !self.is_still(first + wanted.index as u64, wanted.entry) {
                wanted.generation = wanted.generation.wrapping_sub(1);
            }
        }
        wanted.sort_unstable_by_key(|wanted| (wanted.place, wanted.lies.offset));
        let mut rest = &*wanted;
        let place = |wanted: &Wanted| (wanted.lies.offset, end_of(&wanted.lies));
        while let Some(start) = rest.first() {
            let here = rest.partition_point(|next| next.place == start.place);
            let run = first_run(&rest[..here], place, MAX_READ_BYTES);
            let Some(Run { count, from, end }) = run else { break };
            let (run, others) = rest.split_at(count);
            self.read_run(first, run, from, end, pages)?;
            rest = others;
        }
        Ok(())
    }

    fn locate(&self, object: &Object) -> Option<(Arc<Member>, Lies)> {
        let member = self.lower.member_of(object.location)?;
        let lies = member.lies(object);
        member.space.is_inside(lies.offset, lies.stored).then_some((member, lies))
    }

    /// Reads from a member, from byte `from` of its data section up to `end`, and takes the pages
    /// of `run` out of it.
    fn read_run(
        &self,
        first: u64,
        run: &[Wanted],
        from: u64,
        end: u64,
        pages: &mut [u8],
    ) -> Result<()> {
        let mut again = [0; BATCH];
        let mut count = 0;
        if let Some(member) = run.first().and_then(|wanted| self.lower.at(wanted.place)) {
            let mut buffer = self.buffers.take((end - from) as usize);
            let outcome = member.read(&mut buffer, from);
            for wanted in run {
                let page = &mut pages[wanted.index * PAGE_LEN..][..PAGE_LEN];
                let stored = stored_in(&buffer, from, &wanted.lies);
                let slot = first + wanted.index as u64;
                // The right bytes may be another slot's, if this one's were moved and the room was
                // used again meanwhile. As long as the entry is the same, and no room was taken anew
                // where it says, they were not.
                if outcome.is_ok()
                    && self.decode(&wanted.lies, stored, page)
                    && self.is_still(slot, wanted.entry)
                    && generation_of(&member, &wanted.lies) == wanted.generation
                {
                    add(&member.counters.read_pages, 1);
                    self.was_read(slot, wanted, &member, stored);
                } else {
                    again[count] = wanted.index;
                    count += 1;
                }
            }
        } else {
            for wanted in run {
                again[count] = wanted.index;
                count += 1;
            }
        }
        // One by one: they were moved, or the device can't read some of it.
        for index in &again[..count] {
            let page = &mut pages[index * PAGE_LEN..][..PAGE_LEN];
            self.read_alone(first + *index as u64, page)?;
        }
        Ok(())
    }

    /// Reads one page that could not be read with others.
    fn read_alone(&self, slot: u64, page: &mut [u8]) -> Result<()> {
        for _ in 0..TRIES {
            let (entry, object) = match self.store.read_page(slot, page)? {
                Found::Page => return Ok(()),
                Found::Below(entry, object) => (entry, object),
            };
            let Some((member, lies)) = self.locate(&object) else {
                if self.is_still(slot, entry) {
                    return Err(self.not_right(slot, None));
                }
                continue;
            };
            let from = lies.offset / PAGE_BYTES * PAGE_BYTES;
            let end = end_of(&lies).next_multiple_of(PAGE_BYTES);
            let generation = generation_of(&member, &lies);
            if !self.is_still(slot, entry) {
                continue;
            }
            let mut buffer = self.buffers.take((end - from) as usize);
            let outcome = member.read(&mut buffer, from);
            let stored = stored_in(&buffer, from, &lies);
            let right = outcome.is_ok() && self.decode(&lies, stored, page);
            // Moved while it was read: then it is elsewhere now, or there again, and what was read
            // means nothing.
            if !self.is_still(slot, entry) || generation_of(&member, &lies) != generation {
                continue;
            }
            if right {
                add(&member.counters.read_pages, 1);
                let place = member.place;
                let wanted = Wanted { index: 0, entry, place, lies, generation };
                self.was_read(slot, &wanted, &member, stored);
                return Ok(());
            }
            add(&member.counters.read_errors, 1);
            return Err(match outcome {
                Ok(()) => self.not_right(slot, Some(&member)),
                Err(errno) => Error::from_os(Operation::Read, slot, errno),
            });
        }
        Err(Error::new(ErrorKind::Io, Operation::Read, slot))
    }

    fn not_right(&self, slot: u64, member: Option<&Member>) -> Error {
        self.lower.counters.damaged.fetch_add(1, Ordering::Relaxed);
        match member {
            Some(member) => log::error!("slot {slot}: wrong checksum on {}", member.name()),
            None => log::error!("slot {slot}: its entry names no member"),
        }
        damaged(slot)
    }

    fn is_still(&self, slot: u64, entry: Entry) -> bool {
        let cell = self.store.table.cell_of(slot);
        cell.is_some_and(|cell| Entry(cell.load(Ordering::Acquire)).is_same_as(entry))
    }

    fn decode(&self, lies: &Lies, stored: &[u8], page: &mut [u8]) -> bool {
        let Some(bytes) = lies.checked(stored) else { return false };
        match lies.encoding {
            Encoding::Zstd => lock_any(&self.store.decoders).decode_zstd(bytes, page),
            encoding => codec::decode(encoding, bytes, page),
        }
    }

    /// A page was wanted: it is younger now, and maybe goes to the top.
    fn was_read(&self, slot: u64, wanted: &Wanted, member: &Member, stored: &[u8]) {
        let Some(cell) = self.store.table.cell_of(slot) else { return };
        let record = self.lower.records.at(member.place);
        let seen = wanted.entry.was_tried();
        let has_room = self.lower.has_room_above(self.store);
        match self.lower.judge.on_read_below(record.promote(), slot, seen, has_room) {
            OnRead::Promote => self.promote(slot, wanted, member, stored, record.keep()),
            OnRead::MarkSeen => {
                let _shared = self.store.slots.of(slot).read();
                let entry = Entry(cell.load(Ordering::Acquire));
                if entry.is_same_as(wanted.entry) {
                    let seen = entry.tried().with_age(policy::AGE_OF_SEEN).0;
                    let order = (Ordering::AcqRel, Ordering::Relaxed);
                    let _ = cell.compare_exchange(entry.0, seen, order.0, order.1);
                }
            }
            OnRead::Nothing => {
                let _shared = self.store.slots.of(slot).read();
                if Entry(cell.load(Ordering::Acquire)).is_same_as(wanted.entry) {
                    cell.fetch_and(!AGE_MASK, Ordering::Relaxed);
                }
            }
        }
    }

    /// Puts a page into the arena as it is, if there is room to spare: nobody waits for it.
    fn promote(&self, slot: u64, wanted: &Wanted, member: &Member, stored: &[u8], keep: Keep) {
        let (store, lies) = (self.store, &wanted.lies);
        let Some((bytes, checksum)) = lies.unchecked(stored) else { return };
        let Some(cell) = store.table.cell_of(slot) else { return };
        let mut writer = lock_any(&store.writers);
        let (open, purpose) = (&mut writer.open, Purpose::Recompress);
        let Some(object) = store.pool.append(open, purpose, lies.encoding, checksum, bytes) else {
            return;
        };
        let copied = keep == Keep::Inclusive
            && member.state() == State::Ok
            // Nobody waits for memory for the table.
            && (store.table.word(slot).is_some() || store.pool.arena.has_room_to_spare());
        let beside = if copied { store.table.word_or_make(slot) } else { None };
        drop(writer);
        crash::pass(Point::TierPromoted);
        let alone = store.slots.of(slot).write();
        let mut old = None;
        loop {
            let current = Entry(cell.load(Ordering::Acquire));
            // What was read is what the entry named all the time: its place may have been used
            // again for another page of the same slot, as long as this one.
            if !current.is_same_as(wanted.entry) || generation_of(member, lies) != wanted.generation
            {
                break;
            }
            let new = match beside {
                Some(word) => {
                    // No entry needs what was there: this one names a page below.
                    word.store(current.not_tried().0, Ordering::Release);
                    Entry::shared_object(object)
                }
                None => Entry::object(object),
            };
            let new = new.with_age(policy::age_of_promoted(current.was_tried()));
            let exchange =
                cell.compare_exchange(current.0, new.0, Ordering::AcqRel, Ordering::Acquire);
            if exchange.is_ok() {
                old = Some(current);
                break;
            }
        }
        drop(alone);
        crash::pass(Point::TierPromotePublished);
        match old {
            None => store.pool.free(&object),
            Some(old) => {
                add(&member.counters.promoted_out_pages, 1);
                match beside {
                    Some(_) => self.lower.count_copy(true),
                    None => store.release(old),
                }
            }
        }
    }
}

/// One read in so many has its time taken where it is served from memory: looking at the clock costs
/// as much as a tenth of it.
fn is_sampled() -> bool {
    const ONE_IN: u32 = 16;
    thread_local! {
        static READS: Cell<u32> = const { Cell::new(0) };
    }
    READS.with(|reads| {
        reads.set(reads.get().wrapping_add(1));
        reads.get().is_multiple_of(ONE_IN)
    })
}

fn generation_of(member: &Member, lies: &Lies) -> u32 {
    member.space.generation(member.space.segment_of(lies.offset))
}

fn end_of(lies: &Lies) -> u64 {
    lies.offset + lies.stored
}

fn stored_in<'a>(buffer: &'a [u8], from: u64, lies: &Lies) -> &'a [u8] {
    let start = (lies.offset - from) as usize;
    &buffer[start..start + lies.stored as usize]
}
