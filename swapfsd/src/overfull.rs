//! The OOM killer, asked for when swap is full and the kernel cannot see it.
//!
//! The kernel calls the OOM killer when there is nothing left to reclaim. A swap area that
//! refuses writes although it has free slots (`zmem` at its `limit=`, zram at its `mem_limit`)
//! never looks full: the kernel tries page after page for ever, drops the code of running
//! programs, reads it again, and the machine stands still without anybody being killed. This was
//! seen in the guest, with zram too (tests/bench/RESULTS.md).
//!
//! So a thread looks on: if for ten seconds most writes are refused *and* all tasks of the
//! machine are stalled on memory (pressure stall information, `full`), it asks for the OOM
//! killer, as Alt-SysRq-f does. Only with `oom-when-full=on`, and only where the daemon itself
//! can't be the victim.

use crate::error::Operation;
use crate::volume::Volume;
use log::warn;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const PRESSURE: &str = "/proc/pressure/memory";
const TRIGGER: &str = "/proc/sysrq-trigger";
/// How often the thread looks.
const STEP: Duration = Duration::from_millis(500);
/// Steps in a row that have to look bad.
const BAD_STEPS: u32 = 20;
/// Part of the time, in percent, in which all tasks of the machine wait for memory: of the last
/// ten seconds, as the kernel averages it.
const STALLED_PERCENT: f64 = 40.0;

static CALLS: AtomicU64 = AtomicU64::new(0);

/// How often the OOM killer was asked for.
#[must_use]
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// The thread that looks on; ends when dropped.
#[derive(Debug)]
pub struct Overfull {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Overfull {
    /// Starts to look on. Everything is opened now: later there may be no memory for it.
    ///
    /// # Errors
    /// A kernel without pressure stall information or sysrq, or no thread.
    pub fn start(volume: Arc<Volume>) -> io::Result<Overfull> {
        let named =
            |path: &str, error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
        let pressure = File::open(PRESSURE).map_err(|error| named(PRESSURE, error))?;
        // With `psi=0` the file is there and can't be read.
        stalled_percent(&pressure).map_err(|error| named(PRESSURE, error))?;
        let trigger = File::options().write(true).open(TRIGGER);
        let trigger = trigger.map_err(|error| named(TRIGGER, error))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("overfull".to_owned()).spawn({
            let stop = Arc::clone(&stop);
            move || look_on(&volume, &stop, &pressure, &trigger)
        })?;
        Ok(Overfull { stop, thread: Some(thread) })
    }
}

impl Drop for Overfull {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn look_on(volume: &Volume, stop: &AtomicBool, pressure: &File, mut trigger: &File) {
    let write = Operation::Write as usize;
    let mut judge = Judge::default();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(STEP);
        let sum = volume.stats().snapshot();
        let percent = stalled_percent(pressure).unwrap_or(0.0);
        if let Some(refused) = judge.look(sum.requests[write], sum.errors[write], percent) {
            CALLS.fetch_add(1, Ordering::Relaxed);
            warn!(
                "swap is full: {refused} writes were refused in ten seconds and everything waits \
                 for memory ({percent:.0} % of the time): asking the OOM killer"
            );
            if let Err(error) = trigger.write_all(b"f") {
                warn!("{TRIGGER}: {error}");
            }
        }
    }
}

/// `full avg10=` of the pressure file, read into memory that is there.
fn stalled_percent(pressure: &File) -> io::Result<f64> {
    let mut text = [0; 256];
    let len = pressure.read_at(&mut text, 0)?;
    Ok(std::str::from_utf8(&text[..len]).ok().and_then(full_percent_of).unwrap_or(0.0))
}

/// What `/proc/pressure/memory` says of the last ten seconds: the share, in per cent, in which all
/// tasks that could run waited for memory. `None` if that is no such text.
#[must_use]
pub fn full_percent_of(text: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("full avg10="))?;
    rest.split(' ').next()?.parse().ok()
}

/// Decides from what is seen step by step.
#[derive(Debug, Default)]
struct Judge {
    writes_before: u64,
    refused_before: u64,
    bad_steps: u32,
    refused: u64,
}

impl Judge {
    /// Takes the counts of all writes and of those refused, and the pressure. Answers how many
    /// were refused if it is time.
    fn look(&mut self, writes: u64, refused: u64, percent: f64) -> Option<u64> {
        let new_writes = writes.saturating_sub(self.writes_before);
        let new_refused = refused.saturating_sub(self.refused_before);
        (self.writes_before, self.refused_before) = (writes, refused);
        if percent < STALLED_PERCENT || new_refused == 0 || new_refused * 2 < new_writes {
            (self.bad_steps, self.refused) = (0, 0);
            return None;
        }
        self.bad_steps += 1;
        self.refused += new_refused;
        if self.bad_steps < BAD_STEPS {
            return None;
        }
        let refused = self.refused;
        (self.bad_steps, self.refused) = (0, 0);
        Some(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pressure_file() {
        let text = "some avg10=93.25 avg60=50.00 avg300=14.00 total=1\n\
                    full avg10=71.50 avg60=40.00 avg300=10.00 total=1\n";
        assert_eq!(full_percent_of(text), Some(71.5));
        assert_eq!(full_percent_of("nonsense"), None);
    }

    #[test]
    fn only_refusals_and_stalls_together_and_for_long_call_the_killer() {
        let mut judge = Judge::default();
        let mut writes = 0;
        // Refused, but the machine goes on; stalled, but writes succeed.
        for step in 0..100 {
            writes += 10;
            assert_eq!(judge.look(writes, writes, 10.0), None, "{step}");
        }
        let refused = writes;
        for step in 0..100 {
            writes += 10;
            assert_eq!(judge.look(writes, refused, 99.0), None, "{step}");
        }
        // Both, with one good step in between: it starts anew.
        let mut counts = (writes, refused);
        let mut bad = |judge: &mut Judge, percent| {
            counts = (counts.0 + 10, counts.1 + 8);
            judge.look(counts.0, counts.1, percent)
        };
        for _ in 0..BAD_STEPS - 1 {
            assert_eq!(bad(&mut judge, 80.0), None);
        }
        assert_eq!(bad(&mut judge, 5.0), None);
        for _ in 0..BAD_STEPS - 1 {
            assert_eq!(bad(&mut judge, 80.0), None);
        }
        assert_eq!(bad(&mut judge, 80.0), Some(8 * u64::from(BAD_STEPS)));
        assert_eq!(bad(&mut judge, 80.0), None, "time for the victim to go");
    }
}
