//! `floor`: the floor of every latency figure in `tests/bench`.
//!
//! A FUSE daemon that does nothing but what the transport asks of it: one file, `swapfile`, in
//! populated and locked memory; a read hands the memory to the kernel, a write is one memcpy. No
//! checks, no statistics, no back end. What swapfsd costs over this program is swapfs's own cost;
//! what this program costs is the kernel's (loop, FUSE, wake-ups) and fuser's.
//!
//! The options try to lower the floor itself; `tests/bench/floor-explore` compares them.

mod latency;
mod rings;

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use clap::Parser;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session,
    WriteFlags,
};

use latency::Latency;

/// What the loop device needs of the block size, and the unit of the discard granularity.
const BLOCK_BYTES: u32 = 4096;
/// The largest write FUSE is asked to send: `fs.fuse.max_pages_limit` allows 1 MiB by default.
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Above the loop device's queue depth of 128, so that reads never wait behind writes.
const MAX_BACKGROUND: u16 = 256;
/// The attributes never change: let the kernel keep them.
const TTL: Duration = Duration::from_secs(3600);
const SWAPFILE: INodeNo = INodeNo(2);
const SWAPFILE_NAME: &str = "swapfile";

/// Serves one file in RAM through FUSE and does nothing else: the floor of the latency figures.
#[derive(Parser, Debug)]
#[command(name = "floor")]
struct Args {
    /// Size of the file (K, M, G: powers of 1024)
    #[arg(long, default_value = "512M", value_parser = swapfs_format::size::parse)]
    size: u64,
    /// Threads that serve requests
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Give each thread its own /dev/fuse descriptor (FUSE_DEV_IOC_CLONE)
    #[arg(long)]
    clone_fd: bool,
    /// CPUs that the serving threads may run on
    #[arg(long, value_delimiter = ',', value_name = "CPU")]
    pin: Vec<usize>,
    /// Scheduling class of the serving threads: "other", "batch", "fifo:PRIORITY" or "rr:PRIORITY"
    #[arg(long, default_value = "other", value_parser = parse_policy)]
    sched: Policy,
    /// Nice value of the serving threads
    #[arg(long, allow_negative_numbers = true)]
    nice: Option<i32>,
    /// Hold /dev/cpu_dma_latency at this value: 0 keeps every idle CPU of the machine polling
    #[arg(long, value_name = "US")]
    cpu_dma_latency_us: Option<i32>,
    /// Hold it only while requests come, and for so long after the last one
    #[arg(long, value_name = "MS", requires = "cpu_dma_latency_us")]
    latency_linger_ms: Option<u64>,
    /// Ask for huge pages for the data (and, with GLIBC_TUNABLES, for the request buffers)
    #[arg(long)]
    huge: bool,
    /// FUSE over io_uring instead of fuser: a thread for each CPU
    #[arg(long)]
    rings: bool,
    /// Leave the data to be faulted in on first use
    #[arg(long)]
    no_populate: bool,
    /// Skip mlockall
    #[arg(long)]
    no_lock: bool,
    /// An empty directory
    mountpoint: PathBuf,
}

/// A scheduling policy and its priority.
#[derive(Clone, Copy, Debug)]
struct Policy {
    class: libc::c_int,
    priority: libc::c_int,
}

fn parse_policy(text: &str) -> Result<Policy, String> {
    let wrong = || format!("'{text}' is not one of other, batch, fifo:PRIORITY, rr:PRIORITY");
    let (class, priority) = match text.split_once(':') {
        None if text == "other" => return Ok(Policy { class: libc::SCHED_OTHER, priority: 0 }),
        None if text == "batch" => return Ok(Policy { class: libc::SCHED_BATCH, priority: 0 }),
        Some(("fifo", priority)) => (libc::SCHED_FIFO, priority),
        Some(("rr", priority)) => (libc::SCHED_RR, priority),
        _ => return Err(wrong()),
    };
    match priority.parse() {
        Ok(priority @ 1..=99) => Ok(Policy { class, priority }),
        _ => Err(wrong()),
    }
}

fn last_error(what: &str) -> String {
    format!("{what}: {}", io::Error::last_os_error())
}

/// The file's bytes: one anonymous mapping that lives as long as the process.
struct Ram {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory, owned by no thread; concurrent access to overlapping
// ranges mixes bytes, as on a disk, and no Rust code ever looks at them.
unsafe impl Send for Ram {}
// SAFETY: as for Send.
unsafe impl Sync for Ram {}

impl Ram {
    fn map(len: usize, huge: bool, populate: bool) -> Result<Self, String> {
        // SAFETY: a fresh anonymous mapping touches no existing memory.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(last_error("mmap of the data"));
        }
        if huge {
            // SAFETY: the range is the mapping made above.
            if unsafe { libc::madvise(base, len, libc::MADV_HUGEPAGE) } != 0 {
                return Err(last_error("madvise(MADV_HUGEPAGE)"));
            }
        }
        if populate {
            // SAFETY: the range is the mapping made above.
            if unsafe { libc::madvise(base, len, libc::MADV_POPULATE_WRITE) } != 0 {
                return Err(last_error("madvise(MADV_POPULATE_WRITE)"));
            }
        }
        let base = NonNull::new(base.cast()).ok_or("mmap gave the null page")?;
        Ok(Self { base, len })
    }

