//! Cases for logs: how one is made and damaged, and what the passes say: `-n`, `-p`, `-n` again,
//! then `-y` for what `-p` has left, and `-n` once more.

mod cases;

use super::cli::status;
use super::repair::{Always, Decide, Never, Preen, check};
use super::report::{EXIT_CORRECTED, EXIT_OPERATIONAL};
use crate::log_survey::builder::{DATA_OFFSET, LogImage, SEGMENT_BYTES};
use cases::{CASES, CHECKSUM, Case, Course, RECORD, filled};
use mkswapfs::FormatRequest;
use std::fs;
use std::ops::ControlFlow;
use std::thread::sleep;
use std::time::Duration;
use swapfs_format::types;
use swapfsd::image::{Access, Image};

fn pass(log: &LogImage, decide: &mut dyn Decide) -> (u8, String) {
    // As in `tests::patiently`: other tests' children may hold the lock for a moment.
    for attempt in 0.. {
        match check(&log.path, decide) {
            Ok(report) => return (report.exit_status(), report.to_string()),
            Err(failure) if attempt == 20 => return (EXIT_OPERATIONAL, failure.to_string()),
            Err(_) => sleep(Duration::from_millis(10)),
        }
    }
    unreachable!()
}

#[track_caller]
fn expect(name: &str, (exit, text): &(u8, String), wanted: u8, says: &[&str]) {
    assert_eq!(*exit, wanted, "{name}: {text}");
    for part in says {
        assert!(text.contains(part), "{name}: no '{part}' in: {text}");
    }
}

#[test]
fn every_case_goes_as_it_says() {
    for Case { name, make, course, at_last } in CASES {
        let mut log = LogImage::new();
        make(&mut log);
        let made = fs::read(&log.path).unwrap();
        let unchanged = |pass: &str| {
            assert!(fs::read(&log.path).unwrap() == made, "{name}: {pass} has written");
        };
        let (first, preen, yes) = match course {
            Course::Clean(says) => ((0, says), 0, 0),
            Course::Preen(says) => ((4, says), 1, 0),
            Course::Yes(says) => ((4, says), 4, 1),
            Course::Hopeless(says) => ((4, says), 4, 4),
        };
        expect(name, &pass(&log, &mut Never), first.0, first.1);
        unchanged("-n");
        expect(&format!("{name}: -p"), &pass(&log, &mut Preen), preen, &[]);
        if preen & EXIT_CORRECTED == 0 {
            unchanged("-p");
        }
        let again = if preen == 1 { 0 } else { first.0 };
        expect(&format!("{name}: -n after -p"), &pass(&log, &mut Never), again, &[]);
        expect(&format!("{name}: -y"), &pass(&log, &mut Always), yes, &[]);
        let at_end = if yes == 1 { 0 } else { again };
        expect(&format!("{name}: -n at last"), &pass(&log, &mut Never), at_end, at_last);
    }
}

#[test]
fn the_command_line_has_both_kinds_of_repair() {
    let mut log = LogImage::new();
    let [_, place, _] = filled(&mut log);
    log.flip(place + RECORD + CHECKSUM);
    let run = |words: &[&str]| {
        let words = ["fsck.swapfs"].iter().chain(words).map(Into::into);
        status(words.chain([log.path.as_os_str().to_owned()]))
    };
    for (option, exit) in [("-n", 4), ("-p", 4), ("-y", 1), ("-n", 0)] {
        assert_eq!(run(&[option, "--json"]), exit, "{option}");
    }
}

#[test]
fn a_formatted_volume_is_clean() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = folder.path().join("image");
    let mut request = FormatRequest::new(&path);
    request.type_name = types::LOG.name.to_owned();
    request.volume_bytes = Some(64 << 20);
    mkswapfs::format_image(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let report = check(&path, &mut Never).unwrap();
    assert_eq!(report.exit_status(), 0, "{report}");
    let log = report.log.unwrap();
    assert!(log.free_segments > 8 && log.live_segments + log.dead_segments == 0);
}

#[test]
fn a_mounted_log_is_left_alone() {
    let log = LogImage::new();
    let _mounted = Image::open_exclusive(&log.path, Access::ReadWrite).unwrap();
    let failure = check(&log.path, &mut Never).unwrap_err().to_string();
    assert!(failure.contains("in use: it is mounted"), "{failure}");
}

/// Whatever stands on the device: no panic, and what `-y` repairs stays repaired.
#[test]
fn damage_at_random_is_survived() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for round in 0..60 {
        let mut log = LogImage::new();
        filled(&mut log);
        log.objects(4, &[1, 2, 3, 9, 10]);
        if round % 2 == 0 {
            log.stop(3);
        }
        for _ in 0..=next(6) {
            // Most of it is where something stands: five segments' first pages.
            let segment = next(5);
            log.flip(DATA_OFFSET + segment * SEGMENT_BYTES + next(20) * 1024 + next(300));
        }
        let (exit, text) = pass(&log, &mut Always);
        assert!(exit < EXIT_OPERATIONAL, "round {round}: {text}");
        let (second, again) = pass(&log, &mut Never);
        assert_eq!(second, exit & 4, "round {round}: {text}\n{again}");
    }
}
