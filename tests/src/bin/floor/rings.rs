//! The floor of the second transport: FUSE over io_uring, one ring and one thread for each CPU,
//! and nothing done but a memcpy. Requests are decoded by offset (linux/fuse.h).

use super::{BLOCK_BYTES, MAX_WRITE_BYTES, Ram, SWAPFILE_NAME, TTL, last_error};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr;
use swapfsd::fuse::uring;
use swapfsd::sys::fuse_ring::{FuseRing, Place};
use swapfsd::sys::memory::Mapping;
use swapfsd::sys::{mount, process};

/// Requests of a queue that wait for its thread.
const DEPTH: usize = 8;
/// `struct fuse_uring_req_header`, and what stands where in it.
const HEADER_BYTES: usize = 288;
const OPERATION: usize = 4;
const UNIQUE: usize = 8;
const INODE: usize = 16;
const FIXED: usize = 128;
const COMMIT_ID: usize = 264;
const PAYLOAD_BYTES: usize = 272;
/// A page for the header, then the payload.
const PLACE_BYTES: usize = BLOCK_BYTES as usize + MAX_WRITE_BYTES as usize;

/// Mounts, and serves until the file system is unmounted.
pub(super) fn serve(ram: &'static Ram, mountpoint: &Path) -> Result<(), String> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| format!("/dev/fuse: {error}"))?;
    mount::mount_fuse(&device, Path::new("floor"), mountpoint)
        .map_err(|error| format!("mount: {error}"))?;
    let device = OwnedFd::from(device);
    uring::shake_hands(&device).map_err(|error| format!("handshake: {error}"))?;
    println!("ready");
    let cpus = uring::possible_cpus();
    std::thread::scope(|scope| {
        for queue in 0..cpus {
            let device = &device;
            scope.spawn(move || {
                let _ = process::stay_on_cpu(queue);
                if let Err(error) = serve_queue(ram, device, queue as u16) {
                    eprintln!("floor: queue {queue}: {error}");
                }
            });
        }
    });
    Ok(())
}

/// One place, in populated memory.
struct Slot(&'static Mapping, usize);

impl Slot {
    fn at(&self, offset: usize) -> *mut u8 {
        // SAFETY: callers stay inside the place.
        unsafe { self.0.as_ptr().add(self.1 * PLACE_BYTES + offset) }
    }

    fn payload(&self) -> *mut u8 {
        self.at(BLOCK_BYTES as usize)
    }

    fn number<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: plain numbers, inside the header.
        unsafe { self.at(offset).cast::<T>().read_unaligned() }
    }

    fn set<T>(&self, offset: usize, value: T) {
        // SAFETY: as above.
        unsafe { self.at(offset).cast::<T>().write_unaligned(value) };
    }

    fn place(&self) -> Place {
        let part = |base: *mut u8, len| libc::iovec { iov_base: base.cast(), iov_len: len };
        [part(self.at(0), HEADER_BYTES), part(self.payload(), MAX_WRITE_BYTES as usize)]
    }
}

fn serve_queue(ram: &Ram, device: &OwnedFd, queue: u16) -> Result<(), String> {
    let mapping = Mapping::new(DEPTH * PLACE_BYTES, true).map_err(|error| error.to_string())?;
    let mapping: &'static Mapping = Box::leak(Box::new(mapping));
    let ring = FuseRing::new(device.as_raw_fd(), DEPTH as u32);
    let mut ring = ring.map_err(|error| format!("io_uring: {error}"))?;
    let slots: Vec<Slot> = (0..DEPTH).map(|index| Slot(mapping, index)).collect();
    let places: &'static [Place] = slots.iter().map(Slot::place).collect::<Vec<_>>().leak();
    for (token, place) in (0..).zip(places) {
        // SAFETY: places and mapping are never freed; a place is only touched between a request
        // and its answer.
        unsafe { ring.register(queue, place, token) };
    }
    let mut alive = DEPTH;
    while alive > 0 {
        ring.submit_and_wait(true).map_err(|_| last_error("io_uring_enter"))?;
        while let Some((token, result)) = ring.completed() {
            if result < 0 {
                alive -= 1;
                continue;
            }
            let slot = &slots[token as usize];
            let (error, bytes) = answer(ram, slot);
            let (unique, commit_id) = (slot.number::<u64>(UNIQUE), slot.number::<u64>(COMMIT_ID));
            slot.set(0, 16 + bytes as u32);
            slot.set(OPERATION, -error);
            slot.set(UNIQUE, unique);
            slot.set(PAYLOAD_BYTES, bytes as u32);
            ring.commit(queue, commit_id, token);
        }
    }
    Ok(())
}

