use super::*;

fn image(text: &str) -> MemberImage {
    match MemberSpec::parse(text).unwrap() {
        MemberSpec::Image(image) => image,
        MemberSpec::Memory(options) => panic!("memory with {options}"),
    }
}

#[test]
fn what_a_member_is_told_by() {
    let member = |path: &str, kind, data_bytes, options: &str| MemberImage {
        image: PathBuf::from(path),
        kind,
        data_bytes,
        options: options.to_owned(),
    };
    let log = Some(MemberKind::Log);
    assert_eq!(image("log:/dev/a"), member("/dev/a", log, None, ""));
    assert_eq!(image("/dev/a"), member("/dev/a", None, None, ""));
    assert_eq!(
        image("linear:b c,high=70,size=1G,low=60"),
        member("b c", Some(MemberKind::Linear), Some(1 << 30), "high=70,low=60")
    );
    assert_eq!(image("./zmem"), member("./zmem", None, None, ""));
    assert_eq!(image("./log:x"), member("./log:x", None, None, ""));
    assert_eq!(image("disk:1,size=4K"), member("disk:1", None, Some(4096), ""));
    assert_eq!(image("log:log:x"), member("log:x", log, None, ""));
    assert_eq!(MemberSpec::parse("zmem").unwrap(), MemberSpec::Memory(String::new()));
    let memory = MemberSpec::parse("zmem,limit=1G,algo=zstd").unwrap();
    assert_eq!(memory, MemberSpec::Memory("limit=1G,algo=zstd".to_owned()));
}

#[test]
fn what_says_nothing_is_refused() {
    for (text, says) in [
        ("", "--member : no path"),
        ("log:", "no path: write [log:|linear:|remote:]PATH"),
        (",high=3", "no path"),
        ("zmem:/a", "the memory has no image"),
        ("ram:/a", "no member is of type 'ram'"),
        ("tier:/a", "no member is of type 'tier'"),
        ("/a,size=1G,size=2G", "size is given twice"),
        ("/a,size=big", "'big' is not a size"),
    ] {
        let error = MemberSpec::parse(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn an_entry_has_the_path_without_links_if_it_fits() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let geometry = Geometry::member(1 << 20, PAGE_BYTES, PAGE_BYTES).unwrap();
    let mut superblock = Superblock::new("linear", &geometry, Uuid::from_u128(7));
    superblock.member_order = 3;
    std::os::unix::fs::symlink(&folder, folder.join("link")).unwrap();
    // Whether it is there yet or not.
    for there in [false, true] {
        if there {
            std::fs::write(folder.join("disk"), b"").unwrap();
        }
        let entry = member_entry(&superblock, &folder.join("link/disk"));
        assert_eq!(entry.path_hint, folder.join("disk").to_str().unwrap());
        assert_eq!((entry.uuid, entry.size_bytes, entry.order), (superblock.uuid, 1 << 20, 3));
    }
    let long = folder.join("x".repeat(PATH_HINT_LEN));
    assert_eq!(member_entry(&superblock, &long).path_hint, "");
}
