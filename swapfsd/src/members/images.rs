//! Member images for the back end that stores pages on them: opened, looked at, and their
//! superblocks written when something is to hold for the next mount.

use super::elsewhere::{Elsewhere, superblock_of};
use super::{open_member, path_of};
use crate::backend::device::DirectFile;
use crate::backend::tier::{Backing, Images, Layout, MemberDevice, MemberSetup, OpenedMember};
use crate::image::{Access, Image, ImageKind};
use crate::remote;
use crate::sync::Mutex;
use crate::sys::file;
use crate::sys::memory::Mapping;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use swapfs_format::PAGE_LEN;
use swapfs_format::member::{MemberKind, MemberOptions, capacity_bytes};
use swapfs_format::superblock::{Member, PATH_HINT_LEN, PRIMARY_OFFSET_BYTES, Superblock};
use uuid::Uuid;

/// How long a server may take that is looked at.
const PATIENCE: Duration = Duration::from_secs(3);

/// The members of one volume.
#[derive(Debug)]
pub struct VolumeImages {
    volume: Uuid,
    /// The volume's own image.
    image: File,
    /// Members that its table has and that were missing when it was mounted: they stay in it.
    absent: Vec<Uuid>,
    /// A page for direct I/O; and one change at a time.
    page: Mutex<Mapping>,
}

impl VolumeImages {
    /// Of the volume `volume`, whose own image is `image`, mounted without the members `absent`.
    ///
    /// # Errors
    /// No memory.
    pub fn new(volume: Uuid, image: File, absent: Vec<Uuid>) -> io::Result<VolumeImages> {
        Ok(VolumeImages { volume, image, absent, page: Mutex::new(Mapping::new(PAGE_LEN, true)?) })
    }

    /// The device of a member whose image is open.
    ///
    /// # Errors
    /// In words, why it can't be used.
    fn device_of(image: &Image) -> Result<MemberDevice, String> {
        let file = image.open_direct().map_err(|error| error.to_string())?;
        Ok(MemberDevice {
            backing: Backing::Blocks(Arc::new(DirectFile::new(file, None))),
            on_block_device: image.kind() == ImageKind::BlockDevice,
            deadline: None,
        })
    }

    /// The member that `superblock` describes, whose image is open, and where its pages are.
    ///
    /// # Errors
    /// In words, what is wrong with it; of one on a server elsewhere, with that.
    pub fn member_of(
        image: &Image,
        superblock: &Superblock,
        path: &Path,
    ) -> Result<(MemberDevice, MemberSetup), String> {
        let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let kind =
            MemberKind::of(superblock).ok_or_else(|| wrong(&"no member of a tier volume"))?;
        let options = MemberOptions::parse(kind, &superblock.options).map_err(|why| wrong(&why))?;
        let layout = match kind {
            MemberKind::Log => Layout::Log,
            MemberKind::Linear => Layout::Linear,
            MemberKind::Remote => {
                let remote = options.remote.clone().ok_or_else(|| wrong(&"no url"))?;
                let (volume, stub) = (superblock.volume_uuid, superblock.uuid);
                let elsewhere = Elsewhere { options: &remote, volume, stub };
                let auto_bytes = capacity_bytes(superblock);
                let found = elsewhere.look(superblock.member_order, path, options, auto_bytes);
                return found.map_err(|why| wrong(&why));
            }
        };
        let setup = MemberSetup {
            order: superblock.member_order,
            uuid: superblock.uuid,
            kind,
            layout,
            is_remote: false,
            data_offset_bytes: superblock.data_offset_bytes,
            data_bytes: superblock.data_bytes,
            segment_bytes: u64::from(superblock.erase_block_bytes),
            path: path.display().to_string(),
            options,
        };
        Ok((VolumeImages::device_of(image)?, setup))
    }

