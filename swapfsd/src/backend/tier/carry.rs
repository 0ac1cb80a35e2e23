//! Moving what lies on a member: found by a look at the slot table, read in the order of the
//! device, sent on in loads.
//!
//! The slot table is the only thing that knows what lies where, so nothing on a device says it. A
//! look at the table costs 8 bytes a slot, where a page costs a thousand.

use super::counts::add;
use super::demote::keep_rate;
use super::load::{Load, Moved, Source, Why};
use super::lower::{Lower, is_below};
use super::member::{Lies, Member, State};
use super::space::{MAX_EXTENT_BYTES, Stream};
use crate::backend::objects::entry::Entry;
use crate::backend::objects::neighbours::{Run, first_run};
use crate::backend::zmem::{OpenSegment, Purpose, Store};
use crate::codec::Encoding;
use crate::crash::{self, Point};
use crate::remote::Key;
use crate::sys::memory::Mapping;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use swapfs_format::PAGE_LEN;

/// Objects that are found before they are moved.
const MAX_FOUND: usize = 32 << 10;

/// Objects that a server is asked for at once.
const MAX_OBJECTS: usize = 256;

/// An object on a member.
#[derive(Debug, Clone, Copy)]
struct Found {
    slot: u64,
    entry: Entry,
    lies: Lies,
    generation: u32,
}

/// Where objects go.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// To a member.
    Member(Arc<Member>, Stream),
    /// To the arena.
    Top,
}

/// What became of what was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) pages: u64,
    /// Encoded bytes of these.
    pub(super) bytes: u64,
    /// Nobody took some of it.
    pub(super) no_room: bool,
    /// Objects that could not be read.
    pub(super) unreadable: u64,
}

impl Carried {
    pub(super) fn add(&mut self, other: Carried) {
        self.pages += other.pages;
        self.bytes += other.bytes;
        self.no_room |= other.no_room;
        self.unreadable += other.unreadable;
    }
}

/// Where objects come from, and why they go.
#[derive(Debug, Clone, Copy)]
struct Way<'a> {
    store: &'a Store,
    lower: &'a Lower,
    from: &'a Member,
    why: Why,
}

/// Who moves what lies on a member.
#[derive(Debug)]
pub(super) struct Carrier {
    found: Vec<Found>,
    memory: Mapping,
    load: Load,
    raw: Load,
    open: OpenSegment,
}

