//! `stats.json` of a mounted volume, as far as the tools use it. What a daemon of another version
//! does not say is zero or empty.

mod tiers;

pub use tiers::{EvacuationStats, TierStats};

use serde::{Deserialize, Serialize};

/// A count for each kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PerKind {
    /// Swap-ins, and other reads.
    pub read: u64,
    /// Swap-outs, and other writes.
    pub write: u64,
    /// Discards.
    pub discard: u64,
    /// Flushes.
    pub flush: u64,
}

/// Failed requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Errors {
    /// Reads answered with an error.
    pub read: u64,
    /// Writes answered with an error.
    pub write: u64,
    /// Discards answered with an error.
    pub discard: u64,
    /// Flushes answered with an error.
    pub flush: u64,
    /// Reads whose checksum was wrong (counted in `read` too).
    pub checksum: u64,
}

impl Errors {
    /// All failed requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.read + self.write + self.discard + self.flush
    }
}

/// One step of the histogram of request sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SizeBucket {
    /// Requests up to this size, and above the step before; `None`: no limit.
    pub le_bytes: Option<u64>,
    /// Reads of that size.
    pub read: u64,
    /// Writes of that size.
    pub write: u64,
}

/// One step of the histogram of latencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyBucket {
    /// Requests that took up to this, and more than the step before; `None`: no limit.
    pub le_us: Option<u64>,
    /// Reads that took so long.
    pub read: u64,
    /// Writes that took so long.
    pub write: u64,
}

/// What protects the daemon from being swapped out or killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Protection {
    /// mlockall succeeded.
    pub memory_locked: bool,
    /// PR_SET_IO_FLUSHER succeeded.
    pub io_flusher: bool,
    /// The out-of-memory killer passes it over.
    pub oom_protected: bool,
    /// Its control group may not swap.
    pub swap_free_cgroup: bool,
    /// Its allocations may use a part of the kernel's memory reserve.
    pub realtime: bool,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Version of this format.
    pub version: u32,
    /// The process id of the daemon that serves; 0: not said.
    pub pid: u32,
    /// The same, by the name that says so; 0: not said.
    pub worker_pid: u32,
    /// The process that holds what must outlive the worker; `None`: there is none.
    pub supervisor_pid: Option<u32>,
    /// The process that waits to take over.
    pub standby_pid: Option<u32>,
    /// A crash of the worker loses nothing.
    pub guarded: bool,
    /// Why it is not, in one sentence.
    pub unguarded_why: String,
    /// Workers that died or hung, and were replaced.
    pub takeovers: u64,
    /// Of these, the ones that hung.
    pub hangs: u64,
    /// Upgrades that succeeded.
    pub upgrades: u64,
    /// How long nobody served at the last take-over.
    pub last_pause_ms: Option<f64>,
    /// The longest of these.
    pub longest_pause_ms: Option<f64>,
    /// Version of what a worker leaves to the next.
    pub handover_version: u32,
    /// Name and version of the daemon.
    pub program: String,
    /// The image.
    pub image: String,
    /// The back-end type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The volume's UUID.
    pub uuid: String,
    /// The volume's label.
    pub label: String,
    /// The options in force.
    pub options: String,
    /// Slots in the volume.
    pub slot_count: u64,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Seconds since the mount.
    pub uptime_s: f64,
    /// How requests come in.
    pub transport: String,
    /// Requests answered, failed ones included.
    pub requests: PerKind,
    /// Bytes moved.
    pub bytes: PerKind,
    /// Failed requests.
    pub errors: Errors,
    /// Requests being worked on.
    pub in_flight: u64,
    /// Writes that did not cover whole pages.
    pub partial_writes: u64,
    /// Histogram of sizes.
    pub request_bytes: Vec<SizeBucket>,
    /// Histogram of latencies, microseconds.
    pub latency_us: Vec<LatencyBucket>,
    /// What protects the daemon.
    pub protection: Protection,
    /// Must be 0.
    pub heap_allocations_on_io_path: u64,
    /// Log lines that found the queue full.
    pub log_lines_dropped: u64,
    /// What the back end says of itself.
    pub backend: serde_json::Value,
    /// Its tiers, hottest first; none where the type has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<TierStats>,
    /// The tier that is being emptied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evacuation: Option<EvacuationStats>,
}

impl Stats {
    /// Parses the file's text.
    ///
    /// # Errors
    /// If it is no JSON object of this shape.
    pub fn parse(text: &[u8]) -> Result<Stats, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// Mean size of a read; `None` before the first.
    #[must_use]
    pub fn mean_read_bytes(&self) -> Option<u64> {
        self.bytes.read.checked_div(self.requests.read)
    }

    /// Mean size of a write; `None` before the first.
    #[must_use]
    pub fn mean_write_bytes(&self) -> Option<u64> {
        self.bytes.write.checked_div(self.requests.write)
    }

