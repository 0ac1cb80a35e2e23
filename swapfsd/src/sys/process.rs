//! What the daemon sets of its own process: protection, and going into the background.

use super::check;
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Not in libc yet for every target: `PR_SET_IO_FLUSHER` of linux/prctl.h.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
const PR_GET_IO_FLUSHER: libc::c_int = 58;

/// Major and minor version of the running kernel; 0.0 if it does not say.
#[must_use]
pub fn kernel_version() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Marks the calling task, and all that it starts from now on, as one that memory reclaim may
/// depend on: its own allocations never wait for file system or block I/O.
///
/// # Errors
/// `EPERM` without CAP_SYS_RESOURCE, `EINVAL` on kernels before 5.6; `EIO` if the kernel does
/// not show the mark when it is read back.
pub fn set_io_flusher() -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) })?;
    // SAFETY: no memory is passed.
    let set = check(unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) })?;
    if set == 1 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
}

/// Makes the calling thread, and all that it starts from now on, a real-time task (SCHED_RR) of
/// the lowest real-time priority. Such a task's allocations may go down to half of the minimum
/// watermark (`ALLOC_MIN_RESERVE` in mm/page_alloc.c), where others wait for reclaim.
///
/// # Errors
/// `EPERM` without CAP_SYS_NICE, or in a control group without real-time run time.
pub fn set_realtime() -> io::Result<()> {
    set_realtime_of(0)
}

/// As [`set_realtime`], for a thread by its number.
///
/// # Errors
/// As there, and `ESRCH`.
pub fn set_realtime_of(tid: libc::pid_t) -> io::Result<()> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = 1;
    // SAFETY: the parameters are read during the call only.
    check(unsafe { libc::sched_setscheduler(tid, libc::SCHED_RR, &raw const parameters) })?;
    Ok(())
}

/// Makes the calling thread an ordinary task (SCHED_OTHER), and those that it starts from now on.
///
/// # Errors
/// What sched_setscheduler(2) answers.
pub fn set_ordinary() -> io::Result<()> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the parameters are read during the call only.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameters) })
        .map(drop)
}

/// This process's threads are real-time tasks once it serves.
static REALTIME: AtomicBool = AtomicBool::new(false);
/// Threads that are ordinary tasks in any case; 0: a free place.
static ORDINARY: [AtomicI32; 1024] = [const { AtomicI32::new(0) }; 1024];

/// Says that this process's threads are real-time tasks once it serves, though they may not be now.
pub fn plan_realtime() {
    REALTIME.store(true, Ordering::Relaxed);
}

/// Are this process's threads real-time tasks, now or once it serves?
#[must_use]
pub fn plans_realtime() -> bool {
    REALTIME.load(Ordering::Relaxed)
}

/// Makes the calling thread an ordinary task for good, whatever [`all_realtime`] does to others.
pub fn stay_ordinary() {
    // SAFETY: the call has no arguments and can't fail.
    let own = unsafe { libc::gettid() };
    let free = |place: &&AtomicI32| {
        place.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    };
    let _ = ORDINARY.iter().find(free);
    // It could only fail for want of a right that the thread has had.
    drop(set_ordinary());
}

/// Makes all threads of this process real-time tasks, but those that [`stay_ordinary`].
///
/// # Errors
/// If /proc can't be read, or what sched_setscheduler(2) answers.
pub fn all_realtime() -> io::Result<()> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let Some(tid) = task?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if !ORDINARY.iter().any(|place| place.load(Ordering::Relaxed) == tid) {
            match set_realtime_of(tid) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                outcome => outcome?,
            }
        }
    }
    Ok(())
}

/// Makes the calling thread an ordinary one of low priority: for work that nobody waits for.
///
/// # Errors
/// What sched_setscheduler(2) and setpriority(2) answer.
pub fn set_background() -> io::Result<()> {
    set_ordinary()?;
    // SAFETY: no memory is passed; 0 is the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) }).map(drop)
}

/// Does `work` as a real-time task where this process has them, on a thread that [stays
/// ordinary](stay_ordinary): for writes that others wait for, which may use a part of the kernel's
/// reserve that ordinary tasks may not.
pub fn as_realtime<T>(work: impl FnOnce() -> T) -> T {
    if !plans_realtime() {
        return work();
    }
    drop(set_realtime());
    let outcome = work();
    drop(set_ordinary());
    outcome
}

/// While it lives, the calling thread, a real-time task, is an ordinary one.
#[derive(Debug)]
pub struct Ordinary(());

impl Ordinary {
    /// Until the guard is dropped.
    #[must_use]
    pub fn enter() -> Ordinary {
        // It could only fail for want of a right that the thread has had.
        drop(set_ordinary());
        Ordinary(())
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        drop(set_realtime());
    }
}

