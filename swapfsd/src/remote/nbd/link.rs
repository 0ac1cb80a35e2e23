//! One connection: its requests in flight, and who reads their replies.
//!
//! There is no thread that receives. Of the threads that wait for a reply one reads, and takes the
//! replies of the others on the way, straight into their buffers. When its own has come it wakes
//! another one to go on.
//!
//! One lock guards all of this. A request's buffer is only written to with the lock held, through
//! the request's place in the table; and [`Waiting`] takes the request out of its place before the
//! call that has lent the buffer returns. Nothing under the lock waits for anything.

use super::gate::Gate;
use super::protocol::{Kind, request};
use super::socket::{Sent, Socket};
use super::table::{Ended, Table, Target};
use super::{as_answer, as_trouble};
use crate::sync::{Condvar, Mutex};
use crate::sys::stream::{self, READABLE};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

/// A request, no larger than the server takes.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) kind: Kind,
    pub(super) offset: u64,
    pub(super) length: u32,
    /// What a write sends.
    pub(super) data: &'a [u8],
    /// Where a read's data go.
    pub(super) buffer: Option<&'a mut [u8]>,
}

/// What has come of trying a request on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried {
    /// That is the answer.
    Done(Result<(), i32>),
    /// No answer came, and the server may have done it or be doing it yet.
    Unknown(i32),
    /// The server has not done it and won't.
    NotDone(i32),
    /// Nor here: the server is about to close, and has said so.
    Refused,
}

#[derive(Debug)]
struct State {
    socket: Option<Arc<Socket>>,
    table: Table,
    /// A thread reads.
    reading: bool,
    /// Threads that wait for a place in the table.
    waiting: u32,
}

/// A connection that is there, or is to be made again.
#[derive(Debug)]
pub(super) struct Link {
    state: Mutex<State>,
    /// One for each place in the table.
    sleepers: Box<[Condvar]>,
    left: Condvar,
    /// Requests that are being tried on it.
    load: AtomicU32,
    /// There is a connection; changes under the gate's lock.
    up: AtomicBool,
    /// The last connection has answered at least one request.
    fruitful: AtomicBool,
}

