//! Looking for members by their UUID, wherever they may be by now.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use swapfs_format::PAGE_LEN;
use swapfs_format::superblock::Superblock;
use uuid::Uuid;

/// Where the members of one volume have been seen.
#[derive(Debug)]
pub(super) struct Search {
    volume: Uuid,
    /// Directories that are still to be looked into.
    left: Vec<PathBuf>,
    seen: BTreeSet<PathBuf>,
    /// Block devices have been looked at.
    devices: bool,
    found: Vec<(Uuid, PathBuf)>,
}

impl Search {
    /// For the members of `volume`, whose image is at `image_path`.
    pub(super) fn new(volume: Uuid, image_path: &Path) -> Search {
        let left = directory_of(image_path).into_iter().collect();
        Search { volume, left, seen: BTreeSet::new(), devices: false, found: Vec::new() }
    }

    /// Where the member `uuid` is; it was at `hint`. Looks around once only, however many members
    /// are asked for.
    pub(super) fn paths_of(&mut self, uuid: Uuid, hint: Option<&Path>) -> Vec<PathBuf> {
        self.left.extend(hint.and_then(directory_of));
        while let Some(directory) = self.left.pop() {
            let Ok(directory) = fs::canonicalize(directory) else { continue };
            if self.seen.insert(directory.clone()) {
                self.look_into(&directory);
            }
        }
        if !self.devices {
            self.devices = true;
            self.look_at_devices();
        }
        let paths = self.found.iter().filter(|(found, _)| *found == uuid);
        paths.map(|(_, path)| path.clone()).collect()
    }

    fn look_into(&mut self, directory: &Path) {
        // Device nodes are found by the kernel's list of them.
        if directory.starts_with("/dev") {
            return;
        }
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                self.look_at(entry.path());
            }
        }
    }

    fn look_at_devices(&mut self) {
        let text = fs::read_to_string("/proc/partitions").unwrap_or_default();
        for name in device_names(&text) {
            self.look_at(Path::new("/dev").join(name));
        }
    }

    fn look_at(&mut self, path: PathBuf) {
        if let Ok(uuid) = member_at(&path, self.volume) {
            self.found.push((uuid, path));
        }
    }
}

fn directory_of(path: &Path) -> Option<PathBuf> {
    path.parent().map(Path::to_owned)
}

/// Names below /dev of the block devices in the text of /proc/partitions.
fn device_names(text: &str) -> impl Iterator<Item = String> {
    // Two lines of heading; the name is the fourth word, with '!' for '/'.
    text.lines().skip(2).filter_map(|line| Some(line.split_whitespace().nth(3)?.replace('!', "/")))
}

/// UUID of the member of `volume` that is at `path`. Only its first 4 KiB are looked at, and it is
/// not locked.
///
/// # Errors
/// In a few words, what is there instead.
pub(super) fn member_at(path: &Path, volume: Uuid) -> Result<Uuid, String> {
    let kind = fs::metadata(path).map_err(|error| error.to_string())?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err("neither a regular file nor a block device".to_owned());
    }
    // Not waiting for anything that was put in its place meanwhile.
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| error.to_string())?;
    let mut page = [0; PAGE_LEN];
    file.read_exact_at(&mut page, 0).map_err(|error| error.to_string())?;
    let found = Superblock::decode(&page).map_err(|error| error.to_string())?;
    if found.volume_uuid != volume {
        return Err(format!("the image there belongs to another volume ({})", found.volume_uuid));
    }
    if found.uuid == volume {
        return Err("the image there is the volume's own".to_owned());
    }
    Ok(found.uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_devices_are_found_by_the_kernels_list() {
        let text = "major minor  #blocks  name\n\n 254  0 268435456 vda\n 104 0 17 cciss!c0d0p1\n";
        let names: Vec<String> = device_names(text).collect();
        assert_eq!(names, ["vda", "cciss/c0d0p1"]);
        assert_eq!(device_names("").count(), 0);
    }
}
