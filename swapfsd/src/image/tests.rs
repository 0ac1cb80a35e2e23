//! Which images are mounted, and which serve as members. Written here without `mkswapfs`, which
//! depends on this crate.

use super::*;
use std::os::unix::fs::FileExt;
use swapfs_format::geometry::Geometry;
use tempfile::TempDir;

const VOLUME: Uuid = Uuid::from_u128(1);
const OWN: Uuid = Uuid::from_u128(2);

/// A member of [`VOLUME`] at place 2, with a data section of 1 MiB: 16 segments of 64 KiB.
fn member(type_name: &str) -> Superblock {
    let geometry = Geometry::in_place(1 << 20, 64 << 10).unwrap();
    let mut superblock = Superblock::new(type_name, &geometry, OWN);
    superblock.erase_block_bytes = 64 << 10;
    superblock.volume_uuid = VOLUME;
    superblock.member_order = 2;
    superblock
}

fn written(superblock: &Superblock) -> (TempDir, Image) {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = folder.path().join("image");
    let file = File::create(&path).unwrap();
    file.set_len(superblock.image_bytes).unwrap();
    let page = superblock.encode().unwrap();
    for place in [PRIMARY_OFFSET_BYTES, superblock.backup_offset_bytes] {
        file.write_all_at(&page, place).unwrap();
    }
    let image = Image::open(&path, Access::ReadWrite).unwrap();
    (folder, image)
}

#[test]
fn a_member_is_not_mounted_by_itself() {
    for type_name in ["log", "linear"] {
        let (_folder, image) = written(&member(type_name));
        let error = image.load().unwrap_err();
        assert_eq!(error.kind, ImageErrorKind::IsMember(VOLUME));
        let text = format!("it is a member of the tier volume {VOLUME}: mount that volume's own");
        assert!(error.to_string().contains(&text), "{error}");
        assert_eq!(image.load_member(VOLUME).unwrap(), member(type_name));
    }
}

#[test]
fn a_volume_is_no_member_and_that_of_another_volume_is_not_taken() {
    let own = Superblock { volume_uuid: OWN, member_order: 0, ..member("linear") };
    let (_folder, image) = written(&own);
    assert_eq!(image.load().unwrap(), own);
    for volume in [VOLUME, OWN] {
        let error = image.load_member(volume).unwrap_err();
        assert!(matches!(error.kind, ImageErrorKind::NotAMember(_)), "{error:?}");
        assert!(error.to_string().contains("it is a volume itself"), "{error}");
    }
    let (_folder, image) = written(&member("log"));
    let other = Uuid::from_u128(9);
    let error = image.load_member(other).unwrap_err().to_string();
    assert!(error.contains(&format!("the tier volume {VOLUME}, not of {other}")), "{error}");
}

#[test]
fn what_a_member_needs_is_checked() {
    type Change = fn(&mut Superblock);
    let cases: [(&str, Change, &str); 9] = [
        ("log", |one| one.type_name = "zmem".to_owned(), "'linear' or 'remote', not 'zmem'"),
        ("log", |one| one.member_order = 0, "among the tiers is 0: members have 1 to 8"),
        ("linear", |one| one.member_order = 9, "among the tiers is 9"),
        ("linear", |one| one.slot_count -= 1, "says 255 slots"),
        ("log", |one| one.erase_block_bytes = 4096, "has 4096 bytes: a member of type 'log' takes"),
        ("log", |one| one.erase_block_bytes = 256 << 10, "has 4 segments"),
        (
            "log",
            |one| {
                one.data_bytes -= PAGE_BYTES;
                one.slot_count -= 1;
            },
            "no multiple of the segment's 65536",
        ),
        (
            "linear",
            |one| {
                one.data_bytes = 508 << 10;
                one.slot_count = 127;
            },
            "520192 bytes: a member takes 524288 and more",
        ),
        (
            "linear",
            |one| {
                one.data_bytes = 0;
                one.slot_count = 10;
            },
            "has 0 bytes",
        ),
    ];
    for (type_name, change, says) in cases {
        let mut superblock = member(type_name);
        change(&mut superblock);
        let (_folder, image) = written(&superblock);
        let error = image.load_member(VOLUME).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    // The least that is taken.
    let mut superblock = member("log");
    superblock.erase_block_bytes = 128 << 10;
    assert_eq!(member_flaw(&superblock), None);
}

#[test]
fn a_member_that_was_cut_off_or_damaged_is_refused() {
    let (folder, image) = written(&member("log"));
    image.file().set_len(1 << 20).unwrap();
    let short = Image::open(&folder.path().join("image"), Access::ReadOnly).unwrap();
    let error = short.load_member(VOLUME).unwrap_err();
    assert!(matches!(error.kind, ImageErrorKind::Truncated { .. }), "{error}");
    let (_folder, image) = written(&member("log"));
    image.file().write_all_at(b"x", 100).unwrap();
    let error = image.load_member(VOLUME).unwrap_err().to_string();
    assert!(error.contains("run fsck.swapfs -p"), "{error}");
}
