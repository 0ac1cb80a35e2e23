//! What `linear` does to its device is in the trace, and recording it allocates nothing on the I/O
//! path. Alone in its program: the counter is one for the whole process.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use swapfs_format::geometry::Geometry;
use swapfs_format::superblock::Superblock;
use swapfs_format::trace::{HEADER_LEN, Header, RECORD_LEN, Record, RecordKind};
use swapfs_format::types::{LinearEngine, LinearOptions};
use swapfsd::backend::linear::Linear;
use swapfsd::backend::{AsynchronousBackend, Backend, Completion, CompletionSink};
use swapfsd::buffer::{BufferPool, PageBuffer};
use swapfsd::error::{Error, ErrorKind, Operation, Result};
use swapfsd::held::Held;
use swapfsd::sys::alloc::{IoPath, io_path_allocations};
use swapfsd::trace::{Recorder, Traced};
use uuid::Uuid;

const PAGE: usize = 4096;
const SLOTS: u64 = 64;

/// Tells what comes back from the ring.
struct Answers(std::sync::mpsc::SyncSender<Result<PageBuffer>>);

impl CompletionSink for Answers {
    fn complete(&self, _token: u64, result: Result<PageBuffer>) {
        let _ = self.0.send(result);
    }
}

fn linear(folder: &Path, engine: LinearEngine) -> (Linear, BufferPool, Superblock) {
    let geometry = Geometry::in_place(SLOTS * PAGE as u64, PAGE as u64).unwrap();
    let superblock = Superblock::new("linear", &geometry, Uuid::from_u128(1));
    let path = folder.join("image");
    File::create(&path).unwrap().set_len(superblock.image_bytes).unwrap();
    let direct =
        File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let traced = Traced {
        uuid: superblock.uuid,
        data_offset_bytes: superblock.data_offset_bytes,
        segment_bytes: 2 << 20,
    };
    let recorder = Recorder::open(&folder.join("trace"), traced, &direct, false).unwrap();
    let buffers = BufferPool::new(16, 4).unwrap();
    let options = LinearOptions { engine, checksum: true, discard: true };
    let held = Held::private();
    let recorder = Some(Arc::new(recorder));
    let linear = Linear::new(direct, &superblock, &options, buffers.clone(), &held, recorder);
    (linear.unwrap(), buffers, superblock)
}

/// The records as kind, slot and length.
fn recorded(folder: &Path, superblock: &Superblock) -> Vec<(RecordKind, u64, u64)> {
    let bytes = std::fs::read(folder.join("trace")).unwrap();
    assert_eq!(Header::decode(&bytes).unwrap().uuid, superblock.uuid);
    let records = bytes[HEADER_LEN..].chunks_exact(RECORD_LEN);
    let mut all: Vec<Record> =
        records.map(|bytes| Record::decode(bytes.first_chunk().unwrap()).unwrap()).collect();
    all.sort_by_key(|record| record.start_ns);
    let slot = |record: &Record| {
        record.offset_bytes.saturating_sub(superblock.data_offset_bytes) / PAGE as u64
    };
    all.iter().map(|record| (record.kind, slot(record), record.length_bytes)).collect()
}

#[test]
fn what_linear_does_is_in_the_trace_and_nothing_was_allocated_for_it() {
    use RecordKind::{Accepted, Discard, Flush, Read, Write};
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let (linear, buffers, superblock) = linear(folder.path(), LinearEngine::Sync);
    linear.activate().unwrap();
    let mut pages = buffers.take(3 * PAGE);
    let before = io_path_allocations();
    let io_path = IoPath::enter();
    for _ in 0..1000 {
        linear.write(7, &pages).unwrap();
        linear.read(8, &mut pages[..PAGE]).unwrap();
        linear.discard(9, 2).unwrap();
        linear.flush().unwrap();
    }
    drop(io_path);
    assert_eq!(io_path_allocations() - before, 0);
    drop(linear);
    let records = recorded(folder.path(), &superblock);
    let operations = records.iter().filter(|(kind, ..)| *kind != Accepted);
    let page = PAGE as u64;
    let each = [(Write, 7, 3 * page), (Read, 8, page), (Discard, 9, 2 * page), (Flush, 0, 0)];
    assert!(operations.eq(each.iter().cycle().take(4000)));
    let accepted = records.iter().filter(|(kind, ..)| *kind == Accepted);
    assert_eq!(accepted.map(|(_, _, bytes)| bytes).sum::<u64>(), 3000 * page);

    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let (linear, buffers, superblock) = self::linear(folder.path(), LinearEngine::Uring);
    linear.activate().unwrap();
    let (told, answers) = std::sync::mpsc::sync_channel(1);
    let sink: Arc<dyn CompletionSink> = Arc::new(Answers(told));
    let dropped = Error::new(ErrorKind::Io, Operation::Write, 0);
    let completion = || Completion::new(Arc::clone(&sink), 1, dropped);
    let before = io_path_allocations();
    for slot in 10..30 {
        linear.start_write(slot, buffers.take(PAGE), completion());
        let buffer = answers.recv().unwrap().unwrap();
        linear.start_read(slot, buffer, completion());
        drop(answers.recv().unwrap().unwrap());
    }
    assert_eq!(io_path_allocations() - before, 0);
    drop(linear);
    let records = recorded(folder.path(), &superblock);
    let expected: Vec<_> =
        (10..30).flat_map(|slot| [(Write, slot, page), (Read, slot, page)]).collect();
    let operations: Vec<_> = records.iter().filter(|(kind, ..)| *kind != Accepted).collect();
    assert!(operations.into_iter().eq(&expected), "{records:?}");
}
