//! Points at which a test kills the daemon: between any two steps of a publication.
//!
//! Whoever stores a page or moves an object passes a named point after each step that another
//! process could see. A test arms one of them, and the process kills itself there, as SIGKILL
//! from outside could at that very instruction; then it looks whether every page is right.
//! Unarmed, a point is one load and a branch that is never taken.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The points. Each back end names what stands between two of its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Point {
    /// `linear`: the slots' checksums are marked as changing, the device has nothing yet.
    LinearMarked = 1,
    /// `linear`: the device has the pages, their checksums are not recorded.
    LinearWritten,
    /// `linear`: a hole is punched, its checksums are not recorded.
    LinearDiscarded,
    /// `ram`: half of the pages are copied.
    RamHalf,
    /// `zmem`: a segment is marked as changing and not yet populated, or not yet released.
    ZmemSegmentChanging,
    /// `zmem`: a segment's memory is populated or released, and its state not yet said.
    ZmemSegmentChanged,
    /// `zmem`: a segment was taken, nothing is in it.
    ZmemSegmentTaken,
    /// `zmem`: a page of the table is ready and not linked.
    ZmemTablePage,
    /// `zmem`: an object's bytes are stored, no entry names it.
    ZmemStored,
    /// `zmem`: the word beside an entry is stored, the entry not.
    ZmemWordStored,
    /// `zmem`: an entry is published, the old object not freed.
    ZmemPublished,
    /// `zmem`: some of the slots of a discard are absent.
    ZmemDiscarding,
    /// `zmem`: the compactor has copied an object, and not published it.
    ZmemMoved,
    /// `zmem`: the compactor has published an object's new place.
    ZmemMovePublished,
    /// `zmem`: a recompressed object is stored and not published.
    ZmemRecompressed,
    /// `zmem`: a recompressed object is published, the old one not freed.
    ZmemRecompressPublished,
    /// `zmem`: a record of the index of identical pages was changed.
    ZmemIndexed,
    /// `zmem`: a part of a bucket of that index was split off.
    ZmemIndexSplit,
    /// `zmem`: half of what a predecessor left is taken over.
    ZmemActivating,
    /// `log`: a record is in the buffer, no entry names it.
    LogBuffered,
    /// `log`: an entry is published, the old object not freed.
    LogWritten,
    /// `log`: some of the slots of a discard are absent.
    LogDiscarding,
    /// `log`: a segment was taken, nothing is in it.
    LogSegmentTaken,
    /// `log`: a part is complete in memory, and not written.
    LogPartBuilt,
    /// `log`: a part is on the device, and no entry names it.
    LogPartWritten,
    /// `log`: an object's place on the device is published, its old one not freed.
    LogPublished,
    /// `log`: the collector has copied an object.
    LogCollected,
    /// `log`: a victim is empty, and not free.
    LogEmptied,
    /// `log`: half of what a predecessor left is taken over.
    LogActivating,
    /// `tier`: a load is complete in memory, and not written.
    TierLoaded,
    /// `tier`: a load is on its member, and no entry names it.
    TierWritten,
    /// `tier`: an object's new place is published, its old one not freed.
    TierPublished,
    /// `tier`: an object was copied to the top, and is not published there.
    TierPromoted,
    /// `tier`: an object's place in the top is published, its old one not freed.
    TierPromotePublished,
    /// `tier`: a page has lost its copy below, which is not freed.
    TierCopyDropped,
    /// `tier`: some of what is on a tier that is being emptied was moved.
    TierEvacuated,
    /// `tier`: an empty member is no part of the volume any more, and still held.
    TierWithdrawn,
    /// `tier`: a new member is held by the supervisor, and no part of the volume.
    TierHeld,
    /// `tier`: a new member is part of the volume.
    TierAdded,
    /// The first worker serves requests, and its supervisor does not know yet.
    DaemonUnannounced,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 40] = [
        Point::LinearMarked,
        Point::LinearWritten,
        Point::LinearDiscarded,
        Point::RamHalf,
        Point::ZmemSegmentChanging,
        Point::ZmemSegmentChanged,
        Point::ZmemSegmentTaken,
        Point::ZmemTablePage,
        Point::ZmemStored,
        Point::ZmemWordStored,
        Point::ZmemPublished,
        Point::ZmemDiscarding,
        Point::ZmemMoved,
        Point::ZmemMovePublished,
        Point::ZmemRecompressed,
        Point::ZmemRecompressPublished,
        Point::ZmemIndexed,
        Point::ZmemIndexSplit,
        Point::ZmemActivating,
        Point::LogBuffered,
        Point::LogWritten,
        Point::LogDiscarding,
        Point::LogSegmentTaken,
        Point::LogPartBuilt,
        Point::LogPartWritten,
        Point::LogPublished,
        Point::LogCollected,
        Point::LogEmptied,
        Point::LogActivating,
        Point::TierLoaded,
        Point::TierWritten,
        Point::TierPublished,
        Point::TierPromoted,
        Point::TierPromotePublished,
        Point::TierCopyDropped,
        Point::TierEvacuated,
        Point::TierWithdrawn,
        Point::TierHeld,
        Point::TierAdded,
        Point::DaemonUnannounced,
    ];

    /// The name that [`arm_from_environment`] takes: as it stands in the source.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// The armed point; 0: none.
static ARMED: AtomicU32 = AtomicU32::new(0);
/// Times that it is still to be passed.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// Passes a point: the process ends here if a test wants it to.
#[inline]
pub fn pass(point: Point) {
    if ARMED.load(Ordering::Relaxed) == point as u32 {
        passed();
    }
}

#[cold]
fn passed() {
    if LEFT.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    if BLOCK.load(Ordering::Relaxed) {
        loop {
            std::thread::park();
        }
    }
    crate::sys::process::kill_self();
}

/// Not killed, but stuck: the thread that passes the point never comes back.
static BLOCK: AtomicBool = AtomicBool::new(false);

/// The process is killed when `point` is passed for the `count`-th time from now on.
pub fn arm(point: Point, count: u64) {
    LEFT.store(count.max(1), Ordering::Relaxed);
    ARMED.store(point as u32, Ordering::Relaxed);
}

/// Arms the point that the environment variable `SWAPFS_KILL_AT` names, as `NAME:COUNT`; or
/// `SWAPFS_BLOCK_AT`, at which the thread gets stuck.
pub fn arm_from_environment() {
    let blocked = std::env::var("SWAPFS_BLOCK_AT");
    BLOCK.store(blocked.is_ok(), Ordering::Relaxed);
    let Ok(text) = blocked.or_else(|_| std::env::var("SWAPFS_KILL_AT")) else { return };
    let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
    let point = Point::ALL.into_iter().find(|point| point.name() == name);
    if let (Some(point), Ok(count)) = (point, count.parse()) {
        arm(point, count);
    }
}
