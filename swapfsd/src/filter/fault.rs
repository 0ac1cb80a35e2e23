//! `fault=`: makes operations fail on purpose, by operation, error and rate.
//!
//! Whether the n-th operation fails depends on the seed and on n only, so a run with one thread
//! replays. A failed operation is not handed on: a write that is refused changes nothing.

use crate::admin::Administration;
use crate::backend::{
    AsynchronousBackend, AtStart, Backend, Completion, EvacuationReport, TierReport,
};
use crate::buffer::PageBuffer;
use crate::error::{Error, ErrorKind, Operation, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use swapfs_format::fault::{FaultError, FaultOperation, FaultPlan, FaultRule};

/// The filter.
pub struct Fault {
    inner: Arc<dyn Backend>,
    plan: FaultPlan,
    operations: AtomicU64,
    injected: AtomicU64,
}

impl Fault {
    /// Puts the plan's faults in front of `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, plan: FaultPlan) -> Fault {
        Fault { inner, plan, operations: AtomicU64::new(0), injected: AtomicU64::new(0) }
    }

    /// How many operations were made to fail.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::Relaxed)
    }

    fn decide(&self, operation: Operation, slot: u64) -> Result<()> {
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        let mut rules = (0u64..).zip(&self.plan.rules);
        let failed = rules.find(|(index, rule)| {
            applies(rule, operation) && dice(self.plan.seed, number, *index) < rule.rate
        });
        let Some((_, rule)) = failed else { return Ok(()) };
        self.injected.fetch_add(1, Ordering::Relaxed);
        let kind = match rule.error {
            FaultError::Io => ErrorKind::Io,
            FaultError::NoSpace => ErrorKind::NoSpace,
        };
        Err(Error::new(kind, operation, slot))
    }
}

fn applies(rule: &FaultRule, operation: Operation) -> bool {
    match rule.operation {
        FaultOperation::All => true,
        FaultOperation::Read => operation == Operation::Read,
        FaultOperation::Write => operation == Operation::Write,
        FaultOperation::Discard => operation == Operation::Discard,
        FaultOperation::Flush => operation == Operation::Flush,
    }
}

/// A number from 0 up to 1 that depends on its arguments only (splitmix64's finaliser).
fn dice(seed: u64, number: u64, rule: u64) -> f64 {
    let mut z = seed
        .wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(rule.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

impl Backend for Fault {
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()> {
        self.decide(Operation::Read, first)?;
        self.inner.read(first, pages)
    }

    fn write(&self, first: u64, pages: &[u8]) -> Result<()> {
        self.decide(Operation::Write, first)?;
        self.inner.write(first, pages)
    }

    fn discard(&self, first: u64, count: u64) -> Result<()> {
        self.decide(Operation::Discard, first)?;
        self.inner.discard(first, count)
    }

    fn flush(&self) -> Result<()> {
        self.decide(Operation::Flush, 0)?;
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

    fn asynchronous(&self) -> Option<&dyn AsynchronousBackend> {
        self.inner.asynchronous().map(|_| self as &dyn AsynchronousBackend)
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        report("faults_injected", self.injected());
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

impl AsynchronousBackend for Fault {
    fn is_worth_starting(&self, bytes: usize) -> bool {
        self.inner.asynchronous().is_some_and(|inner| inner.is_worth_starting(bytes))
    }

    fn start_read(&self, first: u64, buffer: PageBuffer, done: Completion) {
        match (self.decide(Operation::Read, first), self.inner.asynchronous()) {
            (Ok(()), Some(inner)) => inner.start_read(first, buffer, done),
            (Err(error), _) => done.complete(Err(error)),
            (Ok(()), None) => drop(done),
        }
    }

    fn start_write(&self, first: u64, buffer: PageBuffer, done: Completion) {
        match (self.decide(Operation::Write, first), self.inner.asynchronous()) {
            (Ok(()), Some(inner)) => inner.start_write(first, buffer, done),
            (Err(error), _) => done.complete(Err(error)),
            (Ok(()), None) => drop(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ram::Ram;
    use crate::held::Held;
    use swapfs_format::PAGE_LEN;

    fn outcomes(rules: &str, seed: u64) -> Vec<bool> {
        let plan = FaultPlan { rules: swapfs_format::fault::parse(rules).unwrap(), seed };
        let fault = Fault::new(Arc::new(Ram::new(16, &Held::private()).unwrap()), plan);
        (0..1000).map(|_| fault.write(3, &[1; PAGE_LEN]).is_ok()).collect()
    }

    #[test]
    fn the_same_seed_fails_the_same_operations_at_about_the_rate() {
        let first = outcomes("write:EIO:1/10", 7);
        assert_eq!(first, outcomes("write:EIO:1/10", 7));
        assert_ne!(first, outcomes("write:EIO:1/10", 8));
        let failed = first.iter().filter(|&&ok| !ok).count();
        assert!((50..200).contains(&failed), "{failed} of 1000");
    }

    #[test]
    fn rules_meet_their_operation_and_refuse_before_anything_changes() {
        let rules = swapfs_format::fault::parse("write:ENOSPC:1").unwrap();
        let ram: Arc<dyn Backend> = Arc::new(Ram::new(16, &Held::private()).unwrap());
        let fault = Fault::new(Arc::clone(&ram), FaultPlan { rules, seed: 1 });
        assert_eq!(fault.write(2, &[9; PAGE_LEN]).unwrap_err().kind, ErrorKind::NoSpace);
        let mut page = [1; PAGE_LEN];
        fault.read(2, &mut page).unwrap();
        assert_eq!(page, [0; PAGE_LEN]);
        assert_eq!(fault.injected(), 1);
    }
}
