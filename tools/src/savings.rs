//! What a compressing back end saves, as a person would want to know it.

use crate::stats::Stats;
use std::fmt;
use swapfs_format::PAGE_BYTES;
use swapfs_format::size::human;

/// Numbers of the back end `zmem`, see swapfs-zmem(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Savings {
    /// Pages stored, uncompressed.
    pub stored_bytes: u64,
    /// Memory that they take, the slot table and gaps included.
    pub used_bytes: u64,
    /// Memory that they may take.
    pub limit_bytes: u64,
    /// Pages of one word over and over.
    pub same_pages: u64,
    /// Pages compressed by lz4.
    pub lz4_pages: u64,
    /// Pages compressed by zstd.
    pub zstd_pages: u64,
    /// Pages kept as they are.
    pub raw_pages: u64,
    /// Pages stored as another one that is identical.
    pub shared_pages: u64,
    /// Pages read back, by what they were found as: absent, same-filled, lz4, zstd, raw.
    pub reads: [u64; 5],
    /// Writes refused for want of room.
    pub refused_writes: u64,
}

/// The numbers of pages read, and how they are called.
const READS: [(&str, &str); 5] = [
    ("read_absent_pages", "absent"),
    ("read_same_pages", "same-filled"),
    ("read_lz4_pages", "lz4"),
    ("read_zstd_pages", "zstd"),
    ("read_huge_pages", "raw"),
];

/// `10 % this, 90 % that`, of what there is any.
fn shares(counts: impl Iterator<Item = (u64, &'static str)> + Clone, total: u64) -> String {
    let share = |(count, name)| format!("{:.0} % {name}", 100.0 * count as f64 / total as f64);
    counts.filter(|(count, _)| *count > 0).map(share).collect::<Vec<_>>().join(", ")
}

impl Savings {
    /// The savings of a volume, if its back end compresses.
    #[must_use]
    pub fn of(stats: &Stats) -> Option<Savings> {
        // Most of a tier volume's pages are not in memory: see `tiers::savings`.
        if !stats.tiers.is_empty() {
            return None;
        }
        let number = |name: &str| stats.backend.get(name)?.as_u64();
        Some(Savings {
            stored_bytes: number("orig_data_size_bytes")?,
            used_bytes: number("mem_used_total_bytes")?,
            limit_bytes: number("mem_limit_bytes")?,
            same_pages: number("same_pages")?,
            lz4_pages: number("lz4_pages")?,
            zstd_pages: number("zstd_pages")?,
            raw_pages: number("huge_pages")?,
            shared_pages: number("dedup_shared_pages").unwrap_or(0),
            reads: READS.map(|(name, _)| number(name).unwrap_or(0)),
            refused_writes: number("refused_writes").unwrap_or(0),
        })
    }
}

impl fmt::Display for Savings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.stored_bytes / PAGE_BYTES;
        if self.stored_bytes <= self.used_bytes {
            // Memory is taken by the segment: of a few pages there is nothing to say.
            let stored = human(self.stored_bytes);
            write!(f, "{stored} of pages stored, {} allowed", human(self.limit_bytes))?;
            return write_refused(self.refused_writes, f);
        }
        write!(
            f,
            "{} of pages take {} of memory (ratio {:.2}, {} saved; {} allowed): ",
            human(self.stored_bytes),
            human(self.used_bytes),
            self.stored_bytes as f64 / self.used_bytes.max(1) as f64,
            human(self.stored_bytes.saturating_sub(self.used_bytes)),
            human(self.limit_bytes)
        )?;
        let kinds = [
            (self.same_pages, "same-filled"),
            (self.lz4_pages, "lz4"),
            (self.zstd_pages, "zstd"),
            (self.raw_pages, "raw"),
            (self.shared_pages, "shared"),
        ];
        f.write_str(&shares(kinds.into_iter(), pages))?;
        let read: u64 = self.reads.iter().sum();
        if read > 0 {
            let counts = self.reads.iter().zip(READS).map(|(&count, (_, name))| (count, name));
            write!(f, "; {read} pages read: {}", shares(counts, read))?;
        }
        write_refused(self.refused_writes, f)
    }
}

/// Goes on with how many writes were refused, if any were.
pub(crate) fn write_refused(count: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match count {
        0 => Ok(()),
        count => write!(f, "; {count} writes refused for want of room"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressing_volume_shows_ratio_and_savings() {
        let mut stats = Stats::default();
        assert_eq!(Savings::of(&stats), None);
        stats.backend = serde_json::json!({
            "orig_data_size_bytes": 1000 * 4096, "mem_used_total_bytes": 1_638_400,
            "mem_limit_bytes": 1 << 30, "same_pages": 100, "lz4_pages": 850, "zstd_pages": 0,
            "huge_pages": 50, "dedup_shared_pages": 0, "refused_writes": 0,
            "read_lz4_pages": 3, "read_absent_pages": 1
        });
        let text = Savings::of(&stats).unwrap().to_string();
        assert_eq!(
            text,
            "3.9 MiB of pages take 1.6 MiB of memory (ratio 2.50, 2.3 MiB saved; 1 GiB \
             allowed): 10 % same-filled, 85 % lz4, 5 % raw; 4 pages read: 25 % absent, 75 % lz4"
        );
    }
}
