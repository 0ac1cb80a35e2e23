//! What stays on /dev/fuse: the handshake, and requests that get no answer.

use super::super::MAX_BACKGROUND;
use super::super::service::Service;
use super::requests::{Answer, answer, transfer_now};
use super::wire::{
    InHeader, InitIn, InitOut, MAJOR, MINOR, OutHeader, TransferIn, front, init, operation,
};
use crate::sys::alloc::MAX_REQUEST_BYTES;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use zerocopy::IntoBytes;

/// The kernel reads nothing into a buffer that would be too short for the largest request.
const BUFFER_BYTES: usize = MAX_REQUEST_BYTES + 4096;

/// Answers the kernel's INIT.
///
/// # Errors
/// `Unsupported` if the kernel's FUSE does not offer io_uring; what reading and writing answer.
pub fn shake_hands(device: &OwnedFd) -> io::Result<()> {
    let mut device = File::from(device.try_clone()?);
    let mut buffer = vec![0; BUFFER_BYTES];
    let len = device.read(&mut buffer)?;
    let header: InHeader = front(&buffer[..len]).unwrap_or_default();
    let offered: Option<InitIn> = front(&buffer[size_of::<InHeader>()..]);
    let Some(offered) = offered.filter(|_| header.operation == operation::INIT) else {
        return Err(io::Error::other("the kernel's first request is not INIT"));
    };
    let capabilities = u64::from(offered.flags) | u64::from(offered.flags2) << 32;
    let mut error = 0;
    let mut refusal = Ok(());
    if offered.major != MAJOR || capabilities & init::OVER_IO_URING == 0 {
        error = -libc::EPROTO;
        refusal = Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    let wanted = init::ASYNC_READ
        | init::BIG_WRITES
        | init::ASYNC_DIO
        | init::MAX_PAGES
        | init::EXTENDED
        | init::OVER_IO_URING;
    let flags = wanted & capabilities;
    let answer = InitOut {
        major: MAJOR,
        minor: MINOR.min(offered.minor),
        max_readahead: offered.max_readahead,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND,
        max_write: MAX_REQUEST_BYTES as u32,
        time_granularity_ns: 1,
        max_pages: (MAX_REQUEST_BYTES / 4096) as u16,
        ..InitOut::default()
    };
    let len = size_of::<OutHeader>() + size_of::<InitOut>();
    let out = OutHeader { len: len as u32, error, unique: header.unique };
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(out.as_bytes());
    bytes.extend(answer.as_bytes());
    if error != 0 {
        bytes.truncate(size_of::<OutHeader>());
        bytes[..4].copy_from_slice(&(size_of::<OutHeader>() as u32).to_ne_bytes());
    }
    device.write_all(&bytes)?;
    refusal
}

/// What [`read_the_rest`] reads into, and makes answers in; touched now, when there is time.
pub(super) fn buffers() -> [Vec<u8>; 2] {
    [vec![1; BUFFER_BYTES], vec![1; MAX_REQUEST_BYTES]]
}

/// Reads what does not come by rings, until the connection ends: FORGET and INTERRUPT, which get
/// no answer. A request that the kernel had queued there just before the rings were ready is
/// answered: nobody else would.
///
/// # Errors
/// What reading answers, other than the end of the mount.
pub(super) fn read_the_rest(
    device: &OwnedFd,
    service: &Service,
    [mut buffer, mut payload]: [Vec<u8>; 2],
) -> io::Result<()> {
    let mut device = File::from(device.try_clone()?);
    loop {
        let len = match device.read(&mut buffer) {
            Ok(len) => len,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENODEV) => return Ok(()),
                // The request was taken back before it was read.
                Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => continue,
                _ => return Err(error),
            },
        };
        let header: InHeader = front(&buffer[..len]).unwrap_or_default();
        if matches!(
            header.operation,
            operation::FORGET | operation::BATCH_FORGET | operation::INTERRUPT
        ) {
            continue;
        }
        let (error, bytes) = answer_one(service, &header, &buffer[..len], &mut payload);
        let len = (size_of::<OutHeader>() + bytes) as u32;
        let out = OutHeader { len, error, unique: header.unique };
        let parts = [IoSlice::new(out.as_bytes()), IoSlice::new(&payload[..bytes])];
        match device.write_vectored(&parts) {
            // Nobody waits for it any more.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            outcome => drop(outcome?),
        }
    }
}

/// The negative errno, and the bytes of the answer in `payload`.
fn answer_one(
    service: &Service,
    header: &InHeader,
    request: &[u8],
    payload: &mut [u8],
) -> (i32, usize) {
    // Here the operation's own part and what comes with it lie one behind the other.
    let fixed = request.get(size_of::<InHeader>()..).unwrap_or(&[]);
    let rest = match header.operation {
        operation::WRITE => fixed.get(size_of::<TransferIn>()..).unwrap_or(&[]),
        operation::LOOKUP => fixed,
        _ => &[],
    };
    let rest_bytes = rest.len().min(payload.len());
    payload[..rest_bytes].copy_from_slice(&rest[..rest_bytes]);
    let answered = answer(service, header, fixed, payload, rest_bytes);
    match transfer_now(service, answered, payload) {
        Answer::Done(bytes) => (0, bytes),
        Answer::Failed(errno) => (-errno, 0),
        Answer::Read(..) | Answer::Write(..) => (-libc::EIO, 0),
    }
}
