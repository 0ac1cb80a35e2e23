//! pageload: a verified swap workload. It fills memory with pages that know what they are, has the
//! kernel swap them out and in, and compares every byte. Run it in a memory cgroup, with
//! `--pageout`, or on a machine with less memory than it asks for.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use serde::Serialize;
use swapfs_tests::pattern::PAGE_BYTES;
use swapfs_tests::workload::{self, PAGES_PER_MIB, Report, Touch, Work};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TouchName {
    Random,
    Sequential,
    Mixed,
}

/// Fill memory, have it swapped, verify every byte.
#[derive(Debug, Parser)]
#[command(name = "pageload", version)]
struct Arguments {
    /// Memory in MiB, over all processes
    #[arg(long, value_name = "N")]
    megabytes: usize,
    /// Rounds of as many random rewrites and checks as there are pages
    #[arg(long, value_name = "P", default_value_t = 1)]
    passes: u32,
    /// Replays a run; the default is the clock's
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Processes that share the work
    #[arg(long, value_name = "K", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=256))]
    processes: u32,
    /// The order in which pages are touched
    #[arg(long, value_enum, default_value = "random")]
    touch: TouchName,
    /// The share of every page that compresses
    #[arg(long, value_name = "PERCENT", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(0..=100))]
    compressible: u32,
    /// Push everything out with MADV_PAGEOUT after filling and after every pass
    #[arg(long)]
    pageout: bool,
    /// Made when all processes have filled their memory (and pushed it out)
    #[arg(long, value_name = "FILE")]
    ready: Option<PathBuf>,
    /// Go on with further passes until this file exists
    #[arg(long, value_name = "FILE")]
    until: Option<PathBuf>,
    /// One line of JSON instead of text
    #[arg(long)]
    json: bool,
    /// This is one of the processes: report to the parent
    #[arg(long, hide = true)]
    worker: bool,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Summary {
    seed: u64,
    processes: u32,
    #[serde(flatten)]
    report: Report,
    /// Workers that ended without a report, and why.
    failed: Vec<String>,
    pswpin: u64,
    pswpout: u64,
    out_mb_per_s: f64,
    in_mb_per_s: f64,
}

/// One line of a worker's standard output.
const READY: &str = "ready";

enum FromWorker {
    Ready,
    Report(Report),
    Failed(String),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(clock_seed);
    let result =
        if arguments.worker { work(&arguments, seed) } else { supervise(&arguments, seed) };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pageload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn clock_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64)
}

fn work(arguments: &Arguments, seed: u64) -> Result<bool, String> {
    let work = Work {
        pages: arguments.megabytes * PAGES_PER_MIB,
        passes: arguments.passes,
        seed,
        touch: match arguments.touch {
            TouchName::Random => Touch::Random,
            TouchName::Sequential => Touch::Sequential,
            TouchName::Mixed => Touch::Mixed,
        },
        compressible_percent: arguments.compressible,
        page_out: arguments.pageout,
        until: arguments.until.as_deref(),
    };
    let report = workload::run(&work, || {
        println!("{READY}");
        // A pipe's standard output is line-buffered here, but say it once more.
        let _ = std::io::stdout().flush();
    })
    .map_err(|error| format!("{} MiB: {error}", arguments.megabytes))?;
    println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    Ok(report.bad_pages == 0)
}

/// Runs the workers, so that one that is killed (SIGBUS: a swap-in failed) is reported, not
/// suffered.
fn supervise(arguments: &Arguments, seed: u64) -> Result<bool, String> {
    if !arguments.json {
        println!("pageload: seed {seed} (replay: --seed {seed})");
    }
    let before = swap_counters()?;
    let (sender, receiver) = mpsc::channel();
    for index in 0..arguments.processes {
        let child = start_worker(arguments, seed, index)?;
        let sender = sender.clone();
        std::thread::spawn(move || follow_worker(child, index, &sender));
    }
    drop(sender);
    let mut report = Report::default();
    let mut failed = Vec::new();
    let mut ready_count = 0;
    for message in receiver {
        match message {
            FromWorker::Report(part) => report.add(part),
            FromWorker::Failed(why) => failed.push(why),
            FromWorker::Ready => ready_count += 1,
        }
        if ready_count == arguments.processes
            && let Some(path) = &arguments.ready
        {
            std::fs::write(path, "").map_err(|error| format!("{}: {error}", path.display()))?;
            ready_count = 0;
        }
    }
    let after = swap_counters()?;
    let summary = summarize(arguments, seed, report, failed, before, after);
    let good = summary.report.bad_pages == 0 && summary.failed.is_empty();
    if arguments.json {
        println!("{}", serde_json::to_string(&summary).map_err(|error| error.to_string())?);
    } else {
        print_summary(&summary);
    }
    Ok(good)
}

