//! Many threads at the same slots: each page that is read must be one that may be there.
//!
//! Every page written names its slot, its writer and the writer's count, in each of its 512
//! words, so a page that was put together from two is seen at once. For each slot and writer two
//! counters say how far its writes have been started and finished: a read must not find a page
//! that was not yet written, nor one older than that writer's last finished before the read.

use super::{Failure, Target};
use crate::rng::Rng;
use std::sync::atomic::{AtomicU64, Ordering};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

const THREADS: u64 = 6;
/// Few slots, so that threads meet.
const SLOTS: u64 = 96;
const MAX_SLOTS_PER_REQUEST: u64 = 20;

#[derive(Default)]
struct Progress {
    started: [AtomicU64; THREADS as usize],
    finished: [AtomicU64; THREADS as usize],
    discards: AtomicU64,
}

fn word(slot: u64, writer: u64, count: u64) -> u64 {
    slot << 48 | writer << 40 | count
}

fn fill(page: &mut [u8], slot: u64, writer: u64, count: u64) {
    for word_bytes in page.chunks_exact_mut(8) {
        word_bytes.copy_from_slice(&word(slot, writer, count).to_le_bytes());
    }
}

/// Runs the threads over the target's first slots, and a last check when they are done.
///
/// # Panics
/// If a page is found that can't be there.
pub fn run(target: &dyn Target, seed: u64, operations: u32) {
    let slots = SLOTS.min(target.bytes() / PAGE_BYTES);
    let progress: Vec<Progress> = (0..slots).map(|_| Progress::default()).collect();
    let mut zeros = vec![0; (slots * PAGE_BYTES) as usize];
    while let Err(failure) = target.write(0, &zeros) {
        assert_eq!(failure, Failure::Injected);
    }
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (progress, rng) = (&progress[..], Rng::new(seed ^ thread << 32));
            scope.spawn(move || one_thread(target, thread, progress, rng, operations));
        }
    });
    while let Err(failure) = target.read(0, &mut zeros) {
        assert_eq!(failure, Failure::Injected);
    }
    halves_of_one_page(target, seed, operations / 4);
}

fn one_thread(
    target: &dyn Target,
    thread: u64,
    progress: &[Progress],
    mut rng: Rng,
    operations: u32,
) {
    let mut buffer = vec![0; MAX_SLOTS_PER_REQUEST as usize * PAGE_LEN];
    for count in 1..=u64::from(operations) {
        let limit = if rng.one_in(3) { MAX_SLOTS_PER_REQUEST } else { 2 };
        let first = rng.below(progress.len() as u64);
        let length = (1 + rng.below(limit)).min(progress.len() as u64 - first);
        let range = &progress[first as usize..(first + length) as usize];
        let pages = &mut buffer[..length as usize * PAGE_LEN];
        let writer = thread as usize;
        match rng.below(8) {
            0..4 => {
                for ((slot, page), of_slot) in
                    (first..).zip(pages.chunks_exact_mut(PAGE_LEN)).zip(range)
                {
                    fill(page, slot, thread, count);
                    of_slot.started[writer].store(count, Ordering::SeqCst);
                }
                match target.write(first * PAGE_BYTES, pages) {
                    Ok(()) => {
                        for of_slot in range {
                            of_slot.finished[writer].store(count, Ordering::SeqCst);
                        }
                    }
                    Err(failure) => assert_eq!(failure, Failure::Injected),
                }
            }
            4 => {
                for of_slot in range {
                    of_slot.discards.fetch_add(1, Ordering::SeqCst);
                }
                match target.discard(first * PAGE_BYTES, length * PAGE_BYTES) {
                    Ok(()) | Err(Failure::Injected | Failure::Unsupported) => {}
                    Err(failure) => panic!("discard: {failure:?}"),
                }
            }
            _ => {
                // Before the read: what is finished now must not be undone.
                let finished: Vec<[u64; THREADS as usize]> = range
                    .iter()
                    .map(|of_slot| {
                        std::array::from_fn(|at| of_slot.finished[at].load(Ordering::SeqCst))
                    })
                    .collect();
                match target.read(first * PAGE_BYTES, pages) {
                    Ok(()) => {}
                    Err(Failure::Injected) => continue,
                    Err(failure) => panic!("read: {failure:?}"),
                }
                for (index, page) in pages.chunks_exact(PAGE_LEN).enumerate() {
                    check(page, first + index as u64, &range[index], &finished[index]);
                }
            }
        }
    }
}

fn check(page: &[u8], slot: u64, progress: &Progress, finished: &[u64; THREADS as usize]) {
    let mut words = page.chunks_exact(8).map(|word_bytes| {
        word_bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte))
    });
    let Some(first) = words.next() else { return };
    if let Some(at) = words.position(|word| word != first) {
        panic!("slot {slot}: a page of two: word 0 is {first:#x}, word {} differs", at + 1);
    }
    if first == 0 {
        let written = finished.iter().any(|&count| count > 0);
        let discarded = progress.discards.load(Ordering::SeqCst) > 0;
        assert!(!written || discarded, "slot {slot}: zeros, though written and never discarded");
        return;
    }
    let (found_slot, writer, count) = (first >> 48, first >> 40 & 0xff, first & 0xff_ffff_ffff);
    assert_eq!(found_slot, slot, "the page of another slot");
    let started = progress.started[writer as usize].load(Ordering::SeqCst);
    assert!(count <= started, "slot {slot}: write {count} of {writer} before it was started");
    let finished = finished[writer as usize];
    assert!(
        count >= finished,
        "slot {slot}: write {count} of thread {writer} is back, though its {finished} was finished"
    );
}

/// Two threads, each at its own half of one page: a page that is read, changed and written back
/// must not undo the other's half.
fn halves_of_one_page(target: &dyn Target, seed: u64, operations: u32) {
    let slot = seed % (target.bytes() / PAGE_BYTES);
    let half = PAGE_LEN / 2;
    std::thread::scope(|scope| {
        for side in 0..2u64 {
            scope.spawn(move || {
                let mut rng = Rng::new(seed ^ side);
                let offset = slot * PAGE_BYTES + side * half as u64;
                let (mut mine, mut found) = (vec![0; half], vec![0; half]);
                for _ in 0..operations {
                    rng.fill(&mut mine);
                    while let Err(failure) = target.write(offset, &mine) {
                        assert_eq!(failure, Failure::Injected);
                    }
                    while let Err(failure) = target.read(offset, &mut found) {
                        assert_eq!(failure, Failure::Injected);
                    }
                    assert!(found == mine, "slot {slot}: half {side} was undone by the other");
                }
            });
        }
    });
}
