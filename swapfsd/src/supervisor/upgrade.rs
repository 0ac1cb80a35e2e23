//! Another program under live swap: first the worker, then the supervisor itself.
//!
//! Who wants it (`swapfs upgrade`) connects to the door, a socket for root alone, and sends one
//! packet: the word `upgrade` and the open program. A standby of that program is started beside
//! the present one. Nothing is given up before it has said that it is ready, and that it
//! understands what the regions hold. Then the worker is killed, as by a crash, and the new
//! standby takes over; should it fail, the old standby still waits, and serves. At last the
//! supervisor executes the new program in its own place.

use super::link::{Kind, Link};
use super::{Supervisor, Worker, heard, start};
use crate::control::HANDOVER_VERSION;
use crate::sys::passing;
use crate::sys::spawn::{self, Command};
use log::{error, info, warn};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// What a client sends.
const REQUEST: &[u8] = b"upgrade";
/// How long a new program may take to be ready, and then to serve.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a client may take to say what it wants.
const GUEST_PATIENCE: Duration = Duration::from_secs(1);

/// Where upgrades are asked for: a socket for root.
#[derive(Debug)]
pub struct Door {
    listener: OwnedFd,
    path: PathBuf,
}

impl Door {
    /// Opens it; what is left of an older one is removed.
    ///
    /// # Errors
    /// If the socket can't be made there.
    pub fn open(path: &Path) -> io::Result<Door> {
        if let Some(directory) = path.parent() {
            use std::os::unix::fs::DirBuilderExt;
            match std::fs::DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        drop(std::fs::remove_file(path));
        Ok(Door { listener: passing::listen(path)?, path: path.to_owned() })
    }

    /// Somebody stands before it.
    pub(super) fn has_guest(&self) -> bool {
        spawn::readiness(self.listener.as_raw_fd()) & libc::POLLIN != 0
    }

    fn let_in(&self) -> io::Result<OwnedFd> {
        passing::accept(self.listener.as_fd())
    }

    /// Removes it.
    pub(super) fn close(self) {
        drop(std::fs::remove_file(&self.path));
        // Ours, if nobody else is in it.
        if let Some(directory) = self.path.parent() {
            drop(std::fs::remove_dir(directory));
        }
    }
}

impl AsRawFd for Door {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

/// A worker of the new program, and who asked for it.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Taken out when it begins to take over.
    worker: Option<Worker>,
    pid: libc::pid_t,
    command: Command,
    client: OwnedFd,
    /// The old worker was killed for it.
    switching: bool,
    /// The old worker was asked to hold its requests.
    draining: bool,
    deadline: Duration,
}

impl Candidate {
    pub(super) fn into_worker(self) -> Option<Worker> {
        self.worker
    }

