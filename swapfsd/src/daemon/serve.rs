//! A mount that is served by this process alone, without a supervisor; and what every process that
//! serves does.

use super::open::{Opened, buffers_for, check_mountpoint, open_fuse_device, transport_of};
use super::ready::Readiness;
use super::worker::die_of_panics;
use super::{Arguments, StartError, THREAD_STACK_BYTES};
use crate::admin::{self, server::Server};
use crate::awake::Awake;
use crate::backend::registry;
use crate::fuse::uring::private_memory;
use crate::fuse::{Connection, Service, Transport};
use crate::held::Held;
use crate::image::Image;
use crate::logging;
use crate::members::{Members, NoKeeper};
use crate::overfull::Overfull;
use crate::protect::{self, OwnCgroup, Protection};
use crate::reserve::Reserve;
use crate::stats::json::Identity;
use crate::sys::{memory, mount};
use crate::trace;
use crate::volume::Volume;
use log::{error, info, warn};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use swapfs_format::superblock::Superblock;
use swapfs_format::types::TypedOptions;

/// Mounts and serves, all in this process: if it dies, the volume is lost.
pub(super) fn run(
    arguments: &Arguments,
    opened: Opened,
    unguarded_why: String,
    readiness: Readiness,
) -> Result<(), StartError> {
    let mounted = match Mounted::new(arguments, opened, unguarded_why) {
        Ok(mounted) => mounted,
        Err(error) => {
            logging::flush();
            return readiness.failed(error);
        }
    };
    let outcome = mounted.serve(readiness);
    trace::finish();
    logging::flush();
    outcome
}

/// A volume that is mounted and about to be served.
struct Mounted {
    connection: Connection,
    volume: Arc<Volume>,
    mountpoint: PathBuf,
    protection: Protection,
    oom_when_full: bool,
    superblock: Superblock,
    /// Held until the end: it has the lock on the image.
    _image: Image,
    _cgroup: Option<OwnCgroup>,
}

impl Mounted {
    fn new(
        arguments: &Arguments,
        opened: Opened,
        unguarded_why: String,
    ) -> Result<Mounted, StartError> {
        let mountpoint = check_mountpoint(&arguments.mountpoint)?;
        let device = open_fuse_device()?;
        // Asked for by std when it makes the first thread with a stack of the default size.
        // SAFETY: only the logging thread runs beside this one, and it reads no environment.
        unsafe { std::env::set_var("RUST_MIN_STACK", THREAD_STACK_BYTES) };
        let Opened { image, superblock, mut options, text, members, .. } = opened;
        let layout = transport_of(&mut options, false)?;
        if layout.is_some() {
            // A queue without a thread would leave the requests of its CPU without an answer.
            die_of_panics();
        }
        let (protection, cgroup) = protect::protect_process(options.common.realtime);
        let resources = registry::resources(&options);
        let payloads = layout.map(private_memory).transpose();
        let buffers = payloads
            .and_then(|payloads| buffers_for(&resources, payloads))
            .map_err(|error| StartError::new("memory for buffers", error))?;
        let transport = match layout {
            Some(layout) => Transport::Uring(layout, buffers.clone()),
            None => Transport::Fuse(resources.threads),
        };
        let members = Members::of_open(members, Arc::new(NoKeeper))
            .map_err(|error| StartError::new("the members", error))?;
        let held = Held::private();
        let backend = registry::build(&image, &superblock, &options, &buffers, &held, &members)
            .map_err(|error| StartError::new(arguments.image.display(), error))?;
        let volume = Volume::new(backend, buffers, &superblock.swap_header())
            .map_err(|error| StartError::new("writing the swap header", error))?;
        let identity = Arc::new(Identity {
            image: image.path().display().to_string(),
            type_name: superblock.type_name.clone(),
            uuid: superblock.uuid.to_string(),
            label: superblock.label.clone(),
            options: text,
            threads: resources.threads,
            transport: transport.name(),
            mounted_ns: crate::sys::spawn::boot_time_ns(),
            unguarded_why,
            protection,
        });
        let awake = awake_of(&options)?;
        let service = Arc::new(Service::new(Arc::clone(&volume), identity, awake));
        mount::mount_fuse(&device, image.path(), &mountpoint).map_err(|error| {
            StartError::new(format_args!("mount on {}", mountpoint.display()), error)
        })?;
        let connection = Connection::new(service, device.into(), transport);
        let connection = connection.map_err(|error| {
            drop(mount::unmount(&mountpoint));
            StartError::new("FUSE handshake", error)
        })?;
        info!(
            "{} mounted on {}: type {}, {}",
            image.path().display(),
            mountpoint.display(),
            superblock.type_name,
            swapfs_format::size::human(superblock.volume_bytes())
        );
        Ok(Mounted {
            connection,
            volume,
            mountpoint,
            protection,
            oom_when_full: options.common.oom_when_full,
            superblock,
            _image: image,
            _cgroup: cgroup,
        })
    }

