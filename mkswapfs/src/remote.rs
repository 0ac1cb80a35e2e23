//! Stubs: what says where pages are elsewhere, and on an NBD export what is written there.

use crate::Error;
use crate::export::Export;
use crate::member::{MemberRequest, plan_own};
use crate::plan::{self, FormatRequest, Plan, Preallocate};
use crate::target;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use swapfs_format::geometry::Geometry;
use swapfs_format::member::{MemberKind, MemberOptions, capacity_bytes};
use swapfs_format::remote::{RemoteLayout, RemoteOptions, RemoteUrl};
use swapfs_format::superblock::Superblock;
use swapfs_format::types::{BackendOptions, REMOTE, SegmentDiscard};
use swapfs_format::{PAGE_BYTES, size};
use swapfsd::image::member_flaw;
use uuid::Uuid;

/// Where the pages of a stub are.
#[derive(Debug, Serialize)]
pub struct Elsewhere {
    /// The address.
    pub url: String,
    /// `objects`, `log` or `linear`.
    pub layout: &'static str,
    /// Bytes that pages may take there.
    pub capacity_bytes: u64,
    /// After so many milliseconds without an answer a request fails.
    pub deadline_ms: u64,
    /// What stands on the export, of an NBD server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<Superblock>,
}

impl Elsewhere {
    /// Where the pages of `superblock` are, if it is a stub, with what stands on its export.
    #[must_use]
    pub fn of(superblock: &Superblock, export: Option<Superblock>) -> Option<Elsewhere> {
        let options = RemoteOptions::of_stub(superblock)?.ok()?;
        let of_export = export.as_ref().map(capacity_bytes);
        let capacity = of_export.or(options.capacity_bytes);
        Some(Elsewhere {
            url: options.url.to_string(),
            layout: options.layout.name(),
            capacity_bytes: capacity.unwrap_or_else(|| capacity_bytes(superblock)),
            deadline_ms: options.deadline.as_millis() as u64,
            export,
        })
    }
}

const ALONE: &str = "as the only store it is not sound: each swap-in waits for the network, and a \
     page that is swapped out can be needed to send it. Put it below memory: mkswapfs -t tier \
     --member zmem,limit=SIZE --member remote:PATH,url=URL. To have it alone all the same, use -f";

/// What no mount would take, as far as that is known before the server is asked.
fn check(options: &RemoteOptions) -> Result<(), &'static str> {
    match &options.url {
        RemoteUrl::Redis(redis) if redis.nodes.len() > 1 && !options.cluster => {
            Err("option 'url': several servers are nodes of one cluster: say cluster=on")
        }
        _ => Ok(()),
    }
}

/// Decides what will be written of a volume of type `remote`: to the export, if there is one, and to
/// its own image, which comes last.
///
/// # Errors
/// Everything that is wrong with the request, or with its targets; and always without `force`.
pub(crate) fn plan(request: &FormatRequest) -> Result<Vec<Plan>, Error> {
    let image = request.image.display();
    let wrong = |why: &dyn std::fmt::Display| Error::new(&image, why);
    let typed = REMOTE.parse_options(&request.options).map_err(|error| wrong(&error))?;
    let BackendOptions::Remote(options) = typed.backend else {
        return Err(wrong(&"no options of type 'remote'"));
    };
    check(&options.remote).map_err(|why| wrong(&why))?;
    if !request.force {
        return Err(refusal(request, &options.remote));
    }
    let uuid = request.uuid.unwrap_or_else(Uuid::new_v4);
    let wanted = options.remote.capacity_bytes;
    let export = plan_export(&options.remote, None, wanted, uuid, request.force)?;
    let of_export = export.as_ref().map(|export| export.superblock.data_bytes);
    let own = plan::plan(&FormatRequest {
        volume_bytes: request.volume_bytes.or(of_export),
        uuid: Some(uuid),
        erase_block_bytes: None,
        ..request.clone()
    })?;
    Ok(export.into_iter().chain([own]).collect())
}

/// Why it is refused without `force`: before somebody uses that for this reason, it is said what it
/// would overwrite.
fn refusal(request: &FormatRequest, options: &RemoteOptions) -> Error {
    let mut why = ALONE.to_owned();
    if let Err(error) = target::inspect(&request.image, false) {
        why = format!("{why}. Besides, {error}");
    }
    // A server that does not answer has no say: nothing is written anyway.
    if matches!(options.url, RemoteUrl::Nbd(_))
        && let Ok(Some(found)) = Export::connect(options).and_then(|export| export.holds())
    {
        why = format!("{why}. Besides, {} holds {found}, which -f overwrites", options.url);
    }
    Error::new("type 'remote'", why)
}

