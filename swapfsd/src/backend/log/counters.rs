//! What is counted, in zram's names where zram has the number.

use super::Store;
use crate::backend::objects::counts::Counts;
use crate::backend::objects::entry::{Entry, Meaning};
use crate::codec::Encoding;
use std::sync::atomic::Ordering;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Field {
    /// Slots that hold a page; the first six follow from the table.
    Pages,
    SamePages,
    RawPages,
    Lz4Pages,
    ZstdPages,
    /// Pages that are on the device as another one's.
    SharedPages,
    ReadAbsent,
    ReadSame,
    ReadBuffer,
    ReadDevice,
    Refused,
    ChecksumErrors,
    /// Bytes of objects and records that writes brought.
    AcceptedBytes,
    /// Of these, bytes that died before they reached the device.
    AbsorbedBytes,
    DeviceWrittenBytes,
    DeviceReadBytes,
    DeviceReads,
    DeviceErrors,
    PartsWritten,
    Flushes,
    DiscardedBytes,
    DiscardsNotNoted,
    Victims,
    CollectedBytes,
    CollectedReadBytes,
    /// Buffered pages that were written because a victim had their older version.
    SavedPages,
    /// The same that there was no room for: a power failure would lose them.
    NotSaved,
    SegmentsFreed,
    ShunnedSegments,
    Count,
}

const FIELDS: usize = Field::Count as usize;
const OF_ENTRIES: usize = 6;

/// The counters.
#[derive(Debug, Default)]
pub(super) struct Counters(Counts<FIELDS>);

fn kind_of(entry: Entry) -> Option<Field> {
    match entry.meaning() {
        Meaning::SameFilled(_) | Meaning::SameFilledBeside(_) => Some(Field::SamePages),
        Meaning::Object(object) => Some(match object.encoding {
            Encoding::Raw => Field::RawPages,
            Encoding::Lz4 => Field::Lz4Pages,
            Encoding::Zstd => Field::ZstdPages,
        }),
        Meaning::Absent | Meaning::Discarded(_) | Meaning::Discarding(_) | Meaning::Damaged => None,
    }
}

impl Counters {
    fn change(&self, field: Field, by: i64) {
        self.0.add(field as usize, by);
    }

    pub(super) fn add(&self, field: Field, count: u64) {
        self.change(field, count as i64);
    }

    /// The sum over all shards. While threads count, it may be a few off.
    pub(super) fn sum(&self, field: Field) -> u64 {
        self.0.sum(field as usize)
    }

    /// A slot's entry was `old` and is `new` now.
    pub(super) fn replaced(&self, old: Entry, new: Entry) {
        self.count_entry(old, -1);
        self.count_entry(new, 1);
    }

    fn count_entry(&self, entry: Entry, sign: i64) {
        if !entry.is_absent() {
            self.change(Field::Pages, sign);
        }
        if let Some(kind) = kind_of(entry) {
            self.change(kind, sign);
        }
        if entry.is_shared() {
            self.change(Field::SharedPages, sign);
        }
    }

    /// Forgets what follows from the table; [`Counters::found`] says it again.
    pub(super) fn begin_count(&self) {
        self.0.clear(0..OF_ENTRIES);
    }

    /// The table has this entry.
    pub(super) fn found(&self, entry: Entry) {
        self.count_entry(entry, 1);
    }
}

/// Reports everything, by name with the unit last.
pub(super) fn report(store: &Store, report: &mut dyn FnMut(&'static str, u64)) {
    let counters = &store.counters;
    let mut say = |name, field| report(name, counters.sum(field));
    say("same_pages", Field::SamePages);
    say("huge_pages", Field::RawPages);
    say("lz4_pages", Field::Lz4Pages);
    say("zstd_pages", Field::ZstdPages);
    say("dedup_shared_pages", Field::SharedPages);
    say("read_absent_pages", Field::ReadAbsent);
    say("read_same_pages", Field::ReadSame);
    say("read_buffer_pages", Field::ReadBuffer);
    say("read_device_pages", Field::ReadDevice);
    say("refused_writes", Field::Refused);
    say("checksum_errors", Field::ChecksumErrors);
    say("accepted_bytes", Field::AcceptedBytes);
    say("absorbed_bytes", Field::AbsorbedBytes);
    say("device_written_bytes", Field::DeviceWrittenBytes);
    say("device_read_bytes", Field::DeviceReadBytes);
    say("device_reads", Field::DeviceReads);
    say("device_errors", Field::DeviceErrors);
    say("parts_written", Field::PartsWritten);
    say("device_flushes", Field::Flushes);
    say("discarded_bytes", Field::DiscardedBytes);
    say("discards_not_noted", Field::DiscardsNotNoted);
    say("gc_victims", Field::Victims);
    say("gc_moved_bytes", Field::CollectedBytes);
    say("gc_read_bytes", Field::CollectedReadBytes);
    say("gc_saved_pages", Field::SavedPages);
    say("gc_not_saved_pages", Field::NotSaved);
    say("segments_freed", Field::SegmentsFreed);
    say("segments_shunned", Field::ShunnedSegments);
    let segments = &store.segments;
    report("orig_data_size_bytes", counters.sum(Field::Pages) * 4096);
    report("compr_data_size_bytes", store.accounted_bytes.load(Ordering::Relaxed));
    report("usable_bytes", store.layout.usable_bytes);
    report("segment_bytes", segments.area.segment_bytes);
    report("segments_total", segments.area.segments().len() as u64);
    report("segments_free", segments.free_count() as u64);
    report("segments_pending", segments.pending_count() as u64);
    report("device_live_bytes", segments.live_bytes());
    report("buffer_used_bytes", store.arena.used_bytes() - store.arena.table_bytes());
    report("buffer_live_bytes", store.arena.live_bytes());
    report("buffer_queued_chunks", store.buffer.queued() as u64);
    report("mem_table_bytes", store.arena.table_bytes());
    report("mem_used_total_bytes", store.arena.used_bytes());
    report("mem_populated_bytes", store.arena.populated_bytes());
    let written = counters.sum(Field::DeviceWrittenBytes);
    let accepted = counters.sum(Field::AcceptedBytes);
    if let Some(percent) = (written * 100).checked_div(accepted) {
        report("write_amplification_percent", percent);
    }
}
