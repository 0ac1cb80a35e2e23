//! Cases in the manner of e2fsprogs: how an image is damaged, what a first pass with `-n` says,
//! what a pass with `-p` does, and what a second `-n` finds after that.

use super::cli::status;
use super::repair::{Always, Never, check};
use super::report::{EXIT_CORRECTED, EXIT_OPERATIONAL};
use super::survey::survey;
use mkswapfs::FormatRequest;
use std::ffi::OsString;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;
use swapfs_format::superblock::{Member, Superblock};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};
use swapfsd::image::{Access, Image};
use swapfsd::sys::file::read_all_at;
use tempfile::TempDir;
use uuid::Uuid;

const VOLUME_BYTES: u64 = 1 << 20;
const DATA_OFFSET: u64 = 1 << 20;
const BACKUP_OFFSET: u64 = DATA_OFFSET + VOLUME_BYTES;
const IMAGE_BYTES: u64 = BACKUP_OFFSET + PAGE_BYTES;

/// What one pass is to say: the exit status, and parts of the text.
struct Pass {
    exit: u8,
    says: &'static [&'static str],
}

struct Case {
    name: &'static str,
    damage: fn(&Disk),
    look: Pass,
    preen: Pass,
    look_again: Pass,
}

/// An image that is formatted, and then damaged.
struct Disk {
    _folder: TempDir,
    path: PathBuf,
}

impl Disk {
    fn formatted(type_name: &str) -> Disk {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("image");
        let mut request = FormatRequest::new(&path);
        request.type_name = type_name.to_owned();
        request.volume_bytes = Some(VOLUME_BYTES);
        request.label = "case".to_owned();
        request.uuid = Some(Uuid::from_u128(0xfeed));
        mkswapfs::format_image(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
        Disk { _folder: folder, path }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        File::options().write(true).open(&self.path).unwrap().write_all_at(bytes, offset).unwrap();
    }

    fn page(&self, offset: u64) -> [u8; PAGE_LEN] {
        let mut page = [0; PAGE_LEN];
        read_all_at(&File::open(&self.path).unwrap(), &mut page, offset).unwrap();
        page
    }

    fn resize(&self, bytes: u64) {
        File::options().write(true).open(&self.path).unwrap().set_len(bytes).unwrap();
    }

    /// Changes bytes of a superblock and makes its checksum right again.
    fn patch(&self, copies: &[u64], offset: usize, bytes: &[u8]) {
        for &copy in copies {
            let mut page = self.page(copy);
            page[offset..][..bytes.len()].copy_from_slice(bytes);
            let crc = crc32(&page[..PAGE_LEN - 4]);
            page[PAGE_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
            self.write(copy, &page);
        }
    }

    /// Writes a changed superblock to copies of it.
    fn rewrite(&self, copies: &[u64], change: fn(&mut Superblock)) {
        let mut superblock = Superblock::decode(&self.page(0)).unwrap();
        change(&mut superblock);
        let page = superblock.encode().unwrap();
        copies.iter().for_each(|&copy| self.write(copy, &page));
    }

    /// Exit status and text of one pass.
    fn pass(&self, preen: bool) -> (u8, String) {
        patiently(|| self.pass_at_once(preen), |(_, text)| text.contains("in use"))
    }

    fn pass_at_once(&self, preen: bool) -> (u8, String) {
        let outcome =
            if preen { check(&self.path, &mut Always) } else { check(&self.path, &mut Never) };
        match outcome {
            Ok(report) => (report.exit_status(), report.to_string()),
            Err(failure) => (EXIT_OPERATIONAL, failure.to_string()),
        }
    }
}

/// Tries again for a moment. Other tests of this process start programs; between its fork and
/// its exec, such a child has our files open too, and with them the lock of the last pass.
pub(super) fn patiently<T>(attempt: impl Fn() -> T, held: impl Fn(&T) -> bool) -> T {
    for _ in 0..20 {
        let outcome = attempt();
        if !held(&outcome) {
            return outcome;
        }
        sleep(Duration::from_millis(10));
    }
    attempt()
}

/// CRC-32 (IEEE), bit by bit: a second opinion on what the format crate computes by table.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

const BOTH: &[u64] = &[0, BACKUP_OFFSET];
const CLEAN: Pass = Pass { exit: 0, says: &["clean"] };

/// A case that no repair changes.
const fn hopeless(
    name: &'static str,
    damage: fn(&Disk),
    exit: u8,
    says: &'static [&'static str],
) -> Case {
    let look = Pass { exit, says };
    let preen = Pass { exit, says };
    Case { name, damage, look, preen, look_again: Pass { exit, says } }
}

/// A case that is clean after `-p`.
const fn curable(
    name: &'static str,
    damage: fn(&Disk),
    look: &'static [&'static str],
    preen: &'static [&'static str],
) -> Case {
    let (look, preen) = (Pass { exit: 4, says: look }, Pass { exit: 1, says: preen });
    Case { name, damage, look, preen, look_again: CLEAN }
}

