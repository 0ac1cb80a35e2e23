//! Which volumes are up, found in what the kernel says: mounts, loop devices, swap areas. There
//! is no state file, so nothing can be out of date, and a half-up volume is seen as it is. No
//! function here touches the mount itself: its daemon may hang.

use crate::failure::Failure;
use crate::loop_device::{self, Backing};
use crate::procfs::mounts::{self, Mount};
use crate::procfs::swaps::{self, SwapArea};
use std::path::{Path, PathBuf};

/// Where `up` makes its mount points.
pub const RUN_DIRECTORY: &str = "/run/swapfs";
/// The file in the mount that is the volume.
pub const VOLUME_FILE: &str = "swapfile";

/// The socket on which the supervisor of the volume takes requests.
#[must_use]
pub fn control_socket(uuid: &str) -> PathBuf {
    Path::new(RUN_DIRECTORY).join(format!("{uuid}.sock"))
}

/// A loop device on a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `/dev/loopN`
    pub path: PathBuf,
    /// The volume's file, as the kernel shows it.
    pub backing: PathBuf,
    /// The swap area on it.
    pub swap: Option<SwapArea>,
}

/// A volume that is up, or half up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The image; `None` when the mount is gone and only the loop device is left.
    pub image: Option<PathBuf>,
    /// Where it is, or was, mounted.
    pub mount: PathBuf,
    /// The loop devices on it: one, if all is in order.
    pub devices: Vec<Device>,
}

impl Volume {
    /// The file that the loop devices are on.
    #[must_use]
    pub fn volume_file(&self) -> PathBuf {
        self.mount.join(VOLUME_FILE)
    }

    /// What is swapped out to it.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.swap_areas().map(|area| area.used_bytes).sum()
    }

    /// The swap areas on it.
    pub fn swap_areas(&self) -> impl Iterator<Item = &SwapArea> {
        self.devices.iter().filter_map(|device| device.swap.as_ref())
    }

    /// What to call it in messages: the image, or else the mount point.
    #[must_use]
    pub fn name(&self) -> &Path {
        self.image.as_deref().unwrap_or(&self.mount)
    }

    /// The image, the mount point, the device or the last part of the mount point (the UUID).
    fn answers_to(&self, name: &Path) -> bool {
        self.mount == name
            || self.image.as_deref() == Some(name)
            || self.volume_file() == name
            || self.devices.iter().any(|device| device.path == name)
    }
}

/// Looks at the whole machine.
///
/// # Errors
/// If `/proc` or `/sys` cannot be read.
pub fn discover() -> Result<Vec<Volume>, Failure> {
    let mounts = mounts::read_swapfs()?;
    let backings = loop_device::attached()?;
    // A kernel without swap has no such file; volumes may be mounted all the same.
    let areas = if Path::new("/proc/swaps").exists() { swaps::read()? } else { Vec::new() };
    Ok(assemble(&mounts, &backings, &areas))
}

/// The volume mounted at `mount`, as it is now.
///
/// # Errors
/// As for [`discover`].
pub fn at(mount: &Path) -> Result<Option<Volume>, Failure> {
    Ok(discover()?.into_iter().find(|volume| volume.mount == mount))
}

/// Puts together what belongs together.
fn assemble(mounts: &[Mount], backings: &[Backing], areas: &[SwapArea]) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = Vec::new();
    for mount in mounts {
        if !volumes.iter().any(|volume| volume.mount == mount.target) {
            volumes.push(Volume {
                image: Some(mount.source.clone()),
                mount: mount.target.clone(),
                devices: Vec::new(),
            });
        }
    }
    for backing in backings {
        let Some(parent) = backing.given.parent() else { continue };
        if backing.given.file_name() != Some(VOLUME_FILE.as_ref()) {
            continue;
        }
        let device = Device {
            path: backing.device.clone(),
            backing: backing.file.clone(),
            swap: swaps::find(areas, &backing.device).cloned(),
        };
        if let Some(volume) = volumes.iter_mut().find(|volume| volume.mount == parent) {
            volume.devices.push(device);
        } else if parent.parent() == Some(Path::new(RUN_DIRECTORY)) {
            // Unmounted (lazily, say) under its loop device. Elsewhere, a file of this name is
            // none of ours.
            volumes.push(Volume { image: None, mount: parent.to_owned(), devices: vec![device] });
        }
    }
    volumes
}

/// Finds the volume that a person named: by image, mount point, device or UUID.
///
/// # Errors
/// If there is none of that name; the message says which there are.
pub fn select<'a>(volumes: &'a [Volume], name: &Path) -> Result<&'a Volume, Failure> {
    let absolute = std::path::absolute(name).unwrap_or_else(|_| name.to_owned());
    let by_uuid = Path::new(RUN_DIRECTORY).join(name);
    let known = |candidate: &Path| volumes.iter().find(|volume| volume.answers_to(candidate));
    if let Some(volume) = known(&absolute).or_else(|| known(&by_uuid)) {
        return Ok(volume);
    }
    // Links are followed only now, and never into a mount of ours, which may hang.
    let inside_a_mount = volumes.iter().any(|volume| absolute.starts_with(&volume.mount));
    let resolved = if inside_a_mount { None } else { std::fs::canonicalize(&absolute).ok() };
    resolved.as_deref().and_then(known).ok_or_else(|| {
        Failure::new(name.display(), format_args!("is not up: {}", summary(volumes)))
    })
}

