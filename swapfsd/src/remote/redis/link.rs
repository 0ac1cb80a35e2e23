//! What a request goes over: a connection to a server, or to all nodes of a cluster.

use super::dial::Dialer;
use super::failure::{self, Failure};
use super::handle::{self, Context, Handle};
use super::node::{Node, OBJECT_BYTES};
use super::reply::Reply;
use super::settings::ServerSettings;
use super::slots::{Address, Slots};
use super::work::{Outcome, Work};
use redis::cluster::{ClusterClient, ClusterConnection};
use redis::{Cmd, ConnectionLike, RedisError, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How old the map of a cluster must be before something that did not work makes us ask again.
const STALE: Duration = Duration::from_millis(250);

/// A way to the servers that one request at a time may use.
pub(super) struct Link {
    kind: Kind,
    /// Commands before they are sent.
    out: Vec<u8>,
    /// When it was last used.
    pub(super) used: Instant,
}

enum Kind {
    Single(Box<Node>),
    Cluster(Box<Cluster>),
}

/// Connections to the nodes of a cluster: the crate's client makes them, finds the nodes, and
/// follows redirects; what goes where we know is sent by us, to all masters at once.
struct Cluster {
    client: ClusterConnection<Handle>,
    dialer: Arc<Dialer>,
    nodes: Vec<Handle>,
    slots: Slots,
    made: Instant,
    /// Something did not work as it should: the cluster may have changed.
    suspect: bool,
}

/// Makes links.
#[derive(Debug)]
pub(super) struct Maker {
    server: ServerSettings,
    pub(super) dialer: Arc<Dialer>,
    /// Nodes of the cluster that were known last.
    learned: crate::sync::Mutex<Vec<Address>>,
}

impl Maker {
    pub(super) fn new(server: &ServerSettings) -> Result<Maker, String> {
        if server.nodes.is_empty() {
            return Err("no server is named".to_owned());
        }
        if server.nodes.len() > 1 && !server.cluster {
            return Err("several servers are named, which needs cluster=on".to_owned());
        }
        let dialer = Arc::new(Dialer::new(server)?);
        Ok(Maker { server: server.clone(), dialer, learned: crate::sync::Mutex::new(Vec::new()) })
    }

    /// Makes a link. May ask a name server, so for threads of their own.
    pub(super) fn make(&self) -> Result<Link, Failure> {
        let until = Instant::now() + self.server.deadline;
        let kind = match self.server.cluster {
            true => Kind::Cluster(Box::new(self.cluster(until)?)),
            false => {
                let (host, port) = &self.server.nodes[0];
                Kind::Single(Box::new(self.dialer.open(host, *port, until, true)?))
            }
        };
        Ok(Link { kind, out: Vec::new(), used: Instant::now() })
    }

    fn cluster(&self, until: Instant) -> Result<Cluster, Failure> {
        let mut seeds: Vec<Address> = self.learned.lock().clone();
        let known = seeds.len();
        for node in &self.server.nodes {
            if !seeds[..known].contains(node) {
                seeds.push(node.clone());
            }
        }
        let context = Context::new(Arc::clone(&self.dialer), until, true);
        let (client, context) = handle::call(context, || {
            let infos =
                seeds.iter().map(|(host, port)| redis::ConnectionAddr::Tcp(host.clone(), *port));
            ClusterClient::builder(infos)
                .retries(3)
                .min_retry_wait(1)
                .max_retry_wait(5)
                .connection_timeout(self.dialer.step)
                .build()
                .and_then(|client| client.get_generic_connection::<Handle>())
        });
        let failed =
            |error: &str| context.failure.clone().unwrap_or_else(|| Failure::odd(error.to_owned()));
        let client = match client {
            Some(Ok(client)) => client,
            Some(Err(error)) => return Err(failed(&error.to_string())),
            None => return Err(failed("the cluster's answers make no sense")),
        };
        let slots = context.slots.clone().ok_or_else(|| failed("the cluster has no slots"))?;
        *self.learned.lock() = slots.masters().to_vec();
        let mut cluster = Cluster {
            client,
            dialer: Arc::clone(&self.dialer),
            nodes: Vec::new(),
            slots,
            made: Instant::now(),
            suspect: false,
        };
        cluster.take(context);
        Ok(cluster)
    }
}

impl Cluster {
    /// Takes what the crate's client has learned and made.
    fn take(&mut self, context: Context) {
        for handle in context.made {
            self.nodes.retain(|known| known.address != handle.address);
            self.nodes.push(handle);
        }
        if let Some(slots) = context.slots {
            self.slots = slots;
            self.made = Instant::now();
        }
    }

    fn handle(&self, master: usize) -> Option<Handle> {
        let address = self.slots.masters().get(master)?;
        self.nodes.iter().find(|handle| handle.address == *address).cloned()
    }

    /// One command by the crate's client, which finds the node and follows redirects.
    fn request(
        &mut self,
        command: &Cmd,
        until: Instant,
    ) -> (Result<Value, Failure>, Option<Handle>) {
        let context = Context::new(Arc::clone(&self.dialer), until, false);
        let client = &mut self.client;
        let (answered, mut context) = handle::call(context, || client.req_command(command));
        let (failure, last) = (context.failure.take(), context.last.take());
        self.take(context);
        let result = match answered {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(failure.unwrap_or_else(|| of_crate(&error))),
            None => Err(Failure::odd("the cluster's answers make no sense")),
        };
        (result, last)
    }

    fn exchange(&mut self, work: &mut Work<'_>, window: &[u32], until: Instant, out: &mut Vec<u8>) {
        let unknown = usize::MAX;
        let master = |slots: &Slots, index: u32| slots.master_of(work.slot(index));
        let mut plan: Vec<(usize, u32)> = window
            .iter()
            .map(|index| (master(&self.slots, *index).unwrap_or(unknown), *index))
            .collect();
        plan.sort_unstable();
        let indexes: Vec<u32> = plan.iter().map(|(_, index)| *index).collect();
        let mut single: Vec<u32> = Vec::new();
        let mut sent: Vec<(Handle, std::ops::Range<usize>)> = Vec::new();
        let mut at = 0;
        for group in plan.chunk_by(|a, b| a.0 == b.0) {
            let range = at..at + group.len();
            at = range.end;
            let address = self.slots.masters().get(group[0].0);
            if let Some(address) = address.filter(|address| work.given_up.contains(address)) {
                let text = "the master has not answered for a whole deadline";
                work.trouble = Some(Failure::new(libc::ETIMEDOUT, text));
                work.stuck.push(address.clone());
                continue;
            }
            let handle = self.handle(group[0].0).filter(|handle| handle.node.lock().is_open());
            let Some(handle) = handle else {
                single.extend_from_slice(&indexes[range]);
                continue;
            };
            let result = work.send(&mut handle.node.lock(), range.clone(), &indexes, until, out);
            match result {
                Ok(()) => {
                    if !work.asked.contains(&handle.address) {
                        work.asked.push(handle.address.clone());
                    }
                    sent.push((handle, range));
                }
                Err(failure) => {
                    work.trouble = Some(failure);
                    single.extend_from_slice(&indexes[range]);
                }
            }
        }
        for (handle, range) in sent {
            let result = work.receive(
                &mut handle.node.lock(),
                &indexes[range],
                until,
                Some(&handle.address),
            );
            match result {
                Ok(elsewhere) => single.extend(elsewhere),
                Err(failure) => self.trouble(work, failure, Some(handle.address)),
            }
        }
        self.one_by_one(work, &single, until);
        self.suspect |= work.stuck.iter().any(|address| !work.given_up.contains(address));
    }

    fn trouble(&mut self, work: &mut Work<'_>, failure: Failure, address: Option<Address>) {
        if failure.errno == libc::EPROTO || failure.errno == libc::EACCES {
            work.fatal.get_or_insert(failure.clone());
        }
        work.trouble = Some(failure);
        work.stuck.extend(address);
        self.suspect = true;
    }

    /// What was not where it was thought to be, and what has no connection yet.
    fn one_by_one(&mut self, work: &mut Work<'_>, indexes: &[u32], until: Instant) {
        for index in indexes {
            let master = self.slots.master_of(work.slot(*index));
            let address = master.and_then(|master| self.slots.masters().get(master)).cloned();
            if address.as_ref().is_some_and(|address| work.stuck.contains(address)) {
                continue;
            }
            let (answered, last) = self.request(&work.command(*index), until);
            let taken = match answered {
                Ok(value) => work.answer_value(*index, &value),
                Err(failure) => {
                    let answer = failure.errno != libc::EPROTO && failure.errno != libc::EACCES;
                    match failure.errno {
                        libc::ENOSPC => drop(work.fatal.get_or_insert(failure)),
                        _ if answer => self.trouble(work, failure, address.clone()),
                        _ => self.trouble(work, failure, None),
                    }
                    continue;
                }
            };
            match taken {
                Ok(Outcome::Settled) if work.replicas() > 0 => {
                    let mut wait = Vec::new();
                    work.encode_wait(&mut wait, until);
                    let result = match last {
                        Some(handle) => {
                            let mut node = handle.node.lock();
                            node.send(&wait, until).and_then(|()| {
                                node.receive(until, OBJECT_BYTES, |reply: &Reply<'_>| {
                                    work.replicated(&[*index], reply)
                                })
                            })
                        }
                        None => Err(Failure::odd("nothing was asked")),
                    };
                    if let Err(failure) = result {
                        self.trouble(work, failure, address);
                    }
                }
                Ok(_) => {}
                Err(failure) => self.trouble(work, failure, address),
            }
        }
    }
}

