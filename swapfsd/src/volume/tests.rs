use super::*;
use crate::backend::ram::Ram;
use crate::filter::Fault;
use std::sync::atomic::{AtomicU64, Ordering};
use swapfs_format::fault::{self, FaultPlan};
use uuid::Uuid;

fn header(slot_count: u64) -> SwapHeader {
    SwapHeader { slot_count, uuid: Uuid::from_u128(5), label: "test".to_owned() }
}

fn volume_on(backend: Arc<dyn Backend>, slot_count: u64) -> Arc<Volume> {
    Volume::new(backend, BufferPool::new(4, 2).unwrap(), &header(slot_count)).unwrap()
}

fn ram_volume(slot_count: u64) -> Arc<Volume> {
    volume_on(Arc::new(Ram::new(slot_count, &crate::held::Held::private()).unwrap()), slot_count)
}

#[test]
fn an_empty_volume_has_a_swap_header_and_zeros_behind_it() {
    let volume = ram_volume(16);
    let mut page = [1; PAGE_LEN];
    volume.read(0, &mut page).unwrap();
    assert_eq!(SwapHeader::decode(&page), Some(header(16)));
    volume.read(4096, &mut page).unwrap();
    assert_eq!(page, [0; PAGE_LEN]);
}

#[test]
fn mkswap_writes_part_of_page_0() {
    let volume = ram_volume(16);
    let mut written = vec![7; 3072];
    written[0] = 8;
    volume.write(1024, &written).unwrap();
    let mut page = [1; PAGE_LEN];
    volume.read(0, &mut page).unwrap();
    assert_eq!(page[..1024], [0; 1024]);
    assert_eq!(page[1024..], written[..]);
    assert_eq!(volume.stats().snapshot().partial_writes, 1);
}

#[test]
fn nothing_behind_the_end_is_touched() {
    let volume = ram_volume(16);
    let end = volume.bytes();
    let mut page = [0; PAGE_LEN];
    for offset in [end - 4095, end, end + 1, u64::MAX, u64::MAX - 4095] {
        assert_eq!(volume.read(offset, &mut page).unwrap_err().kind, ErrorKind::OutOfRange);
        assert_eq!(volume.write(offset, &page).unwrap_err().kind, ErrorKind::OutOfRange);
        assert_eq!(volume.discard(offset, 4096).unwrap_err().kind, ErrorKind::OutOfRange);
    }
    volume.write(end - 4096, &[9; PAGE_LEN]).unwrap();
    assert_eq!(
        volume.write(end - 4096, &[3; 2 * PAGE_LEN]).unwrap_err().kind,
        ErrorKind::OutOfRange
    );
    volume.read(end - 4096, &mut page).unwrap();
    assert_eq!(page, [9; PAGE_LEN], "a write that does not fit changes nothing at all");
    volume.read(end, &mut []).unwrap();
}

#[test]
fn errors_are_counted_by_operation() {
    let plan = FaultPlan { rules: fault::parse("read:EIO:1+discard:ENOSPC:1").unwrap(), seed: 1 };
    let faulty = Fault::new(Arc::new(Ram::new(16, &crate::held::Held::private()).unwrap()), plan);
    let volume = volume_on(Arc::new(faulty), 16);
    assert_eq!(volume.read(0, &mut [0; PAGE_LEN]).unwrap_err().kind, ErrorKind::Io);
    assert_eq!(volume.discard(4096, 4096).unwrap_err().kind, ErrorKind::NoSpace);
    volume.write(4096, &[0; PAGE_LEN]).unwrap();
    volume.flush().unwrap();
    let snapshot = volume.stats().snapshot();
    assert_eq!(snapshot.requests, [1, 1, 1, 1]);
    assert_eq!(snapshot.errors, [1, 0, 1, 0]);
    assert_eq!(snapshot.bytes, [0, 4096, 0, 0]);
    assert_eq!(volume.requests_in_flight(), 0);
}

/// A back end whose asynchronous side holds requests until it is told to go on.
struct Held {
    inner: Ram,
    held: crate::sync::Mutex<Vec<(u64, PageBuffer, Completion)>>,
    discards: AtomicU64,
}

