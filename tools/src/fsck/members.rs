//! The members of a `tier` volume: what its own superblock says of them, and whether the images that
//! are found where it saw them last say the same. Nothing is written to them.

use super::survey::{FORMAT_AGAIN, Problem, ProblemKind};
use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use swapfs_format::PAGE_BYTES;
use swapfs_format::member::{MAX_DEVICE_MEMBERS, MemberKind, MemberOptions, capacity_bytes};
use swapfs_format::superblock::{Member, Superblock};
use swapfs_format::types::TypeSpec;
use swapfsd::image::{Access, Image, ImageErrorKind, SuperblockPair, member_flaw};

/// What is wrong with the member table, in words.
pub(super) fn wrong_table(superblock: &Superblock, spec: &TypeSpec) -> Option<String> {
    let members = &superblock.members;
    let first = members.first()?;
    if !spec.has_members {
        return Some(format!("type '{}' has no members, and {} is one", spec.name, first.uuid));
    }
    if members.len() > MAX_DEVICE_MEMBERS {
        let count = members.len();
        return Some(format!("{count} members: a volume has at most {MAX_DEVICE_MEMBERS}"));
    }
    let mut uuids = HashSet::new();
    let mut last_order = 0;
    for member in members {
        let Member { uuid, size_bytes, order, .. } = member;
        if *size_bytes == 0 || !size_bytes.is_multiple_of(PAGE_BYTES) {
            return Some(format!(
                "member {uuid}: its size of {size_bytes} bytes is no multiple of the page"
            ));
        }
        if *uuid == superblock.uuid {
            return Some("the volume is a member of itself".to_owned());
        }
        if !uuids.insert(uuid) {
            return Some(format!("member {uuid}: is there twice"));
        }
        if *order <= last_order {
            return Some(format!(
                "member {uuid}: its place {order} is not behind {last_order}, the one before it"
            ));
        }
        if *order > MAX_DEVICE_MEMBERS as u32 {
            return Some(format!("member {uuid}: its place {order} is over {MAX_DEVICE_MEMBERS}"));
        }
        last_order = *order;
    }
    None
}

/// Checks what the superblock of a member says, by itself.
pub(super) fn check_own(superblock: &Superblock, problems: &mut Vec<Problem>) {
    let mut hopeless = |kind, why: &dyn fmt::Display, advice: &str| {
        problems.push(Problem::beyond_repair(kind, why, advice));
    };
    let again = "format it again as a member, with mkswapfs -f or swapfs tier add".to_owned();
    if let Some(kind) = MemberKind::of(superblock)
        && let Err(error) = MemberOptions::parse(kind, &superblock.options)
    {
        let advice = format!("use the swapfs that formatted it, or {again}");
        hopeless(ProblemKind::BadOption, &error, &advice);
    }
    if let Some(why) = member_flaw(superblock) {
        hopeless(ProblemKind::WrongDataSection, &why, &again);
    }
    if let Some(member) = superblock.members.first() {
        let why = format!("a member has no members itself, and {} is one", member.uuid);
        hopeless(ProblemKind::BadMembers, &why, &again);
    }
}

/// Looks at each image that the volume's superblock names, where it was last.
pub(super) fn check_images(
    superblock: &Superblock,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) {
    for member in &superblock.members {
        let name = format!("member {}, UUID {}", member.order, member.uuid);
        if member.path_hint.is_empty() {
            warnings.push(format!("{name}: not looked at: its path is not known"));
            continue;
        }
        let path = &member.path_hint;
        let image = match Image::open(Path::new(path), Access::ReadOnly) {
            Ok(image) => image,
            Err(error) if error.kind == ImageErrorKind::Missing => {
                warnings.push(format!(
                    "{name}: missing: nothing is at {path}, where it was: attach the device, or \
                     take the member out with swapfs tier remove"
                ));
                continue;
            }
            Err(error) => {
                warnings.push(format!("{name}: can't be looked at: {error}"));
                continue;
            }
        };
        match found_at(&image, member.uuid) {
            Found::Whole(found) => {
                let flaws = differences(superblock, member, &found, &image);
                problems.extend(flaws.into_iter().map(|why| {
                    Problem::beyond_repair(
                        ProblemKind::MemberDiffers,
                        format_args!("{name}: {path}: {why}"),
                        FORMAT_AGAIN,
                    )
                }));
            }
            Found::Damaged(why) => problems.push(Problem::beyond_repair(
                ProblemKind::MemberDamaged,
                format_args!("{name}: {path}: primary superblock: {why}"),
                format_args!("run fsck.swapfs -p {path}: its backup is good"),
            )),
            Found::Other(what) => warnings.push(format!(
                "{name}: missing: {path}, where it was, holds {what}: attach its device again, or \
                 take the member out with swapfs tier remove"
            )),
        }
    }
}

/// What is found where a member was.
enum Found {
    /// The member.
    Whole(Box<Superblock>),
    /// The member, and its primary superblock does not check.
    Damaged(String),
    /// Something else.
    Other(String),
}

fn found_at(image: &Image, wanted: uuid::Uuid) -> Found {
    let SuperblockPair { primary, backup, .. } = image.read_superblocks();
    match (primary, backup) {
        (Ok(found), _) if found.uuid == wanted => Found::Whole(Box::new(found)),
        (Ok(other), _) => Found::Other(format!("another image, of UUID {}", other.uuid)),
        (Err(error), Ok(backup)) if backup.uuid == wanted => Found::Damaged(error.to_string()),
        (Err(_), _) => Found::Other("no swapfs image".to_owned()),
    }
}

/// What the member's own superblock says otherwise than the volume's.
fn differences(
    volume: &Superblock,
    entry: &Member,
    found: &Superblock,
    image: &Image,
) -> Vec<String> {
    let mut flaws = Vec::new();
    if found.volume_uuid != volume.uuid {
        let whose = match found.is_member() {
            true => format!("to the volume {}", found.volume_uuid),
            false => "to no volume".to_owned(),
        };
        flaws.push(format!("it says that it belongs {whose}, not to this one"));
        return flaws;
    }
    if found.member_order != entry.order {
        flaws.push(format!("it says that its place is {}", found.member_order));
    }
    if capacity_bytes(found) != entry.size_bytes {
        let what = if found.is_ghost() { "its pages may take" } else { "its data section has" };
        flaws.push(format!(
            "{what} {} bytes, and the volume says {}",
            capacity_bytes(found),
            entry.size_bytes
        ));
    }
    if image.bytes() < found.image_bytes {
        flaws.push(format!(
            "it was cut off: it has {} bytes, its superblock says {}",
            image.bytes(),
            found.image_bytes
        ));
    }
    flaws.extend(member_flaw(found));
    flaws
}
