//! An export of any NBD server as a block device, over TCP or a unix socket.
//!
//! A client of our own, the smallest that is right: of the crates there are, `nbd` speaks the old
//! handshake and waits for each reply before the next request, and `nbd-async` and its like are for
//! the kernel's client or for servers. What is here: the fixed newstyle handshake, structured
//! replies where the server has them, several connections where it allows them, many requests in
//! flight. What is not: TLS (use a unix socket, or a tunnel), metadata contexts, extended headers.
//!
//! * `mod.rs`: the device; `handshake.rs`, `protocol.rs`, `cover.rs`: the protocol
//! * `link.rs`, `table.rs`, `socket.rs`: a connection, who reads it and who sends on it
//! * `gate.rs`, `connector.rs`: whether there are connections, and making them
//!
//! **Deadlines.** No call takes longer than the deadline. A request that gets no answer by then
//! breaks its connection: else its answer could still come. The others in flight there are tried
//! again on another one, as long as their own deadlines allow: reads and flushes. Writes and trims
//! are not, unless it is certain that the server never does them: one may still be on its way at
//! the server, and would undo what is written there after it. So where a write or a discard has
//! failed, **the range may change at any time later**; whoever uses this leaves it alone for a
//! while. Where the server has answered that it failed nothing is on its way: [`may_still_happen`]
//! tells the one from the other.
//!
//! **Which export.** A server may come back with another export under the same name. Where it is
//! said for which image the export was formatted, each new connection is asked for the superblock
//! before it is used.
//!
//! **Memory.** Calls allocate nothing. Connections are made by a thread of their own, which does.
//!
//! **What a server forgets.** A server that crashes and comes back may have lost what it had
//! acknowledged and not flushed, and a flush afterwards says nothing of it. The back ends' checksums
//! find such pages.

mod connector;
mod counters;
mod cover;
mod gate;
mod handshake;
mod link;
mod protocol;
mod socket;
mod table;
#[cfg(test)]
mod tests;

pub use handshake::BlockSizes;

use crate::backend::device::BlockDevice;
use crate::control::InDevice;
use crate::sync::Mutex;
use crate::sys::file::Discarded;
use counters::count;
use gate::Gate;
use handshake::{Export, ExportFlags, Refusal};
use link::{Link, Request, Tried};
use protocol::Kind;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use swapfs_format::remote::{NbdPlace, NbdUrl, RemoteUrl};
use uuid::Uuid;

/// Connections if nothing is said, and the server allows several.
const CONNECTIONS: usize = 4;
/// The most that can be asked for.
const CONNECTIONS_AT_MOST: usize = 64;

/// How long a server is left alone that says that it is shutting down.
const LEAVE_TAKING: Duration = Duration::from_millis(20);

/// What the trouble with a connection is called, whatever it was.
const TROUBLE: [i32; 9] = [
    libc::ETIMEDOUT,
    libc::ECONNRESET,
    libc::ECONNREFUSED,
    libc::EPIPE,
    libc::ENOTCONN,
    libc::EPROTO,
    libc::ESHUTDOWN,
    libc::EHOSTUNREACH,
    libc::ENETUNREACH,
];

/// After a write or discard of an [`NbdDevice`] that has failed with `errno`: the server may be
/// doing it yet, or may get it later. Else the server has answered that it failed, or it has never
/// been sent.
#[must_use]
pub fn may_still_happen(errno: i32) -> bool {
    TROUBLE.contains(&errno)
}

/// What the trouble `errno` with a connection is called, so that [`may_still_happen`] knows it.
fn as_trouble(errno: i32) -> i32 {
    if may_still_happen(errno) { errno } else { libc::ECONNRESET }
}

/// What the error `errno` that the server has answered is called, so that nobody takes it for
/// trouble with the connection.
fn as_answer(errno: i32) -> i32 {
    if may_still_happen(errno) { libc::EIO } else { errno }
}

/// Which export, and how it is used.
#[derive(Debug, Clone)]
pub struct NbdSettings {
    /// Where the server listens.
    pub place: NbdPlace,
    /// The export's name; empty for the server's default.
    pub export: String,
    /// How many connections, 1 to 64; `None`: 4. Always 1 if the server does not allow several.
    pub connections: Option<usize>,
    /// No call takes longer.
    pub deadline: Duration,
    /// UUID of the image that the export was formatted for: any other export that is found there is
    /// not used. `None`: any is right.
    pub stub: Option<Uuid>,
}

/// What requests and the connector share.
#[derive(Debug)]
struct Shared {
    settings: NbdSettings,
    links: Box<[Link]>,
    gate: Gate,
    /// The export's, as it was at the last connection.
    size_bytes: AtomicU64,
    flags: AtomicU32,
    minimum_bytes: AtomicU32,
    preferred_bytes: AtomicU32,
    maximum_bytes: AtomicU32,
    was_connected: AtomicBool,
    refusal: Mutex<Option<Refusal>>,
}

