//! Is a volume used as swap?

use std::fs;
use std::io;
use std::path::Path;

/// The swap area of the kernel's that lies on `swapfile`: a loop device, or the file itself; or what
/// else may have one.
///
/// # Errors
/// If it can't be found out.
pub(super) fn swap_on(swapfile: &Path) -> io::Result<Option<String>> {
    let swaps = fs::read_to_string("/proc/swaps")?;
    let mut backing = Vec::new();
    for device in fs::read_dir("/sys/block")? {
        let device = device?;
        let name = device.file_name().to_string_lossy().into_owned();
        if !name.starts_with("loop") {
            continue;
        }
        match fs::read_to_string(device.path().join("loop/backing_file")) {
            Ok(file) => {
                // What lies over the loop device may be swap by a name of its own.
                let has_holders = fs::read_dir(device.path().join("holders"))?.next().is_some();
                if has_holders && is_file(&file, swapfile) {
                    return Ok(Some(format!("/dev/{name}, or what is on it,")));
                }
                backing.push((name, file));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(swap_among(&swaps, swapfile, |device| {
        backing.iter().find(|(name, _)| name == device).map(|(_, file)| file.clone())
    }))
}

/// Should the mount have been moved out of sight, the kernel says so behind the path.
fn is_file(backing_file: &str, swapfile: &Path) -> bool {
    Path::new(backing_file.trim_end().trim_end_matches(" (deleted)")) == swapfile
}

/// As [`swap_on`]: `swaps` is the text of /proc/swaps, and `backing_file` answers what a loop
/// device lies on.
fn swap_among(
    swaps: &str,
    swapfile: &Path,
    backing_file: impl Fn(&str) -> Option<String>,
) -> Option<String> {
    let mut areas = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let lies_on_it = |area: &&str| {
        let Some(device) = area.strip_prefix("/dev/loop") else {
            return Path::new(area) == swapfile;
        };
        // Of a partition, such as loop0p1, the whole device.
        let number: String = device.chars().take_while(char::is_ascii_digit).collect();
        backing_file(&format!("loop{number}")).is_some_and(|file| is_file(&file, swapfile))
    };
    areas.find(lies_on_it).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWAPS: &str = "Filename\t\t\tType\t\tSize\n\
                         /dev/vda2  partition 8 0 -2\n\
                         /dev/loop3p1  partition 8 0 5\n\
                         /dev/loop12  partition 8 0 5\n";

    fn backing_file(device: &str) -> Option<String> {
        match device {
            "loop3" => Some("/mnt/a/swapfile\n".to_owned()),
            "loop12" => Some("/mnt/b/swapfile (deleted)\n".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn loop_devices_on_the_file_are_found() {
        let found = |path: &str| swap_among(SWAPS, Path::new(path), backing_file);
        assert_eq!(found("/mnt/a/swapfile").as_deref(), Some("/dev/loop3p1"));
        assert_eq!(found("/mnt/b/swapfile").as_deref(), Some("/dev/loop12"));
        assert_eq!(found("/mnt/c/swapfile"), None);
        assert_eq!(found("/dev/vda2").as_deref(), Some("/dev/vda2"));
        assert_eq!(swap_among("", Path::new("/mnt/a/swapfile"), backing_file), None);
    }
}
