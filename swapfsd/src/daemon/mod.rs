//! The program: command line, start, readiness, and the way out.

mod ready;
mod serve;

use clap::Parser;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
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
    let outcome = if arguments.foreground {
        serve::foreground(&arguments)
    } else {
        serve::background(&arguments)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::logging::flush();
            eprintln!("swapfsd: {error}");
            ExitCode::FAILURE
        }
    }
}
