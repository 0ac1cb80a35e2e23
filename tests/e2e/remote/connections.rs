//! Connections that are cut or slow, and answers that are wrong.

use super::{EXPORT_BYTES, Loaded, Shape, UNDISTURBED, cannot, pause};
use std::time::Duration;
use swapfs_tests::servers::cutter::Mode;
use swapfs_tests::servers::damage::{Damage, Protocol};
use swapfs_tests::servers::nbd::{NBDKIT, NbdkitSetup, Plugin};
use swapfs_tests::servers::redis::PROGRAMS as REDIS;
use swapfs_tests::servers::{Cutter, Nbdkit, RedisServer};
use swapfs_tests::{rng, skip_if};

/// A server behind a cutter.
struct Behind {
    name: String,
    cutter: Cutter,
    options: String,
    _redis: Option<RedisServer>,
    _nbd: Option<Nbdkit>,
}

impl Behind {
    fn redis() -> Behind {
        let server = RedisServer::start(&[]);
        let cutter = Cutter::new(server.port, Protocol::Redis, rng::seed("cutter"));
        let options = format!("url={},capacity=64M", cutter.url());
        Behind { name: "redis".to_owned(), cutter, options, _redis: Some(server), _nbd: None }
    }

    fn nbd(layout: &str) -> Behind {
        let server = NbdkitSetup::new(Plugin::Memory, EXPORT_BYTES).sturdy().tcp().start();
        let cutter = Cutter::new(server.port().unwrap(), Protocol::Nbd, rng::seed("cutter"));
        let options = format!("url={},layout={layout}", cutter.url());
        let name = format!("nbd {layout}");
        Behind { name, cutter, options, _redis: None, _nbd: Some(server) }
    }

    fn all() -> Vec<fn() -> Behind> {
        vec![Behind::redis, || Behind::nbd("log"), || Behind::nbd("linear")]
    }
}

/// Requests and answers end anywhere; they are sent again by another connection, and all is well.
#[test]
fn connections_are_cut_in_mid_request() {
    skip_if!(cannot(REDIS).or_else(|| cannot(NBDKIT)));
    for make in Behind::all() {
        let behind = make();
        let name = format!("{}, cut", behind.name);
        let deadline = Duration::from_secs(10);
        let loaded = Loaded::new(&name, Shape::Below, &behind.options, deadline);
        let outcome = loaded.under_load(&name, 3, || {
            behind.cutter.set(Mode::CutWithin(600_000));
            pause(2500);
            behind.cutter.set(Mode::Pass);
            for _ in 0..5 {
                behind.cutter.cut();
                pause(200);
            }
        });
        println!("{name}: {} connections were cut", behind.cutter.cuts());
        assert!(behind.cutter.cuts() > 10, "{name}: too few were cut");
        assert_eq!((outcome.read_errors, outcome.write_errors), (0, 0), "{name}");
        loaded.load.check_all_right(&name);
        loaded.end();
    }
}

/// Slow is not broken; and slower than the deadline is refused in time.
#[test]
fn a_slow_server() {
    skip_if!(cannot(REDIS).or_else(|| cannot(NBDKIT)));
    for make in Behind::all() {
        let behind = make();
        let name = format!("{}, slow", behind.name);
        let deadline = Duration::from_millis(2000);
        let loaded = Loaded::new(&name, Shape::Below, &behind.options, deadline);
        let cutter = &behind.cutter;
        let (outcome, longest) = loaded.also_probing(&name, 1, true, || {
            cutter.set(Mode::Delay(Duration::from_millis(20)));
            pause(1500);
            cutter.set(Mode::Drip(1400, Duration::from_micros(500)));
            pause(1500);
            cutter.set(Mode::Pass);
            pause(300);
        });
        assert_eq!((outcome.read_errors, outcome.write_errors), (0, 0), "{name}");
        assert!(longest < UNDISTURBED, "{name}: memory was held up for {longest:?}");
        for mode in [Mode::Hold, Mode::Swallow] {
            let name = format!("{name}, {mode:?}");
            let (outcome, longest) = loaded.also_probing(&name, 0, true, || {
                cutter.set(mode);
                pause(deadline.as_millis() as u64 * 2);
                cutter.set(Mode::Pass);
            });
            assert!(outcome.read_errors > 0, "{name}: the server was not missed");
            assert!(longest < UNDISTURBED, "{name}: memory was held up for {longest:?}");
            loaded.recovers(&name);
        }
        loaded.end();
    }
}

