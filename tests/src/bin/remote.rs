//! Pages on servers: how fast they come back, beside the servers' own clients in the same run, and
//! what a page costs there.
//!
//! Everything is on this machine, so what is measured is what the programs do, not a network. Each
//! round measures everything once, in turns; what is printed are medians of the rounds. Real pages
//! (`--corpus`) are written until the server has nearly all of them, and read at random, so that each
//! read is the server's.
//!
//! * back end: `Volume`, without FUSE, as the daemon drives it;
//! * FUSE + loop: the daemon, and fio's direct reads of 4 KiB on a loop device on its swap file;
//! * floors: `redis-benchmark`, which gets values of the same size; fio's NBD engine, which reads 4 KiB.
//!
//! With `--sizing` instead: memory of the server per page, and bytes on the network per swap-out and
//! swap-in.

// A measurement may panic: that is how it fails.
#![allow(clippy::unwrap_used)]

use clap::Parser;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};
use swapfs_tests::measured::{Corpus, aligned};
use swapfs_tests::mounted::{LoopDevice, Mounted, Programs, folder};
use swapfs_tests::remote::format_below;
use swapfs_tests::rng::Rng;
use swapfs_tests::servers::damage::Protocol;
use swapfs_tests::servers::nbd::{NBDKIT, NbdkitSetup, Plugin};
use swapfs_tests::servers::redis::{Asker, PROGRAMS};
use swapfs_tests::servers::{Cutter, Nbdkit, RedisServer, cannot_run};
use swapfs_tests::skip_if;
use swapfsd::backend::{Completion, CompletionSink};
use swapfsd::buffer::PageBuffer;
use swapfsd::error::{Error, ErrorKind, Operation, Result as VolumeResult};
use swapfsd::volume::Volume;

/// Pages that leave at once; next to nothing stays.
const TOP: &str = "limit=64M,reserve=4M,high=2,low=1";
/// Requests in flight.
const DEPTHS: [usize; 2] = [1, 32];
/// Pages that are written by one request.
const PAGES_AT_ONCE: u64 = 16;
/// Pages that may be in memory still when it begins: one in so many.
const LEFT_IN_MEMORY: u64 = 40;

#[derive(Parser)]
struct Arguments {
    /// Files of pages (../shared/tools/page-corpus).
    #[arg(long, default_value = "/var/tmp/corpus")]
    corpus: PathBuf,
    /// How many pages are on the server.
    #[arg(long, default_value_t = 100_000)]
    pages: u64,
    /// Seconds per figure and round.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these: redis, log, linear.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// What a page costs on the server and on the network, instead.
    #[arg(long)]
    sizing: bool,
}

/// Mean latency at depth 1 in microseconds, and pages a second at depth 32, of each round.
#[derive(Default)]
struct Figures {
    latencies_us: Vec<f64>,
    rates: Vec<f64>,
}

impl Figures {
    /// What `measure` finds: pages a second at a depth.
    fn measure(&mut self, mut measure: impl FnMut(usize) -> f64) {
        self.latencies_us.push(1e6 / measure(DEPTHS[0]));
        self.rates.push(measure(DEPTHS[1]));
    }

    fn medians(&self) -> (f64, f64) {
        let median = |values: &[f64]| {
            let mut sorted = values.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted[sorted.len() / 2]
        };
        (median(&self.latencies_us), median(&self.rates))
    }
}

/// A server, with the options that name it.
struct Server {
    name: &'static str,
    options: String,
    redis: Option<RedisServer>,
    nbd: Option<Nbdkit>,
}

impl Server {
    /// For so many bytes of pages.
    fn start(name: &'static str, bytes: u64) -> Server {
        if name == "redis" {
            let server = RedisServer::start(&[]);
            let options = format!("url={},capacity={bytes}", server.url());
            return Server { name, options, redis: Some(server), nbd: None };
        }
        let server = NbdkitSetup::new(Plugin::Memory, 2 * bytes).tcp().start();
        let options = format!("url={},layout={name}", server.url());
        Server { name, options, redis: None, nbd: Some(server) }
    }

    fn port(&self) -> u16 {
        let nbd = self.nbd.as_ref().and_then(Nbdkit::port);
        nbd.or(self.redis.as_ref().map(|server| server.port)).unwrap()
    }

    fn client(&self) -> &'static str {
        if self.redis.is_some() { "redis-benchmark GET" } else { "fio ioengine=nbd" }
    }
}

fn volume_bytes(arguments: &Arguments) -> u64 {
    (arguments.pages + PAGES_AT_ONCE + 1) * PAGE_BYTES
}

/// Slots that are used: all but the swap header's.
fn slot(random: &mut Rng, pages: u64) -> u64 {
    1 + random.below(pages)
}

