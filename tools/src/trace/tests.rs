use super::*;
use swapfs_format::trace::{Header, Record, RecordKind};
use uuid::Uuid;

const SEGMENT: u64 = 64 << 10;
const DATA: u64 = 1 << 20;

struct Trace {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
    now_ns: u64,
}

impl Trace {
    fn new() -> Trace {
        let header = Header {
            uuid: Uuid::from_u128(3),
            data_offset_bytes: DATA,
            segment_bytes: SEGMENT,
            started_unix_ns: 1_795_000_000_000_000_000,
            started_boot_ns: 77,
        };
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        Trace { folder, bytes: header.encode().to_vec(), now_ns: 1000 }
    }

    /// 100 us after the one before it, and 50 us long.
    fn add(&mut self, kind: RecordKind, offset_bytes: u64, length_bytes: u64) {
        self.now_ns += 100_000;
        let (start_ns, duration_ns) = (self.now_ns, 50_000);
        let record = Record { kind, start_ns, duration_ns, offset_bytes, length_bytes };
        self.bytes.extend(record.encode());
    }

    fn write(&mut self, place: u64, length: u64) {
        self.add(RecordKind::Write, DATA + place, length);
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("it.trace")
    }

    fn run(&self, svg: Option<&str>) -> Result<Summary, String> {
        std::fs::write(self.path(), &self.bytes).unwrap();
        let svg = svg.map(|name| self.folder.path().join(name));
        let request = TraceRequest { file: self.path(), svg, segment_bytes: None };
        run(&request).map_err(|failure| failure.to_string())
    }

    fn summary(&self) -> Summary {
        self.run(None).unwrap()
    }
}

/// Numbers without an order, the same each time.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn a_log_is_sequential() {
    let mut trace = Trace::new();
    // Segments in any order, each from front to back; and one of them twice.
    for segment in [5, 2, 9, 2] {
        for part in 0..8 {
            trace.write(segment * SEGMENT + part * 8192, 8192);
        }
    }
    trace.add(RecordKind::Accepted, 0, 200 << 10);
    trace.add(RecordKind::Accepted, 0, 40 << 10);
    let summary = trace.summary();
    assert_eq!(summary.sequential_write_share, Some(1.0));
    assert_eq!(summary.aligned_write_share, Some(1.0));
    assert_eq!((summary.segments.written, summary.segments.front_to_back), (3, 3));
    assert_eq!((summary.operations.write, summary.bytes.write), (32, 256 << 10));
    assert_eq!(summary.accepted_bytes, 240 << 10);
    assert!((summary.write_amplification.unwrap() - 256.0 / 240.0).abs() < 1e-9);
    assert!((summary.duration_s - 0.003_150).abs() < 1e-9);
    assert_eq!(summary.latency.write.unwrap().p99_us, 50.0);
    assert_eq!(summary.latency.read, None);
    let text = summary.to_string();
    for line in [
        "writes         100 % sequential, 100 % aligned to 4 KiB\n",
        "segments       3 of 64 KiB written, 3 of them strictly front to back\n",
        "amplification  1.07: 256 KiB written for 240 KiB accepted\n",
        "lasted         3.1 ms\n",
        "began          2026-11-18 11:06:40 UTC\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn writes_in_place_are_not() {
    let mut trace = Trace::new();
    let mut state = 42;
    const WRITES: u64 = 16_384;
    const PAGES: u64 = 4096;
    for _ in 0..WRITES {
        trace.write(random(&mut state) % PAGES * 4096, 4096);
    }
    trace.add(RecordKind::Accepted, 0, WRITES * 4096);
    let summary = trace.summary();
    // By chance: at a segment's start, or where the one before ended, each one in 16 pages.
    let share = summary.sequential_write_share.unwrap();
    assert!((share - 0.125).abs() < 0.02, "{share}");
    assert_eq!(summary.aligned_write_share, Some(1.0));
    assert_eq!((summary.segments.written, summary.segments.front_to_back), (PAGES / 16, 0));
    assert_eq!(summary.write_amplification, Some(1.0));
}

#[test]
fn what_began_first_counts_first_though_it_ended_last() {
    let mut trace = Trace::new();
    let record = |start_ns, place| Record {
        kind: RecordKind::Write,
        start_ns,
        duration_ns: 10,
        offset_bytes: DATA + place,
        length_bytes: 4096,
    };
    for pair in 0..100 {
        for (moment, page) in [(1, 1), (0, 0)] {
            let record = record(pair * 10 + moment, (2 * pair + page) * 4096);
            trace.bytes.extend(record.encode());
        }
    }
    assert_eq!(trace.summary().sequential_write_share, Some(1.0));
}

#[test]
fn a_write_over_an_edge_goes_on_in_the_next_segment() {
    let mut trace = Trace::new();
    trace.write(0, 2 * SEGMENT + 4096);
    trace.write(2 * SEGMENT + 4096, 4096);
    trace.write(SEGMENT + 4096, 4096);
    let summary = trace.summary();
    assert_eq!((summary.segments.written, summary.segments.front_to_back), (3, 2));
    assert!((summary.sequential_write_share.unwrap() - 2.0 / 3.0).abs() < 1e-9);
}

