//! A `tier` volume: its members and its own image, planned together.

use crate::Error;
use crate::member::{MemberImage, MemberRequest, MemberSpec, member_entry, plan_member};
use crate::plan::{self, FormatRequest, Plan};
use crate::target::{Identity, identity};
use std::path::Path;
use swapfs_format::PAGE_BYTES;
use swapfs_format::member::{MAX_DEVICE_MEMBERS, capacity_bytes};
use swapfs_format::swap_header::MAX_SLOT_COUNT;
use swapfs_format::types::{BackendOptions, TIER};
use swapfsd::sys::memory;
use uuid::Uuid;

/// Decides what will be written to all images, without writing: to the members, hottest first, and
/// to the volume's own image, which comes last.
///
/// # Errors
/// Everything that is wrong with the request, or with any of its targets.
pub(crate) fn plan(request: &FormatRequest) -> Result<Vec<Plan>, Error> {
    let (memory_options, images) = sorted(&request.members)?;
    none_twice(&request.image, &images)?;
    let options = [request.options.as_str(), memory_options].into_iter();
    let options = options.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(",");
    let typed =
        TIER.parse_options(&options).map_err(|error| Error::new(request.image.display(), error))?;
    let volume = request.uuid.unwrap_or_else(Uuid::new_v4);
    let mut plans = Vec::new();
    for (order, member) in (1..).zip(images) {
        plans.extend(plan_member(&MemberRequest {
            member: member.clone(),
            volume,
            order,
            erase_block_bytes: request.erase_block_bytes,
            preallocate: request.preallocate,
            force: request.force,
            dry_run: request.dry_run,
        })?);
    }
    // What stands on an export is none of the volume's members: its stub is one.
    let members = || plans.iter().filter(|plan| plan.export.is_none());
    let data_bytes: u64 = members().map(|plan| capacity_bytes(&plan.superblock)).sum();
    let limit_bytes = match typed.backend {
        BackendOptions::Tier(tier) => tier.zmem.limit_bytes,
        _ => None,
    };
    // Of the memory as much as the daemon takes when it is not told.
    let limit_bytes = limit_bytes.unwrap_or_else(|| memory::total_bytes() / 2);
    let most = MAX_SLOT_COUNT * PAGE_BYTES;
    let fitting = data_bytes.saturating_add(limit_bytes).min(most) / PAGE_BYTES * PAGE_BYTES;
    let mut own = plan::plan(&FormatRequest {
        volume_bytes: Some(request.volume_bytes.unwrap_or(fitting)),
        uuid: Some(volume),
        options,
        // The volume's own image holds nothing that is erased.
        erase_block_bytes: None,
        ..request.clone()
    })?;
    own.superblock.members =
        members().map(|plan| member_entry(&plan.superblock, &plan.image)).collect();
    own.superblock.encode().map_err(|error| Error::new(own.image.display(), error))?;
    plans.push(own);
    Ok(plans)
}

/// The options of the memory, and the images, hottest first.
fn sorted(members: &[MemberSpec]) -> Result<(&str, Vec<&MemberImage>), Error> {
    let mut memory = None;
    let mut images = Vec::new();
    for member in members {
        match member {
            MemberSpec::Memory(_) if memory.is_some() => {
                return Err(Error::new(
                    "--member zmem",
                    "given twice: a volume has one tier in memory, the first",
                ));
            }
            MemberSpec::Memory(_) if !images.is_empty() => {
                return Err(Error::new(
                    "--member zmem",
                    "the memory is always the first tier: give it before the others",
                ));
            }
            MemberSpec::Memory(options) => memory = Some(options.as_str()),
            MemberSpec::Image(image) => images.push(image),
        }
    }
    if images.is_empty() {
        return Err(Error::new(
            "type 'tier'",
            "has no image to store pages in: give one to 8, hottest first, with --member \
             [log:|linear:|remote:]PATH",
        ));
    }
    if images.len() > MAX_DEVICE_MEMBERS {
        let why = format!(
            "{} images are too many: a volume has at most {MAX_DEVICE_MEMBERS}, and its memory",
            images.len()
        );
        return Err(Error::new("--member", why));
    }
    Ok((memory.unwrap_or(""), images))
}

/// Every image is there once, by whatever path.
fn none_twice(own: &Path, members: &[&MemberImage]) -> Result<(), Error> {
    let own = identity(own);
    let mut seen: Vec<Identity> = Vec::new();
    for MemberImage { image, .. } in members {
        let found = identity(image);
        let wrong = |why| Err(Error::new(format_args!("--member {}", image.display()), why));
        if found == own {
            return wrong(
                "it is the volume's own image too: a member is an image beside it. Give another \
                 path to one of them",
            );
        }
        if seen.contains(&found) {
            return wrong("the same image is given twice: each member needs one for itself");
        }
        seen.push(found);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
