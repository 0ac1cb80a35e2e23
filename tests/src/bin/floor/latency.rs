//! Keeping idle CPUs awake, through `/dev/cpu_dma_latency`.
//!
//! A request at depth 1 wakes sleeping tasks on other CPUs several times over. When such a CPU is
//! halted, each wake-up is an interrupt and, on a virtual machine, an exit to the host: most of
//! the latency. A descriptor of this device that holds 0 makes idle CPUs poll instead.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

const DEVICE: &str = "/dev/cpu_dma_latency";
/// The kernel's `PM_QOS_CPU_LATENCY_DEFAULT_VALUE`: no demand.
const NO_DEMAND_US: i32 = 2_000_000_000;

/// The demand, shared with the thread that drops it.
struct Demand {
    file: File,
    us: i32,
    /// A request came since the releasing thread last looked.
    seen: AtomicBool,
    held: AtomicBool,
}

impl Demand {
    /// Failure costs latency and nothing else, and it was possible at the start.
    fn set(&self, us: i32) {
        let _ = (&self.file).write_all(&us.to_ne_bytes());
    }
}

/// A demand on the wake-up latency of idle CPUs; it ends with the value.
pub(crate) struct Latency {
    demand: Arc<Demand>,
    releaser: Option<Thread>,
}

impl Latency {
    /// Demands `us`: for good without `linger`, else from a request until `linger` after the last.
    pub(crate) fn demand(us: i32, linger: Option<Duration>) -> Result<Self, String> {
        let named = |error| format!("{DEVICE}: {error}");
        let mut file = OpenOptions::new().write(true).open(DEVICE).map_err(named)?;
        file.write_all(&us.to_ne_bytes()).map_err(named)?;
        let demand = Arc::new(Demand {
            file,
            us,
            seen: AtomicBool::new(false),
            held: AtomicBool::new(true),
        });
        let mut releaser = None;
        if let Some(linger) = linger {
            let demand = Arc::clone(&demand);
            let handle = thread::Builder::new()
                .name("latency".to_owned())
                .spawn(move || release_when_idle(&demand, linger))
                .map_err(|error| format!("thread: {error}"))?;
            releaser = Some(handle.thread().clone());
        }
        Ok(Self { demand, releaser })
    }

    /// Called for each request. Writes shared memory only when something changes.
    pub(crate) fn touch(&self) {
        let Some(releaser) = &self.releaser else { return };
        if !self.demand.seen.load(Ordering::Relaxed) {
            self.demand.seen.store(true, Ordering::Relaxed);
        }
        if !self.demand.held.load(Ordering::Relaxed)
            && !self.demand.held.swap(true, Ordering::Relaxed)
        {
            self.demand.set(self.demand.us);
            releaser.unpark();
        }
    }
}

/// Drops the demand after a time without requests. A request that comes between the two stores is
/// served at the old latency; the next one demands again.
fn release_when_idle(demand: &Demand, linger: Duration) {
    loop {
        while !demand.held.load(Ordering::Relaxed) {
            thread::park();
        }
        thread::sleep(linger);
        if !demand.seen.swap(false, Ordering::Relaxed) {
            demand.set(NO_DEMAND_US);
            demand.held.store(false, Ordering::Relaxed);
        }
    }
}
