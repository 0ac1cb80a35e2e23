//! A tier that is emptied: it goes on in the daemon, whether anybody watches or not. A worker that
//! dies meanwhile has a successor, which goes on; the watching goes on with it.

use super::client::{Outcome, Socket};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::time::{Duration, Instant};
use swapfs_format::size::human;
use swapfsd::admin::{Progress, Request};

/// How long a successor may take to listen, after the connection was lost.
pub const RETURN_LIMIT: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const ATTEMPT_STEP: Duration = Duration::from_millis(200);

/// How it ended, for whoever watched.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The tier is empty, and no longer part of the volume.
    Removed {
        /// Pages that were moved, as far as was told.
        moved_pages: u64,
    },
    /// The person wants to see no more; it goes on.
    Left,
    /// It was refused, or failed.
    Failed(String),
}

/// Follows a removal to its end.
pub struct Watcher<'a> {
    /// Where to ask.
    pub socket: &'a Socket,
    /// The tier, if it is known.
    pub tier: Option<u32>,
    /// Is told how it gets on.
    pub progress: &'a mut dyn FnMut(&Progress),
    /// Whether the person wants to see no more.
    pub leave: &'a dyn Fn() -> bool,
    /// How long a successor may take: [`RETURN_LIMIT`].
    pub return_limit: Duration,
}

impl Watcher<'_> {
    /// Sends `first`, which asks for the removal or to watch one, and follows.
    pub fn follow(&mut self, first: &Request) -> End {
        let mut moved_pages = 0;
        let mut request = first.clone();
        // Since when it has been out of reach.
        let mut lost: Option<Instant> = None;
        loop {
            let mut heard = false;
            let told = &mut *self.progress;
            let outcome = self.socket.follow(
                &request,
                &mut |now| {
                    (heard, moved_pages) = (true, now.moved_pages);
                    told(now);
                },
                self.leave,
            );
            if heard {
                lost = None;
            }
            match outcome {
                Outcome::Done(_) => return End::Removed { moved_pages },
                Outcome::Left => return End::Left,
                // A successor that has begun to serve, or ended what was to be watched.
                Outcome::Refused(why) if lost.is_some() => match self.state() {
                    Some(State::Gone) => return End::Removed { moved_pages },
                    Some(State::Staying) => return End::Failed(why),
                    Some(State::Leaving) | None => {}
                },
                Outcome::Unreachable(_) if lost.is_some() => {}
                // The worker that was asked may be dying.
                Outcome::Lost => {}
                Outcome::Refused(_)
                | Outcome::Unreachable(_)
                | Outcome::Silent(_)
                | Outcome::Strange(_) => return End::Failed(outcome.to_string()),
            }
            let since = *lost.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.return_limit {
                return End::Failed(format!(
                    "the daemon was lost, and nobody has answered for {} s: see 'swapfs status'; \
                     if another takes over, it goes on: 'swapfs tier watch' shows it",
                    self.return_limit.as_secs()
                ));
            }
            if (self.leave)() {
                return End::Left;
            }
            std::thread::sleep(ATTEMPT_STEP);
            request = Request::Watch;
        }
    }

    /// What has become of the tier; `None`: nobody says.
    fn state(&self) -> Option<State> {
        let done = self.socket.ask(&Request::Tiers).ok()?;
        let tier = self.tier?;
        let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64);
        let is_there = done.tiers?.iter().any(|one| number(one, "order") == Some(u64::from(tier)));
        let leaving = done.evacuation.is_some_and(|now| number(&now, "tier").is_some());
        Some(match (is_there, leaving) {
            (false, _) => State::Gone,
            (true, true) => State::Leaving,
            (true, false) => State::Staying,
        })
    }
}

enum State {
    Gone,
    Leaving,
    Staying,
}

/// What is shown meanwhile, on a terminal.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar that says what it is about.
    #[must_use]
    pub fn new(what: String) -> Bar {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {percent} % {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        Bar { bar }
    }

    /// So far it is.
    pub fn at(&self, now: &Progress) {
        self.bar.set_length(now.moved_pages + now.left_pages);
        self.bar.set_position(now.moved_pages);
        self.bar.set_message(describe(now));
    }

    /// Takes it away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// `1.2 GiB left, 250 MiB/s, 5 s`
fn describe(now: &Progress) -> String {
    let mut text = format!("{} left, {}/s", human(now.left_bytes), human(now.bytes_per_s));
    if let Some(seconds) = now.eta_s {
        match seconds {
            0..120 => text.push_str(&format!(", {seconds} s")),
            120..7200 => text.push_str(&format!(", {} min", seconds / 60)),
            _ => text.push_str(&format!(", {} h", seconds / 3600)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_in_words() {
        let mut now = Progress {
            left_bytes: 3 << 30,
            moved_pages: 1,
            left_pages: 9,
            bytes_per_s: 250 << 20,
            eta_s: Some(12),
        };
        assert_eq!(describe(&now), "3 GiB left, 250 MiB/s, 12 s");
        now.eta_s = Some(600);
        assert_eq!(describe(&now), "3 GiB left, 250 MiB/s, 10 min");
        now.eta_s = None;
        assert_eq!(describe(&now), "3 GiB left, 250 MiB/s");
    }
}
