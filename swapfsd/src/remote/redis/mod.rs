//! Redis or Valkey as a store of objects: one server, or a cluster of them.
//!
//! ```text
//! RedisStore --> Convoy --> Pool --> Link (a server, or the crate's cluster client) --> Node --> Stream
//! ```
//!
//! Small requests to get objects may travel together ([`convoy`]). Else a request takes a link of its
//! own, sends its commands, receives their replies, and gives the link back. Every system call on the
//! way ends by the request's deadline. After anything odd a connection is closed, so that a reply that
//! comes late can't be taken for another one. What was not answered is tried again over another link:
//! all requests may be made twice, since no key ever stands for another object.

mod convoy;
mod counters;
mod dial;
mod failure;
mod gc;
mod handle;
mod link;
mod mark;
mod node;
mod policy;
mod pool;
mod reply;
mod settings;
mod slots;
mod stream;
mod upkeep;
mod work;

#[cfg(test)]
mod tests;

pub use gc::{RemoteRun, RemoteVolume, list, mark as mark_of, remove};
pub use mark::{FRESH, Mark};
pub use settings::{Credentials, RedisSettings, ServerSettings};

use super::{Key, ObjectStore};
use crate::control::InDevice;
use crate::sync::{Condvar, Mutex};
use crate::sys::network_heap::NetworkPath;
use convoy::{Convoy, Lead, MAX_KEYS, Way};
use counters::{Counters, count};
use failure::Failure;
use link::{Link, Maker};
use log::warn;
use pool::Pool;
use slots::Address;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use upkeep::{OwnMark, Upkeep};
use work::{Names, Objects, Work};

/// An attempt of a request ends after this part of the deadline, so that another way is tried.
const ATTEMPTS: u32 = 4;
/// But an attempt has that long, if the deadline allows.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Requests under way at a time before others travel with them.
const MAX_LEADERS: usize = 4;
/// How long an attempt may take that others travel with: one master of a cluster that hangs holds up
/// those who want something of the others no longer. An attempt alone has as much at least.
const TOGETHER: Duration = ATTEMPT;
/// With less time than that, or that part of the deadline, another attempt is not begun: it could not
/// tell more than the last one has.
const SHORT: Duration = Duration::from_millis(250);
const SHORT_PART: u32 = 8;
/// How often removing everything is tried.
const CLEAR_ATTEMPTS: u32 = 4;
/// A master that has failed for a whole deadline is tried that often.
const PROBE: Duration = Duration::from_secs(1);
/// How long is waited before something is tried again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

/// Objects on Redis or Valkey.
#[derive(Debug)]
pub struct RedisStore {
    shared: Arc<Shared>,
}

/// A master of a cluster at which requests failed.
#[derive(Debug)]
struct Failing {
    address: Address,
    since: Instant,
    /// When a request was last let through to it.
    tried: Instant,
}

#[derive(Debug)]
struct Shared {
    settings: RedisSettings,
    names: Names,
    pool: Arc<Pool>,
    convoy: Convoy,
    counters: Arc<Counters>,
    failing: Mutex<Vec<Failing>>,
    failing_count: AtomicUsize,
    /// What the mark says; `None`: it is not written any more.
    mark: Mutex<Option<OwnMark>>,
    /// Whether this process uses the store: one that only stands by must leave no mark.
    asked: AtomicBool,
    upkeep: Mutex<Upkeep>,
    /// What `upkeep` says has changed.
    turn: Condvar,
    /// Whether it was said how the servers evict.
    policy_told: AtomicBool,
    /// When the log was last told that a request failed.
    told: Mutex<Option<Instant>>,
}

