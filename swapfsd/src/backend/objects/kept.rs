//! What outlives the process beside the pages themselves: the header, the table's root, and a
//! few words for each segment.
//!
//! ```text
//! page 0           header: what the first instance laid out, and two numbers that only grow
//! root             one link for each node of the slot table
//! information      by segment, 4 bytes: its state, and the bytes of it that live objects take
//! generations      by segment, 4 bytes: how often it was populated
//! linked frames    by segment, 8 bytes: of use while the derived state is made again, only
//! ```
//!
//! The arrays are by segment so that they grow with the arena: who populates a segment first
//! touches its words, and an arena of a tebibyte of which nothing is used costs nothing.

use super::arena::SEGMENT_BYTES;
use crate::held::Held;
use crate::sys::memory::Mapping;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use swapfs_format::PAGE_LEN;

/// The region of the arena.
pub(in crate::backend) const ARENA_REGION: usize = 0;
/// The region of this file.
const KEPT_REGION: usize = 1;
/// The region of the index of identical pages.
pub(in crate::backend) const INDEX_REGION: usize = 2;

/// Says that the header is complete. The last byte is the version of everything that lies in the
/// regions: table entries, objects, and what is described above.
const MAGIC: u64 = u64::from_le_bytes(*b"zmemkep\x01");

/// How the memory is divided up. The first instance says so, and its successors go by it,
/// whatever their own options are: what lies there can't be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) struct Layout {
    pub(in crate::backend) slot_count: u64,
    /// Slots below one link of the root.
    pub(in crate::backend) node_slots: u64,
    pub(in crate::backend) segment_count: u32,
    pub(in crate::backend) limit_segments: u32,
    pub(in crate::backend) reserve_segments: u32,
    /// Buckets that the index of identical pages can have.
    pub(in crate::backend) max_buckets: u32,
}

#[derive(Debug)]
#[repr(C)]
struct Header {
    magic: AtomicU64,
    slot_count: AtomicU64,
    node_slots: AtomicU64,
    segment_count: AtomicU32,
    limit_segments: AtomicU32,
    reserve_segments: AtomicU32,
    max_buckets: AtomicU32,
    /// Segments from here on were never populated.
    untouched: AtomicU32,
    /// Buckets of the index that are populated; 0: there never was an index, and no entry names
    /// an object that another one names.
    buckets: AtomicU32,
}

/// The memory.
#[derive(Debug)]
pub(in crate::backend) struct Kept {
    mapping: Mapping,
    layout: Layout,
    /// A predecessor's.
    adopted: bool,
    /// Where the arrays start, in bytes.
    information: usize,
    generations: usize,
    linked: usize,
}

impl Kept {
    /// The memory of a volume of `slot_count` slots: the predecessor's, or new and laid out as
    /// `layout` says.
    ///
    /// # Errors
    /// What mmap(2) answers; `InvalidData` where the predecessor's is not what it should be.
    pub(in crate::backend) fn new(held: &Held, layout: Layout) -> io::Result<Kept> {
        if !held.is_adopted() {
            let kept = Kept::map(held, layout, false)?;
            kept.mapping.populate_range(0, kept.information)?;
            kept.write_header();
            return Ok(kept);
        }
        let found = {
            let first_page = held.map(KEPT_REGION, PAGE_LEN)?;
            header_of(&first_page).layout()?
        };
        let wanted = (layout.slot_count, layout.node_slots);
        if (found.slot_count, found.node_slots) != wanted {
            return Err(invalid(format!(
                "the memory left behind is that of a volume of {} slots, and this one has {}: \
                 unmount it and mount it again",
                found.slot_count, layout.slot_count
            )));
        }
        let kept = Kept::map(held, found, true)?;
        kept.mapping.map_present(0, kept.information)?;
        Ok(kept)
    }

    fn map(held: &Held, layout: Layout, adopted: bool) -> io::Result<Kept> {
        let pages = |bytes: usize| bytes.next_multiple_of(PAGE_LEN);
        let segments = layout.segment_count as usize;
        let root_bytes = layout.slot_count.div_ceil(layout.node_slots) as usize * 4;
        let information = PAGE_LEN + pages(root_bytes);
        let generations = information + pages(segments * 4);
        let linked = generations + pages(segments * 4);
        let mapping = held.map(KEPT_REGION, linked + pages(segments * 8))?;
        Ok(Kept { mapping, layout, adopted, information, generations, linked })
    }

    pub(in crate::backend) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A predecessor has used this memory.
    pub(in crate::backend) fn is_adopted(&self) -> bool {
        self.adopted
    }

    fn header(&self) -> &Header {
        header_of(&self.mapping)
    }

