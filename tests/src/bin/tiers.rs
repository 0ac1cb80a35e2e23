//! Tier volumes: how fast pages go down, what that does to reads of the top, how fast a tier is
//! emptied under load, what the tiers cost a page that is in the top, and memory.
//!
//! Drives `Volume` without FUSE, so that what is compared is not the way to it. The images are files
//! in `--dir`, never on tmpfs. Each measurement has its peer in the same run: the sequential writes
//! of the same file, the same reads without demotion, plain zmem. Prints a line of JSON for each.

// A measurement may panic: that is how it fails.
#![allow(clippy::unwrap_used)]

use clap::Parser;
use mkswapfs::{FormatRequest, MemberSpec, format_image};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use swapfs_format::{PAGE_BYTES, size};
use swapfs_tests::measured::{Corpus, aligned, report_latencies};
use swapfs_tests::rng::Rng;
use swapfsd::admin::{Direction, Reply, Request};
use swapfsd::backend::registry;
use swapfsd::buffer::BufferPool;
use swapfsd::held::Held;
use swapfsd::image::{Access, Image};
use swapfsd::members::{self, Members, NoKeeper};
use swapfsd::volume::Volume;

#[derive(Parser)]
struct Arguments {
    /// Where the images lie.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Files of pages (../shared/tools/page-corpus).
    #[arg(long, default_value = "/var/tmp/corpus")]
    corpus: PathBuf,
    /// MiB of the top.
    #[arg(long, default_value_t = 1024)]
    top_mib: u64,
    /// MiB of each member.
    #[arg(long, default_value_t = 3072)]
    member_mib: u64,
    /// Only these measurements: cost, log, linear (demotion to such a member), evacuation.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

struct Opened {
    volume: Arc<Volume>,
    paths: Vec<PathBuf>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        for path in &self.paths {
            drop(fs::remove_file(path));
        }
    }
}

impl Opened {
    fn number(&self, wanted: &str) -> u64 {
        let mut found = 0;
        self.volume.backend_statistics(&mut |name, value| {
            if name == wanted {
                found = value;
            }
        });
        found
    }

    /// A number of a tier.
    fn tier(&self, order: u32, pick: fn(&swapfsd::backend::TierReport<'_>) -> u64) -> u64 {
        let mut found = 0;
        self.volume.tiers(&mut |tier| {
            if tier.order == order {
                found = pick(tier);
            }
        });
        found
    }

    fn ask(&self, request: &Request) -> Reply {
        let administration = self.volume.administration().unwrap();
        administration.handle(request, &mut |_| true).unwrap()
    }

    fn set(&self, tier: u32, options: &str) {
        self.ask(&Request::Set { tier, options: options.to_owned() });
    }
}

/// A file that was written once, so that no extent has to be converted while it is measured.
fn written(path: &Path, bytes: u64) {
    let file = fs::File::create(path).unwrap();
    let zeros = vec![0; 4 << 20];
    for offset in (0..bytes).step_by(zeros.len()) {
        let len = zeros.len().min((bytes - offset) as usize);
        file.write_all_at(&zeros[..len], offset).unwrap();
    }
    file.sync_all().unwrap();
}

/// A volume of the type, with members of these kinds.
fn open(arguments: &Arguments, type_name: &str, options: &str, kinds: &[(&str, &str)]) -> Opened {
    let base = arguments.dir.join(format!("tiers-{}-{type_name}", std::process::id()));
    let mut paths = vec![base.with_extension("img")];
    let mut request = FormatRequest::new(&paths[0]);
    request.type_name = type_name.to_owned();
    request.options = options.to_owned();
    request.force = true;
    for (index, (kind, options)) in kinds.iter().enumerate() {
        let path = base.with_extension(format!("{index}.img"));
        written(&path, (arguments.member_mib + 4) << 20);
        let text = format!("{kind}:{}{options}", path.display());
        request.members.push(MemberSpec::parse(&text).unwrap());
        paths.push(path);
    }
    request.volume_bytes = Some((arguments.top_mib + arguments.member_mib * 3) << 22);
    format_image(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let image = Image::open_exclusive(&paths[0], Access::ReadWrite).unwrap();
    let superblock = image.load().unwrap();
    let typed = superblock.type_spec().unwrap().parse_options(&superblock.options).unwrap();
    let resources = registry::resources(&typed);
    let buffers = BufferPool::new(resources.small_buffers, resources.large_buffers).unwrap();
    let (found, missing) = members::find(&superblock, &paths[0]);
    assert!(missing.is_empty(), "{missing:?}");
    let members = Members::of_open(found, Arc::new(NoKeeper)).unwrap();
    let held = Held::private();
    let backend = registry::build(&image, &superblock, &typed, &buffers, &held, &members).unwrap();
    let volume = Volume::new(backend, buffers, &superblock.swap_header()).unwrap();
    Opened { volume, paths }
}

/// Writes pages from slot `first` on until `bytes` are stored; answers how many.
fn fill(opened: &Opened, corpus: &Corpus, first: u64, bytes: u64) -> u64 {
    let (mut random, mut page, mut pages) = (Rng::new(first), aligned(16), 0);
    let before = opened.number("encoded_bytes");
    while opened.number("encoded_bytes") - before < bytes {
        for _ in 0..16 {
            for one in page.as_mut().chunks_exact_mut(PAGE_BYTES as usize) {
                corpus.page(&mut random, one);
            }
            opened.volume.write((first + pages) * PAGE_BYTES, page.as_ref()).unwrap();
            pages += 16;
        }
    }
    pages
}

/// Sequential direct writes of 1 MiB to a file of that size, by one thread and by two: bytes a
/// second of the faster.
fn sequential(path: &Path, bytes: u64) -> f64 {
    let rate = |threads: u64| {
        let file = fs::File::options().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let next = AtomicU64::new(4 << 20);
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let buffer = aligned(256);
                    loop {
                        let offset = next.fetch_add(1 << 20, Ordering::Relaxed);
                        if offset + (1 << 20) > bytes {
                            break;
                        }
                        file.write_all_at(buffer.as_ref(), offset).unwrap();
                    }
                });
            }
        });
        bytes as f64 / started.elapsed().as_secs_f64()
    };
    rate(1).max(rate(2))
}

