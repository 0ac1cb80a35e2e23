//! NBD servers: nbdkit with its filters, and qemu-nbd.

use super::{Process, find_program, free_port, server_folder, wait, wait_for_port};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the tests with nbdkit need.
pub const NBDKIT: &[&str] = &["nbdkit"];
/// What those with qemu-nbd need.
pub const QEMU_NBD: &[&str] = &["qemu-nbd"];

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    Tcp(u16),
}

impl Place {
    fn url(&self, export: &str) -> String {
        match self {
            Place::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Place::Tcp(port) => format!("nbd://127.0.0.1:{port}/{export}"),
        }
    }

    fn wait(&self) {
        match self {
            Place::Unix(path) => {
                wait("a server at its socket", || UnixStream::connect(path).is_ok());
            }
            Place::Tcp(port) => wait_for_port(*port),
        }
    }

    fn port(&self) -> Option<u16> {
        match self {
            Place::Unix(_) => None,
            Place::Tcp(port) => Some(*port),
        }
    }
}

/// What nbdkit serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// Memory that goes with the server.
    Memory,
    /// A sparse file, which stays when the server is started again.
    File,
}

/// nbdkit with a plugin, and filters in front of it.
#[derive(Debug)]
pub struct Nbdkit {
    plugin: Plugin,
    bytes: u64,
    words: Vec<String>,
    place: Place,
    folder: tempfile::TempDir,
    process: Option<Process>,
}

/// How an [`Nbdkit`] is to be.
#[derive(Debug, Clone)]
pub struct NbdkitSetup {
    /// What it serves.
    pub plugin: Plugin,
    /// Its size.
    pub bytes: u64,
    /// Listens at a TCP port, not at a socket in its folder.
    pub tcp: bool,
    /// Options, filters and their settings, each a word: `["--filter=delay", "rdelay=5ms"]`.
    pub words: Vec<String>,
}

impl NbdkitSetup {
    /// Memory or a file of that size, at a socket.
    #[must_use]
    pub fn new(plugin: Plugin, bytes: u64) -> NbdkitSetup {
        NbdkitSetup { plugin, bytes, tcp: false, words: Vec::new() }
    }

    /// At a TCP port.
    #[must_use]
    pub fn tcp(mut self) -> NbdkitSetup {
        self.tcp = true;
        self
    }

    /// With one thread for each connection. nbdkit 1.32 (Debian 12) aborts now and then when a
    /// connection breaks while it works on several requests of it (`raw_send_socket: Assertion
    /// sock >= 0`); with one thread it does not.
    #[must_use]
    pub fn sturdy(self) -> NbdkitSetup {
        self.with(&["--threads=1"])
    }

    /// With further words on its command line.
    #[must_use]
    pub fn with(mut self, words: &[&str]) -> NbdkitSetup {
        self.words.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(self) -> Nbdkit {
        let folder = server_folder("nbdkit");
        let place = match self.tcp {
            true => Place::Tcp(free_port()),
            false => Place::Unix(folder.path().join("socket")),
        };
        let NbdkitSetup { plugin, bytes, words, .. } = self;
        let mut server = Nbdkit { plugin, bytes, words, place, folder, process: None };
        if plugin == Plugin::File {
            File::create_new(server.file()).unwrap().set_len(bytes).unwrap();
        }
        server.restart();
        server
    }
}

impl Nbdkit {
    /// Starts it again. A file is as it was, memory is empty.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self) {
        self.stop();
        let mut command = Command::new(find_program("nbdkit").expect("nbdkit is installed"));
        command.arg("--foreground");
        match &self.place {
            Place::Unix(path) => command.arg("--unix").arg(path),
            Place::Tcp(port) => {
                command.args(["--ipaddr", "127.0.0.1", "--port", &port.to_string()])
            }
        };
        // Options and filters stand in front of the plugin, their settings behind it.
        let (options, settings): (Vec<_>, Vec<_>) =
            self.words.iter().partition(|word| word.starts_with('-'));
        command.args(options);
        match self.plugin {
            Plugin::Memory => command.args(["memory", &format!("size={}", self.bytes)]),
            Plugin::File => command.arg("file").arg(self.file()),
        };
        command.args(settings);
        self.process = Some(Process::start(&mut command, &self.folder.path().join("log")));
        self.place.wait();
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.process = None;
        if let Place::Unix(path) = &self.place {
            drop(std::fs::remove_file(path));
        }
    }

    /// It answers nothing any more, but its connections stay.
    pub fn pause(&self) {
        self.process.iter().for_each(Process::pause);
    }

