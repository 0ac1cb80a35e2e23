//! From an image to a mount that serves, and down again.

use super::ready::{Readiness, wait_for_child};
use super::{Arguments, StartError};
use crate::awake::Awake;
use crate::backend::registry;
use crate::buffer::BufferPool;
use crate::fuse::{Adapter, Connection};
use crate::held::Held;
use crate::image::{Access, Image};
use crate::logging::{self, LogTarget};
use crate::overfull::Overfull;
use crate::protect::{self, OwnCgroup, Protection};
use crate::reserve::Reserve;
use crate::stats::json::Identity;
use crate::sys::process::Forked;
use crate::sys::{memory, mount, process};
use crate::volume::Volume;
use log::{error, info, warn};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use swapfs_format::superblock::Superblock;
use swapfs_format::types::TypedOptions;

/// Stacks of the daemon's threads: they are populated and locked whole.
const THREAD_STACK_BYTES: &str = "524288";

pub(super) fn foreground(arguments: &Arguments) -> Result<(), StartError> {
    start_logging(LogTarget::StandardError);
    run(arguments, Readiness::Foreground)
}

pub(super) fn background(arguments: &Arguments) -> Result<(), StartError> {
    let system = |error| StartError::new("going into the background", error);
    match process::fork_with_pipe().map_err(system)? {
        Forked::Parent(pipe, _) => wait_for_child(pipe),
        Forked::Child(pipe) => {
            let readiness = Readiness::Pipe(pipe);
            start_logging(LogTarget::KernelLog);
            match process::detach_standard_streams() {
                Ok(()) => run(arguments, readiness),
                Err(error) => readiness.failed(system(error)),
            }
        }
    }
}

fn start_logging(target: LogTarget) {
    // Inherited by the thread of the log. Should it fail, `protect` says so when there is a log.
    drop(process::set_io_flusher());
    logging::start(target);
}

fn run(arguments: &Arguments, readiness: Readiness) -> Result<(), StartError> {
    let mounted = match Mounted::new(arguments) {
        Ok(mounted) => mounted,
        Err(error) => {
            logging::flush();
            return readiness.failed(error);
        }
    };
    let outcome = mounted.serve(readiness);
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
    /// Held until the end: it has the lock on the image.
    _image: Image,
    _cgroup: Option<OwnCgroup>,
}

impl Mounted {
    fn new(arguments: &Arguments) -> Result<Mounted, StartError> {
        if !process::is_root() {
            return Err(StartError::new("not root", "mounting needs root: try again with sudo"));
        }
        let mountpoint = check_mountpoint(&arguments.mountpoint)?;
        let device = open_fuse_device()?;
        // Asked for by std when it makes the first thread with a stack of the default size.
        // SAFETY: only the logging thread runs beside this one, and it reads no environment.
        unsafe { std::env::set_var("RUST_MIN_STACK", THREAD_STACK_BYTES) };
        let Opened { image, superblock, options, text } = open_volume(arguments)?;
        logging::set_subject(&image.path().display().to_string());
        let (protection, cgroup) = protect::protect_process(options.common.realtime);
        let resources = registry::resources(&options);
        let buffers = BufferPool::new(resources.small_buffers, resources.large_buffers)
            .map_err(|error| StartError::new("memory for buffers", error))?;
        let backend = registry::build(&image, &superblock, &options, &buffers, &Held::private())
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
            mounted: Instant::now(),
            protection,
        });
        let awake = match options.common.awake {
            awake if awake.is_zero() => None,
            awake => Some(Awake::new(awake).map_err(|error| StartError::new("awake-ms", error))?),
        };
        let adapter = Adapter::new(Arc::clone(&volume), identity, awake);
        mount::mount_fuse(&device, image.path(), &mountpoint).map_err(|error| {
            StartError::new(format_args!("mount on {}", mountpoint.display()), error)
        })?;
        let connection = Connection::new(adapter, device.into(), resources.threads);
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
        let served = self.connection.serve();
        drop(overfull);
        drop(reserve);
        drop(starter.join());
        handle.close();
        drop(stopper.join());
        if let Err(error) = self.volume.flush() {
            return Err(StartError::new("flush at the end", error));
        }
        served.map_err(|error| StartError::new("serving FUSE requests", error))
    }
}

impl Mounted {
    /// Not where the killer could take the daemon itself.
    fn watch_for_full(&self) -> Option<Overfull> {
        if !self.oom_when_full || !self.protection.oom_protected {
            return None;
        }
        Overfull::start(Arc::clone(&self.volume))
            .inspect_err(|error| warn!("oom-when-full: {error}: a full swap area may go unseen"))
            .ok()
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>, StartError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| StartError::new(format_args!("thread '{name}'"), error))
}

/// With everything locked on fault, what is touched now never faults again.
fn populate() {
    match memory::populate_own_memory() {
        Ok(bytes) => info!("{} of own memory populated", swapfs_format::size::human(bytes as u64)),
        Err(error) => warn!("own memory could not be populated: {error}"),
    }
}

fn stop_on_signal(mut signals: Signals, mountpoint: &Path) {
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

/// An image that may be mounted, and how.
struct Opened {
    image: Image,
    superblock: Superblock,
    options: TypedOptions,
    /// The options as text.
    text: String,
}

fn open_volume(arguments: &Arguments) -> Result<Opened, StartError> {
    let path = fs::canonicalize(&arguments.image)
        .map_err(|error| StartError::new(arguments.image.display(), error))?;
    let image = Image::open_exclusive(&path, Access::ReadWrite).map_err(described)?;
    let superblock = image.load().map_err(described)?;
    let spec = superblock.type_spec().ok_or_else(|| {
        let why = format!("the types are {}", swapfs_format::types::known_names());
        StartError::new(format_args!("unknown type '{}'", superblock.type_name), why)
    })?;
    let (options, text) = spec
        .mount_options(&superblock.options, &arguments.options.join(","))
        .map_err(|error| StartError::new(path.display(), error))?;
    if !superblock.is_ghost() && image.is_on_tmpfs() {
        return Err(StartError::new(
            path.display(),
            "the image is on tmpfs, whose pages are themselves swapped: swapping to it deadlocks \
             the machine. Put it on a disk",
        ));
    }
    Ok(Opened { image, superblock, options, text })
}

fn described(error: crate::image::ImageError) -> StartError {
    StartError(error.to_string())
}

fn check_mountpoint(path: &Path) -> Result<PathBuf, StartError> {
    let fail = |why: String| StartError::new(format_args!("mount point {}", path.display()), why);
    let canonical = fs::canonicalize(path)
        .map_err(|error| fail(format!("{error}: make it first: mkdir -p {}", path.display())))?;
    let mut entries = fs::read_dir(&canonical).map_err(|error| fail(error.to_string()))?;
    match entries.next() {
        None => Ok(canonical),
        Some(_) => Err(fail("not empty: use an empty directory".to_owned())),
    }
}

fn open_fuse_device() -> Result<File, StartError> {
    const PATH: &str = "/dev/fuse";
    File::options().read(true).write(true).open(PATH).map_err(|error| {
        StartError::new(PATH, format_args!("{error}: is FUSE in the kernel? try: modprobe fuse"))
    })
}
