//! What may be overwritten, and what must not.

use crate::Error;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use swapfs_format::PAGE_BYTES;
use swapfs_format::geometry::MAX_ERASE_BLOCK_BYTES;
use swapfs_format::superblock::MAGIC;
use swapfsd::image::{Access, Image, ImageErrorKind, ImageKind, SuperblockPair};
use swapfsd::sys::device;

/// A target that may be formatted.
#[derive(Debug)]
pub struct Target {
    /// Open and locked; `None` if it does not exist.
    pub image: Option<Image>,
    /// Its size; 0 if it does not exist.
    pub bytes: u64,
    /// Erase block that the device names, or a page.
    pub erase_block_bytes: u64,
    /// It lies, or would lie, on tmpfs.
    pub on_tmpfs: bool,
}

impl Target {
    /// Swap must not lie in memory that is swapped.
    pub(crate) fn refuse_tmpfs(&self, path: &Path) -> Result<(), Error> {
        if !self.on_tmpfs {
            return Ok(());
        }
        Err(Error::new(
            path.display(),
            "on tmpfs, whose pages are themselves swapped: swapping to it deadlocks the machine. \
             Put the image on a disk",
        ))
    }
}

/// What an image is, whatever path leads to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A file: its file system and inode.
    File(u64, u64),
    /// A device, by its number.
    Device(u64),
    /// Not there yet: the path that it will have.
    Missing(PathBuf),
}

/// What `path` leads to. Nothing is opened.
pub(crate) fn identity(path: &Path) -> Identity {
    match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => Identity::Device(meta.rdev()),
        Ok(meta) => Identity::File(meta.dev(), meta.ino()),
        Err(_) => Identity::Missing(lasting_path(path)),
    }
}

/// The path from the root, without links; for a file that does not exist yet, the one that it will
/// have. As it is where that can't be told.
pub(crate) fn lasting_path(path: &Path) -> PathBuf {
    if let Ok(whole) = fs::canonicalize(path) {
        return whole;
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match (fs::canonicalize(parent.unwrap_or(Path::new("."))), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

/// A device with heads that move: to read in another place takes long.
pub(crate) fn is_rotational(path: &Path) -> bool {
    let Ok(meta) = fs::metadata(path) else { return false };
    if !meta.file_type().is_block_device() {
        return false;
    }
    let number = meta.rdev();
    let device = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
    // A partition has no queue of its own: that of the disk is one level up.
    ["queue", "../queue"].iter().any(|queue| {
        let said = fs::read_to_string(format!("{device}/{queue}/rotational"));
        said.is_ok_and(|said| said.trim() == "1")
    })
}

/// Opens a target for oneself and looks at what is on it.
///
/// # Errors
/// Always for one that is in use; without `force` for one that holds something.
pub fn inspect(path: &Path, force: bool) -> Result<Target, Error> {
    if let Some(why) = in_use(path) {
        return Err(Error::new(path.display(), why));
    }
    let image = match Image::open_exclusive(path, Access::ReadWrite) {
        Ok(image) => image,
        Err(error) if error.kind == ImageErrorKind::Missing => return missing(path),
        Err(error) => {
            // Its text begins with the path already.
            let text = error.to_string();
            let prefix = format!("{}: ", path.display());
            return Err(Error::new(path.display(), text.strip_prefix(&prefix).unwrap_or(&text)));
        }
    };
    if !force
        && image.bytes() > 0
        && let Some(found) = holds(&image)?
    {
        return Err(Error::new(
            path.display(),
            format_args!("holds {found}: nothing was changed. To overwrite it, use -f"),
        ));
    }
    let erase_block_bytes = match image.kind() {
        ImageKind::BlockDevice => device_erase_block(path),
        ImageKind::File => PAGE_BYTES,
    };
    Ok(Target {
        bytes: image.bytes(),
        erase_block_bytes,
        on_tmpfs: image.is_on_tmpfs(),
        image: Some(image),
    })
}

fn missing(path: &Path) -> Result<Target, Error> {
    if path.starts_with("/dev") && !path.starts_with("/dev/shm") {
        return Err(Error::new(path.display(), "no such device"));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.unwrap_or(Path::new("."));
    let opened = fs::File::open(folder)
        .map_err(|error| Error::new(folder.display(), format_args!("{error}: make it first")))?;
    Ok(Target {
        image: None,
        bytes: 0,
        erase_block_bytes: PAGE_BYTES,
        on_tmpfs: device::is_on_tmpfs(&opened),
    })
}

/// Something uses it right now: no force helps.
fn in_use(path: &Path) -> Option<String> {
    let wanted = fs::canonicalize(path).ok()?;
    if sources("/proc/swaps").any(|source| same(&source, &wanted)) {
        return Some("the kernel swaps to it: use swapoff first".to_owned());
    }
    if sources("/proc/self/mounts").any(|source| same(&source, &wanted)) {
        return Some("it is mounted: unmount it first (swapfs down)".to_owned());
    }
    let loops = fs::read_dir("/sys/block").ok()?.flatten();
    for entry in loops.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"loop")) {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        if backing.is_ok_and(|backing| Path::new(backing.trim_end()) == wanted) {
            let name = entry.file_name();
            return Some(format!("/dev/{} is attached to it: losetup -d first", name.display()));
        }
    }
    None
}

/// The first field of each line: where the kernel takes something from.
fn sources(list: &str) -> impl Iterator<Item = PathBuf> {
    let text = fs::read_to_string(list).unwrap_or_default();
    let paths: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .filter(|field| field.starts_with('/'))
        .map(|field| PathBuf::from(unescaped(field)))
        .collect();
    paths.into_iter()
}

/// The kernel writes a blank in a path as `\040`, and so on.
fn unescaped(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, behind)) = rest.split_once('\\') {
        out.push_str(before);
        match behind.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte as char);
                rest = &behind[3..];
            }
            None => {
                out.push('\\');
                rest = behind;
            }
        }
    }
    out + rest
}

