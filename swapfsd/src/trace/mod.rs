//! `trace=`: what is done to a volume's device, operation by operation, in a file.
//!
//! The I/O path puts a record into a bounded [`ring`], without a lock, an allocation or a system
//! call but that for the time; with the ring full it counts what is lost and goes on. A thread of
//! its own, an ordinary task, empties the ring into the [`file`] many times a second. So a disk
//! that is slow or full costs records, and never a request. `swapfs trace` reads the file;
//! `format/FORMAT.md` describes it.

mod file;
mod ring;

use crate::sync::{Condvar, Mutex};
use crate::sys::{process, spawn};
use file::TraceFile;
use log::error;
use ring::Ring;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};
use swapfs_format::trace::{Record, RecordKind};
use uuid::Uuid;

/// Records that the ring has room for: 2.5 MiB, and what a busy device does in a second.
const RING_RECORDS: usize = 64 << 10;
/// Records that are written at once.
const BATCH_RECORDS: usize = 4096;
/// How long the writer sleeps while there is something to do, and while there is not.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
const IDLE_PAUSE: Duration = Duration::from_millis(100);
/// How long the end of a trace waits for its file.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was done to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A range was given back.
    Discard,
    /// Everything was made durable; no range.
    Flush,
}

impl From<Kind> for RecordKind {
    fn from(kind: Kind) -> RecordKind {
        match kind {
            Kind::Read => RecordKind::Read,
            Kind::Write => RecordKind::Write,
            Kind::Discard => RecordKind::Discard,
            Kind::Flush => RecordKind::Flush,
        }
    }
}

/// What is traced, as the file says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traced {
    /// The image's UUID.
    pub uuid: Uuid,
    /// Where its data section starts.
    pub data_offset_bytes: u64,
    /// In pieces of this size, from there on, writes should be sequential.
    pub segment_bytes: u64,
}

/// Why nothing can be recorded.
#[derive(Debug)]
pub struct TraceError {
    path: PathBuf,
    why: String,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trace={}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for TraceError {}

#[derive(Debug, Default)]
struct State {
    /// The writer is to write what is there, and end.
    stop: bool,
    /// It has ended.
    done: bool,
}

#[derive(Debug)]
struct Shared {
    ring: Ring,
    /// Times are counted from here.
    base: Instant,
    lost: AtomicU64,
    accepted_bytes: AtomicU64,
    /// The file takes no more.
    off: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

/// Records the operations of one volume's device. Dropping it writes what is left to write.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
}

/// For [`finish`].
static STARTED: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

impl Recorder {
    /// Starts to record into the file at `path`, which is begun anew; `image` is what is traced.
    /// `adopted`: a predecessor has begun the file, and this process goes on with it when it has
    /// something to say. What is wrong with the file is then only logged.
    ///
    /// # Errors
    /// If the file can't be made, is not a regular one, is the image, holds something that is no
    /// trace, or is being written by somebody else.
    pub fn open(
        path: &Path,
        traced: Traced,
        image: &File,
        adopted: bool,
    ) -> Result<Recorder, TraceError> {
        Recorder::with_room(path, traced, image, adopted, RING_RECORDS)
    }

