//! Processes that serve a volume without FUSE and are killed at a named point, one after the
//! other on the same memory: what child and parent of that test share.
//!
//! What is done follows from a seed: operation `n` of a lane is always the same. A lane is a
//! thread that has slots of its own and does one operation at a time. It notes in a file of the
//! parent's which operation it has begun and which is done, so its successor knows what every
//! slot must hold, and which operation was never answered.

use crate::conformance::Target;
use crate::rng::Rng;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use swapfs_format::PAGE_LEN;

/// Threads that use the volume at once.
pub const LANES: u64 = 3;
/// Slots of each; slot 0 is nobody's: the swap header is there.
pub const LANE_SLOTS: u64 = 320;
/// Slots of the volume.
pub const SLOTS: u64 = 1 + LANES * LANE_SLOTS;
/// Slots of the largest write. Beyond that of zmem's helpers, and of linear's large buffers.
const MAX_SLOTS: u64 = 64;
/// For so many operations a lane stays in a part of its slots: the others grow cold.
const STAY: u64 = 150;

/// What one operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// All slots get new pages.
    Write,
    /// All slots read as zeros afterwards.
    Discard,
    /// All slots are compared.
    Read,
}

/// An operation of a lane.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// What it does.
    pub action: Action,
    /// The first slot, and how many.
    pub first: u64,
    /// Slots.
    pub count: u64,
}

/// One lane's sequence of operations, and what they make of its slots.
#[derive(Debug)]
pub struct Lane {
    seed: u64,
    number: u64,
    /// By slot: the operation that wrote it last. `None`: zeros.
    written_by: Vec<Option<u64>>,
}

/// A mixture of two words, of which neither a step in one nor in both gives the same again.
fn mix(one: u64, two: u64) -> u64 {
    Rng::new(one ^ two.wrapping_mul(0xd6e8_feb8_6659_fd93)).next_u64()
}

impl Lane {
    /// Lane `number` of the run with that seed, before its first operation.
    #[must_use]
    pub fn new(seed: u64, number: u64) -> Lane {
        Lane { seed, number, written_by: vec![None; LANE_SLOTS as usize] }
    }

    /// Its first slot.
    #[must_use]
    pub fn first_slot(&self) -> u64 {
        1 + self.number * LANE_SLOTS
    }

    /// Operation `index`.
    #[must_use]
    pub fn operation(&self, index: u64) -> Operation {
        let mut rng = Rng::new(mix(self.seed ^ self.number << 56, index));
        let all =
            Operation { action: Action::Discard, first: self.first_slot(), count: LANE_SLOTS };
        // Now and then everything goes, so that memory is given back, and taken again.
        if index % (4 * STAY) == 4 * STAY - 1 {
            return all;
        }
        let action = match rng.below(16) {
            0..=8 => Action::Write,
            9..=10 => Action::Discard,
            _ => Action::Read,
        };
        let part = if (index / STAY).is_multiple_of(4) { LANE_SLOTS } else { LANE_SLOTS / 2 };
        let start = if index / STAY % 4 == 3 { LANE_SLOTS - part } else { 0 };
        // Mostly few slots; some of the largest.
        let most = [1, 4, 16, MAX_SLOTS][rng.below(4) as usize];
        let count = if rng.one_in(8) { MAX_SLOTS } else { 1 + rng.below(most) };
        let first = self.first_slot() + start + rng.below(part - count + 1);
        Operation { action, first, count }
    }

    fn index_of(&self, slot: u64) -> usize {
        (slot - self.first_slot()) as usize
    }

    /// Operation `index` is done.
    pub fn apply(&mut self, index: u64) {
        let operation = self.operation(index);
        let writer = match operation.action {
            Action::Read => return,
            Action::Write => Some(index),
            Action::Discard => None,
        };
        let first = self.index_of(operation.first);
        self.written_by[first..first + operation.count as usize].fill(writer);
    }

    /// What `slot` holds now.
    pub fn page(&self, slot: u64, out: &mut [u8]) {
        self.page_of(self.written_by[self.index_of(slot)], slot, out);
    }