#[test]
fn sizes_alignment_and_the_other_kinds() {
    let mut trace = Trace::new();
    trace.write(512, 4096);
    trace.write(0, 12288);
    trace.add(RecordKind::Read, DATA, 4096);
    trace.add(RecordKind::Discard, DATA, 1 << 30);
    trace.add(RecordKind::Flush, 0, 0);
    trace.add(RecordKind::Restart, 0, 0);
    trace.add(RecordKind::Lost, 0, 5);
    let summary = trace.summary();
    assert_eq!(summary.aligned_write_share, Some(0.5));
    assert_eq!(summary.request_bytes.first().map(|bucket| bucket.le_bytes), Some(4096));
    assert_eq!(summary.request_bytes.last().map(|bucket| bucket.le_bytes), Some(1 << 30));
    let counts: Vec<_> = summary
        .request_bytes
        .iter()
        .filter(|bucket| bucket.read + bucket.write + bucket.discard > 0)
        .map(|bucket| (bucket.le_bytes, bucket.read, bucket.write, bucket.discard))
        .collect();
    assert_eq!(counts, [(4096, 1, 1, 0), (16384, 0, 1, 0), (1 << 30, 0, 0, 1)]);
    assert_eq!((summary.operations.flush, summary.restarts, summary.lost_operations), (1, 1, 5));
    assert_eq!(summary.write_amplification, None);
    let text = summary.to_string();
    assert!(text.contains("5 operations are missing (50.0 % of all)"), "{text}");
    assert!(text.contains("unknown: nothing was accepted"), "{text}");
}

#[test]
fn json_has_the_units_last() {
    let mut trace = Trace::new();
    trace.write(0, 4096);
    trace.add(RecordKind::Accepted, 0, 8192);
    let json = serde_json::to_value(trace.summary()).unwrap();
    assert_eq!(json["operations"]["write"], 1);
    assert_eq!(json["bytes"]["write"], 4096);
    assert_eq!(json["write_amplification"], 0.5);
    assert_eq!(json["latency"]["write"]["p99_us"], 50.0);
    assert!(json["latency"]["read"].is_null());
    assert_eq!(json["segments"]["front_to_back"], 1);
    assert_eq!(json["request_bytes"][0]["le_bytes"], 4096);
    assert_eq!(json["started_unix_s"], 1_795_000_000);
    let mut keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    keys.sort();
    // Others read them: what is here stays.
    assert_eq!(
        keys,
        [
            "accepted_bytes",
            "aligned_write_share",
            "bytes",
            "bytes_per_s",
            "cut_off_bytes",
            "data_offset_bytes",
            "duration_s",
            "file",
            "latency",
            "lost_operations",
            "operations",
            "operations_per_s",
            "request_bytes",
            "restarts",
            "segment_bytes",
            "segments",
            "sequential_write_share",
            "started_unix_s",
            "unknown_records",
            "uuid",
            "write_amplification",
        ]
    );
}

#[test]
fn an_empty_trace_is_a_summary_too() {
    let trace = Trace::new();
    let summary = trace.run(Some("it.svg")).unwrap();
    assert_eq!((summary.sequential_write_share, summary.duration_s), (None, 0.0));
    assert!(summary.to_string().contains("writes         none\n"));
    let svg = std::fs::read_to_string(trace.folder.path().join("it.svg")).unwrap();
    assert_well_formed(&svg);
    assert!(svg.contains("no reads, writes or discards"));
}

#[test]
fn a_file_that_is_cut_off_is_read_as_far_as_it_goes() {
    let mut trace = Trace::new();
    trace.write(0, 4096);
    trace.write(4096, 4096);
    trace.bytes.truncate(trace.bytes.len() - 7);
    let summary = trace.summary();
    assert_eq!((summary.operations.write, summary.cut_off_bytes), (1, 25));
    assert!(summary.to_string().contains("the file ends within a record (25 bytes of it)"));
}

#[test]
fn what_is_no_trace_says_so_and_what_to_do() {
    let mut trace = Trace::new();
    trace.bytes.truncate(20);
    let failure = trace.run(None).unwrap_err();
    assert!(failure.contains("it.trace: 20 bytes, less than the header"), "{failure}");
    assert!(failure.contains("record one by the option trace=PATH"), "{failure}");
    trace.bytes = b"swapfs\r\n and a lot of other things that are no trace at all, really".to_vec();
    assert!(trace.run(None).unwrap_err().contains("not a trace file"));
    trace.bytes = Trace::new().bytes;
    trace.bytes[8] = 2;
    assert!(trace.run(None).unwrap_err().contains("version 2"));
    let missing = TraceRequest { file: "/var/tmp/no/trace".into(), svg: None, segment_bytes: None };
    assert!(run(&missing).unwrap_err().to_string().contains("cannot open: No such file"));
    let folder = TraceRequest { file: "/var/tmp".into(), svg: None, segment_bytes: None };
    assert!(run(&folder).unwrap_err().to_string().contains("a directory"));
}

