//! Memory that is mapped, populated and locked before the I/O path needs it.

use super::{check, errno};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

/// `MADV_DONTNEED` refuses memory that is locked; this takes it too (kernel 5.18). Not in libc yet.
const MADV_DONTNEED_LOCKED: libc::c_int = 24;

/// Mappings of our own above this size are populated by whoever made them, in the part that is
/// used (fuser's read buffers are 16 MiB, of which 1 MiB is ever touched).
const POPULATE_LIMIT_BYTES: usize = 8 << 20;

/// A mapping, page-aligned, zeroed at first; unmapped when dropped. Anonymous, or of a file in
/// memory that other processes may have mapped too and that outlives them all.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// What it maps; `None`: memory of this process alone.
    shared: Option<File>,
}

// SAFETY: a mapping is plain memory, owned by this value; access to it is by the methods below,
// whose callers say why they do not race.
unsafe impl Send for Mapping {}
// SAFETY: as for Send.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes; with `populate`, every page is there before this returns.
    ///
    /// # Errors
    /// What mmap(2) answers, `ENOMEM` first of all.
    pub fn new(len: usize, populate: bool) -> io::Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping { start, len, shared: None };
        if populate {
            mapping.populate_range(0, len)?;
        }
        Ok(mapping)
    }

    /// Maps the first `len` bytes of `file`, which is made longer if it is shorter. Nothing is
    /// populated.
    ///
    /// # Errors
    /// What ftruncate(2) and mmap(2) answer.
    pub fn shared(file: File, len: usize) -> io::Result<Mapping> {
        if file.metadata()?.len() < len as u64 {
            file.set_len(len as u64)?;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, len, shared: Some(file) })
    }

    /// As [`Mapping::shared`], at an address where nothing else is mapped.
    ///
    /// # Errors
    /// `EEXIST` if something is; what ftruncate(2) and mmap(2) answer.
    pub fn shared_at(file: File, len: usize, address: usize) -> io::Result<Mapping> {
        if file.metadata()?.len() < len as u64 {
            file.set_len(len as u64)?;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        let wanted = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: a new mapping, which replaces none.
        let start = unsafe { libc::mmap(wanted, len, protection, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, len, shared: Some(file) })
    }

    /// Has the kernel use small pages only. Where huge pages are the rule, populating a part
    /// would populate all of a huge page, and released parts would be filled in again.
    ///
    /// # Errors
    /// `EINVAL` on kernels without huge pages, which is as good.
    pub fn use_small_pages(&self) -> io::Result<()> {
        let start = self.start.as_ptr().cast();
        // SAFETY: advice about our own mapping, which changes no contents.
        check(unsafe { libc::madvise(start, self.len, libc::MADV_NOHUGEPAGE) }).map(drop)
    }

    /// Makes the pages of a range present, with the contents that they have; may wait for
    /// memory.
    ///
    /// Not by MAP_POPULATE, which does nothing in a process whose memory is locked on fault (as
    /// the daemon's is): a request would then fault on its own buffer, and wait for memory that
    /// only swap can free. This was seen: the machine stood still.
    ///
    /// # Errors
    /// `ENOMEM`, and what madvise(2) answers otherwise.
    pub fn populate_range(&self, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset + len <= self.len);
        // SAFETY: inside the mapping, as just checked.
        let start = unsafe { self.start.as_ptr().add(offset) };
        match populate(start, len, true) {
            Ok(()) => Ok(()),
            // A kernel before 5.14: touch each page by hand.
            Err(libc::EINVAL) => {
                for step in (0..len).step_by(4096) {
                    // SAFETY: inside the mapping.
                    let byte = unsafe { start.add(step) };
                    // SAFETY: aligned for a byte. Adding nothing keeps what another thread may
                    // write to the page at the same time.
                    unsafe { &*byte.cast::<AtomicU8>() }.fetch_add(0, Ordering::Relaxed);
                }
                Ok(())
            }
            Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// First byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// A mapping of no bytes does not exist.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts the pages of a range that are there already into this process's page tables, so that
    /// their use does not fault; of memory that another process has populated. A hole in the
    /// range would be filled.
    ///
    /// # Errors
    /// What madvise(2) answers.
    pub fn map_present(&self, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset + len <= self.len);
        // SAFETY: inside the mapping, as just checked.
        let start = unsafe { self.start.as_ptr().add(offset) };
        // For reading: several pages a fault, and of a shared mapping they can be written too.
        match populate(start, len, false) {
            // A kernel before 5.14: it faults when it is used.
            Ok(()) | Err(libc::EINVAL) => Ok(()),
            Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Gives the pages of a range back to the system; they read as zeros.
    ///
    /// # Errors
    /// What madvise(2) or fallocate(2) answer.
    pub fn release(&self, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset + len <= self.len);
        if let Some(file) = &self.shared {
            // MADV_REMOVE would do the same, but not where memory is locked.
            return super::file::punch_hole(file, offset as u64, len as u64)
                .map(drop)
                .map_err(io::Error::from_raw_os_error);
        }
        // SAFETY: the range lies inside this mapping, which is private and anonymous.
        let start = unsafe { self.start.as_ptr().add(offset) };
        // SAFETY: as above; the pages then read as zeros, which callers expect.
        let released = check(unsafe { libc::madvise(start.cast(), len, MADV_DONTNEED_LOCKED) });
        match released {
            // A kernel before 5.18, where memory that is not locked can still be given back.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                // SAFETY: as above.
                check(unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) })
            }
            released => released,
        }
        .map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and len are those of the mapping that `new` made; nobody has it after us.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Locks everything that is mapped now or later, each page once it is first touched.
