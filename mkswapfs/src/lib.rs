//! `mkswapfs`: formats an image as a swapfs volume.
//!
//! [`format_image`] is what `swapfs up` and `swapfs demo` call as well. [`plan`] decides
//! everything before a byte is written, [`target`] refuses what must not be overwritten, and
//! [`write`] writes in an order that never leaves a valid primary superblock before its time.

mod cli;
pub mod plan;
pub mod target;
pub mod write;

pub use cli::main;
pub use plan::{FormatRequest, Preallocate};

use plan::Plan;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use swapfs_format::superblock::Superblock;

/// Why an image was not formatted: what, and why with what to do next.
#[derive(Debug)]
pub struct Error {
    what: String,
    why: String,
}

impl Error {
    pub(crate) fn new(what: impl fmt::Display, why: impl fmt::Display) -> Error {
        Error { what: what.to_string(), why: why.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for Error {}

/// What was made, or would be.
#[derive(Debug, Serialize)]
pub struct Formatted {
    /// The image.
    pub image: PathBuf,
    /// The image did not exist before.
    pub created: bool,
    /// Nothing was written (`-n`).
    pub dry_run: bool,
    /// What stands on it.
    pub superblock: Superblock,
}

/// How far a long write is: called with bytes done and bytes in all. `Break` ends the format.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Formats an image; one that it created is removed again if that fails.
///
/// # Errors
/// What was refused or failed. Before the first write nothing has changed; after it, the image
/// has no valid primary superblock.
pub fn format_image(request: &FormatRequest, progress: Progress<'_>) -> Result<Formatted, Error> {
    let mut plan = plan::plan(request)?;
    if !request.dry_run {
        execute(&mut plan, progress)?;
    }
    Ok(Formatted {
        image: plan.image,
        created: plan.create,
        dry_run: request.dry_run,
        superblock: plan.superblock,
    })
}

fn execute(plan: &mut Plan, progress: Progress<'_>) -> Result<(), Error> {
    // A file that somebody else made since the plan is not ours to remove: opening fails then.
    let mut medium = write::ImageMedium::open(plan)?;
    let outcome = write::write_format(&mut medium, plan, progress);
    if outcome.is_err() && plan.create {
        drop(fs::remove_file(&plan.image));
    }
    outcome
}
