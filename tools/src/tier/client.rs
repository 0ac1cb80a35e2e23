//! The client of a control socket: one request, any number of progress lines, one last word.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use swapfsd::admin::{Done, Progress, Reply, Request};

/// How long the daemon may say nothing to a request that is done at once. It may have to read a
/// device that has been asleep.
const SILENCE_LIMIT: Duration = Duration::from_secs(90);
/// How often the caller can look for a signal.
const LOOK: Duration = Duration::from_millis(100);
/// More than any line of the daemon has.
const MAX_REPLY_BYTES: usize = 1 << 20;

/// Where a volume takes requests.
#[derive(Debug, Clone)]
pub struct Socket {
    path: PathBuf,
}

/// How a request ended.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// It was done.
    Done(Done),
    /// The daemon refused, or failed, and says why.
    Refused(String),
    /// Nobody listens.
    Unreachable(String),
    /// The connection broke before the last word.
    Lost,
    /// The daemon says nothing any more.
    Silent(Duration),
    /// The caller wants no more of it.
    Left,
    /// What came was no answer.
    Strange(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done(_) => f.write_str("done"),
            Outcome::Refused(why) | Outcome::Unreachable(why) | Outcome::Strange(why) => {
                f.write_str(why)
            }
            Outcome::Lost => f.write_str(
                "the daemon broke off before its last word: whether it was done, 'swapfs tiers' \
                 shows",
            ),
            Outcome::Silent(limit) => write!(
                f,
                "the daemon has said nothing for {} s: see 'swapfs status'",
                limit.as_secs()
            ),
            Outcome::Left => f.write_str("interrupted"),
        }
    }
}

impl Socket {
    /// The socket at `path`.
    #[must_use]
    pub fn at(path: &Path) -> Socket {
        Socket { path: path.to_owned() }
    }

    /// Sends a request that is done at once.
    ///
    /// # Errors
    /// Why it was not, in the daemon's words where it has any.
    pub fn ask(&self, request: &Request) -> Result<Done, String> {
        match self.follow(request, &mut |_| (), &|| false) {
            Outcome::Done(done) => Ok(done),
            other => Err(other.to_string()),
        }
    }

    /// Sends a request, and follows what is said to the last word, or until `leave`.
    pub fn follow(
        &self,
        request: &Request,
        progress: &mut dyn FnMut(&Progress),
        leave: &dyn Fn() -> bool,
    ) -> Outcome {
        let mut stream = match UnixStream::connect(&self.path) {
            Ok(stream) => stream,
            Err(error) => return Outcome::Unreachable(self.unreachable(&error)),
        };
        let sent = stream
            .set_read_timeout(Some(LOOK))
            .and_then(|()| stream.set_write_timeout(Some(SILENCE_LIMIT)))
            .and_then(|()| stream.write_all(request.to_line().as_bytes()));
        // A server that refuses does not read: what it says is there all the same.
        if let Err(error) = sent
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Outcome::Lost;
        }
        let mut lines = Lines { stream, bytes: Vec::new() };
        let mut heard = Instant::now();
        loop {
            if leave() {
                return Outcome::Left;
            }
            let line = match lines.next() {
                Next::Line(line) => line,
                Next::Nothing if heard.elapsed() >= SILENCE_LIMIT => {
                    return Outcome::Silent(SILENCE_LIMIT);
                }
                Next::Nothing => continue,
                Next::End => return Outcome::Lost,
            };
            heard = Instant::now();
            match Reply::from_line(&line) {
                Ok(Reply::Progress(now)) => progress(&now),
                Ok(Reply::Done(done)) => return Outcome::Done(done),
                Ok(Reply::Error { message }) => return Outcome::Refused(message),
                Err(why) => return Outcome::Strange(why),
            }
        }
    }

    fn unreachable(&self, error: &io::Error) -> String {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => {
                "; the socket is missing: the daemon's log (dmesg) says why; until the next mount \
                 tiers can't be changed"
            }
            io::ErrorKind::ConnectionRefused => {
                "; the process that listened has died; another takes over: try again"
            }
            _ => "",
        };
        format!("{}: cannot connect: {error}{advice}", self.path.display())
    }
}

/// What a look at the socket gave.
enum Next {
    Line(Vec<u8>),
    Nothing,
    End,
}

struct Lines {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Lines {
    fn next(&mut self) -> Next {
        let mut part = [0; 4096];
        if let Some(line) = self.taken() {
            return Next::Line(line);
        }
        match self.stream.read(&mut part) {
            Ok(0) => Next::End,
            Ok(_) if self.bytes.len() > MAX_REPLY_BYTES => Next::End,
            Ok(count) => {
                self.bytes.extend_from_slice(&part[..count]);
                self.taken().map_or(Next::Nothing, Next::Line)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Next::Nothing,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Next::Nothing,
            Err(_) => Next::End,
        }
    }

    /// The first whole line of what has come.
    fn taken(&mut self) -> Option<Vec<u8>> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.truncate(end);
        Some(line)
    }
}
