//! Which node of a cluster has which keys.

use super::failure::Failure;
use redis::Value;

/// Hash slots of a cluster.
const SLOTS: usize = 16384;
/// No node is known for a slot.
const NONE: u16 = u16::MAX;

/// A node's host and port, as the cluster tells them.
pub(super) type Address = (String, u16);

/// The masters of a cluster, and what each has.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    masters: Vec<Address>,
    of: Box<[u16]>,
}

/// The hash slot of a key without braces: its CRC-16 (XMODEM), of which 14 bits are used.
pub(super) fn slot_of(key: &[u8]) -> usize {
    let crc = key.iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            if crc & 0x8000 != 0 { crc << 1 ^ 0x1021 } else { crc << 1 }
        })
    });
    usize::from(crc) % SLOTS
}

impl Slots {
    /// Reads the answer to `CLUSTER SLOTS` of the node `host`.
    ///
    /// # Errors
    /// If it makes no sense.
    pub(super) fn read(value: &Value, host: &str) -> Result<Slots, Failure> {
        let odd = || Failure::odd("an odd answer to CLUSTER SLOTS");
        let Value::Array(ranges) = value else { return Err(odd()) };
        let mut slots = Slots { masters: Vec::new(), of: vec![NONE; SLOTS].into() };
        for range in ranges {
            let Value::Array(fields) = range else { return Err(odd()) };
            let (Some(Value::Int(first)), Some(Value::Int(last))) = (fields.first(), fields.get(1))
            else {
                return Err(odd());
            };
            let (Ok(first), Ok(last)) = (usize::try_from(*first), usize::try_from(*last)) else {
                return Err(odd());
            };
            if first > last || last >= SLOTS || fields.len() < 3 {
                return Err(odd());
            }
            for node in &fields[2..] {
                node_address(node, host).ok_or_else(odd)?;
            }
            let master = node_address(&fields[2], host).ok_or_else(odd)?;
            // No node is known for these: they are asked for at another node.
            let Some(master) = master else { continue };
            let index = match slots.masters.iter().position(|known| *known == master) {
                Some(index) => index,
                None => {
                    slots.masters.push(master);
                    slots.masters.len() - 1
                }
            };
            slots.of[first..=last].fill(u16::try_from(index).map_err(|_| odd())?);
        }
        if slots.masters.is_empty() { Err(odd()) } else { Ok(slots) }
    }

    /// Which of the masters has a slot.
    pub(super) fn master_of(&self, slot: usize) -> Option<usize> {
        self.of.get(slot).filter(|index| **index != NONE).map(|index| usize::from(*index))
    }

    /// All masters.
    pub(super) fn masters(&self) -> &[Address] {
        &self.masters
    }
}

/// A node's address, as the crate takes it too; `Some(None)`: the cluster does not know it.
fn node_address(node: &Value, host: &str) -> Option<Option<Address>> {
    let Value::Array(fields) = node else { return None };
    let Some(Value::Int(port)) = fields.get(1) else { return None };
    let port = u16::try_from(*port).ok().filter(|port| *port > 0)?;
    match fields.first()? {
        Value::Nil => Some(Some((host.to_owned(), port))),
        Value::BulkString(name) => match std::str::from_utf8(name).ok()? {
            "?" => Some(None),
            "" | "0.0.0.0" | "::" => Some(Some((host.to_owned(), port))),
            name => Some(Some((name.to_owned(), port))),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_keys() {
        assert_eq!(slot_of(b"123456789"), 0x31c3 % SLOTS);
        assert_eq!(slot_of(b""), 0);
    }

    #[test]
    fn odd_maps_are_refused() {
        let node = |host: &str, port| {
            Value::Array(vec![Value::BulkString(host.as_bytes().to_vec()), Value::Int(port)])
        };
        let range = |first, last, node: Value| {
            Value::Array(vec![Value::Int(first), Value::Int(last), node])
        };
        let good =
            Value::Array(vec![range(0, 99, node("10.0.0.1", 7)), range(100, 16383, node("", 8))]);
        let slots = Slots::read(&good, "here").unwrap();
        assert_eq!(slots.masters(), [("10.0.0.1".to_owned(), 7), ("here".to_owned(), 8)]);
        assert_eq!((slots.master_of(99), slots.master_of(16383)), (Some(0), Some(1)));
        for odd in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![range(5, 4, node("a", 1))]),
            Value::Array(vec![range(-1, 4, node("a", 1))]),
            Value::Array(vec![range(0, 16384, node("a", 1))]),
            Value::Array(vec![range(0, 1, node("a", 70000))]),
            Value::Array(vec![range(0, 1, Value::Nil)]),
        ] {
            assert!(Slots::read(&odd, "here").is_err(), "{odd:?}");
        }
    }
}
