//! Replies that are owed: where the answer of a request waits while its back end works on it.

use super::service::refuse;
use crate::backend::CompletionSink;
use crate::buffer::PageBuffer;
use crate::error::Result;
use crate::sync::{Condvar, Mutex};
use fuser::{ReplyData, ReplyWrite};
use std::io;

/// Replies owed at most; more than the kernel has in flight.
const CAPACITY: usize = 512;

/// A reply that the kernel waits for.
pub(super) enum Owed {
    Data(ReplyData),
    /// And the bytes that were to be written.
    Written(ReplyWrite, u32),
}

struct State {
    owed: Vec<Option<Owed>>,
    free: Vec<u32>,
    waiting: usize,
}

/// The table.
pub(super) struct Replies {
    state: Mutex<State>,
    freed: Condvar,
}

impl Replies {
    pub(super) fn new() -> Replies {
        let owed = (0..CAPACITY).map(|_| None).collect();
        let free = (0..CAPACITY as u32).rev().collect();
        Replies { state: Mutex::new(State { owed, free, waiting: 0 }), freed: Condvar::new() }
    }

    /// Keeps a reply until its token is completed.
    pub(super) fn keep(&self, reply: Owed) -> u64 {
        let mut state = self.state.lock();
        let token = loop {
            match state.free.pop() {
                Some(token) => break token,
                None => {
                    state.waiting += 1;
                    state = self.freed.wait(state);
                    state.waiting -= 1;
                }
            }
        };
        state.owed[token as usize] = Some(reply);
        u64::from(token)
    }
}

impl CompletionSink for Replies {
    fn complete(&self, token: u64, result: Result<PageBuffer>) {
        let mut state = self.state.lock();
        let Some(owed) = state.owed.get_mut(token as usize).and_then(Option::take) else { return };
        state.free.push(token as u32);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.freed.notify_one();
        }
        match owed {
            Owed::Data(reply) => match &result {
                Ok(buffer) => reply.data(buffer),
                Err(error) => reply.error(io::Error::from_raw_os_error(refuse(error)).into()),
            },
            Owed::Written(reply, bytes) => match &result {
                Ok(_) => reply.written(bytes),
                Err(error) => reply.error(io::Error::from_raw_os_error(refuse(error)).into()),
            },
        }
    }
}