const CASES: &[Case] = &[
    Case { name: "undamaged", damage: |_| (), look: CLEAN, preen: CLEAN, look_again: CLEAN },
    curable(
        "primary: one bit",
        |disk| disk.write(200, b"X"),
        &["primary superblock: superblock checksum is wrong", "not repaired: fsck.swapfs -p"],
        &["repaired: write the primary superblock from the backup", "1 repaired, clean now"],
    ),
    curable(
        "primary: zeros, as an interrupted format leaves it",
        |disk| disk.write(0, &[0; PAGE_LEN]),
        &["no swapfs superblock (wrong magic)"],
        &["repaired: write the primary superblock from the backup"],
    ),
    curable(
        "primary: wrong magic, and nothing that blkid knows",
        |disk| disk.write(0, b"swapfs\n\n"),
        &["no swapfs superblock (wrong magic)"],
        &["repaired: write the primary superblock from the backup"],
    ),
    curable(
        "primary: damaged, and the image has grown since",
        |disk| {
            disk.write(200, b"X");
            disk.resize(2 * IMAGE_BYTES);
        },
        &["checksum is wrong", "the image is larger"],
        &["repaired: write the primary superblock from the backup"],
    ),
    curable(
        "backup: one bit",
        |disk| disk.write(BACKUP_OFFSET + 200, b"X"),
        &["backup superblock: superblock checksum is wrong"],
        &["repaired: write the backup superblock from the primary"],
    ),
    curable(
        "primary: one bit of the version",
        |disk| disk.write(8, &[3]),
        &["primary superblock: superblock checksum is wrong"],
        &["repaired: write the primary superblock from the backup"],
    ),
    curable(
        "backup: one bit of the version",
        |disk| disk.write(BACKUP_OFFSET + 8, &[3]),
        &["backup superblock: superblock checksum is wrong"],
        &["repaired: write the backup superblock from the primary"],
    ),
    curable(
        "backup: zeros",
        |disk| disk.write(BACKUP_OFFSET, &[0; PAGE_LEN]),
        &["backup superblock: no swapfs superblock (wrong magic)"],
        &["repaired: write the backup superblock from the primary"],
    ),
    curable(
        "primary is newer",
        |disk| disk.rewrite(&[0], |superblock| superblock.generation = 5),
        &["superblock differ: generation 5 and 1"],
        &["repaired: write the backup superblock from the primary"],
    ),
    curable(
        "backup is newer",
        |disk| disk.rewrite(&[BACKUP_OFFSET], |superblock| superblock.generation = 7),
        &["superblock differ: generation 1 and 7"],
        &["repaired: write the primary superblock from the backup"],
    ),
    curable(
        "backup of another volume, with a higher generation",
        |disk| {
            disk.rewrite(&[BACKUP_OFFSET], |superblock| {
                superblock.uuid = Uuid::from_u128(3);
                superblock.generation = 9;
            });
        },
        &["superblock differ: UUID"],
        &["repaired: write the backup superblock from the primary"],
    ),
    curable(
        "a backup that names another place, behind a good primary",
        |disk| {
            disk.rewrite(&[BACKUP_OFFSET], |superblock| {
                superblock.generation = 9;
                superblock.image_bytes += PAGE_BYTES;
                superblock.backup_offset_bytes += PAGE_BYTES;
            });
        },
        &["backup superblock: superblock field backup_offset_bytes"],
        &["repaired: write the backup superblock from the primary"],
    ),
    curable(
        "swap header: zeros",
        |disk| disk.write(DATA_OFFSET, &[0; PAGE_LEN]),
        &["swap header in page 0 of the volume: missing, so that swapon would fail"],
        &["repaired: write the swap header anew"],
    ),
    curable(
        "swap header: larger than the volume",
        |disk| disk.write(DATA_OFFSET + 1028, &10_000u32.to_le_bytes()),
        &["describes 10001 slots, and the volume has 256"],
        &["repaired: write the swap header anew"],
    ),
    curable(
        "primary and swap header",
        |disk| {
            disk.write(0, &[0; PAGE_LEN]);
            disk.write(DATA_OFFSET, &[0; PAGE_LEN]);
        },
        &["wrong magic", "swap header", "2 left"],
        &["2 repaired, clean now"],
    ),
    Case {
        name: "swap header: mkswap wrote another one",
        damage: |disk| disk.write(DATA_OFFSET + 1036, &[7; 16]),
        look: Pass { exit: 0, says: &["note: the swap header is another one", "clean"] },
        preen: CLEAN,
        look_again: Pass { exit: 0, says: &["note: the swap header is another one"] },
    },
    Case {
        name: "swap header: mkswap wrote a smaller one",
        damage: |disk| disk.write(DATA_OFFSET + 1028, &99u32.to_le_bytes()),
        look: Pass { exit: 0, says: &["note: the swap header leaves 156 of the 256 slots unused"] },
        preen: CLEAN,
        look_again: Pass { exit: 0, says: &["note: the swap header leaves 156"] },
    },
    Case {
        name: "swap header: hibernated",
        damage: |disk| disk.write(DATA_OFFSET + 4086, b"S1SUSPEND\0"),
        look: Pass { exit: 0, says: &["note: the volume holds a hibernated system"] },
        preen: CLEAN,
        look_again: Pass { exit: 0, says: &["note: the volume holds a hibernated system"] },
    },
    Case {
        name: "the device is larger than the superblock says",
        damage: |disk| disk.resize(IMAGE_BYTES + (8 << 20)),
        look: Pass { exit: 0, says: &["note: the image is larger", "8 MiB", "clean"] },
        preen: CLEAN,
        look_again: CLEAN,
    },
    Case {
        name: "two problems, one of which stays",
        damage: |disk| {
            disk.rewrite(BOTH, |superblock| superblock.options = "engine=warp".to_owned());
            disk.write(BACKUP_OFFSET + 200, b"X");
        },
        look: Pass { exit: 4, says: &["option 'engine'", "backup superblock", "2 left"] },
        preen: Pass { exit: 5, says: &["1 repaired, 1 left"] },
        look_again: Pass { exit: 4, says: &["option 'engine': 'warp' is not allowed", "1 left"] },
    },
    hopeless(
        "truncated in the data section",
        |disk| disk.resize(DATA_OFFSET + 100),
        4,
        &["the image has 1048676 bytes", "its superblock says 2101248", "can't be repaired"],
    ),
    hopeless(
        "truncated by one byte",
        |disk| disk.resize(IMAGE_BYTES - 1),
        4,
        &["the image has 2101247 bytes", "can't be repaired"],
    ),
    hopeless("truncated in the primary", |disk| disk.resize(100), 8, &["not a swapfs volume"]),
    hopeless("empty", |disk| disk.resize(0), 8, &["not a swapfs volume"]),
    hopeless(
        "smaller than it says, with both superblocks good",
        |disk| disk.rewrite(BOTH, |superblock| superblock.image_bytes += PAGE_BYTES),
        4,
        &["its superblock says 2105344", "can't be repaired"],
    ),
    hopeless(
        "both superblocks: one bit each",
        |disk| {
            disk.write(200, b"X");
            disk.write(BACKUP_OFFSET + 300, b"X");
        },
        4,
        &["primary superblock: superblock checksum", "backup superblock: superblock checksum"],
    ),
    hopeless(
        "both superblocks: zeros",
        |disk| BOTH.iter().for_each(|&copy| disk.write(copy, &[0; PAGE_LEN])),
        8,
        &["not a swapfs volume: no swapfs superblock (wrong magic)", "mkswapfs"],
    ),
    hopeless(
        "newer incompatible feature",
        |disk| disk.patch(BOTH, 32, &[4]),
        8,
        &["incompatible features 0x4", "nothing was changed"],
    ),
    hopeless(
        "newer incompatible feature, in the backup behind a damaged primary",
        |disk| {
            disk.patch(BOTH, 32, &[4]);
            disk.write(200, b"X");
        },
        8,
        &["backup superblock", "incompatible features 0x4"],
    ),
    hopeless(
        "newer version",
        |disk| disk.patch(BOTH, 8, &[2]),
        8,
        &["superblock version 2", "nothing was changed"],
    ),
    hopeless(
        "newer read-only compatible feature: what is wrong is said, and left",
        |disk| {
            disk.patch(BOTH, 24, &[1]);
            disk.write(DATA_OFFSET, &[0; PAGE_LEN]);
        },
        4,
        &["swap header", "features 0x1", "2 left"],
    ),
    hopeless(
        "unknown type",
        |disk| disk.rewrite(BOTH, |superblock| superblock.type_name = "warp".to_owned()),
        4,
        &["unknown type 'warp': this program knows zmem, linear", "can't be repaired"],
    ),
    hopeless(
        "unknown option",
        |disk| disk.rewrite(BOTH, |superblock| superblock.options = "colour=red".to_owned()),
        4,
        &["option 'colour': type 'linear' has no such option"],
    ),
    hopeless(
        "option out of range",
        |disk| disk.rewrite(BOTH, |superblock| superblock.options = "threads=65".to_owned()),
        4,
        &["option 'threads': '65' is not allowed: auto, or a whole number from 1 to 64"],
    ),
    hopeless(
        "a field out of range",
        |disk| disk.patch(BOTH, 96, &3u64.to_le_bytes()),
        4,
        &["superblock field slot_count: 3 is not from 10"],
    ),
    hopeless(
        "the data section is smaller than the volume",
        |disk| disk.rewrite(BOTH, |superblock| superblock.data_bytes -= PAGE_BYTES),
        4,
        &["the data section has 1044480 bytes, and the volume 1048576"],
    ),
    hopeless(
        "a ghost type with a data section",
        |disk| disk.rewrite(BOTH, |superblock| superblock.type_name = "ram".to_owned()),
        4,
        &["the image has a data section: type 'ram' does not go with that"],
    ),
    hopeless(
        "members of a type that has none",
        |disk| {
            disk.rewrite(BOTH, |superblock| {
                superblock.members.push(Member {
                    uuid: Uuid::from_u128(5),
                    size_bytes: 1 << 30,
                    order: 0,
                    path_hint: "/dev/x".to_owned(),
                });
            });
        },
        4,
        &["type 'linear' has no members"],
    ),
    hopeless(
        "another program's swap area over the primary",
        |disk| {
            // As mkswap writes it: version 1, last page 100, signature.
            disk.write(0, &[0; PAGE_LEN]);
            disk.write(1024, &[1, 0, 0, 0, 100]);
            disk.write(4086, b"SWAPSPACE2");
        },
        4,
        &["overwritten: the image now holds a swap area", "nothing is changed"],
    ),
    hopeless(
        "another file system, which leaves the first pages zero",
        |disk| {
            disk.write(0, &[0; DATA_OFFSET as usize + PAGE_LEN]);
            // ISO 9660: a primary volume descriptor, and the end of the descriptors.
            disk.write(32_768, b"\x01CD001\x01");
            disk.write(34_816, b"\xffCD001\x01");
        },
        4,
        &["overwritten: the image now holds a signature of iso9660", "nothing is changed"],
    ),
];