/// Never dumps core: a process that dies shall be dead at once, so that its successor can serve;
/// and a dump would take memory for all holes of the memory that outlives it. Nor are its buffers
/// made huge pages behind its back, which would fault in between.
pub fn die_quickly() {
    // SAFETY: no memory is passed.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    // SAFETY: as above.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// The CPUs that are on.
#[must_use]
pub fn online_cpus() -> Vec<u32> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    cpu_list(&text)
}

/// CPU numbers as the kernel lists them, such as `0-3,8`.
#[must_use]
pub fn cpu_list(text: &str) -> Vec<u32> {
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
    });
    ranges.flatten().collect()
}

/// The calling thread runs on this CPU only.
///
/// # Errors
/// `EINVAL` if there is no such CPU, or not for this process.
pub fn stay_on_cpu(cpu: u32) -> io::Result<()> {
    let number = cpu as usize;
    if number >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a set of CPUs is plain bits, for which zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is inside the set.
    unsafe { libc::CPU_SET(number, &mut set) };
    let bytes = size_of::<libc::cpu_set_t>();
    // SAFETY: the set is read during the call.
    check(unsafe { libc::sched_setaffinity(0, bytes, &raw const set) }).map(drop)
}

thread_local! {
    /// How many calls of [`catch_panic`] the thread is in.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
}

/// What `work` answers; `None`: it panicked, which then is no reason to die: for libraries that may
/// panic of what a server says. What `work` changes must make sense wherever it stops.
pub fn catch_panic<R>(work: impl FnOnce() -> R) -> Option<R> {
    CATCHING.set(CATCHING.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(work)).ok();
    CATCHING.set(CATCHING.get() - 1);
    result
}

/// Whether a panic of the calling thread is caught by [`catch_panic`]: for the hook that runs before
/// anything is caught.
#[must_use]
pub fn catches_panics() -> bool {
    // `try_with`: a thread that is ending may panic after its locals are gone.
    CATCHING.try_with(Cell::get).unwrap_or(0) > 0
}

/// Ends this process as SIGKILL from outside would: for tests.
pub fn kill_self() {
    let own = std::process::id() as libc::pid_t;
    // SAFETY: no memory is passed.
    unsafe { libc::kill(own, libc::SIGKILL) };
    // Other threads may go on until the signal arrives; this one does not.
    loop {
        std::thread::park();
    }
}

/// The number of the effective user.
#[must_use]
pub fn effective_user() -> u32 {
    // SAFETY: the call has no arguments and can't fail.
    unsafe { libc::geteuid() }
}

/// The effective user is root.
#[must_use]
pub fn is_root() -> bool {
    effective_user() == 0
}

/// Which side of a fork one is on.
#[derive(Debug)]
pub enum Forked {
    /// The process that was there before, with the read end of the pipe to the child.
    Parent(File, libc::pid_t),
    /// The new process, a session of its own, with the write end.
    Child(File),
}

/// Forks into the background, with a pipe from the child to the parent.
///
/// # Errors
/// What pipe2(2), fork(2) or setsid(2) answer.
///
/// # Panics
/// If the process has more than one thread: the child of such a fork could hang on a lock.
pub fn fork_with_pipe() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    assert_eq!(threads, 1, "fork with {threads} threads");
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    let read_end = File::from(unsafe { OwnedFd::from_raw_fd(ends[0]) });
    // SAFETY: as above.
    let write_end = File::from(unsafe { OwnedFd::from_raw_fd(ends[1]) });
    // SAFETY: there is one thread (checked above), so the child's memory is consistent.
    match check(unsafe { libc::fork() })? {
        0 => {
            // SAFETY: no memory is passed.
            check(unsafe { libc::setsid() })?;
            Ok(Forked::Child(write_end))
        }
        pid => Ok(Forked::Parent(read_end, pid)),
    }
}

/// Connects standard input, output and error to /dev/null.
///
/// # Errors
/// If /dev/null can't be opened.
pub fn detach_standard_streams() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for target in 0..3 {
        // SAFETY: both are descriptors of this process; no memory is passed.
        check(unsafe { libc::dup2(null.as_raw_fd(), target) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_that_is_caught_is_known_as_such() {
        assert!(!catches_panics());
        let inner = catch_panic(|| {
            assert!(catches_panics());
            let nested: Option<()> = catch_panic(|| panic!("on purpose"));
            assert!(nested.is_none() && catches_panics());
            // Of this thread, and of no other.
            let other = std::thread::spawn(catches_panics).join().unwrap();
            assert!(!other);
            7
        });
        assert_eq!(inner, Some(7));
        assert!(!catches_panics());
        let caught: Option<()> = catch_panic(|| panic!("on purpose"));
        assert!(caught.is_none() && !catches_panics());
    }
}
