//! Starting and watching processes without any allocation: for the supervisor.

use super::check;
use std::ffi::{CString, c_char};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// The number under which a started program finds its end of the connection to its starter.
pub const LINK_DESCRIPTOR: RawFd = 3;

/// A command line that can be run again and again; everything is prepared.
#[derive(Debug)]
pub struct Command {
    program: File,
    path: CString,
    arguments: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Command {
    /// Runs `program` (an open executable) with `arguments`, the first of which is its name.
    ///
    /// # Errors
    /// If an argument has a zero byte.
    pub fn new(program: File, arguments: &[Vec<u8>]) -> io::Result<Command> {
        let path = CString::new(format!("/proc/self/fd/{}", program.as_raw_fd()))?;
        let arguments: Vec<CString> =
            arguments.iter().map(|text| CString::new(text.clone())).collect::<Result<_, _>>()?;
        let mut pointers: Vec<*const c_char> = arguments.iter().map(|text| text.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Ok(Command { program, path, arguments, pointers })
    }

    /// The executable.
    #[must_use]
    pub fn program(&self) -> &File {
        &self.program
    }

    /// The same command line with another executable.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn with_program(&self, program: File) -> io::Result<Command> {
        let arguments: Vec<Vec<u8>> =
            self.arguments.iter().map(|text| text.as_bytes().to_vec()).collect();
        Command::new(program, &arguments)
    }

    /// The same command line, with `--supervise=NUMBER` at its end.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn with_link(&self, number: RawFd) -> io::Result<Command> {
        let mut arguments: Vec<Vec<u8>> =
            self.arguments.iter().map(|text| text.as_bytes().to_vec()).collect();
        arguments.push(format!("--supervise={number}").into_bytes());
        Command::new(self.program.try_clone()?, &arguments)
    }

    /// Starts it with `link` as its descriptor [`LINK_DESCRIPTOR`], in a process group of its own,
    /// without blocked signals, with this process's environment. Descriptors that close on exec
    /// are closed.
    ///
    /// # Errors
    /// What posix_spawn(3) answers.
    pub fn start(&self, link: BorrowedFd<'_>) -> io::Result<Process> {
        let mut actions = MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
        let mut attributes = MaybeUninit::<libc::posix_spawnattr_t>::uninit();
        // SAFETY: initialises the structure.
        code(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: as above.
        code(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: initialises the set.
        unsafe { libc::sigemptyset(none.as_mut_ptr()) };
        let flags = libc::POSIX_SPAWN_SETPGROUP | libc::POSIX_SPAWN_SETSIGMASK;
        let (number, target) = (link.as_raw_fd(), LINK_DESCRIPTOR);
        // SAFETY: the structures are initialised, see above; the pointers are to live memory.
        code(unsafe {
            libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), number, target)
        })?;
        // SAFETY: as above.
        code(unsafe {
            libc::posix_spawnattr_setflags(attributes.as_mut_ptr(), flags as libc::c_short)
        })?;
        // SAFETY: as above.
        code(unsafe { libc::posix_spawnattr_setpgroup(attributes.as_mut_ptr(), 0) })?;
        // SAFETY: as above.
        code(unsafe { libc::posix_spawnattr_setsigmask(attributes.as_mut_ptr(), none.as_ptr()) })?;
        let mut pid = 0;
        // SAFETY: the path and each argument end in a zero byte, the list in a null pointer;
        // `environ` is this process's, which nobody changes.
        let started = code(unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.path.as_ptr(),
                actions.as_ptr(),
                attributes.as_ptr(),
                self.pointers.as_ptr().cast(),
                environ.cast(),
            )
        });
        // SAFETY: initialised above, and not used any more.
        unsafe { libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr()) };
        // SAFETY: as above.
        unsafe { libc::posix_spawnattr_destroy(attributes.as_mut_ptr()) };
        started?;
        Process::open(pid)
    }
}

unsafe extern "C" {
    static environ: *const *const c_char;
}

fn code(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// A process that can be waited for and killed by descriptor: its number can't become another's.
#[derive(Debug)]
pub struct Process {
    descriptor: OwnedFd,
    pid: libc::pid_t,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By exit(2), with that status.
    Exit(i32),
    /// By that signal.
    Signal(i32),
    /// It was no child of ours: nobody says.
    Unknown,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Exit(status) => write!(f, "ended with status {status}"),
            Ended::Signal(libc::SIGKILL) => write!(f, "was killed (SIGKILL)"),
            Ended::Signal(libc::SIGABRT) => write!(f, "crashed (SIGABRT)"),
            Ended::Signal(libc::SIGSEGV) => write!(f, "crashed (SIGSEGV)"),
            Ended::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Ended::Unknown => write!(f, "has ended"),
        }
    }
}