    /// It goes on.
    pub fn resume(&self) {
        self.process.iter().for_each(Process::resume);
    }

    /// Its address for `url=`.
    #[must_use]
    pub fn url(&self) -> String {
        self.place.url("")
    }

    /// Its port, if it has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.place.port()
    }

    /// The file that it serves.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("disk")
    }
}

/// The error filter: requests fail at random while a file is there.
#[derive(Debug)]
pub struct Trigger {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Trigger {
    /// A switch that is off.
    #[must_use]
    pub fn new() -> Trigger {
        let folder = server_folder("trigger");
        Trigger { path: folder.path().join("fail"), _folder: folder }
    }

    /// What nbdkit needs for it; so many percent of all requests fail.
    #[must_use]
    pub fn words(&self, percent: u32) -> Vec<String> {
        vec![
            "--filter=error".to_owned(),
            format!("error-rate={percent}%"),
            format!("error-file={}", self.path.display()),
        ]
    }

    /// From now on requests fail, or none does.
    ///
    /// # Panics
    /// If the file can't be made.
    pub fn set(&self, on: bool) {
        match on {
            true => drop(File::create(&self.path).unwrap()),
            false => drop(std::fs::remove_file(&self.path)),
        }
    }
}

impl Default for Trigger {
    fn default() -> Trigger {
        Trigger::new()
    }
}

/// qemu-nbd with a raw file.
#[derive(Debug)]
pub struct QemuNbd {
    place: Place,
    folder: tempfile::TempDir,
    process: Option<Process>,
}

impl QemuNbd {
    /// The name of its export.
    pub const EXPORT: &str = "swap";

    /// Starts it with a sparse file of that size.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(bytes: u64, tcp: bool) -> QemuNbd {
        let folder = server_folder("qemu-nbd");
        let place = match tcp {
            true => Place::Tcp(free_port()),
            false => Place::Unix(folder.path().join("socket")),
        };
        let mut server = QemuNbd { place, folder, process: None };
        File::create_new(server.file()).unwrap().set_len(bytes).unwrap();
        server.restart();
        server
    }

    /// Starts it again with the same file.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self) {
        self.stop();
        let mut command = Command::new(find_program("qemu-nbd").expect("qemu-nbd is installed"));
        match &self.place {
            Place::Unix(path) => command.arg("--socket").arg(path),
            Place::Tcp(port) => command.args(["--bind=127.0.0.1", &format!("--port={port}")]),
        };
        command.args(["--format=raw", "--persistent", "--shared=16", "--discard=unmap"]);
        command.args(["--cache=writeback", "--export-name", QemuNbd::EXPORT]).arg(self.file());
        self.process = Some(Process::start(&mut command, &self.folder.path().join("log")));
        self.place.wait();
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.process = None;
        if let Place::Unix(path) = &self.place {
            drop(std::fs::remove_file(path));
        }
    }

    /// Its address for `url=`.
    #[must_use]
    pub fn url(&self) -> String {
        self.place.url(QemuNbd::EXPORT)
    }

    /// Its port, if it has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.place.port()
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("disk")
    }
}

/// Whether a URL's server says that it serves so many bytes, by nbdinfo: a second opinion.
///
/// # Panics
/// If nbdinfo can't be run.
#[must_use]
pub fn size_by_nbdinfo(url: &str) -> Option<u64> {
    let program = find_program("nbdinfo").unwrap_or_else(|| Path::new("nbdinfo").to_owned());
    let output = Command::new(program).args(["--size", url]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::cannot_run;
    use crate::skip_if;

    #[test]
    fn all_of_them_serve() {
        skip_if!(cannot_run(&["nbdkit", "qemu-nbd", "nbdinfo"]));
        let bytes = 8 << 20;
        for tcp in [false, true] {
            let mut setup = NbdkitSetup::new(Plugin::Memory, bytes);
            setup.tcp = tcp;
            let trigger = Trigger::new();
            setup.words = trigger.words(50);
            let setup = setup.with(&["--filter=delay", "rdelay=1ms"]);
            assert_eq!(size_by_nbdinfo(&setup.start().url()), Some(bytes));
            let mut server = QemuNbd::start(bytes, tcp);
            assert_eq!(size_by_nbdinfo(&server.url()), Some(bytes));
            server.restart();
            assert_eq!(size_by_nbdinfo(&server.url()), Some(bytes));
        }
        let mut server = NbdkitSetup::new(Plugin::File, bytes).tcp().start();
        server.stop();
        assert_eq!(size_by_nbdinfo(&server.url()), None);
        server.restart();
        assert_eq!(size_by_nbdinfo(&server.url()), Some(bytes));
    }
}
