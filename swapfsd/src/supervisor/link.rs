//! What supervisor and worker say to each other: small packets, some with descriptors.

use crate::held::BACKEND_REGIONS;
use crate::members::MAX_DEVICE_MEMBERS;
use crate::sys::passing::{self, Received};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Bytes of a packet at most.
pub const PACKET_BYTES: usize = 1024;

/// What outlives every worker.
#[derive(Debug)]
pub struct Holdings {
    /// The connection to the kernel.
    pub fuse: File,
    /// The image, with the lock on it.
    pub image: File,
    /// The page that both sides know, see [`crate::control`].
    pub control: File,
    /// The back end's memory.
    pub regions: [File; BACKEND_REGIONS],
    /// The transport's memory, see [`crate::fuse::uring`].
    pub entries: File,
    /// A tier volume's member images by their places, with the locks on them. A place without a
    /// member has another descriptor of the volume's own image: so a packet always has as many
    /// descriptors. See [`crate::members`].
    pub members: [File; MAX_DEVICE_MEMBERS],
}

/// Where the members begin among the holdings.
pub const FIRST_MEMBER: usize = 4 + BACKEND_REGIONS;

/// Names of the holdings in the order in which they are sent, for service managers.
pub const HOLDING_NAMES: [&str; FIRST_MEMBER + MAX_DEVICE_MEMBERS] = [
    "fuse", "image", "control", "region0", "region1", "region2", "region3", "entries", "member0",
    "member1", "member2", "member3", "member4", "member5", "member6", "member7",
];

impl Holdings {
    /// All descriptors, in the order of [`HOLDING_NAMES`].
    #[must_use]
    pub fn descriptors(&self) -> [RawFd; HOLDING_NAMES.len()] {
        let [one, two, three, four] = &self.regions;
        let files = [&self.fuse, &self.image, &self.control, one, two, three, four, &self.entries];
        let mut all = [-1; HOLDING_NAMES.len()];
        for (place, file) in all.iter_mut().zip(files.into_iter().chain(&self.members)) {
            *place = file.as_raw_fd();
        }
        all
    }

    /// From files in that order.
    pub fn from_files(mut file: impl FnMut(usize) -> Option<File>) -> Option<Holdings> {
        Some(Holdings {
            fuse: file(0)?,
            image: file(1)?,
            control: file(2)?,
            regions: [file(3)?, file(4)?, file(5)?, file(6)?],
            entries: file(7)?,
            members: {
                let mut member = |place| file(FIRST_MEMBER + place);
                [
                    member(0)?,
                    member(1)?,
                    member(2)?,
                    member(3)?,
                    member(4)?,
                    member(5)?,
                    member(6)?,
                    member(7)?,
                ]
            },
        })
    }
}

/// What a packet says. The number is its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To a worker: serve as the first one. With the holdings.
    ServeFirst = 1,
    /// To a worker: make everything ready and wait. With the holdings.
    StandBy = 2,
    /// To a standby: the one that served has ended; serve.
    TakeOver = 3,
    /// From a standby: ready to take over. With its [`crate::control::HANDOVER_VERSION`].
    Ready = 4,
    /// From a worker: it serves.
    Serving = 5,
    /// From a worker: it can't, or ends with an error. With a text.
    Failed = 6,
    /// From a worker: the volume was unmounted, and all is well.
    Ended = 7,
    /// From a worker without a supervisor to a new one. With the holdings.
    Adopt = 8,
    /// From a supervisor to its successor in the same process. With the holdings, its end of the
    /// worker's link, and the one who asked for the upgrade; the worker's process id.
    Resume = 9,
    /// To a worker whose transport needs it: hold all requests for another one.
    Drain = 10,
    /// From a worker: all are held; it may be killed, and another one goes on with them.
    Drained = 11,
    /// From a worker: that did not work; it serves on. With a text.
    NotDrained = 12,
    /// To a worker that has drained: nobody takes over; serve on.
    GoOn = 13,
    /// From the first worker: the kernel's INIT is answered, requests may be from now on.
    Connected = 14,
    /// From a worker: hold this member too. With its place, the number of the request
    /// ([`super::members::Asked`]), and its descriptor.
    HoldMember = 15,
    /// From a worker: the member at this place is no member any more. With the same payload.
    ForgetMember = 16,
    /// To a worker: its request has been done, or why not ([`super::members::Answered`]).
    MemberHeld = 17,
}

