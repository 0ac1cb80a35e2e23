//! Members that come and go while the volume is served: the worker says so, and the supervisor
//! holds what the next one is to have.
//!
//! A change is answered when no process is left that could serve with the old members: the standby
//! that knows them is ended, and another one started.

use super::link::{Kind, Packet};
use super::{Supervisor, Worker, store};
use crate::members::MAX_DEVICE_MEMBERS;
use log::{info, warn};
use std::fs::File;
use std::sync::atomic::Ordering::Relaxed;

/// What a worker asks for with [`Kind::HoldMember`] and [`Kind::ForgetMember`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Below [`MAX_DEVICE_MEMBERS`].
    pub place: usize,
    /// Which of its requests this is.
    pub number: u32,
}

impl Asked {
    /// Bytes of the payload.
    pub const BYTES: usize = 5;

    /// The payload.
    #[must_use]
    pub fn encode(self) -> [u8; Asked::BYTES] {
        let [a, b, c, d] = self.number.to_le_bytes();
        [self.place as u8, a, b, c, d]
    }

    /// From a payload; `None` if it is none, or of a place that there is not.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Asked> {
        let (place, number) = payload.split_first()?;
        let number = u32::from_le_bytes(*number.first_chunk()?);
        let place = usize::from(*place);
        (place < MAX_DEVICE_MEMBERS).then_some(Asked { place, number })
    }
}

/// What a supervisor answers, with [`Kind::MemberHeld`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// What was asked for.
    pub asked: Asked,
    /// 0: it is done. Else why not, as an errno.
    pub errno: i32,
}

impl Answered {
    /// The payload.
    #[must_use]
    pub fn encode(self) -> [u8; Asked::BYTES + 4] {
        let mut bytes = [0; Asked::BYTES + 4];
        bytes[..Asked::BYTES].copy_from_slice(&self.asked.encode());
        bytes[Asked::BYTES..].copy_from_slice(&self.errno.to_le_bytes());
        bytes
    }

    /// From a payload; `None` if it is none.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Answered> {
        let errno = i32::from_le_bytes(*payload.get(Asked::BYTES..)?.first_chunk()?);
        Some(Answered { asked: Asked::decode(payload)?, errno })
    }
}

/// A change that is not answered yet.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// A standby that knows the old members, killed.
    dismissed: Option<Worker>,
    /// What is to be said when it has ended, and to which process.
    owed: Option<(libc::pid_t, Answered)>,
}

impl Change {
    /// Who has to end before the change is answered.
    pub(super) fn dismissed(&self) -> Option<&Worker> {
        self.dismissed.as_ref()
    }
}

impl Supervisor {
    /// The worker has a new member.
    pub(super) fn hold_member(&mut self, mut packet: Packet) {
        let Some(asked) = Asked::decode(packet.payload()) else { return };
        match packet.file(0) {
            None => self.answer(Answered { asked, errno: libc::EBADF }),
            // The new program was handed the members before: it is not to miss one.
            Some(_) if self.candidate.is_some() => {
                self.answer(Answered { asked, errno: libc::EBUSY });
            }
            Some(file) => {
                info!("member {} is held from now on", asked.place);
                self.change_member(asked, file, true);
            }
        }
    }

    /// A member is none any more.
    pub(super) fn forget_member(&mut self, packet: &Packet) {
        let Some(asked) = Asked::decode(packet.payload()) else { return };
        let filler = match self.parts.holdings.image.try_clone() {
            Ok(filler) => filler,
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                return self.answer(Answered { asked, errno });
            }
        };
        // One whose turn has come already will see for itself that the member is none.
        if self.candidate.is_some() && !self.is_switching() {
            self.upgrade_not_drained(b"a tier was removed meanwhile: try again");
        }
        info!("member {} is not held any more", asked.place);
        self.change_member(asked, filler, false);
    }

    fn change_member(&mut self, asked: Asked, file: File, is_member: bool) {
        // The worker has another descriptor of the old one: this close is not the last.
        self.parts.holdings.members[asked.place] = file;
        let member = is_member.then(|| &self.parts.holdings.members[asked.place]);
        if let Err(error) = store::replace_member(asked.place, member) {
            warn!("the service manager's descriptor store: {error}");
        }
        if let Some(standby) = self.standby.take() {
            standby.process.kill();
            self.parts.control.page().standby_pid.store(0, Relaxed);
            // One that has been dying since the last change has no later say.
            self.change.dismissed.get_or_insert(standby);
            self.standby_at_ns = 0;
        }
        let pid = self.serving.as_ref().map_or(0, |worker| worker.process.pid());
        self.change.owed = Some((pid, Answered { asked, errno: 0 }));
        self.answer_change();
    }

    /// Answers a change as soon as nobody is left who knows the old members.
    pub(super) fn answer_change(&mut self) {
        let lives = |worker: &Worker| worker.process.ended().is_none();
        if self.change.dismissed.as_ref().is_some_and(lives) {
            return;
        }
        self.change.dismissed = None;
        let Some((pid, answered)) = self.change.owed.take() else { return };
        // A successor has not asked.
        if self.serving.as_ref().is_some_and(|worker| worker.process.pid() == pid) {
            self.answer(answered);
        }
    }

    fn answer(&self, answered: Answered) {
        let Some(worker) = &self.serving else { return };
        if let Err(error) = worker.link.say(Kind::MemberHeld, &answered.encode()) {
            warn!("the worker can't be told that a member is held: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_come_back_as_they_were() {
        let asked = Asked { place: 7, number: 0x0102_0304 };
        assert_eq!(Asked::decode(&asked.encode()), Some(asked));
        let answered = Answered { asked, errno: -5 };
        assert_eq!(Answered::decode(&answered.encode()), Some(answered));
        assert_eq!(Asked::decode(&[8, 0, 0, 0, 0]), None, "no such place");
        assert_eq!(Asked::decode(&asked.encode()[..4]), None);
        assert_eq!(Answered::decode(&asked.encode()), None);
        assert_eq!(Answered::decode(&[]), None);
    }
}
