//! A mount with a supervisor: from the image to the process that watches, and back from what an
//! earlier one held.

use super::open::{Opened, check_mountpoint, open_fuse_device, options_of};
use super::ready::Readiness;
use super::{Arguments, StartError, THREAD_STACK_BYTES};
use crate::control::{self, Control, HANDOVER_VERSION};
use crate::held::BACKEND_REGIONS;
use crate::image::{Access, Image, ImageError};
use crate::logging;
use crate::members;
use crate::protect::{self, OwnCgroup};
use crate::seat::{Role, Seat};
use crate::supervisor::link::{Holdings, Kind, Link};
use crate::supervisor::upgrade::Door;
use crate::supervisor::{Parts, Supervisor, store};
use crate::sys::mount::Abort;
use crate::sys::spawn::{self, Command};
use crate::sys::{hold, memory, mount, process};
use log::{info, warn};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;
use swapfs_format::superblock::Superblock;
use swapfs_format::types::{Transport, TypedOptions};

/// The first kernel whose FUSE hands out again what a dead process has read (FUSE_NOTIFY_RESEND).
const RESEND_KERNEL: (u32, u32) = (6, 9);
/// How long the supervisor before this one may take to end.
const SEAT_PATIENCE: Duration = Duration::from_secs(2);

/// Files in memory that is never swapped: for the control page, the back end, and the transport.
///
/// # Errors
/// In one sentence, why there can be no supervisor.
pub(super) fn files_to_hold(opened: &Opened) -> Result<Vec<File>, String> {
    if !opened.options.common.supervisor {
        return Err("supervisor=off".to_owned());
    }
    if process::kernel_version() < RESEND_KERNEL {
        let (major, minor) = RESEND_KERNEL;
        return Err(format!("this kernel can't resend FUSE requests (it takes {major}.{minor})"));
    }
    hold::unswappable_files(2 + BACKEND_REGIONS)
        .map_err(|error| format!("this kernel has no tmpfs that is never swapped ({error})"))
}

/// Mounts, starts a worker, and watches until the volume is unmounted.
pub(super) fn run(
    arguments: &Arguments,
    opened: Opened,
    files: Vec<File>,
    readiness: Readiness,
) -> Result<(), StartError> {
    let started = start_anew(arguments, opened, files);
    watch_or_fail(started, readiness)
}

/// Goes on with what the service manager has kept of supervisor and worker, which have died.
pub(super) fn run_kept(
    arguments: &Arguments,
    holdings: Holdings,
    readiness: Readiness,
) -> Result<(), StartError> {
    let started = take_back(arguments, holdings);
    watch_or_fail(started, readiness)
}

fn watch_or_fail(
    started: Result<Supervisor, StartError>,
    readiness: Readiness,
) -> Result<(), StartError> {
    match started {
        Ok(supervisor) => watch(supervisor, readiness),
        Err(error) => readiness.failed(error),
    }
}

fn watch(supervisor: Supervisor, mut readiness: Readiness) -> Result<(), StartError> {
    // Not before the paths of the command line have been resolved.
    drop(std::env::set_current_dir("/"));
    if let Err(error) = memory::populate_own_memory() {
        warn!("own memory could not be populated: {error}");
    }
    readiness.ready();
    let outcome = supervisor.watch();
    store::withdraw();
    outcome.map_err(StartError)
}

