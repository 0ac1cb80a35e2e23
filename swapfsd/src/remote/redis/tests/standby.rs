//! A store that stands by: it has no connections and leaves no mark; and what `clear` leaves.

use super::*;
use crate::remote::testing::RedisServer;
use std::sync::Weak;

/// Until something is so, which must be soon.
fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Drops a store, and waits for its threads.
fn end(store: RedisStore) {
    let shared: Weak<Shared> = Arc::downgrade(&store.shared);
    let pool: Weak<Pool> = Arc::downgrade(&store.shared.pool);
    drop(store);
    soon("its threads end", || shared.strong_count() == 0 && pool.strong_count() == 0);
}

#[test]
fn nothing_is_done_before_it_is_asked_for() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let standby = RedisStore::new(settings(server.port, 5000)).unwrap();
    let mark = format!("swapfs:{}:mark", standby.shared.settings.volume);
    let has_mark = || server.cli(&["exists", &mark]) == "1";
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(statistic(&standby, "redis_connects"), 0);
    assert_eq!(statistic(&standby, "live_connections"), 0);
    assert!(!has_mark());
    // It takes over, long after it was made, and is not given up for that.
    assert_eq!(get(&standby, &keys(0..10)), Ok(0));
    soon("its mark is written", has_mark);
    soon("all connections are made", || statistic(&standby, "live_connections") == 4);
    // Once the run has ended, nothing writes the mark again.
    put(&standby, &keys(0..10)).unwrap();
    assert_eq!(standby.clear(None), Ok(10));
    assert!(!has_mark());
    standby.check().unwrap();
    put(&standby, &keys(0..10)).unwrap();
    assert_eq!(server.cli(&["dbsize"]), "10");
    assert!(!has_mark());
    end(standby);
}

#[test]
fn one_that_only_clears_leaves_no_mark() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let store = RedisStore::new(settings(server.port, 5000)).unwrap();
    assert_eq!(store.clear(Some(9)), Ok(0));
    assert_eq!(store.clear(None), Ok(0));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.cli(&["dbsize"]), "0");
    end(store);
}

#[test]
fn one_that_waits_longer_than_its_deadline_still_finds_the_server() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let store = RedisStore::new(settings(server.port, 400)).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    put(&store, &keys(0..10)).unwrap();
    assert_eq!(get(&store, &keys(0..10)), Ok(10));
}

#[test]
fn threads_end_with_their_store() {
    let Some(server) = RedisServer::start(&[]) else { return };
    end(RedisStore::new(settings(server.port, 5000)).unwrap());
    let used = RedisStore::new(settings(server.port, 5000)).unwrap();
    put(&used, &keys(0..10)).unwrap();
    end(used);
    // Where nobody is.
    let vain = RedisStore::new(settings(1, 100)).unwrap();
    assert!(vain.check().is_err());
    end(vain);
}

#[test]
fn what_is_put_meanwhile_is_not_cleared() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let first = settings(server.port, 5000);
    let second = RedisSettings { run: 2, ..first.clone() };
    let (store, other) = (RedisStore::new(first).unwrap(), RedisStore::new(second).unwrap());
    store.check().unwrap();
    // Their numbers are their slots and 7.
    put(&store, &keys(0..100)).unwrap();
    put(&other, &keys(0..100)).unwrap();
    assert_eq!(store.clear(Some(0)), Ok(0));
    assert_eq!(store.clear(Some(27)), Ok(20));
    assert_eq!(get(&store, &keys(0..100)), Ok(80));
    assert_eq!(get(&store, &keys(0..20)), Ok(0));
    assert_eq!(get(&other, &keys(0..100)), Ok(100));
    // Its mark stays.
    assert_eq!(server.cli(&["dbsize"]), "181");
    let next = AtomicUsize::new(107);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let slot = next.fetch_add(1, Ordering::Relaxed) as u64 - 7;
                put(&store, &keys(slot..slot + 1)).unwrap();
            }
        });
        for _ in 0..20 {
            let below = next.load(Ordering::Relaxed) as u64;
            store.clear(Some(below)).unwrap();
            let end = next.load(Ordering::Relaxed) as u64 - 8;
            let kept = below.saturating_sub(7)..end.max(below.saturating_sub(7));
            let count = (kept.end - kept.start) as usize;
            assert_eq!(get(&store, &keys(kept)), Ok(count));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(store.clear(None).is_ok());
    assert_eq!(get(&other, &keys(0..100)), Ok(100));
}
