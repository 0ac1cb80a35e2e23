//! The conformance suite: what every back end and every filter must pass, in front of a
//! reference model that is nothing but bytes.
//!
//! A [`Target`] is anything that behaves like a volume: a `Volume` driven directly, its
//! asynchronous side, or a file on a FUSE mount. [`sequential`] compares each byte with the
//! model; [`concurrent`] has threads at the same slots and checks that each page that is read is
//! one that may be there. The habit is mountpoint-s3's (a reference model beside the real
//! thing).

pub mod concurrent;
pub mod sequential;
pub mod targets;

use swapfsd::error::ErrorKind;

/// How an operation on a target may fail, as far as the suite cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A fault that was injected: the operation had no effect, or all of it.
    Injected,
    /// The target can't do this at all.
    Unsupported,
    /// Anything else, which is a failure of the test.
    Other(Option<ErrorKind>, i32),
}

/// Something that behaves like a volume.
pub trait Target: Sync {
    /// Size in bytes.
    fn bytes(&self) -> u64;

    /// Fills `out` from byte `offset` on.
    ///
    /// # Errors
    /// Why it was not read.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Failure>;

    /// Stores `data` from byte `offset` on.
    ///
    /// # Errors
    /// Why it was not stored.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failure>;

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// Why it does not.
    fn discard(&self, offset: u64, length: u64) -> Result<(), Failure>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// Why it is not.
    fn flush(&self) -> Result<(), Failure>;
}

/// Runs all of it with a seed of its own for each part.
///
/// # Panics
/// If the target does anything that a volume must not do.
pub fn run_all(target: &dyn Target, seed: u64, operations: u32) {
    sequential::run(target, seed, operations);
    concurrent::run(target, seed ^ 0x5eed, operations / 4);
}
