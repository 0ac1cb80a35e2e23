//! The control socket: a thread that listens, and one for each client. None of them is on the I/O
//! path, and all are ordinary tasks.

use super::{Done, MAX_LINE_BYTES, Reply, Request, in_use};
use crate::backend::TierReport;
use crate::sys::event::EventFd;
use crate::sys::{passing, process, spawn};
use crate::volume::Volume;
use log::{error, warn};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// Clients at once.
const MAX_CLIENTS: usize = 8;
/// How long a client may take to send its request, and then to take each reply.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nobody is let in after that has failed: most likely for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The server of one volume. Dropping it closes the socket and removes it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: Arc<EventFd>,
    listening: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Listens at `path` for `volume`, whose swap file is `swapfile`. `None`: its back end has
    /// nothing that could be changed.
    ///
    /// # Errors
    /// If the socket can't be made, or no thread started.
    pub fn start(
        path: &Path,
        volume: Arc<Volume>,
        swapfile: PathBuf,
    ) -> io::Result<Option<Server>> {
        Server::start_with(path, volume, swapfile, PATIENCE)
    }

    pub(super) fn start_with(
        path: &Path,
        volume: Arc<Volume>,
        swapfile: PathBuf,
        patience: Duration,
    ) -> io::Result<Option<Server>> {
        if volume.administration().is_none() {
            return Ok(None);
        }
        if let Some(directory) = path.parent() {
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        // What a predecessor has left, which nobody listens at.
        drop(fs::remove_file(path));
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(EventFd::new()?);
        let desk = Arc::new(Desk { volume, swapfile, patience, clients: AtomicUsize::new(0) });
        let listening = thread::Builder::new().name("admin".to_owned()).spawn({
            let stop = Arc::clone(&stop);
            move || {
                process::stay_ordinary();
                listen(&listener, &stop, &desk);
            }
        })?;
        Ok(Some(Server { path: path.to_owned(), stop, listening: Some(listening) }))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.signal();
        drop(self.listening.take().map(thread::JoinHandle::join));
        drop(fs::remove_file(&self.path));
        // Ours, if nobody else is in it.
        if let Some(directory) = self.path.parent() {
            drop(fs::remove_dir(directory));
        }
    }
}

fn listen(listener: &UnixListener, stop: &EventFd, desk: &Arc<Desk>) {
    loop {
        let _ = spawn::wait_readable(&[listener.as_raw_fd(), stop.as_raw_fd()], None);
        if spawn::readiness(stop.as_raw_fd()) & libc::POLLIN != 0 {
            return;
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                error!("the control socket: {error}");
                thread::sleep(PAUSE);
                continue;
            }
        };
        if passing::peer_user(stream.as_fd()) != Some(0) {
            refuse(&stream, "not root: the administration is for root: try again with sudo");
            continue;
        }
        let client = Client::enter(desk);
        if desk.clients.load(SeqCst) > MAX_CLIENTS {
            refuse(&stream, "too many clients at once: others are served: try again in a moment");
            continue;
        }
        // It is an ordinary task as this one is.
        let started = thread::Builder::new()
            .name("admin-client".to_owned())
            .spawn(move || client.serve(&stream));
        if let Err(error) = started {
            warn!("a client of the control socket is not served: no thread: {error}");
        }
    }
}

fn refuse(stream: &UnixStream, why: &str) {
    drop(stream.set_nonblocking(true));
    send(stream, &Reply::Error { message: why.to_owned() });
}

/// Sends a line. False: the client is gone, or takes nothing.
fn send(mut stream: &UnixStream, reply: &Reply) -> bool {
    stream.write_all(reply.to_line().as_bytes()).is_ok()
}

/// What all clients have in common.
#[derive(Debug)]
struct Desk {
    volume: Arc<Volume>,
    swapfile: PathBuf,
    patience: Duration,
    clients: AtomicUsize,
}

/// One of the clients that are there.
struct Client(Arc<Desk>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, SeqCst);
    }
}

impl Client {
    fn enter(desk: &Arc<Desk>) -> Client {
        desk.clients.fetch_add(1, SeqCst);
        Client(Arc::clone(desk))
    }

    fn serve(&self, stream: &UnixStream) {
        let desk = &self.0;
        let line = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_write_timeout(Some(desk.patience)))
            .map_err(|error| format!("control socket: {error}: try again"))
            .and_then(|()| read_line(stream, desk.patience));
        let outcome = match line {
            // It has not asked for anything.
            Ok(line) if line.is_empty() => return,
            Ok(line) => desk.answer(&line, &mut |reply| send(stream, &reply)),
            Err(why) => Err(why),
        };
        send(stream, &outcome.unwrap_or_else(|message| Reply::Error { message }));
    }
}

impl Desk {
    fn answer(&self, line: &[u8], reply: &mut dyn FnMut(Reply) -> bool) -> Result<Reply, String> {
        let request = Request::from_line(line)?;
        let Some(administration) = self.volume.administration() else {
            return Err("this volume has no tiers: nothing can be changed".to_owned());
        };
        match request {
            Request::Tiers => self.tiers(),
            Request::Drop => self.forget_all(),
            _ => administration.handle(&request, reply),
        }
    }

    /// The failsafe. Swap may come on at any time: so it is looked for once no page can come.
    fn forget_all(&self) -> Result<Reply, String> {
        let mut area = None;
        let dropped = self.volume.forget_all(|| {
            area = in_use::swap_on(&self.swapfile)
                .unwrap_or_else(|error| Some(format!("something, maybe ({error}),")));
            area.is_none()
        });
        match (dropped, area) {
            (None, area) => {
                let area = area.unwrap_or_default();
                Err(format!(
                    "drop: {area} is swap on this volume, and pages would be lost: swapoff first"
                ))
            }
            (Some(Err(error)), _) => Err(format!("drop: {error}: unmount the volume instead")),
            (Some(Ok(())), _) => Ok(Reply::Done(Done::default())),
        }
    }

    fn tiers(&self) -> Result<Reply, String> {
        let broken = |error: serde_json::Error| format!("tiers: {error}: this is a bug");
        let mut tiers = Ok(Vec::new());
        self.volume.tiers(&mut |tier: &TierReport<'_>| {
            let value = serde_json::to_value(tier);
            match (&mut tiers, value) {
                (Ok(tiers), Ok(value)) => tiers.push(value),
                (Ok(_), Err(error)) => tiers = Err(broken(error)),
                (Err(_), _) => {}
            }
        });
        let evacuation = serde_json::to_value(self.volume.evacuation()).map_err(broken)?;
        let (tiers, evacuation) = (Some(tiers?), Some(evacuation));
        Ok(Reply::Done(Done { tiers, evacuation, ..Done::default() }))
    }
}

/// The first line that comes, without its end; empty if the client closes before it sends one.
fn read_line(mut stream: &UnixStream, patience: Duration) -> Result<Vec<u8>, String> {
    let late = || "request: it did not come in time: send one line".to_owned();
    let deadline = Instant::now() + patience;
    let mut line = Vec::new();
    let mut part = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        let read = stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut part));
        let count = match read {
            Ok(0) => return Ok(line),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(error) => return Err(format!("request: {error}: try again")),
        };
        let end = part[..count].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&part[..end.unwrap_or(count)]);
        if line.len() > MAX_LINE_BYTES {
            return Err(format!(
                "request: longer than {MAX_LINE_BYTES} bytes: that is no request that there is"
            ));
        }
        if end.is_some() {
            return Ok(line);
        }
    }
}
