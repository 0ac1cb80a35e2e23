//! What a trace says in numbers.

use super::histogram::{Histogram, Latency};
use super::reader::TraceReader;
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use swapfs_format::PAGE_BYTES;
use swapfs_format::trace::{Header, Record, RecordKind};
use uuid::Uuid;

/// One number for each kind of operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ByKind<T> {
    /// Of reads.
    pub read: T,
    /// Of writes.
    pub write: T,
    /// Of discards.
    pub discard: T,
    /// Of flushes.
    pub flush: T,
}

impl<T> ByKind<T> {
    fn of(&mut self, kind: RecordKind) -> Option<&mut T> {
        match kind {
            RecordKind::Read => Some(&mut self.read),
            RecordKind::Write => Some(&mut self.write),
            RecordKind::Discard => Some(&mut self.discard),
            RecordKind::Flush => Some(&mut self.flush),
            RecordKind::Lost | RecordKind::Accepted | RecordKind::Restart => None,
        }
    }

    fn map<U>(&self, mut with: impl FnMut(&T) -> U) -> ByKind<U> {
        ByKind {
            read: with(&self.read),
            write: with(&self.write),
            discard: with(&self.discard),
            flush: with(&self.flush),
        }
    }
}

/// Operations of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SizeBucket {
    /// The size at most; that of the bucket before it is less.
    pub le_bytes: u64,
    /// Reads.
    pub read: u64,
    /// Writes.
    pub write: u64,
    /// Discards.
    pub discard: u64,
}

/// How the segments were written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Segments {
    /// Segments that were written to.
    pub written: u64,
    /// Of these, segments that saw nothing but writes from front to back: each began where the one
    /// before it had ended, or at the segment's start.
    pub front_to_back: u64,
}

/// Everything that there is to say about a trace. The keys of its JSON are these names.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The trace file.
    pub file: PathBuf,
    /// The image's UUID.
    pub uuid: Uuid,
    /// Where its data section starts.
    pub data_offset_bytes: u64,
    /// In pieces of this size writes should be sequential.
    pub segment_bytes: u64,
    /// When the trace began.
    pub started_unix_s: u64,
    /// From the first operation's start to the last one's end.
    pub duration_s: f64,
    /// How many.
    pub operations: ByKind<u64>,
    /// How much.
    pub bytes: ByKind<u64>,
    /// How many a second.
    pub operations_per_s: ByKind<f64>,
    /// How much a second.
    pub bytes_per_s: ByKind<f64>,
    /// How long they took; `None` where there was none.
    pub latency: ByKind<Option<Latency>>,
    /// By size, from 4 KiB or less up to the largest there was.
    pub request_bytes: Vec<SizeBucket>,
    /// Of the writes, those that began where the one before in the segment had ended, or at a
    /// segment's start; 1: all of them.
    pub sequential_write_share: Option<f64>,
    /// Of the writes, those whose offset and length are multiples of 4 KiB.
    pub aligned_write_share: Option<f64>,
    /// Segments that were written to.
    pub segments: Segments,
    /// What the back end took from the kernel.
    pub accepted_bytes: u64,
    /// Bytes written to the device for each byte accepted; `None` if nothing was.
    pub write_amplification: Option<f64>,
    /// Operations that the file lacks.
    pub lost_operations: u64,
    /// How often another process went on with the trace.
    pub restarts: u64,
    /// Records that this program does not know.
    pub unknown_records: u64,
    /// Bytes at the end of the file that are no whole record.
    pub cut_off_bytes: u64,
    #[serde(skip)]
    pub(super) counts: Counts,
}

/// What is counted on the way.
#[derive(Debug)]
pub(super) struct Counts {
    /// First start and last end of an operation, since the trace began.
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    /// First byte and end of all operations on a range, in the image.
    pub(super) low_bytes: u64,
    pub(super) high_bytes: u64,
    sequential_writes: u64,
    aligned_writes: u64,
    durations: ByKind<Histogram>,
    /// By the exponent of the size.
    sizes: [[u64; 3]; 65],
    segments: HashMap<u64, Segment>,
}

/// What is known of a segment.
#[derive(Debug, Clone, Copy)]
struct Segment {
    /// Where in it the last write ended.
    end_bytes: u64,
    in_order: bool,
}

impl Summary {
    /// Of no record yet.
    pub(super) fn new(file: &Path, header: &Header) -> Summary {
        let durations = ByKind {
            read: Histogram::new(),
            write: Histogram::new(),
            discard: Histogram::new(),
            flush: Histogram::new(),
        };
        Summary {
            file: file.to_owned(),
            uuid: header.uuid,
            data_offset_bytes: header.data_offset_bytes,
            segment_bytes: header.segment_bytes,
            started_unix_s: header.started_unix_ns / 1_000_000_000,
            duration_s: 0.0,
            operations: ByKind::default(),
            bytes: ByKind::default(),
            operations_per_s: ByKind::default(),
            bytes_per_s: ByKind::default(),
            latency: ByKind::default(),
            request_bytes: Vec::new(),
            sequential_write_share: None,
            aligned_write_share: None,
            segments: Segments::default(),
            accepted_bytes: 0,
            write_amplification: None,
            lost_operations: 0,
            restarts: 0,
            unknown_records: 0,
            cut_off_bytes: 0,
            counts: Counts {
                first_ns: u64::MAX,
                last_ns: 0,
                low_bytes: u64::MAX,
                high_bytes: 0,
                sequential_writes: 0,
                aligned_writes: 0,
                durations,
                sizes: [[0; 3]; 65],
                segments: HashMap::new(),
            },
        }
    }

