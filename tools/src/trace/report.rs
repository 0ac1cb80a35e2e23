//! A summary for people.

use super::histogram::Latency;
use super::summary::{ByKind, Summary};
use crate::inspect::calendar;
use std::fmt;
use swapfs_format::size::human;

/// The width of the names on the left.
const NAME_WIDTH: usize = 15;
const KINDS: [&str; 4] = ["read", "write", "discard", "flush"];

fn each<T: Copy>(numbers: &ByKind<T>) -> [T; 4] {
    [numbers.read, numbers.write, numbers.discard, numbers.flush]
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row =
            |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<NAME_WIDTH$}{value}");
        row("trace", &self.file.display())?;
        row("image", &self.uuid)?;
        row("began", &calendar::utc(self.started_unix_s))?;
        row("lasted", &duration(self.duration_s * 1e6))?;
        row("writes", &self.writes_text())?;
        row("segments", &self.segments_text())?;
        row("amplification", &self.amplification_text())?;
        writeln!(f)?;
        f.write_str(&aligned(&self.kinds_table()))?;
        if !self.request_bytes.is_empty() {
            writeln!(f)?;
            f.write_str(&aligned(&self.sizes_table()))?;
        }
        for warning in self.warnings() {
            writeln!(f, "\n{warning}")?;
        }
        Ok(())
    }
}

impl Summary {
    pub(super) fn writes_text(&self) -> String {
        match (self.sequential_write_share, self.aligned_write_share) {
            (Some(sequential), Some(aligned)) => {
                format!("{} sequential, {} aligned to 4 KiB", percent(sequential), percent(aligned))
            }
            _ => "none".to_owned(),
        }
    }

    /// Of all operations, those that the file lacks.
    pub(super) fn lost_share(&self) -> f64 {
        let lost = self.lost_operations as f64;
        let there: u64 = each(&self.operations).iter().sum();
        lost / (lost + there as f64)
    }

    fn segments_text(&self) -> String {
        let (segments, size) = (&self.segments, human(self.segment_bytes));
        match segments.written {
            0 => format!("none of {size} written"),
            written => format!(
                "{written} of {size} written, {} of them strictly front to back",
                segments.front_to_back
            ),
        }
    }

    pub(super) fn amplification_text(&self) -> String {
        match self.write_amplification {
            Some(amplification) => format!(
                "{amplification:.2}: {} written for {} accepted",
                human(self.bytes.write),
                human(self.accepted_bytes)
            ),
            None => "unknown: nothing was accepted".to_owned(),
        }
    }

    fn kinds_table(&self) -> Vec<Vec<String>> {
        let headings = [
            "KIND",
            "COUNT",
            "BYTES",
            "COUNT/S",
            "BYTES/S",
            "MEAN SIZE",
            "MEAN",
            "P50",
            "P90",
            "P99",
            "P99.9",
            "MAX",
        ];
        let mut rows = vec![headings.map(str::to_owned).to_vec()];
        let (counts, bytes) = (each(&self.operations), each(&self.bytes));
        let (counts_per_s, bytes_per_s) = (each(&self.operations_per_s), each(&self.bytes_per_s));
        let latencies = each(&self.latency);
        for (index, kind) in KINDS.into_iter().enumerate() {
            let (count, sum) = (counts[index], bytes[index]);
            let mut row = vec![kind.to_owned(), count.to_string()];
            // A flush has no range.
            let sizes = count > 0 && kind != "flush";
            let sized = |bytes: u64| if sizes { human(bytes) } else { "-".to_owned() };
            row.push(sized(sum));
            row.push(if count > 0 {
                format!("{:.0}", counts_per_s[index])
            } else {
                "-".to_owned()
            });
            row.push(sized(bytes_per_s[index] as u64));
            row.push(sized(sum / count.max(1)));
            row.extend(latency_cells(latencies[index]));
            rows.push(row);
        }
        rows
    }

    fn sizes_table(&self) -> Vec<Vec<String>> {
        let headings = ["SIZE UP TO", "READ", "WRITE", "DISCARD"];
        let mut rows = vec![headings.map(str::to_owned).to_vec()];
        rows.extend(self.request_bytes.iter().map(|bucket| {
            let counts = [bucket.read, bucket.write, bucket.discard].map(|count| count.to_string());
            [&[human(bucket.le_bytes)], &counts[..]].concat()
        }));
        rows
    }

    /// What a person should know about these numbers.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.lost_operations > 0 {
            warnings.push(format!(
                "{} operations are missing ({} of all): the file could not take them in time. \
                 Shares and amplification are of the rest; put the trace on a faster or another \
                 disk",
                self.lost_operations,
                percent(self.lost_share())
            ));
        }
        if self.restarts > 0 {
            let times = match self.restarts {
                1 => "once".to_owned(),
                restarts => format!("{restarts} times"),
            };
            warnings.push(format!(
                "another process of the daemon went on {times}: what the one before it did in its \
                 last milliseconds can be missing"
            ));
        }
        if self.cut_off_bytes > 0 {
            warnings.push(format!(
                "the file ends within a record ({} bytes of it): it is still being written, or its \
                 writer was killed",
                self.cut_off_bytes
            ));
        }
        if self.unknown_records > 0 {
            warnings.push(format!(
                "{} records are of a kind that this program does not know: damage, or a newer \
                 swapfsd",
                self.unknown_records
            ));
        }
        warnings
    }
}

fn latency_cells(latency: Option<Latency>) -> [String; 6] {
    match latency {
        None => [const { String::new() }; 6].map(|_| "-".to_owned()),
        Some(it) => {
            [it.mean_us, it.p50_us, it.p90_us, it.p99_us, it.p999_us, it.max_us].map(duration)
        }
    }
}

/// `98.2 %`; exactly all and exactly none say so, and nothing else does.
pub(super) fn percent(share: f64) -> String {
    match share {
        0.0 => "0 %".to_owned(),
        1.0 => "100 %".to_owned(),
        share => format!("{:.1} %", (share * 100.0).clamp(0.1, 99.9)),
    }
}

/// Microseconds with three digits or so: `7.2 us`, `340 us`, `12.5 ms`, `3.1 s`.
pub(super) fn duration(us: f64) -> String {
    let (number, unit) = match us {
        us if us < 1e3 => (us, "us"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    if number < 100.0 { format!("{number:.1} {unit}") } else { format!("{number:.0} {unit}") }
}

/// The first column to the left, numbers to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                text.push_str(&format!("{cell:<width$}"));
            } else {
                text.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.push('\n');
    }
    text
}
