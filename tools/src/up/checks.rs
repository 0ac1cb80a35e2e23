//! What `up` makes sure of before it touches anything.

use crate::failure::Failure;
use crate::loop_device;
use crate::sys::process;
use crate::volumes::Volume;
use std::io;
use std::path::{Path, PathBuf};
use swapfsd::fuse::uring;

/// The device that FUSE daemons open.
const FUSE_DEVICE: &str = "/dev/fuse";

/// Root, FUSE, and loop devices.
///
/// # Errors
/// The first that is missing, and how to get it.
pub fn machine() -> Result<(), Failure> {
    if !process::is_root() {
        return Err(Failure::new("not root", "only root can mount and swap: try again with sudo"));
    }
    present(Path::new(FUSE_DEVICE), "modprobe fuse")?;
    present(Path::new(loop_device::CONTROL), "modprobe loop")
}

fn present(device: &Path, load: &str) -> Result<(), Failure> {
    if device.exists() {
        return Ok(());
    }
    Err(Failure::new(
        device.display(),
        format_args!(
            "is not there: load the kernel module ({load}), or in a container pass the device in"
        ),
    ))
}

/// The image is not up already.
///
/// # Errors
/// Says where it is up.
pub fn not_up(volumes: &[Volume], image: &Path) -> Result<(), Failure> {
    let Some(volume) = volumes.iter().find(|volume| volume.image.as_deref() == Some(image)) else {
        return Ok(());
    };
    let devices: Vec<String> = volume
        .devices
        .iter()
        .map(|device| {
            let role = if device.swap.is_some() { "swap on" } else { "attached to" };
            format!(", {role} {}", device.path.display())
        })
        .collect();
    Err(Failure::new(
        image.display(),
        format_args!(
            "is already up: mounted at {}{}: see 'swapfs status', or run 'swapfs down' first",
            volume.mount.display(),
            devices.concat()
        ),
    ))
}

/// No other volume is mounted where this one would be: a copy of an image has its UUID too.
///
/// # Errors
/// Says which one.
pub fn not_mounted(volumes: &[Volume], mount: &Path) -> Result<(), Failure> {
    let Some(volume) = volumes.iter().find(|volume| volume.mount == mount) else { return Ok(()) };
    Err(Failure::new(
        mount.display(),
        format_args!(
            "{} is mounted there, a volume with the same UUID: run 'swapfs down' for it first, or \
             name another mount point with --mountpoint",
            volume.name().display()
        ),
    ))
}

/// The mount point that the person named: there, a directory, empty; as an absolute path.
///
/// # Errors
/// What is wrong with it.
pub fn mount_point(directory: &Path) -> Result<PathBuf, Failure> {
    let shown = directory.display().to_string();
    let failure = |error: io::Error| {
        let failure = Failure::os(&shown, "use as mount point", &error);
        if error.kind() == io::ErrorKind::NotFound {
            return failure.and(format_args!("make it first: mkdir -p {shown}"));
        }
        failure
    };
    let absolute = std::fs::canonicalize(directory).map_err(failure)?;
    let mut entries = std::fs::read_dir(&absolute).map_err(failure)?;
    if entries.next().is_some() {
        return Err(Failure::new(
            &shown,
            "the mount point is not empty: what is in it would be hidden; name an empty directory",
        ));
    }
    Ok(absolute)
}

/// Switches FUSE over io_uring on for all file systems that are mounted from now on, and says so.
///
/// # Errors
/// If this kernel has no such switch, or it can't be set.
pub fn enable_uring() -> Result<(), Failure> {
    match uring::is_enabled() {
        Some(true) => Ok(()),
        Some(false) => {
            std::fs::write(uring::SWITCH, "Y").map_err(|error| {
                Failure::os(uring::SWITCH, "switch FUSE over io_uring on", &error)
            })?;
            eprintln!("swapfs: FUSE over io_uring is on now ({} was N)", uring::SWITCH);
            Ok(())
        }
        None => Err(Failure::new(
            "--enable-uring",
            "this kernel's FUSE has no io_uring (it takes Linux 6.14, built with \
             CONFIG_FUSE_IO_URING): is the module loaded? try: modprobe fuse",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::Device;

    #[test]
    fn a_volume_that_is_up_says_where() {
        let volume = Volume {
            image: Some("/img/a".into()),
            mount: "/run/swapfs/u1".into(),
            devices: vec![Device {
                path: "/dev/loop4".into(),
                backing: "/run/swapfs/u1/swapfile".into(),
                swap: None,
            }],
        };
        assert_eq!(not_up(std::slice::from_ref(&volume), Path::new("/img/b")), Ok(()));
        let failure = not_up(&[volume], Path::new("/img/a")).unwrap_err().to_string();
        assert_eq!(
            failure,
            "/img/a: is already up: mounted at /run/swapfs/u1, attached to /dev/loop4: \
             see 'swapfs status', or run 'swapfs down' first"
        );
    }

    #[test]
    fn a_copy_of_a_mounted_image_is_told_from_the_original() {
        let mount = Path::new("/run/swapfs/u1");
        let volume =
            Volume { image: Some("/img/a".into()), mount: mount.into(), devices: Vec::new() };
        let failure = not_mounted(&[volume], mount).unwrap_err().to_string();
        assert!(failure.contains("/img/a is mounted there"), "{failure}");
        assert_eq!(not_mounted(&[], mount), Ok(()));
    }

    #[test]
    fn mount_points_that_cannot_be_used() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        assert_eq!(mount_point(dir.path()), Ok(std::fs::canonicalize(dir.path()).unwrap()));

        let missing = mount_point(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("No such file") && missing.contains("mkdir -p"), "{missing}");

        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let not_a_directory = mount_point(&file).unwrap_err().to_string();
        assert!(not_a_directory.contains("Not a directory"), "{not_a_directory}");

        let not_empty = mount_point(dir.path()).unwrap_err().to_string();
        assert!(not_empty.contains("not empty"), "{not_empty}");
    }

    #[test]
    fn a_missing_device_says_what_to_load() {
        let failure = present(Path::new("/dev/no-such"), "modprobe fuse").unwrap_err();
        assert!(failure.to_string().contains("modprobe fuse"));
    }
}