fn start_worker(arguments: &Arguments, seed: u64, index: u32) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|error| format!("my own path: {error}"))?;
    let count = arguments.processes as usize;
    // The first ones take what is left over.
    let extra = usize::from((index as usize) < arguments.megabytes % count);
    let megabytes = arguments.megabytes / count + extra;
    let mut command = Command::new(program);
    command
        .arg("--worker")
        .args(["--megabytes", &megabytes.to_string()])
        .args(["--passes", &arguments.passes.to_string()])
        .args(["--seed", &seed.wrapping_add(u64::from(index)).to_string()])
        .args(["--compressible", &arguments.compressible.to_string()]);
    command.arg("--touch").arg(match arguments.touch {
        TouchName::Random => "random",
        TouchName::Sequential => "sequential",
        TouchName::Mixed => "mixed",
    });
    if arguments.pageout {
        command.arg("--pageout");
    }
    if let Some(path) = &arguments.until {
        command.arg("--until").arg(path);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start worker {index}: {error}"))
}

fn follow_worker(mut child: Child, index: u32, sender: &mpsc::Sender<FromWorker>) {
    let mut reported = false;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let Ok(line) = line else { break };
            let message = if line == READY {
                FromWorker::Ready
            } else if let Ok(report) = serde_json::from_str(&line) {
                reported = true;
                FromWorker::Report(report)
            } else {
                FromWorker::Failed(format!("worker {index} said: {line}"))
            };
            // The receiver outlives all senders.
            let _ = sender.send(message);
        }
    }
    let why = match child.wait() {
        Ok(_) if reported => return,
        Ok(status) if status.signal() == Some(libc::SIGBUS) => {
            "killed by SIGBUS: a swap-in failed".to_string()
        }
        Ok(status) => format!("ended without a report: {status}"),
        Err(error) => format!("cannot be waited for: {error}"),
    };
    let _ = sender.send(FromWorker::Failed(format!("worker {index} {why}")));
}

/// Pages swapped in and out since the machine started.
fn swap_counters() -> Result<(u64, u64), String> {
    let text = std::fs::read_to_string("/proc/vmstat")
        .map_err(|error| format!("/proc/vmstat: {error}"))?;
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .ok_or_else(|| format!("/proc/vmstat: no {name} in it"))
    };
    Ok((value("pswpin ")?, value("pswpout ")?))
}

fn summarize(
    arguments: &Arguments,
    seed: u64,
    report: Report,
    failed: Vec<String>,
    before: (u64, u64),
    after: (u64, u64),
) -> Summary {
    let rate =
        |pages: u64, ms: u64| (pages * PAGE_BYTES as u64) as f64 / 1e6 / (ms.max(1) as f64 / 1e3);
    Summary {
        seed,
        processes: arguments.processes,
        pswpin: after.0 - before.0,
        pswpout: after.1 - before.1,
        // Filling and pushing out once, and once more per pass if asked.
        out_mb_per_s: rate(
            report.pages * if arguments.pageout { report.passes + 1 } else { 1 },
            report.out_ms,
        ),
        in_mb_per_s: rate(report.pages, report.in_ms),
        report,
        failed,
    }
}

fn print_summary(summary: &Summary) {
    let report = &summary.report;
    for bad in &report.bad {
        println!("pageload: BAD {bad}");
    }
    for why in &summary.failed {
        println!("pageload: FAILED {why}");
    }
    println!(
        "pageload: {} processes, {} pages, {} passes; {} pages written, {} verified, {} bad; \
         {} swapped out, {} swapped in; {:.0} MB/s out, {:.0} MB/s in",
        summary.processes,
        report.pages,
        report.passes,
        report.pages_written,
        report.pages_verified,
        report.bad_pages,
        summary.pswpout,
        summary.pswpin,
        summary.out_mb_per_s,
        summary.in_mb_per_s,
    );
}