/// A mount that is new.
fn start_anew(
    arguments: &Arguments,
    opened: Opened,
    files: Vec<File>,
) -> Result<Supervisor, StartError> {
    let system = |what: &'static str| move |error: io::Error| StartError::new(what, error);
    let mountpoint = check_mountpoint(&arguments.mountpoint)?;
    let device = open_fuse_device()?;
    let Opened { image, superblock, options, members, .. } = opened;
    let (_, cgroup) = protect::protect_process(options.common.realtime);
    let path = image.path().to_owned();
    let members = members::places_of(image.file(), &members).map_err(system("the members"))?;
    let mut files = files.into_iter();
    let mut next = || files.next().ok_or_else(|| StartError::new("memory", "too few regions"));
    let holdings = Holdings {
        fuse: device,
        image: image.file().try_clone().map_err(system("the image"))?,
        control: next()?,
        regions: [next()?, next()?, next()?, next()?],
        entries: next()?,
        members,
    };
    let control = map_control(&holdings)?;
    control.page().version.store(HANDOVER_VERSION, Relaxed);
    control.page().mounted_ns.store(spawn::boot_time_ns(), Relaxed);
    let header = superblock.encode().map_err(|error| StartError::new("superblock", error))?;
    control.keep_superblock(&header);
    mount::mount_fuse(&holdings.fuse, &path, &mountpoint).map_err(|error| {
        StartError::new(format_args!("mount on {}", mountpoint.display()), error)
    })?;
    let prepared = parts(arguments, &path, &mountpoint, &superblock, &options, holdings, cgroup)
        .and_then(|parts| Supervisor::new(parts).map_err(system("signals")))
        .and_then(|mut supervisor| {
            supervisor.start_first().map_err(StartError)?;
            supervisor.deposit();
            Ok(supervisor)
        });
    if prepared.is_err() {
        drop(mount::unmount(&mountpoint));
    }
    prepared
}

/// A mount whose supervisor and worker have died, and whose service manager has kept the rest.
fn take_back(arguments: &Arguments, holdings: Holdings) -> Result<Supervisor, StartError> {
    let control = map_control(&holdings)?;
    let superblock = kept_superblock(control)?;
    let (options, _) = options_of(&superblock, arguments)?;
    let described = |error: ImageError| StartError(error.to_string());
    let image = fs::canonicalize(&arguments.image)
        .map_err(|error| StartError::new(arguments.image.display(), error))?;
    let mount = fs::canonicalize(arguments.mountpoint.parent().unwrap_or(Path::new("/")))
        .map(|parent| parent.join(arguments.mountpoint.file_name().unwrap_or_default()))
        .map_err(|error| StartError::new(arguments.mountpoint.display(), error))?;
    // Not opened exclusively: what was kept has the lock.
    let found = Image::open(&image, Access::ReadOnly).and_then(|image| image.load());
    if found.map_err(described)?.uuid != superblock.uuid {
        let why = "the service manager holds another volume for this unit: unmount it first";
        return Err(StartError::new(image.display(), why));
    }
    let (_, cgroup) = protect::protect_process(options.common.realtime);
    let parts = parts(arguments, &image, &mount, &superblock, &options, holdings, cgroup)?;
    let supervisor = Supervisor::new(parts);
    let mut supervisor = supervisor.map_err(|error| StartError::new("signals", error))?;
    warn!("supervisor and worker had died: going on with what the service manager has kept");
    supervisor.adopt(0, None);
    Ok(supervisor)
}

