//! Mounted for real: through FUSE, and through a loop device on it. No swap is turned on.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use swapfs_format::swap_header::SwapHeader;
use swapfs_tests::conformance::targets::OpenFile;
use swapfs_tests::conformance::{self, Target};
use swapfs_tests::mounted::{
    LoopDevice, Mounted, Programs, cannot_attach, cannot_mount, cannot_use_rings, folder, kill,
    wait_until, wait_until_gone,
};
use swapfs_tests::tiers::{self, Socket, Stop};
use swapfs_tests::{rng, skip_if};
use swapfsd::image::{Access, Image};

fn programs() -> Programs {
    Programs::new(env!("CARGO_BIN_EXE_programs"))
}

fn conformance_of_mount(name: &str, format: &[&str], options: &str) {
    let folder = folder();
    let mounted = Mounted::new(&programs(), folder.path(), format, options);
    conformance_of(&mounted, name, options);
}

fn open(mounted: &Mounted, options: &str) -> OpenFile {
    let file = File::options().read(true).write(true).open(mounted.swap_file()).unwrap();
    let bytes = file.metadata().unwrap().size();
    OpenFile { file, bytes, faults: options.contains("fault=") }
}

/// Of a log with the smallest segments, which it has to collect.
fn conformance_of_log(name: &str, options: &str) {
    let folder = folder();
    let format = ["-t", "log", "-s", "3M", "--erase-block", "64K"];
    let mounted = Mounted::with_image(&programs(), folder.path(), 6 << 20, &format, options);
    conformance_of(&mounted, name, options);
}

fn conformance_of(mounted: &Mounted, name: &str, options: &str) {
    conformance::run_all(&open(mounted, options), rng::seed(name), 2000);
    let stats = mounted.stats();
    assert_eq!(stats["heap_allocations_on_io_path"], 0, "the I/O path allocated");
    assert_eq!(stats["in_flight"], 0);
    assert_eq!(stats["errors"]["checksum"], 0);
    assert!(stats["requests"]["read"].as_u64().unwrap() > 1000);
    assert!(stats["type"] != "log" || stats["backend"]["segments_freed"] != 0, "not collected");
    mounted.unmount();
}

#[test]
fn linear_uring_through_fuse() {
    skip_if!(cannot_mount());
    conformance_of_mount("FUSE, linear uring", &["-s", "3M"], "engine=uring");
}

#[test]
fn linear_sync_through_fuse() {
    skip_if!(cannot_mount());
    conformance_of_mount("FUSE, linear sync", &["-s", "3M"], "engine=sync,threads=4");
}

#[test]
fn ram_through_fuse() {
    skip_if!(cannot_mount());
    conformance_of_mount("FUSE, ram", &["-t", "ram", "-s", "3M"], "threads=3");
}

#[test]
fn log_through_fuse() {
    skip_if!(cannot_mount());
    conformance_of_log("FUSE, log", "buffer=4M,deadline-ms=10");
}

/// Members of tiny tiers.
const MEMBERS: [(&str, &str, &str); 2] = [
    ("log", "4M", "segment=64K,high=30,low=20,promote=always,keep=inclusive"),
    ("linear", "8M", "promote=second,keep=exclusive"),
];

fn tier(folder: &std::path::Path) -> (Mounted, tiers::Formatted) {
    let formatted = tiers::format(&programs(), folder, "3M", tiers::TINY_TOP, &MEMBERS);
    (Mounted::existing(&programs(), &formatted.image, ""), formatted)
}

#[test]
fn tier_through_fuse() {
    skip_if!(cannot_mount());
    let folder = folder();
    let (mounted, _) = tier(folder.path());
    conformance_of(&mounted, "FUSE, tier", "");
}

/// Through its control socket, members are emptied and added again.
#[test]
fn tier_through_fuse_whose_members_come_and_go() {
    skip_if!(cannot_mount());
    let folder = folder();
    let (mounted, formatted) = tier(folder.path());
    let socket = Socket(formatted.superblock().uuid);
    let stop = AtomicBool::new(false);
    let (removed, added) = std::thread::scope(|scope| {
        let changing =
            scope.spawn(|| tiers::come_and_go(&socket, &formatted.members, &stop, false));
        let stops = Stop(&stop);
        let seed = rng::seed("FUSE, tier that comes and goes");
        for round in 0..4 {
            conformance::run_all(&open(&mounted, ""), seed + round, 1000);
        }
        drop(stops);
        changing.join().unwrap()
    });
    println!("{removed} members were emptied, {added} added");
    assert!(removed > 1 && added > 1);
    conformance_of(&mounted, "FUSE, tier that was changed", "");
}