///
/// On-fault, because a table for an empty 1 TiB volume must cost nothing; what the I/O path uses
/// is touched beforehand by [`populate_own_memory`].
///
/// # Errors
/// `EPERM` without CAP_IPC_LOCK, `ENOMEM` over RLIMIT_MEMLOCK.
pub fn lock_all_on_fault() -> io::Result<()> {
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: no memory is passed.
    check(unsafe { libc::mlockall(flags) }).map(drop)
}

/// Bytes of memory that nobody uses, asked without any allocation in the kernel.
#[must_use]
pub fn free_bytes() -> u64 {
    system_information().map_or(u64::MAX, |information| information.0)
}

/// Bytes of memory that the machine has.
#[must_use]
pub fn total_bytes() -> u64 {
    system_information().map_or(1 << 30, |information| information.1)
}

/// Free and total memory in bytes.
fn system_information() -> Option<(u64, u64)> {
    let mut information = std::mem::MaybeUninit::<libc::sysinfo>::uninit();
    // SAFETY: the structure is writable and of the type that the call fills.
    check(unsafe { libc::sysinfo(information.as_mut_ptr()) }).ok()?;
    // SAFETY: filled by the call, which succeeded.
    let information = unsafe { information.assume_init() };
    let unit = u64::from(information.mem_unit);
    Some((information.freeram * unit, information.totalram * unit))
}

/// Touches every page that this process has mapped: code and data of the program and its
/// libraries, stacks, heap. With [`lock_all_on_fault`] before it, none of them faults again.
/// Answers how many bytes are now present.
///
/// # Errors
/// If `/proc/self/maps` can't be read. A mapping that can't be populated is left out.
pub fn populate_own_memory() -> io::Result<usize> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut populated_bytes = 0;
    for line in maps.lines() {
        let Some(mapping) = parse_mapping(line) else { continue };
        let too_long = mapping.len > POPULATE_LIMIT_BYTES && !mapping.heap;
        if !mapping.readable || mapping.special || too_long {
            continue;
        }
        if populate(mapping.start as *mut u8, mapping.len, mapping.writable).is_ok() {
            populated_bytes += mapping.len;
        }
    }
    Ok(populated_bytes)
}

/// Faults a range in, for writing if it is writable, and does not change its contents.
///
/// # Errors
/// The errno of madvise(2); `EINVAL` on kernels before 5.14.
pub(crate) fn populate(start: *mut u8, len: usize, writable: bool) -> Result<(), i32> {
    let advice = if writable { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
    // SAFETY: populating changes no contents; an address that is not mapped is an error.
    if unsafe { libc::madvise(start.cast(), len, advice) } == 0 { Ok(()) } else { Err(errno()) }
}

#[derive(Debug, PartialEq, Eq)]
struct MappingLine {
    start: usize,
    len: usize,
    readable: bool,
    writable: bool,
    special: bool,
    heap: bool,
}

fn parse_mapping(line: &str) -> Option<MappingLine> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let permissions = fields.next()?.as_bytes();
    let name = fields.nth(3).unwrap_or("");
    Some(MappingLine {
        start,
        len: end.checked_sub(start)?,
        readable: permissions.first() == Some(&b'r'),
        writable: permissions.get(1) == Some(&b'w'),
        // The kernel's own pages, and device memory such as an io_uring's rings.
        heap: name == "[heap]",
        special: name.starts_with("[v") || name.starts_with("anon_inode:"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_maps() {
        let line = "7f00a000-7f00c000 rw-p 00000000 00:00 0                    [stack]";
        let mapping = parse_mapping(line).unwrap();
        assert_eq!((mapping.start, mapping.len), (0x7f00_a000, 0x2000));
        assert!(mapping.readable && mapping.writable && !mapping.special);
        assert!(parse_mapping("7fff0000-7fff2000 r-xp 0 00:00 0 [vdso]").unwrap().special);
        assert!(!parse_mapping("10000-20000 ---p 0 00:00 0").unwrap().readable);
        assert_eq!(parse_mapping("nonsense"), None);
    }

    #[test]
    fn populated_memory_is_resident_and_released_memory_reads_zero() {
        let mapping = Mapping::new(1 << 20, false).unwrap();
        populate(mapping.as_ptr(), mapping.len(), true).unwrap();
        // SAFETY: inside the mapping.
        let byte = unsafe { mapping.as_ptr().add(5000) };
        // SAFETY: only this test has the mapping.
        unsafe { byte.write(7) };
        mapping.release(4096, 8192).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { byte.read() }, 0);
    }

    /// As in the daemon: with everything locked on fault, "populated" must still mean present.
    #[test]
    fn populated_means_present_also_when_locked_on_fault() {
        if lock_all_on_fault().is_err() {
            println!("SKIPPED populated_means_present: no CAP_IPC_LOCK");
            return;
        }
        let mapping = Mapping::new(12 << 20, true).unwrap();
        let mut present = vec![0u8; (12 << 20) / 4096];
        let start = mapping.as_ptr().cast();
        // SAFETY: one byte for each page of the mapping.
        let asked = unsafe { libc::mincore(start, mapping.len(), present.as_mut_ptr()) };
        // SAFETY: no memory is passed.
        unsafe { libc::munlockall() };
        assert_eq!(asked, 0);
        assert!(present.iter().all(|page| page & 1 == 1), "not all pages are there");
        assert!(free_bytes() > 0);
    }

    #[test]
    fn own_memory_can_be_populated() {
        assert!(populate_own_memory().unwrap() > 1 << 20);
    }
}
