//! How fast it is, beside `redis-benchmark` in the same run. Not a test: `tests/bench/redis-client`
//! runs it. It is here since it drives the client alone, by the tests' own servers.

use super::*;
use crate::remote::testing::RedisServer;
use std::process::Command;

const BYTES: usize = 4096;

/// What `redis-benchmark` says: requests per second, and the median in microseconds.
fn floor(port: u16, clients: &str, depth: &str, requests: &str) -> (f64, f64) {
    let output = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-t", "get", "-d", "4096", "-r", "1000", "--csv"])
        .args(["-c", clients, "-P", depth, "-n", requests])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().rfind(|line| line.contains("GET")).unwrap().to_owned();
    let fields: Vec<f64> =
        line.split(',').filter_map(|field| field.trim_matches('"').parse().ok()).collect();
    (fields[0], fields[3] * 1000.0)
}

fn threads(store: &RedisStore, all: &[Key], threads: usize, batch: usize) -> f64 {
    let end = Instant::now() + Duration::from_secs(3);
    let started = Instant::now();
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let total = &total;
            scope.spawn(move || {
                let mut at = thread * 31 % all.len();
                while Instant::now() < end {
                    at = if at + batch > all.len() { 0 } else { at };
                    store
                        .get(&all[at..at + batch], &mut |_, got| {
                            assert_eq!(got.unwrap().len(), BYTES);
                        })
                        .unwrap();
                    total.fetch_add(batch, Ordering::Relaxed);
                    at += batch;
                }
            });
        }
    });
    total.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

#[test]
#[ignore = "a measurement: tests/bench/redis-client runs it"]
fn figures() {
    let Some(server) = RedisServer::start(&[]) else { return };
    crate::sys::network_heap::start(64 << 20).unwrap();
    let mut settings = settings(server.port, 30_000);
    settings.connections = 8;
    let store = RedisStore::new(settings).unwrap();
    let all = keys(0..1000);
    let values: Vec<Vec<u8>> = all.iter().map(|key| value(*key, BYTES)).collect();
    for (keys, values) in all.chunks(64).zip(values.chunks(64)) {
        let objects: Vec<(Key, &[u8])> =
            keys.iter().zip(values).map(|(key, value)| (*key, &value[..])).collect();
        store.put(&objects).unwrap();
    }
    // The benchmark's own keys.
    Command::new("redis-benchmark")
        .args(["-p", &server.port.to_string(), "-t", "set", "-d", "4096", "-r", "1000"])
        .args(["-n", "20000", "-q"])
        .output()
        .unwrap();
    let mut us = Vec::new();
    for round in 0..30_000 {
        let started = Instant::now();
        store
            .get(&all[round % 1000..round % 1000 + 1], &mut |_, got| assert!(got.is_some()))
            .unwrap();
        us.push(started.elapsed().as_nanos() as f64 / 1000.0);
    }
    us.sort_by(f64::total_cmp);
    let (mean, median) = (us.iter().sum::<f64>() / us.len() as f64, us[us.len() / 2]);
    let one = floor(server.port, "1", "1", "30000");
    println!("depth 1: ours mean {mean:.1} us, median {median:.1} us;");
    println!("   redis-benchmark -c 1: mean {:.1} us, median {:.0} us", 1e6 / one.0, one.1);
    for count in [16, 32] {
        let (ours, single) = (threads(&store, &all, count, 64), threads(&store, &all, count, 1));
        let clients = count.to_string();
        let piped = floor(server.port, &clients, "16", "400000");
        let deep = floor(server.port, &clients, "64", "400000");
        let plain = floor(server.port, &clients, "1", "100000");
        println!("{count} threads: ours {ours:.0}/s in batches of 64, {single:.0}/s one by one;");
        println!(
            "   redis-benchmark -c {count}: {:.0}/s with -P 16, {:.0}/s with -P 64, {:.0}/s with -P 1",
            piped.0, deep.0, plain.0
        );
    }
}
