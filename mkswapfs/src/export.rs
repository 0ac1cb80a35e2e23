//! An export of an NBD server as something to format: what is on it, and writing to it.

use crate::target::{self, foreign_signature};
use crate::write::Medium;
use crate::{Error, Progress};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use swapfs_format::remote::{NbdUrl, RemoteOptions, RemoteUrl};
use swapfs_format::superblock::{DecodeError, MAGIC, PRIMARY_OFFSET_BYTES, Superblock};
use swapfs_format::{PAGE_BYTES, PAGE_LEN};
use swapfsd::backend::device::BlockDevice;
use swapfsd::buffer::{BufferPool, LARGE_BYTES};
use swapfsd::image::SuperblockPair;
use swapfsd::remote::nbd::{NbdDevice, NbdSettings};

/// No server takes longer to answer at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connected export.
#[derive(Debug)]
pub struct Export {
    name: String,
    device: Arc<dyn BlockDevice>,
    bytes: u64,
    /// Page-aligned memory, for reads and writes.
    buffers: BufferPool,
}

fn os_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl Export {
    /// Connects to the export that `options` name.
    ///
    /// # Errors
    /// The address is that of no NBD server, or nobody answers there within some seconds.
    pub fn connect(options: &RemoteOptions) -> Result<Export, Error> {
        let name = options.url.to_string();
        let RemoteUrl::Nbd(url) = &options.url else {
            return Err(Error::new(name, "is no address of an NBD server"));
        };
        // Somebody sits and waits.
        let deadline = options.deadline.min(PATIENCE);
        let (device, bytes) = open(url, deadline).map_err(|why| {
            // Its text begins with the address already.
            let why = why.strip_prefix(&format!("{name}: ")).unwrap_or(&why);
            Error::new(
                &name,
                format_args!("{why}: start the server, or see whether the address is right"),
            )
        })?;
        Export::of(name, device, bytes)
    }

    /// `device`, which has `bytes` bytes, called `name` in messages.
    ///
    /// # Errors
    /// No memory.
    pub fn of(name: String, device: Arc<dyn BlockDevice>, bytes: u64) -> Result<Export, Error> {
        let buffers = BufferPool::new(1, 1).map_err(|error| Error::new(&name, error))?;
        Ok(Export { name, device, bytes, buffers })
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads both superblocks, as of an image.
    #[must_use]
    pub fn read_superblocks(&self) -> SuperblockPair {
        let primary = self.read_superblock(PRIMARY_OFFSET_BYTES);
        let backup_offset_bytes = match &primary {
            Ok(superblock) => superblock.backup_offset_bytes,
            Err(_) => target::last_page(self.bytes),
        };
        let backup = self.read_superblock(backup_offset_bytes);
        SuperblockPair { primary, backup, backup_offset_bytes }
    }

    fn read_superblock(&self, offset_bytes: u64) -> Result<Superblock, DecodeError> {
        if offset_bytes.checked_add(PAGE_BYTES).is_none_or(|end| end > self.bytes) {
            return Err(DecodeError::TooShort(0));
        }
        let mut page = self.buffers.take(PAGE_LEN);
        let read = self.device.read_at(&mut page[..PAGE_LEN], offset_bytes);
        read.map_err(DecodeError::Unreadable)?;
        Superblock::decode(&page[..PAGE_LEN])
    }

    /// What is on it, if anything.
    ///
    /// # Errors
    /// It can't be read, or nobody can say.
    pub(crate) fn holds(&self) -> Result<Option<String>, Error> {
        let pair = self.read_superblocks();
        if let Err(DecodeError::Unreadable(errno)) = pair.primary {
            return Err(Error::new(&self.name, format_args!("reading it: {}", os_error(errno))));
        }
        if let Some(found) = target::swapfs_image(&pair) {
            return Ok(Some(found));
        }
        self.foreign().map_err(|error| Error::new(&self.name, error))
    }

    /// Asks blkid, which knows files and devices only: of its ends, where all signatures are, a
    /// file is made that has no name.
    fn foreign(&self) -> io::Result<Option<String>> {
        let copy = tempfile::tempfile()?;
        copy.set_len(self.bytes)?;
        let end = self.bytes / PAGE_BYTES * PAGE_BYTES;
        let ends = [0, end.saturating_sub(LARGE_BYTES as u64)];
        let mut buffer = self.buffers.take(LARGE_BYTES);
        for offset_bytes in ends {
            let len = (end - offset_bytes).min(LARGE_BYTES as u64) as usize;
            self.device.read_at(&mut buffer[..len], offset_bytes).map_err(os_error)?;
            // Zeros stay a hole.
            for (page, at) in buffer[..len].chunks(PAGE_LEN).zip((offset_bytes..).step_by(PAGE_LEN))
            {
                if page.iter().any(|byte| *byte != 0) {
                    copy.write_all_at(page, at)?;
                }
            }
        }
        if starts_with_magic(&copy)? {
            return Ok(Some("a damaged swapfs volume".to_owned()));
        }
        let path = format!("/proc/{}/fd/{}", std::process::id(), copy.as_raw_fd());
        foreign_signature(Path::new(&path)).map_err(io::Error::other)
    }
}

fn starts_with_magic(file: &File) -> io::Result<bool> {
    let mut start = [0; MAGIC.len()];
    file.read_exact_at(&mut start, 0)?;
    Ok(start == MAGIC)
}

/// The device, and its size in bytes.
fn open(url: &NbdUrl, deadline: Duration) -> Result<(Arc<dyn BlockDevice>, u64), String> {
    let device = NbdDevice::new(NbdSettings {
        place: url.place.clone(),
        export: url.export.clone(),
        connections: Some(1),
        deadline,
        // It may hold anything.
        stub: None,
    });
    let device = device.map_err(|error| error.to_string())?;
    if device.is_read_only() {
        return Err("the server lets nobody write to it".to_owned());
    }
    let bytes = device.size_bytes();
    Ok((Arc::new(device), bytes))
}

impl Medium for Arc<Export> {
    fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let mut buffer = self.buffers.take(LARGE_BYTES);
        for (part, at) in bytes.chunks(LARGE_BYTES).zip((offset_bytes..).step_by(LARGE_BYTES)) {
            let buffer = &mut buffer[..part.len()];
            buffer.copy_from_slice(part);
            self.device.write_at(buffer, at).map_err(os_error)?;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.device.flush().map_err(os_error)
    }

    fn prepare_data(&mut self, _progress: Progress<'_>) -> io::Result<()> {
        // As of a block device: what lies there means nothing.
        Ok(())
    }

    fn old_backups(&self) -> Vec<u64> {
        let found = self.read_superblocks().backup_offset_bytes;
        let last = target::last_page(self.bytes);
        let inside = |place: &u64| *place >= PAGE_BYTES && place + PAGE_BYTES <= self.bytes;
        [found, last].into_iter().filter(inside).collect()
    }
}