#[test]
fn all_types_by_rings() {
    skip_if!(cannot_use_rings());
    let linear = |options| conformance_of_mount("rings, linear", &["-s", "3M"], options);
    linear("transport=uring,engine=uring");
    linear("transport=uring,engine=sync");
    linear("transport=uring,engine=uring,supervisor=off");
    linear("transport=uring,fault=all:EIO:1/200+write:ENOSPC:1/200");
    conformance_of_mount("rings, ram", &["-t", "ram", "-s", "3M"], "transport=uring");
    conformance_of_mount("rings, zmem", &["-t", "zmem", "-s", "3M"], "transport=uring");
    conformance_of_log("rings, log", "transport=uring,buffer=4M,algo=zstd:1");
}

#[test]
fn fio_verifies_all_types_by_rings() {
    skip_if!(cannot_use_rings());
    fio_verify("linear", "transport=uring,engine=uring");
    fio_verify("linear", "transport=uring,engine=sync");
    fio_verify("zmem", "transport=uring,limit=256M");
    fio_verify("ram", "transport=uring");
}

#[test]
fn without_a_supervisor_rings_are_used_by_themselves_where_they_are_on() {
    skip_if!(cannot_use_rings());
    let folder = folder();
    let format = ["-t", "ram", "-s", "1M"];
    for (options, transport) in [("", "fuse"), ("supervisor=off", "uring")] {
        let mounted = Mounted::new(&programs(), folder.path(), &format, options);
        assert_eq!(mounted.stats()["transport"], transport);
        mounted.unmount();
        fs::remove_file(folder.path().join("image")).unwrap();
        drop(fs::remove_dir(folder.path().join("image.mnt")));
    }
}

#[test]
fn faults_reach_the_caller_as_errors_and_never_as_data() {
    skip_if!(cannot_mount());
    for engine in ["sync", "uring"] {
        let options = format!("engine={engine},fault=all:EIO:1/200+write:ENOSPC:1/200");
        conformance_of_mount(&format!("FUSE, {engine}, faults"), &["-s", "3M"], &options);
    }
}