impl Carrier {
    /// With all memory that it will use.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new() -> io::Result<Carrier> {
        let lies = Lies {
            offset: 0,
            stored: 0,
            check: super::member::Check::InFront,
            encoding: Encoding::Raw,
            salt: 0,
        };
        let nothing = Found { slot: 0, entry: Entry::ABSENT, lies, generation: 0 };
        let mut found = vec![nothing; MAX_FOUND];
        found.clear();
        Ok(Carrier {
            found,
            memory: Mapping::new(MAX_EXTENT_BYTES, true)?,
            load: Load::new()?,
            raw: Load::new()?,
            open: OpenSegment::default(),
        })
    }

    /// No more can be noted before what is has been moved.
    pub(super) fn is_full(&self) -> bool {
        self.found.len() == MAX_FOUND
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Notes the object that a slot's entry names on `member`, if it still does.
    pub(super) fn note(&mut self, member: &Member, slot: u64, cell: &AtomicU64) {
        let entry = Entry(cell.load(Ordering::Acquire));
        let Some(object) = entry.as_object().filter(|object| member.has(object.location)) else {
            return;
        };
        let lies = member.lies_of(slot, &object);
        if self.is_full() || !member.space.is_inside(lies.offset, lies.stored) {
            return;
        }
        let generation = member.space.generation(member.space.segment_of(lies.offset));
        // As of that generation.
        if Entry(cell.load(Ordering::Acquire)).is_same_as(entry) {
            self.found.push(Found { slot, entry, lies, generation });
        }
    }

    /// Moves what was noted of `from`, each object where `target` says; `rate_bytes` a second at
    /// most (0: no limit).
    pub(super) fn carry(
        &mut self,
        store: &Store,
        lower: &Lower,
        from: &Member,
        why: Why,
        mut target: impl FnMut(Encoding) -> Option<Target>,
    ) -> Carried {
        let mut found = std::mem::take(&mut self.found);
        found.sort_unstable_by_key(|found| found.lies.offset);
        let mut carried = Carried::default();
        let mut rest = &found[..];
        let next = |rest: &[Found]| match from.has_objects() {
            true => objects_at_a_time(rest),
            false => first_run(rest, place_of, MAX_EXTENT_BYTES as u64).map(|run| run.count),
        };
        while let Some(count) = next(rest) {
            if store.stop.load(Ordering::Relaxed) || carried.no_room {
                break;
            }
            let (run, others) = rest.split_at(count);
            carried.add(self.carry_run(store, lower, from, why, run, &mut target));
            rest = others;
        }
        carried.add(self.send(store, lower, why));
        store.pool.close(&mut self.open);
        found.clear();
        self.found = found;
        carried
    }

    /// Moves objects that are read by one read.
    fn carry_run(
        &mut self,
        store: &Store,
        lower: &Lower,
        from: &Member,
        why: Why,
        run: &[Found],
        target: &mut impl FnMut(Encoding) -> Option<Target>,
    ) -> Carried {
        if from.has_objects() {
            return self.carry_objects(store, lower, from, why, run, target);
        }
        let mut carried = Carried::default();
        let whole = first_run(run, place_of, u64::MAX);
        let Some(Run { from: start, end, .. }) = whole else { return carried };
        // SAFETY: populated private memory of this carrier's, which nobody else uses; its length
        // was checked when the run was made.
        let memory =
            unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.memory.len()) };
        let buffer = &mut memory[..(end - start) as usize];
        if from.read(buffer, start).is_err() {
            if run.len() > 1 {
                // Some of it may be readable.
                for single in run.chunks(1) {
                    // Not of a device that has gone.
                    if store.stop.load(Ordering::Relaxed)
                        || matches!(from.state(), State::Failed | State::Missing)
                    {
                        carried.unreadable += 1;
                        continue;
                    }
                    carried.add(self.carry_run(store, lower, from, why, single, target));
                }
            } else {
                carried.unreadable += 1;
                add(&from.counters.read_errors, 1);
            }
            return carried;
        }
        let stored_of = |_: usize, found: &Found| {
            let at = (found.lies.offset - start) as usize;
            Some(&buffer[at..at + found.lies.stored as usize])
        };
        carried.add(self.pass_on(&Way { store, lower, from, why }, run, &stored_of, target));
        carried
    }

    /// Moves objects that a server has, all of which it is asked for at once.
    fn carry_objects(
        &mut self,
        store: &Store,
        lower: &Lower,
        from: &Member,
        why: Why,
        run: &[Found],
        target: &mut impl FnMut(Encoding) -> Option<Target>,
    ) -> Carried {
        // SAFETY: as in `carry_run`: as many are asked for as fit.
        let memory =
            unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.memory.len()) };
        let mut places = [(0, 0); MAX_OBJECTS];
        let mut fill = 0;
        for (place, found) in places.iter_mut().zip(run) {
            *place = (fill, 0);
            fill += found.lies.stored as usize;
        }
        let mut keys = [Key { slot: 0, number: 0 }; MAX_OBJECTS];
        for (key, found) in keys.iter_mut().zip(run) {
            *key = Key { slot: found.slot, number: found.lies.offset };
        }
        let outcome = from.get(&keys[..run.len()], &mut |index, stored| {
            let (at, len) = &mut places[index];
            let expected = run[index].lies.stored as usize;
            if let Some(stored) = stored.filter(|stored| stored.len() == expected)
                && let Some(to) = memory.get_mut(*at..*at + expected)
            {
                to.copy_from_slice(stored);
                *len = expected;
            }
        });
        if outcome.is_err() {
            add(&from.counters.read_errors, 1);
        }
        let stored_of = |index: usize, _: &Found| {
            let (at, len) = places[index];
            (len > 0).then(|| &memory[at..at + len])
        };
        self.pass_on(&Way { store, lower, from, why }, run, &stored_of, target)
    }

    /// Sends on what was read: `stored_of` answers what was found of an object of `run`, which has
    /// that index there.
    fn pass_on<'a>(
        &mut self,
        way: &Way<'_>,
        run: &[Found],
        stored_of: &dyn Fn(usize, &Found) -> Option<&'a [u8]>,
        target: &mut impl FnMut(Encoding) -> Option<Target>,
    ) -> Carried {
        let Way { store, lower, from, why } = *way;
        let mut carried = Carried::default();
        let mut targets: [Option<Option<Target>>; 2] = [None, None];
        for (index, found) in run.iter().enumerate() {
            let unchecked = stored_of(index, found).and_then(|stored| found.lies.unchecked(stored));
            let Some((bytes, checksum)) = unchecked else {
                // Moved or damaged; whoever reads it finds out.
                carried.unreadable += 1;
                continue;
            };
            let moved = Moved {
                slot: found.slot,
                entry: found.entry,
                encoding: found.lies.encoding,
                checksum,
                bytes,
                source: Source::Device {
                    place: from.place,
                    segment: from.space.segment_of(found.lies.offset),
                    generation: found.generation,
                },
            };
            // Asked once for all of one read: who takes pages is a look at all members.
            let is_raw = moved.encoding == Encoding::Raw;
            let to = targets[usize::from(is_raw)].get_or_insert_with(|| target(moved.encoding));
            match to.clone() {
                None => carried.no_room = true,
                Some(Target::Top) if lower.is_top_full(store) => carried.no_room = true,
                Some(Target::Top) => carried.add(self.lift(store, from, &moved)),
                Some(Target::Member(to, stream)) => {
                    carried.add(self.put_on(store, lower, why, &to, stream, &moved));
                }
            }
            if carried.no_room {
                break;
            }
        }
        carried
    }

    fn put_on(
        &mut self,
        store: &Store,
        lower: &Lower,
        why: Why,
        to: &Arc<Member>,
        stream: Stream,
        moved: &Moved<'_>,
    ) -> Carried {
        let mut carried = Carried::default();
        let is_raw = moved.encoding == Encoding::Raw;
        let other = |load: &Load| load.member().is_some_and(|member| member.place != to.place);
        // Raw ones have a load of their own where they go elsewhere.
        let load = match is_raw && other(&self.load) {
            true => &mut self.raw,
            false => &mut self.load,
        };
        if other(load) || !load.fits(moved.bytes.len()) {
            carried.add(send(store, lower, load, why));
            if !load.begin(to, stream) || !load.fits(moved.bytes.len()) {
                lower.wake();
                carried.no_room = true;
                return carried;
            }
        }
        load.push(moved);
        carried
    }

    /// Puts an object into the arena, if there is room to spare.
    fn lift(&mut self, store: &Store, from: &Member, moved: &Moved<'_>) -> Carried {
        let mut carried = Carried::default();
        let (encoding, checksum) = (moved.encoding, moved.checksum);
        let open = &mut self.open;
        let Some(object) =
            store.pool.append(open, Purpose::Recompress, encoding, checksum, moved.bytes)
        else {
            carried.no_room = true;
            return carried;
        };
        crash::pass(Point::TierPromoted);
        let Some(cell) = store.table.cell_of(moved.slot) else { return carried };
        let alone = store.slots.of(moved.slot).write();
        let Source::Device { segment, generation, .. } = moved.source else { return carried };
        let mut published = false;
        loop {
            let current = Entry(cell.load(Ordering::Acquire));
            if !current.is_same_as(moved.entry) || from.space.generation(segment) != generation {
                break;
            }
            let new = Entry::object(object).with_age(current.age());
            let exchange =
                cell.compare_exchange(current.0, new.0, Ordering::AcqRel, Ordering::Acquire);
            if exchange.is_ok() {
                published = true;
                break;
            }
        }
        drop(alone);
        crash::pass(Point::TierPromotePublished);
        if published {
            store.release(moved.slot, moved.entry);
            carried.pages += 1;
            carried.bytes += moved.bytes.len() as u64;
        } else {
            store.pool.free(&object);
        }
        carried
    }

    fn send(&mut self, store: &Store, lower: &Lower, why: Why) -> Carried {
        let mut carried = send(store, lower, &mut self.load, why);
        carried.add(send(store, lower, &mut self.raw, why));
        carried
    }
}

