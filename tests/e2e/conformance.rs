//! Every back end, every engine and every filter against the reference model, through `Volume`.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

#[path = "conformance/remote.rs"]
mod remote;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use swapfs_format::PAGE_BYTES;
use swapfs_format::fault::FaultPlan;
use swapfs_tests::conformance::targets::{Direct, Started};
use swapfs_tests::conformance::{self, Target};
use swapfs_tests::mounted::{Programs, folder};
use swapfs_tests::tiers::{self, Here, Stop};
use swapfs_tests::{formatted, rng};
use swapfsd::backend::registry;
use swapfsd::buffer::BufferPool;
use swapfsd::held::Held;
use swapfsd::image::{Access, Image};
use swapfsd::volume::Volume;

const SLOTS: u64 = 640;
const OPERATIONS: u32 = 3000;

/// A formatted image, its volume, and the file that goes when the test ends.
fn volume(type_name: &str, options: &str) -> (Direct, tempfile::NamedTempFile) {
    let spec = swapfs_format::types::find(type_name).unwrap();
    let typed = spec.parse_options(options).unwrap();
    let superblock = formatted::superblock(type_name, SLOTS);
    // Not in /tmp, which may be a tmpfs.
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    file.as_file().set_len(superblock.image_bytes).unwrap();
    let image = Image::open_exclusive(file.path(), Access::ReadWrite).unwrap();
    let resources = registry::resources(&typed);
    let buffers = BufferPool::new(resources.small_buffers, resources.large_buffers).unwrap();
    let members = swapfsd::members::Members::none();
    let backend =
        registry::build(&image, &superblock, &typed, &buffers, &Held::private(), &members).unwrap();
    let volume = Volume::standby(backend, buffers, superblock.slot_count);
    // With faults on, writing the header may fail; the suite writes to slot 0 too.
    if let Err(error) = volume.activate(Some(&superblock.swap_header())) {
        assert_ne!(typed.common.faults, FaultPlan::default(), "{error}");
    }
    (Direct { volume, faults: !typed.common.faults.rules.is_empty() }, file)
}

fn run(name: &str, type_name: &str, options: &str) {
    let seed = rng::seed(name);
    let (direct, _file) = volume(type_name, options);
    conformance::run_all(&direct, seed, OPERATIONS);
    assert_eq!(direct.volume.requests_in_flight(), 0);
}

/// The same through the side that does not wait.
fn run_started(name: &str, options: &str) {
    let seed = rng::seed(name);
    let (direct, _file) = volume("linear", options);
    let started = Started(direct);
    conformance::run_all(&started, seed, OPERATIONS);
    let mut in_ring = 0;
    started.0.volume.backend_statistics(&mut |name, value| {
        if name == "uring_requests" {
            in_ring = value;
        }
    });
    assert!(in_ring > u64::from(OPERATIONS), "only {in_ring} requests went through the ring");
    assert_eq!(started.0.volume.requests_in_flight(), 0);
    assert_eq!(started.bytes(), SLOTS * PAGE_BYTES);
}

#[test]
fn ram() {
    run("ram", "ram", "");
}

#[test]
fn zmem() {
    run("zmem", "zmem", "limit=64M");
}

#[test]
fn zmem_with_everything_on() {
    // Small enough that segments are compacted all the time.
    let options = "algo=zstd:1,dedup=on,recompress=zstd:5,recompress-age=1,reserve=1M,limit=8M";
    run("zmem with everything on", "zmem", options);
}

#[test]
fn fault_filter_in_front_of_zmem() {
    run("zmem with faults", "zmem", "limit=64M,fault=all:EIO:1/150+write:ENOSPC:1/150");
}

#[test]
fn log() {
    run("log", "log", "buffer=4M");
}

#[test]
fn log_with_zstd_and_no_patience() {
    // Next to nothing dies in the buffer, and segments are collected all the time.
    run("log, written at once", "log", "buffer=4M,deadline-ms=10,algo=zstd:1,discard=on,dedup=on");
}

#[test]
fn fault_filter_in_front_of_log() {
    run("log with faults", "log", "buffer=4M,deadline-ms=10,fault=all:EIO:1/150");
}

/// A tier volume with tiny tiers, so that everything moves all the time, and a log of that size.
fn tier_volume(
    folder: &std::path::Path,
    log: (&str, &str),
    members: &str,
) -> (Direct, tiers::Formatted) {
    let programs = Programs::new(env!("CARGO_BIN_EXE_programs"));
    let linear = format!("discard=on,{members}");
    let (log_size, marks) = log;
    let log = format!("segment=64K,{marks},{members}");
    let formatted = tiers::format(
        &programs,
        folder,
        "2560K",
        tiers::TINY_TOP,
        &[("log", log_size, &log), ("linear", "8M", &linear)],
    );
    assert_eq!(formatted.superblock().slot_count, SLOTS);
    let volume = formatted.open_volume("");
    (Direct { volume, faults: false }, formatted)
}

fn number_of(volume: &Volume, wanted: &str) -> u64 {
    let mut found = 0;
    volume.backend_statistics(&mut |name, value| {
        if name == wanted {
            found = value;
        }
    });
    found
}

