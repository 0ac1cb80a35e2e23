//! Bytes to and from a server, plain or by TLS, each system call of which ends by a deadline.

use super::failure::Failure;
use crate::sys::socket::{self, Waiting};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a system call waits at most; then the deadline is looked at again. Only near the
/// deadline the socket needs to be told another time.
const WAIT: Duration = Duration::from_millis(250);

/// A socket. Reads and writes fail with `TimedOut` once the deadline has passed, however many bytes
/// came until then.
#[derive(Debug)]
struct Wire {
    socket: TcpStream,
    until: Instant,
    read_wait: Duration,
    write_wait: Duration,
}

impl Wire {
    /// How long the next system call may wait.
    fn wait(&self) -> io::Result<Duration> {
        match self.until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(left.clamp(Duration::from_millis(1), WAIT)),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let wait = self.wait()?;
            if wait != self.read_wait {
                self.socket.set_read_timeout(Some(wait))?;
                self.read_wait = wait;
            }
            match self.socket.read(buffer) {
                Err(error) if again(&error) => {}
                done => return done,
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let wait = self.wait()?;
            if wait != self.write_wait {
                self.socket.set_write_timeout(Some(wait))?;
                self.write_wait = wait;
            }
            match self.socket.write(bytes) {
                Err(error) if again(&error) => {}
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Stream(Kind);

#[derive(Debug)]
enum Kind {
    Plain(Wire),
    Tls(Box<StreamOwned<ClientConnection, Wire>>),
}

impl Stream {
    /// Connects to the first of `addresses` that answers; with `tls`, the server must show that it
    /// is that name.
    ///
    /// # Errors
    /// Of the last address that was tried.
    pub(super) fn connect(
        addresses: &[SocketAddr],
        until: Instant,
        tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> Result<Stream, Failure> {
        let mut failure = Failure::new(libc::EHOSTUNREACH, "the name has no address");
        for address in addresses {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::time_out());
            }
            let socket = match TcpStream::connect_timeout(address, left) {
                Ok(socket) => socket,
                Err(error) => {
                    failure = Failure::from(error);
                    continue;
                }
            };
            socket.set_nodelay(true)?;
            let (read_wait, write_wait) = (Duration::ZERO, Duration::ZERO);
            let wire = Wire { socket, until, read_wait, write_wait };
            let Some((config, name)) = tls else { return Ok(Stream(Kind::Plain(wire))) };
            let tls = ClientConnection::new(config, name)
                .map_err(|error| Failure::new(libc::EACCES, error.to_string()))?;
            let mut stream = StreamOwned::new(tls, wire);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            return Ok(Stream(Kind::Tls(Box::new(stream))));
        }
        Err(failure)
    }

    fn wire(&self) -> &Wire {
        match &self.0 {
            Kind::Plain(wire) => wire,
            Kind::Tls(stream) => &stream.sock,
        }
    }

    /// From now on, reads and writes end by then.
    pub(super) fn set_deadline(&mut self, until: Instant) {
        match &mut self.0 {
            Kind::Plain(wire) => wire.until = until,
            Kind::Tls(stream) => stream.sock.until = until,
        }
    }

    /// Sends all of it.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Kind::Plain(wire) => wire.write_all(bytes),
            Kind::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    /// Receives some bytes, one at least.
    ///
    /// # Errors
    /// `UnexpectedEof` if the server has closed the connection.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let received = match &mut self.0 {
            Kind::Plain(wire) => wire.read(buffer),
            Kind::Tls(stream) => stream.read(buffer),
        };
        match received? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => Ok(bytes),
        }
    }

    /// Whether the connection is open and nothing has come that nobody asked for.
    pub(super) fn quiet(&self) -> bool {
        let waiting = socket::waiting(self.wire().socket.as_fd());
        let tls = matches!(self.0, Kind::Tls(_));
        // By TLS a server may send tickets at any time: what matters then is that it is not closed.
        matches!(waiting, Ok(Waiting::Nothing)) || (tls && matches!(waiting, Ok(Waiting::Bytes)))
    }
}
