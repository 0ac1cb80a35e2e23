//! Sizes in human units, binary: `K`, `M`, `G`, `T` are powers of 1024.

use std::fmt;

/// Why a size was not understood. The text names what was given and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeError {
    given: String,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is not a size: write a whole number of bytes, or one with K, M, G or T \
             behind it (powers of 1024), like 512M",
            self.given
        )
    }
}

impl std::error::Error for SizeError {}

/// Parses `4096`, `64K`, `512M`, `8G`, `1T`; also with `iB` or `B` behind the letter.
///
/// # Errors
/// [`SizeError`] for anything else, also for a number over 2^64 - 1.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let error = || SizeError { given: text.to_owned() };
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| error())?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(error()),
    };
    number.checked_mul(1u64 << shift).ok_or_else(error)
}

/// Shows a size with three significant digits at most: `4 KiB`, `1.5 GiB`, `512 MiB`.
#[must_use]
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut scaled = bytes as f64;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    let rounded = (scaled * 10.0).round() / 10.0;
    if scaled >= 100.0 || rounded.fract() == 0.0 {
        format!("{scaled:.0} {}", UNITS[unit])
    } else {
        format!("{rounded:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary() {
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64K"), Ok(65536));
        assert_eq!(parse("2m"), Ok(2 << 20));
        assert_eq!(parse("8GiB"), Ok(8 << 30));
        assert_eq!(parse(" 1T "), Ok(1 << 40));
    }

    #[test]
    fn nonsense_is_refused_with_what_was_given() {
        for bad in ["", "M", "-1", "1.5G", "12X", "0x10", "18446744073709551616", "16777216T"] {
            let error = parse(bad).unwrap_err();
            assert!(error.to_string().contains(&format!("'{bad}'")), "{error}");
        }
    }

    #[test]
    fn human_sizes_are_short() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(4096), "4 KiB");
        assert_eq!(human(1536 << 20), "1.5 GiB");
        assert_eq!(human(512 << 20), "512 MiB");
        assert_eq!(human((512 << 20) - 4096), "512 MiB");
        assert_eq!(human(u64::MAX), "16 EiB");
    }
}
