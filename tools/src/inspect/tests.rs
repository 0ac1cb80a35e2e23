use super::*;
use crate::log_survey::builder::LogImage;
use mkswapfs::FormatRequest;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

fn formatted(change: impl FnOnce(&mut FormatRequest)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut request = FormatRequest::new(&folder.path().join("image"));
    request.volume_bytes = Some(1 << 20);
    change(&mut request);
    mkswapfs::format_image(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
    (folder, request.image)
}

#[test]
fn every_field_is_shown() {
    let (_folder, path) = formatted(|request| {
        request.label = "fast".to_owned();
        request.options = "engine=sync, threads=3".to_owned();
    });
    let inspection = inspect(&path).unwrap();
    let text = inspection.to_string();
    let uuid = inspection.superblock.uuid.to_string();
    for part in [
        "type               linear: pages in place",
        "label              fast",
        uuid.as_str(),
        "volume             1 MiB (1048576 bytes), 256 slots",
        "data section       1 MiB (1048576 bytes) from byte 1048576",
        "at byte 0: good\n",
        "at byte 2097152: good\n",
        "generation         1",
        "options            engine=sync\n",
        " threads=3\n",
        " checksum=on  (default)\n",
        "features           compatible none,",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["superblock"]["slot_count"], 256);
    assert_eq!(json["superblock"]["uuid"], uuid);
    assert_eq!(json["primary"]["good"], true);
    assert_eq!(json["copies_agree"], true);
    assert_eq!(json["options"][0]["key"], "engine");
    assert_eq!(json["options"][0]["default"], false);
    for (field, _) in serde_json::to_value(&inspection.superblock).unwrap().as_object().unwrap() {
        assert!(!json["superblock"][field].is_null(), "{field}");
    }
}

#[test]
fn a_ghost_image_has_no_data_section() {
    let (_folder, path) = formatted(|request| request.type_name = "ram".to_owned());
    assert!(inspect(&path).unwrap().to_string().contains("none: pages live outside the image"));
}

#[test]
fn the_backup_is_shown_if_only_that_is_good() {
    let (_folder, path) = formatted(|_| ());
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", 100).unwrap();
    let inspection = inspect(&path).unwrap();
    assert!(!inspection.primary.good && inspection.backup.good && !inspection.copies_agree);
    let text = inspection.to_string();
    assert!(text.contains("at byte 0: BAD: superblock checksum is wrong"), "{text}");
    file.write_all_at(b"x", 2_097_152 + 100).unwrap();
    let failure = inspect(&path).unwrap_err().to_string();
    assert!(failure.contains("checksum is wrong") && failure.contains("no good backup"));
}

#[test]
fn other_files_are_no_volume() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = folder.path().join("image");
    let missing = inspect(&path).unwrap_err().to_string();
    assert!(missing.contains("no such file"), "{missing}");
    std::fs::write(&path, b"text").unwrap();
    let other = inspect(&path).unwrap_err().to_string();
    assert!(other.contains("not a swapfs volume"), "{other}");
}

#[test]
fn a_mounted_volume_can_be_inspected() {
    let (_folder, path) = formatted(|_| ());
    let _mounted = Image::open_exclusive(&path, Access::ReadWrite).unwrap();
    assert!(inspect(&path).is_ok());
}

fn show(path: &Path, svg: Option<&Path>) -> Result<(), Failure> {
    run(&InspectRequest { image: path, json: true, segments: true, svg })
}

#[test]
fn the_segments_of_a_log_are_shown() {
    let mut log = LogImage::new();
    for segment in 1..=5 {
        let slots: Vec<u32> = (segment * 40..segment * 40 + 15).collect();
        log.objects(segment, &slots);
        log.objects(segment, &slots[..7]);
    }
    log.objects(7, &(40..55).collect::<Vec<u32>>());
    let damaged = log.objects(8, &[1]);
    log.objects(9, &[2]);
    log.flip(damaged + 130);
    let mut inspection = inspect(&log.path).unwrap();
    assert!(inspection.log.is_none());
    inspection.look_at_log().unwrap();
    let text = inspection.to_string();
    for part in [
        "log                in use: mounted, or not stopped in order",
        "segments           16 of 64 KiB: 6 live, 1 dead, 7 free, 0 of the checkpoint, 1 damaged",
        "slots              76 with an object (304 KiB as 74.2 KiB), 0 same-filled, 0 discarded",
        "problems           1: see fsck.swapfs -n",
        "live share           0 to  10 %: 2",
        "by age             oldest 0222220 newest",
        "                0  A-2222.2X0......\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["log"]["in_use"], true);
    assert_eq!(json["log"]["segments"][7]["state"], "damaged");
    assert_eq!(json["log"]["segments"].as_array().unwrap().len(), 15);
    assert_eq!(json["log"]["totals"]["object_slots"], 76);
    assert_eq!(json["log"]["problems"][0]["segment"], 8);
}

#[test]
fn a_mounted_log_can_be_inspected_and_drawn() {
    let mut log = LogImage::new();
    log.objects(1, &[1, 2]);
    log.objects(4, &[3]);
    log.stop(6);
    let _mounted = Image::open_exclusive(&log.path, Access::ReadWrite).unwrap();
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let picture = folder.path().join("log.svg");
    show(&log.path, Some(&picture)).unwrap();
    let svg = std::fs::read_to_string(&picture).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    // A cell for each segment, nine in the legend, and two frames.
    assert_eq!(svg.matches("<rect").count(), 16 + 9 + 2);
    assert_eq!(svg.matches("<circle").count(), 3, "one for each filling");
    assert!(svg.contains("stopped in order") && svg.contains("newest filling (3)"));
    assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    // Once more over itself; and never over an image.
    show(&log.path, Some(&picture)).unwrap();
    let failure = show(&log.path, Some(&log.path)).unwrap_err().to_string();
    assert!(failure.contains("is not overwritten by a picture"), "{failure}");
    assert!(inspect(&log.path).unwrap().primary.good);
}

#[test]
fn other_types_have_no_segments() {
    let (_folder, path) = formatted(|_| ());
    let failure = show(&path, None).unwrap_err().to_string();
    assert!(failure.contains("type 'linear' has no segments"), "{failure}");
}

#[test]
fn a_tier_volume_shows_its_members_and_a_member_its_volume() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let mut request = FormatRequest::new(&folder.join("image"));
    request.type_name = "tier".to_owned();
    let text =
        format!("log:{},size=2M,segment=128K,keep=inclusive", folder.join("flash").display());
    request.members = vec![mkswapfs::MemberSpec::parse(&text).unwrap()];
    let formatted =
        mkswapfs::format_image(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let (volume, member) = (&formatted.superblock, &formatted.members[0]);
    let text = inspect(&request.image).unwrap().to_string();
    let path = member.image.display();
    for part in [
        "type               tier: pages compressed in RAM",
        "data section       none",
        &format!(
            "member             1: {}, 2 MiB (2097152 bytes), last seen at {path}\n",
            member.superblock.uuid
        ),
        " high=90  (default)\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let mut inspection = inspect(&member.image).unwrap();
    let text = inspection.to_string();
    for part in [
        &format!("member of          tier volume {}, place 1\n", volume.uuid),
        "data section       2 MiB (2097152 bytes) from byte 1048576",
        " keep=inclusive\n",
        " segment=128K\n",
        " rate=auto  (default)\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("\nvolume ") && !text.contains("threads="), "{text}");
    let error = inspection.look_at_log().unwrap_err().to_string();
    assert!(error.contains("a member of a tier volume"), "{error}");
}
