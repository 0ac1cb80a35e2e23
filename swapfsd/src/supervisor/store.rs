//! systemd's file-descriptor store: a third holder of the descriptors, should supervisor and
//! worker die together.
//!
//! A unit with `FileDescriptorStoreMax=` keeps what a service hands to it by sd_notify(3)
//! (`FDSTORE=1`), and gives it back to the next process of the unit as `LISTEN_FDS`. The memory
//! lives as long as a descriptor of it, and so does the connection to the kernel: the next
//! process takes over as after the death of a worker.

use super::link::{FIRST_MEMBER, HOLDING_NAMES, Holdings};
use crate::members;
use crate::sys::passing;
use crate::sys::spawn;
use std::ffi::OsString;
use std::fmt::{self, Write};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::OnceLock;

/// What the names of our descriptors start with.
const PREFIX: &str = "swapfs-";
/// The first descriptor that a service manager passes.
const FIRST: RawFd = 3;

/// A message that is made without an allocation.
struct Message {
    bytes: [u8; 64],
    len: usize,
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let place = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

impl Message {
    /// `what` is to be done with the descriptor `name`.
    fn about(what: &str, name: &str) -> Message {
        let mut message = Message { bytes: [0; 64], len: 0 };
        // All names fit.
        let _ = write!(message, "{what}=1\nFDNAME={PREFIX}{name}");
        message
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

/// Hands copies of all descriptors to the service manager, if there is one. Answers whether there
/// is; one that keeps none ignores them. Fillers are left out: systemd keeps no file twice.
///
/// # Errors
/// If the service manager's socket can't be written to.
pub fn deposit(holdings: &Holdings) -> io::Result<bool> {
    for (index, name) in HOLDING_NAMES.iter().enumerate() {
        let place = index.checked_sub(FIRST_MEMBER);
        let is_filler = place.is_some_and(|place| {
            members::is_same_file(&holdings.image, &holdings.members[place]).unwrap_or(false)
        });
        if !is_filler {
            let descriptor = holdings.descriptors()[index];
            if !notify(Message::about("FDSTORE", name).text(), &[descriptor])? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Has the service manager, if there is one, keep `member` at `place` instead of what it has
/// there; `None`: nothing. Neither waits nor allocates.
///
/// # Errors
/// If the service manager's socket can't be written to.
pub fn replace_member(place: usize, member: Option<&File>) -> io::Result<()> {
    let name = HOLDING_NAMES[FIRST_MEMBER + place];
    notify(Message::about("FDSTOREREMOVE", name).text(), &[])?;
    if let Some(member) = member {
        notify(Message::about("FDSTORE", name).text(), &[member.as_raw_fd()])?;
    }
    Ok(())
}

/// Has the service manager forget them: the volume was unmounted in order.
pub fn withdraw() {
    for name in HOLDING_NAMES {
        drop(notify(Message::about("FDSTOREREMOVE", name).text(), &[]));
    }
}

/// Where the service manager listens, if there is one. Asked for once: that takes memory.
pub(super) fn socket() -> Option<&'static OsString> {
    static SOCKET: OnceLock<Option<OsString>> = OnceLock::new();
    SOCKET.get_or_init(|| std::env::var_os("NOTIFY_SOCKET")).as_ref()
}

/// Sends a message of the protocol of sd_notify(3). False: there is nobody. Neither waits nor,
/// but for the first time, allocates.
///
/// # Errors
/// If it can't be sent.
pub fn notify(message: &str, descriptors: &[RawFd]) -> io::Result<bool> {
    let Some(name) = socket() else { return Ok(false) };
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
    let holdings = from_store(&mut files)?;
    let connection = spawn::readiness(holdings.fuse.as_raw_fd());
    (connection & libc::POLLERR == 0).then_some(holdings)
}

/// What was kept, by its names; places without a member get their fillers again.
fn from_store(files: &mut Vec<(String, File)>) -> Option<Holdings> {
    let mut image: Option<File> = None;
    Holdings::from_files(|index| {
        let name = HOLDING_NAMES[index];
        let kept = files
            .iter()
            .position(|(found, _)| found.strip_prefix(PREFIX) == Some(name))
            .map(|place| files.swap_remove(place).1);
        if name == "image" {
            image = kept.as_ref().and_then(|file| file.try_clone().ok());
        }
        let filler = || image.as_ref()?.try_clone().ok();
        kept.or_else(|| if index >= FIRST_MEMBER { filler() } else { None })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_protocol() {
        let message = Message::about("FDSTOREREMOVE", HOLDING_NAMES[FIRST_MEMBER + 7]);
        assert_eq!(message.text(), "FDSTOREREMOVE=1\nFDNAME=swapfs-member7");
    }

    #[test]
    fn what_was_kept_without_fillers_has_them_again() {
        let kept = |name: &&str| (format!("swapfs-{name}"), tempfile::tempfile().unwrap());
        let (one, two) = (HOLDING_NAMES[FIRST_MEMBER + 1], &HOLDING_NAMES[..FIRST_MEMBER]);
        let mut files: Vec<_> = two.iter().chain([&one]).map(kept).collect();
        let holdings = from_store(&mut files).unwrap();
        let is_filler = holdings
            .members
            .each_ref()
            .map(|it| members::is_same_file(&holdings.image, it).unwrap());
        assert_eq!(is_filler, [true, false, true, true, true, true, true, true]);
        let mut files: Vec<_> = two[1..].iter().map(kept).collect();
        assert!(from_store(&mut files).is_none(), "without the connection");
    }
}
