//! From a page to the bytes that are stored, and back.
//!
//! The codec runs once, in front of the storing tier; what it answers is an *object*'s encoding
//! and bytes. Each page goes the cheapest way that fits it:
//!
//! 1. same-filled (one 8-byte word over and over): the word, no bytes ([`same_filled`]);
//! 2. hopeless by a look at an eighth of it: raw, at the price of that look ([`looks_random`]);
//! 3. compressed by lz4 or zstd; raw after all if that saves less than a sixteenth.
//!
//! An [`Encoder`] owns all memory that this takes, so that encoding allocates nothing.

use std::cell::Cell;
use std::fmt;
use swapfs_format::PAGE_LEN;
use swapfs_format::types::Algorithm;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, FrameFormat};

/// How an object's bytes become a page again. The numbers stand in slot table entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// The page itself.
    Raw = 2,
    /// An LZ4 block.
    Lz4 = 3,
    /// A zstd frame without its magic number, content size and checksum.
    Zstd = 4,
}

impl Encoding {
    /// The encoding of that number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Encoding> {
        match number {
            2 => Some(Encoding::Raw),
            3 => Some(Encoding::Lz4),
            4 => Some(Encoding::Zstd),
            _ => None,
        }
    }
}

/// The most bytes that an object can have.
pub const MAX_OBJECT_BYTES: usize = PAGE_LEN;
/// A page that is longer than this when compressed is stored raw: decoding would cost more than
/// the few bytes are worth.
const RAW_FROM_BYTES: usize = PAGE_LEN - PAGE_LEN / 16;

/// What a page became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoded<'a> {
    /// Nothing but this word, over and over.
    SameFilled(u64),
    /// Bytes to be stored.
    Bytes(Encoding, &'a [u8]),
}

/// Compresses pages.
pub struct Encoder {
    algorithm: Algorithm,
    lz4: lz4_flex::block::CompressTable,
    zstd: Option<CCtx<'static>>,
    output: Box<[u8]>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoder({:?})", self.algorithm)
    }
}

impl Encoder {
    /// An encoder for `algorithm`, with all memory that it will ever use.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Encoder {
        let zstd = match algorithm {
            Algorithm::Lz4 => None,
            Algorithm::Zstd { level } => Some(zstd_encoder(level)),
        };
        let longest = lz4_flex::block::get_maximum_output_size(PAGE_LEN)
            .max(zstd_safe::compress_bound(PAGE_LEN));
        let lz4 = lz4_flex::block::CompressTable::small();
        let output = vec![0; longest].into_boxed_slice();
        let mut encoder = Encoder { algorithm, lz4, zstd, output };
        // zstd takes its memory when it is first used.
        let page: Vec<u8> = (0..PAGE_LEN).map(|i| (i * i / 7) as u8).collect();
        encoder.compress(&page);
        encoder
    }

    /// Encodes one page.
    pub fn encode<'a>(&'a mut self, page: &'a [u8]) -> Encoded<'a> {
        if let Some(word) = same_filled(page) {
            return Encoded::SameFilled(word);
        }
        if looks_random(page) {
            return Encoded::Bytes(Encoding::Raw, page);
        }
        let (encoding, len) = self.compress(page);
        match len {
            Some(len) if len < RAW_FROM_BYTES => Encoded::Bytes(encoding, &self.output[..len]),
            _ => Encoded::Bytes(Encoding::Raw, page),
        }
    }

    /// Compresses into `output`; the length is `None` if that did not work.
    fn compress(&mut self, page: &[u8]) -> (Encoding, Option<usize>) {
        match &mut self.zstd {
            None => {
                let compress = lz4_flex::block::compress_into_with_table;
                (Encoding::Lz4, compress(page, &mut self.output, &mut self.lz4).ok())
            }
            Some(zstd) => (Encoding::Zstd, zstd.compress2(&mut self.output[..], page).ok()),
        }
    }
}

fn zstd_encoder(level: i32) -> CCtx<'static> {
    let mut context = CCtx::create();
    for parameter in [
        CParameter::CompressionLevel(level),
        CParameter::Format(FrameFormat::Magicless),
        CParameter::ContentSizeFlag(false),
        CParameter::ChecksumFlag(false),
        CParameter::DictIdFlag(false),
    ] {
        // Only a level out of range could be refused, and zstd clamps that.
        let set = context.set_parameter(parameter);
        debug_assert!(set.is_ok());
    }
    context
}