fn send(store: &Store, lower: &Lower, load: &mut Load, why: Why) -> Carried {
    let Some(member) = load.member().cloned() else { return Carried::default() };
    let outcome = load.send(store, why);
    if why != Why::Collection {
        keep_rate(store, lower, &member, outcome.written_bytes);
    }
    Carried { pages: outcome.pages, bytes: outcome.bytes, no_room: outcome.failed, unreadable: 0 }
}

/// How many objects of a server are asked for at once; `None`: there are none.
fn objects_at_a_time(found: &[Found]) -> Option<usize> {
    let mut bytes = 0;
    let fits = |found: &&Found| {
        bytes += found.lies.stored as usize;
        bytes <= MAX_EXTENT_BYTES
    };
    let count = found.iter().take(MAX_OBJECTS).take_while(fits).count();
    (count > 0).then_some(count)
}

fn place_of(found: &Found) -> (u64, u64) {
    (found.lies.offset, found.lies.offset + found.lies.stored)
}

/// Calls `visit` with each slot from `first` up to `end` whose entry names something on `member`,
/// its own page or the copy of it: true for a copy. It ends when `visit` answers false, and says
/// where.
pub(super) fn for_each_on(
    store: &Store,
    member: &Member,
    first: u64,
    end: u64,
    mut visit: impl FnMut(u64, &AtomicU64, Entry, bool) -> bool,
) -> u64 {
    let mut ended = None;
    store.table.for_each(first, end, |slot, cell| {
        if ended.is_some() {
            return;
        }
        let entry = Entry(cell.load(Ordering::Acquire));
        let Some(object) = entry.as_object() else { return };
        let goes_on = if is_below(object.location) {
            !member.has(object.location) || visit(slot, cell, entry, false)
        } else if entry.is_shared() {
            // Without the lock: who acts on it looks again.
            let copy = store.copy_of(slot, entry).and_then(Entry::as_object);
            let here = copy.is_some_and(|copy| member.has(copy.location));
            !here || visit(slot, cell, copy.map_or(entry, Entry::object), true)
        } else {
            true
        };
        if !goes_on {
            ended = Some(slot);
        }
    });
    ended.unwrap_or(end)
}

const _: () = assert!(MAX_EXTENT_BYTES.is_multiple_of(PAGE_LEN));
