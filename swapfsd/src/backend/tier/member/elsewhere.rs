//! What of a member has to do with a server elsewhere: loads on their way, writes in doubt, objects.

use super::{Member, State};
use crate::backend::tier::counts::add;
use crate::backend::tier::envelope;
use crate::backend::tier::record::MAX_WRITES;
use crate::remote::Key;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use swapfs_format::member::MAX_DEVICE_MEMBERS;

/// How long a server is left alone that has no room.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// Writes to a member that may be in doubt: others need some too.
const MAX_DOUBTS: usize = MAX_WRITES / MAX_DEVICE_MEMBERS;

/// Loads that are on their way to a server at a time: it shall not keep all those busy who move
/// pages.
pub(in crate::backend::tier) const MAX_REMOTE_LOADS: u32 = 2;
/// A server that has not taken a load by then gets no more until it has.
const LATE: Duration = Duration::from_millis(500);

/// A load is on its way to a member while this lives.
#[derive(Debug)]
pub(in crate::backend::tier) struct Sending<'a>(&'a Member);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.busy_since_ms.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.loads.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Member {
    /// A load was not taken in time: the next ones go elsewhere until it was.
    pub(in crate::backend::tier) fn is_late(&self) -> bool {
        self.is_remote()
            && self.loads.load(Ordering::Acquire) > 0
            && Duration::from_millis(
                self.now_ms().saturating_sub(self.busy_since_ms.load(Ordering::Relaxed)),
            ) > LATE
    }

    /// A load is about to be sent. Of a server elsewhere there is a limit: `None` after a while.
    pub(in crate::backend::tier) fn begin_sending(&self) -> Option<Sending<'_>> {
        let started = Instant::now();
        loop {
            let more = |loads| {
                let most = if self.is_remote() { MAX_REMOTE_LOADS } else { u32::MAX };
                (loads < most).then_some(loads + 1)
            };
            let before = self.loads.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
            if let Ok(before) = before {
                if before == 0 {
                    self.busy_since_ms.store(self.now_ms(), Ordering::Relaxed);
                }
                return Some(Sending(self));
            }
            if started.elapsed() > LATE {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Notes that a write to a server elsewhere begins. `None`: too many are in doubt.
    pub(in crate::backend::tier) fn begin_write(&self, offset: u64, bytes: u64) -> Option<usize> {
        self.records.begin_write(self.place, offset, bytes)
    }

    /// It has arrived.
    pub(in crate::backend::tier) fn end_write(&self, line: usize) {
        self.records.end_write(line);
    }

    /// Room where something may still arrive is used again after a while.
    pub(in crate::backend::tier) fn end_old_doubts(&self, grace: Duration) {
        if grace > Duration::ZERO && matches!(self.state(), State::Failed | State::Missing) {
            // One that stands still has not done yet what it has taken: its minute has not begun.
            self.doubts.begin_again();
        }
        self.doubts.end_old(&self.space, &self.records, grace);
    }

    /// What a predecessor wrote to this member and nobody has seen the end of, on a server elsewhere:
    /// its room is not used for a while. When all that lives has been counted.
    pub(in crate::backend::tier) fn adopt_writes(&self) {
        if self.has_objects() {
            // What it had noted to be removed is not known any more.
            add(&self.counters.left_objects, 1);
        }
        for (line, place, offset, bytes) in self.records.writes() {
            if place == self.place {
                self.doubts.add(self.space.begin_doubt(offset, bytes), line);
            }
        }
    }

    /// There is none for a while, or too much of it is in doubt.
    pub(in crate::backend::tier) fn has_no_room_elsewhere(&self) -> bool {
        self.doubts.len() >= MAX_DOUBTS
            || self.now_ms() < self.full_until_ms.load(Ordering::Relaxed)
    }

    /// Has an object removed from its server, when there is time.
    pub(in crate::backend::tier) fn remove_later(&self, key: Key) {
        if !self.removals.push(key) {
            add(&self.counters.left_objects, 1);
        }
    }

    /// Gets objects from a server: calls `each` with the index of each key, and what the arena would
    /// have for it, the checksum in front; `None`: the server does not have it, or has another one.
    ///
    /// # Errors
    /// The errno, which the member has failed by. `each` was called for some of them.
    pub(in crate::backend::tier) fn get(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    ) -> Result<(), i32> {
        let Some(store) = self.objects() else {
            self.fail("it is not there", libc::ENODEV);
            return Err(libc::EIO);
        };
        let started = Instant::now();
        let mut bytes = 0;
        let outcome = store.get(keys, &mut |index, stored| {
            let Some(key) = keys.get(index) else { return };
            let Some(stored) = stored else { return each(index, None) };
            bytes += stored.len() as u64;
            let opened = envelope::open(stored, key);
            if opened.is_none() {
                add(&self.counters.wrong_objects, 1);
            }
            each(index, opened);
        });
        self.counters.latencies.record(started.elapsed());
        add(&self.counters.read_bytes, bytes);
        outcome.inspect_err(|&errno| self.fail("reading failed", errno))
    }

    /// What the client of its server counts.
    pub(in crate::backend::tier) fn remote_statistics(
        &self,
        report: &mut dyn FnMut(&'static str, u64),
    ) {
        if let Some(device) = &*self.device.read() {
            device.backing.statistics(report);
        }
    }

    /// Puts objects on a server.
    ///
    /// # Errors
    /// As for [`Member::get`]: any of them may be there, or arrive later.
    pub(in crate::backend::tier) fn put(&self, objects: &[(Key, &[u8])]) -> Result<(), i32> {
        let Some(store) = self.objects() else {
            self.fail("it is not there", libc::ENODEV);
            return Err(libc::EIO);
        };
        store.put(objects).inspect_err(|&errno| {
            add(&self.counters.write_errors, 1);
            // One that is full works.
            if errno == libc::ENOSPC {
                let until = self.now_ms() + FULL_PAUSE.as_millis() as u64;
                self.full_until_ms.store(until, Ordering::Relaxed);
            } else {
                self.fail("writing failed", errno);
            }
        })?;
        let bytes = objects.iter().map(|(_, stored)| stored.len() as u64).sum();
        add(&self.counters.written_bytes, bytes);
        Ok(())
    }
}
