//! A request of the kernel's, as it lies in an entry, into calls of the [`Service`], and its
//! answer back into the entry.

use super::super::service::{
    Attributes, BLOCK_BYTES, Changes, NODE_COUNT, SWAP_FILE, Service, TTL, refuse,
};
use super::wire::{
    Attr, AttrOut, DirEntry, EntryOut, FallocateIn, InHeader, OPEN_DIRECT_IO,
    OPEN_PARALLEL_DIRECT_WRITES, OpenOut, SET_GID, SET_MODE, SET_SIZE, SET_UID, SetAttrIn,
    StatfsOut, TransferIn, WriteOut, front, operation,
};
use std::time::UNIX_EPOCH;
use zerocopy::IntoBytes;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done; so many bytes of the payload go back.
    Done(usize),
    /// An errno.
    Failed(i32),
    /// A read of the swap file, which the caller does: where, and how many bytes.
    Read(u64, usize),
    /// A write of the swap file, likewise.
    Write(u64, usize),
}

impl From<Result<usize, i32>> for Answer {
    fn from(result: Result<usize, i32>) -> Answer {
        match result {
            Ok(bytes) => Answer::Done(bytes),
            Err(errno) => Answer::Failed(errno),
        }
    }
}

/// Deals with one request, but for reads and writes of the swap file. `fixed` is the operation's
/// own part, `payload` what came with it and where the answer goes.
pub(super) fn answer(
    service: &Service,
    header: &InHeader,
    fixed: &[u8],
    payload: &mut [u8],
    payload_bytes: usize,
) -> Answer {
    let inode = header.inode;
    match header.operation {
        operation::READ | operation::WRITE => transfer(service, header, fixed, payload),
        operation::LOOKUP => {
            let name = payload[..payload_bytes].split(|&byte| byte == 0).next().unwrap_or(&[]);
            let found = service.lookup(inode, name);
            found.map(|found| put(payload, &entry_out(service, &found))).into()
        }
        operation::GETATTR => attributes(service, service.attributes(inode), payload),
        operation::SETATTR => set_attributes(service, inode, fixed, payload),
        operation::OPEN => open(service, inode, payload),
        operation::OPENDIR => Answer::Done(put(payload, &OpenOut::default())),
        operation::RELEASE => {
            let handle = front::<u64>(fixed).unwrap_or(0);
            service.release(inode, handle);
            Answer::Done(0)
        }
        operation::READDIR => read_directory(fixed, payload),
        operation::STATFS => Answer::Done(put(
            payload,
            &StatfsOut {
                blocks: service.volume().slot_count(),
                files: NODE_COUNT,
                block_bytes: BLOCK_BYTES,
                name_len: 255,
                fragment_bytes: BLOCK_BYTES,
                ..StatfsOut::default()
            },
        )),
        operation::FALLOCATE => {
            let Some(wanted) = front::<FallocateIn>(fixed) else { return malformed() };
            let FallocateIn { offset, length, mode, .. } = wanted;
            service.fallocate(inode, offset, length, mode as i32).map(|()| 0).into()
        }
        operation::FSYNC => service.sync(inode).map(|()| 0).into(),
        // A FLUSH is sent at each close(2): nothing is held back that it could write.
        operation::FLUSH | operation::RELEASEDIR | operation::FSYNCDIR | operation::DESTROY => {
            Answer::Done(0)
        }
        operation::IOCTL => Answer::Failed(libc::ENOTTY),
        operation::SYMLINK
        | operation::MKNOD
        | operation::MKDIR
        | operation::UNLINK
        | operation::RMDIR
        | operation::RENAME
        | operation::RENAME2
        | operation::LINK
        | operation::CREATE
        | operation::TMPFILE => Answer::Failed(libc::EPERM),
        // The kernel remembers it, and does not ask again: extended attributes before each write,
        // access checks, holes.
        _ => Answer::Failed(libc::ENOSYS),
    }
}

fn malformed() -> Answer {
    Answer::Failed(libc::EINVAL)
}