#[test]
fn every_case_goes_as_it_says() {
    for case in CASES {
        let disk = Disk::formatted("linear");
        (case.damage)(&disk);
        let before = fs::read(&disk.path).unwrap();
        expect(case, "-n", &disk.pass(false), &case.look);
        assert!(fs::read(&disk.path).unwrap() == before, "{}: -n has written", case.name);
        expect(case, "-p", &disk.pass(true), &case.preen);
        let after = fs::read(&disk.path).unwrap();
        if case.preen.exit & EXIT_CORRECTED == 0 {
            assert!(after == before, "{}: -p has written, and says it has not", case.name);
        }
        expect(case, "second -n", &disk.pass(false), &case.look_again);
        assert!(fs::read(&disk.path).unwrap() == after, "{}: second -n has written", case.name);
    }
}

fn expect(case: &Case, pass: &str, (exit, text): &(u8, String), wanted: &Pass) {
    assert_eq!(*exit, wanted.exit, "{}: {pass}: {text}", case.name);
    for part in wanted.says {
        assert!(text.contains(part), "{}: {pass}: no '{part}' in: {text}", case.name);
    }
}

#[test]
fn a_repaired_image_is_the_one_that_was_formatted() {
    let disk = Disk::formatted("linear");
    let formatted = fs::read(&disk.path).unwrap();
    disk.write(0, &[0; PAGE_LEN]);
    disk.write(DATA_OFFSET, &[0; PAGE_LEN]);
    assert_eq!(disk.pass(true).0, 1);
    assert!(fs::read(&disk.path).unwrap() == formatted);
}

