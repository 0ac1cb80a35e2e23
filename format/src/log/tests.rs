//! Parts, records and anchors come back, and nothing else is taken for one.

use super::*;
use proptest::prelude::*;

fn owner() -> Owner {
    Owner { uuid: Uuid::from_bytes([7; 16]), created_unix_s: 1_700_000_000 }
}

fn header() -> PartHeader {
    PartHeader {
        kind: PartKind::Data,
        owner: owner(),
        sequence: 12,
        filling: 11,
        began_sequence: 99,
        durable_sequence: 5,
        segment: 3,
        offset_bytes: 8192,
        part_bytes: 12288,
        record_count: 2,
        payload_offset_bytes: 4096,
        payload_bytes: 5000,
        payload_crc32: 77,
        next_segment: 0,
    }
}

fn contents() -> impl Strategy<Value = Content> {
    prop_oneof![
        (2..=4u8, any::<u32>(), 1..=4096u16, any::<u32>()).prop_map(
            |(encoding, offset, len, checksum)| Content::Object { encoding, offset, len, checksum }
        ),
        any::<u64>().prop_map(Content::SameFilled),
        any::<u32>().prop_map(Content::Discarded),
    ]
}

proptest! {
    #[test]
    fn records_come_back(sequence in any::<u64>(), slot in any::<u32>(), content in contents()) {
        let record = Record { sequence, slot, content };
        prop_assert_eq!(Record::decode(&record.encode()), Some(record));
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
        let decode = |bytes: &[u8]| PartHeader::decode(bytes, &owner(), 1, 0, 1 << 21);
        let _ = decode(&bytes);
        let _ = Anchor::decode(&bytes, &owner());
        if bytes.len() >= 8 {
            bytes[..8].copy_from_slice(&PART_MAGIC);
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_flipped_bit_of_header_or_records_is_found(bit in 64..(PART_HEADER_LEN + 2 * RECORD_LEN) * 8) {
        let mut part = vec![0; 4096];
        part[PART_HEADER_LEN..][..RECORD_LEN].fill(1);
        header().write_to(&mut part);
        prop_assert_eq!(PartHeader::decode(&part, &owner(), 3, 8192, 1 << 21), Ok(header()));
        part[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(PartHeader::decode(&part, &owner(), 3, 8192, 1 << 21).is_err());
    }
}

#[test]
fn a_part_elsewhere_or_of_others_is_none() {
    let mut part = vec![0; 4096];
    header().write_to(&mut part);
    let decode = |owner: &Owner, segment, offset, segment_bytes| {
        PartHeader::decode(&part, owner, segment, offset, segment_bytes).unwrap_err()
    };
    let older = Owner { created_unix_s: 1, ..owner() };
    assert_eq!(decode(&older, 3, 8192, 1 << 21), PartError::OtherVolume);
    let elsewhere = PartError::OtherPlace { segment: 3, offset_bytes: 8192 };
    assert_eq!(decode(&owner(), 4, 8192, 1 << 21), elsewhere);
    assert_eq!(decode(&owner(), 3, 0, 1 << 21), elsewhere);
    assert_eq!(decode(&owner(), 3, 8192, 16384), PartError::Impossible);
    let short = PartHeader::decode(&part[..130], &owner(), 3, 8192, 1 << 21);
    assert_eq!(short, Err(PartError::Short(PART_HEADER_LEN + 2 * RECORD_LEN)));
}

#[test]
fn anchors_come_back() {
    let clean = AnchorState::Clean {
        checkpoint_segment: 9,
        checkpoint_parts: 4,
        checkpoint_sequence: 1000,
    };
    for state in [AnchorState::InUse, clean] {
        let anchor = Anchor {
            owner: owner(),
            generation: 3,
            segment_bytes: 1 << 21,
            next_sequence: 55,
            next_write_sequence: 66,
            state,
        };
        let mut page = anchor.encode();
        assert_eq!(Anchor::decode(&page, &owner()), Some(anchor));
        page[100] ^= 1;
        assert_eq!(Anchor::decode(&page, &owner()), None);
    }
}
