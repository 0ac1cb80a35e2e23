//! `swapfs resize`: another size for a volume that is not mounted. The kernel takes the size of a
//! swap area at swapon, and that of the file below it at the mount, so that is when it can change.

use crate::failure::Failure;
use crate::fsck::refused;
use crate::image;
use crate::volumes::{self, Volume};
use serde::Serialize;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use swapfs_format::size::human;
use swapfs_format::superblock::{PRIMARY_OFFSET_BYTES, Superblock};
use swapfs_format::swap_header::{MAX_SLOT_COUNT, MIN_SLOT_COUNT};
use swapfs_format::{PAGE_BYTES, PAGE_LEN, types};
use swapfsd::image::{Access, Image};
use swapfsd::sys::file::{read_all_at, write_all_at};

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResizeReport {
    /// The image.
    pub image: PathBuf,
    /// The volume's type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Bytes of the volume before.
    pub old_bytes: u64,
    /// Bytes of the volume now.
    pub new_bytes: u64,
    /// How often its superblock has been written.
    pub generation: u64,
}

impl fmt::Display for ResizeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (image, new) = (self.image.display(), human(self.new_bytes));
        if self.old_bytes == self.new_bytes {
            return write!(f, "{image}: the volume has {new} already");
        }
        write!(f, "{image}: the volume has {new} now, {} before", human(self.old_bytes))
    }
}

/// Gives the volume at `path` the size `bytes`, of which whole pages count.
///
/// # Errors
/// If it is mounted, is a member of another volume, is damaged, can't have that size, or can't be
/// written.
pub fn resize(volumes: &[Volume], path: &Path, bytes: u64) -> Result<ResizeReport, Failure> {
    if let Ok(volume) = volumes::select(volumes, path) {
        return Err(mounted(volume, bytes));
    }
    // Says what to do about an image that is no volume.
    image::superblock(path)?;
    let image = Image::open_exclusive(path, Access::ReadWrite).map_err(|error| refused(&error))?;
    let old = image.load().map_err(|error| refused(&error))?;
    let wrong = |why: &dyn fmt::Display| Failure::new(path.display(), why);
    if image.read_superblocks().backup.as_ref() != Ok(&old) {
        return Err(wrong(&format_args!(
            "its two superblocks do not say the same: 'fsck.swapfs {}' repairs that; then resize it",
            path.display()
        )));
    }
    let new = planned(&image, &old, bytes).map_err(|why| wrong(&why))?;
    let report = ResizeReport {
        image: path.to_owned(),
        type_name: new.type_name.clone(),
        old_bytes: old.volume_bytes(),
        new_bytes: new.volume_bytes(),
        generation: new.generation,
    };
    if new.slot_count != old.slot_count {
        write(&image, &old, &new)?;
    }
    Ok(report)
}

fn mounted(volume: &Volume, bytes: u64) -> Failure {
    let name = volume.name().display();
    Failure::new(
        &name,
        format_args!(
            "is mounted, and its size is fixed as long as it is: the kernel takes the size of a \
             swap area when it is attached, and that of its file at the mount: run 'swapfs down \
             {name}', 'swapfs resize {name} {}' and 'swapfs up {name}'",
            argument(bytes)
        ),
    )
}

/// A size as it is given to a command.
fn argument(bytes: u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    units
        .iter()
        .find(|(shift, _)| bytes.is_multiple_of(1 << shift) && bytes > 0)
        .map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// The superblock that the image gets.
fn planned(image: &Image, old: &Superblock, bytes: u64) -> Result<Superblock, String> {
    let slot_count = bytes / PAGE_BYTES;
    if !(MIN_SLOT_COUNT..=MAX_SLOT_COUNT).contains(&slot_count) {
        return Err(format!(
            "no volume can have {}: give {} to {}",
            human(bytes),
            human(MIN_SLOT_COUNT * PAGE_BYTES),
            human(MAX_SLOT_COUNT * PAGE_BYTES)
        ));
    }
    if old.type_name == types::LINEAR.name && slot_count * PAGE_BYTES > old.data_bytes {
        return Err(format!(
            "its data section has {}, a place for each page, and {} do not fit: format a larger \
             image with mkswapfs",
            human(old.data_bytes),
            human(bytes)
        ));
    }
    if old.type_name == types::LOG.name && slot_count != old.slot_count && is_written(image, old)? {
        return Err(format!(
            "its log has been mounted, and what it holds is for a volume of {}: format it anew, \
             with 'mkswapfs -f -t log -s {} {}'",
            human(old.volume_bytes()),
            argument(bytes),
            image.path().display()
        ));
    }
    let new = Superblock { slot_count, generation: old.generation + 1, ..old.clone() };
    new.encode().map_err(|error| error.to_string())?;
    Ok(new)
}

/// Whether the log was ever mounted. A mount writes an anchor before all else, to one of the first
/// two pages, which the formatter leaves empty.
fn is_written(image: &Image, superblock: &Superblock) -> Result<bool, String> {
    let mut anchors = [0; 2 * PAGE_LEN];
    read_all_at(image.file(), &mut anchors, superblock.data_offset_bytes)
        .map_err(|errno| format!("cannot read its log: {}", io::Error::from_raw_os_error(errno)))?;
    Ok(anchors.iter().any(|byte| *byte != 0))
}

/// Writes both superblocks, flushed one by one, so that a crash leaves one that is right; and the
/// swap header, where the image has one.
fn write(image: &Image, old: &Superblock, new: &Superblock) -> Result<(), Failure> {
    let what = image.path().display();
    let superblock = new.encode().map_err(|error| Failure::new(&what, error))?;
    let mut steps = vec![
        ("write the backup superblock", new.backup_offset_bytes, superblock),
        ("write the primary superblock", PRIMARY_OFFSET_BYTES, superblock),
    ];
    if new.type_name == types::LINEAR.name {
        let header = ("write the swap header", new.data_offset_bytes, new.swap_header().encode());
        // It must never promise more than the volume has.
        let at = if new.slot_count < old.slot_count { 0 } else { steps.len() };
        steps.insert(at, header);
    }
    for (doing, offset_bytes, page) in &steps {
        write_all_at(image.file(), page, *offset_bytes)
            .map_err(io::Error::from_raw_os_error)
            .and_then(|()| image.file().sync_all())
            .map_err(|error| {
                Failure::os(&what, doing, &error)
                    .and(format_args!("'fsck.swapfs {what}' shows what there is, and repairs it"))
            })?;
    }
    let pair = image.read_superblocks();
    if pair.primary.as_ref() != Ok(new) || pair.backup.as_ref() != Ok(new) {
        return Err(Failure::new(
            &what,
            "what was written is not what is read back: the disk may be failing; 'fsck.swapfs' \
             shows what there is",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
