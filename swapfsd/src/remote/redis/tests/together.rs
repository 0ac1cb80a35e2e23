//! Small requests of many threads, which travel together: each has what it asked for, whatever
//! becomes of those that travel with it.

use super::*;
use crate::remote::testing::{RedisServer, start_cluster};
use crate::sys::network_heap;

/// More than lead at a time, so that some are carried.
const THREADS: u64 = 16;
/// What tests allow for beside the deadline, on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Has all threads ask for keys of `all`, one to four at a time, as long as `goes_on` says; `each`
/// is told the keys, what came of it, and how long it took.
fn ask(
    store: &RedisStore,
    all: &[Key],
    goes_on: impl Fn(u64) -> bool + Sync,
    each: impl Fn(&[Key], Result<usize, i32>, Duration) + Sync,
) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (goes_on, each) = (&goes_on, &each);
            scope.spawn(move || {
                let mut round = 0;
                while goes_on(round) {
                    let count = 1 + (round % 4) as usize;
                    let first = (thread * 31 + round * 7) as usize % (all.len() - count);
                    let keys = &all[first..first + count];
                    let started = Instant::now();
                    let result = get(store, keys);
                    each(keys, result, started.elapsed());
                    round += 1;
                }
            });
        }
    });
}

/// Objects, every tenth of which is not there; some are too long to be carried.
fn some(store: &RedisStore) -> Vec<Key> {
    let all = keys(0..500);
    put(store, &all).unwrap();
    let absent: Vec<Key> = all.iter().copied().filter(|key| key.slot.is_multiple_of(10)).collect();
    store.remove(&absent).unwrap();
    all
}

fn assert_right(keys: &[Key], result: Result<usize, i32>) {
    assert_eq!(result, Ok(keys.iter().filter(|key| !key.slot.is_multiple_of(10)).count()));
}

#[test]
fn each_has_what_it_asked_for() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let store = RedisStore::new(settings(server.port, 20_000)).unwrap();
    let all = some(&store);
    let carried = || statistic(&store, "redis_carried_requests");
    let until = Instant::now() + Duration::from_secs(60);
    while carried() == 0 && Instant::now() < until {
        store.shared.convoy.gather();
        ask(&store, &all, |round| round < 200, |keys, result, _| assert_right(keys, result));
    }
    assert!(carried() > 0, "none travelled with others");
    assert_eq!(statistic(&store, "redis_connects"), 4);
    assert_eq!(statistic(&store, "redis_lost_connections"), 0);
    println!("{} of {} were carried", carried(), statistic(&store, "redis_requests"));
}

#[test]
fn they_take_their_memory_from_the_pool() {
    let Some(server) = RedisServer::start(&[]) else { return };
    network_heap::start(64 << 20).unwrap();
    let store = RedisStore::new(settings(server.port, 20_000)).unwrap();
    let all = some(&store);
    std::thread::scope(|scope| {
        for thread in 0..THREADS as usize {
            let (store, all) = (&store, &all);
            scope.spawn(move || {
                let round = |round: usize| {
                    let first = (thread * 31 + round) % (all.len() - 4);
                    store.get(&all[first..first + 1 + round % 4], &mut |_, _| {}).unwrap();
                };
                (0..20).for_each(round);
                let before = crate::sys::alloc::thread_allocations();
                (20..200).for_each(round);
                let after = crate::sys::alloc::thread_allocations();
                assert_eq!(after, before, "the system's allocator was asked");
            });
        }
    });
}

#[test]
fn connections_that_are_cut() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let store = RedisStore::new(settings(server.port, 10_000)).unwrap();
    let all = some(&store);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (store, stop, all) = (&store, &stop, &all);
        scope.spawn(move || {
            ask(
                store,
                all,
                |_| !stop.load(Ordering::Relaxed),
                |keys, result, _| assert_right(keys, result),
            );
        });
        // Also if something fails here, or they would go on for ever.
        let _stop = OnDrop(|| stop.store(true, Ordering::Relaxed));
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(25));
            server.cli(&["client", "kill", "type", "normal", "skipme", "yes"]);
            // Also while they travel together again.
            store.shared.convoy.gather();
        }
    });
    assert!(statistic(&store, "redis_lost_connections") > 0);
}

#[test]
fn a_server_that_hangs_keeps_nobody_beyond_the_deadline() {
    const DEADLINE: Duration = Duration::from_secs(2);
    let Some(server) = RedisServer::start(&[]) else { return };
    let store = RedisStore::new(settings(server.port, DEADLINE.as_millis() as u64)).unwrap();
    let all = some(&store);
    server.signal(libc::SIGSTOP);
    ask(
        &store,
        &all,
        |round| round < 2,
        |_, result, took| {
            assert!(result.is_err() && took < DEADLINE + SLACK, "{result:?} after {took:?}");
        },
    );
    server.signal(libc::SIGCONT);
    let until = Instant::now() + Duration::from_secs(10);
    while get(&store, &all[1..2]) != Ok(1) {
        assert!(Instant::now() < until, "the server is back, and not used");
    }
}

#[test]
fn a_server_that_stops_for_a_moment_is_waited_for() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let store = RedisStore::new(settings(server.port, 20_000)).unwrap();
    let all = some(&store);
    server.signal(libc::SIGSTOP);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Longer than those wait who travel together.
            std::thread::sleep(TOGETHER + Duration::from_millis(300));
            server.signal(libc::SIGCONT);
        });
        ask(&store, &all, |round| round < 20, |keys, result, _| assert_right(keys, result));
    });
}

#[test]
fn one_master_that_hangs_keeps_nobody_beyond_the_deadline() {
    const DEADLINE: Duration = Duration::from_secs(3);
    // So long that the cluster does not know better during the test.
    let Some(servers) = start_cluster(60_000) else { return };
    let mut settings = settings(servers[0].port, DEADLINE.as_millis() as u64);
    settings.server.cluster = true;
    settings.connections = 8;
    let store = RedisStore::new(settings).unwrap();
    let all = some(&store);
    ask(&store, &all, |round| round < 100, |keys, result, _| assert_right(keys, result));
    println!("{} were carried", statistic(&store, "redis_carried_requests"));
    servers[0].signal(libc::SIGSTOP);
    let stop = Instant::now() + DEADLINE;
    let failed = AtomicUsize::new(0);
    ask(
        &store,
        &all,
        |_| Instant::now() < stop,
        |_, result, took| {
            failed.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
            assert!(took < DEADLINE + SLACK, "{result:?} after {took:?}");
        },
    );
    assert!(failed.load(Ordering::Relaxed) > 0);
    servers[0].signal(libc::SIGCONT);
    let until = Instant::now() + Duration::from_secs(20);
    let is_back = || all[1..9].iter().all(|key| get(&store, &[*key]) == Ok(1));
    while !is_back() {
        assert!(Instant::now() < until, "the master is back, and not used");
    }
    ask(&store, &all, |round| round < 50, |keys, result, _| assert_right(keys, result));
}
