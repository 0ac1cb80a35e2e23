//! Serving a connection that another process has served: take-over and upgrade.
//!
//! fuser always wants to shake hands first, and the kernel does that only once. So a standby gives
//! fuser one end of a socket pair in which a made-up INIT lies, with what the kernel's own had
//! offered, and lets it start all of its threads: they wait in a read of the socket, with their
//! buffers in place. To take over, the number of that descriptor is made to mean the real
//! /dev/fuse (dup3), and a FORGET for each thread, which fuser answers to nobody, lets them come
//! back from the socket: their next read is one of the device. (The design's way, and one step
//! further: nothing is left to be made after the predecessor's death.)
//!
//! `FUSE_NOTIFY_RESEND` (Linux 6.9) then has the kernel hand out again what the predecessor had
//! read and not answered.

use super::{Adapter, session_config};
use crate::sys::passing;
use crate::sys::spawn;
use fuser::{Session, SessionACL};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// `FUSE_HAS_RESEND` of INIT: the kernel knows FUSE_NOTIFY_RESEND.
pub const HAS_RESEND: u64 = 1 << 39;
const FUSE_NOTIFY_RESEND: u32 = 7;
const FUSE_FORGET: u32 = 2;
const FUSE_INIT: u32 = 26;
const FUSE_MAJOR: u32 = 7;
/// A bit in the lower half of INIT's flags: there is an upper half.
const FUSE_INIT_EXT: u64 = 1 << 30;
/// Any number but 0, which fuser takes for a notification.
const UNIQUE: u64 = 2;
const ROOT_NODE: u64 = 1;

/// What the kernel's INIT said, as far as a successor needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Minor version of the protocol.
    pub minor: u32,
    /// All flags that the kernel offered.
    pub flags: u64,
}

/// The end of the socket pair that makes a waiting session start.
#[derive(Debug)]
pub struct Waiting {
    /// The number that the session reads from.
    number: RawFd,
    /// Kept open: a thread that would read the end of it would end the session.
    other: OwnedFd,
    threads: u32,
}

/// A session that waits, and what makes it start.
pub(super) fn waiting_session(
    adapter: Adapter,
    threads: u32,
    negotiated: Negotiated,
) -> io::Result<(Session<Adapter>, Waiting)> {
    let (ours, other) = passing::pair()?;
    let number = ours.as_raw_fd();
    passing::send(other.as_fd(), &init_request(negotiated), &[])?;
    let session = Session::from_fd(adapter, ours, SessionACL::All, session_config(threads))?;
    let mut answer = [0; 256];
    passing::receive(other.as_fd(), &mut answer)?;
    Ok((session, Waiting { number, other, threads }))
}

impl Waiting {
    /// Has each thread come once, see [`super::adapter::Muster`].
    ///
    /// # Errors
    /// What sendmsg(2) answers.
    pub fn call_all(&self) -> io::Result<()> {
        (0..self.threads)
            .try_for_each(|_| passing::send(self.other.as_fd(), &forget_request(), &[]))
    }

    /// The session serves `device` from now on, those requests first that its predecessor left.
    ///
    /// # Errors
    /// What dup3(2), or writing to the device, answers. A kernel without resend: `EINVAL`.
    pub fn start(&self, device: &File) -> io::Result<()> {
        // Before anything can be read here, or that would come a second time too.
        resend(device)?;
        spawn::duplicate_to(device.as_raw_fd(), self.number)?;
        match self.call_all() {
            // None was in the socket just then: their next read is one of the device anyway.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            outcome => outcome,
        }
    }
}

/// Has the kernel queue all requests again that were read and not answered.
fn resend(mut device: &File) -> io::Result<()> {
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16u32.to_ne_bytes());
    message[4..8].copy_from_slice(&FUSE_NOTIFY_RESEND.to_ne_bytes());
    device.write_all(&message)
}

/// `fuse_in_header` for a request of `len` bytes.
fn header(len: usize, operation: u32) -> [u8; 40] {
    let mut header = [0; 40];
    header[..4].copy_from_slice(&(len as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&operation.to_ne_bytes());
    header[8..16].copy_from_slice(&UNIQUE.to_ne_bytes());
    header[16..24].copy_from_slice(&ROOT_NODE.to_ne_bytes());
    header
}

/// `fuse_init_in`, which has been 64 bytes long since 7.36.
fn init_request(negotiated: Negotiated) -> [u8; 104] {
    let mut request = [0; 104];
    let flags = negotiated.flags | FUSE_INIT_EXT;
    let words = [FUSE_MAJOR, negotiated.minor, 128 << 10, flags as u32, (flags >> 32) as u32];
    request[..40].copy_from_slice(&header(104, FUSE_INIT));
    for (place, word) in request[40..].chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    request
}

fn forget_request() -> [u8; 48] {
    let mut request = [0; 48];
    request[..40].copy_from_slice(&header(48, FUSE_FORGET));
    request
}