    fn serve(self, mut readiness: Readiness) -> Result<(), StartError> {
        // Not before the paths of the command line have been resolved.
        drop(std::env::set_current_dir("/"));
        let signals = Signals::new([SIGTERM, SIGINT])
            .map_err(|error| StartError::new("signal handlers", error))?;
        let handle = signals.handle();
        let mountpoint = self.mountpoint.clone();
        let stopper = spawn("signals", move || stop_on_signal(signals, &mountpoint))?;
        let mountpoint = self.mountpoint.clone();
        let locked = self.protection.memory_locked;
        let starter = spawn("ready", move || {
            // The answer shows that the threads serve, and their buffers are there.
            if let Err(error) = fs::metadata(mountpoint.join("swapfile")) {
                error!("{}: {error}", mountpoint.display());
            }
            if locked {
                populate();
            }
            readiness.ready();
        })?;
        let reserve = Reserve::start(Arc::clone(&self.volume))
            .map_err(|error| StartError::new("memory reserve", error))?;
        let overfull = self.watch_for_full();
        let admin = administer(&self.superblock, &self.volume, &self.mountpoint);
        let served = self.connection.serve();
        drop(admin);
        drop(overfull);
        drop(reserve);
        drop(starter.join());
        handle.close();
        drop(stopper.join());
        if let Err(error) = self.volume.close() {
            return Err(StartError::new("flush at the end", error));
        }
        served.map_err(|error| StartError::new("serving FUSE requests", error))
    }
}

/// What `awake-ms=` asks for.
pub(super) fn awake_of(options: &TypedOptions) -> Result<Option<Awake>, StartError> {
    let awake = options.common.awake;
    let made = (!awake.is_zero()).then(|| Awake::new(awake)).transpose();
    made.map_err(|error| StartError::new("awake-ms", error))
}

impl Mounted {
    /// Not where the killer could take the daemon itself.
    fn watch_for_full(&self) -> Option<Overfull> {
        let wanted = self.oom_when_full && self.protection.oom_protected;
        wanted.then(|| watch_for_full(&self.volume)).flatten()
    }
}

/// Opens the control socket of a volume whose back end can be changed while it serves.
pub(super) fn administer(
    superblock: &Superblock,
    volume: &Arc<Volume>,
    mountpoint: &Path,
) -> Option<Server> {
    let path = admin::socket_path(superblock.uuid);
    Server::start(&path, Arc::clone(volume), mountpoint.join("swapfile"))
        .inspect_err(|error| {
            warn!("{}: {error}: tiers can't be changed while mounted", path.display());
        })
        .ok()
        .flatten()
}

/// Asks for the OOM killer where nobody else would, see [`Overfull`].
pub(super) fn watch_for_full(volume: &Arc<Volume>) -> Option<Overfull> {
    Overfull::start(Arc::clone(volume))
        .inspect_err(|error| warn!("oom-when-full: {error}: a full swap area may go unseen"))
        .ok()
}

pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>, StartError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| StartError::new(format_args!("thread '{name}'"), error))
}

/// With everything locked on fault, what is touched now never faults again.
pub(super) fn populate() {
    match memory::populate_own_memory() {
        Ok(bytes) => {
            log::debug!("{} of own memory populated", swapfs_format::size::human(bytes as u64));
        }
        Err(error) => warn!("own memory could not be populated: {error}"),
    }
}

/// Unmounts when asked to end, unless the volume is in use.
pub(super) fn stop_on_signal(mut signals: Signals, mountpoint: &Path) {
    for signal in signals.forever() {
        let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
        match mount::unmount(mountpoint) {
            Ok(()) => info!("{name}: unmounting"),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => warn!(
                "{name}: {} is in use (a loop device or swap is on it): going on; use `swapfs down`",
                mountpoint.display()
            ),
            // Whoever unmounted it before us has ended the session as well.
            Err(error) => warn!("{name}: unmounting {}: {error}", mountpoint.display()),
        }
    }
}
