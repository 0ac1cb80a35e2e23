//! Every back end killed at every point that it names, and at no point in particular, with a
//! standby beside it that takes over: no page is lost.
//!
//! The processes are real and so are the kills; only FUSE is left out. See
//! [`swapfs_tests::killed`] for what is done and how it is known what must be there.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use swapfs_format::PAGE_BYTES;
use swapfs_tests::killed::SLOTS;
use swapfs_tests::mounted::{Programs, folder};
use swapfs_tests::rng::{self, Rng};
use swapfs_tests::tiers;
use swapfsd::crash::Point;
use swapfsd::held::BACKEND_REGIONS;

/// Kills at each point.
const KILLS: u64 = 3;
/// Kills at no point in particular.
const KILLS_ANYWHERE: u64 = 10;
/// Operations of each lane of a process that is not killed before.
const OPERATIONS: u64 = 700;
/// A child that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A back end and how it is used.
#[derive(Default)]
struct Scenario {
    name: &'static str,
    back_end: &'static str,
    options: &'static str,
    /// How large a log's device is, if it is not large.
    log_segments: Option<u64>,
    /// Of a tier volume: options of its members.
    members: Option<&'static str>,
    /// Its members are emptied and added again, one after the other.
    come_and_go: bool,
    started: bool,
    torn: bool,
    /// What was flushed outlives the memory.
    durable: bool,
    points: Vec<Point>,
}

/// The files that outlive the children, held open here.
struct Files {
    regions: [File; BACKEND_REGIONS],
    progress: File,
    image: PathBuf,
    members: Vec<PathBuf>,
    _folder: Arc<tempfile::TempDir>,
}

