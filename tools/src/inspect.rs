//! `swapfs inspect`: what the superblock of an image says, for people and as JSON; and of a log,
//! what its segments hold, also as a picture.
//!
//! Only looks, and takes no lock: a volume that is mounted can be inspected.

pub(crate) mod calendar;
mod picture;
pub mod segments;

use crate::failure::Failure;
use crate::fsck::repair::refused;
use crate::log_survey;
use mkswapfs::Elsewhere;
use segments::LogView;
use serde::Serialize;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use swapfs_format::member::{MemberKind, MemberOptions};
use swapfs_format::options::{OptionError, OptionSet};
use swapfs_format::size::human;
use swapfs_format::superblock::{DecodeError, PRIMARY_OFFSET_BYTES, Superblock};
use swapfs_format::types;
use swapfsd::image::{Access, Image, ImageKind, SuperblockPair};

/// One copy of the superblock.
#[derive(Debug, Serialize)]
pub struct CopyState {
    /// Where it was looked for.
    pub offset_bytes: u64,
    /// It checks.
    pub good: bool,
    /// Why it does not.
    pub error: Option<String>,
}

/// One option of the volume.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ShownOption {
    /// The key.
    pub key: &'static str,
    /// Its value, as text.
    pub value: String,
    /// The superblock does not name it.
    pub default: bool,
}

/// Everything that there is to say about an image.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The image.
    pub image: PathBuf,
    /// `file` or `block device`.
    pub kind: &'static str,
    /// Its size; `superblock.image_bytes` is what it must have at least.
    pub size_bytes: u64,
    /// The copy at the start.
    pub primary: CopyState,
    /// The copy at the end.
    pub backup: CopyState,
    /// Both check, and say the same.
    pub copies_agree: bool,
    /// The superblock shown: the primary, or the backup if only that checks.
    pub superblock: Superblock,
    /// All options of the type; none if this program does not know it, or can't read them.
    pub options: Vec<ShownOption>,
    /// Why the options can't be read.
    pub options_error: Option<String>,
    /// Of a stub: where its pages are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Elsewhere>,
    /// What its log holds, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogView>,
}

/// What is asked for.
#[derive(Debug)]
pub struct InspectRequest<'a> {
    /// The image.
    pub image: &'a Path,
    /// As JSON.
    pub json: bool,
    /// The segments of its log too.
    pub segments: bool,
    /// Where a picture of them goes.
    pub svg: Option<&'a Path>,
}

/// Prints what the superblock of an image says, and what else is asked for.
///
/// # Errors
/// If the image can't be read, neither of its superblocks checks, or there is no log to show or no
/// place for the picture.
pub fn run(request: &InspectRequest<'_>) -> Result<(), Failure> {
    let mut inspection = inspect(request.image)?;
    if request.segments || request.svg.is_some() {
        inspection.look_at_log()?;
    }
    if let (Some(path), Some(log)) = (request.svg, &inspection.log) {
        save(path, &picture::svg(log, &inspection.superblock))?;
    }
    if !request.segments {
        inspection.log = None;
    }
    let text = if request.json {
        serde_json::to_string_pretty(&inspection).map_err(|error| Failure::new("JSON", error))?
    } else {
        inspection.to_string()
    };
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::os("standard output", "write", &error))
        }
        _ => Ok(()),
    }
}

/// Writes a new file, or over a regular one that is no image.
fn save(path: &Path, text: &str) -> Result<(), Failure> {
    if path.exists() {
        // What was meant may be the image, with the words in the wrong order.
        let image = Image::open(path, Access::ReadOnly).map_err(|error| refused(&error))?;
        let SuperblockPair { primary, backup, .. } = image.read_superblocks();
        if image.kind() == ImageKind::BlockDevice || primary.is_ok() || backup.is_ok() {
            let why = "a device or a swapfs image, which is not overwritten by a picture";
            return Err(Failure::new(path.display(), why));
        }
    }
    std::fs::write(path, text).map_err(|error| Failure::os(path.display(), "write", &error))
}