/// Writes all pages by `write`.
fn fill(pages: u64, corpus: &Corpus, mut write: impl FnMut(u64, &[u8])) {
    let (mut random, mut buffer) = (Rng::new(1), aligned(PAGES_AT_ONCE as usize));
    for first in (0..pages).step_by(PAGES_AT_ONCE as usize) {
        for page in buffer.as_mut().chunks_exact_mut(PAGE_LEN) {
            corpus.page(&mut random, page);
        }
        write((1 + first) * PAGE_BYTES, buffer.as_ref());
    }
}

fn wait_until_there(pages: u64, mut there: impl FnMut() -> u64) {
    let started = Instant::now();
    while there() < pages - pages / LEFT_IN_MEMORY {
        assert!(started.elapsed() < Duration::from_secs(300), "only {} pages went there", there());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Pages and bytes on the server, and objects' bytes that came down.
fn below(volume: &Volume) -> (u64, u64) {
    let mut found = (0, 0);
    volume.tiers(&mut |tier| {
        if tier.order > 0 {
            found = (tier.pages, tier.demoted_in_bytes / tier.demoted_in_pages.max(1));
        }
    });
    found
}

/// A volume in this process.
struct Driven {
    volume: Arc<Volume>,
    pages: u64,
    object_bytes: u64,
    _folder: tempfile::TempDir,
}

struct Done(SyncSender<(u64, VolumeResult<PageBuffer>)>);

impl CompletionSink for Done {
    fn complete(&self, token: u64, result: VolumeResult<PageBuffer>) {
        drop(self.0.send((token, result)));
    }
}

impl Driven {
    fn open(arguments: &Arguments, programs: &Programs, options: &str) -> Driven {
        let folder = folder();
        let size = volume_bytes(arguments).to_string();
        let options = format!("{options},promote=never");
        let formatted = format_below(programs, folder.path(), &size, TOP, &options);
        let volume = formatted.open_volume("");
        Driven { volume, pages: arguments.pages, object_bytes: 0, _folder: folder }
    }

    fn fill(&mut self, corpus: &Corpus) {
        fill(self.pages, corpus, |offset, bytes| self.volume.write(offset, bytes).unwrap());
        wait_until_there(self.pages, || below(&self.volume).0);
        self.object_bytes = below(&self.volume).1;
    }

    /// Pages a second with so many reads in flight.
    fn read(&self, depth: usize, seconds: f64, seed: u64) -> f64 {
        let (mut random, started) = (Rng::new(seed), Instant::now());
        let mut reads = 0;
        if depth == 1 {
            let mut page = aligned(1);
            while started.elapsed().as_secs_f64() < seconds {
                let offset = slot(&mut random, self.pages) * PAGE_BYTES;
                self.volume.read(offset, page.as_mut()).unwrap();
                reads += 1;
            }
            return reads as f64 / started.elapsed().as_secs_f64();
        }
        let (told, outcomes) = sync_channel(depth);
        let sink: Arc<dyn CompletionSink> = Arc::new(Done(told));
        let mut start = |token: u64, buffer: PageBuffer| {
            let lost = Error::new(ErrorKind::Io, Operation::Read, u64::MAX);
            let offset = slot(&mut random, self.pages) * PAGE_BYTES;
            let done = Completion::new(Arc::clone(&sink), token, lost);
            self.volume.start_read(offset, buffer, done);
        };
        for token in 0..depth as u64 {
            start(token, self.volume.buffers().take(PAGE_LEN));
        }
        let mut in_flight = depth;
        let mut took = 0.0;
        while in_flight > 0 {
            let (token, outcome) = outcomes.recv().unwrap();
            let buffer = outcome.unwrap();
            if started.elapsed().as_secs_f64() < seconds {
                reads += 1;
                took = started.elapsed().as_secs_f64();
                start(token, buffer);
            } else {
                in_flight -= 1;
            }
        }
        reads as f64 / took
    }
}

/// A volume behind FUSE, with a loop device on it.
struct Behind {
    device: LoopDevice,
    _mounted: Mounted,
    pages: u64,
    _folder: tempfile::TempDir,
}

impl Behind {
    /// With a remote member, or all in memory where there are no options for one.
    fn open(
        arguments: &Arguments,
        programs: &Programs,
        options: Option<&str>,
        corpus: &Corpus,
    ) -> Behind {
        let folder = folder();
        let size = volume_bytes(arguments).to_string();
        let mounted = match options {
            Some(options) => {
                let options = format!("{options},promote=never");
                let formatted = format_below(programs, folder.path(), &size, TOP, &options);
                Mounted::existing(programs, &formatted.image, "")
            }
            None => {
                let limit = format!("limit={size}");
                Mounted::new(programs, folder.path(), &["-t", "zmem", "-s", &size], &limit)
            }
        };
        let file = File::options().write(true).open(mounted.swap_file()).unwrap();
        fill(arguments.pages, corpus, |offset, bytes| file.write_all_at(bytes, offset).unwrap());
        if options.is_some() {
            wait_until_there(arguments.pages, || {
                let stats = mounted.stats();
                let tiers = stats["tiers"].as_array().unwrap();
                tiers
                    .iter()
                    .filter(|tier| tier["order"] != 0)
                    .map(|tier| tier["pages"].as_u64().unwrap())
                    .sum()
            });
        }
        let device = LoopDevice::attach(&mounted.swap_file());
        Behind { device, _mounted: mounted, pages: arguments.pages, _folder: folder }
    }

    fn read(&self, depth: usize, seconds: f64, seed: u64) -> f64 {
        let device = format!("--filename={}", self.device.0.display());
        let words = ["--ioengine=libaio", "--direct=1", &device];
        fio(&words, PAGE_BYTES, self.pages * PAGE_BYTES, depth, seconds, seed)
    }
}

/// Random reads by fio; how many a second.
fn fio(words: &[&str], first: u64, bytes: u64, depth: usize, seconds: f64, seed: u64) -> f64 {
    let output = Command::new("fio")
        .args(["--name=remote", "--rw=randread", "--bs=4k", "--thread", "--time_based=1"])
        .args(["--norandommap=1", "--allow_mounted_write=0", "--output-format=json"])
        .args([format!("--offset={first}"), format!("--size={bytes}")])
        .args([format!("--iodepth={depth}"), format!("--runtime={seconds}")])
        .args([format!("--randseed={seed}")])
        .args(words)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let json = &text[text.find('{').unwrap_or_else(|| panic!("fio: {output:?}"))..];
    let report: serde_json::Value = serde_json::from_str(json).unwrap();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "fio: {output:?}");
    // Its rate is that of the time in which it read.
    job["read"]["iops"].as_f64().unwrap()
}

/// The server's own client.
enum Floor {
    /// With values of that size under as many keys, on a server of its own.
    Redis(RedisServer, u64),
    /// On the export that the pages are on.
    Nbd(u16, u64),
}

impl Floor {
    fn of(server: &Server, pages: u64, object_bytes: u64) -> Floor {
        if let Some(port) = server.nbd.as_ref().and_then(Nbdkit::port) {
            return Floor::Nbd(port, pages * object_bytes / 2);
        }
        let redis = RedisServer::start(&[]);
        let mut asker = Asker::connect(redis.port).unwrap();
        let mut value = vec![0; object_bytes as usize];
        let mut random = Rng::new(3);
        for number in 0..pages {
            random.fill(&mut value);
            let key = format!("key:{number:012}");
            asker.ask(&[b"SET", key.as_bytes(), &value]).unwrap();
        }
        Floor::Redis(redis, pages)
    }

    /// About so many a second, to know how many requests take how long.
    fn rate(&self, depth: usize) -> f64 {
        match self {
            Floor::Redis(server, keys) => redis_benchmark(server.port, *keys, depth, 5000),
            Floor::Nbd(..) => 0.0,
        }
    }

    fn read(&self, depth: usize, seconds: f64, seed: u64, rate: &mut f64) -> f64 {
        match self {
            Floor::Redis(server, keys) => {
                // It counts requests, not seconds: as many as the last time took.
                let requests = (*rate * seconds).max(2000.0) as u64;
                *rate = redis_benchmark(server.port, *keys, depth, requests);
                *rate
            }
            Floor::Nbd(port, bytes) => {
                let uri = format!("--uri=nbd://127.0.0.1:{port}/");
                fio(&["--ioengine=nbd", &uri], 2 << 20, *bytes, depth, seconds, seed)
            }
        }
    }
}

fn redis_benchmark(port: u16, keys: u64, clients: usize, requests: u64) -> f64 {
    let (port, keys) = (port.to_string(), keys.to_string());
    let output = Command::new("redis-benchmark")
        .args(["-p", &port, "-c", &clients.to_string(), "-n", &requests.to_string()])
        .args(["-r", &keys, "--csv", "GET", "key:__rand_int__"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("\"GET")).expect("redis-benchmark's line");
    let fields: Vec<&str> = line.split("\",\"").collect();
    fields[1].trim_matches('"').parse().unwrap()
}

fn row(name: &str, figures: &Figures, floor: Option<&Figures>) {
    let (latency, rate) = figures.medians();
    let (latency_ratio, rate_ratio) = floor.map_or(("".to_owned(), "".to_owned()), |floor| {
        let (floor_latency, floor_rate) = floor.medians();
        (format!("{:.2}", latency / floor_latency), format!("{:.2}", rate / floor_rate))
    });
    println!("| {name} | {latency:.1} | {latency_ratio} | {rate:.0} | {rate_ratio} |");
}

fn measure(arguments: &Arguments, programs: &Programs, corpus: &Corpus, name: &'static str) {
    // One server for each, so that neither has the other's keys.
    let bytes = volume_bytes(arguments) * 2;
    let servers = [Server::start(name, bytes), Server::start(name, bytes)];
    let mut driven = Driven::open(arguments, programs, &servers[0].options);
    driven.fill(corpus);
    let floor = Floor::of(&servers[0], arguments.pages, driven.object_bytes);
    let behind = Behind::open(arguments, programs, Some(&servers[1].options), corpus);
    let memory = Behind::open(arguments, programs, None, corpus);
    let mut figures: [Figures; 4] = Default::default();
    let mut rates = DEPTHS.map(|depth| floor.rate(depth));
    for round in 0..arguments.rounds as u64 {
        let seconds = arguments.seconds;
        // In another order each time.
        for turn in 0..figures.len() {
            let which = (round as usize + turn) % figures.len();
            let read: &mut dyn FnMut(usize) -> f64 = match which {
                0 => &mut |depth| {
                    floor.read(depth, seconds, round, &mut rates[usize::from(depth > 1)])
                },
                1 => &mut |depth| driven.read(depth, seconds, round),
                2 => &mut |depth| behind.read(depth, seconds, round),
                _ => &mut |depth| memory.read(depth, seconds, round),
            };
            figures[which].measure(read);
        }
    }
    let [floor, driven_figures, behind_figures, memory_figures] = &figures;
    let name = format!("{}, objects of {} B", servers[0].name, driven.object_bytes);
    row(&format!("{name}: floor, {}", servers[0].client()), floor, None);
    row(&format!("{name}: back end"), driven_figures, Some(floor));
    row(&format!("{name}: FUSE + loop"), behind_figures, Some(floor));
    row("pages in memory (zmem): FUSE + loop", memory_figures, None);
}

/// What a page costs, with a cutter that counts in between.
fn sizing(arguments: &Arguments, programs: &Programs, corpus: &Corpus, name: &'static str) {
    let mut server = Server::start(name, volume_bytes(arguments) * 2);
    let protocol = if name == "redis" { Protocol::Redis } else { Protocol::Nbd };
    let cutter = Cutter::new(server.port(), protocol, 1);
    server.options = server.options.replace(&server.port().to_string(), &cutter.port.to_string());
    let mut driven = Driven::open(arguments, programs, &server.options);
    let used = |name: &str| server.redis.as_ref().map_or(0, |redis| redis.info(name));
    let memory = ["used_memory", "used_memory_rss"];
    let before = memory.map(used);
    let bytes_before = cutter.bytes();
    driven.fill(corpus);
    std::thread::sleep(Duration::from_secs(2));
    let there = below(&driven.volume).0 as f64;
    let each = |after: u64, before: u64, count: f64| (after as f64 - before as f64) / count;
    let after = memory.map(used);
    let filled = cutter.bytes();
    let mut written = 0;
    driven.volume.tiers(&mut |tier| written = tier.written_bytes);
    let (mut random, mut page, reads) = (Rng::new(5), aligned(1), 20_000);
    for _ in 0..reads {
        let offset = slot(&mut random, driven.pages) * PAGE_BYTES;
        driven.volume.read(offset, page.as_mut()).unwrap();
    }
    let read = cutter.bytes();
    println!(
        "| {name} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
        driven.object_bytes,
        each(after[0], before[0], there),
        each(after[1], before[1], there),
        each(filled.0, bytes_before.0, there),
        each(filled.1, bytes_before.1, there),
        each(read.0, filled.0, f64::from(reads)),
        each(read.1, filled.1, f64::from(reads)),
    );
}

/// The other programs are beside this one.
fn programs_beside() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().unwrap_or_else(|| Path::new(".")).join("programs")
}

fn main() {
    let arguments = Arguments::parse();
    skip_if!(cannot_run(PROGRAMS).or_else(|| cannot_run(NBDKIT)));
    skip_if!(cannot_run(&["fio", "redis-benchmark"]));
    let programs = Programs::new(&programs_beside().display().to_string());
    let corpus = Corpus::open(&arguments.corpus);
    let wanted =
        |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    let names = ["redis", "log", "linear"].into_iter().filter(|name| wanted(name));
    if arguments.sizing {
        println!(
            "| store | object B | server memory B/page | RSS B/page | out: sent B | out: received B | in: sent B | in: received B |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        names.for_each(|name| sizing(&arguments, &programs, &corpus, name));
    } else {
        println!(
            "| {} pages | depth 1, us | x floor | depth 32, pages/s | x floor |",
            arguments.pages
        );
        println!("|---|---|---|---|---|");
        names.for_each(|name| measure(&arguments, &programs, &corpus, name));
    }
}
