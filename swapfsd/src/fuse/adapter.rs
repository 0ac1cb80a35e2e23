//! FUSE requests into requests of the volume. Thin: nothing is decided here that is not FUSE's.

use super::MAX_BACKGROUND;
use super::errno::errno_of;
use super::replies::{Owed, Replies};
use super::status_files::{StatusFile, StatusFiles};
use crate::awake::Awake;
use crate::backend::{Completion, CompletionSink};
use crate::control;
use crate::error::{Error, ErrorKind, Operation};
use crate::stats::json::Identity;
use crate::sync::{Condvar, Mutex};
use crate::sys::alloc::{IoPath, MAX_REQUEST_BYTES};
use crate::volume::Volume;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use log::{info, warn};
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use swapfs_format::PAGE_BYTES;

const SWAP_FILE: INodeNo = INodeNo(2);
const STATS_JSON: INodeNo = INodeNo(3);
const METRICS: INodeNo = INodeNo(4);
/// The files of a mount: number, name, mode.
const FILES: [(INodeNo, &str, u16); 3] = [
    (SWAP_FILE, "swapfile", 0o600),
    (STATS_JSON, "stats.json", 0o444),
    (METRICS, "metrics", 0o444),
];

/// Names and attributes never change while mounted.
const TTL: Duration = Duration::from_secs(86_400);

/// The file system that fuser drives.
pub struct Adapter {
    volume: Arc<Volume>,
    identity: Arc<Identity>,
    replies: Arc<Replies>,
    status_files: StatusFiles,
    awake: Option<Awake>,
    made: SystemTime,
    muster: OnceLock<Arc<Muster>>,
}

/// A roll-call of a session's threads: each of them is sent a FORGET, and waits in it for the
/// others. When all have come, all have started and have their buffers.
#[derive(Debug)]
pub struct Muster {
    missing: Mutex<u32>,
    changed: Condvar,
}

impl Muster {
    fn arrive(&self) {
        let mut missing = self.missing.lock();
        if *missing == 0 {
            return;
        }
        *missing -= 1;
        if *missing == 0 {
            drop(missing);
            return self.changed.notify_all();
        }
        while *missing > 0 {
            missing = self.changed.wait(missing);
        }
    }

    /// Waits until all have come.
    pub fn wait(&self) {
        let mut missing = self.missing.lock();
        while *missing > 0 {
            missing = self.changed.wait(missing);
        }
    }
}

impl Adapter {
    /// Serves `volume`; `identity` is what stats.json says of it; `awake` is told of each read
    /// and write.
    #[must_use]
    pub fn new(volume: Arc<Volume>, identity: Arc<Identity>, awake: Option<Awake>) -> Adapter {
        Adapter {
            volume,
            identity,
            replies: Arc::new(Replies::new()),
            status_files: StatusFiles::new(),
            awake,
            made: SystemTime::now(),
            muster: OnceLock::new(),
        }
    }

    /// A roll-call of `threads` threads, to be begun by a FORGET for each.
    #[must_use]
    pub fn muster(&self, threads: u32) -> Arc<Muster> {
        let muster = || Arc::new(Muster { missing: Mutex::new(threads), changed: Condvar::new() });
        Arc::clone(self.muster.get_or_init(muster))
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match FILES.iter().find(|(number, ..)| *number == inode) {
            Some(&(SWAP_FILE, _, mode)) => (FileType::RegularFile, mode, self.volume.bytes()),
            // Like files of /proc: the length is known when they are read.
            Some(&(_, _, mode)) => (FileType::RegularFile, mode, 0),
            None if inode == INodeNo::ROOT => (FileType::Directory, 0o755, 0),
            None => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            crtime: self.made,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE_BYTES as u32,
            flags: 0,
        })
    }

    /// A file that was opened before this process took over has no snapshot here: it gets one.
    fn read_status_file(
        &self,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        reply: ReplyData,
    ) {
        let file = if inode == STATS_JSON { StatusFile::Json } else { StatusFile::Metrics };
        self.status_files.restore(handle.0, file, &self.identity, &self.volume);
        self.status_files.read(handle.0, offset, size as usize, |bytes| reply.data(bytes));
    }

    fn keep_awake(&self) {
        if let Some(awake) = &self.awake {
            awake.touch();
        }
    }

    fn completion(&self, token: u64, operation: Operation, offset: u64) -> Completion {
        let sink: Arc<dyn CompletionSink> = Arc::<Replies>::clone(&self.replies);
        let lost = Error::new(ErrorKind::Io, operation, offset / PAGE_BYTES);
        Completion::new(sink, token, lost)
    }
}

