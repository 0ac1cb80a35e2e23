//! What a mount answers, whichever way requests come: its files, their attributes, and what may
//! be done to them. Both transports decode into these calls; reads and writes of the swap file
//! are theirs, since each has its own buffers, and go to the [`Volume`].

use super::errno::errno_of;
use super::status_files::{StatusFile, StatusFiles};
use crate::awake::Awake;
use crate::backend::{Completion, CompletionSink};
use crate::error::{Error, ErrorKind, Operation};
use crate::stats::json::Identity;
use crate::sys::alloc::MAX_REQUEST_BYTES;
use crate::volume::Volume;
use log::warn;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use swapfs_format::PAGE_BYTES;

pub(super) const ROOT: u64 = 1;
pub(super) const SWAP_FILE: u64 = 2;
const STATS_JSON: u64 = 3;
const METRICS: u64 = 4;
/// The files of a mount: number, name, mode.
const FILES: [(u64, &str, u16); 3] = [
    (SWAP_FILE, "swapfile", 0o600),
    (STATS_JSON, "stats.json", 0o444),
    (METRICS, "metrics", 0o444),
];
/// Files and directories.
pub(super) const NODE_COUNT: u64 = FILES.len() as u64 + 1;
/// Names and attributes never change while mounted.
pub(super) const TTL: Duration = Duration::from_secs(86_400);
/// The loop device takes its discard granularity from the block size of statfs.
pub(super) const BLOCK_BYTES: u32 = PAGE_BYTES as u32;

/// What stat(2) shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) is_directory: bool,
    pub(super) mode: u16,
}

/// An open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenFile {
    pub(super) handle: u64,
    /// Writes may run side by side.
    pub(super) parallel: bool,
}

/// What is asked to be changed by a setattr, but times.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Changes {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
}

/// The file system. Errors are errno numbers.
pub struct Service {
    volume: Arc<Volume>,
    identity: Arc<Identity>,
    status_files: StatusFiles,
    awake: Option<Awake>,
    made: SystemTime,
}

impl Service {
    /// Serves `volume`; `identity` is what stats.json says of it; `awake` is told of each read
    /// and write.
    #[must_use]
    pub fn new(volume: Arc<Volume>, identity: Arc<Identity>, awake: Option<Awake>) -> Service {
        let status_files = StatusFiles::new();
        Service { volume, identity, status_files, awake, made: SystemTime::now() }
    }

    pub(super) fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// When the mount was made: all times of all files.
    pub(super) fn made(&self) -> SystemTime {
        self.made
    }

    pub(super) fn attributes(&self, inode: u64) -> Result<Attributes, i32> {
        let (is_directory, mode, size) = match FILES.iter().find(|(number, ..)| *number == inode) {
            Some(&(SWAP_FILE, _, mode)) => (false, mode, self.volume.bytes()),
            // Like files of /proc: the length is known when they are read.
            Some(&(_, _, mode)) => (false, mode, 0),
            None if inode == ROOT => (true, 0o755, 0),
            None => return Err(libc::ENOENT),
        };
        Ok(Attributes { inode, size, is_directory, mode })
    }

    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attributes, i32> {
        let found = FILES.iter().find(|(_, file, _)| parent == ROOT && name == file.as_bytes());
        found.map_or(Err(libc::ENOENT), |&(inode, ..)| self.attributes(inode))
    }

    /// Nothing can be changed; who asks for what is so already gets it.
    pub(super) fn set_attributes(&self, inode: u64, wanted: Changes) -> Result<Attributes, i32> {
        let attributes = self.attributes(inode)?;
        let same = wanted.mode.is_none_or(|mode| mode & 0o7777 == u32::from(attributes.mode))
            && wanted.uid.is_none_or(|uid| uid == 0)
            && wanted.gid.is_none_or(|gid| gid == 0)
            && wanted.size.is_none_or(|size| size == attributes.size);
        // Times are not kept, and nobody is told so: as for files of /proc.
        if same { Ok(attributes) } else { Err(libc::EPERM) }
    }

