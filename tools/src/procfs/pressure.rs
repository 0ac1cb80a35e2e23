//! `/proc/pressure/memory`: how much of the time tasks wait for memory.

use swapfsd::overfull::full_percent_of;

/// The share of the last ten seconds in which all tasks that could run waited for memory, in per
/// cent; `None` on a kernel without pressure stall information.
#[must_use]
pub fn full_percent() -> Option<f64> {
    let text = super::read_file("/proc/pressure/memory").ok()?;
    full_percent_of(&String::from_utf8_lossy(&text))
}