    /// Where the pages of a member are that a predecessor has used. Its server need not be there.
    ///
    /// # Errors
    /// As for [`VolumeImages::member_of`].
    pub fn device_again(image: &Image, volume: Uuid) -> Result<MemberDevice, String> {
        match image.load_member(volume) {
            Ok(stub) if MemberKind::of(&stub) == Some(MemberKind::Remote) => {
                let options = MemberOptions::parse(MemberKind::Remote, &stub.options);
                let options = options.map_err(|error| error.to_string())?.remote;
                let options = options.ok_or("its superblock names no server")?;
                Elsewhere { options: &options, volume, stub: stub.uuid }.later()
            }
            // What its superblock says does not matter any more.
            Ok(_) | Err(_) => VolumeImages::device_of(image),
        }
    }
}

/// The page's bytes. The caller has the lock of it.
fn bytes_of(page: &mut Mapping) -> &mut [u8] {
    // SAFETY: populated private memory, all of it, which its borrower has alone.
    unsafe { std::slice::from_raw_parts_mut(page.as_ptr(), page.len()) }
}

impl Images for VolumeImages {
    fn open(&self, path: &str) -> Result<OpenedMember, String> {
        let path = Path::new(path);
        let found =
            Image::open(path, Access::ReadOnly).and_then(|image| image.load_member(self.volume));
        let found = found.map_err(|error| error.to_string())?;
        let (image, superblock) = open_member(path, found.uuid, self.volume)?;
        let file = image.file().try_clone().map_err(|error| error.to_string())?;
        let (device, setup) = VolumeImages::member_of(&image, &superblock, path)?;
        Ok(OpenedMember { device, setup, file })
    }

    fn check(&self, device: &MemberDevice, uuid: Uuid) -> Result<(), i32> {
        let is_remote = device.deadline.is_some();
        // Others are to be looked at too.
        let soon = Instant::now() + PATIENCE;
        let device = match &device.backing {
            Backing::Blocks(device) => device,
            Backing::Objects(store) => return remote::until(soon, || store.check()),
            Backing::Unopened(_) => return Err(libc::ENODEV),
        };
        if is_remote {
            // Nothing is written there while somebody else may be at it.
            return remote::until(soon, || {
                superblock_of(&**device, uuid)?;
                device.flush()
            });
        }
        let mut page = self.page.lock();
        let bytes = bytes_of(&mut page);
        device.read_at(bytes, PRIMARY_OFFSET_BYTES)?;
        let superblock = Superblock::decode(bytes).map_err(|_| libc::EINVAL)?;
        if superblock.uuid != uuid || superblock.volume_uuid != self.volume {
            return Err(libc::EINVAL);
        }
        // The same again: what is tested is that it can be written.
        device.write_at(bytes, superblock.backup_offset_bytes)?;
        device.flush()
    }

    fn record(&self, members: &[MemberSetup]) -> Result<(), String> {
        let _alone = self.page.lock();
        let failed = |errno: i32| {
            let why = io::Error::from_raw_os_error(errno);
            format!("the volume's superblock: {why}: the next mount finds the members as before")
        };
        let mut page = [0; PAGE_LEN];
        file::read_all_at(&self.image, &mut page, PRIMARY_OFFSET_BYTES).map_err(failed)?;
        let mut superblock = Superblock::decode(&page)
            .map_err(|error| format!("the volume's superblock: {error}: run fsck.swapfs"))?;
        let mut members: Vec<Member> = members
            .iter()
            .map(|member| Member {
                uuid: member.uuid,
                size_bytes: member.data_bytes,
                order: member.order,
                path_hint: match member.path.len() {
                    0..=PATH_HINT_LEN if member.path.starts_with('/') => member.path.clone(),
                    _ => String::new(),
                },
            })
            .collect();
        let is_absent = |member: &&Member| {
            self.absent.contains(&member.uuid) && members.iter().all(|m| m.order != member.order)
        };
        let absent: Vec<Member> = superblock.members.iter().filter(is_absent).cloned().collect();
        members.extend(absent);
        members.sort_by_key(|member| member.order);
        superblock.members = members;
        superblock.generation += 1;
        let page = superblock.encode().map_err(|error| error.to_string())?;
        // The backup first: one of them is whole at any time.
        for offset in [superblock.backup_offset_bytes, PRIMARY_OFFSET_BYTES] {
            file::write_all_at(&self.image, &page, offset).map_err(failed)?;
            file::sync_data(&self.image).map_err(failed)?;
        }
        Ok(())
    }

