//! Tier volumes for tests: formatted with tiny members, opened without a daemon, administered.

use crate::mounted::Programs;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use swapfs_format::superblock::Superblock;
use swapfsd::admin::{Administration, Direction, Reply, Request, socket_path};
use swapfsd::backend::registry;
use swapfsd::buffer::BufferPool;
use swapfsd::held::Held;
use swapfsd::image::{Access, Image};
use swapfsd::members::{MAX_DEVICE_MEMBERS, Members, NoKeeper};
use swapfsd::volume::Volume;
use uuid::Uuid;

/// Options of the top in tests: next to nothing of it is used, so that all moves, and there is
/// room when a tier is emptied upwards.
pub const TINY_TOP: &str = "limit=4M,reserve=1M,high=10,low=5,probe=1";

/// A tier volume's images in a folder.
#[derive(Debug, Clone)]
pub struct Formatted {
    /// The volume's own.
    pub image: PathBuf,
    /// Those of its members, hottest first.
    pub members: Vec<PathBuf>,
}

/// Formats a volume of `size` in `folder`, with these options and members: each a kind, a size and
/// options.
///
/// # Panics
/// If that fails.
#[must_use]
pub fn format(
    programs: &Programs,
    folder: &Path,
    size: &str,
    options: &str,
    members: &[(&str, &str, &str)],
) -> Formatted {
    let image = folder.join("image");
    let paths: Vec<PathBuf> =
        (1..=members.len()).map(|order| folder.join(format!("member{order}"))).collect();
    let mut arguments: Vec<String> = ["-t", "tier", "-s", size].map(str::to_owned).to_vec();
    arguments.extend(["--member".to_owned(), format!("zmem,{options}")]);
    for ((kind, size, options), path) in members.iter().zip(&paths) {
        let options = if options.is_empty() { String::new() } else { format!(",{options}") };
        arguments.push("--member".to_owned());
        arguments.push(format!("{kind}:{},size={size}{options}", path.display()));
    }
    arguments.push(image.display().to_string());
    programs.succeed("mkswapfs", &arguments);
    Formatted { image, members: paths }
}

impl Formatted {
    /// The volume's superblock.
    ///
    /// # Panics
    /// If it can't be read.
    #[must_use]
    pub fn superblock(&self) -> Superblock {
        let image = Image::open(&self.image, Access::ReadOnly).unwrap();
        image.load().unwrap()
    }

    /// Opens it without a daemon, with these options on top of its own.
    ///
    /// # Panics
    /// If it can't be opened.
    #[must_use]
    pub fn open_volume(&self, options: &str) -> Arc<Volume> {
        let image = Image::open_exclusive(&self.image, Access::ReadWrite).unwrap();
        let superblock = image.load().unwrap();
        let spec = superblock.type_spec().unwrap();
        let (typed, _) = spec.mount_options(&superblock.options, options).unwrap();
        let resources = registry::resources(&typed);
        let buffers = BufferPool::new(resources.small_buffers, resources.large_buffers).unwrap();
        let (members, held) = (self.open_members(), Held::private());
        let backend =
            registry::build(&image, &superblock, &typed, &buffers, &held, &members).unwrap();
        let volume = Volume::standby(backend, buffers, superblock.slot_count);
        volume.activate(Some(&superblock.swap_header())).unwrap();
        volume
    }

    /// Its members' images, opened here as a supervisor would keep them, but without their locks:
    /// so that processes that serve one after the other can have them.
    ///
    /// # Panics
    /// If one can't be opened.
    #[must_use]
    pub fn open_members(&self) -> Members {
        open_members(&self.members)
    }
}

/// The images at these paths, in the places of members, without locks.
///
/// # Panics
/// If one can't be opened.
#[must_use]
pub fn open_members(paths: &[PathBuf]) -> Members {
    let mut files: [Option<File>; MAX_DEVICE_MEMBERS] = Default::default();
    for (file, path) in files.iter_mut().zip(paths) {
        *file = Some(File::options().read(true).write(true).open(path).unwrap());
    }
    Members { files, keeper: Arc::new(NoKeeper) }
}

/// Who can be asked to change a volume.
pub trait Desk {
    /// Asks, and waits for the last answer.
    ///
    /// # Errors
    /// What the volume says, or that nobody answers any more.
    fn ask(&self, request: &Request) -> Result<Reply, String>;

