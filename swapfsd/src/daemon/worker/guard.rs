//! Who watches over the worker.

use super::keeper::LinkKeeper;
use super::{Arguments, SUPERVISOR_RETRY, SUPERVISOR_RETRY_MOST};
use crate::control::Page;
use crate::supervisor::link::{Holdings, Kind, Link};
use crate::sys::spawn::{self as processes, Command, Process};
use log::error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Who watches over this worker; should they die, it finds itself someone new.
pub(super) struct Guard<'a> {
    arguments: &'a Arguments,
    first: &'a Link,
    /// The one that this worker has started, and its end of the link.
    started: Option<(Process, Link)>,
    alone: bool,
    retry: Duration,
    started_at: Instant,
}

impl<'a> Guard<'a> {
    pub(super) fn new(arguments: &'a Arguments, link: &'a Link) -> Guard<'a> {
        Guard {
            arguments,
            first: link,
            started: None,
            alone: false,
            retry: Duration::ZERO,
            started_at: Instant::now(),
        }
    }

    pub(super) fn link(&self) -> &Link {
        self.started.as_ref().map_or(self.first, |(_, link)| link)
    }

    /// The other end of the link is closed.
    pub(super) fn is_bereft(&self) -> bool {
        self.alone || processes::readiness(self.link().as_raw_fd()) & libc::POLLHUP != 0
    }

    pub(super) fn descriptor(&self) -> i32 {
        if self.alone { -1 } else { self.link().as_raw_fd() }
    }

    /// While somebody watches there is nothing to be done here.
    pub(super) fn time_to_wait(&self) -> Option<Duration> {
        self.alone.then(|| self.retry.saturating_sub(self.started_at.elapsed()))
    }

    /// Answers what the supervisor says.
    pub(super) fn look(&mut self, keeper: &LinkKeeper, page: &Page) -> Option<Kind> {
        let mut said = None;
        if !self.alone && processes::readiness(self.link().as_raw_fd()) & libc::POLLIN != 0 {
            match self.link().next() {
                Ok(Some(packet)) => {
                    said = packet.kind();
                    if said == Some(Kind::MemberHeld) {
                        keeper.answered(packet.payload());
                    }
                }
                Ok(None) | Err(_) => {
                    self.bereft(page);
                    keeper.bereft();
                }
            }
        }
        if self.alone && self.started_at.elapsed() >= self.retry {
            self.start(keeper);
        }
        said
    }

    fn bereft(&mut self, page: &Page) {
        self.alone = true;
        page.supervisor_pid.store(0, Relaxed);
        page.standby_pid.store(0, Relaxed);
        if let Some((process, _)) = &self.started {
            // Our child: its remains are cleared away.
            let _ = process.wait(Duration::from_secs(1));
        }
        let lived = self.started_at.elapsed();
        self.retry = match lived {
            _ if self.started.is_none() || lived > SUPERVISOR_RETRY_MOST => Duration::ZERO,
            _ => (self.retry * 2).clamp(SUPERVISOR_RETRY, SUPERVISOR_RETRY_MOST),
        };
        error!("the supervisor has died: the worker goes on, and starts another one");
    }

    fn start(&mut self, keeper: &LinkKeeper) {
        self.started_at = Instant::now();
        match keeper.hand_over(|holdings| start_supervisor(self.arguments, holdings)) {
            Ok(started) => {
                self.started = Some(started);
                self.alone = false;
            }
            Err(error) => {
                self.retry = (self.retry * 2).clamp(SUPERVISOR_RETRY, SUPERVISOR_RETRY_MOST);
                error!("starting a supervisor: {error}: again in {} s", self.retry.as_secs());
            }
        }
    }
}

/// Starts a supervisor and hands everything over to it.
fn start_supervisor(arguments: &Arguments, holdings: &Holdings) -> io::Result<(Process, Link)> {
    use std::os::fd::AsFd;
    let option = format!("--supervise={}", processes::LINK_DESCRIPTOR);
    let (image, mount) = (&arguments.image, &arguments.mountpoint);
    let words = arguments.derived("swapfsd", Some(&option), image, mount);
    let command = Command::new(File::open("/proc/self/exe")?, &words)?;
    let (ours, theirs) = Link::pair()?;
    ours.hand_over(Kind::Adopt, holdings)?;
    let process = command.start(theirs.as_fd())?;
    Ok((process, ours))
}
