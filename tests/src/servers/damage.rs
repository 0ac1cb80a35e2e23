//! What a server answers, taken apart as far as it takes to answer something wrong instead.

use crate::rng::Rng;
use std::collections::VecDeque;
use std::ops::Range;

/// Strings shorter than that are no objects.
const SHORTEST_PAYLOAD_BYTES: usize = 64;
/// Earlier payloads that are remembered.
const REMEMBERED: usize = 64;

const NBD_GREETING_BYTES: usize = 18;
const NBD_OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const NBD_OPTION_REPLY_BYTES: usize = 20;
const NBD_OPTION_GO: u32 = 7;
const NBD_REPLY_ACK: u32 = 1;
const NBD_STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const NBD_STRUCTURED_BYTES: usize = 20;
const NBD_SIMPLE_MAGIC: u32 = 0x6744_6698;
const NBD_SIMPLE_BYTES: usize = 16;
const NBD_CHUNK_DATA: u16 = 1;
/// In front of the data of such a chunk: where on the export it is from.
const NBD_CHUNK_OFFSET_BYTES: usize = 8;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Redis: strings are payloads.
    Redis,
    /// NBD with structured replies: what was read is payload.
    Nbd,
}

/// What is done to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// A bit of the payload is another one.
    Flip,
    /// A bit of anything is another one: of a length, a kind, a number of a request.
    FlipAnywhere,
    /// The payload is one that was answered before, by the right length.
    Earlier,
    /// The payload has half of its bytes, and says so.
    Shorten,
    /// There is nothing there, it says. Of Redis only.
    Absent,
}

/// A part of what the server has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Where in it an object or a block is.
    pub payload: Option<Range<usize>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NbdState {
    Greeting,
    Options,
    Transmission,
    /// Nobody knows what this is.
    Unknown,
}

/// Takes apart what comes in pieces of any length.
#[derive(Debug)]
pub struct Parser {
    protocol: Protocol,
    pending: Vec<u8>,
    nbd: NbdState,
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl Parser {
    /// At the beginning of a connection.
    #[must_use]
    pub fn new(protocol: Protocol) -> Parser {
        Parser { protocol, pending: Vec::new(), nbd: NbdState::Greeting }
    }

    /// Takes some bytes, and answers all parts that are whole now.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Part> {
        self.pending.extend_from_slice(bytes);
        let mut parts = Vec::new();
        let mut at = 0;
        while let Some((length, payload)) = self.next(at) {
            parts.push(Part { bytes: self.pending[at..at + length].to_vec(), payload });
            at += length;
        }
        self.pending.drain(..at);
        parts
    }

    /// Length and payload of the part at `at`, if it is whole.
    fn next(&mut self, at: usize) -> Option<(usize, Option<Range<usize>>)> {
        let rest = &self.pending[at..];
        if rest.is_empty() {
            return None;
        }
        let (length, payload) = match self.protocol {
            Protocol::Redis => redis_part(rest)?,
            Protocol::Nbd => nbd_part(rest, &mut self.nbd)?,
        };
        (rest.len() >= length).then_some((length, payload))
    }
}

fn redis_part(rest: &[u8]) -> Option<(usize, Option<Range<usize>>)> {
    let line = rest.windows(2).position(|two| two == b"\r\n")? + 2;
    if rest[0] != b'$' {
        return Some((line, None));
    }
    let text = std::str::from_utf8(&rest[1..line - 2]).unwrap_or("");
    let Ok(length) = text.parse::<usize>() else { return Some((line, None)) };
    let payload = (length >= SHORTEST_PAYLOAD_BYTES).then_some(line..line + length);
    Some((line + length + 2, payload))
}

