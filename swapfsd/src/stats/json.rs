//! `stats.json`: everything about a mounted volume, for scripts and for `swapfs status`.
//!
//! Rendered into memory that is there from the start: a thread that serves requests does this,
//! and it must not wait for memory.

use super::{LATENCY_BUCKETS, SIZE_BUCKETS, Snapshot, latency_bound_us, size_bound_bytes, tiers};
use crate::control;
use crate::error::Operation;
use crate::protect::Protection;
use crate::sys::spawn;
use crate::volume::Volume;
use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use std::io::Cursor;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Version of the layout of `stats.json`; raised when a name changes its meaning.
pub const VERSION: u32 = 1;
/// Numbers that a back end may report at most.
const MAX_BACKEND_NUMBERS: usize = 64;

/// What of a mount does not change.
#[derive(Debug)]
pub struct Identity {
    /// The image's absolute path.
    pub image: String,
    /// Name of the back-end type.
    pub type_name: String,
    /// The image's UUID.
    pub uuid: String,
    /// The volume's label.
    pub label: String,
    /// Options in force, as text.
    pub options: String,
    /// Threads that serve requests.
    pub threads: u32,
    /// How requests come.
    pub transport: &'static str,
    /// When the volume was mounted, nanoseconds of CLOCK_BOOTTIME.
    pub mounted_ns: u64,
    /// Why no supervisor could save the volume if this process died; empty if one can.
    pub unguarded_why: String,
    /// What protects the daemon.
    pub protection: Protection,
}

impl Identity {
    /// Since the volume was mounted, by whichever process.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        Duration::from_nanos(spawn::boot_time_ns().saturating_sub(self.mounted_ns))
    }
}

/// The volume's snapshot with the back end's numbers.
pub struct Report<'a> {
    pub(super) identity: &'a Identity,
    pub(super) volume: &'a Volume,
    pub(super) snapshot: Snapshot,
    backend: [(&'static str, u64); MAX_BACKEND_NUMBERS],
    backend_len: usize,
}

impl<'a> Report<'a> {
    /// Takes all numbers now.
    #[must_use]
    pub fn new(identity: &'a Identity, volume: &'a Volume) -> Report<'a> {
        let mut backend = [("", 0); MAX_BACKEND_NUMBERS];
        let mut backend_len = 0;
        volume.backend_statistics(&mut |name, value| {
            if let Some(place) = backend.get_mut(backend_len) {
                *place = (name, value);
                backend_len += 1;
            }
        });
        Report { identity, volume, snapshot: volume.stats().snapshot(), backend, backend_len }
    }

    /// The back end's numbers.
    #[must_use]
    pub fn backend(&self) -> &[(&'static str, u64)] {
        &self.backend[..self.backend_len]
    }

    /// Writes `stats.json` into `out` and answers its length in bytes; 0 if it did not fit.
    pub fn render_json(&self, out: &mut [u8]) -> usize {
        let mut cursor = Cursor::new(out);
        match serde_json::to_writer(&mut cursor, self) {
            Ok(()) => {
                let len = cursor.position() as usize;
                match cursor.into_inner().get_mut(len) {
                    Some(end) => {
                        *end = b'\n';
                        len + 1
                    }
                    None => len,
                }
            }
            Err(_) => 0,
        }
    }
}

impl Serialize for Report<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let identity = self.identity;
        let snapshot = &self.snapshot;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("version", &VERSION)?;
        map.serialize_entry("pid", &std::process::id())?;
        Guard::now(identity).serialize_into(&mut map)?;
        map.serialize_entry("program", concat!("swapfsd ", env!("CARGO_PKG_VERSION")))?;
        map.serialize_entry("image", &identity.image)?;
        map.serialize_entry("type", &identity.type_name)?;
        map.serialize_entry("uuid", &identity.uuid)?;
        map.serialize_entry("label", &identity.label)?;
        map.serialize_entry("options", &identity.options)?;
        map.serialize_entry("threads", &identity.threads)?;
        map.serialize_entry("transport", identity.transport)?;
        map.serialize_entry("slot_count", &self.volume.slot_count())?;
        map.serialize_entry("volume_bytes", &self.volume.bytes())?;
        map.serialize_entry("uptime_s", &identity.uptime().as_secs_f64())?;
        map.serialize_entry("requests", &ByOperation(&snapshot.requests))?;
        map.serialize_entry("bytes", &ByOperation(&snapshot.bytes))?;
        let errors = Errors { by_operation: &snapshot.errors, checksum: snapshot.checksum_errors };
        map.serialize_entry("errors", &errors)?;
        map.serialize_entry("in_flight", &self.volume.requests_in_flight())?;
        map.serialize_entry("partial_writes", &snapshot.partial_writes)?;
        map.serialize_entry("request_bytes", &Sizes(snapshot))?;
        map.serialize_entry("latency_us", &Latencies(snapshot))?;
        map.serialize_entry("protection", &identity.protection)?;
        map.serialize_entry(
            "heap_allocations_on_io_path",
            &crate::sys::alloc::io_path_allocations(),
        )?;
        map.serialize_entry("memory_reserve_releases", &crate::reserve::releases())?;
        map.serialize_entry("oom_calls", &crate::overfull::calls())?;
        map.serialize_entry("log_lines_dropped", &crate::logging::lines_dropped())?;
        map.serialize_entry("backend", &Numbers(self.backend()))?;
        tiers::serialize_into(&mut map, self.volume)?;
        map.end()
    }
}