/// One bit of every byte in both copies; repaired where the fields differ in how they fail.
#[test]
fn no_single_bit_goes_unseen_or_beyond_repair() {
    let disk = Disk::formatted("linear");
    let formatted = fs::read(&disk.path).unwrap();
    for &copy in BOTH {
        for byte in 0..PAGE_BYTES {
            let (place, bit) = (copy + byte, byte % 8);
            let right = formatted[place as usize];
            disk.write(place, &[right ^ 1 << bit]);
            let (exit, text) = disk.pass(false);
            assert!(exit == 4 && text.contains("not repaired"), "byte {place} bit {bit}: {text}");
            if byte < 16 || byte % 256 == 5 {
                assert_eq!(disk.pass(true).0, 1, "byte {place} bit {bit}");
                assert!(fs::read(&disk.path).unwrap() == formatted, "byte {place} bit {bit}");
            }
            disk.write(place, &[right]);
        }
    }
}

#[test]
fn the_primary_superblock_is_repaired_last() {
    let disk = Disk::formatted("linear");
    disk.write(0, &[0; PAGE_LEN]);
    disk.write(DATA_OFFSET, &[0; PAGE_LEN]);
    let image = Image::open(&disk.path, Access::ReadOnly).unwrap();
    let problems = survey(&image, true).unwrap().problems;
    let places = problems.iter().map(|problem| problem.repair.as_ref().unwrap().offset_bytes);
    assert_eq!(places.collect::<Vec<_>>(), [DATA_OFFSET, 0]);
}