impl RedisStore {
    /// A store, whose connections are made in the background once it is asked for something. The
    /// server need not be there: [`ObjectStore::check`] tells.
    ///
    /// # Errors
    /// `EINVAL` with a text for settings that make no sense and certificates that can't be read;
    /// if no thread can be started.
    pub fn new(settings: RedisSettings) -> io::Result<RedisStore> {
        let _path = NetworkPath::enter();
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        if settings.connections == 0 || settings.server.deadline.is_zero() {
            return Err(invalid("there must be connections and a deadline".to_owned()));
        }
        let maker = Maker::new(&settings.server).map_err(invalid)?;
        let counters = Arc::new(Counters::default());
        let deadline = settings.server.deadline;
        let pool = Pool::start(maker, settings.connections, deadline, Arc::clone(&counters))?;
        let shared = Arc::new(Shared {
            names: Names::new(settings.volume, settings.run),
            pool: Arc::clone(&pool),
            convoy: Convoy::new(settings.connections.min(MAX_LEADERS), convoy::WAIT),
            counters,
            failing: Mutex::new(Vec::new()),
            failing_count: AtomicUsize::new(0),
            mark: Mutex::new(Some(OwnMark::new(settings.run))),
            asked: AtomicBool::new(false),
            upkeep: Mutex::new(Upkeep::default()),
            turn: Condvar::new(),
            policy_told: AtomicBool::new(false),
            told: Mutex::new(None),
            settings,
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("remote-upkeep".to_owned());
        if let Err(error) = thread.spawn(move || own.keep_up()) {
            pool.stop();
            return Err(error);
        }
        Ok(RedisStore { shared })
    }

    /// Asks for objects; small requests travel together where that helps.
    fn get_by(&self, keys: &[Key], each: &mut dyn FnMut(usize, Option<&[u8]>)) -> Result<(), i32> {
        let shared = &*self.shared;
        let (started, until) = (Instant::now(), super::end_of(shared.settings.server.deadline));
        let mut left: [bool; MAX_KEYS] = [true; MAX_KEYS];
        let mut each_once = |index: usize, value: Option<&[u8]>| {
            left[index] = false;
            each(index, value);
        };
        match shared.way_of(keys, until) {
            Way::Alone => {}
            Way::Leads(lead) => shared.lead(lead, keys, until, &mut each_once),
            Way::Carried(arrival) => {
                count(&shared.counters.carried_requests, 1);
                arrival.unpack(&mut each_once);
            }
        }
        if keys.len() > MAX_KEYS || left[..keys.len()].iter().all(|left| *left) {
            return self.run(Objects::Get(keys), each, started, until);
        }
        let left: Vec<usize> = (0..keys.len()).filter(|index| left[*index]).collect();
        let keys: Vec<Key> = left.iter().map(|index| keys[*index]).collect();
        self.run(Objects::Get(&keys), &mut |index, value| each(left[index], value), started, until)
    }

    /// Does a request that began then and has to end by `until`.
    fn run(
        &self,
        objects: Objects<'_>,
        each: &mut dyn FnMut(usize, Option<&[u8]>),
        started: Instant,
        until: Instant,
    ) -> Result<(), i32> {
        let shared = &*self.shared;
        count(&shared.counters.requests, 1);
        let replicas = shared.settings.replicas;
        let result = match objects.len() {
            0 => Ok(()),
            _ => {
                let mut work = Work::new(objects, each, &shared.names, replicas, &shared.counters);
                let done = shared.attempts(&mut work, started, until);
                done.map_err(|failure| work.why(failure))
            }
        };
        let spent = started.elapsed().as_micros() as u64;
        count(&shared.counters.request_us, spent);
        result.map_err(|failure| {
            shared.counters.failed(&failure);
            shared.tell(&failure);
            // What may work later did not until the deadline.
            if failure.errno == libc::EAGAIN { libc::ETIMEDOUT } else { failure.errno }
        })
    }

    /// Around each request: what it allocates, who watches it, and that the store is used.
    fn request(
        &self,
        objects: Objects<'_>,
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    ) -> Result<(), i32> {
        if objects.len() == 0 {
            return Ok(());
        }
        let _device = InDevice::enter();
        let _path = NetworkPath::enter();
        self.shared.ask();
        match objects {
            Objects::Get(keys) => self.get_by(keys, each),
            objects => {
                let until = super::end_of(self.shared.settings.server.deadline);
                self.run(objects, each, Instant::now(), until)
            }
        }
    }
}

impl Shared {
    fn attempts(
        &self,
        work: &mut Work<'_>,
        started: Instant,
        until: Instant,
    ) -> Result<(), Failure> {
        let mut pause = PAUSE.0;
        let short = SHORT.min(self.settings.server.deadline / SHORT_PART);
        work.given_up = self.given_up();
        loop {
            // A link would be closed for what is ours to answer for.
            if Instant::now() >= until {
                return Err(Failure::time_out());
            }
            let link = self.pool.take(until)?;
            self.attempt(link, work, until.min(Instant::now() + self.patience()));
            if let Some(failure) = work.fatal.take() {
                return Err(failure);
            }
            if work.left() == 0 {
                self.working(work);
                return Ok(());
            }
            let trouble = work.trouble.clone().unwrap_or_else(Failure::time_out);
            let now = Instant::now();
            if trouble.errno == libc::EPROTO && work.stuck.is_empty() {
                return Err(trouble);
            }
            if now >= until || self.hopeless(work, started) {
                return Err(trouble);
            }
            count(&self.counters.retries, 1);
            std::thread::sleep(pause.min(until - now));
            pause = (2 * pause).min(PAUSE.1);
            if Instant::now() + short >= until {
                self.hopeless(work, started);
                return Err(trouble);
            }
        }
    }

    /// How long an attempt may take.
    fn patience(&self) -> Duration {
        (self.settings.server.deadline / ATTEMPTS).max(ATTEMPT)
    }

    /// Whether small requests may travel together now: with time for an attempt alone behind it, and
    /// where no master is known to fail.
    fn way_of(&self, keys: &[Key], until: Instant) -> Way<'_> {
        let has_time = until.saturating_duration_since(Instant::now()) >= 2 * TOGETHER;
        match has_time && self.failing_count.load(Ordering::Relaxed) == 0 {
            true => self.convoy.join(keys),
            false => Way::Alone,
        }
    }

    /// Does what it can of a request over a link, until then.
    fn attempt(&self, mut link: Link, work: &mut Work<'_>, until: Instant) {
        let begun = Instant::now();
        work.begin_attempt();
        match link.exchange(work, until) {
            Ok(()) => self.pool.give(link),
            Err(failure) => {
                drop(link);
                self.pool.lose(begun, &failure);
                work.trouble = Some(failure);
            }
        }
    }

    /// Makes one attempt to get objects, and what others want who have come meanwhile.
    fn lead(
        &self,
        mut lead: Lead<'_>,
        keys: &[Key],
        until: Instant,
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    ) {
        let begun = Instant::now();
        // If there is none, those who wait find out by themselves why.
        let Ok(link) = self.pool.take(until.min(begun + convoy::WAIT)) else { return };
        let mut all = lead.board(keys.len());
        let others = all.len();
        all.extend_from_slice(keys);
        // The leader's own are kept until the others have theirs: what it does with them may take
        // long, and is nothing to them.
        let mut own: [Option<Option<Vec<u8>>>; MAX_KEYS] = Default::default();
        let mut deliver = |place: usize, value: Option<&[u8]>| match place.checked_sub(others) {
            Some(index) => own[index] = Some(value.map(<[u8]>::to_vec)),
            None => lead.deliver(place, value),
        };
        let mut work = Work::new(Objects::Get(&all), &mut deliver, &self.names, 0, &self.counters);
        self.attempt(link, &mut work, until.min(Instant::now() + TOGETHER));
        if work.left() == 0 {
            self.working(&work);
        } else {
            count(&self.counters.retries, 1);
            self.convoy.disperse();
        }
        drop(lead);
        for (index, value) in own.iter().enumerate() {
            if let Some(value) = value {
                each(index, value.as_deref());
            }
        }
    }

    /// Everything was done: no master fails that was asked.
    fn working(&self, work: &Work<'_>) {
        if self.failing_count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut failing = self.failing.lock();
        failing.retain(|failing| !work.asked.contains(&failing.address));
        self.failing_count.store(failing.len(), Ordering::Relaxed);
    }

    /// Masters that failed for a whole deadline, and need not be tried again now.
    fn given_up(&self) -> Vec<Address> {
        if self.failing_count.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let deadline = self.settings.server.deadline;
        let mut given_up = Vec::new();
        for failing in self.failing.lock().iter_mut() {
            if failing.since.elapsed() < deadline {
                continue;
            }
            if failing.tried.elapsed() < PROBE {
                given_up.push(failing.address.clone());
            } else {
                failing.tried = Instant::now();
            }
        }
        given_up
    }

    /// Notes what masters can't be reached since when, and whether all that is left waits for such
    /// that could not be for a whole deadline.
    fn hopeless(&self, work: &Work<'_>, started: Instant) -> bool {
        if work.stuck.is_empty() {
            return false;
        }
        let deadline = self.settings.server.deadline;
        let mut failing = self.failing.lock();
        for address in &work.stuck {
            if !failing.iter().any(|known| known.address == *address) {
                let (address, tried) = (address.clone(), Instant::now());
                failing.push(Failing { address, since: started, tried });
            }
        }
        self.failing_count.store(failing.len(), Ordering::Relaxed);
        work.stuck.iter().all(|address| {
            let known = failing.iter().find(|known| known.address == *address);
            known.is_some_and(|known| known.since.elapsed() >= deadline)
        })
    }

    /// Says in the log that requests fail, once in a while.
    fn tell(&self, failure: &Failure) {
        let mut told = self.told.lock();
        if told.is_none_or(|told| told.elapsed() > Duration::from_secs(10)) {
            *told = Some(Instant::now());
            drop(told);
            warn!("remote: a request failed: {failure}");
        }
    }

    /// Notes that this process uses the store.
    fn ask(&self) {
        if !self.asked.load(Ordering::Relaxed) && !self.asked.swap(true, Ordering::Relaxed) {
            self.upkeep.lock().asked = true;
            self.turn.notify_all();
        }
    }

    /// Does something with a link, again if that may help.
    fn over_link(
        &self,
        what: &mut dyn FnMut(&mut Link, Instant) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let deadline = self.settings.server.deadline;
        let until = super::end_of(deadline);
        let mut pause = PAUSE.0;
        loop {
            let mut link = self.pool.take(until)?;
            let begun = Instant::now();
            let patience = (deadline / ATTEMPTS).max(ATTEMPT);
            let failure = match what(&mut link, until.min(begun + patience)) {
                Ok(()) => {
                    self.pool.give(link);
                    return Ok(());
                }
                Err(failure) => failure,
            };
            self.give_or_lose(link, begun, &failure);
            let hopeless = matches!(failure.errno, libc::EPROTO | libc::EACCES | libc::ENOSPC);
            let left = until.saturating_duration_since(Instant::now());
            if hopeless || left.is_zero() {
                return Err(failure);
            }
            std::thread::sleep(pause.min(left));
            pause = (2 * pause).min(PAUSE.1);
        }
    }

    fn clear(&self, below: Option<u64>) -> Result<u64, Failure> {
        match below {
            None => *self.mark.lock() = None,
            Some(0) => return Ok(0),
            Some(_) => {}
        }
        let (volume, run) = (self.settings.volume, self.settings.run);
        let deadline = self.settings.server.deadline;
        let wanted = |of, number| of == run && below.is_none_or(|below| number < below);
        let mut total = 0;
        let mut left = CLEAR_ATTEMPTS;
        loop {
            // A link of the pool, since a new one might have to ask a name server.
            let mut link = self.pool.take(Instant::now() + deadline)?;
            let begun = Instant::now();
            let mut removed = 0;
            let progress = &mut |number| removed = number;
            let swept = gc::sweep(&mut link, volume, deadline, &wanted, Some(run), progress);
            let cleared = swept.and_then(|_| match below {
                None => gc::remove_mark(&mut link, &self.names, deadline),
                Some(_) => Ok(()),
            });
            total += removed;
            let Err(failure) = cleared else {
                self.pool.give(link);
                return Ok(total);
            };
            self.give_or_lose(link, begun, &failure);
            left -= 1;
            if left == 0 {
                return Err(failure);
            }
            std::thread::sleep(PAUSE.1);
        }
    }

    /// After a failure: a link that is in order none the less can be used again.
    fn give_or_lose(&self, link: Link, begun: Instant, failure: &Failure) {
        if link.is_open() {
            self.pool.give(link);
        } else {
            drop(link);
            self.pool.lose(begun, failure);
        }
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.shared.upkeep.lock().stopped = true;
        self.shared.turn.notify_all();
        self.shared.pool.stop();
    }
}

impl ObjectStore for RedisStore {
    fn put(&self, objects: &[(Key, &[u8])]) -> Result<(), i32> {
        self.request(Objects::Put(objects), &mut |_, _| {})
    }

