//! The command line of `swapfs`: words into requests, results into text or JSON.

mod remote;
mod tier;

use crate::demo::{self, DemoRequest};
use crate::down::{self, DownPolicy};
use crate::failure::Failure;
use crate::inspect::InspectRequest;
use crate::interrupt::Interrupt;
use crate::swap_off::OnSignal;
use crate::sys::process;
use crate::sys::swap::{Discard, MAX_PRIORITY};
use crate::top::{self, TopRequest};
use crate::trace::{self, TraceRequest};
use crate::up::{self, UpRequest};
use crate::upgrade::{self, UpgradeReport};
use crate::volumes::{self, Volume};
use crate::{inspect, probe, render, status};
use clap::{Args, Parser, Subcommand, ValueEnum};
use mkswapfs::MemberSpec;
use serde::Serialize;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Swap areas in user space.
#[derive(Debug, Parser)]
#[command(
    name = "swapfs",
    version,
    about = "Brings swapfs volumes up and down as swap areas, and shows how they are",
    after_help = "See swapfs(8). Formatting by hand: mkswapfs(8). Checking: fsck.swapfs(8)."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Format (if need be), mount, attach and swap on
    Up(UpArguments),
    /// Swap off, detach and unmount
    Down(DownArguments),
    /// Show the volumes that are up
    Status(StatusArguments),
    /// Show the volumes that are up live: rates, latencies, how full
    Top(TopArguments),
    /// Show where the pages of a tier volume are
    Tiers(tier::TiersArguments),
    /// Add, remove or change a tier of a volume, while it is in use
    #[command(subcommand)]
    Tier(tier::TierCommand),
    /// Look after what volumes have left on servers elsewhere
    #[command(subcommand)]
    Remote(remote::RemoteCommand),
    /// Forget all pages of a tier volume that is not swap
    Drop(tier::DropArguments),
    /// Give a volume that is not mounted another size
    Resize(tier::ResizeArguments),
    /// Change the program that serves a volume, while it is in use
    Upgrade(UpgradeArguments),
    /// Show what an image's superblock says, and what the segments of a log hold
    Inspect(InspectArguments),
    /// Sum up a trace of what was done to an image, and draw it
    Trace(TraceArguments),
    /// Try real swap on a throw-away volume, and verify every byte
    Demo(DemoArguments),
    /// Copy a file to standard output (how status reads a mount that may hang)
    #[command(name = probe::READER_COMMAND, hide = true)]
    InternalRead { path: PathBuf },
}

/// Values of `--discard`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum DiscardPolicy {
    /// Once and pages
    Both,
    /// The whole area at swapon
    Once,
    /// Freed clusters of slots while it is used
    Pages,
}

/// Values of `--transport`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum TransportName {
    /// fuse with a supervisor, else uring where the kernel has it enabled
    Auto,
    /// /dev/fuse: a crash of the daemon loses nothing
    Fuse,
    /// FUSE over io_uring: faster, but a crash of the daemon loses the volume
    Uring,
}

impl TransportName {
    /// As the option `transport=` has it.
    fn name(self) -> &'static str {
        match self {
            TransportName::Auto => "auto",
            TransportName::Fuse => "fuse",
            TransportName::Uring => "uring",
        }
    }
}

