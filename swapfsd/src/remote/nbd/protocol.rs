//! What goes over the wire once an export is open: requests, and the heads of replies. Numbers are
//! big-endian. Nothing here has a state or waits.

/// A request's magic number.
const REQUEST_MAGIC: u32 = 0x2560_9513;
/// A simple reply's.
const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// A chunk's of a structured reply.
const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Bytes of a request before its data.
pub(super) const REQUEST_BYTES: usize = 28;
const SIMPLE_BYTES: usize = 16;
const CHUNK_BYTES: usize = 20;
/// More than any head has.
pub(super) const HEAD_BYTES_AT_MOST: usize = CHUNK_BYTES + 12;

const CHUNK_FLAG_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
/// This bit says that a chunk is about an error, also of types that are not known.
const CHUNK_ERROR_BIT: u16 = 1 << 15;
/// `ERROR_OFFSET`: eight bytes follow the text.
const CHUNK_ERROR_OFFSET: u16 = CHUNK_ERROR_BIT | 2;
/// The longest error chunk: the numbers, the longest text, an offset; and some room.
const ERROR_CHUNK_BYTES_AT_MOST: u32 = 6 + 65535 + 64;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
}

/// The head of a request; a write's data follows it.
pub(super) fn request(kind: Kind, cookie: u64, offset: u64, length: u32) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[6..8].copy_from_slice(&(kind as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// The head of a reply, or of a chunk of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) cookie: u64,
    /// The request has been answered with this.
    pub(super) last: bool,
    pub(super) content: Content,
}

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// A simple reply: it went well; all of a read's data follows.
    Simple,
    /// A chunk without anything: it went well.
    Nothing,
    /// Data of a read follow, so many bytes, for this offset of the export.
    Data { offset: u64, length: u32 },
    /// This range of the export is zeros.
    Hole { offset: u64, length: u32 },
    /// It failed; so many bytes of text follow, not to be looked at.
    Error { errno: i32, text_bytes: u32 },
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    number(bytes, at).map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_be_bytes)
}

/// The errno for a number of the protocol's: its numbers are Linux's; others are to be taken for
/// `EINVAL`.
pub(super) fn errno_of(error: u32) -> i32 {
    let known = [
        libc::EPERM,
        libc::EIO,
        libc::ENOMEM,
        libc::EINVAL,
        libc::ENOSPC,
        libc::EOVERFLOW,
        libc::ENOTSUP,
        libc::ESHUTDOWN,
    ];
    known.into_iter().find(|&errno| errno as u32 == error).unwrap_or(libc::EINVAL)
}

/// The head at the start of `bytes`, and how long it is; `None` if it has not come entirely.
///
/// # Errors
/// `EPROTO` if it makes no sense.
pub(super) fn head(bytes: &[u8], structured: bool) -> Result<Option<(Head, usize)>, i32> {
    match u32_at(bytes, 0) {
        None => Ok(None),
        Some(SIMPLE_MAGIC) => Ok(simple(bytes)),
        Some(CHUNK_MAGIC) if structured => chunk(bytes),
        Some(_) => Err(libc::EPROTO),
    }
}

fn simple(bytes: &[u8]) -> Option<(Head, usize)> {
    let (error, cookie) = (u32_at(bytes, 4)?, u64_at(bytes, 8)?);
    let content = match error {
        0 => Content::Simple,
        error => Content::Error { errno: errno_of(error), text_bytes: 0 },
    };
    Some((Head { cookie, last: true, content }, SIMPLE_BYTES))
}

fn chunk(bytes: &[u8]) -> Result<Option<(Head, usize)>, i32> {
    let Some(length) = u32_at(bytes, 16) else { return Ok(None) };
    let (Some(flags), Some(kind), Some(cookie)) =
        (u16_at(bytes, 4), u16_at(bytes, 6), u64_at(bytes, 8))
    else {
        return Ok(None);
    };
    let last = flags & CHUNK_FLAG_DONE != 0;
    let body = &bytes[CHUNK_BYTES..];
    let content = match kind {
        // Such a chunk can't be followed by others.
        CHUNK_NONE if length == 0 && last => Some((Content::Nothing, 0)),
        CHUNK_OFFSET_DATA if length > 8 => {
            u64_at(body, 0).map(|offset| (Content::Data { offset, length: length - 8 }, 8))
        }
        CHUNK_OFFSET_HOLE if length == 12 => match (u64_at(body, 0), u32_at(body, 8)) {
            (Some(offset), Some(length)) if length > 0 => {
                Some((Content::Hole { offset, length }, 12))
            }
            (Some(_), Some(_)) => return Err(libc::EPROTO),
            _ => None,
        },
        kind if kind & CHUNK_ERROR_BIT != 0 => error_chunk(kind, length, body)?,
        _ => return Err(libc::EPROTO),
    };
    Ok(content.map(|(content, more)| (Head { cookie, last, content }, CHUNK_BYTES + more)))
}

fn error_chunk(kind: u16, length: u32, body: &[u8]) -> Result<Option<(Content, usize)>, i32> {
    if !(6..=ERROR_CHUNK_BYTES_AT_MOST).contains(&length) {
        return Err(libc::EPROTO);
    }
    let (Some(error), Some(text_bytes)) = (u32_at(body, 0), u16_at(body, 4)) else {
        return Ok(None);
    };
    let offset_bytes = if kind == CHUNK_ERROR_OFFSET { 8 } else { 0 };
    if error == 0 || 6 + u32::from(text_bytes) + offset_bytes > length {
        return Err(libc::EPROTO);
    }
    Ok(Some((Content::Error { errno: errno_of(error), text_bytes: length - 6 }, 6)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_comes_makes_it_panic_and_heads_need_all_their_bytes() {
        let mut seed = 1u64;
        for round in 0..200_000 {
            let mut bytes = [0u8; HEAD_BYTES_AT_MOST];
            for byte in &mut bytes {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (seed >> 33) as u8;
            }
            let magic = if round % 3 == 0 { SIMPLE_MAGIC } else { CHUNK_MAGIC };
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            if round % 5 > 0 {
                for (byte, mask) in bytes[4..8].iter_mut().zip([0, 1, 0x80, 3]) {
                    *byte &= mask;
                }
                bytes[16..19].fill(0);
                bytes[19] &= 15;
            }
            let whole = head(&bytes, true);
            let Ok(Some((_, used))) = whole else { continue };
            assert!(used <= bytes.len());
            for length in 0..used {
                assert_eq!(head(&bytes[..length], true), Ok(None));
            }
            assert_eq!(head(&bytes[..used], true), whole);
        }
    }

    #[test]
    fn chunks_are_nonsense_where_they_were_not_agreed() {
        assert_eq!(head(&CHUNK_MAGIC.to_be_bytes(), false), Err(libc::EPROTO));
        assert_eq!(head(&[0; 4], true), Err(libc::EPROTO));
        assert_eq!(head(&[0; 3], true), Ok(None));
    }
}
