//! Processes die under a mounted volume, and nothing is lost: promise 1 across kills, hangs and
//! upgrades. No swap is turned on.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

#[path = "supervised/rings.rs"]
mod rings;
#[path = "supervised/tier.rs"]
mod tier;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use swapfs_tests::conformance;
use swapfs_tests::conformance::targets::OpenFile;
use swapfs_tests::mounted::{
    Mounted, Programs, cannot_mount, cannot_use_rings, folder, kill, wait_until, wait_until_dead,
    wait_until_gone,
};
use swapfs_tests::{rng, skip_if};
use swapfsd::held::BACKEND_REGIONS;
use swapfsd::sys::passing;

fn programs() -> Programs {
    Programs::new(env!("CARGO_BIN_EXE_programs"))
}

/// Why there can be no supervisor here, if so.
fn cannot_guard() -> Option<&'static str> {
    cannot_mount().or_else(|| {
        let old = swapfsd::sys::process::kernel_version() < (6, 9);
        old.then_some("the kernel can't resend FUSE requests")
    })
}

fn swap_file(mounted: &Mounted) -> OpenFile {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(mounted.swap_file())
        .unwrap();
    let bytes = file.metadata().unwrap().size();
    // Not O_DIRECT: the suite's buffers are anywhere. FUSE does direct I/O in any case.
    let file = File::options().read(true).write(true).open(mounted.swap_file()).unwrap_or(file);
    OpenFile { file, bytes, faults: false }
}

/// The conformance suite, while the worker is killed again and again.
fn conformance_under_kills(name: &str, format: &[&str], options: &str) {
    skip_if!(cannot_guard());
    let folder = folder();
    let mounted = Mounted::new(&programs(), folder.path(), format, options);
    kills_under_conformance(name, mounted);
}

fn kills_under_conformance(name: &str, mounted: Mounted) {
    let seed = rng::seed(name);
    let target = swap_file(&mounted);
    let done = AtomicBool::new(false);
    let killed = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut random = rng::Rng::new(seed);
            let mut killed = 0;
            while !done.load(Ordering::Relaxed) {
                kill(mounted.number("worker_pid"), libc::SIGKILL);
                killed += 1;
                std::thread::sleep(Duration::from_millis(5 + random.below(150)));
            }
            killed
        });
        for round in 0..4 {
            conformance::run_all(&target, seed + round, 1000);
        }
        done.store(true, Ordering::Relaxed);
        killer.join().unwrap()
    });
    drop(target);
    let noticed = || mounted.number("takeovers");
    wait_until(&format!("{killed} deaths are noticed, not {}", noticed()), || noticed() == killed);
    let stats = mounted.stats();
    println!("{name}: {killed} kills, longest pause {} ms", stats["longest_pause_ms"]);
    assert!(killed > 5, "only {killed} kills");
    assert_eq!(stats["errors"]["read"], 0);
    assert_eq!(stats["errors"]["checksum"], 0);
    assert_eq!(stats["heap_allocations_on_io_path"], 0);
    assert_eq!(stats["supervisor_heap_allocations"], 0);
    assert!(stats["requests"]["read"].as_u64().unwrap() > 1000, "counters start anew");
    mounted.unmount();
}

#[test]
fn ram_under_kills() {
    conformance_under_kills("kills, ram", &["-t", "ram", "-s", "3M"], "");
}

#[test]
fn linear_uring_under_kills() {
    conformance_under_kills("kills, uring", &["-t", "linear", "-s", "3M"], "engine=uring");
}

#[test]
fn linear_sync_under_kills() {
    conformance_under_kills("kills, sync", &["-t", "linear", "-s", "3M"], "engine=sync");
}

#[test]
fn zmem_under_kills() {
    conformance_under_kills("kills, zmem", &["-t", "zmem", "-s", "3M"], "limit=64M");
}

#[test]
fn zmem_with_everything_on_under_kills() {
    let options = "algo=zstd:1,dedup=on,recompress=zstd:5,recompress-age=1,reserve=1M,limit=8M";
    conformance_under_kills("kills, zmem, everything", &["-t", "zmem", "-s", "3M"], options);
}

/// With the smallest segments and no patience, so that it is collected all the time.
#[test]
fn log_under_kills() {
    skip_if!(cannot_guard());
    let folder = folder();
    let format = ["-t", "log", "-s", "3M", "--erase-block", "64K"];
    let options = "buffer=4M,deadline-ms=10";
    let mounted = Mounted::with_image(&programs(), folder.path(), 6 << 20, &format, options);
    kills_under_conformance("kills, log", mounted);
}