impl Backend for Held {
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        self.inner.read(first, pages)
    }
    fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        self.inner.write(first, pages)
    }
    fn discard(&self, first: u64, _count: u64) -> Result<()> {
        self.discards.fetch_add(1, Ordering::Relaxed);
        Err(Error::new(ErrorKind::Unsupported, Operation::Discard, first))
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn activate(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn at_start(&self) -> AtStart {
        AtStart::Empty
    }
    fn asynchronous(&self) -> Option<&dyn crate::backend::AsynchronousBackend> {
        Some(self)
    }
    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        report("held_discards", self.discards.load(Ordering::Relaxed));
    }
}

impl crate::backend::AsynchronousBackend for Held {
    fn is_worth_starting(&self, _bytes: usize) -> bool {
        true
    }
    fn start_read(&self, first: u64, buffer: PageBuffer, done: Completion) {
        self.held.lock().push((first, buffer, done));
    }
    fn start_write(&self, first: u64, buffer: PageBuffer, done: Completion) {
        self.held.lock().push((first, buffer, done));
    }
}

struct Told(crate::sync::Mutex<Vec<(u64, bool)>>);

impl CompletionSink for Told {
    fn complete(&self, token: u64, result: Result<PageBuffer>) {
        self.0.lock().push((token, result.is_ok()));
    }
}

fn held_volume() -> (Arc<Held>, Arc<Volume>, Arc<Told>) {
    let held = Arc::new(Held {
        inner: Ram::new(16, &crate::held::Held::private()).unwrap(),
        held: crate::sync::Mutex::default(),
        discards: AtomicU64::new(0),
    });
    let backend: Arc<dyn Backend> = Arc::<Held>::clone(&held);
    (held, volume_on(backend, 16), Arc::new(Told(crate::sync::Mutex::default())))
}

fn completion(told: &Arc<Told>, token: u64) -> Completion {
    let sink: Arc<dyn CompletionSink> = Arc::<Told>::clone(told);
    Completion::new(sink, token, Error::new(ErrorKind::Io, Operation::Read, 0))
}

#[test]
fn a_started_request_holds_its_slots_until_it_is_done() {
    let (held, volume, told) = held_volume();
    assert!(!volume.prefers_start(0, 4096), "alone, a request is done at once");
    volume.start_write(0, volume.buffers().take(8192), completion(&told, 11));
    assert_eq!(volume.requests_in_flight(), 1);
    assert!(volume.prefers_start(8192, 4096));
    assert!(!volume.prefers_start(8191, 4096) && !volume.prefers_start(8192, 4095));
    let reader = std::thread::spawn({
        let volume = Arc::clone(&volume);
        move || volume.read(4096, &mut [0; PAGE_LEN])
    });
    // A request elsewhere is not held up.
    volume.read(8192, &mut [0; PAGE_LEN]).unwrap();
    assert!(!reader.is_finished());
    let (_, buffer, done) = held.held.lock().pop().unwrap();
    done.complete(Ok(buffer));
    reader.join().unwrap().unwrap();
    assert_eq!(*told.0.lock(), [(11, true)]);
    assert_eq!(volume.stats().snapshot().bytes[Operation::Write as usize], 8192);
}

#[test]
fn a_request_that_is_dropped_is_answered_with_an_error() {
    let (held, volume, told) = held_volume();
    volume.start_read(4096, volume.buffers().take(4096), completion(&told, 3));
    held.held.lock().clear();
    assert_eq!(*told.0.lock(), [(3, false)]);
    assert_eq!(volume.requests_in_flight(), 0);
    volume.start_read(volume.bytes(), volume.buffers().take(4096), completion(&told, 4));
    assert_eq!(*told.0.lock(), [(3, false), (4, false)]);
}

#[test]
fn zeros_are_written_where_discards_are_not_supported() {
    let (held, volume, _) = held_volume();
    volume.write(4096, &[5; 4 * PAGE_LEN]).unwrap();
    assert_eq!(volume.discard(4096, 4096).unwrap_err().kind, ErrorKind::Unsupported);
    volume.write_zeros(4196, 3 * 4096).unwrap();
    let mut pages = [1; 4 * PAGE_LEN];
    volume.read(4096, &mut pages).unwrap();
    assert!(pages[..100].iter().all(|&byte| byte == 5));
    assert!(pages[100..100 + 3 * 4096].iter().all(|&byte| byte == 0));
    assert!(pages[100 + 3 * 4096..].iter().all(|&byte| byte == 5));
    assert_eq!(held.discards.load(Ordering::Relaxed), 2);
}
