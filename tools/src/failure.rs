//! The one error of the tools: what failed, and why, as it is shown to the person who asked.

use std::fmt;
use std::io;

/// A failed step. Shown as `swapfs: WHAT: WHY`; the reason ends with what to do next where
/// something can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    text: String,
}

impl Failure {
    /// `what` names the thing (a path, a device, a step), `why` the reason.
    pub fn new(what: impl fmt::Display, why: impl fmt::Display) -> Failure {
        Failure { text: format!("{what}: {why}") }
    }

    /// A failed system call: `doing` is a verb phrase, as in `cannot open: No such file`.
    pub fn os(what: impl fmt::Display, doing: &str, error: &io::Error) -> Failure {
        Failure::new(what, format_args!("cannot {doing}: {error}"))
    }

    /// The same failure with more to say behind the reason.
    #[must_use]
    pub fn and(self, more: impl fmt::Display) -> Failure {
        Failure { text: format!("{}; {more}", self.text) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<mkswapfs::Error> for Failure {
    /// Those are written as `WHAT: WHY` too.
    fn from(error: mkswapfs::Error) -> Failure {
        Failure { text: error.to_string() }
    }
}
