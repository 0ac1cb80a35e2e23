use super::*;
use proptest::prelude::*;

fn round_trip(encoder: &mut Encoder, page: &[u8]) -> (Encoding, usize) {
    let mut out = vec![0xa5; PAGE_LEN];
    match encoder.encode(page) {
        Encoded::SameFilled(word) => {
            assert!(page.chunks(8).all(|chunk| chunk == word.to_ne_bytes()));
            (Encoding::Raw, 0)
        }
        Encoded::Bytes(encoding, bytes) => {
            let len = bytes.len();
            let decoded = match encoding {
                Encoding::Zstd => Decoder::default().decode_zstd(bytes, &mut out),
                _ => decode(encoding, bytes, &mut out),
            };
            assert!(decoded && out == page);
            (encoding, len)
        }
    }
}

fn random_page(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..PAGE_LEN).map(|_| next()).collect()
}

fn text_page() -> Vec<u8> {
    let words = "a page of text that says the same thing in other words ";
    words.bytes().cycle().enumerate().map(|(i, b)| b ^ u8::from(i % 97 == 0)).take(4096).collect()
}

#[test]
fn each_page_goes_its_way() {
    for algorithm in [Algorithm::Lz4, Algorithm::Zstd { level: 3 }] {
        let mut encoder = Encoder::new(algorithm);
        let compressed = if algorithm == Algorithm::Lz4 { Encoding::Lz4 } else { Encoding::Zstd };
        let (encoding, len) = round_trip(&mut encoder, &text_page());
        assert!(encoding == compressed && len < 1000, "{encoding:?} {len}");
        assert_eq!(round_trip(&mut encoder, &random_page(7)), (Encoding::Raw, PAGE_LEN));
        assert_eq!(encoder.encode(&[0x5a; PAGE_LEN]), Encoded::SameFilled(0x5a5a_5a5a_5a5a_5a5a));
        // Half random: worth compressing.
        let mut half = random_page(3);
        half[2048..].fill(0);
        let (encoding, len) = round_trip(&mut encoder, &half);
        assert!(encoding == compressed && len < 2200, "{encoding:?} {len}");
    }
}

#[test]
fn one_byte_makes_a_page_not_same_filled() {
    let mut page = [7; PAGE_LEN];
    assert_eq!(same_filled(&page), Some(0x0707_0707_0707_0707));
    for at in [0, 8, 2000, PAGE_LEN - 1] {
        page[at] = 8;
        assert_eq!(same_filled(&page), None);
        page[at] = 7;
    }
}

#[test]
fn random_pages_look_random_and_others_do_not() {
    let random = (1..2000).filter(|&seed| looks_random(&random_page(seed * 77_777))).count();
    assert!(random > 1990, "{random} of 1999");
    assert!(!looks_random(&text_page()));
    let numbers: Vec<u8> = (0..1024u32).flat_map(|n| (n * 3).to_le_bytes()).collect();
    assert!(!looks_random(&numbers));
    let mut repeated = random_page(5);
    repeated.copy_within(..1024, 1024);
    repeated.copy_within(..2048, 2048);
    assert!(!looks_random(&repeated));
}

#[test]
fn checksums_know_the_encoding() {
    let page = text_page();
    assert_ne!(checksum(Encoding::Raw, &page), checksum(Encoding::Lz4, &page));
}

#[test]
fn nonsense_is_no_page() {
    let mut out = vec![0; PAGE_LEN];
    assert!(!decode(Encoding::Raw, &[1; 100], &mut out));
    assert!(!decode(Encoding::Lz4, &[0x10, 1], &mut out));
    assert!(!decode(Encoding::Zstd, &[1, 2, 3], &mut out));
    assert!(!Decoder::default().decode_zstd(&[0x28, 1, 2, 3, 4], &mut out));
}

proptest! {
    #[test]
    fn any_mixture_comes_back(
        parts in prop::collection::vec((any::<u64>(), 0..4u8, 8..512usize), 1..40),
        level in 1..12i32,
    ) {
        let mut page = Vec::new();
        for (seed, kind, len) in parts {
            match kind {
                0 => page.extend_from_slice(&random_page(seed)[..len]),
                1 => page.extend(std::iter::repeat_n(seed as u8, len)),
                2 => page.extend((0..len).map(|i| (i as u8).wrapping_mul(seed as u8))),
                _ => page.extend_from_slice(&text_page()[..len]),
            }
        }
        page.resize(PAGE_LEN, 0);
        round_trip(&mut Encoder::new(Algorithm::Lz4), &page);
        round_trip(&mut Encoder::new(Algorithm::Zstd { level }), &page);
    }
}