    /// What `slot` holds after operation `index`, which changes it.
    pub fn page_after(&self, index: u64, slot: u64, out: &mut [u8]) {
        let written = self.operation(index).action == Action::Write;
        self.page_of(written.then_some(index), slot, out);
    }

    fn page_of(&self, writer: Option<u64>, slot: u64, out: &mut [u8]) {
        match writer {
            None => out.fill(0),
            Some(index) => fill(mix(mix(self.seed, index), slot), out),
        }
    }
}

/// A page of one of several kinds, given by `id`.
fn fill(id: u64, out: &mut [u8]) {
    let mut rng = Rng::new(id);
    let kind = rng.below(8);
    let mut words = |word: &mut dyn FnMut(&mut Rng, u64) -> u64| {
        for (index, chunk) in (0..).zip(out.chunks_exact_mut(8)) {
            chunk.copy_from_slice(&word(&mut rng, index).to_le_bytes());
        }
    };
    match kind {
        // Same-filled, in zmem's table entry and beside it. The latter often, since two of them
        // have to follow each other in the same slot.
        0 => words(&mut |_, _| id & 0xffff),
        1 | 2 => words(&mut |_, _| id | 1 << 63),
        // Compressible: well, little.
        3 => words(&mut |_, index| id ^ (index / 8)),
        4 => words(&mut |rng, index| if index % 2 == 0 { rng.next_u64() } else { id }),
        // Random.
        5 => words(&mut |rng, _| rng.next_u64()),
        // Hardly compressible by lz4, better by zstd: random digits.
        6 => words(&mut |rng, _| {
            u64::from_le_bytes(std::array::from_fn(|_| b'0' + rng.below(10) as u8))
        }),
        // One of a few pages that come again and again.
        _ => {
            let again = id % 12;
            words(&mut |_, index| (again << 40) | (index / 4));
        }
    }
}

/// How far the lanes are: two numbers for each, in a file of the parent's.
#[derive(Debug)]
pub struct Progress(pub File);

impl Progress {
    fn number(&self, at: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, at * 8)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Operations of a lane that were begun, and done.
    ///
    /// # Errors
    /// What reading answers.
    pub fn of(&self, lane: u64) -> io::Result<(u64, u64)> {
        Ok((self.number(2 * lane)?, self.number(2 * lane + 1)?))
    }

    /// So many operations of a lane were begun.
    ///
    /// # Errors
    /// What writing answers.
    pub fn begun(&self, lane: u64, count: u64) -> io::Result<()> {
        self.0.write_all_at(&count.to_le_bytes(), 2 * lane * 8)
    }

    /// So many operations of a lane are done.
    ///
    /// # Errors
    /// What writing answers.
    pub fn done(&self, lane: u64, count: u64) -> io::Result<()> {
        self.0.write_all_at(&count.to_le_bytes(), (2 * lane + 1) * 8)
    }
}

/// What the slots of an operation that was not answered may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// Each slot its old page or its new one.
    OldOrNew,
    /// Anything, also half a page.
    Torn,
}

/// A lane at work on a volume. All that is wrong is answered as text.
pub struct Runner<'a> {
    /// What must be there.
    pub lane: Lane,
    /// What is there.
    pub target: &'a dyn Target,
    /// Where it is noted.
    pub progress: &'a Progress,
    done: u64,
}