impl Kind {
    fn from_number(number: u8) -> Option<Kind> {
        Some(match number {
            1 => Kind::ServeFirst,
            2 => Kind::StandBy,
            3 => Kind::TakeOver,
            4 => Kind::Ready,
            5 => Kind::Serving,
            6 => Kind::Failed,
            7 => Kind::Ended,
            8 => Kind::Adopt,
            9 => Kind::Resume,
            10 => Kind::Drain,
            11 => Kind::Drained,
            12 => Kind::NotDrained,
            13 => Kind::GoOn,
            14 => Kind::Connected,
            15 => Kind::HoldMember,
            16 => Kind::ForgetMember,
            17 => Kind::MemberHeld,
            _ => return None,
        })
    }
}

/// One end of the connection.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// A packet that came.
#[derive(Debug)]
pub struct Packet {
    bytes: [u8; PACKET_BYTES],
    received: Received,
}

impl Packet {
    /// What it says; `None` for one that this program does not know.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_number(self.bytes[0])
    }

    /// What stands behind the kind.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[1..self.received.len.max(1)]
    }

    /// The holdings that came with it.
    pub fn holdings(&mut self) -> Option<Holdings> {
        Holdings::from_files(|index| self.received.take_file(index))
    }

    /// The `index`-th descriptor of a packet without holdings.
    pub fn file(&mut self, index: usize) -> Option<File> {
        self.received.take_file(index)
    }

    /// The `index`-th descriptor behind the holdings.
    pub fn further(&mut self, index: usize) -> Option<OwnedFd> {
        self.received.take_file(HOLDING_NAMES.len() + index).map(OwnedFd::from)
    }
}

impl Link {
    /// Two ends.
    ///
    /// # Errors
    /// What socketpair(2) answers.
    pub fn pair() -> io::Result<(Link, Link)> {
        let (one, two) = passing::pair()?;
        Ok((Link(one), Link(two)))
    }

    /// The end that this process was started with.
    #[must_use]
    pub fn from_descriptor(descriptor: OwnedFd) -> Link {
        Link(descriptor)
    }

    /// The process that made the connection; 0 if nobody knows.
    #[must_use]
    pub fn peer(&self) -> i32 {
        passing::peer(self.0.as_fd())
    }

    /// Says something. Never waits: the other side reads, or is gone.
    ///
    /// # Errors
    /// What sendmsg(2) answers.
    pub fn say(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        self.say_with(kind, payload, &[])
    }

    /// Says something and hands one file over.
    ///
    /// # Errors
    /// What sendmsg(2) answers.
    pub fn say_with_file(&self, kind: Kind, payload: &[u8], file: &File) -> io::Result<()> {
        self.say_with(kind, payload, &[file.as_raw_fd()])
    }

    /// Another descriptor of this end.
    ///
    /// # Errors
    /// What fcntl(2) answers.
    pub fn try_clone(&self) -> io::Result<Link> {
        self.0.try_clone().map(Link)
    }

    /// Says something and hands the holdings over.
    ///
    /// # Errors
    /// What sendmsg(2) answers.
    pub fn hand_over(&self, kind: Kind, holdings: &Holdings) -> io::Result<()> {
        self.say_with(kind, &[], &holdings.descriptors())
    }