/// Reads any of the slots, one after the other, until told to stop; nanoseconds each.
fn read_until(opened: &Opened, slots: std::ops::Range<u64>, stop: &AtomicBool) -> Vec<u64> {
    let (mut random, mut page) = (Rng::new(slots.start), aligned(1));
    let mut latencies = Vec::with_capacity(1 << 22);
    while !stop.load(Ordering::Relaxed) && latencies.len() < 1 << 22 {
        let slot = slots.start + random.below(slots.end - slots.start);
        let started = Instant::now();
        opened.volume.read(slot * PAGE_BYTES, page.as_mut()).unwrap();
        latencies.push(started.elapsed().as_nanos() as u64);
        // As a program that does something with what it has read.
        std::thread::sleep(Duration::from_micros(50));
    }
    latencies
}

fn demotion(arguments: &Arguments, corpus: &Corpus, kind: &str) {
    let options = format!("limit={}M,high=98,low=97", arguments.top_mib);
    let opened = open(arguments, "tier", &options, &[(kind, ",promote=never")]);
    // The hot ones come first, so the hand meets them like any other.
    let hot = 1..20_001;
    let bytes = (arguments.top_mib << 20) / 100 * 90;
    let pages = fill(&opened, corpus, 1, bytes);
    let read_for = |duration: Duration| {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_until(&opened, hot.clone(), &stop));
            std::thread::sleep(duration);
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap()
        })
    };
    let idle_before = read_for(Duration::from_secs(3));
    let stop = AtomicBool::new(false);
    let before = opened.number("compr_data_size_bytes");
    let target = (arguments.top_mib << 20) / 100 * 12;
    let started = Instant::now();
    let (took, during) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_until(&opened, hot.clone(), &stop));
        opened.set(0, "high=12,low=10");
        while opened.number("compr_data_size_bytes") > target {
            std::thread::sleep(Duration::from_millis(1));
            assert!(started.elapsed() < Duration::from_secs(120), "is the member too small?");
        }
        let took = started.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        (took, reader.join().unwrap())
    });
    let moved = before - opened.number("compr_data_size_bytes");
    let written = opened.tier(1, |tier| tier.written_bytes);
    let wait = Duration::from_secs(2);
    std::thread::sleep(wait);
    let idle_after = read_for(Duration::from_secs(3));
    let decompressions = opened.number("demotion_decompressions");
    let vain = opened.number("moves_in_vain");
    let path = opened.paths[1].clone();
    // The same file, when nobody else uses it.
    let floor = sequential(&path, arguments.member_mib << 20);
    let all_idle = idle_before.iter().chain(&idle_after).copied().collect();
    println!(
        "{}",
        serde_json::json!({
            "measurement": "demotion",
            "to": kind,
            "pages": pages,
            "moved_mib": moved >> 20,
            "seconds": took,
            "written_mb_per_s": written as f64 / took / 1e6,
            "objects_mb_per_s": moved as f64 / took / 1e6,
            "sequential_mb_per_s": floor / 1e6,
            "of_sequential": written as f64 / took / floor,
            "decompressions": decompressions,
            "moves_in_vain": vain,
            "top_reads_idle": report_latencies(all_idle),
            "top_reads_during": report_latencies(during),
        })
    );
}

