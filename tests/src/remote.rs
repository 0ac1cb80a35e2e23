//! Volumes whose pages are on a server: formatted for tests, and a verified load that servers may be
//! taken from.

use crate::mounted::Programs;
use crate::pattern::{PAGE_BYTES, PageBytes, Pattern};
use crate::rng::Rng;
use crate::tiers::Formatted;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Formats a volume that is nothing but `remote`, with these options. mkswapfs wants to be told twice.
///
/// # Panics
/// If that fails.
#[must_use]
pub fn format_alone(programs: &Programs, folder: &Path, size: &str, options: &str) -> Formatted {
    let image = folder.join("image");
    let text = image.display().to_string();
    programs.succeed("mkswapfs", &["-f", "-t", "remote", "-s", size, "-o", options, &text]);
    Formatted { image, members: Vec::new() }
}

/// Formats a tier volume of memory with these options, and a remote member with those.
///
/// # Panics
/// If that fails.
#[must_use]
pub fn format_below(
    programs: &Programs,
    folder: &Path,
    size: &str,
    top: &str,
    options: &str,
) -> Formatted {
    let (image, stub) = (folder.join("image"), folder.join("stub"));
    let member = format!("remote:{},{options}", stub.display());
    let (top, text) = (format!("zmem,{top}"), image.display().to_string());
    let arguments = ["-t", "tier", "-s", size, "--member", &top, "--member", &member, &text];
    programs.succeed("mkswapfs", &arguments);
    Formatted { image, members: vec![stub] }
}

/// What a page may hold: the newest generation, and what it may be instead since a write failed.
#[derive(Debug, Clone, Default)]
struct Known {
    /// Generations, the newest last; 0: zeros. Never empty after the first write.
    possible: Vec<u32>,
}

/// Pages of one thread.
#[derive(Debug)]
struct Lane {
    first: u64,
    known: Vec<Known>,
    next_generation: u32,
    rng: Rng,
}

/// What a load has met.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Pages read and compared.
    pub reads: u64,
    /// Pages written.
    pub writes: u64,
    /// Reads that were refused.
    pub read_errors: u64,
    /// Writes that were refused.
    pub write_errors: u64,
    /// Pages that held what they can't, described.
    pub wrong: Vec<String>,
    /// The longest request.
    pub longest: Duration,
}

impl Outcome {
    fn add(&mut self, other: Outcome) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.read_errors += other.read_errors;
        self.write_errors += other.write_errors;
        self.wrong.extend(other.wrong);
        self.longest = self.longest.max(other.longest);
    }
}

/// Threads that write and read pages of their own, each with its number and generation in it, on a
/// server that may fail at any time: a request may be refused then, but what is answered must be
/// right.
#[derive(Debug)]
pub struct Load {
    file: File,
    pattern: Pattern,
    lanes: Vec<Mutex<Lane>>,
}

impl Load {
    /// A load on these slots of a swap file (slot 0 is the swap header's), by so many threads.
    ///
    /// # Panics
    /// If the file can't be opened.
    #[must_use]
    pub fn new(path: &Path, slots: Range<u64>, threads: u64, seed: u64) -> Load {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let each = (slots.end - slots.start) / threads;
        let lanes = (0..threads).map(|lane| {
            Mutex::new(Lane {
                first: slots.start + lane * each,
                known: vec![Known { possible: vec![0] }; each as usize],
                next_generation: 1,
                rng: Rng::new(seed ^ lane << 40),
            })
        });
        Load { file, pattern: Pattern::new(seed, 40), lanes: lanes.collect() }
    }

    /// Runs until it is told to stop; of ten requests so many are writes.
    ///
    /// # Panics
    /// If a thread of it panics.
    pub fn run(&self, writes_of_ten: u64, stop: &AtomicBool) -> Outcome {
        self.with_each_lane(|lane, outcome| {
            while !stop.load(Ordering::Relaxed) && outcome.wrong.len() < 8 {
                let index = lane.rng.below(lane.known.len() as u64) as usize;
                if lane.rng.below(10) < writes_of_ten {
                    self.write(lane, index, outcome);
                } else {
                    self.read(lane, index, outcome);
                }
            }
        })
    }

    /// Writes all pages anew.
    pub fn write_all(&self) -> Outcome {
        self.with_each_lane(|lane, outcome| {
            (0..lane.known.len()).for_each(|index| self.write(lane, index, outcome));
        })
    }

    /// Reads all pages.
    pub fn read_all(&self) -> Outcome {
        self.with_each_lane(|lane, outcome| {
            (0..lane.known.len()).for_each(|index| self.read(lane, index, outcome));
        })
    }

    /// Reads all pages, of which none may be refused or wrong.
    ///
    /// # Panics
    /// If one is.
    pub fn check_all_right(&self, when: &str) {
        let outcome = self.read_all();
        assert!(outcome.wrong.is_empty(), "{when}: {:#?}", outcome.wrong);
        assert_eq!(outcome.read_errors, 0, "{when}: pages can't be read: {outcome:?}");
    }

