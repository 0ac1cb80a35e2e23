//! Room on a server where something may still arrive: a write that was not answered in time, or whose
//! writer has died. Nothing is put there for a while, and what is there is nobody's.
//!
//! A file or device in this machine needs none of that: a process that has died has no writes on
//! their way once its files are closed ([`crate::backend::device::BlockDevice::lock`]). A server may
//! have taken a request from a connection that is no more, and do it later.

use super::record::{MAX_WRITES, Records};
use super::space::{Doubt, Space};
use crate::sync::Mutex;
use std::time::{Duration, Instant};

/// No server that answers keeps a request of a closed connection longer. What arrives later still
/// would cost the page that is there by then: its checksum is wrong, unless both are of the same slot
/// ([`super::member::Member::lies_of`]).
pub(super) const GRACE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
struct Noted {
    doubt: Doubt,
    /// The line in [`Records`].
    line: usize,
    since: Instant,
}

/// The doubts about one member.
#[derive(Debug)]
pub(super) struct Doubts(Mutex<Vec<Noted>>);

impl Doubts {
    pub(super) fn new() -> Doubts {
        Doubts(Mutex::new(Vec::with_capacity(MAX_WRITES)))
    }

    /// Notes one, which has that line in the records.
    pub(super) fn add(&self, doubt: Doubt, line: usize) {
        let mut noted = self.0.lock();
        // As many as there are lines.
        if noted.len() < MAX_WRITES {
            noted.push(Noted { doubt, line, since: Instant::now() });
        }
    }

    /// From now on their time runs.
    pub(super) fn begin_again(&self) {
        self.0.lock().iter_mut().for_each(|noted| noted.since = Instant::now());
    }

    /// Ends those that are older than `grace`.
    pub(super) fn end_old(&self, space: &Space, records: &Records, grace: Duration) {
        self.0.lock().retain(|noted| {
            let stays = noted.since.elapsed() < grace;
            if !stays {
                space.end_doubt(noted.doubt);
                records.end_write(noted.line);
            }
            stays
        });
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}
