//! What supervisor and worker say to each other: small packets, some with descriptors.

use crate::held::BACKEND_REGIONS;
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
}

/// Names of the holdings in the order in which they are sent, for service managers.
pub const HOLDING_NAMES: [&str; 4 + BACKEND_REGIONS] =
    ["fuse", "image", "control", "region0", "region1", "region2", "region3", "entries"];

impl Holdings {
    /// All descriptors, in the order of [`HOLDING_NAMES`].
    #[must_use]
    pub fn descriptors(&self) -> [RawFd; HOLDING_NAMES.len()] {
        let [one, two, three, four] = &self.regions;
        let files = [&self.fuse, &self.image, &self.control, one, two, three, four, &self.entries];
        files.map(AsRawFd::as_raw_fd)
    }

    /// From files in that order.
    pub fn from_files(mut file: impl FnMut(usize) -> Option<File>) -> Option<Holdings> {
        Some(Holdings {
            fuse: file(0)?,
            image: file(1)?,
            control: file(2)?,
            regions: [file(3)?, file(4)?, file(5)?, file(6)?],
            entries: file(7)?,
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
