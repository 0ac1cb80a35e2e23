//! From a superblock to the back end that it names, with its filters in front.

use super::Backend;
use super::device::DirectFile;
use super::linear::Linear;
use super::log::scan::LogArea;
use super::log::{Log, LogSettings};
use super::ram::Ram;
use super::tier::{
    LARGE_JOBS, MemberDevice, MemberSetup, SMALL_JOBS, Setup, Tier, WAITING_THREADS,
};
use super::zmem::Zmem;
use crate::buffer::BufferPool;
use crate::filter::{Delay, Fault};
use crate::held::Held;
use crate::image::{Image, ImageError, ImageKind};
use crate::members::Members;
use crate::members::elsewhere::Elsewhere;
use crate::members::images::{VolumeImages, devices_of};
use crate::trace::{Recorder, TraceError, Traced};
use log::warn;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use swapfs_format::member::{
    MAX_DEVICE_MEMBERS, MIN_MEMBER_BYTES, MemberKind, MemberOptions, Promote,
};
use swapfs_format::remote::RemoteVolumeOptions;
use swapfs_format::superblock::Superblock;
use swapfs_format::trace::DEFAULT_SEGMENT_BYTES;
use swapfs_format::types::{
    BackendOptions, LinearEngine, SegmentDiscard, TierOptions, TypedOptions,
};

/// No flash has a smaller erase block.
const LEAST_ERASE_BLOCK_BYTES: u64 = 64 << 10;

