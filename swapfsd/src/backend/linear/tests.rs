use super::*;
use crate::sys::file::write_all_at;
use std::os::unix::fs::OpenOptionsExt;
use swapfs_format::PAGE_LEN;
use swapfs_format::geometry::Geometry;
use uuid::Uuid;

const SLOTS: u64 = 64;

/// A volume on a file in /var/tmp: tmpfs would do direct I/O of its own kind.
fn linear(engine: LinearEngine, checksum: bool) -> (Linear, File, Superblock, BufferPool) {
    let geometry = Geometry::in_place(SLOTS * 4096, 4096).unwrap();
    let superblock = Superblock::new("linear", &geometry, Uuid::from_u128(1));
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    file.as_file().set_len(superblock.image_bytes).unwrap();
    let direct = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(file.path())
        .unwrap();
    let buffers = BufferPool::new(16, 4).unwrap();
    let options = LinearOptions { engine, checksum, discard: true };
    let linear =
        Linear::new(direct, &superblock, &options, buffers.clone(), &Held::private(), None)
            .unwrap();
    (linear, file.into_file(), superblock, buffers)
}

#[test]
fn damage_on_the_device_is_an_error_and_never_data() {
    let (linear, file, superblock, buffers) = linear(LinearEngine::Sync, true);
    let mut pages = buffers.take(3 * PAGE_LEN);
    pages.fill(7);
    linear.write(4, &pages).unwrap();
    linear.read(4, &mut pages).unwrap();
    write_all_at(&file, &[8], superblock.data_offset_bytes + 5 * 4096 + 77).unwrap();
    file.sync_all().unwrap();
    let error = linear.read(4, &mut pages).unwrap_err();
    assert_eq!((error.kind, error.slot), (ErrorKind::Checksum, 5));
    linear.read(4, &mut pages[..PAGE_LEN]).unwrap();
    // A discard or a write makes the slot good again.
    linear.discard(5, 1).unwrap();
    linear.read(5, &mut pages[..PAGE_LEN]).unwrap();
    assert!(pages[..PAGE_LEN].iter().all(|&byte| byte == 0));
    let mut counted = 0;
    linear.statistics(&mut |name, value| {
        if name == "checksum_errors" {
            counted = value;
        }
    });
    assert_eq!(counted, 1);
}

#[test]
fn without_checksums_damage_is_not_seen() {
    let (linear, file, superblock, buffers) = linear(LinearEngine::Sync, false);
    let mut page = buffers.take(PAGE_LEN);
    page.fill(7);
    linear.write(1, &page).unwrap();
    write_all_at(&file, &[8], superblock.data_offset_bytes + 4096).unwrap();
    file.sync_all().unwrap();
    linear.read(1, &mut page).unwrap();
    assert_eq!((page[0], page[1]), (8, 7));
}

#[test]
fn memory_that_is_not_aligned_is_copied() {
    let (linear, _, _, _) = linear(LinearEngine::Sync, true);
    let mut memory = vec![0u8; 4 * PAGE_LEN + 1];
    let odd = usize::from((memory.as_ptr() as usize).is_multiple_of(2));
    for (index, byte) in memory.iter_mut().enumerate() {
        *byte = index as u8;
    }
    let written = memory[odd..][..4 * PAGE_LEN].to_vec();
    linear.write(8, &memory[odd..][..4 * PAGE_LEN]).unwrap();
    memory.fill(0);
    linear.read(8, &mut memory[odd..][..4 * PAGE_LEN]).unwrap();
    assert_eq!(memory[odd..][..4 * PAGE_LEN], written[..]);
}

#[test]
fn a_file_that_was_cut_off_is_an_error() {
    for engine in [LinearEngine::Sync, LinearEngine::Uring] {
        let (linear, file, superblock, buffers) = linear(engine, true);
        file.set_len(superblock.data_offset_bytes + 4096).unwrap();
        let mut page = buffers.take(PAGE_LEN);
        assert_eq!(linear.read(3, &mut page).unwrap_err().kind, ErrorKind::Io);
    }
}

#[test]
fn discards_can_be_turned_off() {
    let (mut linear, ..) = linear(LinearEngine::Sync, true);
    linear.discard = false;
    assert_eq!(linear.discard(1, 1).unwrap_err().kind, ErrorKind::Unsupported);
}
