//! The holdings as the worker has them, and how the supervisor comes to hold members that are
//! added while the volume is served.
//!
//! A thread of the administration asks, over the link, and waits. The answer is read by the
//! worker's main thread ([`super::guard`]), which changes the worker's own holdings in the same
//! step: so a supervisor that is started at any moment is handed what the last one had agreed to.

use crate::members::{Keeper, MAX_DEVICE_MEMBERS, Members};
use crate::supervisor::link::{Holdings, Kind, Link};
use crate::supervisor::members::{Answered, Asked};
use crate::sync::{Condvar, Mutex};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a supervisor may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the worker has of what is held.
#[derive(Debug)]
pub(super) struct LinkKeeper {
    state: Mutex<State>,
    /// There is an answer.
    told: Condvar,
    /// One change at a time.
    turn: Mutex<()>,
    patience: Duration,
}

#[derive(Debug)]
struct State {
    holdings: Holdings,
    /// To the supervisor, if there is one.
    link: Option<Link>,
    /// Of the last request.
    number: u32,
    waiting: Option<Waiting>,
    /// The descriptor that was replaced. It is closed by the thread that asked: a block device's
    /// last close may take its time.
    answer: Option<io::Result<File>>,
}

/// A request that has no answer yet.
#[derive(Debug)]
struct Waiting {
    kind: Kind,
    asked: Asked,
    /// What is at the place once it is done.
    file: File,
}

impl State {
    /// The request is done, or not.
    fn settle(&mut self, waiting: Waiting, errno: i32) {
        self.answer = Some(match errno {
            0 => {
                let place = &mut self.holdings.members[waiting.asked.place];
                Ok(std::mem::replace(place, waiting.file))
            }
            errno => Err(io::Error::from_raw_os_error(errno)),
        });
    }

    /// Without a supervisor nobody else has to forget; but nobody is there to hold anything.
    fn settle_alone(&mut self, waiting: Waiting) {
        let errno = if waiting.kind == Kind::ForgetMember { 0 } else { libc::ENOTCONN };
        self.settle(waiting, errno);
    }
}

impl LinkKeeper {
    /// Of a worker whose supervisor is behind `link`.
    pub(super) fn new(holdings: Holdings, link: Link) -> LinkKeeper {
        let link = Some(link);
        let state = State { holdings, link, number: 0, waiting: None, answer: None };
        LinkKeeper {
            state: Mutex::new(state),
            told: Condvar::new(),
            turn: Mutex::new(()),
            patience: PATIENCE,
        }
    }

    /// The members that are held now, for the back end of the volume of `image`.
    ///
    /// # Errors
    /// What fstat(2) and fcntl(2) answer.
    pub(super) fn members(self: &Arc<Self>, image: &File) -> io::Result<Members> {
        let state = self.state.lock();
        let keeper: Arc<dyn Keeper> = Arc::<LinkKeeper>::clone(self);
        Members::of_places(image, &state.holdings.members, keeper)
    }

    /// The supervisor has answered a request, with this payload.
    pub(super) fn answered(&self, payload: &[u8]) {
        let Some(Answered { asked, errno }) = Answered::decode(payload) else { return };
        let mut state = self.state.lock();
        // Whoever has waited too long has gone, and has said so.
        if let Some(waiting) = state.waiting.take_if(|waiting| waiting.asked == asked) {
            state.settle(waiting, errno);
            self.told.notify_all();
        }
    }

    /// There is no supervisor any more.
    pub(super) fn bereft(&self) {
        let mut state = self.state.lock();
        state.link = None;
        if let Some(waiting) = state.waiting.take() {
            state.settle_alone(waiting);
            self.told.notify_all();
        }
    }

    /// Has `start` hand the holdings over to a new supervisor. None of them changes meanwhile.
    ///
    /// # Errors
    /// What `start` answers.
    pub(super) fn hand_over<T>(
        &self,
        start: impl FnOnce(&Holdings) -> io::Result<(T, Link)>,
    ) -> io::Result<(T, Link)> {
        let mut state = self.state.lock();
        let (started, link) = start(&state.holdings)?;
        state.link = Some(link.try_clone()?);
        Ok((started, link))
    }

    /// Has the supervisor do what `kind` says, and waits for that.
    fn ask(&self, kind: Kind, place: usize, file: File) -> io::Result<()> {
        if place >= MAX_DEVICE_MEMBERS {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let _turn = self.turn.lock();
        let mut state = self.state.lock();
        state.number = state.number.wrapping_add(1);
        let asked = Asked { place, number: state.number };
        let said = match &state.link {
            None => Err(io::Error::from_raw_os_error(libc::EPIPE)),
            Some(link) if kind == Kind::HoldMember => {
                link.say_with_file(kind, &asked.encode(), &file)
            }
            Some(link) => link.say(kind, &asked.encode()),
        };
        let waiting = Waiting { kind, asked, file };
        state.answer = None;
        match said {
            Ok(()) => state.waiting = Some(waiting),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => state.settle_alone(waiting),
            Err(error) => return Err(error),
        }
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(answer) = state.answer.take() {
                drop(state);
                return answer.map(drop);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.told.wait_timeout(state, left);
        }
        let waiting = state.waiting.take();
        if let (Some(link), Kind::HoldMember) = (&state.link, kind) {
            // Should it come to it yet, it is to have no effect.
            call_off(link, place);
        }
        if let Some(waiting) = waiting.filter(|_| kind == Kind::ForgetMember) {
            // The next supervisor is not to have it, whatever this one does.
            state.settle(waiting, 0);
        }
        let released = state.answer.take();
        drop(state);
        drop(released);
        Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
    }
}

/// Asks for a member to be forgotten, and for no answer: no request has the number 0.
fn call_off(link: &Link, place: usize) {
    let payload = Asked { place, number: 0 }.encode();
    if let Err(error) = link.say(Kind::ForgetMember, &payload) {
        log::warn!("a member that was not held in time can't be called off: {error}");
    }
}

impl Keeper for LinkKeeper {
    fn hold(&self, place: usize, file: &File) -> io::Result<()> {
        self.ask(Kind::HoldMember, place, file.try_clone()?)
    }

    fn forget(&self, place: usize) -> io::Result<()> {
        let filler = self.state.lock().holdings.image.try_clone()?;
        self.ask(Kind::ForgetMember, place, filler)
    }
}

#[cfg(test)]
mod tests;
