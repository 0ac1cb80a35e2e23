use super::*;
use proptest::prelude::*;

fn example() -> Superblock {
    let geometry = Geometry::in_place(64 << 20, 4096).unwrap();
    let mut superblock = Superblock::new("linear", &geometry, Uuid::from_u128(0x1234));
    superblock.label = "example".to_owned();
    superblock.options = "engine=sync,checksum=on".to_owned();
    superblock.created_unix_s = 1_790_000_000;
    superblock.members.push(Member {
        uuid: Uuid::from_u128(77),
        size_bytes: 1 << 30,
        order: 1,
        path_hint: "/dev/disk/by-id/example".to_owned(),
    });
    superblock
}

/// Changes raw bytes and makes the checksum right again.
fn patched(superblock: &Superblock, offset: usize, bytes: &[u8]) -> [u8; PAGE_LEN] {
    let mut encoded = superblock.encode().unwrap();
    encoded[offset..][..bytes.len()].copy_from_slice(bytes);
    let crc = crc32fast::hash(&encoded[..4092]);
    encoded[4092..].copy_from_slice(&crc.to_le_bytes());
    encoded
}

#[test]
fn what_is_written_is_read_back() {
    let superblock = example();
    assert_eq!(Superblock::decode(&superblock.encode().unwrap()), Ok(superblock));
}

#[test]
fn every_single_bit_is_covered() {
    let encoded = example().encode().unwrap();
    for bit in 0..PAGE_LEN * 8 {
        let mut damaged = encoded;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Superblock::decode(&damaged).is_err(), "bit {bit} is not covered");
    }
}

#[test]
fn an_image_is_never_taken_for_a_swap_area() {
    let encoded = example().encode().unwrap();
    assert_eq!(encoded[4086..4092], [0; 6]);
    assert_eq!(SwapHeader::decode(&encoded), None);
}

#[test]
fn each_kind_of_damage_has_its_own_message() {
    let good = example();
    let message = |bytes: &[u8]| Superblock::decode(bytes).unwrap_err().to_string();
    assert_eq!(message(&[0; 100]), "only 100 bytes long: a superblock has 4096");
    assert_eq!(message(&[0; 4096]), "no swapfs superblock (wrong magic)");
    assert!(message(&patched(&good, 8, &[9])).contains("superblock version 9"));
    assert!(message(&patched(&good, 32, &[4])).contains("incompatible features 0x4"));
    assert!(message(&patched(&good, 88, &[1])).contains("page_bytes"));
    assert!(message(&patched(&good, 92, &[0, 0x20, 1, 0])).contains("erase_block_bytes"));
    assert!(message(&patched(&good, 96, &[0; 8])).contains("slot_count: 0 is not from 10"));
    assert!(message(&patched(&good, 112, &[0xff; 8])).contains("data_offset_bytes"));
    assert!(message(&patched(&good, 112, &[0; 8])).contains("overlap a superblock"));
    assert!(message(&patched(&good, 128, &[0; 8])).contains("backup_offset_bytes"));
    assert!(message(&patched(&good, 72, &[0; 16])).contains("type_name: empty"));
    assert!(message(&patched(&good, 72, &[0xff])).contains("type_name: not UTF-8"));
    assert!(message(&patched(&good, 72, b"lin\0r")).contains("bytes behind its end"));
    assert!(message(&patched(&good, 172, &[17])).contains("member_count: 17 is over 16"));
    assert!(message(&patched(&good, 300, &[1])).contains("reserved: not zero"));
    let mut damaged = good.encode().unwrap();
    damaged[40] ^= 1;
    assert!(message(&damaged).contains("checksum is wrong"));
}

#[test]
fn unknown_compatible_features_are_kept() {
    let decoded = Superblock::decode(&patched(&example(), 16, &[0x80])).unwrap();
    assert_eq!(decoded.features_compatible, 0x80);
}

#[test]
fn texts_too_long_are_refused() {
    let mut superblock = example();
    superblock.label = "seventeen bytes!!".to_owned();
    assert_eq!(superblock.encode().unwrap_err().field, "label");
    superblock.label = "a\0b".to_owned();
    assert_eq!(superblock.encode().unwrap_err().why, "has a zero byte");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 4096), fix in any::<bool>()) {
        // With the magic, version and checksum made right, the field checks are reached.
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        if fix {
            bytes[32..40].fill(0);
            let crc = crc32fast::hash(&bytes[..4092]);
            bytes[4092..].copy_from_slice(&crc.to_le_bytes());
        }
        let _ = Superblock::decode(&bytes);
    }

    #[test]
    fn any_valid_superblock_survives(
        slots in 10u64..1 << 32,
        label in "[a-zäöü0-9]{0,8}",
        options in "[a-z=,0-9]{0,1024}",
        uuid in any::<u128>(),
        created in any::<u64>(),
    ) {
        let geometry = Geometry::in_place(slots * PAGE_BYTES, 4096).unwrap();
        let mut superblock = Superblock::new("linear", &geometry, Uuid::from_u128(uuid));
        superblock.label = label;
        superblock.options = options;
        superblock.created_unix_s = created;
        prop_assert_eq!(Superblock::decode(&superblock.encode().unwrap()), Ok(superblock));
    }
}
