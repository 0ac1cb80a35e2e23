//! What a mount needs before anything is served: the image, its options, an empty directory, the
//! kernel's FUSE.

use super::{Arguments, StartError};
use crate::image::{Access, Image, ImageError};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use swapfs_format::superblock::Superblock;
use swapfs_format::types::TypedOptions;

/// An image that may be mounted, and how.
pub(super) struct Opened {
    pub(super) image: Image,
    pub(super) superblock: Superblock,
    pub(super) options: TypedOptions,
    /// The options as text.
    pub(super) text: String,
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
    Ok(Opened { image, superblock, options, text })
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
