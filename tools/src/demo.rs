//! `swapfs demo`: a throw-away volume, real swap traffic through it, every byte compared.

pub mod pattern;
pub mod plan;
pub mod progress;
pub mod report;
pub mod traffic;

use crate::down::{self, DownPolicy};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::probe::{self, Answer};
use crate::procfs::{meminfo, swaps, vmstat};
use crate::stats::Stats;
use crate::swap_off::OnSignal;
use crate::sys::swap::{Discard, MAX_PRIORITY};
use crate::sys::{fs, process};
use crate::up::{self, UpReport, UpRequest, checks};
use crate::volumes;
use progress::Progress;
use report::DemoReport;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use swapfs_format::types;
use swapfs_format::{PAGE_BYTES, size::human};
use traffic::Traffic;

/// How long the last writes may take after the kernel was asked to push.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
const SETTLE_STEP: Duration = Duration::from_millis(20);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct DemoRequest {
    /// How much memory to push out.
    pub data_bytes: u64,
    /// Type of the volume; `None`: the default one.
    pub type_name: Option<String>,
    /// `KEY=VALUE,...` for the volume.
    pub options: String,
    /// Where the image lies while the demo runs.
    pub directory: PathBuf,
}

/// The volume of the demo: taken down and removed when this is dropped, whatever happened.
struct Throwaway {
    image: PathBuf,
    mount: Option<PathBuf>,
}

