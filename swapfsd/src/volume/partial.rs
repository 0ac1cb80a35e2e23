//! Requests that are not whole slots: the edges are read, changed and written back.
//!
//! The caller holds all slots of the request, so nothing changes a page between its read and
//! its write. Such requests come from people and from mkswap (bytes 1024 to 4095 of page 0),
//! not from the kernel's swap: they need not be fast.

use crate::backend::Backend;
use crate::buffer::{BufferPool, LARGE_BYTES};
use crate::error::Result;
use swapfs_format::{PAGE_BYTES, PAGE_LEN};

/// One slot's share of a byte range.
struct Share {
    slot: u64,
    /// First byte inside the slot.
    start: usize,
    len: usize,
}

fn shares(offset: u64, length: u64) -> impl Iterator<Item = Share> {
    let end = offset + length;
    (offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).map(move |slot| {
        let slot_start = slot * PAGE_BYTES;
        let start = offset.max(slot_start) - slot_start;
        let stop = end.min(slot_start + PAGE_BYTES) - slot_start;
        Share { slot, start: start as usize, len: (stop - start) as usize }
    })
}

pub(super) fn read(
    backend: &dyn Backend,
    buffers: &BufferPool,
    offset: u64,
    out: &mut [u8],
) -> Result<()> {
    let mut page = buffers.take(PAGE_LEN);
    let mut rest = out;
    for share in shares(offset, rest.len() as u64) {
        backend.read(share.slot, &mut page)?;
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(share.len);
        part.copy_from_slice(&page[share.start..][..share.len]);
        rest = behind;
    }
    Ok(())
}

pub(super) fn write(
    backend: &dyn Backend,
    buffers: &BufferPool,
    offset: u64,
    data: &[u8],
) -> Result<()> {
    let mut page = buffers.take(PAGE_LEN);
    let mut rest = data;
    for share in shares(offset, data.len() as u64) {
        if share.len < PAGE_LEN {
            backend.read(share.slot, &mut page)?;
        }
        let (part, behind) = rest.split_at(share.len);
        page[share.start..][..share.len].copy_from_slice(part);
        backend.write(share.slot, &page)?;
        rest = behind;
    }
    Ok(())
}

/// Whole slots in the middle are discarded, then the edges are zeroed.
pub(super) fn discard(
    backend: &dyn Backend,
    buffers: &BufferPool,
    offset: u64,
    length: u64,
) -> Result<()> {
    let end = offset + length;
    let whole_start = offset.next_multiple_of(PAGE_BYTES);
    let whole_end = end / PAGE_BYTES * PAGE_BYTES;
    if whole_start >= whole_end {
        return zero_edges(backend, buffers, offset, length);
    }
    // First, so that nothing has changed where the back end can't do it.
    backend.discard(whole_start / PAGE_BYTES, (whole_end - whole_start) / PAGE_BYTES)?;
    zero_edges(backend, buffers, offset, whole_start - offset)?;
    zero_edges(backend, buffers, whole_end, end - whole_end)
}

fn zero_edges(backend: &dyn Backend, buffers: &BufferPool, offset: u64, length: u64) -> Result<()> {
    let mut page = buffers.take(PAGE_LEN);
    for share in shares(offset, length) {
        backend.read(share.slot, &mut page)?;
        page[share.start..][..share.len].fill(0);
        backend.write(share.slot, &page)?;
    }
    Ok(())
}

/// For a back end that can't discard: writes zeros, in requests of the largest size.
pub(super) fn write_zeros(
    backend: &dyn Backend,
    buffers: &BufferPool,
    offset: u64,
    length: u64,
) -> Result<()> {
    let end = offset + length;
    let whole_start = offset.next_multiple_of(PAGE_BYTES).min(end);
    let whole_end = (end / PAGE_BYTES * PAGE_BYTES).max(whole_start);
    zero_edges(backend, buffers, offset, whole_start - offset)?;
    zero_edges(backend, buffers, whole_end, end - whole_end)?;
    let mut zeros = buffers.take(LARGE_BYTES);
    zeros.fill(0);
    let mut at = whole_start;
    while at < whole_end {
        let len = (whole_end - at).min(LARGE_BYTES as u64);
        backend.write(at / PAGE_BYTES, &zeros[..len as usize])?;
        at += len;
    }
    Ok(())
}
