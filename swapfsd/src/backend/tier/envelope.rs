//! What stands around an object on a server: whose it is, so that an answer to another question is
//! not taken for it.
//!
//! ```text
//! 0   magic and version, little endian as all of it
//! 4   slot
//! 12  number
//! 20  checksum of the object, as in the arena
//! 24  its encoded bytes
//! ```

use crate::remote::Key;

/// Bytes in front of the checksum.
pub(super) const ENVELOPE_BYTES: usize = 20;
/// The last byte is the version.
const MAGIC: [u8; 4] = *b"swo\x01";

/// What stands in front of the object of that key.
pub(super) fn seal(key: &Key) -> [u8; ENVELOPE_BYTES] {
    let mut envelope = [0; ENVELOPE_BYTES];
    envelope[..4].copy_from_slice(&MAGIC);
    envelope[4..12].copy_from_slice(&key.slot.to_le_bytes());
    envelope[12..].copy_from_slice(&key.number.to_le_bytes());
    envelope
}

/// The checksum and the bytes, if they are that object's.
pub(super) fn open<'a>(stored: &'a [u8], key: &Key) -> Option<&'a [u8]> {
    let (envelope, inside) = stored.split_at_checked(ENVELOPE_BYTES)?;
    (envelope == seal(key)).then_some(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_object_is_taken_out() {
        let key = Key { slot: 7, number: 1 << 40 };
        let mut stored = seal(&key).to_vec();
        stored.extend_from_slice(b"inside");
        assert_eq!(open(&stored, &key), Some(&b"inside"[..]));
        assert_eq!(open(&stored, &Key { slot: 8, ..key }), None);
        assert_eq!(open(&stored, &Key { number: 1, ..key }), None);
        assert_eq!(open(&stored[..19], &key), None);
        assert_eq!(open(&stored[..20], &key), Some(&b""[..]));
        for at in 0..ENVELOPE_BYTES {
            let mut damaged = stored.clone();
            damaged[at] ^= 1;
            assert_eq!(open(&damaged, &key), None);
        }
    }
}
