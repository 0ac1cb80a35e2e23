//! Reading what lies below: what lies together is read together, and what is wanted again goes back
//! to the top.
//!
//! A device is read without a lock, since that takes long. If the entry has changed meanwhile, the
//! page was moved, what was read may be anything, and it is read again.

use super::counts::add;
use super::lower::Lower;
use super::member::{Check, Lies, Member, State};
use super::policy::{self, OnRead};
use crate::backend::objects::entry::{AGE_MASK, Entry, Object};
use crate::backend::objects::lock_any;
use crate::backend::objects::neighbours::{Run, first_run};
use crate::backend::zmem::{Found, Purpose, Store};
use crate::buffer::{BufferPool, SMALL_BYTES};
use crate::codec::{self, Encoding};
use crate::crash::{self, Point};
use crate::error::{Error, ErrorKind, Operation, Result as PageResult};
use crate::remote::{self, Key};
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
    /// When it has to end, once it has asked a server elsewhere.
    until: Cell<Option<Instant>>,
}

fn damaged(slot: u64) -> Error {
    Error::new(ErrorKind::Checksum, Operation::Read, slot)
}

impl<'a> Reader<'a> {
    /// For one request.
    pub(super) fn new(store: &'a Store, lower: &'a Lower, buffers: &'a BufferPool) -> Reader<'a> {
        Reader { store, lower, buffers, until: Cell::new(None) }
    }

    /// Asks a server elsewhere: all that a request asks for together keeps to one deadline.
    fn ask<T>(&self, work: impl FnOnce() -> T) -> T {
        let until = self.until.get().unwrap_or_else(|| Instant::now() + self.lower.deadline());
        self.until.set(Some(until));
        self.lower.waiting(|| remote::until(until, work))
    }

    /// Reads pages from slot `first` on, wherever they are.
    ///
    /// # Errors
    /// `Io`: a member can't be read; `Checksum`.
    pub(super) fn read(&self, first: u64, pages: &mut [u8]) -> PageResult<()> {
        for (start, batch) in (first..).step_by(BATCH).zip(pages.chunks_mut(BATCH * PAGE_LEN)) {
            self.read_batch(start, batch)?;
        }
        Ok(())
    }

    fn read_batch(&self, first: u64, pages: &mut [u8]) -> PageResult<()> {
        let (check, encoding) = (Check::InFront, Encoding::Raw);
        let lies = Lies { offset: 0, stored: 0, check, encoding, salt: 0 };
        let nothing = Wanted { index: 0, entry: Entry::ABSENT, place: 0, lies, generation: 0 };
        let mut wanted = [nothing; BATCH];
        let mut count = 0;
        let sampled = is_sampled().then(Instant::now);
        for (index, page) in pages.chunks_exact_mut(PAGE_LEN).enumerate() {
            let slot = first + index as u64;
            if let Found::Below(entry, object) = self.store.read_page(slot, page)? {
                match self.locate(slot, &object) {
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
            // Looked up once for both.
            let member = self.lower.at(start.place);
            if member.as_ref().is_some_and(|member| member.has_objects()) {
                let (run, others) = rest.split_at(here);
                self.read_objects(first, run, pages)?;
                rest = others;
                continue;
            }
            // What waits for a server shall not keep the large buffers from others.
            let elsewhere = member.is_some_and(|member| member.is_remote());
            let most = if elsewhere { SMALL_BYTES as u64 } else { MAX_READ_BYTES };
            let run = first_run(&rest[..here], place, most);
            let Some(Run { count, from, end }) = run else { break };
            let (run, others) = rest.split_at(count);
            self.read_run(first, run, from, end, pages)?;
            rest = others;
        }
        Ok(())
    }

    fn locate(&self, slot: u64, object: &Object) -> Option<(Arc<Member>, Lies)> {
        let member = self.lower.member_of(object.location)?;
        let lies = member.lies_of(slot, object);
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
    ) -> PageResult<()> {
        let mut again = [0; BATCH];
        let mut count = 0;
        if let Some(member) = run.first().and_then(|wanted| self.lower.at(wanted.place)) {
            let mut buffer = self.buffers.take((end - from) as usize);
            let outcome = match member.is_remote() {
                true => self.ask(|| member.read(&mut buffer, from)),
                false => member.read(&mut buffer, from),
            };
            if let (Err(errno), true) = (outcome, member.is_remote())
                && let Some(slot) = self.still_there(first, run, &[])
            {
                // Each of them would wait as long once more.
                add(&member.counters.read_errors, 1);
                return Err(Error::from_os(Operation::Read, slot, errno));
            }
            for wanted in run {
                let page = &mut pages[wanted.index * PAGE_LEN..][..PAGE_LEN];
                let stored = stored_in(&buffer, from, &wanted.lies);
                let slot = first + wanted.index as u64;
                if !(outcome.is_ok() && self.take(slot, wanted, &member, stored, page)) {
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

    /// A slot of those that were not `done` whose page still lies where it was looked for; those that
    /// were moved meanwhile are found elsewhere.
    fn still_there(&self, first: u64, run: &[Wanted], done: &[bool]) -> Option<u64> {
        let mut missing = run.iter().enumerate().filter(|(at, _)| !done.get(*at).unwrap_or(&false));
        let (_, wanted) =
            missing.find(|(_, wanted)| self.is_still(first + wanted.index as u64, wanted.entry))?;
        Some(first + wanted.index as u64)
    }

    /// Takes a page out of what was read. False: it was not that page, or not all of the time.
    fn take(
        &self,
        slot: u64,
        wanted: &Wanted,
        member: &Member,
        stored: &[u8],
        page: &mut [u8],
    ) -> bool {
        // The right bytes may be another slot's, if this one's were moved and the room was used again
        // meanwhile. As long as the entry is the same, and no room was taken anew where it says, they
        // were not.
        let right = self.decode(&wanted.lies, stored, page)
            && self.is_still(slot, wanted.entry)
            && generation_of(member, &wanted.lies) == wanted.generation;
        if right {
            add(&member.counters.read_pages, 1);
            self.was_read(slot, wanted, member, stored);
        }
        right
    }

    /// Gets the pages of `run`, all of one member, from a server.
    fn read_objects(&self, first: u64, run: &[Wanted], pages: &mut [u8]) -> PageResult<()> {
        let mut keys = [Key { slot: 0, number: 0 }; BATCH];
        for (key, wanted) in keys.iter_mut().zip(run) {
            *key = Key { slot: first + wanted.index as u64, number: wanted.lies.offset };
        }
        let mut done = [false; BATCH];
        if let Some(member) = run.first().and_then(|wanted| self.lower.at(wanted.place)) {
            let keys = &keys[..run.len()];
            let mut each = |at: usize, stored: Option<&[u8]>| {
                let wanted = &run[at];
                let page = &mut pages[wanted.index * PAGE_LEN..][..PAGE_LEN];
                let stored = stored.filter(|stored| stored.len() as u64 == wanted.lies.stored);
                let slot = first + wanted.index as u64;
                done[at] =
                    stored.is_some_and(|stored| self.take(slot, wanted, &member, stored, page));
            };
            let outcome = self.ask(|| member.get(keys, &mut each));
            if let Err(errno) = outcome {
                // Each of those that are missing would wait as long once more.
                if let Some(slot) = self.still_there(first, run, &done) {
                    add(&member.counters.read_errors, 1);
                    return Err(Error::from_os(Operation::Read, slot, errno));
                }
            }
        }
        // One by one: they were moved, or they are not there.
        for (wanted, _) in run.iter().zip(done).filter(|(_, done)| !done) {
            let page = &mut pages[wanted.index * PAGE_LEN..][..PAGE_LEN];
            self.read_alone(first + wanted.index as u64, page)?;
        }
        Ok(())
    }

    /// Reads one page that could not be read with others.
    fn read_alone(&self, slot: u64, page: &mut [u8]) -> PageResult<()> {
        for _ in 0..TRIES {
            let (entry, object) = match self.store.read_page(slot, page)? {
                Found::Page => return Ok(()),
                Found::Below(entry, object) => (entry, object),
            };
            let Some((member, lies)) = self.locate(slot, &object) else {
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
            let is_object = member.has_objects();
            let bytes = if is_object { 2 * PAGE_BYTES } else { end - from };
            let mut buffer = self.buffers.take(bytes as usize);
            let outcome = match is_object {
                true => {
                    let key = Key { slot, number: lies.offset };
                    self.ask(|| get_into(&member, key, &lies, &mut buffer))
                }
                false if member.is_remote() => {
                    self.ask(|| member.read(&mut buffer, from)).map(|()| true)
                }
                false => member.read(&mut buffer, from).map(|()| true),
            };
            let stored = match is_object {
                true => &buffer[..lies.stored as usize],
                false => stored_in(&buffer, from, &lies),
            };
            let right = outcome == Ok(true) && self.decode(&lies, stored, page);
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
                Ok(true) => self.not_right(slot, Some(&member)),
                Ok(false) => self.lost(slot, &member),
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

    /// A server does not have what it said that it has.
    fn lost(&self, slot: u64, member: &Member) -> Error {
        add(&member.counters.lost_objects, 1);
        log::error!("slot {slot}: {} does not have it any more", member.name());
        Error::from_os(Operation::Read, slot, libc::ENODATA)
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
                    None => store.release(slot, old),
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

/// Gets one object into the buffer; false: the server does not have it.
fn get_into(member: &Member, key: Key, lies: &Lies, buffer: &mut [u8]) -> Result<bool, i32> {
    let mut there = false;
    member.get(&[key], &mut |_, stored| {
        if let Some(stored) = stored.filter(|stored| stored.len() as u64 == lies.stored) {
            buffer[..stored.len()].copy_from_slice(stored);
            there = true;
        }
    })?;
    Ok(there)
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
