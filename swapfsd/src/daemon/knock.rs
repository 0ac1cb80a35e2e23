//! A process that sends a mount as many requests as it has places, and ends when all are answered.
//!
//! To be drained, a worker whose requests come by rings has to have one in every place
//! (`fuse/uring/queue.rs`). They are answered by its successor, and until then nobody who waits
//! for them can end, not even by SIGKILL: so it is a process of its own, which holds nothing.
//!
//! It is started, and has all of its threads, before the first request is held: then nothing
//! waits for memory any more.

use super::{Arguments, StartError};
use crate::supervisor::link::{Kind, Link};
use crate::sys::spawn::{self, Command, Process};
use crate::sys::{file, process};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

/// A thread that makes two system calls.
const STACK_BYTES: usize = 64 << 10;
/// How long it may take to be ready.
const READY_PATIENCE: Duration = Duration::from_secs(10);

/// The process, ready.
pub(super) struct Knocker {
    process: Process,
    link: Link,
}

/// Starts it, and waits until it is ready: `places` are those of each CPU.
///
/// # Errors
/// If the process can't be started, or does not get ready.
pub(super) fn start(places: u32, image: &Path, mountpoint: &Path) -> io::Result<Knocker> {
    use std::os::unix::ffi::OsStrExt;
    let words = [b"swapfsd-knock".to_vec(), format!("--knock={places}").into_bytes()];
    let paths = [image, mountpoint].map(|path| path.as_os_str().as_bytes().to_vec());
    let command = Command::new(File::open("/proc/self/exe")?, &[&words[..], &paths[..]].concat())?;
    let (link, theirs) = Link::pair()?;
    let process = command.start(theirs.as_fd())?;
    drop(theirs);
    spawn::wait_readable(&[link.as_raw_fd()], Some(READY_PATIENCE))?;
    let is_ready = spawn::readiness(link.as_raw_fd()) & libc::POLLIN != 0
        && link.next()?.is_some_and(|packet| packet.kind() == Some(Kind::Ready));
    if !is_ready {
        process.kill();
        let _ = process.wait(Duration::from_secs(1));
        return Err(io::Error::other("the process that fills empty places did not get ready"));
    }
    Ok(Knocker { process, link })
}

impl Knocker {
    /// Has it send its requests.
    ///
    /// # Errors
    /// If it has ended.
    pub(super) fn go(&self) -> io::Result<()> {
        // For tests of what happens when it does not do its work.
        if std::env::var_os("SWAPFS_NO_KNOCK").is_some() {
            return Ok(());
        }
        self.link.say(Kind::GoOn, &[])
    }

    /// Clears it away, should its requests be answered while this process lives.
    pub(super) fn dismiss(self) {
        drop(self.link);
        let _ = self.process.wait(Duration::from_secs(1));
    }
}

/// Is it: one statfs(2), which the kernel never answers itself, for each place of each CPU's queue.
pub(super) fn run(arguments: &Arguments) -> Result<(), StartError> {
    let places = arguments.knock.unwrap_or(0);
    let system = |error: io::Error| StartError::new("knock", error);
    let link = spawn::inherited(spawn::LINK_DESCRIPTOR).map_err(system)?;
    let link = Link::from_descriptor(link);
    let cpus = process::online_cpus();
    // Three times: all are there; go; all are answered.
    let step = Arc::new(Barrier::new(cpus.len() * places as usize + 1));
    for cpu in cpus {
        for _ in 0..places {
            let (mountpoint, step) = (arguments.mountpoint.clone(), Arc::clone(&step));
            let knock = move || {
                // A CPU that this process may not use: its places are filled by others, or not.
                let is_there = process::stay_on_cpu(cpu).is_ok();
                step.wait();
                step.wait();
                if is_there {
                    drop(file::ask_file_system(&mountpoint));
                }
                step.wait();
            };
            let builder = thread::Builder::new().stack_size(STACK_BYTES);
            builder.spawn(knock).map_err(system)?;
        }
    }
    step.wait();
    link.say(Kind::Ready, &[]).map_err(system)?;
    match link.next() {
        Ok(Some(_)) => {}
        // Nobody wants it any more.
        _ => return Ok(()),
    }
    step.wait();
    step.wait();
    Ok(())
}
