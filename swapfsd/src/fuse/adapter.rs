//! FUSE requests that fuser has decoded into calls of the [`Service`]. Thin: nothing is decided
//! here that is not FUSE's.

use super::MAX_BACKGROUND;
use super::replies::{Owed, Replies};
use super::service::{
    Attributes, BLOCK_BYTES, Changes, NODE_COUNT, SWAP_FILE, Service, TTL, refuse,
};
use crate::control;
use crate::error::Operation;
use crate::sync::{Condvar, Mutex};
use crate::sys::alloc::{IoPath, MAX_REQUEST_BYTES};
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use log::{info, warn};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// The file system that fuser drives.
pub struct Adapter {
    service: Arc<Service>,
    replies: Arc<Replies>,
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
    pub(super) fn new(service: Arc<Service>) -> Adapter {
        Adapter { service, replies: Arc::new(Replies::new()), muster: OnceLock::new() }
    }

    /// A roll-call of `threads` threads, to be begun by a FORGET for each.
    pub(super) fn muster(&self, threads: u32) -> Arc<Muster> {
        let muster = || Arc::new(Muster { missing: Mutex::new(threads), changed: Condvar::new() });
        Arc::clone(self.muster.get_or_init(muster))
    }

    fn file_attr(&self, attributes: &Attributes) -> FileAttr {
        let made = self.service.made();
        let kind =
            if attributes.is_directory { FileType::Directory } else { FileType::RegularFile };
        FileAttr {
            ino: INodeNo(attributes.inode),
            size: attributes.size,
            blocks: attributes.size / 512,
            atime: made,
            mtime: made,
            ctime: made,
            crtime: made,
            kind,
            perm: attributes.mode,
            nlink: if attributes.is_directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }
}

fn code(errno: i32) -> Errno {
    io::Error::from_raw_os_error(errno).into()
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
        match self.service.lookup(parent.0, name.as_bytes()) {
            Ok(found) => reply.entry(&TTL, &self.file_attr(&found), Generation(0)),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.service.attributes(inode.0) {
            Ok(attributes) => reply.attr(&TTL, &self.file_attr(&attributes)),
            Err(errno) => reply.error(code(errno)),
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
        match self.service.set_attributes(inode.0, Changes { mode, uid, gid, size }) {
            Ok(attributes) => reply.attr(&TTL, &self.file_attr(&attributes)),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn open(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.service.open(inode.0) {
            Ok(file) => {
                let mut flags = FopenFlags::FOPEN_DIRECT_IO;
                if file.parallel {
                    // Without it, writes hold the inode's lock one after the other.
                    flags |= FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
                }
                reply.opened(FileHandle(file.handle), flags);
            }
            Err(errno) => reply.error(code(errno)),
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
        self.service.release(inode.0, handle.0);
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
        if inode.0 != SWAP_FILE {
            let (inode, handle, size) = (inode.0, handle.0, size as usize);
            let done = |bytes: &[u8]| reply.data(bytes);
            return self.service.read_status_file(inode, handle, offset, size, done);
        }
        let _io_path = IoPath::enter();
        self.service.keep_awake();
        let volume = self.service.volume();
        let len = self.service.readable(offset, size);
        if len == 0 {
            return reply.data(&[]);
        }
        let mut buffer = volume.buffers().take(len);
        if volume.prefers_start(offset, len) {
            let token = self.replies.keep(Owed::Data(reply));
            let sink = Arc::<Replies>::clone(&self.replies);
            let done = Service::completion(sink, token, Operation::Read, offset);
            return volume.start_read(offset, buffer, done);
        }
        match volume.read(offset, &mut buffer) {
            Ok(()) => reply.data(&buffer),
            Err(error) => reply.error(code(refuse(&error))),
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
        if inode.0 != SWAP_FILE {
            return reply.error(Errno::EPERM);
        }
        let _io_path = IoPath::enter();
        self.service.keep_awake();
        let volume = self.service.volume();
        if data.len() <= MAX_REQUEST_BYTES && volume.prefers_start(offset, data.len()) {
            let mut buffer = volume.buffers().take(data.len());
            buffer.copy_from_slice(data);
            let token = self.replies.keep(Owed::Written(reply, data.len() as u32));
            let sink = Arc::<Replies>::clone(&self.replies);
            let done = Service::completion(sink, token, Operation::Write, offset);
            return volume.start_write(offset, buffer, done);
        }
        match volume.write(offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(code(refuse(&error))),
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
        match self.service.fallocate(inode.0, offset, length, mode) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(code(errno)),
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
        match self.service.sync(inode.0) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Sent at each close(2): nothing is held back that it could write.
        reply.ok();
    }

    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // Programs that ask whether a file is a terminal.
        reply.error(Errno::ENOTTY);
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
        let entries = Service::entries(offset);
        for (next, (inode, is_directory, name)) in (offset + 1..).zip(entries) {
            let kind = if is_directory { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(inode), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let slots = self.service.volume().slot_count();
        reply.statfs(slots, 0, 0, NODE_COUNT, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
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
