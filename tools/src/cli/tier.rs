//! The commands for volumes over several images, and for sizes: `tiers`, `tier`, `drop`, `resize`.

use super::{json, show};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::tier::addition::{self, AddRequest};
use crate::tier::removal::{Bar, End, RETURN_LIMIT, Watcher};
use crate::tier::{self, Served};
use crate::volumes::{self, Volume};
use crate::{drop, resize, tiers};
use clap::{Args, Subcommand};
use mkswapfs::MemberSpec;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use swapfs_format::PAGE_BYTES;
use swapfs_format::size::{human, parse};
use swapfsd::admin::{Direction, Done, Reply, Request};

#[derive(Debug, Args)]
pub(super) struct TiersArguments {
    /// Image, mount point, device or UUID [default: the only volume that is up]
    volume: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum TierCommand {
    /// Format an image as a member, and add it as a tier
    Add(AddArguments),
    /// Move everything off a tier, and take it out of the volume
    Remove(RemoveArguments),
    /// Show how the removal that is under way gets on
    Watch(OneVolume),
    /// Call the removal that is under way off
    Cancel(OneVolume),
    /// Change options of a tier
    Set(SetArguments),
}

#[derive(Debug, Args)]
pub(super) struct OneVolume {
    /// Image, mount point, device or UUID [default: the only volume that is up]
    volume: Option<PathBuf>,
    /// What the daemon says, a JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct AddArguments {
    /// Image, mount point, device or UUID of the volume
    volume: PathBuf,
    /// The image, and its options: [log:|linear:]PATH[,KEY=VALUE...]; of a file that does not exist,
    /// size=SIZE; remote:PATH,url=URL[,KEY=VALUE...] for what is on servers elsewhere
    #[arg(value_name = "MEMBER", value_parser = MemberSpec::parse)]
    member: MemberSpec,
    /// Its place, from 1, the hottest, to 8 [default: behind the last]
    #[arg(long, value_name = "N")]
    order: Option<u32>,
    /// Overwrite an image that holds something
    #[arg(long, short = 'f')]
    force: bool,
    /// Say what would be made, and change nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Say what was done as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArguments {
    /// Image, mount point, device or UUID of the volume
    volume: PathBuf,
    /// Order, image or UUID of the tier
    tier: String,
    /// Its pages go to hotter tiers only
    #[arg(long, conflicts_with = "down")]
    up: bool,
    /// Its pages go to colder tiers only
    #[arg(long)]
    down: bool,
    /// At most so many bytes a second [default: as fast as it goes]
    #[arg(long, value_name = "SIZE", value_parser = parse)]
    rate: Option<u64>,
    /// What the daemon says, a JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct SetArguments {
    /// Image, mount point, device or UUID of the volume
    volume: PathBuf,
    /// Order, image or UUID of the tier
    tier: String,
    /// What changes
    #[arg(value_name = "KEY=VALUE,...")]
    options: String,
}

#[derive(Debug, Args)]
pub(super) struct DropArguments {
    /// Image, mount point, device or UUID of the volume
    volume: PathBuf,
    /// Do not ask
    #[arg(long, short = 'y')]
    yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct ResizeArguments {
    /// The image, which is not mounted
    volume: PathBuf,
    /// The new size (K, M, G, T)
    #[arg(value_parser = parse)]
    size: u64,
    /// Say what was done as JSON
    #[arg(long)]
    json: bool,
}

fn chosen<'a>(volumes: &'a [Volume], name: Option<&Path>) -> Result<&'a Volume, Failure> {
    match name {
        Some(name) => volumes::select(volumes, name),
        None => volumes::only(volumes),
    }
}

fn served(name: Option<&Path>) -> Result<Served, Failure> {
    Served::of(chosen(&volumes::discover()?, name)?)
}

pub(super) fn run_tiers(arguments: &TiersArguments) -> Result<ExitCode, Failure> {
    let report = tiers::of(chosen(&volumes::discover()?, arguments.volume.as_deref())?)?;
    show(&if arguments.json { json(&report)? } else { tiers::table(&report) })
}

