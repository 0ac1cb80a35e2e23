use super::*;
use crate::FormatRequest;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use swapfs_format::PAGE_LEN;
use swapfs_format::geometry::Geometry;
use swapfs_format::swap_header::SwapHeader;
use uuid::Uuid;

/// An image in memory whose every step can be its last.
struct Stopping {
    bytes: Vec<u8>,
    steps_left: usize,
    data: (u64, u64),
    old_backups: Vec<u64>,
}

impl Stopping {
    fn step(&mut self) -> io::Result<()> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(())
    }
}

impl Medium for Stopping {
    fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.step()?;
        self.bytes[offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.step()
    }

    fn prepare_data(&mut self, _progress: Progress<'_>) -> io::Result<()> {
        self.step()?;
        self.bytes[self.data.0 as usize..][..self.data.1 as usize].fill(0);
        Ok(())
    }

    fn old_backups(&self) -> Vec<u64> {
        self.old_backups.clone()
    }
}

fn plan(uuid: u128) -> Plan {
    let geometry = Geometry::in_place(16 * PAGE_BYTES, PAGE_BYTES).unwrap();
    Plan {
        image: PathBuf::from("image"),
        create: false,
        superblock: Superblock::new("linear", &geometry, Uuid::from_u128(uuid)),
        preallocate: Preallocate::Full,
        target: None,
        export: None,
    }
}

fn medium(plan: &Plan, bytes: Vec<u8>, steps: usize) -> Stopping {
    let superblock = &plan.superblock;
    let data = (superblock.data_offset_bytes, superblock.data_bytes);
    let old_backups = vec![superblock.data_offset_bytes + 3 * PAGE_BYTES];
    Stopping { bytes, steps_left: steps, data, old_backups }
}

#[test]
fn stopped_anywhere_there_is_no_valid_primary_superblock() {
    let (old, new) = (plan(1), plan(2));
    let fresh = vec![0xa5; old.superblock.image_bytes as usize];
    let mut first = medium(&old, fresh, usize::MAX);
    write_format(&mut first, &old, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let formatted = first.bytes;
    let mut steps = 0;
    loop {
        let mut medium = medium(&new, formatted.clone(), steps);
        let outcome = write_format(&mut medium, &new, &mut |_, _| ControlFlow::Continue(()));
        let primary = Superblock::decode(&medium.bytes);
        if outcome.is_ok() {
            assert_eq!(primary.as_ref(), Ok(&new.superblock));
            let backup = new.superblock.backup_offset_bytes as usize;
            assert_eq!(Superblock::decode(&medium.bytes[backup..]), primary);
            let data = new.superblock.data_offset_bytes as usize;
            let page: &[u8; PAGE_LEN] = medium.bytes[data..][..PAGE_LEN].try_into().unwrap();
            assert_eq!(SwapHeader::decode(page), Some(new.superblock.swap_header()));
            break;
        }
        // The very first step is not done yet: the old volume is whole. After the last write
        // only a flush is missing: what is there is the new volume, whole.
        match steps {
            0 => assert_eq!(primary.as_ref(), Ok(&old.superblock)),
            _ => assert!(primary.is_err() || primary == Ok(new.superblock.clone()), "{steps}"),
        }
        if primary == Ok(new.superblock.clone()) {
            let backup = new.superblock.backup_offset_bytes as usize;
            assert_eq!(Superblock::decode(&medium.bytes[backup..]), primary, "{steps}");
        }
        steps += 1;
    }
    assert!(steps >= 8, "only {steps} steps: is the order still the one described?");
}

fn request(folder: &tempfile::TempDir) -> FormatRequest {
    let mut request = FormatRequest::new(&folder.path().join("image"));
    request.volume_bytes = Some(1 << 20);
    request
}

/// Taken around everything that starts blkid: between its fork and its exec that child has the
/// images of all tests open, and with them their locks, which another test would meet.
static STARTS_BLKID: Mutex<()> = Mutex::new(());

pub(crate) fn alone() -> MutexGuard<'static, ()> {
    STARTS_BLKID.lock().unwrap_or_else(PoisonError::into_inner)
}

fn format(request: &FormatRequest) -> Result<crate::Formatted, Error> {
    let _alone = alone();
    crate::format_image(request, &mut |_, _| ControlFlow::Continue(()))
}

#[test]
fn a_new_image_is_private_allocated_and_loads() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let formatted = format(&request(&folder)).unwrap();
    let meta = fs::metadata(&formatted.image).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert_eq!(meta.len(), formatted.superblock.image_bytes);
    assert!(meta.blocks() * 512 >= meta.len(), "{} of {}", meta.blocks() * 512, meta.len());
    let image = Image::open_exclusive(&formatted.image, Access::ReadOnly).unwrap();
    assert_eq!(image.load().unwrap(), formatted.superblock);
}