/// A volume with known bytes.
fn filled(folder: &Path, options: &str) -> (Mounted, Vec<u8>) {
    let mounted = Mounted::new(&programs(), folder, &["-t", "zmem", "-s", "16M"], options);
    let mut bytes = vec![0; 4 << 20];
    rng::Rng::new(rng::seed("filled")).fill(&mut bytes);
    bytes[..1 << 20].fill(b'x');
    let file = File::options().write(true).open(mounted.swap_file()).unwrap();
    file.write_all_at(&bytes, 8192).unwrap();
    (mounted, bytes)
}

fn check(mounted: &Mounted, bytes: &[u8]) {
    let file = File::open(mounted.swap_file()).unwrap();
    let mut found = vec![0; bytes.len()];
    file.read_exact_at(&mut found, 8192).unwrap();
    assert!(found == bytes, "other bytes");
}

#[test]
fn a_dead_supervisor_is_replaced_by_the_worker() {
    skip_if!(cannot_guard());
    let folder = folder();
    let (mounted, bytes) = filled(folder.path(), "");
    for _ in 0..3 {
        wait_until("a supervisor", || mounted.number("supervisor_pid") != 0);
        let before = mounted.number("supervisor_pid");
        kill(before, libc::SIGKILL);
        wait_until("a new supervisor with a standby", || {
            let stats = mounted.stats();
            let supervisor = stats["supervisor_pid"].as_u64().unwrap_or(before);
            supervisor != before && stats["standby_pid"].is_u64()
        });
        check(&mounted, &bytes);
        let worker = mounted.number("worker_pid");
        kill(worker, libc::SIGKILL);
        wait_until("a new worker", || mounted.number("worker_pid") != worker);
        check(&mounted, &bytes);
    }
    assert_eq!(mounted.stats()["guarded"], true);
    mounted.unmount();
}

#[test]
fn a_standby_that_dies_is_replaced() {
    skip_if!(cannot_guard());
    let folder = folder();
    let (mounted, bytes) = filled(folder.path(), "");
    for _ in 0..3 {
        wait_until("a standby", || mounted.number("standby_pid") != 0);
        let standby = mounted.number("standby_pid");
        kill(standby, libc::SIGKILL);
        wait_until("another standby", || ![0, standby].contains(&mounted.number("standby_pid")));
    }
    assert_eq!(mounted.number("takeovers"), 0);
    check(&mounted, &bytes);
    mounted.unmount();
}

/// A small volume in RAM whose daemon has a point of [`swapfsd::crash`] armed.
fn mounted_with(folder: &Path, (variable, point): (&str, &str)) -> Mounted {
    let image = folder.join("image");
    let programs = programs();
    programs.succeed("mkswapfs", &["-t", "ram", "-s", "1M", image.to_str().unwrap()]);
    let mountpoint = folder.join("image.mnt");
    fs::create_dir(&mountpoint).unwrap();
    let status = programs
        .command("swapfsd")
        .args(["-o", "watchdog=1"])
        .args([&image, &mountpoint])
        .env(variable, point)
        .status();
    assert!(status.unwrap().success());
    Mounted { programs, image, mountpoint }
}

/// The mount can be used before the supervisor has heard that it serves: that moment is guarded too.
#[test]
fn the_first_worker_may_die_before_it_is_known_to_serve() {
    skip_if!(cannot_guard());
    let folder = folder();
    let mounted = mounted_with(folder.path(), ("SWAPFS_KILL_AT", "DaemonUnannounced"));
    assert_eq!(mounted.number("takeovers"), 1);
    let file = File::options().read(true).write(true).open(mounted.swap_file()).unwrap();
    file.write_all_at(&[7; 4096], 8192).unwrap();
    let mut found = [0; 4096];
    file.read_exact_at(&mut found, 8192).unwrap();
    assert_eq!(found, [7; 4096]);
    drop(file);
    mounted.unmount();
}

