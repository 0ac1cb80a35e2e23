//! The program: command line, start, readiness, and the way out.

mod guarded;
mod knock;
mod open;
mod ready;
mod serve;
mod worker;

use crate::logging::{self, LogTarget};
use crate::supervisor::store;
use crate::sys::process::{self, Forked};
use clap::Parser;
use open::open_volume;
use ready::{Readiness, wait_for_child};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, Parser)]
#[command(
    name = "swapfsd",
    version,
    about = "Mounts a swapfs image: MOUNTPOINT/swapfile is the volume that the kernel can swap to",
    after_help = "Options of each back-end type: see mkswapfs(8) and swapfs-linear(5). To bring \
                  swap up and down in one step, use `swapfs up` and `swapfs down`."
)]
struct Arguments {
    /// Options of the back end that override the superblock's for this mount
    #[arg(short = 'o', value_name = "KEY=VALUE,...", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Serve what the supervisor at this descriptor hands over
    #[arg(long, hide = true, value_name = "DESCRIPTOR")]
    worker: Option<i32>,
    /// Hold what the worker, or the supervisor before, at this descriptor hands over
    #[arg(long, hide = true, value_name = "DESCRIPTOR")]
    supervise: Option<i32>,
    /// Send the mount so many requests from each CPU
    #[arg(long, hide = true, value_name = "PLACES")]
    knock: Option<u32>,
    /// The image or block device that mkswapfs formatted
    image: PathBuf,
    /// An empty directory
    mountpoint: PathBuf,
}

/// Why the daemon did not start, or ended with an error.
#[derive(Debug)]
pub struct StartError(String);

impl StartError {
    fn new(what: impl fmt::Display, why: impl fmt::Display) -> StartError {
        StartError(format!("{what}: {why}"))
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// Runs `swapfsd` with a command line whose first word is the program's name.
///
/// In the background it returns 0 once the mount serves, 1 with a message if it does not come
/// up; in the foreground it returns when the volume was unmounted.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            drop(error.print());
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    if arguments.knock.is_some() {
        return match knock::run(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let outcome = match (arguments.worker, arguments.supervise) {
        (Some(link), _) => worker::run(&arguments, link),
        (None, Some(link)) => guarded::resume(&arguments, link),
        (None, None) if arguments.foreground => start(&arguments, Readiness::Foreground),
        (None, None) => background(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::flush();
            eprintln!("swapfsd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Stacks of the daemon's threads: they are populated and locked whole.
const THREAD_STACK_BYTES: &str = "524288";

impl Arguments {
    fn log_target(&self) -> LogTarget {
        if self.foreground { LogTarget::StandardError } else { LogTarget::KernelLog }
    }

    /// The command line of a process that works for the same mount: its name, an option, and
    /// this command line with paths that are good anywhere.
    fn derived(
        &self,
        name: &str,
        option: Option<&str>,
        image: &Path,
        mount: &Path,
    ) -> Vec<Vec<u8>> {
        let mut words = vec![name.as_bytes().to_vec()];
        words.extend(option.map(|option| option.as_bytes().to_vec()));
        if self.foreground {
            words.push(b"--foreground".to_vec());
        }
        if !self.options.is_empty() {
            words.push(b"-o".to_vec());
            words.push(self.options.join(",").into_bytes());
        }
        words.push(image.as_os_str().as_bytes().to_vec());
        words.push(mount.as_os_str().as_bytes().to_vec());
        words
    }
}

fn background(arguments: &Arguments) -> Result<(), StartError> {
    let system = |error| StartError::new("going into the background", error);
    match process::fork_with_pipe().map_err(system)? {
        Forked::Parent(pipe, _) => wait_for_child(pipe),
        Forked::Child(pipe) => {
            let readiness = Readiness::Pipe(pipe);
            match process::detach_standard_streams() {
                Ok(()) => start(arguments, readiness),
                Err(error) => readiness.failed(system(error)),
            }
        }
    }
}

/// Starts logging with a thread; not for a supervisor.
fn start_logging(target: LogTarget) {
    // Inherited by the thread of the log. Should it fail, `protect` says so when there is a log.
    drop(process::set_io_flusher());
    logging::start(target);
}

/// Mounts: with a supervisor if it can be had and is wanted.
fn start(arguments: &Arguments, readiness: Readiness) -> Result<(), StartError> {
    if !process::is_root() {
        let error = StartError::new("not root", "mounting needs root: try again with sudo");
        return readiness.failed(error);
    }
    // What a service manager has kept has the lock on the image.
    if let Some(holdings) = store::take_back() {
        logging::start_direct(arguments.log_target());
        logging::set_subject(&arguments.image.display().to_string());
        return guarded::run_kept(arguments, holdings, readiness);
    }
    let opened = match open_volume(arguments) {
        Ok(opened) => opened,
        Err(error) => return readiness.failed(error),
    };
    logging::set_subject(&opened.image.path().display().to_string());
    // Before anything is mounted or started.
    if let Err(error) = open::transport_of(&mut opened.options.clone(), true) {
        return readiness.failed(error);
    }
    match guarded::files_to_hold(&opened) {
        Ok(files) => {
            logging::start_direct(arguments.log_target());
            opened.warn();
            guarded::run(arguments, opened, files, readiness)
        }
        Err(why) => {
            start_logging(arguments.log_target());
            opened.warn();
            if opened.options.common.supervisor {
                log::warn!("no supervisor: {why}: if the daemon dies, what it holds is lost");
            }
            serve::run(arguments, opened, why, readiness)
        }
    }
}
