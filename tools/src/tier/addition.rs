//! A member image for a volume that is up: formatted, if it is not a member of it already, and
//! added.

use super::Served;
use crate::failure::Failure;
use crate::image::{self, Image};
use crate::interrupt::Interrupt;
use indicatif::{ProgressBar, ProgressStyle};
use mkswapfs::{Formatted, MemberImage, MemberRequest, MemberSpec, Preallocate, format_member};
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use swapfs_format::member::{MAX_DEVICE_MEMBERS, capacity_bytes};
use swapfs_format::remote::RemoteOptions;
use swapfs_format::size::human;
use swapfs_format::superblock::Superblock;
use swapfsd::admin::Request;
use uuid::Uuid;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct AddRequest {
    /// What stands on the command line: `[KIND:]PATH[,KEY=VALUE...]`.
    pub member: MemberSpec,
    /// Its place; `None`: behind the last one.
    pub order: Option<u32>,
    /// Overwrite what is there.
    pub force: bool,
    /// Only say what would be made.
    pub dry_run: bool,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AddReport {
    /// The volume.
    pub volume: String,
    /// The image that is a tier now.
    pub image: PathBuf,
    /// Its place.
    pub order: u32,
    /// `log`, `linear` or `remote`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Of a stub: where its pages are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// UUID of its image.
    pub uuid: Uuid,
    /// What it has room for.
    pub data_bytes: u64,
    /// It was formatted for this.
    pub formatted: bool,
    /// Nothing was done (`-n`).
    pub dry_run: bool,
}

impl std::fmt::Display for AddReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (verb, how) = match (self.dry_run, self.formatted) {
            (true, true) => ("would be", ", formatted anew"),
            (true, false) => ("would be", ", as it is"),
            (false, true) => ("is", ", formatted"),
            (false, false) => ("is", ", as it was"),
        };
        write!(
            f,
            "{}: {} {verb} tier {} now: {}, {}{how}",
            self.volume,
            self.image.display(),
            self.order,
            self.type_name,
            human(self.data_bytes)
        )?;
        self.url.as_ref().map_or(Ok(()), |url| write!(f, ", at {url}"))
    }
}

/// Formats the image if need be, and adds it.
///
/// # Errors
/// What the formatter or the daemon refused. A file that was made for this is removed then.
pub fn add(
    served: &Served,
    request: &AddRequest,
    interrupt: &Interrupt,
) -> Result<AddReport, Failure> {
    let MemberSpec::Image(member) = &request.member else {
        return Err(Failure::new(
            "zmem",
            "every volume has its memory already: give an image, as [log:|linear:|remote:]PATH",
        ));
    };
    let known = match request.force {
        true => None,
        false => own_member(&member.image, served.uuid)?,
    };
    let orders: Vec<u32> = served.stats.tiers.iter().map(|tier| tier.order).collect();
    let (superblock, formatted) = match known {
        Some(superblock) => {
            check_known(member, request.order, &superblock, &orders)?;
            (superblock, None)
        }
        None => {
            let order = place(request.order, &orders)?;
            let formatted = format(served.uuid, member, order, request, interrupt)?;
            (formatted.superblock.clone(), Some(formatted))
        }
    };
    let mut report = AddReport {
        volume: served.name.clone(),
        image: absolute(&member.image)?,
        order: superblock.member_order,
        type_name: superblock.type_name.clone(),
        url: url_of(&superblock),
        uuid: superblock.uuid,
        data_bytes: capacity_bytes(&superblock),
        formatted: formatted.is_some(),
        dry_run: request.dry_run,
    };
    if request.dry_run {
        return Ok(report);
    }
    let created = formatted.is_some_and(|formatted| formatted.created);
    let asked = served.ask(&Request::Add { image: report.image.clone() });
    match asked {
        Ok(done) => report.order = done.order.unwrap_or(report.order),
        Err(failure) => {
            // Nobody has it open unless it is a tier by now: whose lock then says so.
            if created
                && swapfsd::image::Image::open_exclusive(
                    &report.image,
                    swapfsd::image::Access::ReadWrite,
                )
                .is_ok()
            {
                drop(std::fs::remove_file(&report.image));
            }
            return Err(failure);
        }
    }
    Ok(report)
}

fn url_of(superblock: &Superblock) -> Option<String> {
    let options = RemoteOptions::of_stub(superblock)?.ok()?;
    Some(options.url.to_string())
}

/// The superblock of an image that is a member of the volume already.
fn own_member(path: &Path, volume: Uuid) -> Result<Option<Superblock>, Failure> {
    Ok(match image::look(path)? {
        Image::Volume(superblock) if superblock.is_member() && superblock.volume_uuid == volume => {
            Some(*superblock)
        }
        _ => None,
    })
}

/// A member that is added as it is can't be asked to be different.
fn check_known(
    member: &MemberImage,
    order: Option<u32>,
    superblock: &Superblock,
    taken: &[u32],
) -> Result<(), Failure> {
    let own = superblock.member_order;
    let wrong = |why: String| Err(Failure::new(member.image.display(), why));
    if !member.options.is_empty() || member.data_bytes.is_some() {
        return wrong(
            "is a member of this volume already, and keeps its options: leave them out, and change \
             them with 'swapfs tier set' afterwards; or format it anew with --force"
                .to_owned(),
        );
    }
    if member.kind.is_some_and(|kind| kind.type_name() != superblock.type_name) {
        return wrong(format!(
            "is a member of this volume already, of type {}: leave the type out, or format it anew \
             with --force",
            superblock.type_name
        ));
    }
    if order.is_some_and(|order| order != own) {
        return wrong(format!(
            "is a member of this volume already, in place {own}: leave --order out, or format it \
             anew with --force"
        ));
    }
    if taken.contains(&own) {
        return wrong(format!(
            "is a member of this volume for place {own}, and there is a tier {own} ('swapfs tiers' \
             shows it): format it for another place with --force --order N; free are {}",
            free(taken)
        ));
    }
    Ok(())
}

