//! How a log stands, as a person would want to know it.

use crate::savings::write_refused;
use crate::stats::Stats;
use std::fmt;
use swapfs_format::size::human;

/// Numbers of the back end `log`, see swapfs-log(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogUse {
    /// Pages stored, uncompressed.
    pub stored_bytes: u64,
    /// What they take on the device, or will take.
    pub taken_bytes: u64,
    /// What pages may take.
    pub usable_bytes: u64,
    /// Of what is taken, what is in memory only.
    pub buffered_bytes: u64,
    /// Segments, and those that are free.
    pub segments: (u64, u64),
    /// Bytes that the kernel's writes came to, compressed, since the mount.
    pub accepted_bytes: u64,
    /// Bytes written to the device since the mount.
    pub written_bytes: u64,
    /// Writes refused for want of room.
    pub refused_writes: u64,
}

impl LogUse {
    /// How a volume's log stands, if it has one.
    #[must_use]
    pub fn of(stats: &Stats) -> Option<LogUse> {
        let number = |name: &str| stats.backend.get(name)?.as_u64();
        let taken_bytes = number("compr_data_size_bytes")?;
        let segments = (number("segments_total")?, number("segments_free")?);
        Some(LogUse {
            stored_bytes: number("orig_data_size_bytes")?,
            taken_bytes,
            usable_bytes: number("usable_bytes")?,
            buffered_bytes: number("buffer_live_bytes")?.min(taken_bytes),
            segments,
            accepted_bytes: number("accepted_bytes")?,
            written_bytes: number("device_written_bytes")?,
            refused_writes: number("refused_writes").unwrap_or(0),
        })
    }
}

impl fmt::Display for LogUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of pages take {} (ratio {:.2}) of {} usable, {} of it in memory yet; {} of {} \
             segments free",
            human(self.stored_bytes),
            human(self.taken_bytes),
            self.stored_bytes as f64 / self.taken_bytes.max(1) as f64,
            human(self.usable_bytes),
            human(self.buffered_bytes),
            self.segments.1,
            self.segments.0,
        )?;
        if self.written_bytes > 0 {
            write!(
                f,
                "; {} written for {} taken (write amplification {:.2})",
                human(self.written_bytes),
                human(self.accepted_bytes),
                self.written_bytes as f64 / self.accepted_bytes.max(1) as f64
            )?;
        }
        write_refused(self.refused_writes, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_shows_room_and_write_amplification() {
        let mut stats = Stats::default();
        assert_eq!(LogUse::of(&stats), None);
        stats.backend = serde_json::json!({
            "orig_data_size_bytes": 8 << 20, "compr_data_size_bytes": 4 << 20,
            "usable_bytes": 100 << 20, "buffer_live_bytes": 1 << 20, "segments_total": 60,
            "segments_free": 50, "accepted_bytes": 10 << 20, "device_written_bytes": 12 << 20,
            "refused_writes": 2
        });
        assert_eq!(
            LogUse::of(&stats).unwrap().to_string(),
            "8 MiB of pages take 4 MiB (ratio 2.00) of 100 MiB usable, 1 MiB of it in memory yet; \
             50 of 60 segments free; 12 MiB written for 10 MiB taken (write amplification 1.20); 2 \
             writes refused for want of room"
        );
    }
}
