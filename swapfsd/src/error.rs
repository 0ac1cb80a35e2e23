//! Errors of the I/O path: a stable kind, the operation, the slot, and the system's reason.
//!
//! They are `Copy` and hold no text, since the I/O path makes no heap allocation. They become an
//! errno in `fuse::errno`, and nowhere else. Errors of start-up, which may allocate, are
//! [`crate::image::ImageError`] and [`crate::daemon::StartError`].

use std::fmt;

/// What a request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read slots.
    Read,
    /// Write slots.
    Write,
    /// Forget slots: they read as zeros afterwards.
    Discard,
    /// Make earlier writes durable, where the back end can.
    Flush,
}

impl Operation {
    /// All operations, in the order of their discriminants.
    pub const ALL: [Operation; 4] =
        [Operation::Read, Operation::Write, Operation::Discard, Operation::Flush];

    /// The operation's name in messages and statistics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Discard => "discard",
            Operation::Flush => "flush",
        }
    }
}

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request reaches behind the end of the volume.
    OutOfRange,
    /// There is no room to store the page; nothing was changed.
    NoSpace,
    /// The device failed.
    Io,
    /// What was stored does not match its checksum.
    Checksum,
    /// The back end or its device can't do this.
    Unsupported,
}

/// A failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What was asked for.
    pub operation: Operation,
    /// First slot of the request, or the slot that failed where that is known.
    pub slot: u64,
    /// The system's own error number, where a system call failed.
    pub os_error: Option<i32>,
}

/// The outcome of a request.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without a system call behind it.
    #[must_use]
    pub fn new(kind: ErrorKind, operation: Operation, slot: u64) -> Error {
        Error { kind, operation, slot, os_error: None }
    }

    /// The error of a failed system call.
    #[must_use]
    pub fn from_os(operation: Operation, slot: u64, os_error: i32) -> Error {
        let kind = match os_error {
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => ErrorKind::NoSpace,
            libc::EOPNOTSUPP | libc::ENOSYS => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Error { kind, operation, slot, os_error: Some(os_error) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ErrorKind::OutOfRange => "reaches behind the end of the volume",
            ErrorKind::NoSpace => "no space",
            ErrorKind::Io => "input/output error",
            ErrorKind::Checksum => "checksum mismatch",
            ErrorKind::Unsupported => "not supported by the device",
        };
        write!(f, "{} of slot {}: {what}", self.operation.name(), self.slot)?;
        match self.os_error {
            Some(number) => write!(f, " (errno {number})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
