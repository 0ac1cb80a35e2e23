//! What a back end over several images says of its tiers, in `stats.json` and to the
//! administration. The names are those of the JSON.

use serde::Serialize;

/// One tier at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TierReport<'a> {
    /// Its place among the tiers, hottest first; 0: the daemon's memory.
    pub order: u32,
    /// `zmem`, `log` or `linear`.
    #[serde(rename = "type")]
    pub type_name: &'a str,
    /// Path of its image; empty for memory, and where nobody knows.
    pub image: &'a str,
    /// UUID of its image; empty for memory.
    pub uuid: &'a str,
    /// `ok`, `failed`, `evacuating` or `missing`.
    pub state: &'a str,
    /// What it has room for.
    pub capacity_bytes: u64,
    /// What of that is taken.
    pub used_bytes: u64,
    /// What of that holds objects that are still wanted.
    pub live_bytes: u64,
    /// Pages that lie here.
    pub pages: u64,
    /// From this use on pages are moved down.
    pub high_percent: u32,
    /// Down to this use.
    pub low_percent: u32,
    /// When a page that is read here moves to the top: `always`, `second` or `never`.
    pub promote: &'a str,
    /// Whether it stays here as well then: `inclusive` or `exclusive`.
    pub keep: &'a str,
    /// Bytes a second that are moved into it at most; 0: no limit.
    pub rate_bytes: u64,
    /// Its options, as text.
    pub options: &'a str,
    /// Pages that were read from here for the kernel.
    pub read_pages: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Pages that came from the tier above.
    pub demoted_in_pages: u64,
    /// Their bytes.
    pub demoted_in_bytes: u64,
    /// Pages that went to the tier below.
    pub demoted_out_pages: u64,
    /// Pages that went to the top.
    pub promoted_out_pages: u64,
    /// Bytes that were moved to free segments.
    pub collected_bytes: u64,
    /// Bytes written to the device.
    pub written_bytes: u64,
    /// Bytes read from the device.
    pub read_bytes: u64,
    /// Pages by age, the young ones first.
    pub age_pages: [u64; 4],
    /// Half of the reads took no longer than this, in microseconds.
    pub read_p50_us: u64,
    /// 99 of 100 reads took no longer than this, in microseconds.
    pub read_p99_us: u64,
}

/// A tier that is being emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EvacuationReport {
    /// Its order.
    pub tier: u32,
    /// Where its pages go: `up`, `down` or `auto`.
    pub direction: &'static str,
    /// Pages that have gone.
    pub moved_pages: u64,
    /// Pages that are left.
    pub left_pages: u64,
    /// Bytes of these.
    pub left_bytes: u64,
    /// How fast it goes.
    pub bytes_per_s: u64,
}