pub(super) fn run_tier(command: TierCommand) -> Result<ExitCode, Failure> {
    match command {
        TierCommand::Add(arguments) => run_add(arguments),
        TierCommand::Remove(arguments) => run_remove(&arguments),
        TierCommand::Watch(arguments) => {
            let served = served(arguments.volume.as_deref())?;
            let tier = served.stats.evacuation.as_ref().map(|evacuation| evacuation.tier);
            follow(&served, tier, &Request::Watch, arguments.json)
        }
        TierCommand::Cancel(arguments) => {
            let served = served(arguments.volume.as_deref())?;
            let done = served.ask(&Request::Cancel)?;
            if arguments.json {
                return show(&Reply::Done(done).to_line());
            }
            let tier = match &served.stats.evacuation {
                Some(evacuation) => format!("tier {}", evacuation.tier),
                None => "the tier".to_owned(),
            };
            let name = &served.name;
            show(&format!("{name}: {tier} is not removed: it takes pages again\n"))
        }
        TierCommand::Set(arguments) => {
            let served = served(Some(&arguments.volume))?;
            let order = tier::find(&served.stats.tiers, &arguments.tier)?.order;
            let options = arguments.options;
            served.ask(&Request::Set { tier: order, options: options.clone() })?;
            show(&format!("{}: tier {order}: {options}\n", served.name))
        }
    }
}

fn run_add(arguments: AddArguments) -> Result<ExitCode, Failure> {
    let served = served(Some(&arguments.volume))?;
    let request = AddRequest {
        member: arguments.member,
        order: arguments.order,
        force: arguments.force,
        dry_run: arguments.dry_run,
    };
    let report = addition::add(&served, &request, &Interrupt::install()?)?;
    show(&if arguments.json { json(&report)? } else { format!("{report}\n") })
}

fn run_remove(arguments: &RemoveArguments) -> Result<ExitCode, Failure> {
    let served = served(Some(&arguments.volume))?;
    let tier = tier::find(&served.stats.tiers, &arguments.tier)?.order;
    let direction = match (arguments.up, arguments.down) {
        (true, _) => Direction::Up,
        (_, true) => Direction::Down,
        _ => Direction::Auto,
    };
    if arguments.rate == Some(0) {
        return Err(Failure::new("--rate 0", "nothing would move: leave it out for no limit"));
    }
    let request = Request::Remove { tier, direction, rate_bytes: arguments.rate };
    follow(&served, Some(tier), &request, arguments.json)
}

/// Follows a removal to its end, and says how it ended.
fn follow(
    served: &Served,
    tier: Option<u32>,
    request: &Request,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    let interrupt = Interrupt::install()?;
    let name = &served.name;
    let what = tier.map_or_else(|| "the tier".to_owned(), |tier| format!("tier {tier}"));
    let bar = Bar::new(what.clone());
    let started = Instant::now();
    let end = Watcher {
        socket: &served.socket,
        tier,
        progress: &mut |now| {
            if as_json {
                // Standard output may be closed: it goes on all the same.
                let _ = show(&Reply::Progress(*now).to_line());
            } else {
                bar.at(now);
            }
        },
        leave: &|| interrupt.is_raised(),
        return_limit: RETURN_LIMIT,
    }
    .follow(request);
    bar.end();
    match end {
        End::Removed { .. } if as_json => show(&Reply::Done(Done::default()).to_line()),
        End::Removed { moved_pages } => show(&format!(
            "{name}: {what} is empty, and no longer part of the volume: {moved_pages} pages ({}) \
             moved in {:.1} s\n",
            human(moved_pages * PAGE_BYTES),
            started.elapsed().as_secs_f64()
        )),
        End::Left => Err(Failure::new(
            name,
            format_args!(
                "{what} is still being emptied, without you: 'swapfs tier watch {name}' shows it, \
                 'swapfs tier cancel {name}' calls it off"
            ),
        )),
        End::Failed(message) => {
            if as_json {
                let _ = show(&Reply::Error { message: message.clone() }.to_line());
            }
            Err(Failure::new(name, message))
        }
    }
}

pub(super) fn run_drop(arguments: &DropArguments) -> Result<ExitCode, Failure> {
    let volumes = volumes::discover()?;
    let text = drop::forget(volumes::select(&volumes, &arguments.volume)?, arguments.yes)?;
    show(&format!("{text}\n"))
}

pub(super) fn run_resize(arguments: &ResizeArguments) -> Result<ExitCode, Failure> {
    let report = resize::resize(&volumes::discover()?, &arguments.volume, arguments.size)?;
    show(&if arguments.json { json(&report)? } else { format!("{report}\n") })
}
