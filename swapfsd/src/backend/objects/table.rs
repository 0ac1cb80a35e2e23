//! The slot table: one [`Entry`] a slot, the truth about every page.
//!
//! A tree of three levels, so that a slot that was never written costs nothing and an empty
//! volume of 1 TiB costs 4 KiB. A *leaf* is a page of 512 entries; a *node* is a page of 512
//! links, each to a leaf and to the leaf's page of words (same-filled words that do not fit into
//! entries); the *root* is an array of links to nodes. Pages are frames of the arena's populated
//! memory and are named by number, so the table means the same wherever the arena is mapped.
//! They are never given back while the volume is mounted. A page is all zeros before it is linked,
//! and linked by one atomic step; one that a kill has kept from being linked is free again.

use super::arena::Arena;
use super::entry::Entry;
use super::kept::Kept;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const FANOUT: u64 = 512;
/// Slots below one node.
pub(in crate::backend) const NODE_SLOTS: u64 = FANOUT * FANOUT;
/// A link that leads nowhere. Others are a frame's number plus one.
const NONE: u32 = 0;

/// The table.
#[derive(Debug)]
pub(in crate::backend) struct Table {
    arena: Arc<Arena>,
    kept: Arc<Kept>,
    slot_count: u64,
}

/// The two links of a node, in one word: the leaf in the lower half, its words in the upper.
fn leaf_of(links: u64) -> u32 {
    links as u32
}

fn words_of(links: u64) -> u32 {
    (links >> 32) as u32
}

impl Table {
    pub(in crate::backend) fn new(arena: Arc<Arena>, kept: Arc<Kept>, slot_count: u64) -> Table {
        Table { arena, kept, slot_count }
    }

    pub(in crate::backend) fn slot_count(&self) -> u64 {
        self.slot_count
    }

    fn cell(&self, link: u32, index: u64) -> Option<&AtomicU64> {
        (link != NONE).then(|| self.arena.frame_words(link - 1).get(index as usize)).flatten()
    }

    fn links(&self, slot: u64) -> Option<&AtomicU64> {
        let node = self.kept.root().get((slot / NODE_SLOTS) as usize)?.load(Ordering::Acquire);
        self.cell(node, slot / FANOUT % FANOUT)
    }

    /// The entry's cell, if the slot's leaf exists.
    pub(in crate::backend) fn cell_of(&self, slot: u64) -> Option<&AtomicU64> {
        let links = self.links(slot)?.load(Ordering::Acquire);
        self.cell(leaf_of(links), slot % FANOUT)
    }

    /// The entry of `slot`.
    #[cfg(test)]
    pub(in crate::backend) fn get(&self, slot: u64) -> Entry {
        self.cell_of(slot).map_or(Entry::ABSENT, |cell| Entry(cell.load(Ordering::Acquire)))
    }

    /// The entry's cell; its leaf is made if there is none. `None`: no frame for it.
    pub(in crate::backend) fn cell_or_make(&self, slot: u64) -> Option<&AtomicU64> {
        if let Some(cell) = self.cell_of(slot) {
            return Some(cell);
        }
        let links = self.links_or_make(slot)?;
        self.link_page(links, 0)?;
        self.cell_of(slot)
    }

    /// The word beside `slot`'s entry.
    pub(in crate::backend) fn word(&self, slot: u64) -> Option<&AtomicU64> {
        let links = self.links(slot)?.load(Ordering::Acquire);
        self.cell(words_of(links), slot % FANOUT)
    }

    /// As [`Table::word`]; the page of words is made if there is none. `None`: no frame for it.
    pub(in crate::backend) fn word_or_make(&self, slot: u64) -> Option<&AtomicU64> {
        if let Some(word) = self.word(slot) {
            return Some(word);
        }
        let links = self.links_or_make(slot)?;
        self.link_page(links, 32)?;
        self.word(slot)
    }

    fn links_or_make(&self, slot: u64) -> Option<&AtomicU64> {
        let node = self.kept.root().get((slot / NODE_SLOTS) as usize)?;
        if node.load(Ordering::Acquire) == NONE {
            let frame = self.arena.take_frame()?;
            let raced = node.compare_exchange(NONE, frame + 1, Ordering::AcqRel, Ordering::Acquire);
            if raced.is_err() {
                self.arena.give_frame_back(frame);
            }
        }
        self.links(slot)
    }

    /// Puts a new page into the half of `links` that starts at bit `shift`.
    fn link_page(&self, links: &AtomicU64, shift: u32) -> Option<()> {
        let frame = self.arena.take_frame()?;
        let made = links.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            ((old >> shift) as u32 == NONE).then(|| old | u64::from(frame + 1) << shift)
        });
        if made.is_err() {
            self.arena.give_frame_back(frame);
        }
        Some(())
    }

    /// Calls `visit` with every slot from `first` on, up to `end`, that is not absent, and its
    /// cell. Leaves that do not exist are passed over at once.
    pub(in crate::backend) fn for_each(
        &self,
        first: u64,
        end: u64,
        mut visit: impl FnMut(u64, &AtomicU64),
    ) {
        let end = end.min(self.slot_count);
        let root = self.kept.root();
        let mut slot = first;
        while slot < end {
            let node = root[(slot / NODE_SLOTS) as usize].load(Ordering::Acquire);
            if node == NONE {
                slot = (slot / NODE_SLOTS + 1) * NODE_SLOTS;
                continue;
            }
            let leaf_end = end.min((slot / FANOUT + 1) * FANOUT);
            let leaf = self
                .cell(node, slot / FANOUT % FANOUT)
                .map_or(NONE, |links| leaf_of(links.load(Ordering::Acquire)));
            if leaf != NONE {
                let cells = self.arena.frame_words(leaf - 1);
                for slot in slot..leaf_end {
                    let cell = &cells[(slot % FANOUT) as usize];
                    if cell.load(Ordering::Relaxed) != Entry::ABSENT.0 {
                        visit(slot, cell);
                    }
                }
            }
            slot = leaf_end;
        }
    }

    /// Calls `visit` with the number of every frame that the table uses. Of a node for which it
    /// answers false, the pages below are passed over.
    pub(in crate::backend) fn for_each_frame(&self, mut visit: impl FnMut(u32) -> bool) {
        for node in self.kept.root() {
            let node = node.load(Ordering::Acquire);
            if node == NONE || !visit(node - 1) {
                continue;
            }
            for links in self.arena.frame_words(node - 1) {
                let links = links.load(Ordering::Acquire);
                for link in [leaf_of(links), words_of(links)] {
                    if link != NONE {
                        visit(link - 1);
                    }
                }
            }
        }
    }

    /// Tells the arena, which is being adopted, which of its frames the table uses.
    ///
    /// # Errors
    /// `InvalidData` if the table leads nowhere.
    pub(in crate::backend) fn adopt_frames(&self) -> io::Result<()> {
        let mut right = true;
        self.for_each_frame(|frame| {
            let adopted = self.arena.adopt_frame(frame);
            right &= adopted;
            adopted
        });
        let text = "the slot table that was left behind is damaged";
        right.then_some(()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text))
    }
}
