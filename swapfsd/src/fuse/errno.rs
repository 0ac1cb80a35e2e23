//! The one place where an error becomes an errno.

use crate::error::{Error, ErrorKind, Operation};
use fuser::Errno;

/// What the kernel is told.
pub(super) fn errno_of(error: &Error) -> Errno {
    match (error.kind, error.operation) {
        // What a block device answers to a write behind its end.
        (ErrorKind::OutOfRange, Operation::Write) | (ErrorKind::NoSpace, _) => Errno::ENOSPC,
        (ErrorKind::OutOfRange, _) => Errno::EINVAL,
        (ErrorKind::Unsupported, _) => Errno::EOPNOTSUPP,
        (ErrorKind::Io | ErrorKind::Checksum, _) => Errno::EIO,
    }
}
