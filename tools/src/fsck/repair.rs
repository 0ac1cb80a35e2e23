//! One run over an image: look, repair what may be repaired, look again.

use super::report::{Outcome, Report, State};
use super::survey::{Problem, Repair, Survey, survey};
use crate::failure::Failure;
use std::io;
use std::path::Path;
use swapfsd::image::{Access, Image, ImageError};
use swapfsd::sys::file::{sync_data, write_all_at};

/// Whether a repair is made: asked for each, with the problem and what would be done.
pub trait Decide {
    /// Whether the image may be written to at all.
    fn access(&self) -> Access;
    /// Whether this repair is made.
    fn agrees(&mut self, problem: &str, repair: &Repair) -> bool;
}

/// Of `-n`: none.
#[derive(Debug)]
pub struct Never;

impl Decide for Never {
    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn agrees(&mut self, _problem: &str, _repair: &Repair) -> bool {
        false
    }
}

/// Of `-p`: those that lose nothing.
#[derive(Debug)]
pub struct Preen;

impl Decide for Preen {
    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn agrees(&mut self, _problem: &str, repair: &Repair) -> bool {
        !repair.loses
    }
}

/// Of `-y`: each.
#[derive(Debug)]
pub struct Always;

impl Decide for Always {
    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn agrees(&mut self, _problem: &str, _repair: &Repair) -> bool {
        true
    }
}

/// Checks an image, and repairs what `decide` agrees to.
///
/// # Errors
/// If the image is in use, can't be read or written, is no swapfs volume, or one of a newer
/// program. A repair that was not made is no error.
pub fn check(path: &Path, decide: &mut dyn Decide) -> Result<Report, Failure> {
    let image = Image::open_exclusive(path, decide.access()).map_err(|error| refused(&error))?;
    let found = survey(&image, true)?;
    let Survey { superblock, problems, notes, warnings, server_unasked, log } = found;
    let mut outcomes = Vec::new();
    for problem in problems {
        let state = match &problem.repair {
            None => State::BeyondRepair,
            Some(repair) if decide.agrees(&problem.text, repair) => {
                write(&image, repair)?;
                State::Repaired
            }
            Some(repair) if repair.loses => State::RepairableWithLoss,
            Some(_) => State::Repairable,
        };
        outcomes.push(Outcome {
            kind: problem.kind,
            text: problem.text,
            state,
            repair: problem.repair.map(|repair| repair.action),
            advice: problem.advice,
        });
    }
    if outcomes.iter().any(|outcome| outcome.state == State::Repaired) {
        confirm(&image, &outcomes)?;
    }
    let (image, image_bytes) = (path.to_owned(), image.bytes());
    Ok(Report { image, image_bytes, superblock, outcomes, notes, warnings, server_unasked, log })
}

/// An image that can't be opened, in the words of the tools.
pub(crate) fn refused(error: &ImageError) -> Failure {
    let text = error.to_string();
    let path = error.path.display().to_string();
    // Its text begins with the path already.
    let why = text.strip_prefix(&path).and_then(|rest| rest.strip_prefix(": "));
    Failure::new(&path, why.unwrap_or(&text))
}

fn write(image: &Image, repair: &Repair) -> Result<(), Failure> {
    // Flushed one by one: so a crash leaves at least one good copy at any time.
    write_all_at(image.file(), &repair.page[..], repair.offset_bytes)
        .and_then(|()| sync_data(image.file()))
        .map_err(|errno| {
            let error = io::Error::from_raw_os_error(errno);
            Failure::os(image.path().display(), repair.action, &error)
        })
}

/// What was repaired must be gone at a second look.
fn confirm(image: &Image, outcomes: &[Outcome]) -> Result<(), Failure> {
    let second = survey(image, false)?;
    let repaired = outcomes.iter().filter(|outcome| outcome.state == State::Repaired);
    for outcome in repaired {
        // Of those that there can be several of, others may rightly be there still.
        let still_there = |problem: &Problem| {
            problem.kind == outcome.kind
                && (problem.text == outcome.text || !problem.kind.is_of_the_log())
        };
        if second.problems.iter().any(still_there) {
            return Err(Failure::new(
                image.path().display(),
                format_args!(
                    "repaired, and still there: {}; the disk may be failing",
                    outcome.text
                ),
            ));
        }
    }
    Ok(())
}