/// A request that never ends, in each worker anew: each is replaced, and its successor not for
/// what it has done.
#[test]
fn a_worker_with_a_request_that_does_not_end_is_replaced() {
    skip_if!(cannot_guard());
    let folder = folder();
    let mounted = mounted_with(folder.path(), ("SWAPFS_BLOCK_AT", "RamHalf:4"));
    let file = File::options().read(true).write(true).open(mounted.swap_file()).unwrap();
    for page in 0..10u8 {
        file.write_all_at(&[page + 1; 4096], u64::from(page) * 8192).unwrap();
    }
    let mut found = [0; 4096];
    for page in 0..10u8 {
        file.read_exact_at(&mut found, u64::from(page) * 8192).unwrap();
        assert_eq!(found, [page + 1; 4096]);
    }
    drop(file);
    let hangs = mounted.number("hangs");
    // Some, and not for ever: on a busy machine a slow start counts as one, too.
    assert!((2..=12).contains(&hangs), "{hangs} hangs");
    mounted.unmount();
}

#[test]
fn the_standby_saves_the_volume_when_supervisor_and_worker_die_together() {
    skip_if!(cannot_guard());
    let folder = folder();
    let (mounted, bytes) = filled(folder.path(), "");
    for round in 0..6 {
        wait_until("a standby", || mounted.number("standby_pid") != 0);
        // It has to be ready: nobody is left who could start another one.
        std::thread::sleep(Duration::from_millis(1000));
        let pids = [mounted.number("supervisor_pid"), mounted.number("worker_pid")];
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        kill(pids[order[0]], libc::SIGSTOP);
        for index in order {
            kill(pids[index], libc::SIGKILL);
        }
        check(&mounted, &bytes);
        wait_until("a new supervisor", || mounted.stats()["supervisor_pid"].is_u64());
    }
    mounted.unmount();
}

/// The worker dies at any moment while it has a new supervisor come up: who is left agrees upon one
/// process that serves, and one that watches.
#[test]
fn a_worker_that_dies_soon_after_its_supervisor() {
    skip_if!(cannot_guard());
    let folder = folder();
    let (mounted, bytes) = filled(folder.path(), "");
    let mut random = rng::Rng::new(rng::seed("soon after"));
    for _ in 0..8 {
        wait_until("a standby", || mounted.number("standby_pid") != 0);
        std::thread::sleep(Duration::from_millis(300));
        let pids = [mounted.number("supervisor_pid"), mounted.number("worker_pid")];
        kill(pids[0], libc::SIGKILL);
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        kill(pids[1], libc::SIGKILL);
        check(&mounted, &bytes);
        let watcher = || match mounted.number("supervisor_pid") {
            pid if pid != pids[0] => pid,
            _ => 0,
        };
        wait_until("a new supervisor", || watcher() != 0);
        // The first one to say so may find that it has come too late.
        wait_until("a supervisor with a standby", || mounted.number("standby_pid") != 0);
    }
    std::thread::sleep(Duration::from_millis(1500));
    let before = mounted.number("supervisor_pid");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(mounted.number("supervisor_pid"), before, "it is one and the same");
    check(&mounted, &bytes);
    mounted.unmount();
}

#[test]
fn a_worker_that_hangs_is_replaced_and_a_slow_device_is_no_hang() {
    skip_if!(cannot_guard());
    let folder = folder();
    let (mounted, bytes) = filled(folder.path(), "watchdog=1");
    let worker = mounted.number("worker_pid");
    kill(worker, libc::SIGSTOP);
    check(&mounted, &bytes);
    let stats = mounted.stats();
    assert_eq!((stats["hangs"].as_u64(), stats["takeovers"].as_u64()), (Some(1), Some(1)));
    mounted.unmount();
    // Each request takes three times as long as the watchdog's limit.
    let slow = Mounted::existing(&programs(), &mounted.image, "watchdog=1,delay=3000000");
    let mut page = [1; 4096];
    File::open(slow.swap_file()).unwrap().read_exact_at(&mut page, 40_960).unwrap();
    assert_eq!((slow.number("hangs"), slow.number("takeovers")), (0, 0));
    slow.unmount();
}

/// What an upgrade answers.
fn upgrade(mounted: &Mounted, program: &Path) -> String {
    let uuid = mounted.stats()["uuid"].as_str().unwrap().to_owned();
    let socket = connect(&format!("/run/swapfs/{uuid}.sock"));
    let program = File::open(program).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&program);
    passing::send(socket.as_fd(), b"upgrade", &[number]).unwrap();
    let mut last = String::new();
    loop {
        let mut text = [0; 1024];
        let received = passing::receive(socket.as_fd(), &mut text).unwrap();
        if received.len == 0 {
            return last;
        }
        last = String::from_utf8_lossy(&text[..received.len]).into_owned();
        println!("upgrade: {last}");
    }
}