#[test]
fn what_is_there_is_not_overwritten_without_force() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut request = request(&folder);
    let first = format(&request).unwrap();
    request.volume_bytes = None;
    let error = format(&request).unwrap_err().to_string();
    assert!(
        error.contains("holds a swapfs volume of type linear") && error.contains("-f"),
        "{error}"
    );
    request.force = true;
    let second = format(&request).unwrap();
    assert!(!second.created);
    assert_ne!(first.superblock.uuid, second.superblock.uuid);
    assert_eq!(first.superblock.slot_count, second.superblock.slot_count);
}

#[test]
fn an_image_in_use_is_never_formatted() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut request = request(&folder);
    format(&request).unwrap();
    let _held = Image::open_exclusive(&request.image, Access::ReadOnly).unwrap();
    request.force = true;
    assert!(format(&request).unwrap_err().to_string().contains("in use"));
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut request = request(&folder);
    request.dry_run = true;
    assert!(format(&request).unwrap().created);
    assert!(!request.image.exists());
}

#[test]
fn an_interrupted_format_removes_what_it_created() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let request = request(&folder);
    let error = crate::format_image(&request, &mut |_, _| ControlFlow::Break(())).unwrap_err();
    assert!(error.to_string().contains("interrupted"), "{error}");
    assert!(!request.image.exists());
}

#[test]
fn a_ghost_image_is_two_superblocks() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut request = request(&folder);
    request.type_name = "ram".to_owned();
    request.volume_bytes = Some(1 << 30);
    let formatted = format(&request).unwrap();
    assert_eq!(fs::metadata(&request.image).unwrap().len(), 2 * PAGE_BYTES);
    assert_eq!(formatted.superblock.volume_bytes(), 1 << 30);
    request.volume_bytes = None;
    request.force = true;
    assert!(format(&request).unwrap_err().to_string().contains("give the volume's size with -s"));
}

#[test]
fn both_ends_are_wiped_and_nothing_else() {
    let mib = 1 << 20;
    let wiped = |image_bytes| ends(image_bytes).collect::<Vec<_>>();
    assert_eq!(wiped(2 * PAGE_BYTES), [(PAGE_BYTES, PAGE_BYTES)]);
    assert_eq!(wiped(mib), [(PAGE_BYTES, mib - PAGE_BYTES)]);
    assert_eq!(wiped(mib + PAGE_BYTES), [(PAGE_BYTES, mib - PAGE_BYTES), (mib, PAGE_BYTES)]);
    assert_eq!(wiped(9 * mib), [(PAGE_BYTES, mib - PAGE_BYTES), (8 * mib, mib)]);
}

/// A file of 3 MiB with the superblock of an MD RAID (version 1.2) at byte 4096.
fn raid_member(folder: &tempfile::TempDir) -> PathBuf {
    let mut bytes = vec![0; 3 << 20];
    let superblock = &mut bytes[4096..][..256];
    superblock[..4].copy_from_slice(&0xa92b_4efcu32.to_le_bytes());
    superblock[4] = 1;
    superblock[144..152].copy_from_slice(&8u64.to_le_bytes());
    let sum: u64 = superblock
        .chunks_exact(4)
        .map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap())))
        .sum();
    let checksum = (sum as u32).wrapping_add((sum >> 32) as u32);
    superblock[216..220].copy_from_slice(&checksum.to_le_bytes());
    let path = folder.path().join("image");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn what_was_there_is_refused_and_after_force_no_longer_found() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut request = FormatRequest::new(&raid_member(&folder));
    let before = fs::read(&request.image).unwrap();
    let error = format(&request).unwrap_err().to_string();
    assert!(error.contains("holds a signature of linux_raid_member"), "{error}");
    assert!(fs::read(&request.image).unwrap() == before, "a refused target was written to");
    request.force = true;
    format(&request).unwrap();
    let _alone = alone();
    assert_eq!(crate::target::foreign_signature(&request.image).unwrap(), None);
}

#[test]
fn a_file_made_by_another_in_the_meantime_is_not_removed() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let request = request(&folder);
    let mut plan = crate::plan::plan(&request).unwrap();
    fs::write(&request.image, b"somebody's").unwrap();
    assert!(
        crate::execute(std::slice::from_mut(&mut plan), &mut |_, _| ControlFlow::Continue(()))
            .is_err()
    );
    assert_eq!(fs::read(&request.image).unwrap(), b"somebody's");
}
