//! The second transport: FUSE over io_uring (Linux 6.14).
//!
//! Each CPU has a queue; a few threads serve it, each with a ring and a few **entries**: places in
//! memory that one request at a time comes to, with its data. An answer is left in the same
//! place, and one command commits it and asks for the next request. So a page fault on swap
//! costs one system call here and no copy but the kernel's own, and the thread that serves it
//! runs on the CPU of the loop worker that sent it.
//!
//! What does not survive: a request that the kernel has given to a task which then dies is never
//! given to anybody else (linux/fs/fuse/dev_uring.c: an entry whose task is dead keeps it until
//! the connection ends). So a killed worker loses the volume; the supervisor ends the connection
//! then, lest swap-ins wait for ever.

mod entries;
mod handshake;
mod queue;
mod requests;
mod wire;

pub use entries::{Layout, private_memory};

use super::Service;
use crate::buffer::BufferPool;
use entries::Entries;
use queue::{Finished, Server, Shared};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// Where the kernel says whether its FUSE may use io_uring.
pub const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// May the kernel's FUSE use io_uring? `None`: it can't at all (before 6.14, or not built in).
#[must_use]
pub fn is_enabled() -> Option<bool> {
    let text = fs::read_to_string(SWITCH).ok()?;
    Some(matches!(text.trim(), "Y" | "1"))
}

/// A connection that is served by rings.
pub struct Session {
    servers: Vec<JoinHandle<io::Result<()>>>,
    rest: JoinHandle<io::Result<()>>,
}

impl Session {
    /// Answers the kernel's INIT on `device`, starts all threads, and gives the kernel their
    /// entries, which lie in the payloads of `buffers`.
    ///
    /// # Errors
    /// If the kernel's FUSE does not offer io_uring, or does not take the entries.
    pub fn start(
        service: Arc<Service>,
        device: OwnedFd,
        buffers: BufferPool,
        layout: Layout,
    ) -> io::Result<Session> {
        handshake::shake_hands(&device)?;
        let entries = Entries::new(buffers)
            .ok_or_else(|| io::Error::other("the buffers have no room for entries"))?;
        let finished = (0..layout.threads()).map(|_| Finished::new(layout.depth));
        let finished = finished.collect::<io::Result<_>>()?;
        let rest_device = device.try_clone()?;
        let shared = Arc::new(Shared { service, entries, layout, device, finished });
        let (told, ready) = mpsc::sync_channel(layout.threads() as usize);
        let mut servers = Vec::new();
        for number in 0..layout.threads() {
            let (shared, told) = (Arc::clone(&shared), told.clone());
            let name = format!("queue{}.{number}", number / layout.threads_per_queue);
            servers.push(thread::Builder::new().name(name).spawn(move || {
                let mut server = match Server::new(shared, number) {
                    Ok(server) => server,
                    Err(error) => {
                        drop(told.send(Err(io::Error::other(error.to_string()))));
                        return Err(error);
                    }
                };
                // A CPU that is not there now has a queue too; who serves it runs anywhere.
                let _ = server.stay_on_cpu();
                let registered = server.register();
                drop(told.send(registered));
                drop(told);
                server.run()
            })?);
        }
        drop(told);
        let rest = thread::Builder::new()
            .name("dev-fuse".to_owned())
            .spawn(move || handshake::read_the_rest(rest_device))?;
        for outcome in ready {
            outcome?;
        }
        Ok(Session { servers, rest })
    }

    /// Waits until the file system is unmounted.
    ///
    /// # Errors
    /// What the kernel answered to a thread, other than the end of the mount.
    pub fn serve(self) -> io::Result<()> {
        let ended = |thread: JoinHandle<io::Result<()>>| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        };
        let outcomes: Vec<io::Result<()>> =
            self.servers.into_iter().chain([self.rest]).map(ended).collect();
        log::info!("unmounted");
        outcomes.into_iter().collect()
    }
}