impl Process {
    /// The process `pid`, which must not have been waited for.
    ///
    /// # Errors
    /// What pidfd_open(2) answers.
    pub fn open(pid: libc::pid_t) -> io::Result<Process> {
        // SAFETY: no memory is passed.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = check(libc::c_int::try_from(descriptor).unwrap_or(-1))?;
        // SAFETY: the descriptor is new, and nobody else owns it.
        Ok(Process { descriptor: unsafe { OwnedFd::from_raw_fd(descriptor) }, pid })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// Sends SIGKILL; to a process that has ended, nothing happens.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    /// Sends a signal; to a process that has ended, nothing happens.
    pub fn signal(&self, signal: i32) {
        let (descriptor, none) = (self.descriptor.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: no memory is passed.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, descriptor, signal, none, 0) };
    }

    /// Makes its first thread, and those that it starts from now on, real-time tasks, where this
    /// process's threads are.
    pub fn hurry(&self) {
        if super::process::plans_realtime() {
            drop(super::process::set_realtime_of(self.pid));
        }
    }

    /// Has it ended, with all of its threads? If it is our child, its remains are cleared away.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        if !wait_readable(&[self.descriptor.as_raw_fd()], Some(Duration::ZERO)).is_ok_and(|n| n > 0)
        {
            return None;
        }
        let mut status = 0;
        // SAFETY: the status is written to a live integer.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) };
        if waited != self.pid {
            Some(Ended::Unknown)
        } else if libc::WIFSIGNALED(status) {
            Some(Ended::Signal(libc::WTERMSIG(status)))
        } else {
            Some(Ended::Exit(libc::WEXITSTATUS(status)))
        }
    }

    /// Waits for its end, for `at_most`.
    #[must_use]
    pub fn wait(&self, at_most: Duration) -> Option<Ended> {
        let _ = wait_readable(&[self.descriptor.as_raw_fd()], Some(at_most));
        self.ended()
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

/// Makes this process the parent of all that its children leave behind.
pub fn adopt_orphans() {
    // SAFETY: no memory is passed.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Clears away children that have ended, other than those in `known`.
pub fn reap_others(known: &[libc::pid_t]) {
    loop {
        let mut information = MaybeUninit::<libc::siginfo_t>::zeroed();
        let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the structure is written to by the call.
        let result = unsafe { libc::waitid(libc::P_ALL, 0, information.as_mut_ptr(), look) };
        // SAFETY: zeroed at first, and maybe filled by the call.
        let information = unsafe { information.assume_init() };
        // SAFETY: of a child's end, or all zeros.
        let pid = unsafe { information.si_pid() };
        if result != 0 || pid == 0 || known.contains(&pid) {
            return;
        }
        // SAFETY: nothing is written.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
    }
}

/// Waits until there is no child left, for `at_most`.
pub fn reap_all(at_most: Duration) {
    let started = Instant::now();
    while started.elapsed() < at_most {
        // SAFETY: nothing is written.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            0 => std::thread::sleep(Duration::from_millis(2)),
            pid if pid < 0 => return,
            _ => {}
        }
    }
}

/// Descriptors that [`poll`] takes at once.
pub const MAX_POLLED: usize = 12;

/// Waits until one of `polled` is ready, a signal comes, or the time is over. Negative
/// descriptors are passed over. Answers how many are ready.
///
/// # Errors
/// What poll(2) answers, but `EINTR`, which is 0.
pub fn poll(polled: &mut [libc::pollfd], at_most: Option<Duration>) -> io::Result<usize> {
    let timeout_ms = at_most
        .map_or(-1, |time| i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    let count = polled.len() as libc::nfds_t;
    // SAFETY: as many entries as the slice has.
    match check(unsafe { libc::poll(polled.as_mut_ptr(), count, timeout_ms) }) {
        Ok(ready) => Ok(ready as usize),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        Err(error) => Err(error),
    }
}

/// As [`poll`], for reading.
///
/// # Errors
/// What poll(2) answers.
pub fn wait_readable(descriptors: &[RawFd], at_most: Option<Duration>) -> io::Result<usize> {
    let mut polled = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; MAX_POLLED];
    for (entry, descriptor) in polled.iter_mut().zip(descriptors) {
        entry.fd = *descriptor;
    }
    poll(&mut polled[..descriptors.len()], at_most)
}

/// What can be known of a descriptor at once: POLLIN, POLLERR and so on.
#[must_use]
pub fn readiness(descriptor: RawFd) -> libc::c_short {
    let mut polled = [libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 }];
    match poll(&mut polled, Some(Duration::ZERO)) {
        Ok(_) => polled[0].revents,
        Err(_) => 0,
    }
}