fn connect(path: &str) -> std::os::fd::OwnedFd {
    let mode = fs::metadata(path).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600, "{path} is for root alone");
    passing::connect_packets(path.as_bytes()).unwrap()
}

#[test]
fn an_upgrade_replaces_worker_and_supervisor() {
    skip_if!(cannot_guard());
    let folder = folder();
    let (mounted, bytes) = filled(folder.path(), "");
    // The same program from another file: as after an installation.
    let new = folder.path().join("swapfsd-new");
    fs::copy(env!("CARGO_BIN_EXE_programs"), &new).unwrap();
    for round in 1..=3 {
        let before = mounted.stats();
        let outcome = upgrade(&mounted, &new);
        assert!(outcome.starts_with("done: worker and supervisor"), "{outcome}");
        let after = mounted.stats();
        assert_eq!(after["upgrades"], round);
        assert_ne!(after["worker_pid"], before["worker_pid"]);
        assert_eq!(after["supervisor_pid"], before["supervisor_pid"], "the same process");
        for pid in ["worker_pid", "supervisor_pid"] {
            let pid = after[pid].as_u64().unwrap();
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
            assert_eq!(program, fs::canonicalize(&new).unwrap());
        }
        check(&mounted, &bytes);
        // It guards as before.
        kill(mounted.number("worker_pid"), libc::SIGKILL);
        check(&mounted, &bytes);
    }
    let stats = mounted.stats();
    assert_eq!((stats["takeovers"].as_u64(), stats["guarded"].as_bool()), (Some(3), Some(true)));
    mounted.unmount();
}

/// The conformance suite, while one upgrade follows the other.
fn conformance_under_upgrades(format: &[&str], options: &str) {
    let folder = folder();
    let mounted = Mounted::new(&programs(), folder.path(), format, options);
    let seed = rng::seed(options);
    let target = swap_file(&mounted);
    let new = Path::new(env!("CARGO_BIN_EXE_programs"));
    let done = AtomicBool::new(false);
    let upgrades = std::thread::scope(|scope| {
        let upgrader = scope.spawn(|| {
            let mut upgrades = 0;
            while !done.load(Ordering::Relaxed) || upgrades < 5 {
                let outcome = upgrade(&mounted, new);
                assert!(outcome.starts_with("done: worker and supervisor"), "{outcome}");
                upgrades += 1;
            }
            upgrades
        });
        for round in 0..3 {
            conformance::run_all(&target, seed + round, 1000);
        }
        done.store(true, Ordering::Relaxed);
        upgrader.join().unwrap()
    });
    drop(target);
    let stats = mounted.stats();
    println!("{options}: {upgrades} upgrades, longest pause {} ms", stats["longest_pause_ms"]);
    assert_eq!(stats["upgrades"], upgrades);
    assert_eq!(stats["takeovers"], 0);
    assert_eq!(stats["errors"]["checksum"], 0);
    assert_eq!(stats["heap_allocations_on_io_path"], 0);
    mounted.unmount();
}

#[test]
fn a_program_that_will_not_do_changes_nothing() {
    skip_if!(cannot_guard());
    let folder = folder();
    let (mounted, bytes) = filled(folder.path(), "");
    let worker = mounted.stats()["worker_pid"].clone();
    let broken = |name: &str| {
        let program = folder.path().join(name);
        fs::copy(env!("CARGO_BIN_EXE_broken"), &program).unwrap();
        upgrade(&mounted, &program)
    };
    let outcome = upgrade(&mounted, Path::new("/bin/true"));
    assert!(outcome.starts_with("failed: ") && outcome.contains("is it swapfs?"), "{outcome}");
    let outcome = upgrade(&mounted, Path::new("/etc/passwd"));
    assert!(outcome.starts_with("failed: "), "{outcome}");
    let outcome = broken("broken-version");
    assert!(outcome.contains("keeps pages in another way"), "{outcome}");
    // All of these were refused before anything was given up.
    assert_eq!(mounted.stats()["worker_pid"], worker);
    check(&mounted, &bytes);
    // This one fails when it is too late for that: the old program comes back.
    let outcome = broken("broken-takeover");
    assert!(outcome.contains("the old one serves again"), "{outcome}");
    check(&mounted, &bytes);
    let stats = mounted.stats();
    assert_eq!(stats["upgrades"], 0);
    assert_eq!(stats["guarded"], true);
    let pid = stats["worker_pid"].as_u64().unwrap();
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(program, Path::new(env!("CARGO_BIN_EXE_programs")));
    mounted.unmount();
}

