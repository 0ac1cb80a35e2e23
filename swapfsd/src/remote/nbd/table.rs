//! The requests in flight on a connection, and taking their replies. Everything here happens under
//! the lock of its [`super::link::Link`].

use super::cover::Cover;
use super::protocol::{self, Content, HEAD_BYTES_AT_MOST, Head, Kind};
use super::socket::Socket;
use crate::sys::stream;
use std::os::fd::AsFd;

/// Requests in flight on one connection at most.
pub(super) const PLACES: usize = 256;
/// What is received at one time and then copied: some dozens of replies of a page.
const STAGING_BYTES: usize = 64 << 10;
/// What is received at one time into a request's own buffer, with the lock held.
const DIRECT_BYTES: usize = 256 << 10;

/// Where a read's data go: the buffer of a thread that waits in a call.
#[derive(Debug)]
pub(super) struct Target {
    start: *mut u8,
    length: usize,
}

// SAFETY: it stands for an exclusive borrow of plain bytes, which may be used by any thread.
unsafe impl Send for Target {}

impl Target {
    /// Stands for `buffer`.
    ///
    /// # Safety
    /// It must be dropped before the borrow of `buffer` ends.
    pub(super) unsafe fn new(buffer: &mut [u8]) -> Target {
        Target { start: buffer.as_mut_ptr(), length: buffer.len() }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the bytes of a slice that is borrowed exclusively as long as `self` lives, by
        // the promise to `new`; and `self` is borrowed exclusively now.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

/// How a request has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The server has answered.
    Answered(Result<(), i32>),
    /// The server is about to close: it has not done it and won't do any more.
    Refused,
    /// The connection broke: it may have been done, or may be done yet.
    Lost(i32),
    /// The connection is useless, and it makes no sense to try it again.
    Failed(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Free,
    InFlight,
    Ended(Ended),
}

/// A request's place in the table.
#[derive(Debug)]
struct Place {
    stage: Stage,
    cookie: u64,
    kind: Kind,
    offset: u64,
    length: u32,
    target: Option<Target>,
    cover: Cover,
    /// What an error chunk has said; 0: none came.
    errno: i32,
}

/// What the bytes that come next are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Head,
    Data { place: usize, at: usize, left: usize, last: bool },
    Text { place: usize, left: usize, last: bool },
}

/// A set of places.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Places([u64; PLACES / 64]);

impl Places {
    pub(super) fn insert(&mut self, place: usize) {
        self.0[place / 64] |= 1 << (place % 64);
    }

    pub(super) fn remove(&mut self, place: usize) {
        self.0[place / 64] &= !(1 << (place % 64));
    }

    pub(super) fn contains(&self, place: usize) -> bool {
        self.0[place / 64] & (1 << (place % 64)) != 0
    }

