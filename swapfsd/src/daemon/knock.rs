//! A process that sends a mount as many requests as it has places, and ends when all are answered.
//!
//! To be drained, a worker whose requests come by rings has to have one in every place
//! (`fuse/uring/queue.rs`). They are answered by its successor, and until then nobody who waits
//! for them can end, not even by SIGKILL: so it is a process of its own, which holds nothing.

use super::{Arguments, StartError};
use crate::supervisor::link::Link;
use crate::sys::spawn::Command;
use crate::sys::{file, process};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

/// A thread that makes one system call.
const STACK_BYTES: usize = 64 << 10;

/// Starts it: `places` are those of each CPU.
///
/// # Errors
/// If the process can't be started.
pub(super) fn start(places: u32, image: &Path, mountpoint: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    // For tests of what happens when it does not do its work.
    if std::env::var_os("SWAPFS_NO_KNOCK").is_some() {
        return Ok(());
    }
    let words = [b"swapfsd-knock".to_vec(), format!("--knock={places}").into_bytes()];
    let paths = [image, mountpoint].map(|path| path.as_os_str().as_bytes().to_vec());
    let command = Command::new(File::open("/proc/self/exe")?, &[&words[..], &paths[..]].concat())?;
    // Every program is started with an end of a link; nobody says anything here.
    let (_ours, theirs) = Link::pair()?;
    command.start(theirs.as_fd()).map(drop)
}

/// Is it: one statfs(2), which the kernel never answers itself, for each place of each CPU's queue.
pub(super) fn run(arguments: &Arguments) -> Result<(), StartError> {
    let places = arguments.knock.unwrap_or(0);
    let system = |error: io::Error| StartError::new("a thread", error);
    let mut threads = Vec::new();
    for cpu in process::online_cpus() {
        for _ in 0..places {
            let mountpoint = arguments.mountpoint.clone();
            let knock = move || {
                // A CPU that this process may not use: its places are filled by others, or not.
                if process::stay_on_cpu(cpu).is_ok() {
                    drop(file::ask_file_system(&mountpoint));
                }
            };
            let builder = thread::Builder::new().stack_size(STACK_BYTES);
            threads.push(builder.spawn(knock).map_err(system)?);
        }
    }
    for thread in threads {
        drop(thread.join());
    }
    Ok(())
}