/// A supervisor that takes the place of another one: started by a worker whose supervisor has
/// died, or executed by an older program.
pub(super) fn resume(arguments: &Arguments, link: i32) -> Result<(), StartError> {
    let system = |what: &'static str| move |error: io::Error| StartError::new(what, error);
    spawn::name_process(c"swapfsd");
    logging::start_direct(arguments.log_target());
    logging::set_subject(&arguments.image.display().to_string());
    let link = Link::from_descriptor(spawn::inherited(link).map_err(system("the link"))?);
    let starter = link.peer();
    let packet = link.next().map_err(system("the link"))?;
    let unexpected = || StartError::new("the link", "nothing was handed over");
    let mut packet = packet.ok_or_else(unexpected)?;
    let holdings = packet.holdings().ok_or_else(unexpected)?;
    let control = map_control(&holdings)?;
    let superblock = kept_superblock(control)?;
    let (options, _) = options_of(&superblock, arguments)?;
    // What is missing was said when the volume was mounted.
    let _ = protect::protect_worker(options.common.realtime, false);
    let cgroup = protect::inherited_cgroup();
    let (image, mount) = (&arguments.image, &arguments.mountpoint);
    let parts = parts(arguments, image, mount, &superblock, &options, holdings, cgroup)?;
    let mut supervisor = Supervisor::new(parts).map_err(system("signals"))?;
    match packet.kind() {
        Some(Kind::Resume) => {
            let pid = packet.payload().first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes));
            let worker = packet.further(0).map(Link::from_descriptor);
            supervisor.adopt(pid, worker);
            supervisor.tell_upgraded(packet.further(1));
            info!("upgrade: the supervisor is the new program");
        }
        _ => {
            // The worker that started this process may have died since, and a standby serve that
            // found no supervisor: it starts one of its own.
            if control.page().worker_pid.load(SeqCst) as i32 != starter {
                supervisor.leave();
                return Err(StartError::new("take-over", "another process serves by now"));
            }
            supervisor.adopt(starter, Some(link));
            warn!("a new supervisor watches over worker {starter}");
        }
    }
    watch(supervisor, Readiness::Nobody)
}

fn map_control(holdings: &Holdings) -> Result<&'static Control, StartError> {
    let page = holdings.control.try_clone().and_then(|file| Control::new(Some(file)));
    Ok(control::install(page.map_err(|error| StartError::new("control page", error))?))
}

fn kept_superblock(control: &Control) -> Result<Superblock, StartError> {
    let theirs = control.page().version.load(Relaxed);
    if theirs != HANDOVER_VERSION {
        let why = format!("version {theirs} was handed over, this program has {HANDOVER_VERSION}");
        return Err(StartError::new("take-over", why));
    }
    Superblock::decode(&control.superblock())
        .map_err(|error| StartError::new("the superblock that was handed over", error))
}

fn parts(
    arguments: &Arguments,
    image: &Path,
    mountpoint: &Path,
    superblock: &Superblock,
    options: &TypedOptions,
    holdings: Holdings,
    cgroup: Option<OwnCgroup>,
) -> Result<Parts, StartError> {
    let system = |error: io::Error| StartError::new("/proc/self/exe", error);
    // Asked for by the workers' std when they start threads.
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("RUST_MIN_STACK", THREAD_STACK_BYTES) };
    let program = || File::open("/proc/self/exe").map_err(system);
    let link = format!("--worker={}", spawn::LINK_DESCRIPTOR);
    let worker = arguments.derived("swapfsd-worker", Some(&link), image, mountpoint);
    let supervisor = arguments.derived("swapfsd", None, image, mountpoint);
    // Before the door is taken from whoever is behind it.
    let seat = Seat::open(&holdings.control).map_err(|error| StartError::new("seat", error))?;
    match seat.take(Role::Watch, SEAT_PATIENCE) {
        Ok(true) => {}
        Ok(false) => return Err(StartError::new("supervisor", "another one watches")),
        Err(error) => return Err(StartError::new("seat", error)),
    }
    let path = door_path(superblock);
    let door = Door::open(&path)
        .inspect_err(|error| warn!("{}: {error}: `swapfs upgrade` is not possible", path.display()))
        .ok();
    Ok(Parts {
        holdings,
        seat,
        control: control::installed().ok_or_else(|| StartError::new("control page", "none"))?,
        worker: Command::new(program()?, &worker).map_err(system)?,
        supervisor: Command::new(program()?, &supervisor).map_err(system)?,
        watchdog: options.common.watchdog,
        abort: (options.common.transport == Transport::Uring)
            .then(|| Abort::new(mountpoint))
            .transpose()
            .map_err(system)?,
        door,
        cgroup,
    })
}

/// Where `swapfs upgrade` finds the supervisor.
fn door_path(superblock: &Superblock) -> PathBuf {
    Path::new("/run/swapfs").join(format!("{}.sock", superblock.uuid))
}
