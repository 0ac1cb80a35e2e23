//! `swapfs status` for people: a table, and the warnings under it.

use crate::log_use::LogUse;
use crate::savings::Savings;
use crate::stats::Stats;
use crate::status::{DaemonState, Status, VolumeStatus};
use crate::tiers;
use swapfs_format::size::human;

const HEADINGS: [&str; 12] = [
    "VOLUME", "TYPE", "SIZE", "USED", "PRIO", "DEVICE", "PID", "READS", "WRITES", "MEAN R/W",
    "ERRORS", "MOUNT",
];
/// Stands where there is nothing to say.
const NOTHING: &str = "-";

/// The whole text, with a line end at its end.
#[must_use]
pub fn table(status: &Status) -> String {
    if status.volumes.is_empty() {
        return "no volume is up\n".to_owned();
    }
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(status.volumes.iter().map(row));
    let mut text = aligned(&rows);
    for volume in &status.volumes {
        if let Some(savings) = volume.stats.as_ref().and_then(Savings::of) {
            text.push_str(&format!("{}: {savings}\n", name(volume)));
        }
        if let Some(tiers) = volume.stats.as_ref().and_then(tiers::short) {
            text.push_str(&format!("{}: {tiers}\n", name(volume)));
        }
        if let Some(log) = volume.stats.as_ref().and_then(LogUse::of) {
            text.push_str(&format!("{}: {log}\n", name(volume)));
        }
        if let Some(guard) = volume.stats.as_ref().and_then(guard) {
            text.push_str(&format!("{}: {guard}\n", name(volume)));
        }
        for warning in &volume.warnings {
            text.push_str(&format!("{}: {warning}\n", name(volume)));
        }
    }
    text
}

pub(crate) fn name(volume: &VolumeStatus) -> String {
    volume.image.as_ref().unwrap_or(&volume.mount).display().to_string()
}

/// Who stands by, and what they had to do; `None` where nobody does, which is a warning.
pub(crate) fn guard(stats: &Stats) -> Option<String> {
    if !stats.guarded {
        let by_rings = stats.transport == "uring";
        return by_rings.then(|| {
            let upgrades = counted(stats.upgrades, "upgrade");
            format!("transport uring (FUSE over io_uring), {upgrades}")
        });
    }
    let mut text = "guarded   ".to_owned();
    if let Some(pid) = stats.supervisor_pid {
        text.push_str(&format!("supervisor {pid}, "));
    }
    match stats.standby_pid {
        Some(pid) => text.push_str(&format!("standby {pid}")),
        None => text.push_str("no standby at the moment"),
    }
    text.push_str(&format!(", {}", counted(stats.takeovers, "take-over")));
    if stats.hangs > 0 {
        text.push_str(&format!(" ({})", counted(stats.hangs, "hang")));
    }
    text.push_str(&format!(", {}", counted(stats.upgrades, "upgrade")));
    if let Some(pause_ms) = stats.last_pause_ms {
        text.push_str(&format!(", last pause {pause_ms:.1} ms"));
    }
    Some(text)
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn row(volume: &VolumeStatus) -> [String; 12] {
    let nothing = || NOTHING.to_owned();
    let stats = volume.stats.as_ref();
    let device = volume.devices.first();
    let swap = device.and_then(|device| device.swap);
    let size_bytes =
        stats.map(|stats| stats.volume_bytes).or_else(|| swap.map(|swap| swap.size_bytes));
    let pid = match (volume.daemon, volume.daemon_pid) {
        (DaemonState::Silent, Some(pid)) => format!("{pid} (silent)"),
        (DaemonState::Silent, None) => "silent".to_owned(),
        (DaemonState::Dead, _) => "dead".to_owned(),
        (_, Some(pid)) => pid.to_string(),
        (_, None) => nothing(),
    };
    let mean = |bytes: Option<u64>| bytes.map_or_else(nothing, human);
    [
        name(volume),
        stats.map_or_else(nothing, |stats| stats.type_name.clone()),
        size_bytes.map_or_else(nothing, human),
        swap.map_or_else(nothing, |swap| human(swap.used_bytes)),
        swap.map_or_else(nothing, |swap| swap.priority.to_string()),
        device.map_or_else(nothing, |device| device.path.display().to_string()),
        pid,
        stats.map_or_else(nothing, |stats| stats.requests.read.to_string()),
        stats.map_or_else(nothing, |stats| stats.requests.write.to_string()),
        stats.map_or_else(nothing, |stats| {
            format!("{} / {}", mean(stats.mean_read_bytes()), mean(stats.mean_write_bytes()))
        }),
        stats.map_or_else(nothing, |stats| stats.errors.total().to_string()),
        volume.mount.display().to_string(),
    ]
}

/// Columns as wide as their widest cell, two blanks between them.
fn aligned(rows: &[[String; 12]]) -> String {
    let mut widths = [0usize; 12];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Answer;
    use crate::status::tests::{sample, served};

    #[test]
    fn a_volume_in_order_is_one_line_and_its_guard() {
        let text = table(&Status { volumes: vec![served()] });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let cells: Vec<&str> =
            lines[1].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(
            cells,
            [
                "/img/a",
                "linear",
                "512 MiB",
                "75 MiB",
                "100",
                "/dev/loop1",
                "120",
                "10",
                "4",
                "8 KiB / 512 KiB",
                "0",
                "/run/swapfs/u1"
            ]
        );
        assert_eq!(lines[0].find("DEVICE"), lines[1].find("/dev/loop1"));
        assert_eq!(lines[0].find("MOUNT"), lines[1].find("/run/swapfs"));
        assert_eq!(
            lines[2],
            "/img/a: guarded   supervisor 120, standby 124, 3 take-overs (1 hang), 1 upgrade, \
             last pause 4.2 ms"
        );
    }

    #[test]
    fn a_volume_without_a_guard_says_why() {
        let mut stats = Stats::parse(crate::stats::tests::SAMPLE.as_bytes()).unwrap();
        stats.guarded = false;
        stats.unguarded_why = "supervisor=off".to_owned();
        let text = table(&Status { volumes: vec![sample(Answer::Stats(Box::new(stats)))] });
        assert!(text.ends_with(
            "/img/a: UNGUARDED: supervisor=off: a crash of the daemon would lose the pages\n"
        ));
        assert!(!text.contains("guarded   supervisor"));
    }

    #[test]
    fn a_silent_daemon_is_shown_and_explained() {
        let text = table(&Status { volumes: vec![sample(Answer::Silent)] });
        assert!(text.lines().nth(1).unwrap().contains("silent"));
        assert!(text.contains("/img/a: no process of the daemon is left"));
    }

    #[test]
    fn nothing_up_says_so() {
        assert_eq!(table(&Status { volumes: Vec::new() }), "no volume is up\n");
    }
}