    /// Where `offset..offset + len` lies, if it is inside the file.
    fn at(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset` is within the mapping, tested above.
        Some(unsafe { self.base.add(offset) })
    }
}

/// The file system: a root directory and one file.
struct Floor {
    ram: Ram,
    latency: Option<Latency>,
}

impl Floor {
    fn touch(&self) {
        if let Some(latency) = &self.latency {
            latency.touch();
        }
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, nlink, size) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o700, 2, 0),
            SWAPFILE => (FileType::RegularFile, 0o600, 1, self.ram.len as u64),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        })
    }
}

impl Filesystem for Floor {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it each loop worker has one request in flight: no floor to compare with.
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|missing| {
            io::Error::new(io::ErrorKind::Unsupported, format!("the kernel lacks {missing:?}"))
        })?;
        let refused = |nearest| io::Error::other(format!("fuser allows {nearest} at most"));
        config.set_max_write(MAX_WRITE_BYTES).map_err(refused)?;
        config.set_max_background(MAX_BACKGROUND).map_err(|near| refused(u32::from(near)))?;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(SWAPFILE) {
            Some(attr) if parent == INodeNo::ROOT && name == SWAPFILE_NAME => {
                reply.entry(&TTL, &attr, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Without the second flag every write takes the inode lock exclusively.
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
        );
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.touch();
        let len = size as usize;
        match self.ram.at(offset, len) {
            // SAFETY: the range is inside the mapping. The bytes go to writev(2) and nowhere else.
            Some(data) => reply.data(unsafe { std::slice::from_raw_parts(data.as_ptr(), len) }),
            None => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.touch();
        let Some(target) = self.ram.at(offset, data.len()) else {
            return reply.error(Errno::EIO);
        };
        // SAFETY: the target is inside the mapping, the source is fuser's request buffer: two
        // mappings, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), target.as_ptr(), data.len()) };
        // The length came from the kernel's own 32-bit field.
        reply.written(data.len() as u32);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (SWAPFILE, FileType::RegularFile, SWAPFILE_NAME),
        ];
        for (next, (ino, kind, name)) in (1u64..).zip(entries).skip(offset as usize) {
            if reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // The loop device takes its discard granularity from the block size.
        let blocks = self.ram.len as u64 / u64::from(BLOCK_BYTES);
        reply.statfs(blocks, 0, 0, 2, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        // Loop turns discard off for good: nothing is measured with it.
        reply.error(Errno::EOPNOTSUPP);
    }

    // getxattr stays fuser's ENOSYS: the kernel then never asks again.
}

/// Sets CPUs, class and nice value of this thread. fuser's threads are its children and inherit.
fn schedule(args: &Args) -> Result<(), String> {
    if !args.pin.is_empty() {
        // SAFETY: cpu_set_t is a plain bit set, all zeroes is the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for &cpu in &args.pin {
            if cpu >= libc::CPU_SETSIZE as usize {
                return Err(format!("--pin: no CPU {cpu}"));
            }
            // SAFETY: `cpu` is below CPU_SETSIZE, tested above.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
        // SAFETY: the set is valid for the call, 0 is the calling thread.
        if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
            return Err(last_error("sched_setaffinity"));
        }
    }
    let parameters = libc::sched_param { sched_priority: args.sched.priority };
    // SAFETY: the parameters are valid for the call, 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, args.sched.class, &raw const parameters) } != 0 {
        return Err(last_error("sched_setscheduler"));
    }
    if let Some(nice) = args.nice {
        // SAFETY: no pointers; 0 is the calling thread.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } != 0 {
            return Err(last_error("setpriority"));
        }
    }
    Ok(())
}

/// Set once mlockall failed, so that the ready line says so.
static UNLOCKED: AtomicBool = AtomicBool::new(false);

fn lock_memory() {
    // SAFETY: no pointers; on-fault locking is not wanted here, the floor must never fault.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
        eprintln!("floor: {}: page faults may show in the figures", last_error("mlockall"));
        UNLOCKED.store(true, Ordering::Relaxed);
    }
}

fn serve(args: &Args) -> Result<(), String> {
    let len = usize::try_from(args.size).map_err(|_| "--size: too large".to_owned())?;
    if len == 0 || !args.size.is_multiple_of(u64::from(BLOCK_BYTES)) {
        return Err(format!("--size: {len} is not a positive multiple of {BLOCK_BYTES}"));
    }
    let ram = Ram::map(len, args.huge, !args.no_populate)?;
    if !args.no_lock && !args.no_populate {
        lock_memory();
    }
    // Before the serving threads take their class: its thread must not.
    let linger = args.latency_linger_ms.map(Duration::from_millis);
    let demand = |us| Latency::demand(us, linger);
    let latency = args.cpu_dma_latency_us.map(demand).transpose()?;
    schedule(args)?;

    if args.rings {
        return rings::serve(Box::leak(Box::new(ram)), &args.mountpoint);
    }
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("floor".to_owned()),
        MountOption::Subtype("floor".to_owned()),
        MountOption::NoAtime,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
    ];
    config.n_threads = Some(args.threads);
    config.clone_fd = args.clone_fd;
    let session = Session::new(Floor { ram, latency }, &args.mountpoint, &config)
        .map_err(|error| format!("mount on {}: {error}", args.mountpoint.display()))?;
    println!("ready locked={}", !UNLOCKED.load(Ordering::Relaxed));
    session.run().map_err(|error| format!("session: {error}"))
}

fn main() -> ExitCode {
    let args = Args::parse();
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}
