//! The thread that makes the connections, and notices when one is closed that nobody uses.
//!
//! Looking a host up can hang for long, and a handshake takes as many round trips as the server
//! likes: so no request does either.

use super::Shared;
use super::counters::count;
use super::handshake::{self, Export, Refusal};
use super::link::{Link, Request, Tried};
use super::protocol::Kind;
use super::socket::Socket;
use crate::sys::network_heap::NetworkPath;
use crate::sys::stream::{self, Awaited, HUNG_UP, READABLE};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use swapfs_format::superblock::{PRIMARY_OFFSET_BYTES, Superblock};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};
use uuid::Uuid;

const SHORTEST_BACK_OFF: Duration = Duration::from_millis(50);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(2);
/// An attempt takes no longer, so that one is made soon after the network is back.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(10);
/// How soon a connection is looked at again that has been closed while requests wait on it: they
/// notice it themselves.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const FOREVER: Duration = Duration::from_secs(3600);

/// When a connection may be tried again.
#[derive(Debug, Clone, Copy)]
struct Plan {
    next: Instant,
    back_off: Duration,
}

impl Plan {
    fn later(&mut self) {
        self.next = Instant::now() + self.back_off;
        self.back_off = (self.back_off * 2).min(LONGEST_BACK_OFF);
    }
}

/// From when the device is used first until it goes.
pub(super) fn run(shared: &Shared) {
    // Connections may be made while the machine has no memory left.
    let _pool = NetworkPath::enter();
    // A server may allow few connections, which are for whoever uses them.
    shared.gate.wait_until_asked();
    let plan = Plan { next: Instant::now(), back_off: SHORTEST_BACK_OFF };
    let mut plans = vec![plan; shared.links.len()];
    let mut was_up = vec![false; shared.links.len()];
    while !shared.gate.is_stopping() {
        let wanted = shared.wanted_links();
        for index in 0..wanted {
            let is_up = shared.links[index].is_up();
            // One that has served well before it broke is made again at once.
            if was_up[index] && !is_up && shared.links[index].is_fruitful() {
                plans[index] = Plan { next: Instant::now(), back_off: SHORTEST_BACK_OFF };
            }
            was_up[index] = is_up;
        }
        // While there is none at all, one is tried, not all.
        let candidates = if shared.gate.is_up() { wanted } else { 1 };
        let next =
            (0..candidates).filter(|&index| !was_up[index]).min_by_key(|&index| plans[index].next);
        match next {
            Some(index) if plans[index].next <= Instant::now() => {
                was_up[index] = make(shared, index);
                plans[index].later();
            }
            Some(index) => {
                let left = plans[index].next.saturating_duration_since(Instant::now());
                watch(shared, left);
            }
            None => watch(shared, FOREVER),
        }
    }
    for link in &shared.links {
        link.disconnect(&shared.gate);
    }
}

/// Makes a connection; answers whether it is there.
fn make(shared: &Shared, index: usize) -> bool {
    let is_first = !shared.was_connected();
    let limit = shared.settings.deadline;
    let limit = if is_first { limit } else { limit.min(LONGEST_ATTEMPT) };
    match open(shared, &shared.links[index], Instant::now() + limit) {
        Ok(()) => {
            log::debug!("{}: connection {index} is there", shared.place());
            true
        }
        Err(refusal) => {
            count(&shared.gate.counters.failed_connects, 1);
            let errno = refusal.errno;
            if shared.note(refusal.clone()) {
                log::warn!("{}: no connection: {}", shared.place(), refusal.text);
            }
            shared.gate.attempted(errno);
            false
        }
    }
}

fn open(shared: &Shared, link: &Link, deadline: Instant) -> Result<(), Refusal> {
    let (socket, export) = handshake::connect(&shared.settings, deadline)?;
    accept(shared, &export)?;
    link.install(Socket::new(socket, export.structured));
    if let Some(stub) = shared.settings.stub {
        let recognized = recognize(shared, link, &export, stub, deadline);
        recognized.inspect_err(|_| link.disconnect(&shared.gate))?;
    }
    count(&shared.gate.counters.connects, 1);
    shared.opened(&export);
    match link.open(&shared.gate) {
        true => Ok(()),
        false => Err(Refusal::new(libc::ECONNRESET, "the connection has ended")),
    }
}

/// Whether the export was formatted for `stub`: a server may have come back with another one.
fn recognize(
    shared: &Shared,
    link: &Link,
    export: &Export,
    stub: Uuid,
    deadline: Instant,
) -> Result<(), Refusal> {
    let foreign = || {
        let text = "another export is there now: not formatted for this image";
        Refusal::new(libc::EINVAL, text)
    };
    if export.size_bytes < PRIMARY_OFFSET_BYTES + PAGE_BYTES {
        return Err(foreign());
    }
    let mut page = vec![0; PAGE_LEN];
    let mut request = Request {
        kind: Kind::Read,
        offset: PRIMARY_OFFSET_BYTES,
        length: PAGE_LEN as u32,
        data: &[],
        buffer: Some(&mut page),
    };
    let refused = match link.attempt(&mut request, deadline, &shared.gate) {
        Tried::Done(Ok(())) => None,
        Tried::Done(Err(errno)) | Tried::Unknown(errno) | Tried::NotDone(errno) => Some(errno),
        Tried::Refused => Some(libc::ESHUTDOWN),
    };
    if let Some(errno) = refused {
        return Err(Refusal::os(errno, "reading the superblock"));
    }
    match Superblock::decode(&page) {
        Ok(superblock) if superblock.volume_uuid == stub => Ok(()),
        _ => Err(foreign()),
    }
}

/// Whether it is what it was.
fn accept(shared: &Shared, export: &Export) -> Result<(), Refusal> {
    let was_bytes = shared.size_bytes();
    match export.size_bytes >= was_bytes {
        true => Ok(()),
        false => {
            let now_bytes = export.size_bytes;
            let text = format!("the export had {was_bytes} bytes, and has {now_bytes} now");
            Err(Refusal::new(libc::EIO, text))
        }
    }
}

/// Waits until there may be something to do.
fn watch(shared: &Shared, at_most: Duration) {
    let sockets: Vec<_> = shared.links.iter().map(Link::socket).collect();
    let event = &shared.gate.event;
    let mut awaited = vec![Awaited::new(Some(event.as_fd()), READABLE)];
    awaited.extend(sockets.iter().map(|socket| {
        Awaited::new(socket.as_ref().map(|socket: &Arc<Socket>| socket.as_fd()), HUNG_UP)
    }));
    stream::poll(&mut awaited, at_most);
    if awaited[0].is_ready() {
        event.clear();
    }
    let mut is_in_use = false;
    for (index, socket) in sockets.iter().enumerate() {
        let Some(socket) = socket.as_ref().filter(|_| awaited[index + 1].is_ready()) else {
            continue;
        };
        is_in_use |= !shared.links[index].close_if_idle(socket, &shared.gate);
    }
    if is_in_use {
        stream::poll(&mut [Awaited::new(Some(event.as_fd()), READABLE)], LOOK_AGAIN);
    }
}
