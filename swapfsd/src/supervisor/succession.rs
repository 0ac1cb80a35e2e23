//! The death of the worker that serves, and who serves next.

use super::link::Kind;
use super::{End, Supervisor, Worker, now};
use crate::sys::spawn::{self, Ended};
use log::{error, info, warn};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

/// A mount that nobody has served yet, and whose workers die one after the other, has failed.
const TRIES_AT_START: u32 = 3;

impl Supervisor {
    pub(super) fn look_for_death(&mut self) {
        if let Some(worker) = &self.serving
            && let Some(ended) = worker.process.ended()
        {
            let now_ns = spawn::boot_time_ns();
            let life = Duration::from_nanos(now_ns.saturating_sub(worker.since_ns));
            let (pid, was_up) = (worker.process.pid(), worker.up);
            // Its last words may have come just before.
            self.hear_serving();
            self.serving = None;
            self.known[1] = pid;
            if self.end.is_some() {
                return;
            }
            if !self.has_served && self.was_in_vain() {
                self.end = Some(End::Failed);
                return;
            }
            if !self.connection_lives() {
                info!("worker {pid} {ended}, and the volume is not mounted any more");
                self.end = Some(if self.failure.len > 0 { End::Failed } else { End::Unmounted });
                return;
            }
            if self.parts.control.page().holds_requests.load(SeqCst) != 0
                && let Some(abort) = &self.parts.abort
            {
                error!(
                    "worker {pid} {ended}: with transport=uring its requests die with it, and what \
                     was swapped out is lost: the connection is ended"
                );
                abort.abort();
                self.failure.set(b"the worker died, and transport=uring does not survive that");
                self.end = Some(End::Failed);
                return;
            }
            let life = if was_up { life } else { Duration::ZERO };
            self.mourn(pid, ended, life, now_ns);
        }
        if self.serving.is_none()
            && let Some(died_ns) = self.died_ns
            && spawn::boot_time_ns() >= self.not_before_ns
        {
            self.replace(died_ns);
        }
    }

    /// The first worker has died before it served: nobody has had an answer from it, or no other
    /// one would do better.
    fn was_in_vain(&self) -> bool {
        !self.may_have_answered || self.failure.len > 0 || self.parts.abort.is_some()
    }

    /// A worker that served has died.
    fn mourn(&mut self, pid: libc::pid_t, ended: Ended, life: Duration, now_ns: u64) {
        self.died_ns = Some(self.died_ns.unwrap_or(now_ns));
        self.roll_back_after(pid, ended);
        if self.is_switching() {
            self.not_before_ns = now_ns;
            return;
        }
        self.parts.control.page().takeovers.fetch_add(1, Relaxed);
        let wait = self.backoff.after(ended, life);
        if !self.has_served {
            self.deaths_at_start += 1;
            if self.deaths_at_start > TRIES_AT_START {
                self.end = Some(End::Failed);
                return;
            }
        }
        self.not_before_ns = now_ns + wait.as_nanos() as u64;
        if wait.is_zero() {
            // First of all: the kernel's log may be a slow serial line.
            self.replace(self.died_ns.unwrap_or(now_ns));
            warn!("worker {pid} {ended}: the standby takes over");
        } else {
            error!(
                "worker {pid} {ended}, the {}th in a row: the next one takes over in {} ms",
                self.backoff.crashes(),
                wait.as_millis()
            );
        }
    }

    /// Has the standby serve; one that is just coming up does so as soon as it can.
    pub(super) fn replace(&mut self, died_ns: u64) {
        self.died_ns = Some(died_ns);
        // What a dead worker left there says nothing of its successor.
        let page = self.parts.control.page();
        page.oldest_ms.store(0, Relaxed);
        page.in_device.store(0, Relaxed);
        page.in_flight.store(0, Relaxed);
        // An upgrade keeps the standby as it is, should the new program fail.
        let told = |worker: &Worker| worker.link.say(Kind::TakeOver, &[]).is_ok();
        let mut next = self.take_candidate().filter(told);
        if next.is_none() {
            // A new program that is dead already: the old one goes on.
            self.roll_back_dead();
            next = self.standby.take().filter(told);
            self.parts.control.page().standby_pid.store(0, Relaxed);
        }
        if next.is_none() {
            let started = self.start_worker(Kind::StandBy).and_then(|worker| {
                worker.link.say(Kind::TakeOver, &[])?;
                Ok(worker)
            });
            match started {
                Ok(worker) => next = Some(worker),
                Err(error) => {
                    error!("starting a worker: {error}");
                    if !self.has_served {
                        self.failure.set(b"the worker died, and another one can't be started");
                        self.end = Some(End::Failed);
                        return;
                    }
                    let retry = Duration::from_millis(100);
                    self.not_before_ns = spawn::boot_time_ns() + retry.as_nanos() as u64;
                    return;
                }
            }
        }
        if let Some(worker) = &mut next {
            if !worker.up {
                // It comes up as an ordinary task; now somebody waits for it.
                worker.process.hurry();
            }
            worker.up = false;
            worker.since_ns = spawn::boot_time_ns();
        }
        self.serving = next;
        self.standby_at_ns = 0;
        self.watchdog.restart(now());
    }

    /// The kernel still has the connection: it was not unmounted or aborted.
    fn connection_lives(&self) -> bool {
        spawn::readiness(self.parts.holdings.fuse.as_raw_fd()) & libc::POLLERR == 0
    }
}
