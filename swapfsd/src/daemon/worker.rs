//! The process that serves, or waits to: everything but the supervisor.

mod guard;
mod keeper;
mod standby;

use super::open::{buffers_for, options_of, transport_of};
use super::serve::{administer, awake_of, populate, spawn, stop_on_signal, watch_for_full};
use super::{Arguments, StartError, knock, start_logging};
use crate::admin::server::Server;
use crate::backend::registry;
use crate::control::{self, Control, Page};
use crate::crash::Point;
use crate::fuse::adopt::Waiting;
use crate::fuse::uring::{self, held_memory};
use crate::fuse::{Connection, Service, Transport};
use crate::held::Held;
use crate::image::Image;
use crate::overfull::Overfull;
use crate::protect::{self, Protection};
use crate::reserve::Reserve;
use crate::seat::{Role, Seat};
use crate::stats::json::Identity;
use crate::supervisor::link::{Holdings, Kind, Link};
use crate::sys::address_space::{self, Companion};
use crate::sys::event::EventFd;
use crate::sys::spawn as processes;
use crate::sys::{pin, process};
use crate::volume::Volume;
use crate::{crash, logging, trace};
use guard::Guard;
use keeper::LinkKeeper;
use log::{error, info, warn};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use swapfs_format::superblock::Superblock;
use swapfs_format::types::TypedOptions;

/// How often the worker shows that it lives.
const BEAT: Duration = Duration::from_millis(100);
/// How long the predecessor's lock may outlive its process.
const SEAT_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take until there is a request in every place: all requests wait meanwhile.
const DRAIN_PATIENCE: Duration = Duration::from_secs(3);
/// How long after the death of a new supervisor the next one is started, at first and at most.
const SUPERVISOR_RETRY: Duration = Duration::from_secs(1);
const SUPERVISOR_RETRY_MOST: Duration = Duration::from_secs(60);

/// Serves, or waits to, as the supervisor behind descriptor `link` says.
pub(super) fn run(arguments: &Arguments, link: i32) -> Result<(), StartError> {
    processes::name_process(c"swapfsd-worker");
    start_logging(arguments.log_target());
    logging::set_subject(&arguments.image.display().to_string());
    die_of_panics();
    process::die_quickly();
    let link = processes::inherited(link).map_err(|error| StartError::new("the link", error))?;
    let link = Link::from_descriptor(link);
    let outcome = serve_for(arguments, &link);
    trace::finish();
    logging::flush();
    if let Err(error) = &outcome {
        drop(link.say(Kind::Failed, error.to_string().as_bytes()));
    }
    outcome
}

/// A thread that panics leaves its request without an answer, for ever. A process that dies leaves
/// it to its successor. One that is caught where it may happen leaves none.
pub(super) fn die_of_panics() {
    // Not the usual hook, which writes to standard error: its reader may be swapped out.
    std::panic::set_hook(Box::new(|information| {
        error!("{information}");
        if process::catches_panics() {
            return;
        }
        logging::flush_for(Duration::from_millis(100));
        std::process::abort();
    }));
}

fn serve_for(arguments: &Arguments, link: &Link) -> Result<(), StartError> {
    let broken = |error: io::Error| StartError::new("the link", error);
    // Its supervisor has gone before it said anything: nobody needs this process.
    let Some(mut packet) = link.next().map_err(broken)? else { return Ok(()) };
    let role = packet.kind();
    let holdings = packet.holdings();
    let holdings =
        holdings.ok_or_else(|| StartError::new("the link", "nothing was handed over"))?;
    let is_first = role == Some(Kind::ServeFirst);
    let mut worker = Worker::new(arguments, holdings, is_first, link)?;
    if is_first {
        worker.serve_first(arguments, link)?;
        crash::pass(Point::DaemonUnannounced);
    } else if !worker.wait_for_turn(link)? {
        // Dropping would wait for threads that have nothing to do.
        logging::flush();
        std::process::exit(0);
    }
    // Before anybody sends one: the default would be to die.
    let signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|error| StartError::new("signal handlers", error))?;
    let mountpoint = arguments.mountpoint.clone();
    spawn("signals", move || stop_on_signal(signals, &mountpoint))?;
    // Nobody there to hear it: then the worker finds itself someone, below.
    drop(link.say(Kind::Serving, &[]));
    worker.serve(arguments, link)
}