/// Writes a structure to the payload's start; answers its size.
fn put<T: IntoBytes + zerocopy::Immutable>(payload: &mut [u8], value: &T) -> usize {
    let bytes = value.as_bytes();
    payload[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}

fn transfer(service: &Service, header: &InHeader, fixed: &[u8], payload: &mut [u8]) -> Answer {
    let Some(wanted) = front::<TransferIn>(fixed) else { return malformed() };
    let TransferIn { handle, offset, size, .. } = wanted;
    let is_read = header.operation == operation::READ;
    match header.inode {
        SWAP_FILE if is_read => Answer::Read(offset, service.readable(offset, size)),
        SWAP_FILE if size as usize <= payload.len() => Answer::Write(offset, size as usize),
        SWAP_FILE => malformed(),
        inode if is_read => {
            let size = (size as usize).min(payload.len());
            let copy = |bytes: &[u8]| {
                payload[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            };
            Answer::Done(service.read_status_file(inode, handle, offset, size, copy))
        }
        _ => Answer::Failed(libc::EPERM),
    }
}

/// Does a read or write that [`answer`] has left to the caller, on this thread.
pub(super) fn transfer_now(service: &Service, answer: Answer, payload: &mut [u8]) -> Answer {
    match answer {
        Answer::Read(offset, len) => match service.volume().read(offset, &mut payload[..len]) {
            Ok(()) => Answer::Done(len),
            Err(error) => Answer::Failed(refuse(&error)),
        },
        Answer::Write(offset, len) => match service.volume().write(offset, &payload[..len]) {
            Ok(()) => written(payload, len),
            Err(error) => Answer::Failed(refuse(&error)),
        },
        other => other,
    }
}

/// The answer to a write of `len` bytes.
pub(super) fn written(payload: &mut [u8], len: usize) -> Answer {
    Answer::Done(put(payload, &WriteOut { size: len as u32, padding: 0 }))
}

fn attr(service: &Service, of: &Attributes) -> Attr {
    let made = service.made().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (kind, links) = if of.is_directory { (libc::S_IFDIR, 2) } else { (libc::S_IFREG, 1) };
    Attr {
        inode: of.inode,
        size: of.size,
        blocks: of.size / 512,
        times_s: [made.as_secs(); 3],
        times_ns: [made.subsec_nanos(); 3],
        mode: kind | u32::from(of.mode),
        links,
        block_bytes: BLOCK_BYTES,
        ..Attr::default()
    }
}

fn entry_out(service: &Service, found: &Attributes) -> EntryOut {
    EntryOut {
        inode: found.inode,
        entry_valid_s: TTL.as_secs(),
        attr_valid_s: TTL.as_secs(),
        attr: attr(service, found),
        ..EntryOut::default()
    }
}

fn attributes(service: &Service, found: Result<Attributes, i32>, payload: &mut [u8]) -> Answer {
    let out = |found: Attributes| AttrOut {
        valid_s: TTL.as_secs(),
        attr: attr(service, &found),
        ..AttrOut::default()
    };
    found.map(|found| put(payload, &out(found))).into()
}

fn set_attributes(service: &Service, inode: u64, fixed: &[u8], payload: &mut [u8]) -> Answer {
    let Some(wanted) = front::<SetAttrIn>(fixed) else { return malformed() };
    let given = |flag: u32| wanted.valid & flag != 0;
    let changes = Changes {
        mode: given(SET_MODE).then_some(wanted.mode),
        uid: given(SET_UID).then_some(wanted.uid),
        gid: given(SET_GID).then_some(wanted.gid),
        size: given(SET_SIZE).then_some(wanted.size),
    };
    attributes(service, service.set_attributes(inode, changes), payload)
}

fn open(service: &Service, inode: u64, payload: &mut [u8]) -> Answer {
    let opened = service.open(inode).map(|file| {
        // Without the second flag, writes hold the inode's lock one after the other.
        let parallel = if file.parallel { OPEN_PARALLEL_DIRECT_WRITES } else { 0 };
        let flags = OPEN_DIRECT_IO | parallel;
        put(payload, &OpenOut { handle: file.handle, flags, backing: 0 })
    });
    opened.into()
}

fn read_directory(fixed: &[u8], payload: &mut [u8]) -> Answer {
    let Some(wanted) = front::<TransferIn>(fixed) else { return malformed() };
    let room = (wanted.size as usize).min(payload.len());
    let mut len = 0;
    for (next, (inode, is_directory, name)) in
        (wanted.offset + 1..).zip(Service::entries(wanted.offset))
    {
        let kind = if is_directory { libc::DT_DIR } else { libc::DT_REG };
        let head = DirEntry {
            inode,
            next_offset: next,
            name_len: name.len() as u32,
            kind: u32::from(kind),
        };
        let entry_bytes = (size_of::<DirEntry>() + name.len()).next_multiple_of(8);
        if len + entry_bytes > room {
            break;
        }
        let place = &mut payload[len..len + entry_bytes];
        place.fill(0);
        place[..size_of::<DirEntry>()].copy_from_slice(head.as_bytes());
        place[size_of::<DirEntry>()..][..name.len()].copy_from_slice(name.as_bytes());
        len += entry_bytes;
    }
    Answer::Done(len)
}
