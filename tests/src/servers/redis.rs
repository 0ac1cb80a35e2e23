//! A Redis server, or a cluster of three with a replica each; and what a test asks them itself.

use super::{LIMIT, Process, find_program, free_port, server_folder, wait};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// What its tests need.
pub const PROGRAMS: &[&str] = &["redis-server"];
/// How long a test waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Masters of a cluster; each has one replica.
pub const MASTERS: usize = 3;
/// Slots of a cluster.
const CLUSTER_SLOTS: usize = 16_384;

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A line, or a string.
    Text(Vec<u8>),
    /// A number.
    Number(i64),
    /// Nothing is there.
    Nothing,
    /// Several.
    Several(Vec<Answer>),
}

impl Answer {
    /// As text; empty where it is none.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Answer::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Answer::Number(number) => number.to_string(),
            Answer::Nothing | Answer::Several(_) => String::new(),
        }
    }
}

/// A connection of the test's own: a second opinion on what the daemon did there.
#[derive(Debug)]
pub struct Asker(BufReader<TcpStream>);

impl Asker {
    /// Connects to a server on this machine.
    ///
    /// # Errors
    /// What the system answers.
    pub fn connect(port: u16) -> io::Result<Asker> {
        let stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Asker(BufReader::new(stream)))
    }

    /// Asks one thing.
    ///
    /// # Errors
    /// What the server or the system says.
    pub fn ask<W: AsRef<[u8]>>(&mut self, words: &[W]) -> io::Result<Answer> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            let word = word.as_ref();
            write!(request, "${}\r\n", word.len())?;
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&request)?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let senseless = || io::Error::other(format!("answer {line:?}"));
        let rest = line.get(1..).ok_or_else(senseless)?.trim_end();
        let number = || rest.parse::<i64>().map_err(|_| senseless());
        match line.as_bytes()[0] {
            b'+' => Ok(Answer::Text(rest.as_bytes().to_vec())),
            b'-' => Err(io::Error::other(rest.to_owned())),
            b':' => Ok(Answer::Number(number()?)),
            b'$' | b'*' if number()? < 0 => Ok(Answer::Nothing),
            b'$' => {
                let mut bytes = vec![0; number()? as usize + 2];
                self.0.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Ok(Answer::Text(bytes))
            }
            b'*' => (0..number()?)
                .map(|_| self.answer())
                .collect::<io::Result<_>>()
                .map(Answer::Several),
            _ => Err(senseless()),
        }
    }
}

/// A Redis server without persistence: what it held is gone when it has gone.
#[derive(Debug)]
pub struct RedisServer {
    /// Where it listens, on loopback.
    pub port: u16,
    options: Vec<String>,
    folder: tempfile::TempDir,
    process: Option<Process>,
}

impl RedisServer {
    /// Starts one with these further options, each a word: `["--maxmemory", "4mb"]`.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(options: &[&str]) -> RedisServer {
        let mut server = RedisServer {
            port: free_port(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            folder: server_folder("redis"),
            process: None,
        };
        server.restart();
        server
    }

