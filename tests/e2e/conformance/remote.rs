//! Pages on real servers: a volume of its own, and one that lies below memory.

use super::number_of;
use std::time::Instant;
use swapfs_tests::conformance::targets::{Direct, Started};
use swapfs_tests::conformance::{self, Target};
use swapfs_tests::mounted::{Programs, folder};
use swapfs_tests::remote::{format_alone, format_below};
use swapfs_tests::servers::nbd::{NBDKIT, NbdkitSetup, Plugin, QEMU_NBD, Trigger};
use swapfs_tests::servers::redis::PROGRAMS as REDIS;
use swapfs_tests::servers::{QemuNbd, RedisCluster, RedisServer, cannot_run};
use swapfs_tests::{rng, skip_if, tiers};
use swapfsd::volume::Volume;

/// Larger than the smallest memory in front, so that pages have to leave it: random ones do not
/// compress.
const SIZE: &str = "7M";
/// Twice and more of it, for a log.
const EXPORT_BYTES: u64 = 24 << 20;
const OPERATIONS: u32 = 2000;

/// How a run is to be.
#[derive(Default)]
struct Run<'a> {
    name: &'a str,
    /// Of the remote volume or member, with its url.
    options: String,
    /// Makes requests fail, so that they may be refused; not while it is formatted.
    trigger: Option<&'a Trigger>,
    /// The server is slow: so much less is done.
    slow: bool,
}

impl Run<'_> {
    /// From now on requests fail, or none does; answers whether they do.
    fn fails(&self, on: bool) -> bool {
        self.trigger.iter().for_each(|trigger| trigger.set(on));
        on && self.trigger.is_some()
    }
}

/// Pages that went to the server, and that were read from there for the kernel.
fn traffic(volume: &Volume) -> (u64, u64) {
    let mut traffic = (0, 0);
    volume.tiers(&mut |tier| {
        if tier.order > 0 {
            println!(
                "    {}, {}: {} pages, {} came down, {} read, {} read errors, {} write errors",
                tier.type_name,
                tier.state,
                tier.pages,
                tier.demoted_in_pages,
                tier.read_pages,
                tier.read_errors,
                tier.write_errors
            );
            traffic = (tier.demoted_in_pages, tier.read_pages);
        }
    });
    traffic
}

fn check(run: &Run<'_>, what: &str, volume: &Volume, seconds: f64) {
    println!("{}, {what}: {seconds:.1} s", run.name);
    let (down, read) = traffic(volume);
    let least = if run.slow { 50 } else { 500 };
    assert!(down > least && read > least, "{down} pages went down, {read} were read there");
    assert_eq!(volume.requests_in_flight(), 0);
    if run.trigger.is_none() {
        assert_eq!(number_of(volume, "damaged_objects"), 0);
    }
    // A clean end, which takes everything back.
    volume.close().unwrap();
}

/// The suite on a volume below memory, with requests that are started, and on one of its own.
fn run(run: &Run<'_>) {
    let seed = rng::seed(run.name);
    let programs = Programs::new(env!("CARGO_BIN_EXE_programs"));
    let operations = if run.slow { OPERATIONS / 4 } else { OPERATIONS };
    {
        let (folder, started) = (folder(), Instant::now());
        let formatted = format_below(&programs, folder.path(), SIZE, tiers::TINY_TOP, &run.options);
        let volume = formatted.open_volume("");
        let target = Started(Direct { volume, faults: run.fails(true) });
        conformance::run_all(&target, seed, operations);
        run.fails(false);
        check(run, "below memory", &target.0.volume, started.elapsed().as_secs_f64());
    }
    let (folder, started) = (folder(), Instant::now());
    // -f stands in format_alone: the export has the superblock of the volume before.
    // Segments are chosen there.
    let options = run.options.replace(",segment=64K", "");
    let options = format!("{options},buffer=4M,reserve=1M");
    let formatted = format_alone(&programs, folder.path(), SIZE, &options);
    let volume = formatted.open_volume("");
    let target = Direct { volume, faults: run.fails(true) };
    conformance::run_all(&target, seed, operations);
    run.fails(false);
    assert_eq!(target.bytes(), 7 << 20);
    check(run, "alone", &target.volume, started.elapsed().as_secs_f64());
}

