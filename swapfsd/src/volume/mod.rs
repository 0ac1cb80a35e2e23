//! The checking wrapper: everything that must hold for every back end is made to hold here.
//!
//! Range, alignment and length are checked; partial pages become whole ones; requests that
//! overlap and of which one writes never meet in the back end ([`in_flight`]); every request is
//! counted and timed; slot 0 has a swap header. See [`crate::backend`] for what a back end may
//! therefore rely on.

mod in_flight;
mod partial;

use crate::admin::Administration;
use crate::backend::{AtStart, Backend, Completion, CompletionSink, EvacuationReport, TierReport};
use crate::buffer::{BufferPool, PageBuffer};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::stats::Stats;
use in_flight::{InFlight, Pending, Ticket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use swapfs_format::swap_header::SwapHeader;
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

/// A mounted volume.
pub struct Volume {
    backend: Arc<dyn Backend>,
    buffers: BufferPool,
    slot_count: u64,
    in_flight: InFlight,
    stats: Stats,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({} slots)", self.slot_count)
    }
}

/// What a byte range is in slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first: u64,
    count: u64,
    /// The range is whole slots.
    whole: bool,
}

impl Volume {
    /// A volume of `header.slot_count` slots on `backend`, ready to serve. Where the back end
    /// starts empty, `header` is written to slot 0.
    ///
    /// # Errors
    /// If the back end can't be activated, or the header not be written.
    pub fn new(
        backend: Arc<dyn Backend>,
        buffers: BufferPool,
        header: &SwapHeader,
    ) -> Result<Arc<Volume>> {
        let volume = Volume::standby(backend, buffers, header.slot_count);
        volume.activate(Some(header))?;
        Ok(volume)
    }

    /// A volume that does not serve yet, and touches nothing: see [`Volume::activate`].
    #[must_use]
    pub fn standby(backend: Arc<dyn Backend>, buffers: BufferPool, slot_count: u64) -> Arc<Volume> {
        Arc::new(Volume {
            backend,
            buffers,
            slot_count,
            in_flight: InFlight::new(),
            stats: Stats::default(),
        })
    }