    /// The orders of the members, and the one that is being emptied.
    ///
    /// # Errors
    /// As for [`Desk::ask`].
    fn orders(&self) -> Result<(Vec<u32>, Option<u32>), String>;
}

/// The control socket of a mounted volume.
#[derive(Debug, Clone, Copy)]
pub struct Socket(pub Uuid);

impl Desk for Socket {
    fn ask(&self, request: &Request) -> Result<Reply, String> {
        let text = |error: std::io::Error| format!("control socket: {error}");
        let mut stream = UnixStream::connect(socket_path(self.0)).map_err(text)?;
        stream.write_all(request.to_line().as_bytes()).map_err(text)?;
        for line in BufReader::new(stream).split(b'\n') {
            match Reply::from_line(&line.map_err(text)?)? {
                Reply::Progress(_) => {}
                Reply::Error { message } => return Err(message),
                done @ Reply::Done(_) => return Ok(done),
            }
        }
        Err("control socket: closed without an answer".to_owned())
    }

    fn orders(&self) -> Result<(Vec<u32>, Option<u32>), String> {
        let Reply::Done(done) = self.ask(&Request::Tiers)? else { return Err("no tiers".into()) };
        let number = |value: &serde_json::Value| value.as_u64().map(|number| number as u32);
        let tiers = done.tiers.unwrap_or_default();
        let orders = tiers.iter().filter_map(|tier| number(&tier["order"]));
        let emptied = done.evacuation.and_then(|evacuation| number(&evacuation["tier"]));
        Ok((orders.filter(|order| *order > 0).collect(), emptied))
    }
}

/// A volume in this process.
pub struct Here<'a>(pub &'a Volume);

impl Desk for Here<'_> {
    fn ask(&self, request: &Request) -> Result<Reply, String> {
        let administration: &dyn Administration =
            self.0.administration().ok_or("no administration")?;
        administration.handle(request, &mut |_| true)
    }

    fn orders(&self) -> Result<(Vec<u32>, Option<u32>), String> {
        let mut orders = Vec::new();
        self.0.tiers(&mut |tier| {
            if tier.order > 0 {
                orders.push(tier.order);
            }
        });
        Ok((orders, self.0.evacuation().map(|evacuation| evacuation.tier)))
    }
}

/// Tells [`come_and_go`] to stop when it is dropped, also by a test that fails.
#[derive(Debug)]
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Empties one member after the other and adds it again, until it is told to stop. What has been
/// begun is ended, whoever has begun it. Answers how many were emptied and how many added.
/// `patient`: nobody to talk to, and refusals, are not the end, since somebody may have been killed.
///
/// # Panics
/// If a request is refused for no good reason.
pub fn come_and_go(
    desk: &dyn Desk,
    members: &[PathBuf],
    stop: &AtomicBool,
    patient: bool,
) -> (u32, u32) {
    let (mut removed, mut added) = (0, 0);
    let mut next = 0;
    let directions = [Direction::Auto, Direction::Down, Direction::Up];
    while !stop.load(Ordering::Relaxed) || is_one_missing(desk, members) {
        let outcome = desk.orders().and_then(|(orders, emptied)| {
            if emptied.is_some() {
                return desk.ask(&Request::Watch).map(|_| false);
            }
            let missing = (1..=members.len() as u32).find(|order| !orders.contains(order));
            let request = match missing {
                Some(order) => Request::Add { image: members[order as usize - 1].clone() },
                None if stop.load(Ordering::Relaxed) => return Ok(false),
                None => {
                    next += 1;
                    Request::Remove {
                        tier: 1 + next % members.len() as u32,
                        direction: directions[next as usize / members.len() % 3],
                        rate_bytes: None,
                    }
                }
            };
            desk.ask(&request).map(|_| missing.is_some())
        });
        match outcome {
            Ok(true) => added += 1,
            Ok(false) => removed += 1,
            Err(why) => {
                // The top may be full just now, or be emptied.
                let usual = ["have room for", "no tier is being emptied", "is being emptied"];
                let expected = usual.iter().any(|usual| why.contains(usual));
                assert!(expected || patient, "{why}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    (removed, added)
}

fn is_one_missing(desk: &dyn Desk, members: &[PathBuf]) -> bool {
    desk.orders()
        .map_or(true, |(orders, emptied)| emptied.is_some() || orders.len() < members.len())
}