/// Who looks after the process that serves, and what happened to its predecessors.
struct Guard<'a> {
    page: Option<&'a control::Page>,
    why: &'a str,
}

impl<'a> Guard<'a> {
    fn now(identity: &'a Identity) -> Guard<'a> {
        let page = control::installed().map(control::Control::page);
        let supervised = page.is_some_and(|page| page.supervisor_pid.load(Relaxed) != 0);
        let why = if page.is_some() && !supervised && identity.unguarded_why.is_empty() {
            "the supervisor has died; a new one is being started"
        } else {
            identity.unguarded_why.as_str()
        };
        Guard { page, why }
    }

    fn serialize_into<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let number = |pick: fn(&control::Page) -> u32| self.page.map_or(0, pick);
        let pid = |pid: u32| (pid != 0).then_some(pid);
        let milliseconds = |us: u64| (us != 0).then_some(us as f64 / 1000.0);
        let last = self.page.map_or(0, |page| page.last_pause_us.load(Relaxed));
        let longest = self.page.map_or(0, |page| page.longest_pause_us.load(Relaxed));
        map.serialize_entry("worker_pid", &std::process::id())?;
        let supervisor = pid(number(|page| page.supervisor_pid.load(Relaxed)));
        map.serialize_entry("supervisor_pid", &supervisor)?;
        let standby = pid(number(|page| page.standby_pid.load(Relaxed)));
        map.serialize_entry("standby_pid", &standby)?;
        map.serialize_entry("guarded", &self.why.is_empty())?;
        map.serialize_entry("unguarded_why", self.why)?;
        map.serialize_entry("takeovers", &number(|page| page.takeovers.load(Relaxed)))?;
        map.serialize_entry("hangs", &number(|page| page.hangs.load(Relaxed)))?;
        map.serialize_entry("upgrades", &number(|page| page.upgrades.load(Relaxed)))?;
        map.serialize_entry("last_pause_ms", &milliseconds(last))?;
        map.serialize_entry("longest_pause_ms", &milliseconds(longest))?;
        let allocations = self.page.map_or(0, |page| page.supervisor_allocations.load(Relaxed));
        map.serialize_entry("supervisor_heap_allocations", &allocations)?;
        map.serialize_entry("handover_version", &control::HANDOVER_VERSION)
    }
}

struct ByOperation<'a>(&'a [u64; 4]);

impl Serialize for ByOperation<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for operation in Operation::ALL {
            map.serialize_entry(operation.name(), &self.0[operation as usize])?;
        }
        map.end()
    }
}

struct Errors<'a> {
    by_operation: &'a [u64; 4],
    checksum: u64,
}

impl Serialize for Errors<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for operation in Operation::ALL {
            map.serialize_entry(operation.name(), &self.by_operation[operation as usize])?;
        }
        map.serialize_entry("checksum", &self.checksum)?;
        map.end()
    }
}

#[derive(Serialize)]
struct SizeBucket {
    le_bytes: u64,
    read: u64,
    write: u64,
}

struct Sizes<'a>(&'a Snapshot);

impl Serialize for Sizes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(SIZE_BUCKETS))?;
        for bucket in 0..SIZE_BUCKETS {
            seq.serialize_element(&SizeBucket {
                le_bytes: size_bound_bytes(bucket),
                read: self.0.sizes[0][bucket],
                write: self.0.sizes[1][bucket],
            })?;
        }
        seq.end()
    }
}

#[derive(Serialize)]
struct LatencyBucket {
    /// `null` stands for no bound.
    le_us: Option<u64>,
    read: u64,
    write: u64,
}

struct Latencies<'a>(&'a Snapshot);

impl Serialize for Latencies<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(LATENCY_BUCKETS))?;
        for bucket in 0..LATENCY_BUCKETS {
            seq.serialize_element(&LatencyBucket {
                le_us: latency_bound_us(bucket),
                read: self.0.latencies[0][bucket],
                write: self.0.latencies[1][bucket],
            })?;
        }
        seq.end()
    }
}

struct Numbers<'a>(&'a [(&'static str, u64)]);

impl Serialize for Numbers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}