/// Everything that serves, or is about to.
struct Worker {
    keeper: Arc<LinkKeeper>,
    /// Another descriptor of the connection to the kernel.
    fuse: File,
    image: PathBuf,
    mountpoint: PathBuf,
    page: &'static Page,
    superblock: Superblock,
    options: TypedOptions,
    protection: Protection,
    volume: Arc<Volume>,
    threads: u32,
    /// Of a standby: what lets its session start.
    waiting: Option<Waiting>,
    service: Arc<Service>,
    transport: Transport,
    /// Of a session by rings.
    rings: Option<uring::Handle>,
    session: Option<thread::JoinHandle<io::Result<()>>>,
    session_ended: Arc<EventFd>,
    beating: Arc<AtomicBool>,
    _companion: Option<Companion>,
    seat: Seat,
    admin: Option<Server>,
}

impl Worker {
    fn new(
        arguments: &Arguments,
        holdings: Holdings,
        is_first: bool,
        link: &Link,
    ) -> Result<Worker, StartError> {
        let system = |what: &'static str| move |error: io::Error| StartError::new(what, error);
        let copy = |file: &File| file.try_clone().map_err(system("a descriptor"));
        let control =
            Control::new(Some(copy(&holdings.control)?)).map_err(system("control page"))?;
        let control = control::install(control);
        let seat = Seat::open(&holdings.control).map_err(system("seat"))?;
        let superblock = Superblock::decode(&control.superblock())
            .map_err(|error| StartError::new("the superblock that was handed over", error))?;
        let (mut options, text) = options_of(&superblock, arguments)?;
        let layout = transport_of(&mut options, true)?;
        let image = Image::from_open(&arguments.image, copy(&holdings.image)?)
            .map_err(|error| StartError(error.to_string()))?;
        let protection = protect::protect_worker(options.common.realtime, !is_first);
        let resources = registry::resources(&options);
        let payloads = match layout {
            Some(layout) => {
                let memory = held_memory(layout, copy(&holdings.entries)?, !is_first);
                Some(memory.map_err(system("memory for requests"))?)
            }
            None => None,
        };
        let buffers = buffers_for(&resources, payloads).map_err(system("memory for buffers"))?;
        let transport = match layout {
            Some(layout) => Transport::Uring(layout, buffers.clone()),
            None => Transport::Fuse(resources.threads),
        };
        let [one, two, three, four] = &holdings.regions;
        let regions = [copy(one)?, copy(two)?, copy(three)?, copy(four)?];
        let held = Held::regions(regions, !is_first);
        let fuse = copy(&holdings.fuse)?;
        let link = link.try_clone().map_err(system("the link"))?;
        let keeper = Arc::new(LinkKeeper::new(holdings, link));
        // Not kept here: what is removed later is to have no lock on it any more.
        let members = keeper.members(image.file()).map_err(system("the members"))?;
        let backend = registry::build(&image, &superblock, &options, &buffers, &held, &members)
            .map_err(|error| StartError::new(arguments.image.display(), error))?;
        let volume = Volume::standby(backend, buffers, superblock.slot_count);
        let identity = Arc::new(Identity {
            image: arguments.image.display().to_string(),
            type_name: superblock.type_name.clone(),
            uuid: superblock.uuid.to_string(),
            label: superblock.label.clone(),
            options: text,
            threads: resources.threads,
            transport: transport.name(),
            mounted_ns: control.page().mounted_ns.load(Relaxed),
            unguarded_why: if layout.is_some() {
                "transport=uring: upgrades are safe, a kill is not".to_owned()
            } else {
                String::new()
            },
            protection,
        });
        let awake = awake_of(&options)?;
        let service = Arc::new(Service::new(Arc::clone(&volume), identity, awake));
        let mut worker = Worker {
            keeper,
            fuse,
            image: arguments.image.clone(),
            mountpoint: arguments.mountpoint.clone(),
            page: control.page(),
            superblock,
            options,
            protection,
            volume,
            threads: resources.threads,
            waiting: None,
            service,
            transport,
            rings: None,
            session: None,
            session_ended: Arc::new(EventFd::new().map_err(system("eventfd"))?),
            beating: Arc::default(),
            _companion: address_space::start_companion()
                .inspect_err(|error| warn!("a take-over will be slower: {error}"))
                .ok(),
            seat,
            admin: None,
        };
        worker.prepare_heart()?;
        Ok(worker)
    }