/// Why a back end could not be started.
#[derive(Debug)]
pub enum BuildError {
    /// The image can't be opened as the back end needs it.
    Image(ImageError),
    /// A system call failed; the text says what it was for.
    System(&'static str, io::Error),
    /// The trace that was asked for can't be made.
    Trace(TraceError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Image(error) => error.fmt(f),
            BuildError::System(what, error) => write!(f, "{what}: {error}"),
            BuildError::Trace(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BuildError {}

/// How many threads and buffers serve a volume well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Threads that read FUSE requests.
    pub threads: u32,
    /// Buffers of 32 KiB.
    pub small_buffers: u32,
    /// Buffers of 1 MiB.
    pub large_buffers: u32,
}

/// What `options` ask for, or what was measured to do best (tests/bench/RESULTS.md).
///
/// A synchronous engine needs a thread for each request in the device, and two buffers for each
/// thread at most; io_uring needs few threads, and buffers for what is in flight.
#[must_use]
pub fn resources(options: &TypedOptions) -> Resources {
    let can_start = matches!(
        &options.backend,
        BackendOptions::Linear(linear) if linear.engine == LinearEngine::Uring
    );
    // A thread that is delayed stands for a request in the device.
    let asynchronous = can_start && options.common.delay.is_zero();
    let in_memory = options.backend == BackendOptions::Ram;
    // A synchronous engine has as many requests in the device as threads. The others do best
    // with as many since they are real-time tasks: a thread that works is not pre-empted by one
    // that is woken, so there had better be one that is awake (measured: RESULTS.md).
    let automatic = match &options.backend {
        _ if in_memory => 2,
        // A read waits for the device on the thread that has it.
        BackendOptions::Log(_) | BackendOptions::Tier(_) | BackendOptions::Remote(_) => 16,
        _ => 8,
    };
    let threads = options.common.threads.unwrap_or(automatic);
    // A member on a server can be added to any volume of tiers.
    let may_wait = matches!(&options.backend, BackendOptions::Tier(_) | BackendOptions::Remote(_));
    if asynchronous {
        // More than threads: one that holds its slots must find a buffer though all others hold
        // one and wait for those slots.
        let large_buffers = 12.max(threads + 2);
        Resources { threads, small_buffers: 128 + threads, large_buffers }
    } else if may_wait {
        // One for each request that waits, and one for each thread that reads for one.
        let small_buffers = (SMALL_JOBS + WAITING_THREADS) as u32 + 2 * threads;
        let large_buffers = LARGE_JOBS as u32 + 2 * threads + 2;
        Resources { threads, small_buffers, large_buffers }
    } else {
        Resources { threads, small_buffers: 2 * threads + 2, large_buffers: threads + 2 }
    }
}

/// The memory in front of a server is a buffer: what is there goes on its way soon.
const REMOTE_HIGH_PERCENT: u32 = 50;
const REMOTE_LOW_PERCENT: u32 = 40;
/// How often a server that has failed is asked.
const REMOTE_PROBE: Duration = Duration::from_secs(1);

/// A tier volume that was set up.
fn tier_of(setup: Setup<'_>, held: &Held) -> Result<Arc<dyn Backend>, String> {
    let tier = Tier::new(setup, held).map_err(|error| error.to_string())?;
    if !held.is_adopted() {
        tier.check_servers()?;
    }
    Ok(tier.shared().map_err(|error| error.to_string())?)
}

/// The one member of a volume of type `remote`, which its own image stands for; nothing is said of
/// it where it was adopted.
fn own_member(
    image: &Image,
    superblock: &Superblock,
    options: &RemoteVolumeOptions,
    adopted: bool,
) -> Result<(MemberDevice, Vec<(usize, MemberSetup)>), String> {
    let (volume, stub) = (superblock.uuid, superblock.uuid);
    let elsewhere = Elsewhere { options: &options.remote, volume, stub };
    if adopted {
        return Ok((elsewhere.later()?, Vec::new()));
    }
    // As a member that says nothing else.
    let text = format!("url={}", options.remote.url);
    let member = MemberOptions::parse(MemberKind::Remote, &text).map_err(|why| why.to_string())?;
    let member = MemberOptions { promote: Promote::Never, ..member };
    // A volume that holds nothing that compresses fits, with what a server needs for each page.
    let auto_bytes = superblock.volume_bytes() / 8 * 9 + MIN_MEMBER_BYTES;
    let (device, setup) = elsewhere.look(1, image.path(), member, auto_bytes)?;
    Ok((device, vec![(0, setup)]))
}

/// Opens the back end that `superblock` names, and that lies over `members` if its type has any. It
/// is to be [activated](Backend::activate) before
/// it is used.
///
/// # Errors
/// What kept it from starting.
pub fn build(
    image: &Image,
    superblock: &Superblock,
    options: &TypedOptions,
    buffers: &BufferPool,
    held: &Held,
    members: &Members,
) -> Result<Arc<dyn Backend>, BuildError> {
    let recorder = recorder_for(image, superblock, options, held)?;
    let mut backend: Arc<dyn Backend> = match &options.backend {
        BackendOptions::Linear(linear) => {
            let file = image.open_direct().map_err(BuildError::Image)?;
            let what = match linear.engine {
                LinearEngine::Uring => {
                    "io_uring can't be set up (is it forbidden? see kernel.io_uring_disabled; \
                     'engine=sync' does without)"
                }
                LinearEngine::Sync => "memory for the checksums",
            };
            let linear = Linear::new(file, superblock, linear, buffers.clone(), held, recorder);
            Arc::new(linear.map_err(|error| BuildError::System(what, error))?)
        }
        BackendOptions::Zmem(zmem) => {
            let threads = resources(options).threads;
            let zmem = Zmem::new(superblock.slot_count, zmem, threads, held);
            Arc::new(zmem.map_err(|error| BuildError::System("memory for the pages", error))?)
        }
        BackendOptions::Log(log) => {
            let area = LogArea::of(superblock).map_err(|why| {
                BuildError::System("the log", io::Error::new(io::ErrorKind::InvalidData, why))
            })?;
            let file = image.open_direct().map_err(BuildError::Image)?;
            let device = Arc::new(DirectFile::new(file, recorder));
            let discard = match log.discard {
                SegmentDiscard::Auto => image.kind() == ImageKind::BlockDevice,
                SegmentDiscard::On => true,
                SegmentDiscard::Off => false,
            };
            let threads = resources(options).threads;
            let log = Log::new(
                device,
                area,
                superblock.slot_count,
                LogSettings { options: log, discard, threads },
                buffers.clone(),
                held,
            );
            Arc::new(log.map_err(|error| BuildError::System("the log", error))?)
        }
        BackendOptions::Tier(tier) => {
            let what = "the tiers";
            let fail = |why: String| {
                BuildError::System(what, io::Error::new(io::ErrorKind::InvalidData, why))
            };
            let (opened, setups) =
                devices_of(superblock, &members.files, held.is_adopted()).map_err(fail)?;
            let mut devices = opened.into_iter();
            let file = image.file().try_clone();
            let missing = |(place, _): &(usize, _)| members.files[*place].is_none();
            let absent = superblock.members.iter().enumerate().filter(missing);
            let absent = absent.map(|(_, member)| member.uuid).collect();
            let images = file.and_then(|file| VolumeImages::new(superblock.uuid, file, absent));
            let images = images.map_err(|error| BuildError::System(what, error))?;
            let setup = Setup {
                slot_count: superblock.slot_count,
                options: tier,
                threads: resources(options).threads,
                buffers: buffers.clone(),
                devices: std::array::from_fn(|_| devices.next().flatten()),
                members: setups,
                is_open: true,
                keeper: Arc::clone(&members.keeper),
                images: Arc::new(images),
            };
            tier_of(setup, held).map_err(fail)?
        }
        BackendOptions::Remote(remote) => {
            let fail = |why: String| {
                BuildError::System("the server", io::Error::new(io::ErrorKind::InvalidData, why))
            };
            let what = "the tiers";
            let file = image.file().try_clone();
            let images = file.and_then(|file| VolumeImages::new(superblock.uuid, file, Vec::new()));
            let images = images.map_err(|error| BuildError::System(what, error))?;
            let (device, own) =
                own_member(image, superblock, remote, held.is_adopted()).map_err(fail)?;
            let mut devices: [Option<MemberDevice>; MAX_DEVICE_MEMBERS] = Default::default();
            devices[0] = Some(device);
            let own_options = TierOptions {
                zmem: remote.zmem,
                high_percent: REMOTE_HIGH_PERCENT,
                low_percent: REMOTE_LOW_PERCENT,
                degraded: false,
                probe: REMOTE_PROBE,
            };
            let setup = Setup {
                slot_count: superblock.slot_count,
                options: &own_options,
                threads: resources(options).threads,
                buffers: buffers.clone(),
                devices,
                members: own,
                is_open: false,
                keeper: Arc::clone(&members.keeper),
                images: Arc::new(images),
            };
            tier_of(setup, held).map_err(fail)?
        }
        BackendOptions::Ram => {
            let ram = Ram::new(superblock.slot_count, held);
            Arc::new(ram.map_err(|error| BuildError::System("memory for the pages", error))?)
        }
    };
    if !options.common.delay.is_zero() {
        backend = Arc::new(Delay::new(backend, options.common.delay));
    }
    if !options.common.faults.rules.is_empty() {
        backend = Arc::new(Fault::new(backend, options.common.faults.clone()));
    }
    Ok(backend)
}

/// What `trace=` asks for.
fn recorder_for(
    image: &Image,
    superblock: &Superblock,
    options: &TypedOptions,
    held: &Held,
) -> Result<Option<Arc<Recorder>>, BuildError> {
    let Some(path) = &options.common.trace else { return Ok(None) };
    if superblock.is_ghost() {
        warn!("trace={path}: type {} has no device to trace", superblock.type_name);
        return Ok(None);
    }
    // An erase block of a page is that of a file, or of a device that does not say.
    let erase_block_bytes = u64::from(superblock.erase_block_bytes);
    let known = erase_block_bytes >= LEAST_ERASE_BLOCK_BYTES;
    let traced = Traced {
        uuid: superblock.uuid,
        data_offset_bytes: superblock.data_offset_bytes,
        segment_bytes: if known { erase_block_bytes } else { DEFAULT_SEGMENT_BYTES },
    };
    Recorder::open(Path::new(path), traced, image.file(), held.is_adopted())
        .map(|recorder| Some(Arc::new(recorder)))
        .map_err(BuildError::Trace)
}
