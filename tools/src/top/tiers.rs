//! The tiers of a volume in `swapfs top`: what happened in each between two looks, and a row of the
//! picture for each.

use super::model::Change;
use super::view::time;
use crate::stats::{Stats, TierStats};
use ratatui::layout::Constraint;
use ratatui::style::{Modifier, Style};
use ratatui::widgets::{Row, Table};
use serde::Serialize;
use swapfs_format::PAGE_BYTES;
use swapfs_format::size::human;

/// One tier.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TierView {
    /// Its place, hottest first; 0: the daemon's memory.
    pub order: u32,
    /// `zmem`, `log`, `linear` or `remote`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Path of its image; empty for memory.
    pub image: String,
    /// Of a stub: the address of the servers, if it could be found out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// `ok`, `failed`, `evacuating` or `missing`.
    pub state: String,
    /// What is taken of it.
    pub used_bytes: u64,
    /// What there is.
    pub capacity_bytes: u64,
    /// Pages that lie here.
    pub pages: u64,
    /// From this use on pages are moved down.
    pub high_percent: u32,
    /// Pages read from here for the kernel, a second.
    pub hits_per_s: f64,
    /// Of all that were read; `None`: there was none.
    pub hit_share: Option<f64>,
    /// Bytes of pages (4096 each) that came here, a second: written by the kernel, moved down, or
    /// moved up.
    pub in_bytes_per_s: f64,
    /// Bytes of pages that were moved away, a second, up and down.
    pub out_bytes_per_s: f64,
    /// Half of the reads since the daemon's process began took no longer, in microseconds.
    pub read_p50_us: u64,
    /// The same of 99 in 100.
    pub read_p99_us: u64,
    /// Shares of the pages here by age, from the young ones to the old ones; all 0 where there is
    /// none.
    pub age_shares: [f64; 4],
    /// Reads and writes that failed, since the daemon's process began.
    pub errors: u64,
}

/// The tiers of a volume, hottest first.
pub(super) fn of(change: &Change<'_>) -> Vec<TierView> {
    let find = |stats: &Stats, order| -> TierStats {
        stats.tiers.iter().find(|tier| tier.order == order).cloned().unwrap_or_default()
    };
    let tiers = &change.new.tiers;
    let is_new = |order| change.old.tiers.iter().all(|tier| tier.order != order);
    // What a tier counted before it was seen for the first time did not happen just now.
    let rate = |order, counter: &dyn Fn(&TierStats) -> u64| match is_new(order) {
        true => 0.0,
        false => change.per_s(|stats| counter(&find(stats, order))),
    };
    let pages =
        |order, counter: &dyn Fn(&TierStats) -> u64| rate(order, counter) * PAGE_BYTES as f64;
    let hits = |tier: &TierStats| rate(tier.order, &|tier| tier.read_pages);
    let all: f64 = tiers.iter().map(hits).sum();
    let promoted = |tier: &TierStats| pages(tier.order, &|tier| tier.promoted_out_pages);
    tiers
        .iter()
        .map(|tier| {
            let hits = hits(tier);
            let came = match tier.order {
                0 => {
                    change.per_s(|stats| stats.bytes.write)
                        + tiers.iter().map(promoted).sum::<f64>()
                }
                _ => 0.0,
            };
            let aged: u64 = tier.age_pages.iter().sum();
            TierView {
                order: tier.order,
                type_name: tier.type_name.clone(),
                image: tier.image.clone(),
                url: tier.url.clone(),
                state: tier.state.clone(),
                used_bytes: tier.used_bytes,
                capacity_bytes: tier.capacity_bytes,
                pages: tier.pages,
                high_percent: tier.high_percent,
                hits_per_s: hits,
                hit_share: (all > 0.0).then(|| hits / all),
                in_bytes_per_s: came + pages(tier.order, &|tier| tier.demoted_in_pages),
                out_bytes_per_s: pages(tier.order, &|tier| tier.demoted_out_pages) + promoted(tier),
                read_p50_us: tier.read_p50_us,
                read_p99_us: tier.read_p99_us,
                age_shares: tier.age_pages.map(|pages| match aged {
                    0 => 0.0,
                    aged => pages as f64 / aged as f64,
                }),
                errors: tier.errors(),
            }
        })
        .collect()
}

