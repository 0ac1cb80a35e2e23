//! `swapfs remote gc`: which volumes have keys on a Redis server, and removing those of volumes that
//! nobody uses any more.
//!
//! A volume that is mounted marks that on the server every some seconds. What has no fresh mark was
//! left by a machine that crashed, or that could not reach the server at its unmount.

use crate::failure::Failure;
use crate::{image, volumes};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use swapfs_format::remote::{RemoteOptions, RemoteUrl, without_secrets};
use swapfs_format::size::human;
use swapfsd::remote::redis::{self, Credentials, RemoteVolume, ServerSettings};
use uuid::Uuid;

/// How long is waited before a stale mark is looked at once more: a volume that is in use makes its
/// mark fresh more often than that, once the server answers.
const SECOND_LOOK: Duration = Duration::from_secs(20);
/// How long a step may take where no image says it.
const DEADLINE: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct GcRequest {
    /// An address, `redis://...`, or the path of a stub image.
    pub place: String,
    /// The servers are a cluster; of a stub it is known.
    pub cluster: bool,
    /// The file with credentials; `None`: what the stub says, or none.
    pub auth: Option<PathBuf>,
    /// Remove the keys of volumes that are not in use.
    pub remove: bool,
    /// Of this volume only.
    pub uuid: Option<Uuid>,
    /// Also if it is in use.
    pub force: bool,
}

/// What a volume has on the servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The volume.
    pub uuid: Uuid,
    /// What each of its mounts has left.
    pub runs: Vec<Run>,
    /// Keys of all runs.
    pub keys: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// The machine that used it last, if it said so.
    pub host: Option<String>,
    /// When that machine last said so, in seconds since 1970.
    pub seen_unix_s: Option<u64>,
    /// How long ago that is, in seconds.
    pub seen_age_s: Option<u64>,
    /// It is mounted on this machine.
    pub mounted_here: bool,
    /// It is mounted here, or was seen just now.
    pub in_use: bool,
    /// Keys that were removed; `None`: it was left alone.
    pub removed_keys: Option<u64>,
}

/// What one mount has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Its number, 16 hex digits, as in the keys.
    pub run: String,
    /// How many keys.
    pub keys: u64,
    /// Bytes of their values.
    pub bytes: u64,
}

/// What was found, and done.
#[derive(Debug, Serialize)]
pub struct GcReport {
    /// The servers.
    pub url: String,
    /// Every volume that has something there.
    pub volumes: Vec<Left>,
}

impl Left {
    fn of(volume: RemoteVolume, mounted: &[Uuid]) -> Left {
        let runs = volume.runs.iter().map(|run| Run {
            run: format!("{:016x}", run.run),
            keys: run.keys,
            bytes: run.bytes,
        });
        let seen = volume.mark.as_ref().map(|mark| mark.seen);
        let age = volume.mark.as_ref().map(|mark| mark.age.as_secs());
        let mounted_here = mounted.contains(&volume.volume);
        Left {
            uuid: volume.volume,
            runs: runs.collect(),
            keys: volume.runs.iter().map(|run| run.keys).sum(),
            bytes: volume.runs.iter().map(|run| run.bytes).sum(),
            host: volume.mark.map(|mark| mark.host).filter(|host| !host.is_empty()),
            seen_unix_s: seen,
            seen_age_s: age,
            mounted_here,
            in_use: mounted_here || age.is_some_and(|age| age < redis::FRESH.as_secs()),
            removed_keys: None,
        }
    }

