//! What lies together on a device is read together: it takes the device no longer.

use swapfs_format::PAGE_BYTES;

/// Objects closer than this are read by one read.
const GAP_BYTES: u64 = 16 << 10;

/// Objects that are read by one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) struct Run {
    /// How many.
    pub(in crate::backend) count: usize,
    /// From this byte on, the start of a page.
    pub(in crate::backend) from: u64,
    /// Up to this one, the end of a page.
    pub(in crate::backend) end: u64,
}

/// The first of `sorted`, which are in the order of their places, and those that are read with it:
/// `most_bytes` at most, but for the first. `place` says where each starts and ends. `None`: there
/// are none.
pub(in crate::backend) fn first_run<T>(
    sorted: &[T],
    place: impl Fn(&T) -> (u64, u64),
    most_bytes: u64,
) -> Option<Run> {
    let (first, others) = sorted.split_first()?;
    let (start, mut end) = place(first);
    let from = start / PAGE_BYTES * PAGE_BYTES;
    let near = |next: &&T| {
        let (next_start, next_end) = place(next);
        let near = next_start <= end + GAP_BYTES
            && next_end.next_multiple_of(PAGE_BYTES) - from <= most_bytes;
        if near {
            end = end.max(next_end);
        }
        near
    };
    let count = 1 + others.iter().take_while(near).count();
    Some(Run { count, from, end: end.next_multiple_of(PAGE_BYTES) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_together() {
        let runs = |places: &[(u64, u64)], most| {
            let (mut rest, mut found) = (places, Vec::new());
            while let Some(run) = first_run(rest, |place| *place, most) {
                found.push((run.count, run.from, run.end));
                rest = &rest[run.count..];
            }
            found
        };
        assert_eq!(runs(&[], 1 << 20), []);
        let places = [(5000, 6000), (6000, 9000), (9000 + GAP_BYTES, 30_000), (80_000, 80_001)];
        assert_eq!(runs(&places, 1 << 20), [(3, 4096, 32_768), (1, 77_824, 81_920)]);
        // One that is larger than what is read at a time is read all the same.
        assert_eq!(
            runs(&places, 4096),
            [(1, 4096, 8192), (1, 4096, 12_288), (1, 24_576, 32_768), (1, 77_824, 81_920)]
        );
    }
}
