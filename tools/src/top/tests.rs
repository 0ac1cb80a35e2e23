use super::model::{Memory, Sample, View};
use super::view::{Choice, History};
use super::{picture, printed};
use crate::probe::Answer;
use crate::stats::Stats;
use crate::status::Status;
use crate::status::tests::sample;
use std::time::{Duration, Instant};

fn stats(reads: u64, change: impl FnOnce(&mut Stats)) -> Stats {
    let mut stats = Stats::parse(crate::stats::tests::SAMPLE.as_bytes()).unwrap();
    stats.requests.read = reads;
    stats.bytes.read = reads * 8192;
    stats.latency_us[0].read = reads;
    change(&mut stats);
    stats
}

fn looked(taken: Instant, stats: Vec<Stats>) -> Sample {
    let volumes = stats.into_iter().map(|stats| sample(Answer::Stats(Box::new(stats)))).collect();
    let memory =
        Memory { total_bytes: 8 << 30, available_bytes: 3 << 30, stalled_percent: Some(0.25) };
    Sample { taken, status: Status { volumes }, memory }
}

fn two_seconds(old: Stats, new: Stats) -> View {
    let now = Instant::now();
    let after = looked(now + Duration::from_secs(2), vec![new]);
    View::between(&looked(now, vec![old]), &after)
}

#[test]
fn rates_are_what_has_changed() {
    let view = two_seconds(stats(100, |_| {}), stats(300, |stats| stats.latency_us[1].read += 4));
    let volume = &view.volumes[0];
    assert_eq!((volume.read.per_s, volume.read.bytes_per_s), (100.0, 819_200.0));
    // Of 204 reads 200 took at most 8 us, the others longer than any step.
    assert_eq!((volume.read.p50_us, volume.read.p99_us), (Some(8), None));
    assert_eq!((volume.write.per_s, volume.write.p50_us), (0.0, None));
    assert_eq!(volume.used_bytes, 75 << 20);
    assert_eq!(volume.levels.len(), 1);
    assert_eq!((volume.levels[0].name, volume.levels[0].hit_share), ("image", Some(1.0)));
}

#[test]
fn a_new_volume_and_one_whose_counters_began_anew_have_no_rates() {
    let now = Instant::now();
    let after = looked(now + Duration::from_secs(2), vec![stats(50, |_| {})]);
    let view = View::between(&looked(now, Vec::new()), &after);
    assert_eq!(view.volumes[0].read.per_s, 0.0);
    let view = two_seconds(stats(100, |_| {}), stats(3, |_| {}));
    assert_eq!(view.volumes[0].read.per_s, 0.0);
}

fn log(reads: u64, device_reads: u64) -> Stats {
    stats(reads, |stats| {
        stats.type_name = "log".to_owned();
        stats.backend = serde_json::json!({
            "orig_data_size_bytes": 8 << 20, "compr_data_size_bytes": 4 << 20,
            "usable_bytes": 100 << 20, "device_live_bytes": 30 << 20, "segments_total": 60,
            "segments_free": 50, "accepted_bytes": 10 << 20, "device_written_bytes": 12 << 20,
            "buffer_live_bytes": 1 << 20, "mem_populated_bytes": 4 << 20,
            "read_buffer_pages": 3 * device_reads, "read_device_pages": device_reads
        });
    })
}

#[test]
fn a_log_shows_where_reads_were_answered() {
    let view = two_seconds(log(0, 0), log(8, 10));
    let levels = &view.volumes[0].levels;
    let shares: Vec<_> = levels.iter().map(|level| (level.name, level.hit_share)).collect();
    assert_eq!(shares, [("buffer", Some(0.75)), ("device", Some(0.25))]);
    assert_eq!(levels[1].capacity_bytes, Some(100 << 20));
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!(json["volumes"][0]["levels"][1]["name"], "device");
    assert_eq!(json["volumes"][0]["type"], "log");
}

#[test]
fn everything_fits_into_80_columns_and_24_lines() {
    let view = two_seconds(log(0, 0), log(4000, 10));
    let mut history = History::default();
    (0..200).for_each(|_| history.add(&view.volumes[0]));
    let choice = Choice { keys: true, ..Choice::default() };
    let text = picture(&view, &history, choice, (80, 24));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 24);
    assert!(lines[0].starts_with("swapfs top  every 2.0 s  memory 3 GiB of 8 GiB available"));
    assert!(lines[0].trim_end().ends_with("stalled 0.2 %"), "{text}");
    assert!(lines[1].starts_with("VOLUME") && lines[1].trim_end().ends_with("ERRORS"), "{text}");
    assert!(lines[2].starts_with("/img/a") && lines[2].contains("15.6 MiB/s"), "{text}");
    let flow = "swap-in    15.6 MiB/s   2000/s  50 %    8 us  99 %    8 us  most 15.6 MiB/s";
    assert!(lines[4].contains(flow), "{text}");
    // The curve goes from edge to edge.
    assert_eq!(lines[5].matches('█').count(), 78, "{text}");
    assert!(text.contains("device  30 %") && text.contains("30 MiB of 100 MiB, 25 % of reads"));
    assert!(text.contains("segments free") && text.contains("guarded"), "{text}");
    assert!(lines[23].starts_with(" q quit"), "{text}");
}

