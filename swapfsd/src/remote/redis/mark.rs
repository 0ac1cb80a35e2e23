//! The mark on the servers that a volume is in use: who uses it, and when it was last seen.

use serde::{Deserialize, Serialize};
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A mark that was made fresh within this time says that the volume is in use.
pub const FRESH: Duration = Duration::from_secs(60);
/// How long a mark that is fresh has to live, in milliseconds: ten years. What it has less tells how
/// long ago that was.
pub(super) const TTL_MS: i64 = 10 * 365 * 24 * 3600 * 1000;

/// Who uses a volume's objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The machine's name.
    pub host: String,
    /// Its number, as `/etc/machine-id`; empty if it has none.
    #[serde(default)]
    pub machine: String,
    /// Of this start of the machine, as `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The run, as 16 hex digits.
    pub run: String,
    /// The process.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// When it last made this fresh, in seconds since 1970, by the clock of who looks.
    #[serde(skip)]
    pub seen: u64,
}

/// Seconds since 1970.
pub(super) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Mark {
    /// The mark of this process.
    pub(super) fn own(run: u64) -> Mark {
        let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let now = now_seconds();
        Mark {
            host: read("/proc/sys/kernel/hostname"),
            machine: read("/etc/machine-id"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            run: format!("{run:016x}"),
            pid: std::process::id(),
            started: now,
            seen: now,
        }
    }

    /// Whether a mark of that age was left by an earlier mount on this machine, which is certainly
    /// over: it was not unmounted, or its mark would not be there; nobody has made that fresh for a
    /// while; and who asks has the stub's lock.
    pub(super) fn follows(&self, before: &Mark, age: Duration) -> bool {
        let is_ours = !self.machine.is_empty() && before.machine == self.machine;
        is_ours && age >= FRESH && before.run != self.run
    }

    pub(super) fn run_number(&self) -> Option<u64> {
        u64::from_str_radix(&self.run, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_of_this_machine_that_is_over_is_followed() {
        let before = Mark { machine: "m".to_owned(), ..Mark::own(1) };
        let own = Mark { run: format!("{:016x}", 2), ..before.clone() };
        assert!(own.follows(&before, FRESH));
        assert!(!own.follows(&before, FRESH - Duration::from_millis(1)));
        assert!(!own.follows(&Mark { machine: "n".to_owned(), ..before.clone() }, FRESH));
        assert!(!before.follows(&before, FRESH));
        let nowhere = Mark { machine: String::new(), ..own };
        assert!(!nowhere.follows(&Mark { machine: String::new(), ..before }, FRESH));
    }
}
