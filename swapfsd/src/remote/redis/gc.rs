//! What volumes have on a server, and removing it: for `swapfs remote gc`, and for a volume that is
//! closed.

use super::failure::{self, Failure};
use super::link::{Link, Maker, accepted};
use super::mark::{self, FRESH, Mark, TTL_MS};
use super::node::{Node, OBJECT_BYTES};
use super::reply::Reply;
use super::settings::ServerSettings;
use super::work::{Names, push_command, volume_prefix};
use redis::Value;
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// About how many keys a server looks at in one step.
const STEP_KEYS: &str = "1000";

/// Objects of one run of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteRun {
    /// The run's number.
    pub run: u64,
    /// How many objects. While a server moves keys in its memory, some may be counted twice.
    pub keys: u64,
    /// Bytes of their values.
    pub bytes: u64,
}

/// What a volume has on the servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteVolume {
    /// The volume.
    pub volume: Uuid,
    /// Its runs, by number.
    pub runs: Vec<RemoteRun>,
    /// Who uses it, if anybody says so.
    pub mark: Option<Mark>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Object { run: u64, number: u64 },
    Mark,
}

/// What a key of ours is; `None`: it is not ours.
fn read_key(key: &[u8]) -> Option<(Uuid, Kind)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix("swapfs:")?;
    let (volume, rest) = rest.split_once(':')?;
    let volume = Uuid::try_parse(volume).ok()?;
    if rest == "mark" {
        return Some((volume, Kind::Mark));
    }
    let mut parts = rest.split(':');
    let (run, slot, number) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    if parts.next().is_some() || run.len() != 16 {
        return None;
    }
    hex(slot)?;
    Some((volume, Kind::Object { run: hex(run)?, number: hex(number)? }))
}

/// What is done with some keys of a node.
type WithKeys<'a> = dyn FnMut(&mut Node, Vec<Vec<u8>>) -> Result<(), Failure> + 'a;

/// Goes over all keys of a node that match, some at a time.
fn scan(
    node: &mut Node,
    pattern: &str,
    deadline: Duration,
    each: &mut WithKeys<'_>,
) -> Result<(), Failure> {
    let odd = || Failure::odd("an odd answer to SCAN");
    let mut cursor = b"0".to_vec();
    loop {
        let mut command = redis::cmd("SCAN");
        command.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(STEP_KEYS);
        let answer = accepted(node.command(&command, Instant::now() + deadline)?)?;
        let Value::Array(fields) = answer else { return Err(odd()) };
        let Ok([Value::BulkString(next), Value::Array(keys)]) = <[Value; 2]>::try_from(fields)
        else {
            return Err(odd());
        };
        let keys = keys.into_iter().map(|key| match key {
            Value::BulkString(key) => Ok(key),
            _ => Err(odd()),
        });
        each(node, keys.collect::<Result<_, _>>()?)?;
        if next == b"0" {
            return Ok(());
        }
        cursor = next;
    }
}

/// One command for each key, all at once; sums up the numbers that are answered.
fn sum(node: &mut Node, name: &[u8], keys: &[Vec<u8>], until: Instant) -> Result<u64, Failure> {
    let mut total = 0u64;
    for keys in keys.chunks(1000) {
        let mut out = Vec::new();
        for key in keys {
            push_command(&mut out, &[name, key]);
        }
        node.send(&out, until)?;
        let mut refused = None;
        for _ in keys {
            node.receive(until, OBJECT_BYTES, |reply| match reply {
                Reply::Integer(number) => {
                    total = total.saturating_add(u64::try_from(*number).unwrap_or(0));
                    Ok(())
                }
                Reply::Error(text) => {
                    refused = Some(failure::answered(text));
                    Ok(())
                }
                _ => Err(Failure::odd("a reply that the command can't have")),
            })?;
        }
        if let Some(failure) = refused {
            return Err(failure);
        }
    }
    Ok(total)
}

