//! What the suite is run against.

use super::{Failure, Target};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use swapfsd::backend::{Completion, CompletionSink};
use swapfsd::buffer::PageBuffer;
use swapfsd::error::{Error, ErrorKind, Operation, Result as VolumeResult};
use swapfsd::volume::Volume;

/// A volume, driven directly.
pub struct Direct {
    /// The volume.
    pub volume: Arc<Volume>,
    /// Faults are injected: `Io` and `NoSpace` are expected.
    pub faults: bool,
}

impl Direct {
    fn failure(&self, error: Error) -> Failure {
        match error.kind {
            ErrorKind::Io | ErrorKind::NoSpace if self.faults => Failure::Injected,
            ErrorKind::Unsupported => Failure::Unsupported,
            kind => Failure::Other(Some(kind), error.os_error.unwrap_or(0)),
        }
    }
}

impl Target for Direct {
    fn bytes(&self) -> u64 {
        self.volume.bytes()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Failure> {
        self.volume.read(offset, out).map_err(|error| self.failure(error))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.volume.write(offset, data).map_err(|error| self.failure(error))
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), Failure> {
        self.volume.discard(offset, length).map_err(|error| self.failure(error))
    }

    fn flush(&self) -> Result<(), Failure> {
        self.volume.flush().map_err(|error| self.failure(error))
    }
}

/// A volume whose whole-page requests are all started asynchronously, and waited for.
pub struct Started(pub Direct);

struct Waiter(SyncSender<VolumeResult<PageBuffer>>);

impl CompletionSink for Waiter {
    fn complete(&self, _token: u64, result: VolumeResult<PageBuffer>) {
        drop(self.0.send(result));
    }
}

impl Started {
    fn wait(
        &self,
        operation: Operation,
        start: impl FnOnce(Completion),
    ) -> Result<PageBuffer, Failure> {
        let (told, outcome) = sync_channel(1);
        let lost = Error::new(ErrorKind::Io, operation, u64::MAX);
        start(Completion::new(Arc::new(Waiter(told)), 0, lost));
        match outcome.recv() {
            Ok(result) => result.map_err(|error| self.0.failure(error)),
            Err(_) => panic!("a request was never completed"),
        }
    }

    fn can_start(offset: u64, length: usize) -> bool {
        offset.is_multiple_of(4096)
            && length.is_multiple_of(4096)
            && length <= swapfsd::buffer::LARGE_BYTES
    }
}

impl Target for Started {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Failure> {
        if !Started::can_start(offset, out.len()) {
            return self.0.read(offset, out);
        }
        let volume = &self.0.volume;
        let buffer = volume.buffers().take(out.len());
        let buffer = self.wait(Operation::Read, |done| volume.start_read(offset, buffer, done))?;
        out.copy_from_slice(&buffer);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        if !Started::can_start(offset, data.len()) {
            return self.0.write(offset, data);
        }
        let volume = &self.0.volume;
        let mut buffer = volume.buffers().take(data.len());
        buffer.copy_from_slice(data);
        self.wait(Operation::Write, |done| volume.start_write(offset, buffer, done)).map(drop)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), Failure> {
        self.0.discard(offset, length)
    }

    fn flush(&self) -> Result<(), Failure> {
        self.0.flush()
    }
}

/// A file or device: the swap file of a mount, or a loop device on it.
pub struct OpenFile {
    /// Opened for reading and writing.
    pub file: File,
    /// Its size, which is fixed.
    pub bytes: u64,
    /// Faults are injected: EIO and ENOSPC are expected.
    pub faults: bool,
}

impl OpenFile {
    fn failure(&self, error: &std::io::Error) -> Failure {
        match error.raw_os_error() {
            Some(libc::EIO | libc::ENOSPC) if self.faults => Failure::Injected,
            Some(libc::EOPNOTSUPP) => Failure::Unsupported,
            errno => Failure::Other(None, errno.unwrap_or(0)),
        }
    }
}

impl Target for OpenFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Failure> {
        self.file.read_exact_at(out, offset).map_err(|error| self.failure(&error))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.file.write_all_at(data, offset).map_err(|error| self.failure(&error))
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), Failure> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let descriptor = self.file.as_raw_fd();
        // SAFETY: no memory is passed.
        match unsafe { libc::fallocate(descriptor, mode, offset as i64, length as i64) } {
            0 => Ok(()),
            _ => Err(self.failure(&std::io::Error::last_os_error())),
        }
    }

    fn flush(&self) -> Result<(), Failure> {
        self.file.sync_data().map_err(|error| self.failure(&error))
    }
}
