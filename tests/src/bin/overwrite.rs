//! Random overwrites of a full volume, `log` beside `linear`: write amplification, device bytes,
//! throughput, latency of reads beside it, memory, and time to mount.
//!
//! Drives `Volume` without FUSE, so that the back ends are compared and not the way to them. The
//! images are files in `--dir`, never on tmpfs. Prints one line of JSON for each measurement.

// A measurement may panic: that is how it fails.
#![allow(clippy::unwrap_used)]

use clap::Parser;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use swapfs_format::geometry::Geometry;
use swapfs_format::superblock::Superblock;
use swapfs_format::{PAGE_BYTES, PAGE_LEN, types};
use swapfs_tests::measured::{Corpus, aligned, report_latencies};
use swapfs_tests::rng::Rng;
use swapfsd::backend::registry;
use swapfsd::buffer::BufferPool;
use swapfsd::held::Held;
use swapfsd::image::{Access, Image};
use swapfsd::volume::Volume;

#[derive(Parser)]
struct Arguments {
    /// Where the images lie.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Files of pages (../shared/tools/page-corpus).
    #[arg(long, default_value = "/var/tmp/corpus")]
    corpus: PathBuf,
    /// MiB of the log's data section.
    #[arg(long, default_value_t = 1024)]
    data_mib: u64,
    /// How full, in per cent of the data section.
    #[arg(long, default_value_t = 80)]
    fill: u64,
    /// Overwrites, in multiples of the data section's size.
    #[arg(long, default_value_t = 4)]
    turns: u64,
    /// Threads that write.
    #[arg(long, default_value_t = 4)]
    writers: u64,
    /// Options of `log`.
    #[arg(long, default_value = "")]
    options: String,
    /// Only the time to mount, of a volume of so many GiB.
    #[arg(long)]
    mount_gib: Option<u64>,
}

struct Opened {
    volume: Arc<Volume>,
    slots: u64,
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
}

const SEGMENT_BYTES: u64 = 2 << 20;

fn superblock(type_name: &str, data_bytes: u64, slots: u64) -> Superblock {
    let is_log = type_name == types::LOG.name;
    let geometry = if is_log {
        let image_bytes = (4 << 20) + data_bytes;
        Geometry::fitted_segments(image_bytes, Some(slots * PAGE_BYTES), SEGMENT_BYTES)
    } else {
        Geometry::in_place(slots * PAGE_BYTES, PAGE_BYTES)
    };
    let mut superblock = Superblock::new(type_name, &geometry.unwrap(), uuid::Uuid::new_v4());
    if is_log {
        superblock.erase_block_bytes = SEGMENT_BYTES as u32;
    }
    superblock
}

fn open(path: &Path, superblock: &Superblock, options: &str, new: bool) -> Opened {
    let spec = types::find(&superblock.type_name).unwrap();
    let typed = spec.parse_options(options).unwrap();
    if new {
        let file = fs::File::create(path).unwrap();
        swapfsd::sys::file::allocate(&file, superblock.image_bytes).unwrap();
        // Written, so that no extent has to be converted while it is measured.
        let zeros = vec![0; 4 << 20];
        let mut offset = 0;
        while offset < superblock.image_bytes && superblock.data_bytes < 8 << 30 {
            let len = zeros.len().min((superblock.image_bytes - offset) as usize);
            std::os::unix::fs::FileExt::write_all_at(&file, &zeros[..len], offset).unwrap();
            offset += len as u64;
        }
        file.sync_all().unwrap();
    }
    let image = Image::open_exclusive(path, Access::ReadWrite).unwrap();
    let resources = registry::resources(&typed);
    let buffers = BufferPool::new(resources.small_buffers, resources.large_buffers).unwrap();
    let members = swapfsd::members::Members::none();
    let backend =
        registry::build(&image, superblock, &typed, &buffers, &Held::private(), &members).unwrap();
    let volume = Volume::new(backend, buffers, &superblock.swap_header()).unwrap();
    Opened { volume, slots: superblock.slot_count }
}

/// Which slot is written next.
enum Load {
    Uniform,
    Zipf(Zipf),
}

