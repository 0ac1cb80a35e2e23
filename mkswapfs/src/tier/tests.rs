//! Whole tier volumes in files: what stands on them, and what is refused before anything is written.

use super::*;
use crate::{Formatted, Preallocate, format_image, format_member};
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use swapfs_format::superblock::Superblock;
use swapfsd::image::{Access, Image, ImageErrorKind};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: tempfile::tempdir_in("/var/tmp").unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    /// A request for members that are told as `--member` does, with `@` for the folder.
    fn request(&self, members: &[&str]) -> FormatRequest {
        let folder = format!("{}/", self.path("").to_str().unwrap().trim_end_matches('/'));
        let members = members.iter().map(|text| text.replace('@', &folder));
        let mut request = FormatRequest::new(&self.path("image"));
        request.type_name = TIER.name.to_owned();
        request.members = members.map(|text| MemberSpec::parse(&text).unwrap()).collect();
        request.preallocate = Preallocate::Falloc;
        request
    }

    fn refused(&self, members: &[&str]) -> String {
        self.refused_request(&self.request(members))
    }

    /// The error; and nothing in the folder has changed.
    fn refused_request(&self, request: &FormatRequest) -> String {
        let before = self.contents();
        let error = format(request).unwrap_err().to_string();
        assert!(self.contents() == before, "something was written: {error}");
        error
    }

    fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
    }

    fn load_member(&self, name: &str, volume: Uuid) -> Superblock {
        let image = Image::open(&self.path(name), Access::ReadOnly).unwrap();
        image.load_member(volume).unwrap()
    }
}

fn format(request: &FormatRequest) -> Result<Formatted, Error> {
    let _alone = crate::write::tests::alone();
    format_image(request, &mut |_, _| ControlFlow::Continue(()))
}

#[test]
fn a_volume_with_two_members() {
    let bench = Bench::new();
    let mut request = bench.request(&[
        "zmem,limit=64M,high=70",
        "log:@flash,size=16M,segment=256K,promote=never",
        "linear:@disk,size=3M",
    ]);
    request.options = "low=50".to_owned();
    request.label = "cold".to_owned();
    let formatted = format(&request).unwrap();
    let volume = &formatted.superblock;
    assert_eq!((volume.type_name.as_str(), volume.label.as_str()), ("tier", "cold"));
    assert_eq!(volume.options, "low=50,limit=64M,high=70");
    assert_eq!(volume.volume_bytes(), (64 + 16 + 3) * MIB);
    assert!(volume.is_ghost() && !volume.is_member());
    let image = Image::open(&bench.path("image"), Access::ReadOnly).unwrap();
    assert_eq!(&image.load().unwrap(), volume);

    let flash = bench.load_member("flash", volume.uuid);
    let disk = bench.load_member("disk", volume.uuid);
    assert_eq!(formatted.members.len(), 2);
    assert_eq!(formatted.members[0].superblock, flash);
    assert_eq!(formatted.members[1].superblock, disk);
    assert_eq!(flash.type_name, "log");
    assert_eq!(flash.options, "segment=256K,promote=never");
    assert_eq!((flash.data_bytes, flash.erase_block_bytes), (16 * MIB, 256 << 10));
    assert_eq!((disk.type_name.as_str(), disk.data_bytes), ("linear", 3 * MIB));
    for (order, (name, own)) in (1..).zip([("flash", &flash), ("disk", &disk)]) {
        let entry = &volume.members[order as usize - 1];
        assert_eq!((entry.uuid, entry.order, entry.size_bytes), (own.uuid, order, own.data_bytes));
        assert_eq!(entry.path_hint, bench.path(name).to_str().unwrap());
        assert_eq!((own.member_order, own.slot_count), (order, own.data_bytes / PAGE_BYTES));
        let bytes = fs::read(bench.path(name)).unwrap();
        assert_eq!(bytes.len() as u64, own.image_bytes);
        // No swap header, and nothing of a log.
        let data = &bytes[own.data_offset_bytes as usize..];
        assert!(data[..2 * PAGE_BYTES as usize].iter().all(|&byte| byte == 0));
        let member = Image::open(&bench.path(name), Access::ReadOnly).unwrap();
        assert_eq!(member.load().unwrap_err().kind, ImageErrorKind::IsMember(volume.uuid));
    }
    let json = serde_json::to_value(&formatted).unwrap();
    assert_eq!(json["members"][1]["superblock"]["member_order"], 2);
}

