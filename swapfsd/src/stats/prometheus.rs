//! `metrics`: the same numbers as Prometheus text, names with their units.

use super::json::Report;
use super::{LATENCY_BUCKETS, latency_bound_us};
use crate::backend::TierReport;
use crate::error::Operation;
use std::io::{self, Cursor, Write};

/// A number of a tier: its name, what it says, its kind, and where it comes from.
type TierMetric = (&'static str, &'static str, &'static str, fn(&TierReport<'_>) -> u64);

/// What is told of each tier.
const TIER_METRICS: &[TierMetric] = &[
    ("swapfs_tier_up", "1: the tier can be used.", "gauge", |tier| {
        u64::from(matches!(tier.state, "ok" | "evacuating"))
    }),
    ("swapfs_tier_capacity_bytes", "What the tier has room for.", "gauge", |tier| {
        tier.capacity_bytes
    }),
    ("swapfs_tier_used_bytes", "What of that is taken.", "gauge", |tier| tier.used_bytes),
    ("swapfs_tier_live_bytes", "What of that is still wanted.", "gauge", |tier| tier.live_bytes),
    ("swapfs_tier_pages", "Pages that lie here.", "gauge", |tier| tier.pages),
    ("swapfs_tier_read_pages_total", "Pages read from here for the kernel.", "counter", |tier| {
        tier.read_pages
    }),
    ("swapfs_tier_read_errors_total", "Reads that failed.", "counter", |tier| tier.read_errors),
    ("swapfs_tier_write_errors_total", "Writes that failed.", "counter", |tier| tier.write_errors),
    ("swapfs_tier_demoted_in_pages_total", "Pages from the tiers above.", "counter", |tier| {
        tier.demoted_in_pages
    }),
    ("swapfs_tier_demoted_out_pages_total", "Pages to the tiers below.", "counter", |tier| {
        tier.demoted_out_pages
    }),
    ("swapfs_tier_promoted_out_pages_total", "Pages to the top.", "counter", |tier| {
        tier.promoted_out_pages
    }),
    ("swapfs_tier_collected_bytes_total", "Bytes moved to free segments.", "counter", |tier| {
        tier.collected_bytes
    }),
    ("swapfs_tier_written_bytes_total", "Bytes written to the device.", "counter", |tier| {
        tier.written_bytes
    }),
    ("swapfs_tier_device_read_bytes_total", "Bytes read from the device.", "counter", |tier| {
        tier.read_bytes
    }),
];

impl Report<'_> {
    /// Writes the metrics into `out` and answers their length in bytes; 0 if they did not fit.
    pub fn render_metrics(&self, out: &mut [u8]) -> usize {
        let mut cursor = Cursor::new(out);
        match self.write_metrics(&mut cursor) {
            Ok(()) => cursor.position() as usize,
            Err(_) => 0,
        }
    }

    fn write_metrics(&self, out: &mut impl Write) -> io::Result<()> {
        let snapshot = &self.snapshot;
        let uuid = self.identity.uuid.as_str();
        let by_operation = |out: &mut dyn Write, name: &str, help: &str, values: &[u64; 4]| {
            head(out, name, help, "counter")?;
            for operation in Operation::ALL {
                let value = values[operation as usize];
                let operation = operation.name();
                writeln!(out, "{name}{{volume=\"{uuid}\",operation=\"{operation}\"}} {value}")?;
            }
            io::Result::Ok(())
        };
        by_operation(out, "swapfs_requests_total", "Requests served.", &snapshot.requests)?;
        by_operation(
            out,
            "swapfs_request_bytes_total",
            "Bytes of requests that succeeded.",
            &snapshot.bytes,
        )?;
        by_operation(
            out,
            "swapfs_request_errors_total",
            "Requests that failed.",
            &snapshot.errors,
        )?;
        let single = |out: &mut dyn Write, name: &str, help: &str, kind: &str, value: u64| {
            head(out, name, help, kind)?;
            writeln!(out, "{name}{{volume=\"{uuid}\"}} {value}")
        };
        let checksum_errors = snapshot.checksum_errors;
        single(
            out,
            "swapfs_checksum_errors_total",
            "Reads whose data did not match its checksum.",
            "counter",
            checksum_errors,
        )?;
        single(out, "swapfs_volume_bytes", "Size of the volume.", "gauge", self.volume.bytes())?;
        let in_flight = self.volume.requests_in_flight() as u64;
        single(out, "swapfs_requests_in_flight", "Requests under way.", "gauge", in_flight)?;
        let allocations = crate::sys::alloc::io_path_allocations();
        single(
            out,
            "swapfs_io_path_allocations_total",
            "Heap allocations on the I/O path; there should be none.",
            "counter",
            allocations,
        )?;
        self.write_latencies(out)?;
        for (name, value) in self.backend() {
            writeln!(out, "# TYPE swapfs_backend_{name} untyped")?;
            writeln!(out, "swapfs_backend_{name}{{volume=\"{uuid}\"}} {value}")?;
        }
        self.write_tiers(out)
    }

    /// Numbers of each tier, where there are any.
    fn write_tiers(&self, out: &mut impl Write) -> io::Result<()> {
        let uuid = self.identity.uuid.as_str();
        let mut has_tiers = false;
        self.volume.tiers(&mut |_| has_tiers = true);
        if !has_tiers {
            return Ok(());
        }
        for (name, help, kind, value) in TIER_METRICS {
            head(out, name, help, kind)?;
            let mut outcome = Ok(());
            self.volume.tiers(&mut |tier| {
                if outcome.is_ok() {
                    let (order, type_name) = (tier.order, tier.type_name);
                    let labels =
                        format_args!("volume=\"{uuid}\",tier=\"{order}\",type=\"{type_name}\"");
                    outcome = writeln!(out, "{name}{{{labels}}} {}", value(tier));
                }
            });
            outcome?;
        }
        Ok(())
    }

    fn write_latencies(&self, out: &mut impl Write) -> io::Result<()> {
        let name = "swapfs_request_seconds";
        let uuid = self.identity.uuid.as_str();
        head(out, name, "Time of a request in the volume and its back end.", "histogram")?;
        for operation in [Operation::Read, Operation::Write] {
            let index = operation as usize;
            let labels = format_args!("volume=\"{uuid}\",operation=\"{}\"", operation.name());
            let mut sum = 0;
            for bucket in 0..LATENCY_BUCKETS {
                sum += self.snapshot.latencies[index][bucket];
                match latency_bound_us(bucket) {
                    Some(us) => {
                        let le = us as f64 / 1e6;
                        writeln!(out, "{name}_bucket{{{labels},le=\"{le}\"}} {sum}")?;
                    }
                    None => writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {sum}")?,
                }
            }
            let seconds = self.snapshot.latency_sums_us[index] as f64 / 1e6;
            writeln!(out, "{name}_sum{{{labels}}} {seconds}")?;
            writeln!(out, "{name}_count{{{labels}}} {sum}")?;
        }
        Ok(())
    }
}

fn head(out: &mut (impl Write + ?Sized), name: &str, help: &str, kind: &str) -> io::Result<()> {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}