    /// Who uses it, or did.
    fn state(&self) -> String {
        let host = self.host.as_deref().unwrap_or("a machine");
        match (self.mounted_here, self.seen_age_s) {
            (true, _) => "mounted here".to_owned(),
            (false, Some(age)) if self.in_use => format!("in use on {host}, seen {age} s ago"),
            (false, Some(age)) => format!("stale: last seen {} ago on {host}", ago(age)),
            (false, None) => "no mark says whether it is in use".to_owned(),
        }
    }
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

impl fmt::Display for GcReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.volumes.is_empty() {
            return writeln!(f, "{}: no volume has anything there", self.url);
        }
        writeln!(f, "{}:", self.url)?;
        for volume in &self.volumes {
            write!(
                f,
                "{}  {} keys, {}, of {} {}; {}",
                volume.uuid,
                volume.keys,
                human(volume.bytes),
                volume.runs.len(),
                if volume.runs.len() == 1 { "mount" } else { "mounts" },
                volume.state()
            )?;
            match volume.removed_keys {
                Some(keys) => writeln!(f, ": removed, {keys} keys")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// Lists what volumes have on the servers, and removes what is asked for.
///
/// # Errors
/// The servers can't be asked, or a volume that is to be removed is in use, or has nothing there.
pub fn run(request: &GcRequest) -> Result<GcReport, Failure> {
    if request.force && request.uuid.is_none() {
        return Err(Failure::new(
            "--force",
            "say of which volume, with --uuid: the pages of one that is in use are lost with its \
             keys",
        ));
    }
    let (url, settings) = servers(request)?;
    let failed = |why: String| {
        let why = why.strip_prefix(&format!("{url}: ")).unwrap_or(&why).to_owned();
        Failure::new(&url, why)
    };
    let bar = spinner(format!("looking for keys on {url}"));
    let found = redis::list(&settings);
    bar.finish_and_clear();
    let mounted = mounted_here();
    let found = found.map_err(failed)?.into_iter();
    let mut volumes: Vec<Left> = found.map(|one| Left::of(one, &mounted)).collect();
    let chosen = if request.remove { chosen(&volumes, request)? } else { Vec::new() };
    if !chosen.is_empty() && !request.force {
        let bar = spinner("waiting whether somebody says to use them".to_owned());
        std::thread::sleep(SECOND_LOOK);
        bar.finish_and_clear();
    }
    if request.remove {
        for index in chosen {
            let volume = &mut volumes[index];
            let (uuid, keys) = (volume.uuid, volume.keys);
            // Of those that were listed, and only now: removing others has taken its time.
            let mark = redis::mark_of(&settings, uuid).map_err(failed)?;
            if !request.force && mark.is_some_and(|mark| mark.age < redis::FRESH) {
                volume.in_use = true;
                continue;
            }
            let runs = volume.runs.iter().map(|run| u64::from_str_radix(&run.run, 16));
            let runs = runs.filter_map(Result::ok).collect::<Vec<u64>>();
            let bar = spinner(String::new());
            let removed = redis::remove(&settings, uuid, &runs, &mut |done| {
                bar.set_message(format!("removing {uuid}: {done} of {keys} keys"));
            });
            bar.finish_and_clear();
            volume.removed_keys = Some(removed.map_err(failed)?);
        }
    }
    Ok(GcReport { url, volumes })
}

/// Which of `volumes` are to be removed.
fn chosen(volumes: &[Left], request: &GcRequest) -> Result<Vec<usize>, Failure> {
    let Some(uuid) = request.uuid else {
        // Of those without a mark nobody knows: a server that evicts may have thrown it away.
        let is_stale = |volume: &Left| !volume.in_use && volume.seen_age_s.is_some();
        return Ok((0..volumes.len()).filter(|index| is_stale(&volumes[*index])).collect());
    };
    let index = volumes.iter().position(|volume| volume.uuid == uuid);
    let index = index.ok_or_else(|| Failure::new(uuid, "has no keys there: nothing to remove"))?;
    let volume = &volumes[index];
    if (volume.in_use || volume.seen_age_s.is_none()) && !request.force {
        let why = format!(
            "{}: its pages would be lost with its keys, so they stay. If it is certain that nobody \
             uses it, say --force",
            volume.state()
        );
        return Err(Failure::new(uuid, why));
    }
    Ok(vec![index])
}

fn spinner(message: String) -> ProgressBar {
    // Hidden by itself where standard error is no terminal.
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The volumes of this machine. One whose image can't be read is known by its mark on the server.
fn mounted_here() -> Vec<Uuid> {
    let volumes = volumes::discover().unwrap_or_default();
    let images = volumes.into_iter().filter_map(|volume| volume.image);
    images.filter_map(|image| Some(image::superblock(&image).ok()?.uuid)).collect()
}

/// The servers, from an address or from what a stub says.
fn servers(request: &GcRequest) -> Result<(String, ServerSettings), Failure> {
    let place = &request.place;
    let shown = without_secrets(place);
    let wrong = |why: &dyn fmt::Display| Failure::new(&shown, why);
    let (url, cluster, auth, deadline) = match place.contains("://") {
        true => {
            let url: RemoteUrl = place.parse().map_err(|error| wrong(&error))?;
            (url, request.cluster, None, DEADLINE)
        }
        false => {
            let superblock = image::superblock(Path::new(place))?;
            let options = RemoteOptions::of_stub(&superblock).ok_or_else(|| {
                wrong(&format_args!(
                    "of type '{}', which says nothing of servers: give an image of type remote, or \
                     an address, redis://HOST",
                    superblock.type_name
                ))
            })?;
            let options = options.map_err(|error| wrong(&error))?;
            let cluster = options.cluster || request.cluster;
            (options.url, cluster, options.auth.map(PathBuf::from), options.deadline)
        }
    };
    let RemoteUrl::Redis(redis) = &url else {
        return Err(wrong(
            &"an NBD export, which keeps nothing of a volume that is not mounted: there is nothing \
              to remove",
        ));
    };
    let auth = request.auth.clone().or(auth);
    let credentials = auth.as_deref().map(Credentials::load).transpose();
    let settings = ServerSettings {
        nodes: redis.nodes.clone(),
        tls: redis.tls,
        cluster,
        credentials: credentials.map_err(|why| Failure::new("--auth", why))?.unwrap_or_default(),
        deadline,
    };
    Ok((url.to_string(), settings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use swapfsd::remote::redis::{Mark, RemoteRun};

    const NOW_S: u64 = 1_000_000;

    fn left(uuid: u128, seen: Option<u64>, mounted: &[Uuid]) -> Left {
        let mark = seen.map(|seen| Mark {
            host: "a".to_owned(),
            boot_id: String::new(),
            run: String::new(),
            pid: 1,
            started: 0,
            seen,
            age: Duration::from_secs(NOW_S.saturating_sub(seen)),
        });
        let runs = vec![RemoteRun { run: 10, keys: 2, bytes: 8192 }];
        let volume = RemoteVolume { volume: Uuid::from_u128(uuid), runs, mark };
        Left::of(volume, mounted)
    }

    fn request(uuid: Option<u128>, force: bool) -> GcRequest {
        GcRequest {
            place: "redis://a".to_owned(),
            cluster: false,
            auth: None,
            remove: true,
            uuid: uuid.map(Uuid::from_u128),
            force,
        }
    }

    #[test]
    fn what_is_in_use_is_left_alone() {
        let here = [Uuid::from_u128(1)];
        let all = [
            left(1, None, &here),
            left(2, Some(NOW_S - 59), &here),
            left(3, Some(NOW_S - 60), &here),
            left(4, None, &here),
            left(5, Some(NOW_S + 999), &here),
        ];
        assert_eq!(all.each_ref().map(|one| one.in_use), [true, true, false, false, true]);
        // Where there is no mark, nobody knows.
        assert_eq!(chosen(&all, &request(None, false)).unwrap(), [2]);
        assert_eq!(chosen(&all, &request(Some(3), false)).unwrap(), [2]);
        for (uuid, says) in
            [(1, "mounted here"), (2, "in use on a, seen 59 s ago"), (4, "no mark says")]
        {
            let error = chosen(&all, &request(Some(uuid), false)).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("--force"), "{error}");
            assert_eq!(chosen(&all, &request(Some(uuid), true)).unwrap(), [uuid as usize - 1]);
        }
        assert!(chosen(&all, &request(Some(9), true)).unwrap_err().to_string().contains("no keys"));
        assert!(run(&request(None, true)).unwrap_err().to_string().contains("--uuid"));
    }

    #[test]
    fn the_report_says_who_uses_what() {
        let mut gone = left(3, Some(NOW_S - 7200), &[]);
        gone.removed_keys = Some(2);
        let url = "redis://a:6379".to_owned();
        let report = GcReport { url: url.clone(), volumes: vec![gone, left(4, None, &[])] };
        let text = report.to_string();
        let says = "2 keys, 8 KiB, of 1 mount; stale: last seen 2 h ago on a: removed, 2 keys\n";
        assert!(text.contains(says), "{text}");
        assert!(text.ends_with("; no mark says whether it is in use\n"), "{text}");
        let none = GcReport { url, volumes: Vec::new() };
        assert_eq!(none.to_string(), "redis://a:6379: no volume has anything there\n");
    }

    #[test]
    fn only_redis_servers_keep_keys() {
        let of = |place: &str| {
            let request = GcRequest { place: place.to_owned(), ..request(None, false) };
            servers(&request).map(|(url, _)| url).map_err(|failure| failure.to_string())
        };
        assert_eq!(of("redis://a,b:1").as_deref(), Ok("redis://a:6379,b:1"));
        assert!(of("nbd://a/").unwrap_err().contains("nothing to remove"));
        assert!(of("http://a").unwrap_err().contains("is of no kind that is known"));
        assert!(of("/var/tmp/no/such").unwrap_err().contains("no such file"));
    }
}
