//! Why something did not work: an errno for the caller, a text for the log.

use std::fmt;
use std::io;

/// What went wrong.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) errno: i32,
    pub(super) text: String,
}

impl Failure {
    pub(super) fn new(errno: i32, text: impl Into<String>) -> Failure {
        Failure { errno, text: text.into() }
    }

    pub(super) fn time_out() -> Failure {
        Failure::new(libc::ETIMEDOUT, "no answer in time")
    }

    pub(super) fn odd(text: impl Into<String>) -> Failure {
        Failure::new(libc::EPROTO, text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let errno = match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => libc::ETIMEDOUT,
            // TLS: a certificate that is not trusted, or what is no TLS at all.
            io::ErrorKind::InvalidData => libc::EACCES,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => libc::ECONNRESET,
            _ => error.raw_os_error().unwrap_or(libc::EIO),
        };
        Failure { errno, text: error.to_string() }
    }
}

/// What an error that a server answered means for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It may work a little later.
    Later,
    /// The cluster keeps it elsewhere.
    Elsewhere,
    /// It will not work, for that reason.
    Never(i32),
}

/// Sorts the errors that servers answer, by their first word.
pub(super) fn meaning(error: &[u8]) -> Meaning {
    let word = error.split(|byte| *byte == b' ').next().unwrap_or_default();
    match word {
        b"MOVED" | b"ASK" => Meaning::Elsewhere,
        b"LOADING" | b"TRYAGAIN" | b"CLUSTERDOWN" | b"MASTERDOWN" | b"READONLY" | b"BUSY"
        | b"NOREPLICAS" | b"UNBLOCKED" => Meaning::Later,
        b"OOM" | b"MISCONF" => Meaning::Never(libc::ENOSPC),
        b"NOAUTH" | b"WRONGPASS" | b"NOPERM" => Meaning::Never(libc::EACCES),
        _ => Meaning::Never(libc::EPROTO),
    }
}

/// An error that a server answered.
pub(super) fn answered(error: &[u8]) -> Failure {
    let errno = match meaning(error) {
        Meaning::Never(errno) => errno,
        Meaning::Later => libc::EAGAIN,
        Meaning::Elsewhere => libc::EPROTO,
    };
    let shown = &error[..error.len().min(200)];
    Failure::new(errno, format!("the server says: {}", String::from_utf8_lossy(shown)))
}
