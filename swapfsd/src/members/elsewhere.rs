//! Members on servers elsewhere: from what a stub image says to what holds the pages.
//!
//! A stub is an image without a data section, which the supervisor holds and locks as any other
//! member's. Pages are objects on a Redis server under keys of the volume's, or lie on the export of
//! an NBD server, which has a superblock of its own: it says that the export belongs to this stub.

use crate::backend::device::BlockDevice;
use crate::backend::tier::{Backing, Layout, MemberDevice, MemberSetup, Opens};
use crate::remote::ObjectStore;
use crate::remote::nbd::{NbdDevice, NbdSettings};
use crate::remote::redis::{Credentials, RedisSettings, RedisStore, ServerSettings};
use crate::sync::Mutex;
use crate::sys::memory::Mapping;
use crate::sys::network_heap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use swapfs_format::PAGE_LEN;
use swapfs_format::member::{MemberKind, MemberOptions};
use swapfs_format::remote::{NbdUrl, RedisUrl, RemoteLayout, RemoteOptions, RemoteUrl};
use swapfs_format::superblock::{PRIMARY_OFFSET_BYTES, Superblock};
use uuid::Uuid;

/// Connections to a Redis server where the options leave it to us (tests/bench/RESULTS.md).
const REDIS_CONNECTIONS: usize = 8;

/// What a stub stands for.
#[derive(Debug)]
pub struct Elsewhere<'a> {
    /// What it says of the server.
    pub options: &'a RemoteOptions,
    /// UUID of the volume whose pages these are.
    pub volume: Uuid,
    /// UUID of the stub.
    pub stub: Uuid,
}

/// The stubs for whose servers there is memory.
static WITH_MEMORY: Mutex<Vec<Uuid>> = Mutex::new(Vec::new());

/// Takes memory for the way to a stub's server: once, since a server that is not there is looked for
/// again and again, and memory that was taken stays.
fn take_memory(stub: Uuid, bytes: usize) -> io::Result<()> {
    let mut stubs = WITH_MEMORY.lock();
    if !stubs.contains(&stub) {
        network_heap::start(bytes).map_err(|error| {
            io::Error::new(error.kind(), format!("memory for the way there: {error}"))
        })?;
        stubs.push(stub);
    }
    Ok(())
}

/// A Redis server, until it is known for which run of the volume.
#[derive(Debug)]
struct Redis {
    /// Without credentials.
    settings: RedisSettings,
    /// The file of the credentials, which is read when the server is to be used.
    auth: Option<PathBuf>,
    /// UUID of the stub.
    stub: Uuid,
}

impl Redis {
    /// The settings for a run, with credentials.
    ///
    /// # Errors
    /// Why the file of the credentials can't be used.
    fn settings(&self, run: u64) -> Result<RedisSettings, String> {
        let mut settings = RedisSettings { run, ..self.settings.clone() };
        if let Some(path) = &self.auth {
            settings.server.credentials = Credentials::load(path)?;
        }
        Ok(settings)
    }
}

impl Opens for Redis {
    fn open(&self, run: u64) -> io::Result<Arc<dyn ObjectStore>> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
        let settings = self.settings(run).map_err(invalid)?;
        take_memory(self.stub, settings.heap_bytes())?;
        Ok(Arc::new(RedisStore::new(settings)?))
    }
}

/// What the thread that makes connections allocates meanwhile.
const NBD_HEAP_BYTES: usize = 2 << 20;

/// Any export is right where there is no `stub` that it must have been formatted for.
fn nbd_settings(url: &NbdUrl, options: &RemoteOptions, stub: Option<Uuid>) -> NbdSettings {
    NbdSettings {
        place: url.place.clone(),
        export: url.export.clone(),
        connections: options.connections.map(|count| count as usize),
        deadline: options.deadline,
        stub,
    }
}

/// Reads the superblock that an export has.
///
/// # Errors
/// The errno; `EINVAL` if there is none, or it belongs to another stub than `stub`.
pub fn superblock_of(device: &dyn BlockDevice, stub: Uuid) -> Result<Superblock, i32> {
    let mut page = Mapping::new(PAGE_LEN, true).map_err(|_| libc::ENOMEM)?;
    // SAFETY: populated private memory, all of it, which nobody else has.
    let bytes = unsafe { std::slice::from_raw_parts_mut(page.as_ptr(), page.len()) };
    device.read_at(bytes, PRIMARY_OFFSET_BYTES)?;
    let superblock = Superblock::decode(bytes).map_err(|_| libc::EINVAL)?;
    let _keep = &mut page;
    match superblock.volume_uuid == stub {
        true => Ok(superblock),
        false => Err(libc::EINVAL),
    }
}