    fn get(&self, keys: &[Key], each: &mut dyn FnMut(usize, Option<&[u8]>)) -> Result<(), i32> {
        self.request(Objects::Get(keys), each)
    }

    fn remove(&self, keys: &[Key]) -> Result<(), i32> {
        self.request(Objects::Remove(keys), &mut |_, _| {})
    }

    fn check(&self) -> Result<(), i32> {
        let _device = InDevice::enter();
        let _path = NetworkPath::enter();
        let shared = &*self.shared;
        shared.ask();
        let checked = shared.check_mark().and_then(|()| {
            if shared.policy_told.swap(true, Ordering::Relaxed) {
                return Ok(());
            }
            shared.over_link(&mut |link, until| policy::warn_of_eviction(link, until))
        });
        checked.map_err(|failure| {
            shared.tell(&failure);
            if failure.errno == libc::EAGAIN { libc::ETIMEDOUT } else { failure.errno }
        })
    }

    fn clear(&self, below: Option<u64>) -> Result<u64, i32> {
        let _device = InDevice::enter();
        let _path = NetworkPath::enter();
        self.shared.clear(below).map_err(|failure| {
            self.shared.tell(&failure);
            if failure.errno == libc::EAGAIN { libc::ETIMEDOUT } else { failure.errno }
        })
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        self.shared.counters.report(report);
        report("live_connections", self.shared.pool.live() as u64);
        report("failing_masters", self.shared.failing_count.load(Ordering::Relaxed) as u64);
    }
}
