//! What is replayed: operations on slots, made by a law and a seed, or recorded.

use std::io::{self, BufRead};
use std::path::Path;
use swapfs_format::PAGE_BYTES;
use swapfs_format::trace::{HEADER_LEN, Header, RECORD_LEN, Record, RecordKind};
use swapfs_tests::rng::Rng;

/// What happens to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A swap-in.
    Read,
    /// A swap-out, into an empty slot or over an older page.
    Write,
    /// The page is gone.
    Discard,
}

/// One operation on one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    pub(crate) slot: u32,
}

/// A whole trace.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) name: String,
    /// In one line: what it is made of.
    pub(crate) text: String,
    pub(crate) slots: u32,
    /// Slots that are written or read at all.
    pub(crate) used_slots: u32,
    pub(crate) ops: Vec<Op>,
    /// So many operations at the beginning are replayed, and not counted.
    pub(crate) warm_up: usize,
}

/// Of a hundred accesses so many are overwrites; the others read.
const OVERWRITE_PERCENT: u64 = 30;
/// One access in so many ends the page's life: the slot is discarded, and written anew before
/// anything reads it.
const LIFE_ACCESSES: u64 = 200;
/// Neighbours in a loop or a scan are neighbours in place for so many slots: the kernel gives
/// swap slots out in clusters.
const RUN_SLOTS: u32 = 64;
/// Accesses in multiples of the number of slots: first those that are not counted.
const WARM_UP_TURNS: usize = 2;
const TURNS: usize = 12;

/// Zipf's law: the page of rank `r` is taken as often as `1 / r^theta` says.
struct Zipf {
    sums: Vec<f64>,
}

impl Zipf {
    fn new(count: u32, theta: f64) -> Zipf {
        let mut sum = 0.0;
        let add = |rank| {
            sum += f64::from(rank).powf(-theta);
            sum
        };
        Zipf { sums: (1..=count).map(add).collect() }
    }

    fn rank(&self, random: &mut Rng) -> u32 {
        let all = self.sums.last().copied().unwrap_or(0.0);
        let part = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * all;
        self.sums.partition_point(|&sum| sum < part).min(self.sums.len() - 1) as u32
    }
}

/// Numbers from 0 up in any order (Fisher and Yates; Durstenfeld 1964), in runs that stay whole.
fn scattered(count: u32, run: u32, random: &mut Rng) -> Vec<u32> {
    let mut runs: Vec<u32> = (0..count.div_ceil(run)).collect();
    for index in (1..runs.len()).rev() {
        runs.swap(index, random.below(index as u64 + 1) as usize);
    }
    runs.iter().flat_map(|&number| number * run..((number + 1) * run).min(count)).collect()
}

/// Makes a trace out of accesses.
struct Builder {
    random: Rng,
    ops: Vec<Op>,
    accesses: usize,
    used: Vec<bool>,
}

impl Builder {
    /// All slots are filled first, in their order, as a kernel does with an empty area.
    fn new(slots: u32, seed: u64) -> Builder {
        let mut ops = Vec::with_capacity(slots as usize * (TURNS + WARM_UP_TURNS + 1));
        ops.extend((0..slots).map(|slot| Op { kind: Kind::Write, slot }));
        Builder { random: Rng::new(seed), ops, accesses: 0, used: vec![true; slots as usize] }
    }

    fn access(&mut self, slot: u32) {
        let used = &mut self.used[slot as usize];
        let kind = if !*used || self.random.below(100) < OVERWRITE_PERCENT {
            Kind::Write
        } else {
            Kind::Read
        };
        *used = true;
        self.ops.push(Op { kind, slot });
        self.accesses += 1;
        if self.random.one_in(LIFE_ACCESSES) {
            *used = false;
            self.ops.push(Op { kind: Kind::Discard, slot });
        }
    }

    fn is_full(&self) -> bool {
        self.accesses >= self.used.len() * (TURNS + WARM_UP_TURNS)
    }

    fn done(self, name: &str, text: &str) -> Trace {
        let slots = self.used.len();
        Trace {
            name: name.to_owned(),
            text: text.to_owned(),
            slots: slots as u32,
            used_slots: slots as u32,
            ops: self.ops,
            warm_up: slots * (WARM_UP_TURNS + 1),
        }
    }
}

/// Pages are taken by Zipf's law, and lie anywhere.
fn zipf(slots: u32, theta: f64, seed: u64) -> Trace {
    let mut builder = Builder::new(slots, seed);
    let places = scattered(slots, 1, &mut builder.random);
    let law = Zipf::new(slots, theta);
    while !builder.is_full() {
        let rank = law.rank(&mut builder.random);
        builder.access(places[rank as usize]);
    }
    builder.done(&format!("zipf {theta}"), "pages by Zipf's law, scattered over the slots")
}

