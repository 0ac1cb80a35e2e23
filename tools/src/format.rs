//! Formatting a new image: the formatter's library, with a progress bar and an ear for signals.

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use indicatif::{ProgressBar, ProgressStyle};
use mkswapfs::{FormatRequest, Formatted, MemberSpec};
use std::ops::ControlFlow;
use std::path::Path;
use swapfs_format::types::TypeSpec;

/// A volume to be made where nothing is.
#[derive(Debug)]
pub struct NewVolume<'a> {
    /// Path of the image.
    pub image: &'a Path,
    /// Its type.
    pub spec: &'static TypeSpec,
    /// Its size; `None`: as its members have room for.
    pub volume_bytes: Option<u64>,
    /// Its tiers, hottest first; none but for a type that has members.
    pub members: &'a [MemberSpec],
    /// `KEY=VALUE,...` for its header.
    pub options: &'a str,
}

/// Makes the image, and those of its members, and says what their superblocks hold.
///
/// # Errors
/// What the formatter refused or could not do, or that a signal came: then there is no image.
pub fn format(volume: &NewVolume<'_>, interrupt: &Interrupt) -> Result<Formatted, Failure> {
    let request = FormatRequest {
        type_name: volume.spec.name.to_owned(),
        volume_bytes: volume.volume_bytes,
        members: volume.members.to_vec(),
        options: volume.options.to_owned(),
        ..FormatRequest::new(volume.image)
    };
    let bar = ProgressBar::new(0);
    if let Ok(style) =
        ProgressStyle::with_template("formatting {wide_bar} {bytes} of {total_bytes}")
    {
        bar.set_style(style);
    }
    let formatted = mkswapfs::format_image(&request, &mut |done_bytes, total_bytes| {
        bar.set_length(total_bytes);
        bar.set_position(done_bytes);
        if interrupt.is_raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    Ok(formatted?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{self, Image};
    use swapfs_format::types;

    fn volume(image: &Path) -> NewVolume<'_> {
        let options = "engine=sync";
        let volume_bytes = Some(4 << 20);
        NewVolume { image, spec: &types::LINEAR, volume_bytes, members: &[], options }
    }

    #[test]
    fn an_image_is_made_as_asked() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("image");
        let superblock = format(&volume(&path), &Interrupt::default()).unwrap().superblock;
        assert_eq!(superblock.volume_bytes(), 4 << 20);
        assert_eq!(superblock.options, "engine=sync");
        assert_eq!(image::superblock(&path), Ok(superblock));
    }

    #[test]
    fn a_signal_leaves_no_image() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("image");
        let interrupt = Interrupt::default();
        interrupt.raise();
        assert!(format(&volume(&path), &interrupt).is_err());
        assert_eq!(image::look(&path), Ok(Image::Absent));
    }

    #[test]
    fn what_the_formatter_refuses_is_passed_on() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("image");
        let wrong = NewVolume { options: "engine=warp", ..volume(&path) };
        let failure = format(&wrong, &Interrupt::default()).unwrap_err().to_string();
        assert!(failure.contains("'warp' is not allowed"), "{failure}");
        assert_eq!(image::look(&path), Ok(Image::Absent));
    }
}
