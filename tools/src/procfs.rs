//! The kernel's text files that the tools read: parsers on bytes, and the files themselves.

pub mod escape;
pub mod meminfo;
pub mod mounts;
pub mod pressure;
pub mod swaps;
pub mod vmstat;

use crate::failure::Failure;
use std::path::Path;

/// Reads a whole kernel text file.
///
/// # Errors
/// If it is not there or cannot be read.
fn read_file(path: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(Path::new(path)).map_err(|error| Failure::os(path, "read", &error))
}
