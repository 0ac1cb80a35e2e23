//! Which pages the `tier` back end keeps in memory, against what others would: traces are replayed
//! through its policy (`swapfsd/src/backend/tier/policy.rs`), exact LRU, Belady's optimum, and
//! what is simpler. Prints tables; `--json` and `--svg` say the same for programs and for eyes.

// A measurement may panic: that is how it fails.
#![allow(clippy::unwrap_used)]

mod compare;
mod others;
mod picture;
mod replay;
mod slots;
mod table;
#[cfg(test)]
mod tests;
mod trace;

use clap::Parser;
use compare::{Watermarks, compare};
use std::path::PathBuf;

/// Top-tier hit rates of the tier's policy, LRU, Belady's optimum, and others.
///
/// The unit is pages; the top tier has room for so many per cent of the slots that a trace uses,
/// and demotes between its watermarks. Of 100 accesses of the synthetic traces 30 overwrite the
/// page and 70 read it; one in 200 ends its life. All slots are written first, then twice as
/// many accesses as there are slots are replayed and not counted.
#[derive(Parser)]
#[command(after_help = "\
A real trace is recorded of a `linear` volume, where each place on the device is a slot:

  mkswapfs -t linear /var/tmp/swap.img -s 1G
  swapfs up /var/tmp/swap.img -o trace=/var/tmp/swap.trace
  ... what is to be recorded ...
  swapfs down /var/tmp/swap.img
  tier-policy --recorded /var/tmp/swap.trace

Only where swapping is safe. In a guest, with the release build:

  tests/guest/run --memory 500 --disk 1G tests/guest/cases/lib/record-trace.sh >/var/tmp/out
  sed -n '/^TRACE BEGINS/,/^TRACE ENDS/p' /var/tmp/out | grep -v '^TRACE' | base64 -d | gunzip \\
      >/var/tmp/swap.trace

Another source's trace is text, a line for each operation: `r`, `w` or `d` (discard), the first \
slot, and how many (1 if not said); lines that start with `# ` are skipped.")]
struct Arguments {
    /// Slots of the synthetic traces.
    #[arg(long, default_value_t = 65536)]
    slots: u32,
    /// What the synthetic traces follow from; the second has one more, and so on.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rooms of the top tier, in per cent of a trace's slots.
    #[arg(long, value_delimiter = ',', default_value = "3,5,7,10,14,20,28,40,55")]
    rooms: Vec<u32>,
    /// Pages go down above so many per cent of the room.
    #[arg(long, default_value_t = 90)]
    high: u32,
    /// They do until so many are left.
    #[arg(long, default_value_t = 80)]
    low: u32,
    /// A recorded trace, beside the synthetic ones.
    #[arg(long, value_name = "FILE")]
    recorded: Vec<PathBuf>,
    /// Everything as JSON, instead of the tables.
    #[arg(long)]
    json: bool,
    /// A picture of the hit rates.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn main() {
    let arguments = Arguments::parse();
    let watermarks = Watermarks { high_percent: arguments.high, low_percent: arguments.low };
    let mut traces = trace::synthetic(arguments.slots, arguments.seed);
    traces.extend(arguments.recorded.iter().map(|path| trace::recorded(path).unwrap()));
    if !arguments.json {
        println!(
            "{} slots, seeds from {}, watermarks {} and {} %",
            arguments.slots, arguments.seed, arguments.high, arguments.low
        );
    }
    let mut panels = Vec::new();
    for trace in &traces {
        let rows = compare(trace, &arguments.rooms, watermarks);
        if !arguments.json {
            print!("{}", table::text(trace, &rows));
        }
        panels.push((trace, rows));
    }
    if let Some(path) = &arguments.svg {
        std::fs::write(path, picture::svg(&panels, watermarks)).unwrap();
    }
    if arguments.json {
        let rows: Vec<_> = panels.iter().flat_map(|(_, rows)| rows).collect();
        let report = serde_json::json!({
            "slots": arguments.slots,
            "seed": arguments.seed,
            "watermarks": watermarks,
            "rows": rows,
        });
        println!("{report}");
    }
}
