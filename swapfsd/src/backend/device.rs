//! A file or block device under a back end: direct I/O in whole pages, never short.
//!
//! A trait, so that tests can put a device in its place that fails, tears or forgets. What goes to
//! a [`DirectFile`] can be recorded ([`crate::trace`]).

use crate::control::InDevice;
use crate::sys::device as device_calls;
use crate::sys::file::{self, Discarded};
use crate::trace::{Kind, Recorder};
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Where bytes are kept. Offsets and lengths are multiples of 4096, and so are the addresses of
/// buffers. Errors are the system's numbers.
pub trait BlockDevice: Debug + Send + Sync {
    /// Fills all of `buffer`.
    ///
    /// # Errors
    /// The errno; the buffer's contents are then undefined.
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<(), i32>;

    /// Writes all of `buffer`.
    ///
    /// # Errors
    /// The errno; the range then holds old or new bytes.
    fn write_at(&self, buffer: &[u8], offset_bytes: u64) -> Result<(), i32>;

    /// The range is not needed any more: it may hold anything from now on.
    ///
    /// # Errors
    /// The errno.
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> Result<Discarded, i32>;

    /// Makes everything durable whose write has been answered.
    ///
    /// # Errors
    /// The errno.
    fn flush(&self) -> Result<(), i32>;

    /// The back end has taken so many bytes of the kernel's, as it stores them: for recordings.
    fn accepted(&self, _bytes: u64) {}

    /// Waits until no predecessor's write is on its way any more, and makes successors wait for
    /// this one's.
    ///
    /// # Errors
    /// What the system answers.
    fn lock(&self) -> io::Result<()>;

    /// Reports numbers of its own, by name with the unit last.
    fn statistics(&self, _report: &mut dyn FnMut(&'static str, u64)) {}
}

/// An open file with O_DIRECT.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    recorder: Option<Arc<Recorder>>,
}

impl DirectFile {
    /// `file` was opened with O_DIRECT. Its operations go to `recorder`, if there is one.
    #[must_use]
    pub fn new(file: File, recorder: Option<Arc<Recorder>>) -> DirectFile {
        DirectFile { file, recorder }
    }

    fn recorded<T>(&self, kind: Kind, offset: u64, length: u64, work: impl FnOnce() -> T) -> T {
        let _in_device = InDevice::enter();
        match &self.recorder {
            None => work(),
            Some(recorder) => {
                let started = Instant::now();
                let outcome = work();
                recorder.record(kind, offset, length, started);
                outcome
            }
        }
    }
}

impl BlockDevice for DirectFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<(), i32> {
        let length = buffer.len() as u64;
        self.recorded(Kind::Read, offset_bytes, length, || {
            file::read_all_at(&self.file, buffer, offset_bytes)
        })
    }

    fn write_at(&self, buffer: &[u8], offset_bytes: u64) -> Result<(), i32> {
        self.recorded(Kind::Write, offset_bytes, buffer.len() as u64, || {
            file::write_all_at(&self.file, buffer, offset_bytes)
        })
    }

    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> Result<Discarded, i32> {
        self.recorded(Kind::Discard, offset_bytes, length_bytes, || {
            file::punch_hole(&self.file, offset_bytes, length_bytes)
        })
    }

    fn flush(&self) -> Result<(), i32> {
        self.recorded(Kind::Flush, 0, 0, || file::sync_data(&self.file))
    }

    fn accepted(&self, bytes: u64) {
        if let Some(recorder) = &self.recorder {
            recorder.accepted(bytes);
        }
    }

    fn lock(&self) -> io::Result<()> {
        let _in_device = InDevice::enter();
        device_calls::lock_open_file(&self.file)
    }
}
