//! `swapfs up`: from an image (made if need be) to a swap area, or to nothing at all.

pub mod checks;
pub mod rollback;

use crate::failure::Failure;
use crate::format::{self, NewVolume};
use crate::image::{self, Image};
use crate::interrupt::Interrupt;
use crate::probe::Answer;
use crate::procfs::{meminfo, swaps};
use crate::sys::swap::{self, Discard};
use crate::volumes::Volume;
use crate::{daemon, loop_device, probe, sizing, sys, volumes};
use mkswapfs::MemberSpec;
use rollback::Rollback;
use serde::Serialize;
use std::fmt;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use swapfs_format::size::human;
use swapfs_format::superblock::Superblock;
use swapfs_format::types::{self, TypeSpec};

/// The image when none is named.
pub const DEFAULT_IMAGE: &str = "/var/lib/swapfs/swapfs.img";
/// Only root looks into the directories that we make.
const DIRECTORY_MODE: u32 = 0o700;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct UpRequest {
    /// The image; made if it is not there.
    pub image: PathBuf,
    /// Size of a new volume; `None`: see [`sizing`].
    pub size_bytes: Option<u64>,
    /// Type of a new volume, or the one that is expected; `None`: the first of [`types::TYPES`].
    pub type_name: Option<String>,
    /// The tiers of a new volume, hottest first; they make it one of type `tier`.
    pub members: Vec<MemberSpec>,
    /// Of the swap area; `None`: the kernel's choice, below all others.
    pub priority: Option<u16>,
    /// Of the swap area.
    pub discard: Discard,
    /// `KEY=VALUE,...`: into the header of a new volume, or over it for this mount.
    pub options: String,
    /// How requests are to come from the kernel: a value of `transport=`.
    pub transport: Option<String>,
    /// Switch FUSE over io_uring on in the kernel if it is off.
    pub enable_uring: bool,
    /// Where to mount; `None`: a directory of its own under [`volumes::RUN_DIRECTORY`].
    pub mount_point: Option<PathBuf>,
    /// Go on to swapon(2); without it, the loop device is the last step.
    pub swap: bool,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpReport {
    /// The image.
    pub image: PathBuf,
    /// It was made by this `up`.
    pub formatted: bool,
    /// The back-end type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The volume's UUID.
    pub uuid: String,
    /// The volume's label.
    pub label: String,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The loop device on it.
    pub device: PathBuf,
    /// Priority of the swap area; `None`: attached only.
    pub priority: Option<i32>,
    /// The daemon, if it answered: its supervisor, or the only process.
    pub daemon_pid: Option<u32>,
    /// Whether a crash of the daemon loses nothing; `None`: it did not answer.
    pub guarded: Option<bool>,
    /// Why it would.
    pub unguarded_why: Option<String>,
}

impl fmt::Display for UpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made = if self.formatted { "formatted" } else { "found" };
        let size = human(self.volume_bytes);
        writeln!(f, "volume    {} ({made})", self.image.display())?;
        writeln!(f, "type      {}, {size}, UUID {}", self.type_name, self.uuid)?;
        write!(f, "mounted   {}", self.mount.display())?;
        match self.daemon_pid {
            Some(pid) => writeln!(f, ", daemon {pid}")?,
            None => writeln!(f)?,
        }
        match (self.guarded, &self.unguarded_why) {
            (Some(true), _) => writeln!(f, "guarded   a crash of the daemon loses nothing")?,
            (Some(false), Some(why)) => {
                writeln!(f, "UNGUARDED {why}: a crash of the daemon would lose the pages")?;
            }
            _ => {}
        }
        match self.priority {
            Some(priority) => write!(f, "swap      {}, priority {priority}", self.device.display()),
            None => write!(f, "attached  {}, not swapped to", self.device.display()),
        }
    }
}

