//! `stats.json` of a volume with tiers, and of one without.

use crate::backend::fake;
use crate::backend::ram::Ram;
use crate::held::Held;
use crate::protect::Protection;
use crate::stats::json::{Identity, Report};
use crate::sys::alloc::{IoPath, io_path_allocations};
use crate::volume::Volume;
use serde_json::{Value, json};
use std::sync::Arc;

fn identity() -> Identity {
    Identity {
        image: "/image".to_owned(),
        type_name: "tier".to_owned(),
        uuid: String::new(),
        label: String::new(),
        options: String::new(),
        threads: 1,
        transport: "fuse",
        mounted_ns: 0,
        unguarded_why: String::new(),
        protection: Protection {
            memory_locked: true,
            io_flusher: true,
            oom_protected: true,
            swap_free_cgroup: true,
            realtime: true,
        },
    }
}

fn rendered(volume: &Volume, room_bytes: usize) -> Value {
    let identity = identity();
    let mut text = vec![0; room_bytes];
    let mut len = 0;
    // More than once: another test allocates on purpose.
    let is_without_allocation = (0..10).any(|_| {
        let before = io_path_allocations();
        let no_allocation = IoPath::enter();
        len = Report::new(&identity, volume).render_json(&mut text);
        drop(no_allocation);
        io_path_allocations() == before
    });
    assert!(is_without_allocation, "rendering allocates");
    assert!(len > 0, "it does not fit into {room_bytes} bytes");
    serde_json::from_slice(&text[..len]).unwrap()
}

#[test]
fn nine_tiers_with_the_longest_texts_fit_and_have_the_names_of_the_specification() {
    let volume = fake::volume(&"o".repeat(1024), &"p".repeat(4095));
    let stats = rendered(&volume, crate::fuse::SNAPSHOT_BYTES);
    let tiers = stats["tiers"].as_array().unwrap();
    assert_eq!(tiers.len(), 9);
    assert_eq!((&tiers[0]["type"], &tiers[8]["order"]), (&json!("zmem"), &json!(8)));
    let mut names: Vec<&str> = tiers[3].as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected = "age_pages capacity_bytes collected_bytes demoted_in_bytes demoted_in_pages \
                    demoted_out_pages high_percent image keep live_bytes low_percent options order \
                    pages promote promoted_out_pages rate_bytes read_bytes read_errors read_p50_us \
                    read_p99_us read_pages state type used_bytes uuid write_errors written_bytes";
    assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
    let expected = json!({
        "tier": 1, "direction": "up", "moved_pages": 2, "left_pages": 3, "left_bytes": 4,
        "bytes_per_s": 5,
    });
    assert_eq!(stats["evacuation"], expected);
    assert_eq!(stats["backend"]["demotion_decompressions"], 0);
}

#[test]
fn other_back_ends_have_neither_name() {
    let volume = fake::volume_on(Arc::new(Ram::new(16, &Held::private()).unwrap()));
    let stats = rendered(&volume, 64 << 10);
    assert_eq!((stats.get("tiers"), stats.get("evacuation")), (None, None));
}

#[test]
fn each_tier_has_its_metrics() {
    let volume = fake::volume("", "/image");
    let identity = identity();
    let mut text = vec![0; crate::fuse::SNAPSHOT_BYTES];
    let len = Report::new(&identity, &volume).render_metrics(&mut text);
    let text = std::str::from_utf8(&text[..len]).unwrap();
    for order in 0..9 {
        let sample = format!("swapfs_tier_pages{{volume=\"\",tier=\"{order}\",type=");
        assert_eq!(text.matches(&sample).count(), 1, "{order}");
    }
    // Samples of a metric stand together behind one head.
    assert_eq!(text.matches("# TYPE swapfs_tier_up gauge").count(), 1);
}
