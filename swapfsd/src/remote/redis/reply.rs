//! Replies of a server in the protocol RESP2: where one ends, and what it says.
//!
//! What objects come and go by is read here, where it lies, and with bounds on everything, since
//! what a server sends decides how long we wait and how much we keep. Replies with a structure are
//! parsed by the crate, once they are known to be complete and in bounds.

use super::failure::Failure;

/// The longest first line of a reply.
const LINE_BYTES: usize = 16 << 10;

/// One reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    Status(&'a [u8]),
    Error(&'a [u8]),
    Integer(i64),
    /// A value; `None`: there is none.
    Bulk(Option<&'a [u8]>),
    /// All bytes of a reply with a structure.
    Array(&'a [u8]),
}

/// The line that starts at `from`, and where the next one starts; `None`: not all there yet.
fn line(bytes: &[u8], from: usize) -> Result<Option<(&[u8], usize)>, Failure> {
    let rest = bytes.get(from..).unwrap_or_default();
    let within = &rest[..rest.len().min(LINE_BYTES)];
    match within.iter().position(|byte| *byte == b'\n') {
        Some(at) => match at.checked_sub(1) {
            Some(end) if within[end] == b'\r' => Ok(Some((&within[..end], from + at + 1))),
            _ => Err(Failure::odd("a line of a reply ends oddly")),
        },
        None if rest.len() >= LINE_BYTES => Err(Failure::odd("a line of a reply is too long")),
        None => Ok(None),
    }
}

fn integer(text: &[u8]) -> Result<i64, Failure> {
    let odd = || Failure::odd("a number in a reply is none");
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(odd());
    }
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(odd)
}

/// The length of a value or the number of elements; `None` for "there is none".
fn length(text: &[u8], limit: usize) -> Result<Option<usize>, Failure> {
    match integer(text)? {
        -1 => Ok(None),
        length if length < 0 => Err(Failure::odd("a length in a reply is negative")),
        length => match usize::try_from(length) {
            Ok(length) if length <= limit => Ok(Some(length)),
            _ => Err(Failure::odd("a reply is too long")),
        },
    }
}

/// The first reply in `bytes` and how long it is; `None`: not all there yet. Replies have `limit`
/// bytes at most.
///
/// # Errors
/// If it is no reply, or too long.
pub(super) fn first(bytes: &[u8], limit: usize) -> Result<Option<(Reply<'_>, usize)>, Failure> {
    let Some((head, mut at)) = line(bytes, 0)? else { return Ok(None) };
    let odd = || Failure::odd("what came is no reply");
    let (kind, text) = head.split_first().ok_or_else(odd)?;
    match kind {
        b'+' => return Ok(Some((Reply::Status(text), at))),
        b'-' => return Ok(Some((Reply::Error(text), at))),
        b':' => return Ok(Some((Reply::Integer(integer(text)?), at))),
        b'$' => {
            let Some(length) = length(text, limit)? else {
                return Ok(Some((Reply::Bulk(None), at)));
            };
            let end = at + length;
            return match bytes.get(end..end + 2) {
                None => Ok(None),
                Some(b"\r\n") => Ok(Some((Reply::Bulk(Some(&bytes[at..end])), end + 2))),
                Some(_) => Err(Failure::odd("a value in a reply ends oddly")),
            };
        }
        b'*' => {}
        _ => return Err(odd()),
    }
    let mut missing = length(text, limit)?.unwrap_or(0);
    while missing > 0 {
        // Each element has four bytes at least.
        if missing > limit / 4 || at > limit {
            return Err(Failure::odd("a reply is too long"));
        }
        let Some((head, next)) = line(bytes, at)? else { return Ok(None) };
        let (kind, text) = head.split_first().ok_or_else(odd)?;
        missing -= 1;
        at = next;
        match kind {
            b'+' | b'-' => {}
            b':' => drop(integer(text)?),
            b'*' => missing += length(text, limit)?.unwrap_or(0),
            b'$' => {
                if let Some(length) = length(text, limit)? {
                    at += length;
                    match bytes.get(at..at + 2) {
                        None => return Ok(None),
                        Some(b"\r\n") => at += 2,
                        Some(_) => return Err(Failure::odd("a value in a reply ends oddly")),
                    }
                }
            }
            _ => return Err(odd()),
        }
    }
    Ok(Some((Reply::Array(&bytes[..at]), at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 16;

    #[test]
    fn each_kind_of_reply() {
        let all = [
            (&b"+OK\r\n"[..], Reply::Status(b"OK")),
            (b"-OOM command\r\n", Reply::Error(b"OOM command")),
            (b":-7\r\n", Reply::Integer(-7)),
            (b"$3\r\na\r\n\r\n", Reply::Bulk(Some(b"a\r\n"))),
            (b"$0\r\n\r\n", Reply::Bulk(Some(b""))),
            (b"$-1\r\n", Reply::Bulk(None)),
            (b"*-1\r\n", Reply::Array(b"*-1\r\n")),
            (b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n", Reply::Array(b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n")),
        ];
        for (bytes, reply) in all {
            assert_eq!(first(bytes, LIMIT).unwrap(), Some((reply, bytes.len())));
            for end in 0..bytes.len() {
                assert_eq!(first(&bytes[..end], LIMIT).unwrap(), None, "{bytes:?} to {end}");
            }
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for bytes in [
            &b"HTTP/1.1 200\r\n"[..],
            b"\r\n",
            b"\n",
            b"$x\r\n",
            b"$+1\r\na\r\n",
            b"$-2\r\n",
            b"$99999999999999999999\r\n",
            b"$70000\r\n",
            b"$1\r\nab\r\n",
            b"*9000000000\r\n",
            b"*60000\r\n",
            b":1x\r\n",
            b"*1\r\n!x\r\n",
            b"%1\r\n",
        ] {
            assert!(first(bytes, LIMIT).is_err(), "{bytes:?}");
        }
        assert!(first(&vec![b'+'; LINE_BYTES + 1], LIMIT).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(&b"+-:$*0123456789\r\n"[..])], 0..200))
        {
            if let Ok(Some((_, len))) = first(&bytes, LIMIT) {
                prop_assert!(len <= bytes.len());
            }
        }
    }
}
