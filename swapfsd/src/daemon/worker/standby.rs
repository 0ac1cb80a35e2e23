//! The worker that waits for its turn, and what it does when it comes.

use super::{SEAT_PATIENCE, StartError, Worker, populate, spawn};
use crate::control::HANDOVER_VERSION;
use crate::crash;
use crate::fuse::adopt::Negotiated;
use crate::fuse::{Connection, Transport};
use crate::seat::Role;
use crate::supervisor::link::{Kind, Link};
use crate::sys::process;
use crate::sys::spawn::{self as processes, Process};
use log::{error, info};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// How often a standby looks for memory that its predecessor has populated.
const WARM: Duration = Duration::from_millis(200);
/// How often a standby without a supervisor looks whether the worker has died too.
const RESCUE_STEP: Duration = Duration::from_millis(2);
/// A standby without a supervisor is needed no more when somebody has served so long, and been
/// watched over by a new one.
const GUARDED_FOR: Duration = Duration::from_secs(1);
/// So long a new supervisor's own worker may take to serve when the old one has died.
const NEW_SUPERVISORS_TURN: Duration = Duration::from_millis(200);

impl Worker {
    /// Makes everything ready, and waits. True: it serves now; false: it is not needed.
    pub(super) fn wait_for_turn(&mut self, link: &Link) -> Result<bool, StartError> {
        let system = |what: &'static str| move |error: io::Error| StartError::new(what, error);
        let negotiated = Negotiated {
            minor: self.page.fuse_minor.load(Relaxed),
            flags: self.page.fuse_flags.load(Relaxed),
        };
        let service = Arc::clone(&self.service);
        let broken = || system("a FUSE session");
        if let Transport::Uring(layout, buffers) = &self.transport {
            let device = self.fuse.try_clone().map_err(broken())?.into();
            let waiting = Connection::waiting_by_rings(service, device, *layout, buffers.clone());
            self.start_session(waiting.map_err(broken())?)?;
        } else {
            let (connection, waiting, muster) =
                Connection::waiting(service, self.threads, negotiated).map_err(broken())?;
            self.start_session(connection)?;
            waiting.call_all().map_err(broken())?;
            muster.wait();
            self.waiting = Some(waiting);
        }
        if self.protection.memory_locked {
            populate();
        }
        self.volume.warm();
        if self.protection.realtime {
            process::all_realtime().map_err(system("SCHED_RR"))?;
        }
        link.say(Kind::Ready, &HANDOVER_VERSION.to_le_bytes()).map_err(system("the link"))?;
        let warming = self.keep_warm()?;
        loop {
            let _ = processes::wait_readable(&[link.as_raw_fd()], None);
            match link.next() {
                Ok(Some(packet)) if packet.kind() == Some(Kind::TakeOver) => break,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    let rescued = self.rescue();
                    warming.store(false, Relaxed);
                    return rescued;
                }
            }
        }
        // Not waited for: it may be waiting for memory, and what it has not mapped is mapped now.
        warming.store(false, Relaxed);
        self.take_seat(SEAT_PATIENCE)?;
        self.take_over()?;
        Ok(true)
    }

    /// Starts a thread that puts into this process's page tables what the predecessor populates,
    /// for as long as the flag is set: an ordinary task, which at real-time priority would keep
    /// others from a processor for as long as a take-over; and not the one that is told to take
    /// over, since page tables take memory, which may have to be waited for.
    fn keep_warm(&self) -> Result<Arc<AtomicBool>, StartError> {
        let (volume, on) = (Arc::clone(&self.volume), Arc::new(AtomicBool::new(true)));
        spawn("warm", {
            let on = Arc::clone(&on);
            move || {
                process::stay_ordinary();
                while on.load(Relaxed) {
                    volume.warm();
                    thread::sleep(WARM);
                }
            }
        })?;
        Ok(on)
    }

    /// The supervisor has died. If the worker has died too, this process is the last one that can
    /// save the volume; if it lives, it finds itself another supervisor, and that one another
    /// standby.
    fn rescue(&mut self) -> Result<bool, StartError> {
        let dead = self.page.supervisor_pid.load(Relaxed);
        let mut guarded_since: Option<Instant> = None;
        let mut free_since: Option<Instant> = None;
        loop {
            let supervisor = self.page.supervisor_pid.load(Relaxed);
            let is_guarded = supervisor != 0
                && supervisor != dead
                && Process::open(supervisor as i32).is_ok_and(|it| it.ended().is_none());
            // The worker's seat is free only when it is dead, and nobody else serves.
            if self.take_seat(Duration::ZERO).is_ok() {
                let since = *free_since.get_or_insert_with(Instant::now);
                if !is_guarded || since.elapsed() > NEW_SUPERVISORS_TURN {
                    break;
                }
                let given_back = self.seat.give_back(Role::Serve);
                given_back.map_err(|error| StartError::new("seat", error))?;
            } else {
                free_since = None;
            }
            if !is_guarded {
                guarded_since = None;
            } else if guarded_since.get_or_insert_with(Instant::now).elapsed() > GUARDED_FOR
                && free_since.is_none()
            {
                return Ok(false);
            }
            thread::sleep(RESCUE_STEP);
        }
        error!("supervisor and worker have died: the standby serves");
        self.take_over()?;
        self.page.takeovers.fetch_add(1, Relaxed);
        Ok(true)
    }

    /// The predecessor has ended: serve what it left.
    fn take_over(&mut self) -> Result<(), StartError> {
        let started = Instant::now();
        self.beat();
        self.volume
            .activate(None)
            .map_err(|error| StartError::new("taking the volume over", error))?;
        let activated = started.elapsed();
        let started_serving = match (&self.waiting, &self.rings) {
            (Some(waiting), _) => waiting.start(&self.fuse),
            (None, Some(rings)) => rings.serve_drained(),
            (None, None) => Ok(()),
        };
        started_serving.map_err(|error| StartError::new("taking the connection over", error))?;
        info!(
            "took over in {} us, {} us of it for the back end",
            started.elapsed().as_micros(),
            activated.as_micros()
        );
        crash::arm_from_environment();
        Ok(())
    }
}
