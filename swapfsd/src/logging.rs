//! Logging that never makes the I/O path wait: promise 3.
//!
//! A line is formatted into a fixed place of a bounded queue; a thread of its own writes it out
//! (standard error may be a pipe to a process that is swapped out). When the queue is full the
//! line is dropped and counted. In the foreground env_logger writes the lines, and decides by
//! `SWAPFSD_LOG` which ones; in the background they go to the kernel's log, where the kernel's
//! own messages about swap are.

use crate::sync::{Condvar, Mutex};
use log::{LevelFilter, Log, Metadata, Record};
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const QUEUE_LINES: usize = 256;
const LINE_BYTES: usize = 480;

static LOGGER: OnceLock<QueueLogger> = OnceLock::new();
/// The image, in front of each line of the kernel's log, where other volumes speak too.
static SUBJECT: OnceLock<String> = OnceLock::new();

/// Where lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard error, by env_logger.
    StandardError,
    /// `/dev/kmsg`.
    KernelLog,
}

struct Line {
    level: log::Level,
    len: usize,
    bytes: [u8; LINE_BYTES],
}

impl Line {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.len]).into_owned()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let len = text.len().min(LINE_BYTES - self.len);
        self.bytes[self.len..][..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Line>,
    /// The writer has taken lines and not yet written them.
    writing: bool,
}

struct QueueLogger {
    filter: env_logger::Logger,
    target: LogTarget,
    queue: Mutex<Queue>,
    changed: Condvar,
    drained: Condvar,
    dropped: AtomicU64,
}

impl Log for QueueLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let mut line = Line { level: record.level(), len: 0, bytes: [0; LINE_BYTES] };
        let _ = line.write_fmt(*record.args());
        let mut queue = self.queue.lock();
        if queue.lines.len() == QUEUE_LINES {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.lines.push_back(line);
        drop(queue);
        self.changed.notify_all();
    }

    fn flush(&self) {
        let mut queue = self.queue.lock();
        while queue.writing || !queue.lines.is_empty() {
            queue = self.drained.wait(queue);
        }
    }
}

/// Starts logging to `target`. A second call changes nothing.
pub fn start(target: LogTarget) {
    let logger = LOGGER.get_or_init(|| QueueLogger {
        filter: env_logger::Builder::from_env(
            env_logger::Env::default().filter_or("SWAPFSD_LOG", "info"),
        )
        .build(),
        target,
        queue: Mutex::new(Queue { lines: VecDeque::with_capacity(QUEUE_LINES), writing: false }),
        changed: Condvar::new(),
        drained: Condvar::new(),
        dropped: AtomicU64::new(0),
    });
    if log::set_logger(logger).is_err() {
        return;
    }
    log::set_max_level(logger.filter.filter());
    let writer =
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write_out(logger));
    if let Err(error) = writer {
        eprintln!("swapfsd: no thread for the log: {error}");
        log::set_max_level(LevelFilter::Off);
    }
}

/// Logging of a process that must not have a second thread: each line is formatted on the stack
/// and written at once, or dropped where that would have to wait.
struct DirectLogger {
    target: LogTarget,
    file: Option<File>,
}

impl Log for DirectLogger {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        use std::os::fd::AsRawFd;
        let mut line = Line { level: record.level(), len: 0, bytes: [0; LINE_BYTES] };
        let pid = std::process::id();
        let _ = match self.target {
            LogTarget::KernelLog => {
                write!(line, "<{}>swapfsd[{pid}]: ", kernel_priority(record.level()))
            }
            LogTarget::StandardError => write!(line, "[{} swapfsd] ", record.level()),
        };
        if let (LogTarget::KernelLog, Some(subject)) = (self.target, SUBJECT.get()) {
            let _ = write!(line, "{subject}: ");
        }
        let _ = line.write_fmt(*record.args());
        line.len = line.len.min(LINE_BYTES - 1);
        let _ = line.write_str("\n");
        let text = &line.bytes[..line.len];
        match &self.file {
            Some(file) => drop((&*file).write_all(text)),
            // A pipe whose reader is swapped out must not make us wait for swap.
            None if crate::sys::spawn::is_writable(std::io::stderr().as_raw_fd()) => {
                drop(std::io::stderr().write_all(text));
            }
            None => {}
        }
    }

    fn flush(&self) {}
}

/// Starts logging without a thread: for the supervisor. Lines of level info and above.
pub fn start_direct(target: LogTarget) {
    static DIRECT: OnceLock<DirectLogger> = OnceLock::new();
    let file = match target {
        LogTarget::KernelLog => File::options().write(true).open("/dev/kmsg").ok(),
        LogTarget::StandardError => None,
    };
    if log::set_logger(DIRECT.get_or_init(|| DirectLogger { target, file })).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// The kernel's number for a level.
fn kernel_priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        _ => 7,
    }
}

/// Names what the lines are about from now on. A second call changes nothing.
pub fn set_subject(subject: &str) {
    drop(SUBJECT.set(subject.to_owned()));
}

/// Waits until everything logged so far is written.
pub fn flush() {
    if let Some(logger) = LOGGER.get() {
        logger.flush();
    }
}

/// As [`flush`], for `at_most`: for a process that is about to die.
pub fn flush_for(at_most: Duration) {
    let Some(logger) = LOGGER.get() else { return };
    let deadline = Instant::now() + at_most;
    let mut queue = logger.queue.lock();
    while (queue.writing || !queue.lines.is_empty()) && Instant::now() < deadline {
        queue = logger.drained.wait_timeout(queue, Duration::from_millis(10));
    }
}

/// Lines that found the queue full.
#[must_use]
pub fn lines_dropped() -> u64 {
    LOGGER.get().map_or(0, |logger| logger.dropped.load(Ordering::Relaxed))
}

fn write_out(logger: &'static QueueLogger) {
    let mut kernel_log = match logger.target {
        LogTarget::KernelLog => File::options().write(true).open("/dev/kmsg").ok(),
        LogTarget::StandardError => None,
    };
    loop {
        let mut queue = logger.queue.lock();
        queue.writing = false;
        let line = loop {
            match queue.lines.pop_front() {
                Some(line) => break line,
                None => {
                    logger.drained.notify_all();
                    queue = logger.changed.wait(queue);
                }
            }
        };
        queue.writing = true;
        drop(queue);
        match &mut kernel_log {
            // The kernel takes one message for each write.
            Some(file) => {
                let priority = kernel_priority(line.level);
                let subject = SUBJECT.get().map_or(String::new(), |subject| format!("{subject}: "));
                let (pid, text) = (std::process::id(), line.text());
                let text = format!("<{priority}>swapfsd[{pid}]: {subject}{text}\n");
                drop(file.write_all(text.as_bytes()));
            }
            None => {
                let text = line.text();
                logger.filter.log(
                    &Record::builder()
                        .level(line.level)
                        .target("swapfsd")
                        .args(format_args!("{text}"))
                        .build(),
                );
            }
        }
    }
}