impl Shared {
    fn flags(&self) -> ExportFlags {
        ExportFlags(self.flags.load(Ordering::Relaxed) as u16)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    fn was_connected(&self) -> bool {
        self.was_connected.load(Ordering::Relaxed)
    }

    fn wanted_links(&self) -> usize {
        if self.flags().takes_several_connections() { self.links.len() } else { 1 }
    }

    fn place(&self) -> RemoteUrl {
        let NbdSettings { place, export, .. } = &self.settings;
        RemoteUrl::Nbd(NbdUrl { place: place.clone(), export: export.clone() })
    }

    /// A connection has been made: what the server says counts from now on.
    fn opened(&self, export: &Export) {
        self.size_bytes.store(export.size_bytes, Ordering::Relaxed);
        self.flags.store(export.flags.0.into(), Ordering::Relaxed);
        self.minimum_bytes.store(export.sizes.minimum_bytes, Ordering::Relaxed);
        self.preferred_bytes.store(export.sizes.preferred_bytes, Ordering::Relaxed);
        self.maximum_bytes.store(export.sizes.maximum_bytes, Ordering::Relaxed);
        self.was_connected.store(true, Ordering::Relaxed);
        *self.refusal.lock() = None;
    }

    /// Keeps why there is no connection; answers whether that is news.
    fn note(&self, refusal: Refusal) -> bool {
        let mut last = self.refusal.lock();
        let is_news = last.as_ref() != Some(&refusal);
        *last = Some(refusal);
        is_news
    }

    /// The connection with the fewest requests; of these the first, so that one request at a time
    /// always takes the same way.
    fn least_busy(&self) -> Option<&Link> {
        self.links.iter().filter(|link| link.is_up()).min_by_key(|link| link.load())
    }

    /// Does a request on one connection or, as far as that is safe, on another.
    fn perform(&self, mut request: Request<'_>, deadline: Instant) -> Result<(), i32> {
        let counters = &self.gate.counters;
        count(&counters.requests, 1);
        loop {
            let link = match self.least_busy() {
                Some(link) => link,
                None => self.gate.wait(deadline, || self.least_busy())?,
            };
            let can_repeat = matches!(request.kind, Kind::Read | Kind::Flush);
            let tried = link.attempt(&mut request, deadline, &self.gate);
            let errno = match tried {
                Tried::Done(answer) => return answer,
                Tried::Unknown(errno) if !can_repeat => return Err(errno),
                Tried::Unknown(errno) | Tried::NotDone(errno) => errno,
                Tried::Refused => as_answer(libc::ESHUTDOWN),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if tried == Tried::Refused && left > 2 * LEAVE_TAKING {
                // The server is about to close, and says so to everything until it has.
                thread::sleep(LEAVE_TAKING);
            } else if tried == Tried::Refused || left.is_zero() {
                // What is refused is not sent again without the time for an answer.
                return Err(errno);
            }
            count(&counters.retries, 1);
        }
    }
}

/// An export of an NBD server. See the module's text.
#[derive(Debug)]
pub struct NbdDevice {
    shared: Arc<Shared>,
}

impl NbdDevice {
    /// Connects.
    ///
    /// # Errors
    /// Why the export can't be opened, with its address.
    pub fn new(settings: NbdSettings) -> io::Result<NbdDevice> {
        let deadline = Instant::now() + settings.deadline;
        let device = NbdDevice::later(settings, 0)?;
        let shared = &device.shared;
        shared.gate.ask();
        if shared.gate.wait_for_first(deadline) {
            return Ok(device);
        }
        let refusal = shared.refusal.lock().clone();
        let refusal = refusal.unwrap_or_else(|| {
            Refusal::new(libc::ETIMEDOUT, "the server can't be reached before the deadline")
        });
        Err(refusal.to_io(&shared.place()))
    }

    /// Does not wait for the server, which may not be there: for the successor of a daemon that
    /// was killed, which connects when it makes the first call, and not while it stands by. An export that is smaller than `expected_bytes` is not taken.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn later(settings: NbdSettings, expected_bytes: u64) -> io::Result<NbdDevice> {
        let links = settings.connections.unwrap_or(CONNECTIONS).clamp(1, CONNECTIONS_AT_MOST);
        let sizes = BlockSizes::DEFAULT;
        let shared = Arc::new(Shared {
            links: (0..links).map(|_| Link::new()).collect(),
            gate: Gate::new(settings.deadline)?,
            settings,
            size_bytes: AtomicU64::new(expected_bytes),
            flags: AtomicU32::new(0),
            minimum_bytes: AtomicU32::new(sizes.minimum_bytes),
            preferred_bytes: AtomicU32::new(sizes.preferred_bytes),
            maximum_bytes: AtomicU32::new(sizes.maximum_bytes),
            was_connected: AtomicBool::new(false),
            refusal: Mutex::new(None),
        });
        thread::Builder::new().name("remote-connect".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || connector::run(&shared)
        })?;
        Ok(NbdDevice { shared })
    }

