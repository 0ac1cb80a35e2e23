//! Where the servers are, how we show who we are, and how they are to be used.

use super::convoy;
use super::link::Maker;
use crate::sys::process::effective_user;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// The longest file of credentials that is read, in bytes.
const CREDENTIALS_BYTES: u64 = 64 << 10;

/// What the file that `auth=` names says. All of it may be missing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The user of `AUTH`; without it, the server's default user.
    pub username: Option<String>,
    /// The password of `AUTH`.
    pub password: Option<String>,
    /// Certificates that are trusted, PEM; without it, those of the system.
    pub ca: Option<PathBuf>,
    /// Our own certificate, PEM.
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "...");
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &password)
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .finish()
    }
}

/// Refuses a file that others than its owner can read, or that another user owns.
fn must_be_private(path: &Path, file: &File) -> Result<(), String> {
    let shown = path.display();
    let metadata = file.metadata().map_err(|error| format!("{shown}: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("{shown} is no file"));
    }
    if metadata.uid() != 0 && metadata.uid() != effective_user() {
        return Err(format!(
            "{shown} belongs to another user (uid {}), who could change it: chown root {shown}",
            metadata.uid()
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "{shown} holds secrets, and others than its owner can get at it (mode {:03o}): \
             chmod 600 {shown}",
            metadata.mode() & 0o777
        ));
    }
    Ok(())
}

impl Credentials {
    /// Reads a file of lines `NAME = VALUE`: `username`, `password`, `ca`, `cert`, `key`; what
    /// follows a `#` at the start of a line is a comment. An empty path: no credentials.
    ///
    /// # Errors
    /// Why it can't be used, and what to do; never with what a secret says.
    pub fn load(path: &Path) -> Result<Credentials, String> {
        if path.as_os_str().is_empty() {
            return Ok(Credentials::default());
        }
        let shown = path.display();
        let file = File::open(path).map_err(|error| format!("{shown}: {error}"))?;
        must_be_private(path, &file)?;
        let mut text = String::new();
        let read = file.take(CREDENTIALS_BYTES + 1).read_to_string(&mut text);
        let bytes = read.map_err(|error| format!("{shown}: {error}"))?;
        if bytes as u64 > CREDENTIALS_BYTES {
            return Err(format!("{shown} is longer than {CREDENTIALS_BYTES} bytes"));
        }
        let credentials = Credentials::parse(&text).map_err(|error| format!("{shown}: {error}"))?;
        if let Some(key) = &credentials.key {
            let file = File::open(key).map_err(|error| format!("{}: {error}", key.display()))?;
            must_be_private(key, &file)?;
        }
        Ok(credentials)
    }

    fn parse(text: &str) -> Result<Credentials, String> {
        let mut credentials = Credentials::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| format!("line {}: {why}", index + 1);
            let (name, value) =
                line.split_once('=').ok_or_else(|| wrong("must be NAME = VALUE"))?;
            let (name, value) = (name.trim(), value.trim());
            if value.is_empty() {
                return Err(wrong("there is nothing behind the '='"));
            }
            let path = || match value.starts_with('/') {
                true => Ok(Some(PathBuf::from(value))),
                false => Err(wrong("must be an absolute path")),
            };
            let (set, known) = match name {
                "username" => (credentials.username.replace(value.to_owned()).is_some(), true),
                "password" => (credentials.password.replace(value.to_owned()).is_some(), true),
                "ca" => (std::mem::replace(&mut credentials.ca, path()?).is_some(), true),
                "cert" => (std::mem::replace(&mut credentials.cert, path()?).is_some(), true),
                "key" => (std::mem::replace(&mut credentials.key, path()?).is_some(), true),
                _ => (false, false),
            };
            if !known {
                return Err(wrong("known are username, password, ca, cert and key"));
            }
            if set {
                return Err(wrong("stands there twice"));
            }
        }
        if credentials.username.is_some() && credentials.password.is_none() {
            return Err("there is a username, but no password".to_owned());
        }
        if credentials.cert.is_some() != credentials.key.is_some() {
            return Err("cert and key go together".to_owned());
        }
        Ok(credentials)
    }
}

/// The servers, and how to get in.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Host and port of the server, or of some nodes of the cluster.
    pub nodes: Vec<(String, u16)>,
    /// Whether to speak TLS.
    pub tls: bool,
    /// Whether the nodes are a cluster.
    pub cluster: bool,
    /// How we show who we are.
    pub credentials: Credentials,
    /// After that, a request, or a step of something longer, fails.
    pub deadline: Duration,
}

impl ServerSettings {
    /// Looks whether they make sense, and whether the certificates that they name can be read.
    ///
    /// # Errors
    /// Why not, for a message.
    pub fn check(&self) -> Result<(), String> {
        Maker::new(self).map(drop)
    }
}

/// How a volume uses the servers.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// The servers.
    pub server: ServerSettings,
    /// Whose objects they are.
    pub volume: Uuid,
    /// Which run of the volume put them there: a random number of this mount.
    pub run: u64,
    /// How many requests may be under way at once (in a cluster: connections to each node).
    pub connections: usize,
    /// How many replicas must have acknowledged an object before it is stored.
    pub replicas: u32,
}

impl RedisSettings {
    /// How much memory [`crate::sys::network_heap::start`] should be given for this store.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        // A request's buffer, and what is received of each node. How many nodes a cluster has is
        // not known yet: more than assumed here come from the system's memory, which is counted.
        let nodes = if self.server.cluster { (2 * self.server.nodes.len()).max(8) } else { 1 };
        let node_bytes = if self.server.tls { 384 << 10 } else { 256 << 10 };
        (4 << 20) + convoy::HEAP_BYTES + self.connections * ((1 << 20) + nodes * node_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_of_credentials() {
        let text = "# who\nusername = far \npassword=a b=c#d\n\nca = /etc/ca.pem\n";
        let credentials = Credentials::parse(text).unwrap();
        assert_eq!(credentials.username.as_deref(), Some("far"));
        assert_eq!(credentials.password.as_deref(), Some("a b=c#d"));
        assert_eq!(credentials.ca, Some(PathBuf::from("/etc/ca.pem")));
        let shown = format!("{credentials:?}");
        assert!(!shown.contains("a b=c") && shown.contains("far"), "{shown}");
        for wrong in [
            "password",
            "password =",
            "secret = x",
            "ca = ca.pem",
            "username = x",
            "cert = /c",
            "password = a\npassword = b",
        ] {
            let error = Credentials::parse(wrong).unwrap_err();
            assert!(!error.contains("= a"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth");
        fs::write(&path, "password = xyzzy\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Credentials::load(&path).unwrap_err();
        assert!(error.contains("chmod 600") && !error.contains("xyzzy"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Credentials::load(&path).unwrap().password.as_deref(), Some("xyzzy"));
        assert!(Credentials::load(Path::new("/nowhere/auth")).is_err());
        assert!(Credentials::load(directory.path()).is_err());
        assert_eq!(Credentials::load(Path::new("")).unwrap(), Credentials::default());
    }
}
