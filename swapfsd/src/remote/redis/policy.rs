//! Whether a server may throw away what it was given.

use super::failure::Failure;
use super::link::Link;
use super::node::Node;
use log::{info, warn};
use redis::Value;
use std::time::Instant;

/// A parameter of a server, if it tells us.
fn parameter(node: &mut Node, name: &str, until: Instant) -> Result<Option<String>, Failure> {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg(name);
    let Value::Array(fields) = node.command(&command, until)? else { return Ok(None) };
    match fields.get(1) {
        Some(Value::BulkString(text)) => Ok(Some(String::from_utf8_lossy(text).into_owned())),
        _ => Ok(None),
    }
}

/// The same from `INFO memory`, which may be allowed where `CONFIG` is not.
fn from_info(node: &mut Node, name: &str, until: Instant) -> Result<Option<String>, Failure> {
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    let Value::BulkString(text) = node.command(&command, until)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&text);
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(found.map(|value| value.trim().to_owned()))
}

/// Whether a server with this policy and limit may throw away keys without expiry.
fn evicts(policy: &str, limit: Option<u64>) -> bool {
    policy.starts_with("allkeys-") || (policy != "noeviction" && limit.is_some_and(|it| it > 0))
}

/// Warns in the log if a server may throw pages away.
///
/// # Errors
/// If a server does not answer; not if it does not tell.
pub(super) fn warn_of_eviction(link: &mut Link, until: Instant) -> Result<(), Failure> {
    link.masters(&mut |node| {
        let name = "maxmemory-policy";
        let mut policy = parameter(node, name, until)?;
        let mut limit = parameter(node, "maxmemory", until)?;
        if policy.is_none() {
            policy = from_info(node, "maxmemory_policy", until)?;
            limit = from_info(node, "maxmemory", until)?;
        }
        match policy {
            None => info!("remote: the server does not tell whether it evicts keys"),
            Some(policy) if evicts(&policy, limit.and_then(|limit| limit.parse().ok())) => warn!(
                "remote: the server has {name} {policy}: pages may be evicted, and are lost then; \
                 set {name} noeviction"
            ),
            Some(_) => {}
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        assert!(!evicts("noeviction", Some(1)));
        assert!(evicts("allkeys-lru", Some(0)));
        assert!(evicts("volatile-ttl", Some(1)) && !evicts("volatile-ttl", Some(0)));
    }
}
