//! `FORMAT.md` and the code say the same: the tables of the one are the layouts of the other.

use swapfs_format::superblock::{self, MAGIC, MAX_MEMBERS, VERSION};
use swapfs_format::{PAGE_LEN, geometry, log, member, swap_header, trace, types};

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
fn member_images_are_as_described() {
    let text = section("## Member images");
    let most = member::MAX_DEVICE_MEMBERS;
    assert!(most <= MAX_MEMBERS);
    assert!(meaning("### Member entry", "order").contains(&format!("1 to {most}:")));
    let superblock = |field| meaning("## Superblock", field);
    assert!(superblock("member_order").contains(&format!("1 to {most}")));
    assert!(superblock("member_count").contains(&format!("at most {most}")));
    assert!(text.contains(&format!("its place, 1 to {most}:")));
    let segments = member::MIN_MEMBER_SEGMENTS;
    assert_eq!(text.matches(&format!("at least {segments} segments")).count(), 2, "{text}");
    assert_eq!(member::MIN_MEMBER_BYTES, 512 << 10, "512 KiB");
    assert!(text.contains("at least 512 KiB"));
    for kind in member::MemberKind::ALL {
        assert!(text.contains(&format!("`{}`", kind.type_name())), "{kind:?}");
    }
    // Each field that the table names is one of the superblock.
    let fields = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let named: Vec<&str> = fields.map(|(field, _)| field).collect();
    assert_eq!(named.len(), 7);
    for field in named {
        assert!(!superblock(field).is_empty());
    }
    let ghosts = types::TYPES.iter().filter(|spec| spec.ghost).map(|spec| spec.name);
    let ghosts: Vec<String> = ghosts.map(|name| format!("`{name}`")).collect();
    let [first @ .., last] = &ghosts[..] else { panic!("{ghosts:?}") };
    assert!(TEXT.contains(&format!("(types {} and {last})", first.join(", "))));
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

#[test]
fn the_trace_file_is_as_described() {
    const HEADING: &str = "## The trace file";
    assert_eq!(layout_of(HEADING), trace::header_layout());
    assert_eq!(layout_of("### Trace record"), trace::record_layout());
    for (heading, end) in [(HEADING, trace::HEADER_LEN), ("### Trace record", trace::RECORD_LEN)] {
        let mut next = 0;
        for (name, offset, length) in layout_of(heading) {
            assert_eq!(offset, next, "{name}");
            next += length;
        }
        assert_eq!(next, end);
    }
    let hex: Vec<String> = trace::MAGIC.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(meaning(HEADING, "magic").contains(&hex.join(" ")));
    assert!(meaning(HEADING, "version").starts_with(&format!("{}.", trace::VERSION)));
    assert_eq!(meaning(HEADING, "record_bytes"), trace::RECORD_LEN.to_string());
    assert_eq!(trace::DEFAULT_SEGMENT_BYTES, 2 << 20, "2 MiB, at segment_bytes");
    for kind in trace::RecordKind::ALL {
        let row = format!("\n| {} | {} | ", kind as u8, kind.name());
        assert!(section("### Trace record").contains(&row), "{row}");
    }
}

#[test]
fn the_log_is_as_described() {
    let described = [
        ("### Anchor", log::layout::anchor(), log::ANCHOR_LEN),
        ("### Part header", log::layout::part_header(), log::PART_HEADER_LEN),
        ("### Record", log::layout::record(), log::RECORD_LEN),
    ];
    for (heading, layout, len) in described {
        assert_eq!(layout_of(heading), layout, "{heading}");
        let mut next = 0;
        for (name, offset, length) in layout {
            assert_eq!(offset, next, "{heading}: {name}");
            next += length;
        }
        assert_eq!(next, len, "{heading}");
    }
}

#[test]
fn the_logs_constants_are_as_described() {
    const LOG: &str = "## The data section of a log";
    let magic = |bytes: &[u8]| format!("`{}`", std::str::from_utf8(bytes).expect("ASCII"));
    assert_eq!(meaning("### Anchor", "magic"), magic(&log::ANCHOR_MAGIC));
    assert_eq!(meaning("### Part header", "magic"), magic(&log::PART_MAGIC));
    for heading in ["### Anchor", "### Part header"] {
        assert!(meaning(heading, "version").starts_with(&format!("{}.", log::VERSION)));
    }
    assert_eq!(log::MIN_SEGMENT_BYTES, 64 << 10, "64 KiB");
    assert_eq!(log::MAX_SEGMENT_BYTES, 64 << 20, "64 MiB");
    assert!(section(LOG).contains("from 64 KiB\nto 64 MiB"));
    assert!(section(LOG).contains(&format!("segments, at least {};", log::MIN_SEGMENTS)));
    assert_eq!(log::MAX_PART_BYTES, 1 << 20);
    assert!(section("### Part header").contains("at\nmost 1 MiB long"));
    assert_eq!(log::ANCHOR_OFFSETS_BYTES, [0, 4096]);
    assert!(
        section("### Object").contains(&format!("{} bytes of checksum", log::OBJECT_HEADER_LEN))
    );
    let text = section("### Checkpoint");
    assert!(text.contains(&format!("blocks of {} bytes", log::CHECKPOINT_LEAF_LEN)));
    assert!(text.contains(&format!("{}\nwords", log::CHECKPOINT_LEAF_SLOTS)));
    assert_eq!(log::CHECKPOINT_SEGMENT_LEAVES, 1 << 32, "2^32, in several places");
}

#[test]
fn the_logs_numbers_are_as_described() {
    for (kind, number) in
        [(log::PartKind::Data, "1: data;"), (log::PartKind::Checkpoint, "2: a piece")]
    {
        assert!(meaning("### Part header", "kind").contains(number), "{kind:?}");
        assert!(number.starts_with(&(kind as u16).to_string()));
    }
    let owner = log::Owner { uuid: uuid::Uuid::from_bytes([1; 16]), created_unix_s: 2 };
    let clean = log::AnchorState::Clean {
        checkpoint_segment: 1,
        checkpoint_parts: 2,
        checkpoint_sequence: 3,
    };
    let states = [(log::AnchorState::InUse, "1: in use"), (clean, "2: clean")];
    for (state, text) in states {
        let anchor = log::Anchor {
            owner,
            generation: 1,
            segment_bytes: 1 << 20,
            next_sequence: 1,
            next_write_sequence: 1,
            state,
        };
        let (_, offset, _) = log::layout::anchor()[3];
        assert!(text.starts_with(&anchor.encode()[offset].to_string()));
        assert!(meaning("### Anchor", "state").contains(text));
    }
    let object = |encoding| log::Content::Object { encoding, offset: 9, len: 7, checksum: 5 };
    let contents = [
        (log::Content::SameFilled(6), 1, 6),
        (object(2), 2, 9 << 32 | 5),
        (object(3), 3, 9 << 32 | 5),
        (object(4), 4, 9 << 32 | 5),
        (log::Content::Discarded(6), 8, 6),
    ];
    let field = |name| {
        let rows = log::layout::record();
        let (_, offset, length) = *rows.iter().find(|row| row.0 == name).expect("a field");
        offset..offset + length
    };
    for (content, kind, value) in contents {
        let bytes = log::Record { sequence: 3, slot: 4, content }.encode();
        assert_eq!(bytes[field("kind")], [kind]);
        assert_eq!(bytes[field("value")], u64::to_le_bytes(value));
        assert!(section("### Record").contains(&format!("\n| {kind} | ")), "{content:?}");
    }
}
