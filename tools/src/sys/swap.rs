//! swapon(2) and swapoff(2).

use super::{c_path, check};
use std::ffi::c_int;
use std::io;
use std::path::Path;

/// From linux/swap.h; the libc crate does not have them.
const SWAP_FLAG_PREFER: c_int = 0x8000;
const SWAP_FLAG_PRIO_MASK: c_int = 0x7fff;
const SWAP_FLAG_DISCARD: c_int = 0x10000;
const SWAP_FLAG_DISCARD_ONCE: c_int = 0x20000;
const SWAP_FLAG_DISCARD_PAGES: c_int = 0x40000;

/// The highest priority that swapon(2) takes.
pub const MAX_PRIORITY: u16 = SWAP_FLAG_PRIO_MASK as u16;

/// Which freed slots the kernel reports to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// None.
    Off,
    /// The whole area at swapon, and freed clusters while it is used.
    Both,
    /// The whole area at swapon.
    Once,
    /// Freed clusters while it is used.
    Pages,
}

/// The flags of swapon(2). `priority` is at most [`MAX_PRIORITY`]; `None` lets the kernel choose.
fn flags(priority: Option<u16>, discard: Discard) -> c_int {
    let priority_flags = priority
        .map_or(0, |priority| SWAP_FLAG_PREFER | (c_int::from(priority) & SWAP_FLAG_PRIO_MASK));
    let discard_flags = match discard {
        Discard::Off => 0,
        Discard::Both => SWAP_FLAG_DISCARD,
        Discard::Once => SWAP_FLAG_DISCARD | SWAP_FLAG_DISCARD_ONCE,
        Discard::Pages => SWAP_FLAG_DISCARD | SWAP_FLAG_DISCARD_PAGES,
    };
    priority_flags | discard_flags
}

/// Makes `device` a swap area.
///
/// # Errors
/// As swapon(2): EINVAL for a device without a swap header, EPERM also for too many areas.
pub fn swap_on(device: &Path, priority: Option<u16>, discard: Discard) -> io::Result<()> {
    let path = c_path(device)?;
    // SAFETY: `path` is a string that ends with a zero byte and outlives the call.
    check(unsafe { libc::swapon(path.as_ptr(), flags(priority, discard)) })?;
    Ok(())
}

/// Takes all pages back from `device` and ends its use as a swap area. Can take minutes; a
/// signal ends it with EINTR, and the area stays in use.
///
/// # Errors
/// As swapoff(2): EINVAL for a device that is no swap area, ENOMEM when memory is too small.
pub fn swap_off(device: &Path) -> io::Result<()> {
    let path = c_path(device)?;
    // SAFETY: `path` is a string that ends with a zero byte and outlives the call.
    check(unsafe { libc::swapoff(path.as_ptr()) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_of_the_kernel_header() {
        assert_eq!(flags(None, Discard::Off), 0);
        assert_eq!(flags(Some(0), Discard::Off), 0x8000);
        assert_eq!(flags(Some(100), Discard::Both), 0x18064);
        assert_eq!(flags(Some(MAX_PRIORITY), Discard::Once), 0x3ffff);
        assert_eq!(flags(None, Discard::Pages), 0x50000);
    }
}