fn nbd_part(rest: &[u8], state: &mut NbdState) -> Option<(usize, Option<Range<usize>>)> {
    // The first eight bytes tell what it is; in the transmission phase no part is shorter.
    if rest.len() < 8 && *state != NbdState::Unknown {
        return None;
    }
    match *state {
        NbdState::Greeting => {
            if rest.len() < NBD_GREETING_BYTES {
                return None;
            }
            *state = NbdState::Options;
            Some((NBD_GREETING_BYTES, None))
        }
        NbdState::Options if big_endian(&rest[..8]) == NBD_OPTION_REPLY_MAGIC => {
            let header = rest.get(..NBD_OPTION_REPLY_BYTES)?;
            let number = |at: usize| big_endian(&header[at..at + 4]) as u32;
            let length = NBD_OPTION_REPLY_BYTES + number(16) as usize;
            if rest.len() < length {
                return None;
            }
            if (number(8), number(12)) == (NBD_OPTION_GO, NBD_REPLY_ACK) {
                *state = NbdState::Transmission;
            }
            Some((length, None))
        }
        NbdState::Transmission if big_endian(&rest[..4]) as u32 == NBD_STRUCTURED_MAGIC => {
            let header = rest.get(..NBD_STRUCTURED_BYTES)?;
            let length = NBD_STRUCTURED_BYTES + big_endian(&header[16..]) as usize;
            let is_data = big_endian(&header[6..8]) as u16 == NBD_CHUNK_DATA;
            let start = NBD_STRUCTURED_BYTES + NBD_CHUNK_OFFSET_BYTES;
            Some((length, (is_data && length > start).then_some(start..length)))
        }
        // With structured replies agreed on, data never comes in one of these.
        NbdState::Transmission if big_endian(&rest[..4]) as u32 == NBD_SIMPLE_MAGIC => {
            Some((NBD_SIMPLE_BYTES, None))
        }
        _ => {
            *state = NbdState::Unknown;
            Some((rest.len(), None))
        }
    }
}

/// Answers wrongly.
#[derive(Debug)]
pub struct Damager {
    protocol: Protocol,
    rng: Rng,
    earlier: VecDeque<Vec<u8>>,
}

impl Damager {
    /// One that has seen nothing yet.
    #[must_use]
    pub fn new(protocol: Protocol, seed: u64) -> Damager {
        Damager { protocol, rng: Rng::new(seed), earlier: VecDeque::new() }
    }