/// An errno, and the bytes of the answer.
fn answer(ram: &Ram, slot: &Slot) -> (i32, usize) {
    let payload = slot.payload();
    let (offset, size) = (slot.number::<u64>(FIXED + 8), slot.number::<u32>(FIXED + 16) as usize);
    match slot.number::<u32>(OPERATION) {
        // READ and WRITE
        15 => ram.at(offset, size).map_or((libc::EIO, 0), |data| {
            // SAFETY: two mappings, and the size is at most that of a payload.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), payload, size) };
            (0, size)
        }),
        16 => ram.at(offset, size).map_or((libc::EIO, 0), |data| {
            // SAFETY: as above.
            unsafe { ptr::copy_nonoverlapping(payload, data.as_ptr(), size) };
            put(payload, &[size as u64])
        }),
        // LOOKUP: inode, generation, two times, then the attributes
        1 => {
            let wanted = SWAPFILE_NAME.as_bytes();
            // SAFETY: inside the payload.
            let name = unsafe { std::slice::from_raw_parts(payload, wanted.len() + 1) };
            if &name[..wanted.len()] != wanted || name[wanted.len()] != 0 {
                return (libc::ENOENT, 0);
            }
            let mut words = vec![2, 0, TTL.as_secs(), TTL.as_secs(), 0];
            words.extend(attributes(ram, 2));
            put(payload, &words)
        }
        // GETATTR and SETATTR
        3 | 4 => {
            let mut words = vec![TTL.as_secs(), 0];
            words.extend(attributes(ram, slot.number(INODE)));
            put(payload, &words)
        }
        // OPEN: handle, then direct I/O and parallel direct writes; OPENDIR
        14 => put(payload, &[0, 1 | 1 << 6]),
        27 => put(payload, &[0, 0]),
        // STATFS
        17 => {
            let blocks = ram.len as u64 / u64::from(BLOCK_BYTES);
            let sizes = u64::from(BLOCK_BYTES) | 255 << 32;
            put(payload, &[blocks, 0, 0, 2, 0, sizes, u64::from(BLOCK_BYTES), 0, 0, 0])
        }
        // RELEASE, FSYNC, FLUSH, READDIR (nothing to be seen), RELEASEDIR
        18 | 20 | 25 | 28 | 29 => (0, 0),
        _ => (libc::ENOSYS, 0),
    }
}

/// `struct fuse_attr` in words.
fn attributes(ram: &Ram, inode: u64) -> [u64; 11] {
    let is_file = inode == 2;
    let size = if is_file { ram.len as u64 } else { 0 };
    let mode = u64::from(if is_file { libc::S_IFREG | 0o600 } else { libc::S_IFDIR | 0o700 });
    [inode, size, size / 512, 0, 0, 0, 0, mode << 32, 1, 0, u64::from(BLOCK_BYTES)]
}

fn put(payload: *mut u8, words: &[u64]) -> (i32, usize) {
    let bytes = size_of_val(words);
    // SAFETY: an answer is shorter than a payload, and lies elsewhere.
    unsafe { ptr::copy_nonoverlapping(words.as_ptr().cast(), payload, bytes) };
    (0, bytes)
}
