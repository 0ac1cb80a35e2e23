//! Telling whoever started the daemon that it serves, or why it does not.

use super::StartError;
use crate::supervisor::store;
use std::fs::File;
use std::io::{Read, Write};

/// What the child writes when all is well; anything else is the text of an error.
const READY: &[u8] = b"ready";

/// How the daemon tells that it is ready.
#[derive(Debug)]
pub(super) enum Readiness {
    /// To the process that forked it.
    Pipe(File),
    /// To nobody but a service manager, if there is one.
    Foreground,
    /// To nobody: it has served all the time.
    Nobody,
}

impl Readiness {
    /// The mount serves.
    pub(super) fn ready(&mut self) {
        match self {
            Readiness::Pipe(pipe) => drop(pipe.write_all(READY)),
            Readiness::Foreground => {}
            Readiness::Nobody => return,
        }
        if let Err(error) = notify_service_manager() {
            log::warn!("sd_notify: {error}");
        }
    }

    /// It does not come up. Answers the error back where nobody else is told.
    pub(super) fn failed(self, error: StartError) -> Result<(), StartError> {
        match self {
            Readiness::Pipe(mut pipe) => {
                drop(pipe.write_all(error.to_string().as_bytes()));
                Ok(())
            }
            Readiness::Foreground | Readiness::Nobody => Err(error),
        }
    }
}

/// Waits for what the child has to say.
pub(super) fn wait_for_child(mut pipe: File) -> Result<(), StartError> {
    let mut said = Vec::new();
    let mut part = [0; 512];
    loop {
        match pipe.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(count) => said.extend_from_slice(&part[..count]),
        }
        if said == READY {
            return Ok(());
        }
    }
    if said.is_empty() {
        return Err(StartError::new("the daemon", "died before it served; see the kernel's log"));
    }
    Err(StartError(String::from_utf8_lossy(&said).into_owned()))
}

/// The protocol of sd_notify(3): one datagram to the socket that the environment names.
fn notify_service_manager() -> std::io::Result<()> {
    let message = format!("READY=1\nMAINPID={}\n", std::process::id());
    store::notify(&message, &[]).map(drop)
}
