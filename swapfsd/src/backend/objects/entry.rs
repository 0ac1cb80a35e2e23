//! The eight bytes that say where a slot's page is.
//!
//! ```text
//! object       63 ............ 21 | 20 .... 9 | 8 .. 6 |   5   | 4 3 | 2 1 0
//!              byte in the arena  | length-1  | check  | tried | age | kind 2..7
//! same-filled  63 ............ 16 | 15 .... 8 |    7     | 6 5 4 3   | 2 1 0
//!              the word, or a CRC |   check   | buffered |  form     | kind 1
//! absent       0; or 8: no device has been told yet (`log`)
//! discarded    63 ............ 16 | 15 .... 8 | 7 6 5  | 4     | 3   | 2 1 0
//!              number of a record |   check   |  0     | known | one | 0       (`log`)
//! ```
//!
//! `kind` is [`Encoding`]'s number for an object, and 3 more where the object was already there
//! and this entry names it too: who counts entries again needs to know which objects are shared
//! (`zmem`'s index of identical pages). `check` has the parity of every third bit of kind, length and place: a
//! flipped bit shall not name another object. The length is that of the encoded bytes; the
//! object's checksum lies in front of them. `tried` is set when recompression did not pay; of an
//! object below the arena of a `tier` volume, when it was read once.
//!
//! A same-filled page has its word in the entry, where 48 bits can say it: with zeros above, ones
//! above, zeros below, or as one 32-bit word twice. Other words stand beside the entry, in the
//! table's word pages, and the entry has their CRC-32. The check byte is over everything else.
//! `buffered` is of `log`: no device has the word yet. There the word has 32 bits, and the 16 above
//! say in which segment its record is: of several that a device has, the one that counts.
//! A word is stored while no entry needs the one before it: where the old page is of that kind
//! too, the new one is for a moment an object ([`word_object`]).

use crate::codec::Encoding;

/// Where an object lies: the byte at which its checksum starts, in the arena or on the device.
pub(in crate::backend) type Location = u64;

const KIND_MASK: u64 = 7;
const SAME_FILLED: u64 = 1;
/// From an encoding's number to the kind of one more entry for the same object.
const SHARED_STEP: u64 = 3;
const AGE_SHIFT: u32 = 3;
/// The bits of the age.
pub(in crate::backend) const AGE_MASK: u64 = 3 << AGE_SHIFT;
/// The greatest age.
pub(in crate::backend) const OLDEST: u64 = 3;
const TRIED: u64 = 1 << 5;
const LENGTH_SHIFT: u32 = 9;
const LENGTH_MASK: u64 = 0xfff;
const LOCATION_SHIFT: u32 = 21;
const FORM_SHIFT: u32 = 3;
const BUFFERED: u64 = 1 << 7;
const DISCARDED_KNOWN: u64 = 3 << 3;
const DISCARDED_UNKNOWN: u64 = 1 << 3;
const CHECK_SHIFT: u32 = 8;
const CHECK_MASK: u64 = 0xff << CHECK_SHIFT;
const PAYLOAD_SHIFT: u32 = 16;
const PAYLOAD_BITS: u32 = 48;
const PAYLOAD_MASK: u64 = (1 << PAYLOAD_BITS) - 1;

const FORM_LOW: u64 = 0;
const FORM_ONES: u64 = 1;
const FORM_HIGH: u64 = 2;
const FORM_TWICE: u64 = 3;
const FORM_BESIDE: u64 = 4;
/// Added to the first four: 32 bits of a word, and where its record is.
const FORM_AT: u64 = 8;
const FORM_LOW_AT: u64 = FORM_AT | FORM_LOW;
const FORM_ONES_AT: u64 = FORM_AT | FORM_ONES;
const FORM_HIGH_AT: u64 = FORM_AT | FORM_HIGH;
const FORM_TWICE_AT: u64 = FORM_AT | FORM_TWICE;
const TAG_SHIFT: u32 = 48;

/// Locations that an entry can say.
const LOCATION_END: Location = 1 << (64 - LOCATION_SHIFT);
/// Locations from here on are bytes of a device's data section; below are those of the arena.
pub(in crate::backend) const DEVICE_START: Location = LOCATION_END / 2;
/// Bytes that an arena can have.
pub(in crate::backend) const MAX_ARENA_BYTES: u64 = DEVICE_START;
/// Bytes that the data section of a device can have.
pub(in crate::backend) const MAX_DEVICE_BYTES: u64 = LOCATION_END - DEVICE_START;

