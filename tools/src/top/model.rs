//! What is shown: the rates between two looks at the machine.

use super::levels::{self, Level};
use super::tiers::{self, TierView};
use crate::failure::Failure;
use crate::log_use::LogUse;
use crate::procfs::{meminfo, pressure};
use crate::render;
use crate::savings::Savings;
use crate::stats::{EvacuationStats, LatencyBucket, Stats};
use crate::status::{self, DaemonState, Status, VolumeStatus};
use crate::tiers::{emptied, savings};
use serde::Serialize;
use std::time::{Duration, Instant};

/// One look.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When.
    pub taken: Instant,
    /// The volumes.
    pub status: Status,
    /// The machine's memory.
    pub memory: Memory,
}

/// The machine's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// What could be had without swapping.
    pub available_bytes: u64,
    /// Share of the last ten seconds in which everything waited for memory; `None`: not known.
    pub stalled_percent: Option<f64>,
}

impl Sample {
    /// Looks at the whole machine.
    ///
    /// # Errors
    /// If `/proc` or `/sys` cannot be read.
    pub fn take() -> Result<Sample, Failure> {
        let memory = meminfo::read()?;
        Ok(Sample {
            taken: Instant::now(),
            status: status::collect()?,
            memory: Memory {
                total_bytes: memory.total_bytes,
                available_bytes: memory.available_bytes,
                stalled_percent: pressure::full_percent(),
            },
        })
    }
}

/// Requests of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Flow {
    /// Requests a second.
    pub per_s: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// Half of the requests took no longer; `None`: there was none, or it is beyond all steps of
    /// the daemon's histogram, which are powers of two.
    pub p50_us: Option<u64>,
    /// The same of 99 in 100.
    pub p99_us: Option<u64>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VolumeView {
    /// The image, or the mount point where there is none.
    pub name: String,
    /// The back-end type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// How the daemon is.
    pub daemon: DaemonState,
    /// What can be swapped out to it.
    pub size_bytes: u64,
    /// What is.
    pub used_bytes: u64,
    /// Of the swap area, if there is one.
    pub priority: Option<i32>,
    /// Swap-ins, and other reads.
    pub read: Flow,
    /// Swap-outs, and other writes.
    pub write: Flow,
    /// Discards a second.
    pub discards_per_s: f64,
    /// Requests that are being worked on.
    pub in_flight: u64,
    /// Failed requests since the mount.
    pub errors: u64,
    /// Where its pages are; none where there are tiers.
    pub levels: Vec<Level>,
    /// The same, for a volume over several images: hottest first.
    pub tiers: Vec<TierView>,
    /// The tier that is being emptied.
    pub evacuation: Option<EvacuationStats>,
    /// In sentences: what it saves, how it stands, who guards it.
    pub summary: Vec<String>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Everything that is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct View {
    /// Between the two looks.
    pub interval_s: f64,
    /// The machine's memory.
    pub memory: Memory,
    /// The volumes.
    pub volumes: Vec<VolumeView>,
}

impl View {
    /// What happened between two looks.
    #[must_use]
    pub fn between(before: &Sample, after: &Sample) -> View {
        let interval = after.taken.saturating_duration_since(before.taken);
        let volumes = &after.status.volumes;
        View {
            interval_s: interval.as_secs_f64(),
            memory: after.memory,
            volumes: volumes
                .iter()
                .map(|volume| {
                    let same = |other: &&VolumeStatus| other.mount == volume.mount;
                    let old = before.status.volumes.iter().find(same);
                    view(old.and_then(|old| old.stats.as_ref()), volume, interval)
                })
                .collect(),
        }
    }
}

fn view(old: Option<&Stats>, volume: &VolumeStatus, interval: Duration) -> VolumeView {
    let stats = volume.stats.clone().unwrap_or_default();
    // A volume that has just appeared has no rates yet.
    let old = old.cloned().unwrap_or_else(|| stats.clone());
    let swap = volume.devices.iter().find_map(|device| device.swap);
    let change = Change { old: &old, new: &stats, interval };
    let mut summary = Vec::new();
    summary.extend(stats.evacuation.as_ref().map(emptied));
    summary.extend(savings(&stats));
    summary.extend(Savings::of(&stats).map(|savings| savings.to_string()));
    summary.extend(LogUse::of(&stats).map(|log| log.to_string()));
    summary.extend(render::guard(&stats));
    VolumeView {
        name: render::name(volume),
        type_name: stats.type_name.clone(),
        daemon: volume.daemon,
        size_bytes: swap.map_or(stats.volume_bytes, |swap| swap.size_bytes),
        used_bytes: swap.map_or(0, |swap| swap.used_bytes),
        priority: swap.map(|swap| swap.priority),
        read: Flow {
            per_s: change.per_s(|stats| stats.requests.read),
            bytes_per_s: change.per_s(|stats| stats.bytes.read),
            p50_us: change.quantile(0.5, |bucket| bucket.read),
            p99_us: change.quantile(0.99, |bucket| bucket.read),
        },
        write: Flow {
            per_s: change.per_s(|stats| stats.requests.write),
            bytes_per_s: change.per_s(|stats| stats.bytes.write),
            p50_us: change.quantile(0.5, |bucket| bucket.write),
            p99_us: change.quantile(0.99, |bucket| bucket.write),
        },
        discards_per_s: change.per_s(|stats| stats.requests.discard),
        in_flight: stats.in_flight,
        errors: stats.errors.total(),
        levels: match stats.tiers.is_empty() {
            true => levels::of(&change, swap.map_or(0, |swap| swap.used_bytes)),
            false => Vec::new(),
        },
        tiers: tiers::of(&change),
        evacuation: stats.evacuation.clone(),
        summary,
        warnings: volume.warnings.clone(),
    }
}

/// A daemon's numbers at two looks. Counters that went back (a new daemon began them anew) count
/// as not changed.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) old: &'a Stats,
    pub(super) new: &'a Stats,
    pub(super) interval: Duration,
}

impl Change<'_> {
    /// How much a counter grew in a second.
    pub(super) fn per_s(&self, counter: impl Fn(&Stats) -> u64) -> f64 {
        let grown = counter(self.new).saturating_sub(counter(self.old));
        let seconds = self.interval.as_secs_f64();
        if seconds > 0.0 { grown as f64 / seconds } else { 0.0 }
    }

    /// What no more than that share of the requests in between exceeded, in microseconds.
    fn quantile(&self, share: f64, of: impl Fn(&LatencyBucket) -> u64) -> Option<u64> {
        let old = |le_us| {
            let same = |bucket: &&LatencyBucket| bucket.le_us == le_us;
            self.old.latency_us.iter().find(same).map_or(0, &of)
        };
        let grown: Vec<(Option<u64>, u64)> = self
            .new
            .latency_us
            .iter()
            .map(|bucket| (bucket.le_us, of(bucket).saturating_sub(old(bucket.le_us))))
            .collect();
        let total: u64 = grown.iter().map(|(_, count)| count).sum();
        let wanted = ((total as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        grown.into_iter().find_map(|(le_us, count)| {
            below += count;
            (below >= wanted).then_some(le_us)
        })?
    }
}
