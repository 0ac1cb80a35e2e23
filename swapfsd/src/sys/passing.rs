//! Packets with descriptors between processes: SOCK_SEQPACKET and SCM_RIGHTS, without any
//! allocation.

use super::check;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Descriptors that go with one packet at most.
pub const MAX_DESCRIPTORS: usize = 24;
/// Room for the control message: a header and the descriptors, aligned like the header.
const CONTROL_WORDS: usize = 16;

/// Two ends of a connection that keeps packets apart; both close on exec.
///
/// # Errors
/// What socketpair(2) answers.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    let one = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    Ok((one, unsafe { OwnedFd::from_raw_fd(ends[1]) }))
}

/// A socket at `path` that others connect to, for its owner alone.
///
/// # Errors
/// What socket(2), bind(2) and listen(2) answer; `EINVAL` for a path that is too long.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed.
    let socket = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let (address, len) = address_of(path.as_os_str().as_bytes())?;
    // Nobody else may connect, not even before the mode is set.
    // SAFETY: no memory is passed.
    let mask = unsafe { libc::umask(0o177) };
    // SAFETY: an address of that length.
    let bound = check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) });
    // SAFETY: no memory is passed.
    unsafe { libc::umask(mask) };
    bound?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(socket.as_raw_fd(), 4) })?;
    Ok(socket)
}

/// A datagram socket that is connected to `name`: a path, or behind an `@` an abstract name.
///
/// # Errors
/// What socket(2) and connect(2) answer; `EINVAL` for a name that is too long.
pub fn connect_datagram(name: &[u8]) -> io::Result<OwnedFd> {
    connect(name, libc::SOCK_DGRAM)
}

/// A connection to a [`listen`]ing socket.
///
/// # Errors
/// As for [`connect_datagram`].
pub fn connect_packets(name: &[u8]) -> io::Result<OwnedFd> {
    connect(name, libc::SOCK_SEQPACKET)
}

fn connect(name: &[u8], kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let socket = check(unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let (mut address, len) = address_of(name)?;
    if name.first() == Some(&b'@') {
        address.sun_path[0] = 0;
    }
    // SAFETY: an address of that length.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket)
}

fn address_of(name: &[u8]) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if name.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (place, byte) in address.sun_path.iter_mut().zip(name) {
        *place = *byte as libc::c_char;
    }
    // Of an abstract name every byte counts: no zeros behind it.
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + name.len();
    Ok((address, len as libc::socklen_t))
}

/// The next connection of a [`listen`]ing socket.
///
/// # Errors
/// What accept4(2) answers; `EAGAIN` if there is none.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let none = std::ptr::null_mut();
    let flags = libc::SOCK_CLOEXEC;
    // SAFETY: no address is asked for.
    let socket =
        check(unsafe { libc::accept4(listener.as_raw_fd(), none, std::ptr::null_mut(), flags) })?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// The process that connected a socket, or made the pair; 0 if the kernel does not say.
#[must_use]
pub fn peer(socket: BorrowedFd<'_>) -> libc::pid_t {
    credentials_of(socket).map_or(0, |credentials| credentials.pid)
}

/// The effective user who connected a socket, or made the pair; `None` if the kernel does not say.
#[must_use]
pub fn peer_user(socket: BorrowedFd<'_>) -> Option<libc::uid_t> {
    // The kernel says -1 of a socket that nobody has connected.
    credentials_of(socket).map(|credentials| credentials.uid).filter(|uid| *uid != libc::uid_t::MAX)
}

fn credentials_of(socket: BorrowedFd<'_>) -> Option<libc::ucred> {
    let mut credentials = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: room for one structure of that length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(credentials)
}

