//! The sending side of a connection. One thread sends at a time; requests without data that come
//! meanwhile are left with it, and go out together.

use super::protocol::REQUEST_BYTES;
use crate::sync::{Condvar, Mutex};
use crate::sys::stream::{self, WRITABLE};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// So many requests can be left with the thread that sends.
const LEFT_AT_MOST: usize = 32;

/// From here on a head is sent by a call of its own, to leave with its data: over TCP the kernel
/// sends a megabyte in one piece up to twice as fast as in two by one call.
const LARGE_BYTES: usize = 64 << 10;

/// What has become of a request that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It has been sent, or is about to be.
    Yes,
    /// Nothing of it, and the connection is as it was: there was no turn before the deadline.
    NoTurn,
    /// The connection can't be used any more. Part of the request or all of it may have left.
    Broken { errno: i32, left: bool },
}

#[derive(Debug)]
struct Outgoing {
    busy: bool,
    waiting: u32,
    /// Not 0: sending has failed.
    failure: i32,
    left: [[u8; REQUEST_BYTES]; LEFT_AT_MOST],
    left_count: usize,
}

/// A connection whose export is open.
#[derive(Debug)]
pub(super) struct Socket {
    descriptor: OwnedFd,
    /// Replies come in chunks.
    pub(super) structured: bool,
    outgoing: Mutex<Outgoing>,
    turn: Condvar,
}

impl Socket {
    pub(super) fn new(descriptor: OwnedFd, structured: bool) -> Socket {
        let outgoing = Outgoing {
            busy: false,
            waiting: 0,
            failure: 0,
            left: [[0; REQUEST_BYTES]; LEFT_AT_MOST],
            left_count: 0,
        };
        Socket { descriptor, structured, outgoing: Mutex::new(outgoing), turn: Condvar::new() }
    }

    /// Sends a request: its head, and a write's data.
    pub(super) fn send(&self, head: &[u8; REQUEST_BYTES], data: &[u8], deadline: Instant) -> Sent {
        let mut outgoing = self.outgoing.lock();
        while outgoing.busy {
            let at = outgoing.left_count;
            if data.is_empty() && at < LEFT_AT_MOST && outgoing.failure == 0 {
                outgoing.left[at] = *head;
                outgoing.left_count += 1;
                return Sent::Yes;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Sent::NoTurn;
            }
            outgoing.waiting += 1;
            outgoing = self.turn.wait_timeout(outgoing, left);
            outgoing.waiting -= 1;
        }
        if outgoing.failure != 0 {
            return Sent::Broken { errno: outgoing.failure, left: false };
        }
        outgoing.busy = true;
        drop(outgoing);
        if let Err((errno, sent_bytes)) = self.write(head, data, deadline) {
            self.fail(errno);
            return Sent::Broken { errno, left: sent_bytes > 0 };
        }
        loop {
            let mut outgoing = self.outgoing.lock();
            let count = std::mem::take(&mut outgoing.left_count);
            if count == 0 {
                outgoing.busy = false;
                let waiting = outgoing.waiting > 0;
                drop(outgoing);
                if waiting {
                    self.turn.notify_all();
                }
                return Sent::Yes;
            }
            let others = outgoing.left;
            drop(outgoing);
            if let Err((errno, _)) = self.write(others[..count].as_flattened(), &[], deadline) {
                self.fail(errno);
                return Sent::Broken { errno, left: true };
            }
        }
    }

    /// Sends both parts entirely; else the errno, and how much has been sent.
    fn write(&self, head: &[u8], data: &[u8], deadline: Instant) -> Result<(), (i32, usize)> {
        let mut sent = 0;
        while sent < head.len() + data.len() {
            let head_left = &head[sent.min(head.len())..];
            let data_left = &data[sent.saturating_sub(head.len())..];
            let outcome = match head_left.is_empty() {
                true => stream::send(self.as_fd(), data_left, &[]),
                false if data.len() >= LARGE_BYTES => {
                    stream::send_with_more_to_come(self.as_fd(), head_left)
                }
                false => stream::send(self.as_fd(), head_left, data_left),
            };
            match outcome {
                Ok(count) => sent += count,
                Err(libc::EAGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err((libc::ETIMEDOUT, sent));
                    }
                    stream::wait_for(self, WRITABLE, left);
                }
                Err(errno) => return Err((errno, sent)),
            }
            // A server that takes a little now and then must not get past the deadline either.
            if sent < head.len() + data.len() && Instant::now() >= deadline {
                return Err((libc::ETIMEDOUT, sent));
            }
        }
        Ok(())
    }

    fn fail(&self, errno: i32) {
        let mut outgoing = self.outgoing.lock();
        outgoing.failure = errno;
        outgoing.busy = false;
        outgoing.left_count = 0;
        drop(outgoing);
        self.turn.notify_all();
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
