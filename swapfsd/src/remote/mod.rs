//! Servers elsewhere that hold pages: Redis or Valkey as a store of objects ([`redis`]), and any NBD
//! server as a block device ([`nbd`]).
//!
//! Nothing here knows of tiers or tables: a back end asks for objects by key, or for ranges of
//! bytes, and gets them, or an errno before its deadline has passed. All memory is taken at the
//! start, or comes from a pool of that size; connections are made by threads of their own, so that
//! a request never waits for a name server or a handshake beyond its deadline.

pub mod nbd;
pub mod redis;
#[cfg(test)]
pub(crate) mod testing;

use std::cell::Cell;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Names an object: never two by the same key in one run of a volume, so that whatever arrives late
/// or twice, or is read from a replica that missed something, can't be taken for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The slot of the volume whose page it is.
    pub slot: u64,
    /// Counts all objects that the volume ever put on this server, from 0.
    pub number: u64,
}

/// What keeps objects by key on servers elsewhere. Objects have some kilobytes; calls have some
/// hundreds at a time at most. All calls may be made by many threads at once, and end before the
/// deadline that the store was made with has passed, whatever the servers do.
///
/// Errors are the system's numbers: `ETIMEDOUT`, `ECONNREFUSED`, `ENOSPC` where the server has no
/// room, `EPROTO` where it answers what makes no sense, `EACCES` where it does not let us in.
pub trait ObjectStore: Debug + Send + Sync {
    /// Stores all objects; `Ok` once each has been acknowledged by the server, and by as many
    /// replicas as were asked for.
    ///
    /// # Errors
    /// Any number of them may be there or not, or arrive later.
    fn put(&self, objects: &[(Key, &[u8])]) -> Result<(), i32>;

    /// Calls `each` with the index of each key and what is stored there, in any order: `None` if
    /// there is nothing. What is stored is as it came from the server: whoever asks checks it.
    ///
    /// # Errors
    /// `each` may have been called for some, but for none twice.
    fn get(&self, keys: &[Key], each: &mut dyn FnMut(usize, Option<&[u8]>)) -> Result<(), i32>;

    /// Forgets objects; those that are not there are none the less gone.
    ///
    /// # Errors
    /// Some may be there still: `swapfs remote gc` finds them.
    fn remove(&self, keys: &[Key]) -> Result<(), i32>;

    /// Looks whether the servers answer, and can store.
    ///
    /// # Errors
    /// Why not.
    fn check(&self) -> Result<(), i32>;

    /// Removes what this run of the volume has there, and answers how many objects. `None`: the run
    /// ends, so all of them go, and the mark that it is in use, which is never written again.
    /// `Some(number)`: those whose keys have a smaller number, so that what is put meanwhile stays.
    /// May take as long as it needs, but each step keeps to the deadline.
    ///
    /// # Errors
    /// What is left is found by `swapfs remote gc`.
    fn clear(&self, below: Option<u64>) -> Result<u64, i32>;

    /// Reports numbers of its own, by name with the unit last.
    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64));
}

thread_local! {
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Has whatever `work` asks of a server end by `end`, if its own deadline is not earlier.
pub fn until<T>(end: Instant, work: impl FnOnce() -> T) -> T {
    let before = UNTIL.get();
    UNTIL.set(Some(before.map_or(end, |before| before.min(end))));
    let outcome = work();
    UNTIL.set(before);
    outcome
}

/// When a request has to end that begins now on this thread, and may take `at_most`.
#[must_use]
pub fn end_of(at_most: Duration) -> Instant {
    let own = Instant::now() + at_most;
    UNTIL.get().map_or(own, |end| end.min(own))
}
