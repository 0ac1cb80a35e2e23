//! What stores a volume's slots, behind one small trait.
//!
//! [`crate::volume::Volume`] is the only caller in the daemon, and makes these things true for
//! every back end and every filter, so that none has to check them again:
//!
//! * requests are whole slots, inside the volume, and never empty;
//! * while a write or discard of a slot is under way, no other request touches that slot;
//!   reads of the same slot may run side by side.
//!
//! What a back end promises in return:
//!
//! * `Ok` means all of it, never a part; an error of a write means that each of its slots holds
//!   the old page or the new one, or can't be read (`Checksum`, `Io`), but never other data;
//! * a slot that was discarded reads as zeros, and so does one that was never written where the
//!   back end starts [`AtStart::Empty`]; where it starts [`AtStart::Kept`], an unwritten slot
//!   reads as whatever the image holds there, and the kernel never asks for it;
//! * the same request done twice has the same effect as once;
//! * no call allocates memory or waits for memory;
//! * where its memory is [`Held`](crate::held::Held) by a supervisor, the process may be killed at
//!   any instruction, and a new instance that is made on the same memory and
//!   [activated](Backend::activate) keeps all of the above. So what a slot holds is published by
//!   single atomic stores into that memory, and everything else follows from it. A request that
//!   was not answered comes again.
//!
//! How a back end is added: `swapfs_format::types` names it and its options, a folder or file
//! here implements [`Backend`], [`registry`] builds it.

pub mod device;
#[cfg(test)]
pub(crate) mod fake;
pub mod linear;
pub mod log;
mod objects;
pub mod ram;
pub mod registry;
pub mod report;
pub mod tier;
pub mod zmem;

use crate::admin::Administration;
use crate::buffer::PageBuffer;
use crate::error::Result;
pub use report::{EvacuationReport, TierReport};
use std::sync::Arc;

/// What the slots hold when the back end has been opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStart {
    /// What they held when it was closed: the swap header is in slot 0.
    Kept,
    /// Nothing: the volume writes the swap header to slot 0.
    Empty,
}

/// Storage of slots. See the module's text for what holds before and after each call.
pub trait Backend: Send + Sync {
    /// Fills `pages` (whole slots) from slot `first` on.
    ///
    /// # Errors
    /// `Io`, `Checksum`: the contents of `pages` are then undefined.
    fn read(&self, first: u64, pages: &mut [u8]) -> Result<()>;

    /// Stores `pages` (whole slots) from slot `first` on.
    ///
    /// # Errors
    /// `NoSpace`, `Io`: refused before any success was answered.
    fn write(&self, first: u64, pages: &[u8]) -> Result<()>;

    /// Forgets `count` slots from `first` on; they read as zeros afterwards.
    ///
    /// # Errors
    /// `Unsupported` if they would not read as zeros; `Io`.
    fn discard(&self, first: u64, count: u64) -> Result<()>;

    /// Makes everything written before durable, as far as this back end can.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    fn flush(&self) -> Result<()>;

    /// What the slots held when it was opened.
    fn at_start(&self) -> AtStart;

    /// This instance serves from now on: called once, before the first request. On memory that a
    /// predecessor left, whose process has ended, it waits until the predecessor's last I/O has
    /// ended too, and makes everything again that can be had from the slot table. It is as fast
    /// as can be, and takes no new memory: requests wait for it.
    ///
    /// # Errors
    /// If what was left is not what this program understands, or a system call fails.
    fn activate(&self) -> std::io::Result<()>;

    /// Called now and then while the instance waits to be activated: puts memory that others have
    /// populated into this process's page tables, or whatever makes [`Backend::activate`] faster.
    fn warm(&self) {}

    /// The last call, after the last request, when the volume is unmounted in order: leaves the
    /// image so that the next mount finds everything, and soon.
    ///
    /// # Errors
    /// As [`Backend::flush`]. Then the next mount takes longer, or finds what was flushed before.
    fn close(&self) -> Result<()> {
        self.flush()
    }

    /// The part that has requests in flight without a thread for each, if there is one.
    fn asynchronous(&self) -> Option<&dyn AsynchronousBackend> {
        None
    }

    /// Reports numbers of its own, by name with the unit last. May be called at any time.
    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64));

    /// Reports its tiers, hottest first, where it has some. May be called at any time, and
    /// allocates nothing.
    fn tiers(&self, _report: &mut dyn FnMut(&TierReport<'_>)) {}

    /// The tier that is being emptied, if there is one. As [`Backend::tiers`].
    fn evacuation(&self) -> Option<EvacuationReport> {
        None
    }

    /// What can be changed while it serves, if anything can.
    fn administration(&self) -> Option<&dyn Administration> {
        None
    }
}

/// Reads and writes that return before they are done.
///
/// Each call ends in exactly one [`Completion::complete`], on any thread, maybe before the call
/// returns.
pub trait AsynchronousBackend: Send + Sync {
    /// Is a request of `bytes` better started than done at once, given that others are in
    /// flight? Not where the device is so fast that handing over costs more than waiting.
    fn is_worth_starting(&self, bytes: usize) -> bool;

    /// Fills `buffer` (whole slots) from slot `first` on.
    fn start_read(&self, first: u64, buffer: PageBuffer, done: Completion);

    /// Stores `buffer` (whole slots) from slot `first` on.
    fn start_write(&self, first: u64, buffer: PageBuffer, done: Completion);
}

/// Who waits for an asynchronous request.
pub trait CompletionSink: Send + Sync {
    /// The request `token` is done. After a read the buffer holds the pages.
    fn complete(&self, token: u64, result: Result<PageBuffer>);
}

/// The right and the duty to complete one request, once.
pub struct Completion {
    pending: Option<(Arc<dyn CompletionSink>, u64)>,
    on_drop: crate::error::Error,
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Completion({:?})", self.pending.as_ref().map(|(_, token)| token))
    }
}

impl Completion {
    /// A completion that tells `sink` about `token`. `on_drop` is what it says if it is dropped
    /// without an answer, so that no request is ever left hanging.
    #[must_use]
    pub fn new(sink: Arc<dyn CompletionSink>, token: u64, on_drop: crate::error::Error) -> Self {
        Completion { pending: Some((sink, token)), on_drop }
    }

    /// Tells the outcome.
    pub fn complete(mut self, result: Result<PageBuffer>) {
        if let Some((sink, token)) = self.pending.take() {
            sink.complete(token, result);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some((sink, token)) = self.pending.take() {
            sink.complete(token, Err(self.on_drop));
        }
    }
}
