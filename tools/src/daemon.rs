//! The daemon as the tools see it: start it, find it, unmount it and wait for its end.

use crate::failure::Failure;
use crate::procfs::mounts;
use crate::sys::{fs, process::ProcessHandle};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long the kernel may still hold a file of the mount after the loop device let go of it.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const BUSY_STEP: Duration = Duration::from_millis(50);
/// How long the daemon may take to flush and end after the unmount.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Starts the daemon: this program under its other name. Returns when the mount serves.
///
/// # Errors
/// If the daemon said no (its own message is on standard error), or no mount appeared.
pub fn start(image: &Path, mount: &Path, options: &str) -> Result<(), Failure> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("swapfsd");
    if !options.is_empty() {
        command.arg("-o").arg(options);
    }
    let status = command
        .arg(image)
        .arg(mount)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Out of the terminal's foreground group: Ctrl-C is for `up`, which undoes in order.
        .process_group(0)
        .status()
        .map_err(|error| Failure::os("swapfsd", "start", &error))?;
    if !status.success() {
        return Err(Failure::new(
            image.display(),
            format_args!("the daemon did not start ({status}); its own message is above"),
        ));
    }
    if mounts::read_swapfs()?.iter().any(|entry| entry.target == mount) {
        return Ok(());
    }
    Err(Failure::new(mount.display(), "the daemon said it serves, and nothing is mounted here"))
}

/// Finds the daemon of `mount` by its command line: for when it does not answer. It is the
/// supervisor if there is one; the workers go by another name.
#[must_use]
pub fn find(mount: &Path) -> Option<u32> {
    let entries = std::fs::read_dir("/proc").ok()?;
    entries.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let command_line = std::fs::read(entry.path().join("cmdline")).ok()?;
        serves(&command_line, mount).then_some(pid)
    })
}

/// Whether a process with this command line is the daemon of `mount`.
fn serves(command_line: &[u8], mount: &Path) -> bool {
    let text = command_line.strip_suffix(b"\0").unwrap_or(command_line);
    let mut arguments = text.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let program = arguments.next().and_then(|first| Path::new(first).file_name());
    let is_daemon = program.is_some_and(|name| name == "swapfsd");
    is_daemon && arguments.any(|argument| Path::new(argument) == mount)
}

/// Unmounts, and waits until the daemon has flushed and ended. What is done already is passed
/// over. `pid` is the process whose end that is, if it is known: the supervisor, which ends last.
///
/// # Errors
/// If something else uses the mount, or the daemon does not end.
pub fn stop(mount: &Path, pid: Option<u32>) -> Result<(), Failure> {
    // Taken first: after the unmount, the number may soon be another's.
    // It may have ended since it was asked: a supervisor that dies is replaced. And before 5.3 the
    // kernel has no pidfd: then there is nothing to wait with.
    let open = |pid: u32| ProcessHandle::open(pid).ok();
    let handle = pid.and_then(open).or_else(|| find(mount).and_then(open));
    unmount(mount)?;
    let Some(handle) = handle else { return Ok(()) };
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match handle.wait_for_end(left) {
            Ok(true) => return Ok(()),
            Ok(false) if !left.is_zero() => {}
            Ok(false) => {
                return Err(Failure::new(
                    mount.display(),
                    format_args!(
                        "is unmounted, but the daemon has not ended after {} s: it may still be \
                         writing to the image",
                        END_LIMIT.as_secs()
                    ),
                ));
            }
            Err(error) => return Err(Failure::os("daemon", "wait for its end", &error)),
        }
    }
}

fn unmount(mount: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        match fs::unmount(mount) {
            Ok(()) => return Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINVAL | libc::ENOENT) => return Ok(()),
                Some(libc::EBUSY) if Instant::now() < deadline => thread::sleep(BUSY_STEP),
                Some(libc::EBUSY) => {
                    return Err(Failure::new(
                        mount.display(),
                        format_args!(
                            "is in use: see who with 'fuser -vm {}', then run 'swapfs down' again",
                            mount.display()
                        ),
                    ));
                }
                _ => return Err(Failure::os(mount.display(), "unmount", &error)),
            },
        }
    }
}

/// Removes an empty directory; one that is gone already is fine.
///
/// # Errors
/// If it is not empty or cannot be removed.
pub fn remove_directory(directory: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::os(directory.display(), "remove the directory", &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_known_by_its_command_line() {
        let mount = Path::new("/run/swapfs/u1");
        assert!(serves(b"swapfsd\0/img/a\0/run/swapfs/u1\0", mount));
        assert!(serves(b"/usr/sbin/swapfsd\0-o\0x=y\0/img/a\0/run/swapfs/u1\0", mount));
        assert!(!serves(b"swapfsd\0/img/a\0/run/swapfs/u2\0", mount));
        assert!(!serves(b"swapfsd-worker\0/img/a\0/run/swapfs/u1\0", mount));
        assert!(!serves(b"ls\0/run/swapfs/u1\0", mount));
        assert!(!serves(b"", mount));
    }

    #[test]
    fn stopping_what_is_not_mounted_does_nothing() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        assert_eq!(stop(dir.path(), None), Ok(()));
        assert_eq!(remove_directory(&dir.path().join("none")), Ok(()));
        std::fs::write(dir.path().join("file"), b"").unwrap();
        assert!(remove_directory(dir.path()).is_err());
    }
}