/// What stands in front of an object's bytes: its checksum.
pub(in crate::backend) const HEADER_BYTES: usize = 4;

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) enum Meaning {
    /// Never written, or discarded: reads as zeros.
    Absent,
    /// The same, by the record of that number, which a device has.
    Discarded(u64),
    /// The same, and no device has the record yet.
    Discarding(u64),
    /// The word over and over.
    SameFilled(u64),
    /// The same, with the word in the table's word pages; its CRC-32.
    SameFilledBeside(u32),
    /// An object.
    Object(Object),
    /// No entry that was ever written.
    Damaged,
}

/// An object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) struct Object {
    pub(in crate::backend) encoding: Encoding,
    pub(in crate::backend) location: Location,
    /// Encoded bytes, 1 to 4096.
    pub(in crate::backend) len: usize,
}

impl Object {
    /// Where on the device it lies, in bytes of the data section; `None`: in the arena.
    pub(in crate::backend) fn device_offset(&self) -> Option<u64> {
        self.location.checked_sub(DEVICE_START)
    }

    /// Where an index of objects by what they hold looks for this one, whose bytes have that
    /// checksum. (Fibonacci hashing, Knuth, volume 3.)
    pub(in crate::backend) fn content_hash(&self, checksum: u32) -> u32 {
        let key = u64::from(checksum) | (self.len as u64) << 32 | (self.encoding as u64) << 48;
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }

    /// Bytes that it takes, with its checksum.
    pub(in crate::backend) fn stored_bytes(&self) -> u32 {
        (HEADER_BYTES + self.len) as u32
    }
}

/// An entry as it stands in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) struct Entry(pub(in crate::backend) u64);

impl Entry {
    pub(in crate::backend) const ABSENT: Entry = Entry(0);
    /// As [`Entry::ABSENT`], and no device knows it yet.
    pub(in crate::backend) const DISCARDED: Entry = Entry(8);

    pub(in crate::backend) fn object(object: Object) -> Entry {
        debug_assert!((1..=4096).contains(&object.len) && object.location < LOCATION_END);
        Entry::of_kind(object.encoding as u64, object)
    }

    /// One more entry for an object that has one.
    pub(in crate::backend) fn shared_object(object: Object) -> Entry {
        Entry::of_kind(object.encoding as u64 + SHARED_STEP, object)
    }

    fn of_kind(kind: u64, object: Object) -> Entry {
        let bits =
            kind | (object.len as u64 - 1) << LENGTH_SHIFT | object.location << LOCATION_SHIFT;
        Entry(bits | parity_of(bits) << PARITY_SHIFT)
    }

    /// Made by [`Entry::shared_object`]. Of objects only.
    pub(in crate::backend) fn is_shared(self) -> bool {
        self.0 & KIND_MASK > Encoding::Zstd as u64
    }

    /// The entry of a same-filled page, and whether `word` has to be put beside it first.
    pub(in crate::backend) fn same_filled(word: u64) -> (Entry, bool) {
        let (form, payload) = if word <= PAYLOAD_MASK {
            (FORM_LOW, word)
        } else if word | PAYLOAD_MASK == u64::MAX {
            (FORM_ONES, word & PAYLOAD_MASK)
        } else if word << PAYLOAD_BITS == 0 {
            (FORM_HIGH, word >> PAYLOAD_SHIFT)
        } else if word >> 32 == word & 0xffff_ffff {
            (FORM_TWICE, word >> 32)
        } else {
            (FORM_BESIDE, u64::from(word_checksum(word)))
        };
        let bits = SAME_FILLED | form << FORM_SHIFT | payload << PAYLOAD_SHIFT;
        (Entry(bits | check_of(bits) << CHECK_SHIFT), form == FORM_BESIDE)
    }

    /// The entry of a same-filled page whose record is in the segment that ends in `tag`. `None`:
    /// 32 bits don't say the word.
    pub(in crate::backend) fn same_filled_at(word: u64, tag: u16) -> Option<Entry> {
        const LOW: u64 = 0xffff_ffff;
        let (form, payload) = if word <= LOW {
            (FORM_LOW, word)
        } else if word | LOW == u64::MAX {
            (FORM_ONES, word & LOW)
        } else if word & LOW == 0 {
            (FORM_HIGH, word >> 32)
        } else if word >> 32 == word & LOW {
            (FORM_TWICE, word >> 32)
        } else {
            return None;
        };
        let payload = payload << PAYLOAD_SHIFT | u64::from(tag) << TAG_SHIFT;
        let bits = SAME_FILLED | (FORM_AT | form) << FORM_SHIFT | payload;
        Some(Entry(bits | check_of(bits) << CHECK_SHIFT))
    }

