//! `swapfs upgrade`: another program serves a volume that is in use. The supervisor does it; this
//! asks for it, hands the open program over, and says what comes of it.

use crate::failure::Failure;
use crate::probe;
use crate::sys::process::wait_readable;
use crate::volumes::{self, Volume};
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use swapfsd::sys::passing;

/// The program when none is named: this one.
pub const OWN_PROGRAM: &str = "/proc/self/exe";
/// The request; the open program goes with it.
const REQUEST: &[u8] = b"upgrade";
/// More than any packet of the supervisor.
const PACKET_BYTES: usize = 4096;
/// How long the supervisor may be silent: longer than it gives a new program.
const SILENCE_LIMIT: Duration = Duration::from_secs(90);

/// What came of it for one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpgradeReport {
    /// The image.
    pub image: Option<PathBuf>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The new program.
    pub program: PathBuf,
    /// It serves now.
    pub upgraded: bool,
    /// In the supervisor's words, or why it was not asked.
    pub outcome: String,
}

/// Opens the program that is to serve.
///
/// # Errors
/// If it is not there, or no program.
pub fn open_program(path: &Path) -> Result<File, Failure> {
    let file = File::open(path).map_err(|error| Failure::os(path.display(), "open", &error))?;
    let about = file.metadata().map_err(|error| Failure::os(path.display(), "look at", &error))?;
    if !about.is_file() || about.permissions().mode() & 0o111 == 0 {
        return Err(Failure::new(path.display(), "is no program: give one that can be executed"));
    }
    Ok(file)
}

/// Has `program` serve `volume`; `progress` is told what happens meanwhile.
///
/// # Errors
/// If the volume can't be upgraded, or the supervisor refused. What served then still serves.
pub fn upgrade(
    volume: &Volume,
    program: &File,
    mut progress: impl FnMut(&str),
) -> Result<String, Failure> {
    let name = volume.name().display();
    let stats = probe::served(volume)?;
    if stats.supervisor_pid.is_none() {
        let why = stats.unguarded().unwrap_or("it is being replaced: try again");
        return Err(Failure::new(
            name,
            format_args!(
                "has no supervisor, which it takes to change the program under a volume in use \
                 ({why}): use 'swapfs down' and 'swapfs up'"
            ),
        ));
    }
    let path = volumes::control_socket(&stats.uuid);
    let socket = connect(&path)?;
    ask(&socket, program, &mut progress, SILENCE_LIMIT).map_err(|why| Failure::new(name, why))
}

fn connect(path: &Path) -> Result<OwnedFd, Failure> {
    passing::connect_packets(path.as_os_str().as_bytes()).map_err(|error| {
        let failure = Failure::os(path.display(), "connect", &error);
        match error.kind() {
            io::ErrorKind::NotFound => failure.and(
                "the supervisor's socket is missing: its log (dmesg) says why; until the next \
                 mount there is no upgrade",
            ),
            io::ErrorKind::ConnectionRefused => {
                failure.and("the supervisor has died; a new one is being started: try again")
            }
            _ => failure,
        }
    })
}

/// A packet of the supervisor.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Progress(String),
    Done(String),
    Failed(String),
}

impl Said {
    fn parse(packet: &[u8]) -> Said {
        let text = String::from_utf8_lossy(packet);
        let text = text.trim();
        let behind = |word: &str| text.strip_prefix(word).map(|rest| rest.trim_start().to_owned());
        behind("done:")
            .map(Said::Done)
            .or_else(|| behind("failed:").map(Said::Failed))
            // Of a later version there may be other words: they are shown.
            .unwrap_or_else(|| {
                Said::Progress(behind("progress:").unwrap_or_else(|| text.to_owned()))
            })
    }
}

/// Sends the request and follows what is said, to the last word.
fn ask(
    socket: &OwnedFd,
    program: &File,
    progress: &mut impl FnMut(&str),
    silence_limit: Duration,
) -> Result<String, String> {
    passing::send(socket.as_fd(), REQUEST, &[program.as_raw_fd()])
        .map_err(|error| format!("the supervisor cannot be asked: {error}"))?;
    let mut packet = [0; PACKET_BYTES];
    loop {
        if !wait_for_packet(socket, silence_limit).map_err(|error| error.to_string())? {
            return Err(format!(
                "the supervisor has said nothing for {} s: see 'swapfs status'",
                silence_limit.as_secs()
            ));
        }
        let received = match passing::receive(socket.as_fd(), &mut packet) {
            Ok(received) => received,
            Err(error) => return Err(format!("the supervisor cannot be heard: {error}")),
        };
        if received.len == 0 {
            return Err("the supervisor ended without a last word: see 'swapfs status'".to_owned());
        }
        match Said::parse(&packet[..received.len]) {
            Said::Progress(text) => progress(&text),
            Said::Done(text) => return Ok(text),
            Said::Failed(text) => return Err(format!("the upgrade failed: {text}")),
        }
    }
}

