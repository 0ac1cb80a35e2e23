//! Servers for tests: real ones, where they are installed.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A `redis-server` of ours, which ends with this value.
pub(crate) struct RedisServer {
    child: Child,
    pub(crate) port: u16,
    directory: PathBuf,
    extra: Vec<String>,
}

/// Whether a program can be started; else says that a test is skipped.
pub(crate) fn installed(program: &str) -> bool {
    let probe = Command::new(program).arg("--version").stdout(Stdio::null()).status();
    if probe.is_err() {
        println!("SKIPPED: {program} is not installed");
    }
    probe.is_ok()
}

/// A port that is free now, and for the bus of a cluster too.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if port < 50000 && TcpListener::bind(("127.0.0.1", port + 10000)).is_ok() {
            return port;
        }
    }
}

fn spawn(port: u16, directory: &Path, extra: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.args(["--port", &port.to_string(), "--dir"]).arg(directory);
    command.args(extra).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

impl RedisServer {
    /// A server on a free port, with further options; `None` (and said so) where there is none.
    pub(crate) fn start(extra: &[&str]) -> Option<RedisServer> {
        if !installed("redis-server") {
            return None;
        }
        let directory = PathBuf::from(format!("/var/tmp/swapfs-redis-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&directory).unwrap();
        let port = free_port();
        let extra: Vec<String> = extra.iter().map(|text| (*text).to_owned()).collect();
        let child = spawn(port, &directory, &extra);
        let server = RedisServer { child, port, directory, extra };
        server.wait();
        Some(server)
    }

    /// Waits until it listens.
    pub(crate) fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        // With TLS, the port is given in the options.
        while TcpStream::connect(("127.0.0.1", self.tls_port().unwrap_or(self.port))).is_err() {
            assert!(Instant::now() < until, "the server does not come");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn tls_port(&self) -> Option<u16> {
        let at = self.extra.iter().position(|text| text == "--tls-port")?;
        self.extra.get(at + 1)?.parse().ok()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: no memory is passed; a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port, without what it held.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.directory, &self.extra);
        self.wait();
    }

    /// What `redis-cli` answers.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &port])
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Three masters, each with a replica; which is which, `cli(&["role"])` tells.
pub(crate) fn start_cluster(node_timeout_ms: u32) -> Option<Vec<RedisServer>> {
    let timeout = node_timeout_ms.to_string();
    let options = [
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        &timeout,
        "--repl-diskless-sync-delay",
        "0",
    ];
    let servers: Vec<RedisServer> =
        (0..6).map(|_| RedisServer::start(&options)).collect::<Option<_>>()?;
    let mut command = Command::new("redis-cli");
    command.args(["--cluster", "create"]);
    for server in &servers {
        command.arg(format!("127.0.0.1:{}", server.port));
    }
    command.args(["--cluster-replicas", "1", "--cluster-yes"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    let until = Instant::now() + Duration::from_secs(60);
    let ready = |server: &RedisServer| {
        let info = server.cli(&["cluster", "info"]);
        let replicas = server.cli(&["info", "replication"]);
        let linked = !replicas.contains("role:slave") || replicas.contains("link_status:up");
        info.contains("cluster_state:ok") && linked
    };
    while !servers.iter().all(ready) {
        assert!(Instant::now() < until, "the cluster does not come: {text}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Some(servers)
}