#[test]
fn a_plain_file_becomes_a_log_used_to_its_end() {
    let bench = Bench::new();
    fs::write(bench.path("disk"), vec![0; 5 * MIB as usize + 100]).unwrap();
    let mut request = bench.request(&["@disk"]);
    request.volume_bytes = Some(MIB);
    let formatted = format(&request).unwrap();
    assert_eq!(formatted.superblock.volume_bytes(), MIB);
    let member = bench.load_member("disk", formatted.superblock.uuid);
    assert_eq!((member.type_name.as_str(), member.image_bytes), ("log", 5 * MIB));
    // Between the first MiB and the backup there are 4 MiB but a page.
    assert_eq!(member.data_bytes, 4 * MIB - (64 << 10));
}

#[test]
fn without_a_limit_half_of_the_memory_is_counted() {
    let bench = Bench::new();
    let formatted = format(&bench.request(&["linear:@disk,size=1M"])).unwrap();
    let memory = memory::total_bytes() / 2 / PAGE_BYTES * PAGE_BYTES;
    assert_eq!(formatted.superblock.volume_bytes(), MIB + memory);
}

#[test]
fn bad_lists_of_members_are_refused() {
    let bench = Bench::new();
    fs::write(bench.path("there"), vec![0; 4 * MIB as usize]).unwrap();
    fs::hard_link(bench.path("there"), bench.path("again")).unwrap();
    let nine: Vec<String> = (0..9).map(|number| format!("@disk{number},size=1M")).collect();
    let nine: Vec<&str> = nine.iter().map(String::as_str).collect();
    let cases: [(&[&str], &str); 14] = [
        (&[], "give one to 8, hottest first, with --member"),
        (&["zmem"], "give one to 8"),
        (&["zmem", "zmem", "@a,size=1M"], "--member zmem: given twice"),
        (&["@a,size=1M", "zmem"], "the memory is always the first tier"),
        (&nine, "9 images are too many: a volume has at most 8"),
        (&["@a,size=1M", "log:@./a,size=2M"], "the same image is given twice"),
        (&["@there", "@again"], "the same image is given twice"),
        (&["@a,size=1M", "@image,size=1M"], "it is the volume's own image too"),
        (&["@a,size=1M", "@new"], "it does not exist: give its size to create it, as"),
        (&["@a,size=1M", "@b,size=64K"], "64 KiB is too small for a member: the least is 512 KiB"),
        (&["log:@a,size=1M,segment=1M"], "1 MiB is too small for a member: the least is 8 MiB"),
        (&["@there,size=4M"], "the image has 4 MiB"),
        (&["linear:@a,size=1M,segment=1M"], "a member of type 'linear' has no such option"),
        (&["zmem,dedup=on", "@a,size=1M"], "type 'tier' has no such option"),
    ];
    for (members, says) in cases {
        let error = bench.refused(members);
        assert!(error.contains(says), "{members:?}: {error}");
    }
    let error = bench.refused(&["@a,size=1M,high=10"]);
    assert!(error.contains("a: option 'low': 80 is not below high"), "{error}");
    let error = bench.refused(&["@missing/a,size=1M"]);
    assert!(error.contains("make it first"), "{error}");
    let mut linear = bench.request(&["@a,size=1M"]);
    linear.type_name = "linear".to_owned();
    let error = bench.refused_request(&linear);
    assert!(error.contains("type 'linear' has no members: use -t tier"), "{error}");
}

#[test]
fn an_image_in_use_is_refused_with_all_others() {
    let bench = Bench::new();
    fs::write(bench.path("there"), vec![0; 4 * MIB as usize]).unwrap();
    let _held = Image::open_exclusive(&bench.path("there"), Access::ReadOnly).unwrap();
    let mut request = bench.request(&["@a,size=1M", "@there"]);
    request.force = true;
    let error = bench.refused_request(&request);
    assert!(error.contains("there: in use"), "{error}");
}

