//! `swapfs tiers`: where the pages of tier volumes are, and how they move.

use crate::failure::Failure;
use crate::probe;
use crate::stats::{EvacuationStats, Stats, TierStats};
use crate::tier::no_tiers;
use crate::volumes::Volume;
use serde::Serialize;
use std::path::PathBuf;
use swapfs_format::PAGE_BYTES;
use swapfs_format::size::human;

/// One volume's tiers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TiersReport {
    /// The volume's own image.
    pub image: Option<PathBuf>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its UUID.
    pub uuid: String,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Its tiers, hottest first.
    pub tiers: Vec<TierStats>,
    /// The tier that is being emptied.
    pub evacuation: Option<EvacuationStats>,
}

/// Asks the daemon of one volume.
///
/// # Errors
/// If it does not answer, or the volume has no tiers.
pub fn of(volume: &Volume) -> Result<TiersReport, Failure> {
    let mut stats = probe::served(volume)?;
    if stats.tiers.is_empty() {
        return Err(no_tiers(&volume.name().display().to_string(), &stats));
    }
    stats.tiers.iter_mut().for_each(TierStats::look_up_url);
    Ok(TiersReport {
        image: volume.image.clone(),
        mount: volume.mount.clone(),
        uuid: stats.uuid,
        volume_bytes: stats.volume_bytes,
        tiers: stats.tiers,
        evacuation: stats.evacuation,
    })
}

const HEADINGS: [&str; 13] = [
    "TIER",
    "STATE",
    "FILL",
    "USED",
    "LIVE",
    "PAGES",
    "HIGH/LOW",
    "PROMOTE",
    "READS",
    "DOWN IN/OUT",
    "UP",
    "ERRORS",
    "IMAGE",
];
/// These columns are numbers, at the right edge.
const NUMBERS: [bool; 13] =
    [false, false, true, true, true, true, true, false, true, true, true, true, false];

/// The whole text for people, with a line end at its end.
#[must_use]
pub fn table(report: &TiersReport) -> String {
    let name = report.image.as_ref().unwrap_or(&report.mount);
    let size = human(report.volume_bytes);
    let mut text = format!("{}: {size}, mounted at {}\n", name.display(), report.mount.display());
    let reads: u64 = report.tiers.iter().map(|tier| tier.read_pages).sum();
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(report.tiers.iter().map(|tier| row(tier, reads)));
    text.push_str(&aligned(&rows));
    if let Some(evacuation) = &report.evacuation {
        text.push_str(&format!("{}\n", emptied(evacuation)));
    }
    for warning in report.tiers.iter().filter_map(TierStats::warning) {
        text.push_str(&format!("{warning}\n"));
    }
    text
}

fn row(tier: &TierStats, reads: u64) -> [String; 13] {
    let dash = || "-".to_owned();
    let device = tier.order > 0;
    [
        tier.name(),
        tier.state.clone(),
        format!("{:.0} %", tier.fill_percent()),
        format!("{} of {}", human(tier.used_bytes), human(tier.capacity_bytes)),
        human(tier.live_bytes),
        tier.pages.to_string(),
        format!("{}/{}", tier.high_percent, tier.low_percent),
        if device { format!("{}, {}", tier.promote, tier.keep) } else { dash() },
        match (tier.read_pages * 100).checked_div(reads) {
            Some(percent) => format!("{percent} %"),
            None => dash(),
        },
        format!("{}/{}", tier.demoted_in_pages, tier.demoted_out_pages),
        if device { tier.promoted_out_pages.to_string() } else { dash() },
        tier.errors().to_string(),
        if tier.place().is_empty() { dash() } else { tier.place().to_owned() },
    ]
}

/// What is said of a tier that is being emptied.
pub(crate) fn emptied(evacuation: &EvacuationStats) -> String {
    let whither = match evacuation.direction.as_str() {
        "up" => " upwards",
        "down" => " downwards",
        _ => "",
    };
    format!(
        "tier {} is being emptied{whither}: {} pages moved, {} left ({}), {}/s",
        evacuation.tier,
        evacuation.moved_pages,
        evacuation.left_pages,
        human(evacuation.left_bytes),
        human(evacuation.bytes_per_s)
    )
}

