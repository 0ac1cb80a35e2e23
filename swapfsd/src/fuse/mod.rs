//! The FUSE side: the adapter that turns FUSE requests into requests of the volume, and the
//! session that runs it.
//!
//! Another transport stands beside this module, not below it: everything under
//! [`crate::volume`] knows nothing of FUSE.

mod adapter;
mod errno;
mod replies;
mod status_files;

pub use adapter::Adapter;

use crate::sys::alloc::MAX_REQUEST_BYTES;
use fuser::{Config, Session, SessionACL};
use std::io;
use std::os::fd::OwnedFd;

/// Requests that the kernel may have in flight: the loop device has 128, and fuser's default of
/// 16 makes swap-ins wait behind swap-outs.
pub(crate) const MAX_BACKGROUND: u16 = 256;

/// A mounted connection whose INIT has been answered, ready to serve.
pub struct Connection {
    session: Session<Adapter>,
}

impl Connection {
    /// Answers the kernel's INIT on `device`, which must have been mounted.
    ///
    /// # Errors
    /// What reading or writing /dev/fuse answers.
    pub fn new(adapter: Adapter, device: OwnedFd, threads: u32) -> io::Result<Connection> {
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads as usize);
        config.clone_fd = false;
        Ok(Connection { session: Session::from_fd(adapter, device, SessionACL::All, config)? })
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// What reading or writing /dev/fuse answers, other than the end of the mount.
    pub fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

const _: () = assert!(MAX_REQUEST_BYTES <= 16 << 20, "fuser's buffer has room for 16 MiB");
