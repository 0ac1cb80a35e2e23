//! What is said about an image, as text and as JSON, and the exit status that goes with it.

use super::log::LogReport;
use super::survey::ProblemKind;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use swapfs_format::size;
use swapfs_format::superblock::Superblock;

/// Exit status of fsck(8): nothing wrong.
pub const EXIT_OK: u8 = 0;
/// Exit status of fsck(8): something was wrong, and is no more.
pub const EXIT_CORRECTED: u8 = 1;
/// Exit status of fsck(8): something is still wrong.
pub const EXIT_UNCORRECTED: u8 = 4;
/// Exit status of fsck(8): the image could not be checked.
pub const EXIT_OPERATIONAL: u8 = 8;
/// Exit status of fsck(8): the command line was wrong.
pub const EXIT_USAGE: u8 = 16;

/// What became of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is gone.
    Repaired,
    /// It could go, and was left.
    Repairable,
    /// It could go, with something else that may be of value, and was left.
    RepairableWithLoss,
    /// Nothing that this program does ends it.
    BeyondRepair,
}

/// A problem, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Its kind.
    pub kind: ProblemKind,
    /// What and why.
    pub text: String,
    /// What became of it.
    pub state: State,
    /// How it is, or would be, repaired.
    pub repair: Option<&'static str>,
    /// What to do by hand, where it can't be repaired.
    pub advice: String,
}

/// What is said about one image.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The image.
    pub image: PathBuf,
    /// Its size.
    pub image_bytes: u64,
    /// The superblock that was believed.
    pub superblock: Option<Superblock>,
    /// What was wrong.
    #[serde(rename = "problems")]
    pub outcomes: Vec<Outcome>,
    /// What is unusual, and right.
    pub notes: Vec<String>,
    /// Members that were not found, and servers that did not answer.
    pub warnings: Vec<String>,
    /// What is on the server that a stub names was not looked at.
    pub server_unasked: bool,
    /// Of type `log`: what it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogReport>,
}

impl Report {
    /// The exit status: the sum of what fsck(8) names.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        let any = |wanted: fn(State) -> bool| self.outcomes.iter().any(|one| wanted(one.state));
        let corrected = any(|state| state == State::Repaired);
        let left = any(|state| state != State::Repaired);
        u8::from(corrected) * EXIT_CORRECTED + u8::from(left) * EXIT_UNCORRECTED
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.image.display();
        for note in &self.notes {
            writeln!(f, "{image}: note: {note}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "{image}: warning: {warning}")?;
        }
        if let Some(log) = &self.log {
            writeln!(f, "{image}: {log}")?;
        }
        for Outcome { text, state, repair, advice, .. } in &self.outcomes {
            writeln!(f, "{image}: {text}")?;
            let repair = repair.unwrap_or_default();
            match state {
                State::Repaired => writeln!(f, "{image}: repaired: {repair}"),
                State::Repairable => {
                    writeln!(f, "{image}: not repaired: fsck.swapfs -p to {repair}")
                }
                State::RepairableWithLoss => {
                    writeln!(f, "{image}: not repaired: fsck.swapfs -y to {repair}")
                }
                State::BeyondRepair => writeln!(f, "{image}: can't be repaired: {advice}"),
            }?;
        }
        let count = |repaired: bool| {
            self.outcomes.iter().filter(|one| (one.state == State::Repaired) == repaired).count()
        };
        write!(f, "{image}: ")?;
        match (count(true), count(false)) {
            (0, 0) => write!(f, "clean"),
            (repaired, 0) => write!(f, "{repaired} repaired, clean now"),
            (0, left) => write!(f, "{left} left"),
            (repaired, left) => write!(f, "{repaired} repaired, {left} left"),
        }?;
        let Some(superblock) = &self.superblock else {
            return Ok(());
        };
        write!(
            f,
            ": type {}, {} ({} slots), UUID {}",
            superblock.type_name,
            size::human(superblock.volume_bytes()),
            superblock.slot_count,
            superblock.uuid
        )?;
        match superblock.label.as_str() {
            "" => Ok(()),
            label => write!(f, ", label '{label}'"),
        }
    }
}