    fn with_room(
        path: &Path,
        traced: Traced,
        image: &File,
        adopted: bool,
        records: usize,
    ) -> Result<Recorder, TraceError> {
        let error = |why| TraceError { path: path.to_owned(), why };
        let (base, base_boot_ns) = (Instant::now(), spawn::boot_time_ns());
        let file = if adopted {
            TraceFile::adopt(path, traced, base_boot_ns)
        } else {
            TraceFile::begin(path, traced, image, base_boot_ns).map_err(error)?
        };
        let shared = Arc::new(Shared {
            ring: Ring::new(records),
            base,
            lost: AtomicU64::new(0),
            accepted_bytes: AtomicU64::new(0),
            off: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let started = thread::Builder::new().name("trace".to_owned()).spawn({
            let (shared, path) = (Arc::clone(&shared), path.to_owned());
            move || {
                process::stay_ordinary();
                if let Err(why) = shared.write_out(file) {
                    error!("trace={}: {why}: the trace ends here", path.display());
                }
            }
        });
        started.map_err(|source: io::Error| error(format!("no thread: {source}")))?;
        let mut all = STARTED.lock();
        all.retain(|weak| weak.strong_count() > 0);
        all.push(Arc::downgrade(&shared));
        drop(all);
        Ok(Recorder { shared })
    }

    /// An operation that began at `started` has ended. Neither waits nor allocates.
    pub fn record(&self, kind: Kind, offset_bytes: u64, length_bytes: u64, started: Instant) {
        let duration_ns = started.elapsed().as_nanos() as u64;
        let start_ns = self.shared.ns_of(started);
        let kind = kind.into();
        self.shared.put(&Record { kind, start_ns, duration_ns, offset_bytes, length_bytes });
    }

    /// The back end has taken so much from the kernel: what the device's writes are compared to.
    pub fn accepted(&self, bytes: u64) {
        self.shared.accepted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.finish();
    }
}

/// Writes what is left to write of every trace of this process, and ends them: for a process that
/// is about to end. Returns after ten seconds at most for each.
pub fn finish() {
    let all: Vec<Arc<Shared>> =
        STARTED.lock().drain(..).filter_map(|weak| weak.upgrade()).collect();
    for shared in all {
        shared.finish();
    }
}

/// Says that the writer has ended, however it has.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.off.store(true, Ordering::Relaxed);
        self.0.state.lock().done = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn ns_of(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.base).as_nanos() as u64
    }

    fn put(&self, record: &Record) {
        if !self.off.load(Ordering::Relaxed) && !self.ring.push(record) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn finish(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        state.stop = true;
        self.changed.notify_all();
        while !state.done && Instant::now() < deadline {
            state = self.changed.wait_timeout(state, Duration::from_millis(100));
        }
    }

    /// Waits for the time given, or until it is time to stop. Is it?
    fn pause(&self, at_most: Duration) -> bool {
        let state = self.state.lock();
        if state.stop { true } else { self.changed.wait_timeout(state, at_most).stop }
    }

    /// The writer.
    fn write_out(&self, file: TraceFile) -> Result<(), String> {
        let _ended = Ended(self);
        // Closed before the end is told: the next mount finds it free.
        let mut file = file;
        let mut batch = Vec::with_capacity(BATCH_RECORDS + 2);
        let mut pause = IDLE_PAUSE;
        loop {
            let stop = self.pause(pause);
            pause = IDLE_PAUSE;
            loop {
                batch.clear();
                batch.extend(std::iter::from_fn(|| self.ring.pop()).take(BATCH_RECORDS));
                let is_last = batch.len() < BATCH_RECORDS;
                if !batch.is_empty() {
                    pause = BUSY_PAUSE;
                }
                self.remark(RecordKind::Lost, &self.lost, &mut batch);
                // As often as the operations, or a kill would leave more of the one than of the other.
                self.remark(RecordKind::Accepted, &self.accepted_bytes, &mut batch);
                if !batch.is_empty() {
                    file.append(&batch)?;
                }
                if is_last {
                    break;
                }
            }
            if stop {
                return Ok(());
            }
        }
    }

    /// Adds a record of what was counted, if anything was.
    fn remark(&self, kind: RecordKind, counter: &AtomicU64, batch: &mut Vec<Record>) {
        let length_bytes = counter.swap(0, Ordering::Relaxed);
        if length_bytes > 0 {
            let start_ns = self.ns_of(Instant::now());
            batch.push(Record { kind, start_ns, duration_ns: 0, offset_bytes: 0, length_bytes });
        }
    }
}

#[cfg(test)]
mod tests;
