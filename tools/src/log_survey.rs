//! Looking at the log of an image, with a progress bar: for `fsck.swapfs` and `swapfs inspect`.

#[cfg(test)]
pub(crate) mod builder;

use crate::failure::Failure;
use indicatif::{ProgressBar, ProgressStyle};
use swapfs_format::superblock::Superblock;
use swapfsd::backend::device::DirectFile;
use swapfsd::backend::log::scan::LogArea;
use swapfsd::backend::log::survey::{Survey, survey};
use swapfsd::image::Image;

/// Looks at the log of an image whose superblock says that it has one; at the objects' checksums
/// too with `check_payload`.
///
/// # Errors
/// If the superblock describes no log that can be, or the image can't be opened once more.
pub(crate) fn of(
    image: &Image,
    superblock: &Superblock,
    check_payload: bool,
) -> Result<Survey, Failure> {
    let area = LogArea::of(superblock).map_err(|why| Failure::new(image.path().display(), why))?;
    // Direct, so that a look at a large device does not push everything else out of memory; and
    // buffered where that can't be: this is no swap, and may wait for memory.
    let file = match image.open_direct() {
        Ok(file) => file,
        Err(_) => image
            .file()
            .try_clone()
            .map_err(|error| Failure::os(image.path().display(), "open", &error))?,
    };
    let device = DirectFile::new(file, None);
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("segments {wide_bar} {percent} % {eta}") {
        bar.set_style(style);
    }
    let found = survey(&device, &area, superblock.slot_count, check_payload, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(found)
}