#[derive(Debug, Args)]
struct UpArguments {
    /// The image or block device; made if it is not there
    #[arg(default_value = up::DEFAULT_IMAGE)]
    image: PathBuf,
    /// Size of a new volume (K, M, G, T) [default: the memory, at most 1/4 of the free space]
    #[arg(long, value_parser = swapfs_format::size::parse)]
    size: Option<u64>,
    /// Type of a new volume [default: zmem, compressed memory]
    #[arg(long = "type", short = 't', value_name = "TYPE")]
    type_name: Option<String>,
    /// A tier of a new volume of type tier, hottest first, as for mkswapfs: zmem[,KEY=VALUE...], or
    /// [log:|linear:]PATH[,KEY=VALUE...], or remote:PATH,url=URL[,KEY=VALUE...]
    #[arg(long = "member", value_name = "MEMBER", value_parser = MemberSpec::parse)]
    members: Vec<MemberSpec>,
    /// Priority of the swap area, the highest first [default: below all others]
    #[arg(long, short = 'p', value_parser = clap::value_parser!(u16).range(0..=i64::from(MAX_PRIORITY)))]
    priority: Option<u16>,
    /// Tell the back end about freed slots [once: at swapon; pages: while used; default: both]
    #[arg(
        long, short = 'd', value_enum, value_name = "POLICY", num_args = 0..=1,
        require_equals = true, default_missing_value = "both"
    )]
    discard: Option<DiscardPolicy>,
    /// Options of the back end: into a new volume's header, or over it for this mount
    #[arg(short = 'o', value_name = "KEY=VALUE,...")]
    options: Vec<String>,
    /// How requests come from the kernel [default: the volume's, else auto]
    #[arg(long, value_enum)]
    transport: Option<TransportName>,
    /// Switch FUSE over io_uring on in the kernel, if it is off
    #[arg(long)]
    enable_uring: bool,
    /// An empty directory to mount on [default: /run/swapfs/UUID]
    #[arg(long, value_name = "DIR")]
    mountpoint: Option<PathBuf>,
    /// Attach the loop device, and leave swapon to others
    #[arg(long)]
    no_swapon: bool,
    /// Say what was done as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DownArguments {
    /// Image, mount point, device or UUID [default: the only volume that is up]
    #[arg(conflicts_with = "all")]
    volume: Option<PathBuf>,
    /// All volumes
    #[arg(long)]
    all: bool,
    /// Even if memory may not suffice, or the daemon does not answer
    #[arg(long)]
    force: bool,
    /// Say what was done as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatusArguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TopArguments {
    /// Image, mount point, device or UUID [default: all volumes]
    volume: Option<PathBuf>,
    /// Seconds between two looks
    #[arg(long, short = 'i', value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// Look twice, print what happened in between, and end
    #[arg(long)]
    once: bool,
    /// The same as JSON
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err("from 0.1 to 3600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[derive(Debug, Args)]
struct UpgradeArguments {
    /// Image, mount point, device or UUID [default: the only volume that is up]
    #[arg(conflicts_with = "all")]
    volume: Option<PathBuf>,
    /// All volumes
    #[arg(long)]
    all: bool,
    /// The new program [default: this one]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Say what was done as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct InspectArguments {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Show the segments of a log too: a map, live and dead bytes, age
    #[arg(long)]
    segments: bool,
    /// Draw the segments of a log, and the order in which they were written, to this file
    #[arg(long, value_name = "OUT")]
    svg: Option<PathBuf>,
    /// The image
    image: PathBuf,
}

#[derive(Debug, Args)]
struct TraceArguments {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Draw a picture (SVG): time, place in the image, reads, writes and discards
    #[arg(long, value_name = "OUT")]
    svg: Option<PathBuf>,
    /// The pieces in which writes should be sequential [default: as the volume has them]
    #[arg(long, value_name = "SIZE", value_parser = segment_size)]
    segment: Option<u64>,
    /// The file that was given to a mount by the option trace=FILE
    file: PathBuf,
}

fn segment_size(text: &str) -> Result<u64, String> {
    let bytes = swapfs_format::size::parse(text).map_err(|error| error.to_string())?;
    if bytes < swapfs_format::PAGE_BYTES {
        return Err("a segment has at least 4096 bytes".to_owned());
    }
    Ok(bytes)
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// How much memory to push out and read back, in MiB
    #[arg(long, value_name = "N", default_value_t = 300)]
    megabytes: u32,
    /// Type of the volume [default: zmem, compressed memory]
    #[arg(long = "type", short = 't', value_name = "TYPE")]
    type_name: Option<String>,
    /// Options of the back end
    #[arg(short = 'o', value_name = "KEY=VALUE,...")]
    options: Vec<String>,
    /// Where the image lies meanwhile: a directory on a disk, not tmpfs
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
}

/// Runs `swapfs`; the first of `arguments` is the program's name. Exit status 0, 1 (failed), or 2
/// (wrong call).
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Standard output or error may be closed: then there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match arguments.command {
        Command::Up(arguments) => run_up(arguments),
        Command::Down(arguments) => run_down(&arguments),
        Command::Status(arguments) => run_status(&arguments),
        Command::Top(arguments) => run_top(arguments),
        Command::Tiers(arguments) => tier::run_tiers(&arguments),
        Command::Tier(command) => tier::run_tier(command),
        Command::Remote(command) => remote::run(command),
        Command::Drop(arguments) => tier::run_drop(&arguments),
        Command::Resize(arguments) => tier::run_resize(&arguments),
        Command::Upgrade(arguments) => run_upgrade(&arguments),
        Command::Inspect(arguments) => inspect::run(&InspectRequest {
            image: &arguments.image,
            json: arguments.json,
            segments: arguments.segments,
            svg: arguments.svg.as_deref(),
        })
        .map(|()| ExitCode::SUCCESS),
        Command::Trace(arguments) => run_trace(arguments),
        Command::Demo(arguments) => run_demo(arguments),
        Command::InternalRead { path } => return probe::reader_main(&path),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("swapfs: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run_up(arguments: UpArguments) -> Result<ExitCode, Failure> {
    let discard = match arguments.discard {
        None => Discard::Off,
        Some(DiscardPolicy::Both) => Discard::Both,
        Some(DiscardPolicy::Once) => Discard::Once,
        Some(DiscardPolicy::Pages) => Discard::Pages,
    };
    let request = UpRequest {
        image: arguments.image,
        size_bytes: arguments.size,
        type_name: arguments.type_name,
        members: arguments.members,
        priority: arguments.priority,
        discard,
        options: arguments.options.join(","),
        transport: arguments.transport.map(|transport| transport.name().to_owned()),
        enable_uring: arguments.enable_uring,
        mount_point: arguments.mountpoint,
        swap: !arguments.no_swapon,
    };
    let report = up::bring_up(&request, &Interrupt::install()?)?;
    show(&if arguments.json { json(&report)? } else { format!("{report}\n") })
}

fn run_down(arguments: &DownArguments) -> Result<ExitCode, Failure> {
    if !process::is_root() {
        return Err(Failure::new("not root", "only root can end swap: try again with sudo"));
    }
    let volumes = volumes::discover()?;
    let chosen = choose(&volumes, arguments.volume.as_deref(), arguments.all)?;
    if !arguments.force {
        down::check_memory(&chosen)?;
    }
    // Ctrl-C is to end swapoff with a message, and nothing half-way.
    let _interrupt = Interrupt::install()?;
    let policy = DownPolicy { force: arguments.force, on_signal: OnSignal::Stop };
    let mut reports = Vec::new();
    for volume in chosen {
        let report = down::take_down(volume, policy)?;
        for warning in &report.warnings {
            eprintln!("swapfs: {}: warning: {warning}", volume.name().display());
        }
        if !arguments.json {
            show(&format!("{report}\n"))?;
        }
        reports.push(report);
    }
    if arguments.json {
        return show(&json(&reports)?);
    }
    if reports.is_empty() {
        return show("no volume is up\n");
    }
    Ok(ExitCode::SUCCESS)
}

/// The volumes that the command line names.
fn choose<'a>(
    volumes: &'a [Volume],
    name: Option<&Path>,
    all: bool,
) -> Result<Vec<&'a Volume>, Failure> {
    Ok(match name {
        Some(name) => vec![volumes::select(volumes, name)?],
        None if all => volumes.iter().collect(),
        None => vec![volumes::only(volumes)?],
    })
}

