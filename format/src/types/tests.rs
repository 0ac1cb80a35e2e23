use super::*;

#[test]
fn every_default_is_a_value_that_the_option_takes() {
    for spec in TYPES {
        for option in spec.option_specs() {
            assert!(option.kind.parse(option.default).is_ok(), "{} {}", spec.name, option.key);
        }
        // But for an address, which has no default.
        let needs_address = spec.option("url").is_some();
        assert_eq!(spec.parse_options("").is_err(), needs_address, "{}", spec.name);
        assert!(spec.name.len() <= crate::superblock::TYPE_NAME_LEN);
    }
}

#[test]
fn a_mount_overrides_the_header() {
    let (options, text) =
        LINEAR.mount_options("engine=sync,checksum=off", "engine=uring,threads=3").unwrap();
    assert_eq!(text, "checksum=off,engine=uring,threads=3");
    assert_eq!(
        options.backend,
        BackendOptions::Linear(LinearOptions {
            engine: LinearEngine::Uring,
            checksum: false,
            discard: true
        })
    );
    assert_eq!(options.common.threads, Some(3));
}

#[test]
fn a_tier_has_what_zmem_has_but_dedup() {
    let tier = |text: &str| match TIER.parse_options(text).unwrap().backend {
        BackendOptions::Tier(tier) => tier,
        other => panic!("{other:?}"),
    };
    let BackendOptions::Zmem(zmem) = ZMEM.parse_options("").unwrap().backend else {
        panic!("zmem has options")
    };
    let defaults = TierOptions {
        zmem,
        high_percent: 90,
        low_percent: 80,
        degraded: false,
        probe: Duration::from_secs(10),
    };
    assert_eq!(tier(""), defaults);
    let set = tier("limit=1G,algo=zstd:2,high=70,low=50,degraded=on,probe=3");
    assert_eq!(set.zmem.limit_bytes, Some(1 << 30));
    assert_eq!(set.zmem.algorithm, Algorithm::Zstd { level: 2 });
    assert_eq!((set.high_percent, set.low_percent), (70, 50));
    assert!(set.degraded && set.probe == Duration::from_secs(3));
    assert!(TIER.option("dedup").is_none());
    for option in ZMEM.options.iter().filter(|option| option.key != "dedup") {
        let shared = TIER.option(option.key).unwrap();
        assert_eq!((shared.default, shared.help), (option.default, option.help));
    }
}

#[test]
fn low_lies_below_high() {
    let error = |text: &str| TIER.parse_options(text).unwrap_err().to_string();
    assert_eq!(
        error("high=80"),
        "option 'low': 80 is not below high, which is 80: set both, low below high"
    );
    assert!(error("low=95").contains("95 is not below high, which is 90"));
    // A mount may set one of them if it goes with what the superblock says of the other.
    let (options, _) = TIER.mount_options("high=50,low=40", "low=49").unwrap();
    assert!(matches!(options.backend, BackendOptions::Tier(tier) if tier.low_percent == 49));
    let error = TIER.mount_options("high=50,low=40", "low=50").unwrap_err().to_string();
    assert!(error.contains("50 is not below high, which is 50"), "{error}");
}

#[test]
fn only_tier_has_members() {
    let with: Vec<_> = TYPES.iter().filter(|spec| spec.has_members).map(|spec| spec.name).collect();
    assert_eq!(with, ["tier"]);
    assert_eq!(known_names(), "zmem, linear, log, tier, remote, ram");
}
