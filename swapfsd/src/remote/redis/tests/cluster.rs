//! A cluster: objects go to all masters, a master dies or hangs, slots move.

use super::*;
use crate::remote::testing::start_cluster;

fn cluster_settings(port: u16, deadline_ms: u64) -> RedisSettings {
    let mut settings = settings(port, deadline_ms);
    settings.server.cluster = true;
    settings
}

#[test]
fn objects_are_on_all_masters_and_a_master_that_dies_is_replaced() {
    let Some(mut servers) = start_cluster(2000) else { return };
    let mut settings = cluster_settings(servers[0].port, 20_000);
    settings.replicas = 1;
    let store = RedisStore::new(settings.clone()).unwrap();
    store.check().unwrap();
    let all = keys(0..600);
    put(&store, &all).unwrap();
    assert_eq!(get(&store, &all), Ok(600));
    for server in &servers[..3] {
        assert!(server.cli(&["dbsize"]).parse::<u32>().unwrap() > 100);
    }
    // The node that was named dies, and so does what it held but on its replica.
    servers[0].kill();
    let started = Instant::now();
    assert_eq!(get(&store, &all), Ok(600));
    println!("after a master's death: {:?}", started.elapsed());
    // Nobody replicates the new master, so nothing can be put as it was asked for.
    settings.replicas = 0;
    settings.server.nodes.push(("127.0.0.1".to_owned(), servers[2].port));
    let store = RedisStore::new(settings).unwrap();
    let more = keys(1000..1400);
    put(&store, &more).unwrap();
    assert_eq!(get(&store, &more), Ok(400));
    store.remove(&more).unwrap();
    assert_eq!(get(&store, &more), Ok(0));
    assert_eq!(store.clear(None), Ok(600));
}

#[test]
fn a_master_that_hangs_is_replaced_too() {
    let Some(servers) = start_cluster(2000) else { return };
    let mut settings = cluster_settings(servers[1].port, 20_000);
    // So that replicas have it all.
    settings.replicas = 1;
    let store = RedisStore::new(settings.clone()).unwrap();
    let all = keys(0..300);
    put(&store, &all).unwrap();
    servers[0].signal(libc::SIGSTOP);
    let started = Instant::now();
    assert_eq!(get(&store, &all), Ok(300));
    println!("after a master hangs: {:?}", started.elapsed());
    servers[0].signal(libc::SIGCONT);
    settings.replicas = 0;
    let store = RedisStore::new(settings).unwrap();
    put(&store, &keys(500..900)).unwrap();
    assert_eq!(get(&store, &keys(500..900)), Ok(400));
}

#[test]
fn without_a_replica_requests_fail_by_the_deadline_and_then_at_once() {
    let Some(mut servers) = start_cluster(1000) else { return };
    let store = RedisStore::new(cluster_settings(servers[0].port, 2500)).unwrap();
    let all = keys(0..200);
    put(&store, &all).unwrap();
    for server in &servers {
        server.cli(&["config", "set", "cluster-require-full-coverage", "no"]);
        server.cli(&["config", "set", "cluster-replica-no-failover", "yes"]);
    }
    servers[0].kill();
    let started = Instant::now();
    assert!(get(&store, &all).is_err());
    assert!(started.elapsed() < Duration::from_millis(8000), "{:?}", started.elapsed());
    // Others go on, also at the same time.
    let spent: Vec<Duration> = all
        .iter()
        .map(|key| {
            let started = Instant::now();
            let _ = get(&store, &[*key]);
            started.elapsed()
        })
        .collect();
    let quick = spent.iter().filter(|spent| **spent < Duration::from_millis(600)).count();
    println!("{quick} of {} were quick, the longest took {:?}", all.len(), spent.iter().max());
    assert!(quick >= 195, "{spent:?}");
    let found = all.iter().filter(|key| get(&store, &[**key]) == Ok(1)).count();
    assert!(found > 100 && found < 200, "{found}");
}

#[test]
fn slots_that_move_are_followed() {
    let Some(servers) = start_cluster(5000) else { return };
    let store = RedisStore::new(cluster_settings(servers[0].port, 10_000)).unwrap();
    let all = keys(0..300);
    put(&store, &all).unwrap();
    let id = |index: usize| servers[index].cli(&["cluster", "myid"]);
    let node = format!("127.0.0.1:{}", servers[0].port);
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| {
            std::process::Command::new("redis-cli")
                .args(["--cluster", "reshard", &node, "--cluster-from", &id(0), "--cluster-to"])
                .args([&id(1), "--cluster-slots", "3000", "--cluster-yes"])
                .output()
                .unwrap()
        });
        let mut rounds = 0;
        while !moved.is_finished() {
            assert_eq!(get(&store, &all), Ok(300));
            put(&store, &all).unwrap();
            rounds += 1;
        }
        let output = moved.join().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        println!("{rounds} rounds, {} redirects", statistic(&store, "redis_redirects"));
    });
    assert!(statistic(&store, "redis_redirects") > 0);
    assert_eq!(store.clear(None), Ok(300));
}
