//! The back-end types that exist, and the options that each one takes.
//!
//! A new type is one [`TypeSpec`] here, one typed struct for its options, and one folder in
//! `swapfsd/src/backend/`.

use crate::fault::FaultPlan;
pub use crate::options::Algorithm;
use crate::options::{OptionError, OptionSet, OptionSpec, OptionTable};
use crate::remote::RemoteVolumeOptions;
use std::time::Duration;

mod specs;

pub use specs::{COMMON_OPTIONS, LINEAR, LOG, RAM, REMOTE, TIER, ZMEM};

/// A back-end type as the superblock names it.
#[derive(Debug)]
pub struct TypeSpec {
    /// The name in the superblock and behind `mkswapfs -t`.
    pub name: &'static str,
    /// One line for help texts.
    pub summary: &'static str,
    /// The image holds only superblocks; pages live elsewhere.
    pub ghost: bool,
    /// Its volumes lie over several images, which their superblock lists.
    pub has_members: bool,
    /// The type's own options, without [`COMMON_OPTIONS`].
    pub options: &'static [OptionSpec],
}

/// Every type there is, the default one first.
pub const TYPES: &[&TypeSpec] = &[&ZMEM, &LINEAR, &LOG, &TIER, &REMOTE, &RAM];

/// Finds a type by its name in the superblock.
#[must_use]
pub fn find(name: &str) -> Option<&'static TypeSpec> {
    TYPES.iter().copied().find(|spec| spec.name == name)
}

/// The names of all types, for messages.
#[must_use]
pub fn known_names() -> String {
    TYPES.iter().map(|spec| spec.name).collect::<Vec<_>>().join(", ")
}

/// How `linear` does its I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearEngine {
    /// One thread, one pread or pwrite.
    Sync,
    /// io_uring: requests of all threads in flight together.
    Uring,
}

/// The options of `linear`, typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearOptions {
    /// `engine=`
    pub engine: LinearEngine,
    /// `checksum=`
    pub checksum: bool,
    /// `discard=`
    pub discard: bool,
}

/// `recompress=` and what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recompress {
    /// The level of zstd.
    pub level: i32,
    /// `recompress-age=`
    pub age: Duration,
    /// `recompress-rate=`, bytes of pages a second.
    pub rate_bytes: u64,
}

/// The options of `zmem`, typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZmemOptions {
    /// `algo=`
    pub algorithm: Algorithm,
    /// `limit=`; `None`: the daemon chooses.
    pub limit_bytes: Option<u64>,
    /// `reserve=`
    pub reserve_bytes: u64,
    /// `recompress=`; `None`: off.
    pub recompress: Option<Recompress>,
    /// `dedup=`
    pub dedup: bool,
}

/// What is done about freed segments of `log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentDiscard {
    /// As the device needs it.
    Auto,
    /// They are discarded.
    On,
    /// Nothing.
    Off,
}

/// The options of `log`, typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// `segment=`; `None`: chosen at format time.
    pub segment_bytes: Option<u64>,
    /// `algo=`
    pub algorithm: Algorithm,
    /// `buffer=`
    pub buffer_bytes: u64,
    /// `deadline-ms=`
    pub deadline: Duration,
    /// `gc-low=`
    pub gc_low_percent: u32,
    /// `gc-high=`
    pub gc_high_percent: u32,
    /// `discard=`
    pub discard: SegmentDiscard,
    /// `dedup=`
    pub dedup: bool,
}

/// The options of `tier`, typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierOptions {
    /// Of the top tier; never with `dedup`.
    pub zmem: ZmemOptions,
    /// `high=`
    pub high_percent: u32,
    /// `low=`; less than `high_percent`.
    pub low_percent: u32,
    /// `degraded=`
    pub degraded: bool,
    /// `probe=`
    pub probe: Duration,
}

/// How requests come from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The daemon chooses.
    Auto,
    /// Reads and writes of /dev/fuse.
    Fuse,
    /// FUSE over io_uring.
    Uring,
}

/// The options that every type has, typed.
#[derive(Debug, Clone, PartialEq)]
pub struct CommonOptions {
    /// `threads=`; `None`: the daemon chooses.
    pub threads: Option<u32>,
    /// `awake-ms=`; zero: never.
    pub awake: Duration,
    /// `realtime=`
    pub realtime: bool,
    /// `oom-when-full=`
    pub oom_when_full: bool,
    /// `supervisor=`
    pub supervisor: bool,
    /// `transport=`
    pub transport: Transport,
    /// `watchdog=`; zero: never.
    pub watchdog: Duration,
    /// `fault=` and `fault-seed=`
    pub faults: FaultPlan,
    /// `delay=`
    pub delay: Duration,
    /// `trace=`: an absolute path; `None`: nothing is recorded.
    pub trace: Option<String>,
}

/// The options of the type itself.
#[derive(Debug, Clone, PartialEq)]
pub enum BackendOptions {
    /// For [`ZMEM`].
    Zmem(ZmemOptions),
    /// For [`LINEAR`].
    Linear(LinearOptions),
    /// For [`LOG`].
    Log(LogOptions),
    /// For [`TIER`].
    Tier(TierOptions),
    /// For [`REMOTE`].
    Remote(RemoteVolumeOptions),
    /// For [`RAM`].
    Ram,
}