/// A signal that does not end this process is no reason to give up.
fn wait_for_packet(socket: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if wait_readable(socket.as_raw_fd(), left)? {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::thread;

    /// A supervisor that answers one request with `answers`, if it is as it should be.
    fn asked(answers: &'static [&'static str]) -> (Result<String, String>, Vec<String>) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("u1.sock");
        let listener = passing::listen(&path).unwrap();
        let server = thread::spawn(move || {
            assert!(wait_readable(listener.as_raw_fd(), Duration::from_secs(60)).unwrap());
            let client = passing::accept(listener.as_fd()).unwrap();
            let mut request = [0; 64];
            let mut received = passing::receive(client.as_fd(), &mut request).unwrap();
            assert_eq!(&request[..received.len], b"upgrade");
            let mut program = String::new();
            received.take_file(0).unwrap().read_to_string(&mut program).unwrap();
            assert_eq!(program, "the program");
            for answer in answers {
                passing::send(client.as_fd(), answer.as_bytes(), &[]).unwrap();
            }
        });
        let program = dir.path().join("program");
        std::fs::write(&program, "the program").unwrap();
        let mut progress = Vec::new();
        let socket = connect(&path).unwrap();
        let outcome = ask(
            &socket,
            &File::open(&program).unwrap(),
            &mut |text: &str| progress.push(text.to_owned()),
            Duration::from_secs(60),
        );
        server.join().unwrap();
        (outcome, progress)
    }

    #[test]
    fn the_last_word_counts_and_those_before_are_progress() {
        let (outcome, progress) = asked(&["progress: one", "news of a later version", "done: new"]);
        assert_eq!(outcome, Ok("new".to_owned()));
        assert_eq!(progress, ["one", "news of a later version"]);
    }

    #[test]
    fn a_refusal_is_a_failure_in_the_supervisors_words() {
        let (outcome, progress) = asked(&["progress: one", "failed: is it swapfs?"]);
        assert_eq!(outcome, Err("the upgrade failed: is it swapfs?".to_owned()));
        assert_eq!(progress, ["one"]);
    }

    #[test]
    fn an_end_without_a_last_word_is_a_failure() {
        let (outcome, _) = asked(&["progress: one"]);
        assert!(outcome.unwrap_err().contains("without a last word"));
    }

    #[test]
    fn a_supervisor_that_says_nothing_is_not_waited_for_for_ever() {
        let (ours, _theirs) = passing::pair().unwrap();
        let program = File::open(OWN_PROGRAM).unwrap();
        let outcome = ask(&ours, &program, &mut |_| {}, Duration::from_millis(20));
        assert!(outcome.unwrap_err().contains("has said nothing"));
    }

    #[test]
    fn a_missing_socket_is_named() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let failure = connect(&dir.path().join("none.sock")).unwrap_err().to_string();
        assert!(
            failure.contains("none.sock") && failure.contains("socket is missing"),
            "{failure}"
        );
        // A socket file that nobody listens on any more.
        let path = dir.path().join("dead.sock");
        drop(passing::listen(&path).unwrap());
        let failure = connect(&path).unwrap_err().to_string();
        assert!(failure.contains("try again"), "{failure}");
    }

    #[test]
    fn only_programs_are_handed_over() {
        assert!(open_program(Path::new(OWN_PROGRAM)).is_ok());
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let text = dir.path().join("text");
        std::fs::write(&text, "x").unwrap();
        for wrong in [dir.path(), &text] {
            let failure = open_program(wrong).unwrap_err().to_string();
            assert!(failure.contains("is no program"), "{failure}");
        }
        assert!(open_program(&dir.path().join("none")).is_err());
    }

    #[test]
    fn what_is_not_mounted_is_refused() {
        let rest = Volume { image: None, mount: "/run/swapfs/u1".into(), devices: Vec::new() };
        let program = File::open(OWN_PROGRAM).unwrap();
        let failure = upgrade(&rest, &program, |_| {}).unwrap_err().to_string();
        assert!(failure.contains("not mounted any more"), "{failure}");
    }
}
