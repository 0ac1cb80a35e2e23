//! The pages that the demo writes: every one different, every byte known, half of each page
//! incompressible, so that back ends that compress have something to do and something to fail at.

use swapfs_format::PAGE_LEN;

/// The first part of a page is noise; the rest repeats one word.
const NOISE_LEN: usize = PAGE_LEN / 2;

/// The contents of all pages, from a seed.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// Another seed, another pattern: pages left over from an earlier demo do not match.
    #[must_use]
    pub fn new(seed: u64) -> Pattern {
        Pattern { seed }
    }

    /// Writes page `page` into `bytes`, which is one page long.
    pub fn fill(&self, page: usize, bytes: &mut [u8]) {
        let mut state = mix(self.seed ^ mix(page as u64));
        let word = state.to_le_bytes();
        let (noise, rest) = bytes.split_at_mut(NOISE_LEN.min(bytes.len()));
        for chunk in noise.chunks_mut(word.len()) {
            state = state.wrapping_add(GOLDEN);
            chunk.copy_from_slice(&mix(state).to_le_bytes()[..chunk.len()]);
        }
        for chunk in rest.chunks_mut(word.len()) {
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// The step and the mixer of splitmix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn page(seed: u64, number: usize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_LEN];
        Pattern::new(seed).fill(number, &mut bytes);
        bytes
    }

    #[test]
    fn every_page_is_its_own_and_the_same_again() {
        let pages: HashSet<Vec<u8>> = (0..500).map(|number| page(1, number)).collect();
        assert_eq!(pages.len(), 500);
        assert!(pages.contains(&page(1, 17)));
        assert!(!pages.contains(&page(2, 17)));
    }

    #[test]
    fn no_page_is_of_one_value() {
        // Those never reach a swap device: the kernel, or the back end, keeps them elsewhere.
        for number in 0..500 {
            let bytes = page(0, number);
            assert!(bytes[..64].iter().any(|byte| *byte != bytes[0]), "page {number}");
        }
    }
}
