//! The member images of a tier volume: how they are found and opened, and who keeps them open.
//!
//! A member has a **place**: the index of its entry in the volume's table of members, below
//! [`MAX_DEVICE_MEMBERS`]. The supervisor holds an open descriptor for each place
//! ([`crate::supervisor::link::Holdings`]), and with it the lock on the member: so a successor of
//! the worker serves the same images, whatever their paths say by then. A place without a member
//! holds another descriptor of the volume's own image, a **filler**.

pub mod elsewhere;
pub mod images;
mod search;

use crate::image::{Access, Image};
use search::Search;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use swapfs_format::superblock::{Member, Superblock};
use uuid::Uuid;

pub use swapfs_format::member::MAX_DEVICE_MEMBERS;

/// Keeps members' descriptors for those who serve after this process.
pub trait Keeper: Send + Sync + std::fmt::Debug {
    /// Has `file` kept at `place` of the volume's members. From `Ok` on every successor has it;
    /// the caller makes the member part of the volume after that. May wait for ten seconds: not
    /// for threads of the I/O path, nor inside [`crate::backend::Backend::activate`], whose thread
    /// is the one that reads the answer.
    ///
    /// A process that dies in between leaves a member held that is none: a back end that adopts
    /// finds a file at a place that its own memory does not name, and is to [`Keeper::forget`] it
    /// (later, on a thread of its own).
    ///
    /// # Errors
    /// `EBUSY` while an upgrade is under way, `ENOTCONN` while there is no supervisor,
    /// `ETIMEDOUT` if it does not answer, or what a system call answers. Then no successor needs
    /// to know of the member.
    fn hold(&self, place: usize, file: &File) -> io::Result<()>;

    /// Has the descriptor at `place` given up. The caller has made the member no part of the
    /// volume before. May wait as [`Keeper::hold`] does.
    ///
    /// # Errors
    /// As for [`Keeper::hold`], but `EBUSY`. The image may then stay locked until the unmount.
    fn forget(&self, place: usize) -> io::Result<()>;
}

/// Where nobody serves after this process, nothing needs to be kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoKeeper;

