//! A request: what of it is still to be done, its commands, and what their replies mean.

use super::counters::{Counters, count};
use super::failure::{self, Failure, Meaning};
use super::node::{Node, OBJECT_BYTES};
use super::reply::Reply;
use super::slots::Address;
use crate::remote::Key;
use std::ops::Range;
use std::time::Instant;
use uuid::Uuid;

/// Bytes of commands that are sent before their replies are awaited.
const WINDOW_BYTES: usize = 320 << 10;
/// Objects that are asked for before their replies are awaited.
const WINDOW_OBJECTS: usize = 64;

/// What the keys of a run start with.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
    mark: String,
}

impl Names {
    pub(super) fn new(volume: Uuid, run: u64) -> Names {
        let prefix = format!("{}{run:016x}:", volume_prefix(volume));
        Names { prefix, mark: format!("{}mark", volume_prefix(volume)) }
    }

    /// The key of the mark that the volume is in use.
    pub(super) fn mark(&self) -> &str {
        &self.mark
    }
}

/// What all keys of a volume start with.
pub(super) fn volume_prefix(volume: Uuid) -> String {
    format!("swapfs:{}:", volume.hyphenated())
}

/// A key as the servers have it.
struct Name {
    bytes: [u8; 128],
    len: usize,
}

impl Name {
    fn push(&mut self, bytes: &[u8]) {
        let end = (self.len + bytes.len()).min(self.bytes.len());
        let room = end - self.len;
        self.bytes[self.len..end].copy_from_slice(&bytes[..room]);
        self.len = end;
    }

    fn push_hex(&mut self, number: u64) {
        let digits = (64 - (number | 1).leading_zeros()).div_ceil(4);
        for digit in (0..digits).rev() {
            self.push(&[b"0123456789abcdef"[(number >> (4 * digit)) as usize & 15]]);
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Objects<'a> {
    Put(&'a [(Key, &'a [u8])]),
    Get(&'a [Key]),
    Remove(&'a [Key]),
}

impl Objects<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Objects::Put(objects) => objects.len(),
            Objects::Get(keys) | Objects::Remove(keys) => keys.len(),
        }
    }
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done, or never will be.
    Settled,
    /// To be tried again later.
    Later,
    /// To be asked for at another node.
    Elsewhere,
}

/// A request under way.
pub(super) struct Work<'a> {
    objects: Objects<'a>,
    each: &'a mut dyn FnMut(usize, Option<&[u8]>),
    names: &'a Names,
    replicas: u32,
    counters: &'a Counters,
    /// Indexes of what is not done yet, in order.
    pending: Vec<u32>,
    done: Vec<bool>,
    /// Why the request fails, whatever else happens.
    pub(super) fatal: Option<Failure>,
    /// What went wrong last with something that is tried again.
    pub(super) trouble: Option<Failure>,
    /// Why replicas have not acknowledged what their masters have.
    unreplicated: Option<Failure>,
    /// The masters that something could not be done at, in the last attempt.
    pub(super) stuck: Vec<Address>,
    /// The masters that were asked, in the last attempt; told for clusters.
    pub(super) asked: Vec<Address>,
    /// The masters that are not to be asked.
    pub(super) given_up: Vec<Address>,
}