/// The volume to take when none was named.
///
/// # Errors
/// Unless there is exactly one.
pub fn only(volumes: &[Volume]) -> Result<&Volume, Failure> {
    match volumes {
        [volume] => Ok(volume),
        [] => Err(Failure::new("volumes", summary(volumes))),
        several => Err(Failure::new(
            "volumes",
            format_args!("{}: name one, or write --all", summary(several)),
        )),
    }
}

/// Which volumes there are, for messages.
fn summary(volumes: &[Volume]) -> String {
    if volumes.is_empty() {
        return "no volume is up".to_owned();
    }
    let names: Vec<String> = volumes
        .iter()
        .map(|volume| match &volume.image {
            Some(image) => format!("{} at {}", image.display(), volume.mount.display()),
            None => format!("what is left of {}", volume.mount.display()),
        })
        .collect();
    format!("there are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &str, target: &str) -> Mount {
        Mount { source: source.into(), target: target.into(), fs_type: mounts::FS_TYPE.into() }
    }

    fn backing(device: &str, file: &str) -> Backing {
        Backing { device: device.into(), file: file.into(), given: file.into() }
    }

    fn area(path: &str, used_bytes: u64) -> SwapArea {
        SwapArea { path: path.into(), size_bytes: 1 << 30, used_bytes, priority: 5 }
    }

    fn sample() -> Vec<Volume> {
        assemble(
            &[mount("/img/a", "/run/swapfs/u1"), mount("/img/b", "/mnt/b")],
            &[
                backing("/dev/loop0", "/home/me/cd.iso"),
                backing("/dev/loop1", "/run/swapfs/u1/swapfile"),
                Backing {
                    device: "/dev/loop2".into(),
                    file: "/swapfile".into(),
                    given: "/run/swapfs/gone/swapfile".into(),
                },
                backing("/dev/loop3", "/home/me/swapfile"),
            ],
            &[area("/dev/loop1", 4096), area("/dev/loop3", 8192)],
        )
    }

    #[test]
    fn mounts_devices_and_areas_find_each_other() {
        let volumes = sample();
        assert_eq!(volumes.len(), 3);
        assert_eq!(volumes[0].used_bytes(), 4096);
        assert_eq!(volumes[0].devices[0].path, Path::new("/dev/loop1"));
        assert!(volumes[1].devices.is_empty());
    }

    #[test]
    fn a_loop_device_whose_mount_is_gone_is_still_a_volume() {
        let volumes = sample();
        assert_eq!(volumes[2].image, None);
        assert_eq!(volumes[2].name(), Path::new("/run/swapfs/gone"));
        assert_eq!(volumes[2].devices[0].swap, None);
        assert_eq!(volumes[2].devices[0].backing, Path::new("/swapfile"));
    }

    #[test]
    fn a_swap_file_of_somebody_else_is_none_of_ours() {
        let names: Vec<_> =
            sample().iter().flat_map(|volume| volume.devices.clone()).map(|d| d.path).collect();
        assert!(!names.contains(&PathBuf::from("/dev/loop0")));
        assert!(!names.contains(&PathBuf::from("/dev/loop3")));
    }

    #[test]
    fn a_volume_answers_to_all_its_names() {
        let volumes = sample();
        for name in ["/img/a", "/run/swapfs/u1", "/dev/loop1", "u1", "/run/swapfs/u1/", "/img/./a"]
        {
            assert_eq!(select(&volumes, Path::new(name)), Ok(&volumes[0]), "{name}");
        }
        let failure = select(&volumes, Path::new("/img/none")).unwrap_err().to_string();
        assert_eq!(
            failure,
            "/img/none: is not up: there are /img/a at /run/swapfs/u1, /img/b at /mnt/b, \
             what is left of /run/swapfs/gone"
        );
    }

    #[test]
    fn a_link_to_the_image_names_it_too() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let image = std::fs::canonicalize(dir.path()).unwrap().join("image");
        std::fs::write(&image, b"").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&image, &link).unwrap();
        let volumes = assemble(&[mount(image.to_str().unwrap(), "/run/swapfs/u1")], &[], &[]);
        assert_eq!(select(&volumes, &link), Ok(&volumes[0]));
    }

    #[test]
    fn none_is_chosen_among_several() {
        let volumes = sample();
        assert_eq!(only(&[]).unwrap_err().to_string(), "volumes: no volume is up");
        assert_eq!(only(&volumes[..1]), Ok(&volumes[0]));
        let failure = only(&volumes[..2]).unwrap_err().to_string();
        assert!(failure.contains("/img/a at") && failure.contains("--all"), "{failure}");
    }
}
