//! The options of `remote`, of volumes and of members alike.

use super::RemoteUrl;
use crate::member::{MIN_MEMBER_BYTES, MemberKind};
use crate::options::{OptionError, OptionSet, OptionSpec, ValueKind};
use crate::superblock::Superblock;
use crate::swap_header::MAX_SLOT_COUNT;
use crate::types::{Algorithm, REMOTE, ZmemOptions};
use crate::{PAGE_BYTES, remote};
use std::time::Duration;

/// How pages lie on what is elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteLayout {
    /// An object for each page, under a key of its own: of Redis.
    Objects,
    /// Compressed pages packed into segments, which are written whole: on an NBD export.
    Log,
    /// A page, or what it was compressed to, per block of 4 KiB: on an NBD export.
    Linear,
}

impl RemoteLayout {
    /// The word for it in texts; of an export it is the type in the export's own superblock.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RemoteLayout::Objects => "objects",
            RemoteLayout::Log => "log",
            RemoteLayout::Linear => "linear",
        }
    }
}

/// Where pages are elsewhere, and how they get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteOptions {
    /// `url=`
    pub url: RemoteUrl,
    /// `cluster=`
    pub cluster: bool,
    /// `auth=`: an absolute path; `None`: neither credentials nor TLS files.
    pub auth: Option<String>,
    /// `connections=`; `None`: the daemon chooses.
    pub connections: Option<u32>,
    /// `deadline-ms=`
    pub deadline: Duration,
    /// `replicas=`
    pub replicas: u32,
    /// `layout=`; always [`RemoteLayout::Objects`] with Redis, and never with NBD.
    pub layout: RemoteLayout,
    /// `capacity=`, in bytes; `None`: the volume's size, or the export's.
    pub capacity_bytes: Option<u64>,
}

/// The options of a volume of type `remote`, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteVolumeOptions {
    /// Where its pages are.
    pub remote: RemoteOptions,
    /// The memory in front: `buffer=` is its limit. Never with `recompress` or `dedup`.
    pub zmem: ZmemOptions,
}

pub(crate) const URL: OptionSpec = OptionSpec {
    key: "url",
    kind: ValueKind::Url,
    default: "",
    per_mount: true,
    help: "where the pages are; a mount may name another address of the same kind, if the server \
           has moved",
};
pub(crate) const CLUSTER: OptionSpec = OptionSpec {
    key: "cluster",
    kind: ValueKind::Switch,
    default: "off",
    per_mount: true,
    help: "redis: the servers are nodes of a cluster; those that the url leaves out are found",
};
pub(crate) const AUTH: OptionSpec = OptionSpec {
    key: "auth",
    kind: ValueKind::Path,
    default: "",
    per_mount: true,
    help: "file with user name, password, and the files for TLS, which only root may read: see \
           swapfs-remote(5)",
};
pub(crate) const CONNECTIONS: OptionSpec = OptionSpec {
    key: "connections",
    kind: ValueKind::IntegerOrAuto { min: 1, max: 64 },
    default: "auto",
    per_mount: true,
    help: "connections to the server; auto: 8 for redis; for nbd 4 where the server allows several",
};
pub(crate) const DEADLINE: OptionSpec = OptionSpec {
    key: "deadline-ms",
    kind: ValueKind::Integer { min: 100, max: 600_000 },
    default: "30000",
    per_mount: true,
    help: "milliseconds after which a request that the server has not answered fails; longer than \
           the servers need for a fail-over",
};
pub(crate) const REPLICAS: OptionSpec = OptionSpec {
    key: "replicas",
    kind: ValueKind::Integer { min: 0, max: 16 },
    default: "0",
    per_mount: true,
    help: "redis: so many replicas must have acknowledged a page before it counts as stored",
};
pub(crate) const LAYOUT: OptionSpec = OptionSpec {
    key: "layout",
    kind: ValueKind::Choice(&["log", "linear"]),
    default: "log",
    per_mount: false,
    help: "nbd: how pages lie on the export: packed into segments that are written whole, or a \
           page per block of 4 KiB",
};
pub(crate) const CAPACITY: OptionSpec = OptionSpec {
    key: "capacity",
    kind: ValueKind::SizeOrAuto { min: MIN_MEMBER_BYTES, max: MAX_SLOT_COUNT * PAGE_BYTES },
    default: "auto",
    per_mount: false,
    help: "bytes that pages may take there; auto: the export's size with nbd, and with redis the \
           volume's size (of a member it must be given)",
};
/// Of a volume: it has no tier above.
pub(crate) const BUFFER: OptionSpec = OptionSpec {
    key: "buffer",
    kind: ValueKind::Size { min: 4 << 20, max: 64 << 30 },
    default: "64M",
    per_mount: true,
    help: "memory in which compressed pages wait to be sent: what is overwritten or discarded there \
           never leaves the machine",
};