/// Memory as a file.
fn memory_file() -> File {
    // SAFETY: the name is a C string.
    let descriptor = unsafe { libc::memfd_create(c"swapfs-killed".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(descriptor >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just made, and nobody else's.
    unsafe { File::from_raw_fd(descriptor) }
}

/// Where a child can open the file.
fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

impl Files {
    fn new(scenario: &Scenario) -> Files {
        let progress = memory_file();
        progress.set_len(4096).unwrap();
        let folder = Arc::new(folder());
        let (image, members) = match scenario.members {
            None => {
                let image = folder.path().join("image");
                File::create_new(&image).unwrap();
                (image, Vec::new())
            }
            Some(options) => {
                let formatted = format_tiers(folder.path(), options);
                (formatted.image, formatted.members)
            }
        };
        let regions = std::array::from_fn(|_| memory_file());
        Files { regions, progress, image, members, _folder: folder }
    }

    /// Nothing of the memory is left, as after a power failure.
    fn without_memory(self) -> Files {
        Files { regions: std::array::from_fn(|_| memory_file()), ..self }
    }
}

/// Tiny tiers, so that everything moves all the time.
fn format_tiers(folder: &Path, options: &str) -> tiers::Formatted {
    let programs = Programs::new(env!("CARGO_BIN_EXE_programs"));
    let size = format!("{}K", SLOTS * PAGE_BYTES / 1024);
    let log = format!("segment=64K,high=30,low=20,{options}");
    let members = [("log", "6M", log.as_str()), ("linear", "8M", options)];
    tiers::format(&programs, folder, &size, tiers::TINY_TOP, &members)
}

/// A child; killed when dropped.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Serving {
    /// A child that is ready to serve.
    fn start(scenario: &Scenario, files: &Files, seed: u64, adopted: bool) -> Serving {
        let mut command = Command::new(env!("CARGO_BIN_EXE_killed"));
        command.args(["--back-end", scenario.back_end, "--options", scenario.options]);
        command.arg("--image").arg(&files.image);
        for member in &files.members {
            command.arg("--member").arg(member);
        }
        command.args(scenario.come_and_go.then_some("--come-and-go"));
        command.arg("--regions").args(files.regions.iter().map(path_of));
        command.args(["--progress", &path_of(&files.progress), "--seed", &seed.to_string()]);
        if let Some(segments) = scenario.log_segments {
            command.args(["--log-segments", &segments.to_string()]);
        }
        for (flag, set) in
            [("--adopted", adopted), ("--started", scenario.started), ("--torn", scenario.torn)]
        {
            command.args(set.then_some(flag));
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut serving = Serving(child);
        let mut line = String::new();
        BufReader::new(serving.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{}: the child did not start", scenario.name);
        serving
    }

    /// It takes over.
    fn order(&mut self, point: Option<Point>, count: u64, operations: u64) {
        let name = point.map_or("-".to_owned(), Point::name);
        writeln!(self.0.stdin.as_mut().unwrap(), "{name} {count} {operations}").unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        for _ in 0..PATIENCE.as_millis() {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the child hangs");
    }
}

/// Was it killed? Everything else but a clean end is a failure.
fn was_killed(scenario: &Scenario, what: &str, status: ExitStatus) -> bool {
    let killed = status.signal() == Some(libc::SIGKILL);
    assert!(killed || status.success(), "{}, {what}: {status}", scenario.name);
    killed
}

fn run(scenario: &Scenario) {
    let seed = rng::seed(scenario.name);
    let mut rng = Rng::new(seed);
    let files = Files::new(scenario);
    let mut serving = Serving::start(scenario, &files, seed, false);
    // The first one fills the volume.
    serving.order(None, 0, 200);
    let mut next = Serving::start(scenario, &files, seed, true);
    assert!(!was_killed(scenario, "first", serving.end()));
    for &point in &scenario.points {
        let mut killed = 0;
        for attempt in 0..KILLS {
            if point == Point::ZmemTablePage {
                // There are few of them, and the first is there before the point is armed.
                killed += u32::from(kill_first(scenario, seed, point, 1 + attempt % 3));
                continue;
            }
            // Often soon, sometimes late; and at last the first time that it is passed.
            let doublings = match point {
                // Once for each member that comes and goes.
                Point::TierWithdrawn | Point::TierHeld | Point::TierAdded => 1,
                Point::TierEvacuated => 4,
                _ if point.name().starts_with("ZmemRecompress") => 5,
                // Once for many pages.
                Point::TierLoaded | Point::TierWritten => 6,
                _ => 10,
            };
            let last_chance = attempt + 1 == KILLS && killed == 0;
            let far = if last_chance { 1 } else { 1 << rng.below(doublings) };
            let once = matches!(point, Point::ZmemActivating | Point::LogActivating);
            let count = if once { 1 } else { 1 + rng.below(far) };
            serving = next;
            serving.order(Some(point), count, OPERATIONS);
            next = Serving::start(scenario, &files, seed, true);
            killed += u32::from(was_killed(scenario, &point.name(), serving.end()));
        }
        println!("{}: {}: {killed} of {KILLS}", scenario.name, point.name());
        assert!(killed > 0, "{}: {} was never reached", scenario.name, point.name());
    }
    let mut killed = 0;
    for _ in 0..KILLS_ANYWHERE {
        serving = next;
        serving.order(None, 0, 100_000);
        next = Serving::start(scenario, &files, seed, true);
        std::thread::sleep(Duration::from_micros(rng.below(250_000)));
        serving.0.kill().unwrap();
        killed += u32::from(was_killed(scenario, "anywhere", serving.end()));
    }
    println!("{}: anywhere: {killed} of {KILLS_ANYWHERE}", scenario.name);
    next.order(None, 0, 50);
    assert!(!was_killed(scenario, "last", next.end()));
    if scenario.durable {
        let files = files.without_memory();
        let mut mounted = Serving::start(scenario, &files, seed, false);
        mounted.order(None, 0, 50);
        assert!(!was_killed(scenario, "from the device", mounted.end()));
    }
}

/// Kills the first one that serves a new volume: what is done once in the life of a volume. Was
/// it reached?
fn kill_first(scenario: &Scenario, seed: u64, point: Point, count: u64) -> bool {
    let files = Files::new(scenario);
    let mut first = Serving::start(scenario, &files, seed, false);
    first.order(Some(point), count, 100);
    let killed = was_killed(scenario, &point.name(), first.end());
    let mut second = Serving::start(scenario, &files, seed, true);
    second.order(None, 0, 100);
    assert!(!was_killed(scenario, "second", second.end()));
    killed
}

fn points_of(prefix: &str) -> Vec<Point> {
    Point::ALL.into_iter().filter(|point| point.name().starts_with(prefix)).collect()
}

/// The index grows only with more objects than these volumes have: a unit test of zmem's does it.
const NOT_REACHED: Point = Point::ZmemIndexSplit;

#[test]
fn zmem() {
    let rest =
        [Point::ZmemRecompressed, Point::ZmemRecompressPublished, Point::ZmemIndexed, NOT_REACHED];
    let points = points_of("Zmem").into_iter().filter(|point| !rest.contains(point)).collect();
    run(&Scenario {
        name: "zmem",
        back_end: "zmem",
        options: "limit=4M,reserve=1M",
        points,
        ..Scenario::default()
    });
}

#[test]
fn zmem_with_everything_on() {
    run(&Scenario {
        name: "zmem with everything on",
        back_end: "zmem",
        options: "dedup=on,recompress=zstd:5,recompress-age=1,reserve=1M,limit=4M",
        points: points_of("Zmem").into_iter().filter(|point| *point != NOT_REACHED).collect(),
        ..Scenario::default()
    });
}

#[test]
fn zmem_by_zstd() {
    run(&Scenario {
        name: "zmem by zstd",
        back_end: "zmem",
        options: "algo=zstd:1,dedup=on,reserve=1M,limit=4M",
        points: vec![Point::ZmemPublished, Point::ZmemIndexed, Point::ZmemActivating],
        ..Scenario::default()
    });
}

/// Pages are on the device soon, and the device has little room: flushers and collector are at work
/// all the time.
#[test]
fn log() {
    run(&Scenario {
        name: "log",
        back_end: "log",
        options: "buffer=4M,deadline-ms=10,dedup=on",
        log_segments: Some(42),
        durable: true,
        // And two of the memory that it shares with zmem.
        points: [points_of("Log"), vec![Point::ZmemSegmentTaken, Point::ZmemTablePage]].concat(),
        ..Scenario::default()
    });
}

/// Most of what was written is in the buffer when the process is killed.
#[test]
fn log_that_takes_its_time() {
    run(&Scenario {
        name: "log that takes its time",
        back_end: "log",
        options: "buffer=16M,deadline-ms=60000,algo=zstd:1",
        durable: true,
        points: vec![
            Point::LogBuffered,
            Point::LogWritten,
            Point::LogDiscarding,
            Point::LogActivating,
        ],
        ..Scenario::default()
    });
}

#[test]
fn linear_sync() {
    run(&Scenario {
        name: "linear sync",
        back_end: "linear",
        options: "engine=sync",
        durable: true,
        points: points_of("Linear"),
        ..Scenario::default()
    });
}

#[test]
fn linear_uring() {
    for (name, started) in [("linear uring", false), ("linear uring, started", true)] {
        run(&Scenario {
            name,
            back_end: "linear",
            options: "engine=uring",
            started,
            durable: true,
            points: points_of("Linear"),
            ..Scenario::default()
        });
    }
}

#[test]
fn ram() {
    run(&Scenario {
        name: "ram",
        back_end: "ram",
        options: "",
        torn: true,
        points: points_of("Ram"),
        ..Scenario::default()
    });
}

/// Of what happens to pages; the others are passed when members come and go.
fn tier_points() -> Vec<Point> {
    let rest = [Point::TierEvacuated, Point::TierWithdrawn, Point::TierHeld, Point::TierAdded];
    points_of("Tier").into_iter().filter(|point| !rest.contains(point)).collect()
}

/// Cold pages go down, those that are read come up, and leave copies below.
#[test]
fn tier_with_copies() {
    run(&Scenario {
        name: "tier, inclusive",
        back_end: "tier",
        members: Some("promote=always,keep=inclusive"),
        points: tier_points(),
        ..Scenario::default()
    });
}

#[test]
fn tier_without_copies() {
    run(&Scenario {
        name: "tier, exclusive",
        back_end: "tier",
        members: Some("promote=second,keep=exclusive"),
        points: tier_points()
            .into_iter()
            .filter(|point| *point != Point::TierCopyDropped)
            .chain([Point::ZmemActivating, Point::ZmemMovePublished])
            .collect(),
        ..Scenario::default()
    });
}

/// Members are emptied, let go and added meanwhile.
#[test]
fn tier_whose_members_come_and_go() {
    for (name, members) in [
        ("tier, coming and going, inclusive", "promote=always,keep=inclusive"),
        ("tier, coming and going, exclusive", "promote=second,keep=exclusive"),
    ] {
        run(&Scenario {
            name,
            back_end: "tier",
            members: Some(members),
            come_and_go: true,
            points: points_of("Tier")
                .into_iter()
                .filter(|point| *point != Point::TierCopyDropped || name.ends_with("inclusive"))
                .collect(),
            ..Scenario::default()
        });
    }
}

/// Whoever adds a point has it tested.
#[test]
fn every_point_belongs_to_a_back_end() {
    // "Daemon": those that `supervised` has daemons killed at.
    let tested = ["Zmem", "Linear", "Ram", "Log", "Tier", "Daemon"].map(points_of).concat();
    assert_eq!(tested.len(), Point::ALL.len());
}