    /// Takes the next record, in the order of their starts.
    pub(super) fn add(&mut self, record: &Record) {
        let (kind, length) = (record.kind, record.length_bytes);
        let remark = match kind {
            RecordKind::Lost => &mut self.lost_operations,
            RecordKind::Accepted => &mut self.accepted_bytes,
            RecordKind::Restart => {
                self.restarts += 1;
                return;
            }
            _ => return self.add_operation(record),
        };
        // Damaged numbers must not make a panic of it.
        *remark = remark.saturating_add(length);
    }

    fn add_operation(&mut self, record: &Record) {
        let Record { kind, start_ns, duration_ns, offset_bytes, length_bytes } = *record;
        let counts = &mut self.counts;
        counts.first_ns = counts.first_ns.min(start_ns);
        counts.last_ns = counts.last_ns.max(start_ns.saturating_add(duration_ns));
        if let Some(operations) = self.operations.of(kind) {
            *operations += 1;
        }
        if let Some(bytes) = self.bytes.of(kind) {
            *bytes = bytes.saturating_add(length_bytes);
        }
        if let Some(durations) = counts.durations.of(kind) {
            durations.add(duration_ns);
        }
        let column = match kind {
            RecordKind::Read => 0,
            RecordKind::Write => 1,
            RecordKind::Discard => 2,
            _ => return,
        };
        counts.low_bytes = counts.low_bytes.min(offset_bytes);
        counts.high_bytes = counts.high_bytes.max(offset_bytes.saturating_add(length_bytes));
        counts.sizes[exponent_of(length_bytes) as usize][column] += 1;
        if kind == RecordKind::Write && length_bytes > 0 {
            let aligned = (offset_bytes | length_bytes).is_multiple_of(PAGE_BYTES);
            counts.aligned_writes += u64::from(aligned);
            let segment_bytes = self.segment_bytes;
            let start = offset_bytes.saturating_sub(self.data_offset_bytes);
            counts.add_write(segment_bytes, start, length_bytes);
        }
    }

    /// There are no more records.
    pub(super) fn finish(&mut self, reader: &TraceReader) {
        self.cut_off_bytes = reader.cut_off_bytes;
        self.unknown_records = reader.unknown_records;
        let counts = &self.counts;
        let duration_ns = counts.last_ns.saturating_sub(counts.first_ns);
        self.duration_s = duration_ns as f64 / 1e9;
        let per_s = |count: &u64| match self.duration_s {
            0.0 => 0.0,
            duration_s => *count as f64 / duration_s,
        };
        self.operations_per_s = self.operations.map(per_s);
        self.bytes_per_s = self.bytes.map(per_s);
        self.latency = counts.durations.map(Histogram::latency);
        let writes = self.operations.write;
        let share = |part: u64| (writes > 0).then(|| part as f64 / writes as f64);
        self.sequential_write_share = share(counts.sequential_writes);
        self.aligned_write_share = share(counts.aligned_writes);
        self.segments = Segments {
            written: counts.segments.len() as u64,
            front_to_back: counts.segments.values().filter(|segment| segment.in_order).count()
                as u64,
        };
        let accepted = self.accepted_bytes;
        self.write_amplification =
            (accepted > 0).then(|| self.bytes.write as f64 / accepted as f64);
        self.request_bytes = counts.size_buckets();
    }
}

/// The power of two that a size does not exceed; sizes up to a page are one.
fn exponent_of(bytes: u64) -> u32 {
    bytes.max(PAGE_BYTES).checked_next_power_of_two().map_or(64, u64::ilog2)
}

impl Counts {
    /// A write of the data section from `start` on. One that goes on into further segments is
    /// judged by where it starts.
    fn add_write(&mut self, segment_bytes: u64, start: u64, length: u64) {
        let place = start % segment_bytes;
        let first = start / segment_bytes;
        let known = self.segments.get(&first);
        let in_order = place == 0 || known.is_some_and(|segment| segment.end_bytes == place);
        self.sequential_writes += u64::from(in_order);
        let mut end = place.saturating_add(length);
        let mut in_order_here = in_order;
        // A write of so many segments is none: the file is damaged.
        for number in first..first.saturating_add(1024) {
            let end_bytes = end.min(segment_bytes);
            let segment =
                self.segments.entry(number).or_insert(Segment { end_bytes, in_order: true });
            segment.end_bytes = end_bytes;
            segment.in_order &= in_order_here;
            if end <= segment_bytes {
                break;
            }
            end -= segment_bytes;
            in_order_here = true;
        }
    }

    fn size_buckets(&self) -> Vec<SizeBucket> {
        let used = self.sizes.iter().rposition(|counts| counts.iter().any(|&count| count > 0));
        let first = exponent_of(0) as usize;
        let bucket = |exponent: usize| {
            let [read, write, discard] = self.sizes[exponent];
            let le_bytes = u32::try_from(exponent).ok().and_then(|bits| 1u64.checked_shl(bits));
            SizeBucket { le_bytes: le_bytes.unwrap_or(u64::MAX), read, write, discard }
        };
        used.map_or_else(Vec::new, |last| (first..=last).map(bucket).collect())
    }
}
