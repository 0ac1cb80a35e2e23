//! Processes: who runs this one, waiting for another's end, signals per thread, locked memory.

use super::check;
use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// The effective user is root.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A hold on a process that stays valid (and names no other) when the process ends.
#[derive(Debug)]
pub struct ProcessHandle {
    pidfd: OwnedFd,
}

impl ProcessHandle {
    /// Takes hold of process `pid`.
    ///
    /// # Errors
    /// ESRCH when there is no such process; ENOSYS before Linux 5.3.
    pub fn open(pid: u32) -> io::Result<ProcessHandle> {
        let pid = c_int::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        // SAFETY: the call takes two integers and touches no memory of ours.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let number = check(result as c_int)?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else owns it.
        Ok(ProcessHandle { pidfd: unsafe { OwnedFd::from_raw_fd(number) } })
    }

    /// Waits until the process has ended; `false` when it has not within `limit`.
    ///
    /// # Errors
    /// As poll(2); an interruption by a signal counts as "not ended".
    pub fn wait_for_end(&self, limit: Duration) -> io::Result<bool> {
        wait_readable(self.pidfd.as_raw_fd(), limit)
    }
}

/// Waits until `fd` can be read (or is at its end); `false` when `limit` comes first, or a signal.
///
/// # Errors
/// As poll(2).
pub fn wait_readable(fd: RawFd, limit: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // Round up: a limit under a millisecond must not become a busy loop.
    let limit_ms = c_int::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX);
    // SAFETY: `entry` is one valid entry, and the count says one.
    match check(unsafe { libc::poll(&raw mut entry, 1, limit_ms) }) {
        Ok(ready) => Ok(ready > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// Blocks all signals in the calling thread, so that they are delivered to another.
///
/// # Errors
/// As pthread_sigmask(3), which has no reason to fail.
pub fn block_signals_in_this_thread() -> io::Result<()> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `all` has room for the set, which the call fills.
    check(unsafe { libc::sigfillset(all.as_mut_ptr()) })?;
    // SAFETY: the set was filled above; no old set is asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) } {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// Keeps all memory that the process has now in RAM: code, stacks, heap. What is mapped later is
/// not locked.
///
/// # Errors
/// As mlockall(2): ENOMEM or EPERM without CAP_IPC_LOCK.
pub fn lock_present_memory() -> io::Result<()> {
    // SAFETY: the call changes no content of memory.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_waited_for_until_it_ends() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let handle = ProcessHandle::open(child.id()).unwrap();
        assert!(!handle.wait_for_end(Duration::from_millis(1)).unwrap());
        child.kill().unwrap();
        assert!(handle.wait_for_end(Duration::from_secs(60)).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn there_is_no_process_of_that_number() {
        assert_eq!(ProcessHandle::open(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