    fn serve_first(&mut self, arguments: &Arguments, link: &Link) -> Result<(), StartError> {
        let system = |what: &'static str| move |error: io::Error| StartError::new(what, error);
        self.take_seat(SEAT_PATIENCE)?;
        self.beat();
        let header = self.superblock.swap_header();
        self.volume
            .activate(Some(&header))
            .map_err(|error| StartError::new("starting the back end", error))?;
        let device = self.fuse.try_clone().map_err(system("a descriptor"))?;
        let service = Arc::clone(&self.service);
        let connection = Connection::new(service, device.into(), self.transport.clone());
        let connection = connection.map_err(system("FUSE handshake"))?;
        // Before anything is answered: from here on its death must not be the volume's.
        drop(link.say(Kind::Connected, &[]));
        self.start_session(connection)?;
        // The answer shows that the threads serve, and their buffers are there.
        if let Err(error) = fs::metadata(arguments.mountpoint.join("swapfile")) {
            error!("{}: {error}", arguments.mountpoint.display());
        }
        if self.protection.memory_locked {
            populate();
        }
        info!(
            "mounted on {}: type {}, {}",
            arguments.mountpoint.display(),
            self.superblock.type_name,
            swapfs_format::size::human(self.superblock.volume_bytes())
        );
        if let Some(error) = pin::failure() {
            warn!(
                "memory can't be pinned (io_uring: {error}): a request that is being copied while \
                 the kernel moves memory could fail at a kill"
            );
        }
        // Whoever is told that the volume is mounted may ask at once.
        self.administer();
        crash::arm_from_environment();
        Ok(())
    }

    /// Opens the control socket, where the back end can be changed.
    fn administer(&mut self) {
        if self.admin.is_none() {
            self.admin = administer(&self.superblock, &self.volume, &self.mountpoint);
        }
    }

