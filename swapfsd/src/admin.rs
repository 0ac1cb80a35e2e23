//! The administration of a volume that is served: what may be asked for over its control socket,
//! and who does it.
//!
//! One JSON object a line each way. A client sends one [`Request`], and gets any number of
//! [`Reply::Progress`] and at last one other [`Reply`]; then the [`server`] closes. Only back ends
//! with an [`Administration`] have a socket.

mod in_use;
pub mod server;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Version of requests and replies.
pub const VERSION: u32 = 1;
/// The longest line of a request, in bytes.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// Where the control socket of the volume of this UUID is.
#[must_use]
pub fn socket_path(volume: Uuid) -> PathBuf {
    Path::new("/run/swapfs").join(format!("{volume}.control"))
}

/// Where the pages of a tier go that is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Wherever there is room: down, and up what does not fit.
    #[default]
    Auto,
    /// To hotter tiers.
    Up,
    /// To colder tiers.
    Down,
}

impl Direction {
    /// Its name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Direction::Auto => "auto",
            Direction::Up => "up",
            Direction::Down => "down",
        }
    }
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Request {
    /// How the tiers are. The server answers this itself, from [`crate::backend::Backend::tiers`].
    Tiers,
    /// Add the member image at this path. It is formatted for this volume.
    Add {
        /// Where it is.
        image: PathBuf,
    },
    /// Move everything off a tier, and take it out of the volume.
    Remove {
        /// Its order.
        tier: u32,
        /// Where its pages are to go.
        #[serde(default)]
        direction: Direction,
        /// At most so many bytes a second; `None`: as fast as can be.
        #[serde(default)]
        rate_bytes: Option<u64>,
    },
    /// Say how the removal that is under way gets on.
    Watch,
    /// Call the removal that is under way off.
    Cancel,
    /// Change options of a tier.
    Set {
        /// Its order.
        tier: u32,
        /// `key=value,...`
        options: String,
    },
    /// Forget all pages. Refused by the server while the volume is used as swap.
    Drop,
}

/// How far the removal of a tier is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes that are left on the tier.
    pub left_bytes: u64,
    /// Pages that have been moved.
    pub moved_pages: u64,
    /// Pages that are left.
    pub left_pages: u64,
    /// How fast it goes.
    pub bytes_per_s: u64,
    /// How many seconds more it takes at that speed, if that can be said.
    pub eta_s: Option<u64>,
}

/// What there is to say at the end; nothing, most of the time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Done {
    /// Of a tier that was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<u32>,
    /// The tiers, each as [`crate::backend::TierReport`] has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiers: Option<Vec<Value>>,
    /// With `tiers`: the removal that is under way, as [`crate::backend::EvacuationReport`] has
    /// it, or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation: Option<Value>,
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Reply {
    /// It goes on.
    Progress(Progress),
    /// It is done.
    Done(Done),
    /// It was not done, or not all of it.
    Error {
        /// What, why, and what next.
        message: String,
    },
}

/// A line of either side.
#[derive(Serialize)]
struct Line<'a, T> {
    version: u32,
    #[serde(flatten)]
    body: &'a T,
}

fn line_of<T: Serialize>(body: &T) -> String {
    // Nothing in these types can fail to be JSON.
    let mut line = serde_json::to_string(&Line { version: VERSION, body }).unwrap_or_default();
    line.push('\n');
    line
}

fn body_of<T: for<'a> Deserialize<'a>>(what: &str, line: &[u8]) -> Result<T, String> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| format!("{what}: no JSON: {error}: send one object on one line"))?;
    match value.get("version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        version => {
            let version = version.map_or("none".to_owned(), |version| version.to_string());
            return Err(format!(
                "{what}: version {version}: this program has version {VERSION}: use programs of \
                 one release"
            ));
        }
    }
    serde_json::from_value(value)
        .map_err(|error| format!("{what}: not understood: {error}: see swapfs(8)"))
}

impl Request {
    /// As a line, with its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        line_of(self)
    }

    /// From a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_line(line: &[u8]) -> Result<Request, String> {
        body_of("request", line)
    }
}

impl Reply {
    /// As a line, with its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        line_of(self)
    }

    /// From a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_line(line: &[u8]) -> Result<Reply, String> {
        body_of("reply", line)
    }
}

/// What can be changed of a back end while it serves.
pub trait Administration: Send + Sync {
    /// Does what is asked for. `reply` says how it gets on; false: the client is gone, which is no
    /// reason to stop. Called on threads of the administration, several at once; may wait and
    /// allocate, but not while it has what a request of the kernel waits for.
    ///
    /// # Errors
    /// What was not done, why, and what to do next.
    fn handle(
        &self,
        request: &Request,
        reply: &mut dyn FnMut(Reply) -> bool,
    ) -> Result<Reply, String>;
}

#[cfg(test)]
mod tests;
