//! The FUSE side: what a mount answers ([`Service`]), and two transports that bring it requests:
//! fuser's, by /dev/fuse ([`adapter`]), and rings ([`uring`]).
//!
//! Everything under [`crate::volume`] knows nothing of FUSE.

mod adapter;
pub mod adopt;
mod errno;
mod replies;
mod service;
mod status_files;
pub mod uring;

pub use adapter::{Adapter, Muster};
pub use service::Service;
#[cfg(test)]
pub(crate) use status_files::SNAPSHOT_BYTES;

use adopt::{Negotiated, Waiting};

use crate::buffer::BufferPool;
use crate::sys::alloc::MAX_REQUEST_BYTES;
use fuser::{Config, Session, SessionACL};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Requests that the kernel may have in flight: the loop device has 128, and fuser's default of
/// 16 makes swap-ins wait behind swap-outs.
pub(crate) const MAX_BACKGROUND: u16 = 256;

/// How requests come.
#[derive(Debug, Clone)]
pub enum Transport {
    /// So many threads read and write /dev/fuse.
    Fuse(u32),
    /// By rings, into the payloads of these buffers.
    Uring(uring::Layout, BufferPool),
}

impl Transport {
    /// As the option names it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Transport::Fuse(_) => "fuse",
            Transport::Uring(..) => "uring",
        }
    }
}

/// A mounted connection whose INIT has been answered, ready to serve.
pub enum Connection {
    /// By fuser.
    Fuse(Session<Adapter>),
    /// By rings; they serve already.
    Uring(uring::Session),
}

impl Connection {
    /// Answers the kernel's INIT on `device`, which must have been mounted.
    ///
    /// # Errors
    /// What reading or writing /dev/fuse answers.
    pub fn new(
        service: Arc<Service>,
        device: OwnedFd,
        transport: Transport,
    ) -> io::Result<Connection> {
        match transport {
            Transport::Fuse(threads) => {
                let config = session_config(threads);
                let adapter = Adapter::new(service);
                Session::from_fd(adapter, device, SessionACL::All, config).map(Connection::Fuse)
            }
            Transport::Uring(layout, buffers) => {
                let session = uring::Session::new(service, device, buffers, layout)?;
                session.handle().serve_first()?;
                Ok(Connection::Uring(session))
            }
        }
    }

    /// A connection by fuser that will be handed over by another process: its threads start and
    /// wait, and come to the muster when they are called.
    ///
    /// # Errors
    /// What socketpair(2) and the like answer.
    pub fn waiting(
        service: Arc<Service>,
        threads: u32,
        negotiated: Negotiated,
    ) -> io::Result<(Connection, Waiting, Arc<Muster>)> {
        let adapter = Adapter::new(service);
        let muster = adapter.muster(threads);
        let (session, waiting) = adopt::waiting_session(adapter, threads, negotiated)?;
        Ok((Connection::Fuse(session), waiting, muster))
    }

    /// A connection by rings that will be handed over by another process: its threads start and
    /// wait.
    ///
    /// # Errors
    /// If there can be no rings.
    pub fn waiting_by_rings(
        service: Arc<Service>,
        device: OwnedFd,
        layout: uring::Layout,
        buffers: BufferPool,
    ) -> io::Result<Connection> {
        uring::Session::new(service, device, buffers, layout).map(Connection::Uring)
    }

    /// What can be done to a connection by rings while it is served.
    #[must_use]
    pub fn handle(&self) -> Option<uring::Handle> {
        match self {
            Connection::Fuse(_) => None,
            Connection::Uring(session) => Some(session.handle()),
        }
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// What reading or writing /dev/fuse answers, other than the end of the mount.
    pub fn serve(self) -> io::Result<()> {
        match self {
            Connection::Fuse(session) => session.run(),
            Connection::Uring(session) => session.serve(),
        }
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