fn same(source: &Path, wanted: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    source == wanted || inode(source).is_some_and(|found| Some(found) == inode(wanted))
}

/// What is on it, if anything: asked of blkid, which knows all that a distribution knows.
fn holds(image: &Image) -> Result<Option<String>, Error> {
    let pair = image.read_superblocks();
    let mut start = [0; MAGIC.len()];
    let read = swapfsd::sys::file::read_all_at(image.file(), &mut start, 0);
    if let Some(found) = swapfs_image(&pair) {
        return Ok(Some(found));
    }
    if read.is_ok() && start == MAGIC {
        return Ok(Some("a damaged swapfs volume".to_owned()));
    }
    foreign_signature(image.path())
}

/// What the superblocks of an image or export say, if either checks.
pub(crate) fn swapfs_image(pair: &SuperblockPair) -> Option<String> {
    let superblock = pair.primary.as_ref().or(pair.backup.as_ref()).ok()?;
    if superblock.is_member() {
        return Some(format!(
            "a member of the swapfs tier volume {}, of type {}",
            superblock.volume_uuid, superblock.type_name
        ));
    }
    let label = &superblock.label;
    let label = if label.is_empty() { String::new() } else { format!(" '{label}'") };
    Some(format!("a swapfs volume of type {}{label}", superblock.type_name))
}

/// Where the last whole page of so many bytes starts: there is the backup superblock.
pub(crate) fn last_page(bytes: u64) -> u64 {
    (bytes / PAGE_BYTES).saturating_sub(1) * PAGE_BYTES
}

/// A file system, partition table or the like that `blkid` finds on a file or device; `None` if
/// it finds nothing. A swapfs image is nothing to it.
///
/// # Errors
/// If there is no blkid, or it can't say.
pub fn foreign_signature(path: &Path) -> Result<Option<String>, Error> {
    let output = Command::new("blkid").args(["-p", "-o", "export"]).arg(path).output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::new(
                "blkid",
                "not found, so nobody can say what is on the target: install util-linux, or use -f",
            ));
        }
        Err(error) => return Err(Error::new("blkid", error)),
    };
    match output.status.code() {
        Some(0) => Ok(Some(describe(&String::from_utf8_lossy(&output.stdout)))),
        Some(2) => Ok(None),
        Some(8) => Ok(Some("more than one signature (see blkid -p)".to_owned())),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Error::new("blkid", format_args!("{}: to go on without it, use -f", said.trim())))
        }
    }
}

fn describe(export: &str) -> String {
    let value = |key: &str| {
        export.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
    };
    let label = value("LABEL").map_or(String::new(), |label| format!(" '{label}'"));
    match (value("TYPE"), value("PTTYPE")) {
        (Some(kind), _) if kind == "swap" => format!("a swap area{label}"),
        (Some(kind), _) => format!("a signature of {kind}{label}"),
        (None, Some(table)) => format!("a partition table ({table})"),
        (None, None) => "something that blkid knows".to_owned(),
    }
}

/// What the device says it is best written in: a power of two, or a page.
fn device_erase_block(path: &Path) -> u64 {
    let meta = fs::metadata(path).ok();
    let number = meta.map_or(0, |meta| meta.rdev());
    let queue = format!("/sys/dev/block/{}:{}/queue", libc::major(number), libc::minor(number));
    ["discard_granularity", "optimal_io_size"]
        .iter()
        .filter_map(|name| fs::read_to_string(format!("{queue}/{name}")).ok()?.trim().parse().ok())
        .find(|&bytes: &u64| {
            bytes.is_power_of_two() && (PAGE_BYTES..=MAX_ERASE_BLOCK_BYTES).contains(&bytes)
        })
        .unwrap_or(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blkids_answers() {
        assert_eq!(describe("DEVNAME=/dev/x\nTYPE=ext4\nLABEL=a b\n"), "a signature of ext4 'a b'");
        assert_eq!(describe("PTTYPE=gpt\n"), "a partition table (gpt)");
        assert_eq!(describe("TYPE=swap\n"), "a swap area");
        assert_eq!(describe("PART=1\n"), "something that blkid knows");
    }

    #[test]
    fn blanks_in_paths() {
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescaped("/plain\\"), "/plain\\");
    }
}
