//! The file that records go to: begun anew by a mount, gone on with by a successor.

use super::Traced;
use crate::sys::{device, spawn};
use log::warn;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use swapfs_format::trace::{HEADER_LEN, Header, MAGIC, RECORD_LEN, Record, RecordKind};

/// How often a predecessor's lock is tried for, and how long apart: it has died, and the kernel
/// is about to close what it had open.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A trace file, open or about to be.
#[derive(Debug)]
pub(super) struct TraceFile {
    path: PathBuf,
    traced: Traced,
    /// `None`: a predecessor may still be writing to it.
    file: Option<File>,
    /// When this process began to count.
    base_boot_ns: u64,
    /// When the trace began, before that.
    earlier_ns: u64,
    bytes: Vec<u8>,
}

impl TraceFile {
    /// Begins the file anew. `image` is what is traced.
    pub(super) fn begin(
        path: &Path,
        traced: Traced,
        image: &File,
        base_boot_ns: u64,
    ) -> Result<TraceFile, String> {
        let file = open(path)?;
        let same = |own: &std::fs::Metadata, image: &std::fs::Metadata| {
            own.dev() == image.dev() && own.ino() == image.ino()
        };
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        if image.metadata().is_ok_and(|image| same(&metadata, &image)) {
            return Err("this is the image that is to be traced: name another file".to_owned());
        }
        if !metadata.is_file() {
            return Err("not a regular file: name one, or one that is not there yet".to_owned());
        }
        let mut start = [0; MAGIC.len()];
        let is_trace = file.read_exact_at(&mut start, 0).is_ok() && start == MAGIC;
        if metadata.len() > 0 && !is_trace {
            return Err(
                "it holds something that is no trace: remove it, or name another file".to_owned()
            );
        }
        if device::lock_exclusively(&file).is_err() {
            return Err("another volume is being traced into it: name another file".to_owned());
        }
        if device::is_on_tmpfs(&file) {
            warn!(
                "trace={}: it is on tmpfs, which is swapped out itself: while memory is short, \
                 operations will be missing in it. Put it on a disk",
                path.display()
            );
        }
        file.set_len(0).map_err(|error| error.to_string())?;
        let mut begun = TraceFile::adopt(path, traced, base_boot_ns);
        begun.write_header(&file).map_err(|error| error.to_string())?;
        begun.file = Some(file);
        Ok(begun)
    }

    /// A predecessor's file. It is not opened before there is something to write: by then the
    /// predecessor has died, and nothing that the file does can keep this process from serving.
    pub(super) fn adopt(path: &Path, traced: Traced, base_boot_ns: u64) -> TraceFile {
        let path = path.to_owned();
        TraceFile { path, traced, file: None, base_boot_ns, earlier_ns: 0, bytes: Vec::new() }
    }

    fn write_header(&self, mut file: &File) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = spawn::boot_time_ns().saturating_sub(self.base_boot_ns);
        let header = Header {
            uuid: self.traced.uuid,
            data_offset_bytes: self.traced.data_offset_bytes,
            segment_bytes: self.traced.segment_bytes,
            started_unix_ns: (now.as_nanos() as u64).saturating_sub(since),
            started_boot_ns: self.base_boot_ns,
        };
        file.write_all(&header.encode())
    }

    /// Writes the records, whose times are this process's, behind what is there.
    ///
    /// # Errors
    /// Why the file can't take them.
    pub(super) fn append(&mut self, records: &[Record]) -> Result<(), String> {
        self.bytes.clear();
        let file = match self.file.take() {
            Some(file) => file,
            None => self.go_on(records.first().map_or(0, |record| record.start_ns))?,
        };
        for record in records {
            let start_ns = record.start_ns + self.earlier_ns;
            self.bytes.extend_from_slice(&Record { start_ns, ..*record }.encode());
        }
        (&file).write_all(&self.bytes).map_err(|error| error.to_string())?;
        self.file = Some(file);
        Ok(())
    }

    /// Opens what a predecessor left, without the record that it may have been killed at, and
    /// remarks that another process goes on from here.
    fn go_on(&mut self, start_ns: u64) -> Result<File, String> {
        let file = open(&self.path)?;
        let mut tries = 1;
        while device::lock_exclusively(&file).is_err() {
            if tries == LOCK_TRIES {
                return Err("another process writes to it".to_owned());
            }
            tries += 1;
            thread::sleep(LOCK_PAUSE);
        }
        let len = file.metadata().map_err(|error| error.to_string())?.len();
        if len == 0 {
            // Somebody has moved the file away, or made it empty: from here on, then.
            self.write_header(&file).map_err(|error| error.to_string())?;
            return Ok(file);
        }
        let mut start = [0; HEADER_LEN];
        let count = file.read_at(&mut start, 0).map_err(|error| error.to_string())?;
        let header = Header::decode(&start[..count]).map_err(|error| error.to_string())?;
        if header.uuid != self.traced.uuid {
            return Err(format!("it is a trace of another volume ({})", header.uuid));
        }
        let cut_off = (len - HEADER_LEN as u64) % RECORD_LEN as u64;
        file.set_len(len - cut_off).map_err(|error| error.to_string())?;
        self.earlier_ns = self.base_boot_ns.saturating_sub(header.started_boot_ns);
        let restart = Record {
            kind: RecordKind::Restart,
            start_ns: start_ns + self.earlier_ns,
            duration_ns: 0,
            offset_bytes: 0,
            length_bytes: 0,
        };
        self.bytes.extend_from_slice(&restart.encode());
        Ok(file)
    }
}

/// Opens or makes the file; whatever is written goes to its end.
fn open(path: &Path) -> Result<File, String> {
    let opened = File::options().read(true).append(true).create(true).mode(0o600).open(path);
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("{error}: make its directory first"),
        _ => error.to_string(),
    })
}
