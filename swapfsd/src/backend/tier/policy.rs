//! Which pages stay in the top tier, and which come back to it: decisions only, on the bits of
//! a table entry. The back end and the simulator (`tests/src/bin/tier-policy`) both ask here.
//!
//! **Going down.** When the top tier passes its high watermark, a hand goes over the slot table in
//! the order of the slots, from where it stopped last, until the low watermark is reached. This is
//! CLOCK (Corbato, "A paging experiment with the Multics system", 1968), generalised to more than
//! one bit (Smith, "Sequentiality and prefetching in database systems", 1978, is where counters
//! instead of a bit were first looked at): each visit makes a page a tick older, and takes the
//! [`OLDEST`] ones. The clock's frames are the slots themselves, in no order of age at all, so one
//! bit would leave it to chance whether a page has a whole round or none before it goes. With
//! [`OLDEST`] ticks a page that nobody touches stays for 3 to 4 rounds, and so the order is that
//! of LRU but for a quarter. A page that has just come has had no second use yet, and starts
//! a tick older than one that was touched: what is used once goes before what is used twice, which
//! is what 2Q (Johnson and Shasha, 1994) and MGLRU's generations do too.
//!
//! **Coming up.** At the second read, `promote=second`, is better than LRU where many pages are
//! read now and then: they don't push others out. It is worse where all at once other pages are
//! the hot ones, since each of them costs one more read from below. So [`Judge`] watches what
//! becomes of the pages that were read once. Do many of them come again soon, then pages are
//! promoted at their first read, until that is no longer so. Some slots are always left to
//! the rule, so that there is something to watch. (Set duelling, Qureshi et al., "Adaptive
//! insertion policies for high performance caching", 2007; that history of what went down should
//! choose between recency and frequency is from ARC and CAR, Megiddo and Modha 2003, Bansal and
//! Modha 2004.)
//!
//! What was measured is in `tests/bench/RESULTS.md`.

use crate::backend::objects::entry;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use swapfs_format::member::Promote;

/// The greatest age of an entry, in visits of the hand.
pub const OLDEST: u64 = entry::OLDEST;
/// The age of a page in the top tier that was just read or overwritten there.
pub const AGE_OF_TOUCHED: u64 = 0;
/// The age of a page that comes into the top tier by a swap-out, whatever its slot held before.
pub const AGE_OF_NEW: u64 = 1;
/// The age that the entry of a page below gets when it is marked as seen: its mark is forgotten
/// [`SEEN_VISITS`] visits of the top tier's hand later.
pub const AGE_OF_SEEN: u64 = 0;
/// So many visits of the top tier's hand end the mark that a page below was seen: between one
/// round and two. A page that takes longer to come again would not have lasted in the top either,
/// had it come up as [`AGE_OF_NEW`] says.
pub const SEEN_VISITS: u64 = 2;
/// Rounds of the slot table that one sweep makes at most. A page that nobody touches is taken in
/// them, whatever its age was. So if they are not enough, pages are touched as fast as the hand
/// goes round, or can't go down: another sweep right away would find no more.
pub const SWEEP_ROUNDS: u64 = OLDEST + 1;

/// What the hand does with a page of the top tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// Makes it a tick older.
    Older,
    /// Moves it down.
    Take,
}

/// The top tier's hand is at a page of the top tier that is `age` ticks old.
#[must_use]
pub const fn at_hand(age: u64) -> Visit {
    if age >= OLDEST { Visit::Take } else { Visit::Older }
}

/// What the top tier's hand does with a page that lies below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisitBelow {
    /// Nothing.
    Leave,
    /// Makes it a tick older.
    Older,
    /// Takes the mark away that it was seen, and tells [`Judge::forgot`].
    Forget,
}

/// The top tier's hand is at a page that lies below, is marked as seen or not, and is `age` ticks
/// old. (A tier's own hand may make its pages older too; the mark ends sooner then.)
#[must_use]
pub const fn at_hand_below(was_seen: bool, age: u64) -> VisitBelow {
    if !was_seen {
        VisitBelow::Leave
    } else if age + 1 >= SEEN_VISITS {
        VisitBelow::Forget
    } else {
        VisitBelow::Older
    }
}

/// The age of a page that is promoted, by whether it was marked as seen: then it had two uses.
#[must_use]
pub const fn age_of_promoted(was_seen: bool) -> u64 {
    if was_seen { AGE_OF_TOUCHED } else { AGE_OF_NEW }
}

/// What a read of a page that lies below does, beside reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRead {
    /// The page comes to the top, with [`age_of_promoted`], without a mark.
    Promote,
    /// The page is marked as seen, with [`AGE_OF_SEEN`].
    MarkSeen,
    /// Nothing.
    Nothing,
}

/// One page that comes again pays for so many that were marked and did not: a read from a device
/// costs far more than a page that comes up for nothing.
const WORTH_OF_ONE: i32 = 4;
/// The score never gets farther from 0 than that, in pages that were marked and did not come
/// again. So it takes a few hundred reads to change the rule, however long it was right.
const SCORE_MAX: i32 = 1024;
/// One slot in so many always goes by the rule of the second read.
const WATCHED_SLOTS: u64 = 16;