/// Removes all objects of a volume for whose run and number `wanted` says so; looks at those of one
/// `run` only, if it is given. Answers how many.
pub(super) fn sweep(
    link: &mut Link,
    volume: Uuid,
    deadline: Duration,
    wanted: &dyn Fn(u64, u64) -> bool,
    run: Option<u64>,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, Failure> {
    let mut removed = 0;
    let pattern = match run {
        Some(run) => format!("{}{run:016x}:*", volume_prefix(volume)),
        None => format!("{}*", volume_prefix(volume)),
    };
    link.masters(&mut |node| {
        scan(node, &pattern, deadline, &mut |node, mut keys| {
            keys.retain(|key| match read_key(key) {
                Some((of, Kind::Object { run, number })) => of == volume && wanted(run, number),
                _ => false,
            });
            removed += sum(node, b"UNLINK", &keys, Instant::now() + deadline)?;
            progress(removed);
            Ok(())
        })
    })?;
    Ok(removed)
}

fn link(settings: &ServerSettings) -> Result<Link, String> {
    Maker::new(settings)?.make().map_err(|failure| failure.text)
}

/// What all volumes have on the servers. May take long; each step keeps to the settings' deadline.
///
/// # Errors
/// Why not, for a message.
pub fn list(settings: &ServerSettings) -> Result<Vec<RemoteVolume>, String> {
    let mut link = link(settings)?;
    let mut runs: BTreeMap<(Uuid, u64), (u64, u64)> = BTreeMap::new();
    let mut volumes: HashSet<Uuid> = HashSet::new();
    let deadline = settings.deadline;
    link.masters(&mut |node| {
        scan(node, "swapfs:*", deadline, &mut |node, keys| {
            let mut of_run: BTreeMap<(Uuid, u64), Vec<Vec<u8>>> = BTreeMap::new();
            for key in keys {
                let Some((volume, kind)) = read_key(&key) else { continue };
                volumes.insert(volume);
                if let Kind::Object { run, .. } = kind {
                    of_run.entry((volume, run)).or_default().push(key);
                }
            }
            for (run, keys) in of_run {
                let bytes = sum(node, b"STRLEN", &keys, Instant::now() + deadline)?;
                let entry = runs.entry(run).or_default();
                *entry = (entry.0 + keys.len() as u64, entry.1 + bytes);
            }
            Ok(())
        })
    })
    .map_err(|failure| failure.text)?;
    let mut list = Vec::new();
    for volume in volumes {
        let found = mark_of(&mut link, &Names::new(volume, 0), Instant::now() + deadline);
        let mark = found.map_err(|failure| failure.text)?;
        let own = runs.iter().filter(|((of, _), _)| *of == volume);
        let own = own.map(|((_, run), (keys, bytes))| RemoteRun {
            run: *run,
            keys: *keys,
            bytes: *bytes,
        });
        list.push(RemoteVolume { volume, runs: own.collect(), mark });
    }
    list.sort_by_key(|volume| volume.volume);
    Ok(list)
}

/// The mark of a volume, if there is one that says how fresh it is.
pub(super) fn mark_of(
    link: &mut Link,
    names: &Names,
    until: Instant,
) -> Result<Option<Mark>, Failure> {
    let mut ask = |command: &str| {
        let mut command = redis::cmd(command);
        command.arg(names.mark());
        link.command(&command, until).and_then(accepted)
    };
    let Value::BulkString(text) = ask("GET")? else { return Ok(None) };
    let Ok(mut mark) = serde_json::from_slice::<Mark>(&text) else { return Ok(None) };
    let Value::Int(left_ms) = ask("PTTL")? else {
        return Err(Failure::odd("an odd answer to PTTL"));
    };
    if left_ms < 0 {
        // It is gone by now, or without a time to live: then it says nothing.
        return Ok(None);
    }
    let age = Duration::from_millis(TTL_MS.saturating_sub(left_ms).max(0).unsigned_abs());
    mark.seen = mark::now_seconds().saturating_sub(age.as_secs());
    mark.age = age;
    Ok(Some(mark))
}

/// The mark of a volume now, if there is one that says how fresh it is.
///
/// # Errors
/// Why not, for a message.
pub fn mark(settings: &ServerSettings, volume: Uuid) -> Result<Option<Mark>, String> {
    let mut link = link(settings)?;
    mark_of(&mut link, &Names::new(volume, 0), Instant::now() + settings.deadline)
        .map_err(|failure| failure.text)
}

/// Removes what these runs of a volume have on the servers, and then its mark, unless that is fresh.
/// Tells from time to time how many objects are gone, and answers how many were. Each step keeps to
/// the settings' deadline.
///
/// # Errors
/// Why not, for a message; some may be gone.
pub fn remove(
    settings: &ServerSettings,
    volume: Uuid,
    runs: &[u64],
    progress: &mut dyn FnMut(u64),
) -> Result<u64, String> {
    let mut link = link(settings)?;
    let names = Names::new(volume, 0);
    let wanted = |run, _| runs.contains(&run);
    let mut all = || {
        let removed = sweep(&mut link, volume, settings.deadline, &wanted, None, progress)?;
        let mark = mark_of(&mut link, &names, Instant::now() + settings.deadline)?;
        if mark.is_none_or(|mark| mark.age >= FRESH) {
            remove_mark(&mut link, &names, settings.deadline)?;
        }
        Ok(removed)
    };
    all().map_err(|failure: Failure| failure.text)
}

/// Removes the mark that a volume is in use.
pub(super) fn remove_mark(
    link: &mut Link,
    names: &Names,
    deadline: Duration,
) -> Result<(), Failure> {
    let mut command = redis::cmd("UNLINK");
    command.arg(names.mark());
    link.command(&command, Instant::now() + deadline).and_then(accepted).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_ours_and_of_others() {
        let volume = Uuid::from_u128(5);
        let text = |rest: &str| format!("swapfs:{volume}:{rest}");
        let object = Some((volume, Kind::Object { run: 0xff, number: 0xa }));
        assert_eq!(read_key(text("00000000000000ff:1f:a").as_bytes()), object);
        assert_eq!(read_key(text("mark").as_bytes()), Some((volume, Kind::Mark)));
        for other in ["ff:1:0", "00000000000000ff:1", "00000000000000ff:1:2:3", "marks", ""] {
            assert_eq!(read_key(text(other).as_bytes()), None, "{other}");
        }
        assert_eq!(read_key(b"swapfs:x:mark"), None);
        assert_eq!(read_key(b"\xff"), None);
    }
}
