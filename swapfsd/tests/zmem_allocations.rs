//! No heap allocation on zmem's I/O path, with errors too. Alone in its program: the counter is
//! one for the whole process.

use swapfs_format::types::{Algorithm, ZmemOptions};
use swapfsd::backend::Backend;
use swapfsd::backend::zmem::Zmem;
use swapfsd::held::Held;
use swapfsd::sys::alloc::{IoPath, io_path_allocations};

fn page(seed: u64, random_words: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if n < random_words { state } else { seed + n as u64 / 16 }
    };
    (0..512).flat_map(|n| next(n).to_le_bytes()).collect()
}

#[test]
fn read_write_discard_and_errors_allocate_nothing() {
    for algorithm in [Algorithm::Lz4, Algorithm::Zstd { level: 3 }] {
        for dedup in [false, true] {
            let options = ZmemOptions {
                algorithm,
                limit_bytes: Some(8 << 20),
                reserve_bytes: 4 << 20,
                recompress: None,
                dedup,
            };
            let zmem = Zmem::new(100_000, &options, 2, &Held::private()).unwrap();
            zmem.activate().unwrap();
            let pages: Vec<Vec<u8>> =
                (0..64).map(|n| page(n, [0, 100, 300, 512][n as usize % 4])).collect();
            let large: Vec<u8> = pages.concat();
            let mut out = vec![0; 4096];
            let mut refused = 0;
            let io_path = IoPath::enter();
            let before = io_path_allocations();
            for round in 0..100u64 {
                for slot in 0..400u64 {
                    let pages = &pages[(slot + round) as usize % 64];
                    refused += u64::from(zmem.write(slot * 97 + round * 400, pages).is_err());
                    zmem.read(slot * 97 + round * 400, &mut out).unwrap();
                }
                refused += u64::from(zmem.write(round * 64, &large).is_err());
                if round % 30 == 29 {
                    zmem.discard(0, 50_000).unwrap();
                }
            }
            let allocations = io_path_allocations() - before;
            drop(io_path);
            assert_eq!(allocations, 0, "{algorithm:?}, dedup {dedup}");
            if !dedup {
                assert!(refused > 0, "the limit was not reached");
            }
        }
    }
}