    fn take_seat(&self, patience: Duration) -> Result<(), StartError> {
        match self.seat.take(Role::Serve, patience) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StartError::new("take-over", "another process still serves")),
            Err(error) => Err(StartError::new("take-over", error)),
        }
    }

    fn start_session(&mut self, connection: Connection) -> Result<(), StartError> {
        let ended = Arc::clone(&self.session_ended);
        self.rings = connection.handle();
        self.session = Some(spawn("session", move || {
            let outcome = connection.serve();
            ended.signal();
            outcome
        })?);
        Ok(())
    }

    /// Serves until the volume is unmounted. Sees to a supervisor meanwhile.
    fn serve(&mut self, arguments: &Arguments, link: &Link) -> Result<(), StartError> {
        drop(std::env::set_current_dir("/"));
        let reserve = Reserve::start(Arc::clone(&self.volume))
            .inspect_err(|error| warn!("no memory reserve: {error}"));
        let overfull = self.watch_for_full();
        self.administer();
        let mut guard = Guard::new(arguments, link);
        loop {
            let wait = guard.time_to_wait();
            let waited_for = [self.session_ended.as_raw_fd(), guard.descriptor()];
            let _ = processes::wait_readable(&waited_for, wait);
            // Before anything else is done: whoever asked for the requests to be held is dead.
            if guard.is_bereft() {
                self.call_off();
            }
            if processes::readiness(self.session_ended.as_raw_fd()) & libc::POLLIN != 0 {
                break;
            }
            match guard.look(&self.keeper, self.page) {
                Some(Kind::Drain) => self.drain(guard.link()),
                Some(Kind::GoOn) => self.call_off(),
                _ => {}
            }
        }
        drop(self.admin.take());
        drop(overfull);
        drop(reserve);
        let served = self.session.take().map_or(Ok(Ok(())), thread::JoinHandle::join);
        let served = served.unwrap_or_else(|_| Err(io::Error::other("the session panicked")));
        // Not closed: somebody may go on with what is there.
        served.map_err(|error| StartError::new("serving FUSE requests", error))?;
        if let Err(error) = self.volume.close() {
            return Err(StartError::new("flush at the end", error));
        }
        drop(guard.link().say(Kind::Ended, &[]));
        Ok(())
    }

    /// Serves on, if requests are held.
    fn call_off(&self) {
        if let Some(rings) = &self.rings {
            rings.call_off();
        }
    }

    /// Holds all requests for another process, and says so.
    fn drain(&self, link: &Link) {
        let Some(rings) = &self.rings else { return };
        let knocker = knock::start(rings.places_per_queue(), &self.image, &self.mountpoint);
        let outcome =
            knocker.and_then(|knocker| match rings.drain(DRAIN_PATIENCE, || knocker.go()) {
                Ok(()) => Ok(()),
                Err(error) => {
                    knocker.dismiss();
                    Err(error)
                }
            });
        let said = match outcome {
            Ok(()) => link.say(Kind::Drained, &[]),
            Err(error) => link.say(Kind::NotDrained, error.to_string().as_bytes()),
        };
        if let Err(error) = said {
            error!("the link: {error}");
            rings.call_off();
        }
    }

    /// Not where the killer could take the daemon itself.
    fn watch_for_full(&self) -> Option<Overfull> {
        let wanted = self.options.common.oom_when_full && self.protection.oom_protected;
        wanted.then(|| watch_for_full(&self.volume)).flatten()
    }

    /// Starts the thread that shows, once it is told to, that this process lives.
    fn prepare_heart(&mut self) -> Result<(), StartError> {
        let (volume, beating) = (Arc::clone(&self.volume), Arc::clone(&self.beating));
        let page = self.page;
        spawn("heart", move || {
            let mut oldest: Option<(u64, Duration)> = None;
            let mut looked = Instant::now();
            loop {
                thread::sleep(BEAT);
                // Should all of this have stood still, it was not the request that took long.
                let passed = looked.elapsed().min(2 * BEAT);
                looked = Instant::now();
                if !beating.load(Relaxed) {
                    continue;
                }
                oldest = volume.oldest_request().map(|number| match oldest {
                    Some((before, age)) if before == number => (number, age + passed),
                    _ => (number, Duration::ZERO),
                });
                let age = oldest.map_or(Duration::ZERO, |(_, age)| age);
                page.oldest_ms.store(age.as_millis() as u64, Relaxed);
                page.in_flight.store(volume.requests_in_flight() as u32, Relaxed);
                page.in_device.store(control::in_device(), Relaxed);
                page.done.store(volume.requests_done(), Relaxed);
                page.heartbeat.fetch_add(1, Relaxed);
            }
        })
        .map(drop)
    }

    /// This process is the one that serves from now on, and says so.
    fn beat(&self) {
        self.page.oldest_ms.store(0, Relaxed);
        self.page.in_flight.store(0, Relaxed);
        self.page.in_device.store(control::in_device(), Relaxed);
        self.page.worker_pid.store(std::process::id(), Relaxed);
        self.page.heartbeat.fetch_add(1, Relaxed);
        self.beating.store(true, Relaxed);
    }
}