/// Decompresses what [`Encoder`]s made.
pub struct Decoder {
    zstd: DCtx<'static>,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decoder")
    }
}

impl Default for Decoder {
    fn default() -> Decoder {
        let mut zstd = DCtx::create();
        let set = zstd.set_parameter(DParameter::Format(FrameFormat::Magicless));
        debug_assert!(set.is_ok());
        Decoder { zstd }
    }
}

impl Decoder {
    /// Decodes a zstd object into one page; false if the bytes are not one page.
    #[must_use]
    pub fn decode_zstd(&mut self, bytes: &[u8], page: &mut [u8]) -> bool {
        count_decode();
        self.zstd.decompress(page, bytes) == Ok(PAGE_LEN)
    }
}

/// Decodes an object that needs no [`Decoder`], raw or lz4, into one page; false if the bytes
/// are not one page.
#[must_use]
pub fn decode(encoding: Encoding, bytes: &[u8], page: &mut [u8]) -> bool {
    count_decode();
    match encoding {
        Encoding::Raw if bytes.len() == page.len() => {
            page.copy_from_slice(bytes);
            true
        }
        Encoding::Lz4 => matches!(lz4_flex::block::decompress_into(bytes, page), Ok(PAGE_LEN)),
        _ => false,
    }
}

thread_local! {
    static DECODES: Cell<u64> = const { Cell::new(0) };
}

fn count_decode() {
    DECODES.with(|decodes| decodes.set(decodes.get() + 1));
}

/// How many objects this thread has decoded: a thread that moves objects has no need to.
#[must_use]
pub fn decodes_of_this_thread() -> u64 {
    DECODES.with(Cell::get)
}

/// The checksum that goes with an object: CRC-32 of its bytes and its encoding.
#[must_use]
pub fn checksum(encoding: Encoding, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(encoding as u32);
    hasher.update(bytes);
    hasher.finalize()
}

/// The word that fills the page from end to end, if one does.
#[must_use]
pub fn same_filled(page: &[u8]) -> Option<u64> {
    let (words, rest) = page.as_chunks::<8>();
    let (first, last) = (words.first()?, words.last()?);
    // Most pages differ here already.
    if first != last || !rest.is_empty() {
        return None;
    }
    let word = u64::from_ne_bytes(*first);
    // Blocks of 64 bytes without a branch inside, which the compiler turns into vectors.
    let same = words.chunks(8).all(|block| {
        block.iter().fold(0, |differ, other| differ | (u64::from_ne_bytes(*other) ^ word)) == 0
    });
    same.then_some(word)
}

/// Bytes from sample to sample, and of each sample.
const SAMPLE_STEP_BYTES: usize = 32;
/// Sums of squares of byte counts up to this are those of random bytes. 512 of them have 1534 on
/// the average, with a standard deviation of 45.
const RANDOM_SQUARES: u32 = 1850;

/// Does the page look like random bytes (encrypted or compressed data)?
///
/// A look at 4 bytes of every 32: random bytes are all about as frequent as each other, and no
/// word comes again. Data that is neither text nor numbers nor code, and that repeats only at
/// odd distances, is taken for random too: it costs its compression, never its contents.
#[must_use]
pub fn looks_random(page: &[u8]) -> bool {
    let mut counts = [0u8; 256];
    let mut seen = [0u32; 256];
    let mut repeats = 0;
    for sample in page.chunks_exact(SAMPLE_STEP_BYTES) {
        let word = u32::from_le_bytes([sample[0], sample[1], sample[2], sample[3]]);
        for byte in word.to_le_bytes() {
            // 128 samples of 4 bytes: 512 at most, so it saturates far above what is random.
            counts[usize::from(byte)] = counts[usize::from(byte)].saturating_add(1);
        }
        let bucket = (word.wrapping_mul(0x9e37_79b1) >> 24) as usize;
        repeats += u32::from(seen[bucket] == word);
        seen[bucket] = word;
    }
    let squares: u32 = counts.iter().map(|&count| u32::from(count) * u32::from(count)).sum();
    squares <= RANDOM_SQUARES && repeats < 2
}

#[cfg(test)]
mod tests;
