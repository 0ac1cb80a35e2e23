//! The one place where an error becomes an errno.

use crate::error::{Error, ErrorKind, Operation};

/// What the kernel is told.
pub(super) fn errno_of(error: &Error) -> i32 {
    match (error.kind, error.operation) {
        // What a block device answers to a write behind its end.
        (ErrorKind::OutOfRange, Operation::Write) | (ErrorKind::NoSpace, _) => libc::ENOSPC,
        (ErrorKind::OutOfRange, _) => libc::EINVAL,
        (ErrorKind::Unsupported, _) => libc::EOPNOTSUPP,
        (ErrorKind::Io | ErrorKind::Checksum, _) => libc::EIO,
    }
}
