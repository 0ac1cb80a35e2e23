//! systemd's file-descriptor store: a third holder of the descriptors, should supervisor and
//! worker die together.
//!
//! A unit with `FileDescriptorStoreMax=` keeps what a service hands to it by sd_notify(3)
//! (`FDSTORE=1`), and gives it back to the next process of the unit as `LISTEN_FDS`. The memory
//! lives as long as a descriptor of it, and so does the connection to the kernel: the next
//! process takes over as after the death of a worker.

use super::link::{HOLDING_NAMES, Holdings};
use crate::sys::passing;
use crate::sys::spawn;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// What the names of our descriptors start with.
const PREFIX: &str = "swapfs-";
/// The first descriptor that a service manager passes.
const FIRST: RawFd = 3;

/// Hands copies of all descriptors to the service manager, if there is one. Answers whether there
/// is; one that keeps none ignores them.
///
/// # Errors
/// If the service manager's socket can't be written to.
pub fn deposit(holdings: &Holdings) -> io::Result<bool> {
    for (name, descriptor) in HOLDING_NAMES.iter().zip(holdings.descriptors()) {
        let message = format!("FDSTORE=1\nFDNAME={PREFIX}{name}");
        if !notify(&message, &[descriptor])? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Has the service manager forget them: the volume was unmounted in order.
pub fn withdraw() {
    for name in HOLDING_NAMES {
        drop(notify(&format!("FDSTOREREMOVE=1\nFDNAME={PREFIX}{name}"), &[]));
    }
}

/// Sends a message of the protocol of sd_notify(3). False: there is nobody.
///
/// # Errors
/// If it can't be sent.
pub fn notify(message: &str, descriptors: &[RawFd]) -> io::Result<bool> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(false) };
    let socket = passing::connect_datagram(name.as_encoded_bytes())?;
    passing::send(socket.as_fd(), message.as_bytes(), descriptors)?;
    Ok(true)
}

/// What the service manager has kept of the process before us, if it is all there and the kernel's
/// connection still lives. Descriptors that are of no use are closed.
#[must_use]
pub fn take_back() -> Option<Holdings> {
    let own = std::process::id().to_string();
    if std::env::var("LISTEN_PID").ok()? != own {
        return None;
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let count: RawFd = std::env::var("LISTEN_FDS").ok()?.parse().ok()?;
    let mut files: Vec<(String, File)> = (FIRST..FIRST + count)
        .zip(names.split(':'))
        .filter_map(|(number, name)| Some((name.to_owned(), spawn::inherited(number).ok()?.into())))
        .collect();
    let holdings = Holdings::from_files(|index| {
        let wanted = format!("{PREFIX}{}", HOLDING_NAMES[index]);
        let place = files.iter().position(|(name, _)| *name == wanted)?;
        Some(files.swap_remove(place).1)
    })?;
    let connection = spawn::readiness(holdings.fuse.as_raw_fd());
    (connection & libc::POLLERR == 0).then_some(holdings)
}
