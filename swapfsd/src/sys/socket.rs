//! Asking a socket without waiting.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a stream socket has for its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Nothing; the connection is open as far as is known.
    Nothing,
    /// Bytes.
    Bytes,
    /// The other side has closed the connection.
    End,
}

/// What a read would find now; nothing is taken.
///
/// # Errors
/// What recv(2) answers: that the connection is broken, for one.
pub fn waiting(socket: BorrowedFd<'_>) -> io::Result<Waiting> {
    let mut byte = 0u8;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: there is a byte to write to.
    let peeked = unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) };
    match peeked {
        0 => Ok(Waiting::End),
        1.. => Ok(Waiting::Bytes),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(Waiting::Nothing),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_waits() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(waiting(ours.as_fd()).unwrap(), Waiting::Nothing);
        theirs.write_all(b"x").unwrap();
        assert_eq!(waiting(ours.as_fd()).unwrap(), Waiting::Bytes);
        assert_eq!(waiting(ours.as_fd()).unwrap(), Waiting::Bytes);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(waiting(ours.as_fd()).unwrap(), Waiting::End);
    }
}
