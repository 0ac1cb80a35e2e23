//! Formatting a new image: the formatter, run under its own name, with its own messages.

use crate::failure::Failure;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use swapfs_format::types::TypeSpec;

/// A volume to be made where nothing is.
#[derive(Debug)]
pub struct NewVolume<'a> {
    /// Path of the image.
    pub image: &'a Path,
    /// Its type.
    pub spec: &'static TypeSpec,
    /// Its size.
    pub volume_bytes: u64,
    /// `KEY=VALUE,...` for its header.
    pub options: &'a str,
}

/// Makes the image.
///
/// # Errors
/// If the formatter failed; its own message is on standard error.
pub fn format(volume: &NewVolume<'_>) -> Result<(), Failure> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("mkswapfs").args(["-t", volume.spec.name]);
    command.args(["-s", &volume.volume_bytes.to_string()]);
    if !volume.options.is_empty() {
        command.args(["-o", volume.options]);
    }
    let status = command
        .arg(volume.image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Ctrl-C is for `up`, which removes the image again.
        .process_group(0)
        .status()
        .map_err(|error| Failure::os("mkswapfs", "start", &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(
        volume.image.display(),
        format_args!("was not formatted ({status}); the formatter's own message is above"),
    ))
}