/// fio's own verification, on the loop device, over the sizes that swap makes.
fn fio_verify(type_name: &str, options: &str) {
    if Command::new("fio").arg("--version").output().is_err() {
        println!("SKIPPED fio_verify: fio is not installed");
        return;
    }
    let folder = folder();
    let trace = folder.path().join("trace");
    let mut options = options.to_owned();
    if type_name == "log" {
        options.push_str(&format!(",trace={}", trace.display()));
    }
    let mounted = if type_name == "tier" {
        let members = [("log", "16M", "segment=256K"), ("linear", "80M", "promote=always")];
        let top = "limit=8M,high=60,low=50";
        let formatted = tiers::format(&programs(), folder.path(), "64M", top, &members);
        Mounted::existing(&programs(), &formatted.image, &options)
    } else {
        Mounted::new(&programs(), folder.path(), &["-t", type_name, "-s", "64M"], &options)
    };
    let device = LoopDevice::attach(&mounted.swap_file());
    for (block, depth) in [("4k", 32), ("32k", 8), ("512k", 8), ("1m", 4)] {
        let output = Command::new("timeout")
            .args(["120", "fio", "--name=verify", "--direct=1", "--ioengine=libaio"])
            .args(["--rw=randrw", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"])
            .args(["--size=48m", "--randrepeat=0", "--verify_state_save=0", "--output-format=json"])
            .arg(format!("--bs={block}"))
            .arg(format!("--iodepth={depth}"))
            .arg(format!("--filename={}", device.0.display()))
            .output()
            .unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "fio {block}: {out}{err}");
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(json["jobs"][0]["error"], 0, "fio {block}: {out}");
        assert!(json["jobs"][0]["read"]["total_ios"].as_u64().unwrap() > 0);
    }
    let stats = mounted.stats();
    assert_eq!(stats["errors"]["read"], 0);
    assert_eq!(stats["errors"]["write"], 0);
    assert_eq!(stats["heap_allocations_on_io_path"], 0);
    if type_name == "linear" {
        // Write data lies page-aligned in fuser's buffer (sys/alloc.rs), and goes out as it is.
        assert_eq!(stats["backend"]["copied_writes"], 0);
    }
    drop(device);
    if type_name != "log" {
        mounted.unmount();
        return;
    }
    assert!(stats["backend"]["segments_freed"] != 0, "not collected");
    let written_bytes = stats["backend"]["device_written_bytes"].as_u64().unwrap();
    mounted.unmount();
    let summary =
        programs().succeed("swapfs", &["trace".as_ref(), trace.as_os_str(), "--json".as_ref()]);
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    // All but the one with the anchors, two pages that are written in turn.
    let segments = |what: &str| summary["segments"][what].as_u64().unwrap();
    assert_eq!(segments("front_to_back") + 1, segments("written"), "{summary}");
    assert_eq!(summary["aligned_write_share"], 1.0, "{summary}");
    assert!(summary["bytes"]["write"].as_u64().unwrap() >= written_bytes, "{summary}");
}

#[test]
fn fio_verifies_linear_uring() {
    skip_if!(cannot_attach());
    fio_verify("linear", "engine=uring");
}

#[test]
fn fio_verifies_linear_sync() {
    skip_if!(cannot_attach());
    fio_verify("linear", "engine=sync");
}

#[test]
fn fio_verifies_zmem() {
    skip_if!(cannot_attach());
    fio_verify("zmem", "limit=256M");
}

#[test]
fn fio_verifies_zmem_with_everything_on() {
    skip_if!(cannot_attach());
    fio_verify("zmem", "algo=zstd,dedup=on,recompress=zstd:6,recompress-age=1,limit=256M");
}

/// What fio writes does not compress, so the device is four fifths full.
#[test]
fn fio_verifies_log() {
    skip_if!(cannot_attach());
    fio_verify("log", "buffer=8M,deadline-ms=100");
}

/// Most of it is on the last tier, since what fio writes does not compress.
#[test]
fn fio_verifies_tier() {
    skip_if!(cannot_attach());
    fio_verify("tier", "");
}

#[test]
fn fio_verifies_ram() {
    skip_if!(cannot_attach());
    fio_verify("ram", "");
}

#[test]
fn what_was_written_is_there_after_a_remount() {
    skip_if!(cannot_attach());
    remount("linear", "engine=sync");
    remount("log", "algo=zstd");
}

/// Mounts with defaults first, and with `options` again.
fn remount(type_name: &str, options: &str) {
    let folder = folder();
    let programs = programs();
    let format = ["-t", type_name, "-s", "32M", "-L", "keep"];
    let mounted = Mounted::new(&programs, folder.path(), &format, "");
    let mut rng = rng::Rng::new(rng::seed("remount"));
    let mut written = vec![0; 5 << 20];
    rng.fill(&mut written);
    {
        let device = LoopDevice::attach(&mounted.swap_file());
        // mkswap over the mounted file must work, and its header be kept.
        let mkswap = Command::new("mkswap").args(["-L", "again"]).arg(&device.0).output().unwrap();
        assert!(mkswap.status.success(), "{}", String::from_utf8_lossy(&mkswap.stderr));
        let file = File::options().read(true).write(true).open(&device.0).unwrap();
        file.write_all_at(&written, 7 << 20).unwrap();
        file.sync_all().unwrap();
    }
    mounted.unmount();
    let again = Mounted::existing(&programs, &mounted.image, options);
    let file = File::open(again.swap_file()).unwrap();
    let mut found = vec![0; written.len()];
    file.read_exact_at(&mut found, 7 << 20).unwrap();
    assert!(found == written, "other bytes after the remount of {type_name}");
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, 0).unwrap();
    let header = SwapHeader::decode(&page).expect("mkswap's header");
    assert_eq!((header.label.as_str(), header.slot_count), ("again", 8192));
    drop(file);
    again.unmount();
}

/// Pages as they were flushed, and what was written or discarded since and never flushed.
struct Flushed {
    pages: Vec<u8>,
    changed: std::ops::Range<usize>,
}

impl Flushed {
    fn read(target: &OpenFile) -> Vec<u8> {
        let mut pages = vec![0; target.bytes as usize];
        target.read(0, &mut pages).unwrap();
        pages
    }

