//! What is counted, in zram's names where zram has the number (Documentation/admin-guide/blockdev/zram.rst).

use super::Store;
use super::entry::{Entry, Meaning};
use crate::backend::objects::counts::Counts;
use crate::codec::Encoding;
use swapfs_format::PAGE_LEN;

/// Steps of the histogram of compressed sizes, 256 bytes each.
const SIZE_STEPS: usize = 16;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Field {
    /// Slots that hold a page.
    Pages,
    SamePages,
    RawPages,
    Lz4Pages,
    ZstdPages,
    /// Encoded bytes of all slots, shared objects counted for each.
    EncodedBytes,
    /// Pages read, by what they were found as.
    ReadAbsent,
    ReadSame,
    ReadRaw,
    ReadLz4,
    ReadZstd,
    /// Writes refused for want of room.
    Refused,
    ChecksumErrors,
    /// Objects that the compactor moved.
    Compacted,
    CompactedSegments,
    Recompressed,
    /// Bytes that recompression saved.
    RecompressedSavedBytes,
    /// Cold objects that zstd made no smaller.
    RecompressTried,
    /// The first of the histogram.
    Size0,
}

/// Does that counter follow from the table's entries? The first ones do, and the histogram.
fn is_of_entries(index: usize) -> bool {
    index <= Field::EncodedBytes as usize || index >= Field::Size0 as usize
}

const FIELDS: usize = Field::Size0 as usize + SIZE_STEPS;

/// The counters.
#[derive(Debug, Default)]
pub(super) struct Counters(Counts<FIELDS>);

impl Counters {
    pub(super) fn add(&self, field: Field, count: i64) {
        self.0.add(field as usize, count);
    }

    /// The sum over all shards. While threads count, it may be a few off.
    pub(super) fn sum(&self, field: Field) -> u64 {
        self.sum_at(field as usize)
    }

    fn sum_at(&self, index: usize) -> u64 {
        self.0.sum(index)
    }

    /// A slot's entry was `old` and is `new` now.
    pub(super) fn replaced(&self, old: Entry, new: Entry) {
        self.count_entry(old, -1);
        self.count_entry(new, 1);
    }

    fn count_entry(&self, entry: Entry, sign: i64) {
        for_each_count(entry.meaning(), |index, count| self.0.add(index, sign * count));
    }

    /// What a predecessor's table says, in place of what was counted.
    pub(super) fn adopt(&self, tally: &Tally) {
        for (index, &count) in tally.0.iter().enumerate() {
            if is_of_entries(index) {
                self.0.clear(index..index + 1);
                self.0.add(index, count);
            }
        }
    }
}

/// Counts of one thread that nobody else looks at.
#[derive(Debug)]
pub(super) struct Tally([i64; FIELDS]);

impl Default for Tally {
    fn default() -> Tally {
        Tally([0; FIELDS])
    }
}

impl Tally {
    /// A slot's entry says `meaning`.
    pub(super) fn add(&mut self, meaning: Meaning) {
        for_each_count(meaning, |index, count| self.0[index] += count);
    }
}

/// Calls `add` with each counter that an entry counts in, and how much.
#[inline]
fn for_each_count(meaning: Meaning, mut add: impl FnMut(usize, i64)) {
    match meaning {
        Meaning::Absent => return,
        Meaning::SameFilled(_) | Meaning::SameFilledBeside(_) => add(Field::SamePages as usize, 1),
        Meaning::Object(object) => {
            let kind = match object.encoding {
                Encoding::Raw => Field::RawPages,
                Encoding::Lz4 => Field::Lz4Pages,
                Encoding::Zstd => Field::ZstdPages,
            };
            // A block of a member has a part of its checksum where others have their length.
            let len = if object.encoding == Encoding::Raw { PAGE_LEN } else { object.len };
            add(kind as usize, 1);
            add(Field::EncodedBytes as usize, len as i64);
            add(Field::Size0 as usize + (len - 1) / 256, 1);
        }
        Meaning::Discarded(_) | Meaning::Discarding(_) | Meaning::Damaged => {}
    }
    add(Field::Pages as usize, 1);
}

/// Names of the histogram's steps: pages whose encoded bytes are at most so many.
const SIZE_NAMES: [&str; SIZE_STEPS] = [
    "compr_le_256_pages",
    "compr_le_512_pages",
    "compr_le_768_pages",
    "compr_le_1024_pages",
    "compr_le_1280_pages",
    "compr_le_1536_pages",
    "compr_le_1792_pages",
    "compr_le_2048_pages",
    "compr_le_2304_pages",
    "compr_le_2560_pages",
    "compr_le_2816_pages",
    "compr_le_3072_pages",
    "compr_le_3328_pages",
    "compr_le_3584_pages",
    "compr_le_3840_pages",
    "compr_le_4096_pages",
];

/// Reports everything, by name with the unit last.
pub(super) fn report(store: &Store, report: &mut dyn FnMut(&'static str, u64)) {
    let counters = &store.counters;
    let arena = &store.pool.arena;
    report("orig_data_size_bytes", counters.sum(Field::Pages) * 4096);
    report("compr_data_size_bytes", arena.live_bytes());
    report("mem_used_total_bytes", arena.used_bytes());
    report("mem_used_max_bytes", arena.max_used_bytes());
    report("mem_limit_bytes", arena.limit_bytes());
    report("mem_populated_bytes", arena.populated_bytes());
    report("mem_table_bytes", arena.table_bytes());
    report("same_pages", counters.sum(Field::SamePages));
    report("huge_pages", counters.sum(Field::RawPages));
    report("lz4_pages", counters.sum(Field::Lz4Pages));
    report("zstd_pages", counters.sum(Field::ZstdPages));
    report("encoded_bytes", counters.sum(Field::EncodedBytes));
    report("read_absent_pages", counters.sum(Field::ReadAbsent));
    report("read_same_pages", counters.sum(Field::ReadSame));
    report("read_huge_pages", counters.sum(Field::ReadRaw));
    report("read_lz4_pages", counters.sum(Field::ReadLz4));
    report("read_zstd_pages", counters.sum(Field::ReadZstd));
    report("refused_writes", counters.sum(Field::Refused));
    report("checksum_errors", counters.sum(Field::ChecksumErrors));
    report("pages_compacted", counters.sum(Field::Compacted));
    report("segments_compacted", counters.sum(Field::CompactedSegments));
    report("pages_recompressed", counters.sum(Field::Recompressed));
    report("recompressed_saved_bytes", counters.sum(Field::RecompressedSavedBytes));
    report("recompress_tried_pages", counters.sum(Field::RecompressTried));
    let (shared, indexed) =
        store.dedup().map_or((0, 0), |dedup| (dedup.shared_pages(), dedup.indexed()));
    report("dedup_shared_pages", shared);
    report("dedup_indexed_objects", indexed);
    for (step, name) in SIZE_NAMES.into_iter().enumerate() {
        report(name, counters.sum_at(Field::Size0 as usize + step));
    }
}
