//! Every back end, every engine and every filter against the reference model, through `Volume`.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

use swapfs_format::PAGE_BYTES;
use swapfs_format::fault::FaultPlan;
use swapfs_tests::conformance::targets::{Direct, Started};
use swapfs_tests::conformance::{self, Target};
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
