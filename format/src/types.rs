//! The back-end types that exist, and the options that each one takes.
//!
//! A new type is one [`TypeSpec`] here, one typed struct for its options, and one folder in
//! `swapfsd/src/backend/`.

use crate::fault::FaultPlan;
pub use crate::options::Algorithm;
use crate::options::{OptionError, OptionSet, OptionSpec, ValueKind};
use std::time::Duration;

/// A back-end type as the superblock names it.
#[derive(Debug)]
pub struct TypeSpec {
    /// The name in the superblock and behind `mkswapfs -t`.
    pub name: &'static str,
    /// One line for help texts.
    pub summary: &'static str,
    /// The image holds only superblocks; pages live elsewhere.
    pub ghost: bool,
    /// The type's own options, without [`COMMON_OPTIONS`].
    pub options: &'static [OptionSpec],
}

/// Options that every type takes.
pub const COMMON_OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "threads",
        kind: ValueKind::IntegerOrAuto { min: 1, max: 64 },
        default: "auto",
        per_mount: true,
        help: "threads that serve FUSE requests; auto: what the engine does best with",
    },
    OptionSpec {
        key: "awake-ms",
        kind: ValueKind::Integer { min: 0, max: 10_000 },
        default: "0",
        per_mount: true,
        help: "keep idle CPUs from halting while requests come, and so many milliseconds longer: \
               faster single pages, for more power; 0: never",
    },
    OptionSpec {
        key: "realtime",
        kind: ValueKind::Switch,
        default: "on",
        per_mount: true,
        help: "run the daemon as a real-time task of the lowest priority: only such tasks may use \
               a part of the kernel's memory reserve when a machine's memory is full",
    },
    OptionSpec {
        key: "oom-when-full",
        kind: ValueKind::Switch,
        default: "on",
        per_mount: true,
        help: "ask for the OOM killer when most writes are refused and the whole machine waits \
               for memory: the kernel does not see that such an area is full, and tries for ever",
    },
    OptionSpec {
        key: "supervisor",
        kind: ValueKind::Switch,
        default: "on",
        per_mount: true,
        help: "have a second process hold the pages and the connection to the kernel, so that \
               nothing is lost when the one that serves dies (needs Linux 6.9)",
    },
    OptionSpec {
        key: "transport",
        kind: ValueKind::Choice(&["auto", "fuse", "uring"]),
        default: "auto",
        per_mount: true,
        help: "how requests come from the kernel: fuse (/dev/fuse, survives a kill), or uring (FUSE \
               over io_uring, Linux 6.14: faster, but a killed daemon loses the volume); auto: \
               fuse with a supervisor, else uring where the kernel has it enabled",
    },
    OptionSpec {
        key: "watchdog",
        kind: ValueKind::Integer { min: 0, max: 3600 },
        default: "20",
        per_mount: true,
        help: "seconds without an answer after which the process that serves is replaced; a slow \
               device is no reason; 0: never",
    },
    OptionSpec {
        key: "fault",
        kind: ValueKind::Faults,
        default: "",
        per_mount: true,
        help: "for tests: fail operations on purpose, as OP:ERRNO:RATE joined by +",
    },
    OptionSpec {
        key: "fault-seed",
        kind: ValueKind::Integer { min: 0, max: u64::MAX },
        default: "1",
        per_mount: true,
        help: "seed of the fault filter: the same seed fails the same operations",
    },
    OptionSpec {
        key: "delay",
        kind: ValueKind::Integer { min: 0, max: 60_000_000 },
        default: "0",
        per_mount: true,
        help: "for tests: microseconds that every read and write waits before it starts",
    },
    OptionSpec {
        key: "trace",
        kind: ValueKind::Path,
        default: "",
        per_mount: true,
        help: "record every operation on the image in this file, for 'swapfs trace'; a new mount \
               begins it anew",
    },
];

/// Slots in place in the image's data section.
pub const LINEAR: TypeSpec = TypeSpec {
    name: "linear",
    summary: "pages in place in the image, a file or block device",
    ghost: false,
    options: &[
        OptionSpec {
            key: "engine",
            kind: ValueKind::Choice(&["sync", "uring"]),
            default: "uring",
            per_mount: true,
            help: "how the image is read and written: pread/pwrite, or io_uring with many in flight",
        },
        OptionSpec {
            key: "checksum",
            kind: ValueKind::Switch,
            default: "on",
            per_mount: true,
            help: "keep a CRC-32 of every slot in memory (4 bytes a slot) and test it on every read",
        },
        OptionSpec {
            key: "discard",
            kind: ValueKind::Switch,
            default: "on",
            per_mount: true,
            help: "hand discards on: punch holes in a file, discard on a block device",
        },
    ],
};

/// Compressed pages in the daemon's memory.
pub const ZMEM: TypeSpec = TypeSpec {
    name: "zmem",
    summary: "pages compressed in RAM, without a disk",
    ghost: true,
    options: &[
        OptionSpec {
            key: "algo",
            kind: ValueKind::Compression { lz4: true },
            default: "lz4",
            per_mount: true,
            help: "how pages are compressed: lz4 is fast, zstd:LEVEL is smaller",
        },
        OptionSpec {
            key: "limit",
            kind: ValueKind::SizeOrAuto { min: 1 << 20, max: 4 << 40 },
            default: "auto",
            per_mount: true,
            help: "memory for compressed pages and the slot table; at the limit, swap-outs are \
                   refused. auto: half of the machine's memory",
        },
        OptionSpec {
            key: "reserve",
            kind: ValueKind::Size { min: 1 << 20, max: 16 << 30 },
            default: "16M",
            per_mount: true,
            help: "memory that is kept free for swap-outs, beside the limit: they never wait for \
                   memory of the machine",
        },
        OptionSpec {
            key: "recompress",
            kind: ValueKind::Compression { lz4: false },
            default: "off",
            per_mount: true,
            help: "compress pages that nobody has touched for recompress-age again, by zstd",
        },
        OptionSpec {
            key: "recompress-age",
            kind: ValueKind::Integer { min: 1, max: 1_000_000 },
            default: "300",
            per_mount: true,
            help: "seconds without a touch after which a page is cold",
        },
        OptionSpec {
            key: "recompress-rate",
            kind: ValueKind::Size { min: 64 << 10, max: 1 << 40 },
            default: "16M",
            per_mount: true,
            help: "bytes of pages a second that are recompressed at most",
        },
        OptionSpec {
            key: "dedup",
            kind: ValueKind::Switch,
            default: "off",
            per_mount: true,
            help: "store identical pages once",
        },
    ],
};

