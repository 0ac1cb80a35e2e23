//! The numbers of a tier volume.

use super::lower::{Lower, Members};
use super::member::Member;
use super::record::Direction;
use crate::backend::zmem::Store;
use crate::backend::{EvacuationReport, TierReport};
use crate::sys::network_heap;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use swapfs_format::member::{Keep, Promote};
use swapfs_format::types::{SegmentDiscard, ZMEM};

/// What is counted about all members together, by name with the unit last.
pub(super) fn numbers(lower: &Lower, report: &mut dyn FnMut(&'static str, u64)) {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &lower.counters;
    report("demotion_decompressions", get(&counters.decompressions));
    report("demoted_to_copies_pages", get(&counters.demoted_to_copies));
    report("moves_in_vain", get(&counters.moves_in_vain));
    report("writes_that_waited", get(&counters.urged));
    report("damaged_objects", get(&counters.damaged));
    let (mut read, mut below) = (0, 0);
    for member in lower.members().iter() {
        read += get(&member.counters.read_pages);
        below += get(&member.counters.pages);
    }
    let members = lower.members();
    let remote = |count: fn(&Member) -> u64| -> u64 {
        members.iter().filter(|member| member.is_remote()).map(|member| count(member)).sum()
    };
    if members.iter().any(|member| member.is_remote()) {
        report("remote_lost_objects", remote(|m| m.counters.lost_objects.load(Ordering::Relaxed)));
        report(
            "remote_wrong_objects",
            remote(|m| m.counters.wrong_objects.load(Ordering::Relaxed)),
        );
        report("remote_left_objects", remote(|m| m.counters.left_objects.load(Ordering::Relaxed)));
        report("remote_doubtful_writes", remote(|m| m.doubts.len() as u64));
        report("network_heap_overflows", network_heap::network_heap_overflows());
        report_sums(&members, report);
    }
    report("read_below_pages", read);
    report("below_pages", below);
}

/// What the clients of servers count, all of a name together: a name is said once.
fn report_sums(members: &Members, report: &mut dyn FnMut(&'static str, u64)) {
    const MOST: usize = 64;
    let mut sums = [("", 0); MOST];
    let mut count = 0;
    for member in members.iter() {
        member.remote_statistics(&mut |name, value| match sums[..count]
            .iter_mut()
            .find(|(known, _)| *known == name)
        {
            Some((_, sum)) => *sum += value,
            None if count < MOST => {
                sums[count] = (name, value);
                count += 1;
            }
            None => {}
        });
    }
    for (name, value) in &sums[..count] {
        report(name, *value);
    }
}

/// Text that is put together without the heap.
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    fn new(arguments: fmt::Arguments<'_>) -> Text<N> {
        let mut text = Text { bytes: [0; N], len: 0 };
        // What does not fit is left out.
        let _ = text.write_fmt(arguments);
        text
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let to = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        to.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Each tier, the top first.
pub(super) fn tiers(store: &Store, lower: &Lower, report: &mut dyn FnMut(&TierReport<'_>)) {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (high, low) = (get(&lower.top.high_percent), get(&lower.top.low_percent));
    let members = lower.members();
    let sum = |pick: fn(&Member) -> &AtomicU64| -> u64 {
        members.iter().map(|member| get(pick(member))).sum()
    };
    let copies = get(&lower.counters.copies);
    let below = sum(|member| &member.counters.pages).saturating_sub(copies);
    let arena = &store.pool.arena;
    let options = Text::<64>::new(format_args!("high={high},low={low}"));
    report(&TierReport {
        order: 0,
        type_name: ZMEM.name,
        image: "",
        uuid: "",
        state: "ok",
        capacity_bytes: arena.limit_bytes(),
        used_bytes: arena.used_bytes(),
        live_bytes: arena.live_bytes(),
        pages: store.pages().saturating_sub(below),
        high_percent: high as u32,
        low_percent: low as u32,
        promote: "",
        keep: "",
        rate_bytes: 0,
        options: options.as_str(),
        read_pages: store.pages_read(),
        read_errors: store.read_errors(),
        write_errors: 0,
        demoted_in_pages: 0,
        demoted_in_bytes: 0,
        demoted_out_pages: get(&lower.counters.demoted_from_top),
        promoted_out_pages: 0,
        collected_bytes: 0,
        written_bytes: 0,
        read_bytes: 0,
        age_pages: lower.top_ages.each_ref().map(get),
        read_p50_us: lower.top_latencies.percentile_us(0.5),
        read_p99_us: lower.top_latencies.percentile_us(0.99),
    });
    for member in members.iter() {
        report_member(lower, member, report);
    }
}

fn report_member(lower: &Lower, member: &Member, report: &mut dyn FnMut(&TierReport<'_>)) {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (identity, space, counters) = (&member.identity, &member.space, &member.counters);
    let record = lower.records.at(member.place);
    let promote = match record.promote() {
        Promote::Always => "always",
        Promote::Second => "second",
        Promote::Never => "never",
    };
    let keep = match record.keep() {
        Keep::Inclusive => "inclusive",
        Keep::Exclusive => "exclusive",
    };
    let discard = match record.discard() {
        SegmentDiscard::Auto => "auto",
        SegmentDiscard::On => "on",
        SegmentDiscard::Off => "off",
    };
    let (high, low) = (record.high_percent(), record.low_percent());
    let rate_bytes = record.rate_bytes();
    let raw = if record.takes_incompressible() { "take" } else { "skip" };
    let rate = match rate_bytes {
        0 => Text::<32>::new(format_args!("auto")),
        bytes => Text::<32>::new(format_args!("{bytes}")),
    };
    let options = Text::<256>::new(format_args!(
        "high={high},low={low},promote={promote},keep={keep},rate={},incompressible={raw},\
         discard={discard}",
        rate.as_str()
    ));
    let uuid = Text::<40>::new(format_args!("{}", identity.uuid));
    report(&TierReport {
        order: identity.order,
        type_name: identity.kind.type_name(),
        image: &identity.path,
        uuid: uuid.as_str(),
        state: member.state().name(),
        capacity_bytes: space.capacity_bytes(),
        used_bytes: space.used_bytes(),
        live_bytes: space.live_bytes(),
        pages: get(&counters.pages),
        high_percent: high as u32,
        low_percent: low as u32,
        promote,
        keep,
        rate_bytes,
        options: options.as_str(),
        read_pages: get(&counters.read_pages),
        read_errors: get(&counters.read_errors),
        write_errors: get(&counters.write_errors),
        demoted_in_pages: get(&counters.demoted_in_pages),
        demoted_in_bytes: get(&counters.demoted_in_bytes),
        demoted_out_pages: get(&counters.demoted_out_pages),
        promoted_out_pages: get(&counters.promoted_out_pages),
        collected_bytes: get(&counters.collected_bytes),
        written_bytes: get(&counters.written_bytes),
        read_bytes: get(&counters.read_bytes),
        age_pages: counters.ages.each_ref().map(get),
        read_p50_us: counters.latencies.percentile_us(0.5),
        read_p99_us: counters.latencies.percentile_us(0.99),
    });
}

/// The evacuation that is under way.
pub(super) fn evacuation(lower: &Lower) -> Option<EvacuationReport> {
    let order = lower.records.evacuation()?;
    let member = lower.at(order.place)?;
    Some(EvacuationReport {
        tier: member.order(),
        direction: match order.direction {
            Direction::Auto => "auto",
            Direction::Up => "up",
            Direction::Down => "down",
        },
        moved_pages: lower.records.evacuated_pages().load(Ordering::Relaxed),
        left_pages: member.counters.pages.load(Ordering::Relaxed),
        left_bytes: member.space.live_bytes(),
        bytes_per_s: lower.evacuated_bytes_per_s.load(Ordering::Relaxed),
    })
}
