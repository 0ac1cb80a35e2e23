//! The tables, as Markdown that is also legible as it is.

use crate::compare::{Policy, Row};
use crate::trace::Trace;
use std::fmt::Write;

/// One trace's: read hit rates, and for the tier's own policies the ratios.
pub(crate) fn text(trace: &Trace, rows: &[Row]) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write(&mut text, trace, rows);
    text
}

fn write(text: &mut String, trace: &Trace, rows: &[Row]) -> std::fmt::Result {
    let operations = trace.ops.len() - trace.warm_up;
    writeln!(
        text,
        "\n**{}**: {}; {} slots, {operations} operations. Read hits in per cent:\n",
        trace.name, trace.text, trace.used_slots
    )?;
    let names = Policy::ALL.map(Policy::name).join(" | ");
    writeln!(
        text,
        "| room | {names} | always / LRU, LRU full, optimum | second / LRU, LRU full, optimum \
         | reads and writes: always, second, LRU | entries per demotion: always, second |"
    )?;
    writeln!(text, "|{}", "---:|".repeat(Policy::ALL.len() + 5))?;
    for row in rows {
        write!(text, "| {} %", row.room_percent)?;
        for result in &row.results {
            write!(text, " | {:.1}", result.read_hit_rate * 100.0)?;
        }
        for policy in [Policy::Always, Policy::Second] {
            if let Some(result) = row.of(policy) {
                write!(
                    text,
                    " | {:.3}, {:.3}, {:.3}",
                    result.ratio_to_lru, result.ratio_to_lru_full, result.ratio_to_optimum
                )?;
            }
        }
        let all = |policy| row.of(policy).map_or(0.0, |result| result.hit_rate * 100.0);
        let looked = |policy| row.of(policy).map_or(0.0, |result| result.outcome.work.looked());
        let (always, second) = (Policy::Always, Policy::Second);
        writeln!(
            text,
            " | {:.1}, {:.1}, {:.1} | {:.0}, {:.0} |",
            all(always),
            all(second),
            all(Policy::Lru),
            looked(always),
            looked(second)
        )?;
    }
    for policy in [Policy::Always, Policy::Second] {
        let results = rows.iter().filter_map(|row| Some((row.room_percent, row.of(policy)?)));
        let least =
            results.min_by(|(_, one), (_, other)| one.ratio_to_lru.total_cmp(&other.ratio_to_lru));
        if let Some((room, result)) = least {
            let (name, ratio) = (policy.name(), result.ratio_to_lru);
            writeln!(text, "\nLeast of {name} / LRU: {ratio:.3}, at {room} %.")?;
        }
    }
    Ok(())
}
