//! Tests against real servers, and against one that lies.

mod cluster;
mod figures;
mod lying;
mod single;
mod standby;
mod tls;
mod together;

use super::*;
use std::collections::HashMap;

/// Settings for a server at a port of this machine.
pub(super) fn settings(port: u16, deadline_ms: u64) -> RedisSettings {
    RedisSettings {
        server: ServerSettings {
            nodes: vec![("127.0.0.1".to_owned(), port)],
            tls: false,
            cluster: false,
            credentials: Credentials::default(),
            deadline: Duration::from_millis(deadline_ms),
        },
        volume: uuid::Uuid::new_v4(),
        run: 0x1234_5678_9abc_def0,
        connections: 4,
        replicas: 0,
    }
}

/// What an object is: never the same for two keys.
pub(super) fn value(key: Key, bytes: usize) -> Vec<u8> {
    let mut state = key.slot.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ key.number;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as u8
        })
        .collect()
}

pub(super) fn keys(slots: std::ops::Range<u64>) -> Vec<Key> {
    slots.map(|slot| Key { slot, number: slot + 7 }).collect()
}

/// Puts objects of many lengths under the keys.
pub(super) fn put(store: &RedisStore, keys: &[Key]) -> Result<(), i32> {
    let values: Vec<Vec<u8>> =
        keys.iter().map(|key| value(*key, (key.slot * 37 % 9000) as usize)).collect();
    let objects: Vec<(Key, &[u8])> =
        keys.iter().zip(&values).map(|(key, value)| (*key, &value[..])).collect();
    store.put(&objects)
}

/// Gets objects and checks each; answers how many there are.
pub(super) fn get(store: &RedisStore, keys: &[Key]) -> Result<usize, i32> {
    let mut found = 0;
    let mut seen: HashMap<usize, bool> = HashMap::new();
    let result = store.get(keys, &mut |index, got| {
        assert!(seen.insert(index, true).is_none(), "told twice");
        if let Some(got) = got {
            let key = keys[index];
            assert!(got == value(key, (key.slot * 37 % 9000) as usize), "a wrong object");
            found += 1;
        }
    });
    if result.is_ok() {
        assert_eq!(seen.len(), keys.len(), "some were not told");
    }
    result.map(|()| found)
}

pub(super) fn statistic(store: &RedisStore, name: &str) -> u64 {
    let mut found = None;
    store.statistics(&mut |own, number| {
        if own == name {
            found = Some(number);
        }
    });
    found.unwrap()
}
