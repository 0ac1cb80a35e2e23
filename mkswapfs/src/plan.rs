//! From a request to a superblock: everything that can be refused is refused here.

use crate::Error;
use crate::export::Export;
use crate::member::MemberSpec;
use crate::target::{self, Target};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use swapfs_format::geometry::Geometry;
use swapfs_format::log::{DEFAULT_SEGMENT_BYTES, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES};
use swapfs_format::superblock::Superblock;
use swapfs_format::types::{self, BackendOptions, TypeSpec};
use swapfs_format::{PAGE_BYTES, size};
use swapfsd::backend::log::scan::LogArea;
use swapfsd::image::Image;
use uuid::Uuid;

/// How the space of a new file is made sure of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preallocate {
    /// Allocated and written with zeros. Without that, the first swap-out to each block makes
    /// the file system convert an extent, with a journal entry, just when memory is short.
    #[default]
    Full,
    /// Only allocated: quick, and slower at the first swap-out to each block.
    Falloc,
}

/// Garbage collection needs a handful of free segments: with fewer than this, they would be a
/// large part of the image.
const SEGMENTS_WANTED: u64 = 128;

/// What to format, and how.
#[derive(Debug, Clone)]
pub struct FormatRequest {
    /// File or block device.
    pub image: PathBuf,
    /// Name of the back-end type.
    pub type_name: String,
    /// Size of the volume, in bytes; `None`: as large as fits.
    pub volume_bytes: Option<u64>,
    /// Label, at most 16 bytes.
    pub label: String,
    /// UUID; `None`: a random one.
    pub uuid: Option<Uuid>,
    /// Options of the type, `key=value,...`.
    pub options: String,
    /// Members, for type `tier`; hottest first.
    pub members: Vec<MemberSpec>,
    /// Erase block, in bytes; `None`: what the device says.
    pub erase_block_bytes: Option<u64>,
    /// For regular files of types with a data section.
    pub preallocate: Preallocate,
    /// Overwrite what is there.
    pub force: bool,
    /// Only say what would be made.
    pub dry_run: bool,
}

impl FormatRequest {
    /// A request with nothing but defaults: type `linear`.
    #[must_use]
    pub fn new(image: &Path) -> FormatRequest {
        FormatRequest {
            image: image.to_owned(),
            type_name: types::LINEAR.name.to_owned(),
            volume_bytes: None,
            label: String::new(),
            uuid: None,
            options: String::new(),
            members: Vec::new(),
            erase_block_bytes: None,
            preallocate: Preallocate::default(),
            force: false,
            dry_run: false,
        }
    }
}

/// What will be written.
#[derive(Debug)]
pub struct Plan {
    /// The image.
    pub image: PathBuf,
    /// It does not exist yet.
    pub create: bool,
    /// Its superblock.
    pub superblock: Superblock,
    /// Space of a new or regular file, see [`Preallocate`].
    pub preallocate: Preallocate,
    /// Open and locked, unless it is to be created.
    pub(crate) target: Option<Image>,
    /// It is no image here, but this export of a server, whose stub is the next plan.
    pub(crate) export: Option<Arc<Export>>,
}

impl Plan {
    /// An image that is there has room for it.
    ///
    /// # Errors
    /// It has not.
    pub(crate) fn fits(&self) -> Result<(), Error> {
        match &self.target {
            Some(image) if self.superblock.image_bytes > image.bytes() => {
                let need = size::human(self.superblock.image_bytes);
                let why = format!("it has {}, and {need} are needed", size::human(image.bytes()));
                Err(Error::new(self.image.display(), why))
            }
            _ => Ok(()),
        }
    }
}

/// The type that was asked for.
///
/// # Errors
/// If there is none of that name.
pub(crate) fn type_of(request: &FormatRequest) -> Result<&'static TypeSpec, Error> {
    types::find(&request.type_name).ok_or_else(|| {
        let why = format!("the types are {}", types::known_names());
        Error::new(format_args!("unknown type '{}'", request.type_name), why)
    })
}