impl Throwaway {
    /// Takes everything down. Goes on through Ctrl-C: half a volume is worse than a wait.
    fn finish(&mut self) -> Result<(), Failure> {
        if let Some(mount) = self.mount.take()
            && let Some(volume) = volumes::at(&mount)?
        {
            let policy = DownPolicy { force: true, on_signal: OnSignal::GoOn };
            let report = down::take_down(&volume, policy)?;
            for warning in report.warnings {
                eprintln!("swapfs: {}: warning: {warning}", mount.display());
            }
        }
        match std::fs::remove_file(&self.image) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::os(self.image.display(), "remove", &error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        if let Err(failure) = self.finish() {
            eprintln!("swapfs: while taking the demo down: {failure}");
        }
    }
}

/// Runs the whole demo and takes everything down again.
///
/// # Errors
/// If it could not be carried out, or was interrupted. Bad pages are no error here but in the
/// report.
pub fn run(request: &DemoRequest, interrupt: &Interrupt) -> Result<DemoReport, Failure> {
    checks::machine()?;
    let directory = check_directory(&request.directory)?;
    let plan = make_plan(request, &directory)?;
    if let Some(lowered) = &plan.lowered {
        eprintln!("memory: {lowered}");
    }
    // Our own code and bookkeeping must not need the swap that we test. The pattern is mapped
    // later, and stays swappable.
    if let Err(error) = process::lock_present_memory() {
        eprintln!("swapfs: demo: warning: cannot lock its own memory: {error}");
    }
    let image = directory.join(format!("swapfs-demo-{}.img", std::process::id()));
    if image.exists() {
        return Err(Failure::new(image.display(), "is in the way: remove it"));
    }
    let mut throwaway = Throwaway { image: image.clone(), mount: None };
    let up = up::bring_up(
        &UpRequest {
            image,
            size_bytes: Some(plan.volume_bytes),
            type_name: request.type_name.clone(),
            members: Vec::new(),
            priority: Some(MAX_PRIORITY),
            discard: Discard::Off,
            options: request.options.clone(),
            transport: None,
            enable_uring: false,
            mount_point: None,
            swap: true,
        },
        interrupt,
    )?;
    throwaway.mount = Some(up.mount.clone());
    println!("{up}");
    let report = exercise(plan.data_bytes, &up, interrupt);
    throwaway.finish()?;
    report
}

/// There, and on a disk: pages of a file in tmpfs are themselves swapped.
fn check_directory(directory: &Path) -> Result<PathBuf, Failure> {
    let failure =
        |error: &io::Error| Failure::os(directory.display(), "put the image there", error);
    let absolute = std::fs::canonicalize(directory).map_err(|error| failure(&error))?;
    let file_system = fs::file_system(&absolute).map_err(|error| failure(&error))?;
    if file_system.in_memory {
        return Err(Failure::new(
            directory.display(),
            "is on tmpfs, whose pages are themselves swapped: a swap area there deadlocks; name a \
             directory on a disk with --dir",
        ));
    }
    Ok(absolute)
}

fn make_plan(request: &DemoRequest, directory: &Path) -> Result<plan::Plan, Failure> {
    let spec = request.type_name.as_deref().and_then(types::find).unwrap_or(types::TYPES[0]);
    let free_bytes = if spec.ghost {
        None
    } else {
        let answer = fs::file_system(directory)
            .map_err(|error| Failure::os(directory.display(), "look at the file system", &error))?;
        Some(answer.free_bytes)
    };
    plan::plan(request.data_bytes, meminfo::read()?.available_bytes, free_bytes)
}

/// The traffic, between `up` and `down`. The memory is given back before `down`, so that swapoff
/// has nothing to read.
fn exercise(data_bytes: u64, up: &UpReport, interrupt: &Interrupt) -> Result<DemoReport, Failure> {
    let page_count = (data_bytes / PAGE_BYTES) as usize;
    let seed =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    let mut traffic = Traffic::new(page_count, seed, interrupt)?;
    let mut progress = Progress::begin("fill memory", page_count);
    traffic.fill(&mut progress)?;
    progress.end();

    let areas_before = swaps::read()?;
    let counters_before = vmstat::read()?;
    let stats_before = ask(&up.mount)?;
    let mut progress = Progress::begin("push it out", page_count);
    traffic.push_out(&mut progress)?;
    let stats_out = settle(&up.mount, interrupt)?;
    let out_time = progress.end();

    let mut progress = Progress::begin("free what is out", page_count);
    let stayed_pages = traffic.evict(&mut progress)?;
    progress.end();
    let areas_out = swaps::read()?;
    let counters_out = vmstat::read()?;
    let stats_evicted = ask(&up.mount)?;

    let mut progress = Progress::begin("read it back", page_count);
    let verdict = traffic.verify(&mut progress)?;
    let in_time = progress.end();
    let stats = ask(&up.mount)?;
    Ok(DemoReport {
        page_count: page_count as u64,
        out_time,
        in_time,
        stayed_pages,
        out_counters: counters_out.since(&counters_before),
        in_counters: vmstat::read()?.since(&counters_out),
        written_bytes: stats_out.bytes.write.saturating_sub(stats_before.bytes.write),
        read_bytes: stats.bytes.read.saturating_sub(stats_evicted.bytes.read),
        stats: Some(stats),
        grown: report::growth(&areas_before, &areas_out),
        device: up.device.clone(),
        verdict,
    })
}

/// Waits until no request is in flight and none has come since the last look.
fn settle(mount: &Path, interrupt: &Interrupt) -> Result<Stats, Failure> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut last = ask(mount)?;
    loop {
        interrupt.check("wait for the writes to end")?;
        thread::sleep(SETTLE_STEP);
        let now = ask(mount)?;
        if now.in_flight == 0 && now.requests.write == last.requests.write {
            return Ok(now);
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                mount.display(),
                format_args!(
                    "writes have not ended after {} s: {} are in flight, {} are written",
                    SETTLE_LIMIT.as_secs(),
                    now.in_flight,
                    human(now.bytes.write)
                ),
            ));
        }
        last = now;
    }
}

fn ask(mount: &Path) -> Result<Stats, Failure> {
    match probe::ask_within(mount, SETTLE_LIMIT) {
        Answer::Stats(stats) => Ok(*stats),
        Answer::Silent => Err(Failure::new(mount.display(), "the daemon does not answer")),
        Answer::Dead => Err(Failure::new(mount.display(), "the daemon has died")),
        Answer::Unreadable(why) => Err(Failure::new(mount.display(), why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_never_on_tmpfs() {
        let failure = check_directory(Path::new("/dev/shm")).unwrap_err().to_string();
        assert!(failure.contains("is on tmpfs") && failure.contains("--dir"), "{failure}");
        assert!(check_directory(Path::new("/var/tmp")).is_ok());
        let missing = check_directory(Path::new("/no/such/dir")).unwrap_err().to_string();
        assert!(missing.contains("No such file"), "{missing}");
    }

    #[test]
    fn a_throwaway_removes_its_image() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, b"x").unwrap();
        drop(Throwaway { image: image.clone(), mount: None });
        assert!(!image.exists());
    }
}
