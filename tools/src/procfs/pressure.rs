//! `/proc/pressure/memory`: how much of the time tasks wait for memory.

/// The share of the last ten seconds in which all tasks that could run waited for memory, in per
/// cent; `None` if the text does not say.
#[must_use]
pub fn parse_full_percent(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("full "))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("avg10=")?.parse().ok())
}

/// The same of this machine; `None` on a kernel without pressure stall information.
#[must_use]
pub fn full_percent() -> Option<f64> {
    let text = super::read_file("/proc/pressure/memory").ok()?;
    parse_full_percent(&String::from_utf8_lossy(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_all_tasks_counts() {
        let text = "some avg10=12.50 avg60=3.00 avg300=0.10 total=77\n\
                    full avg10=4.25 avg60=1.00 avg300=0.00 total=33\n";
        assert_eq!(parse_full_percent(text), Some(4.25));
        assert_eq!(parse_full_percent("some avg10=1.00\n"), None);
        assert_eq!(parse_full_percent(""), None);
    }
}