    /// The tag that [`Entry::same_filled_at`] was given. Of same-filled entries only.
    pub(in crate::backend) fn tag(self) -> Option<u16> {
        (self.0 >> FORM_SHIFT & FORM_AT != 0).then_some((self.0 >> TAG_SHIFT) as u16)
    }

    /// This same-filled entry, with the mark that no device has it yet.
    pub(in crate::backend) fn buffered(self) -> Entry {
        let bits = self.0 & !CHECK_MASK | BUFFERED;
        Entry(bits | check_of(bits) << CHECK_SHIFT)
    }

    /// Has that mark. Of same-filled entries only.
    pub(in crate::backend) fn is_buffered(self) -> bool {
        self.0 & (KIND_MASK | BUFFERED) == SAME_FILLED | BUFFERED
    }

    /// Says the same as `other`, whatever either has been through.
    pub(in crate::backend) fn is_same_as(self, other: Entry) -> bool {
        let history = if self.0 & KIND_MASK == SAME_FILLED { 0 } else { AGE_MASK | TRIED };
        (self.0 ^ other.0) & !history == 0
    }

    pub(in crate::backend) fn meaning(self) -> Meaning {
        let number = (self.0 & KIND_MASK) as u8;
        if self == Entry::ABSENT || self == Entry::DISCARDED {
            return Meaning::Absent;
        }
        if number == 0 {
            let bits = self.0 & !CHECK_MASK;
            let right = self.0 >> CHECK_SHIFT & 0xff == check_of(bits);
            let sequence = self.0 >> PAYLOAD_SHIFT;
            return match bits & 0xff {
                DISCARDED_KNOWN if right => Meaning::Discarded(sequence),
                DISCARDED_UNKNOWN if right => Meaning::Discarding(sequence),
                _ => Meaning::Damaged,
            };
        }
        if u64::from(number) == SAME_FILLED {
            let bits = self.0 & !CHECK_MASK;
            if self.0 >> CHECK_SHIFT & 0xff != check_of(bits) {
                return Meaning::Damaged;
            }
            let payload = self.0 >> PAYLOAD_SHIFT;
            let short = payload & 0xffff_ffff;
            return match self.0 >> FORM_SHIFT & 15 {
                FORM_LOW => Meaning::SameFilled(payload),
                FORM_ONES => Meaning::SameFilled(payload | !PAYLOAD_MASK),
                FORM_HIGH => Meaning::SameFilled(payload << PAYLOAD_SHIFT),
                FORM_TWICE => Meaning::SameFilled(payload << 32 | payload),
                FORM_BESIDE => Meaning::SameFilledBeside(payload as u32),
                FORM_LOW_AT => Meaning::SameFilled(short),
                FORM_ONES_AT => Meaning::SameFilled(short | !0 << 32),
                FORM_HIGH_AT => Meaning::SameFilled(short << 32),
                FORM_TWICE_AT => Meaning::SameFilled(short << 32 | short),
                _ => Meaning::Damaged,
            };
        }
        let number = if self.is_shared() { number - SHARED_STEP as u8 } else { number };
        match Encoding::from_number(number) {
            _ if self.0 >> PARITY_SHIFT & 7 != parity_of(self.0) => Meaning::Damaged,
            None => Meaning::Damaged,
            Some(encoding) => Meaning::Object(Object {
                encoding,
                location: self.0 >> LOCATION_SHIFT,
                len: (self.0 >> LENGTH_SHIFT & LENGTH_MASK) as usize + 1,
            }),
        }
    }

    /// The slot holds nothing.
    pub(in crate::backend) fn is_absent(self) -> bool {
        matches!(self.meaning(), Meaning::Absent | Meaning::Discarded(_) | Meaning::Discarding(_))
    }

    /// The slot holds nothing, as the record of that number will say on a device.
    pub(in crate::backend) fn discarding(sequence: u64) -> Entry {
        let bits = DISCARDED_UNKNOWN | sequence << PAYLOAD_SHIFT;
        Entry(bits | check_of(bits) << CHECK_SHIFT)
    }

    /// No device knows that the slot was discarded.
    pub(in crate::backend) fn is_unknown_discard(self) -> bool {
        self == Entry::DISCARDED || matches!(self.meaning(), Meaning::Discarding(_))
    }

    /// The slot holds nothing, as a device has it in the record of that number.
    pub(in crate::backend) fn discarded_by(sequence: u64) -> Entry {
        let bits = DISCARDED_KNOWN | sequence << PAYLOAD_SHIFT;
        Entry(bits | check_of(bits) << CHECK_SHIFT)
    }

