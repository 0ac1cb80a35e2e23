//! `FORMAT.md` and the code say the same: the tables of the one are the layouts of the other.

use swapfs_format::superblock::{self, MAGIC, MAX_MEMBERS, VERSION};
use swapfs_format::{PAGE_LEN, geometry, swap_header, types};

const TEXT: &str = include_str!("../FORMAT.md");

/// The text from one heading up to the next one of any depth.
fn section(heading: &str) -> &'static str {
    let start = TEXT.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no '{heading}'"));
    let body = &TEXT[start + 1 + heading.len()..];
    &body[..body.find("\n#").unwrap_or(body.len())]
}

/// The rows of a section's table: name, offset, length and meaning.
fn rows(heading: &str) -> Vec<(&'static str, usize, usize, &'static str)> {
    let table = section(heading).lines().filter(|line| line.starts_with("| `"));
    table
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [name, offset, length, meaning] = cells[..] else { panic!("columns: {line}") };
            let number = |cell: &str| cell.parse().unwrap_or_else(|_| panic!("number: {line}"));
            (name.trim_matches('`'), number(offset), number(length), meaning)
        })
        .collect()
}

fn layout_of(heading: &str) -> Vec<(&'static str, usize, usize)> {
    rows(heading).into_iter().map(|(name, offset, length, _)| (name, offset, length)).collect()
}

fn meaning(heading: &str, field: &str) -> &'static str {
    let row = rows(heading).into_iter().find(|(name, ..)| *name == field);
    row.unwrap_or_else(|| panic!("no row for {field}")).3
}

#[test]
fn the_superblock_is_as_described() {
    assert_eq!(layout_of("## Superblock"), superblock::layout());
}

#[test]
fn the_superblocks_rows_leave_no_byte_out() {
    let mut next = 0;
    for (name, offset, length) in layout_of("## Superblock") {
        assert_eq!(offset, next, "{name}");
        next += length;
    }
    assert_eq!(next, PAGE_LEN);
}

#[test]
fn the_member_entry_is_as_described() {
    assert_eq!(layout_of("### Member entry"), superblock::member_layout());
    let entry: usize = superblock::member_layout().iter().map(|(_, _, length)| length).sum();
    let (_, start, length) = layout_of("## Superblock")
        .into_iter()
        .find(|(name, ..)| *name == "members")
        .expect("a row for members");
    assert_eq!(length, entry * MAX_MEMBERS);
    let text = meaning("## Superblock", "members");
    assert!(text.starts_with(&format!("{MAX_MEMBERS} entries of {entry} bytes")), "{text}");
    assert!(section("### Member entry").contains(&format!("{start} + {entry} * `n`")));
}

#[test]
fn the_swap_header_is_as_described() {
    const HEADING: &str = "## Page 0 of the volume: the swap header";
    assert_eq!(layout_of(HEADING), swap_header::layout());
    let signature = std::str::from_utf8(swap_header::SIGNATURE).expect("ASCII");
    assert_eq!(meaning(HEADING, "signature"), format!("`{signature}`"));
}

#[test]
fn what_is_not_in_the_swap_headers_table_is_zero() {
    let header = swap_header::SwapHeader {
        slot_count: swap_header::MAX_SLOT_COUNT,
        uuid: uuid::Uuid::from_bytes([0xff; 16]),
        label: "sixteen bytes ok".to_owned(),
    };
    let mut page = header.encode();
    for (_, offset, length) in swap_header::layout() {
        page[offset..][..length].fill(0);
    }
    assert_eq!(page, [0; PAGE_LEN]);
}

#[test]
fn constants_are_as_described() {
    let hex: Vec<String> = MAGIC.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(meaning("## Superblock", "magic").contains(&hex.join(" ")));
    assert!(meaning("## Superblock", "version").starts_with(&format!("{VERSION}.")));
    assert!(TEXT.starts_with(&format!("# The on-disk format of swapfs, version {VERSION}\n")));
    assert_eq!(geometry::DATA_ALIGNMENT_BYTES, 1 << 20, "1 MiB, in several places");
    assert_eq!(geometry::MAX_ERASE_BLOCK_BYTES, 1 << 30, "1 GiB, at erase_block_bytes");
    let slots = format!("{} to 2^32", swap_header::MIN_SLOT_COUNT);
    assert_eq!(swap_header::MAX_SLOT_COUNT, 1 << 32);
    assert!(meaning("## Superblock", "slot_count").contains(&slots));
    assert!(section("## Invariants").contains(&slots));
    for spec in types::TYPES {
        assert!(meaning("## Superblock", "type_name").contains(&format!("`{}`", spec.name)));
    }
}

#[test]
fn no_feature_bit_is_known_as_the_text_says() {
    assert_eq!(superblock::KNOWN_COMPATIBLE, 0);
    assert_eq!(superblock::KNOWN_READ_ONLY_COMPATIBLE, 0);
    assert_eq!(superblock::KNOWN_INCOMPATIBLE, 0);
}