fn refuse(error: &Error) -> Errno {
    warn!("{error}");
    errno_of(error)
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // For a successor, whose handshake is made up.
        if let Some(control) = control::installed() {
            let page = control.page();
            page.fuse_minor.store(config.kernel_abi().1, Ordering::Relaxed);
            page.fuse_flags.store(config.capabilities().bits(), Ordering::Relaxed);
        }
        // Without it, each worker of the loop device has one request in flight.
        if config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).is_err() {
            warn!("this kernel's FUSE has no asynchronous direct I/O: swap will be slow");
        }
        let wanted = MAX_REQUEST_BYTES as u32;
        if let Err(nearest) = config.set_max_write(wanted) {
            warn!("requests are limited to {nearest} bytes");
        }
        if config.set_max_background(MAX_BACKGROUND).is_err()
            || config.set_congestion_threshold(MAX_BACKGROUND).is_err()
        {
            warn!("the number of FUSE requests in flight could not be raised");
        }
        Ok(())
    }

    fn destroy(&mut self) {
        info!("unmounted");
    }

    fn forget(&self, _request: &Request, _inode: INodeNo, _lookups: u64) {
        if let Some(muster) = self.muster.get() {
            muster.arrive();
        }
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = FILES.iter().find(|(_, file, _)| parent == INodeNo::ROOT && name == *file);
        match found.and_then(|&(inode, ..)| self.attributes(inode)) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some(attributes) = self.attributes(inode) else { return reply.error(Errno::ENOENT) };
        let same = mode.is_none_or(|mode| mode & 0o7777 == u32::from(attributes.perm))
            && uid.is_none_or(|uid| uid == 0)
            && gid.is_none_or(|gid| gid == 0)
            && size.is_none_or(|size| size == attributes.size);
        // Times are not kept, and nobody is told so: as for files of /proc.
        if same { reply.attr(&TTL, &attributes) } else { reply.error(Errno::EPERM) }
    }

    fn open(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let status_file = match inode {
            SWAP_FILE => {
                // Without the second flag, writes hold the inode's lock one after the other.
                let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
                return reply.opened(FileHandle(0), flags);
            }
            STATS_JSON => StatusFile::Json,
            METRICS => StatusFile::Metrics,
            _ => return reply.error(Errno::EISDIR),
        };
        match self.status_files.open(status_file, &self.identity, &self.volume) {
            Some(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
            None => reply.error(Errno::ENFILE),
        }
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if inode == STATS_JSON || inode == METRICS {
            self.status_files.release(handle.0);
        }
        reply.ok();
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if inode != SWAP_FILE {
            return self.read_status_file(inode, handle, offset, size, reply);
        }
        let _io_path = IoPath::enter();
        self.keep_awake();
        // The end of the file cuts a read short; nothing else does.
        let rest = self.volume.bytes().saturating_sub(offset);
        let len = rest.min(u64::from(size)).min(MAX_REQUEST_BYTES as u64) as usize;
        if len == 0 {
            return reply.data(&[]);
        }
        let mut buffer = self.volume.buffers().take(len);
        if self.volume.prefers_start(offset, len) {
            let token = self.replies.keep(Owed::Data(reply));
            let done = self.completion(token, Operation::Read, offset);
            return self.volume.start_read(offset, buffer, done);
        }
        match self.volume.read(offset, &mut buffer) {
            Ok(()) => reply.data(&buffer),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if inode != SWAP_FILE {
            return reply.error(Errno::EPERM);
        }
        let _io_path = IoPath::enter();
        self.keep_awake();
        if data.len() <= MAX_REQUEST_BYTES && self.volume.prefers_start(offset, data.len()) {
            let mut buffer = self.volume.buffers().take(data.len());
            buffer.copy_from_slice(data);
            let token = self.replies.keep(Owed::Written(reply, data.len() as u32));
            let done = self.completion(token, Operation::Write, offset);
            return self.volume.start_write(offset, buffer, done);
        }
        match self.volume.write(offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _io_path = IoPath::enter();
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let zero = libc::FALLOC_FL_ZERO_RANGE;
        let result = match mode {
            _ if inode != SWAP_FILE => return reply.error(Errno::EPERM),
            // What does not reach into the file is no error for a hole.
            _ if mode == punch => {
                let end = offset.saturating_add(length).min(self.volume.bytes());
                self.volume.discard(offset.min(end), end - offset.min(end))
            }
            _ if mode & !libc::FALLOC_FL_KEEP_SIZE == zero => {
                self.volume.write_zeros(offset, length)
            }
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        match result {
            Ok(()) => reply.ok(),
            Err(error) if error.kind == ErrorKind::Unsupported => reply.error(errno_of(&error)),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let _io_path = IoPath::enter();
        if inode != SWAP_FILE {
            return reply.ok();
        }
        match self.volume.flush() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Sent at each close(2): nothing is held back that it could write.
        reply.ok();
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let dots = [".", ".."].map(|name| (INodeNo::ROOT, FileType::Directory, name));
        let files = FILES.map(|(inode, name, _)| (inode, FileType::RegularFile, name));
        let entries = dots.iter().chain(&files);
        for (next, &(inode, kind, name)) in (1..).zip(entries).skip(offset as usize) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        // The loop device takes its discard granularity from the block size.
        let block_bytes = PAGE_BYTES as u32;
        let files = FILES.len() as u64 + 1;
        reply.statfs(self.volume.slot_count(), 0, 0, files, 0, block_bytes, 255, block_bytes);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel has checked the modes (default_permissions) and need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // ENOSYS is remembered by the kernel, which else asks before every write.
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        // The kernel then takes the whole file for data.
        reply.error(Errno::ENOSYS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, r: ReplyEntry) {
        r.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }
}
