//! Servers that hold pages die, hang, come back, answer slowly or wrongly, under a mounted volume and
//! a verified load: no page is ever wrong, no request takes longer than its deadline, and what does
//! not need the server goes on meanwhile. No swap is turned on.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used)]

#[path = "remote/connections.rs"]
mod connections;
#[path = "remote/credentials.rs"]
mod credentials;
#[path = "remote/servers.rs"]
mod servers;

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use swapfs_tests::mounted::{Mounted, Programs, cannot_mount, folder, wait_until};
use swapfs_tests::remote::{Load, Outcome, format_alone, format_below, probe_memory};
use swapfs_tests::rng;
use swapfs_tests::servers::cannot_run;

/// Slots of the volume that the load uses: 24 MiB, of which next to nothing compresses away.
const SLOTS: u64 = 6000;
/// Of the volume.
const SIZE: &str = "32M";
/// Room for a log of it, twice.
const EXPORT_BYTES: u64 = 96 << 20;
const THREADS: u64 = 6;
/// How much longer than its deadline a request may take, on a machine that does other things too.
const SLACK: Duration = Duration::from_secs(2);
/// What does not need the server takes no longer than this.
const UNDISTURBED: Duration = Duration::from_millis(900);
/// The slot of the page that stays in memory: beyond those of the load.
const HOT_SLOT: u64 = SLOTS + 100;
/// A top that pages leave at once, but with room for all of them, and for what the compactor has not
/// got at yet where nothing goes down.
const ROOMY_TOP: &str = "limit=128M,reserve=4M,high=3,low=2,probe=1";

fn programs() -> Programs {
    Programs::new(env!("CARGO_BIN_EXE_programs"))
}

/// Why these tests can't run here, if they can't.
fn cannot(programs: &[&str]) -> Option<String> {
    cannot_mount().map(str::to_owned).or_else(|| cannot_run(programs))
}

/// A mounted volume with a load on it.
struct Loaded {
    load: Load,
    mounted: Mounted,
    deadline: Duration,
    _folder: tempfile::TempDir,
}

/// What is under the load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A remote member below memory.
    Below,
    /// A volume of its own, with a small buffer.
    Alone,
}

impl Loaded {
    /// Formats, mounts and fills it.
    fn new(name: &str, shape: Shape, options: &str, deadline: Duration) -> Loaded {
        let seed = rng::seed(name);
        let folder = folder();
        let options = format!("{options},deadline-ms={}", deadline.as_millis());
        let formatted = match shape {
            Shape::Below => format_below(&programs(), folder.path(), SIZE, ROOMY_TOP, &options),
            Shape::Alone => {
                let options = format!("{options},buffer=8M,reserve=2M");
                format_alone(&programs(), folder.path(), SIZE, &options)
            }
        };
        let mounted = Mounted::existing(&programs(), &formatted.image, "");
        let load = Load::new(&mounted.swap_file(), 1..SLOTS + 1, THREADS, seed);
        let filled = load.write_all();
        assert_eq!((filled.write_errors, filled.wrong.len()), (0, 0), "{name}: {filled:?}");
        let loaded = Loaded { load, mounted, deadline, _folder: folder };
        wait_until("most pages to be on the server", || loaded.pages_there() > SLOTS / 2);
        loaded.load.check_all_right("at the start");
        loaded
    }

    fn tier(&self, name: &str) -> u64 {
        let stats = self.mounted.stats();
        let tiers = stats["tiers"].as_array().unwrap();
        tiers
            .iter()
            .filter(|tier| tier["order"] != 0)
            .map(|tier| tier[name].as_u64().unwrap())
            .sum()
    }

    fn pages_there(&self) -> u64 {
        self.tier("pages")
    }

    /// Runs the load, of which so many of ten requests are writes, while `meanwhile` does what it
    /// does; it may look at the load's time. Checks what is always so.
    fn under_load(&self, name: &str, writes_of_ten: u64, meanwhile: impl FnOnce()) -> Outcome {
        self.also_probing(name, writes_of_ten, false, meanwhile).0
    }

    /// The same, and a page in memory is written and read all the time: the longest of that.
    fn also_probing(
        &self,
        name: &str,
        writes_of_ten: u64,
        probing: bool,
        meanwhile: impl FnOnce(),
    ) -> (Outcome, Duration) {
        let stop = AtomicBool::new(false);
        let (outcome, longest) = std::thread::scope(|scope| {
            let stops = swapfs_tests::tiers::Stop(&stop);
            let running = scope.spawn(|| self.load.run(writes_of_ten, &stop));
            let path = self.mounted.swap_file();
            let stop = &stop;
            let prober = probing.then(|| scope.spawn(move || probe_memory(&path, HOT_SLOT, stop)));
            meanwhile();
            drop(stops);
            let longest = prober.map(|prober| prober.join().unwrap().0);
            (running.join().unwrap(), longest.unwrap_or_default())
        });
        println!(
            "{name}: {} reads, {} refused; {} writes, {} refused; the longest took {:?}; {} wrong{}",
            outcome.reads,
            outcome.read_errors,
            outcome.writes,
            outcome.write_errors,
            outcome.longest,
            outcome.wrong.len(),
            if probing { format!("; in memory at most {longest:?}") } else { String::new() }
        );
        assert!(outcome.wrong.is_empty(), "{name}: {:#?}", outcome.wrong);
        let limit = self.deadline + SLACK;
        assert!(outcome.longest < limit, "{name}: a request took {:?}", outcome.longest);
        (outcome, longest)
    }

    /// A server that has its pages serves them again, soon after it is back.
    fn recovers(&self, when: &str) {
        let since = Instant::now();
        loop {
            let outcome = self.load.read_all();
            assert!(outcome.wrong.is_empty(), "{when}: {:#?}", outcome.wrong);
            if outcome.read_errors == 0 {
                break;
            }
            if since.elapsed() > Duration::from_secs(30) {
                let stats = self.mounted.stats();
                let (tiers, backend) = (&stats["tiers"], &stats["backend"]);
                panic!("{when}: it does not recover: {outcome:?}; {tiers:#}, {backend:#}");
            }
        }
        println!("{when}: all pages could be read {:?} after it was over", since.elapsed());
    }

    /// Pages that the server has not got any more must be written again before they can be read.
    fn is_well_again(&self, when: &str) {
        wait_until("a server that takes pages", || self.load.write_all().write_errors == 0);
        self.load.check_all_right(when);
    }

    /// That nothing hung, and that nothing was allocated where it must not be; then unmounts.
    fn end(self) {
        let stats = self.mounted.stats();
        assert_eq!(stats["heap_allocations_on_io_path"], 0);
        assert_eq!(stats["hangs"].as_u64().unwrap_or(0), 0, "a worker was taken for hanging");
        assert_eq!(stats["takeovers"].as_u64().unwrap_or(0), 0, "a worker has died");
        drop(self.load);
        self.mounted.unmount();
    }
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Waits until so long after `since`.
fn until(since: Instant, time: Duration) {
    std::thread::sleep((since + time).saturating_duration_since(Instant::now()));
}
