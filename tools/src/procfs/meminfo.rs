//! `/proc/meminfo`: how much memory there is, and how much could be had without swap.

use crate::failure::Failure;

/// What the tools need of `/proc/meminfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemInfo {
    /// `MemTotal`
    pub total_bytes: u64,
    /// `MemAvailable`: what could be allocated without swapping.
    pub available_bytes: u64,
}

/// Parses the text; `None` if one of the two lines is missing.
#[must_use]
pub fn parse(text: &str) -> Option<MemInfo> {
    let field_bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(MemInfo {
        total_bytes: field_bytes("MemTotal")?,
        available_bytes: field_bytes("MemAvailable")?,
    })
}

/// Reads and parses `/proc/meminfo`.
///
/// # Errors
/// If the file cannot be read or lacks what is needed.
pub fn read() -> Result<MemInfo, Failure> {
    let text = super::read_file("/proc/meminfo")?;
    parse(&String::from_utf8_lossy(&text))
        .ok_or_else(|| Failure::new("/proc/meminfo", "has no MemTotal or MemAvailable line"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "MemTotal:       24684092 kB\nMemFree:        24487936 kB\n\
                          MemAvailable:   24411136 kB\nBuffers:            3456 kB\n\
                          SwapCached:            0 kB\nHugePages_Total:       0\n";

    #[test]
    fn kib_become_bytes() {
        assert_eq!(
            parse(SAMPLE),
            Some(MemInfo { total_bytes: 24_684_092 * 1024, available_bytes: 24_411_136 * 1024 })
        );
    }

    #[test]
    fn a_missing_line_is_no_answer() {
        assert_eq!(parse("MemTotal: 1024 kB\n"), None);
        assert_eq!(parse("MemTotal: 1024\nMemAvailable: 4 kB\n"), None);
    }
}
