//! The same with FUSE over io_uring: upgrades lose nothing, and a kill ends the volume with errors.

use super::*;

#[test]
fn upgrades_by_rings_lose_no_request() {
    skip_if!(cannot_guard().or_else(cannot_use_rings));
    conformance_under_upgrades(&["-t", "zmem", "-s", "16M"], "transport=uring");
    conformance_under_upgrades(&["-s", "16M"], "transport=uring,engine=uring");
}

/// Not every place gets a request: the old worker answers what it has kept, and serves on.
#[test]
fn by_rings_an_upgrade_that_can_not_drain_is_called_off() {
    skip_if!(cannot_guard().or_else(cannot_use_rings));
    let folder = folder();
    let image = folder.path().join("image");
    let programs = programs();
    programs.succeed("mkswapfs", &["-s", "16M", image.to_str().unwrap()]);
    let mountpoint = folder.path().join("image.mnt");
    fs::create_dir(&mountpoint).unwrap();
    let status = programs
        .command("swapfsd")
        .args(["-o", "transport=uring"])
        .args([&image, &mountpoint])
        .env("SWAPFS_NO_KNOCK", "1")
        .status();
    assert!(status.unwrap().success());
    let mounted = Mounted { programs, image, mountpoint };
    let worker = mounted.number("worker_pid");
    let target = swap_file(&mounted);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let upgrader = scope.spawn(|| {
            let outcome = upgrade(&mounted, Path::new(env!("CARGO_BIN_EXE_programs")));
            done.store(true, Ordering::Relaxed);
            outcome
        });
        let mut round = 0;
        while !done.load(Ordering::Relaxed) || round < 3 {
            conformance::run_all(&target, rng::seed("called off") + round, 300);
            round += 1;
        }
        let outcome = upgrader.join().unwrap();
        assert!(outcome.contains("the old program serves on"), "{outcome}");
    });
    drop(target);
    let stats = mounted.stats();
    assert_eq!((stats["worker_pid"].as_u64(), stats["upgrades"].as_u64()), (Some(worker), Some(0)));
    assert_eq!(stats["errors"]["checksum"], 0);
    assert_eq!(stats["heap_allocations_on_io_path"], 0);
    mounted.unmount();
}

/// Nothing may wait for ever for a process that is dead.
#[test]
fn by_rings_a_kill_ends_the_volume_with_errors() {
    skip_if!(cannot_guard().or_else(cannot_use_rings));
    let folder = folder();
    let (mounted, bytes) = filled(folder.path(), "transport=uring");
    check(&mounted, &bytes);
    let file = File::open(mounted.swap_file()).unwrap();
    let supervisor = mounted.number("supervisor_pid");
    kill(mounted.number("worker_pid"), libc::SIGKILL);
    wait_until("reads fail", || file.read_exact_at(&mut [0; 4096], 8192).is_err());
    drop(file);
    wait_until_dead(supervisor);
    let _ = Command::new("umount").arg(&mounted.mountpoint).status();
    std::mem::forget(mounted);
}

/// A program that fails while it takes over: what was held is not lost.
#[test]
fn by_rings_the_old_program_comes_back() {
    skip_if!(cannot_guard().or_else(cannot_use_rings));
    let folder = folder();
    let (mounted, bytes) = filled(folder.path(), "transport=uring");
    let program = folder.path().join("broken-takeover");
    fs::copy(env!("CARGO_BIN_EXE_broken"), &program).unwrap();
    let outcome = upgrade(&mounted, &program);
    assert!(outcome.contains("the old one serves again"), "{outcome}");
    check(&mounted, &bytes);
    let program = env!("CARGO_BIN_EXE_programs");
    let outcome = upgrade(&mounted, Path::new(program));
    assert!(outcome.starts_with("done: worker and supervisor"), "{outcome}");
    check(&mounted, &bytes);
    mounted.unmount();
}
