use super::*;
use std::io::Write;
use std::os::unix::fs::FileExt;
use swapfs_format::trace::{HEADER_LEN, Header, RECORD_LEN};

const TRACED: Traced =
    Traced { uuid: Uuid::from_u128(5), data_offset_bytes: 1 << 20, segment_bytes: 2 << 20 };

struct Place {
    folder: tempfile::TempDir,
    image: File,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let image = File::create(folder.path().join("image")).unwrap();
        Place { folder, image }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("trace")
    }

    fn open(&self, adopted: bool) -> Recorder {
        Recorder::open(&self.path(), TRACED, &self.image, adopted).unwrap()
    }

    fn refusal(&self) -> String {
        Recorder::open(&self.path(), TRACED, &self.image, false).unwrap_err().to_string()
    }

    fn read(&self) -> (Header, Vec<Record>) {
        let bytes = std::fs::read(self.path()).unwrap();
        let header = Header::decode(&bytes).unwrap();
        let records = bytes[HEADER_LEN..].chunks(RECORD_LEN);
        (
            header,
            records.map(|bytes| Record::decode(bytes.first_chunk().unwrap()).unwrap()).collect(),
        )
    }
}

fn kinds(records: &[Record]) -> Vec<RecordKind> {
    records.iter().map(|record| record.kind).collect()
}

#[test]
fn what_was_recorded_is_in_the_file() {
    let place = Place::new();
    let recorder = place.open(false);
    let started = Instant::now();
    thread::sleep(Duration::from_millis(2));
    recorder.record(Kind::Write, 1 << 20, 8192, started);
    recorder.record(Kind::Read, 4096, 4096, Instant::now());
    recorder.record(Kind::Discard, 0, 1 << 40, Instant::now());
    recorder.record(Kind::Flush, 0, 0, Instant::now());
    recorder.accepted(4096);
    recorder.accepted(8192);
    drop(recorder);
    let (header, records) = place.read();
    assert_eq!(header.uuid, TRACED.uuid);
    assert_eq!((header.data_offset_bytes, header.segment_bytes), (1 << 20, 2 << 20));
    use RecordKind::{Accepted, Discard, Flush, Read, Write};
    assert_eq!(kinds(&records), [Write, Read, Discard, Flush, Accepted]);
    assert_eq!((records[0].offset_bytes, records[0].length_bytes), (1 << 20, 8192));
    assert!(records[0].duration_ns >= 2_000_000);
    assert!(records[1].start_ns >= records[0].start_ns + records[0].duration_ns);
    assert_eq!(records[2].length_bytes, 1 << 40);
    assert_eq!(records[4].length_bytes, 12288);
}

#[test]
fn what_finds_no_room_is_counted() {
    let place = Place::new();
    let recorder = Recorder::with_room(&place.path(), TRACED, &place.image, false, 64).unwrap();
    const COUNT: u64 = 100_000;
    for number in 0..COUNT {
        recorder.record(Kind::Write, number, 4096, Instant::now());
    }
    drop(recorder);
    let (_, records) = place.read();
    let lost = records.iter().filter(|record| record.kind == RecordKind::Lost);
    let lost: u64 = lost.map(|record| record.length_bytes).sum();
    let written = records.iter().filter(|record| record.kind == RecordKind::Write).count() as u64;
    assert!(lost > 0);
    assert_eq!(written + lost, COUNT);
}

#[test]
fn a_successor_goes_on_where_its_predecessor_was_cut_off() {
    let place = Place::new();
    let recorder = place.open(false);
    // It stands by while the other one serves, and leaves its file alone.
    let standby = place.open(true);
    recorder.record(Kind::Write, 0, 4096, Instant::now());
    thread::sleep(Duration::from_millis(250));
    drop(recorder);
    let (first, before) = place.read();
    let mut file = File::options().append(true).open(place.path()).unwrap();
    file.write_all(&[2; 20]).unwrap();
    standby.record(Kind::Read, 4096, 4096, Instant::now());
    drop(standby);
    let (header, records) = place.read();
    assert_eq!(header, first);
    assert_eq!(records[..before.len()], before);
    let added = &records[before.len()..];
    assert_eq!(kinds(added), [RecordKind::Restart, RecordKind::Read]);
    let last = before.iter().map(|record| record.start_ns).max().unwrap();
    assert!(added[1].start_ns >= last + 200_000_000, "one time for both");
    // A new mount starts again.
    drop(place.open(false));
    assert_eq!(place.read().1, []);
}

#[test]
fn a_successor_without_a_file_makes_one() {
    let place = Place::new();
    let recorder = place.open(true);
    assert!(!place.path().exists());
    recorder.record(Kind::Flush, 0, 0, Instant::now());
    drop(recorder);
    assert_eq!(kinds(&place.read().1), [RecordKind::Flush]);
}

#[test]
fn a_standby_that_never_serves_writes_nothing() {
    let place = Place::new();
    drop(place.open(true));
    assert!(!place.path().exists());
}

#[test]
fn only_a_trace_is_overwritten() {
    let place = Place::new();
    std::fs::write(place.path(), "dear diary").unwrap();
    assert!(
        place.refusal().ends_with(
            "trace: it holds something that is no trace: remove it, or name another file"
        )
    );
    assert_eq!(std::fs::read(place.path()).unwrap(), b"dear diary");
    std::fs::remove_file(place.path()).unwrap();
    std::fs::create_dir(place.path()).unwrap();
    assert!(place.refusal().contains("directory"));
    std::fs::remove_dir(place.path()).unwrap();
    std::fs::hard_link(place.folder.path().join("image"), place.path()).unwrap();
    assert!(place.refusal().contains("this is the image that is to be traced"));
    let missing = place.folder.path().join("missing/trace");
    let error = Recorder::open(&missing, TRACED, &place.image, false).unwrap_err().to_string();
    assert!(error.starts_with("trace=/var/tmp/") && error.contains("No such file"), "{error}");
}

#[test]
fn two_do_not_share_a_file() {
    let place = Place::new();
    let _first = place.open(false);
    assert!(place.refusal().contains("another volume is being traced into it"));
}

#[test]
fn a_file_that_takes_no_more_ends_the_trace_and_nothing_else() {
    let place = Place::new();
    let other = Header::decode(&{
        drop(place.open(false));
        std::fs::read(place.path()).unwrap()
    });
    let other = Header { uuid: Uuid::from_u128(6), ..other.unwrap() };
    File::options()
        .write(true)
        .open(place.path())
        .unwrap()
        .write_all_at(&other.encode(), 0)
        .unwrap();
    let recorder = place.open(true);
    recorder.record(Kind::Flush, 0, 0, Instant::now());
    let ended = Instant::now() + Duration::from_secs(5);
    while !recorder.shared.off.load(Ordering::Relaxed) {
        assert!(Instant::now() < ended);
        thread::sleep(Duration::from_millis(5));
    }
    recorder.record(Kind::Flush, 0, 0, Instant::now());
    drop(recorder);
    assert_eq!(place.read(), (other, Vec::new()));
}