    /// The process that is there from the mount to the unmount: the supervisor, or the daemon if it
    /// has none.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.supervisor_pid.or((self.pid != 0).then_some(self.pid))
    }

    /// Why a crash of the daemon would lose pages; `None` if it would not.
    #[must_use]
    pub fn unguarded(&self) -> Option<&str> {
        match self.unguarded_why.as_str() {
            _ if self.guarded => None,
            "" => Some("this daemon knows of no supervisor"),
            why => Some(why),
        }
    }

    /// What is missing of the daemon's protection, or looks wrong: one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(why) = self.unguarded() {
            warnings.push(format!("UNGUARDED: {why}: a crash of the daemon would lose the pages"));
        }
        if !self.protection.memory_locked {
            warnings.push(
                "its memory is not locked: it can be swapped out into itself and hang \
                 (needs CAP_IPC_LOCK)"
                    .to_owned(),
            );
        }
        if !self.protection.io_flusher {
            warnings.push(
                "it is not marked as an I/O flusher: it can wait for memory that only it could \
                 free (needs CAP_SYS_RESOURCE)"
                    .to_owned(),
            );
        }
        if !self.protection.oom_protected {
            warnings
                .push("the out-of-memory killer may choose it (needs CAP_SYS_RESOURCE)".to_owned());
        }
        if !self.protection.realtime {
            warnings.push(
                "it is no real-time task: on a machine whose memory is full it can stand still \
                 (needs CAP_SYS_NICE, and realtime=on)"
                    .to_owned(),
            );
        }
        if self.errors.total() > 0 {
            warnings.push(format!(
                "{} requests failed ({} reads, {} writes, {} discards, {} flushes; {} wrong \
                 checksums): see the daemon's log",
                self.errors.total(),
                self.errors.read,
                self.errors.write,
                self.errors.discard,
                self.errors.flush,
                self.errors.checksum
            ));
        }
        warnings.extend(self.tiers.iter().filter_map(TierStats::warning));
        if self.heap_allocations_on_io_path > 0 {
            warnings.push(format!(
                "{} heap allocations on the I/O path: please report this",
                self.heap_allocations_on_io_path
            ));
        }
        if self.log_lines_dropped > 0 {
            warnings.push(format!("{} log lines were dropped", self.log_lines_dropped));
        }
        warnings
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SAMPLE: &str = r#"{"version":1,"pid":123,"worker_pid":123,
        "supervisor_pid":120,"standby_pid":124,"guarded":true,"unguarded_why":"","takeovers":3,
        "hangs":1,"upgrades":1,"last_pause_ms":4.2,"longest_pause_ms":9.75,"handover_version":1,
        "program":"swapfsd 0.1.0",
        "image":"/path","type":"linear","uuid":"6d0e","label":"fast","options":"engine=uring",
        "slot_count":131072,"volume_bytes":536870912,"uptime_s":12.3,"transport":"fuse",
        "requests":{"read":10,"write":4,"discard":1,"flush":0},
        "bytes":{"read":81920,"write":2097152,"discard":4096},
        "errors":{"read":0,"write":0,"discard":0,"flush":0,"checksum":0},
        "in_flight":0,"partial_writes":0,
        "request_bytes":[{"le_bytes":4096,"read":8,"write":0},{"le_bytes":524288,"read":2,"write":4}],
        "latency_us":[{"le_us":8,"read":0,"write":0},{"le_us":null,"read":1,"write":0}],
        "protection":{"memory_locked":true,"io_flusher":true,"oom_protected":true,
        "swap_free_cgroup":false,"realtime":true},"heap_allocations_on_io_path":0,"log_lines_dropped":0,
        "backend":{"engine":"uring"}}"#;

    #[test]
    fn a_whole_file() {
        let stats = Stats::parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!(stats.pid, 123);
        assert_eq!(stats.type_name, "linear");
        assert_eq!(stats.mean_read_bytes(), Some(8192));
        assert_eq!(stats.mean_write_bytes(), Some(524_288));
        assert_eq!(stats.request_bytes[1].write, 4);
        assert_eq!(stats.latency_us[1].le_us, None);
        assert_eq!(stats.warnings(), Vec::<String>::new());
        assert_eq!((stats.worker_pid, stats.supervisor_pid), (123, Some(120)));
        assert_eq!((stats.takeovers, stats.hangs, stats.upgrades), (3, 1, 1));
        assert_eq!((stats.last_pause_ms, stats.longest_pause_ms), (Some(4.2), Some(9.75)));
        assert_eq!(stats.daemon_pid(), Some(120));
    }

    #[test]
    fn a_daemon_without_a_supervisor() {
        let text = br#"{"pid":7,"worker_pid":7,"supervisor_pid":null,"standby_pid":null,
            "guarded":false,"unguarded_why":"supervisor=off","takeovers":0,"last_pause_ms":null}"#;
        let stats = Stats::parse(text).unwrap();
        assert_eq!(stats.daemon_pid(), Some(7));
        assert_eq!(stats.last_pause_ms, None);
        assert_eq!(
            stats.warnings()[0],
            "UNGUARDED: supervisor=off: a crash of the daemon would lose the pages"
        );
    }

    #[test]
    fn a_daemon_of_another_version() {
        let stats = Stats::parse(br#"{"version":9,"news":[1],"requests":{"read":1}}"#).unwrap();
        assert_eq!(stats.requests.read, 1);
        assert_eq!(stats.pid, 0);
        assert_eq!(stats.mean_write_bytes(), None);
        assert_eq!(stats.daemon_pid(), None);
        assert!(stats.unguarded().is_some());
        assert!(Stats::parse(b"7").is_err());
        assert!(Stats::parse(b"").is_err());
    }

    #[test]
    fn each_missing_protection_is_a_warning() {
        let mut stats = Stats::parse(SAMPLE.as_bytes()).unwrap();
        stats.protection = Protection::default();
        stats.errors = Errors { read: 3, checksum: 2, ..Errors::default() };
        let warnings = stats.warnings();
        assert_eq!(warnings.len(), 5);
        assert!(warnings[0].contains("not locked"));
        assert!(warnings[3].starts_with("it is no real-time task"));
        assert!(warnings[4].starts_with("3 requests failed (3 reads,"));
        assert!(warnings[4].contains("2 wrong checksums"));
    }
}
