//! Writing a format, in an order that is safe to interrupt.
//!
//! 1. The old primary superblock and the places of backups are zeroed, with the rest of the
//!    first and the last MiB, and flushed: from here on the image is nothing that any program
//!    knows.
//! 2. The data section is made ready, page 0 gets its swap header, the backup is written, and
//!    all that is flushed.
//! 3. The primary superblock is written, and flushed.
//!
//! So a primary superblock that checks says that everything before it is there.

use crate::export::Export;
use crate::plan::{Plan, Preallocate};
use crate::target::last_page;
use crate::{Error, Progress};
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use swapfs_format::superblock::{PRIMARY_OFFSET_BYTES, Superblock};
use swapfs_format::{PAGE_BYTES, PAGE_LEN, size, types};
use swapfsd::buffer::{BufferPool, LARGE_BYTES};
use swapfsd::image::{Access, Image, ImageKind};
use swapfsd::sys::file::write_all_at;

/// How much is zeroed at each end of an image, at most.
const WIPED_BYTES: u64 = 1 << 20;

/// What a format is written to. Tests stand a medium in for it that stops anywhere.
pub trait Medium {
    /// Writes at a byte offset.
    ///
    /// # Errors
    /// What the system answers.
    fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written durable.
    ///
    /// # Errors
    /// What the system answers.
    fn sync(&mut self) -> io::Result<()>;
    /// Makes the data section ready to be swapped to.
    ///
    /// # Errors
    /// What the system answers; `Interrupted` if `progress` breaks.
    fn prepare_data(&mut self, progress: Progress<'_>) -> io::Result<()>;
    /// Where backups of an earlier volume may lie.
    fn old_backups(&self) -> Vec<u64>;
}

/// Writes what `plan` says.
///
/// # Errors
/// What failed, in words.
pub fn write_format(
    medium: &mut dyn Medium,
    plan: &Plan,
    progress: Progress<'_>,
) -> Result<(), Error> {
    let superblock = &plan.superblock;
    let encoded = superblock.encode().map_err(|error| Error::new(plan.image.display(), error))?;
    let failed = |doing: &str| {
        let doing = doing.to_owned();
        let image = plan.image.clone();
        move |error: io::Error| describe(&image, &doing, &error)
    };
    let zeros = vec![0; WIPED_BYTES as usize];
    let mut places = vec![(PRIMARY_OFFSET_BYTES, PAGE_BYTES)];
    places.extend(medium.old_backups().into_iter().map(|place| (place, PAGE_BYTES)));
    places.extend(ends(superblock.image_bytes));
    for (offset_bytes, length) in places {
        let zeros = &zeros[..length as usize];
        medium.write(offset_bytes, zeros).map_err(failed("removing what was there"))?;
    }
    medium.sync().map_err(failed("removing what was there"))?;
    if !superblock.is_ghost() {
        medium.prepare_data(progress).map_err(failed("writing the data section"))?;
        let is_log = superblock.type_name == types::LOG.name;
        let first_page = if is_log || superblock.is_member() {
            // Its first two pages say what the log holds: nothing. The daemon writes the header. In a
            // member there is neither, and nothing of an older volume is to be found.
            let place = superblock.data_offset_bytes + PAGE_BYTES;
            medium.write(place, &zeros[..PAGE_LEN]).map_err(failed("emptying the data section"))?;
            [0; PAGE_LEN]
        } else {
            superblock.swap_header().encode()
        };
        medium
            .write(superblock.data_offset_bytes, &first_page)
            .map_err(failed("writing the first page of the data section"))?;
    }
    medium
        .write(superblock.backup_offset_bytes, &encoded)
        .map_err(failed("writing the backup superblock"))?;
    medium.sync().map_err(failed("flushing"))?;
    medium
        .write(PRIMARY_OFFSET_BYTES, &encoded)
        .map_err(failed("writing the primary superblock"))?;
    medium.sync().map_err(failed("flushing"))
}

/// Offset and length of the first and the last MiB of an image, without the primary superblock.
/// That is where RAID, LVM, partition tables and most file systems have their signatures: left
/// there, they would have a RAID assembled, or a file system mounted, from a swapfs image.
fn ends(image_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let front_end = WIPED_BYTES.min(image_bytes);
    let back = image_bytes.saturating_sub(WIPED_BYTES).max(front_end);
    let ranges = [(PAGE_BYTES, front_end), (back, image_bytes)];
    ranges.into_iter().filter(|(start, end)| start < end).map(|(start, end)| (start, end - start))
}

fn describe(image: &Path, doing: &str, error: &io::Error) -> Error {
    let free = || match swapfsd::sys::file::available_bytes(image) {
        Ok(bytes) => format!(" ({} are free)", size::human(bytes)),
        Err(_) => String::new(),
    };
    match error.kind() {
        io::ErrorKind::Interrupted => {
            Error::new(image.display(), "interrupted: it is no volume now")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(
            image.display(),
            format_args!("{doing}: the disk is full{}: make room on it, or use another", free()),
        ),
        _ => Error::new(image.display(), format_args!("{doing}: {error}")),
    }
}

/// What one plan is written to.
#[derive(Debug)]
pub(crate) enum Target {
    /// Something of this machine's.
    Image(Box<ImageMedium>),
    /// Something elsewhere, already connected.
    Export(Arc<Export>),
}

impl Target {
    /// Opens what `plan` is for; an image is created where it is to be.
    ///
    /// # Errors
    /// As [`ImageMedium::open`].
    pub(crate) fn open(plan: &mut Plan) -> Result<Target, Error> {
        match &plan.export {
            Some(export) => Ok(Target::Export(Arc::clone(export))),
            None => Ok(Target::Image(Box::new(ImageMedium::open(plan)?))),
        }
    }

    pub(crate) fn medium(&mut self) -> &mut dyn Medium {
        match self {
            Target::Image(image) => &mut **image,
            Target::Export(export) => export,
        }
    }

    /// How much of [`Progress`] is made while this is written, in bytes.
    pub(crate) fn progress_bytes(&self) -> u64 {
        match self {
            Target::Image(image) => image.progress_bytes(),
            Target::Export(_) => 0,
        }
    }

    /// Makes sure that it is no volume and no member, as well as can be.
    pub(crate) fn invalidate(&mut self) {
        let medium = self.medium();
        let written = medium.write(PRIMARY_OFFSET_BYTES, &[0; PAGE_LEN]);
        let _: io::Result<()> = written.and_then(|()| medium.sync());
    }
}

/// A file or block device.
#[derive(Debug)]
pub(crate) struct ImageMedium {
    image: Image,
    superblock: Superblock,
    preallocate: Preallocate,
    old_backups: Vec<u64>,
}

impl ImageMedium {
    /// Opens the target, or creates it with its space allocated and mode 0600.
    ///
    /// # Errors
    /// What the system answers; for a full disk, how much is missing.
    pub(crate) fn open(plan: &mut Plan) -> Result<ImageMedium, Error> {
        let image = match plan.target.take() {
            Some(image) => image,
            None => {
                create(plan)?;
                Image::open_exclusive(&plan.image, Access::ReadWrite).map_err(|error| {
                    drop(fs::remove_file(&plan.image));
                    Error::new("opening", error)
                })?
            }
        };
        let pair = image.read_superblocks();
        let mut old_backups = Vec::new();
        for place in [pair.backup_offset_bytes, last_page(image.bytes())] {
            let inside = place >= PAGE_BYTES && place + PAGE_BYTES <= image.bytes();
            if inside && place != plan.superblock.backup_offset_bytes {
                old_backups.push(place);
            }
        }
        Ok(ImageMedium {
            image,
            superblock: plan.superblock.clone(),
            preallocate: plan.preallocate,
            old_backups,
        })
    }
}

impl ImageMedium {
    fn progress_bytes(&self) -> u64 {
        let filled = self.image.kind() == ImageKind::File && self.preallocate == Preallocate::Full;
        if filled { self.superblock.data_bytes } else { 0 }
    }
}

/// Creates the image, not longer readable than by root, with all its space.
fn create(plan: &Plan) -> Result<(), Error> {
    let what = plan.image.display();
    let file =
        File::options().read(true).write(true).create_new(true).mode(0o600).open(&plan.image);
    let file = file.map_err(|error| Error::new(&what, error))?;
    let bytes = plan.superblock.image_bytes;
    // Asked before: a file system may keep what it allocated before it found itself full.
    let free = available_bytes(&file);
    let outcome = allocate(&file, bytes);
    outcome.map_err(|error| {
        drop(fs::remove_file(&plan.image));
        let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        let why = match free {
            Some(free) if full => format!(
                "the disk is full: {} are needed, {} are free: make the volume smaller, or use another disk",
                size::human(bytes),
                size::human(free)
            ),
            _ => format!("allocating {}: {error}", size::human(bytes)),
        };
        Error::new(&what, why)
    })
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    swapfsd::sys::file::allocate(file, bytes).map_err(io::Error::from_raw_os_error)
}

fn available_bytes(file: &File) -> Option<u64> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    swapfsd::sys::file::available_bytes(Path::new(&path)).ok()
}

impl Medium for ImageMedium {
    fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        write_all_at(self.image.file(), bytes, offset_bytes).map_err(io::Error::from_raw_os_error)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.image.file().sync_all()
    }

    fn prepare_data(&mut self, progress: Progress<'_>) -> io::Result<()> {
        if self.image.kind() == ImageKind::BlockDevice {
            return Ok(());
        }
        let end = self.superblock.data_offset_bytes + self.superblock.data_bytes;
        allocate(self.image.file(), end.max(self.image.bytes()))?;
        if self.preallocate == Preallocate::Falloc {
            return Ok(());
        }
        let direct =
            self.image.open_direct().map_err(|error| io::Error::other(error.to_string()))?;
        // Fresh from the system, so all zeros, and aligned for direct I/O.
        let zeros = BufferPool::new(0, 1)?.take(LARGE_BYTES);
        let total = self.superblock.data_bytes;
        let mut done = 0;
        while done < total {
            if progress(done, total).is_break() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = (total - done).min(zeros.len() as u64);
            let offset = self.superblock.data_offset_bytes + done;
            write_all_at(&direct, &zeros[..len as usize], offset)
                .map_err(io::Error::from_raw_os_error)?;
            done += len;
        }
        let _: ControlFlow<()> = progress(total, total);
        Ok(())
    }

    fn old_backups(&self) -> Vec<u64> {
        self.old_backups.clone()
    }
}

#[cfg(test)]
pub(crate) mod tests;
