//! Stands between a client and a server, and does to their connections what networks and broken
//! servers do: cuts, delays, swallows, or answers something else.

use super::damage::{Damage, Damager, Parser, Protocol};
use super::free_port;
use crate::rng::Rng;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a waiting thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);
const BUFFER_BYTES: usize = 16 << 10;

/// What happens to what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It arrives.
    Pass,
    /// Each piece arrives so much later, in both directions.
    Delay(Duration),
    /// What the server answers arrives so many bytes at a time, with so long a pause behind each.
    Drip(usize, Duration),
    /// Nothing arrives as long as this lasts; afterwards all of it.
    Hold,
    /// What is sent meanwhile never arrives; the connections are cut when this ends.
    Swallow,
    /// New connections are closed at once; those that there are go on.
    Refuse,
    /// Each connection is cut within so many bytes, wherever that is: in a request or an answer.
    CutWithin(u64),
    /// Of the server's answers one in so many is another one.
    Wrong(Damage, u64),
}

struct Shared {
    server: u16,
    protocol: Protocol,
    stop: AtomicBool,
    mode: Mutex<Mode>,
    changed: Condvar,
    /// Both ends of each connection.
    open: Mutex<Vec<(TcpStream, TcpStream)>>,
    damager: Mutex<Damager>,
    rng: Mutex<Rng>,
    connections: AtomicU64,
    cuts: AtomicU64,
    damaged: AtomicU64,
    bytes_to_server: AtomicU64,
    bytes_to_client: AtomicU64,
}

/// The one in between. Dropped, it cuts all connections.
pub struct Cutter {
    /// Where it listens, on loopback.
    pub port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Cutter {
    /// Stands in front of the server at this port.
    ///
    /// # Panics
    /// If it can't listen.
    #[must_use]
    pub fn new(server: u16, protocol: Protocol, seed: u64) -> Cutter {
        let port = free_port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            server,
            protocol,
            stop: AtomicBool::new(false),
            mode: Mutex::new(Mode::Pass),
            changed: Condvar::new(),
            open: Mutex::default(),
            damager: Mutex::new(Damager::new(protocol, seed)),
            rng: Mutex::new(Rng::new(seed)),
            connections: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            bytes_to_server: AtomicU64::new(0),
            bytes_to_client: AtomicU64::new(0),
        });
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Cutter { port, shared, accepting: Some(accepting) }
    }

    /// Its address for `url=`.
    #[must_use]
    pub fn url(&self) -> String {
        match self.shared.protocol {
            Protocol::Redis => format!("redis://127.0.0.1:{}", self.port),
            Protocol::Nbd => format!("nbd://127.0.0.1:{}/", self.port),
        }
    }

    /// From now on this happens.
    ///
    /// # Panics
    /// If a thread of it has panicked.
    pub fn set(&self, mode: Mode) {
        let before = std::mem::replace(&mut *self.shared.mode.lock().unwrap(), mode);
        self.shared.changed.notify_all();
        // What was swallowed can't be made good: the rest of the stream means nothing.
        if before == Mode::Swallow && mode != Mode::Swallow {
            self.cut();
        }
    }

    /// Cuts all connections that there are.
    ///
    /// # Panics
    /// If a thread of it has panicked.
    pub fn cut(&self) {
        for (client, server) in self.shared.open.lock().unwrap().drain(..) {
            drop(client.shutdown(Shutdown::Both));
            drop(server.shutdown(Shutdown::Both));
            self.shared.cuts.fetch_add(1, Relaxed);
        }
    }

    /// Connections that were ever made.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    /// Connections that were cut.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Relaxed)
    }

    /// Answers that were not the server's.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.shared.damaged.load(Relaxed)
    }

    /// Bytes that went to the server, and to the client.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.shared.bytes_to_server.load(Relaxed), self.shared.bytes_to_client.load(Relaxed))
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.changed.notify_all();
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
        if !std::thread::panicking() {
            self.cut();
        }
    }
}