#[test]
fn garbage_behind_the_header_makes_no_panic() {
    let mut trace = Trace::new();
    let mut state = 7;
    for _ in 0..40_000 {
        trace.bytes.extend(random(&mut state).to_le_bytes());
    }
    // Kinds that there are, with impossible numbers.
    for kind in RecordKind::ALL {
        for number in [0, 1, u64::MAX / 2, u64::MAX] {
            let record = Record {
                kind,
                start_ns: number,
                duration_ns: number,
                offset_bytes: number,
                length_bytes: u64::MAX,
            };
            trace.bytes.extend(record.encode());
        }
    }
    let summary = trace.run(Some("it.svg")).unwrap();
    assert!(summary.unknown_records > 5000);
    let _ = summary.to_string();
    assert_well_formed(&std::fs::read_to_string(trace.folder.path().join("it.svg")).unwrap());
}

#[test]
fn the_picture_is_well_formed_and_small() {
    let mut trace = Trace::new();
    let mut state = 3;
    for number in 0..200_000 {
        let page = random(&mut state) % 100_000 * 4096;
        let kind = [RecordKind::Write, RecordKind::Read, RecordKind::Discard][number % 3];
        trace.add(kind, DATA + page, 4096);
    }
    trace.add(RecordKind::Accepted, 0, 1 << 20);
    trace.run(Some("a <b> & \"c\".svg")).unwrap();
    let svg = std::fs::read_to_string(trace.folder.path().join("a <b> & \"c\".svg")).unwrap();
    assert_well_formed(&svg);
    assert!(svg.len() < 1 << 20, "{}", svg.len());
    for part in ["place in the image", "time since the first operation, s", "writes (66667)"] {
        assert!(svg.contains(part), "{part}");
    }
}

#[test]
fn sequential_writes_are_a_line() {
    let mut trace = Trace::new();
    for page in 0..24_000 {
        trace.write(page * 4096, 4096);
    }
    let summary = trace.run(Some("it.svg")).unwrap();
    let svg = std::fs::read_to_string(trace.folder.path().join("it.svg")).unwrap();
    assert_well_formed(&svg);
    assert_eq!(summary.sequential_write_share, Some(1.0));
    let start = svg.find("d=\"M0 0h").expect("at the bottom on the left");
    let path = &svg[start..][..svg[start..].find("/>").unwrap()];
    assert!(path.contains("M318 239h2"), "{path}");
    assert!(!path.contains("M319 0h") && !path.contains("M0 239h"), "{path}");
}

#[test]
fn names_are_escaped_and_the_trace_is_not_overwritten() {
    let mut trace = Trace::new();
    trace.write(0, 4096);
    let failure = trace.run(Some("it.trace")).unwrap_err();
    assert!(failure.contains("that is the trace itself"), "{failure}");
    assert_eq!(std::fs::read(trace.path()).unwrap(), trace.bytes);
    let odd = trace.folder.path().join("a <b> & \"c\"\n.trace");
    std::fs::write(&odd, &trace.bytes).unwrap();
    let svg = trace.folder.path().join("it.svg");
    let request = TraceRequest { file: odd, svg: Some(svg.clone()), segment_bytes: Some(1 << 20) };
    assert_eq!(run(&request).unwrap().segment_bytes, 1 << 20);
    let svg = std::fs::read_to_string(svg).unwrap();
    assert_well_formed(&svg);
    assert!(svg.contains("a &lt;b&gt; &amp; &quot;c&quot;?.trace"));
}

/// Tags are closed in order, attributes are quoted and come once, and there is no bare `&` or `<`.
fn assert_well_formed(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut roots = 0;
    let mut rest = xml;
    while let Some(start) = rest.find('<') {
        assert_text(&rest[..start]);
        assert!(!open.is_empty() || rest[..start].trim().is_empty(), "text outside");
        let end = rest.find('>').expect("an end of the tag");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        let closed = tag.ends_with('/');
        let tag = tag.trim_end_matches('/');
        let name_end = tag.find(' ').unwrap_or(tag.len());
        let mut attributes = tag[name_end..].trim();
        let mut seen = Vec::new();
        while !attributes.is_empty() {
            let (key, value) = attributes.split_once("=\"").expect("a quoted value");
            assert!(key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{key}");
            assert!(!seen.contains(&key), "{key} twice");
            seen.push(key);
            let (value, more) = value.split_once('"').expect("an end of the value");
            assert_text(value);
            assert!(more.is_empty() || more.starts_with(' '), "{more}");
            attributes = more.trim();
        }
        roots += usize::from(open.is_empty());
        if !closed {
            open.push(&tag[..name_end]);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty());
    assert_eq!(roots, 1);
}

fn assert_text(text: &str) {
    for (at, _) in text.match_indices('&') {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;"];
        assert!(known.iter().any(|entity| text[at..].starts_with(entity)), "{text}");
    }
    assert!(text.chars().all(|c| !c.is_control() || c == '\n'));
}