#[test]
fn without_a_supervisor_a_kill_ends_the_volume() {
    skip_if!(cannot_guard());
    let folder = folder();
    let (mounted, _) = filled(folder.path(), "supervisor=off");
    let stats = mounted.stats();
    assert_eq!(stats["guarded"], false);
    assert_eq!(stats["unguarded_why"], "supervisor=off");
    assert!(stats["supervisor_pid"].is_null());
    kill(mounted.number("pid"), libc::SIGKILL);
    wait_until_gone(stats["pid"].as_u64().unwrap() as u32);
    let error = File::open(mounted.swap_file()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
}

/// What systemd does with `FileDescriptorStoreMax=`: it keeps descriptors, and hands them to the
/// next process of the unit.
#[test]
fn a_service_manager_that_keeps_descriptors_saves_the_volume_when_all_processes_die() {
    skip_if!(cannot_guard());
    let folder = folder();
    let programs = programs();
    let image = folder.path().join("image");
    programs.succeed("mkswapfs", &["-t", "zmem", "-s", "16M", image.to_str().unwrap()]);
    let mountpoint = folder.path().join("image.mnt");
    fs::create_dir(&mountpoint).unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let start = |script: &str| {
        let status = Command::new("bash")
            .args(["-c", script, "bash"])
            .arg(env!("CARGO_BIN_EXE_programs"))
            .args([&image, &mountpoint])
            .env("NOTIFY_SOCKET", &path)
            .status();
        assert!(status.unwrap().success());
    };
    start("exec -a swapfsd \"$1\" \"$2\" \"$3\"");
    let mounted = Mounted { programs, image: image.clone(), mountpoint: mountpoint.clone() };
    let mut kept: Vec<(String, File)> = Vec::new();
    manager.set_nonblocking(true).unwrap();
    let mut text = [0; 1024];
    while let Ok(mut received) = passing::receive(manager.as_fd(), &mut text) {
        let message = String::from_utf8_lossy(&text[..received.len]).into_owned();
        if let Some(name) = message.strip_prefix("FDSTORE=1\nFDNAME=") {
            kept.push((name.to_owned(), received.take_file(0).unwrap()));
        }
    }
    // /dev/fuse, the image, the control page, the entry, and the back end's memory.
    assert_eq!(kept.len(), 4 + BACKEND_REGIONS, "{kept:?}");
    let mut bytes = vec![0; 3 << 20];
    rng::Rng::new(rng::seed("store")).fill(&mut bytes);
    let file = File::options().write(true).open(mounted.swap_file()).unwrap();
    file.write_all_at(&bytes, 8192).unwrap();
    drop(file);
    wait_until("a standby", || mounted.number("standby_pid") != 0);
    let stats = mounted.stats();
    let pids = ["supervisor_pid", "worker_pid", "standby_pid"].map(|name| stats[name].as_u64());
    // All at once, as far as can be: any one of them would save the volume.
    for signal in [libc::SIGSTOP, libc::SIGKILL] {
        for pid in pids.into_iter().flatten() {
            kill(pid, signal);
        }
    }
    for pid in pids.into_iter().flatten() {
        wait_until_dead(pid);
    }
    // The next process of the unit, with the descriptors from 3 on, in another order.
    kept.reverse();
    let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
    let descriptors: Vec<i32> =
        kept.iter().map(|(_, file)| std::os::fd::AsRawFd::as_raw_fd(file)).collect();
    for descriptor in &descriptors {
        swapfsd::sys::spawn::set_close_on_exec(*descriptor, false).unwrap();
    }
    // First far out of the way, then to their places.
    let far = (0..).zip(&descriptors).map(|(place, from)| format!("{}>&{from}", 60 + place));
    let near = (0..descriptors.len()).map(|place| format!("{}>&{}", 3 + place, 60 + place));
    let moves = far.chain(near).collect::<Vec<_>>().join(" ");
    // In the foreground, as a unit runs it: the process is the one that was given them.
    start(&format!(
        "exec {moves}; export LISTEN_FDS={} LISTEN_FDNAMES={}; \
         (export LISTEN_PID=$BASHPID; exec -a swapfsd \"$1\" -f \"$2\" \"$3\") &",
        kept.len(),
        names.join(":"),
    ));
    drop(kept);
    check(&mounted, &bytes);
    assert_eq!(mounted.stats()["guarded"], true);
    mounted.unmount();
}