    /// The object, if it is one.
    pub(in crate::backend) fn as_object(self) -> Option<Object> {
        match self.meaning() {
            Meaning::Object(object) => Some(object),
            _ => None,
        }
    }

    /// Ticks since the slot was last touched, 0 to [`OLDEST`]. Of objects only.
    pub(in crate::backend) fn age(self) -> u64 {
        (self.0 & AGE_MASK) >> AGE_SHIFT
    }

    /// One tick older.
    pub(in crate::backend) fn older(self) -> Entry {
        let age = (self.age() + 1).min(OLDEST);
        Entry(self.0 & !AGE_MASK | age << AGE_SHIFT)
    }

    /// Recompression was tried, and did not pay.
    pub(in crate::backend) fn was_tried(self) -> bool {
        self.0 & TRIED != 0
    }

    /// As [`Entry::was_tried`] from now on.
    pub(in crate::backend) fn tried(self) -> Entry {
        Entry(self.0 | TRIED)
    }

    /// As [`Entry::was_tried`] no more.
    pub(in crate::backend) fn not_tried(self) -> Entry {
        Entry(self.0 & !TRIED)
    }

    /// Of that age. Of objects only.
    pub(in crate::backend) fn with_age(self, age: u64) -> Entry {
        debug_assert!(age <= OLDEST);
        Entry(self.0 & !AGE_MASK | age << AGE_SHIFT)
    }

    /// This object's age and `tried`, for an entry that says where it went.
    pub(in crate::backend) fn with_history_of(self, other: Entry) -> Entry {
        Entry(self.0 | other.0 & (AGE_MASK | TRIED))
    }
}

const PARITY_SHIFT: u32 = 6;
/// Kind, length and place: what an object's check bits are over.
const PARITY_OVER: u64 = KIND_MASK | !0 << LENGTH_SHIFT;

/// Three bits of parity, of every third bit each: each flipped bit changes one of them.
fn parity_of(bits: u64) -> u64 {
    // Folded by multiples of three, so that thirds stay together.
    [48, 24, 12, 6, 3].into_iter().fold(bits & PARITY_OVER, |folded, by| folded ^ folded >> by) & 7
}

fn check_of(bits: u64) -> u64 {
    u64::from(crc32fast::hash(&bits.to_le_bytes()) & 0xff)
}

/// The checksum of a word that stands beside its entry.
pub(in crate::backend) fn word_checksum(word: u64) -> u32 {
    crc32fast::hash(&word.to_le_bytes())
}

/// Bytes of a [`word_object`].
pub(in crate::backend) const WORD_OBJECT_BYTES: usize = 45;

