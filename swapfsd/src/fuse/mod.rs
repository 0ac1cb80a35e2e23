//! The FUSE side: the adapter that turns FUSE requests into requests of the volume, and the
//! session that runs it.
//!
//! Another transport stands beside this module, not below it: everything under
//! [`crate::volume`] knows nothing of FUSE.

mod adapter;
pub mod adopt;
mod errno;
mod replies;
mod status_files;

pub use adapter::{Adapter, Muster};

use adopt::{Negotiated, Waiting};

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
        let config = session_config(threads);
        Ok(Connection { session: Session::from_fd(adapter, device, SessionACL::All, config)? })
    }

    /// A connection that will be handed over by another process: its threads start and wait.
    ///
    /// # Errors
    /// What socketpair(2) and the like answer.
    pub fn waiting(
        adapter: Adapter,
        threads: u32,
        negotiated: Negotiated,
    ) -> io::Result<(Connection, Waiting)> {
        let (session, waiting) = adopt::waiting_session(adapter, threads, negotiated)?;
        Ok((Connection { session }, waiting))
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// What reading or writing /dev/fuse answers, other than the end of the mount.
    pub fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

/// All threads read the same descriptor, so that a supervisor has to hold only that one.
fn session_config(threads: u32) -> Config {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads as usize);
    config.clone_fd = false;
    config
}

const _: () = assert!(MAX_REQUEST_BYTES <= 16 << 20, "fuser's buffer has room for 16 MiB");
