//! The supervisor: a small process of one thread that holds everything which must outlive the
//! worker, watches the worker, and has a standby take over when it dies or hangs.
//!
//! ```text
//!   supervisor ---- holds: /dev/fuse, image and members (locked), regions of memory, control page
//!     |     \
//!   worker   standby      both have the same descriptors, by SCM_RIGHTS, and the same memory
//!   serves   waits
//! ```
//!
//! It knows nothing of pages and back ends. While it watches it allocates nothing, and it waits
//! for nobody: packets are sent without waiting, workers are waited for by poll(2). If it dies
//! itself, the worker goes on and starts a new one (`daemon/worker.rs`), which adopts everything.

pub mod backoff;
pub mod link;
pub mod members;
pub mod store;
mod succession;
pub mod upgrade;
pub mod watchdog;

use crate::control::Control;
use crate::protect::OwnCgroup;
use crate::seat::Seat;
use crate::sys::alloc::{IoPath, io_path_allocations};
use crate::sys::mount::Abort;
use crate::sys::spawn::{self, Command, MAX_POLLED, Process};
use backoff::Backoff;
use link::{Holdings, Kind, Link, Packet};
use log::{error, info, warn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;
use upgrade::Door;
use watchdog::{Signs, Watchdog};

/// How often it looks whether the worker hangs.
const TICK: Duration = Duration::from_millis(500);
/// How long a standby that does not come up is given before the next try, at first and at most.
const STANDBY_RETRY: Duration = Duration::from_millis(100);
const STANDBY_RETRY_MOST: Duration = Duration::from_secs(10);

/// A process that serves, or waits to.
#[derive(Debug)]
struct Worker {
    process: Process,
    link: Link,
    /// It has closed its end, and its end is near: there is nothing to be heard any more.
    mute: bool,
    /// It has said that it is ready, or serves.
    up: bool,
    /// Since when it has had its present role.
    since_ns: u64,
}

/// How it ended for the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Unmounted.
    Unmounted,
    /// The first worker did not come up, or the last one failed at the end; its text is kept.
    Failed,
    /// A process that this one has not started serves, and has a supervisor of its own.
    Superseded,
}

/// The text of a failure, without an allocation.
#[derive(Debug)]
struct Text {
    bytes: [u8; link::PACKET_BYTES],
    len: usize,
}

impl Text {
    fn set(&mut self, bytes: &[u8]) {
        self.len = bytes.len().min(self.bytes.len());
        self.bytes[..self.len].copy_from_slice(&bytes[..self.len]);
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or("(not text)")
    }
}

/// What a supervisor is made of.
#[derive(Debug)]
pub struct Parts {
    /// What it holds.
    pub holdings: Holdings,
    /// The role of supervisor, taken.
    pub seat: Seat,
    /// The control page, mapped.
    pub control: &'static Control,
    /// How workers are started.
    pub worker: Command,
    /// How this process would be started anew, by an upgrade.
    pub supervisor: Command,
    /// After how long a worker hangs; zero: never.
    pub watchdog: Duration,
    /// The transport does not survive a worker's death: how the connection is ended then. A worker
    /// is only replaced when it has drained.
    pub abort: Option<Abort>,
    /// Where upgrades are asked for.
    pub door: Option<Door>,
    /// Removed at the end.
    pub cgroup: Option<OwnCgroup>,
}

/// The supervisor.
#[derive(Debug)]
pub struct Supervisor {
    parts: Parts,
    signals: OwnedFd,
    serving: Option<Worker>,
    standby: Option<Worker>,
    candidate: Option<upgrade::Candidate>,
    change: members::Change,
    watchdog: Watchdog,
    backoff: Backoff,
    /// The death that has not been made up for yet.
    died_ns: Option<u64>,
    /// When the next worker may take over, after a crash.
    not_before_ns: u64,
    standby_retry: Duration,
    standby_at_ns: u64,
    /// Someone has served before.
    has_served: bool,
    /// A request of the kernel's may have been answered: from now on the volume is guarded.
    may_have_answered: bool,
    /// Workers that died before anybody has served.
    deaths_at_start: u32,
    /// A request to end that came while nobody served.
    pending_signal: Option<i32>,
    end: Option<End>,
    failure: Text,
    /// Who has been seen to serve, and the last one that has ended: they are not strangers.
    known: [libc::pid_t; 2],
}

