//! `swapfs down`: the exact reverse of `up`, from whatever state the volume is in.

use crate::failure::Failure;
use crate::memory_check::MemoryCheck;
use crate::probe::{self, Answer};
use crate::procfs::{meminfo, swaps};
use crate::swap_off::{self, OnSignal};
use crate::volumes::{RUN_DIRECTORY, Volume};
use crate::{daemon, loop_device, volumes};
use serde::Serialize;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use swapfs_format::size::human;

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownPolicy {
    /// Take the pages back even if memory may not suffice or the daemon does not answer.
    pub force: bool,
    /// What Ctrl-C does while the pages come back.
    pub on_signal: OnSignal,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DownReport {
    /// The image; `None` when only a loop device was left.
    pub image: Option<PathBuf>,
    /// Where it was mounted.
    pub mount: PathBuf,
    /// Swap areas that were in use.
    pub swapped_off: Vec<PathBuf>,
    /// What was on them and is in memory again.
    pub taken_back_bytes: u64,
    /// What was on them and is lost, because the daemon had died.
    pub lost_bytes: u64,
    /// Loop devices that were attached.
    pub detached: Vec<PathBuf>,
    /// It was mounted.
    pub unmounted: bool,
    /// What went wrong on the way without stopping it.
    pub warnings: Vec<String>,
}

impl fmt::Display for DownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.image.as_deref().unwrap_or(&self.mount);
        let mut done = Vec::new();
        for device in &self.swapped_off {
            done.push(format!("swap off {}", device.display()));
        }
        for device in &self.detached {
            done.push(format!("detached {}", device.display()));
        }
        if self.unmounted {
            done.push(format!("unmounted {}", self.mount.display()));
        }
        write!(f, "{}: down ({}", name.display(), done.join(", "))?;
        if self.taken_back_bytes > 0 {
            write!(f, "; {} taken back", human(self.taken_back_bytes))?;
        }
        if self.lost_bytes > 0 {
            write!(f, "; {} LOST", human(self.lost_bytes))?;
        }
        write!(f, ")")
    }
}

/// Whether memory and the other swap areas could take back what is on all of `volumes`.
///
/// # Errors
/// With the numbers, if they could not.
pub fn check_memory(volumes: &[&Volume]) -> Result<(), Failure> {
    let used_bytes = volumes.iter().map(|volume| volume.used_bytes()).sum();
    if used_bytes == 0 {
        return Ok(());
    }
    let goes_away =
        |path: &Path| volumes.iter().flat_map(|v| v.swap_areas()).any(|area| area.path == path);
    let other_swap_free_bytes = swaps::read()?
        .iter()
        .filter(|area| !goes_away(&area.path))
        .map(swaps::SwapArea::free_bytes)
        .sum();
    let memory = meminfo::read()?;
    let check = MemoryCheck::new(
        used_bytes,
        memory.total_bytes,
        memory.available_bytes,
        other_swap_free_bytes,
    );
    if check.fits() {
        return Ok(());
    }
    let names: Vec<String> =
        volumes.iter().map(|volume| volume.name().display().to_string()).collect();
    Err(Failure::new(names.join(", "), check)
        .and("end some programs or add another swap area first, or insist with --force"))
}

/// Takes `volume` down: swap off, detach, unmount, wait for the daemon, remove the directory that
/// `up` made. Steps that are done already are passed over.
///
/// # Errors
/// The step that failed; those after it are not begun, and a second `down` goes on there.
pub fn take_down(volume: &Volume, policy: DownPolicy) -> Result<DownReport, Failure> {
    let mut report = DownReport {
        image: volume.image.clone(),
        mount: volume.mount.clone(),
        swapped_off: Vec::new(),
        taken_back_bytes: 0,
        lost_bytes: 0,
        detached: Vec::new(),
        unmounted: false,
        warnings: Vec::new(),
    };
    // A mount that is gone cannot be asked; its daemon serves until the last file is closed.
    let answer = volume.image.as_ref().map(|_| probe::ask(&volume.mount));
    if let Some(answer) = &answer
        && let Some(warning) = check_daemon(volume, answer, policy.force)?
    {
        report.warnings.push(warning);
    }
    for area in volume.swap_areas() {
        swap_off::run(area, policy.on_signal)?;
        report.swapped_off.push(area.path.clone());
        if answer == Some(Answer::Dead) {
            report.lost_bytes += area.used_bytes;
        } else {
            report.taken_back_bytes += area.used_bytes;
        }
    }
    for device in &volume.devices {
        loop_device::detach(&device.path, &device.backing)?;
        report.detached.push(device.path.clone());
    }
    let answer_was_dead = answer == Some(Answer::Dead);
    daemon::stop(&volume.mount, answer.and_then(|answer| answer.pid()))?;
    report.unmounted = volume.image.is_some();
    if answer_was_dead {
        remove_socket(&volume.mount, &mut report.warnings);
    }
    if volume.mount.parent() == Some(Path::new(RUN_DIRECTORY))
        && let Err(failure) = daemon::remove_directory(&volume.mount)
    {
        report.warnings.push(failure.to_string());
    }
    Ok(report)
}

