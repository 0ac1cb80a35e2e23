//! `swapfs status`: what is up, and how it is.

use crate::failure::Failure;
use crate::probe::{self, Answer};
use crate::stats::Stats;
use crate::volumes::{self, Volume};
use crate::{daemon, sys};
use serde::Serialize;
use std::path::PathBuf;

/// How the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonState {
    /// It answers.
    Serving,
    /// It exists, as far as is known, and does not answer.
    Silent,
    /// It has died under its mount.
    Dead,
    /// Its statistics could not be read.
    Unreadable,
    /// The mount is gone; a loop device is left.
    NotMounted,
}

/// One loop device on the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// `/dev/loopN`
    pub path: PathBuf,
    /// The swap area on it, if it is swapped to.
    pub swap: Option<SwapStatus>,
}

/// One swap area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SwapStatus {
    /// What can be used.
    pub size_bytes: u64,
    /// What is used.
    pub used_bytes: u64,
    /// The higher, the earlier it is used.
    pub priority: i32,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VolumeStatus {
    /// The image; `None` when the mount is gone.
    pub image: Option<PathBuf>,
    /// Where it is, or was, mounted.
    pub mount: PathBuf,
    /// Its loop devices.
    pub devices: Vec<DeviceStatus>,
    /// How its daemon is.
    pub daemon: DaemonState,
    /// The daemon's process id, if it is known.
    pub daemon_pid: Option<u32>,
    /// What the daemon says.
    pub stats: Option<Stats>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// The volumes that are up, or half up.
    pub volumes: Vec<VolumeStatus>,
}

/// Looks at the whole machine. A daemon that hangs costs [`probe::ANSWER_LIMIT`] and no more.
///
/// # Errors
/// If `/proc` or `/sys` cannot be read.
pub fn collect() -> Result<Status, Failure> {
    let volumes = volumes::discover()?;
    let volumes = volumes
        .iter()
        .map(|volume| match volume.image {
            Some(_) => {
                let answer = probe::ask(&volume.mount);
                let found = answer.pid().or_else(|| daemon::find(&volume.mount));
                judge(volume, Some(answer), found)
            }
            None => judge(volume, None, daemon::find(&volume.mount)),
        })
        .collect();
    Ok(Status { volumes })
}

/// Puts the parts together; `answer` is `None` where nothing is mounted.
fn judge(volume: &Volume, answer: Option<Answer>, daemon_pid: Option<u32>) -> VolumeStatus {
    let mut warnings = Vec::new();
    let used = volume.used_bytes();
    let (daemon, stats) = match answer {
        None => {
            warnings.push("is not mounted any more: 'swapfs down' clears the rest up".to_owned());
            (DaemonState::NotMounted, None)
        }
        Some(Answer::Silent) => {
            warnings
                .push("the daemon does not answer: it is stopped, or its device hangs".to_owned());
            (DaemonState::Silent, None)
        }
        Some(Answer::Dead) => {
            let lost = if used > 0 { ", and the pages on it are lost" } else { "" };
            warnings.push(format!("the daemon has died{lost}: run 'swapfs down'"));
            (DaemonState::Dead, None)
        }
        Some(Answer::Unreadable(why)) => {
            let root = if sys::process::is_root() { "" } else { "; run status as root" };
            warnings.push(format!("its statistics cannot be read: {why}{root}"));
            (DaemonState::Unreadable, None)
        }
        Some(Answer::Stats(stats)) => {
            warnings.extend(stats.warnings());
            (DaemonState::Serving, Some(*stats))
        }
    };
    if volume.devices.is_empty() {
        warnings.push("no loop device is on it: it is mounted only".to_owned());
    } else if volume.swap_areas().next().is_none() {
        warnings.push("it is attached, but not swapped to".to_owned());
    }
    if volume.devices.len() > 1 {
        warnings.push("several loop devices are on it: only one may be in use".to_owned());
    }
    let devices = volume
        .devices
        .iter()
        .map(|device| DeviceStatus {
            path: device.path.clone(),
            swap: device.swap.as_ref().map(|area| SwapStatus {
                size_bytes: area.size_bytes,
                used_bytes: area.used_bytes,
                priority: area.priority,
            }),
        })
        .collect();
    VolumeStatus {
        image: volume.image.clone(),
        mount: volume.mount.clone(),
        devices,
        daemon,
        daemon_pid,
        stats,
        warnings,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::procfs::swaps::SwapArea;
    use crate::volumes::Device;

    pub(crate) fn sample(answer: Answer) -> VolumeStatus {
        let swap = SwapArea {
            path: "/dev/loop1".into(),
            size_bytes: (512 << 20) - 4096,
            used_bytes: 75 << 20,
            priority: 100,
        };
        let volume = Volume {
            image: Some("/img/a".into()),
            mount: "/run/swapfs/u1".into(),
            devices: vec![Device {
                path: "/dev/loop1".into(),
                backing: "/run/swapfs/u1/swapfile".into(),
                swap: Some(swap),
            }],
        };
        let pid = answer.pid();
        judge(&volume, Some(answer), pid)
    }

    pub(crate) fn served() -> VolumeStatus {
        let stats = Stats::parse(crate::stats::tests::SAMPLE.as_bytes()).unwrap();
        sample(Answer::Stats(Box::new(stats)))
    }

    #[test]
    fn a_volume_in_order_has_no_warning() {
        let status = served();
        assert_eq!(status.daemon, DaemonState::Serving);
        assert_eq!(status.daemon_pid, Some(123));
        assert_eq!(status.warnings, Vec::<String>::new());
    }

    #[test]
    fn every_bad_state_is_a_warning() {
        assert!(sample(Answer::Silent).warnings[0].contains("does not answer"));
        assert!(sample(Answer::Dead).warnings[0].contains("pages on it are lost"));
        assert!(sample(Answer::Unreadable("EIO".into())).warnings[0].contains("EIO"));
        let rest = Volume { image: None, mount: "/run/swapfs/u1".into(), devices: Vec::new() };
        let status = judge(&rest, None, None);
        assert_eq!(status.daemon, DaemonState::NotMounted);
        assert_eq!(status.warnings.len(), 2);
    }

    #[test]
    fn json_has_the_names_that_scripts_use() {
        let status = Status { volumes: vec![served()] };
        let json = serde_json::to_value(&status).unwrap();
        let volume = &json["volumes"][0];
        assert_eq!(volume["image"], "/img/a");
        assert_eq!(volume["daemon"], "serving");
        assert_eq!(volume["devices"][0]["swap"]["used_bytes"], 75 << 20);
        assert_eq!(volume["stats"]["requests"]["read"], 10);
        assert_eq!(volume["stats"]["type"], "linear");
    }
}
