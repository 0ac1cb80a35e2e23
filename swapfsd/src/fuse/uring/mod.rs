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
//! then, lest swap-ins wait for ever. A planned change of the process loses nothing: [`queue`]
//! says how the places are drained.

mod entries;
mod handshake;
mod progress;
mod queue;
mod requests;
mod wire;

pub use entries::{Layout, held_memory, possible_cpus, private_memory};
pub use handshake::shake_hands;

use super::Service;
use crate::buffer::BufferPool;
use crate::control;
use entries::{Entries, State};
use progress::Progress;
use queue::{Finished, Server, Shared};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Where the kernel says whether its FUSE may use io_uring.
pub const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// May the kernel's FUSE use io_uring? `None`: it can't at all (before 6.14, or not built in).
#[must_use]
pub fn is_enabled() -> Option<bool> {
    let text = fs::read_to_string(SWITCH).ok()?;
    Some(matches!(text.trim(), "Y" | "1"))
}

/// Steps of a session's threads: their rings are made; they have given the kernel their places.
const SERVE: u32 = 2;
/// How long the kernel may take to take all places.
const REGISTER_PATIENCE: Duration = Duration::from_secs(10);

/// A connection that is served by rings.
pub struct Session {
    threads: Vec<JoinHandle<io::Result<()>>>,
    shared: Arc<Shared>,
}

/// What can be done to a session while it is served.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Session {
    /// Starts the threads, with a ring each; they wait for [`Handle::serve`]. The places are the
    /// payloads of `buffers`.
    ///
    /// # Errors
    /// If there can be no rings.
    pub fn new(
        service: Arc<Service>,
        device: OwnedFd,
        buffers: BufferPool,
        layout: Layout,
    ) -> io::Result<Session> {
        let entries = Entries::new(buffers)
            .ok_or_else(|| io::Error::other("the buffers have no room for requests"))?;
        let finished = (0..layout.threads()).map(|_| Finished::new(layout.depth));
        let finished = finished.collect::<io::Result<_>>()?;
        let (draining, progress) = (AtomicBool::new(false), Progress::new(layout.threads()));
        let shared =
            Arc::new(Shared { service, entries, layout, device, finished, draining, progress });
        let mut threads = Vec::new();
        for number in 0..layout.threads() {
            let name = format!("queue{}.{number}", number / layout.threads_per_queue);
            let shared = Arc::clone(&shared);
            threads.push(
                thread::Builder::new().name(name).spawn(move || serve_queue(shared, number))?,
            );
        }
        if !shared.progress.wait_for_all(REGISTER_PATIENCE)? {
            return Err(io::Error::other("the rings were not made in time"));
        }
        shared.progress.begin();
        let rest = Arc::clone(&shared);
        threads.push(thread::Builder::new().name("dev-fuse".to_owned()).spawn(move || {
            let buffers = handshake::buffers();
            rest.progress.wait_for_step(SERVE);
            handshake::read_the_rest(&rest.device, &rest.service, buffers)
        })?);
        Ok(Session { threads, shared })
    }

    /// What can be done to it meanwhile.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Waits until the file system is unmounted.
    ///
    /// # Errors
    /// What the kernel answered to a thread, other than the end of the mount.
    pub fn serve(self) -> io::Result<()> {
        let ended = |thread: JoinHandle<io::Result<()>>| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        };
        let outcomes: Vec<io::Result<()>> = self.threads.into_iter().map(ended).collect();
        log::info!("unmounted");
        outcomes.into_iter().collect()
    }
}

/// Tells the supervisor whether this process may be replaced when it dies.
fn say_whether_held(held: bool) {
    if let Some(control) = control::installed() {
        control.page().holds_requests.store(u32::from(held), SeqCst);
    }
}

/// The life of a thread.
fn serve_queue(shared: Arc<Shared>, number: u32) -> io::Result<()> {
    let mut server = Server::new(Arc::clone(&shared), number)
        .inspect_err(|error| shared.progress.failed(error))?;
    // A CPU that is off has a queue too; who serves it runs anywhere.
    let _ = server.stay_on_cpu();
    shared.progress.one_more();
    shared.progress.wait_for_step(SERVE);
    server.begin().inspect_err(|error| shared.progress.failed(error))?;
    shared.progress.one_more();
    server.run()
}

impl Handle {
    /// For a connection that nobody has served yet: answers the kernel's INIT, and serves.
    ///
    /// # Errors
    /// `Unsupported` if the kernel's FUSE does not offer io_uring; if it does not take the places.
    pub fn serve_first(&self) -> io::Result<()> {
        shake_hands(&self.0.device)?;
        self.serve(State::New)
    }

    /// Serves a connection whose requests another process has held.
    ///
    /// # Errors
    /// If that process has not held them; if the kernel does not take the places.
    pub fn serve_drained(&self) -> io::Result<()> {
        self.serve(State::Drained)
    }

    fn serve(&self, expected: State) -> io::Result<()> {
        let state = &self.0.entries.shared().state;
        let (before, live) = (expected as u32, State::Live as u32);
        if state.compare_exchange(before, live, SeqCst, SeqCst).is_err() {
            return Err(io::Error::other("its requests were with a process that has died"));
        }
        say_whether_held(true);
        self.0.progress.begin();
        match self.0.progress.wait_for_all(REGISTER_PATIENCE)? {
            true => Ok(()),
            false => Err(io::Error::other("the kernel does not take the places for requests")),
        }
    }

    /// Nobody takes the held requests over: this process answers them, and serves on.
    pub fn call_off(&self) {
        if !self.0.draining.load(SeqCst) {
            return;
        }
        let state = &self.0.entries.shared().state;
        say_whether_held(true);
        let (drained, live) = (State::Drained as u32, State::Live as u32);
        let _ = state.compare_exchange(drained, live, SeqCst, SeqCst);
        self.0.draining.store(false, SeqCst);
        self.wake_all();
    }

    /// Holds all requests from now on, so that another process can go on with them. `fill` has
    /// to see to it that requests come to all places that are still empty; it waits for nothing.
    ///
    /// # Errors
    /// If that takes longer than `at_most`; then this process serves on.
    pub fn drain(
        &self,
        at_most: Duration,
        fill: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        self.0.progress.begin();
        self.0.draining.store(true, SeqCst);
        self.wake_all();
        let outcome = fill().and_then(|()| self.0.progress.wait_for_all(at_most));
        match outcome {
            Ok(true) => {
                self.0.entries.shared().state.store(State::Drained as u32, SeqCst);
                say_whether_held(false);
                Ok(())
            }
            other => {
                self.0.draining.store(false, SeqCst);
                self.wake_all();
                other?;
                Err(io::Error::other("not all requests could be held in time"))
            }
        }
    }

    /// Places of each CPU.
    #[must_use]
    pub fn places_per_queue(&self) -> u32 {
        self.0.layout.threads_per_queue * self.0.layout.depth
    }

    fn wake_all(&self) {
        for finished in &self.0.finished {
            finished.wake();
        }
    }
}
