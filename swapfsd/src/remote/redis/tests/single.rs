//! One server: objects come and go, it stops and comes back, it is full, it refuses us.

use super::*;
use crate::remote::testing::RedisServer;
use crate::sys::network_heap;

#[test]
fn objects_come_and_go() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let store = RedisStore::new(settings(server.port, 5000)).unwrap();
    store.check().unwrap();
    let all = keys(0..500);
    assert_eq!(get(&store, &all), Ok(0));
    put(&store, &all).unwrap();
    assert_eq!(get(&store, &all), Ok(500));
    store.remove(&all[..100]).unwrap();
    assert_eq!(get(&store, &all), Ok(400));
    assert_eq!(store.put(&[]), Ok(()));
    let large = vec![7u8; 700 << 10];
    let key = Key { slot: 9999, number: u64::MAX };
    store.put(&[(key, &large)]).unwrap();
    let mut same = false;
    store.get(&[key], &mut |_, got| same = got == Some(&large[..])).unwrap();
    assert!(same);
    assert_eq!(statistic(&store, "redis_put_objects"), 501);
    assert_eq!(statistic(&store, "redis_missing_objects"), 600);
    let mark = server.cli(&["get", &format!("swapfs:{}:mark", store.shared.settings.volume)]);
    assert!(mark.contains("\"boot_id\"") && mark.contains("123456789abcdef0"), "{mark}");
    assert_eq!(store.clear(None), Ok(401));
    assert_eq!(server.cli(&["dbsize"]), "0");
}

#[test]
fn many_threads_share_few_connections() {
    let Some(server) = RedisServer::start(&[]) else { return };
    network_heap::start(64 << 20).unwrap();
    let store = RedisStore::new(settings(server.port, 10_000)).unwrap();
    let round = |thread: u64, round: u64| {
        let own = keys(thread * 10_000 + round * 64..thread * 10_000 + (round + 1) * 64);
        put(&store, &own).unwrap();
        assert_eq!(get(&store, &own), Ok(64));
        store.remove(&own).unwrap();
        assert_eq!(get(&store, &own), Ok(0));
    };
    std::thread::scope(|scope| {
        for thread in 0..12 {
            let round = &round;
            scope.spawn(move || (0..20).for_each(|number| round(thread, number)));
        }
    });
    assert_eq!(statistic(&store, "redis_connects"), 4);
    assert_eq!(statistic(&store, "redis_lost_connections"), 0);
    assert_eq!(server.cli(&["dbsize"]), "1");
}

#[test]
fn requests_take_their_memory_from_the_pool() {
    let Some(server) = RedisServer::start(&[]) else { return };
    network_heap::start(64 << 20).unwrap();
    let store = RedisStore::new(settings(server.port, 10_000)).unwrap();
    let all = keys(0..64);
    let values: Vec<Vec<u8>> = all.iter().map(|key| value(*key, 4096)).collect();
    let objects: Vec<(Key, &[u8])> =
        all.iter().zip(&values).map(|(key, value)| (*key, &value[..])).collect();
    let round = || {
        store.put(&objects).unwrap();
        store.get(&all, &mut |_, got| assert!(got.is_some())).unwrap();
        store.remove(&all).unwrap();
    };
    for _ in 0..20 {
        round();
    }
    let path = crate::sys::alloc::thread_allocations();
    for _ in 0..100 {
        round();
    }
    assert_eq!(crate::sys::alloc::thread_allocations(), path, "the system's allocator was asked");
}