impl Supervisor {
    /// Prepares to watch: this process is the supervisor from now on.
    ///
    /// # Errors
    /// If signals can't be had by descriptor.
    pub fn new(parts: Parts) -> io::Result<Supervisor> {
        let signals = spawn::signal_descriptor(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
        spawn::adopt_orphans();
        // Remembered now: later it would take memory.
        let _ = store::socket();
        let page = parts.control.page();
        page.supervisor_pid.store(std::process::id(), SeqCst);
        let known = [page.worker_pid.load(SeqCst) as libc::pid_t; 2];
        Ok(Supervisor {
            known,
            watchdog: Watchdog::new(parts.watchdog),
            parts,
            signals,
            serving: None,
            standby: None,
            candidate: None,
            change: members::Change::default(),
            backoff: Backoff::default(),
            died_ns: None,
            not_before_ns: 0,
            standby_retry: Duration::ZERO,
            standby_at_ns: 0,
            has_served: false,
            may_have_answered: false,
            deaths_at_start: 0,
            pending_signal: None,
            end: None,
            failure: Text { bytes: [0; link::PACKET_BYTES], len: 0 },
        })
    }

    /// Starts the first worker of a mount that nobody has served yet, and waits until it does.
    ///
    /// # Errors
    /// Its own words, if it does not come up.
    pub fn start_first(&mut self) -> Result<(), String> {
        let started = self.start_worker(Kind::ServeFirst);
        self.serving = Some(started.map_err(|error| format!("starting a worker: {error}"))?);
        self.watchdog.restart(now());
        while !self.has_served && self.end.is_none() {
            self.step();
        }
        if self.end.is_some()
            && let Some(door) = self.parts.door.take()
        {
            door.close();
        }
        match self.end {
            Some(_) if self.failure.len > 0 => Err(self.failure.as_str().to_owned()),
            Some(_) => Err("the worker died before it served; see the kernel's log".to_owned()),
            None => Ok(()),
        }
    }

    /// Gives the service manager copies of what is held, if there is one.
    pub fn deposit(&self) {
        if let Err(error) = store::deposit(&self.parts.holdings) {
            warn!("the service manager's descriptor store: {error}");
        }
    }

    /// Goes on with a worker that serves: after an upgrade, or after the death of the supervisor
    /// before this one. `None`: it has died too, or never was; a new one takes over.
    pub fn adopt(&mut self, pid: libc::pid_t, link: Option<Link>) {
        (self.has_served, self.may_have_answered) = (true, true);
        self.known[1] = pid;
        self.watchdog.restart(now());
        match (Process::open(pid), link) {
            (Ok(process), Some(link)) if pid != 0 => {
                let since_ns = spawn::boot_time_ns();
                self.serving = Some(Worker { process, link, mute: false, up: true, since_ns });
            }
            _ => self.replace(spawn::boot_time_ns()),
        }
    }

    /// The one who asked for the upgrade that this process is the result of.
    pub fn tell_upgraded(&mut self, client: Option<OwnedFd>) {
        if let Some(client) = client {
            upgrade::say(&client, "done: worker and supervisor are the new program");
        }
    }

    /// Watches until the volume is unmounted.
    ///
    /// # Errors
    /// What the last worker said of its end.
    pub fn watch(mut self) -> Result<(), String> {
        {
            let _no_allocation = IoPath::enter();
            while self.end.is_none() {
                self.step();
                let page = self.parts.control.page();
                page.supervisor_allocations.store(io_path_allocations(), Relaxed);
            }
        }
        if self.end == Some(End::Superseded) {
            // The other one has the worker, and will have the door and the cgroup.
            self.dismiss_all();
            self.leave();
            return Ok(());
        }
        if let Some(worker) = self.serving.take() {
            // It has said its last word, and has only to end.
            while worker.process.wait(TICK).is_none() {}
        }
        self.dismiss_all();
        self.parts.control.page().supervisor_pid.store(0, Relaxed);
        if let Some(door) = self.parts.door.take() {
            door.close();
        }
        match self.end {
            Some(End::Failed) => Err(self.failure.as_str().to_owned()),
            _ => Ok(()),
        }
    }

    /// Gives the role up for another supervisor, and leaves it the cgroup too.
    pub fn leave(mut self) {
        let own = std::process::id();
        let page = self.parts.control.page();
        let _ = page.supervisor_pid.compare_exchange(own, 0, SeqCst, SeqCst);
        std::mem::forget(self.parts.cgroup.take());
    }

    /// Ends those that wait.
    fn dismiss_all(&mut self) {
        let waiting = self.candidate.take().and_then(upgrade::Candidate::into_worker);
        for worker in [self.standby.take(), waiting].into_iter().flatten() {
            worker.process.kill();
            let _ = worker.process.wait(Duration::from_secs(10));
        }
        if self.serving.is_none() {
            spawn::reap_all(Duration::from_secs(5));
        }
    }

    /// Waits for something to happen, and deals with it.
    fn step(&mut self) {
        let mut polled = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; MAX_POLLED];
        let candidate = self.candidate.as_ref().and_then(upgrade::Candidate::worker);
        let workers = [self.serving.as_ref(), self.standby.as_ref(), candidate];
        let descriptors = workers.into_iter().flat_map(|worker| {
            let Some(worker) = worker else { return [-1, -1] };
            // A closed link is always ready: waiting for it would be spinning.
            let link = if worker.mute { -1 } else { worker.link.as_raw_fd() };
            [worker.process.as_raw_fd(), link]
        });
        let others: [RawFd; 3] = [
            self.signals.as_raw_fd(),
            self.parts.door.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            self.change.dismissed().map_or(-1, |worker| worker.process.as_raw_fd()),
        ];
        for (entry, descriptor) in polled.iter_mut().zip(descriptors.chain(others)) {
            entry.fd = descriptor;
        }
        let ready = spawn::poll(&mut polled, Some(self.time_to_wait()));
        if let Err(error) = ready {
            error!("poll: {error}");
            std::thread::sleep(TICK);
        }
        // Everything is looked at, whatever the poll said: that is a few system calls.
        self.hear_serving();
        self.hear_standby();
        self.hear_candidate();
        self.answer_change();
        self.look_for_death();
        if self.end.is_some() {
            return;
        }
        if self.is_superseded() {
            warn!("a worker of another supervisor's serves: this one ends");
            self.end = Some(End::Superseded);
            return;
        }
        self.look_for_hang();
        self.keep_standby();
        self.bury_companions();
        while let Some(signal) = spawn::next_signal(&self.signals) {
            self.forward(signal);
        }
        if self.parts.door.as_ref().is_some_and(|door| polled[7].revents != 0 && door.has_guest()) {
            self.begin_upgrade();
        }
    }

