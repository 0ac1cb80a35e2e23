//! `delay=`: makes every read and write wait before it starts, like a slow device.
//!
//! It has no asynchronous side: a thread that sleeps stands for a request in the device.

use crate::admin::Administration;
use crate::backend::{AtStart, Backend, EvacuationReport, TierReport};
use crate::control::InDevice;
use crate::error::Result;
use std::sync::Arc;
use std::time::Duration;

/// The filter.
pub struct Delay {
    inner: Arc<dyn Backend>,
    delay: Duration,
}

impl Delay {
    /// Makes each read and write of `inner` take at least `delay`.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, delay: Duration) -> Delay {
        Delay { inner, delay }
    }

    fn wait(&self) {
        let _in_device = InDevice::enter();
        std::thread::sleep(self.delay);
    }
}

impl Backend for Delay {
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        self.wait();
        self.inner.read(first, pages)
    }

    fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        self.wait();
        self.inner.write(first, pages)
    }

    fn discard(&self, first: u64, count: u64) -> Result<()> {
        self.inner.discard(first, count)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn close(&self) -> Result<()> {
        self.inner.close()
    }

    fn at_start(&self) -> AtStart {
        self.inner.at_start()
    }

    fn activate(&self) -> std::io::Result<()> {
        self.inner.activate()
    }

    fn warm(&self) {
        self.inner.warm();
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        self.inner.statistics(report);
    }

    fn tiers(&self, report: &mut dyn FnMut(&TierReport<'_>)) {
        self.inner.tiers(report);
    }

    fn evacuation(&self) -> Option<EvacuationReport> {
        self.inner.evacuation()
    }

    fn administration(&self) -> Option<&dyn Administration> {
        self.inner.administration()
    }
}
