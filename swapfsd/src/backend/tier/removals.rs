//! Objects on a server that nobody needs any more: noted where a page is overwritten, removed by a
//! thread that may wait for the network.

use crate::remote::Key;
use crate::sync::Mutex;
use crate::sys::memory::Mapping;
use std::io;
use swapfs_format::PAGE_LEN;

/// So many can be noted. What comes when it is full stays on the server until the unmount, or
/// `swapfs remote gc`.
const CAPACITY: usize = 128 << 10;

#[derive(Debug)]
struct Noted {
    keys: Option<Mapping>,
    first: usize,
    len: usize,
}

/// The notes.
#[derive(Debug)]
pub(super) struct Removals(Mutex<Noted>);

impl Removals {
    /// With all memory that it needs; none if it is not `wanted`.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(wanted: bool) -> io::Result<Removals> {
        let bytes = (CAPACITY * size_of::<Key>()).next_multiple_of(PAGE_LEN);
        let keys = wanted.then(|| Mapping::new(bytes, true)).transpose()?;
        Ok(Removals(Mutex::new(Noted { keys, first: 0, len: 0 })))
    }

    /// Notes one. False: there is no room.
    pub(super) fn push(&self, key: Key) -> bool {
        let mut noted = self.0.lock();
        if noted.len == CAPACITY {
            return false;
        }
        let Some(keys) = &noted.keys else { return false };
        let at = (noted.first + noted.len) % CAPACITY;
        // SAFETY: the mapping has CAPACITY keys.
        let place = unsafe { keys.as_ptr().cast::<Key>().add(at) };
        // SAFETY: inside the mapping, as just said; the lock is held.
        unsafe { place.write(key) };
        noted.len += 1;
        true
    }

    /// Takes some; answers how many.
    pub(super) fn take(&self, to: &mut [Key]) -> usize {
        let mut noted = self.0.lock();
        let count = noted.len.min(to.len());
        let Some(keys) = &noted.keys else { return 0 };
        for (index, to) in to[..count].iter_mut().enumerate() {
            let at = (noted.first + index) % CAPACITY;
            // SAFETY: the mapping has CAPACITY keys.
            let place = unsafe { keys.as_ptr().cast::<Key>().add(at) };
            // SAFETY: inside the mapping; `push` has written it; the lock is held.
            *to = unsafe { place.read() };
        }
        noted.first = (noted.first + count) % CAPACITY;
        noted.len -= count;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        Key { slot: number * 3, number }
    }

    #[test]
    fn they_come_back_in_order_round_the_end() {
        let removals = Removals::new(true).unwrap();
        let mut some = [key(0); 1000];
        for number in 0..CAPACITY as u64 {
            assert!(removals.push(key(number)));
        }
        assert!(!removals.push(key(0)), "it is full");
        assert_eq!(removals.take(&mut some), 1000);
        for number in CAPACITY as u64..CAPACITY as u64 + 1000 {
            assert!(removals.push(key(number)));
        }
        let mut expected = 1000;
        loop {
            let count = removals.take(&mut some);
            if count == 0 {
                break;
            }
            for found in &some[..count] {
                assert_eq!(*found, key(expected));
                expected += 1;
            }
        }
        assert_eq!(expected, CAPACITY as u64 + 1000);
        assert!(!Removals::new(false).unwrap().push(key(1)));
    }
}
