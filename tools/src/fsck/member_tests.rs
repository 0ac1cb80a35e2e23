//! Tier volumes and their members, damaged: what is said of the volume's image, and of a member's.

use super::repair::{Never, Preen, check};
use super::report::EXIT_OPERATIONAL;
use super::tests::patiently;
use mkswapfs::{FormatRequest, MemberSpec};
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use swapfs_format::superblock::Superblock;
use swapfs_format::{PAGE_BYTES, PAGE_LEN};
use swapfsd::sys::file::read_all_at;
use tempfile::TempDir;
use uuid::Uuid;

/// A volume with the members `flash`, a log, and `disk`, linear.
struct Tier {
    _folder: TempDir,
    folder: PathBuf,
    volume: Superblock,
    flash: Superblock,
    disk: Superblock,
}

impl Tier {
    fn formatted() -> Tier {
        let kept = tempfile::tempdir_in("/var/tmp").unwrap();
        let folder = kept.path().canonicalize().unwrap();
        let mut request = FormatRequest::new(&folder.join("image"));
        request.type_name = "tier".to_owned();
        request.volume_bytes = Some(8 << 20);
        let members = ["log:FOLDER/flash,size=2M,segment=64K", "linear:FOLDER/disk,size=1M"];
        let members = members.map(|text| text.replace("FOLDER", folder.to_str().unwrap()));
        request.members = members.map(|text| MemberSpec::parse(&text).unwrap()).to_vec();
        let mut made =
            mkswapfs::format_image(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let disk = made.members.pop().unwrap().superblock;
        let flash = made.members.pop().unwrap().superblock;
        Tier { _folder: kept, folder, volume: made.superblock, flash, disk }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.path(name)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// Writes a changed superblock to both copies of it.
    fn rewrite(&self, name: &str, change: impl FnOnce(&mut Superblock)) {
        let mut page = [0; PAGE_LEN];
        read_all_at(&File::open(self.path(name)).unwrap(), &mut page, 0).unwrap();
        let mut superblock = Superblock::decode(&page).unwrap();
        let backup = superblock.backup_offset_bytes;
        change(&mut superblock);
        let page = superblock.encode().unwrap();
        self.write(name, 0, &page);
        self.write(name, backup, &page);
    }

    fn pass(&self, name: &str, preen: bool) -> (u8, String) {
        let path = self.path(name);
        let outcome =
            || match if preen { check(&path, &mut Preen) } else { check(&path, &mut Never) } {
                Ok(report) => (report.exit_status(), report.to_string()),
                Err(failure) => (EXIT_OPERATIONAL, failure.to_string()),
            };
        patiently(outcome, |(_, text)| text.contains("in use"))
    }

    /// What a look at the volume's image says; `-p` changes nothing about it, and on no member.
    fn looks(&self, exit: u8, says: &str) -> String {
        let members = || ["flash", "disk"].map(|name| fs::read(self.path(name)).ok());
        let before = members();
        for preen in [false, true] {
            let (found, text) = self.pass("image", preen);
            assert!(found == exit && text.contains(says), "{exit} {says}: {found} {text}");
        }
        assert!(members() == before);
        self.pass("image", false).1
    }
}

#[test]
fn a_tier_volume_and_its_members_are_clean() {
    let tier = Tier::formatted();
    let text = tier.looks(0, "clean: type tier, 8 MiB");
    assert!(!text.contains("warning") && !text.contains("note"), "{text}");
    for (name, kind, order) in [("flash", "log", 1), ("disk", "linear", 2)] {
        let (exit, text) = tier.pass(name, true);
        assert_eq!(exit, 0, "{text}");
        let note = format!("note: it is member {order} of the tier volume {}", tier.volume.uuid);
        assert!(text.contains(&note) && text.contains(&format!("clean: type {kind}")), "{text}");
        // Neither the numbers of a log nor a swap header.
        assert!(!text.contains("segments") && !text.contains("swap header"), "{text}");
    }
}

#[test]
fn what_lies_in_a_members_data_section_is_nobodys_business() {
    let tier = Tier::formatted();
    for (name, superblock) in [("flash", &tier.flash), ("disk", &tier.disk)] {
        let noise = vec![0x5a; superblock.data_bytes as usize];
        tier.write(name, superblock.data_offset_bytes, &noise);
        let (exit, text) = tier.pass(name, true);
        assert!(exit == 0 && text.contains("clean"), "{exit} {text}");
        let bytes = fs::read(tier.path(name)).unwrap();
        assert!(bytes[superblock.data_offset_bytes as usize..].starts_with(&noise), "{name}");
    }
    tier.looks(0, "clean");
}

#[test]
fn a_member_that_is_not_there_is_a_warning() {
    let tier = Tier::formatted();
    let (path, uuid) = (tier.path("disk"), tier.disk.uuid);
    fs::rename(&path, tier.path("elsewhere")).unwrap();
    let says = format!("warning: member 2, UUID {uuid}: missing: nothing is at {}", path.display());
    tier.looks(0, &says);
    fs::create_dir(&path).unwrap();
    tier.looks(0, &format!("warning: member 2, UUID {uuid}: can't be looked at"));
    fs::remove_dir(&path).unwrap();
    fs::write(&path, b"text").unwrap();
    tier.looks(0, "where it was, holds no swapfs image");
    fs::copy(tier.path("flash"), &path).unwrap();
    tier.looks(0, &format!("holds another image, of UUID {}", tier.flash.uuid));
    tier.rewrite("image", |superblock| superblock.members[1].path_hint.clear());
    tier.looks(0, &format!("warning: member 2, UUID {uuid}: not looked at"));
}

#[test]
fn a_member_table_that_cannot_be() {
    let other = Uuid::from_u128(5);
    type Change = fn(&mut Superblock);
    let cases: [(Change, &str); 8] = [
        (|one| one.members[0].order = 0, "its place 0 is not behind 0"),
        (|one| one.members[0].order = 2, "its place 2 is not behind 2"),
        (|one| one.members.swap(0, 1), "its place 1 is not behind 2"),
        (|one| one.members[1].order = 9, "its place 9 is over 8"),
        (|one| one.members[1].uuid = one.members[0].uuid, "is there twice"),
        (|one| one.members[0].uuid = one.uuid, "the volume is a member of itself"),
        (|one| one.members[1].size_bytes = 0, "its size of 0 bytes is no multiple of the page"),
        (|one| one.members[1].size_bytes += 1, "its size of 1048577 bytes is no multiple"),
    ];
    for (change, says) in cases {
        let tier = Tier::formatted();
        tier.rewrite("image", change);
        tier.looks(4, says);
    }
    let tier = Tier::formatted();
    tier.rewrite("image", |superblock| {
        for order in 3..10 {
            let uuid = Uuid::from_u128(u128::from(order));
            let member = superblock.members[0].clone();
            let member = swapfs_format::superblock::Member { uuid, order, ..member };
            superblock.members.push(member);
        }
    });
    tier.looks(4, "9 members: a volume has at most 8");
    // Places may be left out, and a member may have gone for good.
    let tier = Tier::formatted();
    tier.rewrite("image", |superblock| drop(superblock.members.remove(0)));
    tier.looks(0, "clean");
    tier.rewrite("image", |superblock| superblock.members[0].uuid = other);
    tier.looks(0, &format!("warning: member 2, UUID {other}: missing"));
}

#[test]
fn a_member_that_says_otherwise_than_the_volume() {
    type Change = fn(&mut Superblock);
    let cases: [(Change, &str); 5] = [
        (|one| one.volume_uuid = Uuid::from_u128(6), "that it belongs to the volume 00000000-"),
        (|one| one.volume_uuid = one.uuid, "that it belongs to no volume, not to this one"),
        (|one| one.member_order = 3, "it says that its place is 3"),
        (
            |one| {
                one.data_bytes -= 64 << 10;
                one.slot_count -= 16;
            },
            "its data section has 983040 bytes, and the volume says 1048576",
        ),
        (|one| one.slot_count -= 1, "its superblock says 255 slots"),
    ];
    for (change, says) in cases {
        let tier = Tier::formatted();
        tier.rewrite("disk", change);
        let text = tier.looks(4, says);
        assert!(text.contains(&format!("member 2, UUID {}", tier.disk.uuid)), "{text}");
    }
    let tier = Tier::formatted();
    let file = File::options().write(true).open(tier.path("flash")).unwrap();
    file.set_len(tier.flash.image_bytes - PAGE_BYTES).unwrap();
    tier.looks(4, "it was cut off");
}

#[test]
fn a_members_superblock_is_repaired_from_its_backup() {
    for name in ["flash", "disk"] {
        let tier = Tier::formatted();
        let whole = fs::read(tier.path(name)).unwrap();
        tier.write(name, 200, b"X");
        tier.looks(4, "fsck.swapfs -p ");
        let (exit, text) = tier.pass(name, false);
        assert!(exit == 4 && text.contains("primary superblock: superblock checksum"), "{text}");
        let (exit, text) = tier.pass(name, true);
        assert!(exit == 1 && text.contains("1 repaired, clean now"), "{exit} {text}");
        assert!(fs::read(tier.path(name)).unwrap() == whole);
        let superblock = if name == "flash" { &tier.flash } else { &tier.disk };
        tier.write(name, superblock.backup_offset_bytes + 8, b"X");
        assert_eq!(tier.pass(name, true).0, 1);
        assert!(fs::read(tier.path(name)).unwrap() == whole);
        tier.looks(0, "clean");
    }
}

#[test]
fn what_a_member_says_wrongly_of_itself() {
    type Change = fn(&mut Superblock);
    let cases: [(&str, Change, &str); 6] = [
        ("flash", |one| one.options = "threads=2".to_owned(), "a member of type 'log' has no such"),
        ("flash", |one| one.options = "high=10".to_owned(), "80 is not below high"),
        ("flash", |one| one.erase_block_bytes = 512 << 10, "has 4 segments"),
        ("disk", |one| one.member_order = 0, "its place among the tiers is 0"),
        (
            "disk",
            |one| one.type_name = "zmem".to_owned(),
            "of type 'log', 'linear' or 'remote', not 'zmem'",
        ),
        (
            "disk",
            |one| {
                one.members.push(swapfs_format::superblock::Member {
                    uuid: Uuid::from_u128(1),
                    size_bytes: 4096,
                    order: 1,
                    path_hint: String::new(),
                });
            },
            "a member has no members itself",
        ),
    ];
    for (name, change, says) in cases {
        let tier = Tier::formatted();
        tier.rewrite(name, change);
        for preen in [false, true] {
            let (exit, text) = tier.pass(name, preen);
            assert!(exit == 4 && text.contains(says), "{says}: {exit} {text}");
        }
    }
}
