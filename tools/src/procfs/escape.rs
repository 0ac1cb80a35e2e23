//! Octal escapes: how `/proc/mounts` and `/proc/swaps` write blanks, tabs and line ends in paths.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Turns `\040` and its like back into bytes. A backslash that begins no escape stays.
#[must_use]
pub fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, octal(tail)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The byte that the first three octal digits name.
fn octal(digits: &[u8]) -> Option<u8> {
    let digits = digits.get(..3)?;
    let mut value = 0u32;
    for digit in digits {
        value = value * 8 + char::from(*digit).to_digit(8)?;
    }
    u8::try_from(value).ok()
}

/// The fields of a line: separated by blanks or tabs, however many.
pub(super) fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|field| !field.is_empty())
}

/// A decimal number, also a negative one.
pub(super) fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn escapes_become_bytes_again() {
        assert_eq!(unescape(b"/mnt/my\\040disk"), Path::new("/mnt/my disk"));
        assert_eq!(unescape(b"/a\\011b\\012c\\134d"), Path::new("/a\tb\nc\\d"));
        assert_eq!(unescape(b"\\040\\040"), Path::new("  "));
    }

    #[test]
    fn what_is_no_escape_stays() {
        for plain in ["/plain", "/a\\", "/a\\04", "/a\\08z", "/a\\999", ""] {
            assert_eq!(unescape(plain.as_bytes()), Path::new(plain));
        }
    }
}