impl Link {
    pub(super) fn new() -> Link {
        let state = State { socket: None, table: Table::new(), reading: false, waiting: 0 };
        Link {
            state: Mutex::new(state),
            sleepers: (0..super::table::PLACES).map(|_| Condvar::new()).collect(),
            left: Condvar::new(),
            load: AtomicU32::new(0),
            up: AtomicBool::new(false),
            fruitful: AtomicBool::new(true),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub(super) fn load(&self) -> u32 {
        self.load.load(Ordering::Relaxed)
    }

    pub(super) fn is_fruitful(&self) -> bool {
        self.fruitful.load(Ordering::Relaxed)
    }

    /// The connection, to look whether it has been closed.
    pub(super) fn socket(&self) -> Option<Arc<Socket>> {
        self.state.lock().socket.clone()
    }

    /// Has a connection from now on. Until [`Link::open`] it is the caller's alone, who may try
    /// requests on it.
    pub(super) fn install(&self, socket: Socket) {
        let mut state = self.state.lock();
        state.table.begin();
        state.socket = Some(Arc::new(socket));
    }

    /// The connection is there for all. Answers whether there is one still.
    pub(super) fn open(&self, gate: &Gate) -> bool {
        let mut state = self.state.lock();
        if state.socket.is_none() {
            return false;
        }
        // What it has answered so far was no use to anybody.
        state.table.replies = 0;
        self.fruitful.store(false, Ordering::Relaxed);
        gate.came(|| self.up.store(true, Ordering::Release));
        true
    }

    /// The other side has closed `socket`: if nobody is there to notice, the connection is ended.
    /// Answers whether it was.
    pub(super) fn close_if_idle(&self, socket: &Arc<Socket>, gate: &Gate) -> bool {
        let mut state = self.state.lock();
        let is_idle = state.table.is_idle() && is_current(&state, socket);
        if is_idle {
            self.break_off(&mut state, Ended::Lost(libc::ECONNRESET), gate);
        }
        is_idle
    }

    /// Takes leave of the server.
    pub(super) fn disconnect(&self, gate: &Gate) {
        let mut state = self.state.lock();
        if let Some(socket) = state.socket.clone() {
            let head = request(Kind::Disconnect, 0, 0, 0);
            let _ = socket.send(&head, &[], Instant::now());
            self.break_off(&mut state, Ended::Lost(libc::ESHUTDOWN), gate);
        }
        self.unlock(state);
    }

    /// Ends the connection, and so all requests in flight on it.
    fn break_off(&self, state: &mut State, ended: Ended, gate: &Gate) {
        let Some(socket) = state.socket.take() else { return };
        stream::shut_down(socket.as_fd());
        self.fruitful.store(state.table.replies > 0, Ordering::Relaxed);
        state.table.end_all(ended);
        if state.waiting > 0 {
            self.left.notify_all();
        }
        // Nobody knows of one that has not been opened.
        if self.is_up() {
            gate.went(ended, || self.up.store(false, Ordering::Release));
        }
    }

    /// Gives the lock up and wakes whom there is something for.
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let mut to_wake = std::mem::take(&mut state.table.to_wake);
        drop(state);
        while let Some(place) = to_wake.pop() {
            self.sleepers[place].notify_one();
        }
    }

    /// Sends a request and waits for its answer, not beyond `deadline`.
    pub(super) fn attempt(
        &self,
        wanted: &mut Request<'_>,
        deadline: Instant,
        gate: &Gate,
    ) -> Tried {
        self.load.fetch_add(1, Ordering::Relaxed);
        let tried = self.attempt_counted(wanted, deadline, gate);
        self.load.fetch_sub(1, Ordering::Relaxed);
        tried
    }

    fn attempt_counted(&self, wanted: &mut Request<'_>, deadline: Instant, gate: &Gate) -> Tried {
        let (kind, offset, length, data) = (wanted.kind, wanted.offset, wanted.length, wanted.data);
        let (waiting, socket, cookie) = match self.enter(wanted, deadline, gate) {
            Ok(entered) => entered,
            Err(errno) => return Tried::NotDone(errno),
        };
        let head = request(kind, cookie, offset, length);
        match socket.send(&head, data, deadline) {
            Sent::Yes => waiting.wait(&socket, deadline),
            Sent::NoTurn => {
                waiting.leave_unsent();
                Tried::NotDone(libc::ETIMEDOUT)
            }
            Sent::Broken { errno, left } => {
                waiting.give_up(&socket, errno);
                let trouble = as_trouble(errno);
                if left { Tried::Unknown(trouble) } else { Tried::NotDone(trouble) }
            }
        }
    }

    /// Takes a place in the table.
    fn enter<'a>(
        &'a self,
        wanted: &'a mut Request<'_>,
        deadline: Instant,
        gate: &'a Gate,
    ) -> Result<(Waiting<'a>, Arc<Socket>, u64), i32> {
        let (kind, offset, length) = (wanted.kind, wanted.offset, wanted.length);
        // SAFETY: `Waiting` borrows the buffer and takes the request out of its place when it is
        // dropped, with the target; if there is no place the target goes at the end of this.
        let mut target = wanted.buffer.as_deref_mut().map(|buffer| unsafe { Target::new(buffer) });
        let mut state = self.state.lock();
        loop {
            let Some(socket) = state.socket.clone() else { return Err(libc::ECONNRESET) };
            if let Some((place, cookie)) = state.table.enter(kind, offset, length, &mut target) {
                let waiting =
                    Waiting { link: self, gate, place, is_over: false, buffer: PhantomData };
                return Ok((waiting, socket, cookie));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(libc::ETIMEDOUT);
            }
            state.waiting += 1;
            state = self.left.wait_timeout(state, left);
            state.waiting -= 1;
        }
    }
}