    pub(super) fn worker(&self) -> Option<&Worker> {
        self.worker.as_ref()
    }
}

/// Tells a client something; it may have gone.
pub(super) fn say(client: &OwnedFd, text: impl fmt::Display) {
    let mut line = Line { bytes: [0; 512], len: 0 };
    let _ = fmt::write(&mut line, format_args!("{text}"));
    let _ = passing::send(client.as_fd(), &line.bytes[..line.len], &[]);
}

struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let len = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..][..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

impl Supervisor {
    /// Lets a client in and starts a worker of its program.
    pub(super) fn begin_upgrade(&mut self) {
        let Some(Ok(client)) = self.parts.door.as_ref().map(Door::let_in) else { return };
        let mut word = [0; 64];
        let waited = spawn::wait_readable(&[client.as_raw_fd()], Some(GUEST_PATIENCE));
        if !waited.is_ok_and(|ready| ready > 0) {
            return;
        }
        let Ok(mut received) = passing::receive(client.as_fd(), &mut word) else { return };
        let program = received.take_file(0);
        let Some(program) = program.filter(|_| word.starts_with(REQUEST)) else {
            return say(&client, "failed: not understood: send 'upgrade' with an open program");
        };
        if self.candidate.is_some() {
            return say(&client, "failed: another upgrade is under way");
        }
        if !self.serving.as_ref().is_some_and(|worker| worker.up) {
            return say(&client, "failed: a take-over is under way: try again in a moment");
        }
        let started = self.parts.worker.with_program(program).and_then(|command| {
            let worker = start(&command, Kind::StandBy, &self.parts.holdings)?;
            Ok((command, worker))
        });
        match started {
            Ok((command, worker)) => {
                let pid = worker.process.pid();
                say(&client, format_args!("progress: the new program is started (process {pid})"));
                info!("upgrade: worker {pid} of the new program is started");
                let deadline = super::now() + PATIENCE;
                let worker = Some(worker);
                self.candidate = Some(Candidate {
                    worker,
                    pid,
                    command,
                    client,
                    switching: false,
                    draining: false,
                    deadline,
                });
            }
            Err(error) => say(&client, format_args!("failed: the program can't be run: {error}")),
        }
    }

    /// Looks after an upgrade that is under way.
    pub(super) fn hear_candidate(&mut self) {
        let Some(candidate) = &mut self.candidate else { return };
        let late = super::now() > candidate.deadline;
        let Some(worker) = &mut candidate.worker else {
            // It is taking over; its death is seen like any other worker's.
            if late && let Some(worker) = self.serving.as_ref().filter(|worker| !worker.up) {
                worker.process.kill();
            }
            return;
        };
        // One that waits until requests are held is as late as the old worker, which says so.
        let late = late && !candidate.draining;
        let mut why: Option<&str> = late.then_some("it was not ready in time");
        let mut words = [0; 256];
        let mut words_len = 0;
        while let Some(packet) = heard(worker) {
            match packet.kind() {
                Some(Kind::Ready) if packet.payload() == HANDOVER_VERSION.to_le_bytes() => {
                    worker.up = true;
                }
                Some(Kind::Ready) => {
                    why = Some("it keeps pages in another way: this needs swapoff and swapon");
                }
                Some(Kind::Failed) => {
                    words_len = packet.payload().len().min(words.len());
                    words[..words_len].copy_from_slice(&packet.payload()[..words_len]);
                }
                _ => {}
            }
        }
        if words_len > 0 {
            why = Some(std::str::from_utf8(&words[..words_len]).unwrap_or("it failed"));
        }
        if worker.process.ended().is_some() {
            why = why.or(Some("it ended before it was ready: is it swapfs?"));
        }
        if let Some(why) = why {
            // Its remains are cleared away with those of others.
            worker.process.kill();
            warn!("upgrade refused: {why}");
            say(&candidate.client, format_args!("failed: the new program is not used: {why}"));
            self.candidate = None;
            return;
        }
        let serves = self.serving.as_ref().filter(|serving| serving.up);
        if worker.up
            && !candidate.switching
            && let Some(serving) = serves
        {
            candidate.deadline = super::now() + PATIENCE;
            if self.parts.abort.is_none() {
                say(&candidate.client, "progress: it is ready, and takes over");
                candidate.switching = true;
                // As by a crash: what it has not answered comes again.
                serving.process.kill();
            } else if !candidate.draining {
                say(&candidate.client, "progress: it is ready; requests are held for it");
                candidate.draining = true;
                if let Err(error) = serving.link.say(Kind::Drain, &[]) {
                    error!("upgrade: the worker can't be asked to hold requests: {error}");
                    self.upgrade_not_drained(b"it can't be asked to hold requests");
                }
            }
        }
    }

    /// All requests are held: the old worker has nothing left to do.
    pub(super) fn kill_drained(&mut self) {
        let Some(serving) = &self.serving else { return };
        let asked = |candidate: &&mut Candidate| {
            candidate.draining && candidate.worker.as_ref().is_some_and(|worker| worker.up)
        };
        let Some(candidate) = self.candidate.as_mut().filter(asked) else {
            // The new program has ended meanwhile.
            if let Err(error) = serving.link.say(Kind::GoOn, &[]) {
                error!("the worker can't be told to go on: {error}");
            }
            return;
        };
        say(&candidate.client, "progress: it takes over");
        candidate.switching = true;
        candidate.deadline = super::now() + PATIENCE;
        serving.process.kill();
    }

    /// The old worker could not hold all requests, and serves on.
    pub(super) fn upgrade_not_drained(&mut self, why: &[u8]) {
        let Some(candidate) = self.candidate.take() else { return };
        let why = std::str::from_utf8(why).unwrap_or("(not text)");
        warn!("upgrade refused: {why}");
        say(&candidate.client, format_args!("failed: the old program serves on: {why}"));
        if let Some(worker) = candidate.into_worker() {
            worker.process.kill();
        }
    }

    /// Was a worker killed in favour of a new program?
    pub(super) fn is_switching(&self) -> bool {
        self.candidate.as_ref().is_some_and(|candidate| candidate.switching)
    }

    /// The one to take over, if it is a new program's turn.
    pub(super) fn take_candidate(&mut self) -> Option<Worker> {
        let candidate = self.candidate.as_mut().filter(|candidate| candidate.switching)?;
        candidate.worker.take()
    }

    /// The new program's worker died before it served: the old program goes on.
    pub(super) fn roll_back_after(&mut self, pid: libc::pid_t, ended: impl fmt::Display) {
        let failed = |candidate: &mut Candidate| candidate.switching && candidate.pid == pid;
        if let Some(candidate) = self.candidate.take_if(failed) {
            error!("upgrade: the new worker {pid} {ended}: the old program goes on");
            let text = format_args!(
                "failed: the new program {ended} while it took over: the old one serves again"
            );
            say(&candidate.client, text);
        }
    }

    /// The new program's worker has died before it was told to take over, or while it did.
    pub(super) fn roll_back_dead(&mut self) {
        let dead = |candidate: &mut Candidate| candidate.switching && candidate.worker.is_none();
        if let Some(candidate) = self.candidate.take_if(dead) {
            error!("upgrade: the new worker {} has ended: the old program goes on", candidate.pid);
            say(&candidate.client, "failed: the new program has ended: the old one serves again");
        }
    }

    /// The new program's worker serves: its program is the program now.
    pub(super) fn upgraded_worker_serves(&mut self) {
        let serving = self.serving.as_ref().map(|worker| worker.process.pid());
        let done =
            |candidate: &mut Candidate| candidate.switching && serving == Some(candidate.pid);
        let Some(candidate) = self.candidate.take_if(done) else { return };
        self.parts.control.page().upgrades.fetch_add(1, Relaxed);
        self.parts.worker = candidate.command;
        if let Some(old) = self.standby.take() {
            old.process.kill();
        }
        info!("upgrade: the new worker serves");
        let error = self.execute_new(&candidate.client);
        error!("upgrade: the supervisor remains the old program: {error}");
        say(
            &candidate.client,
            format_args!(
                "done: the new worker serves; the supervisor remains the old one: {error}"
            ),
        );
    }

    /// Becomes the new program; everything goes through a socket pair to itself.
    fn execute_new(&mut self, client: &OwnedFd) -> io::Error {
        let Some(serving) = &self.serving else { return io::ErrorKind::NotFound.into() };
        let attempt = || -> io::Result<io::Error> {
            let (ours, theirs) = Link::pair()?;
            let pid = serving.process.pid().to_le_bytes();
            let further = [Some(serving.link.as_raw_fd()), Some(client.as_raw_fd())];
            ours.hand_over_with(Kind::Resume, &pid, &self.parts.holdings, further)?;
            let program: File = self.parts.worker.program().try_clone()?;
            let command = self.parts.supervisor.with_program(program)?;
            let command = command.with_link(theirs.as_raw_fd())?;
            spawn::set_close_on_exec(theirs.as_raw_fd(), false)?;
            Ok(spawn::execute(&command))
        };
        attempt().unwrap_or_else(|error| error)
    }
}