/// An error of the crate's own, or one that a server answered.
fn of_crate(error: &RedisError) -> Failure {
    match error.code() {
        Some(code) => {
            failure::answered(format!("{code} {}", error.detail().unwrap_or("")).as_bytes())
        }
        None if error.is_io_error() => Failure::new(libc::ENOTCONN, error.to_string()),
        None => Failure::new(libc::EAGAIN, error.to_string()),
    }
}

impl Link {
    /// Does what it can of a request.
    ///
    /// # Errors
    /// If the link can't be used any more.
    pub(super) fn exchange(&mut self, work: &mut Work<'_>, until: Instant) -> Result<(), Failure> {
        work.stuck.clear();
        for window in work.windows() {
            match &mut self.kind {
                Kind::Single(node) => {
                    work.send(node, 0..window.len(), &window, until, &mut self.out)?;
                    if !work.receive(node, &window, until, None)?.is_empty() {
                        return Err(Failure::odd(
                            "the server is a node of a cluster, which needs cluster=on",
                        ));
                    }
                }
                Kind::Cluster(cluster) => {
                    cluster.exchange(work, &window, until, &mut self.out);
                }
            }
            if work.fatal.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Whether a connection that was not used for a while can be.
    pub(super) fn quiet(&self) -> bool {
        match &self.kind {
            Kind::Single(node) => node.quiet(),
            Kind::Cluster(cluster) => cluster.slots.masters().iter().all(|address| {
                let handle = cluster.nodes.iter().find(|handle| handle.address == *address);
                handle.is_none_or(|handle| handle.node.lock().quiet())
            }),
        }
    }

    /// Whether it can be used, whatever failed on it.
    pub(super) fn is_open(&self) -> bool {
        match &self.kind {
            Kind::Single(node) => node.is_open(),
            Kind::Cluster(_) => true,
        }
    }

    /// Whether it should be made again, since the cluster may have changed.
    pub(super) fn stale(&self) -> bool {
        match &self.kind {
            Kind::Single(node) => !node.is_open(),
            Kind::Cluster(cluster) => cluster.suspect && cluster.made.elapsed() > STALE,
        }
    }

    /// A command about one key.
    pub(super) fn command(&mut self, command: &Cmd, until: Instant) -> Result<Value, Failure> {
        match &mut self.kind {
            Kind::Single(node) => node.command(command, until),
            Kind::Cluster(cluster) => {
                let (result, _) = cluster.request(command, until);
                cluster.suspect |= result.is_err();
                result
            }
        }
    }

    /// Does something with each master.
    pub(super) fn masters(
        &mut self,
        each: &mut dyn FnMut(&mut Node) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match &mut self.kind {
            Kind::Single(node) => each(node),
            Kind::Cluster(cluster) => {
                for master in 0..cluster.slots.masters().len() {
                    let absent = || Failure::new(libc::ENOTCONN, "a master can't be reached");
                    let handle = cluster.handle(master).ok_or_else(absent)?;
                    let result = each(&mut handle.node.lock());
                    cluster.suspect |= result.is_err();
                    result?;
                }
                Ok(())
            }
        }
    }
}

/// `Err` if a value is an error that a server answered.
pub(super) fn accepted(value: Value) -> Result<Value, Failure> {
    match value {
        Value::ServerError(error) => {
            let text = format!("{} {}", error.code(), error.details().unwrap_or(""));
            Err(failure::answered(text.as_bytes()))
        }
        value => Ok(value),
    }
}