/// The socket of a supervisor that was killed: nobody else removes it. Its name is known for a
/// mount of our own.
fn remove_socket(mount: &Path, warnings: &mut Vec<String>) {
    let uuid = mount.file_name().and_then(OsStr::to_str);
    if let (Some(uuid), true) = (uuid, mount.parent() == Some(Path::new(RUN_DIRECTORY))) {
        let socket = volumes::control_socket(uuid);
        if let Err(error) = std::fs::remove_file(&socket)
            && error.kind() != io::ErrorKind::NotFound
        {
            warnings.push(Failure::os(socket.display(), "remove", &error).to_string());
        }
    }
}

/// What the daemon's state means for the pages on the volume.
fn check_daemon(volume: &Volume, answer: &Answer, force: bool) -> Result<Option<String>, Failure> {
    let used_bytes = volume.used_bytes();
    if used_bytes == 0 {
        return Ok(None);
    }
    let used = human(used_bytes);
    match answer {
        Answer::Silent if !force => Err(Failure::new(
            volume.name().display(),
            format_args!(
                "the daemon does not answer, and {used} are swapped out to it: swapoff would \
                 hang; see whether the daemon is stopped (kill -CONT) or its device hangs, or \
                 insist with --force"
            ),
        )),
        Answer::Dead => Ok(Some(format!(
            "the daemon and its supervisor have died with {used} swapped out to it: programs that \
             need those pages will be killed by SIGBUS"
        ))),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::swaps::SwapArea;
    use crate::volumes::Device;

    fn volume(used_bytes: u64) -> Volume {
        let swap =
            SwapArea { path: "/dev/loop1".into(), size_bytes: 1 << 30, used_bytes, priority: 5 };
        Volume {
            image: Some("/img/a".into()),
            mount: "/run/swapfs/u1".into(),
            devices: vec![Device {
                path: "/dev/loop1".into(),
                backing: "/run/swapfs/u1/swapfile".into(),
                swap: Some(swap),
            }],
        }
    }

    #[test]
    fn a_silent_daemon_with_pages_is_left_alone_unless_forced() {
        let failure = check_daemon(&volume(8 << 20), &Answer::Silent, false).unwrap_err();
        assert!(failure.to_string().contains("8 MiB are swapped out"), "{failure}");
        assert_eq!(check_daemon(&volume(8 << 20), &Answer::Silent, true), Ok(None));
        assert_eq!(check_daemon(&volume(0), &Answer::Silent, false), Ok(None));
    }

    #[test]
    fn a_dead_daemon_is_taken_down_with_a_warning() {
        let warning = check_daemon(&volume(4096), &Answer::Dead, false).unwrap().unwrap();
        assert!(warning.contains("SIGBUS"), "{warning}");
        assert_eq!(check_daemon(&volume(0), &Answer::Dead, false), Ok(None));
    }

    #[test]
    fn the_report_for_people() {
        let mut report = DownReport {
            image: Some("/img/a".into()),
            mount: "/run/swapfs/u1".into(),
            swapped_off: vec!["/dev/loop1".into()],
            taken_back_bytes: 8 << 20,
            lost_bytes: 0,
            detached: vec!["/dev/loop1".into()],
            unmounted: true,
            warnings: Vec::new(),
        };
        assert_eq!(
            report.to_string(),
            "/img/a: down (swap off /dev/loop1, detached /dev/loop1, unmounted /run/swapfs/u1; \
             8 MiB taken back)"
        );
        report.lost_bytes = 4096;
        assert!(report.to_string().ends_with("; 8 MiB taken back; 4 KiB LOST)"));
    }

    #[test]
    fn an_unused_volume_needs_no_memory() {
        assert_eq!(check_memory(&[&volume(0)]), Ok(()));
        assert_eq!(check_memory(&[]), Ok(()));
    }
}
