//! The contents of a page as a function of (seed, page, generation), so that whoever reads a page
//! back can say not only that it is wrong but which page, and which of its generations, it is.
//!
//! ```text
//! bytes 0 to 3   page number      little endian
//! bytes 4 to 7   generation
//! the rest       blocks of 64 bytes, some random, some of one repeated word (they compress)
//! ```

use std::fmt;

use crate::rng::Rng;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// What is either random or repeated as a whole.
const BLOCK_BYTES: usize = 64;
const HEADER_BYTES: usize = 8;

/// One page's bytes, aligned so that the words in it are.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct PageBytes(pub [u8; PAGE_BYTES]);

impl Default for PageBytes {
    fn default() -> PageBytes {
        PageBytes([0; PAGE_BYTES])
    }
}

/// A family of pages.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    seed: u64,
    compressible_percent: u32,
}

impl Pattern {
    /// Pages of which about `compressible_percent` of the blocks compress to almost nothing.
    #[must_use]
    pub fn new(seed: u64, compressible_percent: u32) -> Pattern {
        Pattern { seed, compressible_percent: compressible_percent.min(100) }
    }

    /// Writes the page's contents to `out`.
    pub fn fill(&self, page: u32, generation: u32, out: &mut [u8; PAGE_BYTES]) {
        let mut rng = Rng::new(self.seed ^ u64::from(page) << 32 ^ u64::from(generation));
        // Neighbouring states of the generator are the same sequence, one apart: mix once.
        rng = Rng::new(rng.next_u64());
        // The repeated blocks are spread evenly: block i is one if the share passes a whole
        // number there.
        let mut share = rng.below(100) as u32;
        for block in out.chunks_exact_mut(BLOCK_BYTES) {
            share += self.compressible_percent;
            if share >= 100 {
                share -= 100;
                let word = rng.next_u64().to_le_bytes();
                for part in block.chunks_exact_mut(8) {
                    part.copy_from_slice(&word);
                }
            } else {
                rng.fill(block);
            }
        }
        out[0..4].copy_from_slice(&page.to_le_bytes());
        out[4..HEADER_BYTES].copy_from_slice(&generation.to_le_bytes());
    }

    /// Compares every byte of `found` with what the page must hold. `scratch` spares the caller's
    /// stack, and lets the caller lock it.
    pub fn check(
        &self,
        page: u32,
        generation: u32,
        found: &[u8; PAGE_BYTES],
        scratch: &mut PageBytes,
    ) -> Result<(), Difference> {
        self.fill(page, generation, &mut scratch.0);
        if *found == scratch.0 {
            return Ok(());
        }
        let offset = scratch.0.iter().zip(found).position(|(expected, found)| expected != found);
        let offset = offset.unwrap_or(0);
        let differing_bytes = scratch.0.iter().zip(found).filter(|(a, b)| a != b).count();
        Err(Difference {
            page,
            generation,
            offset,
            differing_bytes,
            expected: window(&scratch.0, offset),
            found: window(found, offset),
            looks_like: self.identify(found, scratch),
        })
    }

    /// Which page of this family `found` is, whole: a stale or misplaced page, not a damaged one.
    fn identify(&self, found: &[u8; PAGE_BYTES], scratch: &mut PageBytes) -> LooksLike {
        if found.iter().all(|&byte| byte == found[0]) {
            return LooksLike::SameFilled(found[0]);
        }
        let page = u32::from_le_bytes([found[0], found[1], found[2], found[3]]);
        let generation = u32::from_le_bytes([found[4], found[5], found[6], found[7]]);
        self.fill(page, generation, &mut scratch.0);
        if *found == scratch.0 {
            LooksLike::OtherPage { page, generation }
        } else {
            LooksLike::Nothing
        }
    }
}

fn window(bytes: &[u8; PAGE_BYTES], offset: usize) -> [u8; 8] {
    let mut part = [0; 8];
    let end = (offset + part.len()).min(PAGE_BYTES);
    part[..end - offset].copy_from_slice(&bytes[offset..end]);
    part
}

