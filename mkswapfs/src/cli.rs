//! The command line, and what is said to the user.

use crate::remote::Elsewhere;
use crate::{Error, FormatRequest, Formatted, MemberSpec, Preallocate, format_image};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use swapfs_format::member::MemberKind;
use swapfs_format::options::OptionSpec;
use swapfs_format::{size, types};
use uuid::Uuid;

#[derive(Debug, Parser)]
#[command(
    name = "mkswapfs",
    version,
    about = "Formats a file or block device as a swapfs volume",
    after_help = help_on_types()
)]
struct Arguments {
    /// Type of the back end that stores the pages
    #[arg(short = 't', long = "type", default_value = types::LINEAR.name)]
    type_name: String,
    /// Size of the volume, like 512M or 8G; an existing image is used to its end without it
    #[arg(short = 's', long, value_parser = parse_size)]
    size: Option<u64>,
    /// Label, at most 16 bytes
    #[arg(short = 'L', long, default_value = "")]
    label: String,
    /// UUID; a random one without it
    #[arg(short = 'U', long)]
    uuid: Option<Uuid>,
    /// Options of the type, kept in the superblock
    #[arg(short = 'o', long = "options", value_name = "KEY=VALUE,...")]
    options: Vec<String>,
    /// A tier of type tier, hottest first: an image [log:|linear:]PATH[,KEY=VALUE...], a stub
    /// remote:PATH,url=URL[,KEY=VALUE...] of what is on servers elsewhere, or zmem with options of the
    /// memory, which is always the first. Of a file that does not exist, size=SIZE
    #[arg(long = "member", value_name = "MEMBER", value_parser = MemberSpec::parse)]
    members: Vec<MemberSpec>,
    /// Erase block that the data is aligned to, a log's segment; what the device says without it
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    erase_block: Option<u64>,
    /// How the space of a file is made sure of
    #[arg(long, value_enum, default_value = "full")]
    preallocate: PreallocateArgument,
    /// Overwrite a target that holds something
    #[arg(short = 'f', long)]
    force: bool,
    /// Say what would be made, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Say it in JSON
    #[arg(long)]
    json: bool,
    /// The file or block device to format; a file is created if it does not exist
    image: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PreallocateArgument {
    /// Allocate and write zeros: swap-outs are then as fast as they get
    Full,
    /// Only allocate: quick, but the first swap-out to each block is slower
    Falloc,
}

fn parse_size(text: &str) -> Result<u64, size::SizeError> {
    size::parse(text)
}

fn help_on_types() -> String {
    let mut text = String::from("Types and their options (-o):\n");
    for spec in types::TYPES {
        let _ = writeln!(text, "\n  {}: {}", spec.name, spec.summary);
        for option in spec.option_specs() {
            help_on_option(&mut text, option);
        }
    }
    text.push_str("\nMembers of type tier (--member) and their options:\n");
    for kind in MemberKind::ALL {
        let summary = match kind {
            MemberKind::Log => "pages packed into segments that are written whole",
            MemberKind::Linear => "a page per block of 4 KiB",
            MemberKind::Remote => "on servers elsewhere; PATH is a small file that says where",
        };
        let _ = writeln!(text, "\n  {}:PATH  {summary}", kind.type_name());
        for option in kind.table().specs() {
            help_on_option(&mut text, option);
        }
    }
    text
}

fn help_on_option(text: &mut String, option: &OptionSpec) {
    let allowed = option.kind.allowed();
    let default = match option.default {
        _ if option.is_required() => "must be given".to_owned(),
        "" => "default: none".to_owned(),
        default => format!("default: {default}"),
    };
    let _ = writeln!(text, "    {}=  {} ({allowed}; {default})", option.key, option.help);
}

/// Runs `mkswapfs` with a command line whose first word is the program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            drop(error.print());
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    match run(&arguments) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mkswapfs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<String, Error> {
    let request = FormatRequest {
        image: arguments.image.clone(),
        type_name: arguments.type_name.clone(),
        volume_bytes: arguments.size,
        label: arguments.label.clone(),
        uuid: arguments.uuid,
        options: arguments.options.join(","),
        members: arguments.members.clone(),
        erase_block_bytes: arguments.erase_block,
        preallocate: match arguments.preallocate {
            PreallocateArgument::Full => Preallocate::Full,
            PreallocateArgument::Falloc => Preallocate::Falloc,
        },
        force: arguments.force,
        dry_run: arguments.dry_run,
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Error::new("signal handlers", error))?;
    }
    // Hidden by itself where standard error is no terminal.
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let formatted = format_image(&request, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    bar.finish_and_clear();
    let formatted = formatted?;
    if arguments.json {
        return serde_json::to_string_pretty(&formatted).map_err(|error| Error::new("JSON", error));
    }
    Ok(describe(&formatted))
}

pub(crate) fn describe(formatted: &Formatted) -> String {
    let superblock = &formatted.superblock;
    let image = formatted.image.display();
    let verb = if formatted.dry_run { "would format" } else { "formatted" };
    let created = created(formatted);
    let label = if superblock.label.is_empty() { "no label" } else { superblock.label.as_str() };
    let options =
        if superblock.options.is_empty() { "defaults" } else { superblock.options.as_str() };
    let data = if let Some(elsewhere) = &formatted.remote {
        describe_elsewhere(elsewhere)
    } else if superblock.is_ghost() {
        "none: pages live outside the image".to_owned()
    } else {
        format!(
            "{} from byte {}, aligned to {}",
            size::human(superblock.data_bytes),
            superblock.data_offset_bytes,
            size::human(superblock.data_offset_bytes)
        )
    };
    let mut text = format!(
        "{verb} {image} ({}{created})\n\
         type     {}\n\
         volume   {} ({} slots of 4 KiB)\n\
         data     {data}\n\
         options  {options}\n\
         label    {label}\n\
         UUID     {}",
        size::human(superblock.image_bytes),
        superblock.type_name,
        size::human(superblock.volume_bytes()),
        superblock.slot_count,
        superblock.uuid
    );
    for member in &formatted.members {
        text.push_str(&describe_member(member));
    }
    text
}

fn created(formatted: &Formatted) -> &'static str {
    match (formatted.created, formatted.dry_run) {
        (true, true) => ", to be created",
        (true, false) => ", created",
        (false, _) => "",
    }
}