/// Reads what the superblock of an image says.
///
/// # Errors
/// As for [`run`].
pub fn inspect(path: &Path) -> Result<Inspection, Failure> {
    let image = Image::open(path, Access::ReadOnly).map_err(|error| refused(&error))?;
    let SuperblockPair { primary, backup, backup_offset_bytes } = image.read_superblocks();
    let state = |copy: &Result<Superblock, DecodeError>, offset_bytes| CopyState {
        offset_bytes,
        good: copy.is_ok(),
        error: copy.as_ref().err().map(ToString::to_string),
    };
    let states = (state(&primary, PRIMARY_OFFSET_BYTES), state(&backup, backup_offset_bytes));
    let copies_agree = primary.is_ok() && primary == backup;
    let superblock = match (primary, backup) {
        (Ok(superblock), _) | (Err(_), Ok(superblock)) => superblock,
        (Err(DecodeError::BadMagic | DecodeError::TooShort(_)), Err(_)) => {
            let why = "not a swapfs volume: make one with mkswapfs";
            return Err(Failure::new(path.display(), why));
        }
        (Err(error), Err(_)) => {
            let why = format!("{error}; and there is no good backup: see fsck.swapfs -n");
            return Err(Failure::new(path.display(), why));
        }
    };
    let (options, options_error) = match shown_options(&superblock) {
        Ok(options) => (options, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    Ok(Inspection {
        image: path.to_owned(),
        kind: match image.kind() {
            ImageKind::File => "file",
            ImageKind::BlockDevice => "block device",
        },
        size_bytes: image.bytes(),
        primary: states.0,
        backup: states.1,
        copies_agree,
        remote: Elsewhere::of(&superblock, None),
        superblock,
        options,
        options_error,
        log: None,
    })
}

/// All options of the type, in its order; none for a type that is not known.
fn shown_options(superblock: &Superblock) -> Result<Vec<ShownOption>, OptionError> {
    let table = match (MemberKind::of(superblock), superblock.type_spec()) {
        (Some(kind), _) => {
            MemberOptions::parse(kind, &superblock.options)?;
            kind.table()
        }
        (None, Some(spec)) if !superblock.is_member() => {
            spec.parse_options(&superblock.options)?;
            spec.table()
        }
        _ => return Ok(Vec::new()),
    };
    let given = OptionSet::parse_by(table, &superblock.options)?;
    let shown = table.specs().map(|option| {
        let value = given.given_text(option.key);
        ShownOption {
            key: option.key,
            default: value.is_none(),
            value: value.unwrap_or(option.default).to_owned(),
        }
    });
    Ok(shown.collect())
}

/// The width of the names on the left.
const NAME_WIDTH: usize = 19;

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let superblock = &self.superblock;
        let mut row =
            |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<NAME_WIDTH$}{value}");
        let sized = |bytes: u64| format!("{} ({bytes} bytes)", human(bytes));
        let or_none =
            |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
        let features = |bits: u64| if bits == 0 { "none".to_owned() } else { format!("{bits:#x}") };
        row("image", &format_args!("{}, {}", self.image.display(), self.kind))?;
        row("size", &sized(self.size_bytes))?;
        row("primary", &self.copy_text(&self.primary))?;
        row("backup", &self.copy_text(&self.backup))?;
        row("type", &self.type_text())?;
        row("label", &or_none(&superblock.label))?;
        row("UUID", &superblock.uuid)?;
        if superblock.is_member() {
            let (volume, order) = (superblock.volume_uuid, superblock.member_order);
            row("member of", &format_args!("tier volume {volume}, place {order}"))?;
        } else {
            let slots = superblock.slot_count;
            row("volume", &format_args!("{}, {slots} slots", sized(superblock.volume_bytes())))?;
        }
        if let Some(remote) = &self.remote {
            let what = match remote.layout {
                "objects" => "objects, a key each".to_owned(),
                layout => format!("an export, as {layout}"),
            };
            row("pages at", &format_args!("{}: {what}", remote.url))?;
            row("room there", &sized(remote.capacity_bytes))?;
            row("deadline", &format_args!("{} ms", remote.deadline_ms))?;
        }
        row("image needs", &sized(superblock.image_bytes))?;
        if superblock.is_ghost() {
            row("data section", &"none: pages live outside the image")?;
        } else {
            let data = sized(superblock.data_bytes);
            row(
                "data section",
                &format_args!("{data} from byte {}", superblock.data_offset_bytes),
            )?;
        }
        row("erase block", &sized(u64::from(superblock.erase_block_bytes)))?;
        row("created", &calendar::utc(superblock.created_unix_s))?;
        row("written by", &or_none(&superblock.tool_version))?;
        row("generation", &superblock.generation)?;
        row(
            "features",
            &format_args!(
                "compatible {}, read-only compatible {}, incompatible {}",
                features(superblock.features_compatible),
                features(superblock.features_read_only_compatible),
                features(superblock.features_incompatible)
            ),
        )?;
        for member in &superblock.members {
            row(
                "member",
                &format_args!(
                    "{}: {}, {}, last seen at {}",
                    member.order,
                    member.uuid,
                    sized(member.size_bytes),
                    or_none(&member.path_hint)
                ),
            )?;
        }
        self.fmt_options(f)?;
        self.log.as_ref().map_or(Ok(()), |log| log.fmt(f))
    }
}

impl Inspection {
    /// Reads the segments of the log too.
    ///
    /// # Errors
    /// If the volume has none, or the image can't be read.
    pub fn look_at_log(&mut self) -> Result<(), Failure> {
        if self.superblock.type_name != types::LOG.name {
            let why = format!("type '{}' has no segments", self.superblock.type_name);
            return Err(Failure::new(self.image.display(), why));
        }
        if self.superblock.is_member() {
            let why = "a member of a tier volume: what its segments hold is known only to the \
                       daemon that has the volume mounted: see swapfs tier";
            return Err(Failure::new(self.image.display(), why));
        }
        let image = Image::open(&self.image, Access::ReadOnly).map_err(|error| refused(&error))?;
        self.log = Some(LogView::new(log_survey::of(&image, &self.superblock, false)?));
        Ok(())
    }

    fn copy_text(&self, copy: &CopyState) -> String {
        let state = match &copy.error {
            Some(error) => format!("BAD: {error}: see fsck.swapfs"),
            None if self.copies_agree || !(self.primary.good && self.backup.good) => {
                "good".to_owned()
            }
            None => "good, but the copies differ: see fsck.swapfs".to_owned(),
        };
        format!("at byte {}: {state}", copy.offset_bytes)
    }

    fn type_text(&self) -> String {
        let name = &self.superblock.type_name;
        match self.superblock.type_spec() {
            Some(spec) => format!("{name}: {}", spec.summary),
            None => format!("{name}: not known to this program"),
        }
    }

    fn fmt_options(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.options.is_empty() {
            let text = &self.superblock.options;
            writeln!(f, "{:<NAME_WIDTH$}{text}", "options")?;
        }
        if let Some(error) = &self.options_error {
            writeln!(f, "{:<NAME_WIDTH$}BAD: {error}", "")?;
        }
        for (index, option) in self.options.iter().enumerate() {
            let name = if index == 0 { "options" } else { "" };
            let mark = if option.default { "  (default)" } else { "" };
            writeln!(f, "{name:<NAME_WIDTH$}{}={}{mark}", option.key, option.value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
