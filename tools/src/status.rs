//! `swapfs status`: what is up, and how it is.

use crate::failure::Failure;
use crate::probe::{self, Answer};
use crate::stats::{Stats, TierStats};
use crate::volumes::{self, Volume};
use crate::{daemon, sys};
use serde::Serialize;
use std::path::PathBuf;
use swapfs_format::size::human;

/// How the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonState {
    /// It answers.
    Serving,
    /// It exists, as far as is known, and does not answer.
    Silent,
    /// It has died under its mount, and so has whoever could have taken over.
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
    /// The process id that is the daemon's from mount to unmount, if it is known: the
    /// supervisor's, or the worker's if there is none.
    pub daemon_pid: Option<u32>,
    /// The process that serves.
    pub worker_pid: Option<u32>,
    /// The process that holds what must outlive the worker.
    pub supervisor_pid: Option<u32>,
    /// The process that waits to take over.
    pub standby_pid: Option<u32>,
    /// Whether a crash of the worker loses nothing.
    pub guarded: Option<bool>,
    /// Workers that died or hung, and were replaced.
    pub takeovers: Option<u64>,
    /// Upgrades that succeeded.
    pub upgrades: Option<u64>,
    /// How long nobody served at the last take-over.
    pub last_pause_ms: Option<f64>,
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
            warnings.push(match daemon_pid {
                Some(_) => {
                    "the daemon does not answer: it is stopped, or its device hangs".to_owned()
                }
                None => "no process of the daemon is left, and something holds its connection: \
                         systemd's descriptor store, if it was a unit; start that unit again"
                    .to_owned(),
            });
            (DaemonState::Silent, None)
        }
        Some(Answer::Dead) => {
            warnings.push(dead(used));
            (DaemonState::Dead, None)
        }
        Some(Answer::Unreadable(why)) => {
            let root = if sys::process::is_root() { "" } else { "; run status as root" };
            warnings.push(format!("its statistics cannot be read: {why}{root}"));
            (DaemonState::Unreadable, None)
        }
        Some(Answer::Stats(mut stats)) => {
            stats.tiers.iter_mut().for_each(TierStats::look_up_url);
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
    let said = stats.as_ref();
    VolumeStatus {
        image: volume.image.clone(),
        mount: volume.mount.clone(),
        devices,
        daemon,
        daemon_pid,
        worker_pid: said.map(|stats| stats.pid).filter(|pid| *pid != 0),
        supervisor_pid: said.and_then(|stats| stats.supervisor_pid),
        standby_pid: said.and_then(|stats| stats.standby_pid),
        guarded: said.map(|stats| stats.guarded),
        takeovers: said.map(|stats| stats.takeovers),
        upgrades: said.map(|stats| stats.upgrades),
        last_pause_ms: said.and_then(|stats| stats.last_pause_ms),
        stats,
        warnings,
    }
}

/// What it means that nobody serves the mount and nobody will.
fn dead(used_bytes: u64) -> String {
    let lost = match used_bytes {
        0 => "nothing was swapped out".to_owned(),
        bytes => format!(
            "{} that were swapped out are lost; programs that need them will be killed",
            human(bytes)
        ),
    };
    format!("the daemon and its supervisor have died: {lost}: run 'swapfs down'")
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
        assert_eq!(status.daemon_pid, Some(120));
        assert_eq!(status.warnings, Vec::<String>::new());
    }

    #[test]
    fn every_bad_state_is_a_warning() {
        assert!(sample(Answer::Silent).warnings[0].contains("no process of the daemon is left"));
        let device_only = Volume {
            image: Some("/img/a".into()),
            mount: "/run/swapfs/u1".into(),
            devices: Vec::new(),
        };
        let silent = judge(&device_only, Some(Answer::Silent), Some(120));
        assert!(silent.warnings[0].contains("does not answer"));
        assert_eq!(
            sample(Answer::Dead).warnings[0],
            "the daemon and its supervisor have died: 75 MiB that were swapped out are lost; \
             programs that need them will be killed: run 'swapfs down'"
        );
        assert!(dead(0).contains("nothing was swapped out"));
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
        assert_eq!(volume["daemon_pid"], 120);
        assert_eq!(volume["worker_pid"], 123);
        assert_eq!(volume["supervisor_pid"], 120);
        assert_eq!(volume["takeovers"], 3);
        assert_eq!(volume["upgrades"], 1);
        assert_eq!(volume["last_pause_ms"], 4.2);
        let status = serde_json::to_value(sample(Answer::Dead)).unwrap();
        assert!(status["worker_pid"].is_null() && status["takeovers"].is_null());
    }
}
