//! Any 4 KiB as a superblock, with magic, version and checksum made right so that the fuzzer gets
//! behind them. What decodes must be written and read back the same, and its options, swap header
//! and sizes must make nothing panic.
//!
//! `cargo +nightly fuzz run superblock` in `format/`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swapfs_format::superblock::{MAGIC, Superblock, VERSION};
use swapfs_format::swap_header::SwapHeader;
use swapfs_format::{PAGE_LEN, size};

fuzz_target!(|input: &[u8]| {
    let mut page = [0; PAGE_LEN];
    let len = input.len().min(PAGE_LEN);
    page[..len].copy_from_slice(&input[..len]);
    let _ = Superblock::decode(input);
    let _ = SwapHeader::decode(&page);
    page[..8].copy_from_slice(&MAGIC);
    page[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32fast::hash(&page[..PAGE_LEN - 4]);
    page[PAGE_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    let Ok(superblock) = Superblock::decode(&page) else {
        return;
    };
    let encoded = superblock.encode().expect("what decodes can be encoded");
    assert_eq!(Superblock::decode(&encoded).as_ref(), Ok(&superblock));
    let header = superblock.swap_header().encode();
    let read = SwapHeader::decode(&header).expect("our own swap header");
    assert_eq!(read.slot_count, superblock.slot_count);
    let _ = size::human(superblock.volume_bytes());
    if let Some(spec) = superblock.type_spec() {
        let _ = spec.parse_options(&superblock.options);
    }
});