/// What a wrong page is instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LooksLike {
    /// Exactly this page of the same family: misplaced, or an older generation.
    OtherPage {
        /// Its number.
        page: u32,
        /// Its generation.
        generation: u32,
    },
    /// One byte throughout: most often a hole.
    SameFilled(u8),
    /// Damaged.
    Nothing,
}

/// A page that does not hold what it must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The page's number.
    pub page: u32,
    /// The generation that was expected.
    pub generation: u32,
    /// The first byte that differs.
    pub offset: usize,
    /// How many do.
    pub differing_bytes: usize,
    /// Up to eight bytes from there, as they should be.
    pub expected: [u8; 8],
    /// The same, as they are.
    pub found: [u8; 8],
    /// What the page is instead.
    pub looks_like: LooksLike,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "page {} generation {}: {} bytes differ, first at offset {}: expected {} found {}",
            self.page,
            self.generation,
            self.differing_bytes,
            self.offset,
            Hex(&self.expected),
            Hex(&self.found),
        )?;
        match self.looks_like {
            LooksLike::OtherPage { page, generation } => {
                write!(f, "; it is page {page} generation {generation}, whole")
            }
            LooksLike::SameFilled(byte) => write!(f, "; it is {byte:#04x} throughout"),
            LooksLike::Nothing => Ok(()),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(pattern: Pattern, page: u32, generation: u32) -> PageBytes {
        let mut bytes = PageBytes::default();
        pattern.fill(page, generation, &mut bytes.0);
        bytes
    }

    #[test]
    fn every_page_and_generation_is_different() {
        let pattern = Pattern::new(1, 50);
        let mut seen = std::collections::HashSet::new();
        for number in 0..50 {
            for generation in 0..20 {
                // Not only the header: the contents too.
                assert!(seen.insert(page(pattern, number, generation).0[8..].to_vec()));
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let pattern = Pattern::new(2, 30);
        let good = page(pattern, 7, 3);
        let mut scratch = PageBytes::default();
        for bit in (0..PAGE_BYTES * 8).step_by(101) {
            let mut bad = good.clone();
            bad.0[bit / 8] ^= 1 << (bit % 8);
            let difference = pattern.check(7, 3, &bad.0, &mut scratch).unwrap_err();
            assert_eq!((difference.offset, difference.differing_bytes), (bit / 8, 1));
        }
        assert_eq!(pattern.check(7, 3, &good.0, &mut scratch), Ok(()));
    }

    #[test]
    fn stale_misplaced_and_empty_pages_are_named() {
        let pattern = Pattern::new(3, 0);
        let mut scratch = PageBytes::default();
        let mut looks_like =
            |bytes: PageBytes| pattern.check(7, 3, &bytes.0, &mut scratch).unwrap_err().looks_like;
        let stale = LooksLike::OtherPage { page: 7, generation: 2 };
        assert_eq!(looks_like(page(pattern, 7, 2)), stale);
        let misplaced = LooksLike::OtherPage { page: 8, generation: 3 };
        assert_eq!(looks_like(page(pattern, 8, 3)), misplaced);
        assert_eq!(looks_like(PageBytes::default()), LooksLike::SameFilled(0));
        assert_eq!(looks_like(page(Pattern::new(4, 0), 7, 3)), LooksLike::Nothing);
    }

    #[test]
    fn the_compressible_share_is_kept() {
        for percent in [0, 25, 50, 75, 100] {
            let pattern = Pattern::new(5, percent);
            let mut repeated = 0;
            for number in 0..100 {
                let bytes = page(pattern, number, 0);
                repeated += bytes.0.chunks(BLOCK_BYTES).filter(|b| b[8..16] == b[16..24]).count();
            }
            let found = repeated as f64 / 64.0;
            assert!((found - f64::from(percent)).abs() < 2.0, "{percent}: {found}");
        }
    }
}
