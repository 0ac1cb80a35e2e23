//! Serves a volume to itself until it is killed: the child of the test `killed`.
//!
//! It builds the back end on files of its parent's, says `ready`, waits as a standby does, and
//! on a line `NAME COUNT OPERATIONS` on standard input takes over: looks at every slot, sends
//! again what was not answered, and goes on. It kills itself at the point of that name (`-`:
//! none). Exit status 0: it was not reached; 3: something is wrong, see standard error.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

use clap::Parser;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use swapfs_format::superblock::Superblock;
use swapfs_format::types;
use swapfs_tests::conformance::Target;
use swapfs_tests::conformance::targets::{Direct, Started};
use swapfs_tests::killed::{LANES, Progress, Runner, SLOTS, Unanswered};
use swapfs_tests::{formatted, tiers};
use swapfsd::backend::registry;
use swapfsd::buffer::BufferPool;
use swapfsd::crash::{self, Point};
use swapfsd::held::{BACKEND_REGIONS, Held};
use swapfsd::image::Image;
use swapfsd::volume::Volume;

/// How long it lets the threads of the background work when all operations are done: zmem's
/// recompression waits until pages are cold.
const IDLE: Duration = Duration::from_millis(2500);
const IDLE_LOG: Duration = Duration::from_millis(500);

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    back_end: String,
    #[arg(long)]
    options: String,
    /// Segments of a log's device, where they are not to have room for everything twice.
    #[arg(long)]
    log_segments: Option<u64>,
    #[arg(long)]
    image: PathBuf,
    /// Images of a tier volume's members; `image` is formatted then.
    #[arg(long)]
    member: Vec<PathBuf>,
    /// One member after the other is emptied and added again.
    #[arg(long)]
    come_and_go: bool,
    #[arg(long, num_args = BACKEND_REGIONS)]
    regions: Vec<PathBuf>,
    #[arg(long)]
    progress: PathBuf,
    #[arg(long)]
    seed: u64,
    /// A predecessor has used the regions, and may be using them.
    #[arg(long)]
    adopted: bool,
    /// Through the side of the volume that does not wait.
    #[arg(long)]
    started: bool,
    /// What was not answered may be torn.
    #[arg(long)]
    torn: bool,
}

/// What the parent says on standard input.
struct Order {
    point: Option<Point>,
    count: u64,
    operations: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (volume, superblock) = standby(&arguments);
    println!("ready");
    let Some(order) = wait_for_order(&volume) else { return ExitCode::SUCCESS };
    match serve(&arguments, volume, &superblock, &order) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("killed: {text}");
            ExitCode::from(3)
        }
    }
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// The image and its superblock: the same for all children.
fn image_of(arguments: &Arguments) -> (Superblock, Image) {
    let file = open(&arguments.image);
    if !arguments.member.is_empty() {
        let image = Image::from_open(&arguments.image, file).unwrap();
        return (image.load().unwrap(), image);
    }
    let mut superblock = match arguments.log_segments {
        Some(segments) => formatted::log_superblock(SLOTS, segments),
        None => formatted::superblock(&arguments.back_end, SLOTS),
    };
    // What is in a log belongs to one superblock.
    (superblock.uuid, superblock.created_unix_s) = (uuid::Uuid::nil(), 1);
    file.set_len(superblock.image_bytes).unwrap();
    (superblock, Image::from_open(&arguments.image, file).unwrap())
}

fn standby(arguments: &Arguments) -> (std::sync::Arc<Volume>, Superblock) {
    let spec = types::find(&arguments.back_end).unwrap();
    let (superblock, image) = image_of(arguments);
    let (typed, _) = spec.mount_options(&superblock.options, &arguments.options).unwrap();
    let resources = registry::resources(&typed);
    let buffers = BufferPool::new(resources.small_buffers, resources.large_buffers).unwrap();
    let regions = std::array::from_fn(|index| open(&arguments.regions[index]));
    let held = Held::regions(regions, arguments.adopted);
    let members = tiers::open_members(&arguments.member);
    let backend = registry::build(&image, &superblock, &typed, &buffers, &held, &members).unwrap();
    (Volume::standby(backend, buffers, superblock.slot_count), superblock)
}

/// Waits as a standby does. `None`: the parent is gone.
fn wait_for_order(volume: &Volume) -> Option<Order> {
    let (told, orders) = channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        drop(std::io::stdin().read_line(&mut line));
        drop(told.send(line));
    });
    let line = warm_until(volume, &orders)?;
    let mut words = line.split_whitespace();
    let (name, count, operations) = (words.next()?, words.next()?, words.next()?);
    let point = Point::ALL.into_iter().find(|point| point.name() == name);
    assert!(point.is_some() || name == "-", "no point {name}");
    Some(Order { point, count: count.parse().ok()?, operations: operations.parse().ok()? })
}

fn warm_until(volume: &Volume, orders: &Receiver<String>) -> Option<String> {
    loop {
        volume.warm();
        match orders.recv_timeout(Duration::from_millis(10)) {
            Ok(line) => return Some(line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

fn serve(
    arguments: &Arguments,
    volume: std::sync::Arc<Volume>,
    superblock: &Superblock,
    order: &Order,
) -> Result<(), String> {
    let arm = || {
        if let Some(point) = order.point {
            crash::arm(point, order.count);
        }
    };
    if matches!(order.point, Some(Point::ZmemActivating | Point::LogActivating)) {
        arm();
    }
    let header = superblock.swap_header();
    let header = (!arguments.adopted).then_some(&header);
    volume.activate(header).map_err(|error| format!("not activated: {error}"))?;
    let direct = Direct { volume: std::sync::Arc::clone(&volume), faults: false };
    let started;
    let target: &dyn Target = if arguments.started {
        started = Started(direct);
        &started
    } else {
        &direct
    };
    let progress = Progress(open(&arguments.progress));
    let rule = if arguments.torn { Unanswered::Torn } else { Unanswered::OldOrNew };
    let mut lanes = Vec::new();
    for number in 0..LANES {
        let lane = Runner::new(arguments.seed, number, target, &progress);
        lanes.push(lane.map_err(|error| error.to_string())?);
    }
    for lane in &lanes {
        lane.verify(rule)?;
    }
    arm();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if arguments.come_and_go {
            scope.spawn(|| {
                tiers::come_and_go(&tiers::Here(&volume), &arguments.member, &stop, false);
            });
        }
        let _stops = tiers::Stop(&stop);
        work(arguments, order, &mut lanes, rule)
    })?;
    target.flush().map_err(|failure| format!("not flushed: {failure:?}"))
}

/// All lanes do their operations.
fn work(
    arguments: &Arguments,
    order: &Order,
    lanes: &mut [Runner<'_>],
    rule: Unanswered,
) -> Result<(), String> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = lanes
            .iter_mut()
            .map(|lane| {
                scope.spawn(|| {
                    lane.repeat_unanswered()?;
                    (0..order.operations).try_for_each(|_| lane.do_next())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    if order.point.is_none() {
        return Ok(());
    }
    let idle = if arguments.back_end == "log" { IDLE_LOG } else { IDLE };
    let started = Instant::now();
    while started.elapsed() < idle {
        std::thread::sleep(Duration::from_millis(20));
    }
    // It may have been busy with what has become cold.
    lanes.iter().try_for_each(|lane| lane.verify(rule))
}
