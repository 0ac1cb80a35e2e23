//! Telling whoever started the daemon that it serves, or why it does not.

use super::StartError;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;

/// What the child writes when all is well; anything else is the text of an error.
const READY: &[u8] = b"ready";

/// How the daemon tells that it is ready.
#[derive(Debug)]
pub(super) enum Readiness {
    /// To the process that forked it.
    Pipe(File),
    /// To nobody but a service manager, if there is one.
    Foreground,
}

impl Readiness {
    /// The mount serves.
    pub(super) fn ready(&mut self) {
        if let Readiness::Pipe(pipe) = self {
            drop(pipe.write_all(READY));
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
            Readiness::Foreground => Err(error),
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
    use std::os::linux::net::SocketAddrExt;
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    let message = format!("READY=1\nMAINPID={}\n", std::process::id());
    let bytes = name.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(abstract_name) => std::os::unix::net::SocketAddr::from_abstract_name(abstract_name)?,
        None => std::os::unix::net::SocketAddr::from_pathname(&name)?,
    };
    socket.send_to_addr(message.as_bytes(), &address).map(drop)
}