#[test]
fn a_server_that_stops_and_comes_back() {
    let Some(mut server) = RedisServer::start(&[]) else { return };
    let store = RedisStore::new(settings(server.port, 3000)).unwrap();
    let all = keys(0..200);
    put(&store, &all).unwrap();
    server.restart();
    // Memory is gone, but requests go on over new connections.
    assert_eq!(get(&store, &all), Ok(0));
    put(&store, &all).unwrap();
    assert_eq!(get(&store, &all), Ok(200));
    server.kill();
    let started = Instant::now();
    assert!(get(&store, &all).is_err());
    let first = started.elapsed();
    assert!(first > Duration::from_millis(2500) && first < Duration::from_millis(8000));
    // Now it is known that there is none.
    let started = Instant::now();
    assert_eq!(get(&store, &all), Err(libc::ECONNREFUSED));
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
    server.restart();
    let until = Instant::now() + Duration::from_secs(5);
    while put(&store, &all).is_err() {
        assert!(Instant::now() < until, "the server is back, and not used");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(get(&store, &all), Ok(200));
}

#[test]
fn a_server_that_hangs_is_waited_for_until_the_deadline() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let store = RedisStore::new(settings(server.port, 2000)).unwrap();
    let all = keys(0..64);
    put(&store, &all).unwrap();
    server.signal(libc::SIGSTOP);
    let started = Instant::now();
    assert_eq!(get(&store, &all), Err(libc::ETIMEDOUT));
    let waited = started.elapsed();
    let bounds = Duration::from_millis(1900)..Duration::from_millis(2300);
    assert!(bounds.contains(&waited), "{waited:?}");
    server.signal(libc::SIGCONT);
    let until = Instant::now() + Duration::from_secs(5);
    while get(&store, &all) != Ok(64) {
        assert!(Instant::now() < until, "the server is back, and not used");
    }
    // A short stop is waited for.
    server.signal(libc::SIGSTOP);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| get(&store, &all));
        std::thread::sleep(Duration::from_millis(500));
        server.signal(libc::SIGCONT);
        assert_eq!(asked.join().unwrap(), Ok(64));
    });
}

#[test]
fn connections_that_are_cut_under_load() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let store = RedisStore::new(settings(server.port, 5000)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                let own = keys(thread * 1000..thread * 1000 + 64);
                while !stop.load(Ordering::Relaxed) {
                    put(store, &own).unwrap();
                    assert_eq!(get(store, &own), Ok(64));
                    store.remove(&own[..32]).unwrap();
                    assert_eq!(get(store, &own), Ok(32));
                }
            });
        }
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(25));
            server.cli(&["client", "kill", "type", "normal", "skipme", "yes"]);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(statistic(&store, "redis_lost_connections") > 0);
}

#[test]
fn a_server_without_room() {
    let Some(server) = RedisServer::start(&["--maxmemory", "3mb"]) else { return };
    let store = RedisStore::new(settings(server.port, 3000)).unwrap();
    store.check().unwrap();
    let mut full = false;
    for batch in 0..40 {
        match put(&store, &keys(batch * 64..(batch + 1) * 64)) {
            Ok(()) => {}
            Err(errno) => {
                assert_eq!(errno, libc::ENOSPC);
                full = true;
                break;
            }
        }
    }
    assert!(full);
    assert_eq!(get(&store, &keys(0..64)), Ok(64));
    assert_eq!(statistic(&store, "redis_lost_connections"), 0);
    // Nor does one that is full forget that the volume is in use.
    let age = || {
        let volume = list(&store.shared.settings.server).unwrap().remove(0);
        mark::now_seconds() - volume.mark.unwrap().seen
    };
    let name = store.shared.names.mark().to_owned();
    let before = (mark::TTL_MS - 100_000).to_string();
    assert_eq!(server.cli(&["pexpire", &name, &before]), "1");
    assert!(age() >= 99, "{}", age());
    store.check().unwrap();
    assert!(age() < 60, "{}", age());
    // As does a successor, for whose mark there is no room.
    assert_eq!(server.cli(&["pexpire", &name, &before]), "1");
    let successor = RedisStore::new(store.shared.settings.clone()).unwrap();
    successor.check().unwrap();
    assert!(age() < 60, "{}", age());
}

#[test]
fn passwords() {
    let Some(server) = RedisServer::start(&["--requirepass", "secret"]) else { return };
    let mut settings = settings(server.port, 1000);
    let store = RedisStore::new(settings.clone()).unwrap();
    assert_eq!(store.check(), Err(libc::EACCES));
    settings.server.credentials.password = Some("wrong".to_owned());
    let store = RedisStore::new(settings.clone()).unwrap();
    assert_eq!(put(&store, &keys(0..3)), Err(libc::EACCES));
    settings.server.credentials.password = Some("secret".to_owned());
    let store = RedisStore::new(settings.clone()).unwrap();
    store.check().unwrap();
    put(&store, &keys(0..3)).unwrap();
    // A user who may just do what is needed to serve, and then what `swapfs remote gc` needs.
    let user = ["~swapfs:*", "+set", "+get", "+unlink", "+scan", "+ping", "+strlen"];
    let mut rules = vec!["-a", "secret", "acl", "setuser", "far", "on", ">far"];
    rules.extend(user);
    server.cli(&rules);
    settings.server.credentials = Credentials {
        username: Some("far".into()),
        password: Some("far".into()),
        ..Default::default()
    };
    let store = RedisStore::new(settings.clone()).unwrap();
    store.check().unwrap();
    // The mark is written anew, since it can't be made fresh.
    store.check().unwrap();
    assert_eq!(get(&store, &keys(0..3)), Ok(3));
    assert!(list(&settings.server).unwrap_err().contains("NOPERM"));
    server.cli(&["-a", "secret", "acl", "setuser", "far", "+pexpire", "+pttl"]);
    store.check().unwrap();
    assert_eq!(list(&settings.server).unwrap().len(), 1);
    assert_eq!(store.clear(None), Ok(3));
}