impl std::fmt::Debug for Cutter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cutter({} -> {})", self.port, self.shared.server)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        if *shared.mode.lock().unwrap() != Mode::Refuse {
            drop(connect(client, shared));
        }
    }
}

fn connect(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
    }
    shared.connections.fetch_add(1, Relaxed);
    shared.open.lock().unwrap().push((client.try_clone()?, server.try_clone()?));
    // Bytes of this connection in both directions, for CutWithin.
    let passed = Arc::new(AtomicU64::new(0));
    let cut_at = shared.rng.lock().unwrap().next_u64();
    for (from, to, to_client) in
        [(client.try_clone()?, server.try_clone()?, false), (server, client, true)]
    {
        let (shared, passed) = (Arc::clone(shared), Arc::clone(&passed));
        std::thread::spawn(move || {
            let pump = Pump { from: &from, to: &to, to_client, shared: &shared, passed: &passed };
            drop(pump.run(cut_at));
            drop(from.shutdown(Shutdown::Both));
            drop(to.shutdown(Shutdown::Both));
        });
    }
    Ok(())
}

/// One direction of a connection.
struct Pump<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    to_client: bool,
    shared: &'a Shared,
    passed: &'a AtomicU64,
}

impl Pump<'_> {
    /// Until one end is closed.
    fn run(&self, cut_at: u64) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut parser = Parser::new(self.shared.protocol);
        while !self.shared.stop.load(Relaxed) {
            let count = match { self.from }.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => continue,
                Err(error) => return Err(error),
            };
            if !self.to_client {
                self.pass(&buffer[..count], cut_at)?;
                continue;
            }
            let whole_parts = parser.feed(&buffer[..count]);
            let mut out = Vec::with_capacity(count);
            for part in whole_parts {
                let wrong = match *self.shared.mode.lock().unwrap() {
                    Mode::Wrong(damage, one_in) => {
                        let mut damager = self.shared.damager.lock().unwrap();
                        let chosen = damager.one_in(one_in);
                        chosen.then(|| damager.damage(&part, damage)).flatten()
                    }
                    _ => None,
                };
                self.shared.damager.lock().unwrap().see(&part);
                self.shared.damaged.fetch_add(wrong.is_some().into(), Relaxed);
                out.extend(wrong.unwrap_or(part.bytes));
            }
            self.pass(&out, cut_at)?;
        }
        Ok(())
    }

    /// Sends it, as it is to be at present.
    fn pass(&self, mut bytes: &[u8], cut_at: u64) -> io::Result<()> {
        let mode = self.mode_without_hold();
        let before = self.passed.fetch_add(bytes.len() as u64, Relaxed);
        match mode {
            Mode::Swallow => return Ok(()),
            Mode::Delay(time) => std::thread::sleep(time),
            Mode::CutWithin(limit) => {
                let at = 1 + cut_at % limit;
                // One that is older than this mode is cut in what it says next.
                let left = at.saturating_sub(before).max(u64::from(before > at));
                if left < bytes.len() as u64 {
                    bytes = &bytes[..left as usize];
                    self.count(bytes.len());
                    { self.to }.write_all(bytes)?;
                    self.shared.cuts.fetch_add(1, Relaxed);
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
            Mode::Drip(count, pause) if self.to_client => {
                for piece in bytes.chunks(count) {
                    self.count(piece.len());
                    { self.to }.write_all(piece)?;
                    std::thread::sleep(pause);
                }
                return Ok(());
            }
            _ => {}
        }
        self.count(bytes.len());
        { self.to }.write_all(bytes)
    }

    fn mode_without_hold(&self) -> Mode {
        let mut mode = self.shared.mode.lock().unwrap();
        while *mode == Mode::Hold && !self.shared.stop.load(Relaxed) {
            mode = self.shared.changed.wait_timeout(mode, LOOK).unwrap().0;
        }
        *mode
    }

    fn count(&self, bytes: usize) {
        let counter = match self.to_client {
            true => &self.shared.bytes_to_client,
            false => &self.shared.bytes_to_server,
        };
        counter.fetch_add(bytes as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::redis::{Answer, Asker, PROGRAMS, RedisServer};
    use crate::servers::{cannot_run, nbd};
    use crate::skip_if;
    use std::time::Instant;

    fn ask(asker: &mut Asker, key: &str) -> io::Result<Answer> {
        asker.ask(&["GET", key])
    }

    #[test]
    fn it_does_what_it_is_told() {
        skip_if!(cannot_run(PROGRAMS));
        let server = RedisServer::start(&[]);
        let cutter = Cutter::new(server.port, Protocol::Redis, 1);
        let (one, two) = (vec![b'a'; 5000], vec![b'b'; 5000]);
        server.ask(&[b"SET", b"one".as_slice(), &one]).unwrap();
        server.ask(&[b"SET", b"two".as_slice(), &two]).unwrap();
        let mut asker = Asker::connect(cutter.port).unwrap();
        assert_eq!(ask(&mut asker, "one").unwrap(), Answer::Text(one.clone()));
        assert!(cutter.bytes().1 > 5000);

        cutter.set(Mode::Wrong(Damage::Earlier, 1));
        assert_eq!(ask(&mut asker, "two").unwrap(), Answer::Text(one.clone()));
        cutter.set(Mode::Wrong(Damage::Shorten, 1));
        assert_eq!(ask(&mut asker, "one").unwrap(), Answer::Text(one[..2500].to_vec()));
        cutter.set(Mode::Wrong(Damage::Absent, 1));
        assert_eq!(ask(&mut asker, "one").unwrap(), Answer::Nothing);
        cutter.set(Mode::Wrong(Damage::Flip, 1));
        assert_ne!(ask(&mut asker, "one").unwrap(), Answer::Text(one.clone()));
        assert_eq!(cutter.damaged(), 4);

        for slow in
            [Mode::Delay(Duration::from_millis(50)), Mode::Drip(500, Duration::from_millis(5))]
        {
            cutter.set(slow);
            let started = Instant::now();
            assert_eq!(ask(&mut asker, "one").unwrap(), Answer::Text(one.clone()));
            assert!(started.elapsed() > Duration::from_millis(45), "{slow:?}");
        }
        cutter.set(Mode::Hold);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ask(&mut asker, "two"));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!waiting.is_finished());
            cutter.set(Mode::Pass);
            assert_eq!(waiting.join().unwrap().unwrap(), Answer::Text(two.clone()));
        });
        cutter.set(Mode::Swallow);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ask(&mut asker, "two"));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!waiting.is_finished());
            cutter.set(Mode::Pass);
            assert!(waiting.join().unwrap().is_err());
        });
        cutter.set(Mode::CutWithin(3000));
        let mut asker = Asker::connect(cutter.port).unwrap();
        assert!(ask(&mut asker, "one").is_err());
        cutter.set(Mode::Refuse);
        let refused = Asker::connect(cutter.port).and_then(|mut asker| ask(&mut asker, "one"));
        assert!(refused.is_err());
        cutter.set(Mode::Pass);
        let mut asker = Asker::connect(cutter.port).unwrap();
        assert!(ask(&mut asker, "one").is_ok());
        cutter.cut();
        assert!(ask(&mut asker, "one").is_err());
        assert!(cutter.cuts() >= 3 && cutter.connections() >= 3);
    }

    #[test]
    fn nbd_goes_through() {
        skip_if!(cannot_run(&["nbdkit", "nbdinfo"]));
        let server = nbd::NbdkitSetup::new(nbd::Plugin::Memory, 1 << 20).tcp().start();
        let cutter = Cutter::new(server.port().unwrap(), Protocol::Nbd, 1);
        assert_eq!(nbd::size_by_nbdinfo(&cutter.url()), Some(1 << 20));
    }
}
