//! `linear`: slots in place in the image's data section, on a file or a block device.
//!
//! Slot `n` lies at `data_offset + n * 4096`; there is nothing to look up and nothing to
//! rebuild. All I/O is direct. Two engines: `sync` is one pread or pwrite on the thread that
//! has the request; `uring` keeps many requests of few threads in flight through io_uring, and
//! still does a request by pread or pwrite where that is faster: one that is alone, and all of
//! them on a device that answers sooner than a hand-over takes ([`pace`]).
//!
//! With `checksum=on` a CRC-32 of each slot written since the mount is kept in memory. Slots
//! that hold data of an earlier mount are read unchecked until they are written.

mod checksum;
mod device;
mod pace;
mod uring;

use super::{AsynchronousBackend, AtStart, Backend, Completion};
use crate::buffer::{BufferPool, PageBuffer};
use crate::control::InDevice;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::held::Held;
use crate::sys::device as device_calls;
use crate::trace::Recorder;
use checksum::ChecksumTable;
use device::Device;
use pace::Pace;
use std::fs::File;
use std::io;
use std::sync::Arc;
use swapfs_format::superblock::Superblock;
use swapfs_format::types::{LinearEngine, LinearOptions};
use uring::UringEngine;

/// The back end.
#[derive(Debug)]
pub struct Linear {
    device: Arc<Device>,
    uring: Option<UringEngine>,
    discard: bool,
}

impl Linear {
    /// Opens the data section that `superblock` describes. `file` is the image, opened with
    /// O_DIRECT; `buffers` is where aligned copies come from, registered with io_uring. What is
    /// done to the file goes to `recorder`, if there is one.
    ///
    /// # Errors
    /// No memory for the checksums, or no io_uring (`ENOSYS`, or `EPERM` where it is forbidden).
    pub fn new(
        file: File,
        superblock: &Superblock,
        options: &LinearOptions,
        buffers: BufferPool,
        held: &Held,
        recorder: Option<Arc<Recorder>>,
    ) -> io::Result<Linear> {
        let checksums = options
            .checksum
            .then(|| ChecksumTable::new(superblock.slot_count, held))
            .transpose()?;
        let device = Arc::new(Device {
            file,
            data_offset_bytes: superblock.data_offset_bytes,
            checksums,
            buffers,
            counters: device::Counters::default(),
            pace: Pace::default(),
            recorder,
        });
        let uring = match options.engine {
            LinearEngine::Sync => None,
            LinearEngine::Uring => Some(UringEngine::new(Arc::clone(&device))?),
        };
        Ok(Linear { device, uring, discard: options.discard })
    }
}

impl Backend for Linear {
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        self.device.read(first, pages)
    }

    fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        self.device.write(first, pages)
    }

    fn discard(&self, first: u64, count: u64) -> Result<()> {
        if !self.discard {
            return Err(Error::new(ErrorKind::Unsupported, Operation::Discard, first));
        }
        self.device.discard(first, count)
    }

    fn flush(&self) -> Result<()> {
        self.device.flush()
    }

    fn at_start(&self) -> AtStart {
        AtStart::Kept
    }

    /// Waits for a predecessor's I/O. Its process has ended, but what it had given to io_uring
    /// may still be on its way to the device, and must not land on a newer write. Each instance
    /// locks its own open file; a request in flight keeps that file open, and so the lock.
    fn activate(&self) -> io::Result<()> {
        let _in_device = InDevice::enter();
        device_calls::lock_open_file(&self.device.file)
    }

    fn asynchronous(&self) -> Option<&dyn AsynchronousBackend> {
        self.uring.as_ref().map(|_| self as &dyn AsynchronousBackend)
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        self.device.statistics(report);
        if let Some(uring) = &self.uring {
            uring.statistics(report);
        }
    }
}

impl AsynchronousBackend for Linear {
    fn is_worth_starting(&self, bytes: usize) -> bool {
        self.device.pace.is_slow(bytes)
    }

    fn start_read(&self, first: u64, buffer: PageBuffer, done: Completion) {
        match &self.uring {
            Some(uring) => uring.start(Operation::Read, first, buffer, done),
            None => drop(done),
        }
    }

    fn start_write(&self, first: u64, buffer: PageBuffer, done: Completion) {
        match &self.uring {
            Some(uring) => uring.start(Operation::Write, first, buffer, done),
            None => drop(done),
        }
    }
}

#[cfg(test)]
mod tests;
