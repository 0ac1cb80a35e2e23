//! The tiers of a volume in `stats.json`.

use serde::{Deserialize, Serialize};
use std::path::Path;
use swapfs_format::remote::RemoteOptions;
use swapfs_format::types::REMOTE;
use swapfsd::image::{Access, Image};

/// One tier. Counters begin anew with each process that serves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TierStats {
    /// Its place, hottest first; 0: the daemon's memory.
    pub order: u32,
    /// `zmem`, `log`, `linear` or `remote`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Path of its image; empty for memory.
    pub image: String,
    /// Of a stub: the address of the servers, if it could be found out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// UUID of its image; empty for memory.
    pub uuid: String,
    /// `ok`, `failed`, `evacuating` or `missing`.
    pub state: String,
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
    /// `always`, `second` or `never`.
    pub promote: String,
    /// `inclusive` or `exclusive`.
    pub keep: String,
    /// Bytes a second that are moved into it at most; 0: no limit.
    pub rate_bytes: u64,
    /// Its options, as text.
    pub options: String,
    /// Pages that were read from here for the kernel.
    pub read_pages: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Pages that came from the tier above.
    pub demoted_in_pages: u64,
    /// Their bytes, as they are stored.
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EvacuationStats {
    /// Its order.
    pub tier: u32,
    /// `up`, `down` or `auto`.
    pub direction: String,
    /// Pages that have gone.
    pub moved_pages: u64,
    /// Pages that are left.
    pub left_pages: u64,
    /// Bytes of these, as they are stored.
    pub left_bytes: u64,
    /// How fast it goes.
    pub bytes_per_s: u64,
}

impl TierStats {
    /// Where its pages are, for people: its image, or the servers that a stub stands for.
    #[must_use]
    pub fn place(&self) -> &str {
        if self.url.is_empty() { &self.image } else { &self.url }
    }

    /// Looks at the stub of a tier on servers elsewhere, which says where they are, unless that is
    /// known. A mount may have been given another address.
    pub fn look_up_url(&mut self) {
        if self.type_name != REMOTE.name || !self.url.is_empty() {
            return;
        }
        let image = Image::open(Path::new(&self.image), Access::ReadOnly);
        let superblock = image.ok().and_then(|image| image.read_superblocks().primary.ok());
        let options = superblock.as_ref().and_then(RemoteOptions::of_stub);
        if let Some(Ok(options)) = options {
            self.url = options.url.to_string();
        }
    }

    /// `1 log`: what it is called in tables.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} {}", self.order, self.type_name)
    }

    /// Whether pages can be read from it and moved into it as they should.
    #[must_use]
    pub fn is_well(&self) -> bool {
        matches!(self.state.as_str(), "ok" | "evacuating")
    }

    /// What is taken, of what it has room for; 0 of nothing.
    #[must_use]
    pub fn fill_percent(&self) -> f64 {
        match self.capacity_bytes {
            0 => 0.0,
            capacity => self.used_bytes as f64 * 100.0 / capacity as f64,
        }
    }

    /// Reads and writes that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.read_errors + self.write_errors
    }

    /// What a person should know of it, in one sentence; `None` if it is as it should be.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let tier = match self.place() {
            "" => format!("tier {}", self.name()),
            place => format!("tier {} ({place})", self.name()),
        };
        let is_remote = self.type_name == REMOTE.name;
        let failed = format!("{} reads and {} writes", self.read_errors, self.write_errors);
        match self.state.as_str() {
            "missing" => Some(format!(
                "{tier} is missing: pages that lie there can't be read: attach its device; it is \
                 looked for now and then, and used again"
            )),
            "failed" if is_remote => Some(format!(
                "{tier} does not answer ({failed}): it takes no pages, and reads of the {} pages \
                 there fail: see whether its servers run, and the daemon's log; they are asked \
                 again now and then",
                self.pages
            )),
            "failed" => Some(format!(
                "{tier} has failed ({failed}): it takes no pages, and reads of the {} pages there \
                 fail: see the daemon's log; it is tried again now and then",
                self.pages
            )),
            _ if self.errors() > 0 => {
                Some(format!("{tier}: {failed} failed: see the daemon's log"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_in_order_has_no_warning_and_others_say_what_is_wrong() {
        let mut tier = TierStats {
            order: 1,
            type_name: "log".into(),
            image: "/img/b".into(),
            state: "ok".into(),
            capacity_bytes: 200,
            used_bytes: 50,
            ..TierStats::default()
        };
        assert_eq!((tier.fill_percent(), tier.is_well(), tier.warning()), (25.0, true, None));
        tier.read_errors = 2;
        assert!(tier.warning().unwrap().starts_with("tier 1 log (/img/b): 2 reads and 0 writes"));
        tier.state = "failed".into();
        assert!(tier.warning().unwrap().contains("has failed (2 reads and 0 writes)"));
        tier.type_name = "remote".into();
        tier.url = "redis://a:1".into();
        let warning = tier.warning().unwrap();
        assert!(warning.starts_with("tier 1 remote (redis://a:1) does not answer"), "{warning}");
        tier.state = "missing".into();
        assert!(tier.warning().unwrap().contains("is missing") && !tier.is_well());
        assert_eq!(TierStats::default().fill_percent(), 0.0);
    }
}
