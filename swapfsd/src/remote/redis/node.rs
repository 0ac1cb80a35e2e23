//! A connection to one server.

use super::failure::Failure;
use super::reply::{self, Reply};
use super::stream::Stream;
use redis::{Cmd, Value};
use std::time::Instant;

/// What is received at once, in bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// The longest value of an object that is taken from a server, in bytes.
pub(super) const OBJECT_BYTES: usize = 1 << 20;
/// The longest reply of any other kind, in bytes.
const STRUCTURE_BYTES: usize = 4 << 20;

/// A connection. Once anything has gone wrong on it, it is closed for good.
#[derive(Debug)]
pub(super) struct Node {
    stream: Option<Stream>,
    buffer: Vec<u8>,
    /// What has been received and not been looked at.
    start: usize,
    end: usize,
}

impl Node {
    pub(super) fn new(stream: Stream) -> Node {
        Node { stream: Some(stream), buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Whether nothing has gone wrong yet.
    pub(super) fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Whether it is still connected, and no reply has come that nobody waits for.
    pub(super) fn quiet(&self) -> bool {
        self.start == self.end && self.stream.as_ref().is_some_and(Stream::quiet)
    }

    /// Closes it.
    pub(super) fn close(&mut self) {
        self.stream = None;
        self.buffer = Vec::new();
        (self.start, self.end) = (0, 0);
    }

    fn stream(&mut self, until: Instant) -> Result<&mut Stream, Failure> {
        let closed = || Failure::new(libc::ENOTCONN, "the connection is closed");
        let stream = self.stream.as_mut().ok_or_else(closed)?;
        stream.set_deadline(until);
        Ok(stream)
    }

    /// Sends all of it.
    pub(super) fn send(&mut self, bytes: &[u8], until: Instant) -> Result<(), Failure> {
        let sent = self.stream(until)?.send(bytes).map_err(Failure::from);
        if sent.is_err() {
            self.close();
        }
        sent
    }

    /// Waits for the next reply of `limit` bytes at most, and answers what `read` makes of it.
    ///
    /// # Errors
    /// The connection is closed then; also if `read` fails.
    pub(super) fn receive<R>(
        &mut self,
        until: Instant,
        limit: usize,
        read: impl FnOnce(&Reply<'_>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let received = self.fill(until, limit).and_then(|()| {
            match reply::first(&self.buffer[self.start..self.end], limit)? {
                Some((reply, len)) => read(&reply).map(|result| (result, len)),
                None => Err(Failure::odd("a reply is not complete")),
            }
        });
        match received {
            Ok((result, len)) => {
                self.start += len;
                Ok(result)
            }
            Err(failure) => {
                self.close();
                Err(failure)
            }
        }
    }

    /// Receives until there is a whole reply.
    fn fill(&mut self, until: Instant, limit: usize) -> Result<(), Failure> {
        if self.buffer.is_empty() {
            self.buffer.resize(BUFFER_BYTES, 0);
        }
        while reply::first(&self.buffer[self.start..self.end], limit)?.is_none() {
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            if self.end == self.buffer.len() {
                // Somewhat more than the limit: the reply's own lines.
                if self.end > limit + 2 * BUFFER_BYTES {
                    return Err(Failure::odd("a reply is too long"));
                }
                self.buffer.resize(2 * self.end, 0);
            }
            let end = self.end;
            // The buffer is moved out so that both it and the stream can be used.
            let mut buffer = std::mem::take(&mut self.buffer);
            let received = match self.stream(until) {
                Ok(stream) => stream.receive(&mut buffer[end..]).map_err(Failure::from),
                Err(failure) => Err(failure),
            };
            self.buffer = buffer;
            self.end += received?;
        }
        Ok(())
    }

    /// Sends a command and waits for its reply, an error that the server answers among them.
    ///
    /// # Errors
    /// If there is none; the connection is closed then.
    pub(super) fn command(&mut self, command: &Cmd, until: Instant) -> Result<Value, Failure> {
        self.packed(&command.get_packed_command(), until)
    }

    /// As [`Node::command`], with the bytes of the command.
    pub(super) fn packed(&mut self, command: &[u8], until: Instant) -> Result<Value, Failure> {
        self.send(command, until)?;
        self.receive(until, STRUCTURE_BYTES, parse)
    }
}

/// A reply as the crate has it.
fn parse(reply: &Reply<'_>) -> Result<Value, Failure> {
    let parsed = match reply {
        Reply::Integer(number) => return Ok(Value::Int(*number)),
        Reply::Bulk(None) => return Ok(Value::Nil),
        Reply::Bulk(Some(bytes)) => return Ok(Value::BulkString(bytes.to_vec())),
        Reply::Array(bytes) => redis::parse_redis_value(bytes),
        Reply::Status(text) => redis::parse_redis_value(&line(b'+', text)),
        Reply::Error(text) => redis::parse_redis_value(&line(b'-', text)),
    };
    parsed.map_err(|error| Failure::odd(error.to_string()))
}

fn line(kind: u8, text: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(text.len() + 3);
    line.push(kind);
    line.extend_from_slice(text);
    line.extend_from_slice(b"\r\n");
    line
}
