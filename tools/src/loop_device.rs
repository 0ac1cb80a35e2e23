//! Loop devices: attach the volume's file, detach it again.

use crate::failure::Failure;
use crate::sys::loop_ioctl;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use swapfs_format::PAGE_BYTES;

/// The device that hands out loop devices.
pub const CONTROL: &str = "/dev/loop-control";
/// How often another process may take the free device first before we give up.
const ATTEMPTS: u32 = 32;
/// How long a device node may take to appear, and a device to become free.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
const SETTLE_STEP: Duration = Duration::from_millis(20);

/// A loop device and the file behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// `/dev/loopN`
    pub device: PathBuf,
    /// The path of the file, as the kernel shows it now.
    pub file: PathBuf,
    /// The path as it was when the device was attached: the same, unless the mount under it was
    /// taken away lazily.
    pub given: PathBuf,
}

/// Attaches `file` with blocks of a page and direct I/O, and says which device it is.
///
/// # Errors
/// No free device, no direct I/O on that file, or a kernel before 5.8. Nothing stays attached.
pub fn attach(file: &Path) -> Result<PathBuf, Failure> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|error| {
        Failure::os(CONTROL, "open", &error).and("load the loop driver: modprobe loop")
    })?;
    let backing = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .map_err(|error| Failure::os(file.display(), "open", &error))?;
    for _ in 0..ATTEMPTS {
        let number = loop_ioctl::free_number(&control).map_err(|error| {
            Failure::os(CONTROL, "get a free loop device", &error)
                .and("see 'losetup --list', detach one, or raise the module parameter max_loop")
        })?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open_when_there(&path)?;
        match loop_ioctl::configure(
            &device,
            backing.as_fd(),
            PAGE_BYTES as u32,
            file.as_os_str().as_bytes(),
        ) {
            Ok(()) => return check_direct_io(&device, path, file),
            // Somebody was quicker with this device: take the next one.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => {
                return Err(Failure::os(
                    path.display(),
                    &format!("attach {}", file.display()),
                    &error,
                )
                .and("LOOP_CONFIGURE needs Linux 5.8 or later"));
            }
        }
    }
    Err(Failure::new(
        CONTROL,
        format_args!("{ATTEMPTS} free loop devices in turn were taken by others: try again"),
    ))
}

/// The node of a new device may be made by udev, a moment later.
fn open_when_there(path: &Path) -> Result<File, Failure> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(device) => return Ok(device),
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                thread::sleep(SETTLE_STEP);
            }
            Err(error) => {
                return Err(Failure::os(path.display(), "open the free loop device", &error));
            }
        }
    }
}

/// The driver drops the direct I/O flag without a word when the file cannot do it.
fn check_direct_io(device: &File, path: PathBuf, file: &Path) -> Result<PathBuf, Failure> {
    let why = match loop_ioctl::status(device) {
        Ok(status) if status.direct_io && !status.auto_clear => return Ok(path),
        Ok(status) if status.auto_clear => "would detach itself at the next close".to_owned(),
        Ok(_) => format!(
            "does no direct I/O on {}: swap through the page cache can deadlock",
            file.display()
        ),
        Err(error) => format!("cannot be asked whether it does direct I/O: {error}"),
    };
    let failure = Failure::new(path.display(), why);
    match loop_ioctl::clear(device) {
        Ok(()) => Err(failure),
        Err(error) => Err(failure.and(format_args!(
            "and it is still attached ({error}): losetup -d {}",
            path.display()
        ))),
    }
}

/// Turns write-back throttling off: it starts at 16 swap-outs in flight. `false` when the kernel
/// has no throttling for this device, which is as good.
///
/// # Errors
/// If the setting exists and cannot be written.
pub fn disable_write_back_throttling(device: &Path) -> Result<bool, Failure> {
    let name = device.file_name().unwrap_or_default();
    let path = Path::new("/sys/block").join(name).join("queue/wbt_lat_usec");
    match std::fs::write(&path, "0") {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // Built without throttling: the file is there and refuses.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(Failure::os(path.display(), "write", &error)),
    }
}