/// The same for a member of a tier volume.
pub(crate) fn plan_member(
    request: &MemberRequest,
    typed: &MemberOptions,
    options: &RemoteOptions,
) -> Result<Vec<Plan>, Error> {
    let member = &request.member;
    let image = &member.image;
    let wrong = |why: &dyn std::fmt::Display| Error::new(image.display(), why);
    check(options).map_err(|why| wrong(&why))?;
    if options.layout == RemoteLayout::Objects && typed.discard != SegmentDiscard::Auto {
        return Err(wrong(
            &"option 'discard': only with an nbd:// address: what nobody needs is removed anyway",
        ));
    }
    let wanted = match (options.capacity_bytes, member.data_bytes) {
        (Some(capacity), Some(size)) if capacity != size => {
            return Err(wrong(&"size and capacity say different things: leave one of them out"));
        }
        (capacity, size) => capacity.or(size),
    };
    let target = target::inspect(image, request.force)?;
    let uuid = Uuid::new_v4();
    let segment = typed.segment_bytes.or(request.erase_block_bytes);
    let export = plan_export(options, segment, wanted, uuid, request.force)?;
    let capacity = export.as_ref().map(|export| export.superblock.data_bytes).or(wanted);
    let capacity = capacity.ok_or_else(|| {
        wrong(&"a Redis server has no size: give the bytes that pages may take there, as capacity=SIZE")
    })?;
    let geometry = Geometry::stub(capacity).map_err(|error| wrong(&error))?;
    let geometry = plan::with_backup_at_end(geometry, target.bytes);
    let mut superblock = Superblock::new(MemberKind::Remote.type_name(), &geometry, uuid);
    superblock.volume_uuid = request.volume;
    superblock.member_order = request.order;
    superblock.options.clone_from(&member.options);
    let stub = plan_own(request, superblock, target)?;
    stub.fits()?;
    Ok(export.into_iter().chain([stub]).collect())
}

/// What will be written to the export that `options` name; `None` if it is none of an NBD server.
fn plan_export(
    options: &RemoteOptions,
    segment: Option<u64>,
    data_bytes: Option<u64>,
    stub: Uuid,
    force: bool,
) -> Result<Option<Plan>, Error> {
    let kind = match (&options.url, options.layout) {
        (RemoteUrl::Redis(_), _) => return Ok(None),
        (RemoteUrl::Nbd(_), RemoteLayout::Linear) => MemberKind::Linear,
        (RemoteUrl::Nbd(_), _) => MemberKind::Log,
    };
    let name = PathBuf::from(options.url.to_string());
    let export = Export::connect(options)?;
    if !force && let Some(found) = export.holds()? {
        let why = format!("holds {found}: nothing was changed. To overwrite it, use -f");
        return Err(Error::new(name.display(), why));
    }
    Ok(Some(planned(name, kind, export, segment, data_bytes, stub)?))
}

fn planned(
    name: PathBuf,
    kind: MemberKind,
    export: Export,
    segment: Option<u64>,
    data_bytes: Option<u64>,
    stub: Uuid,
) -> Result<Plan, Error> {
    let wrong = |why: &dyn std::fmt::Display| Error::new(name.display(), why);
    let (unit_bytes, erase_block_bytes) = match kind {
        MemberKind::Log => {
            let bytes = data_bytes.unwrap_or(export.bytes());
            let segment = plan::segment_bytes(&name, segment, bytes, PAGE_BYTES)?;
            (segment, segment)
        }
        _ => (PAGE_BYTES, PAGE_BYTES),
    };
    let geometry =
        Geometry::fitted_member(export.bytes(), data_bytes, unit_bytes, erase_block_bytes);
    let geometry = geometry.map_err(|error| {
        wrong(&format_args!("{error} (the export has {})", size::human(export.bytes())))
    })?;
    let mut superblock = Superblock::new(kind.type_name(), &geometry, Uuid::new_v4());
    superblock.volume_uuid = stub;
    superblock.member_order = 1;
    superblock.erase_block_bytes = erase_block_bytes as u32;
    superblock.created_unix_s = plan::creation_time(&superblock, None);
    superblock.encode().map_err(|error| wrong(&error))?;
    if let Some(why) = member_flaw(&superblock) {
        return Err(wrong(&why));
    }
    Ok(Plan {
        image: name,
        create: false,
        superblock,
        preallocate: Preallocate::Falloc,
        target: None,
        export: Some(Arc::new(export)),
    })
}

#[cfg(test)]
mod tests;
