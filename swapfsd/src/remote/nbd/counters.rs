//! What a device counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers since the device was made.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) failed_connects: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) protocol_errors: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// Adds to one of them.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn report(&self, report: &mut dyn FnMut(&'static str, u64)) {
        let mut one = |name, counter: &AtomicU64| report(name, counter.load(Ordering::Relaxed));
        one("nbd_requests", &self.requests);
        one("nbd_received_bytes", &self.received_bytes);
        one("nbd_sent_bytes", &self.sent_bytes);
        one("nbd_connects", &self.connects);
        one("nbd_failed_connects", &self.failed_connects);
        one("nbd_timeouts", &self.timeouts);
        one("nbd_retries", &self.retries);
        one("nbd_protocol_errors", &self.protocol_errors);
        one("nbd_errors", &self.errors);
    }
}