/// Zipf's law with exponent 0.99, its ranks scattered over the slots (Gray et al., "Quickly
/// generating billion-record synthetic databases", 1994).
struct Zipf {
    theta: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new(count: u64) -> Zipf {
        let theta = 0.99;
        let zeta = |count: u64| (1..=count).map(|rank| (rank as f64).powf(-theta)).sum::<f64>();
        let (zeta_all, zeta_two) = (zeta(count), zeta(2));
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - theta)) / (1.0 - zeta_two / zeta_all);
        Zipf { theta, zeta: zeta_all, eta }
    }

    fn rank(&self, random: &mut Rng, count: u64) -> u64 {
        let u = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let uz = u * self.zeta;
        if uz < 1.0 {
            return 0;
        }
        if uz < 1.0 + 0.5f64.powf(self.theta) {
            return 1;
        }
        let spread = (self.eta * u - self.eta + 1.0).powf(1.0 / (1.0 - self.theta));
        ((count as f64 * spread) as u64).min(count - 1)
    }
}

impl Load {
    fn slot(&self, random: &mut Rng, count: u64) -> u64 {
        match self {
            Load::Uniform => random.below(count),
            Load::Zipf(zipf) => {
                let rank = zipf.rank(random, count);
                // A permutation of sorts: neighbours in rank are not neighbours in place.
                Rng::new(rank).next_u64() % count
            }
        }
    }
}

