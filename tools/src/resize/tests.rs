use super::*;
use crate::fsck::repair::{Never, check};
use mkswapfs::{FormatRequest, MemberSpec, Preallocate, format_image};
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// An image of that type and size, in a directory of its own.
fn made(type_name: &str, volume_bytes: u64) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("image");
    let member = format!("log:{},size=8M", dir.path().join("member").display());
    let request = FormatRequest {
        type_name: type_name.to_owned(),
        volume_bytes: Some(volume_bytes),
        members: match type_name {
            "tier" => vec![MemberSpec::parse(&member).unwrap()],
            _ => Vec::new(),
        },
        preallocate: Preallocate::Falloc,
        ..FormatRequest::new(&path)
    };
    format_image(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
    (dir, path)
}

fn resized(path: &Path, bytes: u64) -> Result<ResizeReport, String> {
    resize(&[], path, bytes).map_err(|failure| failure.to_string())
}

/// The image is as it should be, with this size.
fn is_whole(path: &Path, bytes: u64) {
    let image = Image::open(path, Access::ReadOnly).unwrap();
    let pair = image.read_superblocks();
    assert_eq!(pair.primary, pair.backup);
    assert_eq!(image.load().unwrap().volume_bytes(), bytes);
    let report = check(path, &mut Never).unwrap();
    assert!(report.outcomes.is_empty(), "{:?}", report.outcomes);
}

#[test]
fn ghost_images_take_any_size() {
    for type_name in ["zmem", "tier", "ram"] {
        let (_dir, path) = made(type_name, 64 * MIB);
        for bytes in [1 << 40, 2 * MIB] {
            let before = image::superblock(&path).unwrap();
            let report = resized(&path, bytes).unwrap();
            assert_eq!((report.old_bytes, report.new_bytes), (before.volume_bytes(), bytes));
            is_whole(&path, bytes);
            let after = image::superblock(&path).unwrap();
            assert_eq!(after.generation, before.generation + 1);
            assert_eq!((after.uuid, after.members), (before.uuid, before.members));
        }
    }
}

#[test]
fn the_same_size_writes_nothing() {
    let (_dir, path) = made("zmem", 64 * MIB);
    let before = image::superblock(&path).unwrap();
    let report = resized(&path, 64 * MIB).unwrap();
    assert!(report.to_string().ends_with("the volume has 64 MiB already"));
    assert_eq!(image::superblock(&path).unwrap(), before);
}

#[test]
fn linear_goes_to_the_end_of_its_data_section_and_has_its_swap_header() {
    let (_dir, path) = made("linear", 16 * MIB);
    assert_eq!(resized(&path, 8 * MIB).unwrap().new_bytes, 8 * MIB);
    is_whole(&path, 8 * MIB);
    assert_eq!(resized(&path, 16 * MIB).unwrap().new_bytes, 16 * MIB);
    is_whole(&path, 16 * MIB);
    let why = resized(&path, 16 * MIB + 4096).unwrap_err();
    assert!(why.contains("its data section has 16 MiB"), "{why}");
    is_whole(&path, 16 * MIB);
}

#[test]
fn a_log_takes_another_size_until_it_is_mounted() {
    let (_dir, path) = made("log", 32 * MIB);
    assert_eq!(resized(&path, 100 * MIB).unwrap().new_bytes, 100 * MIB);
    is_whole(&path, 100 * MIB);
    let superblock = image::superblock(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"anchor", superblock.data_offset_bytes + 4096).unwrap();
    let why = resized(&path, 50 * MIB).unwrap_err();
    assert!(why.contains("has been mounted") && why.contains("-s 50M"), "{why}");
    assert_eq!(resized(&path, 100 * MIB).unwrap().new_bytes, 100 * MIB);
}

#[test]
fn what_can_not_be_resized_says_why() {
    let (dir, path) = made("tier", 64 * MIB);
    let why = resized(&dir.path().join("member"), 32 * MIB).unwrap_err();
    assert!(why.contains("member of the tier volume"), "{why}");
    assert!(resized(&dir.path().join("none"), MIB).unwrap_err().contains("no such file"));
    assert!(resized(&path, 4096).unwrap_err().contains("no volume can have 4 KiB"));

    let superblock = image::superblock(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", superblock.backup_offset_bytes + 200).unwrap();
    assert!(resized(&path, 32 * MIB).unwrap_err().contains("fsck.swapfs"));

    let _held = Image::open_exclusive(&path, Access::ReadWrite).unwrap();
    assert!(resized(&path, 32 * MIB).is_err());
}

#[test]
fn a_mounted_volume_is_refused_with_what_to_do() {
    let volume =
        Volume { image: Some("/img/a".into()), mount: "/run/swapfs/u1".into(), devices: vec![] };
    let why = resize(&[volume], Path::new("/img/a"), 3 << 30).unwrap_err().to_string();
    assert!(
        why.contains("'swapfs down /img/a', 'swapfs resize /img/a 3G' and 'swapfs up /img/a'"),
        "{why}"
    );
}
