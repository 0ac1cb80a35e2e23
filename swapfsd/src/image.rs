//! An image as the programs open it: file or block device, its lock, its superblocks.

use crate::backend::log::scan::LogArea;
use crate::sys::device;
use crate::sys::file::read_all_at;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use swapfs_format::log::{MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES};
use swapfs_format::member::{
    MAX_DEVICE_MEMBERS, MIN_MEMBER_BYTES, MIN_MEMBER_SEGMENTS, MemberKind, capacity_bytes,
};
use swapfs_format::superblock::{
    DecodeError, KNOWN_READ_ONLY_COMPATIBLE, PRIMARY_OFFSET_BYTES, Superblock,
};
use swapfs_format::{PAGE_BYTES, PAGE_LEN, size, types};
use uuid::Uuid;

/// What an image lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// Why an image can't be used. The text says what to do next.
#[derive(Debug)]
pub struct ImageError {
    /// The image.
    pub path: PathBuf,
    /// What is wrong.
    pub kind: ImageErrorKind,
    /// The system's reason, where there is one.
    pub source: Option<io::Error>,
}

/// The kinds of [`ImageError`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageErrorKind {
    /// Nothing has that name.
    Missing,
    /// The user may not.
    NotPermitted,
    /// A directory, socket, or the like.
    NotAnImage,
    /// Mounted, or held by another program.
    InUse,
    /// The file system has no direct I/O.
    NoDirectIo,
    /// The primary superblock can't be used; `backup_is_good` says whether the other can.
    BadSuperblock {
        /// What is wrong with the primary.
        primary: String,
        /// Whether fsck can repair it from the backup.
        backup_is_good: bool,
    },
    /// The image has fewer bytes than its superblock says.
    Truncated {
        /// Bytes that there are.
        have: u64,
        /// Bytes that the superblock says.
        need: u64,
    },
    /// The superblock names a type that this program does not know.
    UnknownType(String),
    /// Features that may be read but not mounted without being known.
    ReadOnlyFeatures(u64),
    /// The superblock's type and its data section don't go together.
    WrongDataSection(String),
    /// It belongs to the tier volume of this UUID, and is no volume itself.
    IsMember(Uuid),
    /// It is no member that the tier volume could use.
    NotAMember(String),
    /// Reading, writing or opening failed.
    Io,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.kind {
            ImageErrorKind::Missing => {
                write!(f, "no such file or device: format one with mkswapfs -s SIZE")
            }
            ImageErrorKind::NotPermitted => write!(f, "permission denied: try again as root"),
            ImageErrorKind::NotAnImage => write!(f, "neither a regular file nor a block device"),
            ImageErrorKind::InUse => {
                write!(f, "in use: it is mounted, or another program holds it (see swapfs status)")
            }
            ImageErrorKind::NoDirectIo => write!(
                f,
                "its file system has no direct I/O, without which swap can deadlock: use a file \
                 on ext4, xfs or btrfs, or a block device"
            ),
            ImageErrorKind::BadSuperblock { primary, backup_is_good: true } => {
                write!(f, "{primary}: the backup superblock is good: run fsck.swapfs -p")
            }
            ImageErrorKind::BadSuperblock { primary, backup_is_good: false } => {
                write!(f, "{primary}: there is no good backup either: format it with mkswapfs")
            }
            ImageErrorKind::Truncated { have, need } => write!(
                f,
                "the image has {have} bytes ({}), its superblock says {need} ({}): it was cut \
                 off: restore its size or format it again",
                size::human(*have),
                size::human(*need)
            ),
            ImageErrorKind::UnknownType(name) => write!(
                f,
                "unknown type '{name}': this program knows {}: use a newer one",
                types::known_names()
            ),
            ImageErrorKind::ReadOnlyFeatures(bits) => write!(
                f,
                "features {bits:#x} that this program does not know allow no mount: use a newer one"
            ),
            ImageErrorKind::WrongDataSection(why) => write!(f, "{why}: run fsck.swapfs"),
            ImageErrorKind::IsMember(volume) => write!(
                f,
                "it is a member of the tier volume {volume}: mount that volume's own image"
            ),
            ImageErrorKind::NotAMember(why) => write!(f, "{why}"),
            ImageErrorKind::Io => write!(f, "input/output error"),
        }?;
        match &self.source {
            Some(source) if self.kind == ImageErrorKind::Io => write!(f, ": {source}"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for ImageError {}

/// Both copies of a superblock, each as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuperblockPair {
    /// The copy at the start.
    pub primary: Result<Superblock, DecodeError>,
    /// The copy at [`SuperblockPair::backup_offset_bytes`].
    pub backup: Result<Superblock, DecodeError>,
    /// Where the backup was looked for.
    pub backup_offset_bytes: u64,
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    kind: ImageKind,
    bytes: u64,
    access: Access,
}

impl Image {
    /// Opens an image to look at it; others may have it open or mounted.
    ///
    /// # Errors
    /// If it is missing, not permitted, or no file or block device.
    pub fn open(path: &Path, access: Access) -> Result<Image, ImageError> {
        Image::open_with(path, access, 0)
    }

    /// Opens an image for oneself: nobody else who asks for that gets it, as long as this lives.
    ///
    /// # Errors
    /// As [`Image::open`], and `InUse`.
    pub fn open_exclusive(path: &Path, access: Access) -> Result<Image, ImageError> {
        // For a block device, O_EXCL without O_CREAT asks whether the kernel itself uses it.
        let is_device = path.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        let image = Image::open_with(path, access, if is_device { libc::O_EXCL } else { 0 })?;
        match device::lock_exclusively(&image.file) {
            Ok(()) => Ok(image),
            Err(source) => Err(image.error(ImageErrorKind::InUse, Some(source))),
        }
    }

    /// An image that another process has opened, and locked if need be; it keeps the lock.
    ///
    /// # Errors
    /// If it is no file or block device.
    pub fn from_open(path: &Path, file: File) -> Result<Image, ImageError> {
        Image::identify(path, file, Access::ReadWrite)
    }

    fn open_with(path: &Path, access: Access, flags: i32) -> Result<Image, ImageError> {
        let error = |kind, source| ImageError { path: path.to_owned(), kind, source };
        let opened = File::options()
            .read(true)
            .write(access == Access::ReadWrite)
            .custom_flags(flags | libc::O_CLOEXEC)
            .open(path);
        let file = opened.map_err(|source| {
            let kind = match source.raw_os_error() {
                Some(libc::ENOENT) => ImageErrorKind::Missing,
                Some(libc::EACCES | libc::EPERM) => ImageErrorKind::NotPermitted,
                Some(libc::EISDIR | libc::ENXIO) => ImageErrorKind::NotAnImage,
                Some(libc::EBUSY | libc::ETXTBSY) => ImageErrorKind::InUse,
                _ => ImageErrorKind::Io,
            };
            error(kind, Some(source))
        })?;
        Image::identify(path, file, access)
    }

    fn identify(path: &Path, file: File, access: Access) -> Result<Image, ImageError> {
        let error = |kind, source| ImageError { path: path.to_owned(), kind, source };
        let meta = file.metadata().map_err(|source| error(ImageErrorKind::Io, Some(source)))?;
        let (kind, bytes) = if meta.is_file() {
            (ImageKind::File, Ok(meta.len()))
        } else if meta.file_type().is_block_device() {
            (ImageKind::BlockDevice, device::block_device_bytes(&file))
        } else {
            return Err(error(ImageErrorKind::NotAnImage, None));
        };
        let bytes = bytes.map_err(|source| error(ImageErrorKind::Io, Some(source)))?;
        Ok(Image { path: path.to_owned(), file, kind, bytes, access })
    }

    fn error(&self, kind: ImageErrorKind, source: Option<io::Error>) -> ImageError {
        ImageError { path: self.path.clone(), kind, source }
    }

    /// The path that it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// File or block device.
    #[must_use]
    pub fn kind(&self) -> ImageKind {
        self.kind
    }

    /// Size in bytes when it was opened.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The open file, buffered.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A second descriptor of the same file, for direct I/O.
    ///
    /// # Errors
    /// `NoDirectIo` if the file system has none.
    pub fn open_direct(&self) -> Result<File, ImageError> {
        // By the open descriptor, so that it is the same file whatever the path says by now.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let opened = File::options()
            .read(true)
            .write(self.access == Access::ReadWrite)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
            .open(path);
        opened.map_err(|source| {
            let kind = match source.raw_os_error() {
                Some(libc::EINVAL) => ImageErrorKind::NoDirectIo,
                _ => ImageErrorKind::Io,
            };
            self.error(kind, Some(source))
        })
    }

    /// The image lies in memory that is swapped itself.
    #[must_use]
    pub fn is_on_tmpfs(&self) -> bool {
        self.kind == ImageKind::File && device::is_on_tmpfs(&self.file)
    }

    /// Reads both superblocks. The backup is where the primary says, or where an image of this
    /// size has it: in its last whole page.
    #[must_use]
    pub fn read_superblocks(&self) -> SuperblockPair {
        let primary = self.read_superblock(PRIMARY_OFFSET_BYTES);
        let last_page = (self.bytes / PAGE_BYTES).saturating_sub(1) * PAGE_BYTES;
        let backup_offset_bytes = match &primary {
            Ok(superblock) => superblock.backup_offset_bytes,
            Err(_) => last_page,
        };
        let backup = self.read_superblock(backup_offset_bytes);
        SuperblockPair { primary, backup, backup_offset_bytes }
    }

    /// Reads the superblock at a place.
    ///
    /// # Errors
    /// What is wrong with the bytes there.
    pub fn read_superblock(&self, offset_bytes: u64) -> Result<Superblock, DecodeError> {
        let mut page = [0; PAGE_LEN];
        if offset_bytes.checked_add(PAGE_BYTES).is_none_or(|end| end > self.bytes) {
            let rest = self.bytes.saturating_sub(offset_bytes).min(PAGE_BYTES);
            return Err(DecodeError::TooShort(rest as usize));
        }
        match read_all_at(&self.file, &mut page, offset_bytes) {
            Ok(()) => Superblock::decode(&page),
            Err(errno) => Err(DecodeError::Unreadable(errno)),
        }
    }

    /// The superblock, if everything about it allows a mount.
    ///
    /// # Errors
    /// What does not, and what to do about it; `IsMember` for an image of a tier volume.
    pub fn load(&self) -> Result<Superblock, ImageError> {
        let superblock = self.usable()?;
        let wrong = |why| Err(self.error(ImageErrorKind::WrongDataSection(why), None));
        let Some(spec) = superblock.type_spec() else {
            let name = superblock.type_name.clone();
            return Err(self.error(ImageErrorKind::UnknownType(name), None));
        };
        if superblock.is_member() {
            return Err(self.error(ImageErrorKind::IsMember(superblock.volume_uuid), None));
        }
        if spec.ghost != superblock.is_ghost() {
            let has = if superblock.is_ghost() { "no data section" } else { "a data section" };
            let why = format!("the image has {has}, which type '{}' does not go with", spec.name);
            return wrong(why);
        }
        let in_place = spec.name == types::LINEAR.name;
        if in_place && superblock.data_bytes < superblock.volume_bytes() {
            return wrong(format!(
                "the data section has {} bytes, the volume {}",
                superblock.data_bytes,
                superblock.volume_bytes()
            ));
        }
        if spec.name == types::LOG.name
            && let Err(why) = LogArea::of(&superblock)
        {
            return wrong(why);
        }
        Ok(superblock)
    }

    /// The superblock, if the image can serve the tier volume of UUID `volume` as a member.
    ///
    /// # Errors
    /// What does not allow that, and what to do about it; `NotAMember` if it belongs to no volume or
    /// to another one.
    pub fn load_member(&self, volume: Uuid) -> Result<Superblock, ImageError> {
        let superblock = self.usable()?;
        if !superblock.is_member() {
            let why = "it is a volume itself, no member of one: give the path of a member";
            return Err(self.error(ImageErrorKind::NotAMember(why.to_owned()), None));
        }
        if superblock.volume_uuid != volume {
            let why = format!(
                "it is a member of the tier volume {}, not of {volume}: give the path of one of its \
                 own members, or format it for this volume",
                superblock.volume_uuid
            );
            return Err(self.error(ImageErrorKind::NotAMember(why), None));
        }
        match member_flaw(&superblock) {
            Some(why) => Err(self.error(ImageErrorKind::WrongDataSection(why), None)),
            None => Ok(superblock),
        }
    }

    /// The primary superblock, if this program may work with the image that it describes.
    fn usable(&self) -> Result<Superblock, ImageError> {
        let pair = self.read_superblocks();
        let superblock = pair.primary.map_err(|primary| {
            let newer = matches!(
                primary,
                DecodeError::UnknownVersion(_) | DecodeError::UnknownIncompatible(_)
            );
            // What a newer program wrote must not be "repaired" by an older one.
            let backup_is_good = pair.backup.is_ok() && !newer;
            let primary = primary.to_string();
            self.error(ImageErrorKind::BadSuperblock { primary, backup_is_good }, None)
        })?;
        if self.bytes < superblock.image_bytes {
            let need = superblock.image_bytes;
            return Err(self.error(ImageErrorKind::Truncated { have: self.bytes, need }, None));
        }
        let unknown = superblock.features_read_only_compatible & !KNOWN_READ_ONLY_COMPATIBLE;
        if unknown != 0 {
            return Err(self.error(ImageErrorKind::ReadOnlyFeatures(unknown), None));
        }
        Ok(superblock)
    }
}

/// What is wrong with the superblock of a member, in words; `None` if a tier volume can use it. Its
/// options are not looked at.
#[must_use]
pub fn member_flaw(superblock: &Superblock) -> Option<String> {
    let Some(kind) = MemberKind::of(superblock) else {
        return Some(format!(
            "a member is of type 'log', 'linear' or 'remote', not '{}'",
            superblock.type_name
        ));
    };
    let (order, data_bytes) = (superblock.member_order, superblock.data_bytes);
    if !(1..=MAX_DEVICE_MEMBERS as u32).contains(&order) {
        return Some(format!(
            "its place among the tiers is {order}: members have 1 to {MAX_DEVICE_MEMBERS}"
        ));
    }
    if kind.is_ghost() {
        let capacity_bytes = capacity_bytes(superblock);
        return match data_bytes {
            0 if capacity_bytes >= MIN_MEMBER_BYTES => None,
            0 => Some(format!(
                "its pages may take {capacity_bytes} bytes: a member takes {MIN_MEMBER_BYTES} and more"
            )),
            _ => Some("it has a data section, which its type has none of".to_owned()),
        };
    }
    if superblock.slot_count != data_bytes / PAGE_BYTES {
        return Some(format!(
            "its data section has {data_bytes} bytes, its superblock says {} slots",
            superblock.slot_count
        ));
    }
    if kind == MemberKind::Linear {
        return (data_bytes < MIN_MEMBER_BYTES).then(|| {
            format!(
                "its data section has {data_bytes} bytes: a member takes {MIN_MEMBER_BYTES} and more"
            )
        });
    }
    let segment_bytes = u64::from(superblock.erase_block_bytes);
    if !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&segment_bytes) {
        return Some(format!(
            "its erase block, which is the segment, has {segment_bytes} bytes: a member of type \
             'log' takes 64 KiB to 64 MiB"
        ));
    }
    if !data_bytes.is_multiple_of(segment_bytes) {
        return Some(format!(
            "its data section has {data_bytes} bytes: no multiple of the segment's {segment_bytes}"
        ));
    }
    let segments = data_bytes / segment_bytes;
    (segments < MIN_MEMBER_SEGMENTS).then(|| {
        format!(
            "its data section has {segments} segments: a member of type 'log' takes \
             {MIN_MEMBER_SEGMENTS} and more"
        )
    })
}

#[cfg(test)]
mod tests;