    /// Takes one out.
    pub(super) fn pop(&mut self) -> Option<usize> {
        let (word, bits) = self.0.iter_mut().enumerate().find(|(_, bits)| **bits != 0)?;
        let bit = bits.trailing_zeros() as usize;
        *bits &= *bits - 1;
        Some(word * 64 + bit)
    }
}

/// All requests in flight on a connection.
#[derive(Debug)]
pub(super) struct Table {
    places: Box<[Place]>,
    free: Vec<usize>,
    count: u64,
    staging: Box<[u8]>,
    start: usize,
    end: usize,
    expected: Expected,
    /// Threads that sleep until their request has ended, or they are to read.
    pub(super) sleeping: Places,
    /// Those of them that are to be woken once the lock has been given up.
    pub(super) to_wake: Places,
    /// Replies since the connection was made.
    pub(super) replies: u64,
}

impl Table {
    pub(super) fn new() -> Table {
        let place = || Place {
            stage: Stage::Free,
            cookie: 0,
            kind: Kind::Flush,
            offset: 0,
            length: 0,
            target: None,
            cover: Cover::default(),
            errno: 0,
        };
        Table {
            places: (0..PLACES).map(|_| place()).collect(),
            free: (0..PLACES).rev().collect(),
            count: 0,
            // Not zero, so that its pages are there from the start.
            staging: vec![1; STAGING_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            expected: Expected::Head,
            sleeping: Places::default(),
            to_wake: Places::default(),
            replies: 0,
        }
    }

    /// A request is about to be sent: its place and its cookie, if there is a place free.
    pub(super) fn enter(
        &mut self,
        kind: Kind,
        offset: u64,
        length: u32,
        target: &mut Option<Target>,
    ) -> Option<(usize, u64)> {
        let index = self.free.pop()?;
        self.count += 1;
        let place = &mut self.places[index];
        place.stage = Stage::InFlight;
        // No two requests have the same, so that a reply that comes twice is noticed.
        place.cookie = self.count << 8 | index as u64;
        (place.kind, place.offset, place.length) = (kind, offset, length);
        place.target = target.take();
        place.cover.clear();
        place.errno = 0;
        Some((index, place.cookie))
    }

    /// How the request has ended, if it has.
    pub(super) fn ended(&self, place: usize) -> Option<Ended> {
        match self.places[place].stage {
            Stage::Ended(ended) => Some(ended),
            Stage::InFlight | Stage::Free => None,
        }
    }

    /// The request leaves its place; from now on nothing is written to its buffer.
    pub(super) fn leave(&mut self, place: usize) {
        self.places[place].stage = Stage::Free;
        self.places[place].target = None;
        self.sleeping.remove(place);
        self.free.push(place);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == PLACES
    }

    /// A new connection: nothing of the last one counts.
    pub(super) fn begin(&mut self) {
        (self.start, self.end, self.expected) = (0, 0, Expected::Head);
        self.replies = 0;
    }

    /// The connection is gone: all requests in flight end so.
    pub(super) fn end_all(&mut self, ended: Ended) {
        for place in 0..PLACES {
            if self.places[place].stage == Stage::InFlight {
                self.end_one(place, ended);
            }
        }
    }

    fn end_one(&mut self, place: usize, ended: Ended) {
        self.places[place].stage = Stage::Ended(ended);
        self.places[place].target = None;
        self.wake(place);
    }

    fn wake(&mut self, place: usize) {
        if self.sleeping.contains(place) {
            self.sleeping.remove(place);
            self.to_wake.insert(place);
        }
    }

    /// Nobody reads: wakes one that sleeps, to do so.
    pub(super) fn pass_reading_on(&mut self) {
        if let Some(place) = self.sleeping.pop() {
            self.to_wake.insert(place);
        }
    }

    /// Receives once what has come, without waiting, and ends the requests that are answered by
    /// it.
    ///
    /// # Errors
    /// How the connection has become useless.
    pub(super) fn receive(&mut self, socket: &Socket) -> Result<(), Ended> {
        let received = match self.expected {
            Expected::Data { place, at, left, .. } if self.start == self.end => {
                let Some(target) = &mut self.places[place].target else {
                    return Err(Ended::Failed(libc::EPROTO));
                };
                let direct = left.min(DIRECT_BYTES);
                // What comes behind the data is received with it.
                let behind = if direct == left { &mut self.staging[..] } else { &mut [] };
                let buffer = &mut target.bytes()[at..at + direct];
                let received = stream::receive(socket.as_fd(), buffer, behind);
                received.inspect(|&count| {
                    let in_place = count.min(direct);
                    (self.start, self.end) = (0, count - in_place);
                    self.expected = match self.expected {
                        Expected::Data { place, at, left, last } => {
                            let (at, left) = (at + in_place, left - in_place);
                            Expected::Data { place, at, left, last }
                        }
                        other => other,
                    };
                })
            }
            _ => {
                // Only part of a head is ever left here.
                self.staging.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
                let room = &mut self.staging[self.end..];
                let received = stream::receive(socket.as_fd(), room, &mut []);
                received.inspect(|&count| self.end += count)
            }
        };
        match received {
            Ok(0) => Err(Ended::Lost(libc::ECONNRESET)),
            Ok(_) => self.take_replies(socket.structured),
            Err(libc::EAGAIN) => Ok(()),
            Err(errno) => Err(Ended::Lost(errno)),
        }
    }

    fn take_replies(&mut self, structured: bool) -> Result<(), Ended> {
        loop {
            match self.expected {
                Expected::Head => {
                    let bytes = &self.staging[self.start..self.end];
                    let head = protocol::head(bytes, structured).map_err(Ended::Failed)?;
                    let Some((head, used)) = head else {
                        debug_assert!(bytes.len() < HEAD_BYTES_AT_MOST);
                        return Ok(());
                    };
                    self.start += used;
                    self.take_head(head, structured)?;
                }
                Expected::Data { place, at, left, last } => {
                    let count = left.min(self.end - self.start);
                    let Some(target) = &mut self.places[place].target else {
                        return Err(Ended::Failed(libc::EPROTO));
                    };
                    let from = &self.staging[self.start..self.start + count];
                    target.bytes()[at..at + count].copy_from_slice(from);
                    self.start += count;
                    if count < left {
                        let (at, left) = (at + count, left - count);
                        self.expected = Expected::Data { place, at, left, last };
                        return Ok(());
                    }
                    self.end_chunk(place, last)?;
                }
                Expected::Text { place, left, last } => {
                    let count = left.min(self.end - self.start);
                    self.start += count;
                    if count < left {
                        self.expected = Expected::Text { place, left: left - count, last };
                        return Ok(());
                    }
                    self.end_chunk(place, last)?;
                }
            }
        }
    }

    fn take_head(&mut self, head: Head, structured: bool) -> Result<(), Ended> {
        let nonsense = Err(Ended::Failed(libc::EPROTO));
        let index = (head.cookie % PLACES as u64) as usize;
        let place = &mut self.places[index];
        if place.stage != Stage::InFlight || place.cookie != head.cookie {
            return nonsense;
        }
        let is_read = place.kind == Kind::Read;
        let last = head.last;
        match head.content {
            // Where chunks are agreed, a read is answered by them.
            Content::Simple if is_read && structured => nonsense,
            Content::Simple if is_read => {
                place.cover.add(0, place.length).map_err(Ended::Failed)?;
                let left = place.length as usize;
                self.expected = Expected::Data { place: index, at: 0, left, last };
                Ok(())
            }
            Content::Simple | Content::Nothing => self.end_chunk(index, last),
            Content::Error { errno, text_bytes } => {
                place.errno = if place.errno == 0 { errno } else { place.errno };
                self.expected = Expected::Text { place: index, left: text_bytes as usize, last };
                Ok(())
            }
            Content::Data { offset, length } | Content::Hole { offset, length } => {
                let at = offset.checked_sub(place.offset).filter(|_| is_read);
                let Some(at) = at.filter(|&at| {
                    at.checked_add(length.into()).is_some_and(|end| end <= place.length.into())
                }) else {
                    return nonsense;
                };
                place.cover.add(at as u32, length).map_err(Ended::Failed)?;
                let (at, left) = (at as usize, length as usize);
                if let Content::Data { .. } = head.content {
                    self.expected = Expected::Data { place: index, at, left, last };
                    return Ok(());
                }
                let Some(target) = &mut place.target else { return nonsense };
                target.bytes()[at..at + left].fill(0);
                self.end_chunk(index, last)
            }
        }
    }

    fn end_chunk(&mut self, index: usize, last: bool) -> Result<(), Ended> {
        self.expected = Expected::Head;
        if !last {
            return Ok(());
        }
        let place = &self.places[index];
        let ended = match place.errno {
            libc::ESHUTDOWN => Ended::Refused,
            0 if place.kind == Kind::Read && !place.cover.is_whole(place.length) => {
                return Err(Ended::Failed(libc::EPROTO));
            }
            0 => Ended::Answered(Ok(())),
            errno => Ended::Answered(Err(errno)),
        };
        self.replies += 1;
        self.end_one(index, ended);
        Ok(())
    }
}