/// Loops over 2, 6, 13 and 27 % of the pages, the shorter the more often, three times each; after
/// each of them a scan goes on over 3 % of all pages.
fn scan_and_loop(slots: u32, seed: u64) -> Trace {
    let mut builder = Builder::new(slots, seed);
    let places = scattered(slots, RUN_SLOTS, &mut builder.random);
    let mut scan = 0;
    let mut first = 0;
    let loops = [2, 6, 13, 27].map(|percent| {
        let start = first;
        first += slots * percent / 100;
        start..first
    });
    while !builder.is_full() {
        // One half, one quarter, one eighth, one eighth.
        let index = (builder.random.below(8) as u32 | 8).trailing_zeros() as usize;
        for _ in 0..3 {
            for place in loops[index].clone() {
                builder.access(places[place as usize]);
            }
        }
        for _ in 0..slots * 3 / 100 {
            builder.access(places[scan]);
            scan = (scan + 1) % places.len();
        }
    }
    builder.done("scan + loop", "loops over 2, 6, 13, 27 % of the pages, and a scan between them")
}

/// Nine in ten accesses go by Zipf's law to 15 % of the pages, the others anywhere. After as many
/// accesses as there are pages the 15 % are others.
fn phases(slots: u32, seed: u64) -> Trace {
    let mut builder = Builder::new(slots, seed);
    let set = slots * 15 / 100;
    let law = Zipf::new(set, 0.8);
    while !builder.is_full() {
        let places = scattered(slots, 1, &mut builder.random);
        for _ in 0..slots {
            let random = &mut builder.random;
            let place = if random.one_in(10) {
                random.below(slots.into()) as u32
            } else {
                law.rank(random)
            };
            builder.access(places[place as usize]);
        }
    }
    builder.done("phase change", "90 % to a set of 15 % of the pages (zipf 0.8), which changes")
}

/// The four that are made.
pub(crate) fn synthetic(slots: u32, seed: u64) -> Vec<Trace> {
    vec![
        zipf(slots, 0.8, seed),
        zipf(slots, 1.1, seed + 1),
        scan_and_loop(slots, seed + 2),
        phases(slots, seed + 3),
    ]
}

/// A recorded one: swapfs's own trace file of a `linear` volume, or text, a line for each
/// operation: `r`, `w` or `d`, the first slot, and how many (1 if not said).
///
/// # Errors
/// If it can't be read, or is neither.
pub(crate) fn recorded(path: &Path) -> io::Result<Trace> {
    let bytes = std::fs::read(path)?;
    let ranges = match Header::decode(&bytes) {
        Ok(header) => of_device(&header, &bytes),
        Err(_) => of_text(&bytes)?,
    };
    let slots = ranges.iter().map(|&(_, first, count)| first + count).max().unwrap_or(0);
    let slots = u32::try_from(slots).map_err(|_| invalid("more than 2^32 slots"))?;
    let mut states = vec![State::Unknown; slots as usize];
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (kind, first, count) in ranges {
        for slot in first..first + count {
            let slot = slot as u32;
            let state = &mut states[slot as usize];
            match (kind, *state) {
                // It was written before the recording began.
                (Kind::Read, State::Unknown) => before.push(Op { kind: Kind::Write, slot }),
                // The kernel reads ahead, over slots that hold nothing.
                (Kind::Read, State::Empty) => continue,
                _ => {}
            }
            *state = if kind == Kind::Discard { State::Empty } else { State::Used };
            after.push(Op { kind, slot });
        }
    }
    let used = states.iter().filter(|&&state| state != State::Unknown).count();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let warm_up = before.len();
    before.append(&mut after);
    Ok(Trace {
        name: format!("recorded {}", name.unwrap_or_default()),
        text: "recorded".to_owned(),
        slots,
        used_slots: used as u32,
        ops: before,
        warm_up,
    })
}

/// What is known of a slot while a recording is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    Used,
    Empty,
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn of_device(header: &Header, bytes: &[u8]) -> Vec<(Kind, u64, u64)> {
    let mut records: Vec<Record> = bytes[HEADER_LEN..]
        .chunks_exact(RECORD_LEN)
        .filter_map(|chunk| Record::decode(chunk.first_chunk()?))
        .collect();
    // The file has them in the order in which they ended.
    records.sort_by_key(|record| record.start_ns);
    let range = |record: &Record| {
        let kind = match record.kind {
            RecordKind::Read => Kind::Read,
            RecordKind::Write => Kind::Write,
            RecordKind::Discard => Kind::Discard,
            _ => return None,
        };
        // Below the data section are superblocks.
        let first = record.offset_bytes.checked_sub(header.data_offset_bytes)? / PAGE_BYTES;
        Some((kind, first, record.length_bytes / PAGE_BYTES))
    };
    records.iter().filter_map(range).collect()
}

fn of_text(bytes: &[u8]) -> io::Result<Vec<(Kind, u64, u64)>> {
    let mut ranges = Vec::new();
    for (number, line) in bytes.lines().enumerate() {
        let line = line?;
        let bad = || invalid(&format!("line {}: not `r|w|d SLOT [COUNT]`", number + 1));
        let mut words = line.split_whitespace();
        let kind = match words.next() {
            None | Some("#") => continue,
            Some("r") => Kind::Read,
            Some("w") => Kind::Write,
            Some("d") => Kind::Discard,
            Some(_) => return Err(bad()),
        };
        let mut next = || words.next().map(|word| word.parse::<u32>().map_err(|_| bad()));
        let first = next().ok_or_else(bad)??;
        let count = next().unwrap_or(Ok(1))?;
        ranges.push((kind, first.into(), count.into()));
    }
    Ok(ranges)
}
