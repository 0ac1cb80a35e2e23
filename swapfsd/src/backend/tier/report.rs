//! The numbers of a tier volume.

use super::lower::Lower;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted about all members together, by name with the unit last.
pub(super) fn numbers(lower: &Lower, report: &mut dyn FnMut(&'static str, u64)) {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &lower.counters;
    report("demotion_decompressions", get(&counters.decompressions));
    report("demoted_to_copies_pages", get(&counters.demoted_to_copies));
    report("moves_in_vain", get(&counters.moves_in_vain));
    report("writes_that_waited", get(&counters.urged));
    report("damaged_objects", get(&counters.damaged));
    let (mut read, mut below) = (0, 0);
    for member in lower.members().iter() {
        read += get(&member.counters.read_pages);
        below += get(&member.counters.pages);
    }
    report("read_below_pages", read);
    report("below_pages", below);
}