    /// Once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.rng.one_in(times)
    }

    /// Remembers a payload.
    pub fn see(&mut self, part: &Part) {
        if let Some(range) = part.payload.clone() {
            self.earlier.push_back(part.bytes[range].to_vec());
            if self.earlier.len() > REMEMBERED {
                self.earlier.pop_front();
            }
        }
    }

    /// What is sent instead of `part`; `None` if there is nothing wrong to be said here.
    pub fn damage(&mut self, part: &Part, damage: Damage) -> Option<Vec<u8>> {
        let mut bytes = part.bytes.clone();
        if damage == Damage::FlipAnywhere {
            self.flip(&mut bytes);
            return Some(bytes);
        }
        let range = part.payload.clone()?;
        let payload = bytes[range.clone()].to_vec();
        match damage {
            Damage::Flip => {
                self.flip(&mut bytes[range]);
                Some(bytes)
            }
            Damage::Earlier => {
                let others: Vec<&Vec<u8>> = self
                    .earlier
                    .iter()
                    .filter(|other| **other != payload)
                    .filter(|other| {
                        self.protocol == Protocol::Redis || other.len() == payload.len()
                    })
                    .collect();
                let other = others.get(self.rng.below(others.len() as u64) as usize)?;
                Some(self.framed(&bytes[..range.start], other))
            }
            Damage::Shorten => {
                Some(self.framed(&bytes[..range.start], &payload[..payload.len() / 2]))
            }
            Damage::Absent if self.protocol == Protocol::Redis => Some(b"$-1\r\n".to_vec()),
            Damage::Absent | Damage::FlipAnywhere => None,
        }
    }

    fn flip(&mut self, bytes: &mut [u8]) {
        let bit = self.rng.below(bytes.len() as u64 * 8) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
    }

    /// Another payload, with a header that is right for it.
    fn framed(&self, header: &[u8], payload: &[u8]) -> Vec<u8> {
        match self.protocol {
            Protocol::Redis => {
                [format!("${}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat()
            }
            Protocol::Nbd => {
                let length = (NBD_CHUNK_OFFSET_BYTES + payload.len()) as u32;
                let (front, offset) = (&header[..16], &header[NBD_STRUCTURED_BYTES..]);
                [front, &length.to_be_bytes(), offset, payload].concat()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fed byte by byte, and all at once: the same parts, and no byte is lost.
    fn parts(protocol: Protocol, bytes: &[u8]) -> Vec<Part> {
        let whole = Parser::new(protocol).feed(bytes);
        let mut parser = Parser::new(protocol);
        let single: Vec<Part> = bytes.iter().flat_map(|byte| parser.feed(&[*byte])).collect();
        assert_eq!(whole, single);
        assert_eq!(whole.iter().flat_map(|part| part.bytes.clone()).collect::<Vec<_>>(), bytes);
        whole
    }

    fn redis(object: &[u8]) -> Vec<u8> {
        [format!("${}\r\n", object.len()).as_bytes(), object, b"\r\n"].concat()
    }

    #[test]
    fn redis_is_taken_apart_and_put_together_wrongly() {
        let (one, two) = (redis(&[1; 100]), redis(&[2; 200]));
        let all =
            [b"*4\r\n+OK\r\n:12\r\n$-1\r\n".as_slice(), &one, &redis(b"short"), &two].concat();
        let parts = parts(Protocol::Redis, &all);
        let payloads: Vec<_> = parts.iter().filter(|part| part.payload.is_some()).collect();
        assert_eq!((parts.len(), payloads.len()), (7, 2));
        let mut damager = Damager::new(Protocol::Redis, 1);
        damager.see(payloads[0]);
        assert_eq!(damager.damage(payloads[0], Damage::Earlier), None);
        assert_eq!(damager.damage(payloads[1], Damage::Earlier).unwrap(), one);
        assert_eq!(damager.damage(payloads[1], Damage::Shorten).unwrap(), redis(&[2; 100]));
        assert_eq!(damager.damage(payloads[1], Damage::Absent).unwrap(), b"$-1\r\n");
        assert_eq!(damager.damage(&parts[0], Damage::Flip), None);
        let flipped = damager.damage(payloads[1], Damage::Flip).unwrap();
        assert_eq!(flipped.iter().zip(&two).filter(|(a, b)| a != b).count(), 1);
        assert_eq!(flipped[..6], two[..6]);
        assert!(damager.damage(&parts[1], Damage::FlipAnywhere).is_some());
    }

    fn chunk(kind: u16, offset: u64, data: &[u8]) -> Vec<u8> {
        let mut bytes = NBD_STRUCTURED_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 1]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([7; 8]);
        bytes.extend((8 + data.len() as u32).to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn nbd_is_taken_apart_and_put_together_wrongly() {
        let mut all = vec![0; NBD_GREETING_BYTES];
        for (option, kind, data) in [(8, 1, 0), (7, 3, 12), (7, 1, 0)] {
            all.extend(NBD_OPTION_REPLY_MAGIC.to_be_bytes());
            all.extend(u32::to_be_bytes(option));
            all.extend(u32::to_be_bytes(kind));
            all.extend(u32::to_be_bytes(data));
            all.extend(vec![0; data as usize]);
        }
        let (one, two) = (chunk(1, 4096, &[1; 512]), chunk(1, 8192, &[2; 512]));
        let simple = [&NBD_SIMPLE_MAGIC.to_be_bytes()[..], &[0; 12]].concat();
        let all = [all, one, chunk(5, 0, &[]), simple, two].concat();
        let parts = parts(Protocol::Nbd, &all);
        let payloads: Vec<_> = parts.iter().filter(|part| part.payload.is_some()).collect();
        assert_eq!((parts.len(), payloads.len()), (8, 2));
        let mut damager = Damager::new(Protocol::Nbd, 1);
        damager.see(payloads[0]);
        let earlier = damager.damage(payloads[1], Damage::Earlier).unwrap();
        assert_eq!(earlier, chunk(1, 8192, &[1; 512]));
        let shortened = damager.damage(payloads[1], Damage::Shorten).unwrap();
        assert_eq!(shortened, chunk(1, 8192, &[2; 256]));
    }
}