/// A write to the descriptor would not have to wait.
#[must_use]
pub fn is_writable(descriptor: RawFd) -> bool {
    let mut polled = [libc::pollfd { fd: descriptor, events: libc::POLLOUT, revents: 0 }];
    poll(&mut polled, Some(Duration::ZERO)).is_ok_and(|_| polled[0].revents & libc::POLLOUT != 0)
}

/// Signals as packets of a descriptor; they are blocked from then on.
///
/// # Errors
/// What signalfd(2) answers.
pub fn signal_descriptor(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set is initialised.
        unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) };
    }
    // SAFETY: the set is initialised.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) })?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is initialised.
    let descriptor = check(unsafe { libc::signalfd(-1, set.as_ptr(), flags) })?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// The next signal of a [`signal_descriptor`], if there is one.
#[must_use]
pub fn next_signal(descriptor: &OwnedFd) -> Option<i32> {
    let mut information = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let len = size_of::<libc::signalfd_siginfo>();
    // SAFETY: room for one structure.
    let count = unsafe { libc::read(descriptor.as_raw_fd(), information.as_mut_ptr().cast(), len) };
    if count != len as isize {
        return None;
    }
    // SAFETY: the call has filled all of it.
    Some(unsafe { information.assume_init() }.ssi_signo as i32)
}

/// Nanoseconds since the machine started, standby time included.
#[must_use]
pub fn boot_time_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written to a live structure.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A time that goes up while the machine runs, and stands still while it sleeps.
#[must_use]
pub fn running_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written to a live structure.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Names the calling process, as /proc/PID/comm shows it: 15 bytes at most.
pub fn name_process(name: &std::ffi::CStr) {
    // SAFETY: the name ends in a zero byte.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Keeps a descriptor open over exec, or not.
///
/// # Errors
/// What fcntl(2) answers.
pub fn set_close_on_exec(descriptor: RawFd, close: bool) -> io::Result<()> {
    let flags = if close { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(descriptor, libc::F_SETFD, flags) }).map(drop)
}

/// Makes the number `to` mean what `from` means, in one step; what it meant is closed, though
/// calls on it that are under way go on.
///
/// # Errors
/// What dup3(2) answers.
pub fn duplicate_to(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::dup3(from, to, libc::O_CLOEXEC) }).map(drop)
}

/// Takes over a descriptor that was inherited under a known number.
///
/// # Errors
/// `EBADF` if there is none.
pub fn inherited(descriptor: RawFd) -> io::Result<OwnedFd> {
    set_close_on_exec(descriptor, true)?;
    // SAFETY: open, as just seen; the caller names numbers that were handed to this process.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Replaces this process's program; returns only if that fails.
#[must_use]
pub fn execute(command: &Command) -> io::Error {
    let (descriptor, empty) = (command.program.as_raw_fd(), c"");
    // SAFETY: as for posix_spawn in [`Command::start`].
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            descriptor,
            empty.as_ptr(),
            command.pointers.as_ptr(),
            environ,
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_program_is_started_watched_and_killed() {
        let (one, _two) = super::super::passing::pair().unwrap();
        let shell = |script: &str| {
            let arguments = ["sh", "-c", script].map(|text| text.as_bytes().to_vec());
            let command = Command::new(File::open("/bin/sh").unwrap(), &arguments).unwrap();
            command.start(one.as_fd()).unwrap()
        };
        let process = shell("test -S /proc/self/fd/3 && exit 7");
        assert_eq!(process.wait(Duration::from_secs(60)), Some(Ended::Exit(7)));
        let process = shell("sleep 1000");
        assert_eq!(process.ended(), None);
        process.kill();
        assert_eq!(process.wait(Duration::from_secs(60)), Some(Ended::Signal(libc::SIGKILL)));
        process.kill();
    }
}