    /// Writes and discards here and there, flushes, and goes on with a part of it.
    fn make(target: &OpenFile, rng: &mut rng::Rng) -> Flushed {
        let mut page = [0; 4096];
        let slots = target.bytes / 4096;
        let change = |rng: &mut rng::Rng, page: &mut [u8; 4096], slot| {
            match rng.below(4) {
                0 => return target.discard(slot * 4096, 4096).unwrap(),
                1 => page.fill(rng.below(256) as u8),
                kind => rng.fill(&mut page[..1 << (10 + kind % 3)]),
            }
            target.write(slot * 4096, page).unwrap();
        };
        for _ in 0..2 * slots {
            let slot = 1 + rng.below(slots - 1);
            change(rng, &mut page, slot);
        }
        target.flush().unwrap();
        let pages = Flushed::read(target);
        let first = 1 + rng.below(slots / 2);
        for slot in first..first + slots / 8 {
            change(rng, &mut page, slot);
        }
        Flushed { pages, changed: first as usize..(first + slots / 8) as usize }
    }

    fn check(&self, target: &OpenFile) {
        let found = Flushed::read(target);
        let pages = found.chunks(4096).zip(self.pages.chunks(4096));
        for (slot, (found, flushed)) in pages.enumerate() {
            let right = found == flushed || self.changed.contains(&slot);
            assert!(right, "slot {slot} is not what was flushed");
        }
    }
}

/// All that is left is the device, without a checkpoint: the log is read.
#[test]
fn a_log_whose_processes_have_all_died_has_what_was_flushed() {
    skip_if!(cannot_mount());
    let folder = folder();
    let programs = programs();
    let mut rng = rng::Rng::new(rng::seed("all died"));
    let format = ["-t", "log", "-s", "8M", "--erase-block", "64K"];
    let mut mounted = Mounted::with_image(&programs, folder.path(), 16 << 20, &format, "");
    for options in ["buffer=4M,deadline-ms=20", "buffer=4M,discard=on", "algo=zstd:1", ""] {
        let target = open(&mounted, "");
        let flushed = Flushed::make(&target, &mut rng);
        drop(target);
        // Whoever is not known yet would survive.
        wait_until("a standby", || mounted.number("standby_pid") != 0);
        let stats = mounted.stats();
        let pids = ["supervisor_pid", "worker_pid", "standby_pid"].map(|name| stats[name].as_u64());
        // Any one of them would save the volume.
        for signal in [libc::SIGSTOP, libc::SIGKILL] {
            pids.into_iter().flatten().for_each(|pid| kill(pid, signal));
        }
        let free = || Image::open_exclusive(&mounted.image, Access::ReadOnly).is_ok();
        wait_until("nobody has the image", free);
        swapfsd::sys::mount::unmount(&mounted.mountpoint).unwrap();
        let again = Mounted::existing(&programs, &mounted.image, options);
        // Not dropped, which would unmount what is mounted there again.
        std::mem::forget(std::mem::replace(&mut mounted, again));
        flushed.check(&open(&mounted, ""));
        assert_eq!(mounted.stats()["errors"]["checksum"], 0);
    }
    mounted.unmount();
    mounted.programs.succeed("fsck.swapfs", &["-n".as_ref(), mounted.image.as_os_str()]);
}

#[test]
fn the_loop_device_is_as_swap_wants_it() {
    skip_if!(cannot_attach());
    let folder = folder();
    let mounted = Mounted::new(&programs(), folder.path(), &["-s", "16M"], "");
    let device = LoopDevice::attach(&mounted.swap_file());
    assert_eq!(device.queue("logical_block_size"), "4096");
    // From statfs: the kernel discards in units of it.
    assert_eq!(device.queue("discard_granularity"), "4096");
    let header = SwapHeader::decode(&{
        let mut page = [0; 4096];
        File::open(&device.0).unwrap().read_exact_at(&mut page, 0).unwrap();
        page
    });
    assert_eq!(header.map(|header| header.slot_count), Some(4096));
    // A discard through the loop device reaches the back end.
    let discard = Command::new("blkdiscard").arg(&device.0).output().unwrap();
    assert!(discard.status.success(), "{}", String::from_utf8_lossy(&discard.stderr));
    assert_eq!(mounted.stats()["bytes"]["discard"], 16 << 20);
    drop(device);
    mounted.unmount();
}