fn is_current(state: &State, socket: &Arc<Socket>) -> bool {
    state.socket.as_ref().is_some_and(|current| Arc::ptr_eq(current, socket))
}

/// A request that has a place in the table of its connection. However this ends, the place is left
/// and the buffer is not written to any more.
#[derive(Debug)]
struct Waiting<'a> {
    link: &'a Link,
    gate: &'a Gate,
    place: usize,
    is_over: bool,
    buffer: PhantomData<&'a mut [u8]>,
}

impl Waiting<'_> {
    fn wait(mut self, socket: &Arc<Socket>, deadline: Instant) -> Tried {
        let link = self.link;
        let mut state = link.state.lock();
        let ended = loop {
            if let Some(ended) = state.table.ended(self.place) {
                break ended;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Its answer may come yet, and nobody would wait for it.
                self.gate.count_timeout();
                link.break_off(&mut state, Ended::Lost(libc::ETIMEDOUT), self.gate);
            } else if !state.reading {
                state = self.read(state, socket, deadline);
            } else {
                state.table.sleeping.insert(self.place);
                state = link.sleepers[self.place].wait_timeout(state, left);
                state.table.sleeping.remove(self.place);
            }
        };
        self.leave(state);
        match ended {
            Ended::Answered(answer) => Tried::Done(answer.map_err(as_answer)),
            Ended::Failed(errno) => Tried::Done(Err(as_trouble(errno))),
            Ended::Refused => Tried::Refused,
            Ended::Lost(errno) => Tried::Unknown(as_trouble(errno)),
        }
    }

    /// Takes replies until its own has come, or the deadline.
    fn read<'b>(
        &self,
        mut state: MutexGuard<'b, State>,
        socket: &Arc<Socket>,
        deadline: Instant,
    ) -> MutexGuard<'b, State>
    where
        Self: 'b,
    {
        let link = self.link;
        state.reading = true;
        loop {
            // First of all: it has hardly come yet when this begins.
            drop_and_wait(link, state, socket, deadline);
            state = link.state.lock();
            if is_current(&state, socket) {
                match state.table.receive(socket) {
                    Ok(()) => {}
                    Err(ended) => link.break_off(&mut state, ended, self.gate),
                }
            }
            if state.table.ended(self.place).is_some() || Instant::now() >= deadline {
                state.reading = false;
                return state;
            }
        }
    }

    /// The connection has failed while the request was sent.
    fn give_up(mut self, socket: &Arc<Socket>, errno: i32) {
        let mut state = self.link.state.lock();
        if is_current(&state, socket) {
            if errno == libc::ETIMEDOUT {
                self.gate.count_timeout();
            }
            self.link.break_off(&mut state, Ended::Lost(errno), self.gate);
        }
        self.leave(state);
    }

    /// It has never been sent, so that no answer comes.
    fn leave_unsent(mut self) {
        let state = self.link.state.lock();
        self.leave(state);
    }

    fn leave(&mut self, mut state: MutexGuard<'_, State>) {
        self.is_over = true;
        state.table.leave(self.place);
        if state.waiting > 0 {
            self.link.left.notify_one();
        }
        if !state.reading {
            state.table.pass_reading_on();
        }
        self.link.unlock(state);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // Only if something has panicked: its reply may come, and there is no place for it.
        let mut state = self.link.state.lock();
        self.link.break_off(&mut state, Ended::Lost(libc::EIO), self.gate);
        self.leave(state);
    }
}

fn drop_and_wait(
    link: &Link,
    state: MutexGuard<'_, State>,
    socket: &Arc<Socket>,
    deadline: Instant,
) {
    link.unlock(state);
    let left = deadline.saturating_duration_since(Instant::now());
    stream::wait_for(&**socket, READABLE, left);
}