    /// Starts it again at the same port, empty.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self) {
        self.stop();
        let program = find_program("redis-server").expect("redis-server is installed");
        let mut command = Command::new(program);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.arg("--dir").arg(self.folder.path()).args(&self.options);
        self.process = Some(Process::start(&mut command, &self.log()));
        let started = Instant::now();
        while self.ask(&["PING"]).map(|answer| answer.text()).ok().as_deref() != Some("PONG") {
            let running = self.process.as_mut().is_some_and(Process::is_running);
            let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
            assert!(running && started.elapsed() < LIMIT, "redis-server did not start: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Kills it, with all that it held.
    pub fn stop(&mut self) {
        self.process = None;
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
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Asks it one thing by a connection of its own.
    ///
    /// # Errors
    /// What the server or the system says.
    pub fn ask<W: AsRef<[u8]>>(&self, words: &[W]) -> io::Result<Answer> {
        Asker::connect(self.port)?.ask(words)
    }

    /// How many keys it has.
    ///
    /// # Panics
    /// If it does not say.
    #[must_use]
    pub fn keys(&self) -> u64 {
        match self.ask(&["DBSIZE"]).unwrap() {
            Answer::Number(count) => count as u64,
            other => panic!("DBSIZE: {other:?}"),
        }
    }

    /// A number of its INFO.
    ///
    /// # Panics
    /// If it has none of that name.
    #[must_use]
    pub fn info(&self, name: &str) -> u64 {
        let text = self.ask(&["INFO", "everything"]).unwrap().text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name}"))
    }
}

/// Three masters with a replica each, which take over within a few seconds.
#[derive(Debug)]
pub struct RedisCluster {
    /// The masters at first, then their replicas in the same order.
    pub nodes: Vec<RedisServer>,
    bus_ports: Vec<u16>,
}

impl RedisCluster {
    /// Starts one; answers when it serves and all replicas are up to date.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(options: &[&str]) -> RedisCluster {
        let (mut nodes, mut bus_ports) = (Vec::new(), Vec::new());
        for _ in 0..2 * MASTERS {
            let bus = free_port();
            let port = bus.to_string();
            let mut all = vec!["--cluster-enabled", "yes", "--cluster-port", &port];
            all.extend(["--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"]);
            all.extend(["--cluster-replica-validity-factor", "0"]);
            all.extend(options);
            nodes.push(RedisServer::start(&all));
            bus_ports.push(bus);
        }
        let cluster = RedisCluster { nodes, bus_ports };
        cluster.assemble();
        cluster
    }

    fn assemble(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let epoch = (index + 1).to_string();
            node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).unwrap();
            if index < MASTERS {
                let first = (index * CLUSTER_SLOTS / MASTERS).to_string();
                let last = ((index + 1) * CLUSTER_SLOTS / MASTERS - 1).to_string();
                node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).unwrap();
            }
            let (port, bus) = (node.port.to_string(), self.bus_ports[index].to_string());
            self.nodes[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).unwrap();
        }
        let known = |node: &RedisServer| node.info_of_cluster("cluster_known_nodes");
        let all = self.nodes.len().to_string();
        wait("all nodes to know each other", || {
            self.nodes.iter().all(|node| known(node).as_deref() == Some(&all))
        });
        for (master, replica) in self.nodes.iter().zip(&self.nodes[MASTERS..]) {
            let id = master.ask(&["CLUSTER", "MYID"]).unwrap().text();
            wait("a replica to know its master", || {
                replica.ask(&["CLUSTER", "REPLICATE", &id]).is_ok()
            });
        }
        self.wait_until_ok();
        wait("replicas", || self.nodes[..MASTERS].iter().all(|node| node.replicas() == 1));
    }

    /// Waits until every node that is up says that the cluster is well, and each slot is served.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_until_ok(&self) {
        let well = |node: &RedisServer| node.info_of_cluster("cluster_state");
        wait("the cluster to be well", || {
            self.nodes
                .iter()
                .filter(|node| node.process.is_some())
                .all(|node| well(node).as_deref() == Some("ok"))
        });
    }

    /// Waits until each master that is up has a replica that is up to date.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_until_replicated(&self) {
        wait("each master to have a replica", || {
            let masters = self.nodes.iter().filter(|node| node.is_master());
            masters.map(RedisServer::replicas).filter(|&count| count >= 1).count() == MASTERS
        });
    }

    /// Kills the `index`th master of now with all that it held, and answers its place in `nodes`. Its
    /// replica takes over by itself.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn kill_master(&mut self, index: usize) -> usize {
        let is_master = |place: &usize| self.nodes[*place].is_master();
        let place = (0..self.nodes.len()).filter(is_master).nth(index).unwrap();
        self.nodes[place].stop();
        place
    }

    /// Waits until a replica has taken over from a dead master.
    ///
    /// # Panics
    /// If none does.
    pub fn wait_for_failover(&self) {
        let masters = || self.nodes.iter().filter(|node| node.is_master()).count();
        wait("a replica to take over", || masters() == MASTERS);
        self.wait_until_ok();
    }

    /// Its address for `url=`: some of the nodes.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{},127.0.0.1:{}", self.nodes[0].url(), self.nodes[1].port)
    }

    /// How many keys the masters have.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.nodes.iter().filter(|node| node.is_master()).map(RedisServer::keys).sum()
    }
}

impl RedisServer {
    fn info_of_cluster(&self, name: &str) -> Option<String> {
        let text = self.ask(&["CLUSTER", "INFO"]).ok()?.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned())
    }

    fn is_master(&self) -> bool {
        let role = self.ask(&["ROLE"]);
        matches!(role, Ok(Answer::Several(parts)) if parts[0].text() == "master")
    }

    /// How many replicas are up to date.
    fn replicas(&self) -> usize {
        let Ok(text) = self.ask(&["INFO", "replication"]) else { return 0 };
        text.text().lines().filter(|line| line.contains("state=online")).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::cannot_run;
    use crate::skip_if;

    #[test]
    fn a_server_comes_back_empty_at_its_port() {
        skip_if!(cannot_run(PROGRAMS));
        let mut server = RedisServer::start(&["--maxmemory", "64mb"]);
        server.ask(&["SET", "key", "value"]).unwrap();
        assert_eq!(server.keys(), 1);
        assert!(server.info("used_memory") > 100_000);
        assert!(server.url().starts_with("redis://127.0.0.1:"));
        server.stop();
        assert!(server.ask(&["PING"]).is_err());
        server.restart();
        assert_eq!(server.keys(), 0);
        assert_eq!(server.ask(&["GET", "key"]).unwrap(), Answer::Nothing);
    }

    #[test]
    fn a_replica_takes_over_and_has_it_all() {
        skip_if!(cannot_run(PROGRAMS));
        let mut cluster = RedisCluster::start(&[]);
        for (index, node) in cluster.nodes[..MASTERS].iter().enumerate() {
            let mut asker = Asker::connect(node.port).unwrap();
            // One of many keys is this node's.
            let mine =
                |number: &u32| asker.ask(&["SET", &format!("{index}-{number}"), "v"]).is_ok();
            assert!((0..100).filter(mine).count() > 0);
            assert_eq!(asker.ask(&["WAIT", "1", "5000"]).unwrap(), Answer::Number(1));
        }
        let keys = cluster.keys();
        let started = Instant::now();
        let place = cluster.kill_master(1);
        cluster.wait_for_failover();
        println!("a replica has taken over after {:?}", started.elapsed());
        assert_eq!(cluster.keys(), keys);
        cluster.nodes[place].restart();
        cluster.wait_until_replicated();
    }
}
