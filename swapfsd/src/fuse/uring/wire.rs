//! What the kernel and a file system say to each other, as bytes: linux/fuse.h, as far as it is
//! needed where fuser does not decode it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Operation numbers of requests.
pub(super) mod operation {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const FORGET: u32 = 2;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const SETATTR: u32 = 4;
    pub(in super::super) const SYMLINK: u32 = 6;
    pub(in super::super) const MKNOD: u32 = 8;
    pub(in super::super) const MKDIR: u32 = 9;
    pub(in super::super) const UNLINK: u32 = 10;
    pub(in super::super) const RMDIR: u32 = 11;
    pub(in super::super) const RENAME: u32 = 12;
    pub(in super::super) const LINK: u32 = 13;
    pub(in super::super) const OPEN: u32 = 14;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const WRITE: u32 = 16;
    pub(in super::super) const STATFS: u32 = 17;
    pub(in super::super) const RELEASE: u32 = 18;
    pub(in super::super) const FSYNC: u32 = 20;
    pub(in super::super) const FLUSH: u32 = 25;
    pub(in super::super) const INIT: u32 = 26;
    pub(in super::super) const OPENDIR: u32 = 27;
    pub(in super::super) const READDIR: u32 = 28;
    pub(in super::super) const RELEASEDIR: u32 = 29;
    pub(in super::super) const FSYNCDIR: u32 = 30;
    pub(in super::super) const CREATE: u32 = 35;
    pub(in super::super) const INTERRUPT: u32 = 36;
    pub(in super::super) const DESTROY: u32 = 38;
    pub(in super::super) const IOCTL: u32 = 39;
    pub(in super::super) const BATCH_FORGET: u32 = 42;
    pub(in super::super) const FALLOCATE: u32 = 43;
    pub(in super::super) const RENAME2: u32 = 45;
    pub(in super::super) const TMPFILE: u32 = 51;
}

/// Flags of INIT; the upper half goes into `flags2`.
pub(super) mod init {
    pub(in super::super) const ASYNC_READ: u64 = 1;
    pub(in super::super) const BIG_WRITES: u64 = 1 << 5;
    pub(in super::super) const ASYNC_DIO: u64 = 1 << 15;
    pub(in super::super) const MAX_PAGES: u64 = 1 << 22;
    pub(in super::super) const EXTENDED: u64 = 1 << 30;
    pub(in super::super) const OVER_IO_URING: u64 = 1 << 41;
}

pub(super) const MAJOR: u32 = 7;
/// FUSE over io_uring came with it (Linux 6.14).
pub(super) const MINOR: u32 = 42;

pub(super) const OPEN_DIRECT_IO: u32 = 1;
pub(super) const OPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

pub(super) const SET_MODE: u32 = 1;
pub(super) const SET_UID: u32 = 1 << 1;
pub(super) const SET_GID: u32 = 1 << 2;
pub(super) const SET_SIZE: u32 = 1 << 3;

/// `struct fuse_in_header`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InHeader {
    pub(super) len: u32,
    pub(super) operation: u32,
    pub(super) unique: u64,
    pub(super) inode: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    pub(super) extension_len: u16,
    pub(super) padding: u16,
}

/// `struct fuse_out_header`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct OutHeader {
    pub(super) len: u32,
    pub(super) error: i32,
    pub(super) unique: u64,
}

/// `struct fuse_init_in`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InitIn {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
    pub(super) flags2: u32,
    pub(super) unused: [u32; 11],
}

/// `struct fuse_init_out`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InitOut {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
    pub(super) max_background: u16,
    pub(super) congestion_threshold: u16,
    pub(super) max_write: u32,
    pub(super) time_granularity_ns: u32,
    pub(super) max_pages: u16,
    pub(super) map_alignment: u16,
    pub(super) flags2: u32,
    pub(super) max_stack_depth: u32,
    pub(super) unused: [u32; 6],
}