    /// As [`Link::hand_over`], with further descriptors and a payload.
    ///
    /// # Errors
    /// What sendmsg(2) answers.
    pub fn hand_over_with(
        &self,
        kind: Kind,
        payload: &[u8],
        holdings: &Holdings,
        further: [Option<RawFd>; 2],
    ) -> io::Result<()> {
        let mut all = [-1; HOLDING_NAMES.len() + 2];
        all[..HOLDING_NAMES.len()].copy_from_slice(&holdings.descriptors());
        let mut len = HOLDING_NAMES.len();
        for descriptor in further.into_iter().flatten() {
            all[len] = descriptor;
            len += 1;
        }
        self.say_with(kind, payload, &all[..len])
    }

    fn say_with(&self, kind: Kind, payload: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
        let mut bytes = [0; PACKET_BYTES];
        let len = payload.len().min(PACKET_BYTES - 1);
        bytes[0] = kind as u8;
        bytes[1..=len].copy_from_slice(&payload[..len]);
        passing::send(self.0.as_fd(), &bytes[..=len], descriptors)
    }

    /// Waits for the next packet. `None`: the other side is gone.
    ///
    /// # Errors
    /// What recvmsg(2) answers.
    pub fn next(&self) -> io::Result<Option<Packet>> {
        let mut bytes = [0; PACKET_BYTES];
        let reset = |error: &io::Error| error.raw_os_error() == Some(libc::ECONNRESET);
        let mut received = passing::receive(self.0.as_fd(), &mut bytes);
        if received.as_ref().is_err_and(reset) {
            // The other side ended with packets of ours unread. That is said first, once: its own
            // last words may be behind it.
            received = passing::receive(self.0.as_fd(), &mut bytes);
        }
        let received = match received {
            Err(error) if reset(&error) => return Ok(None),
            received => received?,
        };
        Ok((received.len > 0).then_some(Packet { bytes, received }))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_and_holdings_arrive() {
        let (one, two) = Link::pair().unwrap();
        let file = |_| Some(tempfile::tempfile().unwrap());
        one.hand_over(Kind::StandBy, &Holdings::from_files(file).unwrap()).unwrap();
        one.say(Kind::Failed, b"why").unwrap();
        let mut packet = two.next().unwrap().unwrap();
        assert_eq!(packet.kind(), Some(Kind::StandBy));
        assert!(packet.holdings().is_some());
        assert!(packet.holdings().is_none(), "taken");
        let more = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let further = more.each_ref().map(|file| Some(file.as_raw_fd()));
        let holdings = Holdings::from_files(file).unwrap();
        one.hand_over_with(Kind::Resume, b"1", &holdings, further).unwrap();
        one.say_with_file(Kind::HoldMember, b"2", &more[0]).unwrap();
        let words = two.next().unwrap().unwrap();
        assert_eq!(words.payload(), b"why");
        let mut packet = two.next().unwrap().unwrap();
        assert!(packet.holdings().is_some_and(|held| held.members.len() == MAX_DEVICE_MEMBERS));
        assert!(packet.further(0).is_some() && packet.further(1).is_some());
        assert!(packet.further(2).is_none());
        let mut packet = two.next().unwrap().unwrap();
        assert!(packet.file(0).is_some() && packet.file(1).is_none());
        one.say(Kind::Failed, b"why").unwrap();
        let packet = two.next().unwrap().unwrap();
        assert_eq!((packet.kind(), packet.payload()), (Some(Kind::Failed), &b"why"[..]));
        drop(one);
        assert!(two.next().unwrap().is_none());
    }

    #[test]
    fn last_words_arrive_though_ours_were_not_read() {
        let (one, two) = Link::pair().unwrap();
        two.say(Kind::TakeOver, &[]).unwrap();
        one.say(Kind::Failed, b"why").unwrap();
        drop(one);
        assert_eq!(two.next().unwrap().unwrap().payload(), b"why");
        assert!(two.next().unwrap().is_none());
    }
}
