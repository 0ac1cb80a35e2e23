//! The commands for servers elsewhere: `remote gc`.

use super::{json, show};
use crate::failure::Failure;
use crate::remote::gc::{self, GcRequest};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use uuid::Uuid;

#[derive(Debug, Subcommand)]
pub(super) enum RemoteCommand {
    /// Show which volumes have keys on a Redis server, and remove those that nobody uses
    Gc(GcArguments),
}

#[derive(Debug, Args)]
pub(super) struct GcArguments {
    /// An address, redis://HOST[:PORT][,...] or rediss://, or an image of type remote
    #[arg(value_name = "URL|IMAGE")]
    place: String,
    /// Remove the keys of volumes that are not in use
    #[arg(long)]
    remove: bool,
    /// Of this volume only
    #[arg(long, value_name = "UUID", requires = "remove")]
    uuid: Option<Uuid>,
    /// Also if it is in use: its pages are lost
    #[arg(long, short = 'f', requires = "remove")]
    force: bool,
    /// The servers are a cluster [default: as the image says]
    #[arg(long)]
    cluster: bool,
    /// File with user name, password, and the files for TLS [default: as the image says]
    #[arg(long, value_name = "FILE")]
    auth: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: RemoteCommand) -> Result<ExitCode, Failure> {
    let RemoteCommand::Gc(arguments) = command;
    let report = gc::run(&GcRequest {
        place: arguments.place,
        cluster: arguments.cluster,
        auth: arguments.auth,
        remove: arguments.remove,
        uuid: arguments.uuid,
        force: arguments.force,
    })?;
    show(&if arguments.json { json(&report)? } else { report.to_string() })
}