fn run_upgrade(arguments: &UpgradeArguments) -> Result<ExitCode, Failure> {
    if !process::is_root() {
        return Err(Failure::new("not root", "only root can upgrade: try again with sudo"));
    }
    let path = arguments.program.as_deref().unwrap_or(Path::new(upgrade::OWN_PROGRAM));
    let program = upgrade::open_program(path)?;
    // For people: which program it is, not how it was found.
    let shown = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let volumes = volumes::discover()?;
    let mut reports = Vec::new();
    for volume in choose(&volumes, arguments.volume.as_deref(), arguments.all)? {
        let name = volume.name().display();
        let result = upgrade::upgrade(volume, &program, |text| {
            if !arguments.json {
                // Standard output may be closed: the upgrade goes on.
                let _ = show(&format!("{name}: {text}\n"));
            }
        });
        let (upgraded, outcome) = match result {
            Ok(text) => (true, text),
            Err(failure) => (false, failure.to_string()),
        };
        if !upgraded {
            eprintln!("swapfs: {outcome}");
        } else if !arguments.json {
            show(&format!("{name}: upgraded to {}: {outcome}\n", shown.display()))?;
        }
        reports.push(UpgradeReport {
            image: volume.image.clone(),
            mount: volume.mount.clone(),
            program: shown.clone(),
            upgraded,
            outcome,
        });
    }
    if arguments.json {
        show(&json(&reports)?)?;
    } else if reports.is_empty() {
        show("no volume is up\n")?;
    }
    let all_done = reports.iter().all(|report| report.upgraded);
    Ok(if all_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_status(arguments: &StatusArguments) -> Result<ExitCode, Failure> {
    let status = status::collect()?;
    show(&if arguments.json { json(&status)? } else { render::table(&status) })
}

fn run_top(arguments: TopArguments) -> Result<ExitCode, Failure> {
    let request = TopRequest { volume: arguments.volume, interval: arguments.interval };
    let interrupt = Interrupt::install()?;
    if !arguments.once && !arguments.json {
        return top::live(&request, &interrupt).map(|()| ExitCode::SUCCESS);
    }
    let view = top::once(&request, &interrupt)?;
    show(&if arguments.json { json(&view)? } else { top::printed(&view) })
}

fn run_trace(arguments: TraceArguments) -> Result<ExitCode, Failure> {
    let request =
        TraceRequest { file: arguments.file, svg: arguments.svg, segment_bytes: arguments.segment };
    let summary = trace::run(&request)?;
    show(&if arguments.json { json(&summary)? } else { summary.to_string() })
}

fn run_demo(arguments: DemoArguments) -> Result<ExitCode, Failure> {
    let request = DemoRequest {
        data_bytes: u64::from(arguments.megabytes) << 20,
        type_name: arguments.type_name,
        options: arguments.options.join(","),
        directory: arguments.dir,
    };
    let report = demo::run(&request, &Interrupt::install()?)?;
    show(&format!("{report}\n"))?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::new("JSON", error))
}

/// Writes to standard output; one that was closed early (a pager) is no failure.
fn show(text: &str) -> Result<ExitCode, Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::os("standard output", "write", &error))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn up_arguments(words: &[&str]) -> UpArguments {
        let words = ["swapfs", "up"].iter().chain(words);
        match Arguments::try_parse_from(words).unwrap().command {
            Command::Up(arguments) => arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn discard_takes_its_policy_behind_an_equals_sign_only() {
        assert!(up_arguments(&[]).discard.is_none());
        assert!(matches!(up_arguments(&["--discard"]).discard, Some(DiscardPolicy::Both)));
        assert!(matches!(up_arguments(&["--discard=once"]).discard, Some(DiscardPolicy::Once)));
        let arguments = up_arguments(&["--discard", "/img/a"]);
        assert_eq!(arguments.image, PathBuf::from("/img/a"));
    }

    #[test]
    fn sizes_priorities_and_defaults() {
        let arguments = up_arguments(&["--size", "2G", "-p", "32767", "-o", "a=1", "-o", "b=2"]);
        assert_eq!(arguments.size, Some(2 << 30));
        assert_eq!(arguments.priority, Some(MAX_PRIORITY));
        assert_eq!(arguments.options.join(","), "a=1,b=2");
        assert_eq!(arguments.image, PathBuf::from(up::DEFAULT_IMAGE));
        for wrong in [["--size", "2X"], ["-p", "32768"], ["-p", "-1"]] {
            let words = ["swapfs", "up"].iter().chain(&wrong);
            assert_eq!(Arguments::try_parse_from(words).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn a_trace_has_one_file_and_segments_of_a_page_at_least() {
        let parsed =
            |words: &[&str]| Arguments::try_parse_from(["swapfs", "trace"].iter().chain(words));
        assert!(parsed(&["a", "--json", "--svg", "b", "--segment", "2M"]).is_ok());
        for wrong in [&[][..], &["a", "b"], &["a", "--segment", "512"]] {
            assert_eq!(parsed(wrong).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn all_and_a_name_exclude_each_other() {
        assert!(Arguments::try_parse_from(["swapfs", "down", "--all", "/img/a"]).is_err());
        assert!(Arguments::try_parse_from(["swapfs", "down", "--all", "--force"]).is_ok());
        assert!(Arguments::try_parse_from(["swapfs", "upgrade", "--all", "/img/a"]).is_err());
        let words = ["swapfs", "upgrade", "/img/a", "--program", "/usr/sbin/swapfs"];
        assert!(Arguments::try_parse_from(words).is_ok());
    }

    #[test]
    fn tiers_are_named_and_sizes_have_units() {
        let parsed = |line: &str| Arguments::try_parse_from(line.split(' ')).is_ok();
        for right in [
            "swapfs tiers",
            "swapfs tiers /img/t --json",
            "swapfs tier add /img/t log:/dev/sdb1,high=80 --order 3 --force -n",
            "swapfs tier remove /img/t 2 --up --rate 10M --json",
            "swapfs tier set /img/t /dev/sdb1 high=80,low=70",
            "swapfs tier cancel",
            "swapfs tier watch /img/t",
            "swapfs drop /img/t --yes",
            "swapfs resize /img/t 8G",
            "swapfs up /img/t --type tier --member zmem,limit=1G --member log:/dev/sdb1",
        ] {
            assert!(parsed(right), "{right}");
        }
        for wrong in [
            "swapfs tier",
            "swapfs tier add /img/t",
            "swapfs tier add /img/t ram:/dev/sdb1",
            "swapfs tier remove /img/t 2 --up --down",
            "swapfs tier remove /img/t 2 --rate 10X",
            "swapfs drop",
            "swapfs resize /img/t",
        ] {
            assert!(!parsed(wrong), "{wrong}");
        }
    }
}