/// Decides what will be written to the volume's own image, without writing.
///
/// # Errors
/// Everything that is wrong with the request, or with its target.
pub(crate) fn plan(request: &FormatRequest) -> Result<Plan, Error> {
    let image = &request.image;
    let spec = type_of(request)?;
    let options =
        spec.parse_options(&request.options).map_err(|error| Error::new(image.display(), error))?;
    let target = target::inspect(image, request.force)?;
    if !spec.ghost {
        target.refuse_tmpfs(image)?;
    }
    let mut erase_block_bytes = request.erase_block_bytes.unwrap_or(target.erase_block_bytes);
    if let BackendOptions::Log(log) = &options.backend {
        let wanted = log.segment_bytes.or(request.erase_block_bytes);
        let image_bytes = match target.bytes {
            0 => request.volume_bytes.unwrap_or(0),
            bytes => bytes,
        };
        erase_block_bytes = segment_bytes(image, wanted, image_bytes, target.erase_block_bytes)?;
    }
    let geometry = geometry(request, spec, &target, erase_block_bytes)?;
    let mut superblock =
        Superblock::new(spec.name, &geometry, request.uuid.unwrap_or_else(Uuid::new_v4));
    superblock.label.clone_from(&request.label);
    superblock.options.clone_from(&request.options);
    superblock.erase_block_bytes = erase_block_bytes as u32;
    superblock.created_unix_s = creation_time(&superblock, target.image.as_ref());
    if spec.name == types::LOG.name {
        LogArea::of(&superblock).map_err(|why| Error::new(image.display(), why))?;
    }
    superblock.encode().map_err(|error| Error::new(image.display(), error))?;
    let plan = Plan {
        image: image.clone(),
        create: target.image.is_none(),
        superblock,
        preallocate: request.preallocate,
        target: target.image,
        export: None,
    };
    plan.fits()?;
    Ok(plan)
}

/// Now, in seconds since 1970. What is left of an older volume must not be taken for this one's, even
/// if both have the same UUID and were made within a second.
pub(crate) fn creation_time(superblock: &Superblock, target: Option<&Image>) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let older = target.and_then(|image| image.read_superblocks().primary.ok());
    match older {
        Some(older) if older.uuid == superblock.uuid => now.max(older.created_unix_s + 1),
        _ => now,
    }
}

/// The segment of a log: what was asked for, or a multiple of the device's erase block of 2 MiB
/// and more, which is `device_bytes`, but such that a small image has enough of them.
pub(crate) fn segment_bytes(
    image: &Path,
    wanted: Option<u64>,
    image_bytes: u64,
    device_bytes: u64,
) -> Result<u64, Error> {
    let wrong = |bytes: u64| {
        let why = format!(
            "a segment of {bytes} bytes is not possible: it is a power of two from {} to {}",
            size::human(MIN_SEGMENT_BYTES),
            size::human(MAX_SEGMENT_BYTES)
        );
        Error::new(image.display(), why)
    };
    if let Some(bytes) = wanted {
        let possible = (MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&bytes);
        return if possible && bytes.is_power_of_two() { Ok(bytes) } else { Err(wrong(bytes)) };
    }
    let least = device_bytes.clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES);
    let wanted = DEFAULT_SEGMENT_BYTES.max(least);
    let mut bytes = wanted;
    while bytes > least && image_bytes / bytes < SEGMENTS_WANTED {
        bytes /= 2;
    }
    Ok(bytes)
}

/// In an image that is larger than a ghost needs, the backup lies where it is looked for: at its end.
pub(crate) fn with_backup_at_end(geometry: Geometry, image_bytes: u64) -> Geometry {
    match image_bytes / PAGE_BYTES * PAGE_BYTES {
        bytes if bytes > geometry.image_bytes => {
            Geometry { image_bytes: bytes, backup_offset_bytes: bytes - PAGE_BYTES, ..geometry }
        }
        _ => geometry,
    }
}

fn geometry(
    request: &FormatRequest,
    spec: &TypeSpec,
    target: &Target,
    erase_block_bytes: u64,
) -> Result<Geometry, Error> {
    let what = request.image.display();
    let size_needed = || {
        let why = if spec.ghost {
            format!(
                "type '{}' keeps no pages in the image: give the volume's size with -s",
                spec.name
            )
        } else {
            "it does not exist: give the volume's size with -s to create it".to_owned()
        };
        Error::new(&what, why)
    };
    let geometry = match (&target.image, spec.ghost) {
        (_, true) => {
            let geometry = Geometry::ghost(request.volume_bytes.ok_or_else(size_needed)?);
            geometry.map(|geometry| with_backup_at_end(geometry, target.bytes))
        }
        (None, false) if spec.name == types::LOG.name => {
            let volume_bytes = request.volume_bytes.ok_or_else(size_needed)?;
            Geometry::in_segments(volume_bytes, erase_block_bytes)
        }
        (Some(_), false) if spec.name == types::LOG.name => {
            Geometry::fitted_segments(target.bytes, request.volume_bytes, erase_block_bytes)
        }
        (None, false) => {
            let volume_bytes = request.volume_bytes.ok_or_else(size_needed)?;
            Geometry::in_place(volume_bytes, erase_block_bytes)
        }
        (Some(_), false) => Geometry::fitted(target.bytes, request.volume_bytes, erase_block_bytes),
    };
    geometry.map_err(|error| Error::new(&what, error))
}
