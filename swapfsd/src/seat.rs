//! At most one process serves a volume, and at most one watches over it, whoever thinks what of
//! whom after several deaths at once: each role is a lock on one byte of the control region, which
//! the kernel gives free when its holder ends.

use crate::sys::device;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

/// How often a role that somebody has is asked for again.
const STEP: Duration = Duration::from_millis(1);

/// What only one process may do at a time. The number is the byte that is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The worker that answers the kernel.
    Serve = 0,
    /// The supervisor.
    Watch = 1,
}

/// The control region, opened by this process for itself: locks are tied to it.
#[derive(Debug)]
pub struct Seat(File);

impl Seat {
    /// Opens the region anew. Takes nothing yet.
    ///
    /// # Errors
    /// What open(2) answers.
    pub fn open(control: &File) -> io::Result<Seat> {
        let path = format!("/proc/self/fd/{}", control.as_raw_fd());
        File::options().read(true).write(true).open(path).map(Seat)
    }

    /// Takes the role, until this process ends or the seat is dropped. False: somebody else has
    /// had it for all of `patience`.
    ///
    /// # Errors
    /// What fcntl(2) answers.
    pub fn take(&self, role: Role, patience: Duration) -> io::Result<bool> {
        let started = Instant::now();
        loop {
            if device::try_lock_open_file(&self.0, role as u8)? {
                return Ok(true);
            }
            if started.elapsed() >= patience {
                return Ok(false);
            }
            thread::sleep(STEP);
        }
    }

    /// Gives a role back.
    ///
    /// # Errors
    /// What fcntl(2) answers.
    pub fn give_back(&self, role: Role) -> io::Result<()> {
        device::unlock_open_file(&self.0, role as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_has_one_holder_and_comes_free_with_it() {
        let file = tempfile::tempfile().unwrap();
        let seats = [(); 2].map(|()| Seat::open(&file).unwrap());
        assert!(seats[0].take(Role::Serve, Duration::ZERO).unwrap());
        assert!(seats[0].take(Role::Serve, Duration::ZERO).unwrap(), "it is its own");
        assert!(!seats[1].take(Role::Serve, Duration::from_millis(5)).unwrap());
        assert!(seats[1].take(Role::Watch, Duration::ZERO).unwrap(), "roles are independent");
        let [first, second] = seats;
        first.give_back(Role::Serve).unwrap();
        assert!(second.take(Role::Serve, Duration::ZERO).unwrap());
        second.give_back(Role::Serve).unwrap();
        assert!(first.take(Role::Serve, Duration::ZERO).unwrap());
        drop(first);
        assert!(second.take(Role::Serve, Duration::ZERO).unwrap());
    }
}