/// Brings a volume up. When a step fails, or a signal comes, all steps before it are undone.
///
/// # Errors
/// The step that failed, and why.
pub fn bring_up(request: &UpRequest, interrupt: &Interrupt) -> Result<UpReport, Failure> {
    checks::machine()?;
    let wanted_type = request.type_name.as_deref().map(find_type).transpose()?;
    let image_path = resolve(&request.image)?;
    let volumes = volumes::discover()?;
    checks::not_up(&volumes, &image_path)?;
    let mount_point = request.mount_point.as_deref().map(checks::mount_point).transpose()?;
    let found = image::look(&image_path)?;

    let mut rollback = Rollback::default();
    let (superblock, formatted) = match found {
        Image::Volume(superblock) => {
            check_expectations(&image_path, &superblock, wanted_type, request.size_bytes)?;
            check_members(&image_path, &request.members)?;
            (*superblock, false)
        }
        Image::Unusable(error) => return Err(image::unusable(&image_path, &error)),
        Image::Absent => {
            let otherwise = if request.members.is_empty() { types::TYPES[0] } else { &types::TIER };
            let spec = wanted_type.unwrap_or(otherwise);
            (make_image(&image_path, spec, request, interrupt, &mut rollback)?, true)
        }
    };
    interrupt.check("mount the volume")?;

    let mount = match mount_point {
        Some(mount) => mount,
        None => make_mount_point(&superblock.uuid.to_string(), &volumes, &mut rollback)?,
    };
    // What is in the header of a volume just formatted need not be said again.
    let mount_options = if formatted { "" } else { &request.options };
    let transport = request.transport.as_ref().map(|name| format!("transport={name}"));
    let mount_options = [mount_options, transport.as_deref().unwrap_or("")];
    let mount_options = mount_options.into_iter().filter(|part| !part.is_empty());
    if request.enable_uring {
        checks::enable_uring()?;
    }
    daemon::start(&image_path, &mount, &mount_options.collect::<Vec<_>>().join(","))?;
    let answer = probe::ask(&mount);
    let daemon_pid = answer.pid();
    let mounted_at = mount.clone();
    rollback.push(move || daemon::stop(&mounted_at, daemon_pid));
    interrupt.check("attach a loop device")?;

    let volume_file = mount.join(volumes::VOLUME_FILE);
    let device = loop_device::attach(&volume_file)?;
    let attached = device.clone();
    rollback.push(move || loop_device::detach(&attached, &volume_file));
    loop_device::disable_write_back_throttling(&device)?;
    interrupt.check("swap on")?;

    let priority = match request.swap {
        true => Some(swap_on(&device, request)?),
        false => None,
    };
    rollback.commit();
    let (guarded, unguarded_why) = match &answer {
        Answer::Stats(stats) => (Some(stats.guarded), stats.unguarded().map(str::to_owned)),
        _ => (None, None),
    };
    Ok(UpReport {
        image: image_path,
        formatted,
        volume_bytes: superblock.volume_bytes(),
        type_name: superblock.type_name,
        uuid: superblock.uuid.to_string(),
        label: superblock.label,
        mount,
        device,
        priority,
        daemon_pid,
        guarded,
        unguarded_why,
    })
}

/// The type of that name.
fn find_type(name: &str) -> Result<&'static TypeSpec, Failure> {
    types::find(name).ok_or_else(|| {
        Failure::new(
            "--type",
            format_args!("'{name}' is no type of volume: there are {}", types::known_names()),
        )
    })
}

/// The image's path without links, as the mount table shows it; what does not exist yet is only
/// made absolute.
fn resolve(image: &Path) -> Result<PathBuf, Failure> {
    match std::fs::canonicalize(image) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let absolute = std::path::absolute(image)
                .map_err(|error| Failure::os(image.display(), "use as a path", &error))?;
            match (absolute.parent().map(std::fs::canonicalize), absolute.file_name()) {
                (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
                _ => Ok(absolute),
            }
        }
        Err(error) => Err(Failure::os(image.display(), "look up", &error)),
    }
}

/// An existing volume is taken as it is; that it is another than asked for is said.
fn check_expectations(
    image: &Path,
    superblock: &Superblock,
    wanted_type: Option<&'static TypeSpec>,
    size_bytes: Option<u64>,
) -> Result<(), Failure> {
    if let Some(spec) = wanted_type
        && spec.name != superblock.type_name
    {
        return Err(Failure::new(
            image.display(),
            format_args!(
                "is a volume of type '{}', not '{}': leave --type out, or format it anew with \
                 'mkswapfs -f -t {} {}'",
                superblock.type_name,
                spec.name,
                spec.name,
                image.display()
            ),
        ));
    }
    let volume_bytes = superblock.volume_bytes();
    if size_bytes.is_some_and(|size_bytes| size_bytes != volume_bytes) {
        eprintln!(
            "swapfs: {}: note: the volume has {} already; --size counts only when it is made",
            image.display(),
            human(volume_bytes)
        );
    }
    Ok(())
}

/// Members go into an image when it is formatted, and later by `swapfs tier add`.
fn check_members(image: &Path, members: &[MemberSpec]) -> Result<(), Failure> {
    let Some(member) = members.first() else { return Ok(()) };
    Err(Failure::new(
        format_args!("--member {member}"),
        format_args!(
            "{} is a volume already, with the members that it has: leave --member out ('swapfs \
             tiers' shows them, 'swapfs tier add' adds one)",
            image.display()
        ),
    ))
}

