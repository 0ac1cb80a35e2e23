//! A process dies faster if somebody else still uses its address space.
//!
//! The last user of an address space takes it down page by page before the kernel says that the
//! process is dead and closes its files: measured, 90 ms for a gibibyte of mapped pool, in which
//! nobody could take over. So a worker has a companion: a process of its own that shares its
//! memory (CLONE_VM) and nothing else, and sleeps in a read of a pipe. When the worker is killed,
//! the pipe ends, and the companion takes the memory down while the successor serves.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The companion's stack: it calls nothing but three system calls.
const STACK_BYTES: usize = 16 << 10;
/// How long it may take to get there.
const READY_LIMIT: Duration = Duration::from_secs(5);
/// Of linux/close_range.h's callers: all descriptors above a number.
const LAST_DESCRIPTOR: libc::c_uint = libc::c_uint::MAX;

/// The end of the pipe that the companion waits at; it ends when this is closed.
#[derive(Debug)]
pub struct Companion(#[expect(dead_code, reason = "held open")] OwnedFd);

/// Starts the companion of this process. Its stack is never given back: it is used until the end.
///
/// # Errors
/// What pipe2(2), mmap(2) and clone(2) answer.
pub fn start_companion() -> io::Result<Companion> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    let read_end = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let write_end = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping at an address that the kernel chooses.
    let stack = unsafe { libc::mmap(ptr::null_mut(), STACK_BYTES, protection, flags, -1, 0) };
    if stack == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let _ = super::memory::populate(stack.cast(), STACK_BYTES, true);
    // SAFETY: inside the mapping, or at its end.
    let top = unsafe { stack.cast::<u8>().add(STACK_BYTES) };
    // Without signals, no system call of the companion's can fail, and so none of them touches
    // errno, which it has in common with this thread.
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initialises the set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: one set is initialised, the other one is written to.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let task = Box::leak(Box::new(Task {
        own: read_end.as_raw_fd() as u32,
        ready: AtomicBool::new(false),
    }));
    let argument = ptr::from_mut(task).cast();
    let flags = libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: the function uses the stack given, which is large enough and nobody else's, and
    // no memory of this process's but its argument, which is never freed.
    let cloned = check(unsafe { libc::clone(wait_for_the_end, top.cast(), flags, argument) });
    // SAFETY: the set was filled by the first call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    cloned?;
    // Until it has closed its copies, it would keep locks held that end with this process.
    let started = Instant::now();
    while !task.ready.load(Ordering::Acquire) && started.elapsed() < READY_LIMIT {
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(Companion(write_end))
}

/// What the companion is told, and tells.
struct Task {
    /// The descriptor that it keeps.
    own: u32,
    /// It has closed all others.
    ready: AtomicBool,
}

/// The companion: closes all descriptors but its own, so that it keeps no file open and no lock
/// held, and waits for the end of the pipe.
extern "C" fn wait_for_the_end(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: what `start_companion` passes, which is never freed.
    let task = unsafe { &*argument.cast::<Task>() };
    let own = task.own;
    let mut byte = 0u8;
    // SAFETY: no memory is passed. This process has a table of descriptors of its own.
    unsafe { libc::syscall(libc::SYS_close_range, own + 1, LAST_DESCRIPTOR, 0) };
    if own > 0 {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_close_range, 0, own - 1, 0) };
    }
    task.ready.store(true, Ordering::Release);
    let ordinary = libc::sched_param { sched_priority: 0 };
    // Nobody waits for it: at the worker's real-time priority it would keep others from the
    // processor.
    // SAFETY: the parameters are read during the call.
    unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH, &raw const ordinary)
    };
    // SAFETY: no memory is passed.
    unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, 10) };
    // SAFETY: one byte of this function's.
    unsafe { libc::syscall(libc::SYS_read, own, &raw mut byte, 1) };
    // SAFETY: ends this process without running anything of the other one's.
    unsafe { libc::syscall(libc::SYS_exit_group, 0) };
    0
}
