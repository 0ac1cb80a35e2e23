//! `stats.json` and `metrics`: made when they are opened, like files of /proc.
//!
//! Each open file has a snapshot in memory that is there from the start; with all in use, one
//! more open is refused rather than memory asked for.

use crate::stats::json::{Identity, Report};
use crate::sync::Mutex;
use crate::volume::Volume;

/// Files that can be open at once.
const MAX_OPEN: usize = 8;
/// Room for one snapshot. Both texts take about 8 KiB; each of nine tiers up to 1 KiB of numbers,
/// 1 KiB of options, and 4 KiB of path.
pub(crate) const SNAPSHOT_BYTES: usize = 96 << 10;

/// Which text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusFile {
    Json,
    Metrics,
}

struct Snapshot {
    used: bool,
    len: usize,
    text: Vec<u8>,
}

impl Snapshot {
    fn take(&mut self, file: StatusFile, identity: &Identity, volume: &Volume) {
        let report = Report::new(identity, volume);
        self.len = match file {
            StatusFile::Json => report.render_json(&mut self.text),
            StatusFile::Metrics => report.render_metrics(&mut self.text),
        };
        self.used = true;
    }
}

/// The snapshots.
pub(super) struct StatusFiles {
    snapshots: Mutex<Vec<Snapshot>>,
}

impl StatusFiles {
    pub(super) fn new() -> StatusFiles {
        // Not zeros, so that the memory is touched now.
        let snapshot = || Snapshot { used: false, len: 0, text: vec![b' '; SNAPSHOT_BYTES] };
        StatusFiles { snapshots: Mutex::new((0..MAX_OPEN).map(|_| snapshot()).collect()) }
    }

    /// Takes a snapshot; `None` if too many are open.
    pub(super) fn open(
        &self,
        file: StatusFile,
        identity: &Identity,
        volume: &Volume,
    ) -> Option<u64> {
        let mut snapshots = self.snapshots.lock();
        let handle = snapshots.iter().position(|snapshot| !snapshot.used)?;
        snapshots[handle].take(file, identity, volume);
        Some(handle as u64)
    }

    /// Takes a snapshot for a handle that has none: it was given out by another process.
    pub(super) fn restore(
        &self,
        handle: u64,
        file: StatusFile,
        identity: &Identity,
        volume: &Volume,
    ) {
        let mut snapshots = self.snapshots.lock();
        if let Some(snapshot) = snapshots.get_mut(handle as usize).filter(|found| !found.used) {
            snapshot.take(file, identity, volume);
        }
    }

    /// Hands the bytes of a range to `reply`.
    pub(super) fn read<T>(
        &self,
        handle: u64,
        offset: u64,
        size: usize,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> T {
        let snapshots = self.snapshots.lock();
        let text = snapshots
            .get(handle as usize)
            .map_or(&[][..], |snapshot| &snapshot.text[..snapshot.len]);
        let start = text.len().min(offset as usize);
        let end = text.len().min(start + size);
        reply(&text[start..end])
    }

    pub(super) fn release(&self, handle: u64) {
        if let Some(snapshot) = self.snapshots.lock().get_mut(handle as usize) {
            snapshot.used = false;
        }
    }
}
