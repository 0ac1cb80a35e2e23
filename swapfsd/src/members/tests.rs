//! Members that are where they were, elsewhere, missing, or someone else's.

use super::*;
use std::fs;
use swapfs_format::geometry::Geometry;
use swapfs_format::types::LINEAR;

const BYTES: u64 = 1 << 20;

/// The superblock of a volume, and its directory, which is on a disk.
fn volume() -> (tempfile::TempDir, Superblock) {
    let geometry = Geometry::ghost(64 << 20).unwrap();
    let superblock = Superblock::new("zmem", &geometry, Uuid::new_v4());
    (tempfile::tempdir_in("/var/tmp").unwrap(), superblock)
}

/// Makes a member image at `path`, and its entry in the volume's table.
fn add(volume: &mut Superblock, path: &Path, hint: &Path) -> Uuid {
    let geometry = Geometry::in_place(BYTES, 4096).unwrap();
    let mut member = Superblock::new(LINEAR.name, &geometry, Uuid::new_v4());
    let order = volume.members.len() as u32 + 1;
    (member.volume_uuid, member.member_order) = (volume.uuid, order);
    let file = File::create(path).unwrap();
    file.set_len(member.image_bytes).unwrap();
    use std::os::unix::fs::FileExt;
    file.write_all_at(&member.encode().unwrap(), 0).unwrap();
    file.write_all_at(&member.encode().unwrap(), member.backup_offset_bytes).unwrap();
    let path_hint = hint.to_str().unwrap().to_owned();
    volume.members.push(Member { uuid: member.uuid, size_bytes: BYTES, order, path_hint });
    member.uuid
}

#[test]
fn members_are_found_where_they_were_and_are_locked() {
    let (folder, mut volume) = volume();
    let paths = ["one", "two"].map(|name| folder.path().join(name));
    let uuids = paths.each_ref().map(|path| add(&mut volume, path, path));
    let (open, missing) = find(&volume, &folder.path().join("image"));
    assert!(missing.is_empty(), "{missing:?}");
    let found: Vec<_> = open.iter().map(|it| (it.place, it.order, it.superblock.uuid)).collect();
    assert_eq!(found, [(0, 1, uuids[0]), (1, 2, uuids[1])]);
    let (none, missing) = find(&volume, &folder.path().join("image"));
    assert!(none.is_empty());
    assert!(missing[0].contains("in use"), "{missing:?}");
    drop(open);
    assert_eq!(find(&volume, &folder.path().join("image")).0.len(), 2);
}

#[test]
fn members_are_found_by_their_uuid_wherever_they_are() {
    let (folder, mut volume) = volume();
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let image = folder.path().join("image");
    // Beside the image, beside its old place, and each in the place of another.
    add(&mut volume, &folder.path().join("moved"), Path::new("/nowhere/at/all"));
    add(&mut volume, &elsewhere.join("renamed"), &elsewhere.join("old"));
    add(&mut volume, &elsewhere.join("three"), &elsewhere.join("four"));
    add(&mut volume, &elsewhere.join("four"), &elsewhere.join("three"));
    add(&mut volume, &elsewhere.join("five"), Path::new(""));
    volume.members[4].path_hint.clear();
    let (open, missing) = find(&volume, &image);
    assert!(missing.is_empty(), "{missing:?}");
    let names: Vec<_> =
        open.iter().map(|it| it.image.path().file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["moved", "renamed", "three", "four", "five"]);
    for (entry, member) in volume.members.iter().zip(&open) {
        assert_eq!(entry.uuid, member.superblock.uuid);
    }
}

#[test]
fn what_is_missing_is_said_with_the_reason() {
    let (folder, mut volume) = volume();
    let image = folder.path().join("image");
    let path = folder.path().join("gone");
    let uuid = add(&mut volume, &path, &path);
    fs::remove_file(&path).unwrap();
    let (open, missing) = find(&volume, &image);
    assert!(open.is_empty());
    let expected = format!("member 1 (UUID {uuid}, last seen at {}): ", path.display());
    assert!(missing[0].starts_with(&expected), "{missing:?}");
    assert!(missing[0].contains("No such file"), "{missing:?}");
    fs::write(&path, [0; 8192]).unwrap();
    assert!(find(&volume, &image).1[0].contains("no swapfs superblock"));
    fs::write(&path, [0; 10]).unwrap();
    assert_eq!(find(&volume, &image).1.len(), 1);
}

#[test]
fn a_member_of_another_volume_is_not_taken() {
    let (folder, mut volume) = volume();
    let path = folder.path().join("member");
    add(&mut volume, &path, &path);
    volume.uuid = Uuid::new_v4();
    let (open, missing) = find(&volume, &folder.path().join("image"));
    assert!(open.is_empty());
    assert!(missing[0].contains("belongs to another volume"), "{missing:?}");
}

#[test]
fn a_member_that_was_cut_off_or_lies_in_memory_is_refused() {
    let (folder, mut volume) = volume();
    let image = folder.path().join("image");
    let path = folder.path().join("member");
    add(&mut volume, &path, &path);
    File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    assert!(find(&volume, &image).1[0].contains("cut off"));
    volume.members.clear();
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = shm.path().join("member");
    add(&mut volume, &path, &path);
    assert!(find(&volume, &image).1[0].contains("tmpfs"));
}

#[test]
fn places_without_a_member_hold_the_image() {
    let (folder, mut volume) = volume();
    let path = folder.path().join("member");
    for name in ["a", "b", "c"] {
        add(&mut volume, &folder.path().join(name), &folder.path().join(name));
    }
    let image = File::create(&path).unwrap();
    let (mut open, _) = find(&volume, &path);
    open.remove(1);
    let places = places_of(&image, &open).unwrap();
    let members = Members::of_places(&image, &places, Arc::new(NoKeeper)).unwrap();
    let present: Vec<usize> =
        (0..MAX_DEVICE_MEMBERS).filter(|place| members.files[*place].is_some()).collect();
    assert_eq!(present, [0, 2]);
    let found = path_of(members.files[2].as_ref().unwrap());
    assert_eq!(found, folder.path().join("c").canonicalize().unwrap());
}