/// Nobody listens for longer than the deadline.
#[test]
fn connections_are_refused() {
    skip_if!(cannot(REDIS).or_else(|| cannot(NBDKIT)));
    for make in [Behind::redis, || Behind::nbd("log")] {
        let behind: Behind = make();
        let name = format!("{}, refused", behind.name);
        let deadline = Duration::from_millis(1000);
        let loaded = Loaded::new(&name, Shape::Below, &behind.options, deadline);
        let (outcome, longest) = loaded.also_probing(&name, 0, true, || {
            behind.cutter.set(Mode::Refuse);
            behind.cutter.cut();
            pause(3000);
            behind.cutter.set(Mode::Pass);
        });
        assert!(outcome.read_errors > 0, "{name}: the server was not missed");
        assert!(longest < UNDISTURBED, "{name}: memory was held up for {longest:?}");
        loaded.recovers(&name);
        loaded.end();
    }
}

/// No damage becomes a page. What the server has stays right, so that it is read again later.
#[test]
fn answers_are_wrong() {
    skip_if!(cannot(REDIS).or_else(|| cannot(NBDKIT)));
    for make in Behind::all() {
        let behind = make();
        // Nothing moves: what is read wrongly is not written anywhere.
        let options = format!("{},promote=never", behind.options);
        let name = format!("{}, wrong", behind.name);
        let loaded = Loaded::new(&name, Shape::Below, &options, Duration::from_millis(2000));
        let mut failed = 0;
        for damage in
            [Damage::Flip, Damage::Earlier, Damage::Shorten, Damage::Absent, Damage::FlipAnywhere]
        {
            if damage == Damage::Absent && behind.name != "redis" {
                continue;
            }
            let name = format!("{name}, {damage:?}");
            let before = behind.cutter.damaged();
            let outcome = loaded.under_load(&name, 0, || {
                behind.cutter.set(Mode::Wrong(damage, 20));
                pause(900);
                behind.cutter.set(Mode::Pass);
            });
            let damaged = behind.cutter.damaged() - before;
            println!("{name}: {damaged} answers were wrong");
            assert!(damaged > 5, "{name}: only {damaged}");
            failed += outcome.read_errors;
            // One whose answers made no sense may have been given up for a while.
            loaded.recovers(&name);
        }
        let stats = loaded.mounted.stats();
        println!("{name}: {failed} reads failed; errors {}", stats["errors"]);
        loaded.end();
    }
}

/// The same while pages move: those that were moved in a damaged state are lost, but never wrong.
#[test]
fn answers_are_wrong_while_pages_move() {
    skip_if!(cannot(REDIS).or_else(|| cannot(NBDKIT)));
    for make in Behind::all() {
        let behind = make();
        let name = format!("{}, wrong, moving", behind.name);
        let deadline = Duration::from_millis(2000);
        let options = format!("{},promote=always", behind.options);
        let loaded = Loaded::new(&name, Shape::Below, &options, deadline);
        loaded.under_load(&name, 4, || {
            for damage in [Damage::Flip, Damage::Earlier, Damage::Shorten].iter().cycle().take(12) {
                behind.cutter.set(Mode::Wrong(*damage, 30));
                pause(200);
            }
            behind.cutter.set(Mode::Pass);
        });
        let outcome = loaded.load.read_all();
        println!("{name}: {} pages were lost", outcome.read_errors);
        assert!(outcome.wrong.is_empty(), "{:#?}", outcome.wrong);
        loaded.is_well_again(&name);
        loaded.end();
    }
}
