//! swapoff(2) with its progress: it takes as long as the pages take to come back.

use crate::failure::Failure;
use crate::procfs::swaps::{self, SwapArea};
use crate::sys::{process, swap};
use indicatif::{ProgressBar, ProgressStyle};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use swapfs_format::size::human;

/// How often the pages left are counted.
const PROGRESS_STEP: Duration = Duration::from_millis(250);
/// How often an interrupted swapoff is begun again, when it has to be finished.
const ATTEMPTS: u32 = 100;

/// What a signal during swapoff does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSignal {
    /// Ends it with a failure; the area stays in use.
    Stop,
    /// Nothing: the pages must come back.
    GoOn,
}

/// Takes all pages back from `area`. One that is no longer in use is passed over. On a terminal,
/// shows how much is left.
///
/// # Errors
/// If memory does not suffice, or a signal came and `on_signal` is to stop.
pub fn run(area: &SwapArea, on_signal: OnSignal) -> Result<(), Failure> {
    let bar = ProgressBar::new(area.used_bytes);
    if let Ok(style) =
        ProgressStyle::with_template("swapoff {msg} {wide_bar} {bytes} of {total_bytes} back")
    {
        bar.set_style(style);
    }
    bar.set_message(area.path.display().to_string());
    let finished = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(area, &bar, &finished));
        let result = attempt(&area.path, on_signal);
        finished.store(true, Ordering::Relaxed);
        watcher.thread().unpark();
        result
    });
    bar.finish_and_clear();
    result.map_err(|error| explain(&area.path, &error))
}

fn attempt(device: &Path, on_signal: OnSignal) -> io::Result<()> {
    for _ in 1..ATTEMPTS {
        match swap::swap_off(device) {
            Err(error)
                if error.kind() == io::ErrorKind::Interrupted && on_signal == OnSignal::GoOn => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !in_use(device) => {
                return Ok(());
            }
            result => return result,
        }
    }
    swap::swap_off(device)
}

fn in_use(device: &Path) -> bool {
    swaps::read().is_ok_and(|areas| swaps::find(&areas, device).is_some())
}

/// Counts what is left until it is told to end.
fn watch(area: &SwapArea, bar: &ProgressBar, finished: &AtomicBool) {
    // A signal has to reach the thread that is in swapoff, or Ctrl-C would end nothing. Without
    // this, it may: then only the progress is gone.
    if process::block_signals_in_this_thread().is_err() {
        return;
    }
    while !finished.load(Ordering::Relaxed) {
        if let Ok(areas) = swaps::read()
            && let Some(now) = swaps::find(&areas, &area.path)
        {
            bar.set_position(area.used_bytes.saturating_sub(now.used_bytes));
        }
        thread::park_timeout(PROGRESS_STEP);
    }
}

fn explain(device: &Path, error: &io::Error) -> Failure {
    let failure = Failure::os(device.display(), "swap off", error);
    match error.raw_os_error() {
        Some(libc::EINTR) => {
            let left = swaps::read()
                .ok()
                .and_then(|areas| Some(swaps::find(&areas, device)?.used_bytes))
                .map_or_else(|| "some".to_owned(), human);
            Failure::new(
                device.display(),
                format_args!(
                    "interrupted: it is still in use as swap, with {left} on it; run \
                     'swapfs down' again to go on"
                ),
            )
        }
        Some(libc::ENOMEM) => failure.and("end some programs, or add another swap area first"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_says_what_to_do() {
        let explained = |errno| {
            explain(Path::new("/dev/no-such-loop"), &io::Error::from_raw_os_error(errno))
                .to_string()
        };
        assert!(explained(libc::ENOMEM).contains("end some programs"));
        assert!(explained(libc::EINTR).contains("still in use as swap, with some on it"));
        assert!(explained(libc::EPERM).contains("not permitted"));
    }
}