/// Overwrites `writes` pages of the first `used` slots; answers seconds, and read latencies.
fn overwrite(
    opened: &Opened,
    corpus: &Corpus,
    load: &Load,
    used: u64,
    writes: u64,
    writers: u64,
) -> (f64, Vec<u64>) {
    let (left, stop) = (AtomicU64::new(writes), AtomicBool::new(false));
    let started = Instant::now();
    let mut latencies = Vec::new();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut random, mut page) = (Rng::new(4711), aligned(1));
            let mut latencies = Vec::with_capacity(1 << 20);
            while !stop.load(Ordering::Relaxed) {
                let slot = 1 + random.below(used);
                let started = Instant::now();
                opened.volume.read(slot * PAGE_BYTES, page.as_mut()).unwrap();
                latencies.push(started.elapsed().as_nanos() as u64);
                std::thread::sleep(Duration::from_micros(300));
            }
            latencies
        });
        let workers: Vec<_> = (0..writers)
            .map(|worker| {
                let (left, corpus) = (&left, &corpus);
                scope.spawn(move || {
                    let (mut random, mut page) = (Rng::new(worker << 32 | writes), aligned(1));
                    while left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                        .is_ok()
                    {
                        corpus.page(&mut random, page.as_mut());
                        let slot = 1 + load.slot(&mut random, used);
                        opened.volume.write(slot * PAGE_BYTES, page.as_ref()).unwrap();
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        latencies = reader.join().unwrap();
    });
    (started.elapsed().as_secs_f64(), latencies)
}

fn main() {
    let arguments = Arguments::parse();
    let corpus = Corpus::open(&arguments.corpus);
    let path = arguments.dir.join(format!("overwrite-{}.img", std::process::id()));
    match arguments.mount_gib {
        Some(gib) => mount_times(&arguments, &corpus, &path, gib),
        None => overwrites(&arguments, &corpus, &path),
    }
    fs::remove_file(&path).unwrap();
}

fn overwrites(arguments: &Arguments, corpus: &Corpus, path: &Path) {
    let data_bytes = arguments.data_mib << 20;
    for name in ["uniform", "zipf"] {
        // As many slots as there can be, so that the fill decides how many are used.
        let log = superblock("log", data_bytes, data_bytes / PAGE_BYTES * 8);
        let opened = open(path, &log, &arguments.options, true);
        let mut random = Rng::new(1);
        let (mut used, mut page) = (0, aligned(1));
        while opened.number("compr_data_size_bytes") < data_bytes / 100 * arguments.fill {
            for _ in 0..64 {
                used += 1;
                corpus.page(&mut random, page.as_mut());
                opened.volume.write(used * PAGE_BYTES, page.as_ref()).unwrap();
            }
        }
        assert!(used < opened.slots);
        let load = match name {
            "uniform" => Load::Uniform,
            _ => Load::Zipf(Zipf::new(used)),
        };
        let average = opened.number("compr_data_size_bytes") / used;
        let writes = data_bytes * arguments.turns / average;
        // To a steady state first.
        overwrite(&opened, corpus, &load, used, writes / 2, arguments.writers);
        let before: Vec<u64> = NUMBERS.iter().map(|name| opened.number(name)).collect();
        let (seconds, latencies) =
            overwrite(&opened, corpus, &load, used, writes, arguments.writers);
        let delta: Vec<u64> = NUMBERS
            .iter()
            .zip(&before)
            .map(|(name, before)| opened.number(name) - before)
            .collect();
        let memory = opened.number("mem_table_bytes") + 32 * (data_bytes / SEGMENT_BYTES);
        let (accepted, written) = (delta[0], delta[1]);
        println!(
            "{}",
            serde_json::json!({
                "type": "log", "load": name, "slots_used": used, "pages_written": writes,
                "seconds": seconds, "pages_per_s": writes as f64 / seconds,
                "accepted_bytes": accepted, "device_written_bytes": written,
                "write_amplification": written as f64 / accepted as f64,
                "absorbed_share": delta[2] as f64 / accepted as f64,
                "device_bytes_per_page_byte": written as f64 / (writes * PAGE_BYTES) as f64,
                "moved_share": delta[3] as f64 / accepted as f64,
                "saved_pages": delta[4], "not_saved_pages": opened.number("gc_not_saved_pages"),
                "flushes": delta[5], "parts": delta[6],
                "live_share": opened.number("compr_data_size_bytes") as f64 / data_bytes as f64,
                "memory_bytes_per_used_slot": memory as f64 / used as f64,
                "reads": report_latencies(latencies),
            })
        );
        drop(opened);
        // The same pages to the same slots, in place: as many as the log has.
        for engine in ["sync", "uring"] {
            let linear = superblock("linear", 0, used + 16);
            let options = format!("engine={engine}");
            let opened = open(path, &linear, &options, true);
            let writes = writes / 4;
            let (seconds, latencies) =
                overwrite(&opened, corpus, &load, used, writes, arguments.writers);
            println!(
                "{}",
                serde_json::json!({
                    "type": format!("linear {engine}"), "load": name, "pages_written": writes,
                    "seconds": seconds, "pages_per_s": writes as f64 / seconds,
                    "device_written_bytes": writes * PAGE_BYTES,
                    "reads": report_latencies(latencies),
                })
            );
        }
    }
}

/// What is looked at before and after.
const NUMBERS: [&str; 7] = [
    "accepted_bytes",
    "device_written_bytes",
    "absorbed_bytes",
    "gc_moved_bytes",
    "gc_saved_pages",
    "device_flushes",
    "parts_written",
];

fn mount_times(arguments: &Arguments, corpus: &Corpus, path: &Path, gib: u64) {
    let slots = (gib << 30) / PAGE_BYTES;
    let data_bytes = arguments.data_mib << 20;
    let log = superblock("log", data_bytes, slots);
    let opened = open(path, &log, &arguments.options, true);
    let started = Instant::now();
    let next = AtomicU64::new(0);
    const BATCH: u64 = 64;
    std::thread::scope(|scope| {
        for worker in 0..arguments.writers {
            let (next, opened) = (&next, &opened);
            scope.spawn(move || {
                let mut random = Rng::new(worker);
                let mut pages = aligned(BATCH as usize);
                loop {
                    let first = next.fetch_add(BATCH, Ordering::Relaxed);
                    if first >= slots {
                        return;
                    }
                    for page in pages.as_mut().chunks_exact_mut(PAGE_LEN) {
                        corpus.page(&mut random, page);
                    }
                    opened.volume.write(first * PAGE_BYTES, pages.as_ref()).unwrap();
                }
            });
        }
    });
    let fill_seconds = started.elapsed().as_secs_f64();
    let live_bytes = opened.number("compr_data_size_bytes");
    opened.volume.flush().unwrap();
    drop(opened);
    let timed = || {
        // Not from the page cache: the log is read by direct I/O anyway.
        let started = Instant::now();
        let opened = open(path, &log, &arguments.options, false);
        (started.elapsed().as_secs_f64(), opened)
    };
    let (scan_seconds, opened) = timed();
    let found = opened.number("orig_data_size_bytes");
    let started = Instant::now();
    opened.volume.close().unwrap();
    let close_seconds = started.elapsed().as_secs_f64();
    drop(opened);
    let (clean_seconds, opened) = timed();
    assert_eq!(opened.number("orig_data_size_bytes"), found);
    println!(
        "{}",
        serde_json::json!({
            "volume_gib": gib, "slots": slots, "live_bytes": live_bytes,
            "fill_seconds": fill_seconds, "mount_by_scan_seconds": scan_seconds,
            "clean_stop_seconds": close_seconds, "mount_after_clean_stop_seconds": clean_seconds,
            "found_bytes": found,
        })
    );
}