    fn with_each_lane(&self, work: impl Fn(&mut Lane, &mut Outcome) + Sync) -> Outcome {
        let work = &work;
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .lanes
                .iter()
                .map(|lane| {
                    scope.spawn(move || {
                        let mut outcome = Outcome::default();
                        work(&mut lane.lock().unwrap(), &mut outcome);
                        outcome
                    })
                })
                .collect();
            let mut all = Outcome::default();
            threads.into_iter().for_each(|thread| all.add(thread.join().unwrap()));
            all
        })
    }

    fn write(&self, lane: &mut Lane, index: usize, outcome: &mut Outcome) {
        let slot = lane.first + index as u64;
        let generation = lane.next_generation;
        lane.next_generation += 1;
        let mut page = PageBytes::default();
        self.pattern.fill(slot as u32, generation, &mut page.0);
        let started = Instant::now();
        let result = self.file.write_all_at(&page.0, slot * PAGE_BYTES as u64);
        outcome.longest = outcome.longest.max(started.elapsed());
        outcome.writes += 1;
        let possible = &mut lane.known[index].possible;
        match result {
            Ok(()) => possible.clear(),
            // Refused: it may be there or not, and the kernel keeps the page.
            Err(error) => {
                if outcome.write_errors == 0 {
                    println!("the first write that was refused, of slot {slot}: {error}");
                }
                outcome.write_errors += 1;
            }
        }
        possible.push(generation);
    }

    fn read(&self, lane: &mut Lane, index: usize, outcome: &mut Outcome) {
        let slot = lane.first + index as u64;
        let (mut found, mut scratch) = (PageBytes::default(), PageBytes::default());
        found.0.fill(0xa5);
        let started = Instant::now();
        let result = self.file.read_exact_at(&mut found.0, slot * PAGE_BYTES as u64);
        outcome.longest = outcome.longest.max(started.elapsed());
        outcome.reads += 1;
        if result.is_err() {
            outcome.read_errors += 1;
            return;
        }
        let possible = &mut lane.known[index].possible;
        let is = |generation: u32, scratch: &mut PageBytes| match generation {
            0 => found.0.iter().all(|&byte| byte == 0),
            _ => self.pattern.check(slot as u32, generation, &found.0, scratch).is_ok(),
        };
        match possible.iter().copied().find(|&generation| is(generation, &mut scratch)) {
            // It stays what it was found to be.
            Some(generation) => *possible = vec![generation],
            None => {
                let newest = possible.last().copied().unwrap_or(0);
                let difference =
                    self.pattern.check(slot as u32, newest, &found.0, &mut scratch).unwrap_err();
                outcome.wrong.push(format!("{difference} (possible: {possible:?})"));
            }
        }
    }
}

/// Writes and reads a page in memory all the time, until it is told to stop: the longest request, and
/// how many there were. The page is written again each time, so it is never cold.
///
/// # Panics
/// If a request fails or a byte is wrong.
pub fn probe_memory(path: &Path, slot: u64, stop: &AtomicBool) -> (Duration, u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let (mut longest, mut count) = (Duration::ZERO, 0);
    let (mut page, mut found) = (vec![0; PAGE_BYTES], vec![0; PAGE_BYTES]);
    let offset = slot * PAGE_BYTES as u64;
    let mut rng = Rng::new(slot);
    while !stop.load(Ordering::Relaxed) {
        rng.fill(&mut page[..2048]);
        let started = Instant::now();
        file.write_all_at(&page, offset).unwrap();
        file.read_exact_at(&mut found, offset).unwrap();
        longest = longest.max(started.elapsed());
        assert!(found == page, "the page in memory is another one");
        count += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    (longest, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(folder: &Path) -> Load {
        let path = folder.join("file");
        File::create(&path).unwrap().set_len(101 * PAGE_BYTES as u64).unwrap();
        Load::new(&path, 1..101, 4, 7)
    }

    #[test]
    fn a_good_file_is_all_right() {
        let folder = crate::mounted::folder();
        let load = load(folder.path());
        load.check_all_right("before");
        let stop = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            let running = scope.spawn(|| load.run(5, &stop));
            std::thread::sleep(Duration::from_millis(200));
            stop.store(true, Ordering::Relaxed);
            running.join().unwrap()
        });
        assert!(outcome.reads > 100 && outcome.writes > 100 && outcome.wrong.is_empty());
        assert_eq!(load.write_all().writes, 100);
        load.check_all_right("after");
    }

    #[test]
    fn an_older_page_is_found_unless_the_write_was_refused() {
        let folder = crate::mounted::folder();
        let load = load(folder.path());
        load.write_all();
        let mut before = vec![0; PAGE_BYTES];
        load.file.read_exact_at(&mut before, 5 * PAGE_BYTES as u64).unwrap();
        load.write_all();
        load.check_all_right("after two writes");
        load.file.write_all_at(&before, 5 * PAGE_BYTES as u64).unwrap();
        let wrong = load.read_all().wrong;
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].contains("it is page 5 generation"), "{wrong:?}");
    }
}