impl<'a> Runner<'a> {
    /// The lane as its predecessor has left it.
    ///
    /// # Errors
    /// If the progress can't be read.
    pub fn new(
        seed: u64,
        number: u64,
        target: &'a dyn Target,
        progress: &'a Progress,
    ) -> io::Result<Runner<'a>> {
        let (_, done) = progress.of(number)?;
        let mut lane = Lane::new(seed, number);
        (0..done).for_each(|index| lane.apply(index));
        Ok(Runner { lane, target, progress, done })
    }

    /// The operation that was begun and not done.
    fn unanswered(&self) -> Result<Option<Operation>, String> {
        let (begun, done) = self.progress.of(self.lane.number).map_err(|e| e.to_string())?;
        Ok((begun > done).then(|| self.lane.operation(done)))
    }

    /// Compares every slot with what it must hold.
    ///
    /// # Errors
    /// The first slot that holds something else.
    pub fn verify(&self, rule: Unanswered) -> Result<(), String> {
        let unanswered = self.unanswered()?.filter(|operation| operation.action != Action::Read);
        let mut found = [0; PAGE_LEN];
        let mut expected = [0; PAGE_LEN];
        for slot in self.lane.first_slot()..self.lane.first_slot() + LANE_SLOTS {
            self.read(slot, &mut found)?;
            self.lane.page(slot, &mut expected);
            if found == expected {
                continue;
            }
            let changing = unanswered.filter(|operation| {
                (operation.first..operation.first + operation.count).contains(&slot)
            });
            let Some(operation) = changing else {
                return Err(self.wrong(slot, "is not what was written", &found));
            };
            if rule == Unanswered::OldOrNew {
                self.lane.page_after(self.done, slot, &mut expected);
                if found != expected {
                    let text = format!("is neither old nor new ({operation:?} was not answered)");
                    return Err(self.wrong(slot, &text, &found));
                }
            }
        }
        Ok(())
    }

    fn wrong(&self, slot: u64, what: &str, found: &[u8]) -> String {
        let looks_like = self.whose(slot, found);
        let start = &found[..16];
        format!("slot {slot} {what}: after {} operations: {looks_like}; {start:x?}", self.done)
    }

    /// Which operation has written what was found.
    fn whose(&self, slot: u64, found: &[u8]) -> String {
        let mut page = [0; PAGE_LEN];
        if found.iter().all(|&byte| byte == 0) {
            return "zeros".to_owned();
        }
        let all = self.lane.first_slot()..self.lane.first_slot() + LANE_SLOTS;
        for index in (self.done.saturating_sub(200)..=self.done).rev() {
            for other in std::iter::once(slot).chain(all.clone()) {
                self.lane.page_of(Some(index), other, &mut page);
                if page == *found {
                    return format!("what operation {index} writes to slot {other}");
                }
            }
        }
        "nothing known".to_owned()
    }

    fn read(&self, slot: u64, out: &mut [u8]) -> Result<(), String> {
        let read = self.target.read(slot * PAGE_LEN as u64, out);
        read.map_err(|failure| {
            format!("slot {slot} can't be read after {} operations: {failure:?}", self.done)
        })
    }

    /// Sends the operation that was not answered again, and looks whether it is done then.
    ///
    /// # Errors
    /// What is wrong.
    pub fn repeat_unanswered(&mut self) -> Result<(), String> {
        if self.unanswered()?.is_some() {
            self.do_next()?;
            self.verify(Unanswered::OldOrNew)?;
        }
        Ok(())
    }

    /// Does the next operation.
    ///
    /// # Errors
    /// What is wrong.
    pub fn do_next(&mut self) -> Result<(), String> {
        let index = self.done;
        let text = |error: io::Error| error.to_string();
        self.progress.begun(self.lane.number, index + 1).map_err(text)?;
        let operation = self.lane.operation(index);
        let mut pages = vec![0; operation.count as usize * PAGE_LEN];
        let offset = operation.first * PAGE_LEN as u64;
        let slots = operation.first..;
        let outcome = match operation.action {
            Action::Write => {
                for (slot, page) in slots.zip(pages.chunks_exact_mut(PAGE_LEN)) {
                    self.lane.page_after(index, slot, page);
                }
                self.target.write(offset, &pages)
            }
            Action::Discard => self.target.discard(offset, pages.len() as u64),
            Action::Read => self.target.read(offset, &mut pages),
        };
        outcome.map_err(|failure| format!("operation {index}, {operation:?}: {failure:?}"))?;
        if operation.action == Action::Read {
            let mut expected = [0; PAGE_LEN];
            for (slot, page) in (operation.first..).zip(pages.chunks_exact(PAGE_LEN)) {
                self.lane.page(slot, &mut expected);
                if page != expected {
                    return Err(self.wrong(slot, "was read and is not what was written", page));
                }
            }
        }
        self.lane.apply(index);
        self.done = index + 1;
        self.progress.done(self.lane.number, self.done).map_err(text)
    }
}