#[test]
fn status_files_are_like_files_of_proc() {
    skip_if!(cannot_mount());
    let folder = folder();
    let mounted = Mounted::new(&programs(), folder.path(), &["-t", "ram", "-s", "1M"], "");
    let mode = |name: &str| fs::metadata(mounted.mountpoint.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("swapfile"), mode("stats.json"), mode("metrics")), (0o600, 0o444, 0o444));
    let file = File::options().write(true).open(mounted.swap_file()).unwrap();
    file.write_all_at(&[1; 8192], 4096).unwrap();
    file.write_all_at(&[1; 100], 4096).unwrap();
    assert_eq!(mounted.stats()["requests"]["write"], 2);
    assert_eq!(mounted.stats()["partial_writes"], 1);
    let metrics = fs::read_to_string(mounted.mountpoint.join("metrics")).unwrap();
    assert!(metrics.contains("operation=\"write\"} 2\n"), "{metrics}");
    assert!(metrics.contains("swapfs_request_seconds_bucket"), "{metrics}");
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok(), "no number: {line}");
    }
    // More of them open than there is room for is an error, not a wait; closing makes room.
    let open = || File::open(mounted.mountpoint.join("metrics"));
    let files: Vec<_> = (0..8).map(|_| open().unwrap()).collect();
    assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::ENFILE));
    drop((files, file));
    mounted.unmount();
}

#[test]
fn the_swap_file_keeps_its_size_and_the_mount_its_files() {
    skip_if!(cannot_mount());
    let folder = folder();
    let mounted = Mounted::new(&programs(), folder.path(), &["-t", "ram", "-s", "1M"], "");
    let file = File::options().read(true).write(true).open(mounted.swap_file()).unwrap();
    assert_eq!(file.set_len(1 << 20).map_err(|error| error.raw_os_error()), Ok(()));
    assert_eq!(file.set_len(2 << 20).unwrap_err().raw_os_error(), Some(libc::EPERM));
    let behind = file.write_all_at(&[1; 4096], 1 << 20).unwrap_err();
    assert_eq!(behind.raw_os_error(), Some(libc::ENOSPC));
    for offset in [1 << 20, 2 << 20] {
        assert_eq!(file.read_at(&mut [0; 4096], offset).unwrap(), 0, "end of file");
    }
    let create = File::create(mounted.mountpoint.join("other")).unwrap_err();
    assert_eq!(create.raw_os_error(), Some(libc::EPERM));
    assert!(fs::remove_file(mounted.swap_file()).is_err());
    let mut names: Vec<_> = fs::read_dir(&mounted.mountpoint)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["metrics", "stats.json", "swapfile"]);
    drop(file);
    mounted.unmount();
}

#[test]
fn sigterm_stops_the_daemon_unless_the_volume_is_in_use() {
    skip_if!(cannot_attach());
    let folder = folder();
    let mounted = Mounted::new(&programs(), folder.path(), &["-t", "ram", "-s", "1M"], "");
    let pid = mounted.pid();
    let device = LoopDevice::attach(&mounted.swap_file());
    let kill = |signal: i32| {
        // SAFETY: no memory is passed; the process is the daemon that this test started.
        assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    };
    kill(libc::SIGTERM);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(mounted.pid(), pid, "a volume in use goes on");
    drop(device);
    std::thread::sleep(std::time::Duration::from_millis(300));
    kill(libc::SIGINT);
    wait_until_gone(pid);
    assert!(!mounted.swap_file().exists());
}

#[test]
fn the_mount_helper_mounts() {
    skip_if!(cannot_mount());
    let folder = folder();
    let programs = programs();
    let mounted = Mounted::new(&programs, folder.path(), &["-t", "ram", "-s", "1M"], "");
    mounted.unmount();
    let arguments = [mounted.image.as_os_str(), mounted.mountpoint.as_os_str()];
    let options = ["-o", "rw,noauto,x-systemd.requires=x,threads=3"].map(std::ffi::OsStr::new);
    programs.succeed("mount.swapfs", &[&arguments[..], &options[..]].concat());
    assert_eq!(mounted.stats()["threads"], 3);
    mounted.unmount();
}