fn describe_member(member: &Formatted) -> String {
    let superblock = &member.superblock;
    let segments = match MemberKind::of(superblock) {
        Some(MemberKind::Log) => {
            format!(" in segments of {}", size::human(u64::from(superblock.erase_block_bytes)))
        }
        _ => String::new(),
    };
    let data = match &member.remote {
        Some(elsewhere) => describe_elsewhere(elsewhere),
        None => format!(
            "{}{segments} from byte {}",
            size::human(superblock.data_bytes),
            superblock.data_offset_bytes
        ),
    };
    let options =
        if superblock.options.is_empty() { "defaults" } else { superblock.options.as_str() };
    format!(
        "\nmember {} {}:{} ({}{})\n\
         data     {data}\n\
         options  {options}\n\
         UUID     {}",
        superblock.member_order,
        superblock.type_name,
        member.image.display(),
        size::human(superblock.image_bytes),
        created(member),
        superblock.uuid
    )
}

/// Where pages are that are not here.
fn describe_elsewhere(elsewhere: &Elsewhere) -> String {
    let Elsewhere { url, layout, capacity_bytes, export, .. } = elsewhere;
    let capacity = size::human(*capacity_bytes);
    match export {
        Some(export) => {
            let segments = match MemberKind::of(export) {
                Some(MemberKind::Log) => {
                    format!(" in segments of {}", size::human(u64::from(export.erase_block_bytes)))
                }
                _ => String::new(),
            };
            format!(
                "at {url}\n\
                 layout   {layout}{segments}, {capacity} from byte {} of the export\n\
                 export   {}, UUID {}",
                export.data_offset_bytes,
                size::human(export.image_bytes),
                export.uuid
            )
        }
        None => format!(
            "at {url}: the server is looked for at the mount\n\
             layout   {layout}, {capacity} at most"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_of_the_design() {
        let line = "mkswapfs -t linear -s 8G -L x -U 00000000-0000-0000-0000-000000000001 \
                    -o engine=sync,checksum=off -f -n --json image";
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(arguments.size, Some(8 << 30));
        assert!(arguments.force && arguments.dry_run && arguments.json);
        assert!(Arguments::try_parse_from(["mkswapfs", "-s", "1.5G", "i"]).is_err());
        assert!(Arguments::try_parse_from(["mkswapfs"]).is_err());
        let line = "mkswapfs -t tier --member zmem,limit=1G --member log:/dev/a --member b i";
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(arguments.members.len(), 3);
        let line = "mkswapfs -t tier --member ram:x image";
        assert!(Arguments::try_parse_from(line.split_whitespace()).is_err());
    }

    #[test]
    fn help_names_every_type_and_option() {
        let help = help_on_types();
        for spec in types::TYPES {
            assert!(help.contains(spec.summary));
            assert!(spec.option_specs().all(|option| help.contains(option.help)));
        }
        for kind in MemberKind::ALL {
            assert!(kind.table().specs().all(|option| help.contains(option.help)));
        }
    }
}