    /// A standby whose supervisor had died serves, since it found none: its own supervisor waits
    /// for this one's role.
    fn is_superseded(&mut self) -> bool {
        let serves = self.parts.control.page().worker_pid.load(SeqCst) as libc::pid_t;
        let pid = |worker: &Worker| worker.process.pid();
        let candidate = self.candidate.as_ref().and_then(upgrade::Candidate::worker);
        let own = [self.serving.as_ref(), self.standby.as_ref(), candidate];
        if own.into_iter().flatten().any(|worker| pid(worker) == serves) {
            self.known[0] = serves;
        }
        serves != 0 && !self.known.contains(&serves)
    }

    fn time_to_wait(&self) -> Duration {
        let now_ns = spawn::boot_time_ns();
        let mut wait = TICK;
        if self.died_ns.is_some() && self.serving.is_none() {
            wait = wait.min(Duration::from_nanos(self.not_before_ns.saturating_sub(now_ns)));
        }
        if self.standby.is_none() && self.parts.abort.is_none() && self.is_settled() {
            wait = wait.min(Duration::from_nanos(self.standby_at_ns.saturating_sub(now_ns)));
        }
        // Until someone serves there is nothing to be kept ready.
        if self.may_have_answered { wait } else { TICK }
    }

    fn start_worker(&self, role: Kind) -> io::Result<Worker> {
        start(&self.parts.worker, role, &self.parts.holdings)
    }

    /// Reads what the serving worker has to say.
    fn hear_serving(&mut self) {
        while let Some(packet) = self.serving.as_mut().and_then(heard) {
            match packet.kind() {
                Some(Kind::Connected) => self.may_have_answered = true,
                Some(Kind::Serving) => self.now_serving(),
                Some(Kind::Ended) => self.end = Some(End::Unmounted),
                Some(Kind::Drained) => self.kill_drained(),
                Some(Kind::NotDrained) => self.upgrade_not_drained(packet.payload()),
                Some(Kind::HoldMember) => self.hold_member(packet),
                Some(Kind::ForgetMember) => self.forget_member(&packet),
                Some(Kind::Failed) => {
                    self.failure.set(packet.payload());
                    if self.has_served {
                        error!("the worker says: {}", self.failure.as_str());
                    }
                }
                _ => {}
            }
        }
    }

    fn now_serving(&mut self) {
        (self.has_served, self.may_have_answered) = (true, true);
        self.failure.len = 0;
        let Some(worker) = &mut self.serving else { return };
        if let Some(signal) = self.pending_signal.take() {
            worker.process.signal(signal);
        }
        worker.up = true;
        worker.since_ns = spawn::boot_time_ns();
        let page = self.parts.control.page();
        if let Some(died_ns) = self.died_ns.take() {
            let pause_us = worker.since_ns.saturating_sub(died_ns) / 1000;
            page.last_pause_us.store(pause_us, Relaxed);
            page.longest_pause_us.fetch_max(pause_us, Relaxed);
            let pid = worker.process.pid();
            info!(
                "worker {pid} serves; nobody did for {}.{:03} ms",
                pause_us / 1000,
                pause_us % 1000
            );
        }
        self.watchdog.restart(now());
        self.upgraded_worker_serves();
    }

