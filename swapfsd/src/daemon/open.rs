//! What a mount needs before anything is served: the image, its options, an empty directory, the
//! kernel's FUSE.

use super::{Arguments, StartError};
use crate::backend::registry::Resources;
use crate::buffer::{BufferPool, Payloads};
use crate::fuse::uring::{self, Layout};
use crate::image::{Access, Image, ImageError};
use crate::members::{self, OpenMember};
use log::warn;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use swapfs_format::superblock::Superblock;
use swapfs_format::types::{BackendOptions, Transport, TypedOptions};

/// An image that may be mounted, and how.
pub(super) struct Opened {
    pub(super) image: Image,
    pub(super) superblock: Superblock,
    pub(super) options: TypedOptions,
    /// The options as text.
    pub(super) text: String,
    /// The images of a volume that lies over several.
    pub(super) members: Vec<OpenMember>,
    /// What is to be said of the members once there is a log.
    pub(super) warnings: Vec<String>,
}

impl Opened {
    /// Says what is missing.
    pub(super) fn warn(&self) {
        for warning in &self.warnings {
            warn!("{warning}: going on without it");
        }
    }
}

pub(super) fn open_volume(arguments: &Arguments) -> Result<Opened, StartError> {
    let path = fs::canonicalize(&arguments.image)
        .map_err(|error| StartError::new(arguments.image.display(), error))?;
    let image = Image::open_exclusive(&path, Access::ReadWrite).map_err(described)?;
    let superblock = image.load().map_err(described)?;
    let (options, text) = options_of(&superblock, arguments)?;
    if !superblock.is_ghost() && image.is_on_tmpfs() {
        return Err(StartError::new(
            path.display(),
            "the image is on tmpfs, whose pages are themselves swapped: swapping to it deadlocks \
             the machine. Put it on a disk",
        ));
    }
    let (members, warnings) = open_members(&superblock, &path, &options)?;
    Ok(Opened { image, superblock, options, text, members, warnings })
}

/// Opens the images of a volume that lies over several; what is missing is refused, or with
/// `degraded=on` answered as warnings.
fn open_members(
    superblock: &Superblock,
    path: &Path,
    options: &TypedOptions,
) -> Result<(Vec<OpenMember>, Vec<String>), StartError> {
    let BackendOptions::Tier(tier) = &options.backend else { return Ok(Default::default()) };
    let (members, missing) = members::find(superblock, path);
    if missing.is_empty() || tier.degraded {
        return Ok((members, missing));
    }
    let why = format!("{}; mount with -o degraded=on to go on without it", missing.join("; "));
    Err(StartError::new(path.display(), why))
}

/// The options in force: the superblock's, and over them those of the command line.
pub(super) fn options_of(
    superblock: &Superblock,
    arguments: &Arguments,
) -> Result<(TypedOptions, String), StartError> {
    let spec = superblock.type_spec().ok_or_else(|| {
        let why = format!("the types are {}", swapfs_format::types::known_names());
        StartError::new(format_args!("unknown type '{}'", superblock.type_name), why)
    })?;
    spec.mount_options(&superblock.options, &arguments.options.join(","))
        .map_err(|error| StartError::new(arguments.image.display(), error))
}

/// How requests are to come: by rings of this layout, or by /dev/fuse. `guarded`: a supervisor
/// watches. Where there are rings, their threads are the volume's.
pub(super) fn transport_of(
    options: &mut TypedOptions,
    guarded: bool,
) -> Result<Option<Layout>, StartError> {
    let wanted = match options.common.transport {
        Transport::Fuse => false,
        Transport::Auto => !guarded && uring::is_enabled() == Some(true),
        Transport::Uring => {
            let why = match uring::is_enabled() {
                Some(true) => None,
                Some(false) => Some(format!(
                    "it is off in this kernel. 'echo Y > {}' turns it on for all FUSE file systems \
                     that are mounted from then on, and 'swapfs up --enable-uring' does so; \
                     transport=fuse does without",
                    uring::SWITCH
                )),
                None => Some(
                    "this kernel's FUSE has no io_uring (it takes Linux 6.14, built with \
                     CONFIG_FUSE_IO_URING): transport=fuse does without"
                        .to_owned(),
                ),
            };
            if let Some(why) = why {
                return Err(StartError::new("transport=uring", why));
            }
            true
        }
    };
    if !wanted {
        return Ok(None);
    }
    let layout = Layout::for_this_machine(&options.backend);
    options.common.threads = Some(layout.threads());
    Ok(Some(layout))
}

/// The buffers of a volume, with room for a transport's requests if it needs that.
pub(super) fn buffers_for(
    resources: &Resources,
    payloads: Option<Payloads>,
) -> std::io::Result<BufferPool> {
    BufferPool::with_payloads(resources.small_buffers, resources.large_buffers, payloads)
}

fn described(error: ImageError) -> StartError {
    StartError(error.to_string())
}

pub(super) fn check_mountpoint(path: &Path) -> Result<PathBuf, StartError> {
    let fail = |why: String| StartError::new(format_args!("mount point {}", path.display()), why);
    let canonical = fs::canonicalize(path)
        .map_err(|error| fail(format!("{error}: make it first: mkdir -p {}", path.display())))?;
    let mut entries = fs::read_dir(&canonical).map_err(|error| fail(error.to_string()))?;
    match entries.next() {
        None => Ok(canonical),
        Some(_) => Err(fail("not empty: use an empty directory".to_owned())),
    }
}

pub(super) fn open_fuse_device() -> Result<File, StartError> {
    const PATH: &str = "/dev/fuse";
    File::options().read(true).write(true).open(PATH).map_err(|error| {
        StartError::new(PATH, format_args!("{error}: is FUSE in the kernel? try: modprobe fuse"))
    })
}
