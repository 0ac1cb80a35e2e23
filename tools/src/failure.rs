//! The one error of the tools: what failed, and why, as it is shown to the person who asked.

use std::fmt;
use std::io;

/// A failed step. Shown as `swapfs: WHAT: WHY`; the reason ends with what to do next where
/// something can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    what: String,
    why: String,
}

impl Failure {
    /// `what` names the thing (a path, a device, a step), `why` the reason.
    pub fn new(what: impl fmt::Display, why: impl fmt::Display) -> Failure {
        Failure { what: what.to_string(), why: why.to_string() }
    }

    /// A failed system call: `doing` is a verb phrase, as in `cannot open: No such file`.
    pub fn os(what: impl fmt::Display, doing: &str, error: &io::Error) -> Failure {
        Failure::new(what, format_args!("cannot {doing}: {error}"))
    }

    /// The same failure with more to say behind the reason.
    #[must_use]
    pub fn and(self, more: impl fmt::Display) -> Failure {
        Failure { why: format!("{}; {more}", self.why), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for Failure {}
