//! Room where something may still arrive that nobody waits for any more.

use super::{Extent, Layout, Space};
use std::sync::atomic::Ordering;
use swapfs_format::PAGE_BYTES;

/// Blocks of an extent.
const BLOCKS: u64 = super::MAX_EXTENT_BYTES as u64 / PAGE_BYTES;
const WORDS: usize = BLOCKS as usize / 64;

/// Room that something may still be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::tier) struct Doubt {
    offset: u64,
    bytes: u64,
    /// Of [`Layout::Linear`]: the blocks that nobody names.
    blocks: [u64; WORDS],
}

impl Space {
    /// What is written to a part of the extent may still arrive there, though whoever wrote it was
    /// told otherwise, or has died: nothing is put there until [`Space::end_doubt`]. For a successor,
    /// which has counted what lives.
    pub(in crate::backend::tier) fn begin_doubt(&self, offset: u64, bytes: u64) -> Doubt {
        let mut doubt = Doubt { offset, bytes, blocks: [0; WORDS] };
        if !self.is_inside(offset, bytes) {
            doubt.bytes = 0;
            return doubt;
        }
        match self.layout {
            Layout::Log => self.add_live(offset, bytes),
            Layout::Linear => {
                for index in 0..(bytes / PAGE_BYTES).min(BLOCKS) {
                    let block = offset / PAGE_BYTES + index;
                    let Some(word) = self.block_words().get((block / 64) as usize) else { break };
                    let bit = 1 << (block % 64);
                    // What an entry names has arrived.
                    if word.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
                        self.live_bytes.fetch_add(PAGE_BYTES, Ordering::Relaxed);
                        doubt.blocks[(index / 64) as usize] |= 1 << (index % 64);
                    }
                }
            }
            Layout::Objects => doubt.bytes = 0,
        }
        doubt
    }

    /// The same of an extent that this process has taken, and of which nothing was published: it is
    /// not given back.
    pub(in crate::backend::tier) fn doubt_of(extent: Extent) -> Doubt {
        Doubt { offset: extent.offset, bytes: extent.capacity as u64, blocks: [u64::MAX; WORDS] }
    }

    /// The same of a segment that was to be discarded, which may happen later.
    pub(in crate::backend::tier) fn doubt_of_discard(&self, extent: Extent) -> Doubt {
        if self.layout == Layout::Log {
            let words = self.words(self.segment_of(extent.offset));
            self.add_live(extent.offset, extent.capacity as u64);
            words.state.store(super::USED, Ordering::SeqCst);
        }
        Space::doubt_of(extent)
    }

    /// By now it has arrived, or never will.
    pub(in crate::backend::tier) fn end_doubt(&self, doubt: Doubt) {
        match self.layout {
            Layout::Log if doubt.bytes > 0 => self.sub_live(doubt.offset, doubt.bytes),
            Layout::Linear => {
                for index in 0..(doubt.bytes / PAGE_BYTES).min(BLOCKS) {
                    if doubt.blocks[(index / 64) as usize] >> (index % 64) & 1 != 0 {
                        self.free(doubt.offset + index * PAGE_BYTES, PAGE_BYTES);
                    }
                }
            }
            _ => {}
        }
    }
}