/// Columns that the table has in any case, without that of the fill: what they take with the blanks
/// between them.
const FIXED: [u16; 7] = [8, 5, 10, 10, 7, 7, 11];
/// Blanks between all of them.
const GAPS: u16 = 7;
/// Of the column that says what is used, in a wide table, with a blank.
const USED: u16 = 23;
/// Of the column that says which image, at least, with a blank.
const IMAGE: u16 = 21;
/// Columns that the fill gets at most.
const MOST_FILL: u16 = 40;

/// Lines that [`table`] takes.
pub(super) fn line_count(tiers: &[TierView]) -> u16 {
    if tiers.is_empty() { 0 } else { tiers.len() as u16 + 1 }
}

/// A table for that many columns.
pub(super) fn table(tiers: &[TierView], columns: u16) -> Table<'static> {
    let rest = columns.saturating_sub(FIXED.iter().sum::<u16>() + GAPS);
    let has_used = rest >= 16 + USED;
    let rest = rest.saturating_sub(if has_used { USED } else { 0 });
    let has_image = has_used && rest >= 20 + IMAGE;
    let fill = rest.saturating_sub(if has_image { IMAGE } else { 0 }).min(MOST_FILL);
    let image = rest.saturating_sub(fill + 1);
    let mut widths = vec![FIXED[0], fill];
    widths.extend(&FIXED[1..]);
    let mut heading = vec!["TIER", "FILL", "READS", "IN", "OUT", "50 %", "99 %", "AGES %"];
    if has_used {
        widths.push(USED - 1);
        heading.push("USED");
    }
    if has_image {
        widths.push(image);
        heading.push("IMAGE");
    }
    let rows = tiers.iter().map(|tier| {
        let mut cells = vec![
            format!("{} {}", tier.order, tier.type_name),
            gauge(tier, fill.into()),
            tier.hit_share.map_or_else(|| "-".into(), |share| format!("{:.0} %", share * 100.0)),
            rate(tier.in_bytes_per_s),
            rate(tier.out_bytes_per_s),
            latency(tier.read_p50_us),
            latency(tier.read_p99_us),
            ages(tier),
        ];
        if has_used {
            cells.push(format!("{} of {}", human(tier.used_bytes), human(tier.capacity_bytes)));
        }
        if has_image {
            cells.push(if tier.url.is_empty() { &tier.image } else { &tier.url }.clone());
        }
        Row::new(cells).style(match tier.state.as_str() {
            "ok" if tier.errors == 0 => Style::new(),
            "ok" | "evacuating" => Style::new().yellow(),
            _ => Style::new().red(),
        })
    });
    let heading = Row::new(heading).style(Style::new().add_modifier(Modifier::REVERSED));
    Table::new(rows, widths.into_iter().map(Constraint::Length)).header(heading)
}

/// How full it is, as a line and a number; what it is instead, where that matters more.
fn gauge(tier: &TierView, columns: usize) -> String {
    let ratio = match tier.capacity_bytes {
        0 => 0.0,
        capacity => (tier.used_bytes as f64 / capacity as f64).clamp(0.0, 1.0),
    };
    let percent = format!("{:>3.0} %", ratio * 100.0);
    let word = match tier.state.as_str() {
        "evacuating" => "leaving",
        "ok" => "",
        state => state,
    };
    if !word.is_empty() {
        let text = format!("{percent} {word}");
        return text.chars().take(columns.max(percent.len())).collect();
    }
    let long = columns.saturating_sub(percent.len() + 1);
    let filled = (ratio * long as f64).round() as usize;
    format!("{percent} {}{}", "━".repeat(filled), "─".repeat(long - filled))
}

fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", human(bytes_per_s as u64))
}

fn latency(us: u64) -> String {
    if us == 0 { "-".to_owned() } else { time(us) }
}

/// `50 25 15 10`: per cent of the pages by age, the young ones first.
fn ages(tier: &TierView) -> String {
    if tier.age_shares.iter().sum::<f64>() == 0.0 {
        return "-".to_owned();
    }
    tier.age_shares.map(|share| format!("{:.0}", share * 100.0)).join(" ")
}