/// An NBD server, whatever it is; it goes with this.
struct Served {
    url: String,
    trigger: Option<Trigger>,
    _server: Box<dyn std::any::Any>,
}

impl Served {
    fn nbdkit(setup: NbdkitSetup) -> Served {
        let server = setup.start();
        Served { url: server.url(), trigger: None, _server: Box::new(server) }
    }
}

/// With each layout, on a server of its own each time.
fn run_nbd(name: &str, slow: bool, start: impl Fn() -> Served) {
    for layout in ["layout=log,segment=64K", "layout=linear"] {
        let served = start();
        let (name, options) = (format!("{name}, {layout}"), format!("url={},{layout}", served.url));
        run(&Run { name: &name, options, trigger: served.trigger.as_ref(), slow });
    }
}

#[test]
fn redis() {
    skip_if!(cannot_run(REDIS));
    let server = RedisServer::start(&[]);
    let options = format!("url={},capacity=32M", server.url());
    run(&Run { name: "redis", options, ..Run::default() });
    assert_eq!(server.keys(), 0, "keys are left behind");
}

#[test]
fn redis_cluster() {
    skip_if!(cannot_run(REDIS));
    let cluster = RedisCluster::start(&[]);
    let options = format!("url={},cluster=on,replicas=1,capacity=32M", cluster.url());
    run(&Run { name: "redis cluster", options, ..Run::default() });
    assert_eq!(cluster.keys(), 0, "keys are left behind");
}

#[test]
fn nbdkit_memory() {
    skip_if!(cannot_run(NBDKIT));
    let setup = || NbdkitSetup::new(Plugin::Memory, EXPORT_BYTES);
    run_nbd("nbdkit memory", false, || Served::nbdkit(setup()));
}

#[test]
fn nbdkit_file() {
    skip_if!(cannot_run(NBDKIT));
    let setup = || NbdkitSetup::new(Plugin::File, EXPORT_BYTES).tcp();
    run_nbd("nbdkit file", false, || Served::nbdkit(setup()));
}

#[test]
fn qemu_nbd() {
    skip_if!(cannot_run(QEMU_NBD));
    run_nbd("qemu-nbd", false, || {
        let server = QemuNbd::start(EXPORT_BYTES, false);
        Served { url: server.url(), trigger: None, _server: Box::new(server) }
    });
}

#[test]
fn nbdkit_with_errors() {
    skip_if!(cannot_run(NBDKIT));
    run_nbd("nbdkit with errors", false, || {
        let trigger = Trigger::new();
        let mut setup = NbdkitSetup::new(Plugin::Memory, EXPORT_BYTES);
        setup.words = trigger.words(1);
        Served { trigger: Some(trigger), ..Served::nbdkit(setup) }
    });
}

#[test]
fn nbdkit_with_delays() {
    skip_if!(cannot_run(NBDKIT));
    let words = ["--filter=delay", "rdelay=2ms", "wdelay=5ms"];
    let setup = || NbdkitSetup::new(Plugin::Memory, EXPORT_BYTES).with(&words);
    run_nbd("nbdkit with delays", true, || Served::nbdkit(setup()));
}

#[test]
fn nbdkit_at_a_low_rate() {
    skip_if!(cannot_run(NBDKIT));
    // Bits a second, each way.
    let setup =
        || NbdkitSetup::new(Plugin::Memory, EXPORT_BYTES).with(&["--filter=rate", "rate=24M"]);
    run_nbd("nbdkit at a low rate", true, || Served::nbdkit(setup()));
}