/// The LZ4 block of the page that `word` fills: the word, the same 4072 bytes on, and, since
/// a block ends with literals, the word twice. (lz4_Block_format.md)
pub(in crate::backend) fn word_object(word: u64) -> [u8; WORD_OBJECT_BYTES] {
    const MATCH: usize = 4096 - 8 - 16;
    // A length of 15 and more goes on in bytes of up to 255; a match is 4 longer than it says.
    const REST: usize = MATCH - 4 - 15;
    let mut block = [0xff; WORD_OBJECT_BYTES];
    let word = word.to_ne_bytes();
    block[0] = 8 << 4 | 15;
    block[1..9].copy_from_slice(&word);
    block[9..11].copy_from_slice(&8u16.to_le_bytes());
    // All 255 but the last one.
    let match_end = 11 + REST / 255 + 1;
    block[match_end - 1] = (REST % 255) as u8;
    block[match_end] = 15 << 4;
    block[match_end + 1] = 16 - 15;
    block[match_end + 2..match_end + 10].copy_from_slice(&word);
    block[match_end + 10..].copy_from_slice(&word);
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_bit_of_parity_is_that_of_every_third_bit() {
        for bit in 0..64 {
            let bits = 1u64 << bit;
            let expected = if bits & PARITY_OVER == 0 { 0 } else { 1 << (bit % 3) };
            assert_eq!(parity_of(bits), expected, "bit {bit}");
        }
    }

    #[test]
    fn words_that_fit_stand_in_the_entry() {
        for word in [
            0,
            1,
            0x0000_7fff_1234_5678,
            u64::MAX,
            u64::MAX - 5,
            0x3ff8_0000_0000_0000,
            0x5a5a_5a5a_5a5a_5a5a,
            0xdead_beef_dead_beef,
        ] {
            let (entry, beside) = Entry::same_filled(word);
            assert!(!beside, "{word:x}");
            assert_eq!(entry.meaning(), Meaning::SameFilled(word), "{word:x}");
        }
        let (entry, beside) = Entry::same_filled(0x1234_5678_9abc_def0);
        assert!(beside);
        let crc = word_checksum(0x1234_5678_9abc_def0);
        assert_eq!(entry.meaning(), Meaning::SameFilledBeside(crc));
    }

    #[test]
    fn a_discard_has_its_number() {
        let entry = Entry::discarded_by(0x1234_5678_9abc);
        assert_eq!(entry.meaning(), Meaning::Discarded(0x1234_5678_9abc));
        let unknown = Entry::discarding(77);
        assert!(unknown.meaning() == Meaning::Discarding(77) && unknown.is_unknown_discard());
        assert!(entry.is_absent() && Entry::DISCARDED.is_absent() && Entry::ABSENT.is_absent());
        for bit in 0..64 {
            assert!(!matches!(Entry(entry.0 ^ 1 << bit).meaning(), Meaning::Discarded(_)), "{bit}");
        }
    }

    #[test]
    fn a_buffered_word_is_the_same_word() {
        let (entry, _) = Entry::same_filled(77);
        let buffered = entry.buffered();
        assert_eq!(buffered.meaning(), Meaning::SameFilled(77));
        assert!(buffered.is_buffered() && !entry.is_buffered());
        assert!(!buffered.is_same_as(entry) && buffered.is_same_as(buffered));
    }

    #[test]
    fn a_word_has_the_place_of_its_record() {
        for word in [0, 77, 0xffff_ffff, u64::MAX, !0 << 20, 5 << 40, 0x7777_0001_7777_0001] {
            let entry = Entry::same_filled_at(word, 0xbeef).unwrap();
            assert_eq!((entry.meaning(), entry.tag()), (Meaning::SameFilled(word), Some(0xbeef)));
            let buffered = entry.buffered();
            assert!(buffered.is_buffered() && buffered.meaning() == Meaning::SameFilled(word));
        }
        assert_eq!(Entry::same_filled_at(0x0000_7fff_1234_5678, 0), None);
        assert_eq!(Entry::same_filled(77).0.tag(), None);
    }

    #[test]
    fn a_flipped_bit_of_a_same_filled_entry_is_no_other_word() {
        let mut unnoticed = 0;
        for word in [0, 0x41, u64::MAX, 0x3ff0_0000_0000_0000] {
            let (entry, _) = Entry::same_filled(word);
            for bit in 0..64 {
                let flipped = Entry(entry.0 ^ 1 << bit);
                unnoticed += u32::from(matches!(flipped.meaning(), Meaning::SameFilled(_)));
            }
        }
        assert_eq!(unnoticed, 0);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_of_an_object_names_no_other(
            number in 2..=4u8, location in 0..LOCATION_END, len in 1..=4096usize, bit in 0..64
        ) {
            let encoding = Encoding::from_number(number).unwrap();
            let object = Object { encoding, location, len };
            for entry in [Entry::object(object), Entry::shared_object(object)] {
                match Entry(entry.0 ^ 1u64 << bit).meaning() {
                    Meaning::Object(read) => prop_assert_eq!(read, object),
                    other => prop_assert!(!matches!(other, Meaning::Absent)),
                }
            }
        }

        #[test]
        fn the_object_of_a_word_is_its_page(word in any::<u64>()) {
            let mut page = [0; 4096];
            prop_assert!(crate::codec::decode(Encoding::Lz4, &word_object(word), &mut page));
            prop_assert_eq!(crate::codec::same_filled(&page), Some(word));
        }

        #[test]
        fn objects_come_back(
            number in 2..=4u8, location in 0..LOCATION_END, len in 1..=4096usize, ticks in 0..6u64
        ) {
            let encoding = Encoding::from_number(number).unwrap();
            let object = Object { encoding, location, len };
            let mut entry = Entry::object(object);
            for _ in 0..ticks {
                entry = entry.older();
            }
            prop_assert_eq!(entry.age(), ticks.min(OLDEST));
            prop_assert_eq!(entry.tried().as_object(), Some(object));
            let shared = Entry::shared_object(object).with_history_of(entry);
            prop_assert_eq!(shared.as_object(), Some(object));
            prop_assert!(shared.is_shared() && !entry.is_shared());
            prop_assert_eq!(shared.age(), entry.age());
            prop_assert!(!entry.was_tried() && entry.tried().was_tried());
        }

        #[test]
        fn any_word_comes_back_or_goes_beside(word in any::<u64>()) {
            let (entry, beside) = Entry::same_filled(word);
            match entry.meaning() {
                Meaning::SameFilled(read) => prop_assert!(!beside && read == word),
                Meaning::SameFilledBeside(crc) => prop_assert!(beside && crc == word_checksum(word)),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