    /// The export's size; before the first connection, what was expected.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes()
    }

    /// What the server asks of requests.
    #[must_use]
    pub fn block_sizes(&self) -> BlockSizes {
        BlockSizes {
            minimum_bytes: self.shared.minimum_bytes.load(Ordering::Relaxed),
            preferred_bytes: self.shared.preferred_bytes.load(Ordering::Relaxed),
            maximum_bytes: self.shared.maximum_bytes.load(Ordering::Relaxed),
        }
    }

    /// Writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.shared.flags().is_read_only()
    }

    /// The server takes discards.
    #[must_use]
    pub fn can_trim(&self) -> bool {
        self.shared.flags().can_trim()
    }

    /// There is a connection now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.gate.is_up()
    }

    /// How many connections there are now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.links.iter().filter(|link| link.is_up()).count()
    }

    /// Reports numbers of its own, by name with the unit last.
    pub fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        self.shared.gate.counters.report(report);
        report("nbd_connections", self.connections() as u64);
    }

    /// Around each call: the deadline, the range, the watchdog, and counting errors.
    fn call(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        work: impl FnOnce(Instant) -> Result<(), i32>,
    ) -> Result<(), i32> {
        let _in_device = InDevice::enter();
        self.shared.gate.ask();
        let deadline = super::end_of(self.shared.settings.deadline);
        if self.size_bytes() == 0 {
            // Nobody knows yet how large it is.
            self.shared.gate.wait(deadline, || self.shared.was_connected().then_some(()))?;
        }
        let end = offset_bytes.checked_add(length_bytes);
        let outcome = match end.is_some_and(|end| end <= self.size_bytes()) {
            true => work(deadline),
            false => Err(libc::EINVAL),
        };
        outcome.inspect_err(|_| count(&self.shared.gate.counters.errors, 1))
    }

    /// The largest request.
    fn piece_bytes(&self) -> usize {
        self.shared.maximum_bytes.load(Ordering::Relaxed) as usize
    }

    fn flush_by(&self, deadline: Instant) -> Result<(), i32> {
        let shared = &self.shared;
        if shared.was_connected() && !shared.flags().can_flush() {
            return Ok(());
        }
        // By the protocol, where several connections are allowed a flush on one is for all.
        let request = Request { kind: Kind::Flush, offset: 0, length: 0, data: &[], buffer: None };
        shared.perform(request, deadline)
    }
}

impl BlockDevice for NbdDevice {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<(), i32> {
        let length = buffer.len() as u64;
        self.call(offset_bytes, length, |deadline| {
            let mut offset = offset_bytes;
            for part in buffer.chunks_mut(self.piece_bytes()) {
                let length = part.len() as u32;
                let buffer = Some(part);
                let request = Request { kind: Kind::Read, offset, length, data: &[], buffer };
                self.shared.perform(request, deadline)?;
                offset += u64::from(length);
                count(&self.shared.gate.counters.received_bytes, length.into());
            }
            Ok(())
        })
    }

    fn write_at(&self, buffer: &[u8], offset_bytes: u64) -> Result<(), i32> {
        self.call(offset_bytes, buffer.len() as u64, |deadline| {
            let mut offset = offset_bytes;
            for data in buffer.chunks(self.piece_bytes()) {
                let length = data.len() as u32;
                let request = Request { kind: Kind::Write, offset, length, data, buffer: None };
                self.shared.perform(request, deadline)?;
                offset += u64::from(length);
                count(&self.shared.gate.counters.sent_bytes, length.into());
            }
            Ok(())
        })
    }

    /// After an error the range may change at any time later, as after a write's: see
    /// [`may_still_happen`].
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> Result<Discarded, i32> {
        if self.shared.was_connected() && !self.can_trim() {
            return Ok(Discarded::Unsupported);
        }
        let outcome = self.call(offset_bytes, length_bytes, |deadline| {
            let (mut offset, end) = (offset_bytes, offset_bytes + length_bytes);
            while offset < end {
                let length = (end - offset).min(self.piece_bytes() as u64) as u32;
                let (data, buffer) = (&[][..], None);
                let request = Request { kind: Kind::Trim, offset, length, data, buffer };
                self.shared.perform(request, deadline)?;
                offset += u64::from(length);
            }
            Ok(())
        });
        match outcome {
            Ok(()) => Ok(Discarded::Yes),
            Err(libc::EOPNOTSUPP) => Ok(Discarded::Unsupported),
            Err(errno) => Err(errno),
        }
    }

    fn flush(&self) -> Result<(), i32> {
        self.call(0, 0, |deadline| self.flush_by(deadline))
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        NbdDevice::statistics(self, report);
    }

    /// Makes sure that there is a connection, and flushes. That no predecessor's write is on its
    /// way any more can't be known of a server elsewhere: who uses this does not use places again
    /// for a while that a predecessor may have been writing to.
    fn lock(&self) -> io::Result<()> {
        let wait_and_flush = |deadline| {
            self.shared.gate.wait(deadline, || self.shared.least_busy().map(drop))?;
            self.flush_by(deadline)
        };
        self.call(0, 0, wait_and_flush).map_err(io::Error::from_raw_os_error)
    }
}

impl Drop for NbdDevice {
    fn drop(&mut self) {
        self.shared.gate.stop();
        for link in &self.shared.links {
            link.disconnect(&self.shared.gate);
        }
    }
}