/// What a page in the top costs, beside plain zmem: nanoseconds, in turns.
fn cost(arguments: &Arguments, corpus: &Corpus) {
    let limit = format!("limit={}M", arguments.top_mib);
    let plain = open(arguments, "zmem", &limit, &[]);
    let tiers = open(arguments, "tier", &limit, &[("log", ""), ("linear", "")]);
    let volumes = [("zmem", &plain), ("tier", &tiers)];
    let pages = volumes.map(|(_, opened)| fill(opened, corpus, 1, 200 << 20))[0];
    const ROUNDS: usize = 21;
    const OPERATIONS: u64 = 60_000;
    for (what, reads) in [("read", true), ("write", false)] {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            for turn in 0..2 {
                let which = (round + turn) % 2;
                let opened = volumes[which].1;
                let (mut random, mut page) = (Rng::new(round as u64), aligned(1));
                let mut pages_to_write: Vec<_> = (0..64).map(|_| aligned(1)).collect();
                for one in &mut pages_to_write {
                    corpus.page(&mut random, one.as_mut());
                }
                let started = Instant::now();
                for operation in 0..OPERATIONS {
                    let slot = 1 + random.below(pages);
                    let offset = slot * PAGE_BYTES;
                    if reads {
                        opened.volume.read(offset, page.as_mut()).unwrap();
                    } else {
                        let page = &pages_to_write[operation as usize % 64];
                        opened.volume.write(offset, page.as_ref()).unwrap();
                    }
                }
                times[which].push(started.elapsed().as_nanos() as f64 / OPERATIONS as f64);
            }
        }
        let median = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            (times[ROUNDS / 2], times[ROUNDS / 10])
        });
        println!(
            "{}",
            serde_json::json!({
                "measurement": "cost of the tiers for a page in the top",
                "operation": what,
                "zmem_ns": median[0].0,
                "tier_ns": median[1].0,
                "ratio_of_medians": median[1].0 / median[0].0,
                "ratio_of_fast_rounds": median[1].1 / median[0].1,
            })
        );
    }
    let table = tiers.number("mem_table_bytes");
    println!(
        "{}",
        serde_json::json!({
            "measurement": "memory",
            "used_slots": pages,
            "table_bytes_per_used_slot": table as f64 / pages as f64,
            "member_bytes": arguments.member_mib << 20,
            "memory_of_log_member_bytes": (arguments.member_mib << 20) / (2 << 20) * 16,
            "memory_of_linear_member_bytes":
                (arguments.member_mib << 20) / (1 << 20) * 16 + (arguments.member_mib << 20) / 32768,
        })
    );
}

/// A tier is emptied while pages are read and overwritten.
fn evacuation(arguments: &Arguments, corpus: &Corpus) {
    let options = format!("limit={}M,high=30,low=20", arguments.top_mib);
    let opened = open(arguments, "tier", &options, &[("log", ""), ("linear", "")]);
    opened.set(1, "high=99,low=98");
    let bytes = (1 << 30) + (arguments.top_mib << 20) / 100 * 25;
    let pages = fill(&opened, corpus, 1, bytes);
    while opened.number("compr_data_size_bytes") > (arguments.top_mib << 20) / 100 * 30 {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_secs(1));
    let (live, on_it) = (opened.tier(1, |tier| tier.live_bytes), opened.tier(1, |tier| tier.pages));
    let stop = AtomicBool::new(false);
    let (reads, writes) = (AtomicU64::new(0), AtomicU64::new(0));
    let (took, latencies) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let latencies = read_until(&opened, 1..pages, &stop);
            reads.store(latencies.len() as u64, Ordering::Relaxed);
            latencies
        });
        scope.spawn(|| {
            let (mut random, mut page) = (Rng::new(7), aligned(1));
            while !stop.load(Ordering::Relaxed) {
                corpus.page(&mut random, page.as_mut());
                let slot = 1 + random.below(pages - 1);
                opened.volume.write(slot * PAGE_BYTES, page.as_ref()).unwrap();
                writes.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let started = Instant::now();
        opened.ask(&Request::Remove { tier: 1, direction: Direction::Down, rate_bytes: None });
        let took = started.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        (took, reader.join().unwrap())
    });
    println!(
        "{}",
        serde_json::json!({
            "measurement": "evacuation under load",
            "bytes": live,
            "human": size::human(live),
            "pages": on_it,
            "seconds": took,
            "objects_mb_per_s": live as f64 / took / 1e6,
            "pages_per_s": on_it as f64 / took,
            "written_mb_per_s": opened.tier(2, |tier| tier.written_bytes) as f64 / took / 1e6,
            "reads_per_s": reads.load(Ordering::Relaxed) as f64 / took,
            "writes_per_s": writes.load(Ordering::Relaxed) as f64 / took,
            "reads": report_latencies(latencies),
            "decompressions": opened.number("demotion_decompressions"),
        })
    );
}

fn main() {
    let arguments = Arguments::parse();
    let corpus = Corpus::open(&arguments.corpus);
    let wanted =
        |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    if wanted("cost") {
        cost(&arguments, &corpus);
    }
    if wanted("log") {
        demotion(&arguments, &corpus, "log");
    }
    if wanted("linear") {
        demotion(&arguments, &corpus, "linear");
    }
    if wanted("evacuation") {
        evacuation(&arguments, &corpus);
    }
}
