//! What the demo has to tell at its end.

use super::traffic::Verdict;
use crate::procfs::swaps::SwapArea;
use crate::procfs::vmstat::SwapCounters;
use crate::savings::Savings;
use crate::stats::{SizeBucket, Stats};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use swapfs_format::PAGE_BYTES;
use swapfs_format::size::human;

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct DemoReport {
    /// Pages of the pattern.
    pub page_count: u64,
    /// From the first push until the last write was answered.
    pub out_time: Duration,
    /// From the first read until the last byte was compared.
    pub in_time: Duration,
    /// Pages that stayed in memory.
    pub stayed_pages: u64,
    /// The kernel's counts while pushing out, over all areas.
    pub out_counters: SwapCounters,
    /// The kernel's counts while reading back, over all areas.
    pub in_counters: SwapCounters,
    /// What the volume wrote while pushing out.
    pub written_bytes: u64,
    /// What the volume read while reading back.
    pub read_bytes: u64,
    /// The volume at the end.
    pub stats: Option<Stats>,
    /// By how much each swap area grew while pushing out.
    pub grown: Vec<(PathBuf, u64)>,
    /// The volume's own device.
    pub device: PathBuf,
    /// What the comparison found.
    pub verdict: Verdict,
}

impl DemoReport {
    /// Every byte came back right.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.verdict.is_clean(self.page_count)
    }
}

/// By how much each area grew from `before` to `after`, the unchanged ones left out.
#[must_use]
pub fn growth(before: &[SwapArea], after: &[SwapArea]) -> Vec<(PathBuf, u64)> {
    after
        .iter()
        .filter_map(|area| {
            let earlier = before.iter().find(|known| known.path == area.path);
            let grown_bytes =
                area.used_bytes.saturating_sub(earlier.map_or(0, |known| known.used_bytes));
            (grown_bytes > 0).then(|| (area.path.clone(), grown_bytes))
        })
        .collect()
}

/// Million bytes a second; 0 for no time at all.
fn rate_mb_s(bytes: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { bytes as f64 / 1e6 / seconds } else { 0.0 }
}

impl fmt::Display for DemoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "out       {} pages by the kernel's count, {} to the volume in {:.2} s: {:.0} MB/s",
            self.out_counters.pages_out,
            human(self.written_bytes),
            self.out_time.as_secs_f64(),
            rate_mb_s(self.written_bytes, self.out_time)
        )?;
        writeln!(
            f,
            "in        {} pages by the kernel's count, {} from the volume in {:.2} s: {:.0} MB/s, \
             comparison included",
            self.in_counters.pages_in,
            human(self.read_bytes),
            self.in_time.as_secs_f64(),
            rate_mb_s(self.read_bytes, self.in_time)
        )?;
        if self.stayed_pages > 0 {
            writeln!(f, "stayed    {} pages never left memory", self.stayed_pages)?;
        }
        for (path, grown_bytes) in &self.grown {
            if *path != self.device {
                writeln!(
                    f,
                    "elsewhere {} went to another swap area, {}",
                    human(*grown_bytes),
                    path.display()
                )?;
            }
        }
        if let Some(stats) = &self.stats {
            write_requests(f, stats)?;
            if let Some(savings) = Savings::of(stats) {
                writeln!(f, "memory    {savings}")?;
            }
        }
        write_verdict(f, &self.verdict, self.page_count)
    }
}

fn write_requests(f: &mut fmt::Formatter<'_>, stats: &Stats) -> fmt::Result {
    let mean = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), human);
    writeln!(
        f,
        "requests  {} writes (mean {}), {} reads (mean {}), {} discards, {} errors",
        stats.requests.write,
        mean(stats.mean_write_bytes()),
        stats.requests.read,
        mean(stats.mean_read_bytes()),
        stats.requests.discard,
        stats.errors.total()
    )?;
    for SizeBucket { le_bytes, read, write } in &stats.request_bytes {
        if read + write > 0 {
            let size = le_bytes.map_or_else(|| "more".into(), |le| format!("<= {}", human(le)));
            writeln!(f, "  {size:<12}{write:>10} writes{read:>10} reads")?;
        }
    }
    Ok(())
}

fn write_verdict(f: &mut fmt::Formatter<'_>, verdict: &Verdict, page_count: u64) -> fmt::Result {
    if verdict.is_clean(page_count) {
        return write!(
            f,
            "verified  all {page_count} pages ({}): every byte is right",
            human(page_count * PAGE_BYTES)
        );
    }
    write!(
        f,
        "VERIFIED  {} of {page_count} pages are right, {} wrong, {} could not be read; the first \
         bad one is page {}",
        verdict.right_pages,
        verdict.wrong_pages,
        verdict.lost_pages,
        verdict.first_bad_page.unwrap_or(0)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> DemoReport {
        DemoReport {
            page_count: 1000,
            out_time: Duration::from_secs(2),
            in_time: Duration::from_secs(4),
            stayed_pages: 0,
            out_counters: SwapCounters { pages_in: 0, pages_out: 1000 },
            in_counters: SwapCounters { pages_in: 1000, pages_out: 0 },
            written_bytes: 4_096_000,
            read_bytes: 4_096_000,
            stats: Stats::parse(crate::stats::tests::SAMPLE.as_bytes()).ok(),
            grown: vec![("/dev/loop1".into(), 4_096_000)],
            device: "/dev/loop1".into(),
            verdict: Verdict { right_pages: 1000, ..Verdict::default() },
        }
    }

    #[test]
    fn a_clean_run() {
        let report = report();
        assert!(report.is_clean());
        let text = report.to_string();
        assert!(text.contains("3.9 MiB to the volume in 2.00 s: 2 MB/s"), "{text}");
        assert!(text.contains("4 writes (mean 512 KiB), 10 reads (mean 8 KiB)"), "{text}");
        assert!(text.contains("  <= 4 KiB             0 writes         8 reads"), "{text}");
        assert!(text.ends_with("all 1000 pages (3.9 MiB): every byte is right"), "{text}");
        assert!(!text.contains("elsewhere"), "{text}");
    }

    #[test]
    fn bad_pages_and_other_areas_are_said() {
        let mut report = report();
        report.verdict =
            Verdict { right_pages: 997, wrong_pages: 2, lost_pages: 1, first_bad_page: Some(5) };
        report.grown.push(("/dev/zram0".into(), 8192));
        report.stayed_pages = 3;
        assert!(!report.is_clean());
        let text = report.to_string();
        assert!(text.contains("8 KiB went to another swap area, /dev/zram0"), "{text}");
        assert!(text.contains("3 pages never left memory"), "{text}");
        assert!(
            text.contains("997 of 1000 pages are right, 2 wrong, 1 could not be read"),
            "{text}"
        );
        assert!(text.ends_with("the first bad one is page 5"), "{text}");
    }

    #[test]
    fn growth_counts_only_what_grew() {
        let area = |path: &str, used_bytes| SwapArea {
            path: path.into(),
            size_bytes: 1 << 30,
            used_bytes,
            priority: 0,
        };
        let before = [area("/dev/a", 100), area("/dev/b", 500)];
        let after = [area("/dev/a", 300), area("/dev/b", 400), area("/dev/c", 7)];
        assert_eq!(growth(&before, &after), [("/dev/a".into(), 200), ("/dev/c".into(), 7)]);
    }
}