#[test]
fn replicas_are_waited_for() {
    let Some(server) = RedisServer::start(&["--repl-diskless-sync-delay", "0"]) else { return };
    let mut settings = settings(server.port, 2000);
    settings.replicas = 1;
    let store = RedisStore::new(settings).unwrap();
    let started = Instant::now();
    assert_eq!(put(&store, &keys(0..10)), Err(libc::ENOSPC));
    assert!(started.elapsed() < Duration::from_millis(6000), "{:?}", started.elapsed());
    let port = server.port.to_string();
    let Some(replica) = RedisServer::start(&["--replicaof", "127.0.0.1", &port]) else { return };
    let until = Instant::now() + Duration::from_secs(20);
    while !replica.cli(&["info", "replication"]).contains("master_link_status:up") {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(20));
    }
    put(&store, &keys(0..200)).unwrap();
    assert_eq!(get(&store, &keys(0..200)), Ok(200));
    assert!(statistic(&store, "redis_put_objects") >= 200);
}

#[test]
fn what_is_left_is_listed_and_removed() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let first = settings(server.port, 3000);
    let mut second = settings(server.port, 3000);
    second.volume = first.volume;
    second.run = 2;
    let other = settings(server.port, 3000);
    for settings in [&first, &second, &other] {
        let store = RedisStore::new(settings.clone()).unwrap();
        put(&store, &keys(0..1500)).unwrap();
        store.check().unwrap();
    }
    server.cli(&["set", "swapfs:of:another", "x"]);
    let volumes = list(&first.server).unwrap();
    assert_eq!(volumes.len(), 2);
    let own = volumes.iter().find(|volume| volume.volume == first.volume).unwrap();
    assert_eq!(own.runs.iter().map(|run| run.run).collect::<Vec<_>>(), [2, first.run]);
    assert!(own.runs.iter().all(|run| run.keys == 1500 && run.bytes > 1 << 20));
    assert_eq!(own.mark.as_ref().unwrap().pid, std::process::id());
    // The mark goes only when it is stale.
    let mut told = 0;
    let progress = &mut |number| told = number;
    assert_eq!(remove(&first.server, first.volume, &[first.run], progress), Ok(1500));
    assert_eq!(told, 1500);
    assert!(mark_of(&first.server, first.volume).unwrap().unwrap().age < FRESH);
    let name = format!("swapfs:{}:mark", first.volume);
    let ttl_ms = (mark::TTL_MS - FRESH.as_millis() as i64 - 1).to_string();
    server.cli(&["pexpire", &name, &ttl_ms]);
    assert!(mark_of(&first.server, first.volume).unwrap().unwrap().age >= FRESH);
    assert_eq!(remove(&first.server, first.volume, &[7, 2], &mut |_| {}), Ok(1500));
    assert_eq!(mark_of(&first.server, first.volume), Ok(None));
    assert_eq!(list(&first.server).unwrap().len(), 1);
    assert_eq!(server.cli(&["dbsize"]), "1502");
    // One that says nothing of how fresh it is, is none.
    server.cli(&["set", &name, "{}"]);
    assert_eq!(mark_of(&first.server, first.volume), Ok(None));
}

#[test]
fn settings_that_make_no_sense() {
    let mut two = settings(1, 1000);
    two.server.nodes.push(("127.0.0.1".to_owned(), 2));
    assert!(RedisStore::new(two).unwrap_err().to_string().contains("cluster=on"));
    let mut none = settings(1, 1000);
    none.connections = 0;
    assert!(RedisStore::new(none).is_err());
    // Nothing listens there, and that is no error yet.
    let store = RedisStore::new(settings(1, 300)).unwrap();
    assert_eq!(store.check(), Err(libc::ECONNREFUSED));
}