/// Makes and formats the image, and the directory of the default one.
fn make_image(
    image_path: &Path,
    spec: &'static TypeSpec,
    request: &UpRequest,
    interrupt: &Interrupt,
    rollback: &mut Rollback,
) -> Result<Superblock, Failure> {
    let directory = image_path.parent().unwrap_or(Path::new("/")).to_owned();
    if image_path == Path::new(DEFAULT_IMAGE) && make_directory(&directory)? {
        let made = directory.clone();
        rollback.push(move || daemon::remove_directory(&made));
    }
    let volume_bytes = match request.size_bytes {
        Some(size_bytes) => Some(size_bytes),
        // The formatter knows what its members have room for.
        None if spec.has_members => None,
        None => {
            let free = sys::fs::file_system(&directory)
                .map_err(|error| {
                    Failure::os(directory.display(), "look at the file system", &error)
                })?
                .free_bytes;
            let free_bytes = if spec.ghost { None } else { Some(free) };
            let memory_bytes = meminfo::read()?.total_bytes;
            Some(sizing::default_volume_bytes(&directory, memory_bytes, free_bytes)?)
        }
    };
    let volume = NewVolume {
        image: image_path,
        spec,
        volume_bytes,
        members: &request.members,
        options: &request.options,
    };
    let formatted = format::format(&volume, interrupt)?;
    // Only now: had it failed, a file of that name would be somebody else's.
    let images = formatted.members.iter().chain([&formatted]).filter(|image| image.created);
    for image in images {
        let made = image.image.clone();
        rollback.push(move || match std::fs::remove_file(&made) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::os(made.display(), "remove", &error))
            }
            _ => Ok(()),
        });
    }
    Ok(formatted.superblock)
}

/// Makes `RUN_DIRECTORY/UUID`.
fn make_mount_point(
    uuid: &str,
    volumes: &[Volume],
    rollback: &mut Rollback,
) -> Result<PathBuf, Failure> {
    let run_directory = PathBuf::from(volumes::RUN_DIRECTORY);
    if make_directory(&run_directory)? {
        let made = run_directory.clone();
        rollback.push(move || daemon::remove_directory(&made));
    }
    let mount = run_directory.join(uuid);
    checks::not_mounted(volumes, &mount)?;
    if make_directory(&mount)? {
        let made = mount.clone();
        rollback.push(move || daemon::remove_directory(&made));
    }
    checks::mount_point(&mount)
}

/// Makes a directory for root alone; `false` when it is there already.
fn make_directory(directory: &Path) -> Result<bool, Failure> {
    match std::fs::DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Failure::os(directory.display(), "make the directory", &error)),
    }
}

/// swapon(2), and the priority that came of it.
fn swap_on(device: &Path, request: &UpRequest) -> Result<i32, Failure> {
    swap::swap_on(device, request.priority, request.discard).map_err(|error| {
        let failure = Failure::os(device.display(), "swap on", &error);
        match error.raw_os_error() {
            Some(libc::EPERM) => failure.and("root may, unless there are too many swap areas"),
            Some(libc::EINVAL) => failure.and("page 0 of the volume has no valid swap header"),
            Some(libc::ENOSYS) => failure.and("this kernel was built without swap"),
            _ => failure,
        }
    })?;
    // A failure here must not leave the area on: the priority asked for is near enough.
    let areas = swaps::read().unwrap_or_default();
    Ok(swaps::find(&areas, device)
        .map_or(request.priority.map_or(-1, i32::from), |area| area.priority))
}

#[cfg(test)]
mod tests {
    use super::*;
    use swapfs_format::geometry::Geometry;
    use uuid::Uuid;

    #[test]
    fn the_report_for_people() {
        let mut report = UpReport {
            image: "/img/a".into(),
            formatted: true,
            type_name: "linear".into(),
            uuid: "6d0e".into(),
            label: String::new(),
            volume_bytes: 512 << 20,
            mount: "/run/swapfs/6d0e".into(),
            device: "/dev/loop0".into(),
            priority: Some(100),
            daemon_pid: Some(77),
            guarded: Some(true),
            unguarded_why: None,
        };
        assert_eq!(
            report.to_string(),
            "volume    /img/a (formatted)\ntype      linear, 512 MiB, UUID 6d0e\n\
             mounted   /run/swapfs/6d0e, daemon 77\n\
             guarded   a crash of the daemon loses nothing\nswap      /dev/loop0, priority 100"
        );
        report.guarded = Some(false);
        report.unguarded_why = Some("supervisor=off".into());
        let warning = "UNGUARDED supervisor=off: a crash of the daemon would lose the pages\n";
        assert!(report.to_string().contains(warning));
        report.priority = None;
        assert!(report.to_string().ends_with("attached  /dev/loop0, not swapped to"));
    }

    #[test]
    fn another_type_than_asked_for_is_refused() {
        let geometry = Geometry::ghost(1 << 20).unwrap();
        let superblock = Superblock::new("ram", &geometry, Uuid::from_u128(7));
        let image = Path::new("/img/a");
        assert_eq!(check_expectations(image, &superblock, None, None), Ok(()));
        assert_eq!(check_expectations(image, &superblock, Some(&types::RAM), Some(1)), Ok(()));
        let failure = check_expectations(image, &superblock, Some(&types::LINEAR), None);
        let failure = failure.unwrap_err().to_string();
        assert!(failure.contains("type 'ram', not 'linear'"), "{failure}");
        assert!(find_type("liner").unwrap_err().to_string().contains("there are zmem, linear"));
    }

    #[test]
    fn a_path_that_is_not_there_yet_is_made_absolute_and_free_of_links() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(resolve(&real.join("link/new.img")), Ok(real.join("new.img")));
        assert_eq!(resolve(Path::new("/no/such/dir/x")), Ok(PathBuf::from("/no/such/dir/x")));
    }
}