/// Detaches `device` if `file` is behind it, and waits until it is free. A device that is
/// detached already, or has another file by now, is left alone.
///
/// # Errors
/// If it is still in use when the wait ends.
pub fn detach(device: &Path, file: &Path) -> Result<(), Failure> {
    if backing_of(device).as_deref() != Some(file) {
        return Ok(());
    }
    {
        let opened =
            File::open(device).map_err(|error| Failure::os(device.display(), "open", &error))?;
        match loop_ioctl::clear(&opened) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
            Err(error) => return Err(Failure::os(device.display(), "detach", &error)),
        }
        // Closing our own descriptor is what lets the driver finish.
    }
    let deadline = Instant::now() + SETTLE_LIMIT;
    while backing_of(device).as_deref() == Some(file) {
        if Instant::now() >= deadline {
            return Err(Failure::new(
                device.display(),
                format_args!(
                    "is still in use by another program {} s after it was detached: see \
                     'fuser -v {}', then try again",
                    SETTLE_LIMIT.as_secs(),
                    device.display()
                ),
            ));
        }
        thread::sleep(SETTLE_STEP);
    }
    Ok(())
}

/// The file behind a loop device; `None` when it is free.
fn backing_of(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?;
    let text = std::fs::read(Path::new("/sys/block").join(name).join("loop/backing_file")).ok()?;
    let text = text.strip_suffix(b"\n").unwrap_or(&text).to_vec();
    Some(PathBuf::from(std::ffi::OsString::from_vec(text)))
}

/// The path that the device was attached with; `None` when it is free or may not be asked.
fn given_name(device: &Path) -> Option<PathBuf> {
    let status = loop_ioctl::status(&File::open(device).ok()?).ok()?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(status.name)))
}

/// All attached loop devices. Touches no file behind them.
///
/// # Errors
/// If `/sys` is not mounted.
pub fn attached() -> Result<Vec<Backing>, Failure> {
    let directory = "/sys/block";
    let entries = std::fs::read_dir(directory)
        .map_err(|error| Failure::os(directory, "list", &error).and("mount sysfs there"))?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.as_bytes().starts_with(b"loop") {
            continue;
        }
        let device = Path::new("/dev").join(name);
        if let Some(file) = backing_of(&device) {
            // A file on a mount that is gone is shown from that mount's root: `/NAME`. Only then
            // is the name worth an ioctl: it is cut to 63 bytes.
            let detached = file.parent() == Some(Path::new("/"));
            let given = if detached { given_name(&device) } else { None };
            found.push(Backing { device, given: given.unwrap_or_else(|| file.clone()), file });
        }
    }
    found.sort_by(|a, b| a.device.cmp(&b.device));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::is_root;

    fn testable() -> bool {
        if is_root() && Path::new(CONTROL).exists() {
            return true;
        }
        println!("skipped: needs root and {CONTROL}");
        false
    }

    #[test]
    fn attach_and_detach_a_file() {
        if !testable() {
            return;
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("a file.img");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();

        let device = attach(&path).unwrap();
        let status = loop_ioctl::status(&File::open(&device).unwrap()).unwrap();
        assert!(status.direct_io && !status.auto_clear);
        assert_eq!(given_name(&device), Some(path.clone()));
        let backing = Backing { device: device.clone(), file: path.clone(), given: path.clone() };
        assert!(attached().unwrap().contains(&backing));
        let block = Path::new("/sys/block").join(device.file_name().unwrap());
        let block_bytes = std::fs::read_to_string(block.join("queue/logical_block_size")).unwrap();
        assert_eq!(block_bytes.trim(), "4096");
        disable_write_back_throttling(&device).unwrap();

        // Not ours by that name: left alone.
        detach(&device, Path::new("/somewhere/else")).unwrap();
        assert!(attached().unwrap().contains(&backing));

        detach(&device, &path).unwrap();
        assert!(!attached().unwrap().contains(&backing));
        detach(&device, &path).unwrap();
    }

    #[test]
    fn a_file_that_is_not_there_attaches_nothing() {
        if !testable() {
            return;
        }
        let missing = Path::new("/var/tmp/swapfs-no-such-file");
        let failure = attach(missing).unwrap_err();
        assert!(failure.to_string().starts_with("/var/tmp/swapfs-no-such-file: cannot open:"));
        assert!(!attached().unwrap().iter().any(|backing| backing.file == missing));
    }
}
