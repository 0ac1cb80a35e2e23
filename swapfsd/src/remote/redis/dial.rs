//! Making connections: names, addresses, certificates, passwords.

use super::failure::{self, Failure};
use super::node::Node;
use super::settings::{Credentials, ServerSettings};
use super::stream::Stream;
use crate::sync::Mutex;
use redis::Value;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest that one step of making a connection may take.
const STEP: Duration = Duration::from_secs(1);

/// What all connections of a store are made by.
pub(super) struct Dialer {
    credentials: Credentials,
    tls: Option<Arc<ClientConfig>>,
    /// A step of making a connection takes that long at most.
    pub(super) step: Duration,
    /// Addresses of names, as last answered.
    resolved: Mutex<Vec<(String, Vec<IpAddr>)>>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let read = CertificateDer::pem_file_iter(path).map_err(|error| format!("{shown}: {error}"))?;
    let read: Result<Vec<_>, _> = read.collect();
    match read {
        Ok(found) if found.is_empty() => Err(format!("{shown} has no certificate in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

fn tls_config(credentials: &Credentials) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &credentials.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("there are no certificates to trust: name a file by ca = PATH in the file of \
                    auth="
            .to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match (&credentials.cert, &credentials.key) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("{}: {error}", key.display()))?;
            builder
                .with_client_auth_cert(certificates(cert)?, private)
                .map_err(|error| format!("{}: {error}", cert.display()))?
        }
        _ => builder.with_no_client_auth(),
    };
    // Nothing is kept from one connection to the next, so that memory has a bound.
    config.resumption = Resumption::disabled();
    Ok(config)
}

impl Dialer {
    /// Reads the certificates.
    ///
    /// # Errors
    /// Which file can't be used, and why.
    pub(super) fn new(server: &ServerSettings) -> Result<Dialer, String> {
        let tls = match server.tls {
            true => Some(Arc::new(tls_config(&server.credentials)?)),
            false => None,
        };
        Ok(Dialer {
            credentials: server.credentials.clone(),
            tls,
            step: STEP.min(server.deadline / 4).max(Duration::from_millis(20)),
            resolved: Mutex::new(Vec::new()),
        })
    }

    /// The addresses of a host. `ask`: a name server may be asked, which may take any time.
    fn addresses(&self, host: &str, port: u16, ask: bool) -> Result<Vec<SocketAddr>, Failure> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let known = |resolved: &[(String, Vec<IpAddr>)]| {
            let found = resolved.iter().find(|(name, _)| name == host)?;
            Some(found.1.iter().map(|address| SocketAddr::new(*address, port)).collect::<Vec<_>>())
        };
        if let Some(addresses) = known(&self.resolved.lock()) {
            return Ok(addresses);
        }
        if !ask {
            return Err(Failure::new(libc::EHOSTUNREACH, format!("{host} is not known yet")));
        }
        let found: Vec<IpAddr> = (host, port)
            .to_socket_addrs()
            .map_err(|error| Failure::new(libc::EHOSTUNREACH, format!("{host}: {error}")))?
            .map(|address| address.ip())
            .collect();
        let mut resolved = self.resolved.lock();
        resolved.retain(|(name, _)| name != host);
        resolved.push((host.to_owned(), found));
        known(&resolved).ok_or_else(|| Failure::new(libc::EHOSTUNREACH, "no address"))
    }

    /// Forgets the addresses of a host, which may have moved.
    fn forget(&self, host: &str) {
        self.resolved.lock().retain(|(name, _)| name != host);
    }

    /// A connection that has shown who we are, and been answered.
    ///
    /// # Errors
    /// Why not, with the node's name.
    pub(super) fn open(
        &self,
        host: &str,
        port: u16,
        until: Instant,
        ask: bool,
    ) -> Result<Node, Failure> {
        let until = until.min(Instant::now() + self.step);
        self.try_open(host, port, until, ask).map_err(|failure| {
            if ask {
                self.forget(host);
            }
            Failure::new(failure.errno, format!("{host}:{port}: {}", failure.text))
        })
    }

    fn try_open(&self, host: &str, port: u16, until: Instant, ask: bool) -> Result<Node, Failure> {
        let addresses = self.addresses(host, port, ask)?;
        // Asking a name server has a time of its own.
        let until = if ask { until.max(Instant::now() + self.step) } else { until };
        let tls = match &self.tls {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|error| Failure::new(libc::EINVAL, error.to_string()))?;
                Some((Arc::clone(config), name))
            }
        };
        let mut node = Node::new(Stream::connect(&addresses, until, tls)?);
        if let Some(password) = &self.credentials.password {
            let mut auth = redis::cmd("AUTH");
            if let Some(username) = &self.credentials.username {
                auth.arg(username);
            }
            auth.arg(password);
            match node.command(&auth, until)? {
                Value::Okay => {}
                Value::ServerError(error) => {
                    let text = format!("the server refuses our password: {}", error.code());
                    return Err(Failure::new(libc::EACCES, text));
                }
                _ => return Err(Failure::odd("an odd answer to AUTH")),
            }
        }
        match node.command(&redis::cmd("PING"), until)? {
            Value::SimpleString(_) => Ok(node),
            Value::ServerError(error) => {
                let text = format!("{} {}", error.code(), error.details().unwrap_or(""));
                let failure = failure::answered(text.as_bytes());
                // Someone who may not even ping may still do what we need.
                if error.code() == "NOPERM" { Ok(node) } else { Err(failure) }
            }
            _ => Err(Failure::odd("an odd answer to PING")),
        }
    }
}
