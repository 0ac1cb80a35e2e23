//! The real servers that hold far memory, from Debian's packages, on loopback: a Redis server, a
//! cluster of them, nbdkit and qemu-nbd; and a [`cutter`] between a server and its client, which
//! does to their connection what networks do.
//!
//! Each server has a folder of its own on a disk, and goes with its value, also when a test fails.

pub mod cutter;
pub mod damage;
pub mod nbd;
pub mod redis;

pub use cutter::Cutter;
pub use nbd::{Nbdkit, QemuNbd};
pub use redis::{RedisCluster, RedisServer};

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take to come up or to end.
const LIMIT: Duration = Duration::from_secs(30);
/// Where ports are looked for: below those that the system gives to clients, so that no client takes
/// the port of a server that comes back.
const PORTS: std::ops::Range<u16> = 14_000..32_000;

/// Why the servers' programs can't be used, if they can't: for `skip_if!`.
#[must_use]
pub fn cannot_run(programs: &[&str]) -> Option<String> {
    let missing = programs.iter().find(|name| find_program(name).is_none())?;
    Some(format!("{missing} is not installed"))
}

/// A program by its name, in the places where Debian has them.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let places = path.split(':').chain(["/usr/bin", "/usr/sbin", "/usr/local/bin"]);
    places.map(|place| Path::new(place).join(name)).find(|path| path.is_file())
}

/// A port of this machine that nobody listens at, and that was not answered before.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Processes begin anywhere, so that those that run at once do not meet all the time.
    let start = (u64::from(std::process::id()).wrapping_mul(0x9e37_79b9) >> 8) as u16 % count;
    for _ in 0..count {
        let offset = (start + NEXT.fetch_add(1, Ordering::Relaxed) % count) % count;
        let port = PORTS.start + offset;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

/// A folder for a server. On a disk, not on a tmpfs, whose memory might be swapped.
///
/// # Panics
/// If it can't be made.
#[must_use]
pub fn server_folder(name: &str) -> tempfile::TempDir {
    let cache = std::env::var("SWAPFS_TEST_CACHE").unwrap_or_else(|_| "/var/tmp".to_owned());
    let place = Path::new(&cache).join("servers");
    fs::create_dir_all(&place).unwrap();
    tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(place).unwrap()
}

/// Waits until somebody listens at a port of this machine.
///
/// # Panics
/// If nobody does for long.
pub fn wait_for_port(port: u16) {
    wait("a listener", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LIMIT, "not within {} s: {what}", LIMIT.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process of a server's, killed by its process id when this is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts it; what it says goes to `log`.
    ///
    /// # Panics
    /// If it can't be started.
    #[must_use]
    pub fn start(command: &mut Command, log: &Path) -> Process {
        let output = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Process(child)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// It is there still.
    ///
    /// # Panics
    /// If the system does not say.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Stops it where it is: connections stay, and nothing is answered.
    pub fn pause(&self) {
        crate::mounted::kill(self.pid().into(), libc::SIGSTOP);
    }

    /// It goes on.
    pub fn resume(&self) {
        crate::mounted::kill(self.pid().into(), libc::SIGCONT);
    }

    /// Kills it at once, as a crash does.
    pub fn kill(&mut self) {
        // Also when it is paused: SIGKILL needs no SIGCONT.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A server that has died by itself explains what a test has found.
        if let Ok(Some(status)) = self.0.try_wait() {
            println!("a server, process {}, had died before: {status}", self.pid());
        }
        self.kill();
    }
}