    /// Serves from now on; once, before the first request. `header` is for slot 0 of a volume
    /// that starts empty; `None` where a predecessor's volume is taken over, which has one.
    ///
    /// # Errors
    /// If the back end can't be activated, or the header not be written.
    pub fn activate(&self, header: Option<&SwapHeader>) -> Result<()> {
        self.backend.activate().map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            Error::from_os(Operation::Flush, 0, errno)
        })?;
        match (self.backend.at_start(), header) {
            (AtStart::Empty, Some(header)) => self.backend.write(0, &header.encode()),
            _ => Ok(()),
        }
    }

    /// While it waits to be activated: see [`Backend::warm`].
    pub fn warm(&self) {
        self.backend.warm();
    }

    /// A number that stands for the oldest request under way, if there is any.
    #[must_use]
    pub fn oldest_request(&self) -> Option<u64> {
        self.in_flight.oldest()
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slot_count * PAGE_BYTES
    }

    /// Slots, page 0 counted.
    #[must_use]
    pub fn slot_count(&self) -> u64 {
        self.slot_count
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Requests that have started and are not done.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Requests that are done, since the volume was mounted.
    #[must_use]
    pub fn requests_done(&self) -> u64 {
        self.in_flight.ended_total()
    }

    /// Where buffers for requests come from.
    #[must_use]
    pub fn buffers(&self) -> &BufferPool {
        &self.buffers
    }

    /// Numbers of the back end's own, see [`Backend::statistics`].
    pub fn backend_statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        self.backend.statistics(report);
    }

    /// The back end's tiers, see [`Backend::tiers`].
    pub fn tiers(&self, report: &mut dyn FnMut(&TierReport<'_>)) {
        self.backend.tiers(report);
    }

    /// The tier that is being emptied, see [`Backend::evacuation`].
    #[must_use]
    pub fn evacuation(&self) -> Option<EvacuationReport> {
        self.backend.evacuation()
    }

    /// What can be changed while the volume is served, see [`Backend::administration`].
    #[must_use]
    pub fn administration(&self) -> Option<&dyn Administration> {
        self.backend.administration()
    }

    /// Fills `out` from byte `offset` on.
    ///
    /// # Errors
    /// `OutOfRange`, or what the back end answers; the contents of `out` are then undefined.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let span = self.span(Operation::Read, offset, out.len() as u64)?;
        if span.count == 0 {
            return Ok(());
        }
        self.run(Operation::Read, span, out.len() as u64, || {
            if span.whole {
                self.backend.read(span.first, out)
            } else {
                partial::read(self.backend.as_ref(), &self.buffers, offset, out)
            }
        })
    }

    /// Stores `data` from byte `offset` on: all of it, or an error.
    ///
    /// # Errors
    /// `OutOfRange`, or what the back end answers.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let span = self.span(Operation::Write, offset, data.len() as u64)?;
        if span.count == 0 {
            return Ok(());
        }
        self.run(Operation::Write, span, data.len() as u64, || {
            if span.whole {
                self.backend.write(span.first, data)
            } else {
                self.stats.record_partial_write();
                partial::write(self.backend.as_ref(), &self.buffers, offset, data)
            }
        })
    }

    /// Forgets a range: it reads as zeros afterwards.
    ///
    /// # Errors
    /// `OutOfRange`, or what the back end answers.
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        let span = self.span(Operation::Discard, offset, length)?;
        if span.count == 0 {
            return Ok(());
        }
        self.run(Operation::Discard, span, length, || {
            if span.whole {
                self.backend.discard(span.first, span.count)
            } else {
                partial::discard(self.backend.as_ref(), &self.buffers, offset, length)
            }
        })
    }

    /// Forgets every page but the swap header, if `may` says that this is right: it is asked while
    /// no other request is under way, and none can begin. `None`: it said no.
    ///
    /// # Errors
    /// What the back end answers.
    pub fn forget_all(&self, may: impl FnOnce() -> bool) -> Option<Result<()>> {
        let span = Span { first: 1, count: self.slot_count - 1, whole: true };
        let mut asked = None;
        let outcome = self.run(Operation::Discard, span, self.bytes() - PAGE_BYTES, || {
            asked = Some(may());
            if asked == Some(true) { self.backend.discard(span.first, span.count) } else { Ok(()) }
        });
        (asked != Some(false)).then_some(outcome)
    }

    /// Writes zeros to a range: by a discard where the back end has one.
    ///
    /// # Errors
    /// `OutOfRange`, or what the back end answers.
    pub fn write_zeros(&self, offset: u64, length: u64) -> Result<()> {
        match self.discard(offset, length) {
            Err(error) if error.kind == ErrorKind::Unsupported => {}
            outcome => return outcome,
        }
        let span = self.span(Operation::Write, offset, length)?;
        self.run(Operation::Write, span, length, || {
            partial::write_zeros(self.backend.as_ref(), &self.buffers, offset, length)
        })
    }

    /// Makes everything written before durable, as far as the back end can.
    ///
    /// # Errors
    /// What the back end answers.
    pub fn flush(&self) -> Result<()> {
        let started = Instant::now();
        let result = self.backend.flush();
        let error = result.err().map(|error| error.kind);
        self.stats.record(Operation::Flush, 0, started.elapsed(), error);
        result
    }

    /// The last call, when the volume is unmounted in order: see [`Backend::close`].
    ///
    /// # Errors
    /// What the back end answers.
    pub fn close(&self) -> Result<()> {
        self.backend.close()
    }

    /// Is it worth while to start this request and not wait for it? Only if the back end can,
    /// the request is whole slots, and others are in flight: alone, it is faster done at once.
    #[must_use]
    pub fn prefers_start(&self, offset: u64, length: usize) -> bool {
        self.in_flight.len() > 0
            && offset.is_multiple_of(PAGE_BYTES)
            && length.is_multiple_of(PAGE_LEN)
            && length > 0
            && self.backend.asynchronous().is_some_and(|starter| starter.is_worth_starting(length))
    }

    /// Starts a read of whole slots into `buffer`; `done` gets the outcome. Waits only for
    /// requests that overlap.
    pub fn start_read(self: &Arc<Self>, offset: u64, buffer: PageBuffer, done: Completion) {
        self.start(Operation::Read, offset, buffer, done);
    }

    /// Starts a write of whole slots from `buffer`; `done` gets the outcome. Waits only for
    /// requests that overlap.
    pub fn start_write(self: &Arc<Self>, offset: u64, buffer: PageBuffer, done: Completion) {
        self.start(Operation::Write, offset, buffer, done);
    }

    fn start(
        self: &Arc<Self>,
        operation: Operation,
        offset: u64,
        mut buffer: PageBuffer,
        done: Completion,
    ) {
        let span = match self.span(operation, offset, buffer.len() as u64) {
            Ok(span) if span.whole => span,
            Ok(span) => {
                let error = Error::new(ErrorKind::OutOfRange, operation, span.first);
                return done.complete(Err(error));
            }
            Err(error) => return done.complete(Err(error)),
        };
        let Some(backend) = self.backend.asynchronous() else {
            let result = match operation {
                Operation::Write => self.write(offset, &buffer),
                _ => self.read(offset, &mut buffer),
            };
            return done.complete(result.map(|()| buffer));
        };
        let pending =
            Pending { done, operation, started: Instant::now(), bytes: buffer.len() as u64 };
        let exclusive = operation != Operation::Read;
        let ticket = self.in_flight.begin(span.first, span.count, exclusive, Some(pending));
        let sink: Arc<dyn CompletionSink> = Arc::<Volume>::clone(self);
        let on_drop = Error::new(ErrorKind::Io, operation, span.first);
        let completion = Completion::new(sink, ticket.token(), on_drop);
        match operation {
            Operation::Write => backend.start_write(span.first, buffer, completion),
            _ => backend.start_read(span.first, buffer, completion),
        }
    }

    fn span(&self, operation: Operation, offset: u64, length: u64) -> Result<Span> {
        let first = offset / PAGE_BYTES;
        match offset.checked_add(length) {
            Some(end) if end <= self.bytes() => Ok(Span {
                first,
                count: if length == 0 { 0 } else { end.div_ceil(PAGE_BYTES) - first },
                whole: offset.is_multiple_of(PAGE_BYTES) && length.is_multiple_of(PAGE_BYTES),
            }),
            _ => {
                let kind = ErrorKind::OutOfRange;
                self.stats.record(operation, 0, Duration::ZERO, Some(kind));
                Err(Error::new(kind, operation, first))
            }
        }
    }

    /// Runs a request on this thread, with its slots to itself if it writes.
    fn run(
        &self,
        operation: Operation,
        span: Span,
        bytes: u64,
        request: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let started = Instant::now();
        let exclusive = operation != Operation::Read;
        let ticket = self.in_flight.begin(span.first, span.count, exclusive, None);
        let result = request();
        self.in_flight.end(ticket);
        self.stats.record(operation, bytes, started.elapsed(), result.err().map(|e| e.kind));
        result
    }
}

impl CompletionSink for Volume {
    fn complete(&self, token: u64, result: Result<PageBuffer>) {
        let Some(pending) = self.in_flight.end(Ticket::from_token(token)) else { return };
        let error = result.as_ref().err().map(|error| error.kind);
        self.stats.record(pending.operation, pending.bytes, pending.started.elapsed(), error);
        pending.done.complete(result);
    }
}

#[cfg(test)]
mod tests;