/// All options of one volume.
#[derive(Debug, Clone, PartialEq)]
pub struct TypedOptions {
    /// What every type has.
    pub common: CommonOptions,
    /// What this type has.
    pub backend: BackendOptions,
}

impl TypeSpec {
    /// The specification of option `key`, own or common.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&'static OptionSpec> {
        self.table().find(key)
    }

    /// All option keys, the type's own first.
    pub fn option_specs(&self) -> impl Iterator<Item = &'static OptionSpec> {
        self.table().specs()
    }

    /// The declarations of its options.
    #[must_use]
    pub fn table(&self) -> OptionTable {
        OptionTable::new(self.name, false, [self.options, COMMON_OPTIONS, &[]])
    }

    /// Parses the option text of a superblock (or of `mkswapfs -o`) into typed values.
    ///
    /// # Errors
    /// An unknown key, a key given twice, a value that the key does not take, or values that do not
    /// go with each other.
    pub fn parse_options(&'static self, text: &str) -> Result<TypedOptions, OptionError> {
        self.typed(&OptionSet::parse(self, text)?)
    }

    /// The options of one mount: the superblock's text, overridden by the mount's own text.
    /// Answers them typed, and as text.
    ///
    /// # Errors
    /// As for [`TypeSpec::parse_options`], and for a key that is fixed at format time.
    pub fn mount_options(
        &'static self,
        header: &str,
        mount: &str,
    ) -> Result<(TypedOptions, String), OptionError> {
        let header = OptionSet::parse(self, header)?;
        let merged = header.overridden(&OptionSet::parse(self, mount)?)?;
        Ok((self.typed(&merged)?, merged.text()))
    }

    fn typed(&self, set: &OptionSet) -> Result<TypedOptions, OptionError> {
        let common = CommonOptions {
            threads: set.integer("threads").map(|count| count as u32),
            awake: Duration::from_millis(set.integer("awake-ms").unwrap_or(0)),
            realtime: set.switch("realtime"),
            oom_when_full: set.switch("oom-when-full"),
            supervisor: set.switch("supervisor"),
            transport: match set.choice("transport") {
                "fuse" => Transport::Fuse,
                "uring" => Transport::Uring,
                _ => Transport::Auto,
            },
            watchdog: Duration::from_secs(set.integer("watchdog").unwrap_or(20)),
            faults: FaultPlan {
                rules: set.faults("fault"),
                seed: set.integer("fault-seed").unwrap_or(1),
            },
            delay: Duration::from_micros(set.integer("delay").unwrap_or(0)),
            trace: set.path("trace"),
        };
        let backend = if self.name == LINEAR.name {
            BackendOptions::Linear(LinearOptions {
                engine: if set.choice("engine") == "sync" {
                    LinearEngine::Sync
                } else {
                    LinearEngine::Uring
                },
                checksum: set.switch("checksum"),
                discard: set.switch("discard"),
            })
        } else if self.name == ZMEM.name {
            BackendOptions::Zmem(zmem_options(set, set.switch("dedup")))
        } else if self.name == TIER.name {
            BackendOptions::Tier(tier_options(set)?)
        } else if self.name == LOG.name {
            BackendOptions::Log(log_options(set))
        } else if self.name == REMOTE.name {
            BackendOptions::Remote(RemoteVolumeOptions::of(set)?)
        } else {
            BackendOptions::Ram
        };
        Ok(TypedOptions { common, backend })
    }
}

fn zmem_options(set: &OptionSet, dedup: bool) -> ZmemOptions {
    let recompress = match set.compression("recompress") {
        Some(Algorithm::Zstd { level }) => Some(Recompress {
            level,
            age: Duration::from_secs(set.integer("recompress-age").unwrap_or(300)),
            rate_bytes: set.integer("recompress-rate").unwrap_or(16 << 20),
        }),
        _ => None,
    };
    ZmemOptions {
        algorithm: set.compression("algo").unwrap_or(Algorithm::Lz4),
        limit_bytes: set.integer("limit"),
        reserve_bytes: set.integer("reserve").unwrap_or(16 << 20),
        recompress,
        dedup,
    }
}

fn tier_options(set: &OptionSet) -> Result<TierOptions, OptionError> {
    let (high_percent, low_percent) = set.high_and_low()?;
    Ok(TierOptions {
        zmem: zmem_options(set, false),
        high_percent,
        low_percent,
        degraded: set.switch("degraded"),
        probe: Duration::from_secs(set.integer("probe").unwrap_or(10)),
    })
}

impl SegmentDiscard {
    /// What `discard=` says, where it is a choice.
    pub(crate) fn of(set: &OptionSet) -> SegmentDiscard {
        match set.choice("discard") {
            "on" => SegmentDiscard::On,
            "off" => SegmentDiscard::Off,
            _ => SegmentDiscard::Auto,
        }
    }
}

fn log_options(set: &OptionSet) -> LogOptions {
    LogOptions {
        segment_bytes: set.integer("segment"),
        algorithm: set.compression("algo").unwrap_or(Algorithm::Lz4),
        buffer_bytes: set.integer("buffer").unwrap_or(32 << 20),
        deadline: Duration::from_millis(set.integer("deadline-ms").unwrap_or(30_000)),
        gc_low_percent: set.integer("gc-low").unwrap_or(1) as u32,
        gc_high_percent: set.integer("gc-high").unwrap_or(2) as u32,
        discard: SegmentDiscard::of(set),
        dedup: set.switch("dedup"),
    }
}

#[cfg(test)]
mod tests;
