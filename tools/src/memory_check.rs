//! Whether memory could take back the pages of a swap area: `swapoff` would otherwise call in
//! the out-of-memory killer, or fail after minutes.

use std::fmt;
use swapfs_format::size::human;

/// Never let `swapoff` use the last of the memory: this much, or a share of all memory if that is
/// more, stays for the rest of the system.
const LEAST_MARGIN_BYTES: u64 = 32 << 20;
/// The share of all memory that stays: one part in this many.
const MARGIN_DIVISOR: u64 = 32;

/// The numbers that the decision rests on, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryCheck {
    /// What the areas that go away hold.
    pub used_bytes: u64,
    /// `MemAvailable`
    pub available_bytes: u64,
    /// What is free in the swap areas that stay.
    pub other_swap_free_bytes: u64,
    /// What must remain after it.
    pub margin_bytes: u64,
}

impl MemoryCheck {
    /// Collects the numbers; `total_bytes` is all memory of the machine.
    #[must_use]
    pub fn new(
        used_bytes: u64,
        total_bytes: u64,
        available_bytes: u64,
        other_swap_free_bytes: u64,
    ) -> MemoryCheck {
        let margin_bytes = LEAST_MARGIN_BYTES.max(total_bytes / MARGIN_DIVISOR);
        MemoryCheck { used_bytes, available_bytes, other_swap_free_bytes, margin_bytes }
    }

    /// Memory and other swap can take the pages, and the margin remains. An unused area always
    /// fits: giving it up takes no memory.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.missing_bytes() == 0
    }

    /// How much is missing; 0 if it fits.
    #[must_use]
    pub fn missing_bytes(&self) -> u64 {
        if self.used_bytes == 0 {
            return 0;
        }
        let have = self.available_bytes.saturating_add(self.other_swap_free_bytes);
        self.used_bytes.saturating_add(self.margin_bytes).saturating_sub(have)
    }
}

impl fmt::Display for MemoryCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} are swapped out to it, and there are only {} of memory available and {} free in \
             other swap areas ({} must remain): {} are missing",
            human(self.used_bytes),
            human(self.available_bytes),
            human(self.other_swap_free_bytes),
            human(self.margin_bytes),
            human(self.missing_bytes())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_fits_when_the_margin_remains() {
        assert!(MemoryCheck::new(100 * MIB, 512 * MIB, 132 * MIB, 0).fits());
        assert!(!MemoryCheck::new(100 * MIB, 512 * MIB, 131 * MIB, 0).fits());
    }

    #[test]
    fn other_swap_counts() {
        let check = MemoryCheck::new(300 * MIB, 512 * MIB, 32 * MIB, 300 * MIB);
        assert!(check.fits());
        let check = MemoryCheck::new(300 * MIB, 512 * MIB, 32 * MIB, 290 * MIB);
        assert_eq!(check.missing_bytes(), 10 * MIB);
    }

    #[test]
    fn a_large_machine_has_a_larger_margin() {
        let check = MemoryCheck::new(MIB, 64 << 30, 2 << 30, 0);
        assert_eq!(check.margin_bytes, 2 << 30);
        assert!(!check.fits());
    }

    #[test]
    fn an_unused_area_goes_even_without_memory() {
        assert!(MemoryCheck::new(0, 512 * MIB, 0, 0).fits());
    }

    #[test]
    fn the_message_has_the_numbers() {
        let check = MemoryCheck::new(300 * MIB, 512 * MIB, 100 * MIB, 50 * MIB);
        assert_eq!(
            check.to_string(),
            "300 MiB are swapped out to it, and there are only 100 MiB of memory available and \
             50 MiB free in other swap areas (32 MiB must remain): 182 MiB are missing"
        );
    }
}