fn push_number(out: &mut Vec<u8>, kind: u8, mut number: usize) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.push(kind);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// Adds a command to `out`, as it goes over the wire.
pub(super) fn push_command(out: &mut Vec<u8>, arguments: &[&[u8]]) {
    push_number(out, b'*', arguments.len());
    for argument in arguments {
        push_number(out, b'$', argument.len());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

impl<'a> Work<'a> {
    pub(super) fn new(
        objects: Objects<'a>,
        each: &'a mut dyn FnMut(usize, Option<&[u8]>),
        names: &'a Names,
        replicas: u32,
        counters: &'a Counters,
    ) -> Work<'a> {
        let replicas = if matches!(objects, Objects::Put(_)) { replicas } else { 0 };
        let (pending, done) = ((0..objects.len() as u32).collect(), vec![false; objects.len()]);
        let (fatal, trouble, stuck, asked) = (None, None, Vec::new(), Vec::new());
        Work {
            objects,
            each,
            names,
            replicas,
            counters,
            pending,
            done,
            fatal,
            trouble,
            unreplicated: None,
            stuck,
            asked,
            given_up: Vec::new(),
        }
    }

    /// What went wrong before counts no more.
    pub(super) fn begin_attempt(&mut self) {
        (self.trouble, self.unreplicated) = (None, None);
        self.stuck.clear();
    }

    /// Why it fails: masters that have all answered, the last time that they were asked, are not gone
    /// because replicas don't.
    pub(super) fn why(&mut self, failure: Failure) -> Failure {
        match self.unreplicated.take() {
            Some(unreplicated) if self.trouble.is_none() && self.stuck.is_empty() => unreplicated,
            _ => failure,
        }
    }

    /// Before another attempt: what is left to be done.
    pub(super) fn left(&mut self) -> usize {
        let done = &self.done;
        self.pending.retain(|index| !done.get(*index as usize).copied().unwrap_or(true));
        self.pending.len()
    }

    /// What is left, in parts that are sent before replies are awaited.
    pub(super) fn windows(&mut self) -> Vec<Vec<u32>> {
        self.left();
        let mut windows = Vec::new();
        let mut bytes = 0;
        let mut window: Vec<u32> = Vec::new();
        for index in &self.pending {
            let own = match self.objects {
                Objects::Put(objects) => objects.get(*index as usize).map_or(0, |(_, v)| v.len()),
                Objects::Get(_) | Objects::Remove(_) => 0,
            };
            let full = bytes + own > WINDOW_BYTES || window.len() >= WINDOW_OBJECTS;
            if full && !window.is_empty() {
                windows.push(std::mem::take(&mut window));
                bytes = 0;
            }
            bytes += own;
            window.push(*index);
        }
        if !window.is_empty() {
            windows.push(window);
        }
        windows
    }

    fn name(&self, index: u32) -> Name {
        let index = index as usize;
        let key = match self.objects {
            Objects::Put(objects) => objects[index].0,
            Objects::Get(keys) | Objects::Remove(keys) => keys[index],
        };
        let mut name = Name { bytes: [0; 128], len: 0 };
        name.push(self.names.prefix.as_bytes());
        name.push_hex(key.slot);
        name.push(b":");
        name.push_hex(key.number);
        name
    }

    /// The hash slot of an object's key.
    pub(super) fn slot(&self, index: u32) -> usize {
        super::slots::slot_of(self.name(index).as_bytes())
    }

    /// Adds an object's command.
    pub(super) fn encode(&self, index: u32, out: &mut Vec<u8>) {
        let name = self.name(index);
        match self.objects {
            Objects::Put(objects) => {
                push_command(out, &[b"SET", name.as_bytes(), objects[index as usize].1]);
            }
            Objects::Get(_) => push_command(out, &[b"GET", name.as_bytes()]),
            Objects::Remove(_) => push_command(out, &[b"UNLINK", name.as_bytes()]),
        }
    }

    /// An object's command as the crate takes it.
    pub(super) fn command(&self, index: u32) -> redis::Cmd {
        let name = self.name(index);
        let mut command = redis::Cmd::new();
        match self.objects {
            Objects::Put(objects) => {
                command.arg("SET").arg(name.as_bytes()).arg(objects[index as usize].1)
            }
            Objects::Get(_) => command.arg("GET").arg(name.as_bytes()),
            Objects::Remove(_) => command.arg("UNLINK").arg(name.as_bytes()),
        };
        command
    }

    /// Takes the reply to an object's command. Where replicas are waited for, an object that was
    /// put is done only by [`Work::replicated`].
    ///
    /// # Errors
    /// If it is none that the command can have: what follows can't be trusted.
    pub(super) fn answer(&mut self, index: u32, reply: &Reply<'_>) -> Result<Outcome, Failure> {
        let counters = self.counters;
        match (self.objects, reply) {
            (_, Reply::Error(text)) => {
                let failure = failure::answered(text);
                return Ok(match failure::meaning(text) {
                    Meaning::Later => {
                        self.trouble = Some(failure);
                        Outcome::Later
                    }
                    Meaning::Elsewhere => {
                        count(&counters.redirects, 1);
                        self.trouble = Some(failure);
                        Outcome::Elsewhere
                    }
                    Meaning::Never(_) => {
                        self.fatal.get_or_insert(failure);
                        Outcome::Settled
                    }
                });
            }
            (Objects::Put(objects), Reply::Status(b"OK")) => {
                if self.replicas > 0 {
                    return Ok(Outcome::Settled);
                }
                count(&counters.put_objects, 1);
                count(&counters.put_bytes, objects[index as usize].1.len() as u64);
            }
            (Objects::Get(_), Reply::Bulk(value)) => {
                match value {
                    Some(bytes) => {
                        count(&counters.got_objects, 1);
                        count(&counters.got_bytes, bytes.len() as u64);
                    }
                    None => count(&counters.missing_objects, 1),
                }
                self.done[index as usize] = true;
                (self.each)(index as usize, *value);
            }
            (Objects::Remove(_), Reply::Integer(0 | 1)) => count(&counters.removed_objects, 1),
            _ => return Err(Failure::odd("a reply that the command can't have")),
        }
        self.done[index as usize] = true;
        Ok(Outcome::Settled)
    }

    /// Takes a reply as the crate has it.
    pub(super) fn answer_value(
        &mut self,
        index: u32,
        value: &redis::Value,
    ) -> Result<Outcome, Failure> {
        match value {
            redis::Value::Okay => self.answer(index, &Reply::Status(b"OK")),
            redis::Value::Nil => self.answer(index, &Reply::Bulk(None)),
            redis::Value::Int(number) => self.answer(index, &Reply::Integer(*number)),
            redis::Value::BulkString(bytes) => self.answer(index, &Reply::Bulk(Some(bytes))),
            _ => Err(Failure::odd("a reply that the command can't have")),
        }
    }

    /// How many replicas must acknowledge what is put; 0: none, or nothing is put.
    pub(super) fn replicas(&self) -> u32 {
        self.replicas
    }

    /// Adds the command that waits for replicas.
    pub(super) fn encode_wait(&self, out: &mut Vec<u8>, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        // The answer must come while we are still there.
        let ms = (left - left / 8).as_millis().max(1).to_string();
        push_command(out, &[b"WAIT", self.replicas.to_string().as_bytes(), ms.as_bytes()]);
    }

    /// Takes the answer of replicas about objects that their master has acknowledged.
    pub(super) fn replicated(&mut self, stored: &[u32], reply: &Reply<'_>) -> Result<(), Failure> {
        match reply {
            Reply::Integer(number) if *number >= i64::from(self.replicas) => {
                for index in stored {
                    self.done[*index as usize] = true;
                    count(&self.counters.put_objects, 1);
                    if let Objects::Put(objects) = self.objects {
                        let bytes = objects[*index as usize].1.len();
                        count(&self.counters.put_bytes, bytes as u64);
                    }
                }
                Ok(())
            }
            Reply::Integer(number) => {
                let text = format!("{number} of {} replicas have acknowledged", self.replicas);
                self.unreplicated = Some(Failure::new(libc::ENOSPC, text));
                Ok(())
            }
            Reply::Error(text) => {
                let failure = failure::answered(text);
                match failure::meaning(text) {
                    Meaning::Never(_) => drop(self.fatal.get_or_insert(failure)),
                    _ => self.trouble = Some(failure),
                }
                Ok(())
            }
            _ => Err(Failure::odd("an odd answer to WAIT")),
        }
    }

    /// Waits for the replies of commands that were sent to a node, and what replicas say. Answers
    /// which are to be asked for elsewhere; `Later` among them is told by `self.stuck`.
    pub(super) fn receive(
        &mut self,
        node: &mut Node,
        indexes: &[u32],
        until: Instant,
        address: Option<&Address>,
    ) -> Result<Vec<u32>, Failure> {
        let mut elsewhere = Vec::new();
        let mut stored = Vec::new();
        for index in indexes {
            match node.receive(until, OBJECT_BYTES, |reply| self.answer(*index, reply))? {
                Outcome::Settled if self.replicas > 0 => stored.push(*index),
                Outcome::Settled => {}
                Outcome::Later => self.stuck.extend(address.cloned()),
                Outcome::Elsewhere => elsewhere.push(*index),
            }
        }
        if self.replicas > 0 {
            if self.fatal.is_some() {
                stored.clear();
            }
            node.receive(until, OBJECT_BYTES, |reply| self.replicated(&stored, reply))?;
        }
        Ok(elsewhere)
    }

    /// Sends the commands of some objects to a node, by one write.
    pub(super) fn send(
        &self,
        node: &mut Node,
        indexes: Range<usize>,
        window: &[u32],
        until: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        out.clear();
        for index in &window[indexes] {
            self.encode(*index, out);
        }
        if self.replicas > 0 {
            self.encode_wait(out, until);
        }
        node.send(out, until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_commands() {
        let volume = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
        let names = Names::new(volume, 0xab);
        let counters = Counters::default();
        let objects: [(Key, &[u8]); 2] =
            [(Key { slot: 0x1f, number: 0 }, b"x"), (Key { slot: 1, number: u64::MAX }, b"")];
        let mut each = |_: usize, _: Option<&[u8]>| {};
        let work = Work::new(Objects::Put(&objects), &mut each, &names, 0, &counters);
        let mut out = Vec::new();
        work.encode(0, &mut out);
        let key = "swapfs:12345678-9abc-def0-1234-56789abcdef0:00000000000000ab:1f:0";
        let text = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n$1\r\nx\r\n", key.len());
        assert_eq!(String::from_utf8(out).unwrap(), text);
        for index in 0..2 {
            let mut out = Vec::new();
            work.encode(index, &mut out);
            assert_eq!(out, work.command(index).get_packed_command());
        }
        assert!(names.mark().ends_with("def0:mark"));
    }

    #[test]
    fn windows_are_bounded() {
        let names = Names::new(Uuid::nil(), 0);
        let counters = Counters::default();
        let value = vec![0u8; 100 << 10];
        let objects: Vec<(Key, &[u8])> =
            (0..10).map(|slot| (Key { slot, number: 0 }, &value[..])).collect();
        let mut each = |_: usize, _: Option<&[u8]>| {};
        let mut work = Work::new(Objects::Put(&objects), &mut each, &names, 0, &counters);
        let windows = work.windows();
        assert_eq!(windows.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3, 1]);
        assert_eq!(windows.concat(), (0..10).collect::<Vec<u32>>());
    }
}