/// Sends one packet with descriptors.
///
/// # Errors
/// What sendmsg(2) answers; `EPIPE` if the other end is closed (and no signal), `EAGAIN` if it
/// would have to wait.
///
/// # Panics
/// With more than [`MAX_DESCRIPTORS`].
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    assert!(descriptors.len() <= MAX_DESCRIPTORS);
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the structure is plain numbers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let payload_bytes = size_of_val(descriptors) as libc::c_uint;
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: arithmetic only.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(payload_bytes) } as _;
        // SAFETY: the header has room for a control message, as just set.
        let message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        // SAFETY: inside `control`, which is aligned for it.
        let message = unsafe { &mut *message };
        message.cmsg_level = libc::SOL_SOCKET;
        message.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: arithmetic only.
        message.cmsg_len = unsafe { libc::CMSG_LEN(payload_bytes) } as _;
        // SAFETY: the data part lies inside `control`.
        let data = unsafe { libc::CMSG_DATA(message) };
        for (index, descriptor) in descriptors.iter().enumerate() {
            // SAFETY: there is room for MAX_DESCRIPTORS of them.
            let place = unsafe { data.cast::<RawFd>().add(index) };
            // SAFETY: as above.
            unsafe { place.write_unaligned(*descriptor) };
        }
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: all pointers in the header are to live memory of the lengths given.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What came in one packet.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes of the packet; 0: the other end is closed.
    pub len: usize,
    /// Its descriptors, in order; they close on exec.
    pub descriptors: [Option<OwnedFd>; MAX_DESCRIPTORS],
}

impl Received {
    /// Takes descriptor `index` as a file.
    pub fn take_file(&mut self, index: usize) -> Option<File> {
        self.descriptors.get_mut(index)?.take().map(File::from)
    }
}

/// Receives one packet; waits for it.
///
/// # Errors
/// What recvmsg(2) answers.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Received> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: the structure is plain numbers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let len = loop {
        let descriptor = socket.as_raw_fd();
        // SAFETY: all pointers in the header are to live, writable memory of the lengths given.
        let len = unsafe { libc::recvmsg(descriptor, &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(len) {
            Ok(len) => break len,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    let mut received = Received { len, ..Received::default() };
    // SAFETY: the header was filled by the call.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    // SAFETY: the kernel's control messages are whole, and lie inside `control`.
    while let Some(current) = unsafe { message.as_ref() } {
        if current.cmsg_level == libc::SOL_SOCKET && current.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: arithmetic only.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (current.cmsg_len - head) / size_of::<RawFd>();
            // SAFETY: the data part lies behind the header.
            let data = unsafe { libc::CMSG_DATA(message) };
            for index in 0..count {
                // SAFETY: inside the data part.
                let place = unsafe { data.cast::<RawFd>().add(index) };
                // SAFETY: as above.
                let number = unsafe { place.read_unaligned() };
                // SAFETY: the descriptor is new, and nobody else owns it.
                let owned = unsafe { OwnedFd::from_raw_fd(number) };
                if let Some(free) = received.descriptors.iter_mut().find(|place| place.is_none()) {
                    *free = Some(owned);
                }
            }
        }
        // SAFETY: as for the first one.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok(received)
}

const _: () = assert!(
    CONTROL_WORDS * 8 >= size_of::<libc::cmsghdr>() + MAX_DESCRIPTORS * size_of::<RawFd>() + 8
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn bytes_and_descriptors_arrive_together() {
        let (one, two) = pair().unwrap();
        let mut files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        for (index, file) in files.iter_mut().enumerate() {
            write!(file, "file {index}").unwrap();
        }
        let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        send(one.as_fd(), b"three files", &numbers).unwrap();
        send(one.as_fd(), b"none", &[]).unwrap();
        let mut bytes = [0; 64];
        let mut received = receive(two.as_fd(), &mut bytes).unwrap();
        assert_eq!(&bytes[..received.len], b"three files");
        let mut file = received.take_file(2).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "file 2");
        assert!(received.take_file(3).is_none());
        let received = receive(two.as_fd(), &mut bytes).unwrap();
        assert_eq!(&bytes[..received.len], b"none");
        let many: Vec<RawFd> = numbers.iter().copied().cycle().take(MAX_DESCRIPTORS).collect();
        send(one.as_fd(), b"as many as can be", &many).unwrap();
        let received = receive(two.as_fd(), &mut bytes).unwrap();
        assert!(received.descriptors.iter().all(Option::is_some));
        drop(one);
        assert_eq!(receive(two.as_fd(), &mut bytes).unwrap().len, 0);
        assert!(send(two.as_fd(), b"x", &[]).is_err());
    }
}
