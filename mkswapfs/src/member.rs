//! The members of a `tier` volume: what `--member` says, and from that to a superblock.

use crate::plan::{self, Plan, Preallocate};
use crate::target::Target;
use crate::{Error, Formatted, Progress};
use crate::{remote, target};
use std::fmt;
use std::path::{Path, PathBuf};
use swapfs_format::geometry::Geometry;
use swapfs_format::member::{MAX_DEVICE_MEMBERS, MemberKind, MemberOptions, capacity_bytes};
use swapfs_format::superblock::{Member, PATH_HINT_LEN, Superblock};
use swapfs_format::types;
use swapfs_format::{PAGE_BYTES, size};
use swapfsd::image::member_flaw;
use uuid::Uuid;

/// What one `--member` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberSpec {
    /// `zmem[,KEY=VALUE...]`: options of the memory that is the first tier.
    Memory(String),
    /// `[KIND:]PATH[,KEY=VALUE...]`
    Image(MemberImage),
}

/// An image that is to become a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberImage {
    /// File or block device.
    pub image: PathBuf,
    /// How it stores pages; `None`: what suits the device.
    pub kind: Option<MemberKind>,
    /// Bytes of its data section; `None`: as large as fits.
    pub data_bytes: Option<u64>,
    /// Its options, `key=value,...`.
    pub options: String,
}

impl fmt::Display for MemberSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemberSpec::Memory(_) => f.write_str(types::ZMEM.name),
            MemberSpec::Image(member) => member.image.display().fmt(f),
        }
    }
}

impl MemberSpec {
    /// Reads what stands behind `--member`. A path has no comma; one that begins as a kind does is
    /// written with `./` before it. Of the options only `size` is read here.
    ///
    /// # Errors
    /// No path, a size that is none, or a type that no member has.
    pub fn parse(text: &str) -> Result<MemberSpec, Error> {
        let wrong = |why: &dyn fmt::Display| Error::new(format_args!("--member {text}"), why);
        let (what, options) = text.split_once(',').unwrap_or((text, ""));
        if what == types::ZMEM.name {
            return Ok(MemberSpec::Memory(options.to_owned()));
        }
        let (kind, path) = match what.split_once(':') {
            Some((name, path)) if MemberKind::from_type_name(name).is_some() => {
                (MemberKind::from_type_name(name), path)
            }
            Some((name, _)) if name == types::ZMEM.name => {
                return Err(wrong(&"the memory has no image: write zmem[,KEY=VALUE...]"));
            }
            Some((name, _)) if types::find(name).is_some() => {
                let why = format!(
                    "no member is of type '{name}': they are log:PATH, linear:PATH or \
                     remote:PATH (for a file of such a name, write ./{what})"
                );
                return Err(wrong(&why));
            }
            _ => (None, what),
        };
        if path.is_empty() {
            return Err(wrong(
                &"no path: write [log:|linear:|remote:]PATH[,KEY=VALUE...], or zmem",
            ));
        }
        let mut data_bytes = None;
        let mut rest = Vec::new();
        for entry in options.split(',') {
            match entry.trim().strip_prefix("size=") {
                Some(_) if data_bytes.is_some() => return Err(wrong(&"size is given twice")),
                Some(given) => data_bytes = Some(size::parse(given).map_err(|why| wrong(&why))?),
                None => rest.push(entry),
            }
        }
        Ok(MemberSpec::Image(MemberImage {
            image: PathBuf::from(path),
            kind,
            data_bytes,
            options: rest.join(","),
        }))
    }
}

/// One member image to format.
#[derive(Debug, Clone)]
pub struct MemberRequest {
    /// The image, and what is to stand on it.
    pub member: MemberImage,
    /// UUID of the tier volume that it is to belong to.
    pub volume: Uuid,
    /// Its place among the tiers of that volume, from 1.
    pub order: u32,
    /// Erase block, in bytes, and the segment of a `log`; `None`: what the device says.
    pub erase_block_bytes: Option<u64>,
    /// For a regular file.
    pub preallocate: Preallocate,
    /// Overwrite what is there.
    pub force: bool,
    /// Only say what would be made.
    pub dry_run: bool,
}

