//! Stream sockets that never block: sending, receiving, and waiting with a limit.

use super::{check, errno};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// There is something to receive.
pub const READABLE: i16 = libc::POLLIN;
/// There is room to send.
pub const WRITABLE: i16 = libc::POLLOUT;
/// The other side has closed, or reset.
pub const HUNG_UP: i16 = libc::POLLRDHUP;

/// Connects to a unix socket. Does not wait: if the listener's queue is full, that is `EAGAIN`.
///
/// # Errors
/// What socket(2) and connect(2) answer; `ENAMETOOLONG`.
pub fn connect_unix(path: &Path) -> io::Result<OwnedFd> {
    let bytes = path.as_os_str().as_bytes();
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let descriptor = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is a live structure of that length.
    check(unsafe { libc::connect(descriptor, (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Sets an option of a socket that is a number.
///
/// # Errors
/// What setsockopt(2) answers.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: a live integer of that length.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length)
    };
    check(result).map(drop)
}

/// Sends what the socket takes now of two parts, one behind the other. No signal if it is closed.
///
/// # Errors
/// The errno; `EAGAIN` if there is no room.
pub fn send(socket: BorrowedFd<'_>, first: &[u8], second: &[u8]) -> Result<usize, i32> {
    send_by(socket, first, second, 0)
}

/// As [`send`]; more is to follow at once, and it need not leave before that.
///
/// # Errors
/// As [`send`].
pub fn send_with_more_to_come(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, i32> {
    send_by(socket, bytes, &[], libc::MSG_MORE)
}

fn send_by(
    socket: BorrowedFd<'_>,
    first: &[u8],
    second: &[u8],
    more_flags: i32,
) -> Result<usize, i32> {
    let parts = [IoSlice::new(first), IoSlice::new(second)];
    // SAFETY: all zeros is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_ptr().cast_mut().cast();
    message.msg_iovlen = if second.is_empty() { 1 } else { 2 };
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | more_flags;
    loop {
        // SAFETY: IoSlice is an iovec; there are as many, of live slices.
        let count = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        match usize::try_from(count) {
            Ok(count) => return Ok(count),
            Err(_) => match errno() {
                libc::EINTR => {}
                error => return Err(error),
            },
        }
    }
}

/// Receives what has come into two parts, one behind the other; 0 bytes if the other side has
/// closed.
///
/// # Errors
/// The errno; `EAGAIN` if nothing has come.
pub fn receive(socket: BorrowedFd<'_>, first: &mut [u8], second: &mut [u8]) -> Result<usize, i32> {
    let count_of_parts = if second.is_empty() { 1 } else { 2 };
    let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
    // SAFETY: all zeros is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr().cast();
    message.msg_iovlen = count_of_parts;
    loop {
        // SAFETY: IoSliceMut is an iovec; there are as many, of live slices that are ours to
        // write to.
        let count =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        match usize::try_from(count) {
            Ok(count) => return Ok(count),
            Err(_) => match errno() {
                libc::EINTR => {}
                error => return Err(error),
            },
        }
    }
}

/// Ends both directions: whoever waits for the socket returns. It stays open.
pub fn shut_down(socket: BorrowedFd<'_>) {
    // SAFETY: no memory is passed.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

/// One thing to wait for.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Awaited(libc::pollfd);

impl Awaited {
    /// Waits for `events` of `descriptor`, or for nothing at all without one. Whoever polls keeps
    /// it open.
    #[must_use]
    pub fn new(descriptor: Option<BorrowedFd<'_>>, events: i16) -> Awaited {
        let fd = descriptor.map_or(-1, |descriptor| descriptor.as_raw_fd());
        Awaited(libc::pollfd { fd, events, revents: 0 })
    }

    /// Something of it has come, or it has failed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.revents != 0
    }
}

/// Waits until one is ready, or for `at_most`; answers whether one is. A signal ends it early.
pub fn poll(awaited: &mut [Awaited], at_most: Duration) -> bool {
    let seconds = at_most.as_secs().min(1 << 30) as libc::time_t;
    let limit = libc::timespec { tv_sec: seconds, tv_nsec: at_most.subsec_nanos().into() };
    let count = awaited.len() as libc::nfds_t;
    // SAFETY: Awaited is a pollfd; there are as many in a live slice; no signal mask.
    let ready = unsafe {
        libc::ppoll(awaited.as_mut_ptr().cast(), count, &raw const limit, std::ptr::null())
    };
    ready > 0
}

/// [`poll`] for one.
pub fn wait_for(socket: &impl AsFd, events: i16, at_most: Duration) -> bool {
    poll(&mut [Awaited::new(Some(socket.as_fd()), events)], at_most)
}
