//! What goes into a part: records of the buffer, as far as they still say what is so, and what a
//! slot holds now.

use super::Store;
use super::buffer::{Buffer, Found, What};
use super::part::{Builder, Clear};
use crate::backend::objects::entry::{Entry, Meaning};
use swapfs_format::PAGE_LEN;
use swapfs_format::log::OBJECT_HEADER_LEN;

/// What became of a record that was to be put into a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    Yes,
    /// It does not say any more what is so.
    NotNeeded,
    /// The part is full.
    NoRoom,
}

/// Puts a record of the buffer into a part, if it still says what is so.
///
/// `forced`: a flush waits for it. If it is not needed since a newer page is in the buffer, which
/// nobody waits for, that one is put in.
pub(super) fn add_buffered(
    store: &Store,
    builder: &mut Builder,
    found: &Found,
    source: u32,
    forced: bool,
) -> Added {
    let added = add_own(store, builder, found, source);
    if added != Added::NotNeeded || !forced || matches!(found.what, What::Discarded(_)) {
        return added;
    }
    // The newest of a slot's records come first.
    if builder.last_slot() == Some(found.slot) {
        return Added::NotNeeded;
    }
    if !builder.fits(OBJECT_HEADER_LEN + PAGE_LEN) {
        return Added::NoRoom;
    }
    match add_current(store, builder, found.slot, source) {
        true => Added::Yes,
        false => Added::NotNeeded,
    }
}

fn add_own(store: &Store, builder: &mut Builder, found: &Found, source: u32) -> Added {
    let slot = u64::from(found.slot);
    let key = (found.sequence, found.slot, source);
    match found.what {
        What::Object(object) => {
            if !builder.fits(OBJECT_HEADER_LEN + object.len) {
                return Added::NoRoom;
            }
            let _shared = store.slots.of(slot).read();
            let lives = Buffer::lives(found, store.entry(slot));
            let Some(stored) = lives.then(|| store.buffer.stored(&object)).flatten() else {
                return Added::NotNeeded;
            };
            builder.push_object(key, Entry::object(object), &object, stored);
        }
        What::SameFilled(_) => {
            if !builder.fits(0) {
                return Added::NoRoom;
            }
            if !add_word(store, builder, found.slot, source) {
                return Added::NotNeeded;
            }
        }
        What::Discarded(count) => {
            if !builder.fits(0) {
                return Added::NoRoom;
            }
            if !store.any_discarded(slot, u64::from(count), found.sequence) {
                return Added::NotNeeded;
            }
            builder.push_discard(key, count, Clear::IfNamed);
        }
    }
    Added::Yes
}

/// If the slot's page is in the buffer, whatever it is, puts it into a part. False: it is on the
/// device by now, or does not fit.
pub(super) fn add_current(store: &Store, builder: &mut Builder, slot: u32, source: u32) -> bool {
    {
        let _shared = store.slots.of(u64::from(slot)).read();
        let entry = store.entry(u64::from(slot));
        if let Some(object) = entry.as_object() {
            if object.device_offset().is_some() || !builder.fits(OBJECT_HEADER_LEN + object.len) {
                return false;
            }
            let Some(stored) = store.buffer.stored(&object) else { return false };
            let key = (store.buffer.sequence_of(&object), slot, source);
            builder.push_object(key, Entry::object(object), &object, stored);
            return true;
        }
    }
    builder.fits(0) && add_word(store, builder, slot, source)
}

/// If the slot's page is a word that no device has yet, or the slot was discarded and no device
/// knows it, puts a record of that into a part.
pub(super) fn add_word(store: &Store, builder: &mut Builder, slot: u32, source: u32) -> bool {
    let unwritten = |entry: Entry| entry.is_buffered() || entry.is_unknown_discard();
    add_again(store, builder, (slot, source), unwritten)
}

/// If the slot's page is a word, or the slot was discarded, and its entry is as `wanted`, puts a
/// record of that into a part. With a number of its own: what it says is so now,
/// whatever was written to the slot and overwritten since the word came. (Numbers are given under
/// the slot's lock, so nothing that is not published yet can have a smaller one.)
pub(super) fn add_again(
    store: &Store,
    builder: &mut Builder,
    (slot, source): (u32, u32),
    wanted: impl Fn(Entry) -> bool,
) -> bool {
    let changes = store.slots.of(u64::from(slot)).read();
    let entry = store.entry(u64::from(slot));
    if !wanted(entry) {
        return false;
    }
    match entry.meaning() {
        Meaning::SameFilled(word) => {
            let sequence = store.segments.next_write();
            builder.push_word((sequence, slot, source), word, *changes);
            true
        }
        _ if entry.is_absent() && entry != Entry::ABSENT => {
            let sequence = store.segments.next_write();
            let clear = Clear::IfUnchanged(*changes);
            builder.push_discard((sequence, slot, source), 1, clear);
            true
        }
        _ => false,
    }
}
