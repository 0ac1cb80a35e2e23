//! The declarations: one [`TypeSpec`] for each type, with its options.

use super::TypeSpec;
use crate::options::{OptionSpec, ValueKind};
use crate::remote::options as remote;

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
    has_members: false,
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

// What `zmem` and the top tier have in common.
const ZMEM_ALGO: OptionSpec = OptionSpec {
    key: "algo",
    kind: ValueKind::Compression { lz4: true },
    default: "lz4",
    per_mount: true,
    help: "how pages are compressed: lz4 is fast, zstd:LEVEL is smaller",
};
const ZMEM_LIMIT: OptionSpec = OptionSpec {
    key: "limit",
    kind: ValueKind::SizeOrAuto { min: 1 << 20, max: 4 << 40 },
    default: "auto",
    per_mount: true,
    help: "memory for compressed pages and the slot table; at the limit, swap-outs are \
           refused. auto: half of the machine's memory",
};
const ZMEM_RESERVE: OptionSpec = OptionSpec {
    key: "reserve",
    kind: ValueKind::Size { min: 1 << 20, max: 16 << 30 },
    default: "16M",
    per_mount: true,
    help: "memory that is kept free for swap-outs, beside the limit: they never wait for \
           memory of the machine",
};
const ZMEM_RECOMPRESS: OptionSpec = OptionSpec {
    key: "recompress",
    kind: ValueKind::Compression { lz4: false },
    default: "off",
    per_mount: true,
    help: "compress pages that nobody has touched for recompress-age again, by zstd",
};
const ZMEM_RECOMPRESS_AGE: OptionSpec = OptionSpec {
    key: "recompress-age",
    kind: ValueKind::Integer { min: 1, max: 1_000_000 },
    default: "300",
    per_mount: true,
    help: "seconds without a touch after which a page is cold",
};
const ZMEM_RECOMPRESS_RATE: OptionSpec = OptionSpec {
    key: "recompress-rate",
    kind: ValueKind::Size { min: 64 << 10, max: 1 << 40 },
    default: "16M",
    per_mount: true,
    help: "bytes of pages a second that are recompressed at most",
};
const ZMEM_DEDUP: OptionSpec = OptionSpec {
    key: "dedup",
    kind: ValueKind::Switch,
    default: "off",
    per_mount: true,
    help: "store identical pages once",
};

/// Compressed pages in the daemon's memory.
pub const ZMEM: TypeSpec = TypeSpec {
    name: "zmem",
    summary: "pages compressed in RAM, without a disk",
    ghost: true,
    has_members: false,
    options: &[
        ZMEM_ALGO,
        ZMEM_LIMIT,
        ZMEM_RESERVE,
        ZMEM_RECOMPRESS,
        ZMEM_RECOMPRESS_AGE,
        ZMEM_RECOMPRESS_RATE,
        ZMEM_DEDUP,
    ],
};

/// Compressed pages in sequential segments.
pub const LOG: TypeSpec = TypeSpec {
    name: "log",
    summary: "pages compressed and packed into large sequential writes, for flash",
    ghost: false,
    has_members: false,
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

/// Memory in front, and members below it.
pub const TIER: TypeSpec = TypeSpec {
    name: "tier",
    summary: "pages compressed in RAM, the coldest moved down to one or more images",
    ghost: true,
    has_members: true,
    options: &[
        ZMEM_ALGO,
        ZMEM_LIMIT,
        ZMEM_RESERVE,
        ZMEM_RECOMPRESS,
        ZMEM_RECOMPRESS_AGE,
        ZMEM_RECOMPRESS_RATE,
        OptionSpec {
            key: "high",
            kind: ValueKind::Integer { min: 1, max: 100 },
            default: "90",
            per_mount: true,
            help: "per cent of limit in use above which cold pages are moved down",
        },
        OptionSpec {
            key: "low",
            kind: ValueKind::Integer { min: 1, max: 100 },
            default: "80",
            per_mount: true,
            help: "per cent of limit in use at which that ends; below high",
        },
        OptionSpec {
            key: "degraded",
            kind: ValueKind::Switch,
            default: "off",
            per_mount: true,
            help: "mount though members are missing: the volume does without them",
        },
        OptionSpec {
            key: "probe",
            kind: ValueKind::Integer { min: 1, max: 3600 },
            default: "10",
            per_mount: true,
            help: "seconds between two looks at a member that has failed",
        },
    ],
};

/// Objects or blocks on servers elsewhere.
pub const REMOTE: TypeSpec = TypeSpec {
    name: "remote",
    summary: "pages on servers elsewhere: Redis or Valkey, or any NBD server",
    ghost: true,
    has_members: false,
    options: &[
        remote::URL,
        remote::CLUSTER,
        remote::AUTH,
        remote::CONNECTIONS,
        remote::DEADLINE,
        remote::REPLICAS,
        remote::LAYOUT,
        // Of a volume it may change from mount to mount: nothing is there between them.
        OptionSpec { per_mount: true, ..remote::CAPACITY },
        ZMEM_ALGO,
        remote::BUFFER,
        ZMEM_RESERVE,
    ],
};

/// Pages as they are in the daemon's memory.
pub const RAM: TypeSpec = TypeSpec {
    name: "ram",
    summary: "pages uncompressed in the daemon's locked memory (for tests and measurements)",
    ghost: true,
    has_members: false,
    options: &[],
};
