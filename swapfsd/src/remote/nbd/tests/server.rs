//! Real servers, started for a test and killed after it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use swapfs_format::remote::NbdPlace;

pub(super) struct Server {
    child: Child,
    program: String,
    arguments: Vec<String>,
    pub(super) place: NbdPlace,
    /// With the socket or image of this server.
    pub(super) _directory: tempfile::TempDir,
}

pub(super) fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("nbd-test-").tempdir_in("/var/tmp").unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(program: &str, arguments: &[String]) -> Option<Child> {
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    started.ok()
}

impl Server {
    /// nbdkit with `arguments`, on TCP. `None` if there is none here, having said so.
    pub(super) fn nbdkit(arguments: &[&str]) -> Option<Server> {
        let port = free_port();
        let mut all = vec!["-f".to_owned(), "-i".to_owned(), "127.0.0.1".to_owned()];
        all.extend(["-p".to_owned(), port.to_string()]);
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let place = NbdPlace::Tcp("127.0.0.1".to_owned(), port);
        Server::start("nbdkit", all, place, directory())
    }

    /// nbdkit on a unix socket.
    pub(super) fn nbdkit_unix(arguments: &[&str]) -> Option<Server> {
        let directory = directory();
        let path = directory.path().join("socket").to_str().unwrap().to_owned();
        let mut all = vec!["-f".to_owned(), "-U".to_owned(), path.clone()];
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        Server::start("nbdkit", all, NbdPlace::Unix(path), directory)
    }

    /// qemu-nbd with a raw file of so many bytes.
    pub(super) fn qemu(bytes: u64, arguments: &[&str]) -> Option<Server> {
        let directory = directory();
        let image: PathBuf = directory.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let port = free_port();
        let mut all: Vec<String> =
            ["-b", "127.0.0.1", "-t", "-f", "raw", "-p"].map(str::to_owned).to_vec();
        all.push(port.to_string());
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        all.push(image.to_str().unwrap().to_owned());
        let place = NbdPlace::Tcp("127.0.0.1".to_owned(), port);
        Server::start("qemu-nbd", all, place, directory)
    }

    fn start(
        program: &str,
        arguments: Vec<String>,
        place: NbdPlace,
        directory: tempfile::TempDir,
    ) -> Option<Server> {
        let Some(child) = start(program, &arguments) else {
            println!("SKIPPED: there is no {program} here");
            return None;
        };
        let program = program.to_owned();
        let mut server = Server { child, program, arguments, place, _directory: directory };
        server.wait();
        Some(server)
    }

    /// Until it listens.
    fn wait(&mut self) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let listens = match &self.place {
                NbdPlace::Tcp(host, port) => {
                    std::net::TcpStream::connect((host.as_str(), *port)).is_ok()
                }
                NbdPlace::Unix(path) => std::os::unix::net::UnixStream::connect(path).is_ok(),
            };
            if listens {
                return;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "{:?} ended", self.arguments);
            assert!(Instant::now() < until, "{:?} does not listen", self.arguments);
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let NbdPlace::Unix(path) = &self.place {
            let _ = std::fs::remove_file(path);
        }
    }

    pub(super) fn start_again(&mut self) {
        self.child = start(&self.program, &self.arguments).unwrap();
        self.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
