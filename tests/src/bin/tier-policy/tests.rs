//! The simulator against what is known, and the tier's policy against LRU.

use super::*;
use crate::compare::{Policy, Row};
use crate::trace::{Kind, Op, Trace};
use std::io::Write;
use std::sync::LazyLock;
use swapfs_format::PAGE_BYTES;
use swapfs_format::trace::{Header, Record, RecordKind};

const WATERMARKS: Watermarks = Watermarks { high_percent: 90, low_percent: 80 };
const FULL: Watermarks = Watermarks { high_percent: 100, low_percent: 100 };

/// Of fixed seeds; for two tests.
static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let traces = trace::synthetic(8192, 1);
    traces.iter().flat_map(|trace| compare(trace, &[5, 10, 20, 40], WATERMARKS)).collect()
});

#[test]
fn the_top_tier_has_the_hits_of_lru() {
    for row in ROWS.iter() {
        let ratio = |policy| row.of(policy).unwrap().ratio_to_lru;
        let (always, second) = (ratio(Policy::Always), ratio(Policy::Second));
        let place = format!("{}, {} %", row.trace, row.room_percent);
        assert!(always >= 0.95, "{place}: {always}");
        // It may be worse where what is hot changes, and in a loop that just fits.
        assert!(
            second >= if row.trace.starts_with("zipf") { 1.0 } else { 0.95 },
            "{place}: {second}"
        );
    }
}

#[test]
fn nobody_has_more_hits_than_the_optimum() {
    for row in ROWS.iter() {
        let rate = |policy| row.of(policy).unwrap().read_hit_rate;
        for policy in Policy::ALL {
            assert!(rate(policy) <= rate(Policy::Optimum), "{}: {policy:?}", row.trace);
        }
    }
}

fn of_reads(slots: &[u32]) -> Trace {
    let mut ops: Vec<Op> = (0..8).map(|slot| Op { kind: Kind::Write, slot }).collect();
    ops.extend(slots.iter().map(|&slot| Op { kind: Kind::Read, slot }));
    let (name, text) = (String::new(), String::new());
    Trace { name, text, slots: 8, used_slots: 8, ops, warm_up: 8 }
}

#[test]
fn a_small_trace_has_the_hits_that_can_be_counted() {
    // Slots 4 to 7 are in the top after the warm-up, but for the optimum.
    let trace = of_reads(&[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    let hits = |policy: Policy| policy.run(&trace, 4, FULL).read_hits;
    // A loop over five with room for four.
    assert_eq!(hits(Policy::Lru), 0);
    assert_eq!(hits(Policy::Fifo), 0);
    // Of 0, 1, 2, 3 three stay when 7 is written; 4 comes in for none, or for one of them.
    assert_eq!(hits(Policy::Optimum), 7);
}

#[test]
fn a_recording_becomes_operations_on_slots() {
    let header = Header {
        uuid: uuid::Uuid::nil(),
        data_offset_bytes: 1 << 20,
        segment_bytes: 2 << 20,
        started_unix_ns: 0,
        started_boot_ns: 0,
    };
    let record = |kind, start_ns, slot: u64, count: u64| Record {
        kind,
        start_ns,
        duration_ns: 1,
        offset_bytes: (1 << 20) + slot * PAGE_BYTES,
        length_bytes: count * PAGE_BYTES,
    };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&header.encode()).unwrap();
    // The second began first.
    for record in [
        record(RecordKind::Read, 20, 3, 2),
        record(RecordKind::Write, 10, 3, 1),
        record(RecordKind::Discard, 30, 3, 1),
        record(RecordKind::Read, 40, 3, 1),
    ] {
        file.write_all(&record.encode()).unwrap();
    }
    let binary = trace::recorded(file.path()).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"# kind, slot, count\nw 3\nr 3 2\nd 3 1\n\nr 3\n").unwrap();
    let text = trace::recorded(file.path()).unwrap();
    for trace in [binary, text] {
        let (write, read, discard) = (Kind::Write, Kind::Read, Kind::Discard);
        let expected = [(write, 4), (write, 3), (read, 3), (read, 4), (discard, 3)];
        let ops: Vec<_> = trace.ops.iter().map(|op| (op.kind, op.slot)).collect();
        assert_eq!(ops, expected);
        assert_eq!((trace.slots, trace.used_slots, trace.warm_up), (5, 2, 1));
    }
    std::fs::write(file.path(), "w 3\nx 4\n").unwrap();
    assert!(trace::recorded(file.path()).unwrap_err().to_string().starts_with("line 2: "));
}

#[test]
fn a_picture_has_a_line_for_each_policy_and_trace() {
    let traces = trace::synthetic(512, 1);
    let panels: Vec<_> =
        traces.iter().map(|trace| (trace, compare(trace, &[10, 50], WATERMARKS))).collect();
    let svg = picture::svg(&panels, WATERMARKS);
    assert_eq!(svg.matches("<polyline").count(), 4 * Policy::ALL.len());
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
}
