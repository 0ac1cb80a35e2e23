//! The data section as a device: synchronous I/O, and what every engine does around its own.

use super::checksum::ChecksumTable;
use super::pace::Pace;
use crate::buffer::{BufferPool, LARGE_BYTES};
use crate::control::InDevice;
use crate::crash::{self, Point};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::sys::file::{self, Discarded};
use crate::trace::{Kind, Recorder};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

/// What O_DIRECT asks of memory on any device with blocks of at most 4 KiB.
const DIRECT_IO_ALIGNMENT: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Counters {
    checksum_errors: AtomicU64,
    copied_writes: AtomicU64,
    discarded_bytes: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) file: File,
    pub(super) data_offset_bytes: u64,
    pub(super) checksums: Option<ChecksumTable>,
    pub(super) buffers: BufferPool,
    pub(super) counters: Counters,
    pub(super) pace: Pace,
    pub(super) recorder: Option<Arc<Recorder>>,
}

impl Device {
    /// Where a slot lies in the image, in bytes.
    pub(super) fn offset_of(&self, slot: u64) -> u64 {
        self.data_offset_bytes + slot * PAGE_BYTES
    }

    pub(super) fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        if is_aligned(pages) {
            self.read_aligned(first, pages)?;
        } else {
            for (slot, part) in
                (first..).step_by(LARGE_BYTES / PAGE_LEN).zip(pages.chunks_mut(LARGE_BYTES))
            {
                let mut buffer = self.buffers.take(part.len());
                self.read_aligned(slot, &mut buffer)?;
                part.copy_from_slice(&buffer);
            }
        }
        self.verify(first, pages)
    }

    fn read_aligned(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        let started = Instant::now();
        let _in_device = InDevice::enter();
        let outcome = file::read_all_at(&self.file, pages, self.offset_of(first));
        self.ended(Kind::Read, first, pages.len() as u64, started);
        outcome.map_err(|errno| Error::from_os(Operation::Read, first, errno))?;
        self.pace.record(pages.len(), started.elapsed());
        Ok(())
    }

    pub(super) fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        self.begin(first, (pages.len() / PAGE_LEN) as u64);
        match self.write_pages(first, pages) {
            Ok(()) => {
                self.record(first, pages);
                Ok(())
            }
            Err(error) => {
                self.call_off(first, (pages.len() / PAGE_LEN) as u64);
                Err(error)
            }
        }
    }

    fn write_pages(&self, first: u64, pages: &[u8]) -> Result<()> {
        if is_aligned(pages) {
            self.write_aligned(first, pages)?;
        } else {
            self.counters.copied_writes.fetch_add(1, Ordering::Relaxed);
            for (slot, part) in
                (first..).step_by(LARGE_BYTES / PAGE_LEN).zip(pages.chunks(LARGE_BYTES))
            {
                let mut buffer = self.buffers.take(part.len());
                buffer.copy_from_slice(part);
                self.write_aligned(slot, &buffer)?;
            }
        }
        Ok(())
    }

    fn write_aligned(&self, first: u64, pages: &[u8]) -> Result<()> {
        let started = Instant::now();
        let _in_device = InDevice::enter();
        let outcome = file::write_all_at(&self.file, pages, self.offset_of(first));
        self.ended(Kind::Write, first, pages.len() as u64, started);
        outcome.map_err(|errno| Error::from_os(Operation::Write, first, errno))?;
        self.pace.record(pages.len(), started.elapsed());
        Ok(())
    }

    /// The slots are about to change; [`Device::record`] or [`Device::call_off`] ends that.
    pub(super) fn begin(&self, first: u64, count: u64) {
        if let Some(checksums) = &self.checksums {
            checksums.begin(first, count);
        }
        crash::pass(Point::LinearMarked);
    }

    /// The slots did not change, or not all of them.
    pub(super) fn call_off(&self, first: u64, count: u64) {
        if let Some(checksums) = &self.checksums {
            checksums.call_off(first, count);
        }
    }

    /// Remembers what is now on the device.
    pub(super) fn record(&self, first: u64, pages: &[u8]) {
        crash::pass(Point::LinearWritten);
        if let Some(checksums) = &self.checksums {
            checksums.record(first, pages);
        }
        if let Some(recorder) = &self.recorder {
            recorder.accepted(pages.len() as u64);
        }
    }

    /// Tells the trace, if there is one, of an operation from slot `first` on that has ended.
    pub(super) fn ended(&self, kind: Kind, first: u64, length_bytes: u64, started: Instant) {
        if let Some(recorder) = &self.recorder {
            recorder.record(kind, self.offset_of(first), length_bytes, started);
        }
    }

    /// Tests what came from the device.
    pub(super) fn verify(&self, first: u64, pages: &[u8]) -> Result<()> {
        let mismatch =
            self.checksums.as_ref().and_then(|checksums| checksums.first_mismatch(first, pages));
        match mismatch {
            None => Ok(()),
            Some(slot) => {
                self.counters.checksum_errors.fetch_add(1, Ordering::Relaxed);
                Err(Error::new(ErrorKind::Checksum, Operation::Read, slot))
            }
        }
    }

    pub(super) fn discard(&self, first: u64, count: u64) -> Result<()> {
        let length = count * PAGE_BYTES;
        self.begin(first, count);
        let _in_device = InDevice::enter();
        let started = Instant::now();
        let outcome = file::punch_hole(&self.file, self.offset_of(first), length);
        self.ended(Kind::Discard, first, length, started);
        if outcome != Ok(Discarded::Yes) {
            self.call_off(first, count);
        }
        match outcome {
            Ok(Discarded::Yes) => {
                crash::pass(Point::LinearDiscarded);
                if let Some(checksums) = &self.checksums {
                    checksums.record_discard(first, count);
                }
                self.counters.discarded_bytes.fetch_add(length, Ordering::Relaxed);
                Ok(())
            }
            Ok(Discarded::Unsupported) => {
                Err(Error::new(ErrorKind::Unsupported, Operation::Discard, first))
            }
            Err(errno) => Err(Error::from_os(Operation::Discard, first, errno)),
        }
    }

    pub(super) fn flush(&self) -> Result<()> {
        let _in_device = InDevice::enter();
        let started = Instant::now();
        let outcome = file::sync_data(&self.file);
        if let Some(recorder) = &self.recorder {
            recorder.record(Kind::Flush, 0, 0, started);
        }
        outcome.map_err(|errno| Error::from_os(Operation::Flush, 0, errno))
    }

    pub(super) fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        let counters = &self.counters;
        report("checksum_errors", counters.checksum_errors.load(Ordering::Relaxed));
        report("checksum_table_bytes", self.checksums.as_ref().map_or(0, ChecksumTable::bytes));
        report("copied_writes", counters.copied_writes.load(Ordering::Relaxed));
        report("discarded_bytes", counters.discarded_bytes.load(Ordering::Relaxed));
        report("small_io_average_ns", self.pace.average_ns(0));
        report("large_io_average_ns", self.pace.average_ns(LARGE_BYTES));
    }
}

fn is_aligned(pages: &[u8]) -> bool {
    (pages.as_ptr() as usize).is_multiple_of(DIRECT_IO_ALIGNMENT)
}
