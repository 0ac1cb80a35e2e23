//! An io_uring that carries FUSE requests: the two commands of linux/fuse.h, and a wake-up.

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use std::io;
use std::os::fd::RawFd;

/// `FUSE_IO_URING_CMD_REGISTER`: here is a place for a request.
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: here is an answer, and the place is free again.
const COMMIT_AND_FETCH: u32 = 2;
/// Where `len` is in a submission entry (linux/io_uring.h).
const LEN_OFFSET: usize = 24;
/// Parts of a place: headers and payload.
const PARTS: usize = 2;

/// Where one request at a time comes to: its headers, and its payload.
pub type Place = [libc::iovec; PARTS];

/// The ring. Used by the thread that has made it only.
pub struct FuseRing {
    ring: IoUring<Entry128, cqueue::Entry>,
    device: RawFd,
    /// What the wake-up's read writes to.
    wake_value: Box<[u8; 8]>,
}

impl FuseRing {
    /// A ring for `entries` commands at a time on the FUSE connection `device`, which stays open
    /// as long as the ring.
    ///
    /// # Errors
    /// What io_uring_setup(2) answers.
    pub fn new(device: RawFd, entries: u32) -> io::Result<FuseRing> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries)?;
        Ok(FuseRing { ring, device, wake_value: Box::new([0; 8]) })
    }

    /// Gives the kernel a place on queue `queue`; a request in it completes as `token`.
    ///
    /// # Safety
    /// The memory that `place` names, and `place` itself, stay where they are as long as the
    /// connection, and nobody touches that memory while the kernel has the place.
    pub unsafe fn register(&mut self, queue: u16, place: &Place, token: u64) {
        let mut entry = self.command(REGISTER, 0, queue, Some(place.as_ptr() as u64));
        // SAFETY: inside the submission entry, which is 128 plain bytes.
        let len = unsafe { (&raw mut entry).cast::<u8>().add(LEN_OFFSET) };
        // SAFETY: an aligned number in it, for which the crate has no setter.
        unsafe { len.cast::<u32>().write(PARTS as u32) };
        self.push(&entry.user_data(token));
    }

    /// The answer to request `commit_id` is in its place; the next request completes as `token`.
    pub fn commit(&mut self, queue: u16, commit_id: u64, token: u64) {
        let entry = self.command(COMMIT_AND_FETCH, commit_id, queue, None);
        self.push(&entry.user_data(token));
    }

    /// When the eventfd is written to, `token` completes; once.
    pub fn arm_wake(&mut self, eventfd: RawFd, token: u64) {
        let value = self.wake_value.as_mut_ptr();
        let entry: Entry128 = opcode::Read::new(types::Fd(eventfd), value, 8).build().into();
        self.push(&entry.user_data(token));
    }

    fn command(&self, command: u32, commit_id: u64, queue: u16, address: Option<u64>) -> Entry128 {
        // `struct fuse_uring_cmd_req`: flags, commit id, queue.
        let mut bytes = [0; 80];
        bytes[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        bytes[16..18].copy_from_slice(&queue.to_ne_bytes());
        let entry = opcode::UringCmd80::new(types::Fd(self.device), command).cmd(bytes);
        entry.addr(address).build()
    }

    fn push(&mut self, entry: &Entry128) {
        // SAFETY: commands read memory that `register` was promised about; the eight bytes of the
        // wake-up live as long as the ring.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // More than there is room for only if somebody pushed without submitting.
            let _ = self.ring.submit();
        }
    }

    /// Hands over what was pushed.
    ///
    /// # Errors
    /// What io_uring_enter(2) answers.
    pub fn submit(&mut self) -> io::Result<()> {
        self.ring.submit().map(drop)
    }

    /// Hands over what was pushed, has the kernel bring what has come, and waits for a completion
    /// if `wait`.
    ///
    /// # Errors
    /// What io_uring_enter(2) answers.
    pub fn submit_and_wait(&mut self, wait: bool) -> io::Result<()> {
        /// `IORING_ENTER_GETEVENTS`: without it, requests stay where they are until somebody waits
        /// (DEFER_TASKRUN).
        const GET_EVENTS: u32 = 1;
        let pushed = self.ring.submission().len() as u32;
        let submitter = self.ring.submitter();
        // SAFETY: no argument is passed; what the entries name was promised when they were pushed.
        unsafe { submitter.enter::<libc::sigset_t>(pushed, u32::from(wait), GET_EVENTS, None) }
            .map(drop)
    }

    /// The next completion: its token, and its result.
    pub fn completed(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        Some((entry.user_data(), entry.result()))
    }
}

const _: () = assert!(size_of::<Entry128>() == 128);
