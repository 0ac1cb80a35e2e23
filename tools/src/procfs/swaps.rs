//! `/proc/swaps`: the swap areas in use.

use super::escape::{fields, number, unescape};
use crate::failure::Failure;
use std::path::{Path, PathBuf};

/// One active swap area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapArea {
    /// The device or file, as the kernel names it.
    pub path: PathBuf,
    /// What can be used of it.
    pub size_bytes: u64,
    /// What is used of it.
    pub used_bytes: u64,
    /// The higher, the earlier it is used.
    pub priority: i32,
}

impl SwapArea {
    /// What is not used of it.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.size_bytes.saturating_sub(self.used_bytes)
    }
}

/// Parses the text, its heading included. Lines that are no area are passed over.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<SwapArea> {
    text.split(|byte| *byte == b'\n').skip(1).filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<SwapArea> {
    let mut fields = fields(line);
    let path = unescape(fields.next()?);
    let _kind = fields.next()?;
    let size_kib: u64 = number(fields.next()?)?;
    let used_kib: u64 = number(fields.next()?)?;
    let priority = number(fields.next()?)?;
    Some(SwapArea {
        path,
        size_bytes: size_kib.checked_mul(1024)?,
        used_bytes: used_kib.checked_mul(1024)?,
        priority,
    })
}

/// Reads and parses `/proc/swaps`.
///
/// # Errors
/// If it cannot be read: a kernel without swap has none.
pub fn read() -> Result<Vec<SwapArea>, Failure> {
    Ok(parse(&super::read_file("/proc/swaps")?))
}

/// The area on `device`, if it is one.
#[must_use]
pub fn find<'a>(areas: &'a [SwapArea], device: &Path) -> Option<&'a SwapArea> {
    areas.iter().find(|area| area.path == device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
        /dev/loop0                              partition\t524284\t\t76544\t\t32767\n\
        /var/my\\040swap                         file\t\t1048572\t\t0\t\t-2\n\
        /dev/zram1\\040(deleted)                 partition\t1024\t\t512\t\t5\n";

    #[test]
    fn areas_of_a_real_file() {
        let areas = parse(SAMPLE);
        assert_eq!(areas.len(), 3);
        assert_eq!(
            areas[0],
            SwapArea {
                path: "/dev/loop0".into(),
                size_bytes: 524_284 * 1024,
                used_bytes: 76_544 * 1024,
                priority: 32767
            }
        );
        assert_eq!(areas[0].free_bytes(), (524_284 - 76_544) * 1024);
        assert_eq!(areas[1].path, Path::new("/var/my swap"));
        assert_eq!(areas[1].priority, -2);
        assert_eq!(areas[2].path, Path::new("/dev/zram1 (deleted)"));
        assert_eq!(find(&areas, Path::new("/dev/loop0")), Some(&areas[0]));
        assert_eq!(find(&areas, Path::new("/dev/loop1")), None);
    }

    #[test]
    fn a_heading_alone_is_no_area() {
        assert_eq!(parse(b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"), vec![]);
        assert_eq!(parse(b""), vec![]);
    }
}
