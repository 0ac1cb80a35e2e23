//! Records out of a trace file, in the order in which the operations began.

use crate::failure::Failure;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use swapfs_format::trace::{HEADER_LEN, Header, HeaderError, RECORD_LEN, Record};

/// The file has operations in the order in which they ended, and so many can have been under way
/// at once, in all rings and threads of a daemon.
const WINDOW: usize = 1024;
const BUFFER_BYTES: usize = 1 << 20;

/// An open trace file.
#[derive(Debug)]
pub(super) struct TraceReader {
    path: PathBuf,
    file: BufReader<File>,
    /// What was traced.
    pub(super) header: Header,
    /// Bytes at the end that are no whole record.
    pub(super) cut_off_bytes: u64,
    /// Records of kinds that this program does not know.
    pub(super) unknown_records: u64,
}

/// Ordered by the start, and where that is the same by the place in the file.
struct Waiting {
    place: u64,
    record: Record,
}

impl Waiting {
    fn key(&self) -> (u64, u64) {
        (self.record.start_ns, self.place)
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Waiting) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl TraceReader {
    /// Opens the file, and reads its header.
    pub(super) fn open(path: &Path) -> Result<TraceReader, Failure> {
        let cannot = |doing: &str, error: &io::Error| Failure::os(path.display(), doing, error);
        let file = File::open(path).map_err(|error| cannot("open", &error))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(Failure::new(path.display(), "a directory: name a trace file in it"));
        }
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut start = [0; HEADER_LEN];
        let count = read_up_to(&mut file, &mut start).map_err(|error| cannot("read", &error))?;
        let header = Header::decode(&start[..count]).map_err(|error| {
            let next = match error {
                HeaderError::UnknownVersion(_) => "use the swapfs that wrote it, or a newer one",
                _ => "record one by the option trace=PATH of a mount, see swapfsd(8)",
            };
            Failure::new(path.display(), format_args!("{error}: {next}"))
        })?;
        let path = path.to_owned();
        Ok(TraceReader { path, file, header, cut_off_bytes: 0, unknown_records: 0 })
    }

    /// Hands over every record.
    pub(super) fn for_each(&mut self, mut take: impl FnMut(&Record)) -> Result<(), Failure> {
        let mut waiting = BinaryHeap::with_capacity(WINDOW + 1);
        for place in 0.. {
            let Some(record) = self.next()? else { break };
            waiting.push(Reverse(Waiting { place, record }));
            if waiting.len() > WINDOW
                && let Some(Reverse(oldest)) = waiting.pop()
            {
                take(&oldest.record);
            }
        }
        while let Some(Reverse(oldest)) = waiting.pop() {
            take(&oldest.record);
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Record>, Failure> {
        loop {
            let mut bytes = [0; RECORD_LEN];
            let count = read_up_to(&mut self.file, &mut bytes)
                .map_err(|error| Failure::os(self.path.display(), "read", &error))?;
            if count < RECORD_LEN {
                self.cut_off_bytes = count as u64;
                return Ok(None);
            }
            match Record::decode(&bytes) {
                None => self.unknown_records += 1,
                record => return Ok(record),
            }
        }
    }
}

/// As much as there is, if that is less than the buffer.
fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}