/// How pages have moved since the volume was opened; by tier, hottest first.
#[derive(Debug, Default)]
struct Movement {
    came_down_pages: [u64; 3],
    went_up_pages: [u64; 3],
    collected_bytes: u64,
}

impl Movement {
    fn of(volume: &Volume) -> Movement {
        let mut movement = Movement::default();
        volume.tiers(&mut |tier| {
            println!(
                "tier {}: {} pages; {} came down, {} went down, {} up, {} were read here, {} B collected",
                tier.order,
                tier.pages,
                tier.demoted_in_pages,
                tier.demoted_out_pages,
                tier.promoted_out_pages,
                tier.read_pages,
                tier.collected_bytes
            );
            movement.collected_bytes += tier.collected_bytes;
            movement.came_down_pages[tier.order as usize] = tier.demoted_in_pages;
            movement.went_up_pages[tier.order as usize] = tier.promoted_out_pages;
        });
        movement
    }

    /// Each way that there is was gone.
    fn is_complete(&self) -> bool {
        let (down, up) = (&self.came_down_pages, &self.went_up_pages);
        self.collected_bytes > 0 && down[1] > 1000 && down[2] > 1000 && up[1] > 0 && up[2] > 0
    }
}

/// The rounds that are run at least, and at most: which segments are sparse enough to be collected
/// is up to when threads run, so that few rounds need not have seen it.
const ROUNDS: std::ops::Range<u64> = 3..24;

fn run_tier(name: &str, members: &str) {
    let seed = rng::seed(name);
    let folder = folder();
    // So little room that it is collected.
    let log = ("960K", "high=95,low=90");
    let (direct, _formatted) = tier_volume(folder.path(), log, members);
    let volume = &direct.volume;
    for round in 0..ROUNDS.end {
        conformance::run_all(&direct, seed + round, OPERATIONS);
        if round + 1 >= ROUNDS.start && Movement::of(volume).is_complete() {
            break;
        }
    }
    let movement = Movement::of(volume);
    assert!(movement.is_complete(), "{movement:?}");
    assert_eq!(number_of(volume, "demotion_decompressions"), 0);
    assert_eq!(number_of(volume, "damaged_objects"), 0);
    assert_eq!(volume.requests_in_flight(), 0);
}

#[test]
fn tier_with_copies() {
    run_tier("tier, inclusive", "promote=always,keep=inclusive");
}

#[test]
fn tier_without_copies() {
    run_tier("tier, exclusive", "promote=second,keep=exclusive");
}

/// One member after the other is emptied under the suite, and added again.
#[test]
fn tier_whose_members_come_and_go() {
    for members in ["promote=always,keep=inclusive", "promote=second,keep=exclusive"] {
        let seed = rng::seed(&format!("tier that comes and goes, {members}"));
        let folder = folder();
        // It has room for everything, since the other one may be gone.
        let log = ("4M", "high=30,low=20");
        let (direct, formatted) = tier_volume(folder.path(), log, members);
        let stop = AtomicBool::new(false);
        let volume = Arc::clone(&direct.volume);
        let (removed, added) = std::thread::scope(|scope| {
            let stop = &stop;
            let changing = scope
                .spawn(move || tiers::come_and_go(&Here(&volume), &formatted.members, stop, false));
            let stops = Stop(stop);
            for round in 0..4 {
                conformance::run_all(&direct, seed + round, OPERATIONS / 2);
            }
            drop(stops);
            changing.join().unwrap()
        });
        println!("{members}: {removed} members were emptied, {added} added");
        assert!(removed > 2 && added > 2, "{removed} emptied, {added} added");
        assert_eq!(number_of(&direct.volume, "damaged_objects"), 0);
        assert_eq!(direct.volume.requests_in_flight(), 0);
    }
}

#[test]
fn linear_sync() {
    run("linear sync", "linear", "engine=sync");
}

#[test]
fn linear_sync_without_checksums() {
    run("linear sync, no checksums", "linear", "engine=sync,checksum=off,discard=off");
}

#[test]
fn linear_uring() {
    run("linear uring", "linear", "engine=uring");
}

#[test]
fn linear_uring_started() {
    run_started("linear uring, started", "engine=uring");
}

#[test]
fn linear_uring_started_without_checksums() {
    run_started("linear uring, started, no checksums", "engine=uring,checksum=off");
}

#[test]
fn fault_filter_in_front_of_ram() {
    run("ram with faults", "ram", "fault=all:EIO:1/150+write:ENOSPC:1/150,fault-seed=9");
}

#[test]
fn fault_filter_in_front_of_linear() {
    run("linear sync with faults", "linear", "engine=sync,fault=all:EIO:1/100");
}

#[test]
fn fault_filter_in_front_of_started_requests() {
    run_started("linear uring with faults, started", "engine=uring,fault=all:EIO:1/100");
}

#[test]
fn delay_filter() {
    let seed = rng::seed("delay");
    let (direct, _file) = volume("ram", "delay=20");
    conformance::concurrent::run(&direct, seed, 300);
}