    fn write_header(&self) {
        let (header, layout) = (self.header(), &self.layout);
        header.slot_count.store(layout.slot_count, Ordering::Relaxed);
        header.node_slots.store(layout.node_slots, Ordering::Relaxed);
        header.segment_count.store(layout.segment_count, Ordering::Relaxed);
        header.limit_segments.store(layout.limit_segments, Ordering::Relaxed);
        header.reserve_segments.store(layout.reserve_segments, Ordering::Relaxed);
        header.max_buckets.store(layout.max_buckets, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
    }

    fn words<T>(&self, offset: usize, count: usize) -> &[T]
    where
        T: Word,
    {
        assert!(offset + count * size_of::<T>() <= self.mapping.len());
        // SAFETY: the offset lies inside the mapping, as just checked.
        let start = unsafe { self.mapping.as_ptr().add(offset) };
        // SAFETY: inside the mapping; offsets are those of pages, so it is aligned; any bits are
        // words; and they are accessed through these atomics only.
        unsafe { std::slice::from_raw_parts(start.cast(), count) }
    }

    /// The links of the table's root.
    pub(in crate::backend) fn root(&self) -> &[AtomicU32] {
        self.words(PAGE_LEN, self.layout.slot_count.div_ceil(self.layout.node_slots) as usize)
    }

    /// A segment's state and live bytes.
    pub(in crate::backend) fn information(&self, segment: u32) -> &AtomicU32 {
        &self.words(self.information, self.layout.segment_count as usize)[segment as usize]
    }

    /// The same of all segments that were ever populated.
    pub(in crate::backend) fn all_information(&self) -> &[AtomicU32] {
        self.words(self.information, self.untouched() as usize)
    }

    /// How often a segment was populated.
    pub(in crate::backend) fn generation(&self, segment: u32) -> &AtomicU32 {
        &self.words(self.generations, self.layout.segment_count as usize)[segment as usize]
    }

    /// Which of a segment's frames the table uses: valid only while that is found out.
    pub(in crate::backend) fn linked(&self, segment: u32) -> &AtomicU64 {
        &self.words(self.linked, self.layout.segment_count as usize)[segment as usize]
    }

    /// Segments from this one on were never populated.
    pub(in crate::backend) fn untouched(&self) -> u32 {
        self.header().untouched.load(Ordering::Acquire)
    }

    /// One more segment will be populated. Its words are put in place: nobody else shall wait
    /// for memory for them.
    pub(in crate::backend) fn touch_next(&self) -> u32 {
        let segment = self.untouched();
        self.information(segment).store(0, Ordering::Relaxed);
        self.generation(segment).store(0, Ordering::Relaxed);
        self.linked(segment).store(0, Ordering::Relaxed);
        self.header().untouched.store(segment + 1, Ordering::Release);
        segment
    }

    /// Puts the words of all segments that were ever populated into this process's page tables.
    ///
    /// # Errors
    /// What madvise(2) answers.
    pub(in crate::backend) fn map_present(&self) -> io::Result<()> {
        let segments = self.untouched() as usize;
        if segments == 0 {
            return Ok(());
        }
        let arrays = [(self.information, 4), (self.generations, 4), (self.linked, 8)];
        arrays.into_iter().try_for_each(|(start, width)| {
            let bytes = (segments * width).next_multiple_of(PAGE_LEN);
            self.mapping.map_present(start, bytes)
        })
    }

    /// Buckets of the index that are populated; 0: there never was an index.
    pub(in crate::backend) fn buckets(&self) -> u32 {
        self.header().buckets.load(Ordering::Acquire)
    }

    pub(in crate::backend) fn set_buckets(&self, buckets: u32) {
        self.header().buckets.store(buckets, Ordering::Release);
    }
}

/// What the arrays consist of.
trait Word {}
impl Word for AtomicU32 {}
impl Word for AtomicU64 {}

fn header_of(mapping: &Mapping) -> &Header {
    assert!(mapping.len() >= PAGE_LEN);
    // SAFETY: a mapping is page-aligned, and this one has the page; any bits are a header, whose
    // fields are atomics.
    unsafe { &*mapping.as_ptr().cast() }
}

impl Header {
    fn layout(&self) -> io::Result<Layout> {
        if self.magic.load(Ordering::Acquire) != MAGIC {
            return Err(invalid(
                "the memory left behind is not that of a zmem volume, or of another version of \
                 this program: unmount it and mount it again"
                    .to_owned(),
            ));
        }
        let layout = Layout {
            slot_count: self.slot_count.load(Ordering::Relaxed),
            node_slots: self.node_slots.load(Ordering::Relaxed),
            segment_count: self.segment_count.load(Ordering::Relaxed),
            limit_segments: self.limit_segments.load(Ordering::Relaxed),
            reserve_segments: self.reserve_segments.load(Ordering::Relaxed),
            max_buckets: self.max_buckets.load(Ordering::Relaxed),
        };
        let sane = layout.segment_count as u64 * SEGMENT_BYTES as u64
            <= super::entry::MAX_ARENA_BYTES
            && self.untouched.load(Ordering::Relaxed) <= layout.segment_count
            && self.buckets.load(Ordering::Relaxed) <= layout.max_buckets;
        if !sane {
            return Err(invalid("the memory left behind is damaged".to_owned()));
        }
        Ok(layout)
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

const _: () = assert!(size_of::<Header>() <= PAGE_LEN);