/// `struct fuse_attr`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Attr {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) times_s: [u64; 3],
    pub(super) times_ns: [u32; 3],
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) device: u32,
    pub(super) block_bytes: u32,
    pub(super) flags: u32,
}

/// `struct fuse_entry_out`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct EntryOut {
    pub(super) inode: u64,
    pub(super) generation: u64,
    pub(super) entry_valid_s: u64,
    pub(super) attr_valid_s: u64,
    pub(super) entry_valid_ns: u32,
    pub(super) attr_valid_ns: u32,
    pub(super) attr: Attr,
}

/// `struct fuse_attr_out`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct AttrOut {
    pub(super) valid_s: u64,
    pub(super) valid_ns: u32,
    pub(super) padding: u32,
    pub(super) attr: Attr,
}

/// `struct fuse_setattr_in`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct SetAttrIn {
    pub(super) valid: u32,
    pub(super) padding: u32,
    pub(super) handle: u64,
    pub(super) size: u64,
    pub(super) lock_owner: u64,
    pub(super) times_s: [u64; 3],
    pub(super) times_ns: [u32; 3],
    pub(super) mode: u32,
    pub(super) unused4: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) unused5: u32,
}

/// `struct fuse_open_out`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct OpenOut {
    pub(super) handle: u64,
    pub(super) flags: u32,
    pub(super) backing: i32,
}

/// `struct fuse_read_in` and `struct fuse_write_in`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct TransferIn {
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) transfer_flags: u32,
    pub(super) lock_owner: u64,
    pub(super) flags: u32,
    pub(super) padding: u32,
}

/// `struct fuse_write_out`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct WriteOut {
    pub(super) size: u32,
    pub(super) padding: u32,
}

/// `struct fuse_statfs_out`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct StatfsOut {
    pub(super) blocks: u64,
    pub(super) free_blocks: u64,
    pub(super) available_blocks: u64,
    pub(super) files: u64,
    pub(super) free_files: u64,
    pub(super) block_bytes: u32,
    pub(super) name_len: u32,
    pub(super) fragment_bytes: u32,
    pub(super) padding: u32,
    pub(super) spare: [u32; 6],
}

/// `struct fuse_fallocate_in`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct FallocateIn {
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) mode: u32,
    pub(super) padding: u32,
}

/// `struct fuse_dirent`, before its name.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct DirEntry {
    pub(super) inode: u64,
    pub(super) next_offset: u64,
    pub(super) name_len: u32,
    pub(super) kind: u32,
}

/// Bytes of each of the two headers of an entry.
pub(super) const HEADER_BYTES: usize = 128;

/// `struct fuse_uring_ent_in_out`
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct EntryInOut {
    pub(super) flags: u64,
    pub(super) commit_id: u64,
    pub(super) payload_bytes: u32,
    pub(super) padding: u32,
    pub(super) reserved: u64,
}

/// `struct fuse_uring_req_header`: what an entry has beside its payload.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct RequestHeader {
    /// An [`InHeader`] from the kernel, an [`OutHeader`] to it.
    pub(super) in_out: [u8; HEADER_BYTES],
    /// The operation's own fixed part, from the kernel.
    pub(super) operation: [u8; HEADER_BYTES],
    pub(super) entry: EntryInOut,
}

const _: () = assert!(size_of::<InHeader>() == 40);
const _: () = assert!(size_of::<InitIn>() == 64);
const _: () = assert!(size_of::<InitOut>() == 64);
const _: () = assert!(size_of::<Attr>() == 88);
const _: () = assert!(size_of::<EntryOut>() == 128);
const _: () = assert!(size_of::<AttrOut>() == 104);
const _: () = assert!(size_of::<SetAttrIn>() == 88);
const _: () = assert!(size_of::<TransferIn>() == 40);
const _: () = assert!(size_of::<StatfsOut>() == 80);
const _: () = assert!(size_of::<RequestHeader>() == 288);

/// The front of `bytes` as a structure; `None` if there are too few.
pub(super) fn front<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}
