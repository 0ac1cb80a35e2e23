//! Which bytes of a read have come: each must come exactly once, in any order.

/// Ranges that don't touch each other. A server that answers in so many pieces that more than this
/// many lie apart at one time is refused: those there are send them in order, or nearly so.
const RANGES: usize = 32;

/// The bytes that have come, as sorted ranges.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Cover {
    ranges: [(u32, u32); RANGES],
    count: usize,
}

impl Cover {
    /// Nothing has come.
    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    /// These bytes come now.
    ///
    /// # Errors
    /// `EPROTO` if some have come already, or there are too many ranges.
    pub(super) fn add(&mut self, start: u32, length: u32) -> Result<(), i32> {
        let end = start.checked_add(length).ok_or(libc::EPROTO)?;
        let ranges = &mut self.ranges;
        let at = ranges[..self.count].partition_point(|range| range.0 < start);
        let joins_before = at > 0 && ranges[at - 1].1 == start;
        let joins_behind = at < self.count && ranges[at].0 == end;
        if (at > 0 && ranges[at - 1].1 > start) || (at < self.count && ranges[at].0 < end) {
            return Err(libc::EPROTO);
        }
        match (joins_before, joins_behind) {
            (true, true) => {
                ranges[at - 1].1 = ranges[at].1;
                ranges.copy_within(at + 1..self.count, at);
                self.count -= 1;
            }
            (true, false) => ranges[at - 1].1 = end,
            (false, true) => ranges[at].0 = start,
            (false, false) if self.count < RANGES => {
                ranges.copy_within(at..self.count, at + 1);
                ranges[at] = (start, end);
                self.count += 1;
            }
            (false, false) => return Err(libc::EPROTO),
        }
        Ok(())
    }

    /// All of the first `length` bytes have come.
    pub(super) fn is_whole(&self, length: u32) -> bool {
        self.count == 1 && self.ranges[0] == (0, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_a_list_of_bytes() {
        let mut seed = 7u64;
        let mut random = move |below: u32| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((seed >> 33) as u32) % below
        };
        for _ in 0..20_000 {
            let mut cover = Cover::default();
            let mut model = [false; 24];
            for _ in 0..20 {
                let start = random(24);
                let length = 1 + random(24 - start);
                let range = &mut model[start as usize..(start + length) as usize];
                let fits = range.iter().all(|came| !came);
                assert_eq!(cover.add(start, length).is_ok(), fits);
                if fits {
                    range.fill(true);
                }
                assert_eq!(cover.is_whole(24), model.iter().all(|&came| came));
            }
        }
    }

    #[test]
    fn too_many_ranges_and_too_large_ones_are_refused() {
        let mut cover = Cover::default();
        for range in 0..RANGES as u32 {
            cover.add(range * 2, 1).unwrap();
        }
        assert_eq!(cover.add(1000, 1), Err(libc::EPROTO));
        cover.add(1, 1).unwrap();
        cover.add(1000, 1).unwrap();
        assert_eq!(cover.add(u32::MAX, 2), Err(libc::EPROTO));
    }
}