/// What only an address of the other kind takes.
fn refuse_misplaced(set: &OptionSet, url: &RemoteUrl) -> Result<(), OptionError> {
    let (keys, why): (&[&'static str], _) = match url {
        RemoteUrl::Redis(_) => (
            &["layout", "segment"],
            "only with an nbd:// address: with redis, each page is an object of its own",
        ),
        RemoteUrl::Nbd(_) => (
            &["cluster", "replicas", "auth"],
            "only with a redis:// address: what an NBD server does with what it is given is set there",
        ),
    };
    match keys.iter().find(|key| set.is_given(key)) {
        Some(key) => Err(OptionError::Misplaced { key, why }),
        None => Ok(()),
    }
}

impl RemoteOptions {
    /// What the stub says whose superblock this is; `None` if it is no stub, but another image.
    ///
    /// # Errors
    /// Option text that does not parse.
    pub fn of_stub(superblock: &Superblock) -> Option<Result<RemoteOptions, OptionError>> {
        if superblock.type_name != REMOTE.name {
            return None;
        }
        let table = match superblock.is_member() {
            true => MemberKind::Remote.table(),
            false => REMOTE.table(),
        };
        let set = OptionSet::parse_by(table, &superblock.options);
        Some(set.and_then(|set| RemoteOptions::of(&set)))
    }

    /// What `set` says, whose table has the options of this module.
    ///
    /// # Errors
    /// No `url`, or options that do not go with it.
    pub(crate) fn of(set: &OptionSet) -> Result<RemoteOptions, OptionError> {
        let url =
            set.url("url").ok_or(OptionError::Missing { key: "url", allowed: remote::ALLOWED })?;
        refuse_misplaced(set, &url)?;
        let layout = match (&url, set.choice("layout")) {
            (RemoteUrl::Redis(_), _) => RemoteLayout::Objects,
            (RemoteUrl::Nbd(_), "linear") => RemoteLayout::Linear,
            (RemoteUrl::Nbd(_), _) => RemoteLayout::Log,
        };
        if layout == RemoteLayout::Linear && set.is_given("segment") {
            let why = "only with layout=log: linear has no segments";
            return Err(OptionError::Misplaced { key: "segment", why });
        }
        Ok(RemoteOptions {
            url,
            cluster: set.switch("cluster"),
            auth: set.path("auth"),
            connections: set.integer("connections").map(|count| count as u32),
            deadline: Duration::from_millis(set.integer("deadline-ms").unwrap_or(30_000)),
            replicas: set.integer("replicas").unwrap_or(0) as u32,
            layout,
            capacity_bytes: set.integer("capacity"),
        })
    }
}

impl RemoteVolumeOptions {
    /// As [`RemoteOptions::of`].
    ///
    /// # Errors
    /// As [`RemoteOptions::of`].
    pub(crate) fn of(set: &OptionSet) -> Result<RemoteVolumeOptions, OptionError> {
        Ok(RemoteVolumeOptions {
            remote: RemoteOptions::of(set)?,
            zmem: ZmemOptions {
                algorithm: set.compression("algo").unwrap_or(Algorithm::Lz4),
                limit_bytes: set.integer("buffer"),
                reserve_bytes: set.integer("reserve").unwrap_or(16 << 20),
                recompress: None,
                dedup: false,
            },
        })
    }
}

#[cfg(test)]
mod tests;