    fn record_options(
        &self,
        device: &MemberDevice,
        path: &str,
        uuid: Uuid,
        change: &dyn Fn(MemberKind, &str) -> Result<String, String>,
    ) -> Result<MemberOptions, String> {
        let failed = |errno: i32| {
            format!("the member's superblock: {}", io::Error::from_raw_os_error(errno))
        };
        // Of a member elsewhere the options are in its stub.
        let device = match (&device.backing, device.deadline) {
            (Backing::Blocks(device), None) => Arc::clone(device),
            _ => {
                let image = Image::open(Path::new(path), Access::ReadWrite);
                let image = image.map_err(|error| error.to_string())?;
                match VolumeImages::device_of(&image)?.backing {
                    Backing::Blocks(device) => device,
                    _ => return Err(failed(libc::ENODEV)),
                }
            }
        };
        let mut page = self.page.lock();
        let bytes = bytes_of(&mut page);
        device.read_at(bytes, PRIMARY_OFFSET_BYTES).map_err(failed)?;
        let mut superblock = Superblock::decode(bytes).map_err(|error| error.to_string())?;
        let Some(kind) = MemberKind::of(&superblock).filter(|_| superblock.uuid == uuid) else {
            return Err("another image is there now".to_owned());
        };
        superblock.options = change(kind, &superblock.options)?;
        let options = MemberOptions::parse(kind, &superblock.options).map_err(|e| e.to_string())?;
        superblock.generation += 1;
        bytes.copy_from_slice(&superblock.encode().map_err(|error| error.to_string())?);
        for offset in [superblock.backup_offset_bytes, PRIMARY_OFFSET_BYTES] {
            device.write_at(bytes, offset).map_err(failed)?;
            device.flush().map_err(failed)?;
        }
        Ok(options)
    }
}

/// The devices of members that are held open, and of a new mount what they are, by place.
pub(crate) type Opened = (Vec<Option<MemberDevice>>, Vec<(usize, MemberSetup)>);

/// Opens what is held at each place for direct I/O.
///
/// # Errors
/// In words, which member can't be used, and why.
pub(crate) fn devices_of(
    superblock: &Superblock,
    files: &[Option<File>],
    adopted: bool,
) -> Result<Opened, String> {
    let (mut devices, mut setups) = (Vec::new(), Vec::new());
    for (place, file) in files.iter().enumerate() {
        let Some(file) = file else {
            devices.push(None);
            continue;
        };
        let path = path_of(file);
        let file = file.try_clone().map_err(|error| error.to_string())?;
        let image = Image::from_open(&path, file).map_err(|error| error.to_string());
        if adopted {
            let device =
                image.and_then(|image| VolumeImages::device_again(&image, superblock.uuid));
            // The others go on without it, and it is looked for.
            let device = device.inspect_err(|why| log::error!("a member can't be used: {why}"));
            devices.push(device.ok());
            continue;
        }
        let image = image?;
        let own = image.load_member(superblock.uuid).map_err(|error| error.to_string())?;
        let (device, mut setup) = VolumeImages::member_of(&image, &own, &path)?;
        devices.push(Some(device));
        // The volume's table says who is above whom.
        if let Some(entry) = superblock.members.get(place) {
            setup.order = entry.order;
        }
        setups.push((place, setup));
    }
    Ok((devices, setups))
}
