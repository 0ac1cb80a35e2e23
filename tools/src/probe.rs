//! Asking a daemon for its statistics without ever hanging on it.
//!
//! A read of a FUSE file whose daemon is stopped cannot be ended, not even by SIGKILL, once the
//! daemon has taken the request. So another process reads, and is left behind if it gets stuck.

use crate::failure::Failure;
use crate::stats::Stats;
use crate::volumes::Volume;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// How long a healthy daemon may take to answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// The hidden command by which this program reads a file in a process of its own.
pub const READER_COMMAND: &str = "internal-read";
/// Exit status of the reader: the mount is there, and no daemon behind it.
const EXIT_NOT_CONNECTED: u8 = 10;
/// More than any statistics file has.
const ANSWER_MAX_BYTES: u64 = 4 << 20;

/// What came of asking.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The daemon serves.
    Stats(Box<Stats>),
    /// No answer in time: it is stopped, or hangs.
    Silent,
    /// It has died: every access to the mount fails.
    Dead,
    /// The file could not be read or understood.
    Unreadable(String),
}

impl Answer {
    /// The process whose end is the daemon's end, if it answered: the supervisor, or the daemon
    /// itself where there is none.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match self {
            Answer::Stats(stats) => stats.daemon_pid(),
            _ => None,
        }
    }
}

/// Asks the daemon behind the mount at `mount`.
#[must_use]
pub fn ask(mount: &Path) -> Answer {
    ask_within(mount, ANSWER_LIMIT)
}

/// What the daemon of a volume says of itself, where nothing can be done without it.
///
/// # Errors
/// If it is not mounted, or its daemon does not answer.
pub fn served(volume: &Volume) -> Result<Stats, Failure> {
    let name = volume.name().display();
    if volume.image.is_none() {
        return Err(Failure::new(
            name,
            "is not mounted any more: 'swapfs down' clears the rest up",
        ));
    }
    match ask(&volume.mount) {
        Answer::Stats(stats) => Ok(*stats),
        Answer::Silent => Err(Failure::new(
            name,
            "the daemon does not answer; if it hangs, its supervisor replaces it soon: try again, \
             or see 'swapfs status'",
        )),
        Answer::Dead => Err(Failure::new(name, "the daemon has died: see 'swapfs status'")),
        Answer::Unreadable(why) => {
            Err(Failure::new(name, format_args!("its statistics cannot be read: {why}")))
        }
    }
}

/// As [`ask`], of a daemon that may be busy: its statistics wait behind the swap-outs that are
/// under way, which on a slow machine can take a while.
#[must_use]
pub fn ask_within(mount: &Path, limit: Duration) -> Answer {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("swapfs").arg(READER_COMMAND).arg(mount.join("stats.json"));
    interpret(run_within(command, limit))
}

/// How the reading process ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    status: Option<i32>,
    output: Vec<u8>,
}

/// Runs `command` and collects its output. `None` when it took longer than `limit`; then it is
/// killed and not waited for, since it may be beyond killing.
fn run_within(mut command: Command, limit: Duration) -> Result<Option<Outcome>, Failure> {
    let failure = |error: &io::Error| Failure::os("reader process", "run", error);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failure(&error))?;
    let deadline = Instant::now() + limit;
    let output = collect(&mut child, deadline).map_err(|error| failure(&error))?;
    // After the end of its output, it has only to exit.
    while let Some(output) = &output {
        if let Some(status) = child.try_wait().map_err(|error| failure(&error))? {
            return Ok(Some(Outcome { status: status.code(), output: output.clone() }));
        }
        if Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // It may have ended by now, and then there is nothing to kill.
    let _ = child.kill();
    let _ = child.try_wait();
    Ok(None)
}

/// Reads the output to its end; `None` when the deadline comes first.
fn collect(child: &mut Child, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let Some(mut pipe) = child.stdout.take() else { return Ok(Some(Vec::new())) };
    let mut output = Vec::new();
    let mut chunk = [0u8; 8192];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || output.len() as u64 > ANSWER_MAX_BYTES {
            return Ok(None);
        }
        if !crate::sys::process::wait_readable(pipe.as_raw_fd(), left)? {
            continue;
        }
        match pipe.read(&mut chunk)? {
            0 => return Ok(Some(output)),
            count => output.extend_from_slice(&chunk[..count]),
        }
    }
}

fn interpret(outcome: Result<Option<Outcome>, Failure>) -> Answer {
    let outcome = match outcome {
        Ok(Some(outcome)) => outcome,
        Ok(None) => return Answer::Silent,
        Err(failure) => return Answer::Unreadable(failure.to_string()),
    };
    match outcome.status {
        Some(0) => match Stats::parse(&outcome.output) {
            Ok(stats) => Answer::Stats(Box::new(stats)),
            Err(error) => Answer::Unreadable(format!("stats.json: {error}")),
        },
        Some(status) if status == i32::from(EXIT_NOT_CONNECTED) => Answer::Dead,
        _ => Answer::Unreadable(String::from_utf8_lossy(&outcome.output).trim().to_owned()),
    }
}

/// The reading process: copies `path` to standard output, or its error.
#[must_use]
pub fn reader_main(path: &Path) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match std::fs::read(path) {
        Ok(text) => match stdout.write_all(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            // The asker has gone if this fails: nobody is left to tell.
            let _ = write!(stdout, "{}: {error}", path.display());
            match error.raw_os_error() {
                Some(libc::ENOTCONN | libc::ECONNABORTED) => ExitCode::from(EXIT_NOT_CONNECTED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn a_reader_that_hangs_is_left_behind() {
        // `exec`: so that the kill hits the sleeper, and no process stays after the test.
        let answer = interpret(run_within(sh("exec sleep 600"), Duration::from_millis(50)));
        assert_eq!(answer, Answer::Silent);
    }

    #[test]
    fn long_output_is_read_whole() {
        let limit = Duration::from_secs(60);
        let outcome = run_within(sh("head -c 300000 /dev/zero"), limit).unwrap().unwrap();
        assert_eq!(outcome.output.len(), 300_000);
        assert_eq!(outcome.status, Some(0));
    }

    #[test]
    fn every_end_has_its_answer() {
        let limit = Duration::from_secs(60);
        let ask = |script: &str| interpret(run_within(sh(script), limit));
        assert_eq!(ask("echo '{\"pid\":7}'").pid(), Some(7));
        assert_eq!(ask("echo '{\"pid\":7,\"supervisor_pid\":5}'").pid(), Some(5));
        assert_eq!(ask("exit 10"), Answer::Dead);
        assert_eq!(ask("echo no such file; exit 1"), Answer::Unreadable("no such file".into()));
        assert!(matches!(ask("echo nonsense"), Answer::Unreadable(_)));
        let missing = run_within(Command::new("/nonexistent"), limit);
        assert!(matches!(interpret(missing), Answer::Unreadable(_)));
    }
}