#[test]
fn what_a_member_holds_is_not_overwritten_without_force() {
    let bench = Bench::new();
    let mut swap = vec![0; 4 * MIB as usize];
    swap[4086..4096].copy_from_slice(b"SWAPSPACE2");
    swap[1024] = 1;
    swap[1028] = 255;
    fs::write(bench.path("swap"), &swap).unwrap();
    fs::write(bench.path("free"), vec![7; 4 * MIB as usize]).unwrap();
    // Nothing is written to the first of them either.
    let error = bench.refused(&["@free", "@swap", "@new,size=1M"]);
    assert!(error.contains("swap: holds a swap area: nothing was changed"), "{error}");
    let mut request = bench.request(&["@free", "@swap", "@new,size=1M"]);
    request.force = true;
    let formatted = format(&request).unwrap();
    assert_eq!(formatted.members.len(), 3);

    // Now they are another volume's.
    let old = formatted.superblock.uuid;
    let mut second = bench.request(&["@swap"]);
    second.image = bench.path("second");
    let error = bench.refused_request(&second);
    let says = format!("holds a member of the swapfs tier volume {old}, of type log");
    assert!(error.contains(&says) && error.contains("use -f"), "{error}");
    second.force = true;
    let new = format(&second).unwrap().superblock.uuid;
    assert_ne!(new, old);
    let taken = Image::open(&bench.path("swap"), Access::ReadOnly).unwrap();
    assert!(taken.load_member(old).is_err() && taken.load_member(new).is_ok());
}

#[test]
fn a_dry_run_writes_nothing_and_shows_all() {
    let bench = Bench::new();
    fs::write(bench.path("there"), vec![0; 4 * MIB as usize]).unwrap();
    let before = bench.contents();
    let mut request = bench.request(&["@there", "linear:@new,size=1M"]);
    request.dry_run = true;
    let formatted = format(&request).unwrap();
    assert!(bench.contents() == before);
    let created: Vec<bool> = formatted.members.iter().map(|member| member.created).collect();
    assert_eq!(created, [false, true]);
    assert!(formatted.dry_run && formatted.members.iter().all(|member| member.dry_run));
    let text = crate::cli::describe(&formatted);
    for says in [
        "would format",
        "type     tier",
        "\nmember 1 log:",
        "in segments of 64 KiB from byte 1048576",
        "\nmember 2 linear:",
        "new (2 MiB, to be created)",
    ] {
        assert!(text.contains(says), "{says}\n{text}");
    }
}

#[test]
fn an_interrupted_format_leaves_no_volume_and_no_member() {
    let bench = Bench::new();
    for name in ["first", "second"] {
        fs::write(bench.path(name), vec![0; 4 * MIB as usize]).unwrap();
    }
    let mut request = bench.request(&["@first", "linear:@second", "@new,size=1M"]);
    request.preallocate = Preallocate::Full;
    let mut last = 0;
    let error = {
        let _alone = crate::write::tests::alone();
        format_image(&request, &mut |done, total| {
            assert!(last <= done && done <= total, "{last} {done} {total}");
            last = done;
            // The first two are whole by now.
            if done > 5 * MIB { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    };
    let error = error.unwrap_err().to_string();
    assert!(error.contains("interrupted"), "{error}");
    assert!(!bench.path("new").exists() && !bench.path("image").exists());
    for name in ["first", "second"] {
        let image = Image::open(&bench.path(name), Access::ReadOnly).unwrap();
        assert!(image.read_superblocks().primary.is_err(), "{name}");
    }
}

#[test]
fn one_member_for_a_volume_that_there_is() {
    let bench = Bench::new();
    let volume = format(&bench.request(&["@a,size=1M"])).unwrap().superblock;
    let spec = MemberSpec::parse(&format!("linear:{},size=2M", bench.path("b").display())).unwrap();
    let MemberSpec::Image(member) = spec else { panic!("no image") };
    let mut request = MemberRequest {
        member,
        volume: volume.uuid,
        order: 4,
        erase_block_bytes: None,
        preallocate: Preallocate::Full,
        force: false,
        dry_run: true,
    };
    let add = |request: &MemberRequest| {
        let _alone = crate::write::tests::alone();
        format_member(request, &mut |_, _| ControlFlow::Continue(()))
    };
    assert!(add(&request).unwrap().created && !bench.path("b").exists());
    request.dry_run = false;
    let added = add(&request).unwrap().superblock;
    assert_eq!(bench.load_member("b", volume.uuid), added);
    assert_eq!((added.member_order, added.data_bytes), (4, 2 * MIB));
    let error = add(&request).unwrap_err().to_string();
    assert!(error.contains("holds a member of the swapfs tier volume"), "{error}");
    for order in [0, 9] {
        let request = MemberRequest { order, force: true, ..request.clone() };
        let error = add(&request).unwrap_err().to_string();
        assert!(error.contains("members have 1 to 8"), "{error}");
    }
}