#[test]
fn a_ghost_image_has_no_swap_header_to_miss() {
    let disk = Disk::formatted("ram");
    assert_eq!(disk.pass(false).0, 0);
    disk.write(PAGE_BYTES, &[0; PAGE_LEN]);
    assert_eq!(disk.pass(false).0, 4);
    assert_eq!(disk.pass(true).0, 1);
    assert_eq!(disk.pass(false).0, 0);
}

#[test]
fn a_mounted_image_is_left_alone() {
    let disk = Disk::formatted("linear");
    disk.write(200, b"X");
    let before = fs::read(&disk.path).unwrap();
    let _mounted = Image::open_exclusive(&disk.path, Access::ReadWrite).unwrap();
    for preen in [false, true] {
        let (exit, text) = disk.pass_at_once(preen);
        assert!(exit == 8 && text.contains("in use: it is mounted"), "{exit} {text}");
    }
    assert!(fs::read(&disk.path).unwrap() == before);
}

#[test]
fn exit_statuses_of_the_command_line() {
    let run = |words: &[&str], path: &Path| {
        let words = ["fsck.swapfs"].iter().chain(words).map(Into::into);
        let words: Vec<OsString> = words.chain([path.as_os_str().to_owned()]).collect();
        patiently(|| status(words.clone()), |&exit| exit == EXIT_OPERATIONAL)
    };
    let disk = Disk::formatted("linear");
    for words in [&["-n"][..], &["-p"], &["-a", "-f"], &["-y", "-v"], &["-n", "--json"]] {
        assert_eq!(run(words, &disk.path), 0, "{words:?}");
    }
    disk.write(200, b"X");
    assert_eq!(run(&["-n"], &disk.path), 4);
    assert_eq!(run(&["-y", "--json"], &disk.path), 1);
    assert_eq!(run(&["-n"], &disk.path), 0);
    assert_eq!(run(&["-n"], &disk.path.with_extension("missing")), 8);
    assert_eq!(run(&["-n"], disk.path.parent().unwrap()), 8);
    assert_eq!(run(&["-n", "-p"], &disk.path), 16);
    assert_eq!(run(&["--colour"], &disk.path), 16);
    assert_eq!(status(["fsck.swapfs".into()]), 16);
    assert_eq!(status(["fsck.swapfs", "--help"].map(Into::into)), 0);
}
