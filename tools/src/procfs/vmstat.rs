//! `/proc/vmstat`: the kernel's own count of pages swapped in and out.

use crate::failure::Failure;

/// Pages swapped since boot, over all areas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SwapCounters {
    /// `pswpin`
    pub pages_in: u64,
    /// `pswpout`
    pub pages_out: u64,
}

impl SwapCounters {
    /// What happened between `earlier` and now.
    #[must_use]
    pub fn since(&self, earlier: &SwapCounters) -> SwapCounters {
        SwapCounters {
            pages_in: self.pages_in.saturating_sub(earlier.pages_in),
            pages_out: self.pages_out.saturating_sub(earlier.pages_out),
        }
    }
}

/// Parses the text; `None` for a kernel without swap, which has no such lines.
#[must_use]
pub fn parse(text: &str) -> Option<SwapCounters> {
    let counter = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    Some(SwapCounters { pages_in: counter("pswpin")?, pages_out: counter("pswpout")? })
}

/// Reads and parses `/proc/vmstat`.
///
/// # Errors
/// If the file cannot be read, or the kernel has no swap.
pub fn read() -> Result<SwapCounters, Failure> {
    let text = super::read_file("/proc/vmstat")?;
    parse(&String::from_utf8_lossy(&text)).ok_or_else(|| {
        Failure::new("/proc/vmstat", "has no pswpin line: this kernel was built without swap")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_counters_and_no_namesake() {
        let text = "pgpgin 5126\npgpgout 99\npswpin 12\npswpout 76800\npswpin_extra 3\n";
        let counters = parse(text).unwrap();
        assert_eq!(counters, SwapCounters { pages_in: 12, pages_out: 76800 });
        let earlier = SwapCounters { pages_in: 2, pages_out: 800 };
        assert_eq!(counters.since(&earlier), SwapCounters { pages_in: 10, pages_out: 76000 });
        assert_eq!(parse("pgpgin 5126\n"), None);
    }
}
