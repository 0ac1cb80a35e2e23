//! The room on a member.

use super::*;

fn log(segments: u64) -> Space {
    Space::new(Layout::Log, 64 << 10, segments).unwrap()
}

#[test]
fn a_segment_is_free_when_nothing_in_it_lives() {
    let space = log(8);
    let before = space.free_segments();
    let extent = space.begin(Stream::Fresh, 0).unwrap();
    assert_eq!(extent.capacity, 64 << 10);
    space.placed(extent.offset, 1000);
    space.placed(extent.offset + 1000, 500);
    space.end(extent, 1500);
    assert_eq!((space.live_bytes(), space.free_segments()), (1500, before - 1));
    // The rest of it is used, page by page.
    let next = space.begin(Stream::Fresh, 0).unwrap();
    assert_eq!(next.offset, extent.offset + 4096);
    space.end(next, 60 << 10);
    space.free(extent.offset, 1000);
    space.free(extent.offset + 1000, 500);
    // It is closed when the next one is opened, and free then.
    let other = space.begin(Stream::Fresh, 0).unwrap();
    assert_ne!(space.segment_of(other.offset), space.segment_of(extent.offset));
    assert_eq!((space.live_bytes(), space.free_segments()), (64 << 10, before - 1));
    space.give_back(other);
    assert_eq!(space.live_bytes(), 0);
}

#[test]
fn an_extent_that_is_written_is_not_given_to_others() {
    let space = log(20);
    let extents: Vec<_> = std::iter::from_fn(|| space.begin(Stream::Fresh, 0)).collect();
    assert_eq!(extents.len(), 20 - KEEP_SEGMENTS);
    let collected: Vec<_> = std::iter::from_fn(|| space.begin(Stream::Collected, 0)).collect();
    assert_eq!(collected.len(), KEEP_SEGMENTS);
    let mut offsets: Vec<_> =
        extents.iter().chain(&collected).map(|extent| extent.offset).collect();
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets.len(), 20);
    for extent in extents.into_iter().chain(collected) {
        space.give_back(extent);
    }
    assert_eq!(space.live_bytes(), 0);
}

#[test]
fn a_generation_goes_up_when_a_segment_is_written_again() {
    let space = log(5);
    let mut seen = [0; 5];
    for _ in 0..20 {
        let extent = space.begin(Stream::Fresh, 0).unwrap();
        let segment = space.segment_of(extent.offset);
        assert!(space.generation(segment) > seen[segment as usize]);
        seen[segment as usize] = space.generation(segment);
        space.placed(extent.offset, 100);
        space.end(extent, 64 << 10);
        space.free(extent.offset, 100);
    }
}

#[test]
fn blocks_are_taken_and_freed() {
    let space = Space::new(Layout::Linear, 1 << 20, 3).unwrap();
    let mut taken = Vec::new();
    while let Some(extent) = space.begin(Stream::Fresh, 0) {
        assert_eq!(extent.capacity, 1 << 20);
        taken.push(extent);
    }
    assert_eq!((taken.len(), space.live_bytes()), (3, 3 << 20));
    space.end(taken[1], 4096 * 3);
    assert_eq!(space.live_bytes(), (2 << 20) + 3 * 4096);
    let hole = space.begin(Stream::Fresh, 0).unwrap();
    assert_eq!(hole.offset, (1 << 20) + 3 * 4096);
    assert_eq!(hole.capacity, (1 << 20) - 3 * 4096);
    space.free(4096, 4096);
    space.free(4096, 4096);
    let single = space.begin(Stream::Fresh, 0).unwrap();
    assert_eq!((single.offset, single.capacity), (4096, 4096));
    assert!(space.begin(Stream::Fresh, 0).is_none());
}

#[test]
fn what_is_free_is_discarded_once() {
    for kind in [Layout::Log, Layout::Linear] {
        let space = Space::new(kind, 64 << 10, 12).unwrap();
        assert!(space.begin_discard().is_none());
        let extent = space.begin(Stream::Fresh, 0).unwrap();
        space.placed(extent.offset, 700);
        space.end(extent, extent.capacity);
        assert!(space.begin_discard().is_none());
        for offset in (extent.offset..extent.offset + extent.capacity as u64).step_by(4096) {
            let one = if kind == Layout::Log { 700 } else { 4096 };
            space.free(offset, one);
            if kind == Layout::Log {
                break;
            }
        }
        // The one that is open is closed by the next one.
        let next = (kind == Layout::Log).then(|| space.begin(Stream::Fresh, 0).unwrap());
        let discarded = space.begin_discard().unwrap();
        space.end_discard(discarded);
        if let Some(next) = next {
            assert_ne!(space.segment_of(discarded.offset), space.segment_of(next.offset));
            space.give_back(next);
        }
        assert_eq!(space.live_bytes(), 0, "{kind:?}");
    }
}

#[test]
fn what_is_counted_again_is_what_was_there() {
    for kind in [Layout::Log, Layout::Linear] {
        let segment = if kind == Layout::Log { 64 << 10 } else { 1 << 20 };
        let space = Space::new(kind, segment, 6).unwrap();
        let extent = space.begin(Stream::Fresh, 0).unwrap();
        space.placed(extent.offset, 700);
        space.end(extent, 4096);
        let (live, free) = (space.live_bytes(), space.free_segments());
        space.begin_count();
        space.count(extent.offset, 700);
        space.count(u64::MAX - 5, 700);
        space.end_count();
        assert_eq!((space.live_bytes(), space.free_segments()), (live, free));
        space.free(extent.offset, 700);
        assert_eq!(space.live_bytes(), 0);
    }
}
