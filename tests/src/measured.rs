//! What measurements that drive a volume without FUSE share: real pages, aligned memory, latencies.

use crate::rng::Rng;
use std::fs;
use std::path::{Path, PathBuf};
use swapfs_format::PAGE_LEN;
use swapfsd::buffer::{BufferPool, PageBuffer};

/// Real pages, one after the other, from all files of a directory (../shared/tools/page-corpus).
pub struct Corpus(Vec<u8>);

impl Corpus {
    /// Reads them all.
    #[must_use]
    pub fn open(directory: &Path) -> Corpus {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        Corpus(paths.iter().flat_map(|path| fs::read(path).unwrap()).collect())
    }

    /// Any page. Its first words are changed, so that no two are the same.
    pub fn page(&self, random: &mut Rng, page: &mut [u8]) {
        let count = (self.0.len() / PAGE_LEN) as u64;
        let start = random.below(count) as usize * PAGE_LEN;
        page.copy_from_slice(&self.0[start..start + PAGE_LEN]);
        page[8..16].copy_from_slice(&random.next_u64().to_le_bytes());
    }
}

/// Page-aligned memory.
pub struct Aligned(PageBuffer);

/// So many pages of it.
#[must_use]
pub fn aligned(pages: usize) -> Aligned {
    Aligned(BufferPool::new(1, 1).unwrap().take(pages * PAGE_LEN))
}

impl AsMut<[u8]> for Aligned {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The least of `sorted` nanoseconds that this part of them does not pass, in microseconds.
#[must_use]
pub fn percentile_us(sorted: &[u64], part: f64) -> f64 {
    let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |&ns| ns as f64 / 1000.0)
}

/// Latencies in nanoseconds, as a report has them.
#[must_use]
pub fn report_latencies(mut latencies: Vec<u64>) -> serde_json::Value {
    latencies.sort_unstable();
    serde_json::json!({
        "reads": latencies.len(),
        "median_us": percentile_us(&latencies, 0.5),
        "p99_us": percentile_us(&latencies, 0.99),
        "p999_us": percentile_us(&latencies, 0.999),
        "max_us": percentile_us(&latencies, 1.0),
    })
}
