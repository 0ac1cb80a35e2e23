//! The command line of `fsck.swapfs`.

use super::repair::{Always, Decide, Never, Preen, check};
use super::report::{EXIT_OPERATIONAL, EXIT_USAGE, Report, State};
use super::survey::Repair;
use crate::failure::Failure;
use clap::Parser;
use serde::Serialize;
use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use swapfsd::image::Access;

/// Checks a swapfs image, and repairs its superblocks and its log.
#[derive(Debug, Parser)]
#[command(
    name = "fsck.swapfs",
    version,
    about = "Checks a swapfs image; repairs superblocks, the swap header, and a log's segments",
    after_help = "Exit status, as of fsck(8), summed up: 0 clean, 1 repaired, 4 left as it was, \
                  8 not checked (in use, no volume, I/O error), 16 usage."
)]
struct Arguments {
    /// Only look: write nothing
    #[arg(short = 'n', conflicts_with_all = ["preen", "yes"])]
    look: bool,
    /// Repair without asking what can be repaired without loss
    #[arg(short = 'p', visible_short_alias = 'a')]
    preen: bool,
    /// Answer yes to every question
    #[arg(short = 'y')]
    yes: bool,
    /// Taken for the sake of other checkers: every image is looked at anyway
    #[arg(short = 'f')]
    force: bool,
    /// Taken for the sake of fsck(8): everything is said anyway
    #[arg(short = 'v')]
    verbose: bool,
    /// Of an image whose pages are on an NBD server: exit with 8 if that does not answer
    #[arg(long)]
    need_server: bool,
    /// Say it as JSON
    #[arg(long)]
    json: bool,
    /// The image: a file or block device
    image: PathBuf,
}

/// Asks for each repair at the terminal.
struct Ask;

impl Decide for Ask {
    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn agrees(&mut self, problem: &str, repair: &Repair) -> bool {
        let action = repair.action;
        // On standard error, so that --json stays JSON.
        let mut out = io::stderr();
        if write!(out, "{problem}\n{action}? [y/N] ").and_then(|()| out.flush()).is_err() {
            return false;
        }
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
    }
}

/// Runs `fsck.swapfs` with a command line whose first word is the program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    ExitCode::from(status(arguments))
}

/// As [`main`], with an exit status that tests can compare.
pub(super) fn status(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            drop(error.print());
            return if error.exit_code() == 0 { 0 } else { EXIT_USAGE };
        }
    };
    match run(&arguments) {
        Ok(status) => status,
        Err(failure) => {
            eprintln!("fsck.swapfs: {failure}");
            EXIT_OPERATIONAL
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let asks = !arguments.look && !arguments.preen && !arguments.yes;
    let asked = asks && io::stdin().is_terminal();
    let report = match (arguments.look, asks, asked) {
        (true, _, _) | (_, true, false) => check(&arguments.image, &mut Never),
        (_, true, true) => check(&arguments.image, &mut Ask),
        _ if arguments.preen => check(&arguments.image, &mut Preen),
        (_, false, _) => check(&arguments.image, &mut Always),
    }?;
    let mut exit_status = report.exit_status();
    if arguments.need_server && report.server_unasked {
        exit_status |= EXIT_OPERATIONAL;
    }
    show(&report, exit_status, arguments.json)?;
    let repairable = report
        .outcomes
        .iter()
        .any(|one| matches!(one.state, State::Repairable | State::RepairableWithLoss));
    if asks && !asked && repairable {
        eprintln!(
            "fsck.swapfs: {}: no terminal to ask at, so nothing was repaired: use -p",
            arguments.image.display()
        );
    }
    Ok(exit_status)
}

/// The report, and the exit status that goes with it.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    report: &'a Report,
    exit_status: u8,
}

fn show(report: &Report, exit_status: u8, json: bool) -> Result<(), Failure> {
    let text = if json {
        serde_json::to_string_pretty(&Answer { report, exit_status })
            .map_err(|error| Failure::new("JSON", error))?
    } else {
        report.to_string()
    };
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::os("standard output", "write", &error))
        }
        _ => Ok(()),
    }
}
