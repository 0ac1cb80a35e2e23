//! `swapfs tier`: changes of a tier volume while it is in use, asked for over its control socket.
//!
//! * [`client`]: one request, and what the daemon says to it;
//! * [`removal`]: a tier that is emptied: asked for, watched, past the death of a worker;
//! * [`addition`]: a member image that is formatted and added.

pub mod addition;
pub mod client;
pub mod removal;

use crate::failure::Failure;
use crate::probe;
use crate::stats::{Stats, TierStats};
use crate::sys::process;
use crate::volumes::Volume;
use client::Socket;
use std::path::Path;
use swapfsd::admin::{Done, Request, socket_path};
use uuid::Uuid;

/// A tier volume that is up.
#[derive(Debug)]
pub struct Served {
    /// What to call it in messages, and what `VOLUME` can be in commands.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// What its daemon says of itself.
    pub stats: Stats,
    /// Where it takes requests.
    pub socket: Socket,
}

impl Served {
    /// Asks the daemon of `volume` how it is.
    ///
    /// # Errors
    /// If the caller is not root, the daemon does not answer, or the volume has no tiers.
    pub fn of(volume: &Volume) -> Result<Served, Failure> {
        if !process::is_root() {
            return Err(Failure::new(
                "not root",
                "only root can change a volume: try again with sudo",
            ));
        }
        let name = volume.name().display().to_string();
        let stats = probe::served(volume)?;
        if stats.tiers.is_empty() {
            return Err(no_tiers(&name, &stats));
        }
        let uuid = stats.uuid.parse().map_err(|error| {
            Failure::new(&name, format_args!("its statistics have no UUID: {error}"))
        })?;
        Ok(Served { socket: Socket::at(&socket_path(uuid)), name, uuid, stats })
    }

    /// Sends a request that is done at once.
    ///
    /// # Errors
    /// What the daemon refused, in its words, or why it could not be asked.
    pub fn ask(&self, request: &Request) -> Result<Done, Failure> {
        self.socket.ask(request).map_err(|why| Failure::new(&self.name, why))
    }
}

/// The failure for a volume that has no tiers.
pub(crate) fn no_tiers(name: &str, stats: &Stats) -> Failure {
    Failure::new(
        name,
        format_args!(
            "is of type '{}' and has no tiers: only volumes of type 'tier' or 'remote' have \
             (see swapfs-tier(5))",
            stats.type_name
        ),
    )
}

/// The tier that a person named: by its order, its image or its UUID.
///
/// # Errors
/// If there is none of that name; the message says which there are.
pub fn find<'a>(tiers: &'a [TierStats], name: &str) -> Result<&'a TierStats, Failure> {
    let is_image = |tier: &TierStats| {
        let path = Path::new(name);
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let image = Path::new(&tier.image);
        !tier.image.is_empty()
            && (image == absolute
                || std::fs::canonicalize(path)
                    .is_ok_and(|real| std::fs::canonicalize(image).is_ok_and(|at| at == real)))
    };
    let order = name.parse::<u32>().ok();
    tiers
        .iter()
        .find(|tier| order == Some(tier.order) || (!tier.uuid.is_empty() && tier.uuid == name))
        .or_else(|| tiers.iter().find(|tier| is_image(tier)))
        .ok_or_else(|| {
            let known: Vec<String> = tiers
                .iter()
                .map(|tier| format!("{} {}", tier.name(), tier.image).trim_end().to_owned())
                .collect();
            let known = known.join(", ");
            Failure::new(
                format_args!("tier {name}"),
                format_args!("there is none of that order, image or UUID: there are {known}"),
            )
        })
}

#[cfg(test)]
pub(crate) mod tests;
