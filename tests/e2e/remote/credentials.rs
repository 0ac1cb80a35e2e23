//! The file with credentials is read by each worker that opens the server's store.

use super::{Loaded, Shape, UNDISTURBED, cannot, pause};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use swapfs_tests::mounted::{folder, kill, wait_until};
use swapfs_tests::servers::RedisServer;
use swapfs_tests::servers::redis::PROGRAMS as REDIS;
use swapfs_tests::skip_if;

/// A successor that can't read it goes without the server: pages in memory are there, far ones are
/// refused, none is wrong. Once the file is back, so are the far pages.
#[test]
fn a_successor_without_its_credentials() {
    skip_if!(cannot(REDIS));
    let name = "without credentials";
    let server = RedisServer::start(&[]);
    server.ask(&["ACL", "SETUSER", "swap", "on", ">secret", "~swapfs:*", "+@all"]).unwrap();
    let folder = folder();
    let (auth, away) = (folder.path().join("auth"), folder.path().join("away"));
    fs::write(&auth, "username = swap\npassword = secret\n").unwrap();
    fs::set_permissions(&auth, fs::Permissions::from_mode(0o600)).unwrap();
    let options = format!("url={},capacity=64M,auth={}", server.url(), auth.display());
    let loaded = Loaded::new(name, Shape::Below, &options, Duration::from_secs(3));

    fs::rename(&auth, &away).unwrap();
    // The first one has stood by since before the file was gone, and may have read it.
    for _ in 0..2 {
        wait_until("a standby", || loaded.mounted.number("standby_pid") != 0);
        let standby = loaded.mounted.number("standby_pid");
        kill(loaded.mounted.number("worker_pid"), libc::SIGKILL);
        wait_until("a successor", || loaded.mounted.number("worker_pid") == standby);
    }
    let (outcome, longest) = loaded.also_probing(name, 0, true, || pause(1500));
    assert!(outcome.read_errors > 0, "the server was not missed");
    assert!(longest < UNDISTURBED, "memory was held up for {longest:?}");
    let tiers = &loaded.mounted.stats()["tiers"];
    assert_ne!(tiers[1]["state"], "ok", "{tiers:#}");

    fs::rename(&away, &auth).unwrap();
    loaded.recovers(name);
    loaded.load.check_all_right(name);
    assert_eq!(loaded.mounted.stats()["heap_allocations_on_io_path"], 0);
    drop(loaded.load);
    loaded.mounted.unmount();
}