    pub(super) fn open(&self, inode: u64) -> Result<OpenFile, i32> {
        if inode == SWAP_FILE {
            return Ok(OpenFile { handle: 0, parallel: true });
        }
        let file = status_file(inode).ok_or(libc::EISDIR)?;
        let handle = self.status_files.open(file, &self.identity, &self.volume);
        handle.map_or(Err(libc::ENFILE), |handle| Ok(OpenFile { handle, parallel: false }))
    }

    pub(super) fn release(&self, inode: u64, handle: u64) {
        if status_file(inode).is_some() {
            self.status_files.release(handle);
        }
    }

    /// Hands a part of a status file to `reply`. A file that was opened before this process took
    /// over has no snapshot here: it gets one.
    pub(super) fn read_status_file<T>(
        &self,
        inode: u64,
        handle: u64,
        offset: u64,
        size: usize,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> T {
        if let Some(file) = status_file(inode) {
            self.status_files.restore(handle, file, &self.identity, &self.volume);
        }
        self.status_files.read(handle, offset, size, reply)
    }

    /// Someone reads or writes.
    pub(super) fn keep_awake(&self) {
        if let Some(awake) = &self.awake {
            awake.touch();
        }
    }

    /// How much of a read of the swap file there is: its end cuts one short, nothing else does.
    pub(super) fn readable(&self, offset: u64, size: u32) -> usize {
        let rest = self.volume.bytes().saturating_sub(offset);
        rest.min(u64::from(size)).min(MAX_REQUEST_BYTES as u64) as usize
    }

    /// For a request that is started; should nobody complete it, it fails.
    pub(super) fn completion(
        sink: Arc<dyn CompletionSink>,
        token: u64,
        operation: Operation,
        offset: u64,
    ) -> Completion {
        Completion::new(sink, token, Error::new(ErrorKind::Io, operation, offset / PAGE_BYTES))
    }

    pub(super) fn fallocate(
        &self,
        inode: u64,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<(), i32> {
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let zero = libc::FALLOC_FL_ZERO_RANGE;
        let result = match mode {
            _ if inode != SWAP_FILE => return Err(libc::EPERM),
            // What does not reach into the file is no error for a hole.
            _ if mode == punch => {
                let end = offset.saturating_add(length).min(self.volume.bytes());
                self.volume.discard(offset.min(end), end - offset.min(end))
            }
            _ if mode & !libc::FALLOC_FL_KEEP_SIZE == zero => {
                self.volume.write_zeros(offset, length)
            }
            _ => return Err(libc::EOPNOTSUPP),
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) if error.kind == ErrorKind::Unsupported => Err(errno_of(&error)),
            Err(error) => Err(refuse(&error)),
        }
    }

    pub(super) fn sync(&self, inode: u64) -> Result<(), i32> {
        if inode != SWAP_FILE {
            return Ok(());
        }
        self.volume.flush().map_err(|error| refuse(&error))
    }

    /// The entries of the root directory from the `skipped`-th on: inode, is a directory, name.
    pub(super) fn entries(skipped: u64) -> impl Iterator<Item = (u64, bool, &'static str)> {
        let dots = [".", ".."].map(|name| (ROOT, true, name));
        let files = FILES.map(|(inode, name, _)| (inode, false, name));
        dots.into_iter().chain(files).skip(skipped as usize)
    }
}

fn status_file(inode: u64) -> Option<StatusFile> {
    match inode {
        STATS_JSON => Some(StatusFile::Json),
        METRICS => Some(StatusFile::Metrics),
        _ => None,
    }
}

/// Logs an error, and answers what the kernel is told.
pub(super) fn refuse(error: &Error) -> i32 {
    warn!("{error}");
    errno_of(error)
}
