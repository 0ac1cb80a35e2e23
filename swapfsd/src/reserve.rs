//! Memory that the daemon gives back when the machine stands still for want of it: promise 3.
//!
//! The kernel's own part of the way of a page needs a little memory: a FUSE request in the loop
//! worker, a bio or a kiocb for the image's device. Neither the loop worker nor this daemon may
//! use the kernel's emergency reserves, so when everybody has allocated down to the minimum
//! watermark, those few allocations wait for memory that only the swap-out behind them could
//! free. The kernel's in-kernel swap devices have mempools for this; user space has none.
//!
//! So the daemon holds some memory from the start, populated and locked, and a thread that needs
//! none looks on: if free memory is as low as that and no request is done for a while, it gives
//! the memory back, piece by piece. The waiting allocations are in the kernel's retry loops and
//! succeed, requests are done, pages become free, and the memory is taken again when there is
//! plenty. Seen in the guest test `pressure`, which stood still without it.

use crate::sys::memory::{Mapping, free_bytes};
use crate::volume::Volume;
use log::info;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What is held back. The requests of a full loop queue (128) need about a tenth of it.
const RESERVE_BYTES: usize = 16 << 20;
/// It is given back piece by piece: the kernel tries some allocations (of a mempool) again only
/// every five seconds, and memory given back all at once has been taken by others by then.
const PIECE_BYTES: usize = 128 << 10;
const PIECES: usize = RESERVE_BYTES / PIECE_BYTES;
/// How often the thread looks.
const STEP: Duration = Duration::from_millis(50);
/// Steps without a request done, with memory low, before the first piece is given back.
const STALLED_STEPS: u32 = 4;
/// Steps before it is taken again.
const REFILL_STEPS: u32 = 20;
/// Memory is low below this multiple of `vm.min_free_kbytes`: the kernel's watermark boost raises
/// the minimum up to nearly four times that.
const LOW_FACTOR: u64 = 5;

static RELEASES: AtomicU64 = AtomicU64::new(0);

/// How often the reserve was given back.
#[must_use]
pub fn releases() -> u64 {
    RELEASES.load(Ordering::Relaxed)
}

/// The reserve and its thread; both end with it.
#[derive(Debug)]
pub struct Reserve {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reserve {
    /// Takes the memory and starts to look on.
    ///
    /// # Errors
    /// No memory, or no thread.
    pub fn start(volume: Arc<Volume>) -> io::Result<Reserve> {
        let mut held = Vec::with_capacity(PIECES);
        for _ in 0..PIECES {
            held.push(Mapping::new(PIECE_BYTES, true)?);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("reserve".to_owned()).spawn({
            let stop = Arc::clone(&stop);
            move || look_on(&volume, &stop, held)
        })?;
        Ok(Reserve { stop, thread: Some(thread) })
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Below this many free bytes, allocations of ordinary tasks wait, or nearly.
fn low_bytes() -> u64 {
    let text = fs::read_to_string("/proc/sys/vm/min_free_kbytes").unwrap_or_default();
    text.trim().parse().unwrap_or(4096u64) * 1024 * LOW_FACTOR
}

fn look_on(volume: &Volume, stop: &AtomicBool, mut held: Vec<Mapping>) {
    let low_bytes = low_bytes();
    let (mut done_before, mut stalled, mut waited) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(STEP);
        let done = volume.requests_done();
        let free = free_bytes();
        stalled = if done == done_before && free < low_bytes { stalled + 1 } else { 0 };
        done_before = done;
        if stalled >= STALLED_STEPS {
            waited = 0;
            if stalled == STALLED_STEPS {
                RELEASES.fetch_add(1, Ordering::Relaxed);
            }
            drop(held.pop());
        } else if held.len() < PIECES {
            waited += 1;
            if waited >= REFILL_STEPS && free > 2 * low_bytes + RESERVE_BYTES as u64 {
                info!("memory was short: {} of the reserve are taken again", PIECES - held.len());
                // May wait for memory itself: it is in nobody's way.
                while held.len() < PIECES {
                    let Ok(piece) = Mapping::new(PIECE_BYTES, true) else { break };
                    held.push(piece);
                }
                waited = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_is_a_multiple_of_the_kernels_minimum() {
        assert!(low_bytes() >= LOW_FACTOR * 1024);
    }
}