/// Formats one image as a member of a volume that there is already, for `swapfs tier add`. Nothing
/// is written to the volume's own image: see [`member_entry`] for what belongs there.
///
/// # Errors
/// As [`crate::format_image`].
pub fn format_member(request: &MemberRequest, progress: Progress<'_>) -> Result<Formatted, Error> {
    let mut plans = plan_member(request)?;
    if !request.dry_run {
        crate::execute(&mut plans, progress)?;
    }
    let mut formatted = Formatted::of(plans, request.dry_run);
    formatted.pop().ok_or_else(|| Error::new("plan", "empty"))
}

/// The entry that the volume's superblock has for a member, which is at `image`.
#[must_use]
pub fn member_entry(superblock: &Superblock, image: &Path) -> Member {
    let path = target::lasting_path(image);
    let hint = path.to_str().filter(|text| path.is_absolute() && text.len() <= PATH_HINT_LEN);
    Member {
        uuid: superblock.uuid,
        size_bytes: capacity_bytes(superblock),
        order: superblock.member_order,
        path_hint: hint.unwrap_or_default().to_owned(),
    }
}

/// Decides what will be written to a member, without writing: to its image, and before that to an
/// export that it stands for.
pub(crate) fn plan_member(request: &MemberRequest) -> Result<Vec<Plan>, Error> {
    let MemberImage { image, kind, data_bytes, options } = &request.member;
    let wrong = |why: &dyn fmt::Display| Error::new(image.display(), why);
    if !(1..=MAX_DEVICE_MEMBERS as u32).contains(&request.order) {
        let why =
            format!("no place {} for it: members have 1 to {MAX_DEVICE_MEMBERS}", request.order);
        return Err(wrong(&why));
    }
    let kind = kind.unwrap_or_else(|| match target::is_rotational(image) {
        true => MemberKind::Linear,
        false => MemberKind::Log,
    });
    let typed = MemberOptions::parse(kind, options).map_err(|error| wrong(&error))?;
    if let Some(options) = &typed.remote {
        return remote::plan_member(request, &typed, options);
    }
    let target = target::inspect(image, request.force)?;
    target.refuse_tmpfs(image)?;
    let mut erase_block_bytes = request.erase_block_bytes.unwrap_or(target.erase_block_bytes);
    let mut unit_bytes = PAGE_BYTES;
    if kind == MemberKind::Log {
        let wanted = typed.segment_bytes.or(request.erase_block_bytes);
        let bytes = data_bytes.unwrap_or(target.bytes);
        unit_bytes = plan::segment_bytes(image, wanted, bytes, target.erase_block_bytes)?;
        erase_block_bytes = unit_bytes;
    }
    let geometry = match (&target.image, *data_bytes) {
        (Some(_), data_bytes) => {
            Geometry::fitted_member(target.bytes, data_bytes, unit_bytes, erase_block_bytes)
        }
        (None, Some(data_bytes)) => Geometry::member(data_bytes, unit_bytes, erase_block_bytes),
        (None, None) => {
            let why = format!(
                "it does not exist: give its size to create it, as {},size=SIZE",
                image.display()
            );
            return Err(wrong(&why));
        }
    };
    let geometry = geometry.map_err(|error| wrong(&error))?;
    let mut superblock = Superblock::new(kind.type_name(), &geometry, Uuid::new_v4());
    superblock.volume_uuid = request.volume;
    superblock.member_order = request.order;
    superblock.options.clone_from(options);
    superblock.erase_block_bytes = erase_block_bytes as u32;
    Ok(vec![plan_own(request, superblock, target)?])
}

/// What will be written to a member's own image, whose superblock lacks only its time.
pub(crate) fn plan_own(
    request: &MemberRequest,
    mut superblock: Superblock,
    target: Target,
) -> Result<Plan, Error> {
    let image = &request.member.image;
    let wrong = |why: &dyn fmt::Display| Error::new(image.display(), why);
    superblock.created_unix_s = plan::creation_time(&superblock, target.image.as_ref());
    superblock.encode().map_err(|error| wrong(&error))?;
    if let Some(why) = member_flaw(&superblock) {
        return Err(wrong(&why));
    }
    Ok(Plan {
        image: image.clone(),
        create: target.image.is_none(),
        superblock,
        preallocate: request.preallocate,
        target: target.image,
        export: None,
    })
}

#[cfg(test)]
mod tests;