/// The place of a new member among those with the places `taken`.
fn place(wanted: Option<u32>, taken: &[u32]) -> Result<u32, Failure> {
    let most = MAX_DEVICE_MEMBERS as u32;
    match wanted {
        Some(order) if !(1..=most).contains(&order) => Err(Failure::new(
            format_args!("--order {order}"),
            format_args!(
                "members have the places 1 to {most}, the hottest first (0 is the memory): free \
                 are {}",
                free(taken)
            ),
        )),
        Some(order) if taken.contains(&order) => Err(Failure::new(
            format_args!("--order {order}"),
            format_args!("there is a tier of that place: free are {}", free(taken)),
        )),
        Some(order) => Ok(order),
        None => match taken.iter().max().map_or(1, |last| last + 1) {
            order if order <= most => Ok(order),
            _ => Err(Failure::new(
                "--order",
                format_args!("there is no place behind the last tier: free are {}", free(taken)),
            )),
        },
    }
}

/// The places that are free, for messages.
fn free(taken: &[u32]) -> String {
    let free: Vec<String> = (1..=MAX_DEVICE_MEMBERS as u32)
        .filter(|order| !taken.contains(order))
        .map(|order| order.to_string())
        .collect();
    if free.is_empty() {
        return "none: remove a tier first".to_owned();
    }
    free.join(", ")
}

fn format(
    volume: Uuid,
    member: &MemberImage,
    order: u32,
    request: &AddRequest,
    interrupt: &Interrupt,
) -> Result<Formatted, Failure> {
    let request = MemberRequest {
        member: member.clone(),
        volume,
        order,
        erase_block_bytes: None,
        preallocate: Preallocate::Full,
        force: request.force,
        dry_run: request.dry_run,
    };
    let bar = ProgressBar::new(0);
    if let Ok(style) =
        ProgressStyle::with_template("formatting {wide_bar} {bytes} of {total_bytes}")
    {
        bar.set_style(style);
    }
    let formatted = format_member(&request, &mut |done_bytes, total_bytes| {
        bar.set_length(total_bytes);
        bar.set_position(done_bytes);
        if interrupt.is_raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    Ok(formatted?)
}

/// The daemon has another working directory than we.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::os(path.display(), "use as a path", &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use swapfs_format::geometry::Geometry;
    use swapfs_format::member::MemberKind;

    #[test]
    fn places_are_behind_the_last_or_where_one_is_free() {
        assert_eq!(place(None, &[0]), Ok(1));
        assert_eq!(place(None, &[0, 1, 4]), Ok(5));
        assert_eq!(place(Some(2), &[0, 1, 4]), Ok(2));
        let why = |wanted, taken: &[u32]| place(wanted, taken).unwrap_err().to_string();
        assert!(why(Some(4), &[0, 1, 4]).ends_with("free are 2, 3, 5, 6, 7, 8"));
        assert!(why(Some(0), &[0]).contains("places 1 to 8"));
        assert!(why(Some(9), &[0]).contains("places 1 to 8"));
        assert!(why(None, &[0, 8]).contains("no place behind the last tier: free are 1, 2"));
        let all: Vec<u32> = (0..9).collect();
        assert!(why(None, &all).contains("remove a tier first"));
    }

    fn known() -> Superblock {
        let geometry = Geometry::member(64 << 20, 2 << 20, 2 << 20).unwrap();
        let mut superblock = Superblock::new("log", &geometry, Uuid::from_u128(5));
        (superblock.volume_uuid, superblock.member_order) = (Uuid::from_u128(7), 2);
        superblock
    }

    #[test]
    fn a_member_of_the_volume_is_recognised_and_stays_as_it_is() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("member");
        assert_eq!(own_member(&path, Uuid::from_u128(7)), Ok(None));
        std::fs::write(&path, known().encode().unwrap()).unwrap();
        assert_eq!(own_member(&path, Uuid::from_u128(7)), Ok(Some(known())));
        assert_eq!(own_member(&path, Uuid::from_u128(8)), Ok(None));

        let plain =
            MemberImage { image: path, kind: None, data_bytes: None, options: String::new() };
        let check = |member: &MemberImage, order, taken: &[u32]| {
            check_known(member, order, &known(), taken).map_err(|failure| failure.to_string())
        };
        assert_eq!(check(&plain, None, &[0, 1]), Ok(()));
        assert_eq!(check(&plain, Some(2), &[0, 1]), Ok(()));
        assert!(check(&plain, Some(3), &[0, 1]).unwrap_err().contains("in place 2"));
        assert!(check(&plain, None, &[0, 2]).unwrap_err().contains("there is a tier 2"));
        let other = MemberImage { kind: Some(MemberKind::Linear), ..plain.clone() };
        assert!(check(&other, None, &[0]).unwrap_err().contains("of type log"));
        let changed = MemberImage { options: "high=70".into(), ..plain };
        assert!(check(&changed, None, &[0]).unwrap_err().contains("swapfs tier set"));
    }
}
