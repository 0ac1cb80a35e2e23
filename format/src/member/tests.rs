use super::*;
use crate::geometry::Geometry;
use proptest::prelude::*;
use uuid::Uuid;

#[test]
fn kinds_have_the_names_of_types() {
    for kind in MemberKind::ALL {
        assert_eq!(MemberKind::from_type_name(kind.type_name()), Some(kind));
        assert!(crate::types::find(kind.type_name()).is_some_and(|s| s.ghost == kind.is_ghost()));
    }
    assert_eq!(MemberKind::from_type_name("zmem"), None);
}

#[test]
fn every_default_is_a_value_that_the_option_takes() {
    for kind in MemberKind::ALL {
        for option in kind.table().specs() {
            assert!(option.kind.parse(option.default).is_ok(), "{kind:?} {}", option.key);
        }
        let defaults = MemberOptions {
            kind,
            high_percent: 90,
            low_percent: 80,
            promote: Promote::Second,
            keep: Keep::Exclusive,
            rate_bytes: None,
            incompressible: true,
            segment_bytes: None,
            discard: SegmentDiscard::Auto,
            remote: None,
        };
        match kind {
            MemberKind::Remote => assert!(MemberOptions::parse(kind, "").is_err()),
            _ => assert_eq!(MemberOptions::parse(kind, ""), Ok(defaults)),
        }
    }
}

#[test]
fn each_option_has_its_place() {
    let text = "high=60,low=1,promote=never,keep=inclusive,rate=1M,incompressible=skip,\
                segment=64K,discard=off";
    assert_eq!(
        MemberOptions::parse(MemberKind::Log, text),
        Ok(MemberOptions {
            kind: MemberKind::Log,
            high_percent: 60,
            low_percent: 1,
            promote: Promote::Never,
            keep: Keep::Inclusive,
            rate_bytes: Some(1 << 20),
            incompressible: false,
            segment_bytes: Some(64 << 10),
            discard: SegmentDiscard::Off,
            remote: None,
        })
    );
    let parse = |text| MemberOptions::parse(MemberKind::Linear, text).unwrap();
    assert_eq!(parse("promote=always").promote, Promote::Always);
    assert_eq!(parse("discard=on").discard, SegmentDiscard::On);
    assert_eq!(parse("rate=auto").rate_bytes, None);
}

#[test]
fn errors_name_the_member_and_what_is_allowed() {
    let error = |kind, text: &str| MemberOptions::parse(kind, text).unwrap_err().to_string();
    assert!(error(MemberKind::Linear, "segment=1M").starts_with(
        "option 'segment': a member of type 'linear' has no such option: it has high, low,"
    ));
    // Options of volumes are none of members.
    assert!(error(MemberKind::Log, "threads=2").contains("has no such option"));
    assert!(error(MemberKind::Log, "rate=1K").contains("auto, or a size from 64 KiB"));
    assert!(error(MemberKind::Log, "high=101").contains("from 1 to 100"));
    assert!(error(MemberKind::Log, "high=40").contains("80 is not below high, which is 40"));
}

#[test]
fn changes_are_put_over_what_was() {
    let merged = |old: &str, changes: &str| {
        MemberOptions::merged(MemberKind::Log, old, changes).map_err(|error| error.to_string())
    };
    assert_eq!(merged("", "high=70,low=60").as_deref(), Ok("high=70,low=60"));
    let both = merged("segment=1M,high=70,low=60", "low=10");
    assert_eq!(both.as_deref(), Ok("segment=1M,high=70,low=10"));
    // One of them alone is judged with what the other is.
    assert_eq!(merged("high=50,low=40", "low=49").as_deref(), Ok("high=50,low=49"));
    assert!(merged("high=50,low=40", "low=60").unwrap_err().contains("not below"));
    assert!(merged("segment=1M", "segment=2M").unwrap_err().contains("fixed when"));
    assert!(merged("", "segment=2M").unwrap_err().contains("fixed when"));
    assert_eq!(merged("segment=1M", "segment=1M").as_deref(), Ok("segment=1M"));
}

#[test]
fn an_image_is_a_member_by_its_volumes_uuid() {
    let geometry = Geometry::in_place(1 << 20, 4096).unwrap();
    let mut superblock = Superblock::new("log", &geometry, Uuid::from_u128(1));
    assert!(!superblock.is_member());
    assert_eq!(MemberKind::of(&superblock), None);
    superblock.volume_uuid = Uuid::from_u128(2);
    superblock.member_order = 3;
    assert!(superblock.is_member());
    assert_eq!(MemberKind::of(&superblock), Some(MemberKind::Log));
    let decoded = Superblock::decode(&superblock.encode().unwrap()).unwrap();
    assert!(decoded.is_member() && decoded == superblock);
    superblock.type_name = "zmem".to_owned();
    assert_eq!(MemberKind::of(&superblock), None);
}

/// Any text that a member of kind `log` takes, with each key at most once.
fn valid_text() -> impl Strategy<Value = String> {
    let entries = (
        proptest::option::of((2u32..=100).prop_flat_map(|high| (Just(high), 1..high))),
        proptest::option::of(prop_oneof!["always", "second", "never"]),
        proptest::option::of(prop_oneof!["inclusive", "exclusive"]),
        proptest::option::of(64u64..1 << 30),
        proptest::option::of(16u32..=26),
        proptest::option::of(prop_oneof!["take", "skip"]),
    );
    entries.prop_map(|(percents, promote, keep, rate, segment, incompressible)| {
        let entries = [
            percents.map(|(high, low)| format!("high={high},low={low}")),
            promote.map(|word| format!("promote={word}")),
            keep.map(|word| format!("keep={word}")),
            rate.map(|kib| format!("rate={kib}K")),
            segment.map(|shift| format!("segment={}", 1u64 << shift)),
            incompressible.map(|word| format!("incompressible={word}")),
        ];
        entries.into_iter().flatten().collect::<Vec<_>>().join(",")
    })
}

proptest! {
    #[test]
    fn what_is_parsed_holds_its_promises(text in valid_text()) {
        let options = MemberOptions::parse(MemberKind::Log, &text).unwrap();
        prop_assert!(options.low_percent < options.high_percent);
        prop_assert!(options.high_percent <= 100);
        // To change nothing changes nothing.
        let same = MemberOptions::merged(MemberKind::Log, &text, "").unwrap();
        prop_assert_eq!(MemberOptions::parse(MemberKind::Log, &same).unwrap(), options);
    }

    #[test]
    fn changes_win_but_for_the_segment(old in valid_text(), changes in valid_text()) {
        let changed = MemberOptions::parse(MemberKind::Log, &changes).unwrap();
        match MemberOptions::merged(MemberKind::Log, &old, &changes) {
            Err(error) => prop_assert_eq!(error, OptionError::FixedAtFormat("segment".to_owned())),
            Ok(text) => {
                let options = MemberOptions::parse(MemberKind::Log, &text).unwrap();
                let before = MemberOptions::parse(MemberKind::Log, &old).unwrap();
                prop_assert_eq!(options.segment_bytes, before.segment_bytes);
                if changes.contains("promote") {
                    prop_assert_eq!(options.promote, changed.promote);
                }
                if changes.contains("high") {
                    prop_assert_eq!(options.high_percent, changed.high_percent);
                    prop_assert_eq!(options.low_percent, changed.low_percent);
                }
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}", changes in ".{0,60}") {
        for kind in MemberKind::ALL {
            let _ = MemberOptions::parse(kind, &text);
            let _ = MemberOptions::merged(kind, &text, &changes);
        }
    }
}