impl Keeper for NoKeeper {
    fn hold(&self, _: usize, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn forget(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

/// What a back end gets of a volume's members.
#[derive(Debug)]
pub struct Members {
    /// The images by place, open for reading and writing, with the locks on them. `None`: there is
    /// no member at that place, or it is missing.
    pub files: [Option<File>; MAX_DEVICE_MEMBERS],
    /// To be told when members come and go.
    pub keeper: Arc<dyn Keeper>,
}

impl Members {
    /// Of a volume that has none.
    #[must_use]
    pub fn none() -> Members {
        Members { files: Default::default(), keeper: Arc::new(NoKeeper) }
    }

    /// Of images that were just opened. Their locks end with the descriptors.
    ///
    /// # Errors
    /// What fcntl(2) answers.
    pub fn of_open(open: Vec<OpenMember>, keeper: Arc<dyn Keeper>) -> io::Result<Members> {
        let mut members = Members { files: Default::default(), keeper };
        for member in open {
            members.files[member.place] = Some(member.image.file().try_clone()?);
        }
        Ok(members)
    }

    /// Of what is held for the volume of `image`: places that hold the image itself are empty.
    ///
    /// # Errors
    /// What fstat(2) and fcntl(2) answer.
    pub fn of_places(
        image: &File,
        places: &[File; MAX_DEVICE_MEMBERS],
        keeper: Arc<dyn Keeper>,
    ) -> io::Result<Members> {
        let mut members = Members { files: Default::default(), keeper };
        for (file, place) in members.files.iter_mut().zip(places) {
            if !is_same_file(image, place)? {
                *file = Some(place.try_clone()?);
            }
        }
        Ok(members)
    }
}

/// Are both descriptors of the same file or device node?
///
/// # Errors
/// What fstat(2) answers.
pub fn is_same_file(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// A member's image, open, with the lock on it.
#[derive(Debug)]
pub struct OpenMember {
    /// Index of its entry in the volume's table of members.
    pub place: usize,
    /// Its place in the order of tiers, hottest first, as the volume's table has it.
    pub order: u32,
    /// The image, for nobody else.
    pub image: Image,
    /// Its superblock.
    pub superblock: Superblock,
}

/// Opens the members of the volume whose superblock is `superblock` and whose image is at
/// `image_path`, each for this process alone.
///
/// A member is looked for where it was when it was added; then by its UUID among the files that
/// lie beside the volume's image or where a member was, and on all block devices. Answers those
/// that were opened, in the order of their places, and a sentence for each one that was not.
#[must_use]
pub fn find(superblock: &Superblock, image_path: &Path) -> (Vec<OpenMember>, Vec<String>) {
    let volume = superblock.uuid;
    let mut search = Search::new(volume, image_path);
    let (mut open, mut missing) = (Vec::new(), Vec::new());
    for (place, entry) in superblock.members.iter().enumerate() {
        let found = if place < MAX_DEVICE_MEMBERS {
            find_one(entry, volume, &mut search)
        } else {
            Err(format!("a volume has {MAX_DEVICE_MEMBERS} members at most"))
        };
        match found {
            Ok((image, superblock)) => {
                open.push(OpenMember { place, order: entry.order, image, superblock });
            }
            Err(why) => {
                let last_seen = match entry.path_hint.as_str() {
                    "" => String::new(),
                    hint => format!(", last seen at {hint}"),
                };
                let Member { order, uuid, .. } = entry;
                missing.push(format!("member {order} (UUID {uuid}{last_seen}): {why}"));
            }
        }
    }
    (open, missing)
}

fn find_one(
    entry: &Member,
    volume: Uuid,
    search: &mut Search,
) -> Result<(Image, Superblock), String> {
    let hint = (!entry.path_hint.is_empty()).then(|| PathBuf::from(&entry.path_hint));
    let not_there = match &hint {
        Some(path) => match search::member_at(path, volume) {
            Ok(uuid) if uuid == entry.uuid => return open_member(path, entry.uuid, volume),
            Ok(_) => "there is another member".to_owned(),
            Err(why) => why,
        },
        None => "nobody has written down where".to_owned(),
    };
    let mut outcome = Err(format!(
        "{not_there}, and it was not found anywhere else: connect its device, or put its file \
         beside the volume's image"
    ));
    for path in search.paths_of(entry.uuid, hint.as_deref()) {
        outcome = open_member(&path, entry.uuid, volume);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Opens the member `uuid` of `volume` at `path` for this process alone.
///
/// # Errors
/// In one sentence, why it can't be used.
pub fn open_member(path: &Path, uuid: Uuid, volume: Uuid) -> Result<(Image, Superblock), String> {
    let image = Image::open_exclusive(path, Access::ReadWrite).map_err(|why| why.to_string())?;
    let fail = |why: &str| Err(format!("{}: {why}", path.display()));
    if image.is_on_tmpfs() {
        return fail(
            "the image is on tmpfs, whose pages are themselves swapped: swapping to it deadlocks \
             the machine: put it on a disk",
        );
    }
    let superblock = image.load_member(volume).map_err(|why| why.to_string())?;
    // Once more: before the lock was taken it may have been formatted anew.
    if superblock.uuid != uuid {
        return fail("another image is there now");
    }
    Ok((image, superblock))
}

/// Descriptors for all places: the members', and fillers where there is none.
///
/// # Errors
/// What fcntl(2) answers.
pub fn places_of(image: &File, members: &[OpenMember]) -> io::Result<[File; MAX_DEVICE_MEMBERS]> {
    let mut files: [Option<File>; MAX_DEVICE_MEMBERS] = Default::default();
    for member in members {
        files[member.place] = Some(member.image.file().try_clone()?);
    }
    let mut place = |index: usize| files[index].take().map_or_else(|| image.try_clone(), Ok);
    Ok([place(0)?, place(1)?, place(2)?, place(3)?, place(4)?, place(5)?, place(6)?, place(7)?])
}

/// The path by which a member's open image was reached last; empty if the kernel does not say.
#[must_use]
pub fn path_of(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}

#[cfg(test)]
mod tests;