impl Elsewhere<'_> {
    /// What holds the pages; the server need not be there yet, nor files with credentials: for a
    /// successor of a process that has served them.
    ///
    /// # Errors
    /// In words, what is wrong with the options, or with this machine.
    pub fn later(&self) -> Result<MemberDevice, String> {
        let url = &self.options.url;
        let fail = |error: io::Error| format!("{url}: {error}");
        match url {
            RemoteUrl::Redis(redis) => {
                Ok(self.device(Backing::Unopened(Arc::new(self.redis(redis))), false))
            }
            RemoteUrl::Nbd(nbd) => {
                take_memory(self.stub, NBD_HEAP_BYTES).map_err(fail)?;
                let device = NbdDevice::later(nbd_settings(nbd, self.options, Some(self.stub)), 0);
                let device = device.map_err(fail)?;
                Ok(self.device(Backing::Blocks(Arc::new(device)), true))
            }
        }
    }

    fn device(&self, backing: Backing, discards: bool) -> MemberDevice {
        MemberDevice { backing, on_block_device: discards, deadline: Some(self.options.deadline) }
    }

    /// Reads no file.
    fn redis(&self, url: &RedisUrl) -> Redis {
        let options = self.options;
        let settings = RedisSettings {
            server: ServerSettings {
                nodes: url.nodes.clone(),
                tls: url.tls,
                cluster: options.cluster,
                deadline: options.deadline,
                credentials: Credentials::default(),
            },
            volume: self.volume,
            run: 0,
            connections: options.connections.map_or(REDIS_CONNECTIONS, |count| count as usize),
            replicas: options.replicas,
        };
        let auth = options.auth.as_ref().map(PathBuf::from);
        Redis { settings, auth, stub: self.stub }
    }

    /// What holds the pages, and what it is: for a new mount. `order`, `uuid`, `path` and `member`
    /// are the member's; `auto_bytes` is its size where the options leave it open.
    ///
    /// # Errors
    /// In words, why it can't be used: the server does not answer, or the export is another one's.
    pub fn look(
        &self,
        order: u32,
        path: &Path,
        member: MemberOptions,
        auto_bytes: u64,
    ) -> Result<(MemberDevice, MemberSetup), String> {
        let url = &self.options.url;
        let mut setup = MemberSetup {
            order,
            uuid: self.stub,
            kind: MemberKind::Remote,
            layout: match self.options.layout {
                RemoteLayout::Objects => Layout::Objects,
                RemoteLayout::Log => Layout::Log,
                RemoteLayout::Linear => Layout::Linear,
            },
            is_remote: true,
            data_offset_bytes: 0,
            data_bytes: self.options.capacity_bytes.unwrap_or(auto_bytes),
            segment_bytes: 0,
            path: path.display().to_string(),
            options: member,
        };
        let nbd = match url {
            RemoteUrl::Nbd(nbd) => nbd,
            RemoteUrl::Redis(redis) => {
                let redis = self.redis(redis);
                // They are read again when it is opened: what is wrong is to be known at once.
                let server = redis.settings(0)?.server;
                server.check().map_err(|why| format!("{url}: {why}"))?;
                return Ok((self.device(Backing::Unopened(Arc::new(redis)), false), setup));
            }
        };
        let fail = |error: io::Error| format!("{url}: {error}");
        take_memory(self.stub, NBD_HEAP_BYTES).map_err(fail)?;
        // First whatever is there, to say what is wrong with it. A server may allow one connection.
        let settings = nbd_settings(nbd, self.options, None);
        let device =
            NbdDevice::new(NbdSettings { connections: Some(1), ..settings }).map_err(fail)?;
        if device.is_read_only() {
            return Err(format!("{url}: the export is read-only: see the server's options"));
        }
        let superblock = superblock_of(&device, self.stub).map_err(|errno| match errno {
            libc::EINVAL => format!(
                "{url}: the export was not formatted for this image: give the right url=, or format \
                 both again with mkswapfs"
            ),
            errno => fail(io::Error::from_raw_os_error(errno)),
        })?;
        let end = superblock.data_offset_bytes + superblock.data_bytes;
        if device.size_bytes() < end {
            return Err(format!(
                "{url}: the export has {} bytes, its superblock says {end}: it was cut off: format \
                 it again",
                device.size_bytes()
            ));
        }
        let is_as_said = match setup.layout {
            Layout::Log => superblock.type_name == "log",
            _ => superblock.type_name == "linear",
        };
        if !is_as_said {
            let found = &superblock.type_name;
            return Err(format!("{url}: the export was formatted as '{found}': see layout="));
        }
        setup.data_offset_bytes = superblock.data_offset_bytes;
        setup.data_bytes = superblock.data_bytes;
        setup.segment_bytes = u64::from(superblock.erase_block_bytes);
        drop(device);
        let settings = nbd_settings(nbd, self.options, Some(self.stub));
        let device = NbdDevice::new(settings).map_err(fail)?;
        let discards = device.can_trim();
        Ok((self.device(Backing::Blocks(Arc::new(device)), discards), setup))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_read_when_the_server_is_to_be_used() {
        let directory = tempfile::tempdir().unwrap();
        let auth = directory.path().join("auth");
        let text = format!("url=redis://127.0.0.1:1,capacity=64M,auth={}", auth.display());
        let options = MemberOptions::parse(MemberKind::Remote, &text).unwrap();
        let remote = options.remote.clone().unwrap();
        let (volume, stub) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let elsewhere = Elsewhere { options: &remote, volume, stub };
        // A successor opens it later; a new mount is told at once.
        let device = elsewhere.later().unwrap();
        let Backing::Unopened(opens) = device.backing else { panic!("opened") };
        let look = || elsewhere.look(1, Path::new("/i"), options.clone(), 0).map(drop);
        let error = look().unwrap_err();
        assert!(error.contains(auth.to_str().unwrap()), "{error}");
        let error = opens.open(5).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains(auth.to_str().unwrap()), "{error}");
        fs::write(&auth, "password = xyzzy\n").unwrap();
        fs::set_permissions(&auth, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(look().unwrap_err().contains("chmod 600"));
        fs::set_permissions(&auth, fs::Permissions::from_mode(0o600)).unwrap();
        look().unwrap();
        // Nothing is asked, so nobody need be there.
        drop(opens.open(5).unwrap());
        assert!(!format!("{opens:?}").contains("xyzzy"));
    }
}