#[test]
fn what_is_printed_has_every_volume_and_no_volume_says_so() {
    let now = Instant::now();
    let volumes = || vec![stats(1, |_| {}), log(1, 1)];
    let after = looked(now + Duration::from_secs(1), volumes());
    let text = printed(&View::between(&looked(now, volumes()), &after));
    assert_eq!(text.matches("VOLUME").count(), 1, "{text}");
    assert_eq!(text.matches("swap-out").count(), 2, "{text}");
    let nothing = looked(now, Vec::new());
    assert!(printed(&View::between(&nothing, &nothing)).contains("no volume is up"));
}

/// Memory and a log, after that many reads of each, and pages that moved between them.
fn tiered(reads: [u64; 2], moved_pages: u64) -> Stats {
    let mut stats = crate::tier::tests::two_tiers();
    for (tier, reads) in stats.tiers.iter_mut().zip(reads) {
        tier.read_pages = reads;
    }
    stats.tiers[0].demoted_out_pages = moved_pages;
    stats.tiers[1].demoted_in_pages = moved_pages;
    stats.tiers[1].promoted_out_pages = moved_pages / 2;
    stats
}

#[test]
fn a_tier_shows_what_moved_and_where_reads_were_answered() {
    let view = two_seconds(tiered([100, 100], 0), tiered([190, 110], 1024));
    let volume = &view.volumes[0];
    assert_eq!(volume.levels, []);
    let [memory, log] = &volume.tiers[..] else { panic!("{volume:?}") };
    assert_eq!((memory.hit_share, log.hit_share), (Some(0.9), Some(0.1)));
    assert_eq!((memory.hits_per_s, log.hits_per_s), (45.0, 5.0));
    let mib = f64::from(1 << 20);
    // 1024 pages down and 512 up, in two seconds.
    assert_eq!((memory.in_bytes_per_s, memory.out_bytes_per_s), (mib, 2.0 * mib));
    assert_eq!((log.in_bytes_per_s, log.out_bytes_per_s), (2.0 * mib, mib));
    assert_eq!(memory.age_shares, [0.5, 0.25, 0.15, 0.1]);
    assert_eq!((log.read_p50_us, log.read_p99_us), (128, 4096));
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!(json["volumes"][0]["tiers"][1]["type"], "log");
    assert_eq!(json["volumes"][0]["tiers"][0]["hit_share"], 0.9);
    assert!(json["volumes"][0]["evacuation"].is_null());
}

#[test]
fn a_tier_that_has_just_come_has_no_rates() {
    let mut old = tiered([100, 0], 0);
    old.tiers.truncate(1);
    let view = two_seconds(old, tiered([200, 1000], 100));
    let log = &view.volumes[0].tiers[1];
    assert_eq!((log.hit_share, log.in_bytes_per_s), (Some(0.0), 0.0));
}

#[test]
fn tiers_fit_into_80_columns_and_24_lines_and_use_more() {
    let mut new = tiered([190, 110], 1024);
    new.evacuation = Some(crate::stats::EvacuationStats { tier: 2, ..Default::default() });
    // As many as there can be.
    for order in 2..9 {
        let state = if order == 2 { "evacuating" } else { "failed" };
        let state = state.to_owned();
        new.tiers.push(crate::stats::TierStats { order, state, ..new.tiers[1].clone() });
    }
    let view = two_seconds(tiered([100, 100], 0), new);
    let choice = Choice { keys: true, ..Choice::default() };
    let text = picture(&view, &History::default(), choice, (80, 24));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 24);
    let heading =
        "│TIER     FILL          READS IN         OUT        50 %    99 %    AGES %     │";
    assert_eq!(lines[10], heading, "{text}");
    let memory = "│0 zmem    50 % ━━━━─── 90 %  1 MiB/s    2 MiB/s    8 us    64 us   50 25 15 10│";
    assert_eq!(lines[11], memory, "{text}");
    let log = "│1 log     25 % ━━───── 10 %  2 MiB/s    1 MiB/s    128 us  4.1 ms  0 0 20 80  │";
    assert_eq!(lines[12], log, "{text}");
    assert!(lines[13].contains("2 log     25 % leaving"), "{text}");
    assert!(lines[19].contains("8 log     25 % failed"), "{text}");
    assert!(lines[20].contains("failed (0 reads and 0 writes)"), "{text}");
    let text = picture(&view, &History::default(), choice, (200, 50));
    let row = text.lines().find(|line| line.contains("│1 log")).unwrap();
    assert!(row.contains("2 GiB of 8 GiB") && row.contains("/dev/nvme0n1p3"), "{text}");
    assert!(text.contains("tier 2 is being emptied"), "{text}");
}
