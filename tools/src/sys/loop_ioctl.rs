//! The loop driver's ioctls (linux/loop.h). LOOP_CONFIGURE needs Linux 5.8.

use super::check;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;

const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Longest name that the driver keeps, with its final zero.
const LO_NAME_SIZE: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    lo_device: u64,
    lo_inode: u64,
    lo_rdevice: u64,
    lo_offset: u64,
    lo_sizelimit: u64,
    lo_number: u32,
    lo_encrypt_type: u32,
    lo_encrypt_key_size: u32,
    lo_flags: u32,
    lo_file_name: [u8; LO_NAME_SIZE],
    lo_crypt_name: [u8; LO_NAME_SIZE],
    lo_encrypt_key: [u8; 32],
    lo_init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = {
    assert!(size_of::<LoopInfo64>() == 232);
    assert!(size_of::<LoopConfig>() == 304);
};

const EMPTY_INFO: LoopInfo64 = LoopInfo64 {
    lo_device: 0,
    lo_inode: 0,
    lo_rdevice: 0,
    lo_offset: 0,
    lo_sizelimit: 0,
    lo_number: 0,
    lo_encrypt_type: 0,
    lo_encrypt_key_size: 0,
    lo_flags: 0,
    lo_file_name: [0; LO_NAME_SIZE],
    lo_crypt_name: [0; LO_NAME_SIZE],
    lo_encrypt_key: [0; 32],
    lo_init: [0; 2],
};

/// What an attached loop device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopStatus {
    /// The name that it was given when it was attached, cut to 63 bytes.
    pub name: Vec<u8>,
    /// Direct I/O is on.
    pub direct_io: bool,
    /// It detaches itself when the last user closes it.
    pub auto_clear: bool,
}

/// The number of a loop device that is free now; another process may take it first.
///
/// # Errors
/// As the ioctl: no free device and none can be made.
pub fn free_number(control: &File) -> io::Result<u32> {
    // SAFETY: this ioctl takes no argument.
    let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
    Ok(number.unsigned_abs())
}

/// Attaches `backing` with direct I/O asked for, and no automatic detaching. `name` is for
/// display and cut to 63 bytes.
///
/// # Errors
/// EBUSY if the device was taken meanwhile, EINVAL for an impossible block size or before 5.8.
pub fn configure(
    device: &File,
    backing: BorrowedFd<'_>,
    block_bytes: u32,
    name: &[u8],
) -> io::Result<()> {
    let mut info = LoopInfo64 { lo_flags: LO_FLAGS_DIRECT_IO, ..EMPTY_INFO };
    for (place, byte) in info.lo_file_name.iter_mut().take(LO_NAME_SIZE - 1).zip(name) {
        *place = *byte;
    }
    let fd = backing.as_fd().as_raw_fd().unsigned_abs();
    let config = LoopConfig { fd, block_size: block_bytes, info, reserved: [0; 8] };
    // SAFETY: `config` has the size and layout that the ioctl reads (asserted above).
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })?;
    Ok(())
}

/// Reads the state of an attached device back.
///
/// # Errors
/// ENXIO when nothing is attached.
pub fn status(device: &File) -> io::Result<LoopStatus> {
    let mut info = EMPTY_INFO;
    // SAFETY: `info` has the size and layout that the ioctl writes (asserted above).
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) })?;
    let name = info.lo_file_name.iter().copied().take_while(|byte| *byte != 0).collect();
    Ok(LoopStatus {
        name,
        direct_io: info.lo_flags & LO_FLAGS_DIRECT_IO != 0,
        auto_clear: info.lo_flags & LO_FLAGS_AUTOCLEAR != 0,
    })
}

/// Detaches; the device is free when the last descriptor of it is closed.
///
/// # Errors
/// ENXIO when nothing is attached.
pub fn clear(device: &File) -> io::Result<()> {
    // SAFETY: this ioctl takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) })?;
    Ok(())
}
