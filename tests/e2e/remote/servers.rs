//! Servers that die, hang and come back.

use super::{EXPORT_BYTES, Loaded, Shape, UNDISTURBED, cannot, pause, until};
use std::time::{Duration, Instant};
use swapfs_tests::mounted::wait_until;
use swapfs_tests::servers::nbd::{NBDKIT, NbdkitSetup, Plugin};
use swapfs_tests::servers::redis::PROGRAMS as REDIS;
use swapfs_tests::servers::{RedisCluster, RedisServer};
use swapfs_tests::skip_if;

/// A replica takes over: no page is lost, since each was acknowledged by it, and no request fails,
/// since that takes less than the deadline. The dead one comes back as a replica, as a service
/// manager would have it.
#[test]
fn a_master_dies_and_its_replica_takes_over() {
    skip_if!(cannot(REDIS));
    let mut cluster = RedisCluster::start(&[]);
    let options = format!("url={},cluster=on,replicas=1,capacity=64M", cluster.url());
    let deadline = Duration::from_secs(20);
    let loaded = Loaded::new("a dead master", Shape::Below, &options, deadline);
    for round in 0..2 {
        let outcome = loaded.under_load("a dead master", 3, || {
            pause(500);
            let dead = cluster.kill_master(round);
            cluster.wait_for_failover();
            pause(1000);
            cluster.nodes[dead].restart();
            cluster.wait_until_replicated();
            pause(500);
        });
        assert_eq!((outcome.read_errors, outcome.write_errors), (0, 0));
        loaded.load.check_all_right("after a replica has taken over");
    }
    loaded.end();
    assert_eq!(cluster.keys(), 0, "keys are left behind");
}

/// What it held is gone: those pages can't be read, but are never wrong; and it is used again.
#[test]
fn a_server_comes_back_empty() {
    skip_if!(cannot(REDIS));
    for shape in [Shape::Below, Shape::Alone] {
        let mut server = RedisServer::start(&[]);
        let options = format!("url={},capacity=64M", server.url());
        let deadline = Duration::from_millis(1500);
        let loaded = Loaded::new("an empty server", shape, &options, deadline);
        let outcome = loaded.under_load("an empty server", 2, || {
            pause(500);
            server.stop();
            pause(2500);
            server.restart();
            pause(1500);
        });
        assert!(outcome.read_errors > 0, "what was lost was read");
        let lost = loaded.load.read_all();
        assert!(lost.wrong.is_empty(), "{:#?}", lost.wrong);
        println!("{} of {} pages were lost", lost.read_errors, lost.reads);
        loaded.is_well_again("after the server was empty");
        wait_until("the server to be used again", || server.keys() > 100);
        loaded.end();
        assert_eq!(server.keys(), 0, "keys are left behind");
    }
}

/// A server that answers nothing, for longer than the deadline, with its connections open. Reads fail
/// in time; memory is not held up; and when it goes on, all pages are there.
#[test]
fn a_server_hangs_for_longer_than_the_deadline() {
    skip_if!(cannot(REDIS).or_else(|| cannot(NBDKIT)));
    let deadline = Duration::from_millis(1500);
    let check = |name: &str, options: &str, pause_server: &dyn Fn(), resume: &dyn Fn()| {
        let loaded = Loaded::new(name, Shape::Below, options, deadline);
        let (outcome, longest) = loaded.also_probing(name, 0, true, || {
            pause(500);
            let paused = Instant::now();
            pause_server();
            until(paused, deadline * 3);
            resume();
            pause(1000);
        });
        assert!(outcome.read_errors > 0, "{name}: the server was not missed");
        assert!(longest < UNDISTURBED, "{name}: memory was held up for {longest:?}");
        loaded.recovers(name);
        assert!(loaded.tier("read_errors") > 0, "{name}: not counted");
        loaded.end();
    };
    {
        let server = RedisServer::start(&[]);
        let options = format!("url={},capacity=64M", server.url());
        check("redis hangs", &options, &|| server.pause(), &|| server.resume());
    }
    for layout in ["log", "linear"] {
        let server = NbdkitSetup::new(Plugin::Memory, EXPORT_BYTES).sturdy().start();
        let options = format!("url={},layout={layout}", server.url());
        let name = format!("nbdkit hangs, {layout}");
        check(&name, &options, &|| server.pause(), &|| server.resume());
    }
}

/// A server with a file dies and is back before the deadline: nobody notices, and no page is lost.
#[test]
fn an_nbd_server_is_started_again() {
    skip_if!(cannot(NBDKIT));
    for layout in ["log", "linear"] {
        let mut server = NbdkitSetup::new(Plugin::File, EXPORT_BYTES).sturdy().tcp().start();
        let options = format!("url={},layout={layout}", server.url());
        let name = format!("nbdkit started again, {layout}");
        let loaded = Loaded::new(&name, Shape::Below, &options, Duration::from_secs(15));
        let outcome = loaded.under_load(&name, 3, || {
            for _ in 0..3 {
                pause(700);
                server.stop();
                pause(500);
                server.restart();
            }
            pause(700);
        });
        assert_eq!((outcome.read_errors, outcome.write_errors), (0, 0), "{name}");
        loaded.load.check_all_right(&name);
        loaded.end();
    }
}

/// A server that is full takes no new pages, which stay where they are; those that it has are served.
#[test]
fn a_server_without_room() {
    skip_if!(cannot(REDIS));
    let server = RedisServer::start(&["--maxmemory", "18mb", "--maxmemory-policy", "noeviction"]);
    let options = format!("url={},capacity=64M", server.url());
    let loaded = Loaded::new("a full server", Shape::Below, &options, Duration::from_secs(5));
    let outcome = loaded.under_load("a full server", 5, || pause(2500));
    assert_eq!(outcome.read_errors, 0);
    loaded.load.check_all_right("on a full server");
    loaded.end();
}
