//! `swapfs trace`: what a trace file says, as a summary, as JSON, and as a picture.
//!
//! The file is read in one pass for the summary and a second one for the picture, in pieces: it
//! may be much larger than the memory.

mod histogram;
mod picture;
mod reader;
mod report;
mod summary;

pub use summary::Summary;

use crate::failure::Failure;
use picture::Picture;
use reader::TraceReader;
use std::path::{Path, PathBuf};

/// What is asked for.
#[derive(Debug)]
pub struct TraceRequest {
    /// The trace file.
    pub file: PathBuf,
    /// Where the picture goes.
    pub svg: Option<PathBuf>,
    /// Instead of what the file says.
    pub segment_bytes: Option<u64>,
}

/// Reads the file, and draws the picture if one is wanted.
///
/// # Errors
/// If the file can't be read or is no trace, or the picture can't be written.
pub fn run(request: &TraceRequest) -> Result<Summary, Failure> {
    let mut reader = TraceReader::open(&request.file)?;
    if let Some(segment_bytes) = request.segment_bytes {
        reader.header.segment_bytes = segment_bytes;
    }
    let mut summary = Summary::new(&request.file, &reader.header);
    reader.for_each(|record| summary.add(record))?;
    summary.finish(&reader);
    if let Some(path) = &request.svg {
        draw(&summary, &request.file, path)?;
    }
    Ok(summary)
}

fn draw(summary: &Summary, file: &Path, path: &Path) -> Result<(), Failure> {
    let mut picture = Picture::new(summary);
    TraceReader::open(file)?.for_each(|record| picture.add(record))?;
    // Standard tools put files of any kind here; a trace that is overwritten would be gone.
    let same = |other: &Path| std::fs::canonicalize(other).ok();
    if same(path).is_some_and(|path| Some(path) == same(file)) {
        return Err(Failure::new(path.display(), "that is the trace itself: name another file"));
    }
    std::fs::write(path, picture.svg(summary))
        .map_err(|error| Failure::os(path.display(), "write", &error))
}

#[cfg(test)]
mod tests;