    fn hear_standby(&mut self) {
        let Some(worker) = &mut self.standby else { return };
        while let Some(packet) = heard(worker) {
            match packet.kind() {
                Some(Kind::Ready) => {
                    worker.up = true;
                    self.standby_retry = Duration::ZERO;
                }
                Some(Kind::Failed) => {
                    let text = std::str::from_utf8(packet.payload()).unwrap_or("(not text)");
                    error!("the standby says: {text}");
                }
                _ => {}
            }
        }
        if let Some(ended) = worker.process.ended() {
            warn!("standby {} {ended}; another one is started", worker.process.pid());
            self.lose_standby();
        }
    }

    fn lose_standby(&mut self) {
        self.standby = None;
        self.parts.control.page().standby_pid.store(0, Relaxed);
        self.standby_at_ns = spawn::boot_time_ns() + self.standby_retry.as_nanos() as u64;
        self.standby_retry = (self.standby_retry * 2).clamp(STANDBY_RETRY, STANDBY_RETRY_MOST);
    }

    /// Somebody serves.
    fn is_settled(&self) -> bool {
        self.serving.as_ref().is_some_and(|worker| worker.up)
    }

    /// Someone has to wait, as soon as someone serves.
    fn keep_standby(&mut self) {
        // Where nobody can take over, nobody needs to wait.
        if self.parts.abort.is_some()
            || !self.is_settled()
            || self.standby.is_some()
            || spawn::boot_time_ns() < self.standby_at_ns
        {
            return;
        }
        match self.start_worker(Kind::StandBy) {
            Ok(worker) => {
                let page = self.parts.control.page();
                page.standby_pid.store(worker.process.pid() as u32, Relaxed);
                self.standby = Some(worker);
            }
            Err(error) => {
                error!("starting a standby: {error}");
                self.lose_standby();
            }
        }
    }

    fn look_for_hang(&mut self) {
        let Some(worker) = &self.serving else { return };
        let page = self.parts.control.page();
        let unread = spawn::readiness(self.parts.holdings.fuse.as_raw_fd()) & libc::POLLIN != 0;
        let signs = Signs {
            heartbeat: page.heartbeat.load(Relaxed),
            oldest: Duration::from_millis(page.oldest_ms.load(Relaxed)),
            in_device: page.in_device.load(Relaxed),
            unread,
            done: page.done.load(Relaxed),
        };
        if let Some(hang) = self.watchdog.look(now(), signs, worker.up) {
            let pid = worker.process.pid();
            error!("worker {pid} hangs: {hang}: it is killed and replaced");
            page.hangs.fetch_add(1, Relaxed);
            worker.process.kill();
            self.watchdog.restart(now());
        }
    }

    /// What dead workers leave: see [`crate::sys::address_space`].
    fn bury_companions(&self) {
        let candidate = self.candidate.as_ref().and_then(upgrade::Candidate::worker);
        let dismissed = self.change.dismissed();
        let workers = [self.serving.as_ref(), self.standby.as_ref(), candidate, dismissed];
        spawn::reap_others(&workers.map(|worker| worker.map_or(0, |worker| worker.process.pid())));
    }

    /// The worker is the one that can unmount: it answers what the kernel may ask meanwhile.
    fn forward(&mut self, signal: i32) {
        if signal == libc::SIGHUP {
            return;
        }
        if !self.has_served {
            self.failure.set(b"told to end before it served");
            self.end = Some(End::Failed);
            return;
        }
        match &self.serving {
            Some(worker) if worker.up => worker.process.signal(signal),
            // For the next one.
            _ => self.pending_signal = Some(signal),
        }
    }
}

/// For the watchdog: that the machine sleeps is no hang.
fn now() -> Duration {
    spawn::running_time()
}

/// Starts a worker and gives it its role.
fn start(command: &Command, role: Kind, holdings: &Holdings) -> io::Result<Worker> {
    let (ours, theirs) = Link::pair()?;
    let process = command.start(theirs.as_fd())?;
    let given = ours.hand_over(role, holdings);
    if let Err(error) = given {
        process.kill();
        return Err(error);
    }
    Ok(Worker { process, link: ours, mute: false, up: false, since_ns: spawn::boot_time_ns() })
}

/// The next packet, if one has come.
fn heard(worker: &mut Worker) -> Option<Packet> {
    if worker.mute || spawn::readiness(worker.link.as_raw_fd()) & libc::POLLIN == 0 {
        return None;
    }
    let packet = worker.link.next().ok().flatten();
    worker.mute = packet.is_none();
    packet
}
