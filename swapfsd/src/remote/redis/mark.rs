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
    /// How long ago that was, by the server's clock.
    #[serde(skip)]
    pub age: Duration,
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
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            run: format!("{run:016x}"),
            pid: std::process::id(),
            started: now,
            seen: now,
            age: Duration::ZERO,
        }
    }
}
