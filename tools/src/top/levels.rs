//! Where a volume's pages are, by what the back end says of itself: memory, buffer, device.

use super::model::Change;
use crate::stats::Stats;
use serde::Serialize;

/// One place that holds pages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Level {
    /// `memory`, `buffer`, `device`, `image`.
    pub name: &'static str,
    /// What is taken of it.
    pub used_bytes: u64,
    /// What there is; `None`: nothing says.
    pub capacity_bytes: Option<u64>,
    /// Pages read from it, a second.
    pub hits_per_s: f64,
    /// Of all pages that were read from somewhere; `None`: there was none.
    pub hit_share: Option<f64>,
    /// Bytes that went into it, a second.
    pub in_bytes_per_s: f64,
}

struct Plan {
    name: &'static str,
    used_bytes: u64,
    capacity_bytes: Option<u64>,
    /// The back end's counters of pages that were read from there.
    hits: &'static [&'static str],
    in_bytes_per_s: f64,
}

fn number(stats: &Stats, name: &str) -> Option<u64> {
    stats.backend.get(name)?.as_u64()
}

/// The levels of a volume, the fastest first. `used_bytes` is swapped out to it.
pub(super) fn of(change: &Change<'_>, used_bytes: u64) -> Vec<Level> {
    let now = |name| number(change.new, name).unwrap_or(0);
    let rate = |name| change.per_s(|stats| number(stats, name).unwrap_or(0));
    let written = change.per_s(|stats| stats.bytes.write);
    let plans = match change.new.type_name.as_str() {
        "zmem" => vec![Plan {
            name: "memory",
            used_bytes: now("mem_used_total_bytes"),
            capacity_bytes: number(change.new, "mem_limit_bytes"),
            hits: &["read_same_pages", "read_lz4_pages", "read_zstd_pages", "read_huge_pages"],
            in_bytes_per_s: written,
        }],
        "log" => vec![
            Plan {
                name: "buffer",
                used_bytes: now("buffer_live_bytes"),
                capacity_bytes: number(change.new, "mem_populated_bytes"),
                hits: &["read_same_pages", "read_buffer_pages"],
                in_bytes_per_s: rate("accepted_bytes"),
            },
            Plan {
                name: "device",
                used_bytes: now("device_live_bytes"),
                capacity_bytes: number(change.new, "usable_bytes"),
                hits: &["read_device_pages"],
                in_bytes_per_s: rate("device_written_bytes"),
            },
        ],
        "" => Vec::new(),
        _ => vec![Plan {
            name: "image",
            used_bytes,
            capacity_bytes: Some(change.new.volume_bytes),
            hits: &[],
            in_bytes_per_s: written,
        }],
    };
    let pages_per_s = change.per_s(|stats| stats.bytes.read / 4096);
    let hits = |plan: &Plan| match plan.hits {
        [] => pages_per_s,
        names => names.iter().map(|name| rate(name)).sum(),
    };
    let all: f64 = plans.iter().map(hits).sum();
    plans
        .iter()
        .map(|plan| Level {
            name: plan.name,
            used_bytes: plan.used_bytes,
            capacity_bytes: plan.capacity_bytes,
            hits_per_s: hits(plan),
            hit_share: (all > 0.0).then(|| hits(plan) / all),
            in_bytes_per_s: plan.in_bytes_per_s,
        })
        .collect()
}
