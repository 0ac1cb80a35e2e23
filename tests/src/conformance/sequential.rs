//! One operation after the other, each byte compared with a model in memory.

use super::{Failure, Target};
use crate::rng::Rng;
use swapfs_format::PAGE_BYTES;

/// Largest request that is tried: more than one of the daemon's own.
const MAX_REQUEST_BYTES: u64 = (1 << 20) + 3 * PAGE_BYTES;

/// Random reads, writes, discards and flushes of whole and partial pages. The target's contents
/// at the start do not matter: they are all written first.
///
/// # Panics
/// If a byte is not what the model says.
pub fn run(target: &dyn Target, seed: u64, operations: u32) {
    let mut rng = Rng::new(seed);
    let mut model = vec![0; target.bytes() as usize];
    fill(target, &mut model, &mut rng);
    for number in 0..operations {
        let (offset, length) = range(&mut rng, target.bytes());
        let span = offset as usize..(offset + length) as usize;
        match rng.below(16) {
            0..6 => check(target, &model, offset, length, number),
            6..13 => {
                let mut data = vec![0; length as usize];
                match rng.below(4) {
                    // Pages of one byte value, as programs have them.
                    0 => data.fill(rng.next_u64() as u8),
                    _ => rng.fill(&mut data),
                }
                match target.write(offset, &data) {
                    Ok(()) => model[span].copy_from_slice(&data),
                    // Refused: nothing, or whole pages of it, may have changed. What is there
                    // now is taken over if each page is the old or the new one.
                    Err(Failure::Injected) => adopt(target, &mut model, offset, &data),
                    Err(failure) => panic!("operation {number}: write: {failure:?}"),
                }
            }
            13..15 => match target.discard(offset, length) {
                Ok(()) => model[span].fill(0),
                Err(Failure::Injected) => {
                    adopt(target, &mut model, offset, &vec![0; length as usize]);
                }
                Err(Failure::Unsupported) => check(target, &model, offset, length, number),
                Err(failure) => panic!("operation {number}: discard: {failure:?}"),
            },
            _ => match target.flush() {
                Ok(()) | Err(Failure::Injected) => {}
                Err(failure) => panic!("operation {number}: flush: {failure:?}"),
            },
        }
    }
    check(target, &model, 0, target.bytes(), operations);
}

/// Makes the target and the model the same.
fn fill(target: &dyn Target, model: &mut [u8], rng: &mut Rng) {
    rng.fill(model);
    for (index, part) in model.chunks(1 << 20).enumerate() {
        let offset = (index as u64) << 20;
        retry(|| target.write(offset, part), "fill");
    }
}

fn retry(mut operation: impl FnMut() -> Result<(), Failure>, what: &str) {
    for _ in 0..1000 {
        match operation() {
            Ok(()) => return,
            Err(Failure::Injected) => {}
            Err(failure) => panic!("{what}: {failure:?}"),
        }
    }
    panic!("{what}: failed 1000 times");
}

/// Mostly whole pages, as the kernel asks; sometimes anything.
fn range(rng: &mut Rng, bytes: u64) -> (u64, u64) {
    let limit = if rng.one_in(8) { MAX_REQUEST_BYTES } else { 16 * PAGE_BYTES }.min(bytes);
    let (mut offset, mut length) = (rng.below(bytes), 1 + rng.below(limit));
    if !rng.one_in(4) {
        offset = offset / PAGE_BYTES * PAGE_BYTES;
        length = length.next_multiple_of(PAGE_BYTES);
    }
    (offset, length.min(bytes - offset))
}

fn read(target: &dyn Target, offset: u64, length: u64) -> Vec<u8> {
    let mut found = vec![0xa5; length as usize];
    retry(|| target.read(offset, &mut found), "read");
    found
}

fn check(target: &dyn Target, model: &[u8], offset: u64, length: u64, number: u32) {
    let expected = &model[offset as usize..(offset + length) as usize];
    let found = read(target, offset, length);
    if let Some(at) = expected.iter().zip(&found).position(|(a, b)| a != b) {
        let byte = offset + at as u64;
        panic!(
            "operation {number}: read of {length} bytes at {offset}: byte {byte} (slot {}, byte \
             {} of it) is {:#04x}, not {:#04x}",
            byte / PAGE_BYTES,
            byte % PAGE_BYTES,
            found[at],
            expected[at]
        );
    }
}

/// After a refused change: each page must be the old one or the new one.
fn adopt(target: &dyn Target, model: &mut [u8], offset: u64, data: &[u8]) {
    let found = read(target, offset, data.len() as u64);
    let mut at = 0;
    while at < data.len() {
        let in_page = (offset as usize + at) % PAGE_BYTES as usize;
        let len = (PAGE_BYTES as usize - in_page).min(data.len() - at);
        let old = &mut model[offset as usize + at..][..len];
        let new = &found[at..][..len];
        assert!(
            new == old || new == &data[at..][..len],
            "slot {}: a refused change left neither the old nor the new page",
            (offset as usize + at) / PAGE_BYTES as usize
        );
        old.copy_from_slice(new);
        at += len;
    }
}
