//! `awake-ms=`: idle CPUs that do not halt while requests come.
//!
//! A single request wakes sleeping tasks on other CPUs several times: the loop worker, the
//! daemon, whoever waits for the page. Where such a CPU is halted, each wake-up is an interrupt,
//! and on a virtual machine an exit to the host: most of the latency (tests/bench/RESULTS.md).
//! A descriptor of `/dev/cpu_dma_latency` that holds 0 makes idle CPUs poll instead. It counts
//! for all CPUs of the machine and costs power, so it is asked for by option, held while
//! requests come, and given back a while after the last one. The kernel gives it back when the
//! daemon ends, however it ends.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

const DEVICE: &str = "/dev/cpu_dma_latency";
/// The kernel's `PM_QOS_CPU_LATENCY_DEFAULT_VALUE`: no demand.
const NO_DEMAND_US: i32 = 2_000_000_000;

struct Demand {
    file: File,
    /// A request came since the releasing thread last looked.
    seen: AtomicBool,
    held: AtomicBool,
    ended: AtomicBool,
}

impl Demand {
    fn set(&self, us: i32) {
        // It was possible at the start; should it fail now, requests are slower and no worse.
        let _ = (&self.file).write_all(&us.to_ne_bytes());
    }
}

/// The demand, and the thread that drops it.
pub struct Awake {
    demand: Arc<Demand>,
    releaser: Thread,
}

impl Awake {
    /// Prepares to keep CPUs awake from a request until `linger` after the last one.
    ///
    /// # Errors
    /// If the device is missing or not permitted, or there is no thread.
    pub fn new(linger: Duration) -> io::Result<Awake> {
        let file = File::options().write(true).open(DEVICE)?;
        let demand = Arc::new(Demand {
            file,
            seen: AtomicBool::new(false),
            held: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        demand.set(NO_DEMAND_US);
        let releaser = thread::Builder::new().name("awake".to_owned()).spawn({
            let demand = Arc::clone(&demand);
            move || release_when_idle(&demand, linger)
        })?;
        Ok(Awake { demand, releaser: releaser.thread().clone() })
    }

    /// A request came. Writes to shared memory only when something changes.
    pub fn touch(&self) {
        let demand = &self.demand;
        if !demand.seen.load(Ordering::Relaxed) {
            demand.seen.store(true, Ordering::Relaxed);
        }
        if !demand.held.load(Ordering::Relaxed) && !demand.held.swap(true, Ordering::Relaxed) {
            demand.set(0);
            self.releaser.unpark();
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.demand.ended.store(true, Ordering::Relaxed);
        self.demand.set(NO_DEMAND_US);
        self.releaser.unpark();
    }
}

/// Drops the demand after a time without requests. A request that comes between the two stores
/// is served as slowly as without this; the next one demands again.
fn release_when_idle(demand: &Demand, linger: Duration) {
    while !demand.ended.load(Ordering::Relaxed) {
        if !demand.held.load(Ordering::Relaxed) {
            thread::park();
            continue;
        }
        thread::sleep(linger);
        if !demand.seen.swap(false, Ordering::Relaxed) {
            demand.set(NO_DEMAND_US);
            demand.held.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demand_is_made_at_a_request_and_dropped_after_the_last() {
        let Ok(awake) = Awake::new(Duration::from_millis(5)) else {
            println!("SKIPPED: no {DEVICE}");
            return;
        };
        assert!(!awake.demand.held.load(Ordering::Relaxed));
        awake.touch();
        assert!(awake.demand.held.load(Ordering::Relaxed));
        while awake.demand.held.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        awake.touch();
        assert!(awake.demand.held.load(Ordering::Relaxed));
    }
}