/// Says whether reads of pages below promote them, and learns whether first reads should. One for
/// each volume. What it has learned is a guess and may be lost: a successor begins at
/// [`Judge::new`].
#[derive(Debug)]
pub struct Judge {
    /// Above 0: pages that were read once come again.
    score: AtomicI32,
}

impl Judge {
    /// One that waits for the second read.
    #[must_use]
    pub const fn new() -> Judge {
        Judge { score: AtomicI32::new(0) }
    }

    /// A page that lies below, in a tier with that `promote`, is read from `slot`.
    /// `was_seen`: its entry is marked. `has_room`: the top tier is below its low watermark, so
    /// that nothing has to go for it.
    #[must_use]
    pub fn on_read_below(
        &self,
        promote: Promote,
        slot: u64,
        was_seen: bool,
        has_room: bool,
    ) -> OnRead {
        match promote {
            Promote::Never => OnRead::Nothing,
            Promote::Always => OnRead::Promote,
            Promote::Second if was_seen => {
                self.add(WORTH_OF_ONE);
                OnRead::Promote
            }
            Promote::Second if has_room => OnRead::Promote,
            Promote::Second if self.is_first_enough() && !is_watched(slot) => OnRead::Promote,
            Promote::Second => OnRead::MarkSeen,
        }
    }

    /// The hand took a mark away: the page did not come again in time. Not for pages that were
    /// overwritten or discarded: they say nothing about reads.
    pub fn forgot(&self) {
        self.add(-1);
    }

    /// With `promote=second`, pages are promoted at the first read now.
    #[must_use]
    pub fn is_first_enough(&self) -> bool {
        self.score.load(Relaxed) > 0
    }

    /// Two at once may count as one: no reader shall wait for a guess.
    fn add(&self, points: i32) {
        let score = self.score.load(Relaxed) + points;
        self.score.store(score.clamp(-SCORE_MAX, SCORE_MAX), Relaxed);
    }
}

impl Default for Judge {
    fn default() -> Judge {
        Judge::new()
    }
}

/// Any slots, so that no pattern of use is all of them or none. (Fibonacci hashing, Knuth,
/// volume 3.)
const fn is_watched(slot: u64) -> bool {
    slot.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - WATCHED_SLOTS.ilog2()) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot that goes by what the judge has learned.
    fn unwatched() -> u64 {
        (0..).find(|&slot| !is_watched(slot)).unwrap()
    }

    /// Visits until the hand takes a page of that age.
    fn visits(mut age: u64) -> u64 {
        let mut visits = 1;
        while at_hand(age) == Visit::Older {
            age += 1;
            visits += 1;
        }
        visits
    }

    #[test]
    fn what_was_touched_last_stays_longest() {
        assert_eq!(visits(AGE_OF_TOUCHED), OLDEST + 1);
        assert_eq!(visits(AGE_OF_NEW), OLDEST);
        assert_eq!(visits(OLDEST), 1);
        assert_eq!(visits(age_of_promoted(true)), visits(AGE_OF_TOUCHED));
        assert_eq!(visits(age_of_promoted(false)), visits(AGE_OF_NEW));
        assert!((AGE_OF_TOUCHED..=OLDEST).all(|age| visits(age) <= SWEEP_ROUNDS));
    }

    #[test]
    fn a_mark_lasts_for_its_visits() {
        assert_eq!(at_hand_below(false, OLDEST), VisitBelow::Leave);
        let visits = (AGE_OF_SEEN..=OLDEST).map(|age| at_hand_below(true, age));
        assert!(visits.eq([
            VisitBelow::Older,
            VisitBelow::Forget,
            VisitBelow::Forget,
            VisitBelow::Forget
        ]));
    }

    #[test]
    fn the_option_decides() {
        let judge = Judge::new();
        let read = |promote, was_seen, has_room| {
            judge.on_read_below(promote, unwatched(), was_seen, has_room)
        };
        for (was_seen, has_room) in [(false, false), (false, true), (true, false), (true, true)] {
            assert_eq!(read(Promote::Never, was_seen, has_room), OnRead::Nothing);
            assert_eq!(read(Promote::Always, was_seen, has_room), OnRead::Promote);
        }
        assert_eq!(read(Promote::Second, false, false), OnRead::MarkSeen);
        assert_eq!(read(Promote::Second, false, true), OnRead::Promote);
        assert_eq!(read(Promote::Second, true, false), OnRead::Promote);
    }

    #[test]
    fn the_first_read_is_enough_while_pages_come_again() {
        let judge = Judge::new();
        let read = |slot, was_seen| judge.on_read_below(Promote::Second, slot, was_seen, false);
        for _ in 0..100_000 {
            judge.forgot();
        }
        let mut came_again = 0;
        while read(unwatched(), false) == OnRead::MarkSeen {
            assert_eq!(read(unwatched(), true), OnRead::Promote);
            came_again += 1;
        }
        assert_eq!(came_again, SCORE_MAX / WORTH_OF_ONE + 1);
        let watched: Vec<u64> = (0..16_000).filter(|&slot| is_watched(slot)).collect();
        assert!((900..1100).contains(&watched.len()), "{}", watched.len());
        assert!(watched.iter().all(|&slot| read(slot, false) == OnRead::MarkSeen));
        for _ in 0..WORTH_OF_ONE {
            judge.forgot();
        }
        assert_eq!(read(unwatched(), false), OnRead::MarkSeen);
    }
}