/// The tiers of a volume in one line, for `swapfs status`; `None` where there are none.
#[must_use]
pub fn short(stats: &Stats) -> Option<String> {
    if stats.tiers.is_empty() {
        return None;
    }
    let tiers: Vec<String> = stats
        .tiers
        .iter()
        .map(|tier| {
            let state = if tier.state == "ok" { "" } else { tier.state.as_str() };
            let fill = format!("{} {:.0} %", tier.name(), tier.fill_percent());
            format!("{fill} of {} {state}", human(tier.capacity_bytes)).trim_end().to_owned()
        })
        .collect();
    let mut text = format!("tiers     {}", tiers.join(", "));
    text.extend(savings(stats).map(|savings| format!("; {savings}")));
    if let Some(evacuation) = &stats.evacuation {
        text.push_str(&format!("; {}", emptied(evacuation)));
    }
    Some(text)
}

/// What the pages of all tiers take together; `None` where there are no tiers.
#[must_use]
pub fn savings(stats: &Stats) -> Option<String> {
    if stats.tiers.is_empty() {
        return None;
    }
    let stored: u64 = stats.tiers.iter().map(|tier| tier.pages * PAGE_BYTES).sum();
    let live: u64 = stats.tiers.iter().map(|tier| tier.live_bytes).sum();
    let mut text = format!("{} of pages take {}", human(stored), human(live));
    // Of a few pages there is nothing to say.
    if stored > live && live > 0 {
        text.push_str(&format!(" (ratio {:.2})", stored as f64 / live as f64));
    }
    match stats.backend.get("refused_writes").and_then(serde_json::Value::as_u64) {
        None | Some(0) => {}
        Some(count) => text.push_str(&format!("; {count} writes refused for want of room")),
    }
    Some(text)
}

/// Columns as wide as their widest cell, two blanks between them.
fn aligned(rows: &[[String; 13]]) -> String {
    let mut widths = [0usize; 13];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((width, cell), number) in widths.iter().zip(row).zip(NUMBERS) {
            match number {
                true => line.push_str(&format!("{cell:>width$}  ")),
                false => line.push_str(&format!("{cell:<width$}  ")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::tests::two_tiers;

    fn report() -> TiersReport {
        let stats = two_tiers();
        TiersReport {
            image: Some("/img/t".into()),
            mount: "/run/swapfs/u1".into(),
            uuid: stats.uuid.clone(),
            volume_bytes: 4 << 30,
            tiers: stats.tiers,
            evacuation: None,
        }
    }

    #[test]
    fn a_row_for_each_tier() {
        let text = table(&report());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "/img/t: 4 GiB, mounted at /run/swapfs/u1");
        assert_eq!(lines.len(), 4, "{text}");
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words(lines[2]),
            "0 zmem ok 50 % 512 MiB of 1 GiB 500 MiB 300000 90/80 - 75 % 0/1000 - 0 -"
        );
        assert_eq!(
            words(lines[3]),
            "1 log ok 25 % 2 GiB of 8 GiB 1 GiB 500000 85/70 second, exclusive 25 % 1000/0 200 0 \
             /dev/nvme0n1p3"
        );
        assert_eq!(lines[1].find("IMAGE"), lines[3].find("/dev/"));
    }

    #[test]
    fn an_evacuation_and_a_failure_are_said() {
        let mut report = report();
        report.evacuation = Some(EvacuationStats {
            tier: 1,
            direction: "up".into(),
            moved_pages: 10,
            left_pages: 20,
            left_bytes: 4 << 20,
            bytes_per_s: 1 << 20,
        });
        report.tiers[1].state = "failed".into();
        let text = table(&report);
        let line = "tier 1 is being emptied upwards: 10 pages moved, 20 left (4 MiB), 1 MiB/s\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("tier 1 log (/dev/nvme0n1p3) has failed"), "{text}");
    }

    #[test]
    fn the_line_of_status() {
        let mut stats = two_tiers();
        assert_eq!(
            short(&stats).unwrap(),
            "tiers     0 zmem 50 % of 1 GiB, 1 log 25 % of 8 GiB; 3.1 GiB of pages take 1.5 GiB \
             (ratio 2.05)"
        );
        stats.tiers[1].state = "missing".into();
        stats.backend = serde_json::json!({ "refused_writes": 3, "orig_data_size_bytes": 1 });
        let text = short(&stats).unwrap();
        assert!(text.contains("8 GiB missing;") && text.contains("3 writes refused"), "{text}");
        assert_eq!(crate::savings::Savings::of(&stats), None);
        assert_eq!(short(&Stats::default()), None);
    }
}