/// Compressed pages in sequential segments.
pub const LOG: TypeSpec = TypeSpec {
    name: "log",
    summary: "pages compressed and packed into large sequential writes, for flash",
    ghost: false,
    options: &[
        OptionSpec {
            key: "segment",
            kind: ValueKind::SizeOrAuto { min: 64 << 10, max: 64 << 20 },
            default: "auto",
            per_mount: false,
            help: "bytes that are written in sequence and erased together, a power of two; auto: \
                   the device's erase block or optimal I/O size, 2 MiB and more, less in a small \
                   image",
        },
        OptionSpec {
            key: "algo",
            kind: ValueKind::Compression { lz4: true },
            default: "lz4",
            per_mount: true,
            help: "how pages are compressed: lz4 is fast, zstd:LEVEL is smaller",
        },
        OptionSpec {
            key: "buffer",
            kind: ValueKind::Size { min: 4 << 20, max: 64 << 30 },
            default: "32M",
            per_mount: true,
            help: "memory in which compressed pages wait to be written: what is overwritten or \
                   discarded there never reaches the device",
        },
        OptionSpec {
            key: "deadline-ms",
            kind: ValueKind::Integer { min: 10, max: 86_400_000 },
            default: "30000",
            per_mount: true,
            help: "milliseconds after which a page is written though the buffer has room",
        },
        OptionSpec {
            key: "gc-low",
            kind: ValueKind::Integer { min: 0, max: 50 },
            default: "1",
            per_mount: true,
            help: "per cent of free segments below which garbage collection starts",
        },
        OptionSpec {
            key: "gc-high",
            kind: ValueKind::Integer { min: 0, max: 60 },
            default: "2",
            per_mount: true,
            help: "per cent of free segments at which garbage collection ends",
        },
        OptionSpec {
            key: "discard",
            kind: ValueKind::Choice(&["auto", "on", "off"]),
            default: "auto",
            per_mount: true,
            help: "discard freed segments on the device; auto: on a block device, not in a file, \
                   whose space would have to be allocated again",
        },
        OptionSpec {
            key: "dedup",
            kind: ValueKind::Switch,
            default: "off",
            per_mount: true,
            help: "write identical pages that are written together once",
        },
    ],
};

/// Pages as they are in the daemon's memory.
pub const RAM: TypeSpec = TypeSpec {
    name: "ram",
    summary: "pages uncompressed in the daemon's locked memory (for tests and measurements)",
    ghost: true,
    options: &[],
};

/// Every type there is, the default one first.
pub const TYPES: &[&TypeSpec] = &[&ZMEM, &LINEAR, &LOG, &RAM];

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
        let own: &'static [OptionSpec] = self.options;
        own.iter().chain(COMMON_OPTIONS).find(|spec| spec.key == key)
    }

    /// All option keys, the type's own first.
    pub fn option_specs(&self) -> impl Iterator<Item = &'static OptionSpec> {
        let own: &'static [OptionSpec] = self.options;
        own.iter().chain(COMMON_OPTIONS)
    }

    /// Parses the option text of a superblock (or of `mkswapfs -o`) into typed values.
    ///
    /// # Errors
    /// An unknown key, a key given twice, or a value that the key does not take.
    pub fn parse_options(&'static self, text: &str) -> Result<TypedOptions, OptionError> {
        Ok(self.typed(&OptionSet::parse(self, text)?))
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
        Ok((self.typed(&merged), merged.text()))
    }

    fn typed(&self, set: &OptionSet) -> TypedOptions {
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
            BackendOptions::Zmem(zmem_options(set))
        } else if self.name == LOG.name {
            BackendOptions::Log(log_options(set))
        } else {
            BackendOptions::Ram
        };
        TypedOptions { common, backend }
    }
}

fn zmem_options(set: &OptionSet) -> ZmemOptions {
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
        dedup: set.switch("dedup"),
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
        discard: match set.choice("discard") {
            "on" => SegmentDiscard::On,
            "off" => SegmentDiscard::Off,
            _ => SegmentDiscard::Auto,
        },
        dedup: set.switch("dedup"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_that_the_option_takes() {
        for spec in TYPES {
            for option in spec.option_specs() {
                assert!(option.kind.parse(option.default).is_ok(), "{} {}", spec.name, option.key);
            }
            assert!(spec.parse_options("").is_ok());
            assert!(spec.name.len() <= crate::superblock::TYPE_NAME_LEN);
        }
    }

    #[test]
    fn a_mount_overrides_the_header() {
        let (options, text) =
            LINEAR.mount_options("engine=sync,checksum=off", "engine=uring,threads=3").unwrap();
        assert_eq!(text, "checksum=off,engine=uring,threads=3");
        assert_eq!(
            options.backend,
            BackendOptions::Linear(LinearOptions {
                engine: LinearEngine::Uring,
                checksum: false,
                discard: true
            })
        );
        assert_eq!(options.common.threads, Some(3));
    }
}
