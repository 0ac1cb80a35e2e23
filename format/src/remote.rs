//! Where far memory is: `url=` of the type `remote`, parsed; and [its other options](RemoteOptions).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

pub(crate) mod options;

pub use options::{RemoteLayout, RemoteOptions, RemoteVolumeOptions};

/// The port of a Redis or Valkey server.
pub const REDIS_PORT: u16 = 6379;
/// The port of an NBD server.
pub const NBD_PORT: u16 = 10809;

/// The address of what holds the pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteUrl {
    /// `redis://` or `rediss://`
    Redis(RedisUrl),
    /// `nbd://` or `nbd+unix://`
    Nbd(NbdUrl),
}

/// `redis://HOST:PORT[,HOST:PORT...]`: the server, or some nodes of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// `rediss://`
    pub tls: bool,
    /// Host and port; an IPv6 address stands in brackets in the text, and without them here.
    pub nodes: Vec<(String, u16)>,
}

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdPlace {
    /// `nbd://HOST:PORT/EXPORT`
    Tcp(String, u16),
    /// `nbd+unix:///EXPORT?socket=PATH`
    Unix(String),
}

/// An export of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdUrl {
    /// Where the server listens.
    pub place: NbdPlace,
    /// The name of the export; empty for the server's default.
    pub export: String,
}

/// Why a text is no such address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlError(pub String);

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UrlError {}

/// What is allowed, for messages.
pub const ALLOWED: &str = "redis://HOST[:PORT][,HOST[:PORT]...], rediss:// with TLS, \
     nbd://HOST[:PORT]/[EXPORT], or nbd+unix:///[EXPORT]?socket=PATH, without a user name or \
     password, which stand in the file that auth= names";

impl RemoteUrl {
    /// Both are of the same kind: what one holds could have been moved to the other.
    #[must_use]
    pub fn is_like(&self, other: &RemoteUrl) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// An address as it may be shown to anybody: without the name and password that somebody has put
/// into it.
#[must_use]
pub fn without_secrets(text: &str) -> Cow<'_, str> {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            format!("{}***{}", &text[..scheme + 3], &text[at..]).into()
        }
        _ => text.into(),
    }
}

fn host_and_port(text: &str, default_port: u16) -> Result<(String, u16), UrlError> {
    let wrong = |why: &str| UrlError(format!("'{text}' {why}"));
    let (host, rest) = match text.strip_prefix('[') {
        Some(inner) => inner.split_once(']').ok_or_else(|| wrong("has no closing bracket"))?,
        None => match text.find(':') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        },
    };
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => default_port,
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(wrong("has no port from 1 to 65535 behind the colon")),
        },
        None => return Err(wrong("has something behind the bracket that is no port")),
    };
    let possible = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    if host.is_empty() || !host.chars().all(possible) {
        return Err(wrong("names no host"));
    }
    Ok((host.to_owned(), port))
}

impl FromStr for RemoteUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<RemoteUrl, UrlError> {
        let wrong = |why: &str| {
            UrlError(format!("'{}' {why}: allowed are {ALLOWED}", without_secrets(text)))
        };
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(wrong("has a blank or control character in it"));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("is no address"))?;
        if rest.contains('@') {
            return Err(wrong("has a user name or password in it"));
        }
        match scheme {
            "redis" | "rediss" => {
                let rest = rest.strip_suffix('/').unwrap_or(rest);
                if rest.contains('/') || rest.contains('?') {
                    return Err(wrong("names a database, which is not supported"));
                }
                let nodes = rest.split(',').map(|node| host_and_port(node, REDIS_PORT));
                let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
                Ok(RemoteUrl::Redis(RedisUrl { tls: scheme == "rediss", nodes }))
            }
            "nbd" => {
                let (place, export) = rest.split_once('/').unwrap_or((rest, ""));
                if export.contains(['?', ',']) {
                    return Err(wrong("has a comma or question mark in it"));
                }
                let (host, port) = host_and_port(place, NBD_PORT)?;
                let export = export.to_owned();
                Ok(RemoteUrl::Nbd(NbdUrl { place: NbdPlace::Tcp(host, port), export }))
            }
            "nbd+unix" => {
                let rest = rest.strip_prefix('/').ok_or_else(|| wrong("names a host"))?;
                let (export, path) =
                    rest.split_once("?socket=").ok_or_else(|| wrong("names no socket"))?;
                if !path.starts_with('/') || path.contains([',', '&']) || export.contains(',') {
                    return Err(wrong("names no socket by an absolute path without commas"));
                }
                let (place, export) = (NbdPlace::Unix(path.to_owned()), export.to_owned());
                Ok(RemoteUrl::Nbd(NbdUrl { place, export }))
            }
            _ => Err(wrong("is of no kind that is known")),
        }
    }
}

fn write_host(f: &mut fmt::Formatter<'_>, host: &str, port: u16) -> fmt::Result {
    match host.contains(':') {
        true => write!(f, "[{host}]:{port}"),
        false => write!(f, "{host}:{port}"),
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteUrl::Redis(url) => {
                f.write_str(if url.tls { "rediss://" } else { "redis://" })?;
                for (index, (host, port)) in url.nodes.iter().enumerate() {
                    f.write_str(if index > 0 { "," } else { "" })?;
                    write_host(f, host, *port)?;
                }
                Ok(())
            }
            RemoteUrl::Nbd(NbdUrl { place: NbdPlace::Tcp(host, port), export }) => {
                f.write_str("nbd://")?;
                write_host(f, host, *port)?;
                write!(f, "/{export}")
            }
            RemoteUrl::Nbd(NbdUrl { place: NbdPlace::Unix(path), export }) => {
                write!(f, "nbd+unix:///{export}?socket={path}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were() {
        for text in [
            "redis://a:6379",
            "rediss://a.example:1,10.0.0.1:2,[fe80::1]:3",
            "nbd://host:10809/",
            "nbd://[::1]:5/name/of/export",
            "nbd+unix:///?socket=/run/nbd.sock",
            "nbd+unix:///one?socket=/run/nbd=1.sock",
        ] {
            assert_eq!(text.parse::<RemoteUrl>().unwrap().to_string(), text);
        }
        let short = "redis://a,b/".parse::<RemoteUrl>().unwrap();
        assert_eq!(short.to_string(), "redis://a:6379,b:6379");
        assert_eq!("nbd://h".parse::<RemoteUrl>().unwrap().to_string(), "nbd://h:10809/");
    }

    #[test]
    fn secrets_are_not_shown() {
        for (text, shown) in [
            ("redis://u:p@h:1", "redis://***@h:1"),
            ("redis://u:p@q/x y@h", "redis://***@h"),
            ("redis://h", "redis://h"),
            ("x@redis://h", "x@redis://h"),
            ("nbd+unix:///?socket=/a@b", "nbd+unix://***@b"),
        ] {
            assert_eq!(without_secrets(text), shown);
        }
        let refused = "redis://u:secret@h".parse::<RemoteUrl>().unwrap_err().to_string();
        assert!(!refused.contains("secret"), "{refused}");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "redis",
            "redis://",
            "redis://a:0",
            "redis://a:x",
            "redis://u:p@a",
            "redis://a/3",
            "redis://a,,b",
            "http://a",
            "nbd:///x",
            "nbd+unix://host/x?socket=/s",
            "nbd+unix:///x",
            "nbd+unix:///x?socket=s",
            "nbd+unix:///x?socket=/s&tls=1",
            "redis://[::1",
            "redis://[::1]x",
            "nbd://a b/",
        ] {
            assert!(text.parse::<RemoteUrl>().is_err(), "{text}");
        }
    }
}
