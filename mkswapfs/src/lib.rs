//! `mkswapfs`: formats an image as a swapfs volume.
//!
//! [`format_image`] is what `swapfs up` and `swapfs demo` call as well, and [`format_member`] what
//! `swapfs tier add` calls.
//!
//! | module | what it owns |
//! |---|---|
//! | [`plan`] | from a request to a superblock: everything is decided before a byte is written |
//! | [`member`] | the same for one member of a `tier` volume, and what `--member` says |
//! | `tier` | a volume and its members together |
//! | [`remote`] | stubs of what is on servers elsewhere, and the exports that they stand for |
//! | [`export`] | an export of an NBD server: what is on it, and writing to it |
//! | [`target`] | what must not be overwritten |
//! | [`write`] | writing, in an order that never leaves a valid primary superblock before its time |

mod cli;
pub mod export;
pub mod member;
pub mod plan;
pub mod remote;
pub mod target;
mod tier;
pub mod write;

pub use cli::main;
pub use member::{MemberImage, MemberRequest, MemberSpec, format_member, member_entry};
pub use plan::{FormatRequest, Preallocate};
pub use remote::Elsewhere;

use plan::Plan;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use swapfs_format::superblock::Superblock;
use swapfs_format::types::REMOTE;

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
    /// Of a stub: where its pages are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Elsewhere>,
    /// Of a `tier` volume: its members, hottest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Formatted>,
}

impl Formatted {
    /// What `plans` make, or would make; of an export together with its stub.
    fn of(plans: Vec<Plan>, dry_run: bool) -> Vec<Formatted> {
        let mut export = None;
        let mut formatted = Vec::new();
        for plan in plans {
            if plan.export.is_some() {
                export = Some(plan.superblock);
                continue;
            }
            formatted.push(Formatted {
                remote: Elsewhere::of(&plan.superblock, export.take()),
                image: plan.image,
                created: plan.create,
                dry_run,
                superblock: plan.superblock,
                members: Vec::new(),
            });
        }
        formatted
    }
}

/// How far a long write is: called with bytes done and bytes in all. `Break` ends the format.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Formats an image, and the members of a volume that has any; what it created is removed again if
/// that fails.
///
/// # Errors
/// What was refused or failed. Before the first write nothing has changed; after it, none of the
/// images has a valid primary superblock that it did not have before.
pub fn format_image(request: &FormatRequest, progress: Progress<'_>) -> Result<Formatted, Error> {
    let spec = plan::type_of(request)?;
    let mut plans = match (spec.has_members, request.members.first()) {
        (true, _) => tier::plan(request)?,
        (false, None) if spec.name == REMOTE.name => remote::plan(request)?,
        (false, None) => vec![plan::plan(request)?],
        (false, Some(member)) => {
            let why = format!("type '{}' has no members: use -t tier", spec.name);
            return Err(Error::new(format_args!("--member {member}"), why));
        }
    };
    if !request.dry_run {
        execute(&mut plans, progress)?;
    }
    let mut formatted = Formatted::of(plans, request.dry_run);
    // The volume's own image comes last.
    let mut volume = formatted.pop().ok_or_else(|| Error::new("plan", "empty"))?;
    volume.members = formatted;
    Ok(volume)
}

/// Writes what `plans` say, one after the other. All images are opened, and created, before the
/// first is written; if anything fails, none of them is a volume or a member.
fn execute(plans: &mut [Plan], progress: Progress<'_>) -> Result<(), Error> {
    let mut media: Vec<write::Target> = Vec::new();
    let mut written = 0;
    let outcome = write_all(plans, &mut media, &mut written, progress);
    if outcome.is_err() {
        // A file that somebody else made since the plan is not ours to remove: opening fails then.
        for (index, (medium, plan)) in media.iter_mut().zip(plans.iter()).enumerate() {
            if plan.create {
                drop(fs::remove_file(&plan.image));
            } else if index < written {
                medium.invalidate();
            }
        }
    }
    outcome
}

fn write_all(
    plans: &mut [Plan],
    media: &mut Vec<write::Target>,
    written: &mut usize,
    progress: Progress<'_>,
) -> Result<(), Error> {
    for plan in plans.iter_mut() {
        media.push(write::Target::open(plan)?);
    }
    let total = media.iter().map(write::Target::progress_bytes).sum();
    let mut before = 0;
    for (medium, plan) in media.iter_mut().zip(plans.iter()) {
        write::write_format(medium.medium(), plan, &mut |done, _| progress(before + done, total))?;
        *written += 1;
        before += medium.progress_bytes();
    }
    Ok(())
}
